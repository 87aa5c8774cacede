package proxy

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// ShareFetch (78), v1–v2 (KIP-932): rewritten.
//
//   - On a diskless listener the member id is another one, derived from the
//     client's: brokers keep one share session for a group's member, and the
//     member's connections to a broker and to its diskless twin would evict each
//     other's. What was acquired under the one is acknowledged under the one,
//     for a client acknowledges where it has fetched.
//   - Brokers count deliveries, and archive a record that was acquired too often:
//     for the group it is gone. So nothing is acquired that cannot be read: while
//     a store gives no answer, partitions of its classes are kept out of the
//     broker's session, and so is any partition of which something could not be
//     read, until that can be (shares.go). The client sees no records there.
//   - All that was acquired is hydrated, whatever its size: a client acknowledges
//     what is missing as gaps. So it is bounded before: max.records becomes what
//     the connection's memory holds of records as large as the last ones.
//   - What cannot be read is left out together with its acquired range; the
//     partition is KAFKA_STORAGE_ERROR if that leaves nothing. The locks time out,
//     and Kafka delivers again. It is tried again while the records are locked for
//     this client, but only as long as no partition of the answer has anything to
//     give: one does not hold up the others. A placeholder is never passed on.
//   - What is hydrated counts towards the client's consumer_byte_rate, as in
//     Fetch.
//   - CurrentLeader and NodeEndpoints are mapped.

const (
	errNotLeaderOrFollower      = 6
	errFencedLeaderEpoch        = 74
	errShareSessionNotFound     = 122
	errShareSessionLimitReached = 133

	// firstShareRecord is how large records are taken to be before any was seen.
	firstShareRecord = 64 << 10
	// maxSharePause bounds how long an answer waits when there is nothing that
	// could be acquired, whatever max.wait says: about as long as clients' default.
	maxSharePause = 2 * time.Second
	// defaultShareLock is the broker's group.share.record.lock.duration.ms, for
	// answers that do not say.
	defaultShareLock = 30 * time.Second
)

func (c *conn) shareFetch(r *request) error {
	req := kmsg.NewPtrShareFetchRequest()
	if err := c.decodeRequest(r, req); err != nil {
		return err
	}
	defer c.forgo(r) // brokers may hold it for long
	c.shareAs(&req.MemberID)
	session := c.shares.session(req.GroupID, req.MemberID, req.ShareSessionEpoch)
	refused := int16(0)
	switch {
	case session == nil:
		refused = errShareSessionNotFound // which partitions it has is not known here; a new one says
	case session.crowded(req):
		session.refuse() // the broker's epoch stays behind
		refused = errShareSessionLimitReached
	}
	if refused != 0 {
		resp := kmsg.NewPtrShareFetchResponse()
		resp.ErrorCode = refused
		r.local = encodeResponse(r, resp)
		return nil
	}
	if err := c.learnShared(req); err != nil {
		return err
	}
	idle := session.arrange(req, c.unreadable)
	if c.diskless || session.sawPlaceholders() {
		req.MinBytes = min(req.MinBytes, 1)
		room := min(int64(req.MaxBytes), int64(c.p.limits.FetchBytes), c.p.hydrated.max/2)
		req.MaxRecords = session.affordable(room, req.MaxRecords)
	}
	pause := time.Duration(0)
	if idle {
		pause = min(time.Duration(req.MaxWaitMillis)*time.Millisecond, maxSharePause)
	}
	r.holds = time.Duration(req.MaxWaitMillis) * time.Millisecond
	replaceBody(r, req)
	r.answer = func(c *conn, r *request, in *frame) ([][]byte, error) {
		return c.shareFetchAnswer(r, in, session, pause)
	}
	return nil
}

// learnShared asks for the names of topics that the request is the first to
// name. The answer precedes the records.
func (c *conn) learnShared(req *kmsg.ShareFetchRequest) error {
	var unknown [][16]byte
	for _, t := range req.Topics {
		if !c.p.topics.Contains(t.TopicID) {
			unknown = append(unknown, t.TopicID)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return c.askTopics(unknown)
}

// unreadable reports whether a partition must not be acquired now.
func (c *conn) unreadable(p sharePartition) bool {
	if c.p.withheld.has(p) {
		return true
	}
	topic, ok := c.p.topics.Get(p.topic)
	if !ok {
		return false
	}
	class := c.p.opt.Router().Place(topic, tiers.TopicFacts{Known: true}).Class
	return class.Tier == tiers.Diskless && !c.p.opt.Payloads.Readable(class)
}

// shared is one partition of an answer that holds placeholders.
type shared struct {
	part    *kmsg.ShareFetchResponseTopicPartition
	key     sharePartition
	topic   string
	records []byte // as the broker gave them
	pieces  []tiers.Piece
	size    int // of what the pieces yield
	given   int // pieces of which loaded has the bytes
	loaded  [][]byte
}

func (c *conn) shareFetchAnswer(r *request, in *frame, session *shareSession, pause time.Duration) ([][]byte, error) {
	resp := kmsg.NewPtrShareFetchResponse()
	if err := decodeResponse(r, in, resp); err != nil {
		return nil, err
	}
	if resp.ErrorCode != 0 {
		session.refuse()
	}
	var work []*shared
	changed, records := len(resp.NodeEndpoints) > 0, false
	resp.NodeEndpoints = addresses(c.p, c.p.opt.Router().HasDiskless(), resp.NodeEndpoints,
		func(b kmsg.ShareFetchResponseNodeEndpoint) int32 { return b.NodeID },
		func(b *kmsg.ShareFetchResponseNodeEndpoint, id int32, host string, port int32) {
			b.NodeID, b.Host, b.Port = id, host, port
		})
	for i := range resp.Topics {
		t := &resp.Topics[i]
		topic, known := c.p.topics.Get(t.TopicID)
		for j := range t.Partitions {
			p := &t.Partitions[j]
			if leaderHint(p.ErrorCode) || leaderHint(p.AcknowledgeErrorCode) {
				p.CurrentLeader.LeaderID = c.shownLeader(p.CurrentLeader.LeaderID, topic, known)
				changed = true
			}
			records = records || len(p.Records) > 0
			if len(p.Records) > 0 && c.p.opt.Payloads.Candidate(p.Records) {
				work = append(work, &shared{part: p, key: sharePartition{t.TopicID, p.Partition}, topic: topic, records: p.Records})
			}
		}
	}
	if len(work) > 0 {
		lock := time.Duration(resp.AcquisitionLockTimeoutMillis) * time.Millisecond
		if lock <= 0 {
			lock = defaultShareLock
		}
		throttled := c.hydrateShared(r, session, work, lock-lock/4)
		resp.ThrottleMillis = max(resp.ThrottleMillis, throttled)
		c.mute(throttled)
		changed = true
	}
	if !records && pause > 0 && resp.ErrorCode == 0 {
		sleep(c.present, pause) // nothing was asked of the broker, so it did not wait
	}
	if !changed {
		return nil, nil
	}
	return [][]byte{encodeResponse(r, resp)}, nil
}

// hydrateShared replaces placeholders, and leaves out what cannot be read
// within the time that the client has for its records. It returns for how many
// milliseconds the client is to be throttled.
func (c *conn) hydrateShared(r *request, session *shareSession, work []*shared, within time.Duration) int32 {
	ctx, cancel := context.WithTimeout(c.present, within)
	defer cancel()
	total, count := 0, 0
	unresolved := c.tryShared(ctx, work, func(ctx context.Context, s *shared) (some bool, err error) {
		// Keys may have to be read first: what is to be loaded then needs time too.
		ctx, cancel := context.WithTimeout(ctx, within/2)
		defer cancel()
		err = c.resolveShared(ctx, s)
		return len(s.pieces) > 0, err
	})
	for _, s := range work {
		for _, p := range s.pieces {
			s.size += p.Size()
			count += p.Records()
		}
		total += s.size
	}
	session.learn(total, count)
	// Twice: once here, and once encoded.
	room := r.awaitRoom(ctx, c, 2*total)
	unread := make([]error, len(work))
	if room == nil { // or else the locks time out
		unread = c.tryShared(ctx, work, func(ctx context.Context, s *shared) (some bool, err error) {
			err = s.load(ctx)
			return s.given > 0, err
		})
	}
	for i, s := range work {
		switch {
		case unread[i] != nil:
			c.withholdShared(s, s.given)
		case unresolved[i] != nil:
			c.withholdShared(s, len(s.pieces))
		}
	}
	quota := c.charges(tiers.FetchQuota, r.clientID, 0)
	for _, s := range work {
		size := s.settle()
		c.p.metrics.hydratedBytes.Add(float64(size))
		quota.bytes += size - len(s.records)
	}
	return c.p.throttle.record(c, tiers.FetchQuota, quota)
}

// between tries of what cannot be read, while the client's locks last.
const shareRetry = 500 * time.Millisecond

// tryShared tries something with every partition of an answer, and again with
// those that have failed while there is nothing to give of any: what is left out
// has been delivered, as brokers count, but nobody waits for it.
func (c *conn) tryShared(ctx context.Context, work []*shared, try func(context.Context, *shared) (some bool, err error)) []error {
	errs := make([]error, len(work))
	var some atomic.Bool
	for again := false; ; again = true {
		var tries errgroup.Group
		tries.SetLimit(c.p.limits.HydrateConcurrency)
		for i, s := range work {
			if again && errs[i] == nil {
				continue
			}
			tries.Go(func() error {
				given, err := try(ctx, s)
				if errs[i] = err; given {
					some.Store(true)
				}
				return err
			})
		}
		if tries.Wait() == nil || some.Load() || !sleep(ctx, shareRetry) {
			return errs
		}
	}
}

// resolveShared finds out what a partition holds, or what precedes the batch that
// does not verify.
func (c *conn) resolveShared(ctx context.Context, s *shared) (err error) {
	if s.topic == "" {
		return nil
	}
	tp := tiers.TopicPartition{Topic: s.topic, Partition: s.key.partition}
	s.pieces, _, err = c.p.opt.Payloads.Resolve(ctx, tp, s.records, math.MaxInt, readahead(c.p.opt.Router(), s.topic))
	return err
}

// load goes on behind what was given already.
func (s *shared) load(ctx context.Context) error {
	for _, piece := range s.pieces[s.given:] {
		b, err := piece.Load(ctx)
		if err != nil {
			return err
		}
		s.given, s.loaded = s.given+1, append(s.loaded, b...)
	}
	return nil
}

// withholdShared keeps a partition from being acquired until its n-th batch can
// be read.
func (c *conn) withholdShared(s *shared, n int) {
	_, rest := s.after(n)
	batch, _, ok := wire.NextBatch(rest)
	if !ok {
		return
	}
	batch = append(wire.Batch(nil), batch...) // the frame is given back
	tp := tiers.TopicPartition{Topic: s.topic, Partition: s.key.partition}
	class := c.p.opt.Router().Place(s.topic, tiers.TopicFacts{Known: true}).Class
	c.p.withheld.add(c.p.ctx, s.key, func(ctx context.Context) (readable, storeIsWell bool) {
		pieces, _, err := c.p.opt.Payloads.Resolve(ctx, tp, batch, math.MaxInt, 0)
		if err == nil && len(pieces) > 0 {
			err = pieces[0].Await(ctx)
		}
		return err == nil, class.Tier != tiers.Diskless || c.p.opt.Payloads.Readable(class)
	})
	c.p.metrics.storageErrors.Inc()
	c.warn().Str("topic", s.topic).Int32("partition", s.key.partition).Int64("offset", wire.Batch(batch).BaseOffset()).
		Msg("records of a share group were acquired and cannot be read; the partition is not asked for until they can be, and Kafka delivers them again")
}

// after skips the first n batches; end is the offset behind them, less than any
// other when there are none.
func (s *shared) after(n int) (end int64, rest []byte) {
	end, rest = math.MinInt64, s.records
	for range n {
		batch, behind, ok := wire.NextBatch(rest)
		if !ok {
			break
		}
		end, rest = batch.BaseOffset()+int64(batch.LastOffsetDelta())+1, behind
	}
	return end, rest
}

// settle puts into the answer what was read, and of what was acquired only that:
// a client acknowledges as gaps whatever it was told to have and has not.
func (s *shared) settle() (size int) {
	for _, b := range s.loaded {
		size += len(b)
	}
	s.part.Records = make([]byte, 0, size)
	for _, b := range s.loaded {
		s.part.Records = append(s.part.Records, b...)
	}
	end, _ := s.after(s.given)
	kept := s.part.AcquiredRecords[:0]
	for _, a := range s.part.AcquiredRecords {
		if a.FirstOffset < end {
			a.LastOffset = min(a.LastOffset, end-1)
			kept = append(kept, a)
		}
	}
	if s.part.AcquiredRecords = kept; len(kept) == 0 {
		s.part.Records = nil
		s.part.ErrorCode = errKafkaStorageError
	}
	return size
}

// sleep reports whether ctx lasted that long.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func leaderHint(code int16) bool {
	return code == errNotLeaderOrFollower || code == errFencedLeaderEpoch
}
