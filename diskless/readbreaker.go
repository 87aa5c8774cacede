package diskless

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// tripAfter so many reads in a row to which a store gave no answer, it counts as
// unreadable.
const tripAfter = 3

// readBreaker keeps a store that gives no answer from holding up its readers:
// they are told at once, and now and then what one of them wanted is tried
// behind its back. An answer, whichever, mends it.
type readBreaker struct {
	mu       sync.Mutex
	failures int // in a row
	lastErr  error
	probing  bool
	answered time.Time // the last time that the store gave an answer
	next     time.Time // not before may it be tried again
}

// allow returns nil when a read may go to the store, or why not; probe says
// that it is time to try all the same, without anybody waiting.
func (b *readBreaker) allow(now time.Time) (probe bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < tripAfter {
		return false, nil
	}
	if !b.probing && !now.Before(b.next) {
		b.probing, probe = true, true
	}
	return probe, b.lastErr
}

// vouched is how long an answer of the store speaks for it. It is asked again
// after half of that, so that a store which is well is vouched for all the time.
const vouched = 10 * time.Second

// vouch is allow for whoever pays for a read that fails: the store's last read
// was answered, and lately. Nobody may have read for long, so it may be time to
// try even when nothing is amiss.
func (b *readBreaker) vouch(now time.Time) (probe, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	age := now.Sub(b.answered)
	ok = b.failures == 0 && age < vouched
	if (!ok || age >= vouched/2) && !b.probing && !now.Before(b.next) {
		b.probing, probe = true, true
	}
	return probe, ok
}

// note what a read has come to; it reports whether the store's state turned.
func (b *readBreaker) note(err error, pause time.Duration) (turned, readable bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing, b.next = false, time.Now().Add(pause)
	before := b.failures < tripAfter
	if errors.Is(err, context.Canceled) || errors.Is(err, objstore.ErrBusy) {
		return false, before // this replica ends, or is busy; the store has said nothing
	}
	if errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		b.failures++
		b.lastErr = err
	} else {
		b.failures, b.answered = 0, time.Now()
	}
	readable = b.failures < tripAfter
	return before != readable, readable
}

// state is for /readyz: nil while the store can be read.
func (b *readBreaker) state() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < tripAfter {
		return nil
	}
	return b.lastErr
}
