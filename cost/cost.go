// Package cost reckons what a month of Kafka costs: plain, with consumers that
// fetch in their zone (KIP-392), with tiered storage (KIP-405), and with sluice
// in front. It is arithmetic over prices and assumptions, all of which can be
// seen and changed; it asks nobody anything.
package cost

import (
	"fmt"
	"math"

	"github.com/dustin/go-humanize"

	"github.com/sluice-kafka/sluice/tiers"
)

// Item is a line of a bill.
type Item int

const (
	Disks Item = iota
	ProduceTraffic
	ReplicationTraffic
	ConsumeTraffic
	SluiceTraffic
	Objects
	Puts
	Gets
	Lists
	Transfer
	Balancer
	Brokers
	Replicas
	items
)

var itemNames = [items]struct{ key, name, unit string }{
	Disks:              {"disks", "disks", "GB"},
	ProduceTraffic:     {"cross_zone_produce", "between zones: producers to brokers", "GB"},
	ReplicationTraffic: {"cross_zone_replication", "between zones: replication", "GB"},
	ConsumeTraffic:     {"cross_zone_consume", "between zones: brokers to consumers", "GB"},
	SluiceTraffic:      {"cross_zone_sluice", "between zones: clients and sluice", "GB"},
	Objects:            {"objects", "objects", "GB"},
	Puts:               {"puts", "PUT requests", "requests"},
	Gets:               {"gets", "GET requests", "requests"},
	Lists:              {"lists", "LIST requests", "requests"},
	Transfer:           {"object_transfer", "into and out of the store", "GB"},
	Balancer:           {"balancer", "balancer before sluice", "GB"},
	Brokers:            {"brokers", "brokers' machines", "machines"},
	Replicas:           {"sluice", "sluice's machines", "machines"},
}

// Name is for people, Key for machines; Unit is that of the quantity.
func (i Item) Name() string { return itemNames[i].name }
func (i Item) Key() string  { return itemNames[i].key }
func (i Item) Unit() string { return itemNames[i].unit }

// Amount is how much of something, and its price for a month.
type Amount struct{ Quantity, Month float64 }

// Bill is a month's.
type Bill [items]Amount

// Items are all lines in order.
func Items() []Item {
	all := make([]Item, items)
	for i := range all {
		all[i] = Item(i)
	}
	return all
}

// Total is for a month.
func (b Bill) Total() (sum float64) {
	for _, a := range b {
		sum += a.Month
	}
	return sum
}

func (b *Bill) add(i Item, quantity, price float64) {
	b[i].Quantity += quantity
	b[i].Month += quantity * price
}

// Plus adds two bills.
func (b Bill) Plus(o Bill) Bill {
	for i := range b {
		b[i].Quantity += o[i].Quantity
		b[i].Month += o[i].Month
	}
	return b
}

// Setup is one way of running the workload.
type Setup struct {
	Key, Name string
	Bill      Bill
}

// Model is what is reckoned with.
type Model struct {
	Assumptions
	Prices  Prices
	Classes map[string]tiers.Class // those of the mix, at least
}

// Stream is data with the same treatment. Bytes are as they are sent and
// stored, after compression.
type Stream struct {
	Bytes       float64 // a second
	Batches     float64 // a second
	Records     float64 // a second
	Retention   float64 // seconds
	FanOut      float64
	Replication float64
}

// Plus is two streams as one, with what their bytes have on average.
func (s Stream) Plus(o Stream) Stream {
	sum := Stream{Bytes: s.Bytes + o.Bytes, Batches: s.Batches + o.Batches, Records: s.Records + o.Records}
	if sum.Bytes == 0 {
		return sum
	}
	mean := func(a, b float64) float64 { return (a*s.Bytes + b*o.Bytes) / sum.Bytes }
	sum.Retention, sum.FanOut, sum.Replication = mean(s.Retention, o.Retention), mean(s.FanOut, o.FanOut), mean(s.Replication, o.Replication)
	return sum
}

// stream is a share of the workload.
func (m *Model) stream(part float64) Stream {
	bytes := m.Throughput / m.Compression * part
	// A batch holds one record at least, however large that is.
	batch := max(m.BatchSize, m.RecordSize/m.Compression)
	return Stream{
		Bytes: bytes, Batches: bytes / batch, Records: m.Throughput / m.RecordSize * part,
		Retention: m.Retention, FanOut: m.FanOut, Replication: m.Replication,
	}
}

func (m *Model) month() float64 { return m.DaysPerMonth * day }

func (m *Model) crossing() float64 { return m.Prices.CrossZoneIn + m.Prices.CrossZoneOut }

// elsewhere is the share of peers, spread evenly, that are in another zone.
func (m *Model) elsewhere() float64 { return (m.Zones - 1) / m.Zones }

// foreign is how many of a partition's followers are in another zone than its
// leader, when its replicas are spread evenly and each is as likely to lead.
func (m *Model) foreign(replication float64) float64 {
	each, over := math.Floor(replication/m.Zones), math.Mod(replication, m.Zones)
	same := (over*(each+1)*(each+1) + (m.Zones-over)*each*each) / replication
	return replication - same
}

// brokerage is the bill of a stream that is in Kafka, but for machines.
func (m *Model) brokerage(s Stream, onDisk float64, followerFetch bool) (b Bill) {
	gb := s.Bytes * m.month() / gib
	b.add(Disks, s.Bytes*s.Replication*onDisk/m.DiskFill/gib, m.Prices.DiskGBMonth)
	b.add(ProduceTraffic, gb*m.elsewhere(), m.crossing())
	b.add(ReplicationTraffic, gb*m.foreign(s.Replication), m.crossing())
	elsewhere := m.elsewhere()
	if followerFetch {
		elsewhere = max(0, m.Zones-s.Replication) / m.Zones
	}
	b.add(ConsumeTraffic, gb*s.FanOut*elsewhere, m.crossing())
	return b
}

// Kafka is the bill of a stream, but for machines, when consumers fetch from
// leaders or in their zone (KIP-392).
func (m *Model) Kafka(s Stream, followerFetch bool) Bill {
	return m.brokerage(s, s.Retention, followerFetch)
}

// tiered is the same when followers are fetched from and all but the newest is
// in objects only.
func (m *Model) tiered(s Stream) Bill {
	b := m.brokerage(s, min(s.Retention, m.LocalRetention), true)
	if s.Retention <= m.LocalRetention {
		return b
	}
	// A segment is copied when it is full, and deleted there with its records.
	read := s.Bytes * s.FanOut * m.CatchUp * m.month()
	b.add(Objects, s.Bytes*s.Retention/gib, m.Prices.ObjectGBMonth)
	b.add(Puts, s.Bytes*m.month()/m.TieredPart, m.Prices.Put/1e6)
	b.add(Gets, read/m.TieredChunk, m.Prices.Get/1e6)
	b.add(Transfer, s.Bytes*m.month()/gib, m.Prices.UploadGB)
	b.add(Transfer, read/gib, m.Prices.RetrievalGB)
	return b
}

// placeholders is what a stream leaves in Kafka.
func (m *Model) placeholders(s Stream) Stream {
	s.Bytes = s.Batches*m.PlaceholderBytes + s.Records*m.PlaceholderRecord
	return s
}

// Inline reports whether the stream's batches are too small for placeholders,
// so that sluice leaves them in Kafka.
func (m *Model) Inline(s Stream) bool {
	return s.Bytes < m.InlineBelow*m.placeholders(s).Bytes
}

// Diskless is the bill of a stream whose payloads are in objects, but for
// requests and machines, which streams share.
func (m *Model) Diskless(s Stream) Bill {
	left := m.placeholders(s)
	b := m.brokerage(left, s.Retention, false)
	b.add(Objects, s.Bytes*(s.Retention+m.ObjectsOutlive)/gib, m.Prices.ObjectGBMonth)
	b.add(Transfer, s.Bytes*m.month()/gib, m.Prices.UploadGB)
	return b
}

// Requests is the bill for objects of a class: for all of its streams together,
// when replicas of sluice share them evenly. Early seals are not in it.
func (m *Model) Requests(class tiers.Class, s Stream, replicas float64) (b Bill) {
	if s.Bytes == 0 {
		return b
	}
	full := s.Bytes / replicas / float64(class.ObjectSize)
	// The first batch of an object starts its linger.
	late := min(1/class.Linger.Seconds(), s.Batches/replicas)
	m.objects(&b, s, max(full, late)*replicas, math.Ceil(float64(class.ObjectSize)/m.GetBytes), replicas)
	// What a replica has written it has in memory; the others read it once.
	b.add(Transfer, m.readBack(s, replicas)*m.month()/gib, m.Prices.RetrievalGB)
	return b
}

// Early is the bill for objects that are sealed before they are full or late:
// a replica's budget is for all of its classes.
func (m *Model) Early(s Stream, replicas float64) (b Bill) {
	if s.Bytes > 0 {
		m.objects(&b, s, min(m.EarlyPuts, s.Batches/replicas)*replicas, 1, replicas)
	}
	return b
}

// objects adds so many objects a second, each with its reads.
func (m *Model) objects(b *Bill, s Stream, perSecond, gets, replicas float64) {
	b.add(Puts, perSecond*m.month(), m.Prices.Put/1e6)
	b.add(Gets, perSecond*m.month()*gets*m.readers(s, replicas), m.Prices.Get/1e6)
	b.add(Lists, perSecond*(s.Retention+m.ObjectsOutlive)/1000*m.ListsPerDay*m.DaysPerMonth, m.Prices.List/1e6)
}

// readers is how often an object is read: at the tail once by each replica that
// has not written it, and for those who catch up by every replica.
func (m *Model) readers(s Stream, replicas float64) float64 {
	if s.FanOut == 0 {
		return 0
	}
	return replicas - 1 + s.FanOut*m.CatchUp*replicas
}

// readBack is bytes a second from the store.
func (m *Model) readBack(s Stream, replicas float64) float64 { return s.Bytes * m.readers(s, replicas) }

// requests is Produces and Fetches of clients a second.
func (m *Model) requests(streams ...Stream) (sum float64) {
	if m.Assumptions.Requests > 0 {
		return m.Assumptions.Requests
	}
	for _, s := range streams {
		sum += s.Batches * (1 + s.FanOut)
	}
	return sum
}

// brokers adds the machines that carry so much to a bill that has the disks.
func (m *Model) brokers(b *Bill, bytes, upload float64) {
	in, out := bytes*m.Replication, bytes*(m.Replication-1+m.FanOut)+upload
	n := math.Ceil(max(
		m.Replication, m.Zones,
		max(in, out)/(m.BrokerNetwork*m.MachineFill),
		m.requests(m.stream(1))/(m.BrokerRequests*m.MachineFill),
		m.Partitions*m.Replication/m.BrokerPartitions,
		b[Disks].Quantity*gib/m.BrokerDisk,
	))
	b.add(Brokers, n, m.Prices.BrokerHour*24*m.DaysPerMonth)
	if more := in/m.DiskFill - n*m.DiskIncluded; more > 0 {
		b[Disks].Month += more / mib * m.Prices.DiskMiBPerSecondMonth
	}
}

// ReplicasFor is how many replicas of sluice carry a low-latency and a diskless
// stream; the error says what to change when none do.
func (m *Model) ReplicasFor(relayed, offloaded Stream) (float64, error) {
	least := max(m.Zones, 2)
	if m.Replicas > 0 {
		least = m.Replicas
	}
	in, out := relayed.Bytes*(1+relayed.FanOut), offloaded.Bytes*(1+offloaded.FanOut)
	cores := (in*m.SluiceCPURelay+out*m.SluiceCPUDiskless)/gib + m.requests(relayed, offloaded)*m.SluiceCPURequest
	capacity := m.SluiceNetwork * m.MachineFill
	// Out go batches to brokers and to the store, and what consumers get.
	n := max(least, math.Ceil(cores/(m.SluiceCores*m.MachineFill)), math.Ceil((in+out)/capacity))
	// In come clients' batches, what brokers give consumers, and what is read
	// from the store; that grows with every replica.
	perReplica := m.readBack(offloaded, 2) - m.readBack(offloaded, 1)
	fixed := in + offloaded.Bytes + m.readBack(offloaded, 1) - perReplica
	if fixed+perReplica*n > capacity*n {
		if perReplica >= capacity {
			return 0, fmt.Errorf("a replica of sluice would read %s/s of objects, and its machine carries %s/s: reckon with larger ones (--assume sluice_network=, and sluice_hour in --prices)",
				humanize.IBytes(uint64(perReplica)), humanize.IBytes(uint64(capacity)))
		}
		n = math.Ceil(fixed / (capacity - perReplica))
	}
	if m.Replicas > 0 && n > m.Replicas {
		return 0, fmt.Errorf("%.0f replicas of sluice do not carry this load: it takes %.0f (or change --assume sluice_network=, sluice_cores=, machine_fill=)", m.Replicas, n)
	}
	return n, nil
}

// ReplicaMonth is what one replica's machine costs.
func (m *Model) ReplicaMonth() float64 { return m.Prices.SluiceHour * 24 * m.DaysPerMonth }

// Estimate prices all setups, plain Kafka first and sluice last.
func (m *Model) Estimate() ([]Setup, error) {
	if err := checkMix(m.Mix); err != nil {
		return nil, err
	}
	all := m.stream(1)
	plain := m.Kafka(all, false)
	m.brokers(&plain, all.Bytes, 0)
	near := m.Kafka(all, true)
	m.brokers(&near, all.Bytes, 0)
	tiered := m.tiered(all)
	upload := 0.0
	if m.Retention > m.LocalRetention {
		upload = all.Bytes
	}
	m.brokers(&tiered, all.Bytes, upload)
	sluice, err := m.sluice()
	if err != nil {
		return nil, err
	}
	return []Setup{
		{"kafka", "Kafka", plain},
		{"follower_fetch", "+ follower fetch", near},
		{"tiered_storage", "+ tiered storage", tiered},
		{"sluice", "sluice", sluice},
	}, nil
}

// Offloaded is the share of the workload whose payloads go to objects.
func (m *Model) Offloaded() (part float64) {
	for name, share := range m.Mix {
		if m.Classes[name].Tier == tiers.Diskless && !m.Inline(m.stream(1)) {
			part += share
		}
	}
	return part
}

func (m *Model) sluice() (Bill, error) {
	for _, name := range sorted(m.Mix) {
		if _, ok := m.Classes[name]; !ok {
			return Bill{}, fmt.Errorf("mix: there is no class %q; there are %v", clip(name), sorted(m.Classes))
		}
	}
	off := m.Offloaded()
	relayed, offloaded := m.stream(max(0, 1-off)), m.stream(off)
	n, err := m.ReplicasFor(relayed, offloaded)
	if err != nil {
		return Bill{}, err
	}
	b := m.Kafka(relayed, m.FollowerFetch > 0).Plus(m.Diskless(offloaded)).Plus(m.Early(offloaded, n))
	if off > 0 {
		for _, name := range sorted(m.Mix) {
			if class := m.Classes[name]; class.Tier == tiers.Diskless {
				b = b.Plus(m.Requests(class, m.stream(m.Mix[name]), n))
			}
		}
	}
	all := m.stream(1)
	clients := all.Bytes * (1 + m.FanOut) * m.month() / gib
	b.add(SluiceTraffic, clients*m.ClientsElsewhere*m.elsewhere(), m.crossing())
	b.add(Balancer, clients, m.Prices.BalancerGB)
	m.brokers(&b, relayed.Bytes+m.placeholders(offloaded).Bytes, 0)
	b.add(Replicas, n, m.ReplicaMonth())
	return b, nil
}

// TiB written in a month, after compression.
func (m *Model) TiB() float64 { return m.stream(1).Bytes * m.month() / tib }
