package gc

import (
	"fmt"
	"slices"
	"time"

	"github.com/sluice-kafka/sluice/tiers"
)

// Timing is how cautious the rule is.
type Timing struct {
	// Margin is how much older than a checkpoint an object has to be. It has to
	// cover MaxPlaceholderAge, the write to the broker, what TCP carries on after a
	// partition of the network, and what a broker may have queued before it.
	Margin time.Duration
	// Grace is how long something has to be settled before that counts: readers
	// that have begun get on, and followers learn where their leaders' logs begin.
	Grace time.Duration
	// Unheard is the same for a name that no topic has borne as far as we know: with a
	// state that was lost, a cluster that is yet to be restored looks like that.
	Unheard time.Duration
	// Apart is the least time between the two looks that make a checkpoint.
	Apart time.Duration
	// Missed is how long a broker is waited for that is not alive any more.
	Missed time.Duration
}

// maxCheckpoints of one partition. They divide its retention: with 32, the
// average object lives 1/64 of it longer than it has to.
const maxCheckpoints = 32

// maxFormer ids of a name are remembered: one that is older comes back only with
// a backup that is older than as many topics.
const maxFormer = 32

// Settling delays what is settled until it has been for Grace. Times are those of
// Verdict.Settled.
type Settling struct {
	Confirmed time.Time `json:"confirmed"`
	Pending   time.Time `json:"pending"`
	Since     time.Time `json:"since"` // when Pending was first seen
}

// advance notes that all up to settled is settled now; it returns what was so for
// Grace. That a log begins earlier than it did, takes back.
func (s *Settling) advance(settled, now time.Time, grace time.Duration) time.Time {
	if settled.Before(s.Confirmed) {
		s.Confirmed = settled
	}
	switch {
	case s.Since.IsZero() || settled.Before(s.Pending):
		s.Pending, s.Since = settled, now
	case now.Sub(s.Since) >= grace:
		s.Confirmed = s.Pending
		s.Pending, s.Since = settled, now
	}
	return s.Confirmed
}

// meet takes note of who is alive. Brokers that are cut off from the rest may not
// know of those who were down when that happened: they must not be believed that
// there is nobody else.
func (s *State) meet(brokers []int32, now time.Time, missed time.Duration) error {
	for id, seen := range s.Brokers {
		if !slices.Contains(brokers, id) && now.Sub(seen) < missed {
			return fmt.Errorf("broker %d, which was alive at %v, is not: nothing is deleted for %v, in which it may come back with what others don't know of", id, seen.Format(time.DateTime), missed)
		}
	}
	s.Brokers = make(map[int32]time.Time, len(brokers))
	for _, id := range brokers {
		s.Brokers[id] = now
	}
	return nil
}

// Verdict is up to when objects that name a partition are settled. An object of
// time t is dead for it when t + Margin is not after Confirmed, and a candidate
// when it is not after Settled.
type Verdict struct {
	Doubt     string // why nothing is
	Settled   time.Time
	Confirmed time.Time // no later than Settled
	Waits     Reason    // for what, where Settled is not late enough
}

// observe takes note of what all brokers said of a name in a pass that began at
// now. The verdicts are of its partitions, the last one of those beyond.
func (t *Topic) observe(v tiers.TopicView, now time.Time, timing Timing) []Verdict {
	if v.Doubt != "" {
		return t.doubtful(v.Doubt)
	}
	if !now.After(t.Seen) && !t.Seen.IsZero() {
		return t.doubtful("the store's clock went back")
	}
	switch {
	case t.Seen.IsZero():
		// The name is new to us. Its partitions may have been there before.
		t.Partitions = partitions(len(v.Partitions), time.Time{})
	case t.ID != ID(v.ID):
		// At Seen another topic had the name, or none: so this one was made later.
		// No broker had a log of it then, or that broker would have said so.
		born := t.Seen
		if slices.Contains(t.Former, ID(v.ID)) {
			// Ids do not come back. This one did: the cluster was restored, and the topic's
			// logs are older than we thought.
			born = time.Time{}
		}
		t.Partitions, t.Beyond = partitions(len(v.Partitions), born), Settling{}
		if t.ID != (ID{}) {
			t.Former = append(t.Former, t.ID)
			t.Former = t.Former[max(0, len(t.Former)-maxFormer):]
		}
	case len(v.Partitions) < len(t.Partitions):
		return t.doubtful("it has fewer partitions than before")
	default:
		t.Partitions = append(t.Partitions, partitions(len(v.Partitions)-len(t.Partitions), t.Seen)...)
	}
	t.ID, t.Seen = v.ID, now
	verdicts := make([]Verdict, 0, len(t.Partitions)+1)
	for i, p := range t.Partitions {
		verdicts = append(verdicts, p.observe(v.Partitions[i], now, timing))
	}
	// A log that does not exist holds nothing, and what is appended once it does is
	// of younger objects.
	grace := timing.Grace
	if t.ID == (ID{}) && len(t.Former) == 0 {
		grace = max(grace, timing.Unheard)
	}
	return append(verdicts, Verdict{Settled: now, Confirmed: t.Beyond.advance(now, now, grace), Waits: Young})
}

func partitions(n int, born time.Time) []*Partition {
	out := make([]*Partition, n)
	for i := range out {
		out[i] = &Partition{Born: born, Leader: -1, Epoch: -1}
	}
	return out
}

func (t *Topic) doubtful(why string) []Verdict {
	out := make([]Verdict, len(t.Partitions)+1)
	for i := range out {
		out[i].Doubt = why
	}
	return out
}

// Of a partition's verdict in a list of Topic.observe.
func verdictOf(verdicts []Verdict, partition int32) Verdict {
	if partition < 0 || int(partition) >= len(verdicts)-1 {
		return verdicts[len(verdicts)-1]
	}
	return verdicts[partition]
}

// observe takes note of a log.
//
// A checkpoint takes two looks, Apart from each other, that find the same leader
// in the same epoch. It has the time of the first and the end offset of the
// second: between them the leader ran and took in what had reached its sockets
// before the first. A broker that was frozen, with a Produce in a socket, could
// answer one look before it reads that.
//
// All brokers said after the first look's time which epoch is the newest, and no
// log of a newer one existed then. So whatever is at End or beyond in a log with
// this epoch in its history was appended after Time.
func (p *Partition) observe(l tiers.LogView, now time.Time, timing Timing) Verdict {
	if l.Doubt != "" {
		return Verdict{Doubt: l.Doubt}
	}
	if l.Epoch < p.Epoch {
		// Epochs never go back while the cluster remembers: it was restored.
		*p = Partition{Leader: l.Leader, Epoch: l.Epoch, Seen: now}
		return Verdict{Doubt: "its leader epoch went back: was the cluster restored?"}
	}
	switch {
	case p.Leader != l.Leader || p.Epoch != l.Epoch || p.Seen.IsZero():
		p.Leader, p.Epoch, p.Seen = l.Leader, l.Epoch, now
	case now.Sub(p.Seen) >= timing.Apart:
		p.add(Checkpoint{p.Seen, l.Epoch, l.End}, l.Start)
		p.Seen = now
	}
	if !l.InSync {
		// The one that is not may have an older start, or a tail of its own, and
		// become the leader by an unclean election.
		return Verdict{Doubt: "a replica is not in sync"}
	}
	settled, waits := p.settled(l.Start)
	return Verdict{Settled: settled, Confirmed: p.Settling.advance(settled, now, timing.Grace), Waits: waits}
}

// settled is the newest time of which a checkpoint is at or before the log's
// start.
func (p *Partition) settled(start int64) (time.Time, Reason) {
	settled := p.Born
	if c := p.best(start); c != nil && c.Time.After(settled) {
		settled = c.Time
	}
	if len(p.Checkpoints) == 0 {
		return settled, Unseen
	}
	return settled, Retained
}

// best is the newest checkpoint that a log beginning at start has reached.
func (p *Partition) best(start int64) *Checkpoint {
	for i := len(p.Checkpoints) - 1; i >= 0; i-- {
		if p.Checkpoints[i].End <= start {
			return &p.Checkpoints[i]
		}
	}
	return nil
}

// add keeps checkpoints few: of two, one that is not younger and not nearer says
// nothing, nor does any but the newest that the log's start has reached.
func (p *Partition) add(c Checkpoint, start int64) {
	p.Checkpoints = slices.DeleteFunc(p.Checkpoints, func(o Checkpoint) bool { return o.End >= c.End })
	p.Checkpoints = append(p.Checkpoints, c)
	reached := 0
	for i, o := range p.Checkpoints {
		if o.End <= start {
			reached = i
		}
	}
	p.Checkpoints = slices.Delete(p.Checkpoints, 0, reached)
	for len(p.Checkpoints) > maxCheckpoints {
		// The one whose neighbours are closest to each other in time; never the ends.
		drop, gap := 1, time.Duration(1<<63-1)
		for i := 1; i < len(p.Checkpoints)-1; i++ {
			if g := p.Checkpoints[i+1].Time.Sub(p.Checkpoints[i-1].Time); g < gap {
				drop, gap = i, g
			}
		}
		p.Checkpoints = slices.Delete(p.Checkpoints, drop, drop+1)
	}
}

// question is what has to be asked of the leader before the log's start is held
// against the checkpoints: whether the history of its log has the checkpoint's
// epoch. A leader by an unclean election may have a tail of its own in its place,
// which was there before the checkpoint. ok is false when there is nothing to ask.
func (p *Partition) question(at tiers.TopicPartition, l tiers.LogView) (q tiers.EpochQuestion, ok bool) {
	if l.Doubt != "" {
		return q, false
	}
	c := p.best(l.Start)
	if c == nil || c.Epoch == l.Epoch {
		return q, false
	}
	return tiers.EpochQuestion{TopicPartition: at, Leader: l.Leader, Current: l.Epoch, Epoch: c.Epoch}, true
}

// disown forgets the checkpoint that a question was about: another history has
// come back, and it says nothing about that.
func (p *Partition) disown(epoch int32) {
	p.Checkpoints = slices.DeleteFunc(p.Checkpoints, func(c Checkpoint) bool { return c.Epoch == epoch })
}
