package router

// Shadow is a pattern that can never be the first to match.
type Shadow struct {
	Rule, Pattern     int // the dead one: index of the rule, and of the pattern in it
	ByRule, ByPattern int // the earlier one, which matches all that it matches
}

// Shadowed finds patterns that an earlier rule's pattern always forestalls. What
// it finds is certain. It compares character by character, regular expressions
// as the globs that they resemble, and does not look for several earlier
// patterns that only together cover a later one. Patterns that do not compile
// are left out.
func Shadowed(rules []Rule) []Shadow {
	compiled := make([][]Pattern, len(rules))
	for i, rule := range rules {
		compiled[i] = make([]Pattern, len(rule.Patterns))
		for j, source := range rule.Patterns {
			compiled[i][j], _ = Compile(source)
		}
	}
	var out []Shadow
	for i := range compiled {
		for j, p := range compiled[i] {
			if byRule, byPattern, dead := forestalled(compiled[:i], p); dead {
				out = append(out, Shadow{Rule: i, Pattern: j, ByRule: byRule, ByPattern: byPattern})
			}
		}
	}
	return out
}

func forestalled(earlier [][]Pattern, p Pattern) (rule, pattern int, dead bool) {
	if p.shape == nil {
		return 0, 0, false
	}
	for i := range earlier {
		for j, q := range earlier[i] {
			if q.shape != nil && q.covers(p) {
				return i, j, true
			}
		}
	}
	return 0, 0, false
}
