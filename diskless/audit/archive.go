package audit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// Log is one partition's log in Kafka.
type Log struct {
	Topic     string
	ID        [16]byte
	Partition int32
	Leader    int32
	Start     int64 // log start offset
	End       int64 // high watermark
}

func tpOf(l Log) tiers.TopicPartition {
	return tiers.TopicPartition{Topic: l.Topic, Partition: l.Partition}
}

// Chain is the log's archive.
func (l Log) Chain() Chain { return Chain{l.ID, l.Partition} }

// Kafka is what the archive asks of the cluster.
type Kafka interface {
	// Fetch returns what a log holds from an offset on, uncommitted records and
	// control batches too, at least one batch when there is one.
	Fetch(ctx context.Context, l Log, offset int64, maxBytes int32) ([]byte, error)
	// EpochEnd returns, as OffsetForLeaderEpoch (KIP-320) does, the largest leader
	// epoch up to the given one that the leader's log knows, and the offset behind
	// its last record there; end is -1 when it knows none.
	EpochEnd(ctx context.Context, l Log, epoch int32) (known int32, end int64, err error)
}

// Payloads gives batches as consumers see them; *diskless.Tier does.
type Payloads interface {
	Resolve(ctx context.Context, tp tiers.TopicPartition, records []byte, most, readahead int) ([]tiers.Piece, int, error)
}

// Options are everything an Archiver is made of.
type Options struct {
	ClusterID   string
	Kafka       Kafka
	Payloads    Payloads
	ObjectBytes int64                                  // of batches, at which an object is written; a batch that is larger has one of its own
	Pace        func(ctx context.Context, n int) error // before n bytes are read; nil: none
	Logger      zerolog.Logger
	Metrics     *Metrics // nil: none
}

// Archiver archives logs, each of them once at a time. What it holds in memory
// is one object, and a little for each chain.
type Archiver struct {
	opt Options

	mu    sync.Mutex
	heads map[headKey]*head
}

type headKey struct {
	store string
	chain Chain
}

// head is the end of a chain.
type head struct {
	number      int64 // -1: the chain is empty
	hash        string
	next        int64
	epoch       int32 // of the last batch; -1 when not known
	lockedUntil time.Time
}

// New returns an archiver.
func New(opt Options) *Archiver {
	if opt.Pace == nil {
		opt.Pace = func(context.Context, int) error { return nil }
	}
	return &Archiver{opt: opt, heads: make(map[headKey]*head)}
}

// Target is where a log is archived.
type Target struct {
	Name      string // the store's, in the configuration
	Store     objstore.Store
	Retention time.Duration // of its lock; 0 is none
}

// Progress is how far a log is archived.
type Progress struct {
	Next    int64 // the first offset that is not
	Objects int   // written now
	Bytes   int64 // of their batches
	Gap     int64 // offsets that are in none of them because the log did not hold them any more
}

// ErrStuck is a log that cannot be archived any further until somebody has looked.
var ErrStuck = errors.New("the archive cannot go on")

const (
	fetchBytes = 1 << 20
	// readahead is in chunks: the archive is in no hurry.
	readahead = 1
	// lost is how many times another archiver may be faster before this one leaves
	// the log to it.
	lost = 3
)

// Archive brings a log's chain up to the log's end. It may be called again after
// any error or crash, and from several places at a time: a conditional put decides
// who continues the chain, and the others continue from there.
func (a *Archiver) Archive(ctx context.Context, t Target, l Log) (p Progress, err error) {
	if l.ID == ([16]byte{}) {
		return p, fmt.Errorf("%w: topic %s has no id: chains are named by it; it takes Kafka 2.8", ErrStuck, l.Topic)
	}
	key := headKey{t.Name, l.Chain()}
	for range lost {
		h, err := a.head(ctx, t, key)
		if err != nil {
			return p, err
		}
		p.Next = h.next
		err = a.extend(ctx, t, l, h, &p)
		if err == nil {
			return p, nil
		}
		a.forget(key)
		if !errors.Is(err, objstore.ErrExists) {
			return p, err
		}
	}
	return p, nil
}

// Forget frees what is remembered of a log that is another archiver's now.
func (a *Archiver) Forget(store string, l Log) { a.forget(headKey{store, l.Chain()}) }

func (a *Archiver) forget(key headKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.heads, key)
}

// head finds the end of a chain, from memory or from the store.
func (a *Archiver) head(ctx context.Context, t Target, key headKey) (*head, error) {
	a.mu.Lock()
	h := a.heads[key]
	a.mu.Unlock()
	if h != nil {
		return h, nil
	}
	last := ""
	err := t.Store.List(ctx, key.chain.prefix(), "", func(i objstore.Info) error {
		if _, _, ok := parseKey(i.Key); !ok {
			return fmt.Errorf("%w: %s is not one of the archive's: look at it, then delete it", ErrStuck, i.Key)
		}
		last = i.Key
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%v: the chain %v: %w", t.Store, key.chain, err)
	}
	h = &head{number: -1, epoch: -1}
	if last != "" {
		object, err := t.Store.Get(ctx, last, 0, -1)
		if err != nil {
			return nil, err
		}
		header, batches, err := parse(object)
		_, number, _ := parseKey(last)
		switch {
		case err != nil:
		case header.ClusterID != a.opt.ClusterID || header.TopicID != TopicIDText(key.chain.TopicID) || header.Partition != key.chain.Partition || header.Number != number:
			err = fmt.Errorf("%w: it is of cluster %s, topic id %s, partition %d, number %d", ErrObject, header.ClusterID, header.TopicID, header.Partition, header.Number)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s, the last of its chain: %w; `sluice audit verify` says more. To go on behind the one before, delete it: with object lock its versions stay", ErrStuck, last, err)
		}
		h = &head{number: number, hash: Hash(object), next: header.Next, epoch: -1, lockedUntil: header.LockedUntil}
		_ = each(batches, func(b wire.Batch) error {
			if b.IsV2() {
				h.epoch = b.LeaderEpoch()
			}
			return nil
		})
	}
	a.remember(key, h)
	return h, nil
}

func (a *Archiver) remember(key headKey, h *head) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.heads[key] = h
}

// extend writes what the log holds behind the head.
func (a *Archiver) extend(ctx context.Context, t Target, l Log, h *head, p *Progress) error {
	d := &draft{a: a, t: t, log: l, head: h, p: p, at: h.next, first: h.next}
	if h.next == l.End && l.Start <= h.next {
		return nil // a log that was cut and has grown to here shows when it grows on
	}
	if h.next > 0 {
		to, err := a.diverges(ctx, t, l, h)
		if err != nil {
			return err
		}
		if to >= 0 {
			d.rewind, d.at, d.first = &Rewind{h.next, to}, to, to
			a.opt.Logger.Error().Str("topic", l.Topic).Int32("partition", l.Partition).Int64("from", h.next).Int64("to", to).
				Msg("Kafka's log has lost records that the archive holds, as after an unclean election: the archive keeps them and says so in its next object")
		}
	}
	// An offset that the log no longer has is out of its range: Kafka would not say
	// what there is.
	for offset := max(d.at, l.Start); offset < l.End; offset = max(d.at, offset) {
		if err := a.opt.Pace(ctx, fetchBytes/64); err != nil {
			return err
		}
		records, err := a.opt.Kafka.Fetch(ctx, l, offset, fetchBytes)
		if err != nil {
			return errors.Join(err, d.flush(ctx))
		}
		before := d.at
		if err := d.add(ctx, records); err != nil {
			if errors.Is(err, objstore.ErrExists) {
				return err
			}
			return errors.Join(err, d.flush(ctx))
		}
		if d.at == before {
			// Nothing there yet. What comes may hold the log's start in its middle: a gap
			// to there would be in its way.
			return d.flush(ctx)
		}
	}
	// What retention has taken is told at once, even when nothing follows it.
	d.gap(min(l.Start, l.End), WhyRemoved)
	return d.flush(ctx)
}

// diverges returns the offset from which on the log holds something else than
// the chain, -1 when it holds the same.
func (a *Archiver) diverges(ctx context.Context, t Target, l Log, h *head) (int64, error) {
	if h.epoch < 0 {
		return -1, nil
	}
	known, end, err := a.opt.Kafka.EpochEnd(ctx, l, h.epoch)
	if err != nil {
		return -1, err
	}
	if end < 0 || known == h.epoch && end >= h.next {
		return -1, nil
	}
	// The chain's own end of that epoch may be before the log's. It is found in
	// the chain, from its end backwards: this is rare.
	to := min(end, h.next)
	common := h.next // below it, what earlier objects hold was not lost before
	for number := h.number; number >= 0; number-- {
		object, err := t.Store.Get(ctx, l.Chain().Key(number), 0, -1)
		if err != nil {
			return -1, err
		}
		header, batches, err := parse(object)
		if err != nil {
			return -1, fmt.Errorf("%w: %s: %w", ErrStuck, l.Chain().Key(number), err)
		}
		earlier := false
		_ = each(batches, func(b wire.Batch) error {
			switch {
			case b.BaseOffset() >= common:
			case !b.IsV2() || b.LeaderEpoch() <= known:
				earlier = true
			default:
				to = min(to, b.BaseOffset())
			}
			return nil
		})
		if earlier {
			break
		}
		if header.Rewind != nil {
			common = min(common, header.Rewind.To)
		}
	}
	if to >= h.next {
		return -1, nil
	}
	return to, nil
}

// draft is an object that is being filled.
type draft struct {
	a    *Archiver
	t    Target
	log  Log
	head *head
	p    *Progress

	first, at int64 // offsets: where it begins, and what comes next
	rewind    *Rewind
	gaps      []Gap
	batches   []byte
	count     int
	least     int64
	largest   int64
	epoch     int32
}

// gap notes that nothing is there up to an offset.
func (d *draft) gap(to int64, why string) {
	if to <= d.at {
		return
	}
	if d.head.number < 0 && d.first == d.at && len(d.gaps) == 0 && d.count == 0 && why == WhyRemoved {
		why = WhyBefore
	}
	d.gaps = append(d.gaps, Gap{d.at, to, why})
	d.at = to
}

// add takes fetched batches.
func (d *draft) add(ctx context.Context, records []byte) error {
	pieces, _, resolveErr := d.a.opt.Payloads.Resolve(ctx, tpOf(d.log), records, math.MaxInt, readahead)
	for _, piece := range pieces {
		if d.count > 0 && int64(len(d.batches)+piece.Size()) > d.a.opt.ObjectBytes {
			if err := d.flush(ctx); err != nil {
				return err
			}
		}
		if err := d.a.opt.Pace(ctx, piece.Size()); err != nil {
			return err
		}
		parts, err := piece.Load(ctx)
		if err != nil {
			return err
		}
		from := len(d.batches)
		for _, part := range parts {
			d.batches = append(d.batches, part...)
		}
		b := wire.Batch(d.batches[from:])
		first, last := offsets(b, max(d.at, d.log.Start))
		intact := sound(b) // else where it ends is not known
		if intact && last < d.at {
			d.batches = d.batches[:from] // Fetch begins with the batch that holds the offset
			continue
		}
		if !intact || first < d.at {
			d.batches = d.batches[:from]
			return fmt.Errorf("%w: %s-%d: the batch of offsets %d to %d is damaged, or overlaps what is archived up to %d", ErrStuck, d.log.Topic, d.log.Partition, first, last, d.at)
		}
		why := WhyHole
		if first <= d.log.Start || d.at < d.log.Start {
			why = WhyRemoved
		}
		d.gap(first, why)
		if b.IsV2() {
			if d.count == 0 || b.FirstTimestamp() < d.least {
				d.least = b.FirstTimestamp()
			}
			d.largest = max(d.largest, b.MaxTimestamp())
			d.epoch = b.LeaderEpoch()
		}
		d.at = last + 1
		d.count++
	}
	return resolveErr
}

// flush writes the object, when there is anything to say, and begins the next.
func (d *draft) flush(ctx context.Context) error {
	if d.count == 0 && len(d.gaps) == 0 && d.rewind == nil {
		return nil
	}
	h := Header{
		ClusterID: d.a.opt.ClusterID, Topic: d.log.Topic, TopicID: TopicIDText(d.log.ID), Partition: d.log.Partition,
		Number: d.head.number + 1, Previous: d.head.hash,
		First: d.first, Next: d.at, Batches: d.count, Bytes: int64(len(d.batches)), FirstTimestamp: d.least, MaxTimestamp: d.largest,
		Gaps: d.gaps, Rewind: d.rewind, Written: time.Now().UTC().Truncate(time.Millisecond), PreviousLockedUntil: d.head.lockedUntil,
	}
	if d.t.Retention > 0 {
		h.LockedUntil = h.Written.Add(d.t.Retention)
	}
	object, err := encode(h, d.batches)
	if err != nil {
		return err
	}
	key := d.log.Chain().Key(h.Number)
	if err := d.t.Store.PutIfAbsent(ctx, key, object); err != nil {
		return fmt.Errorf("%v: %w", d.t.Store, err)
	}
	next := &head{number: h.Number, hash: Hash(object), next: d.at, epoch: d.head.epoch, lockedUntil: h.LockedUntil}
	if d.count > 0 {
		next.epoch = d.epoch
	}
	d.a.remember(headKey{d.t.Name, d.log.Chain()}, next)
	d.p.Next, d.p.Objects, d.p.Bytes = d.at, d.p.Objects+1, d.p.Bytes+h.Bytes
	line := d.a.opt.Logger.Info()
	for _, g := range d.gaps {
		d.p.Gap += g.To - g.From
		if g.Why == WhyRemoved {
			line = d.a.opt.Logger.Error()
		}
	}
	d.a.opt.Metrics.wrote(d.t.Name, h)
	// A log that is kept elsewhere anchors the chain's end: see verify's --expect-head.
	line.Str("topic", h.Topic).Int32("partition", h.Partition).Int64("number", h.Number).Int64("next_offset", h.Next).Str("sha256", next.hash).
		Int("gaps", len(d.gaps)).Msg("archived")
	*d = draft{a: d.a, t: d.t, log: d.log, head: next, p: d.p, first: d.at, at: d.at, batches: d.batches[:0]}
	return nil
}
