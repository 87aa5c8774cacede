package placeholder

import (
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// ErrMismatch is bytes that are not what the reference stands for: the object
// was altered, or it is another one.
var ErrMismatch = errors.New("the object's bytes are not those of the reference")

// Patch gives the original batch the place in the log that the broker gave its
// placeholder. original is what the object holds at ref; it is checked against
// ref and ph, and never written to: body aliases it, header is new. Both
// together are the batch that a consumer gets.
func Patch(original []byte, ph wire.Batch, ref Ref) (header, body []byte, err error) {
	b := wire.Batch(original)
	if len(b) < wire.BatchHeaderSize || len(b) != int(ref.Length) || !b.IsV2() || int64(b.Length())+wire.LogOverhead != int64(len(b)) {
		return nil, nil, fmt.Errorf("%w: not one batch of %d bytes", ErrMismatch, ref.Length)
	}
	if b.CRC() != ref.CRC || b.ComputeCRC() != ref.CRC {
		return nil, nil, fmt.Errorf("%w: CRC", ErrMismatch)
	}
	if b.NumRecords() != ph.NumRecords() || b.LastOffsetDelta() != ph.LastOffsetDelta() ||
		b.ProducerID() != ph.ProducerID() || b.ProducerEpoch() != ph.ProducerEpoch() || b.BaseSequence() != ph.BaseSequence() ||
		b.IsTransactional() != ph.IsTransactional() || b.IsControl() {
		return nil, nil, fmt.Errorf("%w: it is another batch", ErrMismatch)
	}
	h := append(wire.Batch(nil), b[:wire.BatchHeaderSize]...)
	h.SetBaseOffset(ph.BaseOffset())
	h.SetLeaderEpoch(ph.LeaderEpoch())
	// The broker's own changes: the log's timestamp type, and the largest
	// timestamp as it counted it.
	attrs := b.Attributes()
	if ph.LogAppendTime() {
		attrs |= wire.AttrLogAppendTime
	}
	if attrs != b.Attributes() || ph.MaxTimestamp() != b.MaxTimestamp() {
		h.SetAttributes(attrs)
		h.SetMaxTimestamp(ph.MaxTimestamp())
		h.SetCRC(crc32.Update(h.ComputeCRC(), wire.Castagnoli, b.Body()))
	}
	return h, b.Body(), nil
}
