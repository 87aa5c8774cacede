package harness

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

// DefaultKafka is the release that tests run when neither they nor the
// environment's SLUICE_KAFKA ask for another.
const DefaultKafka = "4.3.1"

// kafkaVariable names the release that stands in for DefaultKafka.
const kafkaVariable = "SLUICE_KAFKA"

// OnKafka is the environment of a process whose tests run this release.
func OnKafka(version string) []string { return append(os.Environ(), kafkaVariable+"="+version) }

// OtherKafka reports whether another release stands in for DefaultKafka.
func OtherKafka() bool {
	v := os.Getenv(kafkaVariable)
	return v != "" && v != DefaultKafka
}

// KafkaOptions choose a cluster. The zero value is three brokers, ids 1 to 3,
// of the release that tests run.
type KafkaOptions struct {
	Version    string
	Nodes      []int32
	Properties map[string]string // added to every broker's server.properties
	Features   []string          // other than the release's own, as in transaction.version=0
	// Users, by name with their passwords, make clients log in (SASL_PLAINTEXT;
	// PLAIN, SCRAM or an unsecured token of OAUTHBEARER) and turn ACLs on. Admin
	// is one of them, and may do everything.
	Users map[string]string
	// TLS adds two listeners with certificates of this CA for 127.0.0.1, which
	// want one of their clients too: TLSBootstrap's, where clients log in as
	// well, and CertificateBootstrap's, where they do not.
	TLS *CA
	// ClientMetrics is a file to which brokers write what clients push of their
	// metrics (harness/java/Reporter.java).
	ClientMetrics string
	// Relays are addresses at which something stands before the brokers: for each,
	// every broker has a listener that names it to clients, its port raised by the
	// broker's place in Nodes.
	Relays []string
}

// log4jProperties have Java log warnings to standard output.
const log4jProperties = "rootLogger.level=warn\nrootLogger.appenderRef.o.ref=O\nappender.o.type=Console\nappender.o.name=O\nappender.o.layout.type=PatternLayout\nappender.o.layout.pattern=[%d] %p %m (%c)%n%throwable\n"

// Admin is the user that brokers themselves are.
const Admin = "admin"

// Kafka is a real Apache Kafka cluster of combined KRaft nodes.
type Kafka struct {
	ID  string // cluster id
	dir string
	opt KafkaOptions
	cp  string

	mu    sync.Mutex
	nodes map[int32]*kafkaNode
}

type kafkaNode struct {
	id         int32
	dir        string
	addr       string // of its client listener
	controller string
	tls, mtls  string
	relayed    []string
	cert, key  []byte // PEM
	process    *Process
}

// Classpath returns the class path of a Kafka release, fetched once.
func Classpath(version string) (string, error) { return classpath("kafka", version) }

// classpath fetches what a folder's pom.xml asks for.
func classpath(what, version string) (string, error) {
	if _, err := need("java", "install a JDK 17 or newer (Debian: apt-get install openjdk-17-jdk-headless)"); err != nil {
		return "", err
	}
	dir := filepath.Join(cacheDir(), what+"-"+version)
	err := once(dir, func(tmp string) error {
		mvn, err := need("mvn", "install Apache Maven (Debian: apt-get install maven)")
		if err != nil {
			return err
		}
		return run(filepath.Join(root(), "harness", what), mvn, "-q", "-B", "dependency:copy-dependencies",
			"-Dkafka.version="+version, "-D"+what+".version="+version, "-DoutputDirectory="+tmp)
	})
	if err != nil {
		return "", err
	}
	return dir + "/*", nil
}

// StartKafka starts a cluster and waits until it is of use. It ends with the
// test.
func StartKafka(t testing.TB, opt KafkaOptions) *Kafka {
	t.Helper()
	if opt.Version == "" {
		opt.Version = cmp.Or(os.Getenv(kafkaVariable), DefaultKafka)
	}
	if len(opt.Nodes) == 0 {
		opt.Nodes = []int32{1, 2, 3}
	}
	cp, err := Classpath(opt.Version)
	if err != nil {
		t.Fatal(err)
	}
	if opt.ClientMetrics != "" {
		newest, err := Classpath(DefaultKafka)
		if err != nil {
			t.Fatal(err)
		}
		plugins, err := javaClasses("java", newest)
		if err != nil {
			t.Fatal(err)
		}
		cp = plugins + string(os.PathListSeparator) + cp
	}
	k := &Kafka{
		ID:  base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf("sluice-%09d", os.Getpid()))),
		dir: tempDir(t, "kafka"), opt: opt, cp: cp, nodes: make(map[int32]*kafkaNode),
	}
	const fixed = 4
	listeners := fixed + len(opt.Relays)
	first := Ports(t, listeners*len(opt.Nodes))
	for i, id := range opt.Nodes {
		port := func(n int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(first+listeners*i+n)) }
		k.nodes[id] = &kafkaNode{
			id: id, dir: filepath.Join(k.dir, strconv.Itoa(int(id))),
			addr: port(0), controller: port(1), tls: port(2), mtls: port(3),
		}
		for r := range opt.Relays {
			k.nodes[id].relayed = append(k.nodes[id].relayed, port(fixed+r))
		}
		if opt.TLS != nil {
			k.nodes[id].cert, k.nodes[id].key = opt.TLS.Issue(t, "127.0.0.1")
		}
	}
	t.Cleanup(k.Close) // before the folder goes
	begun := time.Now()
	var wg sync.WaitGroup
	errs := make(chan error, len(opt.Nodes))
	for _, n := range k.nodes {
		wg.Go(func() {
			if err := k.format(n); err != nil {
				errs <- err
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
	for id := range k.nodes {
		if err := k.start(id); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.AwaitBrokers(startTimeout, opt.Nodes...); err != nil {
		t.Fatal(err)
	}
	t.Logf("Kafka %s, %d brokers, was up after %v", opt.Version, len(opt.Nodes), time.Since(begun).Round(100*time.Millisecond))
	return k
}

// startTimeout is generous: a busy machine starts three JVMs slowly.
const startTimeout = 2 * time.Minute

func (k *Kafka) format(n *kafkaNode) error {
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return err
	}
	replicas := min(3, len(k.nodes))
	var voters []string
	for _, v := range k.nodes {
		voters = append(voters, fmt.Sprintf("%d@%s", v.id, v.controller))
	}
	slices.Sort(voters)
	p := map[string]string{
		"process.roles":                                    "broker,controller",
		"node.id":                                          strconv.Itoa(int(n.id)),
		"controller.quorum.voters":                         strings.Join(voters, ","),
		"listeners":                                        "PLAINTEXT://" + n.addr + ",CONTROLLER://" + n.controller,
		"advertised.listeners":                             "PLAINTEXT://" + n.addr,
		"inter.broker.listener.name":                       "PLAINTEXT",
		"controller.listener.names":                        "CONTROLLER",
		"listener.security.protocol.map":                   "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
		"log.dirs":                                         filepath.Join(n.dir, "data"),
		"num.network.threads":                              "2",
		"num.io.threads":                                   "4",
		"num.partitions":                                   "1",
		"default.replication.factor":                       strconv.Itoa(replicas),
		"min.insync.replicas":                              strconv.Itoa(max(1, replicas-1)),
		"offsets.topic.replication.factor":                 strconv.Itoa(replicas),
		"offsets.topic.num.partitions":                     "4",
		"transaction.state.log.replication.factor":         strconv.Itoa(replicas),
		"transaction.state.log.min.isr":                    strconv.Itoa(max(1, replicas-1)),
		"transaction.state.log.num.partitions":             "4",
		"share.coordinator.state.topic.replication.factor": strconv.Itoa(replicas),
		"share.coordinator.state.topic.min.isr":            "1",
		"share.coordinator.state.topic.num.partitions":     "2",
		"transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
		"group.initial.rebalance.delay.ms":                            "0",
		"group.consumer.heartbeat.interval.ms":                        "500", // members learn of each other by heartbeats
		"group.consumer.min.heartbeat.interval.ms":                    "500",
		"group.share.heartbeat.interval.ms":                           "500",
		"group.share.min.heartbeat.interval.ms":                       "500",
		"group.share.min.record.lock.duration.ms":                     "1000", // for groups that ask for it
		"group.streams.heartbeat.interval.ms":                         "500",
		"group.streams.min.heartbeat.interval.ms":                     "500",
		"group.streams.session.timeout.ms":                            "6000", // as little as the classic protocol allows
		"group.streams.min.session.timeout.ms":                        "6000",
		"group.streams.initial.rebalance.delay.ms":                    "0",
		"log.cleaner.dedupe.buffer.size":                              "16777216",
		"broker.rack":                                                 "rack-" + strconv.Itoa(int(n.id)),
		"replica.selector.class":                                      "org.apache.kafka.common.replica.RackAwareReplicaSelector",
		"broker.session.timeout.ms":                                   "6000",
		"broker.heartbeat.interval.ms":                                "1000",
		"controlled.shutdown.enable":                                  "true",
		"auto.create.topics.enable":                                   "true",
	}
	format := []string{"kafka.tools.StorageTool", "format", "-t", k.ID, "-c", n.properties()}
	for _, f := range k.opt.Features {
		format = append(format, "--feature", f)
	}
	if len(k.opt.Users) > 0 {
		jaas := fmt.Sprintf("org.apache.kafka.common.security.plain.PlainLoginModule required username=%q password=%q", Admin, k.opt.Users[Admin])
		for name, password := range k.opt.Users {
			jaas += fmt.Sprintf(" user_%s=%q", name, password)
			for _, scram := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
				format = append(format, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", scram, name, password))
			}
		}
		for key, v := range map[string]string{
			"listener.security.protocol.map":       "CONTROLLER:PLAINTEXT,PLAINTEXT:SASL_PLAINTEXT",
			"sasl.enabled.mechanisms":              "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
			"sasl.mechanism.inter.broker.protocol": "PLAIN",
			"authorizer.class.name":                "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
			"super.users":                          "User:" + Admin + ";User:ANONYMOUS", // controllers speak without a login
		} {
			p[key] = v
		}
		for _, listener := range []string{"plaintext", "tls"} {
			login := "listener.name." + listener + "."
			p[login+"plain.sasl.jaas.config"] = jaas + ";"
			p[login+"scram-sha-256.sasl.jaas.config"] = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
			p[login+"scram-sha-512.sasl.jaas.config"] = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
			p[login+"oauthbearer.sasl.jaas.config"] = fmt.Sprintf("org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=%q;", Admin)
		}
	}
	if k.opt.TLS != nil {
		tls := ",TLS:SSL,MTLS:SSL"
		if len(k.opt.Users) > 0 {
			tls = ",TLS:SASL_SSL,MTLS:SSL"
		}
		p["listener.security.protocol.map"] += tls
		more := ",TLS://" + n.tls + ",MTLS://" + n.mtls
		p["listeners"] += more
		p["advertised.listeners"] += more
		pem := func(b []byte) string { return strings.ReplaceAll(string(b), "\n", `\n`) }
		for _, listener := range []string{"tls", "mtls"} {
			ssl := "listener.name." + listener + ".ssl."
			p[ssl+"keystore.type"], p[ssl+"truststore.type"] = "PEM", "PEM"
			p[ssl+"keystore.certificate.chain"], p[ssl+"keystore.key"] = pem(n.cert), pem(n.key)
			p[ssl+"truststore.certificates"] = pem(k.opt.TLS.PEM)
			p[ssl+"client.auth"] = "required"
		}
	}
	for i, addr := range k.opt.Relays {
		host, first, err := net.SplitHostPort(addr)
		if err != nil {
			return err
		}
		port, err := strconv.Atoi(first)
		if err != nil {
			return err
		}
		addr = net.JoinHostPort(host, strconv.Itoa(port+slices.Index(k.opt.Nodes, n.id)))
		name := fmt.Sprintf("RELAY%d", i)
		p["listener.security.protocol.map"] += "," + name + ":PLAINTEXT"
		p["listeners"] += "," + name + "://" + n.relayed[i]
		p["advertised.listeners"] += "," + name + "://" + addr
	}
	if k.before4() {
		p["group.coordinator.rebalance.protocols"] = "classic,consumer" // KIP-848, which is not the default yet
	}
	if k.opt.ClientMetrics != "" {
		p["metric.reporters"], p["reporter.file"] = "Reporter", k.opt.ClientMetrics
	}
	for key, v := range k.opt.Properties {
		p[key] = v
	}
	var b strings.Builder
	keys := make([]string, 0, len(p))
	for key := range p {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		fmt.Fprintf(&b, "%s=%s\n", key, p[key])
	}
	if err := os.WriteFile(n.properties(), []byte(b.String()), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(n.log4j(), []byte(log4jProperties), 0o644); err != nil {
		return err
	}
	return run(n.dir, "java", append(jvm(k.cp, n.log4j(), "-Xmx128m"), format...)...)
}

func (n *kafkaNode) properties() string { return filepath.Join(n.dir, "server.properties") }
func (n *kafkaNode) log4j() string      { return filepath.Join(n.dir, "log4j2.properties") }
func (n *kafkaNode) log() string        { return filepath.Join(n.dir, "broker.log") }

// jvm are the flags of a small JVM that starts quickly.
func jvm(cp, log4j string, more ...string) []string {
	args := append([]string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-XX:-UsePerfData", "-Djava.awt.headless=true"}, more...)
	if log4j != "" {
		args = append(args, "-Dlog4j2.configurationFile="+log4j)
	}
	return append(args, "-cp", cp)
}

func (k *Kafka) start(id int32) error {
	n := k.nodes[id]
	// C2 is left on: brokers run long enough to profit, and benchmarks use them.
	args := []string{"-Xmx640m", "-Xms256m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Djava.awt.headless=true", "-Dlog4j2.configurationFile=" + n.log4j(), "-cp", k.cp, "kafka.Kafka", n.properties()}
	p, err := StartProcess(fmt.Sprintf("broker %d", id), n.log(), "java", nil, args...)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	n.process = p
	return nil
}

// before4 reports whether the release is older than 4.0.
func (k *Kafka) before4() bool { return strings.HasPrefix(k.opt.Version, "3.") }

// addresses lists those of one listener of all brokers.
func (k *Kafka) addresses(listener func(*kafkaNode) string) []string {
	var out []string
	for _, n := range k.nodes {
		out = append(out, listener(n))
	}
	slices.Sort(out)
	return out
}

// Bootstrap lists the client addresses of all brokers.
func (k *Kafka) Bootstrap() []string {
	return k.addresses(func(n *kafkaNode) string { return n.addr })
}

// TLSBootstrap lists the addresses of all brokers for clients that speak TLS,
// show a certificate and log in.
func (k *Kafka) TLSBootstrap() []string {
	return k.addresses(func(n *kafkaNode) string { return n.tls })
}

// CertificateBootstrap is TLSBootstrap without a login.
func (k *Kafka) CertificateBootstrap() []string {
	return k.addresses(func(n *kafkaNode) string { return n.mtls })
}

// RelayedAddr is where a broker listens for what stands at Relays[i].
func (k *Kafka) RelayedAddr(id int32, i int) string { return k.nodes[id].relayed[i] }

// BrokerAddr is a broker's client address.
func (k *Kafka) BrokerAddr(id int32) string { return k.nodes[id].addr }

// Nodes lists the brokers' ids.
func (k *Kafka) Nodes() []int32 { return k.opt.Nodes }

// Logs returns the end of a broker's log.
func (k *Kafka) Logs(id int32) string { return tail(k.nodes[id].log(), 60) }

// Kill is kill -9 of a broker.
func (k *Kafka) Kill(t testing.TB, id int32) {
	t.Helper()
	k.process(id).Kill()
}

// Freeze stops a broker from running, with its connections open, until Thaw.
func (k *Kafka) Freeze(t testing.TB, id int32) {
	t.Helper()
	if err := k.process(id).Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

// Thaw lets a frozen broker go on.
func (k *Kafka) Thaw(t testing.TB, id int32) {
	t.Helper()
	if err := k.process(id).Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// Stop ends a broker as an operator would.
func (k *Kafka) Stop(t testing.TB, id int32) {
	t.Helper()
	_ = k.process(id).Stop(30 * time.Second)
}

// Start starts a broker again, on its data, and waits for it.
func (k *Kafka) Start(t testing.TB, id int32) {
	t.Helper()
	if err := k.start(id); err != nil {
		t.Fatal(err)
	}
	if err := k.AwaitBrokers(startTimeout, id); err != nil {
		t.Fatal(err)
	}
}

func (k *Kafka) process(id int32) *Process {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.nodes[id].process
}

// AwaitBrokers waits until these brokers are registered and answer. The error
// says which does not, with the end of its log.
func (k *Kafka) AwaitBrokers(patience time.Duration, ids ...int32) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		var missing []string
		for _, id := range ids {
			if ended, err := k.process(id).Ended(); ended {
				return fmt.Errorf("broker %d has ended (%v):\n%s", id, err, k.Logs(id))
			}
			if err := k.answers(ctx, id, ids); err != nil {
				missing = append(missing, fmt.Sprintf("broker %d: %v", id, err))
			}
		}
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("not up after %v: %s (stuck? kill -3 gives a thread dump); the log of broker %d ends:\n%s", patience, strings.Join(missing, "; "), ids[0], k.Logs(ids[0]))
		}
	}
}

// answers asks a broker itself whether it knows the others.
func (k *Kafka) answers(ctx context.Context, id int32, others []int32) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	opts := []kgo.Opt{kgo.SeedBrokers(k.BrokerAddr(id))}
	if len(k.opt.Users) > 0 {
		opts = append(opts, kgo.SASL(plain.Auth{User: Admin, Pass: k.opt.Users[Admin]}.AsMechanism()))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return err
	}
	defer cl.Close()
	meta, err := kadm.NewClient(cl).BrokerMetadata(ctx)
	if err != nil {
		return err
	}
	for _, other := range others {
		if !slices.Contains(meta.Brokers.NodeIDs(), other) {
			return fmt.Errorf("it does not know broker %d yet", other)
		}
	}
	return nil
}

// Close kills all brokers.
func (k *Kafka) Close() {
	for _, id := range k.opt.Nodes {
		if p := k.process(id); p != nil {
			if ended, _ := p.Ended(); !ended {
				p.Kill()
			}
		}
	}
}
