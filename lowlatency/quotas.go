package lowlatency

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/tiers"
)

const (
	describeQuotasTimeout = 5 * time.Second
	// maxQuotas bounds the quotas that are remembered. Of more none is: a rate
	// that does not apply to a client because a nearer one is missing would
	// throttle it wrongly.
	maxQuotas = 100_000
)

// quotaKeys are what Kafka calls the rates.
var quotaKeys = [...]string{tiers.ProduceQuota: "producer_byte_rate", tiers.FetchQuota: "consumer_byte_rate"}

// part is one half of what a quota is set for.
type part struct {
	set  bool
	name string // "" is the default entity
}

var (
	unset    = part{}
	fallback = part{set: true}
)

func named(name string) part { return part{set: true, name: name} }

// quotaEntity is what a quota is set for.
type quotaEntity struct{ user, client part }

// quotaTable is one answer of the cluster; it is not changed.
type quotaTable struct {
	rates [len(quotaKeys)]map[quotaEntity]float64
	users [len(quotaKeys)]bool // some are for users
}

// quotas remembers the byte rates that Kafka grants.
type quotas struct {
	table  atomic.Pointer[quotaTable] // nil: none are known
	warned bool                       // run's: that they cannot be read was said
}

// run reads the quotas until ctx ends.
func (q *quotas) run(ctx context.Context, c *Cluster) {
	tick := time.NewTicker(c.opt.QuotaInterval)
	defer tick.Stop()
	for {
		q.refresh(ctx, c)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (q *quotas) refresh(ctx context.Context, c *Cluster) {
	entries, err := c.ClientQuotas(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		c.metrics.quotaErrors.Inc()
		if !retriable(err) {
			// Better none than one that was taken back meanwhile.
			q.keep(c, nil)
		}
		if !q.warned {
			q.warned = true
			c.log.Warn().Err(err).Msg("client quotas cannot be read: byte rates count placeholders on diskless topics; the principal in kafka.sasl needs DESCRIBE_CONFIGS on the cluster, or set quotas.enabled to false")
		}
		return
	}
	if q.warned {
		q.warned = false
		c.log.Info().Msg("client quotas can be read again")
	}
	table := tableOf(entries)
	if table != nil && len(table.rates[tiers.ProduceQuota])+len(table.rates[tiers.FetchQuota]) > maxQuotas {
		c.metrics.quotaErrors.Inc()
		c.log.Error().Int("most", maxQuotas).Msg("the cluster has too many client quotas: byte rates count placeholders on diskless topics")
		table = nil
	}
	q.keep(c, table)
}

func (q *quotas) keep(c *Cluster, table *quotaTable) {
	q.table.Store(table)
	n := 0
	if table != nil {
		for _, rates := range table.rates {
			n += len(rates)
		}
	}
	c.metrics.quotasKnown.Set(float64(n))
}

// retriable reports whether an error says nothing about what is set.
func retriable(err error) bool {
	return !errors.Is(err, kerr.ClusterAuthorizationFailed) && !errors.Is(err, kerr.UnsupportedVersion)
}

// ClientQuotas reads every client quota that is set, those by IP included. It
// needs DESCRIBE_CONFIGS on the cluster, and Kafka 2.6.
func (c *Cluster) ClientQuotas(ctx context.Context) ([]kmsg.DescribeClientQuotasResponseEntry, error) {
	ctx, cancel := context.WithTimeout(ctx, describeQuotasTimeout)
	defer cancel()
	resp, err := kmsg.NewPtrDescribeClientQuotasRequest().RequestWith(ctx, c.client)
	if err != nil {
		return nil, err
	}
	return resp.Entries, kerr.ErrorForCode(resp.ErrorCode)
}

// tableOf sorts entries; it returns nil when no byte rate is set.
func tableOf(entries []kmsg.DescribeClientQuotasResponseEntry) *quotaTable {
	var t *quotaTable
	for _, e := range entries {
		entity, ok := entityOf(e.Entity)
		if !ok {
			continue
		}
		for _, v := range e.Values {
			kind := slices.Index(quotaKeys[:], v.Key)
			if kind < 0 || v.Value <= 0 {
				continue
			}
			if t == nil {
				t = &quotaTable{}
			}
			if t.rates[kind] == nil {
				t.rates[kind] = make(map[quotaEntity]float64)
			}
			t.rates[kind][entity] = v.Value
			t.users[kind] = t.users[kind] || entity.user.set
		}
	}
	return t
}

// entityOf is ok for users and client ids, and nothing else.
func entityOf(parts []kmsg.DescribeClientQuotasResponseEntryEntity) (e quotaEntity, ok bool) {
	for _, p := range parts {
		half := fallback
		if p.Name != nil {
			half = named(*p.Name)
		}
		switch p.Type {
		case "user":
			e.user = half
		case "client-id":
			e.client = half
		default:
			return e, false
		}
	}
	return e, e != quotaEntity{}
}

// ByteRate finds the quota that applies to a client; see proxy.Quotas. It
// resolves as Kafka's DefaultQuotaCallback does: first who shares a rate, then
// which rate those have.
func (c *Cluster) ByteRate(kind tiers.QuotaKind, client tiers.QuotaClient) (tiers.ByteRate, bool) {
	t := c.quotas.table.Load()
	if t == nil || len(t.rates[kind]) == 0 {
		return tiers.ByteRate{}, false
	}
	rates := t.rates[kind]
	set := func(user, client part) bool {
		_, ok := rates[quotaEntity{user, client}]
		return ok
	}
	user, id := named(client.User), named(client.ID)
	found := tiers.ByteRate{ClientID: client.ID}
	switch {
	case !t.users[kind]:
	case !client.Known:
		return tiers.ByteRate{}, false // which of them applies cannot be told
	case set(user, id), set(user, fallback):
		found.User = client.User
	case set(user, unset):
		found.User, found.ClientID = client.User, ""
	case set(fallback, id), set(fallback, fallback):
		found.User = client.User
	case set(fallback, unset):
		found.User, found.ClientID = client.User, ""
	}
	var order []quotaEntity
	switch {
	case found.User != "" && found.ClientID != "":
		order = []quotaEntity{{user, id}, {user, fallback}, {fallback, id}, {fallback, fallback}}
	case found.User != "":
		order = []quotaEntity{{user, unset}, {fallback, unset}}
	case found.ClientID != "":
		order = []quotaEntity{{unset, id}, {unset, fallback}}
	}
	for _, e := range order {
		if rate, ok := rates[e]; ok {
			found.PerSecond = rate
			return found, true
		}
	}
	return tiers.ByteRate{}, false
}
