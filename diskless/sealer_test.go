package diskless

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/tiers"
)

// peer is a client connection in fake time: it keeps up to inFlight requests
// of one batch for each of its partitions under way, and its broker answers one
// after the other.
type peer struct {
	name       string
	inFlight   int
	partitions int
	ack        time.Duration // the broker, for one request
	every      time.Duration // between requests; 0 is as soon as it may
	records    int           // of a batch, 1000 bytes each; 0 is 1
	objectSize int64         // of its class; 0 is the usual one

	mu       sync.Mutex
	answered int
	slowest  time.Duration
}

func (l *peer) run(ctx context.Context, t *testing.T, tier *Tier) {
	p := &tiers.Producer{}
	slots := make(chan struct{}, l.inFlight)
	upstream := make(chan func(), l.inFlight)
	var wg sync.WaitGroup
	wg.Go(func() {
		for answer := range upstream {
			answer()
		}
	})
	defer wg.Wait()
	defer close(upstream)
	batch := batchOf(max(l.records, 1), 1000)
	class := telemetry()
	if l.objectSize > 0 {
		class.ObjectSize = l.objectSize
	}
	for ctx.Err() == nil {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		request := p.Begin()
		decided := make(chan struct{}, l.partitions)
		offloads := make([]tiers.Offload, 0, l.partitions)
		for i := range l.partitions {
			offloads = append(offloads, tier.Offload(ctx, tiers.OffloadRequest{
				Class: class, TopicPartition: tiers.TopicPartition{Topic: l.name, Partition: int32(i)}, Batch: batch,
				Timeout: 30 * time.Second, ProduceVersion: 9, MaxMessageBytes: 1 << 20, Producer: p, Request: request,
			}, func() { decided <- struct{}{} }))
		}
		tier.Offered(p)
		upstream <- func() {
			for range offloads {
				<-decided
			}
			for _, o := range offloads {
				if res := o.Result(); res.Records == nil && ctx.Err() == nil {
					t.Errorf("%s: inline: %s", l.name, res.Inline)
				}
			}
			time.Sleep(l.ack)
			p.End()
			l.mu.Lock()
			l.answered++
			l.slowest = max(l.slowest, time.Since(began))
			l.mu.Unlock()
			<-slots
		}
		if l.every > 0 {
			time.Sleep(l.every)
		}
	}
}

// drive runs loads side by side on a store whose PUTs take put, and returns how
// many PUTs there were.
func drive(t *testing.T, putsPerSecond int, put, lasting time.Duration, loads ...*peer) (puts int) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Limits{EarlyPutsPerSec: putsPerSecond})
		r.faulty.Decide(func(op objstore.Op, _ string) objstore.Fault {
			if op == objstore.OpPut {
				return objstore.Fault{Delay: put}
			}
			return objstore.Fault{}
		})
		ctx, cancel := context.WithTimeout(t.Context(), lasting)
		defer cancel()
		var wg sync.WaitGroup
		for _, l := range loads {
			wg.Go(func() { l.run(ctx, t, r.tier) })
		}
		<-ctx.Done()
		puts = r.store.Count(objstore.OpPut)
		wg.Wait()
		if n := testutil.ToFloat64(r.tier.metrics.buffered); n != 0 {
			t.Errorf("%v bytes are still buffered", n)
		}
		if s := r.tier.sealer; len(s.seats) > len(loads) {
			t.Errorf("%d seats for %d connections", len(s.seats), len(loads))
		}
		for _, st := range r.tier.sealer.seats {
			if st.waiting != 0 {
				t.Errorf("a seat still counts %d waiting requests", st.waiting)
			}
		}
	})
	return puts
}

// java is a default producer on six partitions of three brokers.
func java() []*peer {
	var out []*peer
	for i := range 3 {
		out = append(out, &peer{name: fmt.Sprint("java", i), inFlight: 5, partitions: 2, ack: 2 * time.Millisecond})
	}
	return out
}

func answered(loads []*peer) (n int) {
	for _, l := range loads {
		n += l.answered
	}
	return n
}

func TestEarlySeals(t *testing.T) {
	const lasting = 8 * time.Second
	const put = 30 * time.Millisecond
	fixed := java()
	drive(t, 0, put, lasting, fixed...)
	for _, c := range []struct {
		budget int
		least  float64 // requests, of the bound
		times  float64 // of a fixed linger's
	}{
		{10, 0, 2.5},
		{40, 0.8, 0},
		{1000, 0.8, 0},
	} {
		loads := java()
		puts := drive(t, c.budget, put, lasting, loads...)
		// In flight ÷ (PUT + in flight × ack), for each connection.
		bound := 3 * 5 * lasting.Seconds() / (put.Seconds() + 5*0.002)
		t.Logf("%4d PUT/s allowed: %.1f PUT/s, %.0f requests/s, %.2f of the bound, %.2f × a fixed linger", c.budget,
			float64(puts)/lasting.Seconds(), float64(answered(loads))/lasting.Seconds(), float64(answered(loads))/bound, float64(answered(loads))/float64(answered(fixed)))
		if share := float64(answered(loads)) / bound; share < c.least {
			t.Errorf("%d PUT/s: %.2f of what the connections can do at best, want %.2f", c.budget, share, c.least)
		}
		if times := float64(answered(loads)) / float64(answered(fixed)); times < c.times {
			t.Errorf("%d PUT/s: %.2f × what a fixed linger gives, want %.1f", c.budget, times, c.times)
		}
		linger := lasting.Seconds() / testLinger.Seconds()
		if budget := float64(c.budget)*(lasting.Seconds()+1) + linger; float64(puts) > budget {
			t.Errorf("%d PUTs, the budget is %.0f", puts, budget)
		}
	}
}

// Who fills objects nearly waits for the store, not for the budget: what full
// objects would have cost is paid anyway.
func TestNearlyFullObjectsHardlyCostTheBudget(t *testing.T) {
	const lasting = 8 * time.Second
	const put = 30 * time.Millisecond
	var loads []*peer
	for i := range 5 {
		loads = append(loads, &peer{name: fmt.Sprint("producer", i), inFlight: 5, partitions: 1, ack: 2 * time.Millisecond, records: 8, objectSize: 256_000})
	}
	const budget = 10
	puts := drive(t, budget, put, lasting, loads...)
	bound := 5 * 5 * lasting.Seconds() / (put.Seconds() + 5*0.002)
	full := float64(answered(loads)) * 8000 / 256_000
	t.Logf("%.1f PUT/s, full objects would be %.1f; %.2f of the bound", float64(puts)/lasting.Seconds(), full/lasting.Seconds(), float64(answered(loads))/bound)
	if share := float64(answered(loads)) / bound; share < 0.8 {
		t.Errorf("%.2f of what the connections can do at best", share)
	}
	if most := full + budget*(lasting.Seconds()+1) + lasting.Seconds()/testLinger.Seconds(); float64(puts) > most {
		t.Errorf("%d PUTs, full objects, budget and lingers make %.0f", puts, most)
	}
}

func TestConnectionsDoNotSpoilEachOther(t *testing.T) {
	const lasting = 8 * time.Second
	const put = 30 * time.Millisecond
	kinds := func() (synchronous, slow, bulk *peer) {
		return &peer{name: "synchronous", inFlight: 1, partitions: 1, ack: 2 * time.Millisecond},
			&peer{name: "slow", inFlight: 5, partitions: 1, ack: 2 * time.Millisecond, every: 400 * time.Millisecond},
			&peer{name: "bulk", inFlight: 20, partitions: 6, ack: 2 * time.Millisecond}
	}
	for _, budget := range []int{10, 40} {
		a, b, c := kinds()
		for _, l := range []*peer{a, b, c} {
			drive(t, budget, put, lasting, l)
		}
		x, y, z := kinds()
		puts := drive(t, budget, put, lasting, x, y, z)
		for i, l := range []*peer{a, b, c} {
			together := []*peer{x, y, z}[i]
			t.Logf("%2d PUT/s: %-11s alone %4d requests, slowest %v; together %4d, slowest %v (%d PUTs)", budget, l.name, l.answered, l.slowest, together.answered, together.slowest, puts)
			// Three share what one had: a third would be fair, and sharing objects gives more.
			if together.answered*5 < l.answered*2 {
				t.Errorf("%s has %d requests answered beside the others, %d alone", l.name, together.answered, l.answered)
			}
			if worst := testLinger + put + 20*l.ack + 2*tick; together.slowest > worst {
				t.Errorf("%s waited %v, more than its linger allows", l.name, together.slowest)
			}
		}
	}
}

// A connection that once had many requests under way and now sends one at a
// time must not keep others from early seals for long.
func TestFormerGreatnessIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Limits{EarlyPutsPerSec: 100})
		p := &tiers.Producer{}
		next := func() *sent {
			s := send(t, r.tier, offer{producer: p, request: p.Begin()})
			r.tier.Offered(p)
			return s
		}
		var burst []*sent
		for range 16 {
			burst = append(burst, next())
		}
		for _, s := range burst {
			s.placeholder()
			p.End()
		}
		for i := range 40 {
			s := next()
			s.placeholder()
			p.End()
			if s.took < testLinger {
				t.Logf("forgotten after %d requests", i)
				return
			}
		}
		t.Error("after 40 requests it still waits for what it will not send")
	})
}

// Patience lasts as long as a connection usually pauses: seals that do not wait
// for what is about to come would write many small objects.
func TestPausesOfAConnectionAreKnown(t *testing.T) {
	for _, ack := range []time.Duration{2 * time.Millisecond, 20 * time.Millisecond} {
		l := &peer{name: "pausing", inFlight: 5, partitions: 1, ack: ack}
		puts := drive(t, 1000, 30*time.Millisecond, 8*time.Second, l)
		if each := float64(l.answered) / float64(puts); each < 4 {
			t.Errorf("a broker that takes %v: %.1f requests in an object, of 5 that could be", ack, each)
		}
	}
}

// What an object's emptiness cost when the budget was asked is not what it costs
// once others have filled it.
func TestAPriceThatFallsIsPaidAtOnce(t *testing.T) {
	s, now := newSealer(10), time.Now()
	var c crew
	s.join(&c, &tiers.Producer{}, 1, now)
	if !s.bucket.AllowN(now, s.bucket.Burst()) {
		t.Fatal("the budget has not begun full")
	}
	if ok, wait, short := s.ready(&c, 1, now); ok || !short || wait < 50*time.Millisecond {
		t.Fatalf("without a budget: %v, %v", ok, wait)
	}
	now = now.Add(20 * time.Millisecond)
	if ok, _, _ := s.ready(&c, 0.6, now); ok {
		t.Error("the budget is a fifth of a seal")
	}
	if ok, wait, _ := s.ready(&c, 0.1, now); !ok {
		t.Errorf("a tenth of a seal waits for %v more", wait)
	}
}
