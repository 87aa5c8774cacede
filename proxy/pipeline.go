package proxy

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// request is one request on its way through a connection.
type request struct {
	api           *API
	version       int16
	correlationID int32
	received      time.Time

	in   *frame // the client's frame; nil for a request of our own
	body int    // where the body begins in it

	// out, when set, goes upstream in the place of in.
	out [][]byte
	// ready, when set, is closed once the request may be forwarded; pending
	// counts what it still waits for. prepare then runs, in order, just before
	// forwarding.
	ready   chan struct{}
	pending atomic.Int32
	prepare func() error
	// local, when set, is the answer: nothing goes upstream.
	local []byte
	// silent requests have no answer (Produce with acks=0).
	silent bool
	// offloading requests are counted by the connection's producer.
	offloading bool
	// answer turns the broker's answer into the client's; nil relays it. A nil
	// result means that the frame, perhaps patched in place, goes out as it is.
	answer func(*frame) ([][]byte, error)
	// internal takes the answer to a request of our own; the client never
	// sees it.
	internal func(*frame, error)
}

// wait makes r wait for n calls of its done method.
func (r *request) wait(n int) {
	r.ready = make(chan struct{})
	r.pending.Store(int32(n))
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
			c.forwarding = false
			c.queueIdle.Broadcast()
			c.queueMu.Unlock()
			return
		}
		r := c.queue[0]
		c.queue[0] = nil
		c.queue = c.queue[1:]
		c.queueMu.Unlock()

		if r.ready != nil {
			if r.silent {
				select {
				case <-r.ready:
				case <-c.ctx.Done():
				}
			} else {
				select {
				case <-r.ready:
				case <-c.gone:
				case <-c.ctx.Done():
				}
			}
		}
		if !r.isReady() || c.isGone() && !r.silent || c.ctx.Err() != nil {
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
	r.in.forget()
	c.finish(r)
}

// finish gives back what a request holds of the connection's limits.
func (c *conn) finish(r *request) {
	r.in.release()
	if r.offloading {
		c.producer.End()
	}
	if r.internal == nil {
		<-c.slots
	}
}

// forward sends one request upstream, or its local answer to the client, and
// notes what is expected back. Callers are never concurrent, requests of our
// own excepted.
func (c *conn) forward(r *request) error {
	if r.prepare != nil {
		if err := r.prepare(); err != nil {
			c.finish(r)
			return err
		}
	}
	if r.local != nil {
		return c.answerHere(r)
	}
	upstream, err := c.dialOnce()
	if err != nil {
		c.finish(r)
		return err
	}
	c.upstreamMu.Lock()
	defer c.upstreamMu.Unlock()
	in, out := r.in, r.out
	if r.silent {
		defer c.finish(r)
		c.sentSilent = true
	} else {
		// The answer needs nothing of the request's bytes, and may come, and
		// the responder finish r, before the write has returned.
		r.in, r.out = nil, nil
		defer in.release()
		c.expect(r)
	}
	if out != nil {
		buffers := net.Buffers(out)
		_, err = buffers.WriteTo(upstream)
	} else {
		_, err = upstream.Write(in.b)
	}
	if err != nil {
		return fmt.Errorf("writing to broker: %w", err)
	}
	c.p.metrics.forwarded.Inc()
	return nil
}

// expect queues r for the responder. Answers come in the order of requests,
// so the queue's head is always the next.
func (c *conn) expect(r *request) {
	c.expectedMu.Lock()
	c.expected = append(c.expected, r)
	c.expectedMu.Unlock()
}

// answerHere queues a local answer, or writes it when nothing is before it.
// Local answers are written under expectedMu, which keeps them in order; they
// are small, and a client that does not read them only stops itself.
func (c *conn) answerHere(r *request) error {
	c.expectedMu.Lock()
	defer c.expectedMu.Unlock()
	c.expected = append(c.expected, r)
	if len(c.expected) > 1 {
		return nil
	}
	return c.writeLocal()
}

// writeLocal writes local answers from the head of the queue until there is a
// request that the broker answers. expectedMu is held.
func (c *conn) writeLocal() error {
	for len(c.expected) > 0 && c.expected[0].local != nil {
		r := c.expected[0]
		c.expected[0] = nil
		c.expected = c.expected[1:]
		err := c.writeClient([][]byte{r.local})
		c.p.metrics.answered(r)
		c.finish(r)
		if err != nil {
			return err
		}
	}
	if len(c.expected) == 0 {
		c.expected = c.expected[:0:cap(c.expected)]
	}
	return nil
}

var errUnexpectedAnswer = errors.New("the broker answered a request that was not sent")

// responder reads the broker's answers and hands each to the client.
func (c *conn) responder(upstream net.Conn) error {
	in := newFrameReader(upstream, c.p.limits.MaxFrameBytes, c.p.responses)
	for {
		resp, err := in.next(c.ctx, nil)
		if err != nil {
			return fmt.Errorf("reading from broker: %w", err)
		}
		if err := c.respond(resp); err != nil {
			resp.release()
			return err
		}
		resp.release()
	}
}

func (c *conn) respond(resp *frame) error {
	if len(resp.b) < wire.SizePrefix+4 {
		return fmt.Errorf("answer from broker: %w", wire.ErrMalformed)
	}
	c.expectedMu.Lock()
	if len(c.expected) == 0 {
		c.expectedMu.Unlock()
		return errUnexpectedAnswer
	}
	r := c.expected[0] // stays at the head until written: nobody overtakes it
	c.expectedMu.Unlock()
	if got := wire.CorrelationID(resp.b); got != r.correlationID {
		return fmt.Errorf("%w: correlation id %d, expected %d (%s v%d)", errUnexpectedAnswer, got, r.correlationID, r.api.Name, r.version)
	}
	var err error
	switch {
	case r.internal != nil:
		r.internal(resp, nil)
	default:
		out := [][]byte{resp.b}
		if r.answer != nil {
			replaced, err := r.answer(resp)
			if err != nil {
				return fmt.Errorf("answer of %s v%d: %w", r.api.Name, r.version, err)
			}
			if replaced != nil {
				out = replaced
			}
		}
		if !c.isGone() {
			err = c.writeClient(out)
		}
		c.p.metrics.answered(r)
	}
	c.expectedMu.Lock()
	defer c.expectedMu.Unlock()
	c.expected[0] = nil
	c.expected = c.expected[1:]
	c.finish(r)
	if err != nil {
		return err
	}
	return c.writeLocal()
}

// writeChunk is how much is written under one deadline, so that a slow client
// has to make progress, not to finish.
const writeChunk = 1 << 20

// writeClient writes one whole answer. A client that takes no byte for
// WriteTimeout is given up: it holds an answer in memory.
func (c *conn) writeClient(out [][]byte) error {
	n := 0
	for len(out) > 0 {
		// As many whole slices as fit a chunk go into one vectored write.
		var batch net.Buffers
		size := 0
		for len(out) > 0 && size < writeChunk {
			b := out[0]
			if len(b) > writeChunk-size {
				b = b[:writeChunk-size]
				out[0] = out[0][len(b):]
			} else {
				out = out[1:]
			}
			batch = append(batch, b)
			size += len(b)
		}
		if err := c.client.SetWriteDeadline(time.Now().Add(c.p.limits.WriteTimeout)); err != nil {
			return err
		}
		wrote, err := batch.WriteTo(c.client)
		n += int(wrote)
		c.p.metrics.clientBytes.Add(float64(wrote))
		if err != nil {
			return fmt.Errorf("writing to client: %w", err)
		}
	}
	return nil
}
