package diskless

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/sluice-kafka/sluice/diskless/diskcache"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
	"github.com/sluice-kafka/sluice/turns"
)

// StoreHandle is an object store that this cluster owns a prefix of.
type StoreHandle struct {
	Store objstore.Store
	Ring  *keyring.Ring
}

// Limits bound what the tier holds and how long it tries. Every zero value is
// replaced by DefaultLimits'.
type Limits struct {
	BufferBytes        int64         // batches that wait for their object to be durable
	CacheBytes         int64         // chunks in memory
	ChunkBytes         int64         // what one GET asks for; no more than a sixteenth of the cache
	PutConcurrency     int           // PUTs at a time, per store
	EarlyPutsPerSec    int           // objects sealed before their linger because all who wait for them are blocked; 0 is none
	PutTimeout         time.Duration // from a batch's arrival to its going inline; no batch lingers longer than half of it
	PutAttempt         time.Duration // one PUT; 0 is twice PutTimeout
	RetryBatches       int           // stored batches of idempotent producers that are remembered; 0 is none
	GetTimeout         time.Duration // one chunk, retries included
	ReadAhead          int           // chunks that are read at a time before they are needed, all readers together
	InlineBytesPerSec  int64         // what an outage may put on the brokers per second
	InlineBytesTotal   int64         // and until all stores take objects in time again
	MaxPlaceholderAge  time.Duration // of the object, when its placeholder is forwarded
	RecentObjects      time.Duration // objects younger than this are cached apart from catch-up reads
	SegmentAge         time.Duration // objects older than this are looked for in segments first
	ProbeInterval      time.Duration // between probes of a store that failed; grows when it fails again at once
	InlineThresholdPct int           // a batch goes inline when it is smaller than its placeholder times this / 100
}

// DefaultLimits are the limits of a tier that was told none.
func DefaultLimits() Limits {
	return Limits{
		BufferBytes:        256 << 20,
		CacheBytes:         256 << 20,
		ChunkBytes:         16 << 20,
		PutConcurrency:     16,
		EarlyPutsPerSec:    10,
		RetryBatches:       65_536,
		PutTimeout:         5 * time.Second,
		GetTimeout:         8 * time.Second,
		ReadAhead:          32,
		InlineBytesPerSec:  16 << 20,
		InlineBytesTotal:   8 << 30,
		MaxPlaceholderAge:  10 * time.Minute,
		RecentObjects:      2 * time.Minute,
		SegmentAge:         12 * time.Minute,
		ProbeInterval:      time.Second,
		InlineThresholdPct: 400,
	}
}

// minChunk keeps GETs few, however small the cache.
const minChunk = 1 << 20

// ChunkBytes is what one GET asks for when the cache has a size.
func ChunkBytes(cache int64) int64 {
	return min(DefaultLimits().ChunkBytes, max(minChunk, cache/16))
}

// DiskShare of the cache in memory, one byte in so many, is for what is on its way
// to the disk and from there. Of that one half is what waits to be written.
const DiskShare = 4

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	def(&l.BufferBytes, d.BufferBytes)
	def(&l.CacheBytes, d.CacheBytes)
	def(&l.ChunkBytes, ChunkBytes(l.CacheBytes))
	def(&l.PutConcurrency, d.PutConcurrency)
	def(&l.PutTimeout, d.PutTimeout)
	def(&l.PutAttempt, 2*l.PutTimeout)
	def(&l.GetTimeout, d.GetTimeout)
	def(&l.ReadAhead, d.ReadAhead)
	def(&l.MaxPlaceholderAge, d.MaxPlaceholderAge)
	def(&l.RecentObjects, d.RecentObjects)
	def(&l.SegmentAge, d.SegmentAge)
	def(&l.ProbeInterval, d.ProbeInterval)
	def(&l.InlineThresholdPct, d.InlineThresholdPct)
	return l
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Options are everything a Tier is made of.
type Options struct {
	ClusterID string
	Stores    map[string]StoreHandle // by the name that classes use; more may follow by AddStore
	Disk      *diskcache.Cache       // below the cache in memory; nil: none
	Turns     *turns.Turns           // for checking and copying batches; nil: none
	Limits    Limits                 // zero inline budgets: nothing goes inline for want of a store; zero early PUTs: none
	Logger    zerolog.Logger
	Metrics   prometheus.Registerer
}

// Tier is the diskless tier of one replica.
type Tier struct {
	clusterID  string
	limits     Limits
	log        zerolog.Logger
	metrics    *metrics
	budget     *inlineBudget
	buffered   atomic.Int64 // bytes of batches in objects that are not durable yet, all stores together
	begun      atomic.Int64 // bytes that buffers of open objects began with because the last ones were that large
	sealer     *sealer
	retries    *retries
	cache      *cache
	disk       *diskcache.Cache
	turns      *turns.Turns
	found      *indexes
	scans      *scans
	loads      singleflight.Group
	ahead      chan struct{} // one for each read ahead of need
	maxAhead   int           // of one partition of an answer
	complaints *complaints

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // PUTs and probes

	mu      sync.RWMutex
	writers map[string]*writer
	keys    map[placeholder.KeyID]*writer // which store's key an id is
	closed  bool
}

// New returns a tier that is ready to take batches.
func New(opt Options) (*Tier, error) {
	if opt.ClusterID == "" {
		return nil, errors.New("diskless: the cluster's id is not known; references could not be bound to it")
	}
	t := &Tier{
		clusterID: opt.ClusterID,
		limits:    opt.Limits.withDefaults(),
		log:       opt.Logger,
		disk:      opt.Disk,
		turns:     opt.Turns,
		writers:   make(map[string]*writer),
		keys:      make(map[placeholder.KeyID]*writer),
	}
	var err error
	if t.retries, err = newRetries(t.limits.RetryBatches); err != nil {
		return nil, err
	}
	if t.complaints, err = newComplaints(); err != nil {
		return nil, err
	}
	t.ahead = make(chan struct{}, t.limits.ReadAhead)
	// More would push out of memory what was read first.
	t.maxAhead = max(1, int(t.limits.CacheBytes/scanShare/2/t.limits.ChunkBytes))
	t.budget = newInlineBudget(t.limits.InlineBytesPerSec, t.limits.InlineBytesTotal)
	t.sealer = newSealer(float64(t.limits.EarlyPutsPerSec))
	t.metrics = newMetrics(opt.Metrics, t.budget)
	cacheBytes := t.limits.CacheBytes
	if t.disk != nil {
		cacheBytes -= cacheBytes / DiskShare
	}
	t.cache = newCache(cacheBytes, t.metrics)
	t.scans = &scans{min: min(minIndexChunk, t.limits.ChunkBytes), max: t.limits.ChunkBytes, room: t.cache.room}
	t.found = newIndexes(t.limits.CacheBytes/indexShare, t.metrics)
	t.ctx, t.cancel = context.WithCancel(context.Background())
	for name, h := range opt.Stores {
		t.AddStore(name, h)
	}
	return t, nil
}

// AddStore makes a store available that was not when the tier was made. The
// batches that waited for it take their course.
func (t *Tier) AddStore(name string, h StoreHandle) {
	t.writer(name).attach(h)
}

// Expect says why a store of the configuration is not there yet.
func (t *Tier) Expect(name string, err error) { t.writer(name).expect(err) }

// writer returns the writer of a store, whether the store is there yet or not.
func (t *Tier) writer(name string) *writer {
	t.mu.RLock()
	w := t.writers[name]
	t.mu.RUnlock()
	if w != nil {
		return w
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if w = t.writers[name]; w == nil {
		w = newWriter(t, name, t.closed)
		t.writers[name] = w
	}
	return w
}

// Reserved reports whether any batch of a client's records carries the header
// that is reserved for placeholders.
func (t *Tier) Reserved(records []byte) bool {
	for {
		b, rest, ok := wire.NextBatch(records)
		if !ok {
			return false
		}
		if b.IsV2() && placeholder.Reserved(b) {
			return true
		}
		records = rest
	}
}

// Candidate reports whether fetched records may hold a placeholder.
func (t *Tier) Candidate(records []byte) bool {
	for {
		b, rest, ok := wire.NextBatch(records)
		if !ok {
			return false
		}
		if b.IsV2() && placeholder.Candidate(b) {
			return true
		}
		records = rest
	}
}

// StoreStatus is the state of one store for /readyz.
type StoreStatus struct {
	Name    string
	Healthy bool
	Err     string // what the last PUT said, when not healthy
	ReadErr string // what the last read said, when the store cannot be read
}

// Status lists the stores, by name.
func (t *Tier) Status() []StoreStatus {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]StoreStatus, 0, len(t.writers))
	for _, w := range t.writers {
		out = append(out, w.status())
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Busy reports whether a store, or this replica's producers, leave no room for
// what can wait: the store fails or gives no answer, or half of what may be
// written at a time is.
func (t *Tier) Busy(name string) bool {
	w := t.writer(name)
	if w.reads.state() != nil || len(w.puts) > cap(w.puts)/2 || t.buffered.Load() > t.limits.BufferBytes/2 {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failing || len(w.parked) > 0
}

// closeGrace is how long Close waits for a store that does not heed the end of
// a request's context.
const closeGrace = 5 * time.Second

// Close seals every open object and waits until all are durable or ctx ends.
// What is then undecided goes inline, as does what is offloaded after Close:
// every notify has been called when Close returns, and no PUT is under way.
func (t *Tier) Close(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	writers := make([]*writer, 0, len(t.writers))
	for _, w := range t.writers {
		writers = append(writers, w)
	}
	t.mu.Unlock()
	var drained errgroup.Group
	for _, w := range writers {
		drained.Go(func() error { return w.drain(ctx) })
	}
	err := drained.Wait()
	t.cancel()
	for _, w := range writers {
		w.giveUp()
	}
	ended := make(chan struct{})
	go func() {
		t.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closeGrace):
		err = errors.Join(err, errors.New("an object store does not let go of a request"))
	}
	if err != nil {
		return fmt.Errorf("diskless: closing: %w", err)
	}
	return nil
}

// Offload starts to store one batch; see tiers.OffloadRequest. The checks that
// need no store happen here, in the caller's goroutine.
func (t *Tier) Offload(ctx context.Context, req tiers.OffloadRequest, notify func()) tiers.Offload {
	o := &offload{tier: t, ctx: ctx, req: req, size: len(req.Batch), arrived: time.Now(), notify: notify}
	if reason := o.inspect(); reason != "" {
		o.inline(reason)
		notify()
		return o
	}
	w := t.writer(req.Class.Store)
	if t.retries.recall(o, w) {
		t.metrics.reusedBatches.Inc()
		t.metrics.reusedBytes.Add(float64(o.size))
		notify()
		return o
	}
	w.take(o)
	return o
}

// keptFor are the reasons for which a topic stays inline, whatever its class.
var keptFor = map[tiers.Reason]tiers.InlineReason{
	tiers.Compacted: tiers.InlineCompacted,
	tiers.Internal:  tiers.InlineInternal,
	tiers.Unknown:   tiers.InlineUnknown,
	tiers.Denied:    tiers.InlineDenied,
}

// Kept notes a batch that stays inline because of its topic or its client.
func (t *Tier) Kept(class *tiers.Class, topic string, why tiers.Reason, bytes int) {
	reason, ok := keptFor[why]
	if !ok {
		return
	}
	t.metrics.inlineBatches.WithLabelValues(class.Name, string(reason)).Inc()
	t.metrics.inlineBytes.WithLabelValues(class.Name, string(reason)).Add(float64(bytes))
	if reason == tiers.InlineDenied || !t.complaints.allowKept(topic, reason) {
		return
	}
	line := t.log.Warn()
	if reason == tiers.InlineUnknown {
		line = t.log.Info() // every topic, for a moment after it was made
	}
	line.Str("topic", topic).Str("class", class.Name).Str("reason", string(reason)).
		Msg("a topic of a diskless class is written inline: see sluice topics")
}

// Offered says that all batches of a connection's request have been offloaded:
// now it is known whether the connection waits for all that it has.
func (t *Tier) Offered(p *tiers.Producer) {
	if p == nil || t.limits.EarlyPutsPerSec <= 0 {
		return
	}
	var few [4]*writer
	writers := few[:0]
	t.mu.RLock()
	for _, w := range t.writers {
		writers = append(writers, w)
	}
	t.mu.RUnlock()
	for _, w := range writers {
		w.offered()
	}
}
