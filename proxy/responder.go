package proxy

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

var errUnexpectedAnswer = errors.New("the broker answered a request that was not sent")

// expect queues r for the responder. Answers come in the order of requests,
// so the queue's head is always the next.
func (c *conn) expect(r *request) {
	c.expectedMu.Lock()
	c.expected = append(c.expected, r)
	c.expectedMu.Unlock()
}

// answerHere queues a local answer, or writes it when nothing is before it.
// Local answers are written under expectedMu, which keeps them in order; a
// client that does not read them only stops itself.
func (c *conn) answerHere(r *request) {
	r.in.release()
	c.expectedMu.Lock()
	defer c.expectedMu.Unlock()
	c.expected = append(c.expected, r)
	if len(c.expected) == 1 {
		c.writeLocal()
	}
}

// writeLocal writes local answers from the head of the queue until there is a
// request that the broker answers. expectedMu is held.
func (c *conn) writeLocal() {
	for len(c.expected) > 0 && c.expected[0].local != nil {
		r := c.expected[0]
		c.sendFrame(r.local)
		c.answeredHead(r)
	}
}

// answeredHead takes the queue's head off it. expectedMu is held.
func (c *conn) answeredHead(r *request) {
	copy(c.expected, c.expected[1:]) // rarely more than a few
	c.expected[len(c.expected)-1] = nil
	c.expected = c.expected[:len(c.expected)-1]
	if r.internal == nil {
		c.p.metrics.answered(r)
		c.finish(r)
	}
}

// responder reads the broker's answers and hands each to the client.
func (c *conn) responder() error {
	in := newFrameReader(c.toBroker.Conn, c.p.limits.MaxFrameBytes)
	var resp frame
	for {
		n, err := in.await()
		if err != nil {
			return fmt.Errorf("reading from broker: %w", err)
		}
		if err := c.p.responses.take(c.ctx, n, &resp, c.listener()); err != nil {
			return err
		}
		if err := in.fill(&resp); err != nil {
			return fmt.Errorf("reading from broker: %w", err)
		}
		err = c.respond(&resp)
		resp.release()
		if err != nil {
			return err
		}
	}
}

func (c *conn) respond(resp *frame) error {
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
	if r.api.login() && !c.welcome.Load() {
		c.welcome.Store(true)
	}
	if r.api.poll() && len(resp.b) <= smallFrame && c.p.owed.Load() > 0 {
		// An acknowledgement and the Fetch that its records end come together, and
		// the scheduler begins with what came last. Somebody waits for the former.
		runtime.Gosched()
	}
	c.landed(r) // before the client takes it, for which others must not wait
	var out [][]byte
	switch {
	case r.internal != nil:
		r.internal(resp, nil)
	case r.answer != nil:
		if r.api.Treatment == Map && len(resp.b) > smallFrame {
			// It is decoded and encoded anew: a large cluster's Metadata.
			if err := r.awaitRoom(c.ctx, c, decodedFactor*len(resp.b)); err != nil {
				return err
			}
		}
		var err error
		out, err = r.answer(c, r, resp)
		if r.hydrated > 0 {
			defer c.p.hydrated.release(r.hydrated)
		}
		for _, done := range r.lent {
			defer done()
		}
		if err != nil {
			return fmt.Errorf("answer of %s v%d: %w", r.api.Name, r.version, err)
		}
		fallthrough
	default:
		if out != nil {
			c.send(out)
		} else {
			c.sendFrame(resp.b)
		}
	}
	c.expectedMu.Lock()
	defer c.expectedMu.Unlock()
	c.answeredHead(r)
	c.writeLocal()
	return nil
}

// send hands one whole answer to the client, if it is still there. A client
// that takes no byte for WriteTimeout is given up: it holds an answer in memory.
func (c *conn) send(out [][]byte) {
	if c.hears() {
		c.sent(c.toClient.writeAll(out))
	}
}

func (c *conn) sendFrame(b []byte) {
	if c.hears() {
		c.sent(c.toClient.writeOne(b))
	}
}

func (c *conn) sent(n int, err error) {
	c.p.metrics.clientBytes.Add(float64(n))
	switch {
	case err == nil:
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		// It has gone, and may have sent before that what nobody has read yet:
		// the reader comes to its end.
		c.deaf.Store(true)
		c.readDeadline(c.p.limits.DrainTimeout)
	default:
		c.lose(fmt.Errorf("writing to client: %w", err))
	}
}

// hears reports whether the client may still take answers.
func (c *conn) hears() bool { return !c.deaf.Load() && !c.isGone() }
