// Package conformance holds the real process, with a MinIO server behind it and real mounts, to what others say it must
// do: csi-sanity, go-fuse's POSIX suite, and what users do with a file system (copy a tree, write a large file, list
// another client's objects, pull the plug). It is a module of its own, so that the suites' dependencies never enter the
// driver's go.mod.
//
// With CSI_S3_SOAK set the figures are those of a long run; see the target soak.
//
// It needs root and /dev/fuse. Each suite runs in a mount namespace of its own and leaves nothing behind.
package conformance
