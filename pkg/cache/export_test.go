package cache

import "github.com/csi-s3/csi-s3/pkg/extent"

// Recount is Usage's figures computed anew from all files, to compare with the running counts.
func (s *Store) Recount() (dirty, clean int64, dirtyFiles int) {
	for _, f := range s.all() {
		f.mu.RLock()
		dirty += f.dirty.Len()
		clean += f.clean.Len()
		if !f.since.IsZero() {
			dirtyFiles++
		}
		f.mu.RUnlock()
	}
	return dirty, clean, dirtyFiles
}

// Accounted is all that the store believes to be in use, in bytes, with what operations under way have reserved.
func (s *Store) Accounted() (total, reserved int64) {
	u, _, _ := s.space.get()
	return u.total(), u.reserved
}

// Mend reports [off, end) as damaged, as a read does.
func (f *File) Mend(off, end int64) bool {
	return f.mend(&damage{f.id, extent.Range{Off: off, End: end}})
}
