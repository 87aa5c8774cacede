package integration

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// everythingFor is how long make test-full lets everything happen at once;
// SLUICE_EVERYTHING_FOR=1h makes it an hour, and SLUICE_SEED repeats what happens in
// a run, though not when exactly.
const everythingFor = time.Minute

// Topics of the run: what happens to each beside what happens to all.
const (
	calmTopic    = "every-calm-telemetry"
	flipTopic    = "flip-every"              // changes class
	cutTopic     = "every-cut-telemetry"     // DeleteRecords
	shortTopic   = "every-short-telemetry"   // retention of seconds
	anewTopic    = "every-anew-telemetry"    // deleted and made anew
	uncleanTopic = "every-unclean-telemetry" // loses records when a replica that is behind leads
	txTopic      = "every-tx-telemetry"      // transactions over these two
	txControl    = "every-tx-control"
)

// everything is a run.
type everything struct {
	*testing.T
	rnd      *rand.Rand
	k        *harness.Kafka
	adm      *kadm.Client
	balanced string
	store    objstore.Store
	stores   *harness.S3Faults
	replicas [2]*child
	flipped  [2]string // the class of flipTopic
	tools    [2]*tool  // compactor and collector
	h        *history.History
	anew     *load
	anewH    *history.History

	mu    sync.Mutex
	begun time.Time
	story []string
	count map[string]int
}

// tool is a process that is killed and started again.
type tool struct {
	*harness.Process
	name    string
	start   func() *harness.Process
	stores  *harness.S3Faults
	moments [][3]string // method, part of the path, "done" or ""
}

// tell notes what happens: a failure prints it.
func (e *everything) tell(what, format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.count[what]++
	e.story = append(e.story, fmt.Sprintf("%7.2fs  %s %s", time.Since(e.begun).Seconds(), what, fmt.Sprintf(format, args...)))
}

// Everything that objects live through happens at once, to real processes that are
// killed: at the end every acknowledged and retained record is read back, the logs'
// placeholders are whole, and garbage collection has left nothing behind. It has
// found, planted: a collector that does not care where logs begin, a compactor that
// leaves batches out, and a reader that takes a batch for another of its size.
func TestLongEverything(t *testing.T) {
	harness.Long(t)
	seed := fromEnv(t, "SLUICE_SEED", uint64(time.Now().UnixNano()), parseSeed)
	lasting := fromEnv(t, "SLUICE_EVERYTHING_FOR", everythingFor, time.ParseDuration)
	t.Logf("SLUICE_SEED=%d, for %v", seed, lasting)
	e := &everything{T: t, rnd: rand.New(rand.NewPCG(seed, 0)), h: history.New(), begun: time.Now(), count: map[string]int{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("SLUICE_SEED=%d; what happened:\n%s", seed, strings.Join(e.story, "\n"))
		}
	})
	e.k = harness.StartKafka(t, harness.KafkaOptions{Properties: map[string]string{
		"log.retention.check.interval.ms": "1000", "log.initial.task.delay.ms": "1000",
	}})
	e.adm = kadm.NewClient(client(t, bootstrapOf(e.k)))
	s3 := harness.StartS3(t)
	var err error
	if e.store, err = objstore.OpenS3(objstore.S3Options{Endpoint: s3.Endpoint, Region: s3.Region, Bucket: s3.Bucket, Prefix: "every", AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, PathStyle: true, MaxConnections: 16}); err != nil {
		t.Fatal(err)
	}
	// Behind faults of their own: what is killed at one's request is that one.
	through := func() (*harness.S3Faults, string) {
		f := harness.StartS3Faults(t, s3)
		one := *s3
		one.Endpoint = f.Endpoint
		return f, s3Store(&one, "every")
	}
	var yaml string
	e.stores, yaml = through()
	port := harness.Ports(t, replicaPorts)
	extra := func(compacts bool) string {
		return fmt.Sprintf("%scontrol }\ngc: { enabled: false }\ncompaction: { enabled: %v, window: 5s, merge: 20s, min_age: 5s, memory_bytes: 16MiB }\n"+
			"limits: { put_timeout: 2s, memory_bytes: 512MiB }\nclasses:\n  telemetry: { linger: 250ms, object_size: 1MiB, store: default }\n", flipRule, compacts)
	}
	for i, host := range []string{"127.0.0.2", "127.0.0.3"} {
		e.replicas[i] = serve(t, replica{Kafka: e.k.Bootstrap(), Host: host, Advertise: "127.0.0.1", Port: port, Store: yaml, Extra: extra(i == 1)})
		e.flipped[i] = "control"
	}
	harness.StartBalancer(t, "127.0.0.1", port, replicaPorts, "127.0.0.2", "127.0.0.3")
	e.balanced = "127.0.0.1:" + strconv.Itoa(port)
	e.makeTopics()

	logs := t.TempDir()
	compactorStores, compactorYAML := through()
	compactorFile := replica{Kafka: e.k.Bootstrap(), Store: compactorYAML, Extra: extra(true)}.withDefaults(t).write(t)
	collectorStores, collectorYAML := through()
	collectorFile := replica{Kafka: e.k.Bootstrap(), Store: collectorYAML}.withDefaults(t).write(t)
	passes := filepath.Join(logs, "collector.log")
	e.tools[0] = &tool{
		name: "compactor", stores: compactorStores, start: func() *harness.Process { return harness.StartSluice(t, "compact", "-c", compactorFile).Process },
		moments: [][3]string{{"PUT", "/segments/data/"}, {"PUT", "/segments/data/", "done"}, {"PUT", "/segments/windows/"}, {"PUT", "/segments/windows/", "done"}, {"GET", "/wal/"}, {"GET", "/segments/data/"}, {"PUT", "/segments/windows/2/", "done"}},
	}
	e.tools[1] = &tool{
		name: "collector", stores: collectorStores, start: func() *harness.Process { return startCollector(t, collectorFile, passes) },
		moments: [][3]string{{"PUT", "/gc/state"}, {"PUT", "/gc/state", "done"}, {"DELETE", "/wal/"}, {"DELETE", "/wal/", "done"}, {"DELETE", "/segments/"}},
	}
	for _, p := range e.tools {
		p.Process = p.start()
	}

	topics := []string{calmTopic, flipTopic, cutTopic, shortTopic}
	opts := []kgo.Opt{kgo.MetadataMaxAge(time.Second), kgo.ProduceRequestTimeout(6 * time.Second), kgo.UnknownTopicRetries(-1)}
	l := startLoad(t, e.h, workload{Bootstrap: e.balanced, Topics: topics, PerSecond: 240, Opts: opts})
	unclean := history.New()
	lossy := startLoad(t, unclean, workload{Bootstrap: e.balanced, Topics: []string{uncleanTopic}, Partitions: 1, PerSecond: 40, Opts: opts})
	e.startAnew()
	x := &transactions{everything: e, made: map[string]*transaction{}, opts: opts}
	transacting, endTransactions := context.WithCancel(context.Background())
	defer endTransactions()
	var working sync.WaitGroup
	working.Go(func() { x.run(transacting, rand.New(rand.NewPCG(seed, 1))) })
	happening, calm := context.WithCancel(context.Background())
	defer calm()
	working.Go(func() { e.harmStores(happening, rand.New(rand.NewPCG(seed, 2))) })

	end := time.Now().Add(lasting)
	e.happen(end)

	calm()
	endTransactions()
	working.Wait()
	e.tell("calm", "")
	e.stores.Set(harness.S3Fault{})
	l.stop()
	e.anew.stop()
	lossy.cancel()
	lossy.wg.Wait()
	for topic, waited := range l.slow {
		// What the collector is told is no more than what it is to hold by.
		if waited > collectorTiming.Margin*3/4 {
			t.Errorf("%s waited %v for an acknowledgement, which is too near to the collector's margin: this run proves nothing", topic, waited)
		}
	}
	all := append(slices.Clone(topics), anewTopic, uncleanTopic, txTopic, txControl)
	e.alter(shortTopic, "retention.ms", "-1")
	time.Sleep(3 * time.Second) // a retention that is under way
	e.readsBack("under way", e.balanced, unclean, x, all)

	// The last compaction and collection, by processes that nobody disturbs.
	e.settle()
	e.merged()
	cold := replica{Kafka: e.k.Bootstrap(), Store: s3Store(s3, "every"), Extra: "gc: { enabled: false }\ncompaction: { window: 5s, min_age: 5s }\nlimits: { cache_bytes: 16MiB }\n"}
	e.readsBack("cold", startSluice(t, cold).Bootstrap, unclean, x, all)
	cached := cold
	cached.Extra = "gc: { enabled: false }\ncompaction: { window: 5s, min_age: 5s }\n" + fmt.Sprintf("disk_cache: { path: %q, bytes: 128MiB }\n", t.TempDir())
	warm := startSluice(t, cached).Bootstrap
	for _, name := range []string{"cached", "cached again"} {
		e.readsBack(name, warm, unclean, x, all)
	}
	report := fsckOf(t, 0, "-c", collectorFile, "--orphans", "--rate", "0", "--fetches", "0")
	t.Logf("fsck: %+v, %+v", report.Counts, report.Stores)
	e.nothingIsLeft(report.Stores[0].UnnamedSegments)
	t.Logf("%d records and %d transactions acknowledged; %v", e.h.Acknowledged()+unclean.Acknowledged()+e.anewH.Acknowledged(), len(x.made), e.count)
	for _, what := range []string{"a broker dies", "an unclean election", "a replica dies", "the compactor dies", "the collector dies", "a class changes", "records are deleted", "a topic is made anew", "the store"} {
		if e.count[what] == 0 {
			t.Errorf("%s: it has not happened", what)
		}
	}
}

func (e *everything) makeTopics() {
	e.Helper()
	for _, topic := range []string{calmTopic, flipTopic, cutTopic, txTopic, txControl} {
		createTopic(e, e.balanced, topic, 3, "retention.ms", "-1")
	}
	createTopic(e, e.balanced, shortTopic, 3, "retention.ms", "15000", "segment.ms", "5000")
	e.makeUnclean()
}

func (e *everything) makeUnclean() {
	e.Helper()
	req := kmsg.NewPtrCreateTopicsRequest()
	made := kmsg.NewCreateTopicsRequestTopic()
	made.Topic, made.NumPartitions, made.ReplicationFactor = uncleanTopic, -1, -1
	assigned := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
	assigned.Replicas = []int32{1, 2}
	made.ReplicaAssignment = append(made.ReplicaAssignment, assigned)
	for key, value := range map[string]string{"unclean.leader.election.enable": "true", "min.insync.replicas": "1", "retention.ms": "-1"} {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = key, &value
		made.Configs = append(made.Configs, c)
	}
	req.Topics = append(req.Topics, made)
	resp, err := req.RequestWith(e.Context(), client(e, bootstrapOf(e.k)))
	if err != nil || resp.Topics[0].ErrorCode != 0 {
		e.Fatal(err, resp)
	}
}

func (e *everything) alter(topic, key, value string) {
	e.Helper()
	if _, err := e.adm.AlterTopicConfigs(e.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: key, Value: &value}}, topic); err != nil {
		e.Fatal(err)
	}
}

func (e *everything) startAnew() {
	e.Helper()
	createTopic(e, e.balanced, anewTopic, 3, "retention.ms", "-1")
	e.anewH = history.New()
	e.anew = startLoad(e, e.anewH, workload{Bootstrap: e.balanced, Topics: []string{anewTopic}, PerSecond: 60, Opts: []kgo.Opt{kgo.ProduceRequestTimeout(6 * time.Second), kgo.UnknownTopicRetries(-1)}})
}

// happen has one thing happen after the other. Each kind comes once before any
// comes again.
func (e *everything) happen(end time.Time) {
	kinds := []func(){e.brokerDies, e.uncleanElection, e.replicaDies, func() { e.toolDies(e.tools[0]) }, func() { e.toolDies(e.tools[1]) }, e.classChanges, e.recordsGo, e.topicAnew}
	for round := 0; !e.Failed(); round++ {
		e.rnd.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		for _, kind := range kinds {
			if round > 0 && time.Now().After(end) || e.Failed() {
				return
			}
			kind()
			for range e.rnd.IntN(3) { // more of what takes no time
				kinds := []func(){e.classChanges, e.recordsGo, func() { e.toolDies(e.tools[e.rnd.IntN(2)]) }}
				kinds[e.rnd.IntN(len(kinds))]()
			}
			time.Sleep(time.Duration(e.rnd.IntN(1500)) * time.Millisecond)
		}
	}
}

// inSync waits until every replica of every topic is: the next broker that dies
// shall not take the last one with it.
func (e *everything) inSync() {
	e.Helper()
	eventually(e, "all replicas are in sync", func() (bool, string) {
		topics, err := e.adm.ListTopicsWithInternal(e.Context())
		if err != nil {
			return false, err.Error()
		}
		for _, topic := range topics {
			for _, p := range topic.Partitions {
				if p.Leader < 0 || len(p.ISR) < len(p.Replicas) {
					return false, fmt.Sprintf("%s-%d: leader %d, %v of %v", topic.Topic, p.Partition, p.Leader, p.ISR, p.Replicas)
				}
			}
		}
		return true, ""
	})
}

func (e *everything) brokerDies() {
	id := int32(1 + e.rnd.IntN(3))
	e.tell("a broker dies", "%d", id)
	if e.rnd.IntN(3) == 0 {
		e.k.Stop(e, id)
	} else {
		e.k.Kill(e, id)
	}
	time.Sleep(time.Duration(e.rnd.IntN(5000)) * time.Millisecond)
	e.k.Start(e, id)
	e.inSync()
}

func (e *everything) leader(topic string) (leader int32, isr []int32) {
	topics, err := e.adm.ListTopics(e.Context(), topic)
	if err != nil || topics[topic].Err != nil || len(topics[topic].Partitions) == 0 {
		return -1, nil
	}
	p := topics[topic].Partitions[0]
	return p.Leader, p.ISR
}

// uncleanElection lets a replica lead that has missed what the other has.
func (e *everything) uncleanElection() {
	leader, _ := e.leader(uncleanTopic)
	if leader < 1 {
		return
	}
	other := 3 - leader
	e.tell("an unclean election", "from %d to %d", leader, other)
	e.k.Kill(e, other)
	eventually(e, "a replica is out of sync", func() (bool, string) {
		_, isr := e.leader(uncleanTopic)
		return slices.Equal(isr, []int32{leader}), fmt.Sprint(isr)
	})
	time.Sleep(time.Second) // what will be lost
	before, err := e.adm.ListEndOffsets(e.Context(), uncleanTopic)
	if err != nil {
		e.Fatal(err)
	}
	e.k.Kill(e, leader)
	e.k.Start(e, other)
	eventually(e, "the other leads", func() (bool, string) {
		is, isr := e.leader(uncleanTopic)
		return is == other, fmt.Sprint(is, isr)
	})
	e.k.Start(e, leader)
	e.inSync()
	was, _ := before.Lookup(uncleanTopic, 0)
	e.tell("the other leads", "the end was %d", was.Offset)
}

func (e *everything) replicaDies() {
	i := e.rnd.IntN(2)
	e.tell("a replica dies", "%d", i)
	e.replicas[i].Kill()
	time.Sleep(time.Duration(e.rnd.IntN(2000)) * time.Millisecond)
	// It starts whatever its store does, but is ready when it has seen it.
	e.replicas[i] = serveFile(e, e.replicas[i].File, e.replicas[i].Admin)
}

// toolDies kills a tool now, or in the middle of a request.
func (e *everything) toolDies(p *tool) {
	what := "the " + p.name + " dies"
	if ended, _ := p.Ended(); ended { // it may when it cannot begin
		e.tell("the "+p.name+" had ended", "")
		p.Process = p.start()
	}
	if at := e.rnd.IntN(len(p.moments) + 1); at < len(p.moments) {
		m := p.moments[at]
		died := make(chan struct{})
		p.stores.Once(m[0], m[1], m[2] != "", func() { p.Kill(); close(died) })
		select {
		case <-died:
			e.tell(what, "at %q", m)
		case <-time.After(8 * time.Second):
			if !p.stores.Forget() {
				<-died
			}
			p.Kill()
			e.tell(what, "it did not come to %q", m)
		}
	} else {
		p.Kill()
		e.tell(what, "at once")
	}
	p.Process = p.start()
}

func (e *everything) classChanges() {
	i := e.rnd.IntN(2)
	next := map[string]string{"control": "telemetry", "telemetry": "control"}[e.flipped[i]]
	b, err := os.ReadFile(e.replicas[i].File)
	if err == nil {
		err = os.WriteFile(e.replicas[i].File, []byte(strings.Replace(string(b), flipRule+e.flipped[i], flipRule+next, 1)), 0o644)
	}
	if err == nil {
		err = e.replicas[i].Signal(syscall.SIGHUP)
	}
	if err != nil {
		e.Fatal(err)
	}
	e.flipped[i] = next
	e.tell("a class changes", "replica %d: %s", i, next)
}

func (e *everything) recordsGo() {
	starts, err := e.adm.ListStartOffsets(e.Context(), cutTopic)
	ends, err2 := e.adm.ListCommittedOffsets(e.Context(), cutTopic)
	p := int32(e.rnd.IntN(3))
	share := e.rnd.Float64()
	if err != nil || err2 != nil || starts.Error() != nil || ends.Error() != nil {
		return
	}
	start, _ := starts.Lookup(cutTopic, p)
	end, _ := ends.Lookup(cutTopic, p)
	e.cut(cutTopic, p, start.Offset+int64(share*float64(end.Offset-start.Offset)))
}

func (e *everything) cut(topic string, partition int32, at int64) {
	var to kadm.Offsets
	to.Add(kadm.Offset{Topic: topic, Partition: partition, At: at})
	got, err := e.adm.DeleteRecords(e.Context(), to)
	if err == nil {
		err = got.Error()
	}
	e.tell("records are deleted", "%s-%d before %d: %v", topic, partition, at, err)
}

func (e *everything) topicAnew() {
	e.anew.stop()
	e.tell("a topic is made anew", "after %d records", e.anewH.Acknowledged())
	if _, err := e.adm.DeleteTopic(e.Context(), anewTopic); err != nil {
		e.Fatal(err)
	}
	eventually(e, "the topic is gone from all brokers", func() (bool, string) {
		for _, id := range e.k.Nodes() {
			cl := client(e, e.k.BrokerAddr(id))
			all, err := kadm.NewClient(cl).ListTopics(e.Context())
			cl.Close()
			if err != nil || all.Has(anewTopic) {
				return false, fmt.Sprint(id, err)
			}
		}
		return true, ""
	})
	e.startAnew()
}

// harmStores lets the store be slow, refuse, lose answers and tear them, now and
// then, for whoever asks it.
func (e *everything) harmStores(ctx context.Context, rnd *rand.Rand) {
	faults := map[string]harness.S3Fault{
		"refuses":          {Status: 503, Code: "SlowDown"},
		"refuses a third":  {Share: 0.33, Status: 503, Code: "SlowDown"},
		"is slow":          {Delay: 500 * time.Millisecond, Share: 0.5},
		"is very slow":     {Methods: "PUT", Delay: 3 * time.Second},
		"hangs":            {Hang: true},
		"hangs for some":   {Hang: true, Share: 0.1},
		"loses answers":    {Methods: "PUT DELETE", Share: 0.5, Lost: true},
		"cuts PUTs":        {Methods: "PUT", Share: 0.5, Cut: true},
		"tears answers":    {Methods: "GET", Share: 0.5, Torn: true},
		"tears all answer": {Methods: "GET", Torn: true},
	}
	names := make([]string, 0, len(faults))
	for name := range faults {
		names = append(names, name)
	}
	slices.Sort(names)
	pause := func(at time.Duration) bool {
		select {
		case <-time.After(at):
			return true
		case <-ctx.Done():
			return false
		}
	}
	whose := map[string]*harness.S3Faults{"replicas": e.stores, "compactor": e.tools[0].stores, "collector": e.tools[1].stores}
	for pause(time.Duration(rnd.IntN(3000)) * time.Millisecond) {
		name := names[rnd.IntN(len(names))]
		who := []string{"replicas", "compactor", "collector"}[rnd.IntN(3)]
		e.tell("the store", "%s, for the %s", name, who)
		whose[who].Set(faults[name])
		pause(time.Duration(1000+rnd.IntN(3000)) * time.Millisecond)
		whose[who].Set(harness.S3Fault{})
		e.tell("the store is well", "")
	}
}

// transaction is what a producer was told of one.
type transaction struct {
	records map[string][]byte // by key
	acked   map[string]bool
	outcome string // "committed", "aborted", or "" when nobody knows
}

// transactions are those of one producer, over both tiers.
type transactions struct {
	*everything
	opts []kgo.Opt
	made map[string]*transaction
}

func (x *transactions) run(ctx context.Context, rnd *rand.Rand) {
	var cl *kgo.Client
	renew := func() {
		if cl != nil {
			cl.Close()
		}
		cl = client(x, x.balanced, append([]kgo.Opt{
			kgo.TransactionalID("every"), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(5 * time.Millisecond),
			kgo.TransactionTimeout(30 * time.Second), kgo.RecordRetries(1 << 30),
		}, x.opts...)...)
	}
	renew()
	defer func() { cl.Close() }()
	// The last one is committed: nothing stays open.
	for n, last := 0, false; !last; n++ {
		over := ctx.Err() != nil
		tx, err := x.one(cl, rnd, n, over)
		if err != nil {
			x.tell("a transaction broke", "%d: %v", n, err)
			time.Sleep(200 * time.Millisecond)
			renew()
			if n > 10_000 {
				x.Error("transactions never get on: ", err)
				return
			}
		}
		last = over && tx.outcome == "committed"
	}
}

func (x *transactions) one(cl *kgo.Client, rnd *rand.Rand, n int, commit bool) (*transaction, error) {
	tx := &transaction{records: map[string][]byte{}, acked: map[string]bool{}}
	x.made[strconv.Itoa(n)] = tx
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := cl.BeginTransaction(); err != nil {
		return tx, err
	}
	var mu sync.Mutex
	var failed error
	for i := range 12 + rnd.IntN(60) {
		key := fmt.Sprintf("%d/%03d", n, i)
		tx.records[key] = compactedValue(uint64(n)<<16 | uint64(i))[:64+rnd.IntN(900)]
		r := &kgo.Record{Topic: []string{txTopic, txControl}[i/3%2], Partition: int32(i % 3), Key: []byte(key), Value: tx.records[key]}
		cl.Produce(ctx, r, func(r *kgo.Record, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			tx.acked[string(r.Key)] = true
		})
	}
	err := cl.Flush(ctx)
	mu.Lock()
	defer mu.Unlock()
	if err == nil {
		err = failed
	}
	if err != nil {
		return tx, fmt.Errorf("%d of %d records are acknowledged: %w", len(tx.acked), len(tx.records), err)
	}
	how := commit || rnd.IntN(3) > 0
	if err := cl.EndTransaction(ctx, kgo.TransactionEndTry(how)); err != nil {
		return tx, err
	}
	tx.outcome = map[bool]string{true: "committed", false: "aborted"}[how]
	return tx, nil
}

// check holds what was read against what was told.
func (x *transactions) check(name string, committed bool, read map[history.Place][]*kgo.Record) {
	x.Helper()
	seen := map[string]map[string]bool{}
	for place, records := range read {
		lastTx, lastRecord := -1, -1
		for _, r := range records {
			number, _, _ := strings.Cut(string(r.Key), "/")
			tx := x.made[number]
			if tx == nil || string(tx.records[string(r.Key)]) != string(r.Value) {
				x.Errorf("%s: %v at %d: %q is not what was sent", name, place, r.Offset, r.Key)
				continue
			}
			if seen[number] == nil {
				seen[number] = map[string]bool{}
			}
			if seen[number][string(r.Key)] {
				x.Errorf("%s: %v at %d: %q is there twice", name, place, r.Offset, r.Key)
			}
			seen[number][string(r.Key)] = true
			var t, i int
			_, _ = fmt.Sscanf(string(r.Key), "%d/%d", &t, &i)
			if t < lastTx || t == lastTx && i < lastRecord {
				x.Errorf("%s: %v at %d: %q stands behind %d/%d", name, place, r.Offset, r.Key, lastTx, lastRecord)
			}
			lastTx, lastRecord = t, i
		}
	}
	for number, tx := range x.made {
		got := len(seen[number])
		switch {
		case !committed:
			for key := range tx.acked {
				if !seen[number][key] {
					x.Errorf("%s: %s was acknowledged, and is not there", name, key)
				}
			}
		case tx.outcome == "committed" && got != len(tx.records), tx.outcome == "aborted" && got > 0, got > 0 && got < len(tx.records):
			x.Errorf("%s: transaction %s, outcome %q: %d of %d records are there", name, number, tx.outcome, got, len(tx.records))
		}
	}
}

// bounds are where a topic's logs begin and end, by the brokers.
func (e *everything) bounds(topic string) (starts, ends map[history.Place]int64) {
	e.Helper()
	s, err := e.adm.ListStartOffsets(e.Context(), topic)
	if err == nil {
		err = s.Error()
	}
	if err != nil {
		e.Fatal(err)
	}
	return placed(s), endOffsets(e, bootstrapOf(e.k), topic)
}

// readsBack reads everything twice, with and without what was not committed, and
// judges it.
func (e *everything) readsBack(name, bootstrap string, unclean *history.History, x *transactions, topics []string) {
	e.Helper()
	for _, isolation := range []kgo.IsolationLevel{kgo.ReadUncommitted(), kgo.ReadCommitted()} {
		committed := isolation == kgo.ReadCommitted()
		name := fmt.Sprintf("%s, committed %v", name, committed)
		transacted := map[history.Place][]*kgo.Record{}
		for _, topic := range topics {
			starts, ends := e.bounds(topic)
			read := e.readLogs(name, bootstrap, isolation, topic, starts, ends, committed && strings.Contains(topic, "-tx-"))
			h := map[string]*history.History{anewTopic: e.anewH, uncleanTopic: unclean}[topic]
			if h == nil {
				h = e.h
			}
			reader := name + " " + topic
			for place, records := range read {
				if topic == txTopic || topic == txControl {
					transacted[place] = records
				} else {
					h.Read(reader, records...)
				}
			}
			if topic == txTopic || topic == txControl {
				continue
			}
			shown := 0
			for _, v := range h.Check(reader) {
				if v.Place.Topic != topic || v.Kind == history.Lost && v.Offset < starts[v.Place] && starts[v.Place] > 0 ||
					topic == uncleanTopic && v.Kind != history.Foreign {
					continue // Kafka itself has it no more, or another at its place
				}
				if shown++; shown <= 10 {
					e.Error(v)
				}
			}
		}
		x.check(name, committed, transacted)
	}
}

// readLogs reads logs from start to end. Without gaps: whatever is in the log is
// given.
func (e *everything) readLogs(name, bootstrap string, isolation kgo.IsolationLevel, topic string, starts, ends map[history.Place]int64, gaps bool) map[history.Place][]*kgo.Record {
	e.Helper()
	at := map[string]map[int32]kgo.Offset{topic: {}}
	next := map[history.Place]int64{}
	for place, start := range starts {
		if next[place] = start; start < ends[place] {
			at[topic][place.Partition] = kgo.NewOffset().At(start)
		}
	}
	read := map[history.Place][]*kgo.Record{}
	if len(at[topic]) == 0 {
		return read
	}
	cl := client(e, bootstrap, kgo.ConsumePartitions(at), kgo.FetchIsolationLevel(isolation), kgo.KeepControlRecords(), kgo.FetchMaxWait(250*time.Millisecond))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(e.Context(), 2*patience)
	defer cancel()
	for {
		done := true
		for place, end := range ends {
			done = done && next[place] >= end
		}
		if done {
			return read
		}
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			e.Fatalf("%s reads %s, from %v to %v, and is at %v: %v", name, topic, starts, ends, next, err)
		}
		for _, r := range fetches.Records() {
			place := history.Place{Topic: r.Topic, Partition: r.Partition}
			if r.Offset != next[place] && !gaps {
				e.Errorf("%s: %v: offset %d came when %d was due", name, place, r.Offset, next[place])
			}
			next[place] = r.Offset + 1
			if !r.Attrs.IsControl() && r.Offset < ends[place] {
				read[place] = append(read[place], r)
			}
		}
	}
}

// keys lists a part of the store.
func (e *everything) keys(prefix string) (n int) {
	e.Helper()
	if err := e.store.List(e.Context(), prefix, "", func(objstore.Info) error { n++; return nil }); err != nil {
		e.Fatal(err)
	}
	return n
}

// settle lets compaction and collection finish: each WAL object is then covered,
// or dead, and gone.
func (e *everything) settle() {
	e.Helper()
	for _, p := range e.tools {
		p.stores.Set(harness.S3Fault{})
		if ended, _ := p.Ended(); ended {
			p.Process = p.start()
		}
	}
	e.settleStore()
}

func (e *everything) settleStore() {
	e.Helper()
	deadline := time.Now().Add(4 * patience)
	for n := e.keys(diskless.WALPrefix); n > 0; n = e.keys(diskless.WALPrefix) {
		if time.Now().After(deadline) {
			e.Fatalf("%d WAL objects are left by compaction and collection", n)
		}
		time.Sleep(time.Second)
	}
	e.tell("settled", "%d segments, %d windows", e.keys(segment.DataPrefix), e.keys(segment.WindowsPrefix))
}

// merged wants windows of level 2, and of level 1 not many more than were not merged.
func (e *everything) merged() {
	e.Helper()
	deadline := time.Now().Add(patience)
	for {
		one, two := e.keys(segment.LevelPrefix(segment.Level1)), e.keys(segment.LevelPrefix(segment.Level2))
		if two > 0 && one < 2*two {
			e.tell("merged", "%d windows of level 1, %d of level 2", one, two)
			return
		}
		if time.Now().After(deadline) {
			e.Errorf("%d windows of level 1 are left beside %d of level 2", one, two)
			return
		}
		time.Sleep(time.Second)
	}
}

// nothingIsLeft deletes all records, and waits for their objects to go too. What
// killed compactors have left is collected much later.
func (e *everything) nothingIsLeft(unnamed int64) {
	e.Helper()
	for _, topic := range []string{calmTopic, flipTopic, cutTopic, shortTopic, anewTopic, uncleanTopic, txTopic, txControl} {
		_, ends := e.bounds(topic)
		for place, end := range ends {
			e.cut(topic, place.Partition, end)
		}
	}
	if most := 20 * int64(e.count["the compactor dies"]+e.count["a replica dies"]); unnamed > most {
		e.Errorf("%d segments that no manifest names, after so many kills that %d are the most", unnamed, most)
	}
	deadline := time.Now().Add(2*collectorTiming.Margin + patience)
	for {
		data, windows := int64(e.keys(segment.DataPrefix)), e.keys(segment.WindowsPrefix)
		if data == unnamed && windows == 0 {
			return
		}
		if time.Now().After(deadline) {
			e.Errorf("%d segments and %d windows are left of logs that hold nothing; %d segments are named nowhere", data, windows, unnamed)
			return
		}
		time.Sleep(time.Second)
	}
}

// A replica that has missed what was acknowledged becomes the leader: what Kafka
// has lost then is lost, and all that it has is read, the same by whoever had the
// other history in its caches, also after compaction and when the truncated
// batches' objects are gone.
func TestLongUncleanElectionLosesNoMoreThanKafka(t *testing.T) {
	harness.Long(t)
	e := &everything{T: t, h: history.New(), begun: time.Now(), count: map[string]int{}}
	e.k = harness.StartKafka(t, harness.KafkaOptions{})
	e.adm = kadm.NewClient(client(t, bootstrapOf(e.k)))
	store, yaml := onDisk(t)
	e.store = store
	extra := "gc: { enabled: false }\ncompaction: { window: 1s, min_age: 2s }\n"
	s := startSluice(t, replica{Kafka: e.k.Bootstrap(), Store: yaml, Extra: extra})
	e.balanced = s.Bootstrap
	e.makeUnclean()
	l := startLoad(t, e.h, workload{Bootstrap: s.Bootstrap, Topics: []string{uncleanTopic}, Partitions: 1, PerSecond: 100, Opts: []kgo.Opt{kgo.UnknownTopicRetries(-1)}})
	tail := follow(t, history.New(), "tail", s.Bootstrap, nil, uncleanTopic)
	l.awaitMore(100, uncleanTopic)
	e.uncleanElection()
	l.awaitMore(100, uncleanTopic)
	l.cancel()
	l.wg.Wait()
	tail.end()
	x := &transactions{everything: e}
	e.readsBack("through the same replica", s.Bootstrap, e.h, x, []string{uncleanTopic})
	starts, ends := e.bounds(uncleanTopic)
	lost := 0
	read := map[string]bool{}
	for _, r := range e.readLogs("all", s.Bootstrap, kgo.ReadUncommitted(), uncleanTopic, starts, ends, false)[history.Place{Topic: uncleanTopic}] {
		read[string(r.Key)] = true
	}
	for n := range e.h.Sent() {
		if !read[string(binary.BigEndian.AppendUint64(nil, uint64(n)))] {
			lost++
		}
	}
	if lost == 0 {
		t.Error("nothing was lost: the election was a clean one")
	}
	startCollector(t, replica{Kafka: e.k.Bootstrap(), Store: yaml}.withDefaults(t).write(t), filepath.Join(t.TempDir(), "collector.log"))
	e.settleStore()
	e.readsBack("cold", startSluice(t, replica{Kafka: e.k.Bootstrap(), Store: yaml, Extra: extra}).Bootstrap, e.h, x, []string{uncleanTopic})
	fsckOf(t, 0, "-c", s.File)
	t.Logf("%d of %d records were lost by Kafka", lost, e.h.Sent())
}
