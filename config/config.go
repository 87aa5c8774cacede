// Package config reads the one file that tells sluice what to do.
//
// Every key is described once, in schema.go: the parser, the defaults, the
// "did you mean", the comparison of two files and the test that holds
// docs/configuration.md against the code all read that table. A file is taken
// as a whole or refused as a whole, with everything that is wrong with it.
package config

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// Config is a checked configuration: plain values, every default filled in.
// It is not changed after it was read.
type Config struct {
	File   string // its name, without the folder
	Kafka  Kafka
	Listen Listen
	Admin  string // host:port of /metrics, /livez and /readyz
	Stores map[string]Store

	// DefaultClass and the class of every rule are keys of Classes. Every
	// diskless class that a rule or the default leads to has its store in
	// Stores; one that nothing leads to may not.
	DefaultClass string
	Rules        []router.Rule
	Classes      map[string]tiers.Class

	GC           GC
	Retention    Retention
	Quotas       Quotas
	Placeholders Placeholders
	Audit        Audit
	Compaction   Compaction
	DiskCache    DiskCache
	Limits       Limits
	Log          Log
}

// Router is the routing that the file describes.
func (c *Config) Router() (*router.Router, error) {
	return router.New(c.Rules, c.Classes, c.DefaultClass)
}

// Kafka is how sluice itself reaches the user's cluster: to dial brokers for
// its clients, and for its own background client.
type Kafka struct {
	Bootstrap []string // host:port, at least one
	TLS       KafkaTLS
	SASL      SASL
}

// KafkaTLS is for connections to the brokers.
type KafkaTLS struct {
	Enabled            bool
	CA                 string // PEM file; "" trusts what the system trusts
	Cert, Key          string // PEM files of a client certificate; both or none
	ServerName         string // "" is the host that is dialed
	InsecureSkipVerify bool
}

// SASL is the background client's own login; clients' logins are relayed.
type SASL struct {
	Mechanism string // "", PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
	Username  string
	Password  string // from password, or read from password_file
}

// Listen is where clients connect, and what they are told.
type Listen struct {
	Bootstrap string    // host:port
	Brokers   PortRange // two ports for each id of NodeIDs
	Advertise string    // host, the same for all replicas
	NodeIDs   NodeIDs
	TLS       ListenTLS
}

// ListenTLS is for connections from clients; off when both are empty.
type ListenTLS struct {
	Cert, Key string // PEM files
}

// Enabled reports whether clients are to speak TLS.
func (t ListenTLS) Enabled() bool { return t.Cert != "" }

// Ports returns the ports at which a broker's two faces listen: the real one,
// and the diskless one right above it. ok is false for an id outside NodeIDs.
func (l Listen) Ports(id int32) (broker, diskless int, ok bool) {
	i, ok := l.NodeIDs.Position(id)
	if !ok {
		return 0, 0, false
	}
	return l.Brokers.First + 2*i, l.Brokers.First + 2*i + 1, true
}

// PortRange is consecutive ports of one host, both ends included.
type PortRange struct {
	Host        string // "" is every address
	First, Last int
}

// Len is the number of ports.
func (r PortRange) Len() int { return r.Last - r.First + 1 }

func (r PortRange) String() string {
	if r == (PortRange{}) {
		return ""
	}
	return net.JoinHostPort(r.Host, strconv.Itoa(r.First)) + "-" + strconv.Itoa(r.Last)
}

// Store is one object store.
type Store struct {
	Name   string // key of Stores
	URL    string // as written; it holds no secrets
	Scheme string // "s3" or "file"
	Bucket string // s3
	Prefix string // s3: without slashes at either end; "" is the bucket's root
	Dir    string // file: absolute

	// The rest is for s3. Empty credentials mean the usual AWS sources:
	// environment, shared files, instance or pod role.
	Endpoint  string // "" is AWS itself; else http:// or https:// and host[:port]
	Region    string // "" lets the environment say, else us-east-1
	AccessKey string
	SecretKey string
	PathStyle bool // bucket in the path, not in the host name

	// Lock is "" when the file does not say, or one of the Lock constants. With
	// LockGovernance or LockCompliance, LockRetention is how long audit objects are
	// locked from their being written on.
	Lock          string
	LockRetention time.Duration
}

// How a store locks audit objects.
const (
	LockNone       = "none"
	LockGovernance = "governance"
	LockCompliance = "compliance"
)

var lockModes = []string{LockNone, LockGovernance, LockCompliance}

// Locks reports whether audit objects are locked.
func (s Store) Locks() bool { return s.Lock == LockGovernance || s.Lock == LockCompliance }

// Audit is how the logs of audit classes' topics are archived.
type Audit struct {
	Archive        bool
	Every          time.Duration // between passes over all partitions
	ObjectSize     int64         // bytes of batches at which an archive object is written
	BytesPerSecond int64         // what a replica reads and writes for the archive
}

// Placeholders is how logs are looked into for placeholders, for the metrics.
type Placeholders struct {
	Watch            bool
	Every            time.Duration
	FetchesPerSecond int
}

// Compaction is how WAL objects become segments.
type Compaction struct {
	Enabled           bool          // in every replica; sluice compact does it all the same
	Window            time.Duration // of time that is compacted as one
	Merge             time.Duration // of time whose windows are merged; 0 is never
	MinAge            time.Duration // since the end of a window; what is older is read from segments
	MemoryBytes       int64
	SegmentBytes      int64
	BytesPerSecond    int64 // read and written together, per store; 0 is no limit
	RequestsPerSecond int   // per store
}

// DiskCache is on a local disk, below the cache in memory.
type DiskCache struct {
	Path  string // of a folder, absolute; "" is no such cache
	Bytes int64
}

// GC is how objects are deleted to which nothing refers any more.
type GC struct {
	Enabled          bool
	Every            time.Duration // between passes
	MinAge           time.Duration // of an object, by the store's clock
	Margin           time.Duration // from an object's time to when its placeholder is in a log or never will be
	Grace            time.Duration // for which nothing has referred to it
	DeletesPerSecond int           // per store
}

// Retention is how retention.bytes is made to mean original bytes.
type Retention struct {
	Enabled        bool
	Every          time.Duration // between passes over all logs that have a limit
	BytesPerSecond int64         // read from brokers by a replica
}

// Quotas is what sluice does about the byte rates that Kafka grants: it applies
// them to original bytes.
type Quotas struct {
	Enabled bool
	Refresh time.Duration // between reads of them
}

// Limits bounds everything that clients, brokers or stores could make grow.
// None is zero but, on demand, the two InlineBytes.
type Limits struct {
	MemoryBytes         int64         // what the process is to stay within; the next five are shares of it unless they are set
	Connections         int           // client connections, all listeners together
	ConnectionsPerIP    int           // the same from one address
	FrameBytes          int64         // one request or answer
	RequestMemoryBytes  int64         // requests in memory, all connections together
	ResponseMemoryBytes int64         // answers in memory, all connections together
	RequestsInFlight    int           // per connection; more are not read
	FirstRequestTimeout time.Duration // from connecting to the first byte of a request
	FrameTimeout        time.Duration // from a frame's first byte to its last
	IdleTimeout         time.Duration // between requests
	WriteTimeout        time.Duration // for a client to take any byte of an answer
	StallTimeout        time.Duration // the same, and for the rest of a frame, while others wait for memory
	BrokerWriteTimeout  time.Duration // for a broker to take any byte of a request
	DialTimeout         time.Duration // to connect to a broker
	DialsPerBroker      int           // connections to one broker that are being made for clients
	DialQueue           int           // clients that wait for their turn to be connected to one broker
	DrainTimeout        time.Duration // for what a client, or this process, leaves behind

	FetchBytes     int64         // one Fetch answer after hydration
	HydrateTimeout time.Duration // to read the objects of one Fetch answer
	CacheBytes     int64         // objects in memory, for readers
	GetConcurrency int           // GETs at a time, per store
	BulkCPUs       int           // that move bytes of diskless answers at a time; 0 is all but one

	WriteBufferBytes     int64         // batches that wait for their object
	RetryBatches         int           // of idempotent producers, remembered where they are stored; 0 is none
	PutsPerSecond        int           // objects written before their linger ends; 0 is none
	PutConcurrency       int           // PUTs at a time, per store
	PutTimeout           time.Duration // to make an object durable, before its batches go inline
	InlineBytesPerSecond int64         // what an object store's outage may add to the brokers
	InlineBytesTotal     int64         // the same, for one whole outage
}

// Log is how sluice logs.
type Log struct {
	Level  string // debug, info, warn or error
	Format string // json or console
}

// MaxNodeID bounds real node ids: a diskless broker's id is the real one plus
// this, and must not meet another real one.
const MaxNodeID = 1 << 20

// NodeIDs is a list of ranges that do not overlap, in the order written: an
// id's position in it decides its ports.
type NodeIDs []NodeIDRange

// NodeIDRange is node ids from First to Last, both included.
type NodeIDRange struct{ First, Last int32 }

// Len is the number of ids.
func (n NodeIDs) Len() int {
	total := 0
	for _, r := range n {
		total += int(r.Last-r.First) + 1
	}
	return total
}

// Position returns how many ids stand before this one.
func (n NodeIDs) Position(id int32) (int, bool) {
	before := 0
	for _, r := range n {
		if id >= r.First && id <= r.Last {
			return before + int(id-r.First), true
		}
		before += int(r.Last-r.First) + 1
	}
	return 0, false
}

// All calls yield with every id in order of position.
func (n NodeIDs) All(yield func(position int, id int32) bool) {
	position := 0
	for _, r := range n {
		for id := r.First; id <= r.Last; id++ {
			if !yield(position, id) {
				return
			}
			position++
		}
	}
}

func (n NodeIDs) String() string {
	s := ""
	for i, r := range n {
		if i > 0 {
			s += ","
		}
		s += fmt.Sprint(r.First)
		if r.Last > r.First {
			s += fmt.Sprint("-", r.Last)
		}
	}
	return s
}
