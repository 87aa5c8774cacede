package upkeep

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/harness"
)

// crowd lists as many WAL objects, and segments of no manifest.
type crowd struct {
	objstore.Store
	n    int
	when time.Time
	kind func(id ulid.ULID) string
	note func()
}

func (s crowd) List(ctx context.Context, prefix, _ string, fn func(objstore.Info) error) error {
	if prefix != "" && prefix != segment.DataPrefix && prefix != diskless.WALPrefix {
		return nil
	}
	for i := range s.n {
		key := s.kind(numberedID(s.when, i))
		if len(key) < len(prefix) || key[:len(prefix)] != prefix {
			break
		}
		if err := fn(objstore.Info{Key: key, Size: 1, LastModified: s.when}); err != nil {
			return err
		}
	}
	s.note()
	return ctx.Err()
}

func numberedID(when time.Time, i int) ulid.ULID {
	id := ulid.ULID{14: byte(i >> 8), 15: byte(i)}
	_ = id.SetTime(ulid.Timestamp(when.Add(time.Duration(i) * time.Millisecond)))
	return id
}

// memoryOf is what fsck with --orphans, and --repair, have in use when they have
// seen n objects of a kind, bytes for each.
func memoryOf(tb testing.TB, n int, kind func(ulid.ULID) string) (fsckEach, repairEach float64) {
	s := crowd{Store: objstore.NewMemory(), n: n, when: time.Now().Add(-time.Hour), kind: kind}
	before, most := harness.Heap(), int64(0)
	s.note = func() { most = max(most, harness.Heap()) }
	c := &fsck{began: time.Now(), refs: map[objectID]struct{}{}}
	for i := range n {
		c.refs[objectID{"default", false, numberedID(s.when, i)}] = struct{}{}
	}
	if one, err := c.lookAtStore(tb.Context(), "default", s); err != nil || one.Referenced+one.Segments != int64(n) {
		tb.Fatalf("%+v: %v", one, err)
	}
	runtime.KeepAlive(c)
	fsckEach, c = float64(most-before)/float64(n), nil
	before, most = harness.Heap(), 0
	r := &repair{store: s}
	if err := r.list(tb.Context()); err != nil || len(r.wal)+len(r.segments) != n {
		tb.Fatal(len(r.wal), len(r.segments), err)
	}
	runtime.KeepAlive(r)
	return fsckEach, float64(most-before) / float64(n)
}

var kinds = map[string]func(ulid.ULID) string{
	"WAL objects": func(id ulid.ULID) string { return diskless.ObjectKey(id, false) },
	"segments":    func(id ulid.ULID) string { return segment.DataKey(id, 0) },
}

func TestMemoryOfAListing(t *testing.T) {
	for name, kind := range kinds {
		f, r := memoryOf(t, 50_000, kind)
		if f > 400 || r > 400 {
			t.Errorf("%s: fsck takes %.0f bytes of memory for each, its repair %.0f", name, f, r)
		}
	}
}

// go test -run='^$' -bench=MemoryOfAListing -benchtime=1000000x ./upkeep
func BenchmarkMemoryOfAListing(b *testing.B) {
	for name, kind := range kinds {
		b.Run(name, func(b *testing.B) {
			f, r := memoryOf(b, b.N, kind)
			b.ReportMetric(f, "B/object-fsck")
			b.ReportMetric(r, "B/object-repair")
		})
	}
}
