package proxy

import (
	"net"

	"golang.org/x/sys/unix"
)

// unreadBytes tells how much a socket holds that was not read.
func unreadBytes(c *net.TCPConn) func() int {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return func() (n int) {
		_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		return n
	}
}
