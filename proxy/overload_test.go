package proxy_test

import (
	"encoding/binary"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy"
)

// labelled is a metric of one label value.
func (r *rig) labelled(name, label, value string) float64 {
	r.t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	total := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetName() == label && l.GetValue() == value {
					total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
	}
	return total
}

// within fails when more is held than the limits allow.
func (r *rig) within(l proxy.Limits) {
	r.t.Helper()
	held := func(direction string) float64 {
		return r.labelled("sluice_proxy_frame_bytes", "direction", direction)
	}
	if n := held("request"); n > float64(l.RequestBytes) {
		r.t.Errorf("requests take %v bytes of %d", n, l.RequestBytes)
	}
	if n := held("response") + held("hydrated"); n > float64(l.ResponseBytes) {
		r.t.Errorf("answers take %v bytes of %d", n, l.ResponseBytes)
	}
}

// control makes a round trip of a small Produce on a low-latency connection,
// without a moment's wait.
func control(r *rig, client, broker *peer, correlation int32) {
	r.t.Helper()
	began := time.Now()
	go client.ask(correlation, produce(9, 1, [2]string{hot, strings.Repeat("x", 20_000)}))
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(9)
	broker.respond(broker.received(req), req.ResponseKind())
	client.expect(correlation)
	if took := time.Since(began); took > 0 {
		r.t.Errorf("control traffic waited for %v", took)
	}
}

func TestOverload(t *testing.T) {
	limits := proxy.Limits{
		MaxFrameBytes: 1 << 20, RequestBytes: 4 << 20, ResponseBytes: 4 << 20,
		FrameTimeout: time.Hour, WriteTimeout: time.Hour, StallTimeout: 10 * time.Second,
	}
	const crowd = 40

	t.Run("clients that do not read fill the memory for answers and hold up only those who move bulk", func(t *testing.T) {
		inBubble(t, limits, func(r *rig) {
			urgent, urgentBroker := r.pair(on(false))
			answer := make([]byte, 700_000)
			binary.BigEndian.PutUint32(answer, uint32(len(answer)-4))
			binary.BigEndian.PutUint32(answer[4:], 1)
			var broken []net.Conn
			for range crowd {
				c, b := r.pair(on(false))
				c.ask(1, heartbeat())
				b.received(heartbeat())
				go b.Write(answer)
				broken = append(broken, c)
			}
			synctest.Wait()
			r.within(limits)
			if n := r.labelled("sluice_proxy_frame_waiting", "direction", "response"); n == 0 || n >= crowd {
				t.Errorf("%v connections wait for memory, want some of %d", n, crowd)
			}
			if r.labelled("sluice_proxy_frame_waits_total", "listener", "low-latency") == 0 {
				t.Error("no metric says who was held back")
			}
			for i := range int32(10) {
				control(r, urgent, urgentBroker, 1000+i)
				r.within(limits)
			}
			// One that reads comes to its turn, whatever the others do.
			honest := &peer{t: t, Conn: broken[crowd-1]}
			honest.expect(1)
			r.within(limits)
			if r.sum("sluice_proxy_stalled_connections_total") == 0 {
				t.Error("nobody was cut")
			}
			for _, c := range broken {
				c.Close()
			}
		})
	})

	t.Run("frames that are announced and not sent", func(t *testing.T) {
		inBubble(t, limits, func(r *rig) {
			urgent, urgentBroker := r.pair(on(false))
			for range crowd {
				c, _ := r.pair(on(true))
				c.raw(binary.BigEndian.AppendUint32(nil, 700_000))
			}
			synctest.Wait()
			r.within(limits)
			if r.labelled("sluice_proxy_frame_waits_total", "listener", "diskless") == 0 {
				t.Error("no metric says who was held back")
			}
			for i := range int32(10) {
				control(r, urgent, urgentBroker, 1000+i)
			}
		})
	})

	t.Run("strangers hold up nobody but each other", func(t *testing.T) {
		inBubble(t, limits, func(r *rig) {
			urgent, urgentBroker := r.pair(on(false))
			for range crowd {
				r.connect(on(false)).raw(binary.BigEndian.AppendUint32(nil, 200_000))
			}
			synctest.Wait()
			r.within(limits)
			if n := r.labelled("sluice_proxy_frame_bytes", "direction", "request"); n > float64(limits.RequestBytes)/16 {
				t.Errorf("clients that the broker does not talk to hold %v bytes", n)
			}
			control(r, urgent, urgentBroker, 1000)
			// Neither do they hold up large requests.
			began := time.Now()
			go urgent.ask(7, produce(9, 1, [2]string{hot, strings.Repeat("x", 900_000)}))
			req := kmsg.NewPtrProduceRequest()
			req.SetVersion(9)
			urgentBroker.respond(urgentBroker.received(req), req.ResponseKind())
			urgent.expect(7)
			if took := time.Since(began); took > 0 {
				t.Errorf("a large request waited for %v", took)
			}
		})
	})

	t.Run("hydration waits for its memory and each gets at least its first batch", func(t *testing.T) {
		inBubble(t, limits, func(r *rig) {
			var fs []*fetcher
			for range crowd {
				f := r.fetcher(on(true), 12)
				req := fetchRequest(12, cold, 1, 1<<30)
				f.corr++
				f.c.ask(f.corr, req)
				f.b.received(kmsg.NewPtrFetchRequest())
				fs = append(fs, f)
			}
			for _, f := range fs {
				f.b.respond(f.corr, fetchAnswer(12, cold, dataPart(0, "P400000;P400000;")))
			}
			synctest.Wait()
			r.within(limits)
			if r.labelled("sluice_proxy_frame_waits_total", "direction", "hydrated") == 0 {
				t.Error("no metric says who was held back")
			}
			var readers sync.WaitGroup
			for _, f := range fs {
				readers.Go(func() {
					b, err := f.c.next()
					resp := kmsg.NewPtrFetchResponse()
					resp.SetVersion(12)
					if err == nil {
						err = resp.ReadFrom(b[5:]) // correlation id, no tags
					}
					if err != nil {
						t.Error(err)
						return
					}
					if p := resp.Topics[0].Partitions[0]; p.ErrorCode != 0 || len(p.RecordBatches) < 400_000 {
						t.Errorf("error %d and %d bytes", p.ErrorCode, len(p.RecordBatches))
					}
					r.within(limits)
				})
			}
			readers.Wait()
		})
	})
}

// The first request on a fresh connection may be a large one, where nobody has
// to log in; only a client that the broker talks to may announce it.
func TestLargeFirstRequest(t *testing.T) {
	limits := proxy.Limits{MaxFrameBytes: 8 << 20, RequestBytes: 32 << 20}
	large := produce(9, 1, [2]string{hot, strings.Repeat("x", 3<<20)})
	t.Run("the broker talks to the client", func(t *testing.T) {
		inBubble(t, limits, func(r *rig) {
			c := r.connect(on(false))
			go c.ask(1, large)
			b := r.broker()
			asked := kmsg.NewPtrMetadataRequest()
			b.respond(b.received(asked), asked.ResponseKind())
			b.speaks(12)
			req := kmsg.NewPtrProduceRequest()
			b.respond(b.received(req), req.ResponseKind())
			c.expect(1)
		})
	})
	t.Run("the broker hangs up", func(t *testing.T) {
		inBubble(t, limits, func(r *rig) {
			c := r.connect(on(false))
			c.raw(binary.BigEndian.AppendUint32(nil, 3<<20))
			b := r.broker()
			b.received(kmsg.NewPtrMetadataRequest())
			if held := r.sum("sluice_proxy_frame_bytes"); held != 0 {
				t.Errorf("%v bytes are held for somebody unknown", held)
			}
			b.Close()
			c.closed()
		})
	})
}

// No consumer makes a broker answer with more than sluice takes.
func TestFetchIsBoundedByTheFrame(t *testing.T) {
	inBubble(t, proxy.Limits{MaxFrameBytes: 4 << 20}, func(r *rig) {
		c, b := r.pair(on(false))
		for _, asked := range []int32{1 << 30, 1 << 20} {
			req := fetchRequest(12, hot, 0, 1<<30)
			req.MaxBytes = asked
			c.ask(1, req)
			got := kmsg.NewPtrFetchRequest()
			b.respond(b.received(got), got.ResponseKind())
			c.expect(1)
			if want := min(asked, 3<<20); got.MaxBytes != want {
				t.Errorf("a Fetch of %d bytes asks for %d, want %d", asked, got.MaxBytes, want)
			}
		}
	})
}
