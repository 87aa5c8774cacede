package objstore_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/objstore/storetest"
)

func TestStores(t *testing.T) {
	file := func(t *testing.T) objstore.Store {
		s, err := objstore.OpenFile(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, open := range map[string]func(t *testing.T) objstore.Store{
		"memory":    func(*testing.T) objstore.Store { return objstore.NewMemory() },
		"file":      file,
		"retrying":  func(*testing.T) objstore.Store { return objstore.NewRetrying(objstore.NewMemory(), 3) },
		"limited":   func(*testing.T) objstore.Store { return objstore.NewLimited(objstore.NewMemory(), 1, 1) },
		"timed":     func(*testing.T) objstore.Store { return objstore.NewTimed(objstore.NewMemory(), time.Minute) },
		"faulty":    func(*testing.T) objstore.Store { return objstore.NewFaulty(objstore.NewMemory()) },
		"recording": func(*testing.T) objstore.Store { return objstore.NewRecording(objstore.NewMemory()) },
		"metered": func(*testing.T) objstore.Store {
			return objstore.NewMetered(objstore.NewMemory(), "test", objstore.NewMeters(prometheus.NewRegistry()))
		},
	} {
		t.Run(name, func(t *testing.T) { storetest.Suite(t, open) })
	}
}

func TestTimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		faulty := objstore.NewFaulty(objstore.NewMemory())
		faulty.Decide(func(objstore.Op, string) objstore.Fault { return objstore.Fault{Delay: time.Hour} })
		s, ctx := objstore.NewTimed(faulty, time.Minute), t.Context()
		for name, request := range map[string]func() error{
			"put":           func() error { return s.Put(ctx, "k", nil) },
			"put if absent": func() error { return s.PutIfAbsent(ctx, "k", nil) },
			"get":           func() error { _, err := s.Get(ctx, "k", 0, -1); return err },
			"list":          func() error { return s.List(ctx, "", "", func(objstore.Info) error { return nil }) },
			"delete":        func() error { return s.Delete(ctx, "k") },
		} {
			started := time.Now()
			if err := request(); !errors.Is(err, context.DeadlineExceeded) || time.Since(started) != time.Minute {
				t.Errorf("%s: %v after %v", name, err, time.Since(started))
			}
		}
	})
}

func TestRetryFindsItsOwnConditionalPut(t *testing.T) {
	for _, c := range []struct {
		name    string
		planted []byte
		want    error
	}{
		{"the answer to our own put got lost: it was us", nil, nil},
		{"somebody else was first", []byte("theirs"), objstore.ErrExists},
	} {
		t.Run(c.name, func(t *testing.T) {
			faulty := objstore.NewFaulty(objstore.NewMemory())
			if c.planted != nil {
				if err := faulty.Put(t.Context(), "k", c.planted); err != nil {
					t.Fatal(err)
				}
			}
			first := true
			faulty.Decide(func(op objstore.Op, _ string) objstore.Fault {
				if op != objstore.OpPut || !first {
					return objstore.Fault{}
				}
				first = false
				if c.planted != nil {
					return objstore.Fault{Err: objstore.ErrUnavailable}
				}
				return objstore.Fault{Lost: true}
			})
			err := objstore.NewRetrying(faulty, 3).PutIfAbsent(t.Context(), "k", []byte("ours"))
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
		})
	}
}

func TestRetryGivesUp(t *testing.T) {
	faulty := objstore.NewFaulty(objstore.NewMemory())
	calls := 0
	fail := objstore.ErrUnavailable
	faulty.Decide(func(objstore.Op, string) objstore.Fault { calls++; return objstore.Fault{Err: fail} })
	s := objstore.NewRetrying(faulty, 3)
	if err := s.Put(t.Context(), "k", nil); !errors.Is(err, objstore.ErrUnavailable) || calls != 3 {
		t.Errorf("unavailable: %v after %d calls", err, calls)
	}
	calls, fail = 0, objstore.ErrAccess
	if err := s.Put(t.Context(), "k", nil); !errors.Is(err, objstore.ErrAccess) || calls != 1 {
		t.Errorf("access: %v after %d calls; it must not be tried again", err, calls)
	}
}
