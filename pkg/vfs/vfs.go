package vfs

import (
	"context"
	"syscall"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
)

// HandleID names an open file or directory. It is a counter whose loss is harmless: an operation on an unknown handle
// works by inode number.
type HandleID uint64

// Request is who asks, and how the kernel names the request.
type Request struct {
	Uid, Gid uint32
	Pid      uint32
	// Unique is the kernel's number of the request without the resend bit; Resent says that the bit was set: an
	// operation that is not idempotent then returns its recorded outcome if it was done before. 0 is no number.
	Unique uint64
	Resent bool
}

// Entry is the answer to a lookup: an inode that the kernel may now refer to, and how long to believe it.
type Entry struct {
	Attr         inode.Attr // Attr.Ino 0: a negative entry (the name is known not to exist)
	AttrTimeout  time.Duration
	EntryTimeout time.Duration
}

// DirEntry is one name of a directory.
type DirEntry struct {
	Name   string
	Ino    inode.Ino
	Type   uint32 // inode.ModeType bits; 0 when unknown without asking S3
	Offset uint64 // cookie that continues after this entry; stable while the directory changes
}

// SetAttr selects what to change; nil fields stay.
type SetAttr struct {
	Mode  *uint32 // permission bits
	Uid   *uint32
	Gid   *uint32
	Size  *int64
	Atime *time.Time
	Mtime *time.Time
	Ctime *time.Time
}

// Statfs is the answer to statfs(2), in bytes and inodes.
type Statfs struct {
	Total, Free  int64
	Files, Ffree uint64
	BlockSize    uint32
	NameMax      uint32
}

// Rename flags, as renameat2(2).
const (
	RenameNoReplace = 1
	RenameExchange  = 2
)

// Invalidator tells the kernel to forget what it caches. It is called without any lock of the core held, from a
// goroutine that serves no request.
type Invalidator interface {
	InvalidateInode(ino inode.Ino, off, length int64)
	InvalidateEntry(dir inode.Ino, name string)
}

// Errno maps any error of the core to what the kernel is told. Unknown errors are EIO; nil is 0.
func Errno(err error) syscall.Errno { panic("not built") }

// FS is one mounted volume's file system. All methods are safe for concurrent use and take their deadline and
// interruption from ctx; an interrupted mutation is either done or not begun. Errors are classified by Errno.
type FS struct{}

// Lookup resolves name in dir and counts one lookup of the inode (see Forget). A name that does not exist is
// ErrNotExist, with a negative Entry whose EntryTimeout may be used.
func (fs *FS) Lookup(ctx context.Context, req Request, dir inode.Ino, name string) (Entry, error) {
	panic("not built")
}

// Forget drops n lookups of ino (FUSE_FORGET). It does no I/O: the kernel has no way to hear an error.
func (fs *FS) Forget(ino inode.Ino, n uint64) { panic("not built") }

// GetAttr returns the attributes and how long they hold.
func (fs *FS) GetAttr(ctx context.Context, req Request, ino inode.Ino) (inode.Attr, time.Duration, error) {
	panic("not built")
}

// SetAttr changes attributes; h is 0 or the handle that ftruncate came through.
func (fs *FS) SetAttr(ctx context.Context, req Request, ino inode.Ino, h HandleID, set SetAttr) (inode.Attr, time.Duration, error) {
	panic("not built")
}

// Create makes a regular file (or, without O_EXCL in flags, opens an existing one) and opens it.
func (fs *FS) Create(ctx context.Context, req Request, dir inode.Ino, name string, mode uint32, flags int) (Entry, HandleID, error) {
	panic("not built")
}

// Mkdir, Mknod, Symlink and Link make a name. mode has the umask applied; of Mknod it includes the type bits.
func (fs *FS) Mkdir(ctx context.Context, req Request, dir inode.Ino, name string, mode uint32) (Entry, error) {
	panic("not built")
}
func (fs *FS) Mknod(ctx context.Context, req Request, dir inode.Ino, name string, mode, rdev uint32) (Entry, error) {
	panic("not built")
}
func (fs *FS) Symlink(ctx context.Context, req Request, dir inode.Ino, name, target string) (Entry, error) {
	panic("not built")
}
func (fs *FS) Link(ctx context.Context, req Request, ino inode.Ino, dir inode.Ino, name string) (Entry, error) {
	panic("not built")
}
func (fs *FS) Readlink(ctx context.Context, req Request, ino inode.Ino) (string, error) {
	panic("not built")
}

// Unlink and Rmdir remove a name; an open file lives on until its last handle is released.
func (fs *FS) Unlink(ctx context.Context, req Request, dir inode.Ino, name string) error {
	panic("not built")
}
func (fs *FS) Rmdir(ctx context.Context, req Request, dir inode.Ino, name string) error {
	panic("not built")
}

// Rename moves a name, replacing an existing target, atomically for every observer on this mount.
func (fs *FS) Rename(ctx context.Context, req Request, oldDir inode.Ino, oldName string, newDir inode.Ino, newName string, flags uint32) error {
	panic("not built")
}

// Open opens a regular file. keepCache says that the kernel's page cache of it is still valid.
func (fs *FS) Open(ctx context.Context, req Request, ino inode.Ino, flags int) (h HandleID, keepCache bool, err error) {
	panic("not built")
}

// Read fills p from off; n < len(p) only at the end of the file.
func (fs *FS) Read(ctx context.Context, req Request, ino inode.Ino, h HandleID, p []byte, off int64) (n int, err error) {
	panic("not built")
}

// Write writes all of p at off. On return the change survives a kill of the process.
func (fs *FS) Write(ctx context.Context, req Request, ino inode.Ino, h HandleID, p []byte, off int64) (n int, err error) {
	panic("not built")
}

// Flush answers every close(2) of a descriptor, Release the last one.
func (fs *FS) Flush(ctx context.Context, req Request, ino inode.Ino, h HandleID) error {
	panic("not built")
}
func (fs *FS) Release(ino inode.Ino, h HandleID) { panic("not built") }

// Fsync makes the file durable as the mount's fsync policy says: file, name and size.
func (fs *FS) Fsync(ctx context.Context, req Request, ino inode.Ino, h HandleID, dataOnly bool) error {
	panic("not built")
}

// FsyncDir makes all changes of names in the directory durable.
func (fs *FS) FsyncDir(ctx context.Context, req Request, ino inode.Ino) error { panic("not built") }

// Fallocate takes mode as fallocate(2): 0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE; others are ErrNotSupported.
func (fs *FS) Fallocate(ctx context.Context, req Request, ino inode.Ino, h HandleID, off, length int64, mode uint32) error {
	panic("not built")
}

// Lseek serves SEEK_DATA and SEEK_HOLE.
func (fs *FS) Lseek(ctx context.Context, req Request, ino inode.Ino, off int64, whence int) (int64, error) {
	panic("not built")
}

// OpenDir, ReadDir and ReleaseDir list a directory. ReadDir calls emit for each entry after cookie offset until emit
// returns false; "." and ".." are included. With plus set the entries carry attributes: emit's Entry is then valid
// (Attr.Ino 0 where it is not known without asking S3) and each emitted one with attributes, except "." and "..",
// counts a lookup.
func (fs *FS) OpenDir(ctx context.Context, req Request, ino inode.Ino) (HandleID, error) {
	panic("not built")
}
func (fs *FS) ReadDir(ctx context.Context, req Request, ino inode.Ino, h HandleID, offset uint64, plus bool, emit func(DirEntry, Entry) bool) error {
	panic("not built")
}
func (fs *FS) ReleaseDir(h HandleID) { panic("not built") }

// Statfs reports capacity and use.
func (fs *FS) Statfs(ctx context.Context) (Statfs, error) { panic("not built") }

// GetXattr, ListXattr, SetXattr and RemoveXattr serve the user.* namespace; flags as setxattr(2).
func (fs *FS) GetXattr(ctx context.Context, req Request, ino inode.Ino, name string) ([]byte, error) {
	panic("not built")
}
func (fs *FS) ListXattr(ctx context.Context, req Request, ino inode.Ino) ([]string, error) {
	panic("not built")
}
func (fs *FS) SetXattr(ctx context.Context, req Request, ino inode.Ino, name string, value []byte, flags int) error {
	panic("not built")
}
func (fs *FS) RemoveXattr(ctx context.Context, req Request, ino inode.Ino, name string) error {
	panic("not built")
}

// FlushTree returns when everything that was written below ino before the call is in the bucket. progress, if not
// nil, hears the dirty bytes left from time to time.
func (fs *FS) FlushTree(ctx context.Context, ino inode.Ino, progress func(left int64)) error {
	panic("not built")
}

// SetInvalidator is called once, before the first request.
func (fs *FS) SetInvalidator(inv Invalidator) { panic("not built") }
