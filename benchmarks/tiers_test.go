package benchmarks_test

import (
	"bufio"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

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
	bootstrap string
	admin     string
	log       string
	pid       int
	diskless  func(node int) string // its diskless face
	program   string
	config    string
}

const nodeIDs = 8

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
		diskless: func(node int) string { return fmt.Sprintf("127.0.0.1:%d", port+2+2*node+1) }, program: program, config: filepath.Join(dir, "sluice.yaml"),
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
  default: { url: "s3://%s/benchmarks", endpoint: "%s", access_key: "%s", secret_key: "%s" }
topics:
  - { match: "*-enrichment", class: enrichment }
  - { match: "*-telemetry", class: telemetry }
`, s3.Bucket, s3.Endpoint, s3.AccessKey, s3.SecretKey))
	through := func(name, suffix string) benchmarks.Target {
		return benchmarks.Target{Name: name, Bootstrap: []string{s.bootstrap}, Metrics: []string{"http://" + s.admin + "/metrics"}, Topic: benchmarks.DefaultTopic + suffix}
	}
	targets := []benchmarks.Target{
		{Name: "direct", Bootstrap: k.Bootstrap(), Topic: benchmarks.DefaultTopic},
		through("low-latency", ""),
		through("enrichment", "-enrichment"),
		through("telemetry", "-telemetry"),
	}
	reports := map[string]*benchmarks.Report{}
	var puts []float64
	for _, name := range []string{"steady", "bulk"} {
		w, err := benchmarks.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "steady" {
			w.Duration, w.WarmUp, w.Streams[0].Rate = benchmarks.Duration(*steady), benchmarks.Duration(*warmUp), benchmarks.Rate(*rate)
		} else {
			w.Streams[0].Records = *bulkMiB << 20 / int(w.Streams[0].Size)
		}
		r, err := benchmarks.Run(t.Context(), benchmarks.Options{
			Targets: targets, Workload: w, Rounds: *rounds, Client: "franz-go", Version: "under test",
			Progress: func(line string) { t.Log(line) },
		})
		if err != nil {
			t.Fatalf("%v\nsluice says:\n%s", err, s.logged())
		}
		r.Print(os.Stdout)
		reports[name] = r
		if name == "steady" {
			puts = putQuantiles(t, s, 0.5, 0.99)
		}
		for _, sum := range r.Summaries {
			if sum.Rounds != *rounds || sum.Errors > 0 || sum.Missing+sum.Doubled+sum.Changed > 0 {
				t.Errorf("%s: %+v\nsluice says:\n%s", name, sum, s.logged())
			}
		}
		for i, u := range r.Usage {
			diskless := i >= 2
			if share := u.KafkaShare; share == 0 || diskless && share > 0.5 || !diskless && share < 1 {
				t.Errorf("%s, %s: Kafka stores %.3f of the payload's bytes", name, u.Target, share)
			}
			if i == 0 {
				continue
			}
			if went := u.Proxy.ObjectBytes / u.PayloadBytes; diskless && went < 0.5 || !diskless && went > 0 {
				t.Errorf("%s, %s: %.3f of the payload's bytes went to objects", name, u.Target, went)
			}
			if u.Proxy.CPUSeconds <= 0 || u.Proxy.PeakMemory <= 0 {
				t.Errorf("%s, %s: no CPU or memory measured: %+v", name, u.Target, u.Proxy)
			}
		}
	}
	printTierGoals(reports["steady"], reports["bulk"], puts)
}

// putQuantiles are upper bounds in ms, of all PUTs since sluice began.
func putQuantiles(t *testing.T, s *sluiceProcess, quantiles ...float64) (ms []float64) {
	t.Helper()
	resp, err := http.Get("http://" + s.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var bounds, below []float64 // below each bound, of all stores and classes
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		m := putBucket.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		le, err1 := strconv.ParseFloat(m[1], 64)
		n, err2 := strconv.ParseFloat(m[2], 64)
		if err1 != nil || err2 != nil {
			t.Fatal(lines.Text())
		}
		i, found := slices.BinarySearch(bounds, le)
		if !found {
			bounds, below = slices.Insert(bounds, i, le), slices.Insert(below, i, 0)
		}
		below[i] += n
	}
	if len(bounds) == 0 || below[len(below)-1] == 0 {
		t.Fatal("sluice has measured no PUT")
	}
	for _, q := range quantiles {
		i := slices.IndexFunc(below, func(n float64) bool { return n >= q*below[len(below)-1] })
		ms = append(ms, bounds[i]*1e3)
	}
	return ms
}

var putBucket = regexp.MustCompile(`^sluice_diskless_put_seconds_bucket\{(?:.*,)?le="([^"]+)"\} (\S+)`)

// printTierGoals says which goals of the diskless classes a run met.
func printTierGoals(steady, bulk *benchmarks.Report, puts []float64) {
	fmt.Printf("\nGoals (PUT p50 ≤ %.0f ms, p99 ≤ %.0f ms, by the histogram's buckets):\n\n", puts[0], puts[1])
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(w, "| "+strings.Join(cells, "\t| ")+"\t|") }
	row("goal", "class", "bound", "measured", "")
	row(slices.Repeat([]string{"---"}, 5)...)
	goal := func(what, class, unit string, bound, measured float64) {
		verdict := "missed"
		if measured <= bound {
			verdict = "met"
		}
		row(what, class, fmt.Sprintf("%.4g %s", bound, unit), fmt.Sprintf("%.4g %s", measured, unit), verdict)
	}
	acked := func(target, measure string) float64 {
		i := slices.IndexFunc(steady.Summaries, func(s benchmarks.Summary) bool { return s.Target == target })
		return steady.Summaries[i].Measures[measure].Median
	}
	lingers := map[string]float64{"enrichment": 50, "telemetry": 250} // ms, the classes' defaults
	for _, class := range slices.Sorted(maps.Keys(lingers)) {
		goal("ack p50 ≤ linger/2 + PUT p50 + direct p50 + 5 ms", class, "ms", lingers[class]/2+puts[0]+acked("direct", "produce_p50_ms")+5, acked(class, "produce_p50_ms"))
		goal("ack p99 ≤ linger + PUT p99 + direct p99 + 10 ms", class, "ms", lingers[class]+puts[1]+acked("direct", "produce_p99_ms")+10, acked(class, "produce_p99_ms"))
	}
	lowLatency := bulk.Usage[1].Proxy.CPUSecondsPerGB
	for _, u := range bulk.Usage[2:] {
		goal("CPU a GB, produced and fetched, ≤ 2.5 × low latency's", u.Target, "s/GB", 2.5*lowLatency, u.Proxy.CPUSecondsPerGB)
		goal("bytes left in Kafka ≤ 1 % of the payload", u.Target, "%", 1, 100*u.KafkaShare)
	}
	_ = w.Flush()
	fmt.Print("\nWhat 40 GiB/s would need, if CPU and requests grow with the load as in bulk, each byte is consumed once, and half of each core is to spare:\n\n")
	row("tier", "GiB/s per core", "cores", "PUT/s", "GET/s", "GiB/s left on Kafka, one replica")
	row(slices.Repeat([]string{"---"}, 6)...)
	const target, gib = 40.0, 1 << 30
	for _, u := range bulk.Usage[1:] {
		perCore := u.PayloadBytes / gib / u.Proxy.CPUSeconds
		each := func(n float64) string { return humanize.Comma(int64(n / u.PayloadBytes * target * gib)) }
		row(u.Target, fmt.Sprintf("%.3f", perCore), fmt.Sprintf("%.0f", 2*target/perCore), each(u.Proxy.Puts), each(u.Proxy.Gets), fmt.Sprintf("%.2f", target*u.KafkaShare))
	}
	_ = w.Flush()
}
