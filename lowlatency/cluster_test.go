package lowlatency

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/tiers"
)

// world is a cluster of brokers on a network in memory, in fake time, and the
// tier before it.
type world struct {
	*testing.T
	net    *kfake.VirtualNetwork
	kafka  *kfake.Cluster
	tier   *Cluster
	log    *journal
	filter atomic.Value // func(addr string) error: what dialing an address meets
}

// journal is a log that may be read while it is written.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

// through is a network that lets everything pass.
func through(string) error { return nil }

func inWorld(t *testing.T, change func(*Options), test func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, net: &kfake.VirtualNetwork{}, log: &journal{}}
		w.filter.Store(through)
		w.kafka = kfake.MustCluster(kfake.Ports(9092, 9093, 9094), kfake.ClusterID("first"), kfake.ListenFn(w.net.Listen), kfake.SeedTopics(1, "orders"))
		defer w.kafka.Close()
		opt := Options{
			Bootstrap: []string{w.kafka.ListenAddrs()[0]},
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if err := w.filter.Load().(func(string) error)(addr); err != nil {
					return nil, err
				}
				return w.net.DialContext(ctx, network, addr)
			},
			Logger:  zerolog.New(w.log),
			Metrics: prometheus.NewRegistry(),
		}
		if change != nil {
			change(&opt)
		}
		var err error
		if w.tier, err = New(opt); err != nil {
			w.Fatal(err)
		}
		defer w.tier.Close()
		test(w)
	})
}

func (w *world) connect() {
	w.Helper()
	if err := w.tier.Connect(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// run starts the background refresh; what it returns ends it.
func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.tier.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// dialed returns whom Dial reached: the id is asked for by its address.
func (w *world) dialed(node int32) (addr string, err error) {
	filter := w.filter.Load().(func(string) error)
	var last atomic.Value
	last.Store("")
	w.filter.Store(func(a string) error {
		last.Store(a)
		return filter(a)
	})
	defer w.filter.Store(filter)
	conn, err := w.tier.Dial(w.Context(), node)
	if err == nil {
		_ = conn.Close()
	}
	return last.Load().(string), err
}

func TestDialReachesTheBrokerThatWasAskedFor(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.connect()
		for _, b := range w.tier.Brokers() {
			if addr, err := w.dialed(b.ID); err != nil || addr != b.Addr {
				w.Errorf("broker %d at %s: %s, %v", b.ID, b.Addr, addr, err)
			}
		}
	})
}

func TestDialAnySpreadsAndPassesByABrokerThatIsDown(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.connect()
		seen := map[string]int{}
		for range 6 {
			addr, err := w.dialed(anyBroker)
			if err != nil {
				w.Fatal(err)
			}
			seen[addr]++
		}
		if len(seen) != 3 {
			w.Errorf("6 connections went to %v", seen)
		}
		down := w.tier.Brokers()[1].Addr
		w.filter.Store(func(addr string) error {
			if addr == down {
				return &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
			}
			return nil
		})
		for range 6 {
			if addr, err := w.dialed(anyBroker); err != nil || addr == down {
				w.Errorf("%s: %v", addr, err)
			}
		}
		if n := testutil.ToFloat64(w.tier.metrics.dialErrors); n != 2 {
			w.Errorf("%v dials are counted as failed, not the two that met the broker that is down", n)
		}
	})
}

func TestDialAnyGetsPastABrokerThatSwallowsPackets(t *testing.T) {
	swallowed := ""
	inWorld(t, func(o *Options) {
		dial := o.Dial
		o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == swallowed {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return dial(ctx, network, addr)
		}
	}, func(w *world) {
		w.connect()
		swallowed = w.tier.Brokers()[1].Addr
		for range 3 {
			ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
			conn, err := w.tier.Dial(ctx, anyBroker)
			cancel()
			if err != nil {
				w.Fatal(err)
			}
			_ = conn.Close()
		}
	})
}

func TestDialFindsABrokerThatJoinedSinceTheLastLook(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.connect()
		if _, _, err := w.kafka.AddNode(7, 9095); err != nil {
			w.Fatal(err)
		}
		if _, err := w.dialed(7); err != nil {
			w.Error(err)
		}
	})
}

func TestDialErrorsNameTheNodeAndItsAddress(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.connect()
		if _, err := w.dialed(99); err == nil || err.Error() != "node 99: the cluster has no such broker" {
			w.Error(err)
		}
		b := w.tier.Brokers()[0]
		w.filter.Store(func(string) error { return context.DeadlineExceeded })
		if _, err := w.dialed(b.ID); err == nil || !strings.Contains(err.Error(), "node 0 at "+b.Addr) {
			w.Error(err)
		}
		if _, err := w.dialed(anyBroker); err == nil || !strings.Contains(err.Error(), b.Addr) || !strings.Contains(err.Error(), "no broker can be reached") {
			w.Error(err)
		}
	})
}

func TestConnectWaitsForTheCluster(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		up := time.Now().Add(time.Minute)
		w.filter.Store(func(string) error {
			if time.Now().Before(up) {
				return &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
			}
			return nil
		})
		w.connect()
		if w.tier.ClusterID() != "first" || time.Now().Before(up) {
			w.Errorf("cluster %q at %v", w.tier.ClusterID(), time.Now())
		}
	})
}

func TestStatus(t *testing.T) {
	inRange := func(o *Options) { o.InRange = func(id int32) bool { return id != 2 } }
	inWorld(t, inRange, func(w *world) {
		if w.tier.Status().Reachable {
			w.Error("reachable before it was ever asked")
		}
		w.connect()
		defer w.run()()
		s := w.tier.Status()
		if !s.Reachable || s.Brokers != 3 || !slices.Equal(s.OutOfRange, []int32{2}) || s.Err != "" {
			w.Errorf("%+v", s)
		}
		if !strings.Contains(w.log.String(), "outside listen.node_ids") {
			w.Errorf("nobody is told that broker 2 has no ports:\n%s", w.log)
		}

		// The brokers fall silent: a while later the tier says so.
		var down atomic.Bool
		down.Store(true)
		w.kafka.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
			w.kafka.KeepControl()
			return nil, context.Canceled, down.Load() // closes the connection
		})
		time.Sleep(2 * defaultStaleAfter)
		if s := w.tier.Status(); s.Reachable || s.Err == "" {
			w.Errorf("the brokers answer nothing, and the status is %+v", s)
		}
		down.Store(false)
		time.Sleep(2 * defaultRefresh)
		if s := w.tier.Status(); !s.Reachable || s.Err != "" {
			w.Errorf("the brokers are back, and the status is %+v", s)
		}
	})
}

// countDescribes counts the DescribeConfigs that reach the cluster, and the
// topics in them.
func (w *world) countDescribes() (requests, topics *atomic.Int64) {
	requests, topics = new(atomic.Int64), new(atomic.Int64)
	w.kafka.ControlKey(int16(kmsg.DescribeConfigs), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.kafka.KeepControl()
		requests.Add(1)
		topics.Add(int64(len(req.(*kmsg.DescribeConfigsRequest).Resources)))
		return nil, nil, false
	})
	return requests, topics
}

func (w *world) create(topic string, configs map[string]string) {
	w.Helper()
	if err := w.kafka.CreateTopic(topic, 1, configs); err != nil {
		w.Fatal(err)
	}
}

func (w *world) setCleanupPolicy(topic, value string) {
	w.Helper()
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	res := kmsg.NewIncrementalAlterConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	c.Name, c.Value = "cleanup.policy", &value
	res.Configs = append(res.Configs, c)
	req.Resources = append(req.Resources, res)
	resp, err := req.RequestWith(w.Context(), w.tier.Client())
	if err != nil || resp.Resources[0].ErrorCode != 0 {
		w.Fatal(err, resp)
	}
}

func TestFactsSayWhatPlacementNeeds(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.create("compacted", map[string]string{"cleanup.policy": "compact"})
		w.create("both", map[string]string{"cleanup.policy": "compact,delete", "max.message.bytes": "5000"})
		const defaultMax = 1048588
		for topic, want := range map[string]tiers.TopicFacts{
			"orders":    {Known: true, MaxMessageBytes: defaultMax},
			"compacted": {Known: true, Compacted: true, MaxMessageBytes: defaultMax},
			"both":      {Known: true, Compacted: true, MaxMessageBytes: 5000},
			"nowhere":   {},
		} {
			if got := w.tier.Facts(w.Context(), topic); got != want {
				w.Errorf("%s: %+v, want %+v", topic, got, want)
			}
		}
		all := w.tier.AllFacts(w.Context(), []string{"orders", "both", "nowhere"})
		if !all["both"].Compacted || !all["orders"].Known || all["nowhere"].Known {
			w.Errorf("all at once: %+v", all)
		}
	})
}

func TestQuestionsAtTheSameTimeShareOneRequest(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		var names []string
		for i := range 50 {
			names = append(names, "t"+string(rune('A'+i)))
			w.create(names[i], nil)
		}
		requests, topics := w.countDescribes()
		ask := func() {
			done := make(chan bool)
			for _, name := range names {
				for range 4 {
					go func() { done <- w.tier.Facts(w.Context(), name).Known }()
				}
			}
			for range 4 * len(names) {
				if !<-done {
					w.Error("not known")
				}
			}
		}
		ask()
		if requests.Load() != 1 || topics.Load() != 50 {
			w.Errorf("200 questions about 50 topics were %d requests about %d", requests.Load(), topics.Load())
		}
		ask()
		if requests.Load() != 1 {
			w.Error("what is known was asked for again")
		}
		var more []string
		for i := range 50 {
			more = append(more, "u"+string(rune('A'+i)))
			w.create(more[i], nil)
		}
		several := append([]string{names[7]}, more...)
		for range 2 {
			for i, facts := range w.tier.FactsOf(w.Context(), several) {
				if !facts.Known {
					w.Errorf("%s is not known", several[i])
				}
			}
		}
		if requests.Load() != 2 || topics.Load() != 100 {
			w.Errorf("a question about 50 topics more was %d requests, about %d", requests.Load()-1, topics.Load()-50)
		}
	})
}

func TestASilentClusterHoldsOneRequestAndNobodyLongerThanHeWants(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.connect()
		var asked atomic.Int64
		w.kafka.ControlKey(int16(kmsg.DescribeConfigs), func(kmsg.Request) (kmsg.Response, error, bool) {
			w.kafka.KeepControl()
			asked.Add(1)
			return nil, nil, true // no answer ever
		})
		for range 20 {
			ctx, cancel := context.WithTimeout(w.Context(), 100*time.Millisecond)
			before := time.Now()
			facts := w.tier.Facts(ctx, "orders")
			cancel()
			if facts.Known || time.Since(before) != 100*time.Millisecond {
				w.Errorf("%+v after %v", facts, time.Since(before))
			}
		}
		if n := asked.Load(); n != 1 {
			w.Errorf("%d requests hang, not 1", n)
		}
	})
}

func TestATopicThatWasJustCreatedIsSoonKnown(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		if w.tier.Facts(w.Context(), "new").Known {
			w.Fatal("known before it is there")
		}
		requests, _ := w.countDescribes()
		if w.tier.Facts(w.Context(), "new").Known || requests.Load() != 0 {
			w.Error("an answer of just now was asked for again")
		}
		w.create("new", nil)
		time.Sleep(unknownFor)
		if !w.tier.Facts(w.Context(), "new").Known {
			w.Error("still not known")
		}
	})
}

func TestInvalidateMakesTheNextQuestionAskKafka(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.tier.Facts(w.Context(), "orders")
		w.setCleanupPolicy("orders", "compact")
		if w.tier.Facts(w.Context(), "orders").Compacted {
			w.Fatal("the change is seen already: the rest would prove nothing")
		}
		w.tier.Invalidate("orders")
		if !w.tier.Facts(w.Context(), "orders").Compacted {
			w.Error("the old answer is still believed")
		}
		if n := testutil.ToFloat64(w.tier.metrics.becameCompacted); n != 1 {
			w.Errorf("the alarm was given %v times: a change that came through the proxy must give it too", n)
		}
	})
}

func TestAnAnswerFromBeforeTheChangeIsNotKept(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.kafka.ControlKey(int16(kmsg.DescribeConfigs), func(req kmsg.Request) (kmsg.Response, error, bool) {
			// The topic changes, and the proxy says so, while an answer that
			// knows nothing of it is under way.
			resp := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
			r := kmsg.NewDescribeConfigsResponseResource()
			r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, "orders"
			resp.Resources = append(resp.Resources, r)
			w.tier.Invalidate("orders")
			return resp, nil, true
		})
		w.tier.Facts(w.Context(), "orders")
		w.setCleanupPolicy("orders", "compact")
		if !w.tier.Facts(w.Context(), "orders").Compacted {
			w.Error("the overtaken answer was kept")
		}
	})
}

// Brokers learn of a change one after the other: what is read right behind one
// is soon read again.
func TestAnAnswerRightAfterAChangeIsNotBelievedForLong(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.tier.Facts(w.Context(), "orders")
		w.tier.Invalidate("orders")
		if w.tier.Facts(w.Context(), "orders").Compacted {
			w.Fatal("the broker does not know yet")
		}
		w.setCleanupPolicy("orders", "compact")
		time.Sleep(unknownFor)
		if !w.tier.Facts(w.Context(), "orders").Compacted {
			w.Error("what a broker said that had not learnt of the change is still believed")
		}
		time.Sleep(settlesFor)
		requests, _ := w.countDescribes()
		for range 10 {
			w.tier.Facts(w.Context(), "orders")
			time.Sleep(unknownFor)
		}
		if n := requests.Load(); n > 0 {
			w.Errorf("%d questions about a topic that has settled", n)
		}
	})
}

func TestTheSameBrokerIsAskedAboutTopics(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.connect()
		var nodes []int32
		w.kafka.ControlKey(int16(kmsg.DescribeConfigs), func(kmsg.Request) (kmsg.Response, error, bool) {
			w.kafka.KeepControl()
			nodes = append(nodes, w.kafka.CurrentNode())
			return nil, nil, false
		})
		for range 10 {
			w.tier.Invalidate("orders")
			w.tier.Facts(w.Context(), "orders")
		}
		for _, n := range nodes {
			if n != nodes[0] {
				w.Fatalf("brokers %v were asked", nodes)
			}
		}
		if len(nodes) != 10 {
			w.Errorf("%d questions", len(nodes))
		}
	})
}

func TestATopicThatBecomesCompactedIsNoticedAndAlarmed(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.connect()
		defer w.run()()
		w.tier.Facts(w.Context(), "orders")
		w.setCleanupPolicy("orders", "compact,delete")
		time.Sleep(2 * defaultRefresh)
		if !w.tier.Facts(w.Context(), "orders").Compacted {
			w.Error("not noticed")
		}
		time.Sleep(5 * defaultRefresh)
		if n := testutil.ToFloat64(w.tier.metrics.becameCompacted); n != 1 {
			w.Errorf("the alarm was given %v times", n)
		}
		if !strings.Contains(w.log.String(), `"topic":"orders"`) || !strings.Contains(w.log.String(), "has become compact") {
			w.Errorf("the log says nothing:\n%s", w.log)
		}
	})
}

func TestTopicsThatAreGoneOrUnusedAreForgotten(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.connect()
		defer w.run()()
		w.create("short-lived", nil)
		w.tier.Facts(w.Context(), "short-lived")
		w.tier.Facts(w.Context(), "orders")
		if err := w.kafka.DeleteTopic("short-lived"); err != nil {
			w.Fatal(err)
		}
		time.Sleep(3 * defaultRefresh)
		if n := testutil.ToFloat64(w.tier.metrics.topicsKnown); n != 1 {
			w.Errorf("%v topics are remembered, not only orders", n)
		}
		time.Sleep(unusedAfter + 2*defaultRefresh)
		requests, _ := w.countDescribes()
		time.Sleep(3 * defaultRefresh)
		if requests.Load() != 0 {
			w.Error("a topic that nobody uses is still read")
		}
	})
}

func TestFactsAreBounded(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		for i := range maxFacts + 100 {
			w.tier.Invalidate(string(rune(i)) + "x")
		}
		if n := len(w.tier.facts.known); n > maxFacts {
			w.Errorf("%d topics are remembered", n)
		}
	})
}

func TestAnotherClusterIsRefused(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.connect()
		defer w.run()()
		var pretend atomic.Bool
		pretend.Store(true)
		w.kafka.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
			w.kafka.KeepControl()
			if !pretend.Load() {
				return nil, nil, false
			}
			resp := req.ResponseKind().(*kmsg.MetadataResponse)
			other := "second"
			resp.ClusterID = &other
			resp.Brokers = append(resp.Brokers, kmsg.MetadataResponseBroker{NodeID: 0, Host: "elsewhere", Port: 1})
			return resp, nil, true
		})
		time.Sleep(2 * defaultRefresh)
		const want = "the cluster's id was first and is now second"
		if s := w.tier.Status(); s.Reachable || !strings.Contains(s.Err, want) {
			w.Errorf("%+v", s)
		}
		for _, node := range []int32{anyBroker, 0} {
			if _, err := w.dialed(node); err == nil || !strings.Contains(err.Error(), want) {
				w.Errorf("node %d: %v", node, err)
			}
		}
		if w.tier.ClusterID() != "first" {
			w.Errorf("the id has become %q", w.tier.ClusterID())
		}
		pretend.Store(false)
		time.Sleep(2 * defaultRefresh)
		if _, err := w.dialed(0); err != nil {
			w.Errorf("the right cluster is back: %v", err)
		}
	})
}

func TestMechanismsAreAskedFor(t *testing.T) {
	refuse := func(req kmsg.Request) (kmsg.Response, error, bool) {
		resp := req.ResponseKind().(*kmsg.SASLHandshakeResponse)
		resp.ErrorCode = kerr.IllegalSaslState.Code
		return resp, nil, true
	}
	hangUp := func(kmsg.Request) (kmsg.Response, error, bool) { return nil, io.EOF, true }
	silent := func(kmsg.Request) (kmsg.Response, error, bool) { return nil, nil, true }
	for _, c := range []struct {
		name   string
		answer func(kmsg.Request) (kmsg.Response, error, bool)
		want   []string
		fails  bool
	}{
		{"a listener with SASL lists them", nil, []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}, false},
		{"one without SASL answers ILLEGAL_SASL_STATE, as Kafka does", refuse, nil, false},
		{"one without SASL hangs up", hangUp, nil, false},
		{"one that says nothing is not taken for one without SASL", silent, nil, true},
	} {
		inWorld(t, nil, func(w *world) {
			if c.answer != nil {
				w.kafka.ControlKey(int16(kmsg.SASLHandshake), c.answer)
			}
			ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
			defer cancel()
			if got, err := w.tier.Mechanisms(ctx); (err != nil) != c.fails || !slices.Equal(got, c.want) {
				w.Errorf("%s: %v, %v", c.name, got, err)
			}
		})
	}
}
