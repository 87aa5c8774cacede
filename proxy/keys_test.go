package proxy_test

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy"
	"github.com/sluice-kafka/sluice/tiers"
)

const twin = 1 << 20 // between a broker's two ids

// versions runs a test over every version that the proxy speaks of a key.
func versions(t *testing.T, key int16, diskless bool, fn func(t *testing.T, r *rig, version int16)) {
	t.Helper()
	for _, a := range proxy.APIs() {
		if a.Key != key {
			continue
		}
		for v := a.Min; v <= a.Max; v++ {
			t.Run(fmt.Sprintf("%s v%d", a.Name, v), func(t *testing.T) {
				inBubbleWith(t, proxy.Limits{}, diskless, func(r *rig) { fn(t, r, v) })
			})
		}
	}
}

// exchange sends req and has the broker answer it with resp; got is what the
// broker was asked. The client's answer is read into answer.
func (r *rig) exchange(to string, req kmsg.Request, resp, answer kmsg.Response) (got kmsg.Request) {
	r.t.Helper()
	c, b := r.pair(to)
	got = kmsg.RequestForKey(req.Key())
	for _, m := range []interface{ SetVersion(int16) }{resp, answer} {
		m.SetVersion(req.GetVersion())
	}
	c.ask(1, req)
	b.respond(b.received(got), resp)
	c.answer(1, answer)
	return got
}

// passesUnchanged checks that a request reaches the broker as it was sent.
func (r *rig) passesUnchanged(to string, req kmsg.Request) {
	r.t.Helper()
	c, b := r.pair(to)
	sent := encode(1, req)
	c.raw(sent)
	got, err := b.next()
	if err != nil {
		r.t.Fatal(err)
	}
	if !bytes.Equal(got, sent[4:]) {
		r.t.Error("the request was changed on its way")
	}
}

func TestKnownAPIs(t *testing.T) {
	seen := map[int16]bool{}
	for _, a := range proxy.APIs() {
		if seen[a.Key] {
			t.Errorf("key %d is in the table twice", a.Key)
		}
		seen[a.Key] = true
		if a.Treatment == proxy.Hide {
			if a.Why == "" {
				t.Errorf("%s is hidden without a reason", a.Name)
			}
			continue
		}
		if a.Min > a.Max {
			t.Errorf("%s: versions %d to %d", a.Name, a.Min, a.Max)
		}
		req := kmsg.RequestForKey(a.Key)
		if a.Treatment == proxy.Relay {
			continue // its header may be read as that of any version
		}
		if req == nil || req.MaxVersion() < a.Max {
			t.Errorf("%s is rewritten up to v%d, which the codec does not know", a.Name, a.Max)
		}
	}
}

func TestUnknownFlexibleVersionsAreRelayed(t *testing.T) {
	// A relayed version may be newer than the codec: nothing of it is read but
	// what every header has.
	inBubble(t, proxy.Limits{}, func(r *rig) {
		c, b := r.pair(bootstrap)
		for _, a := range proxy.APIs() {
			if a.Treatment != proxy.Relay || a.Key == 20 || a.Key == 21 { // deletions are looked into
				continue
			}
			body := "\x01\x05\x02\xff\xff anything at all \xff"
			sent := []byte{0, 0, 0, byte(8 + 2 + 4 + len(body)), byte(a.Key >> 8), byte(a.Key), 0, byte(a.Max), 0, 0, 0, 9, 0, 4}
			sent = append(sent, "test\x00"...)
			sent = append(sent, body...)
			sent[3]++
			c.raw(sent)
			got, err := b.next()
			if err != nil {
				t.Fatalf("%s v%d: %v", a.Name, a.Max, err)
			}
			if !bytes.Equal(got, sent[4:]) {
				t.Fatalf("%s v%d was changed", a.Name, a.Max)
			}
			b.raw([]byte{0, 0, 0, 7, 0, 0, 0, 9, 1, 2, 3})
			if got := c.expect(9); !bytes.Equal(got[4:], []byte{1, 2, 3}) {
				t.Fatalf("the answer of %s v%d was changed", a.Name, a.Max)
			}
		}
	})
}

func apiVersion(key, low, high int16) kmsg.ApiVersionsResponseApiKey {
	k := kmsg.NewApiVersionsResponseApiKey()
	k.ApiKey, k.MinVersion, k.MaxVersion = key, low, high
	return k
}

func TestApiVersions(t *testing.T) {
	versions(t, 18, true, func(t *testing.T, r *rig, v int16) {
		resp := kmsg.NewPtrApiVersionsResponse()
		resp.ApiKeys = append(resp.ApiKeys,
			apiVersion(0, 0, 13), apiVersion(1, 0, 18), apiVersion(2, 1, 3), apiVersion(4, 0, 7),
			apiVersion(17, 0, 1), apiVersion(18, 0, 5), apiVersion(76, 0, 1), apiVersion(78, 0, 3), apiVersion(3, 14, 20), apiVersion(9999, 0, 1))
		req := kmsg.NewPtrApiVersionsRequest()
		req.SetVersion(v)
		got := kmsg.NewPtrApiVersionsResponse()
		r.exchange(bootstrap, req, resp, got)
		var lines []string
		for _, k := range got.ApiKeys {
			lines = append(lines, fmt.Sprintf("%d:%d-%d", k.ApiKey, k.MinVersion, k.MaxVersion))
		}
		// Produce keeps the broker's minimum (librdkafka needs it), Fetch loses
		// what brokers would convert, SaslHandshake what has no framing,
		// ShareFetch its early form.
		want := "0:0-13 1:4-18 2:1-3 17:1-1 18:0-4 76:0-1 78:1-2"
		if got := strings.Join(lines, " "); got != want {
			t.Errorf("offered %s, want %s", got, want)
		}
	})
	unsupported := func(t *testing.T, b []byte, low, high int16) {
		t.Helper()
		resp := kmsg.NewPtrApiVersionsResponse()
		resp.SetVersion(0)
		if err := resp.ReadFrom(b[4:]); err != nil {
			t.Fatalf("not a v0 body: %v", err)
		}
		if resp.ErrorCode != 35 || len(resp.ApiKeys) != 1 || resp.ApiKeys[0].ApiKey != 18 || resp.ApiKeys[0].MinVersion != low || resp.ApiKeys[0].MaxVersion != high {
			t.Errorf("got %+v", resp)
		}
	}
	t.Run("a version that the proxy does not know is answered in v0", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			c := r.connect(bootstrap)
			c.raw([]byte("\x00\x00\x00\x0c\x00\x12\x00\x63\x00\x00\x00\x05\xff\xff\x00\x00"))
			unsupported(t, c.expect(5), 0, 4)
		})
	})
	t.Run("a version that the broker does not know is answered in v0", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			c, b := r.pair(bootstrap)
			req := kmsg.NewPtrApiVersionsRequest()
			req.SetVersion(4)
			c.ask(5, req)
			resp := kmsg.NewPtrApiVersionsResponse()
			resp.SetVersion(0)
			resp.ErrorCode = 35
			resp.ApiKeys = append(resp.ApiKeys, apiVersion(18, 0, 3))
			b.respond(b.received(kmsg.NewPtrApiVersionsRequest()), resp)
			unsupported(t, c.expect(5), 0, 3)
		})
	})
}

func metadataResponse(version int16, topics ...string) *kmsg.MetadataResponse {
	resp := kmsg.NewPtrMetadataResponse()
	resp.SetVersion(version)
	resp.ControllerID = 2
	cluster := "cluster"
	resp.ClusterID = &cluster
	for _, id := range []int32{0, 2, 77} { // 77 is outside the layout
		b := kmsg.NewMetadataResponseBroker()
		rack := "rack"
		b.NodeID, b.Host, b.Port, b.Rack = id, "raw-broker", 9092, &rack
		resp.Brokers = append(resp.Brokers, b)
	}
	for _, name := range topics {
		t := kmsg.NewMetadataResponseTopic()
		t.Topic = &name
		if t.TopicID = hotID; name == cold {
			t.TopicID = coldID
		}
		for i, leader := range []int32{0, -1} {
			p := kmsg.NewMetadataResponseTopicPartition()
			p.Partition, p.Leader, p.LeaderEpoch = int32(i), leader, 5
			p.Replicas, p.ISR, p.OfflineReplicas = []int32{0, 2}, []int32{0}, []int32{2}
			t.Partitions = append(t.Partitions, p)
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

func TestMetadata(t *testing.T) {
	const compacted, unread, gone = "telemetry-compacted", "telemetry-unread", "telemetry-gone"
	versions(t, 3, true, func(t *testing.T, r *rig, v int16) {
		r.brokers.facts[compacted] = tiers.TopicFacts{Known: true, Compacted: true}
		r.brokers.facts[unread] = tiers.TopicFacts{}
		resp := metadataResponse(v, hot, cold, compacted, unread, gone)
		last := &resp.Topics[4]
		last.ErrorCode, last.Partitions = 3, nil
		req := kmsg.NewPtrMetadataRequest()
		req.SetVersion(v)
		got := kmsg.NewPtrMetadataResponse()
		r.exchange(bootstrap, req, resp, got)

		var nodes []string
		for _, b := range got.Brokers {
			nodes = append(nodes, fmt.Sprintf("%d=%s:%d", b.NodeID, b.Host, b.Port))
		}
		want := "0=proxy:1001 1048576=proxy:1002 2=proxy:1005 1048578=proxy:1006"
		if got := strings.Join(nodes, " "); got != want {
			t.Errorf("brokers %s, want %s", got, want)
		}
		if v >= 1 && got.ControllerID != 2 {
			t.Errorf("controller %d, want the real one, 2", got.ControllerID)
		}
		if n := r.sum("sluice_proxy_unmapped_brokers_total"); n != 1 {
			t.Errorf("%v unmapped brokers counted, want 1", n)
		}
		for _, topic := range got.Topics {
			shift := int32(0)
			if *topic.Topic == cold || *topic.Topic == unread { // by its class, until it is known
				shift = twin
			}
			for i, p := range topic.Partitions {
				leader := []int32{shift, -1}[i]
				if p.Leader != leader || !slices.Equal(p.Replicas, []int32{shift, 2 + shift}) || !slices.Equal(p.ISR, []int32{shift}) ||
					v >= 5 && !slices.Equal(p.OfflineReplicas, []int32{2 + shift}) {
					t.Errorf("%s-%d: leader %d replicas %v isr %v offline %v", *topic.Topic, i, p.Leader, p.Replicas, p.ISR, p.OfflineReplicas)
				}
			}
		}
	})
	t.Run("without diskless classes only addresses differ", func(t *testing.T) {
		versions(t, 3, false, func(t *testing.T, r *rig, v int16) {
			resp := metadataResponse(v, hot, cold)
			resp.Brokers = resp.Brokers[:2]
			if v >= 9 {
				resp.UnknownTags.Set(99, []byte("from the future"))
				resp.Topics[0].Partitions[0].UnknownTags.Set(7, []byte("x"))
			}
			req := kmsg.NewPtrMetadataRequest()
			req.SetVersion(v)
			c, b := r.pair(bootstrap)
			c.ask(1, req)
			b.respond(b.received(kmsg.NewPtrMetadataRequest()), resp)
			got := c.expect(1)
			for i := range resp.Brokers {
				resp.Brokers[i].Host, resp.Brokers[i].Port = host, int32(firstPrt+2*2*i)
			}
			if want := encodeResponse(1, resp)[4:]; !bytes.Equal(got, want) {
				t.Errorf("got\n%q, want\n%q", got, want)
			}
		})
	})
}

func TestFindCoordinator(t *testing.T) {
	versions(t, 10, true, func(t *testing.T, r *rig, v int16) {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.SetVersion(v)
		resp, got := kmsg.NewPtrFindCoordinatorResponse(), kmsg.NewPtrFindCoordinatorResponse()
		resp.NodeID, resp.Host, resp.Port = 2, "raw-broker", 9092
		for _, node := range []int32{2, 77, -1} {
			co := kmsg.NewFindCoordinatorResponseCoordinator()
			co.NodeID, co.Host, co.Port = node, "raw-broker", 9092
			if node < 0 {
				co.Host, co.Port, co.ErrorCode = "", -1, 24
			}
			resp.Coordinators = append(resp.Coordinators, co)
		}
		r.exchange(on(true), req, resp, got)
		if v <= 3 {
			if got.NodeID != 2 || got.Host != host || got.Port != 1005 {
				t.Errorf("got %d at %s:%d", got.NodeID, got.Host, got.Port)
			}
			return
		}
		var lines []string
		for _, co := range got.Coordinators {
			lines = append(lines, fmt.Sprintf("%d=%s:%d/%d", co.NodeID, co.Host, co.Port, co.ErrorCode))
		}
		if got, want := strings.Join(lines, " "), "2=proxy:1005/0 -1=:-1/15 -1=:-1/24"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestDescribeCluster(t *testing.T) {
	versions(t, 60, true, func(t *testing.T, r *rig, v int16) {
		req := kmsg.NewPtrDescribeClusterRequest()
		req.SetVersion(v)
		resp, got := kmsg.NewPtrDescribeClusterResponse(), kmsg.NewPtrDescribeClusterResponse()
		resp.ControllerID = 2
		for _, id := range []int32{0, 2, 77} {
			b := kmsg.NewDescribeClusterResponseBroker()
			b.NodeID, b.Host, b.Port = id, "raw-broker", 9092
			resp.Brokers = append(resp.Brokers, b)
		}
		r.exchange(bootstrap, req, resp, got)
		var lines []string
		for _, b := range got.Brokers {
			lines = append(lines, fmt.Sprintf("%d=%s:%d", b.NodeID, b.Host, b.Port))
		}
		if got, want := strings.Join(lines, " "), "0=proxy:1001 2=proxy:1005"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestAnsweredOnceForBothOfABrokersIDs(t *testing.T) {
	for _, key := range []int16{16, 35, 66} {
		versions(t, key, true, func(t *testing.T, r *rig, v int16) {
			req := kmsg.RequestForKey(key)
			req.SetVersion(v)
			c, b := r.pair(on(true))
			c.ask(1, req)
			resp := req.ResponseKind()
			c.answer(1, resp)
			b.silent("the proxy answers for a diskless broker")
			r.passesUnchanged(on(false), req)
		})
	}
}

func strptr(s string) *string { return &s }

func TestBrokerConfigsByEitherID(t *testing.T) {
	const asked, real = "1048578", "2"
	broker := kmsg.ConfigResourceTypeBroker
	versions(t, 32, true, func(t *testing.T, r *rig, v int16) {
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.SetVersion(v)
		for _, name := range []string{asked, "", "1"} {
			res := kmsg.NewDescribeConfigsRequestResource()
			res.ResourceType, res.ResourceName = broker, name
			req.Resources = append(req.Resources, res)
		}
		resp, got := kmsg.NewPtrDescribeConfigsResponse(), kmsg.NewPtrDescribeConfigsResponse()
		for _, name := range []string{real, "", "1"} {
			res := kmsg.NewDescribeConfigsResponseResource()
			res.ResourceType, res.ResourceName = broker, name
			resp.Resources = append(resp.Resources, res)
		}
		sent := r.exchange(bootstrap, req, resp, got).(*kmsg.DescribeConfigsRequest)
		if sent.Resources[0].ResourceName != real || sent.Resources[1].ResourceName != "" || sent.Resources[2].ResourceName != "1" {
			t.Errorf("the broker was asked for %+v", sent.Resources)
		}
		if got.Resources[0].ResourceName != asked || got.Resources[2].ResourceName != "1" {
			t.Errorf("the client was told of %+v", got.Resources)
		}
	})
	versions(t, 33, true, func(t *testing.T, r *rig, v int16) {
		req := kmsg.NewPtrAlterConfigsRequest()
		req.SetVersion(v)
		for _, name := range []string{asked, cold, hot} {
			res := kmsg.NewAlterConfigsRequestResource()
			res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, name
			if name == asked {
				res.ResourceType = broker
			}
			cfg := kmsg.NewAlterConfigsRequestResourceConfig()
			cfg.Name, cfg.Value = "cleanup.policy", strptr("compact,delete")
			res.Configs = append(res.Configs, cfg)
			req.Resources = append(req.Resources, res)
		}
		resp, got := kmsg.NewPtrAlterConfigsResponse(), kmsg.NewPtrAlterConfigsResponse()
		for _, name := range []string{real, hot} {
			res := kmsg.NewAlterConfigsResponseResource()
			res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, name
			if name == real {
				res.ResourceType = broker
			}
			resp.Resources = append(resp.Resources, res)
		}
		sent := r.exchange(bootstrap, req, resp, got).(*kmsg.AlterConfigsRequest)
		if len(sent.Resources) != 2 || sent.Resources[0].ResourceName != real || sent.Resources[1].ResourceName != hot {
			t.Errorf("the broker was asked for %+v", sent.Resources)
		}
		if len(got.Resources) != 3 || got.Resources[0].ResourceName != asked || got.Resources[2].ResourceName != cold || got.Resources[2].ErrorCode != 44 {
			t.Errorf("the client was told of %+v", got.Resources)
		}
		if !slices.Equal(r.brokers.invalidated, []string{hot}) {
			t.Errorf("forgotten: %v, want the topic that was changed", r.brokers.invalidated)
		}
	})
	versions(t, 44, true, func(t *testing.T, r *rig, v int16) {
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		req.SetVersion(v)
		for _, name := range []string{asked, cold, hot} {
			res := kmsg.NewIncrementalAlterConfigsRequestResource()
			res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, name
			if name == asked {
				res.ResourceType = broker
			}
			cfg := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
			cfg.Name, cfg.Op, cfg.Value = "cleanup.policy", kmsg.IncrementalAlterConfigOpAppend, strptr("compact")
			res.Configs = append(res.Configs, cfg)
			req.Resources = append(req.Resources, res)
		}
		resp, got := kmsg.NewPtrIncrementalAlterConfigsResponse(), kmsg.NewPtrIncrementalAlterConfigsResponse()
		for _, name := range []string{real, hot} {
			res := kmsg.NewIncrementalAlterConfigsResponseResource()
			res.ResourceName = name
			resp.Resources = append(resp.Resources, res)
		}
		sent := r.exchange(bootstrap, req, resp, got).(*kmsg.IncrementalAlterConfigsRequest)
		if len(sent.Resources) != 2 || sent.Resources[0].ResourceName != real || sent.Resources[1].ResourceName != hot {
			t.Errorf("the broker was asked for %+v", sent.Resources)
		}
		if len(got.Resources) != 3 || got.Resources[0].ResourceName != asked || got.Resources[2].ErrorCode != 44 || *got.Resources[2].ErrorMessage == "" {
			t.Errorf("the client was told of %+v", got.Resources)
		}
	})
	t.Run("removing compaction is no change to refuse", func(t *testing.T) {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			req := kmsg.NewPtrIncrementalAlterConfigsRequest()
			res := kmsg.NewIncrementalAlterConfigsRequestResource()
			res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, cold
			cfg := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
			cfg.Name, cfg.Op, cfg.Value = "cleanup.policy", kmsg.IncrementalAlterConfigOpSubtract, strptr("compact")
			res.Configs = append(res.Configs, cfg)
			req.Resources = append(req.Resources, res)
			req.SetVersion(1)
			r.passesUnchanged(bootstrap, req)
		})
	})
}

func TestAdminRequestsByEitherID(t *testing.T) {
	ids := []int32{twin + 1, 2}
	want := []int32{1, 2}
	for key, tc := range map[int16]struct {
		build func(ids []int32) kmsg.Request
		read  func(kmsg.Request) []int32
	}{
		19: {func(ids []int32) kmsg.Request {
			req := kmsg.NewPtrCreateTopicsRequest()
			topic := kmsg.NewCreateTopicsRequestTopic()
			topic.Topic = hot
			a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
			a.Replicas = ids
			topic.ReplicaAssignment = append(topic.ReplicaAssignment, a)
			req.Topics = append(req.Topics, topic)
			return req
		}, func(req kmsg.Request) []int32 {
			return req.(*kmsg.CreateTopicsRequest).Topics[0].ReplicaAssignment[0].Replicas
		}},
		37: {func(ids []int32) kmsg.Request {
			req := kmsg.NewPtrCreatePartitionsRequest()
			topic := kmsg.NewCreatePartitionsRequestTopic()
			a := kmsg.NewCreatePartitionsRequestTopicAssignment()
			a.Replicas = ids
			topic.Assignment = append(topic.Assignment, a)
			req.Topics = append(req.Topics, topic)
			return req
		}, func(req kmsg.Request) []int32 {
			return req.(*kmsg.CreatePartitionsRequest).Topics[0].Assignment[0].Replicas
		}},
		45: {func(ids []int32) kmsg.Request {
			req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
			topic := kmsg.NewAlterPartitionAssignmentsRequestTopic()
			p := kmsg.NewAlterPartitionAssignmentsRequestTopicPartition()
			p.Replicas = ids
			topic.Partitions = append(topic.Partitions, p)
			req.Topics = append(req.Topics, topic)
			return req
		}, func(req kmsg.Request) []int32 {
			return req.(*kmsg.AlterPartitionAssignmentsRequest).Topics[0].Partitions[0].Replicas
		}},
		64: {func(ids []int32) kmsg.Request {
			req := kmsg.NewPtrUnregisterBrokerRequest()
			req.BrokerID = ids[0]
			return req
		}, func(req kmsg.Request) []int32 {
			return []int32{req.(*kmsg.UnregisterBrokerRequest).BrokerID, 2}
		}},
	} {
		versions(t, key, true, func(t *testing.T, r *rig, v int16) {
			req := tc.build(slices.Clone(ids))
			req.SetVersion(v)
			sent := r.exchange(bootstrap, req, req.ResponseKind(), req.ResponseKind())
			if got := tc.read(sent); !slices.Equal(got, want) {
				t.Errorf("the broker was told %v, want %v", got, want)
			}
			plain := tc.build(slices.Clone(want))
			plain.SetVersion(v)
			r.passesUnchanged(bootstrap, plain)
		})
	}
	versions(t, 20, true, func(t *testing.T, r *rig, v int16) {
		meta := kmsg.NewPtrMetadataRequest()
		meta.SetVersion(12)
		r.exchange(bootstrap, meta, metadataResponse(12, cold), kmsg.NewPtrMetadataResponse())
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.SetVersion(v)
		req.TopicNames = []string{hot, cold}
		named, byID := kmsg.NewDeleteTopicsRequestTopic(), kmsg.NewDeleteTopicsRequestTopic()
		named.Topic, byID.TopicID = strptr(hot), coldID
		req.Topics = append(req.Topics, named, byID)
		r.exchange(bootstrap, req, req.ResponseKind(), req.ResponseKind())
		if got := r.brokers.invalidated; !slices.Equal(got, []string{hot, cold}) {
			t.Errorf("forgotten: %v", got)
		}
	})
}

func TestProduceByVersion(t *testing.T) {
	versions(t, 0, true, func(t *testing.T, r *rig, v int16) {
		req := produce(v, -1, [2]string{hot, "in place"}, [2]string{cold, strings.Repeat("c", 300)}, [2]string{cold, "small"}, [2]string{cold, ""})
		if v >= 3 {
			req.TransactionID = strptr("txn")
		}
		sent := encode(1, req)
		c, b := r.pair(bootstrap)
		c.raw(sent)
		if v >= 13 {
			meta := kmsg.NewPtrMetadataRequest()
			corr := b.received(meta)
			if len(meta.Topics) != 2 || meta.AllowAutoTopicCreation {
				t.Fatalf("asked for %+v", meta)
			}
			b.respond(corr, metadataResponse(meta.Version, hot, cold))
		}
		if v >= 3 {
		}
		offloads := r.payloads.offloaded()
		if v < 3 {
			if len(offloads) != 0 {
				t.Fatal("a message set was offloaded")
			}
			if got, _ := b.next(); !bytes.Equal(got, sent[4:]) {
				t.Error("the request was changed")
			}
			return
		}
		if len(offloads) != 2 {
			t.Fatalf("%d offloads, want 2", len(offloads))
		}
		o := offloads[0].req
		if o.Topic != cold || o.Partition != 1 || o.ProduceVersion != v || o.Timeout.Milliseconds() != 1000 || len(o.Batch) != 300 {
			t.Errorf("offloaded as %+v", o)
		}
		offloads[1].finish("")
		offloads[0].finish("P300")
		got, err := b.next()
		if err != nil {
			t.Fatal(err)
		}
		req.Topics[1].Partitions[0].Records = []byte("P300")
		if want := encode(1, req)[4:]; !bytes.Equal(got, want) {
			t.Errorf("the broker got\n%q, want\n%q", got, want)
		}

		resp, answer := kmsg.NewPtrProduceResponse(), kmsg.NewPtrProduceResponse()
		resp.SetVersion(v)
		answer.SetVersion(v)
		for _, topic := range req.Topics {
			rt := kmsg.NewProduceResponseTopic()
			rt.Topic, rt.TopicID = topic.Topic, topic.TopicID
			p := kmsg.NewProduceResponseTopicPartition()
			p.Partition, p.ErrorCode = topic.Partitions[0].Partition, 87
			p.CurrentLeader.LeaderID, p.CurrentLeader.LeaderEpoch = 2, 9
			rt.Partitions = append(rt.Partitions, p)
			resp.Topics = append(resp.Topics, rt)
		}
		for _, id := range []int32{2, 77} {
			nb := kmsg.NewProduceResponseBroker()
			nb.NodeID, nb.Host, nb.Port = id, "raw-broker", 9092
			resp.Brokers = append(resp.Brokers, nb)
		}
		b.respond(1, resp)
		c.answer(1, answer)
		retriable := int16(56)
		if v < 4 {
			retriable = 6
		}
		for i, want := range []int16{87, retriable, 87, 87} {
			p := answer.Topics[i].Partitions[0]
			if p.ErrorCode != want {
				t.Errorf("partition %d: error %d, want %d", i, p.ErrorCode, want)
			}
			if leader := []int32{2, 2 + twin}[min(i, 1)]; v >= 10 && p.CurrentLeader.LeaderID != leader {
				t.Errorf("partition %d: leader %d, want %d", i, p.CurrentLeader.LeaderID, leader)
			}
		}
		if !slices.Equal(r.brokers.invalidated, []string{cold}) {
			t.Errorf("forgotten: %v", r.brokers.invalidated)
		}
		if v >= 10 {
			var nodes []string
			for _, n := range answer.Brokers {
				nodes = append(nodes, strconv.Itoa(int(n.NodeID))+"="+n.Host+":"+strconv.Itoa(int(n.Port)))
			}
			if got, want := strings.Join(nodes, " "), "2=proxy:1005 1048578=proxy:1006"; got != want {
				t.Errorf("endpoints %s, want %s", got, want)
			}
		}
	})
}

// Batches of a diskless class whose topic stays inline are told of, and go as
// they came.
func TestProduceToATopicThatStaysInline(t *testing.T) {
	for why, facts := range map[tiers.Reason]tiers.TopicFacts{
		tiers.Compacted: {Known: true, Compacted: true},
		tiers.Unknown:   {},
	} {
		inBubbleWith(t, proxy.Limits{}, true, func(r *rig) {
			r.brokers.facts[cold] = facts
			c, b := r.pair(bootstrap)
			sent := encode(1, produce(9, -1, [2]string{hot, "in place"}, [2]string{cold, strings.Repeat("c", 300)}))
			c.raw(sent)
			if got, err := b.next(); err != nil || !bytes.Equal(got, sent[4:]) {
				t.Fatalf("the request was changed, or not sent: %v", err)
			}
			if len(r.payloads.offloaded()) != 0 {
				t.Error("offloaded")
			}
			if want := []string{fmt.Sprintf("%s of telemetry, 300 bytes, %s", cold, why)}; !slices.Equal(r.payloads.kept, want) {
				t.Errorf("told of %q, want %q", r.payloads.kept, want)
			}
		})
	}
}

// A replica that has just started knows no topic, and a request may be for
// thousands.
func TestFactsOfARequestsTopicsAreAskedForTogether(t *testing.T) {
	inBubbleWith(t, proxy.Limits{}, true, func(r *rig) {
		r.brokers.facts["telemetry-1"] = tiers.TopicFacts{Known: true, Compacted: true}
		r.brokers.facts["telemetry-2"] = tiers.TopicFacts{}
		r.brokers.facts["telemetry-3"] = tiers.TopicFacts{Known: true, Internal: true}
		c, b := r.pair(bootstrap)
		sent := encode(1, produce(9, -1, [2]string{"telemetry-1", "a"}, [2]string{"telemetry-2", "b"}, [2]string{hot, "c"}, [2]string{"telemetry-3", "d"}))
		c.raw(sent)
		if got, err := b.next(); err != nil || !bytes.Equal(got, sent[4:]) {
			t.Fatalf("the request was changed, or not sent: %v", err)
		}
		if got, want := fmt.Sprint(r.brokers.together), "[[telemetry-1 telemetry-2 telemetry-3]]"; got != want {
			t.Errorf("asked together for %s, want %s", got, want)
		}
		want := []string{
			fmt.Sprintf("telemetry-1 of telemetry, 1 bytes, %s", tiers.Compacted),
			fmt.Sprintf("telemetry-2 of telemetry, 1 bytes, %s", tiers.Unknown),
			fmt.Sprintf("telemetry-3 of telemetry, 1 bytes, %s", tiers.Internal),
		}
		if !slices.Equal(r.payloads.kept, want) {
			t.Errorf("told of %q, want %q", r.payloads.kept, want)
		}
	})
}

func TestReservedHeaderIsRefused(t *testing.T) {
	versions(t, 0, true, func(t *testing.T, r *rig, v int16) {
		c, b := r.pair(bootstrap)
		c.ask(1, produce(v, 1, [2]string{hot, "fine"}, [2]string{cold, "R;"}))
		resp := kmsg.NewPtrProduceResponse()
		resp.SetVersion(v)
		c.answer(1, resp)
		if len(resp.Topics) != 2 {
			t.Fatalf("answered %+v", resp)
		}
		for _, topic := range resp.Topics {
			if topic.Partitions[0].ErrorCode != 87 {
				t.Errorf("error %d, want INVALID_RECORD", topic.Partitions[0].ErrorCode)
			}
		}
		b.silent("nothing of it may be written")
		if len(r.payloads.offloaded()) != 0 {
			t.Error("it was offloaded")
		}
		c.ask(2, produce(v, 0, [2]string{hot, "R;"}))
		c.closed() // there is no other answer
	})
}

func TestProduceToAnUnknownTopicID(t *testing.T) {
	inBubble(t, proxy.Limits{}, func(r *rig) {
		c, b := r.pair(bootstrap)
		sent := encode(1, produce(13, 1, [2]string{cold, "one"}, [2]string{hot, "two"}, [2]string{cold, "three"}))
		c.raw(sent)
		meta := kmsg.NewPtrMetadataRequest()
		b.respond(b.received(meta), metadataResponse(meta.Version, hot))
		got, err := b.next() // after one question only
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, sent[4:]) {
			t.Error("the broker shall answer for an id that it does not know")
		}
	})
}

// Any tool shows a topic's class, and none can set it.
func TestTopicsShowTheirClass(t *testing.T) {
	ours := func(r kmsg.DescribeConfigsResponseResource) string {
		var lines []string
		for _, c := range r.Configs {
			if strings.HasPrefix(c.Name, "sluice.") {
				if !c.ReadOnly || c.IsSensitive {
					t.Errorf("%s: %+v", r.ResourceName, c)
				}
				lines = append(lines, c.Name+"="+*c.Value)
			}
		}
		return strings.Join(lines, " ")
	}
	const all, compact, denied, broker = "telemetry-all", "telemetry-compact", "telemetry-denied", "1"
	versions(t, 32, true, func(t *testing.T, r *rig, v int16) {
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.SetVersion(v)
		resp, got := kmsg.NewPtrDescribeConfigsResponse(), kmsg.NewPtrDescribeConfigsResponse()
		for _, name := range []string{all, compact, cold, hot, denied, broker} {
			res, told := kmsg.NewDescribeConfigsRequestResource(), kmsg.NewDescribeConfigsResponseResource()
			res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, name
			cfg := kmsg.NewDescribeConfigsResponseResourceConfig()
			cfg.Name, cfg.Value = "cleanup.policy", strptr("delete")
			switch name {
			case compact:
				cfg.Value = strptr("compact")
			case cold:
				res.ConfigNames = []string{"cleanup.policy", "sluice.tier"}
			case hot:
				res.ConfigNames = []string{"retention.ms"}
			case denied:
				told.ErrorCode = 29
			case broker:
				res.ResourceType = kmsg.ConfigResourceTypeBroker
			}
			told.ResourceType, told.ResourceName = res.ResourceType, name
			told.Configs = append(told.Configs, cfg)
			req.Resources, resp.Resources = append(req.Resources, res), append(resp.Resources, told)
		}
		r.exchange(bootstrap, req, resp, got)
		for i, want := range []string{
			"sluice.class=telemetry sluice.tier=diskless sluice.rule=topics[0]: telemetry*",
			"sluice.class=telemetry sluice.tier=low-latency (compacted: inline) sluice.rule=topics[0]: telemetry*",
			"sluice.tier=diskless", "", "", "",
		} {
			if g := ours(got.Resources[i]); g != want {
				t.Errorf("v%d, %s shows %q, want %q", v, got.Resources[i].ResourceName, g, want)
			}
		}
	})
	inBubbleWith(t, proxy.Limits{}, false, func(r *rig) {
		req, resp := kmsg.NewPtrDescribeConfigsRequest(), kmsg.NewPtrDescribeConfigsResponse()
		res, told := kmsg.NewDescribeConfigsRequestResource(), kmsg.NewDescribeConfigsResponseResource()
		res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, cold
		told.ResourceType, told.ResourceName = res.ResourceType, cold
		req.Resources, resp.Resources = append(req.Resources, res), append(resp.Resources, told)
		got := kmsg.NewPtrDescribeConfigsResponse()
		r.exchange(bootstrap, req, resp, got)
		if g := ours(got.Resources[0]); g != "" {
			t.Errorf("without any diskless class a topic shows %q", g)
		}
	})
	// What the answer does not say is remembered, as for routing.
	for _, c := range []struct {
		only  []string
		facts tiers.TopicFacts
		want  string
	}{
		{[]string{"sluice.tier"}, tiers.TopicFacts{Known: true, Compacted: true}, "sluice.tier=low-latency (compacted: inline)"},
		{[]string{"sluice.tier"}, tiers.TopicFacts{Known: true, Internal: true}, "sluice.tier=low-latency (internal: inline)"},
		{[]string{"sluice.tier"}, tiers.TopicFacts{}, "sluice.tier=low-latency (unknown: inline)"},
		{[]string{}, tiers.TopicFacts{Known: true}, "sluice.class=telemetry sluice.tier=diskless sluice.rule=topics[0]: telemetry*"},
	} {
		inBubble(t, proxy.Limits{}, func(r *rig) {
			r.brokers.facts[cold] = c.facts
			req, resp := kmsg.NewPtrDescribeConfigsRequest(), kmsg.NewPtrDescribeConfigsResponse()
			req.SetVersion(4)
			res, told := kmsg.NewDescribeConfigsRequestResource(), kmsg.NewDescribeConfigsResponseResource()
			res.ResourceType, res.ResourceName, res.ConfigNames = kmsg.ConfigResourceTypeTopic, cold, c.only
			told.ResourceType, told.ResourceName = res.ResourceType, cold
			req.Resources, resp.Resources = append(req.Resources, res), append(resp.Resources, told)
			got := kmsg.NewPtrDescribeConfigsResponse()
			r.exchange(bootstrap, req, resp, got)
			if g := ours(got.Resources[0]); g != c.want {
				t.Errorf("asked for %q of a topic of which is known %+v: %q, want %q", c.only, c.facts, g, c.want)
			}
		})
	}

	versions(t, 33, true, func(t *testing.T, r *rig, v int16) {
		req := kmsg.NewPtrAlterConfigsRequest()
		req.SetVersion(v)
		for name, class := range map[string]string{cold: "telemetry", all: "control"} {
			res := kmsg.NewAlterConfigsRequestResource()
			res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, name
			for _, pair := range [][2]string{{"retention.ms", "1"}, {"sluice.class", class}} {
				cfg := kmsg.NewAlterConfigsRequestResourceConfig()
				cfg.Name, cfg.Value = pair[0], &pair[1]
				res.Configs = append(res.Configs, cfg)
			}
			req.Resources = append(req.Resources, res)
		}
		resp, got := kmsg.NewPtrAlterConfigsResponse(), kmsg.NewPtrAlterConfigsResponse()
		res := kmsg.NewAlterConfigsResponseResource()
		res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, cold
		resp.Resources = append(resp.Resources, res)
		sent := r.exchange(bootstrap, req, resp, got).(*kmsg.AlterConfigsRequest)
		if len(sent.Resources) != 1 || sent.Resources[0].ResourceName != cold || len(sent.Resources[0].Configs) != 1 {
			t.Errorf("the broker was asked for %+v", sent.Resources)
		}
		if len(got.Resources) != 2 || got.Resources[1].ResourceName != all || got.Resources[1].ErrorCode != 40 || !strings.Contains(*got.Resources[1].ErrorMessage, "configuration") {
			t.Errorf("the client was told of %+v", got.Resources)
		}
	})
	versions(t, 44, true, func(t *testing.T, r *rig, v int16) {
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		req.SetVersion(v)
		for i, name := range []string{cold, all, compact} {
			res := kmsg.NewIncrementalAlterConfigsRequestResource()
			res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, name
			cfg := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
			cfg.Name, cfg.Value = "sluice.class", strptr("control")
			switch i {
			case 1:
				cfg.Op, cfg.Value = kmsg.IncrementalAlterConfigOpDelete, nil
			case 2:
				cfg.Name = "retention.ms"
			}
			res.Configs = append(res.Configs, cfg)
			req.Resources = append(req.Resources, res)
		}
		resp, got := kmsg.NewPtrIncrementalAlterConfigsResponse(), kmsg.NewPtrIncrementalAlterConfigsResponse()
		res := kmsg.NewIncrementalAlterConfigsResponseResource()
		res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, compact
		resp.Resources = append(resp.Resources, res)
		sent := r.exchange(bootstrap, req, resp, got).(*kmsg.IncrementalAlterConfigsRequest)
		if len(sent.Resources) != 1 || sent.Resources[0].ResourceName != compact {
			t.Errorf("the broker was asked for %+v", sent.Resources)
		}
		if len(got.Resources) != 3 || got.Resources[1].ErrorCode != 40 || got.Resources[2].ErrorCode != 40 {
			t.Errorf("the client was told of %+v", got.Resources)
		}
	})
	versions(t, 19, true, func(t *testing.T, r *rig, v int16) {
		req := kmsg.NewPtrCreateTopicsRequest()
		req.SetVersion(v)
		for _, name := range []string{cold, all} {
			topic := kmsg.NewCreateTopicsRequestTopic()
			topic.Topic = name
			if name == all {
				cfg := kmsg.NewCreateTopicsRequestTopicConfig()
				cfg.Name, cfg.Value = "sluice.tier", strptr("diskless")
				topic.Configs = append(topic.Configs, cfg)
			}
			req.Topics = append(req.Topics, topic)
		}
		resp, got := kmsg.NewPtrCreateTopicsResponse(), kmsg.NewPtrCreateTopicsResponse()
		topic := kmsg.NewCreateTopicsResponseTopic()
		topic.Topic = cold
		resp.Topics = append(resp.Topics, topic)
		sent := r.exchange(bootstrap, req, resp, got).(*kmsg.CreateTopicsRequest)
		if len(sent.Topics) != 1 || sent.Topics[0].Topic != cold {
			t.Errorf("the broker was asked for %+v", sent.Topics)
		}
		if len(got.Topics) != 2 || got.Topics[1].Topic != all || got.Topics[1].ErrorCode != 40 {
			t.Errorf("the client was told of %+v", got.Topics)
		}
	})
}
