package upkeep

import (
	"testing"

	"github.com/oklog/ulid/v2"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
)

// TestSegmentsThatWereCollected are no fault of their window's: each dies by
// itself.
func TestSegmentsThatWereCollected(t *testing.T) {
	store := objstore.NewMemory()
	one := segment.Info{Size: 100, FooterSize: 50, Batches: 1, First: segment.Place{Topic: "a"}, Last: segment.Place{Topic: "a"}}
	m := &segment.Manifest{Level: segment.Level1, Run: ulid.Make(), Objects: []segment.Object{{ID: ulid.Make(), Size: 150}}, Segments: []segment.Info{one, one, one}}
	body, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), m.Window().Key(), body); err != nil {
		t.Fatal(err)
	}
	var s FsckStore
	if err := s.lookAtSegments(t.Context(), store, map[string]int64{m.Key(1): 100, m.Key(2): 99}, []segment.Window{m.Window()}); err != nil {
		t.Fatal(err)
	}
	if s.GoneSegments != 1 || len(s.BadWindows) != 1 || s.UnnamedSegments != 0 || s.Windows != 1 {
		t.Errorf("%+v", s)
	}
}
