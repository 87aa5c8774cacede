package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// A topic that is larger than the cache in memory is replayed from a real store
// once, and from the local disk from then on: also while the store is down, after
// files were damaged, and after the folder was deleted.
func TestLongDiskCacheReplays(t *testing.T) {
	harness.Long(t)
	k := sharedKafka(t)
	s3 := harness.StartS3(t)
	const topic, partitions, records = "disk-telemetry", 3, 4 << 20 / (2 << 10)
	r := replica{Kafka: k.Bootstrap(), Store: s3Store(s3, "disk")}.withDefaults(t)
	writer := startSluice(t, r)
	createTopic(t, writer.Bootstrap, topic, partitions)
	h := history.New()
	for p := range int32(partitions) {
		for range 2 {
			writeOnce(t, h, writer.Bootstrap, topic, p, records, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedRecords(records))
		}
	}

	dir := t.TempDir()
	cold := r
	cold.Port = harness.Ports(t, replicaPorts)
	cold.Extra += fmt.Sprintf("limits: { cache_bytes: 16MiB }\ndisk_cache: { path: %q, bytes: 256MiB }\n", dir)
	s := startSluice(t, cold)
	eventually(t, "the disk is used", func() (bool, string) { return s.metric(t, "sluice_diskless_disk_cache_up") == 1, "it is not" })
	n := 0
	replay := func(what string) (gets, hits float64) {
		t.Helper()
		n++
		gets, hits = s.metric(t, "sluice_diskless_chunk_gets_total"), s.metric(t, "sluice_diskless_disk_cache_hits_total")
		readAll(t, h, fmt.Sprintf("replay %d, %s", n, what), s.Bootstrap, bootstrapOf(k), topic)
		gets, hits = s.metric(t, "sluice_diskless_chunk_gets_total")-gets, s.metric(t, "sluice_diskless_disk_cache_hits_total")-hits
		t.Logf("replay %d, %s: %.0f GETs, %.0f chunks from the disk", n, what, gets, hits)
		return gets, hits
	}
	// What a busy disk has dropped is read once more.
	filled := func(what string) {
		t.Helper()
		for range 10 {
			dropped := s.metric(t, "sluice_diskless_disk_cache_dropped_total")
			gets, hits := replay(what)
			if gets == 0 && hits > 0 {
				return
			}
			if s.metric(t, "sluice_diskless_disk_cache_dropped_total") == dropped && n > 2 && gets > 0 {
				// All that was read was kept: the next replay needs nothing.
				if gets, hits = replay(what); gets > 0 || hits == 0 {
					t.Fatalf("%.0f GETs, %.0f chunks from the disk", gets, hits)
				}
				return
			}
		}
		t.Fatal("the disk never holds all of it")
	}
	if gets, _ := replay("of the store"); gets < 20 {
		t.Fatalf("%.0f GETs: memory holds it", gets)
	}
	filled("of the disk")
	s3.Stop()
	if gets, hits := replay("without the store"); gets > 0 || hits == 0 {
		t.Errorf("%.0f GETs, %.0f chunks from the disk", gets, hits)
	}
	s3.Start(t)

	files := 0
	folder := filepath.Join(dir, "sluice-disk-cache")
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		body, err := os.ReadFile(path)
		if err != nil || len(body) < 1000 {
			return err
		}
		files++
		body[len(body)/2] ^= 1
		return os.WriteFile(path, body, 0o600)
	})
	if err != nil || files < 20 {
		t.Fatalf("%d files, %v", files, err)
	}
	if gets, _ := replay("of damaged files"); gets == 0 || s.metric(t, "sluice_diskless_disk_cache_errors_total", "reason", "corrupt") == 0 {
		t.Errorf("%.0f GETs; nobody saw the damage", gets)
	}
	filled("of what replaced them")

	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if gets, _ := replay("without the folder"); gets == 0 {
		t.Error("it was read from somewhere")
	}
	replay("once more")
	if s.metric(t, "sluice_diskless_unreadable_references_total") > 0 {
		t.Error("a reader was refused")
	}
}
