package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/cost"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/lowlatency"
)

// bulk is a topic that would save much: 10 MiB/s in batches of 64 KiB.
func bulk(name string) seen {
	return seen{
		Topic: name, Partitions: 6, Replication: 3, Configured: true, Retention: 24 * time.Hour, RetentionBytes: -1,
		Records: 10240, Bytes: 10 << 20, Size: 900 << 30, Batch: 64 << 10, BatchRecords: 64, Lag: -1,
	}
}

func with(t seen, change func(*seen)) seen {
	change(&t)
	return t
}

func adviserOf(t *testing.T, rules string) *adviser {
	t.Helper()
	a := &adviser{model: cost.Model{Assumptions: cost.Defaults(), Prices: cost.ListPrices(), Classes: config.Builtins()}, least: 10}
	if rules != "" {
		cfg, err := config.Load(settings{kafka: []string{"127.0.0.1:1"}, rest: rules}.file(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.use(cfg); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func TestAdvice(t *testing.T) {
	for _, tt := range []struct {
		topic        seen
		propose, why string
	}{
		{bulk("nobody-reads"), "replay", "no consumer group"},
		{with(bulk("tail"), func(s *seen) { s.Groups, s.Lag = 2, 5000 }), "telemetry", "2 groups, reading at the end"},
		{with(bulk("late"), func(s *seen) { s.Groups, s.Lag = 1, 10240*3600 }), "replay", "1 group, the nearest 1h0m0s behind"},
		{with(bulk("batch-job"), func(s *seen) { s.Groups = 1 }), "replay", "1 group, none with members now"},
		{with(bulk("kept"), func(s *seen) { s.Retention = -1 }), "replay", "no consumer group"},
		{with(bulk("changelog"), func(s *seen) { s.Compacted = true }), "", "compacted: compaction would destroy placeholders"},
		{with(bulk("__consumer_offsets"), func(s *seen) { s.Internal, s.Compacted = true, true }), "", "internal: Kafka's own"},
		{with(bulk("secret"), func(s *seen) { s.Configured = false }), "", "its configuration could not be read"},
		{with(bulk("tiered"), func(s *seen) { s.Remote = true }), "", "tiered storage (remote.storage.enable) has it in objects; turn that off first"},
		{with(bulk("idle"), func(s *seen) { s.Records, s.Bytes = 0, 0 }), "", "no record came in"},
		{with(bulk("placeholders"), func(s *seen) { s.Placeholders = 1 }), "", "diskless already: what brokers show are placeholders"},
		{bulk("otel-traces"), "", "diskless already, by its rule"},
		{with(bulk("tiny"), func(s *seen) { s.Batch, s.BatchRecords, s.Bytes = 200, 2, 20480*100 }), "", "batches of 200 B with 2 records are too small for placeholders"},
		{with(bulk("little"), func(s *seen) { s.Bytes, s.Records, s.Size = 1<<10, 1, 1<<20 }), "", "as replay it would save $0.15 a month only"},
	} {
		t.Run(tt.topic.Topic, func(t *testing.T) {
			// Beside a large topic, so that requests are shared.
			s := &survey{Racks: 3, Watched: time.Minute, Topics: []seen{tt.topic, with(bulk("large"), func(s *seen) { s.Bytes, s.Records = 50<<20, 51200 })}}
			r := adviserOf(t, rulesOnly).advise(s)
			for _, got := range r.Topics {
				if got.Topic == tt.topic.Topic && (got.Propose != tt.propose || !strings.HasPrefix(got.Why, strings.SplitN(tt.why, "$", 2)[0])) {
					t.Errorf("proposed: %q, because %s; now %f, then %f", got.Propose, got.Why, got.Now, got.Then)
				}
			}
		})
	}
}

// The money of one topic by hand, with early seals left out.
func TestAdviceInMoney(t *testing.T) {
	a := adviserOf(t, "")
	for _, set := range []string{"early_puts=0", "objects_outlive=0s", "lists_per_day=0", "catch_up=0%", "placeholder_record=0B"} {
		if err := a.model.Assign(set); err != nil {
			t.Fatal(err)
		}
	}
	r := a.advise(&survey{Racks: 3, Watched: time.Minute, Topics: []seen{with(bulk("x"), func(s *seen) { s.Groups, s.Lag = 2, 0 })}})
	x := r.Topics[0]
	// 10 MiB/s are 843.75 GB a day, × 3 ÷ 0.6 × $0.08 = $337.50; 25,312.5 GB a month
	// × $0.02 × (2/3 to leaders + 2 to followers + none to consumers) = $1,350.
	if want := 1687.5; x.Now < want-0.01 || x.Now > want+0.01 {
		t.Errorf("now $%f, by hand $%f", x.Now, want)
	}
	// Placeholders: 160 batches × 140 B = 22,400 B/s, 54.07 GB a month × $0.02 × (2/3 + 2
	// + 2 × 2/3) = $4.33; 1.802 GB a day × 5 × $0.08 = $0.72. Objects: 843.75 × $0.023 =
	// $19.41. PUTs: three replicas, each 4 lingers a second: 12 × 2,592,000 × $5/M = $155.52;
	// two GETs of each: $24.88.
	if want := 4.33 + 0.72 + 19.41 + 155.52 + 24.88; x.Then < want-0.02 || x.Then > want+0.02 {
		t.Errorf("then $%f, by hand $%f", x.Then, want)
	}
	if r.Now != x.Now || r.Then != x.Then || r.Replicas != 3 || x.Propose != "telemetry" {
		t.Errorf("%+v", r)
	}
}

// Topics that pay only as long as others share their objects are not proposed
// when these are not.
func TestAdviceDependsOnCompany(t *testing.T) {
	small := func(i int) seen {
		return with(bulk(fmt.Sprintf("small-%d", i)), func(s *seen) {
			s.Bytes, s.Records, s.Size = 300<<10, 300, 20<<30
			s.Groups, s.Lag = 1, 0
		})
	}
	// One has to pay for 12 PUTs a second by itself.
	alone := adviserOf(t, "").advise(&survey{Racks: 3, Watched: time.Minute, Topics: []seen{small(0)}})
	if got := alone.Topics[0]; got.Propose != "" || got.Why != "as telemetry it would cost more: PUTs are paid by the piece" || alone.Now != 0 {
		t.Errorf("%+v", got)
	}
	var many []seen
	for i := range 40 {
		many = append(many, small(i))
	}
	together := adviserOf(t, "").advise(&survey{Racks: 3, Watched: time.Minute, Topics: many})
	for _, got := range together.Topics {
		if got.Propose != "telemetry" {
			t.Errorf("%s: %s; now %f, then %f", got.Topic, got.Why, got.Now, got.Then)
		}
	}
}

// A load that no replica carries is no reason to say nothing.
func TestAdviceForMoreThanAMachine(t *testing.T) {
	r := adviserOf(t, "").advise(&survey{Watched: time.Minute, Topics: []seen{with(bulk("x"), func(s *seen) { s.Bytes, s.Groups, s.Lag = 5<<30, 1, 0 })}})
	if r.Topics[0].Propose != "telemetry" || len(r.Unknown) != 1 || !strings.Contains(r.Unknown[0], "reckon with larger ones") {
		t.Errorf("%+v", r)
	}
}

// What brokers say of zones goes before what is assumed, unless a person says it.
func TestZonesOfAdvice(t *testing.T) {
	for _, tt := range []struct {
		racks int
		given bool
		zones int
		note  string
	}{
		{0, false, 3, "Brokers name no rack: 3 zones are assumed"},
		{2, false, 2, ""},
		{1, false, 1, "All brokers are in one zone"},
		{2, true, 3, ""},
	} {
		a := adviserOf(t, "")
		a.zonesGiven = tt.given
		r := a.advise(&survey{Racks: tt.racks, Watched: time.Minute})
		if notes := strings.Join(r.Notes, "\n"); r.Zones != tt.zones || !strings.Contains(notes, tt.note) || tt.note == "" && strings.Contains(notes, "zone") && strings.Contains(notes, "Brokers") {
			t.Errorf("%d racks: %d zones\n%s", tt.racks, r.Zones, notes)
		}
	}
}

func clusterOf(t *testing.T, addrs []string) *lowlatency.Cluster {
	t.Helper()
	c, err := lowlatency.New(lowlatency.Options{Bootstrap: addrs, Logger: zerolog.Nop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// fill writes records of 4,000 bytes, ten in a batch.
func fill(t *testing.T, cl *kgo.Client, topic string, partition int32, batches int) {
	t.Helper()
	for range batches {
		var records []*kgo.Record
		for range 10 {
			records = append(records, &kgo.Record{Topic: topic, Partition: partition, Key: []byte("k"), Value: make([]byte, 4000)})
		}
		if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func producer(t *testing.T, addrs []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(addrs...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(time.Millisecond), kgo.ProducerBatchCompression(kgo.NoCompression())}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func TestSurvey(t *testing.T) {
	k := fakeKafka(t, kfake.SeedTopics(2, "bulk", "idle", "changelog", "for-ever"))
	cl := producer(t, k.ListenAddrs())
	adm := kadm.NewClient(cl)
	for topic, set := range map[string][2]string{"changelog": {"cleanup.policy", "compact"}, "bulk": {"retention.ms", "3600000"}, "for-ever": {"retention.ms", "-1"}} {
		if _, err := adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: set[0], Value: &set[1]}}, topic); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, cl, "bulk", 0, 3)
	fill(t, cl, "idle", 0, 1)
	fill(t, cl, "changelog", 0, 1)
	// A group that has read half of what there is, and has no members.
	if _, err := adm.CommitOffsets(t.Context(), "half", kadm.Offsets{"bulk": {0: {Topic: "bulk", Partition: 0, At: 15}}}); err != nil {
		t.Fatal(err)
	}
	// And one that has members and reads all.
	tail, err := kgo.NewClient(kgo.SeedBrokers(k.ListenAddrs()...), kgo.ConsumerGroup("tail"), kgo.ConsumeTopics("bulk"), kgo.DisableAutoCommit())
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	once := producer(t, k.ListenAddrs(), kgo.DisableIdempotentWrite())
	s, err := takeSurvey(t.Context(), clusterOf(t, k.ListenAddrs()), func(context.Context) error {
		fill(t, cl, "bulk", 0, 4)
		fill(t, cl, "bulk", 1, 2)
		fill(t, once, "for-ever", 0, 1)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for read := 0; read < 90 && ctx.Err() == nil; {
			read += tail.PollFetches(ctx).NumRecords()
		}
		return tail.CommitUncommittedOffsets(ctx)
	})
	if err != nil || len(s.Unknown) > 0 {
		t.Fatalf("%v, %v", err, s.Unknown)
	}
	topics := map[string]seen{}
	for _, x := range s.Topics {
		topics[x.Topic] = x
	}
	if x := topics["bulk"]; x.Partitions != 2 || x.Groups != 2 || x.Lag != 0 || x.Retention != time.Hour || !x.Configured || x.Compacted || x.Placeholders != 0 || x.NoProducerID {
		t.Errorf("%+v", x)
	}
	// 60 records of 4,000 bytes and some came in.
	x, seconds := topics["bulk"], s.Watched.Seconds()
	if came := x.Records * seconds; came < 59.99 || came > 60.01 {
		t.Errorf("%f records", came)
	}
	if each := x.Bytes / x.Records; each < 4000 || each > 4100 || x.BatchRecords != 10 || x.Batch < 40000 || x.Batch > 41000 || x.Size < 9*40000 {
		t.Errorf("%+v", x)
	}
	if x := topics["idle"]; x.Records != 0 || x.Bytes != 0 || x.Size == 0 || x.Groups != 0 {
		t.Errorf("%+v", x)
	}
	if x := topics["changelog"]; !x.Compacted {
		t.Errorf("%+v", x)
	}
	if x := topics["for-ever"]; x.Retention >= 0 || !x.NoProducerID {
		t.Errorf("%+v", x)
	}
}

// What may not be asked is said, and the rest is done without it.
func TestSurveyOfWhatOneMaySee(t *testing.T) {
	k := fakeKafka(t, kfake.SeedTopics(1, "bulk"))
	cl := producer(t, k.ListenAddrs())
	for _, key := range []kmsg.Key{kmsg.DescribeLogDirs, kmsg.ListGroups} {
		k.ControlKey(key.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) {
			k.KeepControl()
			switch resp := req.ResponseKind().(type) {
			case *kmsg.DescribeLogDirsResponse:
				resp.ErrorCode = kerr.ClusterAuthorizationFailed.Code
				return resp, nil, true
			case *kmsg.ListGroupsResponse:
				resp.ErrorCode = kerr.GroupAuthorizationFailed.Code
				return resp, nil, true
			}
			return nil, nil, false
		})
	}
	s, err := takeSurvey(t.Context(), clusterOf(t, k.ListenAddrs()), func(context.Context) error {
		fill(t, cl, "bulk", 0, 2)
		return nil
	})
	if err != nil || len(s.Topics) != 1 || s.Topics[0].Topic != "bulk" {
		t.Fatalf("%v, %+v", err, s)
	}
	// The bytes are those of a batch.
	if x := s.Topics[0]; x.Bytes/x.Records < 4000 || x.Bytes/x.Records > 4100 {
		t.Errorf("%+v", x)
	}
	said := strings.Join(s.Unknown, "\n")
	for _, want := range []string{"DESCRIBE on the cluster", "consumer groups cannot be read"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not said in\n%s", want, said)
		}
	}
	wrong := errors.New("enough")
	if _, err := takeSurvey(t.Context(), clusterOf(t, k.ListenAddrs()), func(context.Context) error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("interrupted: %v", err)
	}
}

// What is printed can be pasted, and changes nothing before.
func TestAdvise(t *testing.T) {
	k := fakeKafka(t, kfake.SeedTopics(1, "bulk", "idle", "otel-x"))
	cl := producer(t, k.ListenAddrs())
	fill(t, cl, "bulk", 0, 1)
	var running output
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := make(chan int, 1)
	var out output
	go func() {
		done <- Run(ctx, []string{"advise", "--bootstrap", strings.Join(k.ListenAddrs(), ","), "--watch", "1s", "--min-saving", "0.01", "--assume", "early_puts=0", "--assume", "broker_partitions=100"}, &out, &running)
	}()
	running.await(t, "Watching for 1s.")
	// Written until it has seen enough: some MB at least, so that it pays.
	for code := -1; code != 0; {
		select {
		case code = <-done:
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, &running)
			}
		default:
			fill(t, cl, "bulk", 0, 10)
		}
	}
	for _, want := range []string{
		`(?m)^# sluice advise: cluster \S+, watched for \d+s. Nothing has been changed.$`,
		`(?m)^# TOPIC +IN/S +BATCH +KEPT`,
		`(?m)^# bulk .* replay +no consumer group$`,
		`(?m)^# idle .* no record came in$`,
		`(?m)^# It cannot see what acknowledgement`,
		`(?m)^# All brokers are in one zone`,
		`(?m)^  - \{ match: "bulk", class: replay \} # saves \$`,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no %s in\n%s", want, &out)
		}
	}
	s := settings{kafka: k.ListenAddrs(), rest: out.String() + "default_class: control\n"}
	if cfg, err := config.Load(s.file(t)); err != nil || len(cfg.Rules) != 1 || cfg.Rules[0].Class != "replay" {
		t.Errorf("pasted: %v", err)
	}

	code, asJSON, errs := sluice(t, "advise", "-c", settings{kafka: k.ListenAddrs()}.file(t), "--watch", "1s", "--json")
	var r advice
	if err := json.Unmarshal([]byte(asJSON), &r); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v: %s", code, err, errs)
	}
	if len(r.Topics) != 3 || r.Zones != 1 || r.Racks != 1 || r.Watched < 1 || len(r.Notes) < 3 {
		t.Errorf("%+v", r)
	}
	for _, x := range r.Topics {
		if want := map[string]string{"bulk": "control", "idle": "control", "otel-x": "telemetry"}[x.Topic]; x.Class != want || x.Propose != "" {
			t.Errorf("%+v", x)
		}
	}
	code, text, _ := sluice(t, "advise", "-c", settings{kafka: k.ListenAddrs()}.file(t), "--watch", "1s")
	if code != 0 || !strings.Contains(text, "# No topic is proposed") || strings.Contains(text, "\ntopics:") {
		t.Errorf("exit code %d:\n%s", code, text)
	}

	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--watch", "1ms"}, "--watch takes from 1s to 168h, not 1ms"},
		{[]string{"--min-saving", "-1"}, "--min-saving takes an amount from 0"},
		{[]string{"--assume", "zone=1", "--bootstrap", "x:1"}, "there is no assumption"},
		{[]string{"-c", "none.yaml"}, "there is no such file"},
		{[]string{"-c", "none.yaml", "--bootstrap", "x:1"}, "[bootstrap config]"},
		{[]string{"--bootstrap", deadAddress(t)}, "`sluice check --live` looks closer"},
	} {
		code, out, errs := sluice(t, append([]string{"advise"}, tt.args...)...)
		if code != 1 || out != "" || !strings.Contains(errs, tt.want) {
			t.Errorf("%v: exit code %d, %s\n%s", tt.args, code, errs, out)
		}
	}
}

// Through a sluice placeholders look like payloads, and nothing would be right.
func TestAdviseRefusesToLookThroughSluice(t *testing.T) {
	k := fakeKafka(t, kfake.SeedTopics(1, "otel-x"))
	s := settings{kafka: k.ListenAddrs(), port: harness.Ports(t, 2+brokerPorts)}
	c := start(t, "serve", "-c", s.file(t))
	c.errs.await(t, "ready: clients may connect")
	code, out, errs := sluice(t, "advise", "--bootstrap", fmt.Sprintf("127.0.0.1:%d", s.port), "--watch", "1h")
	if code != 1 || out != "" || !strings.Contains(errs, "this is the address of a sluice") {
		t.Errorf("exit code %d, %s\n%s", code, errs, out)
	}
	if code := c.stop(t); code != 0 {
		t.Errorf("exit code %d:\n%s", code, &c.errs)
	}
}
