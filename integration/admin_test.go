package integration

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/sluice-kafka/sluice/harness"
)

// office is a place where operators ask, with topics, groups and users of its
// own, so that each may be changed there without being seen elsewhere.
type office struct {
	t         *testing.T
	bootstrap string
	direct    string // brokers
	cl        *kgo.Client
	twin      bool // asks diskless brokers, and names them
	class     string
	suffix    string
	words     *speaker
	kept      map[string]any // what answers gave for later requests
}

// offices are the brokers, and both of sluice's ports. Their names are all as long.
func offices(t *testing.T, brokers, bootstrap string, opts ...kgo.Opt) []*office {
	t.Helper()
	all := []*office{
		{suffix: "a", class: "low-level", bootstrap: brokers},
		{suffix: "b", class: "--control", bootstrap: bootstrap},
		{suffix: "c", class: "telemetry", bootstrap: bootstrap, twin: true},
		{suffix: "d", class: "telemetry", bootstrap: bootstrap},
	}
	for _, o := range all {
		o.t, o.direct, o.words, o.kept = t, brokers, newSpeaker(), map[string]any{}
		o.cl = client(t, o.bootstrap, opts...)
		for _, thing := range []string{"topic", "other", "group", "sharing", "user", "txn", "client", "metrics", "none"} {
			o.words.call(o.own(thing), thing)
		}
		o.words.call(fmt.Sprint(1|disklessBit), "1") // it is called as it was asked for
		o.words.call(fmt.Sprint(2|disklessBit), "2")
	}
	return all
}

func (o *office) own(thing string) string {
	return fmt.Sprintf("office-%s-%s-%s", thing, o.suffix, o.class)
}

func (o *office) place() string {
	return map[string]string{"a": "direct", "b": "low-latency", "c": "diskless", "d": "diskless, at the broker's own port"}[o.suffix]
}

// id is a broker as it is called here.
func (o *office) id(n int32) int32 {
	if o.twin {
		n |= disklessBit
	}
	return n
}

func (o *office) ids(ns ...int32) []int32 {
	out := slices.Clone(ns)
	for i := range out {
		out[i] = o.id(out[i])
	}
	return out
}

// errand is one request of a script of such.
type errand struct {
	what    string
	request func(o *office) kmsg.Request
	// wants is what the brokers' answer must contain, or it would show nothing;
	// a request that changes nothing is repeated until it does, and until others
	// have the same answer, for brokers learn one after the other.
	wants  string
	reads  bool
	routed bool   // by the client, to whom it is for
	of     string // the group whose coordinator is asked
	keep   func(o *office, resp kmsg.Response)
}

func (e errand) run(o *office) string {
	req := e.request(o)
	var resp kmsg.Response
	var err error
	// Coordinators and new topics may need a moment.
	for deadline := time.Now().Add(patience / 3); ; time.Sleep(50 * time.Millisecond) {
		switch {
		case e.routed:
			resp, err = o.cl.Request(o.t.Context(), req)
		case e.of != "":
			at := kadm.NewClient(o.cl).FindGroupCoordinators(o.t.Context(), o.own(e.of))[o.own(e.of)]
			if err = at.Err; err == nil {
				resp, err = o.cl.Broker(int(o.id(at.NodeID))).Request(o.t.Context(), req)
			}
		default:
			resp, err = o.cl.Broker(int(o.id(1))).Request(o.t.Context(), req)
		}
		said := ""
		if err == nil {
			said = o.words.words(resp)
		}
		busy := strings.Contains(said, "NOT_COORDINATOR") || strings.Contains(said, "COORDINATOR_LOAD_IN_PROGRESS") || strings.Contains(said, "COORDINATOR_NOT_AVAILABLE")
		if err == nil && !busy || e.wants == "no answer" || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		return failure(err)
	}
	if e.keep != nil {
		e.keep(o, resp)
	}
	return rangeOfTimes.ReplaceAllString(o.words.text(o.words.words(resp)), "[...]")
}

// errands runs a script at every office and compares.
func errands(t *testing.T, all []*office, script []errand) {
	t.Helper()
	for _, e := range script {
		direct := e.run(all[0])
		if e.reads {
			eventually(t, e.what+": brokers say "+e.wants, func() (bool, string) {
				if strings.Contains(direct, e.wants) {
					return true, ""
				}
				direct = e.run(all[0])
				return false, direct
			})
		} else if !strings.Contains(direct, e.wants) {
			t.Errorf("%s: brokers were to say %q:\n%s", e.what, e.wants, direct)
		}
		for _, o := range all[1:] {
			got := e.run(o)
			for deadline := time.Now().Add(patience / 6); e.reads && got != direct && time.Now().Before(deadline); {
				time.Sleep(50 * time.Millisecond)
				if got = e.run(o); got != direct {
					direct = e.run(all[0])
				}
			}
			if got != direct {
				t.Errorf("%s differs, %s: %s", e.what, o.place(), apart(got, direct))
			}
		}
	}
}

func configs(pairs ...string) (all []kmsg.IncrementalAlterConfigsRequestResourceConfig) {
	for i := 0; i < len(pairs); i += 2 {
		c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		c.Name, c.Value = pairs[i], &pairs[i+1]
		if pairs[i+1] == "" {
			c.Op, c.Value = kmsg.IncrementalAlterConfigOpDelete, nil
		}
		all = append(all, c)
	}
	return all
}

func alteration(kind kmsg.ConfigResourceType, resource string, pairs ...string) kmsg.Request {
	return &kmsg.IncrementalAlterConfigsRequest{Resources: []kmsg.IncrementalAlterConfigsRequestResource{{ResourceType: kind, ResourceName: resource, Configs: configs(pairs...)}}}
}

func describing(kind kmsg.ConfigResourceType, resource string, names ...string) kmsg.Request {
	return &kmsg.DescribeConfigsRequest{IncludeSynonyms: true, Resources: []kmsg.DescribeConfigsRequestResource{{ResourceType: kind, ResourceName: resource, ConfigNames: names}}}
}

// What operators ask is answered as by the brokers, at both ports of a broker,
// and whichever id they call it by.
func TestLongOperatorsAreAnsweredAsDirect(t *testing.T) {
	harness.Long(t)
	p := shared(t)
	all := offices(t, bootstrapOf(p.kafka), p.sluice.Bootstrap)
	assigned := func(o *office, topic string, validate bool, replicas ...[]int32) kmsg.Request {
		req := &kmsg.CreateTopicsRequest{TimeoutMillis: 30_000, ValidateOnly: validate}
		ct := kmsg.CreateTopicsRequestTopic{Topic: topic, NumPartitions: -1, ReplicationFactor: -1}
		for i, r := range replicas {
			ct.ReplicaAssignment = append(ct.ReplicaAssignment, kmsg.CreateTopicsRequestTopicReplicaAssignment{Partition: int32(i), Replicas: o.ids(r...)})
		}
		for key, value := range map[string]string{"retention.ms": "-1", "min.insync.replicas": "1"} {
			ct.Configs = append(ct.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: key, Value: &value})
		}
		req.Topics = append(req.Topics, ct)
		return req
	}
	partitions := func(o *office, limit int32, cursor *kmsg.DescribeTopicPartitionsRequestCursor) kmsg.Request {
		return &kmsg.DescribeTopicPartitionsRequest{
			Topics:                 []kmsg.DescribeTopicPartitionsRequestTopic{{Topic: o.own("topic")}, {Topic: o.own("other")}, {Topic: o.own("none")}},
			ResponsePartitionLimit: limit, Cursor: cursor,
		}
	}
	reassigning := func(o *office, partition int32, replicas []int32) kmsg.Request {
		req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
		req.TimeoutMillis = 20_000
		req.Topics = []kmsg.AlterPartitionAssignmentsRequestTopic{{Topic: o.own("topic"), Partitions: []kmsg.AlterPartitionAssignmentsRequestTopicPartition{{Partition: partition, Replicas: o.ids(replicas...)}}}}
		return req
	}
	electing := func(kind int8, o *office, partitions ...int32) kmsg.Request {
		return &kmsg.ElectLeadersRequest{ElectionType: kind, TimeoutMillis: 20_000, Topics: []kmsg.ElectLeadersRequestTopic{{Topic: o.own("topic"), Partitions: partitions}}}
	}
	scramUser := func(o *office) *kmsg.AlterUserSCRAMCredentialsRequest {
		return &kmsg.AlterUserSCRAMCredentialsRequest{Upsertions: []kmsg.AlterUserSCRAMCredentialsRequestUpsertion{
			{Name: o.own("user"), Mechanism: 1, Iterations: 8192, Salt: []byte("salt"), SaltedPassword: []byte("salted password")},
			{Name: o.own("user"), Mechanism: 2, Iterations: 1, Salt: []byte("salt"), SaltedPassword: []byte("salted password")}, // too few
		}}
	}
	quota := func(o *office, rate float64, remove, validate bool) kmsg.Request {
		user, id := o.own("user"), o.own("client")
		return &kmsg.AlterClientQuotasRequest{ValidateOnly: validate, Entries: []kmsg.AlterClientQuotasRequestEntry{
			{Entity: []kmsg.AlterClientQuotasRequestEntryEntity{{Type: "user", Name: &user}, {Type: "client-id", Name: &id}}, Ops: []kmsg.AlterClientQuotasRequestEntryOp{{Key: "producer_byte_rate", Value: rate, Remove: remove}}},
			{Entity: []kmsg.AlterClientQuotasRequestEntryEntity{{Type: "client-id", Name: &id}}, Ops: []kmsg.AlterClientQuotasRequestEntryOp{{Key: "no_such_rate", Value: rate, Remove: remove}}},
		}}
	}
	const topic, broker, metrics, group = kmsg.ConfigResourceTypeTopic, kmsg.ConfigResourceTypeBroker, kmsg.ConfigResourceTypeClientMetrics, kmsg.ConfigResourceTypeGroupConfig
	const throttle = "follower.replication.throttled.rate"
	groups := func(o *office) []string { return []string{o.own("group"), o.own("sharing"), o.own("none")} }

	errands(t, all, []errand{
		{what: "a topic by the ids that are seen", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request { return assigned(o, o.own("topic"), false, []int32{1, 2}, []int32{1, 3}) }},
		{what: "another", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request { return assigned(o, o.own("other"), false, []int32{1}) }},
		{what: "one that would be", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request { return assigned(o, o.own("none"), true, []int32{2}) }},
		{what: "a topic at brokers that there are not", wants: "INVALID_REPLICA_ASSIGNMENT", request: func(o *office) kmsg.Request { return assigned(o, o.own("none"), false, []int32{1, 6}) }},
		{what: "all partitions", reads: true, wants: "LeaderID 1", request: func(o *office) kmsg.Request { return partitions(o, 100, nil) }},
		{what: "the first of the partitions", wants: "NextCursor Topic", request: func(o *office) kmsg.Request { return partitions(o, 1, nil) }},
		{what: "the next of the partitions", wants: "Partition 1", request: func(o *office) kmsg.Request {
			return partitions(o, 1, &kmsg.DescribeTopicPartitionsRequestCursor{Topic: o.own("topic"), Partition: 1})
		}},
		{what: "the cluster", wants: "EndpointType 1", request: func(*office) kmsg.Request {
			return &kmsg.DescribeClusterRequest{IncludeClusterAuthorizedOperations: true, EndpointType: 1, IncludeFencedBrokers: true}
		}},
		{what: "the cluster's controllers", request: func(*office) kmsg.Request { return &kmsg.DescribeClusterRequest{EndpointType: 2} }},

		{what: "a reassignment", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request { return reassigning(o, 1, []int32{3, 1}) }},
		{what: "reassignments to what there is not", wants: "INVALID_REPLICA_ASSIGNMENT", request: func(o *office) kmsg.Request { return reassigning(o, 0, []int32{1, 6}) }},
		{what: "the end of what is not under way", wants: "NO_REASSIGNMENT_IN_PROGRESS", request: func(o *office) kmsg.Request {
			req := reassigning(o, 0, nil).(*kmsg.AlterPartitionAssignmentsRequest)
			req.Topics[0].Partitions[0].Replicas = nil
			return req
		}},
		{what: "reassignments under way", reads: true, request: func(o *office) kmsg.Request {
			return &kmsg.ListPartitionReassignmentsRequest{TimeoutMillis: 20_000, Topics: []kmsg.ListPartitionReassignmentsRequestTopic{{Topic: o.own("topic"), Partitions: []int32{0, 1, 7}}}}
		}},
		{what: "where they led to", reads: true, wants: "Replicas [3 1]", request: func(o *office) kmsg.Request { return partitions(o, 100, nil) }},
		{what: "an election of the preferred", request: func(o *office) kmsg.Request { return electing(0, o, 0, 1, 9) }, wants: "UNKNOWN_TOPIC_OR_PARTITION"},
		{what: "an election where there is a leader", request: func(o *office) kmsg.Request { return electing(1, o, 0) }, wants: "ELECTION_NOT_NEEDED"},
		{what: "who leads then", reads: true, wants: "LeaderID 3", request: func(o *office) kmsg.Request { return partitions(o, 100, nil) }},

		{what: "a broker's configuration is changed", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request { return alteration(broker, fmt.Sprint(o.id(1)), throttle, "987654321") }},
		{what: "it is described", reads: true, wants: "987654321", request: func(o *office) kmsg.Request { return describing(broker, fmt.Sprint(o.id(1)), throttle) }},
		{what: "it is removed", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request { return alteration(broker, fmt.Sprint(o.id(1)), throttle, "") }},
		{what: "it is gone", reads: true, request: func(o *office) kmsg.Request { return describing(broker, fmt.Sprint(o.id(1)), throttle) }},
		{what: "another broker's", wants: "INVALID_REQUEST", request: func(o *office) kmsg.Request { return describing(broker, fmt.Sprint(o.id(2)), throttle) }},
		{what: "a broker's that there is not", wants: "INVALID_REQUEST", request: func(o *office) kmsg.Request { return describing(broker, "many") }},
		{what: "a broker's of a wrong value", wants: "INVALID_REQUEST", request: func(o *office) kmsg.Request { return alteration(broker, fmt.Sprint(o.id(1)), throttle, "many") }},
		{what: "a topic's of a wrong value", wants: "INVALID_CONFIG", request: func(o *office) kmsg.Request {
			return alteration(topic, o.own("topic"), "compression.type", "loud")
		}},
		{what: "client metrics are subscribed to", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request {
			return alteration(metrics, o.own("metrics"), "metrics", "org.apache.kafka.producer.", "interval.ms", "60000", "match", "client_id="+o.own("client"))
		}},
		{what: "client metrics are described", reads: true, wants: "org.apache.kafka.producer.", request: func(o *office) kmsg.Request { return describing(metrics, o.own("metrics")) }},
		{what: "a group's configuration is changed", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request {
			return alteration(group, o.own("group"), "consumer.session.timeout.ms", "50000")
		}},
		{what: "a group's configuration is described", reads: true, wants: "50000", request: func(o *office) kmsg.Request { return describing(group, o.own("group")) }},
		{what: "client metrics are no more", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request {
			return alteration(metrics, o.own("metrics"), "metrics", "", "interval.ms", "", "match", "")
		}},

		{what: "quotas that would be", wants: "INVALID_REQUEST", request: func(o *office) kmsg.Request { return quota(o, 1e6, false, true) }},
		{what: "quotas", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request { return quota(o, 1e6, false, false) }},
		{what: "quotas are described", reads: true, wants: "1e+06", request: func(o *office) kmsg.Request {
			user := o.own("user")
			return &kmsg.DescribeClientQuotasRequest{Components: []kmsg.DescribeClientQuotasRequestComponent{{EntityType: "user", Match: &user}, {EntityType: "client-id", MatchType: kmsg.QuotasMatchTypeAny}}, Strict: true}
		}},
		{what: "quotas of nobody", request: func(*office) kmsg.Request {
			return &kmsg.DescribeClientQuotasRequest{Components: []kmsg.DescribeClientQuotasRequestComponent{{EntityType: "nobody", MatchType: kmsg.QuotasMatchTypeAny}}}
		}},
		{what: "quotas are removed", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request { return quota(o, 0, true, false) }},

		{what: "users of SCRAM that cannot be", wants: "UNACCEPTABLE_CREDENTIAL", request: func(o *office) kmsg.Request {
			req := scramUser(o)
			req.Upsertions = req.Upsertions[1:]
			return req
		}},
		{what: "a user of SCRAM", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request {
			req := scramUser(o)
			req.Upsertions = req.Upsertions[:1]
			return req
		}},
		{what: "it is described", reads: true, wants: "Iterations 8192", request: func(o *office) kmsg.Request {
			return &kmsg.DescribeUserSCRAMCredentialsRequest{Users: []kmsg.DescribeUserSCRAMCredentialsRequestUser{{Name: o.own("user")}}}
		}},
		{what: "it is removed", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request {
			return &kmsg.AlterUserSCRAMCredentialsRequest{Deletions: []kmsg.AlterUserSCRAMCredentialsRequestDeletion{{Name: o.own("user"), Mechanism: 1}}}
		}},
		{what: "nobody is described", reads: true, wants: "RESOURCE_NOT_FOUND", request: func(o *office) kmsg.Request {
			return &kmsg.DescribeUserSCRAMCredentialsRequest{Users: []kmsg.DescribeUserSCRAMCredentialsRequestUser{{Name: o.own("user")}}}
		}},

		{what: "features that would be", request: func(*office) kmsg.Request {
			return &kmsg.UpdateFeaturesRequest{TimeoutMillis: 20_000, ValidateOnly: true, FeatureUpdates: []kmsg.UpdateFeaturesRequestFeatureUpdate{{Feature: "transaction.version", MaxVersionLevel: 2, UpgradeType: 1}}}
		}},
		{what: "features that there are not", wants: "INVALID_UPDATE_VERSION", request: func(*office) kmsg.Request {
			return &kmsg.UpdateFeaturesRequest{TimeoutMillis: 20_000, ValidateOnly: true, FeatureUpdates: []kmsg.UpdateFeaturesRequestFeatureUpdate{{Feature: "flight.version", MaxVersionLevel: 2, UpgradeType: 1}}}
		}},
		{what: "the quorum", wants: "ErrorCode NONE", request: func(*office) kmsg.Request {
			return &kmsg.DescribeQuorumRequest{Topics: []kmsg.DescribeQuorumRequestTopic{{Topic: "__cluster_metadata", Partitions: []kmsg.DescribeQuorumRequestTopicPartition{{}}}}}
		}, keep: func(_ *office, resp kmsg.Response) {
			q := resp.(*kmsg.DescribeQuorumResponse)
			q.Nodes, q.ErrorMessage = nil, nil // of v2, which is not offered
			for i := range q.Topics {
				for j := range q.Topics[i].Partitions {
					// They move all the time.
					p := &q.Topics[i].Partitions[j]
					p.ErrorMessage, p.HighWatermark = nil, 0
					for _, replicas := range [][]kmsg.DescribeQuorumResponseTopicPartitionReplicaState{p.CurrentVoters, p.Observers} {
						for r := range replicas {
							replicas[r] = kmsg.DescribeQuorumResponseTopicPartitionReplicaState{ReplicaID: replicas[r].ReplicaID}
						}
					}
				}
			}
		}},
		{what: "markers for a topic that there is not", wants: "UNKNOWN_TOPIC_OR_PARTITION", request: func(o *office) kmsg.Request {
			return &kmsg.WriteTxnMarkersRequest{Markers: []kmsg.WriteTxnMarkersRequestMarker{{ProducerID: 4711, Topics: []kmsg.WriteTxnMarkersRequestMarkerTopic{{Topic: o.own("none"), Partitions: []int32{0}}}}}}
		}},
		{what: "subscriptions, which these brokers have no use for", wants: "no answer", request: func(*office) kmsg.Request { return kmsg.NewPtrGetTelemetrySubscriptionsRequest() }},
		{what: "a voter that cannot be", request: func(*office) kmsg.Request {
			return &kmsg.AddRaftVoterRequest{VoterID: 7, TimeoutMillis: 1000, VoterDirectoryID: [16]byte{7}, Listeners: []kmsg.AddRaftVoterRequestListener{}}
		}},
		{what: "a voter that there is not is removed", request: func(*office) kmsg.Request { return &kmsg.RemoveRaftVoterRequest{VoterID: 7} }},
		{what: "a broker that there is not is unregistered", request: func(*office) kmsg.Request { return &kmsg.UnregisterBrokerRequest{BrokerID: 7} }},
		{what: "logs in a folder that there is not", wants: "LOG_DIR_NOT_FOUND", request: func(o *office) kmsg.Request {
			return &kmsg.AlterReplicaLogDirsRequest{Dirs: []kmsg.AlterReplicaLogDirsRequestDir{{Dir: "/there/is/none", Topics: []kmsg.AlterReplicaLogDirsRequestDirTopic{{Topic: o.own("topic"), Partitions: []int32{0, 9}}}}}}
		}},

		{what: "access without an authorizer", wants: "SECURITY_DISABLED", request: func(*office) kmsg.Request {
			return &kmsg.DescribeACLsRequest{ResourceType: kmsg.ACLResourceTypeAny, ResourcePatternType: kmsg.ACLResourcePatternTypeAny, Operation: kmsg.ACLOperationAny, PermissionType: kmsg.ACLPermissionTypeAny}
		}},
		{what: "a token without a secret", wants: "DELEGATION_TOKEN", request: func(*office) kmsg.Request { return &kmsg.CreateDelegationTokenRequest{MaxLifetimeMillis: -1} }},

		{what: "a share group", wants: "ErrorCode NONE", of: "sharing", request: func(o *office) kmsg.Request {
			return &kmsg.ShareGroupHeartbeatRequest{GroupID: o.own("sharing"), MemberID: "11111111-2222-3333-4444-555555555555", SubscribedTopicNames: []string{o.own("topic")}}
		}},
		{what: "its member leaves", wants: "ErrorCode NONE", of: "sharing", request: func(o *office) kmsg.Request {
			return &kmsg.ShareGroupHeartbeatRequest{GroupID: o.own("sharing"), MemberID: "11111111-2222-3333-4444-555555555555", MemberEpoch: -1}
		}},
		{what: "a consumer group", wants: "ErrorCode NONE", of: "group", request: func(o *office) kmsg.Request {
			return &kmsg.ConsumerGroupHeartbeatRequest{Group: o.own("group"), MemberID: "11111111-2222-3333-4444-555555555555", RebalanceTimeoutMillis: 30_000, SubscribedTopicNames: []string{o.own("topic")}, Topics: []kmsg.ConsumerGroupHeartbeatRequestTopic{}}
		}},
		{what: "its member leaves", wants: "ErrorCode NONE", of: "group", request: func(o *office) kmsg.Request {
			return &kmsg.ConsumerGroupHeartbeatRequest{Group: o.own("group"), MemberID: "11111111-2222-3333-4444-555555555555", MemberEpoch: -1, RebalanceTimeoutMillis: -1}
		}},
		{what: "groups as classic ones", reads: true, routed: true, wants: "GROUP_ID_NOT_FOUND", request: func(o *office) kmsg.Request { return &kmsg.DescribeGroupsRequest{Groups: groups(o)} }},
		{what: "groups as consumers'", reads: true, routed: true, wants: "Empty", request: func(o *office) kmsg.Request { return &kmsg.ConsumerGroupDescribeRequest{Groups: groups(o)} }},
		{what: "groups as shares", reads: true, routed: true, wants: "Empty", request: func(o *office) kmsg.Request { return &kmsg.ShareGroupDescribeRequest{GroupIDs: groups(o)} }},
		{what: "a streams group", reads: true, of: "sharing", wants: "GROUP_ID_NOT_FOUND", request: func(o *office) kmsg.Request {
			return &kmsg.StreamsGroupDescribeRequest{Groups: []string{o.own("sharing")}}
		}},
		{what: "offsets of shares are changed", of: "sharing", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request {
			return &kmsg.AlterShareGroupOffsetsRequest{GroupID: o.own("sharing"), Topics: []kmsg.AlterShareGroupOffsetsRequestTopic{{Topic: o.own("topic"), Partitions: []kmsg.AlterShareGroupOffsetsRequestTopicPartition{{Partition: 0, StartOffset: 0}, {Partition: 9}}}}}
		}},
		{what: "offsets of shares", reads: true, of: "sharing", wants: "StartOffset 0", request: func(o *office) kmsg.Request {
			return &kmsg.DescribeShareGroupOffsetsRequest{Groups: []kmsg.DescribeShareGroupOffsetsRequestGroup{{GroupID: o.own("sharing"), Topics: []kmsg.DescribeShareGroupOffsetsRequestGroupTopic{{Topic: o.own("topic"), Partitions: []int32{0, 1}}}}}}
		}},
		{what: "offsets of shares are deleted", of: "sharing", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request {
			return &kmsg.DeleteShareGroupOffsetsRequest{GroupID: o.own("sharing"), Topics: []kmsg.DeleteShareGroupOffsetsRequestTopic{{Topic: o.own("topic")}, {Topic: o.own("none")}}}
		}},
		{what: "groups are deleted", routed: true, wants: "GROUP_ID_NOT_FOUND", request: func(o *office) kmsg.Request { return &kmsg.DeleteGroupsRequest{Groups: groups(o)} }},
		{what: "configurations", reads: true, wants: "ErrorCode NONE", request: func(*office) kmsg.Request {
			return &kmsg.ListConfigResourcesRequest{ResourceTypes: []int8{4, 8, 16, 32}}
		}, keep: func(o *office, resp kmsg.Response) {
			l := resp.(*kmsg.ListConfigResourcesResponse)
			l.ConfigResources = slices.DeleteFunc(l.ConfigResources, func(r kmsg.ListConfigResourcesResponseConfigResource) bool {
				return strings.HasPrefix(r.Name, "office-") && !strings.HasSuffix(r.Name, o.suffix+"-"+o.class) // of another office
			})
		}},
		{what: "configurations of what there is not", request: func(*office) kmsg.Request { return &kmsg.ListConfigResourcesRequest{ResourceTypes: []int8{77}} }},
		{what: "producers", routed: true, request: func(o *office) kmsg.Request {
			return &kmsg.DescribeProducersRequest{Topics: []kmsg.DescribeProducersRequestTopic{{Topic: o.own("other"), Partitions: []int32{0}}}}
		}},
	})
}

// The same of what takes logins: access, and tokens, with which clients then log
// in themselves.
func TestLongOperatorsOfUsersAreAnsweredAsDirect(t *testing.T) {
	harness.Long(t)
	users := map[string]string{harness.Admin: "admin-secret", "owner": "owner-secret"}
	k := harness.StartKafka(t, harness.KafkaOptions{Nodes: []int32{1}, Users: users, Properties: map[string]string{"delegation.token.secret.key": "secret"}})
	s := startSluice(t, replica{Kafka: k.Bootstrap(), InKafka: fmt.Sprintf("  sasl: { mechanism: SCRAM-SHA-256, username: %q, password: %q }\n", harness.Admin, users[harness.Admin])})
	login := scram.Auth{User: harness.Admin, Pass: users[harness.Admin]}.AsSha256Mechanism()
	all := offices(t, bootstrapOf(k), s.Bootstrap, kgo.SASL(login))

	access := func(o *office, permission kmsg.ACLPermissionType) *kmsg.CreateACLsRequest {
		return &kmsg.CreateACLsRequest{Creations: []kmsg.CreateACLsRequestCreation{
			{ResourceType: kmsg.ACLResourceTypeTopic, ResourceName: o.own("topic"), ResourcePatternType: kmsg.ACLResourcePatternTypeLiteral, Principal: "User:" + o.own("user"), Host: "*", Operation: kmsg.ACLOperationWrite, PermissionType: permission},
			{ResourceType: kmsg.ACLResourceTypeGroup, ResourceName: o.own("group"), ResourcePatternType: kmsg.ACLResourcePatternTypePrefixed, Principal: "User:" + o.own("user"), Host: "*", Operation: kmsg.ACLOperationRead, PermissionType: permission},
		}}
	}
	ofUser := func(o *office) *string { principal := "User:" + o.own("user"); return &principal }
	hmac := func(o *office) []byte {
		b, _ := o.kept["hmac"].([]byte)
		return b
	}
	owner := func() *kmsg.CreateDelegationTokenRequest {
		kind, who := "User", "owner"
		return &kmsg.CreateDelegationTokenRequest{OwnerPrincipalType: &kind, OwnerPrincipalName: &who, MaxLifetimeMillis: 3_600_000, Renewers: []kmsg.CreateDelegationTokenRequestRenewer{{PrincipalType: "User", PrincipalName: harness.Admin}}}
	}
	errands(t, all, []errand{
		{what: "access that makes no sense", wants: "UNKNOWN_SERVER_ERROR", request: func(o *office) kmsg.Request { return access(o, kmsg.ACLPermissionTypeAny) }},
		{what: "access", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request { return access(o, kmsg.ACLPermissionTypeAllow) }},
		{what: "access is described", reads: true, wants: "Operation WRITE", request: func(o *office) kmsg.Request {
			return &kmsg.DescribeACLsRequest{ResourceType: kmsg.ACLResourceTypeAny, ResourcePatternType: kmsg.ACLResourcePatternTypeAny, Principal: ofUser(o), Operation: kmsg.ACLOperationAny, PermissionType: kmsg.ACLPermissionTypeAny}
		}},
		{what: "access is deleted", wants: "MatchingACLs", request: func(o *office) kmsg.Request {
			return &kmsg.DeleteACLsRequest{Filters: []kmsg.DeleteACLsRequestFilter{{ResourceType: kmsg.ACLResourceTypeAny, ResourcePatternType: kmsg.ACLResourcePatternTypeMatch, Principal: ofUser(o), Operation: kmsg.ACLOperationAny, PermissionType: kmsg.ACLPermissionTypeAny}}}
		}},
		{what: "access is gone", reads: true, wants: "ErrorCode NONE", request: func(o *office) kmsg.Request {
			return &kmsg.DescribeACLsRequest{ResourceType: kmsg.ACLResourceTypeAny, ResourcePatternType: kmsg.ACLResourcePatternTypeAny, Principal: ofUser(o), Operation: kmsg.ACLOperationAny, PermissionType: kmsg.ACLPermissionTypeAny}
		}},

		{what: "a token", wants: "ErrorCode NONE", request: func(*office) kmsg.Request { return owner() }, keep: func(o *office, resp kmsg.Response) {
			token := resp.(*kmsg.CreateDelegationTokenResponse)
			o.kept["hmac"], o.kept["id"] = slices.Clone(token.HMAC), token.TokenID
			o.words.call(token.TokenID, "token")
			token.HMAC = nil
		}},
		{what: "it is renewed", reads: true, wants: "ErrorCode NONE", request: func(o *office) kmsg.Request {
			return &kmsg.RenewDelegationTokenRequest{HMAC: hmac(o), RenewTimeMillis: 60_000}
		}},
		{what: "one that there is not is renewed", wants: "DELEGATION_TOKEN_NOT_FOUND", request: func(*office) kmsg.Request {
			return &kmsg.RenewDelegationTokenRequest{HMAC: []byte("nobody's"), RenewTimeMillis: 60_000}
		}},
		{what: "its owner's tokens", reads: true, wants: "token", request: func(*office) kmsg.Request {
			return &kmsg.DescribeDelegationTokenRequest{Owners: []kmsg.DescribeDelegationTokenRequestOwner{{PrincipalType: "User", PrincipalName: "owner"}}}
		}, keep: func(o *office, resp kmsg.Response) {
			d := resp.(*kmsg.DescribeDelegationTokenResponse)
			d.TokenDetails = slices.DeleteFunc(d.TokenDetails, func(t kmsg.DescribeDelegationTokenResponseTokenDetail) bool { return t.TokenID != o.kept["id"] })
			for i := range d.TokenDetails {
				d.TokenDetails[i].HMAC = nil
			}
		}},
	})
	for _, o := range all {
		id, _ := o.kept["id"].(string)
		token := scram.Auth{User: id, Pass: encode64(hmac(o)), IsToken: true}.AsSha256Mechanism()
		eventually(t, o.place()+": a client logs in with the token", func() (bool, string) {
			_, err := kmsg.NewPtrMetadataRequest().RequestWith(t.Context(), client(t, o.bootstrap, kgo.SASL(token), kgo.RequestRetries(0)))
			return err == nil, fmt.Sprint(err)
		})
	}
	errands(t, all, []errand{
		{what: "it expires", wants: "ErrorCode NONE", request: func(o *office) kmsg.Request {
			return &kmsg.ExpireDelegationTokenRequest{HMAC: hmac(o), ExpiryPeriodMillis: -1}
		}},
		{what: "what has expired expires", reads: true, wants: "DELEGATION_TOKEN_NOT_FOUND", request: func(o *office) kmsg.Request {
			return &kmsg.ExpireDelegationTokenRequest{HMAC: hmac(o), ExpiryPeriodMillis: -1}
		}},
	})
}

func encode64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
