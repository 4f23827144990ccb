package cache

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// ID names a file in the store. It is the inode number.
type ID uint64

// ErrNoSpace: the store is at its hard limit and nothing clean is left to evict, or the disk is full.
// It is disk.ErrNoSpace, so errors.Is works with either.
var ErrNoSpace = disk.ErrNoSpace

// ErrFull: the store is at its hard limit and nothing clean is left to evict. It is an ErrNoSpace of which nothing has
// happened yet, and which goes away when dirty files become clean.
var ErrFull = fmt.Errorf("the cache is full: %w", ErrNoSpace)

// ErrMissing: a snapshot was read in a range that is not on the local disk. Fetch it first.
var ErrMissing = errors.New("range is not in the cache")

// ErrPoisoned: the disk failed to make an earlier write of the file durable, so what it holds is unknown; the file takes
// no more writes and is never uploaded. Wrapped together with the disk's error.
var ErrPoisoned = errors.New("file is damaged by an earlier write error")

// ErrRemoved: the file was removed from the store.
var ErrRemoved = errors.New("file was removed from the cache")

// Options of a Store. The zero value works.
type Options struct {
	Capacity int64            // bytes the store may use on disk; 0: what the file system has, less a reserve
	Budget   *Budget          // the space that it shares with others, until Close; nil: it has Capacity alone
	Now      func() time.Time // nil: time.Now
	// Damaged hears of bytes that the disk has changed. If they were clean they will be fetched again; if dirty, they are
	// lost, and the file is ErrPoisoned. It is called without locks.
	Damaged func(id ID, off, end int64, dirty bool)
}

// Directories of a store. See doc.go.
const (
	dataDir       = "data"
	snapDir       = "snap"
	quarantineDir = "quarantine"
)

// Store holds the files of one volume.
type Store struct {
	fs      disk.FS
	opt     Options
	j       *journal.Journal
	space   space
	handles handles
	blocks  sync.Pool // of *[block]byte

	clock atomic.Int64  // of uses, for the order of eviction
	drops atomic.Uint64 // number of the last record that made bytes needless
	safe  atomic.Uint64 // all drops up to this one are durable

	mu       sync.Mutex
	replayed images
	files    map[ID]*File
	ragged   map[*File]struct{} // files with trash
	dead     map[ID]*File       // removed files whose data file is still there
	shards   map[string]bool    // directories of data whose names are durable
}

// New makes a store on fs (directory "data" and others below it). Replay, then Recover, then use.
func New(fs disk.FS, opt Options) *Store {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	s := &Store{
		fs: fs, opt: opt, replayed: images{}, files: map[ID]*File{}, ragged: map[*File]struct{}{}, dead: map[ID]*File{},
		shards: map[string]bool{}, blocks: sync.Pool{New: func() any { return new([block]byte) }},
	}
	b := opt.Budget
	if b == nil {
		b = &Budget{Capacity: opt.Capacity, own: true}
	}
	s.space.join(b, s)
	s.handles.init(fs)
	return s
}

// Replay takes one record of the cache's kinds while the journal opens. A record that this package did not write is a
// journal.ErrCorrupt.
func (s *Store) Replay(rec journal.Record) error { return s.replayed.replay(rec) }

// Dump emits records that rebuild the present state, for a checkpoint of the journal. No lock that it takes is ever
// held across an Append.
func (s *Store) Dump(emit func(...journal.Record) error) error {
	s.mu.Lock()
	files := make([]*File, 0, len(s.files))
	for _, f := range s.files {
		files = append(files, f)
	}
	s.mu.Unlock()
	for _, f := range files {
		f.imageMu.Lock()
		var recs []journal.Record
		if f.image != nil {
			recs = f.image.records(f.id)
		}
		f.imageMu.Unlock()
		if len(recs) == 0 {
			continue
		}
		if err := emit(recs...); err != nil {
			return err
		}
	}
	return nil
}

// File returns the file, making it when it is unknown: with size baseSize, all of it backed by the remote object and
// missing here. For a new empty file baseSize is 0. The ID of a removed file may not be used again.
func (s *Store) File(id ID, baseSize int64) *File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[id]; f != nil {
		return f
	}
	f := newFile(s, id)
	f.size, f.base = baseSize, baseSize
	s.files[id] = f
	return f
}

// Lookup returns the file if the store knows it, else nil.
func (s *Store) Lookup(id ID) *File {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[id]
}

// Remove forgets the file with all its bytes, dirty or not, journaled. The data file goes away when its snapshot is
// released and the record is durable. What still uses the File gets ErrRemoved. Unknown IDs are success.
func (s *Store) Remove(id ID) error {
	s.mu.Lock()
	f := s.files[id]
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	f.mu.Lock()
	if f.removed {
		f.mu.Unlock()
		return nil
	}
	if f.image != nil {
		f.imageMu.Lock()
		f.image = nil
		f.imageMu.Unlock()
		if err := s.j.Append(forgetRecord(id)); err != nil {
			f.mu.Unlock()
			return err
		}
		f.dropped = s.drops.Add(1)
	}
	f.removed = true
	f.trash.AddSet(f.dirty)
	f.trash.AddSet(f.clean)
	f.dirty.Clear()
	f.clean.Clear()
	clear(f.sums)
	f.since = time.Time{}
	f.account()
	busy := f.snap != nil
	f.mu.Unlock()

	s.mu.Lock()
	delete(s.files, id)
	delete(s.ragged, f)
	s.dead[id] = f
	s.mu.Unlock()
	if busy {
		return nil
	}
	return s.bury(f)
}

// Usage of the store, in bytes. Capacity is how many may be such that they cannot be evicted: with a Budget it depends on
// what others have. Free is what may still be added before something must be evicted.
type Usage struct {
	Capacity, Dirty, Clean, Free int64
	Files, DirtyFiles            int
}

// Usage is O(1).
func (s *Store) Usage() Usage {
	s.mu.Lock()
	files := len(s.files)
	s.mu.Unlock()
	u, limit, free := s.space.get()
	return Usage{
		Capacity: limit, Dirty: u.dirty, Clean: u.clean, Free: free,
		Files: files, DirtyFiles: u.dirtyFiles,
	}
}

// Dirty describes a file that holds bytes which no remote object has.
type Dirty struct {
	ID    ID
	Size  int64
	Mtime time.Time
	Bytes int64
	Since time.Time // first change since it was last clean; zero when it is clean
}

// DirtyFiles lists all dirty files.
func (s *Store) DirtyFiles() []Dirty {
	var dirty []Dirty
	for _, f := range s.all() {
		if d := f.Dirty(); !d.Since.IsZero() {
			dirty = append(dirty, d)
		}
	}
	return dirty
}

func (s *Store) all() []*File {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := make([]*File, 0, len(s.files))
	for _, f := range s.files {
		files = append(files, f)
	}
	return files
}

// Close closes all data files. Nothing is made durable by it.
func (s *Store) Close() error {
	s.space.leave()
	return s.handles.close()
}

func forgetRecord(id ID) journal.Record {
	rec := numberRecord(kindForget, id, 0)
	rec.Data = rec.Data[:len(rec.Data)-1]
	return rec
}

// path of the file id below one of the store's directories.
func (id ID) path(dir string) string {
	if dir == dataDir {
		return fmt.Sprintf("%s/%02x/%x", dir, byte(id), uint64(id))
	}
	return fmt.Sprintf("%s/%x", dir, uint64(id))
}

func (id ID) shard() string { return fmt.Sprintf("%s/%02x", dataDir, byte(id)) }
