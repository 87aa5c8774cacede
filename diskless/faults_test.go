package diskless

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/tiers"
)

// crammed is a store on a disk that is full but for a little.
type crammed struct {
	objstore.Store
	full func() bool
}

func (c crammed) Put(ctx context.Context, key string, body []byte) error {
	if c.full() && len(body) > 1<<10 {
		return fmt.Errorf("put %s: %w", key, objstore.ErrFull)
	}
	return c.Store.Put(ctx, key, body)
}

// TestFaults: a store is well, then for two minutes it is not, and then it is
// well again, while a batch comes four times a second. Whatever it does, each batch is
// decided once and soon, what became a placeholder can be read, the store's state
// does not turn back and forth, and the tier resumes by itself.
func TestFaults(t *testing.T) {
	const lasts, every = 2 * time.Minute, 250 * time.Millisecond
	puts := func(f objstore.Fault) func(time.Duration) objstore.Fault {
		return func(time.Duration) objstore.Fault { return f }
	}
	share := func(percent int, f objstore.Fault) func(time.Duration) objstore.Fault {
		r := rand.New(rand.NewPCG(1, 2))
		return func(time.Duration) objstore.Fault {
			if r.IntN(100) < percent {
				return f
			}
			return objstore.Fault{}
		}
	}
	down := objstore.Fault{Err: objstore.ErrUnavailable}
	for _, c := range []struct {
		name      string
		fault     func(since time.Duration) objstore.Fault // of PUTs
		full      bool
		limits    Limits
		impatient bool          // every tenth batch's client waits no longer than 400 ms
		fails     int           // at most so often does the store turn to failing; and at least once, unless it is 0
		gap       time.Duration // no longer between two decisions
	}{
		{
			name:  "2 s for each PUT are slow, and in time",
			fault: puts(objstore.Fault{Delay: 2 * time.Second}), gap: 3 * time.Second,
		},
		{
			name:  "with fewer PUTs at a time than lingers, objects get larger instead of late",
			fault: puts(objstore.Fault{Delay: 2 * time.Second}), limits: Limits{PutConcurrency: 2}, gap: 5 * time.Second,
		},
		{
			name:  "6 s for each PUT are too late, and no probe is taken for more than it says",
			fault: puts(objstore.Fault{Delay: 6 * time.Second}), fails: 1, gap: 6 * time.Second,
		},
		{
			name: "nor is one that takes 3 s: the tier would turn back and forth",
			fault: func(since time.Duration) objstore.Fault {
				if since < 10*time.Second {
					return down
				}
				return objstore.Fault{Delay: 3 * time.Second}
			}, fails: 1, gap: 6 * time.Second,
		},
		{
			name:  "a storm of 503s is ridden out by trying again",
			fault: share(40, down), gap: 3 * time.Second,
		},
		{
			name:  "also when some clients have no patience: they speak for themselves",
			fault: share(40, down), impatient: true, gap: 3 * time.Second,
		},
		{
			name:  "lost answers of PUTs that happened",
			fault: share(50, objstore.Fault{Lost: true}), gap: 6 * time.Second,
		},
		{
			name:  "expired credentials",
			fault: puts(objstore.Fault{Err: objstore.ErrAccess}), fails: 1, gap: 6 * time.Second,
		},
		{
			name: "a full disk has room for a probe, and is not taken for well",
			full: true, fails: 1, gap: 6 * time.Second,
		},
		{
			name:  "a black hole",
			fault: puts(objstore.Fault{Delay: time.Hour}), fails: 1, gap: 6 * time.Second,
		},
		{
			name: "a store that goes for 3 s every 6 s is waited for",
			fault: func(since time.Duration) objstore.Fault {
				if since%(6*time.Second) < 3*time.Second {
					return down
				}
				return objstore.Fault{}
			}, gap: 5 * time.Second,
		},
		{
			name: "one that goes for 10 s every 20 s is believed more and more seldom",
			fault: func(since time.Duration) objstore.Fault {
				if since%(20*time.Second) < 10*time.Second {
					return down
				}
				return objstore.Fault{}
			}, fails: 11, gap: 6 * time.Second,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			limits := c.limits
			limits.InlineBytesPerSec, limits.InlineBytesTotal = 16<<20, 1<<30
			inBubble(t, limits, func(t *testing.T, r *rig) {
				var faulty atomic.Bool
				store := crammed{r.store, func() bool { return c.full && faulty.Load() }}
				r.tier = newTier(t, objstore.NewRetrying(store, 3), r.ring, limits) // as a server does
				var all []*sent
				failed, was := 0, true
				run := func(lasts time.Duration) {
					for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(every) {
						timeout := 30 * time.Second
						if c.impatient && len(all)%10 == 0 {
							timeout = 1200 * time.Millisecond
						}
						all = append(all, r.send(offer{timeout: timeout}))
						if is := r.healthy(); is != was {
							was = is
							if !is {
								failed++
							}
						}
					}
				}
				inline := func() float64 {
					return testutil.ToFloat64(r.tier.metrics.inlineBatches.WithLabelValues("telemetry", string(tiers.InlineUnavailable)))
				}
				run(70 * time.Second)
				if n := inline(); n != 0 {
					t.Fatalf("%v batches inline while the store is well", n)
				}
				began := time.Now()
				faulty.Store(true)
				if c.fault != nil {
					r.faulty.Decide(func(op objstore.Op, _ string) objstore.Fault {
						if op != objstore.OpPut {
							return objstore.Fault{}
						}
						return c.fault(time.Since(began))
					})
				}
				run(lasts)
				faulty.Store(false)
				r.faulty.Decide(nil)
				run(40 * time.Second) // a probe comes
				if !r.healthy() {
					t.Error("it did not resume")
				}
				before, left := inline(), r.tier.budget.remaining()
				if c.fails > 0 && left >= 1<<30 {
					t.Error("the total was refilled at once")
				}
				run(steadyFor + 10*time.Second)
				if n := inline() - before; n != 0 && !c.impatient {
					t.Errorf("%v batches inline after it was well again", n)
				}
				if left := r.tier.budget.remaining(); left != 1<<30 {
					t.Errorf("%d left of the total after it was well for long", left)
				}
				if failed > c.fails || failed == 0 && c.fails > 0 {
					t.Errorf("it turned to failing %d times, want at most %d", failed, c.fails)
				}
				if n := inline(); n != 0 && c.fails == 0 && !c.impatient {
					t.Errorf("%v batches inline", n)
				}
				if c.impatient && inline() > float64(len(all)/10+1) {
					t.Errorf("%v batches inline, %d had no patience", inline(), len(all)/10)
				}
				reader := r.another(Limits{})
				var last time.Time // a decision
				for i, s := range all {
					res := s.result()
					at := s.started.Add(s.took)
					if i > 0 && at.Sub(last) > c.gap {
						t.Errorf("no decision for %v", at.Sub(last))
					}
					if at.After(last) {
						last = at
					}
					if res.Records == nil {
						continue
					}
					if got, err := load(t.Context(), reader, s.tp, plain.appends(res.Records)); err != nil || !bytes.Equal(got, plain.consumed(s.batch)) {
						t.Fatalf("batch %d cannot be read: %v", i, err)
					}
				}
			})
		})
	}
}

// A store of whose objects none is in time believes its probes only as long as
// they are small: then they are as large as the object that was not taken.
func TestProbesGrowToWhatWasNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, outageBudget)
		var narrow atomic.Bool
		narrow.Store(true)
		tier := newTier(t, slowPerByte{r.store, narrow.Load}, r.ring, outageBudget)
		class := telemetry()
		failed, was := 0, true
		for range 4 * 60 * 2 {
			send(t, tier, offer{class: class, batch: batchOf(1, 40_000)})
			if is := tier.Status()[0].Healthy; is != was {
				was = is
				if !is {
					failed++
				}
			}
			time.Sleep(250 * time.Millisecond)
		}
		if failed == 0 || failed > 2 {
			t.Errorf("it turned to failing %d times, want once or twice", failed)
		}
		narrow.Store(false)
		time.Sleep(time.Minute)
		send(t, tier, offer{class: class}).wantReadable(tier)
	})
}

// slowPerByte takes a millisecond for each five bytes.
type slowPerByte struct {
	objstore.Store
	slow func() bool
}

func (s slowPerByte) Put(ctx context.Context, key string, body []byte) error {
	if s.slow() {
		select {
		case <-time.After(time.Duration(len(body)) * time.Millisecond / 5):
		case <-ctx.Done():
			return fmt.Errorf("put %s: %w: %w", key, objstore.ErrUnavailable, ctx.Err())
		}
	}
	return s.Store.Put(ctx, key, body)
}

// While places for PUTs are taken, lingers do not make more objects.
func TestObjectsWaitOpenForAPlace(t *testing.T) {
	inBubble(t, Limits{PutConcurrency: 1}, func(t *testing.T, r *rig) {
		r.faulty.Decide(func(objstore.Op, string) objstore.Fault { return objstore.Fault{Delay: 2 * time.Second} })
		var all []*sent
		for range 20 { // two seconds: eight lingers
			all = append(all, r.send(offer{}))
			time.Sleep(100 * time.Millisecond)
		}
		for _, s := range all {
			s.wantReadable(r.tier)
		}
		if n := r.store.Count(objstore.OpPut); n != 2 {
			t.Errorf("%d objects, want the first, and one of what came meanwhile", n)
		}
		// One that is full goes all the same; it cannot take in more.
		class := telemetry()
		class.ObjectSize = 4 << 10
		full := r.send(offer{class: class})
		again := r.send(offer{class: class})
		if n := testutil.ToFloat64(r.tier.metrics.seals.WithLabelValues("size")); n != 2 {
			t.Errorf("%v were sealed by size", n)
		}
		full.placeholder()
		again.placeholder()
	})
}

// What waited in an outage, because the inline budget did not cover it, does not
// show a store that is back to be failing; nor does it wait for the ends of
// attempts that nobody will answer.
func TestWhatWaitedInAnOutageGoesWhenItEnds(t *testing.T) {
	limits := Limits{InlineBytesPerSec: 1 << 30, InlineBytesTotal: 5000}
	inBubble(t, limits, func(t *testing.T, r *rig) {
		r.faulty.Decide(func(objstore.Op, string) objstore.Fault { return objstore.Fault{Delay: time.Hour} })
		r.send(offer{}).wantInline(tiers.InlineUnavailable)
		waiting := r.send(offer{})
		time.Sleep(11 * time.Second) // into the second attempt
		r.faulty.Decide(nil)
		back := time.Now()
		<-waiting.decided
		// A probe that hangs, the next, and a pause between attempts.
		if took := time.Since(back); took > 5*time.Second {
			t.Errorf("it waited %v for a store that was back", took)
		}
		waiting.wantReadable(r.tier)
		for range 100 {
			time.Sleep(tick)
			if !r.healthy() {
				t.Fatal("it turned back to failing")
			}
		}
	})
}

// An outage that only clients without patience see is one all the same.
func TestImpatientClientsSeeAnOutageInTheEnd(t *testing.T) {
	inBubble(t, outageBudget, func(t *testing.T, r *rig) {
		r.faulty.Down(true)
		first := r.send(offer{timeout: 1500 * time.Millisecond})
		first.wantInline(tiers.InlineUnavailable)
		if !r.healthy() {
			t.Error("one client's patience took the store from all")
		}
		for range 20 {
			r.send(offer{timeout: 1500 * time.Millisecond}).wantInline(tiers.InlineUnavailable)
		}
		if r.healthy() {
			t.Error("nobody noticed")
		}
		wantTook(t, r.send(offer{timeout: 1500 * time.Millisecond}), 0)
	})
}

// A replica that ends has learnt nothing of its store.
func TestAnEndingReplicaDoesNotTakeTheStoreForReadable(t *testing.T) {
	var b readBreaker
	for i := range tripAfter {
		b.note(fmt.Sprint(i), fmt.Errorf("get: %w", objstore.ErrUnavailable), time.Second)
	}
	if n := b.note("any", fmt.Errorf("get: %w", context.Canceled), time.Second); n.turned || n.readable || !errors.Is(b.state(), objstore.ErrUnavailable) {
		t.Error("a cancelled read was taken for an answer")
	}
	if n := b.note("any", nil, time.Second); !n.turned || !n.readable {
		t.Error("an answer did not mend it")
	}
}

func TestTopicsThatStayInlineAreCountedAndNamedOnce(t *testing.T) {
	r := newRig(t, Limits{})
	var log strings.Builder
	r.tier.log = zerolog.New(&log)
	for range 3 {
		r.tier.Kept(telemetry(), "table", tiers.Compacted, 100)
		r.tier.Kept(telemetry(), "new", tiers.Unknown, 10)
		r.tier.Kept(telemetry(), "__consumer_offsets", tiers.Internal, 1)
	}
	r.tier.Kept(telemetry(), "new", tiers.Compacted, 10) // now it is known
	r.tier.Kept(telemetry(), "fine", tiers.ByClass, 10)
	for reason, want := range map[tiers.InlineReason][2]float64{
		tiers.InlineCompacted: {4, 310}, tiers.InlineUnknown: {3, 30}, tiers.InlineInternal: {3, 3},
	} {
		m := r.tier.metrics
		got := [2]float64{
			testutil.ToFloat64(m.inlineBatches.WithLabelValues("telemetry", string(reason))),
			testutil.ToFloat64(m.inlineBytes.WithLabelValues("telemetry", string(reason))),
		}
		if got != want {
			t.Errorf("%s: %v batches and bytes, want %v", reason, got, want)
		}
	}
	if n := testutil.CollectAndCount(r.tier.metrics.inlineBatches); n != 3 {
		t.Errorf("%d series, want 3", n)
	}
	if n := strings.Count(log.String(), "\n"); n != 4 {
		t.Errorf("%d lines, want one for each topic and reason:\n%s", n, &log)
	}
}
