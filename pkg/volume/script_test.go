package volume

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"syscall"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

func (p *player) create(name string) {
	p.t.Helper()
	p.do(act{
		name: "create " + name, asks: true,
		model: func(w *world) bool {
			ok := w.free(name)
			if ok {
				p.enter(w, name, thing{mode: inode.ModeRegular | 0o644})
			}
			return ok
		},
		call: p.in(name, func(ctx context.Context, dir inode.Ino, last string) error {
			e, h, err := p.core.fs.Create(ctx, who, dir, last, 0o644, syscall.O_RDWR|syscall.O_EXCL)
			if err == nil {
				p.core.fs.Release(e.Attr.Ino, h)
				p.core.fs.Forget(e.Attr.Ino, 1)
			}
			return err
		}),
	})
}

func (p *player) mkdir(name string) {
	p.t.Helper()
	p.do(act{
		name: "mkdir " + name, asks: true,
		model: func(w *world) bool {
			ok := w.free(name)
			if ok {
				p.enter(w, name, thing{mode: inode.ModeDir | 0o755})
			}
			return ok
		},
		call: p.in(name, func(ctx context.Context, dir inode.Ino, last string) error {
			e, err := p.core.fs.Mkdir(ctx, who, dir, last, 0o755)
			if err == nil {
				p.core.fs.Forget(e.Attr.Ino, 1)
			}
			return err
		}),
	})
}

func (p *player) symlink(name, target string) {
	p.t.Helper()
	p.do(act{
		name: "symlink " + name, asks: true,
		model: func(w *world) bool {
			ok := w.free(name)
			if ok {
				p.enter(w, name, thing{mode: inode.ModeSymlink | 0o777, target: target})
			}
			return ok
		},
		call: p.in(name, func(ctx context.Context, dir inode.Ino, last string) error {
			e, err := p.core.fs.Symlink(ctx, who, dir, last, target)
			if err == nil {
				p.core.fs.Forget(e.Attr.Ino, 1)
			}
			return err
		}),
	})
}

func (p *player) mkfifo(name string) {
	p.t.Helper()
	p.do(act{
		name: "mkfifo " + name, asks: true,
		model: func(w *world) bool {
			ok := w.free(name)
			if ok {
				p.enter(w, name, thing{mode: inode.ModeFIFO | 0o600})
			}
			return ok
		},
		call: p.in(name, func(ctx context.Context, dir inode.Ino, last string) error {
			e, err := p.core.fs.Mknod(ctx, who, dir, last, inode.ModeFIFO|0o600, 0)
			if err == nil {
				p.core.fs.Forget(e.Attr.Ino, 1)
			}
			return err
		}),
	})
}

func (p *player) link(from, to string) {
	p.t.Helper()
	p.do(act{
		name: "link " + from + " to " + to, asks: true,
		model: func(w *world) bool {
			ok := w.free(to) && w.is(from, inode.ModeRegular)
			if ok {
				w.names[to] = w.names[from]
			}
			return ok
		},
		call: p.on(from, func(ctx context.Context, ino inode.Ino) error {
			return p.in(to, func(ctx context.Context, dir inode.Ino, last string) error {
				e, err := p.core.fs.Link(ctx, who, ino, dir, last)
				if err == nil {
					p.core.fs.Forget(e.Attr.Ino, 1)
				}
				return err
			})(ctx)
		}),
	})
}

func (p *player) unlink(name string) {
	p.t.Helper()
	p.do(act{
		name: "unlink " + name, asks: true,
		model: func(w *world) bool {
			_, ok := w.at(name)
			delete(w.names, name)
			return ok
		},
		call: p.in(name, func(ctx context.Context, dir inode.Ino, last string) error {
			return p.core.fs.Unlink(ctx, who, dir, last)
		}),
	})
}

func (p *player) rmdir(name string) {
	p.t.Helper()
	p.do(act{
		name: "rmdir " + name, asks: true,
		model: func(w *world) bool {
			ok := w.is(name, inode.ModeDir) && len(w.below(name)) == 0
			delete(w.names, name)
			return ok
		},
		call: p.in(name, func(ctx context.Context, dir inode.Ino, last string) error {
			return p.core.fs.Rmdir(ctx, who, dir, last)
		}),
	})
}

// rename moves a file or a directory, also over what is there.
func (p *player) rename(from, to string) {
	p.t.Helper()
	replaced := false
	moved := 0
	p.do(act{
		name: "rename " + from + " to " + to, asks: true,
		model: func(w *world) bool {
			i, ok := w.names[from]
			moved = i
			_, replaced = w.names[to]
			if !ok || !w.is(path.Dir(to), inode.ModeDir) || len(w.below(to)) > 0 {
				return false
			}
			delete(w.names, to)
			w.rename(from, to)
			return true
		},
		call: p.in(from, func(ctx context.Context, oldDir inode.Ino, oldName string) error {
			return p.in(to, func(ctx context.Context, newDir inode.Ino, newName string) error {
				return p.core.fs.Rename(ctx, who, oldDir, oldName, newDir, newName, 0)
			})(ctx)
		}),
		done: func() {
			if replaced { // what replaces another file's content is made durable first
				p.barrier[moved] = max(p.barrier[moved], p.acked-1)
			}
		},
	})
}

func (p *player) exchange(a, b string) {
	p.t.Helper()
	p.do(act{
		name: "exchange " + a + " and " + b, asks: true,
		model: func(w *world) bool {
			_, ok := w.names[a]
			_, too := w.names[b]
			if ok && too {
				w.rename(a, "\x00")
				w.rename(b, a)
				w.rename("\x00", b)
			}
			return ok && too
		},
		call: p.in(a, func(ctx context.Context, oldDir inode.Ino, oldName string) error {
			return p.in(b, func(ctx context.Context, newDir inode.Ino, newName string) error {
				return p.core.fs.Rename(ctx, who, oldDir, oldName, newDir, newName, vfs.RenameExchange)
			})(ctx)
		}),
	})
}

// edit is a change of one file's thing, by path or as an open file.
func (p *player) edit(what, name string, mixed bool, do func(x *thing), call func(ctx context.Context, ino inode.Ino) error) {
	p.t.Helper()
	h, open := p.held[name]
	a := act{
		name: what + " " + name, mixed: mixed, asks: !mixed,
		model: func(w *world) bool {
			i, ok := w.names[name]
			if open {
				i, ok = h.thing, true
			}
			return ok && (!mixed || w.things[i].mode&inode.ModeType == inode.ModeRegular) && w.edit(i, do)
		},
		call: p.on(name, call),
	}
	if open {
		a.call = func(ctx context.Context) error { return call(ctx, h.ino) }
	}
	p.do(a)
}

// with is b with q at off.
func with(b, q []byte, off int) []byte {
	b = append(slices.Clone(b), make([]byte, max(0, off+len(q)-len(b)))...)
	copy(b[off:], q)
	return b
}

func (p *player) write(name string, off, n int) {
	p.t.Helper()
	body := p.bytes(n)
	p.edit(fmt.Sprintf("write %d at %d of", n, off), name, true, func(x *thing) { x.data = with(x.data, body, off) },
		func(ctx context.Context, ino inode.Ino) error {
			m, err := p.core.fs.Write(ctx, who, ino, 0, body, int64(off))
			if err == nil && m != n {
				err = fmt.Errorf("%d of %d bytes written", m, n)
			}
			return err
		})
}

func (p *player) truncate(name string, size int) {
	p.t.Helper()
	p.edit(fmt.Sprintf("truncate to %d", size), name, true, func(x *thing) {
		x.data = append(slices.Clone(x.data[:min(size, len(x.data))]), make([]byte, max(0, size-len(x.data)))...)
	}, func(ctx context.Context, ino inode.Ino) error {
		s := int64(size)
		_, _, err := p.core.fs.SetAttr(ctx, who, ino, 0, vfs.SetAttr{Size: &s})
		return err
	})
}

const (
	keepSize  = 1
	punchHole = 2 | keepSize
	zeroRange = 0x10
)

func (p *player) fallocate(name string, mode uint32, off, n int) {
	p.t.Helper()
	p.edit(fmt.Sprintf("fallocate %#x [%d, %d) of", mode, off, off+n), name, true, func(x *thing) {
		size := len(x.data)
		if mode&^keepSize != 0 {
			x.data = with(x.data, make([]byte, n), off)
		} else {
			x.data = with(x.data, nil, off+n)
		}
		if mode&keepSize != 0 {
			x.data = x.data[:size]
		}
	}, func(ctx context.Context, ino inode.Ino) error {
		return p.core.fs.Fallocate(ctx, who, ino, 0, int64(off), int64(n), mode)
	})
}

func (p *player) chmod(name string, mode uint32) {
	p.t.Helper()
	p.edit(fmt.Sprintf("chmod %o", mode), name, false, func(x *thing) { x.mode = x.mode&inode.ModeType | mode },
		func(ctx context.Context, ino inode.Ino) error {
			_, _, err := p.core.fs.SetAttr(ctx, who, ino, 0, vfs.SetAttr{Mode: &mode})
			return err
		})
}

func (p *player) setxattr(name, value string) {
	p.t.Helper()
	p.edit("setxattr", name, false, func(x *thing) { x.xattr = "user.a=" + value + ";" },
		func(ctx context.Context, ino inode.Ino) error {
			return p.core.fs.SetXattr(ctx, who, ino, "user.a", []byte(value), 0)
		})
}

func (p *player) removexattr(name string) {
	p.t.Helper()
	if x, ok := p.now.at(name); !ok || x.xattr == "" {
		return
	}
	p.edit("removexattr", name, false, func(x *thing) { x.xattr = "" },
		func(ctx context.Context, ino inode.Ino) error { return p.core.fs.RemoveXattr(ctx, who, ino, "user.a") })
}

func (p *player) fsync(name string) {
	p.t.Helper()
	h, open := p.held[name]
	i, ok := p.now.names[name]
	if open {
		i, ok = h.thing, true
	}
	if !ok {
		return
	}
	a := act{name: "fsync " + name, call: p.on(name, func(ctx context.Context, ino inode.Ino) error {
		err := p.core.fs.Fsync(ctx, who, ino, 0, p.datasync)
		if err != nil || p.spec.Options.Fsync != "bucket" {
			return err
		}
		if have := freeze(p.t, p.bucket)[s3.Key(name)].content; have != string(p.now.things[i].data) {
			p.fatalf("after fsync into the bucket it has%s", describe(map[string]string{name: have}))
		}
		return nil
	}), done: func() {
		p.namesDurable()
		p.barrier[i] = p.acked
	}}
	if open {
		a.call = func(ctx context.Context) error { return p.core.fs.Fsync(ctx, who, h.ino, h.h, false) }
	}
	p.do(a)
}

func (p *player) fsyncDir(name string) {
	p.t.Helper()
	if !p.now.is(name, inode.ModeDir) {
		return
	}
	p.do(act{name: "fsync of directory " + name, call: p.on(name, func(ctx context.Context, ino inode.Ino) error {
		return p.core.fs.FsyncDir(ctx, who, ino)
	}), done: p.namesDurable})
}

// syncAll is what sync(2) does: an fsync of everything.
func (p *player) syncAll() {
	p.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(p.now.names)) {
		if p.now.is(name, inode.ModeRegular) {
			p.fsync(name)
		}
	}
	p.fsyncDir(".")
}

func (p *player) checkpoint() {
	p.t.Helper()
	p.do(act{name: "checkpoint", call: func(context.Context) error { return p.core.checkpoint() }, done: p.namesDurable})
}

func (p *player) reap() {
	p.t.Helper()
	p.do(act{name: "reap", call: func(context.Context) error { return p.core.store.Reap() }})
}

// evict gives up all that is clean.
func (p *player) evict() {
	p.t.Helper()
	p.do(act{name: "evict", call: func(context.Context) error {
		p.core.store.Evict(1 << 40)
		return nil
	}})
}

func (p *player) drain() {
	p.t.Helper()
	p.do(act{name: "drain", asks: true, call: p.core.drain, done: p.allDurable})
}

// wait lets the background work.
func (p *player) wait(d time.Duration) { time.Sleep(d) }

// read compares what a program reads.
func (p *player) read(name string) {
	p.t.Helper()
	h, open := p.held[name]
	i, ok := p.now.names[name]
	if open {
		i, ok = h.thing, true
	}
	if !ok {
		return
	}
	want := p.now.things[i].data
	check := func(ctx context.Context, ino inode.Ino) error {
		got, err := p.core.readAll(ctx, ino)
		if err == nil && !bytes.Equal(got, want) && !p.dead && !p.lenient {
			p.fatalf("read %s:%s, want%s", name, describe(map[string]string{"": string(got)}), describe(map[string]string{"": string(want)}))
		}
		return err
	}
	a := act{name: "read " + name, asks: true, call: p.on(name, check)}
	if open {
		a.call = func(ctx context.Context) error { return check(ctx, h.ino) }
	}
	p.do(a)
}

// list compares what a program sees in a directory.
func (p *player) list(name string) {
	p.t.Helper()
	if !p.now.is(name, inode.ModeDir) {
		return
	}
	var want []string
	for n := range p.now.names {
		if path.Dir(n) == name {
			want = append(want, path.Base(n))
		}
	}
	slices.Sort(want)
	p.do(act{name: "list " + name, asks: true, call: p.on(name, func(ctx context.Context, ino inode.Ino) error {
		var got []string
		err := p.core.fs.ReadDir(ctx, who, ino, 0, 0, false, func(e vfs.DirEntry, _ vfs.Entry) bool {
			if e.Name != "." && e.Name != ".." {
				got = append(got, e.Name)
			}
			return true
		})
		slices.Sort(got)
		if err == nil && !slices.Equal(got, want) && !p.dead {
			p.fatalf("list %s: %q, want %q", name, got, want)
		}
		return err
	})})
}

// hold opens a file, tmpfile makes one without a name; both are then known by name until release.
func (p *player) hold(name string) {
	p.t.Helper()
	i, ok := p.now.names[name]
	if !ok {
		return
	}
	p.do(act{name: "open " + name, asks: true, call: p.on(name, func(ctx context.Context, ino inode.Ino) error {
		h, _, err := p.core.fs.Open(ctx, who, ino, syscall.O_RDWR)
		if err == nil {
			p.held[name] = held{ino, h, i}
		}
		return err
	})})
}

func (p *player) tmpfile(name string) {
	p.t.Helper()
	p.do(act{name: "tmpfile", asks: true, model: func(w *world) bool {
		p.files++
		w.things[p.files] = thing{mode: inode.ModeRegular | 0o600}
		p.barrier[p.files] = -1
		return true
	}, call: func(ctx context.Context) error {
		e, h, err := p.core.fs.Tmpfile(ctx, who, inode.Root, 0o600, syscall.O_RDWR)
		if err == nil {
			p.held[name] = held{e.Attr.Ino, h, p.files}
		}
		return err
	}})
}

// linkHeld gives an open file a name.
func (p *player) linkHeld(name, to string) {
	p.t.Helper()
	h, ok := p.held[name]
	if !ok {
		return
	}
	p.do(act{name: "link open " + name + " to " + to, asks: true, model: func(w *world) bool {
		w.names[to] = h.thing
		return true
	}, call: p.in(to, func(ctx context.Context, dir inode.Ino, last string) error {
		e, err := p.core.fs.Link(ctx, who, h.ino, dir, last)
		if err == nil {
			p.core.fs.Forget(e.Attr.Ino, 1)
		}
		return err
	})})
}

func (p *player) release(name string) {
	p.t.Helper()
	if h, ok := p.held[name]; ok {
		delete(p.held, name)
		p.core.fs.Release(h.ino, h.h)
		p.core.fs.Forget(h.ino, 1)
	}
}

// copyRange copies bytes as the kernel does without a call of its own for it: read, then write.
func (p *player) copyRange(from string, off, n int, to string, at int) {
	p.t.Helper()
	x, ok := p.now.at(from)
	if !ok {
		return
	}
	body := slices.Clone(x.data[off : off+n])
	p.read(from)
	p.edit("copy into", to, true, func(x *thing) { x.data = with(x.data, body, at) }, func(ctx context.Context, ino inode.Ino) error {
		_, err := p.core.fs.Write(ctx, who, ino, 0, body, int64(at))
		return err
	})
}

// reopen closes the volume and opens it again. A fault in it is an error, and the next attempt succeeds.
func (p *player) reopen() {
	p.t.Helper()
	if p.dead {
		p.kill()
		return
	}
	for name := range maps.Clone(p.held) {
		p.release(name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	if err := p.core.close(ctx); err != nil {
		if !p.faulted() {
			p.fatalf("close without a fault: %v", err)
		}
		p.failures++
	} else {
		p.allDurable()
	}
	if err := p.open(); err != nil {
		if !p.faulted() {
			p.fatalf("open without a fault: %v", err)
		}
		p.failures++
		p.still(p.start)
	}
	p.still(func() { p.settle(false) })
}
