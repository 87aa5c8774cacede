package benchmarks_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/gc"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/server"
)

// The defaults are the short form; make bench-replay runs the long one.
var (
	replayMiB        = flag.Int("replay-mib", 96, "MiB to be replayed, from each store")
	replayRounds     = flag.Int("replay-rounds", 1, "rounds; each has a replica of its own that has nothing in memory")
	replayPartitions = flag.Int("replay-partitions", 8, "partitions")
	replayConsumers  = flag.Int("replay-consumers", 4, "consumers, each of as many partitions, on a connection of its own")
	replayFetch      = flag.Int("replay-fetch", 1<<20, "max.partition.fetch.bytes")
	replayBatch      = flag.Int("replay-batch", 64<<10, "bytes of a batch")
	replayMemory     = flag.String("replay-memory", "2GiB", "limits.memory_bytes")
	replayGets       = flag.Int("replay-gets", 8, "raw GETs at a time")
	replayControl    = flag.Duration("replay-control", time.Second, "how long control traffic runs beside nothing")
	replayStores     = flag.String("replay-stores", "line", "s3, line, file: an S3 server on this machine, the same behind a line, a folder")
)

const rawGet = 16 << 20

// replayed is what the routes have come to, beside one store.
type replayed struct {
	store string

	puts, stored, amplified float64 // of a GB ingested; bytes in the store and written to it for a byte of payload
	compactGets             float64 // for a GB
	compactPuts             float64
	compactCPU              float64 // seconds for a GB
	raw, direct, sluice     []replayRun
	idle                    []controlTimes // ms that control records took beside nothing
}

// controlTimes are of each of controlWays.
type controlTimes [len(controlWays)][]float64

type replayRun struct {
	mb         float64      // a second
	cpu        float64      // of the replica, seconds for a GB
	busy       float64      // the machine, 0 to 1
	gets       float64      // for a GB, with what leads to segments
	read       float64      // bytes for a byte given
	control    controlTimes // ms
	replicaMax float64      // resident bytes
	turn       float64      // ms that a thread of the replica waited for a CPU, each time it could run
	queued     float64      // ms, p99, that work of the replica waited for one of its threads
}

// Every byte of a compacted topic is read once and unchanged by consumers that do
// no work of their own, from replicas with nothing in memory; the same bytes as
// the segments that hold them, by GETs of 16 MiB; and the same batches from Kafka
// itself. Control traffic runs beside each. Times are printed, not judged.
func TestLongReplayBesideRawGets(t *testing.T) {
	harness.Long(t)
	if runtime.GOOS != "linux" {
		t.Skip("CPU and memory of processes are read from /proc")
	}
	k := harness.StartKafka(t, harness.KafkaOptions{Nodes: []int32{1}})
	s3 := harness.StartS3(t)
	lineAddr := fmt.Sprintf("127.0.0.1:%d", harness.Ports(t, 1))
	startRelay(t, "line", lineAddr, strings.TrimPrefix(s3.Endpoint, "http://"))
	copying := fmt.Sprintf("127.0.0.1:%d", harness.Ports(t, 1))
	startRelay(t, "copy", copying, k.Bootstrap()[0])
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Bootstrap()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)

	makeTopic(t, admin, "control", 1)
	makeTopic(t, admin, "inline", int32(*replayPartitions))
	batch := recordBatch(*replayBatch)
	replayLoad("inline", batch).fill(t, k.Bootstrap()[0])

	at := func(endpoint, prefix string) string { return s3Store(s3, endpoint, prefix) }
	folder := t.TempDir()
	var all []*replayed
	for _, store := range strings.Split(*replayStores, ",") {
		r := &replayed{store: store}
		write, read := at(s3.Endpoint, store), at(s3.Endpoint, store)
		switch store {
		case "line":
			read = at("http://"+lineAddr, store)
		case "file":
			write = fmt.Sprintf(`{ url: "file://%s" }`, folder)
			read = write
		}
		topic := store + "-replay"
		makeTopic(t, admin, topic, int32(*replayPartitions))
		t.Run(store, func(t *testing.T) { r.ingest(t, k, write, topic, batch) })
		for round := range *replayRounds {
			t.Run(fmt.Sprint(store, round), func(t *testing.T) { r.round(t, k, copying, read, topic, batch, round) })
		}
		if t.Failed() {
			return
		}
		all = append(all, r)
	}
	printReplays(all)
}

// replayConfig is that of replicas, and of the compactor.
func replayConfig(store string) string {
	return fmt.Sprintf(`stores:
  default: %s
topics:
  - { match: "*-replay", class: replay }
compaction: { enabled: false, window: 10s, min_age: 1s }
gc: { enabled: false }
limits: { memory_bytes: %s }
`, store, *replayMemory)
}

func replayLoad(topic string, batch []byte) rawLoad {
	return rawLoad{
		topic: topic, batch: batch, batches: *replayMiB << 20 / *replayPartitions / len(batch), partitions: *replayPartitions,
		clients: *replayConsumers, inFlight: 64, fetch: *replayFetch,
	}
}

// ingest writes the topic, compacts it and collects what then nothing needs any
// more.
func (r *replayed) ingest(t *testing.T, k *harness.Kafka, store, topic string, batch []byte) {
	gb := replayLoad(topic, batch).bytes() / 1e9
	s := startSluice(t, k, replayConfig(store))
	replayLoad(topic, batch).fill(t, s.diskless(int(k.Nodes()[0])))
	puts := s.metric(t, "sluice_objstore_requests_total", `op="put"`, `outcome="ok"`)
	r.puts = puts / gb

	time.Sleep(11*time.Second + 500*time.Millisecond) // the last window, and its age
	compact := exec.Command(s.program, "compact", "-c", s.config, "--once")
	if out, err := compact.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r.compactCPU = (compact.ProcessState.UserTime() + compact.ProcessState.SystemTime()).Seconds() / gb

	opened, cfg := openReplayStore(t, s.config)
	var wal, segments, windows, segmentBytes float64
	list(t, opened, diskless.WALPrefix, func(objstore.Info) { wal++ })
	list(t, opened, segment.DataPrefix, func(i objstore.Info) { segments++; segmentBytes += float64(i.Size) })
	list(t, opened, segment.WindowsPrefix, func(objstore.Info) { windows++ })
	r.compactGets, r.compactPuts = wal/gb, (segments+windows)/gb
	r.amplified = segmentBytes / replayLoad(topic, batch).bytes()

	opt, err := server.ClusterOptions(cfg, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := lowlatency.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	if err := cluster.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Nothing is on its way to the logs: they need not be waited for for hours.
	collector := gc.Options{
		Name: "default", Store: opened, Kafka: cluster, MinAge: time.Second, DeletesPerSecond: 10_000, Logger: zerolog.Nop(),
		Timing: gc.Timing{Margin: 2 * time.Second, Grace: time.Second, Apart: time.Second, Missed: time.Hour},
	}
	for pass := 0; ; pass++ {
		time.Sleep(1100 * time.Millisecond) // the store's clock counts seconds
		_, err := gc.New(collector).Pass(t.Context())
		left := 0
		list(t, opened, diskless.WALPrefix, func(objstore.Info) { left++ })
		if err == nil && left == 0 {
			break
		}
		if pass == 10 {
			t.Fatalf("%d WAL objects are left: %v", left, err)
		}
	}
	list(t, opened, "", func(i objstore.Info) { r.stored += float64(i.Size) })
	r.stored /= replayLoad(topic, batch).bytes()
	t.Logf("%s: %.0f PUTs/GB; compacted by %.0f GETs, %.0f PUTs and %.2f CPU s/GB; %.4f bytes stored for a byte", r.store, r.puts, r.compactGets, r.compactPuts, r.compactCPU, r.stored)
}

func openReplayStore(t *testing.T, file string) (objstore.Store, *config.Config) {
	t.Helper()
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	store, err := server.OpenStore(cfg.Stores["default"], *replayGets)
	if err != nil {
		t.Fatal(err)
	}
	return store, cfg
}

func list(t *testing.T, store objstore.Store, prefix string, fn func(objstore.Info)) {
	t.Helper()
	if err := store.List(t.Context(), prefix, "", func(i objstore.Info) error { fn(i); return nil }); err != nil {
		t.Fatal(err)
	}
}

// round replays through a replica that has just started, by raw GETs and from
// Kafka, in turns.
func (r *replayed) round(t *testing.T, k *harness.Kafka, relay, store, topic string, batch []byte, round int) {
	s := startSluice(t, k, replayConfig(store))
	opened, _ := openReplayStore(t, s.config)
	size := replayLoad(topic, batch).bytes()
	control := startControls(t, s, k, relay)
	time.Sleep(*replayControl)
	r.idle = append(r.idle, control.end())

	routes := []func(){
		func() {
			run := measure(t, s, k, relay, size, func() { readRaw(t, opened) })
			r.raw = append(r.raw, run)
			t.Logf("%s: raw GETs: %.0f MB/s, machine %.0f %% busy", r.store, run.mb, 100*run.busy)
		},
		func() {
			run := measure(t, s, k, relay, size, func() { replayLoad(topic, batch).consume(t, s.diskless(int(k.Nodes()[0]))) })
			r.sluice = append(r.sluice, run)
			t.Logf("%s: sluice: %.0f MB/s, %.2f CPU s/GB, machine %.0f %% busy, %.0f GETs/GB, %.3f bytes read for a byte, %s resident", r.store, run.mb, run.cpu, 100*run.busy, run.gets, run.read, humanize.IBytes(uint64(run.replicaMax)))
		},
		func() {
			run := measure(t, s, k, relay, size, func() { replayLoad("inline", batch).consume(t, k.Bootstrap()[0]) })
			r.direct = append(r.direct, run)
			t.Logf("%s: Kafka: %.0f MB/s, machine %.0f %% busy", r.store, run.mb, 100*run.busy)
		},
	}
	for i := range routes {
		routes[(round+i)%len(routes)]()
	}
	if n := s.metric(t, "sluice_diskless_segment_fallbacks_total"); n > 0 {
		t.Errorf("%v times a segment did not do", n)
	}
}

// measure lets control traffic run beside something that moves so many bytes.
func measure(t *testing.T, s *sluiceProcess, k *harness.Kafka, relay string, size float64, move func()) (run replayRun) {
	t.Helper()
	control := startControls(t, s, k, relay)
	gets, read, cpu := s.metric(t, "sluice_objstore_requests_total", `op="get"`), s.metric(t, "sluice_objstore_bytes_total", `op="get"`), processCPU(t, s.pid)
	busy, all := machineCPU(t)
	ran, queued := scheduled(t, s.pid), s.queued(t)
	began := time.Now()
	move()
	took := time.Since(began).Seconds()
	busyAfter, allAfter := machineCPU(t)
	run.turn = scheduled(t, s.pid).since(ran)
	run.queued = 1e3 * p99Since(queued, s.queued(t))
	run.cpu = (processCPU(t, s.pid) - cpu) / (size / 1e9)
	run.control = control.end()
	if t.Failed() {
		t.FailNow()
	}
	run.mb, run.busy = size/1e6/took, (busyAfter-busy)/(allAfter-all)
	run.gets = (s.metric(t, "sluice_objstore_requests_total", `op="get"`) - gets) / (size / 1e9)
	run.read = (s.metric(t, "sluice_objstore_bytes_total", `op="get"`) - read) / size
	run.replicaMax = residentBytes(t, s.pid)
	return run
}

// readRaw reads all segments.
func readRaw(t *testing.T, store objstore.Store) {
	var g errgroup.Group
	g.SetLimit(*replayGets)
	list(t, store, segment.DataPrefix, func(i objstore.Info) {
		for from := int64(0); from < i.Size; from += rawGet {
			g.Go(func() error {
				n := min(rawGet, i.Size-from)
				b, err := store.Get(t.Context(), i.Key, from, n)
				if err == nil && int64(len(b)) != n {
					err = fmt.Errorf("%s: %d bytes of %d", i.Key, len(b), n)
				}
				return err
			})
		}
	})
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// controls are the same traffic through the replica and to the broker itself, at
// the same time: what beside a replay is sluice's doing is the difference.
// The copy relay shares no scheduler with the replay, and is a hop as well: that it
// takes as long is the machine's doing.
type controls [len(controlWays)]*controlTraffic

var controlWays = [...]string{"", " to the broker itself", " through the copy relay"}

func startControls(t *testing.T, s *sluiceProcess, k *harness.Kafka, relay string) controls {
	return controls{startControl(t, s.bootstrap), startControl(t, k.Bootstrap()[0]), startControl(t, relay)}
}

func (c controls) end() (took controlTimes) {
	for i := range c {
		took[i] = c[i].end()
	}
	return took
}

// controlTraffic is a record of 1 KiB every 5 ms, whether the one before it has
// been acknowledged or not.
type controlTraffic struct {
	stop context.CancelFunc
	done errgroup.Group
	took []float64 // ms from when each was due
	t    *testing.T
}

func startControl(t *testing.T, addr string) *controlTraffic {
	t.Helper()
	c, err := dialRaw(addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	control := &controlTraffic{stop: stop, t: t}
	frame := produceFrame("control", 0, recordBatch(1))
	const every = 5 * time.Millisecond
	sent := make(chan time.Time, 100_000)
	control.done.Go(func() error {
		defer close(sent)
		for due := time.Now(); ctx.Err() == nil; due = due.Add(every) {
			time.Sleep(time.Until(due))
			if _, err := c.Write(frame); err != nil {
				return err
			}
			sent <- due
		}
		return nil
	})
	control.done.Go(func() error {
		defer c.Close()
		for due := range sent {
			if err := c.produced(); err != nil {
				return err
			}
			control.took = append(control.took, time.Since(due).Seconds()*1e3)
		}
		return nil
	})
	return control
}

func (c *controlTraffic) end() []float64 {
	c.stop()
	if err := c.done.Wait(); err != nil {
		c.t.Errorf("control traffic: %v", err)
	}
	return c.took
}

func (p *sluiceProcess) metrics(t *testing.T) string {
	t.Helper()
	resp, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// metric adds up the lines of a metric that have all of some labels.
func (p *sluiceProcess) metric(t *testing.T, name string, labels ...string) (sum float64) {
	t.Helper()
next:
	for l := range strings.Lines(p.metrics(t)) {
		if rest, ok := strings.CutPrefix(l, name); !ok || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(l, label) {
				continue next
			}
		}
		fields := strings.Fields(l)
		v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// turns are how often the threads of a process have got a CPU, and how long they
// waited for it in all.
type turns struct{ n, waited float64 }

// since is in ms for each turn.
func (s turns) since(before turns) float64 {
	return (s.waited - before.waited) / 1e6 / max(1, s.n-before.n)
}

func scheduled(t *testing.T, pid int) (sum turns) {
	t.Helper()
	threads, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "schedstat"))
	if err != nil || len(threads) == 0 {
		t.Fatalf("%d threads of the replica: %v", len(threads), err)
	}
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if err != nil {
			continue // it has ended
		}
		var ran, waited, n float64
		if _, err := fmt.Sscan(string(text), &ran, &waited, &n); err != nil {
			t.Fatal(err)
		}
		sum.n, sum.waited = sum.n+n, sum.waited+waited
	}
	return sum
}

// bucket is one of a histogram: how many were no more than that.
type bucket struct{ most, n float64 }

// queued is how long work has waited for a thread, in seconds.
func (p *sluiceProcess) queued(t *testing.T) (buckets []bucket) {
	t.Helper()
	const name = `go_sched_latencies_seconds_bucket{le="`
	for l := range strings.Lines(p.metrics(t)) {
		if rest, ok := strings.CutPrefix(l, name); ok {
			var b bucket
			if _, err := fmt.Sscanf(strings.Replace(rest, `"}`, "", 1), "%g %g", &b.most, &b.n); err != nil {
				t.Fatalf("%s: %v", l, err)
			}
			buckets = append(buckets, b)
		}
	}
	return buckets
}

// p99Since is the bound of the bucket in which 99 of 100 lie.
func p99Since(before, after []bucket) float64 {
	if len(after) == 0 || len(before) != len(after) {
		return 0
	}
	all := after[len(after)-1].n - before[len(before)-1].n
	for i := range after {
		if after[i].n-before[i].n >= 0.99*all {
			return after[i].most
		}
	}
	return 0
}

// machineCPU is in ticks, of all CPUs.
func machineCPU(t *testing.T) (busy, all float64) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", "stat"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	for i, f := range strings.Fields(first)[1:9] {
		v, err := strconv.ParseFloat(f, 64)
		if err != nil {
			t.Fatal(err)
		}
		all += v
		if i != 3 && i != 4 { // idle, and waiting for a disk
			busy += v
		}
	}
	return busy, all
}

func printReplays(all []*replayed) {
	fmt.Printf("\n%d MiB in %d partitions, batches of %s; %d consumers, max.partition.fetch.bytes %s; limits.memory_bytes %s; %d raw GETs of 16 MiB at a time; %d CPUs for all of it\n",
		*replayMiB, *replayPartitions, humanize.IBytes(uint64(*replayBatch)), *replayConsumers, humanize.IBytes(uint64(*replayFetch)), *replayMemory, *replayGets, runtime.NumCPU())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	heads := []string{""}
	for _, r := range all {
		heads = append(heads, r.store)
	}
	row := func(cells ...string) { fmt.Fprintln(w, "| "+strings.Join(cells, "\t| ")+"\t|") }
	fmt.Fprintf(w, "%d rounds; medians (least to most)\n\n", *replayRounds)
	row(heads...)
	row(slices.Repeat([]string{"---"}, len(heads))...)
	line := func(title, format string, of func(*replayed) []float64) {
		cells := []string{title}
		for _, r := range all {
			v := of(r)
			cell := fmt.Sprintf(format, median(v))
			if len(v) > 1 {
				cell += fmt.Sprintf(" ("+format+" to "+format+")", slices.Min(v), slices.Max(v))
			}
			cells = append(cells, cell)
		}
		row(cells...)
	}
	type runs = func(*replayed) []replayRun
	raw, sluice, direct := func(r *replayed) []replayRun { return r.raw }, func(r *replayed) []replayRun { return r.sluice }, func(r *replayed) []replayRun { return r.direct }
	each := func(title, format string, of runs, figure func(replayRun) float64) {
		line(title, format, func(r *replayed) (v []float64) {
			for _, run := range of(r) {
				v = append(v, figure(run))
			}
			return v
		})
	}
	mb, busy := func(r replayRun) float64 { return r.mb }, func(r replayRun) float64 { return 100 * r.busy }
	each("raw GETs, MB/s", "%.0f", raw, mb)
	each("replay through sluice, MB/s", "%.0f", sluice, mb)
	line("of raw GETs in the same round", "%.0f %%", func(r *replayed) (v []float64) {
		for i := range r.raw {
			v = append(v, 100*r.sluice[i].mb/r.raw[i].mb)
		}
		return v
	})
	each("the same batches from Kafka, MB/s", "%.0f", direct, mb)
	each("machine busy, raw GETs", "%.0f %%", raw, busy)
	each("machine busy, sluice", "%.0f %%", sluice, busy)
	each("CPU s/GB of the replica", "%.2f", sluice, func(r replayRun) float64 { return r.cpu })
	each("GETs per GB replayed", "%.0f", sluice, func(r replayRun) float64 { return r.gets })
	each("bytes read for a byte given", "%.3f", sluice, func(r replayRun) float64 { return r.read })
	each("resident after it, MB", "%.0f", sluice, func(r replayRun) float64 { return r.replicaMax / 1e6 })
	besides := []struct {
		name string
		of   runs
	}{{"raw GETs", raw}, {"a replay through sluice", sluice}, {"one from Kafka", direct}}
	for _, beside := range besides {
		each("a thread of the replica waits for a CPU beside "+beside.name+", ms", "%.2f", beside.of, func(r replayRun) float64 { return r.turn })
	}
	for _, beside := range besides {
		each("its work waits for a thread beside "+beside.name+", p99, below ms", "%.3g", beside.of, func(r replayRun) float64 { return r.queued })
	}
	for _, p := range []struct {
		name  string
		share int
	}{{"p50", 50}, {"p99", 99}} {
		at := func(took []float64) float64 { return slices.Sorted(slices.Values(took))[len(took)*p.share/100] }
		for way, to := range controlWays {
			title := "control " + p.name + to + " beside %s, ms"
			line(fmt.Sprintf(title, "nothing"), "%.2f", func(r *replayed) (v []float64) {
				for _, took := range r.idle {
					v = append(v, at(took[way]))
				}
				return v
			})
			for _, beside := range besides {
				each(fmt.Sprintf(title, beside.name), "%.2f", beside.of, func(r replayRun) float64 { return at(r.control[way]) })
			}
		}
	}
	one := func(title, format string, of func(*replayed) float64) {
		line(title, format, func(r *replayed) []float64 { return []float64{of(r)} })
	}
	one("PUTs per GB ingested", "%.0f", func(r *replayed) float64 { return r.puts })
	one("GETs per GB compacted", "%.0f", func(r *replayed) float64 { return r.compactGets })
	one("PUTs per GB compacted", "%.0f", func(r *replayed) float64 { return r.compactPuts })
	one("CPU s/GB compacted", "%.2f", func(r *replayed) float64 { return r.compactCPU })
	one("bytes of segments for a byte", "%.4f", func(r *replayed) float64 { return r.amplified })
	one("bytes stored for a byte, after garbage collection", "%.4f", func(r *replayed) float64 { return r.stored })
	_ = w.Flush()
}
