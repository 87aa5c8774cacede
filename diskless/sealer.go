package diskless

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/tiers"
)

// sealer decides when an object is sealed before its linger ends: as soon as
// waiting longer gains nothing, because every connection that has a batch in it
// waits for all that it ever has under way. Such a seal costs a PUT that the
// linger would have saved, so there is a budget of them, and each connection
// has a fair share: a lone synchronous producer cannot use it up.
//
// Deadline and size seals are not its business; they always go.
type sealer struct {
	perSecond float64 // early seals; 0 is none

	mu     sync.Mutex
	bucket *rate.Limiter // all connections together
	seats  map[*tiers.Producer]*seat
	active []*seat // the same, in the order in which retire looks at them
}

// seat is what is known of one connection.
type seat struct {
	producer *tiers.Producer
	waiting  int       // its requests in open objects
	peak     int       // as many requests as it usually has in flight
	credit   float64   // early seals that it may pay for, at most maxCredit
	accrued  time.Time // until when credit is counted
	seen     time.Time // its last batch
}

const (
	// maxCredit is what a connection may have saved up.
	maxCredit = 1
	// activeFor is how long a connection that sends nothing has a share.
	activeFor = time.Second
)

func newSealer(perSecond float64) *sealer {
	return &sealer{
		perSecond: perSecond,
		bucket:    rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond))),
		seats:     make(map[*tiers.Producer]*seat),
	}
}

// crew is the connections that wait for one open object.
type crew struct {
	members  map[*seat]*member
	holdouts int       // of members: those that may still send something
	recheck  time.Time // no sooner can the budget cover a seal
}

type member struct {
	requests int    // in this object
	last     uint64 // the latest of them
	holdout  bool
}

// join notes a batch that was put into an object.
func (s *sealer) join(c *crew, p *tiers.Producer, request uint64, now time.Time) {
	if p == nil || s.perSecond <= 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retire(now)
	st := s.seats[p]
	if st == nil {
		st = &seat{producer: p, credit: maxCredit, accrued: now}
		s.seats[p] = st
		s.active = append(s.active, st)
	}
	st.seen = now
	m := c.members[st]
	if m == nil {
		if c.members == nil {
			c.members = make(map[*seat]*member)
		}
		m = &member{holdout: true}
		c.members[st] = m
		c.holdouts++
	}
	if m.requests == 0 || m.last != request {
		m.requests++
		m.last = request
		st.waiting++
	}
	st.peak = max(st.peak, p.InFlight())
	if holdout := st.waiting < st.peak; holdout != m.holdout {
		m.holdout = holdout
		if holdout {
			c.holdouts++
		} else {
			c.holdouts--
		}
	}
}

// retire forgets connections that have sent nothing for a while, and with them
// what they had in flight at best. It looks at two for each that is added, so
// all are looked at in turn.
func (s *sealer) retire(now time.Time) {
	for range min(2, len(s.active)) {
		st := s.active[0]
		s.active = s.active[1:]
		if st.waiting == 0 && now.Sub(st.seen) >= activeFor {
			delete(s.seats, st.producer)
			continue
		}
		s.active = append(s.active, st)
	}
}

// ready reports whether an object may be sealed early, and pays for it. When
// only the budget is lacking, it says how long to wait.
func (s *sealer) ready(c *crew, now time.Time) (ok bool, wait time.Duration) {
	if s.perSecond <= 0 || len(c.members) == 0 || c.holdouts > 0 || now.Before(c.recheck) {
		return false, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	share := s.perSecond / float64(max(len(s.active), 1))
	sum := 0.0
	for st := range c.members {
		st.credit = min(maxCredit, st.credit+now.Sub(st.accrued).Seconds()*share)
		st.accrued = now
		sum += st.credit
	}
	const enough = 1 - 1e-9
	if sum < enough {
		wait = time.Duration((1 - sum) / (share * float64(len(c.members))) * float64(time.Second))
	} else if !s.bucket.AllowN(now, 1) {
		wait = time.Duration(float64(time.Second) / s.perSecond)
	} else {
		for st := range c.members {
			st.credit -= st.credit / sum
		}
		return true, 0
	}
	wait = max(wait, time.Millisecond)
	c.recheck = now.Add(wait)
	return false, wait
}

// leave notes that an object was sealed or given up. Who was not seen to be
// blocked by then has less in flight than was thought.
func (s *sealer) leave(c *crew) {
	if len(c.members) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for st, m := range c.members {
		st.waiting -= m.requests
		if m.holdout {
			st.peak = max(st.producer.InFlight(), st.peak-max(1, st.peak/4))
		}
	}
	*c = crew{}
}
