package benchmarks

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"go.yaml.in/yaml/v3"
)

//go:embed workloads/*.yaml
var builtIn embed.FS

// Workload is what every target gets. The YAML names are those of the files,
// the JSON names are part of the report; both are stable.
type Workload struct {
	Name        string            `yaml:"name" json:"name"`
	About       string            `yaml:"about" json:"about"`
	Partitions  int               `yaml:"partitions" json:"partitions"`
	Replication int               `yaml:"replication" json:"replication"` // 0: as many as there are brokers, at most 3
	TopicConfig map[string]string `yaml:"topic_config" json:"topic_config,omitempty"`
	WarmUp      Duration          `yaml:"warm_up" json:"warm_up"` // records due in it are sent and not measured
	Duration    Duration          `yaml:"duration" json:"duration"`
	Backlog     Size              `yaml:"backlog" json:"backlog_bytes"`           // written to the first stream before each run, and read by its consumers
	Connections int               `yaml:"connections" json:"connections"`         // idle ones, held beside the load
	OneClient   bool              `yaml:"one_client" json:"one_client"`           // all streams through one producer
	UntilFull   bool              `yaml:"until_saturated" json:"until_saturated"` // a target's steps end with the first that saturates it
	Streams     []Stream          `yaml:"streams" json:"streams"`
	Steps       []Step            `yaml:"steps" json:"steps,omitempty"`
}

// Stream is one topic with its producers and consumers.
type Stream struct {
	Name        string   `yaml:"name" json:"name"`
	Rate        Rate     `yaml:"rate" json:"rate"`                 // records a second, all producers together
	Records     int      `yaml:"records" json:"records,omitempty"` // with rate max: how many
	Size        Size     `yaml:"size" json:"size_bytes"`
	Producers   int      `yaml:"producers" json:"producers"`
	Consumers   int      `yaml:"consumers" json:"consumers"` // each reads everything
	Spread      string   `yaml:"spread" json:"spread"`       // sticky or round-robin
	Linger      Duration `yaml:"linger" json:"linger"`
	Burst       *Burst   `yaml:"burst" json:"burst,omitempty"`
	Transaction int      `yaml:"transaction" json:"transaction,omitempty"` // records of a transaction; 0: none
	LowLatency  bool     `yaml:"low_latency" json:"low_latency,omitempty"` // stays in the low-latency tier when the target's class is a diskless one
}

// Burst multiplies a stream's rate for a part of each period.
type Burst struct {
	Times int      `yaml:"times" json:"times"`
	For   Duration `yaml:"for" json:"for"`
	Every Duration `yaml:"every" json:"every"`
}

// Step is a variation; each round goes over all of them.
type Step struct {
	Name      string   `yaml:"name" json:"name"`
	Rate      *Rate    `yaml:"rate" json:"rate,omitempty"`           // of the first stream
	Consumers *int     `yaml:"consumers" json:"consumers,omitempty"` // of every stream
	Only      []string `yaml:"only" json:"only,omitempty"`           // streams that run
}

// Rate is records a second, or MaxRate.
type Rate int

// MaxRate is as fast as the records are taken: a closed loop, of which only the
// throughput says something.
const MaxRate Rate = -1

func (r Rate) String() string {
	if r == MaxRate {
		return "max"
	}
	return strconv.Itoa(int(r))
}

// ParseRate reads records per second, or max.
func ParseRate(s string) (Rate, error) {
	if s == "max" {
		return MaxRate, nil
	}
	v, err := strconv.Atoi(s)
	if err != nil || v < 0 {
		return 0, fmt.Errorf("rate %q: write records per second, or max", s)
	}
	return Rate(v), nil
}

func (r *Rate) UnmarshalYAML(n *yaml.Node) (err error) {
	if *r, err = ParseRate(n.Value); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

func (r Rate) MarshalYAML() (any, error) {
	if r == MaxRate {
		return "max", nil
	}
	return int(r), nil
}

func (r Rate) MarshalJSON() ([]byte, error) {
	v, _ := r.MarshalYAML()
	return json.Marshal(v)
}

func (r *Rate) UnmarshalJSON(text []byte) (err error) {
	*r, err = ParseRate(strings.Trim(string(text), `"`))
	return err
}

// Size is bytes, written with or without a unit.
type Size int64

// ParseSize reads 1024, 1KiB, 1KB, 20MiB.
func ParseSize(s string) (Size, error) {
	v, err := humanize.ParseBytes(s)
	if err != nil || v > 1<<50 {
		return 0, fmt.Errorf("size %q: write bytes, or a unit such as 1KiB", s)
	}
	return Size(v), nil
}

func (s *Size) UnmarshalYAML(n *yaml.Node) (err error) {
	if *s, err = ParseSize(n.Value); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

// Duration is written as in Go: 250ms, 60s.
type Duration time.Duration

func (d Duration) String() string               { return time.Duration(d).String() }
func (d Duration) seconds() float64             { return time.Duration(d).Seconds() }
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	if err := d.parse(n.Value); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

func (d *Duration) UnmarshalJSON(text []byte) error { return d.parse(strings.Trim(string(text), `"`)) }

func (d *Duration) parse(text string) error {
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 {
		return fmt.Errorf("duration %q: write for example 250ms or 60s", text)
	}
	*d = Duration(v)
	return nil
}

// BuiltIn lists the workloads that come with sluice.
func BuiltIn() []Workload {
	files, err := builtIn.ReadDir("workloads")
	if err != nil {
		panic(err) // they are compiled in
	}
	var all []Workload
	for _, f := range files {
		w, err := Load(strings.TrimSuffix(f.Name(), ".yaml"))
		if err != nil {
			panic(err) // a test reads them all
		}
		all = append(all, w)
	}
	return all
}

func names() string {
	var all []string
	for _, w := range BuiltIn() {
		all = append(all, w.Name)
	}
	return strings.Join(all, ", ")
}

// Source is a built-in workload's file, to be copied and changed.
func Source(name string) ([]byte, error) {
	text, err := builtIn.ReadFile(path.Join("workloads", name+".yaml"))
	if err != nil {
		return nil, fmt.Errorf("there is no workload %q; there are %s, or name a file", name, names())
	}
	return text, nil
}

// Load reads a built-in workload by its name, or a file by its path, which has
// a slash or a dot.
func Load(name string) (Workload, error) {
	var text []byte
	var err error
	if strings.ContainsAny(name, "./\\") {
		text, err = os.ReadFile(name)
	} else {
		text, err = Source(name)
	}
	if err != nil {
		return Workload{}, err
	}
	w, err := parseWorkload(text)
	if err != nil {
		return w, fmt.Errorf("workload %s: %w", name, err)
	}
	return w, nil
}

func parseWorkload(text []byte) (w Workload, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&w); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the file is empty")
		}
		return w, err
	}
	w.defaults()
	return w, w.Validate()
}

func (w *Workload) defaults() {
	if w.Partitions == 0 {
		w.Partitions = 6
	}
	for i := range w.Streams {
		s := &w.Streams[i]
		if s.Name == "" && len(w.Streams) == 1 {
			s.Name = "main"
		}
		if s.Size == 0 {
			s.Size = 1 << 10
		}
		if s.Producers == 0 {
			s.Producers = 1
		}
		if s.Spread == "" {
			s.Spread = "sticky"
		}
	}
	if len(w.Steps) == 0 {
		w.Steps = []Step{{}}
	}
	for i := range w.Steps {
		st := &w.Steps[i]
		switch {
		case st.Name != "":
		case st.Rate != nil:
			st.Name = st.Rate.String() + "/s"
		case st.Consumers != nil:
			st.Name = fmt.Sprintf("%d consumers", *st.Consumers)
		}
	}
}

// Bounds of a workload: what a mistyped file could otherwise ask of a cluster.
const (
	minSize       = valueHead + valueTail
	maxSize       = 64 << 20
	maxRecords    = 1 << 30
	maxRate       = 10_000_000
	maxPartitions = 100_000
	maxClients    = 1_000
	maxIdle       = 50_000
	maxSteps      = 100
)

// Validate names everything that is wrong.
func (w *Workload) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	within := func(what string, v, least, most int64) {
		if v < least || v > most {
			bad("%s is %d; it may be %d to %d", what, v, least, most)
		}
	}
	if w.Name == "" {
		bad("name is missing")
	}
	if len(w.Streams) == 0 {
		bad("streams is missing: what is produced and consumed")
	}
	within("partitions", int64(w.Partitions), 1, maxPartitions)
	within("replication", int64(w.Replication), 0, 100)
	within("connections", int64(w.Connections), 0, maxIdle)
	within("the number of steps", int64(len(w.Steps)), 1, maxSteps)
	seen := map[string]bool{}
	for i, s := range w.Streams {
		at := fmt.Sprintf("streams[%d].", i)
		if s.Name == "" || strings.Trim(s.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || seen[s.Name] {
			bad("%sname %q: each stream has its own, of a-z, 0-9 and -", at, s.Name)
		}
		seen[s.Name] = true
		within(at+"size", int64(s.Size), minSize, maxSize)
		within(at+"producers", int64(s.Producers), 1, maxClients)
		within(at+"consumers", int64(s.Consumers), 0, maxClients)
		within(at+"transaction", int64(s.Transaction), 0, 1_000_000)
		if s.Rate != MaxRate {
			within(at+"rate", int64(s.Rate), 0, maxRate)
			if s.Records != 0 {
				bad("%srecords is for rate: max; otherwise duration says how many", at)
			}
		} else {
			within(at+"records (with rate: max)", int64(s.Records), 1, maxRecords)
		}
		if s.Rate > 0 && w.Duration <= 0 {
			bad("duration is missing")
		}
		if s.Spread != "sticky" && s.Spread != "round-robin" {
			bad("%sspread %q: sticky or round-robin", at, s.Spread)
		}
		if b := s.Burst; b != nil && (b.Times < 2 || b.For <= 0 || b.Every <= b.For || s.Rate <= 0) {
			bad("%sburst: times is 2 or more, for is shorter than every, and the stream has a rate", at)
		} else if b != nil && w.Duration < b.Every {
			bad("%sburst: duration %v could be without one; they come every %v, so measure that long or longer", at, w.Duration, b.Every)
		}
		if s.Transaction > 0 && w.OneClient {
			bad("%stransaction: not with one_client, whose streams would share the transactions", at)
		}
	}
	if w.Backlog > 0 && len(w.Streams) > 0 && w.Streams[0].Consumers == 0 {
		bad("backlog: the first stream has no consumers to read it")
	}
	for i, st := range w.Steps {
		if st.Name == "" && len(w.Steps) > 1 {
			bad("steps[%d].name is missing", i)
		}
		if st.Rate != nil && *st.Rate != MaxRate {
			within(fmt.Sprintf("steps[%d].rate", i), int64(*st.Rate), 1, maxRate)
		}
		for _, name := range st.Only {
			if !seen[name] {
				bad("steps[%d].only: there is no stream %q", i, name)
			}
		}
		for _, s := range w.at(st) {
			if n := float64(s.Rate) * (w.Duration.seconds() + w.WarmUp.seconds()); n > maxRecords {
				bad("%s: %.0f records are too many for one run; shorten duration or lower rate", s.Name, n)
			}
		}
	}
	return errors.Join(errs...)
}

// at is the streams of a step.
func (w *Workload) at(st Step) []Stream {
	var out []Stream
	for i, s := range w.Streams {
		if len(st.Only) > 0 && !slices.Contains(st.Only, s.Name) {
			continue
		}
		if st.Rate != nil && i == 0 {
			s.Rate = *st.Rate
		}
		if st.Consumers != nil {
			s.Consumers = *st.Consumers
		}
		out = append(out, s)
	}
	return out
}

// plan is when the records of a stream are due, counted from the start.
type plan struct {
	records int
	due     func(i int) time.Duration // nil: at once
}

func (s Stream) plan(whole time.Duration) plan {
	if s.Rate == MaxRate {
		return plan{records: s.Records}
	}
	rate := float64(s.Rate)
	if s.Burst == nil {
		return plan{
			records: int(rate * whole.Seconds()),
			due:     func(i int) time.Duration { return time.Duration(float64(i) / rate * float64(time.Second)) },
		}
	}
	// A period begins with its calm part, so that a burst meets a warm system.
	every, burst, times := s.Burst.Every.seconds(), s.Burst.For.seconds(), float64(s.Burst.Times)
	calm := every - burst
	inCalm := rate * calm
	inPeriod := inCalm + rate*times*burst
	at := func(i int) time.Duration {
		period := math.Floor(float64(i) / inPeriod)
		rest := float64(i) - period*inPeriod
		t := period * every
		if rest < inCalm {
			t += rest / rate
		} else {
			t += calm + (rest-inCalm)/(rate*times)
		}
		return time.Duration(t * float64(time.Second))
	}
	rest := math.Mod(whole.Seconds(), every)
	n := math.Floor(whole.Seconds()/every)*inPeriod + rate*min(rest, calm) + rate*times*max(0, rest-calm)
	return plan{records: int(n), due: at}
}
