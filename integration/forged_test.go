package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// lines keeps what a replica logs.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) has(parts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return true
		}
	}
	return false
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// raw speaks Produce and Fetch as bytes, in versions that name topics.
type raw struct {
	t  testing.TB
	cl *kgo.Client
}

func rawClient(t testing.TB, bootstrap string) raw {
	v := kversion.Stable()
	v.SetMaxKeyVersion(int16(kmsg.Produce), 9)
	v.SetMaxKeyVersion(int16(kmsg.Fetch), 11)
	return raw{t, client(t, bootstrap, kgo.MaxVersions(v))}
}

func (r raw) leader(topic string, partition int32) *kgo.Broker {
	r.t.Helper()
	listed, err := kadm.NewClient(r.cl).ListTopics(r.t.Context(), topic)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.cl.Broker(int(listed[topic].Partitions[partition].Leader))
}

// produce writes one batch as it is.
func (r raw) produce(topic string, partition int32, batch []byte) (int64, error) {
	r.t.Helper()
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 10_000
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, batch
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.Partitions = topic, []kmsg.ProduceRequestTopicPartition{p}
	req.Topics = []kmsg.ProduceRequestTopic{t}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		resp, err := r.leader(topic, partition).Request(r.t.Context(), req)
		if err != nil {
			r.t.Fatal(err)
		}
		got := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		// Brokers learn of a new topic one after the other.
		if err = kerr.ErrorForCode(got.ErrorCode); !errors.Is(err, kerr.UnknownTopicOrPartition) || time.Now().After(deadline) {
			return got.BaseOffset, err
		}
	}
}

// fetch returns what the log holds from an offset on, as it is.
func (r raw) fetch(topic string, partition int32, offset int64) []byte {
	r.t.Helper()
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch, req.ReplicaID = 1000, 1, 10<<20, -1, -1
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = partition, offset, 10<<20
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.Partitions = topic, []kmsg.FetchRequestTopicPartition{p}
	req.Topics = []kmsg.FetchRequestTopic{t}
	resp, err := r.leader(topic, partition).Request(r.t.Context(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	got := resp.(*kmsg.FetchResponse).Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(got.ErrorCode); err != nil {
		r.t.Fatal(err)
	}
	return got.RecordBatches
}

// genuine returns the first batch of a partition's log, which must be a
// placeholder.
func (r raw) genuine(topic string, partition int32) wire.Batch {
	r.t.Helper()
	b, _, ok := wire.NextBatch(r.fetch(topic, partition, 0))
	if !ok {
		r.t.Fatalf("%s-%d holds no batch", topic, partition)
	}
	if _, is, err := placeholder.Parse(b); !is || err != nil {
		r.t.Fatalf("the first batch of %s-%d is no placeholder (%v)", topic, partition, err)
	}
	return b
}

// writeOnce produces n records to one partition, as one batch.
func writeOnce(t testing.TB, h *history.History, bootstrap, topic string, partition int32, n int, opts ...kgo.Opt) {
	t.Helper()
	cl := client(t, bootstrap, append(opts, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(50*time.Millisecond))...)
	for range n {
		cl.Produce(t.Context(), h.Next(topic, partition, 2<<10), func(r *kgo.Record, err error) {
			h.Acked(r, err)
			if err != nil {
				t.Errorf("%s-%d: %v", topic, partition, err)
			}
		})
	}
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	cl.Close()
}

// sealed makes a changed batch's length and checksum right again.
func sealed(b wire.Batch) wire.Batch {
	b.SetLength(int32(len(b) - wire.LogOverhead))
	b.SetCRC(b.ComputeCRC())
	return b
}

// Whoever can write to Kafka behind sluice's back can plant placeholders. Each
// partition of one topic gets another kind, between two batches of its own.
func TestForgedPlaceholders(t *testing.T) {
	k := sharedKafka(t)
	var log lines
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(harness.StartS3(t), "forged"), Log: &log})
	direct := rawClient(t, bootstrapOf(k))

	const records = 5
	refAt := func(b wire.Batch) int { // of the reference in an uncompressed batch
		return bytes.Index(b, []byte(placeholder.HeaderKey)) + len(placeholder.HeaderKey) + 1 // and its length
	}
	forgeries := []struct {
		name  string
		forge func(own, foreign wire.Batch) wire.Batch
	}{
		{"a copy from another topic", func(_, foreign wire.Batch) wire.Batch { return foreign }},
		{"a copy from another topic that wears this partition's own batch's identity", func(own, foreign wire.Batch) wire.Batch {
			foreign.SetProducerID(own.ProducerID())
			foreign.SetProducerEpoch(own.ProducerEpoch())
			foreign.SetBaseSequence(own.BaseSequence())
			return foreign
		}},
		{"a reference to another range of the object", func(own, _ wire.Batch) wire.Batch {
			own[refAt(own)+26] ^= 1
			return own
		}},
		{"a reference to another object", func(own, _ wire.Batch) wire.Batch {
			own[refAt(own)+10] ^= 1
			return own
		}},
		{"a reference under a key that no store has", func(own, _ wire.Batch) wire.Batch {
			own[refAt(own)+2] ^= 1
			return own
		}},
		{"a reference of a later version", func(own, _ wire.Batch) wire.Batch {
			own[refAt(own)] = 2
			return own
		}},
		{"fewer records", func(own, _ wire.Batch) wire.Batch {
			// The last one, which is empty: length, attributes, two deltas,
			// key, value, headers.
			body := own.Body()
			for range records - 1 {
				n, size := binary.Varint(body)
				body = body[size+int(n):]
			}
			own = own[:len(own)-len(body)]
			own.SetNumRecords(records - 1)
			own.SetLastOffsetDelta(records - 2)
			return own
		}},
		{"one that became another producer's", func(own, _ wire.Batch) wire.Batch {
			own.SetProducerID(1_000_000)
			own.SetProducerEpoch(0)
			own.SetBaseSequence(0)
			return own
		}},
	}
	const victim, topic = "forged-victim-telemetry", "forged-telemetry"
	createTopic(t, s.Bootstrap, victim, 1)
	createTopic(t, s.Bootstrap, topic, int32(len(forgeries))+2)
	whole := int32(len(forgeries)) // a partition with nothing planted
	other := whole + 1             // a partition with a copy from the one before

	h := history.New()
	writeOnce(t, history.New(), s.Bootstrap, victim, 0, records)
	foreign := direct.genuine(victim, 0)
	writeOnce(t, h, s.Bootstrap, topic, whole, records)
	writeOnce(t, h, s.Bootstrap, topic, other, records)
	if at, err := direct.produce(topic, other, direct.genuine(topic, whole)); err != nil || at != records {
		t.Fatalf("planting a copy of another partition: %d %v", at, err)
	}
	for p, f := range forgeries {
		// Not idempotent: else the broker would take the forgery for a
		// duplicate of its model.
		writeOnce(t, h, s.Bootstrap, topic, int32(p), records, kgo.DisableIdempotentWrite())
		own := direct.genuine(topic, int32(p))
		forged := sealed(f.forge(slices.Clone(own), slices.Clone(foreign)))

		if _, err := rawClient(t, s.Bootstrap).produce(topic, int32(p), forged); err != kerr.InvalidRecord {
			t.Errorf("%s: through sluice, the answer is %v", f.name, err)
		}
		if end := endOffsets(t, bootstrapOf(k), topic)[history.Place{Topic: topic, Partition: int32(p)}]; end != records {
			t.Errorf("%s: the log ends at %d after a refused Produce", f.name, end)
		}
		if at, err := direct.produce(topic, int32(p), forged); err != nil || at != records {
			t.Fatalf("%s: planting: %d %v", f.name, at, err)
		}
	}
	for p := range other + 1 {
		writeOnce(t, h, s.Bootstrap, topic, p, records)
	}
	// Nor may an ordinary client say what only sluice says, in whatever codec,
	// or on a topic that is not diskless now but may become so.
	const control = "forged-control"
	createTopic(t, s.Bootstrap, control, 1)
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}
	for i, codec := range codecs {
		cl := client(t, s.Bootstrap, kgo.ProducerBatchCompression(codec), kgo.DisableIdempotentWrite())
		for _, topic := range []string{victim, control} {
			r := &kgo.Record{Topic: topic, Value: []byte{}, Headers: []kgo.RecordHeader{{Key: placeholder.HeaderKey, Value: make([]byte, 60)}}}
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); !errors.Is(err, kerr.InvalidRecord) {
				t.Errorf("codec %d: the reserved header on %s: %v", i, topic, err)
			}
		}
	}
	for place, end := range endOffsets(t, bootstrapOf(k), victim, control) {
		if want := map[string]int64{victim: records}[place.Topic]; end != want {
			t.Errorf("%s ends at %d after refused Produces, %d before", place.Topic, end, want)
		}
	}
	if n := s.metric(t, "sluice_proxy_reserved_header_refused_total"); int(n) != len(forgeries)+2*len(codecs) {
		t.Errorf("%v requests were refused", n)
	}

	// A reader comes to each forgery and no further; never past it, either.
	reader := follow(t, h, "reader", s.Bootstrap, nil, topic)
	const unharmed = 2 * records
	planted := len(forgeries) + 1 // partitions
	eventually(t, "all that is genuine before a forgery is read", func() (bool, string) {
		return reader.count(topic) >= planted*records+unharmed, fmt.Sprint(reader.count(topic))
	})
	eventually(t, "the reader is told of every forgery", func() (bool, string) {
		n := int(s.metric(t, "sluice_diskless_unverified_references_total"))
		return reader.sawError("KAFKA_STORAGE_ERROR") && n >= 2*planted, fmt.Sprintf("%d refusals", n)
	})
	if n := reader.count(topic); n != planted*records+unharmed {
		t.Errorf("%d records were read, %d are before the forgeries", n, planted*records+unharmed)
	}
	for _, v := range h.CheckSoFar("reader") {
		t.Error(v)
	}
	for _, reason := range []string{"wrong signature", "unknown key", "unreadable reference"} {
		if s.metric(t, "sluice_diskless_unverified_references_total", "reason", reason) == 0 {
			t.Errorf("no %s is counted", reason)
		}
		eventually(t, "the log tells of "+reason+", where it is and what to do", func() (bool, string) {
			return log.has(reason, topic, `"offset":5`, "kafka-delete-records"), log.String()
		})
	}

	// What the log line advises helps: the records behind are read.
	remove := make(kadm.Offsets)
	for p := range other + 1 {
		if p == whole {
			continue
		}
		n := int64(records)
		if p < whole && forgeries[p].name == "fewer records" {
			n--
		}
		remove.AddOffset(topic, p, records+n, -1)
	}
	deleted, err := kadm.NewClient(client(t, s.Bootstrap)).DeleteRecords(t.Context(), remove)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	reader.toEnd(bootstrapOf(k), topic)
}

// A replay is a partition's own bytes, if anything: the broker refuses an
// idempotent one, and what it cannot tell from a new batch verifies.
func TestReplayedPlaceholders(t *testing.T) {
	k := sharedKafka(t)
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: s3Store(harness.StartS3(t), "replayed")})
	direct := rawClient(t, bootstrapOf(k))
	const topic, records = "replayed-telemetry", 5
	createTopic(t, s.Bootstrap, topic, 1)

	h := history.New()
	writeOnce(t, h, s.Bootstrap, topic, 0, records)
	idempotent := direct.genuine(topic, 0)
	if at, err := direct.produce(topic, 0, idempotent); err == nil && at != 0 {
		t.Errorf("the broker took an idempotent batch twice, at %d", at)
	}
	readAll(t, h, "after an idempotent replay", s.Bootstrap, bootstrapOf(k), topic)

	// Deleted and created again under its name: the broker has forgotten the
	// producer, the reference is bound to the name. So it verifies, and gives
	// what was once written to a topic of this name and no other.
	adm := kadm.NewClient(client(t, s.Bootstrap))
	if _, err := adm.DeleteTopic(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the topic is gone", func() (bool, string) {
		listed, err := adm.ListTopics(t.Context(), topic)
		return err == nil && (listed[topic].Err != nil || !listed.Has(topic)), fmt.Sprint(err)
	})
	createTopic(t, s.Bootstrap, topic, 1)
	if at, err := direct.produce(topic, 0, idempotent); err != nil || at != 0 {
		t.Fatalf("planting in the new topic: %d %v", at, err)
	}
	readAll(t, h, "of the topic created anew", s.Bootstrap, bootstrapOf(k), topic)

	// Without a producer id the broker cannot tell a replay from a new batch.
	const loose = "replayed-loose-telemetry"
	target{bootstrap: s.Bootstrap, sluice: s}.create(t, loose, 1) // its one batch must not come in before
	cl := client(t, s.Bootstrap, kgo.DisableIdempotentWrite(), kgo.ProducerBatchCompression(kgo.NoCompression()))
	value := bytes.Repeat([]byte("own "), 1000)
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: loose, Value: value}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if at, err := direct.produce(loose, 0, direct.genuine(loose, 0)); err != nil || at != 1 {
		t.Fatalf("replaying: %d %v", at, err)
	}
	for i, r := range consumed(t, s.Bootstrap, 2, nil, loose) {
		if r.Offset != int64(i) || !bytes.Equal(r.Value, value) {
			t.Errorf("offset %d: %d bytes at offset %d", i, len(r.Value), r.Offset)
		}
	}
}

// Objects that the bucket lost or spoilt are the operator's affair; no reader
// may take what is left of them for records.
func TestSpoiltObjects(t *testing.T) {
	k := sharedKafka(t)
	s3 := harness.StartS3(t)
	store := s3Store(s3, "spoilt")
	s := startSluice(t, replica{Kafka: k.Bootstrap(), Store: store})
	bucket := s3.Client(t)
	const topic, records = "spoilt-telemetry", 5
	createTopic(t, s.Bootstrap, topic, 4)
	objects := func() (keys []string) {
		for o := range bucket.ListObjects(t.Context(), s3.Bucket, minio.ListObjectsOptions{Prefix: "spoilt/wal/", Recursive: true}) {
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			keys = append(keys, o.Key)
		}
		return keys
	}
	put := func(key string, b []byte) {
		t.Helper()
		if _, err := bucket.PutObject(t.Context(), s3.Bucket, key, bytes.NewReader(b), int64(len(b)), minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	spoil := []struct {
		reason string
		do     func(key string, b []byte)
	}{
		{"not found", func(key string, _ []byte) {
			if err := bucket.RemoveObject(t.Context(), s3.Bucket, key, minio.RemoveObjectOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
		{"corrupt", func(key string, b []byte) {
			b = bytes.Clone(b)
			b[len(b)/2] ^= 1
			put(key, b)
		}},
		{"corrupt", func(key string, b []byte) { put(key, b[:len(b)/2]) }}, // truncated
	}
	h := history.New()
	intact := make(map[string][]byte)
	for p := range int32(len(spoil)) + 1 {
		before := objects()
		writeOnce(t, h, s.Bootstrap, topic, p, records)
		for _, key := range objects() {
			if slices.Contains(before, key) || int(p) == len(spoil) {
				continue
			}
			o, err := bucket.GetObject(t.Context(), s3.Bucket, key, minio.GetObjectOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if _, err := b.ReadFrom(o); err != nil {
				t.Fatal(err)
			}
			intact[key] = b.Bytes()
			spoil[p].do(key, b.Bytes())
		}
	}
	if len(intact) != len(spoil) {
		t.Fatalf("%d objects were spoilt", len(intact))
	}

	var log lines
	cold := startSluice(t, replica{Kafka: k.Bootstrap(), Store: store, Log: &log})
	reader := follow(t, h, "reader", cold.Bootstrap, nil, topic)
	eventually(t, "the whole partition is read, and the reader is told of the others", func() (bool, string) {
		n := cold.metric(t, "sluice_diskless_unreadable_references_total")
		return reader.count(topic) >= records && reader.sawError("KAFKA_STORAGE_ERROR") && int(n) >= 2*len(spoil), fmt.Sprintf("%d records, %v errors", reader.count(topic), n)
	})
	if n := reader.count(topic); n != records {
		t.Errorf("%d records were read, %d can be", n, records)
	}
	for _, v := range h.CheckSoFar("reader") {
		t.Error(v)
	}
	for _, s := range spoil {
		if cold.metric(t, "sluice_diskless_unreadable_references_total", "reason", s.reason) == 0 {
			t.Errorf("no %s is counted", s.reason)
		}
		eventually(t, "the log tells of "+s.reason+", and what to do", func() (bool, string) {
			return log.has(s.reason, topic, "wal/", "check the store"), log.String()
		})
	}
	for key, b := range intact {
		put(key, b)
	}
	reader.toEnd(bootstrapOf(k), topic)
}
