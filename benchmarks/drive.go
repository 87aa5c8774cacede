package benchmarks

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Waits of a run, each of which ends it in the worst case.
const (
	drainTimeout = 30 * time.Second // after the last record was due, for what is not answered
	stallTimeout = 15 * time.Second // for consumers to which nothing comes any more
	// transactionTimeout ends a transaction that was given up: until then it keeps
	// what is behind it from those who read what is committed.
	transactionTimeout = 30 * time.Second
	startDelay         = 50 * time.Millisecond
)

const maxLatency = 10 * time.Minute

// record takes a latency in microseconds.
func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(d, time.Microsecond), maxLatency).Microseconds())
}

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, maxLatency.Microseconds(), 3) }

func millis(us int64) float64 { return float64(us) / 1000 }

// Latency is in milliseconds from when a record was due.
type Latency struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p99_9"`
	Max   float64 `json:"max"`
}

func latencyOf(h *hdrhistogram.Histogram) Latency {
	q := func(p float64) float64 { return millis(h.ValueAtQuantile(p)) }
	return Latency{Count: h.TotalCount(), P50: q(50), P90: q(90), P99: q(99), P999: q(99.9), Max: millis(h.Max())}
}

// Second is a part of a run, by when its records were due.
type Second struct {
	At      int     `json:"at"` // since the end of the warm-up
	Records int64   `json:"records"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
}

// StreamResult is what came of one stream in one run.
type StreamResult struct {
	Stream      string   `json:"stream"`
	Rate        Rate     `json:"rate"`                             // asked for
	Achieved    float64  `json:"achieved"`                         // records a second
	MBPerSecond float64  `json:"mb_per_second"`                    // of payload
	Saturated   bool     `json:"saturated"`                        // it achieved less than 99 % of the rate
	Produce     Latency  `json:"produce_ms"`                       // until acknowledged, or until the commit was
	EndToEnd    Latency  `json:"end_to_end_ms"`                    // until a consumer had it; all consumers together
	Seconds     []Second `json:"seconds,omitempty"`                // produce
	CatchUp     float64  `json:"catch_up_s,omitempty"`             // until the slowest consumer had the backlog
	CatchUpRate float64  `json:"catch_up_mb_per_second,omitempty"` // of the slowest
	Acked       int64    `json:"acknowledged"`                     // warm-up and backlog included
	Errors      int64    `json:"errors"`                           // records refused, or not answered in time; their waiting counts as latency
	FirstError  string   `json:"first_error,omitempty"`
	Missing     int      `json:"missing"` // acknowledged, and not delivered to a consumer while there was progress
	Doubled     int      `json:"doubled"`
	Changed     int      `json:"changed"`

	bytes             int64 // acknowledged
	delivered         int64 // bytes, to all consumers
	produce, endToEnd *hdrhistogram.Histogram
}

// recorder collects a stream's acknowledgements.
type recorder struct {
	start, from, to time.Time // of the clock and of the measured part
	size            int64

	mu          sync.Mutex
	acked       []set // by lane
	count       int64
	errors      int64
	firstError  error
	within      int64 // acknowledged of those due in the measured part
	all         *hdrhistogram.Histogram
	first, last *hdrhistogram.Histogram // both ends of the measured part, a tenth each
	seconds     []*hdrhistogram.Histogram
	lastAck     time.Time
}

func newRecorder(lanes int, size int64, start, from, to time.Time) *recorder {
	return &recorder{
		start: start, from: from, to: to, size: size, acked: make([]set, lanes),
		all: newHistogram(), first: newHistogram(), last: newHistogram(),
	}
}

func (r *recorder) done(lane uint32, number int, due, now time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.errors++
		if r.firstError == nil {
			r.firstError = err
		}
	} else {
		r.acked[lane].add(number)
		r.count++
		r.lastAck = now
	}
	if due.Before(r.from) {
		return
	}
	if err == nil {
		r.within++
	}
	took := now.Sub(due)
	record(r.all, took)
	if whole := r.to.Sub(r.from); whole > 0 {
		end := min(whole/2, max(whole/10, time.Second)) // not shorter than a linger
		switch at := due.Sub(r.from); {
		case at < end:
			record(r.first, took)
		case at >= whole-end:
			record(r.last, took)
		}
	}
	if i := int(due.Sub(r.from) / time.Second); i < maxSeconds {
		for len(r.seconds) <= i {
			r.seconds = append(r.seconds, hdrhistogram.New(1, maxLatency.Microseconds(), 2))
		}
		record(r.seconds[i], took)
	}
}

// maxSeconds bounds the series of a run: longer ones show their first part.
const maxSeconds = 3600

// noise is the growth of latency that says nothing about saturation.
const noise = 100 * time.Millisecond

// fullShare is what a target has to achieve of the rate not to be saturated.
const fullShare = 0.99

// achieved is the rate at which records were really taken. Who keeps up has the
// same latency at the end as at the beginning; who does not has a queue, and
// the latency grows by what the queue does: so much longer the same records
// would have taken. Counting answers within the window instead would blame
// a linger for the answers that it moves over the window's end. The tenth
// percentile of each end is compared: a queue moves it, a pause does not.
func (r *recorder) achieved() float64 {
	whole := r.to.Sub(r.from)
	growth := time.Duration(r.last.ValueAtQuantile(10)-r.first.ValueAtQuantile(10)) * time.Microsecond
	if growth < noise {
		growth = 0
	}
	return float64(r.within) / (whole + growth).Seconds()
}

// reader is one consumer of one stream.
type reader struct {
	receiver receiver

	mu       sync.Mutex
	book     ledger
	endToEnd *hdrhistogram.Histogram
	got      int64
	bytes    int64
	began    time.Time
	backlog  int // records; caughtUp is when the last of them came
	caughtUp time.Time
	failed   error
}

func (r *reader) consume(ctx context.Context, from time.Time, backlogLane uint32) {
	for ctx.Err() == nil {
		got, err := r.receiver.Poll(ctx)
		now := time.Now()
		r.mu.Lock()
		if err != nil {
			r.failed = err
		}
		for _, v := range got {
			lane, due, ok := r.book.take(v)
			if !ok {
				continue
			}
			r.got++
			r.bytes += int64(len(v))
			if lane == backlogLane {
				if r.book.seen[lane].count == r.backlog {
					r.caughtUp = now
				}
			} else if !due.Before(from) {
				record(r.endToEnd, now.Sub(due))
			}
		}
		r.mu.Unlock()
		if err != nil {
			sleepUntil(ctx, now.Add(100*time.Millisecond)) // the client goes on trying, as an application would
		}
	}
}

// flow is a stream in a run.
type flow struct {
	Stream
	topic   string
	senders []sender // one for each producer, or the shared one
	plan    plan
	rec     *recorder
	readers []*reader
	from    offsets
}

func (f *flow) backlogLane() uint32 { return uint32(f.Producers) }

// run is one target's turn in one round.
type run struct {
	target Target
	client string
	work   Workload
	flows  []*flow
	id     uint32
	values *values
	admin  *kadm.Client

	sends, late atomic.Int64
}

// drive produces and consumes as the workload says. An error means that the run
// could not take place; what went wrong with single records is in the results.
func (r *run) drive(ctx context.Context, txID string) (out []StreamResult, gen Generator, err error) {
	var closers []func()
	defer func() {
		for i := len(closers) - 1; i >= 0; i-- {
			closers[i]()
		}
	}()
	var first sender
	for _, f := range r.flows {
		if f.from, err = endOffsets(ctx, r.admin, f.topic); err != nil {
			return nil, gen, err
		}
		for p := range f.Producers {
			if r.work.OneClient && first != nil {
				f.senders = append(f.senders, first)
				continue
			}
			o := sendOptions{linger: time.Duration(f.Linger), roundRobin: f.Spread == "round-robin", maxRecord: int(f.Size)}
			if f.Transaction > 0 {
				o.transactional = fmt.Sprintf("%s-%s-%d", txID, f.Name, p)
			}
			s, err := newSender(r.client, r.target, o)
			if err != nil {
				return nil, gen, err
			}
			closers = append(closers, s.Close)
			f.senders = append(f.senders, s)
			first = s
		}
	}
	idle, err := r.holdConnections(ctx)
	closers = append(closers, idle)
	if err != nil {
		return nil, gen, err
	}
	backlog := 0
	if r.work.Backlog > 0 && len(r.flows) > 0 {
		if backlog, err = r.writeBacklog(ctx, r.flows[0]); err != nil {
			return nil, gen, err
		}
	}
	whole := r.work.WarmUp.seconds() + r.work.Duration.seconds()
	start := time.Now().Add(startDelay)
	from, to := start.Add(time.Duration(r.work.WarmUp)), start.Add(time.Duration(whole*float64(time.Second)))
	consuming, stopConsuming := context.WithCancel(ctx)
	var consumers sync.WaitGroup
	defer consumers.Wait()
	defer stopConsuming()
	for i, f := range r.flows {
		f.plan = f.Stream.plan(to.Sub(start))
		f.rec = newRecorder(f.Producers, int64(f.Size), start, from, to)
		for range f.Consumers {
			rd := &reader{book: ledger{run: r.id, seen: make([]set, f.Producers+1)}, endToEnd: newHistogram(), began: time.Now()}
			if i == 0 {
				rd.backlog = backlog
			}
			if rd.receiver, err = newReceiver(r.client, r.target, f.topic, f.from, f.Transaction > 0); err != nil {
				return nil, gen, err
			}
			closers = append(closers, rd.receiver.Close)
			f.readers = append(f.readers, rd)
		}
	}
	for _, f := range r.flows {
		for _, rd := range f.readers {
			consumers.Go(func() { rd.consume(consuming, from, f.backlogLane()) })
		}
	}

	sending, stopSending := context.WithCancel(ctx)
	defer stopSending()
	if to.After(from) {
		timer := time.AfterFunc(time.Until(to)+drainTimeout, stopSending)
		defer timer.Stop()
	}
	var producers sync.WaitGroup
	watched := make(chan Generator, 1)
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	go func() {
		until := to
		if !to.After(from) {
			until = start.Add(24 * time.Hour) // as long as it takes: stopWatching ends it
		}
		watched <- watchGenerator(watching, from, until)
	}()
	for _, f := range r.flows {
		for lane := range f.Producers {
			producers.Go(func() { r.produce(sending, f, lane, start) })
		}
	}
	producers.Wait()
	r.awaitDelivery(ctx)
	if !to.After(from) {
		stopWatching()
	}
	gen = <-watched
	gen.Sends, gen.LateSends = int(r.sends.Load()), int(r.late.Load())
	gen.judge()
	stopConsuming()
	consumers.Wait()
	for _, f := range r.flows {
		out = append(out, f.result(start))
	}
	return out, gen, ctx.Err()
}

// produce sends a lane's share of a stream: every so-manieth record of the plan.
func (r *run) produce(ctx context.Context, f *flow, lane int, start time.Time) {
	s := f.senders[lane]
	tx := f.Transaction
	var open []held // of the transaction, not committed yet
	var answered sync.WaitGroup
	var mu sync.Mutex // guards failed
	var failed error
	heldUp := false // behind schedule because the target did not take records
	inTx := 0
	commit := func() {
		err := s.Commit(ctx)
		answered.Wait()
		now := time.Now()
		mu.Lock()
		if err == nil {
			err = failed
		}
		failed = nil
		mu.Unlock()
		for _, h := range open {
			f.rec.done(uint32(lane), h.number, h.due, now, err)
		}
		open, inTx, heldUp = open[:0], 0, true
	}
	for i := lane; i < f.plan.records; i += f.Producers {
		due := start
		if f.plan.due != nil {
			due = start.Add(f.plan.due(i))
			sleepUntil(ctx, due)
		} else if now := time.Now(); now.After(start) {
			due = now
		}
		if ctx.Err() != nil {
			r.unsent(f, lane, i, start)
			break
		}
		if tx > 0 && inTx == 0 {
			if err := s.Begin(); err != nil {
				f.rec.done(uint32(lane), i, due, time.Now(), err)
				continue
			}
		}
		if lag := time.Since(due); lag < lateAfter {
			heldUp = false
		} else if !heldUp && f.plan.due != nil && !due.Before(f.rec.from) {
			r.late.Add(1)
		}
		if !due.Before(f.rec.from) {
			r.sends.Add(1)
		}
		if s.Full() {
			heldUp = true
		}
		value := r.values.make(int(f.Size), r.id, uint32(lane), i, due)
		answered.Add(1)
		s.Send(ctx, f.topic, value, func(err error) {
			defer answered.Done()
			switch {
			case tx == 0:
				f.rec.done(uint32(lane), i, due, time.Now(), err)
			case err != nil:
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
		if tx > 0 {
			open = append(open, held{i, due})
			if inTx++; inTx == tx {
				commit()
			}
		}
	}
	if tx > 0 && inTx > 0 && ctx.Err() == nil {
		commit()
	}
	answered.Wait()
	if tx > 0 {
		for _, h := range open {
			f.rec.done(uint32(lane), h.number, h.due, time.Now(), context.Cause(ctx))
		}
	}
}

// held is a record of an open transaction.
type held struct {
	number int
	due    time.Time
}

var errUnsent = errors.New("not taken by the client in time")

// unsent counts what was due and never left as errors, with the time that it
// has waited: leaving it out would flatter the slowest.
func (r *run) unsent(f *flow, lane, from int, start time.Time) {
	now := time.Now()
	for i := from; i < f.plan.records; i += f.Producers {
		due := now
		if f.plan.due != nil {
			due = start.Add(f.plan.due(i))
		}
		if due.After(now) {
			return
		}
		f.rec.done(uint32(lane), i, due, now, errUnsent)
	}
}

// awaitDelivery waits until each consumer has what was acknowledged, as long as
// something comes.
func (r *run) awaitDelivery(ctx context.Context) {
	progress, last, patience := time.Now(), int64(-1), stallTimeout
	if slices.ContainsFunc(r.flows, func(f *flow) bool { return f.Transaction > 0 }) {
		patience += transactionTimeout
	}
	for ctx.Err() == nil {
		missing, got := 0, int64(0)
		for _, f := range r.flows {
			for _, rd := range f.readers {
				rd.mu.Lock()
				got += rd.got
				missing += f.missing(rd) + max(0, rd.backlog-rd.book.seen[f.backlogLane()].count)
				rd.mu.Unlock()
			}
		}
		if got != last {
			progress, last = time.Now(), got
		}
		if missing == 0 || time.Since(progress) > patience {
			return
		}
		sleepUntil(ctx, time.Now().Add(5*time.Millisecond))
	}
}

// missing needs the reader's lock.
func (f *flow) missing(rd *reader) (n int) {
	f.rec.mu.Lock()
	defer f.rec.mu.Unlock()
	for lane := range f.rec.acked {
		n += f.rec.acked[lane].without(&rd.book.seen[lane])
	}
	return n
}

func (f *flow) result(start time.Time) StreamResult {
	rec := f.rec
	rec.mu.Lock()
	out := StreamResult{
		Stream: f.Name, Rate: f.Rate, Acked: rec.count, Errors: rec.errors,
		Produce: latencyOf(rec.all), produce: rec.all, bytes: rec.count * rec.size,
	}
	if rec.firstError != nil {
		out.FirstError = rec.firstError.Error()
	}
	switch {
	case f.Rate == MaxRate && rec.lastAck.After(start):
		out.Achieved = float64(rec.count) / rec.lastAck.Sub(start).Seconds()
	case f.Rate > 0:
		out.Achieved = rec.achieved()
		due := 0 // of the measured part
		for i := range f.plan.records {
			if f.plan.due(f.plan.records-1-i) < rec.from.Sub(start) {
				break
			}
			due++
		}
		out.Saturated = out.Achieved < fullShare*float64(due)/rec.to.Sub(rec.from).Seconds()
	}
	out.MBPerSecond = out.Achieved * float64(rec.size) / 1e6
	for i, h := range rec.seconds {
		out.Seconds = append(out.Seconds, Second{At: i, Records: h.TotalCount(), P50: millis(h.ValueAtQuantile(50)), P99: millis(h.ValueAtQuantile(99))})
	}
	rec.mu.Unlock()
	out.endToEnd = newHistogram()
	for _, rd := range f.readers {
		rd.mu.Lock()
		out.endToEnd.Merge(rd.endToEnd)
		out.Missing += f.missing(rd)
		out.Doubled += rd.book.doubled
		out.Changed += rd.book.changed
		out.delivered += rd.bytes
		if rd.backlog > 0 {
			out.Missing += rd.backlog - rd.book.seen[f.backlogLane()].count
			if s := rd.caughtUp.Sub(rd.began).Seconds(); !rd.caughtUp.IsZero() && s > out.CatchUp {
				out.CatchUp = s
				out.CatchUpRate = float64(rd.backlog) * float64(f.Size) / 1e6 / s
			}
		}
		if rd.failed != nil && out.FirstError == "" {
			out.FirstError = "consuming: " + rd.failed.Error()
		}
		rd.mu.Unlock()
	}
	out.EndToEnd = latencyOf(out.endToEnd)
	return out
}

// writeBacklog fills a topic as fast as it takes it, unmeasured.
func (r *run) writeBacklog(ctx context.Context, f *flow) (int, error) {
	s := f.senders[0]
	if f.Transaction > 0 {
		own, err := newSender(r.client, r.target, sendOptions{maxRecord: int(f.Size)})
		if err != nil {
			return 0, err
		}
		defer own.Close()
		s = own
	}
	n := int(int64(r.work.Backlog) / int64(f.Size))
	var answered sync.WaitGroup
	var failure atomic.Pointer[error]
	for i := range n {
		if ctx.Err() != nil || failure.Load() != nil {
			break
		}
		answered.Add(1)
		s.Send(ctx, f.topic, r.values.make(int(f.Size), r.id, f.backlogLane(), i, time.Now()), func(err error) {
			if err != nil {
				failure.CompareAndSwap(nil, &err)
			}
			answered.Done()
		})
	}
	answered.Wait()
	if err := failure.Load(); err != nil {
		return 0, fmt.Errorf("writing the backlog: %w", *err)
	}
	return n, ctx.Err()
}

// holdConnections opens the idle connections: each asks once for the versions,
// so that a proxy has read something, and then waits.
func (r *run) holdConnections(ctx context.Context) (release func(), err error) {
	var mu sync.Mutex
	var held []net.Conn
	release = func() {
		for _, c := range held {
			_ = c.Close()
		}
	}
	const atOnce = 16
	var dialing sync.WaitGroup
	next := atomic.Int64{}
	for range min(atOnce, r.work.Connections) {
		dialing.Go(func() {
			for int(next.Add(1)) <= r.work.Connections {
				c, dialErr := r.idleConnection(ctx)
				mu.Lock()
				if dialErr != nil {
					err = fmt.Errorf("%s: idle connection %d of %d: %w; are open files (ulimit -n), or the target's own limits, too few?", r.target.Name, len(held)+1, r.work.Connections, dialErr)
					mu.Unlock()
					next.Add(maxIdle)
					return
				}
				held = append(held, c)
				mu.Unlock()
			}
		})
	}
	dialing.Wait()
	return release, err
}

func (r *run) idleConnection(ctx context.Context) (c net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	addr := r.target.Bootstrap[0]
	if r.target.TLS != nil {
		c, err = (&tls.Dialer{Config: r.target.TLS}).DialContext(ctx, "tcp", addr)
	} else {
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, err
	}
	req := kmsg.NewPtrApiVersionsRequest()
	frame := kmsg.NewRequestFormatter(kmsg.FormatterClientID("sluice-bench")).AppendRequest(nil, req, 1)
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	if _, err = c.Write(frame); err == nil {
		var size [4]byte
		if _, err = io.ReadFull(c, size[:]); err == nil {
			_, err = io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(size[:])))
		}
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}

func endOffsets(ctx context.Context, admin *kadm.Client, topic string) (offsets, error) {
	listed, err := admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("asking for the end of %s: %w", topic, err)
	}
	out := make(offsets)
	listed.Each(func(o kadm.ListedOffset) { out[o.Partition] = o.Offset })
	return out, nil
}
