package integration

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
)

// member reads about n records of a topic in a group, commits what it has read
// and leaves.
type member func(t *testing.T, bootstrap, group, topic string, n int) []*kgo.Record

// pollAtMost makes members stop in the middle of a partition.
const pollAtMost = 7

func franzMember(opts ...kgo.Opt) member {
	return func(t *testing.T, bootstrap, group, topic string, n int) (records []*kgo.Record) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cl := client(t, bootstrap, append(opts, kgo.ConsumerGroup(group), kgo.ConsumeTopics(strings.Split(topic, ",")...), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
		defer cl.Close()
		for len(records) < n {
			fetches := cl.PollRecords(ctx, min(pollAtMost, n-len(records)))
			if err := fetches.Err(); err != nil {
				t.Fatalf("after %d of %d records: %v", len(records), n, err)
			}
			records = append(records, fetches.Records()...)
		}
		if err := cl.CommitRecords(ctx, records...); err != nil {
			t.Fatal(err)
		}
		return records
	}
}

func javaMember(jvm *harness.JVM, protocol string, more ...string) member {
	return func(t *testing.T, bootstrap, group, topic string, n int) []*kgo.Record {
		t.Helper()
		return javaRecords(t, jvm.Java(t, "", "Client", append([]string{"consume", bootstrap, strconv.Itoa(n), topic,
			"group.id=" + group, "group.protocol=" + protocol, "enable.auto.commit=false", "max.poll.records=" + strconv.Itoa(pollAtMost)}, more...)...))
	}
}

// byExpression is a member whose group subscribes to an expression instead of a name.
func (m member) byExpression() member {
	return func(t *testing.T, bootstrap, group, topic string, n int) []*kgo.Record {
		t.Helper()
		return m(t, bootstrap, group, "/"+topic[:len(topic)-1]+"["+topic[len(topic)-1:]+"]/", n)
	}
}

type namedMember struct {
	name string
	read member
}

// A group goes on where it has committed, whatever the library, the protocol
// and the tier; its lag is what it is.
func TestGroupsResume(t *testing.T) {
	p := shared(t)
	groupsResume(t, "groups", []namedMember{
		{"franz-kip848", franzMember(kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))},
		{"java-classic", javaMember(p.jvm, "classic")},
	})
	p.sniffer.looked(t, 0, 1, 3, 10) // Produce, Fetch, Metadata, FindCoordinator
}

// The same, with every assignor on either side, static members and expressions.
func TestLongGroupsOfEveryKindResume(t *testing.T) {
	harness.Long(t)
	p := shared(t)
	var members []namedMember
	for _, assignor := range []string{"RangeAssignor", "RoundRobinAssignor", "StickyAssignor", "CooperativeStickyAssignor"} {
		members = append(members, namedMember{"java-" + assignor, javaMember(p.jvm, "classic", "partition.assignment.strategy=org.apache.kafka.clients.consumer."+assignor)})
	}
	for _, assignor := range []string{"uniform", "range"} {
		members = append(members, namedMember{"java-kip848-" + assignor, javaMember(p.jvm, "consumer", "group.remote.assignor="+assignor)})
	}
	for name, balancer := range balancers {
		members = append(members, namedMember{"franz-" + name, franzMember(kgo.Balancers(balancer))})
	}
	groupsResume(t, "every-group", append(members,
		namedMember{"franz-classic", franzMember()},
		namedMember{"java-kip848", javaMember(p.jvm, "consumer")},
		namedMember{"java-static", javaMember(p.jvm, "classic", "group.instance.id=one")},
		namedMember{"java-kip848-static", javaMember(p.jvm, "consumer", "group.instance.id=one")},
		namedMember{"franz-static", franzMember(kgo.InstanceID("one"))},
		namedMember{"java-kip848-expression", javaMember(p.jvm, "consumer").byExpression()},
	))
}

var balancers = map[string]kgo.GroupBalancer{
	"range": kgo.RangeBalancer(), "roundrobin": kgo.RoundRobinBalancer(), "sticky": kgo.StickyBalancer(), "cooperative-sticky": kgo.CooperativeStickyBalancer(),
}

func groupsResume(t *testing.T, prefix string, members []namedMember) {
	p := shared(t)
	const partitions, total, first = 3, 180, 50
	onAllTargets(t, func(t *testing.T, tg target) {
		topic := tg.topic(prefix)
		tg.create(t, topic, partitions)
		all := tg.fill(t, "snappy", topic, partitions, total)
		for _, m := range members {
			group := m.name + "-" + topic
			read := m.read(t, tg.bootstrap, group, topic, first)
			if got := lag(t, p, tg, group, partitions, total/partitions); got != total-len(read) {
				t.Errorf("%s has read %d of %d records and kafka-consumer-groups says that it lags %d", group, len(read), total, got)
			}
			read = append(read, m.read(t, tg.bootstrap, group, topic, total-len(read))...)
			same(t, group, all, read, true)
			if got := lag(t, p, tg, group, partitions, total/partitions); got != 0 {
				t.Errorf("%s has read everything and kafka-consumer-groups says that it lags %d", group, got)
			}
		}
	})
}

var blanks = regexp.MustCompile(`[ \t]+`)

// lag is what kafka-consumer-groups adds up to; of a group without members it
// leaves out partitions where nothing was committed, of whose records each is
// to be read. What it prints must not depend on whether it asks sluice or the
// brokers.
func lag(t *testing.T, p *sharedParts, tg target, group string, partitions, each int) (sum int) {
	t.Helper()
	describe := func(bootstrap string) string {
		return blanks.ReplaceAllString(p.jvm.Tool(t, "kafka-consumer-groups", "--bootstrap-server", bootstrap, "--describe", "--group", group), " ")
	}
	out := describe(tg.bootstrap)
	if direct := describe(bootstrapOf(p.kafka)); out != direct {
		t.Errorf("kafka-consumer-groups says\n%s\nand directly\n%s", out, direct)
	}
	rows := 0
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 6 || f[0] != group {
			continue
		}
		rows++
		if f[3] == "-" {
			sum += each
			continue
		}
		if number(t, f[5]) != number(t, f[4])-number(t, f[3]) {
			t.Errorf("the lag does not add up: %s", line)
		}
		sum += number(t, f[5])
	}
	if rows == 0 {
		t.Errorf("%s is not described:\n%s", group, out)
	}
	return sum + (partitions-rows)*each
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Two members share a topic of each tier; when one leaves, the other reads on
// from what both have committed.
func TestGroupMembersShareBothTiers(t *testing.T) {
	p := shared(t)
	const partitions, total = 4, 200
	for _, protocol := range []struct {
		name string
		opts []kgo.Opt
	}{
		{"range", []kgo.Opt{kgo.Balancers(kgo.RangeBalancer())}},
		{"cooperative-sticky", nil},
		{"kip848", []kgo.Opt{kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer())}},
	} {
		t.Run(protocol.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			topics := []string{"shared-" + protocol.name + "-control", "shared-" + protocol.name + "-telemetry"}
			produce := franz{}.producer(t, p.sluice.Bootstrap, "none")
			write := func() {
				for _, topic := range topics {
					produce(filled(topic, partitions, total))
				}
			}
			for _, topic := range topics {
				target{bootstrap: p.sluice.Bootstrap, sluice: p.sluice}.create(t, topic, partitions)
			}
			join := func() *kgo.Client {
				return client(t, p.sluice.Bootstrap, append(protocol.opts, kgo.ConsumerGroup(topics[0]), kgo.ConsumeTopics(topics...),
					kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.AutoCommitMarks(), kgo.HeartbeatInterval(200*time.Millisecond))...)
			}
			members := []*kgo.Client{join(), join()}
			seen := make(map[string]bool) // a record may come twice when members change
			poll := func(cl *kgo.Client) int {
				short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
				defer cancel()
				fetches := cl.PollRecords(short, 50)
				fetches.EachRecord(func(r *kgo.Record) { seen[fmt.Sprint(r.Topic, r.Partition, "@", r.Offset)] = true })
				cl.MarkCommitRecords(fetches.Records()...)
				return fetches.NumRecords()
			}
			// Both take part: write until both have read something.
			got := [2]int{}
			written := 0
			for (got[0] == 0 || got[1] == 0 || len(seen) < written) && ctx.Err() == nil {
				if len(seen) == written {
					write()
					written += total * len(topics)
				}
				for i, cl := range members {
					got[i] += poll(cl)
				}
			}
			if err := members[0].CommitMarkedOffsets(ctx); err != nil {
				t.Fatal(err)
			}
			members[0].Close()
			write()
			written += total * len(topics)
			for len(seen) < written && ctx.Err() == nil {
				poll(members[1])
			}
			if len(seen) != written {
				t.Fatalf("%d of %d records were read, by %v", len(seen), written, got)
			}
		})
	}
}

// A static member that comes back has its partitions again, without the others
// noticing, and whoever takes its name puts it out.
func TestStaticMembers(t *testing.T) {
	p := shared(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	topics := []string{"static-control", "static-telemetry"}
	for _, topic := range topics {
		createTopic(t, p.sluice.Bootstrap, topic, 4, "retention.ms", "-1")
	}
	var mu sync.Mutex
	assigned := make(map[string]map[string]int) // by member and partition, how often
	join := func(name string) *kgo.Client {
		return client(t, p.sluice.Bootstrap, kgo.ConsumerGroup(topics[0]), kgo.ConsumeTopics(topics...), kgo.InstanceID(name), kgo.HeartbeatInterval(200*time.Millisecond),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, added map[string][]int32) {
				mu.Lock()
				defer mu.Unlock()
				if assigned[name] == nil {
					assigned[name] = make(map[string]int)
				}
				for topic, partitions := range added {
					for _, partition := range partitions {
						assigned[name][fmt.Sprint(topic, partition)]++
					}
				}
			}))
	}
	has := func(name string) (parts []string) {
		mu.Lock()
		defer mu.Unlock()
		for at := range assigned[name] {
			parts = append(parts, at)
		}
		slices.Sort(parts)
		return parts
	}
	first, second := join("first"), join("second")
	adm := kadm.NewClient(first)
	// The first group of a cluster has no coordinator before the topic of offsets has
	// been made, which may take longer than clients try.
	described := func() (g kadm.DescribedGroup) {
		eventually(t, "the group has a coordinator", func() (bool, string) {
			listed, err := adm.DescribeGroups(ctx, topics[0])
			g = listed[topics[0]]
			return err == nil && g.Err == nil, fmt.Sprintf("%v, %v", err, g.Err)
		})
		return g
	}
	poll := func(cl *kgo.Client) error {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		return cl.PollFetches(short).Err()
	}
	eventually(t, "both have their part", func() (bool, string) {
		_ = poll(first)
		_ = poll(second)
		g := described()
		for _, m := range g.Members {
			// Not a part of each topic: who joins first may have learnt of one of them only.
			n := 0
			if a, ok := m.Assigned.AsConsumer(); ok {
				for _, topic := range a.Topics {
					n += len(topic.Partitions)
				}
			}
			if n != 4 {
				return false, fmt.Sprintf("%s: %+v", g.State, g.Members)
			}
		}
		return g.State == "Stable" && len(g.Members) == 2, g.State
	})
	before := described()
	mu.Lock()
	clear(assigned)
	mu.Unlock()
	second.Close()
	second = join("second")
	want := before.AssignedPartitions()
	eventually(t, "it is back", func() (bool, string) {
		_ = poll(second)
		_ = poll(first)
		return len(has("second")) == 4, fmt.Sprint(has("second"))
	})
	if got := described(); got.State != "Stable" || len(got.AssignedPartitions()) != len(want) {
		t.Errorf("the group is %s with %v", got.State, got.AssignedPartitions())
	}
	if again := has("first"); len(again) > 0 {
		t.Errorf("the other one was given %v anew", again)
	}
	produce := franz{}.producer(t, p.sluice.Bootstrap, "none")
	for _, topic := range topics {
		produce(filled(topic, 4, 8))
	}
	read := 0
	eventually(t, "both read", func() (bool, string) {
		for _, cl := range []*kgo.Client{first, second} {
			short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			read += cl.PollFetches(short).NumRecords()
			cancel()
		}
		return read == 16, fmt.Sprint(read)
	})
	third := join("second")
	eventually(t, "its namesake puts it out", func() (bool, string) {
		_ = poll(third)
		err := poll(second)
		return errors.Is(err, kerr.FencedInstanceID), fmt.Sprint(err)
	})
}

// What operators do to a group's offsets is done, and printed, as without a
// proxy.
func TestLongGroupTools(t *testing.T) {
	harness.Long(t)
	p := shared(t)
	x := tools{p, t}
	topics := []string{"reset-control", "reset-telemetry"}
	for _, topic := range topics {
		createTopic(t, p.sluice.Bootstrap, topic, 1, "retention.ms", "-1")
		franz{}.producer(t, p.sluice.Bootstrap, "none")(filled(topic, 1, 20))
	}
	groups := []string{"reset-one", "reset-two"} // one through sluice, the other directly
	read := func(n int) {
		t.Helper()
		for _, g := range groups {
			franzMember()(t, p.sluice.Bootstrap, g, strings.Join(topics, ","), n)
		}
	}
	read(40)
	both := func(args ...string) string {
		t.Helper()
		var out [2]string
		for i, run := range []func(string, ...string) string{x.through, x.direct} {
			said := run("kafka-consumer-groups", append(args, "--group", groups[i])...)
			out[i] = sorted(blanks.ReplaceAllString(strings.ReplaceAll(said, groups[i], "GROUP"), " "))
		}
		if out[0] != out[1] {
			t.Errorf("%v prints through sluice\n%s\nand directly\n%s", args, out[0], out[1])
		}
		return out[0]
	}
	for _, to := range [][]string{{"--to-earliest"}, {"--shift-by", "5"}, {"--to-datetime", time.UnixMilli(baseTime + 7).UTC().Format("2006-01-02T15:04:05.000")}} {
		both(append([]string{"--reset-offsets", "--execute", "--all-topics"}, to...)...)
	}
	for _, topic := range topics {
		x.contains(both("--describe"), "GROUP "+topic+" 0 7 20 13")
	}
	both("--reset-offsets", "--execute", "--topic", topics[1], "--to-offset", "3")
	x.equal("", "kafka-consumer-groups", "--describe", "--state", "--group", groups[0])
	x.equal("", "kafka-consumer-groups", "--describe", "--members", "--group", groups[0])
	read(13 + 17) // from there
	x.contains(both("--describe"), "GROUP "+topics[1]+" 0 20 20 0")
	both("--delete-offsets", "--topic", topics[1])
	both("--delete")
	if list := x.equal("", "kafka-consumer-groups", "--list"); strings.Contains(list, "reset-") {
		t.Errorf("deleted groups are listed:\n%s", list)
	}
}
