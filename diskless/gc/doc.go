// Package gc decides which objects of a store nothing refers to any more, and
// deletes them. It never reads a log: it remembers where logs ended, and waits
// until they begin there.
//
// # The rule
//
// A placeholder is forwarded while its object is younger than
// diskless.Limits.MaxPlaceholderAge, and is in the log soon after, or never;
// Margin is more than all of that together. So once a log's end offset was L at
// a time T, no placeholder of an object older than T - Margin will ever be at L
// or beyond. When the log later begins at L or beyond, it holds none. The pair
// (T, L) is a checkpoint. For each partition a State keeps some, and the newest
// that the log's start has reached says up to which time objects are settled.
//
// A name stands for one topic at a time. When another topic bears the name, or
// none does and we would know if one did, the one before is gone for ever, and so
// are its logs.
//
// What makes each step certain is said where it is taken: [Topic.observe],
// [Partition.observe], [Partition.settled]. DESIGN.md has the whole argument.
package gc
