package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/server"
)

func TestCompactedDataReadsBack(t *testing.T) {
	compactedDataReadsBack(t, 3, 8, 24<<20)
}

func TestLongCompactedDataOfAThousandPartitionsReadsBack(t *testing.T) {
	harness.Long(t)
	compactedDataReadsBack(t, 10, 100, 256<<20)
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
// through a replica that has nothing in memory.
func compactedDataReadsBack(t *testing.T, topics, partitions, size int) {
	k := sharedKafka(t)
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
	c := compactor.New(compactor.Options{
		Store: objstore.NewMetered(store, "default", meters), Name: "default", Retention: writer.Cluster().Retention, Limits: limits,
		Logger: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel), Metrics: compactor.NewMetrics(reg),
	})
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
	gb := float64(size) / 1e9
	t.Logf("%d partitions, %d MiB in %d WAL objects (%d bytes): %d windows, %d segments of %d bytes, %.4f of the WAL objects'; %.0f PUTs and %.0f GETs per GB compacted",
		topics*partitions, size>>20, len(wal), walBytes, len(after), named, segmentBytes, float64(segmentBytes)/float64(walBytes),
		float64(named+len(after))/gb, float64(len(wal))/gb)
	t.Logf("replay in %v: %.0f GETs of payload and %.0f lookups per GB; %.3f bytes read for a byte given", took.Round(time.Millisecond), gets/gb, lookups/gb, read/hydrated)
	if ratio := read / hydrated; ratio > 1.15 {
		t.Errorf("a replay read each byte %.2f times", ratio)
	}
}
