package upkeep

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"sync"

	"github.com/sluice-kafka/sluice/tiers"
)

// OffsetsMap is a file that says which offset became which: a JSON object a line,
// each for a run of records that follow each other on both sides. Nil is none. A
// copy that goes on repeats what it is not sure to have written; what is said
// twice is said alike.
type OffsetsMap struct {
	mu   sync.Mutex
	file *os.File
	out  *bufio.Writer
	open map[tiers.TopicPartition]*mapped
}

// mapped is one line. The JSON names are stable.
type mapped struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Source    int64  `json:"source_offset"`
	Target    int64  `json:"target_offset"`
	Records   int64  `json:"records"`
}

// OpenOffsetsMap opens a file to add to.
func OpenOffsetsMap(path string) (*OffsetsMap, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	m := &OffsetsMap{file: f, out: bufio.NewWriter(f), open: map[tiers.TopicPartition]*mapped{}}
	// A line that a crash has cut.
	info, err := f.Stat()
	if err == nil && info.Size() > 0 {
		var last [1]byte
		if _, err = f.ReadAt(last[:], info.Size()-1); err == nil && last[0] != '\n' {
			_, err = f.WriteString("\n")
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return m, nil
}

func (m *OffsetsMap) add(topic string, partition int32, source, target, records int64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	tp := tiers.TopicPartition{Topic: topic, Partition: partition}
	if o := m.open[tp]; o != nil {
		if o.Source+o.Records == source && o.Target+o.Records == target {
			o.Records += records
			return
		}
		m.write(o)
	}
	m.open[tp] = &mapped{topic, partition, source, target, records}
}

// write adds a line; its error comes with the next flush.
func (m *OffsetsMap) write(o *mapped) {
	text, _ := json.Marshal(o) // of strings and numbers
	_, _ = m.out.Write(append(text, '\n'))
}

// flush makes durable what was added.
func (m *OffsetsMap) flush() error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for tp, o := range m.open {
		m.write(o)
		delete(m.open, tp)
	}
	return errors.Join(m.out.Flush(), m.file.Sync())
}

func (m *OffsetsMap) close() error {
	if m == nil {
		return nil
	}
	return errors.Join(m.flush(), m.file.Close())
}
