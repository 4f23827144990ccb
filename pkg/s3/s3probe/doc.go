// Package s3probe is for what S3 servers differ in, above all conditions on requests: a server that does not know one may
// refuse it, or ignore it without a word.
//
// Guard makes every condition of an s3.Bucket count: it sends those that the server is known to honour and compares the
// object before all others. What is not known is taken for absent.
//
// Probe finds out, on scratch objects. Guard.Learn does so in the background, at most once a day for a volume, and keeps the
// result as a Record in the volume; no request waits for it. A server that does not answer is asked again.
//
// The Guard's lock is not held over a request. Start reading in guard.go, then probe.go.
package s3probe
