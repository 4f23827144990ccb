// Package versity runs VersityGW, an S3 server over a directory, inside the calling process. It is for tests and
// demos: it never syncs to disk, and there is one per process.
package versity
