package placeholder

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

func TestBatchesThatABrokerRefusesAreInvalid(t *testing.T) {
	good := telemetry(3, 100)
	for _, c := range []struct {
		name string
		want error
		edit func(b wire.Batch) wire.Batch // the CRC is set anew after it
	}{
		{"magic 0", ErrMagic, func(b wire.Batch) wire.Batch { b.SetMagic(0); return b }},
		{"magic 1", ErrMagic, func(b wire.Batch) wire.Batch { b.SetMagic(1); return b }},
		{"magic 3", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetMagic(3); return b }},
		{"magic -1", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetMagic(-1); return b }},
		{"control batch", ErrControl, func(b wire.Batch) wire.Batch { b.SetAttributes(wire.AttrControl); return b }},
		{"length too small", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetLength(b.Length() - 1); return b }},
		{"length too large", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetLength(b.Length() + 1); return b }},
		{"length negative", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetLength(-1); return b }},
		{"only a header", ErrInvalid, func(b wire.Batch) wire.Batch {
			b = b[:wire.BatchHeaderSize]
			b.SetLength(wire.BatchHeaderSize - wire.LogOverhead)
			return b
		}},
		{"LogAppendTime, which brokers set", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetAttributes(wire.AttrLogAppendTime); return b }},
		{"delete horizon, which brokers set", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetAttributes(wire.AttrDeleteHorizon); return b }},
		{"an attribute of the future", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetAttributes(1 << 9); return b }},
		{"codec 5", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetAttributes(5); return b }},
		{"base offset", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetBaseOffset(1); return b }},
		{"no records", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetNumRecords(0); b.SetLastOffsetDelta(-1); return b }},
		{"fewer records than there are", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetNumRecords(2); b.SetLastOffsetDelta(1); return b }},
		{"more records than there are", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetNumRecords(4); b.SetLastOffsetDelta(3); return b }},
		{"very many records", ErrInvalid, func(b wire.Batch) wire.Batch {
			b.SetNumRecords(1<<31 - 1)
			b.SetLastOffsetDelta(1<<31 - 2)
			return b
		}},
		{"negative records", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetNumRecords(-3); b.SetLastOffsetDelta(-4); return b }},
		{"last offset delta is not the last record's", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetLastOffsetDelta(3); return b }},
		{"producer without a sequence", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetBaseSequence(-1); return b }},
		{"producer without an epoch", ErrInvalid, func(b wire.Batch) wire.Batch { b.SetProducerEpoch(-1); return b }},
		{"transaction without a producer", ErrInvalid, func(b wire.Batch) wire.Batch {
			b.SetProducerID(-1)
			b.SetAttributes(wire.AttrTransactional)
			return b
		}},
		{"a byte after the last record", ErrInvalid, func(b wire.Batch) wire.Batch {
			b = append(b, 0)
			b.SetLength(b.Length() + 1)
			return b
		}},
		{"the last byte is missing", ErrInvalid, func(b wire.Batch) wire.Batch {
			b = b[:len(b)-1]
			b.SetLength(b.Length() - 1)
			return b
		}},
	} {
		b := c.edit(clientBatch(packing{}, good))
		if len(b) >= wire.BatchHeaderSize {
			b.SetCRC(b.ComputeCRC())
		}
		if _, err := Validate(b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	b := clientBatch(packing{}, good)
	b.SetCRC(b.CRC() + 1)
	if _, err := Validate(b); !errors.Is(err, ErrInvalid) {
		t.Error("wrong CRC:", err)
	}
	for n := range wire.BatchHeaderSize {
		if _, err := Validate(slices.Clone(b[:n])); err == nil {
			t.Errorf("%d bytes of a batch are valid", n)
		}
	}
}

// rawRecord is one record with its fields as given, each a varint or bytes.
func rawRecord(fields ...any) (out []byte) {
	body := []byte{0}
	for _, f := range fields {
		switch f := f.(type) {
		case int:
			body = binary.AppendVarint(body, int64(f))
		case string:
			body = append(body, f...)
		}
	}
	return append(binary.AppendVarint(nil, int64(len(body))), body...)
}

func TestRecords(t *testing.T) {
	second := rawRecord(5, 1, -1, 1, "v", 0)
	for _, c := range []struct {
		name  string
		want  string // in the error; "" when the batch is valid
		first []byte
	}{
		{"null key, value", "", rawRecord(0, 0, -1, 1, "v", 0)},
		{"empty key, null value", "", rawRecord(0, 0, 0, -1, 0)},
		{"header with an empty key and a null value", "", rawRecord(0, 0, -1, -1, 1, 0, -1)},
		{"two headers of one name", "", rawRecord(0, 0, -1, -1, 2, 1, "h", 0, 1, "h", 2, "xy")},
		{"the smallest timestamp delta", "", rawRecord(-1<<63, 0, -1, 0, 0)},
		{"the largest timestamp delta", "", rawRecord(1<<63-1, 0, -1, 0, 0)},
		{"varints longer than necessary", "", rawRecord("\x80\x00", "\x80\x80\x80\x80\x00", -1, 0, 0)},
		{"key of length -2", "negative length", rawRecord(0, 0, -2, 0, 0)},
		{"value of length -2", "negative length", rawRecord(0, 0, -1, -2, 0)},
		{"key longer than the record", "record 0", rawRecord(0, 0, 4, 0, 0)},
		{"value longer than the batch", "end early", rawRecord(0, 0, -1, 1<<20, "v", 0)},
		{"-1 headers", "headers", rawRecord(0, 0, -1, 0, -1)},
		{"a billion headers", "headers", rawRecord(0, 0, -1, 0, 1<<30)},
		{"a header without a key", "null header key", rawRecord(0, 0, -1, 0, 1, -1, 0)},
		{"header value of length -2", "negative length", rawRecord(0, 0, -1, 0, 1, 1, "h", -2)},
		{"offset delta out of sequence", "offset delta", rawRecord(0, 1, -1, 0, 0)},
		{"negative offset delta", "offset delta", rawRecord(0, -1, -1, 0, 0)},
		{"a byte after the headers", "length of the record", rawRecord(0, 0, -1, 0, 0, "x")},
		{"varint of six bytes", "varint", rawRecord(0, "\x80\x80\x80\x80\x80\x00", -1, 0, 0)},
		{"varint of 33 bits", "varint", rawRecord(0, "\x80\x80\x80\x80\x10", -1, 0, 0)},
		{"varlong of eleven bytes", "varint", rawRecord("\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 0, -1, 0, 0)},
		{"negative record length", "negative length", []byte{1, 0, 0, 0, 1, 0, 0}},
	} {
		for _, p := range codecs() {
			b := encodeBatch(batchOptions{packing: p, pid: -1, epoch: -1, seq: -1}, 2, slices.Concat(c.first, second))
			_, err := Validate(b)
			if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s, %s: %v", c.name, p.name, err)
			}
		}
	}
}

func TestCompressedRecordsAreExactlyOneFrame(t *testing.T) {
	one := encodeRecords(telemetry(2, 50))
	for _, p := range packings() {
		if p.codec == wire.CodecNone {
			continue
		}
		frame := p.pack(one)
		for _, c := range []struct {
			name string
			body []byte
		}{
			{"a byte after it", append(slices.Clone(frame), 0)},
			{"eight bytes after it", append(slices.Clone(frame), make([]byte, 8)...)},
			{"one byte short", frame[:len(frame)-1]},
			{"half of it", frame[:len(frame)/2]},
			{"nothing", nil},
			{"twice", slices.Concat(frame, frame)},
			{"one record in each of two", slices.Concat(p.pack(one[:len(one)/2]), p.pack(one[len(one)/2:]))},
			{"a skippable frame first", slices.Concat([]byte{0x50, 0x2A, 0x4D, 0x18, 1, 0, 0, 0, 9}, frame)},
		} {
			b := encodeBatch(batchOptions{packing: packing{codec: p.codec}, pid: -1, epoch: -1, seq: -1}, 2, c.body)
			if _, err := Validate(b); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s, %s: %v", p.name, c.name, err)
			}
		}
	}
}

// What Java clients and librdkafka send is read by other code than the rest, and
// comes to the same: whole, damaged, with blocks that decode to more than a block
// may, are longer than one or empty.
func TestPlainLz4IsReadAsTheLibraryReadsIt(t *testing.T) {
	p := packing{}
	for _, each := range packings() {
		if each.name == "lz4-java" {
			p = each
		}
	}
	draw := rand.New(rand.NewPCG(7, 7))
	noise := make([]byte, plainLz4Block+plainLz4Block/2)
	for i := range noise {
		noise[i] = byte(draw.Uint32())
	}
	frameOf := func(blocks ...[]byte) []byte {
		return append(append(slices.Clone(plainLz4), slices.Concat(blocks...)...), 0, 0, 0, 0)
	}
	block := func(bit uint32, data []byte) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, uint32(len(data))|bit), data...)
	}
	compressed := func(data []byte) []byte {
		out := make([]byte, lz4.CompressBlockBound(len(data)))
		n, err := lz4.CompressBlock(data, out, nil)
		must(err)
		return block(0, out[:n])
	}
	const stored = 1 << 31
	frames := [][]byte{
		frameOf(),
		frameOf(block(stored, nil)),
		frameOf(block(stored, []byte("a")), block(stored, nil), block(stored, []byte("b"))),
		frameOf(block(0, []byte{0}), block(stored, []byte("b"))),
		frameOf(block(stored, noise[:plainLz4Block]), block(stored, noise[:9]), compressed(make([]byte, plainLz4Block))),
		frameOf(block(stored, noise[:plainLz4Block+1])),
		frameOf(block(0, noise[:plainLz4Block+1])),
		frameOf(compressed(make([]byte, plainLz4Block+1))),
	}
	// Kafka's reader ends at a stored block of no bytes, others read on.
	for _, b := range frames[1:3] {
		if _, err := newInflater(wire.CodecLz4, b); !errors.Is(err, errFrame) {
			t.Errorf("an empty stored block: %v", err)
		}
	}
	whole := 0
	for _, records := range [][]byte{nil, noise, encodeRecords(telemetry(3, 60)), encodeRecords(telemetry(500, 500))} {
		frame := p.pack(records)
		if !bytes.HasPrefix(frame, plainLz4) {
			t.Fatalf("it begins with %x", frame[:len(plainLz4)])
		}
		frames = append(frames, frame)
		for range 400 {
			damaged := slices.Clone(frame)
			for range 1 + draw.IntN(2) {
				at := len(plainLz4) + draw.IntN(min(len(frame)-len(plainLz4), 1+draw.IntN(len(frame))))
				damaged[at] = byte(draw.Uint32())
			}
			frames = append(frames, damaged)
		}
	}
	for _, frame := range frames {
		want, wantErr := io.ReadAll(lz4.NewReader(bytes.NewReader(frame)))
		f, err := newInflater(wire.CodecLz4, frame)
		if err != nil {
			continue // not exactly one frame
		}
		if f.Reader != &f.plain {
			t.Fatal("it is read by the library")
		}
		var got []byte
		for err == nil {
			var n int
			n, err = f.Read(f.window[:])
			got = append(got, f.window[:n]...)
		}
		f.release()
		if (err == io.EOF) != (wantErr == nil) || err == io.EOF && !bytes.Equal(got, want) {
			t.Errorf("%d bytes and %v, want %d and %v, of %x", len(got), err, len(want), wantErr, frame[:min(len(frame), 40)])
		}
		if err == io.EOF {
			whole++
		}
	}
	if whole < 100 || whole > len(frames)-100 {
		t.Errorf("%d of %d frames are whole", whole, len(frames))
	}
}

func TestDecompressionIsBounded(t *testing.T) {
	long := encodeRecords([]kmsg.Record{rec(0, 0, nil, make([]byte, maxInflated))})
	for _, p := range codecs() {
		if p.codec == wire.CodecNone {
			continue
		}
		b := encodeBatch(batchOptions{packing: p, pid: -1, epoch: -1, seq: -1}, 1, long)
		if _, err := Validate(b); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "64 MiB") {
			t.Errorf("%s: %v", p.name, err)
		}
	}
	// A claim costs no memory: a snappy block of 4 GiB, a zstd window of as much.
	for _, c := range []struct {
		codec int
		body  []byte
	}{
		{wire.CodecSnappy, append(binary.AppendUvarint(nil, 1<<32-1), 0, 'x')},
		{wire.CodecZstd, []byte{0x28, 0xB5, 0x2F, 0xFD, 0x00, 22 << 3, 1, 0, 0}},
	} {
		b := encodeBatch(batchOptions{packing: packing{codec: c.codec}, pid: -1, epoch: -1, seq: -1}, 1, c.body)
		bytes := testing.Benchmark(func(tb *testing.B) {
			for tb.Loop() {
				if _, err := Validate(b); err == nil {
					tb.Fatal("valid")
				}
			}
		}).AllocedBytesPerOp()
		if bytes > 64<<10 {
			t.Errorf("codec %d: %d bytes allocated", c.codec, bytes)
		}
	}
	// The window of zstd's level 19, 8 MiB, is within the bound.
	w, err := zstd.NewWriter(nil, zstd.WithWindowSize(maxZstdWindow), zstd.WithSingleSegment(false))
	must(err)
	big := encodeRecords(telemetry(10_000, 1000))
	b := encodeBatch(batchOptions{packing: packing{codec: wire.CodecZstd, pack: func(r []byte) []byte { return w.EncodeAll(r, nil) }}}, 10_000, big)
	if _, err := Validate(b); err != nil {
		t.Error(err)
	}
}

func TestPlaceholderKeepsWhatTheBrokerLooksAt(t *testing.T) {
	deltas := []int64{7, -3, 1 << 40, 0, -1 << 63, 1<<63 - 1}
	var records []kmsg.Record
	for i := range 120 {
		records = append(records, rec(i, deltas[i%len(deltas)]+int64(i/6), []byte("k"), []byte("value")))
	}
	b := encodeBatch(batchOptions{packing: packing{}, pid: 99, epoch: 5, seq: 1<<31 - 3, attributes: wire.AttrTransactional, first: 123, max: 456}, len(records), encodeRecords(records))
	for _, n := range []bool{false, true} {
		ph := built(t, b, n)
		got := fmt.Sprint(ph.BaseOffset(), ph.LeaderEpoch(), ph.Attributes()&^wire.AttrCodecMask, ph.LastOffsetDelta(), ph.FirstTimestamp(), ph.MaxTimestamp(), ph.ProducerID(), ph.ProducerEpoch(), ph.BaseSequence(), ph.NumRecords())
		if want := fmt.Sprint(0, -1, wire.AttrTransactional, 119, 123, 456, 99, 5, 1<<31-3, 120); got != want {
			t.Errorf("header is %s, not %s", got, want)
		}
		rest := unpacked(t, ph)
		for i, want := range records {
			var r kmsg.Record
			// The record's own length says where the next one begins.
			size, k := binary.Varint(rest)
			if err := r.ReadFrom(rest[:k+int(size)]); err != nil {
				t.Fatal(err)
			}
			rest = rest[k+int(size):]
			if r.TimestampDelta64 != want.TimestampDelta64 || r.OffsetDelta != int32(i) || r.Key != nil || r.Value == nil || len(r.Value) != 0 {
				t.Fatalf("record %d: %+v", i, r)
			}
			if headers := len(r.Headers); i == 0 && (headers != 1 || r.Headers[0].Key != HeaderKey) || i > 0 && headers != 0 {
				t.Fatalf("record %d has headers %v", i, r.Headers)
			}
		}
		if len(rest) != 0 {
			t.Fatal("bytes left over")
		}
	}
}

func TestZstdOriginalNeedsProduceV7(t *testing.T) {
	for _, p := range codecs() {
		b := clientBatch(p, telemetry(1, 500))
		_, err := validated(t, b).Build(refTo(b), testKey, testLog, false)
		if got := errors.Is(err, ErrInvalid); got != (p.codec == wire.CodecZstd) {
			t.Errorf("%s: %v", p.name, err)
		}
	}
	b := clientBatch(packing{}, telemetry(2000, 100))
	if ph := built(t, b, false); ph.Codec() == wire.CodecZstd {
		t.Error("a zstd placeholder below version 7")
	}
}

// Design figures: 140, 205, 870 or 567, and 4178 or 1173 bytes.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		what      string
		n         int
		delta     func(i int) int64
		lz4, zstd int // at most
	}{
		{"one record", 1, func(i int) int64 { return 0 }, 140, 140},
		{"10 records", 10, func(i int) int64 { return int64(i) }, 205, 205},
		{"100 in a burst", 100, func(i int) int64 { return int64(i / 20) }, 600, 600},
		{"100, one each 3 ms", 100, func(i int) int64 { return int64(3 * i) }, 920, 920},
		{"1000 in a burst", 1000, func(i int) int64 { return int64(i / 20) }, 4300, 1300},
		{"1000, one each 3 ms", 1000, func(i int) int64 { return int64(3 * i) }, 6500, 3000},
		{"10000 in a burst", 10_000, func(i int) int64 { return int64(i / 20) }, 43_000, 12_000},
	} {
		var records []kmsg.Record
		for i := range c.n {
			records = append(records, rec(i, c.delta(i), nil, make([]byte, 100)))
		}
		b := clientBatch(packing{}, records)
		lz4, zstd := len(built(t, b, false)), len(built(t, b, true))
		estimate := validated(t, b).PlaceholderSize()
		t.Logf("%s: %d bytes, %d with zstd, estimated %d", c.what, lz4, zstd, estimate)
		if lz4 > c.lz4 || zstd > c.zstd {
			t.Errorf("%s: %d and %d bytes, at most %d and %d", c.what, lz4, zstd, c.lz4, c.zstd)
		}
		if estimate < zstd*2/3 || estimate > 3*zstd {
			t.Errorf("%s: estimated %d, is %d", c.what, estimate, zstd)
		}
	}
}

func TestAllocations(t *testing.T) {
	for _, p := range codecs() {
		small, large := clientBatch(p, telemetry(100, 200)), clientBatch(p, telemetry(10_000, 200))
		for _, c := range []struct {
			name string
			most float64
			fn   func(b wire.Batch)
		}{
			{"Candidate", 0, func(b wire.Batch) { Candidate(b) }},
			{"Reserved", 0, func(b wire.Batch) { Reserved(b) }},
			{"Validate", 8, func(b wire.Batch) { _, _ = Validate(b) }},
		} {
			if raceEnabled && c.name != "Candidate" {
				continue // the race detector empties pools at random
			}
			for _, b := range []wire.Batch{small, large} {
				if got := testing.AllocsPerRun(20, func() { c.fn(b) }); got > c.most {
					t.Errorf("%s of %d records, %s: %v allocations", c.name, b.NumRecords(), p.name, got)
				}
			}
		}
	}
}
