package objstore

import (
	"strings"
	"unsafe"
)

// Unzeroed is empty, with room for n bytes, which hold whatever was there before:
// they are to be written before they are read. Clearing them takes as long as filling
// them.
func Unzeroed(n int) []byte {
	var b strings.Builder // the one thing that gives out such memory
	b.Grow(n)
	b.WriteByte(0) // of an empty string nobody promises where it is
	return unsafe.Slice(unsafe.StringData(b.String()), n)[:0]
}
