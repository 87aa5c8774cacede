package placeholder

import (
	"math/bits"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

const (
	// peekSize is how much of the uncompressed records detection looks at.
	peekSize = 512
	// maxRecord0 bounds record 0 of a placeholder: length 2, attributes 1,
	// timestamp delta 10, offset delta 1, key 1, value 1, number of headers 1,
	// the header's key 1 and itself, its value 2 and itself.
	maxRecord0 = 2 + 1 + 10 + 1 + 1 + 1 + 1 + 1 + len(HeaderKey) + 2 + maxRefSize
	// maxRecord0Loose is the same with every varint as long as Kafka reads
	// one. Only a client writes such; a broker that compresses anew does not.
	maxRecord0Loose = 5 + 1 + 10 + 5 + 5 + 5 + 5 + 5 + len(HeaderKey) + 5 + maxRefSize
)

// Record 0 is within what is looked at, however it is written.
var _ [peekSize - maxRecord0Loose]struct{}

// maxRecords is the largest size of a placeholder's records, uncompressed.
// Each but the first has length 1, attributes 1, timestamp delta at most 10,
// its offset delta, and 1 each for key, value and number of headers.
func maxRecords(count int32) int64 {
	offsetDelta := (bits.Len64(2*uint64(count)) + 6) / 7
	return int64(maxRecord0) + (int64(count)-1)*int64(15+offsetDelta)
}

// maxPacked bounds what an encoder makes of n bytes; the package's
// documentation says why, for each codec.
func maxPacked(codec int, n int64) int64 {
	switch codec {
	case wire.CodecGzip:
		return n + n>>3 + n>>6 + 64
	case wire.CodecSnappy:
		return n + n/6 + 36*(n>>10+1) + xerialHeaderSize
	case wire.CodecLz4:
		return n + 8*(n>>16+1) + 32
	case wire.CodecZstd:
		return n + n>>8 + 3*(n>>10+1) + 96
	}
	return n
}

// Candidate reports whether a batch may be a placeholder. It is never false
// for one. It reads the header, and of uncompressed batches record 0.
func Candidate(b wire.Batch) bool {
	if !b.IsV2() {
		return false
	}
	count := b.NumRecords()
	if count < 1 || b.LastOffsetDelta() != count-1 || b.IsControl() {
		return false
	}
	limit := maxRecords(count)
	if codec := b.Codec(); codec != wire.CodecNone {
		limit = maxPacked(codec, limit)
	}
	if int64(len(b)-wire.BatchHeaderSize) > limit {
		return false
	}
	return b.Codec() != wire.CodecNone || readHead(b.Body()).shaped
}

// Reserved reports whether a client's batch carries HeaderKey in record 0, as
// far as the first 512 bytes of its records show. It is true for all that Parse
// would take for a placeholder, now or after a broker compressed it anew, and
// therefore does not look at sizes. For the same reason it is true for
// compressed records that are intact, by their CRC, and yet unreadable here.
func Reserved(b wire.Batch) bool {
	if !b.IsV2() {
		return false
	}
	if b.Codec() == wire.CodecNone {
		return readHead(b.Body()[:min(peekSize, len(b.Body()))]).reserved
	}
	var space [peekSize]byte
	records, ok := peek(space[:0], b)
	if !ok && b.ComputeCRC() == b.CRC() {
		return true
	}
	return readHead(records).reserved
}

// Parse returns the reference of a placeholder; false for any other batch. The
// error says that it has the shape of a placeholder but a reference that
// cannot be read: it must not be passed on either.
func Parse(b wire.Batch) (Signed, bool, error) {
	if !Candidate(b) {
		return Signed{}, false, nil
	}
	var space [peekSize]byte
	records := b.Body()
	if b.Codec() != wire.CodecNone {
		// Records that cannot be decompressed are the consumer's to judge, as
		// they are without sluice. Every placeholder can be.
		records, _ = peek(space[:0], b)
	}
	h := readHead(records)
	if !h.shaped {
		return Signed{}, false, nil
	}
	s, err := parseRef(h.value)
	return s, true, err
}

// head is what the start of the records says of record 0.
type head struct {
	reserved bool   // it has a header HeaderKey
	shaped   bool   // and no other, a null key and an empty value
	value    []byte // of the header; nil when it is null or not all there
}

// readHead reads record 0 as leniently as Kafka does: what a broker makes of
// it when it compresses anew is in the strictest form.
func readHead(p []byte) (h head) {
	c := cursor{b: p}
	c.varint() // length
	c.take(1)  // attributes
	c.varlong()
	c.varint() // offset delta
	key := c.varint()
	c.take(key)
	value := c.varint()
	c.take(value)
	headers := c.varint()
	for range max(headers, 0) {
		size := c.varint()
		name := c.take(size)
		if c.ended || size < 0 {
			return h
		}
		if string(name) == HeaderKey {
			h.reserved = true
			if h.shaped = headers == 1 && key < 0 && value == 0; h.shaped {
				h.value = c.take(c.varint())
			}
			return h
		}
		c.take(c.varint())
	}
	return h
}

// cursor reads record 0. ended says that it goes on beyond what is there, or
// makes no sense.
type cursor struct {
	b     []byte
	ended bool
}

func (c *cursor) varint() int32 {
	// Most are one byte.
	if len(c.b) > 0 && c.b[0] < 0x80 {
		v := int32(c.b[0])
		c.b = c.b[1:]
		return v>>1 ^ -(v & 1)
	}
	v, n := wire.Varint(c.b)
	c.advance(n)
	return v
}

func (c *cursor) varlong() {
	_, n := wire.Varlong(c.b)
	c.advance(n)
}

func (c *cursor) advance(n int) {
	if n == 0 {
		c.ended, c.b = true, nil
		return
	}
	c.b = c.b[n:]
}

// take returns n bytes, or nil when n is the length of null.
func (c *cursor) take(n int32) []byte {
	if n < 0 {
		return nil
	}
	if int64(n) > int64(len(c.b)) {
		c.ended, c.b = true, nil
		return nil
	}
	p := c.b[:n:n]
	c.b = c.b[n:]
	return p
}
