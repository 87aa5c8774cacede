package compactor

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
)

// Merging makes one window of level 2 of several of level 1, as a run of its own:
// segments first, the manifest last, by conditional PUT. What it was made of stays;
// garbage collection takes it when it finds all of it in the new segments. Windows
// are merged whole, so that a manifest always tells all that there is of a WAL
// object.

const (
	// smallPiece is what a partition has to have in a window to be read by GETs of
	// its own; readers cut segments by that.
	smallPiece = 1 << 20
	// mergeWithin is how long ago a slice of time may have ended. A segment lives on
	// from when its manifest was written: one of old data would live anew.
	mergeWithin = 24 * time.Hour
	// mergeSeconds bounds what is merged at a time, at compaction's own pace: other
	// stores wait for it, and garbage collection for its manifest.
	mergeSeconds = 300
	// unboundedMerge bounds it when nothing bounds the pace.
	unboundedMerge = 4 << 30
	// mergeObjects bounds a manifest: readers keep some in memory, at 24 bytes for each.
	mergeObjects = 1 << 18
)

// errUnmerged is what makes windows stay as they are, without being a failure of
// the store.
var errUnmerged = errors.New("not merged")

// merge merges the windows of every slice of time that was ripe at now, when the pass
// began that has compacted them. more says that it ended because there may be
// windows to compact again.
func (c *Compactor) merge(ctx context.Context, now time.Time) (more bool, err error) {
	length := c.limits.Merge
	if length == 0 || now.Before(c.nextMerge) {
		return false, nil
	}
	if err := c.wait(ctx, 0); err != nil {
		return false, err
	}
	type slice struct {
		start, end time.Time
		windows    []segment.Window
	}
	var ripe []slice
	// The folder of the hour before, so that what is behind is whole.
	after := strings.TrimSuffix(segment.FolderPrefix(segment.Level1, now.Add(-mergeWithin-segment.Level1.Span())), "/")
	err = c.store.List(ctx, segment.LevelPrefix(segment.Level1), after, func(i objstore.Info) error {
		w, ok := segment.ParseWindowKey(i.Key)
		if !ok {
			return nil
		}
		start, end := slot(w.First, length)
		switch {
		case end.Before(now.Add(-mergeWithin)):
			return nil
		case end.After(now.Add(-c.limits.MinAge)):
			return errEnough
		}
		if n := len(ripe); n == 0 || !ripe[n-1].start.Equal(start) {
			ripe = append(ripe, slice{start: start, end: end})
		}
		last := &ripe[len(ripe)-1]
		last.windows = append(last.windows, w)
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return false, fmt.Errorf("listing windows: %w", err)
	}
	all, failures := true, 0
	var failed error
	for n, s := range ripe {
		if len(s.windows) < 2 || c.merged[s.start] == len(s.windows) {
			continue
		}
		if c.unsettled[s.start.Truncate(segment.Level1.Span())] {
			all = false
			continue
		}
		before := c.now.Merged
		done, err := c.mergeSlice(ctx, s.start, s.windows)
		if err != nil {
			failed = cmp.Or(failed, fmt.Errorf("merging the windows of %s: %w", s.start.Format(time.RFC3339), err))
			if failures++; failures == enoughFailures || ctx.Err() != nil {
				return false, failed
			}
		} else {
			failures = 0
		}
		if !done && err == nil {
			c.now.Waiting++
		}
		if done && err == nil {
			c.merged[s.start] = len(s.windows)
		} else {
			all = false
		}
		if c.opt.Progress != nil {
			c.opt.Progress(c.now)
		}
		if c.now.Merged > before && n < len(ripe)-1 && time.Since(now) > c.limits.Window {
			return true, failed
		}
	}
	if all {
		// When the next slice has ended for long enough.
		_, end := slot(ulid.MustNew(ulid.Timestamp(now.Add(-c.limits.MinAge)), nil), length)
		c.nextMerge = end.Add(c.limits.MinAge)
	}
	return false, failed
}

// mergeSlice merges windows of level 1. done is false when another compactor works
// on them.
func (c *Compactor) mergeSlice(ctx context.Context, start time.Time, windows []segment.Window) (done bool, err error) {
	var manifests []*segment.Manifest
	for _, w := range windows {
		if err := c.wait(ctx, 0); err != nil {
			return false, err
		}
		m, err := segment.ReadManifest(ctx, c.store, w)
		switch {
		case errors.Is(err, objstore.ErrNotFound) || errors.Is(err, segment.ErrGarbled):
			continue // collected meanwhile; or who compacts has said so
		case err != nil:
			return false, err
		}
		manifests = append(manifests, m)
	}
	if left, err := c.unmerged(ctx, start, manifests); err != nil || len(left) < 2 {
		return err == nil, err
	}
	// The turn first: another store's merge may take longer than a claim lasts.
	if c.opt.Turn != nil {
		c.opt.Turn.Lock()
		defer c.opt.Turn.Unlock()
	}
	mine, err := c.claim(ctx, mergeClaimKey(start))
	if err != nil || !mine {
		return false, err
	}
	defer c.release(ctx)
	// Somebody may have finished between the two.
	left, err := c.unmerged(ctx, start, manifests)
	if err != nil {
		return false, err
	}
	for len(left) > 0 {
		n := c.together(left)
		group := left[:n]
		left = left[n:]
		outcome, err := c.mergeGroup(ctx, group)
		switch {
		case err == nil:
		case errors.Is(err, errUnmerged):
			outcome = "unmerged"
			c.log.Debug().Err(err).Str("store", c.opt.Name).Time("from", start).Msg("windows stay as they are")
		default:
			return false, err
		}
		c.metrics.merges.WithLabelValues(c.opt.Name, outcome).Inc()
		if outcome == "lost" {
			return false, nil
		}
	}
	return true, nil
}

// together returns how many of the first windows are merged into one: as many as
// have footers, WAL objects and bytes that a run can have.
func (c *Compactor) together(left []*segment.Manifest) int {
	most := int64(unboundedMerge)
	if c.limits.BytesPerSecond > 0 {
		most = c.limits.BytesPerSecond * mergeSeconds / 2 // read, and written
	}
	footers, size, objects := int64(0), int64(0), 0
	for n, m := range left {
		objects += len(m.Objects)
		for i := range m.Segments {
			footers += m.Segments[i].FooterSize
			size += m.Segments[i].Size
		}
		if n > 0 && (footers > c.limits.MemoryBytes/4 || size > most || objects > mergeObjects) {
			return n
		}
	}
	return len(left)
}

// unmerged returns those manifests of which nothing is in level 2.
func (c *Compactor) unmerged(ctx context.Context, start time.Time, manifests []*segment.Manifest) (left []*segment.Manifest, err error) {
	f, err := c.cover(ctx, segment.Level2, start)
	if err != nil {
		return nil, err
	}
	for _, m := range manifests {
		merged, err := f.any(m)
		if err != nil {
			return nil, err
		}
		if !merged {
			left = append(left, m)
		}
	}
	return left, nil
}

// any reports whether any WAL object of a manifest is, or may be, covered.
func (f *folder) any(m *segment.Manifest) (bool, error) {
	for _, o := range m.Objects {
		if f.covers(o.ID) {
			return true, nil
		}
		if err := f.known(o.ID); err != nil {
			return false, err
		}
	}
	return false, nil
}

// source is a segment that is merged.
type source struct {
	m      *segment.Manifest
	n      int
	footer *segment.Footer
}

// mergeGroup merges windows: one run. It holds the footers of their segments in
// memory, one new segment, and what is read for it at a time.
func (c *Compactor) mergeGroup(ctx context.Context, group []*segment.Manifest) (outcome string, err error) {
	started := time.Now()
	if len(group) < 2 {
		return "", fmt.Errorf("%w: it and the next one are more than compaction.memory_bytes and bytes_per_second allow for at a time", errUnmerged)
	}
	if shared, all := sharedBytes(group); shared < all/2 {
		return "", fmt.Errorf("%w: %d of %d bytes are in large segments of one partition", errUnmerged, all-shared, all)
	}
	m := &segment.Manifest{Level: segment.Level2, Run: ulid.MustNew(ulid.Timestamp(started), ulid.DefaultEntropy())}
	sources, err := c.sources(ctx, group)
	if err != nil {
		return "", err
	}
	sizes, small, all := piecesOf(sources)
	if all == 0 || small < all/2 {
		return "", fmt.Errorf("%w: %d of %d bytes are in large pieces", errUnmerged, all-small, all)
	}
	objects := map[ulid.ULID]int64{}
	for _, g := range group {
		for _, o := range g.Objects {
			objects[o.ID] = o.Size
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(objects), ulid.ULID.Compare) {
		m.Objects = append(m.Objects, segment.Object{ID: id, Size: objects[id]})
	}
	written, err := c.mergeSources(ctx, m, sources, sizes)
	if errors.Is(err, errUnmerged) {
		return "", errors.Join(err, c.drop(ctx, m))
	}
	if err != nil {
		return "", err
	}
	lost, err := c.publish(ctx, m, started, func() (bool, error) {
		f, err := c.cover(ctx, segment.Level2, m.Objects[0].ID.Timestamp())
		if err != nil {
			return false, err
		}
		return f.any(m)
	})
	if err != nil {
		return "", err
	}
	if lost {
		return "lost", nil
	}
	c.now.Merged += len(group)
	c.log.Debug().Str("store", c.opt.Name).Str("window", m.Window().Key()).Int("windows", len(group)).Int("from", len(sources)).
		Int("segments", len(m.Segments)).Int64("bytes", written).Dur("took", time.Since(started)).Msg("merged")
	return "written", nil
}

// sharedBytes are those of which manifests do not tell already that they lie in large
// pieces.
func sharedBytes(group []*segment.Manifest) (shared, all int64) {
	for _, m := range group {
		for _, s := range m.Segments {
			all += s.Size
			if s.First != s.Last || s.Size < smallPiece {
				shared += s.Size
			}
		}
	}
	return shared, all
}

// sources reads the footers of windows' segments. A window that lacks one has begun
// to die, or is damaged: it is not merged.
func (c *Compactor) sources(ctx context.Context, group []*segment.Manifest) ([]source, error) {
	var all []source
	for _, m := range group {
		for n := range m.Segments {
			if err := c.wait(ctx, m.Segments[n].FooterSize); err != nil {
				return nil, err
			}
			f, err := m.ReadFooter(ctx, c.store, n)
			if err != nil {
				return nil, unmergeable(m.Key(n), err)
			}
			c.metrics.bytes.WithLabelValues(c.opt.Name, "merge_read").Add(float64(m.Segments[n].FooterSize))
			all = append(all, source{m, n, f})
		}
	}
	return all, nil
}

// unmergeable tells a segment that is gone or damaged from a store that fails.
func unmergeable(key string, err error) error {
	if errors.Is(err, objstore.ErrNotFound) || errors.Is(err, segment.ErrGarbled) {
		return fmt.Errorf("%w: %s: %w", errUnmerged, key, err)
	}
	return fmt.Errorf("reading %s: %w", key, err)
}

// piecesOf returns how many bytes topics have, and how many of all bytes are in
// pieces of one partition that are small.
func piecesOf(sources []source) (topics map[string]int64, small, all int64) {
	topics = map[string]int64{}
	for _, s := range sources {
		var at segment.Place
		piece := int64(0)
		end := func() {
			topics[at.Topic] += piece
			all += piece
			if piece < smallPiece {
				small += piece
			}
			piece = 0
		}
		for e := range s.footer.Entries() {
			if e.Topic != at.Topic || e.Partition != at.Partition {
				if piece > 0 {
					end()
				}
				at = segment.Place{Topic: e.Topic, Partition: e.Partition}
			}
			piece += int64(e.Length)
		}
		if piece > 0 {
			end()
		}
	}
	return topics, small, all
}

// piece is a batch on its way from a segment to another; its Position is that in
// the source.
type piece struct {
	segment.Entry
	from int // which source
}

// mergeSources writes the segments of a run.
func (c *Compactor) mergeSources(ctx context.Context, m *segment.Manifest, sources []source, sizes map[string]int64) (written int64, err error) {
	kinds := c.kinds(ctx, sizes)
	p := planner{target: c.limits.SegmentBytes}
	var filling []piece
	var bucket segment.Bucket
	flush := func() error {
		n, err := c.mergeSegment(ctx, m, sources, filling, bucket)
		written += n
		filling = filling[:0]
		return err
	}
	for _, k := range slices.Compact(slices.SortedFunc(maps.Values(kinds), kind.compare)) {
		for b, err := range inOrder(sources, func(topic string) bool { return kinds[topic] == k }) {
			if err == nil && p.cut(k, b.Topic, sizes[b.Topic], int64(b.Length)) {
				err = flush()
			}
			if err != nil {
				return written, err
			}
			filling, bucket = append(filling, b), k.bucket
		}
	}
	if len(filling) > 0 {
		err = flush()
	}
	return written, err
}

// inOrder yields the batches of those topics that are wanted, in the order of
// segments. One that is in two sources, of windows that overlap, comes once.
func inOrder(sources []source, wanted func(topic string) bool) iter.Seq2[piece, error] {
	return func(yield func(piece, error) bool) {
		var heads pieces
		var stops []func()
		defer func() {
			for _, stop := range stops {
				stop()
			}
		}()
		nexts := make([]func() (segment.Entry, bool), len(sources))
		advance := func(from int) (piece, bool) {
			for {
				e, ok := nexts[from]()
				if !ok {
					return piece{}, false
				}
				if wanted(e.Topic) && sources[from].m.Covers(e.Object) {
					return piece{e, from}, true
				}
			}
		}
		for i, s := range sources {
			next, stop := iter.Pull(s.footer.Entries())
			nexts[i], stops = next, append(stops, stop)
			if b, ok := advance(i); ok {
				heads = append(heads, b)
			}
		}
		heap.Init(&heads)
		var last piece
		for first := true; len(heads) > 0; {
			b := heads[0]
			if next, ok := advance(b.from); ok {
				heads[0] = next
				heap.Fix(&heads, 0)
			} else {
				heap.Pop(&heads)
			}
			if !first && last.Compare(&b.Entry) == 0 {
				if b.Length != last.Length || b.CRC != last.CRC {
					yield(b, fmt.Errorf("%w: %s and %s hold different batches at %d of %s", errUnmerged, sources[b.from].m.Key(sources[b.from].n), sources[last.from].m.Key(sources[last.from].n), b.ObjectOffset, b.Object))
					return
				}
				continue
			}
			first, last = false, b
			if !yield(b, nil) {
				return
			}
		}
	}
}

// pieces is a heap.
type pieces []piece

func (p pieces) Len() int           { return len(p) }
func (p pieces) Less(i, j int) bool { return p[i].Compare(&p[j].Entry) < 0 }
func (p pieces) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }
func (p *pieces) Push(x any)        { *p = append(*p, x.(piece)) }
func (p *pieces) Pop() any {
	old := *p
	last := old[len(old)-1]
	*p = old[:len(old)-1]
	return last
}

// part of a source, and where its batches come to lie.
type stretch struct {
	from     int
	at, size int64
	batches  []int
}

// mergeSegment reads the batches of a segment and writes it.
func (c *Compactor) mergeSegment(ctx context.Context, m *segment.Manifest, sources []source, batches []piece, bucket segment.Bucket) (int64, error) {
	size := 0
	entries := make([]segment.Entry, len(batches))
	offsets := make([]int, len(batches))
	open := map[int]*stretch{} // the last one of each source
	var reads []*stretch
	for i := range batches {
		b := &batches[i]
		entries[i], offsets[i] = b.Entry, size
		size += int(b.Length)
		s := open[b.from]
		if s == nil || int64(b.Position) != s.at+s.size || s.size+int64(b.Length) > c.limits.MemoryBytes/16 {
			s = &stretch{from: b.from, at: int64(b.Position)}
			open[b.from] = s
			reads = append(reads, s)
		}
		s.size += int64(b.Length)
		s.batches = append(s.batches, i)
	}
	body := newBody(size, len(batches))[:size]
	var g errgroup.Group
	g.SetLimit(c.limits.Concurrency)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, s := range reads {
		if err := c.wait(ctx, s.size); err != nil {
			return 0, cmp.Or(g.Wait(), err)
		}
		g.Go(func() error {
			err := c.readStretch(ctx, sources[s.from], s, batches, offsets, body)
			if err != nil {
				cancel()
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	c.now.Read += int64(size)
	n, err := c.put(ctx, m, body, entries, bucket, "merge_written")
	if errors.Is(err, errChanged) {
		err = fmt.Errorf("%w: %w", errUnmerged, err)
		c.metrics.damaged.WithLabelValues(c.opt.Name).Inc()
		c.log.Error().Err(err).Str("store", c.opt.Name).Msg("windows stay as they are, for a segment of theirs is not what its footer says: run sluice fsck --repair")
	}
	return n, err
}

// readStretch copies a part of a source to where its batches belong.
func (c *Compactor) readStretch(ctx context.Context, from source, s *stretch, batches []piece, offsets []int, body []byte) error {
	key := from.m.Key(from.n)
	b, err := c.store.Get(ctx, key, s.at, s.size)
	if err != nil {
		return unmergeable(key, err)
	}
	c.metrics.bytes.WithLabelValues(c.opt.Name, "merge_read").Add(float64(len(b)))
	if int64(len(b)) != s.size {
		return unmergeable(key, fmt.Errorf("%w: it ends too early", segment.ErrGarbled))
	}
	for _, i := range s.batches {
		n := int(batches[i].Length)
		copy(body[offsets[i]:], b[:n])
		b = b[n:]
	}
	return nil
}
