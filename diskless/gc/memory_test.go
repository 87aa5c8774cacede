package gc

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/harness"
)

// crowd lists WAL objects that are all alike, beside what is in the store, and
// notes what is in use when a pass begins, and when it has seen them.
type crowd struct {
	objstore.Store
	of      []ulid.ULID
	object  []byte
	written time.Time
	live    map[string]int64
}

func (s *crowd) List(ctx context.Context, prefix, after string, fn func(objstore.Info) error) error {
	if prefix != walPrefix || len(s.of) == 0 {
		if s.live[prefix] == 0 && (prefix == LeaseKey || prefix == walPrefix) {
			s.live[prefix] = harness.Heap() // at the beginning, and when all manifests were read
		}
		return s.Store.List(ctx, prefix, after, fn)
	}
	for _, id := range s.of {
		if err := fn(objstore.Info{Key: walPrefix + id.String(), Size: int64(len(s.object)), LastModified: s.written}); err != nil {
			return err
		}
	}
	s.live[prefix] = harness.Heap()
	return nil
}

func (s *crowd) Get(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	if strings.HasPrefix(key, walPrefix) && len(s.of) > 0 {
		return s.object[offset:], nil
	}
	return s.Store.Get(ctx, key, offset, length)
}

func ids(from time.Time, n int, apart time.Duration) []ulid.ULID {
	out := make([]ulid.ULID, n)
	for i := range out {
		out[i] = ulid.MustNew(ulid.Timestamp(from.Add(time.Duration(i)*apart)), ulid.DefaultEntropy())
	}
	return out
}

// memoryOfObjects is what a pass has in use when it has seen n WAL objects that a
// log still refers to.
func memoryOfObjects(tb testing.TB, r *rig, n int) int64 {
	at := time.Now().Add(-48 * time.Hour)
	s := &crowd{Store: r.store, of: ids(at, n, time.Millisecond), object: walObject("kept"), written: at, live: map[string]int64{}}
	r.opt.Store, r.opt.Explain = s, nil
	of := s.of
	s.of = nil
	r.passes(3)
	r.retain("other") // else all are too young to be read
	r.passes(3)
	s.of = of
	c := New(r.opt)
	report, err := c.Pass(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	if kept := report.Found[Retained].Objects; kept < int64(n) || report.Deleted.Objects != 0 || report.Requests.Gets < int64(n) {
		tb.Fatalf("%+v", report)
	}
	defer runtime.KeepAlive(c)
	return s.live[walPrefix] - s.live[LeaseKey]
}

// memoryOfWindows is the same for n manifests, each of which covers so many WAL
// objects that are gone.
func memoryOfWindows(tb testing.TB, r *rig, n, covered int) int64 {
	at := time.Now().Add(-time.Duration(n+24) * time.Hour).UTC().Truncate(time.Hour)
	for w := range n {
		m := &segment.Manifest{Level: segment.Level1, Run: ulid.MustNew(ulid.Timestamp(at), ulid.DefaultEntropy())}
		from := at.Add(time.Duration(w) * time.Hour)
		for _, id := range ids(from, covered, 10*time.Millisecond) {
			m.Objects = append(m.Objects, segment.Object{ID: id, Size: 1})
		}
		body, err := segment.AppendFooter(make([]byte, 5), []segment.Entry{{Topic: "kept", Object: m.Objects[0].ID, Length: 5, Records: 1}})
		if err != nil {
			tb.Fatal(err)
		}
		p := segment.Place{Topic: "kept"}
		m.Segments = []segment.Info{{Size: int64(len(body)), FooterSize: int64(len(body) - 5), Batches: 1, First: p, Last: p}}
		manifest, err := m.Encode()
		if err != nil {
			tb.Fatal(err)
		}
		for key, b := range map[string][]byte{m.Key(0): body, m.Window().Key(): manifest} {
			if err := r.store.Put(tb.Context(), key, b); err != nil {
				tb.Fatal(err)
			}
			r.store.aged[key] = from.Add(2 * time.Hour)
		}
	}
	s := &crowd{Store: r.store, live: map[string]int64{}}
	r.opt.Store, r.opt.Explain = s, nil
	report, err := New(r.opt).Pass(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	if report.Listed.Objects < int64(2*n) || report.Deleted.Objects != 0 {
		tb.Fatalf("%+v", report)
	}
	return s.live[walPrefix] - s.live[LeaseKey]
}

// A replica collects garbage in what memory it has, beside its clients. What a pass
// needs must follow from what is in the store, and not from what ever was.
func TestMemoryOfAPass(t *testing.T) {
	if got := memoryOfObjects(t, newRig(t), 50_000); got > 50_000*128 {
		t.Errorf("%d bytes of memory for each WAL object", got/50_000)
	}
	const windows, covered = 60, 5_000
	if got := memoryOfWindows(t, newRig(t), windows, covered); got > windows*covered*6 {
		t.Errorf("%d bytes of memory for %d windows, %.1f for each WAL object that they cover, all of which are gone", got, windows, float64(got)/(windows*covered))
	}
}

// go test -run='^$' -bench=MemoryOfAPass -benchtime=1000000x ./diskless/gc
func BenchmarkMemoryOfAPass(b *testing.B) {
	b.Run("WAL objects", func(b *testing.B) {
		r := newRig(b)
		b.ReportMetric(float64(memoryOfObjects(b, r, b.N))/float64(b.N), "B/object")
	})
	b.Run("windows", func(b *testing.B) {
		windows := max(1, b.N/1000)
		b.ReportMetric(float64(memoryOfWindows(b, newRig(b), windows, 1000))/float64(windows), "B/window")
	})
}
