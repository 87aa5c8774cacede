package gc

import "github.com/prometheus/client_golang/prometheus"

// Metrics are of all collectors of a process; nil is none.
type Metrics struct {
	objects *prometheus.GaugeVec
	bytes   *prometheus.GaugeVec
	deleted *prometheus.CounterVec
	freed   *prometheus.CounterVec
	passes  *prometheus.CounterVec
	last    *prometheus.GaugeVec
	took    *prometheus.GaugeVec
	doubts  *prometheus.GaugeVec
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, append([]string{"store"}, labels...))
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"store"}, labels...))
	}
	m := &Metrics{
		objects: gauge("sluice_gc_objects", "Objects that the last pass of this replica found, by what keeps them; dead ones are deleted.", "reason"),
		bytes:   gauge("sluice_gc_bytes", "Their bytes.", "reason"),
		deleted: counter("sluice_gc_deleted_objects_total", "Objects deleted because nothing refers to them."),
		freed:   counter("sluice_gc_deleted_bytes_total", "Their bytes."),
		passes:  counter("sluice_gc_passes_total", "Passes of this replica; result is done or failed.", "result"),
		last:    gauge("sluice_gc_last_pass_seconds", "Unix time at which this replica's last whole pass began."),
		took:    gauge("sluice_gc_pass_seconds", "How long this replica's last pass took."),
		doubts:  gauge("sluice_gc_doubts", "Logs or topics of which the last pass could not tell for certain what they hold, up to 100."),
	}
	reg.MustRegister(m.objects, m.bytes, m.deleted, m.freed, m.passes, m.last, m.took, m.doubts)
	return m
}

func (m *Metrics) note(r *Report, err error) {
	if m == nil || r.DryRun {
		return
	}
	m.deleted.WithLabelValues(r.Store).Add(float64(r.Deleted.Objects))
	m.freed.WithLabelValues(r.Store).Add(float64(r.Deleted.Bytes))
	m.took.WithLabelValues(r.Store).Set(r.Took.Seconds())
	if err != nil {
		m.passes.WithLabelValues(r.Store, "failed").Inc()
		return
	}
	m.passes.WithLabelValues(r.Store, "done").Inc()
	m.last.WithLabelValues(r.Store).Set(float64(r.Began.Unix()))
	m.doubts.WithLabelValues(r.Store).Set(float64(len(r.Doubts)))
	for _, reason := range []Reason{Dead, Grace, Retained, Young, Unseen, Doubt, Unreadable, Unknown, Audit, Needed} {
		m.objects.WithLabelValues(r.Store, string(reason)).Set(float64(r.Found[reason].Objects))
		m.bytes.WithLabelValues(r.Store, string(reason)).Set(float64(r.Found[reason].Bytes))
	}
}
