package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/upkeep"
)

func TestCopy(t *testing.T) {
	file, _, _, _ := filledTopic(t, "otel-a", 3)
	offsets := filepath.Join(t.TempDir(), "offsets.jsonl")
	code, out, errs := sluice(t, "copy", "-c", file, "otel-a", "--to-topic", "plain", "--offsets-map", offsets)
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{"Topic plain was made.\n", "otel-a-0 to plain: 3 records written; up to offset 3, which is 3 there\n", "3 records, "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if text, err := os.ReadFile(offsets); err != nil || string(text) != `{"topic":"otel-a","partition":0,"source_offset":0,"target_offset":0,"records":3}`+"\n" {
		t.Errorf("%v: %s", err, text)
	}
	// Another cluster; and once more, which finds nothing new.
	other := fakeKafka(t)
	for i, args := range [][]string{{"--prefix", "from-"}, {"--prefix", "from-", "--resume"}} {
		code, out, errs = sluice(t, append([]string{"copy", "-c", file, "otel-a", "--to", strings.Join(other.ListenAddrs(), ","), "--json"}, args...)...)
		var report upkeep.CopyReport
		if err := json.Unmarshal([]byte(out), &report); code != 0 || errs != "" || err != nil || !report.Complete || report.Records != int64(3*(1-i)) || report.Topics[0].To != "from-otel-a" {
			t.Fatalf("exit code %d, %v: %s%s", code, err, out, errs)
		}
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(other.ListenAddrs()...), kgo.ConsumeTopics("from-otel-a"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for n := 0; n < 3; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		for _, r := range fetches.Records() {
			if want := strings.Repeat(string(rune('0'+n)), 5000); string(r.Value) != want {
				t.Errorf("record %d is %.20s", n, r.Value)
			}
			n++
		}
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{}, "which topics are to be copied?"},
		{[]string{"otel-a"}, "onto itself: name the target with --to-topic or --prefix"},
		{[]string{"otel-a", "otel-a"}, "named twice"},
		{[]string{"otel-a", "b", "--to-topic", "x"}, "--to-topic is for one topic"},
		{[]string{"otel-a", "--to", "host"}, "\"host\" is not host:port"},
		{[]string{"otel-a", "--to-topic", "x", "--tls"}, "--tls and --sasl are for --to"},
		{[]string{"otel-a", "--to-topic", "plain"}, "an earlier copy has begun it; --resume goes on"},
		{[]string{"none", "--to-topic", "x"}, "none to x: the source is not in the cluster, or this principal may not see it; `sluice topics` lists what it sees"},
		{[]string{"otel-a", "--to", deadAddress(t)}, "the target: "},
		{[]string{"otel-a", "--to-topic", "x", "--rate", "fast"}, "--rate fast: write a size"},
	} {
		code, out, errs := sluice(t, append([]string{"copy", "-c", file}, tt.args...)...)
		if code != 1 || out != "" || !strings.Contains(errs, tt.want) {
			t.Errorf("%v: exit code %d, %s, no %q in %s", tt.args, code, out, tt.want, errs)
		}
	}
}
