package integration

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/admin"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// patience bounds every wait for a condition.
const patience = 60 * time.Second

// eventually waits for a condition; what it says about its state is shown when
// it does not come.
func eventually(t testing.TB, what string, ok func() (bool, string)) {
	t.Helper()
	bound := patience
	if strings.HasPrefix(t.Name(), "TestLong") {
		bound *= 3 // these start whole programs: on a busy machine a rebalance alone takes most of a minute
	}
	deadline := time.Now().Add(bound)
	for {
		good, state := ok()
		if good {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v; %s", what, bound, state)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// workload says what a load consists of.
type workload struct {
	Bootstrap  string
	Topics     []string
	Partitions int32 // of each topic; 0 is 3
	Size       int   // of a value; 0 is 1 KiB
	PerSecond  int   // records, all topics together; 0 is 300
	Opts       []kgo.Opt
}

// load is producers under way, one for each topic, so that each topic's stream
// stands for an application of its own.
type load struct {
	t       testing.TB
	History *history.History
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu     sync.Mutex
	acked  map[string]int
	slow   map[string]time.Duration // the longest wait for an acknowledgement
	last   map[string]time.Time     // the last acknowledgement
	gaps   map[string]time.Duration // the longest time between two
	failed []error
}

// startLoad produces to all partitions in turn until stop.
func startLoad(t testing.TB, h *history.History, w workload) *load {
	t.Helper()
	if w.Partitions == 0 {
		w.Partitions = 3
	}
	if w.Size == 0 {
		w.Size = 1 << 10
	}
	if w.PerSecond == 0 {
		w.PerSecond = 300
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: t, History: h, cancel: cancel, acked: make(map[string]int), slow: make(map[string]time.Duration)}
	l.freshGaps()
	t.Cleanup(func() { cancel(); l.wg.Wait() })
	for _, topic := range w.Topics {
		cl := client(t, w.Bootstrap, append([]kgo.Opt{
			kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(10 * time.Millisecond), kgo.RecordRetries(1 << 30),
			kgo.AlwaysRetryEOF(), // a balancer's client sees no more of a replica that is killed
		}, w.Opts...)...)
		l.wg.Go(func() {
			defer cl.Close()
			tick := time.NewTicker(time.Second * time.Duration(len(w.Topics)) / time.Duration(w.PerSecond))
			defer tick.Stop()
			for i := int32(0); ; i++ {
				select {
				case <-tick.C:
				case <-ctx.Done():
					flush, cancel := context.WithTimeout(context.Background(), patience)
					defer cancel()
					if err := cl.Flush(flush); err != nil {
						l.fail(fmt.Errorf("%s: not all records were acknowledged at the end: %w", topic, err))
					}
					return
				}
				sent := time.Now()
				cl.Produce(context.Background(), h.Next(topic, i%w.Partitions, w.Size), func(r *kgo.Record, err error) {
					h.Acked(r, err)
					if err != nil {
						l.fail(fmt.Errorf("%s-%d: %w", r.Topic, r.Partition, err))
						return
					}
					l.mu.Lock()
					defer l.mu.Unlock()
					l.acked[topic]++
					l.slow[topic] = max(l.slow[topic], time.Since(sent))
					now := time.Now()
					l.gaps[topic] = max(l.gaps[topic], now.Sub(cmp.Or(l.last[topic], now)))
					l.last[topic] = now
				})
			}
		})
	}
	return l
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, err)
}

func (l *load) count(topic string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked[topic]
}

// freshGaps begins to measure gaps anew, from now on.
func (l *load) freshGaps() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for topic := range l.last {
		l.last[topic] = now
	}
	if l.last == nil {
		l.last = make(map[string]time.Time)
	}
	l.gaps = make(map[string]time.Duration)
}

// gap is the longest time without an acknowledgement.
func (l *load) gap(topic string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gaps[topic]
}

// awaitMore waits until n further records of each of the topics are
// acknowledged.
func (l *load) awaitMore(n int, topics ...string) {
	l.t.Helper()
	for _, topic := range topics {
		from := l.count(topic)
		eventually(l.t, fmt.Sprintf("%d more records of %s", n, topic), func() (bool, string) {
			got := l.count(topic) - from
			return got >= n, fmt.Sprintf("%d are acknowledged", got)
		})
	}
}

// stop ends the load; every record must have been acknowledged.
func (l *load) stop() {
	l.t.Helper()
	l.cancel()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.failed); n > 0 {
		l.t.Errorf("%d records were not acknowledged, first %v", n, l.failed[0])
	}
	l.t.Logf("acknowledged %v; the longest waits were %v", l.acked, l.slow)
}

// follower is a consumer that reads while others work.
type follower struct {
	t      testing.TB
	name   string
	cl     *kgo.Client
	h      *history.History
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	next map[history.Place]int64 // offset behind the last record read
	read map[string]int
	errs map[string]int
}

// follow reads topics from their start.
func follow(t testing.TB, h *history.History, name, bootstrap string, opts []kgo.Opt, topics ...string) *follower {
	t.Helper()
	cl := client(t, bootstrap, append([]kgo.Opt{
		kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(250 * time.Millisecond),
		kgo.KeepRetryableFetchErrors(), kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }),
	}, opts...)...)
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{t: t, name: name, cl: cl, h: h, cancel: cancel, next: make(map[history.Place]int64), read: make(map[string]int), errs: make(map[string]int)}
	f.wg.Go(func() {
		for {
			fetches := cl.PollFetches(ctx)
			if ctx.Err() != nil {
				return
			}
			f.mu.Lock()
			fetches.EachError(func(_ string, _ int32, err error) { f.errs[err.Error()]++ })
			for _, r := range fetches.Records() {
				h.Read(name, r)
				f.next[history.Place{Topic: r.Topic, Partition: r.Partition}] = r.Offset + 1
				f.read[r.Topic]++
			}
			f.mu.Unlock()
		}
	})
	t.Cleanup(f.end)
	return f
}

func (f *follower) end() {
	f.cancel()
	f.wg.Wait()
	f.cl.Close()
}

func (f *follower) count(topic string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read[topic]
}

// sawError reports whether a fetch ended with an error that contains text.
func (f *follower) sawError(text string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for e := range f.errs {
		if strings.Contains(e, text) {
			return true
		}
	}
	return false
}

// toEnd waits until the follower has read everything that the brokers hold now,
// ends it and judges it.
func (f *follower) toEnd(brokers string, topics ...string) {
	f.t.Helper()
	f.reach(endOffsets(f.t, brokers, topics...))
}

// reach reads on to these ends, and judges what was read.
func (f *follower) reach(ends map[history.Place]int64) {
	f.t.Helper()
	eventually(f.t, f.name+" reads to the end", func() (bool, string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for place, end := range ends {
			if f.next[place] < end {
				return false, fmt.Sprintf("%s-%d is at %d of %d; errors so far: %v", place.Topic, place.Partition, f.next[place], end, f.errs)
			}
		}
		return true, ""
	})
	f.end()
	judge(f.t, f.h, f.name)
}

func judge(t testing.TB, h *history.History, reader string) {
	t.Helper()
	found := h.Check(reader)
	for i, v := range found {
		if i == 10 {
			t.Errorf("and %d more", len(found)-i)
			break
		}
		t.Error(v)
	}
}

// readAll reads topics from start to end and judges what came.
func readAll(t testing.TB, h *history.History, name, bootstrap, brokers string, topics ...string) {
	t.Helper()
	follow(t, h, name, bootstrap, nil, topics...).toEnd(brokers, topics...)
}

// endOffsets asks the brokers themselves.
func endOffsets(t testing.TB, brokers string, topics ...string) map[history.Place]int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cl := client(t, brokers)
	defer cl.Close()
	listed, err := kadm.NewClient(cl).ListEndOffsets(ctx, topics...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	return placed(listed)
}

func placed(listed kadm.ListedOffsets) map[history.Place]int64 {
	ends := make(map[history.Place]int64)
	listed.Each(func(o kadm.ListedOffset) { ends[history.Place{Topic: o.Topic, Partition: o.Partition}] = o.Offset })
	return ends
}

// child is a replica in a process of its own.
type child struct {
	*harness.Sluice
	Admin string
	File  string
}

// serve starts a replica as `sluice serve` and waits until it is ready.
func serve(t testing.TB, r replica) *child {
	t.Helper()
	r = r.withDefaults(t)
	return serveFile(t, r.write(t), fmt.Sprintf("%s:%d", r.Host, r.Port+1))
}

func serveFile(t testing.TB, file, admin string) *child {
	t.Helper()
	c := &child{harness.ServeSluice(t, file), admin, file}
	eventually(t, "sluice is ready", func() (bool, string) {
		if ended, err := c.Ended(); ended {
			t.Fatalf("sluice ended: %v\n%s", err, c.Log(t))
		}
		code, h := readyz(admin)
		return code == http.StatusOK, fmt.Sprintf("%d %+v", code, h)
	})
	return c
}

// readyz returns the status, or 0 when nobody answers.
func readyz(addr string) (int, admin.Health) {
	c := http.Client{Timeout: 5 * time.Second}
	resp, err := c.Get("http://" + addr + "/readyz")
	if err != nil {
		return 0, admin.Health{}
	}
	defer resp.Body.Close()
	var h admin.Health
	_ = json.NewDecoder(resp.Body).Decode(&h)
	return resp.StatusCode, h
}

// scrape sums a metric of a replica's /metrics over all series with these
// labels, each written as name="value".
func scrape(t testing.TB, addr, name string, labels ...string) (sum float64) {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		series, value, ok := strings.Cut(s.Text(), " ")
		bare, has, _ := strings.Cut(series, "{")
		if ok && bare == name && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(has, l) }) {
			var v float64
			if _, err := fmt.Sscan(value, &v); err != nil {
				t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}
