// Package chaos takes the floor away under the real process, with a MinIO server behind it and a real mount, and looks
// whether everything that was acknowledged is there afterwards: in the next mount, and in the bucket alone.
//
// A workload (workload_test.go) runs in the test's process and remembers what it was told: a world is a directory, its
// history of names, and of each file which generation of which block it may hold. What the test's process remembers is
// the manifest: it is neither killed nor cut. After each blow the world is compared with what is seen; what is seen then
// is the truth for the next blow.
//
//   - A kill (kill_test.go) is SIGKILL: at a random time, while the process starts, when a request of a given kind passes
//     the proxy before the server (gate_test.go), or when a file of the cache changes. Every operation that returned must
//     be there.
//   - A power cut (power_test.go) shuts the cache's own file system down (ext4 and xfs on loop devices, FS_IOC_SHUTDOWN
//     without a flush of the log), so that what was not synced is really lost, and changes the boot ID. Every operation
//     that an fsync covered must be there. A kill alone loses nothing of the page cache and proves nothing about fsync.
//
// A network is no blow: a wire (wire_test.go) stands between the process and its server, does to a share of the requests
// what networks and servers do, or lets none through. No program may notice (network_test.go, endpoint_test.go).
//
// Each suite counts what it did and fails when that proves nothing: nothing acknowledged, nothing dirty at the blow, a
// point of failure that was never hit. With CSI_S3_SOAK set the figures are those of a long run, see the target soak;
// CSI_S3_CHAOS_BLOWS, CSI_S3_CHAOS_HITS and CSI_S3_CHAOS_SECONDS make it as short as wanted, CSI_S3_CHAOS_SEED repeats its choices (not its times).
//
// It needs root, /dev/fuse, loop devices, mkfs.ext4 and mkfs.xfs. Each suite runs in a mount namespace of its own and
// leaves nothing behind. It is a module of its own, so that what it depends on never enters the driver's go.mod.
package chaos
