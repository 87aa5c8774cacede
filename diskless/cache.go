package diskless

import (
	"math"
	"sync"
	"unsafe"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-kafka/sluice/diskless/segment"
)

// kind tells what objects a chunk may be of.
type kind uint8

const (
	walObject kind = iota
	auditObject
	segmentObject
)

// chunkKey names a piece of an object.
type chunkKey struct {
	store  string
	kind   kind
	id     ulid.ULID // of the object, or of the run whose segment it is
	number int       // of the segment
	from   int64     // where in the object it begins
	length int64     // the object may end before
}

// object is the key of the object that the chunk is of.
func (k chunkKey) object() string {
	if k.kind == segmentObject {
		return segment.DataKey(k.id, k.number)
	}
	return ObjectKey(k.id, k.kind == auditObject)
}

// region is a part of the cache that evicts on its own account.
type region struct {
	name  string
	max   int64
	bytes int64
	lru   *simplelru.LRU[chunkKey, []byte] // none is empty

	hits, evictions prometheus.Counter
	size            prometheus.Gauge
}

// cache keeps chunks of objects in memory, bounded by bytes. It has two regions:
// what is recent, and what a catch-up scan reads. A scan then evicts only scans,
// and tail readers keep their hits. What is recent takes no more than its own
// room, scans also what of that is free.
type cache struct {
	misses prometheus.Counter

	mu         sync.Mutex
	recent     *region
	scan       *region
	ahead      map[chunkKey]int64 // bytes of what is read before anybody has asked for it
	aheadBytes int64

	// What answers hold of chunks until they are written. The map's keys are the
	// chunks' first bytes: a chunk may be read anew while the one before is lent.
	loans    map[*byte]*loan
	lent     int64 // bytes of the chunks in loans
	orphaned int64 // of these, of those that are no longer in the cache
	gauge    prometheus.Gauge
}

// loan is a chunk of which answers hold parts.
type loan struct {
	parts    int
	orphaned bool
}

// lentShare of what is for catch-up scans, one byte in so many, may be chunks that
// are lent: one of each partition that is read (scanChunks). Beyond it parts are
// copied, or slow readers would take all of it. At most half of what is always for
// scans is, so that there is room for them however much of the rest is taken.
const lentShare = scanChunks

// aheadShare of what is for catch-up scans, one byte in so many, may be taken by
// chunks that nobody has asked for yet: more would push out what is being read.
const aheadShare = 4

// Of the cache, one byte in so many is for what catch-up scans read, whatever else
// there is, and for what finds it: listings, manifests and footers.
const (
	scanShare  = 4
	indexShare = 8
)

func newCache(bytes int64, m *metrics) *cache {
	c := &cache{misses: m.cacheMisses, ahead: map[chunkKey]int64{}, loans: map[*byte]*loan{}, gauge: m.cacheBytes.WithLabelValues("lent")}
	make := func(name string, max int64) *region {
		s := &region{
			name: name, max: max,
			hits:      m.cacheHits.WithLabelValues(name),
			evictions: m.cacheEvictions.WithLabelValues(name),
			size:      m.cacheBytes.WithLabelValues(name),
		}
		// Bounded by bytes below, not by entries.
		s.lru, _ = simplelru.NewLRU(math.MaxInt32, func(k chunkKey, b []byte) {
			s.bytes -= int64(cap(b))
			c.unexpect(k)
			if l := c.loans[unsafe.SliceData(b)]; l != nil {
				c.orphan(l, b)
			}
		})
		return s
	}
	scan := bytes / scanShare
	c.recent, c.scan = make("recent", bytes-scan-bytes/indexShare), make("scan", scan)
	return c
}

// expect reports whether a chunk of so many bytes may be read before anybody asks
// for it. It counts until somebody does, or it is gone.
func (c *cache) expect(k chunkKey, bytes int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.ahead[k]; ok || c.holds(k) || c.aheadBytes > 0 && c.aheadBytes+bytes > c.scanRoom()/aheadShare || bytes > c.scanRoom()/2 {
		return false
	}
	c.ahead[k] = bytes
	c.aheadBytes += bytes
	return true
}

// unexpect is called with mu held.
func (c *cache) unexpect(k chunkKey) {
	c.aheadBytes -= c.ahead[k]
	delete(c.ahead, k)
}

// missed is what was expected and could not be read.
func (c *cache) missed(k chunkKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.holds(k) {
		c.unexpect(k)
	}
}

// holds is called with mu held.
func (c *cache) holds(k chunkKey) bool { return c.recent.lru.Contains(k) || c.scan.lru.Contains(k) }

// find looks without refreshing. mu is held.
func (c *cache) find(k chunkKey) ([]byte, bool) {
	if b, ok := c.recent.lru.Peek(k); ok {
		return b, true
	}
	return c.scan.lru.Peek(k)
}

// get returns a chunk, never to be written to, or nil.
func (c *cache) get(k chunkKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unexpect(k)
	for _, s := range [...]*region{c.recent, c.scan} {
		if b, ok := s.lru.Get(k); ok {
			s.hits.Inc()
			return b
		}
	}
	c.misses.Inc()
	return nil
}

// peek looks without counting or refreshing.
func (c *cache) peek(k chunkKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, _ := c.find(k)
	return b
}

// add admits a chunk; recent says to which region. A chunk larger than its
// region is not kept, nor an empty one, which would cost nothing and never go.
func (c *cache) add(k chunkKey, b []byte, recent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.scan
	if recent {
		s = c.recent
	}
	c.forget(k)
	if len(b) == 0 || int64(cap(b)) > s.max {
		return
	}
	if recent {
		for s.bytes > s.max-int64(cap(b)) {
			s.evict()
		}
	} else {
		c.evictScans(int64(cap(b)))
	}
	s.lru.Add(k, b)
	s.bytes += int64(cap(b))
	s.size.Set(float64(s.bytes))
	c.evictScans(0)
}

// evictScans makes room for so many bytes. What is lent leaves none at once. mu is held.
func (c *cache) evictScans(bytes int64) {
	for c.scan.bytes > 0 && c.scan.bytes > c.scanRoom()-bytes {
		c.scan.evict()
	}
}

// scanRoom is what scans may take now. mu is held.
func (c *cache) scanRoom() int64 {
	return c.scan.max + c.recent.max - c.recent.bytes - c.orphaned
}

// lend allows for a part of a chunk to be held until done is called, or returns
// nil. A chunk that the cache lets go of meanwhile still counts.
func (c *cache) lend(k chunkKey, b []byte) (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.loans[unsafe.SliceData(b)]
	if l == nil {
		if len(b) == 0 || c.lent+int64(cap(b)) > min(c.scanRoom()/lentShare, c.scan.max/2) {
			return nil
		}
		l = &loan{}
		c.loans[unsafe.SliceData(b)] = l
		c.lent += int64(cap(b))
		if held, _ := c.find(k); unsafe.SliceData(held) != unsafe.SliceData(b) {
			c.orphan(l, b) // it was evicted, or not kept
			c.evictScans(0)
		}
	}
	l.parts++
	return sync.OnceFunc(func() { c.giveBack(l, b) })
}

func (c *cache) giveBack(l *loan, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.parts--; l.parts > 0 {
		return
	}
	delete(c.loans, unsafe.SliceData(b))
	c.lent -= int64(cap(b))
	if l.orphaned {
		c.orphaned -= int64(cap(b))
		c.gauge.Set(float64(c.orphaned))
	}
}

// orphan is called with mu held.
func (c *cache) orphan(l *loan, b []byte) {
	if !l.orphaned {
		l.orphaned = true
		c.orphaned += int64(cap(b))
		c.gauge.Set(float64(c.orphaned))
	}
}

// evict lets go of what was used longest ago.
func (s *region) evict() {
	s.lru.RemoveOldest()
	s.evictions.Inc()
	s.size.Set(float64(s.bytes))
}

// room is what scans may take now.
func (c *cache) room() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.scanRoom()
}

// remove forgets a chunk that turned out to be bad.
func (c *cache) remove(k chunkKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(k)
}

// forget removes a chunk from both regions. mu is held.
func (c *cache) forget(k chunkKey) {
	for _, s := range [...]*region{c.recent, c.scan} {
		if s.lru.Remove(k) {
			s.size.Set(float64(s.bytes))
		}
	}
}
