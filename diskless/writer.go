package diskless

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/diskless/objstore"
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
	rejected       // nothing goes to Kafka
)

// offload is one batch on its way. After notify it is only read.
type offload struct {
	tier     *Tier
	ctx      context.Context
	req      tiers.OffloadRequest // Batch is nil once it is in an object
	size     int                  // of the batch
	crc      uint32
	original *placeholder.Original
	arrived  time.Time
	decideBy time.Time // when it goes inline, if its object is not durable by then
	notify   func()
	retry    *retryKey // nil when it cannot be recognized
	sum      fingerprint

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
	case b.Codec() == wire.CodecZstd && o.req.ProduceVersion < zstdSince:
		return tiers.InlineInvalid
	}
	original, err := placeholder.Validate(b)
	if err != nil {
		return tiers.InlineInvalid
	}
	if len(b)*100 < original.PlaceholderSize()*o.tier.limits.InlineThresholdPct {
		return tiers.InlineSmall
	}
	o.original, o.crc = original, b.CRC()
	o.tier.retries.identify(o, b)
	// Well within the client's own patience: half of what it waits for would
	// already make it retry.
	patience := o.tier.limits.PutTimeout
	if o.req.Timeout > 0 {
		patience = min(patience, o.req.Timeout/3)
	}
	o.decideBy = o.arrived.Add(patience)
	return ""
}

// zstdSince is the version of Produce that allows zstd (KIP-110).
const zstdSince = 7

// rejects reports whether a batch is refused rather than made to wait.
// Who waits for no answer cannot be told: it waits for room.
func (o *offload) rejects() bool {
	return o.req.Class.OnOutage == tiers.Reject && o.req.Producer != nil
}

// inline decides for inline; whoever calls it sees to notify.
func (o *offload) inline(reason tiers.InlineReason) {
	o.fate, o.reason = inlined, reason
	o.count(reason)
	o.req.Batch, o.original = nil, nil
}

func (o *offload) count(reason tiers.InlineReason) {
	m := o.tier.metrics
	m.inlineBatches.WithLabelValues(o.req.Class.Name, string(reason)).Inc()
	m.inlineBytes.WithLabelValues(o.req.Class.Name, string(reason)).Add(float64(o.size))
}

// Result builds the placeholder, or leaves the batch as it is.
func (o *offload) Result() tiers.Offloaded {
	if o.fate == rejected {
		return tiers.Offloaded{Rejected: true}
	}
	if o.fate != durable {
		return tiers.Offloaded{Inline: o.reason}
	}
	t := o.tier
	if o.object.age() > t.limits.MaxPlaceholderAge {
		// What collects garbage may take an object of this age for settled.
		o.count(tiers.InlineStale)
		return tiers.Offloaded{Inline: tiers.InlineStale}
	}
	key := o.writer.handle().Ring.Current()
	ref := placeholder.Ref{
		KeyID: key.ID, Object: o.object.id, Audit: o.object.audit,
		Offset: uint64(o.offset), Length: uint32(o.size), CRC: o.crc,
	}
	id := placeholder.Identity{ClusterID: t.clusterID, Topic: o.req.Topic, Partition: o.req.Partition}
	records, err := o.original.Build(ref, key, id, o.req.ProduceVersion >= zstdSince)
	if err != nil {
		o.count(tiers.InlineInvalid)
		return tiers.Offloaded{Inline: tiers.InlineInvalid}
	}
	class := o.req.Class.Name
	t.metrics.storedBatches.WithLabelValues(class).Inc()
	t.metrics.storedBytes.WithLabelValues(class).Add(float64(o.size))
	t.metrics.placeholders.WithLabelValues(class).Add(float64(len(records)))
	return tiers.Offloaded{Records: records}
}

// object is one WAL object while it is filled and written. Its writer's mu
// guards it, but for buf once it is sealed: that is put's, and never written to
// again, for a cancelled PUT may still read it.
type object struct {
	id     ulid.ULID
	audit  bool
	class  classKey
	opened time.Time
	limit  int64 // bytes at which it is sealed
	linger *time.Timer
	early  *time.Timer // looks again whether it may be sealed early
	again  time.Time   // when
	ripe   bool        // its linger is over, and only a place for its PUT is lacking
	crew   crew
	buf    []byte
	sum    uint32 // CRC-32C of buf
	footer []byte
	ctx    context.Context // ends when nobody waits for it any longer
	cancel context.CancelFunc

	begun   int        // what its buffer began with
	batches int64      // bytes of batches in it
	waiting []*offload // the undecided, in order of arrival
	due     time.Time  // not after the first decideBy of waiting
	late    bool       // some batch did not wait for it
	lags    bool       // a later one, not much smaller, was in time
	sealed  time.Time  // zero while it is open
	err     error      // of the last attempt
	attempt context.CancelFunc
}

// age is by the wall clock too: the other one stops while a machine sleeps.
func (obj *object) age() time.Duration {
	return max(time.Since(obj.opened), time.Now().Round(0).Sub(obj.opened.Round(0)))
}

// emptiness is the share of its size that would be lacking if it were sealed now.
func (obj *object) emptiness() float64 { return max(0, 1-float64(obj.batches)/float64(obj.limit)) }

// classKey tells open objects apart. A class may change its prefix when the
// configuration is read again.
type classKey struct {
	name  string
	audit bool
}

// writer fills objects for one store and makes them durable. All partitions
// and connections of the replica share it; each class has an open object of
// its own, because lingers and sizes differ.
type writer struct {
	tier *Tier
	name string
	puts chan struct{} // one for each PUT at a time

	reads readBreaker

	mu        sync.Mutex
	store     StoreHandle // zero until attached
	open      map[classKey]*object
	lengths   map[classKey]int // of the last objects, with room for footers
	pending   []*object        // sealed, not yet durable or given up, oldest first
	buffered  int64            // bytes of batches in open and pending objects
	parked    []*offload       // waiting for buffer space, first come first served; the proxy's memory for requests bounds it
	decided   []*offload       // to be notified by unlock
	sweeping  bool
	draining  bool
	failing   bool
	owing     bool          // the inline budget did not cover a batch whose time was up
	probing   bool          // a probe runs
	healed    time.Time     // since when it is not failing
	steady    time.Time     // since when all objects are in time
	proven    bool          // they were for long
	pause     time.Duration // before the next probe
	heft      int           // bytes of the next probe, for a store that takes small ones only
	erring    time.Time     // the first error since an object was durable; zero for none
	rejecting time.Time     // until then classes that reject do
	lastErr   error
	idle      []chan struct{} // told when nothing is open, pending or parked
}

func newWriter(t *Tier, name string, closed bool) *writer {
	t.metrics.healthy.WithLabelValues(name).Set(0)
	t.metrics.readable.WithLabelValues(name).Set(1)
	return &writer{
		tier: t, name: name, failing: true, lastErr: errors.New("the store could not be opened yet"),
		puts: make(chan struct{}, t.limits.PutConcurrency), pause: t.limits.ProbeInterval,
		open: make(map[classKey]*object), lengths: make(map[classKey]int), draining: closed,
	}
}

// unlock releases mu and tells those whose batches were decided under it:
// notify is a stranger's code and may call back.
func (w *writer) unlock() {
	decided := w.decided
	w.decided = nil
	w.mu.Unlock()
	for _, o := range decided {
		o.notify()
	}
}

// rejectFor is how long a rejection lasts: what its producer has in flight
// behind the rejected batch must not be smaller, fit the budget, and go first.
const rejectFor = time.Second

// covers takes a batch out of the inline budget, if it may go inline now. mu is
// held.
func (w *writer) covers(o *offload, now time.Time) bool {
	return !w.owing && !(o.rejects() && now.Before(w.rejecting)) && w.tier.budget.take(o.size)
}

// decide decides one batch. mu is held.
func (w *writer) decide(o *offload, f fate) {
	switch f {
	case inlined:
		o.inline(tiers.InlineUnavailable)
	case rejected:
		o.req.Batch, o.original = nil, nil
		w.rejecting = time.Now().Add(rejectFor)
		w.tier.metrics.rejected.WithLabelValues(o.req.Class.Name).Inc()
	}
	o.fate = f
	w.decided = append(w.decided, o)
}

func (w *writer) attach(h StoreHandle) {
	w.mu.Lock()
	defer w.unlock()
	w.store = h
	w.setHealthy()
	w.proven = true // nothing is held against it
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

// location is where the store's objects are, "" as long as it is not there.
func (w *writer) location() string {
	if store := w.handle().Store; store != nil {
		return store.String()
	}
	return ""
}

func (w *writer) status() StoreStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := StoreStatus{Name: w.name, Healthy: !w.failing}
	if w.failing && w.lastErr != nil {
		s.Err = w.lastErr.Error()
	}
	if err := w.reads.state(); err != nil {
		s.ReadErr = err.Error()
	}
	return s
}

// take accepts a batch: into an object, inline, or parked.
func (w *writer) take(o *offload) {
	o.writer = w
	w.mu.Lock()
	defer w.unlock()
	switch {
	case w.draining:
		w.decide(o, inlined)
	case w.failing && w.covers(o, time.Now()):
		w.decide(o, inlined)
	case w.failing && o.rejects():
		w.decide(o, rejected)
	case !w.attached() || len(w.parked) > 0 || !w.fits(o):
		w.parked = append(w.parked, o)
		w.tier.metrics.parked.Inc()
	default:
		w.append(o)
	}
	w.sweepLater()
}

// fits reports whether the buffer has room, which all stores share. A store
// that has nothing of it may always take one batch: one that stands does not
// stop the others.
func (w *writer) fits(o *offload) bool {
	return w.buffered == 0 || w.tier.buffered.Load()+int64(o.size) <= w.tier.limits.BufferBytes
}

const (
	// minObjectBuffer is what an object starts with.
	minObjectBuffer = 64 << 10
	// footerShare of an object's bytes is room enough for its footer, unless
	// batches are small.
	footerShare = 32
)

// append puts a batch into its class's open object. mu is held.
func (w *writer) append(o *offload) {
	class := o.req.Class
	key := classKey{class.Name, class.Audit}
	obj := w.open[key]
	if obj == nil {
		obj = w.openObject(key, class)
	}
	o.object, o.offset = obj, len(obj.buf)
	if need := len(obj.buf) + o.size; need > cap(obj.buf) {
		// As large as the class's last one was, and then grown by doubling up to
		// the sealing size: a quiet class does not hold a whole object's memory, a
		// busy one's objects are not copied while they grow.
		full := obj.limit + obj.limit/footerShare
		size := min(2*cap(obj.buf), int(full))
		if obj.buf == nil {
			size = w.begin(obj)
		}
		obj.buf = append(objstore.Unzeroed(max(need+need/footerShare, size, minObjectBuffer)), obj.buf...)
	}
	obj.buf, obj.sum = append(obj.buf, o.req.Batch...), sumOn(obj.sum, o.req.Batch)
	obj.footer = appendEntry(obj.footer, entryOf(o.req.Topic, o.req.Partition, o.offset, o.req.Batch))
	o.req.Batch = nil // the copy serves from here on
	obj.waiting = append(obj.waiting, o)
	if obj.due.IsZero() || o.decideBy.Before(obj.due) {
		obj.due = o.decideBy
	}
	obj.batches += int64(o.size)
	w.tier.sealer.join(&obj.crew, o.req.Producer, o.req.Request, time.Now())
	w.hold(int64(o.size))
	if obj.batches >= obj.limit {
		w.seal(obj, "size")
	}
}

// begin returns what an object's buffer is to begin with. Such buffers are nearly
// empty at first, and batches are what is counted elsewhere; so all open ones
// together get no more than limits.write_buffer_bytes.
func (w *writer) begin(obj *object) int {
	n := w.lengths[obj.class]
	if w.tier.begun.Add(int64(n)) > w.tier.limits.BufferBytes {
		w.tier.begun.Add(-int64(n))
		return 0
	}
	obj.begun = n
	return n
}

// hold counts bytes in or, below zero, out of the buffer. mu is held.
func (w *writer) hold(n int64) {
	w.buffered += n
	w.tier.buffered.Add(n)
	w.tier.metrics.buffered.Add(float64(n))
}

func (w *writer) openObject(key classKey, class *tiers.Class) *object {
	now := time.Now()
	// The key's time is for people and for listing; what makes it unique is 80
	// random bits, whatever the clock does.
	obj := &object{
		id: ulid.MustNew(ulid.Timestamp(now), rand.Reader), audit: class.Audit, class: key, opened: now,
		limit: max(class.ObjectSize, 1),
	}
	obj.ctx, obj.cancel = context.WithCancel(w.tier.ctx)
	// What lingers longer than its patience could never be stored.
	obj.linger = time.AfterFunc(min(class.Linger, w.tier.limits.PutTimeout/2), func() {
		w.mu.Lock()
		defer w.unlock()
		w.seal(obj, "linger")
	})
	w.open[key] = obj
	return obj
}

// seal closes an object and starts its PUT. mu is held.
func (w *writer) seal(obj *object, reason string) {
	if w.open[obj.class] != obj {
		return
	}
	if reason == "linger" && w.crowded() {
		// Sealed now it would only queue. Open it takes in what comes meanwhile,
		// and a slow store is asked for fewer, larger objects.
		obj.ripe = true
		return
	}
	w.close(obj)
	w.lengths[obj.class] = len(obj.buf) + len(obj.buf)/footerShare
	obj.sealed = time.Now()
	w.pending = append(w.pending, obj)
	w.tier.metrics.seals.WithLabelValues(reason).Inc()
	w.tier.wg.Add(1)
	go w.put(obj)
}

// crowded reports whether one more PUT would have to wait for others. mu is held.
func (w *writer) crowded() bool { return len(w.pending) >= cap(w.puts) }

// sealRipe seals what waited for a PUT to end, oldest first. mu is held.
func (w *writer) sealRipe() {
	for !w.crowded() {
		var oldest *object
		for _, obj := range w.open {
			if obj.ripe && (oldest == nil || obj.opened.Before(oldest.opened)) {
				oldest = obj
			}
		}
		if oldest == nil {
			return
		}
		w.seal(oldest, "linger")
	}
}

// sealEarly seals an object that can only gain by that. mu is held.
func (w *writer) sealEarly(obj *object) {
	if w.crowded() {
		return // its linger comes, or a PUT ends
	}
	now := time.Now()
	ok, wait, short := w.tier.sealer.ready(&obj.crew, obj.emptiness(), now)
	if ok {
		w.seal(obj, "early")
		return
	}
	if short {
		w.tier.metrics.sealWaits.Inc()
	}
	at := now.Add(wait)
	switch {
	case wait == 0 || now.Before(obj.again) && !at.Before(obj.again):
	case obj.early == nil:
		obj.again = at
		obj.early = time.AfterFunc(wait, func() {
			w.mu.Lock()
			defer w.unlock()
			if w.open[obj.class] == obj {
				w.sealEarly(obj)
			}
		})
	default:
		obj.again = at
		obj.early.Reset(wait)
	}
}

// close ends an object's being open. mu is held.
func (w *writer) close(obj *object) {
	delete(w.open, obj.class)
	obj.linger.Stop()
	if obj.early != nil {
		obj.early.Stop()
	}
	w.tier.begun.Add(-int64(obj.begun))
	w.tier.sealer.leave(&obj.crew)
}

// offered looks for objects that need not wait any longer.
func (w *writer) offered() {
	w.mu.Lock()
	defer w.unlock()
	for _, obj := range w.open {
		w.sealEarly(obj)
	}
}

// discard forgets an open object that nobody waits for. mu is held.
func (w *writer) discard(obj *object) {
	w.close(obj)
	obj.cancel()
	w.hold(-obj.batches)
}

// putBackoff is between attempts at one object.
const (
	minPutBackoff = 50 * time.Millisecond
	maxPutBackoff = time.Second
)

// put makes an object durable, and tries as long as somebody waits for it.
func (w *writer) put(obj *object) {
	defer w.tier.wg.Done()
	took, err := w.tryPut(obj)
	if err == nil {
		// The replica's own readers are next: they need no GET.
		w.tier.admit(w.name, obj)
	}
	w.settle(obj, took, err)
}

// tryPut returns how long the attempt took that succeeded.
func (w *writer) tryPut(obj *object) (time.Duration, error) {
	select {
	case w.puts <- struct{}{}:
		defer func() { <-w.puts }()
	case <-obj.ctx.Done():
		return 0, obj.ctx.Err()
	}
	batches := len(obj.buf)
	obj.buf = wholeObject(obj.buf, obj.footer)
	obj.sum = crc32.Update(obj.sum, wire.Castagnoli, obj.buf[batches:])
	obj.footer = nil
	store := w.handle().Store
	key := ObjectKey(obj.id, obj.audit)
	backoff := minPutBackoff
	for {
		started := time.Now()
		ctx, cancel := context.WithTimeout(objstore.WithSum(obj.ctx, obj.sum), w.tier.limits.PutAttempt)
		w.mu.Lock()
		obj.attempt = cancel
		w.mu.Unlock()
		err := store.Put(ctx, key, obj.buf)
		cancel()
		if err == nil {
			return time.Since(started), nil
		}
		if !w.keepTrying(obj, err) {
			return 0, err
		}
		select {
		case <-time.After(backoff):
		case <-obj.ctx.Done():
			return 0, err
		}
		backoff = min(2*backoff, maxPutBackoff)
	}
}

// keepTrying reports whether any batch of an object still waits for it.
func (w *writer) keepTrying(obj *object, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if obj.ctx.Err() != nil {
		return false // the error may be no more than that
	}
	obj.err, w.lastErr = err, err
	if w.erring.IsZero() {
		w.erring = time.Now()
	}
	for _, o := range obj.waiting {
		if o.ctx.Err() == nil {
			return true
		}
	}
	return false
}

// settle decides all that still waits for an object: durable when err is nil.
func (w *writer) settle(obj *object, took time.Duration, err error) {
	t := w.tier
	w.mu.Lock()
	defer w.unlock()
	obj.cancel()
	crowded := w.crowded()
	w.pending = slices.DeleteFunc(w.pending, func(p *object) bool { return p == obj })
	w.hold(-obj.batches)
	now := time.Now()
	switch {
	case err == nil:
		t.metrics.objects.WithLabelValues(w.name).Inc()
		t.metrics.objectBytes.WithLabelValues(w.name).Add(float64(len(obj.buf)))
		t.metrics.putSeconds.WithLabelValues(obj.class.name).Observe(now.Sub(obj.sealed).Seconds())
		if len(obj.waiting) == 0 {
			// Never deleted here: an object may only die when nothing can
			// refer to it, and that is decided elsewhere, much later.
			t.metrics.orphans.Inc()
		}
		inTime := !obj.late
		for _, o := range obj.waiting {
			inTime = inTime && now.Before(o.decideBy)
			t.metrics.ackSeconds.Observe(now.Sub(o.arrived).Seconds())
			t.retries.remember(o)
			w.decide(o, durable)
		}
		w.erring = time.Time{}
		for _, p := range w.pending {
			p.lags = p.lags || inTime && p.sealed.Before(obj.sealed) && p.batches <= 2*obj.batches
		}
		// A success that took too long heals nothing.
		if took < t.limits.PutTimeout/2 {
			w.setHealthy()
		}
		if inTime && !w.failing && now.Sub(w.steady) >= steadyFor {
			w.proven, w.heft = true, 0
			t.budget.works(w.name)
		}
	default:
		if why := w.blame(obj, now); obj.err != nil && why != nil {
			w.fails(obj, why)
		}
		for _, o := range obj.waiting {
			w.decide(o, inlined) // its client has gone, or the tier closes
		}
	}
	obj.waiting = nil
	obj.buf = nil
	w.unpark()
	if crowded {
		w.sealRipe()
		for _, open := range w.open {
			w.sealEarly(open)
		}
	}
	w.tellIdle()
}

// steadyFor is how long a store that has failed has to take objects in time
// until that is forgotten: a store that flaps is believed more and more seldom,
// and all its failures are one outage.
const steadyFor = time.Minute

// tardy is what a store that works would have done by now, whatever one
// client's patience.
func (w *writer) tardy() time.Duration { return w.tier.limits.PutTimeout / 2 }

// overdue reports whether something that waits since then would have happened by
// now. What waited for a store that was failing does not count: it is only now
// that it can happen. mu is held.
func (w *writer) overdue(since, now time.Time) bool {
	if w.healed.After(since) {
		since = w.healed
	}
	return now.Sub(since) >= w.tardy()
}

// blame says what the store has done wrong when a batch in a sealed object is
// late, or nil when that may be but its client's impatience. One error is
// nothing, nor is one object that lags: later ones may become durable at the
// same time. mu is held.
func (w *writer) blame(obj *object, now time.Time) error {
	switch {
	case w.overdue(obj.sealed, now) && obj.lags:
		w.steady = now // it is not, however
	case w.overdue(obj.sealed, now):
		return cmp.Or(obj.err, fmt.Errorf("an object takes longer than %v", w.tardy()))
	case obj.err != nil && !w.erring.IsZero() && w.overdue(w.erring, now):
		return obj.err
	}
	return nil
}

// fails notes that an object shows the store to be failing. mu is held.
func (w *writer) fails(obj *object, why error) {
	if !w.failing && (!w.proven || errors.Is(why, objstore.ErrFull)) {
		// It took a small probe and then no object: the next has to be more like
		// one. A full disk has room for the small ones for ever.
		w.heft = max(w.heft, int(obj.batches))
	}
	w.setFailing(why)
}

// unpark moves parked batches on as space allows. mu is held.
func (w *writer) unpark() {
	closing := w.tier.ctx.Err() != nil
	if !w.attached() && !closing {
		return
	}
	n := 0
	for _, o := range w.parked {
		if closing || o.ctx.Err() != nil {
			w.decide(o, inlined)
		} else if w.fits(o) {
			w.append(o)
		} else {
			break
		}
		n++
	}
	if n > 0 {
		w.parked = slices.Delete(w.parked, 0, n)
		w.tier.metrics.parked.Sub(float64(n))
	}
	if w.draining {
		w.sealAll()
	}
}

func (w *writer) sealAll() {
	for _, obj := range w.open {
		w.seal(obj, "close")
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
		defer w.unlock()
		w.sweeping = false
		w.sweep(time.Now())
		w.sweepLater()
	})
}

// sweep sends batches inline whose time is up, objects oldest first and in each
// the batches in order of arrival, as far as the inline budget goes. What it
// does not cover waits on, and what is younger waits behind it:
// back-pressure, unless its class rejects. mu is held.
func (w *writer) sweep(now time.Time) {
	var late error
	var culprit *object // whose lateness it is, nil for none
	w.owing = false
	keep := func(o *offload, obj *object, why error) bool {
		switch {
		case o.ctx.Err() != nil: // nobody will read the answer
		case now.Before(o.decideBy):
			return true
		case w.owing && !o.rejects():
			return true
		default:
			if late == nil {
				late, culprit = why, obj
			}
			switch {
			case w.covers(o, now):
			case o.rejects():
				w.decide(o, rejected)
				return false
			default:
				w.owing = true
				return true
			}
		}
		w.decide(o, inlined)
		return false
	}
	sweepObject := func(obj *object, why error) {
		if now.Before(obj.due) {
			return
		}
		before := len(obj.waiting)
		obj.waiting = filter(obj.waiting, func(o *offload) bool { return keep(o, obj, why) })
		obj.late = obj.late || len(obj.waiting) < before
		obj.due = time.Time{}
		for _, o := range obj.waiting {
			if obj.due.IsZero() || o.decideBy.Before(obj.due) {
				obj.due = o.decideBy
			}
		}
	}
	for _, obj := range w.pending {
		sweepObject(obj, w.blame(obj, now))
		if len(obj.waiting) == 0 {
			// Its PUT would only keep a place and memory. It may have reached
			// the store all the same.
			obj.cancel()
		}
	}
	for _, obj := range w.open {
		var why error
		if obj.ripe && w.overdue(obj.opened, now) {
			why = cmp.Or(w.lastErr, errors.New("as many objects as limits.put_concurrency allows take too long"))
		}
		sweepObject(obj, why)
		if len(obj.waiting) == 0 {
			w.discard(obj)
		}
	}
	parked := len(w.parked)
	w.parked = filter(w.parked, func(o *offload) bool {
		var why error
		if w.overdue(o.arrived, now) {
			why = cmp.Or(w.lastErr, errors.New("objects are written more slowly than they fill; limits.write_buffer_bytes is used up"))
		}
		return keep(o, nil, why)
	})
	w.tier.metrics.parked.Sub(float64(parked - len(w.parked)))
	switch {
	case late == nil || !w.attached():
	case culprit != nil:
		w.fails(culprit, late)
	default:
		w.setFailing(late)
	}
	w.unpark()
	w.tellIdle()
}

// filter keeps in place what keep says.
func filter(os []*offload, keep func(*offload) bool) []*offload {
	return slices.DeleteFunc(os, func(o *offload) bool { return !keep(o) })
}

// setHealthy and setFailing turn the writer's state. mu is held.
func (w *writer) setHealthy() {
	if !w.failing {
		return
	}
	w.failing, w.lastErr, w.owing, w.proven = false, nil, false, false
	now := time.Now()
	w.healed, w.steady, w.erring = now, now, time.Time{}
	for _, obj := range w.pending {
		if obj.attempt != nil && now.Sub(obj.sealed) >= w.tardy() {
			obj.attempt() // it may still wait for an answer that got lost
		}
	}
	w.tier.metrics.healthy.WithLabelValues(w.name).Set(1)
	w.tier.log.Info().Str("store", w.name).Msg("the object store takes objects: diskless topics go there")
	w.unpark()
}

func (w *writer) setFailing(err error) {
	w.lastErr = err
	if w.failing || w.tier.ctx.Err() != nil {
		return
	}
	w.failing = true
	w.tier.budget.fails(w.name)
	w.tier.metrics.healthy.WithLabelValues(w.name).Set(0)
	w.tier.log.Error().Err(err).Str("store", w.name).Int64("inline_budget_bytes", w.tier.budget.remaining()).
		Msg("the object store does not take objects: batches of diskless topics go inline to Kafka within limits.inline_bytes_per_second and limits.inline_bytes_total, beyond them producers wait; check the store, its credentials and space")
	// A store that answers probes and then takes no object costs every batch
	// its patience each time it is believed.
	if w.proven {
		w.pause = w.tier.limits.ProbeInterval
	} else {
		w.pause = min(2*w.pause, max(maxProbePause, w.tier.limits.ProbeInterval))
	}
	if !w.probing {
		w.probing = true
		w.tier.wg.Add(1)
		go w.probe()
	}
}

const (
	// probeKey is overwritten by every probe of every replica.
	probeKey      = "sluice/health"
	maxProbePause = 30 * time.Second
)

// probe tries a failing store until it takes an object again. There is one at
// a time.
func (w *writer) probe() {
	t := w.tier
	defer t.wg.Done()
	for {
		w.mu.Lock()
		if !w.failing || t.ctx.Err() != nil {
			w.probing = false
			w.mu.Unlock()
			return
		}
		pause, store, heft := w.pause, w.store.Store, w.heft
		w.mu.Unlock()
		select {
		case <-time.After(pause):
		case <-t.ctx.Done():
			continue
		}
		// Less patient than a batch: a store that takes probes just in time would
		// take objects too late.
		ctx, cancel := context.WithTimeout(t.ctx, w.tardy())
		err := store.Put(ctx, probeKey, probeBody(heft))
		cancel()
		w.mu.Lock()
		if err == nil {
			w.setHealthy()
		} else if w.failing {
			w.lastErr = err
		}
		w.unlock()
	}
}

// probeBody is of a size, and does not compress.
func probeBody(size int) []byte {
	body := time.Now().UTC().AppendFormat(nil, time.RFC3339Nano)
	if more := size - len(body); more > 0 {
		body = append(body, make([]byte, more)...)
		_, _ = rand.Read(body[len(body)-more:]) // it never fails
	}
	return body
}

// drain seals what is open and waits for it; what comes from now on goes
// inline.
func (w *writer) drain(ctx context.Context) error {
	w.mu.Lock()
	w.draining = true
	w.sealAll()
	done := make(chan struct{})
	w.idle = append(w.idle, done)
	w.tellIdle()
	w.unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("store %s: objects are not durable yet: %w", w.name, ctx.Err())
	}
}

// giveUp decides what no PUT will: the tier's context has ended, and what is
// pending settles by itself.
func (w *writer) giveUp() {
	w.mu.Lock()
	defer w.unlock()
	for _, obj := range w.open {
		for _, o := range obj.waiting {
			w.decide(o, inlined)
		}
		w.discard(obj)
	}
	w.unpark()
	w.tellIdle()
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
