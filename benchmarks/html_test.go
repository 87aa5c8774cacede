package benchmarks

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
)

// The page needs nothing but itself, shows all that it should, and is well
// formed. SLUICE_BENCH_PAGE keeps it, to be looked at.
func TestThePageStandsAlone(t *testing.T) {
	r := planted(t, func(r *Report) {
		r.Targets[1].Note = `a "note" with <tags> & more`
		r.Command = []string{"sluice", "bench", "--topic", "a=otel-*"}
		for i := range r.Rounds {
			if r.Rounds[i].Target == "other" && r.Rounds[i].Round == 4 {
				r.Rounds[i].Streams[0].Saturated = true
			}
			if r.Rounds[i].Target != "direct" {
				r.Rounds[i].Proxy = &ProxyUse{CPUSeconds: 2, PeakMemory: 90e6, Puts: 40, ObjectBytes: 3e8}
			}
		}
	}, map[string][]float64{"direct": five, "sluice": {1.2, 1.3, 1.25, 1.22, 1.21}, "other": {180, 190, 170, 175, 188}})
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	if file := os.Getenv("SLUICE_BENCH_PAGE"); file != "" {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text := b.String()
	for _, want := range []string{
		"sluice against direct: produce p50 1.22 ms against 1.02 ms, slower: 1.20 × (p = 0.008); produce p99", "Until acknowledged", "Until consumed", "Over time", "other: saturated",
		"a &#34;note&#34; with &lt;tags&gt; &amp; more", r.Machine.Go, "What it took", "90.0 MB", "sluice bench --topic &#39;a=otel-*&#39;",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the page", want)
		}
	}
	for _, bad := range []string{"http:", "https:", "src=", "@import", "url(", "<script", "NaN", "Inf", "ZgotmplZ", "%!"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q is in the page", bad)
		}
	}
	if n := strings.Count(text, "<polyline"); n != 3+3+3*5 {
		t.Errorf("%d lines: want a curve for each target, twice, and one for each of five rounds", n)
	}
	for _, svg := range regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(text, -1) {
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%v in %s", err, svg)
			}
		}
	}
	for _, m := range regexp.MustCompile(`points="([^"]*)"`).FindAllStringSubmatch(text, -1) {
		for _, xy := range strings.Fields(m[1]) {
			if !regexp.MustCompile(`^\d+(\.\d+)?,\d+(\.\d+)?$`).MatchString(xy) {
				t.Fatalf("a point outside the plot: %s", xy)
			}
		}
	}
}

// With nothing measured there is nothing to draw, and no page breaks.
func TestThePageOfNothing(t *testing.T) {
	r := planted(t, func(r *Report) {
		for i := range r.Rounds {
			r.Rounds[i].Streams, r.Rounds[i].Error = nil, "gone"
		}
	}, map[string][]float64{"direct": {1}})
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "1 of 1 runs did not take place") || strings.Contains(b.String(), "NaN") {
		t.Error(b.String())
	}
}
