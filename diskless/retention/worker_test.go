package retention

import (
	"context"
	"slices"
	"testing"

	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// logs is a Kafka of logs that have one batch for each offset.
type logs struct {
	t       *testing.T
	all     []tiers.LedLog
	ends    map[string]int64 // high watermarks
	grows   string           // by a batch with each answer about it
	answers map[int32]error  // what leaders fail with
	asked   []string         // fetched and cut, in that order
}

func (k *logs) SizeLimits(_ context.Context, topics []string) (map[string]int64, error) {
	limits := make(map[string]int64)
	for _, t := range topics {
		limits[t] = 10 * wire.BatchHeaderSize
	}
	return limits, nil
}

func (k *logs) LeaderLimit(_ context.Context, l tiers.LedLog) (int64, error) {
	return 10 * wire.BatchHeaderSize, nil
}

func (k *logs) Led(context.Context, []string) ([]tiers.LedLog, error) {
	return slices.Clone(k.all), nil
}

func (k *logs) FetchLed(_ context.Context, l tiers.LedLog, offset int64, _ int32) (tiers.Stretch, error) {
	if k.asked = append(k.asked, "fetch "+l.Topic); len(k.asked) > 10_000 {
		k.t.Fatal("a pass does not end")
	}
	if err := k.answers[l.Leader]; err != nil {
		return tiers.Stretch{}, err
	}
	if l.Topic == k.grows {
		k.ends[l.Topic]++
	}
	s := tiers.Stretch{End: k.ends[l.Topic]}
	if offset < s.End {
		raw := make(wire.Batch, wire.BatchHeaderSize)
		raw.SetMagic(2)
		raw.SetBaseOffset(offset)
		raw.SetLength(wire.BatchHeaderSize - wire.LogOverhead)
		raw.SetProducerID(wire.BatchHeaderSize)
		s.Records = raw
	}
	return s, nil
}

func (k *logs) Continues(context.Context, tiers.LedLog, int32, int64) (bool, error) { return true, nil }

func (k *logs) DeleteBefore(_ context.Context, l tiers.LedLog, _ int64) error {
	k.asked = append(k.asked, "cut "+l.Topic)
	return nil
}

func (k *logs) worker() *Worker {
	return New(Options{
		Kafka: k, Payloads: &world{}, Ours: func(string) bool { return true },
		Topics: func(context.Context) (names []string, _ error) {
			for _, l := range k.all {
				names = append(names, l.Topic)
			}
			return names, nil
		},
	})
}

func led(topic string, leader int32) tiers.LedLog {
	return tiers.LedLog{TopicPartition: tiers.TopicPartition{Topic: topic}, ID: [16]byte{1}, Leader: leader}
}

// A log that is long does not keep others from being cut, and one that grows as
// fast as it is read does not keep a pass from ending.
func TestLogsTakeTurns(t *testing.T) {
	k := &logs{t: t, all: []tiers.LedLog{led("long", 1), led("short", 1)}, ends: map[string]int64{"long": 500, "short": 20}, grows: "long"}
	r, err := k.worker().Pass(t.Context())
	if err != nil || r.Doubtful > 0 || len(r.Cuts) != 2 {
		t.Fatalf("%v, doubts %v, cuts %v", err, r.DoubtList(), r.Cuts)
	}
	if at := slices.Index(k.asked, "cut short"); at < 0 || at > 100 {
		t.Errorf("the short log is cut after %d requests", at)
	}
}

// A leader that does not answer costs one wait, not one for each of its logs.
func TestSilentLeaderIsAskedOnce(t *testing.T) {
	k := &logs{t: t, ends: map[string]int64{}, answers: map[int32]error{1: context.DeadlineExceeded}}
	for _, topic := range []string{"a", "b", "c"} {
		k.all = append(k.all, led(topic, 1))
	}
	k.all, k.ends["d"] = append(k.all, led("d", 2)), 20
	r, err := k.worker().Pass(t.Context())
	if err != nil || r.Doubtful != 3 || len(r.Cuts) != 1 {
		t.Fatalf("%v, doubts %v, cuts %v", err, r.DoubtList(), r.Cuts)
	}
	if slices.Contains(k.asked, "fetch b") {
		t.Error("it is asked about another log")
	}
}

// What a pass cannot ask about, for once, is not read from its beginning again.
func TestLedgersOutliveDoubts(t *testing.T) {
	k := &logs{t: t, all: []tiers.LedLog{led("a", 1), led("b", 1)}, ends: map[string]int64{"a": 5, "b": 5}}
	w := k.worker()
	if _, err := w.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	whole := k.all
	k.all = k.all[:1]
	w.opt.Topics = func(context.Context) ([]string, error) { return []string{"a", "b"}, nil }
	if _, err := w.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.all, k.asked = whole, nil
	r, err := w.Pass(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Read != 0 {
		t.Errorf("%d bytes are read again", r.Read)
	}
}
