package placeholder

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// messages is what the real producers send: null and empty kept apart, records
// large and small, headers, and timestamps out of order.
func messages() []*kgo.Record {
	start := time.UnixMilli(1_760_000_000_000)
	var out []*kgo.Record
	for i := range 700 {
		r := &kgo.Record{Topic: "t", Timestamp: start.Add(time.Duration(i*i%89) * time.Millisecond)}
		r.Key = [][]byte{nil, {}, fmt.Appendf(nil, "key-%d", i)}[i%3]
		r.Value = [][]byte{fmt.Appendf(nil, "value-%d", i), nil, {}, bytes.Repeat(fmt.Appendf(nil, "%d;", i), 1+i)}[i%4]
		for h := range i % 3 {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: fmt.Sprint("h", h), Value: [][]byte{nil, {}, []byte("v")}[(i+h)%3]})
		}
		out = append(out, r)
	}
	return out
}

// captured returns the batches that produce sends to an embedded broker.
func captured(t *testing.T, produce func(t *testing.T, addrs []string)) (batches []wire.Batch) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "t"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	var mu sync.Mutex
	cluster.ControlKey(0, func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		for _, topic := range req.(*kmsg.ProduceRequest).Topics {
			for _, p := range topic.Partitions {
				b, rest, ok := wire.NextBatch(bytes.Clone(p.Records))
				if !ok || len(rest) > 0 {
					t.Error("a Produce of other than one batch")
				}
				batches = append(batches, b)
			}
		}
		return nil, nil, false
	})
	produce(t, cluster.ListenAddrs())
	mu.Lock()
	defer mu.Unlock()
	return batches
}

// decoded reads a batch with franz-go's consumer.
func decoded(t *testing.T, b wire.Batch) []*kgo.Record {
	t.Helper()
	part := kmsg.NewFetchResponseTopicPartition()
	part.HighWatermark = 1 << 50
	part.RecordBatches = b
	got, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Topic: "t", KeepControlRecords: true}, &part, kgo.DefaultDecompressor(), nil)
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	return got.Records
}

func TestBatchesOfRealProducers(t *testing.T) {
	franz := func(c kgo.CompressionCodec) func(*testing.T, []string) {
		return func(t *testing.T, addrs []string) {
			client, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.ProducerBatchCompression(c), kgo.ProducerLinger(20*time.Millisecond))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if err := client.ProduceSync(context.Background(), messages()...).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	ibm := func(c sarama.CompressionCodec) func(*testing.T, []string) {
		return func(t *testing.T, addrs []string) {
			config := sarama.NewConfig()
			config.Version = sarama.V2_8_0_0
			config.Producer.Compression = c
			config.Producer.Return.Successes = true
			config.Producer.Flush.Messages = 100
			config.Producer.Flush.Frequency = 20 * time.Millisecond // for what is left over
			producer, err := sarama.NewSyncProducer(addrs, config)
			if err != nil {
				t.Fatal(err)
			}
			defer producer.Close()
			var out []*sarama.ProducerMessage
			for _, r := range messages() {
				m := &sarama.ProducerMessage{Topic: "t", Timestamp: r.Timestamp}
				if r.Key != nil {
					m.Key = sarama.ByteEncoder(r.Key)
				}
				if r.Value != nil {
					m.Value = sarama.ByteEncoder(r.Value)
				}
				for _, h := range r.Headers {
					m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(h.Key), Value: h.Value})
				}
				out = append(out, m)
			}
			if err := producer.SendMessages(out); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name    string
		codec   int
		produce func(*testing.T, []string)
	}{
		{"franz-go/none", wire.CodecNone, franz(kgo.NoCompression())},
		{"franz-go/gzip", wire.CodecGzip, franz(kgo.GzipCompression())},
		{"franz-go/snappy", wire.CodecSnappy, franz(kgo.SnappyCompression())},
		{"franz-go/lz4", wire.CodecLz4, franz(kgo.Lz4Compression())},
		{"franz-go/zstd", wire.CodecZstd, franz(kgo.ZstdCompression())},
		{"sarama/none", wire.CodecNone, ibm(sarama.CompressionNone)},
		{"sarama/gzip", wire.CodecGzip, ibm(sarama.CompressionGZIP)},
		{"sarama/snappy", wire.CodecSnappy, ibm(sarama.CompressionSnappy)},
		{"sarama/lz4", wire.CodecLz4, ibm(sarama.CompressionLZ4)},
		{"sarama/zstd", wire.CodecZstd, ibm(sarama.CompressionZSTD)},
	} {
		t.Run(c.name, func(t *testing.T) {
			records, compressed := 0, false
			for _, b := range captured(t, c.produce) {
				if Reserved(b) {
					t.Fatal("refused")
				}
				compressed = compressed || b.Codec() == c.codec
				originals, placeholders := decoded(t, b), decoded(t, built(t, b, true))
				records += len(originals)
				if len(originals) != len(placeholders) {
					t.Fatalf("%d records, %d in the placeholder", len(originals), len(placeholders))
				}
				for i, o := range originals {
					p := placeholders[i]
					if p.Key != nil || p.Value == nil || len(p.Value) != 0 || p.Offset != o.Offset || !p.Timestamp.Equal(o.Timestamp) {
						t.Fatalf("record %d: %+v stands for %+v", i, p, o)
					}
				}
			}
			if records != len(messages()) || !compressed {
				t.Fatalf("%d of %d records were seen, compressed %v", records, len(messages()), compressed)
			}
		})
	}
}
