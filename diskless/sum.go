package diskless

import (
	"hash/crc32"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// joinFrom is from what size on it takes less time to join a batch's CRC to
// another than to compute it again.
const joinFrom = 16 << 10

// sumOn is the CRC-32C of what has the CRC sum and then b, whose own was verified.
// Thus an object's is of what was verified, not of what has become of it in memory;
// and most of it is not read once more.
func sumOn(sum uint32, b wire.Batch) uint32 {
	covered := b.Covered()
	if len(covered) < joinFrom {
		return crc32.Update(sum, wire.Castagnoli, b)
	}
	sum = crc32.Update(sum, wire.Castagnoli, b[:len(b)-len(covered)])
	return joinSums(sum, b.CRC(), len(covered))
}

// joinSums is the CRC-32C of two things behind each other, given theirs and the
// length of the second: first·x^(8·length) + second, as polynomials over GF(2)
// modulo Castagnoli's.
func joinSums(first, second uint32, length int) uint32 {
	for k := 0; length > 0; k, length = k+1, length>>1 {
		if length&1 != 0 {
			first = timesModulo(first, powers[k])
		}
	}
	return first ^ second
}

// powers are x^8, x^16, x^32 and so on. The highest bit is the coefficient of x^0.
var powers = func() (p [63]uint32) {
	p[0] = 1 << (31 - 8)
	for k := 1; k < len(p); k++ {
		p[k] = timesModulo(p[k-1], p[k-1])
	}
	return p
}()

func timesModulo(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		if a>>31 != 0 {
			product ^= b
		}
		b = b>>1 ^ -(b&1)&crc32.Castagnoli // times x
	}
	return product
}
