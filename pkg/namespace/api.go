package namespace

import (
	"errors"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Errors of the tree.
var (
	ErrStale    = errors.New("stale inode") // the inode number is unknown (ESTALE)
	ErrNotExist = errors.New("no such file or directory")
	ErrExist    = errors.New("file exists")
	ErrNotDir   = errors.New("not a directory")
	ErrIsDir    = errors.New("is a directory")
	ErrNotEmpty = errors.New("directory not empty")
	ErrInvalid  = errors.New("invalid argument")
	ErrTooMany  = errors.New("attributes do not fit into the object's metadata") // ENOSPC
	// ErrChanged: the directory changed since Resolve; resolve again.
	ErrChanged = errors.New("directory changed meanwhile")
)

// Options of a Tree.
type Options struct {
	Prefix   s3.Key           // of the volume: "" or ending with a slash
	Uid, Gid uint32           // owner of objects that carry no attributes
	FileMode uint32           // permission bits of such objects, 0 means 0644
	DirMode  uint32           // and of such directories, 0 means 0755
	WriterID string           // identity of the cache directory; marks objects as written by us
	Settle   time.Duration    // how long a change rests before it goes to the bucket
	MaxAge   time.Duration    // and how long at most while it is written again and again
	Now      func() time.Time // nil: time.Now
	// Settled hears that the bucket now holds (info) or no longer holds (nil) a name of a directory, so that cached
	// listings can follow. dir is the key prefix, name has no slash; isDir says that it is a directory. It is called
	// under the tree's lock and must not call the tree.
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
	Key     s3.Key // neither: look in the bucket at this key (file) and below Key+"/" (directory)
	Version uint64 // of the directory, for Learn and the mutations
}

// Tree is the namespace of one volume. Safe for concurrent use; its lock is held over appends to the journal and never
// over a request to S3 or a sync.
type Tree struct{ tree }

// New makes an empty tree with a root directory. Replay, then Recover, then use.
func New(opt Options) *Tree { panic("not built") }

// Replay takes one record of the namespace's kinds.
func (t *Tree) Replay(rec journal.Record) error { panic("not built") }

// Recover ends the replay; j takes the tree's records from here on.
func (t *Tree) Recover(j *journal.Journal) error { panic("not built") }

// Recovered says what the cache holds of a file after recovery: its bytes are dirty. It returns false when the tree
// does not know the inode: its data can go.
func (t *Tree) Recovered(ino inode.Ino, size int64, mtime time.Time) bool { panic("not built") }

// Lost says that a file's changes did not survive a power cut: it goes back to its remote object, or ends if it has
// none. The name that it had is returned for the report.
func (t *Tree) Lost(ino inode.Ino) (name string) { panic("not built") }

// Dump emits records that rebuild the present state.
func (t *Tree) Dump(emit func(...journal.Record) error) error { panic("not built") }

// Get returns the node, or ErrStale.
func (t *Tree) Get(ino inode.Ino) (Node, error) { panic("not built") }

// Resolve looks name up in dir.
func (t *Tree) Resolve(dir inode.Ino, name string) (Resolution, error) { panic("not built") }

// Remote is what the bucket says of a name.
type Remote struct {
	IsDir bool
	// Info of the object; of a directory that of its marker, zero when it has none or it was not asked for.
	Info s3.Info
	// Known: Info.Meta was read (HEAD or GET), so the attributes are right.
	Known bool
}

// Learn adds a name that the bucket holds, or refreshes what is known of it. version is Resolve's: ErrChanged when the
// directory changed since. A file whose ETag changed gets a new inode number.
func (t *Tree) Learn(dir inode.Ino, name string, version uint64, r Remote) (Node, error) {
	panic("not built")
}

// AttrKey is the key whose HEAD tells the attributes of a node that is not Known: the object, or the marker of a
// directory.
func (t *Tree) AttrKey(ino inode.Ino) (s3.Key, error) { panic("not built") }

// LearnAttr gives the attributes of a node that is not Known yet. A nil info says that the directory has no marker.
func (t *Tree) LearnAttr(ino inode.Ino, info *s3.Info) (Node, error) { panic("not built") }

// Child is a name that the tree decides, whatever a listing says.
type Child struct {
	Ino  inode.Ino
	Type uint32 // inode.ModeType bits
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

// List returns what the tree knows of a directory.
func (t *Tree) List(dir inode.Ino) (Listing, error) { panic("not built") }

// Create makes a new inode of attr.Mode's type under a name: file, directory, symlink (target) or special file.
// attr's mode, owner, rdev and times are taken. ErrExist when the name exists in the tree: the caller has made sure
// with Resolve and the bucket that it does not exist there. One frame of the journal, like every mutation below; on
// return it survives a kill of the process.
func (t *Tree) Create(op Op, dir inode.Ino, name string, version uint64, attr inode.Attr, target string) (Node, error) {
	panic("not built")
}

// Link gives ino another name.
func (t *Tree) Link(op Op, ino, dir inode.Ino, name string, version uint64) (Node, error) {
	panic("not built")
}

// Unlink removes a name that Resolve or Learn found; not of a directory (ErrIsDir). An inode that is open lives on.
func (t *Tree) Unlink(op Op, dir inode.Ino, name string) error { panic("not built") }

// Rmdir removes an empty directory: ErrNotEmpty when the tree knows names in it. The caller has made sure that the
// bucket shows none either.
func (t *Tree) Rmdir(op Op, dir inode.Ino, name string) error { panic("not built") }

// Rename moves a name. Both names were resolved (and learned) before; the rules of rename(2) for kinds are checked here,
// emptiness of a replaced directory as in Rmdir. flags: 1 is NOREPLACE, 2 is EXCHANGE.
func (t *Tree) Rename(op Op, oldDir inode.Ino, oldName string, newDir inode.Ino, newName string, flags uint32) error {
	panic("not built")
}

// Patch selects attributes to change; nil fields stay. Size is not here: see Written.
type Patch struct {
	Mode, Uid, Gid      *uint32
	Atime, Mtime, Ctime *time.Time
}

// SetAttr changes attributes. A change of atime alone never goes to the bucket.
func (t *Tree) SetAttr(op Op, ino inode.Ino, p Patch) (Node, error) { panic("not built") }

// Xattrs returns a copy of the user.* attributes, by name with the prefix.
func (t *Tree) Xattrs(ino inode.Ino) (map[string][]byte, error) { panic("not built") }

// SetXattr sets (or with a nil value removes) an extended attribute. ErrTooMany when they would not fit.
func (t *Tree) SetXattr(op Op, ino inode.Ino, name string, value []byte) error { panic("not built") }

// BeginWrite must return before the first change of a file's bytes goes to the cache: from here on the tree tracks the
// file, journaled. It is cheap when the file is tracked already.
func (t *Tree) BeginWrite(ino inode.Ino) error { panic("not built") }

// Written says that the bytes changed: size and mtime (and ctime) now. The cache has journaled them.
func (t *Tree) Written(ino inode.Ino, size int64, mtime time.Time) { panic("not built") }

// Opened and Released count the open handles of an inode.
func (t *Tree) Opened(ino inode.Ino) error { panic("not built") }
func (t *Tree) Released(ino inode.Ino)     { panic("not built") }

// Looked counts n lookups by the kernel, Forget drops them.
func (t *Tree) Looked(ino inode.Ino, n uint64) { panic("not built") }
func (t *Tree) Forget(ino inode.Ino, n uint64) { panic("not built") }

// Source is the remote object that holds the clean bytes of a file.
type Source struct {
	Key  s3.Key
	ETag s3.ETag
	Size int64
}

// Source of a file; ok is false when the bucket holds nothing of it.
func (t *Tree) Source(ino inode.Ino) (src Source, ok bool, err error) { panic("not built") }

// Outcome of a request that was carried out before and is sent again.
type Outcome struct {
	Ino inode.Ino
	Err error
}

// Done returns the recorded outcome of a mutation, by the request's number.
func (t *Tree) Done(unique uint64) (Outcome, bool) { panic("not built") }

// Sync makes every mutation that returned before the call survive a power cut.
func (t *Tree) Sync() error { panic("not built") }

// Stats counts inodes.
type Stats struct {
	Known, Tracked, Unsettled int
	Oldest                    time.Time // of the unsettled ones, zero when there is none
	LastError                 error     // of the last task that failed and was not repeated with success yet
}

// Stats is O(1) or nearly so.
func (t *Tree) Stats() Stats { panic("not built") }
