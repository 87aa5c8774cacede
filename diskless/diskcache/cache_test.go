package diskcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/objstore/storetest"
)

const testQueue = 1 << 20

// openTest opens a cache on a folder and waits until it is in use.
func openTest(t testing.TB, dir string, max int64) *Cache {
	t.Helper()
	c := Open(Options{Dir: dir, Bytes: max, QueueBytes: testQueue, Logger: zerolog.Nop(), Metrics: NewMetrics(prometheus.NewRegistry())})
	t.Cleanup(c.Close)
	await(t, c, func() bool { return c.on })
	return c
}

// await waits until something holds; what is looked at under mu.
func await(t testing.TB, c *Cache, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(offFor / 2); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		done := holds()
		c.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not come to be; the disk is used: %v, %v", c.on, c.cause)
		}
	}
}

// settle waits until all that was added is on disk.
func settle(t testing.TB, c *Cache) {
	t.Helper()
	await(t, c, func() bool { return c.on && len(c.queue) == 0 && len(c.pending) == 0 })
}

// through reads through a cache.
type through struct {
	objstore.Store
	cache *Cache
	t     testing.TB

	mu     sync.Mutex
	ranges map[string][]string // keys in the cache, by object
}

func (s *through) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.ranges[key] {
		s.cache.Remove(k)
	}
	delete(s.ranges, key)
}

func (s *through) Put(ctx context.Context, key string, body []byte) error {
	s.forget(key)
	return s.Store.Put(ctx, key, body)
}

func (s *through) Delete(ctx context.Context, key string) error {
	s.forget(key)
	return s.Store.Delete(ctx, key)
}

// Get asks the store first and returns what the cache makes of its answer.
func (s *through) Get(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	b, err := s.Store.Get(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	k := fmt.Sprintf("%s %d+%d", key, offset, length)
	s.mu.Lock()
	s.ranges[key] = append(s.ranges[key], k)
	s.mu.Unlock()
	s.cache.Add(k, b, true)
	settle(s.t, s.cache)
	if found := s.cache.Get(k); found != nil || len(b) > 0 {
		return found, nil
	}
	return b, nil
}

func TestStoreThroughCache(t *testing.T) {
	storetest.Suite(t, func(t *testing.T) objstore.Store {
		c := Open(Options{Dir: t.TempDir(), Bytes: 1 << 30, QueueBytes: 32 << 20, Logger: zerolog.Nop(), Metrics: NewMetrics(prometheus.NewRegistry())})
		t.Cleanup(c.Close)
		await(t, c, func() bool { return c.on })
		return &through{Store: objstore.NewMemory(), cache: c, t: t, ranges: map[string][]string{}}
	})
}

// onDisk is the files of ours, by path.
func onDisk(t testing.TB, dir string) map[string]int64 {
	t.Helper()
	found := map[string]int64{}
	err := filepath.WalkDir(filepath.Join(dir, folderName), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			found[path] = info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestWhateverBecomesOfTheFiles: a cache gives back what was added under a key or
// nothing, and stays within its bound, whoever does what to its files, wherever it
// is killed.
func TestWhateverBecomesOfTheFiles(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const max = 256 << 10
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		c := openTest(t, dir, max)
		defer func() { c.Close() }()
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		model := map[string][]byte{}
		grown := false // somebody wrote more into files than the cache did
		some := func() string {
			paths := slices.Sorted(maps.Keys(onDisk(t, dir)))
			if len(paths) == 0 {
				return filepath.Join(dir, "none")
			}
			return paths[random.IntN(len(paths))]
		}
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			key := fmt.Sprint("key-", rapid.IntRange(0, 30).Draw(rt, "key"))
			switch rapid.SampledFrom([]string{"add", "add", "add", "add", "get", "get", "get", "remove", "flip", "truncate", "grow", "delete", "swap", "empty", "wipe", "crash", "settle"}).Draw(rt, "step") {
			case "add":
				if model[key] == nil {
					model[key] = make([]byte, 1+random.IntN(30<<10))
					for i := range model[key] {
						model[key][i] = byte(random.Uint32())
					}
				}
				c.Add(key, model[key], random.IntN(2) == 0)
			case "get":
				if got := c.Get(key); got != nil && !bytes.Equal(got, model[key]) {
					rt.Fatalf("%s: %d bytes that are not its own", key, len(got))
				}
			case "remove":
				c.Remove(key)
				delete(model, key) // the next add has other bytes
			case "flip":
				grown = true // another file may get it
				if b, err := os.ReadFile(some()); err == nil && len(b) > 0 {
					b[random.IntN(len(b))] ^= 1 << random.IntN(8)
					_ = os.WriteFile(some(), b, 0o600)
				}
			case "truncate":
				path := some()
				_ = os.Truncate(path, random.Int64N(onDisk(t, dir)[path]+1))
			case "grow":
				grown = true
				path := some()
				_ = os.Truncate(path, onDisk(t, dir)[path]+1)
			case "delete":
				_ = os.Remove(some())
			case "swap":
				_ = os.Rename(some(), some())
			case "empty":
				for path := range onDisk(t, dir) {
					_ = os.Remove(path)
				}
			case "wipe":
				_ = os.RemoveAll(filepath.Join(dir, folderName))
			case "crash":
				c.Close()
				if random.IntN(2) == 0 {
					_ = os.WriteFile(filepath.Join(dir, folderName, tempName), []byte("half a file"), 0o600)
				}
				c, grown = openTest(t, dir, max), false
			case "settle":
				settle(t, c)
				total := int64(0)
				for _, size := range onDisk(t, dir) {
					total += blocks(size)
				}
				if total > max && !grown {
					rt.Fatalf("%d bytes on disk, of %d", total, max)
				}
				c.mu.Lock()
				held := c.recent.bytes + c.scan.bytes
				c.mu.Unlock()
				if held > max {
					rt.Fatalf("%d bytes, of %d", held, max)
				}
			}
		}
		settle(t, c)
		for key := range model {
			if got := c.Get(key); got != nil && !bytes.Equal(got, model[key]) {
				rt.Fatalf("%s: %d bytes that are not its own", key, len(got))
			}
		}
	})
}

func body(n int, fill byte) []byte { return bytes.Repeat([]byte{fill}, n) }

func TestWarmAfterARestart(t *testing.T) {
	dir := t.TempDir()
	c := openTest(t, dir, 1<<20)
	for i := range 10 {
		c.Add(fmt.Sprint(i), body(1000, byte(i)), i%2 == 0)
	}
	settle(t, c)
	c.Close()
	if c.Get("3") != nil {
		t.Error("a closed cache answers")
	}
	c = openTest(t, dir, 5*block)
	found := 0
	for i := range 10 {
		if b := c.Get(fmt.Sprint(i)); b != nil {
			found++
			if !bytes.Equal(b, body(1000, byte(i))) {
				t.Errorf("%d: other bytes", i)
			}
		}
	}
	if left := len(onDisk(t, dir)); found != 5 || left != 5 {
		t.Errorf("%d chunks found, %d files left; there is room for 5", found, left)
	}
}

// TestScansLeaveWhatIsRecent: a catch-up scan takes what is free and what is more
// than half, and so does the tail.
func TestScansLeaveWhatIsRecent(t *testing.T) {
	c := openTest(t, t.TempDir(), 20*block)
	add := func(kind string, n int, recent bool) {
		for i := range n {
			c.Add(fmt.Sprint(kind, i), body(1000, 1), recent)
			settle(t, c)
		}
	}
	want := func(recent, scan int) {
		t.Helper()
		if r, s := c.recent.lru.Len(), c.scan.lru.Len(); r != recent || s != scan {
			t.Errorf("%d recent and %d of scans, want %d and %d", r, s, recent, scan)
		}
	}
	add("tail", 15, true)
	want(15, 0)
	add("scan", 5, false)
	want(15, 5)
	add("more", 100, false)
	want(10, 10)
	for i := 5; i < 15; i++ {
		if c.Get(fmt.Sprint("tail", i)) == nil {
			t.Errorf("chunk %d of the tail is gone", i)
		}
	}
	add("new", 20, true)
	want(11, 9)
}

func TestAnotherProcessHasTheFolder(t *testing.T) {
	dir := t.TempDir()
	first := openTest(t, dir, 1<<20)
	first.Add("k", body(10, 1), true)
	settle(t, first)
	var log lines
	second := Open(Options{Dir: dir, Bytes: 1 << 20, QueueBytes: testQueue, Logger: zerolog.New(&log), Metrics: NewMetrics(prometheus.NewRegistry())})
	defer second.Close()
	for deadline := time.Now().Add(offFor / 2); log.count("another process uses the folder") == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the second one is not refused")
		}
	}
	second.Add("k", body(10, 2), true)
	if second.Get("k") != nil || !bytes.Equal(first.Get("k"), body(10, 1)) {
		t.Error("both use it")
	}
}

func TestNobodyElseMayLookIn(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := t.TempDir()
	c := openTest(t, dir, 1<<20)
	c.Add("k", body(10, 1), true)
	settle(t, c)
	c.Close()
	if err := filepath.WalkDir(filepath.Join(dir, folderName), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, folderName), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Check(dir, 1<<20); err == nil || !strings.Contains(err.Error(), "open to others") {
		t.Errorf("%v", err)
	}
	elsewhere := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(elsewhere, folderName)); err != nil {
		t.Fatal(err)
	}
	if err := Check(elsewhere, 1<<20); err == nil || !strings.Contains(err.Error(), "is no folder") {
		t.Errorf("a link: %v", err)
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	if err := Check(dir, 1<<20); err != nil {
		t.Error(err)
	}
	if err := Check(dir, 1<<60); err == nil || !strings.Contains(err.Error(), "lower disk_cache.bytes") {
		t.Errorf("an exbibyte: %v", err)
	}
	if err := Check(filepath.Join(dir, "none"), 1<<20); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if left := onDisk(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	defer openTest(t, dir, 1<<20).Close()
	if err := Check(dir, 1<<20); err != nil {
		t.Errorf("beside a replica: %v", err)
	}
}

// lines is a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(b))
	return len(b), nil
}

func (l *lines) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// badDisk is a disk in memory that fails or hangs when it is told to.
type badDisk struct {
	mu       sync.Mutex
	held     map[name][]byte
	opening  error
	reading  error
	writing  error
	slow     time.Duration // of reads
	slowly   time.Duration // of writes
	attempts int           // to open
}

func (d *badDisk) set(fn func(*badDisk)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn(d)
}

func (d *badDisk) open() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attempts++
	return d.opening
}

func (d *badDisk) files(fn func(file) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n, b := range d.held {
		if err := fn(file{n, int64(len(b)), time.Time{}}); err != nil {
			return err
		}
	}
	return nil
}

func (d *badDisk) read(n name, _ int64) ([]byte, error) {
	d.mu.Lock()
	wait, b, err := d.slow, d.held[n], d.reading
	d.mu.Unlock()
	time.Sleep(wait)
	return b, err
}

func (d *badDisk) write(n name, parts ...[]byte) error {
	d.mu.Lock()
	wait := d.slowly
	d.mu.Unlock()
	time.Sleep(wait)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writing == nil {
		d.held[n] = bytes.Join(parts, nil)
	}
	return d.writing
}

func (d *badDisk) remove(n name) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.held, n)
	return nil
}

func (d *badDisk) try() error     { return nil }
func (d *badDisk) close()         {}
func (d *badDisk) String() string { return "bad" }

// TestABadDiskIsLeftAlone: for a minute, with a line in the log and a metric, and
// with no reader held up for longer than it takes to notice.
func TestABadDiskIsLeftAlone(t *testing.T) {
	for _, c := range []struct {
		name   string
		breaks func(*badDisk)
		reason string
		within time.Duration // for all reads together
	}{
		{"it cannot be opened", func(d *badDisk) { d.opening, d.writing = syscall.EIO, syscall.EIO }, writeError, 0},
		{"reads fail", func(d *badDisk) { d.reading = syscall.EIO }, readError, 0},
		{"it is full", func(d *badDisk) { d.writing = syscall.ENOSPC }, writeError, 0},
		{"reads hang", func(d *badDisk) { d.slow = 2 * time.Minute }, slowError, readers * readWait},
		{"writes take long", func(d *badDisk) { d.slowly = time.Minute }, slowError, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				d := &badDisk{held: map[name][]byte{}}
				m := NewMetrics(prometheus.NewRegistry())
				cache := open(Options{Bytes: 1 << 20, QueueBytes: testQueue, Logger: zerolog.New(&log), Metrics: m}, d)
				defer cache.Close()
				synctest.Wait()
				cache.Add("old", body(1000, 1), true)
				synctest.Wait()
				if cache.Get("old") == nil || testutil.ToFloat64(m.up) != 1 {
					t.Fatal("it does not work to begin with")
				}
				d.set(c.breaks)
				cache.Add("new", body(1000, 2), true)
				started := time.Now()
				for range 10 {
					cache.Get("old")
				}
				if took := time.Since(started); took > c.within {
					t.Errorf("ten reads took %v", took)
				}
				time.Sleep(2*time.Minute + time.Second) // also for a slow write
				if testutil.ToFloat64(m.errors.WithLabelValues(c.reason)) == 0 {
					t.Errorf("no error %q", c.reason)
				}
				if n := log.count("cannot be used"); n != 1 {
					t.Errorf("%d lines in the log, want one: %q", n, log.all)
				}
				d.set(func(d *badDisk) { d.opening, d.reading, d.writing, d.slow, d.slowly = nil, nil, nil, 0, 0 })
				time.Sleep(2 * offFor)
				cache.Add("newer", body(1000, 3), true)
				synctest.Wait()
				if cache.Get("newer") == nil || testutil.ToFloat64(m.up) != 1 || log.count("in use again") != 1 {
					t.Errorf("it does not work again; the log: %q", log.all)
				}
			})
		})
	}
}

// TestAQueueIsBounded: what a slow disk has no time for is dropped at once.
func TestAQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &badDisk{held: map[name][]byte{}, slowly: time.Second}
		m := NewMetrics(prometheus.NewRegistry())
		c := open(Options{Bytes: 1 << 30, QueueBytes: 10_000, Logger: zerolog.Nop(), Metrics: m}, d)
		defer c.Close()
		synctest.Wait()
		started := time.Now()
		for i := range 100 {
			c.Add(fmt.Sprint(i), body(1000, 1), true)
		}
		if time.Since(started) != 0 || testutil.ToFloat64(m.dropped) != 90 {
			t.Errorf("%v, %v dropped", time.Since(started), testutil.ToFloat64(m.dropped))
		}
		time.Sleep(time.Minute)
		c.mu.Lock()
		defer c.mu.Unlock()
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.held) != 10 || c.queued != 0 {
			t.Errorf("%d written, %d bytes wait", len(d.held), c.queued)
		}
	})
}

// TestWhatIsFoundBadIsNotKept: also when it is on its way to the disk.
func TestWhatIsFoundBadIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &badDisk{held: map[name][]byte{}, slowly: time.Second}
		c := open(Options{Bytes: 1 << 20, QueueBytes: testQueue, Logger: zerolog.Nop(), Metrics: NewMetrics(prometheus.NewRegistry())}, d)
		defer c.Close()
		synctest.Wait()
		c.Add("bad", body(1000, 1), true)
		time.Sleep(time.Second / 2)
		c.Remove("bad")
		c.Add("bad", body(1000, 2), true) // read again
		c.Add("worse", body(1000, 1), true)
		c.Remove("worse")
		time.Sleep(time.Minute)
		again, worse := c.Get("bad"), c.Get("worse")
		d.mu.Lock()
		defer d.mu.Unlock()
		if !bytes.Equal(again, body(1000, 2)) || worse != nil || len(d.held) != 1 {
			t.Errorf("%d files", len(d.held))
		}
	})
}

// TestManyAtOnce is for the race detector.
func TestManyAtOnce(t *testing.T) {
	c := openTest(t, t.TempDir(), 64*block)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(w)))
			for range 300 {
				k := random.IntN(100)
				switch random.IntN(4) {
				case 0:
					c.Remove(fmt.Sprint(k))
				case 1:
					c.Add(fmt.Sprint(k), body(1000, byte(k)), random.IntN(2) == 0)
				default:
					if b := c.Get(fmt.Sprint(k)); b != nil && !bytes.Equal(b, body(1000, byte(k))) {
						t.Errorf("%d: other bytes", k)
					}
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkCache(b *testing.B) {
	for _, size := range []int{64 << 10, 1 << 20, 16 << 20} {
		c := Open(Options{Dir: b.TempDir(), Bytes: 1 << 30, QueueBytes: 32 << 20, Logger: zerolog.Nop(), Metrics: NewMetrics(prometheus.NewRegistry())})
		defer c.Close()
		await(b, c, func() bool { return c.on })
		chunk := body(size, 1)
		b.Run(fmt.Sprintf("write/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for i := 0; b.Loop(); i++ {
				c.Add(fmt.Sprint(i%16), chunk, true)
				for {
					c.mu.Lock()
					left := len(c.pending)
					c.mu.Unlock()
					if left == 0 {
						break
					}
					time.Sleep(10 * time.Microsecond)
				}
				c.Remove(fmt.Sprint(i % 16))
			}
		})
		c.Add("k", chunk, true)
		settle(b, c)
		b.Run(fmt.Sprintf("read/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				if c.Get("k") == nil {
					b.Fatal("it is gone")
				}
			}
		})
	}
}
