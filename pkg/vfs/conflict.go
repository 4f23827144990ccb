package vfs

import (
	"fmt"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// Conflict hears that somebody else's object took a file's name and that ours is now called kept. Each open handle
// reports it once, at its next fsync or close, and the kernel forgets what it knows of both names. It is
// writeback.Options.Conflict.
func (fs *FS) Conflict(ino inode.Ino, kept string) {
	err := fmt.Errorf("inode %d is now called %q: %w", ino, kept, writeback.ErrConflict)
	for _, h := range fs.handles.of(ino) {
		h.mu.Lock()
		h.err = err
		h.mu.Unlock()
	}
	dir, ok := fs.tree.Parent(ino, kept)
	if !ok {
		return // renamed or removed meanwhile: the kernel has forgotten
	}
	names := []string{kept}
	// The tree cuts names that are too long for its suffix. Of such a one the kernel hears when its entry expires.
	for _, suffix := range []string{".conflict-", ".partial-"} {
		if i := strings.LastIndex(kept, suffix); i > 0 {
			names = append(names, kept[:i])
		}
	}
	fs.notices.add(func(inv Invalidator) {
		for _, name := range names {
			inv.InvalidateEntry(dir, name)
		}
	})
}
