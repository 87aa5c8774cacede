package integration

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// Clients log in through sluice as themselves, and the broker's ACLs mean on a
// diskless topic what they mean on any.
func TestClientsAreThemselves(t *testing.T) {
	x := startSecured(t)
	t.Run("every mechanism", x.everyMechanism)
	t.Run("denials", x.denials)
	t.Run("TLS to brokers", x.brokersWithTLS)
}

// Logins that expire are renewed on connections that are in use.
func TestLongLoginsAreRenewed(t *testing.T) {
	harness.Long(t)
	x := startSecured(t)
	for _, m := range []renewal{
		{"SCRAM-SHA-512", 2, x.sha512, fmt.Sprintf("scram.ScramLoginModule required username=%q password=%q;", "writer", x.users["writer"])},
		{"OAUTHBEARER", 1, x.token, fmt.Sprintf("oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=%q;", "writer")},
	} {
		t.Run(m.mechanism, func(t *testing.T) { x.reauthentication(t, m) })
	}
}

// secured is a cluster with logins, ACLs and TLS, and replicas in front of it.
type secured struct {
	users     map[string]string
	kafka     *harness.Kafka
	ca        *harness.CA
	s3        *harness.S3
	login     string // of sluice itself, in YAML
	plaintext *sluice
	encrypted *sluice
	adm       *kadm.Client // through plaintext
}

// reauthenticate is how long a login by SCRAM-SHA-512 or OAUTHBEARER lasts. Brokers refuse to
// renew one more often than once a second.
const reauthenticate = 3 * time.Second

func startSecured(t *testing.T) *secured {
	t.Helper()
	x := &secured{users: map[string]string{}, ca: harness.NewCA(t), s3: harness.StartS3(t)}
	for _, user := range []string{harness.Admin, "writer", "reader", "describer", "transactor", "nobody"} {
		x.users[user] = user + "-secret"
	}
	x.kafka = harness.StartKafka(t, harness.KafkaOptions{Nodes: []int32{1}, Users: x.users, TLS: x.ca, Properties: map[string]string{
		"listener.name.plaintext.scram-sha-512.connections.max.reauth.ms": strconv.FormatInt(reauthenticate.Milliseconds(), 10),
		"listener.name.plaintext.oauthbearer.connections.max.reauth.ms":   strconv.FormatInt(reauthenticate.Milliseconds(), 10),
	}})
	certFile, keyFile := x.ca.Files(t, t.TempDir(), "127.0.0.1")
	x.login = fmt.Sprintf("  sasl: { mechanism: SCRAM-SHA-256, username: %q, password: %q }\n", harness.Admin, x.users[harness.Admin])
	x.plaintext = startSluice(t, replica{Kafka: x.kafka.Bootstrap(), Store: s3Store(x.s3, "sasl"), InKafka: x.login})
	x.encrypted = startSluice(t, replica{Kafka: x.kafka.Bootstrap(), Store: s3Store(x.s3, "sasl"), InKafka: x.login,
		InListen: fmt.Sprintf("  tls: { cert: %q, key: %q }\n", certFile, keyFile)})
	x.adm = kadm.NewClient(client(t, x.plaintext.Bootstrap, kgo.SASL(x.sha256(harness.Admin))))
	return x
}

func (x *secured) basic(user string) sasl.Mechanism {
	return plain.Auth{User: user, Pass: x.users[user]}.AsMechanism()
}

func (x *secured) sha256(user string) sasl.Mechanism {
	return scram.Auth{User: user, Pass: x.users[user]}.AsSha256Mechanism()
}

func (x *secured) sha512(user string) sasl.Mechanism {
	return scram.Auth{User: user, Pass: x.users[user]}.AsSha512Mechanism()
}

// token is a login by a token that nobody has signed, as brokers take it in tests.
func (*secured) token(user string) sasl.Mechanism {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	return oauth.Oauth(func(context.Context) (oauth.Auth, error) {
		now := time.Now().Unix()
		return oauth.Auth{Token: part(`{"alg":"none"}`) + "." + part(fmt.Sprintf(`{"sub":%q,"iat":%d,"exp":%d}`, user, now, now+3600)) + "."}, nil
	})
}

// allow gives a user rights, and waits until the broker knows them.
func (x *secured) allow(t *testing.T, user string, b *kadm.ACLBuilder) {
	t.Helper()
	b = b.Allow("User:" + user).AllowHosts()
	made, err := x.adm.CreateACLs(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range made {
		if m.Err != nil {
			t.Fatal(m.Err)
		}
	}
	eventually(t, "the broker knows what "+user+" may do", func() (bool, string) {
		results, err := x.adm.DescribeACLs(t.Context(), b)
		if err != nil {
			return false, err.Error()
		}
		for _, r := range results {
			if len(r.Described) == 0 {
				return false, fmt.Sprint(r.Err)
			}
		}
		return true, ""
	})
}

func (x *secured) everyMechanism(t *testing.T) {
	plaintext, encrypted, adm := x.plaintext, x.encrypted, x.adm
	topics := []string{"sasl-control", "sasl-telemetry"}
	if _, err := adm.CreateTopics(t.Context(), 2, 1, nil, topics...); err != nil {
		t.Fatal(err)
	}
	for user, op := range map[string]kadm.ACLOperation{"writer": kadm.OpWrite, "reader": kadm.OpRead} {
		x.allow(t, user, kadm.NewACLs().Topics(topics...).ResourcePatternType(kadm.ACLPatternLiteral).Operations(op))
	}

	// ACLs take effect a moment after they are acknowledged.
	for _, user := range []string{"writer", "reader"} {
		as := kadm.NewClient(client(t, plaintext.Bootstrap, kgo.SASL(x.sha256(user))))
		eventually(t, user+" may see both topics", func() (bool, string) {
			listed, err := as.ListTopics(t.Context(), topics...)
			if err == nil {
				err = listed.Error()
			}
			return err == nil, fmt.Sprint(err)
		})
	}

	for _, c := range []struct {
		name  string
		at    *sluice
		login func(string) sasl.Mechanism
		opts  []kgo.Opt
	}{
		{"PLAIN", plaintext, x.basic, nil},
		{"SCRAM-SHA-256", plaintext, x.sha256, nil},
		{"SCRAM-SHA-512", plaintext, x.sha512, nil},
		{"OAUTHBEARER", plaintext, x.token, nil},
		{"SCRAM-SHA-256 over TLS", encrypted, x.sha256, []kgo.Opt{kgo.DialTLSConfig(&tls.Config{RootCAs: x.ca.Pool()})}},
	} {
		t.Run(c.name, func(t *testing.T) {
			as := func(user string, more ...kgo.Opt) *kgo.Client {
				return client(t, c.at.Bootstrap, append(append(more, c.opts...), kgo.SASL(c.login(user)), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
			}
			ends := func() kadm.ListedOffsets {
				listed, err := adm.ListEndOffsets(t.Context(), topics...)
				if err != nil {
					t.Fatal(err)
				}
				return listed
			}
			before := ends()
			h := history.New()
			// To be given a producer id also takes the right to write.
			writer, reader := as("writer"), as("reader", kgo.DisableIdempotentWrite())
			for _, topic := range topics {
				for range 50 {
					writer.Produce(t.Context(), h.Next(topic, 0, 1<<10), func(r *kgo.Record, err error) {
						if err != nil {
							t.Error(err)
						}
						h.Acked(r, err)
					})
				}
			}
			if err := writer.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, topic := range topics {
				refused := &kgo.Record{Topic: topic, Partition: 1, Value: make([]byte, 1<<10)}
				if err := reader.ProduceSync(t.Context(), refused).FirstErr(); !errors.Is(err, kerr.TopicAuthorizationFailed) {
					t.Errorf("%s: who may only read wrote: %v", topic, err)
				}
				at, _ := before.Lookup(topic, 1)
				if now, _ := ends().Lookup(topic, 1); now.Offset != at.Offset {
					t.Errorf("%s: what was refused is in the log", topic)
				}
			}

			from := make(map[string]map[int32]kgo.Offset)
			for _, topic := range topics {
				at, _ := before.Lookup(topic, 0)
				from[topic] = map[int32]kgo.Offset{0: kgo.NewOffset().At(at.Offset)}
			}
			consumer := as("reader", kgo.ConsumePartitions(from))
			for n := 0; n < h.Acknowledged(); {
				fetches := consumer.PollFetches(t.Context())
				if err := fetches.Err(); err != nil {
					t.Fatal(err)
				}
				h.Read("reader", fetches.Records()...)
				n += fetches.NumRecords()
			}
			judge(t, h, "reader")

			fetches := as("writer", kgo.ConsumePartitions(from)).PollFetches(t.Context())
			if err := fetches.Err(); !errors.Is(err, kerr.TopicAuthorizationFailed) || fetches.NumRecords() > 0 {
				t.Errorf("who may only write read %d records: %v", fetches.NumRecords(), err)
			}
		})
	}
	if plaintext.metric(t, "sluice_diskless_stored_batches_total") == 0 || encrypted.metric(t, "sluice_diskless_stored_batches_total") == 0 {
		t.Error("nothing went to objects")
	}
	t.Run("a wrong password", func(t *testing.T) {
		for _, m := range []sasl.Mechanism{plain.Auth{User: "writer", Pass: "x"}.AsMechanism(), scram.Auth{User: "writer", Pass: "x"}.AsSha256Mechanism()} {
			if err := client(t, plaintext.Bootstrap, kgo.SASL(m)).Ping(t.Context()); !errors.Is(err, kerr.SaslAuthenticationFailed) {
				t.Errorf("%s: %v", m.Name(), err)
			}
		}
	})
	t.Run("a Produce before the login", func(t *testing.T) {
		written := plaintext.metric(t, "sluice_diskless_objects_written_total")
		for _, conn := range produceUnasked(t, plaintext.Bootstrap, topics[1]) {
			closed(t, conn)
		}
		if now := plaintext.metric(t, "sluice_diskless_objects_written_total"); now != written {
			t.Errorf("whoever connects can fill the bucket: %v objects more", now-written)
		}
	})
	t.Run("no login", func(t *testing.T) {
		if err := client(t, plaintext.Bootstrap, kgo.RequestRetries(0)).Ping(t.Context()); err == nil {
			t.Error("the broker answered")
		}
	})
}

// produceUnasked sends a Produce as the first thing on some connections.
func produceUnasked(t *testing.T, addr, topic string) (conns []net.Conn) {
	t.Helper()
	value := make([]byte, 8<<10)
	_, _ = rand.Read(value)
	record := kmsg.NewRecord()
	record.Key, record.Value = []byte{}, value
	record.Length = int32(len(record.AppendTo(nil)) - 1) // a length of 0 takes one byte
	batch := kmsg.NewRecordBatch()
	batch.PartitionLeaderEpoch, batch.Magic, batch.NumRecords = -1, 2, 1
	batch.ProducerID, batch.ProducerEpoch, batch.FirstSequence = -1, -1, -1
	batch.FirstTimestamp = time.Now().UnixMilli()
	batch.MaxTimestamp = batch.FirstTimestamp
	batch.Records = record.AppendTo(nil)
	b := sealed(batch.AppendTo(nil))
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks, req.TimeoutMillis = 9, -1, 10_000
	p := kmsg.NewProduceRequestTopicPartition()
	p.Records = b
	pt := kmsg.NewProduceRequestTopic()
	pt.Topic, pt.Partitions = topic, []kmsg.ProduceRequestTopicPartition{p}
	req.Topics = []kmsg.ProduceRequestTopic{pt}
	frame := kmsg.NewRequestFormatter(kmsg.FormatterClientID("unasked")).AppendRequest(nil, req, 1)
	for range 5 {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := conn.Write(frame); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	return conns
}
