package integration

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/harness"
)

// generator makes a script from a seed. It remembers enough of what it has said
// for most steps to be about something; the rest are about what there is not.
type generator struct {
	*rand.Rand
	topics    map[int][]int32 // replicas that each partition begins with: how many
	written   map[string]int64
	producers map[int]string
}

func script(seed uint64, length int) (steps []step) {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 1)), topics: map[int][]int32{}, written: map[string]int64{}, producers: map[int]string{}}
	steps = append(steps, g.create(0), g.create(1))
	for len(steps) < length {
		steps = append(steps, g.next()...)
	}
	return steps
}

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func (g *generator) replicas(n int) []int32 {
	all := []int32{1, 2, 3}
	g.Shuffle(3, func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:n]
}

func (g *generator) client(s step) step {
	s.Replica, s.Crossed = g.IntN(2), g.chance(40)
	if s.As == "" && g.chance(40) {
		s.As = pick(g, "2.4", "3.6")
	}
	return s
}

func (g *generator) create(topic int) step {
	s := step{Op: "create", Topic: topic, Crossed: g.chance(30), Configs: map[string]string{
		// Records are of long ago, markers of today, and an answer holds one segment's.
		"retention.ms": "-1", "segment.ms": "3153600000000", "min.insync.replicas": "1",
	}}
	factor, partitions := 1+g.IntN(3), 1+g.IntN(3)
	for range partitions {
		s.Replicas = append(s.Replicas, g.replicas(factor))
	}
	for key, value := range g.settings() {
		s.Configs[key] = value
	}
	if g.chance(10) {
		s.Configs["cleanup.policy"] = "compact"
	}
	switch g.IntN(12) {
	case 0:
		s.How = "validate"
		return s
	case 1:
		s.Replicas[0] = []int32{1, 1}
		return s
	case 2:
		s.Replicas, s.Count, s.Limit = nil, 1, 9 // replicas that there are not
		return s
	case 3:
		s.Configs["max.message.bytes"] = "many"
		return s
	}
	if _, ok := g.topics[topic]; !ok {
		g.topics[topic] = make([]int32, partitions)
		for i := range g.topics[topic] {
			g.topics[topic][i] = int32(factor)
			g.written[fmt.Sprint(topic, i)] = 0
		}
	}
	return s
}

// settings are of those that change what becomes of batches.
func (g *generator) settings() map[string]string {
	all := map[string]string{}
	for _, one := range []func(){
		func() {
			all["compression.type"] = pick(g, "producer", "uncompressed", "gzip", "snappy", "lz4", "zstd")
		},
		func() { all["message.timestamp.type"] = pick(g, "CreateTime", "LogAppendTime") },
		func() { all["max.message.bytes"] = pick(g, "5000", "40000", "1048588") },
		func() { all["message.timestamp.after.max.ms"] = pick(g, "3600000", "9223372036854775807") },
		func() { all["retention.bytes"] = pick(g, "-1", "1000000000") },
	} {
		if g.chance(15) {
			one()
		}
	}
	return all
}

// place gives a step a topic and a partition, most of the time of those that
// there are.
func (g *generator) place(s step) step {
	s.Topic = g.IntN(topicsOfScripts)
	for range 3 {
		if len(g.topics[s.Topic]) > 0 {
			break
		}
		s.Topic = g.IntN(topicsOfScripts)
	}
	if n := len(g.topics[s.Topic]); n > 0 {
		s.Partition = int32(g.IntN(n))
	}
	if g.chance(3) {
		s.Partition = 17
	}
	return s
}

// within is an offset of what was written, or near it.
func (g *generator) within(s step) int64 {
	return g.Int64N(g.written[fmt.Sprint(s.Topic, s.Partition)]+3) - int64(g.IntN(20)/19)
}

func (g *generator) batch() *batchSpec {
	b := &batchSpec{
		Seed: g.Uint64() >> 40, Records: 1 + g.IntN(12), Size: pick(g, 0, 3, 40, 300, 300, 1500, 1500, 4000, 20_000), Codec: pick(g, "none", "gzip", "snappy", "lz4", "zstd"),
		Words: g.chance(40), Odd: g.chance(40), Keys: g.chance(50), Times: pick(g, "", "", "down", "mixed"),
	}
	if g.chance(4) {
		b.Records, b.Size = 60, 15_000
	}
	if g.chance(3) {
		b.Times = "future"
	}
	if g.chance(6) {
		b.Fault = pick(g, "crc", "count", "delta", "codec", "cut", "control", "magic", "twice")
		if b.Fault == "cut" { // sluice refuses what it cannot decompress in words of its own
			b.Codec = "none"
		}
	}
	return b
}

func (g *generator) produce() step {
	s := g.client(g.place(step{Op: "produce", Acks: pick[int16](g, -1, -1, -1, 1, 0), Batch: g.batch()}))
	if s.Acks == 0 { // the broker says nothing, so that it must have nothing to say
		s.Batch.Fault, s.Batch.Times, s.Batch.Keys, s.Batch.Odd = "", "", true, false
		s.Batch.Size = min(s.Batch.Size, 300)
	}
	if len(g.producers) > 0 && g.chance(60) {
		s.Producer = 1 + g.IntN(producersOfScripts-1)
		s.Acks = -1
		s.How = pick(g, "", "", "", "", "", "", "", "", "again", "gap", "stale")
	}
	g.written[fmt.Sprint(s.Topic, s.Partition)] += int64(s.Batch.Records)
	return s
}

func (g *generator) next() []step {
	one := func(s step) []step { return []step{s} }
	switch n := g.IntN(100); {
	case n < 36:
		return one(g.produce())
	case n < 48:
		s := g.client(g.place(step{Op: "fetch", Committed: g.chance(50), Limit: pick[int32](g, 0, 0, 1, 600, 5000, 30_000), How: pick(g, "", "request")}))
		s.Offset = g.within(s)
		return one(s)
	case n < 53:
		s := g.client(g.place(step{Op: "offset", Committed: g.chance(50), Offset: pick[int64](g, -1, -2, -3, -4, -5, -6, -9)}))
		if g.chance(60) {
			s.Offset = baseTime + g.Int64N(60_000)
		}
		return one(s)
	case n < 57:
		s := g.client(g.place(step{Op: "delete records"}))
		s.Offset = g.within(s)
		return one(s)
	case n < 62:
		producer := 1 + g.IntN(producersOfScripts-1)
		g.producers[producer] = pick(g, "transactional", "transactional", "idempotent")
		return one(step{Op: "init", Producer: producer, How: g.producers[producer], As: pick(g, "", "tv1"), Replica: g.IntN(2)})
	case n < 70: // a transaction
		if len(g.producers) == 0 {
			return one(step{Op: "init", Producer: 1, How: "transactional", As: pick(g, "", "tv1")})
		}
		var all []step
		producer := 1 + g.IntN(producersOfScripts-1)
		for range 1 + g.IntN(4) {
			s := g.produce()
			s.Producer, s.Acks, s.How = producer, -1, ""
			all = append(all, s)
		}
		if g.chance(40) {
			s := g.place(step{Op: "offsets in transaction", Producer: producer, Group: g.IntN(groupsOfScripts), Replica: g.IntN(2)})
			s.Offset = g.within(s)
			all = append(all, s)
		}
		if g.chance(80) {
			all = append(all, step{Op: "end", Producer: producer, Commit: g.chance(50), Replica: g.IntN(2)})
		}
		return all
	case n < 72:
		return one(step{Op: "end", Producer: 1 + g.IntN(producersOfScripts-1), Commit: g.chance(50), Replica: g.IntN(2)})
	case n < 76:
		s := g.place(step{Op: "commit", Group: g.IntN(groupsOfScripts), Replica: g.IntN(2), As: pick(g, "", "2.4", "3.6")})
		s.Offset = g.within(s)
		return one(s)
	case n < 79:
		s := g.place(step{Op: "member", Group: g.IntN(groupsOfScripts), Replica: g.IntN(2), As: pick(g, "", "2.4", "3.6")})
		s.Offset = g.within(s)
		return one(s)
	case n < 81:
		return one(g.place(step{Op: pick(g, "delete offset", "delete group"), Group: g.IntN(groupsOfScripts), Replica: g.IntN(2)}))
	case n < 83:
		return one(g.client(g.place(step{Op: "epoch", Count: pick[int32](g, -1, 0, 1000)})))
	case n < 87:
		s := g.place(step{Op: "alter", Configs: g.settings(), How: pick(g, "", "", "legacy")})
		if s.How == "legacy" { // it names all that shall be
			s.Configs["retention.ms"], s.Configs["segment.ms"], s.Configs["min.insync.replicas"] = "-1", "3153600000000", "1"
		} else if g.chance(30) {
			s.Configs[pick(g, "compression.type", "message.timestamp.type", "max.message.bytes")] = ""
		}
		if g.chance(10) {
			s.Configs["max.message.bytes"] = "-7"
		}
		return one(s)
	case n < 89:
		s := g.place(step{Op: "reassign", Crossed: g.chance(50), Replicas: [][]int32{g.replicas(1 + g.IntN(3))}})
		if g.chance(10) {
			s.Replicas = nil // cancels what is not under way
		}
		return []step{s, {Op: "elect", Topic: s.Topic, Partition: s.Partition}}
	case n < 91:
		return one(g.place(step{Op: "elect"}))
	case n < 93:
		topic := g.IntN(topicsOfScripts)
		have := g.topics[topic]
		s := step{Op: "partitions", Topic: topic, Count: int32(len(have)) + 1, Crossed: g.chance(50)}
		if len(have) > 0 {
			s.Replicas = [][]int32{g.replicas(int(have[0]))}
			g.topics[topic] = append(have, have[0])
		} else {
			s.Replicas = [][]int32{{1}}
		}
		if g.chance(20) {
			s.Count = int32(len(have)) // which is refused
		}
		return one(s)
	case n < 95:
		topic := g.IntN(topicsOfScripts)
		delete(g.topics, topic)
		all := []step{{Op: "delete", Topic: topic, How: pick(g, "", "id")}}
		if g.chance(70) {
			all = append(all, g.create(topic))
		}
		return all
	case n < 96:
		return one(g.create(g.IntN(topicsOfScripts)))
	case n < 97:
		return one(step{Op: "restart", Replica: g.IntN(2)})
	default:
		return one(step{Op: "reclass"})
	}
}

// shrink returns the fewest of these numbers found that still make a difference,
// by taking away ever smaller parts (ddmin), within a number of runs.
func shrink(steps []int, runs int, differs func([]int) bool) []int {
	parts := 2
	for len(steps) > 1 && runs > 0 {
		size := (len(steps) + parts - 1) / parts
		smaller := false
		for from := 0; from < len(steps) && runs > 0; from += size {
			without := slices.Concat(steps[:from], steps[min(from+size, len(steps)):])
			runs--
			if differs(without) {
				steps, parts, smaller = without, max(parts-1, 2), true
				break
			}
		}
		if !smaller {
			if size == 1 {
				break
			}
			parts = min(2*parts, len(steps))
		}
	}
	return steps
}

// lengthOfScripts is without the steps that come in threes.
const lengthOfScripts = 30

// check runs a seed's script; what differs fails the test, with the fewest steps
// that show it.
func (x *generated) check(seed uint64, length int) {
	x.t.Helper()
	steps := script(seed, length)
	if only := os.Getenv("SLUICE_STEPS"); only != "" {
		steps = chosen(steps, numbered(x.t, only, len(steps)))
	}
	d, err := x.run(steps)
	if err != nil {
		x.t.Fatalf("seed %d: %v", seed, err)
	}
	if d != nil {
		fewest, last := x.fewest(steps, d)
		x.t.Errorf("seed %d: %s", seed, x.explain(seed, steps, fewest, last))
	}
}

// fewest shrinks a script that differs. Without any steps left the difference
// did not come a second time.
func (x *generated) fewest(steps []step, d *difference) (fewest []int, last *difference) {
	x.t.Helper()
	x.t.Logf("%s", d)
	var all []int
	for i := range steps[:min(d.at+1, len(steps))] {
		all = append(all, i)
	}
	differs := func(some []int) bool {
		got, err := x.run(chosen(steps, some))
		if err != nil {
			x.t.Logf("while shrinking: %v", err)
		}
		if got == nil || got.step.Op != d.step.Op {
			return false
		}
		last = got
		return true
	}
	if last = d; !differs(all) {
		return nil, d
	}
	return shrink(all, 60, differs), last
}

// explain says how to see a difference.
func (x *generated) explain(seed uint64, steps []step, fewest []int, d *difference) string {
	if len(fewest) == 0 {
		return fmt.Sprintf("%s\n(it did not come a second time)", d)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nthese steps show it:\n", d)
	var numbers []string
	for _, i := range fewest {
		numbers = append(numbers, strconv.Itoa(i))
		fmt.Fprintf(&b, "  %d %s\n", i, steps[i])
	}
	fmt.Fprintf(&b, "again: SLUICE_SEED=%d SLUICE_STEPS=%s go test ./integration -run TestGeneratedScripts", seed, strings.Join(numbers, ","))
	return b.String()
}

func chosen(steps []step, numbers []int) (some []step) {
	for _, i := range numbers {
		some = append(some, steps[i])
	}
	return some
}

// numbered reads the numbers of steps.
func numbered(t *testing.T, list string, below int) (numbers []int) {
	t.Helper()
	for _, n := range strings.Split(list, ",") {
		i, err := strconv.Atoi(n)
		if err != nil || i < 0 || i >= below {
			t.Fatalf("SLUICE_STEPS: no step %q among %d", n, below)
		}
		numbers = append(numbers, i)
	}
	return numbers
}

func parseSeed(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }

// Whatever clients and operators do, in whatever order, they see what they see
// without sluice: with all topics in one tier, in the other, in both, and on the
// move between them. A failure is repeated with SLUICE_SEED.
func TestGeneratedScripts(t *testing.T) {
	x := startGenerated(t)
	if seed := fromEnv(t, "SLUICE_SEED", 0, parseSeed); seed != 0 {
		x.check(seed, lengthOfScripts)
		return
	}
	for seed := uint64(1); seed <= 2; seed++ {
		x.check(seed, lengthOfScripts)
	}
}

// generateFor is how long scripts are made in make test-full; SLUICE_GENERATE_FOR=1h
// makes it an hour, and with SLUICE_SEED they begin there.
const generateFor = 2 * time.Minute

func TestLongGeneratedScripts(t *testing.T) {
	harness.Long(t)
	x := startGenerated(t)
	lasting := fromEnv(t, "SLUICE_GENERATE_FOR", generateFor, time.ParseDuration)
	// Each day's first is another.
	first := fromEnv(t, "SLUICE_SEED", uint64(time.Now().Unix()/86400*1000), parseSeed)
	seed := first
	for begun := time.Now(); time.Since(begun) < lasting; seed++ {
		x.check(seed, lengthOfScripts)
	}
	t.Logf("seeds %d to %d", first, seed-1)
}

// planted are faults that a proxy may have, each in what one target's clients are
// told, and what the fewest steps that show it must hold.
var planted = map[string]struct {
	plant func(world string, req kmsg.Request, resp kmsg.Response)
	shows string
}{
	"a record is lost": {shows: "produce", plant: inBatches("telemetry", func(b *kmsg.RecordBatch) {
		if b.NumRecords > 3 && b.Attributes&7 == 0 && b.Attributes&isControl == 0 {
			b.NumRecords--
			b.LastOffsetDelta--
			size, n := binary.Varint(b.Records)
			b.Records = b.Records[n+int(size):]
		}
	})},
	"an offset is one too high": {shows: "produce", plant: inBatches("mixed", func(b *kmsg.RecordBatch) {
		if b.FirstOffset > 10 {
			b.FirstOffset++
		}
	})},
	"a header is lost": {shows: "produce", plant: inBatches("split", func(b *kmsg.RecordBatch) {
		records, err := recordsOf(b)
		if err != nil || b.Attributes&isControl != 0 {
			return
		}
		b.Records = nil
		for _, r := range records {
			r.Headers = r.Headers[:max(len(r.Headers)-1, 0)]
			r.Length = 0
			r.Length = int32(len(r.AppendTo(nil)) - 1)
			b.Records = r.AppendTo(b.Records)
		}
		b.Attributes &^= 7
	})},
	"another error": {shows: "produce", plant: func(world string, _ kmsg.Request, resp kmsg.Response) {
		if p, ok := resp.(*kmsg.ProduceResponse); ok && world == "telemetry" && p.Topics[0].Partitions[0].ErrorCode == 45 { // OUT_OF_ORDER_SEQUENCE_NUMBER
			p.Topics[0].Partitions[0].ErrorCode = 59 // UNKNOWN_PRODUCER_ID
		}
	}},
	"an aborted transaction is not named": {shows: "end", plant: func(world string, _ kmsg.Request, resp kmsg.Response) {
		if f, ok := resp.(*kmsg.FetchResponse); ok && world == "split" && len(f.Topics) > 0 {
			f.Topics[0].Partitions[0].AbortedTransactions = nil
		}
	}},
	"a committed offset is lost": {shows: "commit|member|offsets in transaction", plant: func(world string, _ kmsg.Request, resp kmsg.Response) {
		if o, ok := resp.(*kmsg.OffsetFetchResponse); ok && world == "control" {
			for _, g := range o.Groups {
				for _, t := range g.Topics {
					for i := range t.Partitions {
						t.Partitions[i].Offset = -1
					}
				}
			}
		}
	}},
}

// inBatches changes what one target's clients are given.
func inBatches(target string, change func(*kmsg.RecordBatch)) func(string, kmsg.Request, kmsg.Response) {
	return func(world string, _ kmsg.Request, resp kmsg.Response) {
		f, ok := resp.(*kmsg.FetchResponse)
		if !ok || world != target || len(f.Topics) == 0 {
			return
		}
		p := &f.Topics[0].Partitions[0]
		var out []byte
		for _, raw := range whole(p.RecordBatches) {
			var b kmsg.RecordBatch
			if b.ReadFrom(raw) == nil {
				change(&b)
				raw = b.AppendTo(nil)
				binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
			}
			out = append(out, raw...)
		}
		p.RecordBatches = out
	}
}

// What sluice might do wrong is found by some script, and shrunk to what shows it.
func TestLongPlantedFaultsAreFound(t *testing.T) {
	harness.Long(t)
	x := startGenerated(t)
	for what, fault := range planted {
		t.Run(what, func(t *testing.T) {
			x.tamper = fault.plant
			defer func() { x.tamper = nil }()
			for seed := uint64(1); ; seed++ {
				if seed > 60 {
					t.Fatal("no script of 60 finds it")
				}
				steps := script(seed, lengthOfScripts)
				d, err := x.run(steps)
				if err != nil {
					t.Fatal(err)
				}
				if d == nil {
					continue
				}
				fewest, last := x.fewest(steps, d)
				said := x.explain(seed, steps, fewest, last)
				t.Log("found: ", said)
				if n := len(fewest); n == 0 || n > 10 || n > len(steps)/3 {
					t.Errorf("%d of %d steps are left", n, len(steps))
				}
				if !regexp.MustCompile(`"op":"(` + fault.shows + `)"`).MatchString(said) {
					t.Errorf("no %s is among them", fault.shows)
				}
				return
			}
		})
	}
}

// Shrinking keeps what matters and nothing else.
func TestShrink(t *testing.T) {
	for range 200 {
		var all, needed []int
		for i := range 1 + rand.IntN(60) {
			if all = append(all, i); rand.IntN(10) == 0 {
				needed = append(needed, i)
			}
		}
		got := shrink(all, 10_000, func(some []int) bool {
			for _, n := range needed {
				if !slices.Contains(some, n) {
					return false
				}
			}
			return true
		})
		if len(needed) == 0 {
			needed = got // one is left: a script without steps differs in nothing
		}
		if !slices.Equal(got, needed) {
			t.Fatalf("%v became %v, want %v", all, got, needed)
		}
	}
}
