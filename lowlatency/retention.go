package lowlatency

import (
	"context"
	"slices"
	"strconv"
	"time"
)

const retentionMs = "retention.ms"

// Retention returns topics' retention.ms, negative for ever. Topics that do not
// exist, or that cannot be asked about, are missing.
func (c *Cluster) Retention(ctx context.Context, topics []string) map[string]time.Duration {
	kept := make(map[string]time.Duration, len(topics))
	for some := range slices.Chunk(topics, describeAtMost) {
		resources, err := c.facts.describe(ctx, some, retentionMs)
		if err != nil {
			if ctx.Err() == nil {
				c.metrics.factErrors.Inc()
				c.log.Debug().Err(err).Int("topics", len(some)).Msg("topics' retention.ms cannot be read")
			}
			continue
		}
		for _, r := range resources {
			for _, cfg := range r.Configs {
				if r.ErrorCode != 0 || cfg.Name != retentionMs || cfg.Value == nil {
					continue
				}
				if ms, err := strconv.ParseInt(*cfg.Value, 10, 64); err == nil {
					kept[r.ResourceName] = RetentionOf(ms)
				}
			}
		}
	}
	return kept
}

// RetentionOf is a retention.ms as a duration; negative is for ever, and so is what
// is longer than durations can be, 292 years.
func RetentionOf(ms int64) time.Duration {
	if ms < 0 || ms > int64(1<<63-1)/int64(time.Millisecond) {
		return -1
	}
	return time.Duration(ms) * time.Millisecond
}
