package tiers

import "sync/atomic"

// Producer is a client connection that produces, as far as the diskless tier
// needs to tell connections apart: it seals an object early when every
// connection that waits for it has nothing more to send. The zero value is a
// connection without requests.
type Producer struct {
	inFlight atomic.Int32
	requests atomic.Uint64
}

// Begin counts a Produce request whose batches are about to be offloaded, and
// returns its number, which no other request of the connection has. End counts
// its answer, or that there will be none.
func (p *Producer) Begin() uint64 {
	p.inFlight.Add(1)
	return p.requests.Add(1)
}

// End is called once for each Begin.
func (p *Producer) End() { p.inFlight.Add(-1) }

// InFlight is the number of requests that have begun and not ended.
func (p *Producer) InFlight() int { return int(p.inFlight.Load()) }
