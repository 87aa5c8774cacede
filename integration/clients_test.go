package integration

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/sluice-kafka/sluice/harness"
)

// codecs are the compressions of the protocol, by Kafka's names.
var codecs = []string{"none", "gzip", "snappy", "lz4", "zstd"}

// clientLibrary is a client under test. Records are franz-go's, with topic and
// partition chosen; producing sets their offsets.
type clientLibrary interface {
	name() string
	// producer writes with one codec until the test ends. Each call returns
	// when all its records are acknowledged, or the test has failed; those of
	// one partition are written in order, as one batch if the library can be
	// made to. Several producers may write at a time.
	producer(t testing.TB, bootstrap, codec string) func(records []*kgo.Record)
	// consume reads n records of one topic from its start.
	consume(t testing.TB, bootstrap string, n int, topic string) []*kgo.Record
}

func libraries(p *sharedParts) []clientLibrary {
	return []clientLibrary{franz{}, saramaClient{sarama.V4_1_0_0}, javaClient{p.jvm, "Java"}}
}

// franz is franz-go, which speaks as clients of a release did when it is told so.
type franz struct{ as *kversion.Versions }

func (f franz) name() string {
	if f.as == nil {
		return "franz-go"
	}
	return "franz-go as of " + f.as.VersionGuess()
}

func (f franz) opts(more ...kgo.Opt) []kgo.Opt {
	if f.as != nil {
		more = append(more, kgo.MaxVersions(f.as))
	}
	return more
}

func franzCodec(codec string) kgo.Opt {
	return kgo.ProducerBatchCompression(map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}[codec])
}

func (f franz) producer(t testing.TB, bootstrap, codec string) func([]*kgo.Record) {
	cl := client(t, bootstrap, f.opts(franzCodec(codec), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ManualFlushing(), kgo.MaxBufferedRecords(1_000_000))...)
	return func(records []*kgo.Record) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, r := range records {
			cl.Produce(ctx, r, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Errorf("producing to %s: %v", r.Topic, err)
				}
			})
		}
		if err := cl.Flush(ctx); err != nil {
			t.Errorf("flushing: %v", err)
		}
	}
}

func (f franz) consume(t testing.TB, bootstrap string, n int, topic string) []*kgo.Record {
	return consumed(t, bootstrap, n, f.opts(), topic)
}

// saramaClient is sarama, of the release of Kafka that it is told to be of.
type saramaClient struct{ version sarama.KafkaVersion }

func (c saramaClient) name() string { return "sarama for " + c.version.String() }

func (c saramaClient) config() *sarama.Config {
	cfg := sarama.NewConfig()
	cfg.Version = c.version
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	cfg.Producer.Return.Successes = true
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Producer.Idempotent = true
	cfg.Net.MaxOpenRequests = 1
	// Long enough for a batch to gather, short enough not to be felt.
	cfg.Producer.Flush.Frequency = 10 * time.Millisecond
	return cfg
}

func (c saramaClient) producer(t testing.TB, bootstrap, codec string) func([]*kgo.Record) {
	t.Helper()
	cfg := c.config()
	cfg.Producer.Compression = map[string]sarama.CompressionCodec{
		"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy,
		"lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD,
	}[codec]
	p, err := sarama.NewSyncProducer(strings.Split(bootstrap, ","), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	encoder := func(b []byte) sarama.Encoder {
		if b == nil {
			return nil
		}
		return sarama.ByteEncoder(b)
	}
	return func(records []*kgo.Record) {
		t.Helper()
		var messages []*sarama.ProducerMessage
		for _, r := range records {
			m := &sarama.ProducerMessage{Topic: r.Topic, Partition: r.Partition, Timestamp: r.Timestamp, Key: encoder(r.Key), Value: encoder(r.Value)}
			for _, h := range r.Headers {
				m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(h.Key), Value: h.Value})
			}
			messages = append(messages, m)
		}
		if err := p.SendMessages(messages); err != nil {
			t.Errorf("producing: %v", err)
			return
		}
		for i, m := range messages {
			records[i].Offset = m.Offset
		}
	}
}

func (c saramaClient) consume(t testing.TB, bootstrap string, n int, topic string) []*kgo.Record {
	t.Helper()
	consumer, err := sarama.NewConsumer(strings.Split(bootstrap, ","), c.config())
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	partitions, err := consumer.Partitions(topic)
	if err != nil {
		t.Fatal(err)
	}
	messages := make(chan *sarama.ConsumerMessage)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	for _, partition := range partitions {
		pc, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer pc.AsyncClose()
			for {
				select {
				case m := <-pc.Messages():
					select {
					case messages <- m:
					case <-stop:
						return
					}
				case <-stop:
					return
				}
			}
		})
	}
	patience := time.After(time.Minute)
	var out []*kgo.Record
	for len(out) < n {
		select {
		case m := <-messages:
			r := &kgo.Record{Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Timestamp: m.Timestamp, Key: m.Key, Value: m.Value}
			for _, h := range m.Headers {
				r.Headers = append(r.Headers, kgo.RecordHeader{Key: string(h.Key), Value: h.Value})
			}
			out = append(out, r)
		case <-patience:
			t.Fatalf("%s got %d of %d records", c.name(), len(out), n)
		}
	}
	return out
}

type javaClient struct {
	jvm *harness.JVM
	is  string
}

func (j javaClient) name() string { return j.is }

func (j javaClient) producer(t testing.TB, bootstrap, codec string) func([]*kgo.Record) {
	return func(records []*kgo.Record) {
		t.Helper()
		var in strings.Builder
		for _, r := range records {
			fmt.Fprintf(&in, "%s %d %d %s %s", r.Topic, r.Partition, r.Timestamp.UnixMilli(), javaText(r.Key), javaText(r.Value))
			for _, h := range r.Headers {
				fmt.Fprintf(&in, " %s %s", javaText([]byte(h.Key)), javaText(h.Value))
			}
			in.WriteByte('\n')
		}
		// Nothing goes before the flush at the end, or a full batch.
		r := j.jvm.TryJava(in.String(), "Client", "produce", bootstrap, "compression.type="+codec, "linger.ms=60000", "delivery.timeout.ms=120000",
			"batch.size=1000000", "max.request.size=1048576")
		lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
		if r.Err != nil || len(lines) != len(records) {
			t.Errorf("Java acknowledged %d of %d records: %v\n%s", len(lines), len(records), r.Err, r.Stderr)
			return
		}
		for i, line := range lines {
			f := strings.Fields(line)
			offset, err := strconv.ParseInt(f[2], 10, 64)
			if err != nil {
				t.Errorf("Java printed %q", line)
			}
			records[i].Offset = offset
		}
	}
}

func (j javaClient) consume(t testing.TB, bootstrap string, n int, topic string) []*kgo.Record {
	t.Helper()
	return javaRecords(t, j.jvm.Java(t, "", "Client", "consume", bootstrap, strconv.Itoa(n), topic))
}

// javaText and javaRecords know the text of harness/java/Client.java.
func javaText(b []byte) string {
	switch {
	case b == nil:
		return "-"
	case len(b) == 0:
		return "."
	}
	return base64.StdEncoding.EncodeToString(b)
}

func javaRecords(t testing.TB, out string) (records []*kgo.Record) {
	t.Helper()
	field := func(s string) []byte {
		switch s {
		case "-":
			return nil
		case ".":
			return []byte{}
		}
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		r := &kgo.Record{Topic: f[0], Partition: int32(number(f[1])), Offset: number(f[2]), Timestamp: time.UnixMilli(number(f[3])), Key: field(f[4]), Value: field(f[5])}
		for i := 6; i+1 < len(f); i += 2 {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: string(field(f[i])), Value: field(f[i+1])})
		}
		records = append(records, r)
	}
	return records
}

// byPartition sorts records by partition, keeping each partition's order.
func byPartition(records []*kgo.Record) map[int32][]*kgo.Record {
	out := make(map[int32][]*kgo.Record)
	for _, r := range records {
		out[r.Partition] = append(out[r.Partition], r)
	}
	return out
}

// same reports the first difference between what was written and what was
// read: per partition every record, in order, at consecutive offsets from 0.
func same(t testing.TB, reader string, wrote, read []*kgo.Record, timestamps bool) {
	t.Helper()
	want, got := byPartition(wrote), byPartition(read)
	for partition, records := range want {
		// Producers of several batches in flight still acknowledge in order.
		slices.SortStableFunc(records, func(a, b *kgo.Record) int { return int(a.Offset - b.Offset) })
		if len(got[partition]) != len(records) {
			t.Errorf("%s: partition %d gave %d records, %d were written", reader, partition, len(got[partition]), len(records))
			continue
		}
		for i, w := range records {
			g := got[partition][i]
			if w.Offset != int64(i) || g.Offset != int64(i) {
				t.Errorf("%s: partition %d: record %d was acknowledged at offset %d and read at %d", reader, partition, i, w.Offset, g.Offset)
				break
			}
			if ws, gs := text(w, timestamps), text(g, timestamps); ws != gs {
				t.Errorf("%s: partition %d offset %d:\nwrote %s\nread  %s", reader, partition, i, short(ws), short(gs))
				break
			}
		}
	}
}

// text is a record in a form that keeps null and empty apart.
func text(r *kgo.Record, timestamp bool) string {
	var b strings.Builder
	field := func(p []byte) {
		if p == nil {
			b.WriteString("null ")
			return
		}
		b.WriteString(strconv.Itoa(len(p)))
		b.WriteByte(':')
		b.Write(p)
		b.WriteByte(' ')
	}
	if timestamp {
		b.WriteString(strconv.FormatInt(r.Timestamp.UnixMilli(), 10))
		b.WriteByte(' ')
	}
	field(r.Key)
	field(r.Value)
	for _, h := range r.Headers {
		field([]byte(h.Key))
		field(h.Value)
	}
	return b.String()
}

func short(s string) string { return fmt.Sprintf("%.200q (%d bytes)", s, len(s)) }
