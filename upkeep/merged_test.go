package upkeep

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/diskless/gc"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/tiers"
)

// allKept is a cluster whose logs hold all that was ever written to them.
type allKept struct {
	id     string
	topics []string
}

func (k allKept) ClusterID() string { return k.id }
func (k allKept) Survey(context.Context, []string) (tiers.Survey, error) {
	s := tiers.Survey{Brokers: []int32{1}, Topics: map[string]tiers.TopicView{}}
	for i, name := range k.topics {
		view := tiers.TopicView{ID: [16]byte{byte(i + 1)}}
		for range 6 {
			view.Partitions = append(view.Partitions, tiers.LogView{Leader: 1, InSync: true, End: 1000})
		}
		s.Topics[name] = view
	}
	return s, nil
}
func (k allKept) Lineage(context.Context, []tiers.EpochQuestion) (map[tiers.TopicPartition]bool, error) {
	return nil, nil
}

// What was merged, and collected, is all there: every placeholder is resolved out of
// level 2, and nothing is called an orphan or damaged.
func TestFsckOfWhatWasMerged(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(6, "otel-a", "otel-b"))
	const rounds, records = 6, 5
	for range rounds {
		for p := range int32(6) {
			r.write(r.proxied, "otel-a", p, records)
			r.write(r.proxied, "otel-b", p, records)
		}
	}
	a, store := r.access()
	time.Sleep(time.Second) // the last slice of time
	c := compactor.New(compactor.Options{Store: store, Name: "default", Limits: compactor.Limits{MinAge: time.Millisecond, Window: 100 * time.Millisecond, Merge: time.Second, RequestsPerSecond: 1 << 20}, Logger: zerolog.Nop()})
	if err := c.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Progress().Merged < 2 {
		t.Fatalf("%d windows were merged", c.Progress().Merged)
	}
	listed := func(prefix string) (n int) {
		if err := store.List(t.Context(), prefix, "", func(objstore.Info) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	one := listed(segment.LevelPrefix(segment.Level1))
	collector := gc.New(gc.Options{
		Name: "default", Store: store, Kafka: allKept{a.Cluster.ClusterID(), []string{"otel-a", "otel-b"}}, MinAge: time.Millisecond,
		Timing: gc.Timing{Margin: time.Hour, Grace: time.Millisecond, Apart: time.Millisecond, Missed: time.Hour}, Logger: zerolog.Nop(),
	})
	for range 3 {
		time.Sleep(10 * time.Millisecond)
		if _, err := collector.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if left, wal := listed(segment.LevelPrefix(segment.Level1)), listed(diskless.WALPrefix); left != one-c.Progress().Merged || wal > 0 {
		t.Errorf("of %d windows, %d of which were merged, %d are left; and %d WAL objects", one, c.Progress().Merged, left, wal)
	}
	before := len(store.Transcript())
	report, err := a.Fsck(t.Context(), FsckOptions{Orphans: true})
	if err != nil || len(report.Damage) > 0 || len(report.Unlooked) > 0 || report.Checked != 2*6*rounds {
		t.Fatalf("%v: %+v", err, report)
	}
	if s := report.Stores[0]; s.UnnamedSegments != 0 || s.GoneSegments != 0 || len(s.BadWindows) > 0 || s.Orphans != 0 || s.Unknown != 0 {
		t.Errorf("the store holds %+v", s)
	}
	if !strings.Contains(store.Transcript()[before:], "get "+segment.LevelPrefix(segment.Level2)) {
		t.Error("nothing was looked for in level 2")
	}
	fixes, err := a.Repair(t.Context(), RepairOptions{leftOver: time.Nanosecond})
	if err != nil || len(fixes) > 0 {
		t.Errorf("a repair: %+v, %v", fixes, err)
	}
}

// A collector dies at each of its requests in turn: whatever it has deleted of what was
// merged, all can be read, and a repair finds nothing wrong. The next one goes on.
func TestCollectorOfMergedWindowsDiesAnywhere(t *testing.T) {
	timing := gc.Timing{Margin: time.Hour, Grace: time.Millisecond, Apart: time.Millisecond, Missed: time.Hour}
	other := objstore.NewMemory()
	if _, err := keyring.Open(t.Context(), other, "cluster", keyring.Options{}); err != nil {
		t.Fatal(err)
	}
	marker, err := other.Get(t.Context(), keyring.MarkerKey, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	partly, n := 0, 0
	for done := false; !done; n += 3 {
		s := newMerged(t, rand.New(rand.NewPCG(5, 6)), 12, time.Hour)
		s.put(keyring.MarkerKey, marker)
		one := len(s.keys(segment.LevelPrefix(segment.Level1)))
		data := len(s.keys(segment.DataPrefix))
		faulty := objstore.NewFaulty(s.store)
		asked := 0
		var mu sync.Mutex
		collect := func() error {
			time.Sleep(2 * time.Millisecond)
			_, err := gc.New(gc.Options{
				Name: "default", Store: faulty, Kafka: allKept{"cluster", []string{"otel-0", "otel-1", "otel-2"}}, MinAge: time.Millisecond, Timing: timing,
				DeletesPerSecond: 100_000, Logger: zerolog.Nop(), Concurrency: 1,
			}).Pass(t.Context())
			return err
		}
		faulty.Decide(func(objstore.Op, string) objstore.Fault {
			mu.Lock()
			defer mu.Unlock()
			if asked++; asked > n {
				return objstore.Fault{Err: objstore.ErrUnavailable}
			}
			return objstore.Fault{}
		})
		_ = collect()
		done = asked <= n
		if left := len(s.keys(segment.DataPrefix)); left < data && !done {
			partly++
		}
		check := func(when string) {
			t.Helper()
			if slices.Contains(s.readable(), false) {
				t.Fatalf("%s, after %d requests: something cannot be read", when, n)
			}
			if fixes := s.repair(RepairOptions{}); len(fixes) > 0 {
				t.Fatalf("%s, after %d requests: a repair would %+v", when, n, fixes)
			}
		}
		check("killed")
		faulty.Decide(nil)
		for range 3 {
			if err := collect(); err != nil {
				t.Fatal(err)
			}
		}
		check("collected")
		if left, wal := len(s.keys(segment.LevelPrefix(segment.Level1))), s.keys(diskless.WALPrefix); left == one || len(wal) > 0 {
			t.Fatalf("after %d requests: %d of %d windows of level 1 and %d WAL objects are left", n, left, one, len(wal))
		}
	}
	if partly < 5 {
		t.Errorf("of %d kills, %d were between deletions", n, partly)
	}
}
