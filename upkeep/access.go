// Package upkeep is what an operator does beside running replicas: proving that
// every placeholder can be read, and leaving. It talks to brokers and stores
// itself, needs no replica, and changes neither logs nor objects of the cluster
// that it looks at; but Repair makes damaged objects anew, and locks audit objects.
package upkeep

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/server"
)

// Access is a cluster and its stores, as readers see them.
type Access struct {
	Cluster *lowlatency.Cluster
	Tier    *diskless.Tier
	Stores  map[string]diskless.StoreHandle
	Locks   map[string]StoreLock // of the stores that lock what belongs to audit classes
}

const (
	// cacheBytes let all batches of an object be read with one GET, when they are
	// asked for at about the same time.
	cacheBytes = 256 << 20
	// storeRequests is how many requests go to a store at a time.
	storeRequests = 8
	// storeAttempts of one request, before the caller tries again.
	storeAttempts = 3
	getTimeout    = 30 * time.Second
	openTimeout   = 15 * time.Second
)

// Open reaches the cluster and the stores of a configuration. It writes nothing:
// a prefix that no replica has claimed is an error.
func Open(ctx context.Context, cfg *config.Config) (*Access, error) {
	a, err := OpenCluster(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := a.OpenStores(ctx, cfg); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// OpenCluster is Open without the stores, for who looks at logs only.
func OpenCluster(ctx context.Context, cfg *config.Config) (*Access, error) {
	opt, err := server.ClusterOptions(cfg, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	cluster, err := lowlatency.New(opt)
	if err != nil {
		return nil, err
	}
	if err := cluster.Refresh(ctx); err != nil {
		cluster.Close()
		return nil, fmt.Errorf("asking %s: %w; `sluice check --live` looks closer", strings.Join(cfg.Kafka.Bootstrap, ", "), err)
	}
	a, err := NewAccess(cluster, nil)
	if err != nil {
		cluster.Close()
	}
	return a, err
}

// OpenStores reaches the stores, for what OpenCluster has opened.
func (a *Access) OpenStores(ctx context.Context, cfg *config.Config) error {
	stores, locks := map[string]diskless.StoreHandle{}, map[string]StoreLock{}
	for name, st := range cfg.Stores {
		h, lock, err := openStore(ctx, st, a.Cluster.ClusterID())
		if err != nil {
			return fmt.Errorf("store %s: %w", name, err)
		}
		stores[name], locks[name] = h, lock
	}
	with, err := NewAccess(a.Cluster, stores)
	if err != nil {
		return err
	}
	a.closeTier()
	with.Locks = locks
	*a = *with
	return nil
}

func openStore(ctx context.Context, st config.Store, clusterID string) (h diskless.StoreHandle, lock StoreLock, err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	store, err := server.OpenStore(st, storeRequests)
	if err != nil {
		return h, lock, err
	}
	h.Store = objstore.NewRetrying(objstore.NewLimited(store, 1, storeRequests), storeAttempts)
	h.Ring, err = keyring.Read(ctx, h.Store, clusterID, keyring.Options{Logger: zerolog.Nop()})
	return h, storeLock(st, store), err
}

// NewAccess puts together what is open already. It takes the cluster over.
func NewAccess(cluster *lowlatency.Cluster, stores map[string]diskless.StoreHandle) (*Access, error) {
	return newAccess(cluster, stores, diskless.Limits{CacheBytes: cacheBytes, GetTimeout: getTimeout})
}

func newAccess(cluster *lowlatency.Cluster, stores map[string]diskless.StoreHandle, limits diskless.Limits) (*Access, error) {
	tier, err := diskless.New(diskless.Options{
		ClusterID: cluster.ClusterID(),
		Stores:    stores,
		Limits:    limits,
		Logger:    zerolog.Nop(),
		Metrics:   prometheus.NewRegistry(),
	})
	if err != nil {
		return nil, err
	}
	return &Access{Cluster: cluster, Tier: tier, Stores: stores}, nil
}

// Close lets go of everything.
func (a *Access) Close() {
	a.closeTier()
	a.Cluster.Close()
}

func (a *Access) closeTier() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = a.Tier.Close(ctx)
}

// storeNames in order.
func (a *Access) storeNames() []string { return slices.Sorted(maps.Keys(a.Stores)) }

// limiter of something a second, with bursts of a second's worth at most; 0 is no
// limit.
func limiter(perSecond float64, burst int) *rate.Limiter {
	if perSecond <= 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(1, min(burst, int(min(perSecond, 1<<30)))))
}

// Pace waits so that something is done so often in a second; 0 is as often as one
// likes.
func Pace(perSecond float64) func(context.Context) error { return limiter(perSecond, 1).Wait }

// spend waits until n may be spent, also when that is more than a burst.
func spend(ctx context.Context, l *rate.Limiter, n int64) error {
	if l.Limit() == rate.Inf {
		return ctx.Err()
	}
	for n > 0 {
		part := min(n, int64(l.Burst()))
		if err := l.WaitN(ctx, int(part)); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// match reports whether any pattern names the topic; none is all topics.
func match(patterns []router.Pattern, topic string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p router.Pattern) bool { return p.Match(topic) })
}

// goneFromCluster reports an error that says that a topic, or this incarnation of
// it, is no longer known to the broker that was asked.
func goneFromCluster(err error) bool {
	return errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.InconsistentTopicID)
}

// attempts of something that a broker or store may be able to do a moment later;
// the pause doubles from firstPause, which tests shorten.
const attempts = 7

var firstPause = 250 * time.Millisecond

// persist calls fn until it succeeds, its error is final, or enough is enough.
func persist(ctx context.Context, fn func() (final bool, err error)) error {
	pause := firstPause
	for i := 1; ; i++ {
		final, err := fn()
		if err == nil || final || i == attempts || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause *= 2
	}
}

// fetchFrom reads a log, from wherever its leader is by now; find is how it is
// read. The errors OffsetOutOfRange, and gone, are final.
func (a *Access) fetchFrom(ctx context.Context, l *lowlatency.Log, find func(context.Context, lowlatency.Log) (lowlatency.Fetched, error)) (f lowlatency.Fetched, err error) {
	err = persist(ctx, func() (bool, error) {
		if f, err = find(ctx, *l); err == nil || errors.Is(err, kerr.OffsetOutOfRange) {
			return true, err
		}
		now, gone, lookErr := a.relocate(ctx, *l)
		if gone {
			return true, errGone
		}
		if lookErr == nil {
			*l = now
		}
		return false, err
	})
	return f, err
}

// errGone is a topic that was deleted, or is another of the same name.
var errGone = errors.New("the topic was deleted meanwhile")

// relocate finds a log's leader again. gone is true only when the cluster says
// of the topic by name that it is another one now, or, of its id, that there is
// none.
func (a *Access) relocate(ctx context.Context, l lowlatency.Log) (now lowlatency.Log, gone bool, err error) {
	logs, err := a.Cluster.Logs(ctx, l.Topic)
	for _, now := range logs {
		if now.Partition == l.Partition {
			return now, now.ID != l.ID, nil
		}
	}
	return l, err != nil && goneFromCluster(err), err
}
