package objstore

import (
	"context"
	"time"
)

// Timed bounds the time of each request: one that hangs ends with
// context.DeadlineExceeded.
type Timed struct {
	Store
	each time.Duration
}

// NewTimed wraps a store.
func NewTimed(s Store, each time.Duration) *Timed { return &Timed{s, each} }

// Put implements Store.
func (t *Timed) Put(ctx context.Context, key string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, t.each)
	defer cancel()
	return t.Store.Put(ctx, key, body)
}

// PutIfAbsent implements Store.
func (t *Timed) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, t.each)
	defer cancel()
	return t.Store.PutIfAbsent(ctx, key, body)
}

// Get implements Store.
func (t *Timed) Get(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, t.each)
	defer cancel()
	return t.Store.Get(ctx, key, offset, length)
}

// List implements Store. The time of fn counts.
func (t *Timed) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	ctx, cancel := context.WithTimeout(ctx, t.each)
	defer cancel()
	return t.Store.List(ctx, prefix, startAfter, fn)
}

// Delete implements Store.
func (t *Timed) Delete(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, t.each)
	defer cancel()
	return t.Store.Delete(ctx, key)
}
