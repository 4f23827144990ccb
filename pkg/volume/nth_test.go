package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// soak is the long form of the suites: nothing is sampled.
var soak = os.Getenv("CSI_S3_SOAK") != ""

// variant is a kind of fault. Its functions return what a call that it can strike gets, and nothing for the others.
type variant struct {
	name  string
	disk  func(op diskfault.Op) error
	wire  func(op s3fault.Op) s3fault.Action
	lasts time.Duration // how long it goes on after its first strike; 0: one call
	// legal are the errors that a program may see.
	legal func(err error, asks bool) bool
}

// changes says that a call of the disk needs it to be writable.
func changes(op diskfault.Op) bool {
	switch op.Name {
	case "ReadAt", "ReadFile", "ReadDir", "Size", "Space", "Lock":
		return false
	}
	return true
}

func always(err error) func(diskfault.Op) error { return func(diskfault.Op) error { return err } }

// changing fails what changes the disk.
func changing(err error) func(diskfault.Op) error {
	return func(op diskfault.Op) error {
		if !changes(op) {
			return nil
		}
		return err
	}
}

func short(err error) func(diskfault.Op) error {
	return func(op diskfault.Op) error {
		if op.Name != "WriteAt" {
			return nil
		}
		return &diskfault.Partial{N: int(op.Len / 2), Err: err}
	}
}

// wireOn strikes the calls of some names.
func wireOn(a s3fault.Action, names ...string) func(s3fault.Op) s3fault.Action {
	return func(op s3fault.Op) s3fault.Action {
		if len(names) > 0 && !slices.Contains(names, op.Name) {
			return s3fault.Action{}
		}
		return a
	}
}

var (
	mutations  = []string{"Put", "Copy", "Delete", "DeleteMany", "CreateUpload", "UploadPart", "CopyPart", "CompleteUpload", "AbortUpload"}
	stores     = []string{"Put", "Copy", "CreateUpload", "UploadPart", "CopyPart", "CompleteUpload"}
	bodies     = []string{"Get", "Put", "UploadPart"}
	conditions = []string{"Put", "Copy", "CompleteUpload"}
	inUpload   = []string{"UploadPart", "CopyPart", "CompleteUpload", "ListParts"}
)

func oneOf(errnos ...syscall.Errno) func(error, bool) bool {
	return func(err error, _ bool) bool {
		return slices.Contains(errnos, vfs.Errno(err))
	}
}

// noError: nothing that the bucket does may be an error for a program.
func noError(error, bool) bool { return false }

// refused: who asks for what is not here hears that the bucket does not let us.
func refused(err error, asks bool) bool { return asks && vfs.Errno(err) == syscall.EACCES }

// full: a disk without room is ENOSPC, but a file whose bytes it could not keep after all is damaged.
func full(err error, _ bool) bool {
	return vfs.Errno(err) == syscall.ENOSPC || errors.Is(err, cache.ErrPoisoned)
}

var diskVariants = []variant{
	{name: "EIO", disk: always(disk.ErrIO), legal: oneOf(syscall.EIO)},
	{name: "ENOSPC", disk: changing(disk.ErrNoSpace), legal: full},
	{name: "short write, ENOSPC", disk: short(disk.ErrNoSpace), legal: full},
	{name: "short write, EIO", disk: short(disk.ErrIO), legal: oneOf(syscall.EIO)},
	{name: "EIO for a minute", disk: always(disk.ErrIO), lasts: time.Minute, legal: oneOf(syscall.EIO)},
	{name: "ENOSPC for a minute", disk: changing(disk.ErrNoSpace), lasts: time.Minute, legal: full},
	{name: "read-only for a minute", disk: changing(disk.ErrReadOnly), lasts: time.Minute, legal: oneOf(syscall.EIO, syscall.EROFS)},
}

var wireVariants = []variant{
	{name: "unavailable", wire: wireOn(s3fault.FailBefore(nil)), legal: noError},
	{name: "answer lost", wire: wireOn(s3fault.FailAfter(nil), mutations...), legal: noError},
	{name: "corrupt body", wire: wireOn(s3fault.CorruptBody(), bodies...), legal: noError},
	{name: "short body", wire: wireOn(s3fault.ShortBody(3), bodies...), legal: noError},
	{name: "access denied", wire: wireOn(s3fault.FailBefore(s3.ErrAuth)), legal: refused},
	{name: "precondition failed", wire: wireOn(s3fault.FailBefore(s3.ErrPrecondition), conditions...), legal: noError},
	{name: "upload expired", wire: wireOn(s3fault.FailBefore(s3.ErrNoUpload), inUpload...), legal: noError},
	{name: "upload completed, unknown then", wire: wireOn(s3fault.FailAfter(s3.ErrNoUpload), "CompleteUpload"), legal: noError},
	{name: "storage full", wire: wireOn(s3fault.FailBefore(s3.ErrFull), stores...), legal: noError},
	{name: "refused", wire: wireOn(s3fault.FailBefore(s3.ErrInvalid), stores...), legal: noError},
	{name: "unavailable for ten minutes", wire: wireOn(s3fault.FailBefore(nil)), lasts: 10 * time.Minute, legal: noError},
	{name: "access denied for ten minutes", wire: wireOn(s3fault.FailBefore(s3.ErrAuth)), lasts: 10 * time.Minute, legal: refused},
}

// how a run ends.
const (
	byDrain = iota
	byKill
	byPowerCut
	endings
)

// strike is a run of a script with the n-th call that the variant can strike failing.
type strike struct {
	script  script
	variant variant
	n       int
	end     int
}

func (s strike) String() string {
	return fmt.Sprintf("%s: %s at %d, then %s", s.script.name, s.variant.name, s.n, []string{"drain", "kill", "power cut"}[s.end])
}

// legal says that a program may see an error.
func (s strike) legal(err error, asks bool) bool {
	return s.variant.legal(err, asks) || s.script.tight && vfs.Errno(err) == syscall.ENOSPC || s.script.mess && slices.Contains([]syscall.Errno{syscall.ESTALE, syscall.ENOENT}, vfs.Errno(err))
}

// outcome is what a run was good for.
type outcome struct {
	calls  int // that the variant could strike
	hits   int
	failed int // calls of the script that returned an error
	dead   bool
}

// run is one run, in a bubble of its own.
func (s strike) run(t *testing.T) (o outcome) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := newPlayer(t, s.String())
		p.lenient, p.tight, p.legal = s.script.mess, s.script.tight, s.legal
		if s.script.base != nil {
			s.script.base(p)
		}
		defer func() {
			if t.Failed() && p.stop != nil {
				p.stop() // a bubble must be empty in the end
			}
		}()
		p.start()
		calls := 0
		var until time.Time
		strikes := func() bool {
			calls++
			if calls == s.n {
				until = time.Now().Add(s.variant.lasts)
			}
			return calls == s.n || calls > s.n && time.Now().Before(until)
		}
		p.mu.Lock()
		if d := s.variant.disk; d != nil {
			p.fault = func(op diskfault.Op) error {
				if err := d(op); err != nil && strikes() {
					return err
				}
				return nil
			}
		}
		if w := s.variant.wire; w != nil {
			p.wire = func(op s3fault.Op) s3fault.Action {
				a := w(op)
				if a == (s3fault.Action{}) || !strikes() {
					return s3fault.Action{}
				}
				if s.variant.name == "upload expired" {
					expire(t, p.bucket, op.Key)
				}
				return a
			}
		}
		p.mu.Unlock()
		s.script.run(p)
		p.mu.Lock()
		p.fault, p.wire = nil, nil
		o.calls = calls
		p.mu.Unlock()
		o.dead = p.dead
		p.finish(s.end, uint64(s.n))
		o.hits, o.failed = len(p.hits), p.failures
	})
	return o
}

// expire is what a server does to uploads that are old.
func expire(t *testing.T, b *s3mem.Bucket, key s3.Key) {
	open, _, err := b.ListUploads(context.Background(), key)
	for _, u := range open {
		err = errors.Join(err, b.AbortUpload(context.Background(), u.Key, u.ID))
	}
	if err != nil {
		t.Error(err)
	}
}

// finish ends a life without further faults, and compares what the bucket has then.
func (p *player) finish(end int, seed uint64) {
	p.t.Helper()
	for name := range maps.Clone(p.held) {
		p.release(name)
	}
	switch {
	case end == byPowerCut:
		p.restart(rand.New(rand.NewPCG(seed, 7)))
	case end == byKill || p.dead || p.damaged:
		p.restart(nil)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*bound)
	defer cancel()
	err := p.core.drain(ctx)
	if p.poisoned() || errors.Is(err, cache.ErrPoisoned) {
		p.restart(nil)
		err = p.core.drain(ctx)
	}
	if err != nil {
		p.fatalf("drain: %v", err)
	}
	time.Sleep(time.Minute) // the bytes of a file that ended with the drain go just after it
	if s := p.core.executor.Status(); s.DirtyBytes != 0 || s.DirtyFiles != 0 || s.Queue != 0 {
		p.fatalf("after the drain: %+v", s)
	}
	p.compare()
	if err := p.core.close(ctx); err != nil && !p.diskFaulted() && !(p.tight && vfs.Errno(err) == syscall.ENOSPC) {
		p.fatalf("close: %v", err)
	}
	p.last()
}

func (p *player) poisoned() (yes bool) {
	p.still(func() { yes = p.core.tree.Err() != nil || p.core.journal.Room(0) != nil })
	return yes
}

func (p *player) diskFaulted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.hits) > 0 && strings.HasPrefix(p.hits[0], "disk")
}

// restart is a kill, or with a source of chance a power cut, and the next start. It finds out which world is left.
func (p *player) restart(rnd *rand.Rand) {
	p.t.Helper()
	cut := rnd != nil
	p.disk = p.stop()
	if cut {
		p.disk, p.boot = p.disk.CrashClone(rnd), "second"
	}
	clear(p.held)
	p.dead, p.damaged = false, false
	if err := p.open(); err != nil {
		if !p.faulted() {
			p.fatalf("open after a crash: %v", err)
		}
		p.still(p.start)
	}
	p.still(func() { p.settle(cut) })
}

// settle finds the world that a crash has left.
func (p *player) settle(cut bool) {
	p.t.Helper()
	if p.lenient {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	found, err := look(ctx, p.core)
	if err != nil {
		p.fatalf("after a crash: %v", err)
	}
	is := p.explain(found, cut)
	if is == nil {
		p.fatalf("after a crash (power cut: %v) there is%s\n  may be%s", cut, found, p.history(cut))
	}
	p.lost = p.lost || !p.now.shows(found, nil)
	p.now = is
	p.worlds = append(p.worlds, is)
	p.acked = len(p.worlds) - 1
	if cut {
		p.allDurable() // the recovery from a power cut makes a checkpoint, and what it found counts
	}
}

// explain finds the world that a walk shows after a crash; nil: there is none.
func (p *player) explain(found seen, cut bool) *world {
	first := p.synced
	if !cut {
		first = p.acked
	}
	for _, w := range p.worlds[first:] {
		is := w.clone()
		blurred := func(i int, content []byte) bool {
			var s story
			from := max(0, p.barrier[i])
			if !cut {
				from = first // of a call that did not return any part of its bytes may be there
			}
			for _, v := range p.worlds[from:] {
				if x, ok := v.things[i]; ok {
					s.versions = append(s.versions, x.data)
				}
			}
			ok := s.explains(string(content), 0)
			if ok {
				is.edit(i, func(x *thing) { x.data = content })
			}
			return ok
		}
		for name, i := range w.names {
			if _, there := found[name]; !there && cut && p.barrier[i] < 0 && w.is(name, 0o100000) {
				delete(is.names, name) // what no barrier covers may be gone
			}
		}
		if is.shows(found, blurred) {
			return is
		}
	}
	return nil
}

func (p *player) history(cut bool) string {
	var out strings.Builder
	first := p.acked
	if cut {
		first = p.synced
	}
	for i, w := range p.worlds {
		if i >= first {
			fmt.Fprintf(&out, "\n  world %d%s", i, w)
		}
	}
	fmt.Fprintf(&out, "\n  barriers %v", p.barrier)
	return out.String()
}

// compare looks whether the bucket has all there is, as one who has nothing but the bucket sees it, and nothing else.
func (p *player) compare() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	if open, _, err := p.bucket.ListUploads(ctx, ""); err != nil || len(open) > 0 {
		p.fatalf("uploads are left: %v, %v", open, err)
	}
	have := freeze(p.t, p.bucket)
	if p.lenient {
		p.compareMess(have)
		return
	}
	s := p.spec
	s.Bucket = p.bucket
	s.Options.Size = 0
	fresh, err := openOn(diskmem.New(), "first", s)
	if err != nil {
		p.fatalf("open on an empty disk: %v", err)
	}
	defer abandoned(fresh)
	found, err := look(ctx, fresh)
	if err != nil || !p.now.shows(found, nil) {
		p.fatalf("the bucket has%s\n  want%s\n  %v", found, p.now, err)
	}
	for key := range have {
		name := strings.TrimSuffix(string(key), "/")
		if _, ok := p.now.names[name]; !ok && (!strings.HasPrefix(name, ".csi-s3/") || strings.HasPrefix(name, ".csi-s3/spill")) {
			p.fatalf("object %q is left", key)
		}
	}
}

// compareMess looks for the content of all files and of what others wrote.
func (p *player) compareMess(have frozen) {
	p.t.Helper()
	got := map[string]bool{}
	for _, o := range have {
		got[o.content] = true
	}
	for key, content := range p.foreigners {
		if o, ok := have[s3.Key(key)]; !ok || o.content != content {
			p.fatalf("what others wrote to %q is gone", key)
		}
	}
	for name, i := range p.now.names {
		if x := p.now.things[i]; p.failures == 0 && len(x.data) > 0 && !got[string(x.data)] {
			p.fatalf("the content of %q is nowhere:%s", name, describe(map[string]string{"": string(x.data)}))
		}
	}
}

// foreign puts somebody else's object into the bucket; vanish takes one away.
func (p *player) foreign(name string, size int) {
	p.t.Helper()
	body := string(p.bytes(size))
	upload(p.t, p.bucket, name, body, s3.Attributes{})
	p.foreigners[name] = body
}

func (p *player) vanish(name string) {
	p.t.Helper()
	if err := p.bucket.Delete(context.Background(), s3.Key(name)); err != nil {
		p.t.Fatal(err)
	}
}

// urge begins the uploads of all that is dirty.
func (p *player) urge() {
	p.core.tree.Urge()
	time.Sleep(time.Millisecond)
}

// flush closes a descriptor.
func (p *player) flush(name string) {
	p.t.Helper()
	if h, ok := p.held[name]; ok {
		p.do(act{name: "flush " + name, asks: true, call: func(ctx context.Context) error { return p.core.fs.Flush(ctx, who, h.ino, h.h) }, done: func() {
			p.namesDurable()
			p.barrier[h.thing] = p.acked
		}})
	}
}

// kill is a kill of the process, and the next one.
func (p *player) kill() {
	p.t.Helper()
	p.restart(nil)
}

// last is the end of the player.
func (p *player) last() { synctest.Wait() }

// stride is which part of the calls fails in a run that is no soak.
const stride = 9

// every runs a script with each call that the variant can strike failing once, or with every stride-th from first on.
func every(t *testing.T, s script, v variant, first int, sum *tally) {
	t.Helper()
	step := stride
	if soak {
		first, step = 0, 1
	}
	for n := 1 + first; ; n += step {
		ends := []int{n % endings}
		if soak {
			ends = []int{byDrain, byKill, byPowerCut}
		}
		var o outcome
		for _, end := range ends {
			o = strike{s, v, n, end}.run(t)
			if t.Failed() {
				t.FailNow()
			}
			sum.add(o)
		}
		if o.hits == 0 {
			return
		}
	}
}

// tally sums outcomes up.
type tally struct {
	mu                           sync.Mutex
	runs, faults, failed, deaths int
}

func (s *tally) add(o outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs++
	s.faults += min(1, o.hits)
	s.failed += o.failed
	if o.dead {
		s.deaths++
	}
}

// TestNthCall fails each call of the disk and each call of the bucket that a script makes, one at a time, in every way.
func TestNthCall(t *testing.T) {
	views() // its goroutines live as long as the process, in no bubble
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CSI_S3_NTH_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CSI_S3_NTH_SEED=%d", seed)
	for i, s := range scripts {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			for _, kind := range []struct {
				name     string
				variants []variant
			}{{"disk", diskVariants}, {"bucket", wireVariants}} {
				var sum tally
				rnd := rand.New(rand.NewPCG(seed, uint64(i)))
				for k, v := range kind.variants {
					first := rnd.IntN(stride)
					if k == 0 {
						first = 0 // so that every script is struck
					}
					every(t, s, v, first, &sum)
				}
				if sum.faults == 0 {
					t.Errorf("no call of the %s failed", kind.name)
				}
				t.Logf("%s: %d runs, %d faults, %d calls failed, %d journals died", kind.name, sum.runs, sum.faults, sum.failed, sum.deaths)
			}
		})
	}
}
