package proxy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// More than any socket takes at once arrives whole and in order, whether it is
// written in one piece or in many.
func TestAllIsWritten(t *testing.T) {
	want := make([]byte, 12<<20)
	for i := range want {
		want[i] = byte(i >> 10)
	}
	for kind, pair := range pairs(t) {
		for _, way := range []string{"one", "all"} {
			t.Run(kind+"/"+way, func(t *testing.T) {
				ours, theirs := pair()
				s := newSink(ours, time.Minute)
				wrote := make(chan error, 1)
				go func() {
					var n int
					var err error
					if way == "one" {
						n, err = s.writeOne(want)
					} else {
						n, err = s.writeAll([][]byte{want[:1], want[1 : 5<<20], want[5<<20:]})
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
