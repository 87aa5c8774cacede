package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// conn is one client connection and the broker connection that belongs to it.
//
// It ends in two steps. When present ends, nobody reads answers any more; what
// the client sent without waiting for one still goes upstream. When ctx ends,
// both sockets are closed, which ends whatever blocks on them.
type conn struct {
	p        *Proxy
	client   net.Conn
	address  string // the client's, without its port
	node     int32  // broker behind it, or AnyBroker
	diskless bool   // it arrived on a diskless listener

	ctx     context.Context // ends with the connection
	cancel  context.CancelCauseFunc
	present context.Context // ends when the client has gone, or with ctx
	leave   context.CancelCauseFunc

	deaf     atomic.Bool   // the client takes no more answers; what it sent before it left is still read
	slots    chan struct{} // one for each request in flight
	filling  stall         // since when the client owes the rest of a frame
	toClient sink

	names    map[string]string // topic names seen, so that looking one up does not allocate; reader only
	produced wire.Produce      // reader only
	producer *tiers.Producer   // apart, so that the diskless tier keeps no connection alive
	welcome  atomic.Bool       // the broker talks to this client
	began    atomic.Bool       // the client has sent more than connections begin with
	permits  permits
	clientID string // of the last request; reader only
	from     uint64 // of crossings, for clientID; reader only
	inline   inline
	arrivals *arrivals
	family   *family // once it has brought a Produce; reader only
	login    login
	muted    atomic.Int64       // unix milliseconds until which the client is not read
	fetched  wire.Fetch         // reader only
	result   wire.ProduceResult // responder only
	fetchV   wire.FetchResult   // responder only

	versions       <-chan error  // tells when the broker has told its versions, where the client had not asked; reader only
	brokerMetadata atomic.Uint32 // the versions of Metadata that the broker speaks, first and last; 0 is not known

	dial     sync.Once
	toBroker sink // dialled once; its Conn is nil when that did not succeed
	dialErr  error
	answered chan struct{} // closed when the responder has ended

	endMu    sync.Mutex
	dialing  context.CancelFunc
	upstream net.Conn // once it is dialled
	ended    bool     // both sockets are being closed

	owed       atomic.Int32 // requests in flight that a shutdown waits for
	held       atomic.Int64 // nanoseconds: request.held, of all that is forwarded and not answered
	upstreamMu sync.Mutex   // serializes writes upstream, and their order in expected
	sentSilent atomic.Bool

	queueMu    sync.Mutex
	queueIdle  *sync.Cond
	queue      []*request // read, not yet forwarded, in order
	forwarding bool       // a forwarder runs

	expectedMu sync.Mutex
	expected   []*request // forwarded, not yet answered, in order

	fetchState fetchState
	shares     shareSessions
}

func (p *Proxy) newConn(client net.Conn, address string, node int32, diskless bool) *conn {
	c := &conn{
		p:        p,
		client:   client,
		address:  address,
		node:     node,
		diskless: diskless,
		slots:    make(chan struct{}, p.limits.RequestsInFlight),
		answered: make(chan struct{}),
		producer: &tiers.Producer{},
	}
	c.fetchState.all = &p.learnt
	c.from = p.crossings.from(address, "")
	c.toClient = newSink(client, p.limits.WriteTimeout)
	c.toClient.turns = p.opt.Turns
	c.queueIdle = sync.NewCond(&c.queueMu)
	// fail ends both: contexts that know of each other, and of the proxy's, take
	// a kilobyte more.
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.present, c.leave = context.WithCancelCause(context.Background())
	return c
}

var (
	// errShutdown ends connections when the proxy stops.
	errShutdown = errors.New("the proxy shuts down")
	// errRefused closes a connection over a request that clients may not send.
	errRefused = errors.New("request refused")
	// errStalled ends a connection that held memory which others waited for.
	errStalled = errors.New("the client did not move while others waited for memory")
)

// brokerError is what the broker, not the client, is to blame for.
type brokerError struct{ error }

func (e brokerError) Unwrap() error { return e.error }

// serve runs the connection to its end.
func (c *conn) serve() {
	err := c.read()
	c.p.families.leave(c)
	if isRefusal(err) || errors.Is(err, errShutdown) {
		// What came before it is owed an answer.
		c.awaitAnswers(err)
	}
	c.lose(err)
	c.drain()
	c.fail(context.Cause(c.present))
	c.dial.Do(func() { c.dialErr = net.ErrClosed })
	if c.toBroker.Conn != nil {
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
	if !c.sentSilent.Load() || c.ctx.Err() != nil {
		return
	}
	// Closing a socket that holds unread answers resets it, and the broker
	// would lose what it has not read. So: end the stream, read to the end.
	if half, ok := c.toBroker.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		select {
		case <-c.answered:
		case <-c.ctx.Done():
		}
	}
}

// awaitAnswers waits until every request that was read is answered: until all
// slots can be had. The reader has ended, so a client that leaves now is
// noticed by writing to it, or at the limit. A shutdown has a limit of its own.
func (c *conn) awaitAnswers(err error) {
	if !c.p.stopping.Load() {
		limit := time.AfterFunc(c.p.limits.DrainTimeout, func() { c.leave(err) })
		defer limit.Stop()
	}
	for range cap(c.slots) {
		select {
		case c.slots <- struct{}{}:
		case <-c.present.Done():
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

// abandon gives back what requests without an answer still hold, and what the
// connection has learnt.
func (c *conn) abandon() {
	c.expectedMu.Lock()
	defer c.expectedMu.Unlock()
	for _, r := range c.expected {
		if r.internal != nil {
			r.internal(nil, net.ErrClosed)
		}
		c.landed(r)
		c.settle(r)
	}
	c.expected = nil
	c.fetchState.mu.Lock()
	defer c.fetchState.mu.Unlock()
	c.fetchState.forget()
}

// fail ends the connection; the first reason counts. It does not wait for the
// sockets to be closed, which may take a while under TLS.
func (c *conn) fail(err error) {
	c.leave(err)
	c.cancel(err)
	c.endMu.Lock()
	defer c.endMu.Unlock()
	if !c.ended {
		c.ended = true
		if c.dialing != nil {
			c.dialing()
		}
		go c.hangUp(c.upstream)
	}
}

func (c *conn) hangUp(upstream net.Conn) {
	if upstream != nil {
		_ = upstream.Close()
	}
	_ = c.client.Close()
}

// lose gives up the client, not what it sent; the first reason counts.
func (c *conn) lose(err error) {
	c.leave(err)
	_ = c.client.Close()
}

// listener is what the metrics call the listener that the client came to.
func (c *conn) listener() string {
	switch {
	case c.node == AnyBroker:
		return "bootstrap"
	case c.diskless:
		return "diskless"
	default:
		return "low-latency"
	}
}

// warn is a warning about the connection, or nil when there were too many.
func (c *conn) warn() *zerolog.Event { return c.about(c.p.warn()) }

// about says whose connection it is. A logger that knows would be memory that
// an idle connection holds.
func (c *conn) about(e *zerolog.Event) *zerolog.Event {
	return e.Stringer("client", c.client.RemoteAddr()).Int32("node", c.node).Bool("diskless", c.diskless)
}

func (c *conn) isGone() bool { return c.present.Err() != nil }

// isQuietEnd reports whether a peer left as peers do.
func isQuietEnd(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe)
}

// isRefusal reports whether a connection ends over what the client sent.
func isRefusal(err error) bool {
	var tooLarge *FrameTooLargeError
	return errors.As(err, &tooLarge) || errors.Is(err, wire.ErrMalformed) || errors.Is(err, errRefused)
}

func (c *conn) logEnd(err error) {
	var broker brokerError
	switch {
	case isQuietEnd(err) || errors.Is(err, net.ErrClosed) || errors.Is(err, errShutdown) || errors.Is(err, context.Canceled):
		c.about(c.p.log.Debug()).Err(err).Msg("connection ended")
	case errors.As(err, &broker):
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.p.metrics.brokerStalls.Inc() // nothing is read from brokers under a deadline
		}
		c.warn().Err(err).Msg("connection closed: trouble with the broker")
	case isRefusal(err):
		c.p.metrics.protocolErrors.Inc()
		c.warn().Err(err).Msg("connection closed: the client does not speak as a Kafka client should")
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, errStalled):
		c.p.metrics.timeouts.Inc()
		if errors.Is(err, errStalled) {
			c.p.metrics.stalled.Inc()
		}
		c.warn().Err(err).Msg("connection closed: the client took too long")
	default:
		c.warn().Err(err).Msg("connection ended")
	}
}

// dialOnce connects to the broker when the first request needs it: health
// checks and garbage cost the cluster nothing.
func (c *conn) dialOnce() error {
	c.dial.Do(func() {
		// Dialing takes a deep stack, which the caller's goroutine would keep.
		dialed := make(chan struct{})
		go func() {
			defer close(dialed)
			c.dialErr = c.connect()
		}()
		<-dialed
	})
	return c.dialErr
}

func (c *conn) connect() error {
	// Not of c.ctx, which would keep room for children ever after.
	ctx, cancel := context.WithTimeout(context.Background(), c.p.limits.DialTimeout)
	defer cancel()
	c.endMu.Lock()
	if c.dialing = cancel; c.ended {
		cancel()
	}
	c.endMu.Unlock()
	upstream, err := c.p.opt.Brokers.Dial(ctx, c.node)
	if err != nil {
		c.p.metrics.dialErrors.Inc()
		return brokerError{fmt.Errorf("connecting to broker: %w", err)}
	}
	c.toBroker = newSink(upstream, c.p.limits.BrokerWriteTimeout)
	c.endMu.Lock()
	if c.dialing, c.upstream = nil, upstream; c.ended {
		_ = upstream.Close()
	}
	c.endMu.Unlock()
	go func() {
		defer close(c.answered)
		// The client notices, reconnects and retries; half a connection
		// would leave it waiting.
		c.fail(brokerError{c.responder()})
	}()
	return nil
}
