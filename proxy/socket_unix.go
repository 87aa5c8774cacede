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

func errnoOf(err error) (errno syscall.Errno) {
	_ = errors.As(err, &errno)
	return errno
}
