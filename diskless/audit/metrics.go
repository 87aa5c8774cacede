package audit

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the archiver's.
type Metrics struct {
	objects *prometheus.CounterVec // store
	bytes   *prometheus.CounterVec // store
	gaps    *prometheus.CounterVec // topic
	behind  *prometheus.GaugeVec   // topic
	share   *prometheus.GaugeVec   // topic
	failed  prometheus.Gauge
	passed  prometheus.Gauge
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		objects: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_audit_objects_total", Help: "Objects of the audit archive written."}, []string{"store"}),
		bytes:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_audit_bytes_total", Help: "Bytes of batches in them."}, []string{"store"}),
		gaps:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_audit_missed_records_total", Help: "Offsets that Kafka's log no longer held when the archive came to them, since the archive of the partition began."}, []string{"topic"}),
		behind:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_audit_behind_records", Help: "Offsets of a topic's log that are not archived, of the partitions that this replica archives."}, []string{"topic"}),
		share:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_audit_archived_ratio", Help: "Share of a log's offsets that is archived, the least of a topic's partitions that this replica archives; at 0 retention removes what is not."}, []string{"topic"}),
		failed:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_audit_failed_partitions", Help: "Partitions that could not be archived in the last pass."}),
		passed:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_audit_passed_seconds", Help: "Unix time at which the last pass over all partitions ended; 0 before the first."}),
	}
	reg.MustRegister(m.objects, m.bytes, m.gaps, m.behind, m.share, m.failed, m.passed)
	return m
}

func (m *Metrics) wrote(store string, h Header) {
	if m == nil {
		return
	}
	m.objects.WithLabelValues(store).Inc()
	m.bytes.WithLabelValues(store).Add(float64(h.Bytes))
	for _, g := range h.Gaps {
		if g.Why == WhyRemoved {
			m.gaps.WithLabelValues(h.Topic).Add(float64(g.To - g.From))
		}
	}
}

// Seen is one log after a pass.
type Seen struct {
	Log  Log
	Next int64
	Err  error
}

// Pass shows how a pass over logs has ended.
func (m *Metrics) Pass(seen []Seen) {
	behind, share, failed := map[string]float64{}, map[string]float64{}, 0
	for _, s := range seen {
		if s.Err != nil {
			failed++
		}
		behind[s.Log.Topic] += float64(max(0, s.Log.End-max(s.Next, s.Log.Start)))
		archived := 1.0
		if kept := s.Log.End - s.Log.Start; kept > 0 {
			archived = min(1, max(0, float64(s.Next-s.Log.Start)/float64(kept)))
		}
		if least, ok := share[s.Log.Topic]; !ok || archived < least {
			share[s.Log.Topic] = archived
		}
	}
	m.behind.Reset()
	m.share.Reset()
	for topic, n := range behind {
		m.behind.WithLabelValues(topic).Set(n)
		m.share.WithLabelValues(topic).Set(share[topic])
	}
	m.failed.Set(float64(failed))
	m.passed.SetToCurrentTime()
}
