package fuse

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// fsyncDataOnly is FUSE_FSYNC_FDATASYNC.
const fsyncDataOnly = 1

// Open implements fuse.RawFileSystem.
func (f *filesystem) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		h, keep, err := f.core.Open(ctx, req, node(&in.InHeader), int(in.Flags))
		out.Fh = uint64(h)
		if keep {
			out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
		}
		return err
	})
}

// Read implements fuse.RawFileSystem. buf is part of the answer.
func (f *filesystem) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n := 0
	st := f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) (err error) {
		n, err = f.core.Read(ctx, req, node(&in.InHeader), vfs.HandleID(in.Fh), buf, int64(in.Offset))
		return err
	})
	if st == fuse.OK && n == len(buf) {
		return nil, st // the answer is complete as it is
	}
	return fuse.ReadResultData(buf[:n]), st
}

// Write implements fuse.RawFileSystem.
func (f *filesystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (written uint32, st fuse.Status) {
	st = f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		n, err := f.core.Write(ctx, req, node(&in.InHeader), vfs.HandleID(in.Fh), data, int64(in.Offset))
		written = uint32(n)
		return err
	})
	return written, st
}

// Flush implements fuse.RawFileSystem.
func (f *filesystem) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	return f.doIn(f.s.context(cancel, in.Pid, untilExit), &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		return f.core.Flush(ctx, req, node(&in.InHeader), vfs.HandleID(in.Fh))
	})
}

// Release implements fuse.RawFileSystem.
func (f *filesystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	f.core.Release(node(&in.InHeader), vfs.HandleID(in.Fh))
}

// Fsync implements fuse.RawFileSystem.
func (f *filesystem) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		return f.core.Fsync(ctx, req, node(&in.InHeader), vfs.HandleID(in.Fh), in.FsyncFlags&fsyncDataOnly != 0)
	})
}

// Fallocate implements fuse.RawFileSystem.
func (f *filesystem) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		return f.core.Fallocate(ctx, req, node(&in.InHeader), vfs.HandleID(in.Fh), int64(in.Offset), int64(in.Length), in.Mode)
	})
}

// Lseek implements fuse.RawFileSystem.
func (f *filesystem) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		pos, err := f.core.Lseek(ctx, req, node(&in.InHeader), int64(in.Offset), int(in.Whence))
		out.Offset = uint64(pos)
		return err
	})
}

// Ioctl implements fuse.RawFileSystem: the ioctls of control.go, on directories.
func (f *filesystem) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, _ []byte, out *fuse.IoctlOut, answer []byte) fuse.Status {
	const onDirectory = 1 << 4 // FUSE_IOCTL_DIR
	if in.Flags&onDirectory == 0 {
		return fuse.Status(notOurs)
	}
	switch in.Cmd {
	case IoctlStatus:
		text := []byte("{}")
		if f.s.opt.Status != nil {
			text = f.s.opt.Status()
		}
		if len(text) >= len(answer) {
			return fuse.EIO
		}
		clear(answer[copy(answer, text):])
		return fuse.OK
	case IoctlFlush:
		return f.doIn(f.s.context(cancel, in.Pid, untilSignal), &in.InHeader, func(ctx context.Context, _ vfs.Request) error {
			return f.core.FlushTree(ctx, node(&in.InHeader), nil)
		})
	}
	return fuse.Status(notOurs)
}
