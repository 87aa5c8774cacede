package diskless

import (
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/tiers"
)

// sealer decides when an object is sealed before its linger ends: as soon as
// waiting longer gains little, because every connection that has a batch in it
// either waits for all that it ever has under way, or has stopped sending for
// longer than it usually does. (A client whose next record is for a partition
// of another broker, where it waits, sends nothing here either.) Such a seal
// costs a part of a PUT that the linger would have saved, the part of the object
// that stays empty; so there is a budget of them, and each connection has a fair
// share: a lone synchronous producer cannot use it up. What the bytes alone
// would cost in full objects is not counted, or who fills them nearly would wait
// for the budget and not for the store.
//
// Deadline and size seals are not its business; they always go.
type sealer struct {
	perSecond float64 // early seals; 0 is none

	mu     sync.Mutex
	bucket *rate.Limiter // all connections together, in parts of a seal
	seats  map[*tiers.Producer]*seat
	active []*seat // the same, in the order in which retire looks at them
}

// seat is what is known of one connection.
type seat struct {
	producer *tiers.Producer
	waiting  int           // its requests in open objects
	peak     int           // as many requests as it usually has in flight
	credit   float64       // early seals that it may pay for, at most maxCredit
	accrued  time.Time     // until when credit is counted
	seen     time.Time     // its last batch
	paused   bool          // after that it could have sent more
	pause    time.Duration // as long as it usually takes until it does
}

const (
	// sealParts is into how many a seal is divided.
	sealParts = 1000
	// maxCredit is what a connection may have saved up.
	maxCredit = 1
	// activeFor is how long a connection that sends nothing has a share.
	activeFor = time.Second
	// minPatience is how long a connection that could send more is waited for.
	minPatience = 5 * time.Millisecond
	// maxPause keeps one that seldom sends from holding up the others.
	maxPause = 50 * time.Millisecond
)

// patience is how long nothing may come from a connection until it counts as
// blocked although it has had more in flight at times.
func (st *seat) patience() time.Duration { return minPatience + 2*st.pause }

func newSealer(perSecond float64) *sealer {
	return &sealer{
		perSecond: perSecond,
		bucket:    rate.NewLimiter(rate.Limit(perSecond*sealParts), max(1, int(perSecond))*sealParts),
		seats:     make(map[*tiers.Producer]*seat),
	}
}

// crew is the connections that wait for one open object.
type crew struct {
	members  map[*seat]*member
	holdouts int       // of members: those that may still send something
	patient  time.Time // until when they are waited for
	recheck  time.Time // no sooner can the budget cover a seal at price
	price    float64
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
		if st.paused {
			st.pause = max(min(now.Sub(st.seen), maxPause), st.pause-st.pause/8)
		}
		m.requests++
		m.last = request
		st.waiting++
	}
	st.seen = now
	st.peak = max(st.peak, p.InFlight())
	st.paused = st.waiting < st.peak
	if st.paused {
		if until := now.Add(st.patience()); until.After(c.patient) {
			c.patient = until
		}
	}
	if m.holdout != st.paused {
		m.holdout = st.paused
		if st.paused {
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

// ready reports whether an object may be sealed early, and pays the price, which
// is 1 for an empty one. Otherwise it says how long to wait, if that is known, and
// whether it is the budget that is lacking.
func (s *sealer) ready(c *crew, price float64, now time.Time) (ok bool, wait time.Duration, short bool) {
	if s.perSecond <= 0 || len(c.members) == 0 {
		return false, 0, false
	}
	// The price falls as the object fills. Half of it, and not any less, so that all
	// members are looked at a few times and not for each batch.
	if now.Before(c.recheck) && price > c.price/2 {
		return false, c.recheck.Sub(now), false
	}
	if c.holdouts > 0 && now.Before(c.patient) {
		return false, c.patient.Sub(now), false
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
	const rounding = 1e-9
	if sum < price-rounding {
		wait = time.Duration((price - sum) / (share * float64(len(c.members))) * float64(time.Second))
	} else if !s.bucket.AllowN(now, int(math.Ceil(price*sealParts))) {
		wait = time.Duration(price / s.perSecond * float64(time.Second))
	} else {
		for st := range c.members {
			st.credit -= st.credit / max(sum, rounding) * price
		}
		return true, 0, false
	}
	wait = max(wait, time.Millisecond)
	c.recheck, c.price = now.Add(wait), price
	return false, wait, true
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
