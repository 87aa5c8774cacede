package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Requests of our own on a client's connection, so that the broker answers them
// as the client's principal.

// ownCorrelationID marks them. A client may use it too: answers are told apart
// by their order.
const ownCorrelationID = -1

// errNoAnswer ends a connection whose broker hangs. While the reader waits for
// it nobody would notice that the client has gone.
var errNoAnswer = errors.New("the broker does not answer")

// ask sends a request. then runs in the responder, or with an error when the
// connection ends first. Only the reader asks.
func (c *conn) ask(req kmsg.Request, then func(kmsg.Response, error)) error {
	if err := c.dialOnce(); err != nil {
		return err
	}
	r := &request{api: c.p.apis.find(req.Key()), version: req.GetVersion(), correlationID: ownCorrelationID, received: time.Now()}
	r.internal = func(f *frame, err error) {
		if err != nil {
			then(nil, err)
			return
		}
		resp := req.ResponseKind()
		then(resp, decodeResponse(r, f, resp))
	}
	out := kmsg.NewRequestFormatter(kmsg.FormatterClientID("sluice")).AppendRequest(nil, req, ownCorrelationID)
	c.upstreamMu.Lock()
	defer c.upstreamMu.Unlock()
	c.expect(r)
	if _, err := c.toBroker.writeOne(out); err != nil {
		return brokerError{err}
	}
	return nil
}

// awaitWelcome returns once the broker has answered a question of ours on the
// client's connection, or any of the client's: it hangs up on one that has not
// logged in. While it waits, the connection is not read, so it does not ask
// where it need not: a producer's later batches must not come in before these.
func (c *conn) awaitWelcome() error {
	if c.welcome.Load() {
		return nil
	}
	const version = 4 // every broker has it that has Produce v3
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(version)
	req.Topics = []kmsg.MetadataRequestTopic{} // none; nil would be all
	req.AllowAutoTopicCreation = false
	return c.askAndWait(req, func(kmsg.Response) {})
}

// askAndWait is ask for what the reader cannot go on without.
func (c *conn) askAndWait(req kmsg.Request, then func(kmsg.Response)) error {
	answered := make(chan error, 1)
	if err := c.ask(req, func(resp kmsg.Response, err error) {
		if err != nil {
			err = brokerError{err}
		} else {
			then(resp)
		}
		answered <- err
	}); err != nil {
		return err
	}
	return c.awaitAnswer(answered)
}

func (c *conn) awaitAnswer(answered <-chan error) error {
	select {
	case err := <-answered:
		return err
	case <-time.After(c.p.limits.BrokerWriteTimeout):
		return brokerError{errNoAnswer}
	case <-c.present.Done():
		return context.Cause(c.present)
	}
}

// askVersion is the first version of Metadata in which brokers look topics up
// by id. Every broker that speaks topic ids in Produce or Fetch has it.
const askVersion = 12

// maxAsked bounds the ids of one question; what is left over is asked with the
// client's next request.
const maxAsked = 10_000

func topicsByID(ids [][16]byte) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(askVersion)
	req.AllowAutoTopicCreation = false
	for _, id := range ids[:min(len(ids), maxAsked)] {
		t := kmsg.NewMetadataRequestTopic()
		t.TopicID = id
		req.Topics = append(req.Topics, t)
	}
	return req
}

// askTopics has the names of topic ids learnt. The answer precedes those of all
// later requests.
func (c *conn) askTopics(ids [][16]byte) error {
	return c.ask(topicsByID(ids), func(resp kmsg.Response, err error) {
		if err == nil {
			c.p.learn(resp.(*kmsg.MetadataResponse))
		}
	})
}
