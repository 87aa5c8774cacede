package placeholder

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// Placeholders with fewer records than these are not compressed by that codec:
// it does not shrink them, or another is cheaper.
const (
	minLz4Records  = 50
	minZstdRecords = 1000
	// usualRecord0 is the size of record 0 with a reference into an object of
	// some MiB.
	usualRecord0 = 2 + 7 + 1 + len(HeaderKey) + 1 + fixedRefSize + 4 + 3 + 4 + macSize
)

// PlaceholderSize estimates the placeholder's size, for the decision whether
// it is worth its while. Timestamp deltas of consecutive records compress to
// about two thirds by lz4 and to less than a quarter by zstd.
func (o *Original) PlaceholderSize() int {
	size := len(o.rest)
	switch count := o.header.NumRecords(); {
	case count >= minZstdRecords:
		size /= 4
	case count > minLz4Records:
		size = size * 2 / 3
	}
	return wire.BatchHeaderSize + usualRecord0 + size
}

// Build makes the placeholder: a whole batch with base offset 0. zstdAllowed
// says whether the Produce request's version carries zstd (v7, KIP-110); for an
// original in zstd the answer is ErrInvalid when it does not, as from a broker.
func (o *Original) Build(ref Ref, key Key, id Identity, zstdAllowed bool) ([]byte, error) {
	if o.header.Codec() == wire.CodecZstd && !zstdAllowed {
		return nil, fmt.Errorf("%w: zstd before version 7 of Produce", ErrInvalid)
	}
	if ref.KeyID != key.ID {
		return nil, fmt.Errorf("placeholder: key %x signs no reference to key %x", key.ID, ref.KeyID)
	}
	out := make(wire.Batch, wire.BatchHeaderSize, wire.BatchHeaderSize+maxRecord0+len(o.rest))
	copy(out, o.header)
	out.SetLeaderEpoch(-1)

	sum := mac(key, id, ref, out)
	value := append(ref.append(make([]byte, 0, maxRefSize)), sum[:]...)
	body := make([]byte, 0, maxRecord0)
	body = append(body, 0) // attributes
	body = binary.AppendVarint(body, o.first)
	body = append(body, 0, 1, 0) // offset delta 0, key -1, value 0
	body = binary.AppendVarint(body, 1)
	body = binary.AppendVarint(body, int64(len(HeaderKey)))
	body = append(body, HeaderKey...)
	body = binary.AppendVarint(body, int64(len(value)))
	body = append(body, value...)
	out = binary.AppendVarint(out, int64(len(body)))
	out = append(out, body...)
	out = append(out, o.rest...)

	attrs := o.header.Attributes() &^ wire.AttrCodecMask
	codec, compressed, err := o.compress(out.Body(), zstdAllowed)
	if err != nil {
		return nil, err
	}
	if codec != wire.CodecNone {
		out = append(out[:wire.BatchHeaderSize], compressed...)
		attrs |= int16(codec)
	}
	out.SetAttributes(attrs)
	out.SetLength(int32(len(out) - wire.LogOverhead))
	out.SetCRC(out.ComputeCRC())
	if !Candidate(out) {
		// The other side of the invariant in detect.go: such a placeholder
		// would reach consumers as empty records.
		return nil, errors.New("placeholder: it is larger than any placeholder can be")
	}
	return out, nil
}

// compress returns the records in the codec that suits their number, or
// CodecNone when that does not shrink them.
func (o *Original) compress(records []byte, zstdAllowed bool) (codec int, compressed []byte, err error) {
	count := o.header.NumRecords()
	switch {
	case count >= minZstdRecords && zstdAllowed:
		enc, err := zstdEncoder()
		if err != nil {
			return 0, nil, err
		}
		codec, compressed = wire.CodecZstd, enc.EncodeAll(records, nil)
	case count > minLz4Records:
		d := deflaters.Get().(*deflater)
		defer deflaters.Put(d)
		framed, err := d.lz4Frame(records)
		if err != nil {
			return 0, nil, err
		}
		codec, compressed = wire.CodecLz4, append([]byte(nil), framed...)
	}
	if codec == wire.CodecNone || len(compressed) >= len(records) {
		return wire.CodecNone, nil, nil
	}
	return codec, compressed, nil
}

// deflater compresses placeholders.
type deflater struct {
	lz4 *lz4.Writer
	out bytes.Buffer
}

// deflaters keeps encoders, which are dear to make.
var deflaters = sync.Pool{New: func() any { return new(deflater) }}

// lz4Frame compresses as Kafka's reader wants it: independent blocks.
func (d *deflater) lz4Frame(records []byte) ([]byte, error) {
	d.out.Reset()
	if d.lz4 == nil {
		d.lz4 = lz4.NewWriter(nil)
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
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false), zstd.WithWindowSize(128<<10))
})
