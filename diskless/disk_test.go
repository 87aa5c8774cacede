package diskless

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/sluice-kafka/sluice/diskless/diskcache"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// withDisk is another replica on the same store, with a disk cache in a folder and
// next to no cache in memory.
func (r *rig) withDisk(dir string) *Tier {
	r.t.Helper()
	tier, err := New(Options{
		ClusterID: testCluster, Stores: map[string]StoreHandle{"default": {r.store, openRing(r.t, r.memory)}},
		Limits: Limits{CacheBytes: 1, ChunkBytes: 1 << 20}, Disk: openDisk(r.t, dir),
		Logger: zerolog.Nop(), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return tier
}

func openDisk(t testing.TB, dir string) *diskcache.Cache {
	c := diskcache.Open(diskcache.Options{Dir: dir, Bytes: 64 << 20, QueueBytes: 8 << 20, Logger: zerolog.Nop(), Metrics: diskcache.NewMetrics(prometheus.NewRegistry())})
	t.Cleanup(c.Close)
	eventually(t, func() bool {
		c.Add("probe", []byte("probe"), true)
		return c.Get("probe") != nil
	})
	return c
}

func eventually(t testing.TB, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come to be within a minute")
		}
	}
}

// onDisk waits until the disk has what was added before.
func onDisk(t testing.TB, tier *Tier) {
	t.Helper()
	marker := time.Now().String()
	eventually(t, func() bool {
		tier.disk.Add(marker, []byte("marker"), true)
		return tier.disk.Get(marker) != nil
	})
}

func TestADiskSavesGets(t *testing.T) {
	r := newRig(t, Limits{})
	s := r.send(offer{})
	s.placeholder()
	dir := t.TempDir()
	tier := r.withDisk(dir)
	s.wantReadable(tier)
	onDisk(t, tier)
	gets := func() int { return r.store.Count(objstore.OpGet) }
	before := gets()
	s.wantReadable(tier)
	if n := gets() - before; n != 0 {
		t.Errorf("%d GETs of what is on the disk", n)
	}
	// After a restart, and while the store is down.
	if err := tier.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	tier.disk.Close()
	tier = r.withDisk(dir)
	before = gets()
	r.faulty.Down(true)
	s.wantReadable(tier)
	r.faulty.Down(false)
	if n := gets() - before; n != 0 {
		t.Errorf("%d GETs after a restart", n)
	}
	// Without the disk there is one.
	before = gets()
	s.wantReadable(r.another(Limits{CacheBytes: 1, ChunkBytes: 1 << 20}))
	if n := gets() - before; n != 1 {
		t.Errorf("%d GETs without a disk", n)
	}
}

// TestADiskDoesNotKeepWhatDoesNotMatch: bytes that the store got wrong once are
// read from it again, and not from the disk.
func TestADiskDoesNotKeepWhatDoesNotMatch(t *testing.T) {
	r := newRig(t, Limits{})
	s := r.send(offer{})
	s.placeholder()
	tier := r.withDisk(t.TempDir())
	wrong := true
	r.faulty.Decide(func(op objstore.Op, key string) objstore.Fault {
		if op != objstore.OpGet || !wrong {
			return objstore.Fault{}
		}
		wrong = false
		return objstore.Fault{Change: func(b []byte) []byte {
			b = bytes.Clone(b)
			b[100] ^= 1
			return b
		}}
	})
	s.wantReadable(tier)
	if wrong {
		t.Fatal("nothing was read from the store")
	}
	onDisk(t, tier)
	before := r.store.Count(objstore.OpGet)
	s.wantReadable(tier)
	if n := r.store.Count(objstore.OpGet) - before; n != 0 {
		t.Errorf("%d GETs of what is on the disk", n)
	}
}

// TestADiskTellsStoresApart: what was read from one store is not there for another
// one of the same name, elsewhere, nor for another cluster's.
func TestADiskTellsStoresApart(t *testing.T) {
	disk := openDisk(t, t.TempDir())
	c := chunk{chunkKey{store: "default", from: 0, length: 1 << 20}}
	keys := map[string]bool{}
	for _, cluster := range []string{"a", "b"} {
		for _, name := range []string{"default", "other"} {
			for range 2 {
				store, err := objstore.OpenFile(t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				ring, err := keyring.Open(t.Context(), store, cluster, keyring.Options{})
				if err != nil {
					t.Fatal(err)
				}
				tier, err := New(Options{ClusterID: cluster, Stores: map[string]StoreHandle{name: {store, ring}}, Disk: disk, Logger: zerolog.Nop(), Metrics: prometheus.NewRegistry()})
				if err != nil {
					t.Fatal(err)
				}
				c.store = name
				keys[tier.diskKey(tier.writer(name), c)] = true
				_ = tier.Close(context.Background())
			}
		}
	}
	if len(keys) != 8 {
		t.Errorf("%d names for 8 stores", len(keys))
	}
}
