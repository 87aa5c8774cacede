package wire

// Varint reads the zigzag varint of at most 32 bits that records are made of
// (KIP-98). n is its length, 0 when b ends before it does or it is longer than
// five bytes. Like Kafka's ByteUtils it takes encodings that are longer than
// necessary and drops bits beyond the 32nd.
func Varint(b []byte) (v int32, n int) {
	var u uint32
	for i := 0; i < len(b) && i < 5; i++ {
		u |= uint32(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			return int32(u>>1) ^ -int32(u&1), i + 1
		}
	}
	return 0, 0
}

// Varlong is Varint for 64 bits, in at most ten bytes.
func Varlong(b []byte) (v int64, n int) {
	var u uint64
	for i := 0; i < len(b) && i < 10; i++ {
		u |= uint64(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			return int64(u>>1) ^ -int64(u&1), i + 1
		}
	}
	return 0, 0
}
