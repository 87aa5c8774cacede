package diskcache

import "github.com/prometheus/client_golang/prometheus"

// Metrics of a disk cache.
type Metrics struct {
	up        prometheus.Gauge
	hits      prometheus.Counter
	misses    prometheus.Counter
	evictions prometheus.Counter
	dropped   prometheus.Counter
	bytes     *prometheus.GaugeVec   // segment
	errors    *prometheus.CounterVec // reason
}

// Reasons of errors.
const (
	openError  = "open"
	readError  = "read"
	writeError = "write"
	slowError  = "slow"
	corrupt    = "corrupt"
)

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	m := &Metrics{
		up:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_diskless_disk_cache_up", Help: "1 while the disk cache is used, 0 while its disk is left alone."}),
		hits:      counter("sluice_diskless_disk_cache_hits_total", "Chunks found on the local disk."),
		misses:    counter("sluice_diskless_disk_cache_misses_total", "Chunks not found on the local disk."),
		evictions: counter("sluice_diskless_disk_cache_evictions_total", "Chunks evicted to stay within disk_cache.bytes."),
		dropped:   counter("sluice_diskless_disk_cache_dropped_total", "Chunks not kept because the disk was not done with those before."),
		bytes:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_diskless_disk_cache_bytes", Help: "Bytes of chunks on the local disk."}, []string{"segment"}),
		errors:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_diskless_disk_cache_errors_total", Help: "What went wrong with the local disk, by what it was."}, []string{"reason"}),
	}
	reg.MustRegister(m.up, m.bytes, m.errors)
	for _, reason := range []string{openError, readError, writeError, slowError, corrupt} {
		m.errors.WithLabelValues(reason)
	}
	return m
}
