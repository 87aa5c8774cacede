package proxy

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-kafka/sluice/tiers"
)

// request is one request on its way through a connection. Fields up to silent
// are the reader's and the forward step's; the responder must not look at
// them, for it may answer before the write that forwarded the request returns.
type request struct {
	in   frame // the client's frame; empty for a request of our own
	body int   // where the body begins in it

	// out, when set, goes upstream in the place of in.
	out [][]byte
	// ready, when set, is closed once the request may be forwarded; pending
	// counts what it still waits for. prepare then runs, in order, just before
	// forwarding.
	ready   chan struct{}
	pending atomic.Int32
	prepare func(*conn, *request)
	// silent requests have no answer (Produce with acks=0).
	silent bool

	api           *API
	version       int16
	correlationID int32
	received      time.Time
	owed          bool         // the connection counts it as such
	offloads      []*offloaded // Produce
	offloading    bool         // the connection's producer counts it
	destined      bool         // Produce: some batch is for the diskless tier
	denied        bool         // Produce: some batch is not stored, for its client may not write it
	unwanted      gate         // closed when it is dropped
	passages      []passage    // Produce
	room          [1]passage   // for passages, which are rarely more
	crossing      crossing     // while it waits for earlier ones
	limits        fetchLimits  // Fetch
	clientID      string
	charge        charge        // Produce
	holds         time.Duration // Produce, Fetch, ShareFetch: the broker may take so long to begin with what comes after it
	held          time.Duration // the same of any request, while the connection counts it

	decoded  int      // bytes that it may take beside its frame, until it is answered
	hydrated int      // bytes of the answer that are held beside its frame
	lent     []func() // to be called when it is written

	// local, when set, is the answer: nothing goes upstream.
	local []byte
	// answer turns the broker's answer into the client's; nil relays it. A nil
	// result means that the frame, perhaps patched in place, goes out as it is.
	answer func(*conn, *request, *frame) ([][]byte, error)
	// internal takes the answer to a request of our own; the client never
	// sees it.
	internal func(*frame, error)
}

// gate lets work on a request begin until it is closed.
type gate struct {
	mu     sync.Mutex
	closed bool
}

// whileWanted does work on a request that may be dropped meanwhile: then before
// it is, or not at all.
func (r *request) whileWanted(work func()) {
	r.unwanted.mu.Lock()
	defer r.unwanted.mu.Unlock()
	if !r.unwanted.closed {
		work()
	}
}

// await makes r wait for n more calls of its done method. The first time it
// also makes it wait for one by its handler: it must not be ready before it is
// known for how much it waits.
func (r *request) await(n int) {
	if r.ready == nil {
		r.ready = make(chan struct{})
		n++
	}
	r.pending.Add(int32(n))
}

// done counts one thing that r waited for.
func (r *request) done() {
	if r.pending.Add(-1) == 0 {
		close(r.ready)
	}
}

func (r *request) isReady() bool {
	if r.ready == nil {
		return true
	}
	select {
	case <-r.ready:
		return true
	default:
		return false
	}
}

// hold takes room for n bytes of the answer, until it is written, or says that
// there is none: memory is short, so the answer becomes shorter. It never
// waits, for it may hold some already.
func (r *request) hold(p *pot, n int) bool {
	if !p.grab(n) {
		return false
	}
	r.hydrated += n
	return true
}

// awaitRoom is hold for the first bytes of an answer. Who waits for them holds
// no more than the frame that they belong to, and whoever has them waits for
// none: so somebody always gets on.
func (r *request) awaitRoom(ctx context.Context, c *conn, n int) error {
	got, err := c.p.hydrated.await(ctx, n, c.listener())
	r.hydrated += got
	return err
}

// submit hands a request to the forward step. Only the reader calls it. When
// nothing is queued before it, it is forwarded right here, without another
// goroutine: the low-latency path.
func (c *conn) submit(r *request) error {
	c.queueMu.Lock()
	if !c.forwarding && r.isReady() {
		c.queueMu.Unlock()
		return c.forward(r)
	}
	c.queue = append(c.queue, r)
	if !c.forwarding {
		c.forwarding = true
		go c.forwarder()
	}
	c.queueMu.Unlock()
	return nil
}

// forwarder forwards queued requests in order, each when it is ready. It lives
// as long as there are any. After the client has gone, it still forwards what
// nobody will answer (acks=0): the client believes those sent.
func (c *conn) forwarder() {
	for {
		c.queueMu.Lock()
		if len(c.queue) == 0 {
			c.queue = nil
			c.forwarding = false
			c.queueIdle.Broadcast()
			c.queueMu.Unlock()
			return
		}
		r := c.queue[0]
		c.queue[0] = nil
		c.queue = c.queue[1:]
		c.queueMu.Unlock()

		wanted := c.present
		if r.silent {
			wanted = c.ctx
		}
		if r.ready != nil {
			select {
			case <-r.ready:
			case <-wanted.Done():
			}
		}
		if !r.isReady() || wanted.Err() != nil {
			c.drop(r)
			continue
		}
		if err := c.forward(r); err != nil {
			c.fail(err)
		}
	}
}

// drop forgets a request that will not be forwarded.
func (c *conn) drop(r *request) {
	c.p.metrics.dropped.Inc()
	r.unwanted.mu.Lock()
	r.unwanted.closed = true
	r.unwanted.mu.Unlock()
	r.in.forget()
	c.giveBack(r)
}

// giveBack returns what a request that will not be answered holds of limits.
func (c *conn) giveBack(r *request) {
	r.in.release()
	r.out = nil
	c.finish(r)
}

// finish returns what a request holds until it is answered or given up.
func (c *conn) finish(r *request) {
	c.landed(r)
	c.settle(r)
	<-c.slots
}

// settle notes that a request is no longer in flight.
func (c *conn) settle(r *request) {
	c.forgo(r)
	if r.owed {
		c.owed.Add(-1)
		c.p.owed.Add(-1)
	}
}

// What collects garbage counts on a placeholder being in the log, or nowhere, a
// while after its object was made (gc.DefaultMargin): these are what the proxy
// contributes to that.
const (
	// placeholderWrite bounds the whole write of a request with placeholders.
	placeholderWrite = 10 * time.Minute
	// maxHeld bounds how long a broker may take, by what it was asked, to begin
	// with a request behind all that it has not answered: it works on one at a time.
	// 256 requests that may wait for 30 s each are within it.
	maxHeld = 3 * time.Hour
	// longestHold of one request: a broker closes connections that are idle for as
	// long (connections.max.idle.ms).
	longestHold = 10 * time.Minute
)

// heldFor is how long a broker may hold a request of a kind.
func (a *API) heldFor() time.Duration {
	switch {
	case a.Key == 1:
		return time.Minute
	case a.poll():
		return longestHold
	}
	return time.Second
}

// landed notes that the broker has answered a request, or never will.
func (c *conn) landed(r *request) {
	c.held.Add(-int64(r.held))
	r.held = 0
	if r.offloading {
		r.offloading = false
		c.producer.End()
	}
	if r.passages != nil {
		c.p.crossings.leave(r.passages)
		r.passages = nil
	}
}

// forward sends one request upstream, or its local answer to the client, and
// notes what is expected back. Callers are never concurrent.
func (c *conn) forward(r *request) error {
	if r.destined {
		// Before the placeholders' ages are looked at: nothing may take long after.
		if err := c.dialOnce(); err != nil {
			c.giveBack(r)
			return err
		}
	}
	if r.prepare != nil {
		r.prepare(c, r)
	}
	if r.local != nil {
		c.answerHere(r)
		return nil
	}
	if err := c.dialOnce(); err != nil {
		c.giveBack(r)
		return err
	}
	c.upstreamMu.Lock()
	defer c.upstreamMu.Unlock()
	if r.silent {
		c.sentSilent.Store(true)
	} else {
		r.held = max(r.holds, r.api.heldFor())
		c.held.Add(int64(r.held))
		c.expect(r)
	}
	if r.destined && r.out != nil {
		c.toBroker.until = time.Now().Add(placeholderWrite)
		defer func() { c.toBroker.until = time.Time{} }()
	}
	var err error
	if r.out != nil {
		_, err = c.toBroker.writeAll(r.out)
	} else {
		_, err = c.toBroker.writeOne(r.in.b)
	}
	// The answer needs nothing of the request's bytes.
	r.in.release()
	r.out = nil
	if r.silent {
		c.mute(c.p.throttle.record(c, tiers.ProduceQuota, r.charge))
		c.finish(r)
	}
	if err != nil {
		return brokerError{fmt.Errorf("writing to broker: %w", err)}
	}
	c.p.metrics.forwarded.Inc()
	return nil
}
