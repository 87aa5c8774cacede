package benchmarks

import (
	"fmt"
	"strings"
)

// alpha is the p-value below which a difference counts as shown.
const alpha = 0.05

// Comparison is what can be said of two targets, or of two steps of one target,
// by one measure.
type Comparison struct {
	Measure  string  `json:"measure"`
	Stream   string  `json:"stream"`
	Step     string  `json:"step,omitempty"`
	Target   string  `json:"target"`
	Baseline string  `json:"baseline"`                // the other target
	Against  string  `json:"baseline_step,omitempty"` // the other step, when the targets are the same
	Value    float64 `json:"value"`                   // medians over the rounds
	Base     float64 `json:"baseline_value"`
	Ratio    float64 `json:"ratio"` // of the medians
	P        float64 `json:"p"`     // Mann–Whitney, two-sided, over the rounds
	Verdict  Verdict `json:"verdict"`
	Sentence string  `json:"sentence,omitempty"` // left out where the one before says it all
}

// Verdict is a comparison's outcome.
type Verdict string

const (
	Better    Verdict = "better"
	Worse     Verdict = "worse"
	Unshown   Verdict = "no difference shown"
	Saturated Verdict = "saturated: not comparable"
)

// compare takes the first target as what the others are compared with. Where
// steps leave out streams, as agent-mix does, a target's steps are compared
// with its first one too.
func (r *Report) compare() {
	if len(r.Targets) == 0 {
		return
	}
	alone := false
	for _, st := range r.Workload.Steps {
		alone = alone || len(st.Only) > 0
	}
	base := r.Targets[0].Name
	for i, step := range r.Workload.Steps {
		for _, stream := range r.Workload.at(step) {
			for j, t := range r.Targets {
				own, ok := r.summary(step.Name, stream.Name, t.Name)
				if !ok {
					continue
				}
				if other, ok := r.summary(step.Name, stream.Name, base); ok && j > 0 {
					r.Comparisons = append(r.Comparisons, r.compareTwo(own, other)...)
				}
				if first := r.Workload.Steps[0].Name; alone && i > 0 {
					if other, ok := r.summary(first, stream.Name, t.Name); ok {
						r.Comparisons = append(r.Comparisons, r.compareTwo(own, other)...)
					}
				}
			}
		}
	}
}

func (r *Report) compareTwo(own, other Summary) (out []Comparison) {
	said := false // that they are not compared
	for _, m := range measures() {
		if !m.compared {
			continue
		}
		a, b := own.Measures[m.name], other.Measures[m.name]
		if len(a.Rounds) == 0 || len(b.Rounds) == 0 {
			continue
		}
		c := Comparison{
			Measure: m.name, Stream: own.Stream, Step: own.Step, Target: own.Target, Baseline: other.Target,
			Value: a.Median, Base: b.Median, P: MannWhitney(a.Rounds, b.Rounds),
		}
		if other.Step != own.Step {
			c.Against = other.Step
		}
		if b.Median > 0 {
			c.Ratio = a.Median / b.Median
		}
		switch {
		// With a rate to keep, latency in saturation is the length of a queue.
		case own.Rate > 0 && !m.more && (2*own.Saturated >= own.Rounds || 2*other.Saturated >= other.Rounds):
			c.Verdict = Saturated
		case c.P >= alpha:
			c.Verdict = Unshown
		case (a.Median < b.Median) != m.more:
			c.Verdict = Better
		default:
			c.Verdict = Worse
		}
		if !said || c.Verdict != Saturated {
			c.Sentence = r.sentence(c, m, own, other)
		}
		said = said || c.Verdict == Saturated
		out = append(out, c)
	}
	return out
}

func (r *Report) sentence(c Comparison, m measure, own, other Summary) string {
	who, whom := r.sides(c)
	if c.Verdict == Saturated {
		var full []string
		for _, s := range []Summary{own, other} {
			if s.Saturated > 0 {
				full = append(full, fmt.Sprintf("%s was saturated in %d of %d rounds", strings.TrimSpace(s.Target+" "+s.Step), s.Saturated, s.Rounds))
			}
		}
		return fmt.Sprintf("%s: latencies are not compared with those of %s, for %s, and latency is the length of a queue there.", who, whom, strings.Join(full, " and "))
	}
	a, b := own.Measures[m.name], other.Measures[m.name]
	text := fmt.Sprintf("%s, %s: %s (%s–%s) against %s of %s (%s–%s): ", who, m.title,
		m.text(a.Median), m.text(a.Least), m.text(a.Most), m.text(b.Median), whom, m.text(b.Least), m.text(b.Most))
	word := strings.TrimSuffix(m.word(c.Verdict), ":")
	switch {
	case c.Verdict == Unshown:
		text += fmt.Sprintf("no difference shown (p = %.2f).", c.P)
	case m.more:
		text += fmt.Sprintf("%s, %.2f × (p %s).", word, c.Ratio, pText(c.P))
	default:
		text += fmt.Sprintf("%s by %s, %.2f × (p %s).", word, ms(max(a.Median-b.Median, b.Median-a.Median)), c.Ratio, pText(c.P))
	}
	return text + r.beside(own, other) + inTheWay(own, other)
}

// sides are what is compared, and with what.
func (r *Report) sides(c Comparison) (who, whom string) {
	who, whom = strings.TrimSpace(c.Target+" "+c.Step), c.Baseline
	if c.Against != "" {
		whom = "the same " + c.Against
	}
	if len(r.Workload.Streams) > 1 {
		who += ", " + c.Stream
	}
	return who, whom
}

// beside names what else ran and did not keep its rate: who waits beside that
// waits beside less than the workload says.
func (r *Report) beside(own, other Summary) string {
	var full []string
	for _, s := range r.Summaries {
		of := s.Target == own.Target && s.Step == own.Step || s.Target == other.Target && s.Step == other.Step
		if of && s.Stream != own.Stream && s.Saturated > 0 {
			full = append(full, fmt.Sprintf("%s of %s was saturated in %d of %d rounds", s.Stream, s.Target, s.Saturated, s.Rounds))
		}
	}
	if len(full) == 0 {
		return ""
	}
	return " Beside it " + strings.Join(full, " and ") + "."
}

// Said is a verdict for people: all measures of one comparison in a sentence.
type Said struct {
	Verdict Verdict // Worse or Better when all that is shown is, else Unshown
	Text    string
}

// Verdicts has a sentence for each pair that was compared.
func (r *Report) Verdicts() (out []Said) {
	type pair struct{ stream, step, target, baseline, against string }
	of := func(c Comparison) pair { return pair{c.Stream, c.Step, c.Target, c.Baseline, c.Against} }
	for i := 0; i < len(r.Comparisons); {
		first := r.Comparisons[i]
		who, whom := r.sides(first)
		said := Said{Verdict: Unshown}
		better, worse := 0, 0
		var parts []string
		for ; i < len(r.Comparisons) && of(r.Comparisons[i]) == of(first); i++ {
			c := r.Comparisons[i]
			if c.Verdict == Saturated {
				if c.Sentence != "" {
					said.Verdict, parts = Saturated, append(parts, c.Sentence)
				}
				continue
			}
			m := measureOf(c.Measure)
			text := fmt.Sprintf("%s %s against %s, ", m.title, m.text(c.Value), m.text(c.Base))
			switch c.Verdict {
			case Unshown:
				text += fmt.Sprintf("no difference shown (p = %.2f)", c.P)
			case Better, Worse:
				text += fmt.Sprintf("%s %.2f × (p %s)", m.word(c.Verdict), c.Ratio, pText(c.P))
			}
			if c.Verdict == Better {
				better++
			} else if c.Verdict == Worse {
				worse++
			}
			parts = append(parts, text)
		}
		switch {
		case said.Verdict == Saturated && len(parts) == 1:
			said.Text = parts[0]
		default:
			said.Text = fmt.Sprintf("%s against %s: %s.", who, whom, strings.TrimSuffix(strings.Join(parts, "; "), "."))
			if better > 0 && worse == 0 {
				said.Verdict = Better
			} else if worse > 0 && better == 0 {
				said.Verdict = Worse
			}
			own, _ := r.summary(first.Step, first.Stream, first.Target)
			step := first.Step
			if first.Against != "" {
				step = first.Against
			}
			other, _ := r.summary(step, first.Stream, first.Baseline)
			said.Text += r.beside(own, other) + inTheWay(own, other)
		}
		out = append(out, said)
	}
	return out
}

func measureOf(name string) measure {
	for _, m := range measures() {
		if m.name == name {
			return m
		}
	}
	return measure{title: name}
}

func (m measure) word(v Verdict) string {
	switch {
	case m.more && v == Better:
		return "more:"
	case m.more:
		return "less:"
	case v == Better:
		return "faster:"
	}
	return "slower:"
}

func inTheWay(own, other Summary) string {
	if own.Generator+other.Generator == 0 {
		return ""
	}
	return fmt.Sprintf(" The generator was in the way in %d of %d runs.", own.Generator+other.Generator, own.Rounds+other.Rounds)
}

func pText(p float64) string {
	if p < 0.001 {
		return "< 0.001"
	}
	return fmt.Sprintf("= %.3f", p)
}
