//go:build unix

package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// socketWait reads into a buffer that it takes only when there is something to
// read.
type socketWait struct {
	buffer   func() []byte
	drop     func() // of an empty buffer
	arrivals *arrivals
	raw      syscall.RawConn
	try      func(fd uintptr) bool // made once: a closure for each frame would be garbage
	n        int
	err      error
}

// newSocketWait returns nil for what is not plain TCP.
func newSocketWait(c net.Conn, buffer func() []byte, drop func(), a *arrivals) *socketWait {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	w := &socketWait{buffer: buffer, drop: drop, arrivals: a, raw: raw}
	w.try = w.attempt
	return w
}

// attempt reports whether there is no need to wait any longer.
func (w *socketWait) attempt(fd uintptr) bool {
	for {
		w.arrivals.drained.Store(false)
		switch w.n, w.err = syscall.Read(int(fd), w.buffer()); {
		case errors.Is(w.err, syscall.EINTR):
		case errors.Is(w.err, syscall.EAGAIN):
			w.drop()
			w.arrivals.empty()
			return false
		default:
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
		return 0, os.NewSyscallError("read", w.err)
	case w.n == 0:
		return 0, io.EOF
	}
	return w.n, nil
}
