package wire

// Produce is a view of a Produce request, v0 to v13: what routing needs, and
// where each partition's records lie in the frame.
type Produce struct {
	Transactional bool
	Acks          int16
	TimeoutMillis int32
	Partitions    []ProducePartition
}

// ProducePartition is one partition of a Produce request.
type ProducePartition struct {
	Topic     []byte   // v0–v12; aliases the frame
	TopicID   [16]byte // v13+
	Partition int32
	LenAt     int // where the records' length field begins
	From, To  int // the records; From == To when they are null or empty
}

const (
	// MaxProducePartitions bounds the partitions of one request, far above what
	// any broker leads: an empty one takes seven bytes, and room and time here.
	MaxProducePartitions = 20_000
	// ProduceFlexible is the first version of Produce in KIP-482's encoding.
	ProduceFlexible = 9
	// ProduceTopicIDs is the first that names topics by id (KIP-516).
	ProduceTopicIDs = 13
)

// ParseProduce walks the body of a Produce request. It reuses p.Partitions.
func ParseProduce(p *Produce, frame []byte, body int, version int16) error {
	flexible := version >= ProduceFlexible
	r := Reader{B: frame, Off: body}
	p.Partitions = p.Partitions[:0]
	p.Transactional = version >= 3 && r.String(flexible) != nil
	p.Acks = r.Int16()
	p.TimeoutMillis = r.Int32()
	for topics := r.ArrayLen(flexible, 3); topics > 0 && r.Err == nil; topics-- {
		var part ProducePartition
		if version >= ProduceTopicIDs {
			part.TopicID = r.UUID()
		} else {
			part.Topic = r.String(flexible)
		}
		for n := r.ArrayLen(flexible, 5); n > 0 && r.Err == nil; n-- {
			part.Partition = r.Int32()
			part.LenAt = r.Off
			records := r.Bytes(flexible)
			part.From, part.To = r.Off-len(records), r.Off
			if flexible {
				r.Tags(nil)
			}
			if len(p.Partitions) == MaxProducePartitions {
				return ErrMalformed
			}
			p.Partitions = append(p.Partitions, part)
		}
		if flexible {
			r.Tags(nil)
		}
	}
	if flexible {
		r.Tags(nil)
	}
	if r.Err == nil && r.Off != len(frame) {
		return ErrMalformed
	}
	return r.Err
}

// ProduceResult is a view of a Produce response: where what may need patching
// lies in the frame.
type ProduceResult struct {
	Partitions []ProduceResultPartition
	ThrottleAt int // the throttle time, int32 milliseconds; 0 when absent (v0)
	// Tags are the bounds of the top-level tagged fields, count included
	// (v9+); Endpoints says whether NodeEndpoints is among them (v10+).
	TagsFrom, TagsTo int
	Endpoints        bool
}

// ProduceResultPartition is one partition of a Produce response.
type ProduceResultPartition struct {
	Topic     []byte
	TopicID   [16]byte
	Partition int32
	ErrorAt   int // the error code, int16
	Error     int16
	LeaderAt  int // CurrentLeader's leader id, int32; 0 when absent
}

// ParseProduceResult walks the body of a Produce response, v0 to v13.
func ParseProduceResult(p *ProduceResult, frame []byte, body int, version int16) error {
	flexible := version >= ProduceFlexible
	r := Reader{B: frame, Off: body}
	*p = ProduceResult{Partitions: p.Partitions[:0]}
	for topics := r.ArrayLen(flexible, 3); topics > 0 && r.Err == nil; topics-- {
		var part ProduceResultPartition
		if version >= ProduceTopicIDs {
			part.TopicID = r.UUID()
		} else {
			part.Topic = r.String(flexible)
		}
		for n := r.ArrayLen(flexible, 14); n > 0 && r.Err == nil; n-- {
			part.Partition = r.Int32()
			part.ErrorAt = r.Off
			part.Error = r.Int16()
			part.LeaderAt = 0
			r.Skip(8) // base offset
			if version >= 2 {
				r.Skip(8) // log append time
			}
			if version >= 5 {
				r.Skip(8) // log start offset
			}
			if version >= 8 {
				for errs := r.ArrayLen(flexible, 5); errs > 0 && r.Err == nil; errs-- {
					r.Skip(4)
					r.String(flexible)
					if flexible {
						r.Tags(nil)
					}
				}
				r.String(flexible)
			}
			if flexible {
				r.Tags(func(tag uint32, from, to int) {
					if tag == 0 && to-from >= 4 {
						part.LeaderAt = from
					}
				})
			}
			p.Partitions = append(p.Partitions, part)
		}
		if flexible {
			r.Tags(nil)
		}
	}
	if version >= 1 {
		p.ThrottleAt = r.Off
		r.Skip(4)
	}
	if flexible {
		p.TagsFrom = r.Off
		r.Tags(func(tag uint32, _, _ int) { p.Endpoints = p.Endpoints || tag == 0 })
		p.TagsTo = r.Off
	}
	if r.Err == nil && r.Off != len(frame) {
		return ErrMalformed
	}
	return r.Err
}
