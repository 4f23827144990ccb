package fuse

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// filesystem implements fuse.RawFileSystem over the core. What it does not have is ENOSYS: the kernel then does it
// itself (locks, access, copies) or gives up (poll).
type filesystem struct {
	fuse.RawFileSystem
	core Core
	s    *Server
}

// String implements fuse.RawFileSystem.
func (f *filesystem) String() string { return "csi-s3" }

// do runs one request of the core.
func (f *filesystem) do(cancel <-chan struct{}, h *fuse.InHeader, op func(context.Context, vfs.Request) error) fuse.Status {
	return f.doIn(f.s.context(cancel, h.Pid, untilDeath), h, op)
}

// doIn runs one request of the core in its context.
func (f *filesystem) doIn(ctx *requestContext, h *fuse.InHeader, op func(context.Context, vfs.Request) error) fuse.Status {
	defer ctx.finish()
	return fuse.Status(vfs.Errno(op(ctx, vfs.Request{
		Uid: h.Uid, Gid: h.Gid, Pid: h.Pid,
		Unique: h.Unique &^ resentBit, Resent: h.Unique&resentBit != 0,
	})))
}

func node(h *fuse.InHeader) inode.Ino { return inode.Ino(h.NodeId) }

// Lookup implements fuse.RawFileSystem.
func (f *filesystem) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	var e vfs.Entry
	st := f.do(cancel, h, func(ctx context.Context, req vfs.Request) (err error) {
		e, err = f.core.Lookup(ctx, req, node(h), name)
		return err
	})
	if st == fuse.ENOENT && e.EntryTimeout > 0 {
		// An entry without an inode is one that the kernel may remember not to exist.
		out.NodeId = 0
		out.SetEntryTimeout(e.EntryTimeout)
		return fuse.OK
	}
	return entry(st, e, out)
}

// Forget implements fuse.RawFileSystem.
func (f *filesystem) Forget(nodeid, nlookup uint64) { f.core.Forget(inode.Ino(nodeid), nlookup) }

// GetAttr implements fuse.RawFileSystem.
func (f *filesystem) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		a, ttl, err := f.core.GetAttr(ctx, req, node(&in.InHeader))
		attr(a, &out.Attr)
		out.SetTimeout(ttl)
		return err
	})
}

// SetAttr implements fuse.RawFileSystem.
func (f *filesystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		fh, _ := in.GetFh()
		a, ttl, err := f.core.SetAttr(ctx, req, node(&in.InHeader), vfs.HandleID(fh), setAttr(in))
		attr(a, &out.Attr)
		out.SetTimeout(ttl)
		return err
	})
}

// StatFs implements fuse.RawFileSystem.
func (f *filesystem) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	return f.do(cancel, h, func(ctx context.Context, _ vfs.Request) error {
		s, err := f.core.Statfs(ctx)
		if err != nil {
			return err
		}
		block := int64(s.BlockSize)
		*out = fuse.StatfsOut{
			Blocks: uint64(s.Total / block), Bfree: uint64(s.Free / block), Bavail: uint64(s.Free / block),
			Files: s.Files, Ffree: s.Ffree, Bsize: s.BlockSize, Frsize: s.BlockSize, NameLen: s.NameMax,
		}
		return nil
	})
}
