package server

import (
	"os"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
)

// NewMemoryGauge shows how limits.memory_bytes is divided.
func NewMemoryGauge(reg prometheus.Registerer, l config.Limits, c config.Compaction) {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_memory_limit_bytes", Help: "Bytes that each part of the memory may take."}, []string{"part"})
	reg.MustRegister(g)
	compaction := int64(0)
	if c.Enabled {
		compaction = c.MemoryBytes
	}
	for part, n := range map[string]int64{
		"compaction": compaction,
		"all":        l.MemoryBytes,
		"request":    l.RequestMemoryBytes,
		"response":   l.ResponseMemoryBytes,
		"write":      l.WriteBufferBytes,
		"cache":      l.CacheBytes,
		"read":       l.ReadBytes(),
	} {
		g.WithLabelValues(part).Set(float64(n))
	}
}

// minGets keep readers of an object or two from standing behind each other,
// however little memory there is.
const minGets = 2

// getsAtATime is limits.get_concurrency, or less when as many chunks would take
// more than the memory for reads, which all stores share.
func getsAtATime(l config.Limits, stores int) int {
	fit := l.ReadBytes() / diskless.ChunkBytes(l.CacheBytes) / int64(max(stores, 1))
	return int(min(int64(l.GetConcurrency), max(fit, minGets)))
}

// softShare of the memory, in sixteenths, is what Go's collector aims to stay
// below; the rest is what it does not count.
const softShare = 15

// LimitMemory has Go's collector work harder before limits.memory_bytes is
// reached. GOMEMLIMIT, where it is set, says better.
func LimitMemory(l config.Limits) {
	if os.Getenv("GOMEMLIMIT") == "" && l.MemoryBytes > 0 {
		debug.SetMemoryLimit(l.MemoryBytes / 16 * softShare)
	}
}
