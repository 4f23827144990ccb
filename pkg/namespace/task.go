package namespace

import (
	"github.com/csi-s3/csi-s3/pkg/inode"
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
	// Delete removes Key, if it holds Source or another object of ours (see Tree.Ours): what others wrote there stays.
	// With Unsure set nobody knows whether there is one of ours, and Source says nothing.
	Delete
	// Move copies every object below SrcPrefix that Skip does not name to DstPrefix, checks the copies, and is then done:
	// Commit switches the directory over and a Purge of the source follows.
	Move
	// Purge removes what is below SrcPrefix and Skip does not name. After a Move (DstPrefix set) an object is removed only
	// when DstPrefix has its copy; otherwise it is copied first, or stays where Skip names its destination. Without DstPrefix
	// only keys that no POSIX name can reach (see ValidName) are removed, others stay.
	Purge
	// Spill stores a part of the cached file, of the executor's choice, in an object of its own.
	Spill
)

// Answer is what has named an object's ETag.
type Answer int

// Answers.
const (
	Looked   Answer = iota // a look at the object
	ToPut                  // the answer to the PUT that made it
	ToUpload               // the answer to the completion of an upload
)

// Task is one unit of work for the bucket. Tasks that Next has handed out never touch the same key.
type Task struct {
	Verb                 Verb
	Ino                  inode.Ino
	Key                  s3.Key
	Cond                 s3.Condition  // for Put, Copy and Spill
	Attr                 s3.Attributes // for Put, Copy and Spill, filled by Prepare
	Content              bool          // Put: body is the cached file
	Unsure               bool          // Delete
	Number               uint64        // Spill: of the part
	At                   int64         // Spill: where in the file the part begins, to be set before Commit
	Early                bool          // Spill: of the end of a file that grows, although there is room
	Body                 []byte        // Put without Content: symlink target, or nothing
	Source               Source        // Copy: from where. Put: the object behind missing ranges; Key "" when there is none. Delete: what to remove
	SrcPrefix, DstPrefix s3.Key
	Told                 Answer // Put and Copy: what names the ETag of the new object, to be set before Commit
	Attempts             int    // failures so far
	LastErr              error  // the last one

	n       *node
	again   bool   // Copy: of what was sent to another name, attributes and all, though the file was changed since
	contGen uint64 // the state of the bytes and attributes that the object will have
	metaGen uint64
}
