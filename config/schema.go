package config

import (
	"strings"
	"time"

	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// key describes one key of the file. A path's * stands for a name that the
// user chooses, [] for the elements of a list.
type key struct {
	path     string
	kind     kind
	field    func(target) any // pointer to where the value goes; nil when refused
	def      string           // default, written as in the file
	derived  string           // default in words, where it follows from something else
	required bool
	from, to string   // range, written as in the file; "" is open
	oneOf    []string // for choice
	live     bool     // a change takes effect without a restart
	auto     bool     // the word auto stands for zero, which check replaces
	metric   string   // of a limit: where an operator sees it at work
	refused  string   // the key is only known so that it can be refused: why

	// refusedValues are values that people will try, and why they cannot work.
	refusedValues map[string]string
}

// kind is how a value is written.
type kind string

const (
	kindText     kind = "text"
	kindTexts    kind = "text or list"
	kindSecret   kind = "secret"
	kindSize     kind = "size"
	kindCount    kind = "number"
	kindDuration kind = "duration"
	kindFlag     kind = "true or false"
	kindChoice   kind = "choice"
	kindFile     kind = "file"
	kindAddress  kind = "host:port"
	kindPorts    kind = "host:first-last"
	kindIds      kind = "ranges"
)

// phrase is the kind in a sentence: linger takes ...
func (k kind) phrase() string {
	switch k {
	case kindText, kindTexts, kindSecret:
		return "text"
	case kindSize, kindDuration, kindFile:
		return "a " + string(k)
	case kindCount:
		return "a whole number"
	case kindChoice:
		return "a word"
	}
	return string(k)
}

// target is the values that a key's field points into: the configuration, and
// the element that is being read of a list or a map.
type target struct {
	*Config
	files *secretFiles
	store *Store
	class *tiers.Class
	rule  *router.Rule
}

// secretFiles is the keys that name a file to read a secret from. They are not
// part of Config: what was read is.
type secretFiles struct {
	password  string
	secretKey map[string]*string // by store
}

const mtlsRefused = "a client's certificate proves who it is to sluice, but cannot be passed on: the broker would see sluice's identity in place of the client's, for every client"

func mechanismsRefused() map[string]string {
	const bound = "it binds the login to the broker's host name, and clients connect to sluice's"
	return map[string]string{
		"GSSAPI":      bound,
		"AWS_MSK_IAM": bound,
		"OAUTHBEARER": "sluice's own client cannot fetch tokens (clients' own OAUTHBEARER logins are relayed)",
	}
}

// schema is every key there is, in the order of the documentation.
func schema() []key {
	return []key{
		{path: "kafka.bootstrap", kind: kindTexts, required: true, field: func(t target) any { return &t.Kafka.Bootstrap }},
		{path: "kafka.tls.enabled", kind: kindFlag, def: "false", field: func(t target) any { return &t.Kafka.TLS.Enabled }},
		{path: "kafka.tls.ca", kind: kindFile, derived: "the system's", field: func(t target) any { return &t.Kafka.TLS.CA }},
		{path: "kafka.tls.cert", kind: kindFile, derived: "none", field: func(t target) any { return &t.Kafka.TLS.Cert }},
		{path: "kafka.tls.key", kind: kindFile, derived: "none", field: func(t target) any { return &t.Kafka.TLS.Key }},
		{path: "kafka.tls.server_name", kind: kindText, derived: "the broker's host", field: func(t target) any { return &t.Kafka.TLS.ServerName }},
		{path: "kafka.tls.insecure_skip_verify", kind: kindFlag, def: "false", field: func(t target) any { return &t.Kafka.TLS.InsecureSkipVerify }},
		{path: "kafka.sasl.mechanism", kind: kindChoice, derived: "none", oneOf: []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}, refusedValues: mechanismsRefused(), field: func(t target) any { return &t.Kafka.SASL.Mechanism }},
		{path: "kafka.sasl.username", kind: kindText, derived: "none", field: func(t target) any { return &t.Kafka.SASL.Username }},
		{path: "kafka.sasl.password", kind: kindSecret, derived: "none", field: func(t target) any { return &t.Kafka.SASL.Password }},
		{path: "kafka.sasl.password_file", kind: kindFile, derived: "none", field: func(t target) any { return &t.files.password }},

		{path: "listen.bootstrap", kind: kindAddress, required: true, field: func(t target) any { return &t.Listen.Bootstrap }},
		{path: "listen.brokers", kind: kindPorts, required: true, field: func(t target) any { return &t.Listen.Brokers }},
		{path: "listen.advertise", kind: kindText, derived: "the host of listen.bootstrap", field: func(t target) any { return &t.Listen.Advertise }},
		{path: "listen.node_ids", kind: kindIds, derived: "0 to what the ports allow", from: "0", to: "1048575", field: func(t target) any { return &t.Listen.NodeIDs }},
		{path: "listen.tls.cert", kind: kindFile, derived: "no TLS", field: func(t target) any { return &t.Listen.TLS.Cert }},
		{path: "listen.tls.key", kind: kindFile, derived: "no TLS", field: func(t target) any { return &t.Listen.TLS.Key }},
		{path: "listen.tls.ca", refused: mtlsRefused},
		{path: "listen.tls.client_ca", refused: mtlsRefused},
		{path: "listen.tls.client_auth", refused: mtlsRefused},

		{path: "admin", kind: kindAddress, def: "127.0.0.1:19644", field: func(t target) any { return &t.Admin }},

		{path: "stores.*.url", kind: kindText, required: true, field: func(t target) any { return &t.store.URL }},
		{path: "stores.*.endpoint", kind: kindText, derived: "AWS", field: func(t target) any { return &t.store.Endpoint }},
		{path: "stores.*.region", kind: kindText, derived: "the environment's, else us-east-1", field: func(t target) any { return &t.store.Region }},
		{path: "stores.*.access_key", kind: kindText, derived: "the usual AWS sources", field: func(t target) any { return &t.store.AccessKey }},
		{path: "stores.*.secret_key", kind: kindSecret, derived: "the usual AWS sources", field: func(t target) any { return &t.store.SecretKey }},
		{path: "stores.*.secret_key_file", kind: kindFile, derived: "none", field: func(t target) any { return t.files.secretKey[t.store.Name] }},
		{path: "stores.*.path_style", kind: kindFlag, derived: "true when there is an endpoint", field: func(t target) any { return &t.store.PathStyle }},
		{path: "stores.*.lock", kind: kindChoice, derived: "none; required where an audit class leads", oneOf: lockModes, field: func(t target) any { return &t.store.Lock }},
		{path: "stores.*.lock_retention", kind: kindDuration, derived: "required with a lock", from: "1m", to: "876000h", field: func(t target) any { return &t.store.LockRetention }},

		{path: "default_class", kind: kindText, def: "operational", live: true, field: func(t target) any { return &t.DefaultClass }},
		{path: "topics[].match", kind: kindTexts, required: true, live: true, field: func(t target) any { return &t.rule.Patterns }},
		{path: "topics[].class", kind: kindText, required: true, live: true, field: func(t target) any { return &t.rule.Class }},

		{path: "classes.*.tier", kind: kindChoice, derived: "the built-in's; else required", oneOf: []string{"low-latency", "diskless"}, live: true, field: func(t target) any { return &t.class.Tier }},
		{path: "classes.*.summary", kind: kindText, derived: "none", live: true, field: func(t target) any { return &t.class.Summary }},
		{path: "classes.*.store", kind: kindText, def: "default", live: true, field: func(t target) any { return &t.class.Store }},
		{path: "classes.*.linger", kind: kindDuration, def: "250ms", from: "1ms", to: "10s", live: true, field: func(t target) any { return &t.class.Linger }},
		{path: "classes.*.object_size", kind: kindSize, def: "8MiB", from: "64KiB", to: "64MiB", live: true, field: func(t target) any { return &t.class.ObjectSize }},
		{path: "classes.*.readahead", kind: kindCount, def: "2", from: "0", to: "64", live: true, field: func(t target) any { return &t.class.Readahead }},
		{path: "classes.*.audit", kind: kindFlag, def: "false", live: true, field: func(t target) any { return &t.class.Audit }},
		{path: "classes.*.on_outage", kind: kindChoice, def: tiers.Wait, oneOf: []string{tiers.Wait, tiers.Reject}, live: true, field: func(t target) any { return &t.class.OnOutage }},
		{path: "classes.*.on_delete", kind: kindChoice, def: tiers.Ignore, oneOf: []string{tiers.Ignore, tiers.Refuse}, live: true, field: func(t target) any { return &t.class.OnDelete }},

		{path: "compaction.enabled", kind: kindFlag, def: "true", field: func(t target) any { return &t.Compaction.Enabled }},
		{path: "compaction.window", kind: kindDuration, def: "10m", from: "1s", to: "1h", field: func(t target) any { return &t.Compaction.Window }},
		{path: "compaction.merge", kind: kindDuration, def: "0s", from: "0s", to: "1h", metric: "sluice_compaction_merges_total", field: func(t target) any { return &t.Compaction.Merge }},
		{path: "compaction.min_age", kind: kindDuration, def: "12m", from: "1s", to: "168h", metric: "sluice_compaction_behind_seconds", field: func(t target) any { return &t.Compaction.MinAge }},
		{path: "compaction.memory_bytes", kind: kindSize, derived: "a sixteenth of `limits.memory_bytes`, at least two objects", from: "1MiB", to: "1TiB", metric: "sluice_memory_limit_bytes", field: func(t target) any { return &t.Compaction.MemoryBytes }},
		{path: "compaction.segment_bytes", kind: kindSize, def: "64MiB", from: "64KiB", to: "1GiB", metric: "sluice_compaction_segments_total", field: func(t target) any { return &t.Compaction.SegmentBytes }},
		{path: "compaction.bytes_per_second", kind: kindSize, def: "64MiB", from: "0B", to: "1TiB", metric: "sluice_compaction_bytes_total", field: func(t target) any { return &t.Compaction.BytesPerSecond }},
		{path: "compaction.requests_per_second", kind: kindCount, def: "100", from: "1", to: "10000", metric: "sluice_compaction_objects_total", field: func(t target) any { return &t.Compaction.RequestsPerSecond }},

		{path: "gc.enabled", kind: kindFlag, def: "true", field: func(t target) any { return &t.GC.Enabled }},
		{path: "gc.every", kind: kindDuration, def: "30m", from: "1m", to: "24h", metric: "sluice_gc_last_pass_seconds", field: func(t target) any { return &t.GC.Every }},
		{path: "gc.min_age", kind: kindDuration, def: "12h", from: "1h", to: "8760h", metric: "sluice_gc_objects", field: func(t target) any { return &t.GC.MinAge }},
		{path: "gc.margin", kind: kindDuration, def: "5h", from: "4h", to: "168h", metric: "sluice_gc_objects", field: func(t target) any { return &t.GC.Margin }},
		{path: "gc.grace", kind: kindDuration, def: "1h", from: "10m", to: "168h", metric: "sluice_gc_objects", field: func(t target) any { return &t.GC.Grace }},
		{path: "gc.deletes_per_second", kind: kindCount, def: "100", from: "1", to: "10000", metric: "sluice_gc_deleted_objects_total", field: func(t target) any { return &t.GC.DeletesPerSecond }},

		{path: "retention.enabled", kind: kindFlag, def: "true", field: func(t target) any { return &t.Retention.Enabled }},
		{path: "retention.every", kind: kindDuration, def: "5m", from: "1s", to: "24h", metric: "sluice_retention_last_pass_seconds", field: func(t target) any { return &t.Retention.Every }},
		{path: "retention.bytes_per_second", kind: kindSize, def: "16MiB", from: "64KiB", to: "1TiB", metric: "sluice_retention_read_bytes_total", field: func(t target) any { return &t.Retention.BytesPerSecond }},

		{path: "quotas.enabled", kind: kindFlag, def: "true", field: func(t target) any { return &t.Quotas.Enabled }},
		{path: "quotas.refresh", kind: kindDuration, def: "10s", from: "1s", to: "1h", field: func(t target) any { return &t.Quotas.Refresh }},

		{path: "placeholders.watch", kind: kindFlag, def: "true", field: func(t target) any { return &t.Placeholders.Watch }},
		{path: "placeholders.every", kind: kindDuration, def: "1h", from: "1s", to: "168h", field: func(t target) any { return &t.Placeholders.Every }},
		{path: "placeholders.fetches_per_second", kind: kindCount, def: "50", from: "1", to: "10000", metric: "sluice_topic_placeholders_looked_seconds", field: func(t target) any { return &t.Placeholders.FetchesPerSecond }},

		{path: "audit.archive", kind: kindFlag, def: "true", field: func(t target) any { return &t.Audit.Archive }},
		{path: "audit.every", kind: kindDuration, def: "10m", from: "1s", to: "168h", metric: "sluice_audit_behind_records", field: func(t target) any { return &t.Audit.Every }},
		{path: "audit.object_size", kind: kindSize, def: "16MiB", from: "1MiB", to: "64MiB", metric: "sluice_audit_objects_total", field: func(t target) any { return &t.Audit.ObjectSize }},
		{path: "audit.bytes_per_second", kind: kindSize, def: "32MiB", from: "64KiB", to: "1TiB", metric: "sluice_audit_bytes_total", field: func(t target) any { return &t.Audit.BytesPerSecond }},

		{path: "disk_cache.path", kind: kindText, derived: "none: there is no such cache", field: func(t target) any { return &t.DiskCache.Path }},
		{path: "disk_cache.bytes", kind: kindSize, derived: "required with a path", from: "64MiB", to: "1PiB", metric: "sluice_diskless_disk_cache_bytes", field: func(t target) any { return &t.DiskCache.Bytes }},

		{path: "limits.memory_bytes", kind: kindSize, def: "auto", auto: true, from: "128MiB", to: "16TiB", metric: "sluice_memory_limit_bytes", field: func(t target) any { return &t.Limits.MemoryBytes }},
		{path: "limits.connections", kind: kindCount, def: "20000", from: "1", to: "1000000", metric: "sluice_proxy_connections", field: func(t target) any { return &t.Limits.Connections }},
		{path: "limits.connections_per_ip", kind: kindCount, def: "20000", from: "1", to: "1000000", metric: "sluice_proxy_connections_refused_total", field: func(t target) any { return &t.Limits.ConnectionsPerIP }},
		{path: "limits.frame_bytes", kind: kindSize, derived: "at most 100MiB, and half of the memory for either direction", from: "1MiB", to: "1GiB", metric: "sluice_proxy_protocol_errors_total", field: func(t target) any { return &t.Limits.FrameBytes }},
		{path: "limits.request_memory_bytes", kind: kindSize, derived: "an eighth of `limits.memory_bytes`", from: "1MiB", to: "1TiB", metric: "sluice_proxy_frame_bytes", field: func(t target) any { return &t.Limits.RequestMemoryBytes }},
		{path: "limits.response_memory_bytes", kind: kindSize, derived: "a quarter of `limits.memory_bytes`", from: "1MiB", to: "1TiB", metric: "sluice_proxy_frame_bytes", field: func(t target) any { return &t.Limits.ResponseMemoryBytes }},
		{path: "limits.requests_in_flight", kind: kindCount, def: "256", from: "1", to: "10000", metric: "sluice_proxy_request_seconds", field: func(t target) any { return &t.Limits.RequestsInFlight }},
		{path: "limits.first_request_timeout", kind: kindDuration, def: "1m", from: "100ms", to: "1h", metric: "sluice_proxy_timeouts_total", field: func(t target) any { return &t.Limits.FirstRequestTimeout }},
		{path: "limits.frame_timeout", kind: kindDuration, def: "1m", from: "100ms", to: "1h", metric: "sluice_proxy_timeouts_total", field: func(t target) any { return &t.Limits.FrameTimeout }},
		{path: "limits.idle_timeout", kind: kindDuration, def: "11m", from: "1s", to: "24h", metric: "sluice_proxy_timeouts_total", field: func(t target) any { return &t.Limits.IdleTimeout }},
		{path: "limits.write_timeout", kind: kindDuration, def: "11m", from: "100ms", to: "24h", metric: "sluice_proxy_timeouts_total", field: func(t target) any { return &t.Limits.WriteTimeout }},
		{path: "limits.stall_timeout", kind: kindDuration, def: "10s", from: "100ms", to: "1h", metric: "sluice_proxy_stalled_connections_total", field: func(t target) any { return &t.Limits.StallTimeout }},
		{path: "limits.broker_write_timeout", kind: kindDuration, def: "2m", from: "100ms", to: "1h", metric: "sluice_proxy_broker_stalls_total", field: func(t target) any { return &t.Limits.BrokerWriteTimeout }},
		{path: "limits.dial_timeout", kind: kindDuration, def: "10s", from: "100ms", to: "5m", metric: "sluice_proxy_dial_errors_total", field: func(t target) any { return &t.Limits.DialTimeout }},
		{path: "limits.dials_per_broker", kind: kindCount, def: "16", from: "1", to: "10000", metric: "sluice_lowlatency_dials", field: func(t target) any { return &t.Limits.DialsPerBroker }},
		{path: "limits.dial_queue", kind: kindCount, def: "20000", from: "1", to: "1000000", metric: "sluice_lowlatency_dials_waiting", field: func(t target) any { return &t.Limits.DialQueue }},
		{path: "limits.drain_timeout", kind: kindDuration, def: "30s", from: "100ms", to: "10m", metric: "sluice_proxy_requests_dropped_total", field: func(t target) any { return &t.Limits.DrainTimeout }},
		{path: "limits.fetch_bytes", kind: kindSize, def: "64MiB", from: "1MiB", to: "1GiB", metric: "sluice_proxy_fetch_hydrated_bytes_total", field: func(t target) any { return &t.Limits.FetchBytes }},
		{path: "limits.hydrate_timeout", kind: kindDuration, def: "8s", from: "100ms", to: "5m", metric: "sluice_proxy_fetch_storage_errors_total", field: func(t target) any { return &t.Limits.HydrateTimeout }},
		{path: "limits.cache_bytes", kind: kindSize, derived: "an eighth of `limits.memory_bytes`", from: "16MiB", to: "1TiB", metric: "sluice_diskless_cache_bytes", field: func(t target) any { return &t.Limits.CacheBytes }},
		{path: "limits.get_concurrency", kind: kindCount, def: "32", from: "1", to: "1000", metric: "sluice_diskless_chunk_gets_total", field: func(t target) any { return &t.Limits.GetConcurrency }},
		{path: "limits.bulk_cpus", kind: kindCount, def: "0", from: "0", to: "1000", metric: "sluice_bulk_wait_seconds_total", field: func(t target) any { return &t.Limits.BulkCPUs }},
		{path: "limits.write_buffer_bytes", kind: kindSize, derived: "a sixteenth of `limits.memory_bytes`", from: "8MiB", to: "1TiB", metric: "sluice_diskless_buffered_bytes", field: func(t target) any { return &t.Limits.WriteBufferBytes }},
		{path: "limits.put_concurrency", kind: kindCount, def: "16", from: "1", to: "1000", metric: "sluice_diskless_put_seconds", field: func(t target) any { return &t.Limits.PutConcurrency }},
		{path: "limits.puts_per_second", kind: kindCount, def: "10", from: "0", to: "10000", metric: "sluice_diskless_seals_total", field: func(t target) any { return &t.Limits.PutsPerSecond }},
		{path: "limits.retry_batches", kind: kindCount, def: "65536", from: "0", to: "10000000", metric: "sluice_diskless_reused_batches_total", field: func(t target) any { return &t.Limits.RetryBatches }},
		{path: "limits.put_timeout", kind: kindDuration, def: "5s", from: "100ms", to: "1m", metric: "sluice_diskless_inline_batches_total", field: func(t target) any { return &t.Limits.PutTimeout }},
		{path: "limits.inline_bytes_per_second", kind: kindSize, def: "16MiB", from: "0B", to: "1TiB", metric: "sluice_diskless_inline_bytes_total", field: func(t target) any { return &t.Limits.InlineBytesPerSecond }},
		{path: "limits.inline_bytes_total", kind: kindSize, def: "8GiB", from: "0B", to: "1PiB", metric: "sluice_diskless_inline_budget_bytes", field: func(t target) any { return &t.Limits.InlineBytesTotal }},

		{path: "log.level", kind: kindChoice, def: "info", oneOf: []string{"debug", "info", "warn", "error"}, live: true, field: func(t target) any { return &t.Log.Level }},
		{path: "log.format", kind: kindChoice, def: "json", oneOf: []string{"json", "console"}, field: func(t target) any { return &t.Log.Format }},
	}
}

// builtins are the classes that exist without being declared, in the order of
// the time that they may take.
func builtins() []tiers.Class {
	return []tiers.Class{
		{Name: "control", Tier: tiers.LowLatency, Summary: "hard real time: commands, payments, locks"},
		{Name: "operational", Tier: tiers.LowLatency, Summary: "near real time: what services say to each other"},
		{Name: "enrichment", Tier: tiers.Diskless, Summary: "joins and lookups that may wait a moment", Store: "default", Linger: 50 * time.Millisecond, ObjectSize: 4 << 20, Readahead: 2, OnOutage: tiers.Wait, OnDelete: tiers.Ignore},
		{Name: "telemetry", Tier: tiers.Diskless, Summary: "traces, metrics, logs: much of it, read soon", Store: "default", Linger: 250 * time.Millisecond, ObjectSize: 8 << 20, Readahead: 2, OnOutage: tiers.Wait, OnDelete: tiers.Ignore},
		{Name: "replay", Tier: tiers.Diskless, Summary: "histories that are read from the start", Store: "default", Linger: time.Second, ObjectSize: 16 << 20, Readahead: 16, OnOutage: tiers.Wait, OnDelete: tiers.Ignore},
		{Name: "audit", Tier: tiers.Diskless, Summary: "what nobody may alter or delete: locked objects, and an archive that proves it", Store: "default", Linger: 250 * time.Millisecond, ObjectSize: 8 << 20, Readahead: 2, Audit: true, OnOutage: tiers.Wait, OnDelete: tiers.Ignore},
	}
}

// leaf is the last element of a path.
func (k key) leaf() string { return k.path[strings.LastIndexByte(k.path, '.')+1:] }

// section is what stands before the leaf.
func (k key) section() string {
	if i := strings.LastIndexByte(k.path, '.'); i >= 0 {
		return k.path[:i]
	}
	return ""
}

// Builtins are the classes that exist without being declared, by name.
func Builtins() map[string]tiers.Class {
	all := make(map[string]tiers.Class)
	for _, c := range builtins() {
		all[c.Name] = c
	}
	return all
}
