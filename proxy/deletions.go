package proxy

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/tiers"
)

// DeleteTopics (20), v0–v6; DeleteRecords (21), v0–v2: relayed, but for topics of
// an audit class that says on_delete: refuse. Those are taken out and answered
// POLICY_VIOLATION; the rest of the request goes on. A topic that is named by an
// id whose name the broker does not tell this client is answered
// UNKNOWN_TOPIC_ID: it may be one of those.

const errUnknownTopicID = 100

// mayDelete decides whether a topic, or some of its records, may be deleted.
func (c *conn) mayDelete(topic, what string) (message string, ok bool) {
	router := c.p.opt.Router()
	if !router.HasDiskless() {
		return "", true
	}
	class := router.Place(topic, tiers.TopicFacts{Known: true}).Class
	if !class.Audit {
		return "", true
	}
	if class.OnDelete != tiers.Refuse {
		c.p.metrics.auditDeletions.WithLabelValues("passed").Inc()
		c.warn().Str("topic", topic).Str("class", class.Name).
			Msg(what + " of an audit topic is passed on to Kafka: the archive keeps what it holds (classes.*.on_delete)")
		return "", true
	}
	c.p.metrics.auditDeletions.WithLabelValues("refused").Inc()
	c.warn().Str("topic", topic).Str("class", class.Name).
		Msg(what + " of an audit topic is refused (classes.*.on_delete)")
	return fmt.Sprintf("topic %q has the audit class %s, which refuses %s. Whoever owns sluice's configuration can give it another class, or say on_delete: ignore", topic, class.Name, what), false
}

func (c *conn) deleteTopics(r *request) error {
	req := kmsg.NewPtrDeleteTopicsRequest()
	if err := c.decodeRequest(r, req); err != nil {
		return err
	}
	var unknown [][16]byte
	for _, t := range req.Topics {
		if t.Topic == nil && !c.p.topics.Contains(t.TopicID) {
			unknown = append(unknown, t.TopicID)
		}
	}
	guarded := c.p.opt.Router().HasDiskless()
	if guarded && len(unknown) > 0 {
		if err := c.askAndWait(topicsByID(unknown), func(resp kmsg.Response) { c.p.learn(resp.(*kmsg.MetadataResponse)) }); err != nil {
			return err
		}
	}
	var topics []string
	var refused []kmsg.DeleteTopicsResponseTopic
	refuse := func(name *string, id [16]byte, code int16, message string) {
		t := kmsg.NewDeleteTopicsResponseTopic()
		t.Topic, t.TopicID, t.ErrorCode, t.ErrorMessage = name, id, code, &message
		refused = append(refused, t)
	}
	// Either list is empty, by version.
	names := req.TopicNames[:0]
	for _, name := range req.TopicNames {
		if message, ok := c.mayDelete(name, "deletion"); !ok {
			refuse(&name, [16]byte{}, errPolicyViolation, message)
			continue
		}
		names, topics = append(names, name), append(topics, name)
	}
	req.TopicNames = names
	kept := req.Topics[:0]
	for _, t := range req.Topics {
		var name string
		known := t.Topic != nil
		if known {
			name = *t.Topic
		} else {
			name, known = c.p.topics.Get(t.TopicID)
		}
		switch {
		case !known && guarded:
			refuse(nil, t.TopicID, errUnknownTopicID, "the broker tells this client no topic of this id")
			continue
		case known:
			if message, ok := c.mayDelete(name, "deletion"); !ok {
				refuse(t.Topic, t.TopicID, errPolicyViolation, message)
				continue
			}
			topics = append(topics, name)
		}
		kept = append(kept, t)
	}
	req.Topics = kept
	if len(refused) > 0 {
		replaceBody(r, req)
		r.answer = rewrite(kmsg.NewPtrDeleteTopicsResponse, func(resp *kmsg.DeleteTopicsResponse) error {
			resp.Topics = append(resp.Topics, refused...)
			return nil
		})
	}
	c.invalidateAfter(r, topics)
	return nil
}

func (c *conn) deleteRecords(r *request) error {
	if !c.p.opt.Router().HasDiskless() {
		return nil
	}
	req := kmsg.NewPtrDeleteRecordsRequest()
	if err := c.decodeRequest(r, req); err != nil {
		return err
	}
	var refused []kmsg.DeleteRecordsResponseTopic
	kept := req.Topics[:0]
	for _, t := range req.Topics {
		if _, ok := c.mayDelete(t.Topic, "deletion of records"); ok {
			kept = append(kept, t)
			continue
		}
		answer := kmsg.NewDeleteRecordsResponseTopic()
		answer.Topic = t.Topic
		for _, p := range t.Partitions {
			one := kmsg.NewDeleteRecordsResponseTopicPartition()
			one.Partition, one.LowWatermark, one.ErrorCode = p.Partition, -1, errPolicyViolation
			answer.Partitions = append(answer.Partitions, one)
		}
		refused = append(refused, answer)
	}
	req.Topics = kept
	if len(refused) > 0 {
		replaceBody(r, req)
		r.answer = rewrite(kmsg.NewPtrDeleteRecordsResponse, func(resp *kmsg.DeleteRecordsResponse) error {
			resp.Topics = append(resp.Topics, refused...)
			return nil
		})
	}
	return nil
}
