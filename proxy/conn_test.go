package proxy_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy"
)

func TestSlowClientsAreClosed(t *testing.T) {
	limits := proxy.Limits{FirstRequestTimeout: 10 * time.Second, IdleTimeout: 100 * time.Second, FrameTimeout: 5 * time.Second}
	frame := encode(1, heartbeat())
	for _, tc := range []struct {
		name  string
		sends []byte
		after time.Duration
	}{
		{"a client that connects and says nothing is closed after FirstRequestTimeout", nil, 10 * time.Second},
		{"half a size prefix is nothing", frame[:2], 10 * time.Second},
		{"a frame that has begun must end within FrameTimeout", frame[:len(frame)-1], 5 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, limits, func(r *rig) {
				began := time.Now()
				c := r.connect(bootstrap)
				c.raw(tc.sends)
				c.closed()
				if took := time.Since(began); took != tc.after {
					t.Errorf("closed after %v, want %v", took, tc.after)
				}
				synctest.Wait()
				if n := r.sum("sluice_proxy_timeouts_total"); n != 1 {
					t.Errorf("%v timeouts counted, want 1", n)
				}
			})
		})
	}
	t.Run("between requests a client may idle for IdleTimeout", func(t *testing.T) {
		inBubble(t, limits, func(r *rig) {
			c, _ := r.pair(bootstrap)
			began := time.Now()
			c.closed()
			if took := time.Since(began); took != 100*time.Second {
				t.Errorf("closed after %v, want 100 s", took)
			}
		})
	})
}

func TestWhatIsNotKafkaIsRefused(t *testing.T) {
	size := func(n uint32, rest string) []byte { return append(binary.BigEndian.AppendUint32(nil, n), rest...) }
	request := func(key, version int16, rest string) []byte {
		b := binary.BigEndian.AppendUint16(nil, uint16(key))
		b = binary.BigEndian.AppendUint16(b, uint16(version))
		b = append(b, 0, 0, 0, 7)
		return append(size(uint32(len(b)+len(rest)), ""), append(b, rest...)...)
	}
	for _, tc := range []struct {
		name string
		sent []byte
	}{
		{"a frame of 2 GB", size(1<<31-1, "")},
		{"a frame of negative length", size(1<<31, "")},
		{"a frame of no length", size(0, "")},
		{"a frame too short for a header", size(4, "abcd")},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		{"TLS on a plaintext port", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")},
		{"a key that nobody knows", request(9999, 0, "\xff\xff")},
		{"a key below zero", request(-1, 0, "\xff\xff")},
		{"a key between brokers", request(4, 0, "\xff\xff")},
		{"a version that was not offered", request(0, 99, "\xff\xff")},
		{"a Fetch that a broker would convert", request(1, 3, "\xff\xff")},
		{"a client id that ends after the frame", request(0, 3, "\x7f\xff")},
		{"a Produce that is cut short", request(0, 3, "\xff\xff\xff\xff\x00")},
		{"a Fetch that is cut short", request(1, 4, "\xff\xff\xff\xff\xff\xff")},
		{"a Metadata with tags that lie", request(3, 9, "\xff\xff\xff\xff\xff\xff\xff")},
		{"a Produce with 2^31-1 topics", request(0, 3, "\xff\xff\xff\xff\x00\x01\x00\x00\x00\x00\x7f\xff\xff\xff")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, proxy.Limits{}, func(r *rig) {
				other, broker := r.pair(bootstrap)
				c := r.connect(bootstrap)
				c.raw(tc.sent)
				c.closed()
				synctest.Wait()
				if n := r.sum("sluice_proxy_protocol_errors_total"); n != 1 {
					t.Errorf("%v protocol errors counted, want 1", n)
				}
				if !strings.Contains(r.log.String(), "does not speak") {
					t.Errorf("the log says nothing of it: %s", r.log)
				}
				other.ask(1, heartbeat())
				broker.reply(heartbeat())
				other.expect(1)
			})
		})
	}
}

// What only brokers may say, and what is not known, ends a connection before
// anything of it reaches the broker, also from a client that did not ask what is
// offered.
func TestHiddenKeysAreRefused(t *testing.T) {
	refused := []int16{-1, 95, 127, 128, 9999}
	for _, a := range proxy.APIs() {
		if a.Treatment == proxy.Hide {
			refused = append(refused, a.Key)
		}
	}
	for _, key := range refused {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			c, b := r.pair(bootstrap)
			go c.raw([]byte{0, 0, 0, 10, byte(uint16(key) >> 8), byte(key), 0, 0, 0, 0, 0, 9, 0xff, 0xff})
			b.closed()
			c.closed()
		})
	}
}

func TestWhatPrecedesAnErrorIsAnswered(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		c, b := r.pair(bootstrap)
		c.ask(1, heartbeat())
		c.raw([]byte{0, 0, 0, 0})
		b.reply(heartbeat())
		c.expect(1)
		c.closed()
		b.closed()
	})
}

func TestConnectionLimits(t *testing.T) {
	inBubble(t, proxy.Limits{Connections: 3, ConnectionsPerIP: 2}, func(r *rig) {
		from := func(ip string) *peer {
			c, err := r.net.dial(context.Background(), ip, bootstrap)
			if err != nil {
				t.Fatal(err)
			}
			return &peer{t: t, Conn: c}
		}
		first := from("10.0.0.1:1")
		second := from("10.0.0.1:2")
		from("10.0.0.1:3").closed()
		third := from("10.0.0.2:1")
		from("10.0.0.3:1").closed()
		if n := r.sum("sluice_proxy_connections_refused_total"); n != 2 {
			t.Errorf("%v connections refused, want 2", n)
		}
		second.Close()
		synctest.Wait()
		fourth := from("10.0.0.1:4")
		for _, c := range []*peer{first, third, fourth} {
			c.ask(1, heartbeat())
			r.broker().reply(heartbeat())
			c.expect(1)
		}
	})
}

func TestOneAcceptErrorDoesNotEndAListener(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		l := r.net.listeners[bootstrap]
		l.mu.Lock()
		for range 20 {
			l.errors = append(l.errors, errors.New("too many open files"))
		}
		l.mu.Unlock()
		r.connect(bootstrap).Close() // takes Accept out of its wait
		r.pair(bootstrap)
		if n := r.sum("sluice_proxy_accept_errors_total"); n != 20 {
			t.Errorf("%v accept errors counted, want 20", n)
		}
	})
}

func TestAnswersKeepTheOrderOfRequests(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		c, b := r.pair(on(true))
		c.ask(1, produce(9, -1, [2]string{cold, "one"}))
		c.ask(2, produce(9, -1, [2]string{cold, "two"}))
		c.ask(3, heartbeat())
		list := kmsg.NewPtrListGroupsRequest() // answered by the proxy itself
		list.SetVersion(4)
		c.ask(4, list)
		offloads := r.payloads.offloaded()
		if len(offloads) != 2 {
			t.Fatalf("%d batches offloaded, want 2", len(offloads))
		}
		offloads[1].finish("P2")
		b.silent("a later batch is durable, an earlier is not")
		offloads[0].finish("P1")
		for i, want := range []string{"P1", "P2"} {
			req := kmsg.NewPtrProduceRequest()
			corr := b.received(req)
			if got := string(req.Topics[0].Partitions[0].Records); corr != int32(i+1) || got != want {
				t.Fatalf("the broker got %q as request %d, want %q", got, corr, want)
			}
		}
		if corr := b.received(heartbeat()); corr != 3 {
			t.Fatalf("the broker got request %d, want 3", corr)
		}
		c.silent("the broker has answered nothing yet")
		for corr := int32(1); corr <= 2; corr++ {
			resp := kmsg.NewPtrProduceResponse()
			resp.SetVersion(9)
			b.respond(corr, resp)
		}
		c.expect(1)
		c.expect(2)
		c.silent("a local answer is due, but one before it is not")
		resp := heartbeat().ResponseKind()
		b.respond(3, resp)
		c.expect(3)
		c.expect(4)
	})
}

// TestNoPlaceholderBehindWhatABrokerMayHoldForHours: when it comes to it, the
// object may be no more.
func TestNoPlaceholderBehindWhatABrokerMayHoldForHours(t *testing.T) {
	slow := func(timeout time.Duration) kmsg.Request {
		req := produce(9, -1, [2]string{hot, "slow"})
		req.TimeoutMillis = int32(timeout.Milliseconds())
		return req
	}
	waits := func(most time.Duration) kmsg.Request {
		req := fetchRequest(12, hot, 1, 1<<20)
		req.MaxWaitMillis = int32(most.Milliseconds())
		return req
	}
	for name, tc := range map[string]struct {
		before []kmsg.Request // that are not answered
		want   string
	}{
		"a minute and a half": {[]kmsg.Request{slow(30 * time.Second), slow(time.Minute)}, "P1"},
		"four hours":          {[]kmsg.Request{slow(4 * time.Hour)}, "one"},
		"three and more":      {[]kmsg.Request{slow(time.Hour), slow(time.Hour), slow(time.Hour), slow(time.Minute)}, "one"},
		"a Fetch":             {[]kmsg.Request{waits(500 * time.Millisecond)}, "P1"},
		"a Fetch, four hours": {[]kmsg.Request{waits(4 * time.Hour)}, "one"},
	} {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			c, b := r.pair(on(true))
			for i, req := range tc.before {
				c.ask(int32(i), req)
				b.received(req)
			}
			for n, want := range []string{tc.want, "P1"} {
				corr := int32(100 + n)
				c.ask(corr, produce(9, -1, [2]string{cold, "one"}))
				r.payloads.offloaded()[n].finish("P1")
				req := kmsg.NewPtrProduceRequest()
				b.received(req)
				if got := string(req.Topics[0].Partitions[0].Records); got != want {
					t.Errorf("behind %s, answered: %v: the broker got %q, want %q", name, n == 1, got, want)
				}
				if n == 1 {
					break
				}
				for i, before := range tc.before {
					resp := before.ResponseKind()
					resp.SetVersion(before.GetVersion())
					b.respond(int32(i), resp)
					c.expect(int32(i))
				}
				b.respond(corr, req.ResponseKind())
				c.expect(corr)
			}
			if n := r.sum("sluice_proxy_crowded_batches_total"); (n > 0) != (tc.want == "one") {
				t.Errorf("%v batches are counted", n)
			}
		})
	}
}

func TestRequestsInFlightAreBackPressure(t *testing.T) {
	inBubble(t, proxy.Limits{RequestsInFlight: 256}, func(r *rig) {
		c, b := r.pair(bootstrap)
		const n = 700
		go func() {
			for i := range int32(n) {
				c.ask(i, heartbeat())
			}
		}()
		synctest.Wait()
		for round := 0; round < n; {
			for range min(256, n-round) {
				b.received(heartbeat())
			}
			b.silent("256 requests are in flight")
			for range min(256, n-round) {
				b.respond(int32(round), heartbeat().ResponseKind())
				c.expect(int32(round))
				round++
			}
		}
	})
}

func TestClientThatLeavesIsNoticedWithAllRequestsInFlight(t *testing.T) {
	inBubble(t, proxy.Limits{RequestsInFlight: 2}, func(r *rig) {
		c, b := r.pair(bootstrap)
		c.ask(1, heartbeat())
		c.ask(2, heartbeat())
		b.received(heartbeat())
		b.received(heartbeat())
		c.Close()
		b.closed()
	})
}

func TestShutdownAnswersWhatWasRead(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		c, b := r.pair(on(true))
		idle := r.connect(bootstrap)
		half := r.connect(bootstrap)
		half.raw(encode(1, heartbeat())[:9])
		c.ask(1, heartbeat())
		c.ask(2, produce(9, 1, [2]string{cold, "one"}))
		b.reply(heartbeat())
		offload := r.payloads.offloaded()[0]
		stopped := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			stopped <- r.proxy.Shutdown(ctx)
		}()
		idle.closed()
		half.closed()
		if _, err := r.net.dial(context.Background(), anyone, bootstrap); err == nil {
			t.Error("a connection was accepted during the shutdown")
		}
		c.expect(1)
		offload.finish("P1")
		req := kmsg.NewPtrProduceRequest()
		b.respond(b.received(req), req.ResponseKind())
		c.expect(2)
		c.closed()
		b.closed()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

// A client that has just connected is answered, and ended when it has brought a
// request; one that brings none does not hold the shutdown up.
func TestShutdownLetsClientsBegin(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		c := r.connect(bootstrap)
		silent := r.connect(bootstrap)
		synctest.Wait()
		began := time.Now()
		stopped := make(chan error, 1)
		go func() { stopped <- r.proxy.Shutdown(context.Background()) }()
		synctest.Wait()
		c.ask(1, kmsg.NewPtrApiVersionsRequest())
		b := r.broker()
		b.reply(kmsg.NewPtrApiVersionsRequest())
		c.expect(1)
		c.ask(2, heartbeat())
		b.reply(heartbeat())
		c.expect(2)
		c.closed()
		if took := time.Since(began); took != 0 {
			t.Errorf("a client that has brought a request was ended after %v", took)
		}
		silent.closed()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestShutdownEndsWhateverHangs(t *testing.T) {
	many := strings.Repeat("x", 3*socketBuffer)
	for _, tc := range []struct {
		name string
		do   func(r *rig)
	}{
		{"the broker does not answer", func(r *rig) {
			c, b := r.pair(bootstrap)
			c.ask(1, listOffsets())
			b.received(listOffsets())
		}},
		{"all requests in flight are taken", func(r *rig) {
			c, b := r.pair(bootstrap)
			for i := range int32(4) {
				c.ask(i, listOffsets())
			}
			b.received(listOffsets())
		}},
		{"the broker does not read, and the reader writes", func(r *rig) {
			c, _ := r.pair(bootstrap)
			go c.Write(encode(1, produce(9, 1, [2]string{hot, many})))
		}},
		{"the broker does not read, and the forwarder writes", func(r *rig) {
			c, _ := r.pair(bootstrap)
			go c.Write(encode(1, produce(9, 1, [2]string{cold, "one"}, [2]string{hot, many})))
			r.payloads.offloaded()[0].finish("P1")
		}},
		{"an object is never durable", func(r *rig) {
			c, _ := r.pair(bootstrap)
			c.ask(1, produce(9, 1, [2]string{cold, "one"}))
			c.ask(2, listOffsets())
		}},
		{"an object for a producer without answers is never durable", func(r *rig) {
			c, _ := r.pair(bootstrap)
			c.ask(1, produce(9, 0, [2]string{cold, "one"}))
		}},
		{"the client does not read", func(r *rig) {
			c, b := r.pair(bootstrap)
			fetch := kmsg.NewPtrFetchRequest()
			fetch.SetVersion(12)
			c.ask(1, fetch)
			b.received(kmsg.NewPtrFetchRequest())
			go b.Write(encodeResponse(1, fetchResponse(12, hot, many)))
			c.ask(2, listOffsets())
		}},
		{"the client does not read local answers", func(r *rig) {
			c, _ := r.pair(on(true))
			list := kmsg.NewPtrListGroupsRequest()
			go func() {
				for i := range int32(20000) {
					if _, err := c.Write(encode(i, list)); err != nil {
						return
					}
				}
			}()
		}},
		{"the client is gone, but the broker takes no more of what it sent", func(r *rig) {
			c, _ := r.pair(bootstrap)
			go func() {
				_, _ = c.Write(encode(1, produce(9, 0, [2]string{hot, many})))
				c.Close()
			}()
		}},
		{"a login is asked of a broker that does not answer", func(r *rig) {
			c, _ := r.pair(bootstrap)
			c.ask(1, produce(9, 1, [2]string{cold, "one"}))
		}},
		{"a name is asked of a broker that does not answer", func(r *rig) {
			c, _ := r.pair(bootstrap)
			c.ask(1, produce(13, 1, [2]string{cold, "one"}))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, proxy.Limits{RequestsInFlight: 4}, func(r *rig) {
				tc.do(r)
				synctest.Wait()
				began := time.Now()
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				if err := r.proxy.Shutdown(ctx); err == nil {
					t.Error("Shutdown does not say that connections were cut")
				}
				if took := time.Since(began); took != 5*time.Second {
					t.Errorf("Shutdown took %v, its context had 5 s", took)
				}
			})
		})
	}
}

// What a broker may hold for minutes does not hold a shutdown up: clients ask
// again elsewhere. Idle connections do not even wait for the grace.
func TestShutdownDoesNotWaitForPolls(t *testing.T) {
	fetch := func() kmsg.Request {
		req := kmsg.NewPtrFetchRequest()
		req.SetVersion(12)
		return req
	}
	join := func() kmsg.Request {
		req := kmsg.NewPtrJoinGroupRequest()
		req.SetVersion(9)
		return req
	}
	const grace, slow = time.Second, 7500 * time.Millisecond // between two looks
	for _, tc := range []struct {
		name string
		do   func(c, b *peer)
		took time.Duration
	}{
		{"a connection without a request ends at once", func(c, b *peer) {
			c.ask(1, heartbeat())
			b.reply(heartbeat())
			c.expect(1)
		}, 0},
		{"a Fetch that the broker holds is cut", func(c, b *peer) { c.ask(1, fetch()) }, grace},
		{"so is a JoinGroup with a Heartbeat behind it", func(c, b *peer) {
			c.ask(1, join())
			c.ask(2, heartbeat())
		}, grace},
		{"the rest of a request is not waited for", func(c, b *peer) {
			c.ask(1, heartbeat())
			b.reply(heartbeat())
			c.expect(1)
			c.raw(encode(2, listOffsets())[:9])
		}, 0},
		{"a Fetch before another request is waited for", func(c, b *peer) {
			c.ask(1, fetch())
			c.ask(2, listOffsets())
			synctest.Wait()
			time.AfterFunc(slow, func() {
				b.received(kmsg.NewPtrFetchRequest())
				_, _ = b.Write(encodeResponse(1, fetchResponse(12, hot, "one")))
				b.reply(listOffsets())
			})
			go func() {
				c.expect(1)
				c.expect(2)
			}()
		}, slow},
		{"what remains when the others are answered is cut", func(c, b *peer) {
			c.ask(1, listOffsets())
			c.ask(2, fetch())
			time.AfterFunc(slow, func() { b.reply(listOffsets()) })
			go c.expect(1)
		}, slow},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, proxy.Limits{PollGrace: grace}, func(r *rig) {
				c, b := r.pair(bootstrap)
				tc.do(c, b)
				synctest.Wait()
				began := time.Now()
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				if err := r.proxy.Shutdown(ctx); err != nil {
					t.Error(err)
				}
				// In fake time, so this judges decisions, not the machine.
				if took := time.Since(began); took < tc.took || took > tc.took+grace {
					t.Errorf("Shutdown took %v, want %v", took, tc.took)
				}
				synctest.Wait()
			})
		})
	}
}

func fetchResponse(version int16, topic string, records ...string) *kmsg.FetchResponse {
	resp := kmsg.NewPtrFetchResponse()
	resp.SetVersion(version)
	t := kmsg.NewFetchResponseTopic()
	t.Topic = topic
	if t.TopicID = hotID; topic == cold {
		t.TopicID = coldID
	}
	for i, rec := range records {
		p := kmsg.NewFetchResponseTopicPartition()
		p.Partition, p.RecordBatches = int32(i), []byte(rec)
		t.Partitions = append(t.Partitions, p)
	}
	resp.Topics = append(resp.Topics, t)
	return resp
}

func TestAnswersThatNobodyReads(t *testing.T) {
	fetch := kmsg.NewPtrFetchRequest()
	fetch.SetVersion(12)
	big := func(corr int32, n int) []byte {
		return encodeResponse(corr, fetchResponse(12, hot, strings.Repeat("x", n)))
	}
	t.Run("a client that takes no byte for WriteTimeout is given up", func(t *testing.T) {
		inBubble(t, proxy.Limits{WriteTimeout: 30 * time.Second}, func(r *rig) {
			c, b := r.pair(bootstrap)
			c.ask(1, fetch)
			b.received(kmsg.NewPtrFetchRequest())
			began := time.Now()
			go b.Write(big(1, 5*socketBuffer))
			b.closed()
			if took := time.Since(began); took != 30*time.Second {
				t.Errorf("given up after %v, want 30 s", took)
			}
		})
	})
	t.Run("one that reads slowly is served", func(t *testing.T) {
		inBubble(t, proxy.Limits{WriteTimeout: 30 * time.Second}, func(r *rig) {
			c, b := r.pair(bootstrap)
			c.ask(1, fetch)
			b.received(kmsg.NewPtrFetchRequest())
			go b.Write(big(1, 4<<20))
			got := 0
			for buf := make([]byte, socketBuffer); got < 4<<20; {
				n, err := c.Read(buf)
				if got += n; err != nil {
					t.Fatalf("after %d bytes: %v", got, err)
				}
				time.Sleep(time.Second)
			}
		})
	})
	t.Run("it does not keep memory that others wait for", func(t *testing.T) {
		inBubble(t, proxy.Limits{MaxFrameBytes: 1 << 20, ResponseBytes: 1 << 20, StallTimeout: 5 * time.Second}, func(r *rig) {
			c, b := r.pair(bootstrap)
			c.ask(1, fetch)
			b.received(kmsg.NewPtrFetchRequest())
			go b.Write(big(1, 1<<20-1000))
			synctest.Wait()
			other, otherBroker := r.connect(bootstrap), (*peer)(nil)
			other.ask(2, fetch)
			otherBroker = r.broker()
			otherBroker.received(kmsg.NewPtrFetchRequest())
			go otherBroker.Write(big(2, 900_000))
			other.expect(2)
			b.closed()
		})
	})
	t.Run("half a frame does not keep memory that others wait for", func(t *testing.T) {
		inBubble(t, proxy.Limits{MaxFrameBytes: 1 << 20, RequestBytes: 1 << 20, FrameTimeout: time.Hour, StallTimeout: 5 * time.Second}, func(r *rig) {
			slow, _ := r.pair(bootstrap)
			c, b := r.pair(bootstrap)
			slow.raw([]byte{0, 15, 255, 255, 0, 0, 0, 9})
			synctest.Wait()
			go c.ask(1, produce(9, 1, [2]string{hot, strings.Repeat("x", 900_000)}))
			req := kmsg.NewPtrProduceRequest()
			b.respond(b.received(req), req.ResponseKind())
			c.expect(1)
			slow.closed()
		})
	})
}

func TestBrokerThatDoesNotReadIsGivenUp(t *testing.T) {
	inBubble(t, proxy.Limits{BrokerWriteTimeout: time.Minute}, func(r *rig) {
		c, _ := r.pair(bootstrap)
		began := time.Now()
		go c.Write(encode(1, produce(9, 1, [2]string{hot, strings.Repeat("x", 3*socketBuffer)})))
		c.closed()
		if took := time.Since(began); took != time.Minute {
			t.Errorf("given up after %v, want a minute", took)
		}
		synctest.Wait()
		if !strings.Contains(r.log.String(), "trouble with the broker") {
			t.Errorf("the log blames somebody else: %s", r.log)
		}
	})
}

func TestProducerWithoutAnswersIsDrained(t *testing.T) {
	leave := map[string]func(*peer){
		"it closes": func(c *peer) { c.Close() },
		"it half-closes": func(c *peer) {
			_ = c.Conn.(*virtualConn).CloseWrite()
		},
	}
	for name, leave := range leave {
		t.Run(name, func(t *testing.T) {
			inBubble(t, proxy.Limits{}, func(r *rig) {
				c, b := r.pair(on(true))
				const n = 100
				for i := range int32(n) {
					c.ask(i, produce(9, 0, [2]string{cold, fmt.Sprint(i)}))
				}
				c.ask(500, produce(9, 1, [2]string{cold, "answered"})) // a broker would drop it too
				leave(c)
				offloads := r.payloads.offloaded()
				if len(offloads) != n+1 {
					t.Fatalf("%d batches offloaded, want %d", len(offloads), n+1)
				}
				if offloads[0].ctx.Err() != nil {
					t.Fatal("the wait for a batch that must be delivered has been ended")
				}
				if offloads[n].ctx.Err() == nil {
					t.Error("the wait for a batch that nobody asks for any more goes on")
				}
				for i := range offloads[:n] {
					offloads[n-1-i].finish(fmt.Sprintf("P%d", n-1-i))
				}
				for i := range n {
					req := kmsg.NewPtrProduceRequest()
					b.received(req)
					if got, want := string(req.Topics[0].Partitions[0].Records), fmt.Sprintf("P%d", i); got != want {
						t.Fatalf("the broker got %s, want %s", got, want)
					}
				}
				b.closed()
			})
		})
	}
	t.Run("whose leaving is noticed by writing to it", func(t *testing.T) {
		inBubble(t, proxy.Limits{RequestsInFlight: 3}, func(r *rig) {
			c, b := r.pair(on(true))
			c.ask(0, produce(9, 0, [2]string{cold, "first"}))
			r.payloads.offloaded()[0].finish("P1")
			b.received(kmsg.NewPtrProduceRequest())
			c.ask(1, heartbeat())
			b.received(heartbeat())
			for i := range int32(2) {
				c.ask(2+i, produce(9, 0, [2]string{cold, "x"}))
			}
			c.ask(4, heartbeat()) // for which there is no room: nobody reads any further
			offloads := r.payloads.offloaded()[1:]
			c.Close()
			b.respond(1, heartbeat().ResponseKind())
			synctest.Wait()
			for _, o := range offloads {
				o.finish("P1")
			}
			for range offloads {
				b.received(kmsg.NewPtrProduceRequest())
			}
			b.closed()
		})
	})
	t.Run("not for ever", func(t *testing.T) {
		inBubble(t, proxy.Limits{DrainTimeout: 20 * time.Second}, func(r *rig) {
			c, b := r.pair(on(true))
			c.ask(1, produce(9, 0, [2]string{cold, "x"}))
			r.payloads.offloaded()
			c.Close()
			began := time.Now()
			b.closed()
			if took := time.Since(began); took != 20*time.Second {
				t.Errorf("ended after %v, want 20 s", took)
			}
		})
	})
	t.Run("a broker that still answers others is read to the end", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			c, b := r.pair(bootstrap)
			c.ask(1, heartbeat())
			c.ask(2, produce(9, 0, [2]string{hot, "x"}))
			c.Close()
			b.received(heartbeat())
			b.respond(1, heartbeat().ResponseKind())
			b.received(kmsg.NewPtrProduceRequest())
			if _, err := b.next(); err != io.EOF {
				t.Fatalf("the proxy reset its connection: %v", err)
			}
			b.Close()
		})
	})
}

func TestBrokerThatMisbehaves(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(b *peer, corr int32)
	}{
		{"it closes", func(b *peer, _ int32) { b.Close() }},
		{"it closes in the middle of an answer", func(b *peer, corr int32) {
			b.raw(encodeResponse(corr, heartbeat().ResponseKind())[:7])
			b.Close()
		}},
		{"it answers another request", func(b *peer, corr int32) { b.respond(corr+1, heartbeat().ResponseKind()) }},
		{"it answers twice", func(b *peer, corr int32) {
			b.respond(corr, heartbeat().ResponseKind())
			b.respond(corr, heartbeat().ResponseKind())
		}},
		{"its answer is larger than any may be", func(b *peer, _ int32) { b.raw([]byte{0x7f, 0, 0, 0}) }},
		{"its answer has no correlation id", func(b *peer, _ int32) { b.raw([]byte{0, 0, 0, 2, 0, 0}) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, proxy.Limits{}, func(r *rig) {
				c, b := r.pair(bootstrap)
				c.ask(1, heartbeat())
				tc.do(b, b.received(heartbeat()))
				_, _ = io.Copy(io.Discard, c)
				synctest.Wait()
				if strings.Contains(r.log.String(), "does not speak") {
					t.Errorf("the client is blamed: %s", r.log)
				}
			})
		})
	}
	t.Run("an answer that cannot be decoded", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			c, b := r.pair(bootstrap)
			meta := kmsg.NewPtrMetadataRequest()
			meta.SetVersion(12)
			c.ask(1, meta)
			b.received(kmsg.NewPtrMetadataRequest())
			b.raw([]byte{0, 0, 0, 6, 0, 0, 0, 1, 0, 0xff})
			c.closed()
		})
	})
	t.Run("it cannot be reached", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			r.brokers.fail = errors.New("connection refused")
			c := r.connect(bootstrap)
			c.ask(1, heartbeat())
			c.closed()
		})
	})
}

func TestRequestsAreForwardedByteForByte(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		c, b := r.pair(bootstrap)
		for i, size := range []int{0, 1, 500, 512, 4096, 70_000} {
			sent := encode(int32(i), produce(9, 1, [2]string{hot, strings.Repeat("x", size)}))
			go c.raw(sent)
			got, err := b.next()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, sent[4:]) {
				t.Fatalf("a Produce of %d bytes was changed", size)
			}
			resp := kmsg.NewPtrProduceResponse()
			resp.SetVersion(9)
			b.respond(int32(i), resp)
			c.expect(int32(i))
		}
	})
}

// A broker hangs up on who has not logged in, and is asked before anything is
// stored, whatever its age and whatever the client has asked it before.
func TestNothingIsStoredForAClientThatTheBrokerDoesNotKnow(t *testing.T) {
	for name, metadata := range map[string]int16{"that tells what clients may do": 12, "that does not": 7} {
		for _, version := range []int16{9, 13} {
			t.Run(fmt.Sprintf("a broker %s, Produce v%d", name, version), func(t *testing.T) {
				inBubble(t, proxy.Limits{}, func(r *rig) {
					c := r.connect(on(true))
					c.ask(1, produce(version, 0, [2]string{cold, "x"}))
					b := r.broker()
					b.speaks(metadata)
					question := kmsg.NewPtrMetadataRequest()
					b.received(question)
					if question.Topics == nil || question.AllowAutoTopicCreation {
						t.Errorf("asked for %+v", question)
					}
					if len(r.payloads.offloaded()) > 0 {
						t.Fatal("a batch was offloaded before the broker has answered anything")
					}
					b.Close() // as brokers do that wait for a login
					c.closed()
					if len(r.payloads.offloaded()) > 0 {
						t.Fatal("a batch was offloaded for a client that the broker has hung up on")
					}
				})
			})
		}
	}
}
