package integration

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/cli"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// `sluice advise` sees of a real cluster what there is.
func TestLongAdviseOnRealKafka(t *testing.T) {
	harness.Long(t)
	kafka := sharedKafka(t)
	bulk, silent, changelog := "advise-bulk", "advise-silent", "advise-changelog"
	for topic, policy := range map[string]string{bulk: "delete", silent: "delete", changelog: "compact"} {
		createTopic(t, kafka.Bootstrap()[0], topic, 3, "cleanup.policy", policy, "retention.ms", "3600000")
	}
	const perSecond, size = 600, 4 << 10
	l := startLoad(t, history.New(), workload{Bootstrap: kafka.Bootstrap()[0], Topics: []string{bulk, changelog}, PerSecond: perSecond, Size: size,
		Opts: []kgo.Opt{kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.UnknownTopicRetries(-1)}})
	l.awaitMore(50, bulk, changelog)
	adm := kadm.NewClient(client(t, kafka.Bootstrap()[0]))
	if err := adm.CommitAllOffsets(t.Context(), "advise-group", kadm.Offsets{bulk: {0: {Topic: bulk, Partition: 0, At: 1}}}); err != nil {
		t.Fatal(err)
	}

	var out, errs bytes.Buffer
	code := cli.Run(t.Context(), []string{"advise", "--bootstrap", strings.Join(kafka.Bootstrap(), ","), "--watch", "2s", "--min-saving", "0", "--assume", "early_puts=0", "--json"}, &out, &errs)
	l.stop()
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	var r struct {
		Topics []struct {
			Topic      string
			Partitions int
			Bytes      float64 `json:"bytes_per_second"`
			Records    float64 `json:"records_per_second"`
			Batch      float64 `json:"batch_bytes"`
			Size       int64   `json:"log_bytes"`
			Retention  float64 `json:"retention_seconds"`
			Groups     int
			Propose    string
			Why        string
			Now        float64 `json:"now_month"`
		}
		Unknown []string `json:"could_not_see"`
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, x := range r.Topics {
		seen[x.Topic] = true
		switch x.Topic {
		case bulk:
			// The rate is the machine's; what a record takes is not, as far as offsets and
			// sizes are asked for one after the other.
			if each := x.Bytes / x.Records; x.Partitions != 3 || x.Records <= 0 || each < size/2 || each > size*2 || x.Batch < size || x.Size <= 0 || x.Retention != 3600 || x.Groups != 1 || x.Now <= 0 {
				t.Errorf("%+v", x)
			}
		case silent:
			if x.Propose != "" || x.Why != "no record came in" {
				t.Errorf("%+v", x)
			}
		case changelog:
			if x.Propose != "" || !strings.HasPrefix(x.Why, "compacted") || x.Records <= 0 {
				t.Errorf("%+v", x)
			}
		case "__consumer_offsets":
			if x.Propose != "" || !strings.HasPrefix(x.Why, "internal") {
				t.Errorf("%+v", x)
			}
		}
	}
	for _, topic := range []string{bulk, silent, changelog, "__consumer_offsets"} {
		if !seen[topic] {
			t.Errorf("%s is not in\n%s", topic, &out)
		}
	}
}
