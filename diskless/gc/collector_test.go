package gc

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// agedStore says of objects that they were put when the test wants.
type agedStore struct {
	objstore.Store
	mu   sync.Mutex
	aged map[string]time.Time
	skew time.Duration // of the clock by which others are listed

	hidden string // prefix of what is not listed
}

func (s *agedStore) List(ctx context.Context, prefix, after string, fn func(objstore.Info) error) error {
	return s.Store.List(ctx, prefix, after, func(i objstore.Info) error {
		s.mu.Lock()
		at, ok := s.aged[i.Key]
		i.LastModified = i.LastModified.Add(s.skew)
		s.mu.Unlock()
		if s.hidden != "" && strings.HasPrefix(i.Key, s.hidden) {
			return nil
		}
		if ok {
			i.LastModified = at
		}
		return fn(i)
	})
}

// kafka says what the test wants.
type kafka struct {
	id      string
	err     error
	brokers []int32
	topics  map[string]tiers.TopicView
}

func (k *kafka) ClusterID() string { return k.id }
func (k *kafka) Survey(_ context.Context, names []string) (tiers.Survey, error) {
	s := tiers.Survey{Brokers: k.brokers, Topics: make(map[string]tiers.TopicView)}
	for _, n := range names {
		s.Topics[n] = tiers.TopicView{}
	}
	for n, v := range k.topics {
		v.Partitions = slices.Clone(v.Partitions)
		s.Topics[n] = v
	}
	return s, k.err
}
func (k *kafka) Lineage(_ context.Context, qs []tiers.EpochQuestion) (map[tiers.TopicPartition]bool, error) {
	out := make(map[tiers.TopicPartition]bool)
	for _, q := range qs {
		out[q.TopicPartition] = true
	}
	return out, nil
}

func topicView(id byte, start, end int64) tiers.TopicView {
	return tiers.TopicView{ID: [16]byte{id}, Partitions: []tiers.LogView{{Leader: 1, Epoch: 3, InSync: true, Start: start, End: end}}}
}

// rig is a store with objects of two topics, a day old, and a cluster.
type rig struct {
	t      testing.TB
	store  *agedStore
	faulty *objstore.Faulty
	kafka  *kafka
	opt    Options
	said   []Object
	split  bool // what is compacted has a segment for each object of a topic
}

func newRig(t testing.TB) *rig {
	r := &rig{t: t, kafka: &kafka{id: "cluster", brokers: []int32{1, 2, 3}, topics: map[string]tiers.TopicView{
		"kept": topicView(1, 0, 100), "other": topicView(2, 0, 100), "third": topicView(3, 0, 0), "fourth": topicView(4, 0, 0),
	}}}
	r.faulty = objstore.NewFaulty(objstore.NewMemory())
	r.store = &agedStore{Store: r.faulty, aged: make(map[string]time.Time)}
	if _, err := keyring.Open(t.Context(), r.store, "cluster", keyring.Options{}); err != nil {
		t.Fatal(err)
	}
	r.opt = Options{
		Name: "test", Store: r.store, Kafka: r.kafka, MinAge: time.Hour, DeletesPerSecond: 100_000,
		Timing:  Timing{Margin: time.Hour, Grace: time.Millisecond, Apart: time.Millisecond, Missed: time.Hour},
		Explain: func(o Object) { r.said = append(r.said, o) },
	}
	return r
}

// object puts one that names topics, of so long ago.
func (r *rig) object(age time.Duration, topics ...string) string {
	r.t.Helper()
	at := time.Now().Add(-age)
	id := ulid.MustNew(ulid.Timestamp(at), ulid.DefaultEntropy())
	key := walPrefix + id.String()
	if err := r.store.Put(r.t.Context(), key, walObject(topics...)); err != nil {
		r.t.Fatal(err)
	}
	r.store.aged[key] = at
	return key
}

func (r *rig) pass() (*Report, error) {
	r.t.Helper()
	r.said = nil
	time.Sleep(2 * time.Millisecond) // of the store's clock, which tells passes apart
	return New(r.opt).Pass(r.t.Context())
}

func (r *rig) passes(n int) *Report {
	r.t.Helper()
	var report *Report
	for range n {
		var err error
		if report, err = r.pass(); err != nil {
			r.t.Fatal(err)
		}
	}
	return report
}

func (r *rig) has(key string) bool {
	r.t.Helper()
	_, err := r.store.Get(r.t.Context(), key, 0, 1)
	if err != nil && !errors.Is(err, objstore.ErrNotFound) {
		r.t.Fatal(err)
	}
	return err == nil
}

// retain lets logs begin where they ended, and goes on.
func (r *rig) retain(topics ...string) {
	for _, name := range topics {
		v := r.kafka.topics[name]
		l := &v.Partitions[0]
		l.Start = l.End
		l.End += 100
	}
}

func TestAnObjectDiesWithItsLastRecord(t *testing.T) {
	r := newRig(t)
	both := r.object(24*time.Hour, "kept", "other")
	one := r.object(24*time.Hour, "other")
	young := r.object(time.Minute, "other")
	r.passes(3)
	if !r.has(both) || !r.has(one) {
		t.Fatal("deleted while the logs hold everything")
	}
	r.retain("other")
	r.passes(4)
	if r.has(one) {
		t.Error("kept although its log begins behind it")
	}
	if !r.has(both) || !r.has(young) {
		t.Error("deleted although a log may refer to it")
	}
	r.retain("kept")
	report := r.passes(4)
	if r.has(both) || !r.has(young) {
		t.Errorf("%+v", report)
	}
}

func TestTopicsThatAreGone(t *testing.T) {
	r := newRig(t)
	gone := r.object(24*time.Hour, "other")
	never := r.object(24*time.Hour, "deleted before we first looked")
	beyond := r.object(24*time.Hour, "kept")
	r.passes(2)
	delete(r.kafka.topics, "other")
	if _, err := r.pass(); err != nil {
		t.Fatal(err)
	}
	if !r.has(gone) {
		t.Fatal("deleted without grace")
	}
	r.passes(3)
	if r.has(gone) || r.has(never) || !r.has(beyond) {
		t.Errorf("of a topic that is gone: %v; of one never seen: %v; of one that exists: %v", r.has(gone), r.has(never), r.has(beyond))
	}
	// Made anew under its name, it is another topic, and what was written for the
	// one before does not keep it.
	r = newRig(t)
	before := r.object(24*time.Hour, "other")
	r.passes(3)
	r.kafka.topics["other"] = topicView(9, 0, 50)
	after := r.object(24*time.Hour, "other") // of an unknown id, when the second was seen first: it may be its own
	r.store.aged[after] = time.Now()
	r.passes(4)
	if r.has(before) || !r.has(after) {
		t.Errorf("before: %v, after: %v", r.has(before), r.has(after))
	}
}

// TestNamesThatWereNeverHeardOf have a longer grace: the state may be new, and the
// topics yet to be restored.
func TestNamesThatWereNeverHeardOf(t *testing.T) {
	r := newRig(t)
	r.opt.Timing.Unheard = 300 * time.Millisecond
	heard := r.object(24*time.Hour, "other")
	never := r.object(24*time.Hour, "never")
	r.passes(2)
	delete(r.kafka.topics, "other")
	began := time.Now()
	r.passes(3)
	if r.has(heard) || !r.has(never) && time.Since(began) < 300*time.Millisecond {
		t.Fatalf("heard of: %v, never: %v", r.has(heard), r.has(never))
	}
	time.Sleep(300 * time.Millisecond)
	r.passes(2)
	if r.has(never) {
		t.Fatal("kept for ever")
	}
}

// TestGraceBeginsAnew where other partitions are beyond those that exist: of the
// topic before, or when there is none any more.
func TestGraceBeginsAnew(t *testing.T) {
	at := func(minutes int) time.Time { return time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute) }
	timing := Timing{Margin: time.Minute, Grace: 10 * time.Minute, Apart: time.Minute}
	before := topicView(1, 0, 100)
	before.Partitions = append(before.Partitions, before.Partitions[0], before.Partitions[0])
	for name, after := range map[string]tiers.TopicView{"made anew with fewer": topicView(2, 0, 0), "gone": {}} {
		topic := &Topic{}
		for i := range 10 {
			topic.observe(before, at(10*i), timing)
		}
		if v := verdictOf(topic.observe(after, at(100), timing), 2); v.Doubt != "" || v.Confirmed.After(at(0)) || !v.Settled.Equal(at(100)) {
			t.Errorf("%s: partition 2 is settled up to %v, confirmed up to %v, doubt %q at once", name, v.Settled, v.Confirmed, v.Doubt)
		}
		topic.observe(after, at(109), timing)
		if v := verdictOf(topic.observe(after, at(111), timing), 2); !v.Confirmed.Equal(at(100)) {
			t.Errorf("%s: after the grace, partition 2 is confirmed up to %v", name, v.Confirmed)
		}
	}
}

// TestTopicThatComesBack: it was deleted by mistake, and the cluster is restored
// from a backup.
func TestTopicThatComesBack(t *testing.T) {
	for _, between := range []tiers.TopicView{{}, topicView(9, 0, 0)} {
		r := newRig(t)
		r.opt.Timing.Grace = 100 * time.Millisecond
		key := r.object(24*time.Hour, "other")
		r.passes(3)
		was := r.kafka.topics["other"]
		if r.kafka.topics["other"] = between; !between.Exists() {
			delete(r.kafka.topics, "other")
		}
		r.passes(1)
		r.kafka.topics["other"] = was
		for range 6 {
			time.Sleep(40 * time.Millisecond)
			r.passes(1)
		}
		if !r.has(key) {
			t.Fatal("deleted, and the topic is there")
		}
		r.retain("other")
		for range 6 {
			time.Sleep(40 * time.Millisecond)
			r.passes(1)
		}
		if r.has(key) {
			t.Fatal("kept for ever")
		}
	}
}

// TestClocksThatWereAhead: what was noted then must not be believed when the time
// has come.
func TestClocksThatWereAhead(t *testing.T) {
	r := newRig(t)
	r.passes(1)
	state := r.state()
	state.Updated = time.Now().Add(2 * time.Hour)
	state.Topics["other"] = &Topic{ID: ID{2}, Seen: state.Updated, Partitions: []*Partition{{
		Leader: 1, Epoch: 3, Seen: state.Updated, Checkpoints: []Checkpoint{{state.Updated, 3, 100}},
	}}}
	b, err := state.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Put(t.Context(), StateKey, b); err != nil {
		t.Fatal(err)
	}
	r.passes(1)
	if s := r.state(); s.Updated.After(time.Now()) || len(s.Topics["other"].Partitions[0].Checkpoints) > 0 {
		t.Errorf("%+v", s.Topics["other"].Partitions[0])
	}
	// A little is within the margin, and need not be forgotten.
	state.Updated = time.Now().Add(time.Minute)
	if b, err = state.Encode(); err != nil {
		t.Fatal(err)
	}
	if err := r.store.Put(t.Context(), StateKey, b); err != nil {
		t.Fatal(err)
	}
	if _, err := r.pass(); err == nil {
		t.Error("a pass before the last one")
	}
	// Who was alive is waited for all the same.
	state.Updated = time.Now().Add(2 * time.Hour)
	if b, err = state.Encode(); err != nil {
		t.Fatal(err)
	}
	if err := r.store.Put(t.Context(), StateKey, b); err != nil {
		t.Fatal(err)
	}
	r.kafka.brokers = []int32{1, 2}
	if _, err := r.pass(); err == nil {
		t.Error("a broker is missing")
	}
}

func (r *rig) state() *State {
	r.t.Helper()
	b, err := r.store.Get(r.t.Context(), StateKey, 0, -1)
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := ParseState(b)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func TestDoubtsDeleteNothing(t *testing.T) {
	for name, doubt := range map[string]func(r *rig){
		"may not be described": func(r *rig) { r.kafka.topics["other"] = tiers.TopicView{Doubt: "x"} },
		"no leader":            func(r *rig) { r.kafka.topics["other"].Partitions[0].Doubt = "x" },
		"a replica is away":    func(r *rig) { r.kafka.topics["other"].Partitions[0].InSync = false },
		"unreachable":          func(r *rig) { r.kafka.err = errors.New("x") },
		"a broker is missing":  func(r *rig) { r.kafka.brokers = []int32{1, 2} },
		"another cluster":      func(r *rig) { r.kafka.id = "else" },
		"nearly all is gone":   func(r *rig) { clear(r.kafka.topics) },
		"the store's clock":    func(r *rig) { r.store.skew = 10 * time.Minute },
		"its clock, behind":    func(r *rig) { r.store.skew = -10 * time.Minute },
		"fewer partitions":     func(r *rig) { r.kafka.topics["other"] = tiers.TopicView{ID: [16]byte{2}} },
		"the store lists poorly": func(r *rig) {
			r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
				if op == objstore.OpList {
					return objstore.Fault{Err: objstore.ErrUnavailable}
				}
				return objstore.Fault{}
			})
		},
		"unreadable": func(r *rig) {
			r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
				if op == objstore.OpGet && strings.HasPrefix(key, walPrefix) {
					return objstore.Fault{Change: func(b []byte) []byte { return b[:len(b)-1] }}
				}
				return objstore.Fault{}
			})
		},
		"the state cannot be kept": func(r *rig) {
			r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
				if op == objstore.OpPut && key == StateKey {
					return objstore.Fault{Err: objstore.ErrUnavailable}
				}
				return objstore.Fault{}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			key := r.object(24*time.Hour, "other")
			r.passes(3)
			r.retain("other")
			calm := *r.kafka
			calm.topics = map[string]tiers.TopicView{}
			for n, v := range r.kafka.topics {
				v.Partitions = slices.Clone(v.Partitions)
				calm.topics[n] = v
			}
			doubt(r)
			for range 5 {
				_, _ = r.pass()
				r.faulty.Decide(nil)
				if !r.has(key) {
					t.Fatal("deleted in doubt")
				}
				doubt(r)
			}
			// And it goes when the doubt does: the test can fail.
			*r.kafka = calm
			r.store.skew = 0
			r.faulty.Decide(nil)
			r.passes(4)
			if r.has(key) {
				t.Fatal("kept without doubt")
			}
		})
	}
}

func TestForeignPrefix(t *testing.T) {
	r := newRig(t)
	if err := r.store.Delete(t.Context(), keyring.MarkerKey); err != nil {
		t.Fatal(err)
	}
	if _, err := r.pass(); !errors.Is(err, objstore.ErrNotFound) {
		t.Fatalf("without a marker: %v", err)
	}
	if _, err := keyring.Open(t.Context(), r.store, "another", keyring.Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.pass(); !errors.Is(err, keyring.ErrForeign) {
		t.Fatalf("with another's: %v", err)
	}
}

func TestWhatIsNotOursIsNotTouched(t *testing.T) {
	r := newRig(t)
	keys := []string{"wal/readme.txt", "wal/" + strings.ToLower(ulid.Make().String()), "wal/sub/" + ulid.Make().String(), "audit/wal/" + ulid.Make().String(), "else/" + ulid.Make().String(), "sluice/health"}
	for _, k := range keys {
		if err := r.store.Put(t.Context(), k, walObject("gone")); err != nil {
			t.Fatal(err)
		}
		r.store.aged[k] = time.Now().Add(-48 * time.Hour)
	}
	garbled := r.object(24*time.Hour, "gone")
	if err := r.store.Put(t.Context(), garbled, []byte("not an object")); err != nil {
		t.Fatal(err)
	}
	dead := r.object(24*time.Hour, "gone")
	report := r.passes(5)
	for _, k := range append(keys, garbled) {
		if !r.has(k) {
			t.Errorf("%s was deleted", k)
		}
	}
	if r.has(dead) {
		t.Error("what is ours and dead is still there")
	}
	if report.Found[Unknown].Objects != 3 || report.Found[Audit].Objects != 1 || report.Found[Unreadable].Objects != 1 {
		t.Errorf("%+v", report.Found)
	}
}

func TestDryRunOnlyExplains(t *testing.T) {
	r := newRig(t)
	key := r.object(24*time.Hour, "other")
	kept := r.object(24*time.Hour, "kept", "other")
	r.passes(3)
	r.retain("other")
	r.passes(1) // a candidate now
	before, err := r.store.Get(t.Context(), StateKey, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	r.opt.DryRun = true
	report := r.passes(2)
	if !r.has(key) || report.Deleted.Objects != 0 || report.Found[Dead].Objects != 1 {
		t.Errorf("%+v", report)
	}
	after, err := r.store.Get(t.Context(), StateKey, 0, -1)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the state changed: %v", err)
	}
	i := slices.IndexFunc(r.said, func(o Object) bool { return o.Key == kept })
	if i < 0 || r.said[i].Reason != Retained || r.said[i].Topic != "kept" || r.said[i].Partition == nil || r.said[i].Settled != nil {
		out, _ := json.Marshal(r.said)
		t.Errorf("%s", out)
	}
}

// TestKilledBetweenDeletions: whatever was deleted is gone, the rest goes later.
func TestKilledBetweenDeletions(t *testing.T) {
	r := newRig(t)
	var keys []string
	for range 20 {
		keys = append(keys, r.object(24*time.Hour, "gone"))
	}
	live := r.object(24*time.Hour, "kept")
	r.passes(3)
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	r.opt.Explain = func(Object) {
		if n++; n == 7 {
			cancel()
		}
	}
	r.opt.Concurrency = 1
	time.Sleep(2 * time.Millisecond)
	if _, err := New(r.opt).Pass(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	left := 0
	for _, k := range keys {
		if r.has(k) {
			left++
		}
	}
	if left == 0 || left == len(keys) {
		t.Fatalf("%d are left: it was not killed between deletions", left)
	}
	r.opt.Explain = nil
	r.passes(3)
	for _, k := range keys {
		if r.has(k) {
			t.Error("a dead object is left")
		}
	}
	if !r.has(live) {
		t.Error("a live object is gone")
	}
}

// A process that was stopped goes on with what it was told before. Workers that
// are at a deletion then must not do it, and the pass ends.
func TestPassThatStoodStill(t *testing.T) {
	r := newRig(t)
	r.passes(2)
	for range 50 {
		r.object(24*time.Hour, "other")
	}
	r.retain("other")
	r.passes(1)
	time.Sleep(2 * time.Millisecond)
	r.opt.Concurrency = 1
	c := New(r.opt)
	noted := r.state().Passes
	// While the first is deleted, time passes: to the collector that is the same as
	// that its last sign of life is older.
	r.faulty.Decide(func(op objstore.Op, _ string) objstore.Fault {
		if op == objstore.OpDelete {
			c.alive.Store(time.Now().Add(-stoppedFor - time.Minute).UnixNano())
		}
		return objstore.Fault{}
	})
	report, err := c.Pass(t.Context())
	if err == nil || !strings.Contains(err.Error(), "stood still") {
		t.Errorf("the pass ended with %v", err)
	}
	if report.Deleted.Objects != 1 {
		t.Errorf("%d objects were deleted, all but one after that", report.Deleted.Objects)
	}
	// Another collector's state may be newer.
	if r.state().Passes != noted {
		t.Error("it noted that it looked at everything")
	}
	r.faulty.Decide(nil)
	if report := r.passes(1); report.Deleted.Objects != 49 {
		t.Errorf("the next pass deleted %d", report.Deleted.Objects)
	}
}

func TestStateSurvives(t *testing.T) {
	s := &State{ClusterID: "c", Brokers: map[int32]time.Time{1: time.Unix(5, 0).UTC()}, Topics: map[string]*Topic{"t": {
		ID: ID{1, 2}, Seen: time.Unix(9, 0).UTC(), Partitions: []*Partition{{Epoch: 3, Checkpoints: []Checkpoint{{time.Unix(7, 0).UTC(), 3, 17}}}},
	}}}
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseState(b)
	if err != nil {
		t.Fatal(err)
	}
	x, _ := json.Marshal(s)
	y, _ := json.Marshal(back)
	if !bytes.Equal(x, y) {
		t.Errorf("%s\n%s", x, y)
	}
	for i := range b {
		c := slices.Clone(b)
		c[i] ^= 1
		if _, err := ParseState(c); err == nil {
			t.Fatalf("a state with byte %d wrong was taken", i)
		}
	}
}

// TestCheckpointsStayFew, and still divide the time evenly.
func TestCheckpointsStayFew(t *testing.T) {
	p := &Partition{}
	begin := time.Unix(0, 0)
	const n = 2000
	for i := range int64(n) {
		p.add(Checkpoint{begin.Add(time.Duration(i) * time.Minute), 1, i * 10}, 0)
		if len(p.Checkpoints) > maxCheckpoints {
			t.Fatal(len(p.Checkpoints))
		}
	}
	for i := 1; i < len(p.Checkpoints); i++ {
		if gap := p.Checkpoints[i].Time.Sub(p.Checkpoints[i-1].Time); gap > n*time.Minute/10 {
			t.Errorf("between checkpoints %d and %d are %v", i-1, i, gap)
		}
	}
	for start := int64(0); start < n*10; start += 7 {
		if c := p.best(start); c != nil && c.End > start {
			t.Fatal(c)
		}
	}
	idle := &Partition{}
	for i := range int64(100) {
		idle.add(Checkpoint{begin.Add(time.Duration(i) * time.Minute), 1, 10}, 0)
	}
	if len(idle.Checkpoints) != 1 || !idle.Checkpoints[0].Time.Equal(begin.Add(99*time.Minute)) {
		t.Error(idle.Checkpoints)
	}
}

// walObject is an object with a batch for partition 0 of each topic, by the
// format's description in diskless/object.go.
func walObject(topics ...string) []byte {
	var object, footer []byte
	for _, topic := range topics {
		footer = binary.AppendUvarint(footer, uint64(len(topic)))
		footer = append(footer, topic...)
		footer = append(footer, 0)
		footer = binary.AppendUvarint(footer, uint64(len(object)))
		footer = append(footer, 5, 1, 0, 0, 0)
		footer = binary.BigEndian.AppendUint32(footer, 7)
		object = append(object, "batch"...)
	}
	object = append(object, footer...)
	object = binary.BigEndian.AppendUint32(object, uint32(len(footer)))
	object = binary.BigEndian.AppendUint32(object, crc32.Checksum(footer, wire.Castagnoli))
	return append(object, "\x01sluiceW"...)
}
