package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluice-kafka/sluice/proxy"
)

// tools runs Kafka's own tools directly and through sluice and compares what
// they print. Addresses are compared by the broker they belong to.
type tools struct {
	*sharedParts
	t *testing.T
}

var brokerID = regexp.MustCompile(`\bid: (\d+)\b`)

// normal replaces addresses by names, and runs of blanks by one.
func (x tools) normal(out string) string {
	for _, id := range x.kafka.Nodes() {
		out = strings.ReplaceAll(out, x.kafka.BrokerAddr(id), fmt.Sprintf("broker-%d", id))
		port := x.sniffer.first + 2*int(id)
		out = strings.ReplaceAll(out, fmt.Sprintf("%s:%d", clientSide, port), fmt.Sprintf("broker-%d", id))
		// Tools that print tables put the port into a column of its own.
		_, direct, _ := strings.Cut(x.kafka.BrokerAddr(id), ":")
		table := regexp.MustCompile(fmt.Sprintf(`%s +(%d|%s)\b`, regexp.QuoteMeta(clientSide), port, direct))
		out = table.ReplaceAllString(out, fmt.Sprintf("broker-%d", id))
	}
	return blanks.ReplaceAllString(strings.TrimSpace(out), " ")
}

// through runs a tool against sluice.
func (x tools) through(tool string, args ...string) string {
	x.t.Helper()
	return x.normal(x.jvm.Tool(x.t, tool, at(tool, x.sluice.Bootstrap, args)...))
}

func (x tools) direct(tool string, args ...string) string {
	x.t.Helper()
	return x.normal(x.jvm.Tool(x.t, tool, at(tool, x.kafka.Bootstrap()[0], args)...))
}

// at says where the cluster is.
func at(tool, bootstrap string, args []string) []string {
	where := []string{"--bootstrap-server", bootstrap}
	if tool == "kafka-cluster" { // its options belong to its commands
		return slices.Concat(args[:1], where, args[1:])
	}
	return slices.Concat(where, args)
}

// equal runs a tool that changes nothing both ways and wants the same lines;
// the tools collect answers of several brokers in no particular order.
func (x tools) equal(tool string, args ...string) string {
	x.t.Helper()
	through, direct := ownConfigs.ReplaceAllString(x.through(tool, args...), ""), x.direct(tool, args...)
	if sorted(through) != sorted(direct) {
		x.t.Errorf("%s %s prints through sluice\n%s\nand directly\n%s", tool, strings.Join(args, " "), through, direct)
	}
	return through
}

// ownConfigs are what topics show beside their own, as kafka-topics and
// kafka-configs print it.
var ownConfigs = regexp.MustCompile(`(?m)^[ \t]*sluice\..*(?:\n|\z)|sluice\.(class|tier|rule)=[^,\t\n]*(,|$)|,sluice\.(class|tier|rule)=[^,\t\n]*$`)

func sorted(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (x tools) contains(out, want string) {
	x.t.Helper()
	if !strings.Contains(out, want) {
		x.t.Errorf("%q is missing in\n%s", want, out)
	}
}

// json writes a file for a tool.
func (x tools) json(v any) string {
	x.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		x.t.Fatal(err)
	}
	path := filepath.Join(x.t.TempDir(), "arguments.json")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		x.t.Fatal(err)
	}
	return path
}

// replicas asks the brokers, behind sluice's back.
func (x tools) partition(topic string, partition int32) kadm.PartitionDetail {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), 20*time.Second)
	defer cancel()
	m, err := kadm.NewClient(client(x.t, bootstrapOf(x.kafka))).Metadata(ctx, topic)
	if err != nil {
		x.t.Fatal(err)
	}
	return m.Topics[topic].Partitions[partition]
}

// Tools that operators use print what they print without a proxy, for topics of
// either tier: DescribeTopicPartitions passes and DescribeCluster lists real
// brokers only, so that leaders, replicas and in-sync replicas are real ids
// there, although Metadata sends clients of diskless topics to diskless ones.
func TestJavaToolsBehaveAsDirect(t *testing.T) {
	for _, class := range []string{"control", "telemetry"} {
		t.Run(class, func(t *testing.T) {
			x := tools{shared(t), t}
			topic := "tools-" + class
			on := func(args ...string) []string { return append([]string{"--topic", topic}, args...) }
			entity := func(args ...string) []string {
				return append([]string{"--entity-type", "topics", "--entity-name", topic}, args...)
			}

			x.contains(x.through("kafka-topics", on("--create", "--replica-assignment", "1:2:3,2:3:1,3:1:2", "--config", "retention.ms=-1")...), "Created topic "+topic)
			x.await("the topic", func() bool { return len(x.partition(topic, 2).ISR) == 3 })
			franz{}.producer(t, x.sluice.Bootstrap, "zstd")(filled(topic, 3, 300))

			described := x.equal("kafka-topics", on("--describe")...)
			x.contains(described, "Leader: 2 Replicas: 2,3,1 Isr: ")
			x.equal("kafka-topics", on("--describe", "--under-replicated-partitions")...)
			x.contains(x.equal("kafka-topics", "--list"), topic)
			for _, at := range []string{"-1", "-2", "-3"} {
				x.equal("kafka-get-offsets", on("--time", at)...)
			}
			x.contains(x.equal("kafka-log-dirs", "--describe", "--topic-list", topic), `"partition":"`+topic+`-0"`)

			x.contains(x.through("kafka-configs", entity("--alter", "--add-config", "file.delete.delay.ms=61000,max.message.bytes=2000000")...), "Completed updating config for topic")
			x.await("the topic's configuration", func() bool { return strings.Contains(x.direct("kafka-configs", entity("--describe")...), "2000000") })
			x.contains(x.equal("kafka-configs", entity("--describe")...), "file.delete.delay.ms=61000")
			x.through("kafka-configs", entity("--alter", "--delete-config", "max.message.bytes")...)
			x.await("the topic's configuration", func() bool { return !strings.Contains(x.direct("kafka-configs", entity("--describe")...), "2000000") })
			x.equal("kafka-configs", entity("--describe", "--all")...)

			x.through("kafka-topics", on("--alter", "--partitions", "4", "--replica-assignment", "1:2:3,2:3:1,3:1:2,1:3:2")...)
			x.await("the fourth partition", func() bool { return len(x.partition(topic, 3).ISR) == 3 })
			x.contains(x.equal("kafka-topics", on("--describe")...), "PartitionCount: 4")

			plan := x.json(map[string]any{"version": 1, "partitions": []any{map[string]any{"topic": topic, "partition": 0, "replicas": []int{3, 2, 1}}}})
			out := x.through("kafka-reassign-partitions", "--reassignment-json-file", plan, "--execute")
			x.contains(out, `"replicas":[1,2,3]`) // what it was, by real ids
			x.contains(out, "Successfully started partition reassignment for "+topic+"-0")
			x.await("the reassignment", func() bool { return slices.Equal(x.partition(topic, 0).Replicas, []int32{3, 2, 1}) })
			x.contains(x.equal("kafka-reassign-partitions", "--reassignment-json-file", plan, "--verify", "--preserve-throttles"), "Reassignment of partition "+topic+"-0 is completed.")
			x.contains(x.equal("kafka-reassign-partitions", "--list"), "No partition reassignments found.")

			x.through("kafka-leader-election", "--election-type", "preferred", "--topic", topic, "--partition", "0")
			x.await("the preferred leader", func() bool { return x.partition(topic, 0).Leader == 3 })
			x.equal("kafka-leader-election", "--election-type", "preferred", "--topic", topic, "--partition", "0") // it is one already
			x.contains(x.equal("kafka-topics", on("--describe")...), "Leader: 3 Replicas: 3,2,1 Isr: ")

			deletion := x.json(map[string]any{"version": 1, "partitions": []any{map[string]any{"topic": topic, "partition": 0, "offset": 60}}})
			x.contains(x.equal("kafka-delete-records", "--offset-json-file", deletion), "partition: "+topic+"-0 low_watermark: 60")
			x.contains(x.equal("kafka-get-offsets", on("--time", "-2")...), topic+":0:60")
			if left := consumed(t, x.sluice.Bootstrap, 240, nil, topic); len(byPartition(left)[0]) != 40 {
				t.Errorf("%d records are left in partition 0", len(byPartition(left)[0]))
			}

			x.through("kafka-topics", on("--delete")...)
			x.await("the deletion", func() bool { return !strings.Contains(x.direct("kafka-topics", "--list"), topic) })
			if r := x.jvm.TryTool(t, "kafka-topics", on("--bootstrap-server", x.sluice.Bootstrap, "--describe")...); r.Err == nil {
				t.Errorf("a deleted topic is described:\n%s", r.Stdout)
			}
			// The same name is another topic now.
			target{bootstrap: x.sluice.Bootstrap, sluice: x.sluice}.create(t, topic, 2)
			wrote := filled(topic, 2, 50)
			franz{}.producer(t, x.sluice.Bootstrap, "none")(wrote)
			for _, lib := range libraries(x.sharedParts) {
				same(t, lib.name(), wrote, lib.consume(t, x.sluice.Bootstrap, len(wrote), topic), true)
			}
		})
	}
}

// await polls a condition that brokers reach in their own time.
func (x tools) await(what string, done func() bool) {
	x.t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			x.t.Fatalf("%s is not there", what)
		}
	}
}

// Tools that look at brokers see each broker once, at sluice's address.
func TestJavaToolsSeeTheCluster(t *testing.T) {
	x := tools{shared(t), t}
	x.contains(x.equal("kafka-cluster", "cluster-id"), x.kafka.ID)
	x.contains(x.equal("kafka-cluster", "list-endpoints"), "broker-2")
	// Offsets are written all the time, so that sizes differ from run to run.
	dirs := x.through("kafka-log-dirs", "--describe")
	for _, id := range x.kafka.Nodes() {
		if n := strings.Count(dirs, fmt.Sprintf(`{"broker":%d,`, id)); n != 1 {
			t.Errorf("kafka-log-dirs lists broker %d %d times:\n%s", id, n, short(dirs))
		}
	}
	if n := strings.Count(dirs, `{"broker":`); n != len(x.kafka.Nodes()) {
		t.Errorf("kafka-log-dirs lists %d brokers", n)
	}
	// The tools ask every node of Metadata for its groups and transactions; the
	// diskless ones have none.
	target{bootstrap: x.sluice.Bootstrap, sluice: x.sluice}.create(t, "listed", 1)
	franzTransact(t, x.sluice.Bootstrap, filled("listed", 1, 1), true)
	franzMember()(t, x.sluice.Bootstrap, "listed-group", "listed", 1)
	for tool, args := range map[string][]string{"kafka-consumer-groups": {"--list"}, "kafka-transactions": {"list"}} {
		if out := x.equal(tool, args...); strings.Count(out, "listed") != 1 {
			t.Errorf("%s lists what there is once %d times:\n%s", tool, strings.Count(out, "listed"), out)
		}
	}

	brokers := func(args ...string) []string { return append([]string{"--entity-type", "brokers"}, args...) }
	one := func(args ...string) []string { return brokers(append([]string{"--entity-name", "2"}, args...)...) }
	const key = "leader.replication.throttled.rate"
	x.contains(x.through("kafka-configs", one("--alter", "--add-config", key+"=123456789")...), "Completed updating config for broker 2")
	x.await("the broker's configuration", func() bool { return strings.Contains(x.direct("kafka-configs", one("--describe")...), "123456789") })
	x.contains(x.equal("kafka-configs", one("--describe")...), key+"=123456789")
	x.contains(x.equal("kafka-configs", brokers("--describe")...), key+"=123456789")
	// The broker's own addresses are its configuration, which is not rewritten:
	// the only place where a tool still shows them.
	x.contains(x.through("kafka-configs", one("--describe", "--all")...), "advertised.listeners=PLAINTEXT://broker-2")
	x.through("kafka-configs", one("--alter", "--delete-config", key)...)
	x.await("the broker's configuration", func() bool { return !strings.Contains(x.direct("kafka-configs", one("--describe")...), "123456789") })
	x.equal("kafka-configs", brokers("--describe")...)

	// Here sluice differs, and means to. The tool lists the nodes of Metadata,
	// so each broker and its diskless twin; and an API is offered in the
	// versions that both the broker and sluice speak.
	offered := func(out string) (nodes []string, ranges map[string][2]int) {
		ranges = make(map[string][2]int)
		for line := range strings.Lines(out) {
			if m := brokerID.FindStringSubmatch(line); m != nil {
				nodes = append(nodes, m[1])
			}
			if m := apiRange.FindStringSubmatch(line); m != nil {
				low, high := number(t, m[2]), number(t, m[2])
				if m[3] != "" {
					high = number(t, m[3])
				}
				ranges[m[1]] = [2]int{low, high}
			}
		}
		slices.Sort(nodes)
		return nodes, ranges
	}
	nodes, through := offered(x.through("kafka-broker-api-versions"))
	_, direct := offered(x.direct("kafka-broker-api-versions"))
	if want := []string{"1", "1048577", "1048578", "1048579", "2", "3"}; !slices.Equal(nodes, want) {
		t.Errorf("kafka-broker-api-versions lists the nodes %v, want %v", nodes, want)
	}
	for _, api := range proxy.APIs() {
		key := fmt.Sprint(api.Key)
		d, ok := direct[key]
		if !ok {
			continue
		}
		want, wanted := [2]int{max(d[0], int(api.Min)), min(d[1], int(api.Max))}, api.Treatment != proxy.Hide
		if got, ok := through[key]; ok != wanted || ok && got != want {
			t.Errorf("%s: brokers offer %v, sluice %v (%v), want %v (%v)", api.Name, d, got, ok, want, wanted)
		}
	}
	for key := range through {
		if _, ok := direct[key]; !ok {
			t.Errorf("sluice offers API %s, which the brokers do not", key)
		}
	}
	x.sniffer.looked(t, 3, 60) // Metadata, DescribeCluster
	if len(through) < 50 || len(direct) < len(through) {
		t.Errorf("%d APIs through sluice and %d directly were understood", len(through), len(direct))
	}
}

// apiRange is a line of kafka-broker-api-versions: "Produce(0): 0 to 13 [usable: 13]".
var apiRange = regexp.MustCompile(`\((\d+)\): (\d+)(?: to (\d+))? \[`)
