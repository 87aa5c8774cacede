package proxy

import (
	"context"
	"encoding/binary"

	"github.com/sluice-kafka/sluice/tiers"
)

// place says where a topic's payloads go, and what is known of it. Facts are
// asked for only where they can matter, and for no longer than FactsTimeout.
func (c *conn) place(ctx context.Context, topic string) (tiers.Placement, tiers.TopicFacts) {
	router := c.p.opt.Router()
	placement := router.Place(topic, tiers.TopicFacts{Known: true})
	if placement.Class.Tier != tiers.Diskless {
		return placement, tiers.TopicFacts{}
	}
	ctx, cancel := context.WithTimeout(ctx, c.p.limits.FactsTimeout)
	defer cancel()
	facts := c.p.opt.Brokers.Facts(ctx, topic)
	return router.Place(topic, facts), facts
}

// shown says on which tier's brokers clients find a topic. Until its facts are
// known its class alone decides: a topic that was just created is unknown for a
// moment, and clients keep what they are told for minutes.
func (c *conn) shown(ctx context.Context, topic string) tiers.Tier {
	placement, _ := c.place(ctx, topic)
	if placement.Reason == tiers.Unknown {
		return placement.Class.Tier
	}
	return placement.Tier
}

// maxNames bounds the topic names that a connection keeps.
const maxNames = 4096

// name interns a topic name that aliases a frame.
func (c *conn) name(b []byte) string {
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
	leader := int32(binary.BigEndian.Uint32(b))
	if leader < 0 || !c.p.opt.Router().HasDiskless() {
		return
	}
	if !known {
		binary.BigEndian.PutUint32(b, ^uint32(0))
		return
	}
	if c.shown(c.present, topic) == tiers.Diskless {
		binary.BigEndian.PutUint32(b, uint32(disklessID(leader)))
	}
}

// eachAddress calls fn for every id under which clients know a broker, with the
// port at which they reach it: none when its id is outside listen.node_ids.
// twins says whether any rule leads to a diskless class.
func (p *Proxy) eachAddress(node int32, twins bool, fn func(id, port int32)) {
	port, ok := p.port(node)
	if !ok {
		return
	}
	fn(node, port)
	if twins {
		port, _ = p.opt.Layout.Port(disklessID(node))
		fn(disklessID(node), port)
	}
}

// port is where clients reach an id; it counts and logs the ids that the
// configuration left out.
func (p *Proxy) port(id int32) (int32, bool) {
	port, ok := p.opt.Layout.Port(id)
	if !ok {
		p.metrics.unmapped.Inc()
		p.warn(p.log).Int32("node", realID(id)).Msg("a broker's id is outside listen.node_ids: clients cannot reach it; widen the range on every replica")
	}
	return port, ok
}
