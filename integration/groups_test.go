package integration

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

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
		cl := client(t, bootstrap, append(opts, kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
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

func javaMember(jvm *harness.JVM, protocol string) member {
	return func(t *testing.T, bootstrap, group, topic string, n int) []*kgo.Record {
		t.Helper()
		return javaRecords(t, jvm.Java(t, "", "Client", "consume", bootstrap, strconv.Itoa(n), topic,
			"group.id="+group, "group.protocol="+protocol, "enable.auto.commit=false", "max.poll.records="+strconv.Itoa(pollAtMost)))
	}
}

// A group goes on where it has committed, whatever the library, the protocol
// and the tier; its lag is what it is.
func TestGroupsResume(t *testing.T) {
	p := shared(t)
	const partitions, total, first = 3, 180, 50
	members := []struct {
		name string
		read member
	}{
		{"franz-classic", franzMember()},
		{"franz-kip848", franzMember(kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))},
		{"java-classic", javaMember(p.jvm, "classic")},
		{"java-kip848", javaMember(p.jvm, "consumer")},
	}
	onAllTargets(t, func(t *testing.T, tg target) {
		topic := tg.topic("groups")
		tg.create(t, topic, partitions)
		produce := franz{}.producer(t, tg.bootstrap, "snappy")
		all := filled(topic, partitions, total)
		for turn := range 3 {
			tg.turn(t, turn)
			produce(all[turn*total/3 : (turn+1)*total/3])
		}
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
	p.sniffer.looked(t, 0, 1, 3, 10) // Produce, Fetch, Metadata, FindCoordinator
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
		{"classic", nil},
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
