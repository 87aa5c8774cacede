package compactor

import "github.com/prometheus/client_golang/prometheus"

// Metrics are those of all compactors of a process.
type Metrics struct {
	windows  *prometheus.CounterVec // store, outcome
	objects  *prometheus.CounterVec // store
	segments *prometheus.CounterVec // store
	bytes    *prometheus.CounterVec // store, direction
	damaged  *prometheus.CounterVec // store
	errors   *prometheus.CounterVec // store
	paused   *prometheus.CounterVec // store
	behind   *prometheus.GaugeVec   // store
	merges   *prometheus.CounterVec // store, outcome
	seconds  prometheus.Histogram
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := newMetrics()
	reg.MustRegister(m.windows, m.objects, m.segments, m.bytes, m.damaged, m.errors, m.paused, m.behind, m.merges, m.seconds)
	return m
}

func newMetrics() *Metrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return &Metrics{
		windows:  counters("sluice_compaction_windows_total", "Windows, or parts of them, whose segments were written; lost are those that another compactor was faster with.", "store", "outcome"),
		objects:  counters("sluice_compaction_objects_total", "WAL objects that were compacted.", "store"),
		segments: counters("sluice_compaction_segments_total", "Segments that were written.", "store"),
		bytes:    counters("sluice_compaction_bytes_total", "Bytes that compaction has read and written, and those of merging (compaction.bytes_per_second).", "store", "direction"),
		damaged:  counters("sluice_compaction_damaged_objects_total", "WAL objects and manifests that are not whole, or too large for compaction.memory_bytes, and were left out.", "store"),
		errors:   counters("sluice_compaction_errors_total", "Times that compaction has stopped and begun again.", "store"),
		paused:   counters("sluice_compaction_paused_seconds_total", "Seconds that compaction has waited for the foreground.", "store"),
		behind:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_compaction_behind_seconds", Help: "Age of the oldest window that should be compacted and is not; 0 when there is none."}, []string{"store"}),
		merges:   counters("sluice_compaction_merges_total", "Times that windows were merged into larger segments, or might have been; unmerged are those that hold, for the most part, large pieces already, or of which something is gone or damaged.", "store", "outcome"),
		seconds:  prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sluice_compaction_window_seconds", Help: "Seconds that a window, or a part of one that fits into memory, took.", Buckets: prometheus.ExponentialBuckets(0.1, 2, 14)}),
	}
}
