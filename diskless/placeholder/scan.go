package placeholder

import (
	"errors"
	"io"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// varintNull is the varint -1: the length of what is null.
const varintNull = 0x01

var (
	errShort     = errors.New("the records end early")
	errVarint    = errors.New("varint out of range")
	errTrailing  = errors.New("bytes left over")
	errLength    = errors.New("length of the record does not match its fields")
	errOffset    = errors.New("offset delta out of sequence")
	errSize      = errors.New("negative length")
	errHeaders   = errors.New("number of headers out of range")
	errHeaderKey = errors.New("null header key")
	errTooLong   = errors.New("more than 64 MiB uncompressed")
)

// scanner walks records through a window over their uncompressed bytes. The
// first fault sets err; all that is read after it is zero.
type scanner struct {
	buf  []byte // the window; the batch itself when it is not compressed
	r, w int    // buf[r:w] is not yet read
	base int64  // position of buf[0] in the records
	src  *inflater
	err  error
}

// minVarint is what must be in the window for a varint to be read at once.
const minVarint = 10

func newScanner(b wire.Batch) (scanner, error) {
	if b.Codec() == wire.CodecNone {
		return scanner{buf: b.Body(), w: len(b.Body())}, nil
	}
	f, err := newInflater(b.Codec(), b.Body())
	if err != nil {
		return scanner{}, err
	}
	return scanner{buf: f.window[:], src: f}, nil
}

func (s *scanner) release() {
	if s.src != nil {
		s.src.release()
		s.src, s.buf = nil, nil
	}
}

// fill reads until n bytes are in the window or the records end.
func (s *scanner) fill(n int) {
	if s.src == nil {
		return
	}
	s.base += int64(s.r)
	s.w = copy(s.buf, s.buf[s.r:s.w])
	s.r = 0
	for s.w < n && s.err == nil {
		k, err := s.src.Read(s.buf[s.w:])
		s.w += k
		if s.base+int64(s.w) > maxInflated {
			s.err = errTooLong
		} else if err == io.EOF {
			return
		} else if err != nil {
			s.err = err
		}
	}
}

func (s *scanner) pos() int64 { return s.base + int64(s.r) }

func (s *scanner) fault(err error) {
	if s.err == nil {
		s.err = err
	}
}

func (s *scanner) attributes() {
	if s.r == s.w {
		s.fill(1)
	}
	if s.r == s.w {
		s.fault(errShort)
		return
	}
	s.r++
}

func (s *scanner) varint() int32 {
	if s.w-s.r < minVarint {
		s.fill(minVarint)
	}
	v, n := wire.Varint(s.buf[s.r:s.w])
	if n == 0 || n == 5 && s.buf[s.r+4] > 0x0f {
		s.fault(errVarint)
		return 0
	}
	s.r += n
	return v
}

func (s *scanner) varlong() int64 {
	if s.w-s.r < minVarint {
		s.fill(minVarint)
	}
	v, n := wire.Varlong(s.buf[s.r:s.w])
	if n == 0 || n == 10 && s.buf[s.r+9] > 0x01 {
		s.fault(errVarint)
		return 0
	}
	s.r += n
	return v
}

func (s *scanner) skip(n int32) {
	left := int(n)
	for s.err == nil {
		if have := s.w - s.r; left > have {
			left -= have
			s.r = s.w
			if s.fill(1); s.r == s.w {
				s.fault(errShort)
			}
			continue
		}
		s.r += left
		return
	}
}

// field skips a key, a value or a header's value: length, or -1 for null, and
// that many bytes.
func (s *scanner) field() {
	n := s.varint()
	switch {
	case n < -1:
		s.fault(errSize)
	case n > 0:
		s.skip(n)
	}
}

// record reads the record with index i and returns its timestamp delta.
func (s *scanner) record(i int32) (delta int64) {
	size := s.varint()
	if size < 0 {
		s.fault(errSize)
	}
	from := s.pos()
	s.attributes()
	delta = s.varlong()
	if s.varint() != i {
		s.fault(errOffset)
	}
	s.field()
	s.field()
	headers := s.varint()
	if headers < 0 || headers > size { // a header takes two bytes
		s.fault(errHeaders)
	}
	for ; headers > 0 && s.err == nil; headers-- {
		key := s.varint()
		if key < 0 {
			s.fault(errHeaderKey)
			break
		}
		s.skip(key)
		s.field()
	}
	if s.pos()-from != int64(size) {
		s.fault(errLength)
	}
	return delta
}

// end checks that the records end where they are said to.
func (s *scanner) end() error {
	if s.r == s.w {
		s.fill(1)
	}
	if s.err == nil && s.r != s.w {
		s.err = errTrailing
	}
	if s.err == nil && s.src != nil {
		s.err = s.src.end()
	}
	return s.err
}
