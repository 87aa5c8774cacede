// Package segment is the format of compacted payloads: segments, which hold the
// batches of many WAL objects sorted by partition, and the manifests of windows,
// which say what segments stand for which WAL objects. Both are immutable.
//
// # Keys
//
// Below the store's prefix:
//
//	segments/data/<run>-<number>               a segment
//	segments/windows/1/<hour>/<first>-<last>   a window's manifest
//	segments/windows/2/<day>/<first>-<last>    the same, of level 2
//	segments/claims/…                          who works on what; means nothing for reading
//
// A run is one go of a compactor over one window: a ULID of its own, so no two
// runs ever write one key. first and last are the ULIDs of the first and the
// last WAL object that the window covers; both lie in the hour (20060102T15), or
// day (20060102), of UTC that the key names, by the time in the ULID.
//
// A segment counts only when a manifest names its run; manifests are written
// last, by conditional PUT. What lies between first and last need not be
// covered: the manifest lists what is. Windows may overlap, and a WAL object may
// be covered by more than one; each is good.
//
// # A segment
//
//	batch …            the batches' own bytes, as they were in their WAL objects
//	footer             see below
//	footer length      uint32, big-endian
//	footer CRC-32C     uint32
//	format version     uint8, 1
//	magic              7 bytes, "sluiceS"
//
// The footer, integers as uvarint unless said otherwise:
//
//	number of WAL objects, their ULIDs (16 bytes each), increasing
//	for each partition, increasing by topic, then partition:
//	  topic length, topic (UTF-8), partition, number of batches
//	  for each batch, increasing by WAL object, then offset in it:
//	    WAL object, as the distance from the one before in the list (the first: from 0),
//	    offset in the WAL object (after a batch of the same one: from that one's end),
//	    length, record count, producer id + 1, producer epoch + 1,
//	    base sequence + 1, batch CRC (uint32, big-endian)
//
// Batches lie in the segment in the order of the footer, without gaps. All
// topics of a segment are of one Bucket.
//
// # A manifest
//
//	run                16 bytes
//	number of WAL objects, for each, increasing: ULID (16 bytes), size
//	number of segments, for each, by number:
//	  size, size of footer and trailer, bucket (uint8), number of batches,
//	  first topic length, topic, partition, last topic length, topic, partition
//	length of all that, its CRC-32C, version and magic "sluiceM", as above
//
// It has no more than 64 MiB.
package segment
