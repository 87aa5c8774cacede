package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// Reload says what a running process makes of a new configuration: merged is
// running with every key of next that can change without a restart (topics,
// default_class, classes, log.level). applied and waiting name the keys that
// differ; waiting ones take effect with the next start.
//
// The error means that nothing of next can be applied, because its classes lean
// on something that only a restart brings.
func Reload(running, next *Config) (merged *Config, applied, waiting []string, err error) {
	for _, k := range schema() {
		if k.refused != "" {
			continue
		}
		for _, path := range k.changed(running, next) {
			list := &waiting
			if k.live {
				list = &applied
			}
			if !slices.Contains(*list, path) {
				*list = append(*list, path)
			}
		}
	}
	both := *running
	both.DefaultClass, both.Rules, both.Classes = next.DefaultClass, next.Rules, next.Classes
	both.Log.Level = next.Log.Level
	for _, name := range both.usedClasses() {
		c := both.Classes[name]
		if c.Tier != tiers.Diskless {
			continue
		}
		if _, ok := both.Stores[c.Store]; !ok {
			return nil, nil, nil, fmt.Errorf("config: the class %s uses the store %q, which this process was not started with; restart to use it", name, c.Store)
		}
		if c.ObjectSize > both.Limits.WriteBufferBytes {
			return nil, nil, nil, fmt.Errorf("config: the class %s has objects larger than the limits.write_buffer_bytes that this process was started with; restart to use it", name)
		}
	}
	return &both, applied, waiting, nil
}

// usedClasses are the classes that a rule or the default leads to.
func (c *Config) usedClasses() []string {
	used := map[string]bool{c.DefaultClass: true}
	for _, rule := range c.Rules {
		used[rule.Class] = true
	}
	return slices.Sorted(maps.Keys(used))
}

// changed returns the paths at which a key differs: several for a key of named
// sections. A section that only one side has is named as a whole, topics always.
func (k key) changed(a, b *Config) []string {
	differs := func(ta, tb target) bool {
		return !reflect.DeepEqual(reflect.ValueOf(k.field(ta)).Elem().Interface(), reflect.ValueOf(k.field(tb)).Elem().Interface())
	}
	files := func(name string) *secretFiles {
		return &secretFiles{secretKey: map[string]*string{name: new(string)}}
	}
	switch k.section() {
	case "topics[]":
		// Lines move when somebody adds a comment; nothing else changes.
		same := slices.EqualFunc(a.Rules, b.Rules, func(x, y router.Rule) bool {
			return x.Class == y.Class && slices.Equal(x.Patterns, y.Patterns)
		})
		if !same {
			return []string{"topics"}
		}
		return nil
	case "stores.*":
		return changedNamed(k, a.Stores, b.Stores, func(x, y Store) bool {
			return differs(target{store: &x, files: files(x.Name)}, target{store: &y, files: files(y.Name)})
		})
	case "classes.*":
		return changedNamed(k, a.Classes, b.Classes, func(x, y tiers.Class) bool {
			return differs(target{class: &x}, target{class: &y})
		})
	}
	if differs(target{Config: a, files: files("")}, target{Config: b, files: files("")}) {
		return []string{k.path}
	}
	return nil
}

func changedNamed[T any](k key, a, b map[string]T, differs func(x, y T) bool) []string {
	names := map[string]bool{}
	for name := range a {
		names[name] = true
	}
	for name := range b {
		names[name] = true
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		x, inA := a[name]
		y, inB := b[name]
		switch {
		case inA != inB:
			out = append(out, strings.Replace(k.section(), "*", name, 1))
		case differs(x, y):
			out = append(out, strings.Replace(k.path, "*", name, 1))
		}
	}
	return out
}
