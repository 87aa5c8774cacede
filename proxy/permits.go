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
	asking map[string]*question
	newest *question // the last that is not answered yet; they are answered in order
}

// question is one about topics, and the requests that wait for its answer. The
// reader does not wait with them: what its client has sent behind must come in
// before what it then sends on another connection (crossings.go).
type question struct {
	topics  []string
	waiting []func()
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

// whenPermitted calls then once it is known what the client may write of a
// request's topics: at once, or when the broker has answered. To ask is also to
// be told whether the client has logged in.
func (c *conn) whenPermitted(r *request, destined []destination, then func()) error {
	unknown, pending := c.permits.missing(destined)
	if len(unknown) > 0 {
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
		} else if err := c.askPermits(version, unknown[:min(len(unknown), maxAsked)]); err != nil {
			return err
		} else {
			pending = true
		}
	}
	if !pending || !c.permits.await(r, then) {
		then()
	}
	return nil
}

// missing are the topics that must be asked about; pending says that others
// have been, and the answer has not come.
func (p *permits) missing(destined []destination) (unknown []string, pending bool) {
	for i, d := range destined {
		if i > 0 && d.topic == destined[i-1].topic {
			continue
		}
		if _, known := p.of(d.topic); known {
			continue
		}
		p.mu.Lock()
		asked := p.asking[d.topic] != nil
		p.mu.Unlock()
		if pending = pending || asked; !asked {
			unknown = append(unknown, d.topic)
		}
	}
	return unknown, pending
}

func (c *conn) askPermits(version int16, topics []string) error {
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(version)
	req.AllowAutoTopicCreation = false
	req.IncludeTopicAuthorizedOperations = true
	for _, topic := range topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &topic
		req.Topics = append(req.Topics, t)
	}
	q := c.permits.begin(topics)
	return c.ask(req, func(resp kmsg.Response, err error) {
		if err == nil {
			c.learnTopics(resp)
		}
		for _, then := range c.permits.end(q) {
			then()
		}
	})
}

// learnTopics takes the answer to a question about topics: names and rights.
func (c *conn) learnTopics(resp kmsg.Response) {
	m := resp.(*kmsg.MetadataResponse)
	c.p.learn(m)
	c.permits.learn(m)
}

func (p *permits) begin(topics []string) *question {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := &question{topics: topics}
	if p.asking == nil {
		p.asking = make(map[string]*question)
	}
	for _, topic := range topics {
		p.asking[topic] = q
	}
	p.newest = q
	return q
}

// await has r wait for all that is being asked, or reports that nothing is.
func (p *permits) await(r *request, then func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.newest == nil {
		return false
	}
	r.await(1)
	p.newest.waiting = append(p.newest.waiting, func() { r.whileWanted(then); r.done() })
	return true
}

// end returns what has waited for a question.
func (p *permits) end(q *question) []func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, topic := range q.topics {
		if p.asking[topic] == q {
			delete(p.asking, topic)
		}
	}
	if p.newest == q {
		p.newest = nil
	}
	return q.waiting
}

// askVersions asks for the broker's versions, for a client that has not, before
// they are needed: who moves between listeners must not be held up.
func (c *conn) askVersions() error {
	if c.versions != nil || c.brokerMetadata.Load() != 0 {
		return nil
	}
	answered := make(chan error)
	c.versions = answered
	// v0, which all speak
	return c.ask(kmsg.NewPtrApiVersionsRequest(), func(resp kmsg.Response, err error) {
		if err == nil {
			c.learnVersions(resp.(*kmsg.ApiVersionsResponse))
		}
		close(answered)
	})
}

// permitsVersion is the version of Metadata in which to ask this broker, or -1
// when it has none that tells.
func (c *conn) permitsVersion() (int16, error) {
	if c.brokerMetadata.Load() == 0 {
		if err := c.awaitAnswer(c.versions); err != nil {
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
