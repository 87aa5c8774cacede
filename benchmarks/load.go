package benchmarks

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// route is a way to the cluster: an address and a topic of its own.
type route struct {
	name      string
	bootstrap []string
	topic     string
}

// Clients are alike on every route. Compression is off, so that bytes in Kafka
// and in objects can be compared with payloads.
const (
	partitions  = 6
	replication = 3
	valueSize   = 1024
	maxBuffered = 64 << 10 // records; with 1 KB each, 64 MB
	maxBatch    = 1 << 20
)

func (r route) client(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(r.bootstrap...),
		kgo.DefaultProduceTopic(r.topic),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerBatchMaxBytes(maxBatch),
		kgo.MaxBufferedRecords(maxBuffered),
		kgo.FetchMaxWait(500 * time.Millisecond),
	}, opts...)...)
}

// values makes records of one size: when it was due, its number, noise that
// does not compress below half, and a checksum over all of it.
type values struct{ noise []byte }

const (
	valueHead = 16
	valueTail = 4
)

func newValues() *values {
	random := make([]byte, 64<<10)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(random)
	return &values{noise: hex.AppendEncode(nil, random)}
}

func (v *values) make(number int, due time.Time) []byte {
	out := make([]byte, valueSize)
	binary.BigEndian.PutUint64(out, uint64(due.UnixNano()))
	binary.BigEndian.PutUint64(out[8:], uint64(number))
	copy(out[valueHead:], v.noise[number*61%(len(v.noise)-valueSize):])
	end := valueSize - valueTail
	binary.BigEndian.PutUint32(out[end:], crc32.ChecksumIEEE(out[:end]))
	return out
}

// ledger checks that each record comes back once and whole.
type ledger struct {
	seen  []bool
	count int
}

func (l *ledger) take(value []byte) (number int, due time.Time, err error) {
	if len(value) != valueSize {
		return 0, due, fmt.Errorf("a value of %d bytes came back, %d were sent", len(value), valueSize)
	}
	end := valueSize - valueTail
	if crc32.ChecksumIEEE(value[:end]) != binary.BigEndian.Uint32(value[end:]) {
		return 0, due, fmt.Errorf("a value came back changed")
	}
	number = int(binary.BigEndian.Uint64(value[8:]))
	if number < 0 || number >= len(l.seen) || l.seen[number] {
		return 0, due, fmt.Errorf("record %d of %d came back twice or was never sent", number, len(l.seen))
	}
	l.seen[number] = true
	l.count++
	return number, time.Unix(0, int64(binary.BigEndian.Uint64(value))), nil
}

// load is what to send. A rate of 0 means as fast as it is taken.
type load struct {
	records int
	rate    int // records per second
	warmUp  int // first records, whose latency is not recorded
}

// run is what came of it. Latencies are microseconds from the moment that a
// record was due, so that a slow answer cannot hide the ones behind it.
type run struct {
	ack, endToEnd         *hdrhistogram.Histogram
	acknowledged, arrived time.Duration // until the last record was
}

const maxLatency = time.Minute

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, maxLatency.Microseconds(), 3)
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(d, time.Microsecond), maxLatency).Microseconds())
}

// drive produces the load to a route and consumes it there. An error is a
// record that was lost, changed, doubled or refused.
func (r route) drive(ctx context.Context, l load, v *values) (run, error) {
	out := run{ack: newHistogram(), endToEnd: newHistogram()}
	producer, err := r.client()
	if err != nil {
		return out, err
	}
	defer producer.Close()
	ends, err := kadm.NewClient(producer).ListEndOffsets(ctx, r.topic)
	if err != nil {
		return out, fmt.Errorf("%s: asking for offsets: %w", r.name, err)
	}
	consumer, err := r.client(kgo.ConsumePartitions(ends.KOffsets()))
	if err != nil {
		return out, err
	}
	defer consumer.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The clock starts a little later, when both clients' goroutines run.
	start := time.Now().Add(10 * time.Millisecond)
	var both sync.WaitGroup
	both.Go(func() {
		if err := out.consume(ctx, consumer, l, start); err != nil {
			cancel(fmt.Errorf("%s: %w", r.name, err))
		}
	})
	both.Go(func() {
		if err := out.produce(ctx, producer, l, v, start); err != nil {
			cancel(fmt.Errorf("%s: %w", r.name, err))
		}
	})
	both.Wait()
	return out, context.Cause(ctx)
}

func (out *run) produce(ctx context.Context, cl *kgo.Client, l load, v *values, start time.Time) error {
	var failure atomic.Pointer[error]
	var mu sync.Mutex // guards the histogram
	for i := range l.records {
		due := start
		if l.rate > 0 {
			due = start.Add(time.Duration(i) * time.Second / time.Duration(l.rate))
			if wait := time.Until(due); wait > 0 {
				time.Sleep(wait)
			}
		} else if now := time.Now(); now.After(start) {
			due = now
		}
		cl.Produce(ctx, &kgo.Record{Value: v.make(i, due)}, func(_ *kgo.Record, err error) {
			if err != nil {
				failure.CompareAndSwap(nil, &err)
				return
			}
			if i >= l.warmUp {
				took := time.Since(due)
				mu.Lock()
				record(out.ack, took)
				mu.Unlock()
			}
		})
	}
	if err := cl.Flush(ctx); err != nil {
		return fmt.Errorf("not all was acknowledged: %w", err)
	}
	out.acknowledged = time.Since(start)
	if err := failure.Load(); err != nil {
		return fmt.Errorf("producing: %w", *err)
	}
	return nil
}

func (out *run) consume(ctx context.Context, cl *kgo.Client, l load, start time.Time) error {
	book := ledger{seen: make([]bool, l.records)}
	for book.count < l.records {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("consuming, after %d of %d records: %w", book.count, l.records, err)
		}
		now := time.Now()
		for it := fetches.RecordIter(); !it.Done(); {
			number, due, err := book.take(it.Next().Value)
			if err != nil {
				return err
			}
			if number >= l.warmUp {
				record(out.endToEnd, now.Sub(due))
			}
		}
	}
	out.arrived = time.Since(start)
	return nil
}
