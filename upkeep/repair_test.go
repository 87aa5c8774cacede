package upkeep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/diskless/gc"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// stored is a store with compacted WAL objects, and all batches that were written.
type stored struct {
	t       testing.TB
	store   *objstore.Memory
	batches []segment.Entry
	wal     []string
	merge   time.Duration
}

func newStored(t testing.TB, r *rand.Rand, objects int) *stored {
	t.Helper()
	return newMerged(t, r, objects, 0)
}

// newMerged merges the windows of so long a time, too.
func newMerged(t testing.TB, r *rand.Rand, objects int, merge time.Duration) *stored {
	t.Helper()
	s := &stored{t: t, store: objstore.NewMemory(), merge: merge}
	began := time.Now().Add(-3 * time.Hour).Truncate(time.Hour) // windows hold the same whenever it runs
	for n := range objects {
		id := ulid.MustNew(ulid.Timestamp(began.Add(time.Duration(n)*3*time.Minute)), ulid.DefaultEntropy())
		var body []byte
		var entries []diskless.Entry
		for range 3 + r.IntN(6) {
			b := encode([]record{{when: 1, value: fmt.Appendf(nil, "%0*d", 100+r.IntN(4000), r.Uint64())}}, wire.CodecNone)
			owned(b, -1, -1, -1)
			e := diskless.Entry{Topic: fmt.Sprintf("otel-%d", r.IntN(3)), Partition: r.Int32N(3), Offset: uint64(len(body)), Length: uint32(len(b)), Records: 1,
				ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, CRC: b.CRC()}
			entries, body = append(entries, e), append(body, b...)
			s.batches = append(s.batches, segment.Entry{Topic: e.Topic, Partition: e.Partition, Object: id, ObjectOffset: e.Offset, Length: e.Length, CRC: e.CRC})
		}
		s.wal = append(s.wal, diskless.ObjectKey(id, false))
		s.put(s.wal[n], diskless.BuildObject(body, entries))
	}
	if err := s.store.Put(t.Context(), diskless.ObjectKey(ulid.Make(), true), []byte("locked, and garbled")); err != nil {
		t.Fatal(err)
	}
	s.compact()
	return s
}

func (s *stored) compact() {
	s.t.Helper()
	c := compactor.New(compactor.Options{Store: s.store, Name: "default", Limits: compactor.Limits{SegmentBytes: 8 << 10, Merge: s.merge, RequestsPerSecond: 1 << 20}, Logger: zerolog.Nop()})
	if err := c.Pass(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stored) put(key string, body []byte) {
	s.t.Helper()
	if err := s.store.Put(s.t.Context(), key, body); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stored) get(key string) []byte {
	b, _ := s.store.Get(s.t.Context(), key, 0, -1)
	return b
}

func (s *stored) change(key string, fn func([]byte) []byte) { s.put(key, fn(s.get(key))) }

func (s *stored) remove(keys ...string) {
	s.t.Helper()
	for _, key := range keys {
		if err := s.store.Delete(s.t.Context(), key); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *stored) keys(prefix string) (keys []string) {
	s.t.Helper()
	err := s.store.List(s.t.Context(), prefix, "", func(i objstore.Info) error {
		if !strings.HasPrefix(i.Key, segment.ClaimsPrefix) {
			keys = append(keys, i.Key)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return keys
}

// readable is which batches a reader gets: of their WAL object, or of a segment
// that a manifest leads to.
func (s *stored) readable() (can []bool) {
	s.t.Helper()
	type led struct {
		m *segment.Manifest
		x []*segment.Index
	}
	var windows []led
	for _, key := range s.keys(segment.WindowsPrefix) {
		w, _ := segment.ParseWindowKey(key)
		m, err := segment.ReadManifest(s.t.Context(), s.store, w)
		if err != nil {
			continue
		}
		l := led{m: m}
		for n := range m.Segments {
			var x *segment.Index
			if f, err := m.ReadFooter(s.t.Context(), s.store, n); err == nil {
				x = f.Index(1, 1<<20)
			}
			l.x = append(l.x, x)
		}
		windows = append(windows, l)
	}
	for _, e := range s.batches {
		ok := false
		look := func(key string, at int64) {
			b, err := s.store.Get(s.t.Context(), key, at, int64(e.Length))
			ok = ok || err == nil && diskless.Intact(b, e.Length, e.CRC)
		}
		look(diskless.ObjectKey(e.Object, false), int64(e.ObjectOffset))
		place := segment.Place{Topic: e.Topic, Partition: e.Partition}
		for _, l := range windows {
			if !l.m.Covers(e.Object) {
				continue
			}
			for _, n := range l.m.Find(place) {
				if l.x[n] == nil {
					continue
				}
				if at, found := l.x[n].Find(place, e.Object, e.ObjectOffset, e.Length, e.CRC); found {
					look(l.m.Key(n), at)
				}
			}
		}
		can = append(can, ok)
	}
	return can
}

func (s *stored) repair(opt RepairOptions) []Fix {
	s.t.Helper()
	opt.leftOver = time.Nanosecond
	fixes, err := (&Access{Stores: map[string]diskless.StoreHandle{"default": {Store: s.store}}}).Repair(s.t.Context(), opt)
	if err != nil {
		s.t.Fatal(err)
	}
	return fixes
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		b = slices.Clone(b)
		b[(at%len(b)+len(b))%len(b)] ^= 1
		return b
	}
}

func cut(b []byte) []byte { return b[:len(b)-20] }

// Each kind of damage, with each of the copies that there may be.
func TestRepair(t *testing.T) {
	const payloadByte, footerByte = 60, -30
	type found struct{ wal, segments, windows []string }
	for _, tt := range []struct {
		name    string
		spoil   func(s *stored, f found)
		want    []Action
		unread  bool // some batches stay so
		becomes bool // the store is byte for byte what it was before it was spoilt
	}{
		{name: "nothing", spoil: func(*stored, found) {}, becomes: true},
		{name: "WAL objects that were collected", spoil: func(s *stored, f found) { s.remove(f.wal...) }},
		{name: "a WAL object, in segments", spoil: func(s *stored, f found) { s.change(f.wal[1], flip(payloadByte)) }, want: []Action{Rewrite}, becomes: true},
		{name: "its footer", spoil: func(s *stored, f found) { s.change(f.wal[1], flip(footerByte)) }, want: []Action{Rewrite}, becomes: true},
		{name: "one that is cut short", spoil: func(s *stored, f found) { s.change(f.wal[1], cut) }, want: []Action{Rewrite}, becomes: true},
		{name: "a WAL object, in no segment", spoil: func(s *stored, f found) {
			s.remove(append(f.segments, f.windows...)...)
			s.change(f.wal[1], flip(payloadByte))
		}, want: []Action{NoWay}, unread: true},
		{name: "a segment, of WAL objects", spoil: func(s *stored, f found) { s.change(f.segments[0], flip(payloadByte)) }, want: []Action{Rewrite}, becomes: true},
		{name: "its footer", spoil: func(s *stored, f found) { s.change(f.segments[0], flip(footerByte)) }, want: []Action{Rewrite}, becomes: true},
		{name: "one that is cut short", spoil: func(s *stored, f found) { s.change(f.segments[0], cut) }, want: []Action{Rewrite}, becomes: true},
		{name: "one that is gone", spoil: func(s *stored, f found) { s.remove(f.segments[0]) }, want: []Action{Create}, becomes: true},
		{name: "a segment, without WAL objects", spoil: func(s *stored, f found) {
			s.remove(f.wal...)
			s.change(f.segments[0], flip(payloadByte))
		}, want: []Action{NoWay}, unread: true},
		{name: "one that is gone, without WAL objects", spoil: func(s *stored, f found) {
			s.remove(f.wal...)
			s.remove(f.segments[0])
		}, want: []Action{NoWay}, unread: true},
		{name: "a segment and a WAL object, in different batches", spoil: func(s *stored, f found) {
			// The segment's last batch, and another one's of the WAL object.
			m := s.manifest(f.windows[0])
			footer, err := m.ReadFooter(s.t.Context(), s.store, 0)
			if err != nil {
				s.t.Fatal(err)
			}
			in := slices.Collect(footer.Entries())
			last := in[len(in)-1]
			s.change(m.Key(0), flip(int(last.Position)+payloadByte))
			for _, e := range s.batches {
				if e.Object == last.Object && !slices.ContainsFunc(in, func(o segment.Entry) bool { return o.Object == e.Object && o.ObjectOffset == e.ObjectOffset }) {
					s.change(diskless.ObjectKey(e.Object, false), flip(int(e.ObjectOffset)+payloadByte))
					return
				}
			}
			s.t.Fatal("no other batch")
		}, want: []Action{Rewrite, Rewrite}, becomes: true},
		{name: "the same batch in both", spoil: func(s *stored, f found) {
			m := s.manifest(f.windows[0])
			footer, err := m.ReadFooter(s.t.Context(), s.store, 0)
			if err != nil {
				s.t.Fatal(err)
			}
			e := slices.Collect(footer.Entries())[0]
			s.change(m.Key(0), flip(int(e.Position)+payloadByte))
			s.change(diskless.ObjectKey(e.Object, false), flip(int(e.ObjectOffset)+payloadByte))
		}, want: []Action{NoWay, NoWay}, unread: true},
		{name: "a manifest that is garbled, with WAL objects", spoil: func(s *stored, f found) { s.change(f.windows[0], flip(5)) }, want: []Action{Rewrite}},
		{name: "without them", spoil: func(s *stored, f found) {
			s.remove(f.wal...)
			s.change(f.windows[0], flip(5))
		}, want: []Action{Rewrite}},
		{name: "a manifest that is gone, without WAL objects", spoil: func(s *stored, f found) {
			s.remove(f.wal...)
			s.remove(f.windows[0])
		}, want: []Action{Create}},
		{name: "a manifest that is gone, with WAL objects", spoil: func(s *stored, f found) { s.remove(f.windows[0]) }},
		{name: "a garbled manifest without segments", spoil: func(s *stored, f found) {
			s.remove(s.of(f.windows[0])...)
			s.change(f.windows[0], flip(5))
		}, want: []Action{Remove}},
		{name: "a manifest without segments, with WAL objects", spoil: func(s *stored, f found) { s.remove(s.of(f.windows[0])...) }, want: []Action{Remove}},
		{name: "one of whose WAL objects one is gone", spoil: func(s *stored, f found) {
			s.remove(s.of(f.windows[0])...)
			s.remove(f.wal[0])
		}, want: []Action{NoWay}, unread: true},
		{name: "all that was collected", spoil: func(s *stored, f found) {
			s.remove(f.wal...)
			s.remove(f.segments...)
		}, unread: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStored(t, rand.New(rand.NewPCG(1, 2)), 12)
			f := found{s.keys(diskless.WALPrefix), s.keys(segment.DataPrefix), s.keys(segment.WindowsPrefix)}
			if len(f.wal) != 12 || len(f.windows) < 2 || len(f.segments) <= len(f.windows) {
				t.Fatalf("%d WAL objects, %d segments, %d windows", len(f.wal), len(f.segments), len(f.windows))
			}
			whole := s.all()
			tt.spoil(s, f)
			spoilt, before := s.all(), s.readable()
			plan := s.repair(RepairOptions{DryRun: true})
			if !same(spoilt, s.all()) {
				t.Error("a dry run has changed something")
			}
			fixes := s.repair(RepairOptions{})
			var got []Action
			for i, f := range fixes {
				got = append(got, f.Action)
				if f.Done != (f.Action != NoWay) || (f.Why != "") != (f.Action == NoWay) || f.Damage == "" || f.Store != "default" {
					t.Errorf("%+v", f)
				}
				if i >= len(plan) || plan[i].Key != f.Key || plan[i].Action != f.Action || plan[i].Done {
					t.Errorf("the dry run has said otherwise: %+v", plan)
				}
			}
			slices.Sort(got)
			slices.Sort(tt.want)
			if !slices.Equal(got, tt.want) {
				t.Errorf("fixes %+v, want %v", fixes, tt.want)
			}
			after := s.readable()
			for i := range after {
				if before[i] && !after[i] {
					t.Errorf("%+v was readable", s.batches[i])
				}
			}
			if slices.Contains(after, false) != tt.unread {
				t.Errorf("can be read: %v", after)
			}
			if tt.becomes && !same(whole, s.all()) {
				t.Error("the store is not what it was")
			}
			for _, f := range s.repair(RepairOptions{}) {
				if f.Action != NoWay {
					t.Errorf("again: %+v", f)
				}
			}
		})
	}
}

func (s *stored) manifest(key string) *segment.Manifest {
	s.t.Helper()
	w, _ := segment.ParseWindowKey(key)
	m, err := segment.ReadManifest(s.t.Context(), s.store, w)
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// of is the segments of a window.
func (s *stored) of(window string) (keys []string) {
	m := s.manifest(window)
	for n := range m.Segments {
		keys = append(keys, m.Key(n))
	}
	return keys
}

func (s *stored) all() map[string][]byte {
	all := map[string][]byte{}
	for _, key := range s.keys("") {
		all[key] = s.get(key)
	}
	return all
}

func same(a, b map[string][]byte) bool {
	for key := range a {
		if !bytes.Equal(a[key], b[key]) {
			return false
		}
	}
	return len(a) == len(b)
}

// Whatever is damaged: what could be read still can, and a second repair finds
// nothing more to do. Then compaction and a repair in the middle of it do no harm
// either.
func TestRepairTakesNothingAway(t *testing.T) {
	done, merged := map[Action]int{}, 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 7))
		s := newMerged(t, r, 4+r.IntN(10), time.Duration(seed%2)*time.Hour)
		for _, key := range s.wal {
			if r.IntN(3) == 0 {
				s.remove(key) // collected
			}
		}
		for _, key := range s.keys(segment.LevelPrefix(segment.Level1)) {
			if two := s.keys(segment.LevelPrefix(segment.Level2)); len(two) == 1 && s.manifest(two[0]).Window().Spans(s.manifest(key).Window().First) {
				merged++
				for _, one := range s.of(key) {
					if r.IntN(4) == 0 {
						s.remove(one) // collected
					}
				}
			}
		}
		for range 1 + r.IntN(5) {
			prefix := []string{diskless.WALPrefix, segment.DataPrefix, segment.WindowsPrefix}[r.IntN(3)]
			keys := s.keys(prefix)
			if len(keys) == 0 {
				continue
			}
			key := keys[r.IntN(len(keys))]
			switch r.IntN(3) {
			case 0:
				s.remove(key)
			case 1:
				s.change(key, flip(r.IntN(1<<20)))
			case 2:
				s.change(key, func(b []byte) []byte { return b[:r.IntN(len(b))] })
			}
		}
		before := s.readable()
		for _, f := range s.repair(RepairOptions{}) {
			done[f.Action]++
		}
		for round := range 2 {
			for i, ok := range s.readable() {
				if before[i] && !ok {
					t.Fatalf("seed %d, round %d: %+v was readable", seed, round, s.batches[i])
				}
			}
			for _, f := range s.repair(RepairOptions{}) {
				if f.Action != NoWay && f.Action != Remove {
					t.Fatalf("seed %d: again: %+v", seed, f)
				}
			}
			s.compact()
		}
	}
	if merged == 0 {
		t.Error("nothing was merged")
	}
	for _, a := range []Action{Rewrite, Create, Remove, NoWay} {
		if done[a] == 0 {
			t.Errorf("no seed has brought about %q: %v", a, done)
		}
	}
}

// What garbage collection takes because it was merged is no damage, and what is lost
// of level 2 is made anew of level 1.
func TestRepairKnowsMergedWindows(t *testing.T) {
	fresh := func() (s *stored, one, two []string) {
		s = newMerged(t, rand.New(rand.NewPCG(3, 4)), 12, time.Hour)
		s.remove(s.wal...)
		one, two = s.keys(segment.LevelPrefix(segment.Level1)), s.keys(segment.LevelPrefix(segment.Level2))
		one = slices.DeleteFunc(one, func(key string) bool {
			return !slices.ContainsFunc(two, func(into string) bool { return s.manifest(into).Covers(s.manifest(key).Window().First) })
		})
		if len(one) < 2 || len(two) == 0 {
			t.Fatalf("%d windows of level 1 in %d of level 2", len(one), len(two))
		}
		return s, one, two
	}
	// Collected in part, as a collector does that is killed, and then all of it.
	s, one, _ := fresh()
	for _, keys := range [][]string{s.of(one[0])[:1], s.of(one[0])[1:], s.of(one[1])[:1], append(one[:1:1], s.of(one[1])[1:]...)} {
		s.remove(keys...)
		if fixes := s.repair(RepairOptions{}); len(fixes) > 0 {
			t.Errorf("%+v", fixes)
		}
		if slices.Contains(s.readable(), false) {
			t.Error("something cannot be read")
		}
	}
	for name, harm := range map[string]func(s *stored, two []string){
		"a segment is gone":     func(s *stored, two []string) { s.remove(s.of(two[0])[0]) },
		"a segment is cut":      func(s *stored, two []string) { s.change(s.of(two[0])[0], cut) },
		"a bit of a batch":      func(s *stored, two []string) { s.change(s.of(two[0])[0], flip(70)) },
		"all segments are gone": func(s *stored, two []string) { s.remove(s.of(two[0])...) },
		"a manifest is garbled": func(s *stored, two []string) { s.change(two[0], cut) },
	} {
		s, _, two := fresh()
		whole := s.all()
		harm(s, two)
		fixes := s.repair(RepairOptions{})
		if len(fixes) != 1 || fixes[0].Action == NoWay {
			t.Errorf("%s: %+v", name, fixes)
			continue
		}
		if now := s.all(); fixes[0].Action != Remove && !same(now, whole) {
			t.Errorf("%s: it is not what it was", name)
		}
		if slices.Contains(s.readable(), false) {
			t.Errorf("%s: something cannot be read", name)
		}
	}
	// The other way round: level 2 is all that is left, and its manifest is lost.
	s, one, two := fresh()
	for _, key := range one {
		s.remove(append(s.of(key), key)...)
	}
	s.remove(two...)
	s.repair(RepairOptions{})
	if slices.Contains(s.readable(), false) {
		t.Error("what only level 2 held cannot be read")
	}
}

// A run without a manifest may be of a compactor that is at work.
func TestRepairLeavesYoungRunsAlone(t *testing.T) {
	s := newStored(t, rand.New(rand.NewPCG(1, 2)), 6)
	s.remove(s.wal...)
	s.remove(s.keys(segment.WindowsPrefix)...)
	fixes, err := (&Access{Stores: map[string]diskless.StoreHandle{"default": {Store: s.store}}}).Repair(t.Context(), RepairOptions{})
	if err != nil || len(fixes) == 0 {
		t.Fatal(err, fixes)
	}
	for _, f := range fixes {
		if f.Action != NoWay || !strings.Contains(f.Why, "try again 6h0m0s after") {
			t.Errorf("%+v", f)
		}
	}
}

// Between a manifest that could not be read and its removal all WAL objects are
// read. One that was restored meanwhile is asked about again, and stays.
func TestRepairAsksAgainBeforeItRemoves(t *testing.T) {
	s := newStored(t, rand.New(rand.NewPCG(1, 2)), 6)
	manifests := map[string][]byte{}
	for _, key := range s.keys(segment.WindowsPrefix) {
		b, err := s.store.Get(t.Context(), key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		manifests[key] = b
		s.put(key, cut(b))
	}
	s.remove(s.keys(segment.DataPrefix)...)
	faulty := objstore.NewFaulty(s.store)
	faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
		if op == objstore.OpGet && strings.HasPrefix(key, diskless.WALPrefix) {
			for key, b := range manifests {
				s.put(key, b)
			}
		}
		return objstore.Fault{}
	})
	fixes, err := (&Access{Stores: map[string]diskless.StoreHandle{"default": {Store: faulty}}}).Repair(t.Context(), RepairOptions{leftOver: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.keys(segment.WindowsPrefix); len(got) != len(manifests) {
		t.Errorf("%d of %d manifests are left", len(got), len(manifests))
	}
	for _, f := range fixes {
		if f.Done || !strings.Contains(f.Why, "run this again") {
			t.Errorf("%+v", f)
		}
	}
}

// fullLogs says of every topic that its logs hold everything.
type fullLogs struct{ topics []string }

func (fullLogs) ClusterID() string { return "cluster" }

func (k fullLogs) Survey(context.Context, []string) (tiers.Survey, error) {
	views := map[string]tiers.TopicView{}
	for n, name := range k.topics {
		v := tiers.TopicView{ID: [16]byte{byte(n + 1)}}
		for range 3 {
			v.Partitions = append(v.Partitions, tiers.LogView{Leader: 1, Epoch: 1, End: 100, InSync: true})
		}
		views[name] = v
	}
	return tiers.Survey{Brokers: []int32{1}, Topics: views}, nil
}

func (fullLogs) Lineage(context.Context, []tiers.EpochQuestion) (map[tiers.TopicPartition]bool, error) {
	return nil, nil
}

// Compactor, garbage collection and repair on one store at the same time, without
// any wait that tells them apart: whatever of a log could be read still can be.
func TestAllAtOnce(t *testing.T) {
	for seed := range uint64(8) {
		random := rand.New(rand.NewPCG(seed, 7))
		s := newMerged(t, random, 30, 2*time.Hour)
		s.put(keyring.MarkerKey, []byte(`{"version":1,"cluster_id":"cluster"}`))
		for range 4 { // segments have it
			s.change(s.wal[random.IntN(20)], flip(10))
		}
		for _, key := range s.keys(segment.WindowsPrefix)[:1] { // WAL objects have it, and it is compacted again
			s.remove(key)
		}
		before := s.readable()
		collect := func() error {
			time.Sleep(time.Millisecond) // of the clock that tells passes apart
			_, err := gc.New(gc.Options{
				Name: "default", Store: s.store, Kafka: fullLogs{[]string{"otel-0", "otel-1", "otel-2"}}, MinAge: time.Nanosecond, DeletesPerSecond: 1 << 20,
				Timing: gc.Timing{Margin: time.Hour, Grace: time.Nanosecond, Apart: time.Nanosecond, Missed: time.Hour}, Logger: zerolog.Nop(),
			}).Pass(t.Context())
			if err != nil {
				t.Log(err) // with so little patience it may meet a window in the making, and ends
			}
			return nil
		}
		repair := func() error {
			_, err := (&Access{Stores: map[string]diskless.StoreHandle{"default": {Store: s.store}}}).Repair(t.Context(), RepairOptions{})
			return err
		}
		var all errgroup.Group
		for _, what := range []func() error{collect, repair, func() error { s.compact(); return nil }} {
			all.Go(func() error {
				for range 6 {
					if err := what(); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := all.Wait(); err != nil {
			t.Fatal(seed, err)
		}
		for i, can := range s.readable() {
			if e := s.batches[i]; before[i] && !can {
				t.Errorf("seed %d: a batch of %s-%d, of WAL object %s, could be read before", seed, e.Topic, e.Partition, e.Object)
			}
		}
		if len(s.keys(diskless.WALPrefix)) == len(s.wal) {
			t.Errorf("seed %d: nothing was deleted", seed)
		}
	}
}

// What a repair could not do is named by topic, partition and offsets.
func TestMend(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(1, "otel-a"), kfake.SeedTopics(1, "otel-b"))
	for range 4 {
		r.write(r.proxied, "otel-a", 0, 4)
		r.write(r.proxied, "otel-b", 0, 4)
		time.Sleep(40 * time.Millisecond) // objects of their own
	}
	a, store := r.access()
	log := r.batches(a, "otel-a", 0)
	c := compactor.New(compactor.Options{Store: store, Name: "default", Limits: compactor.Limits{MinAge: time.Millisecond, Window: time.Millisecond}, Logger: zerolog.Nop()})
	if err := c.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	mended, ref := r.file(log[1])
	r.change(mended, func(b []byte) []byte { b[ref.Offset+100] ^= 1; return b })
	lost, lostRef := r.file(log[2])
	r.change(lost, func(b []byte) []byte { b[lostRef.Offset+100] ^= 1; return b })
	var segments int
	err := store.List(t.Context(), segment.WindowsPrefix, "", func(i objstore.Info) error {
		w, _ := segment.ParseWindowKey(i.Key)
		m, err := segment.ReadManifest(context.Background(), store, w)
		if err != nil {
			return err
		}
		for n := range m.Segments {
			if m.Covers(lostRef.Object) {
				segments++
				if err := store.Delete(context.Background(), m.Key(n)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil || segments == 0 {
		t.Fatal(err, segments)
	}
	report, err := a.Mend(t.Context(), FsckOptions{}, RepairOptions{leftOver: time.Nanosecond})
	if err != nil || len(report.Damage) != 1 {
		t.Fatalf("%v: %+v", err, report)
	}
	if d := report.Damage[0]; d.Topic != "otel-a" || d.First != 8 || d.Last != 11 || d.Kind != Garbled || !strings.HasPrefix(d.Remedy, "it cannot be repaired") {
		t.Errorf("%+v", d)
	}
	done := 0
	for _, f := range report.Fixes {
		if f.Done {
			done++
		}
	}
	if done != 1 {
		t.Errorf("%+v", report.Fixes)
	}
}

// An object that the store does not let be written is named with the reason, and the
// others are repaired; a store that does not answer ends it.
func TestRepairGoesOnWhereTheStoreRefuses(t *testing.T) {
	for _, refusal := range []error{objstore.ErrAccess, objstore.ErrUnavailable} {
		s := newStored(t, rand.New(rand.NewPCG(1, 2)), 12)
		segments := s.keys(segment.DataPrefix)
		whole := s.get(segments[1])
		s.change(segments[0], flip(60))
		s.change(segments[1], flip(60))
		spoilt := s.get(segments[0])
		faulty := objstore.NewFaulty(s.store)
		faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
			if op == objstore.OpPut && key == segments[0] {
				return objstore.Fault{Err: refusal}
			}
			return objstore.Fault{}
		})
		fixes, err := (&Access{Stores: map[string]diskless.StoreHandle{"default": {Store: faulty}}}).Repair(t.Context(), RepairOptions{leftOver: time.Nanosecond})
		if refusal == objstore.ErrUnavailable {
			if !errors.Is(err, refusal) || len(fixes) > 0 {
				t.Errorf("%v: %+v", err, fixes)
			}
			continue
		}
		if err != nil || len(fixes) != 2 || !bytes.Equal(s.get(segments[0]), spoilt) || !bytes.Equal(s.get(segments[1]), whole) {
			t.Errorf("%v: %+v", err, fixes)
		}
		for _, f := range fixes {
			if f.Done != (f.Key == segments[1]) || strings.Contains(f.Why, "refuses access") == f.Done {
				t.Errorf("%+v", f)
			}
		}
	}
}
