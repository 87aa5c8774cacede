package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// readAhead is what a connection reads at once: small requests arrive in one
// system call, the bulk of large ones goes straight into their frame.
const readAhead = 4096

var readAheads = sync.Pool{New: func() any { return new([readAhead]byte) }}

// frameReader cuts a connection into frames. It holds a buffer only while
// there is something in it: most connections are idle most of the time.
type frameReader struct {
	net.Conn
	max  int
	wait *socketWait // nil where one has to read to find out whether there is something

	arrivals arrivals
	buf      *[readAhead]byte
	r, w     int // what was read into buf and not yet taken
}

func newFrameReader(c net.Conn, maxFrame int) *frameReader {
	f := &frameReader{Conn: c, max: maxFrame}
	f.wait = newSocketWait(c, f.buffer, f.drop, &f.arrivals)
	return f
}

// watch lets others wait for what arrives.
func (f *frameReader) watch() *arrivals {
	a := &f.arrivals
	c := f.Conn
	if t, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS
		c = t.NetConn()
	}
	switch c := c.(type) {
	case *inlet:
		c.wait.arrivals = a
		a.unread, a.layered = unreadBytes(c.TCPConn), true
	case *net.TCPConn:
		a.unread = unreadBytes(c)
	case interface{ Unread() int }:
		a.unread = c.Unread
	}
	if a.unread == nil {
		a.unread = func() int { return 0 }
	}
	return a
}

// inlet is the TCP below TLS, for arrivals to watch: one layer above, nobody
// knows what was taken off the socket.
type inlet struct {
	*net.TCPConn
	wait *socketWait
	p    []byte
}

// newInlet returns c itself when it cannot be watched.
func newInlet(c net.Conn) net.Conn {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	i := &inlet{TCPConn: tcp}
	i.wait = newSocketWait(tcp, func() []byte { return i.p }, func() {}, &arrivals{})
	if i.wait == nil {
		return c
	}
	return i
}

func (i *inlet) Read(p []byte) (int, error) {
	i.p = p
	n, err := i.wait.read()
	i.p = nil
	return n, err
}

func (f *frameReader) buffer() []byte {
	if f.buf == nil {
		f.buf = readAheads.Get().(*[readAhead]byte)
	}
	return f.buf[f.w:]
}

// drop gives an empty buffer back.
func (f *frameReader) drop() {
	if f.r == f.w {
		f.r, f.w = 0, 0
		if f.buf != nil {
			readAheads.Put(f.buf)
			f.buf = nil
		}
	}
}

// FrameTooLargeError is a frame length that no honest peer sends, or that the
// configuration does not allow.
type FrameTooLargeError struct {
	Size int32
	Max  int
}

func (e *FrameTooLargeError) Error() string {
	return fmt.Sprintf("frame of %d bytes: the limit is %d (limits.frame_bytes); or this is not a Kafka client", e.Size, e.Max)
}

// await waits for the next frame to begin and returns its whole size. It takes
// nothing off the connection.
func (f *frameReader) await() (int, error) {
	for f.w-f.r < wire.SizePrefix {
		if f.r > 0 && f.r < f.w {
			f.w = copy(f.buf[:], f.buf[f.r:f.w])
			f.r = 0
		}
		var n int
		var err error
		if f.drop(); f.wait != nil {
			n, err = f.wait.read()
		} else {
			n, err = f.read()
		}
		if f.w += n; n > 0 {
			f.arrivals.begin()
		}
		if err != nil {
			if err == io.EOF && f.w > f.r {
				err = io.ErrUnexpectedEOF
			}
			f.drop()
			return 0, err
		}
	}
	n := int32(binary.BigEndian.Uint32(f.buf[f.r:]))
	if n < 4 || int64(n) > int64(f.max) {
		return 0, &FrameTooLargeError{Size: n, Max: f.max}
	}
	return int(n) + wire.SizePrefix, nil
}

// read is for what is not plain TCP.
func (f *frameReader) read() (int, error) {
	if a := &f.arrivals; a.unread != nil && !a.layered && a.unread() == 0 {
		a.empty()
	}
	n, err := f.Read(f.buffer())
	if n > 0 {
		f.arrivals.drained.Store(false)
	}
	return n, err
}

// accepted notes that the frame that was filled last, of n bytes, was accepted.
func (f *frameReader) accepted(n int) { f.arrivals.accept(n, f.w-f.r) }

// holds reports whether the next n bytes have been read ahead.
func (f *frameReader) holds(n int) bool { return f.w-f.r >= n }

// fill reads the frame that await announced, and releases it on an error.
func (f *frameReader) fill(fr *frame) error {
	n := copy(fr.b, f.buf[f.r:f.w])
	f.r += n
	f.drop()
	if n == len(fr.b) {
		return nil
	}
	var err error
	if f.wait != nil {
		err = f.wait.fill(fr.b[n:])
	} else {
		_, err = io.ReadFull(f.Conn, fr.b[n:])
	}
	if err != nil {
		fr.release()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
	}
	return err
}

func (c *conn) readDeadline(d time.Duration) {
	if c.deaf.Load() {
		d = min(d, c.p.limits.DrainTimeout)
	}
	_ = c.client.SetReadDeadline(time.Now().Add(d))
}

// read takes frames from the client until it ends. A frame's first bytes are
// waited for before anything else, so that a client that leaves is noticed
// however many of its requests are in flight.
func (c *conn) read() error {
	in := newFrameReader(c.client, c.p.limits.MaxFrameBytes)
	c.arrivals = in.watch()
	defer c.arrivals.rest()
	idle := c.p.limits.FirstRequestTimeout
	for {
		c.readDeadline(idle)
		if c.p.stopping.Load() && c.began.Load() {
			return errShutdown
		}
		n, err := in.await()
		if err != nil {
			return c.readError(err)
		}
		if c.muted.Load() != 0 {
			if err := c.awaitUnmuted(); err != nil {
				return err
			}
		}
		if err := c.takeSlot(); err != nil {
			return err
		}
		r := &request{}
		if err := c.makeRoom(n, &r.in); err != nil {
			<-c.slots
			return err
		}
		if !in.holds(n) {
			// From here on, the client is the one to be waited for.
			c.readDeadline(c.p.limits.FrameTimeout)
			c.filling.begin(time.Now())
		}
		err = in.fill(&r.in)
		c.filling.end()
		if err != nil {
			<-c.slots
			return c.readError(err)
		}
		idle = c.p.limits.IdleTimeout
		if err := c.accept(r); err != nil {
			return err
		}
		in.accepted(n)
	}
}

// takeSlot waits until there may be one more request in flight.
func (c *conn) takeSlot() error {
	if c.isGone() {
		return context.Cause(c.present)
	}
	select {
	case c.slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-c.present.Done():
		return context.Cause(c.present)
	}
}

// makeRoom takes memory for a frame that the client has announced. Anybody may
// announce anything: until the broker talks to a client it has little, and
// before it gets more the broker is asked whether it may speak at all.
func (c *conn) makeRoom(n int, f *frame) error {
	requests := c.p.requests
	if c.welcome.Load() {
		return requests.take(c.present, n, f, c.listener())
	}
	if size, _ := room(n); size <= requests.unknown {
		return requests.takeStranger(c.present, n, f, c.listener())
	}
	if err := c.awaitWelcome(); err != nil {
		return err
	}
	return requests.take(c.present, n, f, c.listener())
}

// readError tells a reader that Shutdown woke from one whose client was slow.
func (c *conn) readError(err error) error {
	if c.p.stopping.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		return errShutdown
	}
	return err
}

// urgent reports whether a request is of the low-latency tier, as far as that can be
// told now: diskless answers leave it a CPU.
func (c *conn) urgent(r *request) bool {
	switch r.api.Key {
	case 0:
		return !r.destined
	case 1:
		return !c.diskless
	}
	return false
}

// accept decides what happens to one frame.
func (c *conn) accept(r *request) error {
	r.received = time.Now()
	if len(r.in.b) < wire.MinRequest {
		c.giveBack(r)
		return wire.ErrMalformed
	}
	var key int16
	key, r.version, r.correlationID = wire.PeekRequest(r.in.b)
	r.api = c.p.apis.find(key)
	if r.api == nil {
		c.giveBack(r)
		return fmt.Errorf("%w: API key %d (%s)", errRefused, key, kmsg.NameForKey(key))
	}
	// Counted when it is on its way: counters are cold, and it need not wait for them.
	defer c.p.metrics.request(r.api, len(r.in.b))
	if r.api.login() && !c.began.Load() {
		c.began.Store(true)
	}
	if !r.api.poll() {
		r.owed = true
		c.owed.Add(1)
		c.p.owed.Add(1)
	}
	if r.version < r.api.Min || r.version > r.api.Max {
		if key == apiVersionsKey {
			r.local = unsupportedAPIVersions(r)
			return c.submit(r)
		}
		c.giveBack(r)
		return fmt.Errorf("%w: %s v%d; v%d to v%d were offered", errRefused, r.api.Name, r.version, r.api.Min, r.api.Max)
	}
	h, err := wire.ParseRequestHeader(r.in.b, r.version >= r.api.flexible)
	if err != nil {
		c.giveBack(r)
		return err
	}
	r.body = h.Body
	if string(h.ClientID) != c.clientID {
		c.clientID = string(h.ClientID)
		c.from = c.p.crossings.from(c.address, c.clientID)
	}
	r.clientID = c.clientID
	if r.api.handle != nil {
		if err := r.api.handle(c, r); err != nil {
			c.giveBack(r)
			return fmt.Errorf("%s v%d: %w", r.api.Name, r.version, err)
		}
		if c.urgent(r) {
			c.p.opt.Turns.Others(r.received)
		}
	}
	return c.submit(r)
}
