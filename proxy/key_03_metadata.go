package proxy

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/tiers"
)

// Metadata (3), v0–v13: mapped.
//
//   - Every broker n of the answer appears at this proxy's ports: as itself and,
//     when any rule leads to a diskless class, also as diskless broker n + 2^20.
//     All of them are in every answer: clients replace their whole node map.
//   - Partitions of topics in the diskless tier name diskless ids as leader,
//     replicas, isr and offline replicas, all together.
//   - A broker whose id is outside listen.node_ids is left out: no client is
//     ever told a broker's own address.
//   - The controller id stays real. Topic ids and names are remembered.
//
// The request passes unchanged.

func (c *conn) metadata(r *request) error {
	r.answer = rewrite(c, r, kmsg.NewPtrMetadataResponse, func(resp *kmsg.MetadataResponse) error {
		c.p.learn(resp)
		c.mapMetadata(resp)
		return nil
	})
	return nil
}

func (c *conn) mapMetadata(resp *kmsg.MetadataResponse) {
	twins := c.p.opt.Router().HasDiskless()
	brokers := make([]kmsg.MetadataResponseBroker, 0, 2*len(resp.Brokers))
	for _, b := range resp.Brokers {
		for _, id := range c.p.identities(b.NodeID, twins) {
			port, ok := c.p.port(id)
			if !ok {
				break
			}
			b.NodeID, b.Host, b.Port = id, c.p.opt.Layout.Advertise, port
			brokers = append(brokers, b)
		}
	}
	resp.Brokers = brokers
	if !twins {
		return
	}
	placed := c.placeAll(resp.Topics)
	for i := range resp.Topics {
		if placed[i] != tiers.Diskless {
			continue
		}
		for j := range resp.Topics[i].Partitions {
			p := &resp.Topics[i].Partitions[j]
			if p.Leader >= 0 {
				p.Leader = disklessID(p.Leader)
			}
			toDiskless(p.Replicas)
			toDiskless(p.ISR)
			toDiskless(p.OfflineReplicas)
		}
	}
}

func toDiskless(ids []int32) {
	for i, id := range ids {
		if id >= 0 {
			ids[i] = disklessID(id)
		}
	}
}

// placeConcurrency bounds the topics of one answer whose facts are asked for at
// a time; those that are known cost nothing.
const placeConcurrency = 64

// placeAll places every topic of an answer.
func (c *conn) placeAll(topics []kmsg.MetadataResponseTopic) []tiers.Tier {
	placed := make([]tiers.Tier, len(topics))
	router := c.p.opt.Router()
	var asked errgroup.Group
	asked.SetLimit(placeConcurrency)
	for i, t := range topics {
		if t.Topic == nil || t.ErrorCode != 0 && len(t.Partitions) == 0 {
			continue
		}
		name := *t.Topic
		if router.Place(name, tiers.TopicFacts{Known: true}).Tier != tiers.Diskless || t.IsInternal {
			continue
		}
		asked.Go(func() error {
			placed[i] = c.shown(name)
			return nil
		})
	}
	_ = asked.Wait()
	return placed
}

// identities are the ids under which clients know a broker.
func (p *Proxy) identities(node int32, twins bool) []int32 {
	if twins {
		return []int32{node, disklessID(node)}
	}
	return []int32{node}
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

// learn remembers the topic ids of an answer.
func (p *Proxy) learn(resp *kmsg.MetadataResponse) {
	if resp.Version < 10 {
		return
	}
	for _, t := range resp.Topics {
		if t.Topic != nil && t.TopicID != ([16]byte{}) {
			p.topics.Add(t.TopicID, *t.Topic)
		}
	}
}

// askVersion is the first version of Metadata in which brokers look topics up
// by id. Every broker that speaks topic ids in Produce or Fetch has it.
const askVersion = 12

func topicsByID(ids [][16]byte) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(askVersion)
	req.AllowAutoTopicCreation = false
	for _, id := range ids {
		t := kmsg.NewMetadataRequestTopic()
		t.TopicID = id
		req.Topics = append(req.Topics, t)
	}
	return req
}

// askTopics has the names of topic ids learnt on the client's own connection,
// so that the broker decides what this principal may know. The answer precedes
// those of all later requests. wait says whether to wait for it.
func (c *conn) askTopics(ids [][16]byte, wait bool) error {
	answered := make(chan struct{})
	var once sync.Once
	err := c.ask(topicsByID(ids), func(resp kmsg.Response, err error) {
		if m, ok := resp.(*kmsg.MetadataResponse); ok && err == nil {
			c.p.learn(m)
		}
		once.Do(func() { close(answered) })
	})
	if err != nil || !wait {
		return err
	}
	select {
	case <-answered:
	case <-c.ctx.Done():
	}
	return nil
}
