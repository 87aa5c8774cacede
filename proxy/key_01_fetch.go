package proxy

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// Fetch (1), v4–v18: rewritten. It is resolved by content, on every
// connection: any log may hold placeholders among ordinary batches.
//
//   - Requests that concern diskless topics are shrunk upstream: placeholders
//     inflate about a hundredfold, so byte limits are divided by the expansion
//     last seen, per partition, never below minUpstream; min.bytes counts
//     placeholder bytes, so it becomes 1; the rack is blanked on diskless
//     listeners. Other requests pass as the bytes that the client sent.
//   - No request asks a broker for more than one of its answers may hold.
//   - Only brokers may fetch as a replica: refused.
//   - Answers: every returned batch's header is looked at. When none may be a
//     placeholder, the frame passes as it came. Otherwise placeholders are
//     replaced by the original bytes, cut at the client's own limits, the
//     partition that waited longest first; the first always gets one batch.
//   - A partition whose placeholder cannot be resolved, now or ever, is
//     answered KAFKA_STORAGE_ERROR with no records; the others are unharmed. A
//     placeholder is never passed on and nothing is ever skipped. No partition
//     is ever dropped from an answer: Java's client would discard it all. To
//     v5 and below, which do not know that error, it is NOT_LEADER_OR_FOLLOWER,
//     as brokers do it.
//   - A topic id whose name is not known is asked for again before the client's
//     next Fetch, so that its retry succeeds.
//   - CurrentLeader and NodeEndpoints (v12+, v16+; KIP-951) are mapped together.

const (
	// minUpstream is the least that a partition is asked for: a placeholder
	// larger than this has more than 30,000 records.
	minUpstream = 64 << 10
	// firstExpansion is assumed of a diskless partition before any was seen.
	firstExpansion = 16
	// maxFetchPartitions bounds what is remembered of a connection's partitions.
	maxFetchPartitions = 100_000
	errClusterAuth     = 31
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
	diskless  bool  // state is kept of the partitions
}

// fetchState is what a connection's fetches teach about its partitions.
type fetchState struct {
	mu         sync.Mutex
	diskless   bool  // the session, or the listener, concerns diskless topics
	partMax    int32 // the least limit of a partition in the last request that named any
	turn       uint64
	partitions map[fetchKey]*fetchPartition
	nameless   map[[16]byte]struct{} // topic ids to be asked for
}

type fetchPartition struct {
	served    uint64 // turn at which it last had its chance
	expansion int32  // hydrated bytes per fetched byte, 1 after an inline batch
	max       int32  // the client's own limit, 0 when not known
}

func (s *fetchState) partition(k fetchKey) *fetchPartition {
	p := s.partitions[k]
	if p == nil {
		if s.partitions == nil || len(s.partitions) >= maxFetchPartitions {
			s.partitions = make(map[fetchKey]*fetchPartition)
		}
		p = &fetchPartition{expansion: firstExpansion}
		s.partitions[k] = p
	}
	return p
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
	if err := wire.ParseFetch(view, r.in.b, r.body, r.version); err != nil {
		return err
	}
	if view.ReplicaID >= 0 {
		return c.refuseReplica(r)
	}
	diskless, err := c.fetchesDiskless(view, r.version)
	if err != nil {
		return err
	}
	frame := r.in.b
	r.answer = (*conn).fetchAnswer
	r.limits.request = getInt32(frame, view.MaxAt)
	upstream := min(r.limits.request, c.p.limits.fetchable())
	if upstream < r.limits.request {
		putInt32(frame, view.MaxAt, upstream)
	}

	s := &c.fetchState
	s.mu.Lock()
	defer s.mu.Unlock()
	if view.Session <= 0 { // the request names all that it concerns
		s.diskless = false
		if view.Session == 0 {
			s.partitions = nil
		}
	}
	s.diskless = s.diskless || diskless
	for i := range view.Partitions {
		if limit := getInt32(frame, view.Partitions[i].MaxAt); i == 0 || limit < s.partMax {
			s.partMax = limit
		}
	}
	r.limits.partition, r.limits.diskless = s.partMax, s.diskless
	if !s.diskless {
		return nil
	}
	for i := range view.Partitions {
		p := &view.Partitions[i]
		state := s.partition(fetchKey{c.name(p.Topic), p.TopicID, p.Partition})
		state.max = getInt32(frame, p.MaxAt)
		putInt32(frame, p.MaxAt, shrink(state.max, state.expansion))
	}
	least := int32(firstExpansion)
	for _, state := range s.partitions {
		least = min(least, state.expansion)
	}
	putInt32(frame, view.MaxAt, min(upstream, shrink(r.limits.request, least)))
	putInt32(frame, view.MinAt, min(getInt32(frame, view.MinAt), 1))
	if c.diskless && view.RackEnd-view.RackAt > 2 {
		none := []byte{0, 0}
		if r.version >= wire.FetchFlexible {
			none = []byte{1}
		}
		r.out, _ = wire.Splice(frame, []wire.Edit{{From: view.RackAt, To: view.RackEnd, With: [][]byte{none}}})
	}
	return nil
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
	return diskless, c.askTopics(unknown, false)
}

// refuseReplica answers a Fetch that pretends to be a follower's.
func (c *conn) refuseReplica(r *request) error {
	req := kmsg.NewPtrFetchRequest()
	if err := decodeRequest(r, req); err != nil {
		return err
	}
	resp := kmsg.NewPtrFetchResponse()
	for _, t := range req.Topics {
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic, topic.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			part := kmsg.NewFetchResponseTopicPartition()
			part.Partition, part.ErrorCode, part.HighWatermark = p.Partition, errClusterAuth, -1
			part.RecordBatches = []byte{}
			topic.Partitions = append(topic.Partitions, part)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	c.p.warn(c.log).Msg("refused a Fetch in the name of a replica")
	r.local = encodeResponse(r, resp)
	return nil
}

// hydration is one partition of an answer whose records may hold placeholders.
type hydration struct {
	part   *wire.FetchResultPartition
	state  *fetchPartition
	served uint64
	max    int
	topic  string
	pieces []tiers.Piece // what the client gets
	bytes  [][]byte
	failed bool
}

func (c *conn) fetchAnswer(r *request, in *frame) ([][]byte, error) {
	body, err := wire.ResponseBody(in.b, r.api.responseFlexible(r.version))
	if err != nil {
		return nil, err
	}
	view := &c.fetchV
	if err := wire.ParseFetchResult(view, in.b, body, r.version); err != nil {
		return nil, err
	}
	var work []*hydration
	plain := 0 // bytes of partitions that need no hydration
	for i := range view.Partitions {
		p := &view.Partitions[i]
		if p.LeaderAt > 0 {
			topic, ok := c.fetchedTopic(r, p)
			c.mapLeader(in.b[p.LeaderAt:], topic, ok)
		}
		if p.From == p.To {
			continue
		}
		if !c.p.opt.Payloads.Candidate(in.b[p.From:p.To]) {
			plain += p.To - p.From
			if r.limits.diskless {
				c.sawInline(p)
			}
			continue
		}
		topic, ok := c.fetchedTopic(r, p)
		if !ok {
			c.fetchState.askLater(p.TopicID)
		}
		work = append(work, &hydration{part: p, topic: topic, failed: !ok})
	}
	if len(work) == 0 && !view.Endpoints {
		return nil, nil
	}
	edits := c.hydrate(r, in, work, plain)
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

// sawInline lifts the shrink of a partition that returns ordinary batches: a
// shrunk limit would crawl over them.
func (c *conn) sawInline(p *wire.FetchResultPartition) {
	s := &c.fetchState
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.partition(fetchKey{string(p.Topic), p.TopicID, p.Partition})
	state.expansion = 1
	s.turn++
	state.served = s.turn
}

// hydrate decides what each partition may give within the client's limits,
// loads it, and says what to replace in the frame.
func (c *conn) hydrate(r *request, in *frame, work []*hydration, used int) []wire.Edit {
	s := &c.fetchState
	s.mu.Lock()
	for _, h := range work {
		h.state = s.partition(fetchKey{string(h.part.Topic), h.part.TopicID, h.part.Partition})
		h.served, h.max = h.state.served, int(h.state.max)
		if h.max <= 0 {
			h.max = int(r.limits.partition)
		}
	}
	s.mu.Unlock()
	turn := slices.Clone(work)
	slices.SortStableFunc(turn, func(a, b *hydration) int { return cmp.Compare(a.served, b.served) })

	ctx, cancel := context.WithTimeout(c.present, c.p.limits.HydrateTimeout)
	defer cancel()
	var loads errgroup.Group
	loads.SetLimit(c.p.limits.HydrateConcurrency)
	rules := c.p.opt.Router()
	budget := min(int(r.limits.request), c.p.limits.FetchBytes)
	first, full := true, false
	for _, h := range turn {
		if h.failed || full || used >= budget && !first {
			continue
		}
		records := in.b[h.part.From:h.part.To]
		pieces, err := c.p.opt.Payloads.Resolve(ctx, tiers.TopicPartition{Topic: h.topic, Partition: h.part.Partition}, records, readahead(rules, h.topic))
		h.failed = err != nil && len(pieces) == 0
		c.learnExpansion(h, pieces, len(records))
		size := 0
		for i, piece := range pieces {
			n := piece.Size()
			// The very first batch is given whatever its size; so a partition
			// whose next batch is larger than its limit waits for its turn.
			if first && r.awaitRoom(ctx, c, n) != nil {
				full = true // nothing this time; the client asks again
				break
			}
			if !first && (size+n > h.max || used+n > budget || !r.hold(c.p.hydrated, n)) {
				break
			}
			first = false
			h.pieces, size, used = pieces[:i+1], size+n, used+n
		}
		if len(h.pieces) > 0 {
			loads.Go(func() error { h.load(ctx); return nil })
		}
	}
	_ = loads.Wait()

	edits := make([]wire.Edit, 0, len(work)+1)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range work {
		if h.failed {
			h.bytes = nil
			c.p.metrics.storageErrors.Inc()
			code := uint16(errKafkaStorageError)
			if r.version < fetchStorageErrorSince {
				code = errNotLeader
			}
			binary.BigEndian.PutUint16(in.b[h.part.ErrorAt:], code)
		}
		if h.failed || len(h.bytes) > 0 {
			// One that cannot be read has had its chance too: it must not keep
			// the room of the others.
			s.turn++
			h.state.served = s.turn
		}
		for _, b := range h.bytes {
			c.p.metrics.hydratedBytes.Add(float64(len(b)))
		}
		edits = append(edits, wire.RecordsEdit(h.part.LenAt, h.part.To, r.version >= wire.FetchFlexible, h.bytes...))
	}
	return edits
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

// learnExpansion remembers how much a partition's batches grew.
func (c *conn) learnExpansion(h *hydration, pieces []tiers.Piece, fetched int) {
	if len(pieces) == 0 {
		return
	}
	expansion, size := int32(1), 0
	for _, p := range pieces {
		if !p.Placeholder() {
			size = 0
			break
		}
		size += p.Size()
	}
	if size > 0 {
		expansion = int32(max(size/fetched, 1))
	}
	c.fetchState.mu.Lock()
	h.state.expansion = expansion
	c.fetchState.mu.Unlock()
}

// load reads a partition's pieces. What precedes one that cannot be read is
// still given.
func (h *hydration) load(ctx context.Context) {
	for i, piece := range h.pieces {
		b, err := piece.Load(ctx)
		if err != nil {
			h.failed = i == 0
			return
		}
		h.bytes = append(h.bytes, b...)
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
	twins := c.p.opt.Router().HasDiskless()
	for _, b := range resp.Brokers {
		c.p.eachAddress(b.NodeID, twins, func(id, port int32) {
			b.NodeID, b.Host, b.Port = id, c.p.opt.Layout.Advertise, port
			bare.Brokers = append(bare.Brokers, b)
		})
	}
	bare.SetVersion(r.version)
	const untilTags = 4 + 2 + 4 + 1 // throttle time, error, session, no topics
	return wire.Edit{From: view.TagsFrom, To: view.TagsTo, With: [][]byte{bare.AppendTo(nil)[untilTags:]}}, nil
}
