package audit

import (
	"testing"
	"time"

	"github.com/sluice-kafka/sluice/diskless/objstore"
)

func TestMembersDivideChains(t *testing.T) {
	store := objstore.NewMemory()
	members := []*Member{NewMember(), NewMember(), NewMember()}
	join := func() {
		t.Helper()
		for range 2 { // each has to know of those that came after it
			for _, m := range members {
				if err := m.Join(t.Context(), store, time.Hour); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	owners := func() (owner map[Chain]*Member, each map[*Member]int) {
		owner, each = map[Chain]*Member{}, map[*Member]int{}
		for p := range int32(300) {
			c := Chain{topicID, p}
			for _, m := range members {
				if m.Mine(c) {
					if owner[c] != nil {
						t.Fatalf("%v has two owners", c)
					}
					owner[c] = m
					each[m]++
				}
			}
			if owner[c] == nil {
				t.Fatalf("%v has no owner", c)
			}
		}
		return owner, each
	}
	join()
	before, each := owners()
	for _, n := range each {
		if n < 60 || n > 140 {
			t.Errorf("300 chains are divided %v", each)
			break
		}
	}
	gone := members[2]
	if err := gone.Leave(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	members = members[:2]
	join()
	after, _ := owners()
	for c, m := range before {
		if m != gone && after[c] != m {
			t.Errorf("%v moved although its archiver stayed", c)
		}
	}
	// Who has not been seen for long does not count, and is cleared away later.
	time.Sleep(20 * time.Millisecond)
	if err := members[0].Join(t.Context(), store, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	members = members[:1]
	owners()
	left := 0
	if err := store.List(t.Context(), membersPrefix, "", func(objstore.Info) error { left++; return nil }); err != nil || left != 1 {
		t.Errorf("%d members are listed, %v", left, err)
	}
}
