package placeholder

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// ErrInvalid is a batch that the broker would refuse, or that this package
// does not vouch for. It goes upstream unchanged and the broker answers it.
var ErrInvalid = errors.New("not a valid record batch")

// ErrControl is a control batch, which only brokers write.
var ErrControl = errors.New("control batch")

// ErrMagic is a message format before v2.
var ErrMagic = errors.New("message format before v2")

// maxRecordCount bounds the records of a batch that is made a placeholder of:
// beyond it a placeholder saves next to nothing, and a small batch that
// decompresses to many empty records would make a large one.
const maxRecordCount = 1 << 18

// knownAttributes are the bits that a producer may set.
const knownAttributes = wire.AttrCodecMask | wire.AttrTransactional

// Original is a client's batch that was validated in full. It keeps nothing of
// the batch's bytes.
type Original struct {
	header wire.Batch // a copy of the batch's header
	first  int64      // timestamp delta of record 0
	rest   []byte     // records 1… of the placeholder, encoded
}

// Validate checks what the broker would check of a produced batch (Kafka's
// DefaultRecordBatch.ensureValid, LogValidator.validateBatch and the parsing of
// every record), so that the broker accepts the placeholder exactly when it
// would have accepted the batch.
func Validate(b wire.Batch) (*Original, error) {
	invalid := func(format string, args ...any) (*Original, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
	}
	if len(b) < wire.LogOverhead+5 {
		return invalid("%d bytes", len(b))
	}
	if m := b.Magic(); m != 2 {
		if m < 2 && m >= 0 {
			return nil, ErrMagic
		}
		return invalid("magic %d", m)
	}
	if len(b) < wire.BatchHeaderSize || int64(b.Length())+wire.LogOverhead != int64(len(b)) {
		return invalid("its length says %d of %d bytes", b.Length(), len(b))
	}
	if b.IsControl() {
		return nil, ErrControl
	}
	if got := b.ComputeCRC(); got != b.CRC() {
		return invalid("CRC is %08x, should be %08x", b.CRC(), got)
	}
	attrs := b.Attributes()
	if attrs&^knownAttributes != 0 || b.Codec() > wire.CodecZstd {
		return invalid("attributes %#x", attrs)
	}
	count := b.NumRecords()
	if count < 1 || count > maxRecordCount || b.LastOffsetDelta() != count-1 {
		return invalid("%d records, last offset delta %d", count, b.LastOffsetDelta())
	}
	if b.BaseOffset() != 0 {
		return invalid("base offset %d", b.BaseOffset())
	}
	pid, epoch, seq := b.ProducerID(), b.ProducerEpoch(), b.BaseSequence()
	switch {
	case pid < -1, pid >= 0 && (epoch < 0 || seq < 0):
		return invalid("producer id %d, epoch %d, sequence %d", pid, epoch, seq)
	case pid == -1 && b.IsTransactional():
		return invalid("transactional without a producer id")
	}

	s, err := newScanner(b)
	if err != nil {
		return invalid("records: %v", err)
	}
	defer s.release()
	o := &Original{header: append(wire.Batch(nil), b[:wire.BatchHeaderSize]...)}
	// An empty record takes 7 bytes or 8 in all but odd cases. What the header
	// claims is not worth more memory than the batch itself suggests.
	o.rest = make([]byte, 0, min(8*int(count), 4*len(b)))
	for i := range count {
		delta := s.record(i)
		if s.err != nil {
			return invalid("record %d: %v", i, s.err)
		}
		if i == 0 {
			o.first = delta
		} else {
			o.rest = appendEmpty(o.rest, delta, i)
		}
	}
	if err := s.end(); err != nil {
		return invalid("after the last record: %v", err)
	}
	return o, nil
}

// appendEmpty encodes a record without key, value bytes and headers.
func appendEmpty(dst []byte, delta int64, index int32) []byte {
	at := len(dst)
	dst = append(dst, 0, 0) // length, attributes
	dst = binary.AppendVarint(dst, delta)
	dst = binary.AppendVarint(dst, int64(index))
	dst = append(dst, varintNull, 0, 0) // key, value, headers
	dst[at] = byte(len(dst)-at-1) << 1
	return dst
}
