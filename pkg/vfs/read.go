package vfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Read fills p from off; n < len(p) only at the end of the file. A file whose object was replaced or removed by others
// is s3.ErrPrecondition or s3.ErrNotExist (both ESTALE) where its bytes are not here.
func (fs *FS) Read(ctx context.Context, _ Request, ino inode.Ino, _ HandleID, p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, namespace.ErrInvalid
	}
	f, err := fs.file(ino)
	if err != nil {
		return 0, err
	}
	defer func() { fs.bytesRead.Add(int64(n)) }()
	ctx, cancel := fs.patience(ctx)
	defer cancel()
	locate := fs.locate(ino, f)
	id := cache.ID(ino)
	end := min(off+int64(len(p)), f.Size())
	full := false // the cache takes no more bytes
	for {
		if !full {
			err := fs.fetcher.Read(ctx, id, f, locate, off+int64(n), end)
			if full = errors.Is(err, cache.ErrNoSpace); err != nil && !full {
				if err = fs.unreadable(ctx, ino, err); err != nil {
					return n, err
				}
				continue
			}
		}
		m, missing, err := f.ReadAt(p[n:], off+int64(n))
		n += m
		if err != nil {
			return n, fmt.Errorf("read inode %d at %d: %w", ino, off+int64(n), err)
		}
		if missing.Off >= missing.End {
			return n, nil
		}
		if full {
			// All that the cache holds is dirty. A reader is not made to wait for uploads.
			size := int(missing.End - missing.Off)
			if err := fs.fetcher.Direct(ctx, f, locate, p[n:n+size], missing.Off); err != nil {
				if err = fs.unreadable(ctx, ino, err); err != nil {
					return n, err
				}
				continue
			}
			if n += size; n == len(p) {
				return n, nil
			}
		}
	}
}

// locate tells the fetcher which object is behind the missing ranges of a file.
func (fs *FS) locate(ino inode.Ino, f *cache.File) fetch.Locate {
	return func(off int64) (fetch.Source, int64, error) {
		n, end := f.Spilled(off)
		if n != 0 {
			src, at, err := fs.tree.Spilled(ino, n)
			return fetch.Source{Key: src.Key, ETag: src.ETag, Size: src.Size, Off: at}, end, err
		}
		src, ok, err := fs.tree.Source(ino)
		if err == nil && !ok {
			err = fmt.Errorf("inode %d: bytes are missing that no object has", ino)
		}
		return fetch.Source{Key: src.Key, ETag: src.ETag, Size: src.Size}, end, err
	}
}

// unreadable handles the failure of a read; nil asks for another attempt. When the object is not what it was, and not
// by our own doing, nothing of it may be shown to those who open the file from now on.
func (fs *FS) unreadable(ctx context.Context, ino inode.Ino, cause error) error {
	cause = fmt.Errorf("read inode %d: %w", ino, cause)
	if !errors.Is(cause, s3.ErrNotExist) && !errors.Is(cause, s3.ErrPrecondition) {
		return cause
	}
	src, ok, err := fs.tree.Source(ino)
	if err != nil || !ok {
		return errors.Join(cause, err)
	}
	var found *s3.Info
	info, err := fs.remote.bucket.head(ctx, src.Key)
	switch {
	case err == nil:
		found = &info
	case !errors.Is(err, s3.ErrNotExist):
		return fmt.Errorf("read inode %d: %w", ino, err)
	}
	again, err := fs.tree.Recheck(ino, src, found)
	if again || err != nil {
		return err
	}
	fs.remote.doubtKey(src.Key)
	return cause
}
