package placeholder

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// Placeholders with fewer records than these are not compressed by that codec:
// it does not shrink them, or another is cheaper.
const (
	minLz4Records  = 50
	minZstdRecords = 1000
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
	return wire.BatchHeaderSize + maxReference + 10 + size
}

// Build makes the placeholder: a whole batch with base offset 0. zstdAllowed
// says whether the Produce request's version carries zstd (v7, KIP-110).
func (o *Original) Build(ref Ref, key Key, id Identity, zstdAllowed bool) ([]byte, error) {
	if ref.KeyID != key.ID {
		return nil, fmt.Errorf("placeholder: key %x signs no reference to key %x", key.ID, ref.KeyID)
	}
	out := make(wire.Batch, wire.BatchHeaderSize, wire.BatchHeaderSize+maxReference+maxEmptyRecord+len(o.rest))
	copy(out, o.header)
	out.SetLeaderEpoch(-1)

	sum := mac(key, id, ref, out)
	value := append(ref.append(make([]byte, 0, maxRefSize)), sum[:]...)
	body := make([]byte, 0, maxEmptyRecord+maxReference)
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
