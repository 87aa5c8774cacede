package diskless

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	inlineBytes    *prometheus.CounterVec // class, reason
	inlineBatches  *prometheus.CounterVec // class, reason
	storedBytes    *prometheus.CounterVec // class
	storedBatches  *prometheus.CounterVec // class
	placeholders   *prometheus.CounterVec // class; bytes
	objects        *prometheus.CounterVec // store
	objectBytes    *prometheus.CounterVec // store
	seals          *prometheus.CounterVec // reason
	sealWaits      prometheus.Counter
	putSeconds     *prometheus.HistogramVec // class
	ackSeconds     prometheus.Histogram
	rejected       *prometheus.CounterVec // class
	reusedBatches  prometheus.Counter
	reusedBytes    prometheus.Counter
	orphans        prometheus.Counter
	buffered       prometheus.Gauge
	parked         prometheus.Gauge
	budgetLeft     prometheus.GaugeFunc
	healthy        *prometheus.GaugeVec   // store
	readable       *prometheus.GaugeVec   // store
	getsRefused    *prometheus.CounterVec // store
	cacheHits      *prometheus.CounterVec
	cacheMisses    prometheus.Counter
	cacheEvictions *prometheus.CounterVec
	cacheBytes     *prometheus.GaugeVec
	gets           prometheus.Counter
	lookups        prometheus.Counter
	fallbacks      *prometheus.CounterVec // reason
	unverified     *prometheus.CounterVec // reason
	unreadable     *prometheus.CounterVec // reason
	hydrated       prometheus.Counter
}

var bucketsOfSeconds = prometheus.ExponentialBuckets(0.002, 2, 13)

func newMetrics(reg prometheus.Registerer, budget *inlineBudget) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		reg.MustRegister(g)
		return g
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		reg.MustRegister(g)
		return g
	}
	seconds := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: bucketsOfSeconds})
		reg.MustRegister(h)
		return h
	}
	// Buckets that double cannot tell by how much a goal is missed; the native
	// ones are a twentieth wide.
	putSeconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "sluice_diskless_put_seconds", Help: "Seconds from sealing an object to its being durable.", Buckets: bucketsOfSeconds,
		NativeHistogramBucketFactor: 1.05, NativeHistogramMaxBucketNumber: 256,
	}, []string{"class"})
	reg.MustRegister(putSeconds)
	m := &metrics{
		inlineBytes:    counters("sluice_diskless_inline_bytes_total", "Bytes of diskless topics' batches that were written inline.", "class", "reason"),
		inlineBatches:  counters("sluice_diskless_inline_batches_total", "Batches of diskless topics that were written inline.", "class", "reason"),
		storedBytes:    counters("sluice_diskless_stored_bytes_total", "Bytes of batches whose payload went to an object.", "class"),
		storedBatches:  counters("sluice_diskless_stored_batches_total", "Batches whose payload went to an object.", "class"),
		placeholders:   counters("sluice_diskless_placeholder_bytes_total", "Bytes of the placeholders that went to Kafka instead.", "class"),
		objects:        counters("sluice_diskless_objects_written_total", "Objects written.", "store"),
		objectBytes:    counters("sluice_diskless_object_bytes_total", "Bytes of objects written.", "store"),
		seals:          counters("sluice_diskless_seals_total", "Objects sealed, by what sealed them.", "reason"),
		sealWaits:      counter("sluice_diskless_seal_waits_total", "Times an object whose producers all waited for it could not be sealed early for want of budget (limits.puts_per_second)."),
		putSeconds:     putSeconds,
		ackSeconds:     seconds("sluice_diskless_offload_seconds", "Seconds from a batch's arrival to its object being durable."),
		rejected:       counters("sluice_diskless_rejected_batches_total", "Batches refused because their store was down and the inline budget did not cover them (classes.*.on_outage).", "class"),
		reusedBatches:  counter("sluice_diskless_reused_batches_total", "Batches that a producer sent again and that were already stored."),
		reusedBytes:    counter("sluice_diskless_reused_bytes_total", "Their bytes, which were not uploaded again."),
		orphans:        counter("sluice_diskless_orphan_objects_total", "Objects that became durable after all their batches had gone inline."),
		buffered:       gauge("sluice_diskless_buffered_bytes", "Bytes of batches that wait for their object to be durable."),
		parked:         gauge("sluice_diskless_parked_batches", "Batches that wait for buffer space (limits.write_buffer_bytes)."),
		healthy:        gauges("sluice_diskless_store_healthy", "1 while the store takes objects, 0 while batches go inline.", "store"),
		readable:       gauges("sluice_diskless_store_readable", "1 while the store answers reads, 0 while readers are refused at once and one a second tries.", "store"),
		getsRefused:    counters("sluice_diskless_refused_gets_total", "Chunks that were not asked for because their store gives no answer.", "store"),
		cacheHits:      counters("sluice_diskless_cache_hits_total", "Chunks found in memory.", "segment"),
		cacheMisses:    counter("sluice_diskless_cache_misses_total", "Chunks not found in memory."),
		cacheEvictions: counters("sluice_diskless_cache_evictions_total", "Chunks, and what leads to them, evicted to stay within limits.cache_bytes.", "segment"),
		cacheBytes:     gauges("sluice_diskless_cache_bytes", "Bytes of chunks, and of what leads to them, in memory.", "segment"),
		gets:           counter("sluice_diskless_chunk_gets_total", "Chunks read from an object store."),
		lookups:        counter("sluice_diskless_segment_lookups_total", "Listings, manifests and footers read to find batches in segments."),
		fallbacks:      counters("sluice_diskless_segment_fallbacks_total", "Batches that could not be read from their segment, and were looked for elsewhere.", "reason"),
		unverified:     counters("sluice_diskless_unverified_references_total", "Placeholders that did not verify and were not passed on.", "reason"),
		unreadable:     counters("sluice_diskless_unreadable_references_total", "Placeholders that verified but whose bytes could not be had.", "reason"),
		hydrated:       counter("sluice_diskless_hydrated_bytes_total", "Bytes of original batches returned in the place of placeholders."),
	}
	m.budgetLeft = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sluice_diskless_inline_budget_bytes", Help: "Bytes that may still go inline before producers have to wait (limits.inline_bytes_total).",
	}, func() float64 { return float64(budget.remaining()) })
	reg.MustRegister(m.budgetLeft)
	return m
}
