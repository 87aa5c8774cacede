package cost

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-kafka/sluice/tiers"
)

var classes = map[string]tiers.Class{
	"control":   {Name: "control", Tier: tiers.LowLatency},
	"telemetry": {Name: "telemetry", Tier: tiers.Diskless, Linger: 250 * time.Millisecond, ObjectSize: 8 << 20},
	"replay":    {Name: "replay", Tier: tiers.Diskless, Linger: time.Second, ObjectSize: 16 << 20},
}

func model(t *testing.T, changes ...string) *Model {
	t.Helper()
	m := &Model{Assumptions: Defaults(), Prices: ListPrices(), Classes: classes}
	for _, c := range changes {
		if err := m.Assign(c); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func estimate(t *testing.T, m *Model) map[string]Bill {
	t.Helper()
	setups, err := m.Estimate()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]Bill{}
	for _, s := range setups {
		all[s.Key] = s.Bill
	}
	return all
}

// The prices are written into the arithmetic below once more.
func TestListPrices(t *testing.T) {
	p := ListPrices()
	want := Prices{AsOf: p.AsOf, Of: p.Of, Currency: "$", DiskGBMonth: 0.08, DiskMiBPerSecondMonth: 0.04, CrossZoneOut: 0.01, CrossZoneIn: 0.01, ObjectGBMonth: 0.023, Put: 5, Get: 0.4, List: 5, BrokerHour: 0.3264, SluiceHour: 0.29}
	if p != want || p.AsOf == "" || p.Of == "" {
		t.Errorf("%+v", p)
	}
}

func TestArithmetic(t *testing.T) {
	// 100 MiB/s for 30 days of 86,400 s are 259,200,000 MiB = 253,125 GB; a day
	// is 8,437.5 GB. A batch of 64 KiB: 1,600 a second, each with 64 records.
	base := []string{"throughput=100MiB", "record_size=1KiB", "compression=1", "batch_size=64KiB", "retention=1d", "fan_out=3", "catch_up=0%", "partitions=1000", "zones=3", "replication=3"}
	for _, tt := range []struct {
		name    string
		changes []string
		setup   string
		want    map[Item]Amount
	}{
		{"plain", nil, "kafka", map[Item]Amount{
			// 8,437.5 × 3 replicas ÷ 0.6 full = 42,187.5 GB at $0.08 = $3,375; and 300
			// MiB/s ÷ 0.6 are 125 MiB/s more than 3 disks' 375, at $0.04 = $5.
			Disks: {42187.5, 3380},
			// Two of three producers are in another zone than the leader, at $0.02.
			ProduceTraffic: {168750, 3375},
			// Both followers are.
			ReplicationTraffic: {506250, 10125},
			// 3 × 2/3.
			ConsumeTraffic: {506250, 10125},
			// Out go 200 MiB/s of replication and 300 to consumers: 500 ÷ (447 × 0.6)
			// are 1.9 brokers; one for each replica and zone are 3: × 720 h × $0.3264.
			Brokers: {3, 705.024},
		}},
		{"consumers fetch in their zone", nil, "follower_fetch", map[Item]Amount{
			Disks: {42187.5, 3380}, ProduceTraffic: {168750, 3375}, ReplicationTraffic: {506250, 10125}, Brokers: {3, 705.024},
		}},
		{"two replicas in three zones: a third of the consumers has none", []string{"replication=2"}, "follower_fetch", map[Item]Amount{
			// 8,437.5 × 2 ÷ 0.6; 200 MiB/s ÷ 0.6 = 333 are included.
			Disks:          {28125, 2250},
			ProduceTraffic: {168750, 3375},
			// The one follower is in another zone.
			ReplicationTraffic: {253125, 5062.5},
			// 253,125 × 3 × 1/3.
			ConsumeTraffic: {253125, 5062.5}, Brokers: {3, 705.024},
		}},
		{"three replicas in two zones", []string{"zones=2"}, "kafka", map[Item]Amount{
			Disks:          {42187.5, 3380},
			ProduceTraffic: {126562.5, 2531.25}, // a half
			// One zone has two replicas, the other has one. A leader among the two
			// (2 of 3) has one follower elsewhere, the other has two: 4/3.
			ReplicationTraffic: {337500, 6750},
			ConsumeTraffic:     {379687.5, 7593.75}, Brokers: {3, 705.024},
		}},
		{"tiered storage", []string{"retention=7d", "catch_up=10%"}, "tiered_storage", map[Item]Amount{
			// Six hours: 2,109.375 GB × 3 ÷ 0.6 × $0.08 = $843.75, and $5.
			Disks: {10546.875, 848.75}, ProduceTraffic: {168750, 3375}, ReplicationTraffic: {506250, 10125},
			Objects: {59062.5, 1358.4375},
			// 259,200,000 MiB ÷ 25.
			Puts: {10368000, 51.84},
			// A tenth of 3 × 259,200,000 MiB, ÷ 4.
			Gets: {19440000, 7.776},
			// All in, and a tenth of three times that out: nothing, in one region.
			Transfer: {329062.5, 0}, Brokers: {3, 705.024},
		}},
		{"tiered storage that never uploads", []string{"local_retention=1d"}, "tiered_storage", map[Item]Amount{
			Disks: {42187.5, 3380}, ProduceTraffic: {168750, 3375}, ReplicationTraffic: {506250, 10125}, Brokers: {3, 705.024},
		}},
		{"all diskless", []string{"mix=telemetry=100%", "early_puts=0", "objects_outlive=0s", "lists_per_day=0"}, "sluice", map[Item]Amount{
			// 1,600 placeholders a second of 140 + 64 × 8 = 652 bytes are 1,043,200
			// B/s: 2518.240… GB a month, 83.941… a day.
			Disks:              {1043200.0 * 86400 / gib * 3 / 0.6, 1043200.0 * 86400 / gib * 3 / 0.6 * 0.08},
			ProduceTraffic:     {1043200.0 * 2592000 / gib * 2 / 3, 1043200.0 * 2592000 / gib * 2 / 3 * 0.02},
			ReplicationTraffic: {1043200.0 * 2592000 / gib * 2, 1043200.0 * 2592000 / gib * 2 * 0.02},
			ConsumeTraffic:     {1043200.0 * 2592000 / gib * 2, 1043200.0 * 2592000 / gib * 2 * 0.02},
			Objects:            {8437.5, 194.0625},
			// 100 MiB/s in objects of 8 MiB: 12.5 a second, 32,400,000 a month.
			Puts: {32400000, 162},
			// Each is read by the two replicas that have not written it.
			Gets: {64800000, 25.92}, Transfer: {3 * 253125, 0},
			Brokers: {3, 705.024},
			// Into a replica come 100/3 MiB/s of clients and 2/3 of 100 from the store,
			// out go 400/3: less than 447 × 0.6. CPU: 2.5 s × 100/1024 × 4 and 6,400
			// requests × 100 µs are 1.6 of 24 cores.
			Replicas: {3, 626.4},
		}},
		{"clients that are sent anywhere", []string{"mix=control=100%", "clients_elsewhere=50%"}, "sluice", map[Item]Amount{
			Disks: {42187.5, 3380}, ProduceTraffic: {168750, 3375}, ReplicationTraffic: {506250, 10125}, Brokers: {3, 705.024}, Replicas: {3, 626.4},
			// Four times 253,125 GB, half of it to any zone, of which two thirds are another.
			SluiceTraffic: {337500, 6750},
		}},
		{"little of it: linger seals", []string{"throughput=1MiB", "mix=telemetry=100%", "lists_per_day=0", "objects_outlive=0s", "early_puts=1"}, "sluice", map[Item]Amount{
			Disks:              {10432.0 * 86400 / gib * 5, 10432.0 * 86400 / gib * 5 * 0.08},
			ProduceTraffic:     {10432.0 * 2592000 / gib * 2 / 3, 10432.0 * 2592000 / gib * 2 / 3 * 0.02},
			ReplicationTraffic: {10432.0 * 2592000 / gib * 2, 10432.0 * 2592000 / gib * 2 * 0.02},
			ConsumeTraffic:     {10432.0 * 2592000 / gib * 2, 10432.0 * 2592000 / gib * 2 * 0.02},
			Objects:            {84.375, 1.940625},
			// 16 batches a second over 3 replicas are more than 4 lingers each: 12 objects
			// a second, and 3 early ones: 15 × 2,592,000.
			Puts: {38880000, 194.4}, Gets: {77760000, 31.104}, Transfer: {3 * 2531.25, 0},
			Brokers: {3, 705.024}, Replicas: {3, 626.4},
		}},
		{"batches too small for placeholders: all of it stays", []string{"batch_size=1KiB", "record_size=16B", "mix=telemetry=100%"}, "sluice", map[Item]Amount{
			// 140 + 64 × 8 = 652, and 4 × 652 are more than 1,024. Disks: 18 brokers' write
			// enough.
			Disks: {42187.5, 3375}, ProduceTraffic: {168750, 3375}, ReplicationTraffic: {506250, 10125},
			// 102,400 batches a second × 4 requests ÷ (40,000 × 0.6) are 17.07.
			Brokers: {18, 4230.144},
			// CPU: 1 s × 100/1024 × 4 and 409,600 × 100 µs are 41.4 cores; ÷ (8 × 0.6).
			Replicas: {9, 1879.2},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := model(t, append(base, tt.changes...)...)
			got := estimate(t, m)[tt.setup]
			if tt.setup == "sluice" {
				// All clients' bytes, in and out, which are free in the built-in prices.
				tt.want[Balancer] = Amount{m.Throughput * 4 * 2592000 / gib, 0}
			}
			for _, i := range Items() {
				want := tt.want[i]
				if math.Abs(got[i].Quantity-want.Quantity) > 1e-6*(1+want.Quantity) || math.Abs(got[i].Month-want.Month) > 1e-6*(1+want.Month) {
					t.Errorf("%s: %.4f for $%.4f, by hand %.4f for $%.4f", i.Name(), got[i].Quantity, got[i].Month, want.Quantity, want.Month)
				}
			}
		})
	}
}

// Express One Zone takes little for requests and some for bytes.
func TestOtherPrices(t *testing.T) {
	m := model(t, "throughput=100MiB", "mix=telemetry=100%", "early_puts=0", "catch_up=0%", "objects_outlive=0s", "retention=1d")
	prices := strings.NewReplacer("object_gb_month: 0.023", "object_gb_month: 0.11", "object_put_million: 5", "object_put_million: 1.13",
		"object_get_million: 0.4", "object_get_million: 0.03", "object_upload_gb: 0", "object_upload_gb: 0.0032", "object_retrieval_gb: 0", "object_retrieval_gb: 0.0006").Replace(PricesFile())
	prices = strings.Replace(prices, "balancer_gb: 0", "balancer_gb: 0.006", 1)
	var err error
	if m.Prices, err = ReadPrices("express.yaml", []byte(prices)); err != nil {
		t.Fatal(err)
	}
	b := estimate(t, m)["sluice"]
	// See the quantities above: 8,437.5 GB; 32.4 and 64.8 million requests; 253,125 GB
	// in and twice that out; a balancer sees that of clients, four times.
	for item, want := range map[Item]float64{Objects: 928.125, Puts: 36.612, Gets: 1.944, Transfer: 810 + 303.75, Balancer: 6075} {
		if math.Abs(b[item].Month-want) > 1e-6 {
			t.Errorf("%s: $%f, by hand $%f", item.Name(), b[item].Month, want)
		}
	}
}

// draw is any workload that has a sense.
func draw(t *rapid.T) *Model {
	m := &Model{Assumptions: Defaults(), Prices: ListPrices(), Classes: classes}
	m.Throughput = rapid.Float64Range(1e3, 5e7).Draw(t, "throughput")
	m.RecordSize = rapid.Float64Range(10, 1e5).Draw(t, "record")
	m.BatchSize = rapid.Float64Range(100, 1e6).Draw(t, "batch")
	m.Compression = rapid.Float64Range(1, 8).Draw(t, "compression")
	m.Retention = rapid.Float64Range(60, 365*day).Draw(t, "retention")
	m.FanOut = rapid.Float64Range(0, 6).Draw(t, "fanOut")
	m.Zones = float64(rapid.IntRange(1, 5).Draw(t, "zones"))
	m.Replication = float64(rapid.IntRange(1, 5).Draw(t, "replication"))
	telemetry := rapid.Float64Range(0, 1).Draw(t, "telemetry")
	m.Mix = map[string]float64{"telemetry": telemetry, "control": 1 - telemetry}
	return m
}

func bills(t *rapid.T, m *Model) map[string]float64 {
	setups, err := m.Estimate()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, s := range setups {
		all[s.Key] = s.Bill.Total()
		for i, a := range s.Bill {
			if a.Quantity < 0 || a.Month < 0 || math.IsNaN(a.Month) || math.IsInf(a.Month, 0) {
				t.Fatalf("%s: %s is %v", s.Key, Item(i).Name(), a)
			}
		}
	}
	return all
}

// More of what costs is never cheaper.
func TestMoreIsNeverCheaper(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := draw(t)
		before := bills(t, m)
		setups := []string{"kafka", "follower_fetch", "tiered_storage", "sluice"}
		what := rapid.SampledFrom([]string{"throughput", "retention", "fan-out", "zones", "replication", "partitions", "prices"}).Draw(t, "what")
		switch factor := rapid.Float64Range(1, 3).Draw(t, "factor"); what {
		case "throughput":
			m.Throughput *= factor
		case "retention":
			// Tiered storage begins where brokers' disks end.
			setups = []string{"kafka", "follower_fetch", "sluice"}
			m.Retention *= factor
		case "fan-out":
			m.FanOut *= factor
		case "zones":
			setups = []string{"kafka"}
			m.Zones++
		case "replication":
			// The more replicas, the more consumers have one in their zone.
			setups = []string{"kafka"}
			m.Replication++
		case "partitions":
			m.Partitions *= factor
		case "prices":
			for _, p := range m.Prices.numbers() {
				*p *= factor
			}
		}
		after := bills(t, m)
		for _, s := range setups {
			if after[s] < before[s]-1e-6*before[s] {
				t.Errorf("more %s: %s goes from %f to %f", what, s, before[s], after[s])
			}
		}
	})
}

func TestHowSetupsCompare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := draw(t)
		all := bills(t, m)
		if all["follower_fetch"] > all["kafka"]+1e-6 {
			t.Errorf("fetching in one's zone costs more: %v", all)
		}
		// Without diskless topics sluice is Kafka, and its own machines.
		m.Mix = map[string]float64{"control": 1}
		setups, err := m.Estimate()
		if err != nil {
			t.Fatal(err)
		}
		own := setups[3].Bill[Replicas].Month
		if got, want := setups[3].Bill.Total()-own, setups[1].Bill.Total(); math.Abs(got-want) > 1e-6*want || own <= 0 {
			t.Errorf("all topics in Kafka: %f, and %f", got, want)
		}
	})
}

// What is printed is read again, to the same numbers.
func TestAssumptionsAsAFile(t *testing.T) {
	a := Defaults()
	a.Throughput, a.Retention, a.Compression, a.SluiceCPURequest, a.BatchSize, a.FollowerFetch = 123456789, 36*3600, 3.5, 250e-6, 16384, 0
	a.Mix = map[string]float64{"telemetry": 0.333, "control": 0.667}
	b := Defaults()
	if err := b.Read("copy.yaml", []byte(a.Print())); err != nil {
		t.Fatal(err)
	}
	if a.Print() != b.Print() || a.Throughput != b.Throughput || a.Print() == Defaults().Print() {
		t.Errorf("written\n%s\nread\n%s", a.Print(), b.Print())
	}
	// Each number has a key of its own.
	fields := map[*float64]string{}
	for _, k := range Keys() {
		if k.Doc == "" || fields[k.field(&a)] != "" {
			t.Errorf("%s has no words, or the field of %s", k.Name, fields[k.field(&a)])
		}
		fields[k.field(&a)] = k.Name
	}
}

func TestBadAssumptions(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", "a.yaml: the file is empty"},
		{"- 1", "a.yaml:1: write key: value"},
		{"a: [", "a.yaml: this is not YAML"},
		{"zones: 3\nzone: 3", `a.yaml:2: there is no assumption "zone"`},
		{"zones: 3\nzones: 3", "a.yaml:2: zones is here a second time"},
		{"zones: 2.5", `zones takes a whole number, not "2.5"`},
		{"zones: 0", `zones has to be at least 1, not "0"`},
		{"zones: [1]", "zones takes one value"},
		{"throughput: fast", `throughput takes bytes a second, as in 64KiB/s or 100MiB/s, not "fast"`},
		{"throughput: -1", "throughput takes bytes a second"},
		{"retention: 7", `retention takes a duration, as in 250ms, 6h or 7d, not "7"`},
		{"retention: -7d", "retention takes a duration"},
		{"fan_out: NaN", "fan_out takes a number"},
		{"fan_out: 1e300", "fan_out takes a number from 0 to 2^60"},
		{"catch_up: 120%", "catch_up takes a share of up to 100%"},
		{"disk_fill: 0%", "disk_fill has to be at least 1%"},
		{"follower_fetch: maybe", "follower_fetch takes true or false"},
		{"mix: all", `"all" is no mix`},
		{"mix: { telemetry: 50% }", "the mix adds up to 50%, not to 100%"},
		{"mix: { telemetry: much }", "mix: class telemetry takes a share, as in 60%"},
	} {
		a := Defaults()
		if err := a.Read("a.yaml", []byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, not %s", tt.text, err, tt.want)
		}
	}
	// All mistakes at once.
	a := Defaults()
	if err := a.Read("a.yaml", []byte("zones: x\nfan_out: y")); err == nil || strings.Count(err.Error(), "a.yaml:") != 2 {
		t.Errorf("%v", err)
	}
	for _, text := range []string{"zones", "zone=3", "mix=telemetry=10%,telemetry=90%"} {
		if err := a.Assign(text); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}

func TestBadPrices(t *testing.T) {
	whole := PricesFile()
	for _, tt := range []struct{ text, want string }{
		{"as_of: 2026-01-01", "disk_gb_month"},
		{strings.Replace(whole, "sluice_hour:", "sluice_year:", 1), `there is no price "sluice_year"`},
		{strings.Replace(whole, "as_of: 2", "as_of: of late 2", 1), "as_of takes a date"},
		{strings.Replace(whole, "disk_gb_month: 0.08", "disk_gb_month: cheap", 1), `disk_gb_month takes a number, not "cheap"`},
	} {
		if _, err := ReadPrices("p.yaml", []byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, not %s", err, tt.want)
		}
	}
}

func TestLoadsThatCannotBeCarried(t *testing.T) {
	for _, tt := range []struct {
		changes []string
		want    string
	}{
		// Each replica reads all that the others write, and its machine carries 268 MiB/s.
		{[]string{"throughput=10GiB"}, "reckon with larger ones"},
		{[]string{"throughput=150MiB", "replicas=1"}, "1 replicas of sluice do not carry this load"},
		{[]string{"mix=nonsense=100%"}, `there is no class "nonsense"; there are [control replay telemetry]`},
	} {
		_, err := model(t, tt.changes...).Estimate()
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, not %s", tt.changes, err, tt.want)
		}
	}
	// What the error asks for helps.
	if _, err := model(t, "throughput=10GiB", "sluice_network=64GiB").Estimate(); err != nil {
		t.Error(err)
	}
}
