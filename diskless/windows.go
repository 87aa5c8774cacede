package diskless

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/tiers"
)

// How a reference is found in segments: its object's ULID is a time, and tells
// the folder in which the windows of that time are listed; their manifests tell
// which of them covers the object, and which segments may hold the partition; the
// segment's footer tells where. All of them are immutable but the listing, and
// kept in memory.

// found is a batch in a segment.
type found struct {
	window   segment.Window
	manifest *segment.Manifest
	number   int
	index    *segment.Index
}

// is reports whether both are in the same segment.
func (in *found) is(other *found) bool {
	return other != nil && in.manifest.Run == other.manifest.Run && in.number == other.number
}

const (
	// seldom and often are how old a listing may be that knows no window of an
	// object: often, when there is nowhere else to look.
	seldom = time.Minute
	often  = time.Second
	// failedFor is how long a listing or an object that could not be read is not
	// asked for again.
	failedFor = 10 * time.Second
	// minIndexChunk keeps GETs few, though chunks of segments are cut by
	// partition.
	minIndexChunk = 1 << 20
)

// old reports whether a batch may be in a segment: young ones cost no request
// more than their object's.
func (p *storedPiece) old() bool {
	return !p.ref.Audit && time.Since(p.ref.Object.Timestamp()) > p.tier.limits.SegmentAge
}

// locate finds a batch in segments, but not in the one where it was looked for
// already. What could not be looked at is in the error, unless it is found
// elsewhere.
func (t *Tier) locate(ctx context.Context, w *writer, tp tiers.TopicPartition, ref placeholder.Ref, listed time.Duration, tried *found) (at place, ok bool, err error) {
	if at, what := t.known(w, tp, ref); what == inSegment && !at.in.is(tried) {
		return at, true, nil
	}
	var errs []error
	for _, level := range []segment.Level{segment.Level2, segment.Level1} {
		prefix := segment.FolderPrefix(level, ref.Object.Timestamp())
		// What is known first: a folder of long ago does not change any more.
		for _, age := range []time.Duration{math.MaxInt64, listed} {
			f, err := t.folder(ctx, w, prefix, age, listed < seldom)
			if err != nil {
				errs = append(errs, err)
				break
			}
			for window := range f.spanning(ref.Object) {
				at, ok, err := t.locateIn(ctx, w, window, tp, ref, listed < seldom, tried)
				if ok {
					return at, true, nil
				}
				errs = append(errs, err)
			}
			if time.Since(f.listed) < listed {
				break
			}
		}
		if ctx.Err() != nil {
			return at, false, ctx.Err()
		}
	}
	return at, false, errors.Join(errs...)
}

// locateIn finds a batch in a window's segments.
func (t *Tier) locateIn(ctx context.Context, w *writer, window segment.Window, tp tiers.TopicPartition, ref placeholder.Ref, insist bool, tried *found) (at place, ok bool, err error) {
	m, err := t.manifest(ctx, w, window, insist)
	if err != nil || !m.Covers(ref.Object) {
		return at, false, err
	}
	var errs []error
	for _, n := range m.Find(placeOf(tp)) {
		if (&found{manifest: m, number: n}).is(tried) {
			continue
		}
		x, err := t.index(ctx, w, m, n, insist)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if at, ok := t.placeIn(w, &found{window, m, n, x}, tp, ref); ok {
			return at, true, nil
		}
	}
	return at, false, errors.Join(errs...)
}

func placeOf(tp tiers.TopicPartition) segment.Place {
	return segment.Place{Topic: tp.Topic, Partition: tp.Partition}
}

func (t *Tier) placeIn(w *writer, in *found, tp tiers.TopicPartition, ref placeholder.Ref) (at place, ok bool) {
	position, ok := in.index.Find(placeOf(tp), ref.Object, ref.Offset, ref.Length, ref.CRC)
	if !ok {
		return at, false
	}
	return place{offset: uint64(position), chunks: []chunk{t.chunkIn(w, in, position)}, in: in}, true
}

// chunkIn is what is read to have the batch at a position, unless a chunk that was
// read when others were too many, or fewer, has it already.
func (t *Tier) chunkIn(w *writer, in *found, position int64) chunk {
	of := func(limit int64) chunk {
		from, to := in.index.Chunk(position, limit)
		return chunk{chunkKey{store: w.name, kind: segmentObject, id: in.manifest.Run, number: in.number, from: from, length: to - from}}
	}
	now := of(t.scans.chunk())
	if t.cache.peek(now.chunkKey) != nil {
		return now
	}
	for limit := range t.scans.sizes() {
		if c := of(limit); c != now && t.cache.peek(c.chunkKey) != nil {
			return c
		}
	}
	return now
}

// knowledge is what is known of a batch without asking anybody.
type knowledge uint8

const (
	unknown knowledge = iota
	inSegment
	inNone // or it cannot be told now
)

// known is locate without asking anybody.
func (t *Tier) known(w *writer, tp tiers.TopicPartition, ref placeholder.Ref) (at place, what knowledge) {
	if ref.Audit {
		return at, inNone
	}
	what = inNone
	for _, level := range []segment.Level{segment.Level2, segment.Level1} {
		f, state := kept[*folder](t, folderName(w, segment.FolderPrefix(level, ref.Object.Timestamp())))
		if state != present {
			what = min(what, state.tells())
			continue
		}
		if time.Since(f.listed) >= seldom && t.failed(folderName(w, segment.FolderPrefix(level, ref.Object.Timestamp()))) == nil {
			what = unknown
		}
		for window := range f.spanning(ref.Object) {
			m, state := kept[*segment.Manifest](t, manifestName(w, window))
			if state != present {
				what = min(what, state.tells())
				continue
			}
			if !m.Covers(ref.Object) {
				continue
			}
			for _, n := range m.Find(placeOf(tp)) {
				x, state := kept[*segment.Index](t, indexName(w, m, n))
				if state != present {
					what = min(what, state.tells())
					continue
				}
				if at, ok := t.placeIn(w, &found{window, m, n, x}, tp, ref); ok {
					return at, inSegment
				}
			}
		}
	}
	return at, what
}

// fellBack notes that a batch could not be read from a segment: for a moment
// others are not read from it either, if they are to be had elsewhere.
func (p *storedPiece) fellBack(ctx context.Context, at place, err error) {
	if ctx.Err() != nil {
		return
	}
	t, in := p.tier, at.in
	reason := "corrupt"
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		// Collected, or merged with others: the listing tells of what there is now.
		reason = "not found"
		t.found.remove(folderName(p.writer, segment.FolderPrefix(in.window.Level, in.window.First.Timestamp())))
		t.found.remove(manifestName(p.writer, in.window))
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, objstore.ErrUnavailable):
		reason = "unavailable"
	case errors.Is(err, objstore.ErrAccess):
		reason = "access"
	}
	t.avoid(indexName(p.writer, in.manifest, in.number), err)
	t.metrics.fallbacks.WithLabelValues(reason).Inc()
	if reason == "corrupt" && t.complaints.allow(complaint{p.tp, p.base, "segment"}) {
		t.log.Error().Err(err).Str("store", p.writer.name).Str("object", in.manifest.Key(in.number)).Str("wal_object", ObjectKey(p.ref.Object, false)).
			Msg("a segment does not hold what its footer says; the WAL object is read instead, while it is there: run sluice fsck")
	}
}

// avoid has a segment left alone for a moment, by all who find their batches
// elsewhere.
func (t *Tier) avoid(index string, err error) {
	if errors.Is(err, objstore.ErrBusy) {
		return
	}
	t.found.remove(index)
	t.fails(index, err)
}

// folder is the windows of an hour, or a day, as they were listed.
type folder struct {
	windows []segment.Window // by First
	last    []ulid.ULID      // the largest Last up to each
	listed  time.Time
}

// spanning yields the windows that may cover an object.
func (f *folder) spanning(object ulid.ULID) func(yield func(segment.Window) bool) {
	return func(yield func(segment.Window) bool) {
		i := sort.Search(len(f.windows), func(i int) bool { return f.windows[i].First.Compare(object) > 0 })
		for i--; i >= 0 && f.last[i].Compare(object) >= 0; i-- {
			if f.windows[i].Spans(object) && !yield(f.windows[i]) {
				return
			}
		}
	}
}

// folder lists windows, unless that was done within age.
func (t *Tier) folder(ctx context.Context, w *writer, prefix string, age time.Duration, insist bool) (*folder, error) {
	name := folderName(w, prefix)
	if f, state := kept[*folder](t, name); state == present && time.Since(f.listed) < age {
		return f, nil
	}
	return lookUp(ctx, t, w, name, insist, func(ctx context.Context, store objstore.Store) (*folder, int64, error) {
		f := &folder{listed: time.Now()}
		err := segment.Windows(ctx, store, prefix, func(w segment.Window, _ objstore.Info) error {
			if len(f.windows) == maxWindows {
				return fmt.Errorf("%s holds more than %d windows", prefix, maxWindows)
			}
			f.windows = append(f.windows, w)
			return nil
		})
		slices.SortFunc(f.windows, func(a, b segment.Window) int { return a.First.Compare(b.First) })
		for i, w := range f.windows {
			last := w.Last
			if i > 0 && f.last[i-1].Compare(last) > 0 {
				last = f.last[i-1]
			}
			f.last = append(f.last, last)
		}
		return f, int64(len(f.windows))*(40+16) + indexOverhead, err
	})
}

// maxWindows bounds a listing in memory: 8 GiB of payloads a second for an hour,
// at the least memory that compaction may have.
const maxWindows = 1_000_000

// manifest reads a window's manifest.
func (t *Tier) manifest(ctx context.Context, w *writer, window segment.Window, insist bool) (*segment.Manifest, error) {
	name := manifestName(w, window)
	if m, state := kept[*segment.Manifest](t, name); state == present {
		return m, nil
	}
	return lookUp(ctx, t, w, name, insist, func(ctx context.Context, store objstore.Store) (*segment.Manifest, int64, error) {
		m, err := segment.ReadManifest(ctx, store, window)
		if err != nil {
			return nil, 0, err
		}
		size := int64(len(m.Objects)*24 + indexOverhead)
		for i := range m.Segments {
			size += int64(96 + len(m.Segments[i].First.Topic) + len(m.Segments[i].Last.Topic))
		}
		return m, size, nil
	})
}

// index reads a segment's footer.
func (t *Tier) index(ctx context.Context, w *writer, m *segment.Manifest, n int, insist bool) (*segment.Index, error) {
	name := indexName(w, m, n)
	if x, state := kept[*segment.Index](t, name); state == present {
		return x, nil
	}
	return lookUp(ctx, t, w, name, insist, func(ctx context.Context, store objstore.Store) (*segment.Index, int64, error) {
		f, err := m.ReadFooter(ctx, store, n)
		if err != nil {
			return nil, 0, err
		}
		x := f.Index(t.scans.min, t.scans.max)
		return x, x.Bytes() + indexOverhead, nil
	})
}

// indexOverhead is about what keeping anything takes.
const indexOverhead = 256

func failureName(name string) string                       { return "!" + name }
func folderName(w *writer, prefix string) string           { return w.name + "/" + prefix }
func manifestName(w *writer, window segment.Window) string { return w.name + "/" + window.Key() }
func indexName(w *writer, m *segment.Manifest, n int) string {
	return segmentName(w, m.Run, n)
}
func segmentName(w *writer, run ulid.ULID, n int) string {
	return w.name + "/" + run.String() + "-" + strconv.Itoa(n)
}

// failure is kept beside what could not be read: a listing of before is still good
// for what it has.
type failure struct {
	err   error
	until time.Time
}

// presence is whether something is in memory.
type presence uint8

const (
	absent presence = iota
	present
	failed // it could not be read a moment ago
)

// tells is what is known of a batch to which something leads that is not there.
func (p presence) tells() knowledge {
	if p == failed {
		return inNone
	}
	return unknown
}

// kept returns what is in memory.
func kept[T any](t *Tier, name string) (v T, state presence) {
	if v, ok := t.found.get(name).(T); ok {
		return v, present
	}
	if t.failed(name) != nil {
		return v, failed
	}
	return v, absent
}

// fails notes that something could not be read. That this replica had no room for
// the request says nothing of it.
func (t *Tier) fails(name string, err error) {
	if errors.Is(err, objstore.ErrBusy) {
		return
	}
	t.found.add(failureName(name), failure{err, time.Now().Add(failedFor)}, indexOverhead)
}

// failed returns why something could not be read a moment ago, or nil.
func (t *Tier) failed(name string) error {
	if f, ok := t.found.get(failureName(name)).(failure); ok && time.Now().Before(f.until) {
		return f.err
	}
	return nil
}

// lookUp reads what leads to segments, once for all who want it. A failure is
// remembered for a moment, but for who insists: it must not hold up every reader
// of what the WAL object still has. Who insists may wait for longer, too.
func lookUp[T any](ctx context.Context, t *Tier, w *writer, name string, insist bool, read func(context.Context, objstore.Store) (T, int64, error)) (none T, err error) {
	if err := t.failed(name); err != nil && !insist {
		return none, err
	}
	share := time.Duration(lookUpShare)
	if insist {
		share = insistShare
	}
	return awaited[T](ctx, t.loads.DoChan("/"+name, func() (any, error) {
		store, err := t.readable(w)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(t.ctx, t.limits.GetTimeout/share)
		defer cancel()
		t.metrics.lookups.Inc()
		v, size, err := read(ctx, store)
		if err != nil {
			t.fails(name, err)
			return nil, err
		}
		t.found.remove(failureName(name))
		t.found.add(name, v, size)
		return v, nil
	}))
}

// lookUpShare of the time for a GET is for what leads there: the WAL object may
// have to be read after it. insistShare is when that has failed: then a listing that
// hangs must leave time for the other level's only.
const (
	lookUpShare = 4
	insistShare = 2
)

// pastMiddle reports whether a batch ends in the second half of what its chunk
// holds of its partition: its reader will soon want the next chunk.
func (p *storedPiece) pastMiddle(at place) bool {
	c := at.chunks[0]
	from, to, ok := at.in.index.Range(placeOf(p.tp))
	return ok && int64(at.offset)+int64(p.ref.Length) > (max(from, c.from)+min(to, c.from+c.length))/2
}

// readOn reads the chunk behind a batch's: of its partition in this segment, or in
// the next window that has any.
func (t *Tier) readOn(p *storedPiece, at place) {
	in, c := at.in, at.chunks[0]
	if _, end, ok := in.index.Range(placeOf(p.tp)); ok && c.from+c.length < end {
		t.readOnIn(p.writer, in, c.from+c.length)
		return
	}
	// The rest of the partition may be in the next segment of the same window.
	for _, n := range in.manifest.Find(placeOf(p.tp)) {
		if n > in.number && t.readFirst(p, in.window, in.manifest, n) {
			return
		}
	}
	window := in.window
	for range windowsAhead {
		next, ok := t.nextWindow(p.writer, window)
		if !ok {
			return
		}
		m, err := t.manifest(t.ctx, p.writer, next, false)
		if err != nil {
			return
		}
		for _, n := range m.Find(placeOf(p.tp)) {
			if t.readFirst(p, next, m, n) {
				return
			}
		}
		window = next
	}
}

// windowsAhead is how many windows are looked at for a partition's next batch.
const windowsAhead = 3

// readFirst reads the first chunk of a partition in a segment that may have one.
func (t *Tier) readFirst(p *storedPiece, window segment.Window, m *segment.Manifest, n int) bool {
	x, err := t.index(t.ctx, p.writer, m, n, false)
	if err != nil {
		return false
	}
	from, _, ok := x.Range(placeOf(p.tp))
	if ok {
		t.readOnIn(p.writer, &found{window, m, n, x}, from)
	}
	return ok
}

func (t *Tier) readOnIn(w *writer, in *found, position int64) {
	c := t.chunkIn(w, in, position)
	if t.cache.expect(c.chunkKey, c.length) {
		<-t.fetch(w, c) // whoever needs it gets the error
		t.cache.missed(c.chunkKey)
	}
}

// nextWindow is the one that begins behind a window's end, of either level: of those
// that begin with the same object, a reader looks into that of level 2.
func (t *Tier) nextWindow(w *writer, after segment.Window) (next segment.Window, ok bool) {
	for _, level := range []segment.Level{segment.Level2, segment.Level1} {
		if one, found := t.nextOf(w, level, after); found && (!ok || one.First.Compare(next.First) < 0) {
			next, ok = one, true
		}
	}
	return next, ok
}

// nextOf is the one of a level, in the folder of a window's end or in the next.
func (t *Tier) nextOf(w *writer, level segment.Level, after segment.Window) (next segment.Window, ok bool) {
	at := after.Last.Timestamp()
	for range 2 {
		if time.Since(at) < t.limits.SegmentAge {
			return next, false
		}
		for _, age := range []time.Duration{math.MaxInt64, seldom} {
			f, err := t.folder(t.ctx, w, segment.FolderPrefix(level, at), age, false)
			if err != nil {
				return next, false
			}
			if next, ok = f.after(after.Last); ok {
				return next, true
			}
		}
		at = at.Add(level.Span()).Truncate(level.Span())
	}
	return next, false
}

// after is the first window behind an object.
func (f *folder) after(object ulid.ULID) (segment.Window, bool) {
	i := sort.Search(len(f.windows), func(i int) bool { return f.windows[i].First.Compare(object) > 0 })
	if i == len(f.windows) {
		return segment.Window{}, false
	}
	return f.windows[i], true
}

// indexes keeps in memory what leads to segments, bounded by bytes.
type indexes struct {
	max       int64
	evictions prometheus.Counter
	size      prometheus.Gauge

	mu    sync.Mutex
	bytes int64
	lru   *simplelru.LRU[string, indexEntry]
}

type indexEntry struct {
	value any
	bytes int64
}

func newIndexes(bytes int64, m *metrics) *indexes {
	x := &indexes{max: bytes, evictions: m.cacheEvictions.WithLabelValues("index"), size: m.cacheBytes.WithLabelValues("index")}
	// Bounded by bytes below, not by entries.
	x.lru, _ = simplelru.NewLRU(math.MaxInt32, func(_ string, e indexEntry) { x.bytes -= e.bytes })
	return x
}

// get returns what is kept under a name, or nil.
func (x *indexes) get(name string) any {
	x.mu.Lock()
	defer x.mu.Unlock()
	e, _ := x.lru.Get(name)
	return e.value
}

// add keeps a value. One that is larger than all is used by who asked for it, and
// not kept.
func (x *indexes) add(name string, value any, bytes int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lru.Remove(name)
	bytes += int64(len(name))
	if bytes <= x.max {
		for x.bytes+bytes > x.max {
			x.lru.RemoveOldest()
			x.evictions.Inc()
		}
		x.lru.Add(name, indexEntry{value, bytes})
		x.bytes += bytes
	}
	x.size.Set(float64(x.bytes))
}

func (x *indexes) remove(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lru.Remove(name)
	x.size.Set(float64(x.bytes))
}
