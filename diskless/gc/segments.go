package gc

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
)

// leftOver is when a claim means nothing any more, and a run without a manifest
// has none to come: compactors give up long before.
const leftOver = max(24*time.Hour, segment.MaxRun)

// compacted looks at segments and manifests, and deletes the WAL objects that
// they stand for.
//
//   - A segment dies when all that it holds is dead. It has the time of its
//     manifest, which was written after all of its WAL objects.
//   - It also dies when it is of level 1, and segments of level 2 hold all of it; see
//     superseded.
//   - A manifest dies when no segment of it is there any more.
//   - A segment that no manifest names dies when it is so old that its compactor
//     cannot be at work any more, and all that it holds is elsewhere too, or dead:
//     its manifest may have been lost after its WAL objects were deleted.
//   - A WAL object dies when a manifest covers it, for Grace already, and the
//     footers of the segments hold exactly its batches.
func (p *pass) compacted(ctx context.Context) error {
	// Data first: so a run whose manifest is not there then, had none.
	runs := make(map[ulid.ULID]map[int]objstore.Info)
	err := p.list(ctx, segment.DataPrefix, func(i objstore.Info) error {
		run, n, ok := segment.ParseDataKey(i.Key)
		if !ok {
			p.report(Object{Key: i.Key, Bytes: i.Size, Time: i.LastModified, Reason: Unknown, Why: "not a key of sluice's: never touched"}, false)
			return nil
		}
		if runs[run] == nil {
			runs[run] = make(map[int]objstore.Info)
		}
		runs[run][n] = i
		return nil
	})
	if err != nil {
		return err
	}
	type found struct {
		window segment.Window
		info   objstore.Info
	}
	var windows []found
	listed := time.Now()
	err = p.list(ctx, segment.WindowsPrefix, func(i objstore.Info) error {
		w, ok := segment.ParseWindowKey(i.Key)
		if !ok {
			p.report(Object{Key: i.Key, Bytes: i.Size, Time: i.LastModified, Reason: Unknown, Why: "not a key of sluice's: never touched"}, false)
			return nil
		}
		windows = append(windows, found{w, i})
		return nil
	})
	if err != nil {
		return err
	}
	named := make(map[ulid.ULID]bool, len(windows))
	manifests := make([]*outline, len(windows))
	whole := true // every manifest could be read
	for n, w := range windows {
		if err := p.mayGoOn(ctx); err != nil {
			return err
		}
		m, err := segment.ReadManifest(ctx, p.opt.Store, w.window)
		p.count(&p.Requests.Gets)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			whole = false
			if !errors.Is(err, objstore.ErrNotFound) {
				p.report(Object{Key: w.info.Key, Bytes: w.info.Size, Time: w.info.LastModified, Reason: Unreadable, Why: err.Error()}, false)
			}
			continue
		}
		manifests[n], named[m.Run] = outlineOf(m), true
	}
	for run, segments := range runs {
		if named[run] {
			continue
		}
		for _, n := range slices.Sorted(maps.Keys(segments)) {
			i := segments[n]
			o := Object{Key: i.Key, Bytes: i.Size, Time: i.LastModified, Reason: Needed, Why: "no manifest names it yet"}
			// What was listed is not news after a while: a manifest may be there now.
			if whole && p.now.Sub(i.LastModified) >= max(leftOver, p.opt.MinAge) && time.Since(listed) < max(p.opt.Timing.Grace, time.Second)/2 {
				if err := p.orphan(ctx, o, i, manifests, runs); err != nil {
					return err
				}
				continue
			}
			p.report(o, false)
		}
	}
	for n, w := range windows {
		if m := manifests[n]; m != nil && m.Level == segment.Level2 && p.now.Sub(w.info.LastModified) >= p.opt.Timing.Grace && allThere(m, runs[m.Run]) {
			// What could not be deleted when it was found: its neighbours that were can
			// no longer be compared.
			for part, run := range p.Collector.replaced {
				if _, there := runs[part.run][part.n]; there && run == m.Run {
					p.replaced[part] = run
				}
			}
			if err := p.superseded(ctx, m, manifests, runs); err != nil {
				return err
			}
		}
	}
	p.Collector.replaced = p.replaced
	for n, w := range windows {
		if manifests[n] == nil {
			continue
		}
		if err := p.window(ctx, manifests[n], w.info, runs[manifests[n].Run]); err != nil {
			return err
		}
	}
	return p.list(ctx, segment.ClaimsPrefix, func(i objstore.Info) error {
		o := Object{Key: i.Key, Bytes: i.Size, Time: i.LastModified, Reason: Needed, Why: "a compactor's claim"}
		if p.now.Sub(i.LastModified) >= max(leftOver, p.opt.MinAge) {
			o.Reason, o.Why = Dead, "a claim that was left over"
			return p.delete(ctx, o)
		}
		p.report(o, false)
		return nil
	})
}

// outline is a manifest without the WAL objects that it covers. A store has many
// more of those in its manifests than it has objects: they were deleted, but for the
// last half a day's.
type outline struct {
	segment.Manifest // without Objects
	window           segment.Window
}

func outlineOf(m *segment.Manifest) *outline {
	o := &outline{*m, m.Window()}
	o.Objects = nil
	return o
}

// Window is the manifest's name.
func (o *outline) Window() segment.Window { return o.window }

// maxWhole manifests are remembered: what asks for them asks for neighbours.
const maxWhole = 8

// whole reads a manifest again; nil is that it cannot be, or is another run's now.
func (p *pass) whole(ctx context.Context, o *outline) (*segment.Manifest, error) {
	if m := p.wholes[o.window]; m != nil {
		return m, nil
	}
	m, err := segment.ReadManifest(ctx, p.opt.Store, o.window)
	p.count(&p.Requests.Gets)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, objstore.ErrNotFound), errors.Is(err, segment.ErrGarbled):
		return nil, nil
	case err != nil:
		p.failures.Add(1)
		return nil, nil
	case m.Run != o.Run:
		return nil, nil
	}
	if len(p.wholes) >= maxWhole {
		clear(p.wholes)
	}
	p.wholes[o.window] = m
	return m, nil
}

// list is Store.List, with requests counted.
func (p *pass) list(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	n := 0
	p.count(&p.Requests.Lists)
	return p.opt.Store.List(ctx, prefix, "", func(i objstore.Info) error {
		if n++; n%1000 == 0 {
			p.count(&p.Requests.Lists)
		}
		if err := p.mayGoOn(ctx); err != nil {
			return err
		}
		return fn(i)
	})
}

// window looks at a manifest, its segments, and what they stand for.
func (p *pass) window(ctx context.Context, m *outline, info objstore.Info, there map[int]objstore.Info) error {
	if len(there) == 0 {
		o := Object{Key: info.Key, Bytes: info.Size, Time: info.LastModified, Reason: Needed, Why: "a manifest"}
		if p.now.Sub(info.LastModified) >= p.opt.MinAge {
			if there, err := p.listsTooFew(ctx, m); there || err != nil {
				return err
			}
			o.Reason, o.Why = Dead, "no segment of it is there any more"
			return p.delete(ctx, o)
		}
		p.report(o, false)
		return nil
	}
	p.report(Object{Key: info.Key, Bytes: info.Size, Time: info.LastModified, Reason: Needed, Why: "a manifest"}, false)
	// Before segments die: then they are all there to be held against.
	if err := p.covered(ctx, m, info); err != nil {
		return err
	}
	for _, n := range slices.Sorted(maps.Keys(there)) {
		if err := p.mayGoOn(ctx); err != nil {
			return err
		}
		if err := p.segment(ctx, m, info, n, there[n]); err != nil {
			return err
		}
	}
	return nil
}

// listsTooFew looks once more whether none of a manifest's segments is there:
// without it nobody would find them again. there is also true when that cannot be
// told now.
func (p *pass) listsTooFew(ctx context.Context, m *outline) (there bool, err error) {
	for n := range m.Segments {
		there, err := p.exists(ctx, m.Key(n))
		switch {
		case err != nil && ctx.Err() != nil:
			return true, ctx.Err()
		case err != nil:
			p.failures.Add(1)
			return true, nil
		case there:
			return true, fmt.Errorf("%s is there, but the store does not list it: its listings cannot be relied on, and nothing more is deleted", m.Key(n))
		}
	}
	return false, nil
}

func (p *pass) exists(ctx context.Context, key string) (bool, error) {
	p.count(&p.Requests.Gets)
	_, err := p.opt.Store.Get(ctx, key, 0, 1)
	if errors.Is(err, objstore.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// orphan decides about a segment that no manifest names and none can any more.
func (p *pass) orphan(ctx context.Context, o Object, i objstore.Info, manifests []*outline, runs map[ulid.ULID]map[int]objstore.Info) error {
	f, err := p.segmentFooter(ctx, i)
	if err != nil {
		return p.unreadable(ctx, o, err)
	}
	only, places, err := p.onlyHere(ctx, f, manifests, runs)
	if err != nil {
		return p.unreadable(ctx, o, err)
	}
	if len(places) == 0 {
		o.Reason, o.Why = Dead, "its compactor never finished"
		return p.delete(ctx, o)
	}
	if last := f.Objects()[len(f.Objects())-1].Timestamp(); last.After(o.Time) {
		o.Time = last
	}
	if !p.tooYoung(&o) {
		p.decide(&o, places)
	}
	if o.Reason == Dead {
		return p.delete(ctx, o)
	}
	o.Why = fmt.Sprintf("no manifest names it, but WAL object %s is nowhere else: restore the manifest; %s", only, o.Why)
	p.report(o, false)
	return nil
}

// onlyHere finds those places of a segment that have batches of WAL objects which
// are gone, and in no window either: one that covers the object, and of which every
// segment is there in which readers would look for the place. only is one of the
// objects.
func (p *pass) onlyHere(ctx context.Context, f *segment.Footer, manifests []*outline, runs map[ulid.ULID]map[int]objstore.Info) (only ulid.ULID, places map[place]struct{}, err error) {
	of := make(map[ulid.ULID]map[segment.Place]struct{})
	for e := range f.Entries() {
		if of[e.Object] == nil {
			of[e.Object] = make(map[segment.Place]struct{})
		}
		of[e.Object][segment.Place{Topic: e.Topic, Partition: e.Partition}] = struct{}{}
	}
	places = make(map[place]struct{})
	for _, id := range f.Objects() {
		for _, in := range manifests {
			if in == nil || !in.Window().Spans(id) {
				continue
			}
			m, err := p.whole(ctx, in)
			if err != nil {
				return id, nil, err
			}
			if m == nil || !m.Covers(id) {
				continue
			}
			maps.DeleteFunc(of[id], func(at segment.Place, _ struct{}) bool {
				found := m.Find(at)
				return len(found) > 0 && !slices.ContainsFunc(found, func(n int) bool { return !isThere(m, n, runs[m.Run]) })
			})
		}
		if len(of[id]) == 0 {
			continue
		}
		if err := p.mayGoOn(ctx); err != nil {
			return id, nil, err
		}
		there, err := p.exists(ctx, diskless.ObjectKey(id, false))
		if err != nil {
			return id, nil, err
		}
		if !there {
			only = id
			for at := range of[id] {
				places[place{at.Topic, at.Partition}] = struct{}{}
			}
		}
	}
	return only, places, nil
}

// segmentFooter reads a footer without a manifest that says how large it is.
func (p *pass) segmentFooter(ctx context.Context, i objstore.Info) (*segment.Footer, error) {
	end, err := p.end(ctx, i, segment.FooterSize, segment.ErrGarbled)
	if err != nil {
		return nil, err
	}
	return segment.ParseFooter(end, i.Size)
}

func placesOf(f *segment.Footer) map[place]struct{} {
	places := make(map[place]struct{})
	for e := range f.Entries() {
		places[place{e.Topic, e.Partition}] = struct{}{}
	}
	return places
}

// segmentID is a segment's place among blockers.
func segmentID(run ulid.ULID, n int) (id ulid.ULID) {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(run[:], uint64(n)))
	copy(id[:], sum[:])
	return id
}

func (p *pass) segment(ctx context.Context, m *outline, manifest objstore.Info, n int, i objstore.Info) error {
	o := Object{Key: i.Key, Bytes: i.Size, Time: manifest.LastModified}
	// The store's clock may have been behind for a while: names tell the time, too.
	for _, t := range []time.Time{i.LastModified, m.Window().Last.Timestamp(), m.Run.Timestamp()} {
		if t.After(o.Time) {
			o.Time = t
		}
	}
	id := segmentID(m.Run, n)
	if n >= len(m.Segments) {
		o.Reason, o.Why = Unknown, "its manifest does not name it"
		p.report(o, false)
		return nil
	}
	if into, ok := p.replaced[numbered{m.Run, n}]; ok && p.now.Sub(o.Time) >= p.opt.MinAge {
		o.Reason, o.Why = Dead, fmt.Sprintf("segments of run %s hold all of it", into)
		p.blockers.forget(id)
		deleted, err := p.deleted(ctx, o)
		if deleted {
			delete(p.replaced, numbered{m.Run, n})
		}
		return err
	}
	if known, ok := p.blockers.get(id); ok && p.keeps(&o, known) {
		p.name(known.topic)
		p.report(o, false)
		return nil
	}
	if p.tooYoung(&o) {
		p.report(o, false)
		return nil
	}
	f, err := m.ReadFooter(ctx, p.opt.Store, n)
	p.count(&p.Requests.Gets)
	if err != nil {
		return p.unreadable(ctx, o, err)
	}
	p.decide(&o, placesOf(f))
	if o.Reason == Dead {
		p.blockers.forget(id)
		return p.delete(ctx, o)
	}
	if o.Partition != nil {
		p.blockers.put(id, place{o.Topic, *o.Partition})
	}
	p.report(o, false)
	return nil
}

// contents is a set of batches, as the sum of their hashes: sets that differ in
// anything have different sums, and it does not matter in which order they come.
type contents struct {
	batches int
	sum     [4]uint64
}

func (c *contents) add(object ulid.ULID, topic string, partition int32, offset uint64, length uint32, records int32, producer int64, epoch int16, sequence int32, crc uint32) {
	h := sha256.New()
	h.Write(object[:])
	var b []byte
	b = binary.BigEndian.AppendUint64(b, uint64(partition))
	b = binary.BigEndian.AppendUint64(b, offset)
	b = binary.BigEndian.AppendUint64(b, uint64(length))
	b = binary.BigEndian.AppendUint64(b, uint64(records))
	b = binary.BigEndian.AppendUint64(b, uint64(producer))
	b = binary.BigEndian.AppendUint64(b, uint64(epoch))
	b = binary.BigEndian.AppendUint64(b, uint64(sequence))
	b = binary.BigEndian.AppendUint64(b, uint64(crc))
	h.Write(b)
	h.Write([]byte(topic))
	sum := h.Sum(nil)
	c.batches++
	for i := range c.sum {
		c.sum[i] += binary.BigEndian.Uint64(sum[8*i:])
	}
}

func (c *contents) addEntry(e *segment.Entry) {
	c.add(e.Object, e.Topic, e.Partition, e.ObjectOffset, e.Length, e.Records, e.ProducerID, e.ProducerEpoch, e.BaseSequence, e.CRC)
}

// allThere reports whether a window's segments are all listed, as large as it says.
func allThere(m *outline, there map[int]objstore.Info) bool {
	for n := range m.Segments {
		if !isThere(&m.Manifest, n, there) {
			return false
		}
	}
	return true
}

func isThere(m *segment.Manifest, n int, there map[int]objstore.Info) bool {
	i, ok := there[n]
	return ok && i.Size == m.Segments[n].Size
}

// slice is the batches of a partition in the segments of a run.
type slice struct {
	run ulid.ULID
	at  segment.Place
}

// numbered is a segment of a run.
type numbered struct {
	run ulid.ULID
	n   int
}

// pair is two runs, of level 1 and of level 2.
type pair struct{ from, into ulid.ULID }

// superseded notes which segments of level 1 may go because a window of level 2
// holds all of them: of each partition in such a segment, what all segments of its
// own window hold is what the window of level 2 holds of the same WAL objects,
// where readers look for it.
//
// Every doubt keeps them: a segment of level 2 that is not listed as it should be
// or cannot be read, and a WAL object that the window of level 2 does not cover. A
// segment of level 1 that is gone leaves its neighbours with less than level 2 has,
// so they stay if they share a partition.
func (p *pass) superseded(ctx context.Context, in *outline, manifests []*outline, runs map[ulid.ULID]map[int]objstore.Info) error {
	var parts []*segment.Manifest
	var into *segment.Manifest
	window := in.Window()
	for _, m := range manifests {
		if m == nil || m.Level != segment.Level1 || p.unlike[pair{m.Run, in.Run}] || !window.Spans(m.Window().First) || !window.Spans(m.Window().Last) {
			continue
		}
		old := func(i objstore.Info) bool { return p.now.Sub(i.LastModified) >= p.opt.MinAge }
		if !slices.ContainsFunc(slices.Collect(maps.Values(runs[m.Run])), old) {
			continue
		}
		var err error
		if into == nil {
			if into, err = p.whole(ctx, in); into == nil {
				return err
			}
		}
		part, err := p.whole(ctx, m)
		if err != nil {
			return err
		}
		if part != nil && !slices.ContainsFunc(part.Objects, func(o segment.Object) bool { return !into.Covers(o.ID) }) {
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 {
		return nil
	}
	covering := make(map[ulid.ULID][]ulid.ULID) // WAL objects: by which runs of level 1
	for _, m := range parts {
		for _, o := range m.Objects {
			covering[o.ID] = append(covering[o.ID], m.Run)
		}
	}
	held, own := make(map[slice]contents), make(map[slice]contents)
	enter := func(in map[slice]contents, at slice, e *segment.Entry) {
		c := in[at]
		c.addEntry(e)
		in[at] = c
	}
	read := func(m *segment.Manifest, n int) (*segment.Footer, error) {
		if err := p.mayGoOn(ctx); err != nil {
			return nil, err
		}
		f, err := m.ReadFooter(ctx, p.opt.Store, n)
		p.count(&p.Requests.Gets)
		if err == nil || ctx.Err() != nil {
			return f, ctx.Err()
		}
		if !errors.Is(err, objstore.ErrNotFound) && !errors.Is(err, segment.ErrGarbled) {
			p.failures.Add(1)
		}
		return nil, nil // segment says what is wrong with it
	}
	for n := range into.Segments {
		f, err := read(into, n)
		if err != nil || f == nil {
			return err
		}
		for e := range f.Entries() {
			at := segment.Place{Topic: e.Topic, Partition: e.Partition}
			if at.Compare(into.Segments[n].First) < 0 || at.Compare(into.Segments[n].Last) > 0 {
				continue // readers would not look for it here
			}
			for _, run := range covering[e.Object] {
				enter(held, slice{run, at}, &e)
			}
		}
	}
	type part struct {
		m      *segment.Manifest
		n      int
		places map[segment.Place]struct{}
	}
	var segments []part
	unread := make(map[ulid.ULID]bool)
	for _, m := range parts {
		for n := range m.Segments {
			if _, ok := runs[m.Run][n]; !ok {
				continue
			}
			f, err := read(m, n)
			if err != nil {
				return err
			}
			if f == nil {
				unread[m.Run] = true
				continue
			}
			s := part{m, n, make(map[segment.Place]struct{})}
			for e := range f.Entries() {
				at := segment.Place{Topic: e.Topic, Partition: e.Partition}
				s.places[at] = struct{}{}
				enter(own, slice{m.Run, at}, &e)
			}
			segments = append(segments, s)
		}
	}
	for _, s := range segments {
		same := true
		for at := range s.places {
			same = same && own[slice{s.m.Run, at}] == held[slice{s.m.Run, at}]
		}
		if same {
			p.replaced[numbered{s.m.Run, s.n}] = into.Run
		} else if !unread[s.m.Run] {
			p.unlike[pair{s.m.Run, into.Run}] = true
		}
	}
	return nil
}

// covered deletes the WAL objects whose batches are all in segments.
func (p *pass) covered(ctx context.Context, in *outline, manifest objstore.Info) error {
	window := in.Window()
	if p.swept[window] || p.now.Sub(manifest.LastModified) < p.opt.Timing.Grace {
		return nil
	}
	m, err := p.whole(ctx, in)
	if m == nil {
		return err
	}
	// What is there of what it covers.
	var objects []objstore.Info
	first, last := walPrefix+window.First.String(), walPrefix+window.Last.String()
	past := errors.New("past the window")
	p.count(&p.Requests.Lists)
	left := false // something that is to go later
	err = p.opt.Store.List(ctx, walPrefix, before(first), func(i objstore.Info) error {
		if i.Key > last {
			return past
		}
		id, _, ok := diskless.ParseObjectKey(i.Key)
		if !ok || !m.Covers(id) {
			return nil
		}
		left = true
		if p.now.Sub(i.LastModified) >= p.opt.MinAge {
			objects = append(objects, i)
		}
		return nil
	})
	if err != nil && !errors.Is(err, past) {
		return err
	}
	if !left {
		p.swept[window] = true
	}
	if len(objects) == 0 {
		return nil
	}
	held := make(map[ulid.ULID]*contents)
	for n := range m.Segments {
		f, err := m.ReadFooter(ctx, p.opt.Store, n)
		p.count(&p.Requests.Gets)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return nil // segment says what is wrong with it; its WAL objects stay
		}
		for e := range f.Entries() {
			at := segment.Place{Topic: e.Topic, Partition: e.Partition}
			if at.Compare(m.Segments[n].First) < 0 || at.Compare(m.Segments[n].Last) > 0 {
				continue // readers would not look for it here
			}
			c := held[e.Object]
			if c == nil {
				c = &contents{}
				held[e.Object] = c
			}
			c.addEntry(&e)
		}
	}
	for _, i := range objects {
		if err := p.mayGoOn(ctx); err != nil {
			return err
		}
		entries, err := p.footer(ctx, i)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			continue // look says what is wrong with it
		}
		id, _, _ := diskless.ParseObjectKey(i.Key)
		var own contents
		for _, e := range entries {
			own.add(id, e.Topic, e.Partition, e.Offset, e.Length, e.Records, e.ProducerID, e.ProducerEpoch, e.BaseSequence, e.CRC)
		}
		if in := held[id]; len(entries) > 0 && (in == nil || *in != own) {
			continue
		}
		o := Object{Key: i.Key, Bytes: i.Size, Time: i.LastModified, Reason: Dead, Why: fmt.Sprintf("segments of run %s hold all of it", m.Run)}
		p.covering[i.Key] = struct{}{}
		if err := p.delete(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// before is a key that is just before another.
func before(key string) string { return key[:len(key)-1] + string(key[len(key)-1]-1) + "~" }
