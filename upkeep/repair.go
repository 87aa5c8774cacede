package upkeep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
	"github.com/sluice-kafka/sluice/proxy/wire"
	"github.com/sluice-kafka/sluice/router"
)

// Repair holds every object of stores against its own checksums, and makes anew
// what can be made of other copies:
//
//   - A segment that is damaged or gone, of WAL objects and other segments. What
//     was in it is told by its own footer; or, when that is lost, by the footers of
//     the WAL objects that its manifest covers, or of other windows' segments, without
//     what other segments of the window hold. One of level 1 that is gone is no
//     damage where level 2 covers all of its window: garbage collection takes it.
//   - A damaged WAL object, of segments. One that is gone is no damage: garbage
//     collection takes what segments hold.
//   - A manifest that is garbled, or lost while its segments hold what is nowhere
//     else, of the footers of its segments.
//   - A manifest none of whose segments is there is removed when all WAL objects
//     that it covers are there and whole, or in other windows: they are compacted or
//     merged once more.
//
// Three rules keep it safe. Only bytes are written that have been held against the
// checksums of all of their batches, and the new object has every batch that the
// damaged one had. Nothing is removed but manifests that lead nowhere. And what is
// below audit/ is never written; Mend only has the store lock it, where it is not
// locked as the configuration asks.
//
// Repair is not for what lies in a broker, nor for references.

// RepairOptions say what Repair does.
type RepairOptions struct {
	DryRun         bool
	BytesPerSecond float64       // from stores; 0 is unbounded
	Note           func(Fix)     // is told of each fix as it is made; nil is nobody
	Progress       func(n int64) // is told how many bytes were read; nil is nobody

	leftOver time.Duration // how old a run without a manifest has to be; 0 is segment.MaxRun
}

// Fix is a damaged object, and what has become of it. The JSON names are stable.
type Fix struct {
	Store  string   `json:"store"`
	Key    string   `json:"key"`
	Damage string   `json:"damage"`
	Action Action   `json:"action"`
	Done   bool     `json:"done"`             // not with a dry run
	Why    string   `json:"why,omitempty"`    // it cannot be repaired
	Topics []string `json:"topics,omitempty"` // with batches in it, as far as is known
}

// Action is what is done to a damaged object. The values are stable.
type Action string

// What a repair may do.
const (
	Rewrite Action = "rewrite" // replaced by what it was
	Create  Action = "create"  // it was gone
	Remove  Action = "remove"  // a manifest that leads nowhere
	NoWay   Action = "none"    // it cannot be repaired
)

// Repair looks through all stores. Errors are of stores that do not answer: what
// was fixed before is returned with them.
func (a *Access) Repair(ctx context.Context, opt RepairOptions) (fixes []Fix, err error) {
	opt.leftOver = cmp.Or(opt.leftOver, segment.MaxRun)
	bytes := limiter(opt.BytesPerSecond, byteBurst)
	for _, name := range a.storeNames() {
		// What was made anew may be what something else can be made of: as long as
		// there is both, it is all looked at again.
		for more, round := true, 1; more; round++ {
			r := &repair{opt: opt, name: name, store: a.Stores[name].Store, bytes: bytes}
			err := r.run(ctx)
			did := func(f Fix) bool { return f.Done }
			more = err == nil && round < mostRounds && slices.ContainsFunc(r.fixes, did) && slices.ContainsFunc(r.fixes, func(f Fix) bool { return f.Action == NoWay })
			fixes = append(fixes, slices.DeleteFunc(r.fixes, func(f Fix) bool { return more && !did(f) })...)
			if err != nil {
				return fixes, fmt.Errorf("store %s: %w", name, err)
			}
		}
	}
	return fixes, nil
}

// Mend is Fsck, then Repair, then Fsck of the topics that were affected: what damage
// the report then holds cannot be repaired. A dry run ends after saying what it
// would do. Nothing is done when not all could be looked at.
func (a *Access) Mend(ctx context.Context, opt FsckOptions, how RepairOptions) (*FsckReport, error) {
	report, err := a.Fsck(ctx, opt)
	if err != nil {
		return report, err
	}
	report.DryRun = how.DryRun
	report.Fixes, err = a.Repair(ctx, how)
	if err != nil {
		report.Stopped = "the repair: " + err.Error()
		return report, errors.Join(ErrStopped, err)
	}
	if slices.ContainsFunc(report.Locks, func(l FsckLocks) bool { return l.Left() > 0 }) {
		if report.Locks, err = a.lookAtLocks(ctx, report.Sample, &how); err != nil {
			report.Stopped = "the repair: " + err.Error()
			return report, errors.Join(ErrStopped, err)
		}
		if err := unanswered(report.Locks); err != nil {
			report.Stopped = "the repair: " + err.Error()
			return report, errors.Join(ErrStopped, err)
		}
	}
	affected, err := topicsOfAll(report.Fixes, report.Damage)
	if err != nil || how.DryRun || len(affected) == 0 {
		return report, err
	}
	again, err := a.anew()
	if err != nil {
		return report, err
	}
	defer func() { _ = again.Tier.Close(ctx) }()
	opt.Patterns, opt.Orphans = affected, false
	after, err := again.Fsck(ctx, opt)
	if after == nil {
		report.Stopped = "after the repair: " + err.Error()
		return report, errors.Join(ErrStopped, err)
	}
	report.Before, report.Damage = report.Damage, after.Damage
	report.Stopped, report.Unlooked = after.Stopped, after.Unlooked
	for i := range report.Damage {
		d := &report.Damage[i]
		d.Remedy = "it cannot be repaired from what the stores hold; " + d.Remedy
	}
	return report, err
}

// anew is the same access without what is remembered of objects: a repair has
// changed them.
func (a *Access) anew() (*Access, error) { return NewAccess(a.Cluster, a.Stores) }

// topicsOfAll are the topics with batches in what was fixed, or could not be, as
// patterns.
func topicsOfAll(fixes []Fix, damage []Damage) (out []router.Pattern, err error) {
	topics := map[string]bool{}
	for _, f := range fixes {
		for _, t := range f.Topics {
			topics[t] = true
		}
	}
	for _, d := range damage {
		topics[d.Topic] = true
	}
	for _, t := range slices.Sorted(maps.Keys(topics)) {
		p, err := router.Compile(t)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// repair of one store.
type repair struct {
	opt   RepairOptions
	name  string
	store objstore.Store
	bytes *rate.Limiter
	fixes []Fix
	read  int64

	wal      map[ulid.ULID]*walState
	segments map[ulid.ULID]map[int]int64 // sizes, by run and number
	windows  []*segment.Manifest         // that can be read
	garbled  map[segment.Window]error
	bodies   map[ulid.ULID][]byte // of WAL objects, some
	held     int                  // bytes of bodies
	contents map[string]*content  // of segments, some
}

// walState is what is known of a WAL object that is there.
type walState struct {
	size int64
	bad  error
}

// content is what a segment's footer says.
type content struct {
	err     error // it cannot be read: garbled, or gone
	entries []segment.Entry
}

const (
	mostHeld     = 128 << 20 // bytes of WAL objects in memory
	mostContents = 64        // footers of segments in memory
	mostRounds   = 4         // of one store
	// readAtOnce of a segment, about.
	readAtOnce = 8 << 20
)

func (r *repair) run(ctx context.Context) error {
	r.bodies, r.contents = map[ulid.ULID][]byte{}, map[string]*content{}
	if err := r.list(ctx); err != nil {
		return err
	}
	for _, id := range slices.SortedFunc(maps.Keys(r.wal), ulid.ULID.Compare) {
		body, err := r.get(ctx, diskless.ObjectKey(id, false), 0, -1)
		if errors.Is(err, objstore.ErrNotFound) {
			delete(r.wal, id) // collected since it was listed
			continue
		}
		if err != nil {
			return err
		}
		_, r.wal[id].bad = wholeWAL(body)
		r.wal[id].size = int64(len(body))
	}
	if err := r.lostManifests(ctx); err != nil {
		return err
	}
	for _, m := range slices.Clone(r.windows) {
		if err := r.window(ctx, m); err != nil {
			return err
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(r.wal), ulid.ULID.Compare) {
		if r.wal[id].bad != nil {
			if err := r.walObject(ctx, id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *repair) list(ctx context.Context) error {
	r.wal, r.segments, r.garbled = map[ulid.ULID]*walState{}, map[ulid.ULID]map[int]int64{}, map[segment.Window]error{}
	err := r.store.List(ctx, segment.DataPrefix, "", func(i objstore.Info) error {
		if run, n, ok := segment.ParseDataKey(i.Key); ok {
			if r.segments[run] == nil {
				r.segments[run] = map[int]int64{}
			}
			r.segments[run][n] = i.Size
		}
		return nil
	})
	if err != nil {
		return err
	}
	// Windows after their segments, or a new one would seem to have none; and WAL
	// objects last, for who finds them gone looks in windows.
	var names []segment.Window
	err = segment.Windows(ctx, r.store, segment.WindowsPrefix, func(w segment.Window, _ objstore.Info) error {
		names = append(names, w)
		return nil
	})
	if err != nil {
		return err
	}
	for _, w := range names {
		m, err := segment.ReadManifest(ctx, r.store, w)
		switch {
		case err == nil:
			r.windows = append(r.windows, m)
		case errors.Is(err, segment.ErrGarbled):
			r.garbled[w] = err
		case !errors.Is(err, objstore.ErrNotFound):
			return err
		}
	}
	return r.store.List(ctx, diskless.WALPrefix, "", func(i objstore.Info) error {
		if id, audit, ok := diskless.ParseObjectKey(i.Key); ok && !audit {
			r.wal[id] = &walState{size: i.Size}
		}
		return nil
	})
}

// get reads at the pace that was asked for.
func (r *repair) get(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	b, err := r.store.Get(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	r.read += int64(len(b))
	if r.opt.Progress != nil {
		r.opt.Progress(r.read)
	}
	return b, spend(ctx, r.bytes, int64(len(b)))
}

// fix enters what was found, and does it.
func (r *repair) fix(ctx context.Context, f Fix, do func(context.Context) error) error {
	f.Store = r.name
	if f.Action != NoWay && !r.opt.DryRun {
		err := do(ctx)
		if err != nil && (ctx.Err() != nil || transient(err) && !errors.Is(err, objstore.ErrAccess)) {
			return fmt.Errorf("%s: %w", f.Key, err)
		}
		if f.Done = err == nil; err != nil {
			f.Action, f.Why = NoWay, err.Error() // it is about this object: a lock, a policy
		}
	}
	r.fixes = append(r.fixes, f)
	if r.opt.Note != nil {
		r.opt.Note(f)
	}
	return nil
}

// put writes an object anew, and holds against it what the store then has.
func (r *repair) put(ctx context.Context, action Action, key string, body []byte) error {
	write := r.store.Put
	if action == Create {
		write = r.store.PutIfAbsent
	}
	err := write(ctx, key, body)
	if err != nil && !errors.Is(err, objstore.ErrExists) { // an answer may have got lost
		return err
	}
	there, err := r.get(ctx, key, 0, -1)
	if errors.Is(err, objstore.ErrNotFound) {
		return errors.New("the store has taken it and does not give it: the marker of a deletion lies over it, which has to be removed from the bucket's versions first")
	}
	if err != nil {
		return err
	}
	if string(there) != string(body) {
		return errors.New("the store does not give back what was written")
	}
	return nil
}

// wholeWAL returns the entries of an object. They come with an error when a batch
// is not what its entry says.
func wholeWAL(body []byte) ([]diskless.Entry, error) {
	entries, err := diskless.ReadFooter(body, int64(len(body)))
	if err != nil {
		return nil, err
	}
	for i, e := range entries {
		if !diskless.Intact(body[e.Offset:e.Offset+uint64(e.Length)], e.Length, e.CRC) {
			return entries, fmt.Errorf("batch %d, of %s-%d, is not what its entry says", i, e.Topic, e.Partition)
		}
	}
	return entries, nil
}

// body reads a WAL object, or remembers it; nil when it is not there.
func (r *repair) body(ctx context.Context, id ulid.ULID) ([]byte, error) {
	if r.wal[id] == nil {
		return nil, nil
	}
	if b, ok := r.bodies[id]; ok {
		return b, nil
	}
	b, err := r.get(ctx, diskless.ObjectKey(id, false), 0, -1)
	if errors.Is(err, objstore.ErrNotFound) {
		delete(r.wal, id)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if r.held += len(b); r.held > mostHeld {
		clear(r.bodies)
		r.held = len(b)
	}
	r.bodies[id] = b
	return b, nil
}

// content reads a segment's footer. Errors are the store's; that it is garbled or
// gone is in what is returned.
func (r *repair) content(ctx context.Context, m *segment.Manifest, n int) (*content, error) {
	key := m.Key(n)
	if c := r.contents[key]; c != nil {
		return c, nil
	}
	f, err := m.ReadFooter(ctx, r.store, n)
	c := &content{err: err}
	switch {
	case err == nil:
		c.entries = slices.Collect(f.Entries())
	case !errors.Is(err, segment.ErrGarbled) && !errors.Is(err, objstore.ErrNotFound):
		return nil, err
	}
	if len(r.contents) == mostContents {
		clear(r.contents)
	}
	r.contents[key] = c
	return c, nil
}

// batch finds a batch's bytes in any place but the segment not, or returns nil:
// they are held against their checksum.
func (r *repair) batch(ctx context.Context, e segment.Entry, not string) (wire.Batch, error) {
	body, err := r.body(ctx, e.Object)
	if err != nil {
		return nil, err
	}
	if end := e.ObjectOffset + uint64(e.Length); end <= uint64(len(body)) {
		if b := wire.Batch(body[e.ObjectOffset:end]); diskless.Intact(b, e.Length, e.CRC) {
			return b, nil
		}
	}
	for _, m := range r.windows {
		if !m.Window().Spans(e.Object) || !m.Covers(e.Object) {
			continue
		}
		for _, n := range m.Find(segment.Place{Topic: e.Topic, Partition: e.Partition}) {
			if m.Key(n) == not {
				continue
			}
			c, err := r.content(ctx, m, n)
			if err != nil {
				return nil, err
			}
			i, ok := slices.BinarySearchFunc(c.entries, e, func(have, want segment.Entry) int { return have.Compare(&want) })
			if !ok || c.entries[i].Length != e.Length || c.entries[i].CRC != e.CRC {
				continue
			}
			b, err := r.get(ctx, m.Key(n), int64(c.entries[i].Position), int64(e.Length))
			if err != nil && !errors.Is(err, objstore.ErrNotFound) {
				return nil, err
			}
			if diskless.Intact(b, e.Length, e.CRC) {
				return b, nil
			}
		}
	}
	return nil, nil
}

// window looks at the segments of one.
func (r *repair) window(ctx context.Context, m *segment.Manifest) error {
	gone := 0
	var bad []int
	damage := map[int]string{}
	for n := range m.Segments {
		why, missing, err := r.segmentDamage(ctx, m, n)
		if err != nil {
			return err
		}
		if missing {
			gone++
			if r.merged(m) {
				continue
			}
		}
		if why != "" {
			bad = append(bad, n)
			damage[n] = why
		}
	}
	if len(bad) == 0 {
		return nil
	}
	if gone == len(m.Segments) {
		return r.leadsNowhere(ctx, m)
	}
	lost, why, err := r.lostEntries(ctx, m)
	if err != nil {
		return err
	}
	for _, n := range bad {
		if err := r.segment(ctx, m, n, damage[n], lost[n], why); err != nil {
			return err
		}
	}
	return nil
}

// merged reports whether a window of level 2 covers all that one of level 1 does.
func (r *repair) merged(m *segment.Manifest) bool {
	return m.Level == segment.Level1 && slices.ContainsFunc(r.windows, func(o *segment.Manifest) bool {
		return o.Level == segment.Level2 && !slices.ContainsFunc(m.Objects, func(x segment.Object) bool { return !o.Covers(x.ID) })
	})
}

// elsewhere reports whether another window covers a WAL object, that has segments.
func (r *repair) elsewhere(m *segment.Manifest, id ulid.ULID) bool {
	return slices.ContainsFunc(r.windows, func(o *segment.Manifest) bool {
		return o != m && len(r.segments[o.Run]) > 0 && o.Covers(id)
	})
}

// segmentDamage reads a segment whole; "" is none.
func (r *repair) segmentDamage(ctx context.Context, m *segment.Manifest, n int) (why string, missing bool, err error) {
	c, err := r.content(ctx, m, n)
	if err != nil {
		return "", false, err
	}
	if errors.Is(c.err, objstore.ErrNotFound) {
		return "the store has no such object", true, nil
	}
	if c.err != nil {
		return c.err.Error(), false, nil
	}
	for i := 0; i < len(c.entries); {
		first, end := c.entries[i].Position, i
		for end < len(c.entries) && (end == i || c.entries[end].Position-first < readAtOnce) {
			end++
		}
		last := c.entries[end-1]
		b, err := r.get(ctx, m.Key(n), int64(first), int64(last.Position+uint64(last.Length)-first))
		if errors.Is(err, objstore.ErrNotFound) { // collected since its footer was read
			r.contents[m.Key(n)] = &content{err: err}
			return "the store has no such object", true, nil
		}
		if err != nil {
			return "", false, err
		}
		for _, e := range c.entries[i:end] {
			from := e.Position - first
			if to := from + uint64(e.Length); to > uint64(len(b)) || !diskless.Intact(b[from:to], e.Length, e.CRC) {
				return fmt.Sprintf("a batch of %s-%d is not what its entry says", e.Topic, e.Partition), false, nil
			}
		}
		i = end
	}
	return "", false, nil
}

// lostEntries tells what was in the segments of a window whose footers are lost:
// what the WAL objects that it covers have, and its other segments do not. Without
// an answer, why says why.
func (r *repair) lostEntries(ctx context.Context, m *segment.Manifest) (lost map[int][]segment.Entry, why string, err error) {
	type at struct {
		object ulid.ULID
		offset uint64
	}
	elsewhere := map[at]bool{}
	lost = map[int][]segment.Entry{}
	for n := range m.Segments {
		c, err := r.content(ctx, m, n)
		if err != nil {
			return nil, "", err
		}
		if c.err != nil {
			lost[n] = nil
		}
		for _, e := range c.entries {
			elsewhere[at{e.Object, e.ObjectOffset}] = true
		}
	}
	if len(lost) == 0 {
		return lost, "", nil
	}
	for _, o := range m.Objects {
		entries, _, err := r.entriesElsewhere(ctx, o.ID)
		if err != nil {
			return nil, "", err
		}
		if entries == nil {
			body, err := r.body(ctx, o.ID)
			if err != nil {
				return nil, "", err
			}
			if body == nil {
				return nil, "its footer is lost, and WAL object " + diskless.ObjectKey(o.ID, false) + " is not there to say what was in it", nil
			}
			if entries, err = diskless.ReadFooter(body, int64(len(body))); err != nil {
				return nil, fmt.Sprintf("its footer is lost, and WAL object %s cannot say what was in it: %v", diskless.ObjectKey(o.ID, false), err), nil
			}
		}
		for _, e := range entries {
			if elsewhere[at{o.ID, e.Offset}] {
				continue
			}
			place, in := segment.Place{Topic: e.Topic, Partition: e.Partition}, -1
			for n := range lost {
				if m.Segments[n].First.Compare(place) <= 0 && place.Compare(m.Segments[n].Last) <= 0 {
					if in >= 0 {
						return nil, "its footer is lost, and that of a neighbour that holds the same partition", nil
					}
					in = n
				}
			}
			if in < 0 {
				continue
			}
			lost[in] = append(lost[in], segment.Entry{
				Topic: e.Topic, Partition: e.Partition, Object: o.ID, ObjectOffset: e.Offset, Length: e.Length, Records: e.Records,
				ProducerID: e.ProducerID, ProducerEpoch: e.ProducerEpoch, BaseSequence: e.BaseSequence, CRC: e.CRC,
			})
		}
	}
	for n := range lost {
		slices.SortFunc(lost[n], func(a, b segment.Entry) int { return a.Compare(&b) })
	}
	return lost, "", nil
}

// segment makes one anew.
func (r *repair) segment(ctx context.Context, m *segment.Manifest, n int, damage string, entries []segment.Entry, why string) error {
	c, err := r.content(ctx, m, n)
	if err != nil {
		return err
	}
	if c.err == nil {
		entries, why = c.entries, ""
	}
	key, info := m.Key(n), m.Segments[n]
	f := Fix{Key: key, Damage: damage, Action: NoWay, Topics: topicsOf(entries)}
	if len(f.Topics) == 0 {
		f.Topics = slices.Compact([]string{info.First.Topic, info.Last.Topic})
	}
	if f.Why = why; why != "" {
		return r.fix(ctx, f, nil)
	}
	body := make([]byte, 0, info.Size)
	for _, e := range entries {
		b, err := r.batch(ctx, e, key)
		if err != nil {
			return err
		}
		if b == nil && c.err == nil {
			if b, err = r.get(ctx, key, int64(e.Position), int64(e.Length)); err != nil && !errors.Is(err, objstore.ErrNotFound) {
				return err
			}
		}
		if !diskless.Intact(b, e.Length, e.CRC) {
			f.Why = fmt.Sprintf("a batch of %s-%d, of WAL object %s, is whole in no other object", e.Topic, e.Partition, diskless.ObjectKey(e.Object, false))
			return r.fix(ctx, f, nil)
		}
		body = append(body, b...)
	}
	if body, err = segment.AppendFooter(body, entries); err != nil || int64(len(body)) != info.Size || len(entries) != info.Batches {
		f.Why = "the WAL objects that its manifest covers do not give what its manifest says"
		return r.fix(ctx, f, nil)
	}
	f.Action = Rewrite
	if errors.Is(c.err, objstore.ErrNotFound) {
		f.Action = Create
	}
	return r.fix(ctx, f, func(ctx context.Context) error {
		delete(r.contents, key)
		return r.put(ctx, f.Action, key, body)
	})
}

func topicsOf(entries []segment.Entry) []string {
	topics := map[string]bool{}
	for _, e := range entries {
		topics[e.Topic] = true
	}
	return slices.Sorted(maps.Keys(topics))
}

// leadsNowhere removes a manifest without segments when its WAL objects are there.
func (r *repair) leadsNowhere(ctx context.Context, m *segment.Manifest) error {
	w := m.Window()
	f := Fix{Key: w.Key(), Damage: "no segment of it is there", Action: NoWay}
	topics := map[string]bool{}
	for i := range m.Segments {
		topics[m.Segments[i].First.Topic], topics[m.Segments[i].Last.Topic] = true, true
	}
	there := 0
	for _, o := range m.Objects {
		switch s := r.wal[o.ID]; {
		case (s == nil || s.bad != nil) && r.elsewhere(m, o.ID):
			there++
		case s == nil:
			f.Why = fmt.Sprintf("WAL object %s is not there either", diskless.ObjectKey(o.ID, false))
		case s.bad != nil:
			there++
			f.Why = fmt.Sprintf("WAL object %s is damaged, too", diskless.ObjectKey(o.ID, false))
		default:
			there++
			body, err := r.body(ctx, o.ID)
			if err != nil {
				return err
			}
			entries, _ := wholeWAL(body)
			for _, e := range entries {
				topics[e.Topic] = true
			}
		}
	}
	if there == 0 {
		return nil // all of it was collected, and the manifest is next
	}
	f.Topics = slices.Sorted(maps.Keys(topics))
	if f.Why == "" {
		f.Action = Remove
	}
	r.windows = slices.DeleteFunc(r.windows, func(o *segment.Manifest) bool { return o == m })
	return r.fix(ctx, f, func(ctx context.Context) error { return r.store.Delete(ctx, w.Key()) })
}

// walObject makes a damaged one anew.
func (r *repair) walObject(ctx context.Context, id ulid.ULID) error {
	key := diskless.ObjectKey(id, false)
	f := Fix{Key: key, Damage: r.wal[id].bad.Error(), Action: NoWay}
	body, err := r.body(ctx, id)
	if err != nil || body == nil {
		return err
	}
	entries, _ := wholeWAL(body)
	size := int64(len(body))
	if entries == nil {
		if entries, size, err = r.entriesElsewhere(ctx, id); err != nil {
			return err
		}
	}
	topics := map[string]bool{}
	for _, e := range entries {
		topics[e.Topic] = true
	}
	f.Topics = slices.Sorted(maps.Keys(topics))
	if entries == nil || size < int64(len(body)) {
		f.Why = "its footer is lost, and no window's segments tell of all that was in it"
		return r.fix(ctx, f, nil)
	}
	batches := make([]byte, 0, size)
	for _, e := range entries {
		b, err := r.batch(ctx, segment.Entry{Topic: e.Topic, Partition: e.Partition, Object: id, ObjectOffset: e.Offset, Length: e.Length, CRC: e.CRC}, "")
		if err != nil {
			return err
		}
		if b == nil {
			f.Why = fmt.Sprintf("a batch of %s-%d at %d is whole in no segment", e.Topic, e.Partition, e.Offset)
			return r.fix(ctx, f, nil)
		}
		batches = append(batches, b...)
	}
	made := diskless.BuildObject(batches, entries)
	if int64(len(made)) != size {
		f.Why = fmt.Sprintf("what segments hold of it makes %d bytes, and it had %d", len(made), size)
		return r.fix(ctx, f, nil)
	}
	f.Action = Rewrite
	return r.fix(ctx, f, func(ctx context.Context) error {
		delete(r.bodies, id)
		err := r.put(ctx, Rewrite, key, made)
		if err == nil {
			r.wal[id].bad = nil
		}
		return err
	})
}

// entriesElsewhere tells what was in a WAL object by a window that covers it, and
// how large it was; nil when no window has all of it.
func (r *repair) entriesElsewhere(ctx context.Context, id ulid.ULID) ([]diskless.Entry, int64, error) {
	for _, m := range r.windows {
		if !m.Window().Spans(id) || !m.Covers(id) {
			continue
		}
		var entries []diskless.Entry
		for n := range m.Segments {
			c, err := r.content(ctx, m, n)
			if err != nil {
				return nil, 0, err
			}
			for _, e := range c.entries {
				if e.Object == id {
					entries = append(entries, walEntry(e))
				}
			}
		}
		i := slices.IndexFunc(m.Objects, func(o segment.Object) bool { return o.ID == id })
		if joined(entries) && int64(len(diskless.BuildObject(nil, entries)))+payload(entries) == m.Objects[i].Size {
			return entries, m.Objects[i].Size, nil
		}
	}
	return nil, 0, nil
}

func walEntry(e segment.Entry) diskless.Entry {
	return diskless.Entry{
		Topic: e.Topic, Partition: e.Partition, Offset: e.ObjectOffset, Length: e.Length, Records: e.Records,
		ProducerID: e.ProducerID, ProducerEpoch: e.ProducerEpoch, BaseSequence: e.BaseSequence, CRC: e.CRC,
	}
}

// joined sorts entries, and reports whether they lie back to back from an
// object's beginning.
func joined(entries []diskless.Entry) bool {
	slices.SortFunc(entries, func(a, b diskless.Entry) int { return cmp.Compare(a.Offset, b.Offset) })
	at := uint64(0)
	for _, e := range entries {
		if e.Offset != at {
			return false
		}
		at += uint64(e.Length)
	}
	return len(entries) > 0
}

func payload(entries []diskless.Entry) (n int64) {
	for _, e := range entries {
		n += int64(e.Length)
	}
	return n
}

// lostManifests makes manifests anew of runs that none names, where they hold what
// is nowhere else or a garbled one says that there was one; and removes garbled
// ones when there is nothing that they can have led to.
func (r *repair) lostManifests(ctx context.Context) error {
	named := map[ulid.ULID]bool{}
	for _, m := range r.windows {
		named[m.Run] = true
	}
	var unread []string
	young := 0
	left := map[segment.Window]error{}
	maps.Copy(left, r.garbled)
	// The one with most in it first: of a window there may also be what a run has
	// left that crashed before it.
	size := func(run ulid.ULID) (n int64) {
		for _, one := range r.segments[run] {
			n += one
		}
		return n
	}
	for _, run := range slices.SortedFunc(maps.Keys(r.segments), func(a, b ulid.ULID) int { return cmp.Or(cmp.Compare(size(b), size(a)), a.Compare(b)) }) {
		if named[run] {
			continue
		}
		m, topics, why, err := r.manifestOf(ctx, run)
		if err != nil {
			return err
		}
		if why != "" {
			unread = append(unread, why)
		}
		if m == nil {
			continue
		}
		w := m.Window()
		f := Fix{Key: w.Key(), Topics: topics, Damage: "it is not there, and nothing else leads to segments of run " + run.String(), Action: Create}
		for _, level := range []segment.Level{segment.Level2, segment.Level1} {
			at := segment.Window{Level: level, First: w.First, Last: w.Last}
			if err := left[at]; err != nil {
				m.Level = level
				f.Key, f.Damage, f.Action = at.Key(), err.Error(), Rewrite
			}
		}
		if f.Action == Create && !r.needed(m) {
			continue // a compactor's that crashed
		}
		switch {
		case time.Since(run.Timestamp()) < r.opt.leftOver:
			young++
			f.Action, f.Why = NoWay, fmt.Sprintf("its compactor may be at work: try again %v after %s", r.opt.leftOver, run.Timestamp().UTC().Format(time.RFC3339))
		default:
			delete(left, segment.Window{Level: m.Level, First: w.First, Last: w.Last})
			r.windows = append(r.windows, m)
		}
		err = r.fix(ctx, f, func(ctx context.Context) error {
			body, err := m.Encode()
			if err != nil {
				return err
			}
			return r.put(ctx, f.Action, f.Key, body)
		})
		if err != nil {
			return err
		}
	}
	// What is left leads nowhere, unless to a run of which too little is known: the
	// others hold nothing that is not whole in WAL objects, or in other windows.
	for _, w := range slices.SortedFunc(maps.Keys(left), func(a, b segment.Window) int { return strings.Compare(a.Key(), b.Key()) }) {
		f := Fix{Key: w.Key(), Damage: left[w].Error(), Action: Remove}
		switch {
		case len(unread) > 0:
			f.Action, f.Why = NoWay, "it may be the manifest of segments that cannot be read: "+some(unread)
		case young > 0:
			f.Action, f.Why = NoWay, fmt.Sprintf("it may be the manifest of one of %d runs of segments that are too young to tell", young)
		}
		err := r.fix(ctx, f, func(ctx context.Context) error {
			// It was read long ago: somebody may have restored it.
			_, err := segment.ReadManifest(ctx, r.store, w)
			switch {
			case err == nil:
				return errors.New("it can be read now: somebody has restored it, run this again")
			case errors.Is(err, segment.ErrGarbled):
				return r.store.Delete(ctx, w.Key())
			case errors.Is(err, objstore.ErrNotFound):
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// needed reports whether a run holds what is in no WAL object that is whole.
func (r *repair) needed(m *segment.Manifest) bool {
	return slices.ContainsFunc(m.Objects, func(o segment.Object) bool { s := r.wal[o.ID]; return s == nil || s.bad != nil })
}

// manifestOf is what the footers of a run's segments make: of the WAL objects that
// no other window covers, those of which the run has all batches, or all that there
// are. nil is none; why says so when a footer cannot be read.
func (r *repair) manifestOf(ctx context.Context, run ulid.ULID) (m *segment.Manifest, topics []string, why string, err error) {
	m = &segment.Manifest{Level: segment.Level1, Run: run}
	of := map[ulid.ULID][]diskless.Entry{}
	seen := map[string]bool{}
	for n := range len(r.segments[run]) {
		key, size := segment.DataKey(run, n), r.segments[run][n]
		if size == 0 {
			return nil, nil, fmt.Sprintf("%s is not there, though later ones of its run are", key), nil
		}
		end, err := r.get(ctx, key, max(0, size-footerGuess), -1)
		if err == nil && segment.FooterSize(end) > int64(len(end)) && segment.FooterSize(end) <= size {
			end, err = r.get(ctx, key, size-segment.FooterSize(end), -1)
		}
		if err != nil {
			return nil, nil, "", err
		}
		f, err := segment.ParseFooter(end, size)
		if err != nil {
			return nil, nil, fmt.Sprintf("%s: %v", key, err), nil
		}
		info := segment.Info{Size: size, FooterSize: segment.FooterSize(end), Bucket: segment.Unknown, Batches: f.Batches()}
		for e := range f.Entries() {
			p := segment.Place{Topic: e.Topic, Partition: e.Partition}
			if info.First.Topic == "" {
				info.First = p
			}
			info.Last = p
			of[e.Object] = append(of[e.Object], walEntry(e))
			seen[e.Topic] = true
		}
		m.Segments = append(m.Segments, info)
	}
	held, err := r.inWindows(ctx, of)
	if err != nil {
		return nil, nil, "", err
	}
	for _, id := range slices.SortedFunc(maps.Keys(of), ulid.ULID.Compare) {
		if n, covered := held[id]; covered && n >= len(of[id]) {
			continue
		}
		whole := joined(of[id])
		size := payload(of[id]) + int64(len(diskless.BuildObject(nil, of[id])))
		body, err := r.body(ctx, id)
		if err != nil {
			return nil, nil, "", err
		}
		// Where the WAL object is whole, garbage collection must not take it for one
		// that segments hold unless they do.
		if s := r.wal[id]; s != nil && s.bad == nil {
			if whole = whole && int64(len(body)) == size; !whole {
				continue
			}
		}
		m.Objects = append(m.Objects, segment.Object{ID: id, Size: size})
	}
	if len(m.Objects) == 0 {
		return nil, nil, "", nil
	}
	return m, slices.Sorted(maps.Keys(seen)), "", nil
}

// inWindows counts what windows that cover WAL objects hold of each, the one that
// holds most: of some all segments are gone, for they were merged.
func (r *repair) inWindows(ctx context.Context, of map[ulid.ULID][]diskless.Entry) (map[ulid.ULID]int, error) {
	held := map[ulid.ULID]int{}
	for _, m := range r.windows {
		n := map[ulid.ULID]int{}
		for _, o := range m.Objects {
			if of[o.ID] != nil {
				n[o.ID] = 0
			}
		}
		for i := 0; i < len(m.Segments) && len(n) > 0; i++ {
			c, err := r.content(ctx, m, i)
			if err != nil {
				return nil, err
			}
			for _, e := range c.entries {
				if _, ok := n[e.Object]; ok {
					n[e.Object]++
				}
			}
		}
		for id, n := range n {
			held[id] = max(held[id], n)
		}
	}
	return held, nil
}

// some names the first of many.
func some(all []string) string {
	if len(all) > objectsListed {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:objectsListed], "; "), len(all)-objectsListed)
	}
	return strings.Join(all, "; ")
}
