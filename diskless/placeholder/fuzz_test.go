package placeholder

import (
	"encoding/binary"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// seeds gives the fuzzer batches of every codec, placeholders, and hidden ones.
func seeds(f *testing.F) {
	for _, p := range packings() {
		b := clientBatch(p, telemetry(3, 60))
		f.Add([]byte(b))
		f.Add([]byte(encodeBatch(batchOptions{packing: p, pid: -1, epoch: -1, seq: -1}, 1, evilRecord())))
	}
	ph := built(f, clientBatch(packing{}, telemetry(60, 1)), true)
	f.Add([]byte(ph))
}

// fuzzed is data as NextBatch would hand it on, with a CRC that does not stop
// every mutation at the door.
func fuzzed(data []byte) (wire.Batch, bool) {
	b := wire.Batch(append([]byte(nil), data...))
	if len(b) < wire.LogOverhead+5 {
		return b, false
	}
	b.SetLength(int32(len(b) - wire.LogOverhead))
	if b.IsV2() {
		b.SetCRC(b.ComputeCRC())
	}
	b, rest, ok := wire.NextBatch(b)
	return b, ok && len(rest) == 0
}

// What is valid can be read by others, record by record, and its placeholder
// is valid, found, and tells where the original is.
func FuzzValidate(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Validate(data)
		b, ok := fuzzed(data)
		if !ok {
			return
		}
		o, err := Validate(b)
		if err != nil {
			return
		}
		rest := unpacked(t, b)
		for i := range b.NumRecords() {
			size, k := binary.Varint(rest)
			if k <= 0 || size < 0 || size > int64(len(rest)-k) {
				t.Fatal("record", i, "has no length")
			}
			var r kmsg.Record
			if err := r.ReadFrom(rest[:k+int(size)]); err != nil || r.OffsetDelta != i {
				t.Fatal("franz-go reads record", i, "as", r.OffsetDelta, err)
			}
			rest = rest[k+int(size):]
		}
		if len(rest) > 0 {
			t.Fatal("bytes left over")
		}
		ph, err := o.Build(refTo(b), testKey, testLog, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Validate(ph); err != nil {
			t.Fatal("placeholder:", err)
		}
		s, ok, err := Parse(ph)
		if !ok || err != nil || !s.Verify(testKey, testLog, ph) {
			t.Fatal("placeholder:", ok, err)
		}
		if _, _, err := Patch(b, ph, s.Ref); err != nil {
			t.Fatal(err)
		}
	})
}

// Nothing parses that is not a candidate, or would not have been refused.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		b, ok := fuzzed(data)
		if !ok {
			return
		}
		s, is, _ := Parse(b)
		if is && (!Candidate(b) || !Reserved(b)) {
			t.Fatal("parsed without being a candidate or reserved")
		}
		if is && s.Verify(Key{}, testLog, b) {
			t.Fatal("verifies")
		}
	})
}

// What a valid batch is as long as it is compressed, it is without.
func FuzzReserved(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		b, ok := fuzzed(data)
		if !ok {
			return
		}
		refused := Reserved(b)
		if _, err := Validate(b); err != nil {
			return
		}
		if plain := recompressed(t, b, packing{pack: func(r []byte) []byte { return r }}); Reserved(plain) != refused {
			t.Fatalf("refused %v with codec %d, %v without", refused, b.Codec(), !refused)
		}
	})
}
