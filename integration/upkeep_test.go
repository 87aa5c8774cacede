package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/cli"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/upkeep"
)

// fsckOf runs the command as an operator does.
func fsckOf(t *testing.T, want int, args ...string) (report upkeep.FsckReport) {
	t.Helper()
	var out, errs bytes.Buffer
	code := cli.Run(t.Context(), append([]string{"fsck", "--json"}, args...), &out, &errs)
	if code != want {
		t.Fatalf("exit code %d, not %d: %s%s", code, want, &out, &errs)
	}
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	return report
}

// What is spoilt in a real store and a real log is found, and nothing else.
func TestLongFsckFindsWhatIsSpoilt(t *testing.T) {
	harness.Long(t)
	k := sharedKafka(t)
	s3 := harness.StartS3(t)
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(s3, "fsck")})
	const topic, other, batches, records = "fsck-telemetry", "fsck-telemetry-2", 12, 5
	createTopic(t, s.Bootstrap, topic, 2, "retention.ms", "-1")
	createTopic(t, s.Bootstrap, other, 1, "retention.ms", "-1")
	h := history.New()
	for range batches {
		writeOnce(t, h, s.Bootstrap, topic, 0, records, kgo.ProducerBatchCompression(kgo.NoCompression()))
		writeOnce(t, h, s.Bootstrap, topic, 1, records)
	}
	writeOnce(t, h, s.Bootstrap, other, 0, records, kgo.ProducerBatchCompression(kgo.NoCompression()))
	args := []string{"-c", s.File, "fsck-*"}
	if r := fsckOf(t, 0, args...); r.Placeholders != 2*batches+1 || r.Checked != r.Placeholders || r.Records != (2*batches+1)*records {
		t.Fatalf("%+v", r.Counts)
	}

	direct := rawClient(t, bootstrapOf(k))
	objects := s3.Client(t)
	refs := map[int]placeholder.Ref{}
	for rest := direct.fetch(topic, 0, 0); ; {
		b, more, ok := wire.NextBatch(rest)
		if !ok {
			break
		}
		signed, is, err := placeholder.Parse(b)
		if !is || err != nil {
			t.Fatal("no placeholder", err)
		}
		refs[len(refs)], rest = signed.Ref, more
	}
	change := func(batch int, fn func(b []byte, ref placeholder.Ref) []byte) {
		t.Helper()
		ref := refs[batch]
		key := "fsck/" + diskless.ObjectKey(ref.Object, ref.Audit)
		got, err := objects.GetObject(t.Context(), s3.Bucket, key, minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(got)
		if err != nil {
			t.Fatal(err)
		}
		if b = fn(b, ref); b == nil {
			err = objects.RemoveObject(t.Context(), s3.Bucket, key, minio.RemoveObjectOptions{})
		} else {
			_, err = objects.PutObject(t.Context(), s3.Bucket, key, bytes.NewReader(b), int64(len(b)), minio.PutObjectOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, lost := range []int{2, 3} {
		change(lost, func([]byte, placeholder.Ref) []byte { return nil })
	}
	change(5, func(b []byte, ref placeholder.Ref) []byte { return b[:ref.Offset+uint64(ref.Length)/2] })
	change(9, func(b []byte, ref placeholder.Ref) []byte { b[ref.Offset+uint64(ref.Length)-1] ^= 4; return b })
	free := func(b wire.Batch) wire.Batch {
		b = slices.Clone(b)
		b.SetProducerID(-1)
		b.SetProducerEpoch(-1)
		b.SetBaseSequence(-1)
		return b
	}
	planted, err := direct.produce(topic, 0, sealed(free(direct.genuine(other, 0))))
	if err != nil {
		t.Fatal(err)
	}
	unknown := free(direct.genuine(topic, 0))
	unknown[bytes.Index(unknown, []byte(placeholder.HeaderKey))+len(placeholder.HeaderKey)+1+2] ^= 1
	if _, err = direct.produce(topic, 0, sealed(unknown)); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"10-19 missing", "25-29 truncated", "45-49 garbled",
		fmt.Sprintf("%d-%d wrong_signature", planted, planted+records-1), fmt.Sprintf("%d-%d unknown_key", planted+records, planted+2*records-1),
	}
	for _, more := range [][]string{nil, {"--resume", filepath.Join(t.TempDir(), "state")}} {
		var got []string
		for _, d := range fsckOf(t, 1, append(args, more...)...).Damage {
			if d.Topic != topic || d.Partition != 0 {
				t.Errorf("found %+v", d)
			}
			got = append(got, fmt.Sprintf("%d-%d %s", d.First, d.Last, d.Kind))
		}
		if !slices.Equal(got, want) {
			t.Errorf("found %q\nwant  %q", got, want)
		}
	}
	// A store that is away is no damage.
	s3.Stop()
	if code := cli.Run(t.Context(), append([]string{"fsck"}, args...), io.Discard, io.Discard); code != 2 {
		t.Errorf("without the store: exit code %d", code)
	}
}

// copied is a record as text, without its offset.
func copied(r *kgo.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %v%q %v%q", r.Timestamp.UnixMilli(), r.Key == nil, r.Key, r.Value == nil, r.Value)
	for _, h := range r.Headers {
		fmt.Fprintf(&b, " %q=%v%q", h.Key, h.Value == nil, h.Value)
	}
	return b.String()
}

// allOf reads a topic to its ends, by partition.
func allOf(t *testing.T, bootstrap, topic string, opts ...kgo.Opt) map[int32][]string {
	t.Helper()
	cl := client(t, bootstrap, append(opts, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.KeepControlRecords())...)
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
	out := map[int32][]string{}
	for deadline := time.Now().Add(time.Minute); len(left) > 0; {
		fetches := cl.PollFetches(t.Context())
		if err := fetches.Err(); err != nil || time.Now().After(deadline) {
			t.Fatalf("%s: %v; left: %v", topic, err, left)
		}
		for _, r := range fetches.Records() {
			if !r.Attrs.IsControl() {
				out[r.Partition] = append(out[r.Partition], copied(r))
			}
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		}
	}
	return out
}

// A copy that is killed over and over is what a reader of committed records sees of
// its source, also for readers that ask for nothing of the kind.
func TestLongCopyThroughKills(t *testing.T) {
	harness.Long(t)
	k := sharedKafka(t)
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(harness.StartS3(t), "copy")})
	sources := []string{"copy-telemetry", "copy-control-compacted"}
	createTopic(t, s.Bootstrap, sources[0], 3, "retention.ms", "-1")
	createTopic(t, s.Bootstrap, sources[1], 3, "cleanup.policy", "compact", "segment.ms", "200", "min.cleanable.dirty.ratio", "0.01", "max.compaction.lag.ms", "200", "delete.retention.ms", "86400000")
	random := rand.New(rand.NewPCG(7, 8))
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}
	made := func(topic string, n int) (out []*kgo.Record) {
		for i := range n {
			r := &kgo.Record{Topic: topic, Partition: int32(i % 3), Timestamp: time.UnixMilli(1_790_000_000_000 + random.Int64N(1e9)), Value: make([]byte, 200+random.IntN(4000))}
			for at := range r.Value {
				r.Value[at] = byte(random.IntN(200))
			}
			if topic == sources[1] || i%4 > 0 {
				r.Key = fmt.Appendf(nil, "key-%d", random.IntN(20))
			}
			switch i % 7 {
			case 1:
				r.Value = nil
			case 2:
				r.Value = []byte{}
			case 3:
				r.Headers = []kgo.RecordHeader{{Key: "a"}, {Key: "", Value: []byte{}}, {Key: "a", Value: []byte("x")}}
			}
			out = append(out, r)
		}
		return out
	}
	for round := range 4 {
		for _, topic := range sources {
			for i, codec := range codecs {
				for _, id := range []string{"", fmt.Sprint("copy-", topic, i)} {
					opts := []kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(codec), kgo.ProducerLinger(10 * time.Millisecond)}
					if id != "" {
						opts = append(opts, kgo.TransactionalID(id))
					}
					cl := client(t, s.Bootstrap, opts...)
					if id != "" {
						if err := cl.BeginTransaction(); err != nil {
							t.Fatal(err)
						}
					}
					if err := cl.ProduceSync(t.Context(), made(topic, 60)...).FirstErr(); err != nil {
						t.Fatal(err)
					}
					if id != "" {
						if err := cl.EndTransaction(t.Context(), kgo.TransactionEndTry((round+i)%2 == 0)); err != nil {
							t.Fatal(err)
						}
					}
					cl.Close()
				}
			}
		}
	}
	if s.metric(t, "sluice_diskless_stored_batches_total") == 0 {
		t.Fatal("nothing is in objects")
	}
	// The compacted source has holes, and changes no more: what has been copied of a
	// source that is compacted meanwhile would be refused.
	compacted := func() (n int) {
		for _, some := range allOf(t, bootstrapOf(k), sources[1]) {
			n += len(some)
		}
		return n
	}
	eventually(t, "the source is compacted", func() (bool, string) {
		n := compacted()
		return n < 4*5*2*60*3/4, fmt.Sprint(n, " records")
	})
	adm := kadm.NewClient(client(t, bootstrapOf(k)))
	if _, err := adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{
		{Op: kadm.SetConfig, Name: "max.compaction.lag.ms", Value: kadm.StringPtr("86400001")},
		{Op: kadm.SetConfig, Name: "min.compaction.lag.ms", Value: kadm.StringPtr("86400000")},
	}, sources[1]); err != nil {
		t.Fatal(err)
	}
	last, since := 0, time.Now()
	eventually(t, "no compaction is under way", func() (bool, string) {
		if n := compacted(); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > 3*time.Second, fmt.Sprint(last, " records")
	})

	offsets := filepath.Join(t.TempDir(), "offsets")
	args := append([]string{"copy", "-c", s.File, "--prefix", "target-", "--offsets-map", offsets, "--resume"}, sources...)
	kills := 0
	for range 6 {
		c := harness.StartSluice(t, append(args, "--rate", "150KiB")...)
		time.Sleep(time.Duration(700+random.IntN(1500)) * time.Millisecond)
		if ended, _ := c.Ended(); ended {
			break
		}
		c.Kill()
		kills++
	}
	c := harness.StartSluice(t, append(args, "--json")...)
	if code := c.Wait(t, time.Minute); code != 0 {
		t.Fatalf("exit code %d: %s", code, c.Log(t))
	}
	var report upkeep.CopyReport
	if err := json.Unmarshal([]byte(c.Log(t)), &report); err != nil {
		t.Fatal(err)
	}
	verified, total := int64(0), 0
	for _, p := range report.Topics {
		verified += p.Verified
	}
	for i, source := range sources {
		opts := []kgo.Opt{kgo.FetchIsolationLevel(kgo.ReadCommitted())}
		from, to := allOf(t, s.Bootstrap, source, opts...), allOf(t, bootstrapOf(k), "target-"+source)
		for p := range from {
			total += len(from[p])
			if i == 1 {
				// Either may have been compacted further: what both say of each key last.
				from[p], to[p] = lastOfEach(from[p]), lastOfEach(to[p])
			}
			if !slices.Equal(from[p], to[p]) {
				t.Errorf("%s-%d: %d records became %d, or others", source, p, len(from[p]), len(to[p]))
			}
		}
	}
	t.Logf("%d records, %d kills; the last call wrote %d and found %d in the target", total, kills, report.Records, verified)
	if kills < 3 || report.Records == 0 {
		t.Error("it was hardly killed")
	}
}

// lastOfEach keeps the last record of each key, in order.
func lastOfEach(records []string) (out []string) {
	seen := map[string]bool{}
	for _, r := range slices.Backward(records) {
		_, rest, _ := strings.Cut(r, " ")
		if key, _, _ := strings.Cut(rest, " "); !seen[key] {
			seen[key] = true
			out = append(out, r)
		}
	}
	slices.Reverse(out)
	return out
}
