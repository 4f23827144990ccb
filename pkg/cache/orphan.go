package cache

import (
	"github.com/csi-s3/csi-s3/pkg/extent"
)

// Orphan cuts the file off from the object behind it, which is gone for good: what is clean becomes dirty, and what is
// missing of that object becomes a hole. lost are these ranges, left is how many bytes of the file are not lost. It waits
// for the end of a snapshot. On return the change survives a kill of the process.
func (f *File) Orphan() (lost []extent.Range, left int64, err error) {
	if err := f.store.j.Room(room); err != nil {
		return nil, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.snap != nil {
		f.free.Wait()
	}
	if err := f.usable(); err != nil {
		return nil, 0, err
	}
	defer f.account()
	lost = missing(0, f.base, f.base, &f.spilled, &f.dirty, &f.clean, &f.spilled.all)
	since := f.since
	if since.IsZero() {
		since = f.store.opt.Now()
	}
	to := point{size: f.size, mtime: f.mtime, since: since, dirty: f.dirty.Clone(), spilled: f.spilled.clone()}
	to.dirty.AddSet(f.clean)
	to.dirty.RemoveSet(to.spilled.all)
	f.imageMu.Lock()
	old := f.image
	f.image = &image{point: to}
	if old != nil {
		f.image.durable, f.image.marked, f.image.mark = old.durable, old.marked, old.mark
	}
	recs := f.image.records(f.id)
	f.imageMu.Unlock()
	if err := f.store.j.Append(recs...); err != nil {
		f.imageMu.Lock()
		f.image = old
		f.imageMu.Unlock()
		return nil, 0, err
	}
	f.changes++
	f.records++
	f.generation++
	kept := to.dirty.Clone()
	f.clean.RemoveSet(kept)
	f.base, f.since, f.dirty = 0, since, kept
	return lost, kept.Len() + f.spilled.all.Len(), nil
}
