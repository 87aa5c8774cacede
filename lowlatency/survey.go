package lowlatency

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/tiers"
)

const (
	// surveyTimeout bounds one question to one broker. One that takes longer may
	// have been frozen, and what it says is not believed.
	surveyTimeout = 10 * time.Second
	// surveyTopics is how many topics one question names.
	surveyTopics = 2000
	// Versions below lack topic ids, respectively leader epochs.
	metadataTopicIDs   = 10
	listOffsetsEpochs  = 4
	offsetForEpochs    = 2
	maxSurveyedBrokers = 10_000
)

// Survey asks every live broker about names, and about all topics that any
// broker lists, and then the leaders for the ends of their logs. It is made for
// whoever wants to delete something: a broker that does not answer, or one that
// says anything else than the others, is a doubt, and a doubt is never resolved
// by a guess. An error means that nothing is known.
//
// Why this is certain: whoever could have become a leader of a partition since
// some broker last heard of the controller was alive in that broker's eyes, so it
// is listed, is asked, and would have named a newer epoch. Names are asked for
// explicitly, because in a listing of all topics those that we may not describe
// are left out without a word; asked by name, they give an error (KafkaApis.
// handleTopicMetadataRequest).
func (c *Cluster) Survey(ctx context.Context, names []string) (tiers.Survey, error) {
	if err := c.Refresh(ctx); err != nil {
		return tiers.Survey{}, err
	}
	all, err := c.everyBroker(ctx, nil)
	if err != nil {
		return tiers.Survey{}, err
	}
	wanted := make(map[string]struct{}, len(names))
	for _, n := range names {
		wanted[n] = struct{}{}
	}
	for _, answer := range all {
		for _, t := range answer.Topics {
			if t.Topic != nil && !t.IsInternal {
				wanted[*t.Topic] = struct{}{}
			}
		}
	}
	views := make(map[string]tiers.TopicView, len(wanted))
	for some := range slices.Chunk(slices.Sorted(maps.Keys(wanted)), surveyTopics) {
		answers, err := c.everyBroker(ctx, some)
		if err != nil {
			return tiers.Survey{}, err
		}
		agreed := agree(some, answers)
		if err := c.readEnds(ctx, agreed); err != nil {
			return tiers.Survey{}, err
		}
		maps.Copy(views, agreed)
	}
	// At the end, so that who was cut off meanwhile does not count either.
	for id := range all {
		if err := c.hearsController(ctx, id); err != nil {
			return tiers.Survey{}, fmt.Errorf("broker %d: %w", id, err)
		}
	}
	return tiers.Survey{Brokers: slices.Sorted(maps.Keys(all)), Topics: views}, nil
}

// hearsController is an error unless the broker can reach the active controller:
// it passes DescribeQuorum on to it. Brokers that don't know it are left to the
// rule that all have to agree.
func (c *Cluster) hearsController(ctx context.Context, id int32) error {
	if versions := c.versionsOf(ctx, id); versions == nil {
		return errors.New("it does not tell its versions")
	} else if !versions[int16(kmsg.DescribeQuorum)] {
		return nil
	}
	req := kmsg.NewPtrDescribeQuorumRequest()
	t := kmsg.NewDescribeQuorumRequestTopic()
	t.Topic = "__cluster_metadata"
	t.Partitions = append(t.Partitions, kmsg.NewDescribeQuorumRequestTopicPartition())
	req.Topics = append(req.Topics, t)
	resp, err := askBroker(ctx, c.client, id, req, (*kmsg.DescribeQuorumRequest).RequestWith)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err == nil {
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				err = errors.Join(err, kerr.ErrorForCode(p.ErrorCode))
			}
		}
	}
	switch {
	case errors.Is(err, kerr.ClusterAuthorizationFailed):
		return fmt.Errorf("whether it is cut off from the controller is not known; sluice's principal needs DESCRIBE on the cluster: %w", err)
	case err != nil:
		return fmt.Errorf("it may be cut off from the controller: %w", err)
	}
	return nil
}

// versionsOf says which keys a broker knows; nil when it does not.
func (c *Cluster) versionsOf(ctx context.Context, id int32) map[int16]bool {
	req := kmsg.NewPtrApiVersionsRequest()
	req.ClientSoftwareName, req.ClientSoftwareVersion = "sluice", "1"
	resp, err := askBroker(ctx, c.client, id, req, (*kmsg.ApiVersionsRequest).RequestWith)
	if err != nil || resp.ErrorCode != 0 {
		return nil
	}
	keys := make(map[int16]bool, len(resp.ApiKeys))
	for _, k := range resp.ApiKeys {
		keys[k.ApiKey] = true
	}
	return keys
}

// everyBroker asks all brokers that any of them knows, for topics or for all.
func (c *Cluster) everyBroker(ctx context.Context, topics []string) (map[int32]*kmsg.MetadataResponse, error) {
	answers := make(map[int32]*kmsg.MetadataResponse)
	var ask []int32
	for _, b := range c.Brokers() {
		ask = append(ask, b.ID)
	}
	for len(ask) > 0 {
		var mu sync.Mutex
		var asking errgroup.Group
		for _, id := range ask {
			asking.Go(func() error {
				answer, err := c.metadataOf(ctx, id, topics)
				if err != nil {
					return fmt.Errorf("broker %d, which others say is alive, does not say what it knows: %w", id, err)
				}
				mu.Lock()
				defer mu.Unlock()
				answers[id] = answer
				return nil
			})
		}
		if err := asking.Wait(); err != nil {
			return nil, err
		}
		ask = ask[:0]
		for _, answer := range answers {
			for _, b := range answer.Brokers {
				if answers[b.NodeID] == nil && !slices.Contains(ask, b.NodeID) {
					ask = append(ask, b.NodeID)
				}
			}
		}
		if len(answers)+len(ask) > maxSurveyedBrokers {
			return nil, errors.New("the cluster tells of too many brokers")
		}
	}
	if len(answers) == 0 {
		return nil, errors.New("the cluster tells no broker")
	}
	return answers, nil
}

func metadataRequest(topics []string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	return req
}

// identified looks whether an answer is this cluster's, and names topics by their ids.
func (c *Cluster) identified(answer *kmsg.MetadataResponse) error {
	switch {
	case answer.Version < metadataTopicIDs:
		return fmt.Errorf("it is too old: Metadata v%d has no topic ids, sluice needs Kafka 2.8 or later here", answer.Version)
	case answer.ClusterID == nil || *answer.ClusterID != c.ClusterID():
		return errors.New("it belongs to another cluster")
	}
	return nil
}

func (c *Cluster) metadataOf(ctx context.Context, id int32, topics []string) (*kmsg.MetadataResponse, error) {
	answer, err := askBroker(ctx, c.client, id, metadataRequest(topics), (*kmsg.MetadataRequest).RequestWith)
	if err == nil {
		err = c.identified(answer)
	}
	switch {
	case err != nil:
		return nil, err
	case !slices.ContainsFunc(answer.Brokers, func(b kmsg.MetadataResponseBroker) bool { return b.NodeID == id }):
		return nil, errors.New("it does not count itself among the live brokers: it has just started, or is cut off")
	}
	return answer, nil
}

// askBroker asks one broker, and takes no answer that comes late.
func askBroker[Q, A any](ctx context.Context, client *kgo.Client, id int32, req Q, with func(Q, context.Context, kmsg.Requestor) (A, error)) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	return with(req, ctx, client.Broker(int(id)))
}

// agree is what all answers say, topic by topic.
func agree(names []string, answers map[int32]*kmsg.MetadataResponse) map[string]tiers.TopicView {
	views := make(map[string]tiers.TopicView, len(names))
	told := make(map[string]int, len(names))
	for _, id := range slices.Sorted(maps.Keys(answers)) {
		heard := make(map[string]struct{}, len(names)) // from this one
		for i := range answers[id].Topics {
			t := &answers[id].Topics[i]
			if t.Topic == nil {
				continue
			}
			name := *t.Topic
			one := viewOf(t)
			if _, again := heard[name]; !again {
				heard[name] = struct{}{}
				told[name]++
			}
			if v, ok := views[name]; ok {
				one = both(v, one)
			}
			views[name] = one
		}
	}
	for _, name := range names {
		if told[name] != len(answers) {
			views[name] = tiers.TopicView{Doubt: "not every broker says whether it exists"}
		}
	}
	return views
}

func viewOf(t *kmsg.MetadataResponseTopic) tiers.TopicView {
	err := kerr.ErrorForCode(t.ErrorCode)
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		return tiers.TopicView{}
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return tiers.TopicView{Doubt: "sluice's principal may not describe it"}
	case err != nil:
		return tiers.TopicView{Doubt: err.Error()}
	case t.TopicID == [16]byte{}:
		return tiers.TopicView{Doubt: "it has no topic id"}
	case len(t.Partitions) == 0:
		return tiers.TopicView{Doubt: "a broker does not tell all of its partitions"}
	}
	v := tiers.TopicView{ID: t.TopicID, Partitions: make([]tiers.LogView, len(t.Partitions))}
	seen := make([]bool, len(t.Partitions))
	for _, p := range t.Partitions {
		if int(p.Partition) >= len(seen) || p.Partition < 0 || seen[p.Partition] {
			return tiers.TopicView{Doubt: "a broker does not tell all of its partitions"}
		}
		seen[p.Partition] = true
		l := tiers.LogView{Leader: p.Leader, Epoch: p.LeaderEpoch, InSync: len(p.Replicas) > 0}
		for _, r := range p.Replicas {
			l.InSync = l.InSync && slices.Contains(p.ISR, r)
		}
		if p.Leader < 0 || p.LeaderEpoch < 0 {
			l.Doubt = "it has no leader"
		}
		v.Partitions[p.Partition] = l
	}
	return v
}

// both is what two brokers agree on.
func both(a, b tiers.TopicView) tiers.TopicView {
	switch {
	case a.Doubt != "":
		return a
	case b.Doubt != "":
		return b
	case a.ID != b.ID || len(a.Partitions) != len(b.Partitions):
		return tiers.TopicView{Doubt: "the brokers disagree about which topic has the name"}
	}
	for i := range a.Partitions {
		p, q := &a.Partitions[i], &b.Partitions[i]
		switch {
		case p.Doubt != "":
		case q.Doubt != "":
			p.Doubt = q.Doubt
		case p.Leader != q.Leader || p.Epoch != q.Epoch:
			p.Doubt = "the brokers disagree about its leader"
		default:
			p.InSync = p.InSync && q.InSync
		}
	}
	return a
}

// readEnds asks each leader where its logs begin and end.
func (c *Cluster) readEnds(ctx context.Context, views map[string]tiers.TopicView) error {
	led := make(map[int32]map[string][]int32)
	for name, v := range views {
		for p := range v.Partitions {
			if l := &v.Partitions[p]; l.Doubt == "" {
				// Until its leader has said both.
				l.Start, l.End = -1, -1
				if led[l.Leader] == nil {
					led[l.Leader] = make(map[string][]int32)
				}
				led[l.Leader][name] = append(led[l.Leader][name], int32(p))
			}
		}
	}
	var mu sync.Mutex // of the views
	var asking errgroup.Group
	for leader, topics := range led {
		asking.Go(func() error {
			ends, err := c.epochEnds(ctx, leader, topics, func(name string, p int32) (current, epoch int32) {
				l := views[name].Partitions[p]
				return l.Epoch, l.Epoch
			})
			if err != nil {
				return fmt.Errorf("broker %d does not say where its logs end: %w", leader, err)
			}
			starts, err := c.logStarts(ctx, leader, topics, views)
			if err != nil {
				return fmt.Errorf("broker %d does not say where its logs begin: %w", leader, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for name, partitions := range topics {
				for _, p := range partitions {
					l := &views[name].Partitions[p]
					at := tiers.TopicPartition{Topic: name, Partition: p}
					end, start := ends[at], starts[at]
					switch {
					case end.err != nil:
						l.Doubt = "its leader does not say where it ends: " + end.err.Error()
					case start.err != nil:
						l.Doubt = "its leader does not say where it begins: " + start.err.Error()
					case end.epoch != l.Epoch || end.offset < 0 || start.offset < 0 || start.offset > end.offset:
						l.Doubt = fmt.Sprintf("its leader says something odd: epoch %d from %d to %d", end.epoch, start.offset, end.offset)
					default:
						l.Start, l.End = start.offset, end.offset
					}
				}
			}
			return nil
		})
	}
	return asking.Wait()
}

// told is what a leader said of one partition.
type told struct {
	epoch  int32
	offset int64
	err    error
}

var errNotTold = errors.New("it says nothing of it")

// epochEnds asks a leader where epochs end. For the current one that is the log
// end offset, also beyond the high watermark (LeaderEpochFileCache.endOffsetFor).
// A broker that is not the leader, or in another epoch, answers an error.
func (c *Cluster) epochEnds(ctx context.Context, leader int32, topics map[string][]int32, ask func(name string, p int32) (current, epoch int32)) (map[tiers.TopicPartition]told, error) {
	req := kmsg.NewPtrOffsetForLeaderEpochRequest()
	req.ReplicaID = -1
	out := make(map[tiers.TopicPartition]told)
	for name, partitions := range topics {
		t := kmsg.NewOffsetForLeaderEpochRequestTopic()
		t.Topic = name
		for _, p := range partitions {
			part := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
			part.Partition = p
			part.CurrentLeaderEpoch, part.LeaderEpoch = ask(name, p)
			t.Partitions = append(t.Partitions, part)
			out[tiers.TopicPartition{Topic: name, Partition: p}] = told{err: errNotTold}
		}
		req.Topics = append(req.Topics, t)
	}
	resp, err := askBroker(ctx, c.client, leader, req, (*kmsg.OffsetForLeaderEpochRequest).RequestWith)
	if err != nil {
		return nil, err
	}
	if resp.Version < offsetForEpochs {
		return nil, errors.New("it is too old: its OffsetForLeaderEpoch knows no current epoch")
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			out[tiers.TopicPartition{Topic: t.Topic, Partition: p.Partition}] = told{p.LeaderEpoch, p.EndOffset, kerr.ErrorForCode(p.ErrorCode)}
		}
	}
	return out, nil
}

// earliest asks ListOffsets for the log start offset, of a tiered log too.
const earliest = -2

func (c *Cluster) logStarts(ctx context.Context, leader int32, topics map[string][]int32, views map[string]tiers.TopicView) (map[tiers.TopicPartition]told, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	out := make(map[tiers.TopicPartition]told)
	for name, partitions := range topics {
		t := kmsg.NewListOffsetsRequestTopic()
		t.Topic = name
		for _, p := range partitions {
			part := kmsg.NewListOffsetsRequestTopicPartition()
			part.Partition, part.Timestamp, part.CurrentLeaderEpoch = p, earliest, views[name].Partitions[p].Epoch
			t.Partitions = append(t.Partitions, part)
			out[tiers.TopicPartition{Topic: name, Partition: p}] = told{err: errNotTold}
		}
		req.Topics = append(req.Topics, t)
	}
	resp, err := askBroker(ctx, c.client, leader, req, (*kmsg.ListOffsetsRequest).RequestWith)
	if err != nil {
		return nil, err
	}
	if resp.Version < listOffsetsEpochs {
		return nil, errors.New("it is too old: its ListOffsets knows no leader epoch")
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			out[tiers.TopicPartition{Topic: t.Topic, Partition: p.Partition}] = told{p.LeaderEpoch, p.Offset, kerr.ErrorForCode(p.ErrorCode)}
		}
	}
	return out, nil
}

// Lineage answers whether epochs are in the history of the present leaders'
// logs. What a leader does not answer is missing. An epoch that is older than all
// that is left of a log counts as in it: then all of the log is newer.
func (c *Cluster) Lineage(ctx context.Context, questions []tiers.EpochQuestion) (map[tiers.TopicPartition]bool, error) {
	type batch struct {
		topics map[string][]int32
		asked  map[tiers.TopicPartition]tiers.EpochQuestion
	}
	byLeader := make(map[int32]*batch)
	for _, q := range questions {
		b := byLeader[q.Leader]
		if b == nil {
			b = &batch{make(map[string][]int32), make(map[tiers.TopicPartition]tiers.EpochQuestion)}
			byLeader[q.Leader] = b
		}
		b.topics[q.Topic] = append(b.topics[q.Topic], q.Partition)
		b.asked[q.TopicPartition] = q
	}
	out := make(map[tiers.TopicPartition]bool, len(questions))
	for leader, b := range byLeader {
		ends, err := c.epochEnds(ctx, leader, b.topics, func(name string, p int32) (current, epoch int32) {
			q := b.asked[tiers.TopicPartition{Topic: name, Partition: p}]
			return q.Current, q.Epoch
		})
		if err != nil {
			return nil, fmt.Errorf("broker %d does not say where its logs' epochs end: %w", leader, err)
		}
		for at, end := range ends {
			if end.err == nil {
				out[at] = end.epoch == b.asked[at].Epoch
			}
		}
	}
	return out, nil
}
