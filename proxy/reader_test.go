package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// Connections are read without a buffer of their own while they are idle, over
// TCP; others hold one. Both must cut the same frames.

// pairs are two ends of a connection, of each kind.
func pairs(t *testing.T) map[string]func() (ours, theirs net.Conn) {
	return map[string]func() (net.Conn, net.Conn){
		"tcp": func() (net.Conn, net.Conn) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			theirs, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			ours, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ours.Close(); _ = theirs.Close() })
			return ours, theirs
		},
		"pipe": func() (net.Conn, net.Conn) {
			ours, theirs := net.Pipe()
			t.Cleanup(func() { _ = ours.Close(); _ = theirs.Close() })
			return ours, theirs
		},
	}
}

func framed(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// next reads one whole frame.
func next(f *frameReader) ([]byte, error) {
	n, err := f.await()
	if err != nil {
		return nil, err
	}
	free := newBudget(1<<30, false, prometheus.NewGauge(prometheus.GaugeOpts{}), nil, nil, func() {})
	var fr frame
	free.fill(&fr, n, n, -1, free.anybody)
	if !free.anybody.TryAcquire(int64(n)) {
		return nil, errors.New("no room")
	}
	if err := f.fill(&fr); err != nil {
		return nil, err
	}
	return append([]byte(nil), fr.b...), nil
}

func TestFramesAreCutAsTheyCome(t *testing.T) {
	var stream []byte
	var want [][]byte
	for i, size := range []int{4, 5, 100, readAhead - wire.SizePrefix, readAhead, readAhead + 1, 3 * readAhead, 4, 200_000, 4} {
		f := framed(bytes.Repeat([]byte{byte(i + 1)}, size))
		want = append(want, f)
		stream = append(stream, f...)
	}
	for kind, pair := range pairs(t) {
		for name, step := range map[string]int{"bytes": 1, "odd pieces": 4099, "at once": len(stream)} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				ours, theirs := pair()
				go func() {
					for rest := stream; len(rest) > 0; {
						n := min(step, len(rest))
						if _, err := theirs.Write(rest[:n]); err != nil {
							t.Error(err)
							return
						}
						rest = rest[n:]
					}
					_ = theirs.Close()
				}()
				f := newFrameReader(ours, 1<<20)
				for i := range want {
					got, err := next(f)
					if err != nil || !bytes.Equal(got, want[i]) {
						t.Fatalf("frame %d: %d bytes, %v; want %d", i, len(got), err, len(want[i]))
					}
				}
				if _, err := next(f); err != io.EOF {
					t.Errorf("after the last frame: %v", err)
				}
				if f.buf != nil {
					t.Error("a buffer is kept after the end")
				}
			})
		}
	}
}

func TestFramesThatEndEarly(t *testing.T) {
	whole := framed([]byte("something"))
	for kind, pair := range pairs(t) {
		for cut := range len(whole) {
			ours, theirs := pair()
			go func() {
				_, _ = theirs.Write(whole[:cut])
				_ = theirs.Close()
			}()
			want := io.ErrUnexpectedEOF
			if cut == 0 {
				want = io.EOF
			}
			f := newFrameReader(ours, 1<<20)
			if _, err := next(f); err != want {
				t.Errorf("%s, cut after %d bytes: %v, want %v", kind, cut, err, want)
			}
		}
	}
}

// A deadline that passes takes nothing off the connection.
func TestDeadlinesOfAnIdleConnection(t *testing.T) {
	for kind, pair := range pairs(t) {
		t.Run(kind, func(t *testing.T) {
			ours, theirs := pair()
			f := newFrameReader(ours, 1<<20)
			want := framed([]byte("late"))
			for begun := range 2 {
				if begun > 0 {
					go func() { _, _ = theirs.Write(want[:begun]) }()
				}
				for deadline := time.Now().Add(time.Millisecond); f.w < begun || time.Now().Before(deadline); {
					_ = ours.SetReadDeadline(time.Now().Add(time.Millisecond))
					if _, err := f.await(); !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatalf("an idle connection past its deadline: %v", err)
					}
				}
				if begun == 0 && f.buf != nil {
					t.Error("a buffer is kept while there is nothing in it")
				}
			}
			_ = ours.SetReadDeadline(time.Time{})
			go func() { _, _ = theirs.Write(want[1:]) }()
			if got, err := next(f); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestIdleConnectionHoldsNoBuffer(t *testing.T) {
	ours, theirs := pairs(t)["tcp"]()
	f := newFrameReader(ours, 1<<20)
	tried := make(chan bool, 1)
	try := f.wait.try
	f.wait.try = func(fd uintptr) bool {
		done := try(fd)
		if !done {
			tried <- f.buf != nil
		}
		return done
	}
	got := make(chan error, 1)
	go func() {
		_, err := next(f)
		got <- err
	}()
	if <-tried {
		t.Error("it waits with a buffer")
	}
	if _, err := theirs.Write(framed([]byte("there"))); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestFramesOfNoHonestPeer(t *testing.T) {
	for kind, pair := range pairs(t) {
		for _, head := range [][]byte{{0, 0, 0, 3}, {0xff, 0xff, 0xff, 0xff}, {0, 0x10, 0, 1}, []byte("GET ")} {
			ours, theirs := pair()
			go func() { _, _ = theirs.Write(head) }()
			var tooLarge *FrameTooLargeError
			if _, err := newFrameReader(ours, 1<<20).await(); !errors.As(err, &tooLarge) {
				t.Errorf("%s, %x: %v", kind, head, err)
			}
		}
	}
}
