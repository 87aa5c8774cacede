package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"

	"github.com/sluice-kafka/sluice/cli"
	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/server"
)

// renewal is how a login that expires is renewed.
type renewal struct {
	mechanism string
	requests  int // SaslAuthenticate, of one login
	login     func(user string) sasl.Mechanism
	java      string // the login module of the user writer, with its options
}

// Logins that expire are renewed on connections that are in use, in both tiers,
// while batches of theirs wait for their objects; nobody is cut off.
func (x *secured) reauthentication(t *testing.T, m renewal) {
	name := strings.ToLower(m.mechanism)
	topics := []string{"again-" + name + "-control", "again-" + name + "-telemetry"}
	if _, err := x.adm.CreateTopics(t.Context(), 3, 1, nil, topics...); err != nil {
		t.Fatal(err)
	}
	x.allow(t, "writer", kadm.NewACLs().Topics(topics...).ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpWrite, kadm.OpRead))
	x.allow(t, "writer", kadm.NewACLs().Groups("*").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpRead))
	h := history.New()
	login := []kgo.Opt{kgo.SASL(m.login("writer"))}
	logins := func() float64 {
		return x.plaintext.metric(t, "sluice_proxy_requests_total", "api", "SASLAuthenticate")
	}
	connected := x.plaintext.metric(t, "sluice_proxy_connections")
	before, begun := logins(), time.Now()
	tail := follow(t, h, "at the tail", x.plaintext.Bootstrap, login, topics...)
	l := startLoad(t, h, workload{Bootstrap: x.plaintext.Bootstrap, Topics: topics, Opts: login})
	java := x.javaLogsInAgain(t, m)
	l.awaitMore(1, topics...)
	// Each connection has logged in once.
	eventually(t, "logins are renewed", func() (bool, string) {
		open := x.plaintext.metric(t, "sluice_proxy_connections") - connected
		n := (logins() - before) / float64(m.requests)
		return time.Since(begun) > 3*reauthenticate/2 && n >= 2*open, fmt.Sprintf("%v logins on %v connections", n, open)
	})
	l.stop()
	tail.reach(x.ends(t, topics...))
	java()
}

// javaLogsInAgain has Java's producer write to both tiers for longer than its
// login lasts.
func (x *secured) javaLogsInAgain(t *testing.T, m renewal) (wait func()) {
	t.Helper()
	name := strings.ToLower(m.mechanism)
	topics := []string{"java-again-" + name + "-control", "java-again-" + name + "-telemetry"}
	if _, err := x.adm.CreateTopics(t.Context(), 1, 1, nil, topics...); err != nil {
		t.Fatal(err)
	}
	x.allow(t, "writer", kadm.NewACLs().Topics(topics...).ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpWrite))
	jvm := shared(t).jvm
	var in strings.Builder
	const turns = 5
	for range turns {
		for _, topic := range topics {
			fmt.Fprintf(&in, "%s 0 _ - %s\n", topic, javaText(worthwhile))
		}
		fmt.Fprintf(&in, "flush\npause %d\n", reauthenticate.Milliseconds()/3)
	}
	said := make(chan harness.JavaResult, 1)
	go func() {
		said <- jvm.TryJava(in.String(), "Client", "produce", x.plaintext.Bootstrap, "security.protocol=SASL_PLAINTEXT", "sasl.mechanism="+m.mechanism, "retries=0",
			"sasl.jaas.config=org.apache.kafka.common.security."+m.java)
	}()
	return func() {
		t.Helper()
		if r := <-said; r.Err != nil || strings.Count(r.Stdout, "\n") != turns*len(topics) {
			t.Errorf("Java's producer: %v\n%s%s", r.Err, r.Stdout, r.Stderr)
		}
	}
}

func (x *secured) ends(t *testing.T, topics ...string) map[history.Place]int64 {
	t.Helper()
	listed, err := x.adm.ListEndOffsets(t.Context(), topics...)
	if err != nil {
		t.Fatal(err)
	}
	return placed(listed)
}

// connects says whether a configuration reaches its cluster.
func connects(ctx context.Context, cfg *config.Config) error {
	opt, err := server.ClusterOptions(cfg, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	cluster, err := lowlatency.New(opt)
	if err != nil {
		return err
	}
	defer cluster.Close()
	return cluster.Refresh(ctx)
}

// Brokers are spoken to in TLS: theirs is the name that was asked for and the
// CA that is trusted, sluice shows its own certificate, which may be renewed,
// and clients are still themselves.
func (x *secured) brokersWithTLS(t *testing.T) {
	dir := t.TempDir()
	ca := x.ca.File(t, dir)
	cert, key := x.ca.Files(t, dir, "sluice")
	own := func(more string) replica {
		return replica{Kafka: x.kafka.TLSBootstrap(), Store: s3Store(x.s3, "sasl"), InKafka: x.login +
			fmt.Sprintf("  tls: { enabled: true, ca: %q, cert: %q, key: %q%s }\n", ca, cert, key, more)}
	}
	s := startSluice(t, own(""))
	topics := []string{"tls-control", "tls-telemetry"}
	as := []kgo.Opt{kgo.SASL(x.sha256(harness.Admin))}
	adm := kadm.NewClient(client(t, s.Bootstrap, as...))
	if _, err := adm.CreateTopics(t.Context(), 3, 1, nil, topics...); err != nil {
		t.Fatal(err)
	}
	h := history.New()
	l := startLoad(t, h, workload{Bootstrap: s.Bootstrap, Topics: topics, Opts: as})
	tail := follow(t, h, "at the tail", s.Bootstrap, as, topics...)
	l.awaitMore(50, topics...)
	renewed, renewedKey := x.ca.Issue(t, "sluice")
	harness.Write(t, key, renewedKey)
	harness.Write(t, cert, renewed)
	l.awaitMore(50, topics...)
	l.stop()
	tail.reach(x.ends(t, topics...))
	if s.metric(t, "sluice_diskless_stored_batches_total") == 0 {
		t.Error("nothing went to objects")
	}
	if err := client(t, s.Bootstrap, kgo.SASL(x.basic("writer"))).Ping(t.Context()); err != nil {
		t.Error(err)
	}

	for name, r := range map[string]replica{
		"another host name":              own(`, server_name: "another.example"`),
		"a CA that is not theirs":        {Kafka: x.kafka.TLSBootstrap(), InKafka: x.login + fmt.Sprintf("  tls: { enabled: true, ca: %q, cert: %q, key: %q }\n", harness.NewCA(t).File(t, t.TempDir()), cert, key)},
		"no certificate of sluice's own": {Kafka: x.kafka.TLSBootstrap(), InKafka: x.login + fmt.Sprintf("  tls: { enabled: true, ca: %q }\n", ca)},
		"no TLS":                         {Kafka: x.kafka.TLSBootstrap(), InKafka: x.login},
	} {
		cfg, err := config.Load(r.withDefaults(t).write(t))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		err = connects(ctx, cfg)
		cancel()
		if err == nil {
			t.Errorf("with %s the brokers are spoken to", name)
		}
		t.Logf("%s: %v", name, err)
	}

	// Where clients do not log in, sluice's certificate would be everybody's.
	var out, errs strings.Builder
	file := replica{Kafka: x.kafka.CertificateBootstrap(), InKafka: fmt.Sprintf("  tls: { enabled: true, ca: %q, cert: %q, key: %q }\n", ca, cert, key)}.withDefaults(t).write(t)
	if code := cli.Run(t.Context(), []string{"check", "--live", "-c", file}, &out, &errs); code != 1 || !strings.Contains(out.String(), "kafka.tls.cert would make every client") {
		t.Errorf("check --live ends with %d:\n%s%s", code, out.String(), errs.String())
	}
}
