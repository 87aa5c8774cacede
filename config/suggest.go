package config

import "fmt"

// meant is `did you mean "x"? `, or nothing when no candidate is close.
func meant(written string, candidates []string) string {
	if best := closest(written, candidates); best != "" {
		return fmt.Sprintf("did you mean %q? ", best)
	}
	return ""
}

// closest returns the candidate that a slip of the fingers may have been meant
// for, "" when there is none.
func closest(written string, candidates []string) string {
	best, fewest := "", len(written)/3+1
	if len(written) > 64 { // no slip
		return ""
	}
	for _, c := range candidates {
		if d := slips(written, c); d <= fewest && d < len(c) && (best == "" || d < fewest) {
			best, fewest = c, d
		}
	}
	return best
}

// slips counts the letters inserted, left out, replaced or swapped with a
// neighbour (optimal string alignment); upper and lower case are one.
func slips(a, b string) int {
	same := func(x, y byte) bool { return x|0x20 == y|0x20 }
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replaced := rows[i-1][j-1]
			if !same(a[i-1], b[j-1]) {
				replaced++
			}
			rows[i][j] = min(replaced, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && same(a[i-1], b[j-2]) && same(a[i-2], b[j-1]) {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
