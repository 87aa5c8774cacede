package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// What is damaged is made anew, or named, by flags that say how.
func TestFsckRepair(t *testing.T) {
	file, _, objects, _ := filledTopic(t, "otel-a", 3)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(text, "compaction: { window: 1s, min_age: 1s }\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // a window, and its age
	if code, out, errs := sluice(t, "compact", "-c", file, "--once"); code != 0 {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	spoil := func(dir string, names ...string) {
		t.Helper()
		for _, name := range names {
			path := filepath.Join(objects, filepath.FromSlash(dir), name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[1000] ^= 1
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	names := func(dir string) (names []string) {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(objects, filepath.FromSlash(dir)))
		if err != nil || len(entries) == 0 {
			t.Fatal(err, len(entries))
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	segments, wal := names("segments/data"), names("wal")
	expect := func(code int, want []string, args ...string) {
		t.Helper()
		got, out, errs := sluice(t, append([]string{"fsck", "-c", file}, args...)...)
		if got != code {
			t.Errorf("%v: exit code %d, not %d: %s%s", args, got, code, out, errs)
		}
		for _, w := range want {
			if !strings.Contains(out+errs, w) {
				t.Errorf("%v: no %q in\n%s%s", args, w, out, errs)
			}
		}
	}
	spoil("segments/data", segments...)
	expect(0, []string{"All of it can be read."}) // from the WAL objects
	key := "segments/data/" + segments[0]
	expect(1, []string{"write anew     store default: " + key, fmt.Sprintf("Repair: 0 objects made good, %d would be, 0 cannot be.", len(segments))}, "--repair", "--dry-run")
	expect(1, []string{`"dry_run": true`, `"action": "rewrite"`, `"done": false`, key}, "--repair", "--dry-run", "--json")
	made := fmt.Sprintf("Repair: %d objects made good, 0 would be, 0 cannot be.", len(segments))
	if len(segments) == 1 {
		made = strings.Replace(made, "objects", "object", 1)
	}
	expect(0, []string{"write anew     store default: " + key, made, "no offset is affected", "All of it can be read."}, "--repair")
	expect(0, []string{"All of it can be read."}, "--repair")
	spoil("segments/data", segments...)
	spoil("wal", wal...)
	expect(1, []string{
		"cannot repair  store default: " + key, "is whole in no other object", "otel-a-0, offsets 0 to ", ": garbled", "remedy: it cannot be repaired from what the stores hold; restore",
	}, "--repair")

	for _, args := range [][]string{{"--repair", "otel-*"}, {"--repair", "--sample", "5%"}, {"--repair", "--resume", filepath.Join(t.TempDir(), "state")}} {
		expect(2, []string{"--repair looks at all topics and all bytes"}, args...)
	}
	expect(2, []string{"--dry-run is of --repair"}, "--dry-run")
}

// What is said of locks, and which exit code is whose, is in one place; a store with
// locks is in ./integration.
func TestFsckPrintsLocks(t *testing.T) {
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	l := upkeep.FsckLocks{
		Store: "vault", Where: "s3://vault", Mode: "compliance", Retention: "24h0m0s", Objects: 7, Asked: 6, Locked: 2, Ended: 1, Unlocked: 4, Fixed: 1,
		UnlockedList: []upkeep.Unlocked{
			{Key: "audit/wal/A", Problem: upkeep.NoLock, Needs: at},
			{Key: "audit/wal/B", Problem: upkeep.ShortLock, Mode: "compliance", Until: at.Add(-time.Hour), Needs: at},
			{Key: "audit/wal/C", Problem: upkeep.WeakLock, Mode: "governance", Until: at, Needs: at, Why: "the store says no"},
			{Key: "audit/wal/D", Problem: upkeep.NoLock, Needs: at, Fixed: true},
		},
	}
	var out strings.Builder
	printLocks(&out, l, false)
	l.Fixed = 0
	printLocks(&out, l, false)
	const want = `
store vault (s3://vault): 7 objects under audit/; of them 2 to be locked (compliance, for 24h0m0s after being written), and are; older: 1
  audit/wal/A, to be locked until 2026-05-04T03:02:01Z: not locked
  audit/wal/B, to be locked until 2026-05-04T03:02:01Z: its lock (compliance) ends at 2026-05-04T02:02:01Z
  audit/wal/C, to be locked until 2026-05-04T03:02:01Z: its lock is of governance mode; cannot repair: the store says no
  audit/wal/D, to be locked until 2026-05-04T03:02:01Z: locked now; it was: not locked
UNLOCKED: 3 audit objects.
`
	if got := out.String(); !strings.HasPrefix(got, want) || !strings.Contains(got, "UNLOCKED: 4 audit objects.\n  remedy: `sluice fsck --repair`") {
		t.Errorf("it prints%s", got)
	}
}
