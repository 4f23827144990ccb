// Package vfs is the file system core: POSIX semantics over names (namespace) and bytes (cache). It knows neither FUSE
// nor the SDK. Its adapter, package fuse, holds no decision.
//
// # Tenets
//
//  1. The tree decides what it knows; the bucket decides the rest. A name that has changes which the bucket does not
//     hold yet is answered from memory, whatever a listing says.
//  2. Unknown is not absent. Only a definite answer of the bucket makes a name not exist; every failure is an error.
//  3. A reply to a mutation means: it is journaled, and it survives a kill of the process.
//  4. What comes from the bucket may be forgotten at any moment. What is dirty never is.
//
// # The data path
//
// One verb, one file. Lookup (lookup.go) asks namespace.Tree.Resolve. If the tree does not know the name, the remote
// view (remote.go) answers from a cached listing, or from one page of LIST, or for a large directory from a HEAD and a
// LIST of one key in parallel. What was found is handed to Tree.Learn, which gives it an inode number.
// ReadDir (readdir.go) merges the names of the tree with the listing of the view.
//
// Read (read.go) calls fetch.Fetcher.Read, which brings missing ranges from the object that Tree.Source names into the
// cache, and then copies from cache.File. Write (write.go) calls Tree.BeginWrite (the name is journaled as changed),
// cache.File.WriteAt (bytes and dirty range survive a kill on return), Tree.Written (size and mtime). Sending it to the
// bucket is the business of writeback.Executor, which looks at the tree.
//
// # What is guaranteed
//
//   - write(2), truncate, create, rename and all other mutations survive a kill of this process when they return. The
//     node's power may cut off everything since the last fsync.
//   - fsync, fdatasync, fsync of a directory and O_SYNC: with Policy.FsyncBucket unset, bytes, names and sizes survive a
//     loss of power. With it set they are also in the bucket.
//   - close starts the upload of a dirty file, after the settle time of the tree; with Policy.Access ReadWriteMany it
//     waits until the file is in the bucket (close-to-open). An error that the bucket reported for the file is returned
//     once by fsync or close of each handle.
//   - rename is atomic for every observer of the mount. It replaces its target in the journal at once and in the bucket
//     only when the new content is there. A rename over an existing file first makes the new content survive a power
//     cut, so that the name never shows unknown bytes.
//   - A file that is unlinked while it is open lives on until its last handle is released, also in the bucket if its
//     bytes are not all here.
//   - An object that somebody else replaced gets a new inode number: a reader of the old one sees what is cached of it
//     and then ESTALE, never a mix of both.
//   - An operation that the kernel sends again after a crash of this process returns its recorded outcome.
//   - atime changes by utimensat only; reading does not change it.
//
// # Names
//
// A name is at most 255 bytes of valid UTF-8 (EILSEQ, ENAMETOOLONG), and its whole key at most 1024 bytes
// (ENAMETOOLONG, when the name is made, not when it is uploaded). Control characters are allowed. ".csi-s3" in the root
// directory is the volume's own: it does not exist, and cannot be made (EPERM). Keys that POSIX cannot name (an empty
// component, "." or "..", NUL, too long, invalid UTF-8) are hidden and counted. Where both "a" and "a/..." exist, the
// directory is shown and the file hidden and counted. A hidden key does not keep rmdir from removing its directory.
// A common prefix makes a directory only when a key is found below it: MinIO goes on to list those of removed keys.
//
// # Lock order
//
// A strict partial order; a lock may be taken only while holding locks that come before it:
//
//	handle < inode < tree < cache file < journal
//	anything < view
//
// In words: do not take a handle's lock while holding an inode's. Hold at most one inode's lock. Do not call the tree
// while holding a lock of the cache or of a view: the tree calls Remote.Settled under its own lock, so the view's lock
// is a leaf. Hold no lock across a request to S3, across Executor.Throttle, or across a call of the Invalidator.
//
// Start reading at lookup.go, then write.go.
package vfs
