// Package audit keeps an archive of the logs of audit classes' topics in which
// nothing can be altered, cut or reordered unseen, proves that, and exports from
// it.
//
// Each partition has a chain of objects in the store of its class:
//
//	audit/log/<topic id>/<partition>/<number>
//
// Numbers begin at 0, have twelve digits and leave none out. An object is written
// with a conditional put, so that two archivers cannot fork a chain, and under the
// store's lock. It holds
//
//	"sluice audit 1\n"
//	a Header, as JSON in one line
//	batches …           whole, as a consumer gets them, in order of offset
//
// and its header names the SHA-256 of the object before it, as a whole: a chain
// can be checked with sha256sum. Control batches are in it too, so what was
// aborted can be told. What the log no longer held when it was the archiver's turn
// is a Gap in the header of the next object, and what the log has lost after it
// was archived (an unclean election) is a Rewind. So the chain always says what it
// does not hold.
package audit
