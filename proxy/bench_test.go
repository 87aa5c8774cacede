package proxy_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/proxy"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// Relay is measured as round trips over real loopback connections, with a
// broker behind that only answers; "direct" is the same without the proxy, so
// that the difference is what the proxy costs.

// realPayloads looks at batches as the diskless tier does.
type realPayloads struct {
	scriptedPayloads
	tier diskless.Tier
}

func (p *realPayloads) Reserved(records []byte) bool  { return p.tier.Reserved(records) }
func (p *realPayloads) Readable(*tiers.Class) bool    { return true }
func (p *realPayloads) Candidate(records []byte) bool { return p.tier.Candidate(records) }

// recordBatch is a batch of records of 1,000 bytes, about size bytes in all.
func recordBatch(size int) []byte {
	var body []byte
	n := int32(max(1, size/1000))
	for i := range n {
		rec := kmsg.Record{OffsetDelta: i, Value: make([]byte, min(size, 1000)-20)}
		rec.Length = int32(len(rec.AppendTo(nil)) - 1)
		body = rec.AppendTo(body)
	}
	batch := kmsg.RecordBatch{Magic: 2, LastOffsetDelta: n - 1, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: n, Records: body}
	b := batch.AppendTo(nil)
	wire.Batch(b).SetLength(int32(len(b) - wire.LogOverhead))
	wire.Batch(b).SetCRC(wire.Batch(b).ComputeCRC())
	return b
}

// answeringBroker answers whatever it gets with one response.
func answeringBroker(b *testing.B, response []byte) (addr string) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in, out := make([]byte, 4), append([]byte(nil), response...)
				for {
					if _, err := io.ReadFull(c, in[:4]); err != nil {
						return
					}
					n := int(binary.BigEndian.Uint32(in))
					if len(in) < n {
						in = make([]byte, n)
					}
					if _, err := io.ReadFull(c, in[:n]); err != nil {
						return
					}
					copy(out[4:8], in[4:8])
					if _, err := c.Write(out); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

type addrBrokers struct {
	scriptedBrokers
	addr string
}

func (a *addrBrokers) Dial(ctx context.Context, _ int32) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", a.addr)
}

// benchProxy relays to addr; its listeners but the first are not needed.
func benchProxy(b *testing.B, addr string) string {
	b.Helper()
	unused := &network{}
	rt := testRouter(b, true)
	p, err := proxy.New(proxy.Options{
		Bootstrap: "127.0.0.1:0",
		Layout:    proxy.Layout{Advertise: host, Bind: host, FirstPort: firstPrt, Nodes: []proxy.NodeRange{{First: 0, Last: 0}}},
		Brokers:   &addrBrokers{addr: addr}, Payloads: &realPayloads{},
		Router: func() *router.Router { return rt },
		Listen: func(network, addr string) (net.Listener, error) {
			if addr == "127.0.0.1:0" {
				return net.Listen(network, addr)
			}
			return unused.Listen(network, addr)
		},
		Logger:  zerolog.Nop(),
		Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Shutdown(context.Background()) })
	return p.Addr().String()
}

func BenchmarkRelay(b *testing.B) {
	for _, size := range []int{1 << 10, 1 << 20} {
		batch := recordBatch(size)
		produced := kmsg.NewPtrProduceResponse()
		produced.SetVersion(11)
		pt := kmsg.NewProduceResponseTopic()
		pt.Topic, pt.Partitions = hot, []kmsg.ProduceResponseTopicPartition{kmsg.NewProduceResponseTopicPartition()}
		produced.Topics = append(produced.Topics, pt)
		fetched := fetchAnswer(12, hot, dataPart(0, string(batch)))
		req := produce(11, -1, [2]string{hot, string(batch)})
		for _, api := range []struct {
			name     string
			request  []byte
			response []byte
		}{
			{"Produce", encode(1, req), encodeResponse(1, produced)},
			{"Fetch", encode(1, fetchRequest(12, hot, 1, 1<<20)), encodeResponse(1, fetched)},
		} {
			for _, way := range []string{"direct", "proxy"} {
				b.Run(fmt.Sprintf("%s/%dKB/%s", api.name, size>>10, way), func(b *testing.B) {
					addr := answeringBroker(b, api.response)
					if way == "proxy" {
						addr = benchProxy(b, addr)
					}
					c, err := net.Dial("tcp", addr)
					if err != nil {
						b.Fatal(err)
					}
					defer c.Close()
					in := make([]byte, len(api.response))
					b.SetBytes(int64(max(len(api.request), len(api.response))))
					b.ReportAllocs()
					for b.Loop() {
						if _, err := c.Write(api.request); err != nil {
							b.Fatal(err)
						}
						if _, err := io.ReadFull(c, in); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// BenchmarkIdleConnection reports what a client connection takes that has spoken
// once and waits: heap and stacks, without what the other two ends of the same
// process take.
func BenchmarkIdleConnection(b *testing.B) {
	const connections = 1000
	response := encodeResponse(1, kmsg.NewPtrHeartbeatResponse())
	heartbeat := encode(1, kmsg.NewPtrHeartbeatRequest())
	hold := func(addr string) (bytes float64) {
		before := settled()
		var held []net.Conn
		for range connections {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				b.Fatal(err)
			}
			held = append(held, c)
			in := make([]byte, len(response))
			for range 3 {
				if _, err := c.Write(heartbeat); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, in); err != nil {
					b.Fatal(err)
				}
			}
		}
		bytes = float64(settled()-before) / connections
		for _, c := range held {
			_ = c.Close()
		}
		return bytes
	}
	for b.Loop() {
		addr := answeringBroker(b, response)
		direct := hold(addr)
		b.ReportMetric(hold(benchProxy(b, addr))-direct, "B/connection")
	}
}

// settled is the memory in use when what is garbage is collected and stacks have
// shrunk to what they hold.
func settled() uint64 {
	var m runtime.MemStats
	for range 6 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
