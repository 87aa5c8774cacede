package keyring_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
)

func open(t *testing.T, s objstore.Store, cluster string) *keyring.Ring {
	t.Helper()
	r, err := keyring.Open(t.Context(), s, cluster, keyring.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReplicasThatStartTogetherAgree(t *testing.T) {
	for range 20 {
		s := objstore.NewMemory()
		rings := make([]*keyring.Ring, 8)
		var wg sync.WaitGroup
		for i := range rings {
			wg.Go(func() { rings[i] = open(t, s, "c1") })
		}
		wg.Wait()
		for _, r := range rings {
			if r.Current() != rings[0].Current() {
				t.Fatal("two replicas made different keys")
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*testing.T, objstore.Store)
		id     string
		want   error
	}{
		{"a prefix of another cluster", func(t *testing.T, s objstore.Store) {}, "c2", keyring.ErrForeign},
		{"payloads whose keys are gone", func(t *testing.T, s objstore.Store) {
			del(t, s, "sluice/keys/first.json")
			put(t, s, "wal/01", "payload")
		}, "c1", keyring.ErrKeysMissing},
		{"audit payloads whose keys are gone", func(t *testing.T, s objstore.Store) {
			del(t, s, "sluice/keys/first.json")
			put(t, s, "audit/wal/01", "payload")
		}, "c1", keyring.ErrKeysMissing},
		{"a key that somebody changed", func(t *testing.T, s objstore.Store) { put(t, s, "sluice/keys/first.json", "{}") }, "c1", keyring.ErrGarbled},
		{"a marker that somebody changed", func(t *testing.T, s objstore.Store) { put(t, s, "sluice/cluster.json", "") }, "c1", keyring.ErrGarbled},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := objstore.NewMemory()
			open(t, s, "c1")
			c.change(t, s)
			_, err := keyring.Open(t.Context(), s, c.id, keyring.Options{})
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
		})
	}
}

func put(t *testing.T, s objstore.Store, key, body string) {
	t.Helper()
	if err := s.Put(t.Context(), key, []byte(body)); err != nil {
		t.Fatal(err)
	}
}

func del(t *testing.T, s objstore.Store, key string) {
	t.Helper()
	if err := s.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

func TestAnEmptyPrefixWhoseKeysAreGoneGetsNewOnes(t *testing.T) {
	s := objstore.NewMemory()
	open(t, s, "c1")
	del(t, s, "sluice/keys/first.json")
	open(t, s, "c1")
}

func TestLostAnswersAtTheStart(t *testing.T) {
	faulty := objstore.NewFaulty(objstore.NewMemory())
	lost := map[string]bool{}
	faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
		if op == objstore.OpPut && !lost[key] {
			lost[key] = true
			return objstore.Fault{Lost: true}
		}
		return objstore.Fault{}
	})
	r := open(t, objstore.NewRetrying(faulty, 3), "c1")
	if open(t, faulty, "c1").Current() != r.Current() {
		t.Fatal("the key was made twice")
	}
	if len(lost) != 2 {
		t.Fatalf("answers lost: %v", lost)
	}
}

func TestRotationReachesOtherReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recording := objstore.NewRecording(objstore.NewMemory())
		a, b := open(t, recording, "c1"), open(t, recording, "c1")
		old := a.Current()
		time.Sleep(time.Minute) // the new key is younger
		if err := a.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if a.Current() == old {
			t.Fatal("not rotated")
		}
		if got, ok := b.Lookup(t.Context(), a.Current().ID); !ok || got != a.Current() {
			t.Fatal("the other replica does not find the new key")
		}
		if b.Current() != a.Current() {
			t.Fatal("replicas disagree on the current key")
		}
		if got, ok := a.Lookup(t.Context(), old.ID); !ok || got != old {
			t.Fatal("the old key is gone")
		}

		// Unknown ids, which anybody can invent, read the store at most once
		// a second.
		before := recording.Count(objstore.OpList)
		for i := range 1000 {
			b.Lookup(t.Context(), placeholder.KeyID{byte(i), byte(i >> 8), 0xff})
			time.Sleep(time.Millisecond)
		}
		if lists := recording.Count(objstore.OpList) - before; lists > 2 {
			t.Fatalf("%d lists in a second", lists)
		}
	})
}

func TestKeysThatVanishStayKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := objstore.NewMemory()
		r := open(t, s, "c1")
		key := r.Current()
		del(t, s, "sluice/keys/first.json")
		time.Sleep(time.Minute)
		r.Lookup(t.Context(), placeholder.KeyID{1}) // reloads
		if got, ok := r.Lookup(t.Context(), key.ID); !ok || got != key || r.Current() != key {
			t.Fatal("a running replica forgot its key")
		}
	})
}

func TestProbe(t *testing.T) {
	s := objstore.NewMemory()
	open(t, s, "c1")
	for _, c := range keyring.Probe(t.Context(), s, "c1") {
		if c.Err != nil {
			t.Errorf("%s: %v", c.Name, c.Err)
		}
	}
	left := 0
	_ = s.List(t.Context(), "sluice/probe/", "", func(objstore.Info) error { left++; return nil })
	if left > 0 {
		t.Errorf("the probe left %d objects", left)
	}

	failed := func(s objstore.Store, cluster string) (names []string) {
		for _, c := range keyring.Probe(t.Context(), s, cluster) {
			if c.Err != nil {
				names = append(names, c.Name)
			}
		}
		return names
	}
	if got := failed(ignoresConditions{s}, "c1"); len(got) != 1 || got[0] != "conditional put refuses an existing key" {
		t.Errorf("a store without conditional put: %q", got)
	}
	if got := failed(s, "c2"); len(got) != 1 || got[0] != "the prefix is this cluster's or free" {
		t.Errorf("a foreign cluster: %q", got)
	}
	down := objstore.NewFaulty(s)
	down.Down(true)
	if got := failed(down, ""); len(got) != 1 || got[0] != "put an object" {
		t.Errorf("a store that is down: %q", got)
	}
}

// ignoresConditions is a store that overwrites whatever it is told.
type ignoresConditions struct{ *objstore.Memory }

func (s ignoresConditions) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	return s.Put(ctx, key, body)
}
