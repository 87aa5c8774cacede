package proxy_test

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy"
)

const (
	guarded = "audit-guarded" // of a class with on_delete: refuse
	passing = "audit-passing" // of one without
)

var guardedID = [16]byte{0xa0, 1}

func TestAuditTopicsAreNotDeleted(t *testing.T) {
	versions(t, 20, true, func(t *testing.T, r *rig, v int16) {
		req, answer := kmsg.NewPtrDeleteTopicsRequest(), kmsg.NewPtrDeleteTopicsResponse()
		req.SetVersion(v)
		req.TopicNames = []string{hot, guarded, passing}
		for _, name := range []string{hot, guarded, passing} {
			named := kmsg.NewDeleteTopicsRequestTopic()
			named.Topic = &name
			req.Topics = append(req.Topics, named)
		}
		sent := r.exchange(bootstrap, req, kmsg.NewPtrDeleteTopicsResponse(), answer).(*kmsg.DeleteTopicsRequest)
		left := sent.TopicNames
		for _, named := range sent.Topics {
			left = append(left, *named.Topic)
		}
		if strings.Join(left, " ") != hot+" "+passing {
			t.Errorf("the broker was asked to delete %v", left)
		}
		if len(answer.Topics) != 1 || *answer.Topics[0].Topic != guarded || answer.Topics[0].ErrorCode != 44 {
			t.Fatalf("the client was told of %+v", answer.Topics)
		}
		if m := answer.Topics[0].ErrorMessage; v >= 5 && (m == nil || !strings.Contains(*m, "on_delete")) {
			t.Errorf("message %v", m)
		}
		if got := r.sum("sluice_proxy_audit_deletions_total"); got != 2 {
			t.Errorf("%v deletions were counted", got)
		}
	})
	versions(t, 21, true, func(t *testing.T, r *rig, v int16) {
		req, answer := kmsg.NewPtrDeleteRecordsRequest(), kmsg.NewPtrDeleteRecordsResponse()
		req.SetVersion(v)
		for _, name := range []string{guarded, hot, passing} {
			topic := kmsg.NewDeleteRecordsRequestTopic()
			topic.Topic = name
			for p := range int32(2) {
				part := kmsg.NewDeleteRecordsRequestTopicPartition()
				part.Partition, part.Offset = p, 7
				topic.Partitions = append(topic.Partitions, part)
			}
			req.Topics = append(req.Topics, topic)
		}
		sent := r.exchange(bootstrap, req, kmsg.NewPtrDeleteRecordsResponse(), answer).(*kmsg.DeleteRecordsRequest)
		if len(sent.Topics) != 2 || sent.Topics[0].Topic != hot || sent.Topics[1].Topic != passing {
			t.Errorf("the broker was asked for %+v", sent.Topics)
		}
		if len(answer.Topics) != 1 || len(answer.Topics[0].Partitions) != 2 || answer.Topics[0].Partitions[1].ErrorCode != 44 {
			t.Errorf("the client was told of %+v", answer.Topics)
		}
	})
}

// A topic's name is asked for when only its id is known: who deletes by id must
// not get around the policy.
func TestAuditTopicsAreNotDeletedByID(t *testing.T) {
	nobodys := [16]byte{0xee}
	inBubble(t, proxy.Limits{}, func(r *rig) {
		c, b := r.pair(bootstrap)
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.SetVersion(6)
		for _, id := range [][16]byte{guardedID, nobodys} {
			byID := kmsg.NewDeleteTopicsRequestTopic()
			byID.TopicID = id
			req.Topics = append(req.Topics, byID)
		}
		c.ask(1, req)
		meta := kmsg.NewPtrMetadataRequest()
		corr := b.received(meta)
		if len(meta.Topics) != 2 || meta.Topics[0].TopicID != guardedID {
			t.Fatalf("asked for %+v", meta.Topics)
		}
		resp := kmsg.NewPtrMetadataResponse()
		resp.SetVersion(meta.Version)
		known, unknown := kmsg.NewMetadataResponseTopic(), kmsg.NewMetadataResponseTopic()
		known.Topic, known.TopicID = strptr(guarded), guardedID
		unknown.TopicID, unknown.ErrorCode = nobodys, 100
		resp.Topics = append(resp.Topics, known, unknown)
		b.respond(corr, resp)
		sent := kmsg.NewPtrDeleteTopicsRequest()
		corr = b.received(sent)
		if len(sent.Topics) != 0 {
			t.Errorf("the broker was asked to delete %+v", sent.Topics)
		}
		empty := kmsg.NewPtrDeleteTopicsResponse()
		empty.SetVersion(6)
		b.respond(corr, empty)
		answer := kmsg.NewPtrDeleteTopicsResponse()
		answer.SetVersion(6)
		c.answer(1, answer)
		if len(answer.Topics) != 2 || answer.Topics[0].ErrorCode != 44 || answer.Topics[1].ErrorCode != 100 {
			t.Errorf("the client was told of %+v", answer.Topics)
		}
	})
}
