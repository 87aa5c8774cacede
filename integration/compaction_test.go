package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/diskless/gc"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/server"
)

func TestCompactedDataReadsBack(t *testing.T) {
	compactedDataReadsBack(t, sharedKafka(t), 3, 8, 24<<20, 0)
}

func TestLongCompactedDataOfAThousandPartitionsReadsBack(t *testing.T) {
	harness.Long(t)
	// fsck looks at all topics: all have to be of this store.
	k := harness.StartKafka(t, harness.KafkaOptions{})
	compactedDataReadsBack(t, k, 10, 100, 256<<20, 10*time.Second)
}

const compactedRecord = 1 << 10

// compactedValue tells records apart, and does not compress.
func compactedValue(id uint64) []byte {
	r := rand.NewChaCha8([32]byte(binary.BigEndian.AppendUint64(make([]byte, 24), id)))
	value := binary.BigEndian.AppendUint64(make([]byte, 0, compactedRecord), id)
	value = value[:compactedRecord]
	_, _ = r.Read(value[8:])
	return value
}

// compactedDataReadsBack writes to many partitions, has a compactor killed in the
// middle and another finish, takes the WAL objects away, and reads everything
// through a replica that has nothing in memory. With merge, what is compacted is then
// merged, collected, and read again.
func compactedDataReadsBack(t *testing.T, k *harness.Kafka, topics, partitions, size int, merge time.Duration) {
	const quick = "compaction: { enabled: false, window: 1s, min_age: 1s, memory_bytes: 128MiB"
	classes := "\nclasses:\n  telemetry: { linger: 50ms, object_size: 4MiB, store: default }\n"
	r := replica{Kafka: k.Bootstrap(), Store: s3Store(harness.StartS3(t), "compacted"), Extra: quick + " }" + classes}.withDefaults(t)
	writer := startSluice(t, r)
	slow := r
	slow.Extra = quick + ", bytes_per_second: 8MiB }" + classes
	file := slow.write(t)

	var names []string
	for i := range topics {
		names = append(names, fmt.Sprintf("compacted-%d-telemetry-%d", partitions, i))
		// Of different retention: they share no segment.
		createTopic(t, writer.Bootstrap, names[i], int32(partitions), "retention.ms", fmt.Sprint((1+i%3)*24*3600*1000))
	}
	cl := client(t, writer.Bootstrap, kgo.ProducerLinger(100*time.Millisecond), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(100_000))
	records := size / compactedRecord
	for i := range records {
		// A few partitions at a time, as keys and sticky partitioners do: batches of some KB.
		cl.Produce(t.Context(), &kgo.Record{Topic: names[i/64%topics], Partition: int32(i / 64 / topics % partitions), Value: compactedValue(uint64(i))}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	cl.Close()

	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	store, err := server.OpenStore(cfg.Stores["default"], 8)
	if err != nil {
		t.Fatal(err)
	}
	listed := func(prefix string) (keys []string, bytes int64) {
		t.Helper()
		err := store.List(t.Context(), prefix, "", func(i objstore.Info) error {
			keys, bytes = append(keys, i.Key), bytes+i.Size
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return keys, bytes
	}
	wal, walBytes := listed(diskless.WALPrefix)

	time.Sleep(2 * time.Second) // the last window, and its age
	killed := harness.StartSluice(t, "compact", "-c", file, "--once")
	eventually(t, "the compactor is in the middle", func() (bool, string) {
		data, _ := listed(segment.DataPrefix)
		return len(data) > 0, "no segment"
	})
	killed.Kill()
	windows, _ := listed(segment.WindowsPrefix)
	if ended, _ := killed.Ended(); !ended {
		t.Fatal("it lives")
	}
	meters := objstore.NewMeters(prometheus.NewRegistry())
	reg := prometheus.NewRegistry()
	limits := server.CompactionLimits(cfg.Compaction)
	limits.BytesPerSecond, limits.RequestsPerSecond, limits.ClaimTimeout = 0, 10_000, 2*time.Second
	opt := compactor.Options{
		Store: objstore.NewMetered(store, "default", meters), Name: "default", Retention: writer.Cluster().Retention, Limits: limits,
		Logger: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel), Metrics: compactor.NewMetrics(reg),
	}
	c := compactor.New(opt)
	eventually(t, "all is compacted", func() (bool, string) {
		if err := c.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := c.Progress()
		return p.Waiting == 0, fmt.Sprintf("%+v", p)
	})
	after, _ := listed(segment.WindowsPrefix)
	if len(after) == len(windows) {
		t.Error("nothing was left for the second compactor")
	}

	// What counts: the segments that a manifest names. The rest is the killed one's.
	var segmentBytes int64
	named, buckets := 0, map[segment.Bucket]bool{}
	for _, key := range after {
		w, ok := segment.ParseWindowKey(key)
		if !ok {
			t.Fatal(key)
		}
		m, err := segment.ReadManifest(t.Context(), store, w)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range m.Segments {
			segmentBytes, named = segmentBytes+s.Size, named+1
			buckets[s.Bucket] = true
		}
	}
	if len(buckets) < 2 || buckets[segment.Unknown] {
		t.Errorf("buckets %v: the cluster was not asked for retention.ms", buckets)
	}
	for _, key := range wal {
		if err := store.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}

	gb := float64(size) / 1e9
	t.Logf("%d partitions, %d MiB in %d WAL objects (%d bytes): %d windows, %d segments of %d bytes, %.4f of the WAL objects'; %.0f PUTs and %.0f GETs per GB compacted",
		topics*partitions, size>>20, len(wal), walBytes, len(after), named, segmentBytes, float64(segmentBytes)/float64(walBytes),
		float64(named+len(after))/gb, float64(len(wal))/gb)
	replay := func() {
		t.Helper()
		cold := r
		cold.Port = harness.Ports(t, replicaPorts)
		reader := startSluice(t, cold)
		started := time.Now()
		seen := make([]bool, records)
		for _, rec := range consumed(t, reader.Bootstrap, records, []kgo.Opt{kgo.FetchMaxBytes(32 << 20)}, names...) {
			if len(rec.Value) != compactedRecord {
				t.Fatalf("%d bytes", len(rec.Value))
			}
			id := binary.BigEndian.Uint64(rec.Value)
			if id >= uint64(records) || seen[id] || !bytes.Equal(rec.Value, compactedValue(id)) {
				t.Fatalf("%s-%d at %d: record %d is wrong, or came twice", rec.Topic, rec.Partition, rec.Offset, id)
			}
			seen[id] = true
		}
		took := time.Since(started)
		for id, ok := range seen {
			if !ok {
				t.Fatalf("record %d is missing", id)
			}
		}
		if n := reader.metric(t, "sluice_diskless_segment_fallbacks_total"); n > 0 {
			t.Errorf("%v times a segment did not do", n)
		}
		gets, lookups := reader.metric(t, "sluice_diskless_chunk_gets_total"), reader.metric(t, "sluice_diskless_segment_lookups_total")
		read := reader.metric(t, "sluice_objstore_bytes_total", "op", "get")
		hydrated := reader.metric(t, "sluice_diskless_hydrated_bytes_total")
		t.Logf("replay in %v: %.0f GETs of payload and %.0f lookups per GB; %.3f bytes read for a byte given", took.Round(time.Millisecond), gets/gb, lookups/gb, read/hydrated)
		if ratio := read / hydrated; ratio > 1.15 {
			t.Errorf("a replay read each byte %.2f times", ratio)
		}
		if merge == 0 {
			return
		}
		// One partition by itself.
		cold.Port = harness.Ports(t, replicaPorts)
		reader = startSluice(t, cold)
		one := client(t, reader.Bootstrap, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{names[0]: {0: kgo.NewOffset().AtStart()}}), kgo.FetchIsolationLevel(kgo.ReadUncommitted()))
		for got, want := 0, records/topics/partitions; got < want-64; {
			f := one.PollFetches(t.Context())
			if err := f.Err(); err != nil {
				t.Fatal(err)
			}
			got += f.NumRecords()
		}
		t.Logf("one partition of %d: %.0f GETs of payload, %.0f lookups; %.2f bytes read for a byte given", topics*partitions,
			reader.metric(t, "sluice_diskless_chunk_gets_total"), reader.metric(t, "sluice_diskless_segment_lookups_total"),
			reader.metric(t, "sluice_objstore_bytes_total", "op", "get")/reader.metric(t, "sluice_diskless_hydrated_bytes_total"))
	}
	replay()
	if merge == 0 {
		return
	}
	time.Sleep(merge) // the last slice of time
	opt.Limits.Merge = merge
	recording := &counted{Store: store}
	opt.Store = recording
	opt.Metrics = nil
	c = compactor.New(opt)
	before := cpuSeconds(t)
	if err := c.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	cpu := cpuSeconds(t) - before
	p := c.Progress()
	mergedGB := float64(p.Read) / 1e9
	t.Logf("%d windows merged, %.0f %% of the bytes: %.0f GETs, %.0f PUTs and %.2f CPU s (of this process) for a GB", p.Merged, 100*float64(p.Read)/float64(size), float64(recording.gets.Load())/mergedGB, float64(recording.puts.Load())/mergedGB, cpu/mergedGB)
	collector := gc.New(gc.Options{Name: "test", Store: store, Kafka: writer.Cluster(), Timing: hasty, MinAge: time.Second, DeletesPerSecond: 10_000, Logger: zerolog.New(zerolog.NewTestWriter(t))})
	eventually(t, "what was merged is collected", func() (bool, string) {
		if _, err := collector.Pass(t.Context()); err != nil {
			return false, err.Error()
		}
		left, _ := listed(segment.LevelPrefix(segment.Level1))
		return len(left) <= len(after)-p.Merged, fmt.Sprintf("%d windows of level 1 of %d, %d merged", len(left), len(after), p.Merged)
	})
	replay()
	fsckOf(t, 0, "-c", file, "--rate", "0", "--fetches", "0")
	mended := fsckOf(t, 0, "-c", file, "--rate", "0", "--fetches", "0", "--repair", "--dry-run")
	if len(mended.Fixes) > 0 {
		t.Errorf("a repair would %+v", mended.Fixes)
	}
}

// counted counts requests.
type counted struct {
	objstore.Store
	gets, puts atomic.Int64
}

func (c *counted) Get(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	c.gets.Add(1)
	return c.Store.Get(ctx, key, offset, length)
}

func (c *counted) Put(ctx context.Context, key string, body []byte) error {
	c.puts.Add(1)
	return c.Store.Put(ctx, key, body)
}

func (c *counted) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	c.puts.Add(1)
	return c.Store.PutIfAbsent(ctx, key, body)
}

// cpuSeconds is what this process has used.
func cpuSeconds(t *testing.T) float64 {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
