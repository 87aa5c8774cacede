package benchmarks

import (
	"math"
	"slices"
)

// Spread is a measure over the rounds.
type Spread struct {
	Median float64   `json:"median"`
	Least  float64   `json:"least"`
	Most   float64   `json:"most"`
	Rounds []float64 `json:"rounds"` // in their order
}

func spread(v []float64) Spread {
	if len(v) == 0 {
		return Spread{}
	}
	return Spread{Median: median(v), Least: slices.Min(v), Most: slices.Max(v), Rounds: v}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	switch {
	case n == 0:
		return math.NaN()
	case n%2 == 0:
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[n/2]
}

// exactUpTo bounds the ways to split both samples that are counted one by one.
const exactUpTo = 200_000

// MannWhitney is the two-sided p-value for two samples being of one
// distribution. Small samples are counted exactly, ties included; large ones
// take the normal approximation with corrections for ties and continuity. It is
// 1 when a sample is empty.
func MannWhitney(a, b []float64) float64 {
	n, m := len(a), len(b)
	if n == 0 || m == 0 {
		return 1
	}
	all := slices.Concat(a, b)
	ranks, ties := midranks(all)
	rankSum := 0.0
	for _, r := range ranks[:n] {
		rankSum += r
	}
	mean := float64(n*(n+m+1)) / 2 // of the rank sum
	off := math.Abs(rankSum - mean)
	if ways := binomial(n+m, n); ways <= exactUpTo {
		return exact(ranks, n, mean, off) / ways
	}
	total := float64(n + m)
	variance := float64(n*m) / 12 * (total + 1 - ties/(total*(total-1)))
	if variance == 0 {
		return 1
	}
	z := max(0, off-0.5) / math.Sqrt(variance)
	return min(1, math.Erfc(z/math.Sqrt2))
}

// midranks are the ranks from 1, the mean of them for equal values; ties is
// the sum of t³−t over groups of t equal values.
func midranks(v []float64) (ranks []float64, ties float64) {
	order := make([]int, len(v))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		switch {
		case v[i] < v[j]:
			return -1
		case v[i] > v[j]:
			return 1
		}
		return 0
	})
	ranks = make([]float64, len(v))
	for i := 0; i < len(order); {
		j := i
		for j < len(order) && v[order[j]] == v[order[i]] {
			j++
		}
		for _, k := range order[i:j] {
			ranks[k] = float64(i+j+1) / 2
		}
		t := float64(j - i)
		ties += t*t*t - t
		i = j
	}
	return ranks, ties
}

// exact counts the choices of n ranks whose sum is at least as far from mean.
func exact(ranks []float64, n int, mean, off float64) (count float64) {
	const rounding = 1e-9 // sums of halves are exact; this is for good measure
	var choose func(from, left int, sum float64)
	choose = func(from, left int, sum float64) {
		if left == 0 {
			if math.Abs(sum-mean) >= off-rounding {
				count++
			}
			return
		}
		for i := from; i <= len(ranks)-left; i++ {
			choose(i+1, left-1, sum+ranks[i])
		}
	}
	choose(0, n, 0)
	return count
}

func binomial(n, k int) float64 {
	out := 1.0
	for i := range min(k, n-k) {
		out = out * float64(n-i) / float64(i+1)
	}
	return math.Round(out)
}
