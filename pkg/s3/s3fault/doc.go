// Package s3fault decorates any s3.Bucket with faults that a test scripts: it makes a good server bad in exactly one
// known way.
//
// Bucket.Fault sees every operation before it runs and says what is to go wrong. The distinction that matters is
// between FailBefore (the request never took effect) and FailAfter (it did, and the answer was lost): a caller that
// treats both alike is wrong in one of them. An Action that has no meaning for an operation (ShortBody of a Delete)
// fails it before it runs.
//
// The decorator keeps one lock for its counters and holds it neither while Fault runs nor while the inner bucket does.
package s3fault
