package cache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// Snapshot is a frozen image of a file. Safe for concurrent use. Its state is guarded by the file's mutex.
type Snapshot struct {
	f          *File
	size, base int64
	mtime      time.Time
	dirty      extent.Set // ranges that differ from the remote object
	local      extent.Set // bytes that are still in the data file
	saved      extent.Set // bytes that were copied to the side file
	spilled    spills     // what is missing of these ranges is in objects of their own
	side       disk.File  // nil until something is saved
	over       extent.Set // ranges of the file that were overwritten since
	smallest   int64      // of the file's sizes since
	since      time.Time  // of the first change since; zero: none

	// over as of the last barrier since, and of the mark whose barrier is outstanding; nil: none.
	durable, marked *extent.Set

	committed, released bool
}

// Snapshot freezes the file's present content for an upload. Later writes do not show in it. There is at most one per
// file: a second call waits for the first snapshot's Release. ErrPoisoned or ErrRemoved when there is nothing to trust.
func (f *File) Snapshot() (*Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.snap != nil {
		f.free.Wait()
	}
	if err := f.usable(); err != nil {
		return nil, err
	}
	s := &Snapshot{
		f: f, size: f.size, base: f.base, mtime: f.mtime, smallest: f.size,
		dirty: f.dirty.Clone(), local: f.dirty.Clone(), spilled: f.spilled.clone(),
	}
	s.local.AddSet(f.clean)
	f.snap = s
	return s, nil
}

// Size is the file's size at the snapshot.
func (s *Snapshot) Size() int64 { return s.size }

// Mtime is the mtime of the newest change in the snapshot, zero when it is clean.
func (s *Snapshot) Mtime() time.Time { return s.mtime }

// Dirty returns the ranges that differ from the remote object: dirty bytes, spills, and holes made here.
func (s *Snapshot) Dirty() extent.Set {
	d := s.dirty.Clone()
	d.AddSet(s.spilled.all)
	d.Add(s.base, s.size)
	return d
}

// Missing returns the ranges of [off, end) that must be fetched (File.Fill) before ReadAt can serve them.
func (s *Snapshot) Missing(off, end int64) []extent.Range {
	s.f.mu.RLock()
	defer s.f.mu.RUnlock()
	return s.missing(off, end)
}

func (s *Snapshot) missing(off, end int64) []extent.Range {
	return missing(off, end, s.base, &s.spilled, &s.local, &s.saved)
}

// ReadAt implements io.ReaderAt over the frozen content. ErrMissing in a missing range; fs.ErrClosed after Release;
// ErrDamaged, see File.ReadAt.
func (s *Snapshot) ReadAt(p []byte, off int64) (int, error) {
	for {
		n, err := s.readAt(p, off)
		if err == nil || !s.f.mend(err) {
			return n, err
		}
	}
}

func (s *Snapshot) readAt(p []byte, off int64) (int, error) {
	s.f.mu.RLock()
	defer s.f.mu.RUnlock()
	if s.released {
		return 0, fs.ErrClosed
	}
	end := min(off+int64(len(p)), s.size)
	for pos := off; pos < end; {
		to, from := s.stretch(pos, end)
		q := p[pos-off : to-off]
		var err error
		switch from {
		case fromData:
			err = s.f.load(q, pos, true)
		case fromSide:
			if n, e := s.side.ReadAt(q, pos); n < len(q) {
				err = fmt.Errorf("snapshot of cache file %x at %d: %w", uint64(s.f.id), pos, e)
			}
		case fromNowhere:
			err = ErrMissing
		case zeros:
			clear(q)
		}
		if err != nil {
			return int(pos - off), err
		}
		pos = to
	}
	if n := int(max(0, end-off)); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

// Where the bytes of a stretch of a snapshot are.
const (
	fromData = iota
	fromSide
	fromNowhere
	zeros
)

func (s *Snapshot) stretch(pos, end int64) (to int64, from int) {
	if to = s.saved.NextGap(pos); to > pos {
		return min(to, end), fromSide
	}
	if to = s.local.NextGap(pos); to > pos {
		to, from = min(to, end), fromData
	} else {
		to, from = end, zeros
		if pos < s.base {
			to, from = min(end, s.base), fromNowhere
		} else if apart := s.spilled.all.NextGap(pos); apart > pos {
			to, from = min(end, apart), fromNowhere
		} else if next, ok := s.spilled.all.Next(pos); ok {
			to = min(end, next)
		}
		if next, ok := s.local.Next(pos); ok {
			to = min(to, next)
		}
	}
	if next, ok := s.saved.Next(pos); ok {
		to = min(to, next)
	}
	return to, from
}

// keep copies the snapshot's bytes in [off, end) out of the data file before they are overwritten. The caller holds the
// file's mutex.
func (s *Snapshot) keep(h disk.File, off, end int64) error {
	const chunk = 1 << 20
	for _, r := range s.local.Intersect(off, end) {
		for r.Off < r.End {
			p := make([]byte, min(chunk, r.Len()))
			if n, err := h.ReadAt(p, r.Off); n < len(p) {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("cache file %x at %d: %w", uint64(s.f.id), r.Off, err)
			}
			if err := s.f.check(h, p, r.Off, true); err != nil {
				return err
			}
			if err := s.save(p, r.Off); err != nil {
				return err
			}
			r.Off += int64(len(p))
		}
	}
	s.local.Remove(off, end)
	s.over.Add(off, end)
	return nil
}

// save stores bytes of the snapshot in its side file.
func (s *Snapshot) save(p []byte, off int64) error {
	if s.side == nil {
		side, err := s.f.store.fs.OpenFile(s.f.id.path(snapDir), true)
		if err != nil {
			return fmt.Errorf("snapshot of cache file %x: %w", uint64(s.f.id), err)
		}
		s.side = side
	}
	if _, err := s.side.WriteAt(p, off); err != nil {
		return fmt.Errorf("snapshot of cache file %x at %d: %w", uint64(s.f.id), off, err)
	}
	s.saved.Add(off, off+int64(len(p)))
	return nil
}

// ahead says that a barrier has to note which dirty ranges are newer than the snapshot: after Commit those alone are
// covered by it. s may be nil.
func (s *Snapshot) ahead() bool {
	return s != nil && !s.committed && s.over.Len() > 0 && (s.durable == nil || !s.durable.Equal(s.over))
}

// Commit records that the remote object now equals the snapshot: its dirty ranges that were not changed since become
// clean. with is appended in the same journal frame. After an error nothing changed. A file that was removed meanwhile
// only appends with.
func (s *Snapshot) Commit(with ...journal.Record) error {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.released || s.committed {
		return fs.ErrClosed
	}
	if f.removed {
		return f.store.j.Append(with...)
	}
	if err := f.poisoned(); err != nil {
		return err
	}
	base := min(s.size, s.smallest)
	left := intersect(f.dirty, s.over)
	var next *image
	if !s.since.IsZero() {
		next = &image{point: point{base: base, size: f.size, mtime: f.mtime, since: s.since, dirty: left.Clone()}}
	}
	f.imageMu.Lock()
	old := f.image
	if old != nil && next != nil {
		// What a barrier covered before the snapshot is older than the remote object. What it covered since counts.
		next.durable = committedPoint(old.durable, s.durable, base)
		next.marked = committedPoint(old.marked, s.marked, base)
		next.mark = old.mark
	}
	recs := slices.Clone(with)
	switch {
	case next != nil:
		recs = append(recs, next.records(f.id)...)
	case old != nil:
		recs = append(recs, forgetRecord(f.id))
	}
	f.image = next
	f.imageMu.Unlock()
	if err := f.store.j.Append(recs...); err != nil {
		f.imageMu.Lock()
		f.image = old
		f.imageMu.Unlock()
		return err
	}
	s.committed = true
	f.records++ // no barrier covers what is left
	f.generation++
	f.dropped = f.store.drops.Add(1)
	f.base = base
	f.spilled = spills{}
	kept := f.dirty.Clone()
	kept.RemoveSet(left)
	f.clean.AddSet(kept)
	f.dirty = left
	f.since = s.since
	if next == nil {
		f.mtime = time.Time{}
	}
	f.account()
	return nil
}

// committedPoint is what is left of a point of the journal when the snapshot became the remote object: over is what was
// overwritten between the snapshot and the point, nil for a point before the snapshot.
func committedPoint(p *point, over *extent.Set, base int64) *point {
	if p == nil || over == nil {
		return nil
	}
	return &point{base: min(base, p.size), size: p.size, mtime: p.mtime, since: p.since, dirty: intersect(p.dirty, *over)}
}

func intersect(a, b extent.Set) extent.Set {
	var both extent.Set
	for _, r := range b.Ranges() {
		for _, x := range a.Intersect(r.Off, r.End) {
			both.Add(x.Off, x.End)
		}
	}
	return both
}

// Release ends the snapshot. Commit comes before it or not at all. Safe to call twice.
func (s *Snapshot) Release() {
	f := s.f
	f.mu.Lock()
	if s.released {
		f.mu.Unlock()
		return
	}
	s.released = true
	f.snap = nil
	f.account()
	removed := f.removed
	f.free.Broadcast()
	side := s.side
	f.mu.Unlock()
	if side != nil {
		// A side file that stays is thrown away at the next start.
		_ = side.Close()
		_ = f.store.fs.Remove(f.id.path(snapDir))
	}
	if removed {
		// Reap tries again.
		_ = f.store.bury(f)
	}
}
