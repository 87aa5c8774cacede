// Package router decides where a topic's payloads live: topic → class → tier.
// It is pure: the rules come from the configuration, the facts from the caller.
//
// Rules are tried in order and the first match wins, so a later rule can be
// dead; Shadowed finds those. The class's own tier gives way to the brokers'
// whenever placeholders could not survive in the topic's log, or nobody knows.
package router

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sluice-kafka/sluice/tiers"
)

// maxRemembered bounds the topics whose rule is remembered. Names come from
// clients, existing or not; when the memory is full it is forgotten as a whole,
// which costs one walk over the rules for each live topic.
const maxRemembered = 16384

// Rule sends the topics that any of its patterns matches to a class.
type Rule struct {
	Patterns []string // in the order written; the first that matches is reported
	Class    string
	Line     int // of the configuration file; 0 when there is none
}

// Router places topics. It is immutable and safe for concurrent use.
type Router struct {
	patterns []routed
	fallback decision
	diskless bool

	remembered sync.Map     // topic name → *decision
	count      atomic.Int64 // of remembered, or a little more
}

// routed is one pattern and where it leads.
type routed struct {
	Pattern
	decision
}

// decision is what a topic's name alone decides.
type decision struct {
	class *tiers.Class
	rule  tiers.Rule
}

// New compiles the rules. The error is a *PatternError, or names a class that
// is not in classes. classes is copied.
func New(rules []Rule, classes map[string]tiers.Class, defaultClass string) (*Router, error) {
	own := make(map[string]*tiers.Class, len(classes))
	for name, class := range classes {
		own[name] = &class
	}
	r := &Router{}
	decide := func(class string, rule tiers.Rule) (decision, error) {
		c := own[class]
		if c == nil {
			return decision{}, fmt.Errorf("router: there is no class %q; the configuration declares classes in its section classes", class)
		}
		r.diskless = r.diskless || c.Tier == tiers.Diskless
		return decision{c, rule}, nil
	}
	for i, rule := range rules {
		for _, source := range rule.Patterns {
			p, err := Compile(source)
			if err != nil {
				return nil, err
			}
			d, err := decide(rule.Class, tiers.Rule{Index: i, Pattern: source, Line: rule.Line})
			if err != nil {
				return nil, err
			}
			r.patterns = append(r.patterns, routed{p, d})
		}
	}
	fallback, err := decide(defaultClass, tiers.Rule{Index: -1})
	if err != nil {
		return nil, err
	}
	r.fallback = fallback
	return r, nil
}

// Place says where the topic's payloads go. It does not allocate for a topic
// that it has seen before.
func (r *Router) Place(topic string, facts tiers.TopicFacts) tiers.Placement {
	d := r.decide(topic)
	p := tiers.Placement{Class: d.class, Rule: d.rule, Tier: d.class.Tier, Reason: tiers.ByClass}
	if p.Tier == tiers.Diskless {
		switch {
		case facts.Internal:
			p.Tier, p.Reason = tiers.LowLatency, tiers.Internal
		case !facts.Known:
			p.Tier, p.Reason = tiers.LowLatency, tiers.Unknown
		case facts.Compacted:
			p.Tier, p.Reason = tiers.LowLatency, tiers.Compacted
		}
	}
	return p
}

// HasDiskless reports whether some rule, or the default, leads to a diskless
// class. When none does, the proxy lists no diskless brokers.
func (r *Router) HasDiskless() bool { return r.diskless }

func (r *Router) decide(topic string) *decision {
	if len(r.patterns) == 0 {
		return &r.fallback
	}
	if d, ok := r.remembered.Load(topic); ok {
		return d.(*decision)
	}
	d := r.match(topic)
	if len(topic) > MaxTopicName {
		return d
	}
	if r.count.Add(1) > maxRemembered {
		r.remembered.Clear()
		r.count.Store(1)
	}
	// The caller's string may be a view into a network buffer.
	r.remembered.Store(strings.Clone(topic), d)
	return d
}

func (r *Router) match(topic string) *decision {
	for i := range r.patterns {
		if r.patterns[i].Match(topic) {
			return &r.patterns[i].decision
		}
	}
	return &r.fallback
}
