package lowlatency

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/tiers"
)

// said is one broker's answer about topic t, with two partitions that 1 leads.
func said(alter func(*kmsg.MetadataResponseTopic)) *kmsg.MetadataResponse {
	t := kmsg.NewMetadataResponseTopic()
	t.Topic, t.TopicID = kmsg.StringPtr("t"), [16]byte{1}
	for n := range int32(2) {
		p := kmsg.NewMetadataResponseTopicPartition()
		p.Partition, p.Leader, p.LeaderEpoch, p.Replicas, p.ISR = n, 1, 5, []int32{1, 2}, []int32{2, 1}
		t.Partitions = append(t.Partitions, p)
	}
	if alter != nil {
		alter(&t)
	}
	return &kmsg.MetadataResponse{Topics: []kmsg.MetadataResponseTopic{t}}
}

func doubtOf(v tiers.TopicView) string {
	if v.Doubt != "" {
		return v.Doubt
	}
	for _, l := range v.Partitions {
		if l.Doubt != "" {
			return l.Doubt
		}
	}
	return ""
}

// What one of two brokers says otherwise is a doubt, whichever of them it is:
// deletion rests on what all of them agree on.
func TestBrokersThatDisagreeAreDoubted(t *testing.T) {
	fails := func(err *kerr.Error) func(*kmsg.MetadataResponseTopic) {
		return func(t *kmsg.MetadataResponseTopic) {
			t.ErrorCode, t.TopicID, t.Partitions = err.Code, [16]byte{}, nil
		}
	}
	for name, c := range map[string]struct {
		alter func(*kmsg.MetadataResponseTopic)
		doubt string
	}{
		"one has not heard of it":  {fails(kerr.UnknownTopicOrPartition), "disagree about which topic"},
		"one may not tell":         {fails(kerr.TopicAuthorizationFailed), "may not describe it"},
		"one is in trouble":        {fails(kerr.UnknownServerError), kerr.UnknownServerError.Message},
		"made anew":                {func(t *kmsg.MetadataResponseTopic) { t.TopicID = [16]byte{2} }, "disagree about which topic"},
		"no id":                    {func(t *kmsg.MetadataResponseTopic) { t.TopicID = [16]byte{} }, "no topic id"},
		"fewer partitions":         {func(t *kmsg.MetadataResponseTopic) { t.Partitions = t.Partitions[:1] }, "disagree about which topic"},
		"no partitions":            {func(t *kmsg.MetadataResponseTopic) { t.Partitions = nil }, "does not tell all"},
		"a partition is left out":  {func(t *kmsg.MetadataResponseTopic) { t.Partitions = t.Partitions[1:] }, "does not tell all"},
		"a partition comes twice":  {func(t *kmsg.MetadataResponseTopic) { t.Partitions[0].Partition = 1 }, "does not tell all"},
		"a negative partition":     {func(t *kmsg.MetadataResponseTopic) { t.Partitions[0].Partition = -1 }, "does not tell all"},
		"another leader":           {func(t *kmsg.MetadataResponseTopic) { t.Partitions[1].Leader = 2 }, "disagree about its leader"},
		"another epoch":            {func(t *kmsg.MetadataResponseTopic) { t.Partitions[1].LeaderEpoch++ }, "disagree about its leader"},
		"no leader":                {func(t *kmsg.MetadataResponseTopic) { t.Partitions[0].Leader = -1 }, "no leader"},
		"no epoch":                 {func(t *kmsg.MetadataResponseTopic) { t.Partitions[0].LeaderEpoch = -1 }, "no leader"},
		"says nothing of the name": {func(t *kmsg.MetadataResponseTopic) { t.Topic = kmsg.StringPtr("another") }, "not every broker says"},
		"names none":               {func(t *kmsg.MetadataResponseTopic) { t.Topic = nil }, "not every broker says"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, odd := range []int32{1, 2} {
				answers := map[int32]*kmsg.MetadataResponse{odd: said(c.alter), 3 - odd: said(nil)}
				if doubt := doubtOf(agree([]string{"t"}, answers)["t"]); !strings.Contains(doubt, c.doubt) {
					t.Errorf("where broker %d is the odd one the doubt is %q", odd, doubt)
				}
			}
		})
	}
}

func TestBrokersThatAgreeAreBelieved(t *testing.T) {
	v := agree([]string{"t"}, map[int32]*kmsg.MetadataResponse{1: said(nil), 2: said(nil)})["t"]
	if doubt := doubtOf(v); doubt != "" || len(v.Partitions) != 2 || !v.Partitions[0].InSync || !v.Partitions[1].InSync {
		t.Errorf("%+v", v)
	}
	gone := func(t *kmsg.MetadataResponseTopic) {
		t.ErrorCode, t.TopicID, t.Partitions = kerr.UnknownTopicOrPartition.Code, [16]byte{}, nil
	}
	v = agree([]string{"t"}, map[int32]*kmsg.MetadataResponse{1: said(gone), 2: said(gone)})["t"]
	if doubt := doubtOf(v); doubt != "" || v.Exists() {
		t.Errorf("a topic that no broker has: %+v", v)
	}
	// One that sees a replica behind is enough.
	behind := func(t *kmsg.MetadataResponseTopic) { t.Partitions[1].ISR = []int32{1} }
	for _, odd := range []int32{1, 2} {
		v = agree([]string{"t"}, map[int32]*kmsg.MetadataResponse{odd: said(behind), 3 - odd: said(nil)})["t"]
		if !v.Partitions[0].InSync || v.Partitions[1].InSync {
			t.Errorf("broker %d sees a replica behind: %+v", odd, v)
		}
	}
}

// A broker that says a name twice does not speak for one that says nothing.
func TestOneBrokerDoesNotSpeakForAnother(t *testing.T) {
	twice := said(nil)
	twice.Topics = append(twice.Topics, twice.Topics[0])
	v := agree([]string{"t"}, map[int32]*kmsg.MetadataResponse{1: twice, 2: {}})["t"]
	if v.Doubt == "" {
		t.Errorf("%+v", v)
	}
}
