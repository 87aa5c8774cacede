package integration

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
)

// SLUICE_SEALING is how long each measurement lasts: make bench-sealing. The
// default shows that it works; its figures say little.
const sealingVariable = "SLUICE_SEALING"

// What a Java producer does by default, and the store that it meets.
const (
	javaBatch      = 16384
	javaInFlight   = 5
	sealPartitions = 6
	sealPut        = 30 * time.Millisecond // the network's part of a PUT
	sealRecord     = 1000
	sealLinger     = 250 * time.Millisecond
)

// sealing is the parts of one measurement.
type sealing struct {
	t       *testing.T
	name    string // of its topics
	kafka   *harness.Kafka
	jvm     *harness.JVM
	store   string
	lasting time.Duration
	runs    int
}

func startSealing(t *testing.T, name string) *sealing {
	s := &sealing{t: t, name: name, kafka: sharedKafka(t), lasting: 2 * time.Second}
	if v := os.Getenv(sealingVariable); v != "" {
		var err error
		if s.lasting, err = time.ParseDuration(v); err != nil {
			t.Fatal(sealingVariable, err)
		}
	}
	s3 := harness.StartS3(t)
	far := harness.StartFaultProxy(t, strings.TrimPrefix(s3.Endpoint, "http://"))
	far.Set(harness.NetFault{Delay: sealPut})
	through := *s3
	through.Endpoint = "http://" + far.Addr
	s.store = s3Store(&through, "sealing")
	s.jvm = s.kafka.StartJVM(t)
	return s
}

// replica starts one with a budget of early seals, and a topic of the telemetry
// class.
func (s *sealing) replica(putsPerSecond int) (*sluice, string) {
	s.t.Helper()
	s.runs++
	r := startSluice(s.t, replica{Kafka: s.kafka.Bootstrap(), Store: s.store, Extra: fmt.Sprintf(
		"limits: { puts_per_second: %d }\nclasses:\n  telemetry: { linger: %v, object_size: 8MiB, store: default }\n", putsPerSecond, sealLinger)})
	topic := fmt.Sprintf("sealing-%s-%d-telemetry", s.name, s.runs)
	createTopic(s.t, r.Bootstrap, topic, sealPartitions)
	return r, topic
}

var perfSent = regexp.MustCompile(`(?m)^(\d+) records sent, .*99\.9th`)

// java runs a Java producer with default settings, and returns when all of its
// records are acknowledged.
func (s *sealing) java(r *sluice, topic string, records int) {
	s.t.Helper()
	out := s.jvm.Tool(s.t, "kafka-producer-perf-test", "--topic", topic, "--num-records", strconv.Itoa(records),
		"--record-size", strconv.Itoa(sealRecord), "--throughput", "-1", "--producer-props", "bootstrap.servers="+r.Bootstrap)
	if m := perfSent.FindStringSubmatch(out); m == nil || m[1] != strconv.Itoa(records) {
		s.t.Errorf("the producer did not have all acknowledged:\n%s", out)
	}
}

// check sees to it that the log has each record once.
func (s *sealing) check(topic string, records int64) {
	s.t.Helper()
	ends, err := kadm.NewClient(client(s.t, bootstrapOf(s.kafka))).ListEndOffsets(s.t.Context(), topic)
	if err != nil {
		s.t.Fatal(err)
	}
	got := int64(0)
	ends.Each(func(o kadm.ListedOffset) { got += o.Offset })
	if got != records {
		s.t.Errorf("%s has %d records, %d were acknowledged", topic, got, records)
	}
}

// caller is a producer that sends one record, waits for its acknowledgement,
// and after a pause sends the next.
type caller struct {
	pause time.Duration
	took  []time.Duration
}

func (c *caller) run(ctx context.Context, t *testing.T, bootstrap, topic string, size int) {
	cl := client(t, bootstrap, kgo.ProducerLinger(0), kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(kgo.NoCompression()))
	defer cl.Close()
	for ctx.Err() == nil {
		began := time.Now()
		if err := cl.ProduceSync(context.WithoutCancel(ctx), &kgo.Record{Value: make([]byte, size)}).FirstErr(); err != nil {
			t.Errorf("%s: %v", topic, err)
			return
		}
		c.took = append(c.took, time.Since(began))
		select {
		case <-time.After(c.pause):
		case <-ctx.Done():
		}
	}
}

func (c *caller) mean() time.Duration {
	if len(c.took) == 0 {
		return 0
	}
	sum := time.Duration(0)
	for _, d := range c.took {
		sum += d
	}
	return sum / time.Duration(len(c.took))
}

func (c *caller) slowest() (most time.Duration) {
	for _, d := range c.took {
		most = max(most, d)
	}
	return most
}

// histogram returns how many observations there were, and their mean.
func (s *sluice) histogram(t testing.TB, name string) (count uint64, mean time.Duration) {
	t.Helper()
	families, err := s.Metrics().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			h := f.GetMetric()[0].GetHistogram()
			if count = h.GetSampleCount(); count > 0 {
				mean = time.Duration(h.GetSampleSum() / float64(count) * float64(time.Second))
			}
		}
	}
	return count, mean
}

// pace is the rate of stored bytes in the middle of a run: without the start
// of the producer, and without the end, which waits for a linger.
func pace(ctx context.Context, t *testing.T, s *sluice, total float64) (perSecond func() float64) {
	type sample struct {
		at    time.Time
		bytes float64
	}
	var samples []sample
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				samples = append(samples, sample{now, s.metric(t, "sluice_diskless_stored_bytes_total")})
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() float64 {
		<-done
		var first, last *sample
		for i := range samples {
			if x := &samples[i]; x.bytes >= total*0.3 && x.bytes < total*0.95 {
				if first == nil {
					first = x
				}
				last = x
			}
		}
		if first == nil || last.at.Equal(first.at) {
			return 0
		}
		return (last.bytes - first.bytes) / last.at.Sub(first.at).Seconds()
	}
}

func milliseconds(d time.Duration) string {
	if d == 0 {
		return "-" // that producer did not run
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// A default Java producer gets all its records acknowledged, whatever the
// budget of early seals. How fast is printed, and for a person to judge.
func TestEarlySealsOnRealParts(t *testing.T) {
	s := startSealing(t, "java")
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "puts_per_second\tMB/s\t× fixed linger\tbound MB/s\tof the bound\tPUT\tack\tobjects/s\tearly\tKB an object")
	fixed := 0.0
	for _, c := range []struct {
		budget int
		about  int // records a second, to choose how many to send
	}{{0, 1500}, {10, 4000}, {40, 6000}} {
		r, topic := s.replica(c.budget)
		control := "sealing-control"
		if s.runs == 1 {
			createTopic(t, r.Bootstrap, control, sealPartitions)
			s.java(r, topic, 3000) // so that Java has compiled what is hot
			r, topic = s.replica(c.budget)
		}
		records := int(float64(c.about) * s.lasting.Seconds())
		ctx, cancel := context.WithCancel(t.Context())
		var side sync.WaitGroup
		ack := caller{pause: 100 * time.Millisecond}
		side.Go(func() { ack.run(ctx, t, r.Bootstrap, control, 100) })
		rate := pace(ctx, t, r, float64(records*sealRecord))
		began := time.Now()
		s.java(r, topic, records)
		took := time.Since(began).Seconds()
		cancel()
		side.Wait()
		perSecond := rate()
		s.check(topic, int64(records))
		if c.budget == 0 {
			fixed = perSecond
			if n := r.metric(t, "sluice_diskless_seals_total", "reason", "early"); n != 0 {
				t.Errorf("%v early seals without a budget of them", n)
			}
		} else if r.metric(t, "sluice_diskless_seals_total", "reason", "early") == 0 {
			t.Errorf("no early seal with a budget of %d a second", c.budget)
		}
		objects, put := r.histogram(t, "sluice_diskless_put_seconds")
		bound := float64(javaInFlight*javaBatch*sealPartitions) / (put + javaInFlight*ack.mean()).Seconds()
		fmt.Fprintf(w, "%d\t%.2f\t%.2f\t%.2f\t%.0f %%\t%s\t%s\t%.1f\t%.0f\t%.0f\n", c.budget, perSecond/1e6, perSecond/fixed, bound/1e6, 100*perSecond/bound,
			milliseconds(put), milliseconds(ack.mean()), float64(objects)/took, r.metric(t, "sluice_diskless_seals_total", "reason", "early"),
			r.metric(t, "sluice_diskless_object_bytes_total")/float64(objects)/1000)
	}
	_ = w.Flush()
	fmt.Printf("\nA Java producer with default settings, %d partitions, %v linger, PUTs behind %v of network; %v for each line\n%s\n", sealPartitions, sealLinger, sealPut, s.lasting, &table)
}

// One producer that waits for each acknowledgement, one that seldom sends and a
// bulk one share objects and their budget. Each gets on beside the others.
func TestProducersShareEarlySeals(t *testing.T) {
	s := startSealing(t, "shared")
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "puts_per_second\tproducers\tsynchronous: records/s\tmean\tslow: mean\tslowest\tbulk MB/s\tobjects/s")
	together := func(budget int, synchronous, slow, bulk bool, what string) {
		r, topic := s.replica(budget)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var side sync.WaitGroup
		a, b := caller{}, caller{pause: 400 * time.Millisecond}
		const size = 8000 // worth an object
		if synchronous {
			side.Go(func() { a.run(ctx, t, r.Bootstrap, topic, size) })
		}
		if slow {
			side.Go(func() { b.run(ctx, t, r.Bootstrap, topic, size) })
		}
		records := int(3000 * s.lasting.Seconds())
		rate := func() float64 { return 0 }
		began := time.Now()
		if bulk {
			rate = pace(ctx, t, r, float64(records*sealRecord))
			s.java(r, topic, records)
		} else {
			records = 0
			time.Sleep(s.lasting)
		}
		took := time.Since(began).Seconds()
		cancel()
		side.Wait()
		s.check(topic, int64(records+len(a.took)+len(b.took)))
		if synchronous && len(a.took) == 0 || slow && len(b.took) == 0 {
			t.Errorf("%s at %d: %d and %d records of the small producers were acknowledged", what, budget, len(a.took), len(b.took))
		}
		objects, _ := r.histogram(t, "sluice_diskless_put_seconds")
		fmt.Fprintf(w, "%d\t%s\t%.1f\t%s\t%s\t%s\t%.2f\t%.1f\n", budget, what, float64(len(a.took))/took, milliseconds(a.mean()), milliseconds(b.mean()), milliseconds(b.slowest()), rate()/1e6, float64(objects)/took)
	}
	together(10, true, true, true, "all three")
	if os.Getenv(sealingVariable) != "" {
		for _, budget := range []int{10, 40} {
			together(budget, true, false, false, "synchronous")
			together(budget, false, true, false, "slow")
			together(budget, false, false, true, "bulk")
		}
		together(40, true, true, true, "all three")
	}
	_ = w.Flush()
	fmt.Printf("\nA synchronous producer and one with a record each 400 ms (8 KB), and a Java producer with default settings; %v each\n%s\n", s.lasting, &table)
}
