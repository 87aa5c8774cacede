// Package lowlatency is the brokers' tier: the user's own Kafka. It knows
// which brokers there are, dials them, and reads what placement needs to know
// of a topic. Payloads never pass through it: the proxy moves bytes over the
// connections that Dial returns.
package lowlatency

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"golang.org/x/sync/singleflight"
)

// anyBroker is proxy.AnyBroker: the caller has not chosen one.
const anyBroker int32 = -1

// DialFunc opens a plain connection.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// Options are everything a Cluster is made of.
type Options struct {
	Bootstrap []string    // host:port, at least one
	TLS       *tls.Config // nil: plaintext. ServerName is the dialed host when empty
	// Authorities are asked for with each connection; nil: TLS.RootCAs are trusted.
	Authorities func() *x509.CertPool
	SASL        sasl.Mechanism // nil: none; for the background client only
	Dial        DialFunc       // nil: a net.Dialer with keep-alives

	DialTimeout     time.Duration         // one connection attempt
	DialsPerBroker  int                   // for clients, at a time
	DialQueue       int                   // clients that wait for their turn, per broker
	RefreshInterval time.Duration         // between reads of the brokers and of the topics in use
	QuotaInterval   time.Duration         // between reads of client quotas; 0: they are not read
	StaleAfter      time.Duration         // the cluster counts as unreachable after so long without an answer
	InRange         func(node int32) bool // whether a node id has ports; nil: all

	Logger  zerolog.Logger
	Metrics prometheus.Registerer
}

const (
	defaultDialTimeout = 10 * time.Second
	// defaultDials is a third of the connections that a broker lets wait to be
	// accepted (socket.listen.backlog.size): three replicas may come at once.
	defaultDials      = 16
	defaultDialQueue  = 20_000
	defaultRefresh    = 10 * time.Second
	defaultStaleAfter = 30 * time.Second
)

// Broker is one broker of the cluster.
type Broker struct {
	ID   int32
	Addr string // host:port
	Rack string
}

// Cluster is the user's Kafka. It implements proxy.Brokers.
type Cluster struct {
	opt     Options
	log     zerolog.Logger
	metrics *metrics
	client  *kgo.Client
	dials   *dials
	facts   *facts
	quotas  quotas
	refresh singleflight.Group
	ctx     context.Context // ends what nobody in particular asked for
	cancel  context.CancelFunc

	mu        sync.RWMutex
	clusterID string
	brokers   map[int32]Broker
	answered  time.Time // when the cluster last told its brokers
	lastErr   error
	other     error // the bootstrap addresses have come to lead to another cluster
	next      int   // where AnyBroker starts to look
}

// New returns a cluster that has not been asked anything yet: see Connect and
// Run.
func New(opt Options) (*Cluster, error) {
	if len(opt.Bootstrap) == 0 {
		return nil, errors.New("lowlatency: no bootstrap address")
	}
	if opt.Dial == nil {
		d := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}}
		opt.Dial = d.DialContext
	}
	if opt.DialTimeout == 0 {
		opt.DialTimeout = defaultDialTimeout
	}
	if opt.DialsPerBroker == 0 {
		opt.DialsPerBroker = defaultDials
	}
	if opt.DialQueue == 0 {
		opt.DialQueue = defaultDialQueue
	}
	if opt.RefreshInterval == 0 {
		opt.RefreshInterval = defaultRefresh
	}
	if opt.StaleAfter == 0 {
		opt.StaleAfter = defaultStaleAfter
	}
	if opt.InRange == nil {
		opt.InRange = func(int32) bool { return true }
	}
	c := &Cluster{opt: opt, log: opt.Logger, metrics: newMetrics(opt.Metrics)}
	c.dials = newDials(opt.DialsPerBroker, opt.DialQueue, c.metrics)
	kopts := []kgo.Opt{
		kgo.SeedBrokers(opt.Bootstrap...),
		kgo.ClientID("sluice"),
		kgo.Dialer(c.dialAddr),
		kgo.RetryTimeout(5 * time.Second),
		kgo.RequestRetries(2),
		kgo.MetadataMinAge(time.Second),
	}
	if opt.SASL != nil {
		kopts = append(kopts, kgo.SASL(opt.SASL))
	}
	client, err := kgo.NewClient(kopts...)
	if err != nil {
		return nil, fmt.Errorf("lowlatency: %w", err)
	}
	c.client = client
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.facts = newFacts(c)
	return c, nil
}

// dialAddr connects to an address, TLS included.
func (c *Cluster) dialAddr(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.DialTimeout)
	defer cancel()
	conn, err := c.opt.Dial(ctx, network, addr)
	if err != nil || c.opt.TLS == nil {
		return conn, err
	}
	config := c.opt.TLS.Clone()
	if config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(addr)
	}
	if c.opt.Authorities != nil {
		config.RootCAs = c.opt.Authorities()
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("TLS with %s: %w", addr, err)
	}
	return secure, nil
}

// Dial opens a connection for a client to a broker, or to any that answers.
func (c *Cluster) Dial(ctx context.Context, node int32) (net.Conn, error) {
	if err := c.foreign(); err != nil {
		return nil, err
	}
	if node == anyBroker {
		return c.dialAny(ctx)
	}
	addr, ok := c.address(node)
	if !ok {
		// It may have joined since the last look.
		if err := c.Refresh(ctx); err != nil {
			return nil, fmt.Errorf("node %d: %w", node, err)
		}
		if addr, ok = c.address(node); !ok {
			return nil, fmt.Errorf("node %d: the cluster has no such broker", node)
		}
	}
	conn, err := c.dialInTurn(ctx, addr)
	if err != nil {
		c.metrics.dialErrors.Inc()
		return nil, fmt.Errorf("node %d at %s: %w", node, addr, err)
	}
	return conn, nil
}

func (c *Cluster) dialAny(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	var addrs []string
	for _, b := range c.brokers {
		addrs = append(addrs, b.Addr)
	}
	slices.Sort(addrs)
	if len(addrs) > 0 {
		// In turn, so that bootstrap connections spread.
		c.next = (c.next + 1) % len(addrs)
		addrs = append(addrs[c.next:len(addrs):len(addrs)], addrs[:c.next]...)
	}
	c.mu.Unlock()
	for _, seed := range c.opt.Bootstrap {
		if !slices.Contains(addrs, seed) {
			addrs = append(addrs, seed)
		}
	}
	var errs []error
	for i, addr := range addrs {
		conn, err := c.dialSome(ctx, addr, len(addrs)-i)
		if err == nil {
			return conn, nil
		}
		c.metrics.dialErrors.Inc()
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("no broker can be reached: %w", errors.Join(errs...))
}

// minAttempt is the least time for one of several addresses.
const minAttempt = time.Second

// dialSome gives an address its share of the time that is left for all: one
// that swallows packets must not use up what the others would answer in.
func (c *Cluster) dialSome(ctx context.Context, addr string, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(time.Until(deadline)/time.Duration(left), minAttempt))
		defer cancel()
	}
	return c.dialInTurn(ctx, addr)
}

// dialInTurn is for clients' connections. The background client does not wait
// behind them: it has a few connections, and all depend on it.
func (c *Cluster) dialInTurn(ctx context.Context, addr string) (net.Conn, error) {
	return c.dials.do(ctx, addr, func() (net.Conn, error) { return c.dialAddr(ctx, "tcp", addr) })
}

// foreign is an error while the bootstrap addresses lead to another cluster
// than at first: no client may write there what only this one's id can read.
func (c *Cluster) foreign() error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.other
}

func (c *Cluster) address(node int32) (string, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	b, ok := c.brokers[node]
	return b.Addr, ok
}

// Refresh reads the brokers now; callers at the same time share one read.
func (c *Cluster) Refresh(ctx context.Context) error {
	read := c.refresh.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(c.ctx, c.opt.DialTimeout)
		defer cancel()
		return nil, c.readBrokers(ctx)
	})
	select {
	case r := <-read:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Cluster) readBrokers(ctx context.Context) error {
	// Not through kadm: it answers from its cache.
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{} // none; nil would be all
	meta, err := req.RequestWith(ctx, c.client)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.other == nil { // which would say more
			c.lastErr = err
		}
		c.metrics.refreshErrors.Inc()
		return fmt.Errorf("reading the cluster's brokers: %w", err)
	}
	id := ""
	if meta.ClusterID != nil {
		id = *meta.ClusterID
	}
	if c.clusterID != "" && id != c.clusterID {
		// References are bound to the cluster's id: going on would make
		// everything in objects unreadable.
		c.other = fmt.Errorf("the cluster's id was %s and is now %s: kafka.bootstrap leads to another cluster; lead it back, or restart with stores of the new cluster's own", c.clusterID, id)
		c.lastErr = c.other
		return c.other
	}
	if len(meta.Brokers) == 0 {
		c.lastErr = errors.New("the cluster answers but tells no broker")
		return c.lastErr
	}
	c.clusterID, c.lastErr, c.other, c.answered = id, nil, nil, time.Now()
	brokers := make(map[int32]Broker, len(meta.Brokers))
	for _, b := range meta.Brokers {
		br := Broker{ID: b.NodeID, Addr: net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))}
		if b.Rack != nil {
			br.Rack = *b.Rack
		}
		brokers[b.NodeID] = br
		if _, known := c.brokers[b.NodeID]; !known && !c.opt.InRange(b.NodeID) {
			c.log.Error().Int32("node", b.NodeID).Msg("the broker's id is outside listen.node_ids: clients cannot reach it; widen the range on every replica and restart")
		}
	}
	c.brokers = brokers
	c.metrics.brokers.Set(float64(len(brokers)))
	return nil
}

// connectPause is between attempts of Connect.
const connectPause = time.Second

// Connect waits until the cluster has told its id and brokers.
func (c *Cluster) Connect(ctx context.Context) error {
	for {
		err := c.Refresh(ctx)
		if err == nil {
			return nil
		}
		c.log.Warn().Err(err).Strs("bootstrap", c.opt.Bootstrap).Msg("the cluster does not answer yet; trying again")
		select {
		case <-time.After(connectPause):
		case <-ctx.Done():
			return err
		}
	}
}

// Run keeps brokers, facts and quotas fresh until ctx ends.
func (c *Cluster) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	if c.opt.QuotaInterval > 0 {
		wg.Go(func() { c.quotas.run(ctx, c) })
	}
	tick := time.NewTicker(c.opt.RefreshInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := c.Refresh(ctx); err != nil && ctx.Err() == nil {
				c.log.Warn().Err(err).Msg("the cluster does not answer")
				continue
			}
			c.facts.refresh(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// Close ends the background client and what it was asked.
func (c *Cluster) Close() {
	c.cancel()
	c.client.Close()
}

// ClusterID is the cluster's id; "" before Connect.
func (c *Cluster) ClusterID() string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.clusterID
}

// Client is the background client, for what only `check` and `topics` ask.
func (c *Cluster) Client() *kgo.Client { return c.client }

// Brokers lists the brokers, by id.
func (c *Cluster) Brokers() []Broker {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]Broker, 0, len(c.brokers))
	for _, b := range c.brokers {
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b Broker) int { return int(a.ID - b.ID) })
	return out
}

// Status is the cluster's state for /readyz.
type Status struct {
	Reachable  bool    // it answered lately, and is the one that it was
	Brokers    int     // how many it has
	OutOfRange []int32 // ids that clients cannot reach: outside listen.node_ids
	Err        string  // what the last read said
}

// Status says how the cluster is.
func (c *Cluster) Status() Status {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s := Status{Reachable: c.other == nil && !c.answered.IsZero() && time.Since(c.answered) < c.opt.StaleAfter, Brokers: len(c.brokers)}
	for id := range c.brokers {
		if !c.opt.InRange(id) {
			s.OutOfRange = append(s.OutOfRange, id)
		}
	}
	slices.Sort(s.OutOfRange)
	if c.lastErr != nil {
		s.Err = c.lastErr.Error()
	}
	return s
}
