package benchmarks

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/dustin/go-humanize"
)

// Format is the version of the report's JSON: fields are added without changing
// it, and never change their meaning under it.
const Format = 1

// Report is all that a comparison saw. README.md describes the JSON.
type Report struct {
	Format      int          `json:"format"`
	Version     string       `json:"version"`
	Command     []string     `json:"command,omitempty"`
	Started     time.Time    `json:"started"`
	Ended       time.Time    `json:"ended"`
	Interrupted bool         `json:"interrupted"`
	Machine     Machine      `json:"machine"`
	Client      string       `json:"client"`
	Clock       string       `json:"clock"`
	Workload    Workload     `json:"workload"`
	Targets     []TargetInfo `json:"targets"`
	Rounds      []Round      `json:"rounds"`
	Summaries   []Summary    `json:"summaries"`
	Comparisons []Comparison `json:"comparisons"`
	Usage       []Usage      `json:"usage"`
	Notes       []string     `json:"notes,omitempty"` // what to know before believing it
}

// TargetInfo is a target as it was found.
type TargetInfo struct {
	Target
	ClusterID   string  `json:"cluster_id,omitempty"`
	Brokers     int     `json:"brokers"`
	Kafka       string  `json:"kafka,omitempty"` // what its API versions look like
	Replication int     `json:"replication"`
	KafkaBytes  float64 `json:"kafka_bytes"` // of its topics at the end; one replica
}

// Round is one target's turn, at one step.
type Round struct {
	Round     int            `json:"round"`
	Step      string         `json:"step,omitempty"`
	Target    string         `json:"target"`
	Started   time.Time      `json:"started"`
	Streams   []StreamResult `json:"streams"`
	Generator Generator      `json:"generator"`
	Proxy     *ProxyUse      `json:"proxy,omitempty"`
	Error     string         `json:"error,omitempty"` // it did not take place
}

func (r Round) saturated() bool {
	for _, s := range r.Streams {
		if s.Saturated {
			return true
		}
	}
	return false
}

func (r Round) line(of int) string {
	head := fmt.Sprintf("round %d/%d  %-14s", r.Round, of, r.Target)
	if r.Step != "" {
		head += fmt.Sprintf("  %-12s", r.Step)
	}
	if r.Error != "" {
		return head + "  " + r.Error
	}
	for _, s := range r.Streams {
		head += "  "
		if len(r.Streams) > 1 {
			head += s.Stream + ": "
		}
		head += s.line()
	}
	if r.Generator.Bottleneck != "" {
		head += "  (generator: " + r.Generator.Bottleneck + ")"
	}
	return head
}

func (s StreamResult) line() string {
	var parts []string
	if s.Rate > 0 {
		parts = append(parts, fmt.Sprintf("ack p50 %s p99 %s", ms(s.Produce.P50), ms(s.Produce.P99)))
		if s.EndToEnd.Count > 0 {
			parts = append(parts, fmt.Sprintf("end-to-end p50 %s p99 %s", ms(s.EndToEnd.P50), ms(s.EndToEnd.P99)))
		}
	}
	if s.Rate != 0 {
		parts = append(parts, fmt.Sprintf("%.0f/s %.1f MB/s", s.Achieved, s.MBPerSecond))
	}
	if s.CatchUp > 0 {
		parts = append(parts, fmt.Sprintf("backlog read at %.1f MB/s", s.CatchUpRate))
	}
	if s.Saturated {
		parts = append(parts, "SATURATED")
	}
	if bad := s.trouble(); bad != "" {
		parts = append(parts, bad)
	}
	return strings.Join(parts, "  ")
}

// trouble is what must not happen at all.
func (s StreamResult) trouble() string {
	var parts []string
	for _, x := range []struct {
		n    int64
		what string
	}{{s.Errors, "errors"}, {int64(s.Missing), "MISSING"}, {int64(s.Doubled), "DOUBLED"}, {int64(s.Changed), "CHANGED"}} {
		if x.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	if s.FirstError != "" {
		parts = append(parts, "("+s.FirstError+")")
	}
	return strings.Join(parts, " ")
}

// Summary is what a target's stream did at a step, over all rounds.
type Summary struct {
	Step      string            `json:"step,omitempty"`
	Stream    string            `json:"stream"`
	Target    string            `json:"target"`
	Rate      Rate              `json:"rate"`
	Rounds    int               `json:"rounds"`
	Saturated int               `json:"saturated_rounds"`
	Generator int               `json:"generator_bound_rounds"` // in which the generator was in the way
	Errors    int64             `json:"errors"`
	Missing   int               `json:"missing"`
	Doubled   int               `json:"doubled"`
	Changed   int               `json:"changed"`
	Measures  map[string]Spread `json:"measures"`
	// Curves are percentiles of all rounds together.
	Produce  []Point `json:"produce_curve,omitempty"`
	EndToEnd []Point `json:"end_to_end_curve,omitempty"`
}

// Point is one percentile of a latency curve.
type Point struct {
	Percentile float64 `json:"percentile"`
	MS         float64 `json:"ms"`
}

// measure is a figure of a round that is summarized and compared.
type measure struct {
	name     string // in the JSON
	title    string
	unit     string
	more     bool // more is better
	compared bool // a verdict is worth a sentence
	of       func(StreamResult) (float64, bool)
}

func measures() []measure {
	produced := func(f func(Latency) float64) func(StreamResult) (float64, bool) {
		return func(s StreamResult) (float64, bool) { return f(s.Produce), s.Produce.Count > 0 && s.Rate > 0 }
	}
	delivered := func(f func(Latency) float64) func(StreamResult) (float64, bool) {
		return func(s StreamResult) (float64, bool) { return f(s.EndToEnd), s.EndToEnd.Count > 0 && s.Rate > 0 }
	}
	p50 := func(l Latency) float64 { return l.P50 }
	p90 := func(l Latency) float64 { return l.P90 }
	p99 := func(l Latency) float64 { return l.P99 }
	p999 := func(l Latency) float64 { return l.P999 }
	most := func(l Latency) float64 { return l.Max }
	return []measure{
		{"produce_p50_ms", "produce p50", "ms", false, true, produced(p50)},
		{"produce_p90_ms", "produce p90", "ms", false, false, produced(p90)},
		{"produce_p99_ms", "produce p99", "ms", false, true, produced(p99)},
		{"produce_p99_9_ms", "produce p99.9", "ms", false, false, produced(p999)},
		{"produce_max_ms", "produce max", "ms", false, false, produced(most)},
		{"end_to_end_p50_ms", "end-to-end p50", "ms", false, true, delivered(p50)},
		{"end_to_end_p90_ms", "end-to-end p90", "ms", false, false, delivered(p90)},
		{"end_to_end_p99_ms", "end-to-end p99", "ms", false, true, delivered(p99)},
		{"end_to_end_p99_9_ms", "end-to-end p99.9", "ms", false, false, delivered(p999)},
		{"end_to_end_max_ms", "end-to-end max", "ms", false, false, delivered(most)},
		{"achieved_per_second", "achieved", "/s", true, false, func(s StreamResult) (float64, bool) { return s.Achieved, s.Rate > 0 }},
		{"max_mb_per_second", "throughput", "MB/s", true, true, func(s StreamResult) (float64, bool) { return s.MBPerSecond, s.Rate == MaxRate }},
		{"catch_up_mb_per_second", "reading the backlog", "MB/s", true, true, func(s StreamResult) (float64, bool) { return s.CatchUpRate, s.CatchUp > 0 }},
	}
}

// Usage is what a target used for all that went through it: what a price can be
// put on.
type Usage struct {
	Target         string    `json:"target"`
	PayloadBytes   float64   `json:"payload_bytes"`   // acknowledged
	DeliveredBytes float64   `json:"delivered_bytes"` // to all consumers
	KafkaBytes     float64   `json:"kafka_bytes"`     // that one replica of its topics takes at the end
	KafkaShare     float64   `json:"kafka_share"`     // of the payload
	Replication    int       `json:"replication"`
	Seconds        float64   `json:"seconds"` // measured and warm-up, all rounds
	Proxy          *ProxyUse `json:"proxy,omitempty"`
	Money          *Money    `json:"money,omitempty"`
}

// Money is a price put on a Usage.
type Money struct {
	PerTB       float64  `json:"per_tb"` // 10^12 bytes of payload; without machines
	Currency    string   `json:"currency"`
	Prices      string   `json:"prices"` // the table it comes from
	Assumptions []string `json:"assumptions,omitempty"`
}

func newReport(o Options) *Report {
	return &Report{
		Format: Format, Version: o.Version, Command: o.Command, Started: time.Now(), Machine: thisMachine(), Client: o.Client,
		Clock: "one process produces and consumes, so both ends of a latency are read from one clock", Workload: o.Workload,
	}
}

// finish derives everything from the rounds.
func (r *Report) finish(price func(Usage) (Money, bool)) {
	r.summarize()
	r.compare()
	r.use(price)
	r.note()
}

func (r *Report) summarize() {
	for _, step := range r.Workload.Steps {
		for _, st := range r.Workload.at(step) {
			for _, t := range r.Targets {
				sum := Summary{Step: step.Name, Stream: st.Name, Target: t.Name, Rate: st.Rate, Measures: map[string]Spread{}}
				values := map[string][]float64{}
				produce, endToEnd := newHistogram(), newHistogram()
				for _, rd := range r.Rounds {
					if rd.Step != step.Name || rd.Target != t.Name {
						continue
					}
					for _, s := range rd.Streams {
						if s.Stream != st.Name {
							continue
						}
						sum.add(s, rd.Generator, values)
						if s.produce != nil {
							produce.Merge(s.produce)
							endToEnd.Merge(s.endToEnd)
						}
					}
				}
				if sum.Rounds == 0 {
					continue
				}
				for name, v := range values {
					sum.Measures[name] = spread(v)
				}
				if st.Rate > 0 {
					sum.Produce, sum.EndToEnd = curve(produce), curve(endToEnd)
				}
				r.Summaries = append(r.Summaries, sum)
			}
		}
	}
}

func (sum *Summary) add(s StreamResult, g Generator, values map[string][]float64) {
	sum.Rounds++
	sum.Errors += s.Errors
	sum.Missing += s.Missing
	sum.Doubled += s.Doubled
	sum.Changed += s.Changed
	if s.Saturated {
		sum.Saturated++
	}
	if g.Bottleneck != "" {
		sum.Generator++
	}
	for _, m := range measures() {
		if v, ok := m.of(s); ok {
			values[m.name] = append(values[m.name], v)
		}
	}
}

// curve has points evenly along 1 ÷ (1 − percentile), up to what the number of
// records can tell.
func curve(h *hdrhistogram.Histogram) (out []Point) {
	n := float64(h.TotalCount())
	if n == 0 {
		return nil
	}
	const perDecade = 8
	for i := 0; ; i++ {
		tail := math.Pow(10, -float64(i)/perDecade)
		if tail*n < 1 && i > 0 {
			break
		}
		p := 100 * (1 - tail)
		out = append(out, Point{math.Round(p*1e6) / 1e6, millis(h.ValueAtQuantile(p))})
	}
	return append(out, Point{100, millis(h.Max())})
}

func (r *Report) summary(step, stream, target string) (Summary, bool) {
	for _, s := range r.Summaries {
		if s.Step == step && s.Stream == stream && s.Target == target {
			return s, true
		}
	}
	return Summary{}, false
}

func (r *Report) use(price func(Usage) (Money, bool)) {
	for _, t := range r.Targets {
		u := Usage{Target: t.Name, KafkaBytes: t.KafkaBytes, Replication: t.Replication}
		for _, rd := range r.Rounds {
			if rd.Target != t.Name {
				continue
			}
			for _, s := range rd.Streams {
				u.PayloadBytes += float64(s.bytes)
				u.DeliveredBytes += float64(s.delivered)
			}
			u.Seconds += r.Workload.WarmUp.seconds() + r.Workload.Duration.seconds()
			if rd.Error == "" {
				u.PayloadBytes += float64(r.Workload.Backlog)
			}
			if rd.Proxy != nil {
				if u.Proxy == nil {
					u.Proxy = &ProxyUse{}
				}
				u.Proxy.add(*rd.Proxy)
			}
		}
		if u.PayloadBytes > 0 {
			u.KafkaShare = u.KafkaBytes / u.PayloadBytes
		}
		if u.Proxy != nil && u.PayloadBytes+u.DeliveredBytes > 0 {
			u.Proxy.CPUSecondsPerGB = u.Proxy.CPUSeconds / ((u.PayloadBytes + u.DeliveredBytes) / 1e9)
		}
		if price != nil {
			if m, ok := price(u); ok {
				u.Money = &m
			}
		}
		r.Usage = append(r.Usage, u)
	}
}

// note says what a reader should know first.
func (r *Report) note() {
	bound, failed, bad, begun := 0, 0, 0, 0
	why := ""
	for _, rd := range r.Rounds {
		if slices.ContainsFunc(rd.Streams, func(s StreamResult) bool {
			return s.Rate > 0 && s.Produce.P50 > 1000*r.Workload.Duration.seconds()
		}) {
			begun++
		}
		if rd.Generator.Bottleneck != "" {
			bound++
			why = rd.Generator.Bottleneck
		}
		if rd.Error != "" {
			failed++
		}
	}
	for _, s := range r.Summaries {
		bad += s.Missing + s.Doubled + s.Changed
	}
	add := func(format string, args ...any) { r.Notes = append(r.Notes, fmt.Sprintf(format, args...)) }
	if r.Interrupted {
		add("It was interrupted: the last round is not complete.")
	}
	if bad > 0 {
		add("RECORDS WERE LOST, DOUBLED OR CHANGED: %d. Look at that before any latency.", bad)
	}
	if failed > 0 {
		add("%d of %d runs did not take place; their errors are above.", failed, len(r.Rounds))
	}
	if bound > 0 {
		add("In %d of %d runs the generator, or the machine that it shares, was a bottleneck (in the last of them %s): latencies there are partly its own. Give it cores of its own, or lower the rate.", bound, len(r.Rounds), why)
	}
	if begun > 0 {
		add("In %d of %d runs half of the records waited longer than the %v that were measured: that shows how such a run begins, not how it goes on. Take a longer warm-up and duration.", begun, len(r.Rounds), r.Workload.Duration)
	}
	if n := len(r.roundNumbers()); n < 4 && len(r.Targets) > 1 {
		add("With fewer than 4 rounds no difference can be significant (Mann–Whitney, α = %.2f); take 5 or more.", alpha)
	}
	if r.Client == "sarama" {
		add("sarama is not idempotent here, because its idempotent producer keeps one request in flight.")
	}
	for _, u := range r.Usage {
		if u.Money != nil { // the same table for all
			add("Per TB of payload, without machines, by prices of %s, with %s; see sluice cost, --prices and --assume.", u.Money.Prices, strings.Join(u.Money.Assumptions, ", "))
			break
		}
	}
	var inside []string
	for _, t := range r.Targets {
		if t.InProcess {
			inside = append(inside, t.Name)
		}
	}
	if len(inside) > 0 {
		add("In the generator's own process: %s. CPU and memory there are not told apart, and a garbage collector is shared with the load.", strings.Join(inside, ", "))
	}
}

func (r *Report) roundNumbers() map[int]bool {
	n := map[int]bool{}
	for _, rd := range r.Rounds {
		n[rd.Round] = true
	}
	return n
}

// Unsound reports whether records were lost, doubled or changed, or a run did
// not take place.
func (r *Report) Unsound() bool {
	for _, s := range r.Summaries {
		if s.Missing+s.Doubled+s.Changed > 0 {
			return true
		}
	}
	for _, rd := range r.Rounds {
		if rd.Error != "" {
			return true
		}
	}
	return false
}

// WriteJSON writes the report as README.md describes it.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// Print shows the report to a person: a table, verdicts, and what to know.
func (r *Report) Print(out io.Writer) {
	fmt.Fprintf(out, "\n%s\n%s; %s; client %s\n", r.headline(), r.machine(), r.versions(), r.Client)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	head, rows := r.Table()
	fmt.Fprintln(w, "\n"+strings.Join(head, "\t"))
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	_ = w.Flush()
	fmt.Fprintln(out, "\nMedian of the rounds (least–most).")
	if head, rows = r.UsageTable(); len(rows) > 0 {
		fmt.Fprintln(w, "\n"+strings.Join(head, "\t"))
		for _, row := range rows {
			fmt.Fprintln(w, strings.Join(row, "\t"))
		}
		_ = w.Flush()
	}
	if len(r.Comparisons) > 0 {
		fmt.Fprintln(out)
		for _, v := range r.Verdicts() {
			fmt.Fprintln(out, "•", v.Text)
		}
	}
	if len(r.Notes) > 0 {
		fmt.Fprintln(out)
		for _, n := range r.Notes {
			fmt.Fprintln(out, "!", n)
		}
	}
}

func (r *Report) headline() string {
	w := r.Workload
	var streams []string
	for _, s := range w.Streams {
		switch {
		case s.Rate == MaxRate:
			streams = append(streams, fmt.Sprintf("%d records of %s as fast as they are taken", s.Records, bytesText(float64(s.Size))))
		case s.Rate > 0:
			text := fmt.Sprintf("%s/s of %s", s.Rate, bytesText(float64(s.Size)))
			if b := s.Burst; b != nil {
				text += fmt.Sprintf(", %d × as many for %v of each %v", b.Times, b.For, b.Every)
			}
			if s.Transaction > 0 {
				text += fmt.Sprintf(" in transactions of %d", s.Transaction)
			}
			streams = append(streams, text)
		}
	}
	if w.Connections > 0 {
		streams = append(streams, humanize.Comma(int64(w.Connections))+" idle connections")
	}
	if w.Backlog > 0 {
		streams = append(streams, "a backlog of "+bytesText(float64(w.Backlog)))
	}
	text := fmt.Sprintf("%s: %s; %d partitions, acks=all", w.Name, strings.Join(streams, " and "), w.Partitions)
	if w.Duration > 0 {
		text += fmt.Sprintf("; %s after %s of warm-up", w.Duration, w.WarmUp)
	}
	return text + fmt.Sprintf("; %d rounds", len(r.roundNumbers()))
}

func (r *Report) machine() string {
	m := r.Machine
	text := fmt.Sprintf("%d cores", m.Cores)
	if m.CPU != "" {
		text += " of " + m.CPU
	}
	if m.Memory > 0 {
		text += fmt.Sprintf(", %.0f GB", float64(m.Memory)/1e9)
	}
	return text + ", " + m.OS + "/" + m.Arch
}

func (r *Report) versions() string {
	parts := []string{"sluice " + r.Version, r.Machine.Go}
	for _, t := range r.Targets {
		if t.Kafka != "" {
			parts = append(parts, "Kafka "+t.Kafka)
			break
		}
	}
	return strings.Join(parts, ", ")
}

// shown are the columns of the table; those without a value are left out.
var shown = []string{"produce_p50_ms", "produce_p90_ms", "produce_p99_ms", "produce_p99_9_ms", "produce_max_ms", "end_to_end_p50_ms", "end_to_end_p99_ms", "achieved_per_second", "max_mb_per_second", "catch_up_mb_per_second"}

// Table is the summaries, ready to be shown.
func (r *Report) Table() (head []string, rows [][]string) {
	var cols []measure
	for _, name := range shown {
		for _, m := range measures() {
			if m.name != name {
				continue
			}
			for _, s := range r.Summaries {
				if len(s.Measures[name].Rounds) > 0 {
					cols = append(cols, m)
					break
				}
			}
		}
	}
	steps, streams := len(r.Workload.Steps) > 1, len(r.Workload.Streams) > 1
	head = append(head, "target")
	if steps {
		head = append(head, "step")
	}
	if streams {
		head = append(head, "stream")
	}
	for _, c := range cols {
		head = append(head, c.title)
	}
	head = append(head, "saturated", "errors")
	for _, s := range r.Summaries {
		row := []string{s.Target}
		if steps {
			row = append(row, s.Step)
		}
		if streams {
			row = append(row, s.Stream)
		}
		for _, c := range cols {
			v := s.Measures[c.name]
			if len(v.Rounds) == 0 {
				row = append(row, "-")
				continue
			}
			cell := c.text(v.Median)
			if strings.Contains(c.name, "p50") || strings.Contains(c.name, "p99_ms") || c.more {
				cell += fmt.Sprintf(" (%s–%s)", c.short(v.Least), c.short(v.Most))
			}
			row = append(row, cell)
		}
		saturated := "-"
		if s.Saturated > 0 {
			saturated = fmt.Sprintf("%d of %d", s.Saturated, s.Rounds)
		}
		trouble := StreamResult{Errors: s.Errors, Missing: s.Missing, Doubled: s.Doubled, Changed: s.Changed}.trouble()
		if trouble == "" {
			trouble = "-"
		}
		rows = append(rows, append(row, saturated, trouble))
	}
	return head, rows
}

// UsageTable is where the bytes went and what the proxies spent.
func (r *Report) UsageTable() (head []string, rows [][]string) {
	head = []string{"target", "payload", "in Kafka, each replica", "of payload", "in objects", "PUT", "GET", "LIST", "proxy CPU s/GB", "proxy memory"}
	money := false
	for _, u := range r.Usage {
		money = money || u.Money != nil
	}
	if money {
		head = append(head, "per TB")
	}
	for _, u := range r.Usage {
		row := []string{u.Target, bytesText(u.PayloadBytes), bytesText(u.KafkaBytes), fmt.Sprintf("%.2f %%", 100*u.KafkaShare)}
		if p := u.Proxy; p != nil {
			cpu, memory := "-", "-"
			if p.CPUSeconds > 0 {
				cpu, memory = fmt.Sprintf("%.2f", p.CPUSecondsPerGB), bytesText(p.PeakMemory)
			}
			row = append(row, bytesText(p.ObjectBytes), count(p.Puts), count(p.Gets), count(p.Lists), cpu, memory)
		} else {
			row = append(row, "-", "-", "-", "-", "-", "-")
		}
		if money {
			cell := "-"
			if u.Money != nil {
				cell = fmt.Sprintf("%s%.2f", u.Money.Currency, u.Money.PerTB)
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	return head, rows
}

func count(v float64) string { return fmt.Sprintf("%.0f", v) }

func (m measure) text(v float64) string {
	switch m.unit {
	case "ms":
		return ms(v)
	case "/s":
		return fmt.Sprintf("%.0f/s", v)
	}
	return fmt.Sprintf("%.1f %s", v, m.unit)
}

// short leaves the unit out.
func (m measure) short(v float64) string {
	text, _, _ := strings.Cut(m.text(v), " ")
	return strings.TrimSuffix(text, "/s")
}

// ms has three digits that say something.
func ms(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f ms", v)
	case v < 100:
		return fmt.Sprintf("%.1f ms", v)
	}
	return fmt.Sprintf("%.0f ms", v)
}

func bytesText(v float64) string {
	for _, u := range []struct {
		n    float64
		name string
	}{{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "KB"}} {
		if v >= u.n {
			return fmt.Sprintf("%.1f %s", v/u.n, u.name)
		}
	}
	return fmt.Sprintf("%.0f B", v)
}
