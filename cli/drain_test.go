package cli

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestDrain(t *testing.T) {
	file, _, _, k := filledTopic(t, "otel-a", 3)
	direct, err := kgo.NewClient(kgo.SeedBrokers(k.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	drain := func(want int, args ...string) (string, []drainRow) {
		t.Helper()
		args = append([]string{"drain", "-c", file, "otel-*"}, args...)
		code, out, errs := sluice(t, args...)
		if code != want || errs != "" {
			t.Fatalf("exit code %d: %s%s", code, out, errs)
		}
		_, asJSON, _ := sluice(t, append(args, "--json")...)
		var rows []drainRow
		if err := json.Unmarshal([]byte(asJSON), &rows); err != nil || len(rows) != 1 {
			t.Fatalf("%v: %s", err, asJSON)
		}
		return out, rows
	}
	out, rows := drain(1)
	for _, want := range []string{"otel-a: not out yet.", "class telemetry is diskless", "give the rule otel-*, line ", "- { match: \"otel-a\", class: operational }", "3 of 3 samples", "`sluice copy` writes"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if r := rows[0]; r.Out || r.Exact != nil || r.Line == 0 || r.Sampled.Placeholders != 3 {
		t.Errorf("%+v", r)
	}
	out, rows = drain(1, "--exact")
	if r := rows[0].Exact; r == nil || r.Placeholders != 3 || r.Records != 3 || r.Bytes < 15000 || r.Last == nil || len(r.Partitions) != 1 || !strings.Contains(out, "3 placeholders of 3 records (15 KiB) in partitions [0]") {
		t.Errorf("%+v\n%s", rows[0], out)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), "class: telemetry", "class: control", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, rows = drain(1); rows[0].Change != "" || strings.Contains(out, "is diskless") {
		t.Errorf("%s", out)
	}
	remove := func(below int64) {
		t.Helper()
		offsets := make(kadm.Offsets)
		offsets.Add(kadm.Offset{Topic: "otel-a", Partition: 0, At: below})
		if _, err := kadm.NewClient(direct).DeleteRecords(t.Context(), offsets); err != nil {
			t.Fatal(err)
		}
	}
	// One placeholder among many batches that samples need not hit.
	for range 300 {
		if err := direct.ProduceSync(t.Context(), &kgo.Record{Topic: "otel-a", Value: []byte("inline")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	remove(2)
	if _, rows = drain(1, "--exact"); rows[0].Exact.Placeholders != 1 || rows[0].Exact.Offset != 2 {
		t.Errorf("%+v", rows[0].Exact)
	}
	waiting := start(t, "drain", "-c", file, "otel-a", "--wait", "--every", "1s")
	waiting.errs.await(t, "0 of 1 topics are out.")
	remove(3)
	if code := waiting.code(t); code != 0 || !strings.Contains(waiting.out.String(), "otel-a: out. Class control is not diskless, and no log of it holds a placeholder.") {
		t.Errorf("exit code %d: %s", code, &waiting.out)
	}
	out, rows = drain(0)
	if r := rows[0]; !r.Out || r.Exact == nil || r.Exact.Placeholders != 0 {
		t.Errorf("%+v\n%s", r, out)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-c", file}, "which topics shall leave?"},
		{[]string{"-c", file, "none"}, "no topic matches \"none\""},
		{[]string{"-c", file, "otel-a", "--every", "0s"}, "choose 1s or more"},
		{[]string{"-c", settings{kafka: []string{deadAddress(t)}}.file(t), "otel-a"}, "`sluice check --live` looks closer"},
	} {
		code, out, errs := sluice(t, append([]string{"drain"}, tt.args...)...)
		if code != 2 || out != "" || !strings.Contains(errs, tt.want) {
			t.Errorf("%v: exit code %d, %s, no %q in %s", tt.args, code, out, tt.want, errs)
		}
	}
}

// A broker that hangs up is asked again; one that refuses is believed.
func TestDrainWaitsOutWhatPasses(t *testing.T) {
	file, _, _, k := filledTopic(t, "otel-a", 1)
	waiting := func() *command {
		return start(t, "drain", "-c", file, "otel-a", "--wait", "--every", "1s")
	}
	var down, refused atomic.Bool
	k.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		if down.Load() {
			return nil, errors.New("hang up"), true
		}
		if !refused.Load() {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
		for _, t := range req.(*kmsg.ListOffsetsRequest).Topics {
			rt := kmsg.NewListOffsetsResponseTopic()
			rt.Topic = t.Topic
			for _, p := range t.Partitions {
				rp := kmsg.NewListOffsetsResponseTopicPartition()
				rp.Partition, rp.ErrorCode = p.Partition, kerr.TopicAuthorizationFailed.Code
				rt.Partitions = append(rt.Partitions, rp)
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	down.Store(true)
	if code, _, errs := sluice(t, "drain", "-c", file, "otel-a"); code != 2 || strings.Contains(errs, "trying again") {
		t.Errorf("without --wait: exit code %d, %s", code, errs)
	}
	c := waiting()
	c.errs.await(t, "trying again in 1s")
	down.Store(false)
	c.errs.await(t, "0 of 1 topics are out.")
	refused.Store(true)
	if code := c.code(t); code != 2 || !strings.Contains(c.errs.String(), "TOPIC_AUTHORIZATION_FAILED") {
		t.Errorf("exit code %d: %s", code, &c.errs)
	}
	down.Store(true)
	c = waiting()
	c.errs.await(t, "trying again in 1s")
	if code := c.stop(t); code != 2 {
		t.Errorf("ended by hand: exit code %d: %s", code, &c.errs)
	}
}
