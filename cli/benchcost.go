package cli

import (
	"fmt"

	"github.com/sluice-kafka/sluice/benchmarks"
	"github.com/sluice-kafka/sluice/cost"
)

// terabyte is what a benchmark's price is for.
const terabyte = 1e12

// mostlyPlaceholders is a share of the payload below which what is in Kafka
// cannot be all.
const mostlyPlaceholders = 0.5

// benchPrice puts a price on what a target has used. What is in objects is only
// known where the proxy's metrics were read.
func benchPrice(m *cost.Model) func(benchmarks.Usage) (benchmarks.Money, bool) {
	return func(u benchmarks.Usage) (benchmarks.Money, bool) {
		if u.PayloadBytes == 0 || u.KafkaBytes == 0 || u.Proxy == nil && u.KafkaShare < mostlyPlaceholders {
			return benchmarks.Money{}, false
		}
		run := cost.Run{Payload: u.PayloadBytes, Delivered: u.DeliveredBytes, Kafka: u.KafkaBytes}
		if p := u.Proxy; p != nil {
			run.Objects, run.Read, run.Puts, run.Gets, run.Lists = p.ObjectBytes, p.ReadBytes, p.Puts, p.Gets, p.Lists
		}
		money := benchmarks.Money{
			PerTB: m.Run(run).Total() / u.PayloadBytes * terabyte, Currency: m.Prices.Currency,
			Prices: fmt.Sprintf("%s as of %s", m.Prices.Of, m.Prices.AsOf),
		}
		for _, name := range []string{"retention", "zones", "replication", "disk_fill", "follower_fetch", "objects_outlive"} {
			if k, err := cost.Find(name); err == nil {
				money.Assumptions = append(money.Assumptions, name+"="+k.Get(m.Assumptions))
			}
		}
		return money, true
	}
}
