// Package server assembles a running sluice from a configuration: it is the
// only place where the proxy, the tiers and the router meet.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"

	"github.com/sluice-kafka/sluice/admin"
	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/diskless/diskcache"
	"github.com/sluice-kafka/sluice/diskless/gc"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/proxy"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
	"github.com/sluice-kafka/sluice/turns"
)

var (
	_ proxy.Brokers  = (*lowlatency.Cluster)(nil)
	_ proxy.Quotas   = (*lowlatency.Cluster)(nil)
	_ proxy.Payloads = (*diskless.Tier)(nil)
)

// Options are what a configuration file does not say.
type Options struct {
	Logger zerolog.Logger
	// Listen and Dial replace the network, for tests; nil is TCP.
	Listen func(network, addr string) (net.Listener, error)
	Dial   lowlatency.DialFunc
}

// Server is a running replica.
type Server struct {
	log     zerolog.Logger
	metrics *prometheus.Registry
	router  atomic.Pointer[router.Router]
	certs   *Certificates
	cluster *lowlatency.Cluster
	disk    *diskcache.Cache // nil: there is none
	tier    *diskless.Tier
	compact *compactor.Metrics // nil: it is off
	turn    sync.Mutex         // of the compactors
	turns   *turns.Turns
	proxy   *proxy.Proxy
	admin   *admin.Server
	stores  sync.Map // objstore.Store by name, those that are open

	collecting context.Context // ends collectors
	collected  *gc.Metrics

	phase  atomic.Int32       // starting, running or draining; Health sees the fields above from running on
	cancel context.CancelFunc // background work
	wg     sync.WaitGroup

	mu     sync.Mutex
	config *config.Config // in force
}

// Phases of a replica's life.
const (
	starting int32 = iota
	running
	draining
)

// Start brings a replica up. It waits for the cluster until ctx ends; a store
// that cannot be reached is tried again in the background. A store that must
// not be used (it belongs to another cluster, its keys are missing) is an
// error.
func Start(ctx context.Context, cfg *config.Config, opt Options) (_ *Server, err error) {
	s := &Server{log: opt.Logger, metrics: prometheus.NewRegistry(), config: cfg}
	s.metrics.MustRegister(collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsScheduler)), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	background, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	defer func() {
		if err != nil {
			_ = s.Shutdown(ctx)
		}
	}()
	rules, err := cfg.Router()
	if err != nil {
		return nil, err
	}
	s.router.Store(rules)

	clusterOptions, err := ClusterOptions(cfg, opt.Logger, s.metrics)
	if err != nil {
		return nil, err
	}
	clusterOptions.Dial = opt.Dial
	s.certs = NewCertificates(opt.Logger, s.metrics)
	if t := cfg.Kafka.TLS; t.Enabled && t.Cert != "" {
		shown, err := s.certs.keyPair("kafka.tls", t.Cert, t.Key)
		if err != nil {
			return nil, err
		}
		clusterOptions.TLS.Certificates, clusterOptions.TLS.GetClientCertificate = nil, shown.forBrokers
	}
	if t := cfg.Kafka.TLS; t.Enabled && t.CA != "" {
		if clusterOptions.Authorities, err = s.certs.authorities("kafka.tls.ca", t.CA); err != nil {
			return nil, err
		}
	}
	if s.cluster, err = lowlatency.New(clusterOptions); err != nil {
		return nil, err
	}
	// First of all, so that whoever watches sees what the start waits for.
	if cfg.Admin != "" {
		if s.admin, err = admin.Start(cfg.Admin, s.metrics, s.Health, opt.Logger); err != nil {
			return nil, err
		}
	}
	if err := s.cluster.Connect(ctx); err != nil {
		return nil, err
	}
	s.background(func() { s.cluster.Run(background) })

	l := cfg.Limits
	NewMemoryGauge(s.metrics, l, cfg.Compaction)
	s.collecting, s.collected = background, gc.NewMetrics(s.metrics)
	if cfg.DiskCache.Path != "" {
		s.disk = diskcache.Open(diskcache.Options{
			Dir: cfg.DiskCache.Path, Bytes: cfg.DiskCache.Bytes, QueueBytes: l.CacheBytes / diskless.DiskShare / 2,
			Logger: opt.Logger, Metrics: diskcache.NewMetrics(s.metrics),
		})
	}
	s.turns = bulkTurns(l.BulkCPUs, s.metrics)
	s.tier, err = diskless.New(diskless.Options{
		ClusterID: s.cluster.ClusterID(),
		Turns:     s.turns,
		Disk:      s.disk,
		Limits: diskless.Limits{
			BufferBytes:       l.WriteBufferBytes,
			CacheBytes:        l.CacheBytes,
			PutConcurrency:    l.PutConcurrency,
			EarlyPutsPerSec:   l.PutsPerSecond,
			RetryBatches:      l.RetryBatches,
			PutTimeout:        l.PutTimeout,
			GetTimeout:        l.HydrateTimeout, // nobody waits longer for it
			InlineBytesPerSec: l.InlineBytesPerSecond,
			InlineBytesTotal:  l.InlineBytesTotal,
			SegmentAge:        cfg.Compaction.MinAge,
		},
		Logger:  opt.Logger,
		Metrics: s.metrics,
	})
	if err != nil {
		return nil, err
	}
	if cfg.Compaction.Enabled {
		s.compact = compactor.NewMetrics(s.metrics)
	}
	if err := s.openStores(ctx, background); err != nil {
		return nil, err
	}

	var clientTLS *tls.Config
	if cfg.Listen.TLS.Enabled() {
		shown, err := s.certs.keyPair("listen.tls", cfg.Listen.TLS.Cert, cfg.Listen.TLS.Key)
		if err != nil {
			return nil, err
		}
		clientTLS = shown.forClients()
	}
	s.background(func() { s.certs.watch(background) })
	var quotas proxy.Quotas
	if cfg.Quotas.Enabled {
		quotas = s.cluster
	}
	s.proxy, err = proxy.New(proxy.Options{
		Bootstrap: cfg.Listen.Bootstrap,
		Layout:    layout(cfg.Listen),
		TLS:       clientTLS,
		Brokers:   s.cluster,
		Payloads:  s.tier,
		Quotas:    quotas,
		Turns:     s.turns,
		Router:    s.router.Load,

		OneIdentity:   cfg.Kafka.TLS.Cert != "",
		Configuration: cfg.File,
		Limits: proxy.Limits{
			Connections:         l.Connections,
			ConnectionsPerIP:    l.ConnectionsPerIP,
			MaxFrameBytes:       int(l.FrameBytes),
			RequestBytes:        l.RequestMemoryBytes,
			ResponseBytes:       l.ResponseMemoryBytes,
			RequestsInFlight:    l.RequestsInFlight,
			FetchBytes:          int(l.FetchBytes),
			FirstRequestTimeout: l.FirstRequestTimeout,
			IdleTimeout:         l.IdleTimeout,
			FrameTimeout:        l.FrameTimeout,
			WriteTimeout:        l.WriteTimeout,
			StallTimeout:        l.StallTimeout,
			BrokerWriteTimeout:  l.BrokerWriteTimeout,
			DialTimeout:         l.DialTimeout,
			HydrateTimeout:      l.HydrateTimeout,
			DrainTimeout:        l.DrainTimeout,
		},
		Listen:  opt.Listen,
		Logger:  opt.Logger,
		Metrics: s.metrics,
	})
	if err != nil {
		return nil, err
	}
	if cfg.Placeholders.Watch {
		s.background(func() { s.watchLogs(background, cfg.Placeholders) })
	}
	if cfg.Retention.Enabled {
		s.background(func() { s.retain(background, cfg) })
	}
	if cfg.Audit.Archive {
		s.background(func() { s.archiveLogs(background, cfg) })
	}
	s.phase.Store(running)
	return s, nil
}

func layout(l config.Listen) proxy.Layout {
	nodes := make([]proxy.NodeRange, len(l.NodeIDs))
	for i, r := range l.NodeIDs {
		nodes[i] = proxy.NodeRange(r)
	}
	return proxy.Layout{Advertise: l.Advertise, Bind: l.Brokers.Host, FirstPort: l.Brokers.First, Nodes: nodes}
}

func (s *Server) background(work func()) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		work()
	}()
}

// Reload puts in force what of next can change without a restart: topics,
// classes and default_class; the next batch of every topic is routed by it. (The
// log level is the logger's owner's to change.) applied and waiting name the
// keys that differ.
func (s *Server) Reload(next *config.Config) (applied, waiting []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	merged, applied, waiting, err := config.Reload(s.config, next)
	if err != nil {
		return nil, nil, err
	}
	changed, err := merged.Router()
	if err != nil {
		return nil, nil, err
	}
	if len(applied) > 0 {
		s.foresee(changed)
	}
	s.router.Store(changed)
	s.config = merged
	return applied, waiting, nil
}

// learnTimeout bounds how long new rules wait for facts of topics.
const learnTimeout = 3 * time.Second

// foresee reads what has to be known of topics before their batches go to
// objects, when it was not needed so far: a rule may match thousands, whose
// producers would ask for one after the other, and wait. What cannot be read now
// is asked for when it is needed.
func (s *Server) foresee(next *router.Router) {
	if !next.HasDiskless() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), learnTimeout)
	defer cancel()
	now := s.router.Load()
	diskless := func(r *router.Router, topic string) bool {
		return r.Place(topic, tiers.TopicFacts{Known: true}).Tier == tiers.Diskless
	}
	if err := s.cluster.Learn(ctx, func(topic string) bool { return diskless(next, topic) && !diskless(now, topic) }); err != nil {
		s.log.Warn().Err(err).Msg("the new rules are in force before all topics that they make diskless are known: their first batches may wait, or stay inline")
	}
}

// Health is what /readyz says.
func (s *Server) Health() admin.Health {
	h := admin.Health{Ready: true}
	phase := s.phase.Load()
	switch phase {
	case starting:
		h.Ready = false
		h.Reasons = append(h.Reasons, "starting")
	case draining:
		return admin.Health{Reasons: []string{"draining: clients should go to another replica"}}
	}
	status := s.cluster.Status()
	if !status.Reachable {
		h.Ready = false
		h.Reasons = append(h.Reasons, "the cluster does not answer: "+status.Err)
	}
	for _, id := range status.OutOfRange {
		h.Degraded = append(h.Degraded, fmt.Sprintf("broker %d is outside listen.node_ids: clients cannot reach it; widen the range on every replica and restart", id))
	}
	if phase == starting {
		return h
	}
	h.Degraded = append(h.Degraded, s.certs.problems()...)
	for _, store := range s.tier.Status() {
		if !store.Healthy {
			h.Degraded = append(h.Degraded, fmt.Sprintf("store %s: %s; its topics' batches go inline, within limits.inline_bytes_*", store.Name, store.Err))
		}
		if store.ReadErr != "" {
			h.Degraded = append(h.Degraded, fmt.Sprintf("store %s cannot be read: %s; readers of what is not in memory get KAFKA_STORAGE_ERROR and try again", store.Name, store.ReadErr))
		}
	}
	return h
}

// Addr is where the bootstrap listener listens, AdminAddr the admin one.
func (s *Server) Addr() net.Addr { return s.proxy.Addr() }

// AdminAddr is nil when there is no admin listener.
func (s *Server) AdminAddr() net.Addr {
	if s.admin == nil {
		return nil
	}
	return s.admin.Addr()
}

// Metrics gives what /metrics shows.
func (s *Server) Metrics() prometheus.Gatherer { return s.metrics }

// Router is the routing in force.
func (s *Server) Router() *router.Router { return s.router.Load() }

// Cluster is the user's Kafka as this replica knows it.
func (s *Server) Cluster() *lowlatency.Cluster { return s.cluster }

const adminClose = 2 * time.Second

// Shutdown drains: it stops accepting, answers what was read, makes durable
// what is buffered, and ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.phase.Store(draining)
	var errs []error
	if s.proxy != nil {
		errs = append(errs, s.proxy.Shutdown(ctx))
	}
	if s.tier != nil {
		errs = append(errs, s.tier.Close(ctx))
	}
	s.disk.Close()
	s.cancel()
	s.wg.Wait()
	if s.cluster != nil {
		s.cluster.Close()
	}
	if s.admin != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminClose)
		defer cancel()
		errs = append(errs, s.admin.Close(ctx))
	}
	return errors.Join(errs...)
}

// bulkTurns are for so many CPUs, or for all but one of those that Go uses.
func bulkTurns(cpus int, metrics prometheus.Registerer) *turns.Turns {
	all := runtime.GOMAXPROCS(0)
	if cpus == 0 {
		cpus = all - 1
	}
	return turns.New(cpus, all, metrics)
}
