package integration

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/harness/history"
)

// Whatever comes to the port is bounded, answered or closed with a log line,
// and a client that behaves does not notice.
func TestHostileConnections(t *testing.T) {
	k := sharedKafka(t)
	var log lines
	r := replica{Kafka: k.Bootstrap(), Log: &log, Extra: `limits:
  frame_bytes: 8MiB
  first_request_timeout: 1s
  frame_timeout: 1s
  write_timeout: 2s
  response_memory_bytes: 64MiB
`}.withDefaults(t)
	s := startSluice(t, r)
	topics := []string{"hostile-control", "hostile-telemetry"}
	h := history.New()
	for _, topic := range topics {
		createTopic(t, s.Bootstrap, topic, 1)
		// What the client that never reads will ask for, again and again.
		writer := client(t, s.Bootstrap, kgo.ProducerBatchMaxBytes(900<<10), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		for range 40 {
			writer.Produce(t.Context(), h.Next(topic, 0, 100<<10), h.Acked)
		}
		if err := writer.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		writer.Close()
	}
	idle := func(what string) int {
		t.Helper()
		eventually(t, "no connection is open "+what, func() (bool, string) {
			n := s.metric(t, "sluice_proxy_connections")
			return n == 0, fmt.Sprintf("%v are", n)
		})
		return runtime.NumGoroutine()
	}
	calm := idle("at first")

	l := startLoad(t, h, workload{Bootstrap: s.Bootstrap, Topics: topics, Partitions: 1, PerSecond: 200})
	l.awaitMore(50, topics...)

	frame := func(n int32, body ...byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(n)), body...)
	}
	noise := make([]byte, 4096)
	_, _ = rand.Read(noise)
	noise[0] = 0x7f // else it may begin like a frame, and wait for the rest
	const protocol, timeouts = "sluice_proxy_protocol_errors_total", "sluice_proxy_timeouts_total"
	const badly, slowly = "does not speak as a Kafka client should", "the client took too long"
	for _, c := range []struct {
		name   string
		send   []byte
		metric string
		log    string
	}{
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: kafka\r\n\r\n"), protocol, badly},
		{"random bytes", noise, protocol, badly},
		{"a frame of 2 GB", frame(1<<31-1, 0, 3, 0, 9), protocol, badly},
		{"a frame of a negative length", frame(-1, 0, 3, 0, 9), protocol, badly},
		{"an empty frame", frame(0), protocol, badly},
		{"a frame above limits.frame_bytes", frame(8<<20 + 1), protocol, badly},
		{"an API key that does not exist", frame(8, 0x7f, 0, 0, 0, 0, 0, 0, 1), protocol, badly},
		{"a request that only brokers may send", frame(10, 0, 4, 0, 0, 0, 0, 0, 1, 0xff, 0xff), protocol, badly},
		{"a Produce whose body is noise", append(frame(1010, 0, 0, 0, 9, 0, 0, 0, 1, 0xff, 0xff), noise[:1000]...), protocol, badly},
		{"a half-sent frame", frame(1000, 0, 3, 0, 9), timeouts, slowly},
		{"half a length", []byte{0, 0}, timeouts, slowly},
		{"a connection that says nothing", nil, timeouts, slowly},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := s.metric(t, c.metric)
			const each = 20
			var conns []net.Conn
			for range each {
				conn, err := net.Dial("tcp", s.Bootstrap)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := conn.Write(c.send); err != nil {
					t.Fatal(err)
				}
				conns = append(conns, conn)
			}
			for _, conn := range conns {
				closed(t, conn)
			}
			eventually(t, "all are counted", func() (bool, string) {
				n := s.metric(t, c.metric) - before
				return n == each, fmt.Sprintf("%v of %d", n, each)
			})
			if !log.has(c.log, `"client":"`+conns[0].LocalAddr().String()) && s.metric(t, "sluice_proxy_log_suppressed_total") == 0 {
				t.Error("no log line tells of it")
			}
		})
	}
	t.Run("a TLS hello", func(t *testing.T) {
		conn, err := net.Dial("tcp", s.Bootstrap)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		before := s.metric(t, protocol)
		if err := tls.Client(conn, &tls.Config{ServerName: "kafka"}).HandshakeContext(t.Context()); err == nil {
			t.Error("a plaintext port shook hands")
		}
		eventually(t, "it is counted", func() (bool, string) { return s.metric(t, protocol) == before+1, "" })
	})
	for _, topic := range topics {
		t.Run("a client that never reads "+topic, func(t *testing.T) {
			before := s.metric(t, timeouts)
			conn := neverReads(t, s.Bootstrap, topic)
			eventually(t, "it is given up", func() (bool, string) {
				if held := s.metric(t, "sluice_proxy_frame_bytes", "direction", "response"); held > 64<<20 {
					t.Fatalf("%v bytes of answers are held", held)
				}
				return s.metric(t, timeouts) > before, fmt.Sprintf("%v connections", s.metric(t, "sluice_proxy_connections"))
			})
			closed(t, conn)
			if !log.has(slowly, `"client":"`+conn.LocalAddr().String()) && s.metric(t, "sluice_proxy_log_suppressed_total") == 0 {
				t.Error("no log line tells of it")
			}
		})
	}
	l.awaitMore(50, topics...)
	l.stop()
	readAll(t, h, "afterwards", s.Bootstrap, bootstrapOf(k), topics...)

	eventually(t, "frames are given back", func() (bool, string) {
		n := s.metric(t, "sluice_proxy_frame_bytes")
		return n == 0, fmt.Sprintf("%v bytes", n)
	})
	// sluice's own client may have one connection to a broker more than before.
	const slack = 10
	idle("afterwards")
	eventually(t, "goroutines end", func() (bool, string) {
		n := runtime.NumGoroutine()
		return n <= calm+slack, fmt.Sprintf("%d run, %d did at first", n, calm)
	})
}

// closed waits until the other end has closed a connection, whatever it says
// before.
func closed(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection stays open")
	}
}

// neverReads asks for much and takes nothing of it.
func neverReads(t *testing.T, bootstrap, topic string) net.Conn {
	t.Helper()
	cl := client(t, bootstrap)
	defer cl.Close()
	listed, err := kadm.NewClient(cl).Metadata(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	var addr string
	for _, b := range listed.Brokers {
		if b.NodeID == listed.Topics[topic].Partitions[0].Leader {
			addr = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
		}
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch, req.ReplicaID = 11, 500, 1, 4<<20, -1, -1
	p := kmsg.NewFetchRequestTopicPartition()
	p.PartitionMaxBytes = 4 << 20
	ft := kmsg.NewFetchRequestTopic()
	ft.Topic, ft.Partitions = topic, []kmsg.FetchRequestTopicPartition{p}
	req.Topics = []kmsg.FetchRequestTopic{ft}
	one := kmsg.NewRequestFormatter(kmsg.FormatterClientID("never-reads")).AppendRequest(nil, req, 1)
	for range 100 {
		if _, err := conn.Write(one); err != nil {
			t.Fatal(err)
		}
	}
	return conn
}

// Who comes after the last place is turned away at once; those inside stay, and
// a place that becomes free is given again.
func TestConnectionLimits(t *testing.T) {
	k := sharedKafka(t)
	for _, limit := range []string{"connections", "connections_per_ip"} {
		t.Run(limit, func(t *testing.T) {
			const places = 20
			var log lines
			s := startSluice(t, replica{Kafka: k.Bootstrap(), Log: &log, Extra: fmt.Sprintf("limits: { %s: %d }\n", limit, places)})
			inside, err := net.Dial("tcp", s.Bootstrap)
			if err != nil {
				t.Fatal(err)
			}
			defer inside.Close()
			asksVersions(t, inside)
			refused := func() float64 {
				return s.metric(t, "sluice_proxy_connections_refused_total", "limit", "limits."+limit)
			}
			var conns []net.Conn
			for range 2 * places {
				conn, err := net.Dial("tcp", s.Bootstrap)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conns = append(conns, conn)
			}
			closed(t, conns[len(conns)-1])
			if open := s.metric(t, "sluice_proxy_connections"); open != places {
				t.Errorf("%v connections are open, %d may be", open, places)
			}
			if refused() == 0 || !log.has("connection refused", "limits."+limit) {
				t.Error("neither metric nor log tell of it")
			}
			asksVersions(t, inside)
			for _, conn := range conns {
				_ = conn.Close()
			}
			eventually(t, "places are free again", func() (bool, string) {
				cl := client(t, s.Bootstrap)
				defer cl.Close()
				err := cl.Ping(t.Context())
				return err == nil, fmt.Sprint(err)
			})
			asksVersions(t, inside)
		})
	}
}

// asksVersions makes a request on a connection and waits for its answer.
func asksVersions(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(kmsg.NewRequestFormatter().AppendRequest(nil, kmsg.NewPtrApiVersionsRequest(), 1)); err != nil {
		t.Fatal(err)
	}
	if frame, err := readFrame(conn); err != nil || len(frame) < 100 {
		t.Fatalf("%d bytes: %v", len(frame), err)
	}
}

// Whoever announces large frames and sends no more of them holds nobody up for
// long, whatever time a frame is given.
func TestHalfSentFramesHoldNobodyUp(t *testing.T) {
	k := sharedKafka(t)
	var log lines
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Log: &log, Extra: "limits: { frame_bytes: 8MiB, request_memory_bytes: 16MiB, frame_timeout: 1h, stall_timeout: 1s }\n"})
	topics := []string{"half-sent-control", "half-sent-telemetry"}
	for _, topic := range topics {
		createTopic(t, s.Bootstrap, topic, 1)
	}
	h := history.New()
	l := startLoad(t, h, workload{Bootstrap: s.Bootstrap, Topics: topics, Partitions: 1, PerSecond: 100})
	l.awaitMore(20, topics...)
	for range 2 { // all the memory there is
		conn, err := net.Dial("tcp", s.Bootstrap)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, 8<<20-4)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "requests wait for memory", func() (bool, string) {
		return s.metric(t, "sluice_proxy_frame_waits_total", "direction", "request") > 0, "none does"
	})
	l.awaitMore(50, topics...)
	eventually(t, "a log line tells of it", func() (bool, string) { return log.has("connection"), "none does" })
	l.stop()
	readAll(t, h, "afterwards", s.Bootstrap, bootstrapOf(k), topics...)
}
