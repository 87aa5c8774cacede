package integration

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// Weak acknowledgements are no reason to lose what was sent: with acks=0 the
// client goes as soon as its bytes are in the socket, while they still wait for
// their object.
func TestWeakAcks(t *testing.T) {
	k := sharedKafka(t)
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(harness.StartS3(t), "acks"), Extra: `classes:
  telemetry: { linger: 500ms }
`})
	for _, c := range []struct {
		name  string
		topic string
		acks  kgo.Acks
	}{
		{"acks=0, the client closes at once", "acks0-telemetry", kgo.NoAck()},
		{"acks=0 on a control topic", "acks0-control", kgo.NoAck()},
		{"acks=1", "acks1-telemetry", kgo.LeaderAck()},
	} {
		t.Run(c.name, func(t *testing.T) {
			createTopic(t, s.Bootstrap, c.topic, 3)
			const records = 500
			h := history.New()
			cl := client(t, s.Bootstrap, kgo.RequiredAcks(c.acks), kgo.DisableIdempotentWrite(), kgo.RecordPartitioner(kgo.ManualPartitioner()),
				kgo.ProducerBatchMaxBytes(8<<10), kgo.ProducerLinger(0)) // many requests
			for i := range records {
				cl.Produce(t.Context(), h.Next(c.topic, int32(i%3), 1<<10), func(r *kgo.Record, err error) {
					if err != nil {
						t.Error(err)
					}
					if c.acks == kgo.NoAck() {
						r.Offset = -1 // nobody told
					}
					h.Acked(r, err)
				})
			}
			if err := cl.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			cl.Close()
			eventually(t, "all are in the log", func() (bool, string) {
				n := int64(0)
				for _, end := range endOffsets(t, bootstrapOf(k), c.topic) {
					n += end
				}
				return n == records, "some are missing"
			})
			readAll(t, h, "afterwards", s.Bootstrap, bootstrapOf(k), c.topic)
		})
	}
	if n := s.metric(t, "sluice_proxy_requests_dropped_total"); n != 0 {
		t.Errorf("%v requests were dropped", n)
	}
}
