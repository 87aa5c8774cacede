package server

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// LogLook is what samples of a topic's log show. The JSON names are stable.
type LogLook struct {
	Sampled      int        `json:"sampled_batches"`
	Placeholders int        `json:"sampled_placeholders"`
	Last         *time.Time `json:"last_placeholder,omitempty"` // largest timestamp of the latest that was found
	AgesOut      *time.Time `json:"ages_out,omitempty"`         // when retention.ms will have removed it; absent when it never does
	Forever      bool       `json:"kept_forever,omitempty"`     // by retention.ms
	Err          string     `json:"error,omitempty"`
}

const (
	// probesPerLog are spread evenly over a partition.
	probesPerLog = 16
	// bisections narrow down where the last placeholder is.
	bisections = 24
	probeBytes = 16 << 10
)

// LookIntoLogs samples the topics' logs: what share of their batches are
// placeholders, and when the last of these will have aged out. So many partitions
// are looked into at a time; before each Fetch, pace is waited for.
func LookIntoLogs(ctx context.Context, cluster *lowlatency.Cluster, topics []string, atATime int, pace func(context.Context) error) (map[string]*LogLook, error) {
	looks := make(map[string]*LogLook, len(topics))
	for _, t := range topics {
		looks[t] = &LogLook{}
	}
	logs, err := cluster.Logs(ctx, topics...)
	if len(logs) == 0 && err != nil {
		return nil, err
	}
	retention, retErr := cluster.Retentions(ctx, topics)
	if retErr != nil {
		return nil, retErr
	}
	var mu sync.Mutex
	var looking errgroup.Group
	looking.SetLimit(atATime)
	for _, l := range logs {
		looking.Go(func() error {
			one, err := lookInto(ctx, cluster, l, pace)
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

// lookInto samples one log, and then looks for its last placeholder between the
// last sample that is one and the first after it that is none.
func lookInto(ctx context.Context, cluster *lowlatency.Cluster, l lowlatency.Log, pace func(context.Context) error) (look LogLook, err error) {
	at := func(offset int64) (is bool, next int64, err error) {
		if err := pace(ctx); err != nil {
			return false, 0, err
		}
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

// firstLook is how soon after the start logs are looked into for the first time,
// when placeholders.every is longer.
const firstLook = 5 * time.Minute

// LogMetrics show which logs hold placeholders.
type LogMetrics struct {
	share   *prometheus.GaugeVec
	until   *prometheus.GaugeVec
	looked  prometheus.Gauge
	unknown prometheus.Gauge
}

// NewLogMetrics registers them.
func NewLogMetrics(reg prometheus.Registerer) *LogMetrics {
	gauge := func(name, help string) prometheus.GaugeOpts { return prometheus.GaugeOpts{Name: name, Help: help} }
	m := &LogMetrics{
		share:   prometheus.NewGaugeVec(gauge("sluice_topic_placeholder_ratio", "Share of the batches in a topic's log that are placeholders, by samples; topics that hold some."), []string{"topic"}),
		until:   prometheus.NewGaugeVec(gauge("sluice_topic_placeholders_until_seconds", "Unix time at which retention.ms will have removed a topic's last placeholder; +Inf when it never does."), []string{"topic"}),
		looked:  prometheus.NewGauge(gauge("sluice_topic_placeholders_looked_seconds", "Unix time at which all logs had been looked into for placeholders; 0 before the first time.")),
		unknown: prometheus.NewGauge(gauge("sluice_topic_placeholders_unknown_topics", "Topics whose logs could not be looked into for placeholders.")),
	}
	reg.MustRegister(m.share, m.until, m.looked, m.unknown)
	return m
}

// watchLogs looks into the logs of all topics now and then, and shows those that
// hold placeholders. It is slow on purpose.
func (s *Server) watchLogs(ctx context.Context, opt config.Placeholders) {
	m := NewLogMetrics(s.metrics)
	limit := rate.NewLimiter(rate.Limit(opt.FetchesPerSecond), 1)
	for pause := min(opt.Every, firstLook); ; pause = opt.Every {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		if err := m.look(ctx, s.cluster, limit); err != nil && ctx.Err() == nil {
			s.log.Warn().Err(err).Msg("the topics' logs cannot be looked into for placeholders: sluice_topic_placeholder_ratio is not up to date")
		}
	}
}

func (m *LogMetrics) look(ctx context.Context, cluster *lowlatency.Cluster, limit *rate.Limiter) error {
	all, err := kadm.NewClient(cluster.Client()).ListTopics(ctx)
	if err != nil {
		return err
	}
	looks, err := LookIntoLogs(ctx, cluster, all.Names(), 1, limit.Wait)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	m.share.Reset()
	m.until.Reset()
	unknown := 0
	for topic, look := range looks {
		if look.Err != "" {
			unknown++
		}
		if look.Last == nil {
			continue
		}
		m.share.WithLabelValues(topic).Set(float64(look.Placeholders) / float64(look.Sampled))
		switch {
		case look.Forever:
			m.until.WithLabelValues(topic).Set(math.Inf(1))
		case look.AgesOut != nil:
			m.until.WithLabelValues(topic).Set(float64(look.AgesOut.Unix()))
		}
	}
	m.unknown.Set(float64(unknown))
	m.looked.SetToCurrentTime()
	return nil
}
