package benchmarks

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluice-kafka/sluice/harness"
)

// The defaults are the short form, which only shows that all of it works; the
// figures of a run so short say little. make bench-tiers runs the long one.
var (
	rounds  = flag.Int("rounds", 2, "rounds; each goes over all routes")
	steady  = flag.Duration("steady", 1500*time.Millisecond, "how long the steady load lasts, on each route of a round")
	warmUp  = flag.Duration("warm-up", 500*time.Millisecond, "how long the steady load runs before latencies count")
	rate    = flag.Int("rate", 1000, "records per second of the steady load, 1 KB each")
	bulkMiB = flag.Int("bulk", 16, "MiB of the bulk load, on each route of a round")
)

// sluiceProcess is a replica in a process of its own, as in production: it does
// not share its garbage collector with the load.
type sluiceProcess struct {
	bootstrap string
	admin     string
	log       string
}

const nodeIDs = 8

func startSluice(t *testing.T, k *harness.Kafka, s3 *harness.S3) *sluiceProcess {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "sluice")
	build := exec.Command("go", "build", "-o", program, "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building sluice: %v\n%s", err, out)
	}
	port := harness.Ports(t, 2+2*nodeIDs)
	p := &sluiceProcess{bootstrap: fmt.Sprintf("127.0.0.1:%d", port), admin: fmt.Sprintf("127.0.0.1:%d", port+1), log: filepath.Join(dir, "log")}
	text := fmt.Sprintf(`kafka:
  bootstrap: ["%s"]
listen:
  bootstrap: "%s"
  brokers: "127.0.0.1:%d-%d"
  advertise: "127.0.0.1"
  node_ids: "0-%d"
admin: "%s"
stores:
  default: { url: "s3://%s/benchmarks", endpoint: "%s", access_key: "%s", secret_key: "%s" }
default_class: control
topics:
  - { match: "*-enrichment", class: enrichment }
  - { match: "*-telemetry", class: telemetry }
log: { level: warn }
`, strings.Join(k.Bootstrap(), `", "`), p.bootstrap, port+2, port+1+2*nodeIDs, nodeIDs-1, p.admin, s3.Bucket, s3.Endpoint, s3.AccessKey, s3.SecretKey)
	file := filepath.Join(dir, "sluice.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	process, err := harness.StartProcess("sluice", p.log, program, nil, "serve", "-c", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Stop(40 * time.Second); err != nil {
			t.Errorf("sluice: %v\n%s", err, p.logged())
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		resp, err := http.Get("http://" + p.admin + "/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return p
			}
		}
		if ended, err := process.Ended(); ended || time.Now().After(deadline) {
			t.Fatalf("sluice is not ready (%v):\n%s", err, p.logged())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *sluiceProcess) logged() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// counter sums a counter over all of its labels.
func (p *sluiceProcess) counter(t *testing.T, name string) (sum float64) {
	t.Helper()
	resp, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		metric, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if metric, _, _ = strings.Cut(metric, "{"); metric != name {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// inKafka is what each replica of a topic takes on the brokers' disks.
func inKafka(t *testing.T, direct route, topic string) (bytes float64) {
	t.Helper()
	cl, err := direct.client()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	dirs, err := kadm.NewClient(cl).DescribeAllLogDirs(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	dirs.Each(func(d kadm.DescribedLogDir) {
		for _, p := range d.Topics[topic] {
			bytes += float64(p.Size)
		}
	})
	return bytes / replication
}

// Every record that was produced is consumed once and unchanged, directly and
// through both tiers; of the diskless one Kafka stores little. Times are
// printed and never judged: that is for a person who knows the machine.
func TestTiersSideBySide(t *testing.T) {
	k := harness.StartKafka(t, harness.KafkaOptions{})
	s := startSluice(t, k, harness.StartS3(t))
	through := []string{s.bootstrap}
	results := []result{
		{route: route{"direct Kafka", k.Bootstrap(), "bench-direct"}},
		{route: route{"low-latency tier", through, "bench-control"}},
		{route: route{"diskless, enrichment (50ms)", through, "bench-enrichment"}},
		{route: route{"diskless, telemetry (250ms)", through, "bench-telemetry"}},
	}
	v := newValues()
	steadyLoad := load{records: int((*steady + *warmUp).Seconds() * float64(*rate)), rate: *rate, warmUp: int(warmUp.Seconds() * float64(*rate))}
	bulkLoad := load{records: *bulkMiB << 20 / valueSize}
	for i := range results {
		create(t, results[i].route)
	}
	phase := func(r *result, l load) run {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), *steady+*warmUp+time.Minute)
		defer cancel()
		objects, bytes := s.counter(t, "sluice_diskless_objects_written_total"), s.counter(t, "sluice_diskless_object_bytes_total")
		out, err := r.route.drive(ctx, l, v)
		if err != nil {
			t.Fatalf("%v\nsluice says:\n%s", err, s.logged())
		}
		r.stored.objects += s.counter(t, "sluice_diskless_objects_written_total") - objects
		r.stored.inObjects += s.counter(t, "sluice_diskless_object_bytes_total") - bytes
		r.stored.payload += float64(l.records) * valueSize
		return out
	}
	for round := range *rounds {
		// Each round begins with another route, so that none always runs on
		// what the one before it left behind.
		for i := range results {
			r := &results[(round+i)%len(results)]
			r.steady = append(r.steady, phase(r, steadyLoad))
			r.bulk = append(r.bulk, phase(r, bulkLoad))
		}
	}
	for i := range results {
		r := &results[i]
		r.stored.inKafka = inKafka(t, results[0].route, r.route.topic)
		diskless := i >= 2
		if share := r.stored.inKafka / r.stored.payload; share == 0 || diskless && share > 0.5 || !diskless && share < 1 {
			t.Errorf("%s: Kafka stores %.3f of the payload's bytes", r.route.name, share)
		}
		if went := r.stored.inObjects / r.stored.payload; diskless && went < 0.5 || !diskless && went > 0 {
			t.Errorf("%s: %.3f of the payload's bytes went to objects", r.route.name, went)
		}
	}
	fmt.Printf("\nKafka %s, %d brokers; S3 server on the same disk; %s, %d CPUs for all of it\n", harness.DefaultKafka, len(k.Nodes()), runtime.Version(), runtime.NumCPU())
	fmt.Printf("%d rounds; steady: %d records/s of %d B for %v; bulk: %d MiB; %d partitions, acks=all, no compression\n\n", *rounds, *rate, valueSize, *steady, *bulkMiB, partitions)
	report(os.Stdout, results, bulkLoad.records)
}

func create(t *testing.T, r route) {
	t.Helper()
	cl, err := r.client()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := adm.CreateTopic(ctx, partitions, replication, nil, r.topic); err != nil {
		t.Fatalf("creating %s: %v", r.topic, err)
	}
	// Brokers learn of a topic one after the other; producing would wait too,
	// but asking for offsets would not.
	for {
		offsets, err := adm.ListEndOffsets(ctx, r.topic)
		if err == nil {
			err = offsets.Error()
		}
		if err == nil && len(offsets[r.topic]) == partitions {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s has no leaders: %v", r.topic, err)
		}
	}
}
