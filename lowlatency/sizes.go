package lowlatency

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/tiers"
)

const (
	retentionBytes = "retention.bytes"
	policyDelete   = "delete"
	// fetchIDs is the version below which Fetch names topics, and so may answer
	// about another of the same name.
	fetchIDs = 13
	// deleteTimeout is how long a leader waits for its followers.
	deleteTimeout = 15 * time.Second
)

// limiting are the configurations that say whether a log is cut by its size.
var limiting = []string{retentionBytes, cleanupPolicy, remoteStorage}

// SizeLimits returns the retention.bytes that is in force for topics, the topic's
// own or the brokers' default. Those that Kafka shall not cut by size are -1:
// without a limit, not of cleanup.policy delete, Kafka's own, or in tiered storage,
// which has sizes of its own. Topics that cannot be asked about are missing.
func (c *Cluster) SizeLimits(ctx context.Context, topics []string) (map[string]int64, error) {
	limits := make(map[string]int64, len(topics))
	var denied error
	for some := range slices.Chunk(topics, describeAtMost) {
		resources, err := c.facts.describe(ctx, some, limiting...)
		if err != nil {
			return limits, fmt.Errorf("asking for %s: %w", retentionBytes, err)
		}
		for _, r := range resources {
			if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
				if errors.Is(err, kerr.TopicAuthorizationFailed) {
					denied = fmt.Errorf("%s of topic %s cannot be read; sluice's principal needs DESCRIBE_CONFIGS on it: %w", retentionBytes, r.ResourceName, err)
				}
				continue
			}
			if limit, ok := sizeLimit(r); ok {
				limits[r.ResourceName] = limit
			}
		}
	}
	return limits, denied
}

// LeaderLimit is the limit of SizeLimits as a log's leader has it, which is what
// Kafka itself cuts by there.
func (c *Cluster) LeaderLimit(ctx context.Context, l tiers.LedLog) (int64, error) {
	resp, err := askBroker(ctx, c.client, l.Leader, describing([]string{l.Topic}, limiting), (*kmsg.DescribeConfigsRequest).RequestWith)
	if err == nil && (len(resp.Resources) != 1 || resp.Resources[0].ResourceName != l.Topic) {
		err = errors.New("the broker's answer is about something else")
	}
	if err == nil {
		err = kerr.ErrorForCode(resp.Resources[0].ErrorCode)
	}
	if err == nil {
		if limit, ok := sizeLimit(resp.Resources[0]); ok {
			return limit, nil
		}
		err = errNotTold
	}
	return 0, fmt.Errorf("asking the leader of %s-%d for %s: %w", l.Topic, l.Partition, retentionBytes, err)
}

// sizeLimit is false when the answer lacks it.
func sizeLimit(r kmsg.DescribeConfigsResponseResource) (int64, bool) {
	values := make(map[string]string, len(r.Configs))
	for _, cfg := range r.Configs {
		if cfg.Value != nil {
			values[cfg.Name] = *cfg.Value
		}
	}
	limit, err := strconv.ParseInt(values[retentionBytes], 10, 64)
	if err != nil {
		return 0, false
	}
	if strings.TrimSpace(values[cleanupPolicy]) != policyDelete || values[remoteStorage] == "true" || isInternal(r.ResourceName) || limit < 0 {
		return -1, true
	}
	return limit, true
}

// Led returns the logs of topics, each with its leader and where it begins there.
// Those whose leader does not say are missing, and in the error.
func (c *Cluster) Led(ctx context.Context, topics []string) ([]tiers.LedLog, error) {
	var logs []tiers.LedLog
	var errs []error
	for some := range slices.Chunk(topics, surveyTopics) {
		resp, err := metadataRequest(some).RequestWith(ctx, c.client)
		if err != nil {
			return logs, err
		}
		if err := c.identified(resp); err != nil {
			return logs, fmt.Errorf("the broker that was asked: %w", err)
		}
		views := make(map[string]tiers.TopicView, len(some))
		led := make(map[int32]map[string][]int32)
		for i := range resp.Topics {
			if resp.Topics[i].Topic == nil {
				continue
			}
			name, v := *resp.Topics[i].Topic, viewOf(&resp.Topics[i])
			if v.Doubt != "" {
				errs = append(errs, fmt.Errorf("%s: %s", name, v.Doubt))
			}
			views[name] = v
			for p, l := range v.Partitions {
				if l.Doubt != "" {
					errs = append(errs, fmt.Errorf("%s-%d: %s", name, p, l.Doubt))
					continue
				}
				if led[l.Leader] == nil {
					led[l.Leader] = make(map[string][]int32)
				}
				led[l.Leader][name] = append(led[l.Leader][name], int32(p))
			}
		}
		for leader, partitions := range led {
			starts, err := c.logStarts(ctx, leader, partitions, views)
			if err != nil {
				errs = append(errs, fmt.Errorf("broker %d does not say where its logs begin: %w", leader, err))
				continue
			}
			for at, start := range starts {
				v := views[at.Topic]
				if start.err != nil || start.offset < 0 {
					errs = append(errs, fmt.Errorf("%s-%d: its leader does not say where it begins: %w", at.Topic, at.Partition, start.err))
					continue
				}
				logs = append(logs, tiers.LedLog{TopicPartition: at, ID: v.ID, Leader: leader, Epoch: v.Partitions[at.Partition].Epoch, Start: start.offset})
			}
		}
	}
	return logs, errors.Join(errs...)
}

// FetchLed returns what a log holds from an offset on, below the high watermark.
// Another leader, another epoch or another topic of that name is an error.
func (c *Cluster) FetchLed(ctx context.Context, l tiers.LedLog, offset int64, maxBytes int32) (s tiers.Stretch, err error) {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	f, version, err := c.fetch(ctx, l, offset, maxBytes, false)
	if err == nil && version < fetchIDs {
		err = fmt.Errorf("%s-%d: its leader is too old: Fetch v%d has no topic ids, sluice needs Kafka 3.1 or later here", l.Topic, l.Partition, version)
	}
	if err != nil {
		return s, err
	}
	return tiers.Stretch{Records: f.Records, End: f.End}, nil
}

// Continues reports whether a leader's log has the same batches below an offset
// as a log had, whose last batch below it was of the given epoch (KIP-101).
func (c *Cluster) Continues(ctx context.Context, l tiers.LedLog, epoch int32, offset int64) (bool, error) {
	ends, err := c.epochEnds(ctx, l.Leader, map[string][]int32{l.Topic: {l.Partition}}, func(string, int32) (int32, int32) { return l.Epoch, epoch })
	if err != nil {
		return false, fmt.Errorf("%s-%d: where leader epoch %d ends: %w", l.Topic, l.Partition, epoch, err)
	}
	end := ends[l.TopicPartition]
	if end.err != nil {
		return false, fmt.Errorf("%s-%d: where leader epoch %d ends: %w", l.Topic, l.Partition, epoch, end.err)
	}
	return end.epoch == epoch && end.offset >= offset, nil
}

// DeleteBefore makes a log begin at an offset (DeleteRecords).
func (c *Cluster) DeleteBefore(ctx context.Context, l tiers.LedLog, offset int64) error {
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = int32(deleteTimeout.Milliseconds())
	t := kmsg.NewDeleteRecordsRequestTopic()
	t.Topic = l.Topic
	p := kmsg.NewDeleteRecordsRequestTopicPartition()
	p.Partition, p.Offset = l.Partition, offset
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	ctx, cancel := context.WithTimeout(ctx, 2*deleteTimeout)
	defer cancel()
	resp, err := req.RequestWith(ctx, c.client.Broker(int(l.Leader)))
	if err == nil && (len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1) {
		err = errors.New("the broker's answer is about something else")
	}
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
	}
	if errors.Is(err, kerr.TopicAuthorizationFailed) {
		err = fmt.Errorf("sluice's principal needs DELETE on the topic, or it keeps more than retention.bytes: %w", err)
	}
	if err != nil {
		return fmt.Errorf("%s-%d up to offset %d: %w", l.Topic, l.Partition, offset, err)
	}
	return nil
}
