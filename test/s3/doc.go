// Package s3 (test/s3) runs the conformance suite of pkg/s3 through s3sdk on real servers: VersityGW inside the test
// process and MinIO beside it. It is a module of its own, so that a server's modules stay out of the driver's.
package s3
