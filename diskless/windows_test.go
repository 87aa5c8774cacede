package diskless

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/tiers"
)

// compacted makes one window of WAL objects of a store: as many segments as
// there are topics. It returns the window and the keys of its segments.
func compacted(t testing.TB, store objstore.Store, level segment.Level, objects ...string) (segment.Window, []string) {
	t.Helper()
	ctx := context.Background()
	type batch struct {
		segment.Entry
		bytes []byte
	}
	m := &segment.Manifest{Level: level, Run: ulid.Make()}
	topics := map[string][]batch{}
	for _, key := range objects {
		id, _, ok := ParseObjectKey(key)
		if !ok {
			t.Fatal(key)
		}
		body, err := store.Get(ctx, key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := ReadFooter(body, int64(len(body)))
		if err != nil {
			t.Fatal(err)
		}
		m.Objects = append(m.Objects, segment.Object{ID: id, Size: int64(len(body))})
		for _, e := range entries {
			topics[e.Topic] = append(topics[e.Topic], batch{segment.Entry{
				Topic: e.Topic, Partition: e.Partition, Object: id, ObjectOffset: e.Offset, Length: e.Length, Records: e.Records,
				ProducerID: e.ProducerID, ProducerEpoch: e.ProducerEpoch, BaseSequence: e.BaseSequence, CRC: e.CRC,
			}, body[e.Offset : e.Offset+uint64(e.Length)]})
		}
	}
	var keys []string
	for _, batches := range topics {
		slices.SortFunc(batches, func(a, b batch) int { return a.Compare(&b.Entry) })
		var body []byte
		var entries []segment.Entry
		for _, b := range batches {
			body, entries = append(body, b.bytes...), append(entries, b.Entry)
		}
		payload := len(body)
		body, err := segment.AppendFooter(body, entries)
		if err != nil {
			t.Fatal(err)
		}
		first, last := entries[0], entries[len(entries)-1]
		key := m.Key(len(m.Segments))
		if err := store.Put(ctx, key, body); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
		m.Segments = append(m.Segments, segment.Info{Size: int64(len(body)), FooterSize: int64(len(body) - payload), Batches: len(entries),
			First: segment.Place{Topic: first.Topic, Partition: first.Partition}, Last: segment.Place{Topic: last.Topic, Partition: last.Partition}})
	}
	body, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(ctx, m.Window().Key(), body); err != nil {
		t.Fatal(err)
	}
	return m.Window(), keys
}

func listed(t testing.TB, store objstore.Store, prefix string) (keys []string) {
	t.Helper()
	if err := store.List(context.Background(), prefix, "", func(i objstore.Info) error { keys = append(keys, i.Key); return nil }); err != nil {
		t.Fatal(err)
	}
	return keys
}

func remove(t testing.TB, store objstore.Store, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if err := store.Delete(context.Background(), k); err != nil {
			t.Fatal(err)
		}
	}
}

// history writes some objects a minute, for some minutes, and lets them grow old.
func (r *rig) history(minutes, partitions, size int) []*sent {
	var all []*sent
	for range minutes {
		for p := range partitions {
			all = append(all, r.send(offer{topic: []string{"a", "b"}[p%2], partition: int32(p / 2), batch: batchOf(2, size/2)}))
		}
		for _, s := range all {
			s.placeholder()
		}
		time.Sleep(time.Minute)
	}
	time.Sleep(time.Hour)
	return all
}

// gets counts requests by the beginning of their keys.
func gets(r *rig, since int, op objstore.Op, prefix string) int {
	n := 0
	for _, l := range strings.Split(r.store.Transcript(), "\n")[since:] {
		if strings.HasPrefix(l, string(op)+" "+prefix) {
			n++
		}
	}
	return n
}

func (r *rig) lines() int { return strings.Count(r.store.Transcript(), "\n") }

// TestReadsFromSegments: old data is read from segments, in few requests, and
// needs no WAL object any more; young data is read as if there were none.
func TestReadsFromSegments(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(30, 8, 4000)
		objects := listed(t, r.memory, WALPrefix)
		for part := range slices.Chunk(objects, 10) {
			compacted(t, r.memory, segment.Level1, part...)
		}
		reader, before := r.another(Limits{}), r.lines()
		for _, s := range all {
			s.wantReadable(reader)
		}
		if n := gets(r, before, objstore.OpGet, WALPrefix); n > 0 {
			t.Errorf("%d GETs of WAL objects", n)
		}
		// Two folders, three windows, two segments in each: the footer and the payload.
		if lists, gets := gets(r, before, objstore.OpList, ""), gets(r, before, objstore.OpGet, ""); lists > 4 || gets > 3+2*6 {
			t.Errorf("%d LISTs and %d GETs:\n%s", lists, gets, r.store.Transcript())
		}
		remove(t, r.memory, objects...)
		for _, s := range all {
			s.wantReadable(reader)
			s.wantReadable(r.another(Limits{}))
		}
	})
}

func TestYoungReadsCostNoMore(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		s := r.send(offer{})
		s.placeholder()
		objects := listed(t, r.memory, WALPrefix)
		compacted(t, r.memory, segment.Level1, objects...)
		time.Sleep(11 * time.Minute)
		reader, before := r.another(Limits{}), r.lines()
		s.wantReadable(reader)
		if n := r.lines() - before; n != 1 {
			t.Errorf("%d requests:\n%s", n, r.store.Transcript())
		}
		// When it is gone all the same, it is looked for.
		remove(t, r.memory, objects...)
		s.wantReadable(r.another(Limits{}))
		// And what is in memory is not asked for when it is old.
		time.Sleep(time.Hour)
		before = r.lines()
		s.wantReadable(reader)
		if n := r.lines() - before; n != 0 {
			t.Errorf("%d requests:\n%s", n, r.store.Transcript())
		}
	})
}

// TestEitherWillDo: a reader gets the right bytes as long as one of the two places
// has them, and else an error that says what is the matter.
func TestEitherWillDo(t *testing.T) {
	flip := func(b []byte) []byte {
		b = bytes.Clone(b)
		for i := range b {
			b[i] ^= 1
		}
		return b
	}
	faults := []struct {
		name   string
		fault  objstore.Fault
		reason string
	}{
		{"fine", objstore.Fault{}, ""},
		{"missing", objstore.Fault{Err: objstore.ErrNotFound}, "not found"},
		{"flipped", objstore.Fault{Change: flip}, "corrupt"},
		{"cut", objstore.Fault{Change: func(b []byte) []byte { return b[:10] }}, "corrupt"},
		{"away", objstore.Fault{Err: objstore.ErrUnavailable}, "unavailable"},
		{"refused", objstore.Fault{Err: objstore.ErrAccess}, "access"},
		{"hanging", objstore.Fault{Delay: time.Hour}, "unavailable"},
	}
	for _, which := range []string{segment.DataPrefix, segment.WindowsPrefix + "1/", "the listing"} {
		for _, inSegment := range faults {
			for _, inWAL := range faults {
				t.Run(fmt.Sprintf("%s %s, WAL object %s", which, inSegment.name, inWAL.name), func(t *testing.T) {
					inBubble(t, Limits{}, func(t *testing.T, r *rig) {
						all := r.history(2, 4, 4000)
						compacted(t, r.memory, segment.Level1, listed(t, r.memory, WALPrefix)...)
						r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
							switch {
							case op == objstore.OpGet && strings.HasPrefix(key, WALPrefix):
								return inWAL.fault
							case op == objstore.OpGet && strings.HasPrefix(key, which), op == objstore.OpList && which == "the listing":
								return inSegment.fault
							}
							return objstore.Fault{}
						})
						reader := r.another(Limits{})
						readable := inSegment.name == "fine" || inWAL.name == "fine" ||
							which == "the listing" && inSegment.fault.Change != nil // of no listing
						for i, s := range all {
							started := time.Now()
							got, err := load(t.Context(), reader, s.tp, plain.appends(s.placeholder()))
							switch {
							case err == nil && !bytes.Equal(got, plain.consumed(s.batch)):
								t.Fatal("wrong bytes")
							case err == nil != readable:
								t.Fatalf("batch %d: %v", i, err)
							case err == nil && i > 0 && time.Since(started) > time.Minute/2:
								t.Fatalf("batch %d took %v", i, time.Since(started))
							case err != nil && (!errors.Is(err, ErrUnreadable) || len(got) > 0):
								t.Fatalf("%d bytes: %v", len(got), err)
							}
							if inWAL.name == "hanging" || inSegment.name == "hanging" {
								time.Sleep(20 * time.Second) // the breaker looks again
							}
						}
						r.faulty.Decide(nil)
						time.Sleep(20 * time.Second)
						for _, s := range all {
							s.wantReadable(reader)
						}
					})
				})
			}
		}
	}
}

// TestAHangingListing: what leads to segments may hold up one reader for a moment,
// and no other.
func TestAHangingListing(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(2, 8, 4000)
		r.faulty.Decide(func(op objstore.Op, _ string) objstore.Fault {
			if op == objstore.OpList {
				return objstore.Fault{Delay: time.Hour}
			}
			return objstore.Fault{}
		})
		reader := r.another(Limits{})
		for i, s := range all {
			started := time.Now()
			s.wantReadable(reader)
			// One for each level.
			if took := time.Since(started); i == 0 && took > reader.limits.GetTimeout/2 || i > 0 && took > 0 {
				t.Errorf("batch %d took %v", i, took)
			}
		}
		if reader.Status()[0].ReadErr != "" {
			t.Error("the store counts as unreadable")
		}
	})
}

// TestAListingThatFailsForgetsNothing: what an earlier listing told stays known
// while a new one cannot be had.
func TestAListingThatFailsForgetsNothing(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(10, 2, 16_000)
		objects := listed(t, r.memory, WALPrefix)
		left, covered := objects[5], slices.Delete(slices.Clone(objects), 5, 6)
		compacted(t, r.memory, segment.Level1, covered...)
		reader := r.another(Limits{CacheBytes: 200 << 10, ChunkBytes: 1 << 10}) // what leads there, but little payload
		for _, s := range all {
			s.wantReadable(reader)
		}
		remove(t, r.memory, covered...)
		time.Sleep(2 * seldom)
		r.faulty.Decide(func(op objstore.Op, _ string) objstore.Fault {
			if op == objstore.OpList {
				return objstore.Fault{Err: objstore.ErrUnavailable}
			}
			return objstore.Fault{}
		})
		before := r.lines()
		for range 2 {
			for _, s := range all { // that of left has the folder listed again
				s.wantReadable(reader)
			}
		}
		if gets(r, before, objstore.OpGet, left) == 0 || gets(r, before, objstore.OpList, "") == 0 {
			t.Error("nothing had to be listed")
		}
		if n := gets(r, before, objstore.OpList, ""); n > 2 {
			t.Errorf("%d listings in a moment: those that fail are not remembered", n)
		}
	})
}

// TestASlowStoreGetsThere: what leads to segments may take longer than its share
// of a reader's time when there is nowhere else to read.
func TestASlowStoreGetsThere(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(2, 2, 4000)
		objects := listed(t, r.memory, WALPrefix)
		compacted(t, r.memory, segment.Level1, objects...)
		remove(t, r.memory, objects...)
		reader := r.another(Limits{})
		r.faulty.Decide(func(objstore.Op, string) objstore.Fault {
			return objstore.Fault{Delay: reader.limits.GetTimeout * 3 / 8}
		})
		var err error
		for range 20 { // as a consumer does
			ctx, cancel := context.WithTimeout(context.Background(), reader.limits.GetTimeout)
			_, err = load(ctx, reader, all[0].tp, plain.appends(all[0].placeholder()))
			cancel()
			if err == nil {
				return
			}
		}
		t.Error(err)
	})
}

// TestAHangingSegment holds up a reader who leaves before the GET ends once in a
// while, not at every WAL object anew.
func TestAHangingSegment(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(30, 1, 4000)
		compacted(t, r.memory, segment.Level1, listed(t, r.memory, WALPrefix)...)
		reader := r.another(Limits{})
		var footers sync.Map
		r.faulty.Decide(func(_ objstore.Op, key string) objstore.Fault {
			if strings.HasPrefix(key, segment.DataPrefix) {
				if _, read := footers.LoadOrStore(key, true); read {
					return objstore.Fault{Delay: time.Hour}
				}
			}
			return objstore.Fault{Delay: 10 * time.Millisecond}
		})
		missed := 0
		for _, s := range all {
			for {
				ctx, cancel := context.WithTimeout(context.Background(), reader.limits.GetTimeout-time.Millisecond) // some of it is spent before the GET
				_, err := load(ctx, reader, s.tp, plain.appends(s.placeholder()))
				cancel()
				time.Sleep(100 * time.Millisecond)
				if err == nil {
					break
				}
				missed++
			}
		}
		if missed > 2 {
			t.Errorf("the reader was told to come again %d times", missed)
		}
	})
}

// TestBusyReplica: a lookup that found no room for its request says nothing of the
// store. Were it remembered, a replay would go on with WAL objects, and have less
// room yet.
func TestBusyReplica(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(2, 1, 4000)
		compacted(t, r.memory, segment.Level1, listed(t, r.memory, WALPrefix)...)
		reader := newTier(t, objstore.NewLimited(r.store, 1, 1), r.ring, Limits{})
		r.faulty.Decide(func(_ objstore.Op, key string) objstore.Fault {
			if strings.HasPrefix(key, "elsewhere") {
				return objstore.Fault{Delay: 5 * time.Second}
			}
			return objstore.Fault{}
		})
		go func() { _, _ = reader.writer("default").handle().Store.Get(t.Context(), "elsewhere", 0, 1) }()
		time.Sleep(time.Millisecond)
		all[0].wantReadable(reader)
		before := r.lines()
		all[1].wantReadable(reader)
		if n := gets(r, before, objstore.OpGet, WALPrefix); n > 0 {
			t.Errorf("%d GETs of WAL objects", n)
		}
	})
}

// TestEitherWindowWillDo: of two that cover an object, as two compactors may write,
// one is enough, whichever is found first.
func TestEitherWindowWillDo(t *testing.T) {
	for bad := range 2 {
		inBubble(t, Limits{}, func(t *testing.T, r *rig) {
			all := r.history(10, 1, 4000)
			objects := listed(t, r.memory, WALPrefix)
			_, one := compacted(t, r.memory, segment.Level1, objects...)
			_, other := compacted(t, r.memory, segment.Level1, objects[1:]...)
			remove(t, r.memory, objects[1:]...)
			for _, key := range [][]string{one, other}[bad] {
				b, err := r.memory.Get(t.Context(), key, 0, -1)
				if err != nil {
					t.Fatal(err)
				}
				for i := range b[:len(b)/2] {
					b[i] ^= 1
				}
				if err := r.memory.Put(t.Context(), key, b); err != nil {
					t.Fatal(err)
				}
			}
			reader := r.another(Limits{})
			for _, s := range all[1 : len(all)/2] {
				s.wantReadable(reader)
			}
		})
	}
}

// TestSegmentsMove: segments that were merged into others, and collected, are
// found again, by readers who knew the old ones too.
func TestSegmentsMove(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(20, 4, 4000)
		objects := listed(t, r.memory, WALPrefix)
		for part := range slices.Chunk(objects, 10) {
			compacted(t, r.memory, segment.Level1, part...)
		}
		reader := r.another(Limits{CacheBytes: 400 << 10, ChunkBytes: 1 << 10}) // what leads there, but little payload
		for _, s := range all {
			s.wantReadable(reader)
		}
		old := listed(t, r.memory, segment.Prefix)
		whole := clone(t, r.memory)
		compacted(t, r.memory, segment.Level2, objects...)
		time.Sleep(often)
		remove(t, r.memory, append(old, objects...)...)
		for _, s := range all {
			s.wantReadable(reader)
		}
		// The other way round: level 2 goes, the rest is restored.
		time.Sleep(often)
		remove(t, r.memory, listed(t, r.memory, segment.Prefix)...)
		for key, b := range whole {
			if err := r.memory.Put(t.Context(), key, b); err != nil {
				t.Fatal(err)
			}
		}
		remove(t, r.memory, objects...)
		for _, s := range all {
			s.wantReadable(reader)
		}
	})
}

func clone(t testing.TB, store objstore.Store) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, k := range listed(t, store, "") {
		b, err := store.Get(context.Background(), k, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		all[k] = b
	}
	return all
}

// TestLateWindow: an object that came after its window was compacted has another
// one, within the first; a reader who knew only the first finds it.
func TestLateWindow(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(10, 2, 4000)
		objects := listed(t, r.memory, WALPrefix)
		late := objects[5]
		compacted(t, r.memory, segment.Level1, slices.Delete(slices.Clone(objects), 5, 6)...)
		reader := r.another(Limits{CacheBytes: 400 << 10, ChunkBytes: 1 << 10})
		for _, s := range all {
			s.wantReadable(reader)
		}
		compacted(t, r.memory, segment.Level1, late)
		time.Sleep(often)
		remove(t, r.memory, objects...)
		for _, s := range all {
			s.wantReadable(reader)
		}
		time.Sleep(time.Hour)
		reader, before := r.another(Limits{}), r.lines()
		for _, s := range all {
			s.wantReadable(reader)
		}
		if n := gets(r, before, objstore.OpGet, WALPrefix); n > 0 {
			t.Errorf("%d GETs of WAL objects", n)
		}
	})
}

// TestWithoutCompaction: where nothing is compacted, reading old data costs a few
// listings, and the GETs that it cost before.
func TestWithoutCompaction(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(20, 4, 4000)
		objects := len(listed(t, r.memory, WALPrefix))
		reader, before := r.another(Limits{}), r.lines()
		for range 2 {
			for _, s := range all {
				s.wantReadable(reader)
			}
		}
		if lists, gets := gets(r, before, objstore.OpList, ""), gets(r, before, objstore.OpGet, ""); lists > 4 || gets != objects {
			t.Errorf("%d LISTs, and %d GETs for %d objects", lists, gets, objects)
		}
	})
}

// replay reads partitions as a consumer does: some batches of each at a time, of
// more that the broker gives, and then it works on them. It returns how long it has
// waited.
func replay(t testing.TB, reader *Tier, all []*sent, atATime, given, readahead int) (waited time.Duration) {
	t.Helper()
	left := map[string][]*sent{}
	var order []string
	for _, s := range all {
		p := fmt.Sprint(s.tp)
		if left[p] == nil {
			order = append(order, p)
		}
		left[p] = append(left[p], s)
	}
	for more := true; more; {
		more = false
		started := time.Now()
		var wg sync.WaitGroup
		for _, p := range order {
			some, beyond := left[p][:min(atATime, len(left[p]))], left[p][:min(given, len(left[p]))]
			left[p] = left[p][len(some):]
			if len(some) == 0 {
				continue
			}
			more = true
			var log, want []byte
			for i, s := range beyond {
				log = append(log, plain.appends(s.placeholder())...)
				if i < len(some) {
					want = append(want, plain.consumed(s.batch)...)
				}
			}
			log = append(log, log[:70]...) // the broker's limit cuts where it will
			wg.Go(func() {
				pieces, size, err := reader.Resolve(context.Background(), some[0].tp, log, len(want)-1, readahead)
				if all := len(want) / len(some) * len(beyond); size < all*9/10 || size > all*11/10 {
					t.Errorf("%d batches are said to come to %d bytes, not %d", len(beyond), size, all)
				}
				var got []byte
				for _, piece := range pieces {
					var parts [][]byte
					if parts, err = piece.Load(context.Background()); err != nil {
						break
					}
					got = append(got, bytes.Join(parts, nil)...)
				}
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%v: %d bytes, want %d: %v", some[0].tp, len(got), len(want), err)
				}
			})
		}
		wg.Wait()
		waited += time.Since(started)
		time.Sleep(30 * time.Millisecond)
	}
	return waited
}

// TestChunksOfAnotherSize: what was read while others read nothing is not read
// again in smaller pieces when they do.
func TestChunksOfAnotherSize(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(8, 1, 512<<10)
		compacted(t, r.memory, segment.Level1, listed(t, r.memory, WALPrefix)...)
		reader, before := r.another(Limits{CacheBytes: 32 << 20, ChunkBytes: 8 << 20}), r.lines()
		all[0].wantReadable(reader)
		first := gets(r, before, objstore.OpGet, segment.DataPrefix)
		for i := range int32(100) {
			reader.scans.note(tiers.TopicPartition{Topic: "others", Partition: i})
		}
		for _, s := range all {
			s.wantReadable(reader)
		}
		if n := gets(r, before, objstore.OpGet, segment.DataPrefix); n != first {
			t.Errorf("%d GETs for what %d have read already", n, first)
		}
	})
}

// TestReplay: a replay of a topic, or of one of many partitions, reads each byte
// about once, in large GETs; and a reader who goes on finds the next chunk there.
func TestReplay(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(60, 16, 20_000)
		objects := listed(t, r.memory, WALPrefix)
		for part := range slices.Chunk(objects, 10) {
			compacted(t, r.memory, segment.Level1, part...)
		}
		remove(t, r.memory, objects...)
		topic := slices.DeleteFunc(slices.Clone(all), func(s *sent) bool { return s.tp.Topic != "a" })
		one := slices.DeleteFunc(slices.Clone(topic), func(s *sent) bool { return s.tp.Partition != 3 })
		for _, c := range []struct {
			name    string
			batches []*sent
			cache   int64
			most    float64       // bytes read for a byte wanted
			faster  time.Duration // with readahead, one in so many
		}{
			{"topic", topic, 16 << 20, 1.05, 2},
			{"partition", one, 8 << 20, 1.05, 2},
			{"topic, hardly any memory", topic, 4 << 20, 1.2, 1},
		} {
			limits := Limits{CacheBytes: c.cache, ChunkBytes: 100 << 10}
			var payload int64
			for _, s := range c.batches {
				payload += int64(len(s.batch))
			}
			var took [2]time.Duration
			for i, readahead := range []int{0, 2} {
				given := []int{1, 30}[i]
				r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault { return objstore.Fault{Delay: 50 * time.Millisecond} })
				reader, before, read := r.another(limits), r.lines(), int64(0)
				took[i] = replay(t, reader, c.batches, 1, given, readahead)
				r.faulty.Decide(nil)
				n := 0
				for _, l := range strings.Split(r.store.Transcript(), "\n")[before:] {
					var key string
					var from, length, got int64
					if _, err := fmt.Sscanf(l, "get %s [%d, +%d) %d bytes", &key, &from, &length, &got); err == nil && strings.HasPrefix(key, segment.Prefix) {
						read, n = read+got, n+1
					}
				}
				if ratio := float64(read) / float64(payload); ratio > c.most {
					t.Errorf("%s, readahead %d: %d GETs read %d bytes for %d: %.2f of each", c.name, readahead, n, read, payload, ratio)
				}
				t.Logf("%s, readahead %d: %d GETs read %d bytes for %d in %v", c.name, readahead, n, read, payload, took[i])
			}
			if took[1] > took[0]/c.faster {
				t.Errorf("%s: %v with readahead, %v without", c.name, took[1], took[0])
			}
		}
	})
}

// TestReadAheadAcrossLevels: behind a window of level 1 comes what was merged, not what
// it was merged of, and the other way round.
func TestReadAheadAcrossLevels(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(40, 1, 40_000)
		objects := listed(t, r.memory, WALPrefix)
		var parts [4][]string
		for i := range parts {
			_, parts[i] = compacted(t, r.memory, segment.Level1, objects[i*10:(i+1)*10]...)
		}
		_, merged := compacted(t, r.memory, segment.Level2, objects[10:30]...)
		remove(t, r.memory, objects...)
		before := r.lines()
		replay(t, r.another(Limits{}), all, 1, 1, 2)
		for i, want := range []int{1, 0, 0, 1} {
			n := 0
			for _, key := range parts[i] {
				n += gets(r, before, objstore.OpGet, key)
			}
			if (n > 0) != (want > 0) {
				t.Errorf("%d GETs of the %d. window of level 1", n, i+1)
			}
		}
		if n := gets(r, before, objstore.OpGet, merged[0]); n == 0 {
			t.Error("nothing was read of level 2")
		}
	})
}

// TestReplayOfLargePartitions: partitions whose chunks do not fit into memory
// together are read in smaller ones. That they do not fit is known when some have
// been read; from then on each byte is read once.
func TestReplayOfLargePartitions(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(30, 8, 200_000)
		objects := listed(t, r.memory, WALPrefix)
		compacted(t, r.memory, segment.Level1, objects...)
		remove(t, r.memory, objects...)
		payload := int64(0)
		for _, s := range all {
			payload += int64(len(s.batch))
		}
		reader, before, read, n := r.another(Limits{CacheBytes: 40 << 20, ChunkBytes: 16 << 20}), r.lines(), int64(0), 0
		replay(t, reader, all, 1, 1, 2)
		for _, l := range strings.Split(r.store.Transcript(), "\n")[before:] {
			var key string
			var from, length, got int64
			if _, err := fmt.Sscanf(l, "get %s [%d, +%d) %d bytes", &key, &from, &length, &got); err == nil && strings.HasPrefix(key, segment.DataPrefix) {
				read, n = read+got, n+1
			}
		}
		if ratio := float64(read) / float64(payload); ratio > 1.5 {
			t.Errorf("%d GETs read %d bytes for %d: %.2f of each", n, read, payload, ratio)
		}
		t.Logf("%d GETs read %d bytes for %d", n, read, payload)
	})
}

// TestReplayLeavesTheTailAlone is TestScanResistance with segments.
func TestReplayLeavesTheTailAlone(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(60, 8, 20_000)
		objects := listed(t, r.memory, WALPrefix)
		compacted(t, r.memory, segment.Level1, objects[:30]...)
		compacted(t, r.memory, segment.Level1, objects[30:]...)
		reader := r.another(Limits{CacheBytes: 1 << 20, ChunkBytes: 64 << 10})
		var tail []*sent
		for range 8 {
			tail = append(tail, r.send(offer{batch: batchOf(1, 40<<10)}))
		}
		for _, s := range tail {
			s.wantReadable(reader)
		}
		replay(t, reader, all, 3, 40, 2)
		before := r.lines()
		for _, s := range tail {
			s.wantReadable(reader)
		}
		if n := r.lines() - before; n > 0 {
			t.Errorf("%d requests for the tail after a replay", n)
		}
	})
}

// TestIndexesAccounting: what leads to segments stays within its bound.
func TestIndexesAccounting(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		x := newIndexes(1000, newMetrics(newRegistry(), newInlineBudget(0, 0)))
		for range rapid.IntRange(0, 100).Draw(rt, "steps") {
			name := string(rune('a' + rapid.IntRange(0, 9).Draw(rt, "name")))
			if rapid.Bool().Draw(rt, "remove") {
				x.remove(name)
			} else {
				size := int64(rapid.IntRange(0, 1200).Draw(rt, "size"))
				x.add(name, size, size)
				if got := x.get(name); (got == size) != (size < 1000) {
					rt.Fatalf("%d: %v", size, got)
				}
			}
			var held int64
			for _, e := range x.lru.Values() {
				held += e.bytes
			}
			if held != x.bytes || held > x.max {
				rt.Fatalf("holds %d, says %d, of %d", held, x.bytes, x.max)
			}
		}
	})
}

// A reader whose answer has gone waits on: what it was given is others' by now.
func TestWhoWaitsOnLooksAtNoRecords(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		all := r.history(1, 2, 4000)
		compacted(t, r.memory, segment.Level1, listed(t, r.memory, WALPrefix)...)
		reader := r.another(Limits{})
		pieces, _, err := reader.Resolve(t.Context(), all[0].tp, plain.appends(all[0].placeholder()), math.MaxInt, -1)
		if err != nil || len(pieces) != 1 {
			t.Fatal(pieces, err)
		}
		read := map[string]bool{}
		r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
			if op != objstore.OpGet || !strings.HasPrefix(key, segment.DataPrefix) {
				return objstore.Fault{}
			}
			if !read[key] { // the footer, then the payload
				read[key] = true
				return objstore.Fault{}
			}
			return objstore.Fault{Err: errors.New("strange")}
		})
		pieces[0].(*storedPiece).batch = nil
		if err := pieces[0].Await(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
