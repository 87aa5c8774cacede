package diskless

import (
	"maps"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"
)

// TestCacheAccounting: the bytes that a cache says it holds are those that it
// holds, and within its bound.
func TestCacheAccounting(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newCache(1000, newMetrics(newRegistry(), newInlineBudget(0, 0)))
		type part struct {
			chunk []byte
			done  func()
		}
		var parts []part
		for range rapid.IntRange(0, 200).Draw(rt, "steps") {
			k := chunkKey{from: int64(rapid.IntRange(0, 20).Draw(rt, "key"))}
			switch rapid.IntRange(0, 8).Draw(rt, "step") {
			case 5, 6:
				b := c.peek(k)
				if rapid.Bool().Draw(rt, "evicted meanwhile") {
					b = make([]byte, rapid.IntRange(0, 300).Draw(rt, "size of it"))
				}
				if done := c.lend(k, b); done != nil {
					parts = append(parts, part{b, done})
				}
			case 7:
				if len(parts) > 0 {
					i := rapid.IntRange(0, len(parts)-1).Draw(rt, "part")
					parts[i].done()
					parts = slices.Delete(parts, i, i+1)
				}
			case 3:
				c.expect(k, int64(rapid.IntRange(1, 300).Draw(rt, "expected")))
			case 4:
				c.missed(k)
			case 0:
				c.remove(k)
			case 1:
				c.get(k)
			default:
				size := rapid.IntRange(0, 800).Draw(rt, "size")
				recent := rapid.Bool().Draw(rt, "recent")
				c.add(k, make([]byte, size), recent)
				if b := c.peek(k); (b != nil) != (size > 0 && size <= map[bool]int{true: 625, false: 250}[recent]) && (recent || len(parts) == 0) {
					rt.Fatalf("%d bytes kept: %v", size, b != nil)
				}
			}
			for _, s := range []*region{c.recent, c.scan} {
				var held int64
				for _, b := range s.lru.Values() {
					held += int64(cap(b))
				}
				room := s.max
				if s == c.scan {
					room = max(room+c.recent.max-c.recent.bytes-c.orphaned, 0)
				}
				if held != s.bytes || held > room || testutil.ToFloat64(s.size) != float64(held) {
					rt.Fatalf("%s holds %d, says %d, of %d", s.name, held, s.bytes, s.max)
				}
			}
			lent := map[*byte]int64{}
			for _, p := range parts {
				lent[&p.chunk[0]] = int64(cap(p.chunk))
			}
			orphaned := maps.Clone(lent)
			for _, s := range []*region{c.recent, c.scan} {
				for _, b := range s.lru.Values() {
					delete(orphaned, &b[0])
				}
			}
			sum := func(m map[*byte]int64) (n int64) {
				for _, bytes := range m {
					n += bytes
				}
				return n
			}
			if c.lent != sum(lent) || c.orphaned != sum(orphaned) || testutil.ToFloat64(c.gauge) != float64(c.orphaned) {
				rt.Fatalf("%d bytes are lent, %d of them not held; it says %d and %d", sum(lent), sum(orphaned), c.lent, c.orphaned)
			}
			if all := c.recent.bytes + c.scan.bytes + c.orphaned; all > 875 {
				rt.Fatalf("%d bytes in memory", all)
			}
			var ahead int64
			for _, bytes := range c.ahead {
				ahead += bytes
			}
			if ahead != c.aheadBytes || len(c.ahead) > 1 && ahead > 875/aheadShare {
				rt.Fatalf("%d bytes are expected, in %d chunks; it says %d", ahead, len(c.ahead), c.aheadBytes)
			}
			for _, k := range c.recent.lru.Keys() {
				if c.scan.lru.Contains(k) {
					rt.Fatal("a chunk is held twice")
				}
			}
		}
	})
}
