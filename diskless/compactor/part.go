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

// batch is one batch on its way from a WAL object to a segment.
type batch struct {
	segment.Entry
	bucket segment.Bucket
	large  bool // its topic fills half a segment
	bytes  wire.Batch
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
	body, err := m.Encode()
	if err != nil {
		return false, err
	}
	// Another run may have been first, of a compactor that was believed dead or
	// that cuts windows differently. Two manifests for one object are no error,
	// but twice the bytes.
	left, err := c.uncovered(ctx, window{start: mine[0].id.Timestamp(), objects: mine})
	if err != nil {
		return false, err
	}
	if len(left) < len(mine) {
		return true, c.drop(ctx, m)
	}
	w := m.Window()
	if err := c.wait(ctx, int64(len(body))); err != nil {
		return false, err
	}
	if c.tooLate(run, started) {
		// Garbage collection may take its segments for a crashed run's.
		return false, fmt.Errorf("a window took %v to compact: raise compaction.bytes_per_second, or see what holds the store up", time.Since(started).Round(time.Second))
	}
	err = c.store.PutIfAbsent(ctx, w.Key(), body)
	switch {
	case errors.Is(err, objstore.ErrExists):
		there, err := segment.ReadManifest(ctx, c.store, w)
		if err != nil {
			return false, fmt.Errorf("another window has the name of this one: %w", err)
		}
		if there.Run != run { // else an answer got lost
			return true, c.drop(ctx, m)
		}
	case err != nil:
		// It may be there all the same, so the segments stay.
		return false, fmt.Errorf("writing %s: %w", w.Key(), err)
	}
	c.now.Windows++
	c.metrics.windows.WithLabelValues(c.opt.Name, "written").Inc()
	c.metrics.objects.WithLabelValues(c.opt.Name).Add(float64(len(reads)))
	c.metrics.segments.WithLabelValues(c.opt.Name).Add(float64(len(m.Segments)))
	c.metrics.seconds.Observe(time.Since(started).Seconds())
	c.log.Debug().Str("store", c.opt.Name).Str("window", w.Key()).Int("objects", len(reads)).Int("batches", len(batches)).
		Int("segments", len(m.Segments)).Int64("bytes", written).Dur("took", time.Since(started)).Msg("compacted")
	return false, nil
}

// drop removes the segments of a run that another one was faster than.
func (c *Compactor) drop(ctx context.Context, m *segment.Manifest) error {
	c.metrics.windows.WithLabelValues(c.opt.Name, "lost").Inc()
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
	var retention map[string]time.Duration
	if c.opt.Retention != nil && len(names) > 0 {
		retention = c.opt.Retention(ctx, slices.Sorted(maps.Keys(names)))
	}
	batches := make([]batch, 0, n)
	for _, r := range reads {
		for _, e := range r.entries {
			bucket := segment.Unknown
			if kept, ok := retention[e.Topic]; ok {
				bucket = segment.BucketOf(kept)
			}
			batches = append(batches, batch{segment.Entry{
				Topic: names[e.Topic], Partition: e.Partition, Object: r.id, ObjectOffset: e.Offset, Length: e.Length, Records: e.Records,
				ProducerID: e.ProducerID, ProducerEpoch: e.ProducerEpoch, BaseSequence: e.BaseSequence, CRC: e.CRC,
			}, bucket, sizes[e.Topic] >= c.limits.SegmentBytes/2, r.batch(e)})
		}
	}
	slices.SortFunc(batches, func(a, b batch) int {
		if a.large != b.large && a.bucket == b.bucket {
			if a.large {
				return 1
			}
			return -1
		}
		return cmp.Or(cmp.Compare(a.bucket, b.bucket), a.Compare(&b.Entry))
	})
	return batches
}

// plan cuts sorted batches into segments of about target bytes. A large topic has
// segments of its own, so that it can die by itself; smaller ones share.
func plan(batches []batch, target int64) [][]batch {
	var segments [][]batch
	first, size := 0, int64(0) // of the segment that is filled
	cut := func(end int) {
		if end > first {
			segments = append(segments, batches[first:end])
		}
		first, size = end, 0
	}
	for i := 0; i < len(batches); {
		end, topic := i, int64(0)
		for end < len(batches) && batches[end].bucket == batches[i].bucket && batches[end].Topic == batches[i].Topic {
			topic += int64(batches[end].Length)
			end++
		}
		large := batches[i].large
		if large || size+topic > target || first < i && batches[first].bucket != batches[i].bucket {
			cut(i)
		}
		if !large {
			size += topic
			i = end
			continue
		}
		pieces := (topic + target - 1) / target
		for ; i < end; i++ {
			if size > 0 && size+int64(batches[i].Length)/2 > topic/pieces {
				cut(i)
			}
			size += int64(batches[i].Length)
		}
		cut(end)
	}
	cut(len(batches))
	return segments
}

// write makes the segments of a run durable and enters them in its manifest.
func (c *Compactor) write(ctx context.Context, m *segment.Manifest, segments [][]batch) (total int64, err error) {
	for n, batches := range segments {
		size := 0
		for i := range batches {
			size += len(batches[i].bytes)
		}
		body := make([]byte, 0, size+size/64+64*len(batches)+1024)
		entries := make([]segment.Entry, len(batches))
		for i := range batches {
			at := len(body)
			body = append(body, batches[i].bytes...)
			entries[i] = batches[i].Entry
			// Once more, of what is about to be written: it may soon be the only copy.
			if !diskless.Intact(wire.Batch(body[at:]), entries[i].Length, entries[i].CRC) {
				return total, fmt.Errorf("a batch of %s was changed in this machine's memory: nothing was written", entries[i].Object)
			}
		}
		if body, err = segment.AppendFooter(body, entries); err != nil {
			return total, err
		}
		if err := c.wait(ctx, int64(len(body))); err != nil {
			return total, err
		}
		if err := c.store.Put(ctx, m.Key(n), body); err != nil {
			return total, fmt.Errorf("writing %s: %w", m.Key(n), err)
		}
		first, last := batches[0], batches[len(batches)-1]
		m.Segments = append(m.Segments, segment.Info{
			Size: int64(len(body)), FooterSize: int64(len(body) - size), Bucket: first.bucket, Batches: len(batches),
			First: segment.Place{Topic: first.Topic, Partition: first.Partition}, Last: segment.Place{Topic: last.Topic, Partition: last.Partition},
		})
		total += int64(len(body))
		c.now.Written += int64(len(body))
		c.metrics.bytes.WithLabelValues(c.opt.Name, "written").Add(float64(len(body)))
	}
	return total, nil
}
