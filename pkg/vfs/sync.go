package vfs

import (
	"context"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// Fsync makes the file durable as the mount's fsync policy says: file, name and size. When write-back has ended for good,
// what is durable here reaches no bucket: then it is writeback.ErrHalted unless the bucket has the file.
func (fs *FS) Fsync(ctx context.Context, _ Request, ino inode.Ino, h HandleID, _ bool) error {
	if err := fs.handles.takeError(h, ino); err != nil {
		return err
	}
	// Bytes first: when the name is durable, so is what it shows.
	if err := fs.barrier(ino); err != nil {
		return err
	}
	if err := fs.tree.Sync(); err != nil {
		return err
	}
	if done, err := fs.kept(ctx); done || err != nil {
		return err
	}
	return fs.flushInode(ctx, ino, h)
}

// kept says whether an fsync is over when all is durable on this node.
func (fs *FS) kept(ctx context.Context) (bool, error) {
	if fs.policy.FsyncBucket {
		return false, nil
	}
	if fs.announce != nil {
		if err := fs.announce(ctx); err != nil {
			return false, err
		}
	}
	return fs.executor.Halted() == nil, nil
}

// barrier makes what was written of a file survive a power cut, also when that is nothing.
func (fs *FS) barrier(ino inode.Ino) error {
	f := fs.store.Lookup(cache.ID(ino))
	if f == nil {
		return fs.tree.Keep(ino)
	}
	clean := f.Dirty().Since.IsZero()
	if err := f.Sync(); err != nil {
		return err
	}
	if clean {
		return fs.tree.Keep(ino) // the cache notes nothing of a clean file
	}
	return nil
}

// FsyncDir makes all changes of names in the directory durable, as Fsync does.
func (fs *FS) FsyncDir(ctx context.Context, _ Request, _ inode.Ino) error {
	if err := fs.tree.Sync(); err != nil {
		return err
	}
	if done, err := fs.kept(ctx); done || err != nil {
		return err
	}
	ctx, cancel := fs.patience(ctx)
	defer cancel()
	// A name is in the bucket when the object of what it names is, so more than the directory's own inode must go.
	return fs.executor.Flush(ctx, 0, nil)
}

// flushInode waits until a file is in the bucket. What the bucket said of it meanwhile was also noted for the handle:
// it is reported here, and not again.
func (fs *FS) flushInode(ctx context.Context, ino inode.Ino, h HandleID) error {
	ctx, cancel := fs.patience(ctx)
	defer cancel()
	n, err := fs.tree.Get(ino)
	if err != nil {
		return err
	}
	if n.Tracked {
		err = fs.executor.Flush(ctx, ino, nil)
	}
	if noted := fs.handles.takeError(h, ino); noted != nil {
		return noted
	}
	return err
}

// FlushTree returns when everything that was written below ino before the call is in the bucket. progress, if not
// nil, hears the dirty bytes left from time to time. It waits for the whole volume, which includes what is below ino.
func (fs *FS) FlushTree(ctx context.Context, ino inode.Ino, progress func(left int64)) error {
	if _, err := fs.tree.Get(ino); err != nil {
		return err
	}
	err := fs.executor.Flush(ctx, 0, func(p writeback.Progress) {
		if progress != nil {
			progress(p.Bytes)
		}
	})
	if err == nil && fs.drained != nil {
		fs.drained(ctx)
	}
	return err
}
