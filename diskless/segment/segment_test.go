package segment

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/diskless/footer"
	"github.com/sluice-kafka/sluice/diskless/objstore"
)

func id(ms uint64, n byte) ulid.ULID {
	u := ulid.ULID{15: n}
	if err := u.SetTime(ms); err != nil {
		panic(err)
	}
	return u
}

// The bytes of the format: what is in users' buckets must not change.
const (
	goldenSegment = "68656c6c6f616263" + "7879" + // hello, abc, xy
		"02" + "0000000f424000000000000000000001" + "0000000f424100000000000000000002" +
		"0162" + "00" + "01" + "00" + "05" + "05" + "64" + "00" + "00" + "00" + "deadbeef" +
		"046f74656c" + "07" + "02" + "00" + "0a" + "03" + "01" + "a923" + "03" + "0a" + "00000001" + "01" + "00" + "02" + "02" + "01" + "01" + "01" + "00000002" +
		"0000004e" + "eeef128d" + "01" + "736c7569636553"
	goldenManifest = "0000000f424200000000000000000003" +
		"02" + "0000000f424000000000000000000001" + "8001" + "0000000f424100000000000000000002" + "14" +
		"01" + "68" + "5e" + "05" + "03" + "0162" + "00" + "046f74656c" + "07" +
		"00000042" + "c651a00f" + "01" + "736c756963654d"
)

func goldenEntries() []Entry {
	return []Entry{
		{Topic: "b", Partition: 0, Object: id(1_000_000, 1), ObjectOffset: 5, Length: 5, Records: 100, ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, CRC: 0xdeadbeef},
		{Topic: "otel", Partition: 7, Object: id(1_000_000, 1), ObjectOffset: 10, Length: 3, Records: 1, ProducerID: 4520, ProducerEpoch: 2, BaseSequence: 9, CRC: 1, Position: 5},
		{Topic: "otel", Partition: 7, Object: id(1_000_001, 2), ObjectOffset: 0, Length: 2, Records: 2, ProducerID: 0, ProducerEpoch: 0, BaseSequence: 0, CRC: 2, Position: 8},
	}
}

func goldenList() *Manifest {
	return &Manifest{Level: Level1, Run: id(1_000_002, 3), Objects: []Object{{id(1_000_000, 1), 128}, {id(1_000_001, 2), 20}},
		Segments: []Info{{Size: 104, FooterSize: 94, Bucket: 5, Batches: 3, First: Place{"b", 0}, Last: Place{"otel", 7}}}}
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func TestSegmentFormat(t *testing.T) {
	want := unhex(goldenSegment)
	got, err := AppendFooter([]byte("helloabcxy"), goldenEntries())
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%v: a segment is\n%x, want\n%x", err, got, want)
	}
	for from := range 10 + 1 { // any end that holds the footer will do
		f, err := ParseFooter(want[from:], int64(len(want)))
		if err != nil {
			t.Fatal(from, err)
		}
		if got := slices.Collect(f.Entries()); !reflect.DeepEqual(got, goldenEntries()) {
			t.Fatalf("from %d: %+v", from, got)
		}
		if f.Batches() != 3 || f.Payload() != 10 || !slices.Equal(f.Objects(), []ulid.ULID{id(1_000_000, 1), id(1_000_001, 2)}) {
			t.Fatalf("%+v", f)
		}
	}
	for i := 10; i < len(want); i++ {
		bad := bytes.Clone(want)
		bad[i] ^= 0x10
		if _, err := ParseFooter(bad, int64(len(bad))); !errors.Is(err, ErrGarbled) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := ParseFooter(want[i+1:], int64(len(want))); !errors.Is(err, ErrGarbled) {
			t.Errorf("only the last %d bytes: %v", len(want)-i-1, err)
		}
	}
	if _, err := ParseFooter(want, int64(len(want))+1); !errors.Is(err, ErrGarbled) {
		t.Errorf("a byte is missing before the end: %v", err)
	}
}

func TestManifestFormat(t *testing.T) {
	m := goldenList()
	want := unhex(goldenManifest)
	got, err := m.Encode()
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%v: a manifest is\n%x, want\n%x", err, got, want)
	}
	back, err := ParseManifest(want, m.Window())
	if err != nil || !reflect.DeepEqual(back, m) {
		t.Fatalf("%+v: %v", back, err)
	}
	for i := range want {
		bad := bytes.Clone(want)
		bad[i] ^= 0x10
		if _, err := ParseManifest(bad, m.Window()); !errors.Is(err, ErrGarbled) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := ParseManifest(want[i+1:], m.Window()); !errors.Is(err, ErrGarbled) {
			t.Errorf("only the last %d bytes: %v", len(want)-i-1, err)
		}
	}
	if _, err := ParseManifest(append([]byte{0}, want...), m.Window()); !errors.Is(err, ErrGarbled) {
		t.Errorf("a byte too many: %v", err)
	}
	other := m.Window()
	other.Last[15]++
	if _, err := ParseManifest(want, other); !errors.Is(err, ErrGarbled) {
		t.Errorf("under another name: %v", err)
	}
}

func TestKeys(t *testing.T) {
	at := time.Date(2026, 11, 26, 15, 59, 59, 999e6, time.UTC)
	a, b := id(ulid.Timestamp(at), 1), id(ulid.Timestamp(at), 2)
	w := Window{Level1, a, b}
	if want := "segments/windows/1/20261126T15/" + a.String() + "-" + b.String(); w.Key() != want {
		t.Fatalf("%s, want %s", w.Key(), want)
	}
	day := Window{Level2, a, b}
	if want := "segments/windows/2/20261126/" + a.String() + "-" + b.String(); day.Key() != want {
		t.Fatalf("%s, want %s", day.Key(), want)
	}
	if want := "segments/data/" + a.String() + "-00012"; DataKey(a, 12) != want {
		t.Fatal(DataKey(a, 12))
	}
	for _, w := range []Window{w, day} {
		if got, ok := ParseWindowKey(w.Key()); !ok || got != w {
			t.Fatalf("%v %v", got, ok)
		}
		if !strings.HasPrefix(w.Key(), FolderPrefix(w.Level, at)) {
			t.Fatal(w.Key())
		}
	}
	for _, n := range []int{0, 7, 99_999, 100_000} {
		if run, got, ok := ParseDataKey(DataKey(a, n)); !ok || run != a || got != n {
			t.Fatal(run, got, ok)
		}
	}
	later := id(ulid.Timestamp(at.Add(time.Millisecond)), 0)
	for _, bad := range []string{
		"", "wal/" + a.String(), w.Key() + "x", w.Key() + "/x", "x" + w.Key(), strings.ToLower(w.Key()), strings.Replace(w.Key(), "T15", "T14", 1),
		strings.Replace(w.Key(), "/1/", "/01/", 1), strings.Replace(w.Key(), "/1/", "/3/", 1), strings.Replace(w.Key(), "/1/", "/0/", 1),
		Window{Level1, b, a}.Key(), Window{Level1, a, later}.Key(), "segments/windows/", "segments/windows/1/20261126T15/",
		strings.Replace(w.Key(), a.String(), "U"+a.String()[1:], 1),
	} {
		if w, ok := ParseWindowKey(bad); ok {
			t.Errorf("%q is %v", bad, w)
		}
	}
	for _, bad := range []string{"", DataPrefix, DataKey(a, 1) + "1x", DataKey(a, -1), DataPrefix + a.String() + "-1", DataPrefix + a.String() + "-+0001", strings.ToLower(DataKey(a, 1)), DataKey(a, 1) + "/"} {
		if run, n, ok := ParseDataKey(bad); ok {
			t.Errorf("%q is %v %d", bad, run, n)
		}
	}
	if !w.Spans(a) || !w.Spans(b) || w.Spans(later) || w.Spans(id(0, 0)) {
		t.Error("Spans")
	}
}

func TestBuckets(t *testing.T) {
	for _, c := range []struct {
		d    time.Duration
		want Bucket
		text string
	}{
		{-1, Forever, "forever"}, {0, 0, "≤1h"}, {time.Hour, 0, "≤1h"}, {time.Hour + 1, 1, "≤2h"}, {2 * time.Hour, 1, "≤2h"}, {3 * time.Hour, 2, "≤4h"},
		{24 * time.Hour, 5, "≤32h"}, {7 * 24 * time.Hour, 8, "≤256h"}, {math.MaxInt64, 22, "≤4194304h"},
	} {
		if got := BucketOf(c.d); got != c.want || got.String() != c.text {
			t.Errorf("%v: %d %s, want %d %s", c.d, got, got, c.want, c.text)
		}
	}
}

// TestSteps: of two times in one step of a bucket, one is longer by at most a 16th, or
// an hour; and a bucket has no more than 16.
func TestSteps(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a := time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(rt, "a") >> rapid.IntRange(0, 30).Draw(rt, "shorter"))
		b := a + time.Duration(rapid.Int64Range(0, min(int64(a/4), math.MaxInt64-int64(a))).Draw(rt, "more"))
		if StepOf(a) > 15 || StepOf(b) > 15 {
			rt.Fatalf("%v is in step %d, %v in step %d", a, StepOf(a), b, StepOf(b))
		}
		if BucketOf(a) == BucketOf(b) && (StepOf(a) > StepOf(b) || StepOf(a) == StepOf(b) && b-a > max(a/16, time.Hour)) {
			rt.Fatalf("%v is in step %d, %v in step %d", a, StepOf(a), b, StepOf(b))
		}
	})
	for _, c := range []struct {
		d    time.Duration
		want uint8
	}{{-1, 0}, {0, 0}, {time.Hour, 0}, {2 * time.Hour, 0}, {16*time.Hour + 1, 0}, {17 * time.Hour, 0}, {17*time.Hour + 1, 1}, {24 * time.Hour, 7}, {32 * time.Hour, 15}, {math.MaxInt64, 3}} {
		if got := StepOf(c.d); got != c.want {
			t.Errorf("%v: step %d, want %d", c.d, got, c.want)
		}
	}
}

// drawSegment is a segment of random batches, with its entries.
func drawSegment(rt *rapid.T) ([]byte, []Entry) {
	objects := rapid.SliceOfNDistinct(rapid.Custom(func(rt *rapid.T) ulid.ULID {
		return id(rapid.Uint64Range(0, 3).Draw(rt, "ms"), rapid.Byte().Draw(rt, "n"))
	}), 1, 5, rapid.ID).Draw(rt, "objects")
	var entries []Entry
	for _, o := range objects {
		at := uint64(0)
		for range rapid.IntRange(0, 12).Draw(rt, "batches") {
			at += rapid.Uint64Range(0, 3).Draw(rt, "gap")
			n := rapid.Uint32Range(0, 40).Draw(rt, "length")
			entries = append(entries, Entry{
				Topic: rapid.SampledFrom([]string{"", "a", "b", "otel.ü"}).Draw(rt, "topic"), Partition: rapid.Int32Range(0, 3).Draw(rt, "partition"),
				Object: o, ObjectOffset: at, Length: n, Records: rapid.Int32Min(0).Draw(rt, "records"),
				ProducerID: rapid.SampledFrom([]int64{-1, 0, 5, math.MaxInt64}).Draw(rt, "pid"), ProducerEpoch: rapid.Int16Min(-1).Draw(rt, "epoch"),
				BaseSequence: rapid.Int32Min(-1).Draw(rt, "seq"), CRC: rapid.Uint32().Draw(rt, "crc"),
			})
			at += uint64(n) + 1
		}
	}
	if len(entries) == 0 {
		entries = append(entries, Entry{Topic: "a", Object: objects[0], Length: 1, ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1})
	}
	slices.SortFunc(entries, func(a, b Entry) int { return a.Compare(&b) })
	var body []byte
	for i := range entries {
		entries[i].Position = uint64(len(body))
		body = append(body, bytes.Repeat([]byte{byte(i)}, int(entries[i].Length))...)
	}
	whole, err := AppendFooter(body, entries)
	if err != nil {
		rt.Fatal(err)
	}
	return whole, entries
}

func TestSegmentRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		whole, entries := drawSegment(rt)
		f, err := ParseFooter(whole, int64(len(whole)))
		if err != nil {
			rt.Fatal(err)
		}
		if got := slices.Collect(f.Entries()); !reflect.DeepEqual(got, entries) {
			rt.Fatalf("%+v, want %+v", got, entries)
		}
		minChunk := rapid.Int64Range(1, 100).Draw(rt, "min")
		maxChunk := minChunk + rapid.Int64Range(0, 100).Draw(rt, "more")
		x := f.Index(minChunk, maxChunk)
		limit := rapid.Int64Range(1, 2*maxChunk).Draw(rt, "limit")
		for at := int64(0); at < f.Payload(); {
			from, to := x.Chunk(at, limit)
			if from != at || to <= from || to > f.Payload() {
				rt.Fatalf("the piece at %d is [%d, %d)", at, from, to)
			}
			if chunk, end := x.Chunk(at, math.MaxInt64/2); from < chunk || to > end {
				rt.Fatalf("the piece [%d, %d) is not in its chunk [%d, %d)", from, to, chunk, end)
			}
			at = to
		}
		for at := int64(0); at < f.Payload(); {
			from, to := x.Chunk(at, math.MaxInt64/2)
			if from != at || to <= from || to > f.Payload() {
				rt.Fatalf("the chunk at %d is [%d, %d)", at, from, to)
			}
			n, parts := 0, map[Place]bool{}
			for _, e := range entries {
				if int64(e.Position) >= from && int64(e.Position) < to && e.Length > 0 {
					n++
					parts[Place{e.Topic, e.Partition}] = true
				}
			}
			if to-from > maxChunk && n > 1 {
				rt.Fatalf("the chunk [%d, %d) of %d batches is larger than %d", from, to, n, maxChunk)
			}
			at = to
		}
		for _, r := range x.runs {
			if from, to := x.ends(r); to-from >= minChunk {
				if at, _ := x.Chunk(from, math.MaxInt64/2); at != from {
					rt.Fatalf("a partition of %d bytes begins at %d in a chunk that begins at %d", to-from, from, at)
				}
			}
		}
		for _, e := range entries {
			p := Place{e.Topic, e.Partition}
			position, ok := x.Find(p, e.Object, e.ObjectOffset, e.Length, e.CRC)
			if !ok || position != int64(e.Position) {
				rt.Fatalf("%+v is found at %d, %v", e, position, ok)
			}
			if from, to := x.Chunk(position, limit); e.Length > 0 && (position < from || position+int64(e.Length) > to) {
				rt.Fatalf("%+v is not in its chunk [%d, %d)", e, from, to)
			}
			if from, to, ok := x.Range(p); !ok || position < from || position+int64(e.Length) > to {
				rt.Fatalf("%+v is not in its partition's range [%d, %d)", e, from, to)
			}
			other := e.Object
			other[0] ^= 0x40
			for what, found := range map[string]bool{
				"another partition": func() bool { _, ok := x.Find(Place{e.Topic, 9}, e.Object, e.ObjectOffset, e.Length, e.CRC); return ok }(),
				"another topic": func() bool {
					_, ok := x.Find(Place{"c", e.Partition}, e.Object, e.ObjectOffset, e.Length, e.CRC)
					return ok
				}(),
				"another object": func() bool { _, ok := x.Find(p, other, e.ObjectOffset, e.Length, e.CRC); return ok }(),
				"another length": func() bool { _, ok := x.Find(p, e.Object, e.ObjectOffset, e.Length+1, e.CRC); return ok }(),
				"another CRC":    func() bool { _, ok := x.Find(p, e.Object, e.ObjectOffset, e.Length, e.CRC+1); return ok }(),
			} {
				if found {
					rt.Fatalf("%s: %+v is found", what, e)
				}
			}
		}
	})
}

// TestChunks shows what is read at once: partitions that fill a chunk have their
// own, of about one size; smaller ones share.
func TestChunks(t *testing.T) {
	var entries []Entry
	var body []byte
	add := func(partition int32, sizes ...int) {
		for i, n := range sizes {
			entries = append(entries, Entry{Topic: "t", Partition: partition, ObjectOffset: uint64(i * 1000), Length: uint32(n), Position: uint64(len(body))})
			body = append(body, make([]byte, n)...)
		}
	}
	add(0, 3, 3)                      // shares
	add(1, 3)                         // with this one
	add(2, 6, 6)                      // has its own
	add(3, 4, 4, 4, 4, 4, 4, 4, 4, 4) // two of them
	add(4, 100)                       // one batch
	add(5, 1)
	whole, err := AppendFooter(body, entries)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseFooter(whole, int64(len(whole)))
	if err != nil {
		t.Fatal(err)
	}
	x := f.Index(10, 20)
	if got, want := x.chunks, []uint32{0, 9, 21, 41, 57, 157, 158}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// In pieces where memory is short; what is about as large stays whole.
	for limit, want := range map[int64][]int64{
		14: {0, 9, 21, 41, 57, 157, 158},
		13: {0, 9, 21, 33, 41, 57, 157, 158},
		4:  {0, 6, 9, 15, 21, 25, 29, 33, 37, 41, 45, 49, 53, 57, 157, 158},
	} {
		got := []int64{0}
		for at := int64(0); at < f.Payload(); got = append(got, at) {
			_, at = x.Chunk(at, limit)
		}
		if !slices.Equal(got, want) {
			t.Errorf("in pieces of %d: %v, want %v", limit, got, want)
		}
	}
}

func TestEntriesOutOfOrder(t *testing.T) {
	for name, change := range map[string]func(e []Entry){
		"topics":      func(e []Entry) { e[0].Topic = "z" },
		"partitions":  func(e []Entry) { e[2].Partition = 6 },
		"objects":     func(e []Entry) { e[2].Object = id(0, 0) },
		"overlapping": func(e []Entry) { e[2].Object, e[2].ObjectOffset = e[1].Object, e[1].ObjectOffset+2 },
		"twice":       func(e []Entry) { e[2] = e[1] },
		"too long":    func(e []Entry) { e[2].Length++ },
	} {
		e := goldenEntries()
		change(e)
		if b, err := AppendFooter([]byte("helloabcxy"), e); err == nil {
			t.Errorf("%s: %x", name, b)
		}
	}
	if _, err := AppendFooter(nil, nil); err == nil {
		t.Error("an empty segment")
	}
}

func TestManifest(t *testing.T) {
	m := goldenList()
	m.Segments = append(m.Segments, Info{Size: 30, FooterSize: 20, Bucket: Forever, Batches: 1, First: Place{"c", 3}, Last: Place{"otel", 7}})
	for _, c := range []struct {
		p    Place
		want []int
	}{
		{Place{"a", 9}, nil}, {Place{"b", 0}, []int{0}}, {Place{"c", 2}, []int{0}}, {Place{"c", 3}, []int{0, 1}}, {Place{"otel", 7}, []int{0, 1}}, {Place{"otel", 8}, nil},
	} {
		if got := m.Find(c.p); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v", c.p, got)
		}
	}
	if !m.Covers(id(1_000_000, 1)) || !m.Covers(id(1_000_001, 2)) || m.Covers(id(1_000_000, 2)) {
		t.Error("Covers")
	}
	for name, change := range map[string]func(m *Manifest){
		"no objects":      func(m *Manifest) { m.Objects = nil },
		"objects' order":  func(m *Manifest) { slices.Reverse(m.Objects) },
		"too far apart":   func(m *Manifest) { m.Objects[1].ID = id(1_000_000+3_600_000, 0) },
		"negative size":   func(m *Manifest) { m.Objects[0].Size = -1 },
		"a large footer":  func(m *Manifest) { m.Segments[0].FooterSize = 105 },
		"no footer":       func(m *Manifest) { m.Segments[0].FooterSize = 1 },
		"no batches":      func(m *Manifest) { m.Segments[0].Batches = 0 },
		"places' order":   func(m *Manifest) { m.Segments[0].First.Topic = "z" },
		"a large segment": func(m *Manifest) { m.Segments[0].Size = MaxSize + 1 },
	} {
		bad := goldenList()
		change(bad)
		if _, err := bad.Encode(); err == nil {
			t.Errorf("%s: it was encoded", name)
		}
	}
}

// TestStore: what is in a store is found, and what is not ours is passed over.
func TestStore(t *testing.T) {
	ctx, store := context.Background(), objstore.NewMemory()
	m := goldenList()
	put := func(key string, b []byte) {
		if err := store.Put(ctx, key, b); err != nil {
			t.Fatal(err)
		}
	}
	body, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	put(m.Window().Key(), body)
	put(m.Key(0), unhex(goldenSegment))
	put(WindowsPrefix+"1/notes.txt", []byte("not ours"))
	put(ClaimsPrefix+"x", nil)
	var found []Window
	collect := func(w Window, _ objstore.Info) error { found = append(found, w); return nil }
	if err := Windows(ctx, store, WindowsPrefix, collect); err != nil || !slices.Equal(found, []Window{m.Window()}) {
		t.Fatalf("%v: %v", found, err)
	}
	if err := Windows(ctx, store, FolderPrefix(Level1, m.Objects[0].ID.Timestamp()), collect); err != nil || len(found) != 2 {
		t.Fatalf("%v: %v", found, err)
	}
	got, err := ReadManifest(ctx, store, found[0])
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Fatalf("%+v: %v", got, err)
	}
	f, err := got.ReadFooter(ctx, store, 0)
	if err != nil || !reflect.DeepEqual(slices.Collect(f.Entries()), goldenEntries()) {
		t.Fatalf("%v", err)
	}
	for name, b := range map[string][]byte{
		"cut":     unhex(goldenSegment)[:100],
		"empty":   nil,
		"another": func() []byte { b, _ := AppendFooter([]byte("helloabc"), goldenEntries()[:2]); return b }(),
	} {
		put(m.Key(0), b)
		if f, err := got.ReadFooter(ctx, store, 0); !errors.Is(err, ErrGarbled) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	if err := store.Delete(ctx, m.Key(0)); err != nil {
		t.Fatal(err)
	}
	if _, err := got.ReadFooter(ctx, store, 0); !errors.Is(err, objstore.ErrNotFound) {
		t.Error(err)
	}
	put(m.Window().Key(), body[1:])
	if _, err := ReadManifest(ctx, store, found[0]); !errors.Is(err, ErrGarbled) {
		t.Error(err)
	}
}

// hostile gives as much as it is asked for.
type hostile struct{ objstore.Store }

func (hostile) Get(_ context.Context, _ string, _, length int64) ([]byte, error) {
	if length < 0 {
		return nil, errors.New("all was asked for, however much that is")
	}
	return make([]byte, length), nil
}

func TestManifestHasABound(t *testing.T) {
	_, err := ReadManifest(t.Context(), hostile{}, goldenList().Window())
	if !errors.Is(err, ErrGarbled) || !strings.Contains(err.Error(), "more than") {
		t.Error(err)
	}
	m := goldenList()
	long := Place{Topic: strings.Repeat("b", 1<<20)}
	m.Segments[0].First, m.Segments[0].Last = long, long
	m.Segments = slices.Repeat(m.Segments, MaxManifest>>20)
	if _, err := m.Encode(); err == nil {
		t.Error("a manifest was made that nobody reads")
	}
}

func FuzzParseFooter(f *testing.F) {
	golden := unhex(goldenSegment)
	f.Add(golden, int64(len(golden)), false)
	f.Add(golden[10:], int64(len(golden)), false)
	f.Add(golden[10:len(golden)-footer.TrailerSize], int64(len(golden)), true)
	f.Fuzz(func(t *testing.T, end []byte, size int64, sealed bool) {
		if sealed { // get past the checksum
			end = footer.Seal(end, 0, dataMagic)
		}
		footer, err := ParseFooter(end, size)
		if err != nil {
			if !errors.Is(err, ErrGarbled) {
				t.Fatal(err)
			}
			return
		}
		n, at := 0, uint64(0)
		for e := range footer.Entries() {
			if e.Position != at {
				t.Fatal("entries leave a gap")
			}
			at += uint64(e.Length)
			n++
		}
		if n != footer.Batches() || at != uint64(footer.Payload()) || at > uint64(size) {
			t.Fatal("entries go beyond the segment")
		}
		if size <= MaxSize {
			footer.Index(10, 20)
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	golden := unhex(goldenManifest)
	f.Add(golden, false)
	f.Add(golden[:len(golden)-footer.TrailerSize], true)
	w := goldenList().Window()
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed {
			b = footer.Seal(b, 0, listMagic)
		}
		m, err := ParseManifest(b, w)
		if err != nil {
			if !errors.Is(err, ErrGarbled) {
				t.Fatal(err)
			}
			return
		}
		if m.Window() != w {
			t.Fatal("another window's")
		}
		if _, err := m.Encode(); err != nil {
			t.Fatal(err)
		}
	})
}
