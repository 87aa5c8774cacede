package objstore

import (
	"context"
	"errors"
	"time"
)

// LockMode is one of S3's object lock modes.
type LockMode string

const (
	// Governance can be lifted by who has the right to bypass it.
	Governance LockMode = "governance"
	// Compliance can be lifted by nobody before its time, not even by the account's
	// owner.
	Compliance LockMode = "compliance"
)

// Lock keeps one version of an object from being altered or deleted. The zero
// Lock is none.
type Lock struct {
	Mode  LockMode
	Until time.Time // by the store's clock
}

// LockRule has a store lock whatever it puts below a prefix.
type LockRule struct {
	Prefix    string
	Mode      LockMode
	Retention time.Duration // from the put on
}

// ErrNoLock: the store or the bucket has no object lock. It is switched on when
// a bucket is made.
var ErrNoLock = errors.New("there is no object lock; use a bucket that was made with it")

// Version is one version of an object: with object lock a bucket keeps them
// all, and a delete without a version only puts a marker on top.
type Version struct {
	Info
	ID     string
	Marker bool // no bytes: it hides what is below it
}

// Locker is a store that can lock objects and tell their versions.
type Locker interface {
	Store
	// CanLock returns nil when objects can be locked, ErrNoLock when they cannot.
	CanLock(ctx context.Context) error
	// Versions calls fn with every version of the objects of a prefix, in lexical
	// order of keys, the oldest version of a key first and the one that counts now
	// last; where older markers stand among versions is the server's affair. fn's
	// error ends it.
	Versions(ctx context.Context, prefix string, fn func(Version) error) error
	// LockOf returns the lock of a version; "" is the one that counts now. ErrAccess
	// is also that locks may not be seen.
	LockOf(ctx context.Context, key, version string) (Lock, error)
	// SetLock locks a version, or makes its lock last longer; "" is the one that
	// counts now. What would weaken a lock is ErrAccess; at some servers so is any
	// other mode.
	SetLock(ctx context.Context, key, version string, l Lock) error
	// GetVersion reads a version whole.
	GetVersion(ctx context.Context, key, version string) ([]byte, error)
}
