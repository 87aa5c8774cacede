package harness

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Ports for tests lie below the kernel's ephemeral range, where an outgoing
// connection of another test could take one between its choice and its use.
const (
	firstPort = 10_000
	lastPort  = 31_999
	portBlock = 20 // what one lock covers
)

// Ports returns the first of n consecutive ports that are free on every
// loopback address and reserved for this test, also against other processes.
func Ports(t testing.TB, n int) int {
	t.Helper()
	dir := filepath.Join(os.TempDir(), "sluice-ports")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	blocks := (n + portBlock - 1) / portBlock
	// Different processes begin at different places, so that ports that were
	// just given back rest for a while.
	total := (lastPort-firstPort)/portBlock - blocks
	for try := range total {
		first := firstPort + (os.Getpid()*37+try)%total*portBlock
		if release, ok := reserve(dir, first, blocks); ok {
			t.Cleanup(release)
			return first
		}
	}
	t.Fatalf("no %d consecutive free ports between %d and %d", n, firstPort, lastPort)
	return 0
}

func reserve(dir string, first, blocks int) (release func(), ok bool) {
	var locks []*os.File
	release = func() {
		for _, l := range locks {
			_ = l.Close()
		}
	}
	for b := range blocks {
		from := first + b*portBlock
		l, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(from)), os.O_CREATE|os.O_RDWR, 0o666)
		if err != nil {
			release()
			return nil, false
		}
		locks = append(locks, l)
		if err := syscall.Flock(int(l.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			release()
			return nil, false
		}
		for p := from; p < from+portBlock; p++ {
			probe, err := net.Listen("tcp", fmt.Sprintf(":%d", p))
			if err != nil {
				release()
				return nil, false
			}
			_ = probe.Close()
		}
	}
	return release, true
}
