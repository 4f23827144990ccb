package fuse

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

const (
	blockSize = 4096
	statBlock = 512 // unit of st_blocks
	// notOurs is what an unknown ioctl is answered with.
	notOurs = syscall.ENOTTY
)

// entry fills the answer to a request that names an inode.
func entry(st fuse.Status, e vfs.Entry, out *fuse.EntryOut) fuse.Status {
	if st != fuse.OK {
		return st
	}
	out.NodeId = uint64(e.Attr.Ino)
	out.Generation = 1 // a number is never used again
	attr(e.Attr, &out.Attr)
	out.SetEntryTimeout(e.EntryTimeout)
	out.SetAttrTimeout(e.AttrTimeout)
	return st
}

func attr(a inode.Attr, out *fuse.Attr) {
	out.Ino = uint64(a.Ino)
	out.Size = uint64(a.Size)
	out.Blocks = uint64((a.Size + statBlock - 1) / statBlock)
	out.Atime, out.Atimensec = seconds(a.Atime)
	out.Mtime, out.Mtimensec = seconds(a.Mtime)
	out.Ctime, out.Ctimensec = seconds(a.Ctime)
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid, out.Gid = a.Uid, a.Gid
	out.Rdev = a.Rdev
	out.Blksize = blockSize
}

func seconds(t time.Time) (uint64, uint32) {
	if t.IsZero() {
		return 0, 0
	}
	return uint64(t.Unix()), uint32(t.Nanosecond())
}

func setAttr(in *fuse.SetAttrIn) vfs.SetAttr {
	var set vfs.SetAttr
	if v, ok := in.GetMode(); ok {
		set.Mode = &v
	}
	if v, ok := in.GetUID(); ok {
		set.Uid = &v
	}
	if v, ok := in.GetGID(); ok {
		set.Gid = &v
	}
	if v, ok := in.GetSize(); ok {
		size := int64(v)
		set.Size = &size
	}
	if v, ok := in.GetATime(); ok {
		set.Atime = &v
	}
	if v, ok := in.GetMTime(); ok {
		set.Mtime = &v
	}
	if v, ok := in.GetCTime(); ok {
		set.Ctime = &v
	}
	return set
}
