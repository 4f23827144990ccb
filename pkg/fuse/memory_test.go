package fuse

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// memory is a core of a few maps. It writes down what it is asked.
type memory struct {
	ttl      time.Duration // of entries and attributes
	negative time.Duration // of names that do not exist
	discard  bool          // file contents are zeros

	// hook, if not nil, runs before a call, which ends with its error.
	hook func(ctx context.Context, op string, ino inode.Ino) error

	mu      sync.Mutex
	nodes   map[inode.Ino]*memNode
	last    inode.Ino
	handles map[vfs.HandleID][]string // of directories: their names
	handle  vfs.HandleID
	calls   []string
	reqs    map[string]vfs.Request // the last of each operation
}

type memNode struct {
	attr     inode.Attr
	children map[string]inode.Ino
	target   string
	data     []byte
	xattr    map[string][]byte
}

func newMemory() *memory {
	m := &memory{
		nodes: map[inode.Ino]*memNode{}, last: inode.Root, handles: map[vfs.HandleID][]string{}, reqs: map[string]vfs.Request{},
	}
	m.nodes[inode.Root] = &memNode{
		attr:     inode.Attr{Ino: inode.Root, Mode: unix.S_IFDIR | 0o777, Nlink: 2, Size: 4096},
		children: map[string]inode.Ino{}, xattr: map[string][]byte{},
	}
	return m
}

// call writes a call down and runs the hook.
func (m *memory) call(ctx context.Context, req vfs.Request, op string, ino inode.Ino, args ...any) error {
	text := fmt.Sprint(op, " ", ino)
	for _, a := range args {
		text += fmt.Sprint(" ", a)
	}
	m.mu.Lock()
	if !m.discard {
		m.calls = append(m.calls, text)
	}
	m.reqs[op] = req
	hook := m.hook
	m.mu.Unlock()
	if hook != nil {
		return hook(ctx, op, ino)
	}
	return nil
}

// setHook changes the hook while the mount is served.
func (m *memory) setHook(h func(ctx context.Context, op string, ino inode.Ino) error) {
	m.mu.Lock()
	m.hook = h
	m.mu.Unlock()
}

// take returns the calls since the last take that begin with one of the operations, all for none.
func (m *memory) take(ops ...string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var got []string
	for _, c := range m.calls {
		op, _, _ := strings.Cut(c, " ")
		if len(ops) == 0 || slices.Contains(ops, op) {
			got = append(got, c)
		}
	}
	m.calls = nil
	return got
}

// ino is the inode of a path from the root, 0 for none.
func (m *memory) ino(path string) inode.Ino {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := inode.Root
	for name := range strings.SplitSeq(path, "/") {
		n := m.nodes[at]
		if n == nil {
			return 0
		}
		at = n.children[name]
	}
	return at
}

// add makes a file outside of the mount.
func (m *memory) add(dir inode.Ino, name string, mode uint32, size int64) inode.Ino {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.addLocked(dir, name, mode, size).attr.Ino
}

func (m *memory) addLocked(dir inode.Ino, name string, mode uint32, size int64) *memNode {
	m.last++
	now := time.Now()
	n := &memNode{
		attr:  inode.Attr{Ino: m.last, Mode: mode, Nlink: 1, Size: size, Atime: now, Mtime: now, Ctime: now},
		xattr: map[string][]byte{},
	}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		n.children = map[string]inode.Ino{}
		n.attr.Size = 4096
	} else if !m.discard {
		n.data = make([]byte, size)
	}
	m.nodes[m.last] = n
	if d := m.nodes[dir]; d != nil && d.children != nil && name != "" {
		d.children[name] = m.last
	}
	return n
}

func (m *memory) entryLocked(n *memNode) vfs.Entry {
	return vfs.Entry{Attr: n.attr, AttrTimeout: m.ttl, EntryTimeout: m.ttl}
}

// enter runs the hook, then makes a new inode.
func (m *memory) enter(ctx context.Context, req vfs.Request, op string, dir inode.Ino, name string, mode uint32, args ...any) (vfs.Entry, error) {
	shown := append([]any{name, fmt.Sprintf("%o", mode)}, args...)
	if err := m.call(ctx, req, op, dir, shown...); err != nil {
		return vfs.Entry{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.nodes[dir]; d == nil || d.children == nil {
		return vfs.Entry{}, namespace.ErrNotDir
	} else if name != "" && d.children[name] != 0 {
		return vfs.Entry{}, namespace.ErrExist
	}
	n := m.addLocked(dir, name, mode, 0)
	n.attr.Uid, n.attr.Gid = req.Uid, req.Gid
	return m.entryLocked(n), nil
}

func (m *memory) openLocked() vfs.HandleID {
	m.handle++
	return m.handle
}

func (m *memory) Lookup(ctx context.Context, req vfs.Request, dir inode.Ino, name string) (vfs.Entry, error) {
	if err := m.call(ctx, req, "lookup", dir, name); err != nil {
		return vfs.Entry{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.nodes[dir]; d != nil {
		if n := m.nodes[d.children[name]]; n != nil {
			return m.entryLocked(n), nil
		}
	}
	return vfs.Entry{EntryTimeout: m.negative}, namespace.ErrNotExist
}

func (m *memory) Forget(ino inode.Ino, n uint64) {
	_ = m.call(context.Background(), vfs.Request{}, "forget", ino, n)
}

func (m *memory) GetAttr(ctx context.Context, req vfs.Request, ino inode.Ino) (inode.Attr, time.Duration, error) {
	if err := m.call(ctx, req, "getattr", ino); err != nil {
		return inode.Attr{}, 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[ino]
	if n == nil {
		return inode.Attr{}, 0, namespace.ErrStale
	}
	return n.attr, m.ttl, nil
}

func (m *memory) SetAttr(ctx context.Context, req vfs.Request, ino inode.Ino, h vfs.HandleID, set vfs.SetAttr) (inode.Attr, time.Duration, error) {
	var fields []any
	if set.Mode != nil {
		fields = append(fields, fmt.Sprintf("mode=%o", *set.Mode))
	}
	if set.Uid != nil {
		fields = append(fields, fmt.Sprint("uid=", *set.Uid))
	}
	if set.Gid != nil {
		fields = append(fields, fmt.Sprint("gid=", *set.Gid))
	}
	if set.Size != nil {
		fields = append(fields, fmt.Sprint("size=", *set.Size))
	}
	if set.Atime != nil {
		fields = append(fields, fmt.Sprint("atime=", set.Atime.UnixNano()))
	}
	if set.Mtime != nil {
		fields = append(fields, fmt.Sprint("mtime=", set.Mtime.UnixNano()))
	}
	if h != 0 {
		fields = append(fields, "handle")
	}
	if err := m.call(ctx, req, "setattr", ino, fields...); err != nil {
		return inode.Attr{}, 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[ino]
	if n == nil {
		return inode.Attr{}, 0, namespace.ErrStale
	}
	if set.Mode != nil {
		n.attr.Mode = n.attr.Mode&unix.S_IFMT | *set.Mode&^unix.S_IFMT
	}
	if set.Uid != nil {
		n.attr.Uid = *set.Uid
	}
	if set.Gid != nil {
		n.attr.Gid = *set.Gid
	}
	if set.Size != nil {
		m.resizeLocked(n, *set.Size)
	}
	if set.Atime != nil {
		n.attr.Atime = *set.Atime
	}
	if set.Mtime != nil {
		n.attr.Mtime = *set.Mtime
	}
	return n.attr, m.ttl, nil
}

func (m *memory) resizeLocked(n *memNode, size int64) {
	if !m.discard && size >= 0 && size <= 64<<20 {
		n.data = append(n.data, make([]byte, max(0, size-int64(len(n.data))))...)[:size]
	}
	n.attr.Size = size
}

// flagText names the flags of open that the tests look at.
func flagText(flags int) string {
	text := "flags"
	for _, f := range []struct {
		bit  int
		name string
	}{{unix.O_RDWR, "rdwr"}, {unix.O_WRONLY, "wronly"}, {unix.O_EXCL, "excl"}, {unix.O_TRUNC, "trunc"}, {unix.O_APPEND, "append"}} {
		if flags&f.bit != 0 {
			text += "," + f.name
		}
	}
	return text
}

func (m *memory) Create(ctx context.Context, req vfs.Request, dir inode.Ino, name string, mode uint32, flags int) (vfs.Entry, vfs.HandleID, error) {
	e, err := m.enter(ctx, req, "create", dir, name, mode, flagText(flags))
	m.mu.Lock()
	defer m.mu.Unlock()
	return e, m.openLocked(), err
}

func (m *memory) Tmpfile(ctx context.Context, req vfs.Request, dir inode.Ino, mode uint32, flags int) (vfs.Entry, vfs.HandleID, error) {
	e, err := m.enter(ctx, req, "tmpfile", dir, "", mode, flagText(flags&^unix.O_EXCL))
	m.mu.Lock()
	defer m.mu.Unlock()
	return e, m.openLocked(), err
}

func (m *memory) Mkdir(ctx context.Context, req vfs.Request, dir inode.Ino, name string, mode uint32) (vfs.Entry, error) {
	return m.enter(ctx, req, "mkdir", dir, name, unix.S_IFDIR|mode)
}

func (m *memory) Mknod(ctx context.Context, req vfs.Request, dir inode.Ino, name string, mode, rdev uint32) (vfs.Entry, error) {
	e, err := m.enter(ctx, req, "mknod", dir, name, mode, rdev)
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[e.Attr.Ino]; n != nil {
		n.attr.Rdev, e.Attr.Rdev = rdev, rdev
	}
	return e, err
}

func (m *memory) Symlink(ctx context.Context, req vfs.Request, dir inode.Ino, name, target string) (vfs.Entry, error) {
	e, err := m.enter(ctx, req, "symlink", dir, name, unix.S_IFLNK|0o777, target)
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[e.Attr.Ino]; n != nil {
		n.target, n.attr.Size = target, int64(len(target))
		e.Attr.Size = n.attr.Size
	}
	return e, err
}

func (m *memory) Link(ctx context.Context, req vfs.Request, ino, dir inode.Ino, name string) (vfs.Entry, error) {
	if err := m.call(ctx, req, "link", ino, dir, name); err != nil {
		return vfs.Entry{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, d := m.nodes[ino], m.nodes[dir]
	if n == nil || d == nil || d.children == nil {
		return vfs.Entry{}, namespace.ErrStale
	}
	d.children[name] = ino
	n.attr.Nlink++
	return m.entryLocked(n), nil
}

func (m *memory) Readlink(ctx context.Context, req vfs.Request, ino inode.Ino) (string, error) {
	if err := m.call(ctx, req, "readlink", ino); err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[ino]
	if n == nil {
		return "", namespace.ErrStale
	}
	return n.target, nil
}

func (m *memory) remove(ctx context.Context, req vfs.Request, op string, dir inode.Ino, name string) error {
	if err := m.call(ctx, req, op, dir, name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.nodes[dir]
	if d == nil || d.children[name] == 0 {
		return namespace.ErrNotExist
	}
	if n := m.nodes[d.children[name]]; len(n.children) > 0 {
		return namespace.ErrNotEmpty
	}
	delete(d.children, name)
	return nil
}

func (m *memory) Unlink(ctx context.Context, req vfs.Request, dir inode.Ino, name string) error {
	return m.remove(ctx, req, "unlink", dir, name)
}

func (m *memory) Rmdir(ctx context.Context, req vfs.Request, dir inode.Ino, name string) error {
	return m.remove(ctx, req, "rmdir", dir, name)
}

func (m *memory) Rename(ctx context.Context, req vfs.Request, oldDir inode.Ino, oldName string, newDir inode.Ino, newName string, flags uint32) error {
	if err := m.call(ctx, req, "rename", oldDir, oldName, newDir, newName, flags); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	from, to := m.nodes[oldDir], m.nodes[newDir]
	if from == nil || to == nil || from.children == nil || to.children == nil {
		return namespace.ErrStale
	}
	moved, other := from.children[oldName], to.children[newName]
	delete(from.children, oldName)
	to.children[newName] = moved
	if flags&unix.RENAME_EXCHANGE != 0 {
		from.children[oldName] = other
	}
	return nil
}

func (m *memory) Open(ctx context.Context, req vfs.Request, ino inode.Ino, flags int) (vfs.HandleID, bool, error) {
	if err := m.call(ctx, req, "open", ino, flagText(flags)); err != nil {
		return 0, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[ino]; n != nil && flags&unix.O_TRUNC != 0 {
		m.resizeLocked(n, 0)
	}
	return m.openLocked(), true, nil
}

func (m *memory) Read(ctx context.Context, req vfs.Request, ino inode.Ino, _ vfs.HandleID, p []byte, off int64) (int, error) {
	if err := m.call(ctx, req, "read", ino, len(p), off); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[ino]
	if n == nil {
		return 0, namespace.ErrStale
	}
	if m.discard {
		k := max(0, min(int64(len(p)), n.attr.Size-off))
		clear(p[:k])
		return int(k), nil
	}
	if off < 0 || off > int64(len(n.data)) {
		return 0, nil
	}
	return copy(p, n.data[off:]), nil
}

func (m *memory) Write(ctx context.Context, req vfs.Request, ino inode.Ino, _ vfs.HandleID, p []byte, off int64) (int, error) {
	if err := m.call(ctx, req, "write", ino, len(p), off); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[ino]
	if n == nil {
		return 0, namespace.ErrStale
	}
	if off < 0 || off > 64<<20 {
		return 0, vfs.ErrFileTooBig
	}
	if end := off + int64(len(p)); end > n.attr.Size {
		m.resizeLocked(n, end)
	}
	if !m.discard {
		copy(n.data[off:], p)
	}
	return len(p), nil
}

func (m *memory) Flush(ctx context.Context, req vfs.Request, ino inode.Ino, _ vfs.HandleID) error {
	return m.call(ctx, req, "flush", ino)
}

func (m *memory) Release(ino inode.Ino, h vfs.HandleID) {
	_ = m.call(context.Background(), vfs.Request{}, "release", ino)
}

func (m *memory) Fsync(ctx context.Context, req vfs.Request, ino inode.Ino, _ vfs.HandleID, dataOnly bool) error {
	return m.call(ctx, req, "fsync", ino, dataOnly)
}

func (m *memory) Fallocate(ctx context.Context, req vfs.Request, ino inode.Ino, _ vfs.HandleID, off, length int64, mode uint32) error {
	return m.call(ctx, req, "fallocate", ino, off, length, mode)
}

func (m *memory) Lseek(ctx context.Context, req vfs.Request, ino inode.Ino, off int64, whence int) (int64, error) {
	if err := m.call(ctx, req, "lseek", ino, off, whence); err != nil {
		return 0, err
	}
	if whence == unix.SEEK_DATA {
		return off + 100, nil
	}
	return 0, vfs.ErrNoData
}

func (m *memory) OpenDir(ctx context.Context, req vfs.Request, ino inode.Ino) (vfs.HandleID, error) {
	if err := m.call(ctx, req, "opendir", ino); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.openLocked()
	if n := m.nodes[ino]; n != nil {
		m.handles[h] = slices.Sorted(maps.Keys(n.children))
	}
	return h, nil
}

func (m *memory) ReadDir(ctx context.Context, req vfs.Request, ino inode.Ino, h vfs.HandleID, offset uint64, plus bool, emit func(vfs.DirEntry, vfs.Entry) bool) error {
	op := "readdir"
	if plus {
		op = "readdirplus"
	}
	if err := m.call(ctx, req, op, ino, offset); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	names := m.handles[h]
	for i := offset; i < uint64(len(names)); i++ {
		d := m.nodes[ino]
		if d == nil {
			return namespace.ErrStale
		}
		n := m.nodes[d.children[names[i]]]
		if n == nil {
			continue
		}
		var e vfs.Entry
		if plus {
			e = m.entryLocked(n)
		}
		if !emit(vfs.DirEntry{Name: names[i], Ino: n.attr.Ino, Type: n.attr.Mode & unix.S_IFMT, Offset: i + 1}, e) {
			return nil
		}
	}
	return nil
}

func (m *memory) ReleaseDir(h vfs.HandleID) {
	m.mu.Lock()
	delete(m.handles, h)
	m.mu.Unlock()
	_ = m.call(context.Background(), vfs.Request{}, "releasedir", 0)
}

func (m *memory) FsyncDir(ctx context.Context, req vfs.Request, ino inode.Ino) error {
	return m.call(ctx, req, "fsyncdir", ino)
}

func (m *memory) Statfs(ctx context.Context) (vfs.Statfs, error) {
	return vfs.Statfs{Total: 1 << 40, Free: 1 << 39, Files: 1000, Ffree: 900, BlockSize: 4096, NameMax: 255}, m.call(ctx, vfs.Request{}, "statfs", inode.Root)
}

func (m *memory) GetXattr(ctx context.Context, req vfs.Request, ino inode.Ino, name string) ([]byte, error) {
	if err := m.call(ctx, req, "getxattr", ino, name); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[ino]; n != nil {
		if v, ok := n.xattr[name]; ok {
			return v, nil
		}
	}
	return nil, vfs.ErrNoAttr
}

func (m *memory) ListXattr(ctx context.Context, req vfs.Request, ino inode.Ino) ([]string, error) {
	if err := m.call(ctx, req, "listxattr", ino); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[ino]; n != nil {
		return slices.Sorted(maps.Keys(n.xattr)), nil
	}
	return nil, namespace.ErrStale
}

func (m *memory) SetXattr(ctx context.Context, req vfs.Request, ino inode.Ino, name string, value []byte, flags int) error {
	if err := m.call(ctx, req, "setxattr", ino, name, len(value), flags); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[ino]; n != nil {
		n.xattr[name] = value
		return nil
	}
	return namespace.ErrStale
}

func (m *memory) RemoveXattr(ctx context.Context, req vfs.Request, ino inode.Ino, name string) error {
	if err := m.call(ctx, req, "removexattr", ino, name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[ino]; n != nil {
		delete(n.xattr, name)
	}
	return nil
}

func (m *memory) FlushTree(ctx context.Context, ino inode.Ino, _ func(left int64)) error {
	return m.call(ctx, vfs.Request{}, "flushtree", ino)
}

// errUnknown is an error for which the core has no sentinel: the adapter must make EIO of it.
var errUnknown error = syscall.EXDEV
