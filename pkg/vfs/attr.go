package vfs

import (
	"context"
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
)

// GetAttr returns the attributes and how long they hold. Attributes of an inode do not expire here: what replaces a
// file in the bucket gets a new inode number, and is found by Lookup.
func (fs *FS) GetAttr(ctx context.Context, _ Request, ino inode.Ino) (inode.Attr, time.Duration, error) {
	n, err := fs.get(ctx, ino)
	if err != nil {
		return inode.Attr{}, 0, err
	}
	return n.Attr, fs.timeout(), nil
}

// SetAttr changes attributes; h is 0 or the handle that ftruncate came through. A change of size also sets mtime and
// ctime, any other change ctime.
func (fs *FS) SetAttr(ctx context.Context, req Request, ino inode.Ino, _ HandleID, set SetAttr) (inode.Attr, time.Duration, error) {
	if err := fs.writable(ctx); err != nil {
		return inode.Attr{}, 0, err
	}
	n, err := fs.get(ctx, ino) // before any change: defaults must not overwrite attributes that were not read yet
	if err != nil {
		return inode.Attr{}, 0, err
	}
	if set.Size != nil {
		if err := fs.truncate(n, *set.Size); err != nil {
			return inode.Attr{}, 0, err
		}
	}
	p := namespace.Patch{Mode: set.Mode, Uid: set.Uid, Gid: set.Gid, Atime: set.Atime, Mtime: set.Mtime, Ctime: set.Ctime}
	if p != (namespace.Patch{}) {
		n, err = fs.tree.SetAttr(req.op(), ino, p)
	} else {
		n, err = fs.tree.Get(ino)
	}
	if err != nil {
		return inode.Attr{}, 0, err
	}
	return n.Attr, fs.timeout(), nil
}

// truncate sets a file's size. It takes no room in the cache and waits for none: it may be what makes some.
func (fs *FS) truncate(n namespace.Node, size int64) error {
	switch {
	case n.Attr.IsDir():
		return namespace.ErrIsDir
	case !n.Attr.IsRegular() || size < 0:
		return namespace.ErrInvalid
	case size > MaxFileSize:
		return ErrFileTooBig
	}
	return fs.change(n.Attr.Ino, func(int64) int64 { return size }, func(f *cache.File, now time.Time) error {
		return f.Truncate(size, now)
	})
}

// Readlink returns the target of a symbolic link.
func (fs *FS) Readlink(ctx context.Context, _ Request, ino inode.Ino) (string, error) {
	n, err := fs.get(ctx, ino)
	if err != nil {
		return "", err
	}
	if !n.Attr.IsSymlink() {
		return "", fmt.Errorf("inode %d is no symbolic link: %w", ino, namespace.ErrInvalid)
	}
	return n.Target, nil
}
