package placeholder

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// maxInflated bounds what a batch's records may decompress to. Larger batches
// go inline and the broker judges them.
const maxInflated = 64 << 20

// maxWindow bounds the memory of a zstd decoder; Java's and librdkafka's
// encoders stay at 8 MiB even at their highest levels.
const maxWindow = 16 << 20

var errInflated = errors.New("decompresses to more than 64 MiB")

// xerialMagic begins snappy as Java frames it: 16 bytes of header, then blocks
// of a big-endian length and raw snappy.
var xerialMagic = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const xerialHeader = 16

// inflater decompresses batches; it is reused because decoders are expensive to
// make.
type inflater struct {
	src  bytes.Reader
	gzip *gzip.Reader
	lz4  *lz4.Reader
	zstd *zstd.Decoder
	buf  []byte // output
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// maxKept is the largest output buffer that is worth keeping.
const maxKept = 4 << 20

func (f *inflater) free() {
	f.src.Reset(nil)
	if cap(f.buf) > maxKept {
		f.buf = nil
	}
	inflaters.Put(f)
}

// reader returns a stream of the decompressed records; not for snappy.
func (f *inflater) reader(codec int, body []byte) (io.Reader, error) {
	f.src.Reset(body)
	var err error
	switch codec {
	case wire.CodecGzip:
		if f.gzip == nil {
			if f.gzip, err = gzip.NewReader(&f.src); err != nil {
				f.gzip = nil
				return nil, err
			}
			return f.gzip, nil
		}
		return f.gzip, f.gzip.Reset(&f.src)
	case wire.CodecLz4:
		if f.lz4 == nil {
			f.lz4 = lz4.NewReader(&f.src)
		}
		f.lz4.Reset(&f.src)
		return f.lz4, nil
	case wire.CodecZstd:
		if f.zstd == nil {
			f.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				return nil, err
			}
		}
		return f.zstd, f.zstd.Reset(&f.src)
	}
	return nil, fmt.Errorf("codec %d is not known", codec)
}

// peek returns at most the first n decompressed bytes of a batch's records,
// valid until free. limit is the decompressed size above which the caller does
// not care: nil may be returned then.
func (f *inflater) peek(b wire.Batch, n, limit int) ([]byte, error) {
	body := b.Body()
	switch b.Codec() {
	case wire.CodecNone:
		return body[:min(n, len(body))], nil
	case wire.CodecSnappy:
		if bytes.HasPrefix(body, xerialMagic) {
			// The block that holds the first bytes is enough.
			first, _, err := xerialBlock(body[min(xerialHeader, len(body)):])
			if err != nil {
				return nil, err
			}
			body = first
		}
		size, err := snappy.DecodedLen(body)
		if err != nil {
			return nil, err
		}
		if size > limit {
			return nil, nil
		}
		f.grow(size)
		out, err := snappy.Decode(f.buf[:size], body)
		return out[:min(n, len(out))], err
	}
	r, err := f.reader(b.Codec(), body)
	if err != nil {
		return nil, err
	}
	f.grow(n)
	got, err := io.ReadFull(r, f.buf[:n])
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return f.buf[:got], err
}

// all returns all decompressed records, valid until free. Uncompressed ones
// are not copied.
func (f *inflater) all(b wire.Batch, limit int) ([]byte, error) {
	body := b.Body()
	switch b.Codec() {
	case wire.CodecNone:
		return body, nil
	case wire.CodecSnappy:
		return f.snappy(body, limit)
	}
	r, err := f.reader(b.Codec(), body)
	if err != nil {
		return nil, err
	}
	f.grow(min(4*len(body)+4096, limit))
	out := f.buf[:0]
	for {
		if len(out) == cap(out) {
			if len(out) > limit {
				return nil, errInflated
			}
			f.buf = out
			f.grow(2 * cap(out))
			out = append(f.buf[:0], out...)
		}
		n, err := r.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		if len(out) > limit {
			return nil, errInflated
		}
		if err == io.EOF {
			f.buf = out
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if f.src.Len() > 0 && b.Codec() != wire.CodecGzip {
		return nil, errors.New("bytes follow the compressed records")
	}
	return out, nil
}

func (f *inflater) snappy(body []byte, limit int) ([]byte, error) {
	if !bytes.HasPrefix(body, xerialMagic) {
		size, err := snappy.DecodedLen(body)
		if err != nil {
			return nil, err
		}
		if size > limit {
			return nil, errInflated
		}
		f.grow(size)
		return snappy.Decode(f.buf[:size], body)
	}
	body = body[min(xerialHeader, len(body)):]
	out := f.buf[:0]
	for len(body) > 0 {
		block, rest, err := xerialBlock(body)
		if err != nil {
			return nil, err
		}
		body = rest
		size, err := snappy.DecodedLen(block)
		if err != nil {
			return nil, err
		}
		if len(out)+size > limit {
			return nil, errInflated
		}
		if cap(out)-len(out) < size {
			bigger := make([]byte, len(out), max(2*cap(out), len(out)+size))
			copy(bigger, out)
			out = bigger
		}
		if _, err := snappy.Decode(out[len(out):len(out)+size], block); err != nil {
			return nil, err
		}
		out = out[:len(out)+size]
	}
	f.buf = out
	return out, nil
}

func xerialBlock(body []byte) (block, rest []byte, err error) {
	if len(body) < 4 {
		return nil, nil, io.ErrUnexpectedEOF
	}
	n := binary.BigEndian.Uint32(body)
	if uint64(n) > uint64(len(body)-4) {
		return nil, nil, io.ErrUnexpectedEOF
	}
	return body[4 : 4+n], body[4+n:], nil
}

// grow makes buf's capacity at least n; its content is lost.
func (f *inflater) grow(n int) {
	if cap(f.buf) < n {
		f.buf = make([]byte, n)
	}
	f.buf = f.buf[:cap(f.buf)]
}

// deflater compresses placeholders.
type deflater struct {
	lz4 *lz4.Writer
	out bytes.Buffer
}

var deflaters = sync.Pool{New: func() any { return new(deflater) }}

// lz4Frame compresses as Kafka's reader wants it: 64 KiB independent blocks.
func (d *deflater) lz4Frame(records []byte) ([]byte, error) {
	d.out.Reset()
	if d.lz4 == nil {
		d.lz4 = lz4.NewWriter(&d.out)
		if err := d.lz4.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false), lz4.ConcurrencyOption(1)); err != nil {
			return nil, err
		}
	}
	d.lz4.Reset(&d.out)
	if _, err := d.lz4.Write(records); err != nil {
		return nil, err
	}
	if err := d.lz4.Close(); err != nil {
		return nil, err
	}
	return d.out.Bytes(), nil
}

// zstdEncoder is safe for concurrent use through EncodeAll.
var zstdEncoder = sync.OnceValues(func() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(128<<10))
})
