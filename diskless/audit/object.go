package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// Prefix is of all chains in a store.
const Prefix = "audit/log/"

const (
	magic = "sluice audit 1\n"
	// maxHeader bounds a header's line: it names gaps, and there can be many.
	maxHeader = 4 << 20
	digits    = 12
)

// Chain names the archive of one log. A recreated topic has another id, and
// another chain.
type Chain struct {
	TopicID   [16]byte
	Partition int32
}

// TopicIDText is a topic id as Kafka's tools write it (base64url, unpadded).
func TopicIDText(id [16]byte) string { return base64.RawURLEncoding.EncodeToString(id[:]) }

func (c Chain) String() string { return fmt.Sprintf("%s/%d", TopicIDText(c.TopicID), c.Partition) }

func (c Chain) prefix() string { return Prefix + c.String() + "/" }

// Key is where an object of the chain is.
func (c Chain) Key(number int64) string { return fmt.Sprintf("%s%0*d", c.prefix(), digits, number) }

// parseKey is the reverse of Key. What is not exactly a key is none.
func parseKey(key string) (c Chain, number int64, ok bool) {
	rest, ok := strings.CutPrefix(key, Prefix)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return c, 0, false
	}
	id, err := base64.RawURLEncoding.DecodeString(parts[0])
	partition, perr := strconv.ParseInt(parts[1], 10, 32)
	number, nerr := strconv.ParseInt(parts[2], 10, 64)
	if err != nil || len(id) != len(c.TopicID) || perr != nil || nerr != nil {
		return c, 0, false
	}
	c = Chain{[16]byte(id), int32(partition)}
	return c, number, c.Key(number) == key
}

// Header describes an object of a chain. The JSON names are the format.
type Header struct {
	ClusterID string `json:"cluster_id"`
	Topic     string `json:"topic"`
	TopicID   string `json:"topic_id"`
	Partition int32  `json:"partition"`
	Number    int64  `json:"number"`
	Previous  string `json:"previous,omitempty"` // SHA-256 of the object before, in hex

	First   int64 `json:"first_offset"` // where this object begins: the Next of the one before, or where it was rewound to
	Next    int64 `json:"next_offset"`  // behind the last offset that it says something of
	Batches int   `json:"batches"`
	Bytes   int64 `json:"bytes"` // of the batches

	FirstTimestamp int64 `json:"first_timestamp,omitempty"` // least of the batches' first, ms
	MaxTimestamp   int64 `json:"max_timestamp,omitempty"`   // largest of the batches', ms

	Gaps   []Gap   `json:"gaps,omitempty"` // in order of offset
	Rewind *Rewind `json:"rewind,omitempty"`

	Written             time.Time `json:"written"`                        // by the archiver's clock
	LockedUntil         time.Time `json:"locked_until,omitzero"`          // at least
	PreviousLockedUntil time.Time `json:"previous_locked_until,omitzero"` // of the object before
}

// Gap is offsets that the chain does not hold.
type Gap struct {
	From int64  `json:"from"`
	To   int64  `json:"to"` // not included
	Why  string `json:"why"`
}

// Why there is a gap.
const (
	WhyBefore  = "before the archive began"
	WhyRemoved = "removed from Kafka's log before it was archived"
	WhyHole    = "not in Kafka's log"
)

// Rewind is offsets that the chain holds and that the log has lost since: what
// follows in the chain has these offsets again.
type Rewind struct {
	From int64 `json:"from"` // Next of the object before
	To   int64 `json:"to"`
}

// ErrObject is an object that is not what an archiver wrote.
var ErrObject = errors.New("not an object of an archive as it was written")

// Hash is an object's, as the next one names it.
func Hash(object []byte) string {
	sum := sha256.Sum256(object)
	return hex.EncodeToString(sum[:])
}

// encode puts an object together.
func encode(h Header, batches []byte) ([]byte, error) {
	head, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if len(head) > maxHeader {
		return nil, fmt.Errorf("the header has %d bytes, more than %d", len(head), maxHeader)
	}
	object := make([]byte, 0, len(magic)+len(head)+1+len(batches))
	object = append(append(append(object, magic...), head...), '\n')
	return append(object, batches...), nil
}

// parseHeader splits an object, or its beginning.
func parseHeader(object []byte) (h Header, batches []byte, err error) {
	rest, ok := bytes.CutPrefix(object, []byte(magic))
	if !ok {
		return h, nil, fmt.Errorf("%w: it does not begin with %q", ErrObject, magic)
	}
	end := bytes.IndexByte(rest, '\n')
	if end < 0 || end > maxHeader {
		return h, nil, fmt.Errorf("%w: its header does not end", ErrObject)
	}
	decoder := json.NewDecoder(bytes.NewReader(rest[:end]))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&h); err != nil {
		return h, nil, fmt.Errorf("%w: its header: %w", ErrObject, err)
	}
	return h, rest[end+1:], nil
}

// parse reads an object and checks all that it says of itself: lengths, every
// batch's CRC, and that batches and gaps cover its offsets exactly.
func parse(object []byte) (h Header, batches []byte, err error) {
	if h, batches, err = parseHeader(object); err != nil {
		return h, nil, err
	}
	if int64(len(batches)) != h.Bytes {
		return h, nil, fmt.Errorf("%w: %d bytes of batches, its header says %d", ErrObject, len(batches), h.Bytes)
	}
	n := 0
	at, gaps := h.First, h.Gaps
	skip := func() {
		for len(gaps) > 0 && gaps[0].From == at && gaps[0].To > at {
			at, gaps = gaps[0].To, gaps[1:]
		}
	}
	skip()
	err = each(batches, func(b wire.Batch) error {
		first, last := offsets(b, at)
		switch {
		case first != at:
			return fmt.Errorf("%w: a batch begins at offset %d, where %d follows", ErrObject, first, at)
		case !sound(b):
			return fmt.Errorf("%w: the CRC of the batch at offset %d is wrong", ErrObject, first)
		}
		n, at = n+1, last+1
		skip()
		return nil
	})
	switch {
	case err != nil:
		return h, nil, err
	case n != h.Batches:
		return h, nil, fmt.Errorf("%w: %d batches, its header says %d", ErrObject, n, h.Batches)
	case at != h.Next || len(gaps) > 0:
		return h, nil, fmt.Errorf("%w: batches and gaps go up to offset %d, its header says %d", ErrObject, at, h.Next)
	}
	return h, batches, nil
}

// each goes through batches, and leaves no byte over.
func each(batches []byte, fn func(wire.Batch) error) error {
	for len(batches) > 0 {
		b, rest, ok := wire.NextBatch(batches)
		if !ok {
			return fmt.Errorf("%w: %d bytes at the end are no batch", ErrObject, len(batches))
		}
		if err := fn(b); err != nil {
			return err
		}
		batches = rest
	}
	return nil
}

// offsets are a batch's first and last. An entry of an old message set only
// names its last.
func offsets(b wire.Batch, at int64) (first, last int64) {
	if !b.IsV2() {
		return at, b.BaseOffset()
	}
	return b.BaseOffset(), b.BaseOffset() + int64(b.LastOffsetDelta())
}

// sound checks a batch's CRC.
func sound(b wire.Batch) bool {
	if b.IsV2() {
		return b.CRC() == b.ComputeCRC() && b.LastOffsetDelta() >= 0
	}
	// offset, size, CRC-32 of all that follows it
	const at = wire.LogOverhead
	crc := uint32(b[at])<<24 | uint32(b[at+1])<<16 | uint32(b[at+2])<<8 | uint32(b[at+3])
	return crc == crc32.ChecksumIEEE(b[at+4:])
}
