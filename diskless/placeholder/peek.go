package placeholder

import (
	"bytes"
	"encoding/binary"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// peek appends to dst, which has room for peekSize bytes, the first of them
// that a compressed batch's records decompress to: fewer when there are fewer,
// or when what follows them is corrupt. It takes everything that a broker's
// decoder takes, and more: it checks no checksum and no limit. What it cannot
// read, a broker refuses and a consumer cannot read either.
func peek(dst []byte, b wire.Batch) []byte {
	dst = dst[:0:peekSize]
	body := b.Body()
	switch b.Codec() {
	case wire.CodecGzip:
		return peekGzip(dst, body)
	case wire.CodecSnappy:
		return peekSnappy(dst, body)
	case wire.CodecLz4:
		return peekLz4(dst, body)
	case wire.CodecZstd:
		return peekZstd(dst, body)
	}
	return dst
}

// appendMatch appends length bytes from offset before dst's end, as far as
// dst has room.
func appendMatch(dst []byte, offset, length int) ([]byte, bool) {
	if offset <= 0 || offset > len(dst) {
		return dst, false
	}
	for length = min(length, cap(dst)-len(dst)); length > 0; {
		n := min(offset, length)
		dst = append(dst, dst[len(dst)-offset:len(dst)-offset+n]...)
		length -= n
	}
	return dst, true
}

func appendSome(dst, src []byte) []byte {
	return append(dst, src[:min(len(src), cap(dst)-len(dst))]...)
}

func full(dst []byte) bool { return len(dst) == cap(dst) }

// peekSnappy reads raw snappy, and xerial's framing with its header anywhere
// between blocks, as snappy-java does.
func peekSnappy(dst, body []byte) []byte {
	if !isXerial(body) {
		dst, _ = peekSnappyBlock(dst, body)
		return dst
	}
	for len(body) >= 4 && !full(dst) {
		if isXerial(body) {
			body = body[xerialHeaderSize:]
			continue
		}
		n := int64(binary.BigEndian.Uint32(body))
		body = body[4:]
		block := body[:min(n, int64(len(body)))]
		body = body[len(block):]
		var ok bool
		if dst, ok = peekSnappyBlock(dst, block); !ok {
			break
		}
	}
	return dst
}

// peekSnappyBlock decodes one block of raw snappy until dst is full.
func peekSnappyBlock(dst, b []byte) (_ []byte, ok bool) {
	_, n := binary.Uvarint(b)
	if n <= 0 {
		return dst, false
	}
	b = b[n:]
	start := len(dst) // matches do not reach into other blocks
	for len(b) > 0 && !full(dst) {
		tag := b[0]
		length := int(tag >> 2)
		var offset int
		switch extra := [4]int{0, 1, 2, 4}[tag&3]; {
		case tag&3 == 0:
			if length >= 60 {
				k := length - 59
				if len(b) < 1+k {
					return dst, false
				}
				length = 0
				for i := k; i > 0; i-- {
					length = length<<8 | int(b[i])
				}
				b = b[k:]
			}
			b = b[1:]
			dst = appendSome(dst, b[:min(length+1, len(b))])
			if length+1 > len(b) {
				return dst, full(dst)
			}
			b = b[length+1:]
			continue
		case len(b) < 1+extra:
			return dst, false
		case extra == 1:
			length = 4 + length&7
			offset = int(tag&0xe0)<<3 | int(b[1])
			b = b[2:]
		case extra == 2:
			length++
			offset = int(binary.LittleEndian.Uint16(b[1:]))
			b = b[3:]
		default:
			length++
			offset = int(binary.LittleEndian.Uint32(b[1:]))
			b = b[5:]
		}
		if offset > len(dst)-start {
			return dst, false
		}
		if dst, ok = appendMatch(dst, offset, length); !ok {
			return dst, false
		}
	}
	return dst, true
}

func peekLz4(dst, body []byte) []byte {
	f, ok := parseLz4Frame(body)
	if !ok {
		return dst
	}
	rest := body[f.header:]
	for !full(dst) {
		var block []byte
		var stored bool
		if block, stored, rest, ok = f.block(rest); !ok {
			break
		}
		if stored {
			dst = appendSome(dst, block)
		} else if dst, ok = peekLz4Block(dst, block); !ok {
			break
		}
	}
	return dst
}

// peekLz4Block decodes one lz4 block until dst is full.
func peekLz4Block(dst, b []byte) (_ []byte, ok bool) {
	extend := func(n int) (int, bool) {
		if n != 15 {
			return n, true
		}
		for i, v := range b {
			if n += int(v); v != 255 {
				b = b[i+1:]
				return n, true
			}
		}
		return n, false
	}
	for len(b) > 0 {
		token := int(b[0])
		b = b[1:]
		literals, ok := extend(token >> 4)
		if !ok {
			return dst, false
		}
		dst = appendSome(dst, b[:min(literals, len(b))])
		if full(dst) {
			return dst, true
		}
		if literals > len(b) {
			return dst, false
		}
		if b = b[literals:]; len(b) == 0 {
			return dst, true
		}
		if len(b) < 2 {
			return dst, false
		}
		offset := int(binary.LittleEndian.Uint16(b))
		b = b[2:]
		length, ok := extend(token & 15)
		if !ok {
			return dst, false
		}
		if dst, ok = appendMatch(dst, offset, length+4); !ok {
			return dst, false
		}
		if full(dst) {
			return dst, true
		}
	}
	return dst, true
}

// peeker keeps the decoders that are dear to make.
type peeker struct {
	in   bytes.Reader
	gzip gzip.Reader
	zstd *zstd.Decoder
	one  zstdReader
	buf  [peekSize]byte
}

var peekers = sync.Pool{New: func() any { return new(peeker) }}

// gzipBite is how much input a peek gives to gzip at first: inflate decodes
// its whole window of 32 KiB before it gives a byte of it away, unless its
// input ends. Enough for the tables and 512 bytes in most batches.
const gzipBite = 768

func peekGzip(dst, body []byte) []byte {
	p := peekers.Get().(*peeker)
	defer peekers.Put(p)
	for bite := gzipBite; ; bite *= 8 {
		p.in.Reset(body[:min(bite, len(body))])
		n := 0
		if p.gzip.Reset(&p.in) == nil {
			n, _ = io.ReadFull(&p.gzip, p.buf[:]) // what could be read is the answer
		}
		if n == peekSize || bite >= len(body) {
			p.in.Reset(nil)
			return append(dst, p.buf[:n]...)
		}
	}
}

// zstdReader yields one frame with a header of our own in place of the
// client's, so that no client decides how much memory a peek takes.
type zstdReader struct {
	header []byte
	blocks []byte
}

// Magic, no checksum or dictionary, and a window of 256 KiB: what 512 bytes
// and one block need. The decoder allows blocks of 128 KiB then.
var zstdPeekHeader = []byte{0x28, 0xB5, 0x2F, 0xFD, 0x00, 8 << 3}

const zstdPeekWindow = 256 << 10

func (r *zstdReader) Read(p []byte) (n int, err error) {
	n = copy(p, r.header)
	r.header = r.header[n:]
	m := copy(p[n:], r.blocks)
	r.blocks = r.blocks[m:]
	if n+m == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n + m, nil
}

func peekZstd(dst, body []byte) []byte {
	p := peekers.Get().(*peeker)
	defer peekers.Put(p)
	if p.zstd == nil {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdPeekWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return dst // options of ours, not of the batch
		}
		p.zstd = d
	}
	for len(body) > 0 && !full(dst) {
		f, whole := parseZstdFrame(body)
		if f.header == 0 || f.header > len(body) {
			break
		}
		if !f.skippable {
			p.one = zstdReader{header: zstdPeekHeader, blocks: body[f.header:min(max(f.blocks, f.header), len(body))]}
			if p.zstd.Reset(&p.one) != nil {
				break
			}
			n, err := io.ReadFull(p.zstd, p.buf[:cap(dst)-len(dst)])
			dst = append(dst, p.buf[:n]...)
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				break
			}
		}
		if !whole {
			break
		}
		body = body[f.size:]
	}
	if p.zstd != nil {
		_ = p.zstd.Reset(nil)
	}
	p.one = zstdReader{}
	return dst
}
