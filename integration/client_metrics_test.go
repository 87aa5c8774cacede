package integration

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/harness"
)

// What a Java client measures of itself (KIP-714) reaches a plugin of the
// brokers through sluice as it does directly: the same metrics.
func TestLongClientMetricsReachTheBrokersPlugin(t *testing.T) {
	harness.Long(t)
	reports := filepath.Join(t.TempDir(), "reports")
	k := harness.StartKafka(t, harness.KafkaOptions{ClientMetrics: reports})
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: fileStore(t)})
	jvm := k.StartJVM(t)

	subscribe := kmsg.NewPtrIncrementalAlterConfigsRequest()
	resource := kmsg.NewIncrementalAlterConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeClientMetrics, "everything"
	for _, kv := range [][2]string{{"metrics", "*"}, {"interval.ms", "200"}} {
		c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		c.Name, c.Value = kv[0], kmsg.StringPtr(kv[1])
		resource.Configs = append(resource.Configs, c)
	}
	subscribe.Resources = append(subscribe.Resources, resource)
	resp, err := subscribe.RequestWith(t.Context(), client(t, s.Bootstrap))
	if err != nil || resp.Resources[0].ErrorCode != 0 {
		t.Fatalf("subscribing to clients' metrics: %v %+v", err, resp)
	}

	// pushed is what the plugin has of a client.
	pushed := func(id string) (names map[string]bool, pushes int) {
		b, err := os.ReadFile(reports)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		names = make(map[string]bool)
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if f[0] != id {
				continue
			}
			pushes++
			for _, name := range f[1:] {
				names[name] = true
			}
		}
		return names, pushes
	}
	var direct []string
	for _, tg := range []target{
		{name: "direct", bootstrap: bootstrapOf(k)},
		{name: "control", bootstrap: s.Bootstrap, sluice: s},
		{name: "telemetry", bootstrap: s.Bootstrap, sluice: s, diskless: true},
	} {
		t.Run(tg.name, func(t *testing.T) {
			topic, id, enough := tg.topic("measured"), "measures-"+tg.name, filepath.Join(t.TempDir(), "enough")
			tg.create(t, topic, 1)
			ended := make(chan harness.JavaResult, 1)
			go func() {
				line := fmt.Sprintf("%s 0 _ - %s\n", topic, javaText([]byte(strings.Repeat("measured ", 1000))))
				ended <- jvm.TryJava(line+"flush\nuntil "+enough+"\n", "Client", "produce", tg.bootstrap, "client.id="+id)
			}()
			eventually(t, "the plugin has several pushes", func() (bool, string) {
				names, pushes := pushed(id)
				return pushes >= 3 && names["org.apache.kafka.producer.record.send.total"], fmt.Sprintf("%d pushes of %d metrics", pushes, len(names))
			})
			if err := os.WriteFile(enough, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if r := <-ended; r.Err != nil {
				t.Fatalf("%v\n%s", r.Err, r.Stderr)
			}
			names, pushes := pushed(id)
			t.Logf("%d pushes of %d metrics", pushes, len(names))
			got := slices.Sorted(maps.Keys(names))
			if tg.sluice == nil {
				direct = got
			} else if !slices.Equal(got, direct) {
				t.Errorf("the plugin has\n%v\nand directly\n%v", got, direct)
			}
		})
	}
	for _, api := range []string{"GetTelemetrySubscriptions", "PushTelemetry"} {
		if s.metric(t, "sluice_proxy_requests_total", "api", api) == 0 {
			t.Errorf("no %s went through sluice", api)
		}
	}
}
