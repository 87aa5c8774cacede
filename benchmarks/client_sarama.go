package benchmarks

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
)

// saramaConfig is as alike to franz-go's as it gets. sarama's idempotent
// producer keeps one request in flight; so it is off.
func saramaConfig(t Target) (*sarama.Config, error) {
	if t.SASL != nil {
		return nil, errors.New("sarama cannot log in here; use --client franz-go")
	}
	c := sarama.NewConfig()
	c.ClientID = "sluice-bench"
	c.Version = sarama.V2_8_0_0
	c.Net.TLS.Enable = t.TLS != nil
	c.Net.TLS.Config = t.TLS
	c.ChannelBufferSize = 4096
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Return.Successes = true
	c.Producer.Return.Errors = true
	c.Producer.MaxMessageBytes = maxBatch
	c.Producer.Flush.Bytes = 0
	c.Consumer.Return.Errors = true
	c.Consumer.MaxWaitTime = 500 * time.Millisecond
	return c, nil
}

type saramaSender struct {
	producer sarama.AsyncProducer
	inFlight atomic.Int64
	answers  sync.WaitGroup
}

func newSaramaSender(t Target, o sendOptions) (*saramaSender, error) {
	if o.transactional != "" {
		return nil, errors.New("transactions are driven with franz-go only; leave --client out")
	}
	c, err := saramaConfig(t)
	if err != nil {
		return nil, err
	}
	c.Producer.Flush.Frequency = o.linger
	c.Producer.MaxMessageBytes = max(maxBatch, o.maxRecord+4096)
	if o.roundRobin {
		c.Producer.Partitioner = sarama.NewRoundRobinPartitioner
	}
	p, err := sarama.NewAsyncProducer(t.Bootstrap, c)
	if err != nil {
		return nil, err
	}
	s := &saramaSender{producer: p}
	answer := func(m *sarama.ProducerMessage, err error) {
		s.inFlight.Add(-1)
		m.Metadata.(func(error))(err)
	}
	s.answers.Go(func() {
		for m := range p.Successes() {
			answer(m, nil)
		}
	})
	s.answers.Go(func() {
		for e := range p.Errors() {
			answer(e.Msg, e.Err)
		}
	})
	return s, nil
}

func (s *saramaSender) Send(ctx context.Context, topic string, value []byte, done func(error)) {
	s.inFlight.Add(1)
	select {
	case s.producer.Input() <- &sarama.ProducerMessage{Topic: topic, Value: sarama.ByteEncoder(value), Metadata: done}:
	case <-ctx.Done():
		s.inFlight.Add(-1)
		done(ctx.Err())
	}
}

func (s *saramaSender) Full() bool                   { return len(s.producer.Input()) >= cap(s.producer.Input()) }
func (s *saramaSender) Begin() error                 { return errors.ErrUnsupported }
func (s *saramaSender) Commit(context.Context) error { return errors.ErrUnsupported }

func (s *saramaSender) Close() {
	s.producer.AsyncClose()
	s.answers.Wait()
}

type saramaReceiver struct {
	consumer   sarama.Consumer
	partitions []sarama.PartitionConsumer
	values     chan []byte
	failed     chan error
	ended      chan struct{}
	relays     sync.WaitGroup
	batch      [][]byte
}

func newSaramaReceiver(t Target, topic string, from offsets, committed bool) (*saramaReceiver, error) {
	c, err := saramaConfig(t)
	if err != nil {
		return nil, err
	}
	if committed {
		c.Consumer.IsolationLevel = sarama.ReadCommitted
	}
	consumer, err := sarama.NewConsumer(t.Bootstrap, c)
	if err != nil {
		return nil, err
	}
	r := &saramaReceiver{consumer: consumer, values: make(chan []byte, 4096), failed: make(chan error, 1), ended: make(chan struct{})}
	for p, o := range from {
		pc, err := consumer.ConsumePartition(topic, p, o)
		if err != nil {
			r.Close()
			return nil, err
		}
		r.partitions = append(r.partitions, pc)
		r.relays.Go(func() {
			for m := range pc.Messages() {
				select {
				case r.values <- m.Value:
				case <-r.ended:
				}
			}
		})
		r.relays.Go(func() {
			for e := range pc.Errors() {
				select {
				case r.failed <- e:
				default: // one is enough to say that it does not go well
				}
			}
		})
	}
	return r, nil
}

func (r *saramaReceiver) Poll(ctx context.Context) ([][]byte, error) {
	r.batch = r.batch[:0]
	select {
	case v := <-r.values:
		r.batch = append(r.batch, v)
	case err := <-r.failed:
		return nil, err
	case <-ctx.Done():
		return nil, nil
	}
	for len(r.batch) < cap(r.values) {
		select {
		case v := <-r.values:
			r.batch = append(r.batch, v)
		default:
			return r.batch, nil
		}
	}
	return r.batch, nil
}

func (r *saramaReceiver) Close() {
	close(r.ended)
	for _, p := range r.partitions {
		p.AsyncClose()
	}
	r.relays.Wait()
	_ = r.consumer.Close()
}
