package objstore

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Meters are the metrics of all stores of a process.
type Meters struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	inFlight *prometheus.GaugeVec
}

// NewMeters registers them.
func NewMeters(reg prometheus.Registerer) *Meters {
	m := &Meters{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_objstore_requests_total", Help: "Requests to object stores, retries counted, by outcome."}, []string{"store", "op", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "sluice_objstore_request_seconds", Help: "Seconds that a request to an object store took.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}, []string{"store", "op"}),
		bytes:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_objstore_bytes_total", Help: "Bytes put to and got from object stores."}, []string{"store", "op"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_objstore_in_flight", Help: "Requests to object stores that are under way (limits.put_concurrency, limits.get_concurrency)."}, []string{"store", "op"}),
	}
	reg.MustRegister(m.requests, m.seconds, m.bytes, m.inFlight)
	return m
}

// Metered counts and times every request. It stands innermost, so that it sees
// retries too.
type Metered struct {
	Store
	name   string
	meters *Meters
}

// NewMetered wraps a store; name is its label.
func NewMetered(s Store, name string, m *Meters) *Metered {
	return &Metered{Store: s, name: name, meters: m}
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrNotFound):
		return "not_found"
	case errors.Is(err, ErrExists):
		return "exists"
	case errors.Is(err, ErrAccess):
		return "access"
	case errors.Is(err, ErrFull):
		return "full"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return "unavailable"
	}
	return "other"
}

func (m *Metered) do(op string, fn func() (int, error)) error {
	gauge := m.meters.inFlight.WithLabelValues(m.name, op)
	gauge.Inc()
	defer gauge.Dec()
	start := time.Now()
	n, err := fn()
	m.meters.seconds.WithLabelValues(m.name, op).Observe(time.Since(start).Seconds())
	m.meters.requests.WithLabelValues(m.name, op, outcome(err)).Inc()
	if err == nil {
		m.meters.bytes.WithLabelValues(m.name, op).Add(float64(n))
	}
	return err
}

// Put implements Store.
func (m *Metered) Put(ctx context.Context, key string, body []byte) error {
	return m.do("put", func() (int, error) { return len(body), m.Store.Put(ctx, key, body) })
}

// PutIfAbsent implements Store.
func (m *Metered) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	return m.do("put", func() (int, error) { return len(body), m.Store.PutIfAbsent(ctx, key, body) })
}

// Get implements Store.
func (m *Metered) Get(ctx context.Context, key string, offset, length int64) (body []byte, err error) {
	err = m.do("get", func() (int, error) {
		body, err = m.Store.Get(ctx, key, offset, length)
		return len(body), err
	})
	return body, err
}

// List implements Store.
func (m *Metered) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	return m.do("list", func() (int, error) { return 0, m.Store.List(ctx, prefix, startAfter, fn) })
}

// Delete implements Store.
func (m *Metered) Delete(ctx context.Context, key string) error {
	return m.do("delete", func() (int, error) { return 0, m.Store.Delete(ctx, key) })
}
