package wire

const (
	// FetchFlexible is the first version of Fetch in KIP-482's encoding.
	FetchFlexible = 12
	// FetchTopicIDs is the first that names topics by id (KIP-516).
	FetchTopicIDs = 13
	// MaxFetchPartitions bounds the partitions of one request, and its topics, far
	// above what any broker leads: they take room and time here.
	MaxFetchPartitions = 100_000
	// fetchSessions is the first with sessions (KIP-227).
	fetchSessions = 7
	// fetchReplicaState is the first that names the replica in a tagged field.
	fetchReplicaState = 15
)

// Fetch is a view of a Fetch request, v4 to v18: what routing needs, and where
// its limits lie in the frame.
type Fetch struct {
	ReplicaID       int32 // below zero for a consumer
	MinAt, MaxAt    int   // the request's min_bytes and max_bytes, int32
	Session         int32 // epoch: 0 begins a session, -1 is none, which it is below v7 too
	Partitions      []FetchPartition
	RackAt, RackEnd int // the rack with its length; equal when there is none (below v11)
}

// FetchPartition is one partition of a Fetch request.
type FetchPartition struct {
	Topic     []byte   // v4–v12; aliases the frame
	TopicID   [16]byte // v13+
	Partition int32
	MaxAt     int // its max_bytes, int32
}

// ParseFetch walks the body of a Fetch request. It reuses f.Partitions.
func ParseFetch(f *Fetch, frame []byte, body int, version int16) error {
	flexible := version >= FetchFlexible
	r := Reader{B: frame, Off: body}
	*f = Fetch{Partitions: f.Partitions[:0], ReplicaID: -1, Session: -1}
	if version < fetchReplicaState {
		f.ReplicaID = r.Int32()
	}
	r.Skip(4) // max wait
	f.MinAt = r.Off
	r.Skip(4)
	f.MaxAt = r.Off
	r.Skip(4 + 1) // and isolation level
	if version >= fetchSessions {
		r.Skip(4) // session id
		f.Session = r.Int32()
	}
	topics := r.ArrayLen(flexible, 3)
	if topics > MaxFetchPartitions {
		return ErrMalformed
	}
	for ; topics > 0 && r.Err == nil; topics-- {
		var part FetchPartition
		part.Topic, part.TopicID = r.fetchTopic(version)
		for n := r.ArrayLen(flexible, 16); n > 0 && r.Err == nil; n-- {
			part.Partition = r.Int32()
			if version >= 9 {
				r.Skip(4) // current leader epoch
			}
			r.Skip(8) // fetch offset
			if version >= 12 {
				r.Skip(4) // last fetched epoch
			}
			if version >= 5 {
				r.Skip(8) // log start offset
			}
			part.MaxAt = r.Off
			r.Skip(4)
			if flexible {
				r.Tags(nil)
			}
			if len(f.Partitions) == MaxFetchPartitions {
				return ErrMalformed
			}
			f.Partitions = append(f.Partitions, part)
		}
		if flexible {
			r.Tags(nil)
		}
	}
	if version >= fetchSessions { // forgotten topics
		for topics := r.ArrayLen(flexible, 3); topics > 0 && r.Err == nil; topics-- {
			r.fetchTopic(version)
			if n := r.ArrayLen(flexible, 4); n > 0 {
				r.Skip(4 * n)
			}
			if flexible {
				r.Tags(nil)
			}
		}
	}
	f.RackAt, f.RackEnd = r.Off, r.Off
	if version >= 11 {
		r.String(flexible)
		f.RackEnd = r.Off
	}
	if flexible {
		r.Tags(func(tag uint32, from, to int) {
			if tag == 1 && version >= fetchReplicaState && to-from >= 4 {
				state := Reader{B: frame, Off: from}
				f.ReplicaID = state.Int32()
			}
		})
	}
	if r.Err == nil && r.Off != len(frame) {
		return ErrMalformed
	}
	return r.Err
}

func (r *Reader) fetchTopic(version int16) (name []byte, id [16]byte) {
	if version >= FetchTopicIDs {
		return nil, r.UUID()
	}
	return r.String(version >= FetchFlexible), id
}

// FetchResult is a view of a Fetch response, v4 to v18: where each partition's
// records, and what else may need patching, lie in the frame.
type FetchResult struct {
	Partitions       []FetchResultPartition
	TagsFrom, TagsTo int  // top-level tagged fields, count included (v12+)
	Endpoints        bool // NodeEndpoints is among them (from v16 on, but no tag has two meanings)
}

// FetchResultPartition is one partition of a Fetch response.
type FetchResultPartition struct {
	Topic     []byte   // v4–v12; aliases the frame
	TopicID   [16]byte // v13+
	Partition int32
	ErrorAt   int // the error code, int16
	LeaderAt  int // CurrentLeader's leader id, int32; 0 when absent
	LenAt     int // where the records' length field begins
	From, To  int // the records
}

// ParseFetchResult walks the body of a Fetch response. It reuses f.Partitions.
func ParseFetchResult(f *FetchResult, frame []byte, body int, version int16) error {
	flexible := version >= FetchFlexible
	r := Reader{B: frame, Off: body}
	*f = FetchResult{Partitions: f.Partitions[:0]}
	r.Skip(4) // throttle time
	if version >= fetchSessions {
		r.Skip(2 + 4) // error code, session id
	}
	for topics := r.ArrayLen(flexible, 3); topics > 0 && r.Err == nil; topics-- {
		var part FetchResultPartition
		part.Topic, part.TopicID = r.fetchTopic(version)
		for n := r.ArrayLen(flexible, 24); n > 0 && r.Err == nil; n-- {
			part.Partition = r.Int32()
			part.ErrorAt = r.Off
			part.LeaderAt = 0
			r.Skip(2 + 8 + 8) // error code, high watermark, last stable offset
			if version >= 5 {
				r.Skip(8) // log start offset
			}
			for aborted := r.ArrayLen(flexible, 16); aborted > 0 && r.Err == nil; aborted-- {
				r.Skip(16)
				if flexible {
					r.Tags(nil)
				}
			}
			if version >= 11 {
				r.Skip(4) // preferred read replica
			}
			part.LenAt = r.Off
			records := r.Bytes(flexible)
			part.From, part.To = r.Off-len(records), r.Off
			if flexible {
				r.Tags(func(tag uint32, from, to int) {
					if tag == 1 && to-from >= 4 {
						part.LeaderAt = from
					}
				})
			}
			f.Partitions = append(f.Partitions, part)
		}
		if flexible {
			r.Tags(nil)
		}
	}
	if flexible {
		f.TagsFrom = r.Off
		r.Tags(func(tag uint32, _, _ int) { f.Endpoints = f.Endpoints || tag == 0 })
		f.TagsTo = r.Off
	}
	if r.Err == nil && r.Off != len(frame) {
		return ErrMalformed
	}
	return r.Err
}
