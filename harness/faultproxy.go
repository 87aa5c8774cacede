package harness

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// FaultProxy relays TCP to one target and misbehaves when told to.
type FaultProxy struct {
	Addr string

	target   string
	listener net.Listener
	accepted atomic.Int64

	mu    sync.Mutex
	fault NetFault
	conns map[net.Conn]struct{}
}

// NetFault is what a FaultProxy does to connections. The zero value is nothing.
type NetFault struct {
	Refuse     bool          // new connections are reset, and all open ones
	Blackhole  bool          // bytes are taken and go nowhere
	Delay      time.Duration // before each piece of what the target sends
	ResetAfter int64         // a connection is reset after so many bytes to the target; 0 is never
	Rate       int           // bytes per second, each way; 0 is no limit
}

// StartFaultProxy relays a free port to target.
func StartFaultProxy(t testing.TB, target string) *FaultProxy {
	t.Helper()
	return StartFaultProxyAt(t, "127.0.0.1:0", target)
}

// StartFaultProxyAt relays addr to target.
func StartFaultProxyAt(t testing.TB, addr, target string) *FaultProxy {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	p := &FaultProxy{Addr: l.Addr().String(), target: target, listener: l, conns: make(map[net.Conn]struct{})}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.accepted.Add(1)
			wg.Go(func() { p.relay(ctx, c) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		p.reset()
		wg.Wait()
	})
	return p
}

// Accepted is how many connections came.
func (p *FaultProxy) Accepted() int64 { return p.accepted.Load() }

// Set changes the fault, for open connections too.
func (p *FaultProxy) Set(f NetFault) {
	p.mu.Lock()
	p.fault = f
	p.mu.Unlock()
	if f.Refuse {
		p.reset()
	}
}

func (p *FaultProxy) get() NetFault {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault
}

func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

func (p *FaultProxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		reset(c)
	}
}

func (p *FaultProxy) relay(ctx context.Context, client net.Conn) {
	if p.get().Refuse {
		reset(client)
		return
	}
	var d net.Dialer
	server, err := d.DialContext(ctx, "tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	p.mu.Lock()
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, client)
		delete(p.conns, server)
		p.mu.Unlock()
	}()
	var wg sync.WaitGroup
	wg.Go(func() { p.copy(server, client, true) })
	wg.Go(func() { p.copy(client, server, false) })
	wg.Wait()
	_ = client.Close()
	_ = server.Close()
}

func (p *FaultProxy) copy(to, from net.Conn, upward bool) {
	buf := make([]byte, 16<<10)
	var sent int64
	for {
		n, err := from.Read(buf)
		f := p.get()
		if n > 0 && !f.Blackhole {
			if !upward && f.Delay > 0 {
				time.Sleep(f.Delay)
			}
			if f.Rate > 0 {
				time.Sleep(time.Duration(n) * time.Second / time.Duration(f.Rate))
			}
			if upward && f.ResetAfter > 0 && sent+int64(n) > f.ResetAfter {
				_, _ = to.Write(buf[:max(0, f.ResetAfter-sent)])
				reset(to)
				reset(from)
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				reset(from)
				return
			}
			sent += int64(n)
		}
		if err == io.EOF {
			if half, ok := to.(*net.TCPConn); ok {
				_ = half.CloseWrite() // the other way may still go on
			}
			return
		}
		if err != nil {
			reset(to)
			reset(from)
			return
		}
	}
}
