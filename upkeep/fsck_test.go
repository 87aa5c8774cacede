package upkeep

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// What can be read is found to be so, with one GET for each object, however many
// partitions share it.
func TestFsckOfWhatIsWell(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(6, "otel-a", "otel-b"), kfake.SeedTopics(1, "plain"))
	const rounds, records = 8, 5
	for range rounds {
		for p := range int32(6) {
			r.write(r.proxied, "otel-a", p, records)
			r.write(r.proxied, "otel-b", p, records)
		}
		r.write(r.proxied, "plain", 0, records)
		r.write(r.direct, "otel-a", 3, 1) // the log holds both kinds
	}
	a, store := r.access()
	before := len(store.Transcript())
	report, err := a.Fsck(t.Context(), FsckOptions{Orphans: true})
	if err != nil || len(report.Damage) > 0 || len(report.Unlooked) > 0 {
		t.Fatalf("%v: %+v", err, report)
	}
	const placeholders = 2 * 6 * rounds
	if report.Placeholders != placeholders || report.Checked != placeholders || report.Records != placeholders*records || report.Batches != placeholders+2*rounds {
		t.Errorf("counted %+v", report.Counts)
	}
	objects, err := os.ReadDir(filepath.Join(r.dir, "wal"))
	if err != nil {
		t.Fatal(err)
	}
	calls := store.Transcript()[before:]
	if n := strings.Count(calls, "get wal/"); n != len(objects) {
		t.Errorf("%d GETs of %d objects:\n%s", n, len(objects), calls)
	}
	if s := report.Stores[0]; s.Referenced != int64(len(objects)) || s.Orphans != 0 || s.Young != 0 || s.Unknown != 0 {
		t.Errorf("the store holds %+v", s)
	}
	some, err := a.Fsck(t.Context(), FsckOptions{Sample: 30, Patterns: compiled(t, "otel-a")})
	if err != nil || some.Placeholders != placeholders/2 || some.Checked == 0 || some.Checked >= some.Placeholders || len(some.Topics) != 1 {
		t.Errorf("%v: a sample of one topic: %+v", err, some)
	}
	if _, err := a.Fsck(t.Context(), FsckOptions{Patterns: compiled(t, "otel-c")}); err == nil || !strings.Contains(err.Error(), "no topic matches \"otel-c\"") {
		t.Error(err)
	}
}

// spoil does one of everything that can go wrong, to a topic of its own, and
// returns what has to be found.
func spoil(t *testing.T, r *rig) (want []Damage) {
	t.Helper()
	for range 6 {
		r.write(r.proxied, "otel-bad", 0, 4)
		time.Sleep(40 * time.Millisecond) // an object each
	}
	a, _ := r.access()
	b := r.batches(a, "otel-bad", 0)
	missing, _ := r.file(b[1])
	short, ref := r.file(b[2])
	garbled, garbledRef := r.file(b[4])
	next, nextRef := r.file(b[5])
	if missing == short || garbled == next || short == garbled {
		t.Fatal("batches share an object")
	}
	if err := os.Remove(missing); err != nil {
		t.Fatal(err)
	}
	r.change(short, func(b []byte) []byte { return b[:ref.Offset+uint64(ref.Length)-1] })
	r.change(garbled, func(b []byte) []byte { b[garbledRef.Offset+100] ^= 1; return b })
	r.change(next, func(b []byte) []byte { b[nextRef.Offset+200] ^= 1; return b })
	copied := r.plant("otel-bad", 0, append(wire.Batch(nil), r.batches(a, "otel-good", 0)[0]...))
	forged := append(wire.Batch(nil), b[0]...)
	at := strings.Index(string(forged), placeholder.HeaderKey) + len(placeholder.HeaderKey) + 1
	forged[at+2] ^= 1
	unknown := r.raw("otel-bad", 0, freed(forged))
	later := append(wire.Batch(nil), b[0]...)
	later[at] = 9
	version := r.raw("otel-bad", 0, freed(later))
	r.write(r.proxied, "otel-bad", 0, 4)
	return []Damage{
		{First: 4, Last: 7, Placeholders: 1, Records: 4, Kind: Missing, ObjectCount: 1},
		{First: 8, Last: 11, Placeholders: 1, Records: 4, Kind: Truncated, ObjectCount: 1},
		{First: 16, Last: 23, Placeholders: 2, Records: 8, Kind: Garbled, ObjectCount: 2},
		{First: copied, Last: copied + 3, Placeholders: 1, Records: 4, Kind: WrongSignature},
		{First: unknown, Last: unknown + 3, Placeholders: 1, Records: 4, Kind: UnknownKey},
		{First: version, Last: version + 3, Placeholders: 1, Records: 4, Kind: BadReference},
	}
}

// freed makes a batch nobody's.
func freed(b wire.Batch) wire.Batch {
	b.SetProducerID(-1)
	b.SetProducerEpoch(-1)
	b.SetBaseSequence(-1)
	b.SetCRC(b.ComputeCRC())
	return b
}

func compare(t *testing.T, got, want []Damage) {
	t.Helper()
	for i, g := range got {
		if g.Topic != "otel-bad" || g.Partition != 0 || g.Remedy == "" || g.Detail == "" || (g.Store != "") != (g.ObjectCount > 0) || len(g.Objects) != g.ObjectCount {
			t.Errorf("it is described as %+v", g)
		}
		g.Topic, g.Remedy, g.Detail, g.Store, g.Objects = "", "", "", "", nil
		if i >= len(want) {
			t.Errorf("found beyond what is wrong: %+v", g)
			continue
		}
		w := want[i]
		if g.First != w.First || g.Last != w.Last || g.Kind != w.Kind || g.Placeholders != w.Placeholders || g.Records != w.Records || g.ObjectCount != w.ObjectCount {
			t.Errorf("found %+v\nwant  %+v", g, w)
		}
	}
	if len(got) < len(want) {
		t.Errorf("found %d of %d", len(got), len(want))
	}
}

func TestFsckNamesWhatIsDamaged(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(2, "otel-good"), kfake.SeedTopics(1, "otel-bad"))
	r.write(r.proxied, "otel-good", 0, 4)
	r.write(r.proxied, "otel-good", 1, 4)
	want := spoil(t, r)
	a, _ := r.access()
	report, err := a.Fsck(t.Context(), FsckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, report.Damage, want)
	if report.Placeholders != 2+7+3 {
		t.Errorf("%d placeholders", report.Placeholders)
	}
	cold, _ := r.access()
	object, _ := r.file(r.batches(cold, "otel-good", 0)[0])
	key := "wal/" + filepath.Base(object)
	// One object that the store does not give.
	r.faulty.Decide(func(_ objstore.Op, k string) objstore.Fault {
		if k == key {
			return objstore.Fault{Err: objstore.ErrUnavailable}
		}
		return objstore.Fault{}
	})
	report, err = cold.Fsck(t.Context(), FsckOptions{Patterns: compiled(t, "otel-good")})
	if err != nil || len(report.Damage) == 0 || report.Damage[0].Kind != Unavailable || report.Damage[0].Objects[0] != key {
		t.Errorf("without an object: %v, %+v", err, report)
	}
	a, _ = r.access()
	r.faulty.Down(true)
	report, err = a.Fsck(t.Context(), FsckOptions{Patterns: compiled(t, "otel-good")})
	if !errors.Is(err, ErrStopped) || len(report.Damage) > 0 || report.Stopped == "" {
		t.Errorf("without a store: %v, %+v", err, report)
	}
}

// A run that is interrupted goes on where it was, and finds the same.
func TestFsckResumes(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(3, "otel-good"), kfake.SeedTopics(1, "otel-bad"))
	for range 20 {
		for p := range int32(3) {
			r.write(r.proxied, "otel-good", p, 4)
		}
	}
	want := spoil(t, r)
	for _, orphans := range []bool{false, true} {
		a, _ := r.access()
		whole, err := a.Fsck(t.Context(), FsckOptions{Orphans: orphans})
		if err != nil {
			t.Fatal(err)
		}
		compare(t, whole.Damage, want)
		state := filepath.Join(t.TempDir(), "state")
		var report *FsckReport
		runs := 0
		for range 100 {
			runs++
			a, _ := r.access() // with a cold cache
			ctx, cancel := context.WithCancel(t.Context())
			report, err = a.Fsck(ctx, FsckOptions{State: state, Orphans: orphans, round: 12 << 10, afterRound: func(rounds int) {
				if rounds == 2*runs {
					cancel()
				}
			}})
			cancel()
			if err == nil {
				break
			}
			if !errors.Is(err, ErrStopped) || !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if _, err := os.Stat(state); err != nil {
				t.Fatal(err)
			}
		}
		if runs < 3 || err != nil {
			t.Fatalf("after %d runs: %v", runs, err)
		}
		compare(t, report.Damage, want)
		if report.Counts != whole.Counts {
			t.Errorf("counted %+v\nin one  %+v", report.Counts, whole.Counts)
		}
		if orphans && report.Stores[0].Referenced != whole.Stores[0].Referenced {
			t.Errorf("the store is %+v\nin one       %+v", report.Stores, whole.Stores)
		}
		if _, err := os.Stat(state); !os.IsNotExist(err) {
			t.Errorf("the state of a whole run is kept: %v", err)
		}
	}
}

func TestFsckRefusesAnotherRunsState(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(1, "otel-a"))
	r.write(r.proxied, "otel-a", 0, 2)
	a, _ := r.access()
	state := filepath.Join(t.TempDir(), "state")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Fsck(ctx, FsckOptions{State: state}); err == nil {
		t.Fatal("it ran")
	}
	if err := os.WriteFile(state, []byte(`{"version":1,"cluster_id":"other"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Fsck(t.Context(), FsckOptions{State: state}); err == nil || !strings.Contains(err.Error(), "is of another run") {
		t.Error(err)
	}
	if err := os.WriteFile(state, []byte(`{`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Fsck(t.Context(), FsckOptions{State: state}); err == nil || !strings.Contains(err.Error(), "name another file") {
		t.Error(err)
	}
}

// What nothing refers to is named when it is old enough, and so is what is not
// sluice's.
func TestFsckListsOrphans(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(1, "otel-a"))
	r.write(r.proxied, "otel-a", 0, 2)
	a, _ := r.access()
	object, _ := r.file(r.batches(a, "otel-a", 0)[0])
	content, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	add := func(name string, content []byte, modified time.Time) {
		t.Helper()
		path := filepath.Join(r.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, modified, modified); err != nil {
			t.Fatal(err)
		}
	}
	add("wal/01ARZ3NDEKTSV4RRFFQ69G5FAV", content, old)
	add("wal/01ARZ3NDEKTSV4RRFFQ69G5FAW", content[:len(content)-1], old)
	add("audit/wal/01ARZ3NDEKTSV4RRFFQ69G5FAX", content, old)
	add("wal/01ARZ3NDEKTSV4RRFFQ69G5FAY", content, time.Now())
	add("wal/notes.txt", []byte("mine"), old)
	report, err := a.Fsck(t.Context(), FsckOptions{Orphans: true})
	if err != nil || len(report.Damage) > 0 {
		t.Fatal(err, report.Damage)
	}
	s := report.Stores[0]
	if s.Objects != 5 || s.Referenced != 1 || s.Young != 1 || s.Orphans != 3 || s.Garbled != 1 || s.Audit != 1 || s.Unknown != 1 || s.UnknownList[0] != "wal/notes.txt" {
		t.Errorf("the store holds %+v", s)
	}
	if o := s.OrphanList[1]; o.Batches != 1 || len(o.Topics) != 1 || o.Topics[0] != "otel-a" || !strings.HasPrefix(o.Key, "wal/") {
		t.Errorf("an orphan is %+v", o)
	}
}

// Who sees no topic has not seen that all is well.
func TestFsckOfNothingIsNoProof(t *testing.T) {
	r := newRig(t)
	a, _ := r.access()
	for _, orphans := range []bool{false, true} {
		if report, err := a.Fsck(t.Context(), FsckOptions{Orphans: orphans}); err == nil || report != nil || !strings.Contains(err.Error(), "no topic that this principal may see") {
			t.Errorf("%v: %+v", err, report)
		}
	}
}
