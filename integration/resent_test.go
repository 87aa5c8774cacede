package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// A transaction that begins while brokers still write the markers of the one
// before makes them answer CONCURRENT_TRANSACTIONS to its first Produce, and the
// client send it again: the same batches, which are stored already. Where
// brokers have nothing else to do that is rare, so it is tried until it happens.
func TestLongBatchesOfConcurrentTransactionsAreStoredOnce(t *testing.T) {
	harness.Long(t)
	p := shared(t)
	const topic = "resent-telemetry"
	target{name: "telemetry", bootstrap: p.sluice.Bootstrap, sluice: p.sluice}.create(t, topic, 3)
	h := history.New()
	cl := client(t, p.sluice.Bootstrap, kgo.TransactionalID(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	type bytes struct{ reused, stored, uploaded float64 }
	now := func() bytes {
		metric := func(name string) float64 { return p.sluice.metric(t, name) }
		return bytes{metric("sluice_diskless_reused_bytes_total"), metric("sluice_diskless_stored_bytes_total"), metric("sluice_diskless_object_bytes_total")}
	}
	transactions, resent := 0, 0
	for began := time.Now(); resent < 3 && time.Since(began) < 2*time.Minute; transactions++ {
		before := now()
		if err := transactOnce(cl, h, topic); err != nil {
			t.Fatalf("transaction %d: %v", transactions, err)
		}
		after := now()
		reused, stored, uploaded := after.reused-before.reused, after.stored-before.stored, after.uploaded-before.uploaded
		if reused == 0 {
			continue
		}
		resent++
		t.Logf("transaction %d: placeholders for %.0f bytes, of which %.0f were sent again; %.0f bytes of objects", transactions, stored, reused, uploaded)
		if uploaded > stored-reused/2 {
			t.Error("what was sent again was uploaded again")
		}
	}
	if resent == 0 {
		t.Errorf("in %d transactions no batch was sent again", transactions)
	}
	cl.Close()
	reader := follow(t, h, "committed", p.sluice.Bootstrap, []kgo.Opt{kgo.FetchIsolationLevel(kgo.ReadCommitted())}, topic)
	eventually(t, "all committed records are read", func() (bool, string) {
		got, want := reader.count(topic), h.Acknowledged()
		return got >= want, fmt.Sprintf("%d of %d", got, want)
	})
	reader.end()
	judge(t, h, "committed")
}
