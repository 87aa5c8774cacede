// Package diskcache keeps chunks of objects on a local disk, below the cache in
// memory. It is never needed: whatever is not there, or not as it was written, is
// read from the object store.
//
// A chunk is a file. It begins with a checksum over the rest and with the chunk's
// whole key, so that a file that was cut, damaged or put in another's place is
// noticed when it is read, is removed, and counts as a miss. Files are written
// aside and renamed, by one goroutine, behind a queue that drops what it has no
// room for. Nothing is synced: what a crash of the machine tears is noticed too.
//
// The folder is this process's alone, by a lock on the folder itself: a second
// process is refused. It may be emptied or deleted at any time. After a restart
// the files are found by one listing, in the background; nothing is read or kept
// before it has ended.
//
// A disk that fails, is full or gives no answer in time is left alone for a
// minute, and then opened as at the start. Readers wait for it for a moment only.
package diskcache
