package placeholder

import (
	"bytes"
	"fmt"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/snappy/xerial"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// packing is a codec as some client or broker writes it.
type packing struct {
	name  string
	codec int
	pack  func([]byte) []byte
}

func packings() []packing {
	ps := []packing{
		{"none", wire.CodecNone, func(b []byte) []byte { return b }},
		{"snappy-raw", wire.CodecSnappy, func(b []byte) []byte { return snappy.Encode(nil, b) }},
		{"snappy-xerial", wire.CodecSnappy, func(b []byte) []byte { return xerial.Encode(nil, b) }},
		{"snappy-xerial-1KiB", wire.CodecSnappy, func(b []byte) []byte {
			out := append([]byte{}, 0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1)
			for len(b) > 0 {
				n := min(len(b), 1024)
				block := snappy.Encode(nil, b[:n])
				out = append(out, byte(len(block)>>24), byte(len(block)>>16), byte(len(block)>>8), byte(len(block)))
				out = append(out, block...)
				b = b[n:]
			}
			return out
		}},
	}
	for _, level := range []int{kgzip.HuffmanOnly, kgzip.NoCompression, 1, 6, 9} {
		ps = append(ps, packing{fmt.Sprintf("gzip%d", level), wire.CodecGzip, func(b []byte) []byte {
			var out bytes.Buffer
			w, err := kgzip.NewWriterLevel(&out, level)
			must(err)
			must2(w.Write(b))
			must(w.Close())
			return out.Bytes()
		}})
	}
	for _, c := range []struct {
		name string
		opts []lz4.Option
	}{
		{"lz4-64KiB", []lz4.Option{lz4.BlockSizeOption(lz4.Block64Kb)}},
		{"lz4-java", []lz4.Option{lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false)}},
		{"lz4-4MiB-checksums", []lz4.Option{lz4.BlockChecksumOption(true), lz4.BlockSizeOption(lz4.Block4Mb)}},
		{"lz4-9", []lz4.Option{lz4.CompressionLevelOption(lz4.Level9), lz4.ChecksumOption(false)}},
	} {
		ps = append(ps, packing{c.name, wire.CodecLz4, func(b []byte) []byte {
			var out bytes.Buffer
			w := lz4.NewWriter(&out)
			must(w.Apply(c.opts...))
			must2(w.Write(b))
			must(w.Close())
			return out.Bytes()
		}})
	}
	for _, c := range []struct {
		name string
		opts []zstd.EOption
	}{
		{"zstd-fast", []zstd.EOption{zstd.WithEncoderLevel(zstd.SpeedFastest)}},
		{"zstd-best-1KiB", []zstd.EOption{zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(1 << 10)}},
		{"zstd-literal", []zstd.EOption{zstd.WithAllLitEntropyCompression(true), zstd.WithNoEntropyCompression(true)}},
	} {
		ps = append(ps, packing{c.name, wire.CodecZstd, func(b []byte) []byte {
			var out bytes.Buffer
			w, err := zstd.NewWriter(&out, append(c.opts, zstd.WithEncoderConcurrency(1))...)
			must(err)
			must2(w.Write(b))
			must(w.Close())
			return out.Bytes()
		}})
		ps = append(ps, packing{c.name + "-whole", wire.CodecZstd, func(b []byte) []byte {
			w, err := zstd.NewWriter(nil, append(c.opts, zstd.WithEncoderConcurrency(1))...)
			must(err)
			return w.EncodeAll(b, nil)
		}})
	}
	return ps
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func must2(_ int, err error) { must(err) }

// simplest of each codec, for tables that need no more.
func codecs() []packing {
	var out []packing
	for _, p := range packings() {
		switch p.name {
		case "none", "gzip6", "snappy-xerial", "lz4-64KiB", "lz4-java", "zstd-fast":
			out = append(out, p)
		}
	}
	return out
}

// encodeRecords writes records with franz-go's own types.
func encodeRecords(rs []kmsg.Record) (out []byte) {
	for _, r := range rs {
		r.Length = 0
		body := r.AppendTo(nil)[1:] // the length 0 takes one byte
		r.Length = int32(len(body))
		out = r.AppendTo(out)
	}
	return out
}

type batchOptions struct {
	packing
	pid        int64
	epoch      int16
	seq        int32
	attributes int16
	first, max int64
}

// encodeBatch writes a whole batch with franz-go's own types.
func encodeBatch(o batchOptions, count int, records []byte) wire.Batch {
	if o.pack != nil {
		records = o.pack(records)
	}
	kb := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1,
		Magic:                2,
		Attributes:           o.attributes | int16(o.codec),
		LastOffsetDelta:      int32(count - 1),
		FirstTimestamp:       o.first,
		MaxTimestamp:         o.max,
		ProducerID:           o.pid,
		ProducerEpoch:        o.epoch,
		FirstSequence:        o.seq,
		NumRecords:           int32(count),
		Records:              records,
	}
	kb.Length = int32(49 + len(records))
	b := wire.Batch(kb.AppendTo(nil))
	b.SetCRC(b.ComputeCRC())
	return b
}

func rec(i int, delta int64, key, value []byte, headers ...kmsg.Header) kmsg.Record {
	return kmsg.Record{TimestampDelta64: delta, OffsetDelta: int32(i), Key: key, Value: value, Headers: headers}
}

// telemetry is n records like those of a metrics agent, size bytes each.
func telemetry(n, size int) []kmsg.Record {
	rs := make([]kmsg.Record, n)
	for i := range rs {
		v := fmt.Appendf(nil, `{"host":"node-%d","seq":%d,"value":%d.%d,"unit":"ms"}`, i%7, i, i*7919%1000, i*104729%97)
		for len(v) < size {
			v = append(v, byte('a'+(i*31+len(v)*len(v))%23))
		}
		rs[i] = rec(i, int64(i*i%977), nil, v[:size])
	}
	return rs
}

func clientBatch(p packing, rs []kmsg.Record) wire.Batch {
	return encodeBatch(batchOptions{packing: p, pid: 4711, epoch: 3, seq: 12, first: 1_760_000_000_000, max: 1_760_000_000_976}, len(rs), encodeRecords(rs))
}

var (
	testKey = Key{ID: KeyID{1, 2, 3, 4, 5, 6, 7, 8}, Secret: [32]byte{31: 7}}
	testLog = Identity{ClusterID: "cluster-A", Topic: "otel-metrics", Partition: 3}
)

func refTo(b wire.Batch) Ref {
	return Ref{KeyID: testKey.ID, Object: [16]byte{0x01, 0x99, 0xc0, 0xde, 15: 9}, Offset: 3 << 20, Length: uint32(len(b)), CRC: b.CRC()}
}

func validated(t testing.TB, b wire.Batch) *Original {
	t.Helper()
	o, err := Validate(b)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func built(t testing.TB, b wire.Batch, zstd bool) wire.Batch {
	t.Helper()
	ph, err := validated(t, b).Build(refTo(b), testKey, testLog, zstd)
	if err != nil {
		t.Fatal(err)
	}
	return ph
}
