package placeholder

import (
	"bytes"
	"encoding/hex"
	"flag"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

var update = flag.Bool("update", false, "write testdata anew: only together with a new version of the format")

// The batches in testdata are in users' logs. Reading them must never change;
// writing them changes only with refVersion, but for what codecs make of them.
func TestFormatIsWhatUsersHaveInTheirLogs(t *testing.T) {
	for _, c := range []struct {
		file  string
		n     int
		attrs int16
		pid   int64
		ref   Ref
		log   Identity
		zstd  bool
		exact bool // no codec's library has a say
	}{
		{"one_record.hex", 1, 0, -1, Ref{Object: [16]byte{1, 2, 3, 15: 4}}, Identity{"cluster", "topic", 0}, false, true},
		{"ten_transactional_audit.hex", 10, wire.AttrTransactional, 1 << 40, Ref{Object: [16]byte{0xff, 15: 0xff}, Audit: true, Offset: 8<<20 - 1}, Identity{"N0nTr1vial-cluster_id", "agent.trace.x", 4711}, true, true},
		{"largest_fields.hex", 2, 0, math.MaxInt64, Ref{Object: [16]byte{7, 15: 7}, Audit: true, Offset: 1 << 62}, Identity{"", "", math.MaxInt32}, false, true},
		{"sixty_lz4.hex", 60, 0, 5, Ref{Object: [16]byte{9, 15: 9}, Offset: 1}, Identity{"c", "t", 1}, false, false},
		{"thousand_zstd.hex", 1000, 0, 5, Ref{Object: [16]byte{9, 15: 9}, Offset: 1}, Identity{"c", "t", 1}, true, false},
	} {
		records := telemetry(c.n, 200)
		epoch, seq := int16(0), int32(17)
		if c.pid < 0 {
			epoch, seq = -1, -1
		}
		for i := range records {
			records[i].TimestampDelta64 = int64(i / 20)
		}
		original := encodeBatch(batchOptions{pid: c.pid, epoch: epoch, seq: seq, attributes: c.attrs, first: 1_760_000_000_000, max: 1_760_000_000_000 + int64(c.n-1)/20}, c.n, encodeRecords(records))
		ref := c.ref
		ref.KeyID, ref.Length, ref.CRC = testKey.ID, uint32(len(original)), original.CRC()
		ph, err := validated(t, original).Build(ref, testKey, c.log, c.zstd)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", c.file)
		if *update {
			if err := os.WriteFile(path, wrapHex(ph), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		golden, err := hex.DecodeString(string(bytes.ReplaceAll(text, []byte("\n"), nil)))
		if err != nil {
			t.Fatal(err)
		}
		if c.exact && !bytes.Equal(ph, golden) {
			t.Errorf("%s: it is written differently:\n%x\n%x", c.file, golden, ph)
		}
		if !c.exact && !bytes.Equal(unpacked(t, ph), unpacked(t, golden)) {
			t.Errorf("%s: its records are written differently", c.file)
		}
		s, ok, err := Parse(golden)
		if !ok || err != nil || s.Ref != ref || !s.Verify(testKey, c.log, golden) {
			t.Errorf("%s: cannot be read: %v, %v, %+v", c.file, ok, err, s.Ref)
		}
		if !Candidate(golden) || !Reserved(golden) {
			t.Errorf("%s: not recognised", c.file)
		}
	}
}

func wrapHex(b []byte) (out []byte) {
	for len(b) > 0 {
		n := min(len(b), 32)
		out = append(hex.AppendEncode(out, b[:n]), '\n')
		b = b[n:]
	}
	return out
}
