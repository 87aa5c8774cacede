package router

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/tiers"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		why     string
		pattern string
		yes, no []string
	}{
		{"a literal is the whole name", "orders", []string{"orders"}, []string{"orders2", "my-orders", "order", "Orders"}},
		{"a dot is a dot", "a.b", []string{"a.b"}, []string{"aXb"}},
		{"a star is any run, also none", "otel-*", []string{"otel-", "otel-traces", "otel-a.b_c-d"}, []string{"otel", "my-otel-x"}},
		{"stars may stand anywhere", "*.trace.*", []string{"agent.trace.1", "a.trace..trace.b"}, []string{"trace.1", "agent.trace"}},
		{"a question mark is one character", "shard-?", []string{"shard-1", "shard-x"}, []string{"shard-", "shard-10"}},
		{"a set is one of its characters", "shard-[0-3x]", []string{"shard-0", "shard-3", "shard-x"}, []string{"shard-4", "shard-", "shard-00"}},
		{"a set may be turned round", "[^_]*", []string{"a", "-_"}, []string{"__consumer_offsets"}},
		{"so also the way shells do", "[!_]*", []string{"a"}, []string{"_a"}},
		{"a hyphen at an end of a set is itself", "a[x-]b", []string{"a-b", "axb"}, []string{"ayb"}},
		{"a regular expression is the whole name", "/orders|payments/", []string{"orders", "payments"}, []string{"orders2", "xpayments"}},
		{"its own anchors do no harm", "/^otel-.+$/", []string{"otel-x"}, []string{"otel-", "xotel-x"}},
		{"its alternatives stay inside the anchors", "/a|b.*/", []string{"a", "bcd"}, []string{"ab", "ac"}},
		{"an open quote does not swallow the anchors", `/\Qa.b/`, []string{"a.b"}, []string{"axb", "a.bc"}},
		{"case can be ignored", "/(?i)audit.*/", []string{"AUDIT.x", "audit"}, []string{"aud"}},
		{"backtracking reaches every star", "*a*b*c", []string{"abc", "aabbcc", "xaxbxc-c"}, []string{"acb", "ab"}},
	} {
		p, err := Compile(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.why, err)
			continue
		}
		for _, topic := range c.yes {
			if !p.Match(topic) {
				t.Errorf("%s: %q does not match %q", c.why, c.pattern, topic)
			}
		}
		for _, topic := range c.no {
			if p.Match(topic) {
				t.Errorf("%s: %q matches %q", c.why, c.pattern, topic)
			}
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, c := range []struct {
		pattern string
		offset  int
		what    string
	}{
		{"", 0, "empty"},
		{"a b", 1, `" "`},
		{"a/b", 1, `"/"`},
		{"tést", 1, `"é"`},
		{"a[", 1, "never closed"},
		{"a[x", 1, "never closed"},
		{"a[]", 1, "empty"},
		{"a[^]", 1, "empty"},
		{"a[z-a]", 2, "backwards"},
		{"a[b-é]", 4, "no topic name"},
		{"[^a-zA-Z0-9._-]", 0, "matches no topic"},
		{"/", 0, "never ends"},
		{"/a", 0, "never ends"},
		{"//", 0, "empty"},
		{"/^$/", 0, "only the empty name"},
		{"/a(b/", 1, "missing closing )"},
		{"/ab[z-a]/", 4, "range"},
		{"/a)|(b/", 1, "unexpected )"},
		{"/caf\u00e9.*/", 0, "matches no topic"},
		{"/(a|b)+\u00e9/", 0, "matches no topic"},
		{strings.Repeat("a", MaxTopicName+1), 0, "250 characters"},
	} {
		_, err := Compile(c.pattern)
		var bad *PatternError
		if !errors.As(err, &bad) {
			t.Errorf("%q: %v", c.pattern, err)
			continue
		}
		if bad.Offset != c.offset || !strings.Contains(bad.What, c.what) || bad.Remedy == "" || bad.Pattern != c.pattern {
			t.Errorf("%q: offset %d, %q, want %d, %q", c.pattern, bad.Offset, bad.What, c.offset, c.what)
		}
	}
}

func classes() map[string]tiers.Class {
	return map[string]tiers.Class{
		"control":   {Name: "control", Tier: tiers.LowLatency},
		"telemetry": {Name: "telemetry", Tier: tiers.Diskless},
		"audit":     {Name: "audit", Tier: tiers.Diskless},
	}
}

func TestPlace(t *testing.T) {
	r, err := New([]Rule{
		{Patterns: []string{"payments*"}, Class: "control", Line: 3},
		{Patterns: []string{"otel-*", "agent.trace.*", "__*"}, Class: "telemetry", Line: 4},
		{Patterns: []string{"/.*-audit/"}, Class: "audit", Line: 5},
	}, classes(), "control")
	if err != nil {
		t.Fatal(err)
	}
	known := tiers.TopicFacts{Known: true}
	for _, c := range []struct {
		why    string
		topic  string
		facts  tiers.TopicFacts
		class  string
		rule   tiers.Rule
		tier   tiers.Tier
		reason tiers.Reason
	}{
		{"the first rule that matches", "payments-audit", known, "control", tiers.Rule{Index: 0, Pattern: "payments*", Line: 3}, tiers.LowLatency, tiers.ByClass},
		{"the pattern that matched is named", "agent.trace.1", known, "telemetry", tiers.Rule{Index: 1, Pattern: "agent.trace.*", Line: 4}, tiers.Diskless, tiers.ByClass},
		{"no rule: the default class", "other", known, "control", tiers.Rule{Index: -1}, tiers.LowLatency, tiers.ByClass},
		{"compacted topics stay inline", "otel-x", tiers.TopicFacts{Known: true, Compacted: true}, "telemetry", tiers.Rule{Index: 1, Pattern: "otel-*", Line: 4}, tiers.LowLatency, tiers.Compacted},
		{"unknown topics stay inline", "otel-x", tiers.TopicFacts{}, "telemetry", tiers.Rule{Index: 1, Pattern: "otel-*", Line: 4}, tiers.LowLatency, tiers.Unknown},
		{"internal topics stay inline, and that is the reason given, known or not", "__consumer_offsets", tiers.TopicFacts{Internal: true, Compacted: true}, "telemetry", tiers.Rule{Index: 1, Pattern: "__*", Line: 4}, tiers.LowLatency, tiers.Internal},
		{"a low-latency class needs no reason", "payments", tiers.TopicFacts{Internal: true, Compacted: true}, "control", tiers.Rule{Index: 0, Pattern: "payments*", Line: 3}, tiers.LowLatency, tiers.ByClass},
		{"a name that no topic can have is placed and not remembered", strings.Repeat("x", 300), known, "control", tiers.Rule{Index: -1}, tiers.LowLatency, tiers.ByClass},
	} {
		for range 2 { // the second answer is a remembered one
			got := r.Place(c.topic, c.facts)
			want := tiers.Placement{Class: got.Class, Rule: c.rule, Tier: c.tier, Reason: c.reason}
			if got != want || got.Class.Name != c.class {
				t.Errorf("%s: %+v (%s), want %+v (%s)", c.why, got, got.Class.Name, want, c.class)
			}
		}
	}
	if _, remembered := r.remembered.Load(strings.Repeat("x", 300)); remembered {
		t.Error("a name that is too long for Kafka was remembered")
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New([]Rule{{Patterns: []string{"a"}, Class: "gold"}}, classes(), "control"); err == nil || !strings.Contains(err.Error(), "gold") {
		t.Error("unknown class of a rule:", err)
	}
	if _, err := New(nil, classes(), "gold"); err == nil || !strings.Contains(err.Error(), "gold") {
		t.Error("unknown default class:", err)
	}
	var bad *PatternError
	if _, err := New([]Rule{{Patterns: []string{"["}, Class: "control"}}, classes(), "control"); !errors.As(err, &bad) {
		t.Error("bad pattern:", err)
	}
}

func TestHasDiskless(t *testing.T) {
	for _, c := range []struct {
		why          string
		class, other string
		want         bool
	}{
		{"a diskless class that nothing leads to does not count", "control", "control", false},
		{"a rule does", "telemetry", "control", true},
		{"so does the default", "control", "telemetry", true},
	} {
		r, err := New([]Rule{{Patterns: []string{"a"}, Class: c.class}}, classes(), c.other)
		if err != nil || r.HasDiskless() != c.want {
			t.Errorf("%s: %v, %v", c.why, r.HasDiskless(), err)
		}
	}
}

func TestPlaceKeepsNothingOfTheCallersBytes(t *testing.T) {
	r, err := New([]Rule{{Patterns: []string{"otel-*"}, Class: "telemetry"}}, classes(), "control")
	if err != nil {
		t.Fatal(err)
	}
	frame := []byte("otel-traces")
	view := unsafe.String(&frame[0], len(frame))
	r.Place(view, tiers.TopicFacts{Known: true})
	copy(frame, "payments-eu")
	if got := r.Place(view, tiers.TopicFacts{Known: true}); got.Class.Name != "control" {
		t.Errorf("after the buffer was used again: %s", got.Class.Name)
	}
	if got := r.Place("otel-traces", tiers.TopicFacts{Known: true}); got.Class.Name != "telemetry" {
		t.Errorf("the first topic: %s", got.Class.Name)
	}
}

func TestPlaceDoesNotAllocate(t *testing.T) {
	r, err := New([]Rule{{Patterns: []string{"otel-*"}, Class: "telemetry"}}, classes(), "control")
	if err != nil {
		t.Fatal(err)
	}
	topic := strings.Clone("otel-traces")
	facts := tiers.TopicFacts{Known: true}
	r.Place(topic, facts)
	if n := testing.AllocsPerRun(100, func() { r.Place(topic, facts) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestMemoryIsBoundedAndRightBeyondItsBound(t *testing.T) {
	r, err := New([]Rule{{Patterns: []string{"*7"}, Class: "telemetry"}}, classes(), "control")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range maxRemembered {
				topic := fmt.Sprintf("t-%d-%d", g, i)
				want := "control"
				if i%10 == 7 {
					want = "telemetry"
				}
				if got := r.Place(topic, tiers.TopicFacts{Known: true}).Class.Name; got != want {
					t.Errorf("%s: %s", topic, got)
				}
			}
		})
	}
	wg.Wait()
	n := 0
	r.remembered.Range(func(_, _ any) bool { n++; return true })
	if n == 0 || n > maxRemembered+4 {
		t.Errorf("%d topics remembered, the bound is %d", n, maxRemembered)
	}
}

func TestShadowed(t *testing.T) {
	for _, c := range []struct {
		why            string
		earlier, later string
		dead           bool
	}{
		{"the same pattern", "orders", "orders", true},
		{"a star takes everything", "*", "orders", true},
		{"so do two", "**", "/a|b/", true},
		{"so does any regular expression", "/.*/", "x-*", true},
		{"every name has a character", "/.+/", "*", true},
		{"at least two characters is not everything", "??*", "*", false},
		{"a glob takes a literal", "otel-*", "otel-traces", true},
		{"a glob takes a narrower one", "otel-*", "otel-traces-*", true},
		{"not a wider one", "otel-traces-*", "otel-*", false},
		{"not one that only overlaps", "otel-*", "*-traces", false},
		{"a set takes a smaller one", "s-[a-f]", "s-[b-c]", true},
		{"not a larger one", "s-[a-f]", "s-[e-g]", false},
		{"a question mark takes a set", "s-?", "s-[a-f]", true},
		{"not a star", "s-?", "s-*", false},
		{"order of star and question mark does not matter", "a?*", "a*?", true},
		{"a regular expression takes a literal", "/(a|b)c/", "bc", true},
		{"written as a glob would be, also a glob", "/otel-.*/", "otel-traces-*", true},
		{"a glob takes a regular expression by its beginning", "otel-*", "/otel-(a|b)/", true},
		{"not when the beginning is shorter", "otel-a*", "/otel-(a|b)/", false},
		{"with an anchor too", "otel-*", "/^otel-(a|b)$/", true},
		{"or by its end", "*-raw", "/(a|b)+-raw/", true},
		{"alternatives have no common beginning", "a*", "/ab|c/", false},
		{"case ignored is wider", "/audit.*/", "/(?i)audit.*/", false},
	} {
		got := Shadowed([]Rule{{Patterns: []string{c.earlier}}, {Patterns: []string{c.later}}})
		if c.dead != (len(got) == 1) {
			t.Errorf("%s: %q, then %q: %+v", c.why, c.earlier, c.later, got)
		}
	}
	got := Shadowed([]Rule{{Patterns: []string{"x", "a*"}}, {Patterns: []string{"b"}}, {Patterns: []string{"c", "b", "ab"}}})
	if want := []Shadow{{2, 1, 1, 0}, {2, 2, 0, 1}}; !slices.Equal(got, want) {
		t.Errorf("where: %+v, want %+v", got, want)
	}
	if got := Shadowed([]Rule{{Patterns: []string{"a*", "ab"}}, {Patterns: []string{"["}}}); len(got) > 0 {
		t.Errorf("patterns of one rule, or bad ones: %+v", got)
	}
}

// alphabet is small, so that patterns and names meet.
const alphabet = "ab.-"

func globs() *rapid.Generator[string] {
	return rapid.Map(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", ".", "*", "?", "[ab]", "[^a]", "[a-b.]"}), 1, 6), func(s []string) string {
		return strings.Join(s, "")
	})
}

func regexes() *rapid.Generator[string] {
	return rapid.Map(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", `\.`, ".*", ".+", ".", "[ab]", "[^a]", "(a|b)", "(ab)?", "a*"}), 1, 5), func(s []string) string {
		return "/" + strings.Join(s, "") + "/"
	})
}

func names() *rapid.Generator[string] {
	return rapid.StringOfN(rapid.RuneFrom([]rune(alphabet)), 1, 8, -1)
}

// path.Match and regexp are what the patterns are documented as.
func TestMatchAgainstTheStandardLibrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		glob, regex, name := globs().Draw(t, "glob"), regexes().Draw(t, "regex"), names().Draw(t, "name")
		if p, err := Compile(glob); err != nil {
			t.Fatal(err)
		} else if want, _ := path.Match(glob, name); p.Match(name) != want {
			t.Fatalf("%q on %q: want %v", glob, name, want)
		}
		if p, err := Compile(regex); err != nil {
			t.Fatal(err)
		} else if want := regexp.MustCompile("^(" + strings.Trim(regex, "/") + ")$").MatchString(name); p.Match(name) != want {
			t.Fatalf("%q on %q: want %v", regex, name, want)
		}
	})
}

// A pattern that is called dead is never the first to match.
func TestShadowedIsSound(t *testing.T) {
	var all []string
	for n := 1; n <= 5; n++ {
		for i := range pow(len(alphabet), n) {
			name := make([]byte, n)
			for j := range name {
				name[j] = alphabet[i%len(alphabet)]
				i /= len(alphabet)
			}
			all = append(all, string(name))
		}
	}
	either := rapid.OneOf(globs(), regexes())
	rapid.Check(t, func(t *rapid.T) {
		earlier, later := either.Draw(t, "earlier"), either.Draw(t, "later")
		dead := len(Shadowed([]Rule{{Patterns: []string{earlier}}, {Patterns: []string{later}}})) > 0
		p, err := Compile(earlier)
		if err != nil {
			t.Fatal(err)
		}
		q, err := Compile(later)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range all {
			if dead && q.Match(name) && !p.Match(name) {
				t.Fatalf("%q is called dead behind %q, but %q reaches it", later, earlier, name)
			}
		}
	})
}

func pow(base, exponent int) int {
	n := 1
	for range exponent {
		n *= base
	}
	return n
}

func FuzzCompile(f *testing.F) {
	for _, s := range []string{"a*", "/a|b/", "[a-z]?", "/(?i)x{2,3}/", "/\\Qa/", "[", "/é/"} {
		f.Add(s, "topic")
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		p, err := Compile(pattern)
		if err != nil {
			var bad *PatternError
			if !errors.As(err, &bad) || bad.Offset < 0 || bad.Offset > len(pattern) || bad.Error() == "" {
				t.Fatalf("%q: %#v", pattern, err)
			}
			return
		}
		p.Match(name)
		if !p.covers(p) {
			t.Fatalf("%q does not cover itself", pattern)
		}
	})
}
