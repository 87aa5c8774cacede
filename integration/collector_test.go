package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless/gc"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/server"
)

// collectorVariable makes this program a garbage collector of the configuration
// that it names: a process that can be killed, and with timing that no
// configuration may have.
const collectorVariable = "SLUICE_TEST_COLLECTOR"

// collectorTiming is for logs in which a placeholder stands at most Margin after
// its object was made.
var collectorTiming = gc.Timing{Margin: 90 * time.Second, Grace: 3 * time.Second, Unheard: 5 * time.Second, Apart: time.Second, Missed: time.Hour}

// collect makes one pass after the other, and prints what each has done.
func collect(file string) error {
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	log := zerolog.New(os.Stderr).Level(zerolog.WarnLevel)
	opt, err := server.ClusterOptions(cfg, log, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	cluster, err := lowlatency.New(opt)
	if err != nil {
		return err
	}
	defer cluster.Close()
	store, err := server.OpenStore(cfg.Stores["default"], 16)
	if err != nil {
		return err
	}
	c := gc.New(gc.Options{
		Name: "default", Store: objstore.NewRetrying(store, 3), Kafka: cluster, Timing: collectorTiming,
		MinAge: time.Second, DeletesPerSecond: 1000, Logger: log,
	})
	for ctx := context.Background(); ; time.Sleep(1100 * time.Millisecond) {
		// Later than the last by the store's clock, which knows seconds only. One that is cut off from all does not hold on to it for ever.
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		var report *gc.Report
		err := cluster.Refresh(ctx)
		if err == nil {
			report, err = c.Pass(ctx)
		}
		cancel()
		line := passed{Report: report}
		if err != nil {
			line.Error = err.Error()
		}
		b, err := json.Marshal(line)
		if err != nil {
			return err
		}
		fmt.Println(string(b))
	}
}

// passed is a line that a collector prints.
type passed struct {
	*gc.Report
	Error string `json:"error"`
}

// startCollector starts a garbage collector in a process of its own, which writes
// into log.
func startCollector(t testing.TB, file, log string) *harness.Process {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := harness.StartProcess("collector", log, program, []string{collectorVariable + "=" + file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if ended, _ := p.Ended(); !ended {
			p.Kill()
		}
		if b, _ := os.ReadFile(log); t.Failed() {
			t.Logf("the collector's log ends:\n%s", b[max(0, len(b)-4000):])
		}
	})
	return p
}

// TestLongCollectorDiesAnywhere: wherever a garbage collector is killed, the next one
// goes on, and what logs refer to stays.
func TestLongCollectorDiesAnywhere(t *testing.T) {
	harness.Long(t)
	k := sharedKafka(t)
	s3 := harness.StartS3(t)
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(s3, "dies"), Extra: "gc: { enabled: false }\ncompaction: { window: 1s, min_age: 1s }\nclasses:\n  telemetry: { linger: 20ms, store: default }\n"})
	network := harness.StartS3Faults(t, s3)
	through := *s3
	through.Endpoint = network.Endpoint
	file := replica{Kafka: k.Bootstrap(), Store: s3Store(&through, "dies")}.withDefaults(t).write(t)
	log := filepath.Join(t.TempDir(), "collector.log")
	const topic, records = "dies-telemetry", 40
	createTopic(t, s.Bootstrap, topic, 1)
	c := &collecting{T: t, s: s, cl: client(t, s.Bootstrap), sent: map[string]int{}}
	store, err := objstore.OpenS3(objstore.S3Options{Endpoint: s3.Endpoint, Region: s3.Region, Bucket: s3.Bucket, Prefix: "dies", AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, PathStyle: true, MaxConnections: 16})
	if err != nil {
		t.Fatal(err)
	}
	c.store = store
	for _, at := range []struct {
		method, part string
		done         bool
	}{
		{"PUT", "/sluice/gc/state", false},
		{"PUT", "/sluice/gc/state", true},
		{"DELETE", "/wal/", false},
		{"DELETE", "/wal/", true},
		{"PUT", "/sluice/gc/lease", true},
	} {
		c.write(records, topic)
		p := startCollector(t, file, log)
		network.Once(at.method, at.part, at.done, p.Kill)
		eventually(t, fmt.Sprintf("it is killed at %+v", at), func() (bool, string) {
			ended, _ := p.Ended()
			return ended, "it lives"
		})
	}
	startCollector(t, file, log)
	eventually(t, "the last one deletes what segments stand for", func() (bool, string) {
		n := len(c.objects())
		return n == 0, fmt.Sprint(n, " objects are left")
	})
	c.reads(k, s3Store(s3, "dies"), topic, 0)
}
