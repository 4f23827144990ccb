package vfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Unlink removes a name; an open file lives on until its last handle is released. A directory is ErrIsDir.
func (fs *FS) Unlink(ctx context.Context, req Request, dir inode.Ino, name string) error {
	if out, ok := fs.done(req); ok {
		return out.Err
	}
	n, err := fs.victim(ctx, dir, name)
	if err != nil {
		return err
	}
	if n.Attr.IsDir() {
		return fmt.Errorf("%q: %w", name, namespace.ErrIsDir)
	}
	return fs.remove(n.Attr.Ino, func() error { return fs.tree.Unlink(req.op(), dir, name) })
}

// Rmdir removes an empty directory. Keys below it that POSIX cannot name do not count, and go with it.
func (fs *FS) Rmdir(ctx context.Context, req Request, dir inode.Ino, name string) error {
	if out, ok := fs.done(req); ok {
		return out.Err
	}
	n, err := fs.victim(ctx, dir, name)
	if err != nil {
		return err
	}
	if !n.Attr.IsDir() {
		return fmt.Errorf("%q: %w", name, namespace.ErrNotDir)
	}
	if err := fs.empty(ctx, n.Attr.Ino); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	return fs.remove(n.Attr.Ino, func() error { return fs.tree.Rmdir(req.op(), dir, name) })
}

// victim finds what is to be removed.
func (fs *FS) victim(ctx context.Context, dir inode.Ino, name string) (namespace.Node, error) {
	if err := fs.writable(ctx); err != nil {
		return namespace.Node{}, err
	}
	f, err := fs.resolve(ctx, dir, name)
	if err == nil && !f.ok {
		err = fmt.Errorf("%q: %w", name, namespace.ErrNotExist)
	}
	return f.node, err
}

// remove takes a name from an inode and counts what the volume no longer holds. Space counts as free when the last name
// goes, though an open file still uses it; what such a file still grows or shrinks by is not counted (see change).
func (fs *FS) remove(ino inode.Ino, take func() error) error {
	defer fs.lockInode(ino).Unlock() // its size stays what it is
	n, known := fs.tree.Get(ino)
	if err := take(); err != nil || known != nil {
		return err
	}
	switch {
	case n.Attr.IsDir():
		fs.usage.Add(0, -1)
	case n.Attr.Nlink <= 1:
		size := int64(0)
		if n.Attr.IsRegular() {
			size = n.Attr.Size
		}
		fs.usage.Add(-size, -1)
	}
	return nil
}

// empty says with ErrNotEmpty that a directory has names, asking the bucket where the tree does not know.
func (fs *FS) empty(ctx context.Context, ino inode.Ino) error {
	for range maxRounds {
		l, err := fs.tree.List(ino)
		if err != nil {
			return err
		}
		for _, c := range l.Names {
			if c.Tracked || !l.Remote || fs.remote.forever() {
				return namespace.ErrNotEmpty
			}
		}
		if !l.Remote {
			return nil
		}
		shown, err := fs.remote.any(ctx, l.Prefix, func(name string) bool { return fs.shows(ino, l, name) })
		if err != nil {
			return err
		}
		if shown {
			return namespace.ErrNotEmpty
		}
		// What is left in the tree was learned from the bucket, which has it no more. The empty name is nobody's: it
		// asks whether the place that was listed is still the directory's.
		l.Names[""] = namespace.Child{}
		for name := range l.Names {
			if err = fs.tree.Unlearn(ino, name, l.Version); err != nil {
				break
			}
		}
		if !errors.Is(err, namespace.ErrChanged) {
			return err
		}
	}
	return namespace.ErrChanged
}

// shows says that a name of the bucket's listing of a directory counts. A key that the tree hides takes both forms of
// the name away, as in Tree.Resolve.
func (fs *FS) shows(dir inode.Ino, l namespace.Listing, name string) bool {
	key := l.Prefix + s3.Key(name)
	return !l.Hidden[key] && !l.Hidden[key+"/"] && !fs.own(dir, name)
}
