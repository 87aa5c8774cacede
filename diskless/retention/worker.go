package retention

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// Kafka is the cluster, seen with sluice's own login.
type Kafka interface {
	// SizeLimits returns the retention.bytes in force; negative where Kafka is not
	// to cut logs by size. Missing is what cannot be asked about.
	SizeLimits(ctx context.Context, topics []string) (map[string]int64, error)
	// LeaderLimit is that which the leader goes by: brokers have defaults of their
	// own, and one that is cut off from the controllers knows no change.
	LeaderLimit(ctx context.Context, l tiers.LedLog) (int64, error)
	// Led returns the topics' logs. Missing is what cannot be asked about.
	Led(ctx context.Context, topics []string) ([]tiers.LedLog, error)
	// FetchLed is an error when the log has another leader, epoch or topic id.
	FetchLed(ctx context.Context, l tiers.LedLog, offset int64, maxBytes int32) (tiers.Stretch, error)
	// Continues reports whether the log has the same batches below an offset as one
	// whose last batch there was of an epoch.
	Continues(ctx context.Context, l tiers.LedLog, epoch int32, offset int64) (bool, error)
	DeleteBefore(ctx context.Context, l tiers.LedLog, offset int64) error
}

// Payloads verifies placeholders; see diskless.Tier.
type Payloads interface {
	Resolve(ctx context.Context, tp tiers.TopicPartition, records []byte, most, readahead int) ([]tiers.Piece, int, error)
}

// Options are everything a Worker is made of.
type Options struct {
	Kafka    Kafka
	Payloads Payloads
	Topics   func(ctx context.Context) ([]string, error) // that may exist and be ours
	Ours     func(topic string) bool                     // by the rules, now: diskless, and not audit
	Pace     func(ctx context.Context, n int) error      // after n bytes were read; nil: none
	DryRun   bool                                        // delete nothing
	Explain  func(Cut)                                   // called for each cut; nil: not
	Metrics  *Metrics                                    // nil: none
}

// Cut is what is removed from the beginning of a log. The JSON names are stable.
type Cut struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	From      int64  `json:"from"`  // log start offset
	To        int64  `json:"to"`    // the one to be
	Bytes     int64  `json:"bytes"` // original bytes between them, those at least that are known of
	Kept      int64  `json:"kept"`  // original bytes from To on
	Limit     int64  `json:"limit"` // retention.bytes
}

// Report is what a pass found and did. The JSON names are stable.
type Report struct {
	Topics     int               `json:"topics"`     // with a limit
	Partitions int               `json:"partitions"` // of these, that could be read
	Read       int64             `json:"read_bytes"` // of logs
	Cuts       []Cut             `json:"cuts"`
	Doubts     map[string]string `json:"doubts"` // by topic, or topic-partition: why nothing is deleted there; some of them
	Doubtful   int               `json:"doubtful"`
	Took       time.Duration     `json:"took_ns"`
}

// DoubtList is the doubts, sorted.
func (r *Report) DoubtList() []string {
	var out []string
	for _, what := range slices.Sorted(maps.Keys(r.Doubts)) {
		out = append(out, what+": "+strings.TrimSpace(r.Doubts[what]))
	}
	return out
}

// Worker keeps ledgers. It is used by one goroutine.
type Worker struct {
	opt     Options
	ledgers map[tiers.TopicPartition]*ledger
}

// New returns a Worker that knows nothing yet.
func New(opt Options) *Worker {
	return &Worker{opt: opt, ledgers: make(map[tiers.TopicPartition]*ledger)}
}

const (
	// fetchBytes of one Fetch; a batch that is larger comes whole.
	fetchBytes = 1 << 20
	// maxDoubts bounds the list in a report.
	maxDoubts = 100
	// turn is how many Fetches a log has before the next one's turn: a log that is
	// long, or grows fast, is not to keep the others from being cut.
	turn = 64
)

// Pass reads on in all logs and deletes what is beyond the limits. An error means
// that the cluster could not be asked.
func (w *Worker) Pass(ctx context.Context) (*Report, error) {
	r := &Report{Doubts: make(map[string]string)}
	began := time.Now()
	err := w.pass(ctx, r)
	r.Took = time.Since(began)
	if ctx.Err() == nil {
		w.opt.Metrics.note(r, err)
	}
	return r, err
}

func (w *Worker) pass(ctx context.Context, r *Report) error {
	all, err := w.opt.Topics(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(t string) bool { return !w.opt.Ours(t) })
	limits, err := w.opt.Kafka.SizeLimits(ctx, all)
	if err != nil && len(limits) == 0 {
		return err
	}
	var limited []string
	for _, t := range all {
		switch limit, known := limits[t]; {
		case !known:
			r.doubt(t, fmt.Errorf("retention.bytes is not known: %w", why(err)))
		case limit >= 0:
			limited = append(limited, t)
		}
	}
	r.Topics = len(limited)
	var logs []tiers.LedLog
	if len(limited) > 0 {
		logs, err = w.opt.Kafka.Led(ctx, limited)
		if err != nil && len(logs) == 0 {
			return err
		}
		if err != nil {
			r.doubt("some logs", err)
		}
	}
	// What is no longer ours begins anew if it ever is again. What only cannot be
	// asked about now is read on later.
	ours := make(map[string]bool, len(all))
	for _, t := range all {
		limit, known := limits[t]
		ours[t] = limit >= 0 || !known
	}
	maps.DeleteFunc(w.ledgers, func(at tiers.TopicPartition, _ *ledger) bool { return !ours[at.Topic] })
	left := make([]task, 0, len(logs))
	for _, l := range logs {
		left = append(left, task{l, limits[l.Topic], -1})
	}
	silent := make(map[int32]error) // leaders that did not answer
	for len(left) > 0 {
		var again []task
		for _, t := range left {
			more, err := false, silent[t.log.Leader]
			if err == nil {
				more, err = w.log(ctx, r, &t)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			switch {
			case err != nil:
				if errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, diskless.ErrUnreadable) {
					silent[t.log.Leader] = err
				}
				r.doubt(fmt.Sprintf("%s-%d", t.log.Topic, t.log.Partition), err)
			case more:
				again = append(again, t)
			default:
				r.Partitions++
			}
		}
		left = again
	}
	return nil
}

// task is what a pass has to do about a log.
type task struct {
	log   tiers.LedLog
	limit int64
	end   int64 // up to where to read: the high watermark when it began; -1: not begun
}

var errNotTold = errors.New("no broker tells")

// why is what an answer lacks something for.
func why(err error) error {
	if err == nil {
		return errNotTold
	}
	return err
}

func (r *Report) doubt(what string, err error) {
	r.Doubtful++
	if len(r.Doubts) < maxDoubts {
		r.Doubts[what] = err.Error()
	}
}

// log reads on in one log, for a turn, and cuts it when it has read all.
func (w *Worker) log(ctx context.Context, r *Report, t *task) (more bool, err error) {
	l := t.log
	g, err := w.ledger(ctx, l, t.limit)
	if err != nil {
		return false, err
	}
	for range turn {
		// Also when there is nothing new: in this epoch it is still the leader.
		s, err := w.opt.Kafka.FetchLed(ctx, l, g.next, fetchBytes)
		if errors.Is(err, kerr.OffsetOutOfRange) {
			delete(w.ledgers, l.TopicPartition)
		}
		if err != nil {
			return false, err
		}
		if t.end < 0 {
			t.end = s.End
		}
		r.Read += int64(len(s.Records))
		w.opt.Metrics.noteRead(len(s.Records))
		grown, err := g.count(s.Records, func(b wire.Batch) (int64, error) { return w.size(ctx, l.TopicPartition, b) })
		if err != nil {
			return false, err
		}
		if w.opt.Pace != nil {
			if err := w.opt.Pace(ctx, len(s.Records)); err != nil {
				return false, err
			}
		}
		if !grown || g.next >= t.end {
			return false, w.cut(ctx, r, g, t.limit)
		}
	}
	return true, nil
}

// cut deletes what is beyond the limit, if all is as it was.
func (w *Worker) cut(ctx context.Context, r *Report, g *ledger, limit int64) error {
	l := g.log
	m, ok := g.cut()
	if !ok {
		return nil
	}
	// To read may have taken long.
	now, err := w.opt.Kafka.SizeLimits(ctx, []string{l.Topic})
	if at, known := now[l.Topic]; !known || at != limit {
		return fmt.Errorf("retention.bytes is not what it was: %w", why(err))
	}
	switch at, err := w.opt.Kafka.LeaderLimit(ctx, l); {
	case err != nil:
		return err
	case at != limit:
		return fmt.Errorf("brokers disagree about retention.bytes: for its leader, broker %d, it is %d, for another one %d; -1 stands for none, and for what is not cut", l.Leader, at, limit)
	}
	s, err := w.opt.Kafka.FetchLed(ctx, l, g.next, 1)
	if err != nil {
		return err
	}
	switch {
	case s.End < g.next:
		return errOdd
	case !w.opt.Ours(l.Topic):
		return nil
	}
	c := Cut{Topic: l.Topic, Partition: l.Partition, From: l.Start, To: m.offset, Bytes: m.before, Kept: g.total - m.before, Limit: limit}
	if !w.opt.DryRun {
		if err := w.opt.Kafka.DeleteBefore(ctx, l, m.offset); err != nil {
			return err
		}
		g.begin(m)
	}
	r.Cuts = append(r.Cuts, c)
	w.opt.Metrics.noteCut(c)
	if w.opt.Explain != nil {
		w.opt.Explain(c)
	}
	return nil
}

// ledger is that of a log: the one that was, if it is of the same history.
func (w *Worker) ledger(ctx context.Context, l tiers.LedLog, limit int64) (*ledger, error) {
	g := w.ledgers[l.TopicPartition]
	// One that was kept for a lower limit has forgotten too much.
	same := g != nil && limit <= g.limit && g.log.ID == l.ID && l.Start <= g.next && l.Epoch >= g.log.Epoch
	if same && (g.log.Leader != l.Leader || g.log.Epoch != l.Epoch) {
		var err error
		if same, err = w.opt.Kafka.Continues(ctx, l, g.epoch, g.next); err != nil {
			return nil, err
		}
	}
	if !same {
		g = newLedger(l)
		w.ledgers[l.TopicPartition] = g
	}
	g.beginsAt(l.Start)
	g.log, g.limit = l, limit
	return g, nil
}

// size is how many bytes a batch has for consumers.
func (w *Worker) size(ctx context.Context, at tiers.TopicPartition, b wire.Batch) (int64, error) {
	pieces, _, err := w.opt.Payloads.Resolve(ctx, at, b, math.MaxInt, -1)
	if errors.Is(err, diskless.ErrUnverified) {
		return int64(b.Size()), nil
	}
	if err != nil {
		return 0, err
	}
	if len(pieces) != 1 {
		return 0, errOdd
	}
	return int64(pieces[0].Size()), nil
}
