package diskless

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"
)

// TestCacheAccounting: the bytes that a cache says it holds are those that it
// holds, and within its bound.
func TestCacheAccounting(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newCache(1000, newMetrics(newRegistry(), newInlineBudget(0, 0)))
		for range rapid.IntRange(0, 200).Draw(rt, "steps") {
			k := chunkKey{from: int64(rapid.IntRange(0, 20).Draw(rt, "key"))}
			switch rapid.IntRange(0, 5).Draw(rt, "step") {
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
				if b := c.peek(k); (b != nil) != (size > 0 && size <= map[bool]int{true: 625, false: 250}[recent]) {
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
					room += c.recent.max - c.recent.bytes
				}
				if held != s.bytes || held > room || testutil.ToFloat64(s.size) != float64(held) {
					rt.Fatalf("%s holds %d, says %d, of %d", s.name, held, s.bytes, s.max)
				}
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
