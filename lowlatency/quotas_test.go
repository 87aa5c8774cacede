package lowlatency

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/tiers"
)

// quota is an entry as the cluster tells it: "" leaves a part out, "*" is the
// default entity.
func quota(user, client, key string, rate float64) kmsg.DescribeClientQuotasResponseEntry {
	e := kmsg.NewDescribeClientQuotasResponseEntry()
	for kind, name := range map[string]string{"user": user, "client-id": client} {
		if name == "" {
			continue
		}
		part := kmsg.NewDescribeClientQuotasResponseEntryEntity()
		part.Type = kind
		if name != "*" {
			part.Name = &name
		}
		e.Entity = append(e.Entity, part)
	}
	v := kmsg.NewDescribeClientQuotasResponseEntryValue()
	v.Key, v.Value = key, rate
	e.Values = append(e.Values, v)
	return e
}

// All eight levels at which Kafka has quotas, the nearest first (KIP-55).
func TestByteRatesAreFoundAsBrokersFindThem(t *testing.T) {
	const produce, fetch = "producer_byte_rate", "consumer_byte_rate"
	levels := []struct {
		user, client string
		shared       tiers.ByteRate // among whom
	}{
		{"alice", "app", tiers.ByteRate{User: "alice", ClientID: "app"}},
		{"alice", "*", tiers.ByteRate{User: "alice", ClientID: "app"}},
		{"alice", "", tiers.ByteRate{User: "alice"}},
		{"*", "app", tiers.ByteRate{User: "alice", ClientID: "app"}},
		{"*", "*", tiers.ByteRate{User: "alice", ClientID: "app"}},
		{"*", "", tiers.ByteRate{User: "alice"}},
		{"", "app", tiers.ByteRate{ClientID: "app"}},
		{"", "*", tiers.ByteRate{ClientID: "app"}},
	}
	alice := tiers.QuotaClient{User: "alice", Known: true, ID: "app"}
	c := &Cluster{}
	// Every set of levels: the nearest of them applies.
	for set := range 1 << len(levels) {
		var entries []kmsg.DescribeClientQuotasResponseEntry
		nearest, forUsers := -1, false
		for i, l := range levels {
			entries = append(entries, quota(l.user, l.client, fetch, 1), quota(l.user, l.client, "request_percentage", 1))
			if set&(1<<i) == 0 {
				continue
			}
			entries = append(entries, quota(l.user, l.client, produce, float64(100+i)))
			forUsers = forUsers || l.user != ""
			if nearest < 0 {
				nearest = i
			}
		}
		c.quotas.table.Store(tableOf(entries))
		got, ok := c.ByteRate(tiers.ProduceQuota, alice)
		var want tiers.ByteRate
		if nearest >= 0 {
			want = levels[nearest].shared
			want.PerSecond = float64(100 + nearest)
		}
		if ok != (nearest >= 0) || got != want {
			t.Errorf("levels %08b: %+v (%v), want %+v", set, got, ok, want)
		}
		if got, ok := c.ByteRate(tiers.ProduceQuota, tiers.QuotaClient{ID: "app"}); ok != (nearest >= 0 && !forUsers) || ok && got != want {
			t.Errorf("levels %08b, user unknown: %+v (%v)", set, got, ok)
		}
	}

	set := func(entries ...kmsg.DescribeClientQuotasResponseEntry) { c.quotas.table.Store(tableOf(entries)) }
	others := func(want string, client tiers.QuotaClient) {
		t.Helper()
		got, ok := c.ByteRate(tiers.ProduceQuota, client)
		if s := fmt.Sprintf("%v by %s/%s", got.PerSecond, got.User, got.ClientID); ok && s != want || !ok && want != "" {
			t.Errorf("%+v: %s (%v), want %s", client, s, ok, want)
		}
	}
	bob := tiers.QuotaClient{User: "bob", Known: true, ID: "tool"}
	set(quota("alice", "app", produce, 1), quota("alice", "", produce, 2), quota("*", "app", produce, 3), quota("", "*", produce, 4))
	others("4 by /tool", bob)
	others("2 by alice/", tiers.QuotaClient{User: "alice", Known: true, ID: "tool"})
	others("3 by bob/app", tiers.QuotaClient{User: "bob", Known: true, ID: "app"})
	set(quota("", "*", produce, 4))
	others("", tiers.QuotaClient{User: "bob", Known: true}) // no client id: Kafka has no sensor for it
	set(quota("*", "", produce, 4))
	others("4 by bob/", tiers.QuotaClient{User: "bob", Known: true})
	others("4 by ANONYMOUS/", tiers.QuotaClient{User: "ANONYMOUS", Known: true, ID: "x"})
	ip := kmsg.NewDescribeClientQuotasResponseEntryEntity()
	ip.Type = "ip"
	byIP := quota("", "", produce, 4)
	byIP.Entity = append(byIP.Entity, ip)
	set(byIP, quota("*", "", fetch, 4))
	others("", bob)
	c.quotas.table.Store(nil)
	others("", bob)
}

func TestQuotasAreReadAgain(t *testing.T) {
	inWorld(t, func(o *Options) { o.QuotaInterval = 10 * time.Second }, func(w *world) {
		alice := tiers.QuotaClient{User: "alice", Known: true, ID: "app"}
		rate := func() float64 {
			r, _ := w.tier.ByteRate(tiers.ProduceQuota, alice)
			return r.PerSecond
		}
		set := func(value float64) {
			req := kmsg.NewPtrAlterClientQuotasRequest()
			e := kmsg.NewAlterClientQuotasRequestEntry()
			part := kmsg.NewAlterClientQuotasRequestEntryEntity()
			part.Type, part.Name = "user", &alice.User
			e.Entity = append(e.Entity, part)
			op := kmsg.NewAlterClientQuotasRequestEntryOp()
			op.Key, op.Value, op.Remove = "producer_byte_rate", value, value == 0
			e.Ops = append(e.Ops, op)
			req.Entries = append(req.Entries, e)
			if resp, err := req.RequestWith(w.Context(), w.tier.Client()); err != nil || resp.Entries[0].ErrorCode != 0 {
				w.Fatal(err, resp)
			}
		}
		set(1000)
		w.connect()
		stop := w.run()
		defer stop()
		time.Sleep(time.Second)
		if rate() != 1000 {
			w.Fatalf("the rate is %v", rate())
		}
		set(2000)
		time.Sleep(10 * time.Second)
		if rate() != 2000 {
			w.Errorf("the rate is %v after a change", rate())
		}

		// A moment without an answer changes nothing; without the right to ask
		// nothing is known, and that is said once.
		var refusal atomic.Int32
		w.kafka.ControlKey(int16(kmsg.DescribeClientQuotas), func(req kmsg.Request) (kmsg.Response, error, bool) {
			w.kafka.KeepControl()
			resp := req.ResponseKind().(*kmsg.DescribeClientQuotasResponse)
			resp.ErrorCode = int16(refusal.Load())
			return resp, nil, true
		})
		refusal.Store(int32(kerr.NotController.Code))
		time.Sleep(30 * time.Second)
		if rate() != 2000 {
			w.Errorf("the rate is %v while the cluster has other worries", rate())
		}
		refusal.Store(int32(kerr.ClusterAuthorizationFailed.Code))
		time.Sleep(60 * time.Second)
		if rate() != 0 {
			w.Errorf("the rate is %v although it may not be asked for", rate())
		}
		if n := strings.Count(w.log.String(), "needs DESCRIBE_CONFIGS on the cluster"); n != 1 {
			w.Errorf("that was said %d times", n)
		}
		if n := testutil.ToFloat64(w.tier.metrics.quotaErrors); n < 8 {
			w.Errorf("%v errors were counted", n)
		}
	})
}
