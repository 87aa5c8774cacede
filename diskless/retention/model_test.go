package retention

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// kept is one batch of a log in the model.
type kept struct {
	base, records int64
	epoch         int32
	bytes         int64 // original ones
	unverified    bool  // it pretends to be of bytes, and is short
}

func (b kept) size() int64 {
	if b.unverified {
		return wire.BatchHeaderSize
	}
	return b.bytes
}

// world is a cluster with one partition of one topic, whose history goes on
// between any two answers.
type world struct {
	t     *rapid.T
	quiet bool // nothing happens

	id            byte
	leader, epoch int32
	batches       []kept // those below high are committed
	start, high   int64
	end           int64

	limit     int64
	told      int64 // the limit as the first broker has it
	cutOff    bool  // it does not hear of changes any more
	ours      bool
	keysGone  bool // placeholders cannot be verified now
	stale     *tiers.LedLog
	deletions int
}

// between happens before an answer. What a client is told of the log's place and
// of its configuration may change too, where the worker looks again later.
func (w *world) between(all bool) {
	if w.quiet {
		return
	}
	for range rapid.IntRange(0, 2).Draw(w.t, "events") {
		w.happen(all)
	}
}

func (w *world) happen(all bool) {
	kinds := []string{"append", "append", "append", "append", "commit", "commit", "clean", "unclean", "aged"}
	if all {
		kinds = append(kinds, "recreate", "limit", "cut off", "class", "keys")
	}
	switch rapid.SampledFrom(kinds).Draw(w.t, "event") {
	case "append":
		for range rapid.IntRange(1, 8).Draw(w.t, "batches") {
			b := kept{base: w.end, records: rapid.Int64Range(1, 5).Draw(w.t, "records"), epoch: w.epoch, bytes: rapid.Int64Range(wire.BatchHeaderSize, 400).Draw(w.t, "bytes")}
			if b.unverified = rapid.IntRange(0, 9).Draw(w.t, "forged") == 0; b.unverified {
				b.bytes = 1 << 20
			}
			w.batches, w.end = append(w.batches, b), b.base+b.records
		}
	case "commit":
		w.high = w.end
	case "clean":
		w.epoch, w.leader = w.epoch+1, 1-w.leader
		w.truncate(w.high)
	case "unclean":
		w.epoch, w.leader = w.epoch+1, 1-w.leader
		w.truncate(rapid.Int64Range(w.start, w.end).Draw(w.t, "left"))
		w.high = min(w.high, w.end)
	case "aged":
		w.start = rapid.Int64Range(w.start, w.high).Draw(w.t, "start")
		w.batches = slices.DeleteFunc(w.batches, func(b kept) bool { return b.base+b.records <= w.start })
	case "recreate":
		w.id, w.epoch, w.batches, w.start, w.high, w.end = w.id+1, 0, nil, 0, 0, 0
	case "limit":
		w.limit = rapid.SampledFrom([]int64{-1, 0, 100, 1000, 10000}).Draw(w.t, "limit")
	case "cut off":
		if w.cutOff = rapid.Bool().Draw(w.t, "is cut off"); w.cutOff {
			w.limit = rapid.SampledFrom([]int64{-1, 100, 10000}).Draw(w.t, "limit that it does not hear of")
		}
	case "class":
		w.ours = rapid.Bool().Draw(w.t, "ours")
	case "keys":
		w.keysGone = rapid.IntRange(0, 3).Draw(w.t, "gone") == 0
	}
}

func (w *world) truncate(to int64) {
	for len(w.batches) > 0 && w.batches[len(w.batches)-1].base+w.batches[len(w.batches)-1].records > to {
		w.batches = w.batches[:len(w.batches)-1]
	}
	w.end = w.start
	if n := len(w.batches); n > 0 {
		w.end = w.batches[n-1].base + w.batches[n-1].records
	}
	w.high = min(w.high, w.end)
	if len(w.batches) == 0 {
		w.start = w.end
	}
}

func (w *world) log() tiers.LedLog {
	return tiers.LedLog{TopicPartition: tiers.TopicPartition{Topic: "t"}, ID: [16]byte{w.id}, Leader: w.leader, Epoch: w.epoch, Start: w.start}
}

func (w *world) SizeLimits(context.Context, []string) (map[string]int64, error) {
	w.between(true)
	if !w.cutOff {
		w.told = w.limit
	}
	return map[string]int64{"t": w.told}, nil
}

func (w *world) LeaderLimit(_ context.Context, l tiers.LedLog) (int64, error) {
	w.between(true)
	if l.Leader != w.leader {
		return w.told, nil
	}
	return w.limit, nil
}

func (w *world) Led(context.Context, []string) ([]tiers.LedLog, error) {
	w.between(true)
	if w.stale != nil && !w.quiet && rapid.IntRange(0, 4).Draw(w.t, "stale") == 0 {
		return []tiers.LedLog{*w.stale}, nil
	}
	l := w.log()
	w.stale = &l
	return []tiers.LedLog{l}, nil
}

func (w *world) is(l tiers.LedLog) error {
	switch {
	case l.ID != [16]byte{w.id}:
		return kerr.UnknownTopicID
	case l.Leader != w.leader:
		return kerr.NotLeaderForPartition
	case l.Epoch != w.epoch:
		return kerr.FencedLeaderEpoch
	}
	return nil
}

func (w *world) FetchLed(_ context.Context, l tiers.LedLog, offset int64, maxBytes int32) (tiers.Stretch, error) {
	w.between(false)
	if err := w.is(l); err != nil {
		return tiers.Stretch{}, err
	}
	if offset < w.start || offset > w.high {
		return tiers.Stretch{}, fmt.Errorf("offset %d: %w", offset, kerr.OffsetOutOfRange)
	}
	var records []byte
	atMost := len(w.batches)
	if maxBytes > 1 && !w.quiet {
		atMost = rapid.IntRange(1, 5).Draw(w.t, "answered")
	}
	for _, b := range w.batches {
		if b.base+b.records <= offset || b.base >= w.high || atMost == 0 {
			continue
		}
		atMost--
		raw := make(wire.Batch, wire.BatchHeaderSize)
		raw.SetMagic(2)
		raw.SetBaseOffset(b.base)
		raw.SetLength(wire.BatchHeaderSize - wire.LogOverhead)
		raw.SetLeaderEpoch(b.epoch)
		raw.SetLastOffsetDelta(int32(b.records - 1))
		raw.SetProducerID(b.bytes)
		if b.unverified {
			raw.SetProducerEpoch(1)
		}
		records = append(records, raw...)
	}
	return tiers.Stretch{Records: records, End: w.high}, nil
}

func (w *world) Continues(_ context.Context, l tiers.LedLog, epoch int32, offset int64) (bool, error) {
	w.between(true)
	if err := w.is(l); err != nil {
		return false, err
	}
	known, end := int32(-1), int64(-1)
	for _, b := range w.batches {
		if b.epoch <= epoch {
			known, end = b.epoch, b.base+b.records
		}
	}
	return known == epoch && end >= offset, nil
}

// DeleteBefore is where the promise is kept or broken.
func (w *world) DeleteBefore(_ context.Context, l tiers.LedLog, offset int64) error {
	if l.Leader != w.leader {
		return kerr.NotLeaderForPartition
	}
	if offset <= w.start {
		return nil // somebody else was faster
	}
	w.deletions++
	if !w.ours || w.limit < 0 {
		w.t.Fatalf("records are deleted of a topic that has no limit or is not ours")
	}
	if offset > w.high {
		w.t.Fatalf("deletion up to %d, the high watermark is %d", offset, w.high)
	}
	if left := w.left(offset); left < w.limit {
		w.t.Fatalf("of at least %d bytes only %d are left behind %d", w.limit, left, offset)
	}
	w.start = max(w.start, offset)
	w.batches = slices.DeleteFunc(w.batches, func(b kept) bool { return b.base+b.records <= w.start })
	return nil
}

// left is how many original bytes are committed from an offset on.
func (w *world) left(offset int64) (sum int64) {
	for _, b := range w.batches {
		if b.base >= offset && b.base < w.high {
			sum += b.size()
		}
	}
	return sum
}

// Resolve is of one batch.
func (w *world) Resolve(_ context.Context, _ tiers.TopicPartition, records []byte, _, _ int) ([]tiers.Piece, int, error) {
	b, _, _ := wire.NextBatch(records)
	switch {
	case w.keysGone:
		return nil, 0, fmt.Errorf("keys: %w", diskless.ErrUnreadable)
	case b.ProducerEpoch() == 1:
		return nil, 0, diskless.ErrUnverified
	}
	return []tiers.Piece{piece(b.ProducerID())}, 0, nil
}

type piece int64

func (p piece) Size() int                            { return int(p) }
func (piece) Records() int                           { return 1 }
func (piece) Placeholder() bool                      { return true }
func (piece) Cached() bool                           { return false }
func (piece) Await(context.Context) error            { return errors.ErrUnsupported }
func (piece) Load(context.Context) ([][]byte, error) { return nil, errors.ErrUnsupported }
func (piece) Lend(context.Context) ([][]byte, func(), error) {
	return nil, nil, errors.ErrUnsupported
}

// Whatever happens to a log, and whenever: what is deleted lies beyond the last
// retention.bytes of it; and when nothing happens any more, no more is kept than
// that and a part of it.
func TestOnlyWhatIsBeyondTheLimitIsDeleted(t *testing.T) {
	deletions := 0
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, limit: 1000, told: 1000, ours: true}
		workers := make([]*Worker, 2) // replicas
		for i := range workers {
			workers[i] = New(Options{
				Kafka: w, Payloads: w,
				Topics: func(context.Context) ([]string, error) { return []string{"t"}, nil },
				Ours:   func(string) bool { return w.ours },
			})
		}
		for range rapid.IntRange(1, 30).Draw(t, "passes") {
			w.happen(true)
			_, _ = rapid.SampledFrom(workers).Draw(t, "worker").Pass(t.Context())
		}
		w.quiet, w.keysGone, w.cutOff, w.ours, w.limit, w.high = true, false, false, true, 1000, w.end
		for range 2 {
			r, err := workers[0].Pass(t.Context())
			if err != nil || r.Doubtful > 0 {
				t.Fatalf("nothing happens any more, and yet: %v %v", err, slices.Collect(maps.Values(r.Doubts)))
			}
		}
		// A batch of which the log holds the end only is not counted; one more crosses the limit.
		if left, most := w.left(w.start), w.limit+w.limit/shares+2*400+10; left > most {
			t.Fatalf("%d bytes are left, of %d; at most %d are to be", left, w.limit, most)
		}
		deletions += w.deletions
	})
	if deletions == 0 {
		t.Fatal("nothing was ever deleted")
	}
	t.Logf("%d deletions", deletions)
}
