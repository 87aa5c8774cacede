package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
)

// pair is two topics, which through sluice are in different tiers, and a way to
// them.
type pair struct {
	target
	topics []string
}

// pairs are the brokers themselves, and sluice.
func pairs(t *testing.T, p *sharedParts, name string) []pair {
	t.Helper()
	both := []pair{
		{target{name: "direct", bootstrap: bootstrapOf(p.kafka)}, []string{name + "-direct-1", name + "-direct-2"}},
		{target{name: "sluice", bootstrap: p.sluice.Bootstrap, sluice: p.sluice}, []string{name + "-control", name + "-telemetry"}},
	}
	for _, pr := range both {
		for _, topic := range pr.topics {
			pr.create(t, topic, 2)
		}
	}
	return both
}

// transact writes records in one transaction.
type transact func(t *testing.T, bootstrap string, records []*kgo.Record, commit bool)

func franzTransact(t *testing.T, bootstrap string, records []*kgo.Record, commit bool) {
	t.Helper()
	franzTransactWith(t, bootstrap, records, commit)
}

// beforeKIP890 adds partitions to transactions explicitly, and keeps an epoch
// for all transactions of a producer.
func beforeKIP890(t *testing.T, bootstrap string, records []*kgo.Record, commit bool) {
	t.Helper()
	franzTransactWith(t, bootstrap, records, commit, capped(map[int16]int16{0: 11, 22: 4, 24: 3, 25: 3, 26: 3, 28: 4}))
}

func franzTransactWith(t *testing.T, bootstrap string, records []*kgo.Record, commit bool, opts ...kgo.Opt) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl := client(t, bootstrap, append(opts, kgo.TransactionalID(records[0].Topic), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(ctx, kgo.TransactionEndTry(commit)); err != nil {
		t.Fatal(err)
	}
	cl.Close()
}

func (j javaClient) transact(t *testing.T, bootstrap string, records []*kgo.Record, commit bool) {
	t.Helper()
	var in strings.Builder
	for _, r := range records {
		fmt.Fprintf(&in, "%s %d %d %s %s\n", r.Topic, r.Partition, r.Timestamp.UnixMilli(), javaText(r.Key), javaText(r.Value))
	}
	end := map[bool]string{true: "commit", false: "abort"}[commit]
	j.jvm.Java(t, in.String(), "Client", "transact", bootstrap, end)
}

// A transaction is all or nothing over both tiers, whoever writes it and
// whoever reads.
func TestOneTransactionOverBothTiers(t *testing.T) {
	p := shared(t)
	java := javaClient{p.jvm, "Java"}
	writers := map[string]transact{"franz": franzTransact, "java": java.transact}
	for name, write := range writers {
		for _, pr := range pairs(t, p, "tx-"+name) {
			t.Run(name+"/"+pr.name, func(t *testing.T) {
				oneTransaction(t, p.jvm, p.sluice, pr, write)
			})
		}
	}
}

// Clusters whose transactions are of an older kind, and clients that know no
// other, are no different.
func TestLongTransactionsOfOlderKinds(t *testing.T) {
	harness.Long(t)
	for _, version := range []string{"0", "1", "2"} {
		t.Run("transaction.version="+version, func(t *testing.T) {
			k := harness.StartKafka(t, harness.KafkaOptions{Nodes: []int32{1}, Features: []string{"transaction.version=" + version}})
			jvm := k.StartJVM(t)
			s := startSluice(t, replica{Kafka: k.Bootstrap()})
			writers := map[string]transact{"franz-before-KIP-890": beforeKIP890}
			if version != "2" { // which is every other test's
				writers["franz"], writers["java"] = franzTransact, javaClient{jvm, "Java"}.transact
			}
			for name, write := range writers {
				pr := pair{target{name: "sluice", bootstrap: s.Bootstrap, sluice: s}, []string{name + "-control", name + "-telemetry"}}
				one := "1"
				never := "-1"
				if _, err := kadm.NewClient(client(t, s.Bootstrap)).CreateTopics(t.Context(), 2, 1, map[string]*string{"min.insync.replicas": &one, "retention.ms": &never}, pr.topics...); err != nil {
					t.Fatal(err)
				}
				for _, topic := range pr.topics {
					eventually(t, "sluice knows "+topic, func() (bool, string) { return s.Cluster().Facts(t.Context(), topic).Known, "" })
				}
				t.Run(name, func(t *testing.T) { oneTransaction(t, jvm, s, pr, write) })
			}
		})
	}
}

func oneTransaction(t *testing.T, jvm *harness.JVM, s *sluice, pr pair, write transact) {
	before := s.metric(t, "sluice_diskless_stored_batches_total")
	all := make(map[string][]string) // by topic and partition
	committed := make(map[string][]string)
	for i, commit := range []bool{true, false, true, false} {
		var records []*kgo.Record
		for n := range 200 {
			r := &kgo.Record{
				Topic: pr.topics[n%2], Partition: int32(n / 2 % 2), Timestamp: time.UnixMilli(baseTime + int64(n)),
				Key: fmt.Appendf(nil, "%d-%d", i, n), Value: worthwhile,
			}
			at := fmt.Sprint(r.Topic, r.Partition)
			all[at] = append(all[at], text(r, false))
			if commit {
				committed[at] = append(committed[at], text(r, false))
			}
			records = append(records, r)
		}
		write(t, pr.bootstrap, records, commit)
	}
	if n := s.metric(t, "sluice_diskless_stored_batches_total") - before; (pr.name == "sluice") != (n > 0) {
		t.Errorf("%v batches went to objects", n)
	}
	for _, topic := range pr.topics {
		for _, read := range []struct {
			as      string
			want    map[string][]string
			records []*kgo.Record
		}{
			{"franz-go, read_committed", committed, consumed(t, pr.bootstrap, 200, []kgo.Opt{kgo.FetchIsolationLevel(kgo.ReadCommitted())}, topic)},
			{"franz-go, read_uncommitted", all, consumed(t, pr.bootstrap, 400, nil, topic)},
			{"Java, read_committed", committed, javaRecords(t, jvm.Java(t, "", "Client", "consume", pr.bootstrap, "200", topic, "isolation.level=read_committed"))},
			{"Java, read_uncommitted", all, javaRecords(t, jvm.Java(t, "", "Client", "consume", pr.bootstrap, "400", topic))},
		} {
			for partition, records := range byPartition(read.records) {
				at := fmt.Sprint(topic, partition)
				var got []string
				for _, r := range records {
					got = append(got, text(r, false))
				}
				if strings.Join(got, "\n") != strings.Join(read.want[at], "\n") {
					t.Errorf("%s of %s: %d records, want %d, or in another order", read.as, at, len(got), len(read.want[at]))
				}
			}
		}
	}
}

// Until a transaction ends, who reads committed records sees none of it, and
// the last stable offset stays before it, in both tiers.
func TestOpenTransactionIsNotRead(t *testing.T) {
	p := shared(t)
	for _, pr := range pairs(t, p, "tx-open") {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cl := client(t, pr.bootstrap, kgo.TransactionalID(pr.topics[0]), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		adm := kadm.NewClient(client(t, pr.bootstrap))
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for _, topic := range pr.topics {
			for _, r := range payloads(3, false)[3].records {
				r.Topic = topic
				if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
		}
		ends := func() (stable, latest int64) {
			s, err := adm.ListCommittedOffsets(ctx, pr.topics...)
			if err != nil {
				t.Fatal(err)
			}
			l, err := adm.ListEndOffsets(ctx, pr.topics...)
			if err != nil {
				t.Fatal(err)
			}
			for _, topic := range pr.topics {
				stable += s[topic][0].Offset
				latest += l[topic][0].Offset
			}
			return stable, latest
		}
		if stable, latest := ends(); stable != 0 || latest != 60 {
			t.Errorf("%s: while the transaction is open, stable offsets add up to %d and ends to %d, want 0 and 60", pr.name, stable, latest)
		}
		if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		if got := consumed(t, pr.bootstrap, 60, []kgo.Opt{kgo.FetchIsolationLevel(kgo.ReadCommitted())}, pr.topics...); len(got) != 60 {
			t.Errorf("%s: %d records", pr.name, len(got))
		}
		if stable, latest := ends(); stable != 62 || latest != 62 { // and a marker each
			t.Errorf("%s: stable offsets add up to %d and ends to %d, want 62", pr.name, stable, latest)
		}
	}
}

// Reading one tier and writing both, with the offsets in the transaction:
// an abort leaves the group where it was.
func TestOffsetsInATransaction(t *testing.T) {
	p := shared(t)
	const n = 100
	for _, pr := range pairs(t, p, "tx-offsets") {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		from := pr.topics[1]
		franz{}.producer(t, pr.bootstrap, "lz4")(filled(from, 2, n))
		adm := kadm.NewClient(client(t, pr.bootstrap))
		done := func(group string) (sum int64) {
			offsets, err := adm.FetchOffsetsForTopics(ctx, group, from)
			if err != nil {
				t.Fatal(err)
			}
			offsets.Each(func(o kadm.OffsetResponse) { sum += max(0, o.At) })
			return sum
		}
		for lib, transform := range map[string]func(group string, to []string, commit bool){
			"franz": func(group string, to []string, commit bool) {
				franzTransform(t, pr.bootstrap, group, n, from, to, commit)
			},
			"java": func(group string, to []string, commit bool) {
				p.jvm.Java(t, "", "Client", "transform", pr.bootstrap, map[bool]string{true: "commit", false: "abort"}[commit], fmt.Sprint(n), from, strings.Join(to, ","), "group.id="+group)
			},
		} {
			group := "tx-offsets-" + pr.name + "-" + lib
			var to []string
			for _, topic := range pr.topics {
				to = append(to, topic+"-"+lib)
				pr.create(t, to[len(to)-1], 2)
			}
			transform(group, to, false)
			if got := done(group); got != 0 {
				t.Errorf("%s, %s: after the abort the group has committed %d", lib, pr.name, got)
			}
			transform(group, to, true)
			// Brokers write the markers a moment after they have answered.
			eventually(t, fmt.Sprintf("%s, %s: the group has committed %d", lib, pr.name, n), func() (bool, string) {
				got := done(group)
				return got == n, fmt.Sprint(got)
			})
			for _, topic := range to {
				same := make(map[string]int)
				for _, r := range consumed(t, pr.bootstrap, n, []kgo.Opt{kgo.FetchIsolationLevel(kgo.ReadCommitted())}, topic) {
					same[text(r, false)]++
				}
				for _, w := range filled(from, 2, n) {
					if same[text(w, false)] != 1 {
						t.Fatalf("%s, %s: %s is %d times in %s", lib, pr.name, short(text(w, false)), same[text(w, false)], topic)
					}
				}
			}
		}
	}
}

// filled are n records, spread over the partitions, each worth an object.
func filled(topic string, partitions, n int) (records []*kgo.Record) {
	for i := range n {
		records = append(records, &kgo.Record{Topic: topic, Partition: int32(i % partitions), Key: fmt.Append(nil, i), Value: worthwhile, Timestamp: time.UnixMilli(baseTime + int64(i))})
	}
	return records
}

func franzTransform(t *testing.T, bootstrap, group string, n int, from string, to []string, commit bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := kgo.NewGroupTransactSession(kgo.SeedBrokers(strings.Split(bootstrap, ",")...), kgo.TransactionalID(group), kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(from), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for got := 0; got < n; {
		fetches := s.PollRecords(ctx, n-got)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		if got == 0 && fetches.NumRecords() > 0 {
			if err := s.Begin(); err != nil {
				t.Fatal(err)
			}
		}
		fetches.EachRecord(func(r *kgo.Record) {
			got++
			for _, topic := range to {
				s.Produce(ctx, &kgo.Record{Topic: topic, Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp}, func(_ *kgo.Record, err error) {
					if err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
	if err := s.Client().Flush(ctx); err != nil { // an abort would drop what is not yet sent
		t.Fatal(err)
	}
	if committed, err := s.End(ctx, kgo.TransactionEndTry(commit)); err != nil || committed != commit {
		t.Fatalf("ending the transaction: committed %v, %v", committed, err)
	}
}
