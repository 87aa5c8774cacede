package proxy

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// crossings keeps a producer's batches in order while it moves from one of a
// broker's two listeners to the other, because its topic's class has changed.
// Its new connection must not overtake what the old one still has under way,
// an upload perhaps: a batch waits until all earlier batches of the same
// producer and partition that came in on the other listener have been answered
// by the broker. Being forwarded is not enough, brokers work on connections
// concurrently.
//
// A producer is known by its address, client id and producer id. Those without
// a producer id may be several of one name; when their batches alternate more
// often than a class can have changed meanwhile they are, and do not wait.
// Whoever does not move waits for nobody, and nobody waits longer than
// crossAtMost: then the broker's sequence check is the only fence, as it is for a
// producer whose address changes.
type crossings struct {
	seed   maphash.Seed
	shards [64]crossingShard
}

type crossingShard struct {
	mu    sync.Mutex
	lanes map[laneKey]*lane
	spare *lane // one that is not in use, so that a lone request allocates none
}

// laneKey is one producer's way into one partition.
type laneKey struct {
	topic     string   // or, from Produce v13 on,
	id        [16]byte // its id
	partition int32
	from      uint64 // a hash of the client's address and id: nobody can stand in a stranger's way
	anonymous bool   // without a producer id, all that is known is from
	producer  int64
}

// lane is the batches of a laneKey that are under way, in order of arrival:
// runs that came in on alternating listeners.
type lane struct {
	runs  []*run
	first run // and room for it, for there is rarely another
	room  [1]*run
}

// run is consecutive batches from one listener.
type run struct {
	diskless bool // the listener
	pending  int
	waiting  []waiter // to be told when all earlier runs are done; nil for the first
}

// waiter is a request. await says for how many calls of done it has to wait.
type waiter interface {
	await(n int)
	done()
}

// crossAtMost bounds how long a request waits for earlier ones: whoever owes
// their answers must not hold it for ever.
const crossAtMost = 30 * time.Second

// maxRuns bounds the runs of one anonymous name that wait for each other. A class
// that changes there and back while batches are under way makes three.
const maxRuns = 8

// crossing is a request that waits for earlier ones.
type crossing struct {
	request *request
	earlier atomic.Int32
	once    sync.Once
	timer   *time.Timer
	expired prometheus.Counter
}

func (x *crossing) await(n int) {
	x.request.await(1)
	x.earlier.Add(int32(n))
	x.timer = time.AfterFunc(crossAtMost, func() {
		x.once.Do(func() {
			x.expired.Inc()
			x.request.done()
		})
	})
}

func (x *crossing) done() {
	if x.earlier.Add(-1) == 0 {
		x.timer.Stop()
		x.once.Do(x.request.done)
	}
}

// passage is what a request holds until it is answered.
type passage struct {
	key   laneKey
	place uint64 // a hash of the key, whoever the producer is
	run   *run
}

const (
	// passageBytes is about what a passage takes, and the lane that it opens.
	passageBytes = 400
	// batchShare of a request's bytes, in times of them, may be that without being
	// counted: even small batches are larger, and nobody who sends some waits.
	batchShare = 4
)

func newCrossings() *crossings {
	c := &crossings{seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i].lanes = make(map[laneKey]*lane)
	}
	return c
}

// from names a client.
func (c *crossings) from(address, clientID string) uint64 {
	var h maphash.Hash
	h.SetSeed(c.seed)
	_, _ = h.WriteString(address)
	_ = h.WriteByte(0)
	_, _ = h.WriteString(clientID)
	return h.Sum64()
}

// passage is a batch's, on its way by key.
func (c *crossings) passage(key laneKey) passage {
	// Not maphash.Comparable, which moves what holds a string to the heap.
	var b [28]byte
	copy(b[:], key.id[:])
	binary.LittleEndian.PutUint32(b[16:], uint32(key.partition))
	binary.LittleEndian.PutUint64(b[20:], key.from)
	place := maphash.Bytes(c.seed, b[:])
	if key.topic != "" {
		place = bits.RotateLeft64(place, 1) ^ maphash.String(c.seed, key.topic)
	}
	return passage{key: key, place: place}
}

func (c *crossings) shard(p *passage) *crossingShard {
	return &c.shards[p.place%uint64(len(c.shards))]
}

// enter notes a request's batches, and fills in their runs. For each that has
// something before it w is told to wait, and that it is done when that is
// answered.
//
// All of a request's partitions are entered at once. Were they entered one by
// one, two requests could each be before the other, and wait for ever.
func (c *crossings) enter(passages []passage, diskless bool, w waiter) {
	var in uint64
	for i := range passages {
		p := &passages[i]
		in |= 1 << (p.place % uint64(len(c.shards)))
	}
	for left := in; left != 0; left &= left - 1 {
		c.shards[bits.TrailingZeros64(left)].mu.Lock()
	}
	waits := 0
	for i := range passages {
		p := &passages[i]
		s := c.shard(p)
		l := s.lanes[p.key]
		if l == nil {
			if l = s.spare; l == nil {
				l = &lane{}
			}
			s.spare = nil
			s.lanes[p.key] = l
		}
		last := len(l.runs) - 1
		switch {
		case last+1 >= maxRuns && p.key.anonymous && l.runs[last].diskless != diskless:
			continue // several of one name
		case last < 0:
			l.first = run{diskless: diskless}
			l.runs = append(l.room[:0], &l.first)
		case l.runs[last].diskless != diskless:
			l.runs = append(l.runs, &run{diskless: diskless})
		}
		last = len(l.runs) - 1
		p.run = l.runs[last]
		p.run.pending++
		if last > 0 {
			p.run.waiting = append(p.run.waiting, w)
			waits++
		}
	}
	if waits > 0 {
		w.await(waits)
	}
	for left := in; left != 0; left &= left - 1 {
		c.shards[bits.TrailingZeros64(left)].mu.Unlock()
	}
}

// leave notes that a request is answered, or never will be.
func (c *crossings) leave(passages []passage) {
	for i := range passages {
		p := &passages[i]
		if p.run == nil {
			continue
		}
		var free []waiter
		s := c.shard(p)
		s.mu.Lock()
		p.run.pending--
		if l := s.lanes[p.key]; l.runs[0].pending == 0 {
			l.runs = l.runs[1:]
			// A later run may have ended before it began: its client has gone.
			for len(l.runs) > 0 && l.runs[0].pending == 0 {
				l.runs = l.runs[1:]
			}
			if len(l.runs) > 0 {
				free, l.runs[0].waiting = l.runs[0].waiting, nil
			} else {
				delete(s.lanes, p.key)
				s.spare = l
			}
		}
		s.mu.Unlock()
		for _, w := range free {
			w.done()
		}
	}
}
