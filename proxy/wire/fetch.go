package wire

// FetchResult is a view of a Fetch response, v4 to v18: where each partition's
// records, and what else may need patching, lie in the frame.
type FetchResult struct {
	Partitions       []FetchResultPartition
	TagsFrom, TagsTo int  // top-level tagged fields, count included (v12+)
	Endpoints        bool // NodeEndpoints is among them (v16+)
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

// FetchFlexible is the first version of Fetch in KIP-482's encoding.
const FetchFlexible = 12

// ParseFetchResult walks the body of a Fetch response. It reuses f.Partitions.
func ParseFetchResult(f *FetchResult, frame []byte, body int, version int16) error {
	flexible := version >= FetchFlexible
	r := Reader{B: frame, Off: body}
	*f = FetchResult{Partitions: f.Partitions[:0]}
	r.Skip(4) // throttle time
	if version >= 7 {
		r.Skip(2 + 4) // error code, session id
	}
	for topics := r.ArrayLen(flexible, 3); topics > 0 && r.Err == nil; topics-- {
		var part FetchResultPartition
		if version >= 13 {
			part.TopicID = r.UUID()
		} else {
			part.Topic = r.String(flexible)
		}
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
		r.Tags(func(tag uint32, _, _ int) { f.Endpoints = f.Endpoints || (tag == 0 && version >= 16) })
		f.TagsTo = r.Off
	}
	if r.Err == nil && r.Off != len(frame) {
		return ErrMalformed
	}
	return r.Err
}
