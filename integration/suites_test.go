package integration

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-kafka/sluice/harness"
)

// A client's own tests know what it relies on better than anybody else. They
// are run as they come with its module, once directly and once through sluice
// for each default class, and have to end alike.

// moduleCopy is a client's module, as the module cache has it, where its tests
// can be built.
func moduleCopy(t *testing.T, module string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatalf("go list -m %s: %v", module, err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(strings.TrimSpace(string(out)))); err != nil {
		t.Fatal(err)
	}
	// The cache is read-only, and what can't be written can't be removed.
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chmod(path, 0o755)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// replaceInFile changes a copied file in one place.
func replaceInFile(t *testing.T, file, old, replacement string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text, []byte(old)); n != 1 {
		t.Fatalf("%s has %q %d times, not once: the module has changed", file, old, n)
	}
	if err := os.WriteFile(file, bytes.Replace(text, []byte(old), []byte(replacement), 1), 0o644); err != nil {
		t.Fatal(err)
	}
}

// suite is a client's tests, built.
type suite struct {
	program string
	dir     string   // where they run
	args    []string // -test.run and the like
	timeout time.Duration
	differ  map[string]string // by test and target: why it fails there, as README says
}

func buildSuite(t *testing.T, dir, pkg, tags string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "suite.test")
	cmd := exec.Command("go", "test", "-c", "-mod=mod", "-tags", tags, "-o", program, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the tests of %s: %v\n%s", pkg, err, out)
	}
	return program
}

var outcome = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)

// run returns how each test ended, and all that they printed.
func (s suite) run(t *testing.T, env ...string) (ended map[string]string, output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.timeout+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.program, append([]string{"-test.v", "-test.timeout", s.timeout.String()}, s.args...)...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	err := cmd.Run() // tests may fail; what counts is which
	ended = map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(out.Bytes()))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if m := outcome.FindStringSubmatch(lines.Text()); m != nil {
			ended[m[2]] = m[1]
		}
	}
	counts := map[string]int{}
	for _, how := range ended {
		counts[how]++
	}
	t.Logf("%d passed, %d failed, %d skipped in %v (%v)", counts["PASS"], counts["FAIL"], counts["SKIP"], time.Since(began).Round(time.Second), err)
	return ended, out.String()
}

// about is what was printed about a test.
func about(output, name string) string {
	var b strings.Builder
	for line := range strings.Lines(output) {
		if strings.Contains(line, name) || strings.Contains(line, "_test.go:") {
			b.WriteString(line)
		}
	}
	text := b.String()
	return text[max(0, len(text)-4000):]
}

// alike runs the suite against each target and compares with the first. Tests
// of others have timing of their own: what ends otherwise is run once more, by
// itself, on both.
func (s suite) alike(t *testing.T, targets []string, env func(target string) []string) {
	t.Helper()
	t.Log(targets[0])
	direct, directly := s.run(t, env(targets[0])...)
	if !slices.Contains(slices.Collect(maps.Values(direct)), "PASS") {
		t.Fatalf("no test passed directly:\n%s", directly[max(0, len(directly)-4000):])
	}
	for _, target := range targets[1:] {
		t.Log(target)
		through, output := s.run(t, env(target)...)
		for _, name := range slices.Sorted(maps.Keys(direct)) {
			if through[name] == direct[name] || strings.Contains(name, "/") {
				continue
			}
			t.Logf("%s: %s directly, %s through %s:\n%s", name, direct[name], through[name], target, about(output, name))
			again := s
			again.args = append(slices.Clone(s.args), "-test.run", "^"+name+"$")
			through, output := again.run(t, env(target)...)
			alone, _ := again.run(t, env(targets[0])...)
			// What passed directly among the others has to pass, also if by itself it fails.
			equal := through[name] == alone[name] && (through[name] == "PASS" || direct[name] != "PASS")
			switch why := s.differ[name+" "+target]; {
			case equal && why != "":
				t.Errorf("%s passes through %s by now, which was to fail: %s", name, target, why)
			case !equal && why != "":
				t.Logf("%s differs through %s: %s", name, target, why)
			case !equal:
				t.Errorf("%s, alone: %s directly, %s through %s:\n%s", name, alone[name], through[name], target, about(output, name))
			}
		}
	}
}

// targets are Kafka itself, and a sluice that sends whatever has no rule to the
// low-latency tier, and one that sends it to the diskless one, with where each
// is. After the test, both must have been used.
func suiteTargets(t *testing.T, k *harness.Kafka) (names []string, bootstrap map[string]string) {
	t.Helper()
	names, bootstrap = []string{"Kafka"}, map[string]string{"Kafka": strings.Join(k.Bootstrap(), ",")}
	for _, class := range []string{"control", "telemetry"} {
		s := startSluice(t, replica{Kafka: k.Bootstrap(), Default: class, Store: fileStore(t)})
		names = append(names, class)
		bootstrap[class] = s.Bootstrap
		t.Cleanup(func() {
			stored := s.metric(t, "sluice_diskless_stored_batches_total", "class", class)
			if (stored > 0) != (class == "telemetry") || s.metric(t, "sluice_proxy_requests_total", "api", "Produce") == 0 {
				t.Errorf("%s: %.0f batches went to objects", class, stored)
			}
		})
	}
	return names, bootstrap
}

// Sizes are modest: what counts is what is done, not how often.
func TestLongTestsOfFranzGo(t *testing.T) {
	harness.Long(t)
	targets, seeds := suiteTargets(t, sharedKafka(t))
	dir := moduleCopy(t, "github.com/twmb/franz-go")
	// Its records are alike, and compressed they are smaller than placeholders:
	// all of them would stay inline.
	replaceInFile(t, filepath.Join(dir, "pkg", "kgo", "config.go"), "[]CompressionCodec{SnappyCompression(), NoCompression()}", "[]CompressionCodec{NoCompression()}")
	s := suite{program: buildSuite(t, dir, "./pkg/kgo", ""), dir: filepath.Join(dir, "pkg", "kgo"), timeout: 5 * time.Minute}
	s.alike(t, targets, func(target string) []string {
		return []string{
			"KGO_SEEDS=" + seeds[target], "KGO_LOG_LEVEL=none", "KGO_TEST_RF=1",
			"KGO_TEST_RECORDS=5000", "KGO_TEST_MAX_TOPIC_PARTS=7",
		}
	})
}

// saramasFaults are those of sarama's tests that stop a broker with Docker or cut
// connections with toxiproxy, neither of which is here. Others, which run Java in
// Docker, skip themselves.
var saramasFaults = []string{
	"TestFuncConnectionFailure", "TestFuncAdminNetworkErrorClosesControllerConnection",
	"TestFuncAdminListConsumerGroupOffsets", "TestConsumerFetchFollowerFailover",
	"TestFuncTxnProduceWithBrokerFailure", "TestFuncProducingIdempotentWithBrokerFailure",
	"TestFuncIdempotentBufferedSequence", "TestAsyncProducerRemoteBrokerClosed",
}

// Its functional tests want a toxiproxy before each broker, which they reset
// before and after each test. One that does nothing will do for all that ask no
// more of it.
func TestLongTestsOfSarama(t *testing.T) {
	harness.Long(t)
	// They count on it that a topic is unknown until it is created.
	targets, seeds := suiteTargets(t, harness.StartKafka(t, harness.KafkaOptions{Properties: map[string]string{"auto.create.topics.enable": "false"}}))
	dir := moduleCopy(t, "github.com/IBM/sarama")
	replaceInFile(t, filepath.Join(dir, "functional_test.go"),
		`env.KafkaBrokerAddrs = append(env.KafkaBrokerAddrs, fmt.Sprintf("127.0.0.1:%d", 29090+i))`,
		`env.KafkaBrokerAddrs = strings.Split(os.Getenv("KAFKA_SEEDS"), ",")`)
	replaceInFile(t, filepath.Join(dir, "functional_test.go"), "ensureFullyReplicated(t, 60*time.Second, 5*time.Second)", "ensureFullyReplicated(t, 60*time.Second, 250*time.Millisecond)")
	// By the latency that it adds they see that latencies are measured.
	replaceInFile(t, filepath.Join(dir, "functional_producer_test.go"), "minRequestLatencyInMs := 10", "minRequestLatencyInMs := 0")
	idle := http.NewServeMux()
	idle.HandleFunc("GET /proxies/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"name": %q, "enabled": true}`, r.PathValue("name"))
	})
	idle.HandleFunc("POST /proxies/{name}/toxics", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	idle.HandleFunc("POST /reset", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	toxiproxy := httptest.NewServer(idle)
	t.Cleanup(toxiproxy.Close)
	s := suite{
		program: buildSuite(t, dir, ".", "functional"), dir: dir, timeout: 8 * time.Minute,
		differ: map[string]string{"TestFuncAdminAlterPartitionReassignments telemetry": "it waits until Metadata names the brokers that it has assigned, and Metadata names their twins"},
		args:   []string{"-test.run", "Func|^TestConsumer|^TestVersionMatrix|^TestReadOnly|^TestInterceptors", "-test.skip", "^(" + strings.Join(saramasFaults, "|") + ")$"},
	}
	s.alike(t, targets, func(target string) []string {
		at := strings.Split(seeds[target], ",") // some tests count them as brokers
		at = slices.Repeat(at, 3/len(at))
		return []string{"KAFKA_SEEDS=" + strings.Join(at, ","), "KAFKA_VERSION=" + harness.DefaultKafka, "TOXIPROXY_ADDR=" + toxiproxy.URL}
	})
}
