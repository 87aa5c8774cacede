package integration

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// payload is one record batch that a test writes.
type payload struct {
	what    string
	records []*kgo.Record
	// stored says that it is worth an object with any codec: bytes that do
	// not compress, many times its placeholder.
	stored bool
}

const (
	baseTime    = 1_700_000_000_000 // past: brokers refuse times far in the future
	maxJitter   = 3_600_000
	incompress  = 1000    // values from this length on are random in stored payloads
	nearlyMax   = 999_000 // a record that just fits max.message.bytes and every client's batch
	manyRecords = 2500
)

// payloads are batches of 1 record to 1 MB. The same seed gives the same bytes.
func payloads(seed uint64, large bool) []payload {
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	rng := rand.New(source)
	random := func(n int) []byte {
		b := make([]byte, n)
		_, _ = source.Read(b)
		return b
	}
	words := func(n int) []byte {
		var b []byte
		for len(b) < n {
			b = append(b, []string{"span=", "ok ", "retry ", "latency_ms=12 ", "error "}[rng.IntN(5)]...)
		}
		return b[:n]
	}
	at := func() time.Time { return time.UnixMilli(baseTime + rng.Int64N(maxJitter)) }
	many := func(n int, value func() []byte) (out []*kgo.Record) {
		for i := range n {
			out = append(out, &kgo.Record{Key: fmt.Append(nil, i), Value: value(), Timestamp: at()})
		}
		return out
	}
	var edges []*kgo.Record
	for _, key := range [][]byte{nil, {}, {0}, random(50)} {
		for _, value := range [][]byte{nil, {}, {0xff}, random(2000)} {
			for _, headers := range [][]kgo.RecordHeader{
				nil,
				{{Key: "", Value: []byte("empty key")}, {Key: "null", Value: nil}, {Key: "empty", Value: []byte{}}},
				{{Key: "twice", Value: []byte("a")}, {Key: "twice", Value: []byte("b")}, {Key: "ключ", Value: random(40)}},
			} {
				edges = append(edges, &kgo.Record{Key: key, Value: value, Headers: headers, Timestamp: at()})
			}
		}
	}
	all := []payload{
		{what: "one tiny record", records: []*kgo.Record{{Key: []byte("k"), Value: []byte("v"), Timestamp: at()}}},
		{what: "null and empty keys, values and headers", records: edges, stored: true},
		{what: "ten records of text", records: many(10, func() []byte { return words(100) })},
		{what: "thirty records that do not compress", records: many(30, func() []byte { return random(incompress) }), stored: true},
		{what: "one record of 2 KB", records: many(1, func() []byte { return random(2048) }), stored: true},
	}
	if large {
		all = append(all,
			payload{what: "a batch of almost 1 MB", records: many(940, func() []byte { return random(incompress) }), stored: true},
			payload{what: "thousands of tiny records", records: many(manyRecords, func() []byte { return words(1 + rng.IntN(30)) })},
			payload{what: "one record of almost 1 MB", records: []*kgo.Record{{Value: random(nearlyMax), Timestamp: at()}}, stored: true},
		)
	}
	return all
}

// worthwhile is a value that is worth an object by itself.
var worthwhile = payloads(99, false)[4].records[0].Value

// place gives a payload's records a topic and a partition.
func (p payload) place(topic string, partition int32) []*kgo.Record {
	for _, r := range p.records {
		r.Topic, r.Partition = topic, partition
	}
	return p.records
}

// What is read equals what was written, whoever wrote it, whoever reads it.
func TestEveryClientReadsWhatEveryClientWrote(t *testing.T) {
	clientsReadEachOther(t, "clients", libraries(shared(t)), codecs, true)
}

// clientsReadEachOther has every library write with every codec, and read it all.
func clientsReadEachOther(t *testing.T, name string, libs []clientLibrary, codecs []string, large bool) {
	p := shared(t)
	onAllTargets(t, func(t *testing.T, tg target) {
		topic := tg.topic(name)
		// A partition for each library and codec.
		tg.create(t, topic, int32(len(libs)*len(codecs)))
		before := storedBatches(t, tg)
		producers := make(map[int32]func([]*kgo.Record))
		data := make(map[int32][]payload)
		for l, lib := range libs {
			for c, codec := range codecs {
				partition := int32(l*len(codecs) + c)
				producers[partition] = lib.producer(t, tg.bootstrap, codec)
				data[partition] = payloads(uint64(partition), large && codec == codecs[l])
			}
		}
		var wrote []*kgo.Record
		for turn := range payloads(0, true) {
			tg.turn(t, turn)
			var wg sync.WaitGroup
			for partition, produce := range producers {
				if turn >= len(data[partition]) {
					continue
				}
				records := data[partition][turn].place(topic, partition)
				wrote = append(wrote, records...)
				wg.Go(func() { produce(records) })
			}
			wg.Wait()
		}
		if t.Failed() {
			return
		}
		for _, lib := range libs {
			same(t, lib.name(), wrote, lib.consume(t, tg.bootstrap, len(wrote), topic), true)
		}
		if n := storedBatches(t, tg) - before; tg.diskless && n == 0 || !tg.diskless && n != 0 {
			t.Errorf("%v batches went to objects", n)
		}
		inKafka(t, p, tg, topic, wrote, func(r *kgo.Record) bool {
			for turn, pl := range data[r.Partition] {
				if slices.Contains(pl.records, r) {
					// A library may cut batches as it likes: only a large
					// value is worth an object whatever it travels with.
					return pl.stored && len(r.Value) >= incompress && tg.disklessIn(turn)
				}
			}
			return false
		})
	})
}

// storedBatches counts the batches whose payload went to an object.
func storedBatches(t testing.TB, tg target) float64 {
	if tg.sluice == nil {
		return 0
	}
	return tg.sluice.metric(t, "sluice_diskless_stored_batches_total")
}

// inKafka looks at what the brokers themselves hold, behind sluice's back. Of
// records whose batch is stored there must be a stand-in without any of its
// bytes; of others, their own.
func inKafka(t *testing.T, p *sharedParts, tg target, topic string, wrote []*kgo.Record, stored func(*kgo.Record) bool) {
	t.Helper()
	type at struct {
		partition int32
		offset    int64
	}
	raw := make(map[at]*kgo.Record)
	for _, r := range consumed(t, bootstrapOf(p.kafka), len(wrote), nil, topic) {
		raw[at{r.Partition, r.Offset}] = r
	}
	inline, inObjects := 0, 0
	for _, w := range wrote {
		r := raw[at{w.Partition, w.Offset}]
		if r == nil {
			t.Fatalf("%s-%d: the brokers have no offset %d", topic, w.Partition, w.Offset)
		}
		if !r.Timestamp.Equal(w.Timestamp) && r.Attrs.TimestampType() == 0 {
			t.Fatalf("%s-%d offset %d: the brokers have the timestamp %d of a record of %d", topic, w.Partition, w.Offset, r.Timestamp.UnixMilli(), w.Timestamp.UnixMilli())
		}
		if stored(w) {
			if inObjects++; r.Key != nil || len(r.Value) > 0 {
				t.Fatalf("%s-%d offset %d: a payload that belongs into an object is in Kafka: %s", topic, w.Partition, w.Offset, short(text(r, true)))
			}
		} else if text(r, false) == text(w, false) {
			inline++
		}
	}
	switch {
	case !tg.diskless && inline != len(wrote):
		t.Fatalf("%s: %d of %d records are in Kafka as they were written", topic, inline, len(wrote))
	case tg.diskless && inObjects == 0:
		t.Fatalf("%s: no batch was expected in an object", topic)
	case tg.mixed && (inline == 0 || inObjects == 0):
		t.Fatalf("%s was to hold both kinds, but has %d inline and %d in objects", topic, inline, inObjects)
	}
}

// What the topic's own settings do to a batch must be done to the payload, or
// be invisible.
func TestTopicSettingsThatChangeBatches(t *testing.T) {
	p := shared(t)
	settings := []struct {
		name, compression, timestamps string
	}{
		{"appendtime", "producer", "LogAppendTime"},
		{"appendtime-zstd", "zstd", "LogAppendTime"},
		{"recompress-uncompressed", "uncompressed", "CreateTime"},
		{"recompress-gzip", "gzip", "CreateTime"},
		{"recompress-snappy", "snappy", "CreateTime"},
		{"recompress-lz4", "lz4", "CreateTime"},
		{"recompress-zstd", "zstd", "CreateTime"},
	}
	onAllTargets(t, func(t *testing.T, tg target) {
		var wg sync.WaitGroup
		for _, s := range settings {
			tg.create(t, tg.topic(s.name), int32(len(codecs)), "compression.type", s.compression, "message.timestamp.type", s.timestamps)
		}
		wrote := make(map[string][]*kgo.Record)
		stored := make(map[*kgo.Record]bool)
		data := make(map[string][]payload)
		producers := make([]func([]*kgo.Record), len(codecs))
		for c, codec := range codecs {
			producers[c] = franz{}.producer(t, tg.bootstrap, codec)
			for _, s := range settings {
				data[s.name+codec] = payloads(uint64(c), s.name == "appendtime")
			}
		}
		for turn := range payloads(0, true) {
			tg.turn(t, turn)
			for c, codec := range codecs {
				var records []*kgo.Record
				for _, s := range settings {
					pls := data[s.name+codec]
					if turn >= len(pls) {
						continue
					}
					rs := pls[turn].place(tg.topic(s.name), int32(c))
					for _, r := range rs {
						stored[r] = pls[turn].stored && tg.disklessIn(turn)
					}
					wrote[s.name] = append(wrote[s.name], rs...)
					records = append(records, rs...)
				}
				wg.Go(func() { producers[c](records) })
			}
			wg.Wait()
		}
		if t.Failed() {
			return
		}
		for _, s := range settings {
			topic := tg.topic(s.name)
			created := s.timestamps == "CreateTime"
			read := consumed(t, tg.bootstrap, len(wrote[s.name]), nil, topic)
			same(t, topic, wrote[s.name], read, created)
			if !created {
				appendTimes(t, p, topic, read)
			}
			inKafka(t, p, tg, topic, wrote[s.name], func(r *kgo.Record) bool { return stored[r] })
		}
	})
}

// appendTimes checks times that brokers gave: they are the ones in the brokers'
// log, and marked as such.
func appendTimes(t *testing.T, p *sharedParts, topic string, read []*kgo.Record) {
	t.Helper()
	raw := byPartition(consumed(t, bootstrapOf(p.kafka), len(read), nil, topic))
	for partition, records := range byPartition(read) {
		for i, r := range records {
			if w := raw[partition][i]; r.Timestamp != w.Timestamp || r.Attrs.TimestampType() != 1 || w.Attrs.TimestampType() != 1 {
				t.Fatalf("%s-%d offset %d: time %v of type %d, the broker has %v of type %d", topic, partition, r.Offset, r.Timestamp, r.Attrs.TimestampType(), w.Timestamp, w.Attrs.TimestampType())
			}
			if r.Timestamp.UnixMilli() < baseTime+maxJitter {
				t.Fatalf("%s-%d offset %d keeps the time of its creation", topic, partition, r.Offset)
			}
		}
	}
}
