package proxy

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// readBuffer is what a connection reads ahead: small requests arrive in one
// system call, the bulk of large ones goes straight into their frame.
const readBuffer = 4096

// frameReader cuts a connection into frames.
type frameReader struct {
	r      *bufio.Reader
	max    int
	budget *budget
}

func newFrameReader(c net.Conn, maxFrame int, b *budget) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(c, readBuffer), max: maxFrame, budget: b}
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

// next reads one frame. begun is called once its first bytes are there.
func (f *frameReader) next(ctx context.Context, begun func()) (*frame, error) {
	size, err := f.r.Peek(wire.SizePrefix)
	if err != nil {
		if err == io.EOF && len(size) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	n := int32(binary.BigEndian.Uint32(size))
	if n < 4 || int64(n) > int64(f.max) {
		return nil, &FrameTooLargeError{Size: n, Max: f.max}
	}
	if begun != nil {
		begun()
	}
	fr, err := f.budget.frame(ctx, int(n)+wire.SizePrefix)
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(f.r, fr.b); err != nil {
		fr.release()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return fr, nil
}

// deadlines of a client connection: a frame that has begun must end soon, the
// next one may take as long as a broker would wait.
func (c *conn) readDeadline(d time.Duration) { _ = c.client.SetReadDeadline(time.Now().Add(d)) }
