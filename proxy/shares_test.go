package proxy

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// Replicas of two versions must derive the same, or a member's sessions would
// evict each other's.
func TestShareMembersOnDisklessConnections(t *testing.T) {
	got := shareMember("iQp3HyTLTQuW_kL0Mdj1xA")
	if want := "XLMrYFBRDDZpQcAHxuAV2w"; got != want {
		t.Errorf("derived %s, used to be %s", got, want)
	}
	if b, err := base64.RawURLEncoding.DecodeString(got); err != nil || len(b) != 16 {
		t.Errorf("%s is no Uuid as Kafka reads it: %v", got, err)
	}
	if shareMember(got) == got || shareMember("") == shareMember("a") {
		t.Error("two members have the same id")
	}
}

func partitionOf(n int) sharePartition {
	return sharePartition{topic: [16]byte{byte(n / 4)}, partition: int32(n % 4)}
}

// Whatever the client adds, forgets and acknowledges, and whatever becomes
// unreadable and readable again meanwhile: the broker's session has what the
// client's has, but for what cannot be read, and every acknowledgement arrives.
func TestSharePartitionsAreKeptOutWhileUnreadable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sessions shareSessions
		group, member := "g", "m"
		client, broker := map[sharePartition]bool{}, map[sharePartition]bool{}
		out := map[sharePartition]bool{}
		epoch := int32(0)
		some := rapid.SliceOfNDistinct(rapid.IntRange(0, 11), 0, 5, rapid.ID[int])
		for range rapid.IntRange(1, 30).Draw(t, "requests") {
			for _, n := range some.Draw(t, "turns") {
				out[partitionOf(n)] = !out[partitionOf(n)]
			}
			if rapid.IntRange(0, 9).Draw(t, "new session") == 0 {
				epoch = 0
			}
			req := kmsg.NewPtrShareFetchRequest()
			req.GroupID, req.MemberID, req.ShareSessionEpoch = &group, &member, epoch
			acks := map[sharePartition]int64{}
			if epoch == 0 {
				client = map[sharePartition]bool{}
			}
			named := map[sharePartition]bool{}
			for _, n := range some.Draw(t, "adds") {
				named[partitionOf(n)] = true
			}
			if epoch > 0 {
				for _, n := range some.Draw(t, "acknowledges") {
					acks[partitionOf(n)] = int64(n)
					named[partitionOf(n)] = true
				}
			}
			for p := range named {
				want(req, p)
				client[p] = true
				if at, ok := acks[p]; ok {
					parts := req.Topics[slices.IndexFunc(req.Topics, func(t kmsg.ShareFetchRequestTopic) bool { return t.TopicID == p.topic })].Partitions
					parts[len(parts)-1].AcknowledgementBatches = []kmsg.ShareFetchRequestTopicPartitionAcknowledgementBatch{{FirstOffset: at, LastOffset: at}}
				}
			}
			if epoch > 0 {
				for _, n := range some.Draw(t, "forgets") {
					forget(req, partitionOf(n))
					delete(client, partitionOf(n))
				}
			}
			session := sessions.session(req.GroupID, req.MemberID, epoch)
			if session == nil {
				t.Fatal("the session is not known")
			}
			idle := session.arrange(req, func(p sharePartition) bool { return out[p] })
			if rapid.IntRange(0, 9).Draw(t, "refused") == 0 && epoch > 0 {
				session.refuse() // and the broker has done nothing of it
				if sessions.session(req.GroupID, req.MemberID, epoch) != nil {
					t.Fatal("a session goes on of which nobody knows what the broker has")
				}
				epoch = 0
				continue
			}

			// What a broker does with it.
			if epoch == 0 {
				broker = map[sharePartition]bool{}
			}
			arrived := map[sharePartition]int64{}
			for _, t := range req.Topics {
				for _, p := range t.Partitions {
					broker[sharePartition{t.TopicID, p.Partition}] = true
					for _, a := range p.AcknowledgementBatches {
						arrived[sharePartition{t.TopicID, p.Partition}] = a.FirstOffset
					}
				}
			}
			for _, t := range req.ForgottenTopicsData {
				for _, p := range t.Partitions {
					delete(broker, sharePartition{t.TopicID, p})
				}
			}
			for p := range client {
				if broker[p] == out[p] {
					t.Fatalf("%v: unreadable %v, in the broker's session %v", p, out[p], broker[p])
				}
			}
			for p := range broker {
				if !client[p] {
					t.Fatalf("%v is in the broker's session and not in the client's", p)
				}
			}
			if !maps.Equal(acks, arrived) {
				t.Fatalf("acknowledged %v, and %v arrived", acks, arrived)
			}
			if idle != (len(broker) == 0 && len(client) > 0) {
				t.Fatalf("idle %v with %d partitions of %d", idle, len(broker), len(client))
			}
			epoch++
		}
	})
}

func TestShareSessionsThatAreNotKnown(t *testing.T) {
	var s shareSessions
	name := func(n int) *string { v := fmt.Sprint(n); return &v }
	if s.session(name(1), name(1), 3) != nil {
		t.Error("a session in its middle is known from the start")
	}
	if s.session(name(1), name(1), -1) == nil {
		t.Error("a session cannot be closed")
	}
	first := s.session(name(1), name(1), 0)
	if first == nil || s.session(name(1), name(1), 1) != first {
		t.Error("a session is not known after its beginning")
	}
	if s.session(nil, nil, 0) == nil {
		t.Error("missing names are the broker's business")
	}
	for n := range 10 * maxShareSessions {
		s.session(name(n), name(0), 0)
	}
	if len(s.open) > maxShareSessions {
		t.Errorf("%d sessions of one connection", len(s.open))
	}
	s.end(name(10*maxShareSessions-1), name(0))
	if s.session(name(10*maxShareSessions-1), name(0), 1) != nil {
		t.Error("a session that was closed goes on")
	}
}

// What is remembered of a session is bounded, whatever a client names.
func TestShareSessionsAreOfLimitedSize(t *testing.T) {
	var s shareSessions
	name := "x"
	ask := func(from, n int) *kmsg.ShareFetchRequest {
		req := kmsg.NewPtrShareFetchRequest()
		topic := kmsg.NewShareFetchRequestTopic()
		for i := range n {
			p := kmsg.NewShareFetchRequestTopicPartition()
			p.Partition = int32(from + i)
			topic.Partitions = append(topic.Partitions, p)
		}
		req.Topics, req.ShareSessionEpoch = append(req.Topics, topic), 1
		return req
	}
	session := s.session(&name, &name, 0)
	if session.crowded(ask(0, maxSharePartitions)) {
		t.Fatal("as many as there may be are too many")
	}
	session.arrange(ask(0, maxSharePartitions), func(sharePartition) bool { return false })
	if session.crowded(ask(0, maxSharePartitions)) {
		t.Error("those that it has are counted again")
	}
	if !session.crowded(ask(maxSharePartitions, 1)) {
		t.Error("one more is not too many")
	}
	if session = s.session(&name, &name, 0); !session.crowded(ask(0, maxSharePartitions+1)) {
		t.Error("a session may begin too large")
	}
}

func TestWithheldPartitions(t *testing.T) {
	p := sharePartition{partition: 1}
	for name, c := range map[string]struct {
		look func(since time.Duration) (readable, storeIsWell bool)
		from time.Duration // when it is no longer withheld, about
	}{
		"until it can be read":                 {func(since time.Duration) (bool, bool) { return since > time.Minute, false }, time.Minute},
		"as long as the store is away":         {func(since time.Duration) (bool, bool) { return since > 5*time.Hour, false }, 5 * time.Hour},
		"not for ever when nobody can read it": {func(time.Duration) (bool, bool) { return false, true }, poisoned},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				now := prometheus.NewGauge(prometheus.GaugeOpts{Name: "now"})
				w := newWithheld(now)
				began := time.Now()
				look := func(context.Context) (bool, bool) { return c.look(time.Since(began)) }
				w.add(t.Context(), p, look)
				w.add(t.Context(), p, look)
				if testutil.ToFloat64(now) != 1 {
					t.Errorf("%v are withheld", testutil.ToFloat64(now))
				}
				time.Sleep(c.from - time.Second)
				if synctest.Wait(); !w.has(p) || w.has(sharePartition{partition: 2}) {
					t.Error("too early")
				}
				time.Sleep(2*maxWithheldPause + time.Second)
				if synctest.Wait(); w.has(p) || testutil.ToFloat64(now) != 0 {
					t.Error("still withheld")
				}
			})
		})
	}
}

// A client is told to have acquired what it gets, and nothing else.
func TestAcquiredIsWhatIsGiven(t *testing.T) {
	batch := func(base int64, records int32) []byte {
		b := wire.Batch(make([]byte, wire.BatchHeaderSize+int(records)))
		b.SetLength(int32(len(b) - wire.LogOverhead))
		b.SetMagic(2)
		b.SetBaseOffset(base)
		b.SetLastOffsetDelta(records - 1)
		return b
	}
	log := slices.Concat(batch(10, 10), batch(20, 5), batch(40, 10))
	type span struct{ from, to int64 }
	acquired := []span{{12, 17}, {19, 22}, {23, 24}, {40, 49}}
	for _, c := range []struct {
		name    string
		records []byte
		given   int
		want    []span
	}{
		{"all", log, 3, acquired},
		{"two batches", log, 2, []span{{12, 17}, {19, 22}, {23, 24}}},
		{"one batch", log, 1, []span{{12, 17}, {19, 19}}},
		{"none", log, 0, nil},
		{"not what the broker cut off", log[:len(log)-1], 3, []span{{12, 17}, {19, 22}, {23, 24}}},
		{"garbage", []byte("P100;"), 1, nil},
		{"nothing", nil, 0, nil},
	} {
		part := &kmsg.ShareFetchResponseTopicPartition{Records: c.records}
		for _, a := range acquired {
			part.AcquiredRecords = append(part.AcquiredRecords, kmsg.ShareFetchResponseTopicPartitionAcquiredRecord{FirstOffset: a.from, LastOffset: a.to, DeliveryCount: 2})
		}
		s := &shared{part: part, records: c.records, given: c.given, loaded: [][]byte{[]byte("some "), []byte("records")}}
		if size := s.settle(); size != 12 {
			t.Errorf("%s: %d bytes", c.name, size)
		}
		var got []span
		for _, a := range part.AcquiredRecords {
			got = append(got, span{a.FirstOffset, a.LastOffset})
			if a.DeliveryCount != 2 {
				t.Errorf("%s: the delivery count is lost", c.name)
			}
		}
		failed := part.ErrorCode == errKafkaStorageError && part.Records == nil
		if !slices.Equal(got, c.want) || failed != (len(c.want) == 0) || !failed && string(part.Records) != "some records" {
			t.Errorf("%s: acquired %v, want %v; error %d, records %q", c.name, got, c.want, part.ErrorCode, part.Records)
		}
	}
}
