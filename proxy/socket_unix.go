//go:build unix && !linux

package proxy

import (
	"errors"
	"syscall"
)

func readSocket(fd uintptr, p []byte) (int, syscall.Errno) {
	n, err := syscall.Read(int(fd), p)
	return n, errnoOf(err)
}

func writeSocket(fd uintptr, p []byte) (int, syscall.Errno) {
	n, err := syscall.Write(int(fd), p)
	return n, errnoOf(err)
}

// writevSocket writes no more than most bytes from the front of bufs.
func writevSocket(fd uintptr, bufs [][]byte, most int) (int, syscall.Errno) {
	for _, b := range bufs {
		if len(b) > 0 {
			return writeSocket(fd, b[:min(len(b), most)])
		}
	}
	return 0, 0
}

func errnoOf(err error) (errno syscall.Errno) {
	_ = errors.As(err, &errno)
	return errno
}
