package vfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
)

// Link gives ino another name. A directory is ErrPermission.
func (fs *FS) Link(ctx context.Context, req Request, ino, dir inode.Ino, name string) (Entry, error) {
	if out, ok := fs.done(req); ok {
		return fs.outcome(out)
	}
	if err := fs.writable(ctx); err != nil {
		return Entry{}, err
	}
	n, err := fs.get(ctx, ino)
	if err != nil {
		return Entry{}, err
	}
	if n.Attr.IsDir() {
		return Entry{}, fmt.Errorf("link of a directory: %w", ErrPermission)
	}
	if err := fs.checkName(dir, name, false); err != nil {
		return Entry{}, err
	}
	for range maxRounds {
		f, err := fs.absent(ctx, dir, name)
		if err != nil {
			return Entry{}, err
		}
		n, err := fs.tree.Link(req.op(), ino, dir, name, f.version)
		switch {
		case errors.Is(err, namespace.ErrChanged):
			continue
		case err != nil:
			return Entry{}, err
		}
		return fs.entry(n), nil
	}
	return Entry{}, fmt.Errorf("link %q: %w", name, namespace.ErrChanged)
}
