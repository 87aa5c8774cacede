package proxy

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Share groups (KIP-932), beyond single requests: what a session has, and what
// must not be acquired.

// shareMember is a member's id on diskless connections: a Kafka Uuid, the same
// from every replica.
func shareMember(member string) string {
	sum := sha256.Sum256([]byte("sluice: share member on diskless connections\x00" + member))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// shareAs gives a request the member id of this connection. An id that is
// missing stays so: the broker says what is wrong with it.
func (c *conn) shareAs(member **string) (changed bool) {
	if !c.diskless || *member == nil || **member == "" {
		return false
	}
	derived := shareMember(**member)
	*member = &derived
	return true
}

type sharePartition struct {
	topic     [16]byte
	partition int32
}

const (
	// maxShareSessions bounds those of one connection; clients have one.
	maxShareSessions = 8
	// maxSharePartitions bounds those of a session, of which a client has what the
	// broker leads.
	maxSharePartitions = 10_000
)

type shareKey struct{ group, member string }

// shareSessions are a connection's. A session belongs to one connection on the
// broker, too.
type shareSessions struct {
	mu   sync.Mutex
	open map[shareKey]*shareSession
}

// session returns that of a request, nil for one that is not known here: the
// client has to begin another.
func (s *shareSessions) session(group, member *string, epoch int32) *shareSession {
	k := shareKey{}
	if group != nil {
		k.group = *group
	}
	if member != nil {
		k.member = *member
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.open[k]
	switch {
	case epoch < 0:
		delete(s.open, k)
		if found == nil {
			found = newShareSession() // the broker says what it thinks of it
		}
	case epoch == 0:
		if s.open == nil || len(s.open) >= maxShareSessions {
			s.open = make(map[shareKey]*shareSession)
		}
		fresh := newShareSession()
		if found != nil {
			fresh.recordSize, fresh.placeholders = found.learnt()
		}
		s.open[k], found = fresh, fresh
	case found != nil && found.isRefused():
		return nil
	}
	return found
}

// end forgets a session that the client closes.
func (s *shareSessions) end(group, member *string) { _ = s.session(group, member, -1) }

// shareSession is what is known of one session: the client's partitions, and
// whether the broker has been told of them.
type shareSession struct {
	mu           sync.Mutex
	partitions   map[sharePartition]bool // whether the broker has it
	refused      bool                    // what the broker has is not known
	recordSize   int                     // bytes, of the last records seen
	placeholders bool
}

// crowded reports whether a request would make the session too large.
func (s *shareSession) crowded(req *kmsg.ShareFetchRequest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.partitions)
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			if _, ok := s.partitions[sharePartition{t.TopicID, p.Partition}]; !ok {
				n++
			}
		}
	}
	return n > maxSharePartitions
}

func newShareSession() *shareSession {
	return &shareSession{partitions: make(map[sharePartition]bool), recordSize: firstShareRecord}
}

// refuse notes that the broker has refused a request, and that what it has is
// not known any more.
func (s *shareSession) refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = true
}

func (s *shareSession) isRefused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

func (s *shareSession) learnt() (recordSize int, placeholders bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recordSize, s.placeholders
}

func (s *shareSession) sawPlaceholders() bool {
	_, saw := s.learnt()
	return saw
}

// learn notes how large hydrated records are.
func (s *shareSession) learn(bytes, records int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.placeholders = true
	if records > 0 {
		s.recordSize = max(bytes/records, s.recordSize-s.recordSize/4, 1)
	}
}

// affordable is how many records find room.
func (s *shareSession) affordable(room int64, records int32) int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int32(max(min(int64(records), room/int64(s.recordSize)), 1))
}

// arrange makes a request keep out of the broker's session what must not be
// acquired, and bring back what may be. It reports whether that leaves the
// broker nothing to wait for. When there is nothing of either kind, the request
// stays as it is.
func (s *shareSession) arrange(req *kmsg.ShareFetchRequest, unreadable func(sharePartition) bool) (idle bool) {
	if req.ShareSessionEpoch < 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// As brokers do it: what is named is added, then what is forgotten is
	// removed. Both are said of a partition that is only acknowledged.
	forgotten := make(map[sharePartition]bool)
	for _, t := range req.ForgottenTopicsData {
		for _, partition := range t.Partitions {
			forgotten[sharePartition{t.TopicID, partition}] = true
		}
	}
	var topics []kmsg.ShareFetchRequestTopic
	for _, t := range req.Topics {
		kept := t.Partitions[:0]
		for _, p := range t.Partitions {
			key := sharePartition{t.TopicID, p.Partition}
			out := !forgotten[key] && unreadable(key)
			if has := s.partitions[key]; out && (has || len(p.AcknowledgementBatches) > 0) {
				forget(req, key)
			}
			s.partitions[key] = !out
			if out && len(p.AcknowledgementBatches) == 0 {
				continue
			}
			kept = append(kept, p)
		}
		if t.Partitions = kept; len(kept) > 0 {
			topics = append(topics, t)
		}
	}
	req.Topics = topics
	for key := range forgotten {
		delete(s.partitions, key)
	}
	present := 0
	for key, has := range s.partitions {
		out := unreadable(key)
		switch {
		case out && has:
			forget(req, key)
		case !out && !has:
			want(req, key)
		}
		if s.partitions[key] = !out; !out {
			present++
		}
	}
	return present == 0 && len(s.partitions) > 0
}

func want(req *kmsg.ShareFetchRequest, key sharePartition) {
	p := kmsg.NewShareFetchRequestTopicPartition()
	p.Partition = key.partition
	for i := range req.Topics {
		if t := &req.Topics[i]; t.TopicID == key.topic {
			t.Partitions = append(t.Partitions, p)
			return
		}
	}
	t := kmsg.NewShareFetchRequestTopic()
	t.TopicID, t.Partitions = key.topic, []kmsg.ShareFetchRequestTopicPartition{p}
	req.Topics = append(req.Topics, t)
}

func forget(req *kmsg.ShareFetchRequest, key sharePartition) {
	for i := range req.ForgottenTopicsData {
		if t := &req.ForgottenTopicsData[i]; t.TopicID == key.topic {
			t.Partitions = append(t.Partitions, key.partition)
			return
		}
	}
	t := kmsg.NewShareFetchRequestForgottenTopicsData()
	t.TopicID, t.Partitions = key.topic, []int32{key.partition}
	req.ForgottenTopicsData = append(req.ForgottenTopicsData, t)
}

const (
	// maxWithheld bounds the partitions that are kept from share groups; each is
	// looked after by a goroutine.
	maxWithheld = 10_000
	// withheldPause is how soon it is looked whether one can be read; it doubles
	// up to maxWithheldPause.
	withheldPause    = time.Second
	maxWithheldPause = 30 * time.Second
	// poisoned is how long a partition is withheld although its store is well.
	// What can be read by nobody is then acquired once more, and Kafka archives it
	// after as many deliveries as any other record that nobody can process.
	poisoned = 10 * time.Minute
)

// withheld are partitions of which something was acquired that could not be
// read. No share group acquires from them, through this replica, until it can.
type withheld struct {
	now prometheus.Gauge

	mu         sync.Mutex
	partitions map[sharePartition]struct{}
}

func newWithheld(now prometheus.Gauge) *withheld {
	return &withheld{now: now, partitions: make(map[sharePartition]struct{})}
}

func (w *withheld) has(p sharePartition) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.partitions[p]
	return ok
}

// add withholds a partition until look says that it can be read, or that its
// store has been well for long and it still cannot, or ctx ends.
func (w *withheld) add(ctx context.Context, p sharePartition, look func(context.Context) (readable, storeIsWell bool)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.partitions[p]; ok || len(w.partitions) >= maxWithheld {
		return
	}
	w.partitions[p] = struct{}{}
	w.now.Inc()
	go func() {
		well := time.Duration(0)
		for pause := withheldPause; sleep(ctx, pause) && well < poisoned; pause = min(2*pause, maxWithheldPause) {
			readable, storeIsWell := look(ctx)
			if readable {
				break
			}
			if storeIsWell {
				well += pause
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.partitions, p)
		w.now.Dec()
	}()
}
