package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/audit"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// auditKafka is the cluster as the archive sees it.
type auditKafka struct{ cluster *lowlatency.Cluster }

func (k auditKafka) Fetch(ctx context.Context, l audit.Log, offset int64, maxBytes int32) ([]byte, error) {
	return k.cluster.Fetch(ctx, lowlatency.Log(l), offset, maxBytes)
}

func (k auditKafka) EpochEnd(ctx context.Context, l audit.Log, epoch int32) (int32, int64, error) {
	return k.cluster.EpochEnd(ctx, lowlatency.Log(l), epoch)
}

// archive goes over the logs of audit classes' topics.
type archive struct {
	cfg      *config.Config
	cluster  *lowlatency.Cluster
	routes   func() *router.Router
	store    func(name string) (objstore.Store, bool) // false: not open yet
	archiver *audit.Archiver
	members  map[string]*audit.Member // by store; nil: alone
	log      zerolog.Logger
}

func newArchive(cfg *config.Config, cluster *lowlatency.Cluster, payloads audit.Payloads, log zerolog.Logger, metrics *audit.Metrics) *archive {
	return &archive{
		cfg: cfg, cluster: cluster, log: log,
		archiver: audit.New(audit.Options{
			ClusterID: cluster.ClusterID(), Kafka: auditKafka{cluster}, Payloads: payloads,
			ObjectBytes: cfg.Audit.ObjectSize, Pace: pace(cfg.Audit.BytesPerSecond), Logger: log, Metrics: metrics,
		}),
	}
}

// pace lets so many bytes pass in a second.
func pace(perSecond int64) func(context.Context, int) error {
	burst := int(min(perSecond, 1<<20))
	limit := rate.NewLimiter(rate.Limit(perSecond), burst)
	return func(ctx context.Context, n int) error {
		for ; n > 0; n -= burst {
			if err := limit.WaitN(ctx, min(n, burst)); err != nil {
				return err
			}
		}
		return nil
	}
}

// logs are those of the topics that the rules give an audit class, and the stores
// that these are archived in. An error may be about some of them only.
func (a *archive) logs(ctx context.Context, only []string) (logs []audit.Log, stores map[string]string, err error) {
	topics, err := kadm.NewClient(a.cluster.Client()).ListTopics(ctx)
	if err != nil {
		return nil, nil, err
	}
	stores = map[string]string{}
	var names []string
	for _, t := range topics.Sorted() {
		placed := a.routes().Place(t.Topic, tiers.TopicFacts{Known: true})
		if t.IsInternal || !placed.Class.Audit || len(only) > 0 && !slices.Contains(only, t.Topic) {
			continue
		}
		names, stores[t.Topic] = append(names, t.Topic), placed.Class.Store
	}
	if len(names) == 0 {
		return nil, stores, nil
	}
	all, err := a.cluster.Logs(ctx, names...)
	for _, l := range all {
		logs = append(logs, audit.Log(l))
	}
	return logs, stores, err
}

// absentAfter is after how many pauses an archiver counts as gone.
const absentAfter = 3

// pass archives what there is, log by log.
func (a *archive) pass(ctx context.Context, only ...string) ([]audit.Seen, error) {
	logs, stores, err := a.logs(ctx, only)
	var errs []error
	if err != nil {
		errs = append(errs, err)
	}
	type join struct {
		at  time.Time
		err error
	}
	joined := map[string]join{}
	var seen []audit.Seen
	for _, l := range logs {
		name := stores[l.Topic]
		store, open := a.store(name)
		if !open {
			seen = append(seen, audit.Seen{Log: l, Err: fmt.Errorf("store %s is not open yet: %w", name, objstore.ErrUnavailable)})
			continue
		}
		if a.members != nil {
			member := a.members[name]
			if member == nil {
				member = audit.NewMember()
				a.members[name] = member
			}
			// Again when a pass takes long: others would think that this one is gone.
			if time.Since(joined[name].at) >= a.cfg.Audit.Every {
				joined[name] = join{time.Now(), member.Join(ctx, store, absentAfter*a.cfg.Audit.Every)}
			}
			if err := joined[name].err; err != nil {
				seen = append(seen, audit.Seen{Log: l, Err: err})
				continue
			}
			if !member.Mine(l.Chain()) {
				a.archiver.Forget(name, l)
				continue
			}
		}
		st := a.cfg.Stores[name]
		target := audit.Target{Name: name, Store: store}
		if st.Locks() {
			target.Retention = st.LockRetention
		}
		p, err := a.archiver.Archive(ctx, target, l)
		if ctx.Err() != nil {
			return seen, ctx.Err()
		}
		seen = append(seen, audit.Seen{Log: l, Next: p.Next, Err: err})
	}
	for _, s := range seen {
		if s.Err != nil {
			errs = append(errs, fmt.Errorf("%s-%d: %w", s.Log.Topic, s.Log.Partition, s.Err))
		}
	}
	return seen, errors.Join(errs...)
}

// leave tells the others that its chains are theirs.
func (a *archive) leave(ctx context.Context) {
	for name, member := range a.members {
		if store, open := a.store(name); open {
			_ = member.Leave(ctx, store) // it is found out without, later
		}
	}
}

// firstPass is how soon after the start, when passes are further apart.
const firstPass = 30 * time.Second

// passes calls pass until ctx ends, the first time soon after the start.
func passes(ctx context.Context, every time.Duration, pass func()) {
	for pause := min(every, firstPass); ; pause = every {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pass()
	}
}

// archiveLogs archives until ctx ends.
func (s *Server) archiveLogs(ctx context.Context, cfg *config.Config) {
	m := audit.NewMetrics(s.metrics)
	a := newArchive(cfg, s.cluster, s.tier, s.log, m)
	a.routes, a.members = s.router.Load, map[string]*audit.Member{}
	a.store = func(name string) (objstore.Store, bool) {
		store, ok := s.stores.Load(name)
		if !ok {
			return nil, false
		}
		return store.(objstore.Store), true
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminClose)
		defer cancel()
		a.leave(ctx)
	}()
	passes(ctx, cfg.Audit.Every, func() {
		seen, err := a.pass(ctx)
		if ctx.Err() != nil {
			return
		}
		m.Pass(seen)
		if err != nil {
			s.log.Error().Str("errors", someOf(err)).Msg("not all logs of audit classes can be archived now: they are tried again; records that retention removes meanwhile are missing from the archive (sluice_audit_archived_ratio)")
		}
	})
}

// someOf keeps a log line short.
func someOf(err error) string {
	const most = 5
	lines := strings.Split(err.Error(), "\n")
	if len(lines) <= most {
		return strings.Join(lines, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(lines[:most], "; "), len(lines)-most)
}

// Audit is what the commands about the archive work with: the brokers, and the
// stores as they are, with all that reads payloads.
type Audit struct {
	cfg     *config.Config
	Cluster *lowlatency.Cluster
	Tier    *diskless.Tier
	stores  map[string]objstore.Store
	log     zerolog.Logger
}

// OpenAudit connects to the brokers and opens the stores. Whatever cannot be
// reached is an error.
func OpenAudit(ctx context.Context, cfg *config.Config, log zerolog.Logger) (_ *Audit, err error) {
	registry := prometheus.NewRegistry()
	opt, err := ClusterOptions(cfg, log, registry)
	if err != nil {
		return nil, err
	}
	a := &Audit{cfg: cfg, stores: map[string]objstore.Store{}, log: log}
	if a.Cluster, err = lowlatency.New(opt); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	if err := a.Cluster.Refresh(ctx); err != nil {
		return nil, err
	}
	l := cfg.Limits
	if a.Tier, err = diskless.New(diskless.Options{
		ClusterID: a.Cluster.ClusterID(), Logger: log, Metrics: registry,
		Limits: diskless.Limits{CacheBytes: min(l.CacheBytes, auditCache), GetTimeout: l.HydrateTimeout},
	}); err != nil {
		return nil, err
	}
	for name, st := range cfg.Stores {
		store, err := OpenStore(st, l.GetConcurrency)
		if err != nil {
			return nil, fmt.Errorf("store %s: %w", name, err)
		}
		store = objstore.NewRetrying(store, storeAttempts)
		ring, err := keyring.Read(ctx, store, a.Cluster.ClusterID(), keyring.Options{Logger: log})
		if err != nil {
			return nil, fmt.Errorf("store %s: %w", name, err)
		}
		a.stores[name] = store
		a.Tier.AddStore(name, diskless.StoreHandle{Store: store, Ring: ring})
	}
	return a, nil
}

// auditCache is enough for one log that is read in order.
const auditCache = 64 << 20

// Close lets go of all of it.
func (a *Audit) Close() {
	if a.Tier != nil {
		ctx, cancel := context.WithTimeout(context.Background(), adminClose)
		defer cancel()
		_ = a.Tier.Close(ctx)
	}
	a.Cluster.Close()
}

// Archive brings the chains of all audit topics, or of some, up to their logs' ends.
func (a *Audit) Archive(ctx context.Context, topics ...string) ([]audit.Seen, error) {
	routes, err := a.cfg.Router()
	if err != nil {
		return nil, err
	}
	one := newArchive(a.cfg, a.Cluster, a.Tier, a.log, nil)
	one.routes = func() *router.Router { return routes }
	one.store = func(name string) (objstore.Store, bool) { s, ok := a.stores[name]; return s, ok }
	return one.pass(ctx, topics...)
}

// Logs returns the logs of topics, by chain; those that the cluster does not have
// are missing.
func (a *Audit) Logs(ctx context.Context, topics ...string) (map[audit.Chain]audit.Log, error) {
	logs := map[audit.Chain]audit.Log{}
	all, err := a.Cluster.Logs(ctx, topics...)
	if len(all) == 0 && err != nil {
		return nil, err
	}
	for _, l := range all {
		logs[audit.Log(l).Chain()] = audit.Log(l)
	}
	return logs, nil
}

// Kafka is the cluster as the archive's checks see it.
func (a *Audit) Kafka() audit.Kafka { return auditKafka{a.Cluster} }
