package harness

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestKafkaSurvivesAKill(t *testing.T) {
	k := StartKafka(t, KafkaOptions{})
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Bootstrap()...), kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic("t"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	produce := func() {
		t.Helper()
		if err := cl.ProduceSync(ctx, kgo.StringRecord("x")).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	produce()
	k.Kill(t, 1)
	produce()
	k.Start(t, 1)
	produce()
}
