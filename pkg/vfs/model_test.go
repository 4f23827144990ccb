package vfs_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// mnode is an inode of the reference: a file system as simple as it gets.
type mnode struct {
	dir    map[string]*mnode // nil: no directory
	link   string            // target of a symbolic link
	data   string
	mode   uint32
	marker bool // a directory that was made here or changed, so that it has an object of its own
}

func newDir() *mnode { return &mnode{dir: map[string]*mnode{}, mode: 0o755, marker: true} }

func (m *mnode) regular() bool { return m.dir == nil && m.link == "" }

// walk resolves a path as volume.walk does.
func (m *mnode) walk(p string) (*mnode, error) {
	if p == "" {
		return m, nil
	}
	for _, name := range strings.Split(p, "/") {
		if m.dir == nil {
			return nil, namespace.ErrNotDir
		}
		if m = m.dir[name]; m == nil {
			return nil, namespace.ErrNotExist
		}
	}
	return m, nil
}

func (m *mnode) at(p string) (d *mnode, name string, err error) {
	i := strings.LastIndexByte(p, '/')
	d, err = m.walk(p[:max(i, 0)])
	if err == nil && d.dir == nil {
		err = namespace.ErrNotDir
	}
	return d, p[i+1:], err
}

func (m *mnode) inside(d *mnode) bool {
	if m == d {
		return true
	}
	for _, c := range d.dir {
		if c.dir != nil && m.inside(c) {
			return true
		}
	}
	return false
}

// add makes an inode under a name that must not exist.
func (m *mnode) add(p string, n *mnode) error {
	d, name, err := m.at(p)
	if err == nil && d.dir[name] != nil {
		err = namespace.ErrExist
	}
	if err == nil {
		d.dir[name] = n
	}
	return err
}

func (m *mnode) write(p, content string) error {
	d, name, err := m.at(p)
	if err != nil {
		return err
	}
	n := d.dir[name]
	switch {
	case n == nil:
		d.dir[name] = &mnode{data: content, mode: 0o644}
	case n.dir != nil:
		return namespace.ErrIsDir
	case n.link != "":
		return namespace.ErrExist
	default:
		n.data = content
	}
	return nil
}

func (m *mnode) remove(p string, dir bool) error {
	d, name, err := m.at(p)
	if err != nil {
		return err
	}
	n := d.dir[name]
	switch {
	case n == nil:
		return namespace.ErrNotExist
	case dir && n.dir == nil:
		return namespace.ErrNotDir
	case !dir && n.dir != nil:
		return namespace.ErrIsDir
	case len(n.dir) > 0:
		return namespace.ErrNotEmpty
	}
	delete(d.dir, name)
	return nil
}

func (m *mnode) rename(from, to string, flags uint32) error {
	fd, fn, err := m.at(from)
	if err != nil {
		return err
	}
	td, tn, err := m.at(to)
	if err != nil {
		return err
	}
	n, x := fd.dir[fn], td.dir[tn]
	exchange := flags == vfs.RenameExchange
	switch {
	case n == nil:
		return namespace.ErrNotExist
	case x != nil && flags == vfs.RenameNoReplace:
		return namespace.ErrExist
	case x == nil && exchange:
		return namespace.ErrNotExist
	case n.dir != nil && td.inside(n), exchange && x.dir != nil && fd.inside(x):
		return namespace.ErrInvalid
	case n == x:
		return nil
	case exchange:
		fd.dir[fn], td.dir[tn] = x, n
		return nil
	case x != nil && n.dir != nil && x.dir == nil:
		return namespace.ErrNotDir
	case x != nil && n.dir == nil && x.dir != nil:
		return namespace.ErrIsDir
	case x != nil && len(x.dir) > 0:
		return namespace.ErrNotEmpty
	}
	delete(fd.dir, fn)
	td.dir[tn] = n
	return nil
}

func (m *mnode) linkTo(from, to string) error {
	n, err := m.walk(from)
	if err != nil {
		return err
	}
	d, name, err := m.at(to)
	switch {
	case err != nil:
		return err
	case n.dir != nil:
		return vfs.ErrPermission
	case d.dir[name] != nil:
		return namespace.ErrExist
	}
	d.dir[name] = n
	return nil
}

func (m *mnode) truncate(p string, size int64) error {
	n, err := m.walk(p)
	switch {
	case err != nil:
		return err
	case n.dir != nil:
		return namespace.ErrIsDir
	case n.link != "":
		return namespace.ErrInvalid
	}
	n.data = resized(n.data, int(size))
	return nil
}

func resized(s string, size int) string {
	if size <= len(s) {
		return s[:size]
	}
	return s + strings.Repeat("\x00", size-len(s))
}

// total counts what the volume holds.
func (m *mnode) total() (bytes, inodes int64) {
	seen := map[*mnode]bool{}
	var visit func(n *mnode)
	visit = func(n *mnode) {
		if !seen[n] {
			seen[n] = true
			inodes++
			bytes += int64(len(n.data))
		}
		for _, c := range n.dir {
			visit(c)
		}
	}
	visit(m)
	return bytes, inodes
}

// each visits all names, a directory's with a slash.
func (m *mnode) each(prefix string, f func(key string, n *mnode)) {
	for name, n := range m.dir {
		if n.dir == nil {
			f(prefix+name, n)
			continue
		}
		f(prefix+name+"/", n)
		n.each(prefix+name+"/", f)
	}
}

// pair is a volume and the reference.
type pair struct {
	*volume
	m            *mnode
	bytes, nodes int64 // what the usage counted from
	op           int
	bad          atomic.Pointer[string]
}

const usageBase = 1 << 40

func newPair(t failer, cfg config, keys []string) *pair {
	p := &pair{m: newDir()}
	b := s3mem.New("bucket")
	b.Quirks = s3mem.NoCopyConditions() // as on MinIO, VersityGW and Ceph
	p.volume = openVolume(t, b, diskmem.New(), cfg)
	for i, key := range keys {
		// Of two keys that POSIX cannot have together only the first is taken.
		if p.foreign(key, fmt.Sprintf("foreign %d", i)) {
			p.put(string(cfg.prefix)+key, fmt.Sprintf("foreign %d", i))
		}
	}
	p.script(func(s3fault.Op) s3fault.Action { return s3fault.Action{} })
	p.counted()
	return p
}

// script makes the bucket faulty, and looks at what is in it before each change.
func (p *pair) script(f func(s3fault.Op) s3fault.Action) {
	p.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name != "Head" && op.Name != "List" && op.Name != "Get" {
			if bad := p.coexist(); bad != "" {
				p.bad.Store(&bad)
			}
		}
		return f(op)
	})
}

// coexist finds an object whose key is also a directory of other keys: some servers hide the one or refuse the other.
func (p *pair) coexist() string {
	keys, err := p.tryKeys()
	if err != nil {
		return err.Error()
	}
	for _, key := range keys {
		if strings.HasSuffix(key, "/") {
			continue
		}
		for _, k := range keys {
			if strings.HasPrefix(k, key+"/") {
				return key + " and " + k
			}
		}
	}
	return ""
}

func (p *pair) foreign(key, content string) bool {
	d := p.m
	parts := strings.Split(key, "/")
	for _, name := range parts[:len(parts)-1] {
		c := d.dir[name]
		if c == nil {
			c = newDir()
			c.marker = false
			d.dir[name] = c
		}
		if c.dir == nil {
			return false
		}
		d = c
	}
	if d.dir[parts[len(parts)-1]] != nil {
		return false
	}
	d.dir[parts[len(parts)-1]] = &mnode{data: content, mode: 0o644}
	return true
}

func (p *pair) counted() {
	p.usage.Add(usageBase, usageBase)
	p.bytes, p.nodes = p.m.total()
}

// same compares the outcome of an operation.
func (p *pair) same(what string, got, want error) {
	p.t.Helper()
	p.op++
	if bad := p.bad.Load(); bad != nil {
		p.t.Fatalf("the bucket had %s at once", *bad)
	}
	g, w := vfs.Errno(got), vfs.Errno(want)
	p.t.Logf("%s: %v", what, w)
	if w == syscall.EINVAL && g == syscall.ENOTEMPTY {
		return // the kernel does not let either through: source and target of a rename are inside each other
	}
	if g != w {
		p.t.Fatalf("%s: %v (%v), want %v", what, g, got, w)
	}
	b, n := p.m.total()
	gb, gn := p.usage.Get()
	if gb-usageBase != b-p.bytes || gn-usageBase != n-p.nodes {
		p.t.Fatalf("%s: the volume counts %+d bytes and %+d inodes, want %+d and %+d", what, gb-usageBase, gn-usageBase, b-p.bytes, n-p.nodes)
	}
}

// compare walks all of the file system.
func (p *pair) compare(when string) {
	p.t.Helper()
	p.compareDir(when, "", p.m)
}

func (p *pair) compareDir(when, at string, m *mnode) {
	p.t.Helper()
	got, err := p.tryList(at)
	if err != nil {
		p.t.Fatalf("%s: list %q: %v", when, at, err)
	}
	if want := slices.Sorted(maps.Keys(m.dir)); !slices.Equal(got, want) {
		p.t.Fatalf("%s: %q has %q, want %q", when, at, got, want)
	}
	for name, n := range m.dir {
		name = strings.TrimPrefix(at+"/"+name, "/")
		a, err := p.walk(name)
		if err != nil {
			p.t.Fatalf("%s: stat %q: %v", when, name, err)
		}
		if a.Mode&inode.ModePerm != n.mode && n.link == "" {
			p.t.Fatalf("%s: %q has mode %#o, want %#o", when, name, a.Mode, n.mode)
		}
		switch {
		case n.dir != nil:
			p.compareDir(when, name, n)
		case n.link != "":
			if target, err := p.Readlink(ctx, root, a.Ino); err != nil || target != n.link {
				p.t.Fatalf("%s: %q points to %q (%v), want %q", when, name, target, err, n.link)
			}
		default:
			if a.Size != int64(len(n.data)) {
				p.t.Fatalf("%s: %q has size %d, want %d", when, name, a.Size, len(n.data))
			}
			if got, err := p.tryRead(name); err != nil || got != n.data {
				p.t.Fatalf("%s: %q holds %.60q (%v), want %.60q", when, name, got, err, n.data)
			}
		}
	}
}

// compareBucket flushes and compares the objects.
func (p *pair) compareBucket() {
	p.t.Helper()
	p.flush()
	got := p.objects()
	prefix := string(p.cfg.prefix)
	p.m.each("", func(key string, n *mnode) {
		content, ok := got[prefix+key]
		delete(got, prefix+key)
		if n.dir != nil {
			below := slices.ContainsFunc(p.keys(), func(k string) bool { return strings.HasPrefix(k, prefix+key) })
			if !below {
				p.t.Fatalf("the bucket has nothing of directory %q: %q", key, p.keys())
			}
			return
		}
		want := n.data
		if !ok || content != want {
			p.t.Fatalf("object %q is %.60q (%v), want %.60q", key, content, ok, want)
		}
	})
	for key, content := range got {
		p.t.Fatalf("the bucket has %q (%.40q), which nothing is called", key, content)
	}
	for _, key := range p.keys() {
		if rest, ok := strings.CutPrefix(key, prefix+".csi-s3/"); ok && rest != "root" {
			p.t.Fatalf("%q was left in the bucket", key)
		}
	}
	// The bytes of removed files go a moment after the last of their objects.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		n := p.store.Usage()
		if n.DirtyFiles == 0 && n.Dirty == 0 {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("after a flush %d files with %d bytes are dirty", n.DirtyFiles, n.Dirty)
		}
	}
}

var names = rapid.SampledFrom([]string{"a", "b", "c"})

var paths = rapid.Custom(func(t *rapid.T) string {
	return strings.Join(rapid.SliceOfN(names, 1, 3).Draw(t, "path"), "/")
})

// actions are the operations that a sequence is made of.
func (p *pair) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"write": func(t *rapid.T) {
			at := paths.Draw(t, "at")
			content := fmt.Sprintf("op %d of %s", p.op, at)
			p.same("write "+at, p.tryWrite(at, content), p.m.write(at, content))
		},
		"writeAt": func(t *rapid.T) {
			at := paths.Draw(t, "at")
			off := rapid.IntRange(0, 40).Draw(t, "off")
			content := fmt.Sprintf("<%d>", p.op)
			n, err := p.m.walk(at)
			if err != nil || !n.regular() {
				t.Skip("no file")
			}
			ino, h := p.open(at, syscall.O_RDWR)
			p.writeAt(ino, h, content, int64(off))
			p.Release(ino, h)
			old := resized(n.data, max(len(n.data), off+len(content)))
			n.data = old[:off] + content + old[off+len(content):]
			p.same("write at", nil, nil)
		},
		"truncate": func(t *rapid.T) {
			at, size := paths.Draw(t, "at"), rapid.Int64Range(0, 30).Draw(t, "size")
			p.same("truncate "+at, p.truncate(at, size), p.m.truncate(at, size))
		},
		"mkdir": func(t *rapid.T) {
			at := paths.Draw(t, "at")
			p.same("mkdir "+at, p.tryMkdir(at), p.m.add(at, newDir()))
		},
		"symlink": func(t *rapid.T) {
			at := paths.Draw(t, "at")
			p.same("symlink "+at, p.symlink(at, "to "+at), p.m.add(at, &mnode{link: "to " + at}))
		},
		"unlink": func(t *rapid.T) {
			at := paths.Draw(t, "at")
			p.same("unlink "+at, p.unlink(at), p.m.remove(at, false))
		},
		"rmdir": func(t *rapid.T) {
			at := paths.Draw(t, "at")
			p.same("rmdir "+at, p.rmdir(at), p.m.remove(at, true))
		},
		"rename": func(t *rapid.T) {
			from, to := paths.Draw(t, "from"), paths.Draw(t, "to")
			flags := rapid.SampledFrom([]uint32{0, 0, 0, vfs.RenameNoReplace, vfs.RenameExchange}).Draw(t, "flags")
			p.same(fmt.Sprintf("rename %s %s %d", from, to, flags), p.rename(from, to, flags), p.m.rename(from, to, flags))
		},
		"link": func(t *rapid.T) {
			from, to := paths.Draw(t, "from"), paths.Draw(t, "to")
			p.same(fmt.Sprintf("link %s %s", from, to), p.link(from, to), p.m.linkTo(from, to))
		},
		"chmod": func(t *rapid.T) {
			at, mode := paths.Draw(t, "at"), rapid.Uint32Range(0, 0o777).Draw(t, "mode")
			n, err := p.m.walk(at)
			a, gerr := p.walk(at)
			if gerr == nil {
				_, _, gerr = p.SetAttr(ctx, root, a.Ino, 0, vfs.SetAttr{Mode: &mode})
			}
			p.same("chmod "+at, gerr, err)
			if err == nil {
				n.mode = mode
			}
		},
		"read": func(t *rapid.T) {
			at := paths.Draw(t, "at")
			n, err := p.m.walk(at)
			a, gerr := p.walk(at)
			p.same("stat "+at, gerr, err)
			if err != nil || !n.regular() {
				return
			}
			if got, err := p.tryRead(at); err != nil || got != n.data || a.Size != int64(len(n.data)) {
				t.Fatalf("%q is %q (%d bytes, %v), want %q", at, got, a.Size, err, n.data)
			}
		},
		"list": func(t *rapid.T) {
			at := paths.Draw(t, "at")
			n, err := p.m.walk(at)
			if err == nil && n.dir == nil {
				err = namespace.ErrNotDir
			}
			got, gerr := p.tryList(at)
			p.same("list "+at, gerr, err)
			if err == nil && !slices.Equal(got, slices.Sorted(maps.Keys(n.dir))) {
				t.Fatalf("%q has %q, want %q", at, got, slices.Sorted(maps.Keys(n.dir)))
			}
		},
		"expire": func(t *rapid.T) { p.pass(2 * time.Minute) },
		"flush":  func(t *rapid.T) { p.compareBucket() },
		"some": func(t *rapid.T) { // one inode goes before the others
			a, err := p.walk(paths.Draw(t, "at"))
			if err == nil {
				p.ok(p.Fsync(ctx, root, a.Ino, 0, false))
			}
			if err == nil && p.cfg.settle == time.Hour {
				brief, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
				_ = p.executor.Flush(brief, a.Ino, nil) // it may have to wait for another
			}
		},
		"kill": func(t *rapid.T) {
			if rapid.Bool().Draw(t, "checkpoint") {
				p.ok(p.checkpoint())
			}
			p.kill()
			p.counted()
			p.compare("after a kill")
		},
	}
}

var foreignKeys = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
	return strings.Join(rapid.SliceOfN(names, 1, 4).Draw(t, "key"), "/")
}), 0, 6)

func testModel(t *testing.T, cfg config) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPair(t, cfg, foreignKeys.Draw(t, "bucket"))
		defer func() { p.close() }()
		t.Repeat(p.actions())
		p.compare("at the end")
		p.compareBucket()
		p.compare("after the flush")
		p.kill()
		p.compare("after the last kill")
		p.elsewhere()
		p.compare("on another node")
	})
}

// TestModel: random operations, kills and flushes leave what a plain tree in memory holds: for programs, in the bucket,
// after a restart, and on another node.
func TestModel(t *testing.T) {
	t.Run("at rest", func(t *testing.T) { testModel(t, config{patience: time.Second}) })
	t.Run("below a prefix", func(t *testing.T) { testModel(t, config{prefix: "vol/ume/", policy: vfs.Policy{Exclusive: true}}) })
	// Everything is sent while the operations go on, and a kill finds requests under way.
	t.Run("at once", func(t *testing.T) { testModel(t, config{settle: 1, patience: 5 * time.Second}) })
	t.Run("exclusive", func(t *testing.T) {
		testModel(t, config{settle: 1, patience: 5 * time.Second, policy: vfs.Policy{Exclusive: true}})
	})
}

// TestModelOnABadServer: the same while the answers to some changes of the bucket are lost, or the changes are.
func TestModelOnABadServer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPair(t, config{settle: 1, patience: 30 * time.Second}, foreignKeys.Draw(t, "bucket"))
		defer func() { p.close() }()
		every := rapid.IntRange(3, 9).Draw(t, "every")
		p.script(func(op s3fault.Op) s3fault.Action {
			switch {
			case op.Name == "Head" || op.Name == "List" || op.Name == "Get" || op.N%every != 0:
				return s3fault.Action{}
			case op.N%2 == 0:
				return s3fault.FailAfter(nil)
			}
			return s3fault.FailBefore(nil)
		})
		t.Repeat(p.actions())
		p.compare("at the end")
		p.compareBucket()
		p.kill()
		p.compare("after the last kill")
		p.elsewhere()
		p.compare("on another node")
	})
}
