package gc

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/tiers"
)

// Kafka is what is asked of the cluster; *lowlatency.Cluster answers.
type Kafka interface {
	ClusterID() string
	// Survey says what all live brokers agree on about these names and about
	// every topic that one of them lists; an error means that nothing is known.
	Survey(ctx context.Context, names []string) (tiers.Survey, error)
	// Lineage answers whether the epochs are in the history of the leaders' logs;
	// what is not answered is missing.
	Lineage(ctx context.Context, questions []tiers.EpochQuestion) (map[tiers.TopicPartition]bool, error)
}

// Options are everything a Collector is made of. Zero values are replaced by
// DefaultOptions', but for Timing, which has to be given.
type Options struct {
	Name   string // the store's, for people
	Store  objstore.Store
	Kafka  Kafka
	Timing Timing
	// MinAge is how old an object has to be, by the store's clock, whatever else.
	MinAge           time.Duration
	MaxSkew          time.Duration // between our clock and the store's
	DeletesPerSecond int
	Concurrency      int // GETs, and DELETEs, at a time
	DryRun           bool
	// AcceptGone believes that most topics are gone, which otherwise ends a pass.
	AcceptGone bool
	Explain    func(Object) // every object, in no order; calls are never concurrent. May be nil
	Logger     zerolog.Logger
	Metrics    *Metrics // may be nil
}

// Defaults of Options.
const (
	DefaultMargin  = 5 * time.Hour
	DefaultGrace   = time.Hour
	DefaultUnheard = 24 * time.Hour
	DefaultApart   = time.Minute
	DefaultMissed  = 24 * time.Hour
	DefaultMinAge  = 12 * time.Hour
	defaultSkew    = 5 * time.Minute
	defaultDeletes = 100
	defaultAtATime = 16
)

// Collector collects one store's garbage. It is for one pass at a time; of more
// collectors of one store, each is right by itself, and they only do the same
// work twice.
type Collector struct {
	opt      Options
	deletes  *rate.Limiter
	blockers blockers
	swept    map[segment.Window]bool // windows of which no WAL object is left
	unlike   map[pair]bool           // of which level 2 does not hold all of level 1
	replaced map[numbered]ulid.ULID  // what pass.replaced was left with

	explaining sync.Mutex
	alive      atomic.Int64 // unix nanoseconds of the last sign of life
}

type place struct {
	topic     string
	partition int32
}

// blockers remembers what kept an object: as long as it still does, the object
// need not be read again. Half of an object's ULID has to do: if two ever share
// one, each may be kept by what keeps the other, which only delays.
type blockers struct {
	mu      sync.Mutex
	of      map[uint64]uint32 // numbers of places
	numbers map[place]uint32
	places  []place
}

// maxBlockers bounds that: some 100 MB.
const maxBlockers = 4 << 20

func half(id ulid.ULID) uint64 { return binary.BigEndian.Uint64(id[8:]) }

func (b *blockers) get(id ulid.ULID) (place, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, ok := b.of[half(id)]
	if !ok {
		return place{}, false
	}
	return b.places[n], true
}

func (b *blockers) put(id ulid.ULID, at place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, ok := b.numbers[at]
	if !ok {
		if b.of == nil || len(b.places) >= maxBlockers {
			b.of, b.numbers, b.places = make(map[uint64]uint32), make(map[place]uint32), nil
		}
		n = uint32(len(b.places))
		b.numbers[at], b.places = n, append(b.places, at)
	}
	if len(b.of) >= maxBlockers {
		for other := range b.of { // any
			delete(b.of, other)
			break
		}
	}
	b.of[half(id)] = n
}

func (b *blockers) forget(id ulid.ULID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.of, half(id))
}

// New returns a collector.
func New(opt Options) *Collector {
	opt.MaxSkew = cmp.Or(opt.MaxSkew, defaultSkew)
	opt.DeletesPerSecond = cmp.Or(opt.DeletesPerSecond, defaultDeletes)
	opt.Concurrency = cmp.Or(opt.Concurrency, defaultAtATime)
	if opt.Explain == nil {
		opt.Explain = func(Object) {}
	}
	return &Collector{opt: opt, deletes: rate.NewLimiter(rate.Limit(opt.DeletesPerSecond), 1), swept: make(map[segment.Window]bool), unlike: make(map[pair]bool)}
}

// Where things are in a store.
const (
	prefix   = "sluice/gc/"
	StateKey = prefix + "state"
	LeaseKey = prefix + "lease" // overwritten while a collector works
)

// pass is one go.
type pass struct {
	*Collector
	tally
	now      time.Time // when it began, by the store's clock
	state    *State
	verdicts map[string][]Verdict
	newest   time.Time // no object younger than this can be dead or a candidate
	named    map[string]struct{}
	namedMu  sync.Mutex
	failures atomic.Int32
	covering map[string]struct{}    // WAL objects that compacted has decided about
	replaced map[numbered]ulid.ULID // segments that may go, by the run that has all of them
	wholes   map[segment.Window]*segment.Manifest
}

// maxFailures of reads or deletions end a pass: the store is ill.
const maxFailures = 20

// Pass looks at everything once and deletes what is dead, and was at a pass
// before. After an error nothing more is deleted; the report says what was done
// until then.
func (c *Collector) Pass(ctx context.Context) (*Report, error) {
	began := time.Now()
	p := &pass{Collector: c, named: make(map[string]struct{}), covering: make(map[string]struct{}), replaced: make(map[numbered]ulid.ULID), wholes: make(map[segment.Window]*segment.Manifest)}
	p.Report = Report{Store: c.opt.Name, DryRun: c.opt.DryRun, Found: make(map[Reason]Count), Doubts: make(map[string]string)}
	err := p.run(ctx)
	p.Took = time.Since(began)
	c.opt.Metrics.note(&p.Report, err)
	if err != nil {
		return &p.Report, fmt.Errorf("store %s: %w", c.opt.Name, err)
	}
	return &p.Report, nil
}

func (p *pass) run(ctx context.Context) error {
	if err := keyring.CheckMarker(ctx, p.opt.Store, p.opt.Kafka.ClusterID()); err != nil {
		return fmt.Errorf("nothing is deleted from a prefix that is not known to be this cluster's: %w", err)
	}
	p.Requests.Gets++
	if err := p.tellTime(ctx); err != nil {
		return err
	}
	p.Began = p.now
	if err := p.load(ctx); err != nil {
		return err
	}
	if err := p.survey(ctx); err != nil {
		return err
	}
	// Before anything is deleted, so that what this pass saw is not lost with it.
	if err := p.save(ctx); err != nil {
		return err
	}
	if err := p.compacted(ctx); err != nil {
		return err
	}
	if err := p.walk(ctx); err != nil {
		return err
	}
	return p.settleNames(ctx)
}

// tellTime takes the store's time, which every other one here is held against:
// by PUTting an object and looking when the store says that was.
func (p *pass) tellTime(ctx context.Context) error {
	if p.opt.DryRun {
		p.now = time.Now()
		return nil
	}
	if err := p.signal(ctx); err != nil {
		return err
	}
	err := p.opt.Store.List(ctx, LeaseKey, "", func(i objstore.Info) error {
		if i.Key == LeaseKey {
			p.now = i.LastModified
		}
		return nil
	})
	p.Requests.Lists++
	if err == nil && p.now.IsZero() {
		err = fmt.Errorf("%s was written but is not listed: %w", LeaseKey, objstore.ErrUnavailable)
	}
	if skew := time.Since(p.now); err == nil && skew.Abs() > p.opt.MaxSkew {
		err = fmt.Errorf("the store's clock and this machine's are %v apart: set them right; nothing is deleted until then", skew.Abs().Round(time.Second))
	}
	return err
}

// signal shows other replicas that somebody is at work.
func (p *pass) signal(ctx context.Context) error {
	p.alive.Store(time.Now().UnixNano())
	p.Requests.Puts++
	return p.opt.Store.Put(ctx, LeaseKey, []byte(strconv.FormatInt(time.Now().Unix(), 10)))
}

// signalEvery is between signals.
const signalEvery = time.Minute

func (p *pass) keepAlive(ctx context.Context) error {
	if p.opt.DryRun || time.Since(time.Unix(0, p.alive.Load())) < signalEvery {
		return nil
	}
	return p.signal(ctx)
}

// Busy reports whether somebody has begun a pass, or is at one, for less than so
// long.
func (c *Collector) Busy(ctx context.Context, within time.Duration) (bool, error) {
	busy := false
	err := c.opt.Store.List(ctx, LeaseKey, "", func(i objstore.Info) error {
		busy = busy || i.Key == LeaseKey && time.Since(i.LastModified) < within
		return nil
	})
	return busy, err
}

func (p *pass) load(ctx context.Context) error {
	fresh := &State{ClusterID: p.opt.Kafka.ClusterID(), Topics: make(map[string]*Topic)}
	b, err := p.opt.Store.Get(ctx, StateKey, 0, -1)
	p.Requests.Gets++
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		p.state = fresh
		return nil
	case err != nil:
		return err
	}
	if p.state, err = ParseState(b); err != nil {
		// It is worth no more than the time it takes to come by it again.
		p.opt.Logger.Error().Err(err).Str("store", p.opt.Name).Msg(StateKey + " cannot be read: the garbage collection begins anew, which delays deletion")
		p.state = fresh
	}
	if p.state.ClusterID != fresh.ClusterID {
		return fmt.Errorf("%s is of cluster %s, this one is %s: %w", StateKey, p.state.ClusterID, fresh.ClusterID, keyring.ErrForeign)
	}
	if ahead := p.state.Updated.Sub(p.now); !p.opt.DryRun && ahead > p.opt.MaxSkew {
		// The store's clock, and that of a replica, were ahead. What was noted then is
		// of times that are yet to come, and would be believed when they have: where a
		// log ends now is not where it ends then.
		p.opt.Logger.Error().Str("store", p.opt.Name).Time("noted", p.state.Updated).Time("now", p.now).
			Msg("the store's clock went back: the garbage collection begins anew, which delays deletion")
		fresh.Brokers = make(map[int32]time.Time, len(p.state.Brokers))
		for id := range p.state.Brokers {
			fresh.Brokers[id] = p.now
		}
		p.state = fresh
		return nil
	}
	if !p.opt.DryRun && !p.now.After(p.state.Updated) {
		return fmt.Errorf("the store's clock went back, from %v to %v: nothing is deleted until it has caught up", p.state.Updated, p.now)
	}
	return nil
}

func (p *pass) save(ctx context.Context) error {
	if p.opt.DryRun {
		return nil
	}
	if err := p.notStopped(); err != nil {
		return err // another's may be newer
	}
	p.state.Updated = p.now
	b, err := p.state.Encode()
	if err != nil {
		return err
	}
	p.Requests.Puts++
	return p.opt.Store.Put(ctx, StateKey, b)
}

// survey asks Kafka, and sets the verdicts.
func (p *pass) survey(ctx context.Context) error {
	told, err := p.opt.Kafka.Survey(ctx, slices.Sorted(maps.Keys(p.state.Topics)))
	if err != nil {
		return fmt.Errorf("the cluster cannot be asked: %w", err)
	}
	if err := p.state.meet(told.Brokers, p.now, p.opt.Timing.Missed); err != nil {
		return err
	}
	views := told.Topics
	if err := p.gone(views); err != nil {
		return err
	}
	if err := p.lineage(ctx, views); err != nil {
		return err
	}
	p.Report.Topics = len(views)
	p.verdicts = make(map[string][]Verdict, len(views))
	for name, v := range views {
		t := p.state.Topics[name]
		if t == nil {
			t = &Topic{}
			p.state.Topics[name] = t
		}
		verdicts := t.observe(v, p.now, p.opt.Timing)
		p.verdicts[name] = verdicts
		if v.Doubt != "" {
			p.doubt(name, v.Doubt)
		}
		for i, verdict := range verdicts {
			if verdict.Doubt != "" && v.Doubt == "" {
				p.doubt(name+"-"+strconv.Itoa(i), verdict.Doubt)
			}
			// Of partitions that a topic does not have, nobody ever wrote.
			beyond := i == len(verdicts)-1 && v.Exists()
			if verdict.Doubt == "" && !beyond && verdict.Settled.After(p.newest) {
				p.newest = verdict.Settled
			}
		}
		for _, part := range t.Partitions {
			p.Checkpoints += len(part.Checkpoints)
		}
	}
	return nil
}

// gone ends a pass when most topics are gone at once. A cluster that was made
// anew, and to which topics are yet to be restored, looks like that.
func (p *pass) gone(views map[string]tiers.TopicView) error {
	was, gone := 0, 0
	for name, t := range p.state.Topics {
		if t.ID == (ID{}) {
			continue
		}
		was++
		if v := views[name]; v.Doubt == "" && ID(v.ID) != t.ID {
			gone++
		}
	}
	if p.opt.AcceptGone || gone < was && (gone < 4 || gone*2 <= was) || gone == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d topics are gone, or were made anew, since the last pass: if that is meant, run `sluice gc --accept-gone` once; nothing is deleted until then", gone, was)
}

// lineage puts in doubt whose history does not have its checkpoint's epoch.
func (p *pass) lineage(ctx context.Context, views map[string]tiers.TopicView) error {
	var questions []tiers.EpochQuestion
	for name, v := range views {
		t := p.state.Topics[name]
		if v.Doubt != "" || t == nil || t.ID != ID(v.ID) {
			continue
		}
		for i, part := range t.Partitions[:min(len(t.Partitions), len(v.Partitions))] {
			if q, ok := part.question(tiers.TopicPartition{Topic: name, Partition: int32(i)}, v.Partitions[i]); ok {
				questions = append(questions, q)
			}
		}
	}
	if len(questions) == 0 {
		return nil
	}
	answers, err := p.opt.Kafka.Lineage(ctx, questions)
	if err != nil {
		return fmt.Errorf("the cluster cannot be asked: %w", err)
	}
	for _, q := range questions {
		l := &views[q.Topic].Partitions[q.Partition]
		switch in, ok := answers[q.TopicPartition]; {
		case !ok:
			l.Doubt = "its leader does not say whether its log has an earlier epoch"
		case !in:
			l.Doubt = "its log has another history than a checkpoint's"
			p.state.Topics[q.Topic].Partitions[q.Partition].disown(q.Epoch)
		}
	}
	return nil
}

const (
	walPrefix   = diskless.WALPrefix
	auditPrefix = diskless.LockedPrefix
)

// walk looks at all objects.
func (p *pass) walk(ctx context.Context) error {
	var work errgroup.Group
	work.SetLimit(p.opt.Concurrency)
	listed := 0
	err := p.opt.Store.List(ctx, walPrefix, "", func(i objstore.Info) error {
		if listed++; listed%1000 == 1 {
			p.count(&p.Requests.Lists)
		}
		if err := p.mayGoOn(ctx); err != nil {
			return err
		}
		if _, done := p.covering[i.Key]; done {
			return nil // in a dry run, or it could not be deleted
		}
		work.Go(func() error { return p.look(ctx, i) })
		return nil
	})
	if werr := work.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	return p.opt.Store.List(ctx, auditPrefix, "", func(i objstore.Info) error {
		if err := p.mayGoOn(ctx); err != nil {
			return err
		}
		p.report(Object{Key: i.Key, Bytes: i.Size, Time: i.LastModified, Reason: Audit, Why: "audit objects are never deleted: that their lock allows it cannot be proven"}, false)
		return nil
	})
}

func (p *pass) mayGoOn(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n := p.failures.Load(); n > maxFailures {
		return fmt.Errorf("%d requests to the store failed: %w", n, objstore.ErrUnavailable)
	}
	if err := p.notStopped(); err != nil {
		return err
	}
	return p.keepAlive(ctx)
}

// stoppedFor is the least time without a sign of life that ends a pass.
const stoppedFor = 5 * signalEvery

// notStopped is an error once the process stood still, or the machine slept, for
// Grace: the cluster may have been restored since it was asked, and another
// collector may have begun. Once it is an error it stays one, as nothing signals then.
func (p *pass) notStopped() error {
	if p.opt.DryRun {
		return nil
	}
	if still := time.Since(time.Unix(0, p.alive.Load())); still > max(p.opt.Timing.Grace, stoppedFor) {
		return fmt.Errorf("it stood still for %v: what the cluster said before may not be so any more, and nothing more is deleted until the next pass", still.Round(time.Second))
	}
	return nil
}

func (p *pass) report(o Object, deleted bool) {
	p.found(o, deleted)
	p.explaining.Lock()
	defer p.explaining.Unlock()
	p.opt.Explain(o)
}

// look decides about one WAL object and, perhaps, deletes it.
func (p *pass) look(ctx context.Context, i objstore.Info) error {
	o := Object{Key: i.Key, Bytes: i.Size, Time: i.LastModified}
	id, _, ok := diskless.ParseObjectKey(i.Key)
	if !ok {
		o.Reason, o.Why = Unknown, "not a key of sluice's: never touched"
		p.report(o, false)
		return nil
	}
	if own := id.Timestamp(); own.After(o.Time) {
		o.Time = own
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
	entries, err := p.footer(ctx, i)
	if err != nil {
		return p.unreadable(ctx, o, err)
	}
	places := make(map[place]struct{}, len(entries))
	for _, e := range entries {
		places[place{e.Topic, e.Partition}] = struct{}{}
	}
	p.decide(&o, places)
	if o.Reason != Dead {
		if o.Partition != nil {
			p.blockers.put(id, place{o.Topic, *o.Partition})
		}
		p.report(o, false)
		return nil
	}
	return p.delete(ctx, o)
}

// tooYoung keeps what need not be read: no log is settled so far.
func (p *pass) tooYoung(o *Object) bool {
	switch {
	case p.now.Sub(o.Time) < p.opt.MinAge:
		o.Reason, o.Why = Young, fmt.Sprintf("younger than the minimum age of %v", p.opt.MinAge)
	case o.Time.Add(p.opt.Timing.Margin).After(p.newest):
		o.Reason, o.Why = Young, "younger than what any log is settled up to"
	default:
		return false
	}
	return true
}

// decide finds what keeps an object: of all that do, what will for longest. The
// topics that it names are asked about from now on.
func (p *pass) decide(o *Object, places map[place]struct{}) {
	o.Reason, o.Why = Dead, "no log can hold a reference to it"
	rank := func(r Reason) int { return slices.Index([]Reason{Dead, Grace, Retained, Young, Unseen, Doubt}, r) }
	for at := range places {
		one := *o
		if !p.keeps(&one, at) {
			continue
		}
		if r, best := rank(one.Reason), rank(o.Reason); r > best || r == best && one.Settled != nil && o.Settled != nil && one.Settled.Before(*o.Settled) {
			*o = one
		}
	}
	for at := range places {
		p.name(at.topic)
	}
}

// keeps reports whether a log keeps an object, and says how.
func (p *pass) keeps(o *Object, at place) bool {
	verdicts := p.verdicts[at.topic]
	var v Verdict
	if verdicts == nil {
		v.Doubt = "the cluster has not been asked about it yet"
	} else {
		v = verdictOf(verdicts, at.partition)
	}
	needs := o.Time.Add(p.opt.Timing.Margin)
	reason, why := Dead, ""
	switch {
	case v.Doubt != "":
		reason, why = Doubt, v.Doubt
	case needs.After(v.Settled):
		reason = v.Waits
		why = map[Reason]string{
			Retained: "the log may still hold records of its time",
			Unseen:   "the log has not been looked at twice since",
			Young:    "too young to tell",
		}[reason]
	case needs.After(v.Confirmed):
		reason, why = Grace, "settled, but not for long enough yet"
	case p.now.Sub(o.Time) < p.opt.MinAge:
		reason, why = Young, fmt.Sprintf("younger than the minimum age of %v", p.opt.MinAge)
	default:
		return false
	}
	partition, settled := at.partition, v.Settled
	o.Reason, o.Why, o.Topic, o.Partition = reason, why, at.topic, &partition
	o.Settled = nil
	if v.Doubt == "" && !settled.IsZero() {
		o.Settled = &settled
	}
	return true
}

// name notes that an object names a topic: it is asked about from now on.
func (p *pass) name(topic string) {
	p.namedMu.Lock()
	defer p.namedMu.Unlock()
	p.named[topic] = struct{}{}
}

// footerGuess is what the first GET of an object's end asks for; few footers are
// larger.
const footerGuess = 64 << 10

// footer reads what a WAL object holds.
func (p *pass) footer(ctx context.Context, i objstore.Info) ([]diskless.Entry, error) {
	end, err := p.end(ctx, i, diskless.FooterSize, diskless.ErrObject)
	if err != nil {
		return nil, err
	}
	return diskless.ReadFooter(end, i.Size)
}

// end reads the end of an object, with one ranged GET or two: as much as size says,
// given some of it. garbled is what an object is that is too short.
func (p *pass) end(ctx context.Context, i objstore.Info, size func(end []byte) int64, garbled error) ([]byte, error) {
	guess := min(i.Size, footerGuess)
	for {
		end, err := p.opt.Store.Get(ctx, i.Key, i.Size-guess, guess)
		p.count(&p.Requests.Gets)
		if err != nil {
			return nil, err
		}
		if int64(len(end)) != guess {
			return nil, fmt.Errorf("%w: it is shorter than it is listed", garbled)
		}
		need := size(end)
		if need <= guess || need > i.Size {
			return end, nil
		}
		guess = need
	}
}

// unreadable reports an object whose content could not be read. One that is gone
// was deleted by somebody who was faster.
func (p *pass) unreadable(ctx context.Context, o Object, err error) error {
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case !errors.Is(err, diskless.ErrObject) && !errors.Is(err, segment.ErrGarbled):
		p.failures.Add(1)
	}
	o.Reason, o.Why = Unreadable, err.Error()
	p.report(o, false)
	return nil
}

func (p *pass) count(n *int64) {
	p.tally.mu.Lock()
	defer p.tally.mu.Unlock()
	*n++
}

// delete removes one object that is dead.
func (p *pass) delete(ctx context.Context, o Object) error {
	_, err := p.deleted(ctx, o)
	return err
}

// deleted is delete, and reports whether it is gone. An error ends the pass.
func (p *pass) deleted(ctx context.Context, o Object) (bool, error) {
	if p.opt.DryRun {
		p.report(o, false)
		return false, nil
	}
	if err := p.deletes.Wait(ctx); err != nil {
		return false, err
	}
	if err := p.notStopped(); err != nil {
		return false, err
	}
	p.count(&p.Requests.Deletes)
	if err := p.opt.Store.Delete(ctx, o.Key); err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		p.failures.Add(1)
		p.opt.Logger.Warn().Err(err).Str("store", p.opt.Name).Msg("an object to which nothing refers cannot be deleted; a later pass tries again")
		p.report(o, false)
		return false, nil
	}
	if id, _, ok := diskless.ParseObjectKey(o.Key); ok {
		p.blockers.forget(id)
	}
	p.report(o, true)
	return true, nil
}

// settleNames makes the state remember which names objects have, after a walk that
// saw all of them; names that nobody has are forgotten.
func (p *pass) settleNames(ctx context.Context) error {
	for name := range p.named {
		if p.state.Topics[name] == nil {
			p.state.Topics[name] = &Topic{}
		}
	}
	for name, t := range p.state.Topics {
		_, t.Named = p.named[name]
		if !t.Named && t.ID == (ID{}) {
			delete(p.state.Topics, name)
		}
	}
	p.state.Passes++
	return p.save(ctx)
}
