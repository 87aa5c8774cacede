package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// limitClient sets a byte rate of a client id, as kafka-configs does.
func limitClient(t testing.TB, bootstrap, clientID, key string, rate float64) {
	t.Helper()
	req := kmsg.NewPtrAlterClientQuotasRequest()
	e := kmsg.NewAlterClientQuotasRequestEntry()
	e.Entity = append(e.Entity, kmsg.AlterClientQuotasRequestEntryEntity{Type: "client-id", Name: &clientID})
	e.Ops = append(e.Ops, kmsg.AlterClientQuotasRequestEntryOp{Key: key, Value: rate})
	req.Entries = append(req.Entries, e)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := req.RequestWith(ctx, client(t, bootstrap))
	if err != nil || resp.Entries[0].ErrorCode != 0 {
		t.Fatalf("limiting %s: %+v, %v", clientID, resp, err)
	}
}

// A client's byte rate means original bytes on every target: who produces or
// consumes twice what ten seconds allow is told to wait for about ten more,
// whether the broker sees the bytes or placeholders. Another client id is not.
func TestByteRatesMeanOriginalBytes(t *testing.T) {
	const rate, size = 20_000, 400_000
	onAllTargets(t, func(t *testing.T, tg target) {
		if tg.mixed {
			return // its batches are as one of the others'
		}
		topic := tg.topic("quotas")
		tg.create(t, topic, 1)
		limited, free, last := "limited-"+topic, "free-"+topic, "last-"+topic
		known := func() float64 { return 3 }
		if tg.sluice != nil {
			known = func() float64 { return tg.sluice.metric(t, "sluice_lowlatency_byte_rate_quotas") }
		}
		knew := known()
		limitClient(t, tg.bootstrap, limited, "producer_byte_rate", rate)
		limitClient(t, tg.bootstrap, limited, "consumer_byte_rate", rate)
		limitClient(t, tg.bootstrap, last, "producer_byte_rate", 1)
		stored := func() float64 { return 0 }
		if tg.sluice != nil {
			stored = func() float64 { return tg.sluice.metric(t, "sluice_diskless_stored_bytes_total") }
			eventually(t, "sluice has read the quotas", func() (bool, string) {
				return known() >= knew+3, fmt.Sprintf("%v, %v before", known(), knew)
			})
		}
		// Each asks on a connection of its own: the other is not read any more.
		ask := func(clientID string, req func(p place) kmsg.Request) kmsg.Response {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cl := client(t, tg.bootstrap, kgo.ClientID(clientID))
			defer cl.Close()
			listed, err := kadm.NewClient(cl).ListTopics(ctx, topic)
			if err != nil {
				t.Fatal(err)
			}
			td := listed[topic]
			resp, err := cl.Broker(int(td.Partitions[0].Leader)).Request(ctx, req(place{topic: topic, id: td.ID}))
			if err != nil {
				t.Fatal(err)
			}
			return resp
		}
		// Brokers apply what the controller has accepted in their own time, in its
		// order: who applies the last one has applied all.
		probes := 0
		eventually(t, "the leader applies the quotas", func() (bool, string) {
			probes++
			w := ask(last, func(p place) kmsg.Request { return producing(p, "", oneBatch(make([]byte, 100))) }).(*kmsg.ProduceResponse)
			return w.ThrottleMillis > 0, fmt.Sprintf("%+v", w)
		})
		before := stored()
		throttled := func(clientID string) (produce, fetch time.Duration) {
			w := ask(clientID, func(p place) kmsg.Request { return producing(p, "", oneBatch(make([]byte, size))) }).(*kmsg.ProduceResponse)
			if code := w.Topics[0].Partitions[0].ErrorCode; code != 0 {
				t.Fatalf("producing: error %d", code)
			}
			r := ask(clientID, func(p place) kmsg.Request {
				req := fetching(p)
				req.Topics[0].Partitions[0].FetchOffset = w.Topics[0].Partitions[0].BaseOffset
				return req
			}).(*kmsg.FetchResponse)
			if code := r.ErrorCode; code != 0 {
				t.Fatalf("fetching: error %d", code)
			}
			return time.Duration(w.ThrottleMillis) * time.Millisecond, time.Duration(r.ThrottleMillis) * time.Millisecond
		}
		if produce, fetch := throttled(free); produce > 0 || fetch > 0 {
			t.Errorf("a client without a limit is throttled for %v when it produces and %v when it fetches", produce, fetch)
		}
		produce, fetch := throttled(limited)
		t.Logf("throttled for %v when producing and %v when fetching %d bytes at %d bytes a second; the quotas were seen by probe %d", produce, fetch, size, rate, probes)
		const least, most = 5 * time.Second, 20 * time.Second
		if produce < least || produce > most || fetch < least || fetch > most {
			t.Errorf("throttled for %v and %v, want about 10 s", produce, fetch)
		}
		if n := stored() - before; tg.diskless != (n >= 2*size) {
			t.Errorf("%v bytes went to objects", n)
		}
	})
}
