package harness

import (
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
)

// Balancer is a TCP balancer on a range of ports, in front of backends that
// listen on the same ports of other loopback addresses. A backend is taken in
// turn; one that does not accept is passed over.
type Balancer struct {
	mu       sync.Mutex
	backends []string
	next     int
	conns    map[net.Conn]string // client and backend connections, by backend
}

// StartBalancer listens on host's ports first to first+n-1.
func StartBalancer(t testing.TB, host string, first, n int, backends ...string) *Balancer {
	t.Helper()
	b := &Balancer{backends: backends, conns: make(map[net.Conn]string)}
	var wg sync.WaitGroup
	var listeners []net.Listener
	t.Cleanup(func() {
		for _, l := range listeners {
			_ = l.Close()
		}
		b.mu.Lock()
		for c := range b.conns {
			_ = c.Close()
		}
		b.mu.Unlock()
		wg.Wait()
	})
	for port := first; port < first+n; port++ {
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { b.relay(c, strconv.Itoa(port)) })
			}
		})
	}
	return b
}

// Use changes the backends, and cuts the connections of those that are gone.
func (b *Balancer) Use(backends ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.backends = backends
	for c, of := range b.conns {
		if !slices.Contains(backends, of) {
			reset(c)
		}
	}
}

func (b *Balancer) relay(client net.Conn, port string) {
	b.mu.Lock()
	var order []string
	for i := range b.backends {
		order = append(order, b.backends[(b.next+i)%len(b.backends)])
	}
	b.next++
	b.mu.Unlock()
	for _, backend := range order {
		server, err := net.Dial("tcp", net.JoinHostPort(backend, port))
		if err != nil {
			continue
		}
		b.mu.Lock()
		b.conns[client], b.conns[server] = backend, backend
		b.mu.Unlock()
		var wg sync.WaitGroup
		wg.Go(func() { pipe(server, client) })
		wg.Go(func() { pipe(client, server) })
		wg.Wait()
		_ = client.Close()
		_ = server.Close()
		b.mu.Lock()
		delete(b.conns, client)
		delete(b.conns, server)
		b.mu.Unlock()
		return
	}
	reset(client)
}

// pipe copies one way and ends that way only.
func pipe(to, from net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				reset(from)
				return
			}
		}
		if err != nil {
			if half, ok := to.(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
			return
		}
	}
}
