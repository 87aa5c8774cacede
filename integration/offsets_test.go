package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A placeholder keeps the time of every record, so looking a time up gives the
// same offset as if the payload were there: also where times run backwards
// inside a batch and between batches.
func TestOffsetsByTimestamp(t *testing.T) {
	p := shared(t)
	times := [][]int64{ // milliseconds after baseTime, a slice for each batch
		{1000, 1000, 1000},
		{5000, 3000, 4000, 2000, 4500},
		{2500, 9000, 100, 8999},
		{7000},
		{9000, 9001, 50, 12000, 11999},
		{12000, 6000},
	}
	var asked []int64
	for _, batch := range times {
		for _, at := range batch {
			asked = append(asked, at-1, at, at+1)
		}
	}
	asked = append(asked, 0, 20_000)
	slices.Sort(asked)
	asked = slices.Compact(asked)

	answers := make(map[string][]string)
	tools := make(map[string]string)
	onAllTargets(t, func(t *testing.T, tg target) {
		topic := tg.topic("times")
		tg.create(t, topic, 2)
		produce := franz{}.producer(t, tg.bootstrap, "lz4")
		before := storedBatches(t, tg)
		for turn, batch := range times {
			tg.turn(t, turn)
			// The second partition has each batch's times the other way round.
			for partition := range int32(2) {
				var records []*kgo.Record
				for _, at := range batch {
					records = append(records, &kgo.Record{Topic: topic, Partition: partition, Timestamp: time.UnixMilli(baseTime + at), Value: worthwhile})
				}
				if partition == 1 {
					slices.Reverse(records)
				}
				produce(records)
			}
		}
		if n := storedBatches(t, tg) - before; tg.diskless && n == 0 {
			t.Fatal("no batch went to an object")
		}
		cl := client(t, tg.bootstrap)
		const earliest, latest, maxTimestamp = -2, -1, -3
		for _, at := range append([]int64{earliest, latest, maxTimestamp}, asked...) {
			if at >= 0 {
				at += baseTime
			}
			answers[tg.name] = append(answers[tg.name], offsetAt(t, cl, topic, at))
		}
		for _, at := range []string{"-1", "-2", "-3", fmt.Sprint(baseTime + 4500), fmt.Sprint(baseTime + 11999)} {
			out := p.jvm.Tool(t, "kafka-get-offsets", "--bootstrap-server", tg.bootstrap, "--topic", topic, "--time", at)
			tools[tg.name] += strings.ReplaceAll(out, topic, "times")
		}
	})
	for _, tg := range p.targets()[1:] {
		for i, want := range answers["direct"] {
			if got := answers[tg.name][i]; got != want {
				t.Errorf("%s: %s, direct: %s", tg.name, got, want)
			}
		}
		if tools[tg.name] != tools["direct"] {
			t.Errorf("kafka-get-offsets on %s:\n%s\ndirect:\n%s", tg.name, tools[tg.name], tools["direct"])
		}
	}
	if !strings.Contains(tools["direct"], "times:0:20") {
		t.Errorf("the topic was to have 20 records in partition 0:\n%s", tools["direct"])
	}
}

// offsetAt asks for the offset of a time, or of a special one, in each
// partition.
func offsetAt(t *testing.T, cl *kgo.Client, topic string, at int64) string {
	t.Helper()
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = topic
	for partition := range int32(2) {
		rp := kmsg.NewListOffsetsRequestTopicPartition()
		rp.Partition, rp.Timestamp = partition, at
		rt.Partitions = append(rt.Partitions, rp)
	}
	req.Topics = append(req.Topics, rt)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		t.Fatal(err)
	}
	var out [2]string
	for _, rt := range resp.Topics {
		for _, rp := range rt.Partitions {
			out[rp.Partition] = fmt.Sprintf("offset %d of time %d (error %d)", rp.Offset, rp.Timestamp, rp.ErrorCode)
		}
	}
	return fmt.Sprintf("asked for %d: %s", at, strings.Join(out[:], ", "))
}

// A compacted topic stays on the brokers whatever its class: compaction would
// drop placeholders, which have no keys. And no diskless topic becomes one.
func TestCompactedTopicsStayInline(t *testing.T) {
	p := shared(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := p.sluice.Bootstrap
	adm := kadm.NewClient(client(t, b))
	stored := func() float64 { return p.sluice.metric(t, "sluice_diskless_stored_batches_total") }
	leader := func(topic string) int32 {
		t.Helper()
		m, err := adm.Metadata(ctx, topic)
		if err != nil {
			t.Fatal(err)
		}
		return m.Topics[topic].Partitions[0].Leader
	}
	policy := func(topic string) string {
		t.Helper()
		configs, err := kadm.NewClient(client(t, bootstrapOf(p.kafka))).DescribeTopicConfigs(ctx, topic)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range configs[0].Configs {
			if c.Key == "cleanup.policy" {
				return c.MaybeValue()
			}
		}
		return ""
	}
	write := func(topic string, seed uint64) []*kgo.Record {
		t.Helper()
		var records []*kgo.Record
		for _, r := range payloads(seed, false)[3].records { // keyed, and worth an object
			r.Topic = topic
			records = append(records, r)
		}
		franz{}.producer(t, b, "zstd")(records)
		return records
	}

	const topic = "compacted-telemetry"
	tg := target{bootstrap: b, sluice: p.sluice}
	tg.create(t, topic, 1, "cleanup.policy", "compact")
	before := stored()
	wrote := write(topic, 1)
	if n := stored() - before; n != 0 {
		t.Fatalf("%v batches of a compacted topic went to objects", n)
	}
	if id := leader(topic); id >= disklessBit {
		t.Fatalf("its leader is the diskless broker %d", id)
	}
	same(t, "through sluice", wrote, consumed(t, b, len(wrote), nil, topic), true)
	same(t, "at the brokers", wrote, consumed(t, bootstrapOf(p.kafka), len(wrote), nil, topic), true)

	// Once it is no longer compacted, its class is in force, and it may not
	// become compacted again.
	set := func(value string) (kadm.AlterConfigsResponses, error) {
		return adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "cleanup.policy", Value: &value}}, topic)
	}
	if r, err := set("delete"); err != nil || r[0].Err != nil {
		t.Fatal(err, r)
	}
	eventually(t, "sluice knows of it", func() (bool, string) {
		facts := p.sluice.Cluster().Facts(ctx, topic) // brokers learn of it one after the other
		return facts.Known && !facts.Compacted, fmt.Sprintf("%+v", facts)
	})
	wrote = append(wrote, write(topic, 2)...)
	if n := stored() - before; n != 1 {
		t.Fatalf("%v batches went to objects after compaction was switched off, want 1", n)
	}
	eventually(t, "its leader is a diskless broker", func() (bool, string) {
		id := leader(topic) // the client may remember the last answer for a moment
		return id >= disklessBit, fmt.Sprint("it is ", id)
	})
	for _, value := range []string{"compact", "compact,delete"} {
		if r, err := set(value); err != nil || r[0].Err == nil || !strings.Contains(r[0].Err.Error(), "POLICY_VIOLATION") {
			t.Errorf("cleanup.policy=%s: %v %v", value, err, r)
		}
	}
	value := "compact"
	if r, err := adm.AlterTopicConfigsState(ctx, []kadm.AlterConfig{{Name: "cleanup.policy", Value: &value}}, topic); err != nil || r[0].Err == nil || !strings.Contains(r[0].Err.Error(), "POLICY_VIOLATION") {
		t.Errorf("AlterConfigs: %v %v", err, r)
	}
	r := p.jvm.TryTool(t, "kafka-configs", "--bootstrap-server", b, "--entity-type", "topics", "--entity-name", topic, "--alter", "--add-config", "cleanup.policy=compact")
	if out := r.Stdout + r.Stderr; r.Err == nil || !strings.Contains(out, "PolicyViolationException") || !strings.Contains(out, "class telemetry") {
		t.Errorf("kafka-configs: %v\n%s", r.Err, out)
	}
	if got := policy(topic); got != "delete" {
		t.Errorf("cleanup.policy is %q", got)
	}
	same(t, "through sluice", wrote, consumed(t, b, len(wrote), nil, topic), true)
}
