package diskless

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/sluice-kafka/sluice/tiers"
)

// gatherGap is how much that nobody asked for is read along, to save a GET.
const gatherGap = 32 << 10

// Gather orders the pieces of many partitions for who reads all of them once: as
// groups of pieces that lie together in an object. Of a segment a group is read
// with one GET, of no more than half of Limits.ChunkBytes unless a batch is larger;
// groups of a WAL object stand one behind the other. Who loads a few groups at a
// time, each to its end, finds in memory what one GET has brought. Pieces that cannot
// be found in a segment now, or are no placeholders, are loaded as ever.
func (t *Tier) Gather(ctx context.Context, pieces []tiers.Piece) (groups [][]tiers.Piece) {
	var stored []*storedPiece
	var others []tiers.Piece
	for _, p := range pieces {
		if s, ok := p.(*storedPiece); ok {
			stored = append(stored, s)
		} else {
			others = append(others, p)
		}
	}
	// As segments are sorted, so that footers are needed one after the other.
	slices.SortStableFunc(stored, func(a, b *storedPiece) int {
		return cmp.Or(strings.Compare(a.tp.Topic, b.tp.Topic), cmp.Compare(a.tp.Partition, b.tp.Partition), a.ref.Object.Compare(b.ref.Object), cmp.Compare(a.ref.Offset, b.ref.Offset))
	})
	at := make(map[*storedPiece]place, len(stored))
	for _, p := range stored {
		at[p] = t.walPlace(p.writer, p.ref)
		if p.at = (place{}); p.old() {
			if found, ok, _ := t.locate(ctx, p.writer, p.tp, p.ref, seldom, nil); ok {
				at[p], p.at = found, found
			}
		}
	}
	object := func(p *storedPiece) chunkKey {
		k := at[p].chunks[0].chunkKey
		k.from, k.length = 0, 0
		return k
	}
	slices.SortStableFunc(stored, func(a, b *storedPiece) int {
		x, y := object(a), object(b)
		return cmp.Or(strings.Compare(x.store, y.store), cmp.Compare(x.kind, y.kind), x.id.Compare(y.id), cmp.Compare(x.number, y.number), cmp.Compare(at[a].offset, at[b].offset))
	})
	end := func(p *storedPiece) int64 { return int64(at[p].offset) + int64(p.ref.Length) }
	for i := 0; i < len(stored); {
		from, to, n := int64(at[stored[i]].offset), end(stored[i]), i+1
		for n < len(stored) && object(stored[n]) == object(stored[i]) && int64(at[stored[n]].offset)-to <= gatherGap && max(to, end(stored[n]))-from <= t.limits.ChunkBytes/2 {
			to, n = max(to, end(stored[n])), n+1
		}
		group := make([]tiers.Piece, 0, n-i)
		for _, p := range stored[i:n] {
			if p.at.in != nil {
				key := object(p)
				key.from, key.length = from, to-from
				p.at.chunks = []chunk{{key}}
			}
			group = append(group, p)
		}
		groups, i = append(groups, group), n
	}
	for _, p := range others {
		groups = append(groups, []tiers.Piece{p})
	}
	return groups
}
