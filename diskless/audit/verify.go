package audit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// Finding is something that is not as an archiver wrote it. The JSON names are
// stable, here and below.
type Finding struct {
	Object  string `json:"object"` // its key, or a file's name
	Offset  int64  `json:"offset"` // where it matters first; -1 when that is not known
	Problem string `json:"problem"`
}

// Anchor is an object of a chain as somebody has noted it elsewhere: a chain that
// has it holds all before it.
type Anchor struct {
	Number int64  `json:"number"`
	SHA256 string `json:"sha256"`
	Next   int64  `json:"next_offset"`
}

// Report is what is known of one chain.
type Report struct {
	Topic     string    `json:"topic"`
	TopicID   string    `json:"topic_id"`
	Partition int32     `json:"partition"`
	Store     string    `json:"store,omitempty"`
	Objects   int64     `json:"objects"`
	Batches   int64     `json:"batches"`
	Bytes     int64     `json:"bytes"`
	First     int64     `json:"first_offset"`
	Head      *Anchor   `json:"head,omitempty"`    // the last sound object
	Written   time.Time `json:"written,omitzero"`  // when
	Locked    time.Time `json:"locked,omitzero"`   // the end of the first lock that ends; zero where there are none
	Gaps      []Gap     `json:"gaps,omitempty"`    // what the chain says that it does not hold
	Rewinds   []Rewind  `json:"rewinds,omitempty"` // what Kafka has lost
	Notes     []string  `json:"notes,omitempty"`
	Findings  []Finding `json:"findings,omitempty"`

	// Hashes holds the number of each object by its hash.
	Hashes map[string]int64 `json:"-"`

	cuts []cut
}

// cut is a rewind, and the object that has it.
type cut struct{ number, to int64 }

// lost reports whether Kafka's log has lost what an object holds at an offset.
func (r *Report) lost(number, offset int64) bool {
	return slices.ContainsFunc(r.cuts, func(c cut) bool { return number < c.number && offset >= c.to })
}

func (r *Report) find(object string, offset int64, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{object, offset, fmt.Sprintf(format, args...)})
}

// walker checks a chain object by object, whatever they come from.
type walker struct {
	r       *Report
	chain   Chain
	cluster string // "" is that of the first object
	number  int64  // expected next; -1 before the first object
	hash    string // of the object before; "" when that is not known
	next    int64  // -1 when that is not known
	inside  bool   // the first object need not be the chain's first
	begun   bool
	now     time.Time
}

func newWalker(chain Chain, cluster string, now time.Time) *walker {
	return &walker{
		r:     &Report{TopicID: TopicIDText(chain.TopicID), Partition: chain.Partition, First: -1, Hashes: map[string]int64{}},
		chain: chain, cluster: cluster, number: -1, next: -1, now: now,
	}
}

// broken notes that an object cannot be looked at: what follows is not tied to
// what was before.
func (w *walker) broken(number int64) { w.begun, w.number, w.hash, w.next = true, number+1, "", -1 }

// before looks at what lies between the last object and this one.
func (w *walker) before(number int64, name string) {
	switch {
	case w.number >= 0 && number > w.number:
		w.r.find(name, w.next, "objects %d to %d before it are missing", w.number, number-1)
		w.broken(number - 1)
	case w.number < 0:
		w.number = number
	}
}

// step checks the next object. ok is false when nothing can be read from it.
func (w *walker) step(number int64, name string, object []byte) (h Header, batches []byte, ok bool) {
	first := !w.begun
	w.before(number, name)
	w.begun = true
	h, batches, err := parse(object)
	hash := Hash(object)
	if err != nil {
		w.r.find(name, w.next, "%v", err)
		w.r.Objects++
		w.broken(number)
		return h, nil, false
	}
	r := w.r
	if r.Topic == "" {
		r.Topic = h.Topic
	}
	if w.cluster == "" {
		w.cluster = h.ClusterID
	}
	if h.ClusterID != w.cluster || h.Topic != r.Topic || h.TopicID != r.TopicID || h.Partition != w.chain.Partition || h.Number != number {
		r.find(name, h.First, "it is object %d of topic %s (id %s), partition %d, cluster %s: it belongs elsewhere", h.Number, h.Topic, h.TopicID, h.Partition, h.ClusterID)
		r.Objects++
		w.broken(number)
		return h, nil, false
	}
	switch {
	case first && number > 0 && !w.inside:
		switch {
		case h.PreviousLockedUntil.IsZero() || w.now.Before(h.PreviousLockedUntil):
			r.find(name, 0, "objects 0 to %d before it are missing, and their lock has not ended", number-1)
		default:
			r.Notes = append(r.Notes, fmt.Sprintf("objects 0 to %d, up to offset %d, are not there any more; their locks had ended by %s", number-1, h.First-1, h.PreviousLockedUntil.Format(time.RFC3339)))
		}
	case first && number == 0 && (h.Previous != "" || h.First != 0):
		r.find(name, h.First, "the first object names one before it, or begins at offset %d", h.First)
	case w.hash != "" && h.Previous != w.hash:
		r.find(name, h.First, "it was written behind another object: it names SHA-256 %s, the object before it has %s; one of the two was altered, or they were put in another order", h.Previous, w.hash)
	}
	switch {
	case h.Rewind != nil && (h.Rewind.To != h.First || w.next >= 0 && h.Rewind.From != w.next || h.Rewind.To >= h.Rewind.From):
		r.find(name, h.First, "it begins at offset %d and says that the log was cut from %d back to %d; the chain ends at %d", h.First, h.Rewind.From, h.Rewind.To, w.next)
	case h.Rewind == nil && w.next >= 0 && h.First != w.next:
		r.find(name, h.First, "it begins at offset %d, the object before it ends at %d", h.First, w.next)
	}
	if h.Rewind != nil {
		r.Rewinds = append(r.Rewinds, *h.Rewind)
		r.cuts = append(r.cuts, cut{number, h.Rewind.To})
	}
	r.Gaps = append(r.Gaps, h.Gaps...)
	if r.First < 0 {
		r.First = h.First
	}
	r.Objects++
	r.Batches += int64(h.Batches)
	r.Bytes += h.Bytes
	r.Head = &Anchor{number, hash, h.Next}
	r.Written = h.Written
	r.Hashes[hash] = number
	w.number, w.hash, w.next = number+1, hash, h.Next
	return h, batches, true
}

// Verifier checks chains in a store.
type Verifier struct {
	Store     objstore.Store
	Name      string            // the store's, in the configuration
	ClusterID string            // "" accepts any, the same in all objects of a chain
	Locked    objstore.LockMode // what the store is told to lock with; "" is not at all
	Now       time.Time

	// Pace is waited for before each object is read; nil: nothing.
	Pace func(context.Context, int) error
	// Each, when not nil, sees every sound object's batches.
	Each func(ctx context.Context, h Header, batches []byte) error
}

// lockMargin is how much a store's clock may be behind the archiver's.
const lockMargin = 5 * time.Minute

// Chains lists the chains of a store with the name of their topic, as their first
// object has it; the name is "" when that cannot be read.
func (v *Verifier) Chains(ctx context.Context) (map[Chain]string, []Finding, error) {
	chains := map[Chain]string{}
	var findings []Finding
	note := func(key string) error {
		c, _, ok := parseKey(key)
		if !ok {
			findings = append(findings, Finding{key, -1, "this is no key of the archive"})
			return nil
		}
		if _, known := chains[c]; !known {
			chains[c] = ""
			object, err := v.Store.Get(ctx, key, 0, maxHeader/64)
			if err == nil {
				if h, _, err := parseHeader(object); err == nil {
					chains[c] = h.Topic
				}
			} else if !errors.Is(err, objstore.ErrNotFound) {
				return err
			}
		} else if chains[c] == "" {
			// Its first object is damaged or hidden: another may tell.
			if object, err := v.Store.Get(ctx, key, 0, maxHeader/64); err == nil {
				if h, _, err := parseHeader(object); err == nil {
					chains[c] = h.Topic
				}
			}
		}
		return nil
	}
	var err error
	if locker, ok := v.versions(); ok {
		// What is hidden counts: a chain all of which was deleted is one, too.
		err = locker.Versions(ctx, Prefix, func(ver objstore.Version) error { return note(ver.Key) })
	} else {
		err = v.Store.List(ctx, Prefix, "", func(i objstore.Info) error { return note(i.Key) })
	}
	return chains, findings, err
}

func (v *Verifier) versions() (objstore.Locker, bool) {
	locker, ok := v.Store.(objstore.Locker)
	return locker, ok && v.Locked != ""
}

// entry is one object of a chain in a store.
type entry struct {
	key      string
	number   int64
	versions []objstore.Version // oldest first; nil where the store keeps none
}

// first is the version that was written first, nil when only markers are left.
func (e entry) first() *objstore.Version {
	for i, ver := range e.versions {
		if !ver.Marker {
			return &e.versions[i]
		}
	}
	return nil
}

func (v *Verifier) entries(ctx context.Context, c Chain) (all []entry, err error) {
	add := func(key string, ver *objstore.Version) error {
		_, number, ok := parseKey(key)
		if !ok {
			return nil // Chains names it
		}
		if len(all) == 0 || all[len(all)-1].key != key {
			all = append(all, entry{key: key, number: number})
		}
		if ver != nil {
			last := &all[len(all)-1]
			last.versions = append(last.versions, *ver)
		}
		return nil
	}
	if locker, ok := v.versions(); ok {
		err = locker.Versions(ctx, c.prefix(), func(ver objstore.Version) error { return add(ver.Key, &ver) })
	} else {
		err = v.Store.List(ctx, c.prefix(), "", func(i objstore.Info) error { return add(i.Key, nil) })
	}
	return all, err
}

// Chain checks a chain. The error says that it could not be looked at, never
// that something is wrong with it.
func (v *Verifier) Chain(ctx context.Context, c Chain) (*Report, error) {
	w := newWalker(c, v.ClusterID, v.Now)
	w.r.Store = v.Name
	entries, err := v.entries(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if v.Pace != nil {
			if err := v.Pace(ctx, 1); err != nil {
				return nil, err
			}
		}
		object, err := v.read(ctx, w, e)
		if err != nil {
			return nil, err
		}
		if object == nil {
			w.before(e.number, e.key)
			w.broken(e.number)
			continue
		}
		h, batches, ok := w.step(e.number, e.key, object)
		if !ok {
			continue
		}
		if err := v.lock(ctx, w, e, h); err != nil {
			return nil, err
		}
		if v.Each != nil {
			if err := v.Each(ctx, h, batches); err != nil {
				return nil, err
			}
		}
	}
	return w.r, nil
}

// read gets what an archiver wrote: the first version of an object, whatever was
// done to it since. It is nil when that is not to be had.
func (v *Verifier) read(ctx context.Context, w *walker, e entry) ([]byte, error) {
	gone := func(object []byte, err error) ([]byte, error) {
		if errors.Is(err, objstore.ErrNotFound) {
			w.r.find(e.key, w.next, "it cannot be read any more")
			return nil, nil
		}
		return object, err
	}
	if e.versions == nil {
		return gone(v.Store.Get(ctx, e.key, 0, -1))
	}
	locker, _ := v.versions()
	first := e.first()
	if first == nil {
		w.r.find(e.key, w.next, "nothing is left of it but the marker of a deletion")
		return nil, nil
	}
	for _, ver := range e.versions {
		if ver.ID == first.ID {
			continue
		}
		what := "was written over"
		if ver.Marker {
			what = "was deleted, and is hidden by a marker"
		}
		w.r.find(e.key, w.next, "it %s at %s; its first version (%s) is looked at here", what, ver.LastModified.UTC().Format(time.RFC3339), first.ID)
	}
	return gone(locker.GetVersion(ctx, e.key, first.ID))
}

// lock looks at whether an object is locked as it should be.
func (v *Verifier) lock(ctx context.Context, w *walker, e entry, h Header) error {
	locker, ok := v.versions()
	if !ok {
		return nil
	}
	lock, err := locker.LockOf(ctx, e.key, e.first().ID)
	switch {
	case errors.Is(err, objstore.ErrAccess):
		w.r.find(e.key, h.First, "whether it is locked cannot be told (s3:GetObjectRetention): %v", err)
		return nil
	case errors.Is(err, objstore.ErrNoLock):
		lock = objstore.Lock{} // no object of the bucket has one
	case err != nil:
		return err
	}
	switch {
	case lock.Mode == "" && h.LockedUntil.IsZero():
		w.r.find(e.key, h.First, "it is not locked: it was written when the store had no lock in the configuration")
		return nil
	case lock.Mode == "":
		w.r.find(e.key, h.First, "it is not locked, and was to be until %s", h.LockedUntil.Format(time.RFC3339))
		return nil
	case lock.Until.Before(h.LockedUntil.Add(-lockMargin)):
		w.r.find(e.key, h.First, "its lock ends at %s, and was to last until %s", lock.Until.UTC().Format(time.RFC3339), h.LockedUntil.Format(time.RFC3339))
	case lock.Mode != v.Locked:
		w.r.Notes = append(w.r.Notes, fmt.Sprintf("%s: its lock is %s, the configuration says %s", e.key, lock.Mode, v.Locked))
	case lock.Until.Before(v.Now):
		w.r.Notes = append(w.r.Notes, fmt.Sprintf("%s: its lock has ended at %s", e.key, lock.Until.UTC().Format(time.RFC3339)))
	}
	if w.r.Locked.IsZero() || lock.Until.Before(w.r.Locked) {
		w.r.Locked = lock.Until.UTC()
	}
	return nil
}

// Missing returns the expected hashes that no object of the chains has: they were
// noted when they were a chain's end, so that chain was cut, or made anew.
func Missing(reports []*Report, expected []string) []string {
	return slices.DeleteFunc(slices.Clone(expected), func(hash string) bool {
		return slices.ContainsFunc(reports, func(r *Report) bool { _, ok := r.Hashes[hash]; return ok })
	})
}

// Compare holds an object of the chain that r is about against what Kafka's log still has of
// its offsets: batch by batch, to the last byte.
func (r *Report) Compare(ctx context.Context, kafka Kafka, payloads Payloads, l Log, h Header, batches []byte) (findings []Finding, compared int, err error) {
	name := l.Chain().Key(h.Number)
	reader := &logReader{kafka: kafka, payloads: payloads, log: l}
	at := h.First
	err = each(batches, func(b wire.Batch) error {
		first, last := offsets(b, at)
		at = last + 1
		if last < l.Start || first >= l.End || r.lost(h.Number, first) {
			return nil
		}
		theirs, err := reader.batch(ctx, max(first, l.Start))
		if err != nil {
			return err
		}
		if theirs == nil {
			findings = append(findings, Finding{name, first, "Kafka's log does not hold this batch"})
			return nil
		}
		compared++
		if !slices.Equal(theirs, b) {
			findings = append(findings, Finding{name, first, fmt.Sprintf("Kafka's log holds another batch here, from offset %d, with CRC %08x; the archive has %08x", theirs.BaseOffset(), theirs.CRC(), b.CRC())})
		}
		return nil
	})
	return findings, compared, err
}

// logReader reads a log forward, batch by batch.
type logReader struct {
	kafka    Kafka
	payloads Payloads
	log      Log
	ahead    []loaded
}

type loaded struct {
	first, last int64
	load        func(context.Context) ([][]byte, error)
}

// batch returns the batch that holds an offset, nil when the log has none.
func (r *logReader) batch(ctx context.Context, offset int64) (wire.Batch, error) {
	for range 2 {
		for i, b := range r.ahead {
			if b.last < offset {
				continue
			}
			if b.first > offset {
				return nil, nil
			}
			parts, err := b.load(ctx)
			if err != nil {
				return nil, err
			}
			r.ahead = r.ahead[i:]
			return slices.Concat(parts...), nil
		}
		records, err := r.kafka.Fetch(ctx, r.log, offset, fetchBytes)
		if err != nil {
			return nil, err
		}
		r.ahead = r.ahead[:0]
		pieces, _, resolveErr := r.payloads.Resolve(ctx, tpOf(r.log), records, math.MaxInt, readahead)
		at := offset
		for _, p := range pieces {
			b, rest, ok := wire.NextBatch(records)
			if !ok {
				break
			}
			records = rest
			first, last := offsets(b, at)
			at = last + 1
			r.ahead = append(r.ahead, loaded{first, last, p.Load})
		}
		if len(r.ahead) == 0 {
			return nil, resolveErr
		}
	}
	return nil, nil
}
