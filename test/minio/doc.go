// Package minio starts a real MinIO server for tests: a process of its own on a free loopback port, with its data in
// a directory that the caller gives.
//
// The binary is the one named by CSI_S3_MINIO, else the one in the user's cache directory (csi-s3/bin), which is
// built there once with the go command: a few minutes and 150 MB. MinIO is AGPL: it is run, never linked.
package minio
