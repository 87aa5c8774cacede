package audit

import (
	"context"
	"crypto/rand"
	"hash/fnv"
	"strings"
	"time"

	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// membersPrefix is where archivers say that they are there. It is not locked.
const membersPrefix = "sluice/archivers/"

// Member is one of the archivers that share a store's chains. They only share the
// work: two that take the same chain waste some, and fork nothing.
type Member struct {
	id   string
	live []string // as of the last Join, with id
}

// NewMember returns an archiver's membership, which nobody knows of yet.
func NewMember() *Member {
	id := rand.Text()
	return &Member{id: id, live: []string{id}}
}

// Join says that the archiver is there, and finds out who else was within a time.
// Clocks do not matter: all times are the store's.
func (m *Member) Join(ctx context.Context, store objstore.Store, within time.Duration) error {
	if err := store.Put(ctx, membersPrefix+m.id, []byte(m.id)); err != nil {
		return err
	}
	seen := map[string]time.Time{}
	if err := store.List(ctx, membersPrefix, "", func(i objstore.Info) error {
		seen[strings.TrimPrefix(i.Key, membersPrefix)] = i.LastModified
		return nil
	}); err != nil {
		return err
	}
	now := seen[m.id]
	m.live = append(m.live[:0], m.id)
	for id, at := range seen {
		switch age := now.Sub(at); {
		case id == m.id:
		case age <= within:
			m.live = append(m.live, id)
		case age > 10*within:
			_ = store.Delete(ctx, membersPrefix+id) // the next to join tries again
		}
	}
	return nil
}

// Leave takes the archiver off the list.
func (m *Member) Leave(ctx context.Context, store objstore.Store) error {
	return store.Delete(ctx, membersPrefix+m.id)
}

// Mine reports whether a chain is this archiver's: the member has it whose hash
// with it is largest, so that one that comes or goes moves only its own.
func (m *Member) Mine(c Chain) bool {
	weight := func(id string) uint64 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(id + "/" + c.String()))
		// FNV's high bits hardly differ for names that end alike.
		v := h.Sum64()
		v ^= v >> 33
		v *= 0xff51afd7ed558ccd
		return v ^ v>>33
	}
	own := weight(m.id)
	for _, id := range m.live {
		if w := weight(id); w > own || w == own && id > m.id {
			return false
		}
	}
	return true
}
