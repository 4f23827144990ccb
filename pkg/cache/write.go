package cache

import (
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/extent"
)

// room is what must be left in the journal, in bytes, for a change to begin: most take some tens, and what follows from them
// in the bucket needs some, too.
const room = 256 << 10

// WriteAt writes p at off and grows the file as needed. On return bytes, dirty range and size survive a kill of the
// process. ErrFull: p did not fit, and nothing happened. Any other ErrNoSpace: the disk is full; of the bytes that were
// dirty or clean before, any may have been replaced by p's, and the size is the old one. mtime is kept with the change for
// recovery.
func (f *File) WriteAt(p []byte, off int64, mtime time.Time) error {
	if len(p) == 0 {
		return nil
	}
	return f.overwrite(off, off+int64(len(p)), mtime, true, func(h disk.File) error {
		_, err := h.WriteAt(p, off)
		if err == nil {
			f.sums.note(p, off)
		}
		return err
	})
}

// PunchHole makes [off, end) read as zeros; the part beyond the end of the file is ignored. Durable as WriteAt.
func (f *File) PunchHole(off, end int64, mtime time.Time) error {
	f.mu.RLock()
	end = min(end, f.size)
	f.mu.RUnlock()
	if off >= end {
		return nil
	}
	return f.overwrite(off, end, mtime, false, func(h disk.File) error {
		if err := h.PunchHole(off, end); err != nil {
			return err
		}
		// The bytes are dirty now: the file must have them.
		size, err := h.Size()
		if err == nil && size < end {
			err = h.Truncate(end)
		}
		return err
	})
}

// adds is how many bytes a change of [off, end) adds to the disk: those that a snapshot needs beside the new ones and, if
// the change stores bytes, those that were not here.
func (f *File) adds(off, end int64, stores bool) (n int64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if stores {
		for _, gap := range f.dirty.Gaps(off, end) {
			for _, r := range f.clean.Gaps(gap.Off, gap.End) {
				n += r.Len()
			}
		}
	}
	if f.snap != nil {
		for _, r := range f.snap.local.Intersect(off, end) {
			n += r.Len()
		}
	}
	return n
}

// Fits makes room for a write of [off, end), by evicting clean bytes if need be, and keeps none of it: ErrFull when a
// write that began now would find no room.
func (f *File) Fits(off, end int64) error {
	n := f.adds(off, end, true)
	if err := f.store.reserve(n); err != nil {
		return err
	}
	f.store.release(n)
	return nil
}

// overwrite gives [off, end) new bytes by store; stores says that they take space.
func (f *File) overwrite(off, end int64, mtime time.Time, stores bool, store func(disk.File) error) error {
	for {
		if err := f.tryOverwrite(off, end, mtime, stores, store); err == nil || !f.mend(err) {
			return err
		}
	}
}

// tryOverwrite is overwrite; for the order of the steps see doc.go. With ErrDamaged it has done nothing: bytes that a
// snapshot needs are not what they were.
func (f *File) tryOverwrite(off, end int64, mtime time.Time, stores bool, store func(disk.File) error) error {
	if err := f.store.j.Room(room); err != nil {
		return err
	}
	// What changes between here and the lock is made good by the next one's reservation.
	n := f.adds(off, end, stores)
	if err := f.store.reserve(n); err != nil {
		return err
	}
	defer f.store.release(n)
	f.used.Store(f.store.clock.Add(1))
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.usable(); err != nil {
		return err
	}
	h, err := f.store.handles.get(f, true)
	if err != nil {
		return fmt.Errorf("cache file %x: %w", uint64(f.id), err)
	}
	defer f.store.handles.put(h)
	defer f.account()
	if f.snap != nil {
		if err := f.snap.keep(h, off, end); err != nil {
			return err
		}
	}
	f.changes++
	if parts := f.clean.Intersect(off, end); len(parts) > 0 {
		if err := f.change(f.size, mtime, parts); err != nil {
			return err
		}
	}
	if f.dirty.Overlaps(off, end) {
		// Even if the write fails half-way: what it leaves is not what the snapshot has.
		f.touched()
	}
	f.sums.forget(off, end)
	if err := store(h); err != nil {
		return fmt.Errorf("cache file %x at %d: %w", uint64(f.id), off, err)
	}
	gaps := f.dirty.Gaps(off, end)
	if len(gaps) == 0 && end <= f.size {
		f.mtime = mtime
		return nil
	}
	return f.change(max(f.size, end), mtime, gaps)
}

// touched notes for the snapshot that the file has changed since.
func (f *File) touched() {
	if f.snap != nil && f.snap.since.IsZero() {
		f.snap.since = f.store.opt.Now()
	}
}

// change journals and makes a change of the file's size and dirty ranges. The caller holds mu.
func (f *File) change(size int64, mtime time.Time, add []extent.Range) error {
	since := f.since
	if since.IsZero() {
		since = f.store.opt.Now()
	}
	to := point{base: min(f.base, size), size: size, mtime: mtime, since: since}
	for ; len(add) > maxRanges; add = add[maxRanges:] {
		if err := f.change(f.size, mtime, add[:maxRanges]); err != nil {
			return err
		}
	}
	to.dirty = setOf(add)
	rec := changeRecord(f.id, to)
	// The image comes first: a checkpoint between the two has the change twice, the other way round it would have it
	// not at all.
	f.imageMu.Lock()
	if f.image == nil {
		f.image = &image{point: point{base: f.base, size: f.size}}
	}
	f.image.change(to)
	f.imageMu.Unlock()
	if err := f.store.j.Append(rec); err != nil {
		return err
	}
	f.records++
	f.since, f.mtime = since, mtime
	f.touched()
	if size < f.size {
		f.cut(size)
	}
	f.size = size
	f.spilled.remove(to.dirty)
	for _, r := range add {
		f.dirty.Add(r.Off, r.End)
		f.clean.Remove(r.Off, r.End)
		f.trash.Remove(r.Off, r.End)
	}
	return nil
}

// cut drops what lies beyond a smaller size. The bytes stay on the disk until the record of it is durable.
func (f *File) cut(size int64) {
	for _, s := range []*extent.Set{&f.dirty, &f.clean} {
		for _, r := range s.Intersect(size, f.size) {
			f.trash.Add(r.Off, r.End)
		}
		s.Truncate(size)
	}
	f.sums.forget(size, f.size)
	f.base = min(f.base, size)
	f.spilled.cut(size)
	if f.snap != nil {
		f.snap.smallest = min(f.snap.smallest, size)
	}
	f.dropped = f.store.drops.Add(1)
	f.store.mu.Lock()
	f.store.ragged[f] = struct{}{}
	f.store.mu.Unlock()
}

// Truncate sets the size. Growing makes a hole. Durable as WriteAt.
func (f *File) Truncate(size int64, mtime time.Time) error {
	if err := f.store.j.Room(room); err != nil {
		return err
	}
	f.used.Store(f.store.clock.Add(1))
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.usable(); err != nil {
		return err
	}
	defer f.account()
	f.changes++
	return f.change(size, mtime, nil)
}

// Sync is a barrier: on return every change that returned before the call survives a power cut. A range that was
// already durably dirty costs only the data's fdatasync. After a failure of the disk the file is poisoned.
func (f *File) Sync() error {
	if err := f.store.j.Room(room); err != nil {
		return err
	}
	f.mu.RLock()
	target := f.changes
	f.mu.RUnlock()
	f.syncMu.Lock()
	defer f.syncMu.Unlock()

	f.mu.Lock()
	if err := f.usable(); err != nil || f.syncedChange >= target && f.changes != 0 {
		f.mu.Unlock()
		return err
	}
	change, note := f.changes, f.records
	mark, err := f.setMark()
	var data *handle
	if err == nil && f.dirty.Len() > 0 {
		// Under the lock: once what is dirty now is committed, the data file may be evicted.
		data, err = f.store.handles.get(f, false)
	}
	evictions := f.evictions
	f.mu.Unlock()
	if err != nil {
		return fmt.Errorf("cache file %x: %w", uint64(f.id), err)
	}
	if data != nil {
		err := f.syncData(data, evictions)
		f.store.handles.put(data)
		if err != nil {
			return err
		}
	}
	if mark != 0 {
		if err := f.setBarrier(mark); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.syncedChange, f.syncedNote = change, note
	return nil
}

// setMark notes the point that a barrier is to cover; 0 when the last barrier covers it. The caller holds mu.
func (f *File) setMark() (mark uint64, err error) {
	if f.image == nil || f.records == f.syncedNote && !f.snap.ahead() {
		return 0, nil
	}
	f.marks++
	f.imageMu.Lock()
	f.image.setMark(f.marks)
	f.imageMu.Unlock()
	if f.snap != nil {
		over := f.snap.over.Clone()
		f.snap.marked = &over
	}
	return f.marks, f.store.j.Append(numberRecord(kindMark, f.id, f.marks))
}

// syncData makes the data file and its name durable. evictions is how often the file had been removed when h was taken.
func (f *File) syncData(h *handle, evictions uint64) error {
	if err := h.Sync(); err != nil {
		// The kernel may have dropped the pages: a second attempt that succeeds would prove nothing.
		f.poison(err)
		return f.poisoned()
	}
	f.mu.RLock()
	named := f.named
	f.mu.RUnlock()
	if named {
		return nil
	}
	if err := f.store.nameShard(f.id.shard()); err != nil {
		return err
	}
	f.mu.Lock()
	f.named = f.evictions == evictions
	f.mu.Unlock()
	return nil
}

// nameShard makes the names in a directory of data files durable, and its own.
func (s *Store) nameShard(dir string) error {
	if err := s.fs.SyncDir(dir); err != nil {
		return fmt.Errorf("cache directory: %w", err)
	}
	s.mu.Lock()
	done := s.shards[dir]
	s.mu.Unlock()
	if done {
		return nil
	}
	if err := s.fs.SyncDir(dataDir); err != nil {
		return fmt.Errorf("cache directory: %w", err)
	}
	s.mu.Lock()
	s.shards[dir] = true
	s.mu.Unlock()
	return nil
}

// setBarrier notes that all up to the mark is on the disk, and makes the note durable.
func (f *File) setBarrier(mark uint64) error {
	f.mu.Lock()
	f.imageMu.Lock()
	if f.image != nil {
		f.image.barrier(mark)
	}
	f.imageMu.Unlock()
	if f.snap != nil && f.snap.marked != nil {
		f.snap.durable, f.snap.marked = f.snap.marked, nil
	}
	err := f.store.j.Append(numberRecord(kindBarrier, f.id, mark))
	f.mu.Unlock()
	if err != nil {
		return err
	}
	return f.store.j.Sync()
}
