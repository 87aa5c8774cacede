package integration

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

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
	apart   bool              // each target has brokers of its own, and all are run at the same time
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

// run returns how each test of a target ended, and all that they printed.
func (s suite) run(t *testing.T, target string, env ...string) (ended map[string]string, output string) {
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
	t.Logf("%s: %d passed, %d failed, %d skipped in %v (%v)", target, counts["PASS"], counts["FAIL"], counts["SKIP"], time.Since(began).Round(time.Second), err)
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

// alike runs the suite against each target and compares with Kafka. Tests
// of others have timing of their own: what ends otherwise is run once more, by
// itself, on both.
func (s suite) alike(t *testing.T, env func(target string) []string) {
	t.Helper()
	ended, printed := make([]map[string]string, len(suiteTargets)), make([]string, len(suiteTargets))
	var wg sync.WaitGroup
	for i, target := range suiteTargets {
		one := func() { ended[i], printed[i] = s.run(t, target, env(target)...) }
		if s.apart {
			wg.Go(one)
		} else {
			one()
		}
	}
	wg.Wait()
	direct := ended[0]
	if !slices.Contains(slices.Collect(maps.Values(direct)), "PASS") {
		t.Fatalf("no test passed directly:\n%s", printed[0][max(0, len(printed[0])-4000):])
	}
	for i, target := range suiteTargets[1:] {
		through, output := ended[i+1], printed[i+1]
		for _, name := range slices.Sorted(maps.Keys(direct)) {
			why := s.differ[name+" "+target]
			switch {
			case strings.Contains(name, "/"):
				continue
			case through[name] == direct[name]:
				if why != "" && direct[name] == "PASS" {
					t.Errorf("%s passes through %s by now, which was to fail: %s", name, target, why)
				}
				continue
			case why != "":
				t.Logf("%s differs through %s: %s", name, target, why)
				continue
			}
			t.Logf("%s: %s directly, %s through %s:\n%s", name, direct[name], through[name], target, about(output, name))
			again := s
			again.args = append(slices.Clone(s.args), "-test.run", "^"+name+"$")
			// Some are races whoever they speak to: of five times they have to pass once.
			alone := func(target string) (result, output string) {
				for range 5 {
					var results map[string]string
					if results, output = again.run(t, target, env(target)...); results[name] == "PASS" {
						return "PASS", output
					}
					result = results[name]
				}
				return result, output
			}
			got, output := alone(target)
			want, _ := alone(suiteTargets[0])
			// What passed directly among the others has to pass, also if by itself it fails.
			if got != want || got != "PASS" && direct[name] == "PASS" {
				t.Errorf("%s, alone: %s directly, %s through %s:\n%s", name, want, got, target, about(output, name))
			}
		}
	}
}

// A suite's targets are Kafka itself, and a sluice that sends whatever has no
// rule to the low-latency tier, and one that sends it to the diskless one.
var suiteTargets = []string{"Kafka", "control", "telemetry"}

// suiteSluice starts the one of a class, which must be used in the test.
func suiteSluice(t *testing.T, class string, r replica) *sluice {
	t.Helper()
	r.Default, r.Store = class, fileStore(t)
	s := startSluice(t, r)
	t.Cleanup(func() {
		stored := s.metric(t, "sluice_diskless_stored_batches_total", "class", class)
		if (stored > 0) != (class == "telemetry") || s.metric(t, "sluice_proxy_requests_total", "api", "Produce") == 0 {
			t.Errorf("%s: %.0f batches went to objects", class, stored)
		}
	})
	return s
}

// Sizes are modest: what counts is what is done, not how often.
func TestLongTestsOfFranzGo(t *testing.T) {
	harness.Long(t)
	k := sharedKafka(t)
	seeds := map[string]string{"Kafka": bootstrapOf(k)}
	for _, class := range suiteTargets[1:] {
		seeds[class] = suiteSluice(t, class, replica{Kafka: k.Bootstrap()}).Bootstrap
	}
	dir := moduleCopy(t, "github.com/twmb/franz-go")
	// Its records are alike, and compressed they are smaller than placeholders:
	// all of them would stay inline.
	replaceInFile(t, filepath.Join(dir, "pkg", "kgo", "config.go"), "[]CompressionCodec{SnappyCompression(), NoCompression()}", "[]CompressionCodec{NoCompression()}")
	s := suite{program: buildSuite(t, dir, "./pkg/kgo", ""), dir: filepath.Join(dir, "pkg", "kgo"), timeout: 5 * time.Minute}
	s.alike(t, func(target string) []string {
		return []string{
			"KGO_SEEDS=" + seeds[target], "KGO_LOG_LEVEL=none", "KGO_TEST_RF=1",
			"KGO_TEST_RECORDS=5000", "KGO_TEST_MAX_TOPIC_PARTS=7",
		}
	})
}

// Its functional tests want a toxiproxy before each broker, and Docker Compose,
// with which they stop one. What runs Java in Docker skips itself.
func TestLongTestsOfSarama(t *testing.T) {
	harness.Long(t)
	env := map[string][]string{}
	for _, target := range suiteTargets {
		// They count on it that a topic is unknown until it is created.
		opt := harness.KafkaOptions{Properties: map[string]string{"auto.create.topics.enable": "false"}}
		first := harness.Ports(t, replicaPorts)
		at := func(port int) string { return fmt.Sprintf("%s:%d", clientSide, port) }
		port := func(id int32) int { return first + 2 + 2*int(id) } // sluice's
		if target == "Kafka" {
			port = func(id int32) int { return first + int(id) }
			opt.Relays = []string{at(port(1))}
		}
		k := harness.StartKafka(t, opt)
		adm := kadm.NewClient(client(t, bootstrapOf(k)))
		for i := range 16 { // so that each partition of the groups' topic is loaded
			eventually(t, "groups have coordinators", func() (bool, string) {
				_, err := adm.FetchOffsets(t.Context(), fmt.Sprint("first-", i))
				return err == nil, fmt.Sprint(err)
			})
		}
		if target != "Kafka" {
			suiteSluice(t, target, replica{Kafka: k.Bootstrap(), Host: sluiceSide, Advertise: clientSide, Port: first})
		}
		var seeds []string
		faults := faulty(t, k, func(id int32) map[string]string {
			seeds = append(seeds, at(port(id)))
			if target == "Kafka" {
				return map[string]string{at(port(id)): k.RelayedAddr(id, 0)}
			}
			twin := port(id) + 1
			return map[string]string{at(port(id)): fmt.Sprintf("%s:%d", sluiceSide, port(id)), at(twin): fmt.Sprintf("%s:%d", sluiceSide, twin)}
		})
		env[target] = append(faults, "KAFKA_SEEDS="+strings.Join(seeds, ","), "KAFKA_VERSION="+harness.DefaultKafka)
	}

	dir := moduleCopy(t, "github.com/IBM/sarama")
	change := func(file, old, replacement string) {
		t.Helper()
		replaceInFile(t, filepath.Join(dir, file), old, replacement)
	}
	change("functional_test.go", `env.KafkaBrokerAddrs = append(env.KafkaBrokerAddrs, fmt.Sprintf("127.0.0.1:%d", 29090+i))`,
		`env.KafkaBrokerAddrs = strings.Split(os.Getenv("KAFKA_SEEDS"), ",")`)
	change("functional_test.go", "ensureFullyReplicated(t, 60*time.Second, 5*time.Second)", "ensureFullyReplicated(t, 60*time.Second, 250*time.Millisecond)")
	// Brokers' racks are called otherwise here, and twins are in their brokers'.
	change("functional_consumer_follower_fetch_test.go", "strconv.FormatInt(int64(follower), 10)", fmt.Sprintf(`"rack-" + strconv.FormatInt(int64(follower&^%d), 10)`, disklessBit))
	change("functional_consumer_follower_fetch_test.go", "numMsg = 1000", "numMsg = 400") // one each 25 ms
	s := suite{
		program: buildSuite(t, dir, ".", "functional"), dir: dir, timeout: 8 * time.Minute, apart: true,
		differ: map[string]string{"TestFuncAdminAlterPartitionReassignments telemetry": "it waits until Metadata names the brokers that it has assigned, and Metadata names their twins, or the leader would not be among the replicas"},
		args:   []string{"-test.parallel", "16", "-test.run", "Func|^TestConsumer|^TestVersionMatrix|^TestReadOnly|^TestInterceptors|^TestAsyncProducerRemoteBrokerClosed"},
	}
	s.alike(t, func(target string) []string { return env[target] })
}
