package history

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// run is a faultless run of one partition, to be spoilt: ten records, the last
// of which has no known fate, and a log that holds all of them.
func run() (*History, []*kgo.Record) {
	h := New()
	var log []*kgo.Record
	for i := range 10 {
		r := h.Next("t", 0, 100)
		r.Offset = int64(i)
		err := error(nil)
		if i == 9 {
			err = errors.New("the connection broke")
		}
		h.Acked(r, err)
		log = append(log, r)
	}
	return h, log
}

func with(r *kgo.Record, change func(*kgo.Record)) *kgo.Record {
	c := *r
	change(&c)
	return &c
}

func TestWhatIsPlantedIsFound(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func([]*kgo.Record) []*kgo.Record
		want  []Kind
	}{
		{"nothing", func(l []*kgo.Record) []*kgo.Record { return l }, nil},
		{"a record of unknown fate is not there", func(l []*kgo.Record) []*kgo.Record { return l[:9] }, nil},
		{"the last acknowledged record is not there", func(l []*kgo.Record) []*kgo.Record { return l[:8] }, []Kind{Lost}},
		{"the reader got nothing", func([]*kgo.Record) []*kgo.Record { return nil }, slices.Repeat([]Kind{Lost}, 9)},
		{"a record in the middle is not there", func(l []*kgo.Record) []*kgo.Record { return slices.Delete(l, 4, 5) }, []Kind{Lost}},
		{"a record is in the log twice", func(l []*kgo.Record) []*kgo.Record {
			return append(l, with(l[3], func(r *kgo.Record) { r.Offset = 10 }))
		}, []Kind{Duplicated}},
		{"a record of unknown fate is in the log twice", func(l []*kgo.Record) []*kgo.Record {
			return append(l, with(l[9], func(r *kgo.Record) { r.Offset = 10 }))
		}, []Kind{Duplicated}},
		{"an offset is read twice", func(l []*kgo.Record) []*kgo.Record { return slices.Insert(l, 5, l[4]) }, []Kind{Duplicated}},
		{"two records have changed places in the log", func(l []*kgo.Record) []*kgo.Record {
			l[4], l[5] = with(l[5], func(r *kgo.Record) { r.Offset = 4 }), with(l[4], func(r *kgo.Record) { r.Offset = 5 })
			return l
		}, []Kind{Misplaced, Reordered, Misplaced}},
		{"a reader gets offsets in the wrong order", func(l []*kgo.Record) []*kgo.Record {
			l[4], l[5] = l[5], l[4]
			return l
		}, []Kind{Reordered, Reordered}},
		{"a record is not where its acknowledgement says", func(l []*kgo.Record) []*kgo.Record {
			l[8] = with(l[8], func(r *kgo.Record) { r.Offset = 80 })
			return l[:9]
		}, []Kind{Misplaced}},
		{"a value is empty", func(l []*kgo.Record) []*kgo.Record {
			l[9] = with(l[9], func(r *kgo.Record) { r.Value = []byte{} })
			return l
		}, []Kind{Foreign}},
		{"a record has another's bytes", func(l []*kgo.Record) []*kgo.Record {
			l[2] = with(l[2], func(r *kgo.Record) { r.Value = l[3].Value })
			return l
		}, []Kind{Foreign, Lost}},
		{"one byte has changed", func(l []*kgo.Record) []*kgo.Record {
			l[2] = with(l[2], func(r *kgo.Record) { r.Value = bytes.Clone(r.Value); r.Value[99]++ })
			return l
		}, []Kind{Foreign, Lost}},
		{"a record that nobody sent", func(l []*kgo.Record) []*kgo.Record {
			return append(l, &kgo.Record{Topic: "t", Offset: 10, Value: []byte("x")})
		}, []Kind{Foreign}},
		{"a record of a partition that nobody wrote to", func(l []*kgo.Record) []*kgo.Record {
			return append(l, with(l[0], func(r *kgo.Record) { r.Partition = 1 }))
		}, []Kind{Foreign}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, log := run()
			h.Read("r", c.spoil(log)...)
			var got []Kind
			for _, v := range h.Check("r") {
				t.Log(v)
				got = append(got, v.Kind)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func TestNothingIsLostBeforeTheEnd(t *testing.T) {
	h, log := run()
	h.Read("r", log[:3]...)
	if v := h.CheckSoFar("r"); v != nil {
		t.Error(v)
	}
	h.Read("r", log[2])
	if v := h.CheckSoFar("r"); len(v) != 1 || v[0].Kind != Duplicated {
		t.Error(v)
	}
}

func TestReadersAreJudgedApart(t *testing.T) {
	h, log := run()
	h.Read("a", log...)
	h.Read("b", log[1:]...)
	if v := h.Check("a"); v != nil {
		t.Error(v)
	}
	if v := h.Check("b"); len(v) != 1 || v[0].Kind != Lost || v[0].Offset != 0 {
		t.Error(v)
	}
}
