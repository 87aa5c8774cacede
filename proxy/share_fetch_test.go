package proxy_test

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy"
)

const (
	member  = "iQp3HyTLTQuW_kL0Mdj1xA"
	derived = "XLMrYFBRDDZpQcAHxuAV2w" // from member
)

func shareFetch(version int16, epoch int32) *kmsg.ShareFetchRequest {
	req := kmsg.NewPtrShareFetchRequest()
	req.SetVersion(version)
	group, m := "g", member
	req.GroupID, req.MemberID, req.ShareSessionEpoch = &group, &m, epoch
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.MaxRecords, req.BatchSize = 500, 1000, 50<<20, 500, 500
	if epoch == 0 {
		t := kmsg.NewShareFetchRequestTopic()
		t.TopicID, t.Partitions = coldID, make([]kmsg.ShareFetchRequestTopicPartition, 2)
		t.Partitions[1].Partition = 1
		req.Topics = append(req.Topics, t)
	}
	return req
}

// A member's two connections to a broker must not evict each other's session;
// leaders and brokers are named as in Metadata.
func TestShareRequestsAreMapped(t *testing.T) {
	for _, diskless := range []bool{false, true} {
		for version := int16(1); version <= 2; version++ {
			inBubble(t, proxy.Limits{}, func(r *rig) {
				f := r.fetcher(on(diskless), 13)
				want := member
				if diskless {
					want = derived
				}

				f.c.ask(70, shareFetch(version, 0))
				got := kmsg.NewPtrShareFetchRequest()
				got.SetVersion(version)
				corr := f.b.received(got)
				if *got.MemberID != want || len(got.Topics) != 1 || len(got.Topics[0].Partitions) != 2 || *got.GroupID != "g" || got.MaxWaitMillis != 500 {
					t.Errorf("diskless %v: the broker got %+v of member %s", diskless, got, *got.MemberID)
				}
				resp := kmsg.NewPtrShareFetchResponse()
				resp.SetVersion(version)
				topic := kmsg.NewShareFetchResponseTopic()
				topic.TopicID = coldID
				moved, fine := kmsg.NewShareFetchResponseTopicPartition(), kmsg.NewShareFetchResponseTopicPartition()
				moved.ErrorCode, moved.CurrentLeader.LeaderID, moved.CurrentLeader.LeaderEpoch = 6, 0, 7
				fine.Partition = 1
				topic.Partitions = append(topic.Partitions, moved, fine)
				resp.Topics = append(resp.Topics, topic)
				resp.NodeEndpoints = append(resp.NodeEndpoints, kmsg.ShareFetchResponseNodeEndpoint{NodeID: 0, Host: "broker", Port: 9092})
				f.b.raw(encodeResponse(corr, resp))
				told := kmsg.NewPtrShareFetchResponse()
				told.SetVersion(version)
				f.c.answer(70, told)
				if at := told.Topics[0].Partitions[0].CurrentLeader; at.LeaderID != 1<<20 || at.LeaderEpoch != 7 || told.Topics[0].Partitions[1].CurrentLeader.LeaderID != 0 {
					t.Errorf("leaders %+v", told.Topics[0].Partitions)
				}
				if len(told.NodeEndpoints) != 2 || told.NodeEndpoints[0].Host != host || told.NodeEndpoints[0].Port != firstPrt || told.NodeEndpoints[1].NodeID != 1<<20 || told.NodeEndpoints[1].Port != firstPrt+1 {
					t.Errorf("endpoints %+v", told.NodeEndpoints)
				}

				group, m := "g", member
				ack := kmsg.NewPtrShareAcknowledgeRequest()
				ack.SetVersion(version)
				ack.GroupID, ack.MemberID, ack.ShareSessionEpoch = &group, &m, 1
				f.c.ask(71, ack)
				gotAck := kmsg.NewPtrShareAcknowledgeRequest()
				gotAck.SetVersion(version)
				corr = f.b.received(gotAck)
				if *gotAck.MemberID != want || gotAck.ShareSessionEpoch != 1 {
					t.Errorf("diskless %v: the broker got %+v of member %s", diskless, gotAck, *gotAck.MemberID)
				}
				done := kmsg.NewPtrShareAcknowledgeResponse()
				done.SetVersion(version)
				done.NodeEndpoints = append(done.NodeEndpoints, kmsg.ShareAcknowledgeResponseNodeEndpoint{NodeID: 0, Host: "broker", Port: 9092})
				f.b.raw(encodeResponse(corr, done))
				toldAck := kmsg.NewPtrShareAcknowledgeResponse()
				toldAck.SetVersion(version)
				if f.c.answer(71, toldAck); len(toldAck.NodeEndpoints) != 2 || toldAck.NodeEndpoints[1].Host != host {
					t.Errorf("endpoints %+v", toldAck.NodeEndpoints)
				}
			})
		}
	}
}

// Nothing is acquired while a store cannot be read; the client waits as it
// would for records, and is not sent round in circles.
func TestNothingIsAcquiredWhileAStoreIsUnreadable(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		f := r.fetcher(on(true), 13)
		ask := func(corr, epoch int32) (named, forgotten int, took time.Duration) {
			began := time.Now()
			f.c.ask(corr, shareFetch(2, epoch))
			got := kmsg.NewPtrShareFetchRequest()
			got.SetVersion(2)
			at := f.b.received(got)
			for _, t := range got.Topics {
				named += len(t.Partitions)
			}
			for _, t := range got.ForgottenTopicsData {
				forgotten += len(t.Partitions)
			}
			resp := kmsg.NewPtrShareFetchResponse()
			resp.SetVersion(2)
			f.b.raw(encodeResponse(at, resp))
			f.c.answer(corr, resp)
			return named, forgotten, time.Since(began)
		}
		for i, c := range []struct {
			unreadable       bool
			epoch            int32
			named, forgotten int
			took             time.Duration
		}{
			{false, 0, 2, 0, 0},
			{true, 1, 0, 2, 500 * time.Millisecond},
			{true, 2, 0, 0, 500 * time.Millisecond},
			{false, 3, 2, 0, 0},
			{false, 4, 0, 0, 0},
			{true, 0, 0, 0, 500 * time.Millisecond},
			{false, 1, 2, 0, 0},
		} {
			r.payloads.unreadable.Store(c.unreadable)
			if named, forgotten, took := ask(int32(100+i), c.epoch); named != c.named || forgotten != c.forgotten || took != c.took {
				t.Errorf("request %d: %d partitions named and %d forgotten in %v; want %d and %d in %v", i, named, forgotten, took, c.named, c.forgotten, c.took)
			}
		}
	})
}

// A session that began elsewhere begins anew: which partitions it has is not
// known here.
func TestShareSessionOfAnotherConnection(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		f := r.fetcher(on(true), 13)
		f.c.ask(80, shareFetch(2, 5))
		resp := kmsg.NewPtrShareFetchResponse()
		resp.SetVersion(2)
		if f.c.answer(80, resp); resp.ErrorCode != 122 {
			t.Errorf("error %d, want SHARE_SESSION_NOT_FOUND", resp.ErrorCode)
		}
	})
}

// A session that would be remembered with too much is refused, and with it what
// follows on it: the broker has not seen the request.
func TestShareSessionThatIsTooLarge(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		f := r.fetcher(on(true), 13)
		req := shareFetch(2, 0)
		req.Topics[0].Partitions = make([]kmsg.ShareFetchRequestTopicPartition, 20_000)
		for i := range req.Topics[0].Partitions {
			req.Topics[0].Partitions[i].Partition = int32(i)
		}
		f.c.ask(80, req)
		resp := kmsg.NewPtrShareFetchResponse()
		resp.SetVersion(2)
		if f.c.answer(80, resp); resp.ErrorCode != 133 {
			t.Errorf("error %d, want SHARE_SESSION_LIMIT_REACHED", resp.ErrorCode)
		}
		f.c.ask(81, shareFetch(2, 1))
		if f.c.answer(81, resp); resp.ErrorCode != 122 {
			t.Errorf("then error %d, want SHARE_SESSION_NOT_FOUND", resp.ErrorCode)
		}
	})
}
