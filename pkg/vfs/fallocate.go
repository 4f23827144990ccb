package vfs

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
)

// Modes of fallocate(2).
const (
	fallocKeepSize  = 0x01
	fallocPunchHole = 0x02
	fallocZeroRange = 0x10
)

// Fallocate takes mode as fallocate(2): 0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE with or without KEEP_SIZE; others
// are ErrNotSupported. Space is not reserved: an object takes none before it is written.
func (fs *FS) Fallocate(ctx context.Context, _ Request, ino inode.Ino, _ HandleID, off, length int64, mode uint32) error {
	if err := fs.writable(ctx); err != nil {
		return err
	}
	zero := false
	switch mode {
	case 0, fallocKeepSize:
	case fallocPunchHole | fallocKeepSize, fallocZeroRange, fallocZeroRange | fallocKeepSize:
		zero = true
	default:
		return fmt.Errorf("fallocate mode %#x: %w", mode, ErrNotSupported)
	}
	n, err := fs.get(ctx, ino)
	end := off + length
	keep := mode&fallocKeepSize != 0
	switch {
	case err != nil:
		return err
	case !n.Attr.IsRegular() || off < 0 || length <= 0:
		return namespace.ErrInvalid
	case off > MaxFileSize-length:
		return ErrFileTooBig
	case !zero && (keep || end <= n.Attr.Size):
		return nil
	}
	size := func(now int64) int64 {
		if keep {
			return now
		}
		return max(now, end)
	}
	grow := func(f *cache.File, now time.Time) error {
		if size := size(f.Size()); size > f.Size() {
			return f.Truncate(size, now)
		}
		return nil
	}
	if !zero {
		return fs.change(ino, size, grow)
	}
	// Zeros take no room, but what an upload still needs of the bytes that were there does.
	return fs.fill(ctx, ino, off, off, size, func(f *cache.File, now time.Time) error {
		if err := grow(f, now); err != nil {
			return err
		}
		return f.PunchHole(off, end, now)
	})
}

// Lseek serves SEEK_DATA and SEEK_HOLE. ErrNoData: there is none behind off.
func (fs *FS) Lseek(_ context.Context, _ Request, ino inode.Ino, off int64, whence int) (int64, error) {
	n, err := fs.tree.Get(ino)
	if err != nil {
		return 0, err
	}
	if !n.Attr.IsRegular() || whence != seekData && whence != seekHole {
		return 0, namespace.ErrInvalid
	}
	f, err := fs.file(ino)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= f.Size() {
		return 0, ErrNoData
	}
	pos, ok := f.SeekData(off, whence == seekHole)
	if !ok {
		return 0, ErrNoData
	}
	return pos, nil
}

// Values of whence beyond package io's.
const (
	seekData = io.SeekEnd + 1
	seekHole = io.SeekEnd + 2
)
