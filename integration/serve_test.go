package integration

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// A store that is another cluster's, or whose keys are gone, must not be
// written to: sluice ends, and says what to do.
func TestServeRefusesAStore(t *testing.T) {
	k := sharedKafka(t)
	s3 := harness.StartS3(t)
	open := func(prefix, cluster string) objstore.Store {
		store, err := objstore.OpenS3(objstore.S3Options{
			Endpoint: s3.Endpoint, Region: s3.Region, Bucket: s3.Bucket, Prefix: prefix, AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, PathStyle: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := keyring.Open(t.Context(), store, cluster, keyring.Options{}); err != nil {
			t.Fatal(err)
		}
		return store
	}
	for _, c := range []struct {
		name, prefix string
		prepare      func()
		want         error
	}{
		{"another cluster's prefix", "foreign", func() { open("foreign", "another-cluster") }, keyring.ErrForeign},
		{"payloads whose keys are gone", "keyless", func() {
			if err := open("keyless", k.ID).Put(t.Context(), "wal/01JZZZZZZZZZZZZZZZZZZZZZZZ", []byte("x")); err != nil {
				t.Fatal(err)
			}
			bucket := s3.Client(t)
			for o := range bucket.ListObjects(t.Context(), s3.Bucket, minio.ListObjectsOptions{Prefix: "keyless/sluice/keys/", Recursive: true}) {
				if err := bucket.RemoveObject(t.Context(), s3.Bucket, o.Key, minio.RemoveObjectOptions{}); o.Err != nil || err != nil {
					t.Fatal(o.Err, err)
				}
			}
		}, keyring.ErrKeysMissing},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.prepare()
			keys := func() (n int) {
				for range s3.Client(t).ListObjects(t.Context(), s3.Bucket, minio.ListObjectsOptions{Prefix: c.prefix + "/", Recursive: true}) {
					n++
				}
				return n
			}
			before := keys()
			s := harness.ServeSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(s3, c.prefix)}.withDefaults(t).write(t))
			if code := s.Wait(t, patience); code == 0 {
				t.Error("it ended as if all were well")
			}
			if log := s.Log(t); !strings.Contains(log, "store default") || !strings.Contains(log, c.want.Error()) {
				t.Errorf("it does not say why:\n%s", log)
			}
			if after := keys(); after != before {
				t.Errorf("it wrote to the store: %d objects, %d before", after, before)
			}
		})
	}
}

// A changed file takes effect as a whole or not at all.
func TestServeReadsItsFileAgain(t *testing.T) {
	k := sharedKafka(t)
	r := replica{Kafka: k.Bootstrap(), Store: s3Store(harness.StartS3(t), "reload")}.withDefaults(t)
	s := serve(t, r)
	const topic = "reload-a-telemetry"
	createTopic(t, r.bootstrap(), topic, 1)
	h := history.New()
	good, err := os.ReadFile(s.File)
	if err != nil {
		t.Fatal(err)
	}
	write := func(content string, says ...string) {
		t.Helper()
		seen := len(s.Log(t))
		if err := os.WriteFile(s.File, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := s.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it says what it did with the file", func() (bool, string) {
			log := s.Log(t)[seen:]
			for _, part := range says {
				if !strings.Contains(log, part) {
					return false, log
				}
			}
			return true, ""
		})
	}
	stores := func(want bool) {
		t.Helper()
		before := scrape(t, s.Admin, "sluice_diskless_stored_batches_total")
		writeOnce(t, h, r.bootstrap(), topic, 0, 5)
		if stored := scrape(t, s.Admin, "sluice_diskless_stored_batches_total") > before; stored != want {
			t.Errorf("payloads go to objects: %v, want %v", stored, want)
		}
	}
	stores(true)
	inline := strings.Replace(string(good), "topics:\n", "topics:\n  - { match: \"reload-a-*\", class: control }\n", 1)
	write(inline+"nonsense: 1\n", "refused as a whole", "nonsense")
	stores(true)
	write(inline, "the configuration has changed", "topics")
	stores(false)
	write(string(good), "the configuration has changed", "topics")
	stores(true)
	readAll(t, h, "afterwards", r.bootstrap(), bootstrapOf(k), topic)
}
