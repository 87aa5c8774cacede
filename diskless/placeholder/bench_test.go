package placeholder

import (
	"fmt"
	"testing"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// each runs fn for the sizes and codecs that the documentation quotes: records
// of 1 KB. MB/s are of the original, as it is on the wire.
func each(b *testing.B, fn func(b *testing.B, batch wire.Batch)) {
	for _, p := range codecs() {
		for _, n := range []int{1, 10, 100, 1000} {
			batch := clientBatch(p, telemetry(n, 1000))
			b.Run(fmt.Sprintf("%s/%d", p.name, n), func(b *testing.B) {
				b.SetBytes(int64(len(batch)))
				b.ReportAllocs()
				fn(b, batch)
			})
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	each(b, func(b *testing.B, batch wire.Batch) {
		for b.Loop() {
			if _, err := Validate(batch); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	each(b, func(b *testing.B, batch wire.Batch) {
		o, ref := validated(b, batch), refTo(batch)
		for b.Loop() {
			if _, err := o.Build(ref, testKey, testLog, true); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Ordinary data, as the low-latency path sees it.
func BenchmarkCandidate(b *testing.B) {
	each(b, func(b *testing.B, batch wire.Batch) {
		for b.Loop() {
			if Candidate(batch) && batch.NumRecords() > 10 && batch.Codec() < wire.CodecGzip {
				b.Fatal("candidate")
			}
		}
	})
}

// Ordinary data, as every Produce passes through it.
func BenchmarkReserved(b *testing.B) {
	each(b, func(b *testing.B, batch wire.Batch) {
		for b.Loop() {
			if Reserved(batch) {
				b.Fatal("reserved")
			}
		}
	})
}

// Placeholders, with what follows on the way to a consumer.
func BenchmarkParseVerify(b *testing.B) {
	each(b, func(b *testing.B, batch wire.Batch) {
		ph := built(b, batch, true)
		for b.Loop() {
			s, ok, err := Parse(ph)
			if !ok || err != nil || !s.Verify(testKey, testLog, ph) {
				b.Fatal(ok, err)
			}
		}
	})
}

func BenchmarkPatch(b *testing.B) {
	each(b, func(b *testing.B, batch wire.Batch) {
		ph, ref := built(b, batch, true), refTo(batch)
		for b.Loop() {
			if _, _, err := Patch(batch, ph, ref); err != nil {
				b.Fatal(err)
			}
		}
	})
}
