package fuse

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
)

// Notifications, which the protocol marks by their code in place of an error. See linux/fuse.h.
const (
	notifyInvalInode = 2
	notifyInvalEntry = 3
)

// InvalidateInode implements vfs.Invalidator. length 0 is up to the end of the file; a negative off drops the attributes
// only.
func (s *Server) InvalidateInode(ino inode.Ino, off, length int64) {
	b := notification(notifyInvalInode)
	b = binary.LittleEndian.AppendUint64(b, uint64(ino))
	b = binary.LittleEndian.AppendUint64(b, uint64(off))
	b = binary.LittleEndian.AppendUint64(b, uint64(length))
	s.notify(b)
}

// InvalidateEntry implements vfs.Invalidator.
func (s *Server) InvalidateEntry(dir inode.Ino, name string) {
	b := notification(notifyInvalEntry)
	b = binary.LittleEndian.AppendUint64(b, uint64(dir))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(name)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	s.notify(append(append(b, name...), 0))
}

func notification(code uint32) []byte {
	b := make([]byte, 4, 64)
	b = binary.LittleEndian.AppendUint32(b, code)
	return binary.LittleEndian.AppendUint64(b, 0)
}

// notify sends a notification. What the kernel does not know needs none.
func (s *Server) notify(b []byte) {
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	s.notifying.RLock()
	defer s.notifying.RUnlock()
	if s.ctx.Err() != nil {
		return
	}
	if err := s.write(b); err != nil && !s.ending(err) && !errors.Is(err, unix.ENOTDIR) {
		s.log.Warn("cannot make the kernel forget what it caches", "dir", s.opt.Dir, "err", err)
	}
}
