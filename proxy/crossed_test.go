package proxy_test

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// forwarded is the records of the next Produce that a broker got.
func forwarded(t *testing.T, b *peer) (corr int32, records string) {
	t.Helper()
	req := kmsg.NewPtrProduceRequest()
	corr = b.received(req)
	return corr, string(req.Topics[0].Partitions[0].Records)
}

func produceAnswered(version int16) kmsg.Response {
	resp := kmsg.NewPtrProduceResponse()
	resp.SetVersion(version)
	return resp
}

// A producer that moves to a broker's other listener, as clients do when a
// topic's class has changed, does not overtake itself.
func TestAProducerThatMovesKeepsItsOrder(t *testing.T) {
	const version = 9
	inBubble(t, proxy.Limits{}, func(r *rig) {
		before, b1 := r.pair(on(true))
		before.ask(1, produce(version, -1, [2]string{cold, "one"}))
		if len(r.payloads.offloaded()) != 1 {
			t.Fatal("it is not on its way")
		}
		after, b2 := r.pair(on(false))
		after.ask(1, produce(version, -1, [2]string{cold, "two"}))
		after.ask(2, heartbeat())
		other, b3 := r.pair(on(false))
		other.ask(1, produce(version, -1, [2]string{hot, "another topic's"}))
		if _, got := forwarded(t, b3); got != "another topic's" {
			t.Fatalf("the broker got %q", got)
		}
		offloads := r.payloads.offloaded()
		if len(offloads) != 2 {
			t.Fatalf("%d uploads began; that of a batch that waits must not wait", len(offloads))
		}
		offloads[1].finish("P2")
		b2.silent("what came before it, on the other listener, is not durable")
		offloads[0].finish("P1")
		corr, got := forwarded(t, b1)
		if got != "P1" {
			t.Fatalf("the broker got %q", got)
		}
		b2.silent("what came before it is forwarded, but not answered")
		b1.respond(corr, produceAnswered(version))
		if _, got := forwarded(t, b2); got != "P2" {
			t.Fatalf("the broker got %q", got)
		}
		if n := r.sum("sluice_proxy_crossed_requests_total"); n != 1 {
			t.Errorf("%v requests are said to have waited", n)
		}
		// And back, behind what is under way now.
		before.expect(1)
		before.ask(2, produce(version, -1, [2]string{cold, "three"}))
		r.payloads.offloaded()[2].finish("P3")
		b1.silent("it has moved back, and its last batch is not answered")
		_ = after.Close() // nor will be
		if _, got := forwarded(t, b1); got != "P3" {
			t.Fatalf("the broker got %q", got)
		}
	})
}

// The broker judges a batch that is not to be written, without being given it;
// the client is told an error that it retries.
func TestARejectedBatchIsNotWritten(t *testing.T) {
	for _, c := range []struct {
		name    string
		version int16
		broker  int16
		want    int16
	}{
		{"a broker refuses an empty batch", 9, 87, 56},
		{"an old broker says it otherwise", 9, 2, 56},
		{"a client that does not know the error", 3, 87, 6},
		{"who may not write is told so", 9, 29, 29},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, proxy.Limits{}, func(r *rig) {
				client, b := r.pair(on(true))
				client.ask(1, produce(c.version, -1, [2]string{cold, "one"}, [2]string{hot, "two"}))
				o := r.payloads.offloaded()[0]
				o.refused = true
				o.notify()
				req := kmsg.NewPtrProduceRequest()
				corr := b.received(req)
				if len(req.Topics[0].Partitions[0].Records) != 0 || string(req.Topics[1].Partitions[0].Records) != "two" {
					t.Fatalf("the broker got %+v", req.Topics)
				}
				resp := kmsg.NewPtrProduceResponse()
				resp.SetVersion(c.version)
				for i, topic := range []string{cold, hot} {
					rt := kmsg.NewProduceResponseTopic()
					rt.Topic = topic
					p := kmsg.NewProduceResponseTopicPartition()
					p.Partition = int32(i)
					if topic == cold {
						p.ErrorCode = c.broker
					}
					rt.Partitions = append(rt.Partitions, p)
					resp.Topics = append(resp.Topics, rt)
				}
				b.respond(corr, resp)
				got := kmsg.NewPtrProduceResponse()
				got.SetVersion(c.version)
				client.answer(1, got)
				if code := got.Topics[0].Partitions[0].ErrorCode; code != c.want {
					t.Errorf("the client is told %d, want %d", code, c.want)
				}
				if code := got.Topics[1].Partitions[0].ErrorCode; code != 0 {
					t.Errorf("the other partition is told %d", code)
				}
			})
		})
	}
}

// numbered is a batch of a producer with an id.
func numbered(id int64) string {
	b := make(wire.Batch, wire.BatchHeaderSize)
	b.SetLength(wire.BatchHeaderSize - wire.LogOverhead)
	b.SetMagic(2)
	b.SetProducerID(id)
	return string(b)
}

// Nobody can stand in a stranger's way, whatever producer id he claims.
func TestAStrangerHoldsNobodyUp(t *testing.T) {
	const version = 9
	inBubble(t, proxy.Limits{}, func(r *rig) {
		c, err := r.net.dial(context.Background(), "10.6.6.6:6000", on(true))
		if err != nil {
			t.Fatal(err)
		}
		stranger := &peer{t: t, Conn: c}
		stranger.ask(1, produce(version, -1, [2]string{hot, numbered(7)}))
		broker := r.broker()
		forwarded(t, broker) // and never answered
		victim, b := r.pair(on(false))
		victim.ask(1, produce(version, -1, [2]string{hot, numbered(7)}))
		forwarded(t, b)
		if n := r.sum("sluice_proxy_crossed_requests_total"); n != 0 {
			t.Errorf("%v requests waited", n)
		}
	})
}

// Who owes an answer for long does not hold a producer for ever.
func TestACrossingRequestDoesNotWaitForEver(t *testing.T) {
	const version = 9
	inBubble(t, proxy.Limits{}, func(r *rig) {
		before, b1 := r.pair(on(true))
		before.ask(1, produce(version, -1, [2]string{hot, numbered(7)}))
		forwarded(t, b1)
		began := time.Now()
		after, b2 := r.pair(on(false))
		after.ask(1, produce(version, -1, [2]string{hot, numbered(7)}))
		b2.silent("the earlier one is not answered")
		forwarded(t, b2)
		if took := time.Since(began); took < 30*time.Second || took > 31*time.Second {
			t.Errorf("forwarded after %v", took)
		}
		if n := r.sum("sluice_proxy_crossed_late_total"); n != 1 {
			t.Errorf("%v are said to be late", n)
		}
		b1.respond(1, produceAnswered(version)) // too late to matter
		before.expect(1)
	})
}

// A broker that reads and never answers: clients that give it up leave nothing
// behind.
func TestABrokerThatNeverAnswersKeepsNobody(t *testing.T) {
	const version = 9
	inBubble(t, proxy.Limits{BrokerWriteTimeout: time.Minute}, func(r *rig) {
		for _, topic := range []string{cold, hot} {
			c := r.connect(on(true))
			c.ask(1, produce(version, -1, [2]string{topic, "one"}))
			b := r.broker()
			go func() { _, _ = io.Copy(io.Discard, b) }()
			synctest.Wait()
			_ = c.Close()
		}
		time.Sleep(3 * time.Minute)
		if n := r.sum("sluice_proxy_connections"); n != 0 {
			t.Errorf("%v connections are left", n)
		}
		if n := r.sum("sluice_proxy_frame_bytes"); n != 0 {
			t.Errorf("%v bytes of frames are left", n)
		}
	})
}
