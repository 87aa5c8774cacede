package integration

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/harness"
)

// configureShareGroup sets what is said of a share group as any tool does.
func configureShareGroup(t testing.TB, bootstrap, group string, configs ...string) {
	t.Helper()
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	res := kmsg.NewIncrementalAlterConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeGroupConfig, group
	for i := 0; i+1 < len(configs); i += 2 {
		c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		c.Name, c.Value = configs[i], &configs[i+1]
		res.Configs = append(res.Configs, c)
	}
	req.Resources = append(req.Resources, res)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := req.RequestWith(ctx, client(t, bootstrap))
	if err != nil || resp.Resources[0].ErrorCode != 0 {
		t.Fatalf("configuring group %s: %+v, %v", group, resp, err)
	}
}

// which tells a record from all others of a test.
func which(r *kgo.Record) string { return r.Topic + " " + text(r, false) }

// sharers are members of a share group. Each delivery is judged by verdict, and
// what was accepted is counted for each record.
type sharers struct {
	mu         sync.Mutex
	accepted   map[string]int
	rejected   map[string]int
	deliveries map[string]int // the highest count that was told
	errs       map[string]int
}

func newSharers() *sharers {
	return &sharers{accepted: make(map[string]int), rejected: make(map[string]int), deliveries: make(map[string]int), errs: make(map[string]int)}
}

// share runs members until what they have accepted and rejected is done.
func share(t testing.TB, bootstrap, group string, members int, topics []string, verdict func(*kgo.Record) kgo.AckStatus, done func(*sharers) bool) *sharers {
	t.Helper()
	s := newSharers()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all sync.WaitGroup
	for range members {
		cl := client(t, bootstrap, kgo.ShareGroup(group), kgo.ConsumeTopics(topics...), kgo.FetchMaxWait(250*time.Millisecond))
		all.Go(func() {
			defer cl.Close()
			for ctx.Err() == nil {
				fetches := cl.PollRecords(ctx, 50)
				s.mu.Lock()
				fetches.EachError(func(_ string, _ int32, err error) {
					if ctx.Err() == nil {
						s.errs[err.Error()]++
					}
				})
				for _, r := range fetches.Records() {
					at := which(r)
					s.deliveries[at] = max(s.deliveries[at], int(r.DeliveryCount()))
					v := verdict(r)
					r.Ack(v)
					switch v {
					case kgo.AckAccept:
						s.accepted[at]++
					case kgo.AckReject:
						s.rejected[at]++
					}
				}
				ended := done(s)
				s.mu.Unlock()
				if err := cl.FlushAcks(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("acknowledging: %v", err)
				}
				if ended {
					cancel()
				}
			}
		})
	}
	all.Wait()
	return s
}

// The members of a share group get every record, whatever the tier, those that
// they release again, and those that they reject no more.
func TestShareGroups(t *testing.T) {
	onAllTargets(t, func(t *testing.T, tg target) {
		topic := tg.topic("shares")
		tg.create(t, topic, 3)
		group := "sharing-" + topic
		configureShareGroup(t, tg.bootstrap, group, "share.auto.offset.reset", "earliest")
		const total = 180
		all := tg.fill(t, "lz4", topic, 3, total)
		number := func(r *kgo.Record) (n int) {
			if _, err := fmt.Sscan(string(r.Key), &n); err != nil {
				t.Errorf("key %q", r.Key)
			}
			return n
		}
		got := share(t, tg.bootstrap, group, 2, []string{topic}, func(r *kgo.Record) kgo.AckStatus {
			switch n := number(r); {
			case n%10 == 0 && r.DeliveryCount() == 1:
				return kgo.AckRelease
			case n%10 == 1:
				return kgo.AckReject
			default:
				return kgo.AckAccept
			}
		}, func(s *sharers) bool { return len(s.accepted)+len(s.rejected) >= total })
		for n, r := range all {
			at := which(r)
			wantAccepted, wantRejected := 1, 0
			if n%10 == 1 {
				wantAccepted, wantRejected = 0, 1
			}
			if got.accepted[at] != wantAccepted || got.rejected[at] != wantRejected {
				t.Errorf("record %d was accepted %d times and rejected %d times, want %d and %d", n, got.accepted[at], got.rejected[at], wantAccepted, wantRejected)
			}
			if want := 1 + (10-n%10)/10; got.deliveries[at] != want {
				t.Errorf("record %d was delivered for the %d. time at last, want %d.", n, got.deliveries[at], want)
			}
		}
		if len(got.accepted)+len(got.rejected) != total {
			t.Errorf("%d different records, %d were written", len(got.accepted)+len(got.rejected), total)
		}
		if len(got.errs) > 0 {
			t.Errorf("members met errors: %v", got.errs)
		}
	})
}

// A store that cannot be read for longer than a group's deliveries last takes
// nothing away from it: brokers archive what was acquired too often.
func TestLongShareGroupLosesNothingInAnOutage(t *testing.T) {
	harness.Long(t)
	const lock, deliveries = 2 * time.Second, 2
	k := harness.StartKafka(t, harness.KafkaOptions{Properties: map[string]string{
		"group.share.min.record.lock.duration.ms": "1000",
		"group.share.record.lock.duration.ms":     fmt.Sprint(lock.Milliseconds()),
		"group.share.delivery.count.limit":        fmt.Sprint(deliveries),
	}})
	s3 := harness.StartS3(t)
	network := harness.StartFaultProxy(t, strings.TrimPrefix(s3.Endpoint, "http://"))
	through := *s3
	through.Endpoint = "http://" + network.Addr
	writer := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(s3, "shares")})
	cold := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(&through, "shares")})
	const total = 300
	topics := []string{"outage-control", "outage-telemetry"}
	var all []*kgo.Record
	for _, topic := range topics {
		createTopic(t, writer.Bootstrap, topic, 3, "retention.ms", "-1")
	}
	eventually(t, "sluice knows the topic", func() (bool, string) {
		return writer.Cluster().Facts(t.Context(), topics[1]).Known, "not yet"
	})
	for _, topic := range topics {
		records := filled(topic, 3, total/2)
		franz{}.producer(t, writer.Bootstrap, "lz4")(records)
		all = append(all, records...)
	}
	if writer.metric(t, "sluice_diskless_stored_batches_total") == 0 {
		t.Fatal("nothing went to objects")
	}
	const group = "sharing-in-an-outage"
	configureShareGroup(t, k.Bootstrap()[0], group, "share.auto.offset.reset", "earliest")

	network.Set(harness.NetFault{Blackhole: true})
	var control, early atomic.Int32
	var away atomic.Bool
	away.Store(true)
	// Longer than a record's deliveries last when each is let to time out.
	mended := time.AfterFunc(3*deliveries*lock, func() {
		// The group itself may take its time to begin.
		for deadline := time.Now().Add(patience / 2); control.Load() < total/2; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("%d of %d records of the control topic came during the outage", control.Load(), total/2)
				break
			}
		}
		away.Store(false)
		network.Set(harness.NetFault{})
	})
	defer mended.Stop()
	got := share(t, cold.Bootstrap, group, 2, topics, func(r *kgo.Record) kgo.AckStatus {
		if r.Topic == topics[0] {
			control.Add(1)
		} else if away.Load() {
			early.Add(1)
		}
		return kgo.AckAccept
	}, func(s *sharers) bool { return len(s.accepted) >= total })
	if n := early.Load(); n > 0 {
		t.Errorf("%d records that cannot be read were delivered", n)
	}
	for n, r := range all {
		if got.accepted[which(r)] == 0 {
			t.Errorf("record %d of %s was never accepted", n, r.Topic)
		}
	}
	if n := cold.metric(t, "sluice_proxy_share_withheld_partitions"); n != 0 {
		t.Errorf("%v partitions are withheld although all can be read", n)
	}
}

// sharedByJava runs members of Java's client and returns their deliveries by
// record, with what the broker refused of their acknowledgements.
func sharedByJava(t testing.TB, j *harness.JVM, bootstrap, group string, count int, topic string, configs ...string) (*sharers, string) {
	t.Helper()
	r := j.TryJava("", "Client", append([]string{"share", bootstrap, strconv.Itoa(count), topic, "2", "group.id=" + group, "max.poll.records=20"}, configs...)...)
	if r.Err != nil {
		t.Fatalf("the members of %s: %v\n%s", group, r.Err, r.Stderr)
	}
	s := newSharers()
	for _, d := range javaRecords(t, r.Stdout) {
		own := len(d.Headers) - 2
		count, verdict := d.Headers[own], string(d.Headers[own+1].Value)
		d.Headers = d.Headers[:own]
		at := which(d)
		n, err := strconv.Atoi(string(count.Value))
		if err != nil {
			t.Fatal(err)
		}
		s.deliveries[at] = max(s.deliveries[at], n)
		switch verdict {
		case "accept":
			s.accepted[at]++
		case "reject":
			s.rejected[at]++
		}
	}
	return s, r.Stderr
}

// Java's client, which share groups were made for, gets through sluice what it
// gets directly, however it acknowledges; the tool says the same of the group.
func TestLongJavaShareGroups(t *testing.T) {
	harness.Long(t)
	onAllTargets(t, func(t *testing.T, tg target) {
		x := tools{shared(t), t}
		topic := tg.topic("java-shares")
		tg.create(t, topic, 3)
		const total = 180
		all := tg.fill(t, "zstd", topic, 3, total)
		for _, mode := range []string{"implicit", "explicit"} {
			group := mode + "-" + topic
			configureShareGroup(t, tg.bootstrap, group, "share.auto.offset.reset", "earliest")
			got, refused := sharedByJava(t, x.jvm, tg.bootstrap, group, total, topic, "share.acknowledgement.mode="+mode)
			if refused != "" {
				t.Errorf("%s: brokers refused what members acknowledged:\n%s", mode, refused)
			}
			for n, r := range all {
				at := which(r)
				accepted, rejected, deliveries := 1, 0, 1
				if mode == "explicit" && n%10 == 1 {
					accepted, rejected = 0, 1
				}
				if mode == "explicit" && n%10 == 0 {
					deliveries = 2
				}
				if got.accepted[at] != accepted || got.rejected[at] != rejected || got.deliveries[at] != deliveries {
					t.Errorf("%s: record %d was accepted %d times, rejected %d times and delivered for the %d. time at last, want %d, %d and %d.", mode, n, got.accepted[at], got.rejected[at], got.deliveries[at], accepted, rejected, deliveries)
				}
			}
			if n := len(got.accepted) + len(got.rejected); n != total {
				t.Errorf("%s: %d different records, %d were written", mode, n, total)
			}
			if tg.sluice == nil {
				continue
			}
			// Where a partition begins is written later; what is left of it at once.
			of := func(args ...string) []string { return append(args, "--group", group) }
			eventually(t, "the group has nothing left", func() (bool, string) {
				out := x.direct("kafka-share-groups", of("--describe", "--offsets")...)
				left := regexp.MustCompile(regexp.QuoteMeta(topic)+` \d \d+ 0\b`).FindAllString(out, -1)
				return len(left) == 3, out
			})
			x.equal("", "kafka-share-groups", of("--describe", "--offsets")...)
			x.equal("", "kafka-share-groups", of("--describe", "--state")...)
			x.equal(group, "kafka-share-groups", "--list")
			x.contains(x.through("kafka-share-groups", of("--reset-offsets", "--topic", topic, "--to-earliest", "--execute")...), topic)
			if again, _ := sharedByJava(t, x.jvm, tg.bootstrap, group, total, topic); len(again.accepted) != total {
				t.Errorf("%s: %d records after a reset, want all %d", mode, len(again.accepted), total)
			}
			x.through("kafka-share-groups", of("--delete-offsets", "--topic", topic)...)
			x.through("kafka-share-groups", of("--delete")...)
			if strings.Contains(x.direct("kafka-share-groups", "--list"), group) {
				t.Errorf("%s is still there", group)
			}
		}
	})
}
