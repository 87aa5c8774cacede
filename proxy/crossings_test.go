package proxy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// crosser is a request in crossings' tests.
type crosser struct {
	passages []passage
	diskless bool

	mu    sync.Mutex
	waits int
}

func (r *crosser) free() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waits == 0
}

func cross(c *crossings, diskless bool, keys ...laneKey) *crosser {
	r := &crosser{diskless: diskless}
	for _, k := range keys {
		r.passages = append(r.passages, c.passage(k))
	}
	c.enter(r.passages, diskless, r)
	return r
}

func (r *crosser) await(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waits += n
}

func (r *crosser) done() { r.await(-1) }

func TestCrossings(t *testing.T) {
	a := laneKey{topic: "a", producer: 1}
	b := laneKey{topic: "b", producer: 1}
	stranger := laneKey{topic: "a", producer: 2}
	const brokers, store = false, true
	c := newCrossings()
	first := cross(c, brokers, a)
	second := cross(c, brokers, a)
	if !first.free() || !second.free() {
		t.Fatal("who stays on a listener waits for nobody")
	}
	other := cross(c, store, stranger)
	if !other.free() {
		t.Fatal("nobody waits for another producer")
	}
	moved := cross(c, store, a, b)
	behind := cross(c, store, a)
	back := cross(c, brokers, a)
	if moved.free() || behind.free() || back.free() {
		t.Fatal("the new connection overtakes the old one")
	}
	c.leave(second.passages)
	if moved.free() {
		t.Fatal("one of two earlier batches is not answered")
	}
	c.leave(first.passages)
	if !moved.free() || !behind.free() {
		t.Fatal("all earlier batches are answered, and it still waits")
	}
	if back.free() {
		t.Fatal("who moves back overtakes what it had moved")
	}
	c.leave(behind.passages)
	c.leave(moved.passages)
	if !back.free() {
		t.Fatal("it waits for batches that are answered")
	}
	c.leave(back.passages)
	c.leave(other.passages)
	for i := range c.shards {
		if n := len(c.shards[i].lanes); n > 0 {
			t.Errorf("%d lanes are left", n)
		}
	}
}

// A producer without an id keeps its order when its topic's class changes there
// and back. Several that share a name look like one that moves all the time: they
// do not make each other wait in turn for ever.
func TestCrossingsOfSeveralOfOneName(t *testing.T) {
	k := laneKey{topic: "a", from: 1, anonymous: true}
	c := newCrossings()
	var moves []*crosser
	for i := range maxRuns {
		moves = append(moves, cross(c, i%2 == 0, k))
	}
	for i, m := range moves {
		if m.free() != (i == 0) {
			t.Fatalf("move %d: free %v", i, m.free())
		}
	}
	alternating := cross(c, maxRuns%2 == 0, k)
	if !alternating.free() {
		t.Fatal("who alternates all the time waits")
	}
	for i, m := range moves {
		if !m.free() {
			t.Fatalf("move %d waits for nobody", i)
		}
		c.leave(m.passages)
	}
	c.leave(alternating.passages)
	for i := range c.shards {
		if n := len(c.shards[i].lanes); n > 0 {
			t.Errorf("%d lanes are left", n)
		}
	}
}

// Whatever requests cross: batches of one producer and partition that came in
// on different listeners are forwarded in order of arrival, each after the
// earlier ones were answered; and none waits for ever.
func TestCrossingsKeepOrder(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		c := newCrossings()
		var open []*crosser
		arrived := make(map[laneKey][]*crosser)
		check := func(r *crosser) {
			for _, p := range r.passages {
				for _, earlier := range arrived[p.key] {
					if earlier == r {
						break
					}
					if earlier.diskless != r.diskless {
						t.Fatalf("seed %d: a batch of %v is free before an earlier one of the other listener is answered", seed, p.key)
					}
				}
			}
		}
		for range 200 {
			if rnd.IntN(3) > 0 {
				var keys []laneKey
				for i := range 4 {
					if rnd.IntN(2) == 0 {
						keys = append(keys, laneKey{topic: fmt.Sprint(i), producer: int64(rnd.IntN(2))})
					}
				}
				rnd.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
				r := cross(c, rnd.IntN(2) == 0, keys...)
				open = append(open, r)
				for _, k := range keys {
					arrived[k] = append(arrived[k], r)
				}
				continue
			}
			var free []int
			for i, r := range open {
				if r.free() {
					check(r)
					free = append(free, i)
				}
			}
			// Now and then one that waits goes too: its client has gone.
			i := -1
			if len(free) > 0 {
				i = free[rnd.IntN(len(free))]
			} else if len(open) > 0 {
				t.Fatalf("seed %d: all %d wait", seed, len(open))
			}
			if len(open) > 0 && rnd.IntN(10) == 0 {
				i = rnd.IntN(len(open))
			}
			if i < 0 {
				continue
			}
			r := open[i]
			c.leave(r.passages)
			open = slices.Delete(open, i, i+1)
			for k, rs := range arrived {
				arrived[k] = slices.DeleteFunc(rs, func(o *crosser) bool { return o == r })
			}
		}
		for len(open) > 0 {
			i := slices.IndexFunc(open, (*crosser).free)
			if i < 0 {
				t.Fatalf("seed %d: all %d wait", seed, len(open))
			}
			c.leave(open[i].passages)
			open = slices.Delete(open, i, i+1)
		}
		for i := range c.shards {
			if n := len(c.shards[i].lanes); n > 0 {
				t.Fatalf("seed %d: %d lanes are left", seed, n)
			}
		}
	}
}

func BenchmarkCrossing(b *testing.B) {
	c := newCrossings()
	passages := []passage{{key: laneKey{topic: "payments", partition: 3, producer: 4000}}}
	b.ReportAllocs()
	for b.Loop() {
		c.enter(passages, false, nil)
		c.leave(passages)
	}
}
