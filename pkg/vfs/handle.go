package vfs

import (
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
)

// handle is an open file or directory.
type handle struct {
	ino inode.Ino
	dir bool

	mu      sync.Mutex
	err     error       // guarded by mu: what the bucket said of the file, not reported yet
	entries []dirRecord // guarded by mu: of a directory, see readdir.go
	listed  bool        // guarded by mu
}

// handles are the open files and directories. A number that is not in it is from before a restart, or made up: its
// operation then works by inode number alone.
type handles struct {
	mu   sync.Mutex
	next HandleID             // guarded by mu
	open map[HandleID]*handle // guarded by mu
}

// init starts the counter where no predecessor of this process has been.
func (t *handles) init(now time.Time) {
	t.next = HandleID(now.UnixNano())
	t.open = map[HandleID]*handle{}
}

func (t *handles) add(h *handle) HandleID {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	t.open[t.next] = h
	return t.next
}

// get returns the handle, or nil when the number is unknown or another inode's.
func (t *handles) get(id HandleID, ino inode.Ino, dir bool) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.open[id]
	if h == nil || h.ino != ino || h.dir != dir {
		return nil
	}
	return h
}

// remove returns the handle that was there, or nil.
func (t *handles) remove(id HandleID) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.open[id]
	delete(t.open, id)
	return h
}

// takeError returns what is to be reported through a handle, once.
func (t *handles) takeError(id HandleID, ino inode.Ino) error {
	h := t.get(id, ino, false)
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.err
	h.err = nil
	return err
}

// of lists the open handles of a file.
func (t *handles) of(ino inode.Ino) []*handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*handle
	for _, h := range t.open {
		if h.ino == ino && !h.dir {
			out = append(out, h)
		}
	}
	return out
}
