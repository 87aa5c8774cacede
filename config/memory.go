package config

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// Shares of limits.memory_bytes, in sixteenths. What they leave is for objects
// that grow while they are filled, connections, the retry memory, and the
// collector.
const (
	shares        = 16
	requestShare  = 2
	responseShare = 4
	writeShare    = 1
	cacheShare    = 2
	readShare     = 1 // GETs under way; it has no key
	compactShare  = 1
)

const (
	// maxDefaultFrame is the brokers' default of socket.request.max.bytes.
	maxDefaultFrame = 100 << 20
	// frameShare of a memory is the most that one frame may take: the rest is
	// kept for small frames, for what is hydrated, and for connections that have
	// not logged in.
	frameShare = 2
	// minWriteBuffer takes an object of any built-in class.
	minWriteBuffer = 16 << 20
	// minCache is the least that limits.cache_bytes may be.
	minCache = 16 << 20
	// growth is what an object takes while it is filled: it doubles, or begins as
	// large as the last one.
	growth = 2
)

// ReadBytes is what GETs under way may take.
func (l Limits) ReadBytes() int64 { return l.MemoryBytes / shares * readShare }

// HeldBytes is the most that all budgets together can hold, without compaction.
func (l Limits) HeldBytes() int64 {
	return l.RequestMemoryBytes + l.ResponseMemoryBytes + growth*l.WriteBufferBytes + l.CacheBytes + l.ReadBytes()
}

// share gives what is not set its share of the memory.
func (l *Limits) share(set func(path string) bool) {
	if l.MemoryBytes == 0 {
		l.MemoryBytes = availableMemory()
	}
	one := l.MemoryBytes / shares
	for path, d := range map[string]struct {
		into  *int64
		bytes int64
	}{
		"limits.request_memory_bytes":  {&l.RequestMemoryBytes, requestShare * one},
		"limits.response_memory_bytes": {&l.ResponseMemoryBytes, responseShare * one},
		"limits.write_buffer_bytes":    {&l.WriteBufferBytes, max(writeShare*one, minWriteBuffer)},
		"limits.cache_bytes":           {&l.CacheBytes, max(cacheShare*one, minCache)},
	} {
		if !set(path) {
			*d.into = d.bytes
		}
	}
	if !set("limits.frame_bytes") {
		l.FrameBytes = min(maxDefaultFrame, l.RequestMemoryBytes/frameShare, l.ResponseMemoryBytes/frameShare)
	}
}

// memory looks at limits that make each other pointless, or that are more than
// there is.
func (p *parser) memory() {
	l := &p.cfg.Limits
	l.share(p.has)
	parts := []struct {
		path  string
		bytes int64
	}{
		{"limits.request_memory_bytes", l.RequestMemoryBytes},
		{"limits.response_memory_bytes", l.ResponseMemoryBytes},
		{"limits.write_buffer_bytes", l.WriteBufferBytes},
		{"limits.cache_bytes", l.CacheBytes},
	}
	for _, memory := range parts[:2] {
		if memory.bytes >= frameShare*l.FrameBytes {
			continue
		}
		at := memory.path
		if !p.has(at) {
			at = "limits.frame_bytes"
		}
		p.problem(at, memory.path+" is less than two frames of limits.frame_bytes", "half of it is the most that one frame may take: raise the first or lower the second")
	}
	held := l.HeldBytes()
	if c := &p.cfg.Compaction; c.Enabled {
		held += c.MemoryBytes
		parts = append(parts, struct {
			path  string
			bytes int64
		}{"compaction.memory_bytes", c.MemoryBytes})
	}
	if held <= l.MemoryBytes {
		return
	}
	for _, part := range parts {
		if p.has(part.path) {
			p.problem(part.path, fmt.Sprintf("the limits allow %s, and limits.memory_bytes is %s", humanize.IBytes(uint64(held)), humanize.IBytes(uint64(l.MemoryBytes))),
				"lower it or raise limits.memory_bytes: request_memory_bytes, response_memory_bytes, cache_bytes, twice write_buffer_bytes, compaction.memory_bytes and a sixteenth for reads have to fit; by default each is a share")
			return
		}
	}
}

// objectsAtOnce have to fit into compaction's memory, or it can do nothing.
const objectsAtOnce = 2

// compaction fills in what it may take, and looks whether it can work with that.
func (p *parser) compaction() {
	p.cfg.Limits.share(p.has)
	c := &p.cfg.Compaction
	largest, class := int64(0), ""
	for _, name := range append([]string{p.cfg.DefaultClass}, ruleClasses(p.cfg.Rules)...) {
		if used, ok := p.cfg.Classes[name]; ok && used.Tier == tiers.Diskless && !used.Audit && used.ObjectSize > largest {
			largest, class = used.ObjectSize, name
		}
	}
	if !p.has("compaction.memory_bytes") {
		c.MemoryBytes = max(p.cfg.Limits.MemoryBytes/shares*compactShare, objectsAtOnce*largest)
	}
	if c.Enabled && c.MemoryBytes < objectsAtOnce*largest {
		p.problem("compaction.memory_bytes", fmt.Sprintf("compaction.memory_bytes is less than %d objects of the class %s", objectsAtOnce, class), "raise it to some times its object_size, or lower that, or write compaction.enabled: false")
	}
}

func ruleClasses(rules []router.Rule) (names []string) {
	for _, r := range rules {
		names = append(names, r.Class)
	}
	return names
}

const (
	// machineShare of a machine's memory, one in so many bytes, is ours when
	// nothing says how much is: other processes live there too.
	machineShare = 2
	// unknownMemory is for systems that do not tell.
	unknownMemory = 2 << 30
)

// availableMemory is what this process may take: GOMEMLIMIT where it is set,
// else the limit of its cgroup, else a share of the machine's memory.
func availableMemory() int64 {
	n := memoryOf(os.DirFS("/"))
	if v := os.Getenv("GOMEMLIMIT"); v != "" && v != "off" {
		n = debug.SetMemoryLimit(-1)
	}
	return max(n, minMemory)
}

// minMemory is the least that limits.memory_bytes may be.
const minMemory = 128 << 20

func memoryOf(root fs.FS) int64 {
	machine := machineMemory(root)
	limit := cgroupLimit(root)
	switch {
	case limit > 0 && (machine == 0 || limit < machine):
		return limit
	case machine > 0:
		return machine / machineShare
	}
	return unknownMemory
}

func machineMemory(root fs.FS) int64 {
	info, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(info) {
		if fields := strings.Fields(string(line)); len(fields) == 3 && fields[0] == "MemTotal:" {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// cgroupLimit is the least limit of the process's cgroup and of those around
// it, 0 when there is none. Inside a container its path may not be there: then
// the root is the container's own.
func cgroupLimit(root fs.FS) (least int64) {
	file, err := root.Open("proc/self/cgroup")
	if err != nil {
		return 0
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// hierarchy:controllers:path
		fields := strings.SplitN(lines.Text(), ":", 3)
		if len(fields) != 3 {
			continue
		}
		var mount, name string
		switch {
		case fields[0] == "0" && fields[1] == "":
			mount, name = "sys/fs/cgroup", "memory.max"
		case strings.Contains(","+fields[1]+",", ",memory,"):
			mount, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for dir := path.Clean("/" + fields[2]); ; dir = path.Dir(dir) {
			text, err := fs.ReadFile(root, path.Join(mount, dir, name))
			// "max" is no number, and means that there is none.
			if n, bad := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && bad == nil {
				least = min(cmp.Or(least, n), n)
			}
			if dir == "/" {
				break
			}
		}
	}
	return least
}
