package proxy

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// arrivals tells how far a client's bytes have been accepted: whether what had
// reached this machine by some moment has been through the reader. Batches are
// kept in order from when they are accepted (crossings.go); but readers of two
// connections run in any order, and one of them may just be waiting for
// something. So a client's first batch on another connection is not accepted
// before what it had sent on this one is.
type arrivals struct {
	// A reader changes these in this order: drained is unset before bytes are
	// taken off the socket, partial is set before the socket is found empty.
	drained  atomic.Bool // nothing was left in the socket
	partial  atomic.Bool // part of a frame was read, or one is being accepted
	accepted int64       // bytes of frames; reader only

	unread  func() int // bytes that wait in the socket; 0 where the system does not tell
	layered bool       // another layer lies between, TLS, and may hold bytes too: only an empty socket tells

	waits   atomic.Int32 // len(waiting)
	mu      sync.Mutex
	waiting []*arrival
	passive bool // the reader has ended, or waits for another connection's
}

// arrival is somebody who waits.
type arrival struct {
	to   int64 // accepted bytes until which; 0 is not known yet
	done chan struct{}
}

// await returns what is closed when everything that has arrived is accepted, or
// nil when it is.
func (a *arrivals) await() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.passive {
		return nil
	}
	w := &arrival{done: make(chan struct{})}
	a.waiting = append(a.waiting, w)
	a.waits.Add(1) // before looking: from now on the reader tells
	// In this order: what is no longer in the socket has unset drained.
	if a.unread() == 0 && a.drained.Load() && !a.partial.Load() {
		a.waiting = a.waiting[:len(a.waiting)-1]
		a.waits.Add(-1)
		return nil
	}
	return w.done
}

// empty notes that the socket is.
func (a *arrivals) empty() {
	a.drained.Store(true)
	if a.waits.Load() > 0 && !a.partial.Load() {
		a.release(func(*arrival) bool { return true })
	}
}

// begin notes that bytes have been read and not been accepted.
func (a *arrivals) begin() { a.partial.Store(true) }

// accept notes that a frame of n bytes was accepted; more have been read
// already. A client that never stops sending is not waited for longer than for
// what it had sent by the end of the frame that was being read.
func (a *arrivals) accept(n, more int) {
	a.accepted += int64(n)
	if more == 0 {
		a.partial.Store(false)
	}
	if a.waits.Load() == 0 {
		return
	}
	arrived := a.accepted + int64(more) + int64(a.unread())
	if a.layered {
		arrived += maxLayered
	}
	a.release(func(w *arrival) bool {
		if w.to == 0 {
			w.to = arrived
		}
		return w.to <= a.accepted
	})
}

// maxLayered is what TLS may hold of what it took off the socket: a record.
const maxLayered = 16 << 10

func (a *arrivals) release(accepted func(*arrival) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting = slices.DeleteFunc(a.waiting, func(w *arrival) bool {
		if !accepted(w) {
			return false
		}
		close(w.done)
		a.waits.Add(-1)
		return true
	})
}

// rest makes nobody wait, until resume.
func (a *arrivals) rest() {
	a.mu.Lock()
	a.passive = true
	a.mu.Unlock()
	a.release(func(*arrival) bool { return true })
}

func (a *arrivals) resume() {
	a.mu.Lock()
	a.passive = false
	a.mu.Unlock()
}

// family is the connections of one client to one broker that have brought a
// Produce, by listener: several clients, where they share an address and an id.
type family struct {
	key familyKey

	mu      sync.Mutex
	members [2][]*conn      // by listener, that of the low-latency tier first
	last    map[uint64]bool // the listener that brought a partition's last batch, by hash
	forgot  bool            // last is not complete
}

type familyKey struct {
	from uint64 // of crossings
	node int32
}

const (
	// maxFamily bounds the connections that are waited for: more of one name on one
	// listener are several clients.
	maxFamily = 8
	// maxLast bounds what a family remembers of partitions; beyond it all of it is
	// forgotten, and who brings a partition that is not known may have moved.
	maxLast = 4096
)

// families are the clients that produce.
type families struct {
	mu sync.Mutex
	by map[familyKey]*family
}

func side(diskless bool) int {
	if diskless {
		return 1
	}
	return 0
}

// join makes c a member of a client's family; only its reader calls it.
func (fs *families) join(c *conn, from uint64) *family {
	key := familyKey{from, c.node}
	if c.family != nil && c.family.key == key {
		return c.family
	}
	fs.leave(c)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.by[key]
	if f == nil {
		f = &family{key: key}
		fs.by[key] = f
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := side(c.diskless)
	f.members[s] = append(f.members[s], c)
	c.family = f
	return f
}

func (fs *families) leave(c *conn) {
	f := c.family
	if f == nil {
		return
	}
	c.family = nil
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	s := side(c.diskless)
	f.members[s] = slices.DeleteFunc(f.members[s], func(m *conn) bool { return m == c })
	if len(f.members[0])+len(f.members[1]) == 0 {
		delete(fs.by, f.key)
	}
}

// moved notes on which listener a request's partitions came in. For those whose
// last batch came in on the other one it returns the connections there. Whoever
// has not moved waits for none: a connection that is held up, by a store that is
// away perhaps, must not hold up what was never on it.
func (f *family) moved(passages []passage, diskless bool) (others []*conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last == nil || len(f.last) > maxLast {
		f.forgot = f.last != nil
		f.last = make(map[uint64]bool)
	}
	moved := false
	for i := range passages {
		h := passages[i].place
		last, known := f.last[h]
		if known && last == diskless {
			continue
		}
		moved = moved || known || f.forgot
		f.last[h] = diskless
	}
	there := f.members[1-side(diskless)]
	if !moved || len(there) > maxFamily {
		return nil
	}
	return slices.Clone(there)
}

// awaitArrived returns when what the client has sent on other connections is
// accepted. It blocks the reader. Two connections that wait for each other do
// not: what came before is then accepted on both.
func (c *conn) awaitArrived(others []*conn) {
	var all []<-chan struct{}
	for _, o := range others {
		if arrived := o.arrivals.await(); arrived != nil {
			all = append(all, arrived)
		}
	}
	if all == nil {
		return
	}
	c.p.metrics.crossedReads.Inc()
	c.arrivals.rest()
	defer c.arrivals.resume()
	limit := time.NewTimer(crossAtMost)
	defer limit.Stop()
	for _, arrived := range all {
		select {
		case <-arrived:
		case <-limit.C:
			c.p.metrics.crossedLate.Inc()
			return
		case <-c.present.Done():
			return
		}
	}
}
