package lowlatency

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

const retentionMs = "retention.ms"

// Retention is Retentions for who makes do with what is known.
func (c *Cluster) Retention(ctx context.Context, topics []string) map[string]time.Duration {
	kept, err := c.Retentions(ctx, topics)
	if err != nil && ctx.Err() == nil {
		c.log.Debug().Err(err).Msg("topics' retention.ms cannot be read")
	}
	return kept
}

// Retentions returns topics' retention.ms, negative for ever. Topics that do not
// exist, or that cannot be asked about, are missing; an error is that some could not
// be asked about at all.
func (c *Cluster) Retentions(ctx context.Context, topics []string) (map[string]time.Duration, error) {
	kept := make(map[string]time.Duration, len(topics))
	var errs []error
	for some := range slices.Chunk(topics, describeAtMost) {
		resources, err := c.facts.describe(ctx, some, retentionMs)
		if err != nil {
			errs = append(errs, fmt.Errorf("asking for %s of %d topics: %w", retentionMs, len(some), err))
			if ctx.Err() == nil {
				c.metrics.factErrors.Inc()
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
	return kept, errors.Join(errs...)
}

// RetentionOf is a retention.ms as a duration; negative is for ever, and so is what
// is longer than durations can be, 292 years.
func RetentionOf(ms int64) time.Duration {
	if ms < 0 || ms > int64(1<<63-1)/int64(time.Millisecond) {
		return -1
	}
	return time.Duration(ms) * time.Millisecond
}
