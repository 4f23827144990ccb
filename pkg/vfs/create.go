package vfs

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
)

// maxTarget is the longest target of a symbolic link in bytes, as on Linux.
const maxTarget = 4095

// done returns the recorded outcome of a request that was carried out before a restart and is sent again.
func (fs *FS) done(req Request) (namespace.Outcome, bool) {
	if !req.Resent || req.Unique == 0 {
		return namespace.Outcome{}, false
	}
	return fs.tree.Done(req.Unique)
}

// Create makes a regular file (or, without O_EXCL in flags, opens an existing one) and opens it.
func (fs *FS) Create(ctx context.Context, req Request, dir inode.Ino, name string, mode uint32, flags int) (Entry, HandleID, error) {
	n, fresh, err := fs.create(ctx, req, dir, name, inode.ModeRegular|mode&inode.ModePerm, flags&syscall.O_EXCL != 0)
	if err != nil {
		return Entry{}, 0, err
	}
	if fresh {
		flags &^= syscall.O_TRUNC
	}
	h, err := fs.openNode(ctx, n, flags)
	if err != nil {
		return Entry{}, 0, err
	}
	if n, err = fs.tree.Get(n.Attr.Ino); err != nil {
		fs.Release(n.Attr.Ino, h)
		return Entry{}, 0, err
	}
	return fs.entry(n), h, nil
}

// Tmpfile makes a regular file without a name and opens it (O_TMPFILE). Link may give it a name, unless flags has
// O_EXCL; else it ends with its last handle, or with a crash.
func (fs *FS) Tmpfile(ctx context.Context, req Request, dir inode.Ino, mode uint32, _ int) (Entry, HandleID, error) {
	if err := fs.writable(ctx); err != nil {
		return Entry{}, 0, err
	}
	attr, err := fs.newAttr(ctx, req, dir, inode.ModeRegular|mode&inode.ModePerm, 0)
	if err != nil {
		return Entry{}, 0, err
	}
	n, err := fs.tree.Tmpfile(req.op(), dir, attr)
	if err != nil {
		return Entry{}, 0, err
	}
	return fs.entry(n), fs.handles.add(&handle{ino: n.Attr.Ino}), nil
}

func (fs *FS) create(ctx context.Context, req Request, dir inode.Ino, name string, mode uint32, excl bool) (n namespace.Node, fresh bool, err error) {
	if out, ok := fs.done(req); ok {
		if out.Err != nil {
			return n, false, out.Err
		}
		n, err = fs.tree.Get(out.Ino)
		return n, true, err
	}
	if err := fs.writable(ctx); err != nil {
		return n, false, err
	}
	for range maxRounds {
		f, err := fs.resolve(ctx, dir, name)
		switch {
		case err != nil:
			return n, false, err
		case f.ok && excl:
			return n, false, fmt.Errorf("%q: %w", name, namespace.ErrExist)
		case f.ok && f.node.Attr.IsDir():
			return n, false, fmt.Errorf("%q: %w", name, namespace.ErrIsDir)
		case f.ok && !f.node.Attr.IsRegular():
			return n, false, fmt.Errorf("%q is no regular file: %w", name, namespace.ErrExist)
		case f.ok:
			return f.node, false, nil
		}
		n, err = fs.add(ctx, req, dir, name, f.version, mode, 0, "")
		if errors.Is(err, namespace.ErrChanged) || errors.Is(err, namespace.ErrExist) {
			continue
		}
		return n, err == nil, err
	}
	return n, false, fmt.Errorf("create %q: %w", name, namespace.ErrChanged)
}

// Mkdir makes a directory. Of mode the permission bits count, with the umask applied.
func (fs *FS) Mkdir(ctx context.Context, req Request, dir inode.Ino, name string, mode uint32) (Entry, error) {
	return fs.make(ctx, req, dir, name, inode.ModeDir|mode&inode.ModePerm, 0, "")
}

// Mknod makes a file of the type in mode: a regular file, FIFO, socket or device. Permission bits have the umask
// applied.
func (fs *FS) Mknod(ctx context.Context, req Request, dir inode.Ino, name string, mode, rdev uint32) (Entry, error) {
	switch mode & inode.ModeType {
	case 0:
		mode |= inode.ModeRegular
	case inode.ModeRegular, inode.ModeFIFO, inode.ModeSocket:
		rdev = 0
	case inode.ModeChar, inode.ModeBlock:
	default:
		return Entry{}, namespace.ErrInvalid
	}
	return fs.make(ctx, req, dir, name, mode&(inode.ModeType|inode.ModePerm), rdev, "")
}

// Symlink makes a symbolic link. A target that the metadata of an object cannot hold is ErrNameTooLong.
func (fs *FS) Symlink(ctx context.Context, req Request, dir inode.Ino, name, target string) (Entry, error) {
	switch {
	case target == "":
		return Entry{}, namespace.ErrNotExist
	case len(target) > maxTarget:
		return Entry{}, ErrNameTooLong
	}
	e, err := fs.make(ctx, req, dir, name, inode.ModeSymlink|0o777, 0, target)
	if errors.Is(err, namespace.ErrTooMany) {
		err = fmt.Errorf("target of %d bytes: %w", len(target), ErrNameTooLong)
	}
	return e, err
}

// make enters a new inode under a name that must not exist.
func (fs *FS) make(ctx context.Context, req Request, dir inode.Ino, name string, mode, rdev uint32, target string) (Entry, error) {
	if out, ok := fs.done(req); ok {
		return fs.outcome(out)
	}
	if err := fs.writable(ctx); err != nil {
		return Entry{}, err
	}
	for range maxRounds {
		f, err := fs.absent(ctx, dir, name)
		if err != nil {
			return Entry{}, err
		}
		n, err := fs.add(ctx, req, dir, name, f.version, mode, rdev, target)
		switch {
		case errors.Is(err, namespace.ErrChanged):
			continue
		case err != nil:
			return Entry{}, err
		}
		return fs.entry(n), nil
	}
	return Entry{}, fmt.Errorf("make %q: %w", name, namespace.ErrChanged)
}

// outcome is the answer to a request that made an entry, given again.
func (fs *FS) outcome(out namespace.Outcome) (Entry, error) {
	if out.Err != nil {
		return Entry{}, out.Err
	}
	n, err := fs.tree.Get(out.Ino)
	if err != nil {
		return Entry{}, err
	}
	return fs.entry(n), nil
}

// absent makes sure that a name does not exist.
func (fs *FS) absent(ctx context.Context, dir inode.Ino, name string) (found, error) {
	f, err := fs.resolve(ctx, dir, name)
	if err == nil && f.ok {
		err = fmt.Errorf("%q: %w", name, namespace.ErrExist)
	}
	return f, err
}

// add makes an inode in the tree, with the attributes that it gets from its maker and its directory.
func (fs *FS) add(ctx context.Context, req Request, dir inode.Ino, name string, version uint64, mode, rdev uint32, target string) (namespace.Node, error) {
	isDir := mode&inode.ModeType == inode.ModeDir
	if err := fs.checkName(dir, name, isDir); err != nil {
		return namespace.Node{}, err
	}
	attr, err := fs.newAttr(ctx, req, dir, mode, rdev)
	if err != nil {
		return namespace.Node{}, err
	}
	n, err := fs.tree.Create(req.op(), dir, name, version, attr, target)
	if err == nil {
		fs.usage.Add(0, 1)
	}
	return n, err
}

// newAttr is what an inode gets from its maker and its directory.
func (fs *FS) newAttr(ctx context.Context, req Request, dir inode.Ino, mode, rdev uint32) (inode.Attr, error) {
	d, err := fs.get(ctx, dir)
	if err != nil {
		return inode.Attr{}, err
	}
	now := fs.now()
	attr := inode.Attr{Mode: mode, Uid: req.Uid, Gid: req.Gid, Rdev: rdev, Atime: now, Mtime: now, Ctime: now}
	if d.Attr.Mode&syscall.S_ISGID != 0 {
		attr.Gid = d.Attr.Gid
		if attr.IsDir() {
			attr.Mode |= syscall.S_ISGID
		}
	}
	return attr, nil
}
