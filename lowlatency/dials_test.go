package lowlatency

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// throng counts the dials of each address that are under way. While slow, each
// takes a second.
type throng struct {
	mu    sync.Mutex
	now   map[string]int
	most  map[string]int
	total int
	slow  atomic.Bool
}

func (c *throng) slowly(dial DialFunc) DialFunc {
	c.now, c.most = map[string]int{}, map[string]int{}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !c.slow.Load() {
			return dial(ctx, network, addr)
		}
		c.mu.Lock()
		c.total++
		c.now[addr]++
		c.most[addr] = max(c.most[addr], c.now[addr])
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			c.now[addr]--
			c.mu.Unlock()
		}()
		select {
		case <-time.After(time.Second):
			return dial(ctx, network, addr)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// storm dials node for many clients at once and returns their errors.
func (w *world) storm(clients int, node func(i int) int32, within time.Duration) (failed []error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(w.Context(), within)
			defer cancel()
			conn, err := w.tier.Dial(ctx, node(i))
			if err != nil {
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
				return
			}
			_ = conn.Close()
		})
	}
	wg.Wait()
	return failed
}

func TestDialsOfAStormComeInTurn(t *testing.T) {
	var c throng
	inWorld(t, func(o *Options) {
		o.Dial = c.slowly(o.Dial)
		o.DialsPerBroker, o.DialQueue = 4, 100
	}, func(w *world) {
		w.connect()
		c.slow.Store(true)
		began := time.Now()
		failed := w.storm(90, func(i int) int32 { return []int32{0, 1, anyBroker}[i%3] }, time.Minute)
		if len(failed) > 0 {
			w.Error(failed)
		}
		for addr, most := range c.most {
			if most > 4 {
				w.Errorf("%d dials of %s at a time", most, addr)
			}
		}
		// Four a second, and the third broker has a third of a third: in fake time.
		if took := time.Since(began); took > 15*time.Second {
			w.Errorf("90 connections took %v", took)
		}
		if n := testutil.ToFloat64(w.tier.metrics.dialing) + testutil.ToFloat64(w.tier.metrics.dialsWaiting); n != 0 || len(w.tier.dials.gates) != 0 {
			w.Errorf("%v dials are still counted, %d gates are left", n, len(w.tier.dials.gates))
		}
	})
}

func TestDialsBeyondTheQueueAreRefusedAtOnce(t *testing.T) {
	var c throng
	inWorld(t, func(o *Options) {
		o.Dial = c.slowly(o.Dial)
		o.DialsPerBroker, o.DialQueue = 2, 3
	}, func(w *world) {
		w.connect()
		c.slow.Store(true)
		failed := w.storm(9, func(int) int32 { return 0 }, time.Minute)
		if len(failed) != 4 {
			w.Errorf("%d of 9 were refused, 5 have room", len(failed))
		}
		for _, err := range failed {
			if !errors.Is(err, errDialQueue) || !strings.Contains(err.Error(), "limits.dial_queue") {
				w.Error(err)
			}
		}
		if n := testutil.ToFloat64(w.tier.metrics.dialsRefused); n != 4 {
			w.Errorf("%v are counted as refused", n)
		}
	})
}

// A broker that swallows packets keeps its own clients waiting, no longer than
// they may, and neither those of other brokers nor the background client.
func TestAWaitForADialHoldsNobodyElseUp(t *testing.T) {
	var c throng
	stuck := ""
	inWorld(t, func(o *Options) {
		dial := c.slowly(o.Dial)
		o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == stuck {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return dial(ctx, network, addr)
		}
		o.DialsPerBroker, o.DialQueue = 2, 100
	}, func(w *world) {
		w.connect()
		stuck = w.tier.Brokers()[0].Addr
		var failed []error
		done := make(chan struct{})
		go func() {
			defer close(done)
			failed = w.storm(20, func(int) int32 { return 0 }, 10*time.Second)
		}()
		synctest.Wait()
		if n := testutil.ToFloat64(w.tier.metrics.dialsWaiting); n != 18 {
			w.Errorf("%v wait", n)
		}
		began := time.Now()
		if _, err := w.dialed(1); err != nil {
			w.Error(err)
		}
		if _, err := w.dialed(2); err != nil {
			w.Error(err)
		}
		if took := time.Since(began); took > 0 {
			w.Errorf("connections to the other brokers took %v", took)
		}
		if err := w.tier.Refresh(w.Context()); err != nil {
			w.Error(err)
		}
		<-done
		if len(failed) != 20 {
			w.Errorf("%d of 20 failed", len(failed))
		}
		if took := time.Since(began); took > 11*time.Second {
			w.Errorf("they waited %v", took)
		}
	})
}
