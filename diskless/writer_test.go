package diskless

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// inBubble runs a test in fake time; what it starts must end.
func inBubble(t *testing.T, l Limits, fn func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { fn(t, newRig(t, l)) })
}

// outageBudget lets a usual batch go inline.
var outageBudget = Limits{InlineBytesPerSec: 16 << 20, InlineBytesTotal: 1 << 30}

func wantTook(t *testing.T, s *sent, want time.Duration) {
	t.Helper()
	s.result()
	if s.took < want || s.took > want+tick {
		t.Errorf("decided after %v, want %v", s.took, want)
	}
}

func TestSeal(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		a := r.send(offer{partition: 1})
		time.Sleep(100 * time.Millisecond)
		b := r.send(offer{partition: 2})
		a.wantReadable(r.tier)
		b.wantReadable(r.tier)
		if a.took != testLinger || b.took != testLinger-100*time.Millisecond {
			t.Errorf("an object is sealed at its first batch's linger: %v, %v", a.took, b.took)
		}
		if n := r.store.Count(objstore.OpPut); n != 1 {
			t.Errorf("%d PUTs for one object", n)
		}
	})
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		class := telemetry()
		class.ObjectSize = 64 << 10
		var all []*sent
		for range 8 {
			all = append(all, r.send(offer{class: class, batch: batchOf(1, 16<<10)}))
		}
		for _, s := range all {
			s.wantReadable(r.tier)
			if s.took != 0 {
				t.Errorf("a full object waited %v", s.took)
			}
		}
		if n := r.store.Count(objstore.OpPut); n != 2 {
			t.Errorf("%d PUTs for two objects", n)
		}
	})
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		quick, audit := telemetry(), telemetry()
		quick.Name, quick.Linger = "enrichment", 10*time.Millisecond
		audit.Name, audit.Audit = "audit", true
		slow := r.send(offer{})
		fast := r.send(offer{class: quick})
		kept := r.send(offer{class: audit})
		for _, s := range []*sent{slow, fast, kept} {
			s.wantReadable(r.another(Limits{}))
		}
		if fast.took != quick.Linger || slow.took != testLinger {
			t.Errorf("classes share no linger: %v, %v", fast.took, slow.took)
		}
		if lines := r.store.Transcript(); strings.Count(lines, "put audit/wal/") != 1 || strings.Count(lines, "put wal/") != 2 {
			t.Errorf("audit objects have a prefix of their own:\n%s", lines)
		}
	})
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		class := telemetry()
		class.Linger = time.Hour
		s := r.send(offer{class: class})
		s.wantReadable(r.tier)
		if s.took > DefaultLimits().PutTimeout {
			t.Errorf("a linger beyond the patience of any batch: %v", s.took)
		}
	})
}

func TestInlineByInspection(t *testing.T) {
	control := batchOf(1, 4096)
	control.SetAttributes(wire.AttrControl)
	broken := batchOf(1, 4096)
	broken[len(broken)-1] ^= 1
	for _, c := range []struct {
		name  string
		batch []byte
		want  tiers.InlineReason
	}{
		{"a batch that would not shrink", batchOf(1, 10), tiers.InlineSmall},
		{"a control batch", control, tiers.InlineControl},
		{"a wrong CRC: the broker says so", broken, tiers.InlineInvalid},
		{"two batches", append(batchOf(1, 4096), batchOf(1, 4096)...), tiers.InlineInvalid},
		{"half a batch", batchOf(1, 4096)[:2000], tiers.InlineInvalid},
		{"nothing", []byte{}, tiers.InlineInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, Limits{}, func(t *testing.T, r *rig) {
				s := r.send(offer{batch: c.batch})
				if !s.isDecided() {
					t.Fatal("that needs no waiting")
				}
				s.wantInline(c.want)
				if n := r.store.Count(objstore.OpPut); n != 0 {
					t.Fatalf("%d PUTs", n)
				}
			})
		})
	}
}

func TestPatience(t *testing.T) {
	for _, c := range []struct {
		name          string
		timeout, want time.Duration
	}{
		{"a client that waits long waits put_timeout", 30 * time.Second, 5 * time.Second},
		{"a third of what the client waits", 6 * time.Second, 2 * time.Second},
		{"a client that says nothing", 0, 5 * time.Second},
		{"less than the linger: it cannot be stored in time", 300 * time.Millisecond, 100 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, outageBudget, func(t *testing.T, r *rig) {
				r.faulty.Down(true)
				s := r.send(offer{timeout: c.timeout})
				s.wantInline(tiers.InlineUnavailable)
				wantTook(t, s, c.want)
			})
		})
	}
}

func TestOutage(t *testing.T) {
	inBubble(t, outageBudget, func(t *testing.T, r *rig) {
		r.faulty.Down(true)
		wantTook(t, r.send(offer{}), 5*time.Second)
		if r.healthy() || r.tier.Status()[0].Err == "" {
			t.Fatal("the status does not say so")
		}
		wantTook(t, r.send(offer{}), 0) // nobody waits for a store that is known to be down
		time.Sleep(time.Minute)
		r.faulty.Down(false)
		time.Sleep(2 * time.Minute) // a probe finds out, without any traffic
		if !r.healthy() {
			t.Fatal("it did not resume")
		}
		s := r.send(offer{})
		s.wantReadable(r.another(Limits{}))
		if s.took != testLinger {
			t.Errorf("%v", s.took)
		}
		for _, l := range strings.Split(r.store.Transcript(), "\n") {
			if strings.HasPrefix(l, "put sluice/") && !strings.HasPrefix(l, "put "+probeKey+" ") {
				t.Errorf("the tier wrote %q", l)
			}
		}
	})
}

func TestAccessDeniedIsAnOutage(t *testing.T) {
	for _, fault := range []error{objstore.ErrAccess, objstore.ErrFull, objstore.ErrKey, errors.New("something new")} {
		inBubble(t, outageBudget, func(t *testing.T, r *rig) {
			r.faulty.Decide(func(objstore.Op, string) objstore.Fault { return objstore.Fault{Err: fault} })
			wantTook(t, r.send(offer{}), 5*time.Second)
			if err := r.tier.Status()[0].Err; !strings.Contains(err, fault.Error()) {
				t.Errorf("%q does not say why: %v", err, fault)
			}
			r.faulty.Decide(nil)
			time.Sleep(time.Minute)
			r.send(offer{}).wantReadable(r.tier)
		})
	}
}

func TestInlineBudget(t *testing.T) {
	const size = 1 << 20
	inBubble(t, Limits{InlineBytesPerSec: size, InlineBytesTotal: 1 << 40, BufferBytes: 1 << 30}, func(t *testing.T, r *rig) {
		r.faulty.Down(true)
		r.send(offer{}).wantInline(tiers.InlineUnavailable)
		var all []*sent
		for range 64 {
			all = append(all, r.send(offer{batch: batchOf(1, size-200)}))
		}
		time.Sleep(20 * time.Second)
		n := 0
		for _, s := range all {
			if s.isDecided() {
				n++
			}
		}
		// A burst of 16 MiB, and 20 s.
		if n < 30 || n > 16+20+2 {
			t.Errorf("%d MiB went inline in 20 s at 1 MiB/s", n)
		}
		for i, s := range all {
			if s.isDecided() != (i < n) {
				t.Fatalf("batch %d overtook an older one", i)
			}
		}
		r.faulty.Down(false)
		for _, s := range all[n+2:] { // the next attempt comes within two seconds
			s.wantReadable(r.tier)
		}
	})
	inBubble(t, Limits{InlineBytesPerSec: 1 << 30, InlineBytesTotal: 3 * size}, func(t *testing.T, r *rig) {
		r.faulty.Down(true)
		var all []*sent
		for range 5 {
			all = append(all, r.send(offer{batch: batchOf(1, size-200)}))
		}
		time.Sleep(5 * time.Minute)
		for i, s := range all {
			if s.isDecided() != (i < 3) {
				t.Errorf("the total is 3 MiB: batch %d decided: %v", i, s.isDecided())
			}
		}
		r.faulty.Down(false)
		for _, s := range all[3:] {
			s.wantReadable(r.tier) // it waited, and nothing is lost
		}
		if left := r.tier.budget.remaining(); left > size/2 {
			t.Errorf("an object that came minutes late refilled the total: %d", left)
		}
		r.send(offer{}).wantReadable(r.tier)
		if left := r.tier.budget.remaining(); left > size/2 {
			t.Errorf("one object on time refilled the total: %d", left)
		}
		time.Sleep(steadyFor)
		r.send(offer{}).wantReadable(r.tier)
		if left := r.tier.budget.remaining(); left != 3*size {
			t.Errorf("a minute without a fault did not refill the total: %d", left)
		}
	})
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		r.faulty.Down(true)
		s := r.send(offer{})
		time.Sleep(5 * time.Minute)
		if s.isDecided() {
			t.Error("without a budget nothing goes inline for want of a store")
		}
		r.faulty.Down(false)
		s.wantReadable(r.tier)
	})
	inBubble(t, Limits{InlineBytesPerSec: size, InlineBytesTotal: 1 << 40}, func(t *testing.T, r *rig) {
		r.faulty.Down(true)
		r.send(offer{batch: batchOf(1, minBurst+size)}).wantInline(tiers.InlineUnavailable) // larger than the burst, it may go
	})
}

func TestAFlappingStoreDoesNotRefillTheBudget(t *testing.T) {
	inBubble(t, Limits{InlineBytesPerSec: 1 << 30, InlineBytesTotal: 1 << 30}, func(t *testing.T, r *rig) {
		// It answers probes, and takes no object in time.
		r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
			if op == objstore.OpPut && key != probeKey {
				return objstore.Fault{Delay: 7 * time.Second}
			}
			return objstore.Fault{}
		})
		waited := 0
		for range 600 {
			s := r.send(offer{})
			s.wantInline(tiers.InlineUnavailable)
			if s.took > 0 {
				waited++
			}
			time.Sleep(time.Second)
		}
		if waited > 30 {
			t.Errorf("%d of 600 batches waited for a store that breaks its promises", waited)
		}
		if got := r.tier.budget.remaining(); got > 1<<30-600*4096 {
			t.Errorf("the total was refilled: %d left", got)
		}
		if n := strings.Count(r.store.Transcript(), "put "+probeKey); n > 650 {
			t.Errorf("%d probes in ten minutes: more than one at a time", n)
		}
	})
}

func TestAnImpatientClientSpeaksOnlyForItself(t *testing.T) {
	inBubble(t, outageBudget, func(t *testing.T, r *rig) {
		time.Sleep(tick) // so that it is the younger one
		patient := r.send(offer{})
		r.send(offer{timeout: 90 * time.Millisecond}).wantInline(tiers.InlineUnavailable)
		if !r.healthy() {
			t.Fatal("one client's patience took the store from all")
		}
		patient.wantReadable(r.tier)
	})
}

func TestAnObjectThatNobodyWaitsForIsNotWritten(t *testing.T) {
	inBubble(t, outageBudget, func(t *testing.T, r *rig) {
		r.send(offer{timeout: 90 * time.Millisecond}).wantInline(tiers.InlineUnavailable)
		time.Sleep(time.Minute)
		if n := r.store.Count(objstore.OpPut); n != 0 {
			t.Fatalf("%d PUTs", n)
		}
		if b := testutil.ToFloat64(r.tier.metrics.buffered); b != 0 {
			t.Fatalf("%v bytes leaked", b)
		}
	})
}

func TestClientGone(t *testing.T) {
	inBubble(t, Limits{BufferBytes: 8 << 10}, func(t *testing.T, r *rig) {
		r.faulty.Down(true)
		ctx, cancel := context.WithCancel(context.Background())
		waiting := r.send(offer{ctx: ctx, batch: batchOf(1, 8000)})
		parked := r.send(offer{ctx: ctx, batch: batchOf(1, 8000)})
		staying := r.send(offer{batch: batchOf(1, 8000)})
		time.Sleep(time.Second)
		cancel()
		time.Sleep(2 * tick)
		if !parked.isDecided() {
			t.Error("a parked batch waits for a client that is gone")
		}
		time.Sleep(2 * time.Second)
		if !waiting.isDecided() || staying.isDecided() {
			t.Errorf("decided: %v, and of the client that stays: %v", waiting.isDecided(), staying.isDecided())
		}
		r.faulty.Down(false)
		staying.wantReadable(r.tier)
	})
}

func TestParkedBatchesTakeTheirTurn(t *testing.T) {
	inBubble(t, Limits{BufferBytes: 64 << 10}, func(t *testing.T, r *rig) {
		r.faulty.Decide(func(objstore.Op, string) objstore.Fault { return objstore.Fault{Delay: 100 * time.Millisecond} })
		var all []*sent
		for range 100 {
			all = append(all, r.send(offer{batch: batchOf(1, 8000)}))
			if held := testutil.ToFloat64(r.tier.metrics.buffered); held > 64<<10 {
				t.Fatalf("%v bytes held", held)
			}
		}
		if n := testutil.ToFloat64(r.tier.metrics.parked); n == 0 {
			t.Fatal("nothing parked: this test tests nothing")
		}
		for i, s := range all {
			s.wantReadable(r.tier)
			if i > 0 && s.took < all[i-1].took {
				t.Fatalf("batch %d overtook an older one", i)
			}
		}
		for name, g := range map[string]float64{"buffered": testutil.ToFloat64(r.tier.metrics.buffered), "parked": testutil.ToFloat64(r.tier.metrics.parked)} {
			if g != 0 {
				t.Errorf("%s: %v left", name, g)
			}
		}
	})
}

func TestLostAnswers(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		n := 0
		r.faulty.Decide(func(op objstore.Op, _ string) objstore.Fault { n++; return objstore.Fault{Lost: n < 4} })
		s := r.send(offer{})
		s.placeholder()
		r.faulty.Decide(nil)
		s.wantReadable(r.another(Limits{}))
		objects := 0
		_ = r.memory.List(t.Context(), WALPrefix, "", func(objstore.Info) error { objects++; return nil })
		if objects != 1 || n != 4 {
			t.Errorf("%d objects after %d PUTs", objects, n)
		}
	})
}

// deaf is a store that does not heed its context.
type deaf struct {
	objstore.Store
	takes time.Duration
}

func (d deaf) Put(ctx context.Context, key string, body []byte) error {
	if !strings.HasPrefix(key, WALPrefix) {
		return d.Store.Put(ctx, key, body)
	}
	time.Sleep(d.takes)
	return d.Store.Put(context.WithoutCancel(ctx), key, body)
}

func TestALateSuccessIsAnOrphan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := objstore.NewMemory()
		tier := newTier(t, deaf{memory, 20 * time.Second}, openRing(t, memory), outageBudget)
		s := send(t, tier, offer{})
		s.wantInline(tiers.InlineUnavailable)
		time.Sleep(30 * time.Second)
		s.wantInline(tiers.InlineUnavailable) // still
		if n := testutil.ToFloat64(tier.metrics.orphans); n != 1 {
			t.Errorf("%v orphans", n)
		}
		found := 0
		_ = memory.List(t.Context(), WALPrefix, "", func(objstore.Info) error { found++; return nil })
		if found != 1 {
			t.Error("an object whose fate is not known was deleted")
		}
	})
}

func TestStale(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		s := r.send(offer{})
		<-s.decided
		time.Sleep(DefaultLimits().MaxPlaceholderAge)
		s.wantInline(tiers.InlineStale)
	})
}

func TestNotifyMayCallBack(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		done, handed := make(chan struct{}), make(chan tiers.Offload, 1)
		handed <- r.tier.Offload(t.Context(), tiers.OffloadRequest{Class: telemetry(), TopicPartition: tiers.TopicPartition{Topic: "a"}, Batch: batchOf(1, 4096)}, func() {
			if (<-handed).Result().Records == nil {
				t.Error("inline")
			}
			r.tier.Status()
			close(done)
		})
		<-done
	})
}

func TestClose(t *testing.T) {
	inBubble(t, Limits{BufferBytes: 16 << 10}, func(t *testing.T, r *rig) {
		r.faulty.Decide(func(objstore.Op, string) objstore.Fault { return objstore.Fault{Delay: time.Second} })
		var all []*sent
		for range 10 {
			all = append(all, r.send(offer{batch: batchOf(1, 8000)}))
		}
		if err := r.tier.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		late := r.send(offer{})
		late.wantInline(tiers.InlineUnavailable)
		r.faulty.Decide(nil)
		reader := r.another(Limits{})
		for i, s := range all {
			if !s.isDecided() {
				t.Fatalf("batch %d is undecided after Close", i)
			}
			s.wantReadable(reader)
		}
	})
	inBubble(t, Limits{BufferBytes: 16 << 10}, func(t *testing.T, r *rig) {
		r.faulty.Down(true)
		var all []*sent
		for range 10 {
			all = append(all, r.send(offer{batch: batchOf(1, 8000)}))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.tier.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		for _, s := range all {
			if !s.isDecided() {
				t.Fatal("undecided after Close")
			}
			s.wantInline(tiers.InlineUnavailable)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		memory := objstore.NewMemory()
		tier := newTier(t, deaf{memory, time.Hour}, openRing(t, memory), Limits{})
		send(t, tier, offer{})
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		before := time.Now()
		if err := tier.Close(ctx); err == nil || time.Since(before) > time.Minute {
			t.Errorf("a store that hangs holds Close for %v: %v", time.Since(before), err)
		}
	})
}

func TestAStoreThatOpensLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, outageBudget)
		tier, err := New(Options{ClusterID: testCluster, Logger: r.tier.log, Metrics: newRegistry(), Limits: Limits{}})
		if err != nil {
			t.Fatal(err)
		}
		defer tier.Close(t.Context())
		tier.Expect("default", errors.New("no route"))
		s := send(t, tier, offer{})
		time.Sleep(time.Minute)
		if st := tier.Status(); s.isDecided() || st[0].Healthy || st[0].Err != "no route" {
			t.Fatalf("decided: %v, %+v", s.isDecided(), st)
		}
		tier.AddStore("default", StoreHandle{r.store, r.ring})
		s.wantReadable(r.another(Limits{}))
	})
}

// TestChaos: whatever the store does and whoever leaves, every batch is decided
// exactly once, and what became a placeholder can be read by another replica.
func TestChaos(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ testing.TB }{t}, func(rt *rapid.T) { // a bubble has no Deadline
			limits := Limits{
				BufferBytes: rapid.SampledFrom([]int64{16 << 10, 1 << 20}).Draw(rt, "buffer"), PutConcurrency: rapid.IntRange(1, 3).Draw(rt, "puts"),
				InlineBytesPerSec: 1 << 20, InlineBytesTotal: rapid.SampledFrom([]int64{0, 64 << 10, 1 << 30}).Draw(rt, "inline"),
				ChunkBytes: 4 << 10,
			}
			r := newRig(t, limits)
			var all []*sent
			var cancels []context.CancelFunc
			for range rapid.IntRange(1, 60).Draw(rt, "steps") {
				switch rapid.IntRange(0, 9).Draw(rt, "step") {
				case 0:
					delay := rapid.SampledFrom([]time.Duration{0, 10 * time.Millisecond, time.Second, 7 * time.Second, time.Minute}).Draw(rt, "delay")
					lost := rapid.Bool().Draw(rt, "lost")
					var err error
					if rapid.Bool().Draw(rt, "fails") {
						err = objstore.ErrUnavailable
					}
					r.faulty.Decide(func(op objstore.Op, _ string) objstore.Fault {
						return objstore.Fault{Delay: delay, Lost: lost && op == objstore.OpPut, Err: err}
					})
				case 1:
					r.faulty.Decide(nil)
				case 2:
					time.Sleep(rapid.SampledFrom([]time.Duration{time.Millisecond, 100 * time.Millisecond, 3 * time.Second, 20 * time.Second}).Draw(rt, "sleep"))
				case 3:
					if len(cancels) > 0 {
						cancels[rapid.IntRange(0, len(cancels)-1).Draw(rt, "who")]()
					}
				default:
					ctx, cancel := context.WithCancel(context.Background())
					cancels = append(cancels, cancel)
					class := telemetry()
					class.ObjectSize = rapid.SampledFrom([]int64{4 << 10, 8 << 20}).Draw(rt, "size")
					all = append(all, r.send(offer{
						ctx: ctx, class: class, partition: int32(len(all)), batch: batchOf(rapid.IntRange(1, 5).Draw(rt, "records"), 2000),
						timeout: rapid.SampledFrom([]time.Duration{0, 30 * time.Second, 3 * time.Second, 100 * time.Millisecond}).Draw(rt, "timeout"),
					}))
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), rapid.SampledFrom([]time.Duration{0, time.Second, time.Hour}).Draw(rt, "drain"))
			defer cancel()
			_ = r.tier.Close(ctx)
			for _, c := range cancels {
				c()
			}
			synctest.Wait() // what was decided in the instant of Close is being told
			r.faulty.Decide(nil)
			reader := r.another(Limits{})
			for i, s := range all {
				if !s.isDecided() {
					rt.Fatalf("batch %d is undecided after Close", i)
				}
				if res := s.result(); res.Records != nil {
					got, err := load(context.Background(), reader, s.tp, plain.appends(res.Records))
					if err != nil || !equal(got, plain.consumed(s.batch)) {
						rt.Fatalf("batch %d was acknowledged and cannot be read: %v", i, err)
					}
				}
			}
			for name, g := range map[string]float64{"buffered": testutil.ToFloat64(r.tier.metrics.buffered), "parked": testutil.ToFloat64(r.tier.metrics.parked)} {
				if g != 0 {
					rt.Fatalf("%s: %v left", name, g)
				}
			}
			_ = reader.Close(context.Background())
		})
	})
}

func ExampleLimits_chunks() {
	fmt.Println(Limits{CacheBytes: 64 << 20, PutTimeout: time.Second}.withDefaults().ChunkBytes>>20, "MiB a chunk")
	// Output: 4 MiB a chunk
}

func TestAClassThatRejectsDoesNotMakeItsProducersWait(t *testing.T) {
	rejecting := telemetry()
	rejecting.Name, rejecting.OnOutage = "rejecting", tiers.Reject
	producer := &tiers.Producer{}
	// One batch may go inline; then there is no budget left.
	inBubble(t, Limits{InlineBytesPerSec: 16 << 20, InlineBytesTotal: 6000}, func(t *testing.T, r *rig) {
		r.faulty.Down(true)
		inline := r.send(offer{class: rejecting, producer: producer})
		unknown := r.send(offer{class: rejecting, producer: producer})
		time.Sleep(tick) // so that it is the younger one
		patient := r.send(offer{})
		inline.wantInline(tiers.InlineUnavailable)
		wantRejected(t, unknown, 5*time.Second) // until then nobody knew
		wantRejected(t, r.send(offer{class: rejecting, producer: producer}), 0)
		time.Sleep(time.Minute)
		if patient.isDecided() {
			t.Fatal("a class that waits was decided")
		}
		wantRejected(t, r.send(offer{class: rejecting, producer: producer}), 0)
		silent := r.send(offer{class: rejecting}) // acks=0: there is nobody to be told
		r.send(offer{class: rejecting, producer: producer, batch: batchOf(1, 700)}).result()
		if res := r.send(offer{class: rejecting, producer: producer, batch: batchOf(1, 700)}).result(); !res.Rejected {
			t.Errorf("a small batch overtakes those that were rejected: %+v", res)
		}
		if silent.isDecided() {
			t.Error("a batch that nobody waits for was decided")
		}
		r.faulty.Down(false)
		silent.wantReadable(r.tier)
		patient.wantReadable(r.tier)
		r.send(offer{class: rejecting, producer: producer}).wantReadable(r.tier)
		if n := testutil.ToFloat64(r.tier.metrics.rejected.WithLabelValues("rejecting")); n != 5 {
			t.Errorf("the metric counts %v", n)
		}
	})
}

func wantRejected(t *testing.T, s *sent, after time.Duration) {
	t.Helper()
	if res := s.result(); !res.Rejected || res.Records != nil || res.Inline != "" {
		t.Fatalf("%+v after %v, want a rejection", res, s.took)
	}
	wantTook(t, s, after)
}

// Buffers that begin as large as the last ones are nearly empty at first, and
// only what is in them counts: they have a bound of their own.
func TestEmptyBuffersAreBounded(t *testing.T) {
	const size, most = 1 << 20, 3 << 20
	inBubble(t, Limits{BufferBytes: most}, func(t *testing.T, r *rig) {
		var all []*sent
		classes := make([]*tiers.Class, 6)
		for i := range classes {
			classes[i] = telemetry()
			classes[i].Name, classes[i].ObjectSize = fmt.Sprint("class", i), size
			s := r.send(offer{class: classes[i], batch: batchOf(1, size)})
			s.wantReadable(r.tier)
		}
		for _, class := range classes {
			all = append(all, r.send(offer{class: class, batch: batchOf(1, 10_000)}))
		}
		w := r.tier.writers["default"]
		w.mu.Lock()
		held := 0
		for _, obj := range w.open {
			held += cap(obj.buf)
		}
		w.mu.Unlock()
		if held < size || held > most+len(classes)*minObjectBuffer {
			t.Errorf("%d bytes for 60,000, of %d", held, most)
		}
		for _, s := range all {
			s.wantReadable(r.tier)
		}
		if n := r.tier.begun.Load(); n != 0 {
			t.Errorf("%d bytes still count", n)
		}
	})
}
