package lowlatency

import (
	"context"
	"math"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Operations are those that somebody may do.
type Operations int32

// Has reports whether one is among them.
func (o Operations) Has(op kmsg.ACLOperation) bool { return o>>op&1 != 0 }

// notTold is what a broker says that was not asked, or does not know (KIP-430).
const notTold = math.MinInt32

// Allowed returns what sluice's own principal may do with topics. Those of which
// brokers do not say it are missing: it is Kafka 2.3 that first does.
func (c *Cluster) Allowed(ctx context.Context, topics []string) (map[string]Operations, error) {
	allowed := make(map[string]Operations, len(topics))
	for some := range slices.Chunk(topics, surveyTopics) {
		req := metadataRequest(some)
		req.IncludeTopicAuthorizedOperations = true
		resp, err := req.RequestWith(ctx, c.client)
		if err != nil {
			return nil, err
		}
		for _, t := range resp.Topics {
			if t.Topic != nil && t.ErrorCode == 0 && t.AuthorizedOperations != notTold {
				allowed[*t.Topic] = Operations(t.AuthorizedOperations)
			}
		}
	}
	return allowed, nil
}
