package integration

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// storeFaults are what a store does to a replica under load.
var storeFaults = []struct {
	name   string
	quick  bool // in the short form too
	limits string
	fault  func(since time.Duration) harness.S3Fault
	rides  bool // nothing goes inline: it is ridden out
	turns  int  // at most so often does the store turn to failing
}{
	{
		name: "every PUT takes 2 s", quick: true, rides: true,
		fault: steadily(harness.S3Fault{Methods: "PUT", Delay: 2 * time.Second}),
	},
	{
		name: "every PUT takes 6 s", turns: 1,
		fault: steadily(harness.S3Fault{Methods: "PUT", Delay: 6 * time.Second}),
	},
	{
		name: "a third of requests answered 503 SlowDown", rides: true,
		fault: steadily(harness.S3Fault{Share: 0.33, Status: http.StatusServiceUnavailable, Code: "SlowDown"}),
	},
	{
		name: "every request answered 503 SlowDown", turns: 1,
		fault: steadily(harness.S3Fault{Status: http.StatusServiceUnavailable, Code: "SlowDown"}),
	},
	{
		name: "half of PUTs reset in the middle of the body", quick: true, rides: true,
		fault: steadily(harness.S3Fault{Methods: "PUT", Share: 0.5, Cut: true}),
	},
	{
		name: "half of PUTs done, and their answers lost", quick: true, rides: true,
		fault: steadily(harness.S3Fault{Methods: "PUT", Share: 0.5, Lost: true}),
	},
	{
		name: "expired credentials", quick: true, turns: 1,
		fault: steadily(harness.S3Fault{Status: http.StatusForbidden, Code: "AccessDenied"}),
	},
	{
		name: "full, but for small objects", turns: 1,
		fault: steadily(harness.S3Fault{Methods: "PUT", Over: 1 << 10, Status: http.StatusInsufficientStorage, Code: "InsufficientStorage"}),
	},
	{
		name: "away for 8 s of every 12 s", turns: 4,
		fault: func(since time.Duration) harness.S3Fault {
			if since%(12*time.Second) < 8*time.Second {
				return harness.S3Fault{Status: http.StatusServiceUnavailable, Code: "SlowDown"}
			}
			return harness.S3Fault{}
		},
	},
	{
		name: "no answers at all", turns: 1,
		fault: steadily(harness.S3Fault{Hang: true}),
	},
	{
		name: "no answers at all, and the inline budget is spent", quick: true, turns: 1,
		limits: "limits: { inline_bytes_total: 64KiB }\n",
		fault:  steadily(harness.S3Fault{Hang: true}),
	},
}

func steadily(f harness.S3Fault) func(time.Duration) harness.S3Fault {
	return func(time.Duration) harness.S3Fault { return f }
}

// faultTable makes TestStoreFaults take all faults, one after the other and for
// twenty seconds each, and print the table of docs/operations.md.
const faultTable = "SLUICE_FAULT_TABLE"

// Whatever the store does, nothing is lost, doubled or out of order, topics of
// low-latency classes do not notice, producers see nothing that they do not
// retry, and all goes on by itself.
func TestStoreFaults(t *testing.T) {
	k := sharedKafka(t)
	s3 := harness.StartS3(t)
	whole := os.Getenv(faultTable) != ""
	lasts := 10 * time.Second
	var mu sync.Mutex
	var rows []string
	if whole {
		lasts = 20 * time.Second
		t.Cleanup(func() {
			var out strings.Builder
			w := tabwriter.NewWriter(&out, 0, 0, 1, ' ', 0)
			fmt.Fprintln(w, "| Fault\t| Gap, diskless\t| Gap, `on_outage: reject`\t| Gap, control\t| Inline\t| Refused\t| Readers at the tail\t| Readers of old data\t|")
			fmt.Fprintln(w, "| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t|")
			for _, r := range rows {
				fmt.Fprintln(w, r)
			}
			_ = w.Flush()
			fmt.Print(out.String())
		})
	}
	t.Run("", func(t *testing.T) {
		for i, c := range storeFaults {
			if !whole && !c.quick {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				if !whole {
					t.Parallel()
				}
				network := harness.StartS3Faults(t, s3)
				through := *s3
				through.Endpoint = network.Endpoint
				r := replica{
					Kafka: k.Bootstrap(), Store: s3Store(&through, fmt.Sprintf("faults/%d", i)),
					Extra: "  - { match: [\"*refuse*\"], class: refusing }\nclasses:\n  telemetry: { linger: 250ms }\n" +
						"  refusing: { tier: diskless, linger: 250ms, on_outage: reject }\n" + c.limits,
				}
				s, cold := startSluice(t, r), startSluice(t, r)
				topics := []string{fmt.Sprintf("faults-%d-control", i), fmt.Sprintf("faults-%d-telemetry", i), fmt.Sprintf("faults-%d-refuse", i)}
				control, waits, refuses := topics[0], topics[1], topics[2]
				for _, topic := range topics {
					createTopic(t, s.Bootstrap, topic, 3)
				}
				h := history.New()
				// Java's patience: a third of it is above limits.put_timeout.
				l := startLoad(t, h, workload{Bootstrap: s.Bootstrap, Topics: topics, Opts: []kgo.Opt{kgo.ProduceRequestTimeout(30 * time.Second)}})
				tail := follow(t, h, "at the tail", s.Bootstrap, nil, topics...)
				l.awaitMore(100, topics...)
				stored := func() float64 { return s.metric(t, "sluice_diskless_stored_batches_total") }
				inline := func(what string) float64 {
					return s.metric(t, "sluice_diskless_inline_"+what+"_total", "reason", "unavailable")
				}
				healthy := func() bool { return s.metric(t, "sluice_diskless_store_healthy") == 1 }
				if n := inline("batches"); n != 0 {
					t.Fatalf("%v batches went inline before", n)
				}

				l.freshGaps()
				began := time.Now()
				network.Vary(func() harness.S3Fault { return c.fault(time.Since(began)) })
				late := follow(t, h, "of old data", cold.Bootstrap, nil, topics...)
				turns, was := 0, true
				for time.Since(began) < lasts {
					if is := healthy(); is != was {
						was = is
						if !is {
							turns++
						}
					}
					time.Sleep(20 * time.Millisecond)
				}
				l.awaitMore(50, control)
				if code, health := readyz(s.AdminAddr().String()); code != http.StatusOK {
					t.Errorf("/readyz says %d %+v", code, health)
				}
				if network.Hit() == 0 {
					t.Error("no request was harmed")
				}
				refused := s.metric(t, "sluice_diskless_rejected_batches_total")
				switch n := inline("batches"); {
				case c.rides && n != 0:
					t.Errorf("%v batches went inline", n)
				case !c.rides && n == 0:
					t.Error("no batch went inline")
				case c.limits != "" && refused == 0:
					t.Error("no batch was refused")
				}
				if turns > c.turns || turns == 0 && !c.rides {
					t.Errorf("the store turned to failing %d times, want at most %d", turns, c.turns)
				}

				network.Set(harness.S3Fault{})
				eventually(t, "the store is used again", func() (bool, string) { return healthy(), "not yet" })
				before, bytes := stored(), inline("bytes")
				eventually(t, "batches go to objects again", func() (bool, string) { return stored() > before+10, "not yet" })
				l.awaitMore(50, topics...)
				row := fmt.Sprintf("| %s\t| %s\t| %s\t| %s\t| %s\t| %.0f\t| %s\t| %s\t|", c.name,
					seconds(l.gap(waits)), seconds(l.gap(refuses)), seconds(l.gap(control)), kib(bytes), refused, tail.seen(), late.seen())
				mu.Lock()
				rows = append(rows, row)
				mu.Unlock()
				t.Log(row)
				l.stop()
				tail.toEnd(bootstrapOf(k), topics...)
				late.toEnd(bootstrapOf(k), topics...)
				readAll(t, h, "afterwards", s.Bootstrap, bootstrapOf(k), topics...)
			})
		}
	})
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

func kib(bytes float64) string { return fmt.Sprintf("%.0f KiB", bytes/1024) }

// seen lists the errors that a reader was told.
func (f *follower) seen() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for e := range f.errs {
		name, _, _ := strings.Cut(e, ":")
		names = append(names, name)
	}
	if len(names) == 0 {
		return "nothing"
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

// A batch that a client sends again because its partition's leader has moved is
// not uploaded again.
func TestRetriesAreNotUploadedAgain(t *testing.T) {
	x := tools{shared(t), t}
	s := startSluice(t, replica{Kafka: x.kafka.Bootstrap(), Extra: "classes:\n  telemetry: { linger: 250ms }\nlimits: { puts_per_second: 0 }\n"})
	const topic = "retries-telemetry"
	createTopic(t, s.Bootstrap, topic, 1)
	h := history.New()
	l := startLoad(t, h, workload{Bootstrap: s.Bootstrap, Topics: []string{topic}, Partitions: 1})
	tail := follow(t, h, "at the tail", s.Bootstrap, nil, topic)
	l.awaitMore(50, topic)
	reused := func() float64 { return s.metric(t, "sluice_diskless_reused_bytes_total") }
	// A batch under way for the length of a linger meets another leader.
	for range 10 {
		if reused() > 0 {
			break
		}
		replicas := x.partition(topic, 0).Replicas
		x.lead(t.Context(), topic, append(slices.Clone(replicas[1:]), replicas[0]))
		l.awaitMore(50, topic)
	}
	l.stop()
	referred, uploaded := s.metric(t, "sluice_diskless_stored_bytes_total"), s.metric(t, "sluice_diskless_object_bytes_total")
	t.Logf("placeholders for %.0f bytes, of which %.0f were sent again; %.0f bytes of objects", referred, reused(), uploaded)
	if reused() == 0 || uploaded > referred-reused()/2 {
		t.Error("what was sent again was uploaded again")
	}
	tail.toEnd(bootstrapOf(x.kafka), topic)
}
