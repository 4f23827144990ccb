package inode

import "time"

// Ino is an inode number, and the FUSE node ID of the same file.
type Ino uint64

// Root is the inode of a volume's root directory.
const Root Ino = 1

// File type bits of Attr.Mode, as in stat(2).
const (
	ModeType    = 0o170000
	ModeFIFO    = 0o010000
	ModeChar    = 0o020000
	ModeDir     = 0o040000
	ModeBlock   = 0o060000
	ModeRegular = 0o100000
	ModeSymlink = 0o120000
	ModeSocket  = 0o140000
	ModePerm    = 0o7777
)

// Attr is what stat(2) reports of a file. Times are kept in nanoseconds.
type Attr struct {
	Ino   Ino
	Mode  uint32 // type and permission bits, as st_mode
	Uid   uint32
	Gid   uint32
	Rdev  uint32
	Nlink uint32
	Size  int64 // bytes; of a symlink the length of its target; 4096 of a directory
	Atime time.Time
	Mtime time.Time
	Ctime time.Time
}

// IsDir, IsRegular and IsSymlink test the type bits.
func (a Attr) IsDir() bool     { return a.Mode&ModeType == ModeDir }
func (a Attr) IsRegular() bool { return a.Mode&ModeType == ModeRegular }
func (a Attr) IsSymlink() bool { return a.Mode&ModeType == ModeSymlink }
