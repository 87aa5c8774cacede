// Package integration holds the tests that run all of sluice against real
// parts: Apache Kafka, an S3 server, and franz-go, sarama and Java as clients.
package integration

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/server"
)

// cluster is shared by the tests that leave brokers alone: a start takes
// seconds. Its topics carry each test's own name.
var cluster struct {
	once  sync.Once
	tb    *mainTB
	kafka *harness.Kafka
}

// mainTB lets a shared part outlive the test that happens to start it.
type mainTB struct {
	testing.TB
	mu       sync.Mutex
	cleanups []func()
}

func (m *mainTB) Helper() {}
func (m *mainTB) Cleanup(fn func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cleanups = append(m.cleanups, fn)
}
func (m *mainTB) end() {
	for i := len(m.cleanups) - 1; i >= 0; i-- {
		m.cleanups[i]()
	}
}
func (m *mainTB) TempDir() string {
	dir, err := os.MkdirTemp("", "sluice-shared-")
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
func (m *mainTB) Log(args ...any)                   { fmt.Println(args...) }
func (m *mainTB) Logf(format string, args ...any)   { fmt.Printf(format+"\n", args...) }
func (m *mainTB) Failed() bool                      { return false }
func (m *mainTB) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (m *mainTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func TestMain(m *testing.M) {
	if file := os.Getenv(collectorVariable); file != "" {
		fmt.Fprintln(os.Stderr, collect(file))
		os.Exit(1)
	}
	if url := os.Getenv(dockerVariable); url != "" && filepath.Base(os.Args[0]) == "docker" {
		if err := docker(url, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	cluster.tb = &mainTB{}
	code := m.Run()
	cluster.tb.end()
	os.Exit(code)
}

// sharedKafka is a three-broker cluster that tests must not harm.
func sharedKafka(t *testing.T) *harness.Kafka {
	t.Helper()
	cluster.once.Do(func() { cluster.kafka = harness.StartKafka(cluster.tb, harness.KafkaOptions{}) })
	if cluster.kafka == nil {
		t.Fatal("the shared cluster did not start; see above")
	}
	return cluster.kafka
}

// sluice is one replica in this process.
type sluice struct {
	*server.Server
	Bootstrap string
	File      string // its configuration
}

// replica says how to configure a sluice; the zero value of a field takes the
// default of startSluice.
type replica struct {
	Kafka     []string // bootstrap
	Host      string   // to bind
	Advertise string
	Port      int    // bootstrap port; brokers follow
	Store     string // the stores.default value, YAML
	Extra     string // more YAML, at the top level
	Default   string // default_class
	Log       io.Writer
	InKafka   string              // more YAML, below kafka, indented by two
	InListen  string              // likewise, below listen
	Dial      lowlatency.DialFunc // startSluice only
}

// bootstrap is what clients connect to.
func (r replica) bootstrap() string { return fmt.Sprintf("%s:%d", r.Advertise, r.Port) }

const brokerIDs = 8 // node ids 0-7

// rules of every test configuration: the class is in the topic's name.
const rules = `topics:
  - { match: ["*control*"], class: control }
  - { match: ["*telemetry*"], class: telemetry }
  - { match: ["*enrichment*"], class: enrichment }
`

func fileStore(t testing.TB) string {
	return fmt.Sprintf("{ url: %q }", "file://"+t.TempDir())
}

func s3Store(s *harness.S3, prefix string) string {
	return fmt.Sprintf("{ url: %q, endpoint: %q, access_key: %q, secret_key: %q }", "s3://"+s.Bucket+"/"+prefix, s.Endpoint, s.AccessKey, s.SecretKey)
}

func (r replica) yaml() string {
	p := r.Port
	return fmt.Sprintf(`kafka:
  bootstrap: ["%s"]
%slisten:
  bootstrap: "%s:%d"
  brokers: "%s:%d-%d"
  advertise: "%s"
  node_ids: "0-%d"
%sadmin: "%s:%d"
stores:
  default: %s
default_class: %s
%s%s`, strings.Join(r.Kafka, `", "`), r.InKafka, r.Host, p, r.Host, p+2, p+2+2*brokerIDs-1, r.Advertise, brokerIDs-1, r.InListen, r.Host, p+1, r.Store, r.Default, rules, r.Extra)
}

// ports of a replica: bootstrap, admin, two for each broker id.
const replicaPorts = 2 + 2*brokerIDs

func (r replica) withDefaults(t testing.TB) replica {
	if r.Host == "" {
		r.Host = "127.0.0.1"
	}
	if r.Advertise == "" {
		r.Advertise = r.Host
	}
	if r.Port == 0 {
		r.Port = harness.Ports(t, replicaPorts)
	}
	if r.Store == "" {
		r.Store = fileStore(t)
	}
	if r.Default == "" {
		r.Default = "control"
	}
	if !strings.Contains(r.Extra, "classes:") {
		r.Extra += "classes:\n  telemetry: { linger: 20ms, object_size: 8MiB, store: default }\n"
	}
	return r
}

// write puts a replica's configuration into a file.
func (r replica) write(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	if err := os.WriteFile(path, []byte(r.yaml()), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// startSluice runs a replica in this process until the test ends.
func startSluice(t testing.TB, r replica) *sluice {
	t.Helper()
	r = r.withDefaults(t)
	path := r.write(t)
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.yaml())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if r.Log == nil {
		r.Log = zerolog.NewTestWriter(t)
	}
	s, err := server.Start(ctx, cfg, server.Options{Logger: zerolog.New(r.Log).Level(zerolog.WarnLevel), Dial: r.Dial})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = s.Shutdown(ctx)
	})
	return &sluice{Server: s, Bootstrap: s.Addr().String(), File: path}
}

// metric sums a counter or gauge over the label values that match.
func (s *sluice) metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	return gather(t, s.Metrics(), name, labels...)
}

func gather(t testing.TB, g prometheus.Gatherer, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	metrics:
		for _, m := range f.GetMetric() {
			for i := 0; i+1 < len(labels); i += 2 {
				ok := false
				for _, l := range m.GetLabel() {
					ok = ok || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
				}
				if !ok {
					continue metrics
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// client is a franz-go client that ends with the test.
func client(t testing.TB, bootstrap string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(strings.Split(bootstrap, ",")...), kgo.MetadataMinAge(200 * time.Millisecond)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// createTopic makes a topic through the given bootstrap address.
func createTopic(t testing.TB, bootstrap, topic string, partitions int32, configs ...string) {
	t.Helper()
	values := make(map[string]*string)
	for i := 0; i+1 < len(configs); i += 2 {
		values[configs[i]] = &configs[i+1]
	}
	cl := client(t, bootstrap)
	defer cl.Close()
	adm := kadm.NewClient(cl)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := adm.CreateTopic(ctx, partitions, 3, values, topic); err != nil {
		t.Fatalf("creating %s: %v", topic, err)
	}
	// Brokers learn of a topic one after the other, and one that does not know it
	// yet refuses it, whoever leads it.
	for {
		err := known(ctx, cl, topic, int(partitions))
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s has no leaders: %v", topic, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// known is an error until every broker knows who leads each partition of a topic.
func known(ctx context.Context, cl *kgo.Client, topic string, partitions int) error {
	brokers, err := kadm.NewClient(cl).ListBrokers(ctx)
	if err != nil {
		return err
	}
	req := kmsg.NewPtrMetadataRequest()
	asked := kmsg.NewMetadataRequestTopic()
	asked.Topic = &topic
	req.Topics = append(req.Topics, asked)
	for _, id := range brokers.NodeIDs() {
		resp, err := req.RequestWith(ctx, cl.Broker(int(id)))
		if err != nil {
			return fmt.Errorf("broker %d: %w", id, err)
		}
		if len(resp.Topics) != 1 || resp.Topics[0].ErrorCode != 0 || len(resp.Topics[0].Partitions) != partitions {
			return fmt.Errorf("broker %d does not know it yet", id)
		}
		for _, p := range resp.Topics[0].Partitions {
			if p.ErrorCode != 0 || p.Leader < 0 {
				return fmt.Errorf("broker %d does not know who leads partition %d", id, p.Partition)
			}
		}
	}
	return nil
}

func bootstrapOf(k *harness.Kafka) string { return strings.Join(k.Bootstrap(), ",") }

// consumed reads every partition of topics from the start to the ends that the
// cluster names now.
func consumed(t testing.TB, bootstrap string, want int, opts []kgo.Opt, topics ...string) []*kgo.Record {
	t.Helper()
	cl := client(t, bootstrap, append(opts, kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var out []*kgo.Record
	for len(out) < want {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %d of %d records: %v", len(out), want, err)
		}
		out = append(out, fetches.Records()...)
	}
	return out
}
