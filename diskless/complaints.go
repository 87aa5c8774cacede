package diskless

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/tiers"
)

const (
	// complainAgain is between two log lines about one place.
	complainAgain = time.Minute
	// maxComplaints is how many places are remembered.
	maxComplaints = 4096
)

// complaint is what a log line about a batch that cannot be read tells.
type complaint struct {
	tiers.TopicPartition
	offset int64
	reason string
}

// complaints bounds the log lines that readers cause. A reader asks for the
// same batch again and again: so each has its turn but rarely, else one would
// use up the bound and hide all others.
type complaints struct {
	bound *rate.Limiter

	mu   sync.Mutex
	said *simplelru.LRU[complaint, time.Time]
	kept *simplelru.LRU[string, tiers.InlineReason] // by topic, what was said last
}

func newComplaints() (*complaints, error) {
	said, err := simplelru.NewLRU[complaint, time.Time](maxComplaints, nil)
	if err != nil {
		return nil, err
	}
	kept, err := simplelru.NewLRU[string, tiers.InlineReason](maxComplaints, nil)
	return &complaints{bound: rate.NewLimiter(1, 20), said: said, kept: kept}, err
}

// allowKept reports whether to log why a topic stays inline: once, and again
// when the reason is another.
func (c *complaints) allowKept(topic string, why tiers.InlineReason) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last, ok := c.kept.Get(topic); ok && last == why {
		return false
	}
	c.kept.Add(topic, why)
	return true
}

// allow reports whether to log this one now.
func (c *complaints) allow(what complaint) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if last, ok := c.said.Peek(what); ok && now.Sub(last) < complainAgain || !c.bound.AllowN(now, 1) {
		return false
	}
	c.said.Add(what, now)
	return true
}
