package integration

import (
	"encoding/binary"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// The sniffer sees each thing that no client may be told, and nothing else.
func TestSnifferNotices(t *testing.T) {
	const first = 20000
	broker := func(id, port int32) kmsg.MetadataResponseBroker {
		b := kmsg.NewMetadataResponseBroker()
		b.NodeID, b.Host, b.Port = id, clientSide, port
		return b
	}
	metadata := func(change func(*kmsg.MetadataResponse)) kmsg.Response {
		m := kmsg.NewPtrMetadataResponse()
		m.SetVersion(12)
		m.Brokers = []kmsg.MetadataResponseBroker{broker(1, first+2), broker(1+disklessBit, first+3)}
		m.ControllerID = 1
		name := "a-telemetry"
		topic := kmsg.NewMetadataResponseTopic()
		topic.Topic = &name
		p := kmsg.NewMetadataResponseTopicPartition()
		p.Leader, p.Replicas, p.ISR = 1+disklessBit, []int32{1 + disklessBit}, []int32{1 + disklessBit}
		topic.Partitions = append(topic.Partitions, p)
		m.Topics = append(m.Topics, topic)
		change(m)
		return m
	}
	cluster := func(id, port int32) kmsg.Response {
		r := kmsg.NewPtrDescribeClusterResponse()
		b := kmsg.NewDescribeClusterResponseBroker()
		b.NodeID, b.Host, b.Port = id, clientSide, port
		r.Brokers, r.ControllerID = append(r.Brokers, b), id
		return r
	}
	coordinator := func(version int16, id, port int32) kmsg.Response {
		r := kmsg.NewPtrFindCoordinatorResponse()
		r.SetVersion(version)
		r.NodeID, r.Host, r.Port = id, clientSide, port
		c := kmsg.NewFindCoordinatorResponseCoordinator()
		c.NodeID, c.Host, c.Port = id, clientSide, port
		r.Coordinators = append(r.Coordinators, c)
		return r
	}
	produce := func(leader int32, nodes ...int32) kmsg.Response {
		r := kmsg.NewPtrProduceResponse()
		r.SetVersion(12)
		topic := kmsg.NewProduceResponseTopic()
		topic.Topic = "a-telemetry"
		p := kmsg.NewProduceResponseTopicPartition()
		p.CurrentLeader.LeaderID = leader
		topic.Partitions = append(topic.Partitions, p)
		r.Topics = append(r.Topics, topic)
		for i := 0; i < len(nodes); i += 2 {
			b := kmsg.NewProduceResponseBroker()
			b.NodeID, b.Host, b.Port = nodes[i], clientSide, nodes[i+1]
			r.Brokers = append(r.Brokers, b)
		}
		return r
	}
	fetch := func(leader, preferred int32, nodes ...int32) kmsg.Response {
		r := kmsg.NewPtrFetchResponse()
		r.SetVersion(16)
		topic := kmsg.NewFetchResponseTopic()
		p := kmsg.NewFetchResponseTopicPartition()
		p.CurrentLeader.LeaderID, p.PreferredReadReplica = leader, preferred
		topic.Partitions = append(topic.Partitions, p)
		r.Topics = append(r.Topics, topic)
		for i := 0; i < len(nodes); i += 2 {
			b := kmsg.NewFetchResponseBroker()
			b.NodeID, b.Host, b.Port = nodes[i], clientSide, nodes[i+1]
			r.Brokers = append(r.Brokers, b)
		}
		return r
	}
	for _, c := range []struct {
		what  string
		resp  kmsg.Response
		wrong bool
	}{
		{"Metadata as it should be", metadata(func(*kmsg.MetadataResponse) {}), false},
		{"a broker's own port", metadata(func(m *kmsg.MetadataResponse) { m.Brokers[0].Port = 9092 }), true},
		{"another host", metadata(func(m *kmsg.MetadataResponse) { m.Brokers[1].Host = "kafka-1" }), true},
		{"a twin's port", metadata(func(m *kmsg.MetadataResponse) { m.Brokers[0].Port++ }), true},
		{"a broker without its twin", metadata(func(m *kmsg.MetadataResponse) { m.Brokers = m.Brokers[1:] }), true},
		{"an unknown controller", metadata(func(m *kmsg.MetadataResponse) { m.ControllerID = 3 }), true},
		{"a diskless controller", metadata(func(m *kmsg.MetadataResponse) { m.ControllerID += disklessBit }), true},
		{"an unknown leader", metadata(func(m *kmsg.MetadataResponse) { m.Topics[0].Partitions[0].Leader = 2 + disklessBit }), true},
		{"a leader of the other tier", metadata(func(m *kmsg.MetadataResponse) { m.Topics[0].Partitions[0].Leader = 1 }), true},
		{"a replica of the other tier", metadata(func(m *kmsg.MetadataResponse) { m.Topics[0].Partitions[0].Replicas[0] = 1 }), true},
		{"DescribeCluster as it should be", cluster(1, first+2), false},
		{"DescribeCluster with a raw port", cluster(1, 9092), true},
		{"DescribeCluster with a diskless broker", cluster(1+disklessBit, first+3), true},
		{"a coordinator as it should be", coordinator(4, 1, first+2), false},
		{"a coordinator at a raw port", coordinator(4, 1, 9092), true},
		{"the same in an old version", coordinator(2, 1, 9092), true},
		{"a diskless coordinator", coordinator(4, 1+disklessBit, first+3), true},
		{"Produce that names no leader", produce(-1), false},
		{"Produce that names the leader and its address", produce(1+disklessBit, 1+disklessBit, first+3), false},
		{"Produce with a leader without an address", produce(1 + disklessBit), true},
		{"Produce with a raw address", produce(1+disklessBit, 1+disklessBit, 9092), true},
		{"Produce with a leader of the other tier", produce(1, 1, first+2), true},
		{"Fetch that names no leader", fetch(-1, -1), false},
		{"Fetch that names the leader and its address", fetch(1+disklessBit, -1, 1+disklessBit, first+3), false},
		{"Fetch with a leader without an address", fetch(1+disklessBit, -1), true},
		{"Fetch with a raw address", fetch(-1, -1, 1, 9092), true},
		{"Fetch that sends readers to a follower", fetch(-1, 2), false},
		{"Fetch that sends readers to where there is none", fetch(-1, 2+disklessBit), true},
	} {
		s := &sniffer{host: clientSide, first: first, answers: make(map[int16]int), names: make(map[[16]byte]string)}
		frame := binary.BigEndian.AppendUint32(make([]byte, 4), 7)
		if c.resp.IsFlexible() {
			frame = append(frame, 0)
		}
		s.look(asked{c.resp.Key(), c.resp.GetVersion(), 7}, c.resp.AppendTo(frame))
		if s.answers[c.resp.Key()] != 1 {
			t.Errorf("%s: it was not looked at", c.what)
		}
		if got := len(s.broken) > 0; got != c.wrong {
			t.Errorf("%s: complaints %q", c.what, s.broken)
		}
	}
}
