package diskless

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"pgregory.net/rapid"
)

// goldenObject is two "batches" of 5 and 3 bytes: the format must not change.
const goldenObject = "68656c6c6f616263" + // hello, abc
	"046f74656c" + "07" + "00" + "05" + "64" + "00" + "00" + "00" + "deadbeef" +
	"01" + "62" + "00" + "05" + "03" + "01" + "a923" + "03" + "0a" + "00000001" +
	"0000001e" + "526dde12" + "01" + "736c7569636557"

var goldenEntries = []Entry{
	{Topic: "otel", Partition: 7, Offset: 0, Length: 5, Records: 100, ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, CRC: 0xdeadbeef},
	{Topic: "b", Partition: 0, Offset: 5, Length: 3, Records: 1, ProducerID: 4520, ProducerEpoch: 2, BaseSequence: 9, CRC: 1},
}

func object2(batches []byte, entries []Entry) []byte {
	var footer []byte
	for _, e := range entries {
		footer = appendEntry(footer, e)
	}
	return wholeObject(batches, footer)
}

func TestObjectFormat(t *testing.T) {
	want, err := hex.DecodeString(goldenObject)
	if err != nil {
		t.Fatal(err)
	}
	got := object2([]byte("helloabc"), goldenEntries)
	if !bytes.Equal(got, want) {
		t.Fatalf("an object is\n%x, want\n%x", got, want)
	}
	for from := range len(want) - 8 + 1 {
		// Any tail that holds the footer will do.
		entries, err := ReadFooter(want[from:], int64(len(want)))
		if from > 8 {
			break
		}
		if err != nil || !reflect.DeepEqual(entries, goldenEntries) {
			t.Fatalf("from %d: %+v, %v", from, entries, err)
		}
	}
	for i := 8; i < len(want); i++ {
		bad := bytes.Clone(want)
		bad[i] ^= 0x10
		if entries, err := ReadFooter(bad, int64(len(bad))); !errors.Is(err, ErrObject) {
			t.Errorf("byte %d changed: %+v, %v", i, entries, err)
		}
		if entries, err := ReadFooter(want[i+1:], int64(len(want))); !errors.Is(err, ErrObject) {
			t.Errorf("only the last %d bytes: %+v, %v", len(want)-i-1, entries, err)
		}
	}
	if _, err := ReadFooter(want, int64(len(want))+1); !errors.Is(err, ErrObject) {
		t.Errorf("a byte is missing before the end: %v", err)
	}
}

func TestObjectKeys(t *testing.T) {
	id := ulid.MustNew(1_760_000_000_000, rand.Reader)
	for _, audit := range []bool{false, true} {
		got, isAudit, ok := ParseObjectKey(ObjectKey(id, audit))
		if !ok || got != id || isAudit != audit {
			t.Error(got, isAudit, ok)
		}
	}
	for _, key := range []string{"", "wal/", "wal/x", "audit/" + id.String(), "wal/" + strings.ToLower(id.String()), "wal/" + id.String() + "/", "xwal/" + id.String(), "wal/Z" + id.String()[1:]} {
		if id, _, ok := ParseObjectKey(key); ok {
			t.Errorf("%q is %v", key, id)
		}
	}
}

func TestObjectMemory(t *testing.T) {
	// What is small stays small, though its buffer was not.
	b := wholeObject(append(make([]byte, 0, 64<<10), "hello"...), nil)
	if cap(b) > 64 {
		t.Errorf("%d bytes hold %d", len(b), cap(b))
	}
}

func TestFooterRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var entries []Entry
		var batches []byte
		for range rapid.IntRange(0, 50).Draw(rt, "n") {
			n := rapid.IntRange(0, 1000).Draw(rt, "length")
			entries = append(entries, Entry{
				Topic: rapid.String().Draw(rt, "topic"), Partition: rapid.Int32Min(0).Draw(rt, "partition"), Offset: uint64(len(batches)), Length: uint32(n),
				Records:    rapid.Int32Min(0).Draw(rt, "records"),
				ProducerID: rapid.SampledFrom([]int64{-1, 0, 5, math.MaxInt64}).Draw(rt, "pid"), ProducerEpoch: rapid.Int16Min(-1).Draw(rt, "epoch"),
				BaseSequence: rapid.Int32Min(-1).Draw(rt, "seq"), CRC: rapid.Uint32().Draw(rt, "crc"),
			})
			batches = append(batches, make([]byte, n)...)
		}
		object := object2(batches, entries)
		got, err := ReadFooter(object, int64(len(object)))
		if err != nil || len(got) != len(entries) || len(got) > 0 && !reflect.DeepEqual(got, entries) {
			rt.Fatalf("%+v, %v; want %+v", got, err, entries)
		}
	})
}

func FuzzReadFooter(f *testing.F) {
	golden, _ := hex.DecodeString(goldenObject)
	f.Add(golden, int64(len(golden)))
	f.Add(golden[8:], int64(len(golden)))
	f.Add([]byte{}, int64(0))
	f.Fuzz(func(t *testing.T, end []byte, size int64) {
		entries, err := ReadFooter(end, size)
		if err != nil {
			if !errors.Is(err, ErrObject) || entries != nil {
				t.Fatalf("%v with %d entries", err, len(entries))
			}
			return
		}
		var at uint64
		for _, e := range entries {
			if e.Offset != at {
				t.Fatal("entries leave a gap")
			}
			at += uint64(e.Length)
		}
		if at > uint64(size) {
			t.Fatal("entries go beyond the object")
		}
	})
}
