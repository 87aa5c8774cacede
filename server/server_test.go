package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/admin"
	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/proxy"
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

// A rule that changes the class of thousands of topics costs a few requests for
// the facts of them all, not one for each, whether clients ask for Metadata or
// write first; and nothing when it is changed back.
func TestARuleThatMatchesThousandsOfTopics(t *testing.T) {
	const many, written = 3000, 500
	topics := make([]string, many)
	for i := range topics {
		topics[i] = fmt.Sprintf("app-%04d", i)
	}
	r := newRig(t, kfake.SeedTopics(1, topics...))
	var requests, asked, largest, lists atomic.Int64
	r.kafka.ControlKey(int16(kmsg.DescribeConfigs), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.KeepControl()
		n := int64(len(req.(*kmsg.DescribeConfigsRequest).Resources))
		requests.Add(1)
		asked.Add(n)
		largest.Store(max(largest.Load(), n))
		return nil, nil, false
	})
	r.kafka.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.KeepControl()
		if req.(*kmsg.MetadataRequest).Topics == nil {
			lists.Add(1)
		}
		return nil, nil, false
	})
	const flipped = "topics:\n  - { match: \"app-*\", class: telemetry }\n  - { match: \"otel-*\", class: telemetry }\n"
	s := r.start(r.config(""))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", r.base)), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedRecords(many), kgo.ProducerLinger(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	value := make([]byte, 4096)
	write := func() {
		t.Helper()
		var records []*kgo.Record
		for _, topic := range topics[:written] {
			records = append(records, &kgo.Record{Topic: topic, Value: value})
		}
		if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	led := func() (byTwins int) {
		t.Helper()
		resp, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, cl)
		if err != nil {
			t.Fatal(err)
		}
		for _, topic := range resp.Topics {
			if strings.HasPrefix(*topic.Topic, "app-") && topic.Partitions[0].Leader >= 1<<20 {
				byTwins++
			}
		}
		return byTwins
	}
	reload := func(cfg *config.Config) {
		t.Helper()
		if applied, _, err := s.Reload(cfg); err != nil || len(applied) != 1 {
			t.Fatalf("applied %v: %v", applied, err)
		}
	}
	write()
	if n := led(); n != 0 || asked.Load() > 10 {
		t.Fatalf("before: %d topics are led by diskless brokers, and %d were asked for", n, asked.Load())
	}
	for round := range 2 {
		requests.Store(0)
		asked.Store(0)
		lists.Store(0)
		before := r.storedBatches(s)
		reload(r.config(flipped))
		most := int64(many/1000 + 1)
		if round > 0 {
			most = 0 // they are known
		}
		if n := requests.Load(); n > most || lists.Load() != 1 {
			t.Errorf("round %d: the reload asked %d times for facts and %d times for topics, want at most %d and 1", round, n, lists.Load(), most)
		}
		write() // by clients that have heard nothing of it yet
		if n := r.storedBatches(s) - before; n != written {
			t.Errorf("round %d: %v batches of %d went to objects", round, n, written)
		}
		if n := led(); n != many {
			t.Errorf("round %d: %d topics are led by diskless brokers", round, n)
		}
		if n := requests.Load(); n > most {
			t.Errorf("round %d: facts were asked for %d times, want at most %d", round, n, most)
		}
		if n := asked.Load(); round == 0 && n != many {
			t.Errorf("the facts of %d topics were asked for, want %d", n, many)
		}
		requests.Store(0)
		lists.Store(0)
		reload(r.config(""))
		write()
		if n := led(); n != 0 {
			t.Errorf("round %d: %d topics are led by diskless brokers after the change back", round, n)
		}
		if n := requests.Load(); n != 0 {
			t.Errorf("round %d: facts were asked for %d times after the change back", round, n)
		}
	}
	if largest.Load() > 1000 {
		t.Errorf("%d topics were asked for at once", largest.Load())
	}
	// Both kinds are read back.
	reading, err := kgo.NewClient(kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", r.base)), kgo.ConsumeTopics(topics[:written]...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	for got := 0; got < 5*written; {
		fetches := reading.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %d records: %v", got, err)
		}
		fetches.EachRecord(func(rec *kgo.Record) {
			if got++; !bytes.Equal(rec.Value, value) {
				t.Fatalf("%s offset %d has %d bytes", rec.Topic, rec.Offset, len(rec.Value))
			}
		})
	}
}

func (r *rig) storedBatches(s *Server) (sum float64) {
	r.Helper()
	families, err := s.Metrics().Gather()
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "sluice_diskless_stored_batches_total" {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// newerConn is a client that begins with a newer ApiVersions than anybody speaks,
// and sends what its library would when it is told what to speak.
type newerConn struct {
	net.Conn
	said  func(key, version int16)
	begun bool
}

func (c *newerConn) Write(b []byte) (int, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("a request of %d bytes", len(b))
	}
	key := int16(binary.BigEndian.Uint16(b[4:]))
	if key == 18 && !c.begun {
		c.begun = true
		newer := bytes.Clone(b)
		binary.BigEndian.PutUint16(newer[6:], 99)
		if _, err := c.Conn.Write(newer); err != nil {
			return 0, err
		}
		c.said(18, 99)
		size := make([]byte, 4)
		if _, err := io.ReadFull(c.Conn, size); err != nil {
			return 0, err
		}
		answer := make([]byte, binary.BigEndian.Uint32(size))
		if _, err := io.ReadFull(c.Conn, answer); err != nil {
			return 0, err
		}
		resp := kmsg.NewPtrApiVersionsResponse() // v0
		if err := resp.ReadFrom(answer[4:]); err != nil {
			return 0, err
		}
		if resp.ErrorCode != kerr.UnsupportedVersion.Code || len(resp.ApiKeys) != 1 || resp.ApiKeys[0].ApiKey != 18 {
			return 0, fmt.Errorf("a newer client is told %+v", resp)
		}
	}
	c.said(key, int16(binary.BigEndian.Uint16(b[6:])))
	return c.Conn.Write(b)
}

// Clients and brokers that are both newer than the proxy's tables agree on what
// the proxy knows.
func TestNewerClientsAndBrokersAreNegotiatedDown(t *testing.T) {
	r := newRig(t)
	known := make(map[int16]proxy.API)
	for _, a := range proxy.APIs() {
		if a.Treatment != proxy.Hide {
			known[a.Key] = a
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	direct, err := kgo.NewClient(kgo.SeedBrokers(r.kafka.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	newer, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, direct)
	if err != nil {
		t.Fatal(err)
	}
	// What the broker has as new as the proxy, it now has newer, and more of it.
	ahead := make(map[int16]bool)
	for i := range newer.ApiKeys {
		if k := &newer.ApiKeys[i]; k.MaxVersion >= known[k.ApiKey].Max {
			ahead[k.ApiKey], k.MaxVersion = true, 60
		}
	}
	for key := int16(95); key < 200; key++ {
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey, k.MaxVersion = key, 60
		newer.ApiKeys = append(newer.ApiKeys, k)
	}
	if !ahead[0] || !ahead[1] || !ahead[3] {
		t.Fatalf("Produce, Fetch and Metadata are not ahead of the proxy: %v", ahead)
	}
	r.kafka.ControlKey(int16(kmsg.ApiVersions), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.KeepControl()
		resp := req.ResponseKind().(*kmsg.ApiVersionsResponse)
		resp.ApiKeys = slices.Clone(newer.ApiKeys)
		return resp, nil, true
	})
	s := r.start(r.config(""))
	var mu sync.Mutex
	said := make(map[[2]int16]int)
	cl, err := kgo.NewClient(kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", r.base)), kgo.MaxVersions(nil), kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ConsumeTopics("payments", "otel-spans"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.Dialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &newerConn{Conn: conn, said: func(key, version int16) {
				mu.Lock()
				defer mu.Unlock()
				said[[2]int16{key, version}]++
			}}, nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	const n = 20
	before := r.storedBatches(s)
	for i := range n {
		for _, topic := range []string{"payments", "otel-spans"} {
			if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: bytes.Repeat([]byte{byte(i)}, 4096)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if stored := r.storedBatches(s) - before; stored != n {
		t.Errorf("%v batches went to objects, want %d", stored, n)
	}
	for got := 0; got < 2*n; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		got += fetches.NumRecords()
	}
	offered, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, cl)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range offered.ApiKeys {
		if a, ok := known[k.ApiKey]; !ok || k.MaxVersion > a.Max || ahead[k.ApiKey] && k.MaxVersion != a.Max {
			t.Errorf("key %d is offered up to v%d, and known up to v%d", k.ApiKey, k.MaxVersion, a.Max)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if said[[2]int16{18, 99}] < 2 { // bootstrap, and one at least for each tier
		t.Errorf("a newer ApiVersions was sent %d times", said[[2]int16{18, 99}])
	}
	for at := range said {
		if a := known[at[0]]; at[1] > a.Max && at[0] != 18 {
			t.Errorf("the client was led to send %s v%d, of which v%d is the last that is known", kmsg.NameForKey(at[0]), at[1], a.Max)
		}
	}
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
