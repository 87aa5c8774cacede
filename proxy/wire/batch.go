package wire

import (
	"encoding/binary"
	"hash/crc32"
)

// Layout of a v2 record batch (KIP-98, "Record Batch" in the protocol guide).
// Offsets in bytes from the start of the batch.
const (
	offBaseOffset      = 0
	offBatchLength     = 8
	offLeaderEpoch     = 12
	offMagic           = 16
	offCRC             = 17
	offAttributes      = 21
	offLastOffsetDelta = 23
	offFirstTimestamp  = 27
	offMaxTimestamp    = 35
	offProducerID      = 43
	offProducerEpoch   = 51
	offBaseSequence    = 53
	offNumRecords      = 57

	// BatchHeaderSize is the size of a v2 batch before its records.
	BatchHeaderSize = 61
	// LogOverhead is the part of every batch or legacy message set entry that
	// batch_length does not count: base offset and the length itself.
	LogOverhead = 12
)

// Attribute bits of a v2 batch.
const (
	AttrCodecMask     = 0x07
	AttrLogAppendTime = 0x08
	AttrTransactional = 0x10
	AttrControl       = 0x20
	AttrDeleteHorizon = 0x40
)

// Compression codecs, as in AttrCodecMask.
const (
	CodecNone   = 0
	CodecGzip   = 1
	CodecSnappy = 2
	CodecLz4    = 3
	CodecZstd   = 4
)

// Castagnoli is the polynomial of every v2 batch's CRC.
var Castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Batch is a view of one whole record batch: at least LogOverhead+5 bytes,
// exactly Size() of them. Accessors beyond Magic are only meaningful when
// IsV2. A Batch never copies.
type Batch []byte

// NextBatch splits the first whole batch (or legacy message set entry) off
// records. ok is false when what is left is empty, a partial batch, or not a
// batch at all; rest is then what could not be split.
func NextBatch(records []byte) (b Batch, rest []byte, ok bool) {
	if len(records) < LogOverhead+5 {
		return nil, records, false
	}
	n := int32(binary.BigEndian.Uint32(records[offBatchLength:]))
	if n < 5 || int64(n)+LogOverhead > int64(len(records)) {
		return nil, records, false
	}
	size := int(n) + LogOverhead
	b = Batch(records[:size:size])
	if b.Magic() >= 2 && size < BatchHeaderSize {
		return nil, records, false
	}
	return b, records[size:], true
}

func (b Batch) Size() int          { return len(b) }
func (b Batch) IsV2() bool         { return len(b) >= BatchHeaderSize && b.Magic() == 2 }
func (b Batch) Magic() int8        { return int8(b[offMagic]) }
func (b Batch) BaseOffset() int64  { return int64(binary.BigEndian.Uint64(b[offBaseOffset:])) }
func (b Batch) Length() int32      { return int32(binary.BigEndian.Uint32(b[offBatchLength:])) }
func (b Batch) LeaderEpoch() int32 { return int32(binary.BigEndian.Uint32(b[offLeaderEpoch:])) }
func (b Batch) CRC() uint32        { return binary.BigEndian.Uint32(b[offCRC:]) }
func (b Batch) Attributes() int16  { return int16(binary.BigEndian.Uint16(b[offAttributes:])) }
func (b Batch) LastOffsetDelta() int32 {
	return int32(binary.BigEndian.Uint32(b[offLastOffsetDelta:]))
}
func (b Batch) FirstTimestamp() int64 { return int64(binary.BigEndian.Uint64(b[offFirstTimestamp:])) }
func (b Batch) MaxTimestamp() int64   { return int64(binary.BigEndian.Uint64(b[offMaxTimestamp:])) }
func (b Batch) ProducerID() int64     { return int64(binary.BigEndian.Uint64(b[offProducerID:])) }
func (b Batch) ProducerEpoch() int16  { return int16(binary.BigEndian.Uint16(b[offProducerEpoch:])) }
func (b Batch) BaseSequence() int32   { return int32(binary.BigEndian.Uint32(b[offBaseSequence:])) }
func (b Batch) NumRecords() int32     { return int32(binary.BigEndian.Uint32(b[offNumRecords:])) }
func (b Batch) Codec() int            { return int(b.Attributes() & AttrCodecMask) }
func (b Batch) IsControl() bool       { return b.Attributes()&AttrControl != 0 }
func (b Batch) IsTransactional() bool { return b.Attributes()&AttrTransactional != 0 }
func (b Batch) LogAppendTime() bool   { return b.Attributes()&AttrLogAppendTime != 0 }

// Covered is what the CRC field covers: attributes to end. The rest is before it.
func (b Batch) Covered() []byte { return b[offAttributes:] }

// Body is the records section, compressed as Codec says.
func (b Batch) Body() []byte { return b[BatchHeaderSize:] }

// ComputeCRC is the CRC-32C over what the CRC field covers.
func (b Batch) ComputeCRC() uint32 { return crc32.Checksum(b.Covered(), Castagnoli) }

// Setters write in place; the caller owns the bytes. SetCRC comes last.

func (b Batch) SetBaseOffset(v int64)   { binary.BigEndian.PutUint64(b[offBaseOffset:], uint64(v)) }
func (b Batch) SetLength(v int32)       { binary.BigEndian.PutUint32(b[offBatchLength:], uint32(v)) }
func (b Batch) SetLeaderEpoch(v int32)  { binary.BigEndian.PutUint32(b[offLeaderEpoch:], uint32(v)) }
func (b Batch) SetMagic(v int8)         { b[offMagic] = byte(v) }
func (b Batch) SetCRC(v uint32)         { binary.BigEndian.PutUint32(b[offCRC:], v) }
func (b Batch) SetAttributes(v int16)   { binary.BigEndian.PutUint16(b[offAttributes:], uint16(v)) }
func (b Batch) SetMaxTimestamp(v int64) { binary.BigEndian.PutUint64(b[offMaxTimestamp:], uint64(v)) }
func (b Batch) SetFirstTimestamp(v int64) {
	binary.BigEndian.PutUint64(b[offFirstTimestamp:], uint64(v))
}
func (b Batch) SetLastOffsetDelta(v int32) {
	binary.BigEndian.PutUint32(b[offLastOffsetDelta:], uint32(v))
}
func (b Batch) SetProducerID(v int64) { binary.BigEndian.PutUint64(b[offProducerID:], uint64(v)) }
func (b Batch) SetProducerEpoch(v int16) {
	binary.BigEndian.PutUint16(b[offProducerEpoch:], uint16(v))
}
func (b Batch) SetBaseSequence(v int32) { binary.BigEndian.PutUint32(b[offBaseSequence:], uint32(v)) }
func (b Batch) SetNumRecords(v int32)   { binary.BigEndian.PutUint32(b[offNumRecords:], uint32(v)) }
