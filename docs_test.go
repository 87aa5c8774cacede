package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/cli"
	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/cost"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/audit"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/diskless/diskcache"
	"github.com/sluice-kafka/sluice/diskless/gc"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/retention"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/proxy"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/server"
	"github.com/sluice-kafka/sluice/tiers"
	"github.com/sluice-kafka/sluice/turns"
)

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// pages are all documents for people.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md", "benchmarks/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	for _, must := range []string{"README.md", "DESIGN.md", "docs/configuration.md", "docs/metrics.md", "docs/operations.md", "docs/protocol.md", "benchmarks/README.md"} {
		if !slices.Contains(all, must) {
			t.Errorf("%s is missing", must)
		}
	}
	return all
}

// anchor is the fragment that a heading gets.
func anchor(heading string) string {
	heading = strings.ToLower(strings.TrimSpace(strings.TrimLeft(heading, "#")))
	heading = regexp.MustCompile("[^a-z0-9 _-]").ReplaceAllString(heading, "")
	return strings.ReplaceAll(heading, " ", "-")
}

func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	links := 0
	for _, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			file, fragment, _ := strings.Cut(m[1], "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			info, err := os.Stat(target)
			if err != nil {
				t.Errorf("%s: the link %s leads nowhere", page, m[1])
				continue
			}
			if fragment == "" || info.IsDir() {
				continue
			}
			found := false
			for line := range strings.Lines(read(t, target)) {
				found = found || strings.HasPrefix(line, "#") && anchor(line) == fragment
			}
			if !found {
				t.Errorf("%s: %s has no heading for #%s", page, target, fragment)
			}
		}
	}
	if links == 0 {
		t.Fatal("no links were looked at")
	}
}

// shell returns the lines of the pages' sh blocks.
func shell(t *testing.T) (lines []string) {
	t.Helper()
	for _, page := range pages(t) {
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(read(t, page), -1) {
			for line := range strings.Lines(block[1]) {
				line, _, _ = strings.Cut(line, "#")
				if line = strings.TrimSpace(line); line != "" {
					lines = append(lines, line)
				}
			}
		}
	}
	return lines
}

// Every command that a page tells people to type is one that this repository
// has, with the flags that it has; a new kind of command needs a rule here.
func TestCommandsInPagesExist(t *testing.T) {
	makefile := read(t, "Makefile")
	seen := map[string]bool{}
	for _, line := range shell(t) {
		words := strings.Fields(line)
		seen[words[0]] = true
		switch words[0] {
		case "make":
			target := words[1]
			if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(target) + `:.* ## `).MatchString(makefile) {
				t.Errorf("%q: the Makefile has no documented target %s", line, target)
			}
			for _, arg := range words[2:] {
				name, _, ok := strings.Cut(arg, "=")
				if ok && regexp.MustCompile(`^[A-Z_]+$`).MatchString(name) && !strings.Contains(makefile, name+" ?=") {
					t.Errorf("%q: the Makefile has no variable %s", line, name)
				}
			}
		case "sluice", "./sluice":
			checkFlags(t, line, words[1:])
		case "go":
			if words[1] == "run" {
				checkFlags(t, line, words[3:])
			}
			for _, w := range words {
				if strings.HasPrefix(w, "./") && w != "./..." {
					if _, err := os.Stat(w); err != nil {
						t.Errorf("%q: no package %s", line, w)
					}
				}
			}
		case "docker", "curl", "kill", "kubectl":
		default:
			t.Errorf("%q: the test does not know how to check %s", line, words[0])
		}
	}
	for _, want := range []string{"make", "sluice", "docker"} {
		if !seen[want] {
			t.Errorf("no page shows a %s command", want)
		}
	}
	// In running text too.
	inText := regexp.MustCompile("`make ([a-z-]+)")
	for _, page := range pages(t) {
		for _, m := range inText.FindAllStringSubmatch(read(t, page), -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:.* ## `).MatchString(makefile) {
				t.Errorf("%s: the Makefile has no documented target %s", page, m[1])
			}
		}
	}
}

func checkFlags(t *testing.T, line string, words []string) {
	t.Helper()
	var out, errs bytes.Buffer
	if code := cli.Run(t.Context(), []string{words[0], "--help"}, &out, &errs); code != 0 {
		t.Errorf("%q: %s", line, &errs)
		return
	}
	for _, w := range words[1:] {
		name, _, _ := strings.Cut(w, "=")
		switch {
		case strings.HasPrefix(name, "--"):
			name = "      " + name + " "
		case strings.HasPrefix(name, "-"):
			name = "  " + name + ", "
		default:
			continue
		}
		if !strings.Contains(strings.ReplaceAll(out.String(), ", --", "      --"), strings.TrimRight(name, ", ")) {
			t.Errorf("%q: there is no flag %s", line, strings.TrimSpace(name))
		}
	}
}

// Whole configurations in pages work as they stand; parts of one work with the
// rest of the first.
func TestConfigurationsInPagesWork(t *testing.T) {
	whole := 0
	for _, page := range pages(t) {
		for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(read(t, page), -1) {
			text := block[1]
			if strings.HasPrefix(text, "kafka:") {
				whole++
			} else {
				text = "kafka: { bootstrap: [\"127.0.0.1:9092\"] }\nlisten: { bootstrap: \"127.0.0.1:19092\", brokers: \"127.0.0.1:19100-19199\" }\nstores: { default: { url: \"file:///var/lib/sluice\" } }\n" + text
			}
			if _, err := config.Parse(page, []byte(text)); err != nil {
				t.Errorf("%s:\n%v", page, err)
			}
		}
	}
	if whole == 0 {
		t.Error("no page shows a whole configuration")
	}
}

// Who is killed before limits.drain_timeout ends loses answers that a drain would have given.
func TestSupervisorsWaitLongerThanADrain(t *testing.T) {
	cfg, err := config.Load("config/testdata/good/issue.yaml")
	if err != nil {
		t.Fatal(err)
	}
	page := read(t, "docs/operations.md")
	seconds := func(key string) time.Duration {
		m := regexp.MustCompile(regexp.QuoteMeta(key) + `(\d+)`).FindStringSubmatch(page)
		if m == nil {
			t.Fatalf("docs/operations.md does not show %q", key)
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(n) * time.Second
	}
	for supervisor, patience := range map[string]time.Duration{
		"systemd":    seconds("TimeoutStopSec="),
		"Kubernetes": seconds("terminationGracePeriodSeconds: ") - seconds("preStop: { sleep: { seconds: "),
	} {
		if patience <= cfg.Limits.DrainTimeout {
			t.Errorf("%s waits %v, and a drain takes up to %v", supervisor, patience, cfg.Limits.DrainTimeout)
		}
	}
}

// Keys named in running text exist, as far as they look like one.
func TestKeysInPagesExist(t *testing.T) {
	reference := read(t, "docs/configuration.md")
	key := regexp.MustCompile("`((?:limits|listen|kafka|stores|log)\\.[a-z_.<>]+)`")
	found := 0
	for _, page := range pages(t) {
		for _, m := range key.FindAllStringSubmatch(read(t, page), -1) {
			found++
			if !strings.Contains(reference, "`"+m[1]) {
				t.Errorf("%s: there is no key %s", page, m[1])
			}
		}
	}
	if found == 0 {
		t.Error("no keys were looked at")
	}
}

// registry remembers what is registered with it.
type registry struct {
	*prometheus.Registry
	collectors []prometheus.Collector
}

func (r *registry) MustRegister(cs ...prometheus.Collector) {
	r.collectors = append(r.collectors, cs...)
	r.Registry.MustRegister(cs...)
}

func (r *registry) Register(c prometheus.Collector) error {
	r.collectors = append(r.collectors, c)
	return r.Registry.Register(c)
}

// metric is what the code and the page say of one.
type metric struct{ kind, labels string }

func kindOf(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	switch c.(type) {
	case *prometheus.CounterVec:
		return "counter"
	case *prometheus.GaugeVec:
		return "gauge"
	case *prometheus.HistogramVec:
		return "histogram"
	}
	one := make(chan prometheus.Metric, 1)
	c.Collect(one)
	var m dto.Metric
	if err := (<-one).Write(&m); err != nil {
		t.Fatal(err)
	}
	switch {
	case m.Counter != nil:
		return "counter"
	case m.Gauge != nil:
		return "gauge"
	case m.Histogram != nil:
		return "histogram"
	}
	t.Fatalf("%v is of no known kind", c)
	return ""
}

// registered is every metric that a replica has, also those that have no value
// before something happens.
func registered(t *testing.T) map[string]metric {
	t.Helper()
	reg := &registry{Registry: prometheus.NewRegistry()}
	cluster, err := lowlatency.New(lowlatency.Options{Bootstrap: []string{"127.0.0.1:1"}, Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	tier, err := diskless.New(diskless.Options{ClusterID: "docs", Logger: zerolog.Nop(), Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	defer tier.Close(t.Context())
	objstore.NewMeters(reg)
	server.NewMemoryGauge(reg, config.Limits{}, config.Compaction{})
	compactor.NewMetrics(reg)
	server.NewLogMetrics(reg)
	audit.NewMetrics(reg)
	gc.NewMetrics(reg)
	diskcache.NewMetrics(reg)
	retention.NewMetrics(reg)
	turns.New(1, 1, reg)
	server.NewCertificates(zerolog.Nop(), reg)
	routes, err := router.New(nil, map[string]tiers.Class{"control": {Name: "control"}}, "control")
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Options{
		Layout:  proxy.Layout{Advertise: "docs", FirstPort: 1, Nodes: []proxy.NodeRange{{}}},
		Brokers: cluster, Payloads: tier, Router: func() *router.Router { return routes },
		Listen:  func(network, _ string) (net.Listener, error) { return net.Listen(network, "127.0.0.1:0") },
		Metrics: reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Shutdown(t.Context())

	parts := regexp.MustCompile(`fqName: "(\w+)".*variableLabels: \{([^}]*)\}`)
	all := map[string]metric{}
	for _, c := range reg.collectors {
		descs := make(chan *prometheus.Desc, 1)
		c.Describe(descs)
		m := parts.FindStringSubmatch((<-descs).String())
		if m == nil {
			t.Fatalf("%v describes itself as never before", c)
		}
		labels := strings.Split(m[2], ",")
		slices.Sort(labels)
		all[m[1]] = metric{kindOf(t, c), strings.Join(labels, ",")}
	}
	return all
}

func TestEveryMetricIsDocumented(t *testing.T) {
	page := read(t, "docs/metrics.md")
	row := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\w+) \\|([^|]*)\\|[^|]+\\|[^|]*\\|$")
	documented := map[string]metric{}
	for _, m := range row.FindAllStringSubmatch(page, -1) {
		labels := strings.Split(strings.NewReplacer("`", "", " ", "").Replace(m[3]), ",")
		slices.Sort(labels)
		if _, twice := documented[m[1]]; twice {
			t.Errorf("%s is documented twice", m[1])
		}
		documented[m[1]] = metric{m[2], strings.Join(labels, ",")}
	}
	code := registered(t)
	for name, want := range code {
		if got, ok := documented[name]; !ok {
			t.Errorf("%s is not documented", name)
		} else if got != want {
			t.Errorf("%s: the page says %v, the code %v", name, got, want)
		}
	}
	for name := range documented {
		if _, ok := code[name]; !ok {
			t.Errorf("%s is documented, and there is no such metric", name)
		}
	}
	// Metrics named elsewhere exist too.
	for _, file := range pages(t) {
		for _, name := range regexp.MustCompile(`\bsluice_(?:proxy|diskless|lowlatency|objstore)_[a-z_]+`).FindAllString(read(t, file), -1) {
			if _, ok := code[name]; !ok {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
	}
}

// The table of the protocol is the code's, each test in it exists, and every key
// that the codec knows is in it.
func TestEveryKeyOfTheProtocolIsDocumented(t *testing.T) {
	row := regexp.MustCompile(`(?m)^\| (\d+) \| (\w+) \| ([0-9–]*) \| (\w+) \| ([^|]*) \| ([^|]+) \|$`)
	tests := map[string]bool{}
	for _, dir := range []string{"proxy", "integration"} {
		files, err := filepath.Glob(dir + "/*_test.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(read(t, file), -1) {
				tests[m[1]] = true
			}
		}
	}
	apis := map[string]proxy.API{}
	for _, a := range proxy.APIs() {
		apis[fmt.Sprint(a.Key)] = a
	}
	documented := map[string]bool{}
	last := -1
	for _, m := range row.FindAllStringSubmatch(read(t, "docs/protocol.md"), -1) {
		key, name, versions, treatment, what, shown := m[1], m[2], m[3], m[4], m[5], m[6]
		n, err := strconv.Atoi(key)
		if err != nil || n <= last {
			t.Errorf("key %s is not in order", key)
		}
		last = n
		documented[key] = true
		a, ok := apis[key]
		if !ok {
			t.Errorf("key %s is documented, and the code does not know it", key)
			continue
		}
		want := fmt.Sprintf("%d–%d", a.Min, a.Max)
		switch {
		case a.Treatment == proxy.Hide:
			want = ""
		case a.Min == a.Max:
			want = fmt.Sprint(a.Min)
		}
		if name != a.Name || versions != want || treatment != string(a.Treatment) {
			t.Errorf("key %s: the page says %s, %s, %s; the code %s, %s, %s", key, name, versions, treatment, a.Name, want, a.Treatment)
		}
		if strings.TrimSpace(what) == "" && a.Treatment != proxy.Relay {
			t.Errorf("%s: the page does not say what is done with it", name)
		}
		named := regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(shown, -1)
		if len(named) == 0 {
			t.Errorf("%s is shown by no test", name)
		}
		for _, m := range named {
			if !tests[m[1]] {
				t.Errorf("%s: there is no test %s", name, m[1])
			}
		}
	}
	for key, a := range apis {
		if !documented[key] {
			t.Errorf("key %s (%s) is not documented", key, a.Name)
		}
	}
	for key := range int16(kmsg.MaxKey + 1) {
		if _, ok := apis[fmt.Sprint(key)]; !ok && kmsg.NameForKey(key) != "Unknown" {
			t.Errorf("the codec knows key %d (%s), and the proxy says nothing of it", key, kmsg.NameForKey(key))
		}
	}
}

// The prices in the table of classes follow from lingers: PUTs at $5 a million,
// one for each linger of a month of 30 days.
func TestPricesFollowFromLingers(t *testing.T) {
	cfg, err := config.Load("config/testdata/good/issue.yaml")
	if err != nil {
		t.Fatal(err)
	}
	readme := read(t, "README.md")
	for name, c := range cfg.Classes {
		want := "none"
		if c.Tier == tiers.Diskless {
			want = fmt.Sprintf("up to $%.0f a month", 30*24*3600/c.Linger.Seconds()*5/1e6)
		}
		if !regexp.MustCompile("(?m)^\\| `" + name + "` \\|.*\\| " + regexp.QuoteMeta(want) + " \\|$").MatchString(readme) {
			t.Errorf("README.md does not say that %s costs %s", name, want)
		}
	}
}

// A page that shows what `sluice cost` prints shows what it prints.
func TestCostsInPagesAreReckoned(t *testing.T) {
	shown := 0
	for _, page := range pages(t) {
		for _, m := range regexp.MustCompile("(?s)```sh\nsluice (cost [^\n]*)\n```\n\n```\n(.*?)```").FindAllStringSubmatch(read(t, page), -1) {
			shown++
			var out, errs bytes.Buffer
			if code := cli.Run(t.Context(), strings.Fields(m[1]), &out, &errs); code != 0 || !strings.HasPrefix(out.String(), m[2]) {
				t.Errorf("%s: sluice %s prints\n%s%s", page, m[1], &out, &errs)
			}
		}
	}
	if shown == 0 {
		t.Error("no page shows what `sluice cost` prints")
	}
}

// From which load on sluice pays, as README says it, follows from the model.
func TestWhereSluicePays(t *testing.T) {
	bills := func(throughput float64, zones int) map[string]float64 {
		m := cost.Model{Assumptions: cost.Defaults(), Prices: cost.ListPrices(), Classes: config.Builtins()}
		m.Throughput, m.Zones = throughput*(1<<20), float64(zones)
		setups, err := m.Estimate()
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]float64{}
		for _, s := range setups {
			all[s.Key] = s.Bill.Total()
		}
		return all
	}
	text := strings.Join(strings.Fields(read(t, "README.md")), " ")
	said := regexp.MustCompile(`cheaper than follower fetch from (\d+) MiB/s on, and than tiered storage from (\d+) MiB/s on`).FindStringSubmatch(text)
	if said == nil || !strings.Contains(text, "In one zone there is no traffic to save, and tiered storage stays cheaper") {
		t.Fatal("README.md does not say from which load on sluice pays")
	}
	for i, setup := range []string{"follower_fetch", "tiered_storage"} {
		from, err := strconv.ParseFloat(said[i+1], 64)
		if err != nil {
			t.Fatal(err)
		}
		if at, below := bills(from, 3), bills(from*0.8, 3); at["sluice"] >= at[setup] || below["sluice"] <= below[setup] {
			t.Errorf("%s: it does not begin to pay at %.0f MiB/s: %v, and %v below", setup, from, at, below)
		}
	}
	for _, throughput := range []float64{1, 10, 100, 200} {
		if one := bills(throughput, 1); one["sluice"] <= one["tiered_storage"] {
			t.Errorf("one zone, %.0f MiB/s: %v", throughput, one)
		}
	}
}

// README's configuration is the one that everything else is tested with.
func TestReadmeShowsTheTestedConfiguration(t *testing.T) {
	if !strings.Contains(read(t, "README.md"), "```yaml\n"+read(t, "config/testdata/good/issue.yaml")) {
		t.Error("the configuration in README.md is not config/testdata/good/issue.yaml")
	}
}

// Every module that is required directly is explained, and nothing else is.
func TestDependenciesAreExplained(t *testing.T) {
	design := read(t, "DESIGN.md")
	explained := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9.]+\\.[a-z]+/\\S+)` \\|").FindAllStringSubmatch(design, -1) {
		explained[m[1]] = true
	}
	needed := map[string]bool{}
	for line := range strings.Lines(read(t, "go.mod")) {
		if m := regexp.MustCompile(`^\t(\S+) v\S+$`).FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			needed[m[1]] = true
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+/\S+)$`).FindAllStringSubmatch(read(t, "tools/go.mod"), -1) {
		needed[m[1]] = true
	}
	for name := range needed {
		if !explained[name] {
			t.Errorf("DESIGN.md does not say why %s is needed", name)
		}
	}
	for name := range explained {
		if !needed[name] {
			t.Errorf("DESIGN.md explains %s, which nothing requires", name)
		}
	}
}
