package segment

import (
	"math"
	"slices"
	"sort"

	"github.com/oklog/ulid/v2"
)

// Index finds batches in a segment. It holds what a footer says in about 24
// bytes a batch.
type Index struct {
	objects []ulid.ULID
	runs    []run
	batches []slot
	chunks  []uint32 // where each begins; and where the last ends
}

// run is the batches of one partition.
type run struct {
	Place
	first, end int // of batches
}

type slot struct {
	object   uint32
	length   uint32
	crc      uint32
	position uint32
	offset   uint64
}

// Index prepares a footer for being searched. Chunks is the segment cut up for
// reading: no batch lies in two chunks, no chunk but one of a single batch is
// larger than maxChunk, and a partition has chunks of its own as soon as it
// fills minChunk; smaller ones share.
func (f *Footer) Index(minChunk, maxChunk int64) *Index {
	x := &Index{objects: f.objects, batches: make([]slot, 0, f.batches), chunks: []uint32{0}}
	_ = f.walk(func(e *Entry, object int) bool { // it was walked before
		if n := len(x.runs); n == 0 || x.runs[n-1].Topic != e.Topic || x.runs[n-1].Partition != e.Partition {
			x.runs = append(x.runs, run{Place{e.Topic, e.Partition}, len(x.batches), len(x.batches)})
		}
		x.batches = append(x.batches, slot{uint32(object), e.Length, e.CRC, uint32(e.Position), e.ObjectOffset})
		x.runs[len(x.runs)-1].end++
		return true
	})
	cut := func(at int64) {
		if at > int64(x.chunks[len(x.chunks)-1]) {
			x.chunks = append(x.chunks, uint32(at))
		}
	}
	for _, r := range x.runs {
		from, to := x.ends(r)
		open := from - int64(x.chunks[len(x.chunks)-1])
		if size := to - from; size >= minChunk || open >= minChunk || open+size > maxChunk {
			cut(from)
			open = 0
		}
		// Pieces of about one size, not large ones and a small rest.
		pieces := (to - from + maxChunk - 1) / maxChunk
		for _, b := range x.batches[r.first:r.end] {
			if open > 0 && (open+int64(b.length) > maxChunk || pieces > 1 && open >= (to-from)/pieces) {
				cut(int64(b.position))
				open = 0
			}
			open += int64(b.length)
		}
	}
	cut(f.Payload())
	return x
}

func (x *Index) ends(r run) (from, to int64) {
	last := x.batches[r.end-1]
	return int64(x.batches[r.first].position), int64(last.position) + int64(last.length)
}

// Bytes is about what the index takes in memory.
func (x *Index) Bytes() int64 {
	n := int64(len(x.objects)*16 + len(x.batches)*24 + len(x.chunks)*4)
	for _, r := range x.runs {
		n += int64(len(r.Topic)) + 48
	}
	return n + 128
}

// Find returns where in the segment the batch is that was at offset of a WAL
// object, if it is of that partition, length and CRC.
func (x *Index) Find(p Place, object ulid.ULID, offset uint64, length, crc uint32) (position int64, ok bool) {
	r, ok := x.run(p)
	if !ok {
		return 0, false
	}
	o, ok := slices.BinarySearchFunc(x.objects, object, ulid.ULID.Compare)
	if !ok {
		return 0, false
	}
	batches := x.batches[r.first:r.end]
	i := sort.Search(len(batches), func(i int) bool {
		b := &batches[i]
		return int(b.object) > o || int(b.object) == o && b.offset >= offset
	})
	if i == len(batches) {
		return 0, false
	}
	b := &batches[i]
	return int64(b.position), int(b.object) == o && b.offset == offset && b.length == length && b.crc == crc
}

func (x *Index) run(p Place) (run, bool) {
	i, ok := slices.BinarySearchFunc(x.runs, p, func(r run, p Place) int { return r.Compare(p) })
	if !ok {
		return run{}, false
	}
	return x.runs[i], true
}

// Range returns where the batches of a partition begin and end in the segment.
func (x *Index) Range(p Place) (from, to int64, ok bool) {
	r, ok := x.run(p)
	if !ok {
		return 0, 0, false
	}
	from, to = x.ends(r)
	return from, to, true
}

// Chunk returns the chunk that holds the batch at a position; or of one that is
// larger than about limit, the piece that does. No batch lies in two pieces.
func (x *Index) Chunk(position, limit int64) (from, to int64) {
	i := sort.Search(len(x.chunks), func(i int) bool { return int64(x.chunks[i]) > position })
	if i == 0 || i == len(x.chunks) || position > math.MaxUint32 {
		return position, position
	}
	from, to = int64(x.chunks[i-1]), int64(x.chunks[i])
	pieces := (to - from + limit/2) / limit
	if pieces < 2 {
		return from, to
	}
	// A batch is of the piece in which it begins.
	size := (to - from + pieces - 1) / pieces
	n := (x.beginning(position+1, -1) - from) / size
	return x.beginning(from+n*size, 0), min(x.beginning(from+(n+1)*size, 0), to)
}

// beginning returns where the first batch at or behind a position begins, or
// the one so many further on; the end, if there is none.
func (x *Index) beginning(position int64, further int) int64 {
	i := further + sort.Search(len(x.batches), func(i int) bool { return int64(x.batches[i].position) >= position })
	if i == len(x.batches) {
		return int64(x.chunks[len(x.chunks)-1])
	}
	return int64(x.batches[i].position)
}
