package integration

import (
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// An idempotent producer's promise, through what a proxy can be met by: its own
// death and a broker's.
func TestAcknowledgedOnceInOrderThroughKills(t *testing.T) {
	own := 2
	if harness.OtherKafka() {
		own = 0 // it is the same, whoever the brokers are
	}
	onceInOrderThrough(t, own, func(k *harness.Kafka, more func()) {
		k.Kill(t, 1)
		more()
		k.Start(t, 1)
		more()
	})
}

// Worse than dead is a broker in a coma: its connections stay open and nothing
// answers.
func TestLongAcknowledgedOnceInOrderThroughAComa(t *testing.T) {
	harness.Long(t)
	onceInOrderThrough(t, 2, func(k *harness.Kafka, more func()) {
		for _, node := range []int32{1, 2} {
			k.Freeze(t, node)
			more()
			k.Thaw(t, node)
			more()
		}
	})
}

// onceInOrderThrough puts both tiers under load, and has something happen to
// the brokers, and then kills sluice so many times.
func onceInOrderThrough(t *testing.T, own int, happens func(k *harness.Kafka, more func())) {
	t.Helper()
	k := harness.StartKafka(t, harness.KafkaOptions{})
	r := replica{Kafka: k.Bootstrap(), Store: s3Store(harness.StartS3(t), "kills")}.withDefaults(t)
	s := serve(t, r)
	topics := []string{"kills-control", "kills-telemetry"}
	for _, topic := range topics {
		createTopic(t, r.bootstrap(), topic, 3)
	}
	h := history.New()
	l := startLoad(t, h, workload{Bootstrap: r.bootstrap(), Topics: topics})
	live := follow(t, h, "live", r.bootstrap(), nil, topics...)
	l.awaitMore(200, topics...)

	happens(k, func() { l.awaitMore(200, topics...) })
	// What was under way was sent again, and was stored already.
	reused := scrape(t, s.Admin, "sluice_diskless_reused_bytes_total")
	t.Logf("%.0f bytes were sent again and not uploaded again", reused)
	if reused == 0 {
		t.Error("no batch that was sent again was known to be stored")
	}

	for range own {
		s.Kill()
		s = serveFile(t, s.File, s.Admin)
		l.awaitMore(200, topics...)
	}
	l.stop()
	if scrape(t, s.Admin, "sluice_diskless_stored_batches_total") == 0 {
		t.Error("nothing went to objects")
	}
	live.toEnd(bootstrapOf(k), topics...)
	readAll(t, h, "afterwards", r.bootstrap(), bootstrapOf(k), topics...)
}

// Two replicas know nothing of each other; a balancer makes them one address.
func TestTwoReplicasBehindABalancer(t *testing.T) {
	k := sharedKafka(t)
	one := replica{Kafka: k.Bootstrap(), Host: "127.0.0.2", Advertise: "127.0.0.1", Store: s3Store(harness.StartS3(t), "two")}.withDefaults(t)
	two := one
	two.Host = "127.0.0.3"
	a, b := serve(t, one), serve(t, two)
	balancer := harness.StartBalancer(t, one.Advertise, one.Port, replicaPorts, one.Host)
	topics := []string{"two-control-1", "two-control-2", "two-telemetry-1", "two-telemetry-2"}
	for _, topic := range topics {
		createTopic(t, one.bootstrap(), topic, 3)
	}
	h := history.New()
	work := workload{Bootstrap: one.bootstrap(), Topics: topics}

	// Written through one, read through the other, which has nothing of it in
	// its cache.
	l := startLoad(t, h, work)
	l.awaitMore(200, topics...)
	l.stop()
	balancer.Use(two.Host)
	readAll(t, h, "through the other", one.bootstrap(), bootstrapOf(k), topics...)
	if stored := scrape(t, b.Admin, "sluice_diskless_stored_batches_total"); stored != 0 {
		t.Errorf("the second replica has written %v batches", stored)
	}
	if scrape(t, b.Admin, "sluice_diskless_chunk_gets_total") == 0 {
		t.Error("the second replica read nothing from the store")
	}

	// Under load on both, one is killed and comes back.
	balancer.Use(one.Host, two.Host)
	l = startLoad(t, h, work)
	live := follow(t, h, "live", one.bootstrap(), nil, topics...)
	for _, c := range []*child{a, b} {
		before := scrape(t, c.Admin, "sluice_proxy_requests_total")
		eventually(t, "both replicas have clients", func() (bool, string) {
			return scrape(t, c.Admin, "sluice_proxy_requests_total") > before+50, "too few requests"
		})
	}
	a.Kill()
	l.awaitMore(200, topics...)
	a = serveFile(t, a.File, a.Admin)
	eventually(t, "the first has clients again", func() (bool, string) {
		// Those that moved stay where they are; new ones come.
		if err := client(t, one.bootstrap()).Ping(t.Context()); err != nil {
			return false, err.Error()
		}
		return scrape(t, a.Admin, "sluice_proxy_requests_total") > 0, "no request"
	})

	// The other is asked to end: it drains, and its clients need no more than
	// the retries that they do anyhow.
	if err := b.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := b.Wait(t, patience); code != 0 {
		t.Errorf("sluice ended with %d after SIGTERM", code)
	}
	if log := b.Log(t); !strings.Contains(log, `"drained"`) {
		t.Error("it does not say that it drained")
	}
	l.awaitMore(200, topics...)
	l.stop()
	live.toEnd(bootstrapOf(k), topics...)
	readAll(t, h, "afterwards", one.bootstrap(), bootstrapOf(k), topics...)
}
