package placeholder

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// peek fills dst, to its capacity, with the first of the bytes that a
// compressed batch's records decompress to, or with all of them if they are
// fewer. ok is false when neither can be had. dst's capacity is peekSize.
//
// It is lenient: other than Validate's decoders it checks no limits and, where
// it has read enough, no checksums, and takes several frames in a row.
func peek(dst []byte, b wire.Batch) (_ []byte, ok bool) {
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
	return dst, true // no codec that anybody knows
}

func full(dst []byte) bool { return len(dst) == cap(dst) }

// appendSome appends what there is room for.
func appendSome(dst, src []byte) []byte {
	return append(dst, src[:min(len(src), cap(dst)-len(dst))]...)
}

// appendMatch appends length bytes from offset before dst's end, as far as
// there is room. from is where dst begins for matches.
func appendMatch(dst []byte, from, offset, length int) (_ []byte, ok bool) {
	if offset <= 0 || offset > len(dst)-from {
		return dst, false
	}
	for length = min(length, cap(dst)-len(dst)); length > 0; {
		at := len(dst) - offset
		n := min(offset, length)
		dst = append(dst, dst[at:at+n]...)
		length -= n
	}
	return dst, true
}

// peekSnappy reads raw snappy, and xerial's framing with its header again
// between blocks, as snappy-java does.
func peekSnappy(dst, body []byte) (_ []byte, ok bool) {
	if !isXerial(body) {
		return peekSnappyBlock(dst, body)
	}
	for len(body) > 0 && !full(dst) {
		if isXerial(body) {
			body = body[xerialHeaderSize:]
			continue
		}
		if len(body) < 4 {
			return dst, false
		}
		n := min(int64(binary.BigEndian.Uint32(body)), int64(len(body)-4))
		if dst, ok = peekSnappyBlock(dst, body[4:4+n]); !ok {
			return dst, false
		}
		body = body[4+n:]
	}
	return dst, true
}

// peekSnappyBlock reads one block of raw snappy (format_description.txt of
// google/snappy).
func peekSnappyBlock(dst, b []byte) (_ []byte, ok bool) {
	_, n := binary.Uvarint(b)
	if n <= 0 {
		return dst, false
	}
	b = b[n:]
	for from := len(dst); len(b) > 0 && !full(dst); {
		tag := int(b[0])
		size := [4]int{1, 2, 3, 5}[tag&3]
		length := tag >> 2
		if tag&3 == 0 && length >= 60 {
			size += length - 59
		}
		if len(b) < size {
			return dst, false
		}
		offset := 0
		switch operand := b[1:size]; tag & 3 {
		case 0:
			if length >= 60 {
				length = 0
				for i := len(operand) - 1; i >= 0; i-- {
					length = length<<8 | int(operand[i])
				}
			}
			length++
			literals := b[size:]
			dst = appendSome(dst, literals[:min(length, len(literals))])
			if length > len(literals) {
				return dst, full(dst)
			}
			b = literals[length:]
			continue
		case 1:
			length = 4 + length&7
			offset = tag>>5<<8 | int(operand[0])
		case 2:
			length++
			offset = int(binary.LittleEndian.Uint16(operand))
		case 3:
			length++
			offset = int(binary.LittleEndian.Uint32(operand))
		}
		if dst, ok = appendMatch(dst, from, offset, length); !ok {
			return dst, false
		}
		b = b[size:]
	}
	return dst, true
}

func peekLz4(dst, body []byte) (_ []byte, ok bool) {
	f, ok := parseLz4Frame(body)
	if !ok {
		return dst, false
	}
	for rest := body[f.header:]; !full(dst); {
		block, stored, next, ok := f.block(rest)
		switch {
		case !ok: // the end mark, which ends it for Kafka whatever follows
			return dst, len(rest) >= 4 && binary.LittleEndian.Uint32(rest) == 0
		case stored:
			dst = appendSome(dst, block)
		default:
			if dst, ok = peekLz4Block(dst, block); !ok {
				return dst, false
			}
		}
		rest = next
	}
	return dst, true
}

// peekLz4Block reads one block (lz4_Block_format.md of lz4/lz4).
func peekLz4Block(dst, b []byte) (_ []byte, ok bool) {
	for len(b) > 0 {
		token := int(b[0])
		b = b[1:]
		var literals, length int
		if literals, b, ok = lz4Length(token>>4, b); !ok {
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
		if length, b, ok = lz4Length(token&15, b[2:]); !ok {
			return dst, false
		}
		// A block that depends on others may refer to them: lenient.
		if dst, ok = appendMatch(dst, 0, offset, length+4); !ok {
			return dst, false
		}
		if full(dst) {
			return dst, true
		}
	}
	return dst, true
}

func lz4Length(n int, b []byte) (length int, rest []byte, ok bool) {
	if n < 15 {
		return n, b, true
	}
	for i, v := range b {
		if n += int(v); v != 255 {
			return n, b[i+1:], true
		}
	}
	return n, nil, false
}

// peeker keeps the decoders that are dear to make.
type peeker struct {
	in   bytes.Reader
	gzip gzip.Reader

	zstd  *zstd.Decoder
	frame zstdReader

	buf [peekSize]byte
}

var peekers = sync.Pool{New: func() any { return new(peeker) }}

// read reads until n bytes are in buf. A nil error says that there are, or
// that r ended as it should.
func (p *peeker) read(r io.Reader, n int) (got []byte, err error) {
	at := 0
	for at < n && err == nil {
		var k int
		k, err = r.Read(p.buf[at:n])
		at += k
	}
	if at == n || err == io.EOF {
		err = nil
	}
	return p.buf[:at], err
}

// gzipBite is how much of its input gzip gets at first: inflate decodes its
// whole window of 32 KiB before it gives any of it away, unless its input ends.
// This is enough for the tables and 512 bytes of most batches.
const gzipBite = 768

func peekGzip(dst, body []byte) (_ []byte, ok bool) {
	p := peekers.Get().(*peeker)
	defer peekers.Put(p)
	defer p.in.Reset(nil)
	for bite := gzipBite; ; bite *= 8 {
		whole := bite >= len(body)
		p.in.Reset(body[:min(bite, len(body))])
		err := p.gzip.Reset(&p.in)
		var got []byte
		if err == nil {
			got, err = p.read(&p.gzip, cap(dst)-len(dst))
		}
		if whole || len(got) == cap(dst)-len(dst) {
			return append(dst, got...), err == nil
		}
	}
}

// zstdReader yields one frame's blocks under a header of our own, so that no
// client decides how much memory a peek takes.
type zstdReader struct {
	header []byte
	blocks []byte
}

// zstdPeekHeader has no checksum, no dictionary, no content size, and a window
// of 256 KiB: no match of a block that begins within the first 512 bytes
// reaches further back.
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

func peekZstd(dst, body []byte) (_ []byte, ok bool) {
	p := peekers.Get().(*peeker)
	defer peekers.Put(p)
	if p.zstd == nil {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdPeekWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return dst, false // the options are wrong: every test would fail
		}
		p.zstd = d
	}
	defer func() {
		p.frame = zstdReader{}
		// Let go of the input. There is none, says the error.
		if err := p.zstd.Reset(nil); err != nil && !errors.Is(err, zstd.ErrDecoderNilInput) {
			p.zstd = nil
		}
	}()
	for len(body) > 0 && !full(dst) {
		f, ok := parseZstdFrame(body)
		if !ok {
			return dst, false
		}
		if !f.skippable {
			p.frame = zstdReader{header: zstdPeekHeader, blocks: body[f.header:f.blocks]}
			err := p.zstd.Reset(&p.frame)
			if err != nil {
				return dst, false
			}
			var got []byte
			got, err = p.read(p.zstd, cap(dst)-len(dst))
			dst = append(dst, got...)
			if err != nil {
				return dst, false
			}
		}
		body = body[f.size:]
	}
	return dst, true
}
