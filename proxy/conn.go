package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// conn is one client connection and the broker connection that belongs to it.
type conn struct {
	p        *Proxy
	log      zerolog.Logger
	client   net.Conn
	node     int32 // broker behind it, or AnyBroker
	diskless bool  // it arrived on a diskless listener

	ctx      context.Context // ends when the connection does
	cancel   context.CancelCauseFunc
	gone     chan struct{}     // closed when the client has gone: nobody reads answers any more
	slots    chan struct{}     // one for each request in flight
	names    map[string]string // topic names seen, so that looking one up does not allocate; reader only
	view     wire.Produce      // reader only
	welcome  bool              // the broker talks to this client; reader only
	producer tiers.Producer
	result   wire.ProduceResult // responder only
	fetchV   wire.FetchResult   // responder only

	dial     sync.Once
	upstream net.Conn
	dialErr  error
	answered chan struct{} // closed when the responder has ended

	upstreamMu sync.Mutex // serializes writes upstream, and their order in expected
	sentSilent bool

	queueMu    sync.Mutex
	queueIdle  *sync.Cond
	queue      []*request // read, not yet forwarded, in order
	forwarding bool       // a forwarder runs

	expectedMu sync.Mutex
	expected   []*request // forwarded, not yet answered, in order

	fetchState fetchState
}

func (p *Proxy) newConn(client net.Conn, node int32, diskless bool) *conn {
	c := &conn{
		p:        p,
		client:   client,
		node:     node,
		diskless: diskless,
		gone:     make(chan struct{}),
		slots:    make(chan struct{}, p.limits.RequestsInFlight),
		answered: make(chan struct{}),
		log:      p.log.With().Stringer("client", client.RemoteAddr()).Int32("node", node).Bool("diskless", diskless).Logger(),
	}
	c.queueIdle = sync.NewCond(&c.queueMu)
	c.ctx, c.cancel = context.WithCancelCause(p.ctx)
	return c
}

// errShutdown ends connections when the proxy stops.
var errShutdown = errors.New("the proxy shuts down")

// serve runs the connection to its end.
func (c *conn) serve() {
	// Whatever ends the connection also ends a blocked read or write.
	stop := context.AfterFunc(c.ctx, func() {
		_ = c.client.Close()
		c.queueMu.Lock()
		c.queueIdle.Broadcast()
		c.queueMu.Unlock()
	})
	defer stop()

	err := c.read()
	if errors.Is(err, errShutdown) {
		c.awaitAnswers()
	}
	close(c.gone)
	if isQuietEnd(err) {
		c.drain()
	}
	c.fail(err)
	_ = c.client.Close()
	c.dial.Do(func() { c.dialErr = net.ErrClosed })
	if c.upstream != nil {
		_ = c.upstream.Close()
		<-c.answered
	}
	c.awaitQueue()
	c.abandon()
	c.logEnd(context.Cause(c.ctx))
}

// drain sees to it that what the client sent without waiting for an answer
// reaches the broker although the client has gone.
func (c *conn) drain() {
	limit := time.AfterFunc(c.p.limits.DrainTimeout, func() { c.fail(errors.New("draining took too long")) })
	defer limit.Stop()
	c.awaitQueue()
	c.upstreamMu.Lock()
	silent := c.sentSilent
	c.upstreamMu.Unlock()
	if !silent || c.ctx.Err() != nil {
		return
	}
	// Closing a socket that holds unread answers resets it, and the broker
	// would lose what it has not read. So: end the stream, read to the end.
	if half, ok := c.upstream.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		select {
		case <-c.answered:
		case <-c.ctx.Done():
		}
	}
}

// awaitAnswers waits until every request that was read is answered: until all
// slots can be had.
func (c *conn) awaitAnswers() {
	<-c.slots // the reader's own, for the request that it did not read
	for range cap(c.slots) {
		select {
		case c.slots <- struct{}{}:
		case <-c.ctx.Done():
			return
		}
	}
}

func (c *conn) awaitQueue() {
	c.queueMu.Lock()
	for c.forwarding {
		c.queueIdle.Wait()
	}
	c.queueMu.Unlock()
}

// abandon gives back what requests without an answer still hold.
func (c *conn) abandon() {
	c.expectedMu.Lock()
	defer c.expectedMu.Unlock()
	for _, r := range c.expected {
		if r.internal != nil {
			r.internal(nil, net.ErrClosed)
		}
		r.in.forget()
	}
	c.expected = nil
}

// fail ends the connection; the first reason counts.
func (c *conn) fail(err error) { c.cancel(err) }

func (c *conn) isGone() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// isQuietEnd reports whether a client left as clients do.
func isQuietEnd(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrClosedPipe)
}

func (c *conn) logEnd(err error) {
	var tooLarge *FrameTooLargeError
	switch {
	case isQuietEnd(err) || errors.Is(err, net.ErrClosed) || errors.Is(err, errShutdown):
		c.log.Debug().Err(err).Msg("connection ended")
	case errors.As(err, &tooLarge), errors.Is(err, wire.ErrMalformed), errors.Is(err, errRefused):
		c.p.metrics.protocolErrors.Inc()
		c.p.warn(c.log).Err(err).Msg("connection closed: the client does not speak as a Kafka client should")
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.p.metrics.timeouts.Inc()
		c.p.warn(c.log).Err(err).Msg("connection closed: the client took too long")
	default:
		c.p.warn(c.log).Err(err).Msg("connection ended")
	}
}

// errRefused closes a connection over a request that clients may not send.
var errRefused = errors.New("request refused")

// read takes frames from the client until it ends.
func (c *conn) read() error {
	in := newFrameReader(c.client, c.p.limits.MaxFrameBytes, c.p.requests)
	begun := func() { c.readDeadline(c.p.limits.FrameTimeout) }
	idle := c.p.limits.FirstRequestTimeout
	for {
		select {
		case c.slots <- struct{}{}:
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
		c.readDeadline(idle)
		if c.p.stopping.Load() {
			return errShutdown
		}
		f, err := in.next(c.ctx, begun)
		if err != nil {
			if c.p.stopping.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				return errShutdown
			}
			return err
		}
		idle = c.p.limits.IdleTimeout
		if err := c.accept(f); err != nil {
			return err
		}
	}
}

// accept decides what happens to one frame.
func (c *conn) accept(f *frame) error {
	r := &request{in: f, received: time.Now()}
	if len(f.b) < wire.MinRequest {
		c.finish(r)
		return wire.ErrMalformed
	}
	key, version, correlationID := wire.PeekRequest(f.b)
	r.version, r.correlationID = version, correlationID
	r.api = c.p.apis.find(key)
	if r.api == nil {
		c.finish(r)
		return fmt.Errorf("%w: API key %d (%s)", errRefused, key, kmsg.NameForKey(key))
	}
	c.p.metrics.request(r)
	if version < r.api.Min || version > r.api.Max {
		if key == apiVersionsKey {
			r.local = unsupportedAPIVersions(r)
			return c.submit(r)
		}
		c.finish(r)
		return fmt.Errorf("%w: %s v%d; v%d to v%d were offered", errRefused, r.api.Name, version, r.api.Min, r.api.Max)
	}
	h, err := wire.ParseRequestHeader(f.b, version >= r.api.flexible)
	if err != nil {
		c.finish(r)
		return err
	}
	r.body = h.Body
	if r.api.handle != nil {
		if err := r.api.handle(c, r); err != nil {
			c.finish(r)
			return fmt.Errorf("%s v%d: %w", r.api.Name, version, err)
		}
	}
	return c.submit(r)
}

// dialOnce connects to the broker when the first request needs it: health
// checks and garbage cost the cluster nothing.
func (c *conn) dialOnce() (net.Conn, error) {
	c.dial.Do(func() {
		ctx, cancel := context.WithTimeout(c.ctx, c.p.limits.DialTimeout)
		defer cancel()
		upstream, err := c.p.opt.Brokers.Dial(ctx, c.node)
		if err != nil {
			c.p.metrics.dialErrors.Inc()
			c.dialErr = fmt.Errorf("connecting to broker: %w", err)
			close(c.answered)
			return
		}
		c.upstream = upstream
		go func() {
			defer close(c.answered)
			err := c.responder(upstream)
			// The client notices, reconnects and retries; half a connection
			// would leave it waiting.
			c.fail(err)
			_ = upstream.Close()
		}()
	})
	return c.upstream, c.dialErr
}

// ask sends a request of our own on the client's connection, so that the
// broker answers it as the client's principal. then runs in the responder, or
// with an error when the connection ends first.
func (c *conn) ask(req kmsg.Request, then func(kmsg.Response, error)) error {
	upstream, err := c.dialOnce()
	if err != nil {
		return err
	}
	api := c.p.apis.find(req.Key())
	r := &request{api: api, version: req.GetVersion(), correlationID: -1, received: time.Now()}
	r.internal = func(f *frame, err error) {
		if err != nil {
			then(nil, err)
			return
		}
		resp := req.ResponseKind()
		then(resp, decodeResponse(r, f, resp))
	}
	clientID := "sluice"
	out := kmsg.NewRequestFormatter(kmsg.FormatterClientID(clientID)).AppendRequest(nil, req, -1)
	c.upstreamMu.Lock()
	defer c.upstreamMu.Unlock()
	c.expect(r)
	_, err = upstream.Write(out)
	return err
}

// place says where a topic's payloads go, and what is known of it. Facts are
// asked for only where they can matter.
func (c *conn) place(topic string) (tiers.Placement, tiers.TopicFacts) {
	router := c.p.opt.Router()
	placement := router.Place(topic, tiers.TopicFacts{Known: true})
	if placement.Class.Tier != tiers.Diskless {
		return placement, tiers.TopicFacts{}
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.p.limits.FactsTimeout)
	defer cancel()
	facts := c.p.opt.Brokers.Facts(ctx, topic)
	return router.Place(topic, facts), facts
}

// shown says on which tier's brokers clients find a topic. Until its facts are
// known its class alone decides: a topic that was just created is unknown for a
// moment, and clients keep what they are told for minutes.
func (c *conn) shown(topic string) tiers.Tier {
	placement, _ := c.place(topic)
	if placement.Reason == tiers.Unknown {
		return placement.Class.Tier
	}
	return placement.Tier
}

// maxNames bounds the topic names that a connection keeps.
const maxNames = 4096

// name interns a topic name that aliases a frame.
func (c *conn) name(b []byte) string {
	if s, ok := c.names[string(b)]; ok {
		return s
	}
	if c.names == nil || len(c.names) >= maxNames {
		c.names = make(map[string]string)
	}
	s := string(b)
	c.names[s] = s
	return s
}
