package server

import (
	"context"
	"errors"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless/retention"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

var _ retention.Kafka = (*lowlatency.Cluster)(nil)

// RetentionOptions says how a configuration cuts logs to retention.bytes.
func RetentionOptions(cfg config.Retention, cluster *lowlatency.Cluster, payloads retention.Payloads, routes func() *router.Router) retention.Options {
	return retention.Options{
		Kafka: cluster, Payloads: payloads, Pace: pace(cfg.BytesPerSecond),
		Topics: func(ctx context.Context) ([]string, error) {
			topics, err := kadm.NewClient(cluster.Client()).ListTopics(ctx)
			return topics.Names(), err
		},
		Ours: func(topic string) bool {
			placed := routes().Place(topic, tiers.TopicFacts{Known: true})
			return placed.Tier == tiers.Diskless && !placed.Class.Audit
		},
	}
}

// retain cuts logs until ctx ends.
func (s *Server) retain(ctx context.Context, cfg *config.Config) {
	opt := RetentionOptions(cfg.Retention, s.cluster, s.tier, s.router.Load)
	opt.Metrics = retention.NewMetrics(s.metrics)
	opt.Explain = func(c retention.Cut) {
		s.log.Info().Str("topic", c.Topic).Int32("partition", c.Partition).Int64("from", c.From).Int64("to", c.To).
			Int64("kept_bytes", c.Kept).Int64("retention_bytes", c.Limit).Msg("records beyond retention.bytes were deleted")
	}
	w := retention.New(opt)
	passes(ctx, cfg.Retention.Every, func() {
		r, err := w.Pass(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil && r.Doubtful > 0 {
			err = errors.New(strings.Join(r.DoubtList(), "\n"))
		}
		if err != nil {
			s.log.Warn().Str("errors", someOf(err)).Int("doubts", r.Doubtful).
				Msg("not all diskless topics can be cut to retention.bytes now: they keep more, and are tried again")
		}
	})
}
