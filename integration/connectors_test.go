package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
)

// A Connect worker copies a file into a topic, exactly once, and the topic into
// another file. It is ended and started, and the files are equal; it is killed,
// and the topic is still the first file.
func TestLongConnectCopies(t *testing.T) {
	harness.Long(t)
	onAllTargets(t, func(t *testing.T, tg target) {
		if tg.name == "control" {
			return // a change of class says the same, and takes a minute less
		}
		topic := tg.topic("connected")
		tg.create(t, topic, 1)
		dir := t.TempDir()
		from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
		rest := fmt.Sprintf("127.0.0.1:%d", harness.Ports(t, 1))
		properties := harness.Properties(t, map[string]string{
			"bootstrap.servers": tg.bootstrap, "group.id": tg.topic("connect"), "listeners": "http://" + rest,
			"config.storage.topic": tg.topic("connect-compacted-configs"), "offset.storage.topic": tg.topic("connect-compacted-offsets"), "status.storage.topic": tg.topic("connect-compacted-status"),
			"offset.storage.partitions": "2", "status.storage.partitions": "1",
			"key.converter": "org.apache.kafka.connect.storage.StringConverter", "value.converter": "org.apache.kafka.connect.storage.StringConverter",
			"exactly.once.source.support": "enabled", "producer.transaction.timeout.ms": "10000", "consumer.isolation.level": "read_committed",
			"offset.flush.interval.ms": "1000", "scheduled.rebalance.max.delay.ms": "0", "session.timeout.ms": "6000", "heartbeat.interval.ms": "1000",
			"metadata.max.age.ms": "1000", "producer.metadata.max.age.ms": "1000", "consumer.metadata.max.age.ms": "1000",
		})
		start := func() *harness.App {
			return harness.StartApp(t, "org.apache.kafka.connect.cli.ConnectDistributed", properties)
		}
		source, err := os.Create(from)
		if err != nil {
			t.Fatal(err)
		}
		defer source.Close()
		var lines []string
		write := func() {
			t.Helper()
			var b strings.Builder
			for range 400 {
				line := fmt.Sprintf("%d %s", len(lines), strings.Repeat(strconv.Itoa(len(lines)), 200))
				b.WriteString(line + "\n")
				lines = append(lines, line)
			}
			if _, err := source.WriteString(b.String()); err != nil {
				t.Fatal(err)
			}
		}
		copied := func() []string {
			b, err := os.ReadFile(to)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			return slices.Collect(strings.Lines(string(b)))
		}
		arrive := func(what string, n int) {
			t.Helper()
			eventually(t, what, func() (bool, string) {
				got := copied()
				return len(got) >= n && strings.TrimSpace(got[len(got)-1]) == lines[len(lines)-1], fmt.Sprintf("%d of %d lines; %s", len(got), len(lines), tasks(rest))
			})
		}
		worker := start()
		for name, config := range map[string]map[string]string{
			"source": {"connector.class": "org.apache.kafka.connect.file.FileStreamSourceConnector", "file": from, "topic": topic, "batch.size": "50", "exactly.once.support": "required"},
			"sink":   {"connector.class": "org.apache.kafka.connect.file.FileStreamSinkConnector", "file": to, "topics": topic},
		} {
			config["tasks.max"] = "1"
			eventually(t, "the worker takes the "+name, func() (bool, string) {
				if ended, err := worker.Ended(); ended {
					t.Fatalf("it has ended: %v", err)
				}
				return restCall(http.MethodPut, "http://"+rest+"/connectors/"+name+"/config", config)
			})
		}
		tg.turn(t, 0)
		write()
		arrive("the first lines", len(lines))

		tg.turn(t, 2)
		write()
		eventually(t, "some of the next lines", func() (bool, string) { return len(copied()) > 420, tasks(rest) })
		if err := worker.Stop(30 * time.Second); err != nil && !strings.Contains(err.Error(), "143") { // as Java ends on SIGTERM
			t.Errorf("ending the worker: %v", err)
		}
		worker = start()
		write()
		arrive("all lines after a restart", len(lines))
		if got := strings.Join(copied(), ""); got != strings.Join(lines, "\n")+"\n" {
			t.Errorf("%d lines were written and %d copied", len(lines), len(copied()))
		}

		tg.turn(t, 4)
		write()
		eventually(t, "some of the next lines", func() (bool, string) { return len(copied()) > 1220, tasks(rest) })
		worker.Kill()
		start()
		write()
		arrive("all lines after a kill", len(lines))
		// Sinks deliver at least once.
		seen := make(map[string]bool)
		var once []string
		for _, line := range copied() {
			if !seen[line] {
				once = append(once, strings.TrimSpace(line))
			}
			seen[line] = true
		}
		if !slices.Equal(once, lines) {
			t.Errorf("%d lines were written and %d copied", len(lines), len(once))
		}
		var in []string
		for _, r := range readCommitted(t, tg.bootstrap, topic, len(lines)) {
			in = append(in, string(r.Value))
		}
		if !slices.Equal(in, lines) {
			t.Errorf("%d lines were written and the topic has %d", len(lines), len(in))
		}
		if n := placeholders(t, topic, len(lines)); tg.diskless != (n > 0) {
			t.Errorf("%d placeholders are in the log", n)
		}
	})
}

// restCall reports whether a Connect worker takes a request, and what it says.
func restCall(method, url string, body any) (ok bool, said string) {
	b, err := json.Marshal(body)
	if err != nil {
		return false, err.Error()
	}
	req, err := http.NewRequest(method, url, strings.NewReader(string(b)))
	if err != nil {
		return false, err.Error()
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err.Error()
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, err.Error()
	}
	return resp.StatusCode < 300, string(answer)
}

// tasks is what a Connect worker says of its tasks.
func tasks(rest string) string {
	_, said := restCall(http.MethodGet, "http://"+rest+"/connectors?expand=status", nil)
	return said
}

// MirrorMaker copies topics from sluice to a cluster without it: what arrives are
// payloads, with the settings of their topics, and groups go on where they were.
func TestLongMirrorMakerGetsPayloads(t *testing.T) {
	harness.Long(t)
	const partitions, total = 2, 120
	p := shared(t)
	plain := harness.StartKafka(t, harness.KafkaOptions{Nodes: []int32{9}})
	targets := p.targets()
	var direct, through []string
	for _, tg := range targets {
		tg.create(t, tg.topic("mirrored"), partitions, "max.message.bytes", "2000000")
		if tg.sluice == nil {
			direct = append(direct, tg.topic("mirrored"))
		} else {
			through = append(through, tg.topic("mirrored"))
		}
	}
	properties := map[string]string{
		"clusters": "direct,sluice,plain", "direct.bootstrap.servers": bootstrapOf(p.kafka), "sluice.bootstrap.servers": p.sluice.Bootstrap, "plain.bootstrap.servers": bootstrapOf(plain),
		"replication.factor": "1", "checkpoints.topic.replication.factor": "1", "offset-syncs.topic.replication.factor": "1",
		"config.storage.replication.factor": "1", "offset.storage.replication.factor": "1", "status.storage.replication.factor": "1",
		"emit.heartbeats.enabled": "false", "sync.topic.acls.enabled": "false", "sync.group.offsets.enabled": "true", "offset.lag.max": "0",
		"refresh.topics.interval.seconds": "1", "refresh.groups.interval.seconds": "1", "sync.topic.configs.interval.seconds": "1",
		"emit.checkpoints.interval.seconds": "1", "sync.group.offsets.interval.seconds": "1", "offset.flush.interval.ms": "1000",
	}
	for source, topics := range map[string][]string{"direct": direct, "sluice": through} {
		flow := source + "->plain."
		properties[flow+"enabled"] = "true"
		properties[flow+"topics"] = strings.Join(topics, ",")
		properties[flow+"groups"] = "mirroring-(" + strings.Join(topics, "|") + ")"
	}
	// Both sources are one cluster, where the topic would have the same name.
	properties["direct->plain.offset-syncs.topic.location"] = "target"
	properties["sluice->plain.offset-syncs.topic.replication.factor"] = "3"
	mirror := harness.StartApp(t, "org.apache.kafka.connect.mirror.MirrorMaker", harness.Properties(t, properties))
	adm := kadm.NewClient(client(t, bootstrapOf(plain)))

	copyOf := func(tg target) string {
		if tg.sluice == nil {
			return "direct." + tg.topic("mirrored")
		}
		return "sluice." + tg.topic("mirrored")
	}
	for _, tg := range targets {
		t.Run(tg.name, func(t *testing.T) {
			topic := tg.topic("mirrored")
			group, copied := "mirroring-"+topic, copyOf(tg)
			produce := franz{}.producer(t, tg.bootstrap, "lz4")
			all := filled(topic, partitions, total)
			for i, r := range all {
				r.Headers = []kgo.RecordHeader{{Key: "number", Value: []byte(strconv.Itoa(i))}}
			}
			tg.turn(t, 0)
			produce(all[:total/4])
			tg.turn(t, 2)
			produce(all[total/4 : total/2])
			same(t, "the group", all[:total/2], franzMember()(t, tg.bootstrap, group, topic, total/2), true)
			// It translates offsets to what is not later, but need not be the same.
			eventually(t, "the group is known", func() (bool, string) {
				if ended, err := mirror.Ended(); ended {
					t.Fatalf("MirrorMaker has ended: %v", err)
				}
				offsets, err := adm.FetchOffsets(t.Context(), group)
				if err != nil {
					return false, err.Error()
				}
				good := len(offsets[copied]) == partitions
				for _, o := range offsets[copied] {
					good = good && o.At > 0
				}
				return good, fmt.Sprintf("%+v", offsets)
			})
			tg.turn(t, 4)
			produce(all[total/2:])
			same(t, "the copy", all, franz{}.consume(t, bootstrapOf(plain), total, copied), true)
			if n := placeholders(t, topic, total); tg.diskless != (n > 0) {
				t.Errorf("%d placeholders are in the source's log", n)
			}

			// The settings, and a change of them.
			value := "77000000"
			source := kadm.NewClient(client(t, tg.bootstrap))
			if _, err := source.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Name: "segment.ms", Value: &value}}, topic); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"retention.ms": "-1", "max.message.bytes": "2000000", "segment.ms": value}
			eventually(t, "the copy has the topic's settings", func() (bool, string) {
				described, err := adm.DescribeTopicConfigs(context.Background(), copied)
				if err != nil {
					return false, err.Error()
				}
				has := make(map[string]string)
				for _, c := range described[0].Configs {
					if _, ok := want[c.Key]; ok || strings.HasPrefix(c.Key, "sluice.") {
						has[c.Key] = c.MaybeValue()
					}
				}
				return fmt.Sprint(has) == fmt.Sprint(want), fmt.Sprint(has)
			})
		})
	}
	if log := mirror.Log(t); strings.Contains(log, "Could not alter configuration") || strings.Contains(log, "sluice.class") {
		t.Errorf("MirrorMaker complains:\n%s", log)
	}
	if err := mirror.Stop(30 * time.Second); err != nil && !strings.Contains(err.Error(), "143") { // as Java ends on SIGTERM
		t.Errorf("ending MirrorMaker: %v", err)
	}
	for _, tg := range targets {
		group, copied := "mirroring-"+tg.topic("mirrored"), copyOf(tg)
		offsets, err := adm.FetchOffsets(t.Context(), group)
		if err != nil {
			t.Fatal(err)
		}
		left, next := 0, make(map[int32]int64)
		for _, o := range offsets[copied] {
			left, next[o.Partition] = left+total/partitions-int(o.At), o.At
			if o.At > total/2/partitions {
				t.Errorf("%s has skipped what is before %d", group, o.At)
			}
		}
		for _, r := range franzMember()(t, bootstrapOf(plain), group, copied, left) {
			if r.Offset != next[r.Partition] {
				t.Errorf("%s goes on at %d instead of %d", group, r.Offset, next[r.Partition])
			}
			next[r.Partition] = r.Offset + 1
		}
	}
}
