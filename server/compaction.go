package server

import (
	"context"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// compactionPuts and compactionGets are the requests of a compactor that are
// under way at a time, on connections of their own.
const (
	compactionPuts = 2
	compactionGets = 6
)

// CompactionLimits are those of a configuration.
func CompactionLimits(c config.Compaction) compactor.Limits {
	return compactor.Limits{
		Window: c.Window, Merge: c.Merge, MinAge: c.MinAge, MemoryBytes: c.MemoryBytes, SegmentBytes: c.SegmentBytes,
		BytesPerSecond: c.BytesPerSecond, RequestsPerSecond: c.RequestsPerSecond,
	}
}

// startCompactor compacts a store in the background, as far as producers and
// readers leave it alone.
func (s *Server) startCompactor(ctx context.Context, st config.Store, meters *objstore.Meters) error {
	store, err := openInTurns(st, compactionPuts+compactionGets, s.turns)
	if err != nil {
		return err
	}
	store = objstore.NewMetered(store, st.Name, meters)
	store = objstore.NewLimited(store, compactionPuts, compactionGets)
	c := compactor.New(compactor.Options{
		Store:     objstore.NewRetrying(store, storeAttempts),
		Name:      st.Name,
		Retention: s.cluster.Retention,
		Turn:      &s.turn,
		Busy:      func() bool { return s.tier.Busy(st.Name) },
		Limits:    CompactionLimits(s.config.Compaction),
		Logger:    s.log,
		Metrics:   s.compact,
	})
	s.background(func() { c.Run(ctx) })
	return nil
}
