package integration

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/oklog/ulid/v2"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/server"
	"github.com/sluice-kafka/sluice/upkeep"
)

// bucketOf is a replica's store, and the bucket below it, for who does harm.
type bucketOf struct {
	t     *testing.T
	store objstore.Store
	raw   *minio.Client
	name  string
	below string // which prefix
}

func openBucket(t *testing.T, s3 *harness.S3, store, file string) bucketOf {
	t.Helper()
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := server.OpenStore(cfg.Stores[store], 8)
	if err != nil {
		t.Fatal(err)
	}
	below := cfg.Stores[store].Prefix
	if below != "" {
		below += "/"
	}
	return bucketOf{t, opened, s3.Client(t), cfg.Stores[store].Bucket, below}
}

func (b bucketOf) keys(prefix string) (keys []string) {
	b.t.Helper()
	if err := b.store.List(b.t.Context(), prefix, "", func(i objstore.Info) error { keys = append(keys, i.Key); return nil }); err != nil {
		b.t.Fatal(err)
	}
	return keys
}

func (b bucketOf) get(key string) []byte {
	b.t.Helper()
	got, err := b.store.Get(b.t.Context(), key, 0, -1)
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

// put is another hand's: under no lock.
func (b bucketOf) put(key string, body []byte) {
	b.t.Helper()
	if _, err := b.raw.PutObject(b.t.Context(), b.name, b.below+key, bytes.NewReader(body), int64(len(body)), minio.PutObjectOptions{}); err != nil {
		b.t.Fatal(err)
	}
}

func (b bucketOf) remove(keys ...string) {
	b.t.Helper()
	for _, key := range keys {
		if err := b.store.Delete(b.t.Context(), key); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b bucketOf) flip(key string, at int) {
	b.t.Helper()
	body := b.get(key)
	body[at] ^= 1
	b.put(key, body)
}

// all is what the bucket holds, whole.
func (b bucketOf) all() map[string]string {
	b.t.Helper()
	all := map[string]string{}
	for _, key := range b.keys("") {
		if !strings.HasPrefix(key, "sluice/") {
			all[key] = string(b.get(key))
		}
	}
	return all
}

func (b bucketOf) windows() (all []*segment.Manifest) {
	b.t.Helper()
	for _, key := range b.keys(segment.WindowsPrefix) {
		if w, ok := segment.ParseWindowKey(key); ok {
			m, err := segment.ReadManifest(b.t.Context(), b.store, w)
			if err != nil {
				b.t.Fatal(err)
			}
			all = append(all, m)
		}
	}
	return all
}

// What is spoilt in a bucket, in segments, WAL objects and a manifest, is made anew
// by the command, and then everything reads back without a WAL object; audit objects,
// in a bucket with locks, are locked where they are not, and never written.
func TestLongRepairOfARealBucket(t *testing.T) {
	harness.Long(t)
	k := harness.StartKafka(t, harness.KafkaOptions{}) // fsck looks at all topics
	s3 := harness.StartS3(t)
	const topic, brief, ledger, rounds = "repaired-telemetry", "repaired-telemetry-brief", "repaired-ledger", 8
	r := replica{
		Kafka: k.Bootstrap(), Store: s3Store(s3, "repaired") + "\n  vault: " + lockingStore(t, s3, "vault"), Default: "audit",
		Extra: "classes:\n  audit: { linger: 20ms, store: vault }\n  telemetry: { linger: 20ms, object_size: 1MiB, store: default }\n" +
			"audit: { every: 1s }\ncompaction: { enabled: false, window: 1s, min_age: 1s }\n",
	}.withDefaults(t)
	s := startSluice(t, r)
	createTopic(t, s.Bootstrap, topic, 3, "retention.ms", "-1")
	createTopic(t, s.Bootstrap, brief, 1, "retention.ms", "86400000") // in segments of its own
	createTopic(t, s.Bootstrap, ledger, 1, "retention.ms", "-1")
	h := history.New()
	cl := client(t, s.Bootstrap, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	for range rounds {
		for i := range int32(80) {
			record := kgo.Record{Topic: topic, Partition: i % 4}
			if i%4 == 3 {
				record = kgo.Record{Topic: brief}
			}
			next := h.Next(record.Topic, record.Partition, 2<<10)
			cl.Produce(t.Context(), next, func(r *kgo.Record, err error) {
				h.Acked(r, err)
				if err != nil {
					t.Error(err)
				}
			})
		}
		if err := cl.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1200 * time.Millisecond) // the next window
	}
	writeOnce(t, h, s.Bootstrap, ledger, 0, 20, kgo.ProducerBatchCompression(kgo.NoCompression()))
	wantArchived(t, s.File, bootstrapOf(k), ledger)
	time.Sleep(time.Second)
	if code, out, errs := sluiceCommand(t, "compact", "-c", s.File, "--once"); code != 0 {
		t.Fatalf("compact: %d\n%s%s", code, out, errs)
	}
	b, vault := openBucket(t, s3, "default", s.File), openBucket(t, s3, "vault", s.File)
	w := b.windows()
	two := slices.IndexFunc(w, func(m *segment.Manifest) bool { return len(m.Segments) == 2 })
	if len(w) < 6 || two < 0 {
		t.Fatalf("%d windows, with two segments: %d", len(w), two)
	}
	w[0], w[two] = w[two], w[0]
	// The last run is made one of long ago: the manifest of a young one is left to its
	// compactor.
	last := w[len(w)-1]
	young := last.Run
	last.Run = ulid.MustNew(ulid.Timestamp(time.Now().Add(-2*segment.MaxRun)), ulid.DefaultEntropy())
	for n := range last.Segments {
		b.put(last.Key(n), b.get(segment.DataKey(young, n)))
		b.remove(segment.DataKey(young, n))
	}
	encoded, err := last.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b.put(last.Window().Key(), encoded)

	args := []string{"-c", s.File, "--rate", "0", "--fetches", "0"}
	fsck := func(want int, more ...string) upkeep.FsckReport {
		t.Helper()
		return fsckOf(t, want, append(slices.Clone(args), more...)...)
	}
	sound := fsck(0, "--orphans")
	if l := sound.Locks; len(l) != 1 || l[0].Asked < 2 || l[0].Locked != l[0].Objects || l[0].Unlocked > 0 {
		t.Fatalf("locks: %s", pretty(l))
	}
	whole := b.all()

	wal := func(m *segment.Manifest) (keys []string) {
		for _, o := range m.Objects {
			keys = append(keys, diskless.ObjectKey(o.ID, false))
		}
		return keys
	}
	b.remove(w[0].Key(1))
	b.flip(w[1].Key(0), 700)
	for n := range w[2].Segments {
		b.remove(w[2].Key(n)) // readers go to the WAL objects, without its manifest
	}
	b.flip(wal(w[3])[0], 700)
	b.flip(wal(w[4])[0], len(b.get(wal(w[4])[0]))-20) // its footer
	b.flip(last.Window().Key(), 12)
	b.remove(wal(last)...)
	spoilt := b.all()
	affected := fsck(1)
	for _, d := range affected.Damage {
		if !strings.HasPrefix(d.Topic, topic) || d.Kind != upkeep.Missing {
			t.Errorf("found %+v", d)
		}
	}
	if n := fsck(1, "--repair", "--dry-run"); len(n.Fixes) != 6 || !n.DryRun || slices.ContainsFunc(n.Fixes, func(f upkeep.Fix) bool { return f.Done || f.Action == upkeep.NoWay }) {
		t.Errorf("a dry run: %s", pretty(n.Fixes))
	}
	sameObjects(t, "after a dry run", b.all(), spoilt)

	mended := fsck(0, "--repair")
	if len(mended.Fixes) != 6 || len(mended.Before) != len(affected.Damage) || slices.ContainsFunc(mended.Fixes, func(f upkeep.Fix) bool { return !f.Done }) {
		t.Errorf("repaired: %s", pretty(mended))
	}
	want := map[string]string{}
	for key, body := range whole {
		if !slices.Contains(wal(last), key) && !strings.HasPrefix(key, "segments/data/"+w[2].Run.String()) && key != w[2].Window().Key() {
			want[key] = body
		}
	}
	rebuilt := last.Window().Key() // tells no bucket of retention
	got := b.all()
	delete(want, rebuilt)
	delete(got, rebuilt)
	sameObjects(t, "after the repair", got, want)
	fsck(0, "--orphans")
	if code, out, errs := sluiceCommand(t, "compact", "-c", s.File, "--once"); code != 0 {
		t.Fatalf("compact: %d\n%s%s", code, out, errs)
	}
	b.remove(b.keys(diskless.WALPrefix)...)
	cold := r
	cold.Port = harness.Ports(t, replicaPorts)
	reader := startSluice(t, cold)
	readAll(t, h, "without WAL objects", reader.Bootstrap, bootstrapOf(k), topic, brief, ledger)
	if reader.metric(t, "sluice_diskless_segment_fallbacks_total") > 0 {
		t.Error("a segment did not do")
	}

	// An audit object that another hand has written over: it is named, its first
	// version is there, and no repair writes to it. One that is not locked is locked.
	signed, is, err := placeholder.Parse(firstBatch(t, rawClient(t, bootstrapOf(k)).fetch(ledger, 0, 0)))
	if err != nil || !is {
		t.Fatal("no placeholder", err)
	}
	payload := diskless.ObjectKey(signed.Ref.Object, true)
	vault.flip(payload, int(signed.Ref.Offset)+200)
	chain := vault.keys("audit/log/")[0]
	vault.put(chain, vault.get(chain))
	covered := fsck(1)
	if l := covered.Locks[0]; l.Unlocked != 2 || l.Left() != 2 || l.UnlockedList[0].Key != chain || l.UnlockedList[1].Key != payload || l.UnlockedList[0].Problem != upkeep.NoLock {
		t.Errorf("locks: %s", pretty(covered.Locks))
	}
	before := vault.all()
	fsck(1, "--repair", "--dry-run")
	mended = fsck(1, "--repair")
	if l := mended.Locks[0]; l.Unlocked != 2 || l.Fixed != 2 || len(mended.Fixes) > 0 {
		t.Errorf("locked: %s\n%s", pretty(mended.Locks), pretty(mended.Fixes))
	}
	sameObjects(t, "after the repair of audit objects", vault.all(), before)
	if d := mended.Damage; len(d) != 1 || d[0].Topic != ledger || d[0].Kind != upkeep.Garbled || !strings.Contains(d[0].Remedy, "never written to by a repair") {
		t.Errorf("damage %s", pretty(d))
	}
	for o := range vault.raw.ListObjects(t.Context(), vault.name, minio.ListObjectsOptions{Prefix: "audit/", Recursive: true, WithVersions: true}) {
		if err := vault.raw.RemoveObject(t.Context(), vault.name, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID, GovernanceBypass: true}); err == nil {
			t.Errorf("a version of %s was removed", o.Key)
		}
	}
	// The remedy: the first version on top again.
	var first string
	for o := range vault.raw.ListObjects(t.Context(), vault.name, minio.ListObjectsOptions{Prefix: payload, WithVersions: true}) {
		first = o.VersionID // the last that is listed
	}
	version, err := vault.raw.GetObject(t.Context(), vault.name, payload, minio.GetObjectOptions{VersionID: first})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(version)
	if err != nil {
		t.Fatal(err)
	}
	vault.put(payload, body)
	fsck(0, "--repair")
	fsck(0)
}

func firstBatch(t *testing.T, records []byte) wire.Batch {
	t.Helper()
	batch, _, ok := wire.NextBatch(records)
	if !ok {
		t.Fatal("no batch")
	}
	return batch
}

func sameObjects(t *testing.T, when string, got, want map[string]string) {
	t.Helper()
	var differ []string
	for key := range want {
		if got[key] != want[key] {
			differ = append(differ, fmt.Sprintf("%s: %d bytes, of %d", key, len(got[key]), len(want[key])))
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			differ = append(differ, "added: "+key)
		}
	}
	if len(differ) > 0 {
		slices.Sort(differ)
		t.Errorf("%s the bucket is another:\n%s", when, strings.Join(differ, "\n"))
	}
}
