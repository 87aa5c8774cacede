package integration

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
)

func TestBothTiersThroughOneAddress(t *testing.T) {
	k := sharedKafka(t)
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(harness.StartS3(t), "spine")})
	topics := []string{"spine-control", "spine-telemetry"}
	for _, topic := range topics {
		createTopic(t, s.Bootstrap, topic, 6)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl := client(t, s.Bootstrap)
	const each = 2000
	want := make(map[string][]byte)
	for i := range each {
		for _, topic := range topics {
			v := bytes.Repeat([]byte(fmt.Sprintf("%06d.", i)), 100)
			want[topic+string(v[:6])] = v
			cl.Produce(ctx, &kgo.Record{Topic: topic, Value: v}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	if err := cl.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	for _, r := range consumed(t, s.Bootstrap, each*len(topics), nil, topics...) {
		key := r.Topic + string(r.Value[:min(6, len(r.Value))])
		if !bytes.Equal(r.Value, want[key]) {
			t.Fatalf("%s: %d bytes came back", key, len(r.Value))
		}
		delete(want, key)
	}
	if len(want) > 0 {
		t.Fatalf("%d records are missing", len(want))
	}
	if n := s.metric(t, "sluice_diskless_stored_batches_total"); n == 0 {
		t.Fatal("nothing went to objects")
	}
	// Behind sluice's back, the diskless topic holds placeholders only.
	for _, r := range consumed(t, bootstrapOf(k), each, nil, topics[1]) {
		if len(r.Value) != 0 {
			t.Fatal("a payload is in Kafka")
		}
	}
}
