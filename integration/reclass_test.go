package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// flipFor is how long classes are flipped in make test, and in make test-full,
// where SLUICE_FLIP_FOR=1h makes it an hour.
const (
	flipFor     = 2 * time.Minute
	longFlipFor = 3 * time.Minute
)

// fromEnv reads a value, or takes the default.
func fromEnv[T any](t *testing.T, name string, def T, parse func(string) (T, error)) T {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	v, err := parse(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// flipper changes the class of topics on replicas, each when it likes to, as
// an operator's file arrives on one after the other.
type flipper struct {
	t   *testing.T
	mu  sync.Mutex
	now map[*sluice]string // the class of "flip-*" topics
}

const flipRule = "  - { match: [\"flip-*\"], class: "

func (f *flipper) flip(s *sluice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := "telemetry"
	if f.now[s] == next {
		next = "control"
	}
	b, err := os.ReadFile(s.File)
	if err == nil {
		changed := strings.Replace(string(b), flipRule+f.now[s], flipRule+next, 1)
		err = os.WriteFile(s.File, []byte(changed), 0o644)
	}
	if err != nil {
		f.t.Error(err)
		return
	}
	cfg, err := config.Load(s.File)
	if err != nil {
		f.t.Error(err)
		return
	}
	if _, _, err := s.Reload(cfg); err != nil {
		f.t.Error(err)
		return
	}
	f.now[s] = next
}

// Topics change class, in both directions, while idempotent, transactional and
// plain producers have many batches in flight and consumers tail them. Two
// replicas behind a balancer see each change at another moment. A plain
// producer, which no broker fences, speaks to one replica.
func TestClassesFlipUnderLoad(t *testing.T) { flipUnderLoad(t, flipFor) }

func TestLongClassesFlipUnderLoad(t *testing.T) {
	harness.Long(t)
	flipUnderLoad(t, fromEnv(t, "SLUICE_FLIP_FOR", longFlipFor, time.ParseDuration))
}

func flipUnderLoad(t *testing.T, lasting time.Duration) {
	t.Helper()
	seed := fromEnv(t, "SLUICE_SEED", uint64(time.Now().UnixNano()), func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) })
	t.Logf("SLUICE_SEED=%d, for %v", seed, lasting)
	rnd := rand.New(rand.NewPCG(seed, 0))

	k := sharedKafka(t)
	s3 := harness.StartS3(t)
	port := harness.Ports(t, replicaPorts)
	start := func(host string) *sluice {
		return startSluice(t, replica{
			Kafka: k.Bootstrap(), Host: host, Advertise: "127.0.0.1", Port: port, Store: s3Store(s3, "flip"),
			Extra: flipRule + "control }\n",
		})
	}
	one, two := start("127.0.0.2"), start("127.0.0.3")
	harness.StartBalancer(t, "127.0.0.1", port, replicaPorts, "127.0.0.2", "127.0.0.3")
	alonePort := harness.Ports(t, replicaPorts)
	alone := startSluice(t, replica{
		Kafka: k.Bootstrap(), Host: "127.0.0.1", Port: alonePort, Store: s3Store(s3, "flip"),
		// Uploads take long, so that whoever moves has some under way.
		Extra: flipRule + "control }\nclasses:\n  telemetry: { linger: 150ms }\nlimits: { puts_per_second: 0 }\n",
	})
	balanced := "127.0.0.1:" + strconv.Itoa(port)
	f := &flipper{t: t, now: map[*sluice]string{one: "control", two: "control", alone: "control"}}

	const idempotent, transactional, plain = "flip-idempotent", "flip-transactional", "flip-plain"
	for _, topic := range []string{idempotent, transactional, plain} {
		createTopic(t, balanced, topic, 3)
	}
	brokers := bootstrapOf(k)
	// Clients that look for leaders often move often.
	restless := []kgo.Opt{kgo.MetadataMaxAge(500 * time.Millisecond), kgo.ProducerBatchMaxBytes(8 << 10)}
	h, committed := history.New(), history.New()
	l := startLoad(t, h, workload{Bootstrap: balanced, Topics: []string{idempotent}, PerSecond: 500, Opts: restless})
	end := time.Now().Add(lasting)
	var java sync.WaitGroup
	defer java.Wait()
	jvm := k.StartJVM(t)
	java.Go(func() {
		for time.Now().Before(end) && !t.Failed() {
			javaUnfenced(t, jvm, h, alone.Bootstrap, plain)
		}
	})
	transacting, endTransactions := context.WithCancel(context.Background())
	defer endTransactions()
	var transactions sync.WaitGroup
	transactions.Go(func() { transactUntil(transacting, t, committed, balanced, transactional, restless) })
	moving := kgo.MetadataMaxAge(500 * time.Millisecond)
	tails := []*follower{
		follow(t, h, "tail through two replicas", balanced, []kgo.Opt{moving}, idempotent, plain),
		follow(t, h, "tail through one replica", alone.Bootstrap, []kgo.Opt{moving}, idempotent, plain),
	}
	reader := follow(t, committed, "committed tail", balanced, []kgo.Opt{moving, kgo.FetchIsolationLevel(kgo.ReadCommitted())}, transactional)
	flips := 0
	for ; time.Now().Before(end) && !t.Failed(); flips++ {
		time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
		f.flip([]*sluice{one, two, alone}[rnd.IntN(3)])
	}
	l.stop()
	java.Wait()
	endTransactions()
	transactions.Wait()
	for _, f := range tails {
		f.toEnd(brokers, idempotent, plain)
	}
	eventually(t, "all committed records are read", func() (bool, string) {
		got, want := reader.count(transactional), committed.Acknowledged()
		return got >= want, fmt.Sprintf("%d of %d", got, want)
	})
	reader.end()
	judge(t, committed, "committed tail")
	readAll(t, h, "afterwards", balanced, brokers, idempotent, plain)
	crossed, stored := 0.0, 0.0
	for _, s := range []*sluice{one, two, alone} {
		crossed += s.metric(t, "sluice_proxy_crossed_requests_total")
		stored += s.metric(t, "sluice_diskless_stored_batches_total")
	}
	t.Logf("%d flips, %d records acknowledged, %v batches went to objects, %v requests waited for their producer's earlier ones", flips, h.Acknowledged()+committed.Acknowledged(), stored, crossed)
	if stored == 0 {
		t.Error("no batch went to an object")
	}
	if crossed == 0 {
		t.Error("no producer moved with requests under way: nothing was tried")
	}
}

// javaUnfenced writes for some seconds with a Java producer that has five
// requests in flight and no sequence numbers: it keeps sending to a partition's
// new leader while the old one owes it answers.
func javaUnfenced(t *testing.T, jvm *harness.JVM, h *history.History, bootstrap, topic string) {
	javaWrites(t, jvm, h, bootstrap, topic, "enable.idempotence=false", "acks=all", "retries=0",
		"max.in.flight.requests.per.connection=5", "metadata.max.age.ms=300", "batch.size=4096", "linger.ms=0")
}

// javaWrites writes for some seconds with a Java producer; all its records must
// be acknowledged.
func javaWrites(t *testing.T, jvm *harness.JVM, h *history.History, bootstrap, topic string, config ...string) {
	var lines strings.Builder
	var sent []*kgo.Record
	for i := range 1500 {
		r := h.Next(topic, int32(i%3), 1<<10)
		sent = append(sent, r)
		fmt.Fprintf(&lines, "%s %d _ %s %s\n", topic, r.Partition, javaText(r.Key), javaText(r.Value))
		if i%3 == 2 {
			lines.WriteString("pause 10\n")
		}
	}
	result := jvm.TryJava(lines.String(), "Client", append([]string{"produce", bootstrap}, config...)...)
	if result.Err != nil {
		t.Errorf("%v\n%s", result.Err, result.Stderr)
		return
	}
	for i, line := range strings.Split(strings.TrimSpace(result.Stdout), "\n") {
		var name string
		r := sent[i]
		if _, err := fmt.Sscan(line, &name, &r.Partition, &r.Offset); err != nil {
			t.Errorf("%q: %v", line, err)
			return
		}
		h.Acked(r, nil)
	}
}

// transactUntil commits transactions over all partitions of a topic, one after
// the other, until ctx ends.
func transactUntil(ctx context.Context, t *testing.T, h *history.History, bootstrap, topic string, opts []kgo.Opt) {
	cl := client(t, bootstrap, append([]kgo.Opt{
		kgo.TransactionalID("flip-" + t.Name()), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(5 * time.Millisecond),
	}, opts...)...)
	defer cl.Close()
	for i := 0; ctx.Err() == nil; i++ {
		if err := transactOnce(cl, h, topic); err != nil {
			t.Errorf("transaction %d: %v", i, err)
			return
		}
	}
}

func transactOnce(cl *kgo.Client, h *history.History, topic string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := cl.BeginTransaction(); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	var mu sync.Mutex
	var failed error
	var done []*kgo.Record
	for i := range 90 {
		cl.Produce(ctx, h.Next(topic, int32(i%3), 1<<10), func(r *kgo.Record, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
			}
			done = append(done, r)
		})
	}
	if err := cl.Flush(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if failed != nil {
		return fmt.Errorf("produce: %w", failed)
	}
	if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	// Committed: that is this producer's promise.
	for _, r := range done {
		h.Acked(r, nil)
	}
	return nil
}
