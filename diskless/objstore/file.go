package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// File keeps objects as files below a folder. An object appears under its name
// only when it is whole and on disk: written aside, synced, renamed, and the
// folder synced.
type File struct {
	dir string

	mu   sync.Mutex
	made map[string]struct{} // folders that are durable in the folders above them
}

// tempDir holds what is being written; it is not a legal part of a key's
// beginning because List skips it. tempLeftover is how old a file in it must
// be to be a crashed writer's.
const (
	tempDir      = ".sluice-tmp"
	tempLeftover = time.Hour
)

// OpenFile returns a store in dir, which is made when it is not there.
func OpenFile(dir string) (*File, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("file store: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, tempDir), 0o755); err != nil {
		return nil, fmt.Errorf("file store: %w", err)
	}
	f := &File{dir: dir, made: map[string]struct{}{dir: {}}}
	left, err := os.ReadDir(filepath.Join(dir, tempDir))
	if err != nil {
		return nil, fmt.Errorf("file store: %w", err)
	}
	for _, e := range left {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > tempLeftover {
			_ = os.Remove(filepath.Join(dir, tempDir, e.Name()))
		}
	}
	return f, nil
}

func (f *File) path(key string) (string, error) {
	if err := checkKey(key); err != nil || key == tempDir || strings.HasPrefix(key, tempDir+"/") {
		return "", fmt.Errorf("%q: %w", key, ErrKey)
	}
	return filepath.Join(f.dir, filepath.FromSlash(key)), nil
}

func (f *File) put(ctx context.Context, key string, body []byte, place func(from, to string) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%v: put %s: %w", f, key, fileError(err))
		}
	}()
	to, err := f.path(key)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Join(f.dir, tempDir), "*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	if _, err = tmp.Write(body); err == nil {
		err = tmp.Sync()
	}
	if closed := tmp.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	if err := f.makeDirs(filepath.Dir(to)); err != nil {
		return err
	}
	if err := place(tmp.Name(), to); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			// Somebody removed the folder: the next Put makes it again.
			f.mu.Lock()
			f.made = map[string]struct{}{f.dir: {}}
			f.mu.Unlock()
		}
		return err
	}
	return syncDir(filepath.Dir(to))
}

// makeDirs makes an object's folder durable too. One at a time: nobody may find
// a folder that another has made and not yet synced.
func (f *File) makeDirs(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.makeDir(dir)
}

func (f *File) makeDir(dir string) error {
	if _, ok := f.made[dir]; ok {
		return nil
	}
	above := filepath.Dir(dir)
	if err := f.makeDir(above); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncDir(above); err != nil {
		return err
	}
	f.made[dir] = struct{}{}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Put implements Store.
func (f *File) Put(ctx context.Context, key string, body []byte) error {
	return f.put(ctx, key, body, os.Rename)
}

// PutIfAbsent implements Store. A hard link, unlike a rename, replaces nothing.
func (f *File) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	return f.put(ctx, key, body, os.Link)
}

// Get implements Store.
func (f *File) Get(ctx context.Context, key string, offset, length int64) (_ []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%v: get %s: %w", f, key, fileError(err))
		}
	}()
	path, err := f.path(key)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, ErrNotFound
	}
	left := max(info.Size()-offset, 0)
	if length >= 0 {
		left = min(left, length)
	}
	body := make([]byte, left)
	_, err = io.ReadFull(io.NewSectionReader(file, offset, left), body)
	return body, err
}

// List implements Store.
func (f *File) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	// Files sort by folder before name; keys sort as whole strings.
	var found []Info
	root := f.dir
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		root = filepath.Join(f.dir, filepath.FromSlash(prefix[:i]))
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile, or nothing there yet
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if d.IsDir() {
			if path == filepath.Join(f.dir, tempDir) {
				return filepath.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(f.dir, path)
		if err != nil {
			return err
		}
		key := filepath.ToSlash(rel)
		if !strings.HasPrefix(key, prefix) || key <= startAfter {
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		found = append(found, Info{key, info.Size(), info.ModTime()})
		return nil
	})
	if err != nil {
		return fmt.Errorf("%v: list %s: %w", f, prefix, fileError(err))
	}
	slices.SortFunc(found, func(a, b Info) int { return strings.Compare(a.Key, b.Key) })
	for _, i := range found {
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements Store.
func (f *File) Delete(ctx context.Context, key string) error {
	path, err := f.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err == nil || errors.Is(fileError(err), ErrNotFound) {
		return nil
	}
	return fmt.Errorf("%v: delete %s: %w", f, key, fileError(err))
}

func (f *File) String() string { return "file://" + f.dir }

func fileError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: %w", ErrExists, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrAccess, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
