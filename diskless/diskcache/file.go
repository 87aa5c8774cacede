package diskcache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"path"
)

// name is a file's: a hash of the chunk's key.
type name [16]byte

func nameOf(key string) name {
	sum := sha256.Sum256([]byte(key))
	return name(sum[:len(name{})])
}

// path is where a file is in the folder: in one of 256 below it.
func (n name) path() string {
	s := hex.EncodeToString(n[:])
	return path.Join(s[:2], s)
}

// A file is magic, CRC-32C of the rest, the key's length, the key, and the chunk.
const (
	magic   = "sluiceC1"
	keyAt   = len(magic) + 4 + 2
	maxKey  = 2048
	maxHead = keyAt + maxKey
)

// errCorrupt is a file that is not as it was written, or not the one that its name
// says.
var errCorrupt = errors.New("the file is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func headOf(key string, body []byte) []byte {
	head := make([]byte, keyAt, keyAt+len(key))
	copy(head, magic)
	binary.BigEndian.PutUint16(head[len(magic)+4:], uint16(len(key)))
	head = append(head, key...)
	sum := crc32.Checksum(head[len(magic)+4:], castagnoli)
	binary.BigEndian.PutUint32(head[len(magic):], crc32.Update(sum, castagnoli, body))
	return head
}

// bodyOf returns the chunk that a file holds, if it is the one that is asked for.
func bodyOf(file []byte, key string) ([]byte, error) {
	if len(file) <= keyAt+len(key) || string(file[:len(magic)]) != magic {
		return nil, errCorrupt
	}
	rest := file[len(magic)+4:]
	if binary.BigEndian.Uint32(file[len(magic):]) != crc32.Checksum(rest, castagnoli) {
		return nil, errCorrupt
	}
	if int(binary.BigEndian.Uint16(rest)) != len(key) || !bytes.HasPrefix(rest[2:], []byte(key)) {
		return nil, errCorrupt
	}
	return file[keyAt+len(key):], nil
}
