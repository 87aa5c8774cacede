// Package placeholder is the codec of placeholder batches: what stands in a
// Kafka log where a batch's payload is in an object. It is pure.
//
// # Format
//
// A placeholder is an ordinary v2 record batch (KIP-98) with the original's
// record count, last offset delta, first and max timestamp, producer id, epoch,
// base sequence and transactional bit, so that the broker treats it as it would
// have treated the original: sequence checks, transactions, offsets, timestamp
// index. Its records are:
//
//	every record   null key, zero-length value, the original's timestamp delta
//	record 0       one header: key "sluice.ref", value = reference
//	the others     no headers
//
// The value is zero-length, not null: null would be a tombstone. The reference:
//
//	version        1 byte, 1
//	flags          1 byte; bit 0: the object is under the audit prefix
//	key id         8 bytes
//	object id      16 bytes, a ULID
//	offset         uvarint, of the original in the object
//	length         uvarint, of the original, whole batch
//	CRC            4 bytes, big-endian: the original batch's own CRC field
//	MAC            16 bytes
//
// The MAC is HMAC-SHA-256, cut to its first 16 bytes, under the key that the
// key id names, over:
//
//	"sluice.ref\x00"
//	the reference up to the MAC
//	cluster id     uint32 length, big-endian, then the bytes
//	topic name     likewise
//	partition      int32
//	producer id    int64
//	producer epoch int16
//	base sequence  int32
//	record count   int32
//
// It binds the reference to one batch of one partition: whoever can write to a
// topic cannot make its readers see another topic's bytes. The topic's name is
// bound, not its id, because Kafka authorizes names and Produce before v13
// carries nothing else.
//
// # What the broker may do to it
//
// When the topic's compression.type is neither "producer" nor the batch's own
// codec, the broker compresses the records anew; records, headers and batch
// boundaries survive. Under LogAppendTime it sets the timestamp type bit and
// maxTimestamp. Both recompute the CRC. It sets base offset and leader epoch.
//
// # Detection
//
// Candidate looks at a batch header and is never false for a placeholder: no
// placeholder is longer than its reference and count × the largest empty
// record, compressed by the worst of the codecs. What passes is decoded by
// Parse: only the first 512 decompressed bytes, where record 0 must be.
//
// A client's own batch must never be taken for a placeholder, so Reserved, on
// Produce, refuses what Parse, on Fetch, would recognize. The two see different
// bytes when the broker compresses anew, hence two rules: Parse asks for the size
// and the shape of a placeholder, Reserved for the header in record 0 alone, and
// it refuses what is intact and yet unreadable here.
package placeholder
