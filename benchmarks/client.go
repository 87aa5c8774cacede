package benchmarks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
)

// Target is a way to Kafka that is compared with others.
type Target struct {
	Name      string         `json:"name"`
	Bootstrap []string       `json:"bootstrap"`
	Note      string         `json:"note,omitempty"`              // what it is, for the report
	Metrics   []string       `json:"metrics,omitempty"`           // URLs of its replicas' /metrics
	Topic     string         `json:"topic"`                       // names of topics; the asterisk is replaced by what is unique
	LowTopic  string         `json:"low_latency_topic,omitempty"` // the same for streams that stay in the low-latency tier; "" is Topic
	InProcess bool           `json:"in_process,omitempty"`        // it shares the generator's process: its CPU and memory cannot be told apart
	TLS       *tls.Config    `json:"-"`
	SASL      sasl.Mechanism `json:"-"`
}

// DefaultTopic names the topics of a target whose class does not depend on it.
const DefaultTopic = "sluice-bench-*"

// Clients are alike on every target. Compression is off, so that bytes in Kafka
// and in objects can be compared with payloads.
const (
	maxBufferedRecords = 64 << 10
	maxBufferedBytes   = 128 << 20
	maxBatch           = 1 << 20
	deliveryTimeout    = 60 * time.Second
	requestTimeout     = 30 * time.Second
)

func (t Target) options() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.SeedBrokers(t.Bootstrap...),
		kgo.ClientID("sluice-bench"),
		kgo.RetryTimeout(requestTimeout),
	}
	if t.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(t.TLS.Clone()))
	}
	if t.SASL != nil {
		opts = append(opts, kgo.SASL(t.SASL))
	}
	return opts
}

// sender hands records to a cluster and does not wait for the answers.
type sender interface {
	// Send calls done once. It blocks only while Full.
	Send(ctx context.Context, topic string, value []byte, done func(error))
	Full() bool
	Begin() error
	Commit(ctx context.Context) error
	Close()
}

// receiver reads all partitions of a topic from given offsets on.
type receiver interface {
	// Poll returns when there are values, or when ctx ends. The values are the
	// caller's until the next call.
	Poll(ctx context.Context) ([][]byte, error)
	Close()
}

// offsets is where a receiver begins, by partition.
type offsets map[int32]int64

// Clients names what may drive the load.
var Clients = []string{"franz-go", "sarama"}

type sendOptions struct {
	linger        time.Duration
	roundRobin    bool
	transactional string // its id; "" for none
	maxRecord     int
}

func newSender(client string, t Target, o sendOptions) (sender, error) {
	if client == "sarama" {
		return newSaramaSender(t, o)
	}
	return newFranzSender(t, o)
}

func newReceiver(client string, t Target, topic string, from offsets, committed bool) (receiver, error) {
	if client == "sarama" {
		return newSaramaReceiver(t, topic, from, committed)
	}
	return newFranzReceiver(t, topic, from, committed)
}

type franzSender struct {
	client *kgo.Client
}

func newFranzSender(t Target, o sendOptions) (*franzSender, error) {
	batch := max(maxBatch, o.maxRecord+4096)
	opts := append(t.options(),
		kgo.ProducerLinger(o.linger),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerBatchMaxBytes(int32(batch)),
		kgo.MaxBufferedRecords(maxBufferedRecords),
		kgo.MaxBufferedBytes(max(maxBufferedBytes, 2*batch)),
		kgo.RecordDeliveryTimeout(deliveryTimeout),
	)
	if o.roundRobin {
		opts = append(opts, kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	}
	if o.transactional != "" {
		opts = append(opts, kgo.TransactionalID(o.transactional), kgo.TransactionTimeout(transactionTimeout))
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, err
	}
	return &franzSender{client: client}, nil
}

func (s *franzSender) Send(ctx context.Context, topic string, value []byte, done func(error)) {
	s.client.Produce(ctx, &kgo.Record{Topic: topic, Value: value}, func(_ *kgo.Record, err error) { done(err) })
}

func (s *franzSender) Full() bool {
	return s.client.BufferedProduceRecords() >= maxBufferedRecords-1 || s.client.BufferedProduceBytes() >= maxBufferedBytes-maxBatch
}

func (s *franzSender) Begin() error { return s.client.BeginTransaction() }

func (s *franzSender) Commit(ctx context.Context) error {
	if err := s.client.Flush(ctx); err != nil {
		return err
	}
	return s.client.EndTransaction(ctx, kgo.TryCommit)
}

func (s *franzSender) Close() { s.client.Close() }

type franzReceiver struct {
	client *kgo.Client
	values [][]byte
}

func newFranzReceiver(t Target, topic string, from offsets, committed bool) (*franzReceiver, error) {
	at := make(map[int32]kgo.Offset, len(from))
	for p, o := range from {
		at[p] = kgo.NewOffset().At(o)
	}
	opts := append(t.options(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}),
		kgo.FetchMaxWait(500*time.Millisecond),
	)
	if committed {
		opts = append(opts, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, err
	}
	return &franzReceiver{client: client}, nil
}

func (r *franzReceiver) Poll(ctx context.Context) ([][]byte, error) {
	fetches := r.client.PollFetches(ctx)
	r.values = r.values[:0]
	var errs []error
	fetches.EachError(func(topic string, p int32, err error) {
		if !errors.Is(err, ctx.Err()) {
			errs = append(errs, fmt.Errorf("%s-%d: %w", topic, p, err))
		}
	})
	fetches.EachRecord(func(rec *kgo.Record) { r.values = append(r.values, rec.Value) })
	if ctx.Err() != nil {
		return r.values, nil
	}
	return r.values, errors.Join(errs...)
}

func (r *franzReceiver) Close() { r.client.Close() }
