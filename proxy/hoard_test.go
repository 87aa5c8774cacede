package proxy_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/proxy"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// What a client sends is counted while it is on its way. What a connection keeps of
// it after that nobody counts, so it must be little, whatever was sent.
func TestAConnectionKeepsLittleOfWhatItWasSent(t *testing.T) {
	const rounds = 8
	longNames := func(round int) (topics [][2]string) {
		for i := range 12 {
			topics = append(topics, [2]string{fmt.Sprintf("control-%d-%d-%s", round, i, strings.Repeat("x", 100<<10)), "P100;"})
		}
		return topics
	}
	for name, request := range map[string]func(round int) kmsg.Request{
		"Produce to topics of long names": func(round int) kmsg.Request { return produce(9, 1, longNames(round)...) },
		"Fetch of topics of long names": func(round int) kmsg.Request {
			req := fetchRequest(12, cold, 0, 1)
			for _, topic := range longNames(round) {
				req.Topics = append(req.Topics, fetchRequest(12, topic[0], 1, 1<<20).Topics...)
			}
			return req
		},
		"changing topics of long names": func(round int) kmsg.Request {
			req := kmsg.NewPtrIncrementalAlterConfigsRequest()
			req.SetVersion(1)
			for _, topic := range longNames(round) {
				res := kmsg.NewIncrementalAlterConfigsRequestResource()
				res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic[0]
				req.Resources = append(req.Resources, res)
			}
			return req
		},
		"Produce to many partitions": func(int) kmsg.Request {
			req := produce(9, 1)
			topic := kmsg.NewProduceRequestTopic()
			topic.Topic = hot
			topic.Partitions = make([]kmsg.ProduceRequestTopicPartition, 20_000)
			req.Topics = append(req.Topics, topic)
			return req
		},
		"Fetch of many partitions":           func(int) kmsg.Request { return fetchRequest(12, hot, 100_000, 1<<20) },
		"Fetch of many of the diskless tier": func(int) kmsg.Request { return fetchRequest(12, cold, 100_000, 1<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, proxy.Limits{ResponseBytes: 8 << 20, MaxFrameBytes: 4 << 20}, func(r *rig) {
				c, b := r.pairOf(on(false), 12)
				before := harness.Heap()
				for round := range rounds {
					req := request(round)
					go c.ask(1, req)
					if _, err := b.next(); err != nil {
						t.Fatal(err)
					}
					resp := req.ResponseKind()
					resp.SetVersion(req.GetVersion())
					b.respond(1, resp)
					c.expect(1)
				}
				if kept := harness.Heap() - before; kept > 1<<20 {
					t.Errorf("it keeps %d bytes", kept)
				}
				runtime.KeepAlive(r)
			})
		})
	}
}

// Many connections that name as many partitions as they may leave room for others.
func TestConnectionsShareWhatIsRememberedOfPartitions(t *testing.T) {
	inBubble(t, proxy.Limits{ResponseBytes: 16 << 20, MaxFrameBytes: 4 << 20}, func(r *rig) {
		const limit = 1 << 20
		ask := func(c, b *peer, partitions int) int32 {
			req := fetchRequest(12, cold, partitions, limit)
			go c.ask(1, req)
			got := kmsg.NewPtrFetchRequest()
			b.respond(b.received(got), got.ResponseKind())
			c.expect(1)
			return got.MaxBytes
		}
		for range 5 {
			c, b := r.pair(on(true))
			ask(c, b, 20_000)
		}
		c, b := r.pair(on(true))
		if least, got := int32(64<<10), ask(c, b, 10); got <= least {
			t.Errorf("another client's partitions are not remembered: it asks for %d bytes", got)
		}
	})
}

// Decoded, or noted by partition, a request takes many times its frame, until it is
// answered.
func TestRequestsTakeWhatMemoryAllows(t *testing.T) {
	limits := proxy.Limits{MaxFrameBytes: 8 << 20, RequestBytes: 64 << 20}
	configs := func(names int) *kmsg.DescribeConfigsRequest {
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.SetVersion(4)
		res := kmsg.NewDescribeConfigsRequestResource()
		res.ResourceType, res.ResourceName, res.ConfigNames = kmsg.ConfigResourceTypeTopic, cold, make([]string, names)
		req.Resources = append(req.Resources, res)
		return req
	}
	many := produce(9, 1)
	many.Topics = append(many.Topics, kmsg.NewProduceRequestTopic())
	for i := range int32(10_000) {
		many.Topics[0].Partitions = append(many.Topics[0].Partitions, kmsg.ProduceRequestTopicPartition{Partition: i, Records: []byte{1}})
	}
	for name, req := range map[string]kmsg.Request{"decoded": configs(100_000), "about many partitions": many} {
		t.Run("each that is "+name+" waits for what those before it take", func(t *testing.T) {
			inBubble(t, limits, func(r *rig) {
				const each = 5
				var clients, brokers []*peer
				for range 8 {
					c, b := r.pair(on(false))
					go func() {
						for i := range int32(each) {
							_, _ = c.Write(encode(i, req))
						}
					}()
					clients, brokers = append(clients, c), append(brokers, b)
				}
				synctest.Wait()
				held := r.labelled("sluice_proxy_frame_bytes", "direction", "decoded")
				if held == 0 || held > float64(limits.RequestBytes/8) {
					t.Errorf("%v bytes are allowed for", held)
				}
				if r.labelled("sluice_proxy_frame_waiting", "direction", "decoded") == 0 {
					t.Error("nobody waits")
				}
				var all sync.WaitGroup
				for k, c := range clients {
					all.Go(func() {
						for range each {
							brokers[k].reply(kmsg.RequestForKey(req.Key()))
						}
					})
					all.Go(func() {
						for i := range int32(each) {
							c.expect(i)
						}
					})
				}
				all.Wait()
				if held := r.labelled("sluice_proxy_frame_bytes", "direction", "decoded"); held != 0 {
					t.Errorf("%v bytes are still allowed for", held)
				}
			})
		})
	}
	t.Run("answers that wait for one before them", func(t *testing.T) {
		inBubble(t, limits, func(r *rig) {
			c, b := r.pair(on(false))
			const refused = 100
			replica := fetchRequest(12, hot, 10_000, 1)
			replica.ReplicaID = 1
			go func() {
				_, _ = c.Write(encode(0, heartbeat()))
				for i := range int32(refused) {
					_, _ = c.Write(encode(1+i, replica))
				}
			}()
			correlation := b.received(heartbeat())
			synctest.Wait()
			if held := r.labelled("sluice_proxy_frame_bytes", "direction", "decoded"); held == 0 || held > float64(limits.RequestBytes/8) {
				t.Errorf("%v bytes are allowed for", held)
			}
			if r.labelled("sluice_proxy_frame_waiting", "direction", "decoded") == 0 {
				t.Error("no answer waits")
			}
			go b.respond(correlation, heartbeat().ResponseKind())
			for i := range int32(1 + refused) {
				c.expect(i)
			}
		})
	})
	t.Run("one that takes more than there is", func(t *testing.T) {
		inBubble(t, limits, func(r *rig) {
			c, b := r.pair(on(false))
			go c.Write(encode(1, configs(4<<20)))
			c.closed()
			b.silent("it is refused")
			if log := r.log.String(); !strings.Contains(log, "limits.request_memory_bytes") {
				t.Errorf("the log does not say what to do: %s", log)
			}
		})
	})
}

// No broker leads as many partitions as these requests are about.
func TestRequestsAboutTooManyPartitionsEndTheirConnection(t *testing.T) {
	topics := fetchRequest(12, hot, 0, 1)
	for range wire.MaxFetchPartitions {
		topics.Topics = append(topics.Topics, kmsg.NewFetchRequestTopic())
	}
	many := produce(9, 1)
	many.Topics = append(many.Topics, kmsg.NewProduceRequestTopic())
	many.Topics[0].Partitions = make([]kmsg.ProduceRequestTopicPartition, wire.MaxProducePartitions+1)
	for name, req := range map[string]kmsg.Request{
		"Produce": many, "Fetch": fetchRequest(12, hot, wire.MaxFetchPartitions+1, 1), "Fetch of nothing of topics": topics,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, proxy.Limits{}, func(r *rig) {
				c, b := r.pair(on(false))
				go c.Write(encode(1, req))
				c.closed()
				b.silent("it is refused")
			})
		})
	}
}
