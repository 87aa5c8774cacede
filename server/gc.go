package server

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless/gc"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/lowlatency"
)

var _ gc.Kafka = (*lowlatency.Cluster)(nil)

// CollectorOptions says how a configuration collects the garbage of a store.
func CollectorOptions(cfg config.GC, name string, store objstore.Store, cluster *lowlatency.Cluster, log zerolog.Logger) gc.Options {
	return gc.Options{
		Name: name, Store: store, Kafka: cluster, Logger: log,
		Timing: gc.Timing{Margin: cfg.Margin, Grace: cfg.Grace, Unheard: gc.DefaultUnheard, Apart: gc.DefaultApart, Missed: gc.DefaultMissed},
		MinAge: cfg.MinAge, DeletesPerSecond: cfg.DeletesPerSecond,
	}
}

// backgroundGets of a collector at a time: nobody waits for it.
const backgroundGets = 4

// startCollector collects the garbage of a store, now and then, unless another
// replica does.
func (s *Server) startCollector(name string, store objstore.Store) {
	cfg := s.config.GC
	opt := CollectorOptions(cfg, name, store, s.cluster, s.log)
	opt.Concurrency, opt.Metrics = backgroundGets, s.collected
	c := gc.New(opt)
	s.background(func() {
		ctx := s.collecting
		// Replicas that start together come one after the other.
		for pause := time.Duration(rand.Int64N(int64(cfg.Every / 2))); ; pause = cfg.Every/4 + time.Duration(rand.Int64N(int64(cfg.Every/4))) {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			if busy, err := c.Busy(ctx, cfg.Every); err == nil && busy {
				continue
			}
			s.collect(ctx, c)
		}
	})
}

func (s *Server) collect(ctx context.Context, c *gc.Collector) {
	r, err := c.Pass(ctx)
	if ctx.Err() != nil {
		return
	}
	line := s.log.Info()
	if err != nil {
		line = s.log.Warn().Err(err)
	}
	line.Str("store", r.Store).Int64("objects", r.Listed.Objects).Int64("deleted", r.Deleted.Objects).Int64("deleted_bytes", r.Deleted.Bytes).
		Int("doubts", len(r.Doubts)).Dur("took", r.Took)
	if err != nil {
		line.Msg("the garbage collection ended early; nothing more is deleted until a pass succeeds: `sluice gc --dry-run` says why objects are kept")
		return
	}
	line.Msg("garbage was collected")
}
