package lowlatency

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	brokers, topicsKnown, dialing, dialsWaiting, quotasKnown                          prometheus.Gauge
	dialErrors, dialsRefused, refreshErrors, factErrors, becameCompacted, quotaErrors prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		brokers:         prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_lowlatency_brokers", Help: "Brokers that the cluster has."}),
		topicsKnown:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_lowlatency_topics_known", Help: "Topics whose configuration is remembered."}),
		dialErrors:      prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_lowlatency_dial_errors_total", Help: "Connections to brokers that did not come about (limits.dial_timeout)."}),
		dialing:         prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_lowlatency_dials", Help: "Connections to brokers that are being made for clients (limits.dials_per_broker)."}),
		dialsWaiting:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_lowlatency_dials_waiting", Help: "Client connections that wait for their turn to dial (limits.dial_queue)."}),
		dialsRefused:    prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_lowlatency_dials_refused_total", Help: "Client connections ended because too many waited to dial the same broker (limits.dial_queue)."}),
		refreshErrors:   prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_lowlatency_refresh_errors_total", Help: "Times the cluster did not tell its brokers."}),
		factErrors:      prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_lowlatency_topic_config_errors_total", Help: "Times a topic's configuration could not be read."}),
		becameCompacted: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_lowlatency_topics_became_compacted_total", Help: "Topics seen to have become compacted; on diskless ones compaction destroys placeholders."}),
		quotasKnown:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_lowlatency_byte_rate_quotas", Help: "Byte rates that are set in the cluster and applied to original bytes (quotas.enabled)."}),
		quotaErrors:     prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_lowlatency_quota_errors_total", Help: "Times the cluster's client quotas could not be read."}),
	}
	reg.MustRegister(m.brokers, m.topicsKnown, m.dialing, m.dialsWaiting, m.dialErrors, m.dialsRefused, m.refreshErrors, m.factErrors, m.becameCompacted, m.quotasKnown, m.quotaErrors)
	return m
}
