package placeholder

import "encoding/binary"

// lz4Frame is the descriptor of an lz4 frame.
type lz4Frame struct {
	header          int  // bytes before the first block
	blockChecksum   bool // four bytes after each block
	contentChecksum bool
	kafka           bool // KafkaLZ4BlockInputStream takes it: version 1, independent blocks, no dictionary
}

const lz4Magic = 0x184D2204

func parseLz4Frame(b []byte) (f lz4Frame, ok bool) {
	if len(b) < 7 || binary.LittleEndian.Uint32(b) != lz4Magic {
		return f, false
	}
	flags := b[4]
	f.header = 7
	if flags&0x08 != 0 {
		f.header += 8 // content size
	}
	f.blockChecksum = flags&0x10 != 0
	f.contentChecksum = flags&0x04 != 0
	f.kafka = flags>>6 == 1 && flags&0x20 != 0 && flags&0x03 == 0
	return f, f.header <= len(b)
}

// block splits the next block, its length field included, off b. ok is false
// at the end mark, where b ends too early, and at a stored block of no bytes: for
// Kafka's reader that is an end mark too, for others it is not.
func (f lz4Frame) block(b []byte) (data []byte, stored bool, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, false, b, false
	}
	n := binary.LittleEndian.Uint32(b)
	stored = n>>31 != 0
	size := int64(n &^ (1 << 31))
	end := 4 + size
	if f.blockChecksum {
		end += 4
	}
	if size == 0 || end > int64(len(b)) {
		return nil, false, b, false
	}
	return b[4 : 4+size], stored, b[end:], true
}

// size is the length of the whole frame at the start of b, or -1.
func (f lz4Frame) size(b []byte) int {
	rest := b[f.header:]
	for ok := true; ok; {
		_, _, rest, ok = f.block(rest)
	}
	end := 4
	if f.contentChecksum {
		end += 4
	}
	if len(rest) < end || binary.LittleEndian.Uint32(rest) != 0 {
		return -1
	}
	return len(b) - len(rest) + end
}

// zstdFrame is where the parts of a zstd frame (RFC 8878) are.
type zstdFrame struct {
	header    int // bytes before the first block
	blocks    int // where the blocks end
	size      int // of the whole frame
	skippable bool
}

const (
	zstdMagic         = 0xFD2FB528
	zstdSkippable     = 0x184D2A50
	zstdSkippableMask = 0xFFFFFFF0
)

// parseZstdFrame finds the frame at the start of b. ok is false when it is
// none, or ends early.
func parseZstdFrame(b []byte) (f zstdFrame, ok bool) {
	if len(b) < 8 {
		return f, false
	}
	switch magic := binary.LittleEndian.Uint32(b); {
	case magic&zstdSkippableMask == zstdSkippable:
		size := 8 + int64(binary.LittleEndian.Uint32(b[4:]))
		if size > int64(len(b)) {
			return f, false
		}
		return zstdFrame{header: int(size), blocks: int(size), size: int(size), skippable: true}, true
	case magic != zstdMagic:
		return f, false
	}
	descriptor := b[4]
	single := descriptor&0x20 != 0
	f.header = 5
	if !single {
		f.header++ // window descriptor
	}
	f.header += [4]int{0, 1, 2, 4}[descriptor&0x03] // dictionary id
	switch size := descriptor >> 6; {
	case size > 0:
		f.header += 1 << size
	case single:
		f.header++
	}
	for at, last := f.header, false; !last; {
		if at+3 > len(b) {
			return f, false
		}
		h := uint32(b[at]) | uint32(b[at+1])<<8 | uint32(b[at+2])<<16
		last = h&1 != 0
		size := int(h >> 3)
		if h>>1&3 == 1 {
			size = 1 // run of one byte
		}
		at += 3 + size
		f.blocks = at
	}
	f.size = f.blocks
	if descriptor&0x04 != 0 {
		f.size += 4
	}
	return f, f.size <= len(b)
}
