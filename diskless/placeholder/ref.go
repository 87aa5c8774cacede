package placeholder

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// HeaderKey is the record header that is reserved for references.
const HeaderKey = "sluice.ref"

const (
	refVersion   = 1
	flagAudit    = 1
	macSize      = 16
	fixedRefSize = 1 + 1 + 8 + 16 // version, flags, key id, object id
	// maxRefSize bounds a reference of this and every later version: a sluice
	// that does not know a version must still see that it is a placeholder.
	maxRefSize = 128
	macDomain  = HeaderKey + "\x00"
)

// Version 1 fits.
var _ [maxRefSize - (fixedRefSize + binary.MaxVarintLen64 + binary.MaxVarintLen32 + 4 + macSize)]struct{}

// KeyID names a MAC key. Ids are random, so one also tells which store a
// reference belongs to.
type KeyID [8]byte

// Key authenticates references.
type Key struct {
	ID     KeyID
	Secret [32]byte
}

// Identity is where a batch stands; the MAC binds a reference to it.
type Identity struct {
	ClusterID string
	Topic     string
	Partition int32
}

// Ref says where a batch's original bytes are.
type Ref struct {
	KeyID  KeyID
	Object ulid.ULID
	Audit  bool
	Offset uint64 // in the object
	Length uint32 // of the original batch
	CRC    uint32 // the original batch's CRC field
}

// append encodes a reference, without its MAC.
func (r Ref) append(dst []byte) []byte {
	flags := byte(0)
	if r.Audit {
		flags |= flagAudit
	}
	dst = append(dst, refVersion, flags)
	dst = append(dst, r.KeyID[:]...)
	dst = append(dst, r.Object[:]...)
	dst = binary.AppendUvarint(dst, r.Offset)
	dst = binary.AppendUvarint(dst, uint64(r.Length))
	return binary.BigEndian.AppendUint32(dst, r.CRC)
}

var (
	errRef     = errors.New("the reference is damaged")
	errVersion = errors.New("the reference is of a later version of the format: upgrade this sluice")
)

func parseRef(b []byte) (s Signed, err error) {
	if len(b) > 0 && b[0] > refVersion {
		return s, errVersion
	}
	if len(b) < fixedRefSize || b[0] != refVersion || b[1]&^flagAudit != 0 {
		return s, errRef
	}
	r := &s.Ref
	r.Audit = b[1]&flagAudit != 0
	copy(r.KeyID[:], b[2:])
	copy(r.Object[:], b[10:])
	rest := b[fixedRefSize:]
	var n int
	if r.Offset, n = binary.Uvarint(rest); n <= 0 {
		return s, errRef
	}
	rest = rest[n:]
	length, n := binary.Uvarint(rest)
	if n <= 0 || length < wire.BatchHeaderSize || length > 1<<31-1 || r.Offset > 1<<62 {
		return s, errRef
	}
	r.Length = uint32(length)
	rest = rest[n:]
	if len(rest) != 4+macSize {
		return s, errRef
	}
	r.CRC = binary.BigEndian.Uint32(rest)
	copy(s.mac[:], rest[4:])
	return s, nil
}

// mac is over the reference and everything that it is bound to.
func mac(key Key, id Identity, ref Ref, b wire.Batch) (out [macSize]byte) {
	msg := make([]byte, 0, 256)
	msg = append(msg, macDomain...)
	msg = ref.append(msg)
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(id.ClusterID)))
	msg = append(msg, id.ClusterID...)
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(id.Topic)))
	msg = append(msg, id.Topic...)
	msg = binary.BigEndian.AppendUint32(msg, uint32(id.Partition))
	msg = binary.BigEndian.AppendUint64(msg, uint64(b.ProducerID()))
	msg = binary.BigEndian.AppendUint16(msg, uint16(b.ProducerEpoch()))
	msg = binary.BigEndian.AppendUint32(msg, uint32(b.BaseSequence()))
	msg = binary.BigEndian.AppendUint32(msg, uint32(b.NumRecords()))
	h := hmac.New(sha256.New, key.Secret[:])
	h.Write(msg)
	copy(out[:], h.Sum(msg[:0]))
	return out
}

// Signed is a reference as it was found: not to be trusted before Verify.
type Signed struct {
	Ref Ref
	mac [macSize]byte
}

// Verify reports whether the reference was made with key for exactly this
// batch in this place. It takes constant time.
func (s Signed) Verify(key Key, id Identity, b wire.Batch) bool {
	want := mac(key, id, s.Ref, b)
	return key.ID == s.Ref.KeyID && b.LastOffsetDelta() == b.NumRecords()-1 && hmac.Equal(want[:], s.mac[:])
}
