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

// maxVectors is the kernel's IOV_MAX.
const maxVectors = 1024

// writevSocket writes no more than most bytes from the front of bufs.
func writevSocket(fd uintptr, bufs [][]byte, most int) (int, syscall.Errno) {
	vectors := make([]unix.Iovec, 0, min(len(bufs), maxVectors))
	for _, b := range bufs {
		if b = b[:min(len(b), most)]; len(b) > 0 {
			v := unix.Iovec{Base: unsafe.SliceData(b)}
			v.SetLen(len(b))
			vectors = append(vectors, v)
		}
		if most -= len(b); most == 0 || len(vectors) == maxVectors {
			break
		}
	}
	if len(vectors) == 0 {
		return 0, 0
	}
	n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(vectors))), uintptr(len(vectors)))
	return int(n), errno
}
