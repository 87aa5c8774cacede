package proxy

import (
	"crypto/tls"
	"net"
	"net/http/httptest"
	"testing"
	"time"
)

// tcpPair is two ends of a TCP connection, ours watched as proxy.admit does it
// below TLS.
func tcpPair(t *testing.T) (ours net.Conn, theirs net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	theirs, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ours, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	return ours, theirs
}

// Whoever waits for what has arrived waits for exactly that, also when the reader
// does not run, and whatever lies between it and the socket.
func TestArrivals(t *testing.T) {
	certificates := httptest.NewUnstartedServer(nil)
	certificates.StartTLS()
	defer certificates.Close()
	for _, kind := range []string{"tcp", "tls"} {
		t.Run(kind, func(t *testing.T) {
			ours, theirs := tcpPair(t)
			if kind == "tls" {
				plain := theirs
				ours = tls.Server(newInlet(ours), &tls.Config{Certificates: certificates.TLS.Certificates})
				theirs = tls.Client(plain, &tls.Config{InsecureSkipVerify: true})
			}
			f := newFrameReader(ours, 1<<20)
			a := f.watch()
			// The reader goes as far as it is let.
			let, read := make(chan struct{}), make(chan int)
			go func() {
				defer close(read)
				for range let {
					n, err := f.await()
					if err != nil {
						return
					}
					fr := frame{b: make([]byte, n), budget: nil}
					if err := f.fill(&fr); err != nil {
						return
					}
					read <- n
					<-let
					f.accepted(n)
				}
			}()
			send := func(b []byte) {
				if _, err := theirs.Write(b); err != nil {
					t.Error(err)
				}
			}
			outstanding := func(why string) <-chan struct{} {
				t.Helper()
				w := a.await()
				if w == nil {
					t.Fatal(why)
				}
				select {
				case <-w:
					t.Fatal(why)
				default:
				}
				return w
			}
			gone := func(w <-chan struct{}, why string) {
				t.Helper()
				select {
				case <-w:
				case <-time.After(10 * time.Second):
					t.Fatal(why)
				}
			}
			first := framed(make([]byte, 5000))
			sent := make(chan struct{})
			go func() { // a handshake needs both ends
				defer close(sent)
				send(first)
			}()
			if kind == "tcp" {
				<-sent
				outstanding("the reader has not even begun")
			}
			let <- struct{}{}
			<-read
			<-sent
			w := outstanding("a frame is read and not accepted")
			let <- struct{}{} // accepted
			let <- struct{}{} // and on
			gone(w, "everything is accepted")
			for a.await() != nil { // until the reader has found the socket empty
				time.Sleep(time.Millisecond)
			}

			// Half a frame has arrived: its client has begun to send it.
			send(first[:3000])
			w = outstanding("half a frame")
			select {
			case <-w:
				t.Fatal("half a frame")
			case <-time.After(20 * time.Millisecond):
			}
			send(first[3000:])
			<-read
			outstanding("a frame is not accepted")
			// And more behind it, which came before the question and before the
			// frame was accepted.
			send(first)
			w = outstanding("two frames")
			let <- struct{}{}
			select {
			case <-w:
				t.Fatal("another frame had arrived")
			case <-time.After(20 * time.Millisecond):
			}
			let <- struct{}{}
			<-read
			let <- struct{}{}
			let <- struct{}{}
			gone(w, "everything is accepted")

			// A reader that waits for others, or has ended, makes nobody wait.
			send(first)
			w = outstanding("a frame")
			a.rest()
			gone(w, "it rests")
			if a.await() != nil {
				t.Error("it rests")
			}
			a.resume()
			<-read
			outstanding("it does not rest any longer")
			let <- struct{}{}
			close(let)
			_ = theirs.Close()
			for range read { //nolint:revive // until it ends
			}
		})
	}
}

// A client that never stops sending is not waited for longer than for what it
// had sent.
func TestArrivalsOfAnEndlessStream(t *testing.T) {
	ours, theirs := tcpPair(t)
	f := newFrameReader(ours, 1<<20)
	a := f.watch()
	go func() {
		b := framed(make([]byte, 1000))
		for {
			if _, err := theirs.Write(b); err != nil {
				return
			}
		}
	}()
	var w <-chan struct{}
	frames := 0
	for ; ; frames++ {
		n, err := f.await()
		if err != nil {
			t.Fatal(err)
		}
		if frames == 10 {
			if w = a.await(); w == nil {
				t.Fatal("a frame is not accepted")
			}
		}
		if err := f.fill(&frame{b: make([]byte, n)}); err != nil {
			t.Fatal(err)
		}
		for a.unread() == 0 { // it never ends
			time.Sleep(time.Millisecond)
		}
		f.accepted(n)
		select {
		case <-w:
			return
		default:
		}
		if frames == 100_000 {
			t.Fatal("it waits on")
		}
	}
}
