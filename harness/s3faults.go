package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// S3Fault is what happens to a request to an S3 server. The zero value is
// nothing.
type S3Fault struct {
	Methods string        // such as "PUT"; "" is all
	Over    int64         // only requests whose body is longer
	Share   float64       // of those, to so many it happens; 0 is to all
	Delay   time.Duration // before the request is passed on
	Hang    bool          // it is taken, and never answered
	Status  int           // answered in the server's place
	Code    string        // S3's code of that answer
	Cut     bool          // the connection is reset in the middle of the body
	Lost    bool          // the server does what it is asked to, and the connection is reset in place of an answer
	Torn    bool          // the connection is reset in the middle of the answer
}

// S3Faults stands before an S3 server and misbehaves when told to.
type S3Faults struct {
	Endpoint string

	hit    atomic.Int64
	proxy  *httputil.ReverseProxy
	server *http.Server

	mu    sync.Mutex
	fault func() S3Fault
	once  []s3Moment
}

type s3Moment struct {
	method, part string
	done         bool
	fn           func()
}

// StartS3Faults stands before a server until the test ends.
func StartS3Faults(t testing.TB, s *S3) *S3Faults {
	t.Helper()
	target, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &S3Faults{Endpoint: "http://" + l.Addr().String()}
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	f.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		Transport:    transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { hangUp(w) },
	}
	f.server = &http.Server{Handler: f, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := f.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("before the S3 server: %v", err)
		}
	}()
	t.Cleanup(func() {
		_ = f.server.Close()
		<-served
		transport.CloseIdleConnections()
	})
	return f
}

// Set changes what happens to requests from now on.
func (f *S3Faults) Set(fault S3Fault) { f.Vary(func() S3Fault { return fault }) }

// Vary asks fn for each request.
func (f *S3Faults) Vary(fn func() S3Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fn
}

// Once calls fn at the next request of a method whose path holds part: before the
// server hears of it, which it then never does, or when the server has done it. In
// neither case is there an answer.
func (f *S3Faults) Once(method, part string, done bool, fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.once = append(f.once, s3Moment{method, part, done, fn})
}

// moment takes what waits for this request.
func (f *S3Faults) moment(r *http.Request) (m s3Moment, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, m := range f.once {
		if m.method == r.Method && strings.Contains(r.URL.Path, m.part) {
			f.once = slices.Delete(f.once, i, i+1)
			return m, true
		}
	}
	return m, false
}

// Forget takes back what Once is still waiting for, and says whether there was
// something.
func (f *S3Faults) Forget() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	was := len(f.once) > 0
	f.once = nil
	return was
}

// Hit is to how many requests a fault has happened.
func (f *S3Faults) Hit() int64 { return f.hit.Load() }

func (f *S3Faults) decide(r *http.Request) S3Fault {
	f.mu.Lock()
	fn := f.fault
	f.mu.Unlock()
	if fn == nil {
		return S3Fault{}
	}
	fault := fn()
	if fault == (S3Fault{}) || fault.Methods != "" && !strings.Contains(fault.Methods, r.Method) ||
		r.ContentLength <= fault.Over && fault.Over > 0 || fault.Share > 0 && rand.Float64() >= fault.Share {
		return S3Fault{}
	}
	f.hit.Add(1)
	return fault
}

// ServeHTTP implements http.Handler.
func (f *S3Faults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if m, ok := f.moment(r); ok {
		if m.done {
			f.proxy.ServeHTTP(nowhere{make(http.Header)}, r.WithContext(context.WithoutCancel(r.Context())))
		}
		m.fn()
		panic(http.ErrAbortHandler)
	}
	fault := f.decide(r)
	if fault.Delay > 0 {
		select {
		case <-time.After(fault.Delay):
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case fault.Hang:
		_, _ = io.Copy(io.Discard, r.Body) // only then is it seen that the client leaves
		<-r.Context().Done()
		hangUp(w)
	case fault.Status != 0:
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(fault.Status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>made up by the test</Message></Error>", fault.Code)
	case fault.Cut:
		r.Body = &half{ReadCloser: r.Body, left: r.ContentLength / 2}
		f.proxy.ServeHTTP(w, r)
	case fault.Lost:
		f.proxy.ServeHTTP(nowhere{make(http.Header)}, r)
		hangUp(w)
	case fault.Torn:
		answer := httptest.NewRecorder()
		f.proxy.ServeHTTP(answer, r)
		maps.Copy(w.Header(), answer.Header())
		w.Header().Set("Content-Length", strconv.Itoa(answer.Body.Len()))
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
		panic(http.ErrAbortHandler)
	default:
		f.proxy.ServeHTTP(w, r)
	}
}

// hangUp resets a client's connection.
func hangUp(w http.ResponseWriter) {
	if _, ok := w.(nowhere); ok {
		return
	}
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		reset(c)
	}
}

var errCut = errors.New("cut by the test")

// half is the first half of a body.
type half struct {
	io.ReadCloser
	left int64
}

func (h *half) Read(b []byte) (int, error) {
	if h.left <= 0 {
		return 0, errCut
	}
	n, err := h.ReadCloser.Read(b[:min(int64(len(b)), h.left)])
	h.left -= int64(n)
	return n, err
}

// nowhere takes an answer that nobody gets.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header         { return n.header }
func (n nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n nowhere) WriteHeader(int)             {}
