package benchmarks

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// figure is one column of the report, read from a round's two runs.
type figure struct {
	name   string
	format func(float64) string
	of     func(steady, bulk run) float64
}

func millis(us int64) float64 { return float64(us) / 1000 }

func figures(bulkRecords int) []figure {
	ms := func(v float64) string { return fmt.Sprintf("%.1f ms", v) }
	mbs := func(v float64) string { return fmt.Sprintf("%.1f MB/s", v) }
	rate := func(took time.Duration) float64 {
		return float64(bulkRecords) * valueSize / 1e6 / took.Seconds()
	}
	return []figure{
		{"produce p50", ms, func(s, _ run) float64 { return millis(s.ack.ValueAtQuantile(50)) }},
		{"produce p99", ms, func(s, _ run) float64 { return millis(s.ack.ValueAtQuantile(99)) }},
		{"end-to-end p50", ms, func(s, _ run) float64 { return millis(s.endToEnd.ValueAtQuantile(50)) }},
		{"end-to-end p99", ms, func(s, _ run) float64 { return millis(s.endToEnd.ValueAtQuantile(99)) }},
		{"bulk acknowledged", mbs, func(_, b run) float64 { return rate(b.acknowledged) }},
		{"bulk consumed", mbs, func(_, b run) float64 { return rate(b.arrived) }},
	}
}

// stored is where a route's payloads went.
type stored struct {
	payload, inKafka float64 // bytes; of one replica
	inObjects        float64
	objects          float64
}

// result is what one route did in all rounds.
type result struct {
	route        route
	steady, bulk []run // by round
	stored       stored
}

// report prints every route's medians, and its ratios to the first route's
// figures of the same round.
func report(out io.Writer, results []result, bulkRecords int) {
	cols := figures(bulkRecords)
	table := func(cell func(r result, f figure) string) {
		w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
		fmt.Fprint(w, "route")
		for _, f := range cols {
			fmt.Fprintf(w, "\t%s", f.name)
		}
		fmt.Fprintln(w)
		for _, r := range results {
			fmt.Fprint(w, r.route.name)
			for _, f := range cols {
				fmt.Fprintf(w, "\t%s", cell(r, f))
			}
			fmt.Fprintln(w)
		}
		_ = w.Flush()
	}
	fmt.Fprintln(out, "Median of the rounds:")
	table(func(r result, f figure) string {
		var all []float64
		for i := range r.steady {
			all = append(all, f.of(r.steady[i], r.bulk[i]))
		}
		return f.format(median(all))
	})
	fmt.Fprintf(out, "\nRatio to %s in the same round, median (least to most):\n", results[0].route.name)
	table(func(r result, f figure) string {
		var all []float64
		for i := range r.steady {
			all = append(all, f.of(r.steady[i], r.bulk[i])/f.of(results[0].steady[i], results[0].bulk[i]))
		}
		return fmt.Sprintf("%.2f (%.2f to %.2f)", median(all), slices.Min(all), slices.Max(all))
	})
	fmt.Fprintln(out, "\nWhere the payloads are:")
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "route\tpayload\tin Kafka, each replica\tin objects\tobjects\tKafka bytes per payload byte")
	for _, r := range results {
		s := r.stored
		fmt.Fprintf(w, "%s\t%.1f MB\t%.2f MB\t%.1f MB\t%.0f\t%.3f\n", r.route.name, s.payload/1e6, s.inKafka/1e6, s.inObjects/1e6, s.objects, s.inKafka/s.payload)
	}
	_ = w.Flush()
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
