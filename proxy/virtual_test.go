package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// network is TCP in memory, as far as the proxy can tell: bounded buffers,
// half-closed streams, resets and deadlines. Its waits are of the kind that
// testing/synctest understands, so that time can be fake.
type network struct {
	mu        sync.Mutex
	listeners map[string]*listener
}

const socketBuffer = 64 << 10

type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

type listener struct {
	n        *network
	addr     address
	accepted chan net.Conn
	closed   chan struct{}
	once     sync.Once

	mu     sync.Mutex
	errors []error // returned by Accept first
}

func (n *network) Listen(_, addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, syscall.EADDRINUSE
	}
	l := &listener{n: n, addr: address(addr), accepted: make(chan net.Conn), closed: make(chan struct{})}
	if n.listeners == nil {
		n.listeners = make(map[string]*listener)
	}
	n.listeners[addr] = l
	return l, nil
}

// dial connects from an address.
func (n *network) dial(ctx context.Context, from, to string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[to]
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("%s: %w", to, syscall.ECONNREFUSED)
	}
	near, far := connect(address(from), l.addr)
	select {
	case l.accepted <- far:
		return near, nil
	case <-l.closed:
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	if len(l.errors) > 0 {
		err := l.errors[0]
		l.errors = l.errors[1:]
		l.mu.Unlock()
		return nil, err
	}
	l.mu.Unlock()
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.n.mu.Lock()
		delete(l.n.listeners, string(l.addr))
		l.n.mu.Unlock()
	})
	return nil
}
func (l *listener) Addr() net.Addr { return l.addr }

// stream is one direction of a connection.
type stream struct {
	mu     sync.Mutex
	cond   *sync.Cond
	buf    []byte
	ended  bool // the writer has closed
	reset  bool // the reader has closed
	reader limit
	writer limit
}

// limit is a deadline that wakes who waits.
type limit struct {
	at    time.Time
	timer *time.Timer
}

func (l *limit) over() bool { return !l.at.IsZero() && !time.Now().Before(l.at) }

func (s *stream) set(l *limit, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.at, l.timer = at, nil
	if !at.IsZero() && !l.over() {
		l.timer = time.AfterFunc(time.Until(at), s.wake)
	}
	s.cond.Broadcast()
}

func (s *stream) wake() {
	s.mu.Lock()
	s.cond.Broadcast()
	s.mu.Unlock()
}

func newStream() *stream {
	s := &stream{}
	s.cond = sync.NewCond(&s.mu)
	return s
}

type virtualConn struct {
	in, out       *stream
	local, remote address

	mu     sync.Mutex
	closed bool
}

func connect(from, to address) (near, far *virtualConn) {
	a, b := newStream(), newStream()
	return &virtualConn{in: a, out: b, local: from, remote: to}, &virtualConn{in: b, out: a, local: to, remote: from}
}

func (c *virtualConn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Unread is what a system would tell of a socket.
func (c *virtualConn) Unread() int {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return len(c.in.buf)
}

func (c *virtualConn) Read(p []byte) (int, error) {
	s := c.in
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case c.isClosed():
			return 0, net.ErrClosed
		case s.reader.over():
			return 0, os.ErrDeadlineExceeded
		case len(s.buf) > 0:
			n := copy(p, s.buf)
			s.buf = s.buf[n:]
			s.cond.Broadcast()
			return n, nil
		case s.ended:
			return 0, io.EOF
		}
		s.cond.Wait()
	}
}

func (c *virtualConn) Write(p []byte) (n int, err error) {
	s := c.out
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case c.isClosed():
			return n, net.ErrClosed
		case s.ended:
			return n, syscall.EPIPE
		case s.reset:
			return n, syscall.ECONNRESET
		case s.writer.over():
			return n, os.ErrDeadlineExceeded
		case len(p) == 0:
			return n, nil
		}
		room := min(socketBuffer-len(s.buf), len(p))
		if room > 0 {
			s.buf = append(s.buf, p[:room]...)
			p, n = p[room:], n+room
			s.cond.Broadcast()
			continue
		}
		s.cond.Wait()
	}
}

// Close ends both directions. Like TCP it resets what the peer still sends, and
// what it has sent if it was not read.
func (c *virtualConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	unread := false
	c.in.mu.Lock()
	unread = len(c.in.buf) > 0
	c.in.reset, c.in.buf = true, nil
	c.in.cond.Broadcast()
	c.in.mu.Unlock()
	c.out.mu.Lock()
	c.out.ended = true
	if unread {
		c.out.buf = nil
	}
	c.out.cond.Broadcast()
	c.out.mu.Unlock()
	return nil
}

func (c *virtualConn) CloseWrite() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.ended = true
	c.out.cond.Broadcast()
	return nil
}

func (c *virtualConn) LocalAddr() net.Addr  { return c.local }
func (c *virtualConn) RemoteAddr() net.Addr { return c.remote }
func (c *virtualConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
func (c *virtualConn) SetReadDeadline(t time.Time) error {
	c.in.set(&c.in.reader, t)
	return nil
}
func (c *virtualConn) SetWriteDeadline(t time.Time) error {
	c.out.set(&c.out.writer, t)
	return nil
}
