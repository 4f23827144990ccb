// Package fuse is the adapter between the kernel's FUSE protocol and the core: one short method for each operation, and
// no decision of its own.
//
// # The way of a request
//
// Each mount has one goroutine that reads (serve.go). It waits in Go's poller, so an idle mount has no thread, and takes
// a slot from the process's pool (pool.go) only when there is something to read. The slots are shared memory that was
// faulted in beforehand: a page fault inside the kernel's copy would fail the request with EIO when the process is being
// killed. A goroutine for each request then parses it with go-fuse's ProtocolServer, which calls the methods of
// filesystem, and writes the answer. Short requests leave their slot at once, and long ones when slots get scarce, so
// that requests that wait for S3 do not keep other mounts from being read. The room for large answers (arena.go) takes no
// memory before it is filled, so that many reads can wait; a large write that waits holds its bytes.
//
// # What is promised
//
//   - Node IDs are the core's inode numbers; handles are the core's. Nothing is kept here beside requests under way.
//   - The kernel's number of a request goes to the core, with the mark of one that is sent again (FUSE_NOTIFY_RESEND).
//   - A program that waits for an answer can be killed, and other signals do not end its wait; context.go has what that
//     takes, and what is left of it where programs cannot be seen.
//   - A panic of a method is an EIO and a line in the log.
//   - A mount ends in order however it is ended: by Unmount, by umount, by an abort of the connection. Only Unmount frees
//     the mount point after an abort.
//   - Locks (flock, fcntl) are the kernel's own, and the kernel checks permissions (default_permissions).
//
// control.go is the other way into a mount: ioctls on any of its directories, which reach the server whatever process
// and mount namespace it lives in. The server answers them; Flush and Status ask.
//
// The process that serves a mount must not open files in it: both would wait for each other.
//
// Start reading at mount.go.
package fuse
