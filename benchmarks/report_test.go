package benchmarks

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// planted is a report whose rounds are made up: produce p50 by target.
func planted(t *testing.T, change func(*Report), p50 map[string][]float64) *Report {
	t.Helper()
	w, err := Load("steady")
	if err != nil {
		t.Fatal(err)
	}
	r := newReport(Options{Workload: w, Client: "franz-go", Version: "test", Command: []string{"sluice", "bench"}})
	for _, name := range []string{"direct", "sluice", "other"} {
		if p50[name] == nil {
			continue
		}
		r.Targets = append(r.Targets, TargetInfo{Target: Target{Name: name, Bootstrap: []string{"host:9092"}}, Kafka: "v4.3", Brokers: 3, Replication: 3, KafkaBytes: 1e6})
	}
	for i := range p50["direct"] {
		for _, target := range r.Targets {
			v := p50[target.Name][i]
			s := StreamResult{
				Stream: "main", Rate: 5000, Achieved: 5000, MBPerSecond: 5.12, Acked: 300_000, bytes: 300_000 * 1024, delivered: 300_000 * 1024,
				Produce:  Latency{Count: 300_000, P50: v, P90: 2 * v, P99: 4 * v, P999: 8 * v, Max: 20 * v},
				EndToEnd: Latency{Count: 300_000, P50: v + 0.1, P90: 2*v + 0.1, P99: 4*v + 0.1, P999: 8 * v, Max: 20 * v},
				produce:  newHistogram(), endToEnd: newHistogram(),
			}
			for n := range 60 {
				s.Seconds = append(s.Seconds, Second{At: n, Records: 5000, P50: v, P99: v * (4 + float64(n%7)/3)})
			}
			for n := range 10_000 {
				x := time.Duration(v * (0.5 + 0.0001*float64(n) + 50/float64(10_001-n)) * float64(time.Millisecond))
				record(s.produce, x)
				record(s.endToEnd, x+100*time.Microsecond)
			}
			r.Rounds = append(r.Rounds, Round{Round: i + 1, Target: target.Name, Streams: []StreamResult{s}})
		}
	}
	if change != nil {
		change(r)
	}
	r.Ended = r.Started.Add(time.Hour)
	r.finish(nil)
	return r
}

func verdict(t *testing.T, r *Report, target, measure string) Comparison {
	t.Helper()
	for _, c := range r.Comparisons {
		if c.Target == target && c.Measure == measure {
			return c
		}
	}
	t.Fatalf("no comparison of %s by %s in %+v", target, measure, r.Comparisons)
	return Comparison{}
}

var five = []float64{1, 1.01, 1.02, 1.03, 1.04}

func TestADifferenceIsSaidOnlyWhenItIsShown(t *testing.T) {
	for _, tt := range []struct {
		name     string
		sluice   []float64
		want     Verdict
		sentence string
	}{
		{"apart in every round", []float64{2, 2.01, 2.02, 2.03, 2.04}, Worse, "sluice, produce p50: 2.02 ms (2.00 ms–2.04 ms) against 1.02 ms of direct (1.00 ms–1.04 ms): slower by 1.00 ms, 1.98 × (p = 0.008)."},
		{"below in every round", []float64{0.5, 0.51, 0.52, 0.53, 0.54}, Better, "faster by 0.50 ms, 0.51 × (p = 0.008)"},
		{"mixed", []float64{0.9, 1.005, 1.015, 1.2, 1.3}, Unshown, "no difference shown (p = "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := verdict(t, planted(t, nil, map[string][]float64{"direct": five, "sluice": tt.sluice}), "sluice", "produce_p50_ms")
			if c.Verdict != tt.want || !strings.Contains(c.Sentence, tt.sentence) {
				t.Errorf("%s: %s", c.Verdict, c.Sentence)
			}
		})
	}
}

func TestThreeRoundsShowNothingAndTheReportSaysSo(t *testing.T) {
	r := planted(t, nil, map[string][]float64{"direct": {1, 1.1, 1.2}, "sluice": {9, 9.1, 9.2}})
	if c := verdict(t, r, "sluice", "produce_p50_ms"); c.Verdict != Unshown {
		t.Errorf("%+v", c)
	}
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "fewer than 4 rounds") {
		t.Errorf("notes: %s", notes)
	}
}

func TestSaturatedRoundsAreNotCompared(t *testing.T) {
	r := planted(t, func(r *Report) {
		for i := range r.Rounds {
			if r.Rounds[i].Target == "sluice" && r.Rounds[i].Round > 2 {
				r.Rounds[i].Streams[0].Saturated = true
			}
		}
	}, map[string][]float64{"direct": five, "sluice": {2, 2, 2, 2, 2}})
	c := verdict(t, r, "sluice", "produce_p50_ms")
	if c.Verdict != Saturated || !strings.Contains(c.Sentence, "sluice was saturated in 3 of 5 rounds") {
		t.Errorf("%+v", c)
	}
	if v := r.Verdicts(); len(v) != 1 || v[0].Verdict != Saturated {
		t.Errorf("%+v", v)
	}
	said := 0
	for _, c := range r.Comparisons {
		if c.Sentence != "" {
			said++
		}
	}
	if said != 1 {
		t.Errorf("said %d times that it is not compared", said)
	}
	if s, _ := r.summary("", "main", "sluice"); s.Saturated != 3 {
		t.Errorf("%+v", s)
	}
}

// What a report's JSON says can be read into the same types again.
func TestAReportIsReadBack(t *testing.T) {
	r := planted(t, func(r *Report) {
		r.Workload.Streams = append(r.Workload.Streams, Stream{Name: "bulk", Rate: MaxRate, Linger: Duration(time.Second)})
	}, map[string][]float64{"direct": five})
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got Report
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Workload, r.Workload) || !reflect.DeepEqual(got.Summaries, r.Summaries) {
		t.Errorf("%+v and %+v", got.Workload, r.Workload)
	}
}

// Who waits beside bulk that is not taken waits beside less than was meant.
func TestBulkThatWasNotTakenIsNamed(t *testing.T) {
	r := planted(t, func(r *Report) {
		r.Workload.Streams = append(r.Workload.Streams, Stream{Name: "bulk", Rate: 20_000})
		for i := range r.Rounds {
			full := r.Rounds[i].Target == "sluice" && r.Rounds[i].Round > 3
			r.Rounds[i].Streams = append(r.Rounds[i].Streams, StreamResult{Stream: "bulk", Rate: 20_000, Saturated: full})
		}
	}, map[string][]float64{"direct": five, "sluice": {2, 2, 2, 2, 2}})
	const want = "Beside it bulk of sluice was saturated in 2 of 5 rounds."
	if c := verdict(t, r, "sluice", "produce_p50_ms"); c.Verdict != Worse || !strings.HasPrefix(c.Sentence, "sluice, main, produce p50: ") || !strings.HasSuffix(c.Sentence, want) {
		t.Error(c.Sentence)
	}
	if v := r.Verdicts(); !strings.HasSuffix(v[0].Text, want) {
		t.Error(v[0].Text)
	}
}

func TestAGeneratorInTheWayIsNamed(t *testing.T) {
	r := planted(t, func(r *Report) { r.Rounds[0].Generator.Bottleneck = "it used 99 % of its cores" }, map[string][]float64{"direct": five, "sluice": {2, 2, 2, 2, 2}})
	if c := verdict(t, r, "sluice", "produce_p50_ms"); !strings.Contains(c.Sentence, "in the way in 1 of 10 runs") {
		t.Error(c.Sentence)
	}
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "1 of 10 runs the generator") {
		t.Error(notes)
	}
}

func TestLostRecordsComeFirst(t *testing.T) {
	r := planted(t, func(r *Report) { r.Rounds[3].Streams[0].Missing = 2 }, map[string][]float64{"direct": five, "sluice": five})
	var out bytes.Buffer
	r.Print(&out)
	if !r.Unsound() || !strings.Contains(out.String(), "RECORDS WERE LOST, DOUBLED OR CHANGED: 2") || !strings.Contains(out.String(), "2 MISSING") {
		t.Error(out.String())
	}
}

func TestAPriceAppearsWhereSomebodyKnowsIt(t *testing.T) {
	r := planted(t, nil, map[string][]float64{"direct": five, "sluice": five})
	head, _ := r.UsageTable()
	if strings.Contains(strings.Join(head, " "), "per TB") {
		t.Error("a column for money that nobody gave")
	}
	r.Usage = nil
	r.use(func(u Usage) (Money, bool) {
		return Money{PerTB: 12.5, Currency: "$", Prices: "list"}, u.Target == "sluice"
	})
	head, rows := r.UsageTable()
	if head[len(head)-1] != "per TB" || rows[0][len(head)-1] != "-" || rows[1][len(head)-1] != "$12.50" {
		t.Errorf("%v %v", head, rows)
	}
}

// The names in the JSON are what README.md describes; a change breaks readers.
func TestTheJSONIsStable(t *testing.T) {
	r := planted(t, nil, map[string][]float64{"direct": five, "sluice": five})
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var top map[string]any
	if err := json.Unmarshal(b.Bytes(), &top); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"format", "version", "command", "started", "ended", "interrupted", "machine", "client", "clock", "workload", "targets", "rounds", "summaries", "comparisons", "usage"} {
		if _, ok := top[name]; !ok {
			t.Errorf("no field %s", name)
		}
	}
	sum := top["summaries"].([]any)[1].(map[string]any)
	m := sum["measures"].(map[string]any)["produce_p99_ms"].(map[string]any)
	if sum["target"] != "sluice" || m["median"] != 4.08 || len(m["rounds"].([]any)) != 5 {
		t.Errorf("%v", sum)
	}
	curve := sum["produce_curve"].([]any)
	if first, last := curve[0].(map[string]any), curve[len(curve)-1].(map[string]any); first["percentile"] != 0.0 || last["percentile"] != 100.0 || len(curve) < 20 {
		t.Errorf("%v", curve)
	}
	if top["workload"].(map[string]any)["duration"] != "1m0s" {
		t.Errorf("%v", top["workload"])
	}
}

// Who keeps up has achieved its rate whatever its latency is; whose queue grows
// has not; a pause is not a queue.
func TestSaturationIsAQueueThatGrows(t *testing.T) {
	start := time.Now()
	const seconds, rate = 20, 1000
	for _, tt := range []struct {
		name    string
		latency func(i int) time.Duration
		least   float64
		most    float64
	}{
		{"fast", func(int) time.Duration { return time.Millisecond }, 1000, 1000},
		{"slow, but it keeps up", func(i int) time.Duration { return time.Duration(400-i%250) * time.Millisecond }, 1000, 1000},
		{"a pause at the end", func(i int) time.Duration { return max(time.Millisecond, time.Duration(i-19_000)*time.Millisecond/2) }, 1000, 1000},
		{"two percent too slow", func(i int) time.Duration { return time.Duration(i) * 20 * time.Microsecond }, 980, 985},
		{"half as fast", func(i int) time.Duration { return time.Duration(i) * time.Millisecond }, 500, 530},
	} {
		r := newRecorder(1, 100, start, start, start.Add(seconds*time.Second))
		for i := range seconds * rate {
			due := start.Add(time.Duration(i) * time.Second / rate)
			r.done(0, i, due, due.Add(tt.latency(i)), nil)
		}
		if got := r.achieved(); got < tt.least || got > tt.most {
			t.Errorf("%s: achieved %.1f, want %v to %v", tt.name, got, tt.least, tt.most)
		}
	}
}

func TestErrorsAreNotAchieved(t *testing.T) {
	start := time.Now()
	r := newRecorder(1, 100, start, start, start.Add(time.Second))
	for i := range 100 {
		var err error
		if i%2 == 0 {
			err = errUnsent
		}
		due := start.Add(time.Duration(i) * 10 * time.Millisecond)
		r.done(0, i, due, due.Add(time.Second), err)
	}
	if got := r.achieved(); got != 50 {
		t.Errorf("achieved %v of 100, half of which were errors", got)
	}
	if r.errors != 50 || r.all.TotalCount() != 100 {
		t.Errorf("%d errors, %d latencies: those of errors count too", r.errors, r.all.TotalCount())
	}
}

func TestTheLedgerFindsWhatIsWrong(t *testing.T) {
	v := newValues(100)
	l := ledger{run: 7, seen: make([]set, 2)}
	due := time.Unix(0, 1234567890)
	value := v.make(100, 7, 1, 500, due)
	if lane, at, ok := l.take(value); !ok || lane != 1 || !at.Equal(due) {
		t.Fatal("its own record is not taken")
	}
	if _, _, ok := l.take(value); ok || l.doubled != 1 {
		t.Error("a record twice is not noticed")
	}
	if _, _, ok := l.take(v.make(100, 6, 1, 501, due)); ok || l.doubled+l.changed != 1 {
		t.Error("a record of another run is no fault, and not counted")
	}
	spoilt := v.make(100, 7, 1, 502, due)
	spoilt[50]++
	short := v.make(100, 7, 1, 503, due)[:60]
	for _, bad := range [][]byte{spoilt, short, nil, v.make(100, 7, 2, 1, due)} {
		l.take(bad)
	}
	if l.changed != 4 {
		t.Errorf("%d changed, want 4", l.changed)
	}
	var acked set
	for n := range 1000 {
		acked.add(n)
	}
	if got := acked.without(&l.seen[1]); got != 999 {
		t.Errorf("%d of 1000 are missing, want 999", got)
	}
}

func TestMetricsAreRead(t *testing.T) {
	s, err := parseSamples(strings.NewReader("# HELP x y\nprocess_cpu_seconds_total 12.5\nsluice_objstore_requests_total{store=\"a b\",op=\"put\",outcome=\"ok\"} 3\nsluice_objstore_requests_total{store=\"}\",op=\"put\",outcome=\"full\"} 4 1700000000\nsluice_objstore_requests_total{op=\"get\"} 1e3\n"))
	if err != nil {
		t.Fatal(err)
	}
	if cpu, puts, gets := s.sum("process_cpu_seconds_total", ""), s.sum("sluice_objstore_requests_total", `op="put"`), s.sum("sluice_objstore_requests_total", `op="get"`); cpu != 12.5 || puts != 7 || gets != 1000 {
		t.Errorf("cpu %v, puts %v, gets %v", cpu, puts, gets)
	}
	for _, bad := range []string{"<html>", "x{a=\"b\" 1", "x"} {
		if _, err := parseSamples(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is no metrics, and taken", bad)
		}
	}
}

func TestGeneratorJudgesItself(t *testing.T) {
	full := 0.99
	for _, tt := range []struct {
		g    Generator
		want string
	}{
		{Generator{Sends: 1000, LateSends: 5, CPUShare: 0.5, HiccupP99: 0.2}, ""},
		{Generator{Sends: 1000, LateSends: 50}, "5.0 % of the sends left late"},
		{Generator{CPUShare: 0.9}, "90 % of its cores"},
		{Generator{HiccupP99: 12}, "12 ms too long"},
		{Generator{MachineBusy: &full}, "cores were 99 % busy"},
	} {
		tt.g.judge()
		if (tt.want == "") != (tt.g.Bottleneck == "") || !strings.Contains(tt.g.Bottleneck, tt.want) {
			t.Errorf("%+v: want %q", tt.g, tt.want)
		}
	}
}

func ExampleSource() {
	text, err := Source("burst")
	fmt.Print(string(text), err)
	// Output:
	// name: burst
	// about: Each ten seconds end with two at five times the rate.
	// partitions: 6
	// warm_up: 5s
	// duration: 60s
	// streams:
	//   - { name: main, rate: 2000, size: 1KiB, consumers: 1, burst: { times: 5, for: 2s, every: 10s } }
	// <nil>
}
