package harness

import (
	"bytes"
	"testing"

	"github.com/minio/minio-go/v7"
)

func TestS3ComesBackWithItsData(t *testing.T) {
	s := StartS3(t)
	put := func(key string) {
		t.Helper()
		if _, err := s.Client(t).PutObject(t.Context(), s.Bucket, key, bytes.NewReader([]byte("x")), 1, minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	put("before")
	s.Stop()
	s.Start(t)
	put("after")
	n := 0
	for o := range s.Client(t).ListObjects(t.Context(), s.Bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		n++
	}
	if n != 2 {
		t.Fatalf("%d objects, want 2", n)
	}
}
