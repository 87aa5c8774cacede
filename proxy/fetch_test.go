package proxy_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
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
		want.MinBytes, want.Rack = 1, "" // one partition is asked for more, so all are as before
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
		{"more ordinary bytes than the limit are cut", 2, 100, []string{"I70;", "P60;", "P1;"}, []int{70, 0, 0}, 0},
		{"also where there is nothing else", 2, 100, []string{"I70;I70;", "I60;"}, []int{70, 0}, 0},
		{"and by a partition's limit", 1000, 2, []string{"I70;I70;", "P1;"}, []int{70, 1}, 0},
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
			for round, want := range [][]int{{0, 200}, {0, 200}} {
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
			{"a mixed stretch by what all of it gave", limit / 25, "P40;P40;"}, // 8 became 205
			{"and back", limit / 10, ""},                                       // 8 became 80
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

// slowStore reads each object of a size as the test says.
func (r *rig) slowStore(read map[int]func() error) {
	r.payloads.slow = func(size int) error { return read[size]() }
}

func after(d time.Duration, err error) func() error {
	return func() error {
		time.Sleep(d)
		return err
	}
}

func TestAnAnswerDoesNotWaitForWhatIsLate(t *testing.T) {
	const grace, timeout = 250 * time.Millisecond, 8 * time.Second
	never := errors.New("no answer")
	for _, tc := range []struct {
		name    string
		limit   int32 // the request's
		read    map[int]func() error
		fetched []string
		want    []int
		codes   []int16
		took    time.Duration
	}{
		{"all in memory", 10_000, nil, []string{"P50;", "I5;"}, []int{50, 3}, []int16{0, 0}, 0},
		{"within the grace", 10_000, map[int]func() error{60: after(200*time.Millisecond, nil)}, []string{"P50;", "S60;"}, []int{50, 60}, []int16{0, 0}, 200 * time.Millisecond},
		{"beyond it", 10_000, map[int]func() error{60: after(time.Second, nil)}, []string{"P50;", "S60;", "P70;"}, []int{50, 0, 70}, []int16{0, 0, 0}, grace},
		{"ordinary batches do not wait either", 10_000, map[int]func() error{60: after(time.Second, nil)}, []string{"I5;", "S60;"}, []int{3, 0}, []int16{0, 0}, grace},
		{"what precedes a late batch is given", 10_000, map[int]func() error{60: after(time.Second, nil)}, []string{"P50;S60;P70;"}, []int{50}, []int16{0}, grace},
		{"the grace begins with the first that is there", 10_000, map[int]func() error{60: after(time.Second, nil), 70: after(1100*time.Millisecond, nil), 80: after(2*time.Second, nil)}, []string{"S60;", "S70;", "S80;"}, []int{60, 70, 0}, []int16{0, 0, 0}, 1250 * time.Millisecond},
		{"nothing is there: the first is awaited", 10_000, map[int]func() error{60: after(5*time.Second, nil)}, []string{"S60;"}, []int{60}, []int16{0}, 5 * time.Second},
		{"nothing comes", 10_000, map[int]func() error{60: after(time.Minute, nil)}, []string{"S60;"}, []int{0}, []int16{56}, timeout},
		{"an object that cannot be read is an error at once, and harms nobody", 10_000, map[int]func() error{60: after(0, never)}, []string{"S60;", "P50;"}, []int{0, 50}, []int16{56, 0}, 0},
		{"those without an answer do not keep all the room", 100, map[int]func() error{60: after(time.Minute, nil), 61: after(time.Minute, nil)}, []string{"S60;", "S61;", "P50;"}, []int{0, 0, 50}, []int16{0, 0, 0}, 2 * grace},
		{"what comes later than its room was given away has its turn next time", 100, map[int]func() error{60: after(300*time.Millisecond, nil), 62: after(320*time.Millisecond, nil)}, []string{"S60;", "S62;"}, []int{60, 0}, []int16{0, 0}, 550 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, proxy.Limits{}, func(r *rig) {
				r.slowStore(tc.read)
				f := r.fetcher(on(true), 12)
				req := fetchRequest(12, cold, len(tc.fetched), tc.limit)
				req.MaxBytes = tc.limit
				begin := time.Now()
				got, codes := f.round(req, tc.fetched...)
				if took := time.Since(begin); took != tc.took {
					t.Errorf("the answer took %v of fake time, want %v", took, tc.took)
				}
				for i := range tc.want {
					if len(got[i]) != tc.want[i] || codes[i] != tc.codes[i] {
						t.Errorf("partition %d: %d bytes, error %d; want %d, %d", i, len(got[i]), codes[i], tc.want[i], tc.codes[i])
					}
				}
			})
		})
	}
}

func TestAFewSlowObjectsDoNotStopTheOthers(t *testing.T) {
	inBubble(t, proxy.Limits{HydrateConcurrency: 4}, func(r *rig) {
		read := map[int]func() error{}
		var fetched []string
		for size := 100; size < 120; size++ {
			read[size] = after(time.Hour, nil)
			if size >= 115 {
				read[size] = after(50*time.Millisecond, nil)
			}
			fetched = append(fetched, fmt.Sprintf("S%d;", size))
		}
		r.slowStore(read)
		f := r.fetcher(on(true), 12)
		begin, given := time.Now(), map[int]bool{}
		for range 3 {
			got, codes := f.round(fetchRequest(12, cold, len(fetched), 10_000), fetched...)
			for i := range got {
				if len(got[i]) > 0 {
					given[i] = true
				}
				if codes[i] != 0 {
					t.Errorf("partition %d: error %d", i, codes[i])
				}
			}
		}
		if len(given) != 5 {
			t.Errorf("%v were given in three answers, want the five that can be read", given)
		}
		// 15 objects without an answer, four at a time, each for 250 ms; and the
		// same for each answer.
		if took := time.Since(begin); took > 1750*time.Millisecond {
			t.Errorf("three answers took %v of fake time", took)
		}
	})
}

func TestALatePartitionHasItsTurn(t *testing.T) {
	// Objects are never kept in memory here: each answer reads them anew. So a
	// partition that is late once would be late for ever, were it not awaited.
	for _, tc := range []struct {
		name   string
		read   time.Duration
		err    error
		rounds int // in which it must have got its records, or its error
	}{
		{"a little late", 300 * time.Millisecond, nil, 2},
		{"later than a client's pause", 400 * time.Millisecond, nil, 3},
		{"seconds", 3 * time.Second, nil, 14},
		{"it turns out that it cannot be read", 650 * time.Millisecond, errors.New("no answer"), 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, proxy.Limits{}, func(r *rig) {
				r.slowStore(map[int]func() error{600: after(tc.read, tc.err)})
				f := r.fetcher(on(true), 12)
				for round := 1; ; round++ {
					req := fetchRequest(12, cold, 2, 1000)
					req.MaxBytes = 1000
					got, codes := f.round(req, "P300;", "S600;")
					if len(got[1]) > 0 || codes[1] != 0 {
						if tc.err != nil && codes[1] != 56 || tc.err == nil && len(got[1]) != 600 {
							t.Errorf("%d bytes, error %d", len(got[1]), codes[1])
						}
						break
					}
					if len(got[0]) != 300 {
						t.Errorf("round %d: the other partition got %d bytes", round, len(got[0]))
					}
					if round == tc.rounds {
						t.Fatalf("nothing in %d rounds", round)
					}
					time.Sleep(100 * time.Millisecond) // the client has something to do
				}
				if n := r.sum("sluice_proxy_fetch_late_partitions_total"); n == 0 {
					t.Error("no partition was counted as late")
				}
			})
		})
	}
}

// stretch is a run of like batches in a log: placeholders of 200 bytes, or
// ordinary batches, of what they give to a client.
type stretch struct {
	inline  bool
	batches int
	size    int
}

const placeholderSize = 200

// logged is a partition's log, as its broker has it.
type logged struct {
	batches []string
	sizes   []int // what the client gets for each
}

func logOf(stretches ...stretch) (l logged) {
	for _, s := range stretches {
		text := fmt.Sprintf("P%0*d;", placeholderSize-2, s.size)
		if s.inline {
			text = fmt.Sprintf("I%0*d;", s.size-2, s.size)
		}
		for range s.batches {
			l.batches, l.sizes = append(l.batches, text), append(l.sizes, s.size)
		}
	}
	return l
}

// scriptedBacklog is a broker with logs, and the client that reads them.
type scriptedBacklog struct {
	*fetcher
	topic    string
	logs     []logged
	max      int32 // the client's limits
	partMax  int32
	sessions bool

	order    []int32         // of the broker's session, or the client's
	offsets  []int64         // the client's
	named    map[int32]int64 // the session's offsets
	limits   map[int32]int32 // and limits
	upstream int             // bytes that the broker has sent
	fetches  int
	given    int
	idle     []int // fetches since a partition last got something
	longest  int
}

// readAll fetches until all is read.
func (b *scriptedBacklog) readAll() {
	b.t.Helper()
	n := len(b.logs)
	b.offsets, b.idle = make([]int64, n), make([]int, n)
	b.named, b.limits = map[int32]int64{}, map[int32]int32{}
	for i := range n {
		b.order = append(b.order, int32(i))
	}
	left := n
	for left > 0 {
		b.fetches++
		sent := b.ask(b.request())
		resp := b.give(fetchAnswer(b.version, b.topic, b.answer(sent)...))
		before := b.given
		for _, p := range resp.Topics[0].Partitions {
			if p.ErrorCode != 0 {
				b.t.Fatalf("partition %d: error %d", p.Partition, p.ErrorCode)
			}
			b.take(p.Partition, len(p.RecordBatches))
		}
		if b.given == before {
			b.t.Fatalf("fetch %d gave nothing, %d partitions are not at their end", b.fetches, left)
		}
		left = 0
		for i := range b.logs {
			if int(b.offsets[i]) < len(b.logs[i].batches) {
				b.idle[i]++
				b.longest = max(b.longest, b.idle[i])
				left++
			}
		}
	}
}

// request is the client's next.
func (b *scriptedBacklog) request() *kmsg.FetchRequest {
	req := fetchRequest(b.version, b.topic, 0, 0)
	req.MaxBytes, req.SessionEpoch = b.max, -1
	if b.sessions {
		req.SessionID, req.SessionEpoch = 7, int32(b.fetches-1)
	}
	t := &req.Topics[0]
	for _, i := range b.order {
		if at, ok := b.named[i]; b.sessions && ok && at == b.offsets[i] {
			continue
		}
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes = i, b.offsets[i], b.partMax
		t.Partitions = append(t.Partitions, p)
	}
	if len(t.Partitions) == 0 {
		req.Topics = nil
	}
	return req
}

// answer is what a broker has for a request, within its limits.
func (b *scriptedBacklog) answer(req *kmsg.FetchRequest) (parts []kmsg.FetchResponseTopicPartition) {
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			b.named[p.Partition], b.limits[p.Partition] = p.FetchOffset, p.PartitionMaxBytes
		}
	}
	room := int(req.MaxBytes)
	first := true
	var had, hadNot []int32
	for _, i := range b.order {
		limit := min(room, int(b.limits[i]))
		var records strings.Builder
		for at := b.named[i]; int(at) < len(b.logs[i].batches); at++ {
			batch := b.logs[i].batches[at]
			if over := records.Len() + len(batch) - limit; over > 0 && !first {
				records.WriteString(batch[:max(len(batch)-over, 0)]) // a partial batch
				break
			}
			first = false
			records.WriteString(batch)
		}
		if records.Len() == 0 {
			hadNot = append(hadNot, i)
			continue
		}
		had = append(had, i)
		room = max(room-records.Len(), 0)
		b.upstream += records.Len()
		parts = append(parts, dataPart(i, records.String()))
	}
	if b.sessions {
		b.order = append(hadNot, had...)
	}
	return parts
}

// take is what the client does with a partition's records.
func (b *scriptedBacklog) take(partition int32, n int) {
	l, at := b.logs[partition], &b.offsets[partition]
	got := 0
	for int(*at) < len(l.sizes) && n >= l.sizes[*at] {
		n, got = n-l.sizes[*at], got+l.sizes[*at]
		*at++
	}
	b.given += got
	if got == 0 {
		return
	}
	b.idle[partition] = 0
	if !b.sessions { // it asks for it last
		i := slices.Index(b.order, partition)
		b.order = append(slices.Delete(b.order, i, i+1), partition)
	}
}

// TestCatchingUp: 50 partitions, 100 MB or more of backlog, a client that takes
// 10 MB at a time. Nobody starves, nothing crawls, and memory stays bounded.
func TestCatchingUp(t *testing.T) {
	const batch, limit, partMax = 20_000, 10 << 20, 1 << 20
	repeat := func(n int, s ...stretch) (out []stretch) {
		for range n {
			out = append(out, s...)
		}
		return out
	}
	for _, tc := range []struct {
		name    string
		topic   string
		to      string
		log     []stretch
		partMax int32
		factor  float64 // fetches, in multiples of bytes ÷ limit
		most    float64 // bytes that the broker sends, in multiples of its log

		sessionless bool // too
	}{
		{"placeholders only", cold, on(true), repeat(1, stretch{false, 100, batch}), partMax, 1.5, 5, true},
		{"ordinary batches only", cold, on(true), repeat(1, stretch{true, 100, batch}), partMax, 2, 2, false},
		{"placeholders of small batches", cold, on(true), repeat(1, stretch{false, 1000, batch / 10}), partMax, 1.5, 2, false},
		{"they alternate batch by batch", cold, on(true), repeat(50, stretch{false, 1, batch}, stretch{true, 1, batch}), partMax, 2, 3, false},
		{"short stretches", cold, on(true), repeat(8, stretch{false, 7, batch}, stretch{true, 5, batch}), partMax, 2.5, 3, true},
		{"long stretches", cold, on(true), repeat(1, stretch{false, 60, batch}, stretch{true, 40, batch}), partMax, 2, 3, false},
		{"a partition's limit below one batch still gives that batch", cold, on(true), repeat(1, stretch{false, 3, batch}), 10, 600, 100, false},
		{"a topic that has left the tier", hot, on(false), repeat(1, stretch{false, 1000, batch / 10}), partMax, 1.5, 3, true},
		{"a topic that has left the tier, and has both", hot, on(false), repeat(1, stretch{false, 60, batch}, stretch{true, 40, batch}), partMax, 2, 3, false},
	} {
		for _, sessions := range []bool{true, false} {
			if !sessions && !tc.sessionless {
				continue
			}
			t.Run(fmt.Sprintf("%s, sessions %v", tc.name, sessions), func(t *testing.T) {
				inBubble(t, proxy.Limits{}, func(r *rig) {
					b := &scriptedBacklog{fetcher: r.fetcher(tc.to, 12), topic: tc.topic, max: limit, partMax: tc.partMax, sessions: sessions}
					total, stored := 0, 0
					for range 30 {
						l := logOf(tc.log...)
						b.logs = append(b.logs, l)
						for i, n := range l.sizes {
							total, stored = total+n, stored+len(l.batches[i])
						}
					}
					var most atomic.Int64
					loads := 0
					r.payloads.loading = func() {
						r.payloads.mu.Lock()
						defer r.payloads.mu.Unlock()
						if loads++; loads%64 == 0 {
							most.Store(max(most.Load(), int64(r.sum("sluice_proxy_frame_bytes"))))
						}
					}
					b.readAll()
					least := float64(total) / limit
					t.Logf("%d MB in %d fetches (%.1f × what the limit allows), %.1f MB from the broker (%.1f × its log), at most %d fetches without, at most %d bytes held",
						total>>20, b.fetches, float64(b.fetches)/least, float64(b.upstream)/1e6, float64(b.upstream)/float64(stored), b.longest, most.Load())
					if got := float64(b.fetches) / least; got > tc.factor {
						t.Errorf("%d fetches, %.1f times what the client's limit allows; want %.1f", b.fetches, got, tc.factor)
					}
					if got := float64(b.upstream) / float64(stored); got > tc.most {
						t.Errorf("the broker sent %.1f times its log, want %.1f", got, tc.most)
					}
					if tc.partMax > batch && b.longest > 10 {
						t.Errorf("a partition got nothing in %d fetches", b.longest)
					}
					if held := most.Load(); held > 2*limit {
						t.Errorf("%d bytes of frames were held for answers of %d", held, limit)
					}
				})
			})
		}
	}
}
