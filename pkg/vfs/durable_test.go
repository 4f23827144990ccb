package vfs_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// cut is the loss of the node's power: what was not durable is lost, kept or torn as chance will have it.
func (v *volume) cut(rnd *rand.Rand) {
	v.t.Helper()
	v.life.mu.Lock()
	next := v.disk.CrashClone(rnd)
	v.life.over = true
	v.life.mu.Unlock()
	v.close()
	v.disk, v.powerCut = next, true
	v.start()
}

// TestPowerCut: what an fsync covered is there after a power cut; what none covered is there or not, and never a name
// with bytes that nobody wrote.
func TestPowerCut(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		v := newVolume(t, config{})
		v.put("remote", "remote")
		v.mkdir("d")
		for i := range 3 {
			ino := v.write(fmt.Sprintf("d/synced%d", i), strings.Repeat("s", 3000+i))
			v.ok(v.Fsync(ctx, root, ino, 0, i == 0))
		}
		v.ok(v.rename("d/synced0", "d/renamed", 0))
		v.ok(v.FsyncDir(ctx, root, v.ino("d")))
		// Replaced without a sync, as many programs do.
		v.write("tmp", strings.Repeat("n", 2000))
		v.ok(v.rename("tmp", "remote", 0))
		v.write("d/synced1.new", strings.Repeat("m", 2500))
		v.ok(v.rename("d/synced1.new", "d/synced1", 0))
		v.write("unsynced", strings.Repeat("u", 1000))
		v.cut(rnd)
		v.wantFile("d/renamed", strings.Repeat("s", 3000))
		v.wantFile("d/synced2", strings.Repeat("s", 3002))
		for name, may := range map[string][]string{
			"remote":    {"remote", strings.Repeat("n", 2000)},
			"d/synced1": {strings.Repeat("s", 3001), strings.Repeat("m", 2500)},
			"unsynced":  {"ENOENT", "", strings.Repeat("u", 1000)},
		} {
			got, err := v.tryRead(name)
			if vfs.Errno(err) == syscall.ENOENT {
				got, err = "ENOENT", nil
			}
			if err != nil || !slices.Contains(may, got) {
				t.Errorf("seed %d: %q holds %.40q (%d bytes), %v", seed, name, got, len(got), err)
			}
		}
		v.flush()
		if got := v.objects()["d/synced2"]; got != strings.Repeat("s", 3002) {
			t.Errorf("seed %d: the bucket has %.40q", seed, got)
		}
	}
}

// TestFsyncToTheBucket: with FsyncBucket an fsync returns when the bucket has the file, and fails as long as it does not.
func TestFsyncToTheBucket(t *testing.T) {
	v := newVolume(t, config{policy: vfs.Policy{FsyncBucket: true, IOTimeout: 100 * time.Millisecond}})
	v.mkdir("d")
	ino := v.write("d/f", "one")
	v.ok(v.Fsync(ctx, root, ino, 0, false))
	if got := v.objects()["d/f"]; got != "one" {
		t.Errorf("the bucket has %q", got)
	}
	v.ok(v.FsyncDir(ctx, root, v.ino("d")))
	v.wantObjects("d/", "", "d/f", "one")
	v.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Put" {
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	})
	v.write("d/f", "two")
	v.errno(v.Fsync(ctx, root, ino, 0, false), syscall.EIO)
	v.errno(v.FsyncDir(ctx, root, v.ino("d")), syscall.EIO)
	v.faulty(nil)
	v.flush()
	v.ok(v.Fsync(ctx, root, ino, 0, false))
	v.wantObjects("d/", "", "d/f", "two")
}

// TestFsyncAnnounces: an fsync that does not wait for the bucket is acknowledged when Announce is done, and fails with its error.
func TestFsyncAnnounces(t *testing.T) {
	heard, answer := 0, error(nil)
	announce := func(context.Context) error { heard++; return answer }
	v := newVolume(t, config{announce: announce})
	v.mkdir("d")
	ino := v.write("d/f", "one")
	v.ok(v.Fsync(ctx, root, ino, 0, false))
	v.ok(v.FsyncDir(ctx, root, v.ino("d")))
	if heard != 2 {
		t.Errorf("%d of 2 were announced", heard)
	}
	answer = context.Canceled
	v.errno(v.Fsync(ctx, root, ino, 0, false), syscall.EINTR)
	v.errno(v.FsyncDir(ctx, root, v.ino("d")), syscall.EINTR)
	heard = 0
	v = newVolume(t, config{policy: vfs.Policy{FsyncBucket: true}, announce: announce})
	v.ok(v.Fsync(ctx, root, v.write("f", "one"), 0, false))
	if heard != 0 {
		t.Error("announced though the bucket has it")
	}
}

// TestConflict: when somebody else changed an object that was changed here too, theirs keeps the name and ours is kept
// beside it. Every open handle reports it once, and the kernel forgets both names.
func TestConflict(t *testing.T) {
	v := newVolume(t, config{})
	v.put("d/f", "base")
	ino, h1 := v.open("d/f", syscall.O_RDWR)
	_, h2 := v.open("d/f", syscall.O_RDONLY)
	v.ok(v.truncate("d/f", 0))
	v.writeAt(ino, h1, "ours", 0)
	v.put("d/f", "theirs")
	v.flush()
	dir := v.ino("d")
	v.wantFile("d/f", "theirs")
	names, err := v.tryList("d")
	if err != nil || len(names) != 2 || !strings.HasPrefix(names[1], "f.conflict-") {
		t.Fatalf("%q, %v", names, err)
	}
	v.wantFile("d/"+names[1], "ours")
	v.flush()
	v.wantObjects("d/f", "theirs", "d/"+names[1], "ours")
	for _, h := range []vfs.HandleID{h1, h2} {
		v.errno(v.Fsync(ctx, root, ino, h, false), syscall.ESTALE)
		v.ok(v.Fsync(ctx, root, ino, h, false))
		v.ok(v.Flush(ctx, root, ino, h))
		v.Release(ino, h)
	}
	want := fmt.Sprintf("%d/%s %d/f", dir, names[1], dir)
	for i := 0; strings.Join(v.notes.all(), " ") != want; i++ {
		if i == 100 {
			t.Fatalf("the kernel was told %q, want %q", v.notes.all(), want)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestConflictMetByFsync: the fsync that waits for the bucket reports the conflict, and the next one does not again.
func TestConflictMetByFsync(t *testing.T) {
	v := newVolume(t, config{policy: vfs.Policy{FsyncBucket: true}})
	v.put("f", "base")
	ino, h := v.open("f", syscall.O_RDWR)
	defer v.Release(ino, h)
	v.ok(v.truncate("f", 0))
	v.writeAt(ino, h, "ours", 0)
	v.put("f", "theirs")
	v.errno(v.Fsync(ctx, root, ino, h, false), syscall.ESTALE)
	v.ok(v.Fsync(ctx, root, ino, h, false))
}

// TestConflictOverwrites is the same with conflict=overwrite: ours keeps the name.
func TestConflictOverwrites(t *testing.T) {
	v := newVolume(t, config{overwrite: true})
	v.put("f", "base")
	v.stat("f")
	v.write("f", "ours")
	v.put("f", "theirs")
	v.flush()
	v.wantObjects("f", "ours")
	v.wantNames("", "f")
	v.wantFile("f", "ours")
}

// TestLostAnswer: an upload whose answer is lost is no conflict, before a kill and after it.
func TestLostAnswer(t *testing.T) {
	for _, kill := range []bool{false, true} {
		v := newVolume(t, config{})
		v.put("old", "base")
		ino, h := v.open("old", syscall.O_RDWR)
		v.writeAt(ino, h, "XY", 1)
		v.Release(ino, h)
		v.write("new", "new")
		v.faulty(func(op s3fault.Op) s3fault.Action {
			switch {
			case op.Name == "Put":
				return s3fault.FailAfter(nil)
			case op.Name == "Head" && kill: // and nobody can find out
				return s3fault.FailBefore(nil)
			}
			return s3fault.Action{}
		})
		v.tree.Urge()
		for len(v.objects()) < 2 || v.object("old") == "base" {
			time.Sleep(time.Millisecond)
		}
		if kill {
			v.kill()
			v.faulty(nil)
		}
		// What is not here is read from the object that our own upload made.
		v.wantFile("old", "bXYe")
		v.ok(v.rename("new", "newer", 0))
		v.faulty(nil)
		v.flush()
		v.wantObjects("old", "bXYe", "newer", "new")
		v.wantNames("", "old", "newer")
	}
}

// TestFlushTree reports what is left, and waits for all that was written before.
func TestFlushTree(t *testing.T) {
	v := newVolume(t, config{})
	for i := range 30 {
		v.write(fmt.Sprintf("f%d", i), strings.Repeat("x", 1000))
	}
	var left []int64
	v.ok(v.FlushTree(ctx, inode.Root, func(n int64) { left = append(left, n) }))
	if len(left) == 0 || left[0] == 0 || left[0] > 30_000 {
		t.Errorf("%v bytes were left", left)
	}
	if n := len(v.objects()); n != 30 {
		t.Errorf("the bucket has %d objects", n)
	}
	v.errno(v.FlushTree(ctx, 4711, nil), syscall.ESTALE)
}

// TestHalted: what is durable here and never gets to the bucket is not acknowledged by an fsync, and what is there is.
func TestHalted(t *testing.T) {
	v := newVolume(t, config{})
	ino, h := v.open(func() string { v.write("safe", "abc"); return "safe" }(), syscall.O_RDWR)
	v.flush()
	v.ok(v.Fsync(ctx, root, ino, h, false))
	v.ok(v.FsyncDir(ctx, root, inode.Root))
	late, lh := v.open(func() string { v.write("late", "abc"); return "late" }(), syscall.O_RDWR)
	v.ok(v.Fsync(ctx, root, late, lh, false))
	v.executor.Halt(errors.New("because"))
	v.errno(v.Fsync(ctx, root, late, lh, false), syscall.EIO)
	v.errno(v.FsyncDir(ctx, root, inode.Root), syscall.EIO)
	v.ok(v.Fsync(ctx, root, ino, h, false))
	v.wantFile("late", "abc")
	v.kill()
	v.flush()
	v.wantObjects("late", "abc", "safe", "abc")
}

// TestUnknownHandle: after a takeover nobody knows the handles of before; they work by inode, and releasing one twice
// does no harm.
func TestUnknownHandle(t *testing.T) {
	v := newVolume(t, config{})
	ino, h := v.open(func() string { v.write("f", "abc"); return "f" }(), syscall.O_RDWR)
	v.kill()
	v.writeAt(ino, h, "X", 1)
	if got, err := v.readIno(ino, h); err != nil || got != "aXc" {
		t.Errorf("%q, %v", got, err)
	}
	v.ok(v.Flush(ctx, root, ino, h))
	v.ok(v.Fsync(ctx, root, ino, h, false))
	v.Release(ino, h)
	v.Release(ino, h)
	if _, err := v.tryList("f"); errors.Is(err, nil) {
		t.Error("a file is listed")
	}
}
