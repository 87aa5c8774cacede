package gc

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Reason is why an object is kept, or not. It is a metric label.
type Reason string

// The reasons.
const (
	Dead       Reason = "dead"       // nothing refers to it: deleted, or to be
	Grace      Reason = "grace"      // nothing does, but that has not been so for long enough
	Retained   Reason = "retained"   // a log may still hold a reference: retention has not reached its time
	Young      Reason = "young"      // it is too young to tell
	Unseen     Reason = "unseen"     // a log has not been looked at often enough to tell
	Doubt      Reason = "doubt"      // something about a log is not certain
	Unreadable Reason = "unreadable" // it cannot be read what it holds
	Unknown    Reason = "unknown"    // not an object of a known form
	Audit      Reason = "audit"      // never deleted here
	Needed     Reason = "needed"     // part of what readers need to find others
)

// Object is one object and what becomes of it.
type Object struct {
	Key    string    `json:"key"`
	Bytes  int64     `json:"bytes"`
	Time   time.Time `json:"time"`   // the store's, or its own where that is later
	Reason Reason    `json:"reason"` // Dead, or what keeps it
	Why    string    `json:"why"`
	// Of what keeps it, where that is a log; the one that will for longest.
	Topic     string     `json:"topic,omitempty"`
	Partition *int32     `json:"partition,omitempty"`
	Settled   *time.Time `json:"settled,omitempty"` // objects of that log are settled up to this time
}

// Count is of objects.
type Count struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// Report is what a pass found and did. The JSON names are stable.
type Report struct {
	Store   string           `json:"store"`
	Began   time.Time        `json:"began"` // by the store's clock
	Took    time.Duration    `json:"took_ns"`
	DryRun  bool             `json:"dry_run"`
	Listed  Count            `json:"listed"`
	Deleted Count            `json:"deleted"`
	Found   map[Reason]Count `json:"found"` // everything listed, by reason; Dead includes Deleted

	Topics      int               `json:"topics"`      // names that were asked about
	Checkpoints int               `json:"checkpoints"` // of all logs
	Doubts      map[string]string `json:"doubts"`      // by topic, or topic-partition: what is not certain; some of them
	Unread      []string          `json:"unreadable"`  // some of those that could not be read
	Requests    Requests          `json:"requests"`    // to the store
}

// Requests to a store.
type Requests struct {
	Puts    int64 `json:"puts"`
	Gets    int64 `json:"gets"`
	Lists   int64 `json:"lists"` // of up to 1,000 keys each, reckoned
	Deletes int64 `json:"deletes"`
}

// maxNamed bounds lists in a report.
const maxNamed = 100

// tally is a report that is being made.
type tally struct {
	mu sync.Mutex
	Report
}

func (t *tally) found(o Object, deleted bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Listed.add(o.Bytes)
	c := t.Found[o.Reason]
	c.add(o.Bytes)
	t.Found[o.Reason] = c
	if deleted {
		t.Deleted.add(o.Bytes)
	}
	if o.Reason == Unreadable && len(t.Unread) < maxNamed {
		t.Unread = append(t.Unread, o.Key)
	}
}

func (t *tally) doubt(what, why string) {
	if len(t.Doubts) < maxNamed {
		t.Doubts[what] = why
	}
}

func (c *Count) add(bytes int64) {
	c.Objects++
	c.Bytes += bytes
}

// DoubtList is the doubts, sorted.
func (r *Report) DoubtList() []string {
	var out []string
	for _, what := range slices.Sorted(maps.Keys(r.Doubts)) {
		out = append(out, what+": "+strings.TrimSpace(r.Doubts[what]))
	}
	return out
}
