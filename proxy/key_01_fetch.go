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
//   - Only brokers may fetch as a replica: refused.
//   - Answers: every returned batch's header is looked at. When none may be a
//     placeholder, the frame passes as it came. Otherwise placeholders are
//     replaced by the original bytes, cut at the client's own limits, the
//     partition that waited longest first; the first always gets one batch.
//   - A partition whose placeholder cannot be resolved, now or ever, is
//     answered KAFKA_STORAGE_ERROR with no records; the others are unharmed. A
//     placeholder is never passed on and nothing is ever skipped. No partition
//     is ever dropped from an answer: Java's client would discard it all.
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
)

// fetchKey names a partition as the connection's Fetch version does.
type fetchKey struct {
	topic     string
	id        [16]byte
	partition int32
}

// fetchState is what a connection's fetches teach about its partitions.
type fetchState struct {
	mu         sync.Mutex
	diskless   bool // the session, or the listener, concerns diskless topics
	partMax    int32
	turn       uint64
	partitions map[fetchKey]*fetchPartition
}

type fetchPartition struct {
	served    uint64 // turn at which it last got records
	expansion int32  // hydrated bytes per fetched byte, 1 after an inline batch
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

func shrink(limit, expansion int32) int32 {
	if limit <= minUpstream {
		// A limit below a placeholder's own size would hide a batch that fits.
		return minUpstream
	}
	return max(limit/max(expansion, 1), minUpstream)
}

func (c *conn) fetch(r *request) error {
	req := kmsg.NewPtrFetchRequest()
	if err := decodeRequest(r, req); err != nil {
		return err
	}
	if req.ReplicaID >= 0 || req.ReplicaState.ID >= 0 {
		return c.refuseReplica(r, req)
	}
	if r.version >= 13 {
		if err := c.learnFetched(req); err != nil {
			return err
		}
	}
	partMax, maxBytes := int32(0), req.MaxBytes
	s := &c.fetchState
	diskless := c.diskless || c.fetchesDiskless(r, req)
	s.mu.Lock()
	if r.version < 7 || req.SessionEpoch <= 0 {
		s.diskless = false
		if req.SessionEpoch == 0 {
			s.partitions = nil
		}
	}
	s.diskless = s.diskless || diskless
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			partMax = max(partMax, p.PartitionMaxBytes)
		}
	}
	if partMax > 0 {
		s.partMax = partMax
	}
	partMax = s.partMax
	if s.diskless {
		least := int32(firstExpansion)
		for i := range req.Topics {
			t := &req.Topics[i]
			for j := range t.Partitions {
				p := &t.Partitions[j]
				state := s.partition(fetchKey{t.Topic, t.TopicID, p.Partition})
				p.PartitionMaxBytes = shrink(p.PartitionMaxBytes, state.expansion)
			}
		}
		for _, state := range s.partitions {
			least = min(least, state.expansion)
		}
		req.MaxBytes = shrink(req.MaxBytes, least)
		req.MinBytes = min(req.MinBytes, 1)
		if c.diskless {
			req.Rack = ""
		}
		replaceBody(r, req)
	}
	s.mu.Unlock()
	r.answer = func(in *frame) ([][]byte, error) { return c.fetchAnswer(r, in, int(maxBytes), int(partMax)) }
	return nil
}

// fetchesDiskless reports whether a request names a topic of the diskless tier.
func (c *conn) fetchesDiskless(r *request, req *kmsg.FetchRequest) bool {
	if !c.p.opt.Router().HasDiskless() {
		return false
	}
	for _, t := range req.Topics {
		topic, ok := t.Topic, true
		if r.version >= 13 {
			topic, ok = c.p.topics.Get(t.TopicID)
		}
		if !ok {
			continue
		}
		if c.p.opt.Router().Place(topic, tiers.TopicFacts{Known: true}).Tier == tiers.Diskless {
			return true
		}
	}
	return false
}

// learnFetched asks for the names of topic ids that are not known yet. It need
// not wait: the broker answers in order, so the names precede the records.
func (c *conn) learnFetched(req *kmsg.FetchRequest) error {
	var unknown [][16]byte
	for _, t := range req.Topics {
		if _, ok := c.p.topics.Get(t.TopicID); !ok {
			unknown = append(unknown, t.TopicID)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return c.askTopics(unknown, false)
}

// refuseReplica answers a Fetch that pretends to be a follower's.
func (c *conn) refuseReplica(r *request, req *kmsg.FetchRequest) error {
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
	topic  string
	pieces []tiers.Piece // what the client gets
	bytes  [][]byte
	failed bool
}

func (c *conn) fetchAnswer(r *request, in *frame, maxBytes, partMax int) ([][]byte, error) {
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
			c.sawInline(p)
			continue
		}
		topic, ok := c.fetchedTopic(r, p)
		work = append(work, &hydration{part: p, topic: topic, failed: !ok})
	}
	if len(work) == 0 && !view.Endpoints {
		return nil, nil
	}
	edits := c.hydrate(in, work, r.version >= wire.FetchFlexible, maxBytes, partMax, plain)
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
	if r.version < 13 {
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
	if !s.diskless {
		return
	}
	state := s.partition(fetchKey{string(p.Topic), p.TopicID, p.Partition})
	state.expansion = 1
	s.turn++
	state.served = s.turn
}

// hydrate decides what each partition may give within the client's limits,
// loads it, and says what to replace in the frame.
func (c *conn) hydrate(in *frame, work []*hydration, flexible bool, maxBytes, partMax, used int) []wire.Edit {
	s := &c.fetchState
	s.mu.Lock()
	for _, h := range work {
		h.state = s.partition(fetchKey{string(h.part.Topic), h.part.TopicID, h.part.Partition})
		h.served = h.state.served
	}
	s.mu.Unlock()
	turn := slices.Clone(work)
	slices.SortStableFunc(turn, func(a, b *hydration) int { return cmp.Compare(a.served, b.served) })

	budget := maxBytes
	if budget <= 0 || budget > c.p.limits.FetchBytes {
		budget = c.p.limits.FetchBytes
	}
	if partMax <= 0 {
		partMax = budget
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.p.limits.HydrateTimeout)
	defer cancel()
	var loads errgroup.Group
	loads.SetLimit(c.p.limits.HydrateConcurrency)
	first := true
	for _, h := range turn {
		if h.failed || used >= budget && !first {
			continue
		}
		records := in.b[h.part.From:h.part.To]
		pieces, err := c.p.opt.Payloads.Resolve(ctx, tiers.TopicPartition{Topic: h.topic, Partition: h.part.Partition}, records)
		h.failed = err != nil && len(pieces) == 0
		c.learnExpansion(h, pieces, len(records))
		size := 0
		for i, piece := range pieces {
			n := piece.Size()
			if (size+n > partMax || used+n > budget) && !first {
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
			binary.BigEndian.PutUint16(in.b[h.part.ErrorAt:], errKafkaStorageError)
		}
		if len(h.bytes) > 0 {
			s.turn++
			h.state.served = s.turn
		}
		for _, b := range h.bytes {
			c.p.metrics.hydratedBytes.Add(float64(len(b)))
		}
		edits = append(edits, wire.RecordsEdit(h.part.LenAt, h.part.To, flexible, h.bytes...))
	}
	return edits
}

// learnExpansion remembers how much a partition's batches grew.
func (c *conn) learnExpansion(h *hydration, pieces []tiers.Piece, fetched int) {
	if len(pieces) == 0 || fetched == 0 {
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
	for _, b := range resp.Brokers {
		for _, id := range c.p.identities(b.NodeID, c.p.opt.Router().HasDiskless()) {
			if port, ok := c.p.port(id); ok {
				b.NodeID, b.Host, b.Port = id, c.p.opt.Layout.Advertise, port
				bare.Brokers = append(bare.Brokers, b)
			}
		}
	}
	bare.SetVersion(r.version)
	const untilTags = 4 + 2 + 4 + 1 // throttle time, error, session, no topics
	return wire.Edit{From: view.TagsFrom, To: view.TagsTo, With: [][]byte{bare.AppendTo(nil)[untilTags:]}}, nil
}
