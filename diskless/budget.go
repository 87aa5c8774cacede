package diskless

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// inlineBudget bounds what an object-store outage may put on the brokers,
// which are sized for placeholders: bytes per second, and in total until every
// store that failed has taken objects in time for steadyFor. A store that merely
// answers probes, or flaps, does not make the total available anew.
type inlineBudget struct {
	perSecond *rate.Limiter
	total     int64

	mu     sync.Mutex
	left   int64
	failed map[string]struct{} // stores that have not proven themselves since
}

// minBurst lets any usual batch go at once, whatever the bytes per second.
const minBurst = 16 << 20

// newInlineBudget returns a budget; zero of either means that nothing goes.
func newInlineBudget(perSecond, total int64) *inlineBudget {
	if perSecond <= 0 {
		total = 0
	}
	burst := int(max(perSecond, minBurst))
	return &inlineBudget{
		perSecond: rate.NewLimiter(rate.Limit(perSecond), burst), total: total, left: total,
		failed: make(map[string]struct{}),
	}
}

// take reports whether n bytes may go inline now. A batch larger than the burst
// takes all of the burst: else it could never go.
func (b *inlineBudget) take(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < int64(n) || !b.perSecond.AllowN(time.Now(), min(n, b.perSecond.Burst())) {
		return false
	}
	b.left -= int64(n)
	return true
}

// fails notes that a store does not take objects.
func (b *inlineBudget) fails(store string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed[store] = struct{}{}
}

// works notes that a store has taken objects in time for a while.
func (b *inlineBudget) works(store string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.failed, store)
	if len(b.failed) == 0 {
		b.left = b.total
	}
}

// remaining bytes of the total.
func (b *inlineBudget) remaining() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.left
}
