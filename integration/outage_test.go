package integration

import (
	"crypto/rand"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// outage is how long the store is away.
const outage = 20 * time.Second

func TestLongStoreOutage(t *testing.T) {
	harness.Long(t)
	k := sharedKafka(t)
	s3 := harness.StartS3(t)
	// A server that is gone refuses; a network that is gone says nothing.
	network := harness.StartFaultProxy(t, strings.TrimPrefix(s3.Endpoint, "http://"))
	through := *s3
	through.Endpoint = "http://" + network.Addr
	store := s3Store(&through, "outage")
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: store})
	topics := []string{"outage-control", "outage-telemetry"}
	control, telemetry := topics[0], topics[1]
	const javas = "outage-java-telemetry" // the order of a topic's records is one writer's
	all := []string{control, telemetry, javas}
	for _, topic := range all {
		createTopic(t, s.Bootstrap, topic, 3)
	}
	h := history.New()
	l := startLoad(t, h, workload{Bootstrap: s.Bootstrap, Topics: topics})
	tail := follow(t, h, "at the tail", s.Bootstrap, nil, all...)
	l.awaitMore(200, topics...)
	// A replica that has nothing in its cache.
	cold := startSluice(t, replica{Kafka: k.Bootstrap(), Store: store})
	stored := func() float64 { return s.metric(t, "sluice_diskless_stored_batches_total") }
	inline := func() float64 {
		return s.metric(t, "sluice_diskless_inline_batches_total", "reason", "unavailable")
	}
	if n := inline(); n != 0 {
		t.Fatalf("%v batches went inline before the outage", n)
	}

	s3.Stop()
	late := follow(t, h, "needs what cannot be read", cold.Bootstrap, nil, all...)
	produced, read := l.count(control), tail.count(telemetry)
	degraded := false
	// A default Java producer begins in the outage and knows of none.
	jvm := k.StartJVM(t)
	var java sync.WaitGroup
	defer java.Wait()
	java.Go(func() {
		for range 2 {
			javaWrites(t, jvm, h, s.Bootstrap, javas)
		}
	})
	for end := time.Now().Add(outage); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		code, health := readyz(s.AdminAddr().String())
		if code != http.StatusOK {
			t.Fatalf("/readyz says %d %+v", code, health)
		}
		degraded = degraded || strings.Contains(strings.Join(health.Degraded, " "), "store default")
	}
	if !degraded {
		t.Error("/readyz did not tell of the outage")
	}
	l.awaitMore(100, topics...) // still, with the store away
	if l.count(control) < produced+100 {
		t.Error("control topics' producers stood still")
	}
	if tail.count(telemetry) <= read {
		t.Error("the consumer at the tail stood still")
	}
	if inline() == 0 {
		t.Error("no batch went inline in the outage")
	}
	eventually(t, "the reader of an unreachable object is told", func() (bool, string) {
		return late.sawError("KAFKA_STORAGE_ERROR"), "not yet"
	})
	if late.count(control) == 0 {
		t.Error("control topics were harmed")
	}
	for _, v := range h.CheckSoFar(late.name) {
		t.Error(v)
	}

	java.Wait()

	s3.Start(t)
	before := stored()
	eventually(t, "batches go to objects again", func() (bool, string) { return stored() > before+10, "not yet" })
	after := inline()
	l.awaitMore(200, topics...)
	if n := inline(); n != after {
		t.Errorf("%v batches went inline after the store was back", n-after)
	}
	eventually(t, "/readyz is at rest again", func() (bool, string) {
		code, health := readyz(s.AdminAddr().String())
		return code == http.StatusOK && len(health.Degraded) == 0, strings.Join(health.Degraded, " ")
	})

	network.Set(harness.NetFault{Blackhole: true})
	eventually(t, "batches go inline when the store says nothing", func() (bool, string) { return inline() > after+20, "not yet" })
	l.awaitMore(100, topics...)
	if code, health := readyz(s.AdminAddr().String()); code != http.StatusOK || len(health.Degraded) != 1 {
		t.Errorf("/readyz says %d %+v", code, health)
	}
	javaWrites(t, jvm, h, s.Bootstrap, javas)
	network.Set(harness.NetFault{})
	before = stored()
	eventually(t, "batches go to objects again", func() (bool, string) { return stored() > before+10, "not yet" })

	l.stop()
	t.Logf("%v batches in objects, %v inline for want of the store", stored(), inline())
	tail.toEnd(bootstrapOf(k), all...)
	late.toEnd(bootstrapOf(k), all...)
	readAll(t, h, "afterwards", s.Bootstrap, bootstrapOf(k), all...)
}

// A file store whose disk is full is a store that is away: producers get on, with
// their batches inline, and objects are written again when there is room.
func TestLongFullDisk(t *testing.T) {
	harness.Long(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Skip("a small file system must be mounted: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	k := sharedKafka(t)
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: `{ url: "file://` + filepath.Join(dir, "objects") + `" }`})
	const topic = "full-telemetry"
	createTopic(t, s.Bootstrap, topic, 3)
	h := history.New()
	l := startLoad(t, h, workload{Bootstrap: s.Bootstrap, Topics: []string{topic}})
	tail := follow(t, h, "at the tail", s.Bootstrap, nil, topic)
	stored := func() float64 { return s.metric(t, "sluice_diskless_stored_batches_total") }
	inline := func() float64 {
		return s.metric(t, "sluice_diskless_inline_batches_total", "reason", "unavailable")
	}
	eventually(t, "batches go to objects", func() (bool, string) { return stored() > 10, "not yet" })
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.ReadFrom(rand.Reader)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	_ = f.Close()
	eventually(t, "batches go inline", func() (bool, string) { return inline() > 10, "not yet" })
	l.awaitMore(200, topic)
	if code, health := readyz(s.AdminAddr().String()); code != http.StatusOK || !strings.Contains(strings.Join(health.Degraded, " "), "store default") {
		t.Errorf("/readyz says %d %+v", code, health)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	before := stored()
	eventually(t, "batches go to objects again", func() (bool, string) { return stored() > before+10, "not yet" })
	l.stop()
	t.Logf("%v batches in objects, %v inline", stored(), inline())
	tail.toEnd(bootstrapOf(k), topic)
	readAll(t, h, "afterwards", s.Bootstrap, bootstrapOf(k), topic)
}
