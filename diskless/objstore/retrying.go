package objstore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Retrying tries again what was unavailable, a few times, with growing pauses.
// It retries nothing else: an answer is an answer.
type Retrying struct {
	Store
	Attempts int           // in all, at least 1
	MinPause time.Duration // doubled each time, half of it at random
	MaxPause time.Duration
}

// NewRetrying wraps a store with sensible pauses.
func NewRetrying(s Store, attempts int) *Retrying {
	return &Retrying{Store: s, Attempts: attempts, MinPause: 50 * time.Millisecond, MaxPause: time.Second}
}

func (r *Retrying) do(ctx context.Context, fn func() error) error {
	pause := r.MinPause
	for attempt := 1; ; attempt++ {
		err := fn()
		if err == nil || !errors.Is(err, ErrUnavailable) || attempt >= r.Attempts || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		case <-ctx.Done():
			return err
		}
		pause = min(2*pause, r.MaxPause)
	}
}

// Put implements Store.
func (r *Retrying) Put(ctx context.Context, key string, body []byte) error {
	return r.do(ctx, func() error { return r.Store.Put(ctx, key, body) })
}

// PutIfAbsent implements Store. When an answer was lost, the next try may find
// the key taken by its own object: the same bytes are taken for that.
func (r *Retrying) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	uncertain := false
	return r.do(ctx, func() error {
		err := r.Store.PutIfAbsent(ctx, key, body)
		if uncertain && errors.Is(err, ErrExists) {
			there, getErr := r.Store.Get(ctx, key, 0, -1)
			if getErr != nil {
				return getErr
			}
			if bytes.Equal(there, body) {
				return nil
			}
		}
		uncertain = uncertain || errors.Is(err, ErrUnavailable)
		return err
	})
}

// Get implements Store.
func (r *Retrying) Get(ctx context.Context, key string, offset, length int64) (body []byte, err error) {
	err = r.do(ctx, func() error {
		body, err = r.Store.Get(ctx, key, offset, length)
		return err
	})
	return body, err
}

// Delete implements Store.
func (r *Retrying) Delete(ctx context.Context, key string) error {
	return r.do(ctx, func() error { return r.Store.Delete(ctx, key) })
}

// List is not retried: fn may have seen a part.
