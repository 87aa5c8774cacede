package diskless

import (
	"math"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// chunkKey names an aligned piece of an object.
type chunkKey struct {
	store string
	audit bool
	id    ulid.ULID
	index uint32
}

// segment is a part of the cache that evicts on its own account.
type segment struct {
	name  string
	max   int64
	bytes int64
	lru   *simplelru.LRU[chunkKey, []byte] // none is empty

	hits, evictions prometheus.Counter
	size            prometheus.Gauge
}

// cache keeps chunks of objects in memory, bounded by bytes. It has two
// segments: what is recent, and what a catch-up scan reads. A scan then evicts
// only scans, and tail readers keep their hits.
type cache struct {
	misses prometheus.Counter

	mu     sync.Mutex
	recent *segment
	scan   *segment
}

// scanShare of the cache is for what catch-up scans read: one in so many bytes.
const scanShare = 4

func newCache(bytes int64, m *metrics) *cache {
	make := func(name string, max int64) *segment {
		s := &segment{
			name: name, max: max,
			hits:      m.cacheHits.WithLabelValues(name),
			evictions: m.cacheEvictions.WithLabelValues(name),
			size:      m.cacheBytes.WithLabelValues(name),
		}
		// Bounded by bytes below, not by entries.
		s.lru, _ = simplelru.NewLRU(math.MaxInt32, func(_ chunkKey, b []byte) { s.bytes -= int64(cap(b)) })
		return s
	}
	scan := bytes / scanShare
	return &cache{misses: m.cacheMisses, recent: make("recent", bytes-scan), scan: make("scan", scan)}
}

// get returns a chunk, never to be written to, or nil.
func (c *cache) get(k chunkKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range [...]*segment{c.recent, c.scan} {
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
	if b, ok := c.recent.lru.Peek(k); ok {
		return b
	}
	b, _ := c.scan.lru.Peek(k)
	return b
}

// add admits a chunk; recent says to which segment. A chunk larger than its
// segment is not kept, nor an empty one, which would cost nothing and never go.
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
	for s.bytes+int64(cap(b)) > s.max {
		s.lru.RemoveOldest()
		s.evictions.Inc()
	}
	s.lru.Add(k, b)
	s.bytes += int64(cap(b))
	s.size.Set(float64(s.bytes))
}

// remove forgets a chunk that turned out to be bad.
func (c *cache) remove(k chunkKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(k)
}

// forget removes a chunk from both segments. mu is held.
func (c *cache) forget(k chunkKey) {
	for _, s := range [...]*segment{c.recent, c.scan} {
		if s.lru.Remove(k) {
			s.size.Set(float64(s.bytes))
		}
	}
}
