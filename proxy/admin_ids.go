package proxy

import (
	"strconv"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Admin requests that may name diskless ids, which the broker does not know:
// each is mapped back to the real id. A request that names none is forwarded
// as the bytes that the client sent.
//
// CreateTopics (19), v0–v7; CreatePartitions (37), v0–v3;
// AlterPartitionReassignments (45), v0–v1; UnregisterBroker (64), v0;
// DeleteTopics (20), v0–v6, passes unchanged. After those that create, change
// or delete topics, what was known of the topics is forgotten.

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
	if err := decodeRequest(r, req); err != nil {
		return err
	}
	changed := false
	var topics []string
	for i := range req.Topics {
		topics = append(topics, req.Topics[i].Topic)
		for j := range req.Topics[i].ReplicaAssignment {
			changed = mapBack(req.Topics[i].ReplicaAssignment[j].Replicas) || changed
		}
	}
	if changed {
		replaceBody(r, req)
	}
	c.invalidateAfter(r, topics)
	return nil
}

func (c *conn) deleteTopics(r *request) error {
	req := kmsg.NewPtrDeleteTopicsRequest()
	if err := decodeRequest(r, req); err != nil {
		return err
	}
	topics := req.TopicNames
	for _, t := range req.Topics {
		if t.Topic != nil {
			topics = append(topics, *t.Topic)
		} else if name, ok := c.p.topics.Get(t.TopicID); ok {
			topics = append(topics, name)
		}
	}
	c.invalidateAfter(r, topics)
	return nil
}

func (c *conn) createPartitions(r *request) error {
	req := kmsg.NewPtrCreatePartitionsRequest()
	if err := decodeRequest(r, req); err != nil {
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
	if err := decodeRequest(r, req); err != nil {
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
	if err := decodeRequest(r, req); err != nil {
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
