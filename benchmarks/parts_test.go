package benchmarks_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/benchmarks"
	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/cost"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/server"
)

const (
	partClients   = 4
	partInFlight  = 8
	partFrame     = 256 << 10
	partProducers = 5
	partFetch     = 1 << 20
	partPuts      = 16         // limits.put_concurrency
	partObject    = 8 << 20    // object_size of telemetry
	fewRecords    = 100        // the least of a batch for which the share left in Kafka has a goal
	largeFrame    = 1000 << 10 // what max.message.bytes lets pass by default
)

// telemetryBatch is a batch of records of 1 KiB a millisecond apart, of which
// half does not compress; size bytes before compression.
func telemetryBatch(t *testing.T, size int, codec int) []byte {
	t.Helper()
	const payload = 1 << 10
	noise := rand.NewChaCha8([32]byte{1})
	var body []byte
	n := int32(max(1, size/payload))
	for i := range n {
		rec := kmsg.Record{OffsetDelta: i, TimestampDelta64: int64(i), Value: bytes.Repeat([]byte("telemetry "), payload/10+1)[:payload]}
		_, _ = noise.Read(rec.Value[:payload/2])
		binary.BigEndian.PutUint32(rec.Value, uint32(i))
		rec.Length = int32(len(rec.AppendTo(nil)) - 1)
		body = rec.AppendTo(body)
	}
	if codec == wire.CodecLz4 {
		var out bytes.Buffer
		w := lz4.NewWriter(&out)
		err := w.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false), lz4.ConcurrencyOption(1))
		if err == nil {
			_, err = w.Write(body)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		body = out.Bytes()
	}
	now := time.Now().UnixMilli()
	batch := kmsg.RecordBatch{
		Magic: 2, Attributes: int16(codec), LastOffsetDelta: n - 1, FirstTimestamp: now, MaxTimestamp: now + int64(n) - 1,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: n, Records: body,
	}
	b := batch.AppendTo(nil)
	wire.Batch(b).SetLength(int32(len(b) - wire.LogOverhead))
	wire.Batch(b).SetCRC(wire.Batch(b).ComputeCRC())
	return b
}

// partRuns are what one way and kind of batch has come to; one of each for a
// round.
type partRuns struct {
	name, codec        string
	diskless           bool
	produce, fetch     []float64 // CPU seconds for a GB
	produceMB, fetchMB []float64
	puts, gets         float64 // of all rounds
	produced, inKafka  float64 // bytes
}

// throughputRuns are what several producers get through to one store.
type throughputRuns struct {
	store                     string
	frame                     int
	mb, raw, cores, busy      []float64
	window                    []float64 // MB/s: what is in flight, over what a PUT takes
	puts, late, early, filled float64   // a round, at the last
}

// What sluice takes for a GB is measured for producing and fetching apart, and
// for batches with and without compression; and whether producers wait for the
// store, for a CPU, or for sluice itself. Every batch has to come back as it was.
// Times are printed, not judged.
func TestLongTiersByPart(t *testing.T) {
	harness.Long(t)
	if runtime.GOOS != "linux" {
		t.Skip("CPU of processes is read from /proc")
	}
	k := harness.StartKafka(t, harness.KafkaOptions{Nodes: []int32{1}, Properties: map[string]string{
		"log.segment.delete.delay.ms": "1000", // rounds must not fill the disk
	}})
	s3 := harness.StartS3(t)
	lineAddr := fmt.Sprintf("127.0.0.1:%d", harness.Ports(t, 1))
	startRelay(t, "line", lineAddr, strings.TrimPrefix(s3.Endpoint, "http://"))
	at := func(name, endpoint string) string {
		return "  " + name + ": " + s3Store(s3, endpoint, name) + "\n"
	}
	stores := []string{"s3", "line", "file"}
	text := "stores:\n" + at("s3", s3.Endpoint) + at("line", "http://"+lineAddr) + fmt.Sprintf("  file: { url: \"file://%s\" }\n", t.TempDir())
	text += "classes:\n"
	for _, store := range stores {
		text += fmt.Sprintf("  to-%s: { tier: diskless, linger: 250ms, object_size: %d, store: %s }\n", store, partObject, store)
	}
	text += "topics:\n"
	for _, store := range stores {
		text += fmt.Sprintf("  - { match: \"*-%s\", class: to-%s }\n", store, store)
	}
	s := startSluice(t, k, text+"compaction: { enabled: false }\ngc: { enabled: false }\nlimits: { memory_bytes: 2GiB }\n")
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Bootstrap()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := parts{t: t, s: s, admin: kadm.NewClient(client), node: int(k.Nodes()[0]), opened: map[string]objstore.Store{}}
	cfg, err := config.Load(s.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, store := range stores {
		if p.opened[store], err = server.OpenStore(cfg.Stores[store], partPuts); err != nil {
			t.Fatal(err)
		}
	}

	var each []*partRuns
	for _, codec := range []string{"none", "lz4"} {
		each = append(each, &partRuns{name: "low-latency", codec: codec}, &partRuns{name: "diskless", codec: codec, diskless: true})
	}
	var through []*throughputRuns
	for _, store := range stores {
		for _, frame := range []int{256 << 10, largeFrame} {
			through = append(through, &throughputRuns{store: store, frame: frame})
		}
	}
	// Memory that a process has for the first time costs almost as much CPU as all
	// else: what fills the cache, an eighth of its memory, and the heap does not count.
	p.fill(256 << 20)
	for _, r := range each {
		p.part(r)
		*r = partRuns{name: r.name, codec: r.codec, diskless: r.diskless}
	}
	for round := range *rounds {
		for i := range each {
			p.part(each[(round+i)%len(each)])
		}
		for i := range through {
			p.throughput(through[(round+i)%len(through)])
		}
	}
	few := p.leftInKafka()
	printParts(each, through, few)
}

type parts struct {
	t      *testing.T
	s      *sluiceProcess
	admin  *kadm.Client
	node   int
	opened map[string]objstore.Store
}

// spent calls move, and returns the seconds that it took, the CPU seconds of
// sluice's, and the machine's share.
func (p parts) spent(move func()) (took, cpu, busy float64) {
	p.t.Helper()
	cpu = processCPU(p.t, p.s.pid)
	busyBefore, allBefore := machineCPU(p.t)
	began := time.Now()
	move()
	took = time.Since(began).Seconds()
	busyAfter, allAfter := machineCPU(p.t)
	return took, processCPU(p.t, p.s.pid) - cpu, (busyAfter - busyBefore) / max(allAfter-allBefore, 1)
}

// clear deletes a topic and the objects of its store: nobody reads them any more.
func (p parts) clear(topic, store string) {
	p.t.Helper()
	if _, err := p.admin.DeleteTopic(p.t.Context(), topic); err != nil {
		p.t.Fatal(err)
	}
	if store == "" {
		return
	}
	list(p.t, p.opened[store], diskless.WALPrefix, func(i objstore.Info) {
		if err := p.opened[store].Delete(p.t.Context(), i.Key); err != nil {
			p.t.Error(err)
		}
	})
}

func (p parts) fill(bytes int) {
	p.t.Helper()
	batch := telemetryBatch(p.t, partFrame, wire.CodecNone)
	l := rawLoad{topic: "fill-s3", batch: batch, batches: bytes / partClients / len(batch), partitions: partClients, clients: partClients, inFlight: partInFlight}
	makeTopic(p.t, p.admin, l.topic, partClients)
	l.fill(p.t, p.s.diskless(p.node))
	p.clear(l.topic, "s3")
}

func (p parts) part(r *partRuns) {
	t := p.t
	codec, topic, store, face := wire.CodecNone, "parts-control", "", p.s.lowLatency
	if r.codec == "lz4" {
		codec = wire.CodecLz4
	}
	if r.diskless {
		topic, store, face = "parts-s3", "s3", p.s.diskless
	}
	size := partFrame
	if codec != wire.CodecNone {
		size *= 2 // as long on the wire, or nearly
	}
	batch := telemetryBatch(t, size, codec)
	l := rawLoad{
		topic: topic, batch: batch, batches: max(partInFlight, *bulkMiB<<20/partClients/len(batch)), partitions: partClients,
		clients: partClients, inFlight: partInFlight, fetch: partFetch, idempotent: true,
	}
	makeTopic(t, p.admin, topic, partClients)
	puts, gets := p.s.metric(t, "sluice_objstore_requests_total", `op="put"`), p.s.metric(t, "sluice_objstore_requests_total", `op="get"`)
	gb := l.bytes() / 1e9
	took, cpu, _ := p.spent(func() { l.fill(t, face(p.node)) })
	r.produce, r.produceMB = append(r.produce, cpu/gb), append(r.produceMB, gb*1e3/took)
	took, cpu, _ = p.spent(func() { l.consume(t, face(p.node)) })
	r.fetch, r.fetchMB = append(r.fetch, cpu/gb), append(r.fetchMB, gb*1e3/took)
	r.puts += p.s.metric(t, "sluice_objstore_requests_total", `op="put"`) - puts
	r.gets += p.s.metric(t, "sluice_objstore_requests_total", `op="get"`) - gets
	r.produced += l.bytes()
	r.inKafka += p.logBytes(topic)
	t.Logf("%-11s %-4s  produce %.2f CPU s/GB, %.0f MB/s   fetch %.2f CPU s/GB, %.0f MB/s", r.name, r.codec,
		r.produce[len(r.produce)-1], r.produceMB[len(r.produceMB)-1], r.fetch[len(r.fetch)-1], r.fetchMB[len(r.fetchMB)-1])
	if cpu <= 0 {
		t.Errorf("%s: no CPU was used: did the load go through sluice?", r.name)
	}
	p.clear(topic, store)
}

// logBytes are those of one replica of a topic's logs.
func (p parts) logBytes(topic string) (sum float64) {
	p.t.Helper()
	described, err := p.admin.DescribeAllLogDirs(p.t.Context(), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	described.Each(func(d kadm.DescribedLogDir) {
		if d.Err != nil {
			p.t.Fatal(d.Err)
		}
		for _, partition := range d.Topics[topic] {
			sum += float64(partition.Size)
		}
	})
	return sum
}

// throughput lets producers write as fast as they may, and then PUTs alone, of
// full objects.
func (p parts) throughput(r *throughputRuns) {
	t := p.t
	topic := "through-" + r.store
	batch := telemetryBatch(t, r.frame, wire.CodecNone)
	l := rawLoad{
		topic: topic, batch: batch, batches: max(2*bulkInFlight, 2**bulkMiB<<20/partProducers/len(batch)), partitions: partProducers,
		clients: partProducers, inFlight: bulkInFlight, idempotent: true,
	}
	makeTopic(t, p.admin, topic, partProducers)
	count := func(name string, labels ...string) func() float64 {
		before := p.s.metric(t, name, labels...)
		return func() float64 { return p.s.metric(t, name, labels...) - before }
	}
	puts, early, late := count("sluice_diskless_objects_written_total"), count("sluice_diskless_seals_total", `reason="early"`), count("sluice_diskless_seals_total", `reason="linger"`)
	putSeconds, putCount := count("sluice_diskless_put_seconds_sum"), count("sluice_diskless_put_seconds_count")
	var mu sync.Mutex
	var acks []time.Time
	l.acked = func() {
		mu.Lock()
		defer mu.Unlock()
		acks = append(acks, time.Now())
	}
	took, cpu, busy := p.spent(func() { l.fill(t, p.s.diskless(p.node)) })
	// The last of a load wait for what will not come: a linger.
	from, to := len(acks)/10, len(acks)*9/10
	mb := float64(len(batch)*(to-from)) / 1e6 / acks[to].Sub(acks[from]).Seconds()
	r.window = append(r.window, float64(partProducers*bulkInFlight*len(batch))/1e6/(putSeconds()/putCount()))
	r.mb, r.cores, r.busy = append(r.mb, mb), append(r.cores, cpu/took), append(r.busy, busy)
	r.puts, r.early, r.late = puts(), early(), late()
	r.filled = l.bytes() / r.puts / partObject
	p.clear(topic, r.store)

	object := bytes.Repeat(batch, partObject/len(batch))
	n := max(1, int(l.bytes())/len(object))
	began := time.Now()
	var g errgroup.Group
	g.SetLimit(partPuts)
	for i := range n {
		g.Go(func() error {
			return p.opened[r.store].Put(t.Context(), fmt.Sprint("raw/", i), object)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	r.raw = append(r.raw, float64(n*len(object))/1e6/time.Since(began).Seconds())
	last := func(v []float64) float64 { return v[len(v)-1] }
	t.Logf("%-4s batches of %s: %.0f MB/s, PUTs alone %.0f MB/s; sluice %.2f cores, machine %.0f %% busy; %.0f objects (%.0f early, %.0f by linger), %.0f %% full",
		r.store, humanize.IBytes(uint64(r.frame)), last(r.mb), last(r.raw), last(r.cores), 100*last(r.busy), r.puts, r.early, r.late, 100*r.filled)
}

// leftInKafka is the share of the payload's bytes that batches of just so many
// records leave there.
func (p parts) leftInKafka() float64 {
	t := p.t
	batch := telemetryBatch(t, fewRecords<<10, wire.CodecNone)
	l := rawLoad{topic: "few-s3", batch: batch, batches: 64, partitions: partClients, clients: partClients, inFlight: bulkInFlight, idempotent: true}
	makeTopic(t, p.admin, l.topic, partClients)
	l.fill(t, p.s.diskless(p.node))
	share := p.logBytes(l.topic) / (float64(l.batches*l.partitions) * float64(fewRecords<<10))
	if share == 0 || share > 0.5 {
		t.Errorf("Kafka stores %.3f of the payload's bytes", share)
	}
	p.clear(l.topic, "s3")
	return share
}

// markdown prints tables to be pasted.
type markdown struct{ w *tabwriter.Writer }

func newMarkdown() markdown { return markdown{tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)} }

func (m markdown) row(cells ...string) { fmt.Fprintln(m.w, "| "+strings.Join(cells, "\t| ")+"\t|") }

// head begins a table below a line of text.
func (m markdown) head(text string, cells ...string) {
	fmt.Fprintf(m.w, "\n%s\n\n", text)
	m.row(cells...)
	m.row(slices.Repeat([]string{"---"}, len(cells))...)
}

func (m markdown) end() { _ = m.w.Flush() }

func spreadText(format string, v []float64) string {
	return fmt.Sprintf(format+" ("+format+" to "+format+")", median(v), slices.Min(v), slices.Max(v))
}

// verdict says whether a series stays within its bound, and whether the rounds
// could be chance.
func verdict(measured, bound []float64) (said, p string) {
	chance := benchmarks.MannWhitney(measured, bound)
	p = fmt.Sprintf("%.3f", chance)
	switch within := median(measured) <= median(bound); {
	case len(measured) < 4:
		return "too few rounds to say", p // no test could tell a difference
	case within:
		return "met", p
	case chance >= 0.05:
		return "missed, not significantly", p
	}
	return "missed", p
}

func times(factor float64, v []float64) []float64 {
	out := slices.Clone(v)
	for i := range out {
		out[i] *= factor
	}
	return out
}

func printParts(each []*partRuns, through []*throughputRuns, few float64) {
	find := func(name, codec string) *partRuns {
		return each[slices.IndexFunc(each, func(r *partRuns) bool { return r.name == name && r.codec == codec })]
	}
	fmt.Printf("\nKafka %s, one broker; %s, %d CPUs for all of it; %d rounds; medians (least to most). A GB is of batches as they are on the wire.\n", harness.DefaultKafka, runtime.Version(), runtime.NumCPU(), *rounds)
	m := newMarkdown()
	m.head(fmt.Sprintf("CPU of sluice by part: %d idempotent producers, batches of %d KiB (lz4: twice that, about half of which is left), %d in flight; then as many consumers, of what is in memory:", partClients, partFrame>>10, partInFlight),
		"", "batches", "produce, CPU s/GB", "fetch, CPU s/GB", "produce, MB/s", "fetch, MB/s")
	for _, r := range each {
		m.row(r.name, r.codec, spreadText("%.2f", r.produce), spreadText("%.2f", r.fetch), spreadText("%.0f", r.produceMB), spreadText("%.0f", r.fetchMB))
	}
	m.head(fmt.Sprintf("Throughput, diskless: %d producers, %d in flight each, uncompressed; beside it PUTs of %s alone, %d at a time:", partProducers, bulkInFlight, humanize.IBytes(partObject), partPuts),
		"store", "batches", "MB/s", "PUTs alone, MB/s", "in flight ÷ PUT, MB/s", "sluice, cores", "machine busy", "objects full", "sealed early, by linger, of")
	for _, r := range through {
		m.row(r.store, humanize.IBytes(uint64(r.frame)), spreadText("%.0f", r.mb), spreadText("%.0f", r.raw), spreadText("%.0f", r.window), spreadText("%.2f", r.cores), spreadText("%.0f %%", times(100, r.busy)),
			fmt.Sprintf("%.0f %%", 100*r.filled), fmt.Sprintf("%.0f, %.0f, %.0f", r.early, r.late, r.puts))
	}
	m.head("Goals; p is of a Mann–Whitney test over the rounds:", "goal", "for", "bound", "measured", "p", "")
	const allowed = 2.5
	for _, codec := range []string{"none", "lz4"} {
		ours, theirs := find("diskless", codec), find("low-latency", codec)
		for _, way := range []struct {
			name string
			of   func(*partRuns) []float64
		}{{"produce", func(r *partRuns) []float64 { return r.produce }}, {"tail fetch", func(r *partRuns) []float64 { return r.fetch }}} {
			measured, bound := way.of(ours), times(allowed, way.of(theirs))
			said, p := verdict(measured, bound)
			m.row("CPU a GB ≤ 2.5 × low latency's", way.name+", "+codec, fmt.Sprintf("%.2f s", median(bound)), fmt.Sprintf("%.2f s (× %.2f)", median(measured), median(measured)/median(way.of(theirs))), p, said)
		}
	}
	const near, core, all = 0.8, 0.95, 0.95
	for _, r := range through {
		allowed := make([]float64, len(r.mb))
		for i := range allowed {
			allowed[i] = near * min(r.raw[i], r.window[i])
		}
		said, p := verdict(allowed, r.mb)
		by := "none of them"
		switch {
		case median(r.mb) >= near*median(r.raw):
			by = "the store"
		case median(r.mb) >= median(allowed):
			by = "the store, by what is in flight"
		case median(r.cores) >= core:
			by, said, p = "a core", "met", "–"
		case median(r.busy) >= all:
			by, said, p = "the machine's CPUs", "met", "–"
		}
		if *rounds < 4 {
			said = "too few rounds to say"
		}
		m.row("producers wait for the store (80 % of PUTs alone, or of what is in flight ÷ PUT), a core or the machine's CPUs (95 %)", r.store+", "+humanize.IBytes(uint64(r.frame)),
			fmt.Sprintf("%.0f MB/s", median(allowed)), fmt.Sprintf("%.0f MB/s, %.2f cores, %.0f %% busy: %s", median(r.mb), median(r.cores), 100*median(r.busy), by), p, said)
	}
	said := "missed"
	if few <= 0.01 {
		said = "met"
	}
	m.row("bytes left in Kafka ≤ 1 % of the payload", fmt.Sprintf("%d records of 1 KiB a batch", fewRecords), "1 %", fmt.Sprintf("%.2f %%", 100*few), "–", said)
	printExtrapolation(m, find("low-latency", "none"), find("diskless", "none"))
	m.end()
}

// printExtrapolation puts on paper what a load takes that no test can make.
func printExtrapolation(m markdown, relayed, diskless *partRuns) {
	const wanted = 40.0 // GiB/s
	const gib, gb = 1 << 30, 1e9
	builtins := config.Builtins()
	class := builtins["telemetry"]
	model := func(r *partRuns, mix map[string]float64, bytes float64) cost.Model {
		a := cost.Defaults()
		a.Mix, a.Throughput, a.FanOut, a.CatchUp = mix, bytes, 1, 0
		// Measured for a GB in one direction, assumed for a GiB in either.
		perGiB := (median(r.produce) + median(r.fetch)) / 2 * gib / gb
		if r.diskless {
			a.SluiceCPUDiskless = perGiB
			a.PlaceholderBytes, a.PlaceholderRecord = r.inKafka/r.produced*a.BatchSize, 0
		} else {
			a.SluiceCPURelay = perGiB
		}
		a.SluiceCPURequest = 0 // in what was measured
		return cost.Model{Assumptions: a, Prices: cost.ListPrices(), Classes: builtins}
	}
	m.head(fmt.Sprintf("What %.0f GiB/s would need, on paper:", wanted),
		"tier", "GiB/s a core", "cells × replicas", "GiB/s a cell", "PUT/s", "GET/s", "GiB/s left on Kafka, one replica of it", "brokers", "a month", "for each TiB")
	var assumed cost.Assumptions
	for _, r := range []*partRuns{relayed, diskless} {
		mix := map[string]float64{"control": 1}
		if r.diskless {
			mix = map[string]float64{class.Name: 1}
		}
		// Every replica reads all objects of its cell, so cells are small: what one
		// replica for each zone carries. Relaying needs none.
		bytes, cells := wanted*gib, 1.0
		if r.diskless {
			for low, high := 0.0, wanted*float64(gib); high-low > 1<<20; {
				bytes = (low + high) / 2
				one := model(r, mix, bytes)
				setups, err := one.Estimate()
				if err != nil || setups[len(setups)-1].Bill[cost.Replicas].Quantity > one.Zones {
					high = bytes
				} else {
					low = bytes
				}
			}
			cells = math.Ceil(wanted * gib / bytes)
			bytes = wanted * gib / cells
		}
		one := model(r, mix, bytes)
		setups, err := one.Estimate()
		if err != nil {
			m.row(r.name, err.Error())
			continue
		}
		bill, plain := setups[len(setups)-1].Bill, setups[1].Bill
		second := one.DaysPerMonth * 24 * 3600 / cells
		left := r.inKafka / r.produced
		m.row(r.name, fmt.Sprintf("%.2f", gb/gib/(median(r.produce)+median(r.fetch))),
			fmt.Sprintf("%.0f × %.0f", cells, bill[cost.Replicas].Quantity), fmt.Sprintf("%.3g", bytes/gib),
			humanize.Comma(int64(bill[cost.Puts].Quantity/second)), humanize.Comma(int64(bill[cost.Gets].Quantity/second)),
			fmt.Sprintf("%.3g", wanted*left), humanize.Comma(int64(cells*bill[cost.Brokers].Quantity)),
			"$"+humanize.Comma(int64(cells*bill.Total())), fmt.Sprintf("$%.0f (Kafka with follower fetch: $%.0f)", bill.Total()/one.TiB(), plain.Total()/one.TiB()))
		assumed = one.Assumptions
	}
	prices := cost.ListPrices()
	fmt.Fprintf(m.w, "\nCPU for a GB and what is left in Kafka are measured, the rest is `sluice cost`'s: %s as of %s; each byte is consumed once, at the tail. A cell is replicas with a Kafka cluster and topics of their own: consumers are spread over the replicas of a cell, so each of these reads nearly all of the cell's objects.", prices.Of, prices.AsOf)
	var said []string
	for _, name := range []string{"batch_size", "retention", "zones", "replication", "partitions", "machine_fill", "sluice_cores", "sluice_network", "broker_network", "disk_fill", "early_puts", "get_bytes", "objects_outlive", "clients_elsewhere", "follower_fetch"} {
		if key, err := cost.Find(name); err == nil {
			said = append(said, name+"="+key.Get(assumed))
		}
	}
	fmt.Fprintf(m.w, " Assumed for each cell: %s; class %s (linger %v, object_size %s).\n", strings.Join(said, ", "), class.Name, class.Linger, humanize.IBytes(uint64(class.ObjectSize)))
}
