// Package vfs is the file system core: POSIX semantics over names (namespace) and bytes (cache). It knows neither FUSE
// nor the SDK.
package vfs
