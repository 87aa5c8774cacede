package objstore

import (
	"context"
	"fmt"
)

// Limited bounds the requests that are under way at a time; the others wait
// until their context ends.
type Limited struct {
	Store
	puts, gets chan struct{}
}

// NewLimited wraps a store. Deletes and lists count as gets.
func NewLimited(s Store, puts, gets int) *Limited {
	return &Limited{Store: s, puts: make(chan struct{}, puts), gets: make(chan struct{}, gets)}
}

func with(ctx context.Context, slots chan struct{}, fn func() error) error {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
		return fn()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
	}
}

// Put implements Store.
func (l *Limited) Put(ctx context.Context, key string, body []byte) error {
	return with(ctx, l.puts, func() error { return l.Store.Put(ctx, key, body) })
}

// PutIfAbsent implements Store.
func (l *Limited) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	return with(ctx, l.puts, func() error { return l.Store.PutIfAbsent(ctx, key, body) })
}

// Get implements Store.
func (l *Limited) Get(ctx context.Context, key string, offset, length int64) (body []byte, err error) {
	err = with(ctx, l.gets, func() error {
		body, err = l.Store.Get(ctx, key, offset, length)
		return err
	})
	return body, err
}

// List implements Store.
func (l *Limited) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	return with(ctx, l.gets, func() error { return l.Store.List(ctx, prefix, startAfter, fn) })
}

// Delete implements Store.
func (l *Limited) Delete(ctx context.Context, key string) error {
	return with(ctx, l.gets, func() error { return l.Store.Delete(ctx, key) })
}
