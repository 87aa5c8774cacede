package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/diskless/gc"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/harness"
)

// hasty is for logs to which nothing is on its way: the margin is what the
// store's clock is not exact to.
var hasty = gc.Timing{Margin: 2 * time.Second, Grace: time.Second, Apart: time.Second, Missed: time.Hour}

// collecting is a store with a replica before it, and a collector.
type collecting struct {
	*testing.T
	s     *sluice
	store objstore.Store
	opt   gc.Options
	adm   *kadm.Client // past sluice
	cl    *kgo.Client
	sent  map[string]int // records by topic, from 0
	tick  time.Duration  // of the store's clock, and some
}

func newCollecting(t *testing.T, k *harness.Kafka, store objstore.Store, yaml string) *collecting {
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: yaml, Extra: "gc: { enabled: false }\n"})
	return &collecting{
		T: t, s: s, store: store, tick: 1100 * time.Millisecond, adm: kadm.NewClient(client(t, strings.Join(k.Bootstrap(), ","))), cl: client(t, s.Bootstrap), sent: make(map[string]int),
		opt: gc.Options{Name: "test", Store: store, Kafka: s.Cluster(), Timing: hasty, MinAge: time.Second, Logger: zerolog.New(zerolog.NewTestWriter(t))},
	}
}

func recordOf(topic string, n int) string {
	return fmt.Sprintf("%s %06d %s", topic, n, strings.Repeat("payload ", 200))
}

// write writes records to topics, which share objects.
func (c *collecting) write(n int, topics ...string) {
	c.Helper()
	var rs []*kgo.Record
	for range n {
		for _, topic := range topics {
			rs = append(rs, &kgo.Record{Topic: topic, Partition: 0, Value: []byte(recordOf(topic, c.sent[topic]))})
			c.sent[topic]++
		}
	}
	if err := c.cl.ProduceSync(c.Context(), rs...).FirstErr(); err != nil {
		c.Fatal(err)
	}
}

// pass is one pass, at a later tick of the store's clock than the last.
func (c *collecting) pass() (*gc.Report, error) {
	c.Helper()
	time.Sleep(c.tick)
	return gc.New(c.opt).Pass(c.Context())
}

// passes lets whatever is dead by now be deleted, also when a pass is in doubt.
func (c *collecting) passes(n int) *gc.Report {
	c.Helper()
	var report *gc.Report
	for range n {
		var err error
		if report, err = c.pass(); err != nil {
			c.Fatalf("%v, %+v", err, report)
		}
	}
	return report
}

func (c *collecting) objects() map[string]bool {
	c.Helper()
	keys := make(map[string]bool)
	if err := c.store.List(c.Context(), "wal/", "", func(i objstore.Info) error { keys[i.Key] = true; return nil }); err != nil {
		c.Fatal(err)
	}
	return keys
}

// holds says whether batches of a topic are in an object.
func (c *collecting) holds(key, topic string) bool {
	c.Helper()
	body, err := c.store.Get(c.Context(), key, 0, -1)
	if err != nil {
		c.Fatal(err)
	}
	entries, err := diskless.ReadFooter(body, int64(len(body)))
	if err != nil {
		c.Fatal(err)
	}
	return slices.ContainsFunc(entries, func(e diskless.Entry) bool { return e.Topic == topic })
}

// reads checks that a replica with nothing in memory reads what is retained.
func (c *collecting) reads(k *harness.Kafka, yaml, topic string, from int) {
	c.Helper()
	cold := startSluice(c.T, replica{Kafka: k.Bootstrap(), Store: yaml, Extra: "gc: { enabled: false }\n"})
	for i, r := range consumed(c.T, cold.Bootstrap, c.sent[topic]-from, nil, topic) {
		if want := recordOf(topic, from+i); string(r.Value) != want {
			c.Fatalf("%s: record %d is %.40q, not %.40q", topic, from+i, r.Value, want)
		}
	}
}

func (c *collecting) truncate(topic string, before int64) {
	c.Helper()
	var to kadm.Offsets
	to.Add(kadm.Offset{Topic: topic, Partition: 0, At: before})
	got, err := c.adm.DeleteRecords(c.Context(), to)
	if err == nil {
		err = got.Error()
	}
	if err != nil {
		c.Fatal(err)
	}
}

func (c *collecting) deleteTopic(topic string) {
	c.Helper()
	if _, err := c.adm.DeleteTopic(c.Context(), topic); err != nil {
		c.Fatal(err)
	}
	eventually(c.T, topic+" is gone", func() (bool, string) {
		all, err := c.adm.ListTopics(c.Context())
		return err == nil && !all.Has(topic), fmt.Sprint(err)
	})
}

func onDisk(t *testing.T) (objstore.Store, string) {
	dir := t.TempDir()
	store, err := objstore.OpenFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	return store, fmt.Sprintf("{ url: %q }", "file://"+dir)
}

func onS3(t *testing.T, s3 *harness.S3, prefix string) (objstore.Store, string) {
	t.Helper()
	store, err := objstore.OpenS3(objstore.S3Options{Endpoint: s3.Endpoint, Region: s3.Region, Bucket: s3.Bucket, Prefix: prefix, AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, PathStyle: true, MaxConnections: 16})
	if err != nil {
		t.Fatal(err)
	}
	return store, s3Store(s3, prefix)
}

func TestGarbageIsCollected(t *testing.T) {
	k := sharedKafka(t)
	store, yaml := onDisk(t)
	c := newCollecting(t, k, store, yaml)
	c.tick = 50 * time.Millisecond
	c.opt.MinAge, c.opt.Timing = c.tick, gc.Timing{Margin: 200 * time.Millisecond, Grace: c.tick, Apart: c.tick, Missed: time.Hour}
	const kept, cut = "gc-kept-telemetry", "gc-cut-telemetry"
	for _, topic := range []string{kept, cut} {
		createTopic(t, c.s.Bootstrap, topic, 1)
	}
	c.write(20, kept, cut)
	c.write(20, cut)
	all := c.objects()
	needed, dead := make(map[string]bool), 0 // by what is in them: a linger may end between two topics
	for key := range all {
		if needed[key] = c.holds(key, kept); !needed[key] {
			dead++
		}
	}
	if dead == 0 || dead == len(all) {
		t.Fatalf("%d of %d objects hold nothing of %s: nothing to tell apart", dead, len(all), kept)
	}
	time.Sleep(c.opt.Timing.Margin) // until here, something might have been on its way
	c.passes(3)
	if n := len(c.objects()); n != len(all) {
		t.Fatalf("%d of %d objects are left while the logs hold everything", n, len(all))
	}
	c.truncate(cut, int64(c.sent[cut]))
	c.write(20, kept)
	c.passes(3)
	left := c.objects()
	for key := range all {
		if left[key] != needed[key] {
			t.Errorf("%s: left %v, and the other topic is in it: %v", key, left[key], needed[key])
		}
	}
	c.reads(k, yaml, kept, 0)
}

// TestLongStorageFollowsRetention: two topics whose retention.ms differs by half are written
// into the same objects. When the records of the first are gone, so is what they took.
func TestLongStorageFollowsRetention(t *testing.T) {
	harness.Long(t)
	k := sharedKafka(t)
	store, yaml := onS3(t, harness.StartS3(t), "retained")
	c := newCollecting(t, k, store, yaml)
	c.cl = client(t, c.s.Bootstrap, kgo.ProducerBatchCompression(kgo.NoCompression()))
	const day, days = "day-follows-telemetry", "days-follows-telemetry"
	createTopic(t, c.s.Bootstrap, day, 1, "retention.ms", fmt.Sprint((20 * time.Hour).Milliseconds()))
	createTopic(t, c.s.Bootstrap, days, 1, "retention.ms", fmt.Sprint((30 * time.Hour).Milliseconds()))
	for range 3 {
		c.write(100, day, days)
		time.Sleep(time.Second) // the next one is of another window
	}
	time.Sleep(2 * time.Second)
	compacting := compactor.New(compactor.Options{
		Store: store, Name: "test", Retention: c.s.Cluster().Retention, Logger: c.opt.Logger,
		Limits: compactor.Limits{Window: time.Second, MinAge: time.Second},
	})
	if err := compacting.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	payload := make(map[string]int64) // by topic
	for key := range c.objects() {
		body, err := store.Get(t.Context(), key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := diskless.ReadFooter(body, int64(len(body)))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			payload[e.Topic] += int64(e.Length)
		}
	}
	holds := func(when string, retained int64) {
		t.Helper()
		var stored int64
		for range 10 {
			c.passes(1)
			stored = 0
			for _, prefix := range []string{diskless.WALPrefix, segment.Prefix} {
				if err := store.List(t.Context(), prefix, "", func(i objstore.Info) error { stored += i.Size; return nil }); err != nil {
					t.Fatal(err)
				}
			}
			if float64(stored) <= 1.1*float64(retained) {
				break
			}
		}
		t.Logf("%s: %d bytes are stored for %d that are retained: %.3f", when, stored, retained, float64(stored)/float64(retained))
		if float64(stored) > 1.1*float64(retained) {
			t.Errorf("%s: more is stored than is retained", when)
		}
	}
	holds("compacted", payload[day]+payload[days])
	time.Sleep(2 * hasty.Margin)
	c.passes(3)
	c.truncate(day, int64(c.sent[day]))
	holds("after the first topic's retention", payload[days])
	c.reads(k, yaml, days, 0)
}

func TestLongGarbageCollection(t *testing.T) {
	harness.Long(t)
	k := harness.StartKafka(t, harness.KafkaOptions{})
	store, yaml := onS3(t, harness.StartS3(t), "garbage")
	c := newCollecting(t, k, store, yaml)
	const kept = "kept-telemetry"
	topics := []string{kept, "cut-telemetry", "old-telemetry", "gone-telemetry", "anew-telemetry", "moved-telemetry", "aborted-telemetry", "anchor"}
	for _, topic := range topics {
		createTopic(t, c.s.Bootstrap, topic, 1)
	}
	alone := make(map[string]map[string]bool) // objects by the one topic in them
	write := func(topic string, write func()) {
		before := c.objects()
		write()
		alone[topic] = make(map[string]bool)
		for key := range c.objects() {
			if !before[key] {
				alone[topic][key] = true
			}
		}
		if len(alone[topic]) == 0 {
			t.Fatalf("%s has no object", topic)
		}
	}
	for _, topic := range topics[:6] {
		write(topic, func() { c.write(30, topic) })
	}
	write("aborted-telemetry", func() {
		tx := client(t, c.s.Bootstrap, kgo.TransactionalID("gc"), kgo.ProducerBatchCompression(kgo.NoCompression()))
		if err := tx.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := tx.ProduceSync(t.Context(), &kgo.Record{Topic: "aborted-telemetry", Value: []byte(recordOf("aborted", 0))}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := tx.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
	})
	left := func(topic string) (n int) {
		now := c.objects()
		for key := range alone[topic] {
			if now[key] {
				n++
			}
		}
		return n
	}
	intact := func(when string) {
		t.Helper()
		for _, topic := range topics[:7] {
			if alone[topic] != nil && left(topic) != len(alone[topic]) {
				t.Fatalf("%s: %d of %d objects of %s are left", when, left(topic), len(alone[topic]), topic)
			}
		}
	}
	gone := func(when, topic string) {
		t.Helper()
		for range 10 {
			if left(topic) == 0 {
				break
			}
			if r, err := c.pass(); err != nil {
				t.Logf("%v: %v", r.DoubtList(), err)
			}
		}
		if n := left(topic); n > 0 {
			t.Fatalf("%s: %d of %d objects of %s are left", when, n, len(alone[topic]), topic)
		}
		alone[topic] = nil
		intact(when)
		c.reads(k, yaml, kept, 0)
	}
	time.Sleep(2 * hasty.Margin)
	c.passes(3)
	intact("with all in the logs")

	c.truncate("cut-telemetry", int64(c.sent["cut-telemetry"]))
	gone("after DeleteRecords", "cut-telemetry")
	c.truncate("aborted-telemetry", 2) // the record, and the marker
	gone("after an aborted transaction was removed", "aborted-telemetry")

	// Retention by time, as brokers do it.
	if _, err := c.adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{
		{Op: kadm.SetConfig, Name: "retention.ms", Value: kadm.StringPtr("1000")}, {Op: kadm.SetConfig, Name: "segment.ms", Value: kadm.StringPtr("1000")},
	}, "old-telemetry"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "retention removes records", func() (bool, string) {
		starts, err := c.adm.ListStartOffsets(t.Context(), "old-telemetry")
		o, _ := starts.Lookup("old-telemetry", 0)
		return err == nil && o.Offset >= int64(c.sent["old-telemetry"]), fmt.Sprint(o.Offset, err)
	})
	gone("after retention.ms", "old-telemetry")

	// Unreachable brokers, and what is not there.
	k.Freeze(t, 1)
	if r, err := c.pass(); err == nil && len(r.Doubts) == 0 {
		t.Error("a broker that does not answer was no doubt")
	}
	k.Thaw(t, 1)
	if err := k.AwaitBrokers(time.Minute, k.Nodes()...); err != nil {
		t.Fatal(err)
	}
	intact("with a frozen broker")

	c.deleteTopic("gone-telemetry")
	gone("after the topic was deleted", "gone-telemetry")

	c.deleteTopic("anew-telemetry")
	createTopic(t, c.s.Bootstrap, "anew-telemetry", 1)
	old := alone["anew-telemetry"]
	c.sent["anew-telemetry"] = 0
	time.Sleep(hasty.Margin)
	c.cl = client(t, c.s.Bootstrap) // the other one knows its id
	c.write(10, "anew-telemetry")
	alone["anew-telemetry"] = old
	gone("after the topic was made anew", "anew-telemetry")
	c.reads(k, yaml, "anew-telemetry", 0)

	// What a topic wrote as a diskless one stays when its class changes.
	file, err := os.ReadFile(c.s.File)
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.Replace(string(file), "topics:\n", "topics:\n  - { match: [\"moved-*\"], class: control }\n", 1)
	if err := os.WriteFile(c.s.File, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	next, err := config.Load(c.s.File)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.s.Reload(next); err != nil {
		t.Fatal(err)
	}
	before := len(c.objects())
	c.write(10, "moved-telemetry")
	if len(c.objects()) != before {
		t.Fatal("the topic has not changed its class")
	}
	c.passes(3)
	intact("after a change of class")
	c.reads(k, yaml, "moved-telemetry", 0)
	c.truncate("moved-telemetry", 30)
	gone("after a change of class and DeleteRecords", "moved-telemetry")
	c.reads(k, yaml, "moved-telemetry", 30)

	// Nothing but the kept topic's is left, and what was written last.
	report := c.passes(2)
	t.Logf("%+v", report)
	if err := store.Delete(t.Context(), "sluice/cluster.json"); err != nil {
		t.Fatal(err)
	}
	c.deleteTopic(kept)
	if _, err := c.pass(); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("without a marker: %v", err)
	}
}

// TestLongGarbageAfterAnUncleanElection: a replica that was away comes back as the
// leader, with records that others had removed.
func TestLongGarbageAfterAnUncleanElection(t *testing.T) {
	harness.Long(t)
	k := harness.StartKafka(t, harness.KafkaOptions{})
	store, yaml := onDisk(t)
	c := newCollecting(t, k, store, yaml)
	const topic = "unclean-telemetry"
	createTopic(t, c.s.Bootstrap, topic, 1)
	createTopic(t, c.s.Bootstrap, "anchor", 1)
	if _, err := c.adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "min.insync.replicas", Value: kadm.StringPtr("1")}}, topic); err != nil {
		t.Fatal(err)
	}
	c.write(20, topic)
	first := c.objects()
	time.Sleep(hasty.Margin)
	c.passes(3)

	topicsNow, err := c.adm.ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	leader := topicsNow[topic].Partitions[0].Leader
	away := leader%3 + 1
	k.Kill(t, away)
	eventually(t, "the replica is out of sync", func() (bool, string) {
		now, err := c.adm.ListTopics(t.Context(), topic)
		return err == nil && len(now[topic].Partitions[0].ISR) == 2, fmt.Sprint(err)
	})
	c.truncate(topic, int64(c.sent[topic]))
	for range 5 {
		_, _ = c.pass()
	}
	if n := len(c.objects()); n != len(first) {
		t.Fatalf("%d of %d objects are left, although a replica that is away still has their records", n, len(first))
	}
	k.Start(t, away)
	if err := k.AwaitBrokers(time.Minute, k.Nodes()...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the objects go when the replica is back", func() (bool, string) {
		if _, err := c.pass(); err != nil {
			return false, err.Error()
		}
		return len(c.objects()) == 0, "not yet"
	})
}

// TestLongBackgroundCollection: a replica makes passes by itself, and what is young
// stays.
func TestLongBackgroundCollection(t *testing.T) {
	harness.Long(t)
	k := sharedKafka(t)
	dir := t.TempDir()
	yaml := fmt.Sprintf("{ url: %q }", "file://"+dir)
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: yaml, Extra: "gc: { every: 1m, min_age: 1h, margin: 4h, grace: 10m }\n"})
	createTopic(t, s.Bootstrap, "background-telemetry", 1)
	cl := client(t, s.Bootstrap, kgo.ProducerBatchCompression(kgo.NoCompression()))
	for i := range 20 {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "background-telemetry", Value: []byte(recordOf("background", i))}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	objects, err := filepath.Glob(filepath.Join(dir, "wal", "*"))
	if err != nil || len(objects) == 0 {
		t.Fatal(objects, err)
	}
	eventually(t, "a pass is made", func() (bool, string) {
		return s.metric(t, "sluice_gc_passes_total", "result", "done") > 0, fmt.Sprint(s.metric(t, "sluice_gc_passes_total"))
	})
	if _, err := os.Stat(filepath.Join(dir, "sluice", "gc", "state")); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "wal", "*")); len(left) != len(objects) {
		t.Fatalf("%d of %d objects are left", len(left), len(objects))
	}
}
