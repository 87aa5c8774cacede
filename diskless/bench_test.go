package diskless

import (
	"context"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/tiers"
)

// nowhere takes objects at no cost, so that benchmarks show the tier's own.
type nowhere struct{ objstore.Store }

func (nowhere) Put(context.Context, string, []byte) error { return nil }

func benchTier(b *testing.B) *Tier {
	memory := objstore.NewMemory()
	return newTier(b, nowhere{memory}, openRing(b, memory), Limits{BufferBytes: 1 << 40, CacheBytes: 64 << 20})
}

var benchSizes = []struct {
	name          string
	records, size int
}{{"1KB", 1, 1000}, {"16KB", 16, 1000}, {"1MB", 1000, 1000}}

// BenchmarkOffload is one batch on its way from the client's bytes to a
// placeholder: validated, copied, described, sealed by size, built.
func BenchmarkOffload(b *testing.B) {
	for _, c := range benchSizes {
		batch := batchOf(c.records, c.size)
		req := tiers.OffloadRequest{Class: telemetry(), TopicPartition: tiers.TopicPartition{Topic: "otel"}, Batch: batch, ProduceVersion: 9}
		req.Class.Linger = 20 * time.Millisecond
		offloads := func(b *testing.B, tier *Tier, next func() bool) {
			const inFlight = 256
			var flying []tiers.Offload
			var wg sync.WaitGroup
			settle := func() {
				wg.Wait()
				for _, o := range flying {
					if o.Result().Records == nil {
						b.Error("inline")
					}
				}
				flying = flying[:0]
			}
			for next() {
				wg.Add(1)
				flying = append(flying, tier.Offload(context.Background(), req, wg.Done))
				if len(flying) == inFlight {
					settle()
				}
			}
			settle()
		}
		b.Run(c.name, func(b *testing.B) {
			tier := benchTier(b)
			// Sealed as soon as all that may be in flight is.
			req.Class.ObjectSize = int64(min(256*len(batch), 8<<20))
			b.SetBytes(int64(len(batch)))
			b.ReportAllocs()
			i := 0
			b.ResetTimer()
			offloads(b, tier, func() bool { i++; return i <= b.N })
		})
		b.Run(c.name+"-parallel", func(b *testing.B) {
			tier := benchTier(b)
			req.Class.ObjectSize = int64(min(256*len(batch), 8<<20))
			b.SetBytes(int64(len(batch)))
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) { offloads(b, tier, pb.Next) })
		})
	}
}

// BenchmarkHydrateCached is one placeholder on its way back to the original
// batch, whose object is in memory.
func BenchmarkHydrateCached(b *testing.B) {
	for _, c := range benchSizes {
		r := newRig(b, Limits{})
		s := r.send(offer{batch: batchOf(c.records, c.size)})
		log := plain.appends(s.placeholder())
		hydrate := func(b *testing.B) {
			pieces, _, err := r.tier.Resolve(context.Background(), s.tp, log, math.MaxInt, 2)
			if err != nil || len(pieces) != 1 {
				b.Error(fmt.Errorf("%d pieces: %w", len(pieces), err))
				return
			}
			if _, err := pieces[0].Load(context.Background()); err != nil {
				b.Error(err)
			}
		}
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(s.batch)))
			b.ReportAllocs()
			for b.Loop() {
				hydrate(b)
			}
		})
		b.Run(c.name+"-parallel", func(b *testing.B) {
			b.SetBytes(int64(len(s.batch)))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					hydrate(b)
				}
			})
		})
	}
}

// BenchmarkAnswer is an answer of 1 MiB in a replay, whose object is in memory:
// the broker gave 64 KiB of placeholders.
func BenchmarkAnswer(b *testing.B) {
	r := newRig(b, Limits{})
	s := r.send(offer{batch: batchOf(64, 1000)})
	var log []byte
	for one := plain.appends(s.placeholder()); len(log)+len(one) <= 64<<10; {
		log = append(log, one...)
	}
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		pieces, _, err := r.tier.Resolve(context.Background(), s.tp, log, 1<<20, 2)
		if err != nil {
			b.Fatal(err)
		}
		for left := 1 << 20; left >= pieces[0].Size(); left -= pieces[0].Size() {
			_, done, err := pieces[0].Lend(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			if done != nil {
				done()
			}
			pieces = pieces[1:]
		}
	}
}
