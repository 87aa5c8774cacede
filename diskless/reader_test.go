package diskless

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

var update = flag.Bool("update", false, "write golden files anew")

// TestRoundTrip: what is consumed is what was produced, whatever the broker
// does to a placeholder, and from whichever replica it is read.
func TestRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ testing.TB }{t}, func(rt *rapid.T) {
			// Chunks of any size: batches lie in one, in two, in many.
			r := newRig(t, Limits{ChunkBytes: rapid.SampledFrom([]int64{500, 4096, 1 << 20}).Draw(rt, "chunk"), CacheBytes: rapid.SampledFrom([]int64{1, 1 << 20, 64 << 20}).Draw(rt, "cache")})
			defer func() { _ = r.tier.Close(context.Background()) }()
			random := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
			var all []*sent
			for i := range rapid.IntRange(1, 12).Draw(rt, "batches") {
				pid, epoch, seq := int64(-1), int16(-1), int32(-1)
				if rapid.Bool().Draw(rt, "idempotent") {
					pid, epoch, seq = rapid.Int64Min(0).Draw(rt, "pid"), rapid.Int16Min(0).Draw(rt, "epoch"), rapid.Int32Min(0).Draw(rt, "seq")
				}
				all = append(all, r.send(offer{
					topic: rapid.SampledFrom([]string{"a", "b", "otel.metrics-ü"}).Draw(rt, "topic"), partition: int32(i),
					batch: makeBatch(random, rapid.IntRange(1, 60).Draw(rt, "records"), rapid.IntRange(500, 1500).Draw(rt, "size"), rapid.IntRange(0, 4).Draw(rt, "codec"), pid, epoch, seq),
				}))
			}
			readers := []*Tier{r.tier, r.another(r.tier.limits)}
			defer func() { _ = readers[1].Close(context.Background()) }()
			for _, s := range all {
				k := broker{offset: rapid.Int64Min(0).Draw(rt, "offset"), epoch: rapid.Int32Min(0).Draw(rt, "leader epoch"), codec: rapid.IntRange(-1, 4).Draw(rt, "topic codec")}
				if rapid.Bool().Draw(rt, "log append time") {
					k.logAppendTime = 1_770_000_000_000
				}
				log := k.appends(s.placeholder())
				for i, reader := range readers {
					got, err := load(context.Background(), reader, s.tp, log)
					if err != nil {
						rt.Fatal(err)
					}
					if want := k.consumed(s.batch); !bytes.Equal(got, want) {
						rt.Fatalf("replica %d: %d bytes, want %d", i, len(got), len(want))
					}
				}
			}
		})
	})
}

func TestMixedLog(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		a, b := r.send(offer{}), r.send(offer{})
		inline := batchOf(3, 100)
		var log, want []byte
		for i, s := range []*sent{a, nil, b} {
			k := broker{offset: int64(10 * i), codec: -1}
			if s == nil {
				log, want = append(log, k.appends(inline)...), append(want, k.appends(inline)...)
				continue
			}
			log, want = append(log, k.appends(s.placeholder())...), append(want, k.consumed(s.batch)...)
		}
		got, err := load(t.Context(), r.tier, a.tp, append(log, 1, 2, 3)) // and a partial batch
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, want %d: %v", len(got), len(want), err)
		}
		if !r.tier.Candidate(log) || r.tier.Candidate(inline) || !r.tier.Reserved(log) || r.tier.Reserved(inline) {
			t.Error("candidate or reserved")
		}
	})
}

// TestNeverForeignBytes: a placeholder that is not exactly where and what it was
// made as gives an error, and no bytes.
func TestNeverForeignBytes(t *testing.T) {
	at := func(topic string, partition int32) tiers.TopicPartition {
		return tiers.TopicPartition{Topic: topic, Partition: partition}
	}
	here := at("otel", 3)
	// ref changes bytes of the reference in record 0, which is not compressed.
	ref := func(b wire.Batch, change func([]byte)) wire.Batch {
		i := bytes.Index(b, []byte(placeholder.HeaderKey)) + len(placeholder.HeaderKey)
		for b[i] != 1 { // behind the value's length: the version
			i++
		}
		change(b[i:])
		b.SetCRC(b.ComputeCRC())
		return b
	}
	for _, c := range []struct {
		name  string
		where tiers.TopicPartition
		forge func(b wire.Batch) wire.Batch
	}{
		{"copied to another topic", at("other", 3), nil},
		{"copied to another partition", at("otel", 4), nil},
		{"replayed with another sequence", here, func(b wire.Batch) wire.Batch { b.SetBaseSequence(8); return b }},
		{"replayed by another producer", here, func(b wire.Batch) wire.Batch { b.SetProducerID(6); return b }},
		{"under an unknown key", here, func(b wire.Batch) wire.Batch { return ref(b, func(v []byte) { v[2] ^= 1 }) }},
		{"of another object", here, func(b wire.Batch) wire.Batch { return ref(b, func(v []byte) { v[12] ^= 1 }) }},
		{"of another range", here, func(b wire.Batch) wire.Batch { return ref(b, func(v []byte) { v[26]++ }) }},
		{"of another prefix", here, func(b wire.Batch) wire.Batch { return ref(b, func(v []byte) { v[1] ^= 1 }) }},
		{"of another version", here, func(b wire.Batch) wire.Batch { return ref(b, func(v []byte) { v[0] = 9 }) }},
		{"with another MAC", here, func(b wire.Batch) wire.Batch { return ref(b, func(v []byte) { v[40] ^= 0x80 }) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, Limits{}, func(t *testing.T, r *rig) {
				s := r.send(offer{partition: 3, batch: makeBatch(rand.New(rand.NewPCG(1, 2)), 4, 2000, wire.CodecNone, 5, 0, 7)})
				genuine := plain.appends(s.placeholder())
				s.wantReadable(r.tier)
				forged := bytes.Clone(genuine)
				if c.forge != nil {
					forged = plain.appends(c.forge(forged))
				}
				before := r.store.Count(objstore.OpGet)
				got, err := load(t.Context(), r.tier, c.where, forged)
				if !errors.Is(err, ErrUnverified) || len(got) > 0 {
					t.Fatalf("%d bytes: %v", len(got), err)
				}
				if c.where == here {
					// What stands before it in the log is still given.
					got, err = load(t.Context(), r.tier, here, append(bytes.Clone(genuine), forged...))
					if !errors.Is(err, ErrUnverified) || !bytes.Equal(got, plain.consumed(s.batch)) {
						t.Fatalf("%d bytes: %v", len(got), err)
					}
				}
				if n := r.store.Count(objstore.OpGet) - before; n > 2 {
					t.Errorf("a forgery cost %d GETs", n)
				}
			})
		})
	}
}

func TestKeysThatCannotBeReadAreNotForgeries(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		s := r.send(offer{})
		log := plain.appends(s.placeholder())
		tier, err := New(Options{ClusterID: testCluster, Logger: zerolog.Nop(), Metrics: newRegistry()})
		if err != nil {
			t.Fatal(err)
		}
		defer tier.Close(t.Context())
		tier.Expect("default", errors.New("no route"))
		if _, err := load(t.Context(), tier, s.tp, log); !errors.Is(err, ErrUnreadable) {
			t.Fatalf("a store that is not open yet: %v", err)
		}
		tier.AddStore("default", StoreHandle{r.store, r.ring})
		s.wantReadable(tier)

		// Another replica rotates the key while the store is down for us.
		other := openRing(t, r.memory)
		reader := newTier(t, r.store, openRing(t, r.faulty), Limits{})
		writer := newTier(t, r.memory, other, Limits{})
		time.Sleep(time.Minute)
		if err := other.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		s = send(t, writer, offer{})
		s.placeholder()
		r.faulty.Down(true)
		if _, err := load(t.Context(), reader, s.tp, plain.appends(s.placeholder())); !errors.Is(err, ErrUnreadable) {
			t.Fatalf("a key that cannot be looked up: %v", err)
		}
		r.faulty.Down(false)
		time.Sleep(10 * time.Second)
		s.wantReadable(reader)
	})
}

// TestFaultyReads: whatever a store answers, a reader gets the right bytes or
// an error.
func TestFaultyReads(t *testing.T) {
	flip := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b }
	for _, c := range []struct {
		name  string
		fault objstore.Fault
		heals bool // at the second attempt of the same Load
	}{
		{"a flipped bit", objstore.Fault{Change: flip}, true},
		{"a short answer", objstore.Fault{Change: func(b []byte) []byte { return b[:len(b)/2] }}, true},
		{"an empty answer", objstore.Fault{Change: func([]byte) []byte { return nil }}, true},
		{"another object", objstore.Fault{Change: func(b []byte) []byte { return bytes.Repeat([]byte{7}, len(b)) }}, true},
		{"too much", objstore.Fault{Change: func(b []byte) []byte { return append(bytes.Clone(b), b...) }}, true},
		{"not found", objstore.Fault{Err: objstore.ErrNotFound}, true},
		{"no access", objstore.Fault{Err: objstore.ErrAccess}, false},
		{"unavailable", objstore.Fault{Err: objstore.ErrUnavailable}, false},
		{"hanging", objstore.Fault{Delay: time.Hour}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, Limits{}, func(t *testing.T, r *rig) {
				s := r.send(offer{batch: batchOf(3, 3000)})
				log := plain.appends(s.placeholder())
				for _, times := range []int{1, 1000} {
					reader := r.another(Limits{})
					n := 0
					r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
						if n++; op == objstore.OpGet && n <= times {
							return c.fault
						}
						return objstore.Fault{}
					})
					got, err := load(t.Context(), reader, s.tp, log)
					wantBytes := times == 1 && c.heals || c.name == "too much"
					switch {
					case err == nil && !bytes.Equal(got, plain.consumed(s.batch)):
						t.Fatal("wrong bytes")
					case err == nil != wantBytes:
						t.Fatalf("the fault came %d times: %v", times, err)
					case err != nil && (!errors.Is(err, ErrUnreadable) || len(got) > 0):
						t.Fatalf("%d bytes: %v", len(got), err)
					}
					r.faulty.Decide(nil)
					if got, err := load(t.Context(), reader, s.tp, log); err != nil || !bytes.Equal(got, plain.consumed(s.batch)) {
						t.Fatalf("the fault outlived itself: %v", err)
					}
				}
			})
		})
	}
}

// TestGets: 1,000 partitions' slices in 12 objects cost 12 GETs, however many
// read them at a time.
func TestGets(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		const objects, partitions = 12, 1000
		var all []*sent
		for range objects {
			for p := range partitions {
				all = append(all, r.send(offer{partition: int32(p), batch: batchOf(1, 700)}))
			}
			time.Sleep(time.Second)
		}
		logs := make([][]byte, len(all))
		for i, s := range all {
			logs[i] = plain.appends(s.placeholder())
		}
		if n := r.store.Count(objstore.OpPut); n != objects {
			t.Fatalf("%d PUTs", n)
		}
		r.faulty.Decide(func(objstore.Op, string) objstore.Fault { return objstore.Fault{Delay: 30 * time.Millisecond} })
		reader := r.another(Limits{})
		before := r.store.Count(objstore.OpGet)
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range all {
					i = (i + g*len(all)/8) % len(all)
					if got, err := load(context.Background(), reader, all[i].tp, logs[i]); err != nil || !bytes.Equal(got, plain.consumed(all[i].batch)) {
						t.Errorf("batch %d: %v", i, err)
						return
					}
				}
			})
		}
		wg.Wait()
		if n := r.store.Count(objstore.OpGet) - before; n != objects {
			t.Fatalf("%d GETs for %d objects", n, objects)
		}
		for i := range all { // the writer itself needs none
			if _, err := load(context.Background(), r.tier, all[i].tp, logs[i]); err != nil {
				t.Fatal(err)
			}
		}
		if n := r.store.Count(objstore.OpGet) - before; n != objects {
			t.Fatalf("the writer's own readers cost %d GETs", n-objects)
		}
	})
}

func TestReadersWhoLeaveTakeNothingFromOthers(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		s := r.send(offer{})
		log := plain.appends(s.placeholder())
		reader := r.another(Limits{ReadAhead: 1})
		r.faulty.Decide(func(objstore.Op, string) objstore.Fault { return objstore.Fault{Delay: time.Second} })
		before := r.store.Count(objstore.OpGet)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := load(ctx, reader, s.tp, log); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { s.wantReadable(reader) })
		synctest.Wait()
		started := time.Now()
		cancel()
		synctest.Wait()
		if time.Since(started) > 0 {
			t.Error("a reader that left was held")
		}
		wg.Wait()
		if n := r.store.Count(objstore.OpGet) - before; n != 1 {
			t.Errorf("%d GETs", n)
		}
	})
}

// TestScanResistance: readers at the tail hit the cache while somebody reads
// all of history.
func TestScanResistance(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		class := telemetry()
		class.ObjectSize = 64 << 10
		var history []*sent
		for range 100 {
			history = append(history, r.send(offer{class: class, batch: batchOf(1, 64<<10)}))
		}
		for _, s := range history {
			s.placeholder()
		}
		time.Sleep(time.Hour)
		reader := r.another(Limits{CacheBytes: 1 << 20, ChunkBytes: 64 << 10})
		var tail []*sent
		for range 8 {
			tail = append(tail, r.send(offer{class: class, batch: batchOf(1, 60<<10)}))
		}
		for _, s := range tail {
			s.wantReadable(reader)
		}
		before := r.store.Count(objstore.OpGet)
		for i, s := range history {
			s.wantReadable(reader)
			scanned := r.store.Count(objstore.OpGet)
			tail[i%len(tail)].wantReadable(reader)
			if r.store.Count(objstore.OpGet) != scanned {
				t.Fatalf("the scan of %d objects evicted the tail:\n%s", i, r.store.Transcript()[len(r.store.Transcript())-500:])
			}
		}
		if n := r.store.Count(objstore.OpGet) - before; n < 100 {
			t.Fatalf("only %d GETs: nothing was scanned", n)
		}
	})
}

func TestReadAfterClose(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		s := r.send(offer{})
		log := plain.appends(s.placeholder())
		reader := r.another(Limits{})
		_ = reader.Close(t.Context())
		if _, err := load(t.Context(), reader, s.tp, log); !errors.Is(err, ErrUnreadable) {
			t.Fatalf("%v", err)
		}
	})
}

// TestTranscript shows the exact requests of a small scenario.
func TestTranscript(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := objstore.NewMemory()
		faulty := objstore.NewFaulty(memory)
		store := objstore.NewRecording(faulty)
		ids := map[string]string{}
		var out strings.Builder
		seen := 0
		step := func(what string) {
			lines := strings.Split(strings.TrimSuffix(store.Transcript(), "\n"), "\n")
			fmt.Fprintf(&out, "# %s\n", what)
			for _, l := range lines[seen:] {
				l = regexp.MustCompile(`\b[0-9A-HJKMNP-TV-Z]{26}\b`).ReplaceAllStringFunc(l, func(id string) string {
					if ids[id] == "" {
						ids[id] = fmt.Sprintf("<object %d>", len(ids)+1)
					}
					return ids[id]
				})
				out.WriteString(l + "\n")
			}
			seen = len(lines)
		}
		ring := openRing(t, store)
		step("the first replica opens the store")
		tier := newTier(t, store, ring, outageBudget)
		audit := telemetry()
		audit.Name, audit.Audit, audit.Linger = "audit", true, 2*testLinger
		a, b := send(t, tier, offer{partition: 1}), send(t, tier, offer{partition: 2})
		c := send(t, tier, offer{topic: "payments", class: audit})
		for _, s := range []*sent{a, b, c} {
			s.wantReadable(tier)
		}
		step("three batches of two classes, read by the replica that wrote them")
		reader := newTier(t, store, openRing(t, store), outageBudget)
		step("the second replica opens it")
		for _, s := range []*sent{a, b, c, a} {
			s.wantReadable(reader)
		}
		step("and reads all three, one of them twice")
		faulty.Decide(func(op objstore.Op, key string) objstore.Fault { return objstore.Fault{Lost: op == objstore.OpPut} })
		d := send(t, tier, offer{timeout: 9 * time.Second})
		d.wantInline(tiers.InlineUnavailable)
		step("answers get lost until the batch goes inline")
		faulty.Decide(nil)
		time.Sleep(3 * time.Second)
		send(t, tier, offer{}).placeholder()
		step("the store works again")

		golden := filepath.Join("testdata", "transcript.txt")
		if *update {
			check(os.MkdirAll("testdata", 0o755))
			check(os.WriteFile(golden, []byte(out.String()), 0o644))
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if out.String() != string(want) {
			t.Errorf("the requests differ from %s (-update writes it anew):\n%s", golden, out.String())
		}
	})
}

// What lies beyond an answer is only estimated: forgeries there are not looked at
// one by one, for each may cost a look at the store.
func TestForgeriesBeyondAnAnswerAreNotAllLookedAt(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, r *rig) {
		s := r.send(offer{})
		forged := plain.appends(s.placeholder())
		log := bytes.Clone(s.batch)
		for range 10 {
			log = append(log, forged...)
		}
		elsewhere := tiers.TopicPartition{Topic: s.tp.Topic, Partition: s.tp.Partition + 1}
		pieces, size, err := r.tier.Resolve(t.Context(), elsewhere, log, len(s.batch)-1, 0)
		if err != nil || len(pieces) != 1 || size != len(log) {
			t.Errorf("%d pieces, %d bytes of %d: %v", len(pieces), size, len(log), err)
		}
		if n := testutil.ToFloat64(r.tier.metrics.unverified.WithLabelValues("wrong signature")); n > 2 { // one for reading ahead, one for the estimate
			t.Errorf("%v were looked at", n)
		}
	})
}
