package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/turns"
)

// Limits bound what clients can make the proxy hold. Every zero value is
// replaced by DefaultLimits'.
type Limits struct {
	Connections         int           // client connections, all listeners together
	ConnectionsPerIP    int           // the same from one address
	MaxFrameBytes       int           // size of one frame, either direction
	RequestBytes        int64         // request frames in memory, all connections together
	ResponseBytes       int64         // answers in memory, what is hydrated included, all connections together
	RequestsInFlight    int           // requests of one connection that are not yet answered
	FetchBytes          int           // hydrated bytes in one Fetch answer
	HydrateConcurrency  int           // partitions of one Fetch answer that read objects at a time
	FirstRequestTimeout time.Duration // from connecting to the first byte of a request
	IdleTimeout         time.Duration // between requests
	FrameTimeout        time.Duration // from a frame's first byte to its last
	WriteTimeout        time.Duration // for a client to take any byte of an answer
	StallTimeout        time.Duration // the same, and for the rest of a frame, while others wait for memory
	BrokerWriteTimeout  time.Duration // for a broker to take any byte of a request; it reads nothing while it throttles
	DialTimeout         time.Duration // to connect to a broker
	FactsTimeout        time.Duration // to learn a topic's configuration
	HydrateTimeout      time.Duration // to read the objects of one Fetch answer
	HydrateGrace        time.Duration // for the rest of them, when there is something to give
	DrainTimeout        time.Duration // for acks=0 records of a client that has gone, and for answers owed to one that is to go
	PollGrace           time.Duration // at shutdown, for answers that clients ask for again without harm
}

// DefaultLimits are the limits of a proxy that was told none.
func DefaultLimits() Limits {
	return Limits{
		Connections:         20_000,
		ConnectionsPerIP:    5_000,
		MaxFrameBytes:       100 << 20, // the broker's socket.request.max.bytes
		RequestBytes:        512 << 20,
		ResponseBytes:       1 << 30,
		RequestsInFlight:    256,
		FetchBytes:          64 << 20,
		HydrateConcurrency:  16,
		FirstRequestTimeout: time.Minute,
		IdleTimeout:         11 * time.Minute, // the broker's connections.max.idle.ms, and a little
		FrameTimeout:        time.Minute,
		WriteTimeout:        11 * time.Minute, // a consumer that pauses legitimately leaves its answer unread
		StallTimeout:        10 * time.Second,
		BrokerWriteTimeout:  2 * time.Minute,
		DialTimeout:         10 * time.Second,
		FactsTimeout:        2 * time.Second,
		HydrateTimeout:      8 * time.Second, // franz-go gives a Fetch up 10 s after its max.wait
		HydrateGrace:        250 * time.Millisecond,
		DrainTimeout:        30 * time.Second,
		PollGrace:           time.Second, // twice the clients' default fetch.max.wait.ms
	}
}

// minBudget leaves every part of a budget room for a few of the least frames.
const minBudget = 16 << 10

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	def(&l.Connections, d.Connections)
	def(&l.ConnectionsPerIP, d.ConnectionsPerIP)
	def(&l.MaxFrameBytes, d.MaxFrameBytes)
	def(&l.RequestBytes, d.RequestBytes)
	def(&l.ResponseBytes, d.ResponseBytes)
	def(&l.RequestsInFlight, d.RequestsInFlight)
	def(&l.FetchBytes, d.FetchBytes)
	def(&l.HydrateConcurrency, d.HydrateConcurrency)
	def(&l.FirstRequestTimeout, d.FirstRequestTimeout)
	def(&l.IdleTimeout, d.IdleTimeout)
	def(&l.FrameTimeout, d.FrameTimeout)
	def(&l.WriteTimeout, d.WriteTimeout)
	def(&l.StallTimeout, d.StallTimeout)
	def(&l.BrokerWriteTimeout, d.BrokerWriteTimeout)
	def(&l.DialTimeout, d.DialTimeout)
	def(&l.FactsTimeout, d.FactsTimeout)
	def(&l.HydrateTimeout, d.HydrateTimeout)
	def(&l.HydrateGrace, d.HydrateGrace)
	def(&l.DrainTimeout, d.DrainTimeout)
	def(&l.PollGrace, d.PollGrace)
	// A budget below one frame would never let that frame in.
	l.RequestBytes = max(l.RequestBytes, int64(l.MaxFrameBytes)*frameShare, minBudget)
	l.ResponseBytes = max(l.ResponseBytes, int64(l.MaxFrameBytes)*frameShare, minBudget)
	return l
}

// fetchable is the most that a Fetch asks a broker for. What is left of a frame
// is for all that is not records, and for a first batch that is larger than
// what is left of the client's own limit.
func (l Limits) fetchable() int32 {
	return int32(min(l.MaxFrameBytes-l.MaxFrameBytes/4, math.MaxInt32))
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Options are everything a Proxy is made of.
type Options struct {
	Bootstrap string // address of the bootstrap listener
	Layout    Layout
	TLS       *tls.Config // nil: clients speak plaintext
	Brokers   Brokers
	Payloads  Payloads
	Quotas    Quotas       // nil: byte rates are the brokers' alone
	Turns     *turns.Turns // for writing diskless answers; nil: none
	// OneIdentity: brokers know clients without a login by a certificate of
	// sluice's, not as anonymous.
	OneIdentity bool
	Router      func() *router.Router // the rules in force now
	// Configuration is the file with the rules, as clients are told it.
	Configuration string
	Limits        Limits
	Listen        func(network, address string) (net.Listener, error) // nil: net.Listen
	Logger        zerolog.Logger
	Metrics       prometheus.Registerer
}

// Proxy accepts clients and relays them.
type Proxy struct {
	opt       Options
	limits    Limits
	log       zerolog.Logger
	metrics   *metrics
	apis      *byKey
	requests  *budget
	responses *budget
	hydrated  *pot
	decoded   *pot
	topics    *lru.Cache[[16]byte, string] // topic id → name; Kafka never gives an id a second name
	crossings *crossings
	families  families
	withheld  *withheld
	throttle  throttle
	learnt    learnt
	warnings  *rate.Limiter

	ctx      context.Context // ends with the proxy
	cancel   context.CancelCauseFunc
	stopping atomic.Bool
	owed     atomic.Int64   // conn.owed, of all
	stopped  chan struct{}  // closed when stopping is set
	wg       sync.WaitGroup // listeners and connections

	mu        sync.Mutex
	listeners []net.Listener
	conns     map[*conn]struct{}
	perIP     map[string]int
}

// maxTopicIDs bounds the topic ids whose names are remembered; one that fell
// out is asked for again.
const maxTopicIDs = 1 << 17

// New checks the options and binds every listener: a port that is taken is an
// error now, not when a broker is added.
func New(opt Options) (*Proxy, error) {
	if err := opt.Layout.validate(); err != nil {
		return nil, err
	}
	if opt.Listen == nil {
		opt.Listen = net.Listen
	}
	topics, err := lru.New[[16]byte, string](maxTopicIDs)
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		opt:       opt,
		limits:    opt.Limits.withDefaults(),
		log:       opt.Logger,
		metrics:   newMetrics(opt.Metrics),
		apis:      newByKey(),
		topics:    topics,
		crossings: newCrossings(),
		families:  families{by: make(map[familyKey]*family)},
		throttle:  throttle{rates: make(map[rateKey]*meter)},
		stopped:   make(chan struct{}),
		warnings:  rate.NewLimiter(5, 50),
		conns:     make(map[*conn]struct{}),
		perIP:     make(map[string]int),
	}
	p.learnt.max = p.limits.ResponseBytes / learntBytes
	p.withheld = newWithheld(p.metrics.withheld)
	budgetOf := func(direction string) (prometheus.Gauge, *prometheus.CounterVec, prometheus.Gauge) {
		return p.metrics.frameBytes.WithLabelValues(direction), p.metrics.frameWaits.MustCurryWith(prometheus.Labels{"direction": direction}), p.metrics.frameWaiting.WithLabelValues(direction)
	}
	cutSenders := func() { p.cutStalled(func(c *conn) *stall { return &c.filling }) }
	cutReaders := func() { p.cutStalled(func(c *conn) *stall { return &c.toClient.stall }) }
	hydrated, decoded := p.limits.ResponseBytes/hydratedShare, p.limits.RequestBytes/decodedShare
	used, held, waiting := budgetOf("request")
	p.requests = newBudget(p.limits.RequestBytes-decoded, true, used, held, waiting, cutSenders)
	used, held, waiting = budgetOf("response")
	p.responses = newBudget(p.limits.ResponseBytes-hydrated, false, used, held, waiting, cutReaders)
	used, held, waiting = budgetOf("hydrated")
	p.hydrated = newPot(hydrated, used, held, waiting, cutReaders)
	used, held, waiting = budgetOf("decoded")
	p.decoded = newPot(decoded, used, held, waiting, cutReaders)
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	if err := p.listen(AnyBroker, opt.Bootstrap); err != nil {
		p.closeListeners()
		return nil, err
	}
	if err := opt.Layout.each(p.listen); err != nil {
		p.closeListeners()
		return nil, err
	}
	return p, nil
}

func (p *Proxy) listen(id int32, addr string) error {
	l, err := p.opt.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", addr, err)
	}
	p.mu.Lock()
	p.listeners = append(p.listeners, l)
	p.mu.Unlock()
	p.wg.Add(1)
	go p.acceptLoop(l, id)
	return nil
}

// maxAcceptPause bounds the pause after an Accept that did not work: out of
// file descriptors is no reason to stop listening.
const maxAcceptPause = time.Second

func (p *Proxy) acceptLoop(l net.Listener, id int32) {
	defer p.wg.Done()
	pause := 5 * time.Millisecond
	for {
		client, err := l.Accept()
		if err != nil {
			if p.stopping.Load() || errors.Is(err, net.ErrClosed) {
				return
			}
			p.metrics.acceptErrors.Inc()
			p.warn().Err(err).Stringer("listener", l.Addr()).Msg("cannot accept; trying again")
			select {
			case <-time.After(pause):
			case <-p.ctx.Done():
				return
			}
			pause = min(2*pause, maxAcceptPause)
			continue
		}
		pause = 5 * time.Millisecond
		p.admit(client, id)
	}
}

// admit starts a connection, or refuses it when a limit is reached.
func (p *Proxy) admit(client net.Conn, id int32) {
	ip := client.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(ip); err == nil {
		ip = host
	}
	if p.opt.TLS != nil {
		client = tls.Server(newInlet(client), p.opt.TLS)
	}
	real := realID(id)
	c := p.newConn(client, ip, real, id != real)

	p.mu.Lock()
	refused := ""
	switch {
	case p.stopping.Load():
		refused = "shutdown"
	case len(p.conns) >= p.limits.Connections:
		refused = "limits.connections"
	case p.perIP[ip] >= p.limits.ConnectionsPerIP:
		refused = "limits.connections_per_ip"
	default:
		p.conns[c] = struct{}{}
		p.perIP[ip]++
		p.wg.Add(1)
	}
	p.mu.Unlock()
	if refused != "" {
		p.metrics.refused.WithLabelValues(refused).Inc()
		p.warn().Str("client", ip).Str("limit", refused).Msg("connection refused")
		_ = client.Close()
		return
	}
	open := p.metrics.open(c)
	open.Inc()
	go func() {
		defer p.wg.Done()
		defer open.Dec()
		defer func() {
			p.mu.Lock()
			delete(p.conns, c)
			if p.perIP[ip]--; p.perIP[ip] == 0 {
				delete(p.perIP, ip)
			}
			p.mu.Unlock()
		}()
		c.serve()
	}()
}

// warn is a warning event, or nil when there were too many lately: hostile
// clients must not fill the log.
func (p *Proxy) warn() *zerolog.Event {
	if !p.warnings.Allow() {
		p.metrics.suppressed.Inc()
		return nil
	}
	return p.log.Warn()
}

// cutStalled ends the connections that have held memory for StallTimeout
// without moving, while others wait for it. They reconnect when they can.
func (p *Proxy) cutStalled(of func(*conn) *stall) {
	p.mu.Lock()
	defer p.mu.Unlock()
	limit := time.Now().Add(-p.limits.StallTimeout)
	for c := range p.conns {
		if of(c).before(limit) {
			go c.lose(errStalled) // closing may take a while under TLS
		}
	}
}

// Addr is where the bootstrap listener listens.
func (p *Proxy) Addr() net.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.listeners[0].Addr()
}

func (p *Proxy) closeListeners() {
	if !p.stopping.Swap(true) {
		close(p.stopped)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.listeners {
		_ = l.Close()
	}
}

// Shutdown stops accepting, lets connections answer what they have read, and
// ends them: idle ones at once, so that their clients move on while others
// finish. A broker may hold a Fetch or a JoinGroup for minutes; connections
// that wait for no more than such are cut after PollGrace. The others are cut
// when ctx ends, and that is an error.
//
// One that has only just been made has until PollGrace to bring a request: there
// are clients (franz-go) that take an end before the first answer for a
// misconfiguration, and give records up.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.closeListeners()
	ended := make(chan struct{})
	go func() {
		p.wg.Wait()
		close(ended)
	}()
	// Readers notice at their next frame, or now when they wait for one.
	p.mu.Lock()
	for c := range p.conns {
		if c.began.Load() {
			_ = c.client.SetReadDeadline(time.Unix(1, 0))
		}
	}
	p.mu.Unlock()
	tick := time.NewTicker(p.limits.PollGrace)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			p.cancel(errShutdown)
			return nil
		case <-tick.C:
			p.cutPolls()
		case <-ctx.Done():
			unfinished := p.unfinished()
			p.cancel(errShutdown)
			p.cutAll()
			<-ended
			if unfinished == 0 {
				return nil
			}
			return fmt.Errorf("%d connections were cut before their requests were answered: %w", unfinished, context.Cause(ctx))
		}
	}
}

// cutAll ends every connection; no more can come.
func (p *Proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.fail(errShutdown)
	}
}

// cutPolls ends the connections that a shutdown need not wait for.
func (p *Proxy) cutPolls() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		switch {
		case c.owed.Load() > 0 || c.isGone():
		case c.sentSilent.Load():
			go c.lose(errShutdown) // the broker may not have read it yet
		default:
			c.fail(errShutdown)
		}
	}
}

// unfinished counts the connections whose end somebody may miss something by.
func (p *Proxy) unfinished() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if c.owed.Load() > 0 || c.sentSilent.Load() {
			n++
		}
	}
	return n
}
