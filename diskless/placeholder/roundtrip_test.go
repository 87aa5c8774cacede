package placeholder

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

func TestOriginalComesBackThroughItsPlaceholder(t *testing.T) {
	for _, p := range packings() {
		for _, n := range []int{1, 2, 50, 51, 1000, 3000} {
			for _, zstdAllowed := range []bool{true, false} {
				if p.codec == wire.CodecZstd && !zstdAllowed {
					continue
				}
				t.Run(fmt.Sprintf("%s/%d/zstd=%v", p.name, n, zstdAllowed), func(t *testing.T) {
					b := clientBatch(p, telemetry(n, 1000))
					if Reserved(b) {
						t.Fatal("the original counts as reserved")
					}
					ph := built(t, b, zstdAllowed)
					if _, err := Validate(ph); err != nil {
						t.Fatal("a broker would refuse the placeholder:", err)
					}
					if !Candidate(ph) || !Reserved(ph) {
						t.Fatal("not recognised")
					}
					s, ok, err := Parse(ph)
					if !ok || err != nil {
						t.Fatal(ok, err)
					}
					if !s.Verify(testKey, testLog, ph) {
						t.Fatal("does not verify")
					}
					ph.SetBaseOffset(1 << 40)
					ph.SetLeaderEpoch(77)
					h, body, err := Patch(b, ph, s.Ref)
					if err != nil {
						t.Fatal(err)
					}
					want := append(wire.Batch{}, b...)
					want.SetBaseOffset(1 << 40)
					want.SetLeaderEpoch(77)
					if !bytes.Equal(append(h, body...), want) {
						t.Fatal("other bytes")
					}
				})
			}
		}
	}
}
