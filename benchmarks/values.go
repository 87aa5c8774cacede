package benchmarks

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"math/bits"
	"math/rand/v2"
	"time"
)

// Values are: when the record was due, run, lane and number, noise that does not
// compress below half (as telemetry at best), and a checksum over all of it.
const (
	valueHead = 24
	valueTail = 4
)

type values struct{ noise []byte }

func newValues(largest Size) *values {
	random := make([]byte, max(64<<10, int(largest)))
	_, _ = rand.NewChaCha8([32]byte{1}).Read(random)
	return &values{noise: hex.AppendEncode(nil, random)}
}

func (v *values) make(size int, run, lane uint32, number int, due time.Time) []byte {
	out := make([]byte, size)
	binary.BigEndian.PutUint64(out, uint64(due.UnixNano()))
	binary.BigEndian.PutUint32(out[8:], run)
	binary.BigEndian.PutUint32(out[12:], lane)
	binary.BigEndian.PutUint64(out[16:], uint64(number))
	end := size - valueTail
	copy(out[valueHead:end], v.noise[number*61%(len(v.noise)-size):])
	binary.BigEndian.PutUint32(out[end:], crc32.ChecksumIEEE(out[:end]))
	return out
}

// set is a set of record numbers.
type set struct {
	words []uint64
	count int
}

// add reports whether the number is new.
func (s *set) add(n int) bool {
	for n/64 >= len(s.words) {
		s.words = append(s.words, make([]uint64, max(64, len(s.words)))...)
	}
	word, bit := &s.words[n/64], uint64(1)<<(n%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	s.count++
	return true
}

// without counts what is in s and not in other.
func (s *set) without(other *set) (n int) {
	for i, w := range s.words {
		if i < len(other.words) {
			w &^= other.words[i]
		}
		n += bits.OnesCount64(w)
	}
	return n
}

// ledger checks that the records of one run come back once and whole.
type ledger struct {
	run     uint32
	seen    []set // by lane
	doubled int
	changed int
}

// take reads a value; ok is false for one of another run, and for one that was
// counted as doubled or changed.
func (l *ledger) take(value []byte) (lane uint32, due time.Time, ok bool) {
	end := len(value) - valueTail
	if end < valueHead || crc32.ChecksumIEEE(value[:end]) != binary.BigEndian.Uint32(value[end:]) {
		l.changed++
		return 0, due, false
	}
	if binary.BigEndian.Uint32(value[8:]) != l.run {
		return 0, due, false
	}
	lane = binary.BigEndian.Uint32(value[12:])
	number := binary.BigEndian.Uint64(value[16:])
	if int(lane) >= len(l.seen) || number >= maxRecords {
		l.changed++
		return 0, due, false
	}
	if !l.seen[lane].add(int(number)) {
		l.doubled++
		return 0, due, false
	}
	return lane, time.Unix(0, int64(binary.BigEndian.Uint64(value))), true
}
