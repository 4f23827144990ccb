// Package disk is the seam to the local file system: every file call that the journal and the cache make, with each
// durability step by name. OS is the real one, Overlay shows a real one without ever changing it;
// diskmem is a crashable memory disk and diskfault injects errors.
//
// What survives a power cut is exactly what was made durable: file content and size by File.Sync, names by
// FS.SyncDir of the directory that holds them. Everything else may be lost, kept or kept in part, in any order.
// What survives a kill of the process is every call that returned.
package disk
