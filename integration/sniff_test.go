package integration

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// sniffer relays TCP between clients and a sluice and reads along: whatever
// names a broker in an answer must name this proxy, and every id that is named
// must be one that the client can look up. It listens on the advertised
// address, sluice on the same ports of another.
type sniffer struct {
	host  string // advertised
	first int    // first broker port

	mu      sync.Mutex
	broken  []string      // what was wrong
	answers map[int16]int // answers that were looked at, by key
	names   map[[16]byte]string
	hints   []hint
}

// hint is one leader named in a Produce or Fetch answer (KIP-951).
type hint struct {
	key       int16
	topic     string
	leader    int32
	endpoints []int32
}

// disklessBit is documented: a broker's diskless twin is n + 2^20.
const disklessBit = 1 << 20

// maxBroken bounds what is remembered of a flood.
const maxBroken = 100

// startSniffer relays host's ports to sluice's. admin is not relayed.
func startSniffer(t testing.TB, host, sluiceHost string, first int) *sniffer {
	t.Helper()
	s := &sniffer{
		host: host, first: first + 2, answers: make(map[int16]int), names: make(map[[16]byte]string),
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := make(map[net.Conn]struct{})
	var listeners []net.Listener
	for port := first; port < first+replicaPorts; port++ {
		if port == first+1 {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		wg.Go(func() {
			for {
				client, err := l.Accept()
				if err != nil {
					return
				}
				server, err := net.Dial("tcp", net.JoinHostPort(sluiceHost, strconv.Itoa(port)))
				if err != nil {
					_ = client.Close()
					continue
				}
				mu.Lock()
				open[client], open[server] = struct{}{}, struct{}{}
				mu.Unlock()
				wg.Go(func() {
					s.relay(client, server)
					mu.Lock()
					defer mu.Unlock()
					delete(open, client)
					delete(open, server)
				})
			}
		})
	}
	t.Cleanup(func() {
		for _, l := range listeners {
			_ = l.Close()
		}
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}

// asked is a request whose answer is due.
type asked struct {
	key, version  int16
	correlationID int32
}

func (s *sniffer) relay(client, server net.Conn) {
	var mu sync.Mutex
	var due []asked
	var wg sync.WaitGroup
	wg.Go(func() {
		defer server.Close()
		for {
			frame, err := readFrame(client)
			if err != nil {
				return
			}
			a := asked{int16(binary.BigEndian.Uint16(frame[4:])), int16(binary.BigEndian.Uint16(frame[6:])), int32(binary.BigEndian.Uint32(frame[8:]))}
			if !silent(a, frame) {
				mu.Lock()
				due = append(due, a)
				mu.Unlock()
			}
			if _, err := server.Write(frame); err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		defer client.Close()
		for {
			frame, err := readFrame(server)
			if err != nil {
				return
			}
			mu.Lock()
			var a asked
			if len(due) > 0 {
				a, due = due[0], due[1:]
			}
			mu.Unlock()
			if got := int32(binary.BigEndian.Uint32(frame[4:])); got != a.correlationID {
				s.complain("an answer has correlation id %d, expected %d (%s v%d)", got, a.correlationID, kmsg.NameForKey(a.key), a.version)
				return
			}
			s.look(a, frame)
			if _, err := client.Write(frame); err != nil {
				return
			}
		}
	})
	wg.Wait()
}

// readFrame returns a frame with its size prefix.
func readFrame(c net.Conn) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < 4 || n > 200<<20 {
		return nil, fmt.Errorf("frame of %d bytes", n)
	}
	frame := make([]byte, 4+n)
	copy(frame, size[:])
	_, err := io.ReadFull(c, frame[4:])
	return frame, err
}

// silent reports whether a request is a Produce that wants no answer.
func silent(a asked, frame []byte) bool {
	if a.key != 0 {
		return false
	}
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(a.version)
	at := 12
	if n := int16(binary.BigEndian.Uint16(frame[at:])); n > 0 {
		at += int(n)
	}
	at += 2
	if req.IsFlexible() {
		at++ // clients of these tests send no tagged fields in headers
	}
	return req.ReadFrom(frame[at:]) == nil && req.Acks == 0
}

func (s *sniffer) complain(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.broken) < maxBroken {
		s.broken = append(s.broken, fmt.Sprintf(format, args...))
	}
}

// verify fails the test over what clients were wrongly told until now.
func (s *sniffer) verify(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.broken {
		t.Errorf("a client was told: %s", b)
	}
	s.broken = nil
}

func (s *sniffer) look(a asked, frame []byte) {
	resp := kmsg.ResponseForKey(a.key)
	switch resp.(type) {
	case *kmsg.MetadataResponse, *kmsg.DescribeClusterResponse, *kmsg.FindCoordinatorResponse, *kmsg.ProduceResponse, *kmsg.FetchResponse:
	default:
		return
	}
	body := frame[8:]
	resp.SetVersion(a.version)
	if resp.IsFlexible() {
		body = body[1:] // no tagged fields in the header
	}
	if err := resp.ReadFrom(body); err != nil {
		s.complain("%s v%d that does not parse: %v", kmsg.NameForKey(a.key), a.version, err)
		return
	}
	s.mu.Lock()
	s.answers[a.key]++
	s.mu.Unlock()
	switch resp := resp.(type) {
	case *kmsg.MetadataResponse:
		s.metadata(resp)
	case *kmsg.DescribeClusterResponse:
		var nodes []int32
		for _, b := range resp.Brokers {
			s.node("DescribeCluster", b.NodeID, b.Host, b.Port)
			nodes = append(nodes, b.NodeID)
			if b.NodeID >= disklessBit {
				s.complain("DescribeCluster names the diskless broker %d", b.NodeID)
			}
		}
		s.known("DescribeCluster's controller", nodes, resp.ControllerID)
	case *kmsg.FindCoordinatorResponse:
		if a.version <= 3 && resp.ErrorCode == 0 {
			s.coordinator(resp.NodeID, resp.Host, resp.Port)
		}
		for _, c := range resp.Coordinators {
			if c.ErrorCode == 0 {
				s.coordinator(c.NodeID, c.Host, c.Port)
			}
		}
	case *kmsg.ProduceResponse:
		var nodes []int32
		for _, b := range resp.Brokers {
			s.node("Produce", b.NodeID, b.Host, b.Port)
			nodes = append(nodes, b.NodeID)
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				s.hint(a, t.Topic, t.TopicID, p.CurrentLeader.LeaderID, nodes)
			}
		}
	case *kmsg.FetchResponse:
		var nodes []int32
		for _, b := range resp.Brokers {
			s.node("Fetch", b.NodeID, b.Host, b.Port)
			nodes = append(nodes, b.NodeID)
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				s.hint(a, t.Topic, t.TopicID, p.CurrentLeader.LeaderID, nodes)
				// A follower that is nearer; there is none on the diskless tier.
				if p.PreferredReadReplica >= brokerIDs {
					s.complain("Fetch sends readers of %s to replica %d", t.Topic, p.PreferredReadReplica)
				}
			}
		}
	}
}

// node checks one id with its address.
func (s *sniffer) node(where string, id int32, host string, port int32) {
	want := s.first + 2*int(id&^disklessBit)
	if id >= disklessBit {
		want++
	}
	if id < 0 || id&^disklessBit >= brokerIDs || host != s.host || int(port) != want {
		s.complain("%s: node %d is at %s:%d, expected %s:%d", where, id, host, port, s.host, want)
	}
}

func (s *sniffer) coordinator(id int32, host string, port int32) {
	s.node("FindCoordinator", id, host, port)
	if id >= disklessBit {
		s.complain("FindCoordinator names the diskless broker %d", id)
	}
}

// known checks that an id can be looked up in a list of nodes; -1 is "none".
func (s *sniffer) known(what string, nodes []int32, ids ...int32) {
	for _, id := range ids {
		if id != -1 && !slices.Contains(nodes, id) {
			s.complain("%s is %d, which is none of the nodes %v", what, id, nodes)
		}
	}
}

func (s *sniffer) metadata(resp *kmsg.MetadataResponse) {
	var nodes []int32
	for _, b := range resp.Brokers {
		s.node("Metadata", b.NodeID, b.Host, b.Port)
		nodes = append(nodes, b.NodeID)
	}
	for _, id := range nodes {
		if !slices.Contains(nodes, id^disklessBit) {
			s.complain("Metadata names node %d without its twin: %v", id, nodes)
		}
	}
	s.known("Metadata's controller", nodes, resp.ControllerID)
	if resp.ControllerID >= disklessBit {
		s.complain("Metadata's controller is the diskless broker %d", resp.ControllerID)
	}
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		s.mu.Lock()
		s.names[t.TopicID] = *t.Topic
		s.mu.Unlock()
		for _, p := range t.Partitions {
			where := fmt.Sprintf("Metadata's %s-%d (leader %d, replicas %v, isr %v, offline %v)", *t.Topic, p.Partition, p.Leader, p.Replicas, p.ISR, p.OfflineReplicas)
			all := slices.Concat([]int32{p.Leader}, p.Replicas, p.ISR, p.OfflineReplicas)
			s.known(where, nodes, all...)
			for _, id := range all {
				if id != -1 {
					s.tier(where, *t.Topic, id)
				}
			}
		}
	}
}

// tier checks that an id belongs to the tier that a topic's name asks for.
func (s *sniffer) tier(where, topic string, id int32) {
	if strings.Contains(topic, "compact") || strings.HasSuffix(topic, "-changelog") || strings.Contains(topic, "flip") {
		return // their tier is not in their name
	}
	if strings.Contains(topic, "telemetry") && id < disklessBit || strings.Contains(topic, "control") && id >= disklessBit {
		s.complain("%s names node %d, which is of the other tier", where, id)
	}
}

func (s *sniffer) hint(a asked, topic string, id [16]byte, leader int32, nodes []int32) {
	if leader < 0 {
		return
	}
	s.mu.Lock()
	if topic == "" {
		topic = s.names[id]
	}
	s.hints = append(s.hints, hint{a.key, topic, leader, nodes})
	s.mu.Unlock()
	where := fmt.Sprintf("%s v%d: the leader of %s", kmsg.NameForKey(a.key), a.version, topic)
	// Produce since v10 and Fetch since v16 say where the leader is.
	if a.key == 0 && a.version >= 10 || a.key == 1 && a.version >= 16 {
		s.known(where, nodes, leader)
	}
	s.tier(where, topic, leader)
}

// looked fails the test when no answer of a key has passed.
func (s *sniffer) looked(t testing.TB, keys ...int16) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		if s.answers[key] == 0 {
			t.Errorf("no answer of %s has passed", kmsg.NameForKey(key))
		}
	}
}

// hinted counts the leaders named in answers of a key about a topic.
func (s *sniffer) hinted(key int16, topic string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.hints {
		if h.key == key && h.topic == topic {
			n++
		}
	}
	return n
}
