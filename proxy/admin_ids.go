package proxy

import (
	"strconv"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/router"
)

// Admin requests that may name diskless ids, which the broker does not know:
// each is mapped back to the real id. A request that names none is forwarded
// as the bytes that the client sent.
//
// CreateTopics (19), v0–v7; CreatePartitions (37), v0–v3;
// AlterPartitionReassignments (45), v0–v1; UnregisterBroker (64), v0;
// A topic that is to be created with one of sluice's own configurations is
// refused (configs.go). After those that create or change topics, what was known
// of the topics is forgotten.

func mapBack(ids []int32) (changed bool) {
	for i, id := range ids {
		if real := realID(id); real != id {
			ids[i], changed = real, true
		}
	}
	return changed
}

// invalidateAfter forgets topics' facts when the broker has answered.
func (c *conn) invalidateAfter(r *request, topics []string) {
	if len(topics) == 0 {
		return
	}
	before := r.answer
	r.answer = func(c *conn, r *request, in *frame) ([][]byte, error) {
		for _, t := range topics {
			if len(t) > router.MaxTopicName {
				continue // it has none, and would be kept
			}
			c.p.opt.Brokers.Invalidate(t)
		}
		if before != nil {
			return before(c, r, in)
		}
		return nil, nil
	}
}

func (c *conn) createTopics(r *request) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	if err := c.decodeRequest(r, req); err != nil {
		return err
	}
	changed := false
	var topics []string
	var refused []refusal
	kept := req.Topics[:0]
creations:
	for i := range req.Topics {
		for _, cfg := range req.Topics[i].Configs {
			if ref, own := c.refusesOwn(kmsg.ConfigResourceTypeTopic, req.Topics[i].Topic, cfg.Name); own {
				refused, changed = append(refused, ref), true
				continue creations
			}
		}
		topics = append(topics, req.Topics[i].Topic)
		for j := range req.Topics[i].ReplicaAssignment {
			changed = mapBack(req.Topics[i].ReplicaAssignment[j].Replicas) || changed
		}
		kept = append(kept, req.Topics[i])
	}
	req.Topics = kept
	if changed {
		replaceBody(r, req)
	}
	if len(refused) > 0 {
		r.answer = rewrite(kmsg.NewPtrCreateTopicsResponse, func(resp *kmsg.CreateTopicsResponse) error {
			for _, ref := range refused {
				t := kmsg.NewCreateTopicsResponseTopic()
				t.Topic, t.ErrorCode, t.ErrorMessage = ref.name, ref.code, &ref.message
				t.NumPartitions, t.ReplicationFactor = -1, -1
				resp.Topics = append(resp.Topics, t)
			}
			return nil
		})
	}
	c.invalidateAfter(r, topics)
	return nil
}

func (c *conn) createPartitions(r *request) error {
	req := kmsg.NewPtrCreatePartitionsRequest()
	if err := c.decodeRequest(r, req); err != nil {
		return err
	}
	changed := false
	for i := range req.Topics {
		for j := range req.Topics[i].Assignment {
			changed = mapBack(req.Topics[i].Assignment[j].Replicas) || changed
		}
	}
	if changed {
		replaceBody(r, req)
	}
	return nil
}

func (c *conn) alterPartitionAssignments(r *request) error {
	req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
	if err := c.decodeRequest(r, req); err != nil {
		return err
	}
	changed := false
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			changed = mapBack(req.Topics[i].Partitions[j].Replicas) || changed
		}
	}
	if changed {
		replaceBody(r, req)
	}
	return nil
}

func (c *conn) unregisterBroker(r *request) error {
	req := kmsg.NewPtrUnregisterBrokerRequest()
	if err := c.decodeRequest(r, req); err != nil {
		return err
	}
	if real := realID(req.BrokerID); real != req.BrokerID {
		req.BrokerID = real
		replaceBody(r, req)
	}
	return nil
}

// realBroker maps the name of a broker's config resource.
func realBroker(kind kmsg.ConfigResourceType, name string) (string, bool) {
	if kind != kmsg.ConfigResourceTypeBroker && kind != kmsg.ConfigResourceTypeBrokerLogger {
		return name, false
	}
	id, err := strconv.ParseInt(name, 10, 32)
	if err != nil || realID(int32(id)) == int32(id) {
		return name, false
	}
	return strconv.Itoa(int(realID(int32(id)))), true
}
