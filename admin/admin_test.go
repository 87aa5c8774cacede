package admin

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

func TestEndpoints(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_test_total", Help: "A test."})
	reg.MustRegister(c)
	health := Health{Ready: true, Degraded: []string{"store default: down"}}
	s, err := Start("127.0.0.1:0", reg, func() Health { return health }, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(t.Context()) })
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + s.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}

	if code, body := get("/livez"); code != 200 || body != "ok\n" {
		t.Errorf("/livez: %d %q", code, body)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "sluice_test_total 0") {
		t.Errorf("/metrics: %d %q", code, body)
	}
	// A degraded store leaves the replica ready.
	code, body := get("/readyz")
	var got Health
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != 200 || len(got.Degraded) != 1 {
		t.Errorf("/readyz: %d %q %v", code, body, err)
	}
	health = Health{Reasons: []string{"no broker answers"}}
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "no broker answers") {
		t.Errorf("/readyz when not ready: %d %q", code, body)
	}
	if code, _ := get("/nothing"); code != 404 {
		t.Errorf("/nothing: %d", code)
	}
}
