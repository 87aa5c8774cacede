package upkeep

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// lockable is a store with locks that a test sets.
type lockable struct {
	objstore.Store
	can, may error // of CanLock; of LockOf

	mu        sync.Mutex
	locks     map[string]objstore.Lock
	now, most int // questions under way
	set       int
}

func (l *lockable) CanLock(context.Context) error { return l.can }
func (l *lockable) Versions(context.Context, string, func(objstore.Version) error) error {
	return errors.New("nobody asks")
}
func (l *lockable) GetVersion(context.Context, string, string) ([]byte, error) {
	return nil, errors.New("nobody asks")
}

func (l *lockable) LockOf(_ context.Context, key, _ string) (objstore.Lock, error) {
	l.mu.Lock()
	l.now++
	l.most = max(l.most, l.now)
	l.mu.Unlock()
	time.Sleep(time.Millisecond) // so that others come in
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now--
	return l.locks[key], l.may
}

func (l *lockable) SetLock(_ context.Context, key, _ string, to objstore.Lock) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set++
	if is := l.locks[key]; is.Mode != "" && (is.Mode != to.Mode || to.Until.Before(is.Until)) {
		return objstore.ErrAccess
	}
	l.locks[key] = to
	return nil
}

// Every audit object's lock is held against what the configuration asks, and a
// repair makes good what it may.
func TestFsckLooksAtLocks(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(1, "otel-a"))
	r.write(r.proxied, "otel-a", 0, 2)
	const retention = 24 * time.Hour
	now := time.Now()
	key := func(age time.Duration) string {
		return diskless.ObjectKey(ulid.MustNew(ulid.Timestamp(now.Add(-age)), ulid.DefaultEntropy()), true)
	}
	const chain = "audit/log/AAAAAAAAAAAAAAAAAAAAAA/0/000000000000"
	none, short, weak, enough, ended := key(time.Hour), key(2*time.Hour), key(3*time.Hour), key(4*time.Hour), key(48*time.Hour)
	opened := func(mode objstore.LockMode) (*Access, *lockable) {
		a, store := r.access()
		other := objstore.Governance
		if mode == objstore.Governance {
			other = objstore.Compliance
		}
		l := &lockable{Store: store, locks: map[string]objstore.Lock{
			short:  {Mode: mode, Until: now.Add(time.Hour)},
			weak:   {Mode: other, Until: now.Add(retention)},
			enough: {Mode: mode, Until: now.Add(retention - 4*time.Hour - time.Minute)}, // the writer's clock was behind
			chain:  {Mode: mode, Until: now.Add(retention + time.Minute)},
		}}
		for _, k := range []string{none, short, weak, enough, ended, chain} {
			if err := store.Put(t.Context(), k, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		a.Locks = map[string]StoreLock{"default": {Mode: mode, Retention: retention, Locker: l}}
		return a, l
	}
	look := func(a *Access, opt FsckOptions, how *RepairOptions) (FsckLocks, *FsckReport, error) {
		t.Helper()
		var report *FsckReport
		var err error
		if how == nil {
			report, err = a.Fsck(t.Context(), opt)
		} else {
			report, err = a.Mend(t.Context(), opt, *how)
		}
		if report == nil || len(report.Locks) != 1 || len(report.Damage) > 0 {
			t.Fatalf("%v: %+v", err, report)
		}
		return report.Locks[0], report, err
	}
	problems := func(l FsckLocks) map[string]LockProblem {
		m := map[string]LockProblem{}
		for _, u := range l.UnlockedList {
			m[u.Key] = u.Problem
		}
		return m
	}
	want := func(l FsckLocks, unlocked map[string]LockProblem, locked, left int64) {
		t.Helper()
		if got := problems(l); fmt.Sprint(got) != fmt.Sprint(unlocked) || l.Objects != 6 || l.Ended != 1 || l.Asked != 5 || l.Locked != locked || l.Left() != left || l.Unlocked != int64(len(unlocked)) {
			t.Errorf("it says %+v", l)
		}
	}

	a, l := opened(objstore.Compliance)
	all := map[string]LockProblem{none: NoLock, short: ShortLock, weak: WeakLock}
	got, _, err := look(a, FsckOptions{}, nil)
	want(got, all, 2, 3)
	if err != nil || l.set > 0 || l.most > locksAtATime {
		t.Errorf("%v; %d locks were set, %d were asked for at a time", err, l.set, l.most)
	}
	if report, err := a.Fsck(t.Context(), FsckOptions{Patterns: compiled(t, "otel-*")}); err != nil || report.Locks != nil {
		t.Errorf("of one topic: %v, %+v", err, report.Locks)
	}
	got, _, err = look(a, FsckOptions{}, &RepairOptions{DryRun: true})
	want(got, all, 2, 3)
	if err != nil || l.set > 0 {
		t.Errorf("a dry run: %v, %d locks set", err, l.set)
	}
	got, _, err = look(a, FsckOptions{}, &RepairOptions{})
	want(got, all, 2, 1)
	if err != nil || l.locks[weak].Mode != objstore.Governance {
		t.Errorf("%v; %+v", err, l.locks)
	}
	for _, u := range got.UnlockedList {
		if u.Fixed == (u.Key == weak) || u.Fixed == (u.Why != "") {
			t.Errorf("a repair says %+v", u)
		}
	}
	got, _, _ = look(a, FsckOptions{}, nil)
	want(got, map[string]LockProblem{weak: WeakLock}, 4, 1)

	// A stricter mode is as good, and stays when its lock is made longer.
	a, l = opened(objstore.Governance)
	got, _, _ = look(a, FsckOptions{}, nil)
	want(got, map[string]LockProblem{none: NoLock, short: ShortLock}, 3, 2)
	if got.Stricter != 1 {
		t.Errorf("%+v", got)
	}
	l.locks[short] = objstore.Lock{Mode: objstore.Compliance, Until: now.Add(time.Hour)}
	got, _, _ = look(a, FsckOptions{}, &RepairOptions{})
	want(got, map[string]LockProblem{none: NoLock, short: ShortLock}, 3, 0)
	if is := l.locks[short]; is.Mode != objstore.Compliance || !is.Until.Equal(now.Add(-2*time.Hour).Truncate(time.Millisecond).Add(retention)) {
		t.Errorf("it became %+v", is)
	}

	// A store that cannot be asked is no store without locks, nor one that is well.
	a, l = opened(objstore.Compliance)
	l.may = objstore.ErrAccess
	if got, report, err := look(a, FsckOptions{}, nil); !errors.Is(err, ErrStopped) || got.Unanswered == "" || report.Stopped == "" || got.Unlocked > 0 {
		t.Errorf("%v: %+v", err, got)
	}
	if _, _, err := look(a, FsckOptions{}, &RepairOptions{}); !errors.Is(err, ErrStopped) || l.set > 0 {
		t.Errorf("a repair of it: %v, %d locks set", err, l.set)
	}
	a, l = opened(objstore.Compliance)
	l.can = objstore.ErrNoLock
	if got, _, err := look(a, FsckOptions{}, nil); err != nil || !got.NoLocks || got.Left() != 5 {
		t.Errorf("a bucket without object lock: %v: %+v", err, got)
	}
	a, _ = opened(objstore.Compliance)
	if got, _, err := look(a, FsckOptions{Sample: 1}, nil); err != nil || got.Asked+got.Ended >= 6 || got.Objects != 6 {
		t.Errorf("a sample: %v: %+v", err, got)
	}
}
