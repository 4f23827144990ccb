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

// script is a short life of a volume.
type script struct {
	name string
	base func(p *player) // before the mount: what the bucket has
	run  func(p *player)
	// mess: others write to the bucket meanwhile. Then names are not foreseen, but all content is found.
	mess bool
	// tight: the disk is so small that a program may hear of it.
	tight bool
}

// files is the bucket of most scripts.
func files(p *player) {
	p.object("clean", 5000)
	p.object("other", 300)
	p.object("d/x", 100)
	p.object("d/y", 4100)
}

// scripts has one for each kind of call and for the combinations that are worth it.
var scripts = []script{
	{name: "create, write, fsync", run: func(p *player) {
		p.create("a")
		p.write("a", 0, 5000)
		p.fsync("a")
		p.write("a", 4000, 3000)
		p.fsync("a")
		p.drain()
	}},
	{name: "overwrite a clean range", base: files, run: func(p *player) {
		p.read("clean")
		p.write("clean", 1000, 2000)
		p.fsync("clean")
		p.read("clean")
		p.drain()
	}},
	{name: "overwrite what is not here", base: files, run: func(p *player) {
		p.write("clean", 100, 50)
		p.read("clean")
		p.write("d/y", 4000, 200)
		p.drain()
		p.read("d/y")
	}},
	{name: "overwrite a dirty range", run: func(p *player) {
		p.create("a")
		p.write("a", 0, 9000)
		p.write("a", 100, 100)
		p.fsync("a")
		p.write("a", 200, 5000)
		p.fsync("a")
		p.drain()
	}},
	{name: "append", base: files, run: func(p *player) {
		p.write("clean", 5000, 300)
		p.write("clean", 5300, 300)
		p.fsync("clean")
		p.write("clean", 5600, 9000)
		p.drain()
	}},
	{name: "truncate down", base: files, run: func(p *player) {
		p.truncate("clean", 1234)
		p.fsync("clean")
		p.read("clean")
		p.truncate("clean", 0)
		p.drain()
	}},
	{name: "truncate up", base: files, run: func(p *player) {
		p.truncate("clean", 9000)
		p.fsync("clean")
		p.read("clean")
		p.drain()
	}},
	{name: "truncate down and up", base: files, run: func(p *player) {
		p.read("clean")
		p.truncate("clean", 1000)
		p.truncate("clean", 4000)
		p.read("clean")
		p.fsync("clean")
		p.drain()
	}},
	{name: "write behind a hole", run: func(p *player) {
		p.create("a")
		p.write("a", 20000, 100)
		p.fsync("a")
		p.read("a")
		p.drain()
	}},
	{name: "rename over an existing file", base: files, run: func(p *player) {
		p.create("tmp")
		p.write("tmp", 0, 3000)
		p.rename("tmp", "clean")
		p.fsyncDir(".")
		p.drain()
	}},
	{name: "save as editors do", base: files, run: func(p *player) {
		p.create("tmp")
		p.write("tmp", 0, 3000)
		p.fsync("tmp")
		p.rename("clean", "clean~")
		p.rename("tmp", "clean")
		p.unlink("clean~")
		p.drain()
	}},
	{name: "rename a file", base: files, run: func(p *player) {
		p.rename("clean", "d/moved")
		p.fsyncDir("d")
		p.read("d/moved")
		p.drain()
		p.rename("d/moved", "clean")
		p.drain()
	}},
	{name: "rename a dirty file twice", base: files, run: func(p *player) {
		p.write("clean", 0, 10)
		p.rename("clean", "b")
		p.rename("b", "c")
		p.write("c", 10, 10)
		p.drain()
	}},
	{name: "rename a directory", base: files, run: func(p *player) {
		p.rename("d", "e")
		p.fsyncDir(".")
		p.list("e")
		p.drain()
		p.list("e")
		p.read("e/x")
	}},
	{name: "rename a directory, then write below", base: files, run: func(p *player) {
		p.rename("d", "e")
		p.write("e/x", 50, 100)
		p.create("e/new")
		p.write("e/new", 0, 10)
		p.unlink("e/y")
		p.drain()
		p.list("e")
	}},
	{name: "rename a directory over an empty one", base: files, run: func(p *player) {
		p.mkdir("e")
		p.rename("d", "e")
		p.drain()
	}},
	{name: "rename a directory to and fro", base: files, run: func(p *player) {
		p.rename("d", "e")
		p.mkdir("d")
		p.create("d/x")
		p.rename("e", "d/e")
		p.drain()
	}},
	{name: "exchange files", base: files, run: func(p *player) {
		p.write("other", 0, 10)
		p.exchange("clean", "other")
		p.read("clean")
		p.drain()
	}},
	{name: "exchange directories", base: files, run: func(p *player) {
		p.mkdir("e")
		p.create("e/z")
		p.write("e/z", 0, 10)
		p.exchange("d", "e")
		p.drain()
	}},
	{name: "unlink", base: files, run: func(p *player) {
		p.unlink("clean")
		p.fsyncDir(".")
		p.create("clean")
		p.write("clean", 0, 10)
		p.unlink("other")
		p.drain()
	}},
	{name: "short life", run: func(p *player) {
		p.create("a")
		p.write("a", 0, 4000)
		p.unlink("a")
		p.drain()
	}},
	{name: "unlink an open file", base: files, run: func(p *player) {
		p.hold("clean")
		p.unlink("clean")
		p.read("clean")
		p.write("clean", 10, 5000)
		p.read("clean")
		p.drain()
		p.read("clean")
		p.release("clean")
		p.wait(time.Minute)
	}},
	{name: "hard link and write", base: files, run: func(p *player) {
		p.link("clean", "b")
		p.write("b", 100, 100)
		p.fsync("clean")
		p.drain()
		p.write("clean", 0, 50)
		p.drain()
	}},
	{name: "hard link, then unlink the first name", base: files, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 4000)
		p.link("a", "d/b")
		p.unlink("a")
		p.drain()
		p.link("d/b", "c")
		p.drain()
		p.unlink("d/b")
		p.drain()
	}},
	{name: "symbolic link", base: files, run: func(p *player) {
		p.symlink("l", "clean")
		p.fsyncDir(".")
		p.drain()
		p.rename("l", "d/l")
		p.drain()
		p.unlink("d/l")
		p.drain()
	}},
	{name: "fifo", run: func(p *player) {
		p.mkfifo("f")
		p.drain()
		p.chmod("f", 0o644)
		p.drain()
	}},
	{name: "make and remove directories", run: func(p *player) {
		p.mkdir("e")
		p.mkdir("e/f")
		p.fsyncDir("e")
		p.drain()
		p.rmdir("e/f")
		p.drain()
		p.rmdir("e")
		p.drain()
	}},
	{name: "empty a directory and remove it", base: files, run: func(p *player) {
		p.unlink("d/x")
		p.unlink("d/y")
		p.rmdir("d")
		p.drain()
	}},
	{name: "chmod", base: files, run: func(p *player) {
		p.chmod("clean", 0o600)
		p.chmod("d", 0o700)
		p.fsync("clean")
		p.drain()
		p.chmod("clean", 0o640)
		p.write("clean", 0, 10)
		p.drain()
	}},
	{name: "extended attributes", base: files, run: func(p *player) {
		p.setxattr("clean", "one")
		p.drain()
		p.setxattr("clean", "two")
		p.write("clean", 0, 5)
		p.drain()
		p.removexattr("clean")
		p.drain()
	}},
	{name: "tmpfile", run: func(p *player) {
		p.tmpfile("t")
		p.write("t", 0, 5000)
		p.fsync("t")
		p.linkHeld("t", "named")
		p.fsync("t")
		p.release("t")
		p.drain()
	}},
	{name: "tmpfile without a name", run: func(p *player) {
		p.tmpfile("t")
		p.write("t", 0, 5000)
		p.read("t")
		p.release("t")
		p.drain()
	}},
	{name: "fallocate", base: files, run: func(p *player) {
		p.fallocate("clean", 0, 0, 8000)
		p.fallocate("other", keepSize, 0, 8000)
		p.fsync("clean")
		p.drain()
	}},
	{name: "punch holes", base: files, run: func(p *player) {
		p.fallocate("clean", punchHole, 1000, 2000)
		p.read("clean")
		p.write("clean", 1500, 100)
		p.fallocate("clean", punchHole, 4500, 5000)
		p.fsync("clean")
		p.drain()
	}},
	{name: "zero ranges", base: files, run: func(p *player) {
		p.fallocate("clean", zeroRange, 4000, 3000)
		p.fallocate("other", zeroRange|keepSize, 100, 3000)
		p.fsync("other")
		p.drain()
	}},
	{name: "copy a range", base: files, run: func(p *player) {
		p.copyRange("clean", 100, 3000, "other", 200)
		p.fsync("other")
		p.drain()
	}},
	{name: "multipart upload", run: func(p *player) {
		p.create("big")
		for i := range 6 {
			p.write("big", i*10000, 10000)
		}
		p.fsync("big")
		p.drain()
		p.evict()
		p.read("big")
	}},
	{name: "partial update with copied parts", base: func(p *player) { p.object("big", 60000) }, run: func(p *player) {
		p.write("big", 20000, 100)
		p.fsync("big")
		p.drain()
		p.write("big", 60000, 100)
		p.drain()
		p.read("big")
	}},
	{name: "multipart upload that changes under way", run: func(p *player) {
		p.create("big")
		p.write("big", 0, 50000)
		p.fsync("big")
		p.urge()
		p.write("big", 10000, 10000)
		p.drain()
		p.truncate("big", 40000)
		p.drain()
	}},
	{name: "multipart upload that is not needed any more", run: func(p *player) {
		p.create("big")
		p.write("big", 0, 60000)
		p.urge()
		p.unlink("big")
		p.drain()
	}},
	{name: "rename a large object", base: func(p *player) { p.object("big", 100000) }, run: func(p *player) {
		p.rename("big", "large")
		p.drain()
		p.chmod("large", 0o600)
		p.drain()
	}},
	{name: "spill", tight: true, base: func(p *player) { p.disk.SetCapacity(1 << 20) }, run: func(p *player) {
		p.create("big")
		for i := range 20 {
			p.write("big", i*40000, 40000)
		}
		p.fsync("big")
		p.drain()
		p.read("big")
	}},
	{name: "checkpoint", base: files, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 5000)
		p.rename("clean", "b")
		p.checkpoint()
		p.write("a", 100, 5000)
		p.rename("a", "b")
		p.checkpoint()
		p.drain()
		p.checkpoint()
	}},
	{name: "reap", base: files, run: func(p *player) {
		p.read("clean")
		p.create("a")
		p.write("a", 0, 5000)
		p.truncate("a", 100)
		p.reap()
		p.unlink("a")
		p.unlink("clean")
		p.reap()
		p.drain()
		p.reap()
	}},
	{name: "evict and fetch again", base: files, run: func(p *player) {
		p.read("clean")
		p.write("clean", 0, 1000)
		p.evict()
		p.read("clean")
		p.drain()
		p.evict()
		p.read("clean")
	}},
	{name: "read what is remote", base: files, run: func(p *player) {
		p.list(".")
		p.read("clean")
		p.list("d")
		p.read("d/x")
		p.read("d/y")
		p.read("clean")
	}},
	{name: "list", base: files, run: func(p *player) {
		p.list(".")
		p.list("d")
		p.create("d/new")
		p.unlink("d/x")
		p.list("d")
		p.wait(2 * time.Minute)
		p.list("d")
		p.drain()
		p.list("d")
	}},
	{name: "many files", run: func(p *player) {
		for i := range 6 {
			name := fmt.Sprintf("f%d", i)
			p.create(name)
			p.write(name, 0, 100*i+1)
		}
		p.fsync("f3")
		p.drain()
	}},
	{name: "background work", base: func(p *player) {
		files(p)
		p.spec.Options.Settle = time.Second
	}, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 3000)
		p.write("clean", 0, 100)
		p.wait(10 * time.Second)
		p.write("a", 0, 4000)
		p.wait(30 * time.Second)
		p.unlink("a")
		p.wait(time.Minute)
	}},
	{name: "close and open again", base: files, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 3000)
		p.rename("d", "e")
		p.reopen()
		p.write("a", 1000, 3000)
		p.write("e/x", 0, 10)
		p.fsync("a")
		p.reopen()
		p.drain()
		p.reopen()
		p.read("a")
	}},
	{name: "killed and opened again", base: files, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 40000)
		p.urge()
		p.unlink("clean")
		p.kill()
		p.read("a")
		p.write("a", 39000, 3000)
		p.kill()
		p.drain()
	}},
	{name: "fsync into the bucket", base: func(p *player) {
		files(p)
		p.spec.Options.Fsync = "bucket"
	}, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 3000)
		p.fsync("a")
		p.write("clean", 100, 100)
		p.fsync("clean")
		p.mkdir("e")
		p.fsyncDir(".")
	}},
	{name: "close to open", base: func(p *player) {
		files(p)
		p.spec.Options.Access = "rwx"
	}, run: func(p *player) {
		p.hold("clean")
		p.write("clean", 100, 100)
		p.flush("clean")
		p.release("clean")
		p.wait(5 * time.Second)
		p.hold("clean")
		p.read("clean")
		p.release("clean")
	}},
	{name: "capacity", base: func(p *player) {
		files(p)
		p.spec.Options.Size = 1 << 20
	}, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 3000)
		p.unlink("clean")
		p.drain()
		p.wait(time.Minute)
	}},
	{name: "somebody else's object under a changed file", mess: true, base: files, run: func(p *player) {
		p.write("clean", 0, 5000)
		p.foreign("clean", 77)
		p.drain()
		p.read("clean")
	}},
	{name: "somebody else's object under a new name", mess: true, base: files, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 3000)
		p.foreign("a", 77)
		p.drain()
	}},
	{name: "somebody else's object where a file is renamed to", mess: true, base: files, run: func(p *player) {
		p.rename("other", "b")
		p.foreign("b", 77)
		p.drain()
	}},
	{name: "an object that others deleted", mess: true, base: files, run: func(p *player) {
		p.write("clean", 0, 5000)
		p.vanish("clean")
		p.drain()
	}},
}

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
	open, err := b.ListUploads(context.Background(), key)
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
	if open, err := p.bucket.ListUploads(ctx, ""); err != nil || len(open) > 0 {
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
