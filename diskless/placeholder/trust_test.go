package placeholder

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

func TestSignatureBindsReferenceLogAndBatch(t *testing.T) {
	ph := built(t, clientBatch(packing{}, telemetry(5, 1000)), true)
	s, _, err := Parse(ph)
	if err != nil || !s.Verify(testKey, testLog, ph) {
		t.Fatal("the genuine one does not verify", err)
	}
	for _, c := range []struct {
		name string
		edit func(s *Signed, k *Key, id *Identity, b wire.Batch)
	}{
		{"another secret", func(_ *Signed, k *Key, _ *Identity, _ wire.Batch) { k.Secret[0] ^= 1 }},
		{"another key id", func(_ *Signed, k *Key, _ *Identity, _ wire.Batch) { k.ID[0] ^= 1 }},
		{"another key id on both sides", func(s *Signed, k *Key, _ *Identity, _ wire.Batch) { k.ID[0] ^= 1; s.Ref.KeyID[0] ^= 1 }},
		{"another object", func(s *Signed, _ *Key, _ *Identity, _ wire.Batch) { s.Ref.Object[15] ^= 1 }},
		{"the audit prefix", func(s *Signed, _ *Key, _ *Identity, _ wire.Batch) { s.Ref.Audit = true }},
		{"another offset", func(s *Signed, _ *Key, _ *Identity, _ wire.Batch) { s.Ref.Offset++ }},
		{"another length", func(s *Signed, _ *Key, _ *Identity, _ wire.Batch) { s.Ref.Length++ }},
		{"another CRC", func(s *Signed, _ *Key, _ *Identity, _ wire.Batch) { s.Ref.CRC++ }},
		{"another MAC", func(s *Signed, _ *Key, _ *Identity, _ wire.Batch) { s.mac[macSize-1] ^= 1 }},
		{"another cluster", func(_ *Signed, _ *Key, id *Identity, _ wire.Batch) { id.ClusterID += "x" }},
		{"another topic", func(_ *Signed, _ *Key, id *Identity, _ wire.Batch) { id.Topic += "x" }},
		{"a letter moved from topic to cluster", func(_ *Signed, _ *Key, id *Identity, _ wire.Batch) {
			id.ClusterID, id.Topic = id.ClusterID+id.Topic[:1], id.Topic[1:]
		}},
		{"another partition", func(_ *Signed, _ *Key, id *Identity, _ wire.Batch) { id.Partition++ }},
		{"another producer", func(_ *Signed, _ *Key, _ *Identity, b wire.Batch) { b.SetProducerID(b.ProducerID() + 1) }},
		{"another epoch", func(_ *Signed, _ *Key, _ *Identity, b wire.Batch) { b.SetProducerEpoch(b.ProducerEpoch() + 1) }},
		{"another sequence", func(_ *Signed, _ *Key, _ *Identity, b wire.Batch) { b.SetBaseSequence(b.BaseSequence() + 1) }},
		{"another number of records", func(_ *Signed, _ *Key, _ *Identity, b wire.Batch) {
			b.SetNumRecords(b.NumRecords() + 1)
			b.SetLastOffsetDelta(b.LastOffsetDelta() + 1)
		}},
		{"another last offset delta", func(_ *Signed, _ *Key, _ *Identity, b wire.Batch) { b.SetLastOffsetDelta(b.LastOffsetDelta() + 1) }},
	} {
		s, k, id, b := s, testKey, testLog, slices.Clone(ph)
		c.edit(&s, &k, &id, b)
		if s.Verify(k, id, b) {
			t.Errorf("%s: verifies", c.name)
		}
	}
}

// Every byte of the reference that is changed in the log is noticed.
func TestEveryByteOfTheReferenceCounts(t *testing.T) {
	ph := built(t, clientBatch(packing{}, telemetry(1, 1000)), true)
	from := bytes.Index(ph, []byte(HeaderKey)) + len(HeaderKey) + 1
	for at := from; at < len(ph); at++ {
		for bit := range 8 {
			b := slices.Clone(ph)
			b[at] ^= 1 << bit
			s, ok, err := Parse(b)
			if !ok {
				t.Fatalf("byte %d: passes as data", at-from)
			}
			if err == nil && s.Verify(testKey, testLog, b) {
				t.Fatalf("byte %d, bit %d: verifies", at-from, bit)
			}
		}
	}
	// Truncated or extended, too.
	for n := range len(ph) - from {
		b := slices.Clone(ph[:from+n])
		b[from-1] = byte(n << 1)
		if s, ok, err := Parse(b); !ok || err == nil && s.Verify(testKey, testLog, b) {
			t.Fatalf("%d bytes of the reference: %v, %v", n, ok, err)
		}
	}
}

func TestPatchMakesWhatTheLogWouldHold(t *testing.T) {
	for _, c := range []struct {
		name   string
		broker func(b wire.Batch) // what it does to any batch
	}{
		{"CreateTime", func(b wire.Batch) {}},
		{"LogAppendTime", func(b wire.Batch) {
			b.SetAttributes(b.Attributes() | wire.AttrLogAppendTime)
			b.SetMaxTimestamp(1_900_000_000_000)
			b.SetCRC(b.ComputeCRC())
		}},
		{"CreateTime, with a maxTimestamp that the broker corrects", func(b wire.Batch) {
			b.SetMaxTimestamp(b.MaxTimestamp() + 5)
			b.SetCRC(b.ComputeCRC())
		}},
	} {
		for _, p := range packings() {
			original := clientBatch(p, telemetry(200, 300))
			ref := refTo(original)
			sent := slices.Clone(original)
			ph, want := built(t, original, true), slices.Clone(original)
			for _, b := range []wire.Batch{ph, want} {
				b.SetBaseOffset(1 << 41)
				b.SetLeaderEpoch(9)
				c.broker(b)
			}
			header, body, err := Patch(original, ph, ref)
			if err != nil {
				t.Fatal(c.name, p.name, err)
			}
			if got := slices.Concat(header, body); !bytes.Equal(got, want) || wire.Batch(got).ComputeCRC() != wire.Batch(got).CRC() {
				t.Errorf("%s, %s: other bytes than the log's", c.name, p.name)
			}
			if len(header) != wire.BatchHeaderSize || &body[0] != &original[wire.BatchHeaderSize] || !bytes.Equal(original, sent) {
				t.Errorf("%s, %s: body is a copy, or the original was written to", c.name, p.name)
			}
		}
	}
}

func TestPatchRefusesOtherBytes(t *testing.T) {
	original := clientBatch(packing{}, telemetry(3, 400))
	for _, c := range []struct {
		name string
		edit func(o wire.Batch, ph wire.Batch, ref *Ref) wire.Batch
	}{
		{"nothing", func(o, _ wire.Batch, _ *Ref) wire.Batch { return nil }},
		{"a byte less", func(o, _ wire.Batch, _ *Ref) wire.Batch { return o[:len(o)-1] }},
		{"a byte less, as the reference says", func(o, _ wire.Batch, r *Ref) wire.Batch { r.Length--; return o[:len(o)-1] }},
		{"a byte more", func(o, _ wire.Batch, _ *Ref) wire.Batch { return append(o, 0) }},
		{"a flipped bit", func(o, _ wire.Batch, _ *Ref) wire.Batch { o[len(o)-1] ^= 1; return o }},
		{"a flipped bit, CRC to match", func(o, _ wire.Batch, _ *Ref) wire.Batch { o[len(o)-1] ^= 1; o.SetCRC(o.ComputeCRC()); return o }},
		{"another CRC in the reference", func(o, _ wire.Batch, r *Ref) wire.Batch { r.CRC++; return o }},
		{"magic 1", func(o, _ wire.Batch, _ *Ref) wire.Batch { o.SetMagic(1); return o }},
		{"another length field", func(o, _ wire.Batch, _ *Ref) wire.Batch { o.SetLength(o.Length() + 1); return o }},
		{"a placeholder of more records", func(o, ph wire.Batch, _ *Ref) wire.Batch { ph.SetNumRecords(4); return o }},
		{"a placeholder of more offsets", func(o, ph wire.Batch, _ *Ref) wire.Batch { ph.SetLastOffsetDelta(3); return o }},
		{"of another producer", func(o, ph wire.Batch, _ *Ref) wire.Batch { ph.SetProducerID(1); return o }},
		{"of another epoch", func(o, ph wire.Batch, _ *Ref) wire.Batch { ph.SetProducerEpoch(1); return o }},
		{"of another sequence", func(o, ph wire.Batch, _ *Ref) wire.Batch { ph.SetBaseSequence(1); return o }},
		{"of a transaction", func(o, ph wire.Batch, _ *Ref) wire.Batch { ph.SetAttributes(wire.AttrTransactional); return o }},
	} {
		ph, ref := built(t, original, true), refTo(original)
		o := c.edit(slices.Clone(original), ph, &ref)
		if _, _, err := Patch(o, ph, ref); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
