package proxy_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/proxy"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// fakeBrokers is a kfake cluster behind proxy.Brokers.
type fakeBrokers struct {
	addrs []string
	dial  func(ctx context.Context, network, addr string) (net.Conn, error)
}

func (b fakeBrokers) Dial(ctx context.Context, node int32) (net.Conn, error) {
	if node == proxy.AnyBroker {
		node = 0
	}
	if int(node) >= len(b.addrs) {
		return nil, fmt.Errorf("no broker %d", node)
	}
	return b.dial(ctx, "tcp", b.addrs[node])
}
func (b fakeBrokers) Facts(context.Context, string) tiers.TopicFacts {
	return tiers.TopicFacts{Known: true}
}
func (b fakeBrokers) FactsOf(_ context.Context, topics []string) []tiers.TopicFacts {
	return slices.Repeat([]tiers.TopicFacts{{Known: true}}, len(topics))
}
func (b fakeBrokers) Invalidate(string) {}

// inline is a diskless tier that leaves everything inline.
type inline struct{}

func (inline) Reserved([]byte) bool { return false }
func (inline) Offload(_ context.Context, _ tiers.OffloadRequest, notify func()) tiers.Offload {
	notify()
	return inline{}
}
func (inline) Result() tiers.Offloaded { return tiers.Offloaded{Inline: tiers.InlineSmall} }
func (inline) Offered(*tiers.Producer) {}
func (inline) Kept(*tiers.Class, string, tiers.Reason, int) {
}
func (inline) Readable(*tiers.Class) bool { return true }
func (inline) Candidate([]byte) bool      { return false }
func (inline) Resolve(context.Context, tiers.TopicPartition, []byte, int, int) ([]tiers.Piece, int, error) {
	return nil, 0, nil
}

func startProxy(t *testing.T, stack *kfake.VirtualNetwork, first int) (seed string) {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.ListenFn(stack.Listen), kfake.Ports(9092, 9093, 9094), kfake.NumBrokers(3), kfake.SeedTopics(3, "control-a", "telemetry-a"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	classes := map[string]tiers.Class{
		"control":   {Name: "control"},
		"telemetry": {Name: "telemetry", Tier: tiers.Diskless},
	}
	rt, err := router.New([]router.Rule{{Patterns: []string{"telemetry*"}, Class: "telemetry"}}, classes, "control")
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Options{
		Bootstrap: "127.0.0.1:" + strconv.Itoa(first),
		Layout:    proxy.Layout{Advertise: "127.0.0.1", Bind: "127.0.0.1", FirstPort: first + 1, Nodes: []proxy.NodeRange{{First: 0, Last: 4}}},
		Brokers:   fakeBrokers{fake.ListenAddrs(), stack.DialContext},
		Listen:    stack.Listen,
		Payloads:  inline{},
		Router:    func() *router.Router { return rt },
		Logger:    zerolog.New(zerolog.NewTestWriter(t)),
		Metrics:   prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return p.Addr().String()
}

func TestRelayBothTiers(t *testing.T) {
	synctest.Test(t, relayBothTiers)
}

func relayBothTiers(t *testing.T) {
	var stack kfake.VirtualNetwork
	seed := startProxy(t, &stack, 21000)
	cl, err := kgo.NewClient(kgo.Dialer(stack.DialContext), kgo.SeedBrokers(seed), kgo.ConsumeTopics("control-a", "telemetry-a"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	want := 0
	for i := range 100 {
		for _, topic := range []string{"control-a", "telemetry-a"} {
			cl.Produce(ctx, &kgo.Record{Topic: topic, Value: []byte(strconv.Itoa(i))}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
			want++
		}
	}
	if err := cl.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	for got := 0; got < want; {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatal(err)
		}
		got += fs.NumRecords()
	}
}
