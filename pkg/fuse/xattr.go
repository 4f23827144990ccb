package fuse

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// GetXAttr implements fuse.RawFileSystem. An empty dest asks for the size.
func (f *filesystem) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (size uint32, st fuse.Status) {
	st = f.do(cancel, h, func(ctx context.Context, req vfs.Request) error {
		v, err := f.core.GetXattr(ctx, req, node(h), name)
		size = uint32(len(v))
		copy(dest, v)
		return err
	})
	return fits(size, dest, st)
}

// ListXAttr implements fuse.RawFileSystem. Each name ends with a NUL.
func (f *filesystem) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (size uint32, st fuse.Status) {
	st = f.do(cancel, h, func(ctx context.Context, req vfs.Request) error {
		names, err := f.core.ListXattr(ctx, req, node(h))
		var list []byte
		for _, n := range names {
			list = append(append(list, n...), 0)
		}
		size = uint32(len(list))
		copy(dest, list)
		return err
	})
	return fits(size, dest, st)
}

func fits(size uint32, dest []byte, st fuse.Status) (uint32, fuse.Status) {
	if st == fuse.OK && int(size) > len(dest) {
		st = fuse.ERANGE
	}
	return size, st
}

// SetXAttr implements fuse.RawFileSystem.
func (f *filesystem) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	return f.do(cancel, &in.InHeader, func(ctx context.Context, req vfs.Request) error {
		// The request's memory is used again after the answer.
		return f.core.SetXattr(ctx, req, node(&in.InHeader), name, append([]byte{}, value...), int(in.Flags))
	})
}

// RemoveXAttr implements fuse.RawFileSystem.
func (f *filesystem) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.do(cancel, h, func(ctx context.Context, req vfs.Request) error {
		return f.core.RemoveXattr(ctx, req, node(h), name)
	})
}
