package diskless

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-kafka/sluice/tiers"
)

// TestScansShareTheRoom: the more partitions are read, the less of each at once,
// so that none pushes out what another has not read yet.
func TestScansShareTheRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scans{min: 1 << 20, max: 16 << 20, room: func() int64 { return 64 << 20 }}
		note := func(partitions int) {
			for i := range partitions {
				s.note(tiers.TopicPartition{Topic: "t", Partition: int32(i)})
			}
		}
		for _, step := range []struct {
			partitions, ahead int
			chunk             int64
		}{{0, 2, 16 << 20}, {1, 2, 16 << 20}, {2, 2, 8 << 20}, {8, 2, 2 << 20}, {9, 2, 1 << 20}, {16, 2, 1 << 20}, {17, 1, 1 << 20}, {1000, 1, 1 << 20}} {
			note(step.partitions)
			if n := s.chunk(); n != step.chunk {
				t.Errorf("%d partitions: chunks of %d, want %d", step.partitions, n, step.chunk)
			}
			if n := s.ahead(2); n != step.ahead {
				t.Errorf("%d partitions: %d ahead, want %d", step.partitions, n, step.ahead)
			}
		}
		time.Sleep(scansTurn)
		note(2)
		if n := s.chunk(); n != 1<<20 {
			t.Errorf("right after it, chunks of %d", n)
		}
		time.Sleep(scansTurn)
		note(2)
		if n := s.chunk(); n != 8<<20 {
			t.Errorf("when the others have gone, chunks of %d", n)
		}
		time.Sleep(time.Hour)
		if n := s.chunk(); n != 16<<20 {
			t.Errorf("when all have gone, chunks of %d", n)
		}
	})
}
