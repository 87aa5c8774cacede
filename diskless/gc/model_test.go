package gc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/tiers"
)

// The model is a cluster whose replicas are in full view: logs with epochs,
// leaders that are cut off and do not know that they are none any more, unclean
// elections, topics that are deleted and made anew. It knows what every log
// holds. Collectors know what brokers tell.

const (
	brokers   = 3
	maxDelay  = 90 * time.Minute // from an object to its placeholder's append
	modelStep = 5 * time.Minute
)

var modelTiming = Timing{Margin: 2 * time.Hour, Grace: 10 * time.Minute, Apart: time.Minute, Missed: 24 * time.Hour}

type modelRecord struct {
	epoch  int32
	object int
}

type modelReplica struct {
	records []modelRecord // by offset - base
	base    int64
	start   int64
	terms   []modelTerm
}

type modelTerm struct {
	epoch int32
	start int64
}

func (r *modelReplica) end() int64 { return r.base + int64(len(r.records)) }

func (r *modelReplica) append(epoch int32, object int) {
	r.lead(epoch)
	r.records = append(r.records, modelRecord{epoch, object})
}

// lead notes an epoch at its first record, or when a leader begins.
func (r *modelReplica) lead(epoch int32) {
	if n := len(r.terms); n == 0 || r.terms[n-1].epoch < epoch {
		r.terms = append(r.terms, modelTerm{epoch, r.end()})
	}
}

// moveStart is LeaderEpochFileCache.truncateFromStart too.
func (r *modelReplica) moveStart(start int64) {
	if start = min(start, r.end()); start <= r.start {
		return
	}
	r.start = start
	for len(r.terms) > 1 && r.terms[1].start <= start {
		r.terms = r.terms[1:]
	}
	if len(r.terms) > 0 && r.terms[0].start < start {
		r.terms[0].start = start
	}
}

func (r *modelReplica) endOf(epoch int32) (int32, int64) {
	n := len(r.terms)
	if n == 0 || epoch > r.terms[n-1].epoch {
		return -1, -1
	}
	if r.terms[n-1].epoch == epoch {
		return epoch, r.end()
	}
	i, exact := slices.BinarySearchFunc(r.terms, epoch, func(t modelTerm, e int32) int { return int(t.epoch - e) })
	switch {
	case exact:
		return epoch, r.terms[i+1].start
	case i == 0:
		return epoch, r.terms[0].start
	}
	return r.terms[i-1].epoch, r.terms[i].start
}

// follow makes r what its leader is, at least up to some offset.
func (r *modelReplica) follow(l *modelReplica, upTo int64) {
	same := max(r.base, l.base)
	for same < min(r.end(), l.end()) && r.records[same-r.base] == l.records[same-l.base] {
		same++
	}
	if same < r.end() && same >= r.base {
		r.records = r.records[:same-r.base]
		for len(r.terms) > 0 && r.terms[len(r.terms)-1].start >= same {
			r.terms = r.terms[:len(r.terms)-1]
		}
	}
	for o := r.end(); o < min(l.end(), upTo); o++ {
		rec := l.records[o-l.base]
		r.append(rec.epoch, rec.object)
	}
	r.moveStart(l.start)
}

// belief is what a broker has heard from the controller.
type belief struct {
	id     byte // of the topic; 0: none
	leader int
	epoch  int32
	isr    [brokers]bool
	alive  [brokers]bool
}

type pendingProduce struct {
	object, broker int
	by             time.Time
}

type modelObject struct {
	time    time.Time
	deleted bool
}

type model struct {
	now      time.Time
	dead     [brokers]bool
	cut      [brokers]bool // from the controller and other brokers, not from us
	truth    belief
	ids      byte
	replicas [brokers]*modelReplica // of the topic that exists
	zombies  map[byte][brokers]*modelReplica
	believes [brokers]belief
	objects  []modelObject
	sockets  []pendingProduce
	first    int  // whom a survey asks first
	lag      int  // minutes since followers fetched
	quorum   bool // brokers tell whether they are cut off from the controller
}

const modelTopic = "t"

func newModel() *model {
	m := &model{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), zombies: make(map[byte][brokers]*modelReplica)}
	m.truth.leader = -1
	m.create()
	return m
}

func (m *model) reachable(b int) bool { return !m.dead[b] && !m.cut[b] }

func (m *model) create() {
	m.ids++
	m.truth = belief{id: m.ids, leader: -1, isr: [brokers]bool{true, true, true}}
	for b := range brokers {
		m.replicas[b] = &modelReplica{}
	}
	m.zombies[m.ids] = m.replicas
	m.elect(false)
}

func (m *model) delete() {
	m.truth = belief{leader: -1}
	m.spread()
}

// elect sees to a leader that the controller can reach.
func (m *model) elect(unclean bool) {
	t := &m.truth
	if t.id != 0 {
		for b := range brokers {
			members := 0
			for _, in := range t.isr {
				if in {
					members++
				}
			}
			if t.isr[b] && !m.reachable(b) && members > 1 {
				t.isr[b] = false
			}
		}
		if t.leader < 0 || !m.reachable(t.leader) {
			t.leader = -1
			for b := range brokers {
				if m.reachable(b) && (t.isr[b] || unclean) {
					t.leader, t.isr = b, [brokers]bool{}
					break
				}
			}
			if t.leader >= 0 {
				t.epoch++
				t.isr[t.leader] = true
				for b := range brokers {
					if m.believes[b].id == t.id && m.believes[b].isr[b] && m.reachable(b) && !unclean {
						t.isr[b] = true
					}
				}
				m.replicas[t.leader].lead(t.epoch)
			}
		}
	}
	m.spread()
}

// spread tells who can hear of it.
func (m *model) spread() {
	for b := range brokers {
		m.truth.alive[b] = m.reachable(b)
	}
	for b := range brokers {
		if m.reachable(b) {
			m.believes[b] = m.truth
		}
	}
}

// replicate lets every follower that can fetch catch up and come into the ISR.
func (m *model) replicate() {
	t := &m.truth
	m.lag = 0
	if t.id == 0 || t.leader < 0 || !m.reachable(t.leader) {
		return
	}
	for b := range brokers {
		if b != t.leader && m.reachable(b) {
			m.replicas[b].follow(m.replicas[t.leader], 1<<62)
			t.isr[b] = true
		}
	}
	m.spread()
}

// deliver lets a broker read a Produce from a socket.
func (m *model) deliver(i int) {
	s := m.sockets[i]
	m.sockets = slices.Delete(m.sockets, i, i+1)
	view := m.believes[s.broker]
	if m.dead[s.broker] || view.id == 0 || view.leader != s.broker {
		return
	}
	logs := m.zombies[view.id]
	logs[s.broker].append(view.epoch, s.object)
}

func (m *model) step() {
	m.now = m.now.Add(modelStep)
	m.elect(false)
	m.replicate()
	m.sockets = slices.DeleteFunc(m.sockets, func(s pendingProduce) bool { return s.by.Before(m.now) })
}

// violation says whether the log that consumers read names what is no more.
func (m *model) violation() error {
	if m.truth.id == 0 || m.truth.leader < 0 {
		return nil
	}
	l := m.replicas[m.truth.leader]
	for o := l.start; o < l.end(); o++ {
		if n := l.records[o-l.base].object; m.objects[n].deleted {
			return fmt.Errorf("offset %d, epoch %d of topic %d at broker %d names object %d of %v, which was deleted",
				o, l.records[o-l.base].epoch, m.truth.id, m.truth.leader, n, m.objects[n].time.Format("02 15:04"))
		}
	}
	return nil
}

func (m *model) ClusterID() string { return "model" }

// Survey is lowlatency.Cluster.Survey, of this cluster.
func (m *model) Survey(context.Context, []string) (tiers.Survey, error) {
	asked := make(map[int]bool)
	ask := []int{m.first}
	for len(ask) > 0 {
		b := ask[0]
		ask = ask[1:]
		if asked[b] {
			continue
		}
		if m.dead[b] {
			return tiers.Survey{}, errors.New("a broker is down")
		}
		if m.quorum && m.cut[b] {
			return tiers.Survey{}, errors.New("a broker is cut off")
		}
		asked[b] = true
		for o, alive := range m.believes[b].alive {
			if alive {
				ask = append(ask, o)
			}
		}
	}
	first := m.believes[m.first]
	view := tiers.TopicView{}
	if first.id != 0 {
		view.ID = [16]byte{first.id}
		view.Partitions = []tiers.LogView{{Leader: int32(first.leader), Epoch: first.epoch, InSync: first.isr == [brokers]bool{true, true, true}}}
	}
	for b := range asked {
		o := m.believes[b]
		if o.id != first.id {
			view = tiers.TopicView{Doubt: "disagree"}
			break
		}
		for i := range view.Partitions {
			view.Partitions[i].InSync = view.Partitions[i].InSync && o.isr == [brokers]bool{true, true, true}
		}
		if o.leader != first.leader || o.epoch != first.epoch || o.leader < 0 {
			for i := range view.Partitions {
				view.Partitions[i].Doubt = "disagree"
			}
		}
	}
	for i := range view.Partitions {
		l := &view.Partitions[i]
		if l.Doubt == "" {
			log := m.zombies[first.id][l.Leader]
			epoch, end := log.endOf(l.Epoch)
			if epoch != l.Epoch {
				l.Doubt = "odd"
			}
			l.Start, l.End = log.start, end
		}
	}
	told := tiers.Survey{Topics: map[string]tiers.TopicView{modelTopic: view}}
	for b := range asked {
		told.Brokers = append(told.Brokers, int32(b))
	}
	return told, nil
}

func (m *model) Lineage(_ context.Context, questions []tiers.EpochQuestion) (map[tiers.TopicPartition]bool, error) {
	out := make(map[tiers.TopicPartition]bool)
	for _, q := range questions {
		epoch, _ := m.zombies[m.believes[m.first].id][q.Leader].endOf(q.Epoch)
		out[q.TopicPartition] = epoch == q.Epoch
	}
	return out, nil
}

// collect is a pass without a store.
func (m *model) collect(c *Collector, s *State) {
	p := &pass{Collector: c, state: s, now: m.now, named: make(map[string]struct{})}
	p.Report = Report{Found: make(map[Reason]Count), Doubts: make(map[string]string)}
	if err := p.survey(context.Background()); err != nil {
		return
	}
	for i := range m.objects {
		o := Object{Time: m.objects[i].time}
		if p.tooYoung(&o) {
			continue
		}
		p.decide(&o, map[place]struct{}{{modelTopic, 0}: {}})
		if o.Reason == Dead {
			m.objects[i].deleted = true
		}
	}
}

func newModelCollector(m *model) (*Collector, *State) {
	timing := modelTiming
	if m.quorum {
		timing.Missed = 0
	}
	c := New(Options{Kafka: m, Timing: timing, MinAge: time.Minute, AcceptGone: true})
	return c, &State{Topics: map[string]*Topic{modelTopic: {Named: true}}}
}

// TestNothingReferencedIsEverCondemned also ends each history with peace, after
// which everything that nobody names is to be gone.
func TestNothingReferencedIsEverCondemned(t *testing.T) {
	deleted, live := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		m := newModel()
		m.quorum = rapid.Bool().Draw(t, "quorum")
		c, state := newModelCollector(m)
		broker := rapid.IntRange(0, brokers-1)
		for i := range rapid.IntRange(20, 200).Draw(t, "length") {
			switch op := rapid.IntRange(0, 22).Draw(t, "op"); op {
			case 0, 1, 2, 3:
				m.objects = append(m.objects, modelObject{time: m.now})
				if l := m.truth.leader; l >= 0 && !m.dead[l] && rapid.Bool().Draw(t, "at once") {
					m.replicas[l].append(m.truth.epoch, len(m.objects)-1)
				}
				for range rapid.IntRange(1, 2).Draw(t, "copies") {
					m.sockets = append(m.sockets, pendingProduce{len(m.objects) - 1, broker.Draw(t, "to"), m.now.Add(maxDelay)})
				}
			case 4, 5, 6:
				if len(m.sockets) > 0 {
					m.deliver(rapid.IntRange(0, len(m.sockets)-1).Draw(t, "socket"))
				}
			case 7, 8, 9:
				m.first = broker.Draw(t, "first")
				collects := rapid.Bool().Draw(t, "collects")
				for range rapid.IntRange(1, 20).Draw(t, "steps") {
					m.step()
					if collects && !m.dead[m.first] {
						m.collect(c, state)
					}
				}
			case 10, 11, 12:
				m.first = broker.Draw(t, "first")
				if !m.dead[m.first] {
					m.collect(c, state)
				}
			case 13, 14:
				if l := m.truth.leader; m.truth.id != 0 && l >= 0 && m.reachable(l) {
					log := m.replicas[l]
					log.moveStart(log.start + int64(rapid.IntRange(1, 4).Draw(t, "removed")))
				}
			case 15:
				b := broker.Draw(t, "broker")
				m.dead[b] = !m.dead[b]
				m.elect(false)
			case 16:
				b := broker.Draw(t, "broker")
				if m.cut[b] = !m.cut[b]; rapid.Bool().Draw(t, "noticed") {
					m.elect(false)
				}
			case 17:
				m.elect(true)
			case 18:
				if m.truth.id == 0 {
					m.create()
				} else if rapid.IntRange(0, 2).Draw(t, "delete") == 0 {
					m.delete()
				}
			case 19:
				m.replicate()
			case 20:
				// Followers fetch again before the time is over that they may lag.
				if m.lag++; m.lag > 5 {
					m.replicate()
				}
				m.now = m.now.Add(time.Minute)
			case 21:
				// All but one are gone at once, and that one is taken.
				b := broker.Draw(t, "last")
				if rapid.IntRange(0, 2).Draw(t, "really") > 0 {
					break
				}
				if !m.dead[b] && !m.cut[b] || rapid.Bool().Draw(t, "back") {
					m.dead, m.cut = [brokers]bool{true, true, true}, [brokers]bool{}
					m.dead[b] = false
					m.elect(true)
				}
			case 22:
				m.dead, m.cut = [brokers]bool{}, [brokers]bool{}
				m.step()
			}
			if err := m.violation(); err != nil {
				t.Fatalf("after %d steps: %v", i+1, err)
			}
		}
		m.dead, m.cut = [brokers]bool{}, [brokers]bool{}
		for range 100 {
			m.step()
			if m.truth.leader >= 0 {
				m.replicas[m.truth.leader].moveStart(1 << 62)
			}
			m.collect(c, state)
		}
		for i, o := range m.objects {
			if !o.deleted {
				t.Fatalf("object %d of %v is named by no log, and kept for ever", i, o.time)
			}
			deleted++
		}
		live += len(state.Topics)
	})
	if deleted == 0 || live == 0 {
		t.Fatal("the model did nothing")
	}
}

// pass is a pass of one who reaches broker first.
func (m *model) pass(c *Collector, s *State, first int) {
	m.first = first
	m.collect(c, s)
}

func (m *model) produce(t *testing.T) int {
	t.Helper()
	m.objects = append(m.objects, modelObject{time: m.now})
	m.replicas[m.truth.leader].append(m.truth.epoch, len(m.objects)-1)
	return len(m.objects) - 1
}

// TestTailOfACutOffLeader: a leader that did not know that it was none any more
// took in records at offsets where another history has gone on, and then its
// history is chosen by an unclean election. What a checkpoint said of the other
// one is not true of this one.
func TestTailOfACutOffLeader(t *testing.T) {
	for _, quorum := range []bool{false, true} {
		m := newModel()
		m.quorum = quorum
		c, state := newModelCollector(m)
		for range 3 {
			m.produce(t)
		}
		m.replicate()
		old := m.truth.leader
		m.cut[old] = true
		m.elect(false)
		tail := m.now
		for range 4 {
			m.objects = append(m.objects, modelObject{time: tail})
			m.zombies[m.truth.id][old].append(1, len(m.objects)-1)
		}
		other := m.truth.leader
		m.produce(t) // in the history that goes on
		for range 60 {
			m.step()
			m.pass(c, state, other)
		}
		if len(state.Topics[modelTopic].Partitions[0].Checkpoints) == 0 {
			t.Fatal("no checkpoint was taken")
		}
		m.dead, m.cut = [brokers]bool{true, true, true}, [brokers]bool{}
		m.dead[old] = false
		m.elect(true)
		m.dead = [brokers]bool{}
		m.step()
		m.replicas[m.truth.leader].moveStart(4) // where the checkpoint was
		for range 10 {
			m.step()
			m.pass(c, state, old)
			if err := m.violation(); err != nil {
				t.Fatal(err)
			}
		}
		// The tail is settled by checkpoints of its own.
		m.replicas[m.truth.leader].moveStart(1 << 62)
		for range 60 {
			m.step()
			m.pass(c, state, old)
		}
		if !m.objects[3].deleted {
			t.Fatal("the tail is kept for ever")
		}
	}
}

// TestFrozenLeader: a broker was stopped, with a Produce in its socket, for longer
// than the margin, and answers a survey before it reads it.
func TestFrozenLeader(t *testing.T) {
	m := newModel()
	c, state := newModelCollector(m)
	m.step()
	m.pass(c, state, 0)
	m.objects = append(m.objects, modelObject{time: m.now})
	for range 40 { // it does not answer, so there is no pass
		m.step()
	}
	m.pass(c, state, 0) // it answers, and only then reads
	leader := m.truth.leader
	m.replicas[leader].append(m.truth.epoch, 0)
	m.replicate()
	for i := range 10 {
		m.step()
		if i == 5 {
			m.replicas[leader].moveStart(1)
		}
		m.pass(c, state, 0)
		if err := m.violation(); err != nil {
			t.Fatal(err)
		}
	}
	if !m.objects[0].deleted {
		t.Fatal("kept for ever")
	}
}

// TestFollowerThatHasNotHeard: the one that comes next may not have fetched since
// its leader's log was shortened. By when the grace is over, it has.
func TestFollowerThatHasNotHeard(t *testing.T) {
	m := newModel()
	c, state := newModelCollector(m)
	m.produce(t)
	m.replicate()
	for range 40 {
		m.step()
		m.pass(c, state, 0)
	}
	leader := m.truth.leader
	m.replicas[leader].moveStart(1)
	for range 5 {
		m.now = m.now.Add(time.Minute)
		m.pass(c, state, 0)
	}
	m.dead[leader] = true
	m.elect(false)
	if m.truth.leader == leader || m.replicas[m.truth.leader].start != 0 {
		t.Fatal("the follower has heard")
	}
	if err := m.violation(); err != nil {
		t.Fatal(err)
	}
	m.dead[leader] = false
	m.replicas[m.truth.leader].moveStart(1)
	for range 10 {
		m.step()
		m.pass(c, state, 0)
	}
	if !m.objects[0].deleted {
		t.Fatal("kept for ever")
	}
}

// TestPlaceholderThatIsLate: it comes at the end of what the margin allows for,
// into a log whose start follows its end.
func TestPlaceholderThatIsLate(t *testing.T) {
	m := newModel()
	c, state := newModelCollector(m)
	m.objects = append(m.objects, modelObject{time: m.now})
	for m.now.Sub(m.objects[0].time) < maxDelay {
		m.produce(t)
		m.replicate()
		m.replicas[m.truth.leader].moveStart(1 << 62)
		m.step()
		m.pass(c, state, 0)
	}
	m.replicas[m.truth.leader].append(m.truth.epoch, 0)
	m.replicate()
	for range 30 {
		m.step()
		m.pass(c, state, 0)
		if err := m.violation(); err != nil {
			t.Fatal(err)
		}
	}
	m.replicas[m.truth.leader].moveStart(1 << 62)
	for range 30 {
		m.step()
		m.pass(c, state, 0)
	}
	if !m.objects[0].deleted {
		t.Fatal("kept for ever")
	}
}

// TestLeaderThatIsNone: one that is cut off answers for a log that is shorter than
// its successor's.
func TestLeaderThatIsNone(t *testing.T) {
	m := newModel()
	m.quorum = false
	c, state := newModelCollector(m)
	c.opt.Timing.Missed = 0
	m.produce(t)
	m.replicate()
	old := m.truth.leader
	m.cut[old] = true
	m.elect(false)
	m.produce(t)
	for range 60 {
		m.step()
		m.pass(c, state, old)
	}
	m.cut[old] = false
	m.step()
	m.replicas[m.truth.leader].moveStart(1)
	for range 10 {
		m.step()
		m.pass(c, state, old)
		if err := m.violation(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIsland: a broker that was cut off while all others were down, knows of none
// of them, and of a topic that is gone which they have made anew.
func TestIsland(t *testing.T) {
	m := newModel()
	c, state := newModelCollector(m)
	m.dead = [brokers]bool{true, true, false}
	m.elect(false)
	m.delete()
	m.cut[2] = true
	m.dead = [brokers]bool{}
	m.create()
	m.produce(t)
	for range 30 {
		m.step()
		m.pass(c, state, m.truth.leader)
	}
	for range 30 {
		m.step()
		m.pass(c, state, 2)
		if err := m.violation(); err != nil {
			t.Fatal(err)
		}
	}
	// And the same where brokers tell that they are cut off, at once.
	m.quorum = true
	c.opt.Timing.Missed = 0
	for range 30 {
		m.step()
		m.pass(c, state, 2)
		if err := m.violation(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatIsSettledIsTakenBack(t *testing.T) {
	at := func(minutes int) time.Time { return time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute) }
	var s Settling
	for _, step := range []struct{ settled, now, want int }{
		{10, 100, -1}, {20, 105, -1}, {30, 110, 10}, {30, 115, 10}, {30, 120, 30}, // what was pending at 110, for ten minutes
		{5, 121, 5}, {40, 125, 5}, {40, 131, 5}, {40, 141, 40},
	} {
		got := s.advance(at(step.settled), at(step.now), 10*time.Minute)
		if want := at(step.want); step.want < 0 && !got.IsZero() || step.want >= 0 && !got.Equal(want) {
			t.Errorf("%d settled at %d: %v is confirmed, not %d", step.settled, step.now, got, step.want)
		}
	}
}
