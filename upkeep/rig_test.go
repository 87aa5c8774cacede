package upkeep

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/server"
)

// rig is an embedded Kafka with a replica in front of it, and a store in a
// folder.
type rig struct {
	t         testing.TB
	kafka     *kfake.Cluster
	direct    *kgo.Client // the brokers'
	proxied   *kgo.Client
	dir       string // of the store
	cfg       *config.Config
	bootstrap string           // of the replica
	faulty    *objstore.Faulty // the store of the last access
}

func init() { firstPause = time.Millisecond }

func newRig(t testing.TB, opts ...kfake.Opt) *rig {
	t.Helper()
	k, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	r := &rig{t: t, kafka: k, dir: filepath.Join(t.TempDir(), "objects")}
	port := harness.Ports(t, 8)
	text := fmt.Sprintf(`kafka: { bootstrap: ["%s"] }
listen: { bootstrap: "127.0.0.1:%d", brokers: "127.0.0.1:%d-%d", advertise: "127.0.0.1", node_ids: "0-2" }
admin: "127.0.0.1:%d"
stores: { default: { url: "file://%s" } }
default_class: control
topics:
  - { match: "otel-*", class: telemetry }
classes:
  telemetry: { linger: 20ms, store: default }
`, strings.Join(k.ListenAddrs(), `", "`), port, port+1, port+6, port+7, r.dir)
	if r.cfg, err = config.Parse("test", []byte(text)); err != nil {
		t.Fatal(err)
	}
	s, err := server.Start(t.Context(), r.cfg, server.Options{Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = s.Shutdown(ctx)
	})
	r.bootstrap = fmt.Sprintf("127.0.0.1:%d", port)
	r.direct, r.proxied = r.client(k.ListenAddrs()...), r.client(r.bootstrap)
	return r
}

func (r *rig) client(seeds ...string) *kgo.Client {
	r.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(30*time.Millisecond), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(cl.Close)
	return cl
}

// write produces one batch of n records, and returns its first offset.
func (r *rig) write(cl *kgo.Client, topic string, partition int32, n int) int64 {
	r.t.Helper()
	var records []*kgo.Record
	for i := range n {
		records = append(records, &kgo.Record{Topic: topic, Partition: partition, Key: fmt.Appendf(nil, "%d", i), Value: bytes.Repeat([]byte{byte(i + 1)}, 2000)})
	}
	got := cl.ProduceSync(r.t.Context(), records...)
	if err := got.FirstErr(); err != nil {
		r.t.Fatal(err)
	}
	return got[0].Record.Offset
}

// access opens what the commands open; Gets of objects are written down.
func (r *rig) access() (*Access, *objstore.Recording) {
	r.t.Helper()
	opt, err := server.ClusterOptions(r.cfg, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		r.t.Fatal(err)
	}
	cluster, err := lowlatency.New(opt)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cluster.Refresh(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	file, err := objstore.OpenFile(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	r.faulty = objstore.NewFaulty(file)
	store := objstore.NewRecording(r.faulty)
	ring, err := keyring.Read(r.t.Context(), store, cluster.ClusterID(), keyring.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	a, err := NewAccess(cluster, map[string]diskless.StoreHandle{"default": {Store: store, Ring: ring}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(a.Close)
	return a, store
}

// batches returns what a partition's log holds.
func (r *rig) batches(a *Access, topic string, partition int32) (out []wire.Batch) {
	r.t.Helper()
	logs, err := a.Cluster.Logs(r.t.Context(), topic)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, l := range logs {
		if l.Partition != partition {
			continue
		}
		for next := l.Start; next < l.End; {
			records, err := a.Cluster.Fetch(r.t.Context(), l, next, 10<<20)
			if err != nil {
				r.t.Fatal(err)
			}
			for {
				b, rest, ok := wire.NextBatch(records)
				if !ok {
					break
				}
				out, records, next = append(out, b), rest, b.BaseOffset()+int64(b.LastOffsetDelta())+1
			}
		}
	}
	return out
}

// file is where the object of a placeholder is.
func (r *rig) file(b wire.Batch) (path string, ref placeholder.Ref) {
	r.t.Helper()
	s, is, err := placeholder.Parse(b)
	if !is || err != nil {
		r.t.Fatalf("the batch at %d is no placeholder (%v)", b.BaseOffset(), err)
	}
	return filepath.Join(r.dir, filepath.FromSlash(diskless.ObjectKey(s.Ref.Object, s.Ref.Audit))), s.Ref
}

// plant writes a batch to a log behind the replica's back.
func (r *rig) plant(topic string, partition int32, b wire.Batch) int64 {
	r.t.Helper()
	b.SetProducerID(-1)
	b.SetProducerEpoch(-1)
	b.SetBaseSequence(-1)
	b.SetCRC(b.ComputeCRC())
	return r.raw(topic, partition, b)
}

func (r *rig) raw(topic string, partition int32, b wire.Batch) int64 {
	r.t.Helper()
	a, _ := r.access()
	logs, err := a.Cluster.Logs(r.t.Context(), topic)
	if err != nil {
		r.t.Fatal(err)
	}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 10_000
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, b
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.TopicID, t.Partitions = topic, logs[0].ID, append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	for _, l := range logs {
		if l.Partition != partition {
			continue
		}
		resp, err := req.RequestWith(r.t.Context(), r.direct.Broker(int(l.Leader)))
		if err != nil {
			r.t.Fatal(err)
		}
		got := resp.Topics[0].Partitions[0]
		if err := kerr.ErrorForCode(got.ErrorCode); err != nil {
			r.t.Fatal(err)
		}
		return got.BaseOffset
	}
	r.t.Fatal("no such partition")
	return 0
}

func (r *rig) change(path string, fn func([]byte) []byte) {
	r.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, fn(b), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func compiled(t testing.TB, globs ...string) (out []router.Pattern) {
	t.Helper()
	for _, g := range globs {
		p, err := router.Compile(g)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}
