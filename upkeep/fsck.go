package upkeep

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// FsckOptions say what Fsck looks at, and how fast.
type FsckOptions struct {
	Patterns []router.Pattern // of topics; none is all but internal ones
	Sample   float64          // percent of the objects whose bytes are read; 0 is 100
	Orphans  bool             // also look for what nothing refers to; needs all topics

	BytesPerSecond   float64 // from stores; 0 is unbounded
	FetchesPerSecond float64 // from brokers; 0 is unbounded

	State string // file in which the run is kept while it is under way; "" is none

	// Progress, when set, is called now and then, never by two at a time.
	Progress func(Progress)

	afterRound func(rounds int) // for tests
	round      int64            // bytes of payload in a round; 0 is by the rate
}

// Progress is how far a run has come.
type Progress struct {
	Done, Of     int64 // offsets
	Placeholders int64
	Bytes        int64 // read from stores
	Damaged      int64 // placeholders
}

const (
	// objectsAtATime are read together, or parts of them.
	objectsAtATime = 6
	// A round is as much as is read in roundSeconds, within bounds.
	roundSeconds          = 15
	leastRound, mostRound = 64 << 20, 1 << 30
	// logsAtATime are read from brokers together.
	logsAtATime = 8
	// keptBytes of placeholders, of all logs together, wait for their objects.
	keptBytes           = 64 << 20
	leastKept, mostKept = 16 << 10, 1 << 20
	saveEvery           = 10 * time.Second
	progressEvery       = 200 * time.Millisecond
	byteBurst           = 16 << 20
	fsckVersion         = 1
	settledAge          = 15 * time.Minute // after it, no placeholder of an object is written any more; it is 10 minutes and a margin
	listedMost          = 1000             // of each kind of thing in a store
	objectsListed       = 5                // of one damage
	footerGuess         = 256 << 10
)

// logRun is the walk over one partition's log.
type logRun struct {
	log     lowlatency.Log
	tp      tiers.TopicPartition
	from    int64 // log start offset when the run began
	next    int64 // offset to fetch at
	settled int64 // all below was looked at in an earlier run
	budget  int   // bytes of placeholders to keep
	items   []*item
	passed  int64        // batches behind the last item
	at      atomic.Int64 // how far it has come, for the progress
	done    bool         // nothing more to fetch
	dropped bool         // the topic was deleted

	count  Counts
	damage []Damage
}

// item is a placeholder that waits for its object, or a batch that has none
// because of what is wrong with it.
type item struct {
	first, last int64
	records     int32
	batches     int64 // it, and those before it that are no items
	ref         placeholder.Ref
	store       string
	piece       tiers.Piece
	kept        int // bytes of the placeholder
	bad         *finding
}

func (it *item) object() objectID { return objectID{it.store, it.ref.Audit, it.ref.Object} }

// spoilt says what is wrong with the batch in the log itself.
func (it *item) spoilt(kind Kind, detail string) *item {
	it.bad = &finding{it, kind, detail}
	return it
}

func (r *logRun) head() *item { return r.items[0] }

// queue orders logs by the time of the object that they need next, so that
// everything in an object is asked for at about the same time.
type queue []*logRun

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].head().ref.Object.Compare(q[j].head().ref.Object) < 0
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*logRun)) }
func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

// objectID names a WAL object of some store.
type objectID struct {
	store string
	audit bool
	id    ulid.ULID
}

// fsck is one run.
type fsck struct {
	*Access
	opt     FsckOptions
	began   time.Time
	bytes   *rate.Limiter
	fetches *rate.Limiter
	report  *FsckReport
	runs    []*logRun
	of      int64
	refs    map[objectID]struct{} // with Orphans

	mu       sync.Mutex
	read     int64
	damaged  int64
	found    int64
	saved    time.Time
	progress time.Time
}

// ErrStopped is a run that could not go on: the report holds what was found, and
// the state file, if there is one, where to go on.
var ErrStopped = errors.New("not all was looked at")

// Fsck proves that what logs refer to can be read: every placeholder is resolved
// as for a reader, and its bytes are held against the reference's checksum,
// count, and producer. A report comes with ErrStopped too.
func (a *Access) Fsck(ctx context.Context, opt FsckOptions) (*FsckReport, error) {
	if opt.Sample <= 0 || opt.Sample > 100 {
		opt.Sample = 100
	}
	c := &fsck{
		Access: a, opt: opt, began: time.Now(),
		bytes: limiter(opt.BytesPerSecond, byteBurst), fetches: limiter(opt.FetchesPerSecond, 1),
		report: &FsckReport{Version: fsckVersion, ClusterID: a.Cluster.ClusterID(), Began: time.Now().UTC(), Sample: opt.Sample, Damage: []Damage{}},
	}
	if opt.Orphans {
		c.refs = map[objectID]struct{}{}
	}
	earlier, err := c.loadState()
	if err != nil {
		return nil, err
	}
	if err := c.begin(ctx, earlier); err != nil {
		return nil, err
	}
	stopped := c.walk(ctx)
	if stopped == nil && opt.Orphans && len(c.report.Unlooked) == 0 {
		stopped = c.lookAtStores(ctx)
	}
	if stopped == nil && len(opt.Patterns) == 0 {
		c.report.Locks, stopped = a.lookAtLocks(ctx, opt.Sample, nil)
		stopped = cmp.Or(stopped, unanswered(c.report.Locks))
	}
	c.finish()
	if stopped != nil {
		c.report.Stopped = stopped.Error()
		return c.report, errors.Join(ErrStopped, stopped, c.save())
	}
	if len(c.report.Unlooked) > 0 {
		return c.report, errors.Join(ErrStopped, c.save())
	}
	return c.report, c.removeState()
}

// begin finds the logs.
func (c *fsck) begin(ctx context.Context, earlier *fsckState) error {
	listed, err := kadm.NewClient(c.Cluster.Client()).ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("asking for topics: %w", err)
	}
	var topics []string
	for _, name := range listed.Names() {
		if match(c.opt.Patterns, name) {
			topics = append(topics, name)
		}
	}
	for _, p := range c.opt.Patterns {
		if !slices.ContainsFunc(topics, p.Match) {
			return fmt.Errorf("no topic matches %q that this principal may see", p)
		}
	}
	if len(topics) == 0 {
		return errors.New("there is no topic that this principal may see: nothing can be said")
	}
	logs, err := c.Cluster.Logs(ctx, topics...)
	if len(logs) == 0 && err != nil {
		return err
	}
	seen := map[tiers.TopicPartition]bool{}
	for _, l := range logs {
		r := &logRun{log: l, tp: tiers.TopicPartition{Topic: l.Topic, Partition: l.Partition}, from: l.Start, next: l.Start}
		seen[r.tp] = true
		if p, ok := earlier.partition(l); ok {
			r.settled, r.count, r.damage = max(p.Settled, l.Start), p.Counts, p.Damage
			if c.refs == nil { // else what is below is looked at for its references
				r.next = r.settled
			}
			for _, d := range r.damage {
				c.damaged += d.Placeholders
			}
		}
		c.of += l.End - l.Start
		r.at.Store(r.next)
		c.runs = append(c.runs, r)
	}
	for _, name := range topics {
		for _, p := range listed[name].Partitions.Sorted() {
			if at := (tiers.TopicPartition{Topic: name, Partition: p.Partition}); !seen[at] {
				c.report.Unlooked = append(c.report.Unlooked, Unlooked{Topic: name, Partition: p.Partition, Error: "its leader does not tell its offsets"})
			}
		}
	}
	for _, r := range c.runs {
		r.budget = min(mostKept, max(leastKept, keptBytes/2/len(c.runs)))
	}
	return nil
}

// walk goes over all logs, in the order of objects, in rounds of what is read next
// of all of them together: within a round the order is that of the bytes in the
// stores, for a segment holds a partition's batches of many objects.
func (c *fsck) walk(ctx context.Context) error {
	idle := slices.Clone(c.runs)
	var ready queue
	for rounds := 1; ; rounds++ {
		var works []*work
		of := map[*logRun]*work{}
		var payload int64
		kept := 0
		for payload < c.round() && kept < keptBytes/2 {
			if err := c.fill(ctx, idle); err != nil {
				giveBack(works)
				return err
			}
			for _, r := range idle {
				if len(r.items) > 0 {
					heap.Push(&ready, r)
				}
			}
			idle = idle[:0]
			if len(ready) == 0 {
				break
			}
			for last := ready[0].head().object(); len(ready) > 0; {
				r := ready[0]
				at := r.head().object()
				if at != last && (len(idle) > 0 || payload >= c.round() || kept >= keptBytes/2) {
					break // an object is not left in its middle
				}
				last = at
				n := 0
				for n < len(r.items) && r.items[n].object() == at {
					if it := r.items[n]; it.piece != nil && c.sampled(at) {
						payload += int64(it.piece.Size())
					}
					kept += r.items[n].kept
					n++
				}
				w := of[r]
				if w == nil {
					w = &work{run: r}
					of[r], works = w, append(works, w)
				}
				w.items = append(w.items, r.items[:n]...)
				if r.items = r.items[n:]; len(r.items) == 0 {
					heap.Pop(&ready)
					idle = append(idle, r)
				} else {
					heap.Fix(&ready, 0)
				}
			}
		}
		if len(works) == 0 {
			c.tell(true)
			return nil
		}
		if err := c.check(ctx, works); err != nil {
			giveBack(works)
			return err
		}
		c.tell(false)
		if c.opt.afterRound != nil {
			c.opt.afterRound(rounds)
		}
		if time.Since(c.saved) > saveEvery {
			if err := c.save(); err != nil {
				return err
			}
		}
	}
}

// giveBack has what a round took looked at again: nothing of it is settled.
func giveBack(works []*work) {
	for _, w := range works {
		w.run.items = append(w.items, w.run.items...)
	}
}

// round is how many bytes of payload to read in a round: an interrupted one is
// begun anew.
func (c *fsck) round() int64 {
	if c.opt.round > 0 {
		return c.opt.round
	}
	if c.opt.BytesPerSecond <= 0 {
		return mostRound
	}
	return min(mostRound, max(leastRound, int64(min(c.opt.BytesPerSecond, mostRound)*roundSeconds)))
}

// work is what a round looks at of one log.
type work struct {
	run   *logRun
	items []*item
	bad   []finding
}

type finding struct {
	item   *item
	kind   Kind
	detail string
}

// check reads what a round has taken. All or nothing is settled.
func (c *fsck) check(ctx context.Context, works []*work) error {
	type owner struct {
		work *work
		item *item
	}
	owners := map[tiers.Piece]owner{}
	var pieces []tiers.Piece
	for _, w := range works {
		for _, it := range w.items {
			if c.refs != nil && it.store != "" {
				c.refs[it.object()] = struct{}{}
			}
			switch {
			case it.last < w.run.settled:
			case it.bad != nil:
				w.bad = append(w.bad, *it.bad)
			case c.sampled(it.object()):
				owners[it.piece] = owner{w, it}
				pieces = append(pieces, it.piece)
			}
		}
	}
	reading, readCtx := errgroup.WithContext(ctx)
	reading.SetLimit(objectsAtATime)
	for _, group := range c.Tier.Gather(ctx, pieces) {
		reading.Go(func() error {
			for _, p := range group {
				if err := spend(readCtx, c.bytes, int64(p.Size())); err != nil {
					return err
				}
				o := owners[p]
				bad, err := c.load(readCtx, o.item)
				if err != nil {
					return err
				}
				if bad != nil {
					c.mu.Lock()
					o.work.bad = append(o.work.bad, *bad)
					c.mu.Unlock()
				}
			}
			return nil
		})
	}
	if err := reading.Wait(); err != nil {
		return err
	}
	if err := c.stillThere(ctx, works); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range works {
		for _, it := range w.items {
			if it.last < w.run.settled {
				continue
			}
			w.run.count.Batches += it.batches
			if it.bad != nil && it.bad.kind == LogBatch {
				continue
			}
			w.run.count.Placeholders++
			w.run.count.Records += int64(it.records)
			c.found++
			if it.piece != nil && c.sampled(it.object()) {
				w.run.count.Checked++
				w.run.count.Bytes += int64(it.piece.Size())
				c.read += int64(it.piece.Size())
			}
		}
		slices.SortFunc(w.bad, func(a, b finding) int { return cmp.Compare(a.item.first, b.item.first) })
		for _, bad := range w.bad {
			c.note(w.run, bad)
		}
	}
	return nil
}

// sampled objects are the same ones in every run.
func (c *fsck) sampled(at objectID) bool { return sampledKey(at.id[:], c.opt.Sample) }

func sampledKey(key []byte, percent float64) bool {
	if percent >= 100 {
		return true
	}
	h := fnv.New64a()
	_, _ = h.Write(key)
	return float64(h.Sum64()%10_000) < percent*100
}

// load reads a placeholder's bytes as a reader does. An error is that the store
// could not be asked.
func (c *fsck) load(ctx context.Context, it *item) (bad *finding, err error) {
	var loadErr error
	_ = persist(ctx, func() (bool, error) {
		_, loadErr = it.piece.Load(ctx)
		return !transient(loadErr), loadErr
	})
	if loadErr == nil {
		return nil, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	kind, detail := Unavailable, loadErr.Error()
	switch {
	case transient(loadErr):
		// Of the places where it may be, one could not be asked.
		if err := c.answers(ctx, it.store); err != nil {
			return nil, err
		}
	case diskless.TooShort(loadErr):
		kind = Truncated
		detail = fmt.Sprintf("the object is shorter than the %d bytes that its reference needs", it.ref.Offset+uint64(it.ref.Length))
	case errors.Is(loadErr, placeholder.ErrMismatch):
		_, why, _ := strings.Cut(loadErr.Error(), placeholder.ErrMismatch.Error()+": ")
		why, _, _ = strings.Cut(why, "\n")
		kind, detail = Garbled, fmt.Sprintf("%v (%s)", placeholder.ErrMismatch, why)
	case errors.Is(loadErr, objstore.ErrNotFound):
		kind, detail = Missing, "the store has no such object"
	default:
		// One object, or the whole store?
		if err := c.answers(ctx, it.store); err != nil {
			return nil, err
		}
	}
	return &finding{it, kind, detail}, nil
}

// transient errors may be another way a moment later.
func transient(err error) bool {
	return errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, objstore.ErrBusy) || errors.Is(err, objstore.ErrAccess) || errors.Is(err, context.DeadlineExceeded)
}

// answers is an error when a store does not answer for what is surely there.
func (c *fsck) answers(ctx context.Context, store string) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if _, err := c.Stores[store].Store.Get(ctx, keyring.MarkerKey, 0, 1); err != nil {
		return fmt.Errorf("store %s: %w", store, err)
	}
	return nil
}

// stillThere takes back what was found of placeholders that retention, or a
// DeleteRecords, has removed since they were fetched: their objects may go.
func (c *fsck) stillThere(ctx context.Context, works []*work) error {
	topics := map[string]bool{}
	for _, w := range works {
		if len(w.bad) > 0 {
			topics[w.run.tp.Topic] = true
		}
	}
	if len(topics) == 0 {
		return nil
	}
	logs, _ := c.Cluster.Logs(ctx, slices.Sorted(maps.Keys(topics))...) // which are missing is seen below
	now := map[tiers.TopicPartition]lowlatency.Log{}
	for _, l := range logs {
		now[tiers.TopicPartition{Topic: l.Topic, Partition: l.Partition}] = l
	}
	for _, w := range works {
		if len(w.bad) == 0 {
			continue
		}
		l, ok := now[w.run.tp]
		if !ok {
			if _, gone, err := c.relocate(ctx, w.run.log); !gone {
				return fmt.Errorf("%s-%d: what was found cannot be held against its log start offset: %w", w.run.tp.Topic, w.run.tp.Partition, err)
			}
		}
		if !ok || l.ID != w.run.log.ID {
			w.bad, w.run.dropped = nil, true
			continue
		}
		w.bad = slices.DeleteFunc(w.bad, func(f finding) bool { return f.item.last < l.Start })
	}
	return nil
}

// note adds what was found to the damage of a log, joined with what is next to
// it.
func (c *fsck) note(r *logRun, f finding) {
	c.damaged++
	d := Damage{
		Topic: r.tp.Topic, Partition: r.tp.Partition, First: f.item.first, Last: f.item.last,
		Placeholders: 1, Records: int64(f.item.records), Kind: f.kind, Store: f.item.store, Detail: f.detail,
	}
	if f.item.store != "" {
		d.addObject(diskless.ObjectKey(f.item.ref.Object, f.item.ref.Audit))
	}
	if f.kind == LogBatch {
		d.Placeholders = 0
	}
	at, _ := slices.BinarySearchFunc(r.damage, d.First, func(e Damage, first int64) int {
		return cmp.Compare(e.First, first)
	})
	r.damage = slices.Insert(r.damage, at, d)
	if at+1 < len(r.damage) && r.damage[at].joins(r.damage[at+1]) {
		r.damage[at].join(r.damage[at+1])
		r.damage = slices.Delete(r.damage, at+1, at+2)
	}
	if at > 0 && r.damage[at-1].joins(r.damage[at]) {
		r.damage[at-1].join(r.damage[at])
		r.damage = slices.Delete(r.damage, at, at+1)
	}
}

// fill gives every log that has none left its next placeholders.
func (c *fsck) fill(ctx context.Context, idle []*logRun) error {
	var reading errgroup.Group
	reading.SetLimit(logsAtATime)
	for _, r := range idle {
		if r.done {
			continue
		}
		reading.Go(func() error {
			for len(r.items) == 0 && !r.done {
				if err := c.more(ctx, r); err != nil {
					return err
				}
				c.tell(false)
			}
			return nil
		})
	}
	return reading.Wait()
}

// more reads on in a log, up to where it ended when the run began.
func (c *fsck) more(ctx context.Context, r *logRun) error {
	if r.next >= r.log.End {
		r.done = true
		return nil
	}
	if err := c.fetches.Wait(ctx); err != nil {
		return err
	}
	end := r.log.End // what follows is another run's
	f, err := c.fetchFrom(ctx, &r.log, func(ctx context.Context, l lowlatency.Log) (lowlatency.Fetched, error) {
		f, err := c.Cluster.FetchAll(ctx, l, r.next, mostKept)
		if _, _, ok := wire.NextBatch(f.Records); err == nil && !ok {
			err = fmt.Errorf("the broker gives no whole batch at offset %d", r.next)
		}
		return f, err
	})
	r.log.End = end
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errGone):
		r.done, r.dropped = true, true
		return nil
	case errors.Is(err, kerr.OffsetOutOfRange):
		now, gone, lookErr := c.relocate(ctx, r.log)
		switch {
		case gone:
			r.done, r.dropped = true, true
		case lookErr != nil:
			c.unlooked(r, lookErr)
		case now.Start > r.next:
			r.next = now.Start // retention went past us
		default:
			c.unlooked(r, fmt.Errorf("the log ended at %d, and ends at %d now: its leader has lost what was between", end, now.End))
		}
		return nil
	case err != nil:
		c.unlooked(r, err)
		return nil
	}
	before, kept := r.next, 0
	for records := f.Records; kept < r.budget; {
		b, rest, ok := wire.NextBatch(records)
		if !ok {
			break
		}
		if b.BaseOffset() >= end {
			r.next = end
			break
		}
		records = rest
		if !b.IsV2() && soundOld(b) {
			r.next = max(r.next, b.BaseOffset()+1) // of before 0.11: no placeholder
			continue
		}
		after := b.BaseOffset() + 1
		if b.IsV2() {
			after += int64(b.LastOffsetDelta())
		}
		if !b.IsV2() || b.CRC() != b.ComputeCRC() {
			// Where it ends may be garbled, too: it is before the next batch.
			latest := end
			if following, _, ok := wire.NextBatch(rest); ok && following.BaseOffset() > b.BaseOffset() {
				latest = following.BaseOffset()
			}
			if !b.IsV2() || after <= b.BaseOffset() || after > latest {
				after = latest
			}
		}
		if after <= r.next {
			continue
		}
		it, err := c.lookAt(ctx, r.tp, b, after)
		if err != nil {
			return err
		}
		if after > r.settled {
			r.passed++
		}
		if it != nil {
			it.batches, r.passed, it.kept = r.passed, 0, len(b)
			r.items = append(r.items, it)
			kept += len(b)
		}
		r.next = after
	}
	if r.next == before {
		c.unlooked(r, fmt.Errorf("the broker gives nothing behind offset %d", before))
	}
	r.at.Store(min(r.next, end))
	return nil
}

// soundOld reports whether an entry of a message set of before Kafka 0.11 has the
// checksum that it names: offset, size, CRC-32 of all that follows.
func soundOld(b wire.Batch) bool {
	const at = wire.LogOverhead
	return b.Magic() >= 0 && b.Magic() < 2 && binary.BigEndian.Uint32(b[at:]) == crc32.ChecksumIEEE(b[at+4:])
}

// lookAt returns a placeholder, or a batch that is spoilt, and nil for any other
// batch; after is where the next one begins. An error is that keys cannot be read.
func (c *fsck) lookAt(ctx context.Context, tp tiers.TopicPartition, b wire.Batch, after int64) (*item, error) {
	it := &item{first: b.BaseOffset(), last: after - 1}
	if b.IsV2() {
		it.records = max(0, b.NumRecords())
	}
	if !b.IsV2() || b.CRC() != b.ComputeCRC() {
		return it.spoilt(LogBatch, "the checksum of the batch in the broker's log is wrong"), nil
	}
	if !placeholder.Candidate(b) {
		return nil, nil
	}
	b = slices.Clone(b)
	var pieces []tiers.Piece
	var err error
	_ = persist(ctx, func() (bool, error) {
		pieces, _, err = c.Tier.Resolve(ctx, tp, b, math.MaxInt, 0)
		return !errors.Is(err, diskless.ErrUnreadable), err
	})
	if err != nil && !errors.Is(err, diskless.ErrUnverified) {
		return nil, err
	}
	signed, _, parseErr := placeholder.Parse(b)
	switch {
	case err == nil && (len(pieces) != 1 || !pieces[0].Placeholder()):
		return nil, nil
	case parseErr != nil:
		return it.spoilt(BadReference, parseErr.Error()), nil
	}
	store := c.storeOf(signed.Ref.KeyID)
	switch {
	case err == nil:
		it.ref, it.piece, it.store = signed.Ref, pieces[0], store
	case store == "":
		it.spoilt(UnknownKey, fmt.Sprintf("key %x is in no configured store; the object would be %s", signed.Ref.KeyID, diskless.ObjectKey(signed.Ref.Object, signed.Ref.Audit)))
	default:
		it.spoilt(WrongSignature, "it was not made for this topic, partition and batch")
	}
	return it, nil
}

func (c *fsck) storeOf(id placeholder.KeyID) string {
	for _, name := range c.storeNames() {
		if _, err := c.Stores[name].Ring.Cached(id); err == nil {
			return name
		}
	}
	return ""
}

func (c *fsck) unlooked(r *logRun, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.done = true
	c.report.Unlooked = append(c.report.Unlooked, Unlooked{Topic: r.tp.Topic, Partition: r.tp.Partition, From: r.next, Error: err.Error()})
}

// tell reports progress, not too often.
func (c *fsck) tell(now bool) {
	if c.opt.Progress == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !now && time.Since(c.progress) < progressEvery {
		return
	}
	c.progress = time.Now()
	p := Progress{Of: c.of, Placeholders: c.found, Bytes: c.read, Damaged: c.damaged}
	for _, r := range c.runs {
		p.Done += max(0, r.at.Load()-r.from)
	}
	c.opt.Progress(p)
}

// counts what is settled.
func (r *logRun) counts() Counts {
	n := r.count
	if len(r.items) == 0 {
		n.Batches += r.passed
	}
	return n
}

// position is the offset below which all is settled.
func (r *logRun) position() int64 {
	if len(r.items) > 0 {
		return r.head().first
	}
	return r.next
}

// finish makes the report of what was found.
func (c *fsck) finish() {
	c.report.Ended = time.Now().UTC()
	byTopic := map[string]*FsckTopic{}
	for _, r := range c.runs {
		t := byTopic[r.tp.Topic]
		if t == nil {
			t = &FsckTopic{Topic: r.tp.Topic}
			byTopic[r.tp.Topic] = t
		}
		t.Partitions++
		t.Counts.add(r.counts())
		c.report.Counts.add(r.counts())
		if r.dropped {
			t.Deleted = true
			continue
		}
		c.report.Damage = append(c.report.Damage, r.damage...)
	}
	for _, name := range slices.Sorted(maps.Keys(byTopic)) {
		c.report.Topics = append(c.report.Topics, *byTopic[name])
	}
	for i := range c.report.Damage {
		c.report.Damage[i].Remedy = c.report.Damage[i].remedy()
	}
}
