package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

const cluster = "cluster-A"

var topicID = [16]byte{0xfa, 15: 1}

// kafka is a log that can be cut at either end.
type kafka struct {
	mu      sync.Mutex
	log     Log
	epoch   int32
	batches []wire.Batch
}

func newKafka(topic string) *kafka {
	return &kafka{log: Log{Topic: topic, ID: topicID}, epoch: 1}
}

type rec struct{ key, value string }

// append adds a batch and returns its offset.
func (k *kafka) append(pid int64, attrs int16, records ...rec) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	var body []byte
	for i, r := range records {
		one := kmsg.Record{TimestampDelta64: int64(i), OffsetDelta: int32(i), Key: []byte(r.key), Value: []byte(r.value), Headers: []kmsg.Header{{Key: "h", Value: []byte("v")}}}
		if r.key == "" {
			one.Key = nil
		}
		one.Length = int32(len(one.AppendTo(nil)) - 1)
		for one.Length != int32(len(one.AppendTo(nil)))-int32(varintLen(int64(one.Length))) {
			one.Length = int32(len(one.AppendTo(nil)) - varintLen(int64(one.Length)))
		}
		body = one.AppendTo(body)
	}
	kb := kmsg.RecordBatch{
		FirstOffset: k.log.End, PartitionLeaderEpoch: k.epoch, Magic: 2, Attributes: attrs, LastOffsetDelta: int32(len(records) - 1),
		FirstTimestamp: 1_760_000_000_000 + k.log.End, MaxTimestamp: 1_760_000_000_000 + k.log.End + int64(len(records)-1),
		ProducerID: pid, ProducerEpoch: 0, FirstSequence: -1, NumRecords: int32(len(records)), Records: body,
	}
	if attrs&wire.AttrControl == 0 && pid >= 0 {
		kb.FirstSequence = int32(k.log.End)
	}
	kb.Length = int32(49 + len(body))
	b := wire.Batch(kb.AppendTo(nil))
	b.SetCRC(b.ComputeCRC())
	k.batches = append(k.batches, b)
	at := k.log.End
	k.log.End += int64(len(records))
	return at
}

func varintLen(v int64) int {
	n := 1
	for u := uint64(v<<1) ^ uint64(v>>63); u >= 0x80; u >>= 7 {
		n++
	}
	return n
}

func (k *kafka) marker(pid int64, commit byte) {
	k.append(pid, wire.AttrControl|wire.AttrTransactional, rec{string([]byte{0, 0, 0, commit}), "\x00\x00\x00\x00\x00\x00"})
}

func (k *kafka) snapshot() Log {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.log
}

// removeTo is retention, or DeleteRecords.
func (k *kafka) removeTo(offset int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log.Start = offset
	k.batches = slices.DeleteFunc(k.batches, func(b wire.Batch) bool { return b.BaseOffset()+int64(b.LastOffsetDelta()) < offset })
}

// lose is an unclean election: what is at an offset and behind is gone, and a new
// leader goes on.
func (k *kafka) lose(offset int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.batches = slices.DeleteFunc(k.batches, func(b wire.Batch) bool { return b.BaseOffset() >= offset })
	k.log.End = offset
	k.epoch++
}

func (k *kafka) Fetch(_ context.Context, _ Log, offset int64, maxBytes int32) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if offset < k.log.Start || offset > k.log.End {
		return nil, errors.New("offset out of range")
	}
	var out []byte
	for _, b := range k.batches {
		if b.BaseOffset()+int64(b.LastOffsetDelta()) < offset {
			continue
		}
		if len(out) > 0 && len(out)+len(b) > int(maxBytes) {
			break
		}
		out = append(out, b...)
	}
	return append(out, "a partial batch"...), nil
}

func (k *kafka) EpochEnd(_ context.Context, _ Log, epoch int32) (int32, int64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	known, end := int32(-1), int64(-1)
	for _, b := range k.batches {
		if e := b.LeaderEpoch(); e <= epoch {
			known, end = e, b.BaseOffset()+int64(b.LastOffsetDelta())+1
		}
	}
	if known == k.epoch {
		end = k.log.End
	}
	return known, end, nil
}

// plain is a log without placeholders.
type plain struct{}

type piece struct{ wire.Batch }

func (p piece) Records() int                { return int(p.NumRecords()) }
func (p piece) Placeholder() bool           { return false }
func (p piece) Cached() bool                { return true }
func (p piece) Await(context.Context) error { return nil }
func (p piece) Load(context.Context) ([][]byte, error) {
	return [][]byte{p.Batch[:20], p.Batch[20:]}, nil
}

func (p piece) Lend(ctx context.Context) ([][]byte, func(), error) {
	b, err := p.Load(ctx)
	return b, nil, err
}

func (plain) Resolve(_ context.Context, _ tiers.TopicPartition, records []byte, _, _ int) (out []tiers.Piece, _ int, _ error) {
	for {
		b, rest, ok := wire.NextBatch(records)
		if !ok {
			return out, 0, nil
		}
		out, records = append(out, piece{b}), rest
	}
}

// vault is a bucket with object lock, in memory. Its holes are what an attacker
// with the store's own disks could do.
type vault struct {
	mu       sync.Mutex
	versions map[string][]vaulted // oldest first
	n        int
	rule     objstore.LockRule
}

type vaulted struct {
	objstore.Version
	body []byte
	lock objstore.Lock
}

const retention = 1000 * time.Hour

func newVault() *vault {
	return &vault{versions: map[string][]vaulted{}, rule: objstore.LockRule{Prefix: "audit/", Mode: objstore.Compliance, Retention: retention}}
}

func (v *vault) put(key string, body []byte, absent, marker bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := v.versions[key]
	if absent && len(all) > 0 && !all[len(all)-1].Marker {
		return objstore.ErrExists
	}
	v.n++
	one := vaulted{Version: objstore.Version{Info: objstore.Info{Key: key, Size: int64(len(body)), LastModified: time.Now()}, ID: fmt.Sprint("v", v.n), Marker: marker}, body: bytes.Clone(body)}
	if !marker && strings.HasPrefix(key, v.rule.Prefix) && v.rule.Mode != "" {
		one.lock = objstore.Lock{Mode: v.rule.Mode, Until: time.Now().Add(v.rule.Retention)}
	}
	v.versions[key] = append(all, one)
	return nil
}

func (v *vault) Put(_ context.Context, key string, body []byte) error {
	return v.put(key, body, false, false)
}
func (v *vault) PutIfAbsent(_ context.Context, key string, body []byte) error {
	return v.put(key, body, true, false)
}
func (v *vault) Delete(_ context.Context, key string) error { return v.put(key, nil, false, true) }
func (v *vault) String() string                             { return "vault://" }
func (v *vault) CanLock(context.Context) error              { return nil }

func (v *vault) Get(_ context.Context, key string, offset, length int64) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := v.versions[key]
	if len(all) == 0 || all[len(all)-1].Marker {
		return nil, objstore.ErrNotFound
	}
	body := all[len(all)-1].body
	body = body[min(offset, int64(len(body))):]
	if length >= 0 {
		body = body[:min(length, int64(len(body)))]
	}
	return bytes.Clone(body), nil
}

func (v *vault) keys(prefix string) (keys []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for k := range v.versions {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func (v *vault) List(_ context.Context, prefix, after string, fn func(objstore.Info) error) error {
	for _, k := range v.keys(prefix) {
		v.mu.Lock()
		all := v.versions[k]
		last := all[len(all)-1]
		v.mu.Unlock()
		if k <= after || last.Marker {
			continue
		}
		if err := fn(last.Info); err != nil {
			return err
		}
	}
	return nil
}

func (v *vault) Versions(_ context.Context, prefix string, fn func(objstore.Version) error) error {
	for _, k := range v.keys(prefix) {
		v.mu.Lock()
		all := slices.Clone(v.versions[k])
		v.mu.Unlock()
		for _, one := range all {
			if err := fn(one.Version); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *vault) find(key, version string) (vaulted, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, one := range v.versions[key] {
		if one.ID == version {
			return one, nil
		}
	}
	return vaulted{}, objstore.ErrNotFound
}

func (v *vault) LockOf(_ context.Context, key, version string) (objstore.Lock, error) {
	one, err := v.find(key, version)
	return one.lock, err
}

func (v *vault) SetLock(context.Context, string, string, objstore.Lock) error {
	return objstore.ErrAccess // the archive locks by putting
}

func (v *vault) GetVersion(_ context.Context, key, version string) ([]byte, error) {
	one, err := v.find(key, version)
	return one.body, err
}

// rig is a log and its archive.
type rig struct {
	t     testing.TB
	kafka *kafka
	vault *vault
	store objstore.Store
}

func newRig(t testing.TB) *rig {
	v := newVault()
	return &rig{t: t, kafka: newKafka("audit-trades"), vault: v, store: v}
}

func (r *rig) archiver(objectBytes int64) *Archiver {
	return New(Options{ClusterID: cluster, Kafka: r.kafka, Payloads: plain{}, ObjectBytes: objectBytes, Logger: zerolog.Nop()})
}

func (r *rig) target() Target { return Target{"default", r.store, retention} }

func (r *rig) archive(objectBytes int64) Progress {
	r.t.Helper()
	p, err := r.archiver(objectBytes).Archive(context.Background(), r.target(), r.kafka.snapshot())
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *rig) chain() Chain { return r.kafka.log.Chain() }

func (r *rig) verifier() *Verifier {
	v := &Verifier{Store: r.store, Name: "default", ClusterID: cluster, Now: time.Now()}
	if _, ok := r.store.(objstore.Locker); ok {
		v.Locked = objstore.Compliance
	}
	return v
}

func (r *rig) verify() *Report {
	r.t.Helper()
	report, err := r.verifier().Chain(context.Background(), r.chain())
	if err != nil {
		r.t.Fatal(err)
	}
	return report
}

func (r *rig) sound() *Report {
	r.t.Helper()
	report := r.verify()
	for _, f := range report.Findings {
		r.t.Errorf("found: %+v", f)
	}
	return report
}

// held is what the chain holds: offset to CRC, in order.
func (r *rig) held() (crcs []string) {
	r.t.Helper()
	v := r.verifier()
	v.Each = func(_ context.Context, _ Header, batches []byte) error {
		return each(batches, func(b wire.Batch) error {
			crcs = append(crcs, fmt.Sprintf("%d:%08x", b.BaseOffset(), b.CRC()))
			return nil
		})
	}
	if _, err := v.Chain(context.Background(), r.chain()); err != nil {
		r.t.Fatal(err)
	}
	return crcs
}

func (r *rig) appended() (crcs []string) {
	for _, b := range r.kafka.batches {
		crcs = append(crcs, fmt.Sprintf("%d:%08x", b.BaseOffset(), b.CRC()))
	}
	return crcs
}

// fill appends batches of all kinds.
func (r *rig) fill(n int) {
	for i := range n {
		switch i % 5 {
		case 0:
			r.kafka.append(-1, 0, rec{"k", "plain"}, rec{"", strings.Repeat("v", 200)})
		case 1, 2:
			r.kafka.append(int64(i%2)+7, wire.AttrTransactional, rec{"t", "in a transaction"})
		case 3:
			r.kafka.marker(7, 1)
		case 4:
			r.kafka.marker(8, 0)
		}
	}
}
