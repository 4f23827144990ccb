package vfs

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Open opens a regular file. keepCache says that the kernel's page cache of it is still valid: it always is, because
// all changes of an inode's bytes come through this mount, and what others put in its place gets another number. With
// ReadWriteMany the object is checked first: one that changed is ErrStale, which makes the kernel look its path up anew.
func (fs *FS) Open(ctx context.Context, _ Request, ino inode.Ino, flags int) (h HandleID, keepCache bool, err error) {
	writes := flags&syscall.O_ACCMODE != syscall.O_RDONLY
	if writes || flags&syscall.O_TRUNC != 0 {
		if err := fs.writable(ctx); err != nil {
			return 0, false, err
		}
	}
	n, err := fs.get(ctx, ino)
	switch {
	case err != nil:
		return 0, false, err
	case n.Attr.IsDir():
		return 0, false, namespace.ErrIsDir
	case !n.Attr.IsRegular():
		return 0, false, namespace.ErrInvalid
	}
	if fs.policy.Access == ReadWriteMany && !fs.remote.forever() && !n.Tracked {
		if err := fs.revalidate(ctx, ino); err != nil {
			return 0, false, err
		}
	}
	h, err = fs.openNode(ctx, n, flags)
	return h, err == nil, err
}

// openNode makes a handle of a file, truncated if the flags say so.
func (fs *FS) openNode(ctx context.Context, n namespace.Node, flags int) (HandleID, error) {
	ino := n.Attr.Ino
	if err := fs.tree.Opened(ino); err != nil {
		return 0, err
	}
	if flags&syscall.O_TRUNC != 0 {
		if err := fs.truncate(n, 0); err != nil {
			fs.tree.Released(ino)
			return 0, err
		}
	}
	return fs.handles.add(&handle{ino: ino}), nil
}

// revalidate asks the bucket whether a file is still the object that its inode stands for.
func (fs *FS) revalidate(ctx context.Context, ino inode.Ino) error {
	src, ok, err := fs.tree.Source(ino)
	if err != nil || !ok {
		return err
	}
	info, err := fs.remote.bucket.head(ctx, src.Key)
	if err != nil && !errors.Is(err, s3.ErrNotExist) {
		return err
	}
	if err == nil && info.ETag == src.ETag {
		return nil
	}
	if now, ok, serr := fs.tree.Source(ino); serr != nil || !ok || now != src {
		return serr // our own change meanwhile
	}
	fs.remote.doubtKey(src.Key)
	return fmt.Errorf("inode %d: object was replaced: %w", ino, namespace.ErrStale)
}

// Flush answers every close(2) of a descriptor, Release the last one.
func (fs *FS) Flush(ctx context.Context, _ Request, ino inode.Ino, h HandleID) error {
	if err := fs.handles.takeError(h, ino); err != nil {
		return err
	}
	if fs.policy.Access != ReadWriteMany || fs.policy.ReadOnly {
		return nil
	}
	return fs.flushInode(ctx, ino, h)
}

// Release closes a handle. An unknown one is ignored: the request was sent again after a restart.
func (fs *FS) Release(ino inode.Ino, h HandleID) {
	if fs.handles.get(h, ino, false) == nil {
		return
	}
	if fs.handles.remove(h) != nil {
		fs.tree.Released(ino)
	}
}
