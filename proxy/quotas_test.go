package proxy_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy"
	"github.com/sluice-kafka/sluice/tiers"
)

// throttled is for how long a rate that was 0 before is throttled.
func throttled(bytes int, rate float64) time.Duration {
	const window = 10 * time.Second // Kafka counts so much at least
	perSecond := float64(bytes) / window.Seconds()
	return time.Duration((perSecond-rate)/rate*float64(window)/float64(time.Millisecond)+0.5) * time.Millisecond
}

// produceCold has a batch of so many bytes of the diskless topic become a
// placeholder of ten, and returns the answer.
func produceCold(r *rig, c, b *peer, v int16, size int, brokers int32) *kmsg.ProduceResponse {
	r.t.Helper()
	req := produce(v, -1, [2]string{cold, strings.Repeat("c", size)})
	c.ask(1, req)
	if v >= 13 && r.sum("sluice_proxy_requests_total") < 4 { // it is the first
		meta := kmsg.NewPtrMetadataRequest()
		b.respond(b.received(meta), metadataResponse(meta.Version, hot, cold))
	}
	offloads := r.payloads.offloaded()
	offloads[len(offloads)-1].finish("P123456789")
	resp, answer := kmsg.NewPtrProduceResponse(), kmsg.NewPtrProduceResponse()
	resp.SetVersion(v)
	answer.SetVersion(v)
	resp.ThrottleMillis = brokers
	got := kmsg.NewPtrProduceRequest()
	b.respond(b.received(got), resp)
	c.answer(1, answer)
	return answer
}

// expectMuted checks for how long the connection is not read.
func expectMuted(t *testing.T, c, b *peer, want time.Duration) {
	t.Helper()
	began := time.Now()
	c.ask(2, heartbeat())
	b.reply(heartbeat())
	if waited := time.Since(began); waited < want-time.Millisecond || waited > want {
		t.Errorf("the connection was not read for %v, want %v", waited, want)
	}
	c.expect(2)
}

// A client with a byte rate is throttled by what it sent, as if the broker had
// seen it: the answer tells the time, and the connection is not read for so long.
func TestByteRateOfProducers(t *testing.T) {
	const rate = 1000
	const size, saved = 30_000, 30_000 - 10
	versions(t, 0, true, func(t *testing.T, r *rig, v int16) {
		if v < 3 {
			return
		}
		r.quotas.rates[tiers.ProduceQuota] = rate
		c, b := r.pair(bootstrap)
		answer := produceCold(r, c, b, v, size, 17)
		extra := 0
		if v >= 9 {
			extra = 2 // the length of what is longer takes more
		}
		want := throttled(saved+extra, rate)
		if got := time.Duration(answer.ThrottleMillis) * time.Millisecond; got != want {
			t.Errorf("throttled for %v, want %v", got, want)
		}
		if who := (tiers.QuotaClient{User: "ANONYMOUS", Known: true, ID: "test"}); r.quotas.last() != who {
			t.Errorf("the rate was asked for %+v", r.quotas.last())
		}
		expectMuted(t, c, b, want)
		if got := r.sum("sluice_proxy_quota_bytes_total"); got != float64(saved+extra) {
			t.Errorf("%v bytes were counted, want %d", got, saved+extra)
		}
	})
	t.Run("who is throttled longer by the broker hears of that, and is read when the shorter time is over", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			r.quotas.rates[tiers.ProduceQuota] = 2900
			c, b := r.pair(bootstrap)
			if got := produceCold(r, c, b, 8, size, 60_000).ThrottleMillis; got != 60_000 {
				t.Errorf("throttled for %d ms", got)
			}
			began := time.Now()
			c.ask(2, heartbeat())
			b.reply(heartbeat())
			if waited := time.Since(began); waited > time.Second {
				t.Errorf("both times were waited for: %v", waited)
			}
			c.expect(2)
		})
	})
	t.Run("without a quota, and of batches that stay inline, nobody is throttled", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			c, b := r.pair(bootstrap)
			if got := produceCold(r, c, b, 8, size, 0).ThrottleMillis; got != 0 {
				t.Errorf("throttled for %d ms without a quota", got)
			}
			r.quotas.rates[tiers.ProduceQuota] = 1
			asked := len(r.quotas.asked)
			c.ask(3, produce(8, -1, [2]string{hot, strings.Repeat("h", size)}))
			b.reply(kmsg.NewPtrProduceRequest())
			c.expect(3)
			c.ask(4, produce(8, -1, [2]string{cold, strings.Repeat("c", size)}))
			offloads := r.payloads.offloaded()
			offloads[len(offloads)-1].finish("")
			b.reply(kmsg.NewPtrProduceRequest())
			c.expect(4)
			c.ask(5, heartbeat())
			began := time.Now()
			b.reply(heartbeat())
			c.expect(5)
			if time.Since(began) > 0 {
				t.Error("the connection was not read for a while")
			}
			if len(r.quotas.asked) != asked {
				t.Error("a quota was looked up for batches that brokers see")
			}
		})
	})
	t.Run("a producer that waits for no answer is not read for as long", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			r.quotas.rates[tiers.ProduceQuota] = rate
			c, b := r.pair(bootstrap)
			c.ask(1, produce(8, 0, [2]string{cold, strings.Repeat("c", size)}))
			r.payloads.offloaded()[0].finish("P123456789")
			b.received(kmsg.NewPtrProduceRequest())
			synctest.Wait()
			began := time.Now()
			c.ask(2, heartbeat())
			b.reply(heartbeat())
			c.expect(2)
			if want := throttled(saved, rate); time.Since(began) != want {
				t.Errorf("it was not read for %v, want %v", time.Since(began), want)
			}
		})
	})
	t.Run("a throttled client does not hold a shutdown up, nor stays when it has gone", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			r.quotas.rates[tiers.ProduceQuota] = 1
			c, b := r.pair(bootstrap)
			if got := produceCold(r, c, b, 8, size, 0).ThrottleMillis; got != 10*60*1000 {
				t.Errorf("throttled for %d ms", got)
			}
			gone, b2 := r.pair(bootstrap)
			_ = produceCold(r, gone, b2, 8, size, 0)
			_ = gone.Close()
			synctest.Wait()
			if open := r.sum("sluice_proxy_connections"); open != 1 {
				t.Errorf("%v connections, want the one that did not leave", open)
			}
			c.ask(2, heartbeat())
			synctest.Wait()
			began := time.Now()
			r.stop(time.Minute)
			if took := time.Since(began); took > 0 {
				t.Errorf("the shutdown took %v", took)
			}
			c.closed()
		})
	})
}

func TestByteRateOfConsumers(t *testing.T) {
	const rate = 1000
	fetch := func(v int16) *kmsg.FetchRequest {
		req := kmsg.NewPtrFetchRequest()
		req.SetVersion(v)
		req.MaxBytes = 50 << 20
		topic := kmsg.NewFetchRequestTopic()
		topic.Topic, topic.TopicID = cold, coldID
		for p := range int32(2) {
			part := kmsg.NewFetchRequestTopicPartition()
			part.Partition, part.PartitionMaxBytes = p, 1<<20
			topic.Partitions = append(topic.Partitions, part)
		}
		req.Topics = append(req.Topics, topic)
		return req
	}
	// ask fetches two partitions, and returns what came of either.
	ask := func(r *rig, c, b *peer, v int16, records ...string) (answer *kmsg.FetchResponse, sizes [2]int) {
		r.t.Helper()
		c.ask(1, fetch(v))
		if v >= 13 {
			meta := kmsg.NewPtrMetadataRequest()
			b.respond(b.received(meta), metadataResponse(meta.Version, hot, cold))
		}
		got := kmsg.NewPtrFetchRequest()
		resp, answer := fetchResponse(v, cold, records...), kmsg.NewPtrFetchResponse()
		resp.ThrottleMillis = 17
		answer.SetVersion(v)
		b.respond(b.received(got), resp)
		c.answer(1, answer)
		for i := range sizes {
			sizes[i] = len(answer.Topics[0].Partitions[i].RecordBatches)
		}
		return answer, sizes
	}
	versions(t, 1, true, func(t *testing.T, r *rig, v int16) {
		r.quotas.rates[tiers.FetchQuota] = rate
		c, b := r.pair(on(true))
		// The third would make more than the rate allows in ten seconds.
		answer, sizes := ask(r, c, b, v, "P6000;", "P3000;P1500;P2000;I10;")
		if sizes != [2]int{6000, 3000} {
			t.Errorf("%v bytes, want no more than a window allows", sizes)
		}
		if answer.ThrottleMillis != 17 {
			t.Errorf("throttled for %d ms, want what the broker says", answer.ThrottleMillis)
		}
	})
	t.Run("a batch larger than that is given, and paid for", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			r.quotas.rates[tiers.FetchQuota] = rate
			c, b := r.pair(on(true))
			answer, sizes := ask(r, c, b, 11, "P30000;", "P3000;")
			if sizes != [2]int{30000, 0} {
				t.Fatalf("%v bytes", sizes)
			}
			want := throttled(30000-len("P30000;")-len("P3000;"), rate)
			if got := time.Duration(answer.ThrottleMillis) * time.Millisecond; got != want {
				t.Errorf("throttled for %v, want %v", got, want)
			}
			expectMuted(t, c, b, want)
		})
	})
	t.Run("what brokers see counts for nothing here", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			r.quotas.rates[tiers.FetchQuota] = 1
			c, b := r.pair(on(true))
			if answer, _ := ask(r, c, b, 11, "I30000;", "I1;"); answer.ThrottleMillis != 17 || len(r.quotas.asked) > 0 {
				t.Errorf("throttled for %d ms; asked %d times", answer.ThrottleMillis, len(r.quotas.asked))
			}
		})
	})
}

// A name is believed when the broker has accepted its login, and no sooner.
func TestQuotasAreForWhoLoggedIn(t *testing.T) {
	type step struct {
		message, answer string
		code            int16
	}
	for _, c := range []struct {
		name, mechanism string
		steps           []step
		want            tiers.QuotaClient
	}{
		{"PLAIN", "PLAIN", []step{{message: "\x00alice\x00secret"}}, tiers.QuotaClient{User: "alice", Known: true, ID: "test"}},
		{"PLAIN, refused", "PLAIN", []step{{message: "\x00alice\x00secret", code: 58}}, tiers.QuotaClient{ID: "test"}},
		{"SCRAM", "SCRAM-SHA-512", []step{{message: "n,,n=alice,r=x", answer: "r=xy,s=,i=1"}, {message: "c=biws,r=xy,p=z", answer: "v=proof"}}, tiers.QuotaClient{User: "alice", Known: true, ID: "test"}},
		{"SCRAM, half of it", "SCRAM-SHA-512", []step{{message: "n,,n=alice,r=x", answer: "r=xy,s=,i=1"}}, tiers.QuotaClient{ID: "test"}},
		{"SCRAM, refused", "SCRAM-SHA-256", []step{{message: "n,,n=alice,r=x", answer: "r=xy,s=,i=1"}, {message: "c=biws,r=xy,p=z", answer: "e=invalid-proof"}}, tiers.QuotaClient{ID: "test"}},
		{"SCRAM, a delegation token", "SCRAM-SHA-256", []step{{message: "n,,n=id,r=x,tokenauth=true", answer: "r=xy,s=,i=1"}, {message: "c=biws,r=xy,p=z", answer: "v=proof"}}, tiers.QuotaClient{ID: "test"}},
		{"OAUTHBEARER", "OAUTHBEARER", []step{{message: "n,,\x01auth=Bearer e30.eyJzdWIiOiJhbGljZSJ9.c2ln\x01\x01"}}, tiers.QuotaClient{User: "alice", Known: true, ID: "test"}},
		{"OAUTHBEARER, refused", "OAUTHBEARER", []step{{message: "n,,\x01auth=Bearer e30.eyJzdWIiOiJhbGljZSJ9.c2ln\x01\x01", answer: `{"status":"invalid_token"}`}}, tiers.QuotaClient{ID: "test"}},
		{"another mechanism", "MINE", []step{{message: "\x00alice\x00secret"}}, tiers.QuotaClient{ID: "test"}},
		{"again, as KIP-368 has it", "PLAIN", []step{{message: "\x00alice\x00secret"}, {message: "\x00alice\x00changed"}}, tiers.QuotaClient{User: "alice", Known: true, ID: "test"}},
	} {
		for _, a := range proxy.APIs() {
			if a.Key != 36 {
				continue
			}
			for v := a.Min; v <= a.Max; v++ {
				t.Run(c.name, func(t *testing.T) {
					inBubble(t, proxy.Limits{}, func(r *rig) {
						client := r.connect(bootstrap)
						shake := kmsg.NewPtrSASLHandshakeRequest()
						shake.SetVersion(1)
						shake.Mechanism = c.mechanism
						client.ask(1, shake)
						b := r.broker()
						b.reply(kmsg.NewPtrSASLHandshakeRequest())
						client.expect(1)
						for _, s := range c.steps {
							req, got := kmsg.NewPtrSASLAuthenticateRequest(), kmsg.NewPtrSASLAuthenticateRequest()
							req.SetVersion(v)
							req.SASLAuthBytes = []byte(s.message)
							client.ask(2, req)
							corr := b.received(got)
							if string(got.SASLAuthBytes) != s.message {
								t.Fatalf("the broker got %q", got.SASLAuthBytes)
							}
							resp := kmsg.NewPtrSASLAuthenticateResponse()
							resp.SetVersion(v)
							resp.SASLAuthBytes, resp.ErrorCode = []byte(s.answer), s.code
							b.respond(corr, resp)
							answer := kmsg.NewPtrSASLAuthenticateResponse()
							answer.SetVersion(v)
							if client.answer(2, answer); string(answer.SASLAuthBytes) != s.answer || answer.ErrorCode != s.code {
								t.Fatalf("the client got %+v", answer)
							}
						}
						client.ask(98, kmsg.NewPtrApiVersionsRequest())
						b.speaks(7)
						client.expect(98)
						client.ask(3, heartbeat())
						b.reply(heartbeat())
						client.expect(3)
						_ = produceCold(r, client, b, 8, 1000, 0)
						who := r.quotas.last()
						if !who.Known {
							who.User = ""
						}
						if who != c.want {
							t.Errorf("the rate was asked for %+v, want %+v", who, c.want)
						}
					})
				})
			}
		}
	}
}
