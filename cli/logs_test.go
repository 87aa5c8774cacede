package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/server"
)

// A topic that has left the diskless tier still holds placeholders, and
// somebody wants to know until when.
func TestTopicsLooksIntoLogs(t *testing.T) {
	k := fakeKafka(t, kfake.SeedTopics(1, "otel-left", "otel-forever", "otel-ages", "otel-empty", "plain"))
	s := settings{kafka: k.ListenAddrs(), port: harness.Ports(t, 2+brokerPorts), rest: rulesOnly}
	file := s.file(t)
	c := start(t, "serve", "-c", file)
	c.errs.await(t, "ready: clients may connect")

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", s.port)), kgo.ProducerLinger(0), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	// More milliseconds than a duration can be is for ever, too.
	day, forever, ages := fmt.Sprint(24*time.Hour.Milliseconds()), "-1", fmt.Sprint(int64(math.MaxInt64))
	for topic, retention := range map[string]string{"otel-left": day, "otel-forever": forever, "otel-ages": ages} {
		if _, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &retention}}, topic); err != nil {
			t.Fatal(err)
		}
	}
	// A batch a record, so many that most are never sampled.
	write := func(topic string, batches int, from time.Time) (last time.Time) {
		for i := range batches {
			last = from.Add(time.Duration(i) * time.Second).Truncate(time.Millisecond)
			if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: make([]byte, 4000), Timestamp: last}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		return last
	}
	begun := time.Now().Add(-time.Hour)
	last := write("otel-left", 60, begun)
	write("otel-forever", 3, begun)
	write("otel-ages", 3, begun)
	s.store, s.rest = fileStoreOf(t, file), "default_class: control\n"
	s.write(t, file)
	c.errs.await(t, `"applied":["topics"]`)
	write("otel-left", 90, last)
	write("plain", 3, begun)

	code, out, errs := sluice(t, "topics", "-c", file, "--logs", "--json")
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	var rows []topicRow
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatal(err)
	}
	looks := make(map[string]*server.LogLook)
	for _, r := range rows {
		looks[r.Topic] = r.Log
	}
	left := looks["otel-left"]
	if left.Placeholders < 5 || left.Placeholders >= left.Sampled || left.Sampled > 16+1+24 {
		t.Errorf("%d of %d samples are placeholders", left.Placeholders, left.Sampled)
	}
	if left.Last == nil || !left.Last.Equal(last) || left.AgesOut == nil || !left.AgesOut.Equal(last.Add(24*time.Hour)) || left.Forever {
		t.Errorf("the last placeholder is of %v, it says %v and ages out %v", last, left.Last, left.AgesOut)
	}
	for _, topic := range []string{"otel-forever", "otel-ages"} {
		if kept := looks[topic]; !kept.Forever || kept.AgesOut != nil || kept.Placeholders != kept.Sampled {
			t.Errorf("%s is kept for ever: %+v", topic, kept)
		}
	}
	if empty := looks["otel-empty"]; empty.Sampled != 0 || empty.Last != nil {
		t.Errorf("an empty log: %+v", empty)
	}
	if plain := looks["plain"]; plain.Sampled != 3 || plain.Placeholders != 0 || plain.Last != nil {
		t.Errorf("a log without placeholders: %+v", plain)
	}

	code, out, errs = sluice(t, "topics", "-c", file, "--logs")
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{
		`(?m)^TOPIC .* RULE +PLACEHOLDERS +LAST +AGES OUT$`,
		`(?m)^otel-left .* \d+ of \d+ +` + regexp.QuoteMeta(last.Local().Format("2006-01-02 15:04")),
		`(?m)^otel-forever .* 3 of 3 .* never: retention.ms$`,
		`(?m)^otel-empty .* empty +- +-$`,
		`(?m)^plain .* 0 of 3 +- +-$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if strings.Contains(out, "?") {
		t.Errorf("something could not be read:\n%s", out)
	}
	// The same, by the metrics of a replica that looks often.
	s.rest = "default_class: control\nplaceholders: { every: 1s, fetches_per_second: 10000 }\n"
	s.write(t, file)
	if code := c.stop(t); code != 0 {
		t.Errorf("exit code %d:\n%s", code, &c.errs)
	}
	c = start(t, "serve", "-c", file)
	c.errs.await(t, "ready: clients may connect")
	metrics := func() string {
		t.Helper()
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", s.port+1))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	until := fmt.Sprintf("sluice_topic_placeholders_until_seconds{topic=\"otel-left\"} %v\n", float64(last.Add(24*time.Hour).Unix()))
	got := metrics()
	for ; !strings.Contains(got, until) && ctx.Err() == nil; got = metrics() {
		time.Sleep(50 * time.Millisecond)
	}
	for _, want := range []string{
		until, "sluice_topic_placeholders_until_seconds{topic=\"otel-forever\"} +Inf\n", "sluice_topic_placeholders_until_seconds{topic=\"otel-ages\"} +Inf\n",
		"sluice_topic_placeholder_ratio{topic=\"otel-forever\"} 1\n", "sluice_topic_placeholder_ratio{topic=\"otel-left\"} 0.", "sluice_topic_placeholders_unknown_topics 0\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if strings.Contains(got, `{topic="plain"}`) {
		t.Error("a topic without placeholders is shown")
	}
	if code := c.stop(t); code != 0 {
		t.Errorf("exit code %d:\n%s", code, &c.errs)
	}
}
