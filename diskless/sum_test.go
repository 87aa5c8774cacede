package diskless

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

func TestSumsAreJoined(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		b := make([]byte, r.IntN(1<<(n%20)+1))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		at := r.IntN(len(b) + 1)
		sum := func(b []byte) uint32 { return crc32.Checksum(b, wire.Castagnoli) }
		if got, want := joinSums(sum(b[:at]), sum(b[at:]), len(b)-at), sum(b); got != want {
			t.Fatalf("%d bytes and %d: %08x, should be %08x", at, len(b)-at, got, want)
		}
	}
}

func TestTheSumOfAnObject(t *testing.T) {
	var sum uint32
	var all []byte
	for _, size := range []int{1, joinFrom / 2, joinFrom - 60, joinFrom, 100_000, 1} {
		for records := 1; records <= 3; records++ {
			b := batchOf(records, size)
			sum, all = sumOn(sum, b), append(all, b...)
			if want := crc32.Checksum(all, wire.Castagnoli); sum != want {
				t.Fatalf("%d bytes: %08x, should be %08x", len(all), sum, want)
			}
		}
	}
}

func BenchmarkJoinSums(b *testing.B) {
	var sum uint32
	for b.Loop() {
		sum = joinSums(sum, 1, 261_873)
	}
}
