package vfs

import (
	"context"
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
)

// Write writes all of p at off. On return the change survives a kill of the process. It waits while the cache is above
// its high watermark, and is ErrNoSpace at the hard limit, ErrCapacity when the volume is full: then nothing changed.
func (fs *FS) Write(ctx context.Context, _ Request, ino inode.Ino, _ HandleID, p []byte, off int64) (n int, err error) {
	if err := fs.writable(); err != nil {
		return 0, err
	}
	node, err := fs.tree.Get(ino)
	switch {
	case err != nil:
		return 0, err
	case node.Attr.IsDir():
		return 0, namespace.ErrIsDir
	case !node.Attr.IsRegular() || off < 0:
		return 0, namespace.ErrInvalid
	case off > MaxFileSize-int64(len(p)):
		return 0, ErrFileTooBig
	case len(p) == 0:
		return 0, nil
	}
	err = fs.change(ctx, ino, func(c *change) error {
		if err := c.resize(max(c.file.Size(), off+int64(len(p)))); err != nil {
			return err
		}
		return c.file.WriteAt(p, off, c.now)
	})
	if err != nil {
		return 0, fmt.Errorf("write [%d, %d) of inode %d: %w", off, off+int64(len(p)), ino, err)
	}
	return len(p), nil
}

// change is one change of a file's bytes.
type change struct {
	fs   *FS
	file *cache.File
	now  time.Time
	grow int64 // bytes charged to the volume
}

// resize counts the file's new size, or refuses it.
func (c *change) resize(size int64) error {
	c.grow = size - c.file.Size()
	if err := c.fs.charge(c.grow); err != nil {
		c.grow = 0
		return err
	}
	return nil
}

// change runs one change of a file's bytes between the two notes to the tree, alone among all changes of that file:
// the tree must hear of sizes in the order in which the file had them.
func (fs *FS) change(ctx context.Context, ino inode.Ino, do func(c *change) error) error {
	if err := fs.executor.Throttle(ctx); err != nil {
		return err
	}
	defer fs.lockInode(ino).Unlock()
	f, err := fs.file(ino)
	if err != nil {
		return err
	}
	if err := fs.tree.BeginWrite(ino); err != nil {
		return err
	}
	c := &change{fs: fs, file: f, now: fs.now()}
	before := f.Size()
	if err := do(c); err != nil {
		// A write may fail half-way: the volume is charged for what the file has become.
		fs.usage.Add(f.Size()-before-c.grow, 0)
		if f.Size() == before {
			return err
		}
		if werr := fs.tree.Written(ino, f.Size(), c.now); werr != nil {
			return fmt.Errorf("%w (after %w)", werr, err)
		}
		return err
	}
	return fs.tree.Written(ino, f.Size(), c.now)
}

// file is the cache's file of an inode, backed by its remote object.
func (fs *FS) file(ino inode.Ino) (*cache.File, error) {
	src, _, err := fs.tree.Source(ino)
	if err != nil {
		return nil, err
	}
	return fs.store.File(cache.ID(ino), src.Size), nil
}
