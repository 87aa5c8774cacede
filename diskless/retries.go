package diskless

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/tiers"
)

// retries remembers where the batches of idempotent producers were stored, so
// that one which is sent again (CONCURRENT_TRANSACTIONS, a leader that moved, a
// broker that restarted) is not uploaded again. Batches without a producer id
// all have the same sequence and are never remembered; the others must be the
// same to the last bit, by a keyed hash: a CRC alone would give one batch's bytes
// to another within minutes.
type retries struct {
	stored *lru.Cache[retryKey, storedBatch] // nil: nothing is remembered
	// fingerprint is nil when nothing is remembered.
	fingerprint func(batch []byte) fingerprint
}

// fingerprint is the GMAC of a batch under a key that nobody else has: who cannot
// see it cannot make two batches that share one, any more than with SHA-256, which
// takes as long as all else that is done with a batch. The nonce is always the
// same, for what is compared must be; no fingerprint leaves the process. Where
// only what FIPS 140 approves may be used (GODEBUG=fips140=only), such a nonce is
// not, and it is HMAC-SHA-256, cut to the same length.
type fingerprint [16]byte

type retryKey struct {
	tiers.TopicPartition
	store    string
	audit    bool
	producer int64
	epoch    int16
	sequence int32
}

type storedBatch struct {
	sum    fingerprint
	size   int
	object *object
	offset int
}

func newRetries(batches int) (*retries, error) {
	if batches <= 0 {
		return &retries{}, nil
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it never fails
	hash := hmacSHA256(key)
	if !fips140.Enforced() {
		var err error
		if hash, err = gmac(key); err != nil {
			return nil, err
		}
	}
	stored, err := lru.New[retryKey, storedBatch](batches)
	return &retries{stored, hash}, err
}

func gmac(key []byte) (func([]byte) fingerprint, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	hash, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return func(b []byte) (sum fingerprint) {
		hash.Seal(sum[:0], make([]byte, hash.NonceSize()), nil, b)
		return sum
	}, nil
}

func hmacSHA256(key []byte) func([]byte) fingerprint {
	return func(b []byte) (sum fingerprint) {
		hash := hmac.New(sha256.New, key)
		_, _ = hash.Write(b) // it never fails
		copy(sum[:], hash.Sum(nil))
		return sum
	}
}

// identify fills in what a batch is recognized by.
func (r *retries) identify(o *offload, b wire.Batch) {
	if r.stored == nil || b.ProducerID() < 0 {
		return
	}
	o.retry = &retryKey{o.req.TopicPartition, o.req.Class.Store, o.req.Class.Audit, b.ProducerID(), b.ProducerEpoch(), b.BaseSequence()}
	o.sum = r.fingerprint(b)
}

// recall makes a batch that was stored before durable at once.
func (r *retries) recall(o *offload, w *writer) bool {
	if o.retry == nil {
		return false
	}
	s, ok := r.stored.Get(*o.retry)
	if !ok || s.size != o.size || s.sum != o.sum || s.object.age() > o.tier.limits.MaxPlaceholderAge/2 {
		return false
	}
	o.writer, o.object, o.offset = w, s.object, s.offset
	o.fate = durable
	o.req.Batch = nil
	return true
}

// remember notes a batch whose object is durable.
func (r *retries) remember(o *offload) {
	if o.retry != nil {
		r.stored.Add(*o.retry, storedBatch{o.sum, o.size, o.object, o.offset})
	}
}
