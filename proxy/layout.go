package proxy

import (
	"fmt"
	"net"
	"strconv"
)

// disklessBit separates a broker's two identities: the diskless broker of node
// n is n + 2^20. Kafka's node ids are far below.
const disklessBit int32 = 1 << 20

// disklessID is the id by which clients know node n's diskless broker.
func disklessID(n int32) int32 { return n | disklessBit }

// realID maps either identity to the broker's own node id.
func realID(n int32) int32 {
	if n < 0 {
		return n // -1 is "none" everywhere in the protocol
	}
	return n &^ disklessBit
}

// NodeRange is an inclusive range of broker node ids.
type NodeRange struct{ First, Last int32 }

// Layout computes every address that clients are told from node ids alone, so
// that all replicas agree without talking: port FirstPort + 2i for node i's
// low-latency listener, the one after it for its diskless listener, where i is
// the id's position in Nodes.
type Layout struct {
	Advertise string // host that clients are told
	Bind      string // host that the broker listeners bind
	FirstPort int
	Nodes     []NodeRange // ascending, not overlapping
}

// Count is the number of node ids that the layout covers.
func (l Layout) Count() int {
	n := 0
	for _, r := range l.Nodes {
		n += int(r.Last-r.First) + 1
	}
	return n
}

// Port is where clients reach a node (either identity); ok is false when the
// id is outside the configured ranges.
func (l Layout) Port(id int32) (port int32, ok bool) {
	if id < 0 {
		return 0, false
	}
	at, real := int32(0), realID(id)
	for _, r := range l.Nodes {
		if real >= r.First && real <= r.Last {
			port := int32(l.FirstPort) + 2*(at+real-r.First)
			if id != real {
				port++
			}
			return port, true
		}
		at += r.Last - r.First + 1
	}
	return 0, false
}

// each calls fn for every listener of the layout with the id it stands for.
func (l Layout) each(fn func(id int32, addr string) error) error {
	for _, r := range l.Nodes {
		for n := r.First; n <= r.Last; n++ {
			for _, id := range [...]int32{n, disklessID(n)} {
				port, _ := l.Port(id)
				if err := fn(id, net.JoinHostPort(l.Bind, strconv.Itoa(int(port)))); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (l Layout) validate() error {
	if l.Advertise == "" {
		return fmt.Errorf("proxy: no host to advertise")
	}
	if last := l.FirstPort + 2*l.Count() - 1; l.FirstPort < 1 || last > 65535 {
		return fmt.Errorf("proxy: broker ports %d to %d are not all valid ports", l.FirstPort, last)
	}
	return nil
}
