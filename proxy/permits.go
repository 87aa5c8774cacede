package proxy

import (
	"math"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// permits are what a connection has learnt of what its client may write.
//
// Authorization is the broker's, and it judges a Produce only when it has it:
// by then a diskless batch is an object. So before the first batch of a topic
// goes into one, the broker is asked whether this client may write there
// (Metadata's authorized operations, KIP-430): who may not fills no bucket. What
// it may not write goes upstream as it came, for the broker to refuse; should
// it have become allowed meanwhile, it is simply inline. Rights that are lost
// while a connection lasts are noticed by the first answer that says so.
type permits struct {
	mu     sync.Mutex
	topics map[string]permit
	denied time.Time // until then nothing is stored, whatever the topic
}

// permit is one topic's. One that has expired is none.
type permit struct {
	granted bool
	until   time.Time // of a denial
}

const (
	// denyFor is how long a denial is believed: ACLs change.
	denyFor = 10 * time.Second
	// maxPermits bounds the topics that a connection remembers.
	maxPermits = maxAsked

	errTopicAuth           = 29
	errTransactionalIDAuth = 53

	opWrite = 1 << 4 // in a bit field of authorized operations
	opsNone = math.MinInt32
)

// of returns what is known of a topic; known is false when the broker must be
// asked.
func (p *permits) of(topic string) (granted, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	got, known := p.topics[topic]
	if !known || !got.granted && time.Now().After(got.until) {
		return false, false
	}
	return got.granted && time.Now().After(p.denied), true
}

func (p *permits) set(topic string, granted bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.topics == nil || len(p.topics) >= maxPermits {
		p.topics = make(map[string]permit)
	}
	p.topics[topic] = permit{granted, time.Now().Add(denyFor)}
}

// learn takes what an answer says that the client may do. Brokers that don't
// tell are believed to allow it.
func (p *permits) learn(resp *kmsg.MetadataResponse) {
	for _, t := range resp.Topics {
		switch {
		case t.Topic == nil:
		case t.ErrorCode == errTopicAuth:
			p.set(*t.Topic, false)
		case t.AuthorizedOperations != opsNone:
			p.set(*t.Topic, t.AuthorizedOperations&opWrite != 0)
		case t.ErrorCode == 0:
			p.set(*t.Topic, true)
		}
	}
}

// judged takes what the broker has said of a client's batch. A denial of the
// transactional id, or of idempotence, is of the whole connection: it rarely
// has another producer.
func (p *permits) judged(topic string, code int16) {
	switch code {
	case 0, errTopicAuth:
		if topic != "" {
			p.set(topic, code == 0)
		}
	case errTransactionalIDAuth, errClusterAuth:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.denied = time.Now().Add(denyFor)
	}
}

// permitsSince is the first version of Metadata that tells authorized
// operations of topics.
const permitsSince = 8

// askPermits asks the broker for what is not known of the topics of a Produce.
// To ask is also to be told whether the client has logged in.
func (c *conn) askPermits(destined []destination) error {
	var unknown []string
	for i, d := range destined {
		if i > 0 && d.topic == destined[i-1].topic {
			continue
		}
		if _, known := c.permits.of(d.topic); !known {
			unknown = append(unknown, d.topic)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	version, err := c.permitsVersion()
	if err != nil {
		return err
	}
	if version < 0 {
		if err := c.awaitWelcome(); err != nil {
			return err
		}
		for _, topic := range unknown {
			c.permits.set(topic, true)
		}
		return nil
	}
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(version)
	req.AllowAutoTopicCreation = false
	req.IncludeTopicAuthorizedOperations = true
	for _, topic := range unknown[:min(len(unknown), maxAsked)] {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &topic
		req.Topics = append(req.Topics, t)
	}
	return c.askAndWait(req, func(resp kmsg.Response) {
		m := resp.(*kmsg.MetadataResponse)
		c.p.learn(m)
		c.permits.learn(m)
	})
}

// permitsVersion is the version of Metadata in which to ask this broker, or -1
// when it has none that tells. Clients that have not asked for the broker's
// versions are none the freer.
func (c *conn) permitsVersion() (int16, error) {
	if c.brokerMetadata.Load() == 0 {
		req := kmsg.NewPtrApiVersionsRequest() // v0, which all speak
		if err := c.askAndWait(req, func(resp kmsg.Response) {
			c.learnVersions(resp.(*kmsg.ApiVersionsResponse))
		}); err != nil {
			return 0, err
		}
	}
	spoken := c.brokerMetadata.Load()
	first, last := int16(spoken>>16), int16(spoken&math.MaxUint16)
	switch {
	case first <= askVersion && askVersion <= last:
		return askVersion, nil
	case first <= permitsSince && permitsSince <= last:
		return permitsSince, nil
	}
	return -1, nil
}

// learnVersions remembers which versions of Metadata the broker speaks.
func (c *conn) learnVersions(resp *kmsg.ApiVersionsResponse) {
	for _, k := range resp.ApiKeys {
		if k.ApiKey == metadataKey {
			c.brokerMetadata.Store(uint32(k.MinVersion)<<16 | uint32(k.MaxVersion))
		}
	}
}
