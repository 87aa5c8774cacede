package tiers

import (
	"context"
	"time"
)

// OffloadRequest asks the diskless tier to store one record batch.
type OffloadRequest struct {
	Class *Class
	TopicPartition

	// Batch is exactly one record batch as the client sent it. It is only
	// valid for reading until Offload.Result has returned, and the tier never
	// writes to it.
	Batch []byte

	// MaxMessageBytes is the topic's max.message.bytes, 0 when not known.
	// A larger batch goes inline unchanged: the broker gives the exact error.
	MaxMessageBytes int32

	// Timeout is the client's own produce timeout (request.timeout.ms as the
	// request carries it). The tier decides for inline well within it.
	Timeout time.Duration

	// ProduceVersion is the version of the client's Produce request: zstd
	// placeholders need 7 or later.
	ProduceVersion int16

	// Producer is the connection, nil when it waits for no answer (acks=0):
	// then its batches only leave with their object's linger or size.
	Producer *Producer

	// Request is what Producer.Begin returned for the batch's request.
	Request uint64
}

// Offload is one batch on its way into an object.
type Offload interface {
	// Result says what goes upstream in the batch's place. It is called once,
	// after notify, by the goroutine that is about to forward the request, and
	// does the CPU work of building the placeholder.
	Result() Offloaded
}

// Offloaded is the outcome of an offload.
type Offloaded struct {
	// Records replaces the client's batch; nil means: forward the client's own
	// bytes unchanged.
	Records []byte
	// Rejected: nothing is to be written, and the client is to be told an error
	// that it retries.
	Rejected bool
	// Inline is why the batch stays inline, "" for a placeholder. It is a
	// metric label: one of a small fixed set.
	Inline InlineReason
}

// InlineReason is why a batch of a diskless topic is written inline.
type InlineReason string

const (
	InlineSmall       InlineReason = "small"       // original < 4 × its placeholder
	InlineInvalid     InlineReason = "invalid"     // failed validation: the broker gives the exact error
	InlineControl     InlineReason = "control"     // control batch
	InlineMagic       InlineReason = "magic"       // message format before v2
	InlineTooLarge    InlineReason = "too_large"   // larger than max.message.bytes
	InlineUnavailable InlineReason = "unavailable" // the object store could not be written in time
	InlineStale       InlineReason = "stale"       // the object became too old before the placeholder could be forwarded
	InlineCompacted   InlineReason = "compacted"   // the topic is compacted
	InlineInternal    InlineReason = "internal"    // the topic is Kafka's own
	InlineUnknown     InlineReason = "unknown"     // the topic's facts could not be read
	InlineDenied      InlineReason = "denied"      // the broker does not let the client write
)

// Piece is one batch of a fetched log, as the client shall see it: either the
// broker's own bytes or a resolved placeholder.
type Piece interface {
	// Size is the exact number of bytes that Load yields.
	Size() int
	// Records is the number of offsets that the batch covers.
	Records() int
	// Placeholder reports whether Load may have to read an object.
	Placeholder() bool
	// Cached reports whether Load would read no object now.
	Cached() bool
	// Await waits until what Load reads is in memory, or says why that cannot
	// be. Unlike the others it may be called when the fetched bytes are gone.
	Await(ctx context.Context) error
	// Load returns the bytes, as slices to be written in order and never to be
	// written to.
	Load(ctx context.Context) ([][]byte, error)
	// Lend is Load for who needs the bytes for a moment: they may be part of what
	// others read too. done, unless it is nil, is to be called when they are no longer
	// needed; until then they count against what may be kept in memory.
	Lend(ctx context.Context) (b [][]byte, done func(), err error)
}
