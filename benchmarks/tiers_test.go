package benchmarks_test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/sluice-kafka/sluice/benchmarks"
	"github.com/sluice-kafka/sluice/harness"
)

// The defaults are the short form, which only shows that all of it works; the
// figures of a run so short say little. make bench-tiers runs the long one.
var (
	rounds  = flag.Int("rounds", 2, "rounds; each goes over all routes")
	steady  = flag.Duration("steady", 1500*time.Millisecond, "how long the steady load lasts, on each route of a round")
	warmUp  = flag.Duration("warm-up", 500*time.Millisecond, "how long the steady load runs before latencies count")
	rate    = flag.Int("rate", 1000, "records per second of the steady load, 1 KB each")
	bulkMiB = flag.Int("bulk", 16, "MiB of the bulk load, on each route of a round")
)

// sluiceProcess is a replica in a process of its own, as in production: it does
// not share its garbage collector with the load.
type sluiceProcess struct {
	bootstrap            string
	admin                string
	log                  string
	pid                  int
	lowLatency, diskless func(node int) string // a broker's faces
	program              string
	config               string
}

const nodeIDs = 8

// s3Store is a store of the configuration, by way of an endpoint.
func s3Store(s3 *harness.S3, endpoint, prefix string) string {
	return fmt.Sprintf(`{ url: "s3://%s/%s", endpoint: "%s", access_key: "%s", secret_key: "%s" }`, s3.Bucket, prefix, endpoint, s3.AccessKey, s3.SecretKey)
}

// startSluice takes what the configuration says beside addresses.
func startSluice(t *testing.T, k *harness.Kafka, configuration string) *sluiceProcess {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "sluice")
	build := exec.Command("go", "build", "-o", program, "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building sluice: %v\n%s", err, out)
	}
	port := harness.Ports(t, 2+2*nodeIDs)
	p := &sluiceProcess{
		bootstrap: fmt.Sprintf("127.0.0.1:%d", port), admin: fmt.Sprintf("127.0.0.1:%d", port+1), log: filepath.Join(dir, "log"),
		lowLatency: func(node int) string { return fmt.Sprintf("127.0.0.1:%d", port+2+2*node) },
		diskless:   func(node int) string { return fmt.Sprintf("127.0.0.1:%d", port+2+2*node+1) }, program: program, config: filepath.Join(dir, "sluice.yaml"),
	}
	text := fmt.Sprintf(`kafka:
  bootstrap: ["%s"]
listen:
  bootstrap: "%s"
  brokers: "127.0.0.1:%d-%d"
  advertise: "127.0.0.1"
  node_ids: "0-%d"
admin: "%s"
default_class: control
log: { level: warn }
%s`, strings.Join(k.Bootstrap(), `", "`), p.bootstrap, port+2, port+1+2*nodeIDs, nodeIDs-1, p.admin, configuration)
	if err := os.WriteFile(p.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	process, err := harness.StartProcess("sluice", p.log, program, nil, "serve", "-c", p.config)
	if err != nil {
		t.Fatal(err)
	}
	p.pid = process.PID()
	t.Cleanup(func() {
		if err := process.Stop(40 * time.Second); err != nil {
			t.Errorf("sluice: %v\n%s", err, p.logged())
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		resp, err := http.Get("http://" + p.admin + "/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return p
			}
		}
		if ended, err := process.Ended(); ended || time.Now().After(deadline) {
			t.Fatalf("sluice is not ready (%v):\n%s", err, p.logged())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *sluiceProcess) logged() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Every record that was produced is consumed once and unchanged, directly and
// through both tiers; of the diskless one Kafka stores little. Times are
// printed and never judged: that is for a person who knows the machine.
func TestTiersSideBySide(t *testing.T) {
	k := harness.StartKafka(t, harness.KafkaOptions{})
	s3 := harness.StartS3(t)
	s := startSluice(t, k, fmt.Sprintf(`stores:
  default: %s
topics:
  - { match: "*-enrichment", class: enrichment }
  - { match: "*-telemetry", class: telemetry }
`, s3Store(s3, s3.Endpoint, "benchmarks")))
	through := func(name, suffix string) benchmarks.Target {
		return benchmarks.Target{Name: name, Bootstrap: []string{s.bootstrap}, Metrics: []string{"http://" + s.admin + "/metrics"}, Topic: benchmarks.DefaultTopic + suffix}
	}
	targets := []benchmarks.Target{
		{Name: "direct", Bootstrap: k.Bootstrap(), Topic: benchmarks.DefaultTopic},
		through("low-latency", ""),
		through("enrichment", "-enrichment"),
		through("telemetry", "-telemetry"),
	}
	var steadies []*benchmarks.Report
	puts := map[string][]float64{}
	run := func(w benchmarks.Workload) *benchmarks.Report {
		r, err := benchmarks.Run(t.Context(), benchmarks.Options{
			Targets: targets, Workload: w, Rounds: *rounds, Client: "franz-go", Version: "under test",
			Progress: func(line string) { t.Log(line) },
		})
		if err != nil {
			t.Fatalf("%v\nsluice says:\n%s", err, s.logged())
		}
		r.Print(os.Stdout)
		for _, sum := range r.Summaries {
			if sum.Rounds != *rounds || sum.Errors > 0 || sum.Missing+sum.Doubled+sum.Changed > 0 {
				t.Errorf("%s: %+v\nsluice says:\n%s", w.Name, sum, s.logged())
			}
		}
		for i, u := range r.Usage {
			diskless := i >= 2
			if share := u.KafkaShare; share == 0 || diskless && share > 0.5 || !diskless && share < 1 {
				t.Errorf("%s, %s: Kafka stores %.3f of the payload's bytes", w.Name, u.Target, share)
			}
			if i == 0 {
				continue
			}
			if went := u.Proxy.ObjectBytes / u.PayloadBytes; diskless && went < 0.5 || !diskless && went > 0 {
				t.Errorf("%s, %s: %.3f of the payload's bytes went to objects", w.Name, u.Target, went)
			}
			if u.Proxy.CPUSeconds <= 0 || u.Proxy.PeakMemory <= 0 {
				t.Errorf("%s, %s: no CPU or memory measured: %+v", w.Name, u.Target, u.Proxy)
			}
		}
		return r
	}
	load := func(name string) benchmarks.Workload {
		w, err := benchmarks.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	counts := []int{1, manyProducers}
	if *rounds < 4 { // no test over fewer can show a difference
		counts = counts[:1]
	}
	for _, producers := range counts {
		w := load("steady")
		w.Duration, w.WarmUp, w.Streams[0].Rate = benchmarks.Duration(*steady), benchmarks.Duration(*warmUp), benchmarks.Rate(*rate)
		if w.Streams[0].Producers = producers; producers > 1 {
			w.Name = fmt.Sprintf("%s by %d", w.Name, producers)
		}
		steadies = append(steadies, run(w))
	}
	for _, class := range []string{"enrichment", "telemetry"} {
		puts[class] = putQuantiles(t, s, class, 0.5, 0.99)
	}
	w := load("bulk")
	w.Streams[0].Records = *bulkMiB << 20 / int(w.Streams[0].Size)
	printTierGoals(steadies, run(w), puts)
}

// manyProducers share a rate so that none of them has the five requests in flight
// that a client waits after: one alone does, at any linger, and then its records wait
// in the client for what was sent before them, which no goal is about.
const manyProducers = 50

// putQuantiles are ms of the PUTs of a class since sluice began, by the native
// histogram, and within a bucket, a twentieth wide, by its middle.
func putQuantiles(t *testing.T, s *sluiceProcess, class string, quantiles ...float64) (ms []float64) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.admin+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", string(expfmt.NewFormat(expfmt.TypeProtoDelim))) // text has no native histograms
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var h *dto.Histogram
	for in := expfmt.NewDecoder(resp.Body, expfmt.ResponseFormat(resp.Header)); ; {
		var family dto.MetricFamily
		if err := in.Decode(&family); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, m := range family.GetMetric() {
			if family.GetName() == "sluice_diskless_put_seconds" && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == class {
				h = m.GetHistogram()
			}
		}
	}
	if h.GetSampleCount() == 0 || len(h.GetPositiveSpan()) == 0 {
		t.Fatalf("sluice has measured no PUT of %s", class)
	}
	width := math.Exp2(math.Exp2(-float64(h.GetSchema())))
	var middles, counts []float64
	index, count := int32(0), int64(0)
	deltas := h.GetPositiveDelta()
	for _, span := range h.GetPositiveSpan() {
		index += span.GetOffset()
		for range span.GetLength() {
			count += deltas[0]
			deltas = deltas[1:]
			middles, counts = append(middles, math.Pow(width, float64(index)-0.5)*1e3), append(counts, float64(count))
			index++
		}
	}
	for _, q := range quantiles {
		left := q * float64(h.GetSampleCount())
		i := 0
		for ; i < len(counts)-1 && left > counts[i]; i++ {
			left -= counts[i]
		}
		ms = append(ms, middles[i])
	}
	return ms
}

// printTierGoals says which goals of the diskless classes a run met.
func printTierGoals(steadies []*benchmarks.Report, bulk *benchmarks.Report, puts map[string][]float64) {
	m := newMarkdown()
	m.head("Goals; p is of a Mann–Whitney test over the rounds, for what was measured in each of them:", "goal", "for", "bound", "measured", "p", "")
	acked := func(r *benchmarks.Report, target, measure string) []float64 {
		i := slices.IndexFunc(r.Summaries, func(s benchmarks.Summary) bool { return s.Target == target })
		return r.Summaries[i].Measures[measure].Rounds
	}
	lingers := map[string]float64{"enrichment": 50, "telemetry": 250} // ms, the classes' defaults
	for _, steady := range steadies {
		for _, class := range slices.Sorted(maps.Keys(puts)) {
			for _, g := range []struct {
				what, measure, quantile string
				apart                   float64 // ms, without direct Kafka
			}{
				{"ack p50 ≤ linger/2 + PUT p50 + direct p50 + 5 ms", "produce_p50_ms", fmt.Sprintf("PUT p50 %.1f ms", puts[class][0]), lingers[class]/2 + puts[class][0] + 5},
				{"ack p99 ≤ linger + PUT p99 + direct p99 + 10 ms", "produce_p99_ms", fmt.Sprintf("PUT p99 %.1f ms", puts[class][1]), lingers[class] + puts[class][1] + 10},
			} {
				measured, bound := acked(steady, class, g.measure), slices.Clone(acked(steady, "direct", g.measure))
				for i := range bound {
					bound[i] += g.apart
				}
				said, p := verdict(measured, bound)
				m.row(g.what, class+", "+steady.Workload.Name, fmt.Sprintf("%.4g ms (%s)", median(bound), g.quantile), spreadText("%.4g", measured)+" ms", p, said)
			}
		}
	}
	for _, r := range append(slices.Clone(steadies), bulk) {
		for _, u := range r.Usage[2:] {
			said := "missed"
			if u.KafkaShare <= 0.01 {
				said = "met"
			}
			if r != bulk {
				said = "no goal: batches are of what came meanwhile"
			}
			m.row("bytes left in Kafka ≤ 1 % of the payload", u.Target+", "+r.Workload.Name, "1 %", fmt.Sprintf("%.2f %%", 100*u.KafkaShare), "–", said)
		}
	}
	m.end()
}
