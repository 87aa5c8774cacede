package proxy

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// Fetch (1), v4–v18: rewritten. It is resolved by content, on every
// connection: any log may hold placeholders among ordinary batches.
//
//   - Requests that concern diskless topics are shrunk upstream: placeholders
//     inflate about a hundredfold, so a partition's limit is divided by the
//     expansion last seen, never below minUpstream, and the request's limit in
//     the same measure; min.bytes counts placeholder bytes, so it becomes 1; the
//     rack is blanked on diskless listeners. On other connections that is done
//     for partitions whose last answer held placeholders; requests of one that
//     never saw any pass as the bytes that the client sent.
//   - No request asks a broker for more than one of its answers may hold.
//   - Only brokers may fetch as a replica: refused.
//   - Answers: every returned batch's header is looked at. When none may be a
//     placeholder, and the client asked for no less than there is, the frame
//     passes as it came. Otherwise placeholders are replaced by the original
//     bytes, cut at the client's own limits, the partition that waited longest
//     first; the first always gets one batch.
//   - An answer that has something to give waits HydrateGrace for the rest.
//     Partitions that are late get no records and no error: their objects go on
//     being read, and when they have come, those partitions are first and are
//     waited for.
//   - A partition whose placeholder cannot be resolved, now or ever, is
//     answered KAFKA_STORAGE_ERROR with no records; the others are unharmed. A
//     placeholder is never passed on and nothing is ever skipped. No partition
//     is ever dropped from an answer: Java's client would discard it all. To
//     v5 and below, which do not know that error, it is NOT_LEADER_OR_FOLLOWER,
//     as brokers do it.
//   - A topic id whose name is not known is asked for again before the client's
//     next Fetch, so that its retry succeeds.
//   - What is hydrated is more than the broker sees: the difference counts
//     towards the client's consumer_byte_rate here (quotas.go). No answer is
//     larger than what the rate allows in a whole window, as with brokers.
//   - CurrentLeader and NodeEndpoints (v12+, v16+; KIP-951) are mapped together.

const (
	// minUpstream is the least that a partition is asked for: a placeholder
	// larger than this has more than 30,000 records.
	minUpstream = 64 << 10
	// firstExpansion is assumed of a diskless partition before any was seen.
	firstExpansion = 16
	errClusterAuth = 31
	// formerReadahead is for topics whose class is no longer diskless.
	formerReadahead = 2
	// fetchStorageErrorSince is the first version whose clients know
	// KAFKA_STORAGE_ERROR.
	fetchStorageErrorSince = 6
)

// fetchKey names a partition as the connection's Fetch version does.
type fetchKey struct {
	topic     string
	id        [16]byte
	partition int32
}

// fetchLimits are the client's own limits, by which its answer is cut.
type fetchLimits struct {
	request   int32
	partition int32 // where the partition's own is not known
	learnt    bool  // state is kept of the partitions
}

// fetchState is what a connection's fetches teach about its partitions.
type fetchState struct {
	mu           sync.Mutex
	diskless     bool   // the session, or the listener, concerns diskless topics
	placeholders bool   // the connection has seen one
	session      uint32 // counts requests that name all that they concern
	partMax      int32  // the least limit of a partition in the last request that named any
	turn         uint64
	partitions   map[fetchKey]*fetchPartition
	nameless     map[[16]byte]struct{} // topic ids to be asked for
	all          *learnt
}

// learnt counts the partitions that all connections remember something of. Of more
// than max nothing is remembered: whoever names them keeps a connection for nothing.
type learnt struct {
	partitions atomic.Int64
	max        int64
}

const (
	// learntBytes of the memory for answers allow for one more, which takes about a
	// tenth of that.
	learntBytes = 1 << 10
	// manyLearnt of one connection must leave half of the room to others.
	manyLearnt = 1000
)

// add reports whether there is room for one more of a connection that has so many.
func (l *learnt) add(have int) bool {
	n := l.partitions.Add(1)
	if n > l.max || have >= manyLearnt && n > l.max/2 {
		l.partitions.Add(-1)
		return false
	}
	return true
}

type fetchPartition struct {
	served    uint64 // turn at which it last had its chance
	late      lateness
	session   uint32 // the last that it was seen in
	expansion int32  // hydrated bytes per fetched byte, 1 after inline batches
	max       int32  // the client's own limit, 0 when not known
}

// lateness is what became of a partition's object that was not read in time.
type lateness uint8

const (
	inTime  lateness = iota
	awaited          // it is still being read
	arrived          // it was read after the answer had gone
	lost             // it turned out to be unreadable after the answer had gone
)

func (s *fetchState) partition(k fetchKey) *fetchPartition {
	p := s.partitions[k]
	if p == nil {
		if s.partitions == nil || len(s.partitions) >= wire.MaxFetchPartitions {
			s.forget()
			s.partitions = make(map[fetchKey]*fetchPartition)
		}
		p = &fetchPartition{expansion: 1}
		if s.diskless {
			p.expansion = firstExpansion
		}
		if s.all.add(len(s.partitions)) {
			s.partitions[k] = p
		}
	}
	p.session = s.session
	return p
}

// forget lets go of all partitions. mu is held.
func (s *fetchState) forget() {
	s.all.partitions.Add(-int64(len(s.partitions)))
	s.partitions = nil
}

// askLater remembers an id whose name is needed. The responder must not ask: it
// would wait for a broker that waits for it.
func (s *fetchState) askLater(id [16]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nameless == nil {
		s.nameless = make(map[[16]byte]struct{})
	}
	if len(s.nameless) < maxAsked {
		s.nameless[id] = struct{}{}
	}
}

func shrink(limit, expansion int32) int32 {
	if limit <= minUpstream {
		// A limit below a placeholder's own size would hide a batch that fits.
		return minUpstream
	}
	return max(limit/max(expansion, 1), minUpstream)
}

func (c *conn) fetch(r *request) error {
	view := &c.fetched
	defer func() { view.Partitions = vacant(view.Partitions) }()
	if err := wire.ParseFetch(view, r.in.b, r.body, r.version); err != nil {
		return err
	}
	if view.ReplicaID >= 0 {
		return c.refuseReplica(r, view)
	}
	diskless, err := c.fetchesDiskless(view, r.version)
	if err != nil {
		return err
	}
	frame := r.in.b
	r.answer = (*conn).fetchAnswer
	r.limits.request = getInt32(frame, view.MaxAt)
	r.holds = time.Duration(getInt32(frame, view.MinAt-4)) * time.Millisecond // max_wait_ms
	most := min(r.limits.request, c.p.limits.fetchable())
	if most < r.limits.request {
		putInt32(frame, view.MaxAt, most)
	}

	s := &c.fetchState
	s.mu.Lock()
	defer s.mu.Unlock()
	if view.Session <= 0 { // the request names all that it concerns
		s.diskless = false
		s.session++
	}
	s.diskless = s.diskless || diskless
	for i := range view.Partitions {
		if limit := getInt32(frame, view.Partitions[i].MaxAt); i == 0 || limit < s.partMax {
			s.partMax = limit
		}
	}
	r.limits.partition, r.limits.learnt = s.partMax, s.diskless || s.placeholders
	if !r.limits.learnt {
		return nil
	}
	for i := range view.Partitions {
		p := &view.Partitions[i]
		state := s.partition(fetchKey{c.name(p.Topic), p.TopicID, p.Partition})
		state.max = getInt32(frame, p.MaxAt)
		if s.diskless || state.expansion > 1 {
			putInt32(frame, p.MaxAt, shrink(state.max, state.expansion))
		}
	}
	shrunk, upstream := s.shrunk(r.limits.request)
	if shrunk || s.diskless {
		putInt32(frame, view.MinAt, min(getInt32(frame, view.MinAt), 1))
	}
	if s.diskless || upstream < most {
		putInt32(frame, view.MaxAt, min(upstream, c.p.limits.fetchable()))
	}
	if c.diskless && view.RackEnd-view.RackAt > 2 {
		none := []byte{0, 0}
		if r.version >= wire.FetchFlexible {
			none = []byte{1}
		}
		r.out, _ = wire.Splice(frame, []wire.Edit{{From: view.RackAt, To: view.RackEnd, With: [][]byte{none}}})
	}
	return nil
}

// shrunk reports whether any partition of the session is asked for less than
// the client asks for, and how much all together are to be asked for: so much
// that as many partitions find room upstream as in the client's own limit.
func (s *fetchState) shrunk(limit int32) (some bool, upstream int32) {
	all := int64(minUpstream)
	for _, p := range s.partitions {
		if p.session != s.session {
			continue
		}
		some = some || p.expansion > 1
		partMax := p.max
		if partMax <= 0 {
			partMax = max(s.partMax, 1)
		}
		all = max(all, int64(limit)*int64(shrink(partMax, p.expansion))/int64(partMax))
	}
	return some, int32(min(all, int64(max(limit, minUpstream))))
}

func getInt32(b []byte, at int) int32    { return int32(binary.BigEndian.Uint32(b[at:])) }
func putInt32(b []byte, at int, v int32) { binary.BigEndian.PutUint32(b[at:], uint32(v)) }

// fetchesDiskless reports whether a request concerns the diskless tier, by its
// topics or its listener. Topic ids that are not known yet are asked for. It
// need not wait: the broker answers in order, so the names precede the records.
func (c *conn) fetchesDiskless(view *wire.Fetch, version int16) (bool, error) {
	router := c.p.opt.Router()
	diskless := c.diskless
	var unknown [][16]byte
	for i := range view.Partitions {
		p := &view.Partitions[i]
		if i > 0 && p.TopicID == view.Partitions[i-1].TopicID && string(p.Topic) == string(view.Partitions[i-1].Topic) {
			continue
		}
		var topic string
		if version < wire.FetchTopicIDs {
			if diskless || !router.HasDiskless() {
				break
			}
			topic = c.name(p.Topic)
		} else if name, ok := c.p.topics.Get(p.TopicID); ok {
			topic = name
		} else {
			unknown = append(unknown, p.TopicID)
			continue
		}
		diskless = diskless || router.Place(topic, tiers.TopicFacts{Known: true}).Tier == tiers.Diskless
	}
	s := &c.fetchState
	s.mu.Lock()
	for id := range s.nameless {
		if !c.p.topics.Contains(id) {
			unknown = append(unknown, id)
		}
	}
	s.nameless = nil
	s.mu.Unlock()
	if len(unknown) == 0 {
		return diskless, nil
	}
	return diskless, c.askTopics(unknown)
}

// refuseReplica answers a Fetch that pretends to be a follower's.
func (c *conn) refuseReplica(r *request, view *wire.Fetch) error {
	resp := kmsg.NewPtrFetchResponse()
	for i, p := range view.Partitions {
		if i == 0 || !sameTopic(p.Topic, view.Partitions[i-1].Topic, p.TopicID, view.Partitions[i-1].TopicID) {
			topic := kmsg.NewFetchResponseTopic()
			topic.Topic, topic.TopicID = string(p.Topic), p.TopicID
			resp.Topics = append(resp.Topics, topic)
		}
		part := kmsg.NewFetchResponseTopicPartition()
		part.Partition, part.ErrorCode, part.HighWatermark = p.Partition, errClusterAuth, -1
		part.RecordBatches = []byte{}
		topic := &resp.Topics[len(resp.Topics)-1]
		topic.Partitions = append(topic.Partitions, part)
	}
	c.warn().Msg("refused a Fetch in the name of a replica")
	r.local = encodeResponse(r, resp)
	return c.allow(r, len(r.local)) // it may have to wait for the answers before it
}

// hydration is one partition of an answer whose records may hold placeholders.
type hydration struct {
	part     *wire.FetchResultPartition
	state    *fetchPartition
	served   uint64
	late     lateness
	max      int
	topic    string
	resolved []tiers.Piece // what it has, nil before that is known
	pieces   []tiers.Piece // what the client gets
	bytes    [][]byte
	lent     []func() // to be called when bytes are no longer needed
	size     int      // of bytes
	missed   bool     // nothing of it was there in time
	failed   bool
}

// answering is a Fetch answer while its partitions are loaded.
type answering struct {
	ctx    context.Context
	budget int           // bytes that it may give
	slots  chan struct{} // for those that read objects
	loads  sync.WaitGroup
	moved  chan struct{} // something below has changed

	mu      sync.Mutex
	ready   bool // there is something to give
	running int  // partitions that are being loaded
	owed    int  // of these, those that are waited for whatever is ready
}

func (c *conn) fetchAnswer(r *request, in *frame) ([][]byte, error) {
	body, err := wire.ResponseBody(in.b, r.api.responseFlexible(r.version))
	if err != nil {
		return nil, err
	}
	view := &c.fetchV
	defer func() { view.Partitions = vacant(view.Partitions) }()
	if err := wire.ParseFetchResult(view, in.b, body, r.version); err != nil {
		return nil, err
	}
	var work []*hydration
	plain := 0 // bytes of partitions that need no hydration
	cuts := r.limits.learnt && c.cutsInline(r, view)
	for i := range view.Partitions {
		p := &view.Partitions[i]
		if p.LeaderAt > 0 {
			topic, ok := c.fetchedTopic(r, p)
			c.mapLeader(in.b[p.LeaderAt:], topic, ok)
		}
		if p.From == p.To {
			continue
		}
		candidate := c.p.opt.Payloads.Candidate(in.b[p.From:p.To])
		if !candidate && !cuts {
			plain += p.To - p.From
			if r.limits.learnt {
				c.sawInline(p)
			}
			continue
		}
		topic, ok := c.fetchedTopic(r, p)
		if !ok && candidate {
			c.fetchState.askLater(p.TopicID)
		}
		work = append(work, &hydration{part: p, topic: topic, failed: candidate && !ok})
	}
	if len(work) == 0 && !view.Endpoints {
		return nil, nil
	}
	quota := c.charges(tiers.FetchQuota, r.clientID, 0)
	edits := c.hydrate(r, in, work, plain, quota.window())
	for _, h := range work {
		quota.bytes += h.size - (h.part.To - h.part.From)
	}
	if ms := c.p.throttle.record(c, tiers.FetchQuota, quota); ms > 0 {
		// First in every version from v1 on.
		putInt32(in.b, body, max(ms, getInt32(in.b, body)))
		c.mute(ms)
	}
	if view.Endpoints {
		tags, err := c.fetchEndpoints(r, in, view)
		if err != nil {
			return nil, err
		}
		edits = append(edits, tags)
	}
	out, _ := wire.Splice(in.b, edits)
	return out, nil
}

func (c *conn) fetchedTopic(r *request, p *wire.FetchResultPartition) (string, bool) {
	if r.version < wire.FetchTopicIDs {
		return string(p.Topic), true
	}
	return c.p.topics.Get(p.TopicID)
}

// cutsInline reports whether ordinary batches must be cut too: the broker was
// asked for more than a client that asks for little takes, and has given it.
func (c *conn) cutsInline(r *request, view *wire.FetchResult) bool {
	given := 0
	s := &c.fetchState
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range view.Partitions {
		p := &view.Partitions[i]
		if p.From == p.To {
			continue
		}
		limit := s.partition(fetchKey{string(p.Topic), p.TopicID, p.Partition}).max
		if limit <= 0 {
			limit = r.limits.partition
		}
		given += p.To - p.From
		if limit < minUpstream && p.To-p.From > int(limit) || r.limits.request < minUpstream && given > int(r.limits.request) {
			return true
		}
	}
	return false
}

// sawInline lifts the shrink of a partition that returns ordinary batches: a
// shrunk limit would crawl over them.
func (c *conn) sawInline(p *wire.FetchResultPartition) {
	s := &c.fetchState
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.partition(fetchKey{string(p.Topic), p.TopicID, p.Partition})
	state.expansion, state.late = 1, inTime
	s.turn++
	state.served = s.turn
}

// hydrate decides what each partition may give within the client's limits,
// loads it, and says what to replace in the frame. quota is the most that the
// client's byte rate allows of one answer.
func (c *conn) hydrate(r *request, in *frame, work []*hydration, plain, quota int) []wire.Edit {
	s := &c.fetchState
	s.mu.Lock()
	for _, h := range work {
		h.state = s.partition(fetchKey{string(h.part.Topic), h.part.TopicID, h.part.Partition})
		h.served, h.late, h.max = h.state.served, h.state.late, int(h.state.max)
		if h.max <= 0 {
			h.max = int(r.limits.partition)
		}
		h.failed = h.failed || h.late == lost
	}
	s.mu.Unlock()
	turn := slices.Clone(work)
	slices.SortStableFunc(turn, func(a, b *hydration) int {
		if a.late == awaited || b.late == awaited {
			// It must not keep the room of those that may be there.
			return cmp.Compare(boolRank(a.late == awaited), boolRank(b.late == awaited))
		}
		return cmp.Compare(a.served, b.served)
	})

	ctx, cut := context.WithTimeout(c.present, c.p.limits.HydrateTimeout)
	defer cut()
	budget := min(int(r.limits.request), c.p.limits.FetchBytes, quota)
	a := &answering{ctx: ctx, budget: budget, slots: make(chan struct{}, c.p.limits.HydrateConcurrency), moved: make(chan struct{}, 1), ready: plain > 0}
	for rest := turn; ; {
		rest = c.begin(r, in, a, rest, plain, budget)
		if a.settle(c.p.limits.HydrateGrace, len(rest) > 0) || ctx.Err() != nil {
			break
		}
		// What has the room may never come: the others get their chance too,
		// and first those that need not be read.
		for _, h := range rest {
			c.resolve(a, in, h)
		}
		slices.SortStableFunc(rest, func(a, b *hydration) int { return cmp.Compare(boolRank(!a.cached()), boolRank(!b.cached())) })
	}
	cut()
	a.loads.Wait()
	given, first := plain, true
	for _, h := range turn {
		r.lent = append(r.lent, h.lent...)
		if !first && given+h.size > budget {
			h.bytes, h.size = nil, 0 // it is in memory, and has its turn next time
		}
		given, first = given+h.size, first && h.size == 0
	}
	return c.conclude(r, in, work)
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// begin starts to load what finds room, and returns those that found none.
func (c *conn) begin(r *request, in *frame, a *answering, turn []*hydration, used, budget int) (rest []*hydration) {
	first := true
	for _, h := range turn {
		if used >= budget && !first {
			rest = append(rest, h)
			continue
		}
		if c.resolve(a, in, h); len(h.resolved) == 0 {
			continue
		}
		size := 0
		for i, piece := range h.resolved {
			n := piece.Size()
			// The very first batch is given whatever its size; so a partition
			// whose next batch is larger than its limit waits for its turn.
			if first && !c.roomForFirst(a, r, n) {
				return nil // memory is short; the client asks again
			}
			if !first && (size+n > h.max || used+n > budget || !r.hold(c.p.hydrated, n)) {
				break
			}
			first = false
			h.pieces, size, used = h.resolved[:i+1], size+n, used+n
		}
		if len(h.pieces) == 0 {
			rest = append(rest, h)
			continue
		}
		a.start(h, c.p.limits.HydrateGrace)
	}
	return rest
}

// roomForFirst takes room for n bytes, and waits for it unless the answer holds
// some already.
func (c *conn) roomForFirst(a *answering, r *request, n int) bool {
	if r.hydrated > 0 {
		return r.hold(c.p.hydrated, n)
	}
	return r.awaitRoom(a.ctx, c, n) == nil
}

// resolve finds out once what a partition has, none when it cannot be told.
func (c *conn) resolve(a *answering, in *frame, h *hydration) {
	if h.failed || h.resolved != nil {
		return
	}
	records := in.b[h.part.From:h.part.To]
	tp := tiers.TopicPartition{Topic: h.topic, Partition: h.part.Partition}
	// By its size a broker gives many times what an answer then holds of originals.
	pieces, size, err := c.p.opt.Payloads.Resolve(a.ctx, tp, records, max(min(h.max, a.budget), 0), readahead(c.p.opt.Router(), h.topic))
	h.resolved, h.failed = pieces, err != nil && len(pieces) == 0
	c.learnExpansion(h, len(records), size)
}

func (h *hydration) cached() bool { return len(h.resolved) > 0 && h.resolved[0].Cached() }

// start loads a partition's pieces. One whose object has been read since its
// last chance is waited for, however long it takes to have it again: or it
// might be late for ever.
func (a *answering) start(h *hydration, grace time.Duration) {
	a.mu.Lock()
	a.running++
	if h.late == arrived {
		a.owed++
	}
	a.mu.Unlock()
	a.loads.Go(func() {
		h.load(a, grace)
		a.mu.Lock()
		a.running--
		if h.late == arrived {
			a.owed--
		}
		a.mu.Unlock()
		a.move()
	})
}

func (a *answering) move() {
	select {
	case a.moved <- struct{}{}:
	default:
	}
}

// settle waits for what is being loaded: for all of it, or, once there is
// something to give, no longer than grace. It reports whether the answer may
// go; if not, others are to have the room: there is more to be loaded, and
// nothing of this came within grace.
func (a *answering) settle(grace time.Duration, more bool) bool {
	var timer <-chan time.Time
	expired := false
	for {
		a.mu.Lock()
		ready, running, owed := a.ready, a.running, a.owed
		a.mu.Unlock()
		switch {
		case running == 0, expired && ready && owed == 0, expired && !ready && more:
			return ready || !more
		case timer == nil && (ready || more):
			timer = time.After(grace)
		}
		select {
		case <-a.moved:
		case <-timer:
			expired = true
		}
	}
}

// load reads a partition's pieces. What precedes one that cannot be read, or is
// late, is still given.
func (h *hydration) load(a *answering, grace time.Duration) {
	for i, piece := range h.pieces {
		b, done, err := a.load(piece, h.late == awaited, grace)
		if err != nil {
			if i == 0 {
				h.missed = errors.Is(err, context.Canceled)
				h.failed = !h.missed && !errors.Is(err, errNotStarted)
			}
			return
		}
		h.bytes, h.size = append(h.bytes, b...), h.size+piece.Size()
		if done != nil {
			h.lent = append(h.lent, done)
		}
		if i == 0 {
			a.mu.Lock()
			a.ready = true
			a.mu.Unlock()
			a.move()
		}
	}
}

// load reads one piece. So many at a time read objects; one that takes longer
// than grace no longer counts, or a few that never come would stop all others.
func (a *answering) load(piece tiers.Piece, started bool, grace time.Duration) (b [][]byte, done func(), err error) {
	if started || piece.Cached() {
		return piece.Lend(a.ctx)
	}
	select {
	case a.slots <- struct{}{}:
	case <-a.ctx.Done():
		return nil, nil, errNotStarted
	}
	leave := sync.OnceFunc(func() { <-a.slots })
	slow := time.AfterFunc(grace, leave)
	defer leave()
	defer slow.Stop()
	return piece.Lend(a.ctx)
}

// errNotStarted is a piece that was not asked for before the answer went. It is
// not to blame, and has its turn next time.
var errNotStarted = errors.New("other objects were read")

// conclude says what to replace in the frame, and remembers who had its chance.
func (c *conn) conclude(r *request, in *frame, work []*hydration) []wire.Edit {
	s := &c.fetchState
	edits := make([]wire.Edit, 0, len(work)+1)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range work {
		if h.failed {
			h.bytes = nil
			c.p.metrics.storageErrors.Inc()
			putStorageError(in.b[h.part.ErrorAt:], r.version, fetchStorageErrorSince)
		}
		switch {
		case h.failed || len(h.bytes) > 0:
			// One that cannot be read has had its chance too: it must not keep
			// the room of the others.
			s.turn++
			h.state.served, h.state.late = s.turn, inTime
		case h.missed:
			c.p.metrics.late.Inc()
			c.watch(h)
		}
		for _, b := range h.bytes {
			c.p.metrics.hydratedBytes.Add(float64(len(b)))
		}
		edits = append(edits, wire.RecordsEdit(h.part.LenAt, h.part.To, r.version >= wire.FetchFlexible, h.bytes...))
	}
	return edits
}

// watch notes when the object of a partition that was late has been read, or
// cannot be. fetchState.mu is held.
func (c *conn) watch(h *hydration) {
	if h.state.late == awaited {
		return // somebody watches
	}
	state, piece := h.state, h.pieces[0]
	state.late = awaited
	ctx, cancel := context.WithTimeout(c.present, c.p.limits.HydrateTimeout)
	go func() {
		defer cancel()
		err := piece.Await(ctx)
		c.fetchState.mu.Lock()
		defer c.fetchState.mu.Unlock()
		if state.late != awaited {
			return // it was given meanwhile
		}
		state.late = arrived
		if err != nil {
			state.late = lost
		}
	}()
}

// readahead is the class's; a topic that has left the diskless tier gets a
// little, for what its log still holds.
func readahead(r *router.Router, topic string) int {
	class := r.Place(topic, tiers.TopicFacts{Known: true}).Class
	if class.Tier != tiers.Diskless {
		return formerReadahead
	}
	return class.Readahead
}

// learnExpansion remembers how much what a partition gave upstream grew, in all:
// where placeholders and ordinary batches alternate, either alone would ask for
// far too little or far too much.
func (c *conn) learnExpansion(h *hydration, fetched, size int) {
	if len(h.resolved) == 0 {
		return
	}
	placeholders := size > fetched
	for _, p := range h.resolved {
		placeholders = placeholders || p.Placeholder()
	}
	s := &c.fetchState
	s.mu.Lock()
	defer s.mu.Unlock()
	h.state.expansion = 1
	if placeholders {
		s.placeholders = true
		h.state.expansion = int32(max(size/fetched, 1))
	}
}

// fetchEndpoints maps NodeEndpoints by encoding the answer's tagged fields anew.
func (c *conn) fetchEndpoints(r *request, in *frame, view *wire.FetchResult) (wire.Edit, error) {
	// A response without topics ends in the same tagged fields.
	resp, bare := kmsg.NewPtrFetchResponse(), kmsg.NewPtrFetchResponse()
	if err := decodeResponse(r, in, resp); err != nil {
		return wire.Edit{}, err
	}
	bare.UnknownTags = resp.UnknownTags
	bare.Brokers = addresses(c.p, c.p.opt.Router().HasDiskless(), resp.Brokers,
		func(b kmsg.FetchResponseBroker) int32 { return b.NodeID },
		func(b *kmsg.FetchResponseBroker, id int32, host string, port int32) {
			b.NodeID, b.Host, b.Port = id, host, port
		})
	bare.SetVersion(r.version)
	const untilTags = 4 + 2 + 4 + 1 // throttle time, error, session, no topics
	return wire.Edit{From: view.TagsFrom, To: view.TagsTo, With: [][]byte{bare.AppendTo(nil)[untilTags:]}}, nil
}
