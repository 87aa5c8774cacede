package proxy_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/singleflight"

	"github.com/sluice-kafka/sluice/proxy"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

const (
	hot      = "control-a"   // a low-latency topic
	cold     = "telemetry-a" // a diskless one
	firstPrt = 1001
	host     = "proxy"
)

var (
	hotID  = [16]byte{1}
	coldID = [16]byte{2}
)

// rig is a proxy whose brokers and diskless tier do what the test says.
type rig struct {
	t        testing.TB
	net      *network
	proxy    *proxy.Proxy
	brokers  *scriptedBrokers
	payloads *scriptedPayloads
	quotas   *scriptedQuotas
	rules    atomic.Pointer[router.Router]
	metrics  *prometheus.Registry
	log      *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// inBubble runs a test on fake time; it fails when a goroutine is left over.
func inBubble(t *testing.T, limits proxy.Limits, fn func(r *rig)) {
	t.Helper()
	inBubbleWith(t, limits, true, fn)
}

// inBubbleWith says whether some rule leads to a diskless class.
func inBubbleWith(t *testing.T, limits proxy.Limits, diskless bool, fn func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, limits, diskless)
		defer func() { // a test that gives up leaves no goroutine either
			ended, end := context.WithCancel(context.Background())
			end()
			_ = r.proxy.Shutdown(ended)
			if r.payloads.slow != nil {
				time.Sleep(2 * time.Hour) // what it still reads ends
			}
		}()
		fn(r)
		r.stop(time.Minute)
		if n := r.payloads.lent.Load(); n != 0 {
			t.Errorf("%d batches that were lent have not been given back", n)
		}
	})
}

func testRouter(t testing.TB, diskless bool) *router.Router {
	t.Helper()
	classes := map[string]tiers.Class{
		"control":   {Name: "control"},
		"telemetry": {Name: "telemetry", Tier: tiers.Diskless},
		"guarded":   {Name: "guarded", Tier: tiers.Diskless, Audit: true, OnDelete: tiers.Refuse},
		"passing":   {Name: "passing", Tier: tiers.Diskless, Audit: true, OnDelete: tiers.Ignore},
	}
	var rules []router.Rule
	if diskless {
		rules = []router.Rule{
			{Patterns: []string{"telemetry*"}, Class: "telemetry"},
			{Patterns: []string{guarded}, Class: "guarded"},
			{Patterns: []string{passing}, Class: "passing"},
		}
	}
	rt, err := router.New(rules, classes, "control")
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

func newRig(t testing.TB, limits proxy.Limits, diskless bool) *rig {
	t.Helper()
	r := &rig{
		t: t, net: &network{}, log: &syncBuffer{}, metrics: prometheus.NewRegistry(),
		brokers:  &scriptedBrokers{dialed: make(chan *peer, 64), facts: map[string]tiers.TopicFacts{}},
		payloads: &scriptedPayloads{}, quotas: &scriptedQuotas{},
	}
	r.brokers.t = t
	r.rules.Store(testRouter(t, diskless))
	p, err := proxy.New(proxy.Options{
		Bootstrap: "proxy:1000",
		Layout:    proxy.Layout{Advertise: host, Bind: host, FirstPort: firstPrt, Nodes: []proxy.NodeRange{{First: 0, Last: 4}}},
		Brokers:   r.brokers, Payloads: r.payloads, Quotas: r.quotas,
		Router:  r.rules.Load,
		Limits:  limits,
		Listen:  r.net.Listen,
		Logger:  zerolog.New(r.log),
		Metrics: r.metrics,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.proxy = p
	return r
}

func (r *rig) stop(patience time.Duration) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.proxy.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		r.t.Error(err)
	}
	if held := r.sum("sluice_proxy_frame_bytes"); held != 0 {
		r.t.Errorf("%v bytes of frames are still accounted for when all connections have ended", held)
	}
	if open := r.sum("sluice_proxy_connections"); open != 0 {
		r.t.Errorf("%v connections are still counted", open)
	}
}

// sum adds up a metric over its labels.
func (r *rig) sum(name string) float64 {
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	total := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return total
}

const (
	bootstrap = "proxy:1000"
	anyone    = "10.0.0.1:5000"
)

// on is the address of node 0's listener of a tier.
func on(diskless bool) string {
	port := firstPrt
	if diskless {
		port++
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

func (r *rig) connect(to string) *peer {
	r.t.Helper()
	c, err := r.net.dial(context.Background(), anyone, to)
	if err != nil {
		r.t.Fatal(err)
	}
	return &peer{t: r.t, Conn: c}
}

// broker is the broker's end of the connection that the proxy opens next.
func (r *rig) broker() *peer { return <-r.brokers.dialed }

// pair is a client that has made its first requests, and its broker, which is
// of an age that is not asked what a client may do.
func (r *rig) pair(to string) (client, broker *peer) {
	r.t.Helper()
	return r.pairOf(to, 7)
}

// pairOf is pair with a broker that speaks Metadata up to a version.
func (r *rig) pairOf(to string, metadata int16) (client, broker *peer) {
	r.t.Helper()
	client = r.connect(to)
	client.ask(99, kmsg.NewPtrApiVersionsRequest())
	broker = r.broker()
	broker.speaks(metadata)
	client.expect(99)
	client.ask(100, heartbeat())
	broker.reply(heartbeat())
	client.expect(100)
	return client, broker
}

// speaks answers who asks for the versions.
func (p *peer) speaks(metadata int16) {
	p.t.Helper()
	req := kmsg.NewPtrApiVersionsRequest()
	correlation := p.received(req)
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.SetVersion(req.Version)
	key := kmsg.NewApiVersionsResponseApiKey()
	key.ApiKey, key.MaxVersion = 3, metadata
	resp.ApiKeys = append(resp.ApiKeys, key)
	p.respond(correlation, resp)
}

func heartbeat() kmsg.Request {
	req := kmsg.NewPtrHeartbeatRequest()
	req.SetVersion(4)
	return req
}

// listOffsets is a request that a shutdown waits for.
func listOffsets() kmsg.Request {
	req := kmsg.NewPtrListOffsetsRequest()
	req.SetVersion(7)
	return req
}

// peer speaks Kafka on one end of a connection.
type peer struct {
	net.Conn
	t testing.TB
}

func encode(correlation int32, req kmsg.Request) []byte {
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("test")).AppendRequest(nil, req, correlation)
}

func (p *peer) ask(correlation int32, req kmsg.Request) {
	p.t.Helper()
	p.raw(encode(correlation, req))
}

func (p *peer) raw(b []byte) {
	p.t.Helper()
	if _, err := p.Write(b); err != nil {
		p.t.Fatalf("writing: %v", err)
	}
}

// next reads one frame, without its size.
func (p *peer) next() ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(p, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err := io.ReadFull(p, b)
	return b, err
}

// expect reads an answer and checks whose it is.
func (p *peer) expect(correlation int32) []byte {
	p.t.Helper()
	b, err := p.next()
	if err != nil {
		p.t.Fatalf("waiting for the answer to request %d: %v", correlation, err)
	}
	if got := int32(binary.BigEndian.Uint32(b)); got != correlation {
		p.t.Fatalf("the answer to request %d came when that to %d was due", got, correlation)
	}
	return b
}

// answer reads an answer into resp, whose version is set.
func (p *peer) answer(correlation int32, resp kmsg.Response) {
	p.t.Helper()
	b := p.expect(correlation)[4:]
	if resp.IsFlexible() && resp.Key() != 18 {
		if b[0] != 0 {
			p.t.Fatalf("unexpected tags in a response header: % x", b[:8])
		}
		b = b[1:]
	}
	if err := resp.ReadFrom(b); err != nil {
		p.t.Fatalf("answer of %s: %v", kmsg.NameForKey(resp.Key()), err)
	}
}

// closed waits for the other side to close.
func (p *peer) closed() {
	p.t.Helper()
	if n, err := io.Copy(io.Discard, p); n > 0 {
		p.t.Fatalf("%d bytes before the connection ended (%v)", n, err)
	}
}

// received reads a request into req, which has the version of the frame, and
// returns its correlation id.
func (p *peer) received(req kmsg.Request) int32 {
	p.t.Helper()
	b, err := p.next()
	if err != nil {
		p.t.Fatalf("the broker waits for %s: %v", kmsg.NameForKey(req.Key()), err)
	}
	correlation, err := parseRequest(b, req)
	if err != nil {
		p.t.Fatal(err)
	}
	return correlation
}

func parseRequest(b []byte, req kmsg.Request) (correlation int32, err error) {
	key, version := int16(binary.BigEndian.Uint16(b)), int16(binary.BigEndian.Uint16(b[2:]))
	if key != req.Key() {
		return 0, fmt.Errorf("the broker got %s v%d, not %s", kmsg.NameForKey(key), version, kmsg.NameForKey(req.Key()))
	}
	correlation = int32(binary.BigEndian.Uint32(b[4:]))
	req.SetVersion(version)
	n := int(int16(binary.BigEndian.Uint16(b[8:])))
	b = b[10+max(n, 0):]
	if req.IsFlexible() {
		b = b[1:]
	}
	return correlation, req.ReadFrom(b)
}

// reply reads a request of req's kind and answers it with an empty success.
func (p *peer) reply(req kmsg.Request) {
	p.t.Helper()
	p.respond(p.received(req), req.ResponseKind())
}

func (p *peer) respond(correlation int32, resp kmsg.Response) {
	p.t.Helper()
	p.raw(encodeResponse(correlation, resp))
}

func encodeResponse(correlation int32, resp kmsg.Response) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 4), uint32(correlation))
	if resp.IsFlexible() && resp.Key() != 18 {
		b = append(b, 0)
	}
	b = resp.AppendTo(b)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// silent fails when something can be read.
func (p *peer) silent(why string) {
	p.t.Helper()
	synctest.Wait()
	_ = p.SetReadDeadline(time.Now().Add(time.Nanosecond))
	if b, err := p.next(); err == nil {
		p.t.Fatalf("%s, but a frame came: % x", why, b[:min(len(b), 16)])
	}
	_ = p.SetReadDeadline(time.Time{})
}

type scriptedBrokers struct {
	t      testing.TB
	dialed chan *peer
	fail   error

	mu          sync.Mutex
	facts       map[string]tiers.TopicFacts // known and not compacted where absent
	invalidated []string
	nodes       []int32
	slow        chan struct{} // the next question for facts waits for it
	together    [][]string    // topics that were asked about together
}

func (b *scriptedBrokers) Dial(_ context.Context, node int32) (net.Conn, error) {
	b.mu.Lock()
	b.nodes = append(b.nodes, node)
	b.mu.Unlock()
	if b.fail != nil {
		return nil, b.fail
	}
	near, far := connect("proxy:0", "broker:9092")
	b.dialed <- &peer{t: b.t, Conn: far}
	return near, nil
}

// holdFacts has the next question for facts wait until it is let go.
func (b *scriptedBrokers) holdFacts() (letGo func()) {
	slow := make(chan struct{})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.slow = slow
	return func() { close(slow) }
}

func (b *scriptedBrokers) Facts(_ context.Context, topic string) tiers.TopicFacts {
	b.mu.Lock()
	if slow := b.slow; slow != nil {
		b.slow = nil
		b.mu.Unlock()
		<-slow
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	if f, ok := b.facts[topic]; ok {
		return f
	}
	return tiers.TopicFacts{Known: true}
}

func (b *scriptedBrokers) FactsOf(ctx context.Context, topics []string) []tiers.TopicFacts {
	b.mu.Lock()
	b.together = append(b.together, topics)
	b.mu.Unlock()
	out := make([]tiers.TopicFacts, len(topics))
	for i, t := range topics {
		out[i] = b.Facts(ctx, t)
	}
	return out
}

func (b *scriptedBrokers) Invalidate(topic string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.invalidated = append(b.invalidated, topic)
}

// scriptedQuotas gives everybody the same rate, as itself.
type scriptedQuotas struct {
	mu    sync.Mutex
	rates [len(tiers.QuotaKinds)]float64
	asked []tiers.QuotaClient
}

func (q *scriptedQuotas) ByteRate(kind tiers.QuotaKind, client tiers.QuotaClient) (tiers.ByteRate, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked = append(q.asked, client)
	return tiers.ByteRate{PerSecond: q.rates[kind], User: client.User, ClientID: client.ID}, q.rates[kind] > 0
}

// last is whom a rate was asked for last.
func (q *scriptedQuotas) last() tiers.QuotaClient {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.asked[len(q.asked)-1]
}

// A scripted batch is text: "<length>|..." with a real batch's frame around it
// would only test the diskless tier. Here "P<size>;" is a placeholder of that
// many bytes, "I<size>;" an inline batch, "X;" a placeholder that does not
// verify, "B<size>;" one whose object cannot be read, "S<size>;" one whose
// object is slow to be read, as slow says, "R;" holds the reserved header.
type scriptedPayloads struct {
	// slow reads an object, which is never kept; all who ask at one time get
	// the same.
	slow    func(size int) error
	loading func()
	gets    singleflight.Group

	unreadable atomic.Bool // every store
	lent       atomic.Int64

	mu       sync.Mutex
	offloads []*scriptedOffload
	offered  int
	resolved []string // topics
	kept     []string
}

type scriptedOffload struct {
	req     tiers.OffloadRequest
	ctx     context.Context
	notify  func()
	records []byte
	refused bool
}

func (o *scriptedOffload) Result() tiers.Offloaded {
	if o.refused {
		return tiers.Offloaded{Rejected: true}
	}
	if o.records == nil {
		return tiers.Offloaded{Inline: tiers.InlineSmall}
	}
	return tiers.Offloaded{Records: o.records}
}

// finish decides an offload: records is its placeholder, nil for inline.
func (o *scriptedOffload) finish(records string) {
	if records != "" {
		o.records = []byte(records)
	}
	o.notify()
}

func (s *scriptedPayloads) Reserved(records []byte) bool {
	return bytes.Contains(records, []byte("R;"))
}

func (s *scriptedPayloads) Offload(ctx context.Context, req tiers.OffloadRequest, notify func()) tiers.Offload {
	o := &scriptedOffload{req: req, ctx: ctx, notify: notify}
	s.mu.Lock()
	s.offloads = append(s.offloads, o)
	s.mu.Unlock()
	return o
}

func (s *scriptedPayloads) Offered(*tiers.Producer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offered++
}

func (s *scriptedPayloads) Kept(class *tiers.Class, topic string, why tiers.Reason, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = append(s.kept, fmt.Sprintf("%s of %s, %d bytes, %s", topic, class.Name, bytes, why))
}

// offloaded waits until the proxy is idle and returns what it has offloaded.
func (s *scriptedPayloads) offloaded() []*scriptedOffload {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offloads
}

// Readable is true unless a test says otherwise.
func (s *scriptedPayloads) Readable(*tiers.Class) bool { return !s.unreadable.Load() }

func (s *scriptedPayloads) Candidate(records []byte) bool { return bytes.ContainsAny(records, "PXBS") }

// get is detached, as in the diskless tier: whoever waits may leave.
func (s *scriptedPayloads) get(ctx context.Context, size int) error {
	got := s.gets.DoChan(strconv.Itoa(size), func() (any, error) { return nil, s.slow(size) })
	select {
	case r := <-got:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errForged = errors.New("a reference does not verify")

func (s *scriptedPayloads) Resolve(_ context.Context, tp tiers.TopicPartition, records []byte, most, _ int) (out []tiers.Piece, all int, err error) {
	records = unframed(records)
	s.mu.Lock()
	s.resolved = append(s.resolved, tp.Topic)
	s.mu.Unlock()
	for len(records) > 0 {
		end := bytes.IndexByte(records, ';')
		if end < 0 {
			return out, all, nil // a trailing partial batch
		}
		batch := string(records[:end])
		records = records[end+1:]
		if batch[0] == 'X' {
			return out, all, errForged
		}
		size, err := strconv.Atoi(batch[1:])
		if err != nil {
			return out, all, err
		}
		if all <= most {
			out = append(out, scriptedPiece{kind: batch[0], size: size, store: s})
		}
		all += size
	}
	return out, all, nil
}

// framed puts a scripted batch into a frame that has offsets, for who reads those.
func framed(base int64, text string) []byte {
	b := wire.Batch(append(make([]byte, wire.BatchHeaderSize), text...))
	b.SetLength(int32(len(b) - wire.LogOverhead))
	b.SetMagic(2)
	b.SetBaseOffset(base)
	return b
}

func unframed(records []byte) (text []byte) {
	for rest := records; ; {
		b, behind, ok := wire.NextBatch(rest)
		if !ok {
			return append(text, rest...)
		}
		text, rest = append(text, b.Body()...), behind
	}
}

type scriptedPiece struct {
	kind  byte
	size  int
	store *scriptedPayloads
}

func (p scriptedPiece) Size() int         { return p.size }
func (p scriptedPiece) Records() int      { return 1 }
func (p scriptedPiece) Placeholder() bool { return p.kind != 'I' }
func (p scriptedPiece) Cached() bool      { return p.kind != 'S' }
func (p scriptedPiece) Await(ctx context.Context) error {
	if p.kind != 'S' {
		return nil
	}
	return p.store.get(ctx, p.size)
}

func (p scriptedPiece) Load(ctx context.Context) ([][]byte, error) {
	if p.store.loading != nil {
		p.store.loading()
	}
	if p.kind == 'S' {
		if err := p.store.get(ctx, p.size); err != nil {
			return nil, err
		}
	}
	if p.kind == 'B' {
		return nil, errors.New("the object cannot be read")
	}
	content := []byte(p.content())
	return [][]byte{content[:p.size/2], content[p.size/2:]}, nil
}

// Lend counts what is not given back.
func (p scriptedPiece) Lend(ctx context.Context) ([][]byte, func(), error) {
	b, err := p.Load(ctx)
	if err != nil {
		return nil, nil, err
	}
	p.store.lent.Add(1)
	return b, func() { p.store.lent.Add(-1) }, nil
}

// content is what a placeholder of a size stands for.
func (p scriptedPiece) content() string { return strings.Repeat("d", p.size) }

// produce builds a Produce of one batch for each topic.
func produce(version, acks int16, batches ...[2]string) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(version)
	req.Acks, req.TimeoutMillis = acks, 1000
	for i, b := range batches {
		t := kmsg.NewProduceRequestTopic()
		t.Topic = b[0]
		if b[0] == cold {
			t.TopicID = coldID
		} else {
			t.TopicID = hotID
		}
		p := kmsg.NewProduceRequestTopicPartition()
		p.Partition, p.Records = int32(i), []byte(b[1])
		t.Partitions = append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
	}
	return req
}
