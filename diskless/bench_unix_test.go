//go:build unix

package diskless

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

const sinkVar = "SLUICE_TEST_SINK"

func TestMain(m *testing.M) {
	if os.Getenv(sinkVar) == "" {
		os.Exit(m.Run())
	}
	ln := must(net.FileListener(os.NewFile(3, "listener")))
	panic(http.Serve(ln, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 1<<20)
		for {
			if _, err := r.Body.Read(buf); err != nil {
				return
			}
		}
	})))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// startSink starts a process that takes every object by HTTP and keeps none.
func startSink(b *testing.B) (endpoint string) {
	b.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	defer ln.Close()
	cmd := exec.Command(must(os.Executable()))
	cmd.Env = append(os.Environ(), sinkVar+"=1")
	cmd.ExtraFiles = []*os.File{must(ln.(*net.TCPListener).File())}
	cmd.Stderr = io.Discard
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return "http://" + ln.Addr().String()
}

// cpu is what this process has used, in user mode and in all.
func cpu() (user, all float64) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	user = time.Duration(u.Utime.Nano()).Seconds()
	return user, user + time.Duration(u.Stime.Nano()).Seconds()
}

// BenchmarkStore is batches of an idempotent producer on their way from a
// request's bytes through an S3 client and a socket, with the CPU that this takes.
func BenchmarkStore(b *testing.B) {
	s3 := must(objstore.OpenS3(objstore.S3Options{Endpoint: startSink(b), Region: "us-east-1", Bucket: "bucket", AccessKey: "a", SecretKey: "s", PathStyle: true}))
	memory := objstore.NewMemory()
	tier := newTier(b, s3, openRing(b, memory), Limits{CacheBytes: 128 << 20, RetryBatches: 65_536, BufferBytes: 1 << 30})
	for _, c := range []struct {
		name          string
		records, size int
		codec         int
	}{{"16KiB", 16, 1 << 10, wire.CodecNone}, {"256KiB", 256, 1 << 10, wire.CodecNone}, {"1MiB", 1000, 1 << 10, wire.CodecNone}, {"256KiB-lz4", 256, 1 << 10, wire.CodecLz4}} {
		b.Run(c.name, func(b *testing.B) {
			class := telemetry()
			batch := makeBatch(rand.New(rand.NewPCG(1, 2)), c.records, c.size, c.codec, 1, 0, 0)
			const inFlight = 32
			frames := make([]wire.Batch, inFlight)
			for i := range frames {
				frames[i] = append(wire.Batch(nil), batch...)
			}
			each := max(2, 8<<20/len(batch)) // to an object
			b.SetBytes(int64(each * len(batch)))
			b.ReportAllocs()
			class.ObjectSize = int64(each * len(batch))
			userBefore, before := cpu()
			var wg sync.WaitGroup
			for n := 0; b.Loop(); n++ {
				for i := range each {
					wg.Add(1)
					o := tier.Offload(context.Background(), tiers.OffloadRequest{
						Class: class, TopicPartition: tiers.TopicPartition{Topic: fmt.Sprint("otel-", n), Partition: int32(i)},
						Batch: frames[i%inFlight], ProduceVersion: 9,
					}, wg.Done)
					if o.(*offload).retry == nil {
						b.Fatal("it would not be recognized")
					}
				}
				if n%4 == 3 {
					wg.Wait()
				}
			}
			wg.Wait()
			user, all := cpu()
			gb := float64(b.N*each*len(batch)) / 1e9
			b.ReportMetric((all-before)/gb, "cpu-s/GB")
			b.ReportMetric((user-userBefore)/gb, "user-s/GB")
		})
	}
}
