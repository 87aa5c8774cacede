package cli

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/sluice-kafka/sluice/harness"
)

// patience bounds every wait; none of them is expected to take long.
const patience = 30 * time.Second

// output is a buffer that a running command writes and a test reads.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// await waits until the output holds text.
func (o *output) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(o.String(), text); {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in:\n%s", text, o)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// sluice runs a command to its end.
func sluice(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, errs output
	code = Run(ctx, args, &out, &errs)
	return code, out.String(), errs.String()
}

// command is one that stays up until it is stopped.
type command struct {
	out, errs output
	cancel    context.CancelFunc
	done      chan int
}

func start(t *testing.T, args ...string) *command {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &command{cancel: cancel, done: make(chan int, 1)}
	go func() { c.done <- Run(ctx, args, &c.out, &c.errs) }()
	t.Cleanup(cancel)
	return c
}

// stop ends the command as a signal would, and returns its exit code.
func (c *command) stop(t *testing.T) int {
	t.Helper()
	c.cancel()
	return c.code(t)
}

func (c *command) code(t *testing.T) int {
	t.Helper()
	select {
	case code := <-c.done:
		return code
	case <-time.After(patience):
		t.Fatalf("it does not end:\n%s\n%s", &c.out, &c.errs)
		return -1
	}
}

func fakeKafka(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	k, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// settings of a configuration file; the zero value of a field takes a default.
type settings struct {
	kafka []string
	port  int    // the bootstrap listener's; admin and brokers follow
	store string // YAML
	rest  string // topics, classes and so on
}

const (
	rulesOnly   = "default_class: control\ntopics:\n  - { match: \"otel-*\", class: telemetry }\n"
	brokerPorts = 2 * 3
)

func (s settings) write(t *testing.T, path string) {
	t.Helper()
	text := fmt.Sprintf(`kafka:
  bootstrap: ["%s"]
listen:
  bootstrap: "127.0.0.1:%d"
  brokers: "127.0.0.1:%d-%d"
  advertise: "127.0.0.1"
  node_ids: "0-2"
admin: "127.0.0.1:%d"
stores:
  default: %s
%s`, strings.Join(s.kafka, `", "`), s.port, s.port+2, s.port+1+brokerPorts, s.port+1, s.store, s.rest)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (s settings) file(t *testing.T) string {
	t.Helper()
	if s.port == 0 {
		s.port = 19092
	}
	if s.store == "" {
		s.store = fmt.Sprintf("{ url: %q }", "file://"+filepath.Join(t.TempDir(), "objects"))
	}
	if s.rest == "" {
		s.rest = rulesOnly
	}
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	s.write(t, path)
	return path
}

// deadAddress is one where nobody listens.
func deadAddress(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", harness.Ports(t, 1))
}

func TestHelpTeachesTheProduct(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{nil, []string{"bootstrap address", "latency class", "sluice dev", "sluice check -c sluice.yaml", "sluice topics", "sluice serve"}},
		{[]string{"--help"}, []string{"low-latency tier", "diskless tier", "Available Commands"}},
		{[]string{"serve", "--help"}, []string{"SIGHUP", "drains", "--config", "sluice serve -c sluice.yaml"}},
		{[]string{"check", "--help"}, []string{"Exit code 1", "--live", "sluice check -c sluice.yaml --live"}},
		{[]string{"topics", "--help"}, []string{"compacted: inline", "--json"}},
		{[]string{"cost", "--help"}, []string{"follower fetch, KIP-392", "--print-assumptions", "--fan-out", "default 7d"}},
		{[]string{"advise", "--help"}, []string{"changes\nnothing", "--bootstrap", "--watch", "only you know"}},
		{[]string{"dev", "--help"}, []string{"Ctrl-C", "--demo", "--data-dir", "--port"}},
		{[]string{"bench", "--help"}, []string{"open loop", "--target", "--embedded", "exit code is 1", "sluice bench --print steady"}},
		{[]string{"fsck", "--help"}, []string{"Exit codes: 0", "--orphans", "--resume", "sluice fsck -c sluice.yaml 'otel-*' --sample 5%"}},
		{[]string{"copy", "--help"}, []string{"the way out", "sluice-copy-TARGET", "--offsets-map", "--skip-unreadable", "Exit codes: 0"}},
		{[]string{"drain", "--help"}, []string{"never said by samples", "--wait", "--exact", "sluice copy", "Exit codes: 0"}},
		{[]string{"version", "--help"}, []string{"Print the version"}},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			code, out, errs := sluice(t, tt.args...)
			if code != 0 || errs != "" {
				t.Fatalf("exit code %d, on stderr: %s", code, errs)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("%q is not in\n%s", want, out)
				}
			}
		})
	}
}

func TestVersion(t *testing.T) {
	code, out, _ := sluice(t, "version")
	if code != 0 || !regexp.MustCompile(`^sluice \S+ \w+/\w+ go1\.`).MatchString(out) {
		t.Fatalf("exit code %d: %q", code, out)
	}
}

// A command that is called wrongly does nothing, exits with 1, and says on
// stderr what is wrong and where to look.
func TestCalledWrongly(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"serv"}, "no command \"serv\"; did you mean serve"},
		{[]string{"brew"}, "no command \"brew\"; see `sluice --help`"},
		{[]string{"check", "sluice.yaml"}, "check takes flags only, not \"sluice.yaml\"; see `sluice check --help`"},
		{[]string{"serve", "--conf", "x"}, "--conf; see `sluice serve --help`"},
		{[]string{"dev", "--port", "kafka"}, "\"kafka\" for \"--port\""},
		{[]string{"dev", "--port", "65000"}, "choose one from 1 to"},
		{[]string{"dev", "--port", "0"}, "choose one from 1 to"},
		{[]string{"dev", "--demo-time", "0s"}, "--demo=false leaves it out"},
		{[]string{"dev", "--once", "--demo=false"}, "choose one of them"},
		{[]string{"dev", "--data-dir", "/dev/null/x"}, "choose another with --data-dir"},
		{[]string{"bench"}, "what is to be measured? --target name=host:port, -c sluice.yaml, or --embedded"},
		{[]string{"bench", "--target", "host:9092"}, "write name=host:port"},
		{[]string{"bench", "--target", "a=host"}, "\"host\" is not host:port"},
		{[]string{"bench", "--target", "a=host:1", "--metrics", "b=host:2"}, "with the name of a --target"},
		{[]string{"bench", "--target", "a=host:1", "--topic", "a=otel"}, "one asterisk"},
		{[]string{"bench", "--embedded", "-c", "sluice.yaml"}, "choose one"},
		{[]string{"bench", "--embedded", "--workload", "stedy"}, "there is no workload \"stedy\"; there are "},
		{[]string{"bench", "--embedded", "--rounds", "0"}, "choose 1 to"},
		{[]string{"bench", "--embedded", "--client", "kafka-python"}, "franz-go or sarama"},
		{[]string{"bench", "--embedded", "--workload", "sweep", "--rate", "5"}, "have their own rates"},
		{[]string{"bench", "--embedded", "--class", "fast"}, "no such class"},
		{[]string{"bench", "--target", "a=host:1", "--sasl", "GSSAPI", "--password-file", "/dev/null"}, "it is PLAIN"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Chdir(t.TempDir())
			code, out, errs := sluice(t, tt.args...)
			if code != 1 || out != "" || !strings.Contains(errs, tt.want) {
				t.Fatalf("exit code %d, stdout %q, no %q in stderr: %s", code, out, tt.want, errs)
			}
			if left, _ := os.ReadDir("."); len(left) > 0 {
				t.Fatalf("it left %s behind", left[0].Name())
			}
		})
	}
}

func TestCheckExplainsAGoodFile(t *testing.T) {
	file := settings{kafka: []string{"127.0.0.1:9092"}}.file(t)
	code, out, errs := sluice(t, "check", "-c", file)
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{
		file + " is a good configuration",
		"telemetry    diskless     250ms   8MiB         default",
		"1        otel-*           telemetry",
		"default  everything else  control",
		"Clients bootstrap at 127.0.0.1:19092; brokers 0-2 are at 127.0.0.1 ports 19094-19099, two each",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

// Every mistake is named with file, line, caret and remedy, for every command
// that reads the file.
func TestBadFileIsRefusedByEveryCommand(t *testing.T) {
	file := settings{kafka: []string{"127.0.0.1:9092"}, rest: "default_class: control\ntopics:\n  - { match: \"otel-*\", clas: telemetry }\nlimits: { frame_bytes: 2TiB }\n"}.file(t)
	for _, command := range []string{"check", "topics", "serve"} {
		t.Run(command, func(t *testing.T) {
			code, out, errs := sluice(t, command, "-c", file)
			if code != 1 || out != "" {
				t.Fatalf("exit code %d, stdout %q", code, out)
			}
			for _, want := range []string{
				file + ":13:5: ", "topics[0].class is missing", file + ":13:24: ", "clas: telemetry", "^", "→ ",
				file + ":14:", "frame_bytes: 2TiB", "3 problems",
			} {
				if !strings.Contains(errs, want) {
					t.Errorf("%q is not in\n%s", want, errs)
				}
			}
		})
	}
	code, _, errs := sluice(t, "check", "-c", filepath.Join(t.TempDir(), "none.yaml"))
	if code != 1 || !strings.Contains(errs, "there is no such file") || !strings.Contains(errs, "-c") {
		t.Fatalf("a missing file: exit code %d: %s", code, errs)
	}
}

func TestCheckLive(t *testing.T) {
	k := fakeKafka(t, kfake.ClusterID("check-live"), kfake.SeedTopics(1, "plain", "otel-a"))
	compacted(t, k, "otel-table")
	tests := []struct {
		name string
		settings
		code int
		want []string // in order
	}{
		{"brokers and a store that work, and a compacted topic in a diskless class", settings{}, 0, []string{
			"ok    kafka at ", ": cluster check-live, 3 brokers",
			"ok    broker 0 at ", "reachable; clients find it at ports 19094 and 19095",
			"ok    kafka: SASL mechanism", "ok    kafka: ACLs by host", "ok    kafka: quotas by client address",
			"warn  topic otel-table", "it stays inline",
			"ok    topics: 3, of them 1 in the diskless tier",
			"ok    store default (file://", "conditional put",
			"Nothing failed, 1 to look at.",
		}},
		{"brokers that do not answer; the store is tried all the same", settings{kafka: []string{deadAddress(t)}}, 1, []string{
			"FAIL  kafka at 127.0.0.1:", "connection refused; check the addresses, kafka.tls and kafka.sasl",
			"ok    store default", "1 failed, 0 to look at.",
		}},
		{"a store that does not answer", settings{store: fmt.Sprintf("{ url: %q, endpoint: %q, access_key: a, secret_key: b }", "s3://bucket/prefix", "http://"+deadAddress(t))}, 1, []string{
			"ok    kafka at ", "FAIL  store default (s3://bucket/prefix", "put an object", "connection refused", "failed, 1 to look at.",
		}},
		{"a store whose folder cannot be made", settings{store: `{ url: "file:///dev/null/objects" }`}, 1, []string{
			"FAIL  store default", "check its url and that this user may write there",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.kafka == nil {
				tt.kafka = k.ListenAddrs()
			}
			code, out, errs := sluice(t, "check", "--live", "-c", tt.file(t))
			if code != tt.code || errs != "" {
				t.Errorf("exit code %d, stderr %q", code, errs)
			}
			rest := out
			for _, want := range tt.want {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Fatalf("no %q where it is expected in\n%s", want, out)
				}
				rest = after
			}
		})
	}
}

// A node id that the ranges leave out is found before clients are.
func TestCheckLiveFindsBrokersWithoutPorts(t *testing.T) {
	k := fakeKafka(t, kfake.NumBrokers(4))
	code, out, _ := sluice(t, "check", "--live", "-c", settings{kafka: k.ListenAddrs()}.file(t))
	if code != 1 || !strings.Contains(out, "FAIL  broker 3") || !strings.Contains(out, "outside listen.node_ids (0-2)") {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
}

func compacted(t *testing.T, k *kfake.Cluster, topic string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	policy := "compact"
	if _, err := kadm.NewClient(cl).CreateTopic(t.Context(), 1, 1, map[string]*string{"cleanup.policy": &policy}, topic); err != nil {
		t.Fatal(err)
	}
}

func TestTopics(t *testing.T) {
	k := fakeKafka(t, kfake.SeedTopics(2, "plain", "otel-a"))
	compacted(t, k, "otel-table")
	file := settings{kafka: k.ListenAddrs()}.file(t)
	code, out, errs := sluice(t, "topics", "-c", file)
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{
		`(?m)^TOPIC +PARTITIONS +CLASS +TIER +WHY +RULE$`,
		`(?m)^otel-a +2 +telemetry +diskless +class +otel-\* \(line 13\)$`,
		`(?m)^otel-table +1 +telemetry +low-latency +compacted: inline +otel-\* \(line 13\)$`,
		`(?m)^plain +2 +control +low-latency +class +default_class$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}

	code, out, errs = sluice(t, "topics", "--json", "-c", file)
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	const row = `  {
    "topic": "otel-table",
    "partitions": 1,
    "class": "telemetry",
    "rule": "otel-*",
    "line": 13,
    "tier": "low-latency",
    "why": "compacted: inline"
  }`
	if !strings.Contains(out, row) {
		t.Errorf("no\n%s\nin\n%s", row, out)
	}

	code, out, errs = sluice(t, "topics", "-c", settings{kafka: []string{deadAddress(t)}}.file(t))
	if code != 1 || out != "" || !strings.Contains(errs, "`sluice check --live` looks closer") {
		t.Errorf("without a cluster: exit code %d, stdout %q: %s", code, out, errs)
	}
}

// What sluice does in the background it does as itself, and it would be missed
// late: by a disk that is full, or an archive that is empty.
func TestRightsThatAreMissingAreTold(t *testing.T) {
	sized, bytes := "otel-sized", "1000000"
	acl := func(op kmsg.ACLOperation, topic string) kfake.ACL {
		return kfake.ACL{Principal: "User:sluice", Resource: kmsg.ACLResourceTypeTopic, Name: topic, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true}
	}
	var acls []kfake.ACL
	for _, topic := range []string{"otel-a", sized, "otel-fine", "audit-a"} {
		acls = append(acls, acl(kmsg.ACLOperationDescribe, topic), acl(kmsg.ACLOperationDescribeConfigs, topic))
	}
	acls = append(acls, acl(kmsg.ACLOperationRead, sized), acl(kmsg.ACLOperationRead, "otel-fine"), acl(kmsg.ACLOperationDelete, "otel-fine"))
	k := fakeKafka(t, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "root", "secret"), kfake.User("PLAIN", "sluice", "secret", acls...))
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.ListenAddrs()...), kgo.SASL(plain.Auth{User: "root", Pass: "secret"}.AsMechanism()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for topic, configs := range map[string]map[string]*string{
		"otel-a": nil, "audit-a": nil, sized: {"retention.bytes": &bytes}, "otel-fine": {"retention.bytes": &bytes},
	} {
		if _, err := kadm.NewClient(cl).CreateTopic(t.Context(), 1, 1, configs, topic); err != nil {
			t.Fatal(err)
		}
	}
	file := settings{kafka: k.ListenAddrs(), rest: rulesOnly + "  - { match: \"audit-*\", class: audit }\n"}.file(t)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	address := k.ListenAddrs()[0]
	text = []byte(strings.Replace(string(text), "objects\" }", "objects\", lock: none }", 1))
	text = []byte(strings.Replace(string(text), "kafka:\n", "kafka:\n  sasl: { mechanism: PLAIN, username: sluice, password: secret }\n", 1))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	wants := []string{
		"audit-a: sluice's own principal may not READ: it is not archived; allow it with kafka-acls --bootstrap-server " + address + " --add --allow-principal User:sluice --operation Read --topic audit-a\n",
		sized + ": sluice's own principal may not DELETE: its log is not cut to retention.bytes of original bytes, and keeps more; allow it with kafka-acls --bootstrap-server " + address + " --add --allow-principal User:sluice --operation Delete --topic " + sized + "\n",
	}
	for _, args := range [][]string{{"check", "--live"}, {"topics"}} {
		_, out, errs := sluice(t, append(args, "-c", file)...)
		for _, want := range wants {
			if args[0] == "check" {
				want = "warn  topic " + want
			}
			if !strings.Contains(out, want) {
				t.Errorf("%v: no %q in\n%s%s", args, want, out, errs)
			}
		}
		if n := strings.Count(out, "own principal may not"); n != len(wants) {
			t.Errorf("%v: %d complaints in\n%s", args, n, out)
		}
	}
}

// taken is a port that something else listens on.
func taken(t *testing.T, port int) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}
