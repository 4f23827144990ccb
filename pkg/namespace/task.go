package namespace

import (
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Verb is what a Task does in the bucket.
type Verb int

// Verbs.
const (
	// Put stores an object: Content says whether its body is a snapshot of the cached file or Body.
	Put Verb = iota + 1
	// Copy makes Key from Source on the server, with the task's attributes; it replaces attributes when Key is Source.Key.
	Copy
	// Delete removes Key.
	Delete
	// Move copies every object below SrcPrefix that Skip does not name to DstPrefix, checks the copies, and is then done:
	// Commit switches the directory over and a Purge of the source follows.
	Move
	// Purge removes what is below SrcPrefix and Skip does not name. After a Move (DstPrefix set) an object is removed only
	// when DstPrefix has it with the same size; otherwise it is copied first. Without DstPrefix only keys that no POSIX
	// name can reach (see ValidName) are removed, others stay.
	Purge
)

// Task is one unit of work for the bucket. Tasks that Next has handed out never touch the same key.
type Task struct {
	Verb                 Verb
	Ino                  inode.Ino
	Key                  s3.Key
	Cond                 s3.Condition  // for Put and Copy
	Attr                 s3.Attributes // for Put and Copy, filled by Prepare
	Content              bool          // Put: body is the cached file
	Body                 []byte        // Put without Content: symlink target, or nothing
	Source               Source        // Copy: from where. Put: the object behind missing ranges; Key "" when there is none
	SrcPrefix, DstPrefix s3.Key
	Attempts             int   // failures so far
	LastErr              error // the last one

	state taskState
}

// Next hands out a task that may run at now, or nil and the time when it is worth asking again (zero: only after Wake).
// The caller ends each task with exactly one of Commit, Fail and Conflict.
func (t *Tree) Next(now time.Time) (*Task, time.Time) { panic("not built") }

// Wake has a value when Next may have something new.
func (t *Tree) Wake() <-chan struct{} { panic("not built") }

// Prepare fills the attributes from the inode as it is now. For Content it is called after the snapshot was taken: what
// is written later makes the inode dirty again.
func (t *Tree) Prepare(k *Task) error { panic("not built") }

// Commit records that the task was carried out and verified; info is the new object's (zero for Delete, Move, Purge).
// append must add the records to the journal as one frame, with the caller's own if it has any (cache.Snapshot.Commit);
// nil appends them alone. When append fails nothing changed and the task must still be ended. moved gives, for Move, the
// copies by their source key.
func (t *Tree) Commit(k *Task, info s3.Info, moved map[s3.Key]s3.Info, append func(...journal.Record) error) error {
	panic("not built")
}

// Fail ends a task that did not succeed; it comes again not before retry.
func (t *Tree) Fail(k *Task, err error, retry time.Time) { panic("not built") }

// Ours says that an object was written by this cache directory (by its write-id): then a failed precondition was our
// own earlier, unacknowledged attempt. Adopt tells the tree its ETag so that the task can be tried again.
func (t *Tree) Ours(info s3.Info) bool { panic("not built") }

// Adopt ends a task whose precondition failed because of our own earlier attempt: the object at Key is info.
func (t *Tree) Adopt(k *Task, info s3.Info) { panic("not built") }

// Conflict ends a Put or Copy whose precondition failed because somebody else wrote Key: foreign is what is there now
// (nil: it is gone). The foreign object keeps the name; ours becomes NAME.conflict-WRITER-TIME, which is returned.
func (t *Tree) Conflict(k *Task, foreign *s3.Info) (kept string, err error) { panic("not built") }

// Skip says that the key is not the business of a Move or Purge: a tracked inode decides it.
func (t *Tree) Skip(key s3.Key) bool { panic("not built") }

// Seq numbers the mutations. Urge makes everything that was changed up to now due at once.
func (t *Tree) Seq() uint64 { panic("not built") }
func (t *Tree) Urge()       { panic("not built") }

// UrgeInode makes one inode due at once.
func (t *Tree) UrgeInode(ino inode.Ino) { panic("not built") }

// Pending counts inodes with changes numbered up to seq that the bucket does not hold; of all inodes or, with ino not
// 0, of that one. err is the last failure of one of them.
func (t *Tree) Pending(ino inode.Ino, seq uint64) (n int, err error) { panic("not built") }

// ValidName says that POSIX can name a path component: not empty, not "." or "..", no slash or NUL, at most 255 bytes,
// valid UTF-8.
func ValidName(name string) bool { panic("not built") }
