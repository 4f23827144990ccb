package namespace

import (
	"errors"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Errors of the tree.
var (
	ErrStale        = errors.New("stale inode") // the inode number is unknown (ESTALE)
	ErrNotExist     = errors.New("no such file or directory")
	ErrExist        = errors.New("file exists")
	ErrNotDir       = errors.New("not a directory")
	ErrIsDir        = errors.New("is a directory")
	ErrNotEmpty     = errors.New("directory not empty")
	ErrInvalid      = errors.New("invalid argument")
	ErrTooMany      = errors.New("attributes do not fit into the object's metadata") // ENOSPC
	ErrTooManyLinks = errors.New("too many names")                                   // EMLINK
	// ErrChanged: the directory changed since Resolve; resolve again.
	ErrChanged = errors.New("directory changed meanwhile")
)

// Options of a Tree.
type Options struct {
	Prefix   s3.Key // of the volume: "" or ending with a slash
	Uid, Gid uint32 // owner of objects that carry no attributes
	FileMode uint32 // permission bits of such objects, 0 means 0644
	DirMode  uint32 // and of such directories, 0 means 0755
	// Overwrite makes a conflict with a foreign writer end in our favour: its object is replaced.
	Overwrite bool
	WriterID  string           // identity of the cache directory; marks objects as written by us
	Settle    time.Duration    // how long a change rests before it goes to the bucket
	MaxAge    time.Duration    // and how long at most while it is written again and again
	Now       func() time.Time // nil: time.Now
	// Settled hears that the bucket now holds (info) or no longer holds (nil) a name of a directory, so that cached
	// listings can follow. dir is the key prefix, name has no slash; isDir says that it is a directory: info is then that
	// of an object that makes it one, without an ETag when all that is below it came with it. It is called under the
	// tree's lock and must not call the tree.
	Settled func(dir s3.Key, name string, isDir bool, info *s3.Info)
	// Gone hears that an inode ended (or was forgotten): its bytes can go. Called without locks.
	Gone func(ino inode.Ino)
}

// Op names the kernel request behind a mutation (see vfs.Request).
type Op struct {
	Unique uint64
	Resent bool
}

// Node is a copy of what the tree knows of an inode.
type Node struct {
	Attr inode.Attr
	// Known is false when only a listing was seen: mode, owner and times are then defaults; see LearnAttr.
	Known   bool
	Target  string // of a symlink
	Tracked bool   // has changes (or had, not long ago) that the bucket does not hold yet
	Dirty   bool   // its bytes have
	Open    int    // open handles
}

// Resolution is what Resolve knows of a name.
type Resolution struct {
	Node    Node   // valid when Found
	Found   bool   // the name exists
	Absent  bool   // the name does not exist, without doubt
	Key     s3.Key // not Absent, not tracked: look in the bucket at this key (file) and below Key+"/" (directory)
	Version uint64 // of the directory, for Learn and the mutations
}

// Tree is the namespace of one volume. Safe for concurrent use; its lock is held over appends to the journal and never
// over a request to S3 or a sync.
type Tree struct{ tree }

// Remote is what the bucket says of a name.
type Remote struct {
	IsDir bool
	// Info of the object; of a directory that of its marker, zero when it has none or it was not asked for.
	Info s3.Info
	// Known: Info.Meta was read (HEAD or GET), so the attributes are right.
	Known bool
}

// Child is a name that the tree decides, whatever a listing says.
type Child struct {
	Ino  inode.Ino
	Type uint32 // inode.ModeType bits
	// Tracked says that it exists whatever the bucket says; else it was learned from the bucket.
	Tracked bool
}

// Listing is what the tree knows of a directory.
type Listing struct {
	Names  map[string]Child // names that exist: all that are tracked or known
	Remote bool             // further names may exist in the bucket below Prefix
	Prefix s3.Key
	// Hidden are keys directly below Prefix (markers with their slash) whose listing entries do not count: renamed away
	// or removed, and the bucket does not know yet.
	Hidden  map[s3.Key]bool
	Version uint64
}

// Patch selects attributes to change; nil fields stay. Size is not here: see Written.
type Patch struct {
	Mode, Uid, Gid      *uint32
	Atime, Mtime, Ctime *time.Time
}

// Source is the remote object that holds the clean bytes of a file.
type Source struct {
	Key  s3.Key
	ETag s3.ETag
	Size int64
}

// Outcome of a request that was carried out before and is sent again.
type Outcome struct {
	Ino inode.Ino
	Err error
}

// Stats counts inodes.
type Stats struct {
	Known, Tracked, Unsettled int
	Oldest                    time.Time // of the unsettled ones, zero when there is none
	LastError                 error     // of the last task that failed and was not repeated with success yet
}
