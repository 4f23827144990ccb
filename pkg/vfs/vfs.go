package vfs

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/writeback"
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

func (r Request) op() namespace.Op { return namespace.Op{Unique: r.Unique, Resent: r.Resent} }

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

// Limits of a file system in a bucket.
const (
	MaxFileSize = 5 << 40 // bytes of an object
	maxName     = 255     // bytes of a path component
	maxKey      = 1024    // bytes of a key
)

// reserved is the name in the root directory that is the volume's own.
const reserved = ".csi-s3"

// Access says who may write to a volume.
type Access string

// Access modes. The empty string is ReadWriteOnce.
const (
	ReadWriteOnce Access = "rwo"
	ReadWriteMany Access = "rwx"
	ReadOnlyMany  Access = "rox"
)

// Policy is what a mount promises. The zero value is ReadWriteOnce with durability on the node and no limit.
type Policy struct {
	Access      Access
	FsyncBucket bool  // fsync returns only when the bucket has the file
	Exclusive   bool  // nobody else writes to the volume: what was learned of the bucket holds for ever
	Immutable   bool  // nothing ever changes: the same
	ReadOnly    bool  // mutations are ErrReadOnly; implied by ReadOnlyMany
	Capacity    int64 // bytes that the volume may hold, 0 is unlimited
	// IOTimeout is how long a question to the bucket, an fsync or a close waits before it fails, and how long a write to a
	// full cache does without any upload going on; 0 is for ever. The Executor's Options.Patience is the same.
	IOTimeout time.Duration
}

// TTL is how long what was learned of the bucket holds; 0 is for ever.
func (p Policy) TTL() time.Duration {
	switch {
	case p.Exclusive || p.Immutable:
		return 0
	case p.Access == ReadWriteMany:
		return time.Second
	default:
		return time.Minute
	}
}

// kernelForever is what the kernel is told where TTL is for ever. It is finite so that a mistake heals.
const kernelForever = time.Hour

// Usage counts what a volume holds: the sum of its files' sizes in bytes, and its inodes. The owner sets it to what it
// knows before the first request and may correct it at any time; the file system adds its own changes.
type Usage struct {
	bytes, inodes atomic.Int64
}

// Add corrects the counts.
func (u *Usage) Add(bytes, inodes int64) {
	u.bytes.Add(bytes)
	u.inodes.Add(inodes)
}

// Sum returns the counts as they are: what was there before may be missing in them, so they can be less than zero.
func (u *Usage) Sum() (bytes, inodes int64) { return u.bytes.Load(), u.inodes.Load() }

// Get returns the counts, never less than zero.
func (u *Usage) Get() (bytes, inodes int64) { return max(0, u.bytes.Load()), max(0, u.inodes.Load()) }

// Invalidator tells the kernel to forget what it caches. It is called without any lock of the core held, from a
// goroutine that serves no request.
type Invalidator interface {
	InvalidateInode(ino inode.Ino, off, length int64)
	InvalidateEntry(dir inode.Ino, name string)
}

// Options of an FS. Tree, Store, Fetcher, Executor and Remote are required.
type Options struct {
	// Tree is made with Options.Settled set to Remote.Settled, and Options.Gone to a function that calls FS.Gone.
	Tree     *namespace.Tree
	Store    *cache.Store
	Fetcher  *fetch.Fetcher
	Executor *writeback.Executor
	Remote   *Remote // made with Policy.TTL
	Policy   Policy
	// Admit is asked before each mutation, without locks; its error is the mutation's. nil: all are welcome.
	Admit func(context.Context) error
	// Announce is asked by each fsync that does not wait for the bucket, when what it covers is durable on this node, without
	// locks; its error is the fsync's. nil: nobody is to hear of it.
	Announce func(context.Context) error
	// Drained is told by each FlushTree that all is in the bucket, without locks, before that returns. nil: nobody is to hear
	// of it.
	Drained func(context.Context)
	Usage   *Usage           // nil: counts from zero
	Log     *slog.Logger     // nil: slog.Default
	Now     func() time.Time // nil: time.Now
}

// FS is one mounted volume's file system. All methods are safe for concurrent use and take their deadline and
// interruption from ctx; an interrupted mutation is either done or not begun. Errors are classified by Errno.
type FS struct {
	tree     *namespace.Tree
	store    *cache.Store
	fetcher  *fetch.Fetcher
	executor *writeback.Executor
	remote   *Remote
	policy   Policy
	admit    func(context.Context) error
	announce func(context.Context) error
	drained  func(context.Context)
	usage    *Usage
	log      *slog.Logger
	now      func() time.Time

	// inodes serialises changes of one file's bytes with the note of its new size in the tree. Two files may share a
	// lock; nobody holds two.
	inodes [256]sync.Mutex

	handles handles
	notices notices

	bytesRead atomic.Int64
}

// New makes the file system. It does no I/O. Close ends it.
func New(opt Options) *FS {
	fs := &FS{
		tree: opt.Tree, store: opt.Store, fetcher: opt.Fetcher, executor: opt.Executor, remote: opt.Remote,
		policy: opt.Policy, admit: opt.Admit, announce: opt.Announce, drained: opt.Drained, usage: opt.Usage, log: opt.Log, now: opt.Now,
	}
	if fs.policy.Access == ReadOnlyMany {
		fs.policy.ReadOnly = true
	}
	if fs.usage == nil {
		fs.usage = &Usage{}
	}
	if fs.log == nil {
		fs.log = slog.Default()
	}
	if fs.now == nil {
		fs.now = time.Now
	}
	fs.remote.now, fs.remote.bucket.limit = fs.now, fs.policy.IOTimeout
	fs.handles.init(fs.now())
	return fs
}

// Close ends the goroutine that calls the Invalidator and waits for it. No request may be under way.
func (fs *FS) Close() { fs.notices.close() }

// Gone hears from the tree that an inode ended or was forgotten: its bytes go. It holds no lock.
func (fs *FS) Gone(ino inode.Ino) {
	fs.fetcher.Forget(cache.ID(ino))
	if err := fs.store.Remove(cache.ID(ino)); err != nil {
		// The bytes stay on the disk until the next start finds that no inode claims them.
		fs.log.Error("cannot drop the cached bytes of a file", "ino", ino, "err", err)
	}
}

// BytesRead is how many bytes Read has returned.
func (fs *FS) BytesRead() int64 { return fs.bytesRead.Load() }

// HiddenKeys is how many keys, in the directories that were listed, POSIX cannot name.
func (fs *FS) HiddenKeys() int64 { return fs.remote.hiddenKeys() }

func (fs *FS) lockInode(ino inode.Ino) *sync.Mutex {
	mu := &fs.inodes[ino%inode.Ino(len(fs.inodes))]
	mu.Lock()
	return mu
}

// timeout is how long the kernel may believe what it is told.
func (fs *FS) timeout() time.Duration {
	if ttl := fs.policy.TTL(); ttl != 0 {
		return ttl
	}
	return kernelForever
}

// patience is the context of an operation that may have to wait for the bucket.
func (fs *FS) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	if fs.policy.IOTimeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, fs.policy.IOTimeout)
}

// writable is the first check of every mutation.
func (fs *FS) writable(ctx context.Context) error {
	if fs.policy.ReadOnly {
		return ErrReadOnly
	}
	if fs.admit == nil {
		return nil
	}
	return fs.admit(ctx)
}

// charge counts n more bytes of content, or refuses to.
func (fs *FS) charge(n int64) error {
	limit := fs.policy.Capacity
	for {
		used := fs.usage.bytes.Load()
		if limit > 0 && n > 0 && used+n > limit {
			return ErrCapacity
		}
		if fs.usage.bytes.CompareAndSwap(used, used+n) {
			return nil
		}
	}
}
