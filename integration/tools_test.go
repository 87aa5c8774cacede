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
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
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

// equal runs a tool both ways, again and again until it prints the same lines and
// want among them: brokers learn one after the other, and tools ask whichever.
// They collect answers of several brokers in no particular order.
func (x tools) equal(want, tool string, args ...string) string {
	x.t.Helper()
	for deadline := time.Now().Add(patience / 3); ; time.Sleep(200 * time.Millisecond) {
		through, direct := ownConfigs.ReplaceAllString(x.through(tool, args...), ""), x.direct(tool, args...)
		alike := sorted(through) == sorted(direct)
		if alike && strings.Contains(through, want) {
			return through
		}
		if time.Now().After(deadline) {
			if !alike {
				x.t.Errorf("%s %s prints through sluice\n%s\nand directly\n%s", tool, strings.Join(args, " "), through, direct)
			}
			x.contains(through, want)
			return through
		}
	}
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

			x.equal("Leader: 2 Replicas: 2,3,1 Isr: ", "kafka-topics", on("--describe")...)
			x.equal("", "kafka-topics", on("--describe", "--under-replicated-partitions")...)
			x.equal(topic, "kafka-topics", "--list")
			for _, at := range []string{"-1", "-2", "-3"} {
				x.equal("", "kafka-get-offsets", on("--time", at)...)
			}
			x.equal(`"partition":"`+topic+`-0"`, "kafka-log-dirs", "--describe", "--topic-list", topic)

			x.contains(x.through("kafka-configs", entity("--alter", "--add-config", "file.delete.delay.ms=61000,max.message.bytes=2000000")...), "Completed updating config for topic")
			x.await("the topic's configuration", func() bool { return strings.Contains(x.direct("kafka-configs", entity("--describe")...), "2000000") })
			x.equal("file.delete.delay.ms=61000", "kafka-configs", entity("--describe")...)
			x.through("kafka-configs", entity("--alter", "--delete-config", "max.message.bytes")...)
			x.await("the topic's configuration", func() bool { return !strings.Contains(x.direct("kafka-configs", entity("--describe")...), "2000000") })
			x.equal("", "kafka-configs", entity("--describe", "--all")...)

			x.through("kafka-topics", on("--alter", "--partitions", "4", "--replica-assignment", "1:2:3,2:3:1,3:1:2,1:3:2")...)
			x.await("the fourth partition", func() bool { return len(x.partition(topic, 3).ISR) == 3 })
			x.equal("PartitionCount: 4", "kafka-topics", on("--describe")...)

			plan := x.json(map[string]any{"version": 1, "partitions": []any{map[string]any{"topic": topic, "partition": 0, "replicas": []int{3, 2, 1}}}})
			out := x.through("kafka-reassign-partitions", "--reassignment-json-file", plan, "--execute")
			x.contains(out, `"replicas":[1,2,3]`) // what it was, by real ids
			x.contains(out, "Successfully started partition reassignment for "+topic+"-0")
			x.await("the reassignment", func() bool { return slices.Equal(x.partition(topic, 0).Replicas, []int32{3, 2, 1}) })
			x.equal("Reassignment of partition "+topic+"-0 is completed.", "kafka-reassign-partitions", "--reassignment-json-file", plan, "--verify", "--preserve-throttles")
			x.equal("No partition reassignments found.", "kafka-reassign-partitions", "--list")

			x.through("kafka-leader-election", "--election-type", "preferred", "--topic", topic, "--partition", "0")
			x.await("the preferred leader", func() bool { return x.partition(topic, 0).Leader == 3 })
			x.equal("", "kafka-leader-election", "--election-type", "preferred", "--topic", topic, "--partition", "0") // it is one already
			x.equal("Leader: 3 Replicas: 3,2,1 Isr: ", "kafka-topics", on("--describe")...)

			deletion := x.json(map[string]any{"version": 1, "partitions": []any{map[string]any{"topic": topic, "partition": 0, "offset": 60}}})
			x.equal("partition: "+topic+"-0 low_watermark: 60", "kafka-delete-records", "--offset-json-file", deletion)
			x.equal(topic+":0:60", "kafka-get-offsets", on("--time", "-2")...)
			if left := consumed(t, x.sluice.Bootstrap, 240, nil, topic); len(byPartition(left)[0]) != 40 {
				t.Errorf("%d records are left in partition 0", len(byPartition(left)[0]))
			}

			x.through("kafka-topics", on("--delete")...)
			x.await("the deletion", func() bool { return !strings.Contains(x.direct("kafka-topics", "--list"), topic) })
			x.await("no description of a deleted topic", func() bool {
				return x.jvm.TryTool(t, "kafka-topics", on("--bootstrap-server", x.sluice.Bootstrap, "--describe")...).Err != nil
			})
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
	x.equal(x.kafka.ID, "kafka-cluster", "cluster-id")
	if !harness.OtherKafka() { // which cannot do that yet
		x.equal("broker-2", "kafka-cluster", "list-endpoints")
	}
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
		if out := x.equal("", tool, args...); strings.Count(out, "listed") != 1 {
			t.Errorf("%s lists what there is once %d times:\n%s", tool, strings.Count(out, "listed"), out)
		}
	}

	brokers := func(args ...string) []string { return append([]string{"--entity-type", "brokers"}, args...) }
	one := func(args ...string) []string { return brokers(append([]string{"--entity-name", "2"}, args...)...) }
	const key = "leader.replication.throttled.rate"
	x.contains(x.through("kafka-configs", one("--alter", "--add-config", key+"=123456789")...), "Completed updating config for broker 2")
	x.await("the broker's configuration", func() bool { return strings.Contains(x.direct("kafka-configs", one("--describe")...), "123456789") })
	x.equal(key+"=123456789", "kafka-configs", one("--describe")...)
	x.equal(key+"=123456789", "kafka-configs", brokers("--describe")...)
	// The broker's own addresses are its configuration, which is not rewritten:
	// the only place where a tool still shows them.
	x.contains(x.through("kafka-configs", one("--describe", "--all")...), "advertised.listeners=PLAINTEXT://broker-2")
	x.through("kafka-configs", one("--alter", "--delete-config", key)...)
	x.await("the broker's configuration", func() bool { return !strings.Contains(x.direct("kafka-configs", one("--describe")...), "123456789") })
	x.equal("", "kafka-configs", brokers("--describe")...)

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

// Tools that write and read say through sluice what they say directly, each way
// of a topic, a group and an id of its own, for what one tool writes the next reads.
func TestLongToolsThatWriteAndRead(t *testing.T) {
	harness.Long(t)
	for _, class := range []string{"control", "telemetry"} {
		t.Run(class, func(t *testing.T) {
			x := tools{shared(t), t}
			ways := []struct{ name, bootstrap string }{{"wr-sluice-" + class, x.sluice.Bootstrap}, {"wr-direct-" + class, x.kafka.Bootstrap()[0]}}
			stored := x.sluice.metric(t, "sluice_diskless_stored_batches_total", "class", class)
			both := func(in, tool string, args ...string) string {
				t.Helper()
				var said [2]string
				for i, way := range ways {
					own := slices.Clone(args)
					for j := range own {
						own[j] = strings.NewReplacer("NAME", way.name, "WHERE", way.bootstrap).Replace(own[j])
					}
					if tool != "kafka-producer-perf-test" {
						own = at(tool, way.bootstrap, own)
					}
					r := x.jvm.Pipe(t, in, tool, own...)
					if r.Err != nil {
						t.Fatalf("%s %v: %v\n%s\n%s", tool, own, r.Err, r.Stdout, r.Stderr)
					}
					said[i] = sorted(strings.ReplaceAll(x.normal(r.Stdout), way.name, "NAME"))
				}
				if changing := measured[tool]; changing != nil {
					for i := range said {
						said[i] = sorted(changing.ReplaceAllString(said[i], "..."))
					}
				}
				if said[0] != said[1] {
					t.Errorf("%s %v says through sluice\n%s\nand directly\n%s", tool, args, said[0], said[1])
				}
				return said[0]
			}
			named := func(args ...string) []string { return append([]string{"--topic", "NAME"}, args...) }

			x.contains(both("", "kafka-topics", named("--create", "--partitions", "1", "--replication-factor", "3")...), "Created topic NAME")
			for _, way := range ways {
				x.await("the topic", func() bool { return len(x.partition(way.name, 0).ISR) == 3 })
			}
			value := encode64(worthwhile[:1000])
			var lines strings.Builder
			for i := range 40 {
				fmt.Fprintf(&lines, "number:%d,of:forty\tkey-%d\t%d %s\n", i, i%5, i, value)
			}
			both(lines.String(), "kafka-console-producer", named("--property", "parse.key=true", "--property", "parse.headers=true")...)
			printing := []string{"--property", "print.key=true", "--property", "print.headers=true", "--property", "print.partition=true", "--property", "print.offset=true"}
			out := both("", "kafka-console-consumer", append(named("--from-beginning", "--max-messages", "40", "--group", "NAME", "--isolation-level", "read_committed"), printing...)...)
			x.contains(out, "number:39,of:forty")
			x.contains(out, "39 "+value)
			both("", "kafka-console-consumer", append(named("--partition", "0", "--offset", "7", "--max-messages", "3"), printing...)...)
			x.contains(both("", "kafka-consumer-groups", "--describe", "--group", "NAME"), "NAME NAME 0 40 40 0")
			x.contains(both("", "kafka-consumer-groups", "--describe", "--state", "--group", "NAME"), "Empty")

			x.contains(both("", "kafka-producer-perf-test", named("--num-records", "300", "--record-size", "1000", "--throughput", "-1", "--producer-props", "bootstrap.servers=WHERE")...), "300 records sent")
			x.contains(both("", "kafka-consumer-perf-test", named("--messages", "340")...), "... 340...")

			for _, way := range ways {
				franzTransact(t, way.bootstrap, []*kgo.Record{{Topic: way.name, Value: worthwhile}}, true)
				x.await("its end", func() bool { // the client does not wait for the markers
					d, err := kadm.NewClient(client(t, bootstrapOf(x.kafka))).DescribeTransactions(t.Context(), way.name)
					return err == nil && d[way.name].State == "CompleteCommit"
				})
			}
			x.contains(both("", "kafka-transactions", "describe", "--transactional-id", "NAME"), "CompleteCommit")
			x.contains(both("", "kafka-transactions", "find-hanging", "--topic", "NAME", "--partition", "0"), "Topic Partition ProducerId")
			x.equal("ProducerId", "kafka-transactions", "describe-producers", "--topic", ways[0].name, "--partition", "0")
			both("", "kafka-get-offsets", named()...)

			if n := x.sluice.metric(t, "sluice_diskless_stored_batches_total", "class", class) - stored; (n > 0) != (class == "telemetry") {
				t.Errorf("%.0f batches went to objects", n)
			}
		})
	}
	x := tools{shared(t), t}
	x.equal("metadata.version", "kafka-features", "describe")
	// It goes on while it is asked, and controllers' own listeners are named to nobody.
	changing := regexp.MustCompile(`\d+|, "endpoints": \[[^]]*\]`)
	for _, what := range []string{"--status", "--replication"} {
		args := []string{"describe", what}
		through, direct := x.through("kafka-metadata-quorum", args...), x.direct("kafka-metadata-quorum", args...)
		if sorted(changing.ReplaceAllString(through, "")) != sorted(changing.ReplaceAllString(direct, "")) {
			t.Errorf("kafka-metadata-quorum %v prints through sluice\n%s\nand directly\n%s", args, through, direct)
		}
	}
	x.through("kafka-client-metrics", "--alter", "--name", "wr", "--metrics", "org.apache.kafka.producer.", "--interval", "60000")
	x.await("the subscription", func() bool { return strings.Contains(x.direct("kafka-client-metrics", "--list"), "wr") })
	x.equal("interval.ms=60000", "kafka-client-metrics", "--describe", "--name", "wr")
	x.through("kafka-client-metrics", "--delete", "--name", "wr")
	x.await("its end", func() bool {
		return x.direct("kafka-client-metrics", "--list") == x.through("kafka-client-metrics", "--list")
	})
}

// measured is what tools print of times, rates and ids, which are another each time.
var measured = map[string]*regexp.Regexp{
	"kafka-producer-perf-test": regexp.MustCompile(`(?m), .*$`),
	"kafka-consumer-perf-test": regexp.MustCompile(`(?m)^\d[^,]*(?:, [^,]*){3},|, [\d.]+, \d+, \d+, [\d.]+, [\d.]+$`),
	"kafka-transactions":       regexp.MustCompile(`\d+`),
}

// Tools that need a login, for what they do or to whom.
func TestLongToolsOfUsers(t *testing.T) {
	harness.Long(t)
	users := map[string]string{harness.Admin: "admin-secret", "owner": "owner-secret"}
	k := harness.StartKafka(t, harness.KafkaOptions{Nodes: []int32{1}, Users: users, Properties: map[string]string{"delegation.token.secret.key": "secret"}})
	port := harness.Ports(t, replicaPorts)
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Port: port, InKafka: fmt.Sprintf("  sasl: { mechanism: SCRAM-SHA-256, username: %q, password: %q }\n", harness.Admin, users[harness.Admin])})
	x := tools{&sharedParts{kafka: k, sluice: s, sniffer: &sniffer{first: port + 2}, jvm: k.StartJVM(t)}, t}
	login := harness.Properties(t, map[string]string{
		"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-512",
		"sasl.jaas.config": fmt.Sprintf("org.apache.kafka.common.security.scram.ScramLoginModule required username=%q password=%q;", harness.Admin, users[harness.Admin]),
	})
	as := func(args ...string) []string { return append([]string{"--command-config", login}, args...) }

	access := []string{"--allow-principal", "User:owner", "--operation", "Write", "--topic", "metrics-telemetry"}
	x.contains(x.through("kafka-acls", as(append([]string{"--add"}, access...)...)...), "User:owner")
	x.through("kafka-acls", as("--add", "--deny-principal", "User:owner", "--operation", "Read", "--group", "team-", "--resource-pattern-type", "prefixed")...)
	x.equal("name=team-", "kafka-acls", as("--list")...)
	x.equal("operation=WRITE", "kafka-acls", as("--list", "--topic", "metrics-telemetry")...)
	x.through("kafka-acls", as(append([]string{"--remove", "--force"}, access...)...)...)
	x.await("its end", func() bool { return !strings.Contains(x.direct("kafka-acls", as("--list")...), "metrics-telemetry") })
	x.equal("permissionType=DENY", "kafka-acls", as("--list")...)

	owner := func(args ...string) []string {
		return as(append([]string{"--entity-type", "users", "--entity-name", "owner"}, args...)...)
	}
	x.through("kafka-configs", owner("--alter", "--add-config", "SCRAM-SHA-256=[password=new-secret]")...)
	x.through("kafka-configs", owner("--alter", "--add-config", "producer_byte_rate=123456")...)
	x.equal("producer_byte_rate=123456", "kafka-configs", owner("--describe")...)
	x.equal("SCRAM-SHA-256=iterations=4096", "kafka-configs", owner("--describe")...)

	token := x.through("kafka-delegation-tokens", as("--create", "--max-life-time-period", "-1", "--renewer-principal", "User:owner")...)
	hmac := regexp.MustCompile(`\S{80,}==`).FindString(token)
	if hmac == "" {
		t.Fatalf("no token was made:\n%s", token)
	}
	x.equal(hmac, "kafka-delegation-tokens", as("--describe", "--owner-principal", "User:"+harness.Admin)...)
	x.contains(x.through("kafka-delegation-tokens", as("--renew", "--renew-time-period", "60000", "--hmac", hmac)...), "Completed renew")
	x.contains(x.through("kafka-delegation-tokens", as("--expire", "--expiry-time-period", "-1", "--hmac", hmac)...), "Completed expire")
	x.await("its end", func() bool {
		return !strings.Contains(x.direct("kafka-delegation-tokens", as("--describe", "--owner-principal", "User:"+harness.Admin)...), hmac)
	})
	x.equal("", "kafka-delegation-tokens", as("--describe", "--owner-principal", "User:"+harness.Admin)...)
}
