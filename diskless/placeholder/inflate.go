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

var errFrame = errors.New("not exactly one whole compressed frame")

const (
	// maxInflated bounds the records of one batch after decompression. They are
	// streamed, so it limits CPU time more than memory. Larger batches go inline
	// and the broker judges them.
	maxInflated = 64 << 20
	// inflateWindow is what one Validate holds of a batch's uncompressed bytes: a
	// block of plainLz4 behind the varint that the one before broke off in.
	inflateWindow = plainLz4Block + minVarint
	// maxZstdWindow bounds the history that a zstd frame may ask for. Levels
	// up to 19 stay within it; the records of others go inline.
	maxZstdWindow = 8 << 20
	// maxKeptBlock is the largest snappy block whose buffer is kept for the
	// next batch. Java, librdkafka and Go write 32 KiB to 64 KiB.
	maxKeptBlock = 1 << 20
)

// inflater streams the uncompressed records of a batch. It is stricter than
// the decoders under it: exactly one frame, nothing after it. Decoders differ
// in what they make of a second one, and a placeholder must not stand for
// bytes that some client reads differently.
type inflater struct {
	io.Reader
	codec  int
	window [inflateWindow]byte
	in     bytes.Reader

	gzip   gzip.Reader
	snappy snappyReader
	plain  plainLz4Reader
	lz4    *lz4.Reader
	zstd   *zstd.Decoder
}

// inflaters keeps decoders, which are dear to make, by codec.
var inflaters [wire.CodecZstd + 1]sync.Pool

func newInflater(codec int, body []byte) (*inflater, error) {
	f, _ := inflaters[codec].Get().(*inflater)
	if f == nil {
		f = &inflater{codec: codec}
	}
	f.in.Reset(body)
	if err := f.reset(body); err != nil {
		f.release()
		return nil, err
	}
	return f, nil
}

func (f *inflater) reset(body []byte) error {
	switch f.codec {
	case wire.CodecGzip:
		f.Reader = &f.gzip
		if err := f.gzip.Reset(&f.in); err != nil {
			return fmt.Errorf("gzip: %w", err)
		}
		f.gzip.Multistream(false)
	case wire.CodecSnappy:
		f.Reader = &f.snappy
		return f.snappy.reset(body)
	case wire.CodecLz4:
		frame, ok := parseLz4Frame(body)
		if !ok || !frame.kafka || frame.size(body) != len(body) {
			return fmt.Errorf("lz4: %w", errFrame)
		}
		if bytes.HasPrefix(body, plainLz4) {
			f.plain = plainLz4Reader{frame, body[frame.header:]}
			f.Reader = &f.plain
			return nil
		}
		if f.lz4 == nil {
			f.lz4 = lz4.NewReader(nil)
		}
		f.lz4.Reset(&f.in)
		f.Reader = f.lz4
	case wire.CodecZstd:
		frame, ok := parseZstdFrame(body)
		if !ok || frame.skippable || frame.size != len(body) {
			return fmt.Errorf("zstd: %w", errFrame)
		}
		if f.zstd == nil {
			d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
			if err != nil {
				return err
			}
			f.zstd = d
		}
		if err := f.zstd.Reset(&f.in); err != nil {
			return fmt.Errorf("zstd: %w", err)
		}
		f.Reader = f.zstd
	}
	return nil
}

// end is called when all output was read.
func (f *inflater) end() error {
	if f.in.Len() != 0 && f.codec == wire.CodecGzip {
		return fmt.Errorf("gzip: %w", errFrame)
	}
	return nil
}

func (f *inflater) release() {
	f.in.Reset(nil)
	f.snappy.release()
	f.plain.rest = nil
	if f.zstd != nil {
		_ = f.zstd.Reset(nil) // lets go of the input; always nil for a nil reader
	}
	inflaters[f.codec].Put(f)
}

// plainLz4 starts the frames of Java clients and librdkafka: independent blocks of
// plainLz4Block at most, neither checksums nor a size, and the header's own checksum.
var plainLz4 = []byte{0x04, 0x22, 0x4D, 0x18, 0x60, 0x40, 0x82}

const plainLz4Block = 64 << 10

// plainLz4Reader reads a frame that was found whole and begins with plainLz4. It
// decodes from the batch into the scanner's window; lz4.Reader copies before that and
// after it.
type plainLz4Reader struct {
	frame lz4Frame
	rest  []byte
}

// Read implements io.Reader, for those who have room for a block.
func (r *plainLz4Reader) Read(p []byte) (n int, err error) {
	if len(p) < plainLz4Block {
		return 0, io.ErrShortBuffer
	}
	for n == 0 {
		data, stored, rest, ok := r.frame.block(r.rest)
		if !ok {
			return 0, io.EOF
		}
		r.rest = rest
		switch {
		case len(data) > plainLz4Block:
			return 0, lz4.ErrOptionInvalidBlockSize
		case stored:
			n = copy(p, data)
		default:
			if n, err = lz4.UncompressBlock(data, p[:plainLz4Block]); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// xerialHeader starts the framing of snappy-java, which Java clients,
// librdkafka and most others use: this, version and compatible version, then
// blocks of a big-endian length and raw snappy each.
var xerialHeader = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const xerialHeaderSize = 16

func isXerial(body []byte) bool {
	return len(body) >= xerialHeaderSize && bytes.HasPrefix(body, xerialHeader)
}

// snappyReader reads raw snappy (one block) and xerial's framing.
type snappyReader struct {
	rest  []byte
	raw   bool
	block []byte // the buffer of blocks
	out   []byte // what is left of the current one
}

func (r *snappyReader) reset(body []byte) error {
	r.out, r.rest, r.raw = nil, body, true
	if isXerial(body) {
		if binary.BigEndian.Uint32(body[8:]) != 1 || binary.BigEndian.Uint32(body[12:]) != 1 {
			return errors.New("xerial snappy: version is not 1")
		}
		r.rest, r.raw = body[xerialHeaderSize:], false
	}
	return nil
}

func (r *snappyReader) release() {
	r.out, r.rest = nil, nil
	if cap(r.block) > maxKeptBlock {
		r.block = nil
	}
}

func (r *snappyReader) Read(p []byte) (int, error) {
	for len(r.out) == 0 {
		if len(r.rest) == 0 {
			return 0, io.EOF
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

func (r *snappyReader) next() error {
	in := r.rest
	if !r.raw {
		if len(in) < 4 {
			return io.ErrUnexpectedEOF
		}
		n := int64(binary.BigEndian.Uint32(in))
		if n > int64(len(in)-4) {
			return io.ErrUnexpectedEOF
		}
		in = in[4 : 4+n]
		r.rest = r.rest[4+n:]
	} else {
		r.rest = nil
	}
	n, err := snappy.DecodedLen(in)
	if err != nil {
		return err
	}
	// No element of snappy yields more than 64 bytes from three: a claim
	// beyond that is false, and not worth a buffer.
	if n > maxInflated || n > 22*len(in) {
		return snappy.ErrTooLarge
	}
	if r.block, err = snappy.DecodeStrict(r.block[:0], in); err != nil {
		return err
	}
	r.out = r.block
	return nil
}
