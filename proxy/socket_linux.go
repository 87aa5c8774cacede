package proxy

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sockets never block, so the scheduler need not know of a read or a write. Where
// it knows, it wakes its monitor (runtime.sysmon) after each moment in which
// nothing ran, which is between any two frames: about a quarter of a relay's CPU,
// and a wake-up in each frame's way.

func readSocket(fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), errno
}

func writeSocket(fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), errno
}
