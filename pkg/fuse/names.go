package fuse

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// enter runs a request that answers with an entry.
func (f *filesystem) enter(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.EntryOut, op func(context.Context, vfs.Request) (vfs.Entry, error)) fuse.Status {
	var e vfs.Entry
	st := f.do(cancel, h, func(ctx context.Context, req vfs.Request) (err error) {
		e, err = op(ctx, req)
		return err
	})
	return entry(st, e, out)
}

// Mknod implements fuse.RawFileSystem.
func (f *filesystem) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.enter(cancel, &in.InHeader, out, func(ctx context.Context, req vfs.Request) (vfs.Entry, error) {
		return f.core.Mknod(ctx, req, node(&in.InHeader), name, in.Mode, in.Rdev)
	})
}

// Mkdir implements fuse.RawFileSystem.
func (f *filesystem) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.enter(cancel, &in.InHeader, out, func(ctx context.Context, req vfs.Request) (vfs.Entry, error) {
		return f.core.Mkdir(ctx, req, node(&in.InHeader), name, in.Mode)
	})
}

// Symlink implements fuse.RawFileSystem.
func (f *filesystem) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return f.enter(cancel, h, out, func(ctx context.Context, req vfs.Request) (vfs.Entry, error) {
		return f.core.Symlink(ctx, req, node(h), name, target)
	})
}

// Link implements fuse.RawFileSystem.
func (f *filesystem) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.enter(cancel, &in.InHeader, out, func(ctx context.Context, req vfs.Request) (vfs.Entry, error) {
		return f.core.Link(ctx, req, inode.Ino(in.Oldnodeid), node(&in.InHeader), name)
	})
}

// Create implements fuse.RawFileSystem.
func (f *filesystem) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return f.enter(cancel, &in.InHeader, &out.EntryOut, func(ctx context.Context, req vfs.Request) (vfs.Entry, error) {
		e, h, err := f.core.Create(ctx, req, node(&in.InHeader), name, in.Mode, int(in.Flags))
		out.Fh, out.OpenFlags = uint64(h), fuse.FOPEN_KEEP_CACHE
		return e, err
	})
}

// Tmpfile implements fuse.RawFileSystem.
func (f *filesystem) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return f.enter(cancel, &in.InHeader, &out.EntryOut, func(ctx context.Context, req vfs.Request) (vfs.Entry, error) {
		e, h, err := f.core.Tmpfile(ctx, req, node(&in.InHeader), in.Mode, int(in.Flags))
		out.Fh, out.OpenFlags = uint64(h), fuse.FOPEN_KEEP_CACHE
		return e, err
	})
}

// Readlink implements fuse.RawFileSystem.
func (f *filesystem) Readlink(cancel <-chan struct{}, h *fuse.InHeader) (target []byte, st fuse.Status) {
	st = f.do(cancel, h, func(ctx context.Context, req vfs.Request) error {
		t, err := f.core.Readlink(ctx, req, node(h))
		target = []byte(t)
		return err
	})
	return target, st
}

// Unlink implements fuse.RawFileSystem.
func (f *filesystem) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.do(cancel, h, func(ctx context.Context, req vfs.Request) error { return f.core.Unlink(ctx, req, node(h), name) })
}

// Rmdir implements fuse.RawFileSystem.
func (f *filesystem) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.do(cancel, h, func(ctx context.Context, req vfs.Request) error { return f.core.Rmdir(ctx, req, node(h), name) })
}

// Rename implements fuse.RawFileSystem.
func (f *filesystem) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		return f.core.Rename(ctx, req, node(&in.InHeader), oldName, inode.Ino(in.Newdir), newName, in.Flags)
	})
}

// OpenDir implements fuse.RawFileSystem.
func (f *filesystem) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		h, err := f.core.OpenDir(ctx, req, node(&in.InHeader))
		out.Fh = uint64(h)
		return err
	})
}

// ReadDir implements fuse.RawFileSystem.
func (f *filesystem) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		return f.core.ReadDir(ctx, req, node(&in.InHeader), vfs.HandleID(in.Fh), in.Offset, false, func(d vfs.DirEntry, _ vfs.Entry) bool {
			return out.AddDirEntry(dirEntry(d))
		})
	})
}

// ReadDirPlus implements fuse.RawFileSystem.
func (f *filesystem) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		return f.core.ReadDir(ctx, req, node(&in.InHeader), vfs.HandleID(in.Fh), in.Offset, true, func(d vfs.DirEntry, e vfs.Entry) bool {
			o := out.AddDirLookupEntry(dirEntry(d))
			if o != nil && e.Attr.Ino != 0 {
				entry(fuse.OK, e, o)
			}
			return o != nil
		})
	})
}

func dirEntry(d vfs.DirEntry) fuse.DirEntry {
	return fuse.DirEntry{Name: d.Name, Ino: uint64(d.Ino), Mode: d.Type, Off: d.Offset}
}

// ReleaseDir implements fuse.RawFileSystem.
func (f *filesystem) ReleaseDir(in *fuse.ReleaseIn) { f.core.ReleaseDir(vfs.HandleID(in.Fh)) }

// FsyncDir implements fuse.RawFileSystem.
func (f *filesystem) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		return f.core.FsyncDir(ctx, req, node(&in.InHeader))
	})
}
