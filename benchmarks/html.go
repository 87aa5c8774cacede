package benchmarks

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
)

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report").Parse(page))

// WriteHTML writes the report as one page that needs nothing else: no network,
// no script.
func (r *Report) WriteHTML(w io.Writer) error {
	head, rows := r.Table()
	usageHead, usageRows := r.UsageTable()
	return pageTemplate.Execute(w, map[string]any{
		"R": r, "Headline": r.headline(), "Machine": r.machine(), "Versions": r.versions(),
		"Command": commandLine(r.Command), "Head": head, "Rows": rows, "UsageHead": usageHead, "UsageRows": usageRows,
		"Verdicts": r.Verdicts(), "Charts": r.charts(), "Legend": r.legend(),
		"Took": r.Ended.Sub(r.Started).Round(1e9),
	})
}

// commandLine can be pasted into a shell.
func commandLine(args []string) string {
	var out []string
	for _, a := range args {
		if strings.Trim(a, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,@") != "" || a == "" {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

// Colors that people with any kind of sight can tell apart (Okabe and Ito);
// lines differ by their dashes too.
var (
	colors = []string{"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"}
	dashes = []string{"", "8 3", "3 3", "10 3 3 3", "", "8 3", "3 3"}
)

// entry of the legend.
type entry struct{ Name, Color, Dash, Note string }

func (r *Report) legend() (out []entry) {
	for i, t := range r.Targets {
		note := t.Note
		if note == "" {
			note = strings.Join(t.Bootstrap, ", ")
		}
		out = append(out, entry{t.Name, colors[i%len(colors)], dashes[i%len(dashes)], note})
	}
	return out
}

// chart is drawn in a box of chartWidth × chartHeight.
type chart struct {
	Title, Below string // Below says what the axes are
	X, Y         []tick
	Lines        []line
	Strips       []strip // parts in which a target was saturated
	Dots         []dot
}

type tick struct {
	At    float64
	Label string
}

type line struct{ Points, Color, Dash, Name string }

type strip struct {
	X, Y, W float64
	Color   string
	Name    string
}

type dot struct {
	X, Y  float64
	Color string
	Name  string
}

// The plot within the box; the template knows the same numbers.
const (
	left, right = 62.0, 468.0
	top, bottom = 14.0, 236.0
)

// scale maps values to one side of the plot.
type scale struct {
	least, most float64
	log         bool
	from, to    float64
}

func (s scale) at(v float64) float64 {
	a, b := s.least, s.most
	if s.log {
		v, a, b = math.Log10(max(v, s.least)), math.Log10(a), math.Log10(b)
	}
	if b == a {
		return (s.from + s.to) / 2
	}
	return math.Round((s.from+(v-a)/(b-a)*(s.to-s.from))*10) / 10
}

// latencyScale covers values in milliseconds by whole decades' 1, 2 and 5.
func latencyScale(least, most float64) (scale, []tick) {
	if least <= 0 || math.IsInf(least, 0) {
		least = 0.01
	}
	most = max(most, least*1.01)
	var steps []float64
	for e := math.Floor(math.Log10(least)); e <= math.Ceil(math.Log10(most)); e++ {
		for _, m := range []float64{1, 2, 5} {
			steps = append(steps, m*math.Pow(10, e))
		}
	}
	first, last := 0, len(steps)-1
	for first+1 < len(steps) && steps[first+1] <= least {
		first++
	}
	for last-1 > first && steps[last-1] >= most {
		last--
	}
	steps = steps[first : last+1]
	s := scale{steps[0], steps[len(steps)-1], true, bottom, top}
	var ticks []tick
	thin := len(steps) > 10
	for _, v := range steps {
		if lead := math.Round(v / math.Pow(10, math.Floor(math.Log10(v)*(1+1e-12)+1e-9))); thin && lead != 1 {
			continue
		}
		label := fmt.Sprintf("%g ms", math.Round(v*1e6)/1e6)
		if v >= 1000 {
			label = fmt.Sprintf("%g s", math.Round(v)/1000)
		}
		ticks = append(ticks, tick{s.at(v), label})
	}
	return s, ticks
}

// maxPanels bounds the charts of a kind: a sweep's many rates have their own.
const maxPanels = 6

func (r *Report) charts() (out []chart) {
	byRate := false
	for _, st := range r.Workload.Steps {
		byRate = byRate || st.Rate != nil
	}
	if byRate {
		out = append(out, r.againstRate())
	}
	panels := 0
	for _, step := range r.Workload.Steps {
		for _, s := range r.Workload.at(step) {
			if s.Rate <= 0 || panels == maxPanels {
				continue
			}
			panels++
			where := strings.Trim(step.Name, " ")
			if len(r.Workload.Streams) > 1 {
				where = strings.Trim(where+", "+s.Name, ", ")
			}
			if where != "" {
				where = " (" + where + ")"
			}
			out = append(out,
				r.curves("Until acknowledged, all rounds"+where, step.Name, s.Name, func(s Summary) []Point { return s.Produce }),
				r.curves("Until consumed, all rounds"+where, step.Name, s.Name, func(s Summary) []Point { return s.EndToEnd }),
				r.series("Over time"+where, step.Name, s.Name))
		}
	}
	kept := out[:0]
	for _, c := range out {
		if len(c.Lines) > 0 {
			kept = append(kept, c)
		}
	}
	return kept
}

func (r *Report) curves(title, step, stream string, of func(Summary) []Point) chart {
	c := chart{Title: title, Below: "percentile → latency; both axes logarithmic"}
	least, most, tail := math.Inf(1), 0.0, 0.1
	for _, t := range r.Targets {
		s, _ := r.summary(step, stream, t.Name)
		for _, p := range of(s) {
			least, most = min(least, p.MS), max(most, p.MS)
			if p.Percentile < 100 {
				tail = min(tail, 1-p.Percentile/100)
			}
		}
	}
	var y scale
	y, c.Y = latencyScale(least, most)
	x := scale{1, 1 / tail, true, left, right}
	for _, p := range []float64{0, 50, 90, 99, 99.9, 99.99, 99.999} {
		if 1-p/100 >= tail*0.999 {
			c.X = append(c.X, tick{x.at(1 / (1 - p/100)), fmt.Sprintf("%g", p)})
		}
	}
	for i, e := range r.legend() {
		s, _ := r.summary(step, stream, r.Targets[i].Name)
		var b strings.Builder
		for _, p := range of(s) {
			if p.Percentile < 100 {
				fmt.Fprintf(&b, "%g,%g ", x.at(1/(1-p.Percentile/100)), y.at(p.MS))
			}
		}
		c.add(b.String(), e)
	}
	return c
}

func (c *chart) add(points string, e entry) {
	if points != "" {
		c.Lines = append(c.Lines, line{strings.TrimSpace(points), e.Color, e.Dash, e.Name})
	}
}

// series is the p99 of each second, the rounds one after the other.
func (r *Report) series(title, step, stream string) chart {
	c := chart{Title: title, Below: "p99 of each second until acknowledged, by when records were due; rounds one after the other"}
	seconds := int(math.Ceil(r.Workload.Duration.seconds()))
	numbers := len(r.roundNumbers())
	least, most := math.Inf(1), 0.0
	each := func(target string, f func(round int, s StreamResult)) {
		for _, rd := range r.Rounds {
			for _, s := range rd.Streams {
				if rd.Target == target && rd.Step == step && s.Stream == stream {
					f(rd.Round, s)
				}
			}
		}
	}
	for _, t := range r.Targets {
		each(t.Name, func(_ int, s StreamResult) {
			for _, p := range s.Seconds {
				if p.Records > 0 {
					least, most = min(least, p.P99), max(most, p.P99)
				}
			}
		})
	}
	var y scale
	y, c.Y = latencyScale(least, most)
	x := scale{0, float64(numbers * seconds), false, left, right}
	every := max(1, (numbers+7)/8)
	for i := range numbers {
		if i%every == 0 {
			c.X = append(c.X, tick{x.at(float64(i * seconds)), fmt.Sprintf("round %d", i+1)})
		}
	}
	if len(c.X) > 4 {
		for i := range c.X {
			c.X[i].Label = strings.TrimPrefix(c.X[i].Label, "round ")
		}
		c.X[0].Label = "round " + c.X[0].Label
	}
	for i, e := range r.legend() {
		each(r.Targets[i].Name, func(round int, s StreamResult) {
			var b strings.Builder
			for _, p := range s.Seconds {
				if p.Records > 0 {
					fmt.Fprintf(&b, "%g,%g ", x.at(float64((round-1)*seconds+p.At)+0.5), y.at(p.P99))
				}
			}
			c.add(b.String(), e)
			if s.Saturated {
				from := x.at(float64((round - 1) * seconds))
				c.Strips = append(c.Strips, strip{from, bottom - 5 - 6*float64(i), x.at(float64(round*seconds)) - from, e.Color, e.Name})
			}
		})
	}
	return c
}

// againstRate is latency by what was achieved; a dot marks saturation.
func (r *Report) againstRate() chart {
	c := chart{Title: "Latency against throughput", Below: "achieved records per second → produce p99; a dot marks saturation"}
	stream := r.Workload.Streams[0].Name
	least, most := math.Inf(1), 0.0
	slow, fast := math.Inf(1), 0.0
	each := func(target string, f func(s Summary, rate, p99 float64)) {
		for _, st := range r.Workload.Steps {
			s, ok := r.summary(st.Name, stream, target)
			rate, p99 := s.Measures["achieved_per_second"].Median, s.Measures["produce_p99_ms"].Median
			if ok && rate > 0 && p99 > 0 {
				f(s, rate, p99)
			}
		}
	}
	for _, t := range r.Targets {
		each(t.Name, func(_ Summary, rate, p99 float64) {
			least, most, slow, fast = min(least, p99), max(most, p99), min(slow, rate), max(fast, rate)
		})
	}
	if fast == 0 {
		return c
	}
	var y scale
	y, c.Y = latencyScale(least, most)
	x := scale{slow, max(fast, slow*1.01), true, left, right}
	for v := math.Pow(10, math.Floor(math.Log10(slow))); v <= fast; v *= 10 {
		for _, m := range []float64{1, 2, 5} {
			if m*v >= slow && m*v <= fast {
				c.X = append(c.X, tick{x.at(m * v), fmt.Sprintf("%g", m*v)})
			}
		}
	}
	for i, e := range r.legend() {
		var b strings.Builder
		each(r.Targets[i].Name, func(s Summary, rate, p99 float64) {
			fmt.Fprintf(&b, "%g,%g ", x.at(rate), y.at(p99))
			if s.Saturated > 0 {
				c.Dots = append(c.Dots, dot{x.at(rate), y.at(p99), e.Color, e.Name})
			}
		})
		c.add(b.String(), e)
	}
	return c
}
