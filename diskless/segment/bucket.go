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

// StepOf divides the bucket of a retention.ms into at most 16 steps, of an hour or
// more: of two times in one step of one bucket, one is longer by at most a 16th or
// an hour. It is for who writes segments; manifests do not tell it.
func StepOf(retention time.Duration) uint8 {
	b := BucketOf(retention)
	if b == 0 || b == Forever {
		return 0
	}
	shorter := time.Hour << (b - 1) // than all of the bucket
	return uint8((retention - shorter - 1) / max(shorter/16, time.Hour))
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
