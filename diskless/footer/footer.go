// Package footer is how objects of sluice's own end: a body that describes the
// object, and behind it a trailer of a fixed size, so that who knows an object's
// size finds its description with one ranged GET.
//
//	body …             what describes the object
//	body length        uint32, big-endian
//	body CRC-32C       uint32
//	format version     uint8, 1
//	magic              7 bytes, which say what kind of object it is
package footer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

const (
	version   = 1
	magicSize = 7
	// TrailerSize is what stands behind the body.
	TrailerSize = 4 + 4 + 1 + magicSize
)

// Seal adds the trailer to a body that begins at start.
func Seal(dst []byte, start int, magic string) []byte {
	body := dst[start:]
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)))
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(body, wire.Castagnoli))
	dst = append(dst, version)
	return append(dst, magic...)
}

// Open returns the body that Seal was given, out of the end of an object: at
// least body and trailer.
func Open(end []byte, magic string) ([]byte, error) {
	if len(end) < TrailerSize {
		return nil, fmt.Errorf("%d bytes", len(end))
	}
	trailer := end[len(end)-TrailerSize:]
	if string(trailer[9:]) != magic {
		return nil, errors.New("no trailer")
	}
	if trailer[8] != version {
		return nil, fmt.Errorf("format version %d; this sluice knows %d", trailer[8], version)
	}
	before := end[:len(end)-TrailerSize]
	length := uint64(binary.BigEndian.Uint32(trailer))
	if length > uint64(len(before)) {
		return nil, fmt.Errorf("%d bytes are said to stand before the trailer, %d do", length, len(before))
	}
	body := before[uint64(len(before))-length:]
	if crc32.Checksum(body, wire.Castagnoli) != binary.BigEndian.Uint32(trailer[4:]) {
		return nil, errors.New("wrong checksum")
	}
	return body, nil
}

// Size is what body and trailer take together, given an object's end; 0 when that
// is not the end of an object of this kind.
func Size(end []byte, magic string) int64 {
	if len(end) < TrailerSize || string(end[len(end)-magicSize:]) != magic {
		return 0
	}
	return int64(binary.BigEndian.Uint32(end[len(end)-TrailerSize:])) + int64(TrailerSize)
}

// Reader takes a body apart. After the first failure it yields zeros, and Left is
// empty.
type Reader struct {
	Left   []byte
	Failed bool
}

// Fail ends the reading.
func (r *Reader) Fail() { r.Failed, r.Left = true, nil }

// Uvarint reads an integer.
func (r *Reader) Uvarint() uint64 {
	v, n := binary.Uvarint(r.Left)
	if n <= 0 {
		r.Fail()
		return 0
	}
	r.Left = r.Left[n:]
	return v
}

// Count reads a number of things of at least size bytes each, no more than can
// still come.
func (r *Reader) Count(size int) int {
	n := r.Uvarint()
	if n > uint64(len(r.Left)/size) {
		r.Fail()
		return 0
	}
	return int(n)
}

// Bytes returns the next n bytes, nil when there are fewer.
func (r *Reader) Bytes(n uint64) []byte {
	if n > uint64(len(r.Left)) {
		r.Fail()
		return nil
	}
	b := r.Left[:n]
	r.Left = r.Left[n:]
	return b
}
