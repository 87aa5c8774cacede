package lowlatency

import (
	"math"
	"testing"
	"time"
)

func TestRetention(t *testing.T) {
	for ms, want := range map[int64]time.Duration{
		0: 0, 1: time.Millisecond, -1: -1, math.MinInt64: -1, math.MaxInt64: -1,
		math.MaxInt64 / 1_000_000: math.MaxInt64 / 1_000_000 * time.Millisecond, math.MaxInt64/1_000_000 + 1: -1,
	} {
		if got := RetentionOf(ms); got != want {
			t.Errorf("%d: %v, want %v", ms, got, want)
		}
	}
}
