package proxy

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-kafka/sluice/turns"
)

// writeChunk is how much is written under one deadline, so that a slow peer
// has to make progress, not to finish.
const writeChunk = 1 << 20

// sink is the writing side of a connection. Whoever reads it must take each
// chunk within timeout.
type sink struct {
	net.Conn
	plain   *socketWrite // nil for what is not plain TCP
	turns   *turns.Turns // for what is written in many slices
	timeout time.Duration
	until   time.Time // when all has to be written, whatever progress is made; zero: no such time
	bounded bool      // a deadline is set, of an earlier write perhaps
	stall   stall     // since when the present chunk is not taken
}

func newSink(c net.Conn, timeout time.Duration) sink {
	return sink{Conn: c, plain: newSocketWrite(c), timeout: timeout}
}

func (s *sink) deadline() error {
	now := time.Now()
	s.bounded = true
	s.stall.begin(now)
	end := now.Add(s.timeout)
	if !s.until.IsZero() && s.until.Before(end) {
		end = s.until
	}
	return s.SetWriteDeadline(end)
}

// writeOne writes b.
func (s *sink) writeOne(b []byte) (n int, err error) {
	defer s.stall.end()
	for {
		chunk := b[:min(len(b), writeChunk)]
		wrote, err := s.writePart(chunk)
		n += wrote
		if b = b[len(chunk):]; err != nil || len(b) == 0 {
			return n, err
		}
	}
}

func (s *sink) writePart(b []byte) (int, error) {
	if s.plain != nil && s.until.IsZero() {
		return s.plain.write(s, b)
	}
	if err := s.deadline(); err != nil {
		return 0, err
	}
	return s.Write(b)
}

// writeAll writes slices in order. It changes out.
func (s *sink) writeAll(out [][]byte) (n int, err error) {
	if _, tcp := s.Conn.(*net.TCPConn); !tcp {
		// Only plain TCP writes many slices in one system call; elsewhere each
		// would be a TLS record and a packet of its own.
		return s.writeGathered(out)
	}
	defer s.stall.end()
	for len(out) > 0 {
		var batch net.Buffers
		size := 0
		for len(out) > 0 && size < writeChunk {
			b := out[0]
			if len(b) > writeChunk-size {
				b = b[:writeChunk-size]
				out[0] = out[0][len(b):]
			} else {
				out = out[1:]
			}
			batch = append(batch, b)
			size += len(b)
		}
		if err := s.deadline(); err != nil {
			return n, err
		}
		wrote, err := s.writeBuffers(batch, size)
		n += wrote
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *sink) writeBuffers(batch net.Buffers, size int) (int, error) {
	if s.plain != nil && s.turns != nil && size > turns.Small {
		return s.plain.inTurns(batch, s.turns)
	}
	n, err := batch.WriteTo(s.Conn)
	return int(n), err
}

// gatherSize is two whole TLS records.
const gatherSize = 32 << 10

var gatherers = sync.Pool{New: func() any { return new([gatherSize]byte) }}

// writeGathered copies small slices together and writes large ones as they are.
func (s *sink) writeGathered(out [][]byte) (n int, err error) {
	buf := gatherers.Get().(*[gatherSize]byte)
	defer gatherers.Put(buf)
	small := buf[:0]
	write := func(b []byte) {
		if len(b) > 0 && err == nil {
			var wrote int
			wrote, err = s.writeOne(b)
			n += wrote
		}
	}
	for _, b := range out {
		if len(small)+len(b) > gatherSize {
			write(small)
			small = small[:0]
		}
		if len(b) > gatherSize {
			write(b)
			continue
		}
		small = append(small, b...)
	}
	write(small)
	return n, err
}

// stall says since when a peer has been waited for while memory is held for it.
type stall struct{ since atomic.Int64 }

func (s *stall) begin(now time.Time) { s.since.Store(now.UnixNano()) }
func (s *stall) end()                { s.since.Store(0) }

// before reports whether the wait began before t.
func (s *stall) before(t time.Time) bool {
	since := s.since.Load()
	return since != 0 && since < t.UnixNano()
}
