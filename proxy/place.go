package proxy

import (
	"bytes"
	"context"

	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// place says where a topic's payloads go, and what is known of it. Facts are
// asked for only where they can matter, and for no longer than FactsTimeout.
func (c *conn) place(ctx context.Context, topic string) (tiers.Placement, tiers.TopicFacts) {
	rules := c.p.opt.Router()
	placement := rules.Place(topic, tiers.TopicFacts{Known: true})
	if placement.Class.Tier != tiers.Diskless {
		return placement, tiers.TopicFacts{}
	}
	if len(topic) > router.MaxTopicName {
		return rules.Place(topic, tiers.TopicFacts{}), tiers.TopicFacts{} // none has it
	}
	ctx, cancel := context.WithTimeout(ctx, c.p.limits.FactsTimeout)
	defer cancel()
	facts := c.p.opt.Brokers.Facts(ctx, topic)
	return rules.Place(topic, facts), facts
}

// placed is where a topic's payloads go, and what is known of it.
type placed struct {
	tiers.Placement
	facts tiers.TopicFacts
}

// placeAll is place for several topics, in their order.
func (c *conn) placeAll(ctx context.Context, topics []string) []placed {
	rules := c.p.opt.Router()
	out := make([]placed, len(topics))
	var asked []string
	for i, topic := range topics {
		out[i].Placement = rules.Place(topic, tiers.TopicFacts{Known: true})
		if out[i].Class.Tier == tiers.Diskless {
			asked = append(asked, topic)
		}
	}
	if len(asked) == 0 {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, c.p.limits.FactsTimeout)
	defer cancel()
	facts := c.p.opt.Brokers.FactsOf(ctx, asked)
	for i, topic := range topics {
		if out[i].Class.Tier == tiers.Diskless {
			out[i] = placed{rules.Place(topic, facts[0]), facts[0]}
			facts = facts[1:]
		}
	}
	return out
}

// shown says on which tier's brokers clients find a topic. Until its facts are
// known its class alone decides: a topic that was just created is unknown for a
// moment, and clients keep what they are told for minutes.
func (c *conn) shown(ctx context.Context, topic string) tiers.Tier {
	placement, _ := c.place(ctx, topic)
	return shownAt(placement)
}

func shownAt(placement tiers.Placement) tiers.Tier {
	if placement.Reason == tiers.Unknown {
		return placement.Class.Tier
	}
	return placement.Tier
}

// maxNames bounds the topic names that a connection keeps.
const maxNames = 4096

// name interns a topic name that aliases a frame. One that is longer than Kafka
// allows is "", as no topic is called: only the broker's refusal is of interest,
// and what is kept would be as large as frames are.
func (c *conn) name(b []byte) string {
	if len(b) > router.MaxTopicName {
		return ""
	}
	if s, ok := c.names[string(b)]; ok {
		return s
	}
	if c.names == nil || len(c.names) >= maxNames {
		c.names = make(map[string]string)
	}
	s := string(b)
	c.names[s] = s
	return s
}

// mapLeader translates a CurrentLeader's leader id (KIP-951), at b, for the
// tier that the topic is in. A topic whose name is not known is told no leader
// at all: the client then asks for Metadata.
func (c *conn) mapLeader(b []byte, topic string, known bool) {
	putInt32(b, 0, c.shownLeader(getInt32(b, 0), topic, known))
}

// shownLeader is mapLeader for an id.
func (c *conn) shownLeader(leader int32, topic string, known bool) int32 {
	switch {
	case leader < 0 || !c.p.opt.Router().HasDiskless():
		return leader
	case !known:
		return -1
	case c.shown(c.present, topic) == tiers.Diskless:
		return disklessID(leader)
	}
	return leader
}

// addresses names brokers by every id under which clients know them, at the ports
// where they reach them: none when an id is outside listen.node_ids. twins says
// whether any rule leads to a diskless class; set gives a broker an id and an
// address.
func addresses[B any](p *Proxy, twins bool, brokers []B, id func(B) int32, set func(b *B, id int32, host string, port int32)) []B {
	out := make([]B, 0, 2*len(brokers))
	for _, b := range brokers {
		node := id(b)
		port, ok := p.port(node)
		if !ok {
			continue
		}
		set(&b, node, p.opt.Layout.Advertise, port)
		out = append(out, b)
		if twins {
			port, _ = p.opt.Layout.Port(disklessID(node))
			set(&b, disklessID(node), p.opt.Layout.Advertise, port)
			out = append(out, b)
		}
	}
	return out
}

// port is where clients reach an id; it counts and logs the ids that the
// configuration left out.
func (p *Proxy) port(id int32) (int32, bool) {
	port, ok := p.opt.Layout.Port(id)
	if !ok {
		p.metrics.unmapped.Inc()
		p.warn().Int32("node", realID(id)).Msg("a broker's id is outside listen.node_ids: clients cannot reach it; widen the range on every replica")
	}
	return port, ok
}

// sameTopic reports whether two partitions of a request are of one topic, by
// whichever of name and id its version has.
func sameTopic(name, otherName []byte, id, otherID [16]byte) bool {
	return id == otherID && bytes.Equal(name, otherName)
}
