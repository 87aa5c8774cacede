package diskless

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/singleflight"

	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
	"github.com/sluice-kafka/sluice/turns"
)

// ErrUnverified is a placeholder whose reference is not genuine, or whose key
// is not to be had. Its records are not what was acknowledged, so nothing is
// passed on. Remedy: see the log line; the batch was written behind sluice's
// back, or a key object is missing from the store.
var ErrUnverified = errors.New("placeholder does not verify")

// ErrUnreadable is a genuine placeholder whose bytes cannot be had, now or ever.
// Remedy: check the object store; the log line names the object.
var ErrUnreadable = errors.New("object of a placeholder cannot be read")

// Resolve splits fetched records into batches and verifies their placeholders;
// see proxy.Payloads.
func (t *Tier) Resolve(ctx context.Context, tp tiers.TopicPartition, records []byte, most, readahead int) (pieces []tiers.Piece, size int, err error) {
	var stored []*storedPiece
	placeholders, originals := 0, 0 // their bytes
	for size <= most {
		b, rest, ok := wire.NextBatch(records)
		if !ok {
			break
		}
		records = rest
		p, err := t.verify(ctx, tp, b)
		if err != nil {
			return pieces, size, err
		}
		if p == nil {
			pieces, size = append(pieces, inlinePiece{b}), size+len(b)
			continue
		}
		pieces, stored, size = append(pieces, p), append(stored, p), size+p.Size()
		placeholders, originals = placeholders+len(b), originals+p.Size()
	}
	ahead := min(readahead, t.maxAhead)
	if readahead >= 0 && len(stored) > 0 && stored[0].old() {
		t.scans.note(tp)
		ahead = t.scans.ahead(ahead)
	}
	t.readAhead(ctx, tp, stored, records, ahead)
	for asked := placeholders > 0; ; {
		b, rest, ok := wire.NextBatch(records)
		if !ok {
			return pieces, size, nil
		}
		records = rest
		n := len(b)
		if b.IsV2() && placeholder.Candidate(b) {
			if !asked {
				p, err := t.verify(ctx, tp, b)
				if err == nil && p != nil {
					placeholders, originals = len(b), p.Size()
				}
				asked = err != nil || p != nil // not each of them: it may cost a look at the store
			}
			if placeholders > 0 {
				n = int(int64(len(b)) * int64(originals) / int64(placeholders)) // as the others
			}
		}
		size += n
	}
}

// verify returns nil for a batch that is no placeholder.
func (t *Tier) verify(ctx context.Context, tp tiers.TopicPartition, b wire.Batch) (*storedPiece, error) {
	if !b.IsV2() || !placeholder.Candidate(b) {
		return nil, nil
	}
	signed, is, err := placeholder.Parse(b)
	if err != nil {
		return nil, t.refuse(tp, b, "unreadable reference", err)
	}
	if !is {
		return nil, nil
	}
	w, key, err := t.lookup(ctx, signed.Ref.KeyID)
	if err != nil && !errors.Is(err, keyring.ErrUnknownKey) {
		return nil, t.keysUnreadable(tp, b, err)
	}
	if err != nil {
		return nil, t.refuse(tp, b, "unknown key", fmt.Errorf("key %x is in no configured store; "+
			"was the store removed from the configuration, or its sluice/keys/ prefix emptied?", signed.Ref.KeyID))
	}
	id := placeholder.Identity{ClusterID: t.clusterID, Topic: tp.Topic, Partition: tp.Partition}
	if !signed.Verify(key, id, b) {
		return nil, t.refuse(tp, b, "wrong signature", errors.New("it was not made for this topic, partition and batch: "+
			"somebody wrote it to Kafka behind sluice's back, or the log was copied from another topic or cluster"))
	}
	return &storedPiece{tier: t, writer: w, tp: tp, batch: b, base: b.BaseOffset(), ref: signed.Ref}, nil
}

func (t *Tier) refuse(tp tiers.TopicPartition, b wire.Batch, reason string, err error) error {
	t.metrics.unverified.WithLabelValues(reason).Inc()
	if t.complaints.allow(complaint{tp, b.BaseOffset(), reason}) {
		t.log.Error().Err(err).Str("topic", tp.Topic).Int32("partition", tp.Partition).Int64("offset", b.BaseOffset()).Str("reason", reason).
			Msg("a placeholder does not verify: readers get KAFKA_STORAGE_ERROR here until it is removed, for example with kafka-delete-records up to the next offset")
	}
	return fmt.Errorf("%w: %s-%d at offset %d: %s: %w", ErrUnverified, tp.Topic, tp.Partition, b.BaseOffset(), reason, err)
}

// keysUnreadable is about a placeholder that may be genuine.
func (t *Tier) keysUnreadable(tp tiers.TopicPartition, b wire.Batch, err error) error {
	t.metrics.unreadable.WithLabelValues("keys").Inc()
	if !errors.Is(err, context.Canceled) && t.complaints.allow(complaint{tp, b.BaseOffset(), "keys"}) {
		t.log.Error().Err(err).Str("topic", tp.Topic).Int32("partition", tp.Partition).Int64("offset", b.BaseOffset()).
			Msg("the keys that a placeholder is verified with cannot be read: readers of this partition get KAFKA_STORAGE_ERROR and try again; check the store")
	}
	return fmt.Errorf("%w: %s-%d at offset %d: %w", ErrUnreadable, tp.Topic, tp.Partition, b.BaseOffset(), err)
}

// lookup finds the store and the key of a key id. keyring.ErrUnknownKey means
// that every store was asked and none has it.
func (t *Tier) lookup(ctx context.Context, id placeholder.KeyID) (*writer, placeholder.Key, error) {
	t.mu.RLock()
	known := t.keys[id]
	writers := make([]*writer, 0, len(t.writers))
	if known != nil {
		writers = append(writers, known)
	} else {
		for _, w := range t.writers {
			writers = append(writers, w)
		}
	}
	t.mu.RUnlock()
	missing := error(keyring.ErrUnknownKey)
	// In memory first: a store that is down must not stand before another's
	// keys.
	for _, find := range []func(*keyring.Ring) (placeholder.Key, error){
		func(r *keyring.Ring) (placeholder.Key, error) { return r.Cached(id) },
		func(r *keyring.Ring) (placeholder.Key, error) { return r.Lookup(ctx, id) },
	} {
		for _, w := range writers {
			ring := w.handle().Ring
			if ring == nil {
				missing = fmt.Errorf("store %s is not open yet: %w", w.name, objstore.ErrUnavailable)
				continue
			}
			key, err := find(ring)
			if err == nil {
				if known == nil {
					t.mu.Lock()
					t.keys[id] = w
					t.mu.Unlock()
				}
				return w, key, nil
			}
			if !errors.Is(err, keyring.ErrUnknownKey) {
				missing = fmt.Errorf("store %s: %w", w.name, err)
			}
		}
	}
	return nil, placeholder.Key{}, missing
}

// inlinePiece is a batch of the broker's own.
type inlinePiece struct{ wire.Batch }

func (p inlinePiece) Records() int                           { return recordsOf(p.Batch) }
func (p inlinePiece) Placeholder() bool                      { return false }
func (p inlinePiece) Cached() bool                           { return true }
func (p inlinePiece) Await(context.Context) error            { return nil }
func (p inlinePiece) Load(context.Context) ([][]byte, error) { return [][]byte{p.Batch}, nil }
func (p inlinePiece) Lend(context.Context) ([][]byte, func(), error) {
	return [][]byte{p.Batch}, nil, nil
}

func recordsOf(b wire.Batch) int {
	if !b.IsV2() {
		return 1
	}
	return int(b.LastOffsetDelta()) + 1
}

// storedPiece is a verified placeholder.
type storedPiece struct {
	tier   *Tier
	writer *writer
	tp     tiers.TopicPartition
	batch  wire.Batch // the placeholder
	base   int64      // its offset
	ref    placeholder.Ref
	at     place // in a segment, when Gather has found it there
}

func (p *storedPiece) Size() int         { return int(p.ref.Length) }
func (p *storedPiece) Records() int      { return recordsOf(p.batch) }
func (p *storedPiece) Placeholder() bool { return true }

func (p *storedPiece) Cached() bool {
	if p.tier.holds(p.tier.walPlace(p.writer, p.ref)) {
		return true
	}
	at, what := p.tier.known(p.writer, p.tp, p.ref)
	return what == inSegment && p.tier.holds(at)
}

// Await looks at the reference only: the placeholder's bytes may be others' by
// now.
func (p *storedPiece) Await(ctx context.Context) error {
	return p.somewhere(ctx, func(at place) error {
		for _, c := range at.chunks {
			if _, err := p.tier.chunk(ctx, p.writer, c); err != nil {
				return err
			}
		}
		return nil
	})
}

// Load returns the original batch.
func (p *storedPiece) Load(ctx context.Context) ([][]byte, error) {
	original, _, err := p.original(ctx, false)
	return original, err
}

// Lend returns the original batch, as part of its chunk if that may be.
func (p *storedPiece) Lend(ctx context.Context) ([][]byte, func(), error) {
	return p.original(ctx, true)
}

func (p *storedPiece) original(ctx context.Context, lend bool) (original [][]byte, done func(), err error) {
	err = p.somewhere(ctx, func(at place) error {
		b, lent, err := p.tier.read(ctx, p.writer, at, p.ref.Length, lend)
		if err != nil {
			return err
		}
		header, body, err := p.patch(b)
		if err == nil {
			original, done = [][]byte{header, body}, lent
		} else if lent != nil {
			lent()
		}
		return err
	})
	if err != nil {
		return nil, nil, p.complain(err)
	}
	p.tier.metrics.hydrated.Add(float64(p.ref.Length))
	return original, done, nil
}

func (p *storedPiece) patch(original []byte) (header, body []byte, err error) {
	defer p.tier.turn(len(original)).Give()
	return placeholder.Patch(original, p.batch, p.ref)
}

// turn is for work on so many bytes in memory.
func (t *Tier) turn(bytes int) turns.Turn {
	if bytes <= turns.Small {
		return turns.Turn{}
	}
	return t.turns.Take()
}

// somewhere calls try with the places of the original batch, the one that is
// best to read first, until one is good.
func (p *storedPiece) somewhere(ctx context.Context, try func(place) error) error {
	t := p.tier
	wal := t.walPlace(p.writer, p.ref)
	var inSegment error
	var tried *found
	if p.old() && !t.holds(wal) {
		at, ok, err := p.at, p.at.in != nil, error(nil)
		if !ok {
			at, ok, err = t.locate(ctx, p.writer, p.tp, p.ref, seldom, nil)
		}
		if ok {
			tried = at.in
			if err = p.twice(ctx, at, try); err == nil {
				return nil
			}
			p.fellBack(ctx, at, err)
		}
		inSegment = err
	}
	err := p.twice(ctx, wal, try)
	if err == nil || ctx.Err() != nil {
		return err
	}
	var lookup error
	if !p.ref.Audit {
		// It may be in a segment since a moment ago, and the object collected; or in
		// another one.
		var at place
		var ok bool
		if at, ok, lookup = t.locate(ctx, p.writer, p.tp, p.ref, often, tried); ok {
			if lookup = p.twice(ctx, at, try); lookup == nil {
				return nil
			}
			p.fellBack(ctx, at, lookup)
		}
	}
	// That an object is gone is believed when it is nowhere else either. Before that,
	// to ask again would take the time of a reader whose store is slow.
	if errors.Is(err, objstore.ErrNotFound) && ctx.Err() == nil {
		if err = p.twice(ctx, wal, try); err == nil {
			return nil
		}
	}
	return errors.Join(err, inSegment, lookup)
}

// twice reads bytes that do not match their reference once more from the store
// itself before that is an error.
func (p *storedPiece) twice(ctx context.Context, at place, try func(place) error) (err error) {
	for range 2 {
		err = try(at)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if !errors.Is(err, errShort) && !errors.Is(err, placeholder.ErrMismatch) {
			return err
		}
		for _, c := range at.chunks {
			p.tier.cache.remove(c.chunkKey)
			p.tier.disk.Remove(p.tier.diskKey(p.writer, c))
		}
	}
	return err
}

func (p *storedPiece) complain(err error) error {
	reason := "corrupt"
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, objstore.ErrUnavailable):
		reason = "unavailable" // of two places, one may be good
	case errors.Is(err, objstore.ErrAccess):
		reason = "access"
	case errors.Is(err, errShort), errors.Is(err, placeholder.ErrMismatch):
	case errors.Is(err, objstore.ErrNotFound):
		reason = "not found"
	}
	key := ObjectKey(p.ref.Object, p.ref.Audit)
	gone := errors.Is(err, context.Canceled) // the reader, or this replica
	if !gone {
		p.tier.metrics.unreadable.WithLabelValues(reason).Inc()
	}
	if !gone && p.tier.complaints.allow(complaint{p.tp, p.batch.BaseOffset(), reason}) {
		p.tier.log.Error().Err(err).Str("topic", p.tp.Topic).Int32("partition", p.tp.Partition).Int64("offset", p.batch.BaseOffset()).
			Str("store", p.writer.name).Str("object", key).Str("reason", reason).
			Msg("an object cannot be read: readers of this partition get KAFKA_STORAGE_ERROR and try again; check the store")
	}
	return fmt.Errorf("%w: %s-%d at offset %d: %s: %w", ErrUnreadable, p.tp.Topic, p.tp.Partition, p.batch.BaseOffset(), key, err)
}

// errShort is an object that ends before the range that a reference names.
var errShort = errors.New("the object is shorter than its reference says")

// place is where a batch's bytes are.
type place struct {
	offset uint64  // in the object
	chunks []chunk // of the object, that hold the batch
	in     *found  // the segment; nil in a WAL object
}

// chunk is what one GET reads.
type chunk struct{ chunkKey }

// walPlace is where a batch was written.
func (t *Tier) walPlace(w *writer, ref placeholder.Ref) place {
	size := uint64(t.limits.ChunkBytes)
	first, last := ref.Offset/size, (ref.Offset+max(uint64(ref.Length), 1)-1)/size
	at := place{offset: ref.Offset}
	k := walObject
	if ref.Audit {
		k = auditObject
	}
	for i := first; i <= last; i++ {
		at.chunks = append(at.chunks, chunk{chunkKey{store: w.name, kind: k, id: ref.Object, from: int64(i * size), length: int64(size)}})
	}
	return at
}

// holds reports whether a place's chunks are in memory.
func (t *Tier) holds(at place) bool {
	for _, c := range at.chunks {
		if t.cache.peek(c.chunkKey) == nil {
			return false
		}
	}
	return true
}

// read returns a batch's bytes: a copy, for a slow reader's answer would keep the
// whole chunk in memory long after the cache has let go of it; or the chunk's own,
// if they may be lent.
func (t *Tier) read(ctx context.Context, w *writer, p place, length uint32, lend bool) (joined []byte, done func(), err error) {
	at, left := int64(p.offset), int64(length)
	for i, c := range p.chunks {
		b, err := t.chunk(ctx, w, c)
		if err != nil {
			return nil, nil, err
		}
		from := at - c.from
		to := min(from+left, c.length)
		if to > int64(len(b)) {
			return nil, nil, errShort
		}
		if i == 0 && to-from == left {
			if lend {
				if done = t.cache.lend(c.chunkKey, b); done != nil {
					return b[from:to:to], done, nil
				}
			}
			return t.join(nil, b[from:to]), nil, nil
		}
		if joined == nil {
			joined = make([]byte, 0, length)
		}
		joined = t.join(joined, b[from:to])
		at, left = at+to-from, left-(to-from)
	}
	return joined, nil, nil
}

func (t *Tier) join(a, b []byte) []byte {
	defer t.turn(len(b)).Give()
	return append(a, b...)
}

// chunk returns a chunk from memory, or from the disk or with one GET for all who
// want it.
func (t *Tier) chunk(ctx context.Context, w *writer, c chunk) ([]byte, error) {
	if b := t.cache.get(c.chunkKey); b != nil {
		return b, nil
	}
	return awaited[[]byte](ctx, t.fetch(w, c))
}

// awaited is what a single flight brings, unless ctx ends before.
func awaited[T any](ctx context.Context, flight <-chan singleflight.Result) (none T, err error) {
	select {
	case r := <-flight:
		if r.Err != nil {
			return none, r.Err
		}
		return r.Val.(T), nil
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// fetch reads a chunk from the disk or with one GET for all who want it, and keeps
// it.
func (t *Tier) fetch(w *writer, c chunk) <-chan singleflight.Result {
	name := c.store + "/" + c.object() + "/" + strconv.FormatInt(c.from, 10) + "+" + strconv.FormatInt(c.length, 10)
	return t.loads.DoChan(name, func() (any, error) {
		if b := t.cache.peek(c.chunkKey); b != nil {
			return b, nil // another's GET ended between the look above and here
		}
		if b := t.disk.Get(t.diskKey(w, c)); b != nil {
			t.cache.add(c.chunkKey, b, t.recent(c))
			return b, nil // also while the store gives no answer
		}
		store, err := t.readable(w)
		if err != nil {
			return nil, err
		}
		return t.get(w, store, c)
	})
}

// readable returns a store to read from, or why not. One that gives no answer is
// tried behind the reader's back.
func (t *Tier) readable(w *writer) (objstore.Store, error) {
	store := w.handle().Store
	if store == nil {
		return nil, objstore.ErrUnavailable
	}
	probe, err := w.reads.allow(time.Now())
	if err == nil {
		return store, nil
	}
	if probe {
		go t.tryRead(w, store) // it ends with the tier, or with GetTimeout
	}
	t.metrics.getsRefused.WithLabelValues(w.name).Inc()
	return nil, fmt.Errorf("the store gives no answer and is tried every %v: %w", t.limits.ProbeInterval, err)
}

// get reads a chunk and keeps it.
func (t *Tier) get(w *writer, store objstore.Store, c chunk) ([]byte, error) {
	// Detached: whoever asked first may leave, the others still wait.
	ctx, cancel := context.WithTimeout(t.ctx, t.limits.GetTimeout)
	defer cancel()
	t.metrics.gets.Inc()
	key := c.object()
	b, err := store.Get(ctx, key, c.from, c.length)
	t.noteRead(w, store, key, err)
	if err != nil {
		if c.kind == segmentObject {
			t.avoid(segmentName(w, c.id, c.number), err) // whoever waited may have left
		}
		return nil, err
	}
	t.cache.add(c.chunkKey, b, t.recent(c))
	t.disk.Add(t.diskKey(w, c), b, t.recent(c))
	return b, nil
}

// recent reports whether a chunk is cached apart from what catch-up scans read.
func (t *Tier) recent(c chunk) bool { return c.kind != segmentObject && t.isRecent(c.id) }

// diskKey names a chunk among those of all stores that a disk was ever used for.
// What may be asked for has another length when limits.cache_bytes has changed.
func (t *Tier) diskKey(w *writer, c chunk) string {
	return fmt.Sprintf("%s\n%s\n%s\n%s\n%d+%d", t.clusterID, c.store, w.location(), c.object(), c.from, c.length)
}

// Readable reports whether a class's store has answered its last reader, within
// the last ten seconds. Whoever asks has it tried now and then: there may be no
// reader to do so.
func (t *Tier) Readable(class *tiers.Class) bool {
	w := t.writer(class.Store)
	store := w.handle().Store
	if store == nil {
		return false
	}
	probe, ok := w.reads.vouch(time.Now())
	if probe {
		go t.tryRead(w, store) // it ends with the tier, or with GetTimeout
	}
	return ok
}

// tryRead finds out whether a store answers: which object is asked for does not
// matter, nor whether it is there.
func (t *Tier) tryRead(w *writer, store objstore.Store) {
	ctx, cancel := context.WithTimeout(t.ctx, t.limits.GetTimeout)
	defer cancel()
	_, err := store.Get(ctx, keyring.MarkerKey, 0, 1)
	t.noteRead(w, store, keyring.MarkerKey, err)
}

// noteRead notes what the read of an object has come to, tries the store itself
// when that leaves open which of them it is, and tells when the store's being
// readable has turned.
func (t *Tier) noteRead(w *writer, store objstore.Store, object string, err error) {
	n := w.reads.note(object, err, t.limits.ProbeInterval)
	if n.probe {
		go t.tryRead(w, store) // it ends with the tier, or with GetTimeout
	}
	if !n.turned {
		return
	}
	if n.readable {
		t.metrics.readable.WithLabelValues(w.name).Set(1)
		t.log.Info().Str("store", w.name).Msg("the object store can be read again")
		return
	}
	t.metrics.readable.WithLabelValues(w.name).Set(0)
	t.log.Error().Err(err).Str("store", w.name).Dur("tried_every", t.limits.ProbeInterval).
		Msg("the object store cannot be read: readers of what is not in memory get KAFKA_STORAGE_ERROR at once, and try again; check the store")
}

func (t *Tier) isRecent(id ulid.ULID) bool {
	return time.Since(id.Timestamp()) < t.limits.RecentObjects
}

// admit puts an object of our own into the cache.
func (t *Tier) admit(store string, obj *object) {
	size := int(t.limits.ChunkBytes)
	k := walObject
	if obj.audit {
		k = auditObject
	}
	for from := 0; from < len(obj.buf); from += size {
		end := min(from+size, len(obj.buf))
		chunk := obj.buf[from:end:end]
		if len(chunk) < len(obj.buf) {
			chunk = slices.Clone(chunk) // else one chunk would hold all of the object
		}
		t.cache.add(chunkKey{store: store, kind: k, id: obj.id, from: int64(from), length: int64(size)}, chunk, true)
	}
}

// readAhead starts to read the first chunks of an answer, before its batches are
// asked for one after the other; and what a reader who goes on will want next, of
// which rest tells: what the broker gave beyond the answer.
func (t *Tier) readAhead(ctx context.Context, tp tiers.TopicPartition, pieces []*storedPiece, rest []byte, chunks int) {
	a := ahead{tier: t, chunks: chunks}
	_, _, more := wire.NextBatch(rest)
	for i, p := range pieces {
		if !a.read(p, !more && i == len(pieces)-1) {
			return
		}
	}
	// Many are in the chunk of the one before them. To verify them all only to find
	// that takes longer than to verify those that the answer holds.
	step, beyond := 1, 0
	for range maxLooks {
		var b wire.Batch
		for skipped := 0; more && skipped < step; skipped++ {
			b, rest, _ = wire.NextBatch(rest)
			_, _, more = wire.NextBatch(rest)
		}
		if b == nil {
			return
		}
		p, err := t.verify(ctx, tp, b)
		if err != nil {
			return // the answer that ends before it tells
		}
		before := a.last
		if p != nil && !a.read(p, !more) {
			return
		}
		if step *= 2; a.last != before {
			// What is read further ahead than that, others push out before it is wanted.
			if step, beyond = 1, beyond+1; beyond == chunks {
				return
			}
		}
	}
}

// maxLooks bounds what is looked at beyond an answer.
const maxLooks = 32

// ahead is the reading ahead of one partition.
type ahead struct {
	tier    *Tier
	chunks  int // that may be started
	started int
	last    chunkKey // of the batch before
}

// read starts to read what holds a batch, and when it is the last that is known
// also what is behind that. It reports whether to go on.
func (a *ahead) read(p *storedPiece, last bool) bool {
	t := a.tier
	if a.started >= a.chunks {
		return false
	}
	at := t.walPlace(p.writer, p.ref)
	if p.old() && !t.holds(at) {
		better, what := t.known(p.writer, p.tp, p.ref)
		if what == unknown {
			// What stands behind it lies behind it: one look is enough.
			t.goAhead(func() { t.lookAhead(p) })
			return false
		}
		if what == inSegment {
			at = better
		}
		if what == inSegment && last && p.pastMiddle(at) && t.goAhead(func() { t.readOn(p, better) }) {
			a.started++
		}
	}
	for _, c := range at.chunks {
		if c.chunkKey == a.last {
			continue
		}
		a.last = c.chunkKey
		if t.cache.peek(c.chunkKey) != nil {
			continue
		}
		select {
		case t.ahead <- struct{}{}:
		default:
			return false
		}
		a.started++
		fetched := t.fetch(p.writer, c) // begins here, so that it is never late
		go func() {
			<-fetched // whoever needs it gets the error
			<-t.ahead
		}()
	}
	return true
}

// goAhead does something ahead of need, if there is room for it.
func (t *Tier) goAhead(fn func()) bool {
	select {
	case t.ahead <- struct{}{}:
		go func() {
			defer func() { <-t.ahead }()
			fn()
		}()
		return true
	default:
		return false
	}
}

// lookAhead finds the segment of a batch and reads the chunk; or the WAL object's.
func (t *Tier) lookAhead(p *storedPiece) {
	at, ok, _ := t.locate(t.ctx, p.writer, p.tp, p.ref, seldom, nil)
	if !ok {
		at = t.walPlace(p.writer, p.ref)
	}
	for _, c := range at.chunks {
		if t.cache.peek(c.chunkKey) == nil {
			<-t.fetch(p.writer, c) // whoever needs it gets the error
		}
	}
}
