package diskcache

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
)

// disk is what a Cache asks of a folder.
type disk interface {
	// open opens the folder, also again, and takes hold of it for this process.
	open() error
	// files calls fn with every file, in no order. fn's error ends it.
	files(fn func(file) error) error
	// read returns a file of that size; of another it is errCorrupt.
	read(n name, size int64) ([]byte, error)
	// write is called by one at a time. errGone: the folder is not there any more.
	write(n name, parts ...[]byte) error
	// remove is no error when there is no such file.
	remove(n name) error
	// try writes a file, and removes it.
	try() error
	close()
	String() string
}

// file is one that a folder holds.
type file struct {
	name    name
	size    int64
	written time.Time
}

const (
	// folderName keeps the files apart from whatever else is in the folder that the
	// user names, which may be others' too.
	folderName = "sluice-disk-cache"
	// tempName is what a file is called until it is whole.
	tempName = "writing"
	// tryName is what is written to see whether that works.
	tryName = "trying"
)

var (
	errGone  = errors.New("the folder was deleted")
	errInUse = errors.New("another process uses the folder; give each its own disk_cache.path")
)

// folder is a folder on a disk. All goes through a handle of it: one that was
// deleted, or put in its place, is not mistaken for it.
type folder struct {
	dir     string // the user's
	maxFile int64

	mu   sync.Mutex
	root *os.Root
	lock *os.File
}

func (d *folder) String() string { return filepath.Join(d.dir, folderName) }

func (d *folder) handle() (*os.Root, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil {
		return nil, fs.ErrClosed
	}
	return d.root, nil
}

func (d *folder) open() error {
	d.close()
	root, err := openFolder(d.dir)
	if err != nil {
		return err
	}
	lock, err := root.Open(".")
	if err == nil {
		if err = lockFile(lock); err != nil {
			_ = lock.Close()
		}
	}
	if err != nil {
		_ = root.Close()
		return err
	}
	d.mu.Lock()
	d.root, d.lock = root, lock
	d.mu.Unlock()
	_ = root.Remove(tempName)
	return nil
}

// openFolder makes the folder if there is none. Nobody else may write or look into
// it: what is there was read from a store that they may have no access to.
func openFolder(dir string) (*os.Root, error) {
	parent, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	if err := parent.Mkdir(folderName, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, gone(err)
	}
	if info, err := parent.Lstat(folderName); err != nil {
		return nil, gone(err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is no folder; remove it", filepath.Join(dir, folderName))
	}
	root, err := parent.OpenRoot(folderName)
	if err != nil {
		return nil, gone(err)
	}
	info, err := root.Stat(".")
	if err == nil && (info.Mode().Perm()&0o077 != 0 || !owned(info)) {
		err = fmt.Errorf("%s is open to others, or another user's; remove it", filepath.Join(dir, folderName))
	}
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return root, nil
}

func (d *folder) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root != nil {
		_ = d.root.Close()
		_ = d.lock.Close()
		d.root, d.lock = nil, nil
	}
}

func (d *folder) files(fn func(file) error) error {
	root, err := d.handle()
	if err != nil {
		return err
	}
	return walk(root, func(f file) error {
		if f.size > d.maxFile {
			return d.remove(f.name) // of a larger memory
		}
		return fn(f)
	})
}

// walk calls fn with all files that have a name of ours.
func walk(root *os.Root, fn func(file) error) error {
	for i := range 256 {
		below, err := root.Open(fmt.Sprintf("%02x", i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = walkIn(root, below, fn)
		_ = below.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func walkIn(root *os.Root, below *os.File, fn func(file) error) error {
	for {
		entries, err := below.ReadDir(1024)
		for _, e := range entries {
			raw, err := hex.DecodeString(e.Name())
			if err != nil || len(raw) != len(name{}) {
				continue
			}
			f := file{name: name(raw)}
			info, err := root.Lstat(f.name.path())
			if err != nil || !info.Mode().IsRegular() {
				continue // it lies elsewhere, or is gone
			}
			f.size, f.written = info.Size(), info.ModTime()
			if err := fn(f); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (d *folder) read(n name, size int64) ([]byte, error) {
	root, err := d.handle()
	if err != nil {
		return nil, err
	}
	f, err := root.Open(n.path())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != size {
		return nil, fmt.Errorf("%w: %d bytes, not %d", errCorrupt, info.Size(), size)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%w: it became shorter", errCorrupt)
	} else if err != nil {
		return nil, err
	}
	return b, nil
}

func (d *folder) write(n name, parts ...[]byte) error {
	root, err := d.handle()
	if err != nil {
		return err
	}
	if err := writeFile(root, tempName, parts...); err != nil {
		return gone(err)
	}
	to := n.path()
	err = root.Rename(tempName, to)
	if errors.Is(err, fs.ErrNotExist) {
		if err := root.Mkdir(path.Dir(to), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return gone(err)
		}
		err = root.Rename(tempName, to)
	}
	return gone(err)
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return err
}

func writeFile(root *os.Root, name string, parts ...[]byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if err == nil {
			_, err = f.Write(p)
		}
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		_ = root.Remove(name)
	}
	return err
}

func (d *folder) remove(n name) error {
	root, err := d.handle()
	if err != nil {
		return err
	}
	if err := root.Remove(n.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d *folder) try() error {
	root, err := d.handle()
	if err != nil {
		return err
	}
	return gone(tryWrite(root))
}

func tryWrite(root *os.Root) error {
	if err := writeFile(root, tryName, make([]byte, block)); err != nil {
		return err
	}
	return root.Remove(tryName)
}

// Check tries whether a folder can be written to and whether its disk has room for
// so many bytes, those included that a cache already holds there.
func Check(dir string, bytes int64) error {
	root, err := openFolder(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := tryWrite(root); err != nil {
		return err
	}
	held := int64(0)
	if err := walk(root, func(f file) error { held += blocks(f.size); return nil }); err != nil {
		return err
	}
	free, err := freeBytes(dir)
	if err != nil {
		return err
	}
	if bytes > free+held {
		return fmt.Errorf("%s are more than the %s that the disk has for it; lower disk_cache.bytes", humanize.IBytes(uint64(bytes)), humanize.IBytes(uint64(free+held)))
	}
	return nil
}
