//go:build unix

package objstore

import (
	"io"
	"net"
	"os"
	"syscall"

	"github.com/sluice-kafka/sluice/turns"
)

// readInTurns has a turn while it reads, and none while it waits for the store.
func readInTurns(c *net.TCPConn, p []byte, t *turns.Turns) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	waited := raw.Read(func(fd uintptr) bool {
		defer t.Take().Give()
		for {
			n, err = syscall.Read(int(fd), p)
			if err != syscall.EINTR {
				return err != syscall.EAGAIN
			}
		}
	})
	switch {
	case waited != nil:
		return 0, waited
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return n, nil
}
