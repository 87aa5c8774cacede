package benchmarks_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	limiter "golang.org/x/time/rate"
)

// The least that a hop in user space can do: what sluice is measured against.
// Each runs in a process of its own, which is this test binary.

const relayCommand = "relay" // then: what, where to listen, where to lead

// relayBuffer is no constant: the compiler would put the buffer on the stack,
// where all of it is memory before anything is read.
var relayBuffer = 64 << 10

var relays = map[string]func(dst, src *net.TCPConn) error{
	"splice": func(dst, src *net.TCPConn) error {
		_, err := io.Copy(dst, src) // splice(2) on Linux: bytes stay in the kernel
		return err
	},
	"copy": func(dst, src *net.TCPConn) error {
		buf := make([]byte, relayBuffer)
		for {
			n, err := src.Read(buf)
			if n > 0 {
				if _, err := dst.Write(buf[:n]); err != nil {
					return err
				}
			}
			if err != nil {
				return err
			}
		}
	},
	"line": func(dst, src *net.TCPConn) error {
		buf := make([]byte, relayBuffer)
		for {
			asked := time.Now()
			n, err := src.Read(buf)
			if time.Since(asked) > time.Millisecond {
				time.Sleep(lineDelay) // the first bytes of a request, or of its answer
			}
			if n > 0 {
				_ = line.WaitN(context.Background(), n)
				if _, err := dst.Write(buf[:n]); err != nil {
					return err
				}
			}
			if err != nil {
				return err
			}
		}
	},
}

// What lies between a replica and a store that is not on its machine: a network
// of 1 Gbit/s, and 20 ms until the first byte of an answer.
const (
	lineRate  = 125_000_000
	lineDelay = 10 * time.Millisecond // each way
)

var line = limiter.NewLimiter(lineRate, 1<<20)

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == relayCommand {
		fmt.Fprintln(os.Stderr, relay(os.Args[2], os.Args[3], os.Args[4]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// relay returns only when it cannot go on.
func relay(what, listen, upstream string) error {
	move := relays[what]
	if move == nil {
		return fmt.Errorf("there is no relay %q", what)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		accepted, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			client := accepted.(*net.TCPConn)
			defer client.Close()
			dialed, err := net.Dial("tcp", upstream)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
			broker := dialed.(*net.TCPConn)
			defer broker.Close()
			var way sync.WaitGroup
			way.Go(func() {
				_ = move(client, broker)
				_ = client.CloseWrite()
			})
			_ = move(broker, client)
			_ = broker.CloseWrite()
			way.Wait()
		}()
	}
}
