package server

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/diskless/audit"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/harness"
)

const auditKeys = `topics:
  - { match: ["audit-*"], class: audit }
audit: { every: 1s }
`

// archived verifies all chains of the rig's store, and returns how far each goes.
func (r *rig) archived() (next map[string]int64, gaps int) {
	r.Helper()
	store, err := objstore.OpenFile(r.dir)
	if err != nil {
		r.Fatal(err)
	}
	v := &audit.Verifier{Store: store, ClusterID: "mine", Now: time.Now()}
	chains, findings, err := v.Chains(r.Context())
	if err != nil || len(findings) > 0 {
		r.Fatal(findings, err)
	}
	next = map[string]int64{}
	for c := range chains {
		report, err := v.Chain(r.Context(), c)
		if err != nil || len(report.Findings) > 0 {
			r.Fatalf("%+v, %v", report, err)
		}
		next[fmt.Sprintf("%s-%d", report.Topic, report.Partition)] = report.Head.Next
		for _, g := range report.Gaps {
			if g.Why == audit.WhyRemoved {
				gaps++
			}
		}
	}
	return next, gaps
}

func (r *rig) await(what string, ok func() bool) {
	r.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatalf("%s: not after %v", what, patience)
		}
	}
}

func gauge(t testing.TB, g prometheus.Gatherer, name string) (sum float64, found bool) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum, found = sum+m.GetGauge().GetValue()+m.GetCounter().GetValue(), true
			}
		}
	}
	return sum, found
}

// Two replicas archive the logs of audit topics, and of no other, divided between
// them; the one that stays takes over what the other leaves.
func TestReplicasArchiveAuditTopics(t *testing.T) {
	r := newRig(t, kfake.SeedTopics(8, "audit-a"), kfake.SeedTopics(1, "plain"))
	r.store = strings.Replace(r.store, "}", ", lock: none }", 1)
	one := r.start(r.config(auditKeys))
	first := r.base
	r.base = harness.Ports(t, 4)
	two := r.start(r.config(auditKeys))
	r.base = first
	produce := func(from, to int) {
		r.produce("plain", from, to)
		// Spread over partitions, batch by batch.
		for range 4 {
			r.produce("audit-a", from, to)
		}
	}
	direct, err := kgo.NewClient(kgo.SeedBrokers(r.kafka.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	adm := kadm.NewClient(direct)
	all := func() bool {
		ends, err := adm.ListEndOffsets(t.Context(), "audit-a", "plain")
		if err != nil {
			t.Fatal(err)
		}
		next, _ := r.archived()
		done := 0
		for p := range int32(8) {
			end, _ := ends.Lookup("audit-a", p)
			if next[fmt.Sprintf("audit-a-%d", p)] != end.Offset {
				return false
			}
			if end.Offset > 0 {
				done++
			}
		}
		if next["plain-0"] > 0 {
			t.Fatal("a topic of another class is archived")
		}
		return done > 2
	}
	produce(0, 5)
	r.await("all is archived", all)
	r.await("metrics tell it", func() bool {
		behind, _ := gauge(t, one.Metrics(), "sluice_audit_behind_records")
		also, _ := gauge(t, two.Metrics(), "sluice_audit_behind_records")
		_, share := gauge(t, one.Metrics(), "sluice_audit_archived_ratio")
		return behind+also == 0 && share
	})
	if err := two.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	produce(5, 8)
	r.await("one replica archives all", all)

	// What is deleted before its turn is a gap, and counted. The archive is ended,
	// so that it cannot be its turn.
	if err := one.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg := r.config(strings.Replace(auditKeys, "every: 1s", "archive: false", 1))
	three := r.start(cfg)
	produce(8, 12)
	ends, err := adm.ListEndOffsets(t.Context(), "audit-a")
	if err != nil {
		t.Fatal(err)
	}
	cut := ends.Offsets()
	if _, err := adm.DeleteRecords(t.Context(), cut); err != nil {
		t.Fatal(err)
	}
	if err := three.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	four := r.start(r.config(auditKeys))
	r.await("gaps are told", func() bool { _, gaps := r.archived(); return gaps > 0 && all() })
	if missed, _ := gauge(t, four.Metrics(), "sluice_audit_missed_records_total"); missed == 0 {
		t.Error("missed records are not counted")
	}
	if !strings.Contains(r.log.String(), `"gaps":1`) {
		t.Error("the log does not tell of gaps")
	}
}

func TestAStoreThatCannotLockIsRefused(t *testing.T) {
	r := newRig(t)
	server := harness.StartS3(t)
	r.store = fmt.Sprintf(`{ url: "s3://%s/p", endpoint: %q, access_key: %q, secret_key: %q, lock: governance, lock_retention: 24h }`, server.Bucket, server.Endpoint, server.AccessKey, server.SecretKey)
	_, err := Start(t.Context(), r.config(auditKeys), Options{})
	if !errors.Is(err, objstore.ErrNoLock) || !strings.Contains(err.Error(), "store default") {
		t.Errorf("%v", err)
	}
}
