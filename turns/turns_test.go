package turns

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// While somebody else is about no more than some turns are taken, however many ask;
// when nobody has been for a second, all.
func TestSomeOrAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := New(2, 5, prometheus.NewRegistry())
		most := func() (n int32) {
			var now atomic.Int32
			var mu sync.Mutex
			var all sync.WaitGroup
			for range 50 {
				all.Go(func() {
					defer turns.Take().Give()
					mu.Lock()
					n = max(n, now.Add(1))
					mu.Unlock()
					time.Sleep(time.Millisecond)
					now.Add(-1)
				})
			}
			all.Wait()
			return n
		}
		turns.Others(time.Now())
		if n := most(); n != 2 {
			t.Errorf("%d at a time beside others, want 2", n)
		}
		time.Sleep(2 * calm)
		if n := most(); n != 5 {
			t.Errorf("%d at a time beside nothing, want 5", n)
		}
		if turns.waited.Load() == 0 {
			t.Error("nobody has waited")
		}
		if len(turns.some)+len(turns.rest) > 0 {
			t.Error("turns are left taken")
		}
	})
}

// Who has many pieces does not keep others waiting for more than one of each.
func TestPiecesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := New(1, 1, prometheus.NewRegistry())
		const piece = time.Millisecond
		var bulk sync.WaitGroup
		defer bulk.Wait()
		for range 8 {
			bulk.Go(func() {
				for range 100 {
					turn := turns.Take()
					time.Sleep(piece)
					turn.Give()
				}
			})
		}
		time.Sleep(20*piece + piece/2)
		began := time.Now()
		turns.Take().Give()
		if waited := time.Since(began); waited > 9*piece {
			t.Errorf("waited %v beside eight that have pieces of %v", waited, piece)
		}
	})
}

func TestNilTurns(t *testing.T) {
	var turns *Turns
	turns.Others(time.Now())
	turns.Take().Give()
}
