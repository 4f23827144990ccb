package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/vfs"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// actor does things at random to names of its own, which begin with its own.
type actor struct {
	life  *life
	name  string
	rnd   *rand.Rand
	book  *book
	next  int          // number of the next contested name
	fill  byte         // of the last bytes
	open  []openHandle // of the present process
	known []inode.Ino  // looked up in the present step
}

type openHandle struct {
	ino    inode.Ino
	handle vfs.HandleID
}

func newActor(l *life, name string, seed uint64) *actor {
	a := &actor{life: l, name: name, rnd: rand.New(rand.NewPCG(seed, 2)), book: newBook()}
	names := map[string]int{}
	put := func(key string, content []byte) {
		attr := s3.Attributes{}
		if a.rnd.IntN(2) == 0 {
			attr.Meta = map[string]string{"mode": "33188"}
		}
		if _, err := l.bucket.Put(context.Background(), s3.Key(key), s3.Body{R: bytes.NewReader(content), Size: int64(len(content))}, attr, s3.Condition{}); err != nil {
			l.broke(err)
		}
	}
	dirs := a.dirs()
	for _, dir := range dirs[:1+a.rnd.IntN(2)] {
		put(dir, nil)
		names[dir] = directory
		for i := range a.rnd.IntN(4) {
			key := fmt.Sprint(dir, "f", i)
			content := a.bytes(a.size())
			put(key, content)
			a.book.files = append(a.book.files, story{versions: [][]byte{content}})
			names[key] = len(a.book.files) - 1
			a.book.held[key] = committed{file: len(a.book.files) - 1}
		}
	}
	a.book.names = []map[string]int{names}
	return a
}

// dirs are the names that the actor's directories may have.
func (a *actor) dirs() []string {
	return []string{a.name + "0/", a.name + "1/", a.name + "2/", a.name + "3/"}
}

func (a *actor) bytes(n int) []byte {
	a.fill++
	return bytes.Repeat([]byte{a.fill}, n)
}

// size is that of a small file, one of some parts, or one whose copies are made of parts, too.
func (a *actor) size() int { return 1 + a.rnd.IntN([]int{100, 5000, 15000, 30000}[a.rnd.IntN(4)]) }

// excused says that an error is none of the volume: its disk failed, and it is to die.
func (a *actor) excused(p *process, err error) bool {
	a.life.mu.Lock()
	defer a.life.mu.Unlock()
	if a.life.badDisk == 0 {
		return false
	}
	return a.life.tally["disk fault"] > 0
}

func (a *actor) learnt(e vfs.Entry, err error) {
	if err == nil {
		a.known = append(a.known, e.Attr.Ino)
	}
}

// forget lets the volume forget what was looked up.
func (a *actor) forget(c *core) {
	for _, ino := range a.known {
		c.fs.Forget(ino, 1)
	}
	a.known = nil
}

// step does one thing: the model knows before and after.
func (a *actor) step(p *process) error {
	defer a.forget(p.core)
	if err := wait(p.ctx, a.pause()); err != nil {
		return err
	}
	now := a.book.present()
	var files, dirs []string
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if now[name] == directory {
			dirs = append(dirs, name)
		} else {
			files = append(files, name)
		}
	}
	if len(dirs) == 0 {
		return a.mkdir(p, a.dirs()[a.rnd.IntN(4)])
	}
	dir := dirs[a.rnd.IntN(len(dirs))]
	other := fmt.Sprint(dir, "f", a.rnd.IntN(5))
	_, taken := now[other]
	if len(files) == 0 {
		return a.create(p, other)
	}
	one := files[a.rnd.IntN(len(files))]
	_, link := a.book.links[now[one]]
	size := len(a.book.file(one).now())
	switch k := a.rnd.IntN(40); {
	case k < 5 && !taken:
		if err := a.create(p, other); err != nil {
			return err
		}
		return a.write(p, other, 0, a.size())
	case k < 12 && !link:
		return a.write(p, one, a.rnd.IntN(size+100), a.size())
	case k < 14 && !link:
		return a.truncate(p, one, a.rnd.IntN(size+4000))
	case k < 17 && !link:
		return a.fsync(p, one)
	case k < 18:
		return a.fsyncDir(p)
	case k < 23 && other != one:
		return a.rename(p, one, other)
	case k < 25:
		to := a.dirs()[a.rnd.IntN(4)]
		if _, taken := now[to]; taken {
			return a.mkdirOrNot(p, to, taken)
		}
		return a.renameDir(p, dir, to)
	case k < 27:
		return a.unlink(p, one)
	case k < 28 && !taken && !link:
		return a.link(p, one, other)
	case k < 29 && !taken:
		return a.symlink(p, other)
	case k < 30:
		return a.chmod(p, one)
	case k < 32 && !link:
		return a.hold(p, one)
	case k < 33:
		a.letGo(p)
		return nil
	case k < 34:
		return a.did(p, "checkpoint", nil, p.core.checkpoint, nil)
	case k < 35:
		return a.did(p, "reap", nil, p.core.store.Reap, nil)
	case k < 36:
		return a.drain(p)
	case k < 37:
		return a.contest(p)
	case k < 38:
		return a.readBack(p, one)
	case k < 39:
		to := a.dirs()[a.rnd.IntN(4)]
		_, taken := now[to]
		return a.mkdirOrNot(p, to, taken)
	default:
		return wait(p.ctx, time.Duration(a.rnd.Int64N(int64(2*time.Minute))))
	}
}

// pause is mostly short, and now and then past the settle time.
func (a *actor) pause() time.Duration {
	most := []time.Duration{time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond, 3 * time.Second}[a.rnd.IntN(4)]
	return time.Duration(1 + a.rnd.Int64N(int64(most)))
}

// did tells the model what a call is going to do, makes the call, and tells the model that it was done, unless the
// process died meanwhile.
func (a *actor) did(p *process, step string, begin func(b *book), call func() error, end func(b *book)) error {
	l, b := a.life, a.book
	l.mu.Lock()
	if p.dead {
		l.mu.Unlock()
		return errDead
	}
	b.step = step
	l.trace("%s: %s", a.name, step)
	l.count(strings.Fields(step)[0])
	if begin != nil {
		begin(b)
	}
	l.mu.Unlock()
	err := allowed(p.ctx, call)
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.dead {
		return errDead
	}
	l.trace("%s: %s: %v", a.name, step, err)
	if err != nil {
		return err
	}
	b.acked = b.last()
	for i := range b.files {
		b.files[i].acked = len(b.files[i].versions) - 1
	}
	if end != nil {
		end(b)
	}
	return nil
}

// allowed repeats a call while the server does not accept the credentials: only then a program hears of the server.
func allowed(ctx context.Context, call func() error) error {
	for {
		err := call()
		if !errors.Is(err, s3.ErrAuth) {
			return err
		}
		if err := wait(ctx, 7*time.Second); err != nil {
			return err
		}
	}
}

// lookup finds an inode. What the kernel would know of then is forgotten with the step.
func (a *actor) lookup(ctx context.Context, c *core, name string) (inode.Attr, error) {
	attr := inode.Attr{Ino: inode.Root}
	for _, part := range strings.Split(strings.TrimSuffix(name, "/"), "/") {
		var e vfs.Entry
		err := allowed(ctx, func() (err error) {
			e, err = c.fs.Lookup(ctx, who, attr.Ino, part)
			return err
		})
		if err == nil && e.Attr.Ino == 0 {
			err = namespace.ErrNotExist
		}
		if err != nil {
			return attr, fmt.Errorf("look up %s: %w", name, err)
		}
		attr = e.Attr
		a.known = append(a.known, attr.Ino)
	}
	return attr, nil
}

func split(name string) (dir, base string) {
	name = strings.TrimSuffix(name, "/")
	i := strings.LastIndexByte(name, '/')
	return name[:i+1], name[i+1:]
}

// parent finds the directory of a name.
func (a *actor) parent(p *process, name string) (inode.Ino, string, error) {
	dir, base := split(name)
	if dir == "" {
		return inode.Root, base, nil
	}
	attr, err := a.lookup(p.ctx, p.core, dir)
	return attr.Ino, base, err
}

func (a *actor) mkdirOrNot(p *process, name string, taken bool) error {
	if taken {
		return nil
	}
	return a.mkdir(p, name)
}

func (a *actor) mkdir(p *process, name string) error {
	dir, base, err := a.parent(p, name)
	if err != nil {
		return err
	}
	return a.did(p, "mkdir "+name, func(b *book) {
		b.rename(func(names map[string]int) { names[name] = directory })
	}, func() error {
		e, err := p.core.fs.Mkdir(p.ctx, who, dir, base, 0o755)
		a.learnt(e, err)
		return err
	}, nil)
}

func (a *actor) create(p *process, name string) error {
	dir, base, err := a.parent(p, name)
	if err != nil {
		return err
	}
	return a.did(p, "create "+name, func(b *book) {
		b.files = append(b.files, story{versions: [][]byte{{}}, barrier: -1})
		b.rename(func(names map[string]int) { names[name] = len(b.files) - 1 })
	}, func() error {
		e, h, err := p.core.fs.Create(p.ctx, who, dir, base, 0o644, syscall.O_RDWR|syscall.O_EXCL)
		a.learnt(e, err)
		if err == nil && a.rnd.IntN(3) == 0 {
			a.open = append(a.open, openHandle{e.Attr.Ino, h})
		} else if err == nil {
			p.core.fs.Release(e.Attr.Ino, h)
		}
		return err
	}, nil)
}

func (a *actor) write(p *process, name string, off, n int) error {
	attr, err := a.lookup(p.ctx, p.core, name)
	if err != nil {
		return err
	}
	text := a.bytes(n)
	return a.did(p, fmt.Sprintf("write %s at %d, %d bytes", name, off, n), func(b *book) {
		a.may(name)
		b.change(name, func(old []byte) []byte {
			old = append(old, make([]byte, max(0, off+n-len(old)))...)
			copy(old[off:], text)
			return old
		})
	}, func() error {
		_, err := p.core.fs.Write(p.ctx, who, attr.Ino, 0, text, int64(off))
		return err
	}, nil)
}

// may notes that what a failing disk leaves of the next change is not known.
func (a *actor) may(name string) {
	if a.life.badDisk > 0 {
		a.book.torn[a.book.present()[name]] = true
	}
}

func (a *actor) truncate(p *process, name string, size int) error {
	attr, err := a.lookup(p.ctx, p.core, name)
	if err != nil {
		return err
	}
	return a.did(p, fmt.Sprintf("truncate %s to %d", name, size), func(b *book) {
		a.may(name)
		b.change(name, func(old []byte) []byte {
			return append(old[:min(size, len(old))], make([]byte, max(0, size-len(old)))...)
		})
	}, func() error {
		s := int64(size)
		_, _, err := p.core.fs.SetAttr(p.ctx, who, attr.Ino, 0, vfs.SetAttr{Size: &s})
		return err
	}, nil)
}

func (a *actor) chmod(p *process, name string) error {
	attr, err := a.lookup(p.ctx, p.core, name)
	if err != nil {
		return err
	}
	mode := uint32(0o600 + a.rnd.IntN(0o100))
	return a.did(p, fmt.Sprintf("chmod %s to %o", name, mode), nil, func() error {
		_, _, err := p.core.fs.SetAttr(p.ctx, who, attr.Ino, 0, vfs.SetAttr{Mode: &mode})
		return err
	}, nil)
}

func (a *actor) fsync(p *process, name string) error {
	attr, err := a.lookup(p.ctx, p.core, name)
	if err != nil {
		return err
	}
	return a.did(p, "fsync "+name, nil, func() error {
		return p.core.fs.Fsync(p.ctx, who, attr.Ino, 0, false)
	}, func(b *book) {
		b.synced = b.acked
		f := b.file(name)
		f.barrier = f.acked
		if a.life.options.Fsync == "bucket" && a.life.tally["disk fault"] == 0 && !b.holds(b.present()[name], f.acked) && !b.shows(name, f.now()) {
			a.life.broke(fmt.Errorf("fsync of %s returned, and the bucket does not have version %d of file %d", name, f.acked, b.present()[name]))
		}
	})
}

func (a *actor) fsyncDir(p *process) error {
	return a.did(p, "fsyncdir", nil, func() error { return p.core.fs.FsyncDir(p.ctx, who, inode.Root) }, func(b *book) {
		b.synced = b.acked
	})
}

func (a *actor) rename(p *process, from, to string) error {
	dir1, base1, err := a.parent(p, from)
	if err != nil {
		return err
	}
	dir2, base2, err := a.parent(p, to)
	if err != nil {
		return err
	}
	if old, over := a.book.present()[to]; over && old == a.book.present()[from] {
		return nil // two links of one file: rename does nothing
	}
	return a.did(p, "rename "+from+" to "+to, func(b *book) {
		b.rename(func(names map[string]int) { names[to] = names[from]; delete(names, from) })
	}, func() error {
		return p.core.fs.Rename(p.ctx, who, dir1, base1, dir2, base2, 0)
	}, nil)
}

func (a *actor) renameDir(p *process, from, to string) error {
	return a.did(p, "renamedir "+from+" to "+to, func(b *book) {
		b.moving = true
		b.rename(func(names map[string]int) {
			for name, i := range maps.Clone(names) {
				if rest, below := strings.CutPrefix(name, from); below {
					delete(names, name)
					names[to+rest] = i
				}
			}
		})
	}, func() error {
		return p.core.fs.Rename(p.ctx, who, inode.Root, strings.TrimSuffix(from, "/"), inode.Root, strings.TrimSuffix(to, "/"), 0)
	}, nil)
}

func (a *actor) unlink(p *process, name string) error {
	dir, base, err := a.parent(p, name)
	if err != nil {
		return err
	}
	return a.did(p, "unlink "+name, func(b *book) {
		b.rename(func(names map[string]int) { delete(names, name) })
	}, func() error { return p.core.fs.Unlink(p.ctx, who, dir, base) }, nil)
}

func (a *actor) link(p *process, name, to string) error {
	attr, err := a.lookup(p.ctx, p.core, name)
	if err != nil {
		return err
	}
	dir, base, err := a.parent(p, to)
	if err != nil {
		return err
	}
	return a.did(p, "link "+name+" as "+to, func(b *book) {
		b.rename(func(names map[string]int) { names[to] = names[name] })
	}, func() error {
		e, err := p.core.fs.Link(p.ctx, who, attr.Ino, dir, base)
		a.learnt(e, err)
		return err
	}, nil)
}

func (a *actor) symlink(p *process, name string) error {
	dir, base, err := a.parent(p, name)
	if err != nil {
		return err
	}
	target := string(a.bytes(20))
	return a.did(p, "symlink "+name, func(b *book) {
		b.files = append(b.files, story{versions: [][]byte{{}}})
		b.links[len(b.files)-1] = target
		b.rename(func(names map[string]int) { names[name] = len(b.files) - 1 })
	}, func() error {
		e, err := p.core.fs.Symlink(p.ctx, who, dir, base, target)
		a.learnt(e, err)
		return err
	}, nil)
}

// hold opens a file until letGo.
func (a *actor) hold(p *process, name string) error {
	attr, err := a.lookup(p.ctx, p.core, name)
	if err != nil {
		return err
	}
	return a.did(p, "open "+name, nil, func() error {
		h, _, err := p.core.fs.Open(p.ctx, who, attr.Ino, syscall.O_RDWR)
		if err == nil {
			a.open = append(a.open, openHandle{attr.Ino, h})
		}
		return err
	}, nil)
}

func (a *actor) letGo(p *process) {
	for _, o := range a.open {
		if !p.gone() {
			p.core.fs.Release(o.ino, o.handle)
		}
	}
	a.open = nil
}

func (a *actor) drain(p *process) error {
	ctx, cancel := context.WithTimeout(p.ctx, time.Duration(a.rnd.Int64N(int64(5*time.Minute))))
	defer cancel()
	drained := true
	return a.did(p, "drain", nil, func() error {
		err := p.core.drain(ctx)
		if err != nil && ctx.Err() != nil {
			drained = false
			return nil //nolint:nilerr // that it was not all in time is no failure
		}
		return err
	}, func(b *book) {
		if drained {
			durable(&b.moment)
			b.moving = false
		}
	})
}

// contest makes a file under a new name, and a stranger's object of the same name, at about the same time.
func (a *actor) contest(p *process) error {
	a.next++
	name := fmt.Sprint(a.name, "x", a.next)
	c := &contested{ours: a.bytes(a.size()), theirs: a.bytes(a.size())}
	delay := time.Duration(1 + a.rnd.Int64N(int64(3*time.Second)))
	var wg sync.WaitGroup
	defer wg.Wait()
	err := a.did(p, "contest "+name, func(b *book) { b.alien[name] = c }, func() error {
		e, h, err := p.core.fs.Create(p.ctx, who, inode.Root, name, 0o644, syscall.O_RDWR)
		a.learnt(e, err)
		if err != nil {
			return err
		}
		_, err = p.core.fs.Write(p.ctx, who, e.Attr.Ino, h, c.ours, 0)
		p.core.fs.Release(e.Attr.Ino, h)
		if err == nil {
			err = p.core.fs.Fsync(p.ctx, who, e.Attr.Ino, 0, false)
		}
		return err
	}, func(*book) { c.acked = true })
	if err != nil {
		return err
	}
	return a.did(p, "stranger", nil, func() error {
		_ = wait(p.ctx, delay)
		a.life.mu.Lock()
		defer a.life.mu.Unlock()
		there, err := stored(a.life.bucket, s3.Key(name))
		c.before = err == nil && bytes.Equal(there, c.ours)
		c.put = true
		a.life.trace("the stranger puts %s, ours there: %v", name, c.before)
		_, err = a.life.bucket.Put(context.Background(), s3.Key(name), s3.Body{R: bytes.NewReader(c.theirs), Size: int64(len(c.theirs))}, s3.Attributes{}, s3.Condition{})
		return err
	}, nil)
}

// readBack reads a file through the mount.
func (a *actor) readBack(p *process, name string) error {
	var content string
	return a.did(p, "read "+name, nil, func() (err error) {
		content, err = a.content(p.ctx, p.core, name)
		return err
	}, func(b *book) {
		i := b.present()[name]
		want := string(b.files[i].now())
		if link, is := b.links[i]; is {
			want = "-> " + link
		}
		if content != want {
			a.life.broke(fmt.Errorf("read %s:%s", name, describe(map[string]string{"got": content, "want": want})))
		}
	})
}

// content is what the mount shows of a name.
func (a *actor) content(ctx context.Context, c *core, name string) (string, error) {
	attr, err := a.lookup(ctx, c, name)
	if err != nil {
		return "", err
	}
	switch {
	case attr.IsDir():
		return "", nil
	case !attr.IsRegular():
		target, err := c.fs.Readlink(ctx, who, attr.Ino)
		return "-> " + target, err
	}
	text := make([]byte, attr.Size)
	n, err := c.fs.Read(ctx, who, attr.Ino, 0, text, 0)
	return string(text[:n]), err
}

// look compares the mount with the model before the volume does anything by itself.
func (a *actor) look(p *process, c *core) error {
	defer a.forget(c)
	found := map[string]string{}
	for _, dir := range append([]string{""}, a.dirs()...) {
		ino := inode.Root
		if dir != "" {
			if _, there := found[dir]; !there {
				continue
			}
			attr, err := a.lookup(p.ctx, c, dir)
			if err != nil {
				return err
			}
			ino = attr.Ino
		}
		var names []string
		err := allowed(p.ctx, func() error {
			return c.fs.ReadDir(p.ctx, who, ino, 0, 0, false, func(e vfs.DirEntry, _ vfs.Entry) bool {
				if e.Name != "." && e.Name != ".." {
					names = append(names, dir+e.Name)
				}
				return true
			})
		})
		if err != nil {
			return fmt.Errorf("read directory %q: %w", dir, err)
		}
		for _, name := range names {
			if !strings.HasPrefix(name, a.name) || strings.HasPrefix(name, a.name+"x") {
				continue
			}
			if strings.Contains(name, ".conflict-") {
				return fmt.Errorf("%q: %w", name, writeback.ErrConflict)
			}
			attr, err := a.lookup(p.ctx, c, name)
			if err != nil {
				return err
			}
			if attr.IsDir() {
				found[name+"/"] = ""
				continue
			}
			err = allowed(p.ctx, func() (err error) {
				// Somebody who is told that what he looked at is another object now looks again.
				for range 3 {
					if found[name], err = a.content(p.ctx, c, name); !errors.Is(err, s3.ErrPrecondition) && !errors.Is(err, s3.ErrNotExist) {
						break
					}
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
		}
	}
	a.life.mu.Lock()
	defer a.life.mu.Unlock()
	if p.dead {
		return errDead
	}
	a.open = nil
	return a.book.look(found)
}
