package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

func TestAChainHoldsTheWholeLog(t *testing.T) {
	r := newRig(t)
	var want []string
	for range 4 {
		r.fill(25)
		p := r.archive(1000)
		want = r.appended()
		if p.Next != r.kafka.log.End || p.Objects < 3 {
			t.Fatalf("%+v, the log ends at %d", p, r.kafka.log.End)
		}
		// A second run, and an archiver that has just been started, find nothing to do.
		if again := r.archive(1000); again.Objects != 0 || again.Next != p.Next {
			t.Fatalf("again: %+v", again)
		}
	}
	report := r.sound()
	if report.Topic != "audit-trades" || report.Head.Next != r.kafka.log.End || report.First != 0 || len(report.Gaps)+len(report.Notes) > 0 || report.Locked.IsZero() {
		t.Errorf("%+v", report)
	}
	if got := r.held(); !slices.Equal(got, want) {
		t.Errorf("the chain holds %v, the log %v", got, want)
	}
}

func TestArchiversDoNotForkAChain(t *testing.T) {
	r := newRig(t)
	r.fill(100)
	// They overlap, and cut the log into different objects.
	slow := &slowVault{r.vault}
	r.store = slow
	var wg sync.WaitGroup
	for i := range int64(6) {
		wg.Go(func() {
			for {
				p, err := r.archiver(500+100*i).Archive(t.Context(), r.target(), r.kafka.snapshot())
				if err != nil {
					t.Error(err)
				}
				if p.Next == r.kafka.log.End {
					return
				}
			}
		})
	}
	wg.Wait()
	r.store = r.vault
	r.sound()
	if got, want := r.held(), r.appended(); !slices.Equal(got, want) {
		t.Errorf("the chain holds %v, the log %v", got, want)
	}
}

// slowVault takes a moment for each put.
type slowVault struct{ *vault }

func (s *slowVault) Put(ctx context.Context, key string, body []byte) error {
	time.Sleep(time.Millisecond)
	return s.vault.Put(ctx, key, body)
}

func (s *slowVault) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	time.Sleep(time.Millisecond)
	return s.vault.PutIfAbsent(ctx, key, body)
}

// Whatever a request comes to, and whenever the archiver ends, the chain is the
// same in the end.
func TestCrashesLeaveAChain(t *testing.T) {
	for seed := range uint64(20) {
		r := newRig(t)
		memory := objstore.NewMemory()
		faulty := objstore.NewFaulty(memory)
		r.store = faulty
		rnd := rand.New(rand.NewPCG(seed, 1))
		var mu sync.Mutex
		faulty.Decide(func(objstore.Op, string) objstore.Fault {
			mu.Lock()
			defer mu.Unlock()
			switch rnd.IntN(6) {
			case 0:
				return objstore.Fault{Err: objstore.ErrUnavailable}
			case 1:
				return objstore.Fault{Lost: true}
			}
			return objstore.Fault{}
		})
		failed := 0
		for range 8 {
			r.fill(10)
			for {
				// A new archiver each time: what it had in memory is gone.
				p, err := r.archiver(500).Archive(t.Context(), r.target(), r.kafka.snapshot())
				if err == nil && p.Next == r.kafka.log.End {
					break
				}
				failed++
			}
		}
		faulty.Decide(nil)
		if failed == 0 {
			t.Error("nothing went wrong")
		}
		r.sound()
		if got, want := r.held(), r.appended(); !slices.Equal(got, want) {
			t.Fatalf("seed %d: the chain holds %v, the log %v", seed, got, want)
		}
	}
}

func TestWhatTheLogNoLongerHeldIsSaid(t *testing.T) {
	r := newRig(t)
	r.fill(10)
	r.kafka.removeTo(5)
	p := r.archive(1 << 20)
	if p.Gap == 0 {
		t.Errorf("%+v", p)
	}
	first := r.sound().Gaps
	if len(first) != 1 || first[0].From != 0 || first[0].Why != WhyBefore {
		t.Errorf("gaps %+v", first)
	}
	r.fill(20)
	middle := r.kafka.log.End - 10
	r.kafka.removeTo(middle)
	r.archive(1 << 20)
	gaps := r.sound().Gaps
	if len(gaps) != 2 || gaps[1].From != p.Next || gaps[1].To > middle || gaps[1].Why != WhyRemoved {
		t.Errorf("gaps %+v after %d, removed to %d", gaps, p.Next, middle)
	}
	// Everything that was not archived is removed, and nothing follows.
	r.fill(5)
	end := r.kafka.log.End
	r.kafka.removeTo(end)
	p = r.archive(1 << 20)
	gaps = r.sound().Gaps
	if len(gaps) != 3 || gaps[2].To != end || p.Next != end {
		t.Errorf("gaps %+v", gaps)
	}
	r.fill(5)
	if p := r.archive(1 << 20); p.Gap != 0 || p.Next != r.kafka.log.End {
		t.Errorf("%+v", p)
	}
	r.sound()
}

func TestWhatKafkaLosesIsKept(t *testing.T) {
	r := newRig(t)
	r.fill(20)
	r.kafka.epoch = 2
	r.fill(20)
	r.archive(600)
	before := r.held()
	// The new leader lacks the last batches of epoch 2; one more election, without
	// records, changes nothing of that.
	lost := r.kafka.batches[len(r.kafka.batches)-3].BaseOffset()
	next := r.kafka.log.End
	r.kafka.lose(lost)
	r.kafka.epoch++
	r.fill(1)
	r.archive(600)
	report := r.sound()
	if len(report.Rewinds) != 1 || report.Rewinds[0] != (Rewind{next, lost}) {
		t.Errorf("rewinds %+v, want %d back to %d", report.Rewinds, next, lost)
	}
	if got := r.held(); !slices.Equal(got[:len(before)], before) {
		t.Error("the archive does not hold any more what it held")
	}
	// Kafka is compared with what it has not lost.
	found, compared := r.compare(report)
	if len(found) > 0 || compared != len(r.kafka.batches) {
		t.Errorf("%d of %d batches compared: %+v", compared, len(r.kafka.batches), found)
	}
}

func (r *rig) compare(report *Report) (found []Finding, compared int) {
	r.t.Helper()
	v := r.verifier()
	v.Each = func(ctx context.Context, h Header, batches []byte) error {
		f, n, err := report.Compare(ctx, r.kafka, plain{}, r.kafka.snapshot(), h, batches)
		found, compared = append(found, f...), compared+n
		return err
	}
	if _, err := v.Chain(context.Background(), r.chain()); err != nil {
		r.t.Fatal(err)
	}
	return found, compared
}

// A leader whose log holds other records at the same offsets, from an epoch
// between: the chain's end of the common epoch counts, not the leader's.
func TestAnotherHistoryBeginsWhereTheCommonOneEnds(t *testing.T) {
	r := newRig(t)
	r.fill(5)
	common := r.kafka.log.End
	r.kafka.epoch = 3
	r.fill(10)
	r.archive(400)
	r.kafka.lose(common)
	r.kafka.epoch = 1 // the same epoch goes on beyond where the chain has epoch 3
	r.fill(5)
	r.kafka.epoch = 4
	r.fill(10)
	r.archive(400)
	report := r.sound()
	if len(report.Rewinds) != 1 || report.Rewinds[0].To != common {
		t.Errorf("rewinds %+v, want to %d", report.Rewinds, common)
	}
	if found, compared := r.compare(report); len(found) > 0 || compared != len(r.kafka.batches) {
		t.Errorf("%d of %d: %+v", compared, len(r.kafka.batches), found)
	}
}

func TestKafkaThatDiffersIsFound(t *testing.T) {
	r := newRig(t)
	r.fill(10)
	r.archive(1000)
	report := r.sound()
	other := r.kafka.batches[4]
	other[len(other)-1] ^= 1
	other.SetCRC(other.ComputeCRC())
	found, _ := r.compare(report)
	if len(found) != 1 || found[0].Offset != other.BaseOffset() {
		t.Errorf("%+v", found)
	}
}

func TestADamagedBatchStopsTheArchive(t *testing.T) {
	r := newRig(t)
	r.fill(10)
	bad := r.kafka.batches[6]
	bad[len(bad)-1] ^= 1
	p, err := r.archiver(1<<20).Archive(t.Context(), r.target(), r.kafka.snapshot())
	if !errors.Is(err, ErrStuck) || p.Next != bad.BaseOffset() {
		t.Errorf("%+v, %v", p, err)
	}
	r.sound() // what is before it is archived
}

// garbling is a disk that has spoilt where a batch says that it ends.
type garbling struct {
	*kafka
	at int64
}

func (g garbling) Fetch(ctx context.Context, l Log, offset int64, maxBytes int32) ([]byte, error) {
	records, err := g.kafka.Fetch(ctx, l, offset, maxBytes)
	for rest := records; ; {
		b, more, ok := wire.NextBatch(rest)
		if !ok {
			return records, err
		}
		if rest = more; b.BaseOffset() == g.at {
			b.SetLastOffsetDelta(-1000)
		}
	}
}

// A garbled batch that says that it ends before it begins is no hole in the log.
func TestABatchThatEndsNowhereStopsTheArchive(t *testing.T) {
	r := newRig(t)
	r.fill(10)
	at := r.kafka.batches[6].BaseOffset()
	p, err := New(Options{ClusterID: cluster, Kafka: garbling{r.kafka, at}, Payloads: plain{}, ObjectBytes: 1 << 20, Logger: zerolog.Nop()}).Archive(t.Context(), r.target(), r.kafka.snapshot())
	if !errors.Is(err, ErrStuck) || p.Next != at {
		t.Errorf("%+v, %v", p, err)
	}
	if report := r.sound(); len(report.Gaps) > 0 {
		t.Errorf("gaps: %+v", report.Gaps)
	}
}

// slow is a leader that does not give its last batches yet, as one that was just
// elected.
type slow struct{ *kafka }

func (slow) Fetch(context.Context, Log, int64, int32) ([]byte, error) { return nil, nil }

// A log that begins in the middle of a batch, which its leader does not give yet, is
// archived as soon as it does.
func TestABatchThatHoldsTheLogsStartComesLater(t *testing.T) {
	r := newRig(t)
	r.fill(3)
	r.archive(1 << 20)
	at := r.kafka.append(-1, 0, rec{"k", "a"}, rec{"k", "b"}, rec{"k", "c"}, rec{"k", "d"})
	r.kafka.removeTo(at + 2)
	if _, err := New(Options{ClusterID: cluster, Kafka: slow{r.kafka}, Payloads: plain{}, ObjectBytes: 1 << 20, Logger: zerolog.Nop()}).Archive(t.Context(), r.target(), r.kafka.snapshot()); err != nil {
		t.Fatal(err)
	}
	if p := r.archive(1 << 20); p.Next != at+4 {
		t.Errorf("%+v", p)
	}
	if report := r.sound(); report.Batches != 4 {
		t.Errorf("%+v", report)
	}
}

// tamperings are what somebody may do to a chain of 9 objects.
var tamperings = []struct {
	name    string
	locked  bool // done through the store's interface, under lock; else behind it, on a store without
	do      func(r *rig, keys []string)
	at      int    // the object where it must be found; -1: see expect
	problem string // what must be said
	anchor  bool   // found only by who has noted the end
}{
	{"a bit of a record", false, func(r *rig, k []string) {
		r.edit(k[4], func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	}, 4, "CRC", false},
	{"a bit of a batch's header, which no CRC covers", false, func(r *rig, k []string) {
		r.edit(k[4], func(b []byte) []byte { b[bytes.IndexByte(b[len(magic):], '\n')+len(magic)+1+15] ^= 1; return b })
	}, 5, "SHA-256", false},
	{"a record, with its CRC", false, func(r *rig, k []string) {
		r.edit(k[4], func(b []byte) []byte {
			_, batches, _ := parseHeader(b)
			first, _, _ := wire.NextBatch(batches)
			first[len(first)-1] ^= 1
			first.SetCRC(first.ComputeCRC())
			return b
		})
	}, 5, "SHA-256", false},
	{"the time in a header", false, func(r *rig, k []string) {
		r.edit(k[4], func(b []byte) []byte {
			h, batches, _ := parseHeader(b)
			h.Written = h.Written.Add(time.Second)
			out, _ := encode(h, batches)
			return out
		})
	}, 5, "SHA-256", false},
	{"an object cut short", false, func(r *rig, k []string) {
		r.edit(k[4], func(b []byte) []byte { return b[:len(b)-30] })
	}, 4, "bytes of batches", false},
	{"a batch taken out, and the header set right", false, func(r *rig, k []string) {
		r.edit(k[4], func(b []byte) []byte {
			h, batches, _ := parseHeader(b)
			first, rest, _ := wire.NextBatch(batches)
			h.Bytes, h.Batches = h.Bytes-int64(len(first)), h.Batches-1
			out, _ := encode(h, rest)
			return out
		})
	}, 4, "follows", false},
	{"an object from the middle", false, func(r *rig, k []string) { r.remove(k[4]) }, 5, "objects 4 to 4 before it are missing", false},
	{"three objects from the middle", false, func(r *rig, k []string) { r.remove(k[3], k[4], k[5]) }, 6, "objects 3 to 5 before it are missing", false},
	{"the beginning", false, func(r *rig, k []string) { r.remove(k[0], k[1]) }, 2, "objects 0 to 1 before it are missing", false},
	{"the end", false, func(r *rig, k []string) { r.remove(k[7], k[8]) }, -1, "", true},
	{"everything", false, func(r *rig, k []string) { r.remove(k...) }, -1, "", true},
	{"two objects put in each other's place", false, func(r *rig, k []string) {
		a, b := r.body(k[3]), r.body(k[4])
		r.replace(k[3], b)
		r.replace(k[4], a)
	}, 3, "belongs elsewhere", false},
	{"two objects swapped, with their numbers", false, func(r *rig, k []string) {
		a, b := r.body(k[3]), r.body(k[4])
		ha, ba, _ := parseHeader(a)
		hb, bb, _ := parseHeader(b)
		ha.Number, hb.Number = hb.Number, ha.Number
		r.encode(k[3], hb, bb)
		r.encode(k[4], ha, ba)
	}, 3, "SHA-256", false},
	{"an object twice", false, func(r *rig, k []string) { r.replace(k[5], r.body(k[4])) }, 5, "belongs elsewhere", false},
	{"another topic's object", false, func(r *rig, k []string) {
		h, batches, _ := parseHeader(r.body(k[4]))
		h.Topic = "another"
		r.encode(k[4], h, batches)
	}, 4, "belongs elsewhere", false},
	{"another cluster's chain", false, func(r *rig, k []string) {
		for _, key := range k {
			h, batches, _ := parseHeader(r.body(key))
			h.ClusterID = "cluster-B"
			r.encode(key, h, batches)
		}
	}, 0, "belongs elsewhere", false},
	{"all hashes forged behind an altered record", false, func(r *rig, k []string) { r.forge(k, 4) }, -1, "", true},
	{"an object taken out, and all behind it numbered and hashed anew", false, func(r *rig, k []string) {
		previous := Hash(r.body(k[3]))
		for i := 5; i < len(k); i++ {
			h, batches, _ := parseHeader(r.body(k[i]))
			h.Number, h.Previous = h.Number-1, previous
			r.encode(k[i-1], h, batches)
			previous = Hash(r.body(k[i-1]))
		}
		r.remove(k[8])
	}, 4, "the object before it ends at", false},
	{"garbage at the end", false, func(r *rig, k []string) { r.replace(r.chain().Key(9), []byte("garbage")) }, 9, "does not begin", false},

	{"an object written over", true, func(r *rig, k []string) {
		b := r.body(k[4])
		b[len(b)-1] ^= 1
		_ = r.vault.Put(context.Background(), k[4], b)
	}, 4, "written over", false},
	{"an object deleted from the middle", true, func(r *rig, k []string) { _ = r.vault.Delete(context.Background(), k[4]) }, 4, "hidden", false},
	{"the end deleted", true, func(r *rig, k []string) { _ = r.vault.Delete(context.Background(), k[8]) }, 8, "hidden", false},
	{"everything deleted", true, func(r *rig, k []string) {
		for _, key := range k {
			_ = r.vault.Delete(context.Background(), key)
		}
	}, 0, "hidden", false},
	{"all hashes forged, over what is locked", true, func(r *rig, k []string) { r.forge(k, 4) }, 4, "written over", false},
	{"an object that was never locked", true, func(r *rig, k []string) { r.vault.versions[k[6]][0].lock = objstore.Lock{} }, 6, "not locked", false},
	{"a lock that ends too early", true, func(r *rig, k []string) {
		r.vault.versions[k[6]][0].lock.Until = time.Now().Add(time.Hour)
	}, 6, "was to last", false},
}

func (r *rig) body(key string) []byte {
	b, err := r.store.Get(context.Background(), key, 0, -1)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *rig) replace(key string, body []byte) {
	if err := r.store.Put(context.Background(), key, body); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) edit(key string, fn func([]byte) []byte) { r.replace(key, fn(r.body(key))) }

func (r *rig) encode(key string, h Header, batches []byte) {
	b, err := encode(h, batches)
	if err != nil {
		r.t.Fatal(err)
	}
	r.replace(key, b)
}

func (r *rig) remove(keys ...string) {
	for _, k := range keys {
		if err := r.store.Delete(context.Background(), k); err != nil {
			r.t.Fatal(err)
		}
	}
}

// forge alters a record, its CRC, and every hash behind it.
func (r *rig) forge(keys []string, from int) {
	previous := ""
	for i, key := range keys {
		body := r.body(key)
		if i >= from {
			h, batches, _ := parseHeader(body)
			if i == from {
				b, _, _ := wire.NextBatch(batches)
				b[len(b)-1] ^= 1
				b.SetCRC(b.ComputeCRC())
			}
			h.Previous = previous
			r.encode(key, h, batches)
			body = r.body(key)
		}
		previous = Hash(body)
	}
}

func TestTampering(t *testing.T) {
	for _, c := range tamperings {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			if !c.locked {
				r.store = objstore.NewMemory()
			}
			for range 9 {
				r.fill(5)
				r.archive(1 << 20)
			}
			untouched := r.sound()
			var keys []string
			if err := r.store.List(t.Context(), r.chain().prefix(), "", func(i objstore.Info) error { keys = append(keys, i.Key); return nil }); err != nil || len(keys) != 9 {
				t.Fatal(keys, err)
			}
			end := []string{untouched.Head.SHA256}
			if missing := Missing([]*Report{untouched}, end); len(missing) > 0 {
				t.Fatal("the end as it is counts as missing")
			}
			c.do(r, keys)
			report := r.verify()
			if c.anchor {
				if len(report.Findings) > 0 {
					t.Errorf("found without an anchor, which the docs say cannot be: %+v", report.Findings)
				}
				if missing := Missing([]*Report{report}, end); !slices.Equal(missing, end) {
					t.Error("not found with the end's hash")
				}
				return
			}
			if len(report.Findings) == 0 {
				t.Fatal("not found")
			}
			f := report.Findings[0]
			if f.Object != r.chain().Key(int64(c.at)) || !strings.Contains(f.Problem, c.problem) {
				t.Errorf("found %+v, want %q at object %d", f, c.problem, c.at)
			}
			// An export of what is not sound is none.
			x := &Exporter{Verifier: r.verifier(), Dir: t.TempDir()}
			if _, _, err := x.Chain(t.Context(), r.chain(), Range{ToOffset: -1}); !errors.Is(err, ErrExport) {
				t.Errorf("exported: %v", err)
			}
		})
	}
}

// What a lock has let go may be removed from the beginning.
func TestAChainMayLoseItsBeginningAfterItsLock(t *testing.T) {
	r := newRig(t)
	r.store = objstore.NewMemory()
	for range 4 {
		r.fill(5)
		r.archive(1 << 20)
	}
	r.remove(r.chain().Key(0), r.chain().Key(1))
	v := r.verifier()
	v.Now = time.Now().Add(2 * retention)
	report, err := v.Chain(t.Context(), r.chain())
	if err != nil || len(report.Findings) > 0 || len(report.Notes) != 1 {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestChainsAreListedByTopic(t *testing.T) {
	r := newRig(t)
	r.fill(5)
	r.archive(1 << 20)
	hidden := *r
	hidden.kafka = newKafka("audit-hidden")
	hidden.kafka.log.ID[3] = 9
	hidden.fill(5)
	hidden.archive(1 << 20)
	_ = r.vault.Delete(t.Context(), hidden.chain().Key(0))
	r.replace(Prefix+"odd", []byte("x"))
	chains, findings, err := r.verifier().Chains(t.Context())
	if err != nil || len(chains) != 2 || chains[r.chain()] != "audit-trades" {
		t.Errorf("%v, %v", chains, err)
	}
	if _, ok := chains[hidden.chain()]; !ok {
		t.Error("a chain that is hidden as a whole is not listed")
	}
	if len(findings) != 1 || findings[0].Object != Prefix+"odd" {
		t.Errorf("%+v", findings)
	}
}

func export(t *testing.T, r *rig, rng Range) (string, *Partition) {
	t.Helper()
	x := &Exporter{Verifier: r.verifier(), Dir: filepath.Join(t.TempDir(), "export")}
	if err := x.Prepare(); err != nil {
		t.Fatal(err)
	}
	p, _, err := x.Chain(t.Context(), r.chain(), rng)
	if err != nil || p == nil {
		t.Fatal(p, err)
	}
	if _, err := x.Finish(Manifest{ClusterID: cluster, Topic: r.kafka.log.Topic, Exported: time.Now(), Partitions: []Partition{*p}}); err != nil {
		t.Fatal(err)
	}
	return x.Dir, p
}

func exportFindings(t *testing.T, dir string) (all []Finding) {
	t.Helper()
	reports, _, err := VerifyExport(dir, time.Now())
	if err != nil {
		return []Finding{{Problem: err.Error()}}
	}
	for _, r := range reports {
		all = append(all, r.Findings...)
	}
	return all
}

func TestExport(t *testing.T) {
	r := newRig(t)
	for range 6 {
		r.fill(10)
		r.archive(1 << 20)
	}
	open := r.kafka.append(99, wire.AttrTransactional, rec{"o", "left open"}, rec{"\xff", "not UTF-8 in its key"})
	r.archive(1 << 20)
	dir, p := export(t, r, Range{ToOffset: -1})
	if found := exportFindings(t, dir); len(found) > 0 {
		t.Fatalf("found %+v", found)
	}
	body, err := os.ReadFile(filepath.Join(dir, p.File.Name))
	if err != nil {
		t.Fatal(err)
	}
	outcomes := map[Outcome]int{}
	var records []Record
	for line := range bytes.Lines(body) {
		var one Record
		if err := json.Unmarshal(line, &one); err != nil {
			t.Fatal(err)
		}
		outcomes[one.Transaction]++
		records = append(records, one)
	}
	// Of each five batches: two plain records, one of a transaction that is
	// committed, one of one that is aborted.
	if outcomes[""] != 24 || outcomes[Committed] != 12 || outcomes[Aborted] != 12 || outcomes[Open] != 2 || p.Records != 50 {
		t.Errorf("%d records: %v", p.Records, outcomes)
	}
	if first := records[0]; first.Offset != 0 || *first.Key != "k" || *first.Value != "plain" || first.Timestamp != "2025-10-09T08:53:20.000Z" || *first.Headers[0].Value != "v" || first.ProducerID != nil {
		t.Errorf("the first record is %+v", first)
	}
	last := records[len(records)-1]
	if last.Offset != open+1 || last.Key != nil || last.KeyBase64 != "/w==" || *last.ProducerID != 99 || *last.Sequence != int32(open+1) {
		t.Errorf("the last record is %+v", last)
	}

	t.Run("a part, with what says how its transactions ended", func(t *testing.T) {
		// One record of a transaction in the second object, whose end is there too.
		from := r.kafka.batches[11].BaseOffset()
		dir, p := export(t, r, Range{FromOffset: from, ToOffset: from + 1})
		if found := exportFindings(t, dir); len(found) > 0 || p.Records != 1 || len(p.Objects) != 1 || p.First != 1 {
			t.Errorf("%+v: %+v", p, found)
		}
	})
	t.Run("by time", func(t *testing.T) {
		at := time.UnixMilli(1_760_000_000_000 + 10)
		dir, p := export(t, r, Range{ToOffset: -1, From: at, To: at.Add(5 * time.Millisecond)})
		if found := exportFindings(t, dir); len(found) > 0 || p.Records == 0 || p.Records > 5 {
			t.Errorf("%+v: %+v", p, found)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		x := &Exporter{Verifier: r.verifier(), Dir: t.TempDir()}
		if p, _, err := x.Chain(t.Context(), r.chain(), Range{FromOffset: 1 << 40, ToOffset: -1}); p != nil || err != nil {
			t.Errorf("%+v, %v", p, err)
		}
	})
	t.Run("into what is there", func(t *testing.T) {
		if err := (&Exporter{Dir: dir}).Prepare(); !errors.Is(err, ErrExport) {
			t.Error(err)
		}
	})
}

// Timestamps are the producer's, in any order, or the broker's: an object that
// seems to be behind a time may hold records before it.
func TestExportByTimeLeavesNothingOut(t *testing.T) {
	const at = 1_760_000_000_000
	r := newRig(t)
	add := func(b wire.Batch, first, latest int64) {
		b.SetFirstTimestamp(first)
		b.SetMaxTimestamp(latest)
		b.SetCRC(b.ComputeCRC())
		r.archive(1 << 20)
	}
	last := func() wire.Batch { return r.kafka.batches[len(r.kafka.batches)-1] }
	r.kafka.append(-1, 0, rec{"k", "in time"})
	add(last(), at, at)
	r.kafka.append(-1, wire.AttrLogAppendTime, rec{"k", "of a producer whose clock is ahead"})
	add(last(), at+10_000_000, at+1)
	r.kafka.append(-1, 0, rec{"k", "later"})
	add(last(), at+20_000_000, at+20_000_000)
	// The second record is before the first.
	r.kafka.append(-1, 0, rec{"k", "later, too"}, rec{"k", "in time, behind a later one"})
	b := last()
	var body []byte
	for i, delta := range []int64{0, -30_000_000 + 2} {
		one := kmsg.Record{TimestampDelta64: delta, OffsetDelta: int32(i), Value: []byte("v")}
		rest := one.AppendTo(nil)[1:]
		body = append(binary.AppendVarint(body, int64(len(rest))), rest...)
	}
	b = append(b[:wire.BatchHeaderSize:wire.BatchHeaderSize], body...)
	b.SetLength(int32(len(b) - wire.LogOverhead))
	r.kafka.batches[len(r.kafka.batches)-1] = b
	add(b, at+30_000_000, at+30_000_000)
	r.kafka.append(-1, 0, rec{"k", "later"})
	add(last(), at+40_000_000, at+40_000_000)

	dir, p := export(t, r, Range{ToOffset: -1, From: time.UnixMilli(at), To: time.UnixMilli(at + 1000)})
	if found := exportFindings(t, dir); len(found) > 0 || p.Records != 3 || len(p.Objects) != 4 {
		t.Errorf("%d records in %d objects: %+v", p.Records, len(p.Objects), found)
	}
}

// A class that was given another store has two chains of each partition.
func TestExportFromTwoStores(t *testing.T) {
	r := newRig(t)
	x := &Exporter{Dir: filepath.Join(t.TempDir(), "export")}
	if err := x.Prepare(); err != nil {
		t.Fatal(err)
	}
	m := Manifest{ClusterID: cluster, Topic: r.kafka.log.Topic, Exported: time.Now()}
	for range 2 {
		r.fill(10)
		r.archive(1 << 20)
		x.Verifier = r.verifier()
		p, _, err := x.Chain(t.Context(), r.chain(), Range{ToOffset: -1})
		if err != nil {
			t.Fatal(err)
		}
		m.Partitions = append(m.Partitions, *p)
		r.vault = newVault()
		r.store = r.vault
	}
	if _, err := x.Finish(m); err != nil {
		t.Fatal(err)
	}
	if found := exportFindings(t, x.Dir); len(found) > 0 || m.Partitions[0].Records == 0 || m.Partitions[1].Records != 2*m.Partitions[0].Records {
		t.Errorf("%+v", found)
	}
}

// Each file of an export, changed, removed and added to.
func TestExportTampering(t *testing.T) {
	r := newRig(t)
	for range 4 {
		r.fill(10)
		r.archive(1 << 20)
	}
	_, p := export(t, r, Range{ToOffset: -1})
	names := []string{p.File.Name}
	for _, o := range p.Objects {
		names = append(names, o.Name)
	}
	change := func(name string, fn func([]byte) []byte) func(string) error {
		return func(dir string) error {
			path := filepath.Join(dir, name)
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, fn(b), 0o644)
		}
	}
	cases := map[string]func(dir string) error{
		"a file more": func(dir string) error { return os.WriteFile(filepath.Join(dir, "objects", "more"), nil, 0o644) },
		"another topic in the manifest": change(ManifestName, func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"topic": "audit-trades"`), []byte(`"topic": "audit-others"`), 1)
		}),
		"another range in the manifest": change(ManifestName, func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"from_offset": 0`), []byte(`"from_offset": 3`), 1)
		}),
		"a line less": change(p.File.Name, func(b []byte) []byte { return b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1] }),
		"a line more": change(p.File.Name, func(b []byte) []byte { return append(b, "{}\n"...) }),
		"an object less, in the manifest too": func(dir string) error {
			var m Manifest
			return change(ManifestName, func(b []byte) []byte {
				_ = json.Unmarshal(b, &m)
				_ = os.Remove(filepath.Join(dir, m.Partitions[0].Objects[1].Name))
				m.Partitions[0].Objects = slices.Delete(m.Partitions[0].Objects, 1, 2)
				out, _ := json.Marshal(m)
				return out
			})(dir)
		},
		"a bit that no CRC covers, in the last object": change(names[len(names)-1], func(b []byte) []byte {
			b[bytes.IndexByte(b[len(magic):], '\n')+len(magic)+1+15] ^= 1
			return b
		}),
		"another hash of the records": change(ManifestName, func(b []byte) []byte {
			return bytes.Replace(b, []byte(p.File.SHA256), []byte(strings.Repeat("0", 64)), 1)
		}),
		"the records outside": func(dir string) error {
			if err := os.Rename(filepath.Join(dir, p.File.Name), filepath.Join(filepath.Dir(dir), p.File.Name)); err != nil {
				return err
			}
			return change(ManifestName, func(b []byte) []byte {
				return bytes.Replace(b, []byte(`"`+p.File.Name), []byte(`"../`+p.File.Name), 1)
			})(dir)
		},
		"no objects in the manifest": func(dir string) error {
			var m Manifest
			return change(ManifestName, func(b []byte) []byte {
				_ = json.Unmarshal(b, &m)
				m.Partitions[0].Objects, m.Partitions[0].First, m.Topic = nil, m.Partitions[0].Head.Number+1, ""
				out, _ := json.Marshal(m)
				return out
			})(dir)
		},
		"a file outside": change(ManifestName, func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"objects/`), []byte(`"../objects/`), 1)
		}),
	}
	for _, name := range names {
		cases["a bit of "+name] = change(name, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		cases["without "+name] = func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	for name, do := range cases {
		t.Run(name, func(t *testing.T) {
			dir, _ := export(t, r, Range{ToOffset: -1})
			if found := exportFindings(t, dir); len(found) > 0 {
				t.Fatalf("untouched: %+v", found)
			}
			if err := do(dir); err != nil {
				t.Fatal(err)
			}
			if found := exportFindings(t, dir); len(found) == 0 {
				t.Error("not found")
			}
		})
	}
}
