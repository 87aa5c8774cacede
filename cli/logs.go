package cli

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// logLook is what samples of a topic's log show. The JSON names are stable.
type logLook struct {
	Sampled      int        `json:"sampled_batches"`
	Placeholders int        `json:"sampled_placeholders"`
	Last         *time.Time `json:"last_placeholder,omitempty"` // largest timestamp of the latest that was found
	AgesOut      *time.Time `json:"ages_out,omitempty"`         // when retention.ms will have removed it; absent when it never does
	Forever      bool       `json:"kept_forever,omitempty"`     // retention.ms is -1
	Err          string     `json:"error,omitempty"`
}

// share of the samples, for people.
func (l *logLook) share() string {
	switch {
	case l.Err != "":
		return "? (" + l.Err + ")"
	case l.Sampled == 0:
		return "empty"
	}
	return fmt.Sprintf("%d of %d", l.Placeholders, l.Sampled)
}

func (l *logLook) agesOut() string {
	if l.Forever {
		return "never: retention.ms=-1"
	}
	return when(l.AgesOut)
}

func when(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04")
}

const (
	// probesPerLog are spread evenly over a partition.
	probesPerLog = 16
	// bisections narrow down where the last placeholder is.
	bisections = 24
	probeBytes = 16 << 10
	// looksAtATime are partitions.
	looksAtATime = 16
)

// lookIntoLogs samples the topics' logs: what share of their batches are
// placeholders, and when the last of these will have aged out.
func lookIntoLogs(ctx context.Context, cluster *lowlatency.Cluster, topics []string) (map[string]*logLook, error) {
	looks := make(map[string]*logLook, len(topics))
	for _, t := range topics {
		looks[t] = &logLook{}
	}
	logs, err := cluster.Logs(ctx, topics...)
	if len(logs) == 0 && err != nil {
		return nil, err
	}
	retention, retErr := retentions(ctx, cluster, topics)
	if retErr != nil {
		return nil, retErr
	}
	var mu sync.Mutex
	var looking errgroup.Group
	looking.SetLimit(looksAtATime)
	for _, l := range logs {
		looking.Go(func() error {
			one, err := lookInto(ctx, cluster, l)
			mu.Lock()
			defer mu.Unlock()
			all := looks[l.Topic]
			all.Sampled += one.Sampled
			all.Placeholders += one.Placeholders
			if one.Last != nil && (all.Last == nil || one.Last.After(*all.Last)) {
				all.Last = one.Last
			}
			if err != nil {
				all.Err = err.Error()
			}
			return nil
		})
	}
	_ = looking.Wait()
	for topic, look := range looks {
		kept, known := retention[topic]
		switch {
		case look.Last == nil || !known:
		case kept < 0:
			look.Forever = true
		default:
			out := look.Last.Add(kept)
			look.AgesOut = &out
		}
	}
	return looks, nil
}

func retentions(ctx context.Context, cluster *lowlatency.Cluster, topics []string) (map[string]time.Duration, error) {
	out := make(map[string]time.Duration)
	if len(topics) == 0 {
		return out, nil
	}
	configs, err := kadm.NewClient(cluster.Client()).DescribeTopicConfigs(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("asking for retention.ms: %w", err)
	}
	for _, r := range configs {
		for _, c := range r.Configs {
			if c.Key != "retention.ms" || c.Value == nil {
				continue
			}
			if ms, err := strconv.ParseInt(*c.Value, 10, 64); err == nil {
				out[r.Name] = time.Duration(ms) * time.Millisecond
			}
		}
	}
	return out, nil
}

// lookInto samples one log, and then looks for its last placeholder between the
// last sample that is one and the first after it that is none.
func lookInto(ctx context.Context, cluster *lowlatency.Cluster, l lowlatency.Log) (look logLook, err error) {
	at := func(offset int64) (is bool, next int64, err error) {
		records, err := cluster.Fetch(ctx, l, offset, probeBytes)
		if err != nil {
			return false, 0, err
		}
		b, _, ok := wire.NextBatch(records)
		if !ok {
			// Larger than a probe: no placeholder is.
			look.Sampled++
			return false, offset + 1, nil
		}
		look.Sampled++
		next = offset + 1
		if b.IsV2() {
			next = b.BaseOffset() + int64(b.LastOffsetDelta()) + 1
			if _, is, _ = placeholder.Parse(b); is {
				look.Placeholders++
				if when := time.UnixMilli(b.MaxTimestamp()).UTC(); look.Last == nil || when.After(*look.Last) {
					look.Last = &when
				}
			}
		}
		return is, next, nil
	}
	found, after, next := int64(-1), l.End, l.Start
	for i := range int64(probesPerLog + 1) {
		offset := l.Start + (l.End-1-l.Start)*i/probesPerLog
		if offset < next || offset >= l.End {
			continue
		}
		is, behind, err := at(offset)
		if err != nil {
			return look, err
		}
		next = behind
		if is {
			found, after = behind, l.End
		} else if after == l.End {
			after = offset
		}
	}
	for range bisections {
		if found < 0 || found >= after {
			break
		}
		middle := found + (after-found)/2
		is, next, err := at(middle)
		if err != nil {
			return look, err
		}
		if is {
			found = next
		} else {
			after = middle
		}
	}
	return look, nil
}
