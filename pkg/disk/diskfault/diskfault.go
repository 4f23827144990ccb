package diskfault

import (
	"errors"
	"io"
	"io/fs"
	"sync/atomic"

	"github.com/csi-s3/csi-s3/pkg/disk"
)

// Op is one call. Name is the method's name as in package disk ("WriteAt", "Sync", "SyncDir", ...).
type Op struct {
	Name string
	Path string
	Off  int64
	Len  int64
	N    int64 // number of the call on this disk, from 1
}

// Partial makes a WriteAt write only its first N bytes and then fail with Err.
type Partial struct {
	N   int
	Err error
}

// Error implements error.
func (p *Partial) Error() string { return "partial write: " + p.Err.Error() }

// Unwrap returns Err.
func (p *Partial) Unwrap() error { return p.Err }

// FS decorates a disk.
type FS struct {
	under disk.FS
	fault func(Op) error
	calls atomic.Int64
}

// New decorates under. fault is called before each call, from many goroutines; nil lets the call through, a *Partial
// lets a part of a write through, any other error is returned without the call. A nil fault only counts.
func New(under disk.FS, fault func(Op) error) *FS { return &FS{under: under, fault: fault} }

// Calls is the number of calls so far.
func (f *FS) Calls() int64 { return f.calls.Load() }

func (f *FS) ask(op Op) error {
	op.N = f.calls.Add(1)
	if f.fault == nil {
		return nil
	}
	return f.fault(op)
}

// OpenFile implements disk.FS.
func (f *FS) OpenFile(name string, create bool) (disk.File, error) {
	if err := f.ask(Op{Name: "OpenFile", Path: name}); err != nil {
		return nil, err
	}
	h, err := f.under.OpenFile(name, create)
	if err != nil {
		return nil, err
	}
	return &file{h, f, name}, nil
}

// ReadFile implements disk.FS.
func (f *FS) ReadFile(name string) ([]byte, error) {
	if err := f.ask(Op{Name: "ReadFile", Path: name}); err != nil {
		return nil, err
	}
	return f.under.ReadFile(name)
}

// MkdirAll implements disk.FS.
func (f *FS) MkdirAll(name string) error {
	if err := f.ask(Op{Name: "MkdirAll", Path: name}); err != nil {
		return err
	}
	return f.under.MkdirAll(name)
}

// ReadDir implements disk.FS.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := f.ask(Op{Name: "ReadDir", Path: name}); err != nil {
		return nil, err
	}
	return f.under.ReadDir(name)
}

// Rename implements disk.FS.
func (f *FS) Rename(oldname, newname string) error {
	if err := f.ask(Op{Name: "Rename", Path: oldname}); err != nil {
		return err
	}
	return f.under.Rename(oldname, newname)
}

// Remove implements disk.FS.
func (f *FS) Remove(name string) error {
	if err := f.ask(Op{Name: "Remove", Path: name}); err != nil {
		return err
	}
	return f.under.Remove(name)
}

// SyncDir implements disk.FS.
func (f *FS) SyncDir(name string) error {
	if err := f.ask(Op{Name: "SyncDir", Path: name}); err != nil {
		return err
	}
	return f.under.SyncDir(name)
}

// Space implements disk.FS.
func (f *FS) Space() (total, free int64, err error) {
	if err := f.ask(Op{Name: "Space"}); err != nil {
		return 0, 0, err
	}
	return f.under.Space()
}

// Lock implements disk.FS.
func (f *FS) Lock(name string) (io.Closer, error) {
	if err := f.ask(Op{Name: "Lock", Path: name}); err != nil {
		return nil, err
	}
	return f.under.Lock(name)
}

type file struct {
	under disk.File
	fs    *FS
	path  string
}

func (h *file) ReadAt(p []byte, off int64) (int, error) {
	if err := h.fs.ask(Op{Name: "ReadAt", Path: h.path, Off: off, Len: int64(len(p))}); err != nil {
		return 0, err
	}
	return h.under.ReadAt(p, off)
}

func (h *file) WriteAt(p []byte, off int64) (int, error) {
	if err := h.fs.ask(Op{Name: "WriteAt", Path: h.path, Off: off, Len: int64(len(p))}); err != nil {
		if part := (*Partial)(nil); errors.As(err, &part) {
			n, e := h.under.WriteAt(p[:min(part.N, len(p))], off)
			if e != nil {
				return n, e
			}
			return n, part.Err
		}
		return 0, err
	}
	return h.under.WriteAt(p, off)
}

func (h *file) Close() error { return h.under.Close() }

func (h *file) Truncate(size int64) error {
	if err := h.fs.ask(Op{Name: "Truncate", Path: h.path, Off: size}); err != nil {
		return err
	}
	return h.under.Truncate(size)
}

func (h *file) Size() (int64, error) {
	if err := h.fs.ask(Op{Name: "Size", Path: h.path}); err != nil {
		return 0, err
	}
	return h.under.Size()
}

func (h *file) Reserve(end int64) error {
	if err := h.fs.ask(Op{Name: "Reserve", Path: h.path, Off: end}); err != nil {
		return err
	}
	return h.under.Reserve(end)
}

func (h *file) PunchHole(off, end int64) error {
	if err := h.fs.ask(Op{Name: "PunchHole", Path: h.path, Off: off, Len: end - off}); err != nil {
		return err
	}
	return h.under.PunchHole(off, end)
}

func (h *file) Sync() error {
	if err := h.fs.ask(Op{Name: "Sync", Path: h.path}); err != nil {
		return err
	}
	return h.under.Sync()
}
