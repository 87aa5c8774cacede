package integration

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// retention.bytes is of what was written, although brokers hold placeholders; what
// is kept is read, what is not is out of range, and a topic without a limit, or of
// the other tier, is left to Kafka.
func TestRetentionBytesAreOriginalBytes(t *testing.T) {
	const (
		limit   = 1 << 20
		batches = 40
		each    = 50
	)
	k := sharedKafka(t)
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Extra: "gc: { enabled: false }\nretention: { every: 1s }\n"})
	limited, forever, control := "telemetry-by-bytes", "telemetry-without-limit", "control-by-bytes"
	createTopic(t, bootstrapOf(k), limited, 1, "retention.bytes", strconv.Itoa(limit))
	createTopic(t, bootstrapOf(k), forever, 1)
	createTopic(t, bootstrapOf(k), control, 1, "retention.bytes", strconv.Itoa(limit))
	cl := client(t, s.Bootstrap, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	value := func(n int) string { return fmt.Sprintf("%06d %s", n, strings.Repeat("payload ", 250)) }
	for b := range batches {
		var rs []*kgo.Record
		for i := range each {
			for _, topic := range []string{limited, forever, control} {
				rs = append(rs, &kgo.Record{Topic: topic, Value: []byte(value(b*each + i))})
			}
		}
		if err := cl.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	adm := kadm.NewClient(client(t, bootstrapOf(k)))
	start := func(topic string) int64 {
		got, err := adm.ListStartOffsets(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		o, _ := got.Lookup(topic, 0)
		return o.Offset
	}
	const record = 2010
	kept := func() int64 { return (batches*each - start(limited)) * record }
	eventually(t, "the log is cut", func() (bool, string) {
		return kept() < limit+limit/64+2*each*record, fmt.Sprintf("%d bytes are kept", kept())
	})
	if kept() < limit {
		t.Fatalf("%d bytes are kept, retention.bytes is %d", kept(), limit)
	}
	first := int(start(limited))
	for i, r := range consumed(t, s.Bootstrap, batches*each-first, nil, limited) {
		if string(r.Value) != value(first+i) {
			t.Fatalf("record %d is %.20q", first+i, r.Value)
		}
	}
	for _, topic := range []string{forever, control} {
		if at := start(topic); at != 0 {
			t.Errorf("%s begins at %d", topic, at)
		}
	}
	// The leader's log begins later before it answers: it waits for its followers.
	eventually(t, "the metric tells of it", func() (bool, string) {
		n := s.metric(t, "sluice_retention_deleted_records_total")
		return int64(n) == start(limited), fmt.Sprintf("%v records by the metric, %d by the log", n, start(limited))
	})
	// Below its start the log is what any shortened log is.
	topics, err := adm.ListTopics(t.Context(), limited)
	if err != nil {
		t.Fatal(err)
	}
	req := kmsg.NewPtrFetchRequest()
	req.MaxBytes = 1 << 20
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.TopicID = limited, topics[limited].ID
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.PartitionMaxBytes = 1 << 20
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(t.Context(), cl.Broker(int(topics[limited].Partitions[0].Leader)))
	if err != nil {
		t.Fatal(err)
	}
	if err := kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode); !errors.Is(err, kerr.OffsetOutOfRange) {
		t.Errorf("offset 0 is read: %v", err)
	}
}
