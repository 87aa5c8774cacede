package placeholder

import (
	"encoding/binary"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

const (
	// maxEmptyRecord is the largest record without key, value and headers:
	// its length (1: the rest is below 64), attributes (1), timestamp delta
	// (at most 10), offset delta (at most 5), key, value and header lengths
	// (1 each).
	maxEmptyRecord = 1 + 1 + 10 + 5 + 1 + 1 + 1
	// maxReference is what record 0 has beyond that: one more byte of length,
	// the header's key and value with their lengths.
	maxReference = 1 + 1 + len(HeaderKey) + 1 + maxRefSize
	// peekSize is how much of the records is decompressed to look at record 0.
	peekSize = 512
)

// Record 0 is within what is peeked at.
var _ [peekSize - maxEmptyRecord - maxReference]struct{}

// maxRecords is the largest size of a placeholder's records, uncompressed.
func maxRecords(count int32) int { return maxReference + maxEmptyRecord*int(count) }

// maxCompressed bounds what any codec makes of n bytes, in the formats that
// Kafka's clients and brokers write:
//
//	gzip    n + 5 for each 16 KiB stored block + 18 of header and trailer
//	snappy  n + n/6 + 32 for each block (32 KiB in Java's framing) + 4 each + 16
//	lz4     n + 8 for each stored block of at least 64 KiB + 19 + 8
//	zstd    n + n/256 + 64 + 18
//
// n/4 + 256 is above each of these additions for every n.
func maxCompressed(n int) int { return n + n/4 + 256 }

// Candidate reports whether a batch may be a placeholder, by its header alone.
// It is never false for one.
func Candidate(b wire.Batch) bool {
	if !b.IsV2() {
		return false
	}
	count := b.NumRecords()
	if count < 1 || b.LastOffsetDelta() != count-1 || b.IsControl() {
		return false
	}
	limit := maxRecords(count)
	if b.Codec() != wire.CodecNone {
		limit = maxCompressed(limit)
	}
	return len(b)-wire.BatchHeaderSize <= limit
}

// Reserved reports whether a client's batch would be taken for a placeholder
// when it is fetched; see the package's documentation on Detection.
func Reserved(b wire.Batch) bool {
	if !b.IsV2() || b.Codec() != wire.CodecNone && !Candidate(b) {
		return false
	}
	_, is, _ := reference(b)
	return is
}

// Parse returns the reference of a placeholder; false for any other batch. The
// error says that it has the shape of a placeholder but a reference that
// cannot be read: it must not be passed on either.
func Parse(b wire.Batch) (Signed, bool, error) {
	if !Candidate(b) {
		return Signed{}, false, nil
	}
	value, is, err := reference(b)
	if !is {
		// Records that cannot be decompressed are the consumer's to judge, as
		// they are without sluice. Every placeholder can be.
		return Signed{}, false, nil
	}
	if err != nil {
		return Signed{}, true, err
	}
	s, err := parseRef(value)
	return s, true, err
}

// Shaped reports whether the records of a batch that Parse recognized are no
// larger than a placeholder's can be, decompressed. When they are, it is some
// client's data that begins like a placeholder.
func Shaped(b wire.Batch) bool {
	f := inflaters.Get().(*inflater)
	defer f.free()
	limit := maxRecords(b.NumRecords())
	records, err := f.all(b, limit)
	return err == nil && len(records) <= limit
}

// reference finds the reference in record 0: null key, zero-length value, and
// exactly one header, HeaderKey. The value is a copy.
func reference(b wire.Batch) (value []byte, is bool, err error) {
	if b.Codec() == wire.CodecNone {
		return record0(b.Body()[:min(peekSize, len(b.Body()))])
	}
	f := inflaters.Get().(*inflater)
	defer f.free()
	records, err := f.peek(b, peekSize, maxRecords(max(b.NumRecords(), 1)))
	if err != nil {
		return nil, false, err
	}
	value, is, err = record0(records)
	return append([]byte(nil), value...), is, err
}

func record0(p []byte) (value []byte, is bool, err error) {
	r := scanner{b: p}
	size := r.varint()
	if size < 0 || r.failed {
		return nil, false, nil
	}
	r.skip(1)             // attributes
	r.varint()            // timestamp delta
	if r.varint() != 0 || // offset delta
		r.varint() != -1 || // key
		r.varint() != 0 || // value
		r.varint() != 1 || // headers
		r.failed {
		return nil, false, nil
	}
	if key := r.bytes(r.varint()); string(key) != HeaderKey {
		return nil, false, nil
	}
	value = r.bytes(r.varint())
	if r.failed {
		return nil, true, errRef
	}
	return value, true, nil
}

// scanner reads the zigzag varints and lengths of records.
type scanner struct {
	b      []byte
	at     int
	failed bool
}

func (s *scanner) varint() int64 {
	// Most are one byte.
	if s.at < len(s.b) && s.b[s.at] < 0x80 {
		v := s.b[s.at]
		s.at++
		return int64(v>>1) ^ -int64(v&1)
	}
	v, n := binary.Varint(s.b[min(s.at, len(s.b)):])
	if n <= 0 {
		s.failed = true
		return 0
	}
	s.at += n
	return v
}

func (s *scanner) skip(n int64) {
	if s.failed || n < 0 || n > int64(len(s.b)-s.at) {
		s.failed = true
		return
	}
	s.at += int(n)
}

func (s *scanner) bytes(n int64) []byte {
	from := s.at
	s.skip(n)
	if s.failed {
		return nil
	}
	return s.b[from:s.at]
}
