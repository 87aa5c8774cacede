package router

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// MaxTopicName is the longest name that Kafka gives a topic
// (org.apache.kafka.common.internals.Topic.MAX_NAME_LENGTH).
const MaxTopicName = 249

// Pattern is one compiled topic pattern. It always matches a whole name.
type Pattern struct {
	source string

	// shape is the pattern as a sequence of characters and stars. It is the
	// pattern itself when re is nil; else it matches at least what re matches.
	// A regular expression that says no more than a glob can is kept as one,
	// so that rules written either way are compared with each other.
	shape []token
	re    *regexp.Regexp
}

// PatternError says what is wrong with a pattern, and where in it.
type PatternError struct {
	Pattern string
	Offset  int // byte in Pattern at which the trouble starts
	What    string
	Remedy  string
}

func (e *PatternError) Error() string {
	return fmt.Sprintf("pattern %q, character %d: %s; %s", e.Pattern, len([]rune(e.Pattern[:e.Offset]))+1, e.What, e.Remedy)
}

// Compile reads a glob (* any run of characters, ? one character, [a-z] one of
// a set, [^a-z] one outside it) or, between slashes, an RE2 regular expression.
// The error is a *PatternError.
func Compile(pattern string) (Pattern, error) {
	p := Pattern{source: pattern}
	var err *PatternError
	if strings.HasPrefix(pattern, "/") {
		err = p.compileRegex()
	} else {
		err = p.compileGlob()
	}
	if err == nil {
		err = p.possible()
	}
	if err != nil {
		err.Pattern = pattern
		return Pattern{}, err
	}
	return p, nil
}

func (p Pattern) String() string { return p.source }

// Match reports whether the pattern matches the whole name.
func (p Pattern) Match(topic string) bool {
	if p.re != nil {
		return p.re.MatchString(topic)
	}
	return sweep(p.shape, len(topic), func(t token, i int) bool {
		return !t.star && t.set.has(topic[i])
	})
}

// covers reports whether every topic that q matches is matched by p too. It
// never says so wrongly; it may miss it for two regular expressions that differ
// as text.
func (p Pattern) covers(q Pattern) bool {
	if p.source == q.source {
		return true
	}
	if name, ok := q.literal(); ok {
		return p.Match(name)
	}
	// Every shape errs towards more, so p's must be exact and q's need not be.
	return p.re == nil && sweep(p.shape, len(q.shape), func(t token, i int) bool {
		return !q.shape[i].star && t.set.includes(q.shape[i].set)
	})
}

// literal returns the only name that the pattern matches, if there is just one.
func (p Pattern) literal() (string, bool) {
	if p.re != nil {
		return "", false
	}
	var b strings.Builder
	for _, t := range p.shape {
		c, ok := t.set.only()
		if t.star || !ok {
			return "", false
		}
		b.WriteByte(c)
	}
	return b.String(), true
}

// token is one element of a shape: a star, or one character out of a set.
type token struct {
	star bool
	set  charset
}

// sweep matches n things against a shape. A star takes any run of them, of
// whatever kind; fits decides for the rest. One step back, to the latest star,
// is always enough, so the cost is at most len(shape) * n.
func sweep(shape []token, n int, fits func(t token, i int) bool) bool {
	at, i := 0, 0
	star, resume := -1, 0
	for i < n {
		switch {
		case at < len(shape) && shape[at].star:
			star, resume = at, i
			at++
		case at < len(shape) && fits(shape[at], i):
			at++
			i++
		case star >= 0:
			resume++
			at, i = star+1, resume
		default:
			return false
		}
	}
	for at < len(shape) && shape[at].star {
		at++
	}
	return at == len(shape)
}

// charset is a set of ASCII characters, one bit each.
type charset [2]uint64

// nameChars is every character that a topic name may hold.
func nameChars() charset {
	var s charset
	for c := byte(0); c < 128; c++ {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-' {
			s.add(c)
		}
	}
	return s
}

func (s *charset) add(c byte) { s[c/64] |= 1 << (c % 64) }

func (s charset) has(c byte) bool { return c < 128 && s[c/64]&(1<<(c%64)) != 0 }

func (s charset) includes(o charset) bool { return s[0]&o[0] == o[0] && s[1]&o[1] == o[1] }

func (s charset) without(o charset) charset { return charset{s[0] &^ o[0], s[1] &^ o[1]} }

func (s charset) only() (byte, bool) {
	var found byte
	n := 0
	for c := byte(0); c < 128; c++ {
		if s.has(c) {
			found = c
			n++
		}
	}
	return found, n == 1
}

// normal puts a shape into the one form that equal shapes share: of a run of
// stars and free characters the star comes last, and the pattern that is just a
// star asks for one character, since no topic has the empty name.
func normal(shape []token) []token {
	free := token{set: nameChars()}
	out := make([]token, 0, len(shape))
	for i := 0; i < len(shape); {
		star := false
		for ; i < len(shape) && (shape[i].star || shape[i] == free); i++ {
			if shape[i].star {
				star = true
			} else {
				out = append(out, free)
			}
		}
		if star {
			out = append(out, token{star: true})
		}
		if i < len(shape) {
			out = append(out, shape[i])
			i++
		}
	}
	if len(out) == 1 && out[0].star {
		out = []token{free, {star: true}}
	}
	return out
}

const charsRemedy = "Kafka's topic names hold only a-z, A-Z, 0-9, '.', '_' and '-'"

func (p *Pattern) compileGlob() *PatternError {
	all := nameChars()
	var shape []token
	for i := 0; i < len(p.source); {
		switch c := p.source[i]; {
		case c == '*':
			shape = append(shape, token{star: true})
			i++
		case c == '?':
			shape = append(shape, token{set: all})
			i++
		case c == '[':
			set, length, err := globSet(p.source, i)
			if err != nil {
				return err
			}
			shape = append(shape, token{set: set})
			i += length
		case all.has(c):
			shape = append(shape, nameToken(rune(c)))
			i++
		default:
			return &PatternError{Offset: i, What: fmt.Sprintf("no topic name holds %q", firstRune(p.source[i:])), Remedy: charsRemedy}
		}
	}
	if len(shape) == 0 {
		return &PatternError{What: "the pattern is empty", Remedy: `write "*" for every topic, or leave the rule out: default_class does the same`}
	}
	p.shape = normal(shape)
	return nil
}

// globSet reads the [...] that starts at offset start.
func globSet(source string, start int) (charset, int, *PatternError) {
	all := nameChars()
	var set charset
	i := start + 1
	inverse := i < len(source) && (source[i] == '^' || source[i] == '!')
	if inverse {
		i++
	}
	first := i
	for ; i < len(source) && source[i] != ']'; i++ {
		low := source[i]
		high := low
		if i+2 < len(source) && source[i+1] == '-' && source[i+2] != ']' {
			high = source[i+2]
		}
		for _, c := range []byte{low, high} {
			if !all.has(c) {
				at := i + strings.IndexByte(source[i:], c)
				return set, 0, &PatternError{Offset: at, What: fmt.Sprintf("no topic name holds %q", firstRune(source[at:])), Remedy: charsRemedy}
			}
		}
		if high < low {
			return set, 0, &PatternError{Offset: i, What: fmt.Sprintf("the range %c-%c is backwards", low, high), Remedy: fmt.Sprintf("write [%c-%c]", high, low)}
		}
		for c := low; c <= high; c++ {
			if all.has(c) {
				set.add(c)
			}
		}
		if high != low {
			i += 2
		}
	}
	if i == len(source) {
		return set, 0, &PatternError{Offset: start, What: "this [ is never closed", Remedy: "close it with ]; a topic name itself holds no brackets"}
	}
	if i == first {
		return set, 0, &PatternError{Offset: start, What: "the set is empty", Remedy: "write the characters that may stand here, as in [a-z0-9]"}
	}
	if inverse {
		set = all.without(set)
	}
	return set, i + 1 - start, nil
}

func (p *Pattern) compileRegex() *PatternError {
	if len(p.source) < 2 || !strings.HasSuffix(p.source, "/") {
		return &PatternError{What: "a regular expression starts here and never ends", Remedy: "end it with /, or leave out the / for a glob; a topic name itself holds no slash"}
	}
	body := p.source[1 : len(p.source)-1]
	if body == "" {
		return &PatternError{What: "the regular expression is empty", Remedy: `write "/.*/" for every topic, or leave the rule out: default_class does the same`}
	}
	parsed, err := syntax.Parse(body, syntax.Perl)
	if err == nil {
		// From the tree, not from the text: an open \Q would swallow the anchors.
		p.re, err = regexp.Compile(`\A(?:` + parsed.String() + `)\z`)
	}
	if err != nil {
		offset, what := 1, err.Error()
		var bad *syntax.Error
		if errors.As(err, &bad) {
			what = bad.Code.String()
			if at := strings.LastIndex(body, bad.Expr); at >= 0 {
				offset = 1 + at
			}
		}
		return &PatternError{Offset: offset, What: "the regular expression does not parse: " + what, Remedy: "the syntax is RE2's, https://github.com/google/re2/wiki/Syntax"}
	}
	shape, exact := asShape(parsed)
	p.shape = normal(shape)
	if exact {
		p.re = nil
	}
	return nil
}

// asShape writes a regular expression as a shape; what a shape cannot say
// becomes a star, and the shape is not exact.
func asShape(re *syntax.Regexp) (shape []token, exact bool) {
	parts := []*syntax.Regexp{re}
	if re.Op == syntax.OpConcat {
		parts = re.Sub
	}
	// The match is on the whole name, so these add nothing.
	if len(parts) > 0 && parts[0].Op == syntax.OpBeginText {
		parts = parts[1:]
	}
	if len(parts) > 0 && parts[len(parts)-1].Op == syntax.OpEndText {
		parts = parts[:len(parts)-1]
	}
	exact = true
	for _, part := range parts {
		switch set := classSet(part); {
		case part.Op == syntax.OpLiteral && part.Flags&syntax.FoldCase == 0:
			for _, r := range part.Rune {
				shape = append(shape, nameToken(r))
			}
		case part.Op == syntax.OpCharClass, part.Op == syntax.OpAnyChar, part.Op == syntax.OpAnyCharNotNL:
			shape = append(shape, token{set: set})
		case part.Op == syntax.OpPlus && classSet(part.Sub[0]) == nameChars():
			shape = append(shape, token{set: nameChars()}, token{star: true})
		default:
			shape = append(shape, token{star: true})
			exact = exact && part.Op == syntax.OpStar && classSet(part.Sub[0]) == nameChars()
		}
	}
	return shape, exact
}

// nameToken is the token for one character; it matches nothing when topic names
// cannot hold it.
func nameToken(r rune) token {
	var t token
	if r < 128 && nameChars().has(byte(r)) {
		t.set.add(byte(r))
	}
	return t
}

// classSet returns what a character class matches in a topic name; nothing for
// any other expression.
func classSet(re *syntax.Regexp) charset {
	all := nameChars()
	switch re.Op {
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return all
	case syntax.OpCharClass:
		var set charset
		for c := byte(0); c < 128; c++ {
			for i := 0; i+1 < len(re.Rune); i += 2 {
				if all.has(c) && rune(c) >= re.Rune[i] && rune(c) <= re.Rune[i+1] {
					set.add(c)
				}
			}
		}
		return set
	}
	return charset{}
}

// possible refuses a pattern that no topic name can match.
func (p *Pattern) possible() *PatternError {
	least := 0
	for _, t := range p.shape {
		if t.star {
			continue
		}
		least++
		if t.set == (charset{}) {
			return &PatternError{What: "the pattern matches no topic name", Remedy: charsRemedy}
		}
	}
	if least == 0 {
		return &PatternError{What: "the pattern matches only the empty name", Remedy: "no topic has it: write the names that are meant"}
	}
	if least > MaxTopicName {
		return &PatternError{What: fmt.Sprintf("the pattern asks for %d characters or more", least), Remedy: fmt.Sprintf("a topic name has at most %d", MaxTopicName)}
	}
	return nil
}

func firstRune(s string) string {
	for _, r := range s {
		return string(r)
	}
	return ""
}
