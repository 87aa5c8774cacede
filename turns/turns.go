// Package turns bounds how many at a time do work that would take any number of
// CPUs: moving the bytes of diskless answers.
//
// Go looks for what has arrived on sockets where nothing else can run, and otherwise
// each 10 ms. A replay from objects has always something that can run; then a request
// of a few hundred bytes waits for those 10 ms twice, on its way to the broker and
// back. So such work leaves one of the CPUs that Go uses idle.
package turns

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Piece is the most bytes to be moved in one turn, where they may be moved in pieces:
// some 100 µs.
const Piece = 256 << 10

// Small is so few bytes that nobody else notices, and that need not wait for a turn.
const Small = 16 << 10

// calm is how long nobody else must have been about for what is theirs to be used.
// A consumer at the tail asks twice as often, whether there is something or not.
const calm = time.Second

// Turns are taken around work that waits for nothing: not for a peer, a lock that is
// held for long, or another turn. So everybody has one in the end. They come in the
// order in which they were asked for; who has many pieces asks as many times. A nil
// *Turns has always one.
type Turns struct {
	some   chan struct{} // one element for each that is taken
	rest   chan struct{} // those that are there while nobody else is about
	others atomic.Int64  // unix nanoseconds when somebody else was last about
	waited atomic.Int64  // nanoseconds
}

// New returns Turns of which so many are taken at a time while somebody else is about,
// and otherwise all.
func New(some, all int, metrics prometheus.Registerer) *Turns {
	some = max(some, 1)
	t := &Turns{some: make(chan struct{}, some), rest: make(chan struct{}, max(all-some, 0))}
	metrics.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_bulk_turns", Help: "CPUs that move bytes of diskless answers now (limits.bulk_cpus).",
		}, func() float64 { return float64(len(t.some) + len(t.rest)) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sluice_bulk_wait_seconds_total", Help: "Seconds that diskless answers have waited for one of them.",
		}, func() float64 { return time.Duration(t.waited.Load()).Seconds() }),
	)
	return t
}

// Others notes that there is something else to do, which must not wait.
func (t *Turns) Others(now time.Time) {
	if t == nil {
		return
	}
	// Written seldom: all CPUs read it.
	if n := now.UnixNano(); n-t.others.Load() > int64(calm/8) {
		t.others.Store(n)
	}
}

// Turn is to be given back.
type Turn struct{ of chan struct{} }

// Take waits for a turn.
func (t *Turns) Take() Turn {
	if t == nil {
		return Turn{}
	}
	select {
	case t.some <- struct{}{}:
		return Turn{t.some}
	default:
	}
	began := time.Now()
	rest := t.rest
	if began.UnixNano()-t.others.Load() < int64(calm) {
		rest = nil
	}
	select {
	case rest <- struct{}{}:
		return Turn{rest}
	default:
	}
	defer func() { t.waited.Add(int64(time.Since(began))) }()
	select {
	case t.some <- struct{}{}:
		return Turn{t.some}
	case rest <- struct{}{}:
		return Turn{rest}
	}
}

// Give gives a turn back.
func (t Turn) Give() {
	if t.of != nil {
		<-t.of
	}
}
