// Package conformance holds the driver to what others say a CSI driver must do: csi-sanity against the real process,
// with a MinIO server behind it and real mounts. It is a module of its own, so that the suite's dependencies never
// enter the driver's go.mod.
//
// It needs root and /dev/fuse. Each suite runs in a mount namespace of its own and leaves nothing behind.
package conformance
