package config

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long a changed file must keep its content before it is read: an
// editor or a plain > writes it in several steps.
const settle = 200 * time.Millisecond

// Watch reads the file again on every signal of hup and whenever its content
// has changed, until ctx is done. A good file goes to onConfig, a bad one to
// onRefused, as Problems; calls do not overlap. The file is also reported once
// at the start, so that no change since the caller's own Load is lost. Watch
// returns an error only when the folder cannot be watched.
//
// The folder is watched, not the file, so that a rename over it counts, and the
// symbolic links that Kubernetes swaps for a ConfigMap.
func Watch(ctx context.Context, path string, hup <-chan os.Signal, onConfig func(*Config), onRefused func(error)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("config: %s cannot be watched for changes: %w", path, err)
	}
	defer watcher.Close()
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("config: the folder of %s cannot be watched for changes: %w", path, err)
	}

	w := &watching{
		path:   path,
		read:   func() ([]byte, error) { return readBounded(path, maxFileBytes) },
		config: onConfig, refused: onRefused,
	}

	events := make(chan struct{}, 1)
	events <- struct{}{}
	go func() {
		for { // until Close, which closes both channels
			followLink(watcher, path)
			select {
			case _, ok := <-watcher.Events:
				if !ok {
					return
				}
			case _, ok := <-watcher.Errors:
				// Events were lost, perhaps the one that counts.
				if !ok {
					return
				}
			}
			select {
			case events <- struct{}{}:
			default: // one look at the file is owed already
			}
		}
	}()
	w.run(ctx, events, hup)
	return nil
}

// followLink also watches the folder that a linked file really is in.
func followLink(watcher *fsnotify.Watcher, path string) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		// It may be gone again; then the link has changed, which is an event.
		_ = watcher.Add(filepath.Dir(real))
	}
}

// watching decides when a file is read again. It knows no file system.
type watching struct {
	path    string
	read    func() ([]byte, error)
	config  func(*Config)
	refused func(error)
	last    content // what was reported
}

type content struct {
	data []byte
	err  error
}

func (c content) equal(o content) bool {
	return bytes.Equal(c.data, o.data) && (c.err == nil) == (o.err == nil)
}

func (w *watching) run(ctx context.Context, events <-chan struct{}, hup <-chan os.Signal) {
	// A timer that runs is not set again by further events: a busy folder must
	// not put the reading off for ever.
	var due <-chan time.Time
	var seen content
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
			if due == nil {
				seen = w.look()
				due = time.After(settle)
			}
		case <-due:
			due = nil
			if now := w.look(); !now.equal(seen) {
				seen = now
				due = time.After(settle)
			} else if !now.equal(w.last) {
				w.report(now)
			}
		case _, ok := <-hup:
			if !ok {
				hup = nil
				continue
			}
			// Asked for: read at once, even what has not changed. The files
			// that it names may have.
			due = nil
			w.report(w.look())
		}
	}
}

func (w *watching) look() content {
	data, err := w.read()
	return content{data, err}
}

func (w *watching) report(now content) {
	w.last = now
	if now.err != nil {
		w.refused(Problems{unreadable(w.path, now.err)})
		return
	}
	cfg, err := Parse(w.path, now.data)
	if err != nil {
		w.refused(err)
		return
	}
	w.config(cfg)
}
