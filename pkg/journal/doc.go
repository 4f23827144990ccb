// Package journal is an append-only log of checked records: one per volume, shared by namespace and cache, so that
// one order covers names and bytes.
//
// # Promise
//
// Append returns when the frame is in the page cache: it survives a kill of the process. Sync returns when every
// earlier frame is on the disk: it survives a power cut. After a power cut Open finds a prefix of what was appended
// that holds at least everything synced. A frame is there whole or not at all.
//
// # Format
//
// One file, "journal", in a directory of its own. All integers are little-endian.
//
//	file    = header frame*
//	header  = magic "CSIS3JNL" (8) | version (4) | epoch (4) | CRC-32C of these (4)
//	frame   = length (4) | CRC-32C (4) | seq (8) | durable (8) | payload (length)
//	payload = record+
//	record  = kind (1) | length (uvarint) | data
//
// The checksum covers the epoch and the frame from seq on. epoch is random for each file. seq counts frames from 1.
// durable is the highest seq that was known to be on the disk when the frame was written.
//
// # Damage
//
// The first frame that is short or fails its checksum ends the journal: a crash left it so. If, however, a later frame
// is whole and says that the damaged one had been durable, then the disk has lost synced data: Open returns ErrCorrupt.
// The torn tail is cut off durably before anything is appended, so that its pieces can never be read again.
//
// # Checkpoint
//
// A checkpoint writes a new file "journal.new" from a dump, syncs it, renames it over the old one, and syncs the
// directory. At every moment "journal" is one whole journal or the other.
//
// Start reading at Open.
package journal
