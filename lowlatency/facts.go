package lowlatency

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/tiers"
)

const (
	// maxFacts bounds the topics that are remembered. Beyond it any other goes,
	// and is asked for again when it is used.
	maxFacts = 65536
	// unknownFor is how long "no such topic" is believed: a topic that was
	// just created must soon be right.
	unknownFor = 200 * time.Millisecond
	// settlesFor is how long after a change an answer is believed no longer than
	// that: brokers learn of changes one after the other.
	settlesFor = 2 * time.Second
	// gatherFor is how long the first question waits for others to join it in
	// one DescribeConfigs.
	gatherFor = 2 * time.Millisecond
	// describeAtMost is how many topics one DescribeConfigs asks for.
	describeAtMost = 1000
	// describeTimeout bounds one DescribeConfigs.
	describeTimeout = 5 * time.Second
	// unusedAfter is when a topic that nobody asked for is no longer refreshed.
	unusedAfter = 10 * time.Minute
)

// The topic configurations that placement depends on; nothing else is asked
// for.
const (
	cleanupPolicy   = "cleanup.policy"
	maxMessageBytes = "max.message.bytes"
	remoteStorage   = "remote.storage.enable"
)

// fact is what is known of one topic. All but used never changes: a newer
// answer is a new fact.
type fact struct {
	facts tiers.TopicFacts
	read  time.Time
	stale bool      // Invalidate was called: to be read again, remembered for comparison only
	used  time.Time // coarse
	asked uint64    // when, in order of asking: an older answer never replaces a newer one

	changed time.Time // when Invalidate was called last
}

// believed reports whether a fact answers a question without asking Kafka.
func (k *fact) believed() bool {
	if k == nil || k.stale {
		return false
	}
	return k.facts.Known && time.Since(k.changed) >= settlesFor || time.Since(k.read) < unknownFor
}

// facts remembers topics' configurations.
type facts struct {
	c *Cluster

	mu        sync.RWMutex
	known     map[string]*fact
	asked     uint64
	waiting   map[string][]chan tiers.TopicFacts // questions for the next read
	gathering bool                               // a read is due or under way; there is one at a time
}

func newFacts(c *Cluster) *facts {
	return &facts{c: c, known: make(map[string]*fact), waiting: make(map[string][]chan tiers.TopicFacts)}
}

// Facts returns what is known of a topic; see proxy.Brokers.
func (c *Cluster) Facts(ctx context.Context, topic string) tiers.TopicFacts {
	f := c.facts
	f.mu.RLock()
	k, ok := f.recent(topic)
	f.mu.RUnlock()
	if ok {
		return k
	}
	f.mu.Lock()
	k, answer := f.question(topic)
	f.mu.Unlock()
	return answered(ctx, k, answer)
}

// FactsOf is Facts for several topics, in their order: what is not known of them
// is asked for together.
func (c *Cluster) FactsOf(ctx context.Context, topics []string) []tiers.TopicFacts {
	f := c.facts
	out := make([]tiers.TopicFacts, len(topics))
	known := 0
	f.mu.RLock()
	for ; known < len(topics); known++ {
		k, ok := f.recent(topics[known])
		if !ok {
			break
		}
		out[known] = k
	}
	f.mu.RUnlock()
	if known == len(topics) {
		return out
	}
	answers := make([]chan tiers.TopicFacts, len(topics))
	f.mu.Lock()
	for i := known; i < len(topics); i++ {
		out[i], answers[i] = f.question(topics[i])
	}
	f.mu.Unlock()
	for i := known; i < len(topics); i++ {
		out[i] = answered(ctx, out[i], answers[i])
	}
	return out
}

// recent is what is known of a topic that was asked about lately. It is called
// with mu held, for reading.
func (f *facts) recent(topic string) (tiers.TopicFacts, bool) {
	if k := f.known[topic]; k.believed() && time.Since(k.used) < unusedAfter/2 {
		return k.facts, true
	}
	return tiers.TopicFacts{}, false
}

// question returns what is known of a topic, or where it will be told. It is
// called with mu held.
func (f *facts) question(topic string) (tiers.TopicFacts, chan tiers.TopicFacts) {
	if k := f.known[topic]; k.believed() {
		k.used = time.Now()
		return k.facts, nil
	}
	answer := make(chan tiers.TopicFacts, 1)
	f.waiting[topic] = append(f.waiting[topic], answer)
	if !f.gathering {
		f.gathering = true
		time.AfterFunc(gatherFor, f.gather)
	}
	return tiers.TopicFacts{}, answer
}

// answered waits for a question, unless it was none.
func answered(ctx context.Context, known tiers.TopicFacts, answer chan tiers.TopicFacts) tiers.TopicFacts {
	if answer == nil {
		return known
	}
	select {
	case facts := <-answer:
		return facts
	case <-ctx.Done():
		return tiers.TopicFacts{}
	}
}

// gather answers questions until there are none. What is asked during a read
// waits for the next one: a cluster that hangs holds one request, not one for
// every topic.
func (f *facts) gather() {
	for {
		f.mu.Lock()
		waiting := f.waiting
		if len(waiting) == 0 {
			f.gathering = false
			f.mu.Unlock()
			return
		}
		f.waiting = make(map[string][]chan tiers.TopicFacts)
		f.mu.Unlock()
		read := f.read(f.c.ctx, slices.Collect(maps.Keys(waiting)))
		for topic, askers := range waiting {
			for _, a := range askers {
				a <- read[topic]
			}
		}
	}
}

// AllFacts reads many topics' facts now. Topics that could not be read are
// missing, or not Known.
func (c *Cluster) AllFacts(ctx context.Context, topics []string) map[string]tiers.TopicFacts {
	return c.facts.read(ctx, topics)
}

// Learn reads the facts of all topics that matter and are not known yet, ahead
// of the questions about them.
func (c *Cluster) Learn(ctx context.Context, matters func(topic string) bool) error {
	resp, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, c.client) // of all topics
	if err != nil {
		return fmt.Errorf("listing topics: %w", err)
	}
	var unknown []string
	for _, t := range resp.Topics {
		if t.Topic != nil && t.ErrorCode == 0 && matters(*t.Topic) {
			unknown = append(unknown, *t.Topic)
		}
	}
	c.facts.mu.RLock()
	unknown = slices.DeleteFunc(unknown, func(t string) bool { return c.facts.known[t].believed() })
	c.facts.mu.RUnlock()
	c.facts.read(ctx, unknown[:min(len(unknown), maxFacts)])
	return ctx.Err()
}

// read asks the cluster and remembers the answers.
func (f *facts) read(ctx context.Context, topics []string) map[string]tiers.TopicFacts {
	out := make(map[string]tiers.TopicFacts, len(topics))
	for some := range slices.Chunk(topics, describeAtMost) {
		f.mu.Lock()
		f.asked++
		asked := f.asked
		f.mu.Unlock()
		resources, err := f.describe(ctx, some, cleanupPolicy, maxMessageBytes, remoteStorage)
		if err != nil {
			if ctx.Err() == nil {
				f.c.metrics.factErrors.Inc()
				f.c.log.Warn().Err(err).Int("topics", len(some)).Msg("topics' configurations cannot be read: diskless topics that are not known yet stay inline")
			}
			continue
		}
		f.mu.Lock()
		for _, r := range resources {
			facts := factsOf(r)
			out[r.ResourceName] = facts
			if err := kerr.ErrorForCode(r.ErrorCode); err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
				f.c.metrics.factErrors.Inc()
				f.c.log.Warn().Err(err).Str("topic", r.ResourceName).Msg("the topic's configuration cannot be read: if its class is diskless it stays inline; the principal in kafka.sasl needs DescribeConfigs on it")
			}
			if now := f.known[r.ResourceName]; now != nil && now.asked > asked {
				continue // invalidated, or asked for again: this answer may be from before a change
			}
			f.remember(r.ResourceName, facts, asked)
		}
		f.c.metrics.topicsKnown.Set(float64(len(f.known)))
		f.mu.Unlock()
	}
	return out
}

// describe sends one DescribeConfigs.
func (f *facts) describe(ctx context.Context, topics []string, configs ...string) ([]kmsg.DescribeConfigsResponseResource, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	resp, err := f.ask(ctx, describing(topics, configs))
	if err != nil {
		return nil, err
	}
	return resp.Resources, nil
}

func describing(topics, configs []string) *kmsg.DescribeConfigsRequest {
	req := kmsg.NewPtrDescribeConfigsRequest()
	for _, t := range topics {
		r := kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, t
		r.ConfigNames = configs
		req.Resources = append(req.Resources, r)
	}
	return req
}

// ask asks always the same broker, as long as it answers: of two, one may not
// have learnt yet of a change that the other has told of.
func (f *facts) ask(ctx context.Context, req *kmsg.DescribeConfigsRequest) (*kmsg.DescribeConfigsResponse, error) {
	if brokers := f.c.Brokers(); len(brokers) > 0 {
		first, cancel := context.WithTimeout(ctx, describeTimeout/2)
		defer cancel()
		resp, err := req.RequestWith(first, f.c.client.Broker(int(brokers[0].ID)))
		if err == nil || ctx.Err() != nil {
			return resp, err
		}
	}
	return req.RequestWith(ctx, f.c.client)
}

// remember is called with mu held.
func (f *facts) remember(topic string, facts tiers.TopicFacts, asked uint64) {
	now := time.Now()
	next := &fact{facts: facts, read: now, used: now, asked: asked}
	if before := f.known[topic]; before != nil {
		next.used, next.changed = before.used, before.changed
		if before.facts.Known && !before.facts.Compacted && facts.Compacted {
			f.c.metrics.becameCompacted.Inc()
			f.c.log.Error().Str("topic", topic).Msg("cleanup.policy has become compact: new batches go inline, but compaction destroys the placeholders that the log still holds; set it back to delete if the topic's class is diskless")
		}
	}
	f.put(topic, next)
}

// put is called with mu held.
func (f *facts) put(topic string, k *fact) {
	if f.known[topic] == nil && len(f.known) >= maxFacts {
		for t := range f.known { // any: the map's order is as good as another
			delete(f.known, t)
			break
		}
	}
	f.known[topic] = k
}

// refresh reads the topics in use again, and forgets those that are gone.
func (f *facts) refresh(ctx context.Context) {
	var topics []string
	f.mu.Lock()
	for t, k := range f.known {
		switch {
		case time.Since(k.used) > unusedAfter, !k.facts.Known && !k.stale && time.Since(k.read) > unknownFor:
			delete(f.known, t)
		case k.facts.Known:
			topics = append(topics, t)
		}
	}
	f.c.metrics.topicsKnown.Set(float64(len(f.known)))
	f.mu.Unlock()
	f.read(ctx, topics)
}

// Invalidate makes the next question about a topic ask Kafka. What was known is
// kept to notice what has changed.
func (c *Cluster) Invalidate(topic string) {
	f := c.facts
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	now := time.Now()
	next := &fact{stale: true, used: now, asked: f.asked, changed: now}
	if before := f.known[topic]; before != nil {
		next.facts, next.read = before.facts, before.read
	}
	f.put(topic, next)
}

func factsOf(r kmsg.DescribeConfigsResponseResource) tiers.TopicFacts {
	if r.ErrorCode != 0 {
		return tiers.TopicFacts{}
	}
	facts := tiers.TopicFacts{Known: true, Internal: isInternal(r.ResourceName)}
	for _, cfg := range r.Configs {
		if cfg.Value == nil {
			continue
		}
		switch cfg.Name {
		case cleanupPolicy:
			facts.Compacted = strings.Contains(*cfg.Value, "compact")
		case maxMessageBytes:
			if n, err := strconv.ParseInt(*cfg.Value, 10, 32); err == nil {
				facts.MaxMessageBytes = int32(n)
			}
		case remoteStorage:
			facts.RemoteStorage = *cfg.Value == "true"
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
