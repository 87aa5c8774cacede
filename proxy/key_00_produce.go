package proxy

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// Produce (0), v3–v13: rewritten. The version never changes: v12 adds
// partitions to the transaction implicitly and v13 names topics by id.
//
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
//   - Nothing goes to object storage before the broker has answered something
//     on this connection that takes a login, where logins are asked for: else
//     whoever reaches the port could fill the bucket.
//   - Answers: CurrentLeader and NodeEndpoints (v10+, KIP-951) are mapped
//     together. INVALID_RECORD for a placeholder of ours means that the topic
//     has become compacted: the client's own batch was valid, so it is told
//     KAFKA_STORAGE_ERROR, which it retries.

const (
	errInvalidRecord      = 87
	errKafkaStorageError  = 56
	produceEndpointsSince = 10
)

// offloaded is a partition of a Produce that is on its way into an object.
type offloaded struct {
	wire.ProducePartition
	tiers.Offload
	topic       string
	placeholder bool
}

func (c *conn) produce(r *request) error {
	view := &c.view
	if err := wire.ParseProduce(view, r.in.b, r.body, r.version); err != nil {
		return err
	}
	r.silent = view.Acks == 0
	sent := r.in.b
	for _, p := range view.Partitions {
		if p.From < p.To && c.p.opt.Payloads.Reserved(sent[p.From:p.To]) {
			return c.refuseReserved(r)
		}
	}
	var offloads []*offloaded
	var producer *tiers.Producer // nil for one that waits for no answer
	var number uint64
	var last struct {
		topic     string
		placement tiers.Placement
		facts     tiers.TopicFacts
	}
	for i, p := range view.Partitions {
		if p.From == p.To {
			continue
		}
		topic, err := c.producedTopic(r, view, i)
		if err != nil {
			r.in.forget() // offloads before this one may still read it
			return err
		}
		if topic == "" {
			continue
		}
		if topic != last.topic {
			last.topic = topic
			last.placement, last.facts = c.place(topic)
		}
		if last.placement.Tier != tiers.Diskless {
			continue
		}
		if err := c.awaitWelcome(); err != nil {
			r.in.forget()
			return err
		}
		if offloads == nil {
			r.wait(1) // this loop; so that it is not ready before all are counted
			if !r.silent {
				r.offloading = true
				producer, number = &c.producer, c.producer.Begin()
			}
		}
		r.pending.Add(1)
		o := &offloaded{ProducePartition: p, topic: topic}
		o.Offload = c.p.opt.Payloads.Offload(c.ctx, tiers.OffloadRequest{
			Class:           last.placement.Class,
			TopicPartition:  tiers.TopicPartition{Topic: topic, Partition: p.Partition},
			Batch:           sent[p.From:p.To],
			MaxMessageBytes: last.facts.MaxMessageBytes,
			Timeout:         time.Duration(view.TimeoutMillis) * time.Millisecond,
			ProduceVersion:  r.version,
			Producer:        producer,
			Request:         number,
		}, r.done)
		offloads = append(offloads, o)
	}
	if offloads != nil {
		r.prepare = func() error { c.placePlaceholders(r, offloads); return nil }
		r.done()
		c.p.opt.Payloads.Offered(producer)
	}
	if offloads != nil || r.version >= produceEndpointsSince {
		r.answer = func(in *frame) ([][]byte, error) { return c.produceAnswer(r, in, offloads) }
	}
	return nil
}

// awaitWelcome returns once the broker has answered a question of ours on the
// client's connection; it hangs up on one that has not logged in. Only the
// reader calls it.
func (c *conn) awaitWelcome() error {
	if c.welcome {
		return nil
	}
	const version = 4 // every broker has it that has Produce v3
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(version)
	req.Topics = []kmsg.MetadataRequestTopic{} // none; nil would be all
	req.AllowAutoTopicCreation = false
	answered := make(chan error, 1)
	if err := c.ask(req, func(_ kmsg.Response, err error) { answered <- err }); err != nil {
		return err
	}
	select {
	case err := <-answered:
		c.welcome = err == nil
		return err
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

// producedTopic is the name of a partition's topic, or "" when the broker does
// not know the id.
func (c *conn) producedTopic(r *request, view *wire.Produce, i int) (string, error) {
	p := &view.Partitions[i]
	if r.version < 13 {
		return c.name(p.Topic), nil
	}
	if name, ok := c.p.topics.Get(p.TopicID); ok {
		return name, nil
	}
	var unknown [][16]byte
	for _, q := range view.Partitions[i:] {
		if _, ok := c.p.topics.Get(q.TopicID); !ok && (len(unknown) == 0 || unknown[len(unknown)-1] != q.TopicID) {
			unknown = append(unknown, q.TopicID)
		}
	}
	if err := c.askTopics(unknown, true); err != nil {
		return "", err
	}
	name, _ := c.p.topics.Get(p.TopicID)
	return name, nil
}

// placePlaceholders puts what the diskless tier made of its batches in their
// places.
func (c *conn) placePlaceholders(r *request, offloads []*offloaded) {
	edits := make([]wire.Edit, 0, len(offloads))
	for _, o := range offloads {
		res := o.Result()
		if res.Records == nil {
			continue
		}
		o.placeholder = true
		edits = append(edits, wire.RecordsEdit(o.LenAt, o.To, r.version >= wire.ProduceFlexible, res.Records))
	}
	if len(edits) > 0 {
		r.out, _ = wire.Splice(r.in.b, edits)
	}
}

func (c *conn) produceAnswer(r *request, in *frame, offloads []*offloaded) ([][]byte, error) {
	body, err := wire.ResponseBody(in.b, r.api.responseFlexible(r.version))
	if err != nil {
		return nil, err
	}
	result := &c.result
	if err := wire.ParseProduceResult(result, in.b, body, r.version); err != nil {
		return nil, err
	}
	for _, p := range result.Partitions {
		if p.LeaderAt > 0 {
			topic, ok := string(p.Topic), true
			if r.version >= 13 {
				topic, ok = c.p.topics.Get(p.TopicID)
			}
			c.mapLeader(in.b[p.LeaderAt:], topic, ok)
		}
		if p.Error != errInvalidRecord {
			continue
		}
		for _, o := range offloads {
			if o.placeholder && o.ProducePartition.Partition == p.Partition && (r.version >= 13 && o.TopicID == p.TopicID || r.version < 13 && o.topic == string(p.Topic)) {
				c.p.opt.Brokers.Invalidate(o.topic)
				binary.BigEndian.PutUint16(in.b[p.ErrorAt:], errKafkaStorageError)
				c.p.warn(c.log).Str("topic", o.topic).Int32("partition", p.Partition).
					Msg("the broker refused a placeholder; the topic's configuration is read again and the client retries")
			}
		}
	}
	if !result.Endpoints {
		return nil, nil
	}
	resp := kmsg.NewPtrProduceResponse()
	if err := decodeResponse(r, in, resp); err != nil {
		return nil, err
	}
	var nodes []kmsg.ProduceResponseBroker
	for _, b := range resp.Brokers {
		for _, id := range c.p.identities(b.NodeID, c.p.opt.Router().HasDiskless()) {
			if port, ok := c.p.port(id); ok {
				b.NodeID, b.Host, b.Port = id, c.p.opt.Layout.Advertise, port
				nodes = append(nodes, b)
			}
		}
	}
	resp.Brokers = nodes
	return [][]byte{encodeResponse(r, resp)}, nil
}

// mapLeader translates a CurrentLeader's leader id, at b, for the tier that the
// topic is in. A topic whose name is not known is told no leader at all: the
// client then asks for Metadata.
func (c *conn) mapLeader(b []byte, topic string, known bool) {
	leader := int32(binary.BigEndian.Uint32(b))
	if leader < 0 || !c.p.opt.Router().HasDiskless() {
		return
	}
	if !known {
		binary.BigEndian.PutUint32(b, ^uint32(0))
		return
	}
	if c.shown(topic) == tiers.Diskless {
		binary.BigEndian.PutUint32(b, uint32(disklessID(leader)))
	}
}

// refuseReserved answers a Produce whose records pretend to be placeholders.
func (c *conn) refuseReserved(r *request) error {
	c.p.metrics.reserved.Inc()
	c.p.warn(c.log).Msg("refused a Produce: a record carries the header that is reserved for placeholders")
	if r.silent {
		// Without an answer, closing is how a broker reports an error.
		return errRefused
	}
	req := kmsg.NewPtrProduceRequest()
	if err := decodeRequest(r, req); err != nil {
		return err
	}
	resp := kmsg.NewPtrProduceResponse()
	message := "a record carries a header that is reserved by sluice; nothing of this request was written"
	for _, t := range req.Topics {
		topic := kmsg.NewProduceResponseTopic()
		topic.Topic, topic.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			part := kmsg.NewProduceResponseTopicPartition()
			part.Partition, part.ErrorCode, part.BaseOffset, part.ErrorMessage = p.Partition, errInvalidRecord, -1, &message
			topic.Partitions = append(topic.Partitions, part)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	r.local = encodeResponse(r, resp)
	return nil
}
