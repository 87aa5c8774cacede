package lowlatency

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sync/semaphore"
)

// dials bounds the connections to each broker that are being made for clients.
// When a replica dies, all of its clients come to the others at once, and each
// needs a connection of its own: brokers must not meet that as a storm.
// Whoever waits here waits in its own connection and holds nobody else up.
type dials struct {
	atOnce  int // per address
	queue   int // waiting, per address
	metrics *metrics

	mu    sync.Mutex
	gates map[string]*gate // of addresses that somebody dials
}

type gate struct {
	slots *semaphore.Weighted // first come, first served
	users int                 // dialing and waiting
}

var errDialQueue = errors.New("too many clients wait for a connection to this broker (limits.dial_queue)")

func newDials(atOnce, queue int, m *metrics) *dials {
	return &dials{atOnce: atOnce, queue: queue, metrics: m, gates: make(map[string]*gate)}
}

// do runs dial when it is its turn, unless ctx ends before or the queue is full.
func (d *dials) do(ctx context.Context, addr string, dial func() (net.Conn, error)) (net.Conn, error) {
	d.mu.Lock()
	g := d.gates[addr]
	if g == nil {
		g = &gate{slots: semaphore.NewWeighted(int64(d.atOnce))}
		d.gates[addr] = g
	}
	if g.users >= d.atOnce+d.queue {
		d.mu.Unlock()
		d.metrics.dialsRefused.Inc()
		return nil, errDialQueue
	}
	g.users++
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		if g.users--; g.users == 0 {
			delete(d.gates, addr)
		}
		d.mu.Unlock()
	}()
	d.metrics.dialsWaiting.Inc()
	err := g.slots.Acquire(ctx, 1)
	d.metrics.dialsWaiting.Dec()
	if err != nil {
		return nil, fmt.Errorf("waiting for %d dials that are under way (limits.dials_per_broker): %w", d.atOnce, err)
	}
	defer g.slots.Release(1)
	d.metrics.dialing.Inc()
	defer d.metrics.dialing.Dec()
	return dial()
}
