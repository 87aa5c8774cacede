package config

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// observed is a watching loop in fake time, over a file that changes only when a
// test says so, and what it has reported.
type observed struct {
	events chan struct{}
	hup    chan os.Signal

	mu      sync.Mutex
	content string
	err     error
	seen    []string
}

func observe(t *testing.T, test func(o *observed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o := &observed{events: make(chan struct{}, 1), hup: make(chan os.Signal, 1)}
		o.write(minimal, nil)
		w := &watching{
			path: "sluice.yaml",
			read: func() ([]byte, error) {
				o.mu.Lock()
				defer o.mu.Unlock()
				return []byte(o.content), o.err
			},
			config: func(c *Config) { o.saw("default_class " + c.DefaultClass) },
			refused: func(err error) {
				var problems Problems
				if !errors.As(err, &problems) {
					t.Errorf("%#v", err)
				}
				o.saw("refused: " + problems[0].What)
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.run(ctx, o.events, o.hup)
		}()
		test(o)
		cancel()
		<-done
	})
}

// write changes the file, and tells nobody.
func (o *observed) write(content string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.content, o.err = content, err
}

func (o *observed) saw(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = append(o.seen, what)
}

// event tells the loop that something in the folder has changed.
func (o *observed) event() {
	select {
	case o.events <- struct{}{}:
	default:
	}
	synctest.Wait()
}

func (o *observed) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (o *observed) want(t *testing.T, why string, seen ...string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if fmt.Sprint(o.seen) != fmt.Sprint(seen) {
		t.Errorf("%s: saw %q, want %q", why, o.seen, seen)
	}
	o.seen = nil
}

func TestWatchingDebounces(t *testing.T) {
	observe(t, func(o *observed) {
		o.event()
		o.pass(settle)
		o.want(t, "the file at the start", "default_class operational")

		o.write("kafka:", nil)
		o.event()
		o.pass(settle / 2)
		o.write(minimal+"default_class: control\n", nil)
		o.event()
		o.pass(settle)
		o.want(t, "a file is not read while it is being written")
		o.pass(settle)
		o.want(t, "but when it keeps its content", "default_class control")

		for range 20 { // a log file in the same folder
			o.event()
			o.pass(settle / 5)
		}
		o.pass(settle)
		o.want(t, "other files are no change")

		o.write(minimal+"default_class: operational\n", nil)
		for range 20 {
			o.event()
			o.pass(settle / 5)
		}
		o.want(t, "and don't put off the reading", "default_class operational")
	})
}

func TestWatchingRefusesABadFileOnce(t *testing.T) {
	observe(t, func(o *observed) {
		o.write(minimal+"default_class: gold\n", nil)
		o.event()
		o.pass(settle)
		o.want(t, "a bad file", `refused: there is no class "gold"`)
		o.event()
		o.pass(settle)
		o.want(t, "the same file again")

		o.write("", os.ErrNotExist)
		o.event()
		o.pass(settle)
		o.want(t, "no file", "refused: there is no such file")

		o.write(minimal, nil)
		o.event()
		o.pass(settle)
		o.want(t, "a good one", "default_class operational")
	})
}

func TestWatchingOnSignal(t *testing.T) {
	observe(t, func(o *observed) {
		for range 2 {
			o.hup <- syscall.SIGHUP
			synctest.Wait()
			o.want(t, "at once, changed or not", "default_class operational")
		}
		o.write(minimal+"default_class: control\n", nil)
		o.event()
		o.hup <- syscall.SIGHUP
		synctest.Wait()
		o.pass(settle)
		o.want(t, "one report for a change and a signal", "default_class control")

		close(o.hup)
		o.write(minimal, nil)
		o.event()
		o.pass(settle)
		o.want(t, "without signals", "default_class operational")
	})
}

// The ways in which a file is changed in practice, on a real file system.
func TestWatch(t *testing.T) {
	class := func(name string) []byte { return []byte(minimal + "default_class: " + name + "\n") }
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// start watches a file that says "control" and returns what is reported.
	start := func(t *testing.T, path string) <-chan string {
		reported := make(chan string, 16)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- Watch(ctx, path, nil,
				func(c *Config) { reported <- c.DefaultClass },
				func(err error) { reported <- err.Error() })
		}()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		if first := <-reported; first != "control" {
			t.Fatal(first)
		}
		return reported
	}
	expect := func(t *testing.T, reported <-chan string, what string) {
		t.Helper()
		if got := <-reported; !strings.Contains(got, what) {
			t.Fatalf("%q was reported, want %q", got, what)
		}
	}

	t.Run("written in place", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "sluice.yaml")
		check(os.WriteFile(path, class("control"), 0o600))
		reported := start(t, path)
		check(os.WriteFile(path, class("operational"), 0o600))
		expect(t, reported, "operational")
		check(os.WriteFile(path, class("gold"), 0o600))
		expect(t, reported, `there is no class "gold"`)
	})
	t.Run("renamed over", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "sluice.yaml")
		check(os.WriteFile(path, class("control"), 0o600))
		reported := start(t, path)
		for _, name := range []string{"operational", "control"} {
			check(os.WriteFile(path+".new", class(name), 0o600))
			check(os.Rename(path+".new", path))
			expect(t, reported, name)
		}
	})
	t.Run("Kubernetes swaps a ConfigMap's link", func(t *testing.T) {
		dir := t.TempDir()
		version := func(n int, name string) {
			folder := fmt.Sprintf("..%d", n)
			check(os.Mkdir(filepath.Join(dir, folder), 0o700))
			check(os.WriteFile(filepath.Join(dir, folder, "sluice.yaml"), class(name), 0o600))
			check(os.Symlink(folder, filepath.Join(dir, "..data_tmp")))
			check(os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
			check(os.RemoveAll(filepath.Join(dir, fmt.Sprintf("..%d", n-1))))
		}
		version(1, "control")
		path := filepath.Join(dir, "sluice.yaml")
		check(os.Symlink("..data/sluice.yaml", path))
		reported := start(t, path)
		for n, name := range []string{"operational", "control", "operational"} {
			version(n+2, name)
			expect(t, reported, name)
		}
	})
	t.Run("a link to another folder", func(t *testing.T) {
		real := filepath.Join(t.TempDir(), "real.yaml")
		check(os.WriteFile(real, class("control"), 0o600))
		path := filepath.Join(t.TempDir(), "sluice.yaml")
		check(os.Symlink(real, path))
		reported := start(t, path)
		check(os.WriteFile(real, class("operational"), 0o600))
		expect(t, reported, "operational")
	})
	t.Run("a folder that is not there", func(t *testing.T) {
		if err := Watch(t.Context(), filepath.Join(t.TempDir(), "no", "sluice.yaml"), nil, nil, nil); err == nil {
			t.Error("watched")
		}
	})
}
