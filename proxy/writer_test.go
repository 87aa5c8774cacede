package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-kafka/sluice/turns"
)

// More than any socket takes at once arrives whole and in order, whether it is
// written in one piece or in many.
func TestAllIsWritten(t *testing.T) {
	want := make([]byte, 12<<20)
	for i := range want {
		want[i] = byte(i >> 10)
	}
	for kind, pair := range pairs(t) {
		for _, way := range []string{"one", "all", "in turns"} {
			t.Run(kind+"/"+way, func(t *testing.T) {
				ours, theirs := pair()
				s := newSink(ours, time.Minute)
				if way == "in turns" {
					s.turns = turns.New(1, 1, prometheus.NewRegistry())
				}
				wrote := make(chan error, 1)
				go func() {
					var n int
					var err error
					if way == "one" {
						n, err = s.writeOne(want)
					} else {
						n, err = s.writeAll([][]byte{want[:1], {}, want[1 : 5<<20], want[5<<20:]})
					}
					if n != len(want) && err == nil {
						err = errors.New("the count is wrong")
					}
					wrote <- err
				}()
				got := make([]byte, len(want))
				_, err := io.ReadFull(theirs, got)
				if err := errors.Join(err, <-wrote); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%v; equal: %v", err, bytes.Equal(got, want))
				}
			})
		}
	}
}

// Who takes nothing is given up at the deadline, and who has gone at once.
func TestNobodyTakesIt(t *testing.T) {
	for kind, pair := range pairs(t) {
		t.Run(kind, func(t *testing.T) {
			ours, theirs := pair()
			s := newSink(ours, 10*time.Millisecond)
			if n, err := s.writeOne(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || n == 64<<20 {
				t.Errorf("%d bytes written, %v", n, err)
			}
			_ = theirs.Close()
			var err error
			for err == nil {
				_, err = s.writeOne(make([]byte, 1<<10))
			}
			if !isQuietEnd(err) {
				t.Errorf("the peer has gone: %v", err)
			}
		})
	}
}

// The deadline of an earlier write is not that of a later one.
func TestDeadlinesOfEarlierWrites(t *testing.T) {
	for kind, pair := range pairs(t) {
		t.Run(kind, func(t *testing.T) {
			ours, theirs := pair()
			s := newSink(ours, -time.Hour)
			if err := s.deadline(); err != nil {
				t.Fatal(err)
			}
			s.timeout = time.Hour
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			for range 2 {
				if _, err := s.writeOne([]byte("late")); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A client that does not read its answer has no turn meanwhile: others' answers go
// out, and when it is given up, nothing is left of it.
func TestNoTurnIsHeldForAClient(t *testing.T) {
	one := turns.New(1, 1, prometheus.NewRegistry())
	answer := func(c net.Conn, timeout time.Duration) error {
		s := newSink(c, timeout)
		s.turns = one
		_, err := s.writeAll([][]byte{make([]byte, 32<<20), make([]byte, 32<<20)})
		return err
	}
	pair := pairs(t)["tcp"]
	stuck := make(chan error, 3)
	var ours [2]net.Conn
	for i, timeout := range []time.Duration{2 * time.Second, time.Hour} {
		ours[i], _ = pair()
		go func() { stuck <- answer(ours[i], timeout) }()
	}
	other, reader := pair()
	go func() { _, _ = io.Copy(io.Discard, reader) }()
	if err := answer(other, time.Minute); err != nil {
		t.Fatalf("another client's answer: %v", err)
	}
	if len(stuck) > 0 {
		t.Fatalf("an answer that nobody reads was written: %v", <-stuck)
	}
	if err := <-stuck; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("at the deadline: %v", err)
	}
	_ = ours[1].Close()
	if err := <-stuck; !errors.Is(err, net.ErrClosed) {
		t.Errorf("when its connection is closed: %v", err)
	}
	one.Take().Give()
}

// Who waits for a turn when the connection is closed has it, finds that out, and
// gives it back.
func TestConnectionClosesWhileATurnIsAwaited(t *testing.T) {
	one := turns.New(1, 1, prometheus.NewRegistry())
	ours, _ := pairs(t)["tcp"]()
	s := newSink(ours, time.Hour)
	s.turns = one
	held := one.Take()
	wrote, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := s.writeAll([][]byte{make([]byte, 64<<20)})
		wrote <- err
	}()
	time.Sleep(10 * time.Millisecond)
	go func() { closed <- ours.Close() }()
	held.Give()
	if err := <-wrote; !errors.Is(err, net.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	one.Take().Give()
}

// Only requests of the low-latency tier keep a CPU free of diskless answers.
func TestWhatIsUrgent(t *testing.T) {
	apis := newByKey()
	for _, c := range []struct {
		key                int16
		diskless, destined bool
		want               bool
	}{
		{key: 0, want: true},
		{key: 0, diskless: true, want: true},
		{key: 0, diskless: true, destined: true},
		{key: 0, destined: true},
		{key: 1, want: true},
		{key: 1, diskless: true},
		{key: 3},
		{key: 12},
	} {
		conn := &conn{diskless: c.diskless}
		if got := conn.urgent(&request{api: apis.find(c.key), destined: c.destined}); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
