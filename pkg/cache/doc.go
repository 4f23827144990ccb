// Package cache owns the bytes of files on the local disk: which ranges are dirty, which are clean copies of the
// remote object, and which are missing. It knows neither S3 nor FUSE: fetch fills it, writeback empties it, and both
// call the cache, never the reverse.
//
// # A byte
//
// A File has a size, a base length (how much of the remote object still shows through), two sets of byte ranges, and
// spills: ranges that a remote object of its own holds, because there is no room for all that is dirty.
// A byte below the size is
//
//	dirty    in the dirty set: the local bytes are the truth
//	clean    in the clean set: the local bytes equal the remote object's, and may be evicted
//	missing  in neither, and below the base length or spilled: it must be fetched
//	a hole   in neither, and nothing of these: zero, whatever the data file holds there
//
// Dirty ranges, spills, size and base length are in the journal. The clean set is memory: after a restart clean bytes are missing.
//
// # On the disk
//
//	data/XX/ID     sparse, each byte at its own offset; ID in hex, XX its last two digits
//	snap/ID        bytes that a snapshot needs and the file has overwritten; thrown away at the start
//	quarantine/ID  data files of changes that a power cut made unusable, for a human
//
// # What is guaranteed
//
//   - A change that returned survives a kill of the process. Of one that did not return any part of its range may have
//     changed, and nothing else.
//   - A change that returned before a call of Sync which returned nil survives a power cut. After a power cut a file is
//     as the last such Sync saw it, except that ranges it saw dirty may hold newer bytes and that it may have been cut
//     shorter since. If there was no such Sync since the file was last clean, its changes are lost as a whole (see
//     Recovery.Lost) and the remote object is what remains.
//   - No range is dirty whose bytes nobody wrote.
//   - A Snapshot never shows a byte that was written after it was taken.
//   - What a Snapshot reads is what was stored, as far as it has checksums: all that was fetched, and all that was written
//     in order from the start of a block of 32 KiB on. So is what a File reads; of a block that it reads pieces of, once a
//     minute. The checksums are memory: what was dirty at a restart has none.
//
// # How
//
// A write goes in this order: clean ranges become dirty in the journal (old or new bytes, both are right), then the
// bytes are written, then ranges that were missing or holes become dirty in the journal, together with a new size. So
// a kill between two steps leaves neither foreign bytes in a clean range nor a dirty range without bytes. Ranges that
// are dirty already cost no record.
//
// Sync notes a mark in the journal, syncs the data file, and notes a barrier that names the mark: what the journal says
// before the mark is what the barrier covers.
//
// Bytes that the journal no longer needs are not freed before the record that says so is durable: until then a power
// cut would bring back the need. Reap and Evict sync the journal first. Reap must be called from time to time.
//
// # Locks
//
//	File.syncMu < File.mu < Store.mu < journal, File.imageMu, handles.mu, Budget.mu
//
// imageMu is never held across an Append, so that a checkpoint, which stops appends, can dump.
//
// Start reading at write.go.
package cache
