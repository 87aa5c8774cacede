package proxy

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/sluice-kafka/sluice/tiers"
)

// Byte rates (producer_byte_rate, consumer_byte_rate) by original bytes.
//
// Brokers measure what they see, and of a diskless topic that is placeholders.
// The difference to the original bytes is measured here, with the brokers' own
// arithmetic and the quotas that Kafka has, for each broker by itself, as theirs
// is: so a client gets its rate from each broker through each replica, once for
// what it sees and once for what it does not. The throttle time is the longer
// of the two, and nobody waits for both (KIP-219: the answer goes at once, and
// the connection is not read until the time is over).

const (
	// quotaSamples and quotaWindow are Kafka's quota.window.num and
	// quota.window.size.seconds.
	quotaSamples = 11
	quotaWindow  = time.Second
	// maxThrottle is far beyond what any client waits for an answer.
	maxThrottle = 10 * time.Minute
	// maxRates bounds the rates that are measured. An idle one is forgotten
	// without loss; beyond that any other is.
	maxRates = 65536
)

// charge is bytes that count towards a client's quota; without a quota it
// counts for nothing.
type charge struct {
	bytes int
	quota tiers.ByteRate // none when PerSecond is 0
}

// charges finds the quota that bytes count towards.
func (c *conn) charges(kind tiers.QuotaKind, clientID string, bytes int) charge {
	if c.p.opt.Quotas == nil {
		return charge{}
	}
	client := tiers.QuotaClient{ID: clientID}
	client.User, client.Known = c.login.user(c.p.opt.OneIdentity)
	quota, _ := c.p.opt.Quotas.ByteRate(kind, client)
	return charge{bytes, quota}
}

// window is the most that can be recorded at once without exceeding the quota
// for certain: brokers return no more in one answer.
func (c charge) window() int {
	if c.quota.PerSecond == 0 {
		return math.MaxInt
	}
	return int(min(c.quota.PerSecond*(quotaSamples-1)*quotaWindow.Seconds(), math.MaxInt32))
}

// throttle measures the rates of all clients with a quota.
type throttle struct {
	mu    sync.Mutex
	rates map[rateKey]*meter
}

// rateKey is who shares a rate.
type rateKey struct {
	kind           tiers.QuotaKind
	node           int32
	user, clientID string
}

// record counts a charge, and returns for how many milliseconds its client is
// to be throttled.
func (t *throttle) record(c *conn, kind tiers.QuotaKind, by charge) int32 {
	if by.quota.PerSecond == 0 || by.bytes <= 0 {
		return 0
	}
	now := time.Now().UnixMilli()
	m := c.p.metrics
	m.charged[kind].Add(float64(by.bytes))
	t.mu.Lock()
	defer t.mu.Unlock()
	key := rateKey{kind, c.node, by.quota.User, by.quota.ClientID}
	r := t.rates[key]
	if r == nil {
		if len(t.rates) >= maxRates {
			t.sweep(now)
		}
		r = &meter{}
		t.rates[key] = r
	}
	r.record(float64(by.bytes), now)
	ms := r.throttleTime(by.quota.PerSecond, now)
	if ms > 0 {
		m.throttled[kind].Inc()
		m.throttledFor[kind].Add(float64(ms) / 1000)
	}
	return ms
}

// sweep forgets what is idle, or something if nothing is.
func (t *throttle) sweep(now int64) {
	for key, r := range t.rates {
		if r.idle(now) {
			delete(t.rates, key)
		}
	}
	for key := range t.rates {
		if len(t.rates) < maxRates {
			return
		}
		delete(t.rates, key)
	}
}

// meter is Kafka's Rate over a SampledStat: the sum of the samples that overlap
// the last eleven seconds, by the time since the oldest began, which counts as
// ten seconds at least. Times are unix milliseconds.
type meter struct {
	samples []sample // one more than are counted: the oldest overlaps the window
	current int
}

type sample struct {
	value       float64
	start, last int64
}

const expireAge = int64(quotaSamples * quotaWindow / time.Millisecond)

func (r *meter) record(value float64, now int64) {
	const window = int64(quotaWindow / time.Millisecond)
	switch {
	case len(r.samples) == 0:
		r.samples = append(make([]sample, 0, quotaSamples+1), sample{start: now})
	case now-r.samples[r.current].start >= window:
		r.current = (r.current + 1) % (quotaSamples + 1)
		if r.current == len(r.samples) {
			r.samples = append(r.samples, sample{})
		}
		r.samples[r.current] = sample{start: now}
	}
	s := &r.samples[r.current]
	s.value += value
	s.last = now
}

// measure is bytes a second, and the milliseconds over which that is.
func (r *meter) measure(now int64) (perSecond, window float64) {
	const each = int64(quotaWindow / time.Millisecond)
	sum, oldest := 0.0, now
	for i := range r.samples {
		s := &r.samples[i]
		if now-s.last >= expireAge {
			*s = sample{start: now, last: now}
		}
		sum += s.value
		oldest = min(oldest, s.start)
	}
	elapsed := now - oldest
	if full := elapsed / each; full < quotaSamples-1 {
		elapsed += (quotaSamples - 1 - full) * each
	}
	window = float64(max(elapsed, 1))
	return sum * 1000 / window, window
}

// throttleTime is how long the rate takes to fall to the quota if nothing is
// added: X so that rate × W / (W + X) is the quota.
func (r *meter) throttleTime(quota float64, now int64) int32 {
	perSecond, window := r.measure(now)
	if perSecond <= quota {
		return 0
	}
	ms := math.Round((perSecond - quota) / quota * window)
	return int32(min(ms, float64(maxThrottle/time.Millisecond)))
}

func (r *meter) idle(now int64) bool { return now-r.samples[r.current].last >= expireAge }

// mute keeps the client from being read for some milliseconds.
func (c *conn) mute(ms int32) {
	if ms <= 0 {
		return
	}
	until := time.Now().UnixMilli() + int64(ms)
	for {
		was := c.muted.Load()
		if until <= was || c.muted.CompareAndSwap(was, until) {
			return
		}
	}
}

// awaitUnmuted waits until the client may be read. That may be put off
// meanwhile: earlier requests are still being answered.
func (c *conn) awaitUnmuted() error {
	for {
		left := time.Until(time.UnixMilli(c.muted.Load()))
		if left <= 0 {
			return nil
		}
		select {
		case <-time.After(left):
		case <-c.p.stopped:
			return errShutdown
		case <-c.present.Done():
			return context.Cause(c.present)
		}
	}
}
