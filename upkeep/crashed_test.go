package upkeep

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
)

// wantReadable repairs twice, for the first may leave work, and wants every batch to
// be readable that could be read before the damage that there is.
func (s *stored) wantReadable(t *testing.T, before []bool) {
	t.Helper()
	for range 2 {
		s.repair(RepairOptions{})
	}
	lost := 0
	for i, ok := range s.readable() {
		if before[i] && !ok {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d batches could be read before, and not after a repair", lost, len(before))
	}
}

// collectMerged removes segments of level 1 that were merged, and returns the
// manifests of level 2.
func (s *stored) collectMerged(segments func(of []string) []string) (two []string) {
	two = s.keys(segment.LevelPrefix(segment.Level2))
	for _, key := range s.keys(segment.LevelPrefix(segment.Level1)) {
		if slices.ContainsFunc(two, func(into string) bool { return s.manifest(into).Covers(s.manifest(key).Window().First) }) {
			s.remove(segments(s.of(key))...)
		}
	}
	return two
}

func (s *stored) spoil(manifest string, gone bool) {
	if gone {
		s.remove(manifest)
	} else {
		s.change(manifest, cut)
	}
}

// Of a window there may be what a crashed run has left, and a whole run whose
// manifest is lost: the crashed one must not be taken for it.
func TestRepairTakesTheWholeRun(t *testing.T) {
	for _, merge := range []time.Duration{0, time.Hour} {
		for seed := range uint64(10) {
			s := newMerged(t, rand.New(rand.NewPCG(seed, 4)), 12, merge)
			s.remove(s.wal...)
			level := segment.Level1
			if merge > 0 {
				level = segment.Level2
				s.collectMerged(func(of []string) []string { return of })
			}
			key := s.keys(segment.LevelPrefix(level))[0]
			of := s.of(key)
			if len(of) < 2 {
				continue
			}
			crashed := s.manifest(key).Run
			if err := crashed.SetTime(crashed.Time() - 60_000); err != nil {
				t.Fatal(err)
			}
			for i := range of[:len(of)-1] {
				s.put(segment.DataKey(crashed, i), s.get(of[i]))
			}
			before := s.readable()
			s.spoil(key, seed%2 == 0)
			s.wantReadable(t, before)
		}
	}
}

// While merged segments are being collected, manifests of level 1 stand for nothing,
// or for less than they name.
func TestRepairWhileMergedSegmentsAreCollected(t *testing.T) {
	for _, gone := range []bool{true, false} {
		for _, some := range []bool{true, false} {
			s := newMerged(t, rand.New(rand.NewPCG(3, 4)), 12, time.Hour)
			s.remove(s.wal...)
			two := s.collectMerged(func(of []string) []string {
				if some {
					return of[:1]
				}
				return of
			})
			before := s.readable()
			s.spoil(two[0], gone)
			s.wantReadable(t, before)
		}
	}
}

// What a crashed run has of a WAL object may be less than is still in it.
func TestRepairKeepsWhatOnlyAWALObjectHas(t *testing.T) {
	for seed := range uint64(50) {
		s := newStored(t, rand.New(rand.NewPCG(seed, 9)), 6)
		for _, key := range s.keys(segment.WindowsPrefix) {
			if of := s.of(key); len(of) > 1 {
				s.remove(append(of[1:], key)...)
			}
		}
		s.change(s.wal[0], flip(-5)) // its footer
		s.wantReadable(t, s.readable())
	}
}

// onceLockable can tell of locks once.
type onceLockable struct {
	*lockable
	asked atomic.Int32
}

func (l *onceLockable) CanLock(context.Context) error {
	if l.asked.Add(1) > 1 {
		return objstore.ErrUnavailable
	}
	return nil
}

func TestRepairSaysWhenLocksCannotBeToldAnyMore(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(1, "otel-a"))
	r.write(r.proxied, "otel-a", 0, 2)
	a, store := r.access()
	key := diskless.ObjectKey(ulid.MustNew(ulid.Timestamp(time.Now().Add(-time.Hour)), ulid.DefaultEntropy()), true)
	if err := store.Put(t.Context(), key, []byte("x")); err != nil {
		t.Fatal(err)
	}
	locker := &onceLockable{lockable: &lockable{Store: store, locks: map[string]objstore.Lock{}}}
	a.Locks = map[string]StoreLock{"default": {Mode: objstore.Compliance, Retention: 24 * time.Hour, Locker: locker}}
	if report, err := a.Mend(t.Context(), FsckOptions{}, RepairOptions{}); err == nil || report.Stopped == "" {
		t.Errorf("an unlocked object is no longer told of: %v, %+v", err, report.Locks)
	}
}
