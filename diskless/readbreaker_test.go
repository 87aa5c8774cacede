package diskless

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// A store that swallows requests holds up its first readers for the GET's
// timeout, and nobody after them; what is in memory is read all the while.
func TestAStoreThatGivesNoAnswerHoldsNobodyUpForLong(t *testing.T) {
	inBubble(t, Limits{GetTimeout: 10 * time.Second, ProbeInterval: time.Second}, func(t *testing.T, r *rig) {
		var stored []*sent
		for range 8 {
			s := r.send(offer{})
			s.placeholder()
			stored = append(stored, s)
		}
		reader := r.another(Limits{GetTimeout: 10 * time.Second, ProbeInterval: time.Second})
		read := func(s *sent) (time.Duration, error) {
			began := time.Now()
			got, err := load(t.Context(), reader, s.tp, plain.appends(s.placeholder()))
			if err == nil && !bytes.Equal(got, plain.consumed(s.batch)) {
				t.Fatal("other bytes came back")
			}
			return time.Since(began), err
		}
		if _, err := read(stored[0]); err != nil {
			t.Fatal(err)
		}
		r.faulty.Decide(func(op objstore.Op, _ string) objstore.Fault {
			if op == objstore.OpGet {
				return objstore.Fault{Delay: time.Hour}
			}
			return objstore.Fault{}
		})
		for _, s := range stored[1:4] {
			if took, err := read(s); !errors.Is(err, ErrUnreadable) || took != 10*time.Second {
				t.Fatalf("%v after %v", err, took)
			}
		}
		if reader.Status()[0].ReadErr == "" || testutil.ToFloat64(reader.metrics.readable.WithLabelValues("default")) != 0 {
			t.Error("nobody is told that the store cannot be read")
		}
		asked := r.store.Count(objstore.OpGet)
		for i := range 1000 { // ten seconds of four impatient readers
			if took, err := read(stored[4+i%4]); !errors.Is(err, ErrUnreadable) || took != 0 {
				t.Fatalf("%v after %v: the store is known to give no answer", err, took)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if n := r.store.Count(objstore.OpGet) - asked; n > 1 {
			t.Fatalf("it was tried %d times at a time", n)
		}
		if took, err := read(stored[0]); err != nil || took != 0 {
			t.Fatalf("what is in memory: %v after %v", err, took)
		}
		r.faulty.Decide(nil)
		time.Sleep(20 * time.Second)
		_, _ = read(stored[1]) // which tries
		time.Sleep(time.Second)
		for _, s := range stored {
			if _, err := read(s); err != nil {
				t.Fatal(err)
			}
		}
		if reader.Status()[0].ReadErr != "" || testutil.ToFloat64(reader.metrics.readable.WithLabelValues("default")) != 1 {
			t.Error("it is still said to be unreadable")
		}
	})
}

// Of a store that nobody reads it is known all the same whether it can be read:
// what a share group acquires in vain counts against the records, once for each
// replica that has not noticed.
func TestAStoreIsVouchedForOnlyWhileItAnswers(t *testing.T) {
	inBubble(t, Limits{GetTimeout: 30 * time.Second, ProbeInterval: time.Second}, func(t *testing.T, r *rig) {
		r.send(offer{}).placeholder()
		reader := r.another(Limits{GetTimeout: 30 * time.Second, ProbeInterval: time.Second})
		class := telemetry()
		if reader.Readable(class) {
			t.Error("a store that was never asked is vouched for")
		}
		synctest.Wait()
		asked := r.store.Count(objstore.OpGet)
		for range 600 { // a minute of a member that polls
			time.Sleep(100 * time.Millisecond)
			if synctest.Wait(); !reader.Readable(class) {
				t.Fatal("a store that is well is not vouched for")
			}
		}
		if n := r.store.Count(objstore.OpGet) - asked; n < 6 || n > 12 {
			t.Errorf("it was asked %d times in a minute", n)
		}
		r.faulty.Decide(func(op objstore.Op, _ string) objstore.Fault {
			if op == objstore.OpGet {
				return objstore.Fault{Delay: time.Hour}
			}
			return objstore.Fault{}
		})
		began := time.Now()
		for reader.Readable(class) {
			time.Sleep(100 * time.Millisecond)
			if synctest.Wait(); time.Since(began) > vouched {
				t.Fatalf("it is vouched for %v after its last answer, although nobody has read", time.Since(began))
			}
		}
		time.Sleep(time.Minute)
		if reader.Readable(class) {
			t.Error("it gives no answer and is vouched for")
		}
		r.faulty.Decide(nil)
		for began = time.Now(); !reader.Readable(class); time.Sleep(100 * time.Millisecond) {
			if synctest.Wait(); time.Since(began) > 3*time.Minute {
				t.Fatal("it is well again and nobody has noticed")
			}
		}
	})
}

// An object that hangs for ever holds up its own readers, and nobody else's; a
// store that hangs is noticed also by one whose readers want a single object.
func TestOneObjectThatHangsIsNotItsStore(t *testing.T) {
	limits := Limits{GetTimeout: 10 * time.Second, ProbeInterval: time.Second}
	inBubble(t, limits, func(t *testing.T, r *rig) {
		bad := r.send(offer{})
		bad.placeholder()
		var keys []string
		if err := r.memory.List(t.Context(), WALPrefix, "", func(o objstore.Info) error { keys = append(keys, o.Key); return nil }); err != nil || len(keys) != 1 {
			t.Fatalf("objects %v, %v", keys, err)
		}
		good := r.send(offer{})
		good.placeholder()
		var down atomic.Bool
		r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
			if op == objstore.OpGet && (down.Load() || key == keys[0]) {
				return objstore.Fault{Delay: time.Hour}
			}
			return objstore.Fault{}
		})
		reader := r.another(limits)
		readable := func() float64 { return testutil.ToFloat64(reader.metrics.readable.WithLabelValues("default")) }
		read := func(s *sent) (time.Duration, error) {
			began := time.Now()
			_, err := load(t.Context(), reader, s.tp, plain.appends(s.placeholder()))
			return time.Since(began), err
		}
		for i := range 5 * tripAfter {
			if took, err := read(bad); !errors.Is(err, ErrUnreadable) || took != limits.GetTimeout {
				t.Fatalf("read %d: %v after %v", i, err, took)
			}
			if synctest.Wait(); reader.Status()[0].ReadErr != "" || readable() != 1 {
				t.Fatalf("after %d reads of one object the store is said to be unreadable", i+1)
			}
		}
		if _, err := read(good); err != nil {
			t.Fatalf("another object: %v", err)
		}
		down.Store(true)
		for range tripAfter {
			_, _ = read(bad)
		}
		time.Sleep(limits.GetTimeout) // of the marker
		if synctest.Wait(); reader.Status()[0].ReadErr == "" || readable() != 0 {
			t.Error("the store hangs, and nobody is told")
		}
		if took, err := read(bad); !errors.Is(err, ErrUnreadable) || took != 0 {
			t.Errorf("%v after %v: the store is known to give no answer", err, took)
		}
		down.Store(false)
		for began := time.Now(); readable() != 1; time.Sleep(time.Second) {
			if _, _ = read(bad); time.Since(began) > time.Minute {
				t.Fatal("the store is well again; only the object that hangs is asked for, and nobody has noticed")
			}
		}
	})
}
