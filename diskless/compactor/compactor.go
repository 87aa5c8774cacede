// Package compactor turns WAL objects, in which the batches of all partitions
// lie as they came, into segments, in which they lie by partition. It reads
// nothing but the store, and takes nothing away: WAL objects stay until garbage
// collection finds every batch of theirs in a segment, or dead.
//
// The unit of work is a window, an aligned stretch of the time in WAL objects'
// names. A window is compacted in one or more parts, each as large as the memory
// allows; each part is a run of its own that writes segments first and its
// manifest last. So a crash at any point leaves the WAL objects, and at most
// segments that no manifest names. What several windows hold may then be merged, by
// runs like that.
package compactor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
)

// Limits bound what compaction takes. Every zero value but those of Merge and
// BytesPerSecond is replaced by DefaultLimits'.
type Limits struct {
	Window            time.Duration // a slice of time that is compacted as one, at most an hour
	Merge             time.Duration // a slice of time whose windows are merged, at most an hour; 0 is never
	MinAge            time.Duration // how long ago a window must have ended
	MemoryBytes       int64         // payloads in memory, all that it takes together
	SegmentBytes      int64         // what a segment grows to; no more than a quarter of the memory
	BytesPerSecond    int64         // read and written together; 0 is no limit
	RequestsPerSecond int
	Concurrency       int           // GETs at a time
	ClaimTimeout      time.Duration // after which the work of a compactor that went silent is taken over
	Rescan            time.Duration // between looks at windows that were done, for objects that came late
}

// DefaultLimits are the limits of a compactor that was told none.
func DefaultLimits() Limits {
	return Limits{
		Window: 10 * time.Minute,
		// No placeholder of an object goes to Kafka later than 10 minutes after
		// it was opened (diskless.Limits.MaxPlaceholderAge): what then still
		// comes to the store is of a replica whose clock is wrong.
		MinAge:            12 * time.Minute,
		MemoryBytes:       256 << 20,
		SegmentBytes:      64 << 20,
		RequestsPerSecond: 100,
		Concurrency:       4,
		ClaimTimeout:      2 * time.Minute,
		Rescan:            6 * time.Hour,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	l.Window = cmp.Or(l.Window, d.Window)
	l.MinAge = cmp.Or(l.MinAge, d.MinAge)
	l.MemoryBytes = cmp.Or(l.MemoryBytes, d.MemoryBytes)
	l.SegmentBytes = cmp.Or(l.SegmentBytes, d.SegmentBytes)
	l.RequestsPerSecond = cmp.Or(l.RequestsPerSecond, d.RequestsPerSecond)
	l.Concurrency = cmp.Or(l.Concurrency, d.Concurrency)
	l.ClaimTimeout = cmp.Or(l.ClaimTimeout, d.ClaimTimeout)
	l.Rescan = cmp.Or(l.Rescan, d.Rescan)
	l.Window = min(l.Window, segment.Level1.Span())
	l.Merge = min(l.Merge, segment.Level1.Span())
	l.SegmentBytes = min(l.SegmentBytes, l.MemoryBytes/4)
	return l
}

// Options are everything a Compactor is made of.
type Options struct {
	Store objstore.Store // of its own: what it has under way must not stand before others' requests
	Name  string         // the store's, for logs and metrics
	// Retention returns topics' retention.ms, negative for ever. Topics that do
	// not exist, or of which it is not known, are missing. It is a hint: by it
	// batches that will die together come to lie together.
	Retention func(ctx context.Context, topics []string) map[string]time.Duration
	// Busy reports whether others need the store and this machine more now; nil
	// is never.
	Busy func() bool
	// Progress is called after each window; nil is nobody.
	Progress func(Progress)
	// Turn, when it is not nil, is held while a window is worked on: compactors
	// that share it have the memory of one.
	Turn    sync.Locker
	Limits  Limits
	Logger  zerolog.Logger
	Metrics *Metrics
}

// Progress is what a compactor has done since it was made.
type Progress struct {
	Window  time.Time // the beginning of the one that was looked at last
	Objects int       // WAL objects that were looked at, compacted before or not
	Windows int       // manifests written
	Merged  int       // windows that were merged
	Read    int64     // bytes of WAL objects
	Written int64     // bytes of segments
	Waiting int       // windows that others work on
	Damaged int       // WAL objects that were left as they are
	Backlog int       // WAL objects that this pass looks at; only when somebody is told
}

// Compactor works on one store.
type Compactor struct {
	store     objstore.Store
	opt       Options
	limits    Limits
	log       zerolog.Logger
	metrics   *Metrics
	worker    string
	bytes     *rate.Limiter
	requests  *rate.Limiter
	folders   map[string]*folder
	damaged   map[ulid.ULID]bool // said so, and not to be read again before the next rescan
	settled   string             // all WAL objects up to this key are
	unsettled map[time.Time]bool // hours with windows that are not compacted, after a pass
	nextMerge time.Time          // when there may be something to merge
	merged    map[time.Time]int  // slices of time that were looked at, and how many windows they had
	rescanned time.Time
	now       Progress
	skipped   atomic.Int32 // WAL objects
	held      *claim       // to be kept fresh; nil between windows
}

// requestTimeout is for 64 MiB at half a megabyte a second.
const requestTimeout = 2 * time.Minute

// New returns a compactor that does nothing yet.
func New(opt Options) *Compactor {
	c := &Compactor{
		store: objstore.NewTimed(opt.Store, requestTimeout), opt: opt, limits: opt.Limits.withDefaults(), log: opt.Logger, metrics: opt.Metrics,
		worker: ulid.MustNew(ulid.Now(), ulid.DefaultEntropy()).String(),
	}
	c.requests = rate.NewLimiter(rate.Limit(c.limits.RequestsPerSecond), c.limits.Concurrency)
	c.bytes = rate.NewLimiter(rate.Inf, 0)
	if n := c.limits.BytesPerSecond; n > 0 {
		c.bytes = rate.NewLimiter(rate.Limit(n), int(n))
	}
	if c.metrics == nil {
		c.metrics = newMetrics()
	}
	c.forget()
	return c
}

// forget makes the next pass look at everything.
func (c *Compactor) forget() {
	c.folders, c.damaged, c.settled, c.rescanned = map[string]*folder{}, map[ulid.ULID]bool{}, "", time.Now()
	c.merged, c.nextMerge = map[time.Time]int{}, time.Time{}
}

const (
	// minPause and maxPause are between passes.
	minPause = 10 * time.Second
	maxPause = 5 * time.Minute
)

// Run compacts what becomes ripe until ctx ends.
func (c *Compactor) Run(ctx context.Context) {
	idle := min(max(c.limits.Window/10, minPause), time.Minute)
	pause := idle
	for {
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return
		}
		err := c.Pass(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			pause = min(2*pause, maxPause)
			c.metrics.errors.WithLabelValues(c.opt.Name).Inc()
			c.log.Warn().Err(err).Str("store", c.opt.Name).Dur("again_in", pause).Msg("compaction could not do everything and begins again: WAL objects stay as they are")
		default:
			pause = idle
		}
	}
}

// Pass compacts every window that is ripe and that nobody else works on, and merges
// them. The error is that of the first window that could not be compacted; what was
// done stays done.
func (c *Compactor) Pass(ctx context.Context) error {
	if time.Since(c.rescanned) >= c.limits.Rescan {
		c.forget()
		c.dropOldClaims(ctx)
	}
	for {
		began := time.Now()
		whole, err := c.compact(ctx)
		if !whole {
			return err
		}
		more, merr := c.merge(ctx, began)
		if !more {
			return cmp.Or(err, merr)
		}
	}
}

// compact does what is ripe. whole says that it has looked at all of it.
func (c *Compactor) compact(ctx context.Context) (whole bool, err error) {
	c.now.Waiting = 0
	c.unsettled = map[time.Time]bool{}
	ripe := time.Now().Add(-c.limits.MinAge)
	after, settling := c.settled, true
	if c.opt.Progress != nil {
		left, err := c.backlog(ctx, ripe)
		if err != nil {
			return false, fmt.Errorf("listing WAL objects: %w", err)
		}
		c.now.Backlog = c.now.Objects + left
	}
	var failed error
	failures := 0
	behind := time.Time{}
	defer func() {
		age := 0.0
		if !behind.IsZero() {
			age = time.Since(behind).Seconds()
		}
		c.metrics.behind.WithLabelValues(c.opt.Name).Set(age)
	}()
	for {
		windows, more, err := c.list(ctx, after, ripe)
		if err != nil {
			return false, fmt.Errorf("listing WAL objects: %w", err)
		}
		for _, w := range windows {
			if behind.IsZero() {
				behind = w.end
			}
			c.metrics.behind.WithLabelValues(c.opt.Name).Set(time.Since(behind).Seconds())
			done, err := c.window(ctx, w)
			if err != nil {
				failed = cmp.Or(failed, fmt.Errorf("the window of %s: %w", w.start.Format(time.RFC3339), err))
				if failures++; failures == enoughFailures || ctx.Err() != nil {
					return false, failed
				}
			} else {
				failures = 0
			}
			after = w.objects[len(w.objects)-1].key()
			if !done {
				settling = false
				c.unsettled[w.start.Truncate(segment.Level1.Span())] = true
			}
			if !done && err == nil {
				c.now.Waiting++
			}
			if settling {
				c.settled, behind = after, time.Time{}
			}
			c.now.Window = w.start
			c.now.Objects += len(w.objects)
			if c.opt.Progress != nil {
				c.opt.Progress(c.now)
			}
		}
		if !more {
			return true, failed
		}
	}
}

// enoughFailures of windows, one behind the other, or of manifests end a pass: it is
// the store, not an object that hangs or that an archive has taken.
const enoughFailures = 3

// Progress is what has been done so far.
func (c *Compactor) Progress() Progress { return c.now }

// backlog counts the WAL objects that a pass looks at, compacted or not. There may
// be more than one listing has time for.
func (c *Compactor) backlog(ctx context.Context, ripe time.Time) (objects int, err error) {
	for after, more := c.settled, true; more; {
		var windows []window
		if windows, more, err = c.list(ctx, after, ripe); err != nil {
			return 0, err
		}
		for _, w := range windows {
			objects += len(w.objects)
			after = w.objects[len(w.objects)-1].key()
		}
	}
	return objects, nil
}

// object is a WAL object, as it was listed.
type object struct {
	id   ulid.ULID
	size int64
}

func (o object) key() string { return diskless.ObjectKey(o.id, false) }

// window is the WAL objects of a slice of time: all of them, or as many as are
// looked at at a time.
type window struct {
	start, end time.Time
	objects    []object
}

// slot is the window that an object is in: windows begin with each hour anew,
// so that none lies in two hours whatever their length.
func (c *Compactor) slot(id ulid.ULID) (start, end time.Time) { return slot(id, c.limits.Window) }

func slot(id ulid.ULID, length time.Duration) (start, end time.Time) {
	t := id.Timestamp().UTC()
	hour := t.Truncate(segment.Level1.Span())
	start = hour.Add(t.Sub(hour).Truncate(length))
	end = start.Add(length)
	if next := hour.Add(segment.Level1.Span()); end.After(next) {
		end = next
	}
	return start, end
}

// listAtMost bounds the objects that are looked at at a time, in memory.
const listAtMost = 20_000

var errEnough = errors.New("enough")

// objects calls fn with the WAL objects behind a key, in order, until it says
// errEnough. Names that are not ours are passed over.
func (c *Compactor) objects(ctx context.Context, after string, fn func(object) error) error {
	if err := c.wait(ctx, 0); err != nil {
		return err
	}
	err := c.store.List(ctx, diskless.WALPrefix, after, func(i objstore.Info) error {
		if id, _, ok := diskless.ParseObjectKey(i.Key); ok {
			return fn(object{id, i.Size})
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// list returns the windows behind a key that had ended at ripe. more says that
// there are others behind them. Only the last may lack objects, and only when it
// is the only one.
func (c *Compactor) list(ctx context.Context, after string, ripe time.Time) (windows []window, more bool, err error) {
	n := 0
	err = c.objects(ctx, after, func(o object) error {
		start, end := c.slot(o.id)
		if end.After(ripe) {
			return errEnough
		}
		if n == listAtMost {
			more = true
			return errEnough
		}
		n++
		if len(windows) == 0 || !windows[len(windows)-1].start.Equal(start) {
			windows = append(windows, window{start: start, end: end})
		}
		last := &windows[len(windows)-1]
		last.objects = append(last.objects, o)
		return nil
	})
	if more && len(windows) > 1 {
		windows = windows[:len(windows)-1]
	}
	return windows, more, err
}

// window compacts what is not compacted of a window. done is false when another
// compactor works on it.
func (c *Compactor) window(ctx context.Context, w window) (done bool, err error) {
	left, err := c.uncovered(ctx, w)
	if err != nil || len(left) == 0 {
		return err == nil, err
	}
	mine, err := c.claim(ctx, claimKey(w.start))
	if err != nil || !mine {
		return false, err
	}
	defer c.release(ctx)
	if c.opt.Turn != nil {
		c.opt.Turn.Lock()
		defer c.opt.Turn.Unlock()
	}
	// Somebody may have finished between the two.
	if left, err = c.uncovered(ctx, w); err != nil {
		return false, err
	}
	for len(left) > 0 {
		n, size := 0, int64(0)
		for n < len(left) && (n == 0 || size+left[n].size <= c.limits.inputs()) {
			size += left[n].size
			n++
		}
		lost, err := c.part(ctx, left[:n])
		if err != nil {
			return false, err
		}
		if left = left[n:]; lost {
			// By whom this window is worked on, too.
			return false, nil
		}
	}
	return true, nil
}

// inputs is how many bytes of WAL objects are in memory at a time. The other half
// is for a segment, what describes the batches, and what the collector has not
// taken yet.
func (l Limits) inputs() int64 { return l.MemoryBytes / 2 }

// folder is what is known of the windows in a folder: which objects they cover.
type folder struct {
	windows map[segment.Window]bool
	covered map[ulid.ULID]struct{}
	garbled []segment.Window // nobody knows what they cover
	unread  []unread         // as it was a moment ago
}

// unread is a manifest that is there and cannot be read now.
type unread struct {
	segment.Window
	err error
}

// known returns why it cannot be told whether an object is covered, or nil.
func (f *folder) known(id ulid.ULID) error {
	for _, u := range f.unread {
		if u.Spans(id) {
			return fmt.Errorf("reading %s: %w", u.Key(), u.err)
		}
	}
	return nil
}

// covers reports whether an object is, or may be, covered.
func (f *folder) covers(id ulid.ULID) bool {
	_, ok := f.covered[id]
	return ok || slices.ContainsFunc(f.garbled, func(w segment.Window) bool { return w.Spans(id) })
}

// maxFolders is how many folders are remembered: neighbouring windows share
// them.
const maxFolders = 2 * 2

// cover reads the manifests of a folder that were not read before, as far as they may
// cover anything of an hour: a day's objects would take much memory.
func (c *Compactor) cover(ctx context.Context, level segment.Level, t time.Time) (*folder, error) {
	prefix := segment.FolderPrefix(level, t)
	hour := t.UTC().Truncate(segment.Level1.Span())
	name := prefix + hour.Format(time.RFC3339)
	f := c.folders[name]
	if f == nil {
		if len(c.folders) >= maxFolders {
			clear(c.folders)
		}
		f = &folder{windows: map[segment.Window]bool{}, covered: map[ulid.ULID]struct{}{}}
		c.folders[name] = f
	}
	if err := c.wait(ctx, 0); err != nil {
		return nil, err
	}
	var fresh []segment.Window
	err := segment.Windows(ctx, c.store, prefix, func(w segment.Window, _ objstore.Info) error {
		if !f.windows[w] && w.First.Timestamp().Before(hour.Add(segment.Level1.Span())) && !w.Last.Timestamp().Before(hour) {
			fresh = append(fresh, w)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing windows: %w", err)
	}
	f.unread = nil
	for _, w := range fresh {
		if err := c.wait(ctx, 0); err != nil {
			return nil, err
		}
		m, err := segment.ReadManifest(ctx, c.store, w)
		switch {
		case errors.Is(err, objstore.ErrNotFound):
			continue // deleted meanwhile
		case errors.Is(err, segment.ErrGarbled):
			// Its name is taken, and what else it covered may be in its segments only.
			f.garbled = append(f.garbled, w)
			c.metrics.damaged.WithLabelValues(c.opt.Name).Inc()
			c.log.Error().Err(err).Str("store", c.opt.Name).Str("object", w.Key()).Msg("the manifest of a window is damaged: restore it from the bucket's versions or a copy; the WAL objects of its time stay as they are")
		case err != nil && (ctx.Err() != nil || len(f.unread) == enoughFailures):
			return nil, err
		case err != nil:
			f.unread = append(f.unread, unread{w, err})
			continue
		default:
			for _, o := range m.Objects {
				f.covered[o.ID] = struct{}{}
			}
		}
		f.windows[w] = true
	}
	return f, nil
}

// uncovered returns those of a window's objects that no manifest covers and
// that are worth a look.
func (c *Compactor) uncovered(ctx context.Context, w window) ([]object, error) {
	left := w.objects
	for _, level := range []segment.Level{segment.Level1, segment.Level2} {
		f, err := c.cover(ctx, level, w.start)
		if err != nil {
			return nil, err
		}
		var some []object
		for _, o := range left {
			if err := f.known(o.id); err != nil && !f.covers(o.id) {
				return nil, err
			}
			if !f.covers(o.id) && !c.damaged[o.id] {
				some = append(some, o)
			}
		}
		left = some
	}
	return left, nil
}

// busyPause is between looks whether others still need the store more.
const busyPause = time.Second

// wait stands before every request: it waits until one with so many bytes may
// be made, and keeps the claim fresh.
func (c *Compactor) wait(ctx context.Context, bytes int64) error {
	for c.opt.Busy != nil && c.opt.Busy() {
		c.metrics.paused.WithLabelValues(c.opt.Name).Add(busyPause.Seconds())
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := c.renew(ctx); err != nil {
			return err
		}
	}
	if err := c.requests.Wait(ctx); err != nil {
		return err
	}
	for c.bytes.Limit() != rate.Inf && bytes > 0 {
		n := min(bytes, int64(c.bytes.Burst()))
		if err := c.bytes.WaitN(ctx, int(n)); err != nil {
			return err
		}
		bytes -= n
		if err := c.renew(ctx); err != nil {
			return err
		}
	}
	return c.renew(ctx)
}
