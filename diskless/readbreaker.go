package diskless

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// tripAfter so many reads in a row to which a store gave no answer, it counts as
// unreadable. When they were not of as many objects, it is asked for the marker
// first: an object that hangs for ever is not the store's being away.
const tripAfter = 3

// readBreaker keeps a store that gives no answer from holding up its readers:
// they are told at once, and now and then the marker is read behind their back.
// An answer, whichever, mends it.
type readBreaker struct {
	mu       sync.Mutex
	failures int                 // in a row
	objects  map[string]struct{} // which they were of, up to tripAfter
	tripped  bool
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
	if !b.tripped {
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

// noted is what follows from a read.
type noted struct {
	turned, readable bool // whether the store's state turned, and what it is
	probe            bool // whether it is that object or the store is not known: try the marker
}

// note what the read of an object has come to.
func (b *readBreaker) note(object string, err error, pause time.Duration) noted {
	b.mu.Lock()
	defer b.mu.Unlock()
	isProbe := object == keyring.MarkerKey
	if isProbe {
		b.probing = false
	}
	b.next = time.Now().Add(pause)
	before := b.tripped
	if errors.Is(err, context.Canceled) || errors.Is(err, objstore.ErrBusy) {
		return noted{readable: !before} // this replica ends, or is busy; the store has said nothing
	}
	probe := false
	if errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		b.failures++
		b.lastErr = err
		if b.objects == nil {
			b.objects = make(map[string]struct{}, tripAfter)
		}
		if len(b.objects) < tripAfter {
			b.objects[object] = struct{}{}
		}
		switch {
		case b.tripped || b.failures < tripAfter:
		case isProbe || len(b.objects) >= tripAfter:
			b.tripped = true
		case !b.probing:
			b.probing, probe = true, true
		}
	} else {
		b.failures, b.objects, b.tripped, b.answered = 0, nil, false, time.Now()
	}
	return noted{before != b.tripped, !b.tripped, probe}
}

// state is for /readyz: nil while the store can be read.
func (b *readBreaker) state() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.tripped {
		return nil
	}
	return b.lastErr
}
