package integration

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

const (
	// These fetch at a time.
	overloadConnections     = 200
	longOverloadConnections = 1000
	// One in deafShare connections asks for answers and never reads one.
	deafShare = 4
	// overloadMemory is limits.memory_bytes; connectionMemory and programMemory
	// are what docs/operations.md says comes on top.
	overloadMemory   = 256 << 20
	connectionMemory = 32 << 10
	programMemory    = 32 << 20
	// fetchMost is what each asks for at a time.
	fetchMost = 2 << 20
	// overloadRecord is incompressible, as large as default clients take.
	overloadRecord  = 400 << 10
	overloadRecords = 20 // of each topic
	// overloadPatience is for every reader to reach the end.
	overloadPatience = 10 * time.Minute
)

// Many connections fetch more at a time than there is memory, and a part of
// them never reads. The process stays within its memory, what is small and
// urgent is acknowledged all the while, and whoever reads gets to the end.
func TestOverload(t *testing.T) { overload(t, overloadConnections) }

func TestLongOverload(t *testing.T) {
	harness.Long(t)
	overload(t, longOverloadConnections)
}

func overload(t *testing.T, crowd int) {
	t.Helper()
	k := sharedKafka(t)
	r := replica{
		Kafka: k.Bootstrap(), Store: s3Store(harness.StartS3(t), "overload"),
		Extra: fmt.Sprintf("limits: { memory_bytes: %dMiB, stall_timeout: 2s }\n", overloadMemory>>20),
	}.withDefaults(t)
	s := serve(t, r)

	const urgent = "overload-urgent-control"
	createTopic(t, r.bootstrap(), urgent, 1)
	bulk := []string{"overload-bulk-control", "overload-bulk-telemetry"}
	leaders := map[string]string{}
	for _, topic := range bulk {
		createTopic(t, r.bootstrap(), topic, 1)
		fill(t, r.bootstrap(), topic)
		leaders[topic] = leaderOf(t, r.bootstrap(), topic)
	}
	if scrape(t, s.Admin, "sluice_diskless_stored_bytes_total") < overloadRecords*overloadRecord {
		t.Fatal("the telemetry is not in objects")
	}

	h := history.New()
	l := startLoad(t, h, workload{Bootstrap: r.bootstrap(), Topics: []string{urgent}, Partitions: 1, PerSecond: 100})
	l.awaitMore(20, urgent)

	ctx, cancel := context.WithTimeout(t.Context(), overloadPatience)
	defer cancel()
	deafCtx, hush := context.WithCancel(ctx)
	var deaf, readers sync.WaitGroup
	defer deaf.Wait()
	defer hush()
	var finished atomic.Int64
	for i := range crowd {
		topic := bulk[i%len(bulk)]
		if (i/len(bulk))%deafShare == 0 {
			deaf.Go(func() { neverListen(deafCtx, leaders[topic], topic) })
			continue
		}
		readers.Go(func() {
			if err := readThrough(ctx, leaders[topic], topic); err != nil {
				t.Errorf("a reader of %s: %v", topic, err)
				return
			}
			finished.Add(1)
		})
	}
	eventually(t, "fetches wait for memory", func() (bool, string) {
		return scrape(t, s.Admin, "sluice_proxy_frame_waits_total", `direction="response"`) > 0 &&
			scrape(t, s.Admin, "sluice_proxy_frame_waits_total", `direction="hydrated"`) > 0, "none does"
	})
	ended := make(chan struct{})
	go func() { readers.Wait(); close(ended) }()
	for under := true; under; {
		l.awaitMore(20, urgent) // whatever the others do
		if held := scrape(t, s.Admin, "sluice_proxy_frame_bytes"); held > overloadMemory/2 {
			t.Errorf("frames take %v bytes", held)
		}
		select {
		case <-ended:
			under = false
		default:
		}
	}
	eventually(t, "who does not read is cut", func() (bool, string) {
		return scrape(t, s.Admin, "sluice_proxy_stalled_connections_total") > 0, "nobody is"
	})
	peak := peakMemory(t, s.PID())
	most := overloadMemory + crowd*connectionMemory + programMemory
	t.Logf("%d connections: peak %d MiB of %d; %d readers finished; waits for answers %v, for hydration %v; %v stalled connections cut",
		crowd, peak>>20, most>>20, finished.Load(), scrape(t, s.Admin, "sluice_proxy_frame_waits_total", `direction="response"`),
		scrape(t, s.Admin, "sluice_proxy_frame_waits_total", `direction="hydrated"`), scrape(t, s.Admin, "sluice_proxy_stalled_connections_total"))
	if peak > most {
		t.Errorf("the process took %d MiB, at most %d are allowed", peak>>20, most>>20)
	}
	hush()
	deaf.Wait()
	l.stop()
	readAll(t, h, "afterwards", r.bootstrap(), bootstrapOf(k), urgent)
	eventually(t, "frames are given back", func() (bool, string) {
		n := scrape(t, s.Admin, "sluice_proxy_frame_bytes")
		return n == 0, fmt.Sprintf("%v bytes", n)
	})
}

// fill produces a topic's records.
func fill(t *testing.T, bootstrap, topic string) {
	t.Helper()
	cl := client(t, bootstrap, kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(kgo.NoCompression()))
	defer cl.Close()
	for range overloadRecords {
		value := make([]byte, overloadRecord)
		_, _ = rand.Read(value)
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Value: value}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// leaderOf is the address of partition 0's leader, as clients are told.
func leaderOf(t *testing.T, bootstrap, topic string) string {
	t.Helper()
	cl := client(t, bootstrap)
	defer cl.Close()
	listed, err := kadm.NewClient(cl).Metadata(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range listed.Brokers {
		if b.NodeID == listed.Topics[topic].Partitions[0].Leader {
			return net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
		}
	}
	t.Fatalf("%s has no leader", topic)
	return ""
}

const overloadFetchVersion = 11

func overloadFetch(topic string, offset int64) []byte {
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch, req.ReplicaID = overloadFetchVersion, 500, 1, fetchMost, -1, -1
	p := kmsg.NewFetchRequestTopicPartition()
	p.FetchOffset, p.PartitionMaxBytes = offset, fetchMost
	ft := kmsg.NewFetchRequestTopic()
	ft.Topic, ft.Partitions = topic, []kmsg.FetchRequestTopicPartition{p}
	req.Topics = []kmsg.FetchRequestTopic{ft}
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("overload")).AppendRequest(nil, req, 1)
}

// neverListen asks on and on and reads nothing. When it is cut it comes again.
func neverListen(ctx context.Context, addr, topic string) {
	for ctx.Err() == nil {
		func() {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return
			}
			defer conn.Close()
			_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10) // or the kernel takes it
			one := overloadFetch(topic, 0)
			for ctx.Err() == nil {
				_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
				if _, err := conn.Write(one); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					return
				}
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		}()
	}
}

// errBadBatch is what no client forgives.
var errBadBatch = errors.New("not the records that were produced")

// readThrough reads a topic from its start to its end. It connects again when
// its connection ends, as clients do.
func readThrough(ctx context.Context, addr, topic string) error {
	var offset int64
	var last error
	for offset < overloadRecords {
		if ctx.Err() != nil {
			return fmt.Errorf("at offset %d of %d: %w", offset, overloadRecords, errors.Join(ctx.Err(), last))
		}
		last = readOn(ctx, addr, topic, &offset)
		if errors.Is(last, errBadBatch) {
			return last
		}
	}
	return nil
}

func readOn(ctx context.Context, addr, topic string, offset *int64) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	for *offset < overloadRecords {
		if _, err := conn.Write(overloadFetch(topic, *offset)); err != nil {
			return err
		}
		var size [4]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return err
		}
		frame := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(conn, frame); err != nil {
			return err
		}
		resp := kmsg.NewPtrFetchResponse()
		resp.SetVersion(overloadFetchVersion)
		if err := resp.ReadFrom(frame[4:]); err != nil {
			return fmt.Errorf("%w: %w", errBadBatch, err)
		}
		p := resp.Topics[0].Partitions[0]
		const storageError = 56 // clients ask again
		if p.ErrorCode != 0 && p.ErrorCode != storageError {
			return fmt.Errorf("error %d", p.ErrorCode)
		}
		if *offset, err = next(p.RecordBatches, *offset); err != nil {
			return err
		}
	}
	return nil
}

// next is the offset after the whole batches of an answer, which must be those
// that were asked for.
func next(records []byte, offset int64) (int64, error) {
	const lengthAt, crcAt, bodyAt, deltaAt, least = 8, 17, 21, 23, 61
	for len(records) >= least {
		n := lengthAt + 4 + int(binary.BigEndian.Uint32(records[lengthAt:]))
		if n > len(records) {
			break // brokers cut the last
		}
		b := records[:n]
		records = records[n:]
		base, after := int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint32(b[deltaAt:]))+1
		if after += base; after <= offset {
			continue
		}
		if base > offset || n < overloadRecord {
			return 0, fmt.Errorf("%w: at offset %d came a batch of %d bytes from %d on", errBadBatch, offset, n, base)
		}
		if crc32.Checksum(b[bodyAt:], crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(b[crcAt:]) {
			return 0, fmt.Errorf("%w: wrong checksum at offset %d", errBadBatch, base)
		}
		offset = after
	}
	return offset, nil
}

// peakMemory is the most that a process has had in memory.
func peakMemory(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("the kernel does not say:\n%s", status)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}
