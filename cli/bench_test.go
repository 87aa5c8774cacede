package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/benchmarks"
	"github.com/sluice-kafka/sluice/harness"
)

// benchReport is the part of the JSON that the tests look at.
type benchReport struct {
	Rounds []struct {
		Round   int
		Step    string
		Target  string
		Error   string
		Streams []struct {
			Stream                                          string
			Acknowledged, Errors, Missing, Doubled, Changed int
			Produce                                         struct{ Count int } `json:"produce_ms"`
			EndToEnd                                        struct{ Count int } `json:"end_to_end_ms"`
			CatchUp                                         float64             `json:"catch_up_s"`
		}
		Proxy *struct{ Puts float64 }
	}
	Comparisons []struct{ Target, Baseline, Measure, Sentence string }
	Usage       []struct {
		Target       string
		PayloadBytes float64 `json:"payload_bytes"`
		KafkaBytes   float64 `json:"kafka_bytes"`
		Money        *struct {
			PerTB    float64 `json:"per_tb"`
			Currency string
		}
	}
}

// bench runs the command and reads what it has written.
func runBench(t *testing.T, args ...string) (benchReport, string) {
	t.Helper()
	file, page := filepath.Join(t.TempDir(), "report.json"), filepath.Join(t.TempDir(), "report.html")
	code, out, errs := sluice(t, append([]string{"bench", "--json", file, "--html", page}, args...)...)
	if code != 0 {
		t.Fatalf("exit code %d: %s\n%s", code, errs, out)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if html, err := os.ReadFile(page); err != nil || !strings.Contains(string(html), "</html>") || strings.Contains(string(html), "NaN") {
		t.Errorf("the page: %v\n%s", err, html)
	}
	var r benchReport
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	for _, rd := range r.Rounds {
		if rd.Error != "" {
			t.Errorf("%+v", rd)
		}
		for _, s := range rd.Streams {
			if s.Errors+s.Missing+s.Doubled+s.Changed != 0 {
				t.Errorf("%s %s: %+v", rd.Target, rd.Step, s)
			}
		}
	}
	return r, out
}

// Direct, each tier, in turns, and the other way round in the second round.
func TestBenchComparesEmbeddedTiers(t *testing.T) {
	r, out := runBench(t, "--embedded", "--class", "control", "--class", "telemetry", "--rounds", "2", "--duration", "500ms", "--warm-up", "100ms", "--rate", "200")
	var order []string
	for _, rd := range r.Rounds {
		order = append(order, rd.Target)
		if s := rd.Streams[0]; s.Acknowledged != 120 || s.Produce.Count != 100 || s.EndToEnd.Count != 100 {
			t.Errorf("%s: %+v; 120 records, of which 20 are warm-up", rd.Target, s)
		}
		if diskless := rd.Target == "telemetry"; diskless && (rd.Proxy == nil || rd.Proxy.Puts == 0) {
			t.Errorf("%s wrote no objects: %+v", rd.Target, rd.Proxy)
		}
	}
	if got := strings.Join(order, " "); got != "direct control telemetry control telemetry direct" {
		t.Errorf("the order was %s", got)
	}
	for _, u := range r.Usage {
		if share := u.KafkaBytes / u.PayloadBytes; share <= 0 || (share < 0.5) != (u.Target == "telemetry") {
			t.Errorf("%s: Kafka holds %.3f of the payload", u.Target, share)
		}
		if m := u.Money; m == nil || m.PerTB <= 0 || m.Currency != "$" {
			t.Errorf("%s has no price: %+v", u.Target, m)
		}
	}
	compared := map[string]bool{}
	for _, c := range r.Comparisons {
		compared[c.Target+" with "+c.Baseline] = true
	}
	if len(compared) != 2 || !compared["control with direct"] || !compared["telemetry with direct"] {
		t.Errorf("compared %v", compared)
	}
	for _, want := range []string{"3 targets, 2 rounds", "round 1/2  direct", "produce p50", "fewer than 4 rounds", "kfake, which is not Apache Kafka", "per TB", "without machines, by prices of"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

// Each kind of workload, small, against an address; its topics are gone after.
func TestBenchWorkloads(t *testing.T) {
	k := fakeKafka(t)
	target := "a=" + strings.Join(k.ListenAddrs(), ",")
	for _, tt := range []struct {
		name, text string
		check      func(*testing.T, benchReport)
	}{
		{"bulk", "name: x\nstreams: [{ rate: max, records: 5000, consumers: 1 }]\n", func(t *testing.T, r benchReport) {
			if s := r.Rounds[0].Streams[0]; s.Acknowledged != 5000 {
				t.Errorf("%+v", s)
			}
		}},
		{"replay", "name: x\nbacklog: 1MiB\nstreams: [{ rate: 0, consumers: 2 }]\n", func(t *testing.T, r benchReport) {
			if r.Rounds[0].Streams[0].CatchUp <= 0 {
				t.Error("the backlog was not read")
			}
		}},
		{"catch-up", "name: x\nduration: 300ms\nbacklog: 1MiB\nstreams: [{ rate: 100, consumers: 1 }]\n", func(t *testing.T, r benchReport) {
			if s := r.Rounds[0].Streams[0]; s.CatchUp <= 0 || s.EndToEnd.Count != 30 {
				t.Errorf("%+v", s)
			}
		}},
		{"transactions", "name: x\nduration: 300ms\nstreams: [{ rate: 200, producers: 2, consumers: 1, transaction: 10 }]\n", func(t *testing.T, r benchReport) {
			if s := r.Rounds[0].Streams[0]; s.Acknowledged != 60 || s.EndToEnd.Count != 60 {
				t.Errorf("%+v", s)
			}
		}},
		{"one client, steps, connections", "name: x\nduration: 200ms\nconnections: 20\none_client: true\nstreams:\n  - { name: control, rate: 50, consumers: 1, low_latency: true }\n  - { name: bulk, rate: 500, consumers: 2 }\nsteps: [{ name: alone, only: [control] }, { name: both }]\n", func(t *testing.T, r benchReport) {
			if len(r.Rounds) != 2 || len(r.Rounds[0].Streams) != 1 || len(r.Rounds[1].Streams) != 2 || r.Rounds[1].Streams[1].EndToEnd.Count != 200 {
				t.Errorf("%+v", r.Rounds)
			}
			if len(r.Comparisons) == 0 || !strings.Contains(r.Comparisons[0].Sentence, "a both, control, produce p50") {
				t.Errorf("%+v", r.Comparisons)
			}
		}},
	} {
		for _, client := range benchmarks.Clients {
			if client == "sarama" && tt.name == "transactions" {
				continue
			}
			t.Run(tt.name+" "+client, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "mine.yaml")
				if err := os.WriteFile(file, []byte(tt.text), 0o644); err != nil {
					t.Fatal(err)
				}
				r, _ := runBench(t, "--target", target, "--workload", file, "--rounds", "1", "--client", client)
				if tt.check != nil {
					tt.check(t, r)
				}
			})
		}
	}
	wantNoTopics(t, k.ListenAddrs())
}

func wantNoTopics(t *testing.T, bootstrap []string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(bootstrap...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	topics, err := kadm.NewClient(cl).ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(topics) > 0 {
		t.Errorf("topics are left: %v", topics.Names())
	}
}

// Through a proxy that runs, with names that its rules know.
func TestBenchUsesTheRunningProxy(t *testing.T) {
	k := fakeKafka(t)
	s := settings{kafka: k.ListenAddrs(), port: harness.Ports(t, 2+brokerPorts), rest: "default_class: telemetry\ntopics:\n  - { match: \"pay*\", class: control }\n  - { match: \"/re[gx]+/\", class: replay }\n"}
	file := s.file(t)
	serve := start(t, "serve", "-c", file)
	serve.errs.await(t, "ready: clients may connect")
	r, out := runBench(t, "-c", file, "--rounds", "1", "--duration", "300ms", "--warm-up", "0s", "--rate", "100", "--class", "control", "--class", "telemetry", "--class", "replay")
	seen := map[string]bool{}
	for _, rd := range r.Rounds {
		seen[rd.Target] = true
		if puts := rd.Proxy != nil && rd.Proxy.Puts > 0; puts != (rd.Target == "telemetry") {
			t.Errorf("%s: %+v", rd.Target, rd.Proxy)
		}
	}
	if len(seen) != 3 || seen["replay"] {
		t.Errorf("measured %v", seen)
	}
	for _, want := range []string{"through the proxy that runs at", "Class replay is left out", "\nObjects of telemetry stay in store default, file://", "`sluice gc` with the same -c"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if code := serve.stop(t); code != 0 {
		t.Errorf("serve ended with %d: %s", code, &serve.errs)
	}
	// The same file, with nothing running: a proxy of its own, and all classes.
	r, out = runBench(t, "-c", file, "--rounds", "1", "--duration", "300ms", "--warm-up", "0s", "--rate", "100", "--class", "replay")
	if len(r.Rounds) != 2 || r.Rounds[1].Proxy == nil || r.Rounds[1].Proxy.Puts == 0 || !strings.Contains(out, "started in this process") {
		t.Errorf("%+v\n%s", r.Rounds, out)
	}
}

func TestBenchListsAndPrintsWorkloads(t *testing.T) {
	_, out, _ := sluice(t, "bench", "--list")
	for _, w := range benchmarks.BuiltIn() {
		if !strings.Contains(out, w.Name) {
			t.Errorf("%s is not in\n%s", w.Name, out)
		}
	}
	if code, out, _ := sluice(t, "bench", "--print", "steady"); code != 0 || !strings.HasPrefix(out, "name: steady\n") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// What cannot be reached is named before anything is driven, and exits with 1.
func TestBenchNamesATargetThatIsNotThere(t *testing.T) {
	k := fakeKafka(t)
	dead := deadAddress(t)
	code, _, errs := sluice(t, "bench", "--target", "a="+strings.Join(k.ListenAddrs(), ","), "--target", "b="+dead)
	if code != 1 || !strings.Contains(errs, "target b at "+dead) || !strings.Contains(errs, "refused") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	code, _, errs = sluice(t, "bench", "--target", "a="+strings.Join(k.ListenAddrs(), ","), "--metrics", "a="+dead)
	if code != 1 || !strings.Contains(errs, "--metrics of a") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	wantNoTopics(t, k.ListenAddrs())
}

// Ctrl-C ends it, with what is complete, and without leaving topics behind.
func TestBenchCanBeInterrupted(t *testing.T) {
	k := fakeKafka(t)
	c := start(t, "bench", "--target", "a="+strings.Join(k.ListenAddrs(), ","), "--duration", "1s", "--warm-up", "0s", "--rate", "50", "--rounds", "500")
	c.out.await(t, "round 1/500")
	c.stop(t)
	if out := c.out.String(); !strings.Contains(out, "It was interrupted") || !strings.Contains(out, "produce p50") {
		t.Errorf("%s\n%s", out, &c.errs)
	}
	wantNoTopics(t, k.ListenAddrs())
}
