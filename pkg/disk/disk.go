package disk

import (
	"errors"
	"io"
	"io/fs"
)

// Errors beside io/fs's (fs.ErrNotExist, fs.ErrExist). They wrap the system's error.
var (
	// ErrNoSpace: the file system is full (ENOSPC, EDQUOT).
	ErrNoSpace = errors.New("no space left on the cache disk")
	// ErrReadOnly: the file system became read-only (EROFS).
	ErrReadOnly = errors.New("cache disk is read-only")
	// ErrIO: the device failed (EIO) or any other error of the system that has no sentinel.
	ErrIO = errors.New("cache disk failed")
	// ErrLocked: Lock found another owner.
	ErrLocked = errors.New("locked by another process")
)

// File is an open file. All methods are safe for concurrent use; offsets and sizes are bytes.
type File interface {
	io.ReaderAt // io.EOF past the end, as os.File
	io.WriterAt // extends the file; a hole before off reads as zeros
	io.Closer

	// Truncate sets the size.
	Truncate(size int64) error
	// Size is the current size.
	Size() (int64, error)
	// Reserve takes space for what will be written below end, so that it does not fail with ErrNoSpace; the size does not
	// change. Truncate gives back what is not used. Where the file system cannot, it does nothing.
	Reserve(end int64) error
	// PunchHole frees [off, end) and makes it read as zeros; the size does not change. Where the file system cannot,
	// zeros are written.
	PunchHole(off, end int64) error
	// Sync makes content and size durable (fdatasync). It does not make the name durable: see FS.SyncDir.
	Sync() error
}

// FS is a directory tree. Names are slash-separated paths below its root; "..", absolute paths and symlinks are
// refused.
type FS interface {
	// OpenFile opens name for reading and writing, creating it (mode 0600) when create is set.
	OpenFile(name string, create bool) (File, error)
	// ReadFile returns the whole content of a small file.
	ReadFile(name string) ([]byte, error)
	// MkdirAll creates a directory and its parents, mode 0700. It does not make them durable.
	MkdirAll(name string) error
	// ReadDir lists the names in a directory, sorted.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Rename replaces newname atomically. Durable after SyncDir of both directories.
	Rename(oldname, newname string) error
	// Remove removes a file or an empty directory. A missing one is fs.ErrNotExist.
	Remove(name string) error
	// SyncDir makes the entries of a directory durable.
	SyncDir(name string) error
	// Space reports the file system's size and what is free for us, in bytes.
	Space() (total, free int64, err error)
	// Lock takes an exclusive lock (flock) on name, creating it, until the closer is closed or the process ends.
	Lock(name string) (io.Closer, error)
}
