package compactor_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
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

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
)

var merging = compactor.Limits{Merge: time.Hour, MemoryBytes: 1 << 20, SegmentBytes: 64 << 10}

// manifests are those of a level.
func manifests(t testing.TB, store objstore.Store, level segment.Level) (all []*segment.Manifest) {
	t.Helper()
	for _, key := range keys(t, store, segment.LevelPrefix(level)) {
		w, ok := segment.ParseWindowKey(key)
		if !ok {
			t.Fatal(key)
		}
		m, err := segment.ReadManifest(t.Context(), store, w)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

// wantMerged wants every WAL object in one window of level 1, and in one of level 2
// where its slice of time has more than one of level 1.
func wantMerged(t testing.TB, store objstore.Store, length time.Duration) (merged int) {
	t.Helper()
	one, two := manifests(t, store, segment.Level1), manifests(t, store, segment.Level2)
	slice := func(id ulid.ULID) time.Time { return id.Timestamp().UTC().Truncate(length) }
	windows := map[time.Time]int{}
	for _, m := range one {
		windows[slice(m.Objects[0].ID)]++
	}
	for _, key := range keys(t, store, diskless.WALPrefix) {
		id, _, _ := diskless.ParseObjectKey(key)
		in := func(ms []*segment.Manifest) (n int) {
			for _, m := range ms {
				n += count(m.Covers(id))
			}
			return n
		}
		if in(one) != 1 || in(two) != count(windows[slice(id)] > 1) {
			t.Fatalf("%s is in %d windows of level 1 and %d of level 2; its slice of time has %d of level 1", id, in(one), in(two), windows[slice(id)])
		}
		merged += in(two)
	}
	return merged
}

// TestEveryBatchIsMerged, whatever the limits, the topics and their retention.
func TestEveryBatchIsMerged(t *testing.T) {
	total := 0
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { total += everyBatchIsMerged(t, seed) })
		})
	}
	if total == 0 {
		t.Error("nothing was ever merged")
	}
}

func everyBatchIsMerged(t *testing.T, seed uint64) (merged int) {
	r := seeded(seed)
	store := objstore.NewMemory()
	topics := []string{"a", "b", "otel.metrics-ü", "z"}[:1+r.IntN(4)]
	fill(t, store, r, 1+r.IntN(40), r.IntN(10), topics, []int{10, 5000, 40_000}[r.IntN(3)])
	time.Sleep(2 * time.Hour)
	limits := compactor.Limits{
		Window:       []time.Duration{time.Minute, 5 * time.Minute, 10 * time.Minute}[r.IntN(3)],
		Merge:        []time.Duration{10 * time.Minute, 30 * time.Minute, time.Hour}[r.IntN(3)],
		MemoryBytes:  []int64{16 << 20, 64 << 20}[r.IntN(2)],
		SegmentBytes: []int64{1 << 10, 64 << 10, 16 << 20}[r.IntN(3)],
	}
	c := compactor.New(compactor.Options{Store: store, Name: "default", Limits: limits, Logger: zerolog.Nop(),
		Retention: func(_ context.Context, topics []string) map[string]time.Duration {
			of := map[string]time.Duration{}
			for _, topic := range topics {
				of[topic] = []time.Duration{time.Hour, -1, 24 * time.Hour}[r.IntN(3)] // it may change in between
			}
			return of
		}})
	for range 2 { // the second finds nothing to do
		if err := c.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		if orphans := verify(t, store, func(ulid.ULID) bool { return false }, 0); len(orphans) > 0 {
			t.Fatalf("orphans: %v", orphans)
		}
		merged = wantMerged(t, store, limits.Merge)
	}
	if claims := keys(t, store, segment.ClaimsPrefix); len(claims) > 0 {
		t.Fatalf("claims are left: %v", claims)
	}
	// What was merged needs what it was made of no more.
	two := manifests(t, store, segment.Level2)
	for _, m := range manifests(t, store, segment.Level1) {
		if slices.ContainsFunc(two, func(into *segment.Manifest) bool { return into.Covers(m.Objects[0].ID) }) {
			for n := range m.Segments {
				_ = store.Delete(t.Context(), m.Key(n))
			}
			_ = store.Delete(t.Context(), m.Window().Key())
		}
	}
	verify(t, store, nil, 1)
	left := len(contents(t, store))
	time.Sleep(compactor.DefaultLimits().Rescan)
	if err := c.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := len(contents(t, store)); now != left {
		t.Fatalf("%d objects after another pass, %d before it", now, left)
	}
	return merged
}

// TestCrashAnywhereInAMerge: a compactor dies at each of its requests in turn,
// before or after it took effect; another one finishes the work.
func TestCrashAnywhereInAMerge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := objstore.NewMemory()
		fill(t, full, seeded(2), 30, 2, []string{"a", "b", "c"}, 20_000)
		time.Sleep(2 * time.Hour)
		limits := merging
		limits.Concurrency = 1
		plain := limits
		plain.Merge = 0
		if err := compactorOn(full, plain).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := contents(t, full)
		for _, after := range []bool{false, true} {
			published := 0
			crashAnywhere(t, before, limits, after, func(store objstore.Store) {
				published += len(keys(t, store, segment.LevelPrefix(segment.Level2)))
			}, func(store objstore.Store) int {
				orphaned := len(verify(t, store, func(ulid.ULID) bool { return false }, 0))
				if wantMerged(t, store, limits.Merge) == 0 {
					t.Fatal("nothing was merged")
				}
				now := contents(t, store)
				for key, b := range before {
					if !bytes.Equal(now[key], b) {
						t.Fatalf("%s was changed", key)
					}
				}
				return orphaned
			})
			if after && published == 0 {
				t.Error("too little has happened to prove anything")
			}
		}
	})
}

// TestTwoMergeAtOnce: where they do the same, nothing is wrong and nothing is left
// over.
func TestTwoMergeAtOnce(t *testing.T) {
	for name, timeout := range map[string]time.Duration{"sharing": 0, "each takes the others for dead": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := objstore.NewMemory()
				fill(t, store, seeded(3), 150, 2, []string{"a", "b"}, 20_000)
				time.Sleep(2 * time.Hour)
				limits := merging
				limits.ClaimTimeout = timeout
				threeAtOnce(t, store, limits, 4)
				if orphans := verify(t, store, func(ulid.ULID) bool { return false }, 0); len(orphans) > 0 {
					t.Errorf("left over: %v", orphans)
				}
				if wantMerged(t, store, limits.Merge) == 0 {
					t.Error("nothing was merged")
				}
			})
		})
	}
}

// TestWhatIsNotMerged: in every doubt windows stay as they are, and nothing of the
// attempt is left.
func TestWhatIsNotMerged(t *testing.T) {
	plain := merging
	plain.Merge = 0
	var one []*segment.Manifest // of level 1
	var garbled segment.Window  // of level 2, of all that there is
	var objects []segment.Object
	put := func(store objstore.Store, key string, change func(b []byte) []byte) {
		b, err := store.Get(context.Background(), key, 0, -1)
		if err == nil {
			err = store.Put(context.Background(), key, change(bytes.Clone(b)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const none, some = "none", "some"
	for name, c := range map[string]struct {
		limits compactor.Limits
		harm   func(store objstore.Store)
		fault  func(op objstore.Op, key string) objstore.Fault
		sleep  time.Duration
		merges string
		fails  bool
		says   string
	}{
		"as it should be":         {merges: some},
		"off":                     {limits: plain, merges: none},
		"old":                     {sleep: 23*time.Hour + 30*time.Minute, merges: none},
		"a segment that is gone":  {harm: func(s objstore.Store) { _ = s.Delete(context.Background(), one[1].Key(0)) }, merges: none},
		"a footer that is cut":    {harm: func(s objstore.Store) { put(s, one[1].Key(0), func(b []byte) []byte { return b[:len(b)-5] }) }, merges: none},
		"a batch that is damaged": {harm: func(s objstore.Store) { put(s, one[4].Key(0), func(b []byte) []byte { b[100] ^= 1; return b }) }, merges: none, says: "fsck --repair"},
		"a manifest that is damaged": {harm: func(s objstore.Store) { put(s, one[1].Window().Key(), func(b []byte) []byte { return b[:40] }) },
			merges: some},
		"a manifest of level 2 that is damaged": {harm: func(s objstore.Store) { _ = s.Put(context.Background(), garbled.Key(), []byte("x")) }, merges: none},
		"a manifest of level 2 of a version to come": {harm: func(s objstore.Store) {
			b, _ := (&segment.Manifest{Level: segment.Level2, Run: ulid.Make(), Objects: objects}).Encode()
			b[len(b)-8]++
			_ = s.Put(context.Background(), garbled.Key(), b)
		}, merges: none},
		"a manifest that cannot be read": {fault: func(op objstore.Op, key string) objstore.Fault {
			if op == objstore.OpGet && key == one[1].Window().Key() {
				return objstore.Fault{Err: objstore.ErrAccess}
			}
			return objstore.Fault{}
		}, merges: none, fails: true},
		"a manifest of level 2 that cannot be read": {harm: func(s objstore.Store) {
			b, _ := (&segment.Manifest{Level: segment.Level2, Run: ulid.Make(), Objects: objects}).Encode()
			_ = s.Put(context.Background(), garbled.Key(), b)
		}, fault: func(op objstore.Op, key string) objstore.Fault {
			if op == objstore.OpGet && key == garbled.Key() {
				return objstore.Fault{Err: objstore.ErrAccess}
			}
			return objstore.Fault{}
		}, merges: none, fails: true},
		"a store that does not give segments": {fault: func(op objstore.Op, key string) objstore.Fault {
			if op == objstore.OpGet && strings.HasPrefix(key, segment.DataPrefix) {
				return objstore.Fault{Err: objstore.ErrUnavailable}
			}
			return objstore.Fault{}
		}, merges: none, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := objstore.NewMemory()
				time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)))
				fill(t, store, seeded(5), 50, 4, []string{"a", "b"}, 20_000)
				time.Sleep(time.Hour)
				if err := compactorOn(store, plain).Pass(context.Background()); err != nil {
					t.Fatal(err)
				}
				one, objects = manifests(t, store, segment.Level1), nil
				for _, m := range one {
					objects = append(objects, m.Objects...)
				}
				garbled = segment.Window{Level: segment.Level2, First: objects[0].ID, Last: objects[len(objects)-1].ID}
				if c.harm != nil {
					c.harm(store)
				}
				if c.limits == (compactor.Limits{}) {
					c.limits = merging
				}
				before := contents(t, store)
				time.Sleep(c.sleep)
				faulty := objstore.NewFaulty(store)
				faulty.Decide(c.fault)
				var said bytes.Buffer
				reg := prometheus.NewRegistry()
				m := compactor.New(compactor.Options{Store: faulty, Name: "default", Limits: c.limits, Logger: zerolog.New(&said), Metrics: compactor.NewMetrics(reg)})
				for range 2 {
					if err := m.Pass(context.Background()); (err != nil) != c.fails {
						t.Errorf("it says: %v", err)
					}
				}
				after := contents(t, store)
				if fresh := len(after) - len(before); (fresh > 0) != (c.merges == some) {
					var names []string
					for key := range after {
						if before[key] == nil {
							names = append(names, key)
						}
					}
					t.Errorf("there are %d new objects: %v", fresh, names)
				}
				for key, b := range before {
					if !bytes.Equal(after[key], b) {
						t.Errorf("%s has changed", key)
					}
				}
				if c.says != "" && strings.Count(said.String(), c.says) != 1 {
					t.Errorf("it says:\n%s", said.String())
				}
				if n, err := testutil.GatherAndCount(reg, "sluice_compaction_merges_total"); err != nil || n != count(!c.fails && name != "off" && name != "old" && !strings.Contains(name, "level 2")) {
					t.Errorf("%d merges are counted: %v", n, err)
				}
			})
		})
	}
}

// TestLargePiecesAreNotMerged: they are read by GETs of their own already.
func TestLargePiecesAreNotMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, large := range []bool{true, false} {
			store := objstore.NewMemory()
			fill(t, store, seeded(6), 30, 2+count(large)*10, []string{"a"}, 120_000)
			time.Sleep(2 * time.Hour)
			c := compactorOn(store, compactor.Limits{Merge: time.Hour, MemoryBytes: 256 << 20})
			if err := c.Pass(t.Context()); err != nil {
				t.Fatal(err)
			}
			pieces, all := int64(0), int64(0)
			for _, m := range manifests(t, store, segment.Level1) {
				for _, s := range m.Segments {
					all += s.Size
					pieces += 4
				}
			}
			if got := len(manifests(t, store, segment.Level2)); (got == 0) != large {
				t.Errorf("pieces of about %d bytes: %d windows of level 2", all/pieces, got)
			}
		}
	})
}

// torn does not list some of what is there.
type torn struct {
	objstore.Store
	hides func(prefix, key string) bool
}

func (s torn) List(ctx context.Context, prefix, after string, fn func(objstore.Info) error) error {
	return s.Store.List(ctx, prefix, after, func(i objstore.Info) error {
		if s.hides(prefix, i.Key) {
			return nil
		}
		return fn(i)
	})
}

// TestMergeWithATornListing: what is not listed is not merged, and is where it was.
// One that hides level 2 costs bytes at most.
func TestMergeWithATornListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := objstore.NewMemory()
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)))
		fill(t, full, seeded(7), 50, 4, []string{"a", "b"}, 20_000)
		time.Sleep(2 * time.Hour)
		plain := merging
		plain.Merge = 0
		if err := compactorOn(full, plain).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		level1, level2 := segment.LevelPrefix(segment.Level1), segment.LevelPrefix(segment.Level2)
		hidden := keys(t, full, level1)[1]
		w, _ := segment.ParseWindowKey(hidden)
		for name, c := range map[string]struct {
			hides func(prefix, key string) bool
			want  int
		}{
			"one, of who merges":     {func(prefix, key string) bool { return prefix == level1 && key == hidden }, 1},
			"one, of all":            {func(_, key string) bool { return key == hidden }, 0},
			"all, of who merges":     {func(prefix, _ string) bool { return prefix == level1 }, 0},
			"level 2, after merging": {func(prefix, key string) bool { return strings.HasPrefix(key, level2) }, 1},
		} {
			store := clone(t, contents(t, full))
			if strings.HasPrefix(name, "level 2") {
				if err := compactorOn(store, merging).Pass(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			_ = compactorOn(torn{store, c.hides}, merging).Pass(t.Context())
			two := manifests(t, store, segment.Level2)
			if len(two) != c.want || strings.HasPrefix(name, "one") && slices.ContainsFunc(two, func(m *segment.Manifest) bool { return m.Covers(w.First) }) {
				t.Errorf("%s: %d windows of level 2", name, len(two))
			}
			for key, b := range contents(t, full) {
				if now, err := store.Get(t.Context(), key, 0, -1); err != nil || !bytes.Equal(now, b) {
					t.Errorf("%s: %s has changed: %v", name, key, err)
				}
			}
			if orphans := verify(t, store, func(ulid.ULID) bool { return false }, 0); len(orphans) > 0 {
				t.Errorf("%s: %v", name, orphans)
			}
		}
	})
}

// reading notes the largest GET of a segment and the largest PUT.
type reading struct {
	objstore.Store
	mu              sync.Mutex
	get, put, total int64
	now, most       int64 // bytes that are being read
}

func (s *reading) Get(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	ours := strings.HasPrefix(key, segment.DataPrefix)
	s.mu.Lock()
	if ours {
		s.now += length
		s.most = max(s.most, s.now)
	}
	s.mu.Unlock()
	b, err := s.Store.Get(ctx, key, offset, length)
	s.mu.Lock()
	defer s.mu.Unlock()
	if ours {
		s.now -= length
		s.get = max(s.get, int64(len(b)))
		s.total += int64(len(b))
	}
	return b, err
}

func (s *reading) Put(ctx context.Context, key string, body []byte) error {
	s.mu.Lock()
	s.put = max(s.put, int64(cap(body)))
	s.mu.Unlock()
	return s.Store.Put(ctx, key, body)
}

// TestMemoryOfAMerge: however much is merged, each byte is read once, and no more is
// in memory at a time than a segment and what is read for it.
func TestMemoryOfAMerge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		fill(t, store, seeded(8), 50, 60, []string{"a", "b"}, 8_000)
		time.Sleep(2 * time.Hour)
		limits := compactor.Limits{MemoryBytes: 800 << 10}
		if err := compactorOn(store, limits).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		limits.Merge = time.Hour
		counted := &reading{Store: objstore.NewFaulty(store)}
		counted.Store.(*objstore.Faulty).Decide(func(objstore.Op, string) objstore.Fault { return objstore.Fault{Delay: time.Second} })
		if err := compactorOn(counted, limits).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		verify(t, store, func(ulid.ULID) bool { return false }, 0)
		payload := int64(0)
		for _, m := range manifests(t, store, segment.Level2) {
			for _, s := range m.Segments {
				payload += s.Size
			}
		}
		if payload < 10*limits.MemoryBytes {
			t.Errorf("%d bytes are little more than the memory", payload)
		}
		if counted.get > limits.MemoryBytes/16 || counted.most > limits.MemoryBytes/4 || counted.put > limits.MemoryBytes/4*5/4 {
			t.Errorf("a GET of %d bytes, %d at a time, and a segment of %d; %d are allowed for all", counted.get, counted.most, counted.put, limits.MemoryBytes)
		}
		if counted.total > payload+payload/100 {
			t.Errorf("%d bytes were read of %d", counted.total, payload)
		}
	})
}

// TestMergeYields: merging asks nothing of the store while others need it, and
// compaction does not wait for all of it.
func TestMergeYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := objstore.NewMemory()
		fill(t, memory, seeded(10), 50, 5, []string{"a"}, 20_000)
		time.Sleep(2 * time.Hour)
		plain := merging
		plain.Merge = 0
		if err := compactorOn(memory, plain).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := len(contents(t, memory))
		store := objstore.NewRecording(memory)
		var mu sync.Mutex
		busy := false
		asked := 0
		c := compactor.New(compactor.Options{
			Store: store, Logger: zerolog.Nop(), Limits: merging,
			Busy: func() bool {
				mu.Lock()
				defer mu.Unlock()
				if asked++; asked == 20 { // in the middle of merging
					busy = true
				}
				return busy
			},
		})
		done := make(chan error)
		go func() { done <- c.Pass(t.Context()) }()
		time.Sleep(time.Minute)
		said := store.Transcript()
		time.Sleep(time.Minute)
		now := store.Transcript()
		for _, line := range strings.Split(strings.TrimSpace(strings.TrimPrefix(now, said)), "\n") {
			if line != "" && !strings.Contains(line, segment.ClaimsPrefix) {
				t.Errorf("it was asked: %s", line)
			}
		}
		mu.Lock()
		busy, asked = false, 100
		mu.Unlock()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(contents(t, memory)) <= before {
			t.Error("nothing was merged")
		}
	})
}

// TestCompactionComesFirst: while windows become ripe, they are compacted between two
// slices of time that are merged.
func TestCompactionComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		limits := merging
		limits.Window = time.Minute
		plain := limits
		plain.Merge = 0
		fill(t, store, seeded(11), 200, 1, []string{"a"}, 20_000)
		time.Sleep(30 * time.Minute)
		if err := compactorOn(store, plain).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		fill(t, store, seeded(12), 20, 1, []string{"a"}, 20_000)
		limits.BytesPerSecond = 12 << 10 // a slice takes longer than a window
		if err := compactorOn(store, limits).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		// Runs bear the time at which they began.
		runs := map[ulid.ULID]segment.Level{}
		for _, level := range []segment.Level{segment.Level1, segment.Level2} {
			for _, m := range manifests(t, store, level) {
				runs[m.Run] = level
			}
		}
		order := ""
		for _, run := range slices.SortedFunc(maps.Keys(runs), ulid.ULID.Compare) {
			order += fmt.Sprint(int(runs[run]))
		}
		if first := strings.Index(order, "2"); first < 0 || strings.Count(order, "2") < 3 || !strings.Contains(order[first:], "1") || strings.Contains(order, "222") {
			t.Errorf("the levels of runs, in time: %s", order)
		}
	})
}

// TestOverlappingWindowsAreMerged: what two compactors wrote, that cut windows
// differently and saw nothing of each other, is in level 2 once.
func TestOverlappingWindowsAreMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)))
		fill(t, store, seeded(13), 30, 4, []string{"a", "b"}, 20_000)
		time.Sleep(2 * time.Hour)
		for _, window := range []time.Duration{10 * time.Minute, 7 * time.Minute} {
			limits := compactor.Limits{Window: window}
			if err := compactorOn(torn{store, func(_, key string) bool { return strings.HasPrefix(key, segment.WindowsPrefix) }}, limits).Pass(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		verify(t, store, nil, 2)
		if err := compactorOn(store, merging).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(manifests(t, store, segment.Level2)); n != 1 {
			t.Errorf("%d windows of level 2", n)
		}
		verify(t, store, nil, 3)
	})
}

// TestAnotherMergeWasFaster: of others' windows, cut differently, what was merged
// meanwhile is not merged again.
func TestAnotherMergeWasFaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := objstore.NewMemory()
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)))
		fill(t, store, seeded(14), 50, 4, []string{"a", "b"}, 20_000)
		time.Sleep(2 * time.Hour)
		plain, halves := merging, merging
		plain.Merge, halves.Merge, halves.ClaimTimeout = 0, 30*time.Minute, time.Millisecond
		if err := compactorOn(store, plain).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		slow := objstore.NewFaulty(store)
		slow.Decide(func(op objstore.Op, key string) objstore.Fault {
			if op == objstore.OpPut && strings.HasPrefix(key, segment.DataPrefix) {
				return objstore.Fault{Delay: 10 * time.Second}
			}
			return objstore.Fault{}
		})
		done := make(chan error)
		go func() { done <- compactorOn(slow, merging).Pass(t.Context()) }()
		time.Sleep(15 * time.Second)
		if err := compactorOn(store, halves).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if orphans := verify(t, store, func(ulid.ULID) bool { return false }, 0); len(orphans) > 0 {
			t.Errorf("left over: %v", orphans)
		}
		wantMerged(t, store, halves.Merge)
	})
}
