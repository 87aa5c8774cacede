package diskless

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// fate is what has been decided about an offloaded batch.
type fate uint8

const (
	undecided fate = iota
	durable        // its object is durable
	inlined        // its own bytes go to Kafka
)

// offload is one batch on its way. After notify it is only read.
type offload struct {
	tier     *Tier
	ctx      context.Context
	req      tiers.OffloadRequest
	original *placeholder.Original
	arrived  time.Time
	decideBy time.Time // when it goes inline, if its object is not durable by then
	notify   func()

	writer *writer
	object *object
	offset int // in the object

	fate   fate // guarded by writer.mu until notify
	reason tiers.InlineReason
}

// inspect says why a batch goes inline whatever the store's state, or "".
func (o *offload) inspect() tiers.InlineReason {
	b, rest, ok := wire.NextBatch(o.req.Batch)
	switch {
	case !ok || len(rest) > 0:
		return tiers.InlineInvalid
	case !b.IsV2():
		return tiers.InlineMagic
	case b.IsControl():
		return tiers.InlineControl
	case o.req.MaxMessageBytes > 0 && len(b) > int(o.req.MaxMessageBytes):
		return tiers.InlineTooLarge
	}
	original, err := placeholder.Validate(b)
	if err != nil {
		return tiers.InlineInvalid
	}
	if len(b)*100 < original.PlaceholderSize()*o.tier.limits.InlineThresholdPct {
		return tiers.InlineSmall
	}
	o.original = original
	// Well within the client's own patience: half of what it waits for would
	// already make it retry.
	patience := o.tier.limits.PutTimeout
	if o.req.Timeout > 0 {
		patience = min(patience, o.req.Timeout/3)
	}
	o.decideBy = o.arrived.Add(patience)
	return ""
}

// goInline decides for inline. writer.mu is held unless no writer has seen o.
func (o *offload) goInline(reason tiers.InlineReason) {
	o.fate, o.reason = inlined, reason
	o.count(reason)
	o.notify()
}

func (o *offload) count(reason tiers.InlineReason) {
	m := o.tier.metrics
	m.inlineBatches.WithLabelValues(o.req.Class.Name, string(reason)).Inc()
	m.inlineBytes.WithLabelValues(o.req.Class.Name, string(reason)).Add(float64(len(o.req.Batch)))
}

// Result builds the placeholder, or leaves the batch as it is.
func (o *offload) Result() tiers.Offloaded {
	if o.fate != durable {
		return tiers.Offloaded{Inline: o.reason}
	}
	t := o.tier
	if time.Since(o.object.opened) > t.limits.MaxPlaceholderAge {
		// What collects garbage may take an object of this age for settled.
		o.count(tiers.InlineStale)
		return tiers.Offloaded{Inline: tiers.InlineStale}
	}
	key := o.writer.handle().Ring.Current()
	ref := placeholder.Ref{
		KeyID: key.ID, Object: o.object.id, Audit: o.object.audit,
		Offset: uint64(o.offset), Length: uint32(len(o.req.Batch)), CRC: wire.Batch(o.req.Batch).CRC(),
	}
	id := placeholder.Identity{ClusterID: t.clusterID, Topic: o.req.Topic, Partition: o.req.Partition}
	records, err := o.original.Build(ref, key, id, o.req.ProduceVersion >= 7)
	if err != nil {
		o.count(tiers.InlineInvalid)
		return tiers.Offloaded{Inline: tiers.InlineInvalid}
	}
	class := o.req.Class.Name
	t.metrics.storedBatches.WithLabelValues(class).Inc()
	t.metrics.storedBytes.WithLabelValues(class).Add(float64(len(o.req.Batch)))
	t.metrics.placeholders.WithLabelValues(class).Add(float64(len(records)))
	return tiers.Offloaded{Records: records}
}

// object is one WAL object while it is filled and written.
type object struct {
	id      ulid.ULID
	audit   bool
	class   string
	opened  time.Time
	limit   int64 // bytes at which it is sealed
	linger  *time.Timer
	buf     []byte
	batches int64 // bytes of batches in buf
	entries []Entry
	waiting []*offload
	sealed  time.Time
}

// writer fills objects for one store and makes them durable. All partitions
// and connections of the replica share it; each class has an open object of
// its own, because lingers and sizes differ.
type writer struct {
	tier *Tier
	name string
	puts chan struct{} // one for each PUT at a time

	mu       sync.Mutex
	store    StoreHandle // zero until attached
	open     map[string]*object
	pending  map[*object]struct{} // sealed, not yet durable or given up
	buffered int64                // bytes of batches in open and pending objects
	parked   []*offload           // waiting for buffer space, first come first served
	sweeping bool
	failing  bool
	lastErr  error
	idle     []chan struct{} // told when nothing is open, pending or parked
}

func newWriter(t *Tier, name string) *writer {
	t.metrics.healthy.WithLabelValues(name).Set(0)
	return &writer{
		tier: t, name: name, failing: true, lastErr: errors.New("the store could not be opened yet"),
		puts: make(chan struct{}, t.limits.PutConcurrency),
		open: make(map[string]*object), pending: make(map[*object]struct{}),
	}
}

func (w *writer) attach(h StoreHandle) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.store = h
	w.setHealthy()
}

func (w *writer) expect(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.attached() {
		w.lastErr = err
	}
}

func (w *writer) attached() bool { return w.store.Store != nil }

func (w *writer) handle() StoreHandle {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.store
}

func (w *writer) status() StoreStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := StoreStatus{Name: w.name, Healthy: !w.failing}
	if w.failing && w.lastErr != nil {
		s.Err = w.lastErr.Error()
	}
	return s
}

// take accepts a batch: into an object, inline, or parked.
func (w *writer) take(o *offload) {
	o.writer = w
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.failing && w.tier.budget.take(len(o.req.Batch)):
		o.goInline(tiers.InlineUnavailable)
	case !w.attached() || len(w.parked) > 0 || w.buffered > 0 && w.buffered+int64(len(o.req.Batch)) > w.tier.limits.BufferBytes:
		w.parked = append(w.parked, o)
		w.tier.metrics.parked.Inc()
	default:
		w.append(o)
	}
	w.sweepLater()
}

// append puts a batch into its class's open object. mu is held.
func (w *writer) append(o *offload) {
	class := o.req.Class
	obj := w.open[class.Name]
	if obj == nil {
		now := time.Now()
		obj = &object{
			id: ulid.MustNew(ulid.Timestamp(now), rand.Reader), audit: class.Audit, class: class.Name, opened: now,
			limit: max(class.ObjectSize, 1),
		}
		obj.linger = time.AfterFunc(class.Linger, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.seal(obj, "linger")
		})
		w.open[class.Name] = obj
	}
	o.object, o.offset = obj, len(obj.buf)
	if need := len(obj.buf) + len(o.req.Batch); need > cap(obj.buf) {
		// Grown by doubling up to the sealing size, so that a quiet class does
		// not hold a whole object's memory.
		grown := make([]byte, len(obj.buf), max(need, min(2*cap(obj.buf), int(obj.limit)+64<<10), 64<<10))
		copy(grown, obj.buf)
		obj.buf = grown
	}
	obj.buf = append(obj.buf, o.req.Batch...)
	obj.entries = append(obj.entries, entryOf(o.req.Topic, o.req.Partition, o.offset, o.req.Batch))
	obj.waiting = append(obj.waiting, o)
	w.buffered += int64(len(o.req.Batch))
	w.tier.metrics.buffered.Add(float64(len(o.req.Batch)))
	if int64(len(obj.buf)) >= obj.limit {
		w.seal(obj, "size")
	}
}

// seal closes an object and starts its PUT. mu is held.
func (w *writer) seal(obj *object, reason string) {
	if w.open[obj.class] != obj {
		return
	}
	delete(w.open, obj.class)
	obj.linger.Stop()
	obj.sealed = time.Now()
	obj.batches = int64(len(obj.buf))
	obj.buf = appendFooter(obj.buf, obj.entries)
	obj.entries = nil
	w.pending[obj] = struct{}{}
	w.tier.metrics.seals.WithLabelValues(reason).Inc()
	w.tier.wg.Add(1)
	go w.put(obj)
}

// putBackoff is between attempts at one object.
const (
	minPutBackoff = 50 * time.Millisecond
	maxPutBackoff = time.Second
)

// put makes an object durable, and tries as long as somebody waits for it.
func (w *writer) put(obj *object) {
	t := w.tier
	defer t.wg.Done()
	select {
	case w.puts <- struct{}{}:
		defer func() { <-w.puts }()
	case <-t.ctx.Done():
		w.settle(obj, t.ctx.Err())
		return
	}
	store := w.handle().Store
	key := objectKey(obj.id, obj.audit)
	backoff := minPutBackoff
	for {
		ctx, cancel := context.WithTimeout(t.ctx, t.limits.PutAttempt)
		err := store.Put(ctx, key, obj.buf)
		cancel()
		if err == nil {
			w.settle(obj, nil)
			return
		}
		if !w.keepTrying(obj, err) {
			w.settle(obj, err)
			return
		}
		select {
		case <-time.After(backoff):
		case <-t.ctx.Done():
		}
		backoff = min(2*backoff, maxPutBackoff)
	}
}

// keepTrying reports whether any batch of an object still waits for it.
func (w *writer) keepTrying(obj *object, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastErr = err
	if w.tier.ctx.Err() != nil {
		return false
	}
	for _, o := range obj.waiting {
		if o.fate == undecided && o.ctx.Err() == nil {
			return true
		}
	}
	return false
}

// settle decides all that still waits for an object: durable when err is nil.
func (w *writer) settle(obj *object, err error) {
	t := w.tier
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pending, obj)
	w.buffered -= obj.batches
	t.metrics.buffered.Sub(float64(obj.batches))
	wanted := false
	if err == nil {
		now := time.Now()
		t.metrics.objects.WithLabelValues(w.name).Inc()
		t.metrics.objectBytes.WithLabelValues(w.name).Add(float64(len(obj.buf)))
		t.metrics.putSeconds.Observe(now.Sub(obj.sealed).Seconds())
		// The replica's own readers are next: they need no GET.
		t.admit(w.name, obj)
		for _, o := range obj.waiting {
			if o.fate == undecided {
				wanted = true
				o.fate = durable
				t.metrics.ackSeconds.Observe(now.Sub(o.arrived).Seconds())
				o.notify()
			}
		}
		if !wanted {
			// Never deleted here: an object may only die when nothing can
			// refer to it, and that is decided elsewhere, much later.
			t.metrics.orphans.Inc()
		}
		w.setHealthy()
	} else {
		w.setFailing(err)
		for _, o := range obj.waiting {
			if o.fate == undecided {
				o.goInline(tiers.InlineUnavailable) // its client has gone, or the tier closes
			}
		}
	}
	obj.waiting = nil
	w.unpark()
	w.tellIdle()
}

// unpark moves parked batches on as space allows. mu is held.
func (w *writer) unpark() {
	if !w.attached() {
		return
	}
	n := 0
	for _, o := range w.parked {
		if w.buffered > 0 && w.buffered+int64(len(o.req.Batch)) > w.tier.limits.BufferBytes {
			break
		}
		w.append(o)
		n++
	}
	if n > 0 {
		w.parked = append(w.parked[:0:0], w.parked[n:]...)
		w.tier.metrics.parked.Sub(float64(n))
	}
}

// sweepInterval is how often batches whose time is up are looked for.
const sweepInterval = 50 * time.Millisecond

// sweepLater sees to it that undecided batches are decided in time. mu is held.
func (w *writer) sweepLater() {
	if w.sweeping || len(w.open)+len(w.pending)+len(w.parked) == 0 {
		return
	}
	w.sweeping = true
	time.AfterFunc(sweepInterval, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.sweeping = false
		w.sweep(time.Now())
		w.sweepLater()
	})
}

// sweep sends batches inline whose time is up, oldest first, as far as the
// inline budget goes. What it does not cover waits on: back-pressure. mu is
// held.
func (w *writer) sweep(now time.Time) {
	due := func(o *offload) bool {
		if o.fate != undecided {
			return false
		}
		if o.ctx.Err() != nil {
			return true // nobody will read the answer
		}
		return !now.Before(o.decideBy)
	}
	late := false
	decide := func(o *offload) bool {
		if o.ctx.Err() == nil {
			late = true
			if !w.tier.budget.take(len(o.req.Batch)) {
				return false
			}
		}
		o.goInline(tiers.InlineUnavailable)
		return true
	}
	for obj := range w.pending {
		// Batches of an object are in order of arrival, but their patience
		// differs.
		for _, o := range obj.waiting {
			if due(o) && !decide(o) {
				break
			}
		}
	}
	kept := w.parked[:0]
	for _, o := range w.parked {
		if !due(o) || !decide(o) {
			kept = append(kept, o)
		}
	}
	clear(w.parked[len(kept):])
	w.tier.metrics.parked.Sub(float64(len(w.parked) - len(kept)))
	w.parked = kept
	if late && w.attached() {
		err := w.lastErr
		if err == nil {
			err = fmt.Errorf("objects take longer than %v", w.tier.limits.PutTimeout)
		}
		w.setFailing(err)
	}
	w.tellIdle()
}

// setHealthy and setFailing turn the writer's state. mu is held.
func (w *writer) setHealthy() {
	w.tier.metrics.healthy.WithLabelValues(w.name).Set(1)
	if !w.failing {
		return
	}
	w.failing, w.lastErr = false, nil
	w.tier.budget.refill()
	w.tier.log.Info().Str("store", w.name).Msg("the object store takes objects: diskless topics go there")
	w.unpark()
}

func (w *writer) setFailing(err error) {
	w.lastErr = err
	if w.failing || w.tier.ctx.Err() != nil {
		return
	}
	w.failing = true
	w.tier.metrics.healthy.WithLabelValues(w.name).Set(0)
	w.tier.log.Error().Err(err).Str("store", w.name).Int64("inline_budget_bytes", w.tier.budget.remaining()).
		Msg("the object store does not take objects: batches of diskless topics go inline to Kafka within limits.inline_bytes_per_second and limits.inline_bytes_total, beyond them producers wait; check the store, its credentials and space")
	w.tier.wg.Add(1)
	go w.probe()
}

// probeKey is overwritten by every probe of every replica.
const probeKey = "sluice/probe"

// probe tries a failing store until it takes an object again.
func (w *writer) probe() {
	t := w.tier
	defer t.wg.Done()
	store := w.handle().Store
	for {
		select {
		case <-time.After(t.limits.ProbeInterval):
		case <-t.ctx.Done():
			return
		}
		w.mu.Lock()
		failing := w.failing
		w.mu.Unlock()
		if !failing {
			return // an object got through
		}
		// As patient as a batch would be: a store slower than that is no use.
		ctx, cancel := context.WithTimeout(t.ctx, t.limits.PutTimeout)
		err := store.Put(ctx, probeKey, []byte(time.Now().UTC().Format(time.RFC3339Nano)))
		cancel()
		w.mu.Lock()
		if err == nil {
			w.setHealthy()
			w.mu.Unlock()
			return
		}
		w.lastErr = err
		w.mu.Unlock()
	}
}

// drain seals what is open and waits for it.
func (w *writer) drain(ctx context.Context) error {
	w.mu.Lock()
	for _, obj := range w.open {
		w.seal(obj, "close")
	}
	done := make(chan struct{})
	w.idle = append(w.idle, done)
	w.tellIdle()
	w.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("store %s: objects are not durable yet: %w", w.name, ctx.Err())
	}
}

func (w *writer) tellIdle() {
	if len(w.open)+len(w.pending)+len(w.parked) > 0 {
		return
	}
	for _, c := range w.idle {
		close(c)
	}
	w.idle = nil
}
