package proxy_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy"
)

const (
	mayWrite = 1<<3 | 1<<4 | 1<<8 // READ, WRITE, DESCRIBE
	mayRead  = 1<<3 | 1<<8
	unsaid   = -1 << 31
)

// writer is a client of a broker that tells what it may do, and that broker.
type writer struct {
	t       *testing.T
	rig     *rig
	c, b    *peer
	version int16
	sent    int32
}

func newWriter(t *testing.T, r *rig, version, metadata int16) *writer {
	c, b := r.pairOf(on(true), metadata)
	return &writer{t: t, rig: r, c: c, b: b, version: version}
}

// produce sends a batch for each topic.
func (w *writer) produce(batches ...[2]string) []byte {
	w.t.Helper()
	w.sent++
	sent := encode(w.sent, produce(w.version, -1, batches...))
	w.c.raw(sent)
	return sent[4:]
}

// told takes the question that is due and answers it. A topic's id is its name,
// where it has one.
func (w *writer) told(code int16, operations int32, topics ...string) {
	w.t.Helper()
	req := kmsg.NewPtrMetadataRequest()
	correlation := w.b.received(req)
	var asked []string
	for _, topic := range req.Topics {
		switch {
		case topic.Topic != nil:
			asked = append(asked, *topic.Topic)
		case topic.TopicID == coldID:
			asked = append(asked, cold)
		default:
			asked = append(asked, hot)
		}
	}
	if !slices.Equal(asked, topics) || !req.IncludeTopicAuthorizedOperations || req.AllowAutoTopicCreation || req.IncludeClusterAuthorizedOperations {
		w.t.Fatalf("asked about %q: %+v", asked, req)
	}
	resp := metadataResponse(req.Version, topics...)
	for i := range resp.Topics {
		resp.Topics[i].ErrorCode, resp.Topics[i].AuthorizedOperations = code, operations
	}
	w.b.respond(correlation, resp)
}

// inline checks that what comes upstream is what was sent, and that nothing is
// stored; the broker answers it for the diskless topic with code, as does sluice.
func (w *writer) inline(sent []byte, code int16) {
	w.t.Helper()
	before := len(w.rig.payloads.offloaded())
	got, err := w.b.next()
	if err != nil || !bytes.Equal(got, sent) {
		w.t.Fatalf("the broker got %q, want %q: %v", got, sent, err)
	}
	if n := len(w.rig.payloads.offloaded()) - before; n > 0 {
		w.t.Fatalf("%d batches were stored", n)
	}
	w.answered(code)
}

// stored checks that a batch is, and what goes upstream for it.
func (w *writer) stored(code int16) {
	w.t.Helper()
	all := w.rig.payloads.offloaded()
	if len(all) == 0 {
		w.t.Fatal("nothing is stored")
	}
	all[len(all)-1].finish("P9")
	if _, got := forwarded(w.t, w.b); got != "P9" {
		w.t.Fatalf("the broker got %q", got)
	}
	w.answered(code)
}

func (w *writer) answered(code int16) {
	w.t.Helper()
	resp, answer := kmsg.NewPtrProduceResponse(), kmsg.NewPtrProduceResponse()
	resp.SetVersion(w.version)
	answer.SetVersion(w.version)
	topic := kmsg.NewProduceResponseTopic()
	topic.Topic, topic.TopicID = cold, coldID
	p := kmsg.NewProduceResponseTopicPartition()
	p.ErrorCode = code
	topic.Partitions = append(topic.Partitions, p)
	resp.Topics = append(resp.Topics, topic)
	w.b.respond(w.sent, resp)
	w.c.answer(w.sent, answer)
	if got := answer.Topics[0].Partitions[0].ErrorCode; got != code {
		w.t.Errorf("the client is told %d, the broker says %d", got, code)
	}
}

const (
	topicAuth = 29
	txnAuth   = 53
	idemAuth  = 31
	noSuch    = 3
)

// Nothing of who may not write is stored: the broker is asked first, once for
// each topic, and has the client's own bytes to refuse.
func TestWhoMayNotWriteStoresNothing(t *testing.T) {
	batch := [2]string{cold, "a batch"}
	for _, version := range []int16{3, 9, 13} {
		for _, metadata := range []int16{8, 12, 13} {
			if version == 13 && metadata < 12 {
				continue // no such broker
			}
			run := func(name string, fn func(t *testing.T, w *writer)) {
				t.Run(fmt.Sprintf("%s, Produce v%d, Metadata v%d", name, version, metadata), func(t *testing.T) {
					inBubble(t, proxy.Limits{}, func(r *rig) { fn(t, newWriter(t, r, version, metadata)) })
				})
			}
			run("granted", func(t *testing.T, w *writer) {
				w.produce(batch)
				w.told(0, mayWrite, cold)
				w.stored(0)
				for range 3 {
					w.produce(batch)
					w.stored(0) // and was not asked about again
				}
			})
			run("denied", func(t *testing.T, w *writer) {
				sent := w.produce(batch)
				w.told(0, mayRead, cold)
				w.inline(sent, topicAuth)
				for range 3 {
					w.inline(w.produce(batch), topicAuth)
				}
				want := "telemetry-a of telemetry, 7 bytes, denied: inline"
				if got := w.rig.payloads.kept; len(got) != 4 || got[0] != want {
					t.Errorf("told of %q, want 4 times %q", got, want)
				}
				time.Sleep(11 * time.Second)
				w.produce(batch)
				w.told(0, mayWrite, cold)
				w.stored(0)
			})
			run("not even to see it", func(t *testing.T, w *writer) {
				sent := w.produce(batch)
				w.told(topicAuth, unsaid, cold)
				w.inline(sent, topicAuth)
				w.inline(w.produce(batch), topicAuth)
			})
			run("it became allowed", func(t *testing.T, w *writer) {
				sent := w.produce(batch)
				w.told(0, mayRead, cold)
				w.inline(sent, 0) // correct all the same
				w.produce(batch)
				w.stored(0)
			})
			run("the right is lost", func(t *testing.T, w *writer) {
				w.produce(batch)
				w.told(0, mayWrite, cold)
				w.stored(topicAuth)
				w.inline(w.produce(batch), topicAuth)
				time.Sleep(11 * time.Second)
				sent := w.produce(batch)
				w.told(0, mayRead, cold)
				w.inline(sent, topicAuth)
			})
			run("the broker does not tell", func(t *testing.T, w *writer) {
				w.produce(batch)
				w.told(0, unsaid, cold)
				w.stored(0)
			})
			run("the broker does not know the topic", func(t *testing.T, w *writer) {
				sent := w.produce(batch)
				if version == 13 {
					req := kmsg.NewPtrMetadataRequest()
					w.b.respond(w.b.received(req), metadataResponse(req.Version))
					w.inline(sent, 100) // UNKNOWN_TOPIC_ID
					return
				}
				w.told(noSuch, unsaid, cold)
				w.inline(sent, noSuch)
				w.produce(batch)
				w.told(0, mayWrite, cold)
				w.stored(0)
			})
			for _, code := range []int16{txnAuth, idemAuth} {
				run(fmt.Sprintf("error %d", code), func(t *testing.T, w *writer) {
					w.produce(batch)
					w.told(0, mayWrite, cold)
					w.stored(code)
					w.inline(w.produce(batch), code)
					w.inline(w.produce(batch), 0)
					time.Sleep(11 * time.Second)
					w.produce(batch)
					w.stored(0)
				})
			}
			run("one of two", func(t *testing.T, w *writer) {
				if version == 13 {
					return // the rig has two ids
				}
				w.produce(batch, [2]string{hot, "hot"}, batch, [2]string{"telemetry-b", "may be written"})
				req := kmsg.NewPtrMetadataRequest()
				correlation := w.b.received(req)
				if len(req.Topics) != 2 {
					t.Fatalf("asked about %+v", req.Topics)
				}
				resp := metadataResponse(req.Version, cold, "telemetry-b")
				resp.Topics[0].AuthorizedOperations, resp.Topics[1].AuthorizedOperations = mayRead, mayWrite
				w.b.respond(correlation, resp)
				if all := w.rig.payloads.offloaded(); len(all) != 1 || all[0].req.Topic != "telemetry-b" {
					t.Fatalf("%d batches were stored", len(all))
				}
				w.storedOne("a batch", "hot", "a batch", "P9")
				w.answered(topicAuth)
			})
		}
	}
	t.Run("an old broker, whose denials are remembered", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			w := newWriter(t, r, 9, 7)
			w.produce(batch)
			w.stored(topicAuth)
			w.inline(w.produce(batch), topicAuth)
			w.inline(w.produce(batch), 0)
			w.produce(batch)
			w.stored(0)
		})
	})
	t.Run("a low-latency topic is not asked about", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			w := newWriter(t, r, 9, 12)
			w.inline(w.produce([2]string{hot, "hot"}), topicAuth)
		})
	})
}

// storedOne decides the one batch that is stored and checks what goes upstream.
func (w *writer) storedOne(want ...string) {
	w.t.Helper()
	w.rig.payloads.offloaded()[0].finish("P9")
	req := kmsg.NewPtrProduceRequest()
	w.b.received(req)
	var got []string
	for _, topic := range req.Topics {
		got = append(got, string(topic.Partitions[0].Records))
	}
	if !slices.Equal(got, want) {
		w.t.Fatalf("the broker got %q, want %q", got, want)
	}
}

// What a connection remembers is bounded, and a client without answers is asked
// about as well.
func TestPermitsAreBounded(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		w := newWriter(t, r, 9, 12)
		const each, turns = 1000, 15
		for turn := range turns {
			var batches [][2]string
			var topics []string
			for i := range each {
				topics = append(topics, fmt.Sprintf("telemetry-%d-%d", turn, i))
				batches = append(batches, [2]string{topics[i], "x"})
			}
			sent := strings.Clone(string(w.produceLater(batches)))
			w.told(0, mayRead, topics...)
			got, err := w.b.next()
			if err != nil || string(got) != sent {
				t.Fatalf("turn %d: the request was changed: %v", turn, err)
			}
			w.answered(topicAuth)
		}
		w.c.ask(9000, produce(9, 0, [2]string{"telemetry-silent", "x"}))
		w.told(0, mayRead, "telemetry-silent")
		if _, got := forwarded(t, w.b); got != "x" {
			t.Fatalf("the broker got %q", got)
		}
		if n := len(r.payloads.offloaded()); n > 0 {
			t.Errorf("%d batches were stored", n)
		}
	})
}

// produceLater is produce for more than a socket holds.
func (w *writer) produceLater(batches [][2]string) []byte {
	w.sent++
	sent := encode(w.sent, produce(w.version, -1, batches...))
	go w.c.raw(sent)
	return sent[4:]
}
