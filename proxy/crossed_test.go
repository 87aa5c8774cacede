package proxy_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
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

// A connection remembers what becomes of the topic that it last produced to: not
// for longer than the rules say so, and not of another.
func TestAConnectionsProducesFollowTheRules(t *testing.T) {
	for _, version := range []int16{9, 13} {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			c, b := r.pair(on(false))
			if version >= wire.ProduceTopicIDs {
				c.ask(1, produce(version, -1, [2]string{hot, "names"}, [2]string{cold, "are learnt"}))
				meta := kmsg.NewPtrMetadataRequest()
				b.respond(b.received(meta), metadataResponse(meta.Version, hot, cold))
				r.payloads.offloaded()[0].finish("P")
				got, _ := forwarded(t, b)
				b.respond(got, produceAnswered(version))
				c.expect(1)
			}
			corr := int32(100)
			produceTo := func(topic, records string, stored bool) {
				t.Helper()
				before := len(r.payloads.offloaded())
				corr++
				c.ask(corr, produce(version, -1, [2]string{topic, records}))
				if offloads := r.payloads.offloaded(); len(offloads) != before {
					offloads[before].finish("P" + records)
					records = "P" + records
				}
				got, sent := forwarded(t, b)
				if sent != records || (sent[0] == 'P') != stored {
					t.Fatalf("v%d: of %s, the broker got %q", version, topic, sent)
				}
				b.respond(got, produceAnswered(version))
				c.expect(corr)
			}
			produceTo(hot, "one", false)
			produceTo(hot, "two", false)
			produceTo(cold, "three", true)
			produceTo(hot, "four", false)
			rules, err := router.New([]router.Rule{{Patterns: []string{hot}, Class: "telemetry"}},
				map[string]tiers.Class{"control": {Name: "control"}, "telemetry": {Name: "telemetry", Tier: tiers.Diskless}}, "control")
			if err != nil {
				t.Fatal(err)
			}
			r.rules.Store(rules)
			produceTo(hot, "five", true)
			produceTo(cold, "six", false)
			produceTo(cold, "seven", false)
			produceTo(hot, "eight", true)
		})
	}
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

// What a client has sent before it moves stays before what it sends then, also
// while the broker is asked what the client may write: nobody may stop reading
// it meanwhile.
func TestAProducerThatMovesIsReadWhileItsRightsAreAskedFor(t *testing.T) {
	const version = 9
	inBubble(t, proxy.Limits{}, func(r *rig) {
		before, b1 := r.pairOf(on(false), 12)
		before.ask(1, produce(version, -1, [2]string{cold, "one"}))
		question := kmsg.NewPtrMetadataRequest()
		due := b1.received(question)
		before.ask(2, produce(version, -1, [2]string{cold, "two"}))
		b1.silent("one question is enough")

		w := newWriter(t, r, version, 12) // the same client, on the other listener
		w.produce([2]string{cold, "three"})
		w.told(0, mayWrite, cold)
		r.payloads.offloaded()[0].finish("P3")
		w.b.silent("its first two batches are not even offloaded")

		resp := metadataResponse(question.Version, cold)
		resp.Topics[0].AuthorizedOperations = mayWrite
		b1.respond(due, resp)
		offloads := r.payloads.offloaded()
		if len(offloads) != 3 {
			t.Fatalf("%d batches are offloaded", len(offloads))
		}
		offloads[2].finish("P2")
		b1.silent("its object is durable, that of the batch before it is not")
		offloads[1].finish("P1")
		for i, want := range []string{"P1", "P2"} {
			corr, got := forwarded(t, b1)
			if got != want {
				t.Fatalf("the broker got %q, want %q", got, want)
			}
			w.b.silent("the broker has not answered the earlier ones")
			b1.respond(corr, produceAnswered(version))
			before.expect(int32(i + 1))
		}
		if _, got := forwarded(t, w.b); got != "P3" {
			t.Fatalf("the broker got %q", got)
		}
		w.answered(0)
	})
}

// Whoever leaves while the broker is asked has nothing stored, and nothing of
// it is kept.
func TestAClientThatLeavesWhileItsRightsAreAskedFor(t *testing.T) {
	for _, answered := range []bool{true, false} {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			c, b := r.pairOf(on(true), 12)
			for i := range int32(3) {
				c.ask(i, produce(9, -1, [2]string{cold, "x"}))
			}
			question := kmsg.NewPtrMetadataRequest()
			due := b.received(question)
			_ = c.Close()
			if answered {
				resp := metadataResponse(question.Version, cold)
				resp.Topics[0].AuthorizedOperations = mayWrite
				_, _ = b.Write(encodeResponse(due, resp))
			}
			synctest.Wait()
			_ = b.Close()
			for _, o := range r.payloads.offloaded() {
				o.notify() // with nothing to show for it
			}
		})
	}
}

// Without an answer to wait for, a client that leaves has still sent what it
// sent.
func TestWhatASilentClientSentIsStoredWhenItMay(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		c, b := r.pairOf(on(true), 12)
		for i := range int32(3) {
			c.ask(i, produce(9, 0, [2]string{cold, "x"}))
		}
		question := kmsg.NewPtrMetadataRequest()
		due := b.received(question)
		_ = c.Close()
		synctest.Wait()
		resp := metadataResponse(question.Version, cold)
		resp.Topics[0].AuthorizedOperations = mayWrite
		b.respond(due, resp)
		offloads := r.payloads.offloaded()
		if len(offloads) != 3 {
			t.Fatalf("%d batches are offloaded", len(offloads))
		}
		for _, o := range offloads {
			o.finish("P1")
		}
		for range 3 {
			if _, got := forwarded(t, b); got != "P1" {
				t.Fatalf("the broker got %q", got)
			}
		}
		_ = b.Close()
	})
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
		broker.speaks(12)
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

// What a client has sent before it moves stays before what it sends then, also
// while its first connection is not read, whatever it waits for.
func TestAProducerThatMovesWaitsForWhatIsNotRead(t *testing.T) {
	const version = 9
	inBubble(t, proxy.Limits{}, func(r *rig) {
		before, b1 := r.pair(on(false))
		after, b2 := r.pair(on(true))
		after.ask(1, produce(version, -1, [2]string{cold, "zero"})) // both have produced
		r.payloads.offloaded()[0].finish("P0")
		corr, _ := forwarded(t, b2)
		b2.respond(corr, produceAnswered(version))
		after.expect(1)
		letGo := r.brokers.holdFacts()
		before.ask(1, produce(version, -1, [2]string{cold, "one"}))
		before.ask(2, produce(version, -1, [2]string{cold, "two"}))
		b1.silent("it is not known where its batches go")
		after.ask(2, produce(version, -1, [2]string{cold, "three"}))
		after.ask(3, produce(version, -1, [2]string{cold, "four"}))
		b2.silent("its earlier batches are not read")
		if n := len(r.payloads.offloaded()); n != 1 {
			t.Fatalf("%d batches are offloaded", n)
		}
		letGo()
		b1.silent("nothing is durable")
		offloads := r.payloads.offloaded()
		if len(offloads) != 5 {
			t.Fatalf("%d batches are offloaded", len(offloads))
		}
		for i, o := range offloads[1:] {
			if want := []string{"one", "two", "three", "four"}[i]; string(o.req.Batch) != want {
				t.Errorf("batch %d is %q, want %q", i, o.req.Batch, want)
			}
			o.finish("P" + string(rune('1'+i)))
		}
		for i, want := range []string{"P1", "P2"} {
			corr, got := forwarded(t, b1)
			if got != want {
				t.Fatalf("the broker got %q, want %q", got, want)
			}
			b2.silent("the broker has not answered the earlier ones")
			b1.respond(corr, produceAnswered(version))
			before.expect(int32(i + 1))
		}
		for _, want := range []string{"P3", "P4"} {
			if _, got := forwarded(t, b2); got != want {
				t.Fatalf("the broker got %q, want %q", got, want)
			}
		}
		if n := r.sum("sluice_proxy_crossed_reads_total"); n < 1 || n > 2 {
			t.Errorf("%v requests are said to have waited for reads", n)
		}
	})
}

// Two connections whose readers wait for each other, for different topics, both
// get on.
func TestProducersThatMoveBothWays(t *testing.T) {
	const version = 9
	inBubble(t, proxy.Limits{}, func(r *rig) {
		one, b1 := r.pair(on(false))
		two, b2 := r.pair(on(true))
		for i := range int32(20) {
			one.ask(i, produce(version, -1, [2]string{[]string{hot, "hot-2"}[i%2], "x"}))
			two.ask(i, produce(version, -1, [2]string{[]string{"hot-2", hot}[i%2], "x"}))
			for _, side := range []struct{ client, broker *peer }{{one, b1}, {two, b2}} {
				corr, _ := forwarded(t, side.broker)
				side.broker.respond(corr, produceAnswered(version))
				side.client.expect(i)
			}
		}
		if n := r.sum("sluice_proxy_crossed_late_total"); n != 0 {
			t.Errorf("%v waited for the limit", n)
		}
	})
}

// Who has not moved waits for nobody: while a client's connection to the diskless
// listener is not read, its other topics go on, also those that are new.
func TestAConnectionThatIsHeldUpHoldsUpNoOther(t *testing.T) {
	const version = 9
	inBubble(t, proxy.Limits{}, func(r *rig) {
		held, _ := r.pair(on(true))
		defer r.brokers.holdFacts()()
		held.ask(1, produce(version, -1, [2]string{cold, "one"}))
		held.ask(2, produce(version, -1, [2]string{cold, "two"}))
		began := time.Now()
		for range 2 { // a client that has just come, too
			other, b := r.pair(on(false))
			for i := range int32(3) {
				other.ask(i, produce(version, -1, [2]string{hot, "urgent"}))
				corr, got := forwarded(t, b)
				if got != "urgent" {
					t.Fatalf("the broker got %q", got)
				}
				b.respond(corr, produceAnswered(version))
				other.expect(i)
			}
			_ = other.Close()
		}
		if took := time.Since(began); took >= time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// A family that has forgotten which partitions came in where takes all for moved.
func TestManyPartitionsOfAClient(t *testing.T) {
	const version = 9
	inBubble(t, proxy.Limits{}, func(r *rig) {
		before, b1 := r.pair(on(false))
		after, b2 := r.pair(on(true))
		send := func(c, b *peer, i int32, topic string) {
			t.Helper()
			c.ask(i, produce(version, -1, [2]string{topic, "x"}))
			corr, _ := forwarded(t, b)
			b.respond(corr, produceAnswered(version))
			c.expect(i)
		}
		send(before, b1, 0, hot)
		for i := range int32(4100) {
			send(after, b2, i, fmt.Sprint("hot-", i))
		}
		letGo := r.brokers.holdFacts()
		before.ask(1, produce(version, -1, [2]string{cold, "waits"}))
		b1.silent("facts are slow")
		after.ask(5000, produce(version, -1, [2]string{hot, "moved"}))
		b2.silent("its earlier batches may not be read")
		letGo()
		if _, got := forwarded(t, b2); got != "moved" {
			t.Fatalf("the broker got %q", got)
		}
	})
}
