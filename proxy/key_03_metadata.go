package proxy

import (
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/tiers"
)

// Metadata (3), v0–v13: mapped.
//
//   - Every broker n of the answer appears at this proxy's ports: as itself and,
//     when any rule leads to a diskless class, also as diskless broker n + 2^20.
//     All of them are in every answer: clients replace their whole node map.
//   - Partitions of topics in the diskless tier name diskless ids as leader,
//     replicas, isr and offline replicas, all together: clients look for the leader
//     among them, and take one that is not the first replica for not the preferred.
//   - A broker whose id is outside listen.node_ids is left out: no client is
//     ever told a broker's own address.
//   - The controller id stays real. Topic ids and names are remembered.
//
// The request passes unchanged.

const metadataKey = 3

func (c *conn) metadata(r *request) error {
	r.answer = rewrite(kmsg.NewPtrMetadataResponse, func(resp *kmsg.MetadataResponse) error {
		c.p.learn(resp)
		c.mapMetadata(resp)
		return nil
	})
	return nil
}

func (c *conn) mapMetadata(resp *kmsg.MetadataResponse) {
	twins := c.p.opt.Router().HasDiskless()
	resp.Brokers = addresses(c.p, twins, resp.Brokers,
		func(b kmsg.MetadataResponseBroker) int32 { return b.NodeID },
		func(b *kmsg.MetadataResponseBroker, id int32, host string, port int32) {
			b.NodeID, b.Host, b.Port = id, host, port
		})
	if !twins {
		return
	}
	shown := c.showAll(resp.Topics)
	for i := range resp.Topics {
		if shown[i] != tiers.Diskless {
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

// showAll says of every topic of an answer on which tier's brokers it is shown.
func (c *conn) showAll(topics []kmsg.MetadataResponseTopic) []tiers.Tier {
	shown := make([]tiers.Tier, len(topics))
	var names []string
	var at []int
	for i, t := range topics {
		if t.Topic == nil || t.IsInternal || t.ErrorCode != 0 && len(t.Partitions) == 0 {
			continue
		}
		names, at = append(names, *t.Topic), append(at, i)
	}
	for i, p := range c.placeAll(c.present, names) {
		shown[at[i]] = shownAt(p.Placement)
	}
	return shown
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
