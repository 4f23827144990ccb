package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"

	"github.com/csi-s3/csi-s3/pkg/journal"
)

// Recovery is what Recover found.
type Recovery struct {
	Dirty []Dirty // files whose changes survived; each must be uploaded
	// Lost are files whose changes are unusable: no barrier covered them before a power cut, or their bytes are not on
	// the disk any more. What there is of them was moved to the directory "quarantine" and is never uploaded. The next
	// Recover finds them again until Store.Forget was called.
	Lost []ID
}

// Recover makes the store usable after all records were replayed. powerCut says that the node went down since the
// journal was written (its boot ID changed): then only what barriers cover is trusted, see doc.go. Data files that no
// record names are removed. j takes the store's records from here on. On return what was recovered is durable.
func (s *Store) Recover(j *journal.Journal, powerCut bool) (Recovery, error) {
	s.j = j
	found := s.replayed
	s.replayed = nil
	for _, dir := range []string{dataDir, snapDir} {
		if err := s.fs.MkdirAll(dir); err != nil {
			return Recovery{}, fmt.Errorf("cache: %w", err)
		}
	}
	if err := s.fs.SyncDir("."); err != nil {
		return Recovery{}, fmt.Errorf("cache: %w", err)
	}
	sizes, err := s.scan(found)
	if err != nil {
		return Recovery{}, err
	}
	ids := make([]ID, 0, len(found))
	for id := range found {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var r Recovery
	for _, id := range ids {
		m := found[id]
		if powerCut {
			m = m.afterPowerCut()
		}
		if m == nil || m.dirty.Last().End > sizes[id] {
			if err := s.quarantine(id); err != nil {
				return Recovery{}, err
			}
			r.Lost = append(r.Lost, id)
			continue
		}
		f, err := s.restore(id, m, powerCut)
		if err != nil {
			return Recovery{}, err
		}
		if !m.since.IsZero() {
			r.Dirty = append(r.Dirty, f.Dirty())
		}
	}
	s.space.budget.mu.Lock()
	defer s.space.budget.mu.Unlock()
	if err := s.space.budget.refresh(s); err != nil {
		return Recovery{}, err
	}
	return r, j.Sync()
}

// afterPowerCut is the file as its last barrier saw it; nil when there was none.
func (m *image) afterPowerCut() *image {
	if m.durable == nil {
		return nil
	}
	return &image{point: *m.durable, durable: m.durable.clone()}
}

// scan removes side files and the data files that nobody needs, and returns the sizes of the others.
func (s *Store) scan(found images) (map[ID]int64, error) {
	if err := s.empty(snapDir, func(string, fs.DirEntry) (bool, error) { return false, nil }); err != nil {
		return nil, err
	}
	shards, err := s.fs.ReadDir(dataDir)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	sizes := map[ID]int64{}
	for _, shard := range shards {
		err := s.empty(path.Join(dataDir, shard.Name()), func(name string, e fs.DirEntry) (bool, error) {
			id, ok := parseID(e.Name())
			if !ok || found[id] == nil || id.path(dataDir) != name {
				return false, nil
			}
			info, err := e.Info()
			if err == nil {
				sizes[id] = info.Size()
			}
			return true, err
		})
		if err != nil {
			return nil, err
		}
	}
	return sizes, nil
}

// empty removes the files in dir that keep does not want.
func (s *Store) empty(dir string, keep func(name string, e fs.DirEntry) (bool, error)) error {
	entries, err := s.fs.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		wanted, err := keep(name, e)
		if err != nil {
			return fmt.Errorf("cache: %w", err)
		}
		if wanted {
			continue
		}
		if err := s.fs.Remove(name); err != nil {
			return fmt.Errorf("cache: %w", err)
		}
	}
	return nil
}

// Forget ends the lost files of Recover in the journal, durably. It is called when the journal has what their loss means
// to others: before that, a crash must not make them forgotten here and not there.
func (s *Store) Forget(lost []ID) error {
	if len(lost) == 0 {
		return nil
	}
	recs := make([]journal.Record, 0, len(lost))
	for _, id := range lost {
		recs = append(recs, forgetRecord(id))
	}
	if err := s.j.Append(recs...); err != nil {
		return err
	}
	return s.j.Sync()
}

// quarantine moves a data file away. Its file stays in the journal until Forget.
func (s *Store) quarantine(id ID) error {
	if err := s.fs.MkdirAll(quarantineDir); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	err := s.fs.Rename(id.path(dataDir), id.path(quarantineDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cache: %w", err)
	}
	// The next start removes data files that no record names: the new name must be durable before the record goes.
	for _, dir := range []string{".", quarantineDir, id.shard()} {
		if err := s.fs.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cache: %w", err)
		}
	}
	return nil
}

// restore makes the file of an image and frees what else its data file holds. What it is now becomes a barrier: after a
// power cut because the records of what was lost must not be replayed again, and after a kill because the first user
// already sees it.
func (s *Store) restore(id ID, m *image, powerCut bool) (*File, error) {
	f := newFile(s, id)
	f.size, f.base, f.mtime, f.since = m.size, m.base, m.mtime, m.since
	f.dirty, f.spilled, f.image, f.marks = m.dirty.Clone(), m.spilled.clone(), m, m.mark
	f.changes, f.records = 1, 1
	f.account()
	s.files[id] = f
	h, err := s.handles.get(f, false)
	if errors.Is(err, fs.ErrNotExist) {
		return f, f.recovered(m)
	}
	if err != nil {
		return nil, fmt.Errorf("cache file %x: %w", uint64(id), err)
	}
	defer s.handles.put(h)
	size, err := h.Size()
	if err != nil {
		return nil, fmt.Errorf("cache file %x: %w", uint64(id), err)
	}
	needed := f.dirty.Clone()
	for _, p := range []*point{m.durable, m.marked} {
		if p != nil {
			needed.AddSet(p.dirty)
		}
	}
	for _, r := range needed.Gaps(0, size) {
		if err := h.PunchHole(r.Off, r.End); err != nil {
			return nil, fmt.Errorf("cache file %x: %w", uint64(id), err)
		}
	}
	if !powerCut && f.dirty.Len() > 0 {
		err := f.syncData(h, 0)
		if errors.Is(err, ErrPoisoned) {
			return f, nil // no barrier; every Sync of the file says why
		}
		if err != nil {
			return nil, err
		}
	}
	return f, f.recovered(m)
}

// recovered notes in the journal that what was recovered is on the disk.
func (f *File) recovered(m *image) error {
	m.durable, m.marked = m.point.clone(), nil
	f.syncedChange, f.syncedNote = f.changes, f.records
	return f.store.j.Append(m.records(f.id)...)
}

func parseID(name string) (ID, bool) {
	id, err := strconv.ParseUint(name, 16, 64)
	return ID(id), err == nil
}
