package cache

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/csi-s3/csi-s3/pkg/extent"
)

// File is the bytes of one inode. All methods are safe for concurrent use. Offsets and sizes are bytes.
type File struct {
	store *Store
	id    ID

	used    atomic.Int64          // Store.clock at the last use
	failure atomic.Pointer[error] // the disk's error
	handle  *handle               // guarded by handles.mu

	syncMu sync.Mutex // one Sync at a time

	mu         sync.RWMutex
	free       sync.Cond // snap became nil
	size, base int64
	mtime      time.Time // of the newest change since the file was clean
	since      time.Time // zero: clean
	dirty      extent.Set
	clean      extent.Set
	trash      extent.Set // bytes on the disk that nothing needs
	sums       sums       // of dirty and clean bytes
	spilled    spills     // what is missing of these ranges is in objects of their own
	generation uint64
	snap       *Snapshot
	removed    bool
	counted    usage  // what the store's space holds of this file
	dropped    uint64 // number of the last record that made bytes of this file needless

	// Sync's view: changes counts all changes, records those that were journaled; the others are what Sync has covered.
	changes, records         uint64
	syncedChange, syncedNote uint64
	marks                    uint64
	named                    bool   // the data file's name is durable
	evictions                uint64 // how often the data file was removed

	imageMu sync.Mutex // leaf; image is changed under mu too
	image   *image     // nil: clean, not in the journal
}

func newFile(s *Store, id ID) *File {
	f := &File{store: s, id: id, sums: sums{}}
	f.free.L = &f.mu
	f.used.Store(s.clock.Add(1))
	return f
}

// poison records that the disk failed the file; nil is no failure.
func (f *File) poison(err error) {
	if err != nil {
		err = fmt.Errorf("cache file %x: %w: %w", uint64(f.id), ErrPoisoned, err)
		f.failure.CompareAndSwap(nil, &err)
	}
}

func (f *File) poisoned() error {
	if p := f.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// usable is the first check of every change. The caller holds mu.
func (f *File) usable() error {
	if f.removed {
		return ErrRemoved
	}
	return f.poisoned()
}

// account tells the store what the file takes up now. The caller holds mu.
func (f *File) account() {
	now := usage{dirty: f.dirty.Len(), clean: f.clean.Len(), trash: f.trash.Len()}
	if f.snap != nil {
		now.saved = f.snap.saved.Len()
	}
	if !f.since.IsZero() {
		now.dirtyFiles = 1
	}
	f.store.space.add(usage{
		dirty: now.dirty - f.counted.dirty, clean: now.clean - f.counted.clean, trash: now.trash - f.counted.trash,
		saved: now.saved - f.counted.saved, dirtyFiles: now.dirtyFiles - f.counted.dirtyFiles,
	})
	f.counted = now
}

// Size is the logical size.
func (f *File) Size() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.size
}

// Allocated is how many bytes are held locally or remotely and not a hole, for st_blocks.
func (f *File) Allocated() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	stored := f.stored()
	n := f.base
	for _, r := range stored.Intersect(f.base, f.size) {
		n += r.Len()
	}
	return n
}

// ReadAt reads from off up to the end of the file or of p. It stops at the first byte that is not here: then missing is
// the missing range that starts at off+n (cut to what p asks for) and err is nil. At the end of the file n < len(p),
// missing is empty and err is nil. Bytes that the disk has changed, as far as they have sums, are missing if they are clean,
// and else ErrDamaged.
func (f *File) ReadAt(p []byte, off int64) (n int, missing extent.Range, err error) {
	f.used.Store(f.store.clock.Add(1))
	for {
		n, missing, err = f.readAt(p, off)
		if err == nil || !f.mend(err) {
			return n, missing, err
		}
	}
}

func (f *File) readAt(p []byte, off int64) (n int, missing extent.Range, err error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.removed {
		return 0, extent.Range{}, ErrRemoved
	}
	end := min(off+int64(len(p)), f.size)
	for pos := off; pos < end; {
		to, kind := f.stretch(pos, end)
		q := p[pos-off : to-off]
		switch kind {
		case local:
			if err := f.load(q, pos, false); err != nil {
				return int(pos - off), extent.Range{}, err
			}
		case hole:
			clear(q)
		case missingRemote:
			return int(pos - off), extent.Range{Off: pos, End: to}, nil
		}
		pos = to
	}
	return int(max(0, end-off)), extent.Range{}, nil
}

// What a stretch of a file is.
const (
	local = iota
	hole
	missingRemote
)

// stretch says what the byte at pos is and up to where, at most end, all bytes are so. The caller holds mu.
func (f *File) stretch(pos, end int64) (to int64, kind int) {
	if to = f.dirty.NextGap(pos); to > pos {
		return min(to, end), local
	}
	if to = f.clean.NextGap(pos); to > pos {
		return min(to, end), local
	}
	to, kind = end, hole
	if pos < f.base {
		to, kind = min(end, f.base), missingRemote
	} else if apart := f.spilled.all.NextGap(pos); apart > pos {
		to, kind = min(end, apart), missingRemote
	} else if next, ok := f.spilled.all.Next(pos); ok {
		to = min(end, next)
	}
	for _, s := range []*extent.Set{&f.dirty, &f.clean} {
		if next, ok := s.Next(pos); ok {
			to = min(to, next)
		}
	}
	return to, kind
}

// load reads bytes that are in the data file, and checks them, see check. The caller holds mu.
func (f *File) load(p []byte, off int64, strict bool) error {
	h, err := f.store.handles.get(f, false)
	if err != nil {
		return fmt.Errorf("cache file %x: %w", uint64(f.id), err)
	}
	defer f.store.handles.put(h)
	if n, err := h.ReadAt(p, off); n < len(p) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("cache file %x at %d: %w", uint64(f.id), off, err)
	}
	return f.check(h, p, off, strict)
}

// Missing returns the ranges of [off, end), cut to the file, that must be fetched before they can be read.
func (f *File) Missing(off, end int64) []extent.Range {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.missing(off, end)
}

func (f *File) missing(off, end int64) []extent.Range {
	return missing(off, end, f.base, &f.spilled, &f.dirty, &f.clean)
}

// stored is what has bytes although the object behind the file may not. The caller holds mu.
func (f *File) stored() extent.Set {
	s := f.dirty
	if f.spilled.all.Len() > 0 {
		s = f.dirty.Clone()
		s.AddSet(f.spilled.all)
	}
	return s
}

// Generation changes whenever the remote object behind missing ranges changes (Commit). A fetch reads it before its
// GET and hands it to Fill.
func (f *File) Generation() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.generation
}

// Fill stores bytes of the remote object in those parts of [off, off+len(p)) that are still missing, in the file or in
// its snapshot. It does nothing when generation is not the present one or the file was removed. The bytes are clean:
// they may be evicted at any time. ErrNoSpace when they do not fit.
func (f *File) Fill(p []byte, off int64, generation uint64) error {
	if err := f.store.reserve(int64(len(p))); err != nil {
		return err
	}
	defer f.store.release(int64(len(p)))
	f.used.Store(f.store.clock.Add(1))
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.removed || f.generation != generation {
		return nil
	}
	defer f.account()
	end := off + int64(len(p))
	if parts := f.missing(off, end); len(parts) > 0 {
		h, err := f.store.handles.get(f, true)
		if err != nil {
			return fmt.Errorf("cache file %x: %w", uint64(f.id), err)
		}
		defer f.store.handles.put(h)
		for _, r := range parts {
			q := p[r.Off-off : r.End-off]
			if _, err := h.WriteAt(q, r.Off); err != nil {
				return fmt.Errorf("cache file %x at %d: %w", uint64(f.id), r.Off, err)
			}
			f.sums.note(q, r.Off)
			f.clean.Add(r.Off, r.End)
			f.trash.Remove(r.Off, r.End)
			if f.snap != nil {
				f.snap.local.Add(r.Off, r.End)
			}
		}
	}
	if s := f.snap; s != nil && !s.committed {
		for _, r := range s.missing(off, end) {
			if err := s.save(p[r.Off-off:r.End-off], r.Off); err != nil {
				return err
			}
		}
	}
	return nil
}

// SeekData finds the next data (hole false) or hole (hole true) at or after off, as lseek(2) SEEK_DATA and SEEK_HOLE.
// ok is false when there is none (ENXIO). The end of the file is a hole.
func (f *File) SeekData(off int64, hole bool) (pos int64, ok bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if off >= f.size {
		return 0, false
	}
	stored := f.stored()
	if !hole {
		if off < f.base {
			return off, true
		}
		return stored.Next(off)
	}
	for pos = off; ; {
		next := max(pos, min(f.base, f.size))
		next = stored.NextGap(next)
		if next == pos || next >= f.size {
			return min(next, f.size), true
		}
		pos = next
	}
}

// Dirty describes the file's dirt; Since is zero when it is clean.
func (f *File) Dirty() Dirty {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return Dirty{ID: f.id, Size: f.size, Mtime: f.mtime, Bytes: f.dirty.Len(), Since: f.since}
}
