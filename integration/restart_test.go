package integration

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

const (
	stormConnections     = 500
	longStormConnections = 5000
	stormDials           = 4 // limits.dials_per_broker
)

// stormSize is as many of the connections wanted as there may be open files: the
// clients', the balancer's two, and the replica's two of each.
func stormSize(t *testing.T, want int) int {
	t.Helper()
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	const others, each = 2000, 5
	size := min(want, (int(min(files.Cur, 1<<20))-others)/each)
	if size < want {
		t.Logf("%d connections instead of %d: they need %d open files, ulimit -n allows %d", size, want, each*want+others, files.Cur)
	}
	if size < stormConnections {
		t.Fatal("raise ulimit -n")
	}
	return size
}

// dialCounter is a network that notes how many dials of each address are under
// way at a time. Each takes a moment, as on a broker that has much to do.
type dialCounter struct {
	mu    sync.Mutex
	now   map[string]int
	most  map[string]int
	total int
}

const dialTakes = 5 * time.Millisecond

func (d *dialCounter) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d.mu.Lock()
	if d.now == nil {
		d.now, d.most = map[string]int{}, map[string]int{}
	}
	d.now[addr]++
	d.most[addr] = max(d.most[addr], d.now[addr])
	d.total++
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.now[addr]--
		d.mu.Unlock()
	}()
	time.Sleep(dialTakes)
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, addr)
}

// peak is the most dials of one address at a time, and how many there were.
func (d *dialCounter) peak() (most, total int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.most {
		most = max(most, n)
	}
	return most, d.total
}

// wireClient is a bare client connection.
type wireClient struct {
	net.Conn
	correlation int32
}

func (c *wireClient) ask(req kmsg.Request) error {
	c.correlation++
	_, err := c.Write(kmsg.NewRequestFormatter(kmsg.FormatterClientID("storm")).AppendRequest(nil, req, c.correlation))
	return err
}

// answer reads the answer to the last request, after its size.
func (c *wireClient) answer() ([]byte, error) {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, err
	}
	if got := int32(binary.BigEndian.Uint32(b)); got != c.correlation {
		return nil, fmt.Errorf("the answer to request %d came when that to %d was due", got, c.correlation)
	}
	return b, nil
}

// exchange is a request that brokers answer at once.
func (c *wireClient) exchange() error {
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(9)
	req.Topics = []kmsg.MetadataRequestTopic{}
	if err := c.ask(req); err != nil {
		return err
	}
	_, err := c.answer()
	return err
}

// crowd is many clients, each with one connection, which come back when it is
// cut, as clients do: after a moment, not all at the same.
type crowd struct {
	size int
	up   atomic.Int64 // connections on which something was answered
	came atomic.Int64 // times that a client had its first answer on a connection
}

func assemble(t *testing.T, size int, addrs []string) *crowd {
	c := &crowd{size: size}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for i := range size {
		wg.Go(func() {
			for ctx.Err() == nil {
				c.visit(ctx, addrs[i%len(addrs)])
				select {
				case <-time.After(time.Duration(50+rand.IntN(50)) * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	return c
}

// visit is one connection from its beginning to its end.
func (c *crowd) visit(ctx context.Context, addr string) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	w := &wireClient{Conn: conn}
	for first := true; ; first = false {
		if w.exchange() != nil {
			break
		}
		if first {
			c.up.Add(1)
			c.came.Add(1)
			defer c.up.Add(-1)
		}
		// Idle, but it notices its end.
		_ = conn.SetReadDeadline(time.Now().Add(time.Duration(2000+rand.IntN(2000)) * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); err == nil || !os.IsTimeout(err) {
			break
		}
	}
}

// awaitBack waits until every client is connected, as often as some have come
// anew since before.
func (c *crowd) awaitBack(t *testing.T, before int64) {
	t.Helper()
	began := time.Now()
	eventually(t, "all clients are connected", func() (bool, string) {
		up, came := c.up.Load(), c.came.Load()
		return up == int64(c.size) && came > before, fmt.Sprintf("%d of %d are, %d came", up, c.size, came-before)
	})
	t.Logf("%d of %d clients came anew, all within %v", c.came.Load()-before, c.size, time.Since(began).Round(time.Millisecond))
}

// pulse is a client of the low-latency tier whose connection is not cut: what
// happens to others must not reach it.
type pulse struct {
	answered atomic.Int64
	slowest  atomic.Int64
	failed   atomic.Pointer[error]
}

func beat(t *testing.T, addr string) *pulse {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	p := &pulse{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w := &wireClient{Conn: conn}
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			began := time.Now()
			if err := w.exchange(); err != nil {
				if ctx.Err() == nil {
					p.failed.Store(&err)
				}
				return
			}
			p.slowest.Store(max(p.slowest.Load(), int64(time.Since(began))))
			p.answered.Add(1)
		}
	}()
	t.Cleanup(func() { cancel(); _ = conn.Close(); <-done })
	return p
}

func (p *pulse) check(t *testing.T, more int64) int64 {
	t.Helper()
	if err := p.failed.Load(); err != nil {
		t.Fatalf("a connection that had nothing to do with it: %v", *err)
	}
	n := p.answered.Load()
	if n <= more {
		t.Error("nothing was answered on the other connection meanwhile")
	}
	t.Logf("the other connection's slowest answer so far took %v", time.Duration(p.slowest.Load()).Round(time.Millisecond))
	return n
}

// holdPolls opens connections on which a broker holds an answer for minutes: a
// JoinGroup whose group waits for another member, and a Fetch. What it returns
// waits until the proxy has closed them.
func holdPolls(t *testing.T, addr func(node int32) string, k *harness.Kafka, group string, topicID [16]byte, leader int32) (closed func()) {
	t.Helper()
	ctx := t.Context()
	find := kmsg.NewPtrFindCoordinatorRequest()
	find.CoordinatorKey = group
	var coordinator int32
	eventually(t, "the group has a coordinator", func() (bool, string) {
		resp, err := find.RequestWith(ctx, client(t, bootstrapOf(k)))
		if err != nil || len(resp.Coordinators) != 1 || resp.Coordinators[0].ErrorCode != 0 {
			return false, fmt.Sprint(err, resp)
		}
		coordinator = resp.Coordinators[0].NodeID
		return true, ""
	})
	dial := func(node int32) *wireClient {
		conn, err := net.Dial("tcp", addr(node))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return &wireClient{Conn: conn}
	}
	join := kmsg.NewPtrJoinGroupRequest()
	join.SetVersion(3) // no round for a member id
	join.Group, join.ProtocolType = group, "consumer"
	join.SessionTimeoutMillis, join.RebalanceTimeoutMillis = 300_000, 300_000
	protocol := kmsg.NewJoinGroupRequestProtocol()
	protocol.Name = "range"
	join.Protocols = append(join.Protocols, protocol)
	first := dial(coordinator)
	eventually(t, "the first member is in", func() (bool, string) {
		if err := first.ask(join); err != nil {
			return false, err.Error()
		}
		b, err := first.answer()
		if err != nil {
			t.Fatal(err)
		}
		resp := kmsg.NewPtrJoinGroupResponse()
		resp.SetVersion(3)
		if err := resp.ReadFrom(b[4:]); err != nil {
			t.Fatal(err)
		}
		return resp.ErrorCode == 0, fmt.Sprint("error ", resp.ErrorCode)
	})
	second := dial(coordinator)
	if err := second.ask(join); err != nil {
		t.Fatal(err)
	}

	fetch := kmsg.NewPtrFetchRequest()
	fetch.SetVersion(13)
	fetch.MaxWaitMillis, fetch.MinBytes, fetch.MaxBytes = 300_000, 1, 1<<20
	ft := kmsg.NewFetchRequestTopic()
	ft.TopicID = topicID
	fp := kmsg.NewFetchRequestTopicPartition()
	fp.PartitionMaxBytes, fp.CurrentLeaderEpoch = 1<<20, -1
	ft.Partitions = append(ft.Partitions, fp)
	fetch.Topics = append(fetch.Topics, ft)
	fetcher := dial(leader)
	if err := fetcher.ask(fetch); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		for what, c := range map[string]*wireClient{"JoinGroup": second, "Fetch": fetcher} {
			if b, err := c.answer(); err == nil {
				t.Errorf("the %s was answered, not held: % x", what, b)
			}
		}
	}
}

// A replica that dies, comes back or drains sends all its clients to the others
// at once. They all get there, the brokers meet no storm, and a drain waits
// neither for idle clients nor for what brokers hold for minutes.
func TestReplicasRestartUnderManyConnections(t *testing.T) {
	restartUnder(t, stormSize(t, stormConnections))
}

func TestLongReplicasRestartUnderManyConnections(t *testing.T) {
	harness.Long(t)
	restartUnder(t, stormSize(t, longStormConnections))
}

func restartUnder(t *testing.T, size int) {
	t.Helper()
	k := sharedKafka(t)
	one := replica{
		Kafka: k.Bootstrap(), Host: "127.0.0.2", Advertise: "127.0.0.1", Store: s3Store(harness.StartS3(t), "restart"),
		Extra: fmt.Sprintf("limits: { dials_per_broker: %d, dial_timeout: 1m }\n", stormDials),
	}.withDefaults(t)
	var dials dialCounter
	two := one
	two.Host, two.Dial = "127.0.0.3", dials.dial
	a, b := serve(t, one), startSluice(t, two)
	balancer := harness.StartBalancer(t, one.Advertise, one.Port, replicaPorts, one.Host, two.Host)
	port := func(host string, node int32) string { return fmt.Sprintf("%s:%d", host, one.Port+2+2*int(node)) }

	topics := []string{"restart-control", "restart-telemetry"}
	for _, topic := range topics {
		createTopic(t, one.bootstrap(), topic, 3)
	}
	const quiet = "restart-quiet-control"
	createTopic(t, one.bootstrap(), quiet, 1)
	h := history.New()
	l := startLoad(t, h, workload{Bootstrap: one.bootstrap(), Topics: topics, PerSecond: 100})
	live := follow(t, h, "live", one.bootstrap(), nil, topics...)
	addrs := []string{one.bootstrap()}
	for _, node := range k.Nodes() {
		addrs = append(addrs, port(one.Advertise, int32(node)))
	}
	control := beat(t, port(two.Host, int32(k.Nodes()[0])))
	c := assemble(t, size, addrs)
	c.awaitBack(t, 0)
	l.awaitMore(50, topics...)

	t.Log("one replica is killed")
	before, beats := c.came.Load(), control.check(t, 0)
	a.Kill()
	eventually(t, "clients come anew", func() (bool, string) { return c.came.Load() > before, "none" })
	c.awaitBack(t, before)
	beats = control.check(t, beats)
	if open := b.metric(t, "sluice_proxy_connections"); open < float64(size) {
		t.Errorf("the other replica has %v connections, there are %d clients", open, size)
	}
	l.awaitMore(50, topics...)

	t.Log("it is back, and all go there")
	a = serveFile(t, a.File, a.Admin)
	before = c.came.Load()
	balancer.Use(one.Host)
	eventually(t, "all come anew", func() (bool, string) {
		n := c.came.Load() - before
		return n >= int64(size), fmt.Sprint(n)
	})
	c.awaitBack(t, before)
	beats = control.check(t, beats)
	l.awaitMore(50, topics...)

	t.Log("it drains, while brokers hold what some wait for")
	held := kmsg.NewPtrMetadataRequest()
	rt := kmsg.NewMetadataRequestTopic()
	rt.Topic = kmsg.StringPtr(quiet)
	held.Topics = append(held.Topics, rt)
	meta, err := held.RequestWith(t.Context(), client(t, bootstrapOf(k)))
	if err != nil {
		t.Fatal(err)
	}
	ended := holdPolls(t, func(node int32) string { return port(one.Host, node) }, k, "restart-group", meta.Topics[0].TopicID, meta.Topics[0].Partitions[0].Leader)
	before = c.came.Load()
	balancer.Use(one.Host, two.Host)
	if err := a.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := a.Wait(t, patience); code != 0 {
		t.Errorf("sluice ended with %d after SIGTERM:\n%s", code, a.Log(t))
	}
	if log := a.Log(t); !strings.Contains(log, `"drained"`) {
		t.Error("it does not say that it drained")
	}
	ended()
	eventually(t, "all come anew", func() (bool, string) {
		n := c.came.Load() - before
		return n >= int64(size), fmt.Sprint(n)
	})
	c.awaitBack(t, before)
	control.check(t, beats)
	l.awaitMore(50, topics...)

	most, total := dials.peak()
	t.Logf("%d dials, at most %d of one broker at a time", total, most)
	// The background client's few do not wait in turn.
	if background := 2; most > stormDials+background {
		t.Errorf("%d dials of one broker at a time, limits.dials_per_broker is %d", most, stormDials)
	}
	if total < size {
		t.Errorf("%d dials were counted for %d clients", total, size)
	}
	if refused := b.metric(t, "sluice_lowlatency_dials_refused_total") + b.metric(t, "sluice_proxy_dial_errors_total"); refused != 0 {
		t.Errorf("%v clients did not get their connection", refused)
	}
	l.stop()
	live.toEnd(bootstrapOf(k), topics...)
	readAll(t, h, "afterwards", one.bootstrap(), bootstrapOf(k), topics...)
}
