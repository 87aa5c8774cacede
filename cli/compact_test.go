package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-kafka/sluice/diskless/segment"
)

func TestCompact(t *testing.T) {
	file, _, objects, _ := filledTopic(t, "otel-a", 3)
	// The same with windows that are soon over.
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	soon := filepath.Join(t.TempDir(), "soon.yaml")
	if err := os.WriteFile(soon, append(text, "compaction: { window: 1s, min_age: 1s }\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := sluice(t, "compact", "-c", file, "--once")
	if code != 0 || errs != "" || !strings.Contains(out, "Store default: 0 WAL objects seen, 0 B read, 0 B written in 0 windows") {
		t.Fatalf("what is young: exit code %d: %s%s", code, out, errs)
	}
	time.Sleep(2 * time.Second) // a window, and its age
	code, out, errs = sluice(t, "compact", "-c", soon, "--once")
	if code != 0 || errs != "" || !strings.Contains(out, "Store default: 3 WAL objects seen, 15 KiB read, 15 KiB written in ") {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	code, out, errs = sluice(t, "compact", "-c", soon, "--once")
	if code != 0 || errs != "" || !strings.Contains(out, "3 WAL objects seen, 0 B read, 0 B written in 0 windows") {
		t.Fatalf("a second time: exit code %d: %s%s", code, out, errs)
	}
	// Nothing needs the WAL objects any more.
	if err := os.RemoveAll(filepath.Join(objects, "wal")); err != nil {
		t.Fatal(err)
	}
	if code, out, errs = sluice(t, "fsck", "-c", file); code != 0 || !strings.Contains(out, "All of it can be read.") {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	if err := os.RemoveAll(filepath.Join(objects, filepath.FromSlash(segment.DataPrefix))); err != nil {
		t.Fatal(err)
	}
	if code, out, _ = sluice(t, "fsck", "-c", file); code != 1 {
		t.Fatalf("the test cannot fail: exit code %d: %s", code, out)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-c", filepath.Join(t.TempDir(), "none.yaml")}, "none.yaml"},
		{[]string{"-c", file, "--once", "--metrics", "here"}, "--metrics"},
		{[]string{"-c", file, "x"}, "x"},
	} {
		if code, out, errs := sluice(t, append([]string{"compact"}, c.args...)...); code == 0 || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%v: exit code %d, %s, no %q in %s", c.args, code, out, c.want, errs)
		}
	}
}
