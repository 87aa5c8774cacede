package benchmarks_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/benchmarks"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// The defaults are the short form: that all of it works. make bench-peers runs
// the long one, which is worth reading.
var (
	peerRounds  = flag.Int("peer-rounds", 2, "rounds; each goes over all peers")
	peerSteady  = flag.Duration("peer-steady", time.Second, "how long each rate lasts, on each peer of a round")
	peerWarmUp  = flag.Duration("peer-warm-up", 500*time.Millisecond, "the time before that, not measured")
	peerTurn    = flag.Duration("peer-turn", 300*time.Millisecond, "how long one record at a time is sent, on each peer of a round")
	peerBulkMiB = flag.Int("peer-bulk", 64, "MiB in each direction, on each peer of a round")
	peerIdle    = flag.Int("peer-idle", 500, "idle connections, to each peer in turn")
)

// What clients of bulk send and ask for at once.
const (
	bulkFrame    = 256 << 10
	bulkFetch    = 1 << 20
	bulkInFlight = 5 // the default of Java's producer
	bulkClients  = 2 // connections, each with a partition of its own

	brokersOwn = 16 // bytes of a batch
)

// peer is a way to the same broker.
type peer struct {
	name string
	addr string
	pid  int // 0: nothing stands in between

	idle                   float64 // bytes for each connection
	oneInFlight            []float64
	produceMB, consumeMB   []float64
	produceCPU, consumeCPU []float64
	p50, p99               map[string][]float64 // by step
}

// What sluice adds and costs is measured beside the least that anything in
// between can, a relay that copies and one that leaves it to the kernel, and
// beside another proxy. All are processes of their own before the same broker,
// which has a listener for each relay, because that changes no address in an
// answer. That each does what it should is judged, times are not.
func TestLongPeersSideBySide(t *testing.T) {
	harness.Long(t)
	if runtime.GOOS != "linux" {
		t.Skip("CPU and memory of processes are read from /proc")
	}
	first := harness.Ports(t, len(relays))
	kinds := []string{"splice", "copy"}
	var addrs []string
	for i := range kinds {
		addrs = append(addrs, fmt.Sprintf("127.0.0.1:%d", first+i))
	}
	k := harness.StartKafka(t, harness.KafkaOptions{Nodes: []int32{1}, Relays: addrs, Properties: map[string]string{
		"log.segment.delete.delay.ms": "1000", // rounds must not fill the disk
		"socket.request.max.bytes":    "104857600",
	}})
	s := startSluice(t, k, fmt.Sprintf(`stores:
  default: { url: "file://%s" }
topics:
  - { match: "*-telemetry", class: telemetry }
`, t.TempDir()))
	peers := []*peer{{name: "direct", addr: k.Bootstrap()[0]}}
	for i, kind := range kinds {
		peers = append(peers, &peer{name: kind, addr: addrs[i], pid: startRelay(t, kind, addrs[i], k.RelayedAddr(1, i))})
	}
	kroxylicious, process := harness.StartKroxylicious(t, k.Bootstrap()[0], 1)
	peers = append(peers,
		&peer{name: "kroxylicious", addr: kroxylicious, pid: process.PID()},
		&peer{name: "sluice", addr: s.bootstrap, pid: s.pid})

	client, err := kgo.NewClient(kgo.SeedBrokers(k.Bootstrap()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)

	// Memory first: what a load leaves behind in a process would be used again.
	for _, p := range peers[1:] {
		p.idle = idleMemory(t, p, *peerIdle)
		t.Logf("%-12s %.1f KB for each idle connection", p.name, p.idle/1e3)
	}
	const topic = "peers"
	for round := range *peerRounds + 1 {
		for i := range peers {
			p := peers[(round+i)%len(peers)]
			if round == 1 {
				// What went before has warmed up the broker, and does not count.
				p.oneInFlight, p.produceMB, p.consumeMB, p.produceCPU, p.consumeCPU = nil, nil, nil, nil, nil
			}
			makeTopic(t, admin, topic, bulkClients)
			p.oneInFlight = append(p.oneInFlight, oneInFlight(t, p, topic))
			makeTopic(t, admin, topic, bulkClients)
			mb, cpu := bulk(t, p, func(partition int32) int64 { return produceBulk(t, p, topic, partition) })
			p.produceMB, p.produceCPU = append(p.produceMB, mb), append(p.produceCPU, cpu)
			mb, cpu = bulk(t, p, func(partition int32) int64 { return consumeBulk(t, p, topic, partition) })
			p.consumeMB, p.consumeCPU = append(p.consumeMB, mb), append(p.consumeCPU, cpu)
			last := func(v []float64) float64 { return v[len(v)-1] }
			t.Logf("round %d/%d  %-12s one in flight p50 %.3f ms  produce %.0f MB/s %.3f s/GB  consume %.0f MB/s %.3f s/GB",
				round, *peerRounds, p.name, last(p.oneInFlight), last(p.produceMB), last(p.produceCPU), last(p.consumeMB), last(p.consumeCPU))
			if p.pid != 0 && (last(p.produceCPU) <= 0 || last(p.consumeCPU) <= 0) {
				t.Errorf("%s used no CPU: did the load go through it?", p.name)
			}
		}
	}
	if _, err := admin.DeleteTopic(t.Context(), topic); err != nil {
		t.Error(err)
	}
	rates := []benchmarks.Rate{1000, 5000}
	latencies(t, peers, rates)
	printPeers(peers, rates)
}

func startRelay(t *testing.T, kind, listen, upstream string) (pid int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	p, err := harness.StartProcess(kind, log, self, nil, relayCommand, kind, listen, upstream)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if ended, err := p.Ended(); ended {
			text, _ := os.ReadFile(log)
			t.Errorf("the %s relay has ended (%v): %s", kind, err, text)
			return
		}
		p.Kill()
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", listen)
		if err == nil {
			_ = c.Close()
			return p.PID()
		}
		if time.Now().After(deadline) {
			t.Fatalf("the %s relay does not listen: %v", kind, err)
		}
	}
}

// makeTopic makes it anew: every run begins with empty partitions.
func makeTopic(t *testing.T, admin *kadm.Client, topic string, partitions int32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := admin.DeleteTopic(ctx, topic); err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Fatal(err)
	}
	for {
		_, err := admin.CreateTopic(ctx, partitions, 1, nil, topic)
		if err == nil {
			break
		}
		if !errors.Is(err, kerr.TopicAlreadyExists) || ctx.Err() != nil { // its deletion is under way
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for {
		listed, err := admin.ListEndOffsets(ctx, topic)
		if err == nil {
			err = listed.Error()
		}
		if err == nil && len(listed[topic]) == int(partitions) {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// rawClient speaks Kafka's protocol without a client's own work, which would be
// most of what a machine with few cores does.
type rawClient struct {
	net.Conn
	in []byte
}

func dialRaw(addr string) (*rawClient, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &rawClient{Conn: c}, c.SetDeadline(time.Now().Add(2 * time.Minute))
}

func encodeRequest(req kmsg.Request, version, correlation int) []byte {
	req.SetVersion(int16(version))
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("sluice-bench")).AppendRequest(nil, req, int32(correlation))
}

// receive reads one answer and returns its body.
func (c *rawClient) receive(flexible bool) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(size[:]))
	c.in = slices.Grow(c.in[:0], n)[:n]
	if _, err := io.ReadFull(c, c.in); err != nil {
		return nil, err
	}
	if flexible {
		return c.in[5:], nil
	}
	return c.in[4:], nil
}

const produceVersion, fetchVersion = 9, 12

func produceFrame(topic string, partition int32, batch []byte) []byte {
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 30_000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Partition, rp.Records = partition, batch
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return encodeRequest(req, produceVersion, 1)
}

// produced reads one answer to produceFrame's request.
func (c *rawClient) produced() error {
	body, err := c.receive(true)
	if err != nil {
		return err
	}
	resp := kmsg.NewPtrProduceResponse()
	resp.SetVersion(produceVersion)
	if err := resp.ReadFrom(body); err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
}

// recordBatch is a batch of records of 1 KiB, about size bytes in all.
func recordBatch(size int) []byte {
	const payload = 1 << 10
	var body []byte
	n := int32(max(1, size/payload))
	for i := range n {
		rec := kmsg.Record{OffsetDelta: i, Value: make([]byte, payload)}
		binary.BigEndian.PutUint32(rec.Value, uint32(i))
		rec.Length = int32(len(rec.AppendTo(nil)) - 1)
		body = rec.AppendTo(body)
	}
	now := time.Now().UnixMilli()
	batch := kmsg.RecordBatch{Magic: 2, LastOffsetDelta: n - 1, FirstTimestamp: now, MaxTimestamp: now, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: n, Records: body}
	b := batch.AppendTo(nil)
	wire.Batch(b).SetLength(int32(len(b) - wire.LogOverhead))
	wire.Batch(b).SetCRC(wire.Batch(b).ComputeCRC())
	return b
}

var bulkBatch = sync.OnceValue(func() []byte { return recordBatch(bulkFrame) })

// oneInFlight is the median of the milliseconds until a record is acknowledged
// before which the next is not sent.
func oneInFlight(t *testing.T, p *peer, topic string) float64 {
	t.Helper()
	c, err := dialRaw(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	frame := produceFrame(topic, 0, recordBatch(1))
	var took []float64
	const warmUp = 50
	for began := time.Now(); len(took) < 2*warmUp || time.Since(began) < *peerTurn; {
		sent := time.Now()
		_, err := c.Write(frame)
		if err == nil {
			err = c.produced()
		}
		if err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		took = append(took, time.Since(sent).Seconds()*1e3)
	}
	took = slices.Sorted(slices.Values(took[warmUp:]))
	return took[len(took)/2]
}

// bulk lets move work on every partition at once, and returns MB a second and
// what CPU the peer took, in seconds a GB.
func bulk(t *testing.T, p *peer, move func(partition int32) int64) (mb, perGB float64) {
	t.Helper()
	cpu, began := processCPU(t, p.pid), time.Now()
	var moved [bulkClients]int64
	var all sync.WaitGroup
	for i := range moved {
		all.Go(func() { moved[i] = move(int32(i)) })
	}
	all.Wait()
	took := time.Since(began).Seconds()
	var bytes float64
	for _, n := range moved {
		bytes += float64(n)
	}
	if t.Failed() {
		t.FailNow()
	}
	return bytes / 1e6 / took, (processCPU(t, p.pid) - cpu) / (bytes / 1e9)
}

func bulkBatches() int { return max(2*bulkInFlight, *peerBulkMiB<<20/bulkClients/bulkFrame) }

func produceBulk(t *testing.T, p *peer, topic string, partition int32) (moved int64) {
	c, err := dialRaw(p.addr)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer c.Close()
	frame := produceFrame(topic, partition, bulkBatch())
	room := make(chan struct{}, bulkInFlight)
	sent, failed := make(chan error, 1), make(chan struct{})
	go func() {
		for range bulkBatches() {
			select {
			case room <- struct{}{}:
			case <-failed:
				return
			}
			if _, err := c.Write(frame); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for range bulkBatches() {
		if err := c.produced(); err != nil {
			close(failed)
			t.Errorf("%s, producing: %v", p.name, err)
			return 0
		}
		<-room
		moved += int64(len(frame))
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	return moved
}

// consumeBulk reads what produceBulk wrote, and expects every batch in its place.
func consumeBulk(t *testing.T, p *peer, topic string, partition int32) (moved int64) {
	c, err := dialRaw(p.addr)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer c.Close()
	batch := bulkBatch()
	records := int64(wire.Batch(batch).NumRecords())
	end := int64(bulkBatches()) * records
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = 500, 1, 50<<20, -1
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.PartitionMaxBytes, rp.CurrentLeaderEpoch = partition, bulkFetch, -1
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	at := &req.Topics[0].Partitions[0].FetchOffset
	for *at < end {
		if _, err := c.Write(encodeRequest(req, fetchVersion, 1)); err != nil {
			t.Error(err)
			return 0
		}
		body, err := c.receive(true)
		if err != nil {
			t.Errorf("%s, consuming: %v", p.name, err)
			return 0
		}
		resp := kmsg.NewPtrFetchResponse()
		resp.SetVersion(fetchVersion)
		if err := resp.ReadFrom(body); err != nil {
			t.Error(err)
			return 0
		}
		got := resp.Topics[0].Partitions[0]
		if err := kerr.ErrorForCode(got.ErrorCode); err != nil {
			t.Errorf("%s, consuming: %v", p.name, err)
			return 0
		}
		moved += int64(len(got.RecordBatches))
		whole := 0
		for b := got.RecordBatches; len(b) >= len(batch); b = b[len(batch):] {
			// The broker sets the offset and the leader epoch, which come first.
			if offset := wire.Batch(b).BaseOffset(); offset != *at || !bytes.Equal(b[brokersOwn:len(batch)], batch[brokersOwn:]) {
				t.Errorf("%s: a batch at offset %d, expected %d, or it was changed", p.name, offset, *at)
				return 0
			}
			*at += records
			whole++
		}
		if whole == 0 {
			t.Errorf("%s: an answer without a whole batch at offset %d", p.name, *at)
			return 0
		}
	}
	return moved
}

// idleMemory is what a connection adds to a process once it has spoken and is
// silent: resident bytes, without those of its first connections.
func idleMemory(t *testing.T, p *peer, connections int) float64 {
	t.Helper()
	frame := encodeRequest(kmsg.NewPtrApiVersionsRequest(), 3, 1)
	var held []*rawClient
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	hold := func(n int) float64 {
		for range n {
			c, err := dialRaw(p.addr)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, c)
			for range 2 {
				if _, err := c.Write(frame); err != nil {
					t.Fatal(err)
				}
				if _, err := c.receive(false); err != nil {
					t.Fatalf("%s, idle connection %d: %v", p.name, len(held), err)
				}
			}
		}
		time.Sleep(2 * time.Second)
		return residentBytes(t, p.pid)
	}
	before := hold(connections / 5)
	return (hold(connections) - before) / float64(connections)
}

// latencies measures open loop, at each rate.
func latencies(t *testing.T, peers []*peer, rates []benchmarks.Rate) {
	t.Helper()
	w, err := benchmarks.Load("steady")
	if err != nil {
		t.Fatal(err)
	}
	w.Duration, w.WarmUp, w.Replication = benchmarks.Duration(*peerSteady), benchmarks.Duration(*peerWarmUp), 1
	w.Steps = nil
	for _, r := range rates {
		w.Steps = append(w.Steps, benchmarks.Step{Name: r.String(), Rate: &r})
	}
	o := benchmarks.Options{Workload: w, Rounds: *peerRounds, Client: "franz-go", Version: "under test", Progress: func(line string) { t.Log(line) }}
	for _, p := range peers {
		p.p50, p.p99 = map[string][]float64{}, map[string][]float64{}
		o.Targets = append(o.Targets, benchmarks.Target{Name: p.name, Bootstrap: []string{p.addr}, Topic: benchmarks.DefaultTopic})
	}
	r, err := benchmarks.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, round := range r.Rounds {
		p := peers[slices.IndexFunc(peers, func(p *peer) bool { return p.name == round.Target })]
		if round.Error != "" {
			t.Fatalf("%s: %s", p.name, round.Error)
		}
		s := round.Streams[0]
		if s.Errors > 0 || s.Missing+s.Doubled+s.Changed > 0 {
			t.Errorf("%s: %d errors, %d missing, %d doubled, %d changed", p.name, s.Errors, s.Missing, s.Doubled, s.Changed)
		}
		p.p50[round.Step] = append(p.p50[round.Step], s.Produce.P50)
		p.p99[round.Step] = append(p.p99[round.Step], s.Produce.P99)
	}
}

// processCPU is in seconds, of the threads that there are; 0 for no process.
// Go programs keep their threads.
func processCPU(t *testing.T, pid int) (seconds float64) {
	t.Helper()
	if pid == 0 {
		return 0
	}
	// Not /proc/*/stat: it counts hundredths of a second.
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("process %d has no threads: %v", pid, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		ns, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
		if err != nil {
			t.Fatal(err)
		}
		seconds += ns / 1e9
	}
	return seconds
}

func residentBytes(t *testing.T, pid int) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseFloat(strings.Fields(string(text))[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * float64(os.Getpagesize())
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// over is what a has more than b in the same round.
func over(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] - b[i]
	}
	return out
}

func printPeers(peers []*peer, rates []benchmarks.Rate) {
	direct, copying, sluice := peers[0], peers[slices.IndexFunc(peers, func(p *peer) bool { return p.name == "copy" })], peers[len(peers)-1]
	fmt.Printf("\nKafka %s, one broker; %s, %d CPUs for all of it; %d rounds; medians (least to most)\n\n", harness.DefaultKafka, runtime.Version(), runtime.NumCPU(), *peerRounds)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(w, "| "+strings.Join(cells, "\t| ")+"\t|") }
	const added = "added to direct"
	heads := []string{""}
	for _, p := range peers {
		heads = append(heads, p.name)
	}
	row(append(heads, "sluice against copy")...)
	row(append(slices.Repeat([]string{"---"}, len(heads)), "---")...)
	line := func(title, format string, of func(*peer) []float64, skipDirect bool) {
		cells := []string{title}
		for _, p := range peers {
			v := of(p)
			if p == direct && skipDirect {
				cells = append(cells, "–")
				continue
			}
			cells = append(cells, fmt.Sprintf(format+" ("+format+" to "+format+")", median(v), slices.Min(v), slices.Max(v)))
		}
		s, c := of(sluice), of(copying)
		than := fmt.Sprintf("× %.2f", median(s)/median(c))
		if title == added {
			than = fmt.Sprintf("%+.3f", median(s)-median(c))
		}
		row(append(cells, fmt.Sprintf("%s, p = %.3f", than, benchmarks.MannWhitney(s, c)))...)
	}
	for _, r := range rates {
		step := r.String()
		p50 := func(p *peer) []float64 { return p.p50[step] }
		p99 := func(p *peer) []float64 { return p.p99[step] }
		line(fmt.Sprintf("ack p50 ms, %d/s", r), "%.3f", p50, false)
		line(added, "%.3f", func(p *peer) []float64 { return over(p50(p), p50(direct)) }, true)
		line(fmt.Sprintf("ack p99 ms, %d/s", r), "%.2f", p99, false)
		line(added, "%.2f", func(p *peer) []float64 { return over(p99(p), p99(direct)) }, true)
	}
	line("one in flight, p50 ms", "%.3f", func(p *peer) []float64 { return p.oneInFlight }, false)
	line(fmt.Sprintf("CPU s/GB, produce, frames of %d KiB", bulkFrame>>10), "%.3f", func(p *peer) []float64 { return p.produceCPU }, true)
	line(fmt.Sprintf("CPU s/GB, consume, answers of %d KiB", bulkFetch>>10), "%.3f", func(p *peer) []float64 { return p.consumeCPU }, true)
	line("produce MB/s", "%.0f", func(p *peer) []float64 { return p.produceMB }, false)
	line("consume MB/s", "%.0f", func(p *peer) []float64 { return p.consumeMB }, false)
	cells := []string{fmt.Sprintf("KB resident, each of %d idle connections", *peerIdle), "–"}
	for _, p := range peers[1:] {
		cells = append(cells, fmt.Sprintf("%.1f", p.idle/1e3))
	}
	row(append(cells, fmt.Sprintf("× %.2f", sluice.idle/copying.idle))...)
	_ = w.Flush()
	fmt.Print("\nGoals:\n\n")
	row("goal", "measured", "")
	row(slices.Repeat([]string{"---"}, 3)...)
	others := peers[1 : len(peers)-1]
	best := func(of func(*peer) float64) (least float64, who string) {
		p := slices.MinFunc(others, func(a, b *peer) int { return cmp.Compare(of(a), of(b)) })
		return of(p), p.name
	}
	goal := func(met bool, what, format string, of ...any) {
		verdict := "missed"
		switch {
		case *peerRounds < 4:
			verdict = "too few rounds to say" // no test could tell a difference
		case met:
			verdict = "met"
		}
		row(what, fmt.Sprintf(format, of...), verdict)
	}
	for _, r := range rates {
		step := r.String()
		added := func(p *peer) float64 { return median(over(p.p50[step], direct.p50[step])) }
		least, who := best(added)
		goal(added(sluice) <= least, fmt.Sprintf("adds to direct's p50 at %d/s no more than the best other", r), "%+.3f ms; %s %+.3f", added(sluice), who, least)
		worse := benchmarks.MannWhitney(sluice.p99[step], direct.p99[step])
		goal(worse >= 0.05 || median(sluice.p99[step]) <= median(direct.p99[step]), fmt.Sprintf("p99 at %d/s not significantly above direct's", r),
			"%.2f ms; direct %.2f, p = %.3f", median(sluice.p99[step]), median(direct.p99[step]), worse)
	}
	against := func(what, unit string, ours, bound, allowed float64) {
		goal(ours <= allowed*bound, what, "%.3f %s; copy %.3f", ours, unit, bound)
	}
	against("one in flight, p50 ≤ 1.05 × the copy relay's", "ms", median(sluice.oneInFlight), median(copying.oneInFlight), 1.05)
	against("CPU of produce below the copy relay's", "s/GB", median(sluice.produceCPU), median(copying.produceCPU), 1)
	against("CPU of consume below the copy relay's", "s/GB", median(sluice.consumeCPU), median(copying.consumeCPU), 1)
	goal(median(sluice.produceMB) >= median(copying.produceMB), "produce at the copy relay's MB/s or more", "%.0f; copy %.0f", median(sluice.produceMB), median(copying.produceMB))
	goal(median(sluice.consumeMB) >= median(copying.consumeMB), "consume at the copy relay's MB/s or more", "%.0f; copy %.0f", median(sluice.consumeMB), median(copying.consumeMB))
	goal(sluice.idle <= 16<<10, "an idle connection takes 16 KiB or less", "%.1f KB", sluice.idle/1e3)
	_ = w.Flush()
	fmt.Println()
}
