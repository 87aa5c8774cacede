package retention

import "github.com/prometheus/client_golang/prometheus"

// Metrics are a worker's.
type Metrics struct {
	records *prometheus.CounterVec // topic
	bytes   *prometheus.CounterVec // topic
	read    prometheus.Counter
	doubts  prometheus.Gauge
	passes  *prometheus.CounterVec // result
	last    prometheus.Gauge
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		records: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_retention_deleted_records_total", Help: "Offsets deleted by this replica because a log held more original bytes than retention.bytes."}, []string{"topic"}),
		bytes:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_retention_deleted_bytes_total", Help: "Their original bytes, as far as this replica had counted them."}, []string{"topic"}),
		read:    prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_retention_read_bytes_total", Help: "Bytes of logs read to know how many original bytes they hold."}),
		doubts:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_retention_doubts", Help: "Logs or topics from which the last pass deleted nothing because something was not certain."}),
		passes:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_retention_passes_total", Help: "Passes of this replica over the logs with a retention.bytes; result is done or failed."}, []string{"result"}),
		last:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_retention_last_pass_seconds", Help: "Unix time at which this replica's last whole pass ended."}),
	}
	reg.MustRegister(m.records, m.bytes, m.read, m.doubts, m.passes, m.last)
	return m
}

// noteRead and noteCut are told at once: a pass may take hours.
func (m *Metrics) noteRead(n int) {
	if m != nil {
		m.read.Add(float64(n))
	}
}

func (m *Metrics) noteCut(c Cut) {
	if m != nil {
		m.records.WithLabelValues(c.Topic).Add(float64(c.To - c.From))
		m.bytes.WithLabelValues(c.Topic).Add(float64(c.Bytes))
	}
}

func (m *Metrics) note(r *Report, err error) {
	if m == nil {
		return
	}
	m.doubts.Set(float64(r.Doubtful))
	if err != nil {
		m.passes.WithLabelValues("failed").Inc()
		return
	}
	m.passes.WithLabelValues("done").Inc()
	m.last.SetToCurrentTime()
}
