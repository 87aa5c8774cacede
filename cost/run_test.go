package cost

import (
	"math"
	"testing"
)

func TestARun(t *testing.T) {
	m := Model{Assumptions: Defaults(), Prices: ListPrices()}
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-9*math.Abs(want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	// A GiB in Kafka, 3 replicas, for 7 of 30 days, on disks that are 60 % full.
	plain := m.Run(Run{Payload: gib, Delivered: 2 * gib, Kafka: gib})
	near("disks", plain[Disks].Month, 3*7.0/30/0.6*0.08)
	// Two of three producers are in another zone, and two of three followers.
	near("produced", plain[ProduceTraffic].Month, 2.0/3*0.02)
	near("replicated", plain[ReplicationTraffic].Month, 2*0.02)
	near("consumed in the zone", plain[ConsumeTraffic].Month, 0)
	m.FollowerFetch = 0
	plain = m.Run(Run{Payload: gib, Delivered: 2 * gib, Kafka: gib})
	near("consumed from leaders", plain[ConsumeTraffic].Month, 2*2.0/3*0.02)

	// The same in objects, which stay for a day longer; a hundredth is left in Kafka.
	m.FollowerFetch = 1
	diskless := m.Run(Run{Payload: gib, Delivered: 2 * gib, Kafka: gib / 100.0, Objects: gib, Read: gib, Puts: 1000, Gets: 2000, Lists: 100})
	near("disks", diskless[Disks].Month, 3*7.0/30/0.6*0.08/100)
	near("consumed from leaders", diskless[ConsumeTraffic].Month, 2*2.0/3*0.02/100)
	near("objects", diskless[Objects].Month, 8.0/30*0.023)
	near("puts", diskless[Puts].Month, 0.005)
	near("gets", diskless[Gets].Month, 0.0008)
	near("lists", diskless[Lists].Month, 0.0005)
	if diskless.Total() >= plain.Total() {
		t.Errorf("diskless %v, plain %v", diskless.Total(), plain.Total())
	}
	if got := m.Run(Run{Kafka: gib}).Total(); got != 0 {
		t.Errorf("nothing was acknowledged, and costs %v", got)
	}
}
