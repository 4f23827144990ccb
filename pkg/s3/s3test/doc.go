// Package s3test is the conformance suite of the seam s3.Bucket: Run proves on any implementation what the comments
// of pkg/s3 promise.
//
// It runs on the model s3mem, on the decorator s3fault with no fault, and through s3sdk on real servers. What a real
// server is known not to do is named in Options; there the suite checks that the failure is honest (the right
// sentinel, nothing changed) instead of skipping. A new implementation starts with the zero Options.
//
// Start reading in suite.go; object.go, list.go, multipart.go and bucket.go hold the promises by family.
package s3test
