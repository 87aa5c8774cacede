package segment

import (
	"fmt"
	"math/bits"
	"time"
)

// Bucket is a range of retention times. Topics share a segment only within one,
// so that what is in a segment dies at about the same time. Bucket n < 64 holds
// what is kept for more than 2^(n-1) and at most 2^n hours; 0 holds all shorter
// times.
type Bucket uint8

const (
	Unknown Bucket = 254 // the topic is gone, or its retention could not be read
	Forever Bucket = 255 // retention.ms=-1
)

// BucketOf sorts a retention.ms; a negative one is for ever.
func BucketOf(retention time.Duration) Bucket {
	if retention < 0 {
		return Forever
	}
	if retention <= time.Hour {
		return 0
	}
	return Bucket(bits.Len64(uint64((retention - 1) / time.Hour)))
}

func (b Bucket) String() string {
	switch b {
	case Unknown:
		return "unknown"
	case Forever:
		return "forever"
	}
	return fmt.Sprintf("≤%dh", uint64(1)<<b)
}
