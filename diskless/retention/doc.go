// Package retention makes retention.bytes mean original bytes. A broker measures
// the placeholders in a log, so it keeps a hundred times more than was asked for.
//
// # How
//
// A Worker reads the logs themselves, once: placeholders say how long their
// originals are, so that is a hundredth of the payload. What the store holds says
// less: batches that were never appended, or twice, are there as well. Of each log
// a ledger remembers how many original bytes there were before some offsets, and
// how many in all, up to where it has read. When behind one of those offsets are
// as many as retention.bytes, the log shall begin there: DeleteRecords.
//
// # What makes it certain
//
//   - Only what a leader has below its high watermark is counted, each batch once.
//   - All of a ledger is of one history: the leader is held to the epoch in which
//     it was first asked, and to the topic's id. When they have changed, the ledger
//     goes on only if the new leader's log has the same batches (KIP-101), or else
//     begins anew.
//   - A placeholder that does not verify counts for what it takes in the log; one
//     that cannot be verified now ends the look at its log.
//   - Right before records are deleted, the leader has answered in that epoch, and
//     the topic's class and configuration are read again; the leader has to agree
//     about the limit, for it is who would delete if it knew the sizes.
//
// Counting too little keeps more than was asked for, which is how every doubt ends.
package retention
