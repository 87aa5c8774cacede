package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// place is one way to ask, and a topic of its own to ask about.
type place struct {
	name, bootstrap string
	node            int32
	topic           string
	id              kadm.TopicID
}

// asks are requests that a user may not make, by what they are; version 0 is
// the newest that client and broker have.
type asks struct {
	what, user string
	version    int16
	request    func(p place) kmsg.Request
}

// What a client may not do is answered in the same words through sluice as by
// the broker, in both tiers and at both of a broker's ports; and who may not
// write costs no object.
func (x *secured) denials(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	bootstrap := x.kafka.Bootstrap()[0]
	places := []place{
		{name: "direct", bootstrap: bootstrap, node: 1, topic: "denied-direct"},
		{name: "control", bootstrap: x.plaintext.Bootstrap, node: 1, topic: "denied-control"},
		{name: "telemetry", bootstrap: x.plaintext.Bootstrap, node: 1 | disklessBit, topic: "denied-telemetry"},
		{name: "telemetry, at the broker's own port", bootstrap: x.plaintext.Bootstrap, node: 1, topic: "denied-telemetry"},
	}
	var topics []string
	for i, p := range places {
		if _, err := x.adm.CreateTopic(ctx, 1, 1, nil, p.topic); err != nil && i < 3 {
			t.Fatal(err)
		}
		topics = append(topics, p.topic)
	}
	listed, err := x.adm.ListTopics(ctx, topics...)
	if err != nil {
		t.Fatal(err)
	}
	for i := range places {
		places[i].id = listed[places[i].topic].ID
		eventually(t, "sluice knows the topic", func() (bool, string) {
			return x.plaintext.Cluster().Facts(ctx, places[i].topic).Known, ""
		})
	}
	for user, op := range map[string]kadm.ACLOperation{"writer": kadm.OpWrite, "reader": kadm.OpRead, "describer": kadm.OpDescribe, "transactor": kadm.OpWrite} {
		x.allow(t, user, kadm.NewACLs().Topics(topics...).ResourcePatternType(kadm.ACLPatternLiteral).Operations(op))
	}
	x.allow(t, "transactor", kadm.NewACLs().TransactionalIDs("allowed").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpWrite))
	x.allow(t, "reader", kadm.NewACLs().Groups("allowed").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpRead))

	written := func() float64 { return x.plaintext.metric(t, "sluice_diskless_objects_written_total") }
	before := written()
	var clients sync.Map
	newestOf := make(map[int16]int16) // what the brokers know
	for _, a := range denied() {
		asks := a.request(places[0]).Key()
		if _, ok := newestOf[asks]; !ok {
			newestOf[asks] = newest(t, places[0].bootstrap, asks, kgo.SASL(x.basic("admin")))
		}
		if a.version > newestOf[asks] {
			continue
		}
		var direct string
		for _, p := range places {
			key := fmt.Sprint(p.bootstrap, a.user, a.version, a.request(p).Key())
			made, ok := clients.Load(key)
			if !ok {
				versions := kversion.Stable()
				if a.version > 0 {
					versions.SetMaxKeyVersion(a.request(p).Key(), a.version)
				}
				made = client(t, p.bootstrap, kgo.SASL(x.basic(a.user)), kgo.MaxVersions(versions), kgo.RequestRetries(0))
				clients.Store(key, made)
			}
			ask := func() string {
				resp, err := made.(*kgo.Client).Broker(int(p.node)).Request(ctx, a.request(p))
				if err != nil {
					return err.Error()
				}
				if a.version > 0 && resp.GetVersion() != a.version {
					t.Fatalf("%s was asked in v%d", a.what, resp.GetVersion())
				}
				// Before 4.0 some answers name the request's address in memory.
				return requestsName.ReplaceAllString(p.words(resp), "a request is not authorized")
			}
			got := ask()
			if p.name == "direct" {
				direct = got
				// Each of these is about being denied: an answer without an error
				// would compare nothing.
				if !strings.Contains(got, "AUTHORIZATION_FAILED") && a.what != "describing topics" {
					t.Errorf("%s by %s is not denied: %s", a.what, a.user, got)
				}
				continue
			}
			if a.user == "transactor" {
				// The broker does not tell of transactional ids before it has a
				// batch of one; the first of a connection is stored.
				before = written()
			} else if n := written() - before; n > 0 {
				t.Fatalf("%s by %s: %v objects were written", a.what, a.user, n)
			}
			if got != direct {
				t.Errorf("%s v%d by %s: %s says\n%s\nand the broker\n%s", a.what, a.version, a.user, p.name, got, direct)
			}
		}
	}

	t.Run("a flood that may not be written", func(t *testing.T) {
		cl := client(t, x.plaintext.Bootstrap, kgo.SASL(x.basic("describer")), kgo.RequestRetries(0))
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				resp, err := cl.Broker(1|disklessBit).Request(ctx, producing(places[2], "", oneBatch(make([]byte, 100<<10))))
				if err != nil {
					t.Error(err)
					return
				}
				if code := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode; code != topicDenied {
					t.Errorf("answered %d", code)
				}
			})
		}
		wg.Wait()
		if n := x.plaintext.metric(t, "sluice_diskless_inline_batches_total", "reason", "denied"); n < 100 {
			t.Errorf("%v batches are said to have been denied", n)
		}
	})
	if n := written() - before; n > 0 {
		t.Errorf("%v objects were written for who may not write", n)
	}
	ends, err := x.adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		t.Fatal(err)
	}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset != 0 {
			t.Errorf("%s has %d records", o.Topic, o.Offset)
		}
	})

	// The same connection is heard when its user becomes allowed to, and the
	// first right that is taken away is noticed by what the broker says.
	t.Run("rights that change", func(t *testing.T) {
		cl := client(t, x.plaintext.Bootstrap, kgo.SASL(x.basic("describer")), kgo.RequestRetries(0))
		stored := func() float64 {
			return x.plaintext.metric(t, "sluice_diskless_stored_batches_total")
		}
		write := func() int16 {
			resp, err := cl.Broker(1|disklessBit).Request(ctx, producing(places[2], "", oneBatch(worthwhile)))
			if err != nil {
				t.Fatal(err)
			}
			return resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode
		}
		if code := write(); code != topicDenied {
			t.Fatalf("answered %d", code)
		}
		right := func() *kadm.ACLBuilder {
			return kadm.NewACLs().Topics(places[2].topic).ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpWrite)
		}
		x.allow(t, "describer", right())
		before := stored()
		eventually(t, "its batches go to objects", func() (bool, string) {
			code := write()
			return stored() > before, fmt.Sprintf("answered %d", code)
		})
		if _, err := x.adm.DeleteACLs(ctx, right().Allow("User:describer").AllowHosts()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is denied again", func() (bool, string) { return write() == topicDenied, "" })
		before = written()
		for range 5 {
			if code := write(); code != topicDenied {
				t.Errorf("answered %d", code)
			}
		}
		if n := written() - before; n > 0 {
			t.Errorf("%v objects were written", n)
		}
	})
}

const topicDenied = 29

// controllersRequest is how a controller names what it denies: by addresses and
// objects in its memory.
var controllersRequest = regexp.MustCompile(`Request\(processor=.*\) needs`)

// words are an answer, with the place's own names made common.
func (p place) words(resp kmsg.Response) string {
	if m, ok := resp.(*kmsg.MetadataResponse); ok { // brokers differ
		m.Brokers, m.ClusterID = nil, nil
	}
	b, err := json.Marshal(resp)
	if err != nil {
		return err.Error()
	}
	id, err := json.Marshal([16]byte(p.id))
	if err != nil {
		return err.Error()
	}
	out := strings.NewReplacer(p.topic, "TOPIC", string(id), "ID").Replace(string(b))
	out = controllersRequest.ReplaceAllString(out, "REQUEST needs")
	for code, name := range map[int16]string{topicDenied: "TOPIC", 30: "GROUP", 31: "CLUSTER", 53: "TRANSACTIONAL_ID"} {
		for _, field := range []string{`"ErrorCode":`, `"Code":`} {
			out = strings.ReplaceAll(out, fmt.Sprint(field, code), field+name+"_AUTHORIZATION_FAILED")
		}
	}
	return out
}

func producing(p place, txn string, batch []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 10_000
	if txn != "" {
		req.TransactionID = &txn
	}
	pt := kmsg.NewProduceRequestTopic()
	pt.Topic, pt.TopicID = p.topic, p.id
	pp := kmsg.NewProduceRequestTopicPartition()
	pp.Records = batch
	pt.Partitions = append(pt.Partitions, pp)
	req.Topics = append(req.Topics, pt)
	return req
}

func fetching(p place) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID, req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = -1, 100, 1, 1<<20, -1
	req.ReplicaState.ID = -1
	ft := kmsg.NewFetchRequestTopic()
	ft.Topic, ft.TopicID = p.topic, p.id
	fp := kmsg.NewFetchRequestTopicPartition()
	fp.PartitionMaxBytes, fp.CurrentLeaderEpoch, fp.LastFetchedEpoch, fp.LogStartOffset = 1<<20, -1, -1, -1
	ft.Partitions = append(ft.Partitions, fp)
	req.Topics = append(req.Topics, ft)
	return req
}

// denied are all kinds of what ACLs decide.
func denied() (all []asks) {
	add := func(what, user string, version int16, request func(p place) kmsg.Request) {
		all = append(all, asks{what, user, version, request})
	}
	for _, user := range []string{"describer", "reader", "nobody"} {
		for _, v := range []int16{3, 7, 9, 11, 12, 13} {
			if user == "nobody" && v == 13 {
				continue // it is told nothing of ids: UNKNOWN_TOPIC_ID
			}
			add("writing", user, v, func(p place) kmsg.Request { return producing(p, "", oneBatch(worthwhile)) })
		}
	}
	for _, v := range []int16{9, 11, 12, 13} {
		for _, txn := range []string{"not-allowed", "nor-this"} {
			add("writing in a transaction of "+txn, "transactor", v, func(p place) kmsg.Request {
				return producing(p, txn, batchOf(4711, 0, 0, true, worthwhile))
			})
		}
	}
	for _, user := range []string{"describer", "writer", "nobody"} {
		for _, v := range []int16{4, 11, 12, 13, 16, 17} {
			if user == "nobody" && v >= 13 {
				continue
			}
			add("reading", user, v, func(p place) kmsg.Request { return fetching(p) })
		}
	}
	add("offsets", "nobody", 0, func(p place) kmsg.Request {
		req := kmsg.NewPtrListOffsetsRequest()
		req.ReplicaID = -1
		lt := kmsg.NewListOffsetsRequestTopic()
		lt.Topic = p.topic
		lt.Partitions = append(lt.Partitions, kmsg.NewListOffsetsRequestTopicPartition())
		req.Topics = append(req.Topics, lt)
		return req
	})
	add("leader epochs", "nobody", 0, func(p place) kmsg.Request {
		req := kmsg.NewPtrOffsetForLeaderEpochRequest()
		req.ReplicaID = -1
		et := kmsg.NewOffsetForLeaderEpochRequestTopic()
		et.Topic = p.topic
		et.Partitions = append(et.Partitions, kmsg.NewOffsetForLeaderEpochRequestTopicPartition())
		req.Topics = append(req.Topics, et)
		return req
	})
	for _, v := range []int16{1, 8, 12} {
		add("metadata", "nobody", v, func(p place) kmsg.Request {
			req := kmsg.NewPtrMetadataRequest()
			req.IncludeTopicAuthorizedOperations = true
			mt := kmsg.NewMetadataRequestTopic()
			mt.Topic = &p.topic
			req.Topics = append(req.Topics, mt)
			return req
		})
	}
	add("a producer id", "nobody", 0, func(place) kmsg.Request {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.ProducerID, req.ProducerEpoch = -1, -1
		return req
	})
	add("a producer id for a transaction", "writer", 0, func(place) kmsg.Request {
		req := kmsg.NewPtrInitProducerIDRequest()
		txn := "not-allowed"
		req.TransactionalID, req.TransactionTimeoutMillis = &txn, 1000
		req.ProducerID, req.ProducerEpoch = -1, -1
		return req
	})
	for txn, user := range map[string]string{"not-allowed": "writer", "allowed": "writer"} {
		add("partitions in a transaction", user, 3, func(p place) kmsg.Request {
			req := kmsg.NewPtrAddPartitionsToTxnRequest()
			req.TransactionalID, req.ProducerID = txn, 4711
			at := kmsg.NewAddPartitionsToTxnRequestTopic()
			at.Topic, at.Partitions = p.topic, []int32{0}
			req.Topics = append(req.Topics, at)
			return req
		})
		add("the end of a transaction", user, 0, func(place) kmsg.Request {
			req := kmsg.NewPtrEndTxnRequest()
			req.TransactionalID, req.ProducerID = txn, 4711
			return req
		})
	}
	add("offsets in a transaction", "transactor", 0, func(place) kmsg.Request {
		req := kmsg.NewPtrAddOffsetsToTxnRequest()
		req.TransactionalID, req.ProducerID, req.Group = "allowed", 4711, "not-allowed"
		return req
	})
	add("committing offsets in a transaction", "transactor", 0, func(p place) kmsg.Request {
		req := kmsg.NewPtrTxnOffsetCommitRequest()
		req.TransactionalID, req.ProducerID, req.Group, req.Generation = "allowed", 4711, "not-allowed", -1
		tt := kmsg.NewTxnOffsetCommitRequestTopic()
		tt.Topic = p.topic
		tt.Partitions = append(tt.Partitions, kmsg.NewTxnOffsetCommitRequestTopicPartition())
		req.Topics = append(req.Topics, tt)
		return req
	})
	add("committing offsets", "reader", 9, func(p place) kmsg.Request {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation = "not-allowed", -1
		ot := kmsg.NewOffsetCommitRequestTopic()
		ot.Topic = p.topic
		ot.Partitions = append(ot.Partitions, kmsg.NewOffsetCommitRequestTopicPartition())
		req.Topics = append(req.Topics, ot)
		return req
	})
	add("committed offsets", "reader", 0, func(place) kmsg.Request {
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Group = "not-allowed"
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group = "not-allowed"
		req.Groups = append(req.Groups, g)
		return req
	})
	add("joining", "reader", 0, func(place) kmsg.Request {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Group, req.SessionTimeoutMillis, req.RebalanceTimeoutMillis, req.ProtocolType = "not-allowed", 10_000, 10_000, "consumer"
		proto := kmsg.NewJoinGroupRequestProtocol()
		proto.Name = "range"
		req.Protocols = append(req.Protocols, proto)
		return req
	})
	for what, build := range map[string]func() kmsg.Request{
		"a heartbeat": func() kmsg.Request { r := kmsg.NewPtrHeartbeatRequest(); r.Group = "not-allowed"; return r },
		"leaving":     func() kmsg.Request { r := kmsg.NewPtrLeaveGroupRequest(); r.Group = "not-allowed"; return r },
		"synchronizing": func() kmsg.Request {
			r := kmsg.NewPtrSyncGroupRequest()
			kind, proto := "consumer", "range"
			r.Group, r.ProtocolType, r.Protocol = "not-allowed", &kind, &proto
			return r
		},
		"a member's heartbeat": func() kmsg.Request {
			r := kmsg.NewPtrConsumerGroupHeartbeatRequest()
			r.Group, r.MemberID = "not-allowed", "member"
			return r
		},
		"describing groups": func() kmsg.Request {
			r := kmsg.NewPtrDescribeGroupsRequest()
			r.Groups = []string{"not-allowed"}
			return r
		},
		"describing new groups": func() kmsg.Request {
			r := kmsg.NewPtrConsumerGroupDescribeRequest()
			r.Groups = []string{"not-allowed"}
			return r
		},
		"deleting groups": func() kmsg.Request {
			r := kmsg.NewPtrDeleteGroupsRequest()
			r.Groups = []string{"not-allowed"}
			return r
		},
		"finding a coordinator": func() kmsg.Request {
			r := kmsg.NewPtrFindCoordinatorRequest()
			r.CoordinatorKeys = []string{"not-allowed"}
			return r
		},
		"ACLs": func() kmsg.Request {
			r := kmsg.NewPtrDescribeACLsRequest()
			r.ResourceType, r.ResourcePatternType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
			r.Operation, r.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
			return r
		},
		"quotas":        func() kmsg.Request { return kmsg.NewPtrDescribeClientQuotasRequest() },
		"reassignments": func() kmsg.Request { return kmsg.NewPtrListPartitionReassignmentsRequest() },
		"electing":      func() kmsg.Request { return kmsg.NewPtrElectLeadersRequest() },
		"unregistering": func() kmsg.Request { r := kmsg.NewPtrUnregisterBrokerRequest(); r.BrokerID = 7; return r },
		"deleting offsets": func() kmsg.Request {
			r := kmsg.NewPtrOffsetDeleteRequest()
			r.Group = "not-allowed"
			return r
		},
		"describing transactions": func() kmsg.Request {
			r := kmsg.NewPtrDescribeTransactionsRequest()
			r.TransactionalIDs = []string{"not-allowed"}
			return r
		},
	} {
		add(what, "nobody", 0, func(place) kmsg.Request { return build() })
	}
	add("creating", "nobody", 0, func(p place) kmsg.Request {
		req := kmsg.NewPtrCreateTopicsRequest()
		ct := kmsg.NewCreateTopicsRequestTopic()
		ct.Topic, ct.NumPartitions, ct.ReplicationFactor = p.topic+"-new", 1, 1
		req.Topics, req.TimeoutMillis = append(req.Topics, ct), 1000
		return req
	})
	add("more partitions", "nobody", 0, func(p place) kmsg.Request {
		req := kmsg.NewPtrCreatePartitionsRequest()
		ct := kmsg.NewCreatePartitionsRequestTopic()
		ct.Topic, ct.Count = p.topic, 2
		req.Topics, req.TimeoutMillis = append(req.Topics, ct), 1000
		return req
	})
	add("deleting", "nobody", 5, func(p place) kmsg.Request {
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.TopicNames, req.TimeoutMillis = []string{p.topic}, 1000
		return req
	})
	add("deleting records", "nobody", 0, func(p place) kmsg.Request {
		req := kmsg.NewPtrDeleteRecordsRequest()
		dt := kmsg.NewDeleteRecordsRequestTopic()
		dt.Topic = p.topic
		dt.Partitions = append(dt.Partitions, kmsg.NewDeleteRecordsRequestTopicPartition())
		req.Topics, req.TimeoutMillis = append(req.Topics, dt), 1000
		return req
	})
	add("configurations", "nobody", 0, func(p place) kmsg.Request {
		req := kmsg.NewPtrDescribeConfigsRequest()
		r := kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, p.topic
		req.Resources = append(req.Resources, r)
		return req
	})
	add("changing configurations", "nobody", 0, func(p place) kmsg.Request {
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		r := kmsg.NewIncrementalAlterConfigsRequestResource()
		r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, p.topic
		c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		value := "1"
		c.Name, c.Value = "retention.ms", &value
		r.Configs = append(r.Configs, c)
		req.Resources = append(req.Resources, r)
		return req
	})
	add("producers", "nobody", 0, func(p place) kmsg.Request {
		req := kmsg.NewPtrDescribeProducersRequest()
		dt := kmsg.NewDescribeProducersRequestTopic()
		dt.Topic, dt.Partitions = p.topic, []int32{0}
		req.Topics = append(req.Topics, dt)
		return req
	})
	add("describing topics", "nobody", 0, func(p place) kmsg.Request {
		req := kmsg.NewPtrDescribeTopicPartitionsRequest()
		dt := kmsg.NewDescribeTopicPartitionsRequestTopic()
		dt.Topic = p.topic
		req.Topics = append(req.Topics, dt)
		return req
	})
	return all
}

var requestsName = regexp.MustCompile(`Request Request\(.*\) is not authorized`)
