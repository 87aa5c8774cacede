package integration

import (
	"context"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness/history"
)

// A transaction that begins while brokers still write the markers of the one
// before makes them answer CONCURRENT_TRANSACTIONS to its first Produce, and the
// client send it again: the same batches, which are stored already.
func TestBatchesOfConcurrentTransactionsAreStoredOnce(t *testing.T) {
	p := shared(t)
	const topic = "resent-telemetry"
	target{name: "telemetry", bootstrap: p.sluice.Bootstrap, sluice: p.sluice}.create(t, topic, 3)
	h := history.New()
	cl := client(t, p.sluice.Bootstrap, kgo.TransactionalID(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	metric := func(name string) float64 { return p.sluice.metric(t, name) }
	before := metric("sluice_diskless_reused_bytes_total")
	uploaded, stored := metric("sluice_diskless_object_bytes_total"), metric("sluice_diskless_stored_bytes_total")
	transactions := 0
	reused := func() float64 { return metric("sluice_diskless_reused_bytes_total") - before }
	for ; transactions < 10 || reused() == 0 && ctx.Err() == nil; transactions++ {
		if err := transactOnce(cl, h, topic); err != nil {
			t.Fatalf("transaction %d: %v", transactions, err)
		}
	}
	if reused() == 0 {
		t.Fatalf("in %d transactions no batch was sent again", transactions)
	}
	uploaded, stored = metric("sluice_diskless_object_bytes_total")-uploaded, metric("sluice_diskless_stored_bytes_total")-stored
	t.Logf("%d transactions: placeholders for %.0f bytes, of which %.0f were sent again; %.0f bytes of objects", transactions, stored, reused(), uploaded)
	if uploaded > stored-reused()/2 {
		t.Error("what was sent again was uploaded again")
	}
	reader := follow(t, h, "committed", p.sluice.Bootstrap, []kgo.Opt{kgo.FetchIsolationLevel(kgo.ReadCommitted())}, topic)
	eventually(t, "all committed records are read", func() (bool, string) {
		got, want := reader.count(topic), h.Acknowledged()
		return got >= want, fmt.Sprintf("%d of %d", got, want)
	})
	reader.end()
	judge(t, h, "committed")
}
