package upkeep

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/lowlatency"
)

// Kind of damage. The values are stable.
type Kind string

// What may be wrong with a batch of a log.
const (
	Missing        Kind = "missing"         // the object is not in its store
	Truncated      Kind = "truncated"       // the object ends before the batch does
	Garbled        Kind = "garbled"         // its bytes are not those that were written
	Unavailable    Kind = "unavailable"     // the store answers, but not for this object
	UnknownKey     Kind = "unknown_key"     // signed with a key that no configured store has
	WrongSignature Kind = "wrong_signature" // written behind sluice's back, or copied from elsewhere
	BadReference   Kind = "bad_reference"   // the reference cannot be parsed
	LogBatch       Kind = "log_batch"       // the batch in the broker's own log is garbled
)

// FsckReport is what a run has found. The JSON names are stable.
type FsckReport struct {
	Version   int         `json:"version"` // of this format: 1
	ClusterID string      `json:"cluster_id"`
	Began     time.Time   `json:"began"`
	Ended     time.Time   `json:"ended"`
	Sample    float64     `json:"sample_percent"` // of objects, whose bytes were read
	Counts                // of all topics
	Topics    []FsckTopic `json:"topics"`
	Damage    []Damage    `json:"damage"`                  // by topic, partition and offset
	Unlooked  []Unlooked  `json:"not_looked_at,omitempty"` // partitions, from an offset on
	Stopped   string      `json:"stopped,omitempty"`       // why the run ended before its time
	Stores    []FsckStore `json:"stores,omitempty"`        // with --orphans
	Locks     []FsckLocks `json:"locks,omitempty"`         // of stores with a lock, when all topics are looked at
	DryRun    bool        `json:"dry_run,omitempty"`
	Fixes     []Fix       `json:"fixes,omitempty"`         // with --repair; damage is what is left after it
	Before    []Damage    `json:"damage_before,omitempty"` // it
}

// Counts of what was looked at.
type Counts struct {
	Batches      int64 `json:"batches"`      // of all kinds, in logs
	Placeholders int64 `json:"placeholders"` // among them
	Records      int64 `json:"records"`      // that placeholders stand for
	Checked      int64 `json:"checked"`      // placeholders whose bytes were read
	Bytes        int64 `json:"bytes"`        // of these
}

func (c *Counts) add(o Counts) {
	c.Batches += o.Batches
	c.Placeholders += o.Placeholders
	c.Records += o.Records
	c.Checked += o.Checked
	c.Bytes += o.Bytes
}

// FsckTopic is one topic of a report.
type FsckTopic struct {
	Topic      string `json:"topic"`
	Partitions int    `json:"partitions"`
	Deleted    bool   `json:"deleted,omitempty"` // while it was looked at
	Counts
}

// Damage is a range of neighbouring batches with the same trouble.
type Damage struct {
	Topic        string   `json:"topic"`
	Partition    int32    `json:"partition"`
	First        int64    `json:"first_offset"`
	Last         int64    `json:"last_offset"` // inclusive
	Placeholders int64    `json:"placeholders"`
	Records      int64    `json:"records"`
	Kind         Kind     `json:"kind"`
	Store        string   `json:"store,omitempty"`
	Objects      []string `json:"objects,omitempty"` // keys, the first few
	ObjectCount  int      `json:"object_count,omitempty"`
	Detail       string   `json:"detail"` // of the first
	Remedy       string   `json:"remedy"`
}

func (d *Damage) addObject(key string) {
	if slices.Contains(d.Objects, key) {
		return
	}
	d.ObjectCount++
	if len(d.Objects) < objectsListed {
		d.Objects = append(d.Objects, key)
	}
}

func (d Damage) joins(next Damage) bool {
	return d.Last+1 == next.First && d.Kind == next.Kind && d.Store == next.Store
}

func (d *Damage) join(next Damage) {
	d.Last = next.Last
	d.Placeholders += next.Placeholders
	d.Records += next.Records
	count := d.ObjectCount + next.ObjectCount
	for _, key := range next.Objects {
		if slices.Contains(d.Objects, key) {
			count--
		} else if len(d.Objects) < objectsListed {
			d.Objects = append(d.Objects, key)
		}
	}
	d.ObjectCount = count
}

func (d Damage) remedy() string {
	past := fmt.Sprintf("what cannot be had again is left behind with `sluice copy --skip-unreadable`, or removed with kafka-delete-records up to offset %d, which removes all before it in the partition, too", d.Last+1)
	if len(d.Objects) > 0 && strings.HasPrefix(d.Objects[0], diskless.LockedPrefix) && (d.Kind == Missing || d.Kind == Truncated || d.Kind == Garbled) {
		return "audit objects are never written to by a repair: under lock the object's first version is still in the bucket, below what hides it, and a copy of it under the same key makes it readable again; " + past
	}
	switch d.Kind {
	case Missing:
		return "restore the object from the bucket's versions or a copy, and look at its lifecycle rules; " + past
	case Truncated, Garbled:
		return "restore the object from the bucket's versions or a copy; " + past
	case Unavailable:
		return "ask the store why it does not give this object: it may be archived, encrypted with a key that is gone, or refused by a policy"
	case UnknownKey:
		return "put the store whose key it is back into the configuration, or restore its sluice/keys/; " + past
	case WrongSignature, BadReference:
		return "it is not sluice's: somebody wrote it to Kafka directly, or the log was copied from another topic or cluster; " + past
	}
	return "the disk of a broker has failed it: let the partition be read from another replica, or remove it with kafka-delete-records"
}

// Unlooked is a partition, or the rest of one, that could not be looked at.
type Unlooked struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	From      int64  `json:"from_offset"`
	Error     string `json:"error"`
}

// fsckState is what a run keeps in a file, to be gone on with.
type fsckState struct {
	Version    int             `json:"version"`
	ClusterID  string          `json:"cluster_id"`
	Patterns   []string        `json:"patterns"`
	Sample     float64         `json:"sample_percent"`
	Orphans    bool            `json:"orphans"`
	Partitions []fsckPartition `json:"partitions"`
}

type fsckPartition struct {
	Topic     string   `json:"topic"`
	TopicID   [16]byte `json:"topic_id"`
	Partition int32    `json:"partition"`
	Settled   int64    `json:"settled"` // all below was looked at
	Counts    Counts   `json:"counts"`
	Damage    []Damage `json:"damage,omitempty"`
}

// partition finds where an earlier run was; a topic that was made anew is
// another.
func (s *fsckState) partition(l lowlatency.Log) (p fsckPartition, ok bool) {
	if s == nil {
		return p, false
	}
	for _, p := range s.Partitions {
		if p.Topic == l.Topic && p.TopicID == l.ID && p.Partition == l.Partition {
			return p, true
		}
	}
	return p, false
}

func (c *fsck) patterns() []string {
	out := []string{}
	for _, p := range c.opt.Patterns {
		out = append(out, p.String())
	}
	return out
}

// loadState returns nil when there is nothing to go on with.
func (c *fsck) loadState() (*fsckState, error) {
	if c.opt.State == "" {
		return nil, nil
	}
	text, err := os.ReadFile(c.opt.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, c.save() // or nobody could go on, at the end
	}
	if err != nil {
		return nil, err
	}
	var s fsckState
	if err := json.Unmarshal(text, &s); err != nil || s.Version != fsckVersion {
		return nil, fmt.Errorf("%s is not what `sluice fsck --resume` of this version writes: name another file", c.opt.State)
	}
	if s.ClusterID != c.report.ClusterID || s.Sample != c.opt.Sample || s.Orphans != c.opt.Orphans || !slices.Equal(s.Patterns, c.patterns()) {
		return nil, fmt.Errorf("%s is of another run (cluster %s, topics %q, sample %v %%, orphans %v): call it as it was, or name another file",
			c.opt.State, s.ClusterID, strings.Join(s.Patterns, " "), s.Sample, s.Orphans)
	}
	return &s, nil
}

// save writes the state file anew, whole.
func (c *fsck) save() error {
	if c.opt.State == "" {
		return nil
	}
	c.saved = time.Now()
	s := fsckState{Version: fsckVersion, ClusterID: c.report.ClusterID, Patterns: c.patterns(), Sample: c.opt.Sample, Orphans: c.opt.Orphans}
	for _, r := range c.runs {
		s.Partitions = append(s.Partitions, fsckPartition{
			Topic: r.tp.Topic, TopicID: r.log.ID, Partition: r.tp.Partition, Settled: max(r.settled, r.position()), Counts: r.counts(), Damage: r.damage,
		})
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return writeWhole(c.opt.State, text)
}

func (c *fsck) removeState() error {
	if c.opt.State == "" {
		return nil
	}
	return os.Remove(c.opt.State)
}

// writeWhole replaces a file, or leaves it as it is.
func writeWhole(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
