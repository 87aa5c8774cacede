package compactor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// fill writes batches through a tier, as a replica does, and lets time pass:
// objects of about objectSize bytes in each of some minutes.
func fill(t testing.TB, store objstore.Store, r *rand.Rand, minutes, batches int, topics []string, size int) {
	t.Helper()
	ring, err := keyring.Open(t.Context(), store, "cluster", keyring.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tier, err := diskless.New(diskless.Options{
		ClusterID: "cluster", Stores: map[string]diskless.StoreHandle{"default": {Store: store, Ring: ring}},
		Logger: zerolog.Nop(), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	class := &tiers.Class{Name: "telemetry", Tier: tiers.Diskless, Store: "default", Linger: 100 * time.Millisecond, ObjectSize: 64 << 10}
	for range minutes {
		for range batches {
			done := make(chan struct{})
			o := tier.Offload(t.Context(), tiers.OffloadRequest{
				Class: class, TopicPartition: tiers.TopicPartition{Topic: topics[r.IntN(len(topics))], Partition: int32(r.IntN(4))},
				Batch: batch(r, 500+r.IntN(size)), ProduceVersion: 9, MaxMessageBytes: 100 << 20,
			}, func() { close(done) })
			if r.IntN(3) > 0 {
				continue // shares an object with the next one
			}
			<-done
			if o.Result().Records == nil {
				t.Fatal("inline")
			}
		}
		time.Sleep(time.Minute)
	}
	if err := tier.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func batch(r *rand.Rand, size int) wire.Batch {
	value := make([]byte, size)
	for i := range value {
		value[i] = byte(r.Uint32())
	}
	rec := kmsg.Record{Value: value}
	rec.Length = int32(len(rec.AppendTo(nil)) - 1)
	kb := kmsg.RecordBatch{PartitionLeaderEpoch: -1, Magic: 2, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: 1, Records: rec.AppendTo(nil)}
	kb.Length = int32(49 + len(kb.Records))
	b := wire.Batch(kb.AppendTo(nil))
	b.SetCRC(b.ComputeCRC())
	return b
}

func compactorOn(store objstore.Store, l compactor.Limits) *compactor.Compactor {
	return compactor.New(compactor.Options{Store: store, Name: "default", Limits: l, Logger: zerolog.Nop()})
}

// contents is all that a store holds.
func contents(t testing.TB, store objstore.Store) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := store.List(context.Background(), "", "", func(i objstore.Info) error {
		all[i.Key] = nil
		return nil
	})
	for key := range all {
		if all[key], err = store.Get(context.Background(), key, 0, -1); err != nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func clone(t testing.TB, from map[string][]byte) *objstore.Memory {
	t.Helper()
	m := objstore.NewMemory()
	for key, b := range from {
		if err := m.Put(context.Background(), key, b); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// verify holds the segments of a store against its WAL objects: each of those
// that must be covered is, by times windows, and every batch of it is in exactly
// the place that the window says, byte for byte. It returns the segments that no
// manifest names.
func verify(t testing.TB, store objstore.Store, must func(ulid.ULID) bool, times int) (orphans []string) {
	t.Helper()
	ctx := context.Background()
	all := contents(t, store)
	var manifests []*segment.Manifest
	known := map[string]bool{}
	type place struct {
		m *segment.Manifest
		n int
	}
	indexes := map[place]*segment.Index{}
	for key := range all {
		w, ok := segment.ParseWindowKey(key)
		if !ok {
			continue
		}
		m, err := segment.ReadManifest(ctx, store, w)
		if err != nil {
			t.Fatal(err)
		}
		manifests = append(manifests, m)
		entries, batches := 0, 0
		for n := range m.Segments {
			known[m.Key(n)] = true
			f, err := m.ReadFooter(ctx, store, n)
			if err != nil {
				t.Fatal(err)
			}
			indexes[place{m, n}] = f.Index(64<<10, 1<<20)
			entries += f.Batches()
			for e := range f.Entries() {
				if !m.Covers(e.Object) {
					t.Fatalf("%s holds a batch of %s, which its window does not cover", m.Key(n), e.Object)
				}
				p := segment.Place{Topic: e.Topic, Partition: e.Partition}
				if p.Compare(m.Segments[n].First) < 0 || p.Compare(m.Segments[n].Last) > 0 {
					t.Fatalf("%s holds %v; its window says %v to %v", m.Key(n), p, m.Segments[n].First, m.Segments[n].Last)
				}
			}
		}
		for _, o := range m.Objects {
			body := all[diskless.ObjectKey(o.ID, false)]
			if body == nil {
				continue // deleted, by the test
			}
			if o.Size != int64(len(body)) {
				t.Fatalf("%s has %d bytes, not %d", o.ID, len(body), o.Size)
			}
			es, err := diskless.ReadFooter(body, o.Size)
			if err != nil {
				t.Fatal(err)
			}
			batches += len(es)
		}
		if entries != batches {
			t.Fatalf("%s: %d batches in segments, %d in WAL objects", key, entries, batches)
		}
	}
	for key, body := range all {
		if _, _, ok := segment.ParseDataKey(key); ok && !known[key] {
			orphans = append(orphans, key)
		}
		id, audit, ok := diskless.ParseObjectKey(key)
		if !ok || audit || must != nil && !must(id) {
			continue
		}
		entries, err := diskless.ReadFooter(body, int64(len(body)))
		if err != nil {
			t.Fatal(err)
		}
		windows := 0
		for _, m := range manifests {
			if !m.Covers(id) {
				continue
			}
			windows++
			for _, e := range entries {
				p := segment.Place{Topic: e.Topic, Partition: e.Partition}
				found := 0
				for _, n := range m.Find(p) {
					if at, ok := indexes[place{m, n}].Find(p, id, e.Offset, e.Length, e.CRC); ok {
						found++
						if !bytes.Equal(all[m.Key(n)][at:at+int64(e.Length)], body[e.Offset:e.Offset+uint64(e.Length)]) {
							t.Fatalf("%s: other bytes than in %s at %d", m.Key(n), id, e.Offset)
						}
					}
				}
				if found != 1 {
					t.Fatalf("the batch at %d of %s is found %d times", e.Offset, id, found)
				}
			}
		}
		if windows != times {
			t.Fatalf("%s is covered by %d windows, not %d", id, windows, times)
		}
	}
	return orphans
}

func seeded(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, 7)) }

var small = compactor.Limits{MemoryBytes: 1 << 20, SegmentBytes: 64 << 10}

func TestEveryBatchIsInItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ testing.TB }{t}, func(rt *rapid.T) {
			store := objstore.NewMemory()
			topics := []string{"a", "b", "otel.metrics-ü", "z"}[:rapid.IntRange(1, 4).Draw(rt, "topics")]
			fill(t, store, seeded(rapid.Uint64().Draw(rt, "seed")), rapid.IntRange(1, 30).Draw(rt, "minutes"), rapid.IntRange(0, 20).Draw(rt, "batches"), topics, rapid.SampledFrom([]int{10, 5000, 40_000}).Draw(rt, "size"))
			time.Sleep(30 * time.Minute)
			c := compactorOn(store, compactor.Limits{
				Window:       rapid.SampledFrom([]time.Duration{time.Minute, 7 * time.Minute, 10 * time.Minute, time.Hour}).Draw(rt, "window"),
				MemoryBytes:  rapid.SampledFrom([]int64{256 << 10, 1 << 20, 64 << 20}).Draw(rt, "memory"),
				SegmentBytes: rapid.SampledFrom([]int64{1 << 10, 64 << 10, 16 << 20}).Draw(rt, "segment"),
			})
			time.Sleep(time.Hour) // the last window, too
			for range 2 {         // the second finds nothing to do
				if err := c.Pass(t.Context()); err != nil {
					rt.Fatal(err)
				}
				if orphans := verify(t, store, nil, 1); len(orphans) > 0 {
					rt.Fatalf("orphans: %v", orphans)
				}
			}
			if claims := keys(t, store, segment.ClaimsPrefix); len(claims) > 0 {
				rt.Fatalf("claims are left: %v", claims)
			}
		})
	})
}

func keys(t testing.TB, store objstore.Store, prefix string) (out []string) {
	t.Helper()
	if err := store.List(context.Background(), prefix, "", func(i objstore.Info) error { out = append(out, i.Key); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRipe: what is young stays as it is, and so do audit objects and what is
// not ours.
func TestRipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		fill(t, store, seeded(1), 40, 5, []string{"t"}, 1000)
		for _, key := range []string{"audit/wal/" + ulid.Make().String(), "wal/notes.txt"} {
			if err := store.Put(t.Context(), key, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		c := compactorOn(store, small)
		if err := c.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		limit := time.Now().Add(-compactor.DefaultLimits().MinAge).Truncate(10 * time.Minute)
		young := 0
		ripe := func(id ulid.ULID) bool { return id.Timestamp().Before(limit) }
		verify(t, store, ripe, 1)
		verify(t, store, func(id ulid.ULID) bool { y := !ripe(id); young += count(y); return y }, 0)
		if young == 0 {
			t.Fatal("nothing was young")
		}
		// The rest, when it is old enough.
		time.Sleep(time.Hour)
		if err := c.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		verify(t, store, nil, 1)
	})
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// mortal is a store whose user dies at the n-th request: before it reaches the
// store, or after.
type mortal struct {
	objstore.Store
	mu    sync.Mutex
	left  int
	after bool
}

var errDead = errors.New("dead")

func (m *mortal) do(fn func() error) error {
	m.mu.Lock()
	m.left--
	left := m.left
	m.mu.Unlock()
	if left < 0 || left == 0 && !m.after {
		return errDead
	}
	err := fn()
	if left == 0 {
		return errDead
	}
	return err
}

func (m *mortal) Put(ctx context.Context, key string, body []byte) error {
	return m.do(func() error { return m.Store.Put(ctx, key, body) })
}
func (m *mortal) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	return m.do(func() error { return m.Store.PutIfAbsent(ctx, key, body) })
}
func (m *mortal) Get(ctx context.Context, key string, offset, length int64) (b []byte, err error) {
	err = m.do(func() error { b, err = m.Store.Get(ctx, key, offset, length); return err })
	return b, err
}
func (m *mortal) List(ctx context.Context, prefix, after string, fn func(objstore.Info) error) error {
	return m.do(func() error { return m.Store.List(ctx, prefix, after, fn) })
}
func (m *mortal) Delete(ctx context.Context, key string) error {
	return m.do(func() error { return m.Store.Delete(ctx, key) })
}

// TestCrashAnywhere: a compactor dies at each of its requests in turn, before or
// after it took effect; another one finishes the work.
func TestCrashAnywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := objstore.NewMemory()
		fill(t, full, seeded(2), 20, 4, []string{"a", "b", "c"}, 30_000)
		time.Sleep(time.Hour)
		before := contents(t, full)
		limits := compactor.Limits{MemoryBytes: 512 << 10, SegmentBytes: 64 << 10, Concurrency: 1}
		for _, after := range []bool{false, true} {
			crashAnywhere(t, before, limits, after, func(objstore.Store) {}, func(store objstore.Store) int {
				orphaned := len(verify(t, store, nil, 1))
				for key, b := range contents(t, store) {
					if strings.HasPrefix(key, diskless.WALPrefix) && !bytes.Equal(b, before[key]) {
						t.Fatalf("%s was changed", key)
					}
				}
				return orphaned
			})
		}
	})
}

// crashAnywhere has a compactor die at each of its requests in turn, before or after
// it took effect, and another one finish the work. crashed and finished look at what
// either leaves; finished returns how many segments no manifest names.
func crashAnywhere(t *testing.T, before map[string][]byte, limits compactor.Limits, after bool, crashed func(objstore.Store), finished func(objstore.Store) int) {
	t.Helper()
	n, orphaned := 1, 0
	for ; ; n++ {
		store := clone(t, before)
		dying := &mortal{Store: store, left: n, after: after}
		err := compactorOn(dying, limits).Pass(t.Context())
		if err == nil {
			break
		}
		if !errors.Is(err, errDead) {
			t.Fatal(err)
		}
		verify(t, store, func(ulid.ULID) bool { return false }, 0) // what there is is right
		crashed(store)
		time.Sleep(compactor.DefaultLimits().ClaimTimeout)
		if err := compactorOn(store, limits).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		orphaned += finished(store)
	}
	t.Logf("%d requests; %d segments of crashed runs were left to be collected", n, orphaned)
	if n < 50 || orphaned == 0 {
		t.Error("too little has happened to prove anything")
	}
}

// TestTwoAtOnce: compactors share the work; where they do the same, nothing is
// wrong and nothing is left over.
func TestTwoAtOnce(t *testing.T) {
	for name, timeout := range map[string]time.Duration{"sharing": 0, "each takes the others for dead": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := objstore.NewMemory()
				fill(t, store, seeded(3), 60, 4, []string{"a", "b"}, 20_000)
				time.Sleep(time.Hour)
				limits := small
				limits.ClaimTimeout = timeout
				worked := threeAtOnce(t, store, limits, 3)
				if orphans := verify(t, store, nil, 1); len(orphans) > 0 {
					t.Errorf("left over: %v", orphans)
				}
				if worked < 2 {
					t.Errorf("only %d of 3 had anything to do", worked)
				}
			})
		})
	}
}

// threeAtOnce has compactors make so many passes each, on a store of which nobody
// knows who is answered first. It returns how many of them wrote a window.
func threeAtOnce(t *testing.T, store objstore.Store, limits compactor.Limits, passes int) (worked int) {
	t.Helper()
	r := seeded(4)
	var mu sync.Mutex
	slow := objstore.NewFaulty(store)
	slow.Decide(func(objstore.Op, string) objstore.Fault {
		mu.Lock()
		defer mu.Unlock()
		return objstore.Fault{Delay: time.Duration(r.IntN(50)) * time.Millisecond}
	})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			c := compactorOn(slow, limits)
			for range passes {
				if err := c.Pass(t.Context()); err != nil {
					t.Error(err)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			worked += count(c.Progress().Windows > 0)
		})
	}
	wg.Wait()
	return worked
}

// TestDamagedObjects: what is not whole stays and is said; its neighbours are
// compacted.
func TestDamagedObjects(t *testing.T) {
	for name, change := range map[string]func(b []byte) []byte{
		"torn":           func(b []byte) []byte { return b[:len(b)/2] },
		"empty":          func([]byte) []byte { return nil },
		"a bit flipped":  func(b []byte) []byte { b = bytes.Clone(b); b[300] ^= 1; return b },
		"in its header":  func(b []byte) []byte { b = bytes.Clone(b); b[9] ^= 1; return b },
		"in the footer":  func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-20] ^= 1; return b },
		"something else": func([]byte) []byte { return []byte("hello") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := objstore.NewMemory()
				fill(t, store, seeded(5), 10, 6, []string{"a"}, 1000)
				time.Sleep(time.Hour)
				objects := keys(t, store, diskless.WALPrefix)
				victim := objects[len(objects)/2]
				good := contents(t, store)[victim]
				put := func(b []byte) {
					if err := store.Put(t.Context(), victim, b); err != nil {
						t.Fatal(err)
					}
				}
				put(change(good))
				reg := prometheus.NewRegistry()
				var said bytes.Buffer
				c := compactor.New(compactor.Options{Store: store, Name: "default", Limits: small, Logger: zerolog.New(&said), Metrics: compactor.NewMetrics(reg)})
				for range 3 {
					if err := c.Pass(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if n := strings.Count(said.String(), victim); n != 1 {
					t.Errorf("named %d times:\n%s", n, said.String())
				}
				if n, _ := testutil.GatherAndCount(reg, "sluice_compaction_damaged_objects_total"); n != 1 {
					t.Error("no metric")
				}
				put(good)
				ok := func(id ulid.ULID) bool { return diskless.ObjectKey(id, false) != victim }
				verify(t, store, ok, 1)
				verify(t, store, func(id ulid.ULID) bool { return !ok(id) }, 0)
				// Somebody has restored it: it is found again in time.
				time.Sleep(compactor.DefaultLimits().Rescan)
				if err := c.Pass(t.Context()); err != nil {
					t.Fatal(err)
				}
				verify(t, store, nil, 1)
			})
		})
	}
}

// TestOneThatCannotBeRead: an object that hangs, or is archived, holds up its own
// window; a store that is away is left alone.
func TestOneThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := objstore.NewMemory()
		fill(t, memory, seeded(6), 50, 3, []string{"a"}, 1000)
		time.Sleep(time.Hour)
		objects := keys(t, memory, diskless.WALPrefix)
		slot := func(key string) time.Time {
			id, _, _ := diskless.ParseObjectKey(key)
			return id.Timestamp().Truncate(compactor.DefaultLimits().Window)
		}
		for name, fault := range map[string]objstore.Fault{"hanging": {Delay: time.Hour}, "refused": {Err: objstore.ErrAccess}} {
			store := clone(t, contents(t, memory))
			faulty := objstore.NewFaulty(store)
			faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
				if op == objstore.OpGet && key == objects[0] {
					return fault
				}
				return objstore.Fault{}
			})
			c := compactorOn(faulty, small)
			if err := c.Pass(t.Context()); err == nil {
				t.Errorf("%s: no error", name)
			}
			mine := func(id ulid.ULID) bool { return slot(diskless.ObjectKey(id, false)) == slot(objects[0]) }
			verify(t, store, func(id ulid.ULID) bool { return !mine(id) }, 1)
			verify(t, store, mine, 0)
			faulty.Decide(nil)
			if err := c.Pass(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			verify(t, store, nil, 1)
		}
		asked := 0
		faulty := objstore.NewFaulty(memory)
		faulty.Decide(func(op objstore.Op, _ string) objstore.Fault {
			if op == objstore.OpPut {
				asked++
				return objstore.Fault{Err: objstore.ErrUnavailable}
			}
			return objstore.Fault{}
		})
		if err := compactorOn(faulty, small).Pass(t.Context()); err == nil || asked > 3 {
			t.Errorf("a store that is away was asked %d times: %v", asked, err)
		}
	})
}

// TestManifestThatCannotBeRead: what it may cover waits, and nothing else does.
func TestManifestThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		fill(t, store, seeded(6), 10, 3, []string{"a"}, 1000)
		time.Sleep(compactor.DefaultLimits().MinAge)
		if err := compactorOn(store, small).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		manifest := keys(t, store, segment.WindowsPrefix)[0]
		fill(t, store, seeded(7), 40, 3, []string{"a"}, 1000)
		time.Sleep(time.Hour)
		faulty := objstore.NewFaulty(store)
		faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
			if op == objstore.OpGet && key == manifest {
				return objstore.Fault{Err: objstore.ErrAccess}
			}
			return objstore.Fault{}
		})
		c := compactorOn(faulty, small)
		for range 2 {
			if err := c.Pass(t.Context()); !errors.Is(err, objstore.ErrAccess) {
				t.Fatalf("it says: %v", err)
			}
			verify(t, store, nil, 1)
		}
		faulty.Decide(nil)
		if err := c.Pass(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestGoneMeanwhile: an object that was collected after it was listed is no
// error.
func TestGoneMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		fill(t, store, seeded(5), 5, 6, []string{"a"}, 1000)
		time.Sleep(time.Hour)
		objects := keys(t, store, diskless.WALPrefix)
		victim := objects[len(objects)/2]
		faulty := objstore.NewFaulty(store)
		faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
			if op == objstore.OpGet && key == victim {
				_ = store.Delete(context.Background(), key)
			}
			return objstore.Fault{}
		})
		if err := compactorOn(faulty, small).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		verify(t, store, nil, 1)
	})
}

// TestLateObjects: an object that a replica with a wrong clock puts into a window
// that was compacted gets a window of its own.
func TestLateObjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		fill(t, store, seeded(6), 10, 6, []string{"a"}, 1000)
		time.Sleep(time.Hour)
		all := keys(t, store, diskless.WALPrefix)
		late := all[len(all)/2]
		body := contents(t, store)[late]
		if err := store.Delete(t.Context(), late); err != nil {
			t.Fatal(err)
		}
		c := compactorOn(store, small)
		if err := c.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := store.Put(t.Context(), late, body); err != nil {
			t.Fatal(err)
		}
		time.Sleep(compactor.DefaultLimits().Rescan)
		if err := c.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		verify(t, store, nil, 1)
	})
}

// TestDamagedManifest: what a manifest that cannot be read covered is not known;
// it may be in its segments only, and its name is taken.
func TestDamagedManifest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		fill(t, store, seeded(7), 20, 6, []string{"a"}, 1000)
		time.Sleep(time.Hour)
		if err := compactorOn(store, small).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := contents(t, store)
		victim := keys(t, store, segment.WindowsPrefix)[0]
		if err := store.Put(t.Context(), victim, before[victim][:40]); err != nil {
			t.Fatal(err)
		}
		if err := compactorOn(store, small).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := store.Put(t.Context(), victim, before[victim]); err != nil {
			t.Fatal(err)
		}
		if orphans := verify(t, store, nil, 1); len(orphans) > 0 {
			t.Errorf("%v", orphans)
		}
	})
}

// TestMemory: however much a window holds, no more is read at a time than fits.
func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		fill(t, store, seeded(8), 10, 60, []string{"a", "b"}, 20_000)
		time.Sleep(time.Hour)
		counted := &counting{Store: store}
		limits := compactor.Limits{MemoryBytes: 400 << 10}
		if err := compactorOn(counted, limits).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		verify(t, store, nil, 1)
		if counted.total < 10*limits.MemoryBytes {
			t.Errorf("%d bytes are little more than the memory", counted.total)
		}
		if counted.most > limits.MemoryBytes/2 || counted.body > limits.MemoryBytes/4*5/4 {
			t.Errorf("%d bytes of WAL objects and %d of a segment were in memory; %d are allowed for all", counted.most, counted.body, limits.MemoryBytes)
		}
		if counted.again > 0 {
			t.Errorf("%d WAL objects were read twice", counted.again)
		}
	})
}

// TestTooLarge: an object that does not fit is not called damaged.
func TestTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		fill(t, store, seeded(13), 2, 5, []string{"a"}, 20_000)
		time.Sleep(time.Hour)
		var said bytes.Buffer
		c := compactor.New(compactor.Options{Store: store, Name: "default", Limits: compactor.Limits{MemoryBytes: 10 << 10}, Logger: zerolog.New(&said)})
		if err := c.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(said.String(), "raise compaction.memory_bytes") || strings.Contains(said.String(), "not whole") {
			t.Errorf("it says:\n%s", said.String())
		}
	})
}

// counting notes what is read between two manifests.
type counting struct {
	objstore.Store
	mu                     sync.Mutex
	seen                   map[string]bool
	now, most, body, total int64
	again                  int
}

func (c *counting) Get(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	b, err := c.Store.Get(ctx, key, offset, length)
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.HasPrefix(key, diskless.WALPrefix) {
		if c.seen == nil {
			c.seen = map[string]bool{}
		}
		c.again += count(c.seen[key])
		c.seen[key] = true
		c.now += int64(len(b))
		c.total += int64(len(b))
		c.most = max(c.most, c.now)
	}
	return b, err
}

func (c *counting) Put(ctx context.Context, key string, body []byte) error {
	c.mu.Lock()
	c.body = max(c.body, int64(cap(body)))
	c.mu.Unlock()
	return c.Store.Put(ctx, key, body)
}

func (c *counting) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	c.mu.Lock()
	if strings.HasPrefix(key, segment.WindowsPrefix) {
		c.now = 0
	}
	c.mu.Unlock()
	return c.Store.PutIfAbsent(ctx, key, body)
}

// TestRetention: topics that are kept for different times never share a segment,
// and one with much data shares with none.
func TestRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		topics := []string{"day", "day2", "day3", "forever", "gone", "hour", "week"}
		fill(t, store, seeded(9), 10, 20, append(slices.Clone(topics), "day-large", "day-large", "day-large"), 4000)
		time.Sleep(time.Hour)
		kept := map[string]time.Duration{"day": 24 * time.Hour, "day2": 24*time.Hour - time.Minute, "day3": 30 * time.Hour, "day-large": 24 * time.Hour, "forever": -1, "hour": time.Hour, "week": 7 * 24 * time.Hour}
		c := compactor.New(compactor.Options{
			Store: store, Limits: compactor.Limits{SegmentBytes: 128 << 10}, Logger: zerolog.Nop(),
			Retention: func(_ context.Context, asked []string) map[string]time.Duration {
				if want := append([]string{"day", "day-large"}, topics[1:]...); !slices.Equal(asked, want) {
					t.Errorf("asked for %v", asked)
				}
				return kept
			},
		})
		if err := c.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		verify(t, store, nil, 1)
		var together []string
		for _, key := range keys(t, store, segment.WindowsPrefix) {
			w, _ := segment.ParseWindowKey(key)
			m, err := segment.ReadManifest(t.Context(), store, w)
			if err != nil {
				t.Fatal(err)
			}
			for n := range m.Segments {
				f, err := m.ReadFooter(t.Context(), store, n)
				if err != nil {
					t.Fatal(err)
				}
				names := map[string]bool{}
				for e := range f.Entries() {
					names[e.Topic] = true
				}
				line := fmt.Sprint(m.Segments[n].Bucket)
				for _, topic := range append(topics, "day-large") {
					if names[topic] {
						line += " " + topic
					}
				}
				if !slices.Contains(together, line) {
					together = append(together, line)
				}
			}
		}
		slices.Sort(together)
		if got, want := strings.Join(together, "; "), "forever forever; unknown gone; ≤1h hour; ≤256h week; ≤32h day day2; ≤32h day-large; ≤32h day3"; got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	})
}

// crowd lists slowly, and ends with what comes next.
type crowd struct{ objstore.Store }

var errNext = errors.New("listed")

func (c crowd) List(ctx context.Context, prefix, after string, fn func(objstore.Info) error) error {
	return c.Store.List(ctx, prefix, after, func(i objstore.Info) error {
		time.Sleep(3 * time.Millisecond)
		return fn(i)
	})
}

func (c crowd) PutIfAbsent(context.Context, string, []byte) error { return errNext }

// TestManyObjects: more objects than can be listed by one request are counted all
// the same.
func TestManyObjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		const n = 50_000
		for range n {
			if err := store.Put(t.Context(), diskless.ObjectKey(ulid.Make(), false), nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Hour)
		c := compactor.New(compactor.Options{Store: crowd{store}, Name: "default", Logger: zerolog.Nop(), Progress: func(compactor.Progress) {}})
		if err := c.Pass(t.Context()); !errors.Is(err, errNext) {
			t.Error(err)
		}
		if got := c.Progress().Backlog; got != n {
			t.Errorf("%d objects were counted, of %d", got, n)
		}
	})
}

// TestForeground: nothing is asked of the store while others need it more, and no
// more than is allowed otherwise.
func TestForeground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := objstore.NewMemory()
		fill(t, memory, seeded(10), 10, 20, []string{"a"}, 20_000)
		time.Sleep(time.Hour)
		store := objstore.NewRecording(memory)
		var mu sync.Mutex
		busy := true
		var total int64
		for _, b := range contents(t, memory) {
			total += int64(len(b))
		}
		c := compactor.New(compactor.Options{
			Store: store, Logger: zerolog.Nop(), Limits: compactor.Limits{BytesPerSecond: total / 60},
			Busy: func() bool { mu.Lock(); defer mu.Unlock(); return busy },
		})
		done := make(chan error)
		go func() { done <- c.Pass(t.Context()) }()
		time.Sleep(time.Hour)
		if store.Transcript() != "\n" {
			t.Fatalf("it was asked:\n%s", store.Transcript())
		}
		mu.Lock()
		busy = false
		mu.Unlock()
		started := time.Now()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(started); took < 100*time.Second || took > 140*time.Second {
			t.Errorf("reading and writing %d bytes each at %d a second took %v", total, total/60, took)
		}
		verify(t, memory, nil, 1)
	})
}

// TestClaimIsKept: whoever works for long on a window is not taken for dead.
func TestClaimIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		fill(t, store, seeded(11), 20, 10, []string{"a"}, 20_000)
		time.Sleep(time.Hour)
		slow := small
		slow.BytesPerSecond = 1 << 10
		first, second := compactorOn(store, slow), compactorOn(store, small)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := first.Pass(t.Context()); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(20 * time.Minute)
		if err := second.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p := second.Progress(); p.Windows == 0 || p.Waiting != 1 {
			t.Errorf("%+v: it should have left the first window alone", p)
		}
		wg.Wait()
		if orphans := verify(t, store, nil, 1); len(orphans) > 0 {
			t.Errorf("%v", orphans)
		}
	})
}

// TestRunOutlastsOutages: Run goes on by itself, and says how far behind it is.
func TestRunOutlastsOutages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := objstore.NewMemory()
		fill(t, memory, seeded(12), 10, 5, []string{"a"}, 1000)
		faulty := objstore.NewFaulty(memory)
		faulty.Decide(func(op objstore.Op, _ string) objstore.Fault {
			if op == objstore.OpPut {
				return objstore.Fault{Err: objstore.ErrUnavailable}
			}
			return objstore.Fault{}
		})
		reg := prometheus.NewRegistry()
		c := compactor.New(compactor.Options{Store: faulty, Name: "s", Limits: small, Logger: zerolog.Nop(), Metrics: compactor.NewMetrics(reg)})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { c.Run(ctx); close(ended) }()
		time.Sleep(3 * time.Hour)
		if behind := gauge(t, reg, "sluice_compaction_behind_seconds"); behind < 2*3600 {
			t.Errorf("%v seconds behind after an outage of three hours", behind)
		}
		faulty.Decide(nil)
		time.Sleep(10 * time.Minute)
		verify(t, memory, nil, 1)
		if behind := gauge(t, reg, "sluice_compaction_behind_seconds"); behind != 0 {
			t.Errorf("still %v seconds behind", behind)
		}
		cancel()
		<-ended
	})
}

func gauge(t testing.TB, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.Metric[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no %s", name)
	return 0
}

// TestStoredAgainstRetained: what segments take for as long as anything in them is
// retained, against what is retained of it. It is what a store holds against what Kafka
// retains where all is written at an even pace.
func TestStoredAgainstRetained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := map[string]time.Duration{}
		for hours := 17; hours < 720; hours += 1 + hours/9 { // several in each bucket
			kept[fmt.Sprintf("kept-%03dh", hours)] = time.Duration(hours)*time.Hour - time.Minute
		}
		store := objstore.NewMemory()
		fill(t, store, seeded(5), 20, 60, slices.Sorted(maps.Keys(kept)), 4000)
		time.Sleep(time.Hour)
		c := compactor.New(compactor.Options{Store: store, Logger: zerolog.Nop(), Limits: compactor.Limits{Merge: time.Hour}, Retention: func(context.Context, []string) map[string]time.Duration { return kept }})
		if err := c.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, level := range []segment.Level{segment.Level1, segment.Level2} {
			var stored, retained float64
			for _, m := range manifests(t, store, level) {
				for n := range m.Segments {
					f, err := m.ReadFooter(t.Context(), store, n)
					if err != nil {
						t.Fatal(err)
					}
					longest := time.Duration(0)
					for e := range f.Entries() {
						longest = max(longest, kept[e.Topic])
						retained += float64(e.Length) * kept[e.Topic].Hours()
					}
					stored += float64(m.Segments[n].Size) * longest.Hours()
				}
			}
			t.Logf("level %d: %.3f byte hours are stored for one that is retained", level, stored/retained)
			if retained == 0 || stored > 1.1*retained {
				t.Errorf("level %d: %.0f byte hours are stored for %.0f that are retained", level, stored, retained)
			}
		}
	})
}
