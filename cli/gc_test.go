package cli

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestGC(t *testing.T) {
	file, _, _, _ := filledTopic(t, "otel-a", 3)
	code, out, errs := sluice(t, "gc", "-c", file, "--dry-run")
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	for _, want := range []string{"keep    wal/", "store default: ", "too young to tell", "retention.bytes: 0 diskless topics have it"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	code, out, errs = sluice(t, "gc", "-c", file, "--json")
	var results []gcResult
	if err := json.Unmarshal([]byte(out), &results); err != nil || code != 0 || errs != "" {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, errs)
	}
	if len(results) != 2 || results[0].Store != "default" || results[0].Listed.Objects == 0 || results[0].Deleted.Objects != 0 || results[1].Retention == nil {
		t.Errorf("%s", out)
	}
	code, out, errs = sluice(t, "gc", "-c", settings{kafka: []string{deadAddress(t)}}.file(t))
	if code != 1 || out != "" || !strings.Contains(errs, "`sluice check --live` looks closer") {
		t.Errorf("without a cluster: exit code %d, stdout %q: %s", code, out, errs)
	}
}
