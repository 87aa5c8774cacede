package segment

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"math"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

const (
	version     = 1
	dataMagic   = "sluiceS"
	listMagic   = "sluiceM"
	TrailerSize = 4 + 4 + 1 + len(dataMagic)
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
	dst = seal(dst, start, dataMagic)
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

// seal adds the trailer to what begins at start.
func seal(dst []byte, start int, magic string) []byte {
	body := dst[start:]
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)))
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(body, wire.Castagnoli))
	dst = append(dst, version)
	return append(dst, magic...)
}

// unseal returns what seal was given, out of the end of an object.
func unseal(end []byte, magic string) ([]byte, error) {
	if len(end) < TrailerSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrGarbled, len(end))
	}
	trailer := end[len(end)-TrailerSize:]
	if string(trailer[9:]) != magic {
		return nil, fmt.Errorf("%w: no trailer", ErrGarbled)
	}
	if trailer[8] != version {
		return nil, fmt.Errorf("%w: format version %d; this sluice knows %d", ErrGarbled, trailer[8], version)
	}
	before := end[:len(end)-TrailerSize]
	length := uint64(binary.BigEndian.Uint32(trailer))
	if length > uint64(len(before)) {
		return nil, fmt.Errorf("%w: %d bytes are said to stand before the trailer, %d do", ErrGarbled, length, len(before))
	}
	body := before[uint64(len(before))-length:]
	if crc32.Checksum(body, wire.Castagnoli) != binary.BigEndian.Uint32(trailer[4:]) {
		return nil, fmt.Errorf("%w: wrong checksum", ErrGarbled)
	}
	return body, nil
}

// FooterSize is what footer and trailer of a segment take together, given its
// end; 0 when that is not the end of a segment.
func FooterSize(end []byte) int64 {
	if len(end) < TrailerSize || string(end[len(end)-len(dataMagic):]) != dataMagic {
		return 0
	}
	return int64(binary.BigEndian.Uint32(end[len(end)-TrailerSize:])) + int64(TrailerSize)
}

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
	body, err := unseal(end, dataMagic)
	if err != nil {
		return nil, err
	}
	f := &Footer{payload: uint64(size) - uint64(len(body)+TrailerSize)}
	r := reader{b: body}
	n := r.count(16)
	f.objects = make([]ulid.ULID, n)
	for i := range f.objects {
		copy(f.objects[i][:], r.bytes(16))
		if i > 0 && f.objects[i-1].Compare(f.objects[i]) >= 0 {
			r.failed = true
		}
	}
	f.body = r.b
	if r.failed {
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
	r := reader{b: f.body}
	position := uint64(0)
	for n := 0; len(r.b) > 0; {
		topic := string(r.bytes(r.uvarint()))
		partition := int32(r.uvarint())
		count := r.count(minEntry)
		object, end := uint64(0), uint64(0)
		if count == 0 {
			r.failed = true
		}
		for range count {
			e := Entry{Topic: topic, Partition: partition, Position: position}
			step := r.uvarint()
			if step > 0 {
				end = 0
			}
			if step >= uint64(len(f.objects))-object {
				return fmt.Errorf("%w: entry %d", ErrGarbled, n)
			}
			object += step
			e.Object = f.objects[object]
			e.ObjectOffset = end + r.uvarint()
			e.Length = uint32(r.uvarint())
			e.Records = int32(r.uvarint())
			e.ProducerID = int64(r.uvarint()) - 1
			e.ProducerEpoch = int16(r.uvarint()) - 1
			e.BaseSequence = int32(r.uvarint()) - 1
			if crc := r.bytes(4); crc != nil {
				e.CRC = binary.BigEndian.Uint32(crc)
			}
			if r.failed || !fn(&e, int(object)) {
				return fmt.Errorf("%w: entry %d", ErrGarbled, n)
			}
			end = e.ObjectOffset + uint64(e.Length)
			position += uint64(e.Length)
			n++
		}
		if r.failed {
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

type reader struct {
	b      []byte
	failed bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.failed, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count is a number of things of at least size bytes each, no more than can
// still come.
func (r *reader) count(size int) int {
	n := r.uvarint()
	if n > uint64(len(r.b)/size) {
		r.failed, r.b = true, nil
		return 0
	}
	return int(n)
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.failed, r.b = true, nil
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}
