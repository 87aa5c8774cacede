package upkeep

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/lowlatency"
)

var codecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

// target opens a cluster to copy to.
func target(t testing.TB, bootstrap []string, dial lowlatency.DialFunc) *lowlatency.Cluster {
	t.Helper()
	c, err := lowlatency.New(lowlatency.Options{Bootstrap: bootstrap, Dial: dial, Logger: zerolog.Nop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// varied are records of every kind, of times long ago.
func varied(topic string, partition int32, n int, random *rand.Rand) (out []*kgo.Record) {
	for i := range n {
		r := &kgo.Record{Topic: topic, Partition: partition, Timestamp: time.UnixMilli(1_700_000_000_000 + random.Int64N(1e9))}
		if i%3 > 0 {
			r.Key = fmt.Appendf(nil, "key-%d", random.IntN(50))
		}
		switch i % 5 {
		case 0:
			r.Value = nil
		case 1:
			r.Value = []byte{}
		default:
			r.Value = make([]byte, 500+random.IntN(3000))
			for at := range r.Value {
				r.Value[at] = byte(random.IntN(7)) + 'a'
			}
		}
		for h := range i % 4 {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: fmt.Sprint("h", h), Value: [][]byte{nil, {}, []byte("x")}[h]})
		}
		out = append(out, r)
	}
	return out
}

// shown is a record as text, without its offset.
func shown(r *kgo.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %d %v%q %v%q", r.Partition, r.Timestamp.UnixMilli(), r.Key == nil, r.Key, r.Value == nil, r.Value)
	for _, h := range r.Headers {
		fmt.Fprintf(&b, " %s=%v%q", h.Key, h.Value == nil, h.Value)
	}
	return b.String()
}

// consume reads a topic to its end, by partition.
func consume(t testing.TB, seeds []string, topic string, opts ...kgo.Opt) map[int32][]*kgo.Record {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(seeds...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.KeepControlRecords())...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	out := map[int32][]*kgo.Record{}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%s: %v (left: %v)", topic, err, left)
		}
		for _, r := range fetches.Records() {
			if !r.Attrs.IsControl() {
				out[r.Partition] = append(out[r.Partition], r)
			}
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		}
	}
	return out
}

// compareCopy holds a target, as the least careful reader sees it, against its
// source.
func compareCopy(t testing.TB, from, to map[int32][]*kgo.Record) (records int) {
	t.Helper()
	for p := range from {
		if len(from[p]) != len(to[p]) {
			t.Errorf("partition %d: %d records became %d", p, len(from[p]), len(to[p]))
		}
		for i := range min(len(from[p]), len(to[p])) {
			if a, b := shown(from[p][i]), shown(to[p][i]); a != b {
				t.Fatalf("partition %d: record %d was\n%.300s\nand is\n%.300s", p, i, a, b)
			}
		}
		records += len(from[p])
	}
	return records
}

// source writes what is hard to copy: every codec, both tiers, and transactions,
// of which some are aborted.
func (r *rig) source(topic string, rounds int) {
	r.t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	for codec, c := range codecs {
		for _, seeds := range [][]string{{r.bootstrap}, r.kafka.ListenAddrs()} {
			cl, err := kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(c), kgo.ProducerLinger(5*time.Millisecond))
			if err != nil {
				r.t.Fatal(err)
			}
			for range rounds {
				for p := range int32(2) {
					if err := cl.ProduceSync(r.t.Context(), varied(topic, p, 1+random.IntN(12), random)...).FirstErr(); err != nil {
						r.t.Fatal(codec, err)
					}
				}
			}
			cl.Close()
		}
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.bootstrap), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID(topic), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		r.t.Fatal(err)
	}
	defer cl.Close()
	for i := range 6 {
		if err := cl.BeginTransaction(); err != nil {
			r.t.Fatal(err)
		}
		if err := cl.ProduceSync(r.t.Context(), append(varied(topic, 0, 5, random), varied(topic, 1, 5, random)...)...).FirstErr(); err != nil {
			r.t.Fatal(err)
		}
		// Others write into the middle of it.
		r.write(r.proxied, topic, 0, 2)
		if err := cl.EndTransaction(r.t.Context(), kgo.TransactionEndTry(i%2 == 0)); err != nil {
			r.t.Fatal(err)
		}
	}
}

func TestCopyIsExact(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(2, "otel-src"))
	r.source("otel-src", 3)
	a, _ := r.access()
	file := filepath.Join(t.TempDir(), "offsets")
	offsets, err := OpenOffsetsMap(file)
	if err != nil {
		t.Fatal(err)
	}
	report, err := a.Copy(t.Context(), CopyOptions{Topics: []CopyTopic{{"otel-src", "plain"}}, Target: target(t, r.kafka.ListenAddrs(), nil), OffsetsMap: offsets})
	if err != nil {
		t.Fatal(err)
	}
	from := consume(t, []string{r.bootstrap}, "otel-src", kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	to := consume(t, r.kafka.ListenAddrs(), "plain")
	n := compareCopy(t, from, to)
	if n < 200 || report.Records != int64(n) || !report.Complete || len(report.Created) != 1 {
		t.Errorf("%d records: %+v", n, report)
	}
	for p := range int32(2) {
		for _, b := range r.batches(a, "plain", p) {
			if _, is, _ := placeholder.Parse(b); is {
				t.Fatal("there are placeholders in the target")
			}
		}
	}
	checkMap(t, file, from, to)
	// A second copy to it would double everything.
	if _, err := a.Copy(t.Context(), CopyOptions{Topics: []CopyTopic{{"otel-src", "plain"}}, Target: target(t, r.kafka.ListenAddrs(), nil)}); !errors.Is(err, ErrNotFresh) {
		t.Error(err)
	}
	if _, err := a.Copy(t.Context(), CopyOptions{Topics: []CopyTopic{{"otel-src", "otel-src"}}, Target: target(t, r.kafka.ListenAddrs(), nil)}); err == nil || !strings.Contains(err.Error(), "onto itself") {
		t.Error(err)
	}
}

// checkMap holds the file of offsets against what became what.
func checkMap(t testing.TB, file string, from, to map[int32][]*kgo.Record) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	became := map[int32]map[int64]int64{}
	for line := range bytes.Lines(text) {
		var m mapped
		if err := json.Unmarshal(line, &m); err != nil {
			continue // cut by a crash
		}
		if became[m.Partition] == nil {
			became[m.Partition] = map[int64]int64{}
		}
		for i := range m.Records {
			if at, ok := became[m.Partition][m.Source+i]; ok && at != m.Target+i {
				t.Fatalf("offset %d is said to be %d, and %d", m.Source+i, at, m.Target+i)
			}
			became[m.Partition][m.Source+i] = m.Target + i
		}
	}
	for p := range from {
		for i, r := range from[p] {
			if at, ok := became[p][r.Offset]; !ok || at != to[p][i].Offset {
				t.Fatalf("partition %d: offset %d became %d, the file says %d", p, r.Offset, to[p][i].Offset, at)
			}
		}
		if len(became[p]) != len(from[p]) {
			t.Errorf("partition %d: the file has %d offsets of %d", p, len(became[p]), len(from[p]))
		}
	}
}

// flaky connections end now and then, so that answers get lost.
type flaky struct {
	net.Conn
	random *rand.Rand
}

func (f flaky) Read(b []byte) (int, error) {
	if f.random.IntN(12) == 0 {
		time.Sleep(2 * time.Millisecond) // what was asked for is done
		_ = f.Close()
		return 0, net.ErrClosed
	}
	return f.Conn.Read(b)
}

// Killed at any point, with answers lost all the time, a copy that is resumed is
// the same as one that was not.
func TestCopyResumesExactly(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(2, "otel-src"))
	r.source("otel-src", 6)
	file := filepath.Join(t.TempDir(), "offsets")
	random := rand.New(rand.NewPCG(3, 4))
	verified := int64(0)
	var report *CopyReport
	runs := 0
	for runs < 200 {
		runs++
		a, _ := r.access()
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return flaky{conn, rand.New(rand.NewPCG(uint64(runs), 5))}, nil
		}
		offsets, err := OpenOffsetsMap(file)
		if err != nil {
			t.Fatal(err)
		}
		var left atomic.Int64 // partitions are copied at the same time
		left.Store(5 + random.Int64N(12))
		report, err = a.Copy(t.Context(), CopyOptions{
			Topics: []CopyTopic{{"otel-src", "plain"}}, Target: target(t, r.kafka.ListenAddrs(), dial), OffsetsMap: offsets,
			Resume: runs > 1, BytesPerSecond: 0,
			crash: func() bool { return left.Add(-1) < 0 },
		})
		if report != nil {
			for _, p := range report.Topics {
				verified += p.Verified
			}
		}
		if err == nil {
			break
		}
		if report != nil && !errors.Is(err, errCrash) {
			t.Logf("run %d: %v", runs, err)
		}
	}
	from := consume(t, []string{r.bootstrap}, "otel-src", kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	to := consume(t, r.kafka.ListenAddrs(), "plain")
	n := compareCopy(t, from, to)
	t.Logf("%d records in %d runs, %d of them found in the target", n, runs, verified)
	if runs < 4 || verified == 0 || !report.Complete {
		t.Errorf("%d runs, %d records verified: %+v", runs, verified, report)
	}
	checkMap(t, file, from, to)
}

// What a source's log may look like besides: it begins in the middle of a batch,
// its timestamps are the broker's, its batches are larger than the target takes,
// and some of it is lost.
func TestCopyOfOddLogs(t *testing.T) {
	stamped := "LogAppendTime"
	r := newRig(t, kfake.SeedTopics(1, "otel-bad", "otel-cut", "otel-good"))
	adm := kadm.NewClient(r.direct)
	if _, err := adm.CreateTopic(t.Context(), 1, 1, map[string]*string{timestampType: &stamped}, "otel-stamped"); err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{"otel-cut", "otel-stamped"} {
		for range 3 {
			r.write(r.proxied, topic, 0, 10)
			r.write(r.direct, topic, 0, 10)
		}
	}
	offsets := make(kadm.Offsets)
	offsets.Add(kadm.Offset{Topic: "otel-cut", Partition: 0, At: 15})
	if _, err := adm.DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	small := "4000" // a record and a half
	if _, err := adm.CreateTopic(t.Context(), 1, 1, map[string]*string{"max.message.bytes": &small}, "p-otel-cut"); err != nil {
		t.Fatal(err)
	}
	a, _ := r.access()
	topics := []CopyTopic{{"otel-cut", "p-otel-cut"}, {"otel-stamped", "p-otel-stamped"}}
	report, err := a.Copy(t.Context(), CopyOptions{Topics: topics, Target: target(t, r.kafka.ListenAddrs(), nil)})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{45, 60} {
		from := consume(t, []string{r.bootstrap}, topics[i].From)
		if n := compareCopy(t, from, consume(t, r.kafka.ListenAddrs(), topics[i].To)); n != want {
			t.Errorf("%s: %d records", topics[i].From, n)
		}
	}
	if !strings.Contains(strings.Join(report.Notes, "\n"), "p-otel-stamped was made without message.timestamp.type=LogAppendTime") {
		t.Errorf("notes: %q", report.Notes)
	}
	if _, err := adm.CreateTopic(t.Context(), 1, 1, map[string]*string{timestampType: &stamped}, "stamping"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Copy(t.Context(), CopyOptions{Topics: []CopyTopic{{"otel-cut", "stamping"}}, Target: target(t, r.kafka.ListenAddrs(), nil)}); err == nil || !strings.Contains(err.Error(), "new timestamps") {
		t.Error(err)
	}

	r.write(r.proxied, "otel-good", 0, 4) // what is planted is copied from there
	damage := spoil(t, r)
	opt := CopyOptions{Topics: []CopyTopic{{"otel-bad", "p-otel-bad"}}, Target: target(t, r.kafka.ListenAddrs(), nil)}
	a, _ = r.access()
	report, err = a.Copy(t.Context(), opt)
	if err == nil || !strings.Contains(err.Error(), "--skip-unreadable leaves it out") || report.Topics[0].Next != damage[0].First {
		t.Fatalf("%v: %+v", err, report)
	}
	opt.Resume, opt.SkipUnreadable = true, true
	report, err = a.Copy(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	lost := map[int64]bool{}
	for _, d := range damage {
		for o := d.First; o <= d.Last; o++ {
			lost[o] = true
		}
	}
	for _, s := range report.Topics[0].Skipped {
		for o := s.First; o <= s.Last; o++ {
			if !lost[o] {
				t.Errorf("offset %d was left out: %s", o, s.Why)
			}
			delete(lost, o)
		}
	}
	if len(lost) > 0 {
		t.Errorf("not said to be left out: %v", lost)
	}
	if got := consume(t, r.kafka.ListenAddrs(), "p-otel-bad")[0]; len(got) != 4*(7-4) {
		t.Errorf("%d records", len(got))
	}
}

// What is written while it follows is copied, too, by whoever goes on.
func TestCopyFollows(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(1, "otel-src"))
	r.write(r.proxied, "otel-src", 0, 3)
	a, _ := r.access()
	var once sync.Once
	copied := func(want int64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		report, err := a.Copy(ctx, CopyOptions{
			Topics: []CopyTopic{{"otel-src", "plain"}}, Target: target(t, r.kafka.ListenAddrs(), nil), Resume: true, Follow: true,
			Progress: func(p CopyProgress) {
				if p.Records >= 1 {
					go once.Do(func() { r.write(r.proxied, "otel-src", 0, 4) })
				}
				if p.Records >= want {
					cancel()
				}
			},
		})
		if err != nil || !errors.Is(ctx.Err(), context.Canceled) || report.Records != want {
			t.Fatalf("%v, %v: %+v", err, ctx.Err(), report)
		}
	}
	copied(7)
	r.write(r.proxied, "otel-src", 0, 5)
	copied(5)
	compareCopy(t, consume(t, []string{r.bootstrap}, "otel-src"), consume(t, r.kafka.ListenAddrs(), "plain"))
}

// What somebody else has written behind the copy's end is noticed also when the
// source has nothing new to hold it against.
func TestCopyNoticesWhatIsBeyondTheSource(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(1, "otel-src"))
	r.write(r.proxied, "otel-src", 0, 3)
	a, _ := r.access()
	opt := CopyOptions{Topics: []CopyTopic{{"otel-src", "plain"}}, Target: target(t, r.kafka.ListenAddrs(), nil)}
	if _, err := a.Copy(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	opt.Resume = true
	if _, err := a.Copy(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	r.write(r.direct, "plain", 0, 2)
	if report, err := a.Copy(t.Context(), opt); err == nil || !strings.Contains(err.Error(), "somebody else writes to it") || report.Complete {
		t.Errorf("%v: %+v", err, report)
	}
}

// Partitions that a source gets while it is copied are not left behind unsaid, and
// are copied when the target has them, too.
func TestCopyOfATopicThatGetsPartitions(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(1, "otel-src"))
	adm := kadm.NewClient(r.direct)
	r.write(r.direct, "otel-src", 0, 3)
	a, _ := r.access()
	opt := CopyOptions{Topics: []CopyTopic{{"otel-src", "plain"}}, Target: target(t, r.kafka.ListenAddrs(), nil)}
	var once sync.Once
	opt.Progress = func(CopyProgress) {
		once.Do(func() {
			if got, err := adm.CreatePartitions(t.Context(), 1, "otel-src"); err != nil || got.Error() != nil {
				t.Error(err, got.Error())
			}
		})
	}
	report, err := a.Copy(t.Context(), opt)
	if err == nil || !strings.Contains(err.Error(), "otel-src has 2 partitions by now, and 1 were copied") || report.Complete {
		t.Errorf("%v: %+v", err, report)
	}
	if got, err := adm.CreatePartitions(t.Context(), 1, "plain"); err != nil || got.Error() != nil {
		t.Fatal(err, got.Error())
	}
	r.write(r.client(r.kafka.ListenAddrs()...), "otel-src", 1, 4)
	a, _ = r.access() // which knows of it
	opt.Resume, opt.Target = true, target(t, r.kafka.ListenAddrs(), nil)
	if _, err := a.Copy(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	if n := compareCopy(t, consume(t, []string{r.bootstrap}, "otel-src"), consume(t, r.kafka.ListenAddrs(), "plain")); n != 7 {
		t.Errorf("%d records", n)
	}
}

// A partition that cannot be followed any more ends all: who waits would not hear
// of it.
func TestCopyThatFollowsEndsWithOnePartition(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(2, "otel-src"))
	r.write(r.direct, "otel-src", 0, 3)
	r.write(r.proxied, "otel-src", 1, 3)
	a, _ := r.access()
	path, _ := r.file(r.batches(a, "otel-src", 1)[0])
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	report, err := a.Copy(ctx, CopyOptions{Topics: []CopyTopic{{"otel-src", "plain"}}, Target: target(t, r.kafka.ListenAddrs(), nil), Follow: true})
	if err == nil || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "--skip-unreadable") || report.Complete || ctx.Err() != nil {
		t.Errorf("%v, %v: %+v", err, ctx.Err(), report)
	}
}

// A target that is told meanwhile to stamp records itself ends the copy.
func TestCopyNoticesATargetThatStamps(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(1, "otel-src"), kfake.SeedTopics(1, "plain"))
	r.write(r.direct, "otel-src", 0, 3)
	a, _ := r.access()
	c := &copier{Access: a, opt: CopyOptions{Target: target(t, r.kafka.ListenAddrs(), nil)}, bytes: limiter(0, byteBurst), report: &CopyReport{}}
	parts, err := c.begin(t.Context(), CopyTopic{"otel-src", "plain"})
	if err != nil {
		t.Fatal(err)
	}
	r.kafka.ControlKey(int16(kmsg.Produce), func(k kmsg.Request) (kmsg.Response, error, bool) {
		req := k.(*kmsg.ProduceRequest)
		resp := req.ResponseKind().(*kmsg.ProduceResponse)
		topic, p := kmsg.NewProduceResponseTopic(), kmsg.NewProduceResponseTopicPartition()
		topic.Topic, topic.TopicID, p.LogAppendTime = req.Topics[0].Topic, req.Topics[0].TopicID, 1_800_000_000_000
		topic.Partitions = append(topic.Partitions, p)
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
	if err := parts[0].run(t.Context()); err == nil || !strings.Contains(err.Error(), "new timestamps") {
		t.Error(err)
	}
}
