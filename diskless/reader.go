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
)

// ErrUnverified is a placeholder whose reference is not genuine, or whose key
// is not to be had. Its records are not what was acknowledged, so nothing is
// passed on. Remedy: see the log line; the batch was written behind sluice's
// back, or a key object is missing from the store.
var ErrUnverified = errors.New("placeholder does not verify")

// ErrUnreadable is a genuine placeholder whose bytes cannot be had, now or ever.
// Remedy: check the object store; the log line names the object.
var ErrUnreadable = errors.New("object of a placeholder cannot be read")

// Resolve splits fetched records into batches and verifies every placeholder;
// see proxy.Payloads.
func (t *Tier) Resolve(ctx context.Context, tp tiers.TopicPartition, records []byte, readahead int) ([]tiers.Piece, error) {
	var pieces []tiers.Piece
	var stored []*storedPiece
	for {
		b, rest, ok := wire.NextBatch(records)
		if !ok {
			break
		}
		records = rest
		p, err := t.verify(ctx, tp, b)
		if err != nil {
			return pieces, err
		}
		if p == nil {
			pieces = append(pieces, inlinePiece{b})
			continue
		}
		pieces, stored = append(pieces, p), append(stored, p)
	}
	t.readAhead(stored, min(readahead, t.maxAhead))
	return pieces, nil
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
	return &storedPiece{tier: t, writer: w, tp: tp, batch: b, ref: signed.Ref}, nil
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
	ref    placeholder.Ref
}

func (p *storedPiece) Size() int         { return int(p.ref.Length) }
func (p *storedPiece) Records() int      { return recordsOf(p.batch) }
func (p *storedPiece) Placeholder() bool { return true }

func (p *storedPiece) Cached() bool {
	for _, k := range p.tier.chunks(p.writer, p.ref) {
		if p.tier.cache.peek(k) == nil {
			return false
		}
	}
	return true
}

// Await looks at the reference only: the placeholder's bytes may be others' by
// now.
func (p *storedPiece) Await(ctx context.Context) error {
	for _, k := range p.tier.chunks(p.writer, p.ref) {
		if _, err := p.tier.chunk(ctx, p.writer, k); err != nil {
			return err
		}
	}
	return nil
}

// Load returns the original batch. Bytes that do not match their reference are
// read once more from the store itself before that is an error.
func (p *storedPiece) Load(ctx context.Context) ([][]byte, error) {
	var err error
	for range 2 {
		var original []byte
		if original, err = p.tier.read(ctx, p.writer, p.ref); err != nil {
			if ctx.Err() != nil || !errors.Is(err, errShort) && !errors.Is(err, objstore.ErrNotFound) {
				break
			}
		} else {
			var header, body []byte
			if header, body, err = placeholder.Patch(original, p.batch, p.ref); err == nil {
				p.tier.metrics.hydrated.Add(float64(p.ref.Length))
				return [][]byte{header, body}, nil
			}
		}
		for _, k := range p.tier.chunks(p.writer, p.ref) {
			p.tier.cache.remove(k)
		}
	}
	return nil, p.complain(err)
}

func (p *storedPiece) complain(err error) error {
	reason := "corrupt"
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		reason = "not found"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, objstore.ErrUnavailable):
		reason = "unavailable"
	case errors.Is(err, objstore.ErrAccess):
		reason = "access"
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

// chunks are the chunks that hold a reference's range.
func (t *Tier) chunks(w *writer, ref placeholder.Ref) []chunkKey {
	size := uint64(t.limits.ChunkBytes)
	first, last := ref.Offset/size, (ref.Offset+max(uint64(ref.Length), 1)-1)/size
	var keys []chunkKey
	for i := first; i <= last; i++ {
		keys = append(keys, chunkKey{w.name, ref.Audit, ref.Object, uint32(i)})
	}
	return keys
}

// read returns a copy of a reference's range: a slow reader's answer would keep
// the whole chunk in memory long after the cache has let go of it.
func (t *Tier) read(ctx context.Context, w *writer, ref placeholder.Ref) ([]byte, error) {
	keys := t.chunks(w, ref)
	size := uint64(t.limits.ChunkBytes)
	joined := make([]byte, 0, ref.Length)
	at, left := ref.Offset, uint64(ref.Length)
	for _, k := range keys {
		chunk, err := t.chunk(ctx, w, k)
		if err != nil {
			return nil, err
		}
		from := at - uint64(k.index)*size
		to := min(from+left, size)
		if to > uint64(len(chunk)) {
			return nil, errShort
		}
		joined = append(joined, chunk[from:to]...)
		at, left = at+to-from, left-(to-from)
	}
	return joined, nil
}

// chunk returns a chunk from memory, or with one GET for all who want it.
func (t *Tier) chunk(ctx context.Context, w *writer, k chunkKey) ([]byte, error) {
	if b := t.cache.get(k); b != nil {
		return b, nil
	}
	select {
	case r := <-t.fetch(w, k):
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.([]byte), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fetch reads a chunk with one GET for all who want it, and keeps it.
func (t *Tier) fetch(w *writer, k chunkKey) <-chan singleflight.Result {
	name := k.store + "/" + ObjectKey(k.id, k.audit) + "/" + strconv.Itoa(int(k.index))
	return t.loads.DoChan(name, func() (any, error) {
		store := w.handle().Store
		if store == nil {
			return nil, objstore.ErrUnavailable
		}
		if b := t.cache.peek(k); b != nil {
			return b, nil // another's GET ended between the look above and here
		}
		probe, err := w.reads.allow(time.Now())
		if err == nil {
			return t.get(w, store, k)
		}
		if probe {
			go t.tryRead(w, store) // it ends with the tier, or with GetTimeout
		}
		t.metrics.getsRefused.WithLabelValues(w.name).Inc()
		return nil, fmt.Errorf("the store gives no answer and is tried every %v: %w", t.limits.ProbeInterval, err)
	})
}

// get reads a chunk and keeps it.
func (t *Tier) get(w *writer, store objstore.Store, k chunkKey) ([]byte, error) {
	// Detached: whoever asked first may leave, the others still wait.
	ctx, cancel := context.WithTimeout(t.ctx, t.limits.GetTimeout)
	defer cancel()
	t.metrics.gets.Inc()
	key := ObjectKey(k.id, k.audit)
	b, err := store.Get(ctx, key, int64(k.index)*t.limits.ChunkBytes, t.limits.ChunkBytes)
	t.noteRead(w, store, key, err)
	if err != nil {
		return nil, err
	}
	t.cache.add(k, b, t.isRecent(k.id))
	return b, nil
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
	for i := 0; i*size < len(obj.buf); i++ {
		end := min((i+1)*size, len(obj.buf))
		chunk := obj.buf[i*size : end : end]
		if len(chunk) < len(obj.buf) {
			chunk = slices.Clone(chunk) // else one chunk would hold all of the object
		}
		t.cache.add(chunkKey{store, obj.audit, obj.id, uint32(i)}, chunk, true)
	}
}

// readAhead starts to read the first objects of an answer, before its batches
// are asked for one after the other.
func (t *Tier) readAhead(pieces []*storedPiece, chunks int) {
	started := 0
	var last chunkKey
	for _, p := range pieces {
		if started >= chunks {
			return
		}
		for _, k := range t.chunks(p.writer, p.ref) {
			if k == last || t.cache.peek(k) != nil {
				continue
			}
			last = k
			select {
			case t.ahead <- struct{}{}:
			default:
				return
			}
			started++
			fetched := t.fetch(p.writer, k) // begins here, so that it is never late
			go func() {
				<-fetched // whoever needs it gets the error
				<-t.ahead
			}()
		}
	}
}
