package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/upkeep"
)

// filled is a replica's configuration, with a topic of n batches in objects.
func filledTopic(t *testing.T, topic string, n int) (file, bootstrap, objects string, k *kfake.Cluster) {
	t.Helper()
	k = fakeKafka(t, kfake.SeedTopics(1, topic))
	objects = filepath.Join(t.TempDir(), "objects")
	s := settings{kafka: k.ListenAddrs(), port: harness.Ports(t, 2+brokerPorts), rest: rulesOnly, store: fmt.Sprintf("{ url: %q }", "file://"+objects)}
	file = s.file(t)
	c := start(t, "serve", "-c", file)
	c.errs.await(t, "ready: clients may connect")
	bootstrap = fmt.Sprintf("127.0.0.1:%d", s.port)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(bootstrap), kgo.ProducerLinger(0), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := range n {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte(strings.Repeat(fmt.Sprint(i), 5000))}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	return file, bootstrap, objects, k
}

func TestFsck(t *testing.T) {
	file, _, objects, k := filledTopic(t, "otel-a", 3)
	code, out, errs := sluice(t, "fsck", "-c", file)
	if code != 0 || errs != "" || !strings.Contains(out, "3 placeholders, which stand for 3 records") || !strings.Contains(out, "All of it can be read.") {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	code, out, errs = sluice(t, "fsck", "-c", file, "otel-*", "--sample", "100%", "--json")
	var report upkeep.FsckReport
	if err := json.Unmarshal([]byte(out), &report); code != 0 || errs != "" || err != nil || report.Checked != 3 || report.Version != 1 || report.Damage == nil {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, errs)
	}

	wal := filepath.Join(objects, "wal")
	entries, err := os.ReadDir(wal)
	if err != nil || len(entries) != 3 {
		t.Fatal(err, len(entries))
	}
	lost := filepath.Join(wal, entries[1].Name())
	if err := os.Rename(lost, lost+".lost"); err != nil {
		t.Fatal(err)
	}
	code, out, errs = sluice(t, "fsck", "-c", file, "--orphans")
	if code != 1 || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{
		"otel-a-0, offsets 1 to 1: missing\n", "1 placeholder of 1 record; the store has no such object", "store default: wal/" + entries[1].Name(),
		"remedy: restore the object", "up to offset 2, which removes all before it", "DAMAGED: 1 range, 1 placeholder of 1 record.",
		"1 key that sluice has not written: wal/" + entries[1].Name() + ".lost",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if code, out, _ = sluice(t, "fsck", "-c", file, "--json"); code != 1 || !strings.Contains(out, `"kind": "missing"`) {
		t.Errorf("exit code %d: %s", code, out)
	}

	// What cannot be looked at is not clean, and not damaged.
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-c", file, "none-*"}, "no topic matches \"none-*\""},
		{[]string{"-c", file, "otel-[", "x"}, "pattern \"otel-[\""},
		{[]string{"-c", file, "--sample", "5"}, "write a share such as 5%"},
		{[]string{"-c", file, "--sample", "0%"}, "write a share such as 5%"},
		{[]string{"-c", file, "--rate", "fast"}, "--rate fast: write a size such as 64MiB"},
		{[]string{"-c", file, "--orphans", "otel-*"}, "--orphans needs all topics"},
		{[]string{"-c", filepath.Join(t.TempDir(), "none.yaml")}, "none.yaml"},
		{[]string{"-c", settings{kafka: []string{deadAddress(t)}}.file(t)}, "`sluice check --live` looks closer"},
		{[]string{"-c", settings{kafka: k.ListenAddrs()}.file(t)}, "no cluster has claimed the prefix"},
	} {
		code, out, errs := sluice(t, append([]string{"fsck"}, tt.args...)...)
		if code != 2 || out != "" || !strings.Contains(errs, tt.want) {
			t.Errorf("%v: exit code %d, %s, no %q in %s", tt.args, code, out, tt.want, errs)
		}
	}
}
