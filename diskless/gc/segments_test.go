package gc

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
)

// compact makes segments of objects, one for each topic, and their manifest, of
// so long ago.
func (r *rig) compact(age time.Duration, alter func(*segment.Entry), keys ...string) (*segment.Manifest, []string) {
	r.t.Helper()
	return r.compactTo(segment.Level1, age, alter, keys...)
}

func (r *rig) compactTo(level segment.Level, age time.Duration, alter func(*segment.Entry), keys ...string) (*segment.Manifest, []string) {
	r.t.Helper()
	slices.Sort(keys)
	m := &segment.Manifest{Level: level, Run: ulid.MustNew(ulid.Timestamp(time.Now().Add(-age)), ulid.DefaultEntropy())}
	of := make(map[string][]segment.Entry)
	for _, key := range keys {
		body, err := r.store.Get(r.t.Context(), key, 0, -1)
		if err != nil {
			r.t.Fatal(err)
		}
		entries, err := diskless.ReadFooter(body, int64(len(body)))
		if err != nil {
			r.t.Fatal(err)
		}
		id := ulid.MustParse(strings.TrimPrefix(key, walPrefix))
		m.Objects = append(m.Objects, segment.Object{ID: id, Size: int64(len(body))})
		for _, e := range entries {
			s := segment.Entry{Topic: e.Topic, Partition: e.Partition, Object: id, ObjectOffset: e.Offset, Length: e.Length, Records: e.Records,
				ProducerID: e.ProducerID, ProducerEpoch: e.ProducerEpoch, BaseSequence: e.BaseSequence, CRC: e.CRC}
			if alter != nil {
				alter(&s)
			}
			name := e.Topic
			if r.split {
				name = fmt.Sprint(e.Topic, len(m.Objects))
			}
			of[name] = append(of[name], s)
		}
	}
	var data []string
	put := func(key string, body []byte) {
		if err := r.store.Put(r.t.Context(), key, body); err != nil {
			r.t.Fatal(err)
		}
		r.store.aged[key] = time.Now().Add(-age)
	}
	topics := make([]string, 0, len(of))
	for topic := range of {
		topics = append(topics, topic)
	}
	slices.Sort(topics)
	for n, topic := range topics {
		entries := of[topic]
		payload := 0
		for _, e := range entries {
			payload += int(e.Length)
		}
		body, err := segment.AppendFooter(make([]byte, payload), entries)
		if err != nil {
			r.t.Fatal(err)
		}
		at := segment.Place{Topic: entries[0].Topic}
		m.Segments = append(m.Segments, segment.Info{Size: int64(len(body)), FooterSize: int64(len(body) - payload), Batches: len(entries), First: at, Last: at})
		put(segment.DataKey(m.Run, n), body)
		data = append(data, segment.DataKey(m.Run, n))
	}
	body, err := m.Encode()
	if err != nil {
		r.t.Fatal(err)
	}
	put(m.Window().Key(), body)
	return m, data
}

// objectsOfOneHour puts objects that one window may cover.
func (r *rig) objectsOfOneHour(n int, topics ...string) (keys []string) {
	at := time.Now().Add(-24 * time.Hour).UTC().Truncate(time.Hour)
	for i := range n {
		keys = append(keys, r.object(time.Since(at.Add(time.Duration(i)*time.Minute)), topics...))
	}
	return keys
}

func TestSegmentsStandForObjects(t *testing.T) {
	r := newRig(t)
	keys := r.objectsOfOneHour(3, "kept", "other")
	m, data := r.compact(20*time.Hour, nil, keys...)
	uncovered := r.object(24*time.Hour, "kept")
	r.passes(1)
	for _, key := range keys {
		if r.has(key) {
			t.Errorf("%s is kept, although segments hold all of it", key)
		}
	}
	if !r.has(uncovered) || !r.has(data[0]) || !r.has(data[1]) || !r.has(m.Window().Key()) {
		t.Fatal("something is gone that is needed")
	}
	// Segments die by themselves, then their manifest.
	r.passes(3)
	r.retain("other")
	r.passes(4)
	if !r.has(data[0]) || r.has(data[1]) || !r.has(m.Window().Key()) {
		t.Errorf("the log that goes on: %v, the one that has moved: %v, the manifest: %v", r.has(data[0]), r.has(data[1]), r.has(m.Window().Key()))
	}
	r.retain("kept")
	r.passes(5)
	if r.has(data[0]) || r.has(m.Window().Key()) {
		t.Errorf("segment: %v, manifest: %v", r.has(data[0]), r.has(m.Window().Key()))
	}
}

func TestSegmentsThatLackSomethingStandForNothing(t *testing.T) {
	for name, alter := range map[string]func(*segment.Entry){
		"crc":      func(e *segment.Entry) { e.CRC++ },
		"records":  func(e *segment.Entry) { e.Records++ },
		"sequence": func(e *segment.Entry) { e.BaseSequence++ },
		"offset":   func(e *segment.Entry) { e.ObjectOffset++ },
		"producer": func(e *segment.Entry) { e.ProducerID = 9 },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			keys := r.objectsOfOneHour(2, "kept", "other")
			first := ulid.MustParse(strings.TrimPrefix(keys[0], walPrefix))
			r.compact(20*time.Hour, func(e *segment.Entry) {
				if e.Object == first {
					alter(e)
				}
			}, keys...)
			r.passes(4)
			if !r.has(keys[0]) || r.has(keys[1]) {
				t.Errorf("the one that differs: %v, the one that does not: %v", r.has(keys[0]), r.has(keys[1]))
			}
		})
	}
	for name, harm := range map[string]func(r *rig, m *segment.Manifest, data []string){
		"a segment is missing": func(r *rig, _ *segment.Manifest, data []string) { _ = r.store.Delete(r.t.Context(), data[1]) },
		"a segment is cut": func(r *rig, _ *segment.Manifest, data []string) {
			_ = r.store.Put(r.t.Context(), data[0], []byte("short"))
		},
		"no manifest": func(r *rig, m *segment.Manifest, _ []string) {
			_ = r.store.Delete(r.t.Context(), m.Window().Key())
		},
		"a manifest that is damaged": func(r *rig, m *segment.Manifest, _ []string) {
			_ = r.store.Put(r.t.Context(), m.Window().Key(), []byte("short"))
		},
		"a manifest of just now": func(r *rig, m *segment.Manifest, _ []string) {
			r.opt.Timing.Grace = time.Hour
			r.store.aged[m.Window().Key()] = time.Now()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			keys := r.objectsOfOneHour(2, "kept", "other")
			m, data := r.compact(20*time.Hour, nil, keys...)
			harm(r, m, data)
			r.passes(4)
			if !r.has(keys[0]) || !r.has(keys[1]) {
				t.Error("deleted")
			}
		})
	}
}

func TestWhatCompactorsLeave(t *testing.T) {
	r := newRig(t)
	put := func(key string, age time.Duration) string {
		if err := r.store.Put(t.Context(), key, []byte("x")); err != nil {
			t.Fatal(err)
		}
		r.store.aged[key] = time.Now().Add(-age)
		return key
	}
	keys := r.objectsOfOneHour(2, "kept")
	crashed := func(age time.Duration) string { return r.lose(r.compact(age, nil, keys...)) }
	r.opt.Timing.Grace = time.Second // a listing is news for half of it
	old, working := crashed(30*time.Hour), crashed(2*time.Hour)
	claim := put(segment.ClaimsPrefix+"1/x", 30*time.Hour)
	claimed := put(segment.ClaimsPrefix+"1/y", time.Hour)
	odd := put(segment.DataPrefix+"readme", 30*time.Hour)
	garbled := put(segment.DataKey(ulid.Make(), 0), 30*time.Hour)
	r.passes(1)
	for key, want := range map[string]bool{old: false, working: true, claim: false, claimed: true, odd: true, garbled: true} {
		if r.has(key) != want {
			t.Errorf("%s: there %v, want %v", key, !want, want)
		}
	}
	// With a manifest that cannot be read, it is not known whose segments are whose.
	again := crashed(30 * time.Hour)
	m, _ := r.compact(20*time.Hour, nil, keys...)
	r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
		if op == objstore.OpGet && key == m.Window().Key() {
			return objstore.Fault{Err: fmt.Errorf("planted: %w", objstore.ErrUnavailable)}
		}
		return objstore.Fault{}
	})
	r.passes(1)
	if !r.has(again) {
		t.Error("deleted in doubt")
	}
	// Another run has compacted its objects, which are gone by now.
	r.faulty.Decide(nil)
	r.passes(1)
	r.store.aged[working] = time.Now().Add(-30 * time.Hour)
	r.passes(1)
	if r.has(working) || r.has(again) || r.has(keys[0]) {
		t.Errorf("the crashed runs': %v, %v, the object: %v", r.has(working), r.has(again), r.has(keys[0]))
	}
}

// lose takes a run's manifest away, and returns its first segment.
func (r *rig) lose(m *segment.Manifest, data []string) string {
	if err := r.store.Delete(r.t.Context(), m.Window().Key()); err != nil {
		r.t.Fatal(err)
	}
	return data[0]
}

// TestManifestThatIsLost, of segments that are all that is left of WAL objects: with
// it, or out of them, the records can still be had.
func TestManifestThatIsLost(t *testing.T) {
	r := newRig(t)
	r.opt.Timing.Grace = 100 * time.Millisecond
	keys := r.objectsOfOneHour(2, "kept")
	m, data := r.compact(30*time.Hour, nil, keys...)
	r.passes(2)
	if r.has(keys[0]) || r.has(keys[1]) {
		t.Fatal("not covered")
	}
	r.lose(m, data)
	r.passes(3)
	if !r.has(data[0]) {
		t.Fatal("the only copy is deleted")
	}
	r.retain("kept")
	for range 6 {
		time.Sleep(50 * time.Millisecond)
		r.passes(1)
	}
	if r.has(data[0]) {
		t.Error("kept although nothing refers to it")
	}
}

// TestStoreThatListsTooFew, without an error.
func TestStoreThatListsTooFew(t *testing.T) {
	for _, hidden := range []string{segment.DataPrefix, segment.WindowsPrefix} {
		r := newRig(t)
		r.opt.Timing.Grace = 100 * time.Millisecond
		keys := r.objectsOfOneHour(2, "kept")
		m, data := r.compact(30*time.Hour, nil, keys...)
		r.passes(2)
		if r.has(keys[0]) {
			t.Fatal("not covered")
		}
		r.store.hidden = hidden
		_, err := r.pass()
		if !r.has(data[0]) || !r.has(m.Window().Key()) {
			t.Errorf("%s is not listed: the segment is there: %v, the manifest: %v", hidden, r.has(data[0]), r.has(m.Window().Key()))
		}
		if hidden == segment.DataPrefix && err == nil {
			t.Error("a store that does not list what is there is relied on")
		}
	}
}

// TestSegmentOfAClockThatWasBehind: its objects' names tell that it is younger.
func TestSegmentOfAClockThatWasBehind(t *testing.T) {
	r := newRig(t)
	keys := []string{r.object(time.Minute, "other")}
	_, data := r.compact(20*time.Hour, nil, keys...)
	r.passes(3)
	r.retain("other")
	r.passes(4)
	if !r.has(data[0]) {
		t.Fatal("deleted, with a record of a minute ago")
	}
}

// TestSegmentThatReadersDoNotLookInto stands for nothing.
func TestSegmentThatReadersDoNotLookInto(t *testing.T) {
	r := newRig(t)
	keys := r.objectsOfOneHour(1, "kept", "other")
	m, _ := r.compact(20*time.Hour, nil, keys...)
	m.Segments[0].First.Topic, m.Segments[0].Last.Topic = "l", "l"
	body, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Put(t.Context(), m.Window().Key(), body); err != nil {
		t.Fatal(err)
	}
	r.passes(3)
	if !r.has(keys[0]) {
		t.Fatal("deleted")
	}
}

// TestMergedSegments go when those into which they were merged have been there for
// long enough; what they held is then in those.
func TestMergedSegments(t *testing.T) {
	r := newRig(t)
	keys := r.objectsOfOneHour(4, "kept", "other")
	one, dataOne := r.compact(22*time.Hour, nil, keys[:2]...)
	two, dataTwo := r.compact(22*time.Hour, nil, keys[2:]...)
	into, data := r.compactTo(segment.Level2, 20*time.Hour, nil, keys...)
	late := r.objectsOfOneHour(1, "kept")
	lone, dataLone := r.compact(22*time.Hour, nil, late...)
	r.opt.DryRun = true
	r.passes(1)
	for _, key := range append(dataOne, dataTwo...) {
		if i := slices.IndexFunc(r.said, func(o Object) bool { return o.Key == key }); i < 0 || r.said[i].Reason != Dead || !r.has(key) {
			t.Fatalf("of %s is said: %v", key, r.said)
		}
	}
	r.opt.DryRun = false
	aged := r.store.aged[dataOne[0]]
	r.store.aged[dataOne[0]] = time.Now()
	r.passes(1)
	if !r.has(dataOne[0]) || r.has(dataOne[1]) {
		t.Errorf("the young one: %v, the old one: %v", r.has(dataOne[0]), r.has(dataOne[1]))
	}
	r.store.aged[dataOne[0]] = aged
	r.passes(2)
	for _, key := range append(append(dataOne, dataTwo...), one.Window().Key(), two.Window().Key()) {
		if r.has(key) {
			t.Errorf("%s is kept, although level 2 holds all of it", key)
		}
	}
	for _, key := range append(append(data, dataLone...), into.Window().Key(), lone.Window().Key()) {
		if !r.has(key) {
			t.Errorf("%s is gone", key)
		}
	}
	for _, key := range keys {
		if r.has(key) {
			t.Errorf("%s is kept, although segments hold all of it", key)
		}
	}
	r.passes(3)
	r.retain("kept", "other")
	r.passes(5)
	if r.has(data[0]) || r.has(data[1]) || r.has(into.Window().Key()) {
		t.Error("level 2 is kept although nothing refers to it")
	}
}

// TestMergedSegmentsStayInDoubt. In each case something is not as it should be with
// what level 2 has of the first window; that of the second is sound in some.
func TestMergedSegmentsStayInDoubt(t *testing.T) {
	type merged struct {
		*rig
		m    *segment.Manifest
		data []string
		one  []string // data of level 1
	}
	whole := func(alter func(*segment.Entry)) func(r *rig, keys []string) (*segment.Manifest, []string) {
		return func(r *rig, keys []string) (*segment.Manifest, []string) {
			first := ulid.MustParse(strings.TrimPrefix(keys[0], walPrefix))
			return r.compactTo(segment.Level2, 20*time.Hour, func(e *segment.Entry) {
				if alter != nil && e.Object == first {
					alter(e)
				}
			}, keys...)
		}
	}
	get := func(key string, err error) func(op objstore.Op, k string) objstore.Fault {
		return func(op objstore.Op, k string) objstore.Fault {
			if op == objstore.OpGet && k == key {
				return objstore.Fault{Err: err}
			}
			return objstore.Fault{}
		}
	}
	rewrite := func(r merged, m *segment.Manifest) {
		body, err := m.Encode()
		if err != nil {
			r.t.Fatal(err)
		}
		_ = r.store.Put(r.t.Context(), m.Window().Key(), body)
	}
	put := func(r merged, key string, change func([]byte) []byte) {
		b, err := r.store.Get(r.t.Context(), key, 0, -1)
		if err != nil {
			r.t.Fatal(err)
		}
		_ = r.store.Put(r.t.Context(), key, change(b))
	}
	for name, c := range map[string]struct {
		make   func(r *rig, keys []string) (*segment.Manifest, []string)
		harm   func(r merged)
		second bool // the second window's may go
		half   bool // one topic's may go
		fails  bool // the pass may
	}{
		"crc":      {make: whole(func(e *segment.Entry) { e.CRC++ }), second: true},
		"records":  {make: whole(func(e *segment.Entry) { e.Records++ }), second: true},
		"sequence": {make: whole(func(e *segment.Entry) { e.BaseSequence++ }), second: true},
		"offset":   {make: whole(func(e *segment.Entry) { e.ObjectOffset++ }), second: true},
		"producer": {make: whole(func(e *segment.Entry) { e.ProducerID = 9 }), second: true},
		"epoch":    {make: whole(func(e *segment.Entry) { e.ProducerEpoch = 9 }), second: true},
		"an object that is not covered": {make: func(r *rig, keys []string) (*segment.Manifest, []string) {
			return r.compactTo(segment.Level2, 20*time.Hour, nil, keys[1:]...)
		}, second: true},
		"an object that the manifest does not name": {make: func(r *rig, keys []string) (*segment.Manifest, []string) {
			m, data := whole(nil)(r, keys)
			m.Objects = slices.Delete(m.Objects, 1, 2)
			rewrite(merged{rig: r}, m)
			return m, data
		}, second: true},
		"no manifest":            {harm: func(r merged) { _ = r.store.Delete(r.t.Context(), r.m.Window().Key()) }},
		"a manifest that is cut": {harm: func(r merged) { put(r, r.m.Window().Key(), func(b []byte) []byte { return b[:20] }) }},
		"a manifest of a version to come": {harm: func(r merged) {
			put(r, r.m.Window().Key(), func(b []byte) []byte { b = slices.Clone(b); b[len(b)-8]++; return b })
		}},
		"a manifest that the store does not give": {harm: func(r merged) { r.faulty.Decide(get(r.m.Window().Key(), objstore.ErrUnavailable)) }},
		"a manifest of just now":                  {harm: func(r merged) { r.opt.Timing.Grace = time.Hour; r.store.aged[r.m.Window().Key()] = time.Now() }},
		"a manifest that is not listed":           {harm: func(r merged) { r.store.hidden = segment.WindowsPrefix + "2/" }},
		"segments that are not listed":            {harm: func(r merged) { r.store.hidden = segment.DataPrefix + r.m.Run.String() }, fails: true},
		"a segment that is not listed":            {harm: func(r merged) { r.store.hidden = r.data[1] }},
		"a segment that is missing":               {harm: func(r merged) { _ = r.store.Delete(r.t.Context(), r.data[1]) }},
		"a segment that is cut":                   {harm: func(r merged) { put(r, r.data[0], func(b []byte) []byte { return b[:len(b)-1] }) }},
		"a segment that is longer":                {harm: func(r merged) { put(r, r.data[0], func(b []byte) []byte { return append(slices.Clone(b), 0) }) }},
		"a footer that is damaged": {harm: func(r merged) {
			put(r, r.data[0], func(b []byte) []byte { b = slices.Clone(b); b[len(b)-20] ^= 1; return b })
		}},
		"a segment that the store does not give": {harm: func(r merged) { r.faulty.Decide(get(r.data[0], objstore.ErrUnavailable)) }},
		"a segment that readers do not look into": {harm: func(r merged) {
			r.m.Segments[0].First.Topic, r.m.Segments[0].Last.Topic = "l", "l"
			rewrite(r, r.m)
		}, half: true},
		"segments of level 1 of just now": {harm: func(r merged) {
			for _, key := range r.one {
				r.store.aged[key] = time.Now()
			}
		}, second: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			keys := r.objectsOfOneHour(4, "kept", "other")
			if c.make == nil {
				c.make = whole(nil)
			}
			m, one := r.compact(22*time.Hour, nil, keys[:2]...)
			_, two := r.compact(22*time.Hour, nil, keys[2:]...)
			x := merged{rig: r, one: one}
			x.m, x.data = c.make(r, keys)
			if c.harm != nil {
				c.harm(x)
			}
			for range 4 {
				if _, err := r.pass(); err != nil && !c.fails {
					t.Fatal(err)
				}
			}
			r.faulty.Decide(nil)
			there := func(keys []string) (n int) {
				for _, key := range keys {
					if r.has(key) {
						n++
					}
				}
				return n
			}
			if c.half { // of the topics
				if there(one) != 1 || there(two) != 1 {
					t.Errorf("%d and %d segments of level 1 are left", there(one), there(two))
				}
				return
			}
			if there(one) != len(one) || !r.has(m.Window().Key()) {
				t.Errorf("%d of %d segments of level 1 are left, the manifest: %v", there(one), len(one), r.has(m.Window().Key()))
			}
			if c.second != (there(two) == 0) {
				t.Errorf("%d of the second window's %d segments are left", there(two), len(two))
			}
		})
	}
}

// TestMergedSegmentsThatLackOne: where one was lost, its neighbour with the same
// partition stays, for nobody can say any more what the other one held.
func TestMergedSegmentsThatLackOne(t *testing.T) {
	r := newRig(t)
	keys := r.objectsOfOneHour(2, "kept", "other")
	_, one := r.compact(22*time.Hour, nil, keys[0])
	_, two := r.compact(22*time.Hour, nil, keys[1])
	r.compactTo(segment.Level2, 20*time.Hour, nil, keys...)
	if err := r.store.Delete(t.Context(), one[0]); err != nil {
		t.Fatal(err)
	}
	r.passes(2)
	for _, key := range append(one[1:], two...) {
		if r.has(key) {
			t.Errorf("%s is kept", key)
		}
	}
}

// TestOrphanOfAMergeThatLacksASegment: what level 2 covers is not there for certain
// when one of its segments is not.
func TestOrphanOfAMergeThatLacksASegment(t *testing.T) {
	for _, lacks := range []bool{true, false} {
		r := newRig(t)
		r.opt.Timing.Grace = 100 * time.Millisecond
		keys := r.objectsOfOneHour(2, "kept", "other")
		lost := r.lose(r.compact(30*time.Hour, nil, keys...))
		_, data := r.compactTo(segment.Level2, 28*time.Hour, nil, keys...)
		for _, key := range keys {
			_ = r.store.Delete(t.Context(), key)
		}
		if lacks {
			_ = r.store.Delete(t.Context(), data[0])
		}
		r.passes(2)
		if r.has(lost) != lacks {
			t.Errorf("level 2 lacks a segment: %v; the one that it may be the only copy of is there: %v", lacks, r.has(lost))
		}
	}
}

// TestMergedSegmentsAreDeletedLater, when the store did not take it at first, although
// what was deleted then is no longer there to compare: but only while level 2 is.
func TestMergedSegmentsAreDeletedLater(t *testing.T) {
	for _, lacks := range []bool{false, true} {
		r := newRig(t)
		keys := r.objectsOfOneHour(2, "kept")
		r.split = true
		_, one := r.compact(22*time.Hour, nil, keys...)
		r.split = false
		_, two := r.compactTo(segment.Level2, 20*time.Hour, nil, keys...)
		r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
			if op == objstore.OpDelete && key == one[1] {
				return objstore.Fault{Err: objstore.ErrUnavailable}
			}
			return objstore.Fault{}
		})
		c := New(r.opt)
		pass := func() {
			t.Helper()
			time.Sleep(2 * time.Millisecond)
			if _, err := c.Pass(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		pass()
		if r.has(one[0]) || !r.has(one[1]) {
			t.Fatalf("the one that could be deleted is there: %v; the other one: %v", r.has(one[0]), r.has(one[1]))
		}
		pass()
		r.faulty.Decide(nil)
		if lacks {
			_ = r.store.Delete(t.Context(), two[0])
		}
		pass()
		pass()
		if r.has(one[1]) != lacks {
			t.Errorf("level 2 lacks a segment: %v; what was merged into it is there: %v", lacks, r.has(one[1]))
		}
		if n := len(c.replaced); n > 0 {
			t.Errorf("%d are remembered that are gone, or must not go", n)
		}
	}
}

// TestLeftoversBesideADeadSegment: a segment of the run that was finished has died,
// and the others still stand for what a crashed run left of theirs.
func TestLeftoversBesideADeadSegment(t *testing.T) {
	for n, kept := range []bool{true, false} { // of "kept", and of "other"
		r := newRig(t)
		r.opt.Timing.Grace = 100 * time.Millisecond
		keys := r.objectsOfOneHour(2, "kept", "other")
		left := r.lose(r.compact(31*time.Hour, nil, keys...)) // of "kept"
		_, data := r.compact(30*time.Hour, nil, keys...)
		for _, k := range keys {
			_ = r.store.Delete(t.Context(), k)
		}
		_ = r.store.Delete(t.Context(), data[n])
		r.passes(2)
		if r.has(left) != kept {
			t.Errorf("segment %d has died; what the crashed run left is there: %v", n, r.has(left))
		}
	}
}

// The lease is a courtesy. Two that do not see it work on one state, beside each
// other, and what a log refers to is kept.
func TestTwoCollectorsAtOnce(t *testing.T) {
	r := newRig(t)
	keys := r.objectsOfOneHour(3, "kept", "other")
	m, data := r.compact(20*time.Hour, nil, keys...)
	needed := []string{r.object(24*time.Hour, "kept"), data[0], m.Window().Key()}
	dead := append(keys, r.object(24*time.Hour, "other"), data[1])
	r.opt.Explain = nil
	passes := func() {
		for range 6 {
			time.Sleep(2 * time.Millisecond)
			var both sync.WaitGroup
			for range 2 {
				both.Go(func() {
					if _, err := New(r.opt).Pass(t.Context()); err != nil {
						t.Log(err) // of two in the same instant one may give up
					}
				})
			}
			both.Wait()
		}
	}
	passes()
	r.retain("other")
	passes()
	r.passes(3) // alone
	for _, key := range needed {
		if !r.has(key) {
			t.Errorf("%s is gone, and a log refers to it", key)
		}
	}
	for _, key := range dead {
		if r.has(key) {
			t.Errorf("%s is still there", key)
		}
	}
}
