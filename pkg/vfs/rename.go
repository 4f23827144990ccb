package vfs

import (
	"context"
	"fmt"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
)

// Rename moves a name, replacing an existing target, atomically for every observer on this mount. flags are
// RenameNoReplace or RenameExchange; any other is namespace.ErrInvalid.
func (fs *FS) Rename(ctx context.Context, req Request, oldDir inode.Ino, oldName string, newDir inode.Ino, newName string, flags uint32) error {
	if out, ok := fs.done(req); ok {
		return out.Err
	}
	if flags > RenameExchange {
		return fmt.Errorf("rename flags %#x: %w", flags, namespace.ErrInvalid)
	}
	n, err := fs.victim(ctx, oldDir, oldName)
	if err != nil {
		return err
	}
	target, err := fs.resolve(ctx, newDir, newName)
	if err != nil {
		return err
	}
	if err := fs.checkName(newDir, newName, n.Attr.IsDir()); err != nil {
		return err
	}
	x := target.node
	switch {
	case target.ok && flags == RenameNoReplace:
		return fmt.Errorf("%q: %w", newName, namespace.ErrExist)
	case !target.ok && flags == RenameExchange:
		return fmt.Errorf("%q: %w", newName, namespace.ErrNotExist)
	case flags == RenameExchange:
		if err := fs.checkName(oldDir, oldName, x.Attr.IsDir()); err != nil {
			return err
		}
	case target.ok && n.Attr.IsDir() && x.Attr.IsDir() && n.Attr.Ino != x.Attr.Ino:
		if err := fs.empty(ctx, x.Attr.Ino); err != nil {
			return fmt.Errorf("%q: %w", newName, err)
		}
	case target.ok:
		// Else a power cut could leave the name with neither file. Programs that write, rename and never sync are many.
		if err := fs.barrier(n.Attr.Ino); err != nil {
			return err
		}
	}
	rename := func() error { return fs.tree.Rename(req.op(), oldDir, oldName, newDir, newName, flags) }
	if target.ok && flags != RenameExchange && n.Attr.Ino != x.Attr.Ino {
		return fs.remove(x.Attr.Ino, rename)
	}
	return rename()
}
