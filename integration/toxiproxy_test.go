package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-kafka/sluice/harness"
)

// toxiproxy is Toxiproxy as sarama's tests use it: a proxy before each broker,
// by name. Here it may be several, for sluice's brokers have two ports each, and
// what is done to one is done to all of them.
type toxiproxy map[string][]*harness.FaultProxy

func (x toxiproxy) set(name string, f harness.NetFault) {
	for _, p := range x[name] {
		p.Set(f)
	}
}

// serve answers the requests of Toxiproxy's API that the tests make.
func (x toxiproxy) serve(t *testing.T) *http.ServeMux {
	api := http.NewServeMux()
	api.HandleFunc("GET /proxies/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"name": %q, "enabled": true}`, r.PathValue("name"))
	})
	api.HandleFunc("POST /proxies/{name}", func(w http.ResponseWriter, r *http.Request) {
		var proxy struct{ Enabled bool }
		if err := json.NewDecoder(r.Body).Decode(&proxy); err != nil {
			t.Error(err)
		}
		x.set(r.PathValue("name"), harness.NetFault{Refuse: !proxy.Enabled})
		fmt.Fprint(w, "{}")
	})
	api.HandleFunc("POST /proxies/{name}/toxics", func(w http.ResponseWriter, r *http.Request) {
		var toxic struct {
			Type       string
			Attributes struct{ Latency int }
		}
		if err := json.NewDecoder(r.Body).Decode(&toxic); err != nil {
			t.Error(err)
		}
		switch toxic.Type {
		case "latency":
			x.set(r.PathValue("name"), harness.NetFault{Delay: time.Duration(toxic.Attributes.Latency) * time.Millisecond})
		case "reset_peer":
			x.set(r.PathValue("name"), harness.NetFault{Refuse: true})
		default:
			t.Errorf("no toxic is called %q here", toxic.Type)
		}
		fmt.Fprint(w, "{}")
	})
	api.HandleFunc("POST /reset", func(w http.ResponseWriter, _ *http.Request) {
		for name := range x {
			x.set(name, harness.NetFault{})
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return api
}

// dockerVariable makes this program, when it is called docker, what sarama's
// tests take for Docker: it has the test at that address do what it was asked.
const dockerVariable = "SLUICE_TEST_DOCKER"

func docker(url string, args []string) error {
	resp, err := http.Post(url, "text/plain", strings.NewReader(strings.Join(args, " ")))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// dockerPath is a folder in which this program is called docker.
func dockerPath(t *testing.T) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(program, filepath.Join(dir, "docker")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// composed does to brokers what docker compose was asked to do to kafka-1 and
// so on, twins included.
func composed(t *testing.T, k *harness.Kafka) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var id int32
		f := strings.Fields(string(b)) // compose start kafka-1
		if len(f) < 3 {
			t.Errorf("docker is not here, for %q", b)
			return
		}
		if _, err := fmt.Sscanf(f[len(f)-1], "kafka-%d", &id); err != nil {
			t.Errorf("%q: %v", b, err)
			return
		}
		id &^= disklessBit
		switch f[1] {
		case "stop":
			k.Stop(t, id)
		case "start":
			k.Start(t, id)
		case "logs": // --since a time
			since, err := time.Parse(time.RFC3339, f[3])
			if err != nil {
				t.Error(err)
			}
			begun, from := false, since.Local().Format("[2006-01-02 15:04:05")
			for line := range strings.Lines(k.Logs(id)) {
				begun = begun || strings.HasPrefix(line, "[2") && line >= from
				if begun {
					fmt.Fprint(w, line)
				}
			}
		default:
			t.Errorf("docker is not here, for %q", b)
		}
	}
}

// faulty stands between a suite and its target: what clients reach of a broker at
// an address, by the address where it is.
func faulty(t *testing.T, k *harness.Kafka, relayed func(id int32) map[string]string) (env []string) {
	t.Helper()
	x := toxiproxy{}
	for _, id := range k.Nodes() {
		name := fmt.Sprintf("kafka%d", id)
		for at, to := range relayed(id) {
			x[name] = append(x[name], harness.StartFaultProxyAt(t, at, to))
		}
	}
	api := x.serve(t)
	api.HandleFunc("POST /docker", composed(t, k))
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	return []string{
		"TOXIPROXY_ADDR=" + server.URL, dockerVariable + "=" + server.URL + "/docker",
		"PATH=" + dockerPath(t) + string(os.PathListSeparator) + os.Getenv("PATH"),
	}
}
