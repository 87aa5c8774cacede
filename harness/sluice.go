package harness

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

var sluiceProgram = sync.OnceValues(func() (string, error) {
	out := filepath.Join(cacheDir(), "bin", "sluice")
	// Always through go build: it knows whether the source has changed.
	err := locked("sluice", func() error { return run(root(), "go", "build", "-o", out, ".") })
	return out, err
})

// Sluice is a child process: `sluice serve`, or another command.
type Sluice struct {
	*Process
	log string
}

// ServeSluice starts a replica and returns at once. It ends with the test.
func ServeSluice(t testing.TB, config string) *Sluice {
	t.Helper()
	return StartSluice(t, "serve", "-c", config)
}

// StartSluice starts one of its commands and returns at once. It ends with the
// test.
func StartSluice(t testing.TB, args ...string) *Sluice {
	t.Helper()
	program, err := sluiceProgram()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(tempDir(t, "serve"), "sluice.log")
	p, err := StartProcess("sluice", log, program, nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	s := &Sluice{Process: p, log: log}
	t.Cleanup(func() {
		if ended, _ := p.Ended(); !ended {
			p.Kill()
		}
		if t.Failed() {
			t.Logf("the log of sluice ends:\n%s", tail(log, 40))
		}
	})
	return s
}

// Log is everything that it has logged so far.
func (s *Sluice) Log(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Wait waits until it has ended by itself, and returns its exit code.
func (s *Sluice) Wait(t testing.TB, patience time.Duration) int {
	t.Helper()
	select {
	case <-s.done:
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("sluice has not ended in %v:\n%s", patience, tail(s.log, 40))
		return 0
	}
}
