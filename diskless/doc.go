// Package diskless is the tier whose payloads live in objects.
//
// A batch comes in by Offload, is appended with others to an object that all
// partitions of this replica share (writer.go, object.go), and is answered by a
// placeholder once the object is durable. A placeholder that comes back in a
// Fetch is verified and exchanged for the original bytes (reader.go, cache.go).
// When the object store cannot be written, batches stay inline within a budget
// (budget.go); beyond it they wait.
//
// The package knows Kafka's batches and an object store; it knows no sockets.
package diskless
