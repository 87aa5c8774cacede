package wire

import (
	"encoding/binary"
	"errors"
)

// ErrMalformed says that a frame ends, or contradicts itself, before its
// schema does. The connection that sent it cannot be trusted any further.
var ErrMalformed = errors.New("malformed frame")

// Reader walks the primitive types of Kafka's protocol over a frame without
// copying. The first read past the end sets Err and every later read is zero,
// so a walk checks Err once, at its end; loops must also stop on it.
type Reader struct {
	B   []byte
	Off int
	Err error
}

func (r *Reader) need(n int) bool {
	if r.Err != nil || n < 0 || len(r.B)-r.Off < n {
		r.Err = ErrMalformed
		return false
	}
	return true
}

// Skip moves n bytes on.
func (r *Reader) Skip(n int) {
	if r.need(n) {
		r.Off += n
	}
}

func (r *Reader) Int8() int8 {
	if !r.need(1) {
		return 0
	}
	r.Off++
	return int8(r.B[r.Off-1])
}

func (r *Reader) Int16() int16 {
	if !r.need(2) {
		return 0
	}
	r.Off += 2
	return int16(binary.BigEndian.Uint16(r.B[r.Off-2:]))
}

func (r *Reader) Int32() int32 {
	if !r.need(4) {
		return 0
	}
	r.Off += 4
	return int32(binary.BigEndian.Uint32(r.B[r.Off-4:]))
}

func (r *Reader) Int64() int64 {
	if !r.need(8) {
		return 0
	}
	r.Off += 8
	return int64(binary.BigEndian.Uint64(r.B[r.Off-8:]))
}

// UUID reads 16 bytes (topic ids, KIP-516).
func (r *Reader) UUID() (id [16]byte) {
	if r.need(16) {
		copy(id[:], r.B[r.Off:])
		r.Off += 16
	}
	return id
}

// Uvarint reads an unsigned varint (KIP-482) of at most 32 bits.
func (r *Reader) Uvarint() uint32 {
	if r.Err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.B[r.Off:])
	if n <= 0 || v > 1<<32-1 {
		r.Err = ErrMalformed
		return 0
	}
	r.Off += n
	return uint32(v)
}

// length reads the length of a string or bytes field: -1 is null.
func (r *Reader) length(flexible bool, wide bool) int {
	switch {
	case flexible:
		return int(r.Uvarint()) - 1
	case wide:
		return int(r.Int32())
	default:
		return int(r.Int16())
	}
}

func (r *Reader) field(n int) []byte {
	if n < 0 {
		if n < -1 {
			r.Err = ErrMalformed
		}
		return nil
	}
	if !r.need(n) {
		return nil
	}
	r.Off += n
	return r.B[r.Off-n : r.Off : r.Off]
}

// String reads a string, nullable or not; nil is null.
func (r *Reader) String(flexible bool) []byte { return r.field(r.length(flexible, false)) }

// Bytes reads a bytes or records field; nil is null.
func (r *Reader) Bytes(flexible bool) []byte { return r.field(r.length(flexible, true)) }

// ArrayLen reads the length of an array of elements that take at least minSize
// bytes each, so that a false length cannot make a loop long; -1 is null.
func (r *Reader) ArrayLen(flexible bool, minSize int) int {
	n := r.length(flexible, true)
	if n < -1 || (n > 0 && int64(n)*int64(minSize) > int64(len(r.B)-r.Off)) {
		r.Err = ErrMalformed
		return 0
	}
	return n
}

// Tags calls fn with each tagged field's number and the bounds of its value
// (KIP-482); fn may be nil.
func (r *Reader) Tags(fn func(tag uint32, from, to int)) {
	for n := r.Uvarint(); n > 0 && r.Err == nil; n-- {
		tag, size := r.Uvarint(), int(r.Uvarint())
		from := r.Off
		r.Skip(size)
		if fn != nil && r.Err == nil {
			fn(tag, from, r.Off)
		}
	}
}
