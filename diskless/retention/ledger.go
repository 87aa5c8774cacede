package retention

import (
	"errors"

	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// shares is into how many parts the limit is divided: so much of it, at most, is
// kept longer than it has to be.
const shares = 64

// mark is an offset at which a batch begins.
type mark struct {
	offset int64
	before int64 // original bytes of the ledger before it
}

// ledger is what is known of one log. It has counted all batches from marks[0] on
// up to next, and no other.
type ledger struct {
	log   tiers.LedLog
	limit int64 // for which it is kept
	next  int64 // what it has not read yet begins here
	epoch int32 // of the last batch that was read; -1: none was
	total int64 // original bytes
	marks []mark
}

func newLedger(l tiers.LedLog) *ledger {
	return &ledger{log: l, next: l.Start, epoch: -1}
}

var (
	errOldFormat = errors.New("it has batches of the format of before Kafka 0.11")
	errOdd       = errors.New("its leader answers with something else than was asked for")
)

// count takes in what a leader answered about next. It reports whether anything
// new was there. size is how many bytes a batch has for consumers.
func (g *ledger) count(records []byte, size func(wire.Batch) (int64, error)) (bool, error) {
	before := g.next
	for {
		b, rest, ok := wire.NextBatch(records)
		if !ok {
			return g.next > before, nil
		}
		records = rest
		if !b.IsV2() {
			return false, errOldFormat
		}
		base := b.BaseOffset()
		behind := base + int64(b.LastOffsetDelta()) + 1
		if behind <= base {
			return false, errOdd
		}
		if base < g.next {
			// The log begins inside of it: what of it is left, nobody can say.
			g.next = max(g.next, behind)
			continue
		}
		n, err := size(b)
		if err != nil {
			return false, err
		}
		if last := len(g.marks) - 1; last < 0 || g.total-g.marks[last].before >= g.limit/shares {
			g.marks = append(g.marks, mark{base, g.total})
		}
		g.total += n
		g.next, g.epoch = behind, b.LeaderEpoch()
		g.trim()
	}
}

// cut is where the log may begin: the last mark behind which there is the limit,
// all of it. false: nowhere but where it does.
func (g *ledger) cut() (mark, bool) {
	i := g.last()
	if g.limit < 0 || i < 0 || g.marks[i].offset <= g.log.Start {
		return mark{}, false
	}
	return g.marks[i], true
}

// last is the index of that mark; -1 when there is none.
func (g *ledger) last() int {
	for i := len(g.marks) - 1; i >= 0; i-- {
		if g.total-g.marks[i].before >= g.limit {
			return i
		}
	}
	return -1
}

// trim forgets marks that are before the cut.
func (g *ledger) trim() {
	if i := g.last(); i > 0 {
		g.marks = append(g.marks[:0], g.marks[i:]...)
	}
}

// begin notes that the log begins at a mark.
func (g *ledger) begin(m mark) {
	kept := g.marks[:0]
	for _, o := range g.marks {
		if o.offset >= m.offset {
			kept = append(kept, mark{o.offset, o.before - m.before})
		}
	}
	g.marks, g.total, g.log.Start = kept, g.total-m.before, m.offset
}

// beginsAt notes that somebody else has removed what is before an offset: Kafka
// itself, for its age. How much that was is only known from the next mark on.
func (g *ledger) beginsAt(start int64) {
	if start <= g.log.Start {
		return
	}
	for _, m := range g.marks {
		if m.offset >= start {
			g.begin(m)
			return
		}
	}
	g.marks, g.total = nil, 0
}
