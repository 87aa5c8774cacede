package proxy

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// Produce (0), v0–v13: rewritten. The version never changes: v12 adds
// partitions to the transaction implicitly and v13 names topics by id.
//
//   - v0–v2 carry message sets of magic 0 and 1, which stay inline. Brokers from
//     4.0 on take no such request, but advertise them, because librdkafka
//     concludes from their absence that nothing else works (KAFKA-18659): the
//     broker's own minimum is passed on, and the broker answers.
//   - Each partition is routed by its topic's class, whatever listener it
//     arrived on. A batch of a diskless topic goes to object storage first; the
//     request waits, and then takes a placeholder upstream in its place. The
//     rest of the frame is the client's own bytes.
//   - When the whole request stays inline, the frame is forwarded as it came.
//   - A record that carries the header reserved for placeholders: the request
//     is refused whole, INVALID_RECORD, and nothing of it is forwarded.
//   - v13: ids become names by Metadata asked on the client's own connection;
//     an id that the broker does not know is forwarded for it to answer.
//   - acks=0: durable, then forwarded; no answer.
//   - Nothing goes to object storage before the broker has said that this
//     client may write to the topic, and so has logged in where logins are
//     asked for: else whoever reaches the port could fill the bucket. What it
//     may not write is forwarded as it came, for the broker to refuse
//     (permits.go).
//   - A batch never overtakes an earlier one of its producer and partition that
//     came in, or could have, on the broker's other listener (crossings.go,
//     arrivals.go).
//   - A batch that the diskless tier rejects goes upstream as no batch at all;
//     the broker's INVALID_RECORD for that becomes KAFKA_STORAGE_ERROR.
//   - What a placeholder is smaller than its batch counts towards the client's
//     producer_byte_rate here (quotas.go): the answer tells the longer throttle
//     time, and the connection is not read for so long.
//   - Answers: CurrentLeader and NodeEndpoints (v10+, KIP-951) are mapped
//     together. INVALID_RECORD for a placeholder of ours means that the topic
//     has become compacted: the client's own batch was valid, so it is told
//     KAFKA_STORAGE_ERROR, which it retries; below v4, which does not know that
//     one, NOT_LEADER_OR_FOLLOWER.

const (
	errCorruptMessage     = 2
	errInvalidRecord      = 87
	errKafkaStorageError  = 56
	errNotLeader          = 6
	disklessSince         = 3  // record batches, of which placeholders are made
	storageErrorSince     = 4  // clients know KAFKA_STORAGE_ERROR
	produceEndpointsSince = 10 // KIP-951
)

// offloaded is a partition of a Produce that is on its way into an object.
type offloaded struct {
	wire.ProducePartition
	tiers.Offload
	topic       string
	placeholder bool
	rejected    bool
}

// is reports whether an answer is about this partition.
func (o *offloaded) is(p wire.ProduceResultPartition, version int16) bool {
	if o.ProducePartition.Partition != p.Partition {
		return false
	}
	if version >= wire.ProduceTopicIDs {
		return o.TopicID == p.TopicID
	}
	return o.topic == string(p.Topic)
}

func (c *conn) produce(r *request) error {
	view := &c.produced
	defer func() { view.Partitions = vacant(view.Partitions) }()
	if err := wire.ParseProduce(view, r.in.b, r.body, r.version); err != nil {
		return err
	}
	r.silent = view.Acks == 0
	if view.Acks < 0 {
		r.holds = time.Duration(view.TimeoutMillis) * time.Millisecond
	}
	if n := len(view.Partitions)*passageBytes - batchShare*len(r.in.b); n > readAhead {
		if err := c.allow(r, n); err != nil {
			return err
		}
	}
	sent := r.in.b
	for _, p := range view.Partitions {
		if p.From < p.To && c.p.opt.Payloads.Reserved(sent[p.From:p.To]) {
			return c.refuseReserved(r, view)
		}
	}
	c.cross(r, view)
	if rules := c.p.opt.Router(); r.version >= disklessSince && rules.HasDiskless() && !c.inline.all(view, r.version, rules) {
		if err := c.askVersions(); err != nil {
			return err
		}
		if r.version >= wire.ProduceTopicIDs {
			if err := c.learnProduced(view); err != nil {
				return err
			}
		}
		if err := c.offload(r, view); err != nil {
			return err
		}
	}
	if r.destined || r.version >= produceEndpointsSince {
		r.answer = (*conn).produceAnswer
	}
	if r.ready != nil {
		r.done() // now it is known for how much it waits
	}
	return nil
}

// cross sees to it that the request does not overtake what its producer has
// under way on the other listener of the broker.
func (c *conn) cross(r *request, view *wire.Produce) {
	r.passages = r.room[:0]
	for i := range view.Partitions {
		p := &view.Partitions[i]
		if p.From == p.To {
			continue
		}
		key := laneKey{id: p.TopicID, partition: p.Partition, from: c.from, anonymous: true}
		if r.version < wire.ProduceTopicIDs {
			key.topic = c.name(p.Topic)
		}
		if b, _, ok := wire.NextBatch(r.in.b[p.From:p.To]); ok && b.IsV2() && b.ProducerID() >= 0 {
			key.anonymous, key.producer = false, b.ProducerID()
		}
		r.passages = append(r.passages, c.p.crossings.passage(key))
	}
	if others := c.p.families.join(c, c.from).moved(r.passages, c.diskless); others != nil {
		c.awaitArrived(others)
	}
	x := &r.crossing
	x.request, x.expired = r, c.p.metrics.crossedLate
	c.p.crossings.enter(r.passages, c.diskless, x)
	if r.ready != nil {
		c.p.metrics.crossed.Inc()
	}
}

// inline is the topic last seen of which batches stay inline, because of its
// class by these rules. Most requests are for the same topic as the one before,
// and need not be looked up again.
type inline struct {
	rules *router.Router
	topic string
	id    [16]byte // none below v13
}

// all reports whether every batch of a request is for that topic.
func (in *inline) all(view *wire.Produce, version int16, rules *router.Router) bool {
	if in.rules != rules {
		return false
	}
	for i := range view.Partitions {
		p := &view.Partitions[i]
		if version < wire.ProduceTopicIDs {
			if string(p.Topic) != in.topic {
				return false
			}
		} else if p.TopicID != in.id || in.id == ([16]byte{}) {
			return false
		}
	}
	return true
}

// destination is a partition of a Produce whose topic is in the diskless tier.
type destination struct {
	part  wire.ProducePartition
	topic string
	class *tiers.Class
	facts tiers.TopicFacts
}

// destinations are the partitions of a request that are for the diskless tier.
func (c *conn) destinations(ctx context.Context, r *request, view *wire.Produce) (destined []destination) {
	var last struct {
		topic string
		placed
	}
	rules := c.p.opt.Router() // before any is placed: what later ones say is not kept for these
	names, several := c.placeSeveral(ctx, r, view)
	for i := range view.Partitions {
		p := &view.Partitions[i]
		if p.From == p.To {
			continue
		}
		topic := c.producedTopic(p, r.version)
		if topic == "" {
			continue
		}
		if topic != last.topic {
			last.topic = topic
			if len(names) > 0 && names[0] == topic {
				last.placed, names, several = several[0], names[1:], several[1:]
			} else {
				last.Placement, last.facts = c.place(ctx, topic)
			}
		}
		if last.Tier != tiers.Diskless {
			if last.Class.Tier != tiers.Diskless {
				c.inline = inline{rules, topic, p.TopicID}
			} else {
				c.p.opt.Payloads.Kept(last.Class, topic, last.Reason, p.To-p.From)
			}
			continue
		}
		destined = append(destined, destination{*p, topic, last.Class, last.facts})
	}
	return destined
}

// placeSeveral places the topics of a request together, in its order, when it is
// for more than one: else each that is not known would be waited for in turn.
func (c *conn) placeSeveral(ctx context.Context, r *request, view *wire.Produce) (names []string, placed []placed) {
	if len(view.Partitions) == 0 {
		return nil, nil
	}
	first, last := &view.Partitions[0], &view.Partitions[len(view.Partitions)-1]
	if sameTopic(first.Topic, last.Topic, first.TopicID, last.TopicID) {
		return nil, nil
	}
	for i := range view.Partitions {
		p := &view.Partitions[i]
		if p.From == p.To {
			continue
		}
		if topic := c.producedTopic(p, r.version); topic != "" && (len(names) == 0 || names[len(names)-1] != topic) {
			names = append(names, topic)
		}
	}
	return names, c.placeAll(ctx, names)
}

// offload begins to store the batches of diskless topics. After an error none
// has been begun.
func (c *conn) offload(r *request, view *wire.Produce) error {
	interested := c.present
	if r.silent {
		interested = c.ctx
	}
	destined := c.destinations(interested, r, view)
	if len(destined) == 0 {
		return nil
	}
	r.destined, r.prepare = true, (*conn).placePlaceholders
	timeout := time.Duration(view.TimeoutMillis) * time.Millisecond
	return c.whenPermitted(r, destined, func() { c.offloadPermitted(interested, r, destined, timeout) })
}

// offloadPermitted begins to store what its client may write of a request. It
// runs in the reader, or in the responder.
func (c *conn) offloadPermitted(interested context.Context, r *request, destined []destination, timeout time.Duration) {
	var producer *tiers.Producer // nil for one that waits for no answer
	var number uint64
	for _, d := range destined {
		if granted, _ := c.permits.of(d.topic); !granted {
			c.p.opt.Payloads.Kept(d.class, d.topic, tiers.Denied, d.part.To-d.part.From)
			r.denied = true
			continue
		}
		if r.offloads == nil && !r.silent {
			r.offloading = true
			producer, number = c.producer, c.producer.Begin()
		}
		r.await(1)
		o := &offloaded{ProducePartition: d.part, topic: d.topic}
		r.offloads = append(r.offloads, o)
		o.Offload = c.p.opt.Payloads.Offload(interested, tiers.OffloadRequest{
			Class:           d.class,
			TopicPartition:  tiers.TopicPartition{Topic: d.topic, Partition: d.part.Partition},
			Batch:           r.in.b[d.part.From:d.part.To],
			MaxMessageBytes: d.facts.MaxMessageBytes,
			Timeout:         timeout,
			ProduceVersion:  r.version,
			Producer:        producer,
			Request:         number,
		}, r.done)
	}
	if r.offloads != nil {
		c.p.opt.Payloads.Offered(producer)
	}
}

// learnProduced has the names of a request's topic ids learnt, and waits for
// them: nothing can be routed before. It asks once; an id that the broker does
// not know is then left for it to refuse.
func (c *conn) learnProduced(view *wire.Produce) error {
	var unknown [][16]byte
	for i, p := range view.Partitions {
		if i > 0 && p.TopicID == view.Partitions[i-1].TopicID {
			continue
		}
		if !c.p.topics.Contains(p.TopicID) {
			unknown = append(unknown, p.TopicID)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	// What may be written to them is a question of the same round trip.
	req := topicsByID(unknown)
	req.IncludeTopicAuthorizedOperations = true
	return c.askAndWait(req, c.learnTopics)
}

// producedTopic is the name of a partition's topic, or "" when the broker does
// not know the id.
func (c *conn) producedTopic(p *wire.ProducePartition, version int16) string {
	if version < wire.ProduceTopicIDs {
		return c.name(p.Topic)
	}
	name, _ := c.p.topics.Get(p.TopicID)
	return name
}

func (c *conn) resultTopic(p wire.ProduceResultPartition, version int16) (string, bool) {
	if version >= wire.ProduceTopicIDs {
		return c.p.topics.Get(p.TopicID)
	}
	return string(p.Topic), true
}

// placePlaceholders puts what the diskless tier made of its batches in their
// places.
func (c *conn) placePlaceholders(r *request) {
	edits := make([]wire.Edit, 0, len(r.offloads))
	crowded := time.Duration(c.held.Load()) > maxHeld
	for _, o := range r.offloads {
		if crowded {
			// Nobody could say when the broker gets to a placeholder.
			c.p.metrics.crowded.Inc()
			continue
		}
		res := o.Result()
		if res.Records == nil && !res.Rejected {
			continue
		}
		// Of what is rejected no batch is left: the broker writes nothing, and
		// still says what this client may not know or do.
		o.placeholder, o.rejected = !res.Rejected, res.Rejected
		edits = append(edits, wire.RecordsEdit(o.LenAt, o.To, r.version >= wire.ProduceFlexible, res.Records))
	}
	if len(edits) > 0 {
		size := 0
		r.out, size = wire.Splice(r.in.b, edits)
		r.charge = c.charges(tiers.ProduceQuota, r.clientID, len(r.in.b)-size)
	}
}

func (c *conn) produceAnswer(r *request, in *frame) ([][]byte, error) {
	body, err := wire.ResponseBody(in.b, r.api.responseFlexible(r.version))
	if err != nil {
		return nil, err
	}
	result := &c.result
	defer func() { result.Partitions = vacant(result.Partitions) }()
	if err := wire.ParseProduceResult(result, in.b, body, r.version); err != nil {
		return nil, err
	}
	for _, p := range result.Partitions {
		if p.LeaderAt > 0 {
			topic, ok := c.resultTopic(p, r.version)
			c.mapLeader(in.b[p.LeaderAt:], topic, ok)
		}
		if r.destined && (p.Error != 0 || r.denied) {
			topic, _ := c.resultTopic(p, r.version)
			c.permits.judged(topic, p.Error)
		}
		for _, o := range r.offloads {
			switch {
			case !o.is(p, r.version):
				continue
			case o.rejected && (p.Error == errInvalidRecord || p.Error == errCorruptMessage || p.Error == 0):
			case o.placeholder && p.Error == errInvalidRecord:
			default:
				continue
			}
			putStorageError(in.b[p.ErrorAt:], r.version, storageErrorSince)
			if o.rejected {
				continue
			}
			c.p.opt.Brokers.Invalidate(o.topic)
			c.warn().Str("topic", o.topic).Int32("partition", p.Partition).
				Msg("the broker refused a placeholder; the topic's configuration is read again and the client retries")
		}
	}
	if ms := c.p.throttle.record(c, tiers.ProduceQuota, r.charge); ms > 0 {
		if result.ThrottleAt > 0 {
			putInt32(in.b, result.ThrottleAt, max(ms, getInt32(in.b, result.ThrottleAt)))
		}
		c.mute(ms)
	}
	if !result.Endpoints {
		return nil, nil
	}
	resp := kmsg.NewPtrProduceResponse()
	if err := decodeResponse(r, in, resp); err != nil {
		return nil, err
	}
	resp.Brokers = addresses(c.p, c.p.opt.Router().HasDiskless(), resp.Brokers,
		func(b kmsg.ProduceResponseBroker) int32 { return b.NodeID },
		func(b *kmsg.ProduceResponseBroker, id int32, host string, port int32) {
			b.NodeID, b.Host, b.Port = id, host, port
		})
	return [][]byte{encodeResponse(r, resp)}, nil
}

// putStorageError writes KAFKA_STORAGE_ERROR, or what brokers say in its place
// to versions whose clients do not know it; both are retried.
func putStorageError(b []byte, version, since int16) {
	code := uint16(errKafkaStorageError)
	if version < since {
		code = errNotLeader
	}
	binary.BigEndian.PutUint16(b, code)
}

// refuseReserved answers a Produce whose records pretend to be placeholders.
func (c *conn) refuseReserved(r *request, view *wire.Produce) error {
	c.p.metrics.reserved.Inc()
	c.warn().Msg("refused a Produce: a record carries the header that is reserved for placeholders")
	if r.silent {
		// Without an answer, closing is how a broker reports an error.
		return errRefused
	}
	resp := kmsg.NewPtrProduceResponse()
	message := "a record carries a header that is reserved by sluice, or records cannot be decompressed; nothing of this request was written"
	for i, p := range view.Partitions {
		if i == 0 || !sameTopic(p.Topic, view.Partitions[i-1].Topic, p.TopicID, view.Partitions[i-1].TopicID) {
			topic := kmsg.NewProduceResponseTopic()
			topic.Topic, topic.TopicID = string(p.Topic), p.TopicID
			resp.Topics = append(resp.Topics, topic)
		}
		part := kmsg.NewProduceResponseTopicPartition()
		part.Partition, part.ErrorCode, part.BaseOffset, part.ErrorMessage = p.Partition, errInvalidRecord, -1, &message
		topic := &resp.Topics[len(resp.Topics)-1]
		topic.Partitions = append(topic.Partitions, part)
	}
	r.local = encodeResponse(r, resp)
	return c.allow(r, len(r.local)) // it may have to wait for the answers before it
}
