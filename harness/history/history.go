// Package history checks a run: what was read against what was sent and
// acknowledged, by partition and offset. It knows nothing of sluice, so that a
// run against Kafka alone is judged by the same rules.
package history

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Kind is what is wrong with a record.
type Kind string

// The kinds. Everything but these is as Kafka promises an idempotent producer.
const (
	Lost       Kind = "lost"       // acknowledged, and not in the log
	Duplicated Kind = "duplicated" // twice in the log, or one offset read twice
	Reordered  Kind = "reordered"  // not in the order of sending
	Misplaced  Kind = "misplaced"  // not at the offset that its acknowledgement named
	Foreign    Kind = "foreign"    // not a record that was sent to this partition, or other bytes
)

// Violation is one record that breaks a promise.
type Violation struct {
	Kind   Kind
	Reader string
	Place  Place
	Offset int64 // where it was read, or should have been; -1 when nobody knows
	Detail string
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: %s-%d offset %d (read by %s): %s", v.Kind, v.Place.Topic, v.Place.Partition, v.Offset, v.Reader, v.Detail)
}

// Place is one partition.
type Place struct {
	Topic     string
	Partition int32
}

// History is what producers and readers of one run noted. Its methods may be
// called concurrently.
type History struct {
	mu    sync.Mutex
	sent  map[Place][]*note
	reads map[string]map[Place][]read
	acked int
}

type note struct {
	value  []byte
	acked  bool
	offset int64 // -1 while nobody knows
}

type read struct {
	offset int64
	number int64 // of the record in its partition, in order of sending; -1 is foreign
	detail string
}

// New returns an empty history.
func New() *History {
	return &History{sent: make(map[Place][]*note), reads: make(map[string]map[Place][]read)}
}

// Next makes the next record of a partition. Records must be handed to the
// producer in this order. Its value is size random bytes, so that a wrong range
// of an object cannot look right.
func (h *History) Next(topic string, partition int32, size int) *kgo.Record {
	h.mu.Lock()
	defer h.mu.Unlock()
	place := Place{topic, partition}
	number := len(h.sent[place])
	value := make([]byte, size)
	for i := 0; i < size; i += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], rand.Uint64())
		copy(value[i:], word[:])
	}
	h.sent[place] = append(h.sent[place], &note{value: value, offset: -1})
	return &kgo.Record{Topic: topic, Partition: partition, Key: binary.BigEndian.AppendUint64(nil, uint64(number)), Value: value}
}

// Acked notes what became of a record; it is a producer's promise. A record
// whose production failed may be in the log or not. An offset below zero is one
// that the producer was not told.
func (h *History) Acked(r *kgo.Record, err error) {
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.sent[Place{r.Topic, r.Partition}][binary.BigEndian.Uint64(r.Key)]
	n.acked, n.offset = true, r.Offset
	h.acked++
}

// Acknowledged is how many records were.
func (h *History) Acknowledged() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acked
}

// Sent is how many records were made.
func (h *History) Sent() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, notes := range h.sent {
		n += len(notes)
	}
	return n
}

// Read notes records in the order in which a reader got them.
func (h *History) Read(reader string, records ...*kgo.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reads[reader] == nil {
		h.reads[reader] = make(map[Place][]read)
	}
	for _, r := range records {
		place := Place{r.Topic, r.Partition}
		e := read{offset: r.Offset, number: -1}
		notes := h.sent[place]
		switch {
		case len(r.Key) != 8 || binary.BigEndian.Uint64(r.Key) >= uint64(len(notes)):
			e.detail = fmt.Sprintf("nobody sent it: key %x, %d bytes", r.Key, len(r.Value))
		case !bytes.Equal(notes[binary.BigEndian.Uint64(r.Key)].value, r.Value):
			e.detail = fmt.Sprintf("record %d of the partition with other bytes, %d of them", binary.BigEndian.Uint64(r.Key), len(r.Value))
		default:
			e.number = int64(binary.BigEndian.Uint64(r.Key))
		}
		h.reads[reader][place] = append(h.reads[reader][place], e)
	}
}

// Check judges what one reader read, of every partition that was sent to. It
// takes for granted that the reader went from the start to the end.
func (h *History) Check(reader string) []Violation { return h.check(reader, true) }

// CheckSoFar judges a reader that has not come to the end: nothing is lost yet.
func (h *History) CheckSoFar(reader string) []Violation { return h.check(reader, false) }

func (h *History) check(reader string, whole bool) (found []Violation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var places []Place
	for place := range h.sent {
		places = append(places, place)
	}
	for place := range h.reads[reader] {
		if h.sent[place] == nil {
			places = append(places, place)
		}
	}
	slices.SortFunc(places, func(a, b Place) int {
		return bytes.Compare(fmt.Appendf(nil, "%s %010d", a.Topic, a.Partition), fmt.Appendf(nil, "%s %010d", b.Topic, b.Partition))
	})
	for _, place := range places {
		report := func(kind Kind, offset int64, format string, args ...any) {
			found = append(found, Violation{kind, reader, place, offset, fmt.Sprintf(format, args...)})
		}
		notes := h.sent[place]
		at := make(map[int64]int64) // number → offset where it was read first
		offsets := make(map[int64]bool)
		lastOffset, lastNumber := int64(-1), int64(-1)
		for _, e := range h.reads[reader][place] {
			switch {
			case offsets[e.offset]:
				report(Duplicated, e.offset, "the reader got this offset twice")
				continue
			case e.offset < lastOffset:
				report(Reordered, e.offset, "the reader got it after offset %d", lastOffset)
			}
			offsets[e.offset] = true
			lastOffset = max(lastOffset, e.offset)
			if e.number < 0 {
				report(Foreign, e.offset, "%s", e.detail)
				continue
			}
			if first, twice := at[e.number]; twice {
				report(Duplicated, e.offset, "record %d is at offset %d too", e.number, first)
				continue
			}
			at[e.number] = e.offset
			if e.number < lastNumber {
				report(Reordered, e.offset, "record %d stands behind record %d", e.number, lastNumber)
			}
			lastNumber = max(lastNumber, e.number)
			if n := notes[e.number]; n.acked && n.offset >= 0 && n.offset != e.offset {
				report(Misplaced, e.offset, "record %d was acknowledged at offset %d", e.number, n.offset)
			}
		}
		for number, n := range notes {
			if _, ok := at[int64(number)]; whole && n.acked && !ok {
				report(Lost, n.offset, "record %d was acknowledged", number)
			}
		}
	}
	return found
}
