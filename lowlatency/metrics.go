package lowlatency

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	brokers, topicsKnown                                   prometheus.Gauge
	dialErrors, refreshErrors, factErrors, becameCompacted prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		brokers:         prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_lowlatency_brokers", Help: "Brokers that the cluster has."}),
		topicsKnown:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_lowlatency_topics_known", Help: "Topics whose configuration is remembered."}),
		dialErrors:      prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_lowlatency_dial_errors_total", Help: "Connections to brokers that did not come about (limits.dial_timeout)."}),
		refreshErrors:   prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_lowlatency_refresh_errors_total", Help: "Times the cluster did not tell its brokers."}),
		factErrors:      prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_lowlatency_topic_config_errors_total", Help: "Times a topic's configuration could not be read."}),
		becameCompacted: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_lowlatency_topics_became_compacted_total", Help: "Topics seen to have become compacted; on diskless ones compaction destroys placeholders."}),
	}
	reg.MustRegister(m.brokers, m.topicsKnown, m.dialErrors, m.refreshErrors, m.factErrors, m.becameCompacted)
	return m
}
