package upkeep

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// spoilt is what the disk of a broker may do to a batch, by the field that then
// has it pass for something that may be left out.
var spoilt = map[string]func(wire.Batch){
	"last offset delta":       func(b wire.Batch) { b.SetLastOffsetDelta(-100) },
	"last offset delta, high": func(b wire.Batch) { b.SetLastOffsetDelta(1 << 30) },
	"count":                   func(b wire.Batch) { b.SetNumRecords(0) },
	"attributes":              func(b wire.Batch) { b.SetAttributes(b.Attributes() | wire.AttrControl) },
	"magic":                   func(b wire.Batch) { b.SetMagic(1) },
	"magic, high":             func(b wire.Batch) { b.SetMagic(9) },
}

// garble has the broker give the second of three batches of 4 records spoilt.
func (r *rig) garble(topic string, fn func(wire.Batch)) (records []byte) {
	r.t.Helper()
	for range 3 {
		r.write(r.direct, topic, 0, 4)
	}
	a, _ := r.access()
	all := r.batches(a, topic, 0)
	if len(all) != 3 {
		r.t.Fatalf("%d batches", len(all))
	}
	fn(all[1])
	for _, b := range all {
		records = append(records, b...)
	}
	return records
}

// answer has brokers give these records to whoever fetches from them.
func (r *rig) answer(records []byte, end int64) {
	r.kafka.ControlKey(int16(kmsg.Fetch), func(k kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.KeepControl()
		req := k.(*kmsg.FetchRequest)
		resp := req.ResponseKind().(*kmsg.FetchResponse)
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic, topic.TopicID = req.Topics[0].Topic, req.Topics[0].TopicID
		p := kmsg.NewFetchResponseTopicPartition()
		p.HighWatermark, p.LastStableOffset, p.RecordBatches = end, end, records
		topic.Partitions = append(topic.Partitions, p)
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
}

func TestFsckFindsABatchWhoseHeaderIsGarbled(t *testing.T) {
	for name, fn := range spoilt {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, kfake.SeedTopics(1, "logs"))
			records := r.garble("logs", fn)
			a, _ := r.access()
			r.answer(records, 12)
			report, err := a.Fsck(t.Context(), FsckOptions{Patterns: compiled(t, "logs")})
			if err != nil {
				t.Fatal(err)
			}
			if len(report.Damage) != 1 || report.Damage[0].Kind != LogBatch || report.Damage[0].First != 4 || report.Damage[0].Last != 7 || report.Batches != 3 {
				t.Errorf("%+v", report)
			}
		})
	}
}

func TestCopyStopsAtABatchWhoseHeaderIsGarbled(t *testing.T) {
	for name, fn := range spoilt {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, kfake.SeedTopics(1, "logs"), kfake.SeedTopics(1, "plain"))
			records := r.garble("logs", fn)
			a, _ := r.access()
			c := &copier{Access: a, opt: CopyOptions{Target: target(t, r.kafka.ListenAddrs(), nil)}, bytes: limiter(0, byteBurst), report: &CopyReport{}}
			parts, err := c.begin(t.Context(), CopyTopic{"logs", "plain"})
			if err != nil {
				t.Fatal(err)
			}
			if err := parts[0].newProducer(t.Context()); err != nil {
				t.Fatal(err)
			}
			err = parts[0].take(t.Context(), lowlatency.Fetched{Records: records, End: 12, Stable: 12})
			if err == nil || !strings.Contains(err.Error(), "offset 4") || parts[0].Next > 4 || parts[0].At > 4 {
				t.Errorf("%v: up to %d, which is %d there", err, parts[0].Next, parts[0].At)
			}
		})
	}
}

func TestDrainDoesNotKnowWhatAGarbledBatchWas(t *testing.T) {
	for name, fn := range spoilt {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, kfake.SeedTopics(1, "logs"))
			records := r.garble("logs", fn)
			a, _ := r.access()
			if got, err := a.Remains(t.Context(), "logs", 0); err != nil || got.Placeholders > 0 {
				t.Fatalf("%+v, %v", got, err)
			}
			r.answer(records, 12)
			if got, err := a.Remains(t.Context(), "logs", 0); err == nil || !strings.Contains(err.Error(), "offset 4") {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// A log that gives nothing below its end does not keep a copy for ever.
func TestCopyEndsWhereTheSourceGivesNothing(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(1, "logs"))
	r.write(r.direct, "logs", 0, 4)
	a, _ := r.access()
	r.answer(nil, 4)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	report, err := a.Copy(ctx, CopyOptions{Topics: []CopyTopic{{"logs", "plain"}}, Target: target(t, r.kafka.ListenAddrs(), nil)})
	if !errors.Is(err, errNothing) || report.Complete {
		t.Errorf("%v: %+v", err, report)
	}
}

// Offsets expire that are not committed anew.
func TestCopyKeepsItsProgressFromExpiring(t *testing.T) {
	old := renewEvery
	renewEvery = time.Millisecond
	defer func() { renewEvery = old }()
	r := newRig(t, kfake.SeedTopics(1, "logs"))
	r.write(r.direct, "logs", 0, 4)
	a, _ := r.access()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var commits atomic.Int64
	r.kafka.ControlKey(int16(kmsg.OffsetCommit), func(kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.KeepControl()
		if commits.Add(1) == 5 {
			cancel()
		}
		return nil, nil, false
	})
	opt := CopyOptions{Topics: []CopyTopic{{"logs", "plain"}}, Target: target(t, r.kafka.ListenAddrs(), nil), Follow: true}
	if _, err := a.Copy(ctx, opt); err != nil || !errors.Is(ctx.Err(), context.Canceled) {
		t.Fatal(err, ctx.Err())
	}
	renewEvery = time.Hour
	opt.Follow, opt.Resume = false, true
	before := commits.Load()
	if _, err := a.Copy(t.Context(), opt); err != nil || commits.Load() == before {
		t.Errorf("%v, %d commits", err, commits.Load()-before)
	}
}
