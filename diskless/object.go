package diskless

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/diskless/footer"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// A WAL object holds record batches of any partitions, back to back, as
// clients sent them, and then describes itself:
//
//	batch …            the batches' own bytes
//	footer             one entry a batch, in order of offset
//	footer length      uint32, big-endian
//	footer CRC-32C     uint32
//	format version     uint8, 1
//	magic              7 bytes, "sluiceW"
//
// A footer entry, integers as uvarint unless said otherwise:
//
//	topic length, topic (UTF-8), partition, offset in the object, length,
//	record count, producer id + 1, producer epoch + 1, base sequence + 1,
//	batch CRC (uint32, big-endian)
//
// See footer for the trailer.
const objectMagic = "sluiceW"

// LockedPrefix is of all that belongs to audit classes: a store's lock is put on
// what is below it.
const LockedPrefix = "audit/"

// WALPrefix and AuditPrefix are where WAL objects live in a store.
const (
	WALPrefix   = "wal/"
	AuditPrefix = LockedPrefix + "wal/"
)

// ObjectKey is where a WAL object is.
func ObjectKey(id ulid.ULID, audit bool) string {
	if audit {
		return AuditPrefix + id.String()
	}
	return WALPrefix + id.String()
}

// ParseObjectKey is the reverse of ObjectKey. What is not exactly a key of a WAL
// object is none.
func ParseObjectKey(key string) (id ulid.ULID, audit, ok bool) {
	name, ok := strings.CutPrefix(key, WALPrefix)
	if !ok {
		if name, audit = strings.CutPrefix(key, AuditPrefix); !audit {
			return id, false, false
		}
	}
	id, err := ulid.ParseStrict(name)
	return id, audit, err == nil && ObjectKey(id, audit) == key
}

// Entry describes one batch of an object.
type Entry struct {
	Topic         string
	Partition     int32
	Offset        uint64 // in the object
	Length        uint32
	Records       int32
	ProducerID    int64
	ProducerEpoch int16
	BaseSequence  int32
	CRC           uint32
}

func entryOf(topic string, partition int32, offset int, b wire.Batch) Entry {
	return Entry{
		Topic: topic, Partition: partition, Offset: uint64(offset), Length: uint32(len(b)), Records: b.NumRecords(),
		ProducerID: b.ProducerID(), ProducerEpoch: b.ProducerEpoch(), BaseSequence: b.BaseSequence(), CRC: b.CRC(),
	}
}

// appendEntry adds a batch to a footer.
func appendEntry(footer []byte, e Entry) []byte {
	footer = binary.AppendUvarint(footer, uint64(len(e.Topic)))
	footer = append(footer, e.Topic...)
	footer = binary.AppendUvarint(footer, uint64(uint32(e.Partition)))
	footer = binary.AppendUvarint(footer, e.Offset)
	footer = binary.AppendUvarint(footer, uint64(e.Length))
	footer = binary.AppendUvarint(footer, uint64(uint32(e.Records)))
	footer = binary.AppendUvarint(footer, uint64(e.ProducerID+1))
	footer = binary.AppendUvarint(footer, uint64(uint16(e.ProducerEpoch+1)))
	footer = binary.AppendUvarint(footer, uint64(uint32(e.BaseSequence+1)))
	return binary.BigEndian.AppendUint32(footer, e.CRC)
}

// wholeObject is batches, footer and trailer in no more memory than they need:
// what is written also stays in the cache. It may be batches' own memory.
func wholeObject(batches, described []byte) []byte {
	size := len(batches) + len(described) + footer.TrailerSize
	object := batches
	if spare := cap(batches) - size; spare < 0 || spare > size/8 {
		object = append(objstore.Unzeroed(size), batches...)
	}
	return footer.Seal(append(object, described...), len(batches), objectMagic)
}

// BuildObject makes a WAL object anew, as it was written, of batches that lie back
// to back and the entries that describe them.
func BuildObject(batches []byte, entries []Entry) []byte {
	var described []byte
	for _, e := range entries {
		described = appendEntry(described, e)
	}
	return wholeObject(batches, described)
}

// Intact reports whether b is the batch that an entry describes.
func Intact(b wire.Batch, length, crc uint32) bool {
	return b.IsV2() && len(b) == int(length) && int64(b.Length())+wire.LogOverhead == int64(len(b)) && b.CRC() == crc && b.ComputeCRC() == crc
}

// ErrObject is an object that is not one of ours, or not whole. What it held
// can only be found in a copy.
var ErrObject = errors.New("not a whole WAL object")

// FooterSize is what footer and trailer of an object take together, given its
// end; 0 when that is not the end of a WAL object.
func FooterSize(end []byte) int64 { return footer.Size(end, objectMagic) }

// ReadFooter returns the entries of an object, given its end: at least the
// footer and the trailer, at most the whole object of size bytes.
func ReadFooter(end []byte, size int64) ([]Entry, error) {
	if int64(len(end)) > size {
		return nil, fmt.Errorf("%w: %d of %d bytes", ErrObject, len(end), size)
	}
	body, err := footer.Open(end, objectMagic)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrObject, err)
	}
	payload := uint64(size) - uint64(len(body)+footer.TrailerSize)
	var entries []Entry
	at := uint64(0)
	for r := (footer.Reader{Left: body}); len(r.Left) > 0; {
		e := Entry{
			Topic:         string(r.Bytes(r.Uvarint())),
			Partition:     int32(r.Uvarint()),
			Offset:        r.Uvarint(),
			Length:        uint32(r.Uvarint()),
			Records:       int32(r.Uvarint()),
			ProducerID:    int64(r.Uvarint()) - 1,
			ProducerEpoch: int16(r.Uvarint()) - 1,
			BaseSequence:  int32(r.Uvarint()) - 1,
		}
		if crc := r.Bytes(4); crc != nil {
			e.CRC = binary.BigEndian.Uint32(crc)
		}
		if r.Failed || e.Offset != at || uint64(e.Length) > payload-at {
			return nil, fmt.Errorf("%w: footer entry %d", ErrObject, len(entries))
		}
		at += uint64(e.Length)
		entries = append(entries, e)
	}
	if at != payload {
		return nil, fmt.Errorf("%w: the footer describes %d of %d bytes", ErrObject, at, payload)
	}
	return entries, nil
}
