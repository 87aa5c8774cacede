package benchmarks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/server"
	"github.com/sluice-kafka/sluice/tiers"
)

// Classes are direct Kafka and classes of a configuration, each by itself, as
// targets.
type Classes struct {
	Targets []Target
	Notes   []string // what was left out, where the proxy runs
	Left    []string // what stays behind, where, and how it goes
	Close   func()
}

// ClassOptions say how to reach them.
type ClassOptions struct {
	Only      []string    // classes; empty: the low-latency default, and each diskless one that has a store but audit
	InProcess bool        // start a proxy in this process even when one is running
	TLS       *tls.Config // how to reach a running proxy that speaks TLS
	Streams   []string    // of the workload: their names are parts of topics', which rules decide by
	Logger    zerolog.Logger
}

// FromConfig compares what a configuration leads to. It measures through the
// running proxy when there is one, with names of topics that its rules send to
// the class; otherwise it starts one in this process, with ports of its own and
// rules for the benchmark's topics before those of the file.
func FromConfig(ctx context.Context, cfg *config.Config, o ClassOptions) (*Classes, error) {
	classes, err := pick(cfg, o.Only)
	if err != nil {
		return nil, err
	}
	opt, err := server.ClusterOptions(cfg, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	out := &Classes{Close: func() {}}
	defer func() { out.Left = staying(cfg, out.Targets) }()
	out.Targets = append(out.Targets, Target{Name: "direct", Bootstrap: cfg.Kafka.Bootstrap, Note: "Kafka itself", Topic: DefaultTopic, TLS: opt.TLS, SASL: opt.SASL})
	if !o.InProcess && answers(ctx, cfg.Listen.Bootstrap) {
		through := Target{Bootstrap: []string{reachable(cfg.Listen.Bootstrap)}, SASL: opt.SASL}
		if cfg.Listen.TLS.Enabled() {
			through.TLS = o.TLS
			if through.TLS == nil {
				through.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
			}
		}
		if cfg.Admin != "" {
			through.Metrics = []string{"http://" + reachable(cfg.Admin) + "/metrics"}
			if _, err := scrape(ctx, through.Metrics[0]); err != nil {
				out.Notes = append(out.Notes, fmt.Sprintf("The proxy's metrics cannot be read, so they are left out: %v", err))
				through.Metrics = nil
			}
		}
		out.Notes = append(out.Notes, "Measured through the proxy that runs at "+cfg.Listen.Bootstrap+"; its rules decide the classes.")
		return out, out.running(cfg, classes, o.Streams, through)
	}
	return out, out.start(ctx, cfg, opt, classes, o.Logger)
}

// pick checks the classes asked for, or takes the usual ones.
func pick(cfg *config.Config, only []string) (out []tiers.Class, err error) {
	usable := func(c tiers.Class) bool {
		_, ok := cfg.Stores[c.Store]
		return c.Tier == tiers.LowLatency || ok
	}
	if len(only) > 0 {
		for _, name := range only {
			c, ok := cfg.Classes[name]
			if !ok {
				return nil, fmt.Errorf("--class %s: the configuration has no such class", name)
			}
			if !usable(c) {
				return nil, fmt.Errorf("--class %s: its store %q is not configured", name, c.Store)
			}
			out = append(out, c)
		}
		return out, nil
	}
	for _, name := range []string{cfg.DefaultClass, "control", "operational"} {
		if c, ok := cfg.Classes[name]; ok && c.Tier == tiers.LowLatency {
			out = append(out, c)
			break
		}
	}
	var diskless []tiers.Class
	for _, c := range cfg.Classes {
		if c.Tier == tiers.Diskless && usable(c) && !c.Audit { // what audit keeps, nobody may delete
			diskless = append(diskless, c)
		}
	}
	slices.SortFunc(diskless, func(a, b tiers.Class) int {
		return int(a.Linger-b.Linger)*2 + strings.Compare(a.Name, b.Name)
	})
	return append(out, diskless...), nil
}

// staying says what a run leaves in stores. It is not deleted here: objects hold
// batches of other topics beside the benchmark's, and collectors know when none is
// needed.
func staying(cfg *config.Config, measured []Target) (out []string) {
	for _, name := range slices.Sorted(maps.Keys(cfg.Stores)) {
		var wrote, locked []string
		for _, t := range measured {
			switch c := cfg.Classes[t.Name]; {
			case c.Tier != tiers.Diskless || c.Store != name:
			case c.Audit:
				locked = append(locked, c.Name)
			default:
				wrote = append(wrote, c.Name)
			}
		}
		at := fmt.Sprintf("store %s, %s", name, cfg.Stores[name].URL)
		if len(wrote) > 0 {
			out = append(out, fmt.Sprintf("Objects of %s stay in %s. Nothing refers to them once the benchmark's topics are deleted; replicas delete them after gc.grace, %v, unless gc.enabled is false, or `sluice gc` with the same -c does when it is run now and then.",
				strings.Join(wrote, ", "), at, cfg.GC.Grace))
		}
		if len(locked) > 0 {
			out = append(out, fmt.Sprintf("Objects of %s stay in %s for good: audit objects are never deleted.", strings.Join(locked, ", "), at))
		}
	}
	return out
}

func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err == nil && (host == "" || host == "0.0.0.0" || host == "::") {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

func answers(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return reach(ctx, Target{Bootstrap: []string{reachable(addr)}}) == nil
}

// running finds names that the rules of the file send to each class.
func (c *Classes) running(cfg *config.Config, classes []tiers.Class, streams []string, through Target) error {
	routes, err := cfg.Router()
	if err != nil {
		return err
	}
	// Several ids: a pattern may match what is unique in a name. Targets of other
	// classes have the low-latency one's names too.
	if len(streams) == 0 {
		streams = []string{"main"}
	}
	var probes []string
	for _, id := range []string{"0123abcd", "fedc9876"} {
		for _, class := range classes {
			for _, stream := range streams {
				probes = append(probes, id+"-"+class.Name+"-"+stream)
			}
		}
	}
	low := ""
	for _, class := range classes {
		t := through
		t.Name = class.Name
		t.Note = fmt.Sprintf("class %s, %s tier, through the running proxy", class.Name, class.Tier)
		topic := nameFor(routes, cfg.Rules, class.Name, probes)
		if topic == "" {
			c.Notes = append(c.Notes, fmt.Sprintf("Class %s is left out: no plain glob of the rules leads to it. --in-process starts a proxy with rules of its own.", class.Name))
			continue
		}
		t.Topic = topic
		if class.Tier == tiers.LowLatency && low == "" {
			low = topic
		}
		t.LowTopic = low
		c.Targets = append(c.Targets, t)
	}
	if len(c.Targets) == 1 {
		return errors.New("no rule leads to any of the classes by a plain glob; --in-process starts a proxy with rules of its own")
	}
	return nil
}

// nameFor is a pattern for Target.Topic whose names have the class with each
// probe in the asterisk's place, "" when there is none.
func nameFor(routes *router.Router, rules []router.Rule, class string, probes []string) string {
	candidates := []string{DefaultTopic}
	for _, r := range rules {
		for _, p := range r.Patterns {
			if r.Class == class && strings.Count(p, "*") == 1 && strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.*") == "" {
				candidates = append(candidates, strings.Replace(p, "*", DefaultTopic, 1))
			}
		}
	}
	for _, c := range candidates {
		match := true
		for _, unique := range probes {
			match = match && routes.Place(strings.Replace(c, "*", unique, 1), tiers.TopicFacts{}).Class.Name == class
		}
		if match {
			return c
		}
	}
	return ""
}

// start runs a proxy in this process.
func (c *Classes) start(ctx context.Context, cfg *config.Config, opt lowlatency.Options, classes []tiers.Class, log zerolog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	cluster, err := lowlatency.New(opt)
	if err != nil {
		return err
	}
	meta, err := kadm.NewClient(cluster.Client()).BrokerMetadata(ctx)
	cluster.Close()
	if err != nil {
		return fmt.Errorf("asking %s for its brokers: %w", strings.Join(cfg.Kafka.Bootstrap, ", "), err)
	}
	own := *cfg
	own.Listen = config.Listen{Advertise: "127.0.0.1"}
	for _, id := range meta.Brokers.NodeIDs() {
		own.Listen.NodeIDs = append(own.Listen.NodeIDs, config.NodeIDRange{First: id, Last: id})
	}
	own.Rules = nil
	low := ""
	for _, class := range classes {
		own.Rules = append(own.Rules, router.Rule{Patterns: []string{"sluice-bench-*." + class.Name}, Class: class.Name})
		if class.Tier == tiers.LowLatency && low == "" {
			low = class.Name
		}
	}
	if low == "" {
		low = "control"
		own.Rules = append(own.Rules, router.Rule{Patterns: []string{"sluice-bench-*." + low}, Class: low})
	}
	own.Rules = append(own.Rules, cfg.Rules...)
	s, err := listening(ctx, &own, log)
	if err != nil {
		return err
	}
	c.Close = func() {
		drain, cancel := context.WithTimeout(context.Background(), own.Limits.DrainTimeout)
		defer cancel()
		_ = s.Shutdown(drain)
	}
	for _, class := range classes {
		c.Targets = append(c.Targets, Target{
			Name: class.Name, Note: fmt.Sprintf("class %s, %s tier, through a proxy in this process", class.Name, class.Tier),
			Bootstrap: []string{own.Listen.Bootstrap}, Metrics: []string{"http://" + own.Admin + "/metrics"}, InProcess: true,
			Topic: DefaultTopic + "." + class.Name, LowTopic: DefaultTopic + "." + low, SASL: opt.SASL,
		})
	}
	c.Notes = append(c.Notes, "Measured through a proxy that was started in this process for the run.")
	return nil
}

// Ports for a proxy of our own lie below the usual ephemeral ranges.
const (
	firstPort = 20_000
	lastPort  = 31_000
)

// listening starts the server at ports that nobody has.
func listening(ctx context.Context, cfg *config.Config, log zerolog.Logger) (*server.Server, error) {
	n := 2 + 2*cfg.Listen.NodeIDs.Len()
	at := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	var last error
	for try := range 50 {
		first := firstPort + (os.Getpid()*37+try*n)%(lastPort-firstPort-n)
		if last = free(at, first, n); last != nil {
			continue
		}
		cfg.Listen.Bootstrap, cfg.Admin = at(first), at(first+1)
		cfg.Listen.Brokers = config.PortRange{Host: "127.0.0.1", First: first + 2, Last: first + n - 1}
		s, err := server.Start(ctx, cfg, server.Options{Logger: log})
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil || !strings.Contains(err.Error(), "address already in use") {
			return nil, err
		}
		last = err
	}
	return nil, fmt.Errorf("no %d free ports in a row for the proxy: %w", n, last)
}

func free(at func(int) string, first, n int) error {
	for p := first; p < first+n; p++ {
		l, err := net.Listen("tcp", at(p))
		if err != nil {
			return err
		}
		_ = l.Close()
	}
	return nil
}

// Embedded is an embedded Kafka and a file:// store in a temporary folder, with
// a proxy in this process: a look without any cluster. It is not Apache Kafka.
func Embedded(ctx context.Context, o ClassOptions) (*Classes, error) {
	dir, err := os.MkdirTemp("", "sluice-bench-")
	if err != nil {
		return nil, err
	}
	remove := func() { _ = os.RemoveAll(dir) }
	kafka, err := kfake.NewCluster(kfake.ClusterID("sluice-bench-cluster"), kfake.DataDir(filepath.Join(dir, "kafka")))
	if err != nil {
		remove()
		return nil, fmt.Errorf("embedded Kafka: %w", err)
	}
	end := func() {
		kafka.Close()
		remove()
	}
	objects := filepath.Join(dir, "objects")
	err = os.Mkdir(objects, 0o755)
	var cfg *config.Config
	if err == nil {
		// The listeners are replaced.
		cfg, err = config.Parse("embedded", fmt.Appendf(nil, `kafka: { bootstrap: ["%s"] }
listen: { bootstrap: "127.0.0.1:19092", brokers: "127.0.0.1:19100-19199" }
stores: { default: { url: "file://%s" } }
default_class: control
topics: []
`, strings.Join(kafka.ListenAddrs(), `", "`), objects))
	}
	if err != nil {
		end()
		return nil, err
	}
	o.InProcess = true
	c, err := FromConfig(ctx, cfg, o)
	if err != nil {
		end()
		return nil, err
	}
	for i := range c.Targets {
		c.Targets[i].InProcess = true
	}
	c.Targets[0].Note = "embedded Kafka (kfake, which is not Apache Kafka), in this process"
	c.Left = nil
	c.Notes = []string{"Embedded: Kafka (kfake), file store, proxy and generator share this process. It shows how the tiers differ in kind, not how fast any of them is."}
	stop := c.Close
	c.Close = func() {
		stop()
		end()
	}
	return c, nil
}

// CheckMetrics reads a /metrics once, so that a wrong URL is found first.
func CheckMetrics(ctx context.Context, url string) error {
	s, err := scrape(ctx, url)
	if err != nil {
		return err
	}
	if s.sum("process_cpu_seconds_total", "") == 0 {
		return fmt.Errorf("%s: it has no process_cpu_seconds_total", url)
	}
	return nil
}
