package integration

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/harness"
)

// A scenario is a function of a target: the same steps and the same
// expectations, whether clients speak to the brokers or to sluice, and whatever
// tier the topics are in. What must be the same is compared by the scenario;
// what is only true of one target hangs on its fields.

// target is one way to reach and to store topics.
type target struct {
	name      string
	bootstrap string
	sluice    *sluice // nil: straight to the brokers
	diskless  bool    // batches of its topics go to objects, at least in some turns
	mixed     bool    // its topics change class from turn to turn
}

// topic gives a name that the rules place in the target's class.
func (tg target) topic(name string) string { return name + "-" + tg.name }

// create makes a topic, whose records never expire, and waits until sluice knows
// it: the first batches of a topic whose configuration cannot be read yet go
// inline.
func (tg target) create(t testing.TB, topic string, partitions int32, configs ...string) {
	t.Helper()
	// Tests write records of a fixed time, long ago.
	createTopic(t, tg.bootstrap, topic, partitions, append([]string{"retention.ms", "-1"}, configs...)...)
	if tg.sluice == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for !tg.sluice.Cluster().Facts(ctx, topic).Known {
		if ctx.Err() != nil {
			t.Fatalf("sluice does not know %s", topic)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// disklessIn reports whether a turn's batches are in the diskless class.
func (tg target) disklessIn(turn int) bool { return tg.diskless && (!tg.mixed || turn/2%2 == 1) }

// turn begins a scenario's next portion of data. It flips the class of a mixed
// target's topics, under the clients' feet.
func (tg target) turn(t testing.TB, turn int) {
	t.Helper()
	if tg.mixed {
		class := "control"
		if tg.disklessIn(turn) {
			class = "telemetry"
		}
		parts.reclass(t, class)
	}
}

// parts are what correctness tests share: one replica on an S3 server, with a
// sniffer between it and all clients, and one JVM.
var parts sharedParts

type sharedParts struct {
	once    sync.Once
	kafka   *harness.Kafka
	sluice  *sluice
	s3      *harness.S3
	sniffer *sniffer
	jvm     *harness.JVM
	class   string // of mixed topics now
}

const (
	clientSide = "127.0.0.1" // where clients are sent
	sluiceSide = "127.0.0.2"
	mixedRule  = "  - { match: [\"*mixed*\"], class: "
)

// shared starts the shared parts once. What the sniffer holds against sluice
// fails the test that runs.
func shared(t *testing.T) *sharedParts {
	t.Helper()
	k := sharedKafka(t)
	parts.once.Do(func() {
		tb := cluster.tb
		port := harness.Ports(tb, replicaPorts)
		s3 := harness.StartS3(tb)
		s := startSluice(tb, replica{
			Kafka: k.Bootstrap(), Host: sluiceSide, Advertise: clientSide, Port: port,
			Store: s3Store(s3, "shared"), Extra: mixedRule + "control }\nquotas: { refresh: 1s }\n",
		})
		s.Bootstrap = clientSide + ":" + strconv.Itoa(port)
		parts.kafka, parts.sluice, parts.s3, parts.class = k, s, s3, "control"
		parts.sniffer = startSniffer(tb, clientSide, sluiceSide, port)
		parts.jvm = k.StartJVM(tb)
	})
	if parts.jvm == nil {
		t.Fatal("the shared parts did not start; see above")
	}
	t.Cleanup(func() { parts.sniffer.verify(t) })
	return &parts
}

// reclass gives mixed topics another class, as an operator does: in the file.
func (p *sharedParts) reclass(t testing.TB, class string) {
	t.Helper()
	if class == p.class {
		return
	}
	b, err := os.ReadFile(p.sluice.File)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(b), mixedRule+p.class, mixedRule+class, 1)
	if err := os.WriteFile(p.sluice.File, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(p.sluice.File)
	if err != nil {
		t.Fatal(err)
	}
	applied, _, err := p.sluice.Reload(cfg)
	if err != nil || len(applied) == 0 {
		t.Fatalf("reload applied %v: %v", applied, err)
	}
	p.class = class
}

// fill writes records in three turns, and returns them.
func (tg target) fill(t *testing.T, codec, topic string, partitions, total int) []*kgo.Record {
	t.Helper()
	produce := franz{}.producer(t, tg.bootstrap, codec)
	all := filled(topic, partitions, total)
	for turn := range 3 {
		tg.turn(t, turn)
		produce(all[turn*total/3 : (turn+1)*total/3])
	}
	return all
}

// targets are all that a scenario runs against. The first is the measure.
func (p *sharedParts) targets() []target {
	b := p.sluice.Bootstrap
	return []target{
		{name: "direct", bootstrap: bootstrapOf(p.kafka)},
		{name: "control", bootstrap: b, sluice: p.sluice},
		{name: "telemetry", bootstrap: b, sluice: p.sluice, diskless: true},
		{name: "mixed", bootstrap: b, sluice: p.sluice, diskless: true, mixed: true},
	}
}

// onAllTargets runs a scenario against each target.
func onAllTargets(t *testing.T, scenario func(t *testing.T, tg target)) {
	for _, tg := range shared(t).targets() {
		t.Run(tg.name, func(t *testing.T) { scenario(t, tg) })
	}
}
