package proxy_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy"
)

func fetchTopicID(topic string) [16]byte {
	if topic == cold {
		return coldID
	}
	return hotID
}

// fetchRequest asks for partitions 0 to n-1 of a topic, up to limit bytes of each.
func fetchRequest(version int16, topic string, n int, limit int32) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(version)
	req.ReplicaID, req.ReplicaState.ID = -1, -1
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 500, 100_000, 50<<20
	req.SessionID, req.SessionEpoch = 0, -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = topic, fetchTopicID(topic)
	for i := range n {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes = int32(i), 7, limit
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = append(req.Topics, t)
	return req
}

// dataPart is one partition of the broker's answer.
func dataPart(partition int32, records string) kmsg.FetchResponseTopicPartition {
	p := kmsg.NewFetchResponseTopicPartition()
	p.Partition, p.RecordBatches = partition, []byte(records)
	p.HighWatermark, p.LastStableOffset, p.LogStartOffset, p.PreferredReadReplica = 100, 90, 5, -1
	for i := range int64(2) {
		a := kmsg.NewFetchResponseTopicPartitionAbortedTransaction()
		a.ProducerID, a.FirstOffset = 4+i, 40+i
		p.AbortedTransactions = append(p.AbortedTransactions, a)
	}
	return p
}

func fetchAnswer(version int16, topic string, parts ...kmsg.FetchResponseTopicPartition) *kmsg.FetchResponse {
	resp := kmsg.NewPtrFetchResponse()
	resp.SetVersion(version)
	resp.ThrottleMillis = 3
	t := kmsg.NewFetchResponseTopic()
	t.Topic, t.TopicID, t.Partitions = topic, fetchTopicID(topic), parts
	resp.Topics = append(resp.Topics, t)
	return resp
}

// fetcher is a client of one connection that fetches.
type fetcher struct {
	*rig
	c, b    *peer
	version int16
	corr    int32
}

func (r *rig) fetcher(to string, version int16) *fetcher {
	r.t.Helper()
	c, b := r.pair(to)
	f := &fetcher{rig: r, c: c, b: b, version: version}
	if version >= 13 {
		f.learn()
	}
	return f
}

// learn has the client ask for Metadata, as clients do before they fetch.
func (f *fetcher) learn() {
	f.t.Helper()
	meta := kmsg.NewPtrMetadataRequest()
	meta.SetVersion(12)
	f.c.ask(900, meta)
	f.b.respond(f.b.received(meta), metadataResponse(12, hot, cold))
	f.c.expect(900)
}

// ask sends a Fetch and returns it as the broker gets it.
func (f *fetcher) ask(req *kmsg.FetchRequest) *kmsg.FetchRequest {
	f.t.Helper()
	f.corr++
	f.c.ask(f.corr, req)
	got := kmsg.NewPtrFetchRequest()
	if corr := f.b.received(got); corr != f.corr {
		f.t.Fatalf("the broker got request %d, want %d", corr, f.corr)
	}
	return got
}

// give answers with resp and returns what the client gets.
func (f *fetcher) give(resp *kmsg.FetchResponse) *kmsg.FetchResponse {
	f.t.Helper()
	go f.b.raw(encodeResponse(f.corr, resp))
	got := kmsg.NewPtrFetchResponse()
	got.SetVersion(resp.Version)
	f.c.answer(f.corr, got)
	return got
}

// round fetches partitions of cold and returns records and error by partition.
func (f *fetcher) round(req *kmsg.FetchRequest, records ...string) (got []string, codes []int16) {
	f.t.Helper()
	f.ask(req)
	var parts []kmsg.FetchResponseTopicPartition
	for i, rec := range records {
		parts = append(parts, dataPart(int32(i), rec))
	}
	resp := f.give(fetchAnswer(f.version, req.Topics[0].Topic, parts...))
	if n := len(resp.Topics[0].Partitions); n != len(records) {
		f.t.Fatalf("%d partitions in the answer, want %d", n, len(records))
	}
	for _, p := range resp.Topics[0].Partitions {
		got, codes = append(got, string(p.RecordBatches)), append(codes, p.ErrorCode)
	}
	return got, codes
}

func TestFetchByVersion(t *testing.T) {
	const small, large = 1 << 10, 8 << 20
	versions(t, 1, true, func(t *testing.T, r *rig, v int16) {
		f := r.fetcher(on(true), v)
		req := fetchRequest(v, cold, 4, large)
		req.Topics[0].Partitions[1].PartitionMaxBytes = small
		req.Rack = "zone-a"
		if v >= 12 {
			req.ClusterID = strptr("cluster")
		}
		forgotten := kmsg.NewFetchRequestForgottenTopic()
		forgotten.Topic, forgotten.TopicID, forgotten.Partitions = hot, hotID, []int32{1, 2}
		if v >= 7 {
			req.ForgottenTopics = append(req.ForgottenTopics, forgotten)
		}
		sent := f.ask(req)
		want := *req
		want.MinBytes, want.MaxBytes, want.Rack = 1, req.MaxBytes/16, ""
		for i := range want.Topics[0].Partitions {
			want.Topics[0].Partitions[i].PartitionMaxBytes = large / 16
		}
		want.Topics[0].Partitions[1].PartitionMaxBytes = 64 << 10 // a placeholder's own size
		if got, want := encode(1, sent), encode(1, &want); !bytes.Equal(got, want) {
			t.Errorf("the broker was asked\n%x, want\n%x", got, want)
		}

		answer := func() *kmsg.FetchResponse {
			resp := fetchAnswer(v, cold,
				dataPart(0, "P300;P20;P9"), // a trailing partial batch
				dataPart(1, "P600;P600;"),  // beyond its own limit
				dataPart(2, "I5;"),
				dataPart(3, "X;"))
			last := dataPart(4, "")
			last.ErrorCode, last.CurrentLeader.LeaderID, last.CurrentLeader.LeaderEpoch = 6, 2, 9
			resp.Topics[0].Partitions = append(resp.Topics[0].Partitions, last)
			for _, id := range []int32{2, 77} {
				b := kmsg.NewFetchResponseBroker()
				b.NodeID, b.Host, b.Port, b.Rack = id, "raw-broker", 9092, strptr("rack")
				resp.Brokers = append(resp.Brokers, b)
			}
			if v >= 12 {
				resp.UnknownTags.Set(99, []byte("from the future"))
			}
			return resp
		}
		f.c.SetReadDeadline(time.Now().Add(time.Hour))
		f.b.raw(encodeResponse(f.corr, answer()))
		got := f.c.expect(f.corr)

		expected := answer()
		parts := expected.Topics[0].Partitions
		parts[0].RecordBatches = []byte(strings.Repeat("d", 320))
		parts[1].RecordBatches = []byte(strings.Repeat("d", 600))
		parts[3].RecordBatches, parts[3].ErrorCode = []byte{}, 56
		if v < 6 {
			parts[3].ErrorCode = 6
		}
		parts[4].CurrentLeader.LeaderID = 2 + twin
		expected.Brokers = nil
		for id, port := range map[int32]int32{2: 1005, 2 + twin: 1006} {
			b := kmsg.NewFetchResponseBroker()
			b.NodeID, b.Host, b.Port, b.Rack = id, host, port, strptr("rack")
			if expected.Brokers = append(expected.Brokers, b); len(expected.Brokers) == 2 && expected.Brokers[0].NodeID != 2 {
				expected.Brokers[0], expected.Brokers[1] = expected.Brokers[1], expected.Brokers[0]
			}
		}
		if want := encodeResponse(f.corr, expected)[4:]; !bytes.Equal(got, want) {
			t.Errorf("the client got\n%q, want\n%q", got, want)
		}
		if n := r.sum("sluice_proxy_fetch_storage_errors_total"); n != 1 {
			t.Errorf("%v storage errors counted, want 1", n)
		}
		for _, topic := range r.payloads.resolved {
			if topic != cold {
				t.Errorf("resolved as topic %q", topic)
			}
		}
	})
}

func TestFetchThatConcernsNothingDisklessPassesUnchanged(t *testing.T) {
	versions(t, 1, true, func(t *testing.T, r *rig, v int16) {
		f := r.fetcher(on(false), v)
		sent := encode(1, fetchRequest(v, hot, 3, 1<<20))
		f.c.raw(sent)
		if got, _ := f.b.next(); !bytes.Equal(got, sent[4:]) {
			t.Error("the request was changed")
		}
		resp := encodeResponse(1, fetchAnswer(v, hot, dataPart(0, "I5;")))
		f.b.raw(resp)
		if got := f.c.expect(1); !bytes.Equal(got, resp[4:]) {
			t.Error("the answer was changed")
		}
	})
}

func TestFetchAsAReplicaIsRefused(t *testing.T) {
	versions(t, 1, true, func(t *testing.T, r *rig, v int16) {
		c, b := r.pair(bootstrap)
		req := fetchRequest(v, hot, 2, 1)
		req.ReplicaID, req.ReplicaState.ID = 1, 1
		c.ask(1, req)
		resp := kmsg.NewPtrFetchResponse()
		resp.SetVersion(v)
		c.answer(1, resp)
		for _, p := range resp.Topics[0].Partitions {
			if p.ErrorCode != 31 {
				t.Errorf("error %d, want CLUSTER_AUTHORIZATION_FAILED", p.ErrorCode)
			}
		}
		b.silent("it is for brokers only")
	})
}

func TestPlaceholdersAreReplacedOnEveryConnection(t *testing.T) {
	// The topic has a low-latency class now, but its log holds placeholders.
	for _, to := range []string{bootstrap, on(false), on(true)} {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			f := r.fetcher(to, 12)
			req := fetchRequest(12, hot, 1, 1<<20)
			if got, _ := f.round(req, "I2;P50;I3;"); got[0] != strings.Repeat("d", 55) {
				t.Errorf("got %q", got[0])
			}
		})
	}
}

func TestFetchLimits(t *testing.T) {
	const mb = 1 << 20
	for _, tc := range []struct {
		name     string
		max      int32
		partMax  int32
		fetched  []string
		want     []int // bytes by partition
		hydrated int   // the proxy's own limit
	}{
		{"everything fits", 100, 100, []string{"P50;", "P50;"}, []int{50, 50}, 0},
		{"a partition's limit cuts after whole batches", 1000, 100, []string{"P60;P60;P60;"}, []int{60}, 0},
		{"the first batch comes whatever its size", 100, 100, []string{"P5000;P1;"}, []int{5000}, 0},
		{"a later one must fit", 100, 100, []string{"P60;", "P60;"}, []int{60, 0}, 0},
		{"one larger than its partition's limit waits for its turn", 1000, 100, []string{"P60;", "P500;", "P40;"}, []int{60, 0, 40}, 0},
		{"ordinary batches count too", 100, 100, []string{"I70;", "P60;", "P1;"}, []int{4, 60, 1}, 0},
		{"more ordinary bytes than the limit still leave one hydrated batch", 2, 100, []string{"I70;", "P60;", "P1;"}, []int{4, 60, 0}, 0},
		{"the proxy's own limit", 50 * mb, 50 * mb, []string{"P60;P60;", "P60;"}, []int{60, 0}, 100},
		{"a client that asks for nothing gets one batch", 0, 0, []string{"P60;", "P60;"}, []int{60, 0}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, proxy.Limits{FetchBytes: tc.hydrated}, func(r *rig) {
				f := r.fetcher(on(true), 12)
				req := fetchRequest(12, cold, len(tc.fetched), tc.partMax)
				req.MaxBytes = tc.max
				got, codes := f.round(req, tc.fetched...)
				for i, want := range tc.want {
					if len(got[i]) != want || codes[i] != 0 {
						t.Errorf("partition %d: %d bytes, error %d; want %d", i, len(got[i]), codes[i], want)
					}
				}
			})
		})
	}
}

// consume fetches until every partition has given its batches, of a size each,
// and returns the number of rounds.
func (f *fetcher) consume(sizes []int, batches int, max, partMax int32, check func(round int, given []int)) int {
	f.t.Helper()
	left := make([]int, len(sizes))
	for i := range left {
		left[i] = batches
	}
	for round := 1; ; round++ {
		req := fetchRequest(f.version, cold, len(sizes), partMax)
		req.MaxBytes = max
		fetched := make([]string, len(sizes))
		for i, n := range left {
			fetched[i] = strings.Repeat(fmt.Sprintf("P%d;", sizes[i]), n)
		}
		got, codes := f.round(req, fetched...)
		given, total, rest := make([]int, len(sizes)), 0, 0
		for i := range got {
			if codes[i] != 0 {
				f.t.Fatalf("partition %d: error %d", i, codes[i])
			}
			given[i] = len(got[i]) / sizes[i]
			left[i] -= given[i]
			total, rest = total+len(got[i]), rest+left[i]
		}
		if total == 0 {
			f.t.Fatalf("round %d gave nothing, %d batches are left", round, rest)
		}
		if check != nil {
			check(round, given)
		}
		if rest == 0 {
			return round
		}
	}
}

func TestNoPartitionStarves(t *testing.T) {
	t.Run("50 partitions, a backlog of ten answers", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			f := r.fetcher(on(true), 12)
			sizes := make([]int, 50)
			for i := range sizes {
				sizes[i] = 25 << 10
			}
			last := make([]int, 50)
			rounds := f.consume(sizes, 4, 512<<10, 50<<10, func(round int, given []int) {
				for i, n := range given {
					if n > 0 {
						last[i] = round
					} else if last[i] < round-5 {
						t.Errorf("partition %d has got nothing from round %d to %d", i, last[i], round)
					}
				}
			})
			if rounds > 12 {
				t.Errorf("%d rounds for ten answers' worth", rounds)
			}
		})
	})
	t.Run("partitions of very unequal batches", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			f := r.fetcher(on(true), 13)
			f.consume([]int{10, 5000, 20, 900, 4999, 1}, 3, 1000, 500, nil)
		})
	})
	t.Run("one that cannot be read does not keep the room of the others", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			f := r.fetcher(on(true), 12)
			for round, want := range [][]int{{0, 0}, {0, 200}} {
				req := fetchRequest(12, cold, 2, 1000)
				req.MaxBytes = 1000
				got, codes := f.round(req, "B900;", "P200;")
				if len(got[0]) != want[0] || len(got[1]) != want[1] || codes[1] != 0 {
					t.Errorf("round %d: %d and %d bytes, errors %v", round, len(got[0]), len(got[1]), codes)
				}
				if round == 0 && codes[0] != 56 {
					t.Errorf("error %d, want KAFKA_STORAGE_ERROR", codes[0])
				}
			}
		})
	})
}

func TestWhatCannotBeReadIsNeverSkipped(t *testing.T) {
	for _, tc := range []struct {
		name, fetched string
		bytes         int
		code          int16
	}{
		{"a reference that does not verify", "X;P10;", 0, 56},
		{"an object that cannot be read", "B50;P10;", 0, 56},
		{"what precedes a bad reference is given", "P10;X;P10;", 10, 0},
		{"what precedes a missing object is given", "P10;B50;P10;", 10, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, proxy.Limits{}, func(r *rig) {
				f := r.fetcher(on(true), 12)
				got, codes := f.round(fetchRequest(12, cold, 2, 1<<20), tc.fetched, "P7;")
				if len(got[0]) != tc.bytes || codes[0] != tc.code {
					t.Errorf("%d bytes and error %d, want %d and %d", len(got[0]), codes[0], tc.bytes, tc.code)
				}
				if len(got[1]) != 7 || codes[1] != 0 {
					t.Errorf("the other partition got %d bytes and error %d", len(got[1]), codes[1])
				}
			})
		})
	}
}

func TestUpstreamLimitsFollowTheExpansion(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		f := r.fetcher(on(true), 12)
		const limit = 8 << 20
		asked := func() (part, all int32) {
			sent := f.ask(fetchRequest(12, cold, 1, limit))
			return sent.Topics[0].Partitions[0].PartitionMaxBytes, sent.MaxBytes
		}
		for _, step := range []struct {
			why     string
			part    int32
			records string
		}{
			{"nothing is known yet", limit / 16, "P200;"},      // 5 bytes became 200
			{"forty bytes for one", limit / 40, "P50000;"},     // 7 became 50000
			{"no less than a large placeholder", 64 << 10, ""}, // nothing new
			{"what is known stays known", 64 << 10, "I5;"},     // an inline batch
			{"after an inline batch, the client's own", limit, "I5;P200;"},
			{"a mixed stretch is an inline one", limit, "P40;P40;"},
			{"and back", limit / 10, ""}, // 8 became 80
		} {
			part, all := asked()
			if part != step.part {
				t.Fatalf("%s: asked for %d of the partition, want %d", step.why, part, step.part)
			}
			if all < part {
				t.Fatalf("%s: asked for %d in all, less than the partition's %d", step.why, all, part)
			}
			f.give(fetchAnswer(12, cold, dataPart(0, step.records)))
		}
	})
}

func TestFetchSessions(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		f := r.fetcher(on(false), 12) // old metadata: diskless topics on a low-latency connection
		begin := fetchRequest(12, cold, 2, 1000)
		begin.SessionEpoch = 0
		begin.Topics[0].Partitions[1].PartitionMaxBytes = 100
		if sent := f.ask(begin); sent.MinBytes != 1 {
			t.Errorf("min.bytes %d: it would count placeholders", sent.MinBytes)
		}
		f.give(fetchAnswer(12, cold, dataPart(0, "P600;P600;"), dataPart(1, "P60;P60;")))
		// What an incremental request does not name keeps its limits.
		next := fetchRequest(12, cold, 1, 2000)
		next.SessionID, next.SessionEpoch = 5, 1
		if sent := f.ask(next); sent.MinBytes != 1 {
			t.Errorf("min.bytes %d in an incremental request", sent.MinBytes)
		}
		got := f.give(fetchAnswer(12, cold, dataPart(0, "P900;P900;P900;"), dataPart(1, "P60;P60;")))
		for i, want := range []int{1800, 60} {
			if n := len(got.Topics[0].Partitions[i].RecordBatches); n != want {
				t.Errorf("partition %d got %d bytes, want %d", i, n, want)
			}
		}
		empty := fetchRequest(12, cold, 0, 0)
		empty.Topics, empty.SessionID, empty.SessionEpoch = nil, 5, 2
		if sent := f.ask(empty); sent.MinBytes != 1 {
			t.Errorf("min.bytes %d in an empty request", sent.MinBytes)
		}
		f.give(fetchAnswer(12, cold))
		// A new session without diskless topics is none of our business.
		fresh := fetchRequest(12, hot, 1, 1000)
		fresh.SessionEpoch = 0
		if sent := f.ask(fresh); sent.MinBytes != fresh.MinBytes {
			t.Errorf("min.bytes %d in a session of ordinary topics", sent.MinBytes)
		}
	})
}

func TestTopicIDWithoutANameIsAskedForAgain(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		c, b := r.pair(on(true))
		f := &fetcher{rig: r, c: c, b: b, version: 13}
		name := func(topics ...string) {
			meta := kmsg.NewPtrMetadataRequest()
			corr := b.received(meta)
			if len(meta.Topics) != 1 || meta.Topics[0].TopicID != coldID || meta.Topics[0].Topic != nil {
				t.Fatalf("asked for %+v", meta.Topics)
			}
			b.respond(corr, metadataResponse(meta.Version, topics...))
		}
		begin := fetchRequest(13, cold, 1, 1<<20)
		begin.SessionEpoch = 0
		f.corr++
		c.ask(f.corr, begin)
		name() // the broker does not tell
		b.received(kmsg.NewPtrFetchRequest())
		p := f.give(fetchAnswer(13, cold, dataPart(0, "P50;"))).Topics[0].Partitions[0]
		if p.ErrorCode != 56 || len(p.RecordBatches) != 0 {
			t.Fatalf("error %d and %d bytes, want KAFKA_STORAGE_ERROR", p.ErrorCode, len(p.RecordBatches))
		}
		again := fetchRequest(13, cold, 0, 0)
		again.Topics, again.SessionID, again.SessionEpoch = nil, 5, 1
		f.corr++
		c.ask(f.corr, again)
		name(cold)
		b.received(kmsg.NewPtrFetchRequest())
		p = f.give(fetchAnswer(13, cold, dataPart(0, "P50;"))).Topics[0].Partitions[0]
		if p.ErrorCode != 0 || len(p.RecordBatches) != 50 {
			t.Fatalf("error %d and %d bytes, want the record", p.ErrorCode, len(p.RecordBatches))
		}
		c.ask(f.corr, again)
		b.received(kmsg.NewPtrFetchRequest()) // nothing to be asked any more
	})
}

func TestShortMemoryMakesAnswersShorter(t *testing.T) {
	inBubble(t, proxy.Limits{MaxFrameBytes: 1 << 10, ResponseBytes: 16 << 10}, func(r *rig) {
		f := r.fetcher(on(true), 12)
		req := fetchRequest(12, cold, 3, 1<<20)
		for range 3 { // what was held is given back
			got, _ := f.round(req, "P2000;", "P2000;", "P2000;P2000;")
			if n := len(got[0]) + len(got[1]) + len(got[2]); n != 4000 {
				t.Errorf("%d bytes: want the first batch, and the one for which there is room", n)
			}
		}
	})
}

func TestAbsentClientsAnswerIsNotHydrated(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		f := r.fetcher(on(true), 12)
		f.ask(fetchRequest(12, cold, 1, 1<<20))
		f.c.Close()
		f.b.closed()
	})
}
