// Package objstore is what the diskless tier asks of an object store, and the
// stores and wrappers that answer: Memory, File and S3; Retrying, Limited, Timed,
// Metered, Faulty and Recording. storetest holds the suite that all pass.
package objstore

import (
	"context"
	"errors"
	"hash/crc32"
	"time"
)

// Info describes one object. LastModified is by the store's own clock.
type Info struct {
	Key          string
	Size         int64
	LastModified time.Time
}

// Store is a flat space of immutable-by-convention objects. Keys are relative
// to the store's prefix, '/'-separated, without "." or ".." or empty parts.
// All methods are safe for concurrent use; bodies must not change while a call
// runs, and results belong to the caller.
type Store interface {
	// Put writes a whole object; it is durable when Put returns nil. After an
	// error the object may exist or not.
	Put(ctx context.Context, key string, body []byte) error
	// PutIfAbsent is Put unless the key exists: then ErrExists.
	PutIfAbsent(ctx context.Context, key string, body []byte) error
	// Get reads length bytes from offset, fewer when the object ends before;
	// length < 0 reads to the end. At or beyond the end it returns no bytes
	// and no error.
	Get(ctx context.Context, key string, offset, length int64) ([]byte, error)
	// List calls fn with every object whose key begins with prefix and is
	// greater than startAfter, in lexical order. fn's error ends it.
	List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error
	// Delete removes an object; one that does not exist is no error.
	Delete(ctx context.Context, key string) error
	// String names the store for people; it holds no secrets.
	String() string
}

// The kinds of errors, wrapped with the place; use errors.Is.
var (
	// ErrNotFound: there is no such object.
	ErrNotFound = errors.New("no such object")
	// ErrExists: a conditional Put found the key taken.
	ErrExists = errors.New("the object exists")
	// ErrAccess: the store refuses us. Check credentials, the bucket's policy,
	// and the clock.
	ErrAccess = errors.New("the store refuses access; check credentials, the bucket's policy and the clock")
	// ErrUnavailable: the store cannot answer now; trying again may help.
	ErrUnavailable = errors.New("the store is unavailable")
	// ErrFull: there is no space or quota left; make some.
	ErrFull = errors.New("the store is full")
	// ErrBusy: this replica has as many requests under way as it may; the store
	// was not asked. Raise limits.get_concurrency or limits.put_concurrency.
	ErrBusy = errors.New("too many requests are under way")
	// ErrKey: the key is not of the form that Store demands.
	ErrKey = errors.New("not an object key")
)

// maxKey is S3's limit on a key's length.
const maxKey = 1024

// checkKey enforces the form of keys, so that a file store cannot be led out
// of its folder and every store agrees on what a key is.
func checkKey(key string) error {
	if key == "" || len(key) > maxKey {
		return ErrKey
	}
	part := 0
	for i := 0; i <= len(key); i++ {
		if i < len(key) && key[i] != '/' {
			if key[i] < 0x20 || key[i] == 0x7f {
				return ErrKey
			}
			continue
		}
		switch key[part:i] {
		case "", ".", "..":
			return ErrKey
		}
		part = i + 1
	}
	return nil
}

type sumKey struct{}

// WithSum says what CRC-32C the body of a Put has, for who knows it without reading
// the body: S3 verifies that one, and refuses the body when it is of another.
func WithSum(ctx context.Context, crc32c uint32) context.Context {
	return context.WithValue(ctx, sumKey{}, crc32c)
}

func sumOf(ctx context.Context, body []byte) uint32 {
	if sum, ok := ctx.Value(sumKey{}).(uint32); ok {
		return sum
	}
	return crc32.Checksum(body, castagnoli)
}
