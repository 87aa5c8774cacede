package benchmarks_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// rawLoad is the same batch, over and over, by clients that do no work of their
// own. Partitions are shared out evenly.
type rawLoad struct {
	topic      string
	batch      []byte
	batches    int // of each partition
	partitions int
	clients    int
	inFlight   int // of each client
	fetch      int // max.partition.fetch.bytes
	idempotent bool
	acked      func() // of each batch, or nil
}

// bytes are those of the batches of all partitions.
func (l rawLoad) bytes() float64 { return float64(l.batches * l.partitions * len(l.batch)) }

// same reports whether a batch is the load's, but for what brokers set, which
// comes first, and for who produced it.
func (l rawLoad) same(b wire.Batch) bool {
	if !l.idempotent {
		return bytes.Equal(b[brokersOwn:], l.batch[brokersOwn:])
	}
	return b.IsV2() && bytes.Equal(b.Body(), wire.Batch(l.batch).Body()) && b.ComputeCRC() == b.CRC()
}

// producerID asks for a new one. A broker that was never asked has none at first.
func (c *rawClient) producerID() (int64, error) {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionTimeoutMillis, req.ProducerID, req.ProducerEpoch = 60_000, -1, -1
	const version = 3
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := c.Write(encodeRequest(req, version, 1)); err != nil {
			return 0, err
		}
		body, err := c.receive(true)
		if err != nil {
			return 0, err
		}
		resp := kmsg.NewPtrInitProducerIDResponse()
		resp.SetVersion(version)
		if err := resp.ReadFrom(body); err != nil {
			return 0, err
		}
		if err := kerr.ErrorForCode(resp.ErrorCode); err == nil || !kerr.IsRetriable(err) || time.Now().After(deadline) {
			return resp.ProducerID, err
		}
	}
}

// each runs fn for each part of the partitions at once.
func (l rawLoad) each(t *testing.T, addr string, fn func(c *rawClient, partitions []int32) error) {
	t.Helper()
	var g errgroup.Group
	var partitions []int32
	for i := range l.partitions {
		partitions = append(partitions, int32(i))
	}
	for part := range slices.Chunk(partitions, max(1, l.partitions/l.clients)) {
		g.Go(func() error {
			c, err := dialRaw(addr)
			if err != nil {
				return err
			}
			defer c.Close()
			return fn(c, part)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatalf("%s: %v", addr, err)
	}
}

// fill writes the batch over and over.
func (l rawLoad) fill(t *testing.T, addr string) {
	t.Helper()
	l.each(t, addr, func(c *rawClient, partitions []int32) error {
		var producer int64
		if l.idempotent {
			var err error
			if producer, err = c.producerID(); err != nil {
				return err
			}
		}
		room, failed := make(chan struct{}, l.inFlight), make(chan struct{})
		defer close(failed)
		n := l.batches * len(partitions)
		sent := make(chan error, 1)
		go func() {
			for i := range n {
				select {
				case room <- struct{}{}:
				case <-failed:
					return
				}
				batch := l.batch
				if l.idempotent {
					b := wire.Batch(slices.Clone(batch))
					b.SetProducerID(producer)
					b.SetProducerEpoch(0)
					b.SetBaseSequence(int32(i/len(partitions)) * b.NumRecords())
					b.SetCRC(b.ComputeCRC())
					batch = b
				}
				if _, err := c.Write(produceFrame(l.topic, partitions[i%len(partitions)], batch)); err != nil {
					sent <- err
					return
				}
			}
		}()
		for range n {
			if err := c.produced(); err != nil {
				select {
				case why := <-sent:
					err = errors.Join(err, why)
				default:
				}
				return err
			}
			<-room
			if l.acked != nil {
				l.acked()
			}
		}
		return nil
	})
}

// consume reads what fill wrote, and expects every batch in its place.
func (l rawLoad) consume(t *testing.T, addr string) {
	t.Helper()
	batch := l.batch
	records := int64(wire.Batch(batch).NumRecords())
	end := int64(l.batches) * records
	l.each(t, addr, func(c *rawClient, partitions []int32) error {
		at := make(map[int32]int64)
		for len(partitions) > 0 {
			req := kmsg.NewPtrFetchRequest()
			req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = 500, 1, 50<<20, -1
			rt := kmsg.NewFetchRequestTopic()
			rt.Topic = l.topic
			for _, p := range partitions {
				rp := kmsg.NewFetchRequestTopicPartition()
				rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes, rp.CurrentLeaderEpoch = p, at[p], int32(l.fetch), -1
				rt.Partitions = append(rt.Partitions, rp)
			}
			req.Topics = append(req.Topics, rt)
			if _, err := c.Write(encodeRequest(req, fetchVersion, 1)); err != nil {
				return err
			}
			body, err := c.receive(true)
			if err != nil {
				return err
			}
			resp := kmsg.NewPtrFetchResponse()
			resp.SetVersion(fetchVersion)
			if err := resp.ReadFrom(body); err != nil {
				return err
			}
			for _, got := range resp.Topics[0].Partitions {
				if err := kerr.ErrorForCode(got.ErrorCode); err != nil {
					return err
				}
				p := got.Partition
				for b := got.RecordBatches; len(b) >= len(batch); b = b[len(batch):] {
					if offset := wire.Batch(b).BaseOffset(); offset != at[p] || !l.same(b[:len(batch)]) {
						return fmt.Errorf("partition %d: a batch at offset %d, expected %d, or it was changed", p, offset, at[p])
					}
					at[p] += records
				}
			}
			partitions = slices.DeleteFunc(slices.Clone(partitions), func(p int32) bool { return at[p] >= end })
		}
		return nil
	})
}
