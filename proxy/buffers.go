package proxy

import (
	"context"
	"math/bits"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
)

// Frames are pooled by size, in quarters of powers of two from minFrame up;
// larger ones than maxPooled are left to the collector, so that one huge frame
// is not kept for ever.
const (
	minFrameBits  = 9  // 512 B
	maxPooledBits = 22 // 4 MiB
)

// room is what a frame of n bytes takes of memory, and which pool has its
// buffers; the pool is -1 for a frame that is not pooled.
func room(n int) (size, pool int) {
	if n <= 1<<minFrameBits {
		return 1 << minFrameBits, 0
	}
	above := bits.Len(uint(n - 1)) // n is at most 1<<above
	step := 1 << (above - 3)
	size = (n + step - 1) &^ (step - 1)
	if size > 1<<maxPooledBits {
		return n, -1
	}
	return size, 4*(above-minFrameBits-1) + size>>(above-3) - 4
}

const (
	// smallFrame is what has a reserve of its own: whoever moves bulk, and it
	// alone, waits for those who move bulk.
	smallFrame = 64 << 10
	// reserveShare is one in so many bytes of a budget, for small frames.
	reserveShare = 8
	// strangerFrame is the largest that a connection may announce before the
	// broker talks to it: logins and first requests are small. Before a larger
	// one is read, the broker is asked.
	strangerFrame = 1 << 20
	// strangerShare is one in so many bytes of a budget, for the frames of such
	// connections: they hold up nobody but each other.
	strangerShare = 16
	// hydratedShare of the memory for answers, one in so many bytes, is for what
	// comes in the place of placeholders and for answers that are encoded anew.
	hydratedShare = 4
	// decodedShare of the memory for requests, one byte in so many, is for what
	// they take beside their frames, from when they are read until they are answered:
	// where they are decoded, or are about many partitions.
	decodedShare = 8
	// requestFactor is what a request may take when it is decoded, in times of its
	// frame: a string of no bytes takes one byte in it and 16 here, and as much again
	// where it is noted.
	requestFactor = 32
	// frameShare of a memory is the most that one frame may take.
	frameShare = 2
	// decodedFactor is what an answer takes when it is decoded and encoded anew,
	// in times of its frame.
	decodedFactor = 4
)

// frame is one whole Kafka frame, its size prefix included, in a pooled buffer
// that is accounted against a budget until release.
type frame struct {
	b      []byte
	budget *budget
	from   *semaphore.Weighted // part of the budget that it is accounted against
	size   int                 // what is accounted
	pool   *sync.Pool          // nil for a buffer that is not pooled
	whole  *[]byte
}

// release gives the bytes back; they must not be used afterwards. It does
// nothing for an empty frame, which a released one is.
func (f *frame) release() {
	if f.b == nil {
		return
	}
	f.b = nil
	if f.pool != nil {
		f.pool.Put(f.whole)
	}
	f.whole = nil
	f.budget.used.Sub(float64(f.size))
	f.from.Release(int64(f.size))
}

// maxVacant is for how many partitions a connection keeps room, between requests.
const maxVacant = 256

// vacant is s without what aliases a frame that is given back, to be filled again.
// Room for more than usual is left to the collector: nobody counts what connections
// keep.
func vacant[T any](s []T) []T {
	if cap(s) > maxVacant {
		return nil
	}
	clear(s)
	return s[:0]
}

// forget gives the budget back but leaves the bytes to the collector: somebody
// may still be reading them.
func (f *frame) forget() {
	f.pool = nil
	f.release()
}

// budget bounds the bytes that frames of one direction hold in memory. Waiting
// for it is the back-pressure: a connection that waits does not read.
//
// It has three parts that do not wait for each other: what is for anybody, a
// reserve for small frames, and one for connections that the broker does not
// talk to yet.
type budget struct {
	anybody   *semaphore.Weighted
	reserve   *semaphore.Weighted
	strangers *semaphore.Weighted

	small   int // frames that may use the reserve
	unknown int // the largest frame of a stranger

	used    prometheus.Gauge
	held    *prometheus.CounterVec // times somebody had to wait, by listener
	waiting prometheus.Gauge
	// relieve cuts those who keep the bytes from others; it is called every
	// relieveInterval while somebody waits.
	relieve func()
	pool    [4*(maxPooledBits-minFrameBits) + 1]sync.Pool
}

const relieveInterval = time.Second

// newBudget divides max. Without strangers their part is anybody's.
func newBudget(max int64, strangers bool, used prometheus.Gauge, held *prometheus.CounterVec, waiting prometheus.Gauge, relieve func()) *budget {
	b := &budget{relieve: relieve, used: used, held: held, waiting: waiting}
	reserve, unknown := max/reserveShare, int64(0)
	if strangers {
		unknown = max / strangerShare
	}
	b.small, b.unknown = int(min(smallFrame, reserve)), int(min(strangerFrame, unknown))
	b.reserve, b.strangers = semaphore.NewWeighted(reserve), semaphore.NewWeighted(unknown)
	b.anybody = semaphore.NewWeighted(max - reserve - unknown)
	return b
}

// take waits for n bytes of budget and makes f a frame of that length with
// undefined content. n is at most a frameShare of the budget.
func (b *budget) take(ctx context.Context, n int, f *frame, listener string) error {
	size, class := room(n)
	from := b.anybody
	if !from.TryAcquire(int64(size)) {
		if size <= b.small {
			from = b.reserve
		}
		if err := b.acquire(ctx, from, size, listener); err != nil {
			return err
		}
	}
	b.fill(f, n, size, class, from)
	return nil
}

// takeStranger is take for a connection that the broker does not talk to yet;
// n is at most unknown.
func (b *budget) takeStranger(ctx context.Context, n int, f *frame, listener string) error {
	size, class := room(n)
	if err := b.acquire(ctx, b.strangers, size, listener); err != nil {
		return err
	}
	b.fill(f, n, size, class, b.strangers)
	return nil
}

func (b *budget) fill(f *frame, n, size, class int, from *semaphore.Weighted) {
	b.used.Add(float64(size))
	if class < 0 {
		*f = frame{b: make([]byte, n), budget: b, from: from, size: size}
		return
	}
	pool := &b.pool[class]
	whole, _ := pool.Get().(*[]byte)
	if whole == nil {
		buf := make([]byte, size)
		whole = &buf
	}
	*f = frame{b: (*whole)[:n], budget: b, from: from, size: size, pool: pool, whole: whole}
}

// acquire takes n bytes of a part, and counts who has to wait for them.
func (b *budget) acquire(ctx context.Context, from *semaphore.Weighted, n int, listener string) error {
	if from.TryAcquire(int64(n)) {
		return nil
	}
	b.held.WithLabelValues(listener).Inc()
	b.waiting.Inc()
	defer b.waiting.Dec()
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
	return from.Acquire(ctx, int64(n))
}

// pot bounds bytes that are in no pooled frame.
type pot struct {
	*budget
	max int64
}

func newPot(max int64, used prometheus.Gauge, held *prometheus.CounterVec, waiting prometheus.Gauge, relieve func()) *pot {
	return &pot{
		max:    max,
		budget: &budget{anybody: semaphore.NewWeighted(max), used: used, held: held, waiting: waiting, relieve: relieve},
	}
}

// grab takes n bytes if they can be had at once.
func (p *pot) grab(n int) bool {
	if !p.anybody.TryAcquire(int64(n)) {
		return false
	}
	p.used.Add(float64(n))
	return true
}

// await takes n bytes, or all there are when that is less, and says how many.
func (p *pot) await(ctx context.Context, n int, listener string) (int, error) {
	n = int(min(int64(n), p.max))
	if err := p.acquire(ctx, p.anybody, n, listener); err != nil {
		return 0, err
	}
	p.used.Add(float64(n))
	return n, nil
}

func (p *pot) release(n int) {
	p.used.Sub(float64(n))
	p.anybody.Release(int64(n))
}
