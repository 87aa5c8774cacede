package proxy_test

import (
	"slices"
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

// What cannot be had of one partition is not waited for when there is something
// to give of another, and is not acquired again; alone it is tried as long as the
// records are locked.
func TestOneUnreadablePartitionDoesNotHoldUpTheOthersOfAShareGroup(t *testing.T) {
	const lock = 30 * time.Second
	for _, c := range []struct {
		name   string
		texts  [2]string // records of the two partitions
		given  [2]int    // bytes
		took   time.Duration
		barred []int32
	}{
		{"both can be read", [2]string{"P100;", "P200;"}, [2]int{100, 200}, 0, nil},
		{"one does not verify", [2]string{"X;", "P200;"}, [2]int{0, 200}, 0, []int32{0}},
		{"one's object cannot be read", [2]string{"B100;", "P200;"}, [2]int{0, 200}, 0, []int32{0}},
		{"one is slow", [2]string{"S100;", "P200;"}, [2]int{100, 200}, 5 * time.Second, nil},
		{"one is slow and the other cannot be read", [2]string{"S100;", "B200;"}, [2]int{100, 0}, 5 * time.Second, []int32{1}},
		{"one does not verify and there is nothing else", [2]string{"X;", ""}, [2]int{}, lock * 3 / 4, []int32{0}},
		{"neither can be read", [2]string{"X;", "B200;"}, [2]int{}, lock * 3 / 4, []int32{0, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, proxy.Limits{}, func(r *rig) {
				r.payloads.slow = func(int) error { time.Sleep(5 * time.Second); return nil }
				f := r.fetcher(on(true), 13)
				ask := func(corr, epoch int32) (int32, *kmsg.ShareFetchRequest) {
					f.c.ask(corr, shareFetch(2, epoch))
					got := kmsg.NewPtrShareFetchRequest()
					got.SetVersion(2)
					return f.b.received(got), got
				}
				at, _ := ask(70, 0)
				resp := kmsg.NewPtrShareFetchResponse()
				resp.SetVersion(2)
				resp.AcquisitionLockTimeoutMillis = int32(lock / time.Millisecond)
				topic := kmsg.NewShareFetchResponseTopic()
				topic.TopicID = coldID
				for i, text := range c.texts {
					p := kmsg.NewShareFetchResponseTopicPartition()
					p.Partition = int32(i)
					if text != "" {
						p.Records = framed(40, text)
						p.AcquiredRecords = []kmsg.ShareFetchResponseTopicPartitionAcquiredRecord{{FirstOffset: 40, LastOffset: 40, DeliveryCount: 1}}
					}
					topic.Partitions = append(topic.Partitions, p)
				}
				resp.Topics = append(resp.Topics, topic)
				began := time.Now()
				f.b.raw(encodeResponse(at, resp))
				told := kmsg.NewPtrShareFetchResponse()
				told.SetVersion(2)
				f.c.answer(70, told)
				if took := time.Since(began); took != c.took {
					t.Errorf("it was answered after %v, want %v", took, c.took)
				}
				for i, p := range told.Topics[0].Partitions {
					want := int16(0)
					if c.texts[i] != "" && c.given[i] == 0 {
						want = 56 // KAFKA_STORAGE_ERROR
					}
					if acquired := len(p.AcquiredRecords) > 0; len(p.Records) != c.given[i] || p.ErrorCode != want || acquired != (c.given[i] > 0) {
						t.Errorf("partition %d: %d bytes, error %d, acquired %v", i, len(p.Records), p.ErrorCode, p.AcquiredRecords)
					}
				}
				at, next := ask(71, 1)
				var barred []int32
				for _, topic := range next.ForgottenTopicsData {
					barred = append(barred, topic.Partitions...)
				}
				slices.Sort(barred)
				if !slices.Equal(barred, c.barred) {
					t.Errorf("partitions %v are not acquired from again, want %v", barred, c.barred)
				}
				empty := kmsg.NewPtrShareFetchResponse()
				empty.SetVersion(2)
				f.b.raw(encodeResponse(at, empty))
				f.c.answer(71, empty)
			})
		})
	}
}
