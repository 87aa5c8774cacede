package router

import (
	"fmt"
	"testing"

	"github.com/sluice-kafka/sluice/tiers"
)

func BenchmarkPlace(b *testing.B) {
	var rules []Rule
	for i := range 100 {
		rules = append(rules, Rule{Patterns: []string{fmt.Sprintf("team-%02d-*", i)}, Class: "a"})
	}
	r, err := New(rules, map[string]tiers.Class{"a": {Name: "a", Tier: tiers.Diskless}}, "a")
	if err != nil {
		b.Fatal(err)
	}
	topics := []string{string([]byte("team-99-orders")), string([]byte("team-98-orders"))}
	b.Run("seen", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			r.Place(topics[i%2], tiers.TopicFacts{Known: true})
		}
	})
	b.Run("seen, all cores", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				r.Place(topics[0], tiers.TopicFacts{Known: true})
			}
		})
	})
	b.Run("100 rules walked", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.match("team-99-orders")
		}
	})
}
