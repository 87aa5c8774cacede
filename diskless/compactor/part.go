package compactor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// read is a WAL object in memory, whole and checked.
type read struct {
	object
	body    []byte
	entries []diskless.Entry
}

// lifetime is how long topics are kept: only those of one share segments, for a
// segment takes its space until all in it is dead. Buckets alone would let one
// half of it be dead for as long as it was needed.
type lifetime struct {
	bucket segment.Bucket
	step   uint8 // segment.StepOf
}

// kind of topics.
type kind struct {
	lifetime
	large bool // it fills half a segment, and has segments of its own
}

func (k kind) compare(o kind) int {
	return cmp.Or(cmp.Compare(k.bucket, o.bucket), cmp.Compare(k.step, o.step), cmp.Compare(count(k.large), count(o.large)))
}

// kinds sorts topics, given how many bytes each has.
func (c *Compactor) kinds(ctx context.Context, sizes map[string]int64) map[string]kind {
	var retention map[string]time.Duration
	if c.opt.Retention != nil && len(sizes) > 0 {
		retention = c.opt.Retention(ctx, slices.Sorted(maps.Keys(sizes)))
	}
	kinds := make(map[string]kind, len(sizes))
	for topic, size := range sizes {
		k := kind{lifetime{bucket: segment.Unknown}, size >= c.limits.SegmentBytes/2}
		if kept, ok := retention[topic]; ok {
			k.lifetime = lifetime{segment.BucketOf(kept), segment.StepOf(kept)}
		}
		kinds[topic] = k
	}
	return kinds
}

// batch is one batch on its way from a WAL object to a segment.
type batch struct {
	segment.Entry
	kind
	bytes wire.Batch
}

// tooLate reports whether a run may no longer be finished; see segment.MaxRun.
func (c *Compactor) tooLate(run ulid.ULID, started time.Time) bool {
	// By both clocks: one of them stops while a machine sleeps.
	return max(time.Since(started), time.Now().Round(0).Sub(run.Timestamp())) > segment.MaxRun/2
}

// part compacts objects of one window that fit into memory together: one run.
// lost says that another compactor was faster.
func (c *Compactor) part(ctx context.Context, objects []object) (lost bool, err error) {
	started := time.Now()
	run := ulid.MustNew(ulid.Timestamp(started), ulid.DefaultEntropy())
	reads, err := c.readAll(ctx, objects)
	if err != nil || len(reads) == 0 {
		return false, err
	}
	m := &segment.Manifest{Level: segment.Level1, Run: run}
	mine := make([]object, len(reads))
	for i, r := range reads {
		mine[i] = r.object
		m.Objects = append(m.Objects, segment.Object{ID: r.id, Size: r.size})
	}
	batches := c.sorted(ctx, reads)
	written, err := c.write(ctx, m, plan(batches, c.limits.SegmentBytes))
	if err != nil {
		return false, err
	}
	lost, err = c.publish(ctx, m, started, func() (bool, error) {
		left, err := c.uncovered(ctx, window{start: mine[0].id.Timestamp(), objects: mine})
		return len(left) < len(mine), err
	})
	if lost || err != nil {
		c.metrics.windows.WithLabelValues(c.opt.Name, "lost").Add(float64(count(lost)))
		return lost, err
	}
	c.now.Windows++
	c.metrics.windows.WithLabelValues(c.opt.Name, "written").Inc()
	c.metrics.objects.WithLabelValues(c.opt.Name).Add(float64(len(reads)))
	c.metrics.seconds.Observe(time.Since(started).Seconds())
	c.log.Debug().Str("store", c.opt.Name).Str("window", m.Window().Key()).Int("objects", len(reads)).Int("batches", len(batches)).
		Int("segments", len(m.Segments)).Int64("bytes", written).Dur("took", time.Since(started)).Msg("compacted")
	return false, nil
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// publish writes the manifest of a run whose segments are there. lost says that
// another run was faster: then they are removed.
func (c *Compactor) publish(ctx context.Context, m *segment.Manifest, started time.Time, taken func() (bool, error)) (lost bool, err error) {
	body, err := m.Encode()
	if err != nil {
		return false, err
	}
	// Another run may have been first, of a compactor that was believed dead or
	// that cuts windows differently. Two manifests for one object are no error,
	// but twice the bytes.
	if lost, err = taken(); err != nil {
		return false, err
	}
	if lost {
		return true, c.drop(ctx, m)
	}
	w := m.Window()
	if err := c.wait(ctx, int64(len(body))); err != nil {
		return false, err
	}
	if c.tooLate(m.Run, started) {
		// Garbage collection may take its segments for a crashed run's.
		err := fmt.Errorf("a window took %v to compact: raise compaction.bytes_per_second, or see what holds the store up", time.Since(started).Round(time.Second))
		return false, errors.Join(err, c.drop(ctx, m))
	}
	err = c.store.PutIfAbsent(ctx, w.Key(), body)
	switch {
	case errors.Is(err, objstore.ErrExists):
		there, err := segment.ReadManifest(ctx, c.store, w)
		if err != nil {
			return false, fmt.Errorf("another window has the name of this one: %w", err)
		}
		if there.Run != m.Run { // else an answer got lost
			return true, c.drop(ctx, m)
		}
	case err != nil:
		// It may be there all the same, so the segments stay.
		return false, fmt.Errorf("writing %s: %w", w.Key(), err)
	}
	c.metrics.segments.WithLabelValues(c.opt.Name).Add(float64(len(m.Segments)))
	return false, nil
}

// drop removes the segments of a run that another one was faster than.
func (c *Compactor) drop(ctx context.Context, m *segment.Manifest) error {
	for n := range m.Segments {
		if err := c.wait(ctx, 0); err != nil {
			return err
		}
		if err := c.store.Delete(ctx, m.Key(n)); err != nil {
			return fmt.Errorf("removing what another compactor has written too: %w", err)
		}
	}
	return nil
}

// readAll reads objects, each once and whole, and leaves out what is damaged or
// gone.
func (c *Compactor) readAll(ctx context.Context, objects []object) ([]read, error) {
	reads := make([]*read, len(objects))
	var g errgroup.Group
	g.SetLimit(c.limits.Concurrency)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i, o := range objects {
		if err := c.wait(ctx, o.size); err != nil {
			return nil, cmp.Or(g.Wait(), err)
		}
		g.Go(func() error {
			r, err := c.read(ctx, o)
			if err != nil {
				cancel()
			}
			reads[i] = r
			return err
		})
	}
	err := g.Wait()
	var whole []read
	for i, r := range reads {
		if r != nil {
			whole = append(whole, *r)
			c.now.Read += r.size
		} else if err == nil {
			c.damaged[objects[i].id] = true
		}
	}
	c.now.Damaged = int(c.skipped.Load())
	return whole, err
}

// read returns nil for an object that is damaged or gone.
func (c *Compactor) read(ctx context.Context, o object) (*read, error) {
	if o.size > c.limits.MemoryBytes*3/4 {
		c.skip(o, fmt.Errorf("it has %d bytes: raise compaction.memory_bytes to twice that", o.size),
			"a WAL object does not fit into the memory for compaction and stays as it is; its neighbours are compacted")
		return nil, nil
	}
	body, err := c.store.Get(ctx, o.key(), 0, -1)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return nil, nil // collected meanwhile
	case err != nil:
		return nil, err
	}
	c.metrics.bytes.WithLabelValues(c.opt.Name, "read").Add(float64(len(body)))
	r := &read{object: o, body: body}
	r.size = int64(len(body))
	if r.entries, err = diskless.ReadFooter(body, r.size); err == nil {
		err = r.check()
	}
	if err != nil {
		c.skip(o, err, "a WAL object is not whole and stays as it is; its neighbours are compacted; sluice fsck tells which records it holds")
		return nil, nil
	}
	return r, nil
}

// check holds every batch against its entry.
func (r *read) check() error {
	for i, e := range r.entries {
		if !diskless.Intact(r.batch(e), e.Length, e.CRC) {
			return fmt.Errorf("%w: batch %d of %s-%d at %d", diskless.ErrObject, i, e.Topic, e.Partition, e.Offset)
		}
	}
	return nil
}

func (r *read) batch(e diskless.Entry) wire.Batch {
	return wire.Batch(r.body[e.Offset : e.Offset+uint64(e.Length)])
}

func (c *Compactor) skip(o object, err error, what string) {
	c.skipped.Add(1)
	c.metrics.damaged.WithLabelValues(c.opt.Name).Inc()
	c.log.Error().Err(err).Str("store", c.opt.Name).Str("object", o.key()).Msg(what)
}

// sorted brings the batches of objects into the order of segments: topics that
// share them first, those with segments of their own behind them.
func (c *Compactor) sorted(ctx context.Context, reads []read) []batch {
	names := map[string]string{} // one string for each topic, not one for each batch
	sizes := map[string]int64{}
	n := 0
	for _, r := range reads {
		n += len(r.entries)
		for _, e := range r.entries {
			names[e.Topic] = e.Topic
			sizes[e.Topic] += int64(e.Length)
		}
	}
	kinds := c.kinds(ctx, sizes)
	batches := make([]batch, 0, n)
	for _, r := range reads {
		for _, e := range r.entries {
			batches = append(batches, batch{segment.Entry{
				Topic: names[e.Topic], Partition: e.Partition, Object: r.id, ObjectOffset: e.Offset, Length: e.Length, Records: e.Records,
				ProducerID: e.ProducerID, ProducerEpoch: e.ProducerEpoch, BaseSequence: e.BaseSequence, CRC: e.CRC,
			}, kinds[e.Topic], r.batch(e)})
		}
	}
	slices.SortFunc(batches, func(a, b batch) int {
		return cmp.Or(a.compare(b.kind), a.Compare(&b.Entry))
	})
	return batches
}

// planner cuts sorted batches into segments of about target bytes. A large topic has
// segments of its own, so that it can die by itself; smaller ones share.
type planner struct {
	target, size int64 // size is of the segment that is filled
	kind
	topic string
}

// cut reports whether a new segment begins with a batch of so many bytes, of a topic
// that has so many in all.
func (p *planner) cut(k kind, topic string, all, length int64) (cut bool) {
	switch {
	case p.size == 0:
	case k.lifetime != p.lifetime:
		cut = true
	case topic != p.topic:
		cut = k.large || p.large || p.size+all > p.target
	case k.large:
		pieces := (all + p.target - 1) / p.target
		cut = p.size+length/2 > all/pieces
	}
	if cut {
		p.size = 0
	}
	p.kind, p.topic = k, topic
	p.size += length
	return cut
}

func plan(batches []batch, target int64) (segments [][]batch) {
	sizes := map[string]int64{}
	for i := range batches {
		sizes[batches[i].Topic] += int64(batches[i].Length)
	}
	p, first := planner{target: target}, 0
	for i := range batches {
		b := &batches[i]
		if p.cut(b.kind, b.Topic, sizes[b.Topic], int64(b.Length)) {
			segments = append(segments, batches[first:i])
			first = i
		}
	}
	if len(batches) > 0 {
		segments = append(segments, batches[first:])
	}
	return segments
}

// write makes the segments of a run durable and enters them in its manifest.
func (c *Compactor) write(ctx context.Context, m *segment.Manifest, segments [][]batch) (total int64, err error) {
	for _, batches := range segments {
		size := 0
		for i := range batches {
			size += len(batches[i].bytes)
		}
		body := newBody(size, len(batches))
		entries := make([]segment.Entry, len(batches))
		for i := range batches {
			body = append(body, batches[i].bytes...)
			entries[i] = batches[i].Entry
		}
		n, err := c.put(ctx, m, body, entries, batches[0].bucket, "written")
		if errors.Is(err, errChanged) {
			err = fmt.Errorf("in this machine's memory: %w", err)
		}
		if err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

// newBody has room for so many bytes of batches, and a footer.
func newBody(size, batches int) []byte {
	return make([]byte, 0, size+size/64+64*batches+1024)
}

// errChanged is a batch that is not what its entry says; nothing was written then.
var errChanged = errors.New("a batch is not what it was")

// put writes one segment, of the batches in body, and enters it in the manifest.
func (c *Compactor) put(ctx context.Context, m *segment.Manifest, body []byte, entries []segment.Entry, bucket segment.Bucket, direction string) (int64, error) {
	at, size := 0, len(body)
	for i := range entries {
		// Once more, of what is about to be written: it may soon be the only copy.
		end := at + int(entries[i].Length)
		if end > size || !diskless.Intact(wire.Batch(body[at:end]), entries[i].Length, entries[i].CRC) {
			return 0, fmt.Errorf("%w: of %s", errChanged, entries[i].Object)
		}
		at = end
	}
	body, err := segment.AppendFooter(body, entries)
	if err != nil {
		return 0, err
	}
	if err := c.wait(ctx, int64(len(body))); err != nil {
		return 0, err
	}
	key := m.Key(len(m.Segments))
	if err := c.store.Put(ctx, key, body); err != nil {
		return 0, fmt.Errorf("writing %s: %w", key, err)
	}
	first, last := &entries[0], &entries[len(entries)-1]
	m.Segments = append(m.Segments, segment.Info{
		Size: int64(len(body)), FooterSize: int64(len(body) - size), Bucket: bucket, Batches: len(entries),
		First: segment.Place{Topic: first.Topic, Partition: first.Partition}, Last: segment.Place{Topic: last.Topic, Partition: last.Partition},
	})
	c.now.Written += int64(len(body))
	c.metrics.bytes.WithLabelValues(c.opt.Name, direction).Add(float64(len(body)))
	return int64(len(body)), nil
}
