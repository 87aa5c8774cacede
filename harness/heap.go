package harness

import "runtime"

// Heap is how many bytes are in use when all is collected that can be: what is
// in a sync.Pool goes with the second collection, what finalizers held with the third.
func Heap() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
