package integration

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/sluice-kafka/sluice/harness"
)

// heldStore is a replica whose PUTs may be held.
type heldStore struct {
	*sluice
	faults *harness.S3Faults
	store  string // for other replicas
	held   atomic.Int64
}

func startHeldStore(t *testing.T, k *harness.Kafka, limits string) *heldStore {
	t.Helper()
	s3 := harness.StartS3(t)
	x := &heldStore{faults: harness.StartS3Faults(t, s3)}
	through := *s3
	through.Endpoint = x.faults.Endpoint
	x.store = s3Store(&through, "held")
	x.sluice = startSluice(t, replica{Kafka: k.Bootstrap(), Store: x.store, Extra: limits})
	return x
}

// hold takes what comes from now on and keeps it until it is let go.
func (x *heldStore) hold() (letGo func()) {
	gate := make(chan struct{})
	x.faults.Vary(func() harness.S3Fault {
		x.held.Add(1)
		<-gate
		return harness.S3Fault{}
	})
	return func() {
		x.faults.Vary(nil)
		close(gate)
	}
}

// transactor speaks the transactional protocol in chosen versions, and says
// what the broker says.
type transactor struct {
	t       *testing.T
	ctx     context.Context
	cl      *kgo.Client
	place   place
	produce int16
	txn     string
	timeout time.Duration
	id      int64
	epoch   int16
	next    int32
}

func (x *transactor) named(code int16) string {
	if err := kerr.ErrorForCode(code); err != nil {
		return err.(*kerr.Error).Message
	}
	return "NONE"
}

// init takes the transactional id for itself, however long the coordinator is
// busy with who had it.
func (x *transactor) init() {
	x.t.Helper()
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID, req.TransactionTimeoutMillis, req.ProducerID, req.ProducerEpoch = &x.txn, int32(x.timeout.Milliseconds()), -1, -1
	eventually(x.t, "a producer id", func() (bool, string) {
		resp, err := req.RequestWith(x.ctx, x.cl)
		if err != nil {
			return false, err.Error()
		}
		x.id, x.epoch, x.next = resp.ProducerID, resp.ProducerEpoch, 0
		return resp.ErrorCode == 0, x.named(resp.ErrorCode)
	})
}

// begin adds the partition to the transaction, where Produce does not.
func (x *transactor) begin() {
	x.t.Helper()
	if x.produce >= 12 {
		return
	}
	req := kmsg.NewPtrAddPartitionsToTxnRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch = x.txn, x.id, x.epoch
	at := kmsg.NewAddPartitionsToTxnRequestTopic()
	at.Topic, at.Partitions = x.place.topic, []int32{0}
	req.Topics = append(req.Topics, at)
	eventually(x.t, "a partition in the transaction", func() (bool, string) {
		resp, err := req.RequestWith(x.ctx, x.cl)
		if err != nil {
			return false, err.Error()
		}
		code := resp.Topics[0].Partitions[0].ErrorCode
		return code == 0, x.named(code)
	})
}

// write sends the producer's next batch.
func (x *transactor) write() string {
	req := producing(x.place, x.txn, batchOf(x.id, x.epoch, x.next, true, worthwhile, worthwhile))
	req.TimeoutMillis = 180_000 // a third of it, too, has to be longer than a coordinator takes to notice
	resp, err := x.cl.Broker(int(x.place.node)).Request(x.ctx, req)
	if err != nil {
		return err.Error()
	}
	if got := resp.GetVersion(); got != x.produce {
		return fmt.Sprintf("asked in v%d", got)
	}
	code := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode
	if code == 0 {
		x.next += 2
	}
	return x.named(code)
}

func (x *transactor) end(commit bool) {
	x.t.Helper()
	req := kmsg.NewPtrEndTxnRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Commit = x.txn, x.id, x.epoch, commit
	eventually(x.t, "the end of the transaction", func() (bool, string) {
		resp, err := req.RequestWith(x.ctx, x.cl)
		if err != nil {
			return false, err.Error()
		}
		return resp.ErrorCode == 0, x.named(resp.ErrorCode)
	})
}

// A batch whose object takes its time comes to the broker after its producer
// was fenced, or its transaction has ended. The broker says of its placeholder
// what it says of any batch that late, in both flows of transactions, and no
// reader sees anything of it.
func TestLateBatchesAreJudgedAsAnyOther(t *testing.T) {
	lateBatches(t, "late", []int16{12}, lateEvents[:1])
}

func TestLongLateBatchesAreJudgedAsAnyOther(t *testing.T) {
	harness.Long(t)
	lateBatches(t, "long-late", []int16{11, 12, 13}, lateEvents)
}

// lateEvent is what happens while a batch is on its way.
type lateEvent struct {
	name    string
	timeout time.Duration // of the transaction
	happens func(old *transactor)
	left    int // records that readers of committed ones see
}

var lateEvents = []lateEvent{
	{"a newer producer has its id", time.Minute, func(old *transactor) {
		newer := *old
		newer.cl = client(old.t, old.place.bootstrap)
		newer.init()
	}, 0},
	{"its transaction was aborted over time", time.Second, func(*transactor) {}, 0},
	{"its transaction was committed", time.Minute, func(old *transactor) { old.end(true) }, 2},
	{"its transaction was aborted", time.Minute, func(old *transactor) { old.end(false) }, 0},
}

func lateBatches(t *testing.T, prefix string, versions []int16, events []lateEvent) {
	k := sharedKafka(t)
	s := startHeldStore(t, k, "limits: { put_timeout: 1m }\n")
	direct := kadm.NewClient(client(t, bootstrapOf(k)))
	most := newest(t, bootstrapOf(k), 0)
	for i := range versions {
		versions[i] = min(versions[i], most)
	}
	for _, version := range slices.Compact(versions) {
		for i, event := range events {
			t.Run(fmt.Sprintf("Produce v%d, %s", version, event.name), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
				defer cancel()
				said := make(map[string]string)
				for _, at := range []struct{ name, bootstrap string }{{"direct", bootstrapOf(k)}, {"control", s.Bootstrap}, {"telemetry", s.Bootstrap}} {
					p := place{name: at.name, bootstrap: at.bootstrap, topic: fmt.Sprintf("%s-%d-%d-%s", prefix, version, i, at.name)}
					createTopic(t, p.bootstrap, p.topic, 1, "retention.ms", "-1")
					most := kversion.Stable()
					most.SetMaxKeyVersion(0, version)
					if version < 12 { // before KIP-890
						most.SetMaxKeyVersion(22, 4)
						most.SetMaxKeyVersion(26, 3)
					}
					most.SetMaxKeyVersion(24, 3) // later ones are the brokers'
					x := &transactor{t: t, ctx: ctx, cl: client(t, p.bootstrap, kgo.MaxVersions(most)), produce: version, txn: p.topic, timeout: event.timeout}
					lead := func() (bool, string) {
						m, err := kadm.NewClient(x.cl).Metadata(ctx, p.topic)
						if err != nil {
							return false, err.Error()
						}
						p.id, p.node = m.Topics[p.topic].ID, m.Topics[p.topic].Partitions[0].Leader
						x.place = p
						return p.node >= 0, ""
					}
					eventually(t, "it has a leader", lead)
					if diskless := p.node&disklessBit != 0; diskless != (at.name == "telemetry") {
						t.Fatalf("%s is led by %d", p.topic, p.node)
					}
					x.init()
					x.begin()
					eventually(t, "the first batch is written", func() (bool, string) {
						said := x.write()
						if said != "NONE" {
							_, _ = lead() // a busy broker may lose it
						}
						return said == "NONE", said
					})

					late := func() string { return x.write() }
					if at.name == "telemetry" {
						held, letGo := s.held.Load(), s.hold()
						answer := make(chan string, 1)
						go func() { answer <- x.write() }()
						eventually(t, "its object is held", func() (bool, string) { return s.held.Load() > held, "" })
						late = func() string {
							letGo()
							return <-answer
						}
					}
					event.happens(x)
					stable := int64(0)
					eventually(t, "the transaction has ended", func() (bool, string) {
						committed, err := direct.ListCommittedOffsets(ctx, p.topic)
						if err != nil {
							return false, err.Error()
						}
						stable = committed[p.topic][0].Offset
						return stable >= 3, fmt.Sprintf("the last stable offset is %d", stable)
					})
					said[at.name] = late()
					// So it is told while the coordinator has not yet noted the end.
					eventually(t, "the coordinator knows", func() (bool, string) {
						if said[at.name] == "NOT_ENOUGH_REPLICAS" {
							said[at.name] = x.write()
						}
						return said[at.name] != "NOT_ENOUGH_REPLICAS", ""
					})
					end, err := direct.ListEndOffsets(ctx, p.topic)
					if err != nil {
						t.Fatal(err)
					}
					if got := end[p.topic][0].Offset; said[at.name] != "NONE" && got != stable {
						t.Errorf("%s: the log has grown from %d to %d", at.name, stable, got)
					}
					for name, bootstrap := range map[string]string{"direct": bootstrapOf(k), "through sluice": s.Bootstrap} {
						if n := visible(t, bootstrap, p.topic, stable); n != event.left {
							t.Errorf("%s: %d records are visible %s, want %d", at.name, n, name, event.left)
						}
					}
				}
				if said["direct"] == "NONE" {
					t.Error("the broker takes it: this compares nothing")
				}
				for name, got := range said {
					if got != said["direct"] {
						t.Errorf("%s: %s, and direct: %s", name, got, said["direct"])
					}
				}
				t.Logf("%s", said["direct"])
			})
		}
	}
}

// visible counts what a reader of committed records sees before an offset.
func visible(t *testing.T, bootstrap, topic string, end int64) (n int) {
	t.Helper()
	cl := client(t, bootstrap, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		for _, r := range fetches.Records() {
			if !r.Attrs.IsControl() {
				n++
			}
			if r.Offset >= end-1 {
				return n
			}
		}
	}
}

// A transaction lasts from before an outage of the store to after it: some of
// its batches are in objects and some inline, and it is still one.
func TestATransactionLongerThanAnOutage(t *testing.T) {
	k := sharedKafka(t)
	s := startHeldStore(t, k, "limits: { put_timeout: 500ms }\n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	topics := []string{"outlasts-control", "outlasts-telemetry"}
	for _, topic := range topics {
		createTopic(t, s.Bootstrap, topic, 2, "retention.ms", "-1")
	}
	type open struct {
		cl      *kgo.Client
		name    string
		records []*kgo.Record
	}
	var both []*open
	for _, name := range []string{"commit", "abort"} {
		o := &open{name: name, cl: client(t, s.Bootstrap, kgo.TransactionalID("outlasts-"+name), kgo.RecordPartitioner(kgo.ManualPartitioner()))}
		if err := o.cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		both = append(both, o)
	}
	write := func() {
		t.Helper()
		for _, o := range both {
			for range 4 {
				var batch []*kgo.Record
				for _, topic := range topics {
					for partition := range int32(2) {
						batch = append(batch, &kgo.Record{Topic: topic, Partition: partition, Key: fmt.Appendf(nil, "%s-%d", o.name, len(o.records)/4), Value: worthwhile})
					}
				}
				if err := o.cl.ProduceSync(ctx, batch...).FirstErr(); err != nil {
					t.Fatal(err)
				}
				o.records = append(o.records, batch...)
			}
		}
	}
	stored := func() float64 { return s.metric(t, "sluice_diskless_stored_batches_total") }
	inline := func() float64 {
		return s.metric(t, "sluice_diskless_inline_batches_total", "reason", "unavailable")
	}
	write()
	if stored() == 0 || inline() > 0 {
		t.Fatalf("before the outage %v batches are in objects and %v inline", stored(), inline())
	}
	s.faults.Set(harness.S3Fault{Status: http.StatusServiceUnavailable, Code: "SlowDown"})
	write()
	if inline() == 0 {
		t.Fatal("no batch went inline")
	}
	s.faults.Set(harness.S3Fault{})
	eventually(t, "batches go to objects again", func() (bool, string) {
		before := stored()
		write()
		return stored() > before, ""
	})
	for _, o := range both {
		if err := o.cl.EndTransaction(ctx, kgo.TransactionEndTry(o.name == "commit")); err != nil {
			t.Fatal(err)
		}
	}
	cold := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s.store})
	for name, bootstrap := range map[string]string{"from memory": s.Bootstrap, "from the store": cold.Bootstrap} {
		for level, want := range map[kgo.IsolationLevel]int{kgo.ReadCommitted(): len(both[0].records), kgo.ReadUncommitted(): len(both[0].records) + len(both[1].records)} {
			read := consumed(t, bootstrap, want, []kgo.Opt{kgo.FetchIsolationLevel(level)}, topics...)
			next := make(map[string]int)
			for _, r := range read {
				var of string
				var n int
				if _, err := fmt.Sscanf(string(r.Key), "%6s-%d", &of, &n); err != nil {
					of = "abort"
					if _, err := fmt.Sscanf(string(r.Key), "abort-%d", &n); err != nil {
						t.Fatal(err)
					}
				}
				at := fmt.Sprint(of, r.Topic, r.Partition)
				if n != next[at] || string(r.Value) != string(worthwhile) {
					t.Fatalf("%s: %s of %s-%d is read when %d is due", name, r.Key, r.Topic, r.Partition, next[at])
				}
				next[at]++
			}
			if len(read) != want {
				t.Errorf("%s: %d records, want %d", name, len(read), want)
			}
		}
	}
}
