package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// thing is an inode as the model knows it. It never changes: a change makes another one.
type thing struct {
	mode   uint32 // type and permissions
	data   []byte
	target string
	xattr  string // name=value, sorted
}

// world is a volume as the model knows it.
type world struct {
	names  map[string]int // by path, without the root
	things map[int]thing
}

func (w *world) clone() *world { return &world{maps.Clone(w.names), maps.Clone(w.things)} }

func (w *world) at(name string) (thing, bool) {
	i, ok := w.names[name]
	return w.things[i], ok
}

func (w *world) is(name string, kind uint32) bool {
	if name == "." {
		return kind == inode.ModeDir
	}
	x, ok := w.at(name)
	return ok && x.mode&inode.ModeType == kind
}

// free says that name can be made.
func (w *world) free(name string) bool {
	_, taken := w.names[name]
	return !taken && w.is(path.Dir(name), inode.ModeDir)
}

// below are the names below a directory.
func (w *world) below(dir string) []string {
	var out []string
	for name := range w.names {
		if strings.HasPrefix(name, dir+"/") {
			out = append(out, name)
		}
	}
	return out
}

func (w *world) edit(i int, do func(x *thing)) bool {
	x, ok := w.things[i]
	if !ok {
		return false
	}
	do(&x)
	w.things[i] = x
	return true
}

// rename moves a name and all below it.
func (w *world) rename(from, to string) {
	for _, name := range append(w.below(from), from) {
		i := w.names[name]
		delete(w.names, name)
		w.names[to+name[len(from):]] = i
	}
}

// seen is what a walk through a volume found, by path. Of a thing that is a directory or a link the data is empty.
type seen map[string]thing

func (s seen) String() string {
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s)) {
		x := s[name]
		fmt.Fprintf(&out, "\n    %s %o %s%s%s", name, x.mode, x.target, x.xattr, describe(map[string]string{"": string(x.data)}))
	}
	return out.String()
}

func (w *world) String() string {
	s := seen{}
	for name, i := range w.names {
		s[name] = w.things[i]
	}
	return s.String()
}

func (x thing) equal(y thing) bool {
	return x.mode == y.mode && x.target == y.target && x.xattr == y.xattr && bytes.Equal(x.data, y.data)
}

// shows says that a walk found exactly this world, but for what blurred of content lets pass.
func (w *world) shows(found seen, blurred func(i int, content []byte) bool) bool {
	if len(found) != len(w.names) {
		return false
	}
	for name, i := range w.names {
		x, y := w.things[i], found[name]
		if blurred != nil && x.mode&inode.ModeType == inode.ModeRegular && blurred(i, y.data) {
			x.data = y.data
		}
		if !x.equal(y) {
			return false
		}
	}
	return true
}

// look walks through a volume.
func look(ctx context.Context, c *core) (seen, error) {
	found := seen{}
	var walk func(dir inode.Ino, at string) error
	walk = func(dir inode.Ino, at string) error {
		var names []string
		err := c.fs.ReadDir(ctx, who, dir, 0, 0, false, func(e vfs.DirEntry, _ vfs.Entry) bool {
			if e.Name != "." && e.Name != ".." {
				names = append(names, e.Name)
			}
			return true
		})
		if err != nil {
			return fmt.Errorf("list %q: %w", at, err)
		}
		for _, name := range names {
			e, err := c.fs.Lookup(ctx, who, dir, name)
			if err != nil || e.Attr.Ino == 0 {
				return fmt.Errorf("look up %q: inode %d: %w", path.Join(at, name), e.Attr.Ino, errors.Join(err, errHalf))
			}
			x := thing{mode: e.Attr.Mode}
			if err = c.inspect(ctx, e.Attr, &x); err == nil && e.Attr.IsDir() {
				err = walk(e.Attr.Ino, path.Join(at, name))
			}
			c.fs.Forget(e.Attr.Ino, 1)
			if err != nil {
				return fmt.Errorf("%q: %w", path.Join(at, name), err)
			}
			found[path.Join(at, name)] = x
		}
		return nil
	}
	return found, walk(inode.Root, "")
}

var errHalf = errors.New("listed and not there")

// inspect reads all of an inode.
func (c *core) inspect(ctx context.Context, attr inode.Attr, x *thing) error {
	var err error
	switch {
	case attr.IsSymlink():
		x.target, err = c.fs.Readlink(ctx, who, attr.Ino)
	case attr.IsRegular():
		x.data, err = c.readAll(ctx, attr.Ino)
	}
	names, xerr := c.fs.ListXattr(ctx, who, attr.Ino)
	if err = errors.Join(err, xerr); err != nil {
		return err
	}
	for _, name := range names {
		v, err := c.fs.GetXattr(ctx, who, attr.Ino, name)
		if err != nil {
			return err
		}
		x.xattr += fmt.Sprintf("%s=%s;", name, v)
	}
	return nil
}

func (c *core) readAll(ctx context.Context, ino inode.Ino) ([]byte, error) {
	attr, _, err := c.fs.GetAttr(ctx, who, ino)
	if err != nil {
		return nil, err
	}
	p := make([]byte, attr.Size)
	n, err := c.fs.Read(ctx, who, ino, 0, p, 0)
	return p[:n], err
}

// player carries out a script on a core, and on the model. A call that fails because of an injected fault must leave
// the volume as if it had been made or not: the player looks which, and goes on from there.
type player struct {
	t      *testing.T
	name   string // of the run, for messages
	disk   *diskmem.FS
	bucket *s3mem.Bucket
	spec   Spec
	core   *core
	boot   string

	mu         sync.Mutex
	fault      func(op diskfault.Op) error        // guarded by mu: asked before each call of the disk
	wire       func(op s3fault.Op) s3fault.Action // guarded by mu: the same for the bucket
	quiet      bool                               // guarded by mu: no faults, and nothing is counted
	hits       []string                           // guarded by mu: the faults
	legal      func(err error, asks bool) bool    // errors that a fault may cause; asks: the call puts questions to the bucket
	held       map[string]held                    // open files, by the name under which they were opened
	lenient    bool                               // others write to the bucket: names are not foreseen
	tight      bool                               // the disk is so small that it may be full without a fault
	datasync   bool                               // fsync is fdatasync
	step       string                             // the last change that began
	files      int                                // things so far
	fill       byte
	damaged    bool               // a file's bytes could not be made durable: it is not uploaded before a restart
	dead       bool               // the journal takes no more: only a restart helps
	failures   int                // calls that failed
	lost       bool               // a crash cost something that was acknowledged
	foreigners map[string]string  // objects of others
	stop       func() *diskmem.FS // kills the core, and returns the disk as it is then

	// The history: worlds by time. Of a change that failed both outcomes are in it.
	worlds  []*world
	now     *world
	acked   int         // the first of worlds that a kill may leave
	synced  int         // the first that a power cut may leave
	barrier map[int]int // by thing: the first of worlds whose content a power cut may leave; -1: it may leave nothing
}

type held struct {
	ino   inode.Ino
	h     vfs.HandleID
	thing int
}

// tiny cuts files into parts that are small enough for a test.
var tiny = writeback.Options{SinglePut: 32 << 10, Part: 8 << 10, MaxCopy: 64 << 10}

func newPlayer(t *testing.T, name string) *player {
	p := &player{
		t: t, name: name, disk: diskmem.New(), bucket: s3mem.New("bucket"), boot: "first", held: map[string]held{}, barrier: map[int]int{},
		now: &world{map[string]int{}, map[int]thing{}}, foreigners: map[string]string{},
	}
	p.bucket.MinPart = 1
	p.spec = spec(nil)
	p.spec.tuning.writeback = tiny
	p.spec.Log = slog.New(slog.DiscardHandler)
	p.worlds = []*world{p.now}
	return p
}

// object is an object that the bucket has before the volume is mounted.
func (p *player) object(name string, size int) {
	p.t.Helper()
	body := p.bytes(size)
	upload(p.t, p.bucket, name, string(body), s3.Attributes{})
	p.given(name, thing{mode: inode.ModeRegular | 0o644, data: body})
}

// given enters what is in the bucket already into the model, with the directories above it.
func (p *player) given(name string, x thing) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := p.now.names[dir]; !ok {
			p.enter(p.now, dir, thing{mode: inode.ModeDir | 0o755})
			p.barrier[p.files] = 0
		}
	}
	p.enter(p.now, name, x)
	p.barrier[p.files] = 0
}

// enter gives a new thing a name.
func (p *player) enter(w *world, name string, x thing) {
	p.files++
	w.names[name] = p.files
	w.things[p.files] = x
	p.barrier[p.files] = -1
}

func (p *player) bytes(n int) []byte {
	p.fill++
	return bytes.Repeat([]byte{p.fill}, n)
}

// errStopped is what the disk and the bucket of a process say that was killed.
var errStopped = errors.New("the process is dead")

// open opens the volume on the player's disk; what a dead core's goroutines still ask is refused.
func (p *player) open() error {
	var alive sync.Mutex // guards over
	over := false
	d := diskfault.New(p.disk, func(op diskfault.Op) error {
		alive.Lock()
		defer alive.Unlock()
		if over {
			return errStopped
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.quiet || p.fault == nil {
			return nil
		}
		err := p.fault(op)
		if err != nil {
			p.hits = append(p.hits, fmt.Sprintf("disk %s %s", op.Name, op.Path))
		}
		return err
	})
	b := s3fault.New(p.bucket)
	b.Fault = func(op s3fault.Op) s3fault.Action {
		alive.Lock()
		dead := over
		alive.Unlock()
		p.mu.Lock()
		defer p.mu.Unlock()
		switch {
		case dead:
			return s3fault.FailBefore(errStopped)
		case p.quiet || p.wire == nil:
			return s3fault.Action{}
		}
		a := p.wire(op)
		if a != (s3fault.Action{}) {
			p.hits = append(p.hits, fmt.Sprintf("bucket %s %s", op.Name, op.Key))
		}
		return a
	}
	s := p.spec
	s.Bucket = b
	c, err := openOn(d, p.boot, s)
	if err != nil {
		return err
	}
	c.start(context.Background())
	p.core = c
	p.stop = func() *diskmem.FS {
		alive.Lock()
		over = true
		alive.Unlock()
		left := p.disk.Clone()
		abandoned(c)
		return left
	}
	return nil
}

// start is open without faults.
func (p *player) start() {
	p.t.Helper()
	if err := p.open(); err != nil {
		p.fatalf("open: %v", err)
	}
}

func (p *player) fatalf(format string, args ...any) {
	p.t.Helper()
	p.mu.Lock()
	hits := strings.Join(p.hits, ", ")
	p.mu.Unlock()
	p.t.Fatalf("%s, faults [%s]: %s", p.name, hits, fmt.Sprintf(format, args...))
}

// still runs do without faults.
func (p *player) still(do func()) {
	p.mu.Lock()
	was := p.quiet
	p.quiet = true
	p.mu.Unlock()
	do()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.quiet = was
}

func (p *player) faulted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.hits) > 0
}

// bound is how long, in virtual time, one call may take whatever happens: beyond it, it hangs.
const bound = 30 * time.Minute

// act is one call.
type act struct {
	name string
	// model makes the change in w, or says that the call makes no sense in it. nil: the call changes nothing.
	model func(w *world) bool
	call  func(ctx context.Context) error
	// mixed: a call that failed may have left any part of its bytes.
	mixed bool
	// asks: the call needs answers of the bucket.
	asks bool
	// done tells the model what is durable, after a success.
	done func()
}

// do carries out a call and compares.
func (p *player) do(a act) {
	p.t.Helper()
	before := p.now
	after := before
	if a.model != nil {
		after = before.clone()
		if !a.model(after) {
			return // an earlier call failed
		}
		p.mu.Lock()
		p.worlds, p.step = append(p.worlds, after), a.name
		p.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	err := a.call(ctx)
	p.damaged = p.damaged || errors.Is(err, cache.ErrPoisoned)
	if ctx.Err() != nil && !(p.damaged && a.asks) {
		p.fatalf("%s hangs: %v", a.name, err)
	}
	if err == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		if a.model != nil {
			p.now = after
			p.acked = len(p.worlds) - 1
		}
		if a.done != nil {
			a.done()
		}
		return
	}
	if !p.faulted() && !(p.tight && vfs.Errno(err) == syscall.ENOSPC) {
		p.fatalf("%s without a fault: %v", a.name, err)
	}
	p.still(func() { p.dead = p.dead || p.core.tree.Err() != nil || p.core.journal.Room(0) != nil })
	if !p.dead && p.legal != nil && !p.legal(err, a.asks || errors.As(err, new(lookupError))) {
		p.fatalf("%s: %v is %v", a.name, err, vfs.Errno(err))
	}
	p.judge(a, before, after, err)
}

// judge looks what a call has left that failed.
func (p *player) judge(a act, before, after *world, cause error) {
	p.t.Helper()
	p.failures++
	if p.lenient {
		return
	}
	var found seen
	var err error
	p.still(func() {
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		defer cancel()
		found, err = look(ctx, p.core)
	})
	if err != nil {
		if p.dead {
			return // of a poisoned journal nothing is promised but what a restart finds
		}
		p.fatalf("after %s: %v: cannot look: %v", a.name, cause, err)
	}
	var is *world
	switch {
	case before.shows(found, nil):
		is = before
	case after.shows(found, nil):
		is = after
	case a.mixed:
		is = p.mix(before, after, found)
	}
	if is == nil {
		p.fatalf("%s failed with %v and left%s\n  was%s\n  would be%s", a.name, cause, found, before, after)
	}
	p.unnamed(a, before, after, is)
	p.now = is
	if is != p.worlds[len(p.worlds)-1] {
		p.worlds = append(p.worlds, is)
	}
	if !p.dead {
		p.acked = len(p.worlds) - 1
	}
}

// unnamed looks at the open files that have no name.
func (p *player) unnamed(a act, before, after, is *world) {
	p.t.Helper()
	for name, h := range p.held {
		was, would := before.things[h.thing], after.things[h.thing]
		if was.equal(would) || slices.Contains(slices.Collect(maps.Values(is.names)), h.thing) {
			continue
		}
		p.still(func() {
			got, err := p.core.readAll(context.Background(), h.ino)
			s := story{versions: [][]byte{was.data, would.data}}
			if err != nil || !s.explains(string(got), 0) {
				p.fatalf("%s failed and left in %s:%s, %v", a.name, name, describe(map[string]string{"": string(got)}), err)
			}
			is.edit(h.thing, func(x *thing) { x.data = got })
		})
	}
}

// mix is the world that a failed change of bytes left, nil when it has bytes of neither.
func (p *player) mix(before, after *world, found seen) *world {
	is := before.clone()
	blurred := func(i int, content []byte) bool {
		s := story{versions: [][]byte{before.things[i].data, after.things[i].data}}
		if !s.explains(string(content), 0) {
			return false
		}
		is.edit(i, func(x *thing) { x.data = content })
		return true
	}
	if !before.shows(found, blurred) {
		return nil
	}
	return is
}

// The marks of durability.

func (p *player) namesDurable() { p.synced = p.acked }

func (p *player) allDurable() {
	p.synced = p.acked
	for i := range p.barrier {
		p.barrier[i] = p.acked
	}
}

// ino looks up a path.
func (p *player) ino(ctx context.Context, name string) (inode.Ino, error) {
	ino := inode.Root
	if name == "." {
		return ino, nil
	}
	for _, part := range strings.Split(name, "/") {
		e, err := p.core.fs.Lookup(ctx, who, ino, part)
		if err == nil && e.Attr.Ino == 0 {
			err = namespace.ErrNotExist
		}
		if err != nil {
			return 0, lookupError{err}
		}
		p.core.fs.Forget(e.Attr.Ino, 1)
		ino = e.Attr.Ino
	}
	return ino, nil
}

// lookupError: the call itself was not made.
type lookupError struct{ error }

func (e lookupError) Unwrap() error { return e.error }

// on runs do with the inode of a path.
func (p *player) on(name string, do func(ctx context.Context, ino inode.Ino) error) func(context.Context) error {
	return func(ctx context.Context) error {
		ino, err := p.ino(ctx, name)
		if err != nil {
			return err
		}
		return do(ctx, ino)
	}
}

// in runs do with the inode of a path's directory.
func (p *player) in(name string, do func(ctx context.Context, dir inode.Ino, last string) error) func(context.Context) error {
	return p.on(path.Dir(name), func(ctx context.Context, dir inode.Ino) error { return do(ctx, dir, path.Base(name)) })
}

// The calls.

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
