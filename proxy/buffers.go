package proxy

import (
	"context"
	"math/bits"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
)

// Frames are pooled by powers of two from minFrame up; larger ones than
// maxPooled are left to the collector, so that one huge frame is not kept for
// ever.
const (
	minFrameBits  = 9  // 512 B
	maxPooledBits = 22 // 4 MiB
)

// frame is one whole Kafka frame, its size prefix included, in a pooled buffer
// that is accounted against a budget until release.
type frame struct {
	b      []byte
	budget *budget
	pool   *sync.Pool // nil for a buffer that is not pooled
	whole  *[]byte
}

// release gives the bytes back; they must not be used afterwards. It does
// nothing for an empty frame, which a released one is.
func (f *frame) release() {
	if f.b == nil {
		return
	}
	n := len(f.b)
	f.b = nil
	if f.pool != nil {
		f.pool.Put(f.whole)
	}
	f.whole = nil
	f.budget.release(n)
}

// forget gives the budget back but leaves the bytes to the collector: somebody
// may still be reading them.
func (f *frame) forget() {
	f.pool = nil
	f.release()
}

// budget bounds the bytes that frames of one direction hold in memory. Waiting
// for it is the back-pressure: a connection that waits does not read.
type budget struct {
	sem  *semaphore.Weighted
	used prometheus.Gauge
	held prometheus.Counter // times somebody had to wait
	// relieve cuts those who keep the bytes from others; it is called every
	// relieveInterval while somebody waits.
	relieve func()
	pool    [maxPooledBits + 1]sync.Pool
}

const relieveInterval = time.Second

func newBudget(max int64, used prometheus.Gauge, held prometheus.Counter, relieve func()) *budget {
	return &budget{relieve: relieve, sem: semaphore.NewWeighted(max), used: used, held: held}
}

// take waits for n bytes of budget and makes f a frame of that length with
// undefined content. n is at most the budget.
func (b *budget) take(ctx context.Context, n int, f *frame) error {
	if !b.sem.TryAcquire(int64(n)) {
		b.held.Inc()
		if err := b.wait(ctx, n); err != nil {
			return err
		}
	}
	b.used.Add(float64(n))
	class := max(minFrameBits, bits.Len(uint(n-1)))
	if class > maxPooledBits {
		*f = frame{b: make([]byte, n), budget: b}
		return nil
	}
	pool := &b.pool[class]
	whole, _ := pool.Get().(*[]byte)
	if whole == nil {
		buf := make([]byte, 1<<class)
		whole = &buf
	}
	*f = frame{b: (*whole)[:n], budget: b, pool: pool, whole: whole}
	return nil
}

func (b *budget) wait(ctx context.Context, n int) error {
	got := make(chan struct{})
	defer close(got)
	go func() {
		tick := time.NewTicker(relieveInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				b.relieve()
			case <-got:
				return
			}
		}
	}()
	return b.sem.Acquire(ctx, int64(n))
}

// grab takes n bytes if they can be had at once.
func (b *budget) grab(n int) bool {
	if !b.sem.TryAcquire(int64(n)) {
		return false
	}
	b.used.Add(float64(n))
	return true
}

func (b *budget) release(n int) {
	b.used.Sub(float64(n))
	b.sem.Release(int64(n))
}
