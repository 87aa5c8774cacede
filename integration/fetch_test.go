package integration

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// spread produces rounds of one record for each partition, and awaits them.
func spread(t testing.TB, h *history.History, bootstrap, topic string, partitions []int32, rounds, size int, opts ...kgo.Opt) {
	t.Helper()
	cl := client(t, bootstrap, append([]kgo.Opt{
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedRecords(100_000),
	}, opts...)...)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	for range rounds {
		for _, p := range partitions {
			cl.Produce(ctx, h.Next(topic, p, size), func(r *kgo.Record, err error) {
				h.Acked(r, err)
				if err != nil {
					t.Errorf("producing: %v", err)
				}
			})
		}
	}
	if err := cl.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func upTo(n int) (partitions []int32) {
	for i := range n {
		partitions = append(partitions, int32(i))
	}
	return partitions
}

// TestBacklog: 100 MB on 50 partitions, read by clients that take 10 MB at a
// time from a replica with nothing in memory.
func TestBacklog(t *testing.T) {
	const topic, partitions, size, rounds, limit = "backlog-telemetry", 50, 20_000, 100, 10 << 20
	k := sharedKafka(t)
	store := fileStore(t)
	writer := startSluice(t, replica{Kafka: k.Bootstrap(), Store: store})
	createTopic(t, writer.Bootstrap, topic, partitions)
	spread(t, history.New(), writer.Bootstrap, topic, upTo(partitions), rounds, size, kgo.ProducerBatchMaxBytes(110_000))

	limits := []kgo.Opt{kgo.FetchMaxBytes(limit), kgo.FetchMaxPartitionBytes(1 << 20), kgo.MaxConcurrentFetches(1)}
	for _, reader := range []struct {
		name    string
		consume func(bootstrap string) []*kgo.Record
	}{
		{"franz-go", func(b string) []*kgo.Record { return consumed(t, b, partitions*rounds, limits, topic) }},
		{"franz-go without sessions", func(b string) []*kgo.Record {
			return consumed(t, b, partitions*rounds, append(limits, kgo.DisableFetchSessions()), topic)
		}},
	} {
		t.Run(reader.name, func(t *testing.T) {
			s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: store})
			stop, most := make(chan struct{}), 0.0
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(5 * time.Millisecond):
						most = max(most, s.metric(t, "sluice_proxy_frame_bytes", "direction", "response"))
					}
				}
			})
			records := reader.consume(s.Bootstrap)
			close(stop)
			wg.Wait()
			fetches := s.metric(t, "sluice_proxy_requests_total", "api", "Fetch")
			// How many records of others came between two of one partition.
			last, gap := map[int32]int{}, 0
			for i, r := range records {
				gap = max(gap, i-last[r.Partition])
				last[r.Partition] = i
			}
			t.Logf("%d records of %d B in %v fetches; at most %.1f MB of answers in memory, %.1f MB between two records of a partition",
				len(records), size, fetches, most/1e6, float64(gap*size)/1e6)
			// Ten answers would do for all brokers together, and each broker has
			// a last one that is not full, and empty ones while others are read.
			if fetches > 40 {
				t.Errorf("%v fetches for what fits into 10", fetches)
			}
			// 17 partitions of a broker share its answers by two, and there are
			// three brokers: six answers, and two more.
			if gap*size > 8*limit {
				t.Errorf("%d MB of other partitions' between two records of one", gap*size>>20)
			}
			// A connection to each broker, each with an answer, and its frame.
			if bound := 2.0 * 3 * 2 * limit; most > bound {
				t.Errorf("%v bytes of answers in memory, want no more than %v", most, bound)
			}
		})
	}
}

// What one replica writes is read at the tail through another with no more than
// two GETs for each object, however many partitions and consumers there are.
func TestTailGets(t *testing.T) { tailGets(t, 200) }

func TestLongTailGets(t *testing.T) {
	harness.Long(t)
	tailGets(t, 1000)
}

func tailGets(t *testing.T, partitions int) {
	t.Helper()
	topic, consumers, rounds := fmt.Sprintf("tail-telemetry-%d", partitions), 3, 20
	k := sharedKafka(t)
	store := s3Store(harness.StartS3(t), "tail")
	writer := startSluice(t, replica{Kafka: k.Bootstrap(), Store: store})
	reader := startSluice(t, replica{Kafka: k.Bootstrap(), Store: store})
	createTopic(t, writer.Bootstrap, topic, int32(partitions))
	h := history.New()
	var tails []*follower
	for i := range consumers {
		tails = append(tails, follow(t, h, fmt.Sprintf("tail %d", i), reader.Bootstrap, nil, topic))
	}
	before := reader.metric(t, "sluice_diskless_chunk_gets_total")
	for round := range rounds {
		spread(t, h, writer.Bootstrap, topic, upTo(partitions), 1, 2000)
		eventually(t, "consumers follow", func() (bool, string) {
			for _, f := range tails {
				if n := f.count(topic); n < (round+1)*partitions {
					return false, fmt.Sprintf("%s has %d records of %d; errors %v", f.name, n, (round+1)*partitions, f.errs)
				}
			}
			return true, ""
		})
	}
	objects := writer.metric(t, "sluice_diskless_objects_written_total")
	gets := reader.metric(t, "sluice_diskless_chunk_gets_total") - before
	t.Logf("%d partitions, %d consumers: %v objects written, %v GETs", partitions, consumers, objects, gets)
	if objects == 0 || gets == 0 || gets > 2*objects {
		t.Errorf("%v GETs for %v objects, want some, and two for each at most", gets, objects)
	}
	if n := writer.metric(t, "sluice_diskless_chunk_gets_total"); n != 0 {
		t.Errorf("the replica that wrote them got %v", n)
	}
	for _, f := range tails {
		f.toEnd(bootstrapOf(k), topic)
	}
}

// TestUnreachablePartitionsHarmNoOthers: consumers get what is in memory while
// the objects of other partitions on the same connection cannot be reached.
func TestUnreachablePartitionsHarmNoOthers(t *testing.T) {
	const topic, partitions, rounds = "isolated-telemetry", 12, 20
	k := sharedKafka(t)
	s3 := harness.StartS3(t)
	network := harness.StartFaultProxy(t, strings.TrimPrefix(s3.Endpoint, "http://"))
	through := *s3
	through.Endpoint = "http://" + network.Addr
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(&through, "isolated")})
	other := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(s3, "isolated")})
	createTopic(t, s.Bootstrap, topic, partitions)
	// Each broker leads some of both.
	brokers := map[int32][]int32{}
	topics, err := kadm.NewClient(client(t, bootstrapOf(k))).ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	var here, there []int32
	for _, p := range topics[topic].Partitions.Sorted() {
		if brokers[p.Leader] = append(brokers[p.Leader], p.Partition); len(brokers[p.Leader])%2 == 0 {
			there = append(there, p.Partition)
		} else {
			here = append(here, p.Partition)
		}
	}
	h := history.New()
	spread(t, h, s.Bootstrap, topic, here, rounds, 2000)
	spread(t, h, other.Bootstrap, topic, there, rounds, 2000)

	network.Set(harness.NetFault{Blackhole: true})
	f := follow(t, h, "some are unreachable", s.Bootstrap, []kgo.Opt{kgo.FetchMaxWait(100 * time.Millisecond)}, topic)
	eventually(t, "what is in memory is read", func() (bool, string) {
		n := f.count(topic)
		return n == len(here)*rounds, fmt.Sprintf("%d of %d records", n, len(here)*rounds)
	})
	if n := s.metric(t, "sluice_proxy_fetch_storage_errors_total"); n != 0 {
		t.Error("it came after the store had been given up")
	}
	eventually(t, "the client is told, and does not have to give up waiting", func() (bool, string) {
		return f.sawError("KAFKA_STORAGE_ERROR"), "not yet"
	})
	network.Set(harness.NetFault{})
	f.toEnd(bootstrapOf(k), topic)
}
