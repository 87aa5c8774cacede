package lowlatency

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/sluice-kafka/sluice/tiers"
)

const (
	// maxFacts bounds the topics that are remembered. Beyond it the oldest
	// read go.
	maxFacts = 65536
	// unknownFor is how long "no such topic" is believed: a topic that was
	// just created must soon be right.
	unknownFor = 200 * time.Millisecond
	// gatherFor is how long the first question waits for others to join it in
	// one DescribeConfigs.
	gatherFor = 2 * time.Millisecond
	// describeAtMost is how many topics one DescribeConfigs asks for.
	describeAtMost = 1000
	// describeTimeout bounds one DescribeConfigs.
	describeTimeout = 10 * time.Second
	// unusedAfter is when a topic that nobody asked for is no longer refreshed.
	unusedAfter = 10 * time.Minute
)

// fact is what is known of one topic.
type fact struct {
	facts tiers.TopicFacts
	read  time.Time
	used  time.Time // coarse; guarded by facts.mu
}

// facts remembers topics' configurations.
type facts struct {
	c *Cluster

	mu       sync.RWMutex
	known    map[string]*fact
	waiting  map[string][]chan tiers.TopicFacts // questions of the read that is being gathered
	version  uint64                             // counts invalidations, so that a read that began before one is not kept
	gatherer bool
}

func newFacts(c *Cluster) *facts {
	return &facts{c: c, known: make(map[string]*fact), waiting: make(map[string][]chan tiers.TopicFacts)}
}

// Facts returns what is known of a topic; see proxy.Brokers.
func (c *Cluster) Facts(ctx context.Context, topic string) tiers.TopicFacts {
	f := c.facts
	f.mu.RLock()
	k := f.known[topic]
	if k != nil && (k.facts.Known || time.Since(k.read) < unknownFor) && time.Since(k.used) < unusedAfter/2 {
		f.mu.RUnlock()
		return k.facts
	}
	f.mu.RUnlock()
	answer := make(chan tiers.TopicFacts, 1)
	f.mu.Lock()
	if k := f.known[topic]; k != nil && (k.facts.Known || time.Since(k.read) < unknownFor) {
		k.used = time.Now()
		f.mu.Unlock()
		return k.facts
	}
	f.waiting[topic] = append(f.waiting[topic], answer)
	if !f.gatherer {
		f.gatherer = true
		time.AfterFunc(gatherFor, f.gather)
	}
	f.mu.Unlock()
	select {
	case facts := <-answer:
		return facts
	case <-ctx.Done():
		return tiers.TopicFacts{}
	}
}

// gather answers all questions that came together.
func (f *facts) gather() {
	f.mu.Lock()
	waiting := f.waiting
	f.waiting = make(map[string][]chan tiers.TopicFacts)
	f.gatherer = false
	f.mu.Unlock()
	topics := make([]string, 0, len(waiting))
	for t := range waiting {
		topics = append(topics, t)
	}
	ctx, cancel := context.WithTimeout(context.Background(), describeTimeout)
	defer cancel()
	read := f.read(ctx, topics)
	for topic, askers := range waiting {
		for _, a := range askers {
			a <- read[topic]
		}
	}
}

// read asks the cluster and remembers the answers. Topics that could not be
// read are missing from the result, or not Known.
func (f *facts) read(ctx context.Context, topics []string) map[string]tiers.TopicFacts {
	out := make(map[string]tiers.TopicFacts, len(topics))
	for len(topics) > 0 {
		some := topics[:min(len(topics), describeAtMost)]
		topics = topics[len(some):]
		f.mu.RLock()
		version := f.version
		f.mu.RUnlock()
		configs, err := f.c.admin.DescribeTopicConfigs(ctx, some...)
		if err != nil {
			f.c.metrics.factErrors.Inc()
			f.c.log.Warn().Err(err).Int("topics", len(some)).Msg("topics' configurations cannot be read: diskless topics that are not known yet stay inline")
			continue
		}
		now := time.Now()
		f.mu.Lock()
		for _, rc := range configs {
			facts := factsOf(rc)
			out[rc.Name] = facts
			if rc.Err != nil && !errors.Is(rc.Err, kerr.UnknownTopicOrPartition) {
				f.c.metrics.factErrors.Inc()
				f.c.log.Warn().Err(rc.Err).Str("topic", rc.Name).Msg("the topic's configuration cannot be read: if its class is diskless it stays inline; the principal in kafka.sasl needs DescribeConfigs on it")
			}
			if f.version == version {
				f.remember(rc.Name, facts, now)
			}
		}
		f.mu.Unlock()
	}
	return out
}

// remember is called with mu held.
func (f *facts) remember(topic string, facts tiers.TopicFacts, now time.Time) {
	before := f.known[topic]
	used := now
	if before != nil {
		used = before.used
		if before.facts.Known && !before.facts.Compacted && facts.Compacted {
			f.c.metrics.becameCompacted.Inc()
			f.c.log.Error().Str("topic", topic).Msg("cleanup.policy has become compact: new batches go inline, but compaction destroys the placeholders that the log still holds; set it back to delete if the topic's class is diskless")
		}
	}
	if before == nil && len(f.known) >= maxFacts {
		for t := range f.known { // any: the map's order is as good as another
			delete(f.known, t)
			break
		}
	}
	f.known[topic] = &fact{facts: facts, read: now, used: used}
}

// refresh reads the topics in use again.
func (f *facts) refresh(ctx context.Context) {
	now := time.Now()
	var topics []string
	f.mu.Lock()
	for t, k := range f.known {
		switch {
		case now.Sub(k.used) > unusedAfter, !k.facts.Known && now.Sub(k.read) > unknownFor:
			delete(f.known, t)
		case k.facts.Known:
			topics = append(topics, t)
		}
	}
	f.mu.Unlock()
	read := f.read(ctx, topics)
	// A topic that is gone must not be remembered as it was.
	f.mu.Lock()
	for t, facts := range read {
		if !facts.Known {
			delete(f.known, t)
		}
	}
	f.c.metrics.topicsKnown.Set(float64(len(f.known)))
	f.mu.Unlock()
}

// Invalidate forgets a topic's facts.
func (c *Cluster) Invalidate(topic string) {
	f := c.facts
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	delete(f.known, topic)
}

func factsOf(rc kadm.ResourceConfig) tiers.TopicFacts {
	if rc.Err != nil {
		return tiers.TopicFacts{}
	}
	facts := tiers.TopicFacts{Known: true, Internal: isInternal(rc.Name)}
	for _, cfg := range rc.Configs {
		switch cfg.Key {
		case "cleanup.policy":
			facts.Compacted = strings.Contains(cfg.MaybeValue(), "compact")
		case "max.message.bytes":
			if n, err := strconv.ParseInt(cfg.MaybeValue(), 10, 32); err == nil {
				facts.MaxMessageBytes = int32(n)
			}
		case "remote.storage.enable":
			facts.RemoteStorage = cfg.MaybeValue() == "true"
		}
	}
	return facts
}

// isInternal knows the topics that Kafka itself writes (Topic.INTERNAL_TOPICS,
// and the metadata log).
func isInternal(topic string) bool {
	switch topic {
	case "__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata":
		return true
	}
	return false
}
