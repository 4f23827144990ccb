package cache

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// Evict drops clean bytes, least recently used files first, until n bytes were freed or none are left. It returns the
// bytes freed. Dirty bytes and files with a snapshot are never touched.
func (s *Store) Evict(n int64) int64 {
	safe, err := s.settle()
	if err != nil {
		// The journal is dead: no change is possible any more, and every Sync says so.
		return 0
	}
	files := s.all()
	slices.SortFunc(files, func(a, b *File) int { return cmp.Compare(a.used.Load(), b.used.Load()) })
	var freed int64
	for _, f := range files {
		if freed >= n {
			break
		}
		freed += f.evict(n-freed, safe)
	}
	return freed
}

// settle makes all records of needless bytes durable, and returns the number of the last.
func (s *Store) settle() (safe uint64, err error) {
	drops := s.drops.Load()
	if drops == s.safe.Load() {
		return drops, nil
	}
	if err := s.j.Sync(); err != nil {
		return 0, err
	}
	for {
		old := s.safe.Load()
		if old >= drops || s.safe.CompareAndSwap(old, drops) {
			return drops, nil
		}
	}
}

// evict drops up to about n clean bytes. Bytes that could not be freed stay counted.
func (f *File) evict(n int64, safe uint64) (freed int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clean.Len() == 0 || f.snap != nil || f.removed || f.dropped > safe {
		return 0
	}
	defer f.account()
	if f.dirty.Len() == 0 && f.clean.Len() <= n {
		f.store.handles.drop(f)
		if err := f.store.fs.Remove(f.id.path(dataDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0
		}
		freed = f.clean.Len() + f.trash.Len()
		f.clean.Clear()
		f.trash.Clear()
		clear(f.sums)
		f.named = false
		f.evictions++
		return freed
	}
	h, err := f.store.handles.get(f, false)
	if err != nil {
		return 0
	}
	defer f.store.handles.put(h)
	for _, r := range f.clean.Ranges() {
		if freed >= n {
			break
		}
		f.sums.forget(r.Off, r.End)
		err := h.PunchHole(r.Off, r.End)
		f.clean.Remove(r.Off, r.End)
		if err != nil {
			// A part of them may be gone. Reap frees the rest.
			f.trash.Add(r.Off, r.End)
			f.store.mu.Lock()
			f.store.ragged[f] = struct{}{}
			f.store.mu.Unlock()
			break
		}
		freed += r.Len()
	}
	return freed
}

// Reap makes the journal durable and frees the bytes that it no longer needs: of truncated and removed files. To be
// called every few seconds. It is cheap when there is nothing to do.
func (s *Store) Reap() error {
	s.mu.Lock()
	idle := len(s.ragged) == 0 && len(s.dead) == 0
	s.mu.Unlock()
	if idle {
		return nil
	}
	safe, err := s.settle()
	if err != nil {
		return err
	}
	s.mu.Lock()
	ragged := make([]*File, 0, len(s.ragged))
	for f := range s.ragged {
		ragged = append(ragged, f)
	}
	dead := make([]*File, 0, len(s.dead))
	for _, f := range s.dead {
		dead = append(dead, f)
	}
	s.mu.Unlock()
	var errs []error
	for _, f := range ragged {
		errs = append(errs, f.sweep(safe))
	}
	for _, f := range dead {
		f.mu.RLock()
		busy := f.snap != nil
		f.mu.RUnlock()
		if !busy {
			errs = append(errs, s.bury(f))
		}
	}
	return errors.Join(errs...)
}

// sweep frees the trash of a file.
func (f *File) sweep(safe uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.snap != nil || f.dropped > safe {
		return nil
	}
	defer f.account()
	if f.trash.Len() > 0 && !f.removed {
		h, err := f.store.handles.get(f, false)
		if err != nil {
			return fmt.Errorf("cache file %x: %w", uint64(f.id), err)
		}
		defer f.store.handles.put(h)
		for _, r := range f.trash.Ranges() {
			if err := h.PunchHole(r.Off, r.End); err != nil {
				return fmt.Errorf("cache file %x: %w", uint64(f.id), err)
			}
			f.trash.Remove(r.Off, r.End)
		}
	}
	f.store.mu.Lock()
	delete(f.store.ragged, f)
	f.store.mu.Unlock()
	return nil
}

// bury deletes the data file of a removed file, if the record of the removal is durable.
func (s *Store) bury(f *File) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dropped > s.safe.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead[f.id] != f {
		return nil // somebody else was faster
	}
	s.handles.drop(f)
	if err := s.fs.Remove(f.id.path(dataDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cache file %x: %w", uint64(f.id), err)
	}
	delete(s.dead, f.id)
	f.trash.Clear()
	f.account()
	return nil
}
