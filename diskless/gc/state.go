package gc

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// State is what collectors remember from one pass to the next, in the store
// itself. To lose it, or to go back to an older one, only delays deletion. Times
// are the store's own.
type State struct {
	ClusterID string              `json:"cluster_id"`
	Passes    int64               `json:"passes"`
	Updated   time.Time           `json:"updated"` // when the last pass began
	Brokers   map[int32]time.Time `json:"brokers"` // when they were last alive
	Topics    map[string]*Topic   `json:"topics"`  // by name: those that exist, and those that objects name
}

// Topic is what is known of a name.
type Topic struct {
	ID         ID           `json:"id"`         // of the topic that bears it; zero: none does
	Former     []ID         `json:"former"`     // of topics that bore it, the last maxFormer
	Seen       time.Time    `json:"seen"`       // when all brokers last agreed on that
	Named      bool         `json:"named"`      // by some object, in the last whole walk
	Beyond     Settling     `json:"beyond"`     // of partitions that do not exist; all of them when no topic does
	Partitions []*Partition `json:"partitions"` // by number
}

// Partition is what is known of one log.
type Partition struct {
	Born        time.Time    `json:"born"`   // it did not exist then, nor before under this id; zero: not known
	Leader      int32        `json:"leader"` // with Epoch, as all brokers agreed at Seen
	Epoch       int32        `json:"epoch"`
	Seen        time.Time    `json:"seen"`
	Checkpoints []Checkpoint `json:"checkpoints"` // by time and offset, both increasing
	Settling    Settling     `json:"settling"`
}

// Checkpoint says: placeholders of objects older than Time less the margin are at
// offsets below End, in every log that has Epoch in its history.
type Checkpoint struct {
	Time  time.Time `json:"t"`
	Epoch int32     `json:"e"`
	End   int64     `json:"o"`
}

// ID is a topic id.
type ID [16]byte

// MarshalText is hexadecimal.
func (id ID) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%x", id[:]), nil }

// UnmarshalText is its reverse.
func (id *ID) UnmarshalText(b []byte) error {
	if raw, err := hex.DecodeString(string(b)); err != nil || copy(id[:], raw) != len(raw) || len(raw) != len(id) {
		return fmt.Errorf("a topic id has 32 hexadecimal digits, not %q", b)
	}
	return nil
}

// stateMagic begins a state object; a line with the checksum of the rest follows.
const stateMagic = "sluice gc state 1 "

var errState = errors.New("not a whole state of the garbage collection")

// Encode is the state's object: a line with version and CRC-32C, then gzipped
// JSON.
func (s *State) Encode() ([]byte, error) {
	var body bytes.Buffer
	z := gzip.NewWriter(&body)
	if err := json.NewEncoder(z).Encode(s); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	head := fmt.Sprintf("%s%08x\n", stateMagic, crc32.Checksum(body.Bytes(), wire.Castagnoli))
	return append([]byte(head), body.Bytes()...), nil
}

// maxState bounds what a state object may unpack to.
const maxState = 1 << 30

// ParseState reads a state's object.
func ParseState(b []byte) (*State, error) {
	rest, ok := bytes.CutPrefix(b, []byte(stateMagic))
	sum, body, ok2 := bytes.Cut(rest, []byte("\n"))
	if !ok || !ok2 || string(sum) != fmt.Sprintf("%08x", crc32.Checksum(body, wire.Castagnoli)) {
		return nil, errState
	}
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	s := &State{}
	if err := json.NewDecoder(io.LimitReader(z, maxState)).Decode(s); err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	if s.Topics == nil {
		s.Topics = make(map[string]*Topic)
	}
	for name, t := range s.Topics {
		if t == nil {
			return nil, fmt.Errorf("%w: topic %q", errState, name)
		}
		for _, p := range t.Partitions {
			if p == nil {
				return nil, fmt.Errorf("%w: topic %q", errState, name)
			}
		}
	}
	return s, nil
}
