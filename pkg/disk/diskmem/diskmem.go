package diskmem

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk"
)

const (
	page   = 4096
	sector = 512
)

// FS is a memory disk. All of it is guarded by mu.
type FS struct {
	mu       sync.Mutex
	tree     map[string]*node // path -> file or directory; "." is the root
	ops      []dirOp          // names changed since the last state that is durable as a whole
	saved    map[string]*node // tree as it is durable before ops
	locks    map[string]bool
	capacity int64
}

// node is a file, or a directory when dir is set.
type node struct {
	dir     bool
	data    []byte
	taken   int64 // by Reserve, in bytes
	durable []byte
	pending []fileOp // since the last Sync
}

// fileOp is a write (data), a hole (zeros) or a truncation (size).
type fileOp struct {
	off      int64
	data     []byte
	truncate bool
	size     int64
}

// dirOp is a change of names. need lists the directories whose SyncDir makes it durable.
type dirOp struct {
	add, remove string
	n           *node
	need        []string
}

// New returns an empty disk with room for a tebibyte.
func New() *FS {
	root := map[string]*node{".": {dir: true}}
	return &FS{tree: root, saved: map[string]*node{".": root["."]}, locks: map[string]bool{}, capacity: 1 << 40}
}

// SetCapacity limits the sum of file sizes, in bytes: writes beyond it fail with disk.ErrNoSpace.
func (f *FS) SetCapacity(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.capacity = n
}

// Clone is the disk after a kill of the process: all that was written, and the same things durable. Locks are gone.
func (f *FS) Clone() *FS { return f.clone(Chance, nil) }

// CrashClone is the disk after a power cut: what was durable, and of the rest what chance keeps.
func (f *FS) CrashClone(rnd *rand.Rand) *FS { return f.clone(Chance, rnd) }

// CrashCloneAs is the disk after a power cut that deals with what was not synced in one way.
func (f *FS) CrashCloneAs(loss Loss, rnd *rand.Rand) *FS { return f.clone(loss, rnd) }

// Loss is what a power cut does to what was not synced.
type Loss int

// Ways to lose.
const (
	Chance Loss = iota // any pages, sizes and names are kept, whatever their order
	Drop               // nothing is kept
	Keep               // all is kept
	Tear               // of each file, and of the names, what came first is kept; the write at the cut in part, by sectors
)

// clone copies the disk; rnd nil is a kill.
func (f *FS) clone(loss Loss, rnd *rand.Rand) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := New()
	c.capacity = f.capacity
	copies := map[*node]*node{}
	dup := func(n *node) *node {
		if m := copies[n]; m != nil {
			return m
		}
		m := &node{dir: n.dir}
		if rnd == nil {
			m.data, m.durable, m.pending = slices.Clone(n.data), slices.Clone(n.durable), slices.Clone(n.pending)
			m.taken = n.taken
		} else {
			m.data = n.crash(loss, rnd)
			m.durable = slices.Clone(m.data)
		}
		copies[n] = m
		return m
	}
	for p, n := range f.saved {
		c.saved[p] = dup(n)
	}
	if rnd == nil {
		for p, n := range f.tree {
			c.tree[p] = dup(n)
		}
		for _, op := range f.ops {
			if op.n != nil {
				op.n = dup(op.n)
			}
			op.need = slices.Clone(op.need)
			c.ops = append(c.ops, op)
		}
		return c
	}
	keep, first := rnd.Float64(), rnd.IntN(len(f.ops)+1)
	for i, op := range f.ops {
		kept := rnd.Float64() < keep
		switch loss {
		case Drop:
			kept = false
		case Keep:
			kept = true
		case Tear:
			kept = i < first
		}
		if len(op.need) == 0 || kept {
			if op.n != nil {
				op.n = dup(op.n)
			}
			op.apply(c.saved)
		}
	}
	for p, n := range c.saved {
		c.tree[p] = n
	}
	return c
}

// apply carries out a change of names if the directory is there.
func (op dirOp) apply(tree map[string]*node) {
	if op.remove != "" {
		delete(tree, op.remove)
	}
	if op.add != "" && tree[path.Dir(op.add)] != nil {
		tree[op.add] = op.n
	}
}

// crash is a file's content after a power cut.
func (n *node) crash(loss Loss, rnd *rand.Rand) []byte {
	data := slices.Clone(n.durable)
	switch loss {
	case Drop:
		return data
	case Keep:
		return slices.Clone(n.data)
	case Tear:
		return n.tear(data, rnd.IntN(len(n.pending)+1), rnd)
	}
	keep := rnd.Float64()
	for _, op := range n.pending {
		if op.truncate {
			if rnd.Float64() < keep {
				data = resize(data, op.size)
			}
			continue
		}
		for at := int64(0); at < int64(len(op.data)); {
			end := min((op.off+at)/page*page+page-op.off, int64(len(op.data)))
			if rnd.Float64() < keep {
				data = write(data, op.data[at:end], op.off+at)
			}
			at = end
		}
		if rnd.IntN(4) == 0 && int64(len(data)) < op.off+int64(len(op.data)) {
			data = resize(data, op.off+int64(len(op.data))) // the size without the data
		}
	}
	return data
}

// tear makes the first whole changes and a part of the next one.
func (n *node) tear(data []byte, whole int, rnd *rand.Rand) []byte {
	for i, op := range n.pending {
		switch {
		case i > whole || i == whole && op.truncate:
			return data
		case op.truncate:
			data = resize(data, op.size)
		case i < whole:
			data = write(data, op.data, op.off)
		default:
			end := op.off + rnd.Int64N(int64(len(op.data))+1)
			if end -= end % sector; end > op.off {
				data = write(data, op.data[:end-op.off], op.off)
			}
		}
	}
	return data
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

func write(b, p []byte, off int64) []byte {
	if end := off + int64(len(p)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[off:], p)
	return b
}

func clean(name string) (string, error) {
	if name == "" || strings.HasPrefix(name, "/") || slices.Contains(strings.Split(name, "/"), "..") {
		return "", fmt.Errorf("%q leaves the disk: %w", name, fs.ErrInvalid)
	}
	return path.Clean(name), nil
}

func notExist(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist} }

// change records and carries out a change of names.
func (f *FS) change(op dirOp) {
	f.ops = append(f.ops, op)
	op.apply(f.tree)
}

// OpenFile implements disk.FS.
func (f *FS) OpenFile(name string, create bool) (disk.File, error) {
	name, err := clean(name)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.tree[name]
	if n == nil {
		if d := f.tree[path.Dir(name)]; !create || d == nil || !d.dir {
			return nil, notExist("open", name)
		}
		n = &node{}
		f.change(dirOp{add: name, n: n, need: []string{path.Dir(name)}})
	}
	if n.dir {
		return nil, fmt.Errorf("open %q: is a directory: %w", name, disk.ErrIO)
	}
	return &file{fs: f, n: n}, nil
}

// ReadFile implements disk.FS.
func (f *FS) ReadFile(name string) ([]byte, error) {
	name, err := clean(name)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.tree[name]
	if n == nil || n.dir {
		return nil, notExist("read", name)
	}
	return slices.Clone(n.data), nil
}

// MkdirAll implements disk.FS.
func (f *FS) MkdirAll(name string) error {
	name, err := clean(name)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	parts := strings.Split(name, "/")
	for i := range parts {
		p := path.Join(parts[:i+1]...)
		n := f.tree[p]
		if n == nil {
			f.change(dirOp{add: p, n: &node{dir: true}, need: []string{path.Dir(p)}})
		} else if !n.dir {
			return &fs.PathError{Op: "mkdir", Path: p, Err: fs.ErrExist}
		}
	}
	return nil
}

// ReadDir implements disk.FS.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	name, err := clean(name)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.tree[name]; d == nil || !d.dir {
		return nil, notExist("readdir", name)
	}
	var out []fs.DirEntry
	for p, n := range f.tree {
		if p != "." && path.Dir(p) == name {
			out = append(out, entry{path.Base(p), n.dir, int64(len(n.data))})
		}
	}
	slices.SortFunc(out, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return out, nil
}

// Rename implements disk.FS. Directories are not renamed.
func (f *FS) Rename(oldname, newname string) error {
	oldname, err := clean(oldname)
	if err != nil {
		return err
	}
	if newname, err = clean(newname); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n, d := f.tree[oldname], f.tree[path.Dir(newname)]
	if n == nil || n.dir || d == nil || !d.dir {
		return notExist("rename", oldname)
	}
	need := []string{path.Dir(oldname)}
	if d := path.Dir(newname); d != need[0] {
		need = append(need, d)
	}
	f.change(dirOp{remove: oldname, add: newname, n: n, need: need})
	return nil
}

// Remove implements disk.FS.
func (f *FS) Remove(name string) error {
	name, err := clean(name)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.tree[name]
	if n == nil {
		return notExist("remove", name)
	}
	if n.dir {
		for p := range f.tree {
			if p != name && path.Dir(p) == name {
				return fmt.Errorf("remove %q: directory not empty: %w", name, disk.ErrIO)
			}
		}
	}
	f.change(dirOp{remove: name, need: []string{path.Dir(name)}})
	return nil
}

// SyncDir implements disk.FS.
func (f *FS) SyncDir(name string) error {
	name, err := clean(name)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.tree[name]; d == nil || !d.dir {
		return notExist("sync", name)
	}
	for i := range f.ops {
		f.ops[i].need = slices.DeleteFunc(f.ops[i].need, func(d string) bool { return d == name })
	}
	for len(f.ops) > 0 && len(f.ops[0].need) == 0 {
		f.ops[0].apply(f.saved)
		f.ops = f.ops[1:]
	}
	return nil
}

// Space implements disk.FS.
func (f *FS) Space() (total, free int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.capacity, max(0, f.capacity-f.used()), nil
}

func (f *FS) used() int64 {
	var n int64
	for _, m := range f.tree {
		n += max(int64(len(m.data)), m.taken)
	}
	return n
}

// Lock implements disk.FS.
func (f *FS) Lock(name string) (io.Closer, error) {
	name, err := clean(name)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.locks[name] {
		return nil, disk.ErrLocked
	}
	f.locks[name] = true
	return &lock{f, name}, nil
}

type lock struct {
	fs   *FS
	name string
}

func (l *lock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	delete(l.fs.locks, l.name)
	return nil
}

// file is an open file.
type file struct {
	fs *FS
	n  *node
}

func (h *file) ReadAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if off >= int64(len(h.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *file) WriteAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if grow := off + int64(len(p)) - max(int64(len(h.n.data)), h.n.taken); grow > 0 && h.fs.used()+grow > h.fs.capacity {
		return 0, disk.ErrNoSpace
	}
	h.n.data = write(h.n.data, p, off)
	h.n.pending = append(h.n.pending, fileOp{off: off, data: slices.Clone(p)})
	return len(p), nil
}

func (h *file) Reserve(end int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if grow := end - max(int64(len(h.n.data)), h.n.taken); grow > 0 && h.fs.used()+grow > h.fs.capacity {
		return disk.ErrNoSpace
	}
	h.n.taken = max(h.n.taken, end)
	return nil
}

func (h *file) Truncate(size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	h.n.taken = min(h.n.taken, size)
	h.n.data = resize(h.n.data, size)
	h.n.pending = append(h.n.pending, fileOp{truncate: true, size: size})
	return nil
}

func (h *file) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	return int64(len(h.n.data)), nil
}

func (h *file) PunchHole(off, end int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if end = min(end, int64(len(h.n.data))); off >= end {
		return nil
	}
	zeros := make([]byte, end-off)
	h.n.data = write(h.n.data, zeros, off)
	h.n.pending = append(h.n.pending, fileOp{off: off, data: zeros})
	return nil
}

func (h *file) Sync() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	h.n.durable = slices.Clone(h.n.data)
	h.n.pending = nil
	return nil
}

func (h *file) Close() error { return nil }

// entry describes a name of a directory.
type entry struct {
	name string
	dir  bool
	size int64
}

func (e entry) Name() string               { return e.name }
func (e entry) IsDir() bool                { return e.dir }
func (e entry) Info() (fs.FileInfo, error) { return e, nil }
func (e entry) Size() int64                { return e.size }
func (e entry) ModTime() time.Time         { return time.Time{} }
func (e entry) Sys() any                   { return nil }
func (e entry) Mode() fs.FileMode {
	if e.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}
func (e entry) Type() fs.FileMode { return e.Mode().Type() }
