package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

const minimal = `
kafka: { bootstrap: "broker-1:9092" }
listen: { bootstrap: "kafka.example:19092", brokers: "0.0.0.0:19100-19105" }
`

func parse(t *testing.T, text string) *Config {
	t.Helper()
	cfg, err := Parse("sluice.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestTheIssuesExample(t *testing.T) {
	cfg, err := Load("testdata/good/issue.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.File = "issue.yaml"
	want.Kafka.Bootstrap = []string{"127.0.0.1:9092"}
	want.Listen = Listen{
		Bootstrap: "127.0.0.1:19092",
		Brokers:   PortRange{Host: "127.0.0.1", First: 19100, Last: 19199},
		Advertise: "127.0.0.1",
		NodeIDs:   NodeIDs{{0, 49}},
	}
	want.Admin = "127.0.0.1:19644"
	want.Stores["default"] = Store{Name: "default", URL: "s3://bucket/prefix", Scheme: "s3", Bucket: "bucket", Prefix: "prefix", Endpoint: "http://127.0.0.1:7070", PathStyle: true}
	want.Limits.share(func(string) bool { return false })
	want.Compaction.MemoryBytes = want.Limits.MemoryBytes / 16
	want.DefaultClass = "control"
	want.Rules = []router.Rule{
		{Patterns: []string{"payments*"}, Class: "control", Line: 13},
		{Patterns: []string{"otel-*", "agent.trace.*"}, Class: "telemetry", Line: 14},
	}
	want.Classes["telemetry"] = tiers.Class{Name: "telemetry", Tier: tiers.Diskless, Summary: want.Classes["telemetry"].Summary, Store: "default", Linger: 250 * time.Millisecond, ObjectSize: 8 << 20, Readahead: 2, OnOutage: tiers.Wait, OnDelete: tiers.Ignore}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got\n%+v\nwant\n%+v", cfg, want)
	}
	if _, err := cfg.Router(); err != nil {
		t.Error("the router does not take it:", err)
	}
}

func TestEveryKey(t *testing.T) {
	text, err := os.ReadFile("testdata/good/every_key.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, key := keyPair(t)
	write("every_key.yaml", text)
	write("cert.pem", cert)
	write("key.pem", key)
	write("secret.txt", []byte("from the file\n"))
	cfg, err := Load(filepath.Join(dir, "every_key.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.Kafka.SASL; got != (SASL{"SCRAM-SHA-512", "sluice", "from the file"}) {
		t.Errorf("sasl: %+v", got)
	}
	if got := cfg.Kafka.TLS; got != (KafkaTLS{true, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), "kafka.internal", true}) {
		t.Errorf("tls: %+v", got)
	}
	if got := cfg.Listen; got.NodeIDs.String() != "0-31,1001-1016" || got.Advertise != "kafka.example" || !got.TLS.Enabled() || got.Brokers.String() != "[::]:20000-20199" {
		t.Errorf("listen: %+v", got)
	}
	if got := cfg.Stores["cold"]; got != (Store{Name: "cold", URL: "s3://cold", Scheme: "s3", Bucket: "cold", Endpoint: "https://minio.example", Region: "eu-west-1", AccessKey: "AKIA", SecretKey: "from the file", Lock: "governance", LockRetention: 8760 * time.Hour}) {
		t.Errorf("store: %+v", got)
	}
	if got := cfg.Stores["disk"]; got.Scheme != "file" || got.Dir != "/var/lib/sluice" {
		t.Errorf("store: %+v", got)
	}
	if got := cfg.Classes["mine"]; got != (tiers.Class{Name: "mine", Tier: tiers.Diskless, Summary: "all of one's own", Store: "cold", Linger: time.Second, ObjectSize: 1_000_000, Readahead: 0, Audit: true, OnOutage: tiers.Reject, OnDelete: tiers.Refuse}) {
		t.Errorf("class: %+v", got)
	}
	if got := cfg.Classes["plain"]; got != (tiers.Class{Name: "plain", Tier: tiers.LowLatency}) {
		t.Errorf("a low-latency class has nothing else: %+v", got)
	}
	// No key of the schema may be left out here, or be read into nothing.
	other := defaults()
	other.Limits.share(func(string) bool { return false })
	other.Stores = cfg.Stores
	_, applied, waiting, err := Reload(other, cfg)
	if err != nil {
		t.Fatal(err)
	}
	seen := slices.Concat(applied, waiting)
	for _, k := range schema() {
		if k.refused != "" || strings.HasSuffix(k.path, "_file") || k.section() == "stores.*" {
			continue
		}
		path := strings.NewReplacer("classes.*", "classes.replay", "topics[].match", "topics", "topics[].class", "topics").Replace(k.path)
		if !slices.Contains(seen, path) && path != "classes.replay.tier" {
			t.Errorf("%s is not in testdata/good/every_key.yaml with a value other than its default, or it is not read", path)
		}
	}
}

// keyPair makes a certificate that signs itself, and its key, as PEM.
func keyPair(t *testing.T) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func TestDefaultsThatFollowFromOtherKeys(t *testing.T) {
	cfg := parse(t, minimal)
	if got := cfg.Listen; got.Advertise != "kafka.example" || got.NodeIDs.String() != "0-2" {
		t.Errorf("listen: %+v", got)
	}
	cfg = parse(t, minimal+`
stores:
  aws: { url: "s3://bucket" }
  other: { url: "s3://bucket/a/b/", endpoint: "http://minio:9000" }
  virtual: { url: "s3://bucket", endpoint: "https://minio", path_style: false }
`)
	if cfg.Stores["aws"].PathStyle || !cfg.Stores["other"].PathStyle || cfg.Stores["virtual"].PathStyle {
		t.Errorf("path_style: %+v", cfg.Stores)
	}
	if p := cfg.Stores["other"].Prefix; p != "a/b" {
		t.Errorf("prefix %q", p)
	}
}

func TestGoodFiles(t *testing.T) {
	for _, c := range []struct{ why, text string }{
		{"a byte order mark is no content", "\ufeff" + minimal},
		{"lines may end as on Windows", strings.ReplaceAll(minimal, "\n", "\r\n")},
		{"sections may be empty", minimal + "topics:\nclasses:\nstores:\nlimits:\nlog:\n"},
		{"a diskless class that nothing leads to needs no store", minimal + "classes: { telemetry: { linger: 1s } }\n"},
		{"neither does a new one", minimal + "classes: { mine: { tier: diskless } }\n"},
		{"ports of other hosts do not collide", "kafka: { bootstrap: b:1 }\nlisten: { bootstrap: \"10.0.0.1:19100\", brokers: \"127.0.0.1:19100-19101\" }\n"},
		{"a built-in class may repeat its tier", minimal + "classes: { control: { tier: low-latency, summary: ours } }\n"},
		{"plain words need no quotes, numbers are text where text is due", minimal + "topics: [ { match: 123, class: control } ]\n"},
		{"TLS that is switched off may stay described", strings.Replace(minimal, "broker-1:9092\"", "broker-1:9092\", tls: { enabled: false, server_name: x }", 1)},
		{"of two overlapping patterns neither is dead", minimal + "topics: [ { match: \"a*\", class: control }, { match: \"*b\", class: operational } ]\n"},
	} {
		if _, err := Parse("sluice.yaml", []byte(c.text)); err != nil {
			t.Errorf("%s:\n%v", c.why, err)
		}
	}
}

func TestSecrets(t *testing.T) {
	const sasl = "kafka: { bootstrap: b:1, sasl: { mechanism: PLAIN, username: u, password: '%s' } }\nlisten: { bootstrap: \"a:19092\", brokers: \"a:19100-19105\" }\n"
	t.Setenv("SLUICE_TEST_PASSWORD", "from the environment")
	for _, c := range []struct{ why, written, want string }{
		{"the environment is read when a name is all there is", "${SLUICE_TEST_PASSWORD}", "from the environment"},
		{"not inside other text", "x${SLUICE_TEST_PASSWORD}", "x${SLUICE_TEST_PASSWORD}"},
		{"nor without braces", "$SLUICE_TEST_PASSWORD", "$SLUICE_TEST_PASSWORD"},
	} {
		if got := parse(t, strings.Replace(sasl, "%s", c.written, 1)).Kafka.SASL.Password; got != c.want {
			t.Errorf("%s: %q", c.why, got)
		}
	}
	cfg := parse(t, strings.Replace(sasl, "username: u", "username: '${SLUICE_TEST_PASSWORD}'", 1))
	if cfg.Kafka.SASL.Username != "${SLUICE_TEST_PASSWORD}" {
		t.Error("the environment was read for a key that is no secret")
	}
}

func TestPorts(t *testing.T) {
	l := Listen{Brokers: PortRange{"", 19100, 19199}, NodeIDs: NodeIDs{{10, 12}, {1001, 1002}, {3, 3}}}
	for _, c := range []struct {
		id   int32
		real int
	}{{10, 19100}, {12, 19104}, {1001, 19106}, {1002, 19108}, {3, 19110}} {
		real, diskless, ok := l.Ports(c.id)
		if !ok || real != c.real || diskless != c.real+1 {
			t.Errorf("id %d: %d, %d, %v", c.id, real, diskless, ok)
		}
	}
	for _, id := range []int32{-1, 0, 9, 13, 1000, 1003, 1<<20 + 10} {
		if _, _, ok := l.Ports(id); ok {
			t.Errorf("id %d has ports", id)
		}
	}
	n := 0
	for position, id := range l.NodeIDs.All {
		if p, ok := l.NodeIDs.Position(id); !ok || p != position || p != n {
			t.Errorf("id %d stands at %d, All says %d", id, p, position)
		}
		n++
	}
	if n != 6 || l.NodeIDs.Len() != n {
		t.Errorf("%d ids, Len %d", n, l.NodeIDs.Len())
	}
}

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		written string
		want    int64
		ok      bool
	}{
		{"512", 512, true}, {"0B", 0, true}, {"64KB", 64_000, true}, {"64KiB", 65_536, true}, {"8MiB", 8 << 20, true},
		{"8 MiB", 8 << 20, true}, {"1.5GiB", 3 << 29, true}, {"1k", 1000, true},
		{"", 0, false}, {"-1", 0, false}, {"MiB", 0, false}, {"1,000", 0, false}, {"8mb ", 0, false}, {"1e6", 0, false}, {"٣", 0, false},
	} {
		if got, ok := parseSize(c.written); got != c.want || ok != c.ok {
			t.Errorf("%q: %d, %v", c.written, got, ok)
		}
	}
	if got, ok := parseSize("10000PiB"); !ok || got <= 0 {
		t.Errorf("more than an int64 holds: %d, %v", got, ok)
	}
}

func TestDidYouMean(t *testing.T) {
	names := []string{"linger", "listen", "object_size", "store", "tier", "ca", "telemetry"}
	for written, want := range map[string]string{
		"lingr": "linger", "linegr": "linger", "Linger": "linger", "object-size": "object_size", "objectsize": "object_size",
		"stores": "store", "teir": "tier", "telemtry": "telemetry", "ac": "ca",
		"x": "", "retention": "", "": "", strings.Repeat("linger", 20): "",
	} {
		if got := closest(written, names); got != want {
			t.Errorf("%q: %q, want %q", written, got, want)
		}
	}
}

func TestReload(t *testing.T) {
	const stores = "stores: { default: { url: \"file:///data\" } }\n"
	running := parse(t, minimal+stores+"topics: [ { match: a, class: control } ]\n")
	for _, c := range []struct {
		why              string
		next             string
		applied, waiting []string
	}{
		{"nothing has changed", minimal + stores + "topics: [ { match: a, class: control } ]\n", nil, nil},
		{"a comment or another way to write the same changes nothing", "# moved\n" + minimal + stores + "topics:\n  - match: [ 'a' ]\n    class: control\nlimits: { put_timeout: 5000ms, inline_bytes_per_second: 16 MiB, memory_bytes: auto }\n", nil, nil},
		{"rules, classes, the default and the log level are applied", minimal + stores + "default_class: telemetry\nclasses: { telemetry: { linger: 1s }, mine: { tier: low-latency } }\nlog: { level: debug }\n",
			[]string{"default_class", "topics", "classes.mine", "classes.telemetry.linger", "log.level"}, nil},
		{"all else waits for a restart", strings.Replace(minimal, "broker-1", "broker-2", 1) + "topics: [ { match: a, class: control } ]\nadmin: \"127.0.0.1:1\"\nlimits: { connections: 5 }\nlog: { format: console }\nstores: { default: { url: \"file:///other\" }, more: { url: \"s3://bucket\" } }\n",
			nil, []string{"kafka.bootstrap", "admin", "stores.default.url", "stores.more", "limits.connections", "log.format"}},
	} {
		next := parse(t, c.next)
		merged, applied, waiting, err := Reload(running, next)
		if err != nil {
			t.Errorf("%s: %v", c.why, err)
			continue
		}
		if !slices.Equal(applied, c.applied) || !slices.Equal(waiting, c.waiting) {
			t.Errorf("%s: applied %v, waiting %v", c.why, applied, waiting)
		}
		if _, again, _, err := Reload(merged, next); err != nil || len(again) > 0 {
			t.Errorf("%s: applied twice: %v, %v", c.why, again, err)
		}
		if _, _, back, err := Reload(running, merged); err != nil || len(back) > 0 {
			t.Errorf("%s: the merged configuration holds what should wait: %v, %v", c.why, back, err)
		}
	}

	for _, c := range []struct{ why, next, says string }{
		{"a class cannot use a store that the process does not have", minimal + "stores: { new: { url: \"file:///data\" } }\nclasses: { telemetry: { store: new } }\ndefault_class: telemetry\n", `"new"`},
		{"nor buffer more than the process was started with", minimal + stores + "limits: { write_buffer_bytes: 1GiB }\nclasses: { telemetry: { object_size: 64MiB } }\ndefault_class: telemetry\n", "write_buffer_bytes"},
	} {
		small := *running
		small.Limits.WriteBufferBytes = 32 << 20
		if merged, _, _, err := Reload(&small, parse(t, c.next)); err == nil || merged != nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.why, err)
		}
	}
}

func TestASecretThatChangedIsNamedByItsKeyOnly(t *testing.T) {
	const text = "kafka: { bootstrap: b:1, sasl: { mechanism: PLAIN, username: u, password: hunter1 } }\nlisten: { bootstrap: \"a:19092\", brokers: \"a:19100-19105\" }\n"
	_, applied, waiting, err := Reload(parse(t, text), parse(t, strings.Replace(text, "hunter1", "hunter2", 1)))
	if err != nil || len(applied) > 0 || !slices.Equal(waiting, []string{"kafka.sasl.password"}) {
		t.Errorf("%v, %v, %v", applied, waiting, err)
	}
}

func TestBounds(t *testing.T) {
	large := filepath.Join(t.TempDir(), "large.yaml")
	if err := os.WriteFile(large, []byte(minimal+strings.Repeat("# filler\n", maxFileBytes/9)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(large); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Error("a file that is too large:", err)
	}
	many := minimal + "topics:\n" + strings.Repeat("  - { match: x, class: control }\n", maxPatterns+1)
	_, err := Parse("sluice.yaml", []byte(many))
	var problems Problems
	if !errors.As(err, &problems) || len(problems) != 1 || !strings.Contains(problems[0].What, "patterns") {
		t.Error("too many patterns:", err)
	}
}

func TestSchemaHoldsTogether(t *testing.T) {
	cfg := defaults()
	seen := map[string]bool{}
	for _, k := range schema() {
		if seen[k.path] {
			t.Errorf("%s stands there twice", k.path)
		}
		seen[k.path] = true
		if k.refused != "" {
			continue
		}
		said := 0
		for _, is := range []bool{k.required, k.def != "", k.derived != ""} {
			if is {
				said++
			}
		}
		if said != 1 {
			t.Errorf("%s is to be required, or have a default, or one in words: just one of them", k.path)
		}
		if (k.from == "") != (k.to == "") {
			t.Errorf("%s: a range has two ends", k.path)
		}
		if strings.HasPrefix(k.path, "limits.") && (k.metric == "" || k.from == "" || k.def == "" && k.derived == "") {
			t.Errorf("%s: a limit has a default, a range and a metric", k.path)
		}
		class, store, rule := newClass("x"), Store{Name: "x"}, router.Rule{}
		into := k.field(target{cfg, &secretFiles{secretKey: map[string]*string{"x": new(string)}}, &store, &class, &rule})
		if k.kind == kindTexts || k.kind == kindPorts || k.kind == kindIds {
			continue
		}
		// Both ends of its range are within it, in the words of the table.
		for _, end := range []string{k.from, k.to} {
			if end != "" {
				if f := k.assign(into, end); f != nil {
					t.Errorf("%s does not take %s: %s", k.path, end, f.what)
				}
			}
		}
	}
	names := slices.Sorted(maps.Keys(cfg.Classes))
	if !slices.Equal(names, []string{"audit", "control", "enrichment", "operational", "replay", "telemetry"}) {
		t.Errorf("built-in classes: %v", names)
	}
	for _, c := range builtins() {
		if c.Summary == "" || (c.Tier == tiers.Diskless) != (c.Linger > 0 && c.ObjectSize > 0 && c.Store != "" && c.Readahead > 0) {
			t.Errorf("built-in class: %+v", c)
		}
	}
}

// Whatever stands in a file, it is taken or refused with places inside it.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := Parse("testdata/good/fuzz.yaml", data)
		if err != nil {
			var problems Problems
			if cfg != nil || !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("%v, %#v", cfg, err)
			}
			for _, p := range problems {
				if p.Line < 1 || p.Column < 1 || p.What == "" || p.Remedy == "" || strings.Count(p.Excerpt, "\n") != 1 {
					t.Fatalf("%+v", p)
				}
			}
			return
		}
		if _, err := cfg.Router(); err != nil {
			t.Fatal("a configuration that the router refuses:", err)
		}
		if _, applied, waiting, err := Reload(cfg, cfg); err != nil || len(applied)+len(waiting) > 0 {
			t.Fatal("a configuration that differs from itself:", applied, waiting, err)
		}
	})
}
