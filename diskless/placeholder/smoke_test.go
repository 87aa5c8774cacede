package placeholder

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

func plainBatch(n, size int) wire.Batch {
	var recs []byte
	for i := range n {
		r := kmsg.NewRecord()
		r.OffsetDelta = int32(i)
		r.TimestampDelta64 = int64(i * 3)
		r.Value = make([]byte, size)
		body := r.AppendTo(nil)
		_ = body
		r.Length = int32(len(body) - 1)
		if r.Length > 63 {
			r.Length = int32(len(r.AppendTo(nil)) - 2)
		}
		recs = r.AppendTo(recs)
	}
	b := kmsg.NewRecordBatch()
	b.Magic = 2
	b.PartitionLeaderEpoch = -1
	b.NumRecords = int32(n)
	b.LastOffsetDelta = int32(n - 1)
	b.FirstTimestamp = time.Now().UnixMilli()
	b.MaxTimestamp = b.FirstTimestamp + int64(3*(n-1))
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = 7, 1, 40
	b.Records = recs
	out := wire.Batch(b.AppendTo(nil))
	out.SetLength(int32(len(out) - wire.LogOverhead))
	out.SetCRC(out.ComputeCRC())
	return out
}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{1, 10, 100, 1000, 5000} {
		b := plainBatch(n, 1000)
		if Reserved(b) {
			t.Fatal("reserved")
		}
		o, err := Validate(b)
		if err != nil {
			t.Fatal(err)
		}
		key := Key{ID: KeyID{1, 2}, Secret: [32]byte{3}}
		id := Identity{"cluster", "topic", 4}
		ref := Ref{KeyID: key.ID, Offset: 1 << 20, Length: uint32(len(b)), CRC: b.CRC()}
		ph, err := o.Build(ref, key, id, true)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("n=%d: %d bytes for %d, estimate %d", n, len(ph), len(b), o.PlaceholderSize())
		if !Reserved(ph) {
			t.Fatal("not reserved")
		}
		if _, err := Validate(ph); err != nil {
			t.Fatal(err)
		}
		s, is, err := Parse(ph)
		if !is || err != nil || s.Ref != ref {
			t.Fatal(is, err, s.Ref)
		}
		if !s.Verify(key, id, ph) || s.Verify(key, Identity{"cluster", "topic", 5}, ph) {
			t.Fatal("verify")
		}
		h, body, err := Patch(b, ph, ref)
		if err != nil || len(h)+len(body) != len(b) {
			t.Fatal(err)
		}
	}
}
