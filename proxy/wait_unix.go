//go:build unix

package proxy

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/sluice-kafka/sluice/turns"
)

// socketWait reads into a buffer that it takes only when there is something to
// read.
type socketWait struct {
	buffer   func() []byte
	drop     func() // of an empty buffer
	arrivals *arrivals
	raw      syscall.RawConn
	try      func(fd uintptr) bool // made once: a closure for each frame would be garbage
	tryFill  func(fd uintptr) bool
	into     []byte // what fill has not filled yet
	n        int
	err      error
}

// plainTCP returns nil for what is not.
func plainTCP(c net.Conn) syscall.RawConn {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// newSocketWait returns nil for what is not plain TCP.
func newSocketWait(c net.Conn, buffer func() []byte, drop func(), a *arrivals) *socketWait {
	raw := plainTCP(c)
	if raw == nil {
		return nil
	}
	w := &socketWait{buffer: buffer, drop: drop, arrivals: a, raw: raw}
	w.try, w.tryFill = w.attempt, w.attemptFill
	return w
}

// attempt reports whether there is no need to wait any longer.
func (w *socketWait) attempt(fd uintptr) bool {
	for {
		w.arrivals.drained.Store(false)
		n, errno := readSocket(fd, w.buffer())
		switch errno {
		case syscall.EINTR:
		case syscall.EAGAIN:
			w.drop()
			w.arrivals.empty()
			return false
		default:
			w.n, w.err = n, asError("read", errno)
			return true
		}
	}
}

func (w *socketWait) read() (int, error) {
	err := w.raw.Read(w.try)
	switch {
	case err != nil:
		return 0, err
	case w.err != nil:
		return 0, w.err
	case w.n == 0:
		return 0, io.EOF
	}
	return w.n, nil
}

func (w *socketWait) attemptFill(fd uintptr) bool {
	for len(w.into) > 0 {
		n, errno := readSocket(fd, w.into)
		switch {
		case errno == syscall.EINTR:
		case errno == syscall.EAGAIN:
			return false
		case errno != 0:
			w.err = asError("read", errno)
			return true
		case n == 0:
			w.err = io.ErrUnexpectedEOF
			return true
		default:
			w.into = w.into[n:]
		}
	}
	w.err = nil
	return true
}

// fill reads all of p.
func (w *socketWait) fill(p []byte) error {
	w.into = p
	err := w.raw.Read(w.tryFill)
	w.into = nil
	if err == nil {
		err = w.err
	}
	return err
}

// socketWrite writes all of what it is given.
type socketWrite struct {
	raw syscall.RawConn
	try func(fd uintptr) bool
	of  *sink
	p   []byte // what is not written yet
	err error
}

// newSocketWrite returns nil for what is not plain TCP.
func newSocketWrite(c net.Conn) *socketWrite {
	raw := plainTCP(c)
	if raw == nil {
		return nil
	}
	w := &socketWrite{raw: raw}
	w.try = w.attempt
	return w
}

func (w *socketWrite) attempt(fd uintptr) bool {
	for len(w.p) > 0 {
		n, errno := writeSocket(fd, w.p)
		switch errno {
		case 0:
			w.p = w.p[n:]
		case syscall.EINTR:
		case syscall.EAGAIN:
			if !w.of.bounded {
				if w.err = w.of.deadline(); w.err != nil {
					return true
				}
			}
			return false
		default:
			w.err = asError("write", errno)
			return true
		}
	}
	w.err = nil
	return true
}

// write has a deadline only when p has to wait: a deadline costs more than a small
// write's way to it.
func (w *socketWrite) write(s *sink, p []byte) (int, error) {
	if s.bounded {
		if err := s.SetWriteDeadline(time.Time{}); err != nil {
			return 0, err
		}
		s.bounded = false
	}
	w.of, w.p = s, p
	err := w.raw.Write(w.try)
	n := len(p) - len(w.p)
	w.p = nil
	if err == nil {
		err = w.err
	}
	return n, err
}

// inTurns has a turn while it writes a piece, and none while it waits for the
// client. It changes bufs.
func (w *socketWrite) inTurns(bufs net.Buffers, t *turns.Turns) (n int, err error) {
	waited := w.raw.Write(func(fd uintptr) bool {
		for len(bufs) > 0 {
			turn := t.Take()
			wrote, errno := writevSocket(fd, bufs, turns.Piece)
			turn.Give()
			switch errno {
			case 0:
				n += wrote
				bufs = without(bufs, wrote)
			case syscall.EINTR:
			case syscall.EAGAIN:
				return false
			default:
				err = asError("writev", errno)
				return true
			}
		}
		return true
	})
	if waited != nil {
		err = waited
	}
	return n, err
}

// without takes n bytes off the front of bufs, and what is empty there.
func without(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}

func asError(call string, errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return os.NewSyscallError(call, errno)
}
