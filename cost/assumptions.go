package cost

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Assumptions is a workload, and what is supposed about everything else. Sizes
// are bytes, times seconds, shares 0 to 1.
type Assumptions struct {
	Mix map[string]float64 // share of the throughput by class

	Throughput, RecordSize, Compression, BatchSize float64
	Retention, FanOut, CatchUp                     float64
	Requests, Partitions                           float64
	Zones, Replication, Replicas                   float64

	DaysPerMonth, MachineFill                                          float64
	DiskFill, DiskIncluded                                             float64
	BrokerNetwork, BrokerRequests, BrokerPartitions, BrokerDisk        float64
	LocalRetention, TieredPart, TieredChunk                            float64
	SluiceNetwork, SluiceCores, SluiceCPURelay                         float64
	SluiceCPUDiskless, SluiceCPURequest                                float64
	EarlyPuts, GetBytes, ListsPerDay, ObjectsOutlive                   float64
	PlaceholderBytes, PlaceholderRecord, InlineBelow, ClientsElsewhere float64
	FollowerFetch                                                      float64
}

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
	day = 24 * 3600
)

// Defaults are a workload of some size, and assumptions that rather flatter the
// alternatives than sluice.
func Defaults() Assumptions {
	return Assumptions{
		Mix:        map[string]float64{"telemetry": 0.9, "control": 0.1},
		Throughput: 100 * mib, RecordSize: kib, Compression: 1, BatchSize: 64 * kib,
		Retention: 7 * day, FanOut: 3, CatchUp: 0.05,
		Partitions: 1000,
		Zones:      3, Replication: 3,

		DaysPerMonth: 30, MachineFill: 0.6,
		DiskFill: 0.6, DiskIncluded: 125 * mib,
		BrokerNetwork: 447 * mib, BrokerRequests: 40_000, BrokerPartitions: 4000, BrokerDisk: 64 * tib,
		LocalRetention: 6 * 3600, TieredPart: 25 * mib, TieredChunk: 4 * mib,
		SluiceNetwork: 447 * mib, SluiceCores: 8, SluiceCPURelay: 1, SluiceCPUDiskless: 2.5, SluiceCPURequest: 100e-6,
		EarlyPuts: 10, GetBytes: 16 * mib, ListsPerDay: 1, ObjectsOutlive: day,
		PlaceholderBytes: 140, PlaceholderRecord: 8, InlineBelow: 4,
		FollowerFetch: 1,
	}
}

const mixKey = "mix"

// Keys are all numbers of the model, the workload's first, in the order in
// which they are shown. The mix is none of them.
func Keys() []Key {
	work := func(name string, k kind, least float64, field func(*Assumptions) *float64, doc string) Key {
		return Key{Name: name, Workload: true, Doc: doc, kind: k, min: least, field: field}
	}
	suppose := func(name string, k kind, least float64, field func(*Assumptions) *float64, doc string) Key {
		return Key{Name: name, Doc: doc, kind: k, min: least, field: field}
	}
	const some = 1e-9
	return []Key{
		work("throughput", rate, 1, func(a *Assumptions) *float64 { return &a.Throughput }, "bytes that are produced in a second, before compression"),
		work("record_size", size, 1, func(a *Assumptions) *float64 { return &a.RecordSize }, "a record, before compression"),
		work("compression", number, 1, func(a *Assumptions) *float64 { return &a.Compression }, "by how much clients' compression makes batches smaller; 1 is not at all"),
		work("batch_size", size, 70, func(a *Assumptions) *float64 { return &a.BatchSize }, "a producer's batch as it is sent; Java's default is at most 16KiB"),
		work("retention", duration, 1, func(a *Assumptions) *float64 { return &a.Retention }, "how long records are kept"),
		work("fan_out", number, 0, func(a *Assumptions) *float64 { return &a.FanOut }, "how often each record is consumed"),
		work("catch_up", share, 0, func(a *Assumptions) *float64 { return &a.CatchUp }, "share of consuming that is not at the tail, but read from disks or objects"),
		work("requests", number, 0, func(a *Assumptions) *float64 { return &a.Requests }, "Produce and Fetch requests of clients in a second; 0 is one for each batch produced and consumed"),
		work("partitions", count, 1, func(a *Assumptions) *float64 { return &a.Partitions }, "of all topics, before replication"),
		work("zones", count, 1, func(a *Assumptions) *float64 { return &a.Zones }, "availability zones; brokers and clients are spread evenly over them"),
		work("replication", count, 1, func(a *Assumptions) *float64 { return &a.Replication }, "replication factor"),
		work("replicas", count, 0, func(a *Assumptions) *float64 { return &a.Replicas }, "of sluice; 0 is one for each zone, two at least, and as many as the load needs"),

		suppose("days_per_month", number, some, func(a *Assumptions) *float64 { return &a.DaysPerMonth }, "of 24 hours, for everything that is paid by time"),
		suppose("machine_fill", share, 0.01, func(a *Assumptions) *float64 { return &a.MachineFill }, "how far a machine is loaded before another is bought; brokers and sluice alike"),
		suppose("disk_fill", share, 0.01, func(a *Assumptions) *float64 { return &a.DiskFill }, "how full disks are"),
		suppose("disk_included", rate, 0, func(a *Assumptions) *float64 { return &a.DiskIncluded }, "what a broker's disk writes in a second without being paid for"),
		suppose("broker_network", rate, 1, func(a *Assumptions) *float64 { return &a.BrokerNetwork }, "of a broker's machine, in each direction: 3.75 Gbit/s"),
		suppose("broker_requests", number, 1, func(a *Assumptions) *float64 { return &a.BrokerRequests }, "requests in a second that a whole broker answers"),
		suppose("broker_partitions", count, 1, func(a *Assumptions) *float64 { return &a.BrokerPartitions }, "replicas of partitions on a broker at most"),
		suppose("broker_disk", size, 1, func(a *Assumptions) *float64 { return &a.BrokerDisk }, "disk of a broker at most"),
		suppose("local_retention", duration, 1, func(a *Assumptions) *float64 { return &a.LocalRetention }, "tiered storage: what stays on brokers' disks (local.retention.ms)"),
		suppose("tiered_part", size, mib, func(a *Assumptions) *float64 { return &a.TieredPart }, "tiered storage: bytes of a PUT"),
		suppose("tiered_chunk", size, kib, func(a *Assumptions) *float64 { return &a.TieredChunk }, "tiered storage: bytes of a GET, when consumers catch up"),
		suppose("follower_fetch", flag, 0, func(a *Assumptions) *float64 { return &a.FollowerFetch }, "sluice, low-latency topics: consumers fetch in their zone (KIP-392), as in the column of that name"),
		suppose("clients_elsewhere", share, 0, func(a *Assumptions) *float64 { return &a.ClientsElsewhere }, "sluice: share of clients that are sent to any replica, not to one in their zone; 0% needs a balancer or a DNS answer for each zone"),
		suppose("sluice_network", rate, 1, func(a *Assumptions) *float64 { return &a.SluiceNetwork }, "of a replica's machine, in each direction"),
		suppose("sluice_cores", number, 0.1, func(a *Assumptions) *float64 { return &a.SluiceCores }, "of a replica's machine"),
		suppose("sluice_cpu_relay", number, 0, func(a *Assumptions) *float64 { return &a.SluiceCPURelay }, "CPU seconds for each GB relayed, in and out"),
		suppose("sluice_cpu_diskless", number, 0, func(a *Assumptions) *float64 { return &a.SluiceCPUDiskless }, "CPU seconds for each GB of diskless topics, in and out"),
		suppose("sluice_cpu_request", duration, 0, func(a *Assumptions) *float64 { return &a.SluiceCPURequest }, "CPU for each request"),
		suppose("early_puts", number, 0, func(a *Assumptions) *float64 { return &a.EarlyPuts }, "objects a second that each replica writes before they are full or their linger ends: limits.puts_per_second, as if it were always used up"),
		suppose("get_bytes", size, kib, func(a *Assumptions) *float64 { return &a.GetBytes }, "bytes of a GET at most"),
		suppose("lists_per_day", number, 0, func(a *Assumptions) *float64 { return &a.ListsPerDay }, "how often all objects are listed, by sluice or by your own tools"),
		suppose("objects_outlive", duration, 0, func(a *Assumptions) *float64 { return &a.ObjectsOutlive }, "how long objects stay when their records are gone: what your lifecycle rule adds, for sluice deletes nothing yet"),
		suppose("placeholder_bytes", size, 0, func(a *Assumptions) *float64 { return &a.PlaceholderBytes }, "what a batch leaves in Kafka"),
		suppose("placeholder_record", size, 0, func(a *Assumptions) *float64 { return &a.PlaceholderRecord }, "what each of its records adds; compression makes less of it"),
		suppose("inline_below", number, 0, func(a *Assumptions) *float64 { return &a.InlineBelow }, "batches smaller than so many placeholders stay in Kafka"),
	}
}

// Print writes a file that Read reads.
func (a Assumptions) Print() string {
	var b strings.Builder
	b.WriteString("# What `sluice cost` and `sluice advise` reckon with. Copy, change, and give it\n# with --assumptions; what you leave out keeps its default.\n\n# The workload.\n")
	b.WriteString("mix:                           # share of the throughput by class\n")
	for _, class := range sorted(a.Mix) {
		fmt.Fprintf(&b, "  %s: %s\n", class, share.format(a.Mix[class]))
	}
	work := true
	for _, k := range Keys() {
		if work && !k.Workload {
			work = false
			b.WriteString("\n# Everything else.\n")
		}
		line := fmt.Sprintf("%s: %s", k.Name, k.Get(a))
		if k.Doc != "" {
			line = fmt.Sprintf("%-30s # %s", line, k.Doc)
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// Read takes over what a file says; name is for errors, which name every
// mistake with its line.
func (a *Assumptions) Read(name string, data []byte) error {
	return readFile(name, data, func(key string, value entry) error {
		if key == mixKey {
			var parts []string
			for class, v := range value.pairs() {
				parts = append(parts, class+"="+v)
			}
			if len(parts) == 0 {
				parts = append(parts, value.text)
			}
			mix, err := ParseMix(strings.Join(parts, ","))
			if err == nil {
				a.Mix = mix
			}
			return err
		}
		k, err := Find(key)
		if err == nil {
			err = value.plain(key)
		}
		if err == nil {
			err = k.Set(a, value.text)
		}
		return err
	})
}

func sorted[V any](m map[string]V) []string {
	return slices.SortedFunc(maps.Keys(m), cmp.Compare)
}
