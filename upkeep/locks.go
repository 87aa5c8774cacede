package upkeep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// StoreLock is how a store shall lock what belongs to audit classes.
type StoreLock struct {
	Mode      objstore.LockMode
	Retention time.Duration
	Locker    objstore.Locker // nil: this kind of store has no locks
}

// storeLock is the zero StoreLock for a store that locks nothing.
func storeLock(st config.Store, store objstore.Store) (l StoreLock) {
	if st.Locks() {
		l.Mode, l.Retention = objstore.LockMode(st.Lock), st.LockRetention
		l.Locker, _ = store.(objstore.Locker)
	}
	return l
}

// FsckLocks is how a store's audit objects are locked. The JSON names are stable.
type FsckLocks struct {
	Store        string     `json:"store"`
	Where        string     `json:"where"`
	Mode         string     `json:"mode"` // as the configuration has it, here and below
	Retention    string     `json:"retention"`
	Objects      int64      `json:"objects"`                 // below audit/
	Asked        int64      `json:"asked"`                   // of them: those in the sample, younger than the retention
	Locked       int64      `json:"locked"`                  // as long as they have to be, or longer
	Ended        int64      `json:"ended"`                   // older than the retention: they need no lock any more
	Stricter     int64      `json:"stricter"`                // among the locked, those in compliance mode where governance is asked for
	Unlocked     int64      `json:"unlocked"`                // or not for as long, or in a weaker mode
	Fixed        int64      `json:"fixed"`                   // with --repair: of the unlocked, those that are locked now
	NoLocks      bool       `json:"no_locks"`                // the bucket has no object lock: none can be locked
	UnlockedList []Unlocked `json:"unlocked_list,omitempty"` // the first 1000 or so
	Unanswered   string     `json:"unanswered,omitempty"`    // why not all could be asked
}

// Left counts what is not locked as it has to be.
func (l FsckLocks) Left() int64 { return l.Unlocked - l.Fixed }

// Unlocked is an audit object that is not locked as the configuration asks. The
// JSON names are stable.
type Unlocked struct {
	Key     string      `json:"key"`
	Problem LockProblem `json:"problem"`
	Mode    string      `json:"mode,omitempty"`  // of the lock that it has
	Until   time.Time   `json:"until,omitzero"`  // of that lock
	Needs   time.Time   `json:"needs"`           // until when it has to be locked: its being written, and the retention
	Fixed   bool        `json:"fixed,omitempty"` // with --repair: it is locked now
	Why     string      `json:"why,omitempty"`   // with --repair: it cannot be
}

// LockProblem is what is wrong with a lock. The values are stable.
type LockProblem string

// What may be wrong with an object's lock.
const (
	NoLock    LockProblem = "none"  // there is none
	ShortLock LockProblem = "short" // it ends before its time
	WeakLock  LockProblem = "weak"  // it is governance mode, and has to be compliance
)

const (
	// locksAtATime are asked of a store.
	locksAtATime = 8
	// lockSlack is how much earlier a lock may end: the replica that wrote an object
	// has reckoned by its own clock, before the PUT.
	lockSlack = 10 * time.Minute
)

// lookAtLocks asks stores whether audit objects are locked; and locks them, unless
// fix is nil.
func (a *Access) lookAtLocks(ctx context.Context, sample float64, fix *RepairOptions) (all []FsckLocks, err error) {
	for _, name := range a.storeNames() {
		l := a.Locks[name]
		if l.Mode == "" {
			continue
		}
		store := a.Stores[name].Store
		one := FsckLocks{Store: name, Where: store.String(), Mode: string(l.Mode), Retention: l.Retention.String()}
		if err := l.lookAt(ctx, store, &one, sample, fix); err != nil {
			one.Unanswered = err.Error()
		}
		all = append(all, one)
	}
	return all, ctx.Err()
}

func (l StoreLock) lookAt(ctx context.Context, store objstore.Store, out *FsckLocks, sample float64, fix *RepairOptions) error {
	can := objstore.ErrNoLock
	if l.Locker != nil {
		can = l.Locker.CanLock(ctx)
	}
	if out.NoLocks = errors.Is(can, objstore.ErrNoLock); !out.NoLocks && can != nil && !errors.Is(can, objstore.ErrAccess) {
		return can // who may not ask that of the bucket may yet ask it of objects
	}
	now, gone := time.Now(), int64(0)
	var mu sync.Mutex // over what is told of objects
	asking, ctx := errgroup.WithContext(ctx)
	asking.SetLimit(locksAtATime)
	listErr := store.List(ctx, diskless.LockedPrefix, "", func(i objstore.Info) error {
		out.Objects++
		needs := writtenAt(i).Add(l.Retention)
		switch {
		case !sampledKey([]byte(i.Key), sample):
			return nil
		case needs.Before(now):
			out.Ended++
			return nil
		}
		out.Asked++
		asking.Go(func() error {
			u, err := l.ask(ctx, i.Key, needs, out.NoLocks, fix)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, objstore.ErrNotFound):
				gone++ // removed since it was listed
			case err != nil:
				return fmt.Errorf("%s: %w", i.Key, err)
			default:
				out.add(u)
			}
			return nil
		})
		return ctx.Err()
	})
	err := asking.Wait()
	if err == nil {
		err = listErr
	}
	out.Objects, out.Asked = out.Objects-gone, out.Asked-gone
	slices.SortFunc(out.UnlockedList, func(a, b Unlocked) int { return strings.Compare(a.Key, b.Key) })
	return err
}

func (l *FsckLocks) add(u Unlocked) {
	if u.Problem == "" {
		l.Locked++
		if u.Mode != l.Mode {
			l.Stricter++
		}
		return
	}
	l.Unlocked++
	if u.Fixed {
		l.Fixed++
	}
	if len(l.UnlockedList) < listedMost {
		l.UnlockedList = append(l.UnlockedList, u)
	}
}

// ask looks at one object; and locks it, unless fix is nil.
func (l StoreLock) ask(ctx context.Context, key string, needs time.Time, noLocks bool, fix *RepairOptions) (u Unlocked, err error) {
	u = Unlocked{Key: key, Problem: NoLock, Needs: needs.UTC()}
	if noLocks {
		if fix != nil {
			u.Why = objstore.ErrNoLock.Error()
		}
		return u, nil
	}
	var lock objstore.Lock
	_ = persist(ctx, func() (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, getTimeout)
		defer cancel()
		lock, err = l.Locker.LockOf(ctx, key, "")
		return !transient(err) || errors.Is(err, objstore.ErrAccess), err
	})
	switch {
	case errors.Is(err, objstore.ErrNoLock):
	case errors.Is(err, objstore.ErrAccess):
		return u, fmt.Errorf("%w; to see locks takes s3:GetObjectRetention", err)
	case err != nil:
		return u, err
	}
	u.Problem, u.Mode, u.Until = l.problem(lock, needs), string(lock.Mode), lock.Until.UTC()
	if u.Problem != "" && fix != nil {
		l.fix(ctx, &u, fix.DryRun)
	}
	return u, ctx.Err()
}

// writtenAt is when an object was put; or begun, where its name tells that it was
// earlier, for the objects of a bucket that was copied have new times.
func writtenAt(i objstore.Info) time.Time {
	if id, _, ok := diskless.ParseObjectKey(i.Key); ok && id.Timestamp().Before(i.LastModified) {
		return id.Timestamp()
	}
	return i.LastModified
}

// problem is "" when a lock does what the configuration asks. A stricter mode does.
func (l StoreLock) problem(is objstore.Lock, needs time.Time) LockProblem {
	switch {
	case is.Mode == "":
		return NoLock
	case is.Until.Before(needs.Add(-lockSlack)):
		return ShortLock
	case is.Mode != l.Mode && l.Mode == objstore.Compliance:
		return WeakLock
	}
	return ""
}

// fix locks an object for as long as it has to be. No lock is made shorter, and no
// mode is changed: that takes rights that sluice must not have.
func (l StoreLock) fix(ctx context.Context, u *Unlocked, dryRun bool) {
	if u.Problem == WeakLock || u.Problem == ShortLock && u.Mode != string(l.Mode) && l.Mode == objstore.Compliance {
		u.Why = fmt.Sprintf("its lock is %s, and another mode takes s3:BypassGovernanceRetention, which sluice must not have: set it with the store's own tools", u.Mode)
		return
	}
	if dryRun {
		return
	}
	lock := objstore.Lock{Mode: l.Mode, Until: u.Needs}
	if u.Mode != "" {
		lock.Mode = objstore.LockMode(u.Mode) // a stricter one stays
	}
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	err := l.Locker.SetLock(ctx, u.Key, "", lock)
	if errors.Is(err, objstore.ErrAccess) {
		err = fmt.Errorf("%w; to lock takes s3:PutObjectRetention", err)
	}
	if err == nil {
		if lock, err = l.Locker.LockOf(ctx, u.Key, ""); err == nil && l.problem(lock, u.Needs) != "" {
			err = errors.New("the store took the lock, and then tells of another")
		}
	}
	if u.Fixed = err == nil; err != nil {
		u.Why = err.Error()
	}
}

// unanswered is an error when a store could not be asked about all locks.
func unanswered(all []FsckLocks) error {
	for _, l := range all {
		if l.Unanswered != "" {
			return fmt.Errorf("store %s does not tell how audit objects are locked: %s", l.Store, l.Unanswered)
		}
	}
	return nil
}
