package diskless

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// inlineBudget bounds what an object-store outage may put on the brokers,
// which are sized for placeholders: bytes per second, and in total until every
// store is healthy again.
type inlineBudget struct {
	perSecond *rate.Limiter
	total     int64

	mu   sync.Mutex
	left int64
}

func newInlineBudget(perSecond, total int64) *inlineBudget {
	// A burst of one second, and never below the largest batch: a batch larger
	// than the burst could never go.
	burst := int(max(perSecond, 16<<20))
	return &inlineBudget{perSecond: rate.NewLimiter(rate.Limit(perSecond), burst), total: total, left: total}
}

// take reports whether n bytes may go inline now.
func (b *inlineBudget) take(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < int64(n) || !b.perSecond.AllowN(time.Now(), n) {
		return false
	}
	b.left -= int64(n)
	return true
}

// refill makes the total available again.
func (b *inlineBudget) refill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = b.total
}

// remaining bytes of the total.
func (b *inlineBudget) remaining() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.left
}
