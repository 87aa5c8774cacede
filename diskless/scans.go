package diskless

import (
	"sync"
	"time"

	"github.com/sluice-kafka/sluice/tiers"
)

// scans counts the partitions that are read from segments at a time, so that what
// their readers want next is still in memory when they come to it: the more of
// them, the less is read of each at once.
type scans struct {
	min, max int64        // of a chunk
	room     func() int64 // bytes in memory for all of them

	mu          sync.Mutex
	now, before map[tiers.TopicPartition]struct{}
	turned      time.Time
}

// scansTurn is how long a partition counts that nobody reads any more, or twice
// that.
const scansTurn = 5 * time.Second

// scanChunks are for each: what it reads, what is behind that, and as much again
// for what was read and has not been let go of.
const scanChunks = 4

// note counts a partition.
func (s *scans) note(tp tiers.TopicPartition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn()
	s.now[tp] = struct{}{}
}

// turn is called with mu held.
func (s *scans) turn() {
	if since := time.Since(s.turned); s.now == nil || since >= scansTurn {
		if s.before = s.now; since >= 2*scansTurn {
			s.before = nil
		}
		s.now, s.turned = make(map[tiers.TopicPartition]struct{}), time.Now()
	}
}

// each is what there is for a chunk.
func (s *scans) each() int64 {
	room := s.room()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn()
	return room / scanChunks / int64(max(len(s.now), len(s.before), 1))
}

// chunk is how much to read at once. It changes in few steps, all of which are
// sizes: or what was read in pieces of another size would be read again.
func (s *scans) chunk() (n int64) {
	each := s.each()
	for n = range s.sizes() {
		if n <= each {
			break
		}
	}
	return n
}

// sizes yields all that chunk may return, the largest first.
func (s *scans) sizes() func(yield func(int64) bool) {
	return func(yield func(int64) bool) {
		n := s.max
		for ; n > s.min; n /= 2 {
			if !yield(n) {
				return
			}
		}
		yield(s.min)
	}
}

// ahead is how many chunks to read of a partition's answer before they are asked
// for.
func (s *scans) ahead(most int) int {
	if s.each() < s.min {
		return min(most, 1)
	}
	return most
}
