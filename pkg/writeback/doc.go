// Package writeback is the one executor of what the namespace wants done in the bucket: uploads, copies, deletes,
// moves of directories, and the wait for all of it.
//
// It promises:
//   - An object is a frozen state of its file. The tree is asked for attributes first (Prepare) and the snapshot is
//     taken after that, so a write that falls in between is uploaded once too often and never forgotten.
//   - Nothing is committed that the bucket did not confirm. When an answer is lost or refused, HEAD and the write-id in
//     the object's metadata decide: applied, our own earlier attempt (Tree.Adopt), somebody else's object
//     (Tree.Conflict), or not applied, which is tried again for ever, with pauses.
//   - Dirty bytes are never given up: every error but a conflict means another attempt, and Status names the last one.
//   - A multipart upload is in the journal (ledger) before the server hears of it. What was sent is kept over failures and
//     restarts, as long as the bytes are the same; what nothing needs any more is aborted, and nothing else is (but see lost).
//
// Every Put, copy, completion and delete of one object carries a condition, so the bucket must be an s3probe.Guard or as good
// as one: where the server does not compare, the Guard looks at the object before, and what others write in between is
// overwritten. What a directory has left behind is compared with its copies and then removed by the page, without one.
//
// Tasks are short (one request and perhaps a HEAD) or long (multipart, directories). Short ones share Options.Meta
// slots; long ones wait for slots of their own, so that a big upload never holds up a small one. All goroutines belong
// to the Executor, which waits for them in Stop. No lock is held over a request, nor over a call of the tree or the
// cache.
//
// Start reading in schedule.go, then upload.go and settle.go.
package writeback
