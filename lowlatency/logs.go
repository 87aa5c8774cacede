package lowlatency

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/tiers"
)

// Log is one partition's log: where it is, and from which offset to which.
type Log struct {
	Topic     string
	ID        [16]byte
	Partition int32
	Leader    int32
	Start     int64 // log start offset
	End       int64 // high watermark: the offset behind the last record that consumers see
}

// Logs returns the logs of topics, by topic and partition. Partitions whose
// leader does not answer are missing, and in the error.
func (c *Cluster) Logs(ctx context.Context, topics ...string) ([]Log, error) {
	adm := kadm.NewClient(c.client)
	details, err := adm.ListTopics(ctx, topics...)
	if err != nil {
		return nil, err
	}
	// Each error goes on with what the other brokers said.
	starts, startErr := adm.ListStartOffsets(ctx, topics...)
	ends, endErr := adm.ListEndOffsets(ctx, topics...)
	errs := []error{startErr, endErr}
	var logs []Log
	for _, t := range details.Sorted() {
		if t.Err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.Topic, t.Err))
			continue
		}
		for _, p := range t.Partitions.Sorted() {
			start, ok := starts.Lookup(t.Topic, p.Partition)
			end, also := ends.Lookup(t.Topic, p.Partition)
			err := errors.Join(p.Err, start.Err, end.Err)
			if err == nil && (!ok || !also) {
				err = errors.New("its leader did not tell them")
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s-%d: its offsets cannot be read: %w", t.Topic, p.Partition, err))
				continue
			}
			logs = append(logs, Log{Topic: t.Topic, ID: t.ID, Partition: p.Partition, Leader: p.Leader, Start: start.Offset, End: end.Offset})
		}
	}
	return logs, errors.Join(errs...)
}

// Fetched is what a leader answers about a log.
type Fetched struct {
	Records []byte // whole batches as the broker stores them, and perhaps a part of one
	Start   int64  // log start offset
	End     int64  // high watermark
	Stable  int64  // last stable offset: below it, every transaction has ended
	Aborted []Aborted
}

// Aborted is a transaction whose records nobody shall see: those of the producer
// from First to the next marker that it wrote. See KIP-98.
type Aborted struct {
	ProducerID int64
	First      int64
}

// EpochEnd returns the largest leader epoch up to the given one that the leader's
// log knows, and the offset behind its last record (OffsetForLeaderEpoch, KIP-320);
// end is -1 when it knows none. A leader that has been replaced without knowing it
// is an error, never an answer.
func (c *Cluster) EpochEnd(ctx context.Context, l Log, epoch int32) (known int32, end int64, err error) {
	fail := func(err error) (int32, int64, error) {
		return 0, 0, fmt.Errorf("%s-%d: where leader epoch %d ends: %w", l.Topic, l.Partition, epoch, err)
	}
	meta := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = &l.Topic
	meta.Topics = append(meta.Topics, topic)
	resp, err := meta.RequestWith(ctx, c.client)
	if err != nil {
		return fail(err)
	}
	if len(resp.Topics) != 1 || resp.Topics[0].TopicID != l.ID {
		return fail(errors.New("the topic has been deleted, or created anew"))
	}
	leader, current := int32(-1), int32(-1)
	for _, p := range resp.Topics[0].Partitions {
		if p.Partition == l.Partition {
			leader, current = p.Leader, p.LeaderEpoch
		}
	}
	if leader < 0 || current < epoch {
		return fail(fmt.Errorf("the leader is %d, of epoch %d, by a broker that may not know the newest", leader, current))
	}
	answers, err := c.epochEnds(ctx, leader, map[string][]int32{l.Topic: {l.Partition}}, func(string, int32) (int32, int32) { return current, epoch })
	if err != nil {
		return fail(err)
	}
	got := answers[tiers.TopicPartition{Topic: l.Topic, Partition: l.Partition}]
	if got.err != nil {
		return fail(got.err)
	}
	return got.epoch, got.offset, nil
}

// Fetch returns what a log holds from an offset on, at least one batch when
// there is one, as the bytes that the broker stores.
func (c *Cluster) Fetch(ctx context.Context, l Log, offset int64, maxBytes int32) ([]byte, error) {
	f, err := c.FetchAll(ctx, l, offset, maxBytes)
	return f.Records, err
}

// FetchAll is Fetch with what else the leader says. An offset that the log no
// longer holds, or not yet, is kerr.OffsetOutOfRange.
func (c *Cluster) FetchAll(ctx context.Context, l Log, offset int64, maxBytes int32) (Fetched, error) {
	f, _, err := c.fetch(ctx, l.led(), offset, maxBytes, false)
	return f, err
}

// FetchCommitted is FetchAll up to the last stable offset, with the transactions
// among them that were aborted: what a consumer of isolation read_committed gets.
func (c *Cluster) FetchCommitted(ctx context.Context, l Log, offset int64, maxBytes int32) (Fetched, error) {
	f, _, err := c.fetch(ctx, l.led(), offset, maxBytes, true)
	return f, err
}

// led is a log whose leader may have any epoch.
func (l Log) led() tiers.LedLog {
	return tiers.LedLog{TopicPartition: tiers.TopicPartition{Topic: l.Topic, Partition: l.Partition}, ID: l.ID, Leader: l.Leader, Epoch: -1, Start: l.Start}
}

// fetch also returns the version of Fetch: below fetchIDs, the answer may be about
// another topic of the same name.
func (c *Cluster) fetch(ctx context.Context, l tiers.LedLog, offset int64, maxBytes int32, committed bool) (f Fetched, version int16, err error) {
	req := kmsg.NewPtrFetchRequest()
	req.MinBytes, req.MaxBytes, req.MaxWaitMillis = 0, maxBytes, 0
	if committed {
		req.IsolationLevel = 1
	}
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = l.Topic, l.ID
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch = l.Partition, offset, maxBytes, l.Epoch
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, c.client.Broker(int(l.Leader)))
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err == nil && (len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 || resp.Version >= fetchIDs && resp.Topics[0].TopicID != l.ID) {
		err = errors.New("the broker's answer is about something else")
	}
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
	}
	if errors.Is(err, kerr.TopicAuthorizationFailed) {
		err = fmt.Errorf("sluice's principal needs READ on the topic: %w", err)
	}
	if err != nil {
		return f, 0, fmt.Errorf("%s-%d at offset %d: %w", l.Topic, l.Partition, offset, err)
	}
	got := resp.Topics[0].Partitions[0]
	f = Fetched{Records: got.RecordBatches, Start: got.LogStartOffset, End: got.HighWatermark, Stable: got.LastStableOffset}
	for _, a := range got.AbortedTransactions {
		f.Aborted = append(f.Aborted, Aborted{a.ProducerID, a.FirstOffset})
	}
	return f, resp.Version, nil
}
