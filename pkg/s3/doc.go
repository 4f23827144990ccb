// Package s3 is the seam between csi-s3 and an S3 server: the Bucket interface, its types and its error
// sentinels. It imports no SDK.
//
// Implementations: s3sdk (aws-sdk-go-v2), s3mem (exact in-memory model for tests) and the decorator s3fault.
// The suite s3test runs on all of them and on real servers, and is the executable form of the comments here.
//
// Every method is safe for concurrent use. Every error is one of the sentinels below, wrapped with the operation
// and the key; classify with errors.Is. An error that wraps no sentinel is unknown: it says nothing about the
// object. In particular only ErrNotExist means that a key is absent; a 503 or a timeout never does.
//
// A call whose context ends fails with ErrUnavailable, which then also wraps the context's error. A call that cannot
// read the Body it is to send fails with the reader's error.
//
// Bodies are an io.ReaderAt with a size, so a retry re-reads the same bytes.
package s3
