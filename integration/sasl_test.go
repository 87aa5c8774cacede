package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// selfSigned writes a certificate for 127.0.0.1 and its key.
func selfSigned(t *testing.T) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(parsed)
	return write("cert.pem", "CERTIFICATE", cert), write("key.pem", "PRIVATE KEY", private), roots
}

// Clients log in through sluice as themselves, and the broker's ACLs mean on a
// diskless topic what they mean on any.
func TestClientsAreThemselves(t *testing.T) {
	users := map[string]string{harness.Admin: "admin-secret", "writer": "writer-secret", "reader": "reader-secret"}
	k := harness.StartKafka(t, harness.KafkaOptions{Nodes: []int32{1}, Users: users})
	s3 := harness.StartS3(t)
	certFile, keyFile, roots := selfSigned(t)
	login := fmt.Sprintf("  sasl: { mechanism: SCRAM-SHA-256, username: %q, password: %q }\n", harness.Admin, users[harness.Admin])
	plaintext := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(s3, "sasl"), InKafka: login})
	encrypted := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(s3, "sasl"), InKafka: login,
		InListen: fmt.Sprintf("  tls: { cert: %q, key: %q }\n", certFile, keyFile)})

	basic := func(user string) sasl.Mechanism { return plain.Auth{User: user, Pass: users[user]}.AsMechanism() }
	digest := func(user string) sasl.Mechanism {
		return scram.Auth{User: user, Pass: users[user]}.AsSha256Mechanism()
	}
	topics := []string{"sasl-control", "sasl-telemetry"}
	adm := kadm.NewClient(client(t, plaintext.Bootstrap, kgo.SASL(digest(harness.Admin))))
	if _, err := adm.CreateTopics(t.Context(), 2, 1, nil, topics...); err != nil {
		t.Fatal(err)
	}
	for user, op := range map[string]kadm.ACLOperation{"writer": kadm.OpWrite, "reader": kadm.OpRead} {
		made, err := adm.CreateACLs(t.Context(), kadm.NewACLs().Topics(topics...).ResourcePatternType(kadm.ACLPatternLiteral).
			Allow("User:"+user).AllowHosts().Operations(op))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range made {
			if m.Err != nil {
				t.Fatal(m.Err)
			}
		}
	}

	// ACLs take effect a moment after they are acknowledged.
	for _, user := range []string{"writer", "reader"} {
		as := kadm.NewClient(client(t, plaintext.Bootstrap, kgo.SASL(digest(user))))
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
		{"PLAIN", plaintext, basic, nil},
		{"SCRAM", plaintext, digest, nil},
		{"SCRAM over TLS", encrypted, digest, []kgo.Opt{kgo.DialTLSConfig(&tls.Config{RootCAs: roots})}},
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
