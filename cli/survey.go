package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// survey is what a cluster shows of its topics while it is watched.
type survey struct {
	ClusterID string
	Racks     int // different ones; 0 when brokers name none
	Watched   time.Duration
	Topics    []seen
	Unknown   []string // what could not be asked, and what follows from that
}

// seen is one topic.
type seen struct {
	Topic       string
	Partitions  int
	Replication float64

	Internal, Compacted, Remote bool
	Configured                  bool          // its configuration could be read
	Retention                   time.Duration // negative is for ever
	RetentionBytes              int64         // of a partition; negative is any

	Records      float64 // a second
	Bytes        float64 // a second, as the log stores them
	Size         int64   // of the log, one replica's
	Batch        float64 // bytes, the mean of some; 0 when none was seen
	BatchRecords float64
	Placeholders int  // among the batches that were looked at
	NoProducerID bool // one of them at least was written without idempotence
	InTxn        bool // one of them at least was

	Groups int   // that have committed offsets
	Lag    int64 // records, of the group with members that is nearest to the end; -1 without any
}

const (
	// samplesPerTopic are batches, each of another partition.
	samplesPerTopic = 4
	// maxGroups bounds whose offsets are asked for.
	maxGroups = 1000
)

// look is everything that changes while a cluster is watched.
type look struct {
	at    time.Time
	logs  map[tp]lowlatency.Log
	sizes map[tp]int64
}

type tp struct {
	topic     string
	partition int32
}

// takeSurvey looks at all topics, and again when wait returns.
func takeSurvey(ctx context.Context, cluster *lowlatency.Cluster, wait func(context.Context) error) (*survey, error) {
	adm := kadm.NewClient(cluster.Client())
	if err := cluster.Refresh(ctx); err != nil {
		return nil, err
	}
	s := &survey{ClusterID: cluster.ClusterID(), Racks: racks(cluster.Brokers())}
	topics, err := adm.ListTopicsWithInternal(ctx)
	if err != nil {
		return nil, err
	}
	if len(topics) == 0 {
		return s, nil
	}
	for _, t := range topics.Sorted() {
		one := seen{Topic: t.Topic, Partitions: len(t.Partitions), Internal: t.IsInternal, Lag: -1}
		for _, p := range t.Partitions {
			one.Replication += float64(len(p.Replicas)) / float64(len(t.Partitions))
		}
		s.Topics = append(s.Topics, one)
	}
	if err := s.readConfigs(ctx, cluster, adm, topics.Names()); err != nil {
		return nil, err
	}
	before, err := s.look(ctx, cluster, topics.Names())
	if err != nil {
		return nil, err
	}
	if err := wait(ctx); err != nil {
		return nil, err
	}
	after, err := s.look(ctx, cluster, topics.Names())
	if err != nil {
		return nil, err
	}
	s.Watched = after.at.Sub(before.at)
	for i := range s.Topics {
		t := &s.Topics[i]
		t.measure(topics[t.Topic].Partitions.Numbers(), before, after)
	}
	s.readGroups(ctx, adm, after)
	s.readBatches(ctx, cluster, after)
	for i := range s.Topics {
		// Without sizes, what a batch has for a record is the best guess.
		if t := &s.Topics[i]; t.Bytes == 0 && t.BatchRecords > 0 {
			t.Bytes = t.Records * t.Batch / t.BatchRecords
		}
	}
	return s, ctx.Err()
}

func racks(brokers []lowlatency.Broker) int {
	all := map[string]bool{}
	for _, b := range brokers {
		if b.Rack != "" {
			all[b.Rack] = true
		}
	}
	return len(all)
}

// cannot remembers what could not be asked, once.
func (s *survey) cannot(what string, err error) {
	if text := fmt.Sprintf("%s: %v", what, err); err != nil && !slices.Contains(s.Unknown, text) {
		s.Unknown = append(s.Unknown, text)
	}
}

func (s *survey) look(ctx context.Context, cluster *lowlatency.Cluster, topics []string) (*look, error) {
	l := &look{at: time.Now(), logs: map[tp]lowlatency.Log{}, sizes: map[tp]int64{}}
	logs, err := cluster.Logs(ctx, topics...)
	if len(logs) == 0 && err != nil {
		return nil, err
	}
	s.cannot("some offsets cannot be read", err)
	for _, log := range logs {
		l.logs[tp{log.Topic, log.Partition}] = log
	}
	dirs, err := kadm.NewClient(cluster.Client()).DescribeAllLogDirs(ctx, nil)
	if err == nil {
		for _, d := range dirs {
			err = errors.Join(err, d.Error())
		}
	}
	s.cannot("some logs' sizes cannot be read (it takes DESCRIBE on the cluster), so bytes are those of sampled batches", err)
	for node, d := range dirs {
		d.EachPartition(func(p kadm.DescribedLogDirPartition) {
			at := tp{p.Topic, p.Partition}
			if log, ok := l.logs[at]; ok && log.Leader == node && !p.IsFuture {
				l.sizes[at] = p.Size
			}
		})
	}
	return l, nil
}

// measure takes rates from two looks.
func (t *seen) measure(partitions []int32, before, after *look) {
	var records, grown, bytes, kept int64
	for _, p := range partitions {
		at := tp{t.Topic, p}
		a, known := before.logs[at]
		b, still := after.logs[at]
		if !known || !still {
			continue
		}
		came := max(0, b.End-a.End)
		records += came
		kept += b.End - b.Start
		size, sized := after.sizes[at]
		first, also := before.sizes[at]
		t.Size += size
		// A log that is cut meanwhile says nothing of what came in.
		if more := size - first; sized && also && more > 0 && came > 0 {
			grown, bytes = grown+came, bytes+more
		}
	}
	seconds := after.at.Sub(before.at).Seconds()
	t.Records = float64(records) / seconds
	switch {
	case grown > 0:
		t.Bytes = t.Records * float64(bytes) / float64(grown)
	case kept > 0:
		t.Bytes = t.Records * float64(t.Size) / float64(kept)
	}
}

// errThroughSluice says that what is seen is not what the brokers have.
var errThroughSluice = errors.New("this is the address of a sluice, which shows payloads where brokers have placeholders: name the brokers' own")

func (s *survey) readConfigs(ctx context.Context, cluster *lowlatency.Cluster, adm *kadm.Client, topics []string) error {
	facts := cluster.AllFacts(ctx, topics)
	configs, err := adm.DescribeTopicConfigs(ctx, topics...)
	s.cannot("topics' configurations cannot be read", err)
	values := map[string]map[string]int64{}
	for _, r := range configs {
		if r.Err != nil {
			continue
		}
		values[r.Name] = map[string]int64{}
		for _, c := range r.Configs {
			if strings.HasPrefix(c.Key, "sluice.") {
				return errThroughSluice
			}
			if n, err := strconv.ParseInt(c.MaybeValue(), 10, 64); err == nil {
				values[r.Name][c.Key] = n
			}
		}
	}
	for i := range s.Topics {
		t := &s.Topics[i]
		f := facts[t.Topic]
		t.Internal, t.Compacted, t.Remote = t.Internal || f.Internal, f.Compacted, f.RemoteStorage
		kept, ok := values[t.Topic]["retention.ms"]
		t.Configured = f.Known && ok
		t.Retention = lowlatency.RetentionOf(kept)
		t.RetentionBytes = -1
		if n, ok := values[t.Topic]["retention.bytes"]; ok {
			t.RetentionBytes = n
		}
	}
	return nil
}

func (s *survey) readGroups(ctx context.Context, adm *kadm.Client, now *look) {
	const what = "consumer groups cannot be read (it takes DESCRIBE on them)"
	listed, err := adm.ListGroups(ctx)
	s.cannot(what, err)
	var groups []string
	for _, g := range listed.Sorted() {
		if g.ProtocolType != "share" { // has no offsets of this kind
			groups = append(groups, g.Group)
		}
	}
	if len(groups) > maxGroups {
		s.cannot("consumer groups", fmt.Errorf("there are %d; only %d were looked at", len(groups), maxGroups))
		groups = groups[:maxGroups]
	}
	if len(groups) == 0 {
		return
	}
	byTopic := map[string]*seen{}
	for i := range s.Topics {
		byTopic[s.Topics[i].Topic] = &s.Topics[i]
	}
	for _, r := range adm.FetchManyOffsets(ctx, groups...) {
		s.cannot(what, r.Err)
		for topic, partitions := range r.Fetched {
			t := byTopic[topic]
			if t == nil || len(partitions) == 0 {
				continue
			}
			t.Groups++
			lag := int64(0)
			for p, o := range partitions {
				if log, ok := now.logs[tp{topic, p}]; ok && o.Err == nil {
					lag += max(0, log.End-max(o.At, log.Start))
				}
			}
			if state := listed[r.Group].State; state != "Empty" && state != "Dead" && (t.Lag < 0 || lag < t.Lag) {
				t.Lag = lag
			}
		}
	}
}

// readBatches looks at the last batch of some of each topic's partitions.
func (s *survey) readBatches(ctx context.Context, cluster *lowlatency.Cluster, now *look) {
	logs := map[string][]lowlatency.Log{}
	for at, l := range now.logs {
		if l.End > l.Start {
			logs[at.topic] = append(logs[at.topic], l)
		}
	}
	var looking errgroup.Group
	looking.SetLimit(looksAtATime)
	var mu sync.Mutex
	for i := range s.Topics {
		t := &s.Topics[i]
		some := logs[t.Topic]
		slices.SortFunc(some, func(a, b lowlatency.Log) int { return int(a.Partition - b.Partition) })
		if t.Internal || len(some) == 0 {
			continue
		}
		looking.Go(func() error {
			batches := 0.0
			for _, l := range some[:min(len(some), samplesPerTopic)] {
				b, err := lastBatch(ctx, cluster, l)
				if err != nil {
					mu.Lock()
					s.cannot("some batches cannot be read (it takes READ on topics), so their size is assumed", errors.New(strings.TrimSpace(l.Topic)))
					mu.Unlock()
				}
				if b == nil {
					continue
				}
				if _, is, _ := placeholder.Parse(b); is {
					t.Placeholders++
				}
				batches++
				t.Batch += float64(b.Size())
				t.BatchRecords += float64(b.NumRecords())
				t.NoProducerID = t.NoProducerID || b.ProducerID() < 0
				t.InTxn = t.InTxn || b.IsTransactional()
			}
			if batches > 0 {
				t.Batch, t.BatchRecords = t.Batch/batches, t.BatchRecords/batches
			}
			return nil
		})
	}
	_ = looking.Wait()
}

// lastBatchBytes is enough for a batch of a default producer, or for its header at least.
const lastBatchBytes = 16 << 10

// lastBatch is the last one that holds records, nil when that is hard to say.
func lastBatch(ctx context.Context, cluster *lowlatency.Cluster, l lowlatency.Log) (wire.Batch, error) {
	offset := l.End - 1
	for range 3 { // the end of a transaction, perhaps of an empty one
		if offset < l.Start {
			break
		}
		records, err := cluster.Fetch(ctx, l, offset, lastBatchBytes)
		if err != nil {
			return nil, err
		}
		b, _, ok := wire.NextBatch(records)
		if !ok || !b.IsV2() {
			break
		}
		if !b.IsControl() {
			return b, nil
		}
		offset = b.BaseOffset() - 1
	}
	return nil, nil
}
