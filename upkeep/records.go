package upkeep

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// record is one of a batch, as its readers see it.
type record struct {
	offset  int64
	when    int64 // its timestamp
	key     []byte
	value   []byte
	headers []kmsg.Header
}

var errBatch = errors.New("the batch cannot be decoded")

var decompressor = kgo.DefaultDecompressor()

// decode returns the records of a batch. They share its memory, or that of its
// uncompressed form.
func decode(b wire.Batch) ([]record, error) {
	if !b.IsV2() {
		return nil, fmt.Errorf("%w: it is of the format of before Kafka 0.11", errBatch)
	}
	body, err := decompressor.Decompress(b.Body(), kgo.CompressionCodecType(b.Codec()))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBatch, err)
	}
	records := make([]record, 0, max(0, min(int(b.NumRecords()), len(body)/7+1))) // 7 is the shortest
	for range b.NumRecords() {
		size, k := binary.Varint(body)
		if k <= 0 || size < 0 || size > int64(len(body)-k) {
			return nil, fmt.Errorf("%w: record %d has no length", errBatch, len(records))
		}
		var r kmsg.Record
		if err := r.ReadFrom(body[:k+int(size)]); err != nil {
			return nil, fmt.Errorf("%w: record %d: %w", errBatch, len(records), err)
		}
		body = body[k+int(size):]
		when := b.FirstTimestamp() + r.TimestampDelta64
		if b.LogAppendTime() {
			when = b.MaxTimestamp()
		}
		records = append(records, record{b.BaseOffset() + int64(r.OffsetDelta), when, r.Key, r.Value, r.Headers})
	}
	if len(body) > 0 {
		return nil, fmt.Errorf("%w: %d bytes are left over", errBatch, len(body))
	}
	return records, nil
}

// sameAs reports whether a copy says the same.
func (r record) sameAs(o record) bool {
	if r.when != o.when || !sameBytes(r.key, o.key) || !sameBytes(r.value, o.value) {
		return false
	}
	return slices.EqualFunc(r.headers, o.headers, func(a, b kmsg.Header) bool { return a.Key == b.Key && sameBytes(a.Value, b.Value) })
}

func sameBytes(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// compressors by codec.
var compressors = sync.OnceValue(func() (all [wire.CodecZstd + 1]kgo.Compressor) {
	for codec, c := range map[int]kgo.CompressionCodec{
		wire.CodecGzip: kgo.GzipCompression(), wire.CodecSnappy: kgo.SnappyCompression(),
		wire.CodecLz4: kgo.Lz4Compression(), wire.CodecZstd: kgo.ZstdCompression(),
	} {
		all[codec], _ = kgo.DefaultCompressor(c) // an error only of unknown ones
	}
	return all
})

// encode makes a batch of records that follow each other, nobody's yet.
func encode(records []record, codec int) wire.Batch {
	body := make([]byte, 0, 4096)
	first, latest := records[0].when, records[0].when
	for i, r := range records {
		latest = max(latest, r.when)
		out := kmsg.Record{TimestampDelta64: r.when - first, OffsetDelta: int32(i), Key: r.key, Value: r.value, Headers: r.headers}
		rest := out.AppendTo(nil)[1:] // without the length, which was 0
		body = binary.AppendVarint(body, int64(len(rest)))
		body = append(body, rest...)
	}
	if c := compressors()[codec]; c != nil {
		packed, as := c.Compress(new(bytes.Buffer), body)
		body, codec = packed, int(as)
	}
	b := wire.Batch(append(make([]byte, wire.BatchHeaderSize, wire.BatchHeaderSize+len(body)), body...))
	b.SetMagic(2)
	b.SetAttributes(int16(codec))
	b.SetLength(int32(len(b) - wire.LogOverhead))
	b.SetLastOffsetDelta(int32(len(records) - 1))
	b.SetNumRecords(int32(len(records)))
	b.SetFirstTimestamp(first)
	b.SetMaxTimestamp(latest)
	return b
}

// whole reports whether a batch may go on as it is: all of its records follow
// each other, and keep their timestamps.
func whole(b wire.Batch) bool {
	return b.IsV2() && b.NumRecords() == b.LastOffsetDelta()+1 && !b.LogAppendTime()
}

// owned gives a batch a producer. It is written to.
func owned(b wire.Batch, pid int64, epoch int16, seq int32) wire.Batch {
	b.SetBaseOffset(0)
	b.SetLeaderEpoch(-1)
	b.SetAttributes(b.Attributes() & wire.AttrCodecMask)
	b.SetProducerID(pid)
	b.SetProducerEpoch(epoch)
	b.SetBaseSequence(seq)
	b.SetCRC(b.ComputeCRC())
	return b
}
