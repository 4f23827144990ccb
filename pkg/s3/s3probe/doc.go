// Package s3probe is for what S3 servers differ in, above all conditions on requests: a server that does not know one may
// refuse it, or ignore it without a word.
//
// Guard makes every condition of an s3.Bucket count: it sends those that the server is known to honour and compares the
// object before all others. What is not known is taken for absent.
//
// The Guard's lock is not held over a request.
package s3probe
