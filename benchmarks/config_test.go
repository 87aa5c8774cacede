package benchmarks

import (
	"strings"
	"testing"

	"github.com/sluice-kafka/sluice/config"
)

// A stream's name is part of its topic's: a rule may send that to another class
// than the one that is measured.
func TestAStreamsNameDoesNotChangeTheClass(t *testing.T) {
	for _, tt := range []struct {
		match, stream string
		want          string // targets
	}{
		{"*-telemetry", "main", "control telemetry"},
		{"*-telemetry", "telemetry", "telemetry"},
		{"*-in-telemetry", "telemetry", "control telemetry"},
	} {
		cfg, err := config.Parse("test", []byte(`kafka: { bootstrap: ["127.0.0.1:9092"] }
listen: { bootstrap: "127.0.0.1:19092", brokers: "127.0.0.1:19100-19199" }
stores: { default: { url: "file:///tmp" } }
default_class: control
topics: [{ match: "`+tt.match+`", class: telemetry }]
`))
		if err != nil {
			t.Fatal(err)
		}
		classes, err := pick(cfg, []string{"control", "telemetry"})
		if err != nil {
			t.Fatal(err)
		}
		var c Classes
		_ = c.running(cfg, classes, []string{tt.stream}, Target{}) // it has no direct target here
		var got []string
		for _, target := range c.Targets {
			got = append(got, target.Name)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s, stream %s: %v, want %s; %v", tt.match, tt.stream, got, tt.want, c.Notes)
		}
	}
}
