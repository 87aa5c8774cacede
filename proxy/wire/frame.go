package wire

import (
	"encoding/binary"
	"net"
)

// SizePrefix is the length of a frame's own length field. Every frame in this
// package begins with it, so that one write sends the whole.
const SizePrefix = 4

// RequestHeader is the part of a request that decides what happens to it
// (request header v0 to v2 of the protocol guide; v0 has no client id and only
// ControlledShutdown v0 used it).
type RequestHeader struct {
	Key, Version  int16
	CorrelationID int32
	ClientID      []byte // aliases the frame; nil is null
	Body          int    // where the body begins in the frame
}

// MinRequest is the smallest request frame: size, key, version, correlation id.
const MinRequest = SizePrefix + 8

// PeekRequest reads what every request header has: key, version and
// correlation id. The frame is at least MinRequest long.
func PeekRequest(frame []byte) (key, version int16, correlationID int32) {
	return int16(binary.BigEndian.Uint16(frame[4:])), int16(binary.BigEndian.Uint16(frame[6:])), int32(binary.BigEndian.Uint32(frame[8:]))
}

// ParseRequestHeader reads a whole header. flexible says whether the request's
// version uses header v2.
func ParseRequestHeader(frame []byte, flexible bool) (RequestHeader, error) {
	r := Reader{B: frame, Off: SizePrefix}
	h := RequestHeader{Key: r.Int16(), Version: r.Int16(), CorrelationID: r.Int32()}
	h.ClientID = r.String(false) // not compact even in v2, for ApiVersions' sake (KIP-511)
	if flexible {
		r.Tags(nil)
	}
	h.Body = r.Off
	return h, r.Err
}

// ResponseBody is where the body of a response begins. flexible says whether
// it has response header v1; ApiVersions never has (KIP-511).
func ResponseBody(frame []byte, flexible bool) (int, error) {
	r := Reader{B: frame, Off: SizePrefix + 4}
	if flexible {
		r.Tags(nil)
	}
	return r.Off, r.Err
}

// CorrelationID of a response frame of at least SizePrefix+4 bytes.
func CorrelationID(frame []byte) int32 { return int32(binary.BigEndian.Uint32(frame[4:])) }

// SetSize writes the frame's own length field.
func SetSize(frame []byte) { binary.BigEndian.PutUint32(frame, uint32(len(frame)-SizePrefix)) }

// Edit replaces frame[From:To] by With.
type Edit struct {
	From, To int
	With     [][]byte
}

// RecordsEdit replaces a records field, whose own length field begins at
// lenAt, by the concatenation of records.
func RecordsEdit(lenAt, to int, flexible bool, records ...[]byte) Edit {
	n := 0
	for _, r := range records {
		n += len(r)
	}
	var length []byte
	if flexible {
		length = binary.AppendUvarint(make([]byte, 0, 5), uint64(n)+1)
	} else {
		length = binary.BigEndian.AppendUint32(make([]byte, 0, 4), uint32(n))
	}
	return Edit{From: lenAt, To: to, With: append([][]byte{length}, records...)}
}

// Splice applies edits, which are sorted and do not overlap, to a frame
// without copying what stays: the result is for one vectored write. Its size
// field is right; the frame's own first four bytes are not touched.
func Splice(frame []byte, edits []Edit) (out net.Buffers, size int) {
	head := make([]byte, SizePrefix)
	out = make(net.Buffers, 1, 2+3*len(edits))
	out[0] = head
	add := func(b []byte) {
		if len(b) > 0 {
			out = append(out, b)
			size += len(b)
		}
	}
	at := SizePrefix
	for _, e := range edits {
		add(frame[at:e.From])
		for _, b := range e.With {
			add(b)
		}
		at = e.To
	}
	add(frame[at:])
	binary.BigEndian.PutUint32(head, uint32(size))
	return out, size + SizePrefix
}
