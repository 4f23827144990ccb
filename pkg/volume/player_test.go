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
