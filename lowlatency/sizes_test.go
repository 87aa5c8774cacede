package lowlatency

import (
	"math"
	"strconv"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/tiers"
)

// What is not certain to be a limit for Kafka is none, or not known.
func TestSizeLimit(t *testing.T) {
	const ours = "telemetry"
	for _, c := range []struct {
		what, topic string
		configs     map[string]string
		want        int64
		unknown     bool
	}{
		{what: "a limit", configs: map[string]string{"retention.bytes": "1000", "cleanup.policy": "delete", "remote.storage.enable": "false"}, want: 1000},
		{what: "brokers before tiered storage", configs: map[string]string{"retention.bytes": "1000", "cleanup.policy": "delete"}, want: 1000},
		{what: "nothing is kept", configs: map[string]string{"retention.bytes": "0", "cleanup.policy": "delete"}, want: 0},
		{what: "the largest", configs: map[string]string{"retention.bytes": "9223372036854775807", "cleanup.policy": "delete"}, want: math.MaxInt64},
		{what: "no limit", configs: map[string]string{"retention.bytes": "-1", "cleanup.policy": "delete"}, want: -1},
		{what: "odd", configs: map[string]string{"retention.bytes": "-2", "cleanup.policy": "delete"}, want: -1},
		{what: "compacted", configs: map[string]string{"retention.bytes": "1000", "cleanup.policy": "compact"}, want: -1},
		{what: "both", configs: map[string]string{"retention.bytes": "1000", "cleanup.policy": "compact,delete"}, want: -1},
		{what: "kept for ever", configs: map[string]string{"retention.bytes": "1000", "cleanup.policy": ""}, want: -1},
		{what: "policy withheld", configs: map[string]string{"retention.bytes": "1000"}, want: -1},
		{what: "tiered", configs: map[string]string{"retention.bytes": "1000", "cleanup.policy": "delete", "remote.storage.enable": "true"}, want: -1},
		{what: "Kafka's own", topic: "__share_group_state", configs: map[string]string{"retention.bytes": "1000", "cleanup.policy": "delete"}, want: -1},
		{what: "withheld", configs: map[string]string{"cleanup.policy": "delete"}, unknown: true},
		{what: "too large", configs: map[string]string{"retention.bytes": "9223372036854775808", "cleanup.policy": "delete"}, unknown: true},
	} {
		r := kmsg.NewDescribeConfigsResponseResource()
		if r.ResourceName = c.topic; c.topic == "" {
			r.ResourceName = ours
		}
		for _, name := range append(limiting, "segment.bytes") {
			cfg := kmsg.NewDescribeConfigsResponseResourceConfig()
			cfg.Name = name
			if v, ok := c.configs[name]; ok {
				cfg.Value = &v
			}
			r.Configs = append(r.Configs, cfg)
		}
		if got, ok := sizeLimit(r); ok == c.unknown || ok && got != c.want {
			t.Errorf("%s: %d, known: %v", c.what, got, ok)
		}
	}
}

// Brokers have defaults of their own: the leader is asked for its.
func TestLeaderLimitIsTheLeaders(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.kafka.ControlKey(int16(kmsg.DescribeConfigs), func(req kmsg.Request) (kmsg.Response, error, bool) {
			w.kafka.KeepControl()
			resp := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
			r := kmsg.NewDescribeConfigsResponseResource()
			r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, "orders"
			for name, value := range map[string]string{retentionBytes: strconv.Itoa(1000 + int(w.kafka.CurrentNode())), cleanupPolicy: policyDelete} {
				cfg := kmsg.NewDescribeConfigsResponseResourceConfig()
				cfg.Name, cfg.Value = name, &value
				r.Configs = append(r.Configs, cfg)
			}
			resp.Resources = append(resp.Resources, r)
			return resp, nil, true
		})
		w.connect()
		for leader := range int32(3) {
			l := tiers.LedLog{TopicPartition: tiers.TopicPartition{Topic: "orders"}, Leader: leader}
			if got, err := w.tier.LeaderLimit(w.Context(), l); err != nil || got != 1000+int64(leader) {
				w.Errorf("broker %d: %d, %v", leader, got, err)
			}
		}
		got, err := w.tier.SizeLimits(w.Context(), []string{"orders"})
		if first := 1000 + int64(w.tier.Brokers()[0].ID); err != nil || got["orders"] != first {
			w.Errorf("all: %v, %v; the first broker says %d", got, err, first)
		}
	})
}
