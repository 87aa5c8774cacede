package diskless

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy/xerial"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

const (
	testCluster = "cluster-A"
	testLinger  = 250 * time.Millisecond
	tick        = sweepInterval // decisions come at most this late
)

func telemetry() *tiers.Class {
	return &tiers.Class{Name: "telemetry", Tier: tiers.Diskless, Store: "default", Linger: testLinger, ObjectSize: 8 << 20}
}

// rig is a tier on a store that can go wrong and whose requests are written
// down.
type rig struct {
	t      testing.TB
	memory *objstore.Memory
	faulty *objstore.Faulty
	store  *objstore.Recording
	ring   *keyring.Ring
	tier   *Tier
}

func newRig(t testing.TB, l Limits) *rig {
	t.Helper()
	memory := objstore.NewMemory()
	r := &rig{t: t, memory: memory, faulty: objstore.NewFaulty(memory)}
	r.store = objstore.NewRecording(r.faulty)
	r.ring = openRing(t, memory)
	r.tier = newTier(t, r.store, r.ring, l)
	return r
}

func openRing(t testing.TB, s objstore.Store) *keyring.Ring {
	t.Helper()
	ring, err := keyring.Open(context.Background(), s, testCluster, keyring.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func newTier(t testing.TB, s objstore.Store, ring *keyring.Ring, l Limits) *Tier {
	t.Helper()
	tier, err := New(Options{
		ClusterID: testCluster, Stores: map[string]StoreHandle{"default": {s, ring}}, Limits: l,
		Logger: zerolog.Nop(), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tier.Close(context.Background()) })
	return tier
}

// another is a replica on the same store, with a cold cache.
func (r *rig) another(l Limits) *Tier {
	r.t.Helper()
	return newTier(r.t, r.store, openRing(r.t, r.memory), l)
}

func (r *rig) healthy() bool { return r.tier.Status()[0].Healthy }

// sent is a batch that was offered to a tier.
type sent struct {
	t        testing.TB
	tp       tiers.TopicPartition
	batch    []byte
	offload  tiers.Offload
	notified atomic.Int32
	decided  chan struct{}
	started  time.Time
	took     time.Duration
	once     sync.Once
	outcome  tiers.Offloaded
}

type offer struct {
	class     *tiers.Class
	topic     string
	partition int32
	batch     []byte
	timeout   time.Duration
	ctx       context.Context
	producer  *tiers.Producer
	request   uint64
}

func send(t testing.TB, tier *Tier, o offer) *sent {
	t.Helper()
	if o.class == nil {
		o.class = telemetry()
	}
	if o.topic == "" {
		o.topic = "otel"
	}
	if o.batch == nil {
		o.batch = batchOf(1, 4096)
	}
	if o.ctx == nil {
		o.ctx = context.Background()
	}
	s := &sent{t: t, tp: tiers.TopicPartition{Topic: o.topic, Partition: o.partition}, batch: o.batch, decided: make(chan struct{}), started: time.Now()}
	// The tier may not keep the client's bytes, nor change them.
	own := bytes.Clone(o.batch)
	s.offload = tier.Offload(o.ctx, tiers.OffloadRequest{
		Class: o.class, TopicPartition: s.tp, Batch: own, Timeout: o.timeout, ProduceVersion: 9, MaxMessageBytes: 100 << 20,
		Producer: o.producer, Request: o.request,
	}, func() {
		if s.notified.Add(1) > 1 {
			t.Error("notified twice")
			return
		}
		s.took = time.Since(s.started)
		close(s.decided)
	})
	return s
}

func (r *rig) send(o offer) *sent { r.t.Helper(); return send(r.t, r.tier, o) }

func (s *sent) isDecided() bool { return s.notified.Load() > 0 }

// result waits for the decision, and asks for the outcome once, as the proxy
// does.
func (s *sent) result() tiers.Offloaded {
	<-s.decided
	s.once.Do(func() { s.outcome = s.offload.Result() })
	return s.outcome
}

func (s *sent) placeholder() wire.Batch {
	s.t.Helper()
	res := s.result()
	if res.Records == nil {
		s.t.Fatalf("inline (%s) after %v, want a placeholder", res.Inline, s.took)
	}
	return res.Records
}

func (s *sent) wantInline(want tiers.InlineReason) {
	s.t.Helper()
	if res := s.result(); res.Records != nil || res.Inline != want {
		s.t.Fatalf("%q, %d bytes after %v; want inline %q", res.Inline, len(res.Records), s.took, want)
	}
}

var batchSeed atomic.Uint64

// batchOf is a batch of records with values of size bytes that do not compress.
func batchOf(records, size int) wire.Batch {
	return makeBatch(rand.New(rand.NewPCG(1, batchSeed.Add(1))), records, size, wire.CodecNone, -1, -1, -1)
}

func makeBatch(r *rand.Rand, records, size, codec int, pid int64, epoch int16, seq int32) wire.Batch {
	const first = 1_760_000_000_000
	var body []byte
	var last int64
	for i := range records {
		value := make([]byte, size)
		for j := range value {
			value[j] = byte(r.Uint32())
		}
		last = max(last, int64(i*3))
		rec := kmsg.Record{TimestampDelta64: int64(i * 3), OffsetDelta: int32(i), Key: fmt.Append(nil, "k", i), Value: value}
		rec.Length = int32(len(rec.AppendTo(nil)) - 1)
		body = rec.AppendTo(body)
	}
	return wrapBatch(kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: int16(codec), LastOffsetDelta: int32(records - 1),
		FirstTimestamp: first, MaxTimestamp: first + last, ProducerID: pid, ProducerEpoch: epoch, FirstSequence: seq,
		NumRecords: int32(records), Records: compress(codec, body),
	})
}

func wrapBatch(kb kmsg.RecordBatch) wire.Batch {
	kb.Length = int32(49 + len(kb.Records))
	b := wire.Batch(kb.AppendTo(nil))
	b.SetCRC(b.ComputeCRC())
	return b
}

func compress(codec int, b []byte) []byte {
	var out bytes.Buffer
	switch codec {
	case wire.CodecNone:
		return b
	case wire.CodecGzip:
		w := gzip.NewWriter(&out)
		check2(w.Write(b))
		check(w.Close())
	case wire.CodecSnappy:
		return xerial.Encode(nil, b)
	case wire.CodecLz4:
		w := lz4.NewWriter(&out)
		check(w.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false))) // as Java clients do
		check2(w.Write(b))
		check(w.Close())
	case wire.CodecZstd:
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		check(err)
		return w.EncodeAll(b, nil)
	}
	return out.Bytes()
}

func decompress(b wire.Batch) []byte {
	var out bytes.Buffer
	switch b.Codec() {
	case wire.CodecLz4:
		check2(out.ReadFrom(lz4.NewReader(bytes.NewReader(b.Body()))))
		return out.Bytes()
	case wire.CodecZstd:
		r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
		check(err)
		defer r.Close()
		raw, err := r.DecodeAll(b.Body(), nil)
		check(err)
		return raw
	}
	return b.Body()
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func check2[N any](_ N, err error) { check(err) }

// broker is what Kafka does to a batch that it appends.
type broker struct {
	offset        int64
	epoch         int32
	logAppendTime int64 // 0: the topic has CreateTime
	codec         int   // the topic's compression.type; -1: producer
}

func (k broker) appends(b wire.Batch) wire.Batch {
	b = bytes.Clone(b)
	if k.codec >= 0 && k.codec != b.Codec() {
		body := compress(k.codec, decompress(b))
		b = append(b[:wire.BatchHeaderSize:wire.BatchHeaderSize], body...)
		b.SetAttributes(b.Attributes()&^wire.AttrCodecMask | int16(k.codec))
		b.SetLength(int32(len(b) - wire.LogOverhead))
	}
	if k.logAppendTime > 0 {
		b.SetAttributes(b.Attributes() | wire.AttrLogAppendTime)
		b.SetMaxTimestamp(k.logAppendTime)
	}
	b.SetBaseOffset(k.offset)
	b.SetLeaderEpoch(k.epoch)
	b.SetCRC(crc32.Checksum(b[21:], wire.Castagnoli))
	return b
}

// consumed is what a consumer must see of an original batch in a log that
// keeps producers' codecs.
func (k broker) consumed(original wire.Batch) wire.Batch {
	k.codec = -1
	return k.appends(original)
}

// load resolves one partition's records and loads all of them.
func load(ctx context.Context, tier *Tier, tp tiers.TopicPartition, records []byte) ([]byte, error) {
	pieces, _, err := tier.Resolve(ctx, tp, records, math.MaxInt, 0)
	var out []byte
	for _, p := range pieces {
		parts, done, loadErr := p.Lend(ctx)
		if loadErr != nil {
			return out, loadErr
		}
		lent := bytes.Join(parts, nil)
		if done != nil {
			done()
		}
		if len(lent) != p.Size() {
			return out, fmt.Errorf("size %d announced, %d loaded", p.Size(), len(lent))
		}
		out = append(out, lent...)
		if !p.Cached() {
			continue
		}
		if parts, loadErr = p.Load(ctx); loadErr != nil || !bytes.Equal(bytes.Join(parts, nil), lent) {
			return out, fmt.Errorf("a copy is other than what is lent: %w", loadErr)
		}
	}
	return out, err
}

// plain is a log that changes nothing of a batch but its place.
var plain = broker{offset: 42, epoch: 7, codec: -1}

// wantReadable reads a sent batch back through a tier.
func (s *sent) wantReadable(tier *Tier) {
	s.t.Helper()
	got, err := load(context.Background(), tier, s.tp, plain.appends(s.placeholder()))
	if err != nil {
		s.t.Fatal(err)
	}
	if !bytes.Equal(got, plain.consumed(s.batch)) {
		s.t.Fatal("other bytes came back than were acknowledged")
	}
}

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

func equal(a, b []byte) bool { return bytes.Equal(a, b) }
