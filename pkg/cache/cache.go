package cache

import (
	"errors"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// ID names a file in the store. It is the inode number.
type ID uint64

// ErrNoSpace: the store is at its hard limit and nothing clean is left to evict, or the disk is full.
// It is disk.ErrNoSpace, so errors.Is works with either.
var ErrNoSpace = disk.ErrNoSpace

// ErrMissing: a snapshot was read in a range that is not on the local disk. Fetch it first.
var ErrMissing = errors.New("range is not in the cache")

// ErrPoisoned: an earlier write of the file failed half-way, so its content is unknown; it takes no more writes and
// is never uploaded. Wraps the first error.
var ErrPoisoned = errors.New("file is damaged by an earlier write error")

// Options of a Store. The zero value works.
type Options struct {
	Capacity int64            // bytes the store may use on disk; 0: what the file system has, less a reserve
	Now      func() time.Time // nil: time.Now
}

// Store holds the files of one volume.
type Store struct{}

// New makes a store on fs (directory "data" and others below it). Replay, then Recover, then use.
func New(fs disk.FS, opt Options) *Store { panic("not built") }

// Replay takes one record of the cache's kinds while the journal opens.
func (s *Store) Replay(rec journal.Record) error { panic("not built") }

// Dirty describes a file that holds bytes which no remote object has.
type Dirty struct {
	ID    ID
	Size  int64
	Mtime time.Time
	Bytes int64
	Since time.Time // first change since it was last clean; zero when it is clean
}

// Recovery is what Recover found.
type Recovery struct {
	Dirty []Dirty // files whose changes survived; each must be uploaded
	// Lost are files whose content no barrier ever covered, found after a power cut: their bytes are unknown. Their
	// data files were moved to the directory "quarantine" and are never uploaded.
	Lost []ID
}

// Recover makes the store usable after all records were replayed. powerCut says that the node went down since the
// journal was written (its boot ID changed): then only what barriers cover is trusted, see doc.go. Data files that no
// record names are removed. j takes the store's records from here on.
func (s *Store) Recover(j *journal.Journal, powerCut bool) (Recovery, error) { panic("not built") }

// Dump emits records that rebuild the present state, for a checkpoint of the journal. No lock that it takes is ever
// held across an Append.
func (s *Store) Dump(emit func(...journal.Record) error) error { panic("not built") }

// File returns the file, making it when it is unknown: with size baseSize, all of it backed by the remote object and
// missing here. For a new empty file baseSize is 0.
func (s *Store) File(id ID, baseSize int64) *File { panic("not built") }

// Lookup returns the file if the store knows it, else nil.
func (s *Store) Lookup(id ID) *File { panic("not built") }

// Remove forgets the file with all its bytes, dirty or not, journaled. The data file goes away when the last user of
// the File and its snapshot are done. Unknown IDs are success.
func (s *Store) Remove(id ID) error { panic("not built") }

// RemoveRecord is the record that Remove appends, for a caller that must make it one frame with its own records and
// then calls Removed.
func RemoveRecord(id ID) journal.Record { panic("not built") }

// Removed drops the file like Remove, after the caller journaled RemoveRecord.
func (s *Store) Removed(id ID) { panic("not built") }

// Usage of the store, in bytes.
type Usage struct {
	Capacity, Dirty, Clean, Free int64
	Files, DirtyFiles            int
}

// Usage is O(1).
func (s *Store) Usage() Usage { panic("not built") }

// Evict drops clean bytes, least recently used files first, until n bytes were freed or none are left. It returns the
// bytes freed. Dirty bytes and files with a snapshot are never touched.
func (s *Store) Evict(n int64) int64 { panic("not built") }

// DirtyFiles lists all dirty files.
func (s *Store) DirtyFiles() []Dirty { panic("not built") }

// Close closes all data files.
func (s *Store) Close() error { panic("not built") }

// File is the bytes of one inode. All methods are safe for concurrent use. Offsets and sizes are bytes.
type File struct{}

// Size is the logical size.
func (f *File) Size() int64 { panic("not built") }

// Allocated is how many bytes are held locally or remotely and not a hole, for st_blocks.
func (f *File) Allocated() int64 { panic("not built") }

// ReadAt reads from off up to the end of the file or of p. It stops at the first byte that is not here: then missing is
// the missing range that starts at off+n (cut to what p asks for) and err is nil. At the end of the file n < len(p),
// missing is empty and err is nil.
func (f *File) ReadAt(p []byte, off int64) (n int, missing extent.Range, err error) {
	panic("not built")
}

// Missing returns the ranges of [off, end), cut to the file, that must be fetched before they can be read.
func (f *File) Missing(off, end int64) []extent.Range { panic("not built") }

// Generation changes whenever the remote object behind missing ranges changes (Commit, Truncate to a smaller size).
// A fetch reads it before its GET and hands it to Fill.
func (f *File) Generation() uint64 { panic("not built") }

// Fill stores bytes of the remote object in those parts of [off, off+len(p)) that are still missing. It does nothing
// when generation is not the present one. The bytes are clean: they may be evicted at any time.
func (f *File) Fill(p []byte, off int64, generation uint64) error { panic("not built") }

// WriteAt writes p at off and grows the file as needed. On return bytes, dirty range and size survive a kill of the
// process. ErrNoSpace leaves the file as it was. mtime is kept with the change for recovery.
func (f *File) WriteAt(p []byte, off int64, mtime time.Time) error { panic("not built") }

// Truncate sets the size. Growing makes a hole.
func (f *File) Truncate(size int64, mtime time.Time) error { panic("not built") }

// PunchHole makes [off, end) read as zeros; the part beyond the end of the file is ignored.
func (f *File) PunchHole(off, end int64, mtime time.Time) error { panic("not built") }

// SeekData finds the next data (hole false) or hole (hole true) at or after off, as lseek(2) SEEK_DATA and SEEK_HOLE.
// ok is false when there is none (ENXIO). The end of the file is a hole.
func (f *File) SeekData(off int64, hole bool) (pos int64, ok bool) { panic("not built") }

// Sync is a barrier: on return every change that returned before the call survives a power cut.
// A range that was already durably dirty costs only the data's fdatasync.
func (f *File) Sync() error { panic("not built") }

// Dirty describes the file's dirt; Since is zero when it is clean.
func (f *File) Dirty() Dirty { panic("not built") }

// Snapshot freezes the file's present content for an upload. Later writes do not show in it. There is at most one per
// file: a second call waits for the first snapshot's Release.
func (f *File) Snapshot() (*Snapshot, error) { panic("not built") }

// Snapshot is a frozen image of a file. Safe for concurrent use.
type Snapshot struct{}

// Size is the file's size at the snapshot.
func (s *Snapshot) Size() int64 { panic("not built") }

// Mtime is the mtime of the newest change in the snapshot, zero when it is clean.
func (s *Snapshot) Mtime() time.Time { panic("not built") }

// Dirty returns the ranges that differ from the remote object: dirty bytes and holes made here.
func (s *Snapshot) Dirty() extent.Set { panic("not built") }

// Missing returns the ranges of [off, end) that must be fetched (File.Fill) before ReadAt can serve them.
func (s *Snapshot) Missing(off, end int64) []extent.Range { panic("not built") }

// ReadAt implements io.ReaderAt over the frozen content. ErrMissing in a missing range.
func (s *Snapshot) ReadAt(p []byte, off int64) (int, error) { panic("not built") }

// Commit records that the remote object now equals the snapshot: its dirty ranges that were not changed since become
// clean. with is appended in the same journal frame. After an error nothing changed.
func (s *Snapshot) Commit(with ...journal.Record) error { panic("not built") }

// Release ends the snapshot. Commit comes before it or not at all. Safe to call twice.
func (s *Snapshot) Release() { panic("not built") }
