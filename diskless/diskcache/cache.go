package diskcache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

const (
	// readers at a time, each with a chunk in memory.
	readers = 2
	// turnWait is how long a reader waits for its turn before it goes to the store.
	turnWait = 100 * time.Millisecond
	// readWait is how long a reader waits for the disk.
	readWait = 500 * time.Millisecond
	// writeWait is how long a write may take. Nobody waits for it.
	writeWait = 5 * time.Second
	// tooSlow is how many answers in a row may come too late.
	tooSlow = 3
	// offFor is how long a disk is left alone.
	offFor = time.Minute
	// closeWait is how long Close waits for a disk that gives no answer.
	closeWait = 2 * time.Second
	// maxFiles bounds what is kept in memory of them: about 150 bytes each.
	maxFiles = 1 << 17
	// block is what a file's size is rounded up to.
	block = 4096
	// recentShare of the bytes, one in so many, is recent chunks' as long as there
	// are any: a catch-up scan may take all the rest.
	recentShare = 2
)

// Options of a Cache.
type Options struct {
	Dir        string // there, writable; a folder is made in it
	Bytes      int64  // on disk
	QueueBytes int64  // in memory, that wait to be written; no chunk may be larger
	Logger     zerolog.Logger
	Metrics    *Metrics
}

// Cache keeps chunks on a local disk. A nil Cache keeps nothing.
type Cache struct {
	max, queueMax int64
	disk          disk
	log           zerolog.Logger
	metrics       *Metrics
	complained    bool // the log was told that the disk cannot be used; the writer's
	turns         chan struct{}
	wake          chan struct{} // there is something for the writer
	cancel        context.CancelFunc
	ended         chan struct{}

	mu           sync.Mutex
	on           bool  // the disk is used
	cause        error // why it is not
	late         int   // answers in a row that came too late
	overdue      int   // reads under way that are late
	recent, scan *region
	queue        []*job
	queued       int64
	pending      map[name]*job // to be written
	told         time.Time     // when the log was told of a damaged file
}

// region is chunks that are evicted in the order of their use.
type region struct {
	bytes int64
	size  prometheus.Gauge
	lru   *simplelru.LRU[name, int64] // sizes of files
}

// job is for the writer.
type job struct {
	name   name
	head   []byte
	body   []byte // nil: remove the file
	recent bool
}

func (j *job) size() int64 { return int64(len(j.head) + len(j.body)) }

// Open returns at once: the folder is opened and listed in the background, and
// tried again when that cannot be.
func Open(opt Options) *Cache {
	return open(opt, &folder{dir: opt.Dir, maxFile: opt.QueueBytes + block})
}

func open(opt Options, d disk) *Cache {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Cache{
		max: opt.Bytes, queueMax: opt.QueueBytes, disk: d, log: opt.Logger, metrics: opt.Metrics,
		turns: make(chan struct{}, readers), wake: make(chan struct{}, 1), cancel: cancel, ended: make(chan struct{}),
	}
	make := func(name string) *region { return &region{size: c.metrics.bytes.WithLabelValues(name)} }
	c.recent, c.scan = make("recent"), make("scan")
	c.clear()
	go c.run(ctx)
	return c
}

// clear forgets all files. mu is held, or nobody else has c yet.
func (c *Cache) clear() {
	for _, r := range [...]*region{c.recent, c.scan} {
		// Bounded by bytes and files elsewhere.
		r.lru, _ = simplelru.NewLRU(math.MaxInt32, func(_ name, size int64) { r.bytes -= blocks(size) })
		r.bytes = 0
		r.size.Set(0)
	}
	c.queue, c.queued, c.pending = nil, 0, map[name]*job{}
}

func blocks(size int64) int64 { return (size + block - 1) / block * block }

// Close ends all use of the disk.
func (c *Cache) Close() {
	if c == nil {
		return
	}
	c.cancel()
	select {
	case <-c.ended:
	case <-time.After(closeWait):
	}
}

// Get returns a chunk, never to be written to, or nil. It takes a moment at most.
func (c *Cache) Get(key string) []byte {
	if c == nil {
		return nil
	}
	b := c.get(nameOf(key), key)
	if b == nil {
		c.metrics.misses.Inc()
	} else {
		c.metrics.hits.Inc()
	}
	return b
}

func (c *Cache) get(n name, key string) []byte {
	size, ok := c.find(n)
	if !ok {
		return nil
	}
	timer := time.NewTimer(turnWait)
	defer timer.Stop()
	select {
	case c.turns <- struct{}{}:
	case <-timer.C:
		return nil
	}
	type answer struct {
		body []byte
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		defer func() { <-c.turns }()
		file, err := c.disk.read(n, size)
		if err != nil {
			answered <- answer{nil, err}
			return
		}
		body, err := bodyOf(file, key)
		answered <- answer{body, err}
	}()
	timer.Reset(readWait)
	select {
	case a := <-answered:
		return c.took(n, a.body, a.err)
	case <-timer.C:
		c.isLate()
		go func() {
			<-answered
			c.mu.Lock()
			c.overdue--
			c.mu.Unlock()
		}()
		return nil
	}
}

// find looks for a file, and notes that it was used.
func (c *Cache) find(n name) (size int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.on || c.overdue == readers {
		return 0, false
	}
	if size, ok = c.recent.lru.Get(n); !ok {
		size, ok = c.scan.lru.Get(n)
	}
	return size, ok
}

// took looks at what a read has come to.
func (c *Cache) took(n name, body []byte, err error) []byte {
	switch {
	case err == nil:
		c.mu.Lock()
		c.late = 0
		c.mu.Unlock()
		return body
	case errors.Is(err, fs.ErrClosed): // it is being opened anew
	case errors.Is(err, fs.ErrNotExist): // evicted since, or somebody deleted it
		c.mu.Lock()
		c.forget(n)
		c.mu.Unlock()
	case errors.Is(err, errCorrupt):
		c.metrics.errors.WithLabelValues(corrupt).Inc()
		c.drop(n)
		c.mu.Lock()
		tell := time.Since(c.told) > offFor
		if tell {
			c.told = time.Now()
		}
		c.mu.Unlock()
		if tell {
			c.log.Warn().Err(err).Str("file", n.path()).Stringer("disk_cache", c.disk).
				Msg("a file of the disk cache is damaged and was removed; what it held is read from the store. If this goes on, look at the disk")
		}
	default:
		c.fault(readError, err)
	}
	return nil
}

// Add has a chunk written to the disk, unless the disk is not done with those
// before. recent says that it is not of a catch-up scan. The bytes are never
// written to, nor may they be.
func (c *Cache) Add(key string, body []byte, recent bool) {
	if c == nil || len(body) == 0 || len(key) > maxKey {
		return
	}
	n := nameOf(key)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.on || c.pending[n] != nil || c.recent.lru.Contains(n) || c.scan.lru.Contains(n) {
		return
	}
	j := &job{name: n, body: body, recent: recent}
	if c.queued+int64(len(body)) > c.queueMax || blocks(int64(len(body)+maxHead)) > c.max/recentShare {
		c.metrics.dropped.Inc()
		return
	}
	j.head = headOf(key, body)
	c.pending[n] = j
	c.queued += int64(len(body))
	c.put(j)
}

// Remove forgets a chunk that turned out to be bad.
func (c *Cache) Remove(key string) {
	if c != nil {
		c.drop(nameOf(key))
	}
}

func (c *Cache) drop(n name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, queued := c.pending[n]
	delete(c.pending, n)
	if c.forget(n) || queued {
		c.put(&job{name: n})
	}
}

// forget is called with mu held.
func (c *Cache) forget(n name) (had bool) {
	for _, r := range [...]*region{c.recent, c.scan} {
		had = r.lru.Remove(n) || had
		r.size.Set(float64(r.bytes))
	}
	return had
}

// put is called with mu held.
func (c *Cache) put(j *job) {
	c.queue = append(c.queue, j)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// isLate notes an answer that did not come in time.
func (c *Cache) isLate() {
	c.mu.Lock()
	c.late++
	c.overdue++
	enough := c.late >= tooSlow || c.overdue == readers
	c.mu.Unlock()
	if enough {
		c.fault(slowError, fmt.Errorf("reads get no answer within %v", readWait))
	}
}

// fault switches the disk off.
func (c *Cache) fault(reason string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.on {
		return
	}
	c.metrics.errors.WithLabelValues(reason).Inc()
	c.metrics.up.Set(0)
	c.on, c.cause = false, err
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run is the writer.
func (c *Cache) run(ctx context.Context) {
	defer close(c.ended)
	defer c.disk.close()
	defer c.end()
	for {
		files, err := c.start(ctx)
		if err == nil {
			if !c.complained {
				c.log.Info().Stringer("disk_cache", c.disk).Int("files", files).Msg("the disk cache is in use")
			}
			err = c.serve(ctx)
		} else {
			c.metrics.errors.WithLabelValues(openError).Inc()
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errGone) {
			continue // somebody deleted the folder: it is made again
		}
		if !c.complained {
			c.log.Error().Err(err).Stringer("disk_cache", c.disk).Dur("tried_every", offFor).
				Msg("the disk cache cannot be used: what it would hold is read from the store; check the disk, and disk_cache.path")
			c.complained = true
		}
		select {
		case <-time.After(offFor):
		case <-ctx.Done():
			return
		}
	}
}

// end is for who asks when the writer is gone.
func (c *Cache) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on = false
	c.clear()
	c.metrics.up.Set(0)
}

// start opens the folder and finds what is in it.
func (c *Cache) start(ctx context.Context) (files int, err error) {
	if err := c.disk.open(); err != nil {
		return 0, err
	}
	var found []file
	if err := c.disk.files(func(f file) error {
		if len(found) == maxFiles {
			return c.disk.remove(f.name)
		}
		found = append(found, f)
		return ctx.Err()
	}); err != nil {
		return 0, gone(err)
	}
	slices.SortFunc(found, func(a, b file) int { return a.written.Compare(b.written) })
	c.mu.Lock()
	c.clear()
	var victims []name
	for _, f := range found {
		victims = append(victims, c.makeRoom(f.size)...)
		c.keep(c.scan, f.name, f.size)
	}
	c.mu.Unlock()
	for _, v := range victims {
		if err := c.disk.remove(v); err != nil {
			return 0, err
		}
	}
	if err := c.disk.try(); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on, c.cause, c.late = true, nil, 0
	c.metrics.up.Set(1)
	return c.recent.lru.Len() + c.scan.lru.Len(), nil
}

// keep is called with mu held, behind makeRoom.
func (c *Cache) keep(r *region, n name, size int64) {
	c.forget(n)
	r.lru.Add(n, size)
	r.bytes += blocks(size)
	r.size.Set(float64(r.bytes))
}

// makeRoom forgets files until another has room, and returns their names. mu is
// held.
func (c *Cache) makeRoom(size int64) (victims []name) {
	for c.recent.bytes+c.scan.bytes+blocks(size) > c.max || c.recent.lru.Len()+c.scan.lru.Len() >= maxFiles {
		r := c.scan
		if c.recent.bytes > c.max/recentShare || c.scan.lru.Len() == 0 {
			r = c.recent
		}
		n, _, ok := r.lru.RemoveOldest()
		if !ok {
			break
		}
		r.size.Set(float64(r.bytes))
		c.metrics.evictions.Inc()
		victims = append(victims, n)
	}
	return victims
}

// serve does what is in the queue, until the disk is switched off or ctx ends.
func (c *Cache) serve(ctx context.Context) error {
	for {
		j, cause := c.next()
		switch {
		case cause != nil:
			return cause
		case j == nil:
			select {
			case <-c.wake:
			case <-ctx.Done():
				return ctx.Err()
			}
		default:
			if err := c.do(j); errors.Is(err, errGone) {
				c.fault(writeError, err)
				return err
			} else if err != nil {
				c.fault(writeError, err)
			}
		}
	}
}

// next takes the first of the queue.
func (c *Cache) next() (*job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.on {
		return nil, c.cause
	}
	if len(c.queue) == 0 {
		return nil, nil
	}
	j := c.queue[0]
	c.queue = c.queue[1:]
	return j, nil
}

func (c *Cache) do(j *job) error {
	if j.body == nil {
		return c.disk.remove(j.name)
	}
	c.mu.Lock()
	var victims []name
	wanted := c.pending[j.name] == j
	if wanted {
		victims = c.makeRoom(j.size())
	}
	c.mu.Unlock()
	var err error
	for _, v := range victims {
		err = errors.Join(err, c.disk.remove(v))
	}
	started := time.Now()
	if wanted && err == nil {
		err = c.disk.write(j.name, j.head, j.body)
	}
	c.mu.Lock()
	c.queued -= int64(len(j.body))
	// Else it was found to be bad meanwhile, and its removal comes next.
	if c.pending[j.name] == j {
		delete(c.pending, j.name)
		if err == nil {
			r := c.scan
			if j.recent {
				r = c.recent
			}
			c.keep(r, j.name, j.size())
		}
	}
	c.mu.Unlock()
	took := time.Since(started)
	switch {
	case err != nil || !wanted:
	case took > writeWait:
		c.fault(slowError, fmt.Errorf("a write took %v", took))
	case c.complained:
		c.complained = false
		c.log.Info().Stringer("disk_cache", c.disk).Msg("the disk cache is in use again")
	}
	return err
}
