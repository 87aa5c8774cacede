// Package wire reads and patches Kafka's bytes: frames, request headers and
// record batches. It is a leaf: no sockets, no policy, no allocation per
// record.
package wire
