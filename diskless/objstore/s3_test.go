package objstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/objstore/storetest"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/turns"
)

func openS3(t *testing.T, o objstore.S3Options) *objstore.S3 {
	t.Helper()
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	o.PathStyle = true
	s, err := objstore.OpenS3(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestS3 is about a real S3 server.
func TestS3(t *testing.T) {
	server := harness.StartS3(t)
	options := func(prefix string) objstore.S3Options {
		return objstore.S3Options{Endpoint: server.Endpoint, Region: server.Region, Bucket: server.Bucket, Prefix: prefix, AccessKey: server.AccessKey, SecretKey: server.SecretKey}
	}
	t.Run("suite", func(t *testing.T) {
		var n atomic.Int32
		storetest.Suite(t, func(t *testing.T) objstore.Store {
			return openS3(t, options("suite/"+string(rune('a'+n.Add(1)))))
		})
	})
	t.Run("locks", func(t *testing.T) {
		var n atomic.Int32
		storetest.LockSuite(t, func(t *testing.T, rule objstore.LockRule) (objstore.Locker, func(key, version string) error) {
			o := options("below")
			o.Bucket, o.Lock = fmt.Sprintf("locking-%d", n.Add(1)), rule
			server.NewLockingBucket(t, o.Bucket)
			raw := server.Client(t)
			return openS3(t, o), func(key, version string) error {
				return raw.RemoveObject(t.Context(), o.Bucket, "below/"+key, minio.RemoveObjectOptions{VersionID: version})
			}
		})
	})
	// A connection costs a round trip, and two more with TLS.
	t.Run("connections are used again", func(t *testing.T) {
		s := openS3(t, options("again"))
		connections := 0
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
			if !c.Reused {
				connections++
			}
		}})
		for _, size := range []int{1, 3 << 20} {
			if err := s.Put(ctx, "o", make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			for _, length := range []int64{1, int64(size), -1} {
				if _, err := s.Get(ctx, "o", 0, length); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.List(ctx, "", "", func(objstore.Info) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Get(ctx, "missing", 0, -1); !errors.Is(err, objstore.ErrNotFound) {
			t.Fatal(err)
		}
		if err := s.Delete(ctx, "o"); err != nil {
			t.Fatal(err)
		}
		if connections != 1 {
			t.Errorf("%d connections for requests one after the other", connections)
		}
	})
	t.Run("a bucket without locks", func(t *testing.T) {
		o := options("unlocked")
		o.Lock = objstore.LockRule{Prefix: "audit/", Mode: objstore.Compliance, Retention: time.Hour}
		s := openS3(t, o)
		if err := s.CanLock(t.Context()); !errors.Is(err, objstore.ErrNoLock) {
			t.Errorf("can lock: %v", err)
		}
		if err := s.Put(t.Context(), "audit/x", []byte("x")); !errors.Is(err, objstore.ErrNoLock) {
			t.Errorf("put: %v", err)
		}
		if err := s.Put(t.Context(), "wal/x", []byte("x")); err != nil {
			t.Errorf("put of what is not to be locked: %v", err)
		}
	})
	t.Run("a body of another checksum than was said", func(t *testing.T) {
		s, body := openS3(t, options("sums")), bytes.Repeat([]byte("body"), 1<<20)
		sum := crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli))
		if err := s.Put(objstore.WithSum(t.Context(), sum), "right", body); err != nil {
			t.Error(err)
		}
		if err := s.Put(objstore.WithSum(t.Context(), sum^1), "wrong", body); err == nil || errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("put: %v", err)
		}
		if got, err := s.Get(t.Context(), "wrong", 0, -1); !errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("it is there, %d bytes: %v", len(got), err)
		}
	})
	t.Run("without a prefix", func(t *testing.T) {
		s := openS3(t, options(""))
		if err := s.Put(t.Context(), "root/x", []byte("x")); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(t.Context(), "root/x", 0, -1); err != nil || string(got) != "x" {
			t.Fatalf("%q, %v", got, err)
		}
	})
	for _, c := range []struct {
		name   string
		change func(*objstore.S3Options)
	}{
		{"a wrong secret", func(o *objstore.S3Options) { o.SecretKey = "wrong" }},
		{"an unknown access key", func(o *objstore.S3Options) { o.AccessKey = "nobody" }},
		{"a bucket that does not exist", func(o *objstore.S3Options) { o.Bucket = "nowhere" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options("p")
			c.change(&o)
			s := openS3(t, o)
			if err := s.Put(t.Context(), "k", []byte("x")); !errors.Is(err, objstore.ErrAccess) {
				t.Errorf("put: %v", err)
			}
			if err := s.PutIfAbsent(t.Context(), "k", []byte("x")); !errors.Is(err, objstore.ErrAccess) {
				t.Errorf("conditional put: %v", err)
			}
			if _, err := s.Get(t.Context(), "k", 0, 10); !errors.Is(err, objstore.ErrAccess) {
				t.Errorf("get: %v", err)
			}
			if err := s.List(t.Context(), "", "", func(objstore.Info) error { return nil }); !errors.Is(err, objstore.ErrAccess) {
				t.Errorf("list: %v", err)
			}
			if err := s.Delete(t.Context(), "k"); !errors.Is(err, objstore.ErrAccess) {
				t.Errorf("delete: %v", err)
			}
			if strings.Contains(s.String(), o.SecretKey) {
				t.Errorf("%v tells the secret", s)
			}
		})
	}
	t.Run("an outage", func(t *testing.T) {
		s := openS3(t, options("outage"))
		if err := s.Put(t.Context(), "k", []byte("before")); err != nil {
			t.Fatal(err)
		}
		server.Stop()
		wantUnavailable(t, s)
		server.Start(t)
		if got, err := s.Get(t.Context(), "k", 0, -1); err != nil || string(got) != "before" {
			t.Fatalf("%q, %v", got, err)
		}
	})
}

func wantUnavailable(t *testing.T, s objstore.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Put(ctx, "k", []byte("x")); !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("put: %v", err)
	}
	if _, err := s.Get(ctx, "k", 0, -1); !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("get: %v", err)
	}
	if err := s.List(ctx, "", "", func(objstore.Info) error { return nil }); !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("list: %v", err)
	}
	if err := s.Delete(ctx, "k"); !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("delete: %v", err)
	}
}

// TestS3Answers is about what a real server does not do on demand.
func TestS3Answers(t *testing.T) {
	serve := func(t *testing.T, fn http.HandlerFunc) objstore.Store {
		s := httptest.NewServer(fn)
		t.Cleanup(s.Close)
		return openS3(t, objstore.S3Options{Endpoint: s.URL, Bucket: "bucket", AccessKey: "a", SecretKey: "s"})
	}
	fails := func(status int, code string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(status)
			if code != "" {
				_, _ = w.Write([]byte("<Error><Code>" + code + "</Code><Message>m</Message></Error>"))
			}
		}
	}
	for _, c := range []struct {
		name   string
		status int
		code   string
		want   error
	}{
		{"slow down", 503, "SlowDown", objstore.ErrUnavailable},
		{"503 of a balancer before it", 503, "", objstore.ErrUnavailable},
		{"internal error", 500, "InternalError", objstore.ErrUnavailable},
		{"too many requests", 429, "", objstore.ErrUnavailable},
		{"a clock that is off", 403, "RequestTimeTooSkewed", objstore.ErrAccess},
		{"temporary credentials whose time is over", 400, "ExpiredToken", objstore.ErrAccess},
		{"a body that came too slowly", 400, "RequestTimeout", objstore.ErrUnavailable},
		{"full", 507, "", objstore.ErrFull},
		{"a quota", 403, "QuotaExceeded", objstore.ErrFull},
		{"two conditional puts at a time", 409, "ConditionalRequestConflict", objstore.ErrUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, fails(c.status, c.code))
			if err := s.PutIfAbsent(t.Context(), "k", []byte("x")); !errors.Is(err, c.want) {
				t.Errorf("put: %v", err)
			}
			if _, err := s.Get(t.Context(), "k", 0, 5); !errors.Is(err, c.want) {
				t.Errorf("get: %v", err)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		s := httptest.NewServer(http.NotFoundHandler())
		s.Close()
		wantUnavailable(t, openS3(t, objstore.S3Options{Endpoint: s.URL, Bucket: "bucket", AccessKey: "a", SecretKey: "s"}))
	})
	answer := func(length, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", length)
			w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
			w.Header().Set("ETag", `"x"`)
			_, _ = w.Write([]byte(body))
		}
	}
	t.Run("an answer that is cut short is none", func(t *testing.T) {
		if b, err := serve(t, answer("10", "12345")).Get(t.Context(), "k", 0, 10); !errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("a store that ignores ranges", func(t *testing.T) {
		if b, err := serve(t, answer("10", "0123456789")).Get(t.Context(), "k", 5, 2); err == nil {
			t.Errorf("%q", b)
		}
	})
	t.Run("a lock that may not be seen is not one that is not there", func(t *testing.T) {
		for code, want := range map[string]error{"AccessDenied": objstore.ErrAccess, "NoSuchObjectLockConfiguration": nil} {
			status := map[string]int{"AccessDenied": 403, "NoSuchObjectLockConfiguration": 404}[code]
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead {
					answer("1", "")(w, r) // without a word of locks
					return
				}
				fails(status, code)(w, r)
			}).(objstore.Locker)
			if lock, err := s.LockOf(t.Context(), "k", ""); !errors.Is(err, want) || lock != (objstore.Lock{}) {
				t.Errorf("%s: %v, %v", code, lock, err)
			}
		}
	})
	t.Run("the body's checksum goes along", func(t *testing.T) {
		var sum atomic.Value
		s := serve(t, func(w http.ResponseWriter, r *http.Request) { sum.Store(r.Header.Get("x-amz-checksum-crc32c")) })
		if err := s.Put(t.Context(), "k", []byte("123456789")); err != nil || sum.Load() != "4waSgw==" {
			t.Errorf("checksum %v: %v", sum.Load(), err)
		}
		if err := s.Put(objstore.WithSum(t.Context(), 0x01020304), "k", []byte("123456789")); err != nil || sum.Load() != "AQIDBA==" {
			t.Errorf("checksum %v: %v", sum.Load(), err)
		}
	})
	t.Run("a lock that is told in words of the server's own", func(t *testing.T) {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			if r.URL.Query().Has("retention") {
				_, _ = w.Write([]byte("<ObjectLockRetention><Mode>COMPLIANCE</Mode></ObjectLockRetention>"))
			}
		})
		if lock, err := s.(objstore.Locker).LockOf(t.Context(), "k", ""); !errors.Is(err, objstore.ErrAccess) {
			t.Errorf("%+v: %v", lock, err)
		}
	})
	t.Run("bodies of any size arrive whole", func(t *testing.T) {
		var got []byte
		s := serve(t, func(_ http.ResponseWriter, r *http.Request) { got, _ = io.ReadAll(r.Body) })
		for _, size := range []int{1, 60_000, 64 << 10, 64<<10 + 1, 200_000, 9<<20 + 1} {
			body := make([]byte, size)
			_, _ = rand.NewChaCha8([32]byte{1}).Read(body)
			if err := s.Put(t.Context(), "k", body); err != nil || !bytes.Equal(got, body) {
				t.Errorf("of %d bytes %d came: %v", size, len(got), err)
			}
		}
	})
}

// A store that stops in the middle of an answer keeps no turn: others go on
// meanwhile, also by the same store, and who is told to give up does.
func TestNoTurnIsHeldForAStore(t *testing.T) {
	const size = 4 << 20
	body := bytes.Repeat([]byte("object"), size/6+1)[:size]
	halfway, end := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		if strings.HasSuffix(r.URL.Path, "/slow") {
			_, _ = w.Write(body[:size/2])
			_ = http.NewResponseController(w).Flush()
			halfway <- struct{}{}
			<-end
			return
		}
		_, _ = w.Write(body)
	}))
	defer server.Close()
	defer close(end) // before the server, which waits for its answers
	one := turns.New(1, 1, prometheus.NewRegistry())
	s := openS3(t, objstore.S3Options{Endpoint: server.URL, Bucket: "bucket", AccessKey: "a", SecretKey: "s", Turns: one})
	const stuck = 3
	got := make(chan error, stuck)
	ctx, cancel := context.WithCancel(t.Context())
	for range stuck {
		go func() {
			_, err := s.Get(ctx, "slow", 0, size)
			got <- err
		}()
	}
	for range stuck {
		select {
		case <-halfway:
		case err := <-got:
			t.Fatal(err)
		}
	}
	for range 3 {
		if b, err := s.Get(t.Context(), "fast", 0, size); err != nil || !bytes.Equal(b, body) {
			t.Fatalf("beside those that stand: %d bytes, %v", len(b), err)
		}
	}
	if len(got) > 0 {
		t.Errorf("half of an object was as good as all: %v", <-got)
	}
	held := one.Take()
	cancel()
	held.Give()
	for range stuck {
		if err := <-got; err == nil {
			t.Error("who was told to give up has got something")
		}
	}
	one.Take().Give()
}
