package tiers

// Survey is what all live brokers say.
type Survey struct {
	Brokers []int32 // who they are
	Topics  map[string]TopicView
}

// TopicView is what all live brokers say about a topic's name. Unless Doubt is
// set they agreed, each asked for itself and after the survey had begun.
type TopicView struct {
	Doubt      string   // why nothing is known for certain; "" when it is
	ID         [16]byte // of the topic that bears the name; zero: none does, and we would be told if one did
	Partitions []LogView
}

// LogView is one partition's log, told by the leader that all brokers agreed on.
type LogView struct {
	Doubt  string // why the rest is not known; "" when it is
	Leader int32
	Epoch  int32 // of the leader
	InSync bool  // every replica is in the ISR
	Start  int64 // log start offset
	End    int64 // log end offset, which may be beyond the high watermark
}

// Exists reports whether a topic bears the name.
func (v TopicView) Exists() bool { return v.ID != [16]byte{} }

// EpochQuestion asks a partition's leader whether an epoch is in the history of
// its log.
type EpochQuestion struct {
	TopicPartition
	Leader  int32
	Current int32 // leader epoch, which the leader must be in
	Epoch   int32
}

// LedLog is a partition's log as one leader has it in one epoch. As long as that
// is so, nothing in it changes: it grows at its end and loses its beginning.
type LedLog struct {
	TopicPartition
	ID     [16]byte // of the topic
	Leader int32
	Epoch  int32 // of the leader
	Start  int64 // log start offset
}

// Stretch is what a leader has of a log from some offset on.
type Stretch struct {
	Records []byte // whole batches, and perhaps a part of one
	End     int64  // high watermark
}
