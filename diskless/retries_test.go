package diskless

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

func TestABatchThatIsSentAgainIsNotUploadedAgain(t *testing.T) {
	seeded := func(seed uint64, pid int64, epoch int16, seq int32) wire.Batch {
		return makeBatch(rand.New(rand.NewPCG(seed, 0)), 3, 2000, wire.CodecNone, pid, epoch, seq)
	}
	first := offer{batch: seeded(1, 7, 0, 40)}
	other := telemetry()
	other.Audit = true
	for _, c := range []struct {
		name   string
		again  offer
		after  time.Duration
		reused bool
	}{
		{"the same batch", first, 0, true},
		{"half a minute later", first, 30 * time.Second, true},
		{"so late that its object counts as settled", first, 9 * time.Minute, false},
		{"the same sequence with other bytes", offer{batch: seeded(2, 7, 0, 40)}, 0, false},
		{"the next sequence", offer{batch: seeded(1, 7, 0, 43)}, 0, false},
		{"another epoch", offer{batch: seeded(1, 7, 1, 40)}, 0, false},
		{"another producer", offer{batch: seeded(1, 8, 0, 40)}, 0, false},
		{"another partition", offer{batch: first.batch, partition: 1}, 0, false},
		{"another topic", offer{batch: first.batch, topic: "otel-2"}, 0, false},
		{"a class whose objects live elsewhere", offer{batch: first.batch, class: other}, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, Limits{RetryBatches: 100}, func(t *testing.T, r *rig) {
				r.send(first).wantReadable(r.tier)
				time.Sleep(c.after)
				s := r.send(c.again)
				s.wantReadable(r.another(Limits{}))
				if reused := r.store.Count(objstore.OpPut) == 1; reused != c.reused {
					t.Errorf("%d PUTs", r.store.Count(objstore.OpPut))
				}
				if reused := testutil.ToFloat64(r.tier.metrics.reusedBytes) == float64(len(first.batch)); reused != c.reused {
					t.Errorf("the metric counts %v", testutil.ToFloat64(r.tier.metrics.reusedBytes))
				}
				if c.reused && s.took != 0 {
					t.Errorf("it waited %v", s.took)
				}
			})
		})
	}
	t.Run("without a producer id nothing is the same", func(t *testing.T) {
		inBubble(t, Limits{RetryBatches: 100}, func(t *testing.T, r *rig) {
			b := seeded(1, -1, -1, -1)
			r.send(offer{batch: b}).wantReadable(r.tier)
			r.send(offer{batch: b}).wantReadable(r.tier)
			if n := r.store.Count(objstore.OpPut); n != 2 {
				t.Errorf("%d PUTs", n)
			}
		})
	})
	t.Run("what went inline is not remembered", func(t *testing.T) {
		inBubble(t, Limits{RetryBatches: 100, InlineBytesPerSec: 1 << 20, InlineBytesTotal: 1 << 30}, func(t *testing.T, r *rig) {
			r.faulty.Down(true)
			r.send(first).wantInline("unavailable")
			r.faulty.Down(false)
			time.Sleep(time.Minute)
			s := r.send(first)
			s.wantReadable(r.another(Limits{}))
			if s.took == 0 {
				t.Error("it was taken for stored")
			}
		})
	})
}

// Not by its CRC: whoever makes another batch with the same one is not given
// this one's bytes.
func TestEveryBitOfABatchCounts(t *testing.T) {
	r, err := newRetries(1)
	if err != nil {
		t.Fatal(err)
	}
	batch := batchOf(2, 100)
	sum := r.fingerprint(batch)
	if r.fingerprint(batch) != sum {
		t.Error("the same batch is another one")
	}
	for bit := range 8 * len(batch) {
		batch[bit/8] ^= 1 << (bit % 8)
		if r.fingerprint(batch) == sum {
			t.Errorf("bit %d does not count", bit)
		}
		batch[bit/8] ^= 1 << (bit % 8)
	}
	if r.fingerprint(batch[:len(batch)-1]) == sum {
		t.Error("the last byte does not count")
	}
	other, err := newRetries(1)
	if err != nil {
		t.Fatal(err)
	}
	if other.fingerprint(batch) == sum {
		t.Error("the key is known")
	}
}
