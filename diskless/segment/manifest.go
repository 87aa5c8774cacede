package segment

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/diskless/footer"
)

// Object is a WAL object that a window covers: every batch of it is in one of
// the window's segments.
type Object struct {
	ID   ulid.ULID
	Size int64 // as it was read
}

// Place is a partition.
type Place struct {
	Topic     string
	Partition int32
}

// Compare orders places as segments do.
func (p Place) Compare(o Place) int {
	return cmp.Or(strings.Compare(p.Topic, o.Topic), cmp.Compare(p.Partition, o.Partition))
}

// Info describes one segment of a window.
type Info struct {
	Size        int64 // of the object
	FooterSize  int64 // of footer and trailer, which end it
	Bucket      Bucket
	Batches     int
	First, Last Place
}

// Manifest says what segments stand for which WAL objects.
type Manifest struct {
	Level    Level
	Run      ulid.ULID
	Objects  []Object // increasing by ID; at least one
	Segments []Info   // by number; none when the objects hold no batches
}

// Window is the manifest's name.
func (m *Manifest) Window() Window {
	return Window{m.Level, m.Objects[0].ID, m.Objects[len(m.Objects)-1].ID}
}

// Key is where segment n is.
func (m *Manifest) Key(n int) string { return DataKey(m.Run, n) }

// Covers reports whether the window covers a WAL object.
func (m *Manifest) Covers(id ulid.ULID) bool {
	_, ok := slices.BinarySearchFunc(m.Objects, id, func(o Object, id ulid.ULID) int { return o.ID.Compare(id) })
	return ok
}

// Find returns the numbers of the segments that may hold batches of a partition:
// one for each bucket and for each border within a partition.
func (m *Manifest) Find(p Place) []int {
	var found []int
	for i := range m.Segments {
		if m.Segments[i].First.Compare(p) <= 0 && p.Compare(m.Segments[i].Last) <= 0 {
			found = append(found, i)
		}
	}
	return found
}

// Encode is the manifest's object.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("a manifest that must not be written: %w", err)
	}
	b := append([]byte(nil), m.Run[:]...)
	b = binary.AppendUvarint(b, uint64(len(m.Objects)))
	for _, o := range m.Objects {
		b = append(b, o.ID[:]...)
		b = binary.AppendUvarint(b, uint64(o.Size))
	}
	b = binary.AppendUvarint(b, uint64(len(m.Segments)))
	for i := range m.Segments {
		s := &m.Segments[i]
		b = binary.AppendUvarint(b, uint64(s.Size))
		b = binary.AppendUvarint(b, uint64(s.FooterSize))
		b = append(b, byte(s.Bucket))
		b = binary.AppendUvarint(b, uint64(s.Batches))
		b = appendPlace(b, s.First.Topic, s.First.Partition)
		b = appendPlace(b, s.Last.Topic, s.Last.Partition)
	}
	if b = footer.Seal(b, 0, listMagic); len(b) > MaxManifest {
		return nil, fmt.Errorf("a manifest of %d bytes, of %d WAL objects and %d segments: the format allows %d; raise compaction.segment_bytes", len(b), len(m.Objects), len(m.Segments), MaxManifest)
	}
	return b, nil
}

// MaxManifest is the largest manifest: who reads one has to have memory for it.
const MaxManifest = 64 << 20

// ParseManifest reads a manifest's object, found under the name w.
func ParseManifest(b []byte, w Window) (*Manifest, error) {
	body, err := open(b, listMagic)
	if err != nil {
		return nil, err
	}
	if len(body)+footer.TrailerSize != len(b) {
		return nil, fmt.Errorf("%w: %d bytes too many", ErrGarbled, len(b)-footer.TrailerSize-len(body))
	}
	m := &Manifest{Level: w.Level}
	r := footer.Reader{Left: body}
	copy(m.Run[:], r.Bytes(16))
	m.Objects = make([]Object, r.Count(16+1))
	for i := range m.Objects {
		copy(m.Objects[i].ID[:], r.Bytes(16))
		m.Objects[i].Size = int64(r.Uvarint())
	}
	m.Segments = make([]Info, r.Count(minInfo))
	for i := range m.Segments {
		s := &m.Segments[i]
		s.Size = int64(r.Uvarint())
		s.FooterSize = int64(r.Uvarint())
		if bucket := r.Bytes(1); bucket != nil {
			s.Bucket = Bucket(bucket[0])
		}
		s.Batches = int(r.Uvarint())
		s.First = place(&r)
		s.Last = place(&r)
	}
	if r.Failed || len(r.Left) > 0 {
		return nil, fmt.Errorf("%w: a manifest that ends too early or too late", ErrGarbled)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGarbled, err)
	}
	if m.Window() != w {
		return nil, fmt.Errorf("%w: it is the manifest of %s", ErrGarbled, m.Window().Key())
	}
	return m, nil
}

// minInfo is the least that a segment takes in a manifest.
const minInfo = 4 + 2*2

func place(r *footer.Reader) Place {
	topic := r.Bytes(r.Uvarint())
	return Place{string(topic), int32(r.Uvarint())}
}

func (m *Manifest) check() error {
	if len(m.Objects) == 0 {
		return errors.New("no WAL objects")
	}
	for i, o := range m.Objects {
		if o.Size < 0 || i > 0 && m.Objects[i-1].ID.Compare(o.ID) >= 0 {
			return fmt.Errorf("WAL object %d", i)
		}
	}
	if !m.Window().valid() {
		return errors.New("the WAL objects are too far apart")
	}
	for i := range m.Segments {
		s := &m.Segments[i]
		if s.Size > MaxSize || s.FooterSize < footer.TrailerSize || s.FooterSize > s.Size || s.Batches < 1 || s.First.Compare(s.Last) > 0 {
			return fmt.Errorf("segment %d", i)
		}
	}
	return nil
}
