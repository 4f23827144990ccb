package volume

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// story is a file's content over time. Of versions, acked is the last whose change returned, and barrier the last that
// an fsync which returned has covered, -1 for none.
type story struct {
	versions       [][]byte
	acked, barrier int
}

func (s *story) now() []byte { return s.versions[len(s.versions)-1] }

// explains says that content is what a crash may have left: each byte is one that a version from on has there, and the
// size is one of theirs.
func (s *story) explains(content string, from int) bool {
	size := false
	for _, v := range s.versions[from:] {
		size = size || len(v) == len(content)
	}
	for i := range content {
		known := false
		for _, v := range s.versions[from:] {
			if known = i < len(v) && v[i] == content[i]; known {
				break
			}
		}
		if !known {
			return false
		}
	}
	return size
}

// moment is what the model knows when a crash happens.
type moment struct {
	step   string
	names  []map[string]int // each state of the names, as indexes into files
	acked  int              // the last of names whose change returned
	synced int              // the last that is durable
	files  []story
	bucket frozen
}

// allows says whether the bucket may look so when all is uploaded after a crash at this moment.
func (m *moment) allows(found map[string]string, powerCut bool) bool {
	first := m.acked
	if powerCut {
		first = m.synced
	}
	return slices.ContainsFunc(m.names[first:], func(names map[string]int) bool {
		for name := range found {
			if _, ok := names[name]; !ok {
				return false
			}
		}
		for name, i := range names {
			f := &m.files[i]
			content, ok := found[name]
			switch {
			case !powerCut && (!ok || !f.explains(content, f.acked)):
				return false
			case powerCut && f.barrier < 0 && ok && !f.explains(content, 0):
				return false
			case powerCut && f.barrier >= 0 && (!ok || !f.explains(content, f.barrier)):
				return false
			}
		}
		return true
	})
}

// tale drives a core and the model side by side. All but the script's own goroutine see the model under mu.
type tale struct {
	t      *testing.T
	disk   *diskmem.FS
	bucket *s3mem.Bucket
	core   *core

	mu    sync.RWMutex
	model moment
	watch func(op diskfault.Op) // called with mu held before each call of the disk

	fill byte
}

// open opens the volume. What begins on its disk or in its bucket while a watcher looks waits for it.
func (x *tale) open(boot string) {
	x.t.Helper()
	d := diskfault.New(x.disk, func(op diskfault.Op) error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.watch != nil {
			x.watch(op)
		}
		return nil
	})
	b := s3fault.New(x.bucket)
	b.Fault = func(s3fault.Op) s3fault.Action {
		x.mu.RLock()
		defer x.mu.RUnlock()
		return s3fault.Action{}
	}
	x.core = running(x.t, d, boot, spec(b))
}

// bytes are n bytes that no other call has returned.
func (x *tale) bytes(n int) []byte {
	x.fill++
	return bytes.Repeat([]byte{x.fill}, n)
}

// now is a copy of the model for a crash.
func (x *tale) now() moment {
	m := x.model
	m.names = slices.Clone(m.names)
	m.files = slices.Clone(m.files)
	for i := range m.files {
		m.files[i].versions = slices.Clone(m.files[i].versions)
	}
	m.bucket = freeze(x.t, x.bucket)
	return m
}

// step tells the model what a call is going to do, makes the call, and tells the model that it was done.
func (x *tale) step(name string, begin func(m *moment), call func() error, end func(m *moment)) {
	x.t.Helper()
	x.mu.Lock()
	x.model.step = name
	if begin != nil {
		begin(&x.model)
	}
	x.mu.Unlock()
	if err := call(); err != nil {
		x.t.Fatalf("%s: %v", name, err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	m := &x.model
	m.acked = len(m.names) - 1
	for i := range m.files {
		m.files[i].acked = len(m.files[i].versions) - 1
	}
	if end != nil {
		end(m)
	}
}

func (m *moment) rename(change func(names map[string]int)) {
	names := maps.Clone(m.names[len(m.names)-1])
	change(names)
	m.names = append(m.names, names)
}

func (m *moment) file(name string) *story { return &m.files[m.names[len(m.names)-1][name]] }

// change appends a version.
func (m *moment) change(name string, do func(old []byte) []byte) {
	f := m.file(name)
	f.versions = append(f.versions, do(slices.Clone(f.now())))
}

// The calls.

func (x *tale) ino(name string) inode.Ino {
	x.t.Helper()
	ino := inode.Root
	if name == "." {
		return ino
	}
	for _, part := range strings.Split(name, "/") {
		e, err := x.core.fs.Lookup(context.Background(), who, ino, part)
		if err != nil || e.Attr.Ino == 0 {
			x.t.Fatalf("look up %s: inode %d, %v", name, e.Attr.Ino, err)
		}
		x.core.fs.Forget(e.Attr.Ino, 1)
		ino = e.Attr.Ino
	}
	return ino
}

func (x *tale) create(name string) {
	x.t.Helper()
	dir := x.ino(path.Dir(name))
	x.step("create "+name, func(m *moment) {
		m.files = append(m.files, story{versions: [][]byte{{}}, barrier: -1})
		m.rename(func(names map[string]int) { names[name] = len(m.files) - 1 })
	}, func() error {
		e, h, err := x.core.fs.Create(context.Background(), who, dir, path.Base(name), 0o644, syscall.O_RDWR)
		if err != nil {
			return err
		}
		x.core.fs.Release(e.Attr.Ino, h)
		x.core.fs.Forget(e.Attr.Ino, 1)
		return nil
	}, nil)
}

func (x *tale) write(name string, off, n int) {
	x.t.Helper()
	ino, p := x.ino(name), x.bytes(n)
	x.step(fmt.Sprintf("write %s at %d", name, off), func(m *moment) {
		m.change(name, func(b []byte) []byte {
			b = append(b, make([]byte, max(0, off+n-len(b)))...)
			copy(b[off:], p)
			return b
		})
	}, func() error {
		_, err := x.core.fs.Write(context.Background(), who, ino, 0, p, int64(off))
		return err
	}, nil)
}

func (x *tale) truncate(name string, size int) {
	x.t.Helper()
	ino := x.ino(name)
	x.step(fmt.Sprintf("truncate %s to %d", name, size), func(m *moment) {
		m.change(name, func(b []byte) []byte {
			return append(b[:min(size, len(b))], make([]byte, max(0, size-len(b)))...)
		})
	}, func() error {
		s := int64(size)
		_, _, err := x.core.fs.SetAttr(context.Background(), who, ino, 0, vfs.SetAttr{Size: &s})
		return err
	}, nil)
}

func (x *tale) fsync(name string) {
	x.t.Helper()
	ino := x.ino(name)
	x.step("fsync "+name, nil, func() error { return x.core.fs.Fsync(context.Background(), who, ino, 0, false) }, func(m *moment) {
		m.synced = m.acked
		m.file(name).barrier = m.file(name).acked
	})
}

func (x *tale) fsyncDir() {
	x.t.Helper()
	x.step("fsync of the directory", nil, func() error { return x.core.fs.FsyncDir(context.Background(), who, inode.Root) }, func(m *moment) {
		m.synced = m.acked
	})
}

func (x *tale) mkdir(name string) {
	x.t.Helper()
	dir := x.ino(path.Dir(name))
	x.step("mkdir "+name, nil, func() error {
		e, err := x.core.fs.Mkdir(context.Background(), who, dir, path.Base(name), 0o755)
		if err == nil {
			x.core.fs.Forget(e.Attr.Ino, 1)
		}
		return err
	}, nil)
}

func (x *tale) rename(from, to string) {
	x.t.Helper()
	a, b := x.ino(path.Dir(from)), x.ino(path.Dir(to))
	x.step("rename "+from+" to "+to, func(m *moment) {
		m.rename(func(names map[string]int) { names[to] = names[from]; delete(names, from) })
	}, func() error {
		return x.core.fs.Rename(context.Background(), who, a, path.Base(from), b, path.Base(to), 0)
	}, nil)
}

func (x *tale) renameDir(from, to string) {
	x.t.Helper()
	x.step("rename directory "+from+" to "+to, func(m *moment) {
		m.rename(func(names map[string]int) {
			for name, i := range maps.Clone(names) {
				if rest, below := strings.CutPrefix(name, from+"/"); below {
					delete(names, name)
					names[to+"/"+rest] = i
				}
			}
		})
	}, func() error {
		return x.core.fs.Rename(context.Background(), who, inode.Root, from, inode.Root, to, 0)
	}, nil)
}

func (x *tale) unlink(name string) {
	x.t.Helper()
	dir := x.ino(path.Dir(name))
	x.step("unlink "+name, func(m *moment) {
		m.rename(func(names map[string]int) { delete(names, name) })
	}, func() error { return x.core.fs.Unlink(context.Background(), who, dir, path.Base(name)) }, nil)
}

func (x *tale) checkpoint() {
	x.t.Helper()
	x.step("checkpoint", nil, x.core.checkpoint, func(m *moment) { m.synced = m.acked })
}

func (x *tale) reap() {
	x.t.Helper()
	x.step("reap", nil, x.core.store.Reap, nil)
}

// durable is the end of a step after which nothing may be lost.
func durable(m *moment) {
	m.synced = m.acked
	for i := range m.files {
		m.files[i].barrier = m.files[i].acked
	}
}

func (x *tale) drain() {
	x.t.Helper()
	x.step("drain", nil, func() error { return x.core.drain(soon(x.t)) }, durable)
}

func (x *tale) close() {
	x.t.Helper()
	x.step("close", nil, func() error { return x.core.close(soon(x.t)) }, durable)
}

// run is a life with about everything that a volume does.
func (x *tale) run() {
	x.t.Helper()
	x.create("new")
	x.write("new", 0, 5000)
	x.fsync("new")
	x.write("new", 3000, 6000)
	x.write("base", 100, 5900) // of an object that the cache does not have
	x.mkdir("d")
	x.create("d/a")
	x.write("d/a", 4096, 100) // behind a hole
	x.fsyncDir()
	x.rename("d/a", "d/b")
	x.checkpoint()
	x.unlink("gone")
	x.truncate("base", 7000)
	x.fsync("base")
	x.write("base", 50, 1000)
	x.create("tmp")
	x.write("tmp", 0, 4000)
	x.rename("tmp", "new")
	x.drain()
	x.write("new", 0, 10)
	x.fsync("new")
	x.write("new", 5, 5000)
	x.create("never")
	x.write("never", 0, 3000)
	x.checkpoint()
	x.rename("old", "d/old")
	x.write("big", 100, 100)
	x.fsync("big")
	x.rename("big", "d/big") // its upload needs the object under the old name
	x.truncate("new", 9000)
	x.truncate("base", 0)
	x.unlink("d/b")
	x.reap()
	x.drain()
	x.write("d/old", 20, 20)
	x.create("late")
	x.write("late", 0, 10)
	x.close()
}

func (m *moment) String() string {
	var out strings.Builder
	for k, names := range m.names {
		if k >= m.synced {
			fmt.Fprintf(&out, "\n  names %d (acked %d, synced %d): %v", k, m.acked, m.synced, names)
		}
	}
	for i, f := range m.files {
		fmt.Fprintf(&out, "\n  file %d, acked %d, barrier %d:", i, f.acked, f.barrier)
		for v, content := range f.versions {
			fmt.Fprintf(&out, "\n    %s", describe(map[string]string{fmt.Sprint(v): string(content)}))
		}
	}
	return out.String()
}

// wander does n things at random.
func (x *tale) wander(rnd *rand.Rand, n int) {
	x.t.Helper()
	dir := "d"
	x.mkdir(dir)
	for range n {
		now := x.model.names[len(x.model.names)-1]
		names := slices.Sorted(maps.Keys(now))
		one := names[rnd.IntN(len(names))]
		other := []string{"a", "b", "base", "old", dir + "/a", dir + "/b"}[rnd.IntN(6)]
		_, taken := now[other]
		size := len(x.model.file(one).now())
		switch k := rnd.IntN(20); {
		case k < 3 && !taken:
			x.create(other)
			x.write(other, rnd.IntN(5000), 1+rnd.IntN(5000))
		case k < 8:
			x.write(one, rnd.IntN(size+100), 1+rnd.IntN(6000))
		case k < 9:
			x.truncate(one, rnd.IntN(size+4000))
		case k < 11:
			x.fsync(one)
		case k < 12:
			x.fsyncDir()
		case k < 15 && other != one:
			x.rename(one, other)
		case k < 16:
			to := map[string]string{"d": "e", "e": "d"}[dir]
			x.renameDir(dir, to)
			dir = to
		case k < 17 && len(names) > 1:
			x.unlink(one)
		case k < 18:
			x.checkpoint()
		case k < 19:
			x.reap()
		default:
			x.drain()
		}
	}
	if rnd.IntN(2) == 0 {
		x.drain()
	}
	x.close()
}
