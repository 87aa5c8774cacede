package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3 is a real S3 server (versitygw) on a folder.
type S3 struct {
	Endpoint  string // http://host:port
	AccessKey string
	SecretKey string
	Bucket    string
	Region    string

	addr    string
	dir     string
	program string
	process *Process
}

const versitygw = "github.com/versity/versitygw/cmd/versitygw"

// s3Program builds the server from the module in tools, once.
func s3Program() (string, error) {
	out := filepath.Join(cacheDir(), "bin", "versitygw")
	err := locked("versitygw", func() error {
		if _, err := os.Stat(out); err == nil {
			return nil
		}
		return run(filepath.Join(root(), "tools"), "go", "build", "-o", out, versitygw)
	})
	return out, err
}

// StartS3 starts a server with one bucket. It ends with the test.
func StartS3(t testing.TB) *S3 {
	t.Helper()
	program, err := s3Program()
	if err != nil {
		t.Fatal(err)
	}
	s := &S3{
		AccessKey: "sluice", SecretKey: "sluice-secret", Bucket: "bucket", Region: "us-east-1",
		addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(Ports(t, 1))), dir: tempDir(t, "s3"), program: program,
	}
	s.Endpoint = "http://" + s.addr
	t.Cleanup(s.Stop)
	s.Start(t)
	s.NewBucket(t, s.Bucket)
	return s
}

// Start starts the server, again on its old data and port after Stop.
func (s *S3) Start(t testing.TB) {
	t.Helper()
	data := filepath.Join(s.dir, "data")
	meta := filepath.Join(s.dir, "meta")
	versions := filepath.Join(s.dir, "versions")
	for _, d := range []string{data, meta, versions} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	log := filepath.Join(s.dir, "s3.log")
	// Stores keep connections; this one closes each after its answer if not told so.
	p, err := StartProcess("S3 server", log, s.program, []string{"ROOT_ACCESS_KEY=" + s.AccessKey, "ROOT_SECRET_KEY=" + s.SecretKey},
		"--port", s.addr, "--region", s.Region, "--quiet", "--keep-alive", "posix", "--sidecar", meta, "--versioning-dir", versions, data)
	if err != nil {
		t.Fatal(err)
	}
	s.process = p
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := net.DialTimeout("tcp", s.addr, time.Second)
		if err == nil {
			_ = conn.Close()
			return
		}
		if ended, err := p.Ended(); ended || time.Now().After(deadline) {
			t.Fatalf("the S3 server does not listen (%v):\n%s", err, tail(log, 30))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Stop kills the server: an outage.
func (s *S3) Stop() {
	if s.process == nil {
		return
	}
	if ended, _ := s.process.Ended(); !ended {
		s.process.Kill()
	}
}

// NewBucket makes a bucket.
func (s *S3) NewBucket(t testing.TB, name string) {
	t.Helper()
	s.makeBucket(t, name, false)
}

// NewLockingBucket makes a bucket with object lock, and so with versions.
func (s *S3) NewLockingBucket(t testing.TB, name string) {
	t.Helper()
	s.makeBucket(t, name, true)
}

func (s *S3) makeBucket(t testing.TB, name string, locks bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Client(t).MakeBucket(ctx, name, minio.MakeBucketOptions{Region: s.Region, ObjectLocking: locks}); err != nil {
		t.Fatal(fmt.Errorf("making bucket %s: %w", name, err))
	}
}

// Client speaks to the server as its owner.
func (s *S3) Client(t testing.TB) *minio.Client {
	t.Helper()
	c, err := minio.New(s.addr, &minio.Options{Creds: credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""), Region: s.Region})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
