package upkeep

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// A copy neither loses nor doubles, whenever it is killed, by this:
//
//   - The records that a consumer of isolation read_committed sees go to the target
//     in order, partition by partition, from one idempotent producer, without
//     transactions: so what is in the target is always a prefix of them, also for
//     readers that don't ask for committed records only.
//   - The producer's sequence is the target's offset, counted from where the copy
//     began. Its id is kept, so whoever goes on is the same producer: a request of a
//     process that was killed, and that arrives late, is a duplicate to the broker,
//     or makes ours one.
//   - Before anything is written, and then now and then, the source's and the
//     target's offsets that belong together are committed in the target cluster,
//     with the producer's id. Who goes on begins there, reads what the target has
//     beyond it, holds that against the source record by record, and writes what is
//     missing.
//   - An answer that names another offset than expected ends it: somebody else
//     writes there.

// CopyOptions say what Copy copies.
type CopyOptions struct {
	Topics []CopyTopic
	Target *lowlatency.Cluster

	Resume         bool // go on with what an earlier call has begun
	Follow         bool // until ctx ends, instead of to the end
	SkipUnreadable bool // leave out what is in no store any more
	Replication    int  // of topics that are made; 0 is the source's
	BytesPerSecond float64
	OffsetsMap     *OffsetsMap // may be nil

	Progress func(CopyProgress) // never called by two at a time

	crash func() bool // for tests: end here, as a process that is killed
}

// CopyTopic is a topic and what it is called in the target.
type CopyTopic struct{ From, To string }

// CopyProgress is how far a copy has come.
type CopyProgress struct {
	Done, Of int64 // offsets of the source
	Records  int64
	Bytes    int64
}

// CopyReport is what was done. The JSON names are stable.
type CopyReport struct {
	Version   int             `json:"version"` // 1
	ClusterID string          `json:"cluster_id"`
	TargetID  string          `json:"target_cluster_id"`
	Began     time.Time       `json:"began"`
	Ended     time.Time       `json:"ended"`
	Complete  bool            `json:"complete"` // up to where the source ended when it began
	Records   int64           `json:"records"`  // written by this call
	Bytes     int64           `json:"bytes"`    // of their batches
	Created   []string        `json:"created,omitempty"`
	Topics    []CopyPartition `json:"partitions"`
	Notes     []string        `json:"notes,omitempty"`
}

// CopyPartition is one partition of a CopyReport.
type CopyPartition struct {
	Topic     string     `json:"topic"`
	To        string     `json:"to"`
	Partition int32      `json:"partition"`
	Records   int64      `json:"records"`       // written by this call
	Verified  int64      `json:"verified"`      // of an earlier one, found in the target
	Next      int64      `json:"source_offset"` // all below is in the target
	At        int64      `json:"target_offset"` // which ends there
	Skipped   []CopySkip `json:"skipped,omitempty"`
	Error     string     `json:"error,omitempty"`
	err       error
}

// CopySkip is a range of offsets that is not in the target.
type CopySkip struct {
	First int64  `json:"first_offset"`
	Last  int64  `json:"last_offset"` // inclusive
	Why   string `json:"why"`
}

const (
	copyVersion = 1
	// partitionsAtATime are copied together.
	partitionsAtATime = 8
	// copyFetch is what is read of a source's log at a time, copyGroup up to which
	// size small batches become one. A batch of copyLarge or more goes on as it is.
	copyFetch = 1 << 20
	copyGroup = 512 << 10
	copyLarge = 64 << 10
	// loadBytes of payloads are read at a time, for one partition.
	loadBytes   = 16 << 20
	commitEvery = 5 * time.Second
	followEvery = 500 * time.Millisecond
	// produceFor is how long one batch is tried.
	produceFor     = 2 * time.Minute
	produceTimeout = 30 * time.Second
	commitTimeout  = 15 * time.Second
)

// renewEvery is how often offsets are committed that are the same, so that they do
// not expire; tests shorten it.
var renewEvery = time.Hour

// copier is one call of Copy.
type copier struct {
	*Access
	opt    CopyOptions
	bytes  *rate.Limiter
	report *CopyReport

	mu   sync.Mutex
	prog CopyProgress
	told time.Time
}

// ErrNotFresh is a target that holds records already.
var ErrNotFresh = errors.New("the target topic is not empty")

// Copy writes topics' records, payloads resolved, to plain topics. The report
// comes with an error too, unless nothing was begun.
func (a *Access) Copy(ctx context.Context, opt CopyOptions) (*CopyReport, error) {
	if err := opt.Target.Refresh(ctx); err != nil {
		return nil, fmt.Errorf("the target: %w", err)
	}
	c := &copier{
		Access: a, opt: opt, bytes: limiter(opt.BytesPerSecond, byteBurst),
		report: &CopyReport{Version: copyVersion, ClusterID: a.Cluster.ClusterID(), TargetID: opt.Target.ClusterID(), Began: time.Now().UTC()},
	}
	var parts []*partCopy
	for _, t := range opt.Topics {
		some, err := c.begin(ctx, t)
		if err != nil {
			return nil, fmt.Errorf("%s to %s: %w", t.From, t.To, err)
		}
		parts = append(parts, some...)
	}
	copying, together := errgroup.WithContext(ctx)
	if !opt.Follow {
		copying.SetLimit(partitionsAtATime)
		together = ctx
	}
	for _, p := range parts {
		copying.Go(func() error {
			// When one cannot be followed any more, all end: who waits for them would
			// not hear of it.
			p.err = p.run(together)
			return p.err
		})
	}
	_ = copying.Wait()
	var errs []error
	for _, p := range parts {
		if p.err != nil {
			p.Error = p.err.Error()
			if !errors.Is(p.err, context.Canceled) {
				errs = append(errs, fmt.Errorf("%s-%d to %s: %w", p.Topic, p.Partition, p.To, p.err))
			}
		}
		c.report.Topics = append(c.report.Topics, p.CopyPartition)
		c.report.Records += p.Records
	}
	if err := c.grown(ctx); err != nil {
		errs = append(errs, err)
	}
	c.report.Bytes = c.prog.Bytes
	c.report.Ended = time.Now().UTC()
	c.report.Complete = len(errs) == 0 && ctx.Err() == nil
	if err := opt.OffsetsMap.close(); err != nil {
		errs = append(errs, err)
	}
	if ctx.Err() != nil && !opt.Follow {
		errs = append(errs, ctx.Err())
	}
	return c.report, errors.Join(errs...)
}

// grown is an error when topics have partitions by now that are not copied.
func (c *copier) grown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	copied := map[string]int{}
	for _, p := range c.report.Topics {
		copied[p.Topic]++
	}
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range slices.Sorted(maps.Keys(copied)) {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &name
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, c.Cluster.Client())
	if err != nil {
		return fmt.Errorf("whether the topics have more partitions by now: %w", err)
	}
	var errs []error
	for _, t := range resp.Topics {
		if t.Topic == nil || len(t.Partitions) <= copied[*t.Topic] {
			continue
		}
		errs = append(errs, fmt.Errorf("%s has %d partitions by now, and %d were copied: give the target as many with kafka-topics --alter, and go on with --resume", *t.Topic, len(t.Partitions), copied[*t.Topic]))
	}
	return errors.Join(errs...)
}

// group is under whose name a copy's progress is committed in the target cluster.
func (t CopyTopic) group() string { return "sluice-copy-" + t.To }

// progress is committed with a target's offset.
type progress struct {
	Version int    `json:"v"`
	Cluster string `json:"cluster"`
	Topic   string `json:"topic"`
	ID      string `json:"id"`    // of the topic
	Next    int64  `json:"next"`  // source offset; the committed one is the target's
	PID     int64  `json:"pid"`   // the producer
	Epoch   int16  `json:"epoch"` // its
	Zero    int64  `json:"zero"`  // target offset of sequence 0
}

// begin finds a topic's logs, makes the target, and reads how far it has come.
func (c *copier) begin(ctx context.Context, t CopyTopic) (parts []*partCopy, err error) {
	if c.report.ClusterID == c.report.TargetID && t.From == t.To {
		return nil, errors.New("a topic cannot be copied onto itself: name the target with --to-topic or --prefix")
	}
	sources, err := c.Cluster.Logs(ctx, t.From)
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil, fmt.Errorf("the source is not in the cluster, or this principal may not see it; `sluice topics` lists what it sees: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if err := c.makeTarget(ctx, t, len(sources)); err != nil {
		return nil, err
	}
	var targets []lowlatency.Log
	if err := persist(ctx, func() (bool, error) {
		if targets, err = c.opt.Target.Logs(ctx, t.To); err == nil && len(targets) == 0 {
			err = errors.New("its leaders do not tell their offsets yet")
		}
		return false, err
	}); err != nil {
		return nil, fmt.Errorf("the target: %w", err)
	}
	if len(targets) != len(sources) {
		return nil, fmt.Errorf("the target has %d partitions, the source %d: records keep their partitions, so give it as many with kafka-topics --alter if it has fewer, or name another target", len(targets), len(sources))
	}
	adm := kadm.NewClient(c.opt.Target.Client())
	var committed kadm.OffsetResponses
	err = persist(ctx, func() (bool, error) { // a coordinator may have to be found, or its topic made
		if committed, err = adm.FetchOffsets(ctx, t.group()); errors.Is(err, kerr.GroupIDNotFound) {
			err = nil
		}
		return isKafka(err) && !kerr.IsRetriable(err), err
	})
	if err != nil {
		return nil, fmt.Errorf("the target: reading the progress of group %s: %w", t.group(), err)
	}
	for i, src := range sources {
		p := &partCopy{c: c, topic: t, src: src, dst: targets[i], CopyPartition: CopyPartition{Topic: t.From, To: t.To, Partition: src.Partition}}
		if p.dst.Partition != src.Partition {
			return nil, fmt.Errorf("the target has no partition %d", src.Partition)
		}
		p.of = src.End - src.Start
		found, ok := committed.Lookup(t.To, src.Partition)
		if ok && found.Err != nil {
			return nil, fmt.Errorf("the target: reading the progress of group %s: %w", t.group(), found.Err)
		}
		ok = ok && found.At >= 0 && found.Metadata != ""
		switch {
		case !ok && p.dst.End > 0:
			return nil, fmt.Errorf("%w: partition %d ends at %d, and group %s has no progress of a copy to it: name another target, or delete the topic", ErrNotFresh, src.Partition, p.dst.End, t.group())
		case !ok:
			p.Next, p.At, p.Zero, p.PID = src.Start, 0, 0, -1
		case !c.opt.Resume && (p.dst.End > 0 || found.At > 0):
			return nil, fmt.Errorf("%w: an earlier copy has begun it; --resume goes on", ErrNotFresh)
		default:
			if err := p.goOn(found.Metadata, found.At); err != nil {
				return nil, err
			}
		}
		parts = append(parts, p)
	}
	for _, p := range parts {
		c.prog.Of += max(0, p.src.End-p.Next)
	}
	return parts, nil
}

// goOn takes over what an earlier copy has committed.
func (p *partCopy) goOn(text string, at int64) error {
	var g progress
	if err := json.Unmarshal([]byte(text), &g); err != nil || g.Version != copyVersion {
		return fmt.Errorf("partition %d: what group %s has committed is not what this version writes: %q", p.Partition, p.topic.group(), text)
	}
	if g.Cluster != p.c.report.ClusterID || g.Topic != p.topic.From || g.ID != fmt.Sprintf("%x", p.src.ID) {
		return fmt.Errorf("%w: it is a copy of another topic (%s, id %s, of cluster %s); the source may have been made anew", ErrNotFresh, g.Topic, g.ID, g.Cluster)
	}
	if p.dst.End < at {
		return fmt.Errorf("partition %d of the target ends at %d, and a copy had written it up to %d: it has lost records; name another target", p.Partition, p.dst.End, at)
	}
	p.Next, p.At, p.PID, p.Epoch, p.Zero = g.Next, at, g.PID, g.Epoch, g.Zero
	p.saved = -1 // to be committed anew, or it would expire
	return nil
}

// notCopied are configurations that belong to the source alone.
func notCopied(key string) bool {
	return strings.HasPrefix(key, "sluice.") || strings.HasPrefix(key, "remote.") || strings.HasPrefix(key, "local.retention.") ||
		strings.HasSuffix(key, ".replication.throttled.replicas") || key == timestampType
}

const timestampType = "message.timestamp.type"

// makeTarget makes a target that is not there, as its source is.
func (c *copier) makeTarget(ctx context.Context, t CopyTopic, partitions int) error {
	adm := kadm.NewClient(c.opt.Target.Client())
	listed, err := adm.ListTopics(ctx, t.To)
	if err != nil {
		return fmt.Errorf("the target: %w", err)
	}
	there := listed[t.To]
	if there.Err == nil {
		configs, err := adm.DescribeTopicConfigs(ctx, t.To)
		if err != nil {
			return fmt.Errorf("the target's configuration: %w", err)
		}
		for _, r := range configs {
			if r.Err != nil {
				return fmt.Errorf("the target's configuration: %w", r.Err)
			}
			for _, v := range r.Configs {
				if v.Key == timestampType && v.MaybeValue() == "LogAppendTime" {
					return fmt.Errorf("the target has %s=LogAppendTime, which would give records new timestamps: set it to CreateTime while it is copied", timestampType)
				}
			}
		}
		return nil
	}
	if !errors.Is(there.Err, kerr.UnknownTopicOrPartition) {
		return fmt.Errorf("the target: %w", there.Err)
	}
	from := kadm.NewClient(c.Cluster.Client())
	described, err := from.DescribeTopicConfigs(ctx, t.From)
	if err != nil {
		return fmt.Errorf("reading its configuration: %w", err)
	}
	configs := map[string]*string{}
	for _, r := range described {
		if r.Err != nil {
			return fmt.Errorf("reading its configuration: %w", r.Err)
		}
		for _, v := range r.Configs {
			if v.Source != kmsg.ConfigSourceDynamicTopicConfig {
				continue
			}
			if notCopied(v.Key) {
				c.report.Notes = append(c.report.Notes, fmt.Sprintf("%s was made without %s=%s", t.To, v.Key, v.MaybeValue()))
				continue
			}
			configs[v.Key] = v.Value
		}
	}
	replicas := c.opt.Replication
	if replicas == 0 {
		source, err := from.ListTopics(ctx, t.From)
		if err != nil {
			return err
		}
		for _, p := range source[t.From].Partitions {
			replicas = max(replicas, len(p.Replicas))
		}
		if have := len(c.opt.Target.Brokers()); replicas > have {
			c.report.Notes = append(c.report.Notes, fmt.Sprintf("%s has %d replicas, for the target has no more brokers", t.To, have))
			replicas = have
		}
	}
	// Broker defaults of the target decide what the source does not say itself; its
	// timestamps must be kept whatever they are.
	create := "CreateTime"
	configs[timestampType] = &create
	made, err := adm.CreateTopic(ctx, int32(partitions), int16(replicas), configs, t.To)
	if err != nil {
		return fmt.Errorf("making the target with %d partitions, %d replicas and %s: %w %s", partitions, replicas, strings.Join(slices.Sorted(maps.Keys(configs)), ", "), err, made.ErrMessage)
	}
	c.report.Created = append(c.report.Created, t.To)
	return nil
}

// partCopy copies one partition.
type partCopy struct {
	CopyPartition
	c        *copier
	topic    CopyTopic
	src, dst lowlatency.Log
	of       int64
	known    int64 // the target is known to hold records up to here
	end      int64 // source offset at which it is done; -1 before it is known

	PID   int64 `json:"-"`
	Epoch int16 `json:"-"`
	Zero  int64 `json:"-"`

	theirs []record // of the target, to be held against the source's

	saved     int64 // source offset
	savedWhen time.Time
}

func (p *partCopy) run(ctx context.Context) (err error) {
	if p.PID < 0 {
		if err := p.newProducer(ctx); err != nil {
			return err
		}
		if err := p.save(ctx); err != nil {
			return err
		}
	}
	p.known, p.end = p.dst.End, -1
	defer func() {
		if p.saved == p.Next || errors.Is(err, errCrash) {
			return
		}
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
		defer cancel()
		err = errors.Join(err, p.save(late))
	}()
	for {
		before := p.Next
		done, err := p.step(ctx)
		p.c.tell(p.Next-before, 0, 0)
		switch {
		case errors.Is(err, errOtherSequence):
			if err := p.again(ctx); err != nil {
				return err
			}
		case err != nil:
			return err
		case done && p.At < p.known:
			return fmt.Errorf("the target ends at %d, and the source's last record is at %d there: somebody else writes to it, or the source has lost records; copy to a topic of its own", p.known, p.At-1)
		case done:
			return nil
		}
		if since := time.Since(p.savedWhen); since > commitEvery && p.saved != p.Next || since > renewEvery {
			if err := p.save(ctx); err != nil {
				return err
			}
		}
	}
}

// step copies what one Fetch gives; done says that there is nothing more to copy.
func (p *partCopy) step(ctx context.Context) (done bool, err error) {
	if p.end >= 0 && p.Next >= p.end && !p.c.opt.Follow {
		return true, nil
	}
	f, err := p.c.fetchFrom(ctx, &p.src, func(ctx context.Context, l lowlatency.Log) (lowlatency.Fetched, error) {
		f, err := p.c.Cluster.FetchCommitted(ctx, l, p.Next, copyFetch)
		if _, _, ok := wire.NextBatch(f.Records); err == nil && !ok && p.Next < f.Stable && !p.c.opt.Follow {
			err = errNothing
		}
		return f, err
	})
	if errors.Is(err, kerr.OffsetOutOfRange) {
		now, gone, lookErr := p.c.relocate(ctx, p.src)
		if gone || lookErr != nil {
			return false, errors.Join(err, lookErr)
		}
		if now.Start <= p.Next {
			return false, fmt.Errorf("the source ends at %d, and was copied up to %d: its leader has lost records that are in the target; copy it anew, to another target", now.End, p.Next)
		}
		return false, p.skip(ctx, p.Next, now.Start-1, "retention has removed it before it was copied")
	}
	if err != nil {
		return false, err
	}
	if p.end < 0 {
		p.end = f.Stable
		if f.End > f.Stable {
			p.c.note(fmt.Sprintf("%s-%d: offsets %d to %d belong to transactions that had not ended, or stand behind one; they were not copied unless by --follow", p.Topic, p.Partition, f.Stable, f.End-1))
		}
	}
	before := p.Next
	if err := p.take(ctx, f); err != nil {
		return false, err
	}
	if p.Next > before {
		return false, nil
	}
	if !p.c.opt.Follow && p.Next >= p.end {
		return true, nil
	}
	select { // nothing new, or nothing whole yet
	case <-time.After(followEvery):
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// visible is a batch that goes to the target: part of what was fetched.
type visible struct {
	tiers.Piece
	batch       wire.Batch // as it is in the log
	first, last int64
}

// take copies what was fetched.
func (p *partCopy) take(ctx context.Context, f lowlatency.Fetched) error {
	aborted := slices.SortedFunc(slices.Values(f.Aborted), func(a, b lowlatency.Aborted) int { return cmp.Compare(a.First, b.First) })
	hidden := map[int64]bool{} // producers whose records are of an aborted transaction here
	var some []visible
	size := int64(0)
	after := p.Next
	for records := f.Records; ; {
		b, rest, ok := wire.NextBatch(records)
		if !ok {
			break
		}
		records = rest
		if !b.IsV2() {
			return fmt.Errorf("offset %d: %w: it is of the format of before Kafka 0.11", b.BaseOffset(), errBatch)
		}
		if b.BaseOffset() >= f.Stable {
			break
		}
		// Before anything is believed that it covers: it may say that nothing is in it.
		if b.CRC() != b.ComputeCRC() {
			return errors.Join(p.flush(ctx, some, after), fmt.Errorf("offset %d: the checksum of the batch in the broker's log is wrong", b.BaseOffset()))
		}
		last := b.BaseOffset() + int64(b.LastOffsetDelta())
		for len(aborted) > 0 && aborted[0].First <= last {
			hidden[aborted[0].ProducerID] = true
			aborted = aborted[1:]
		}
		if b.IsControl() {
			if abort, err := isAbort(b); err != nil {
				return fmt.Errorf("offset %d: %w", b.BaseOffset(), err)
			} else if abort {
				delete(hidden, b.ProducerID())
			}
		}
		if last < p.Next {
			continue
		}
		if b.IsControl() || b.IsTransactional() && hidden[b.ProducerID()] || b.NumRecords() == 0 {
			after = last + 1
			continue
		}
		v, err := p.resolve(ctx, b)
		if err != nil {
			if err := p.flush(ctx, some, after); err != nil {
				return err
			}
			return p.unreadable(ctx, b.BaseOffset(), last, err)
		}
		v.first, v.last = b.BaseOffset(), last
		if len(some) > 0 && size+int64(v.Size()) > loadBytes {
			if err := p.flush(ctx, some, after); err != nil {
				return err
			}
			some, size = nil, 0
		}
		some, size = append(some, v), size+int64(v.Size())
		after = last + 1
	}
	return p.flush(ctx, some, after)
}

// resolve verifies a batch that may be a placeholder.
func (p *partCopy) resolve(ctx context.Context, b wire.Batch) (v visible, err error) {
	tp := tiers.TopicPartition{Topic: p.Topic, Partition: p.Partition}
	var pieces []tiers.Piece
	_ = persist(ctx, func() (bool, error) {
		pieces, _, err = p.c.Tier.Resolve(ctx, tp, b, math.MaxInt, 0)
		return !errors.Is(err, diskless.ErrUnreadable), err
	})
	if err != nil {
		return v, err
	}
	if len(pieces) != 1 {
		return v, fmt.Errorf("%w: it is not one", errBatch)
	}
	return visible{Piece: pieces[0], batch: b}, nil
}

// isAbort reports which marker a control batch is: see KIP-98.
func isAbort(b wire.Batch) (bool, error) {
	records, err := decode(b)
	if err != nil || len(records) == 0 {
		return false, err
	}
	key := records[0].key // version, type: 0 is abort, 1 commit
	return len(key) >= 4 && key[2] == 0 && key[3] == 0, nil
}

// unreadable passes over what cannot be had, when that was asked for.
func (p *partCopy) unreadable(ctx context.Context, first, last int64, why error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// Of the places where it may be, each has to have been asked.
	final := !transient(why) && (errors.Is(why, diskless.ErrUnverified) || errors.Is(why, objstore.ErrNotFound) || errors.Is(why, placeholder.ErrMismatch) || diskless.TooShort(why))
	if !final {
		return why
	}
	if now, gone, err := p.c.relocate(ctx, p.src); err == nil && !gone && now.Start > last {
		return p.skip(ctx, first, last, "retention has removed it before it was copied")
	}
	if !p.c.opt.SkipUnreadable {
		return fmt.Errorf("%w; `sluice fsck` names all that is damaged, and its remedy; --skip-unreadable leaves it out", why)
	}
	return p.skip(ctx, first, last, why.Error())
}

// skip leaves out a range. That is committed before what follows is written: who
// goes on later counts records from there.
func (p *partCopy) skip(ctx context.Context, first, last int64, why string) error {
	if p.known > p.At {
		return fmt.Errorf("offset %d: the target holds more than what is committed, and what cannot be read (%s) stands before it: restore it, or copy to another target", first, why)
	}
	if n := len(p.Skipped); n > 0 && p.Skipped[n-1].Last+1 == first && p.Skipped[n-1].Why == why {
		p.Skipped[n-1].Last = last
	} else {
		p.Skipped = append(p.Skipped, CopySkip{first, last, why})
	}
	p.Next = last + 1
	return p.save(ctx)
}

// flush reads payloads, and writes them all.
func (p *partCopy) flush(ctx context.Context, some []visible, after int64) error {
	originals := make([]wire.Batch, len(some))
	errs := make([]error, len(some))
	var loading errgroup.Group
	loading.SetLimit(objectsAtATime)
	for i, v := range some {
		if !v.Placeholder() {
			originals[i] = v.batch
			continue
		}
		loading.Go(func() error {
			_ = persist(ctx, func() (bool, error) {
				var parts [][]byte
				parts, errs[i] = v.Load(ctx)
				originals[i] = slices.Concat(parts...)
				return !transient(errs[i]), errs[i]
			})
			return nil
		})
	}
	_ = loading.Wait()
	for i := 0; i < len(some); {
		if errs[i] != nil {
			if err := p.unreadable(ctx, some[i].first, some[i].last, errs[i]); err != nil {
				return err
			}
			i++
			continue
		}
		n, size := i+1, len(originals[i])
		for size < copyLarge && n < len(some) && errs[n] == nil && originals[n].Codec() == originals[i].Codec() && size+len(originals[n]) <= copyGroup {
			size += len(originals[n])
			n++
		}
		if err := p.write(ctx, originals[i:n]); err != nil {
			return err
		}
		p.Next = some[n-1].last + 1
		i = n
	}
	p.Next = max(p.Next, after)
	return nil
}

// write brings batches to the target, as one. p.Next stays where it is: whoever
// tries again begins there.
func (p *partCopy) write(ctx context.Context, batches []wire.Batch) error {
	b := batches[0]
	if len(batches) == 1 && p.known <= p.At && whole(b) && b.BaseOffset() >= p.Next {
		n := int64(b.NumRecords())
		err := p.produce(ctx, slices.Clone(b), int(n))
		if err == nil {
			p.wrote(b.BaseOffset(), n, int64(len(b)))
			return nil
		}
		if !errors.Is(err, kerr.MessageTooLarge) || n == 1 {
			return p.explain(b.BaseOffset(), err)
		}
	}
	var records []record
	for _, one := range batches {
		some, err := decode(one)
		if err != nil {
			return fmt.Errorf("offset %d: %w", one.BaseOffset(), err)
		}
		for _, r := range some {
			if r.offset >= p.Next {
				records = append(records, r)
			}
		}
	}
	rest, err := p.verify(ctx, records)
	if err != nil {
		return err
	}
	return p.writeRecords(ctx, rest, b.Codec())
}

// writeRecords writes them in as few batches as the target takes.
func (p *partCopy) writeRecords(ctx context.Context, records []record, codec int) error {
	if len(records) == 0 {
		return nil
	}
	b := encode(records, codec)
	err := p.produce(ctx, b, len(records))
	if errors.Is(err, kerr.MessageTooLarge) && len(records) > 1 {
		half := len(records) / 2
		if err := p.writeRecords(ctx, records[:half], codec); err != nil {
			return err
		}
		return p.writeRecords(ctx, records[half:], codec)
	}
	if err != nil {
		return p.explain(records[0].offset, err)
	}
	for i := 0; i < len(records); {
		n := i + 1
		for n < len(records) && records[n].offset == records[n-1].offset+1 {
			n++
		}
		size := int64(0)
		if i == 0 {
			size = int64(len(b))
		}
		p.wrote(records[i].offset, int64(n-i), size)
		i = n
	}
	return nil
}

func (p *partCopy) explain(offset int64, err error) error {
	if errors.Is(err, errOtherSequence) {
		return err
	}
	if errors.Is(err, kerr.MessageTooLarge) {
		return fmt.Errorf("offset %d: the target takes no record of that size: raise its max.message.bytes; %w", offset, err)
	}
	return fmt.Errorf("offset %d: the target does not take it: %w", offset, err)
}

var errCrash = errors.New("crashed")

// wrote notes n records from a source offset on that are in the target.
func (p *partCopy) wrote(offset, n, bytes int64) {
	p.c.opt.OffsetsMap.add(p.Topic, p.Partition, offset, p.At, n)
	p.At += n
	p.Next = offset + n
	p.Records += n
	p.c.tell(0, n, bytes)
}

// verify passes over records that the target holds from an earlier go, and holds
// them against the source's.
func (p *partCopy) verify(ctx context.Context, records []record) ([]record, error) {
	for len(records) > 0 && p.At < p.known {
		r := records[0]
		for len(p.theirs) > 0 && p.theirs[0].offset < p.At {
			p.theirs = p.theirs[1:]
		}
		if len(p.theirs) == 0 {
			f, err := p.c.fetchTarget(ctx, &p.dst, p.At)
			if err != nil {
				return nil, fmt.Errorf("the target: %w", err)
			}
			for rest := f.Records; ; {
				b, more, ok := wire.NextBatch(rest)
				if !ok {
					break
				}
				if rest = more; b.IsControl() {
					return nil, p.foreign(b.BaseOffset())
				}
				some, err := decode(b)
				if err != nil {
					return nil, fmt.Errorf("the target: offset %d: %w", b.BaseOffset(), err)
				}
				p.theirs = append(p.theirs, some...)
			}
			if len(p.theirs) == 0 || p.theirs[len(p.theirs)-1].offset < p.At {
				return nil, fmt.Errorf("the target: there is nothing at offset %d", p.At)
			}
			continue
		}
		// One that is not there any more was compacted.
		if p.theirs[0].offset == p.At && !p.theirs[0].sameAs(r) {
			return nil, p.foreign(p.At)
		}
		p.c.opt.OffsetsMap.add(p.Topic, p.Partition, r.offset, p.At, 1)
		p.At++
		p.Next = r.offset + 1
		p.Verified++
		records = records[1:]
	}
	if p.At >= p.known {
		p.theirs = nil
	}
	return records, nil
}

func (p *partCopy) foreign(offset int64) error {
	return fmt.Errorf("the target holds something else at offset %d than the source at %d: somebody else writes to it, or the source is another, or was compacted since; copy to a topic of its own", offset, p.Next)
}

// fetchTarget reads the target's log.
func (c *copier) fetchTarget(ctx context.Context, l *lowlatency.Log, offset int64) (f lowlatency.Fetched, err error) {
	err = persist(ctx, func() (bool, error) {
		if f, err = c.opt.Target.FetchAll(ctx, *l, offset, copyFetch); err == nil {
			return true, nil
		}
		p := partCopy{c: c, dst: *l}
		_ = p.findTarget(ctx)
		*l = p.dst
		return false, err
	})
	return f, err
}

// findTarget finds the target's leader and end anew.
func (p *partCopy) findTarget(ctx context.Context) error {
	logs, err := p.c.opt.Target.Logs(ctx, p.dst.Topic)
	for _, l := range logs {
		if l.Partition != p.dst.Partition {
			continue
		}
		if l.ID != p.dst.ID {
			return fmt.Errorf("topic %s was made anew meanwhile", l.Topic)
		}
		p.dst = l
		return nil
	}
	return errors.Join(err, errors.New("the target's leader does not tell its offsets"))
}

// errOtherSequence: the broker has seen more, or something else, of this producer
// than we know of.
var errOtherSequence = errors.New("the target has another sequence of this producer")

// again looks what the target has, after it was not what was expected: a request
// whose answer was lost, or of a process that was killed.
func (p *partCopy) again(ctx context.Context) error {
	err := persist(ctx, func() (bool, error) {
		if err := p.findTarget(ctx); err != nil {
			return false, err
		}
		if p.dst.End < p.At {
			return false, fmt.Errorf("the target ends at %d, and %d was acknowledged", p.dst.End, p.At)
		}
		if p.dst.End == p.At {
			return false, fmt.Errorf("%w (producer %d), and nothing of it is there", errOtherSequence, p.PID)
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("the target: %w", err)
	}
	p.known, p.theirs = p.dst.End, nil
	return nil
}

// newProducer gives the partition a producer that begins with sequence 0 here.
func (p *partCopy) newProducer(ctx context.Context) error {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.ProducerID, req.ProducerEpoch = -1, -1
	var resp *kmsg.InitProducerIDResponse
	err := persist(ctx, func() (bool, error) {
		var err error
		if resp, err = req.RequestWith(ctx, p.c.opt.Target.Client()); err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		return err != nil && !kerr.IsRetriable(err) && isKafka(err), err
	})
	if err != nil {
		return fmt.Errorf("the target gives no producer id: %w", err)
	}
	p.PID, p.Epoch, p.Zero = resp.ProducerID, resp.ProducerEpoch, p.At
	return nil
}

func isKafka(err error) bool {
	var k *kerr.Error
	return errors.As(err, &k)
}

// produce writes one batch of n records at p.At, or fails for good. Whatever is
// lost on the way, the batch is in the log once or not at all.
func (p *partCopy) produce(ctx context.Context, b wire.Batch, n int) error {
	if err := spend(ctx, p.c.bytes, int64(len(b))); err != nil {
		return err
	}
	pause := firstPause
	for deadline := time.Now().Add(produceFor); ; {
		at, err := p.produceOnce(ctx, owned(b, p.PID, p.Epoch, int32((p.At-p.Zero)&0x7fffffff)))
		switch {
		case p.c.opt.crash != nil && p.c.opt.crash():
			return errCrash
		case err == nil && at == p.At:
			return nil
		case err == nil:
			return fmt.Errorf("it was written at offset %d, not %d: somebody else writes to the target, which is no copy any more", at, p.At)
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, kerr.OutOfOrderSequenceNumber), errors.Is(err, kerr.DuplicateSequenceNumber):
			return errOtherSequence
		case errors.Is(err, kerr.UnknownProducerID):
			// The broker has forgotten it, with all that could still arrive of it.
			if err := p.newProducer(ctx); err != nil {
				return err
			}
			if err := p.save(ctx); err != nil {
				return err
			}
		case errors.Is(err, errStamped), isKafka(err) && !kerr.IsRetriable(err), time.Now().After(deadline):
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, 5*time.Second)
		_ = p.findTarget(ctx) // its leader
	}
}

// errStamped is a target that was changed while it is copied to.
var errStamped = fmt.Errorf("the target has %s=LogAppendTime by now, and has given the records new timestamps: set it to CreateTime, and copy to a topic of its own", timestampType)

func (p *partCopy) produceOnce(ctx context.Context, b wire.Batch) (int64, error) {
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, int32(produceTimeout.Milliseconds())
	part := kmsg.NewProduceRequestTopicPartition()
	part.Partition, part.Records = p.Partition, b
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.TopicID, t.Partitions = p.To, p.dst.ID, append(t.Partitions, part)
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, p.c.opt.Target.Client().Broker(int(p.dst.Leader)))
	if err != nil {
		return 0, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, errors.New("the broker's answer is about something else")
	}
	got := resp.Topics[0].Partitions[0]
	err = kerr.ErrorForCode(got.ErrorCode)
	if err != nil && got.ErrorMessage != nil {
		err = fmt.Errorf("%w (%s)", err, *got.ErrorMessage)
	}
	if err == nil && got.LogAppendTime >= 0 {
		err = errStamped
	}
	return got.BaseOffset, err
}

// save commits how far the partition has come. The map of offsets comes first, so
// that it has all that is never gone over again.
func (p *partCopy) save(ctx context.Context) error {
	if err := p.c.opt.OffsetsMap.flush(); err != nil {
		return err
	}
	text, err := json.Marshal(progress{copyVersion, p.c.report.ClusterID, p.Topic, fmt.Sprintf("%x", p.src.ID), p.Next, p.PID, p.Epoch, p.Zero})
	if err != nil {
		return err
	}
	offsets := make(kadm.Offsets)
	offsets.Add(kadm.Offset{Topic: p.To, TopicID: kadm.TopicID(p.dst.ID), Partition: p.Partition, At: p.At, LeaderEpoch: -1, Metadata: string(text)})
	err = persist(ctx, func() (bool, error) {
		resp, err := kadm.NewClient(p.c.opt.Target.Client()).CommitOffsets(ctx, p.topic.group(), offsets)
		if err == nil {
			err = resp.Error()
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("the target: committing the progress to group %s: %w", p.topic.group(), err)
	}
	p.saved, p.savedWhen = p.Next, time.Now()
	return nil
}

func (c *copier) note(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Notes = append(c.report.Notes, text)
}

// tell adds to the progress, and reports it, not too often.
func (c *copier) tell(offsets, records, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prog.Done += offsets
	c.prog.Records += records
	c.prog.Bytes += bytes
	if c.opt.Progress != nil && time.Since(c.told) > progressEvery {
		c.told = time.Now()
		c.opt.Progress(c.prog)
	}
}
