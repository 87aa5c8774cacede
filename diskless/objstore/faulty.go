package objstore

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Op is a kind of request, for Faulty and Recording.
type Op string

const (
	OpPut    Op = "put"
	OpGet    Op = "get"
	OpList   Op = "list"
	OpDelete Op = "delete"
)

// Fault is what happens to one request. The zero Fault lets it pass.
type Fault struct {
	Delay  time.Duration
	Err    error                    // the request does not reach the store
	Lost   bool                     // it does, and its answer gets lost: ErrUnavailable
	Change func(body []byte) []byte // of what a Get returns
}

// Faulty lets tests decide what goes wrong.
type Faulty struct {
	Store

	mu     sync.Mutex
	decide func(op Op, key string) Fault
}

// NewFaulty wraps a store that works until Decide says otherwise.
func NewFaulty(s Store) *Faulty { return &Faulty{Store: s} }

// Decide makes fn decide over every request from now on; nil lets all pass.
func (f *Faulty) Decide(fn func(op Op, key string) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.decide = fn
}

// Down makes every request fail, or work again.
func (f *Faulty) Down(down bool) {
	if !down {
		f.Decide(nil)
		return
	}
	f.Decide(func(Op, string) Fault { return Fault{Err: ErrUnavailable} })
}

func (f *Faulty) do(ctx context.Context, op Op, key string, fn func() error) (Fault, error) {
	f.mu.Lock()
	var fault Fault
	if f.decide != nil {
		fault = f.decide(op, key)
	}
	f.mu.Unlock()
	if fault.Delay > 0 {
		select {
		case <-time.After(fault.Delay):
		case <-ctx.Done():
			return fault, fmt.Errorf("%s %s: %w", op, key, ctx.Err())
		}
	}
	if fault.Err != nil {
		return fault, fmt.Errorf("%s %s: %w", op, key, fault.Err)
	}
	err := fn()
	if err == nil && fault.Lost {
		err = fmt.Errorf("%s %s: the answer got lost: %w", op, key, ErrUnavailable)
	}
	return fault, err
}

// Put implements Store.
func (f *Faulty) Put(ctx context.Context, key string, body []byte) error {
	_, err := f.do(ctx, OpPut, key, func() error { return f.Store.Put(ctx, key, body) })
	return err
}

// PutIfAbsent implements Store.
func (f *Faulty) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	_, err := f.do(ctx, OpPut, key, func() error { return f.Store.PutIfAbsent(ctx, key, body) })
	return err
}

// Get implements Store.
func (f *Faulty) Get(ctx context.Context, key string, offset, length int64) (body []byte, err error) {
	fault, err := f.do(ctx, OpGet, key, func() error {
		var err error
		body, err = f.Store.Get(ctx, key, offset, length)
		return err
	})
	if err == nil && fault.Change != nil {
		body = fault.Change(body)
	}
	return body, err
}

// List implements Store.
func (f *Faulty) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	_, err := f.do(ctx, OpList, prefix, func() error { return f.Store.List(ctx, prefix, startAfter, fn) })
	return err
}

// Delete implements Store.
func (f *Faulty) Delete(ctx context.Context, key string) error {
	_, err := f.do(ctx, OpDelete, key, func() error { return f.Store.Delete(ctx, key) })
	return err
}
