package placeholder

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// unpacked returns the records of a batch of ours, uncompressed.
func unpacked(t interface{ Fatal(...any) }, b wire.Batch) []byte {
	s, err := newScanner(b)
	if err != nil {
		t.Fatal(err)
	}
	defer s.release()
	var out []byte
	for s.fill(1); s.r < s.w; s.fill(1) {
		out = append(out, s.buf[s.r:s.w]...)
		s.r = s.w
		if s.src == nil {
			break
		}
	}
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	return out
}

// recompressed is b as a broker stores it whose topic has another codec.
func recompressed(t interface{ Fatal(...any) }, b wire.Batch, p packing) wire.Batch {
	out := append(slices.Clone(b[:wire.BatchHeaderSize]), p.pack(unpacked(t, b))...)
	out.SetAttributes(out.Attributes()&^wire.AttrCodecMask | int16(p.codec))
	out.SetLength(int32(len(out) - wire.LogOverhead))
	out.SetCRC(out.ComputeCRC())
	return out
}

// Deltas that compress well, badly, and take all ten bytes.
func drawDeltas(t *rapid.T, n int) []int64 {
	deltas := make([]int64, n)
	kind := rapid.SampledFrom([]string{"equal", "regular", "jitter", "far", "any"}).Draw(t, "deltas")
	seed := rapid.Uint64().Draw(t, "seed")
	for i := range deltas {
		seed = seed*6364136223846793005 + 1442695040888963407
		switch kind {
		case "regular":
			deltas[i] = int64(i) * 3
		case "jitter":
			deltas[i] = int64(seed >> 48)
		case "far":
			deltas[i] = math.MinInt64 + int64(seed>>40)
		case "any":
			deltas[i] = int64(seed)
		}
	}
	return deltas
}

func TestPlaceholderIsFoundWhateverTheBrokerMakesOfIt(t *testing.T) {
	all := packings()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.IntRange(1, 70), rapid.SampledFrom([]int{999, 1000, 2500, 9000})).Draw(t, "n")
		var records []kmsg.Record
		for i, d := range drawDeltas(t, n) {
			records = append(records, rec(i, d, nil, []byte("v")))
		}
		o, err := Validate(clientBatch(all[0], records))
		if err != nil {
			t.Fatal(err)
		}
		ref := Ref{
			KeyID: testKey.ID, Audit: rapid.Bool().Draw(t, "audit"),
			Offset: rapid.Uint64Max(1<<62).Draw(t, "offset"),
			Length: rapid.Uint32Range(wire.BatchHeaderSize, 1<<31-1).Draw(t, "length"),
			CRC:    rapid.Uint32().Draw(t, "crc"),
		}
		copy(ref.Object[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "object"))
		raw, err := o.Build(ref, testKey, testLog, rapid.Bool().Draw(t, "zstd allowed"))
		if err != nil {
			t.Fatal(err)
		}
		ph := wire.Batch(raw)
		forms := []wire.Batch{ph}
		for _, p := range all {
			forms = append(forms, recompressed(t, ph, p))
		}
		for _, f := range forms {
			f.SetAttributes(f.Attributes() | wire.AttrLogAppendTime)
			f.SetMaxTimestamp(1 << 50)
			s, ok, err := Parse(f)
			if !Candidate(f) || !Reserved(f) || !ok || err != nil {
				t.Fatalf("codec %d, %d bytes for %d records: candidate %v, reserved %v, parsed %v, %v",
					f.Codec(), len(f), n, Candidate(f), Reserved(f), ok, err)
			}
			if s.Ref != ref || !s.Verify(testKey, testLog, f) {
				t.Fatalf("reads %+v, not %+v, or does not verify", s.Ref, ref)
			}
		}
	})
}

// A later version of the format, as large as one may be, is refused and not
// passed on by this one.
func TestLaterVersionIsNoOrdinaryData(t *testing.T) {
	value := make([]byte, maxRefSize)
	for i := range value {
		value[i] = byte(i*i*31 + i*7)
	}
	value[0] = refVersion + 1
	for _, n := range []int{1, 40, 2000} {
		records := []kmsg.Record{rec(0, math.MinInt64, nil, []byte{}, kmsg.Header{Key: HeaderKey, Value: value})}
		for i := 1; i < n; i++ {
			records = append(records, rec(i, math.MinInt64, nil, []byte{}))
		}
		for _, p := range packings() {
			if _, ok, err := Parse(clientBatch(p, records)); !ok || err == nil {
				t.Errorf("%s, %d records: %v, %v", p.name, n, ok, err)
			}
		}
	}
}

// drawRecord0 is what a client may send as its first record, mostly close to a
// placeholder's.
func drawRecord0(t *rapid.T) kmsg.Record {
	field := rapid.SampledFrom([][]byte{nil, nil, {}, {}, []byte("x"), make([]byte, 600)})
	headers := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) kmsg.Header {
		return kmsg.Header{
			Key:   rapid.SampledFrom([]string{HeaderKey, HeaderKey, "sluice.rex", "", "h"}).Draw(t, "header"),
			Value: rapid.SampledFrom([][]byte{nil, {}, {1}, make([]byte, 60), make([]byte, 900)}).Draw(t, "value of header"),
		}
	}), 0, 2).Draw(t, "headers")
	return rec(0, rapid.Int64().Draw(t, "delta"), field.Draw(t, "key"), field.Draw(t, "value"), headers...)
}

func TestClientBatchThatWasNotRefusedIsNeverAPlaceholder(t *testing.T) {
	all := packings()
	rapid.Check(t, func(t *rapid.T) {
		records := []kmsg.Record{drawRecord0(t)}
		for i := range rapid.SampledFrom([]int{0, 1, 5, 300}).Draw(t, "more") {
			records = append(records, rec(i+1, 0, nil, rapid.SampledFrom([][]byte{{}, nil, []byte("0123456789")}).Draw(t, "tail")))
		}
		sent := clientBatch(rapid.SampledFrom(all).Draw(t, "client's codec"), records)
		refused := Reserved(sent)
		for _, p := range all {
			stored := recompressed(t, sent, p)
			if _, ok, _ := Parse(stored); ok && !refused {
				t.Fatalf("%s makes a placeholder of it", p.name)
			}
			if r := Reserved(stored); r != refused {
				t.Fatalf("refused %v as the client sent it, %v with %s", refused, r, p.name)
			}
		}
	})
}

// evilRecord is a placeholder's record 0 with every varint as long as Kafka
// takes it, and null written as -5.
func evilRecord() []byte {
	long := func(b []byte, v int32) []byte {
		u := uint32(v<<1) ^ uint32(v>>31)
		return append(b, byte(u)|0x80, byte(u>>7)|0x80, byte(u>>14)|0x80, byte(u>>21)|0x80, byte(u>>28)|0x70)
	}
	b := []byte{0x55} // attributes, unused
	b = append(b, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00)
	b = long(b, 0)  // offset delta
	b = long(b, -5) // key
	b = long(b, 0)  // value
	b = long(b, 1)  // headers
	b = long(b, int32(len(HeaderKey)))
	b = append(b, HeaderKey...)
	b = long(b, 60)
	b = append(b, make([]byte, 60)...)
	return append(long(nil, int32(len(b))), b...)
}

func TestReservedHeaderIsFoundHoweverItIsHidden(t *testing.T) {
	evil := evilRecord()
	gz := func(b []byte, name string) []byte {
		var out bytes.Buffer
		w := kgzip.NewWriter(&out)
		w.Name = name
		must2(w.Write(b))
		must(w.Close())
		return out.Bytes()
	}
	zs := func(b []byte, opts ...zstd.EOption) []byte {
		w, err := zstd.NewWriter(nil, opts...)
		must(err)
		return w.EncodeAll(b, nil)
	}
	xerialOf := func(chunks ...[]byte) []byte {
		out := slices.Concat(xerialHeader, []byte{0, 0, 0, 1, 0, 0, 0, 1})
		for _, c := range chunks {
			out = binary.BigEndian.AppendUint32(out, uint32(len(c)))
			out = append(out, c...)
		}
		return out
	}
	lz4Of := func(flags byte, chunks ...[]byte) []byte {
		out := []byte{0x04, 0x22, 0x4D, 0x18, flags, 0x40, 0x82}
		for _, c := range chunks {
			out = binary.LittleEndian.AppendUint32(out, uint32(len(c))|1<<31)
			out = append(out, c...)
		}
		return append(out, 0, 0, 0, 0)
	}
	bytesOf := func(b []byte) (out [][]byte) {
		for i := range b {
			out = append(out, b[i:i+1])
		}
		return out
	}
	junk := make([]byte, 1<<20)
	for i := range junk {
		junk[i] = byte(i * i >> 3)
	}

	var members, frames, literals []byte
	var blocks [][]byte
	literals = binary.AppendUvarint(nil, uint64(len(evil)))
	for _, c := range bytesOf(evil) {
		members = append(members, gz(c, "")...)
		frames = append(frames, zs(c)...)
		blocks = append(blocks, append([]byte{1, 0}, c...))
		literals = append(append(literals, 0), c...)
	}
	// A deflate stream that begins with 200,000 empty stored blocks.
	plain := gz(evil, "")
	stored := slices.Concat(plain[:10], bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, 200_000), plain[10:])
	// Empty raw blocks before the one that matters.
	frame := zs(evil, zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithNoEntropyCompression(true))
	f, _ := parseZstdFrame(frame)
	empty := slices.Concat(frame[:f.header], bytes.Repeat([]byte{0, 0, 0}, 300_000), frame[f.header:])
	// The same blocks under a header that asks for a window of 3.75 TiB.
	window := slices.Concat([]byte{0x28, 0xB5, 0x2F, 0xFD, 0, 0xff}, frame[f.header:])
	legacy := slices.Clone(frame)
	legacy[0] = 0x27

	for _, c := range []struct {
		name  string
		codec int
		body  []byte
	}{
		{"not at all, but for its varints", wire.CodecNone, evil},
		{"before a megabyte of other records", wire.CodecNone, slices.Concat(evil, junk)},
		{"gzip, one member per byte", wire.CodecGzip, members},
		{"gzip, a megabyte of empty blocks first", wire.CodecGzip, stored},
		{"gzip, a file name that Go's reader refuses", wire.CodecGzip, gz(evil, string(bytes.Repeat([]byte("n"), 2000)))},
		{"gzip, before a megabyte that does not compress", wire.CodecGzip, gz(slices.Concat(evil, junk), "")},
		{"snappy, literals of one byte", wire.CodecSnappy, literals},
		{"snappy, blocks of one byte", wire.CodecSnappy, xerialOf(blocks...)},
		{"snappy, a second header between blocks", wire.CodecSnappy, slices.Concat(xerialOf(blocks[:9]...), xerialOf(blocks[9:]...))},
		{"snappy, before a megabyte", wire.CodecSnappy, snappy.Encode(nil, slices.Concat(evil, junk))},
		{"lz4, blocks of one byte", wire.CodecLz4, lz4Of(0x60, bytesOf(evil)...)},
		{"lz4, dependent blocks", wire.CodecLz4, lz4Of(0x40, bytesOf(evil)...)},
		{"lz4, a megabyte after the end mark", wire.CodecLz4, slices.Concat(lz4Of(0x60, evil), junk)},
		{"zstd, one frame per byte", wire.CodecZstd, frames},
		{"zstd, after a skippable frame", wire.CodecZstd, slices.Concat([]byte{0x5E, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3}, frame)},
		{"zstd, a megabyte of empty blocks first", wire.CodecZstd, empty},
		{"zstd, an enormous window", wire.CodecZstd, window},
		{"zstd, a format of before 1.0", wire.CodecZstd, legacy},
		{"zstd, before a megabyte", wire.CodecZstd, zs(slices.Concat(evil, junk))},
	} {
		b := encodeBatch(batchOptions{packing: packing{codec: c.codec}, pid: -1, epoch: -1, seq: -1}, 1, c.body)
		if !Reserved(b) {
			t.Errorf("%s: not found", c.name)
		}
	}
}

func TestDamagedBatchIsLeftToTheBroker(t *testing.T) {
	for _, p := range codecs() {
		b := clientBatch(p, telemetry(100, 300))
		for at := wire.BatchHeaderSize; at < wire.BatchHeaderSize+40; at++ {
			damaged := slices.Clone(b)
			damaged[at] ^= 0xff
			if Reserved(damaged) {
				t.Errorf("%s: damage at %d is answered with INVALID_RECORD, not the retriable CORRUPT_MESSAGE", p.name, at)
			}
		}
	}
}

// The peek and the libraries' decoders agree on the first bytes.
func TestPeekReadsWhatDecodersRead(t *testing.T) {
	all := packings()
	rapid.Check(t, func(t *rapid.T) {
		chunk := rapid.SliceOfN(rapid.Byte(), 1, 40)
		var plain []byte
		for _, c := range rapid.SliceOfN(chunk, 0, 30).Draw(t, "chunks") {
			plain = append(plain, bytes.Repeat(c, rapid.IntRange(1, 30).Draw(t, "times"))...)
		}
		for _, p := range all {
			if p.codec == wire.CodecNone {
				continue
			}
			b := encodeBatch(batchOptions{packing: p}, 1, plain)
			if p.codec != wire.CodecSnappy && len(b.Body()) == 0 {
				continue // some encoders make nothing of nothing
			}
			got, ok := peek(make([]byte, 0, peekSize), b)
			if !ok || !bytes.Equal(got, plain[:min(len(plain), peekSize)]) {
				t.Fatalf("%s: %v, %d bytes of %d", p.name, ok, len(got), len(plain))
			}
		}
	})
}
