package integration

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/harness"
)

// A stream processor with exactly-once keeps its promise through kills: it is
// killed in the middle of a transaction and comes back to its state, which it
// restores from a changelog, and one of two is killed and the other takes over.
// What it has written is what a model computes of what it was given.
func TestLongStreamProcessorsCountOnce(t *testing.T) {
	harness.Long(t)
	for _, protocol := range []string{"classic", "streams"} {
		t.Run(protocol, func(t *testing.T) {
			onAllTargets(t, func(t *testing.T, tg target) {
				if tg.name == "control" || protocol == "streams" && tg.mixed {
					return // a change of class says the same, and takes a minute less
				}
				countsOnce(t, tg, protocol)
			})
		})
	}
}

func countsOnce(t *testing.T, tg target, protocol string) {
	const partitions, accounts, portion = 3, 4, 120
	p := shared(t)
	in, out, control := tg.topic("amounts-"+protocol), tg.topic("totals-"+protocol), "totals-control-"+protocol+"-"+tg.name[:1]
	tg.create(t, in, partitions)
	tg.create(t, out, 2)
	tg.create(t, control, 2)
	produce := franz{}.producer(t, tg.bootstrap, "none") // a small batch of equal ends would compress so well that it stays inline
	var given []*kgo.Record
	feed := func(n int) {
		var records []*kgo.Record
		for i := len(given); i < len(given)+n; i++ {
			partition := i % partitions
			account := fmt.Sprintf("%d-%d", partition, i/partitions%accounts) // all of it are in one partition
			records = append(records, &kgo.Record{Topic: in, Partition: int32(partition), Timestamp: time.UnixMilli(baseTime + int64(i)),
				Key: fmt.Append(nil, i), Value: fmt.Appendf(nil, "%s %d %s", account, i*i-1000, base64.StdEncoding.EncodeToString(worthwhile[:500]))})
		}
		produce(records)
		given = append(given, records...)
	}
	application := tg.topic("counting-" + protocol)
	dirs := t.TempDir()
	start := func(name string) *harness.App {
		return harness.StartApp(t, "Totals", in, out+","+control, "5",
			"bootstrap.servers="+tg.bootstrap, "application.id="+application, "client.id="+name, "group.protocol="+protocol,
			"state.dir="+filepath.Join(dirs, name), "processing.guarantee=exactly_once_v2", "replication.factor=3",
			"statestore.cache.max.bytes=0", "commit.interval.ms=1000", "repartition.purge.interval.ms=1000", "consumer.auto.offset.reset=earliest",
			"consumer.session.timeout.ms=6000", "consumer.heartbeat.interval.ms=500", "consumer.metadata.max.age.ms=1000", "producer.metadata.max.age.ms=1000")
	}
	// The brokers themselves say what is under way.
	adm := kadm.NewClient(client(t, bootstrapOf(p.kafka)))
	transaction := func(name string) (x kadm.DescribedTransaction) {
		id := application + "-" + processID(t, filepath.Join(dirs, name, application)) + "-1"
		eventually(t, "its coordinator knows it", func() (bool, string) {
			described, err := adm.DescribeTransactions(t.Context(), id)
			x = described[id]
			return err == nil && x.Err == nil, fmt.Sprintf("%v, %+v", err, x)
		})
		return x
	}
	// What is in the middle of a transaction while it is stopped stays there.
	killInTransaction := func(name string, apps map[string]*harness.App) {
		t.Helper()
		app := apps[name]
		works := make(map[string]int)
		for n, a := range apps {
			works[n] = strings.Count(a.Log(t), "\n")
		}
		committed, fed := false, time.Now()
		eventually(t, "all work, and "+name+" is in the middle of a transaction that is not its first", func() (bool, string) {
			if time.Since(fed) > 500*time.Millisecond { // they must not run out of work
				feed(portion)
				fed = time.Now()
			}
			x := transaction(name)
			committed = committed || x.State == "CompleteCommit"
			for n, a := range apps {
				if ended, err := a.Ended(); ended {
					t.Fatalf("%s has ended: %v", n, err)
				}
				if strings.Count(a.Log(t), "\n") < works[n]+20 {
					return false, n + " does not work"
				}
			}
			if x.State != "Ongoing" || !committed {
				return false, fmt.Sprintf("%+v", x)
			}
			if err := app.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond) // what it has sent is done
			x = transaction(name)
			if len(x.Topics) > 0 && x.State == "Ongoing" {
				return true, ""
			}
			if err := app.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			return false, fmt.Sprintf("%+v", x)
		})
		app.Kill()
	}
	first := start("first")
	tg.turn(t, 0)
	killInTransaction("first", map[string]*harness.App{"first": first})
	tg.turn(t, 2)
	first = start("first")
	second := start("second")
	killInTransaction("second", map[string]*harness.App{"first": first, "second": second})
	tg.turn(t, 4)
	feed(portion)
	total := len(given)
	wrote := map[string][]*kgo.Record{}
	for _, topic := range []string{out, control} {
		wrote[topic] = readCommitted(t, tg.bootstrap, topic, total)
	}
	if err := first.Stop(30 * time.Second); err != nil && !strings.Contains(err.Error(), "143") { // as Java ends on SIGTERM
		t.Errorf("ending it: %v", err)
	}
	if x := transaction("first"); x.State != "CompleteCommit" {
		t.Errorf("it has left a transaction %s", x.State)
	}

	// The model.
	type state struct{ count, sum, digest int64 }
	states, want := map[string]*state{}, map[string][]string{}
	for _, r := range given {
		f := strings.SplitN(string(r.Value), " ", 3)
		amount, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		s := states[f[0]]
		if s == nil {
			s = new(state)
			states[f[0]] = s
		}
		s.count, s.sum, s.digest = s.count+1, s.sum+amount, s.digest*31+amount
		want[f[0]] = append(want[f[0]], fmt.Sprintf("%d %d %d %d %s", r.Timestamp.UnixMilli(), s.count, s.sum, s.digest, f[2]))
	}
	for topic, records := range wrote {
		got := map[string][]string{}
		for _, r := range records {
			got[string(r.Key)] = append(got[string(r.Key)], fmt.Sprintf("%d %s", r.Timestamp.UnixMilli(), r.Value))
		}
		for _, account := range slices.Sorted(maps.Keys(want)) {
			if !slices.Equal(got[account], want[account]) {
				n := 0
				for n < min(len(got[account]), len(want[account])) && got[account][n] == want[account][n] {
					n++
				}
				t.Errorf("%s: account %s: %d results, want %d; the first %d are equal", topic, account, len(got[account]), len(want[account]), n)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d accounts, want %d", topic, len(got), len(want))
		}
	}
	// The changelog, read from the brokers: it is compacted, so it is inline
	// whatever its class.
	last := map[string]string{}
	for _, r := range readCommitted(t, bootstrapOf(p.kafka), application+"-totals-changelog", len(states)) {
		last[string(r.Key)] = string(r.Value)
	}
	for account, s := range states {
		if want := fmt.Sprintf("%d %d %d", s.count, s.sum, s.digest); last[account] != want {
			t.Errorf("the changelog says %q of account %s, want %q", last[account], account, want)
		}
	}
	// What it was given and what it wrote, on the other hand, is in the target's tier.
	for topic, diskless := range map[string]bool{in: tg.diskless, out: tg.diskless, control: false} {
		if n := placeholders(t, topic, total); diskless != (n > 0) {
			t.Errorf("%s has %d placeholders", topic, n)
		}
	}
	// It deletes what it has passed to itself and read.
	begins, err := adm.ListStartOffsets(t.Context(), application+"-by-account-repartition")
	if err != nil {
		t.Fatal(err)
	}
	begins.Each(func(o kadm.ListedOffset) {
		if o.Err != nil || o.Offset == 0 {
			t.Errorf("the repartition topic begins at %+v", o)
		}
	})
}

// placeholders counts those in a topic's log, as the brokers have it, of n records
// at least.
func placeholders(t *testing.T, topic string, n int) (found int) {
	t.Helper()
	for _, r := range readCommitted(t, bootstrapOf(parts.kafka), topic, n) {
		if slices.ContainsFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == placeholder.HeaderKey }) {
			found++
		}
	}
	return found
}

// processID is what an instance of a stream processor calls itself, by its state.
func processID(t *testing.T, dir string) string {
	t.Helper()
	var known struct {
		ProcessID string `json:"processId"`
	}
	eventually(t, "it has a process id", func() (bool, string) {
		b, err := os.ReadFile(filepath.Join(dir, "kafka-streams-process-metadata"))
		if err == nil {
			err = json.Unmarshal(b, &known)
		}
		return err == nil && known.ProcessID != "", fmt.Sprint(err)
	})
	return known.ProcessID
}

// readCommitted reads a topic of committed transactions to its end, and expects
// there to be n records at least.
func readCommitted(t *testing.T, bootstrap, topic string, n int) (records []*kgo.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cl := client(t, bootstrap, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	defer cl.Close()
	for {
		quiet, cancel := context.WithTimeout(ctx, 2*time.Second)
		fetches := cl.PollFetches(quiet)
		cancel()
		if err := fetches.Err(); err != nil && quiet.Err() == nil {
			t.Fatalf("%s: after %d of %d records: %v", topic, len(records), n, err)
		}
		records = append(records, fetches.Records()...)
		if fetches.NumRecords() == 0 && len(records) >= n {
			return records
		}
		if ctx.Err() != nil {
			t.Fatalf("%s has %d of %d records", topic, len(records), n)
		}
	}
}
