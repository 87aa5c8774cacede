// Package storetest is the suite that every objstore.Store passes.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// Suite runs every test on a fresh, empty store.
func Suite(t *testing.T, open func(t *testing.T) objstore.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, objstore.Store)
	}{
		{"what is put can be got, whole and in ranges", ranges},
		{"a second put replaces the first", overwrite},
		{"an empty object is an object", empty},
		{"a missing object is ErrNotFound, and deleting it is no error", missing},
		{"a deleted object is gone", deleted},
		{"of many conditional puts exactly one wins", race},
		{"lists are in lexical order, by prefix, after a key", lists},
		{"lists go beyond one page", pages},
		{"a caller's error ends a list", listError},
		{"keys with odd but legal characters", oddKeys},
		{"keys that are none are refused", badKeys},
		{"16 MiB", large},
		{"a cancelled context is an error and not a success", cancelled},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// LockMargin is how far a store's clock may be from ours in LockSuite.
const LockMargin = time.Minute

// LockSuite runs the tests of locks. open returns a fresh store that puts the
// rule on objects, and deletes one version behind its back, with all rights there
// are but that of lifting a lock.
func LockSuite(t *testing.T, open func(t *testing.T, rule objstore.LockRule) (objstore.Locker, func(key, version string) error)) {
	for _, mode := range []objstore.LockMode{objstore.Governance, objstore.Compliance} {
		t.Run(string(mode), func(t *testing.T) {
			const kept = 24 * time.Hour
			s, remove := open(t, objstore.LockRule{Prefix: "locked/", Mode: mode, Retention: kept})
			if err := s.CanLock(t.Context()); err != nil {
				t.Fatal(err)
			}
			put(t, s, "free/a", []byte("free"))
			put(t, s, "locked/a", []byte("first"))
			if err := s.PutIfAbsent(t.Context(), "locked/b", []byte("b")); err != nil {
				t.Fatal(err)
			}
			first := versions(t, s, "locked/")
			if len(first) != 2 || first[0].Key != "locked/a" || first[1].Key != "locked/b" {
				t.Fatalf("versions %v", first)
			}
			for _, v := range first {
				lock, err := s.LockOf(t.Context(), v.Key, v.ID)
				if off := time.Until(lock.Until) - kept; err != nil || lock.Mode != mode || off.Abs() > LockMargin {
					t.Errorf("lock of %s: %v, %v", v.Key, lock, err)
				}
				if err := remove(v.Key, v.ID); err == nil {
					t.Errorf("a locked version of %s was removed", v.Key)
				}
			}
			free := versions(t, s, "free/")
			if lock, err := s.LockOf(t.Context(), "free/a", free[0].ID); err != nil || lock != (objstore.Lock{}) {
				t.Errorf("lock of what no rule is about: %v, %v", lock, err)
			}
			if err := remove("free/a", free[0].ID); err != nil {
				t.Errorf("what is not locked cannot be removed: %v", err)
			}
			locks(t, s, mode)
			// Another key between them, with a marker only on one.
			put(t, s, "locked/c", []byte("c"))
			if err := s.Delete(t.Context(), "locked/c"); err != nil {
				t.Fatal(err)
			}
			if all := versions(t, s, "locked/"); len(all) != 4 || all[2].Key != "locked/c" || all[2].Marker || !all[3].Marker {
				t.Errorf("versions %+v", all)
			}
			// Hidden and overwritten, the first version is still there.
			put(t, s, "locked/a", []byte("second"))
			if err := s.Delete(t.Context(), "locked/a"); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(t.Context(), "locked/a", 0, -1); !errors.Is(err, objstore.ErrNotFound) {
				t.Errorf("get of a hidden object: %v", err)
			}
			all := versions(t, s, "locked/a")
			if len(all) != 3 || all[0].ID != first[0].ID || all[1].Marker || !all[2].Marker {
				t.Fatalf("versions %+v", all)
			}
			if got, err := s.GetVersion(t.Context(), "locked/a", all[0].ID); err != nil || string(got) != "first" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// locks is about locks that are set and changed after the put.
func locks(t *testing.T, s objstore.Locker, mode objstore.LockMode) {
	other := map[objstore.LockMode]objstore.LockMode{objstore.Governance: objstore.Compliance, objstore.Compliance: objstore.Governance}[mode]
	put(t, s, "free/b", []byte("free"))
	soon, late := time.Now().Add(time.Hour).Truncate(time.Second), time.Now().Add(2*time.Hour).Truncate(time.Second)
	for _, c := range []struct {
		name string
		set  objstore.Lock
		want error
		then objstore.Lock
	}{
		{"where there was none", objstore.Lock{Mode: mode, Until: soon}, nil, objstore.Lock{Mode: mode, Until: soon}},
		{"longer", objstore.Lock{Mode: mode, Until: late}, nil, objstore.Lock{Mode: mode, Until: late}},
		{"shorter", objstore.Lock{Mode: mode, Until: soon}, objstore.ErrAccess, objstore.Lock{Mode: mode, Until: late}},
		{"in another mode", objstore.Lock{Mode: other, Until: late}, objstore.ErrAccess, objstore.Lock{Mode: mode, Until: late}},
	} {
		if err := s.SetLock(t.Context(), "free/b", "", c.set); !errors.Is(err, c.want) {
			t.Errorf("a lock %s: %v", c.name, err)
		}
		if is, err := s.LockOf(t.Context(), "free/b", ""); err != nil || is.Mode != c.then.Mode || !is.Until.Equal(c.then.Until) {
			t.Errorf("after a lock %s: %v, %v", c.name, is, err)
		}
	}
	if _, err := s.LockOf(t.Context(), "free/none", ""); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("lock of what is not there: %v", err)
	}
}

func versions(t *testing.T, s objstore.Locker, prefix string) (all []objstore.Version) {
	t.Helper()
	if err := s.Versions(t.Context(), prefix, func(v objstore.Version) error { all = append(all, v); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func put(t *testing.T, s objstore.Store, key string, body []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, body); err != nil {
		t.Fatal(err)
	}
}

func wantGet(t *testing.T, s objstore.Store, key string, offset, length int64, want []byte) {
	t.Helper()
	got, err := s.Get(t.Context(), key, offset, length)
	if err != nil {
		t.Fatalf("get %s [%d, +%d): %v", key, offset, length, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("get %s [%d, +%d): %d bytes, want %d", key, offset, length, len(got), len(want))
	}
}

func ranges(t *testing.T, s objstore.Store) {
	body := []byte("0123456789")
	put(t, s, "a/b", body)
	wantGet(t, s, "a/b", 0, -1, body)
	wantGet(t, s, "a/b", 3, -1, body[3:])
	wantGet(t, s, "a/b", 3, 4, body[3:7])
	wantGet(t, s, "a/b", 0, 10, body)
	wantGet(t, s, "a/b", 8, 100, body[8:]) // clamped
	wantGet(t, s, "a/b", 10, 5, nil)       // at the end
	wantGet(t, s, "a/b", 11, -1, nil)      // beyond it
	wantGet(t, s, "a/b", 2, 0, nil)
}

func overwrite(t *testing.T, s objstore.Store) {
	put(t, s, "k", []byte("first, and longer"))
	put(t, s, "k", []byte("second"))
	wantGet(t, s, "k", 0, -1, []byte("second"))
}

func empty(t *testing.T, s objstore.Store) {
	put(t, s, "nothing", nil)
	wantGet(t, s, "nothing", 0, -1, nil)
	if err := s.PutIfAbsent(t.Context(), "nothing", []byte("x")); !errors.Is(err, objstore.ErrExists) {
		t.Fatalf("conditional put onto an empty object: %v", err)
	}
}

func missing(t *testing.T, s objstore.Store) {
	if _, err := s.Get(t.Context(), "none", 0, -1); !errors.Is(err, objstore.ErrNotFound) {
		t.Fatalf("get: %v", err)
	}
	if _, err := s.Get(t.Context(), "none/below", 5, 5); !errors.Is(err, objstore.ErrNotFound) {
		t.Fatalf("get range: %v", err)
	}
	put(t, s, "leaf", []byte("x"))
	for _, key := range []string{"none", "none/below", "leaf/below"} {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Fatalf("delete %s: %v", key, err)
		}
	}
	if _, err := s.Get(t.Context(), "leaf/below", 0, -1); !errors.Is(err, objstore.ErrNotFound) {
		t.Fatalf("get below an object: %v", err)
	}
}

func deleted(t *testing.T, s objstore.Store) {
	put(t, s, "d/x", []byte("x"))
	if err := s.Delete(t.Context(), "d/x"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "d/x", 0, -1); !errors.Is(err, objstore.ErrNotFound) {
		t.Fatalf("get: %v", err)
	}
	if err := s.PutIfAbsent(t.Context(), "d/x", []byte("again")); err != nil {
		t.Fatalf("conditional put after delete: %v", err)
	}
}

func race(t *testing.T, s objstore.Store) {
	const racers = 16
	var mu sync.Mutex
	var winners []byte
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			err := s.PutIfAbsent(context.Background(), "race", []byte{byte(i)})
			switch {
			case err == nil:
				mu.Lock()
				winners = append(winners, byte(i))
				mu.Unlock()
			case !errors.Is(err, objstore.ErrExists) && !errors.Is(err, objstore.ErrUnavailable):
				t.Errorf("racer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if len(winners) != 1 {
		t.Fatalf("%d winners", len(winners))
	}
	wantGet(t, s, "race", 0, -1, winners)
}

func list(t *testing.T, s objstore.Store, prefix, after string) (keys []string) {
	t.Helper()
	if err := s.List(t.Context(), prefix, after, func(i objstore.Info) error {
		if i.LastModified.IsZero() {
			t.Errorf("%s: no modification time", i.Key)
		}
		keys = append(keys, i.Key)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return keys
}

func lists(t *testing.T, s objstore.Store) {
	for _, k := range []string{"w/b", "w/a", "w/c/d", "w/c-x", "w/c.y", "v", "x/a"} {
		put(t, s, k, []byte(k))
	}
	for _, c := range []struct {
		prefix, after string
		want          []string
	}{
		{"w/", "", []string{"w/a", "w/b", "w/c-x", "w/c.y", "w/c/d"}},
		{"w/", "w/b", []string{"w/c-x", "w/c.y", "w/c/d"}},
		{"w/c", "", []string{"w/c-x", "w/c.y", "w/c/d"}},
		{"", "w/c.y", []string{"w/c/d", "x/a"}},
		{"nothing/", "", nil},
	} {
		if got := list(t, s, c.prefix, c.after); !slices.Equal(got, c.want) {
			t.Errorf("list %q after %q: %v, want %v", c.prefix, c.after, got, c.want)
		}
	}
}

func pages(t *testing.T, s objstore.Store) {
	const n = 1100 // S3's pages have at most 1000
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				if err := s.Put(context.Background(), fmt.Sprintf("p/%05d", i), []byte("x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got := list(t, s, "p/", "")
	if len(got) != n || !slices.IsSorted(got) {
		t.Fatalf("%d keys, sorted: %v", len(got), slices.IsSorted(got))
	}
}

func listError(t *testing.T, s objstore.Store) {
	put(t, s, "a", nil)
	put(t, s, "b", nil)
	stop, seen := errors.New("stop"), 0
	err := s.List(t.Context(), "", "", func(objstore.Info) error { seen++; return stop })
	if !errors.Is(err, stop) || seen != 1 {
		t.Fatalf("%v after %d", err, seen)
	}
}

func oddKeys(t *testing.T, s objstore.Store) {
	keys := []string{"odd/a b", "odd/+%&=", "odd/ü", "odd/a:b", "odd/.hidden", "odd/..x"}
	slices.Sort(keys)
	for _, k := range keys {
		put(t, s, k, []byte(k))
		wantGet(t, s, k, 0, -1, []byte(k))
	}
	if got := list(t, s, "odd/", ""); !slices.Equal(got, keys) {
		t.Fatalf("%q, want %q", got, keys)
	}
}

func badKeys(t *testing.T, s objstore.Store) {
	for _, k := range []string{"", "/", "a/", "/a", "a//b", "../a", "a/../b", "a/.", "a\nb", string(make([]byte, 2000))} {
		if err := s.Put(t.Context(), k, []byte("x")); !errors.Is(err, objstore.ErrKey) {
			t.Errorf("%.20q: %v", k, err)
		}
	}
}

func large(t *testing.T, s objstore.Store) {
	body := make([]byte, 16<<20)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(body)
	put(t, s, "large", body)
	wantGet(t, s, "large", 0, -1, body)
	wantGet(t, s, "large", 9<<20, 3<<20, body[9<<20:12<<20])
}

func cancelled(t *testing.T, s objstore.Store) {
	put(t, s, "here", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Put(ctx, "late", []byte("x")); err == nil {
		t.Error("put")
	}
	if err := s.PutIfAbsent(ctx, "late", []byte("x")); err == nil {
		t.Error("conditional put")
	}
	if _, err := s.Get(ctx, "here", 0, -1); err == nil {
		t.Error("get")
	}
	if err := s.List(ctx, "", "", func(objstore.Info) error { return nil }); err == nil {
		t.Error("list")
	}
	if err := s.Delete(ctx, "here"); err == nil {
		t.Error("delete")
	}
}
