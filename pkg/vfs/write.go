package vfs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
)

// Write writes all of p at off. On return the change survives a kill of the process. It is slowed down while the cache is
// above its high watermark, and waits at the hard limit for uploads to make room, as long as Policy.IOTimeout says. It is
// cache.ErrNoSpace when that is over or nothing can be uploaded, ErrCapacity when the volume is full: then nothing changed.
func (fs *FS) Write(ctx context.Context, _ Request, ino inode.Ino, _ HandleID, p []byte, off int64) (n int, err error) {
	if err := fs.writable(ctx); err != nil {
		return 0, err
	}
	node, err := fs.get(ctx, ino)
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
	end := off + int64(len(p))
	err = fs.fill(ctx, ino, off, end, func(now int64) int64 { return max(now, end) }, func(f *cache.File, now time.Time) error {
		return f.WriteAt(p, off, now)
	})
	if err != nil {
		return 0, fmt.Errorf("write [%d, %d) of inode %d: %w", off, end, ino, err)
	}
	return len(p), nil
}

// fill runs a change that puts bytes into the cache when there is room for [off, end). It waits for that without a lock.
func (fs *FS) fill(ctx context.Context, ino inode.Ino, off, end int64, size func(now int64) int64, do func(f *cache.File, now time.Time) error) error {
	return fs.executor.Throttle(ctx, func() error {
		f, err := fs.file(ino)
		if err == nil {
			// Before the tree hears of the change: what waits is none.
			err = f.Fits(off, end)
		}
		if err != nil {
			return err
		}
		return fs.change(ino, size, do)
	})
}

// change runs one change of a file's bytes between the two notes to the tree, alone among all changes of that file:
// the tree must hear of sizes in the order in which the file had them. size says what becomes of the file's size, and
// what it grows by is charged to the volume first, so that a full volume refuses before anything happened.
func (fs *FS) change(ino inode.Ino, size func(now int64) int64, do func(f *cache.File, now time.Time) error) error {
	defer fs.lockInode(ino).Unlock()
	n, err := fs.tree.Get(ino)
	if err != nil {
		return err
	}
	f, err := fs.file(ino)
	if err != nil {
		return err
	}
	// What has no name any more is not the volume's: it never reaches the bucket.
	counts := n.Attr.Nlink > 0
	before := f.Size()
	grow := size(before) - before
	if counts {
		if err := fs.charge(grow); err != nil {
			return err
		}
	}
	now := fs.now()
	if err = fs.tree.BeginWrite(ino); err == nil {
		err = do(f, now)
	}
	after := f.Size()
	if counts {
		fs.usage.Add(after-before-grow, 0) // not 0 when it failed half-way
	}
	if err != nil && (errors.Is(err, cache.ErrFull) && after == before || f.Dirty().Since.IsZero()) {
		return err // nothing changed
	}
	if werr := fs.tree.Written(ino, after, now); werr != nil && err == nil {
		return werr
	}
	if after > before {
		fs.executor.Grew(ino, before, after)
	}
	return err
}

// file is the cache's file of an inode, backed by its remote object.
func (fs *FS) file(ino inode.Ino) (*cache.File, error) {
	src, _, err := fs.tree.Source(ino)
	if err != nil {
		return nil, err
	}
	return fs.store.File(cache.ID(ino), src.Size), nil
}
