package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless/diskcache"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/server"
	"github.com/sluice-kafka/sluice/tiers"
)

// checkCluster tries the brokers and returns the cluster's id, "" when they do
// not answer.
func checkCluster(ctx context.Context, r *report, cfg *config.Config) string {
	opt, err := server.ClusterOptions(cfg, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		r.line(fail, "kafka: settings", err.Error())
		return ""
	}
	cluster, err := lowlatency.New(opt)
	if err != nil {
		r.line(fail, "kafka: settings", err.Error())
		return ""
	}
	defer cluster.Close()
	ctx, cancel := context.WithTimeout(ctx, 4*liveTimeout)
	defer cancel()
	reach, done := context.WithTimeout(ctx, liveTimeout)
	err = cluster.Refresh(reach)
	done()
	at := "kafka at " + strings.Join(cfg.Kafka.Bootstrap, ", ")
	if err != nil {
		r.line(fail, at, err.Error()+"; check the addresses, kafka.tls and kafka.sasl, and that this host may connect")
		return ""
	}
	brokers := cluster.Brokers()
	r.line(good, fmt.Sprintf("%s: cluster %s, %d brokers", at, cluster.ClusterID(), len(brokers)), "")
	for _, b := range brokers {
		checkBroker(ctx, r, cfg, cluster, b)
	}
	adm := kadm.NewClient(cluster.Client())
	checkVersions(ctx, r, adm)
	checkMechanisms(ctx, r, cfg, cluster)
	checkACLs(ctx, r, adm)
	checkQuotas(ctx, r, cfg, cluster)
	checkTopics(ctx, r, cfg, cluster, adm)
	return cluster.ClusterID()
}

func checkBroker(ctx context.Context, r *report, cfg *config.Config, cluster *lowlatency.Cluster, b lowlatency.Broker) {
	real, diskless, ok := cfg.Listen.Ports(b.ID)
	what := fmt.Sprintf("broker %d at %s", b.ID, b.Addr)
	if !ok {
		r.line(fail, what, fmt.Sprintf("its id is outside listen.node_ids (%s): clients could not reach it; widen the range, with two ports for each id", cfg.Listen.NodeIDs))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	conn, err := cluster.Dial(ctx, b.ID)
	if err != nil {
		r.line(fail, what, err.Error()+"; its advertised listener must be reachable from here")
		return
	}
	_ = conn.Close()
	r.line(good, fmt.Sprintf("%s: reachable; clients find it at ports %d and %d", what, real, diskless), "")
}

// neededVersions are what the diskless tier cannot do without.
var neededVersions = []struct {
	key, version int16
}{{0, 3}, {1, 4}, {3, 4}, {32, 1}}

func checkVersions(ctx context.Context, r *report, adm *kadm.Client) {
	versions, err := adm.ApiVersions(ctx)
	if err != nil {
		r.line(fail, "kafka: versions", err.Error())
		return
	}
	for _, v := range versions.Sorted() {
		what := fmt.Sprintf("broker %d: %s", v.NodeID, v.VersionGuess(kversion.SkipKeys(4, 5, 6, 7)))
		if v.Err != nil {
			r.line(fail, what, v.Err.Error())
			continue
		}
		missing := ""
		for _, n := range neededVersions {
			if max, ok := v.KeyMaxVersion(n.key); !ok || max < n.version {
				missing += fmt.Sprintf(" %s v%d", kmsg.NameForKey(n.key), n.version)
			}
		}
		if missing != "" {
			r.line(fail, what, "it lacks"+missing+"; Kafka 2.1 or newer is needed")
			continue
		}
		r.line(good, what, "")
	}
}

// unrelayable mechanisms bind the host name that the client sees.
var unrelayable = map[string]bool{"GSSAPI": true, "AWS_MSK_IAM": true}

// checkMechanisms asks a broker which SASL mechanisms it takes, by naming one
// that none has.
func checkMechanisms(ctx context.Context, r *report, cfg *config.Config, cluster *lowlatency.Cluster) {
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	enabled, err := cluster.Mechanisms(ctx)
	switch {
	case err != nil:
		r.line(warn, "kafka: SASL mechanisms", "they cannot be asked for: "+err.Error())
		return
	case len(enabled) == 0 && cfg.Kafka.TLS.Cert != "":
		r.line(fail, "kafka: clients log in without SASL", "kafka.tls.cert would make every client that reaches sluice the principal of that certificate; use a listener with SASL_SSL, where clients log in as themselves, or one that wants no certificate")
		return
	case len(enabled) == 0:
		r.line(good, "kafka: clients log in without SASL", "")
		return
	}
	slices.Sort(enabled)
	for _, m := range enabled {
		if unrelayable[m] {
			r.line(warn, "kafka: SASL mechanism "+m, "it binds the broker's host name and cannot be relayed: clients that use it cannot connect through sluice; let them use SCRAM, PLAIN or OAUTHBEARER")
			continue
		}
		r.line(good, "kafka: SASL mechanism "+m+" is relayed", "")
	}
}

func checkACLs(ctx context.Context, r *report, adm *kadm.Client) {
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	const what = "kafka: ACLs by host"
	b := kadm.NewACLs().AnyResource().Allow().AllowHosts().Deny().DenyHosts().Operations(kadm.OpAny).ResourcePatternType(kadm.ACLPatternAny)
	results, err := adm.DescribeACLs(ctx, b)
	if err != nil {
		r.line(warn, what, "they cannot be read: "+err.Error())
		return
	}
	var hosts []string
	for _, res := range results {
		if errors.Is(res.Err, kerr.SecurityDisabled) {
			r.line(good, what+": the cluster has no authorizer", "")
			return
		}
		if res.Err != nil {
			r.line(warn, what, "they cannot be read: "+res.Err.Error())
			return
		}
		for _, acl := range res.Described {
			if acl.Host != "*" {
				hosts = append(hosts, fmt.Sprintf("%s on %s %s from %s", acl.Principal, acl.Type, acl.Name, acl.Host))
			}
		}
	}
	if len(hosts) > 0 {
		slices.Sort(hosts)
		r.line(warn, what, fmt.Sprintf("brokers see sluice's address, not the client's, so these no longer mean what they did: %s", some(slices.Compact(hosts))))
		return
	}
	r.line(good, what+": none", "")
}

// some lists a few and counts the rest.
func some(list []string) string {
	const few = 5
	if len(list) > few {
		return strings.Join(list[:few], "; ") + fmt.Sprintf("; and %d more", len(list)-few)
	}
	return strings.Join(list, "; ")
}

func checkQuotas(ctx context.Context, r *report, cfg *config.Config, cluster *lowlatency.Cluster) {
	const byIP, byRate = "kafka: quotas by client address", "kafka: byte rates"
	entries, err := cluster.ClientQuotas(ctx)
	if err != nil {
		r.line(warn, byIP, "they cannot be read: "+err.Error())
		if cfg.Quotas.Enabled {
			r.line(warn, byRate, "they cannot be read, so they would count placeholders on diskless topics: the principal in kafka.sasl needs DescribeConfigs on the cluster")
		}
		return
	}
	ips, rates := 0, 0
	for _, e := range entries {
		for _, part := range e.Entity {
			if part.Type == "ip" {
				ips++
			}
		}
		for _, v := range e.Values {
			if strings.HasSuffix(v.Key, "_byte_rate") {
				rates++
			}
		}
	}
	if ips > 0 {
		r.line(warn, byIP, fmt.Sprintf("%d; brokers see sluice's address, so they bound whole replicas", ips))
	} else {
		r.line(good, byIP+": none", "")
	}
	switch {
	case rates == 0:
		r.line(good, byRate+": none", "")
	case cfg.Quotas.Enabled:
		r.line(good, fmt.Sprintf("%s: %d, applied to original bytes by each replica for each broker", byRate, rates), "")
	default:
		r.line(warn, byRate, fmt.Sprintf("%d; brokers count placeholders on diskless topics, and quotas.enabled is false", rates))
	}
}

func checkTopics(ctx context.Context, r *report, cfg *config.Config, cluster *lowlatency.Cluster, adm *kadm.Client) {
	const what = "topics"
	routes, err := cfg.Router()
	if err != nil {
		r.line(fail, what, err.Error())
		return
	}
	topics, err := adm.ListTopics(ctx)
	if err != nil {
		r.line(fail, what, err.Error())
		return
	}
	var candidates []string
	for _, name := range topics.Names() {
		if routes.Place(name, tiers.TopicFacts{Known: true}).Tier == tiers.Diskless {
			candidates = append(candidates, name)
		}
	}
	known := cluster.AllFacts(ctx, candidates)
	diskless, classes := 0, make(map[string]*tiers.Class)
	for _, name := range candidates {
		facts := known[name]
		p := routes.Place(name, facts)
		switch {
		case p.Reason == tiers.Compacted:
			r.line(warn, "topic "+name, fmt.Sprintf("class %s is diskless, but the topic is compacted: it stays inline; give it a low-latency class to say so", p.Class.Name))
		case p.Reason == tiers.Unknown:
			r.line(warn, "topic "+name, "its configuration cannot be read, so it stays inline: the principal in kafka.sasl needs DescribeConfigs on it")
		case facts.RemoteStorage:
			r.line(warn, "topic "+name, "it is diskless and has remote.storage.enable: placeholders in tiered storage gain nothing and keep objects alive; turn it off")
		}
		if p.Tier == tiers.Diskless {
			diskless++
		}
		if facts.Known {
			classes[name] = p.Class
		}
	}
	missing, err := missingRights(ctx, cfg, cluster, classes)
	if err != nil {
		r.line(fail, what, err.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		r.line(warn, "topic "+name, missing[name])
	}
	r.line(good, fmt.Sprintf("%s: %d, of them %d in the diskless tier", what, len(topics), diskless), "")
}

func checkStores(ctx context.Context, r *report, cfg *config.Config, clusterID string) {
	names := make([]string, 0, len(cfg.Stores))
	for name := range cfg.Stores {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		st := cfg.Stores[name]
		store, err := server.OpenStore(st, 4)
		if err != nil {
			r.line(fail, "store "+name, err.Error()+"; check its url and that this user may write there")
			continue
		}
		probe, cancel := context.WithTimeout(ctx, liveTimeout)
		start := time.Now()
		whole := true
		for _, c := range keyring.Probe(probe, store, clusterID) {
			whole = r.check(fmt.Sprintf("store %s (%v): %s", name, store, c.Name), c.Err) && whole
		}
		if st.Locks() {
			whole = r.check(fmt.Sprintf("store %s (%v): object lock (%s, %v)", name, store, st.Lock, st.LockRetention), server.CheckLock(probe, st, store)) && whole
		}
		cancel()
		if whole {
			r.line(good, fmt.Sprintf("store %s: all of it took %v", name, time.Since(start).Round(time.Millisecond)), "")
		}
	}
}

func checkDisk(r *report, c config.DiskCache) {
	if c.Path == "" {
		return
	}
	err := diskcache.Check(c.Path, c.Bytes)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; make the folder, or mount the disk that it is on", err)
	}
	r.check(fmt.Sprintf("disk cache (%s): write, and room for %s", c.Path, size(c.Bytes)), err)
}
