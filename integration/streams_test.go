package integration

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Members of a streams group (KIP-1071) tell each other through the coordinator
// where they can be asked for their state: their own addresses, which sluice
// must leave alone. What the group is described as names no broker at all.
func TestStreamsGroupsAreAsDirect(t *testing.T) {
	for _, class := range []string{"control", "telemetry"} {
		t.Run(class, func(t *testing.T) {
			p := shared(t)
			topic, group := "streams-in-"+class, "streaming-"+class
			target{bootstrap: p.sluice.Bootstrap, sluice: p.sluice}.create(t, topic, 2)
			ask := func(bootstrap string, req kmsg.Request) kmsg.Response {
				t.Helper()
				cl := client(t, bootstrap)
				var at kadm.FindCoordinatorResponse
				eventually(t, "the group has a coordinator", func() (bool, string) {
					at = kadm.NewClient(cl).FindGroupCoordinators(t.Context(), group)[group]
					return at.Err == nil, fmt.Sprint(at.Err)
				})
				resp, err := cl.Broker(int(at.NodeID)).RetriableRequest(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				return resp
			}
			member := func(id string, port uint16) *kmsg.StreamsGroupHeartbeatRequest {
				req := kmsg.NewPtrStreamsGroupHeartbeatRequest()
				process := "11111111-2222-3333-4444-55555555555" + id
				sub := kmsg.NewStreamsGroupHeartbeatRequestTopologySubtopology()
				sub.SubtopologyID, sub.SourceTopics = "0", []string{topic}
				req.Group, req.MemberID, req.RebalanceTimeoutMillis, req.ProcessID = group, "member-"+id, 10_000, &process
				req.ActiveTasks, req.StandbyTasks, req.WarmupTasks = []kmsg.TaskIDs{}, []kmsg.TaskIDs{}, []kmsg.TaskIDs{}
				req.ClientTags, req.Topology = []kmsg.StreamsGroupHeartbeatRequestClientTag{}, &kmsg.StreamsGroupHeartbeatRequestTopology{
					Subtopologies: []kmsg.StreamsGroupHeartbeatRequestTopologySubtopology{sub},
				}
				req.UserEndpoint = &kmsg.StreamsGroupHeartbeatRequestUserEndpoint{Host: "interactive-" + id + ".invalid", Port: port}
				return req
			}
			// A coordinator that has just begun, or has not heard of the topic, may not
			// be able to say anything yet.
			var joined *kmsg.StreamsGroupHeartbeatResponse
			eventually(t, "the member has joined", func() (bool, string) {
				joined = ask(p.sluice.Bootstrap, member("1", 9092)).(*kmsg.StreamsGroupHeartbeatResponse)
				return joined.ErrorCode == 0 && joined.MemberEpoch > 0, fmt.Sprintf("%+v", joined)
			})
			describe := func(bootstrap string) *kmsg.StreamsGroupDescribeResponse {
				t.Helper()
				req := kmsg.NewPtrStreamsGroupDescribeRequest()
				req.Groups = []string{group}
				return ask(bootstrap, req).(*kmsg.StreamsGroupDescribeResponse)
			}
			beat := func(bootstrap string, last *kmsg.StreamsGroupHeartbeatResponse) *kmsg.StreamsGroupHeartbeatResponse {
				t.Helper()
				req := kmsg.NewPtrStreamsGroupHeartbeatRequest()
				req.Group, req.MemberID, req.MemberEpoch, req.RebalanceTimeoutMillis = group, last.MemberID, last.MemberEpoch, -1
				req.EndpointInformationEpoch = -1
				if last.ActiveTasks != nil { // what it owns, once it has changed
					req.ActiveTasks, req.StandbyTasks, req.WarmupTasks = last.ActiveTasks, []kmsg.TaskIDs{}, []kmsg.TaskIDs{}
				}
				return ask(bootstrap, req).(*kmsg.StreamsGroupHeartbeatResponse)
			}
			eventually(t, "the member has its tasks and its endpoint is told", func() (bool, string) {
				joined = beat(p.sluice.Bootstrap, joined)
				if joined.ErrorCode != 0 {
					t.Fatalf("error %d", joined.ErrorCode)
				}
				for _, e := range joined.PartitionsByUserEndpoint {
					if e.UserEndpoint.Host == "interactive-1.invalid" && e.UserEndpoint.Port == 9092 && len(e.ActivePartitions) == 1 && e.ActivePartitions[0].Topic == topic {
						return true, ""
					}
				}
				return false, fmt.Sprintf("%+v", joined)
			})
			through, direct := describe(p.sluice.Bootstrap), describe(bootstrapOf(p.kafka))
			if !reflect.DeepEqual(through, direct) {
				t.Errorf("through sluice\n%+v\nand directly\n%+v", through, direct)
			}
			if g := through.Groups[0]; g.ErrorCode != 0 || g.State != "Stable" || len(g.Members) != 1 || g.Members[0].UserEndpoint.Host != "interactive-1.invalid" {
				t.Errorf("described as %+v", g)
			}
		})
	}
}
