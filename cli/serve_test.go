package cli

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
)

// leader is that of a topic's first partition, as clients of the proxy see it.
func leader(t *testing.T, port int, topic string) int32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", port)))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	topics, err := kadm.NewClient(cl).ListTopics(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	return topics[topic].Partitions[0].Leader
}

// disklessIDs begin here: a leader above is a diskless broker.
const disklessIDs = 1 << 20

func TestServe(t *testing.T) {
	k := fakeKafka(t, kfake.SeedTopics(1, "otel-a", "plain"))
	s := settings{kafka: k.ListenAddrs(), port: harness.Ports(t, 2+brokerPorts), rest: rulesOnly}
	file := s.file(t)
	c := start(t, "serve", "-c", file)
	c.errs.await(t, "ready: clients may connect")

	if resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", s.port+1)); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("readyz: %v, %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	if got := leader(t, s.port, "otel-a"); got < disklessIDs {
		t.Errorf("otel-a is led by %d", got)
	}
	if got := leader(t, s.port, "plain"); got >= disklessIDs {
		t.Errorf("plain is led by %d", got)
	}

	// SIGHUP reads the file also when nothing has changed. The first reading
	// after the start is not worth a line, so one signal may not be enough.
	for deadline := time.Now().Add(patience); !strings.Contains(c.errs.String(), "the configuration was read again; nothing has changed"); {
		if time.Now().After(deadline) {
			t.Fatalf("SIGHUP goes unnoticed:\n%s", &c.errs)
		}
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}

	// A good change is in force at once, and the log names it.
	s.store = fileStoreOf(t, file)
	s.rest = strings.Replace(rulesOnly, "otel-*", "plain", 1)
	s.write(t, file)
	c.errs.await(t, `"applied":["topics"]`)
	if got := leader(t, s.port, "plain"); got < disklessIDs {
		t.Errorf("after the change plain is led by %d", got)
	}

	// A file with one mistake is refused whole: the good half is not applied.
	s.rest = "default_class: telemetry\ntopics:\n  - { match: \"[\", class: control }\n"
	s.write(t, file)
	c.errs.await(t, "the changed configuration is refused as a whole; the old one stays")
	if !strings.Contains(c.errs.String(), file+":13:") {
		t.Errorf("the log does not say where:\n%s", &c.errs)
	}
	if got := leader(t, s.port, "otel-a"); got >= disklessIDs {
		t.Errorf("after a bad file otel-a is led by %d", got)
	}

	// What needs a restart is named.
	s.rest = strings.Replace(rulesOnly, "otel-*", "plain", 1) + "limits: { requests_in_flight: 10 }\n"
	s.write(t, file)
	c.errs.await(t, `"after_restart":["limits.requests_in_flight"]`)

	if code := c.stop(t); code != 0 || !strings.Contains(c.errs.String(), `"message":"drained"`) {
		t.Fatalf("exit code %d:\n%s", code, &c.errs)
	}
	if c.out.String() != "" {
		t.Errorf("on stdout: %s", &c.out)
	}
}

// fileStoreOf keeps the store of a file that is written again.
func fileStoreOf(t *testing.T, file string) string {
	t.Helper()
	for line := range strings.Lines(read(t, file)) {
		if store, ok := strings.CutPrefix(line, "  default: "); ok {
			return strings.TrimSpace(store)
		}
	}
	t.Fatal("no store")
	return ""
}

func TestServeStops(t *testing.T) {
	t.Run("before it was ready, without an error", func(t *testing.T) {
		c := start(t, "serve", "-c", settings{kafka: []string{deadAddress(t)}, port: harness.Ports(t, 2+brokerPorts)}.file(t))
		c.errs.await(t, "the cluster does not answer yet; trying again")
		if code := c.stop(t); code != 0 || !strings.Contains(c.errs.String(), "stopped before it was ready") {
			t.Fatalf("exit code %d:\n%s", code, &c.errs)
		}
	})
	t.Run("at once when a port is taken, and says which", func(t *testing.T) {
		port := harness.Ports(t, 2+brokerPorts)
		taken(t, port+3)
		code, _, errs := sluice(t, "serve", "-c", settings{kafka: fakeKafka(t).ListenAddrs(), port: port}.file(t))
		if code != 1 || !strings.Contains(errs, fmt.Sprintf("127.0.0.1:%d", port+3)) || !strings.Contains(errs, "another process has the port") {
			t.Fatalf("exit code %d: %s", code, errs)
		}
	})
}

func TestDev(t *testing.T) {
	port := harness.Ports(t, 700)
	dir := t.TempDir()
	args := []string{"dev", "--data-dir", dir, "--port", fmt.Sprint(port)}
	once := append(args, "--once", "--demo-time", "2s")
	for round := range 2 {
		code, out, errs := sluice(t, once...)
		if code != 0 {
			t.Fatalf("start %d: exit code %d: %s\n%s", round, code, errs, out)
		}
		for _, want := range []string{
			fmt.Sprintf("bootstrap.servers  127.0.0.1:%d", port), "telemetry    diskless     250ms",
			"TIER", "PRODUCED", "CONSUMED", "MB", "PRODUCE p50/p99", "END-TO-END p50/p99", "IN KAFKA", "IN OBJECTS", "OBJECTS",
			"low-latency  demo.control", "diskless     demo.telemetry",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("start %d: no %q in\n%s", round, want, out)
			}
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		for i, topic := range []string{"demo.control", "demo.telemetry"} {
			row := strings.Fields(lines[len(lines)-2+i])
			if row[1] != topic || row[2] == "0" || row[2] != row[3] {
				t.Errorf("start %d: the last line of %s: %v", round, topic, row)
			}
			if objects := row[len(row)-1]; (objects == "-") != (i == 0) || objects == "0" {
				t.Errorf("start %d: objects of %s: %s", round, topic, objects)
			}
		}
	}

	// The third start still holds what the first two have written, and stays
	// up until Ctrl-C.
	c := start(t, append(args, "--demo=false")...)
	c.out.await(t, "Your turn")
	cl, err := kgo.NewClient(kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", port)), kgo.ConsumeTopics("demo.telemetry"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, "demo.telemetry")
	if err != nil {
		t.Fatal(err)
	}
	want := int64(0)
	ends.Each(func(o kadm.ListedOffset) { want += o.Offset })
	if want < 100 {
		t.Fatalf("%d records were kept", want)
	}
	for got := int64(0); got < want; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %d of %d records: %v", got, want, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			got++
			if len(r.Value) != 1024 {
				t.Fatalf("a value of %d bytes", len(r.Value))
			}
		})
	}

	// A second one beside it is told why it cannot start.
	code, _, errs := sluice(t, once...)
	if code != 1 || !strings.Contains(errs, "is another sluice dev running?") {
		t.Errorf("a second one: exit code %d: %s", code, errs)
	}
	// The configuration is live, as in serve.
	file := dir + "/sluice.yaml"
	change(t, file, `"replay*"`, `"replay*", "history*"`)
	c.out.await(t, "The configuration has changed: topics now in force.")
	change(t, file, `class: replay`, `class: rplay`)
	c.out.await(t, "The changed configuration is refused, the old one stays:")
	if code := c.stop(t); code != 0 {
		t.Fatalf("exit code %d: %s", code, &c.errs)
	}

	change(t, file, `class: rplay`, `class: replay`)
	code, _, errs = sluice(t, "dev", "--data-dir", dir, "--port", fmt.Sprint(port+1))
	if code != 1 || !strings.Contains(errs, fmt.Sprintf("was made for port %d, not %d", port, port+1)) {
		t.Errorf("the same folder, another port: exit code %d: %s", code, errs)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// change edits a file as a person would.
func change(t *testing.T, file, old, with string) {
	t.Helper()
	text := read(t, file)
	if !strings.Contains(text, old) {
		t.Fatalf("no %s in\n%s", old, text)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(text, old, with, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestDevSaysWhichPortIsTaken(t *testing.T) {
	port := harness.Ports(t, 700)
	taken(t, port)
	code, _, errs := sluice(t, "dev", "--data-dir", t.TempDir(), "--port", fmt.Sprint(port), "--demo=false")
	if code != 1 || !strings.Contains(errs, fmt.Sprintf("127.0.0.1:%d", port)) || !strings.Contains(errs, "--port") {
		t.Fatalf("exit code %d: %s", code, errs)
	}
}

func TestServeWarnsOfTooFewOpenFiles(t *testing.T) {
	for _, c := range []struct {
		name        string
		have        uint64
		connections int
		warns       bool
	}{
		{"two for each connection, and some", 41_000, 20_000, false},
		{"one less", 40_999, 20_000, true},
		{"the usual soft limit", 1024, 20_000, true},
		{"few connections need few", 1024, 12, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log strings.Builder
			warnOfFiles(zerolog.New(&log), c.have, c.connections)
			if got := strings.Contains(log.String(), "ulimit -n"); got != c.warns {
				t.Errorf("it warns: %v\n%s", got, &log)
			}
		})
	}
	if have, ok := openFiles(); !ok || have == 0 {
		t.Errorf("%d open files, %v", have, ok)
	}
}
