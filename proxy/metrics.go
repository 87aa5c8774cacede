package proxy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-kafka/sluice/tiers"
)

// metrics are the proxy's own. Those of a key are looked up once.
type metrics struct {
	connections    *prometheus.GaugeVec
	refused        *prometheus.CounterVec
	requests       [128]prometheus.Counter
	seconds        [128]prometheus.Observer
	requestBytes   prometheus.Counter
	clientBytes    prometheus.Counter
	forwarded      prometheus.Counter
	frameBytes     *prometheus.GaugeVec
	frameWaits     *prometheus.CounterVec
	frameWaiting   *prometheus.GaugeVec
	protocolErrors prometheus.Counter
	timeouts       prometheus.Counter
	stalled        prometheus.Counter
	brokerStalls   prometheus.Counter
	acceptErrors   prometheus.Counter
	dialErrors     prometheus.Counter
	dropped        prometheus.Counter
	crossed        prometheus.Counter
	crossedLate    prometheus.Counter
	crowded        prometheus.Counter
	crossedReads   prometheus.Counter
	suppressed     prometheus.Counter
	reserved       prometheus.Counter
	unmapped       prometheus.Counter
	storageErrors  prometheus.Counter
	late           prometheus.Counter
	withheld       prometheus.Gauge
	hydratedBytes  prometheus.Counter
	compactedAfter prometheus.Counter
	auditDeletions *prometheus.CounterVec // outcome
	charged        [len(tiers.QuotaKinds)]prometheus.Counter
	throttled      [len(tiers.QuotaKinds)]prometheus.Counter
	throttledFor   [len(tiers.QuotaKinds)]prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	m := &metrics{
		connections:    prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_proxy_connections", Help: "Open client connections, by listener."}, []string{"listener"}),
		refused:        prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_proxy_connections_refused_total", Help: "Connections refused, by the limit that was reached."}, []string{"limit"}),
		frameBytes:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_proxy_frame_bytes", Help: "Bytes of memory that frames and what is hydrated take, by direction."}, []string{"direction"}),
		frameWaits:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_proxy_frame_waits_total", Help: "Times a connection waited for that memory, by direction and by the listener it came to."}, []string{"direction", "listener"}),
		frameWaiting:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_proxy_frame_waiting", Help: "Connections that wait for that memory now, by direction."}, []string{"direction"}),
		requestBytes:   counter("sluice_proxy_received_bytes_total", "Bytes of requests received from clients."),
		clientBytes:    counter("sluice_proxy_sent_bytes_total", "Bytes of answers sent to clients."),
		forwarded:      counter("sluice_proxy_forwarded_total", "Requests forwarded to brokers."),
		protocolErrors: counter("sluice_proxy_protocol_errors_total", "Connections closed because the client broke the protocol or a frame limit."),
		timeouts:       counter("sluice_proxy_timeouts_total", "Connections closed because the client took too long."),
		stalled:        counter("sluice_proxy_stalled_connections_total", "Connections closed because they kept memory that others waited for."),
		brokerStalls:   counter("sluice_proxy_broker_stalls_total", "Connections closed because their broker took nothing of a request for too long."),
		acceptErrors:   counter("sluice_proxy_accept_errors_total", "Connections that the operating system could not hand over."),
		dialErrors:     counter("sluice_proxy_dial_errors_total", "Connections to brokers that did not come about."),
		crossedLate:    counter("sluice_proxy_crossed_late_total", "Produce requests that no longer waited, after 30 s, for an earlier one of their producer on the other listener."),
		crowded:        counter("sluice_proxy_crowded_batches_total", "Batches of diskless topics that went inline although they were stored, because the broker may take hours to get to them."),
		crossedReads:   counter("sluice_proxy_crossed_reads_total", "Produce requests that were not accepted before what their client had sent on the broker's other listener was read, because a topic has changed its class."),
		crossed:        counter("sluice_proxy_crossed_requests_total", "Produce requests that waited for earlier ones of their producer on the other listener, because a topic has changed its class."),
		dropped:        counter("sluice_proxy_requests_dropped_total", "Requests not forwarded because their client had gone."),
		suppressed:     counter("sluice_proxy_log_suppressed_total", "Warnings not logged because there were too many."),
		reserved:       counter("sluice_proxy_reserved_header_refused_total", "Produce requests refused because a record carried the header reserved for placeholders."),
		unmapped:       counter("sluice_proxy_unmapped_brokers_total", "Brokers left out of an answer because their id is outside listen.node_ids."),
		storageErrors:  counter("sluice_proxy_fetch_storage_errors_total", "Partitions of Fetch and ShareFetch answers whose placeholders could not be resolved."),
		withheld:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_proxy_share_withheld_partitions", Help: "Partitions from which share groups acquire nothing, because something there could not be read."}),
		late:           counter("sluice_proxy_fetch_late_partitions_total", "Partitions left out of Fetch answers that had something to give, because their objects were not read in time."),
		hydratedBytes:  counter("sluice_proxy_fetch_hydrated_bytes_total", "Bytes of partitions that were hydrated in Fetch answers."),
		auditDeletions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_proxy_audit_deletions_total", Help: "Topics of audit classes in requests to delete them, or records of them, by what became of it."}, []string{"outcome"}),
		compactedAfter: counter("sluice_proxy_compaction_refused_total", "Requests refused because they would have made a diskless topic compacted."),
	}
	byKind := func(into *[len(tiers.QuotaKinds)]prometheus.Counter, name, help string) {
		vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"kind"})
		reg.MustRegister(vec)
		for _, kind := range tiers.QuotaKinds {
			into[kind] = vec.WithLabelValues(kind.String())
		}
	}
	byKind(&m.charged, "sluice_proxy_quota_bytes_total", "Bytes of clients with a byte rate that count towards it here: what original batches are larger than the placeholders that brokers see.")
	byKind(&m.throttled, "sluice_proxy_quota_throttled_requests_total", "Requests after which a client was throttled for its byte rate.")
	byKind(&m.throttledFor, "sluice_proxy_quota_throttled_seconds_total", "Seconds for which clients were throttled, one after the other.")
	byKey := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_proxy_requests_total", Help: "Requests received, by API."}, []string{"api"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "sluice_proxy_request_seconds", Help: "Seconds from a request's arrival to its answer, by API.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 12),
	}, []string{"api"})
	for _, a := range apis() {
		if a.Treatment != Hide {
			m.requests[a.Key] = byKey.WithLabelValues(a.Name)
			m.seconds[a.Key] = seconds.WithLabelValues(a.Name)
		}
	}
	reg.MustRegister(m.connections, m.refused, m.withheld, m.frameBytes, m.frameWaits, m.frameWaiting, byKey, seconds, m.auditDeletions)
	return m
}

func (m *metrics) open(c *conn) prometheus.Gauge {
	return m.connections.WithLabelValues(c.listener())
}

func (m *metrics) request(api *API, n int) {
	m.requests[api.Key].Inc()
	m.requestBytes.Add(float64(n))
}

func (m *metrics) answered(r *request) {
	m.seconds[r.api.Key].Observe(time.Since(r.received).Seconds())
}
