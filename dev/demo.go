package dev

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	dto "github.com/prometheus/client_model/go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/server"
)

// stream is one topic of the demonstration.
type stream struct {
	topic string
	tier  string
	rate  int // records per second
	size  int // bytes of a value

	mu       sync.Mutex
	produced int64 // acknowledged
	consumed int64
	bytes    int64                   // of values, acknowledged
	ack      *hdrhistogram.Histogram // microseconds
	endToEnd *hdrhistogram.Histogram
	failed   error
}

func newStream(topic, tier string, rate, size int) *stream {
	h := func() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3) }
	return &stream{topic: topic, tier: tier, rate: rate, size: size, ack: h(), endToEnd: h()}
}

// demonstrate produces to and consumes from a topic of each tier, through the
// proxy's one address, and shows what happens.
func demonstrate(ctx context.Context, o Options, cfg *config.Config, s *server.Server) error {
	streams := []*stream{
		newStream("demo.control", "low-latency", 200, 256),
		newStream("demo.telemetry", "diskless", 2000, 1024),
	}
	admin, err := kgo.NewClient(kgo.SeedBrokers(cfg.Listen.Bootstrap))
	if err != nil {
		return err
	}
	defer admin.Close()
	// What Kafka stores is asked of Kafka itself, not of the proxy.
	direct, err := kgo.NewClient(kgo.SeedBrokers(cfg.Kafka.Bootstrap...))
	if err != nil {
		return err
	}
	defer direct.Close()
	for _, st := range streams {
		_, err := kadm.NewClient(admin).CreateTopic(ctx, partitions, 1, nil, st.topic)
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("creating %s: %w", st.topic, err)
		}
	}
	stored := func() (map[string]int64, error) {
		dirs, err := kadm.NewClient(direct).DescribeAllLogDirs(ctx, nil)
		if err != nil {
			return nil, err
		}
		// The embedded brokers share one log and each of them lists it.
		type partition struct {
			topic string
			id    int32
		}
		once := make(map[partition]int64)
		dirs.Each(func(d kadm.DescribedLogDir) {
			d.Topics.Each(func(p kadm.DescribedLogDirPartition) { once[partition{p.Topic, p.Partition}] = p.Size })
		})
		sizes := make(map[string]int64)
		for p, size := range once {
			sizes[p.topic] += size
		}
		return sizes, nil
	}
	// Consumers begin where the topics end now: what earlier starts have left is
	// not shown again.
	ends, err := kadm.NewClient(admin).ListEndOffsets(ctx, streams[0].topic, streams[1].topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("asking for the topics' ends: %w", err)
	}
	before, err := stored()
	if err != nil {
		return fmt.Errorf("asking Kafka for its sizes: %w", err)
	}
	objectsBefore := objectsWritten(s)

	fmt.Fprintf(o.Out, "A demonstration, %v: %d control records/s of %d B and %d telemetry records/s of %d B,\nproduced and consumed through %s.\n\n",
		o.DemoTime, streams[0].rate, streams[0].size, streams[1].rate, streams[1].size, cfg.Listen.Bootstrap)
	running, cancel := context.WithTimeout(ctx, o.DemoTime)
	defer cancel()
	consuming, stopConsuming := context.WithCancel(ctx)
	defer stopConsuming()
	var producers, consumers sync.WaitGroup
	for _, st := range streams {
		from := map[string]map[int32]kgo.Offset{st.topic: ends.KOffsets()[st.topic]}
		consumers.Go(func() { st.consume(consuming, cfg.Listen.Bootstrap, from) })
		producers.Go(func() { st.produce(running, cfg.Listen.Bootstrap) })
	}
	show := &table{out: o.Out, redraw: o.Terminal}
	draw := func() error {
		sizes, err := stored()
		if err != nil {
			return err
		}
		objects := objectsWritten(s)
		objects.count -= objectsBefore.count
		objects.bytes -= objectsBefore.bytes
		show.draw(streams, sizes, before, objects)
		return nil
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	finished := make(chan struct{})
	go func() {
		producers.Wait()
		close(finished)
	}()
	for done := false; !done; {
		select {
		case <-tick.C:
		case <-finished:
			done = true
		}
		if done {
			waitConsumed(consuming, streams)
			stopConsuming()
			consumers.Wait()
		}
		if err := draw(); err != nil && ctx.Err() == nil {
			return err
		}
	}
	for _, st := range streams {
		st.mu.Lock()
		produced, consumed, failed := st.produced, st.consumed, st.failed
		st.mu.Unlock()
		if failed != nil && ctx.Err() == nil {
			return fmt.Errorf("%s: %w", st.topic, failed)
		}
		if consumed < produced && ctx.Err() == nil {
			return fmt.Errorf("%s: %d records were acknowledged and %d consumed", st.topic, produced, consumed)
		}
	}
	return ctx.Err()
}

// waitConsumed gives consumers time for what is still on its way.
func waitConsumed(ctx context.Context, streams []*stream) {
	deadline := time.After(10 * time.Second)
	for _, st := range streams {
		for {
			st.mu.Lock()
			behind := st.consumed < st.produced && st.failed == nil
			st.mu.Unlock()
			if !behind {
				break
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-deadline:
				return
			case <-ctx.Done():
				return
			}
		}
	}
}

func (st *stream) fail(err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.failed == nil {
		st.failed = err
	}
}

// maxBuffered bounds what the producer holds when it is slower than its rate.
const maxBuffered = 20_000

func (st *stream) produce(ctx context.Context, bootstrap string) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(bootstrap), kgo.DefaultProduceTopic(st.topic), kgo.MaxBufferedRecords(maxBuffered), kgo.ProducerLinger(0))
	if err != nil {
		st.fail(err)
		return
	}
	defer cl.Close()
	// Hex compresses to half, as telemetry does at best; a constant would
	// flatter every size in the table.
	random := make([]byte, (st.size+1)/2)
	noise := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", st.topic))))
	start, sent := time.Now(), 0
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if err := cl.Flush(flush); err != nil {
				st.fail(err)
			}
			return
		case <-tick.C:
		}
		for due := int(time.Since(start).Seconds() * float64(st.rate)); sent < due; sent++ {
			// Latency counts from when the record was due, so that a slow
			// answer cannot hide the ones behind it.
			at := start.Add(time.Duration(float64(sent) / float64(st.rate) * float64(time.Second)))
			_, _ = noise.Read(random)
			value := hex.AppendEncode(make([]byte, 0, st.size+1), random)[:st.size]
			binary.BigEndian.PutUint64(value, uint64(at.UnixNano()))
			cl.Produce(context.WithoutCancel(ctx), &kgo.Record{Value: value}, func(r *kgo.Record, err error) {
				if err != nil {
					st.fail(err)
					return
				}
				st.mu.Lock()
				defer st.mu.Unlock()
				st.produced++
				st.bytes += int64(len(r.Value))
				_ = st.ack.RecordValue(time.Since(at).Microseconds())
			})
		}
	}
}

func (st *stream) consume(ctx context.Context, bootstrap string, from map[string]map[int32]kgo.Offset) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(bootstrap), kgo.ConsumePartitions(from))
	if err != nil {
		st.fail(err)
		return
	}
	defer cl.Close()
	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil && ctx.Err() == nil {
			st.fail(err)
			return
		}
		now := time.Now()
		st.mu.Lock()
		fetches.EachRecord(func(r *kgo.Record) {
			st.consumed++
			if len(r.Value) >= 8 {
				_ = st.endToEnd.RecordValue(now.Sub(time.Unix(0, int64(binary.BigEndian.Uint64(r.Value)))).Microseconds())
			}
		})
		st.mu.Unlock()
	}
}

// objects is what the proxy has written to stores.
type objects struct{ count, bytes float64 }

func objectsWritten(s *server.Server) (o objects) {
	families, err := s.Metrics().Gather()
	if err != nil {
		return o
	}
	sum := func(f *dto.MetricFamily) (v float64) {
		for _, m := range f.GetMetric() {
			v += m.GetCounter().GetValue()
		}
		return v
	}
	for _, f := range families {
		switch f.GetName() {
		case "sluice_diskless_objects_written_total":
			o.count = sum(f)
		case "sluice_diskless_object_bytes_total":
			o.bytes = sum(f)
		}
	}
	return o
}

// table shows the demonstration's state, in place on a terminal.
type table struct {
	out    io.Writer
	redraw bool
	headed bool
	lines  int
}

func (t *table) draw(streams []*stream, sizes, before map[string]int64, obj objects) {
	var b strings.Builder
	if t.redraw && t.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", t.lines)
	}
	t.lines = 0
	line := func(format string, args ...any) {
		if t.redraw {
			b.WriteString("\x1b[2K")
		}
		fmt.Fprintf(&b, format+"\n", args...)
		t.lines++
	}
	const row = "  %-11s  %-14s  %8s  %8s  %7s  %17s  %18s  %9s  %10s  %7s"
	if t.redraw || !t.headed {
		line(row, "TIER", "TOPIC", "PRODUCED", "CONSUMED", "MB", "PRODUCE p50/p99", "END-TO-END p50/p99", "IN KAFKA", "IN OBJECTS", "OBJECTS")
		t.headed = true
	}
	for _, st := range streams {
		st.mu.Lock()
		inObjects, count := "-", "-"
		if st.tier == "diskless" {
			inObjects, count = megabytes(obj.bytes), fmt.Sprintf("%.0f", obj.count)
		}
		line(row, st.tier, st.topic, fmt.Sprint(st.produced), fmt.Sprint(st.consumed), fmt.Sprintf("%.1f", float64(st.bytes)/1e6),
			millis(st.ack), millis(st.endToEnd), megabytes(float64(sizes[st.topic]-before[st.topic])), inObjects, count)
		st.mu.Unlock()
	}
	_, _ = io.WriteString(t.out, b.String())
}

// millis is a histogram's median and 99th percentile.
func millis(h *hdrhistogram.Histogram) string {
	if h.TotalCount() == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f/%.1f ms", float64(h.ValueAtQuantile(50))/1000, float64(h.ValueAtQuantile(99))/1000)
}

func megabytes(n float64) string { return fmt.Sprintf("%.2f MB", n/1e6) }
