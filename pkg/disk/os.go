package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// OS is the real file system below a directory. It never leaves that directory, not even by a symlink (os.Root).
type OS struct{ root *os.Root }

// OpenOS opens a directory as the root, making it with mode 0700 when it is missing.
func OpenOS(dir string) (*OS, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, wrap(err)
	}
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, wrap(err)
	}
	return &OS{r}, nil
}

// Close releases the root. Open files stay usable.
func (o *OS) Close() error { return wrap(o.root.Close()) }

// wrap adds the sentinel that stands for a system error.
func wrap(err error) error {
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrExist):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	default:
		return fmt.Errorf("%w: %w", ErrIO, err)
	}
}

// OpenFile implements FS.
func (o *OS) OpenFile(name string, create bool) (File, error) {
	flags := os.O_RDWR | unix.O_NOFOLLOW
	if create {
		flags |= os.O_CREATE
	}
	f, err := o.root.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, wrap(err)
	}
	return &osFile{f}, nil
}

// ReadFile implements FS.
func (o *OS) ReadFile(name string) ([]byte, error) {
	b, err := o.root.ReadFile(name)
	return b, wrap(err)
}

// MkdirAll implements FS.
func (o *OS) MkdirAll(name string) error { return wrap(o.root.MkdirAll(name, 0o700)) }

// ReadDir implements FS.
func (o *OS) ReadDir(name string) ([]fs.DirEntry, error) {
	d, err := o.root.Open(name)
	if err != nil {
		return nil, wrap(err)
	}
	entries, err := d.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, wrap(errors.Join(err, d.Close()))
}

// Rename implements FS.
func (o *OS) Rename(oldname, newname string) error { return wrap(o.root.Rename(oldname, newname)) }

// Remove implements FS.
func (o *OS) Remove(name string) error { return wrap(o.root.Remove(name)) }

// SyncDir implements FS.
func (o *OS) SyncDir(name string) error {
	d, err := o.root.Open(name)
	if err != nil {
		return wrap(err)
	}
	return wrap(errors.Join(d.Sync(), d.Close()))
}

// Space implements FS.
func (o *OS) Space() (total, free int64, err error) {
	d, err := o.root.Open(".")
	if err != nil {
		return 0, 0, wrap(err)
	}
	var s unix.Statfs_t
	err = unix.Fstatfs(int(d.Fd()), &s)
	if err = errors.Join(err, d.Close()); err != nil {
		return 0, 0, wrap(err)
	}
	return int64(s.Blocks) * s.Bsize, int64(s.Bavail) * s.Bsize, nil
}

// Lock implements FS.
func (o *OS) Lock(name string) (io.Closer, error) {
	f, err := o.root.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, wrap(err)
	}
	return flock(f)
}

// flock locks an open file, or closes it.
func flock(f *os.File) (io.Closer, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		} else {
			err = wrap(err)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

type osFile struct{ f *os.File }

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.f.ReadAt(p, off)
	return n, wrap(err)
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.f.WriteAt(p, off)
	return n, wrap(err)
}

func (f *osFile) Close() error              { return wrap(f.f.Close()) }
func (f *osFile) Truncate(size int64) error { return wrap(f.f.Truncate(size)) }

func (f *osFile) Size() (int64, error) {
	st, err := f.f.Stat()
	if err != nil {
		return 0, wrap(err)
	}
	return st.Size(), nil
}

// Reserve takes the blocks.
func (f *osFile) Reserve(end int64) error {
	for {
		switch err := unix.Fallocate(int(f.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, end); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP):
			return nil
		default:
			return wrap(err)
		}
	}
}

// PunchHole frees the blocks; a file system that cannot gets zeros written.
func (f *osFile) PunchHole(off, end int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	end = min(end, size)
	if off >= end {
		return nil
	}
	err = unix.Fallocate(int(f.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, end-off)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return wrap(err)
	}
	zeros := make([]byte, min(end-off, 1<<20))
	for ; off < end; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), end-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// Sync is fdatasync(2): it makes the data durable, and of the metadata what is needed to read it, the size.
func (f *osFile) Sync() error {
	var err error
	ctl, e := f.f.SyscallConn()
	if e != nil {
		return wrap(e)
	}
	if e := ctl.Control(func(fd uintptr) {
		for err = unix.Fdatasync(int(fd)); errors.Is(err, unix.EINTR); {
			err = unix.Fdatasync(int(fd))
		}
	}); e != nil {
		return wrap(e)
	}
	return wrap(err)
}
