package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/admin"
	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/tiers"
)

// patience bounds what a test waits for; no test measures time.
const patience = 20 * time.Second

// rig is a cluster in this process and a configuration in front of it.
type rig struct {
	*testing.T
	kafka *kfake.Cluster
	base  int    // ports: base is bootstrap, base+1 and base+2 the broker's
	store string // the store's entry in the configuration
	dir   string
	log   journal
}

// journal is a log that may be read while it is written.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

func newRig(t *testing.T, opts ...kfake.Opt) *rig {
	t.Helper()
	r := &rig{T: t, dir: t.TempDir(), base: harness.Ports(t, 4)}
	r.store = fmt.Sprintf(`{ url: "file://%s" }`, r.dir)
	r.kafka = kfake.MustCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.ClusterID("mine"), kfake.SeedTopics(1, "payments", "otel-spans")}, opts...)...)
	t.Cleanup(r.kafka.Close)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	return r
}

// config is the configuration with more keys, for which indentation counts.
func (r *rig) config(more string) *config.Config {
	r.Helper()
	text := fmt.Sprintf(`
kafka: { bootstrap: %q }
listen:
  bootstrap: "127.0.0.1:%d"
  brokers: "127.0.0.1:%d-%d"
  advertise: "127.0.0.1"
  node_ids: "0"
admin: "127.0.0.1:%d"
stores:
  default: %s
default_class: control
classes:
  telemetry: { linger: 20ms }
`, r.kafka.ListenAddrs()[0], r.base, r.base+1, r.base+2, r.base+3, r.store)
	if !strings.Contains(more, "topics:") {
		text += "topics:\n  - { match: \"otel-*\", class: telemetry }\n"
	}
	cfg, err := config.Parse("sluice.yaml", []byte(text+more))
	if err != nil {
		r.Fatal(err)
	}
	return cfg
}

func (r *rig) start(cfg *config.Config) *Server {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	s, err := Start(ctx, cfg, Options{Logger: zerolog.New(&r.log)})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = s.Shutdown(ctx)
	})
	return s
}

func (r *rig) client(opts ...kgo.Opt) *kgo.Client {
	r.Helper()
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", r.base)), kgo.ProducerBatchCompression(kgo.NoCompression())}, opts...)...)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(c.Close)
	return c
}

// payload is large enough for the diskless tier.
func payload(i int) string { return fmt.Sprintf("%d:%s", i, strings.Repeat("x", 4000)) }

func (r *rig) produce(topic string, from, to int) {
	r.Helper()
	c := r.client()
	defer c.Close()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	for i := from; i < to; i++ {
		if err := c.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte(payload(i))}).FirstErr(); err != nil {
			r.Fatalf("record %d of %s: %v", i, topic, err)
		}
	}
}

// consume expects the payloads from 0 to n, in order and without gaps.
func (r *rig) consume(topic string, n int) {
	r.Helper()
	c := r.client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer c.Close()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	for i := 0; i < n; {
		fetches := c.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			r.Fatalf("%s: %d of %d records came: %v", topic, i, n, err)
		}
		fetches.EachRecord(func(rec *kgo.Record) {
			if rec.Offset != int64(i) || string(rec.Value) != payload(i) {
				r.Fatalf("%s: record %d is at offset %d: %.20q", topic, i, rec.Offset, rec.Value)
			}
			i++
		})
	}
}

// stored is how many bytes Kafka itself keeps of a topic.
func (r *rig) stored(topic string) int64 { return r.kafka.PartitionInfo(topic, 0).NumBytes }

// ready asks /readyz.
func (r *rig) ready() (int, admin.Health) {
	r.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", r.base+3))
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	var h admin.Health
	if err := json.NewDecoder(resp.Body).Decode(&h); err != nil {
		r.Fatal(err)
	}
	return resp.StatusCode, h
}

// eventually waits for what happens in the background.
func (r *rig) eventually(what string, is func() bool) {
	r.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if is() {
			return
		}
	}
	r.Fatal("still not: ", what)
}

// small is less than a payload: what Kafka keeps of one in the diskless tier.
const small = 1000

func TestBothTiersThroughOneAddress(t *testing.T) {
	r := newRig(t)
	r.start(r.config(""))
	for _, topic := range []string{"payments", "otel-spans"} {
		r.produce(topic, 0, 20)
		r.consume(topic, 20)
	}
	if n := r.stored("payments"); n < 20*4000 {
		t.Errorf("Kafka keeps %d bytes of a low-latency topic", n)
	}
	if n := r.stored("otel-spans"); n > 20*small {
		t.Errorf("Kafka keeps %d bytes of a diskless topic", n)
	}
	if code, h := r.ready(); code != 200 || !h.Ready || len(h.Degraded) > 0 {
		t.Errorf("/readyz: %d %+v", code, h)
	}
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", r.base+3))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for _, part := range []string{"sluice_lowlatency_brokers 1", "sluice_diskless_", "sluice_proxy_"} {
		if !strings.Contains(string(body), part) {
			t.Errorf("/metrics lacks %s", part)
		}
	}
}

func TestReloadMovesATopicLiveAndBothKindsAreReadBack(t *testing.T) {
	r := newRig(t)
	s := r.start(r.config(""))
	r.produce("otel-spans", 0, 10)
	before := r.stored("otel-spans")
	applied, waiting, err := s.Reload(r.config("topics:\n  - { match: \"otel-*\", class: operational }\n"))
	if err != nil || len(waiting) > 0 || len(applied) != 1 || applied[0] != "topics" {
		t.Fatalf("applied %v, waiting %v: %v", applied, waiting, err)
	}
	r.produce("otel-spans", 10, 20)
	if grown := r.stored("otel-spans") - before; grown < 10*4000 {
		t.Errorf("after the change Kafka got %d bytes: payloads do not go inline", grown)
	}
	before = r.stored("otel-spans")
	if _, _, err := s.Reload(r.config("")); err != nil {
		t.Fatal(err)
	}
	r.produce("otel-spans", 20, 30)
	if grown := r.stored("otel-spans") - before; grown > 10*small {
		t.Errorf("after the change back Kafka got %d bytes: payloads go inline", grown)
	}
	r.consume("otel-spans", 30)
}

func TestAReloadThatNeedsARestartIsRefusedAsAWhole(t *testing.T) {
	r := newRig(t)
	s := r.start(r.config(""))
	next := r.config("topics:\n  - { match: \"*\", class: telemetry }\n")
	telemetry := next.Classes["telemetry"]
	telemetry.Store = "new"
	next.Stores["new"], next.Classes["telemetry"] = next.Stores["default"], telemetry
	if _, _, err := s.Reload(next); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Fatal(err)
	}
	if got := s.Router().Place("payments", tiers.TopicFacts{Known: true}).Class.Name; got != "control" {
		t.Errorf("payments has become %s", got)
	}
}

func TestAStoreThatCannotBeReachedDegradesItsTopicsOnly(t *testing.T) {
	r := newRig(t)
	closed := harness.Ports(t, 1)
	r.store = fmt.Sprintf(`{ url: "s3://bucket/prefix", endpoint: "http://127.0.0.1:%d", access_key: a, secret_key: b }`, closed)
	r.start(r.config(""))
	code, h := r.ready()
	if code != 200 || !h.Ready || len(h.Degraded) != 1 || !strings.Contains(h.Degraded[0], "store default") || !strings.Contains(h.Degraded[0], "go inline") {
		t.Errorf("/readyz: %d %+v", code, h)
	}
	for _, topic := range []string{"payments", "otel-spans"} {
		r.produce(topic, 0, 10)
		r.consume(topic, 10)
		if n := r.stored(topic); n < 10*4000 {
			t.Errorf("Kafka keeps %d bytes of %s: where are they?", n, topic)
		}
	}
}

func TestAStoreThatComesLateTakesOver(t *testing.T) {
	r := newRig(t)
	// A file stands where the store's folder has to be.
	obstacle := filepath.Join(r.dir, "objects")
	if err := os.WriteFile(obstacle, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.store = fmt.Sprintf(`{ url: "file://%s" }`, obstacle)
	r.start(r.config(""))
	r.produce("otel-spans", 0, 10)
	before := r.stored("otel-spans")
	if before < 10*4000 {
		t.Errorf("without a store Kafka got %d bytes", before)
	}
	if err := os.Remove(obstacle); err != nil {
		t.Fatal(err)
	}
	r.eventually("healthy", func() bool { _, h := r.ready(); return len(h.Degraded) == 0 })
	r.produce("otel-spans", 10, 20)
	if grown := r.stored("otel-spans") - before; grown > 10*small {
		t.Errorf("with the store Kafka got %d bytes", grown)
	}
	r.consume("otel-spans", 20)
}

// claim makes the store another cluster's.
func (r *rig) claim(clusterID string) {
	r.Helper()
	store, err := objstore.OpenFile(r.dir)
	if err != nil {
		r.Fatal(err)
	}
	if _, err := keyring.Open(r.Context(), store, clusterID, keyring.Options{}); err != nil {
		r.Fatal(err)
	}
}

func TestAStoreThatMustNotBeUsedEndsTheStart(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(*rig)
		want    error
	}{
		{"it belongs to another cluster", func(r *rig) { r.claim("theirs") }, keyring.ErrForeign},
		{"its keys are lost", func(r *rig) {
			r.claim("mine")
			if err := os.MkdirAll(filepath.Join(r.dir, "wal"), 0o755); err != nil {
				r.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(r.dir, "wal", "01J00000000000000000000000"), []byte("payload"), 0o600); err != nil {
				r.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(r.dir, "sluice", "keys")); err != nil {
				r.Fatal(err)
			}
		}, keyring.ErrKeysMissing},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			c.prepare(r)
			cfg := r.config("")
			_, err := Start(t.Context(), cfg, Options{Logger: zerolog.New(&r.log)})
			if !errors.Is(err, c.want) || !strings.HasPrefix(err.Error(), "store default: file://"+r.dir) {
				t.Fatal(err)
			}
			// Nothing is left behind: the ports are free, and what was wrong
			// can be put right and started in the same process.
			for _, addr := range []string{cfg.Admin, cfg.Listen.Bootstrap} {
				l, err := net.Listen("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				_ = l.Close()
			}
		})
	}
}

func TestAPortThatIsTakenEndsTheStart(t *testing.T) {
	for i, name := range []string{"bootstrap", "the broker's", "its diskless one", "admin"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			addr := fmt.Sprintf("127.0.0.1:%d", r.base+i)
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if _, err := Start(t.Context(), r.config(""), Options{Logger: zerolog.New(&r.log)}); err == nil || !strings.Contains(err.Error(), addr) {
				t.Error(err)
			}
		})
	}
}

func TestWhileTheClusterIsAwaitedReadyzSaysSo(t *testing.T) {
	r := newRig(t)
	cfg := r.config("")
	r.kafka.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := Start(ctx, cfg, Options{Logger: zerolog.New(&r.log)})
		ended <- err
	}()
	r.eventually("listening", func() bool {
		conn, err := net.Dial("tcp", cfg.Admin)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	r.eventually("telling why", func() bool {
		code, h := r.ready()
		return code == 503 && !h.Ready && strings.Contains(strings.Join(h.Reasons, " "), cfg.Kafka.Bootstrap[0])
	})
	cancel()
	if err := <-ended; err == nil {
		t.Error("started without a cluster")
	}
}

func TestReadyzIs503WhenTheClusterIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := &kfake.VirtualNetwork{}
		kafka := kfake.MustCluster(kfake.Ports(9092), kfake.ClusterID("mine"), kfake.ListenFn(network.Listen))
		defer kafka.Close()
		cfg, err := config.Parse("sluice.yaml", []byte(`
kafka: { bootstrap: "localhost:9092" }
listen: { bootstrap: "localhost:19092", brokers: "localhost:19100-19101" }
`))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Admin = "" // real networks and fake time do not mix
		s, err := Start(t.Context(), cfg, Options{Logger: zerolog.Nop(), Listen: network.Listen, Dial: network.DialContext})
		if err != nil {
			t.Fatal(err)
		}
		if h := s.Health(); !h.Ready {
			t.Errorf("%+v", h)
		}
		var down atomic.Bool
		down.Store(true)
		kafka.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
			kafka.KeepControl()
			return nil, io.EOF, down.Load()
		})
		time.Sleep(2 * time.Minute)
		if h := s.Health(); h.Ready || len(h.Reasons) != 1 {
			t.Errorf("the cluster is gone: %+v", h)
		}
		down.Store(false)
		time.Sleep(time.Minute)
		if h := s.Health(); !h.Ready {
			t.Errorf("the cluster is back: %+v", h)
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if h := s.Health(); h.Ready {
			t.Error("ready after Shutdown")
		}
	})
}

func TestABrokerOutsideTheRangesIsReported(t *testing.T) {
	r := newRig(t, kfake.NumBrokers(2))
	r.start(r.config(""))
	code, h := r.ready()
	if code != 200 || len(h.Degraded) != 1 || !strings.Contains(h.Degraded[0], "broker 1 is outside listen.node_ids") {
		t.Errorf("/readyz: %d %+v", code, h)
	}
}

func TestShutdownAnswersWhatWasSent(t *testing.T) {
	r := newRig(t)
	cfg := r.config("")
	telemetry := cfg.Classes["telemetry"]
	telemetry.Linger, cfg.Limits.PutsPerSecond = 2*time.Second, 0 // the object is still open when the end comes
	cfg.Classes["telemetry"] = telemetry
	s := r.start(cfg)
	c := r.client(kgo.RecordRetries(0), kgo.ProducerLinger(0))
	acked := make(chan error, 1)
	c.Produce(t.Context(), &kgo.Record{Topic: "otel-spans", Value: []byte(payload(0))}, func(_ *kgo.Record, err error) { acked <- err })
	r.eventually("buffered", func() bool { return metric(t, s, "sluice_diskless_buffered_bytes") > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-acked; err != nil {
		t.Errorf("the record was not acknowledged: %v", err)
	}
	if n := r.kafka.PartitionInfo("otel-spans", 0).HighWatermark; n != 1 {
		t.Errorf("%d records in the log", n)
	}
	// And another replica gives it back.
	r.start(r.config(""))
	r.consume("otel-spans", 1)
}

func metric(t *testing.T, s *Server, name string) float64 {
	t.Helper()
	families, err := s.Metrics().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("there is no metric ", name)
	return 0
}
