package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// root is the module's root: the folder above this file's.
func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(file))
}

func cacheDir() string { return filepath.Join(root(), ".cache") }

// locked runs fn while no other process holds the lock of that name: test
// packages run side by side.
func locked(name string, fn func() error) error {
	if err := os.MkdirAll(cacheDir(), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(cacheDir(), name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	return fn()
}

// once makes dir with build, unless a complete one is there.
func once(dir string, build func(tmp string) error) error {
	return locked(filepath.Base(dir), func() error {
		if _, err := os.Stat(dir); err == nil {
			return nil
		}
		tmp := dir + ".tmp"
		if err := os.RemoveAll(tmp); err != nil {
			return err
		}
		if err := os.MkdirAll(tmp, 0o755); err != nil {
			return err
		}
		if err := build(tmp); err != nil {
			return err
		}
		return os.Rename(tmp, dir)
	})
}

// need returns the path of a program, or an error that says how to get it.
func need(program, get string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%s is missing; %s", program, get)
	}
	return path, nil
}

func run(dir, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, out)
	}
	return nil
}

// tempDir is the test's, on disk also where /tmp is memory.
func tempDir(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sluice-"+name+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() || os.Getenv("SLUICE_KEEP") == "" {
			_ = os.RemoveAll(dir)
		}
	})
	return dir
}
