package proxy

import (
	"context"
	"net"

	"github.com/sluice-kafka/sluice/tiers"
)

// AnyBroker asks Brokers.Dial for any live broker: the bootstrap listener's
// clients have not chosen one yet.
const AnyBroker int32 = -1

// Brokers is what the proxy asks of the low-latency tier: the user's own
// Kafka.
type Brokers interface {
	// Dial opens a connection to the broker with this node id, TLS done when
	// the cluster wants it. The error names the node and its address.
	Dial(ctx context.Context, node int32) (net.Conn, error)
	// Facts returns what is known of a topic; it reads the topic's
	// configuration from the cluster on first use and blocks no longer than
	// ctx allows. Facts.Known is false when that did not succeed.
	Facts(ctx context.Context, topic string) tiers.TopicFacts
	// FactsOf is Facts for several topics, in their order. What is not known of
	// them is read together, so it takes as long as for one.
	FactsOf(ctx context.Context, topics []string) []tiers.TopicFacts
	// Invalidate forgets a topic's facts: a request that may have changed them
	// has passed through.
	Invalidate(topic string)
}

// Quotas says which byte rates the user's Kafka grants. It answers from memory.
type Quotas interface {
	// ByteRate finds the rate that applies to a client, as a broker would; ok
	// is false when none does, or when it cannot be told.
	ByteRate(kind tiers.QuotaKind, client tiers.QuotaClient) (rate tiers.ByteRate, ok bool)
}

// Payloads is what the proxy asks of the diskless tier: batches go in, bytes
// come out. All methods are safe for concurrent use.
type Payloads interface {
	// Reserved reports whether any batch of a client's records carries the
	// header that is reserved for placeholders; such a Produce is refused.
	Reserved(records []byte) bool
	// Offload starts to store one batch and returns at once. notify is called
	// exactly once, from any goroutine and possibly before Offload returns,
	// when the batch's fate is decided; then Result may be called. Cancelling
	// ctx ends any waiting (the client has gone).
	Offload(ctx context.Context, req tiers.OffloadRequest, notify func()) tiers.Offload
	// Offered is called when all batches of a request of this connection have
	// been offloaded. p is nil for requests that have no answer.
	Offered(p *tiers.Producer)
	// Kept notes a batch of a diskless class that was not offloaded, because its
	// topic stays inline whatever the batch.
	Kept(class *tiers.Class, topic string, why tiers.Reason, bytes int)
	// Candidate reports whether fetched records may hold a placeholder. It
	// never says false when there is one; it looks at batch headers only for
	// all but a few batches.
	Candidate(records []byte) bool
	// Resolve splits fetched records into their whole batches, in order, and
	// verifies their placeholders. It ends with the batch by which they have more
	// than most bytes, or before a trailing partial batch; size is about what all
	// whole batches come to. An error means that some placeholder could not be
	// verified: pieces then holds what precedes it. readahead is how many objects
	// may be read before their batches are loaded, and for what comes after them;
	// negative when none will be.
	Resolve(ctx context.Context, tp tiers.TopicPartition, records []byte, most, readahead int) (pieces []tiers.Piece, size int, err error)
	// Readable reports whether a class's store answers readers, as far as is
	// known. Asking has it tried now and then while it does not.
	Readable(class *tiers.Class) bool
}
