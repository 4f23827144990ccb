package journal

import (
	"errors"

	"github.com/csi-s3/csi-s3/pkg/disk"
)

// Kind says who replays a record. The high nibble is the owner (see the constants of each owner's package).
type Kind uint8

// Owners of record kinds: a kind k belongs to k & 0xf0.
const (
	OwnerCache     Kind = 0x10
	OwnerNamespace Kind = 0x20
	OwnerWriteback Kind = 0x30
)

// Record is one entry. Data is opaque to the journal, at most MaxRecord bytes.
type Record struct {
	Kind Kind
	Data []byte
}

// MaxRecord is the largest Data of one Record, in bytes.
const MaxRecord = 1 << 20

// ErrCorrupt: a frame before the last valid one is damaged. The journal refuses to open: nothing is guessed.
var ErrCorrupt = errors.New("journal is corrupt")

// Options configure Open. The zero value works.
type Options struct {
	// CheckpointBytes is how many bytes of records after a checkpoint make NeedsCheckpoint true. 0 means 16 MiB.
	CheckpointBytes int64
}

// Journal is safe for concurrent use.
type Journal struct{}

// Open opens or creates the journal in dir of fs and replays it: replay is called for every record of every complete
// frame, in order, from the newest checkpoint on, one call per frame (a frame is atomic: all of its records or
// none). A torn tail, left by a crash during Append, is cut off. An error of replay is returned as it is.
func Open(fs disk.FS, dir string, opt Options, replay func(frame []Record) error) (*Journal, error) {
	panic("not built")
}

// Append adds the records as one atomic frame. On return they are in the page cache: they survive a kill of the
// process and not a power cut. After an error the journal is poisoned: every later Append and Sync returns it,
// because what lies on disk behind the failed frame is unknown.
func (j *Journal) Append(recs ...Record) error { panic("not built") }

// Sync makes every Append that returned before the call durable. Concurrent calls share one fdatasync.
func (j *Journal) Sync() error { panic("not built") }

// NeedsCheckpoint says that enough was appended since the last checkpoint.
func (j *Journal) NeedsCheckpoint() bool { panic("not built") }

// Checkpoint replaces the journal's history by a dump of the present state. dump is called with an emit function
// for records; no Append runs meanwhile (they wait), so the dump is consistent if dump takes no lock that is held
// across Append. On return the new journal is durable and the old one is gone; after an error the old one is in use.
func (j *Journal) Checkpoint(dump func(emit func(...Record) error) error) error { panic("not built") }

// Size is the length of the live journal in bytes.
func (j *Journal) Size() int64 { panic("not built") }

// Close syncs and closes. The journal may not be used afterwards.
func (j *Journal) Close() error { panic("not built") }
