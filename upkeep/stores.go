package upkeep

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/diskless"
	auditlog "github.com/sluice-kafka/sluice/diskless/audit"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
)

// FsckStore is what a store holds, seen from the logs. Nothing in it is damage:
// no reader misses it. The JSON names are stable.
type FsckStore struct {
	Store       string         `json:"store"`
	Where       string         `json:"where"`
	Objects     int64          `json:"objects"` // of payloads
	Bytes       int64          `json:"bytes"`
	Audit       int64          `json:"audit_objects"` // among them
	AuditBytes  int64          `json:"audit_bytes"`
	Archive     int64          `json:"archive_objects"` // of audit topics' logs: sluice audit verify
	Referenced  int64          `json:"referenced_objects"`
	Young       int64          `json:"young_objects"` // their placeholders may yet be written
	Orphans     int64          `json:"orphans"`       // nothing refers to them
	OrphanBytes int64          `json:"orphan_bytes"`
	OrphanList  []OrphanObject `json:"orphan_list,omitempty"` // the first 1000
	Garbled     int64          `json:"garbled_orphans"`       // of the listed ones

	Segments        int64    `json:"segments"`
	SegmentBytes    int64    `json:"segment_bytes"`
	Windows         int64    `json:"windows"`               // whose manifests say which segments count
	UnnamedSegments int64    `json:"unnamed_segments"`      // in no manifest: a compactor's that is at work, or has crashed
	GoneSegments    int64    `json:"gone_segments"`         // named, and not there: collected when all that they held was dead, or in larger ones; what is not dead and missed is a problem of its log
	BadWindows      []string `json:"bad_windows,omitempty"` // garbled, or a segment of theirs has another size: what they cover is read elsewhere, if at all

	Unknown     int64    `json:"unknown_keys"` // that sluice has not written
	UnknownList []string `json:"unknown_list,omitempty"`
}

// OrphanObject is one that no placeholder refers to.
type OrphanObject struct {
	Key      string    `json:"key"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	Batches  int       `json:"batches"`
	Topics   []string  `json:"topics,omitempty"`
	Garbled  string    `json:"garbled,omitempty"`
}

// ownPrefix is what sluice keeps for itself.
const ownPrefix = "sluice/"

// lookAtStores holds what stores hold against what logs refer to.
func (c *fsck) lookAtStores(ctx context.Context) error {
	for _, name := range c.storeNames() {
		one, err := c.lookAtStore(ctx, name, c.Stores[name].Store)
		if err != nil {
			return fmt.Errorf("store %s: %w", name, err)
		}
		c.report.Stores = append(c.report.Stores, one)
	}
	return nil
}

func (c *fsck) lookAtStore(ctx context.Context, name string, store objstore.Store) (FsckStore, error) {
	s := FsckStore{Store: name, Where: store.String()}
	segments := map[string]int64{}
	var windows []segment.Window
	err := store.List(ctx, "", "", func(i objstore.Info) error {
		if strings.HasPrefix(i.Key, ownPrefix) || strings.HasPrefix(i.Key, segment.ClaimsPrefix) {
			return nil
		}
		if run, n, ok := segment.ParseDataKey(i.Key); ok {
			s.Segments++
			s.SegmentBytes += i.Size
			segments[segment.DataKey(run, n)] = i.Size
			return nil
		}
		if w, ok := segment.ParseWindowKey(i.Key); ok {
			windows = append(windows, w)
			return nil
		}
		if strings.HasPrefix(i.Key, auditlog.Prefix) {
			s.Archive++ // `sluice audit verify` proves it
			return nil
		}
		id, audit, ok := diskless.ParseObjectKey(i.Key)
		if !ok {
			s.Unknown++
			if len(s.UnknownList) < listedMost {
				s.UnknownList = append(s.UnknownList, i.Key)
			}
			return nil
		}
		s.Objects++
		s.Bytes += i.Size
		if audit {
			s.Audit++
			s.AuditBytes += i.Size
		}
		written := i.LastModified
		if named := id.Timestamp(); named.After(written) {
			written = named
		}
		switch _, referenced := c.refs[objectID{name, audit, id}]; {
		case referenced:
			s.Referenced++
		case written.Add(settledAge).After(c.began):
			s.Young++
		default:
			s.Orphans++
			s.OrphanBytes += i.Size
			if len(s.OrphanList) < listedMost {
				s.OrphanList = append(s.OrphanList, OrphanObject{Key: i.Key, Size: i.Size, Modified: i.LastModified.UTC()})
			}
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	if err := s.lookAtSegments(ctx, store, segments, windows); err != nil {
		return s, err
	}
	var reading errgroup.Group
	reading.SetLimit(objectsAtATime)
	for i := range s.OrphanList {
		o := &s.OrphanList[i]
		reading.Go(func() error { return c.describe(ctx, store, o) })
	}
	err = reading.Wait()
	for _, o := range s.OrphanList {
		if o.Garbled != "" {
			s.Garbled++
		}
	}
	return s, err
}

// lookAtSegments finds the segments that no manifest names, and the manifests
// that cannot be read or name segments that are not like that.
func (s *FsckStore) lookAtSegments(ctx context.Context, store objstore.Store, segments map[string]int64, windows []segment.Window) error {
	named := map[string]bool{}
	for _, w := range windows {
		m, err := segment.ReadManifest(ctx, store, w)
		if errors.Is(err, objstore.ErrNotFound) {
			continue // taken away since it was listed
		}
		if errors.Is(err, segment.ErrGarbled) {
			s.BadWindows = append(s.BadWindows, err.Error())
			continue
		}
		if err != nil {
			return err
		}
		s.Windows++
		for n, one := range m.Segments {
			key := m.Key(n)
			named[key] = true
			if size, ok := segments[key]; !ok {
				s.GoneSegments++
			} else if size != one.Size {
				s.BadWindows = append(s.BadWindows, fmt.Sprintf("%s: %s has %d bytes, not %d", w.Key(), key, size, one.Size))
			}
		}
	}
	for key := range segments {
		if !named[key] {
			s.UnnamedSegments++
		}
	}
	return nil
}

// describe reads what an object says of itself.
func (c *fsck) describe(ctx context.Context, store objstore.Store, o *OrphanObject) error {
	if err := c.fetches.Wait(ctx); err != nil {
		return err
	}
	from := max(0, o.Size-footerGuess)
	end, err := store.Get(ctx, o.Key, from, -1)
	if err != nil {
		return fmt.Errorf("%s: %w", o.Key, err)
	}
	entries, err := diskless.ReadFooter(end, o.Size)
	if err != nil && from > 0 {
		if end, err = store.Get(ctx, o.Key, 0, -1); err != nil {
			return fmt.Errorf("%s: %w", o.Key, err)
		}
		entries, err = diskless.ReadFooter(end, o.Size)
	}
	if err != nil {
		o.Garbled = err.Error()
		return nil
	}
	o.Batches = len(entries)
	topics := map[string]bool{}
	for _, e := range entries {
		topics[e.Topic] = true
	}
	o.Topics = slices.Sorted(maps.Keys(topics))
	return nil
}
