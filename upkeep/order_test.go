package upkeep

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// payloadReads sums the GETs of payload in a transcript, and their bytes.
func payloadReads(t *testing.T, transcript string) (gets int, bytes int64) {
	t.Helper()
	for line := range strings.Lines(transcript) {
		if !strings.HasPrefix(line, "get wal/") && !strings.HasPrefix(line, "get segments/data/") {
			continue
		}
		fields := strings.Fields(line) // get KEY [FROM, +LENGTH) N bytes: OUTCOME
		n, err := strconv.ParseInt(fields[4], 10, 64)
		if err != nil {
			t.Fatal(line)
		}
		gets, bytes = gets+1, bytes+n
	}
	return gets, bytes
}

// Segments hold each partition's batches of many objects: they are read once all
// the same, by a run that has memory for a part of a window only, and by one that
// is made of many rounds; and a sample reads little more than the sample.
func TestFsckReadsSegmentsOnce(t *testing.T) {
	const partitions, batches, batch = 32, 48, 16 << 10 // more than the cache below
	segmentsReadOnce(t, partitions, batches, batch, 2*time.Second, 16<<20, []orderRun{
		{"whole", FsckOptions{}, 1.5, 4000},
		{"in many rounds", FsckOptions{round: 4 << 20}, 1.5, 20_000},
		{"a sample", FsckOptions{Sample: 25}, 2, 100_000},
	})
}

type orderRun struct {
	name string
	opt  FsckOptions
	most float64 // bytes read for each that is checked
	gets float64 // for a GB
}

func segmentsReadOnce(t *testing.T, partitions, batches, batch int, window time.Duration, cache int64, runs []orderRun) {
	r := newRig(t, kfake.SeedTopics(int32(partitions), "otel-a"))
	random := rand.NewChaCha8([32]byte{1})
	for range batches {
		for p := range partitions {
			value := make([]byte, batch)
			_, _ = random.Read(value)
			r.proxied.Produce(t.Context(), &kgo.Record{Topic: "otel-a", Partition: int32(p), Value: value}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
		}
		if err := r.proxied.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Until(time.Now().Truncate(window).Add(window + 100*time.Millisecond)))
	file, err := objstore.OpenFile(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	limits := compactor.Limits{Window: window, MinAge: time.Millisecond, RequestsPerSecond: 1 << 20, MemoryBytes: 2 << 30}
	if err := compactor.New(compactor.Options{Store: file, Name: "default", Limits: limits, Logger: zerolog.Nop()}).Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, run := range runs {
		a, store := r.access()
		a, err := newAccess(a.Cluster, a.Stores, diskless.Limits{CacheBytes: cache, GetTimeout: getTimeout, SegmentAge: time.Nanosecond})
		if err != nil {
			t.Fatal(err)
		}
		before := len(store.Transcript())
		report, err := a.Fsck(t.Context(), run.opt)
		if err != nil || len(report.Damage) > 0 || report.Batches != int64(partitions*batches) || report.Checked == 0 {
			t.Fatalf("%s: %v: %+v", run.name, err, report)
		}
		calls := store.Transcript()[before:]
		gets, bytes := payloadReads(t, calls)
		ratio, perGB := float64(bytes)/float64(report.Bytes), float64(gets)/(float64(report.Bytes)/1e9)
		said := fmt.Sprintf("%s: %d partitions, %d MiB checked: %.3f bytes read for each, %.0f GETs for a GB", run.name, partitions, report.Bytes>>20, ratio, perGB)
		t.Log(said)
		if ratio > run.most || perGB > run.gets || strings.Contains(calls, "get wal/") {
			t.Error(said)
		}
	}
}
