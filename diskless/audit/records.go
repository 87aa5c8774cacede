package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// Record is one record as the export writes it, in a line of JSON. Of a key, a
// value or a header's value that is not UTF-8 the other form is there instead. The
// JSON names are stable.
type Record struct {
	Topic         string         `json:"topic"`
	Partition     int32          `json:"partition"`
	Offset        int64          `json:"offset"`
	Timestamp     string         `json:"timestamp"` // RFC 3339, UTC, with milliseconds
	TimestampType string         `json:"timestamp_type"`
	Key           *string        `json:"key"` // null: no key
	KeyBase64     string         `json:"key_base64,omitempty"`
	Value         *string        `json:"value"` // null: a tombstone
	ValueBase64   string         `json:"value_base64,omitempty"`
	Headers       []RecordHeader `json:"headers,omitempty"`
	ProducerID    *int64         `json:"producer_id,omitempty"`
	ProducerEpoch *int16         `json:"producer_epoch,omitempty"`
	Sequence      *int32         `json:"sequence,omitempty"`
	Transaction   Outcome        `json:"transaction,omitempty"`
}

// RecordHeader is a header of a record.
type RecordHeader struct {
	Key         string  `json:"key"`
	Value       *string `json:"value"`
	ValueBase64 string  `json:"value_base64,omitempty"`
}

// Outcome is what became of a record's transaction; "" is of records in none.
type Outcome string

const (
	Committed Outcome = "committed"
	Aborted   Outcome = "aborted"
	Open      Outcome = "open" // the archive does not hold its end
)

// Range is which records are exported: all of From ≤ x < To, in offsets and in
// time.
type Range struct {
	FromOffset int64     `json:"from_offset"`
	ToOffset   int64     `json:"to_offset"` // below 0: no end
	From       time.Time `json:"from,omitzero"`
	To         time.Time `json:"to,omitzero"` // zero: no end
}

// touches reports whether an object may hold records of the range.
func (r Range) touches(h Header, batches []byte) bool {
	if h.Batches == 0 || h.Next <= r.FromOffset || r.ToOffset >= 0 && h.First >= r.ToOffset || !r.From.IsZero() && h.MaxTimestamp < r.From.UnixMilli() {
		return false
	}
	if r.To.IsZero() || h.FirstTimestamp < r.To.UnixMilli() {
		return true
	}
	// A batch's first timestamp need not be its least: producers choose them, or the
	// broker puts another in their place.
	found := false
	_ = each(batches, func(b wire.Batch) error {
		switch {
		case found || !b.IsV2() || b.IsControl():
			return nil
		case b.LogAppendTime():
			found = b.MaxTimestamp() < r.To.UnixMilli()
			return nil
		}
		records, err := decode(b)
		found = err != nil // what is in it is not known
		for _, one := range records {
			found = found || r.holds(b.BaseOffset()+int64(one.OffsetDelta), b.FirstTimestamp()+one.TimestampDelta64)
		}
		return nil
	})
	return found
}

func (r Range) holds(offset, timestamp int64) bool {
	return offset >= r.FromOffset && (r.ToOffset < 0 || offset < r.ToOffset) &&
		(r.From.IsZero() || timestamp >= r.From.UnixMilli()) && (r.To.IsZero() || timestamp < r.To.UnixMilli())
}

// outcomes are the ends of transactions, by producer id, in order of offset.
type outcomes struct {
	ends map[int64][]end
	open map[int64]bool // producers whose last transaction has not ended yet
}

type end struct {
	offset    int64
	committed bool
}

func newOutcomes() *outcomes { return &outcomes{map[int64][]end{}, map[int64]bool{}} }

// note takes the next batch. Only those of want leave a transaction open.
func (o *outcomes) note(b wire.Batch, want bool) {
	switch {
	case !b.IsV2() || !b.IsTransactional():
	case b.IsControl():
		if committed, ok := marker(b); ok {
			o.ends[b.ProducerID()] = append(o.ends[b.ProducerID()], end{b.BaseOffset(), committed})
			delete(o.open, b.ProducerID())
		}
	case want:
		o.open[b.ProducerID()] = true
	}
}

func (o *outcomes) of(b wire.Batch) Outcome {
	if !b.IsTransactional() {
		return ""
	}
	ends := o.ends[b.ProducerID()]
	i := sort.Search(len(ends), func(i int) bool { return ends[i].offset > b.BaseOffset() })
	switch {
	case i == len(ends):
		return Open
	case ends[i].committed:
		return Committed
	}
	return Aborted
}

// marker reads a control batch that ends a transaction: its key is version and
// type, int16 each; 0 is abort, 1 commit (EndTransactionMarker).
func marker(b wire.Batch) (committed, ok bool) {
	records, err := decode(b)
	if err != nil || len(records) == 0 || len(records[0].Key) < 4 {
		return false, false
	}
	switch binary.BigEndian.Uint16(records[0].Key[2:]) {
	case 0:
		return false, true
	case 1:
		return true, true
	}
	return false, false
}

var decompressor = kgo.DefaultDecompressor()

var errRecords = errors.New("the records cannot be read")

// decode returns a v2 batch's records.
func decode(b wire.Batch) ([]kmsg.Record, error) {
	raw, err := decompressor.Decompress(b.Body(), kgo.CompressionCodecType(b.Codec()))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRecords, err)
	}
	var records []kmsg.Record
	for len(raw) > 0 {
		length, n := binary.Varint(raw)
		if n <= 0 || length < 0 || length > int64(len(raw)-n) {
			return nil, errRecords
		}
		var r kmsg.Record
		if err := r.ReadFrom(raw[:n+int(length)]); err != nil {
			return nil, fmt.Errorf("%w: %w", errRecords, err)
		}
		records, raw = append(records, r), raw[n+int(length):]
	}
	if int32(len(records)) != b.NumRecords() {
		return nil, fmt.Errorf("%w: %d of %d", errRecords, len(records), b.NumRecords())
	}
	return records, nil
}

// text is bytes in one of the two forms.
func text(b []byte) (*string, string) {
	switch {
	case b == nil:
		return nil, ""
	case utf8.Valid(b):
		s := string(b)
		return &s, ""
	}
	return nil, base64.StdEncoding.EncodeToString(b)
}

// writeRecords writes what a range holds of an object's batches, and returns how
// many records that is.
func writeRecords(w io.Writer, h Header, batches []byte, r Range, o *outcomes) (n int64, err error) {
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	at := h.First
	err = each(batches, func(b wire.Batch) error {
		first, last := offsets(b, at)
		at = last + 1
		if last < r.FromOffset || r.ToOffset >= 0 && first >= r.ToOffset {
			return nil
		}
		if !b.IsV2() {
			return fmt.Errorf("%w: offset %d is in a message set of before Kafka 0.11, which only the archive's objects hold", errRecords, first)
		}
		if b.IsControl() {
			return nil
		}
		records, err := decode(b)
		if err != nil {
			return fmt.Errorf("the batch at offset %d: %w", first, err)
		}
		for _, rec := range records {
			offset, timestamp, kind := first+int64(rec.OffsetDelta), b.FirstTimestamp()+rec.TimestampDelta64, "CreateTime"
			if b.LogAppendTime() {
				timestamp, kind = b.MaxTimestamp(), "LogAppendTime"
			}
			if !r.holds(offset, timestamp) {
				continue
			}
			out := Record{
				Topic: h.Topic, Partition: h.Partition, Offset: offset,
				Timestamp: time.UnixMilli(timestamp).UTC().Format("2006-01-02T15:04:05.000Z"), TimestampType: kind, Transaction: o.of(b),
			}
			out.Key, out.KeyBase64 = text(rec.Key)
			out.Value, out.ValueBase64 = text(rec.Value)
			for _, header := range rec.Headers {
				one := RecordHeader{Key: header.Key}
				one.Value, one.ValueBase64 = text(header.Value)
				out.Headers = append(out.Headers, one)
			}
			if id := b.ProducerID(); id >= 0 {
				epoch, sequence := b.ProducerEpoch(), b.BaseSequence()
				if sequence >= 0 {
					sequence = int32((int64(sequence) + int64(rec.OffsetDelta)) & (1<<31 - 1))
				}
				out.ProducerID, out.ProducerEpoch, out.Sequence = &id, &epoch, &sequence
			}
			line.Reset()
			if err := enc.Encode(out); err != nil {
				return err
			}
			if _, err := w.Write(line.Bytes()); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	return n, err
}
