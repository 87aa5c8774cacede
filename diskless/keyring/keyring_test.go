package keyring_test

import (
	"context"
	"encoding/base64"
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
		{"segments whose keys are gone", func(t *testing.T, s objstore.Store) {
			del(t, s, "sluice/keys/first.json")
			put(t, s, "segments/data/01", "payload")
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
		if got, err := b.Lookup(t.Context(), a.Current().ID); err != nil || got != a.Current() {
			t.Fatal("the other replica does not find the new key")
		}
		if b.Current() != a.Current() {
			t.Fatal("replicas disagree on the current key")
		}
		if got, err := a.Lookup(t.Context(), old.ID); err != nil || got != old {
			t.Fatal("the old key is gone")
		}

		// Unknown ids, which anybody can invent, read the store a few times at
		// once and then at most once a second.
		before := recording.Count(objstore.OpList)
		for i := range 1000 {
			if _, err := b.Lookup(t.Context(), placeholder.KeyID{byte(i), byte(i >> 8), 0xff}); !errors.Is(err, keyring.ErrUnknownKey) {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		if lists := recording.Count(objstore.OpList) - before; lists > 6 {
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
		if _, err := r.Lookup(t.Context(), placeholder.KeyID{1}); !errors.Is(err, keyring.ErrUnknownKey) { // reloads
			t.Fatal(err)
		}
		if got, err := r.Lookup(t.Context(), key.ID); err != nil || got != key || r.Current() != key {
			t.Fatal("a running replica forgot its key")
		}
	})
}

func TestAVanishedKeySignsNothingNewWhenAnotherIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := objstore.NewMemory()
		a, b := open(t, s, "c1"), open(t, s, "c1")
		old := a.Current()
		time.Sleep(time.Minute)
		if err := b.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		del(t, s, "sluice/keys/first.json") // as many keys as before, but others
		if _, err := a.Lookup(t.Context(), b.Current().ID); err != nil || a.Current() != b.Current() {
			t.Fatalf("current key %x, want %x: %v", a.Current().ID, b.Current().ID, err)
		}
		if got, err := a.Lookup(t.Context(), old.ID); err != nil || got != old {
			t.Fatalf("a running replica forgot a key: %v", err)
		}
	})
}

func TestAStoreThatIsDownDoesNotMakeKeysUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		faulty := objstore.NewFaulty(objstore.NewMemory())
		r := open(t, faulty, "c1")
		time.Sleep(time.Minute)
		calls := 0
		faulty.Decide(func(objstore.Op, string) objstore.Fault {
			calls++
			return objstore.Fault{Err: objstore.ErrUnavailable}
		})
		for range 100 {
			if _, err := r.Lookup(t.Context(), placeholder.KeyID{1}); err == nil || errors.Is(err, keyring.ErrUnknownKey) {
				t.Fatalf("%v: nobody knows whether the key exists", err)
			}
		}
		if calls > 6 {
			t.Fatalf("%d requests to a store that is down", calls)
		}
	})
}

func TestRotationWinsWhateverTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := objstore.NewMemory()
		ahead := placeholder.KeyID{1, 2, 3, 4, 5, 6, 7, 8}
		open(t, s, "c1")
		put(t, s, "sluice/keys/ahead.json", `{"version":1,"id":"0102030405060708","secret":"`+
			base64.StdEncoding.EncodeToString(make([]byte, 32))+`","created":"2090-01-01T00:00:00Z"}`)
		r := open(t, s, "c1")
		if r.Current().ID != ahead {
			t.Fatal("the newest key is not current")
		}
		if err := r.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r.Current().ID == ahead {
			t.Fatal("rotation had no effect: the new key is dated before the current one")
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
