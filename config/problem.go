package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Problem is one thing that is wrong with a file.
type Problem struct {
	File         string // as it was named
	Line, Column int    // from 1, Column in characters; both 0 when it is the file as a whole
	Excerpt      string // the line, and one below it with carets under the spot; "" without a line. Secrets are masked
	What         string
	Remedy       string
}

// String is for people: place and what is wrong, the excerpt, the remedy.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Short())
	if p.Excerpt != "" {
		b.WriteString("\n" + p.Excerpt)
	}
	b.WriteString("\n  → " + p.Remedy + "\n")
	return b.String()
}

// Short is the place and what is wrong, in one line.
func (p Problem) Short() string {
	if p.Line == 0 {
		return p.File + ": " + p.What
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.What)
}

// Problems is everything that is wrong with a file, in the order of its lines.
// There is at least one.
type Problems []Problem

func (p Problems) Error() string {
	all := make([]string, len(p))
	for i := range p {
		all[i] = p[i].String()
	}
	return strings.Join(all, "\n")
}

// spot is a problem before its excerpt was cut.
type spot struct {
	line, column, width int // in characters
	what, remedy        string
}

// source is a file's text, with what must not be shown of it.
type source struct {
	name  string
	lines []string
	// hidden is the column, by line, from which nothing is shown.
	hidden map[int]int
}

func newSource(name string, data []byte) *source {
	// All that YAML takes for the end of a line.
	breaks := strings.NewReplacer("\r\n", "\n", "\r", "\n", "\u0085", "\n", "\u2028", "\n", "\u2029", "\n")
	return &source{name: name, lines: strings.Split(breaks.Replace(string(data)), "\n"), hidden: map[int]int{}}
}

// line returns the text of a line that counts from 1.
func (s *source) line(n int) []rune {
	if n < 1 || n > len(s.lines) {
		return nil
	}
	return []rune(s.lines[n-1])
}

// hide keeps a line from being shown, from a column on.
func (s *source) hide(line, column int) {
	if have, ok := s.hidden[line]; !ok || column < have {
		s.hidden[line] = column
	}
}

// problems puts the spots in order and cuts their excerpts.
func (s *source) problems(spots []spot) Problems {
	slices.SortStableFunc(spots, func(a, b spot) int {
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.column, b.column))
	})
	var out Problems
	for _, at := range slices.Compact(spots) {
		p := Problem{File: s.name, Line: at.line, Column: at.column, What: at.what, Remedy: at.remedy}
		if at.line > 0 {
			p.Excerpt = s.excerpt(at)
		}
		out = append(out, p)
	}
	return out
}

// excerptWidth bounds what is shown of a line.
const excerptWidth = 100

func (s *source) excerpt(at spot) string {
	shown := s.line(at.line)
	if from, ok := s.hidden[at.line]; ok {
		for i := from - 1; i < len(shown); i++ {
			shown[i] = '*'
		}
	}
	first := max(at.column-1, 0)
	last := first + max(at.width, 1)
	if start := min(first, len(shown)) - excerptWidth/2; start > 0 && len(shown) > excerptWidth {
		shown = append([]rune("…"), shown[start:]...)
		first, last = first-start+1, last-start+1
	}
	if len(shown) > excerptWidth {
		shown = append(shown[:excerptWidth:excerptWidth], '…')
	}
	// The caret's line repeats the tabs, so that it moves with them.
	var under strings.Builder
	for i := range min(last, max(len(shown), first+1)) {
		switch {
		case i >= first:
			under.WriteByte('^')
		case i < len(shown) && shown[i] == '\t':
			under.WriteByte('\t')
		default:
			under.WriteByte(' ')
		}
	}
	number := strconv.Itoa(at.line)
	margin := strings.Repeat(" ", len(number))
	clean := strings.Map(func(r rune) rune {
		if r != '\t' && (r < ' ' || r == 0x7f) {
			return '\uFFFD'
		}
		return r
	}, string(shown))
	return fmt.Sprintf("  %s | %s\n  %s | %s", number, clean, margin, under.String())
}
