// Package s3mem is an exact model of one bucket of an S3 server in memory: what a test runs on when it needs a
// server that makes no mistakes.
//
// It promises what Amazon S3 promises: a mutation is atomic, every read that starts after it sees it, listings are
// in byte order, an ETag is the MD5 of the bytes (for a multipart object the MD5 of the parts' MD5s and "-N"; see OwnTags),
// Last-Modified has whole seconds, user metadata holds at most 2 KB and comes back with its keys in lower case and
// its values trimmed. Where servers differ it takes the harsh side: completing an upload a second time is
// ErrNoUpload, keys that are not UTF-8 are ErrInvalid, and Info.Modified is not told by Put and CompleteUpload.
//
// There is one lock, Bucket.mu. Bodies are read before it is taken, so a slow or failing reader blocks nobody, and
// stored bytes are never changed in place, so a reader of an open Get needs no lock. A condition is evaluated under
// the same lock as the write that it guards.
package s3mem
