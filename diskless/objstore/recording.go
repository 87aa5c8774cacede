package objstore

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// Recording writes down every request and its outcome, for tests that show the
// real I/O as text.
type Recording struct {
	Store

	mu    sync.Mutex
	lines []string
}

// NewRecording wraps a store.
func NewRecording(s Store) *Recording { return &Recording{Store: s} }

// Transcript returns what was recorded, a line a request.
func (r *Recording) Transcript() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "\n") + "\n"
}

// Count returns how many requests of a kind were made.
func (r *Recording) Count(op Op) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, l := range r.lines {
		if strings.HasPrefix(l, string(op)+" ") {
			n++
		}
	}
	return n
}

func (r *Recording) note(err error, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprintf(format, args...)+": "+outcome(err))
}

// Put implements Store.
func (r *Recording) Put(ctx context.Context, key string, body []byte) error {
	err := r.Store.Put(ctx, key, body)
	r.note(err, "put %s %d bytes", key, len(body))
	return err
}

// PutIfAbsent implements Store.
func (r *Recording) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	err := r.Store.PutIfAbsent(ctx, key, body)
	r.note(err, "put %s %d bytes if absent", key, len(body))
	return err
}

// Get implements Store.
func (r *Recording) Get(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	body, err := r.Store.Get(ctx, key, offset, length)
	r.note(err, "get %s [%d, +%d) %d bytes", key, offset, length, len(body))
	return body, err
}

// List implements Store.
func (r *Recording) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	n := 0
	err := r.Store.List(ctx, prefix, startAfter, func(i Info) error { n++; return fn(i) })
	r.note(err, "list %s after %q %d objects", prefix, startAfter, n)
	return err
}

// Delete implements Store.
func (r *Recording) Delete(ctx context.Context, key string) error {
	err := r.Store.Delete(ctx, key)
	r.note(err, "delete %s", key)
	return err
}
