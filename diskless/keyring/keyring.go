// Package keyring keeps, in an object store's own prefix, the keys that
// authenticate references, and the marker that says which Kafka cluster the
// prefix belongs to. Who can read the bucket can read the payloads anyway, so
// keys beside them give nothing away.
package keyring

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/placeholder"
)

// Where things are in a prefix.
const (
	MarkerKey  = "sluice/cluster.json"
	keysPrefix = "sluice/keys/"
)

// payloadPrefixes hold what keys are needed for.
var payloadPrefixes = []string{"wal/", "audit/", "segments/"}

const formatVersion = 1

// marker is the object that claims a prefix.
type marker struct {
	Version   int       `json:"version"`
	ClusterID string    `json:"cluster_id"`
	Created   time.Time `json:"created"`
}

// stored is a key's object.
type stored struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`     // hex
	Secret  []byte    `json:"secret"` // base64 in JSON
	Created time.Time `json:"created"`
}

// ErrForeign: the prefix belongs to another Kafka cluster. Use another prefix,
// or point kafka.bootstrap at the cluster that it belongs to.
var ErrForeign = errors.New("the prefix belongs to another Kafka cluster; give this one a prefix of its own")

// ErrUnclaimed: no replica has used the prefix yet, or its marker is lost.
var ErrUnclaimed = errors.New("no cluster has claimed the prefix: there is no " + MarkerKey + "; is it the right one? A replica claims it when it starts")

// ErrKeysMissing: there are payloads but no keys. To make new ones would make
// every placeholder unreadable. Restore the objects under sluice/keys/.
var ErrKeysMissing = errors.New("the prefix holds payloads but no keys: restore sluice/keys/ from the bucket's versions or a copy; new keys would make everything written so far unreadable")

// ErrUnknownKey: no key object of the prefix has this id.
var ErrUnknownKey = errors.New("no such key in the store")

// ErrGarbled: an object of ours is not what we wrote. Restore it.
var ErrGarbled = errors.New("not what sluice wrote: restore it from the bucket's versions or a copy")

// maxKeys bounds how many keys are read; rotation makes a few in years.
const maxKeys = 10_000

// Options tune a ring; the zero value is fine.
type Options struct {
	Logger zerolog.Logger
	// ReloadEvery bounds how often unknown ids, which anybody who writes to
	// Kafka can invent, make the store be read; 0 is 1 s.
	ReloadEvery time.Duration
}

const (
	defaultReload = time.Second
	reloadTimeout = 10 * time.Second
	// reloadBurst lets a genuine new id be found at once after invented ones.
	reloadBurst = 5
)

// Ring is the keys of one prefix.
type Ring struct {
	store objstore.Store
	opt   Options
	load  singleflight.Group
	loads *rate.Limiter

	mu       sync.RWMutex
	keys     map[placeholder.KeyID]placeholder.Key
	current  placeholder.Key
	newest   time.Time // when current was made
	reloaded time.Time // when the store was last read as a whole
}

// Open claims the prefix for a cluster, or checks that it is claimed for it,
// and reads the keys; the first replica makes the first key. Replicas that open
// at the same time agree.
func Open(ctx context.Context, store objstore.Store, clusterID string, opt Options) (*Ring, error) {
	if opt.ReloadEvery == 0 {
		opt.ReloadEvery = defaultReload
	}
	r := &Ring{store: store, opt: opt, loads: rate.NewLimiter(rate.Every(opt.ReloadEvery), reloadBurst)}
	if err := r.claim(ctx, clusterID); err != nil {
		return nil, fmt.Errorf("%v: %w", store, err)
	}
	if err := r.reload(ctx); err != nil {
		return nil, fmt.Errorf("%v: %w", store, err)
	}
	if len(r.keys) > 0 {
		return r, nil
	}
	// Keys come before payloads, always: so payloads without keys are keys
	// that were lost. Keys are listed once more, for another replica may have
	// made one, and written, since.
	held, err := holdsPayloads(ctx, store)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", store, err)
	}
	if held {
		if err := r.reload(ctx); err != nil {
			return nil, fmt.Errorf("%v: %w", store, err)
		}
		if len(r.keys) == 0 {
			return nil, fmt.Errorf("%v: %w", store, ErrKeysMissing)
		}
		return r, nil
	}
	if err := r.first(ctx, clusterID); err != nil {
		return nil, fmt.Errorf("%v: making the first key: %w", store, err)
	}
	return r, nil
}

// Read is Open for those who only look: it writes nothing. A prefix that no
// cluster has claimed, or that has no keys, is an error that says so.
func Read(ctx context.Context, store objstore.Store, clusterID string, opt Options) (*Ring, error) {
	if opt.ReloadEvery == 0 {
		opt.ReloadEvery = defaultReload
	}
	r := &Ring{store: store, opt: opt, loads: rate.NewLimiter(rate.Every(opt.ReloadEvery), reloadBurst)}
	err := CheckMarker(ctx, store, clusterID)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, fmt.Errorf("%v: %w", store, ErrUnclaimed)
	}
	if err == nil {
		err = r.reload(ctx)
	}
	if err == nil && len(r.keys) == 0 {
		err = ErrKeysMissing
	}
	if err != nil {
		return nil, fmt.Errorf("%v: %w", store, err)
	}
	return r, nil
}

// claim writes the marker, or reads who was first.
func (r *Ring) claim(ctx context.Context, clusterID string) error {
	if err := CheckMarker(ctx, r.store, clusterID); !errors.Is(err, objstore.ErrNotFound) {
		return err
	}
	body, err := json.Marshal(marker{formatVersion, clusterID, time.Now().UTC()})
	if err != nil {
		return err
	}
	if err := r.store.PutIfAbsent(ctx, MarkerKey, body); err == nil || !errors.Is(err, objstore.ErrExists) {
		return err
	}
	return CheckMarker(ctx, r.store, clusterID)
}

// CheckMarker says whether the prefix belongs to a cluster. It claims nothing: a
// prefix without a marker is ErrNotFound.
func CheckMarker(ctx context.Context, store objstore.Store, clusterID string) error {
	body, err := store.Get(ctx, MarkerKey, 0, -1)
	if err != nil {
		return err
	}
	var m marker
	if err := json.Unmarshal(body, &m); err != nil || m.ClusterID == "" {
		return fmt.Errorf("%s: %w", MarkerKey, ErrGarbled)
	}
	if m.Version != formatVersion {
		return fmt.Errorf("%s: format version %d; this sluice knows %d: use the one that wrote it", MarkerKey, m.Version, formatVersion)
	}
	if m.ClusterID != clusterID {
		return fmt.Errorf("%s names cluster %s, this one is %s: %w", MarkerKey, m.ClusterID, clusterID, ErrForeign)
	}
	return nil
}

func holdsPayloads(ctx context.Context, store objstore.Store) (bool, error) {
	found := errors.New("found")
	for _, prefix := range payloadPrefixes {
		err := store.List(ctx, prefix, "", func(objstore.Info) error { return found })
		if errors.Is(err, found) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// firstKey is where the first key is made: one place, so that of replicas that
// start together one wins and the others read it.
const firstKey = keysPrefix + "first.json"

func (r *Ring) first(ctx context.Context, clusterID string) error {
	body, err := newKey(time.Now())
	if err != nil {
		return err
	}
	if err := r.store.PutIfAbsent(ctx, firstKey, body); err != nil && !errors.Is(err, objstore.ErrExists) {
		return err
	}
	if err := r.reload(ctx); err != nil {
		return err
	}
	if len(r.keys) == 0 {
		return fmt.Errorf("%s was written but is not listed: %w", firstKey, objstore.ErrUnavailable)
	}
	r.opt.Logger.Info().Stringer("store", r.store).Str("cluster", clusterID).Msg("the store's prefix is claimed for this cluster and has its first key")
	return nil
}

func newKey(created time.Time) ([]byte, error) {
	var k placeholder.Key
	if _, err := rand.Read(k.ID[:]); err != nil {
		return nil, err
	}
	if _, err := rand.Read(k.Secret[:]); err != nil {
		return nil, err
	}
	return json.Marshal(stored{formatVersion, hex.EncodeToString(k.ID[:]), k.Secret[:], created.UTC()})
}

// reload reads all keys. The current one is the newest; of the same time, the
// one with the largest id: every replica chooses the same.
func (r *Ring) reload(ctx context.Context) error {
	var names []string
	err := r.store.List(ctx, keysPrefix, "", func(i objstore.Info) error {
		if len(names) == maxKeys {
			return fmt.Errorf("%s holds more than %d keys", keysPrefix, maxKeys)
		}
		names = append(names, i.Key)
		return nil
	})
	if err != nil {
		return err
	}
	keys := make(map[placeholder.KeyID]placeholder.Key, len(names))
	var current placeholder.Key
	var newest time.Time
	for _, name := range names {
		body, err := r.store.Get(ctx, name, 0, -1)
		if err != nil {
			return err
		}
		var s stored
		var k placeholder.Key
		if err := json.Unmarshal(body, &s); err != nil || len(s.Secret) != len(k.Secret) {
			return fmt.Errorf("%s: %w", name, ErrGarbled)
		}
		if s.Version != formatVersion {
			return fmt.Errorf("%s: format version %d; this sluice knows %d", name, s.Version, formatVersion)
		}
		id, err := hex.DecodeString(s.ID)
		if err != nil || len(id) != len(k.ID) {
			return fmt.Errorf("%s: %w", name, ErrGarbled)
		}
		copy(k.ID[:], id)
		copy(k.Secret[:], s.Secret)
		if other, ok := keys[k.ID]; ok && other != k {
			return fmt.Errorf("%s: another object holds a different key of the same id: %w", name, ErrGarbled)
		}
		keys[k.ID] = k
		if len(keys) == 1 || s.Created.After(newest) || s.Created.Equal(newest) && strings.Compare(string(k.ID[:]), string(current.ID[:])) > 0 {
			current, newest = k, s.Created
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	missing := 0
	for id, k := range r.keys {
		if _, ok := keys[id]; !ok {
			// Keys are never deleted. What we know stays good to read with.
			missing++
			keys[id] = k
		}
	}
	if missing > 0 {
		r.opt.Logger.Error().Stringer("store", r.store).Int("missing", missing).
			Msg("keys are missing from the store under sluice/keys/: restore them before a replica restarts, or it cannot read what they authenticate")
	}
	r.keys, r.reloaded = keys, time.Now()
	if len(names) > 0 {
		// One that the store holds: what is signed with it outlives us.
		r.current, r.newest = current, newest
	}
	return nil
}

// Current is the key that new references are made with.
func (r *Ring) Current() placeholder.Key {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.current
}

// Cached finds a key among those that were read before, or ErrUnknownKey.
func (r *Ring) Cached(id placeholder.KeyID) (placeholder.Key, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if key, ok := r.keys[id]; ok {
		return key, nil
	}
	return placeholder.Key{}, ErrUnknownKey
}

// Lookup finds a key. An id that is not known makes the store be read again,
// within bounds and once for all who ask. ErrUnknownKey means that the store
// was read and has no such key; any other error, that this is not known.
func (r *Ring) Lookup(ctx context.Context, id placeholder.KeyID) (placeholder.Key, error) {
	if key, err := r.Cached(id); err == nil {
		return key, nil
	}
	read := r.load.DoChan("", func() (any, error) {
		if !r.loads.Allow() {
			return nil, r.lately()
		}
		ctx, cancel := context.WithTimeout(context.Background(), reloadTimeout)
		defer cancel()
		err := r.reload(ctx)
		if err != nil {
			r.opt.Logger.Warn().Err(err).Stringer("store", r.store).Msg("keys cannot be read again")
		}
		return nil, err
	})
	select {
	case done := <-read:
		if done.Err != nil {
			return placeholder.Key{}, fmt.Errorf("reading keys: %w", done.Err)
		}
		return r.Cached(id)
	case <-ctx.Done():
		return placeholder.Key{}, ctx.Err()
	}
}

// lately says what a look at the store of a moment ago is worth.
func (r *Ring) lately() error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if time.Since(r.reloaded) <= 2*r.opt.ReloadEvery {
		return nil
	}
	return fmt.Errorf("they could not be read a moment ago: %w", objstore.ErrUnavailable)
}

// Rotate makes a new key and uses it from now on; other replicas learn it with
// the first reference that they do not know. Old keys stay, to read.
func (r *Ring) Rotate(ctx context.Context) error {
	// Later than the current one, whatever this machine's clock says.
	r.mu.RLock()
	created := r.newest.Add(time.Millisecond)
	r.mu.RUnlock()
	if now := time.Now(); now.After(created) {
		created = now
	}
	body, err := newKey(created)
	if err != nil {
		return err
	}
	var s stored
	if err := json.Unmarshal(body, &s); err != nil {
		return err
	}
	if err := r.store.PutIfAbsent(ctx, keysPrefix+s.ID+".json", body); err != nil {
		return fmt.Errorf("%v: rotating: %w", r.store, err)
	}
	return r.reload(ctx)
}
