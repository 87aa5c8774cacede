package benchmarks_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/benchmarks"
	"github.com/sluice-kafka/sluice/harness"
)

// The defaults are the short form: that all of it works at its size. make
// bench-workloads runs the long one, which is worth reading.
var (
	eachNames    = flag.String("each-workloads", "many-connections,catch-up", "which workloads")
	eachRounds   = flag.Int("each-rounds", 1, "rounds; each goes over all targets")
	eachDuration = flag.Duration("each-duration", time.Second, "how long each run lasts")
	eachWarmUp   = flag.Duration("each-warm-up", 500*time.Millisecond, "the time before that, not measured")
	eachClasses  = flag.String("each-classes", "control,telemetry", "classes that are compared with direct Kafka")
	eachFiles    = flag.String("each-files", "", "a folder that keeps each workload's report, as JSON and as a page")
)

// `sluice bench -c` is run as a user would, for each workload with as many
// partitions and connections as it comes with. That nothing fails, is lost or
// stays behind is judged, times are not.
func TestLongEachWorkload(t *testing.T) {
	harness.Long(t)
	k := harness.StartKafka(t, harness.KafkaOptions{Properties: map[string]string{
		"log.segment.delete.delay.ms": "1000", // workloads must not fill the disk
	}})
	s3 := harness.StartS3(t)
	s := startSluice(t, k, fmt.Sprintf(`stores:
  default: %s
topics:
  - { match: "*-in-telemetry", class: telemetry }
  - { match: "*-in-enrichment", class: enrichment }
`, s3Store(s3, s3.Endpoint, "benchmarks")))
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Bootstrap()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dir := *eachFiles
	if dir == "" {
		dir = t.TempDir()
	}
	var reports []*benchmarks.Report
	for _, name := range strings.Split(*eachNames, ",") {
		reports = append(reports, benchOne(t, s, name, filepath.Join(dir, name)))
		awaitNoTopics(t, kadm.NewClient(client), name)
	}
	printEach(reports)
}

// awaitNoTopics gives brokers time to hear of deletions that the controller has
// answered.
func awaitNoTopics(t *testing.T, admin *kadm.Client, workload string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		topics, err := admin.ListTopics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		left := slices.DeleteFunc(topics.Names(), func(topic string) bool {
			return !strings.HasPrefix(topic, strings.TrimSuffix(benchmarks.DefaultTopic, "*"))
		})
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: topics were left behind: %v", workload, left)
			return
		}
	}
}

// benchOne writes its reports to file.json and file.html.
func benchOne(t *testing.T, s *sluiceProcess, name, file string) *benchmarks.Report {
	t.Helper()
	w, err := benchmarks.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	duration := *eachDuration
	for _, st := range w.Streams {
		if st.Burst != nil {
			duration = max(duration, time.Duration(st.Burst.Every))
		}
	}
	warmUp := *eachWarmUp
	if w.Partitions > 100 { // each has a first batch, and brokers make files for it
		warmUp = min(5*warmUp, time.Duration(w.WarmUp))
	}
	args := []string{
		"bench", "-c", s.config, "--workload", name, "--rounds", fmt.Sprint(*eachRounds),
		"--duration", duration.String(), "--warm-up", warmUp.String(), "--json", file + ".json", "--html", file + ".html",
	}
	for _, class := range strings.Split(*eachClasses, ",") {
		args = append(args, "--class", class)
	}
	bench := exec.CommandContext(t.Context(), s.program, args...)
	bench.Stdout, bench.Stderr = os.Stdout, os.Stdout
	if err := bench.Run(); err != nil {
		t.Fatalf("sluice %s: %v\nsluice serve says:\n%s", strings.Join(args, " "), err, s.logged())
	}
	text, err := os.ReadFile(file + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var r benchmarks.Report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for _, sum := range r.Summaries {
		if sum.Rounds != *eachRounds || sum.Errors > 0 {
			t.Errorf("%s, %s %s %s: %d of %d rounds, %d errors", name, sum.Step, sum.Stream, sum.Target, sum.Rounds, *eachRounds, sum.Errors)
		}
	}
	page, err := os.ReadFile(file + ".html")
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"NaN", "Inf", "%!"} {
		if bytes.Contains(page, []byte(bad)) {
			t.Errorf("%s: %q is in the page", name, bad)
		}
	}
	return &r
}

func threeDigits(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// printEach is one table of all workloads.
func printEach(reports []*benchmarks.Report) {
	if len(reports) == 0 {
		return
	}
	targets := reports[0].Targets
	m := reports[0].Machine
	fmt.Printf("\nEach workload: %d CPUs for Kafka, the S3 server, sluice and the load; %d rounds of %v; medians, and how many times direct Kafka's (p by Mann–Whitney)\n\n", m.Cores, *eachRounds, *eachDuration)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(w, "| "+strings.Join(cells, "\t| ")+"\t|") }
	head := []string{"workload", ""}
	for _, t := range targets {
		head = append(head, t.Name)
	}
	row(head...)
	row(slices.Repeat([]string{"---"}, len(head))...)
	for _, r := range reports {
		title := r.Workload.Name
		line := func(what string, cell func(target string) string) {
			cells := []string{title, what}
			for _, t := range targets {
				cells = append(cells, cell(t.Name))
			}
			if slices.ContainsFunc(cells[2:], func(c string) bool { return c != "–" }) {
				row(cells...)
				title = ""
			}
		}
		seen := map[string]bool{}
		for _, sum := range r.Summaries {
			where := strings.TrimSpace(sum.Step)
			if len(r.Workload.Streams) > 1 {
				where = strings.Trim(sum.Stream+" "+where, " ")
			}
			if seen[where] {
				continue
			}
			seen[where] = true
			if where != "" {
				where = ", " + where
			}
			for _, of := range []struct{ title, name string }{
				{"ack p50 ms", "produce_p50_ms"}, {"ack p99 ms", "produce_p99_ms"},
				{"end-to-end p99 ms", "end_to_end_p99_ms"}, {"backlog read, MB/s", "catch_up_mb_per_second"},
			} {
				line(of.title+where, func(target string) string {
					own := r.Summaries[slices.IndexFunc(r.Summaries, func(s benchmarks.Summary) bool {
						return s.Step == sum.Step && s.Stream == sum.Stream && s.Target == target
					})]
					v := own.Measures[of.name]
					if len(v.Rounds) == 0 {
						return "–"
					}
					cell := threeDigits(v.Median)
					for _, c := range r.Comparisons {
						if c.Measure != of.name || c.Step != sum.Step || c.Stream != sum.Stream || c.Target != target || c.Against != "" {
							continue
						}
						if c.Verdict == benchmarks.Saturated {
							cell += " (saturated)"
						} else {
							cell += fmt.Sprintf(" (× %s, p = %.2g)", threeDigits(c.Ratio), c.P)
						}
					}
					return cell
				})
			}
		}
		use := func(target string) *benchmarks.ProxyUse {
			return r.Usage[slices.IndexFunc(r.Usage, func(u benchmarks.Usage) bool { return u.Target == target })].Proxy
		}
		line("sluice, CPU s/GB; peak MB", func(target string) string {
			u := use(target)
			if u == nil {
				return "–"
			}
			return fmt.Sprintf("%.2f; %.0f", u.CPUSecondsPerGB, u.PeakMemory/1e6)
		})
		line("runs saturated; the generator in the way", func(target string) string {
			full, bound, all := 0, 0, 0
			for _, rd := range r.Rounds {
				if rd.Target != target {
					continue
				}
				all++
				if slices.ContainsFunc(rd.Streams, func(s benchmarks.StreamResult) bool { return s.Saturated }) {
					full++
				}
				if rd.Generator.Bottleneck != "" {
					bound++
				}
			}
			return fmt.Sprintf("%d; %d of %d", full, bound, all)
		})
	}
	_ = w.Flush()
}
