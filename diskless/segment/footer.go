package segment

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/diskless/footer"
)

const (
	dataMagic = "sluiceS"
	listMagic = "sluiceM"
)

// MaxSize is the largest segment that the format allows.
const MaxSize = math.MaxUint32

// ErrGarbled is a segment or manifest that is not one of ours, or not whole.
// What it stood for may still be in WAL objects, or in another window.
var ErrGarbled = errors.New("not a whole segment or manifest")

// Entry describes one batch of a segment.
type Entry struct {
	Topic         string
	Partition     int32
	Object        ulid.ULID // the WAL object that the batch came from
	ObjectOffset  uint64    // its place there
	Length        uint32
	Records       int32
	ProducerID    int64
	ProducerEpoch int16
	BaseSequence  int32
	CRC           uint32
	Position      uint64 // its place in the segment
}

// Compare orders entries as a segment does.
func (e *Entry) Compare(o *Entry) int {
	return cmp.Or(strings.Compare(e.Topic, o.Topic), cmp.Compare(e.Partition, o.Partition), e.Object.Compare(o.Object), cmp.Compare(e.ObjectOffset, o.ObjectOffset))
}

// AppendFooter makes a segment of batches that lie back to back in dst, from its
// beginning. entries describe them in their order, which is that of Compare;
// Position is not looked at.
func AppendFooter(dst []byte, entries []Entry) ([]byte, error) {
	objects := make([]ulid.ULID, 0, 64)
	size := uint64(0)
	for i := range entries {
		e := &entries[i]
		size += uint64(e.Length)
		if i > 0 && !follows(&entries[i-1], e) {
			return nil, fmt.Errorf("entry %d of a segment does not follow the one before", i)
		}
		if i == 0 || e.Object != entries[i-1].Object {
			objects = append(objects, e.Object)
		}
	}
	if len(entries) == 0 || size != uint64(len(dst)) {
		return nil, fmt.Errorf("%d entries describe %d of a segment's %d bytes", len(entries), size, len(dst))
	}
	slices.SortFunc(objects, ulid.ULID.Compare)
	objects = slices.Compact(objects)
	index := make(map[ulid.ULID]int, len(objects))
	for i, o := range objects {
		index[o] = i
	}
	start := len(dst)
	dst = binary.AppendUvarint(dst, uint64(len(objects)))
	for _, o := range objects {
		dst = append(dst, o[:]...)
	}
	for len(entries) > 0 {
		first := &entries[0]
		n := 1
		for n < len(entries) && entries[n].Topic == first.Topic && entries[n].Partition == first.Partition {
			n++
		}
		dst = appendPlace(dst, first.Topic, first.Partition)
		dst = binary.AppendUvarint(dst, uint64(n))
		object, end := 0, uint64(0)
		for i := range entries[:n] {
			e := &entries[i]
			o := index[e.Object]
			if o != object {
				end = 0
			}
			dst = binary.AppendUvarint(dst, uint64(o-object))
			dst = binary.AppendUvarint(dst, e.ObjectOffset-end)
			dst = binary.AppendUvarint(dst, uint64(e.Length))
			dst = binary.AppendUvarint(dst, uint64(uint32(e.Records)))
			dst = binary.AppendUvarint(dst, uint64(e.ProducerID+1))
			dst = binary.AppendUvarint(dst, uint64(uint16(e.ProducerEpoch+1)))
			dst = binary.AppendUvarint(dst, uint64(uint32(e.BaseSequence+1)))
			dst = binary.BigEndian.AppendUint32(dst, e.CRC)
			object, end = o, e.ObjectOffset+uint64(e.Length)
		}
		entries = entries[n:]
	}
	dst = footer.Seal(dst, start, dataMagic)
	if len(dst) > MaxSize {
		return nil, fmt.Errorf("a segment of %d bytes: the format allows %d", len(dst), uint64(MaxSize))
	}
	return dst, nil
}

// maxOffset is that of references.
const maxOffset = 1 << 62

// follows reports whether b may stand behind a.
func follows(a, b *Entry) bool {
	if a.Topic != b.Topic || a.Partition != b.Partition || a.Object != b.Object {
		return a.Compare(b) < 0
	}
	return b.ObjectOffset >= a.ObjectOffset+uint64(a.Length)
}

func appendPlace(dst []byte, topic string, partition int32) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(topic)))
	dst = append(dst, topic...)
	return binary.AppendUvarint(dst, uint64(uint32(partition)))
}

// open returns the body of a segment or manifest, out of its end.
func open(end []byte, magic string) ([]byte, error) {
	body, err := footer.Open(end, magic)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGarbled, err)
	}
	return body, nil
}

// FooterSize is what footer and trailer of a segment take together, given its
// end; 0 when that is not the end of a segment.
func FooterSize(end []byte) int64 { return footer.Size(end, dataMagic) }

// Footer is what a segment says of itself.
type Footer struct {
	objects []ulid.ULID
	body    []byte // from the first partition on
	batches int
	payload uint64
}

// ParseFooter reads a footer out of the end of a segment of size bytes: at least
// footer and trailer, at most all of it. The footer keeps end.
func ParseFooter(end []byte, size int64) (*Footer, error) {
	if int64(len(end)) > size {
		return nil, fmt.Errorf("%w: %d of %d bytes", ErrGarbled, len(end), size)
	}
	body, err := open(end, dataMagic)
	if err != nil {
		return nil, err
	}
	f := &Footer{payload: uint64(size) - uint64(len(body)+footer.TrailerSize)}
	r := footer.Reader{Left: body}
	n := r.Count(16)
	f.objects = make([]ulid.ULID, n)
	for i := range f.objects {
		copy(f.objects[i][:], r.Bytes(16))
		if i > 0 && f.objects[i-1].Compare(f.objects[i]) >= 0 {
			r.Failed = true
		}
	}
	f.body = r.Left
	if r.Failed {
		return nil, fmt.Errorf("%w: the list of WAL objects", ErrGarbled)
	}
	at := uint64(0)
	var last Entry
	err = f.walk(func(e *Entry, _ int) bool {
		ok := (f.batches == 0 || follows(&last, e)) && e.ObjectOffset <= maxOffset && uint64(e.Length) <= f.payload-at
		last = *e
		f.batches++
		at += uint64(e.Length)
		return ok
	})
	if err != nil {
		return nil, err
	}
	if at != f.payload {
		return nil, fmt.Errorf("%w: the footer describes %d of %d bytes", ErrGarbled, at, f.payload)
	}
	return f, nil
}

// walk calls fn with each entry, and the index of its object, until it returns
// false, which is an error.
func (f *Footer) walk(fn func(e *Entry, object int) bool) error {
	r := footer.Reader{Left: f.body}
	position := uint64(0)
	for n := 0; len(r.Left) > 0; {
		topic := string(r.Bytes(r.Uvarint()))
		partition := int32(r.Uvarint())
		count := r.Count(minEntry)
		object, end := uint64(0), uint64(0)
		if count == 0 {
			r.Failed = true
		}
		for range count {
			e := Entry{Topic: topic, Partition: partition, Position: position}
			step := r.Uvarint()
			if step > 0 {
				end = 0
			}
			if step >= uint64(len(f.objects))-object {
				return fmt.Errorf("%w: entry %d", ErrGarbled, n)
			}
			object += step
			e.Object = f.objects[object]
			e.ObjectOffset = end + r.Uvarint()
			e.Length = uint32(r.Uvarint())
			e.Records = int32(r.Uvarint())
			e.ProducerID = int64(r.Uvarint()) - 1
			e.ProducerEpoch = int16(r.Uvarint()) - 1
			e.BaseSequence = int32(r.Uvarint()) - 1
			if crc := r.Bytes(4); crc != nil {
				e.CRC = binary.BigEndian.Uint32(crc)
			}
			if r.Failed || !fn(&e, int(object)) {
				return fmt.Errorf("%w: entry %d", ErrGarbled, n)
			}
			end = e.ObjectOffset + uint64(e.Length)
			position += uint64(e.Length)
			n++
		}
		if r.Failed {
			return fmt.Errorf("%w: after entry %d", ErrGarbled, n)
		}
	}
	return nil
}

// minEntry is the least that an entry takes.
const minEntry = 7 + 4

// Objects are the WAL objects of which the segment holds batches, in order. Not
// to be changed.
func (f *Footer) Objects() []ulid.ULID { return f.objects }

// Batches is how many entries there are.
func (f *Footer) Batches() int { return f.batches }

// Payload is how many bytes the batches have.
func (f *Footer) Payload() int64 { return int64(f.payload) }

// Entries yields all entries, in the order of Compare.
func (f *Footer) Entries() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		_ = f.walk(func(e *Entry, _ int) bool { return yield(*e) }) // it was walked before
	}
}
