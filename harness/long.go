package harness

import (
	"os"
	"strings"
	"testing"
)

const (
	// longVariable is set by make test-full.
	longVariable = "SLUICE_LONG"
	// longPrefix is how make test-full finds them.
	longPrefix = "TestLong"
)

// Long skips a test that takes longer than somebody who runs make test would
// wait: more than ten seconds or so. Its name begins with TestLong.
func Long(t testing.TB) {
	t.Helper()
	if !strings.HasPrefix(t.Name(), longPrefix) {
		t.Fatalf("make test-full would not find it: its name must begin with %s", longPrefix)
	}
	if os.Getenv(longVariable) == "" {
		t.Skip("long: make test-full runs it")
	}
}
