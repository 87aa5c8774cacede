// Package tiers is the vocabulary that every other package shares: latency
// class, tier, placement, and the small contracts by which the proxy hands a
// batch to the diskless tier and gets it back. It imports nothing of sluice.
package tiers

import "time"

// Tier says where a batch's payload bytes live.
type Tier uint8

const (
	// LowLatency keeps payloads inline in the Kafka log, on the brokers' disks.
	LowLatency Tier = iota
	// Diskless keeps payloads in an object; the Kafka log holds a placeholder.
	Diskless
)

func (t Tier) String() string {
	if t == Diskless {
		return "diskless"
	}
	return "low-latency"
}

// Class is a latency class: the promise that a topic is tagged with.
type Class struct {
	Name    string
	Tier    Tier
	Summary string // one line for people: what the class is for

	// The rest is meaningful for Diskless classes only.

	Store      string        // name of the object store, a key of `stores:`
	Linger     time.Duration // the latest moment at which a buffered batch's object is sealed, from its arrival
	ObjectSize int64         // bytes at which an object is sealed
	Readahead  int           // chunks fetched ahead of a sequential reader; 0 is none
	Audit      bool          // objects live under the audit prefix: nothing may be deleted early
	OnOutage   string        // Wait or Reject
	OnDelete   string        // of an audit class: Ignore or Refuse
}

// What becomes of requests that delete an audit topic or some of its records.
const (
	Ignore = "ignore" // they pass: the archive keeps what it holds
	Refuse = "refuse" // they are answered with POLICY_VIOLATION
)

// What becomes of batches whose store is down when the inline budget does not
// cover them.
const (
	Wait   = "wait"   // their producers wait: back-pressure
	Reject = "reject" // they are answered with a retriable error at once
)

// Rule is one line of `topics:` in the configuration, or the default class.
type Rule struct {
	Index   int    // position in `topics:`, from 0; -1 for default_class
	Pattern string // the pattern that matched, as written; "" for default_class
	Line    int    // line of the configuration file; 0 when there is no file
}

// Reason says why a placement has the tier that it has.
type Reason string

const (
	ByClass   Reason = "class"             // the class's own tier
	Compacted Reason = "compacted: inline" // cleanup.policy contains compact: placeholders would not survive
	Internal  Reason = "internal: inline"  // __consumer_offsets and its like
	Denied    Reason = "denied: inline"    // the broker does not let this client write; it gives the exact error
	Unknown   Reason = "unknown: inline"   // the topic's configuration could not be read; fail towards Kafka
)

// Placement is the router's answer for one topic.
type Placement struct {
	Class  *Class
	Rule   Rule
	Tier   Tier // effective: LowLatency whenever Reason is not ByClass
	Reason Reason
}

// TopicFacts is what the cluster says about a topic, as far as placement needs
// it. The zero value means "nothing is known".
type TopicFacts struct {
	Known           bool  // the topic's configuration was read from the cluster
	Internal        bool  // Metadata's is_internal
	Compacted       bool  // cleanup.policy contains "compact"
	MaxMessageBytes int32 // max.message.bytes; 0 when not known
	RemoteStorage   bool  // remote.storage.enable (KIP-405)
}

// TopicPartition names one log.
type TopicPartition struct {
	Topic     string
	Partition int32
}
