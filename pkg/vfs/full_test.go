package vfs_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// fillCache writes files of a quarter of the cache's megabyte until a write is not done within a moment, and returns what
// was written. The server takes nothing.
func (v *volume) fillCache(moment time.Duration) (written map[string]string, last error) {
	written = map[string]string{}
	for i := range 40 {
		name, content := fmt.Sprintf("w%d", i), strings.Repeat(string(rune('a'+i)), 250<<10)
		ctx, cancel := context.WithTimeout(ctx, moment)
		err := v.writeWith(ctx, name, content)
		cancel()
		if err != nil {
			return written, err
		}
		written[name] = content
	}
	return written, nil
}

// noPut lets the server take nothing.
func noPut(op s3fault.Op) s3fault.Action {
	if op.Name == "Put" {
		return s3fault.FailBefore(nil)
	}
	return s3fault.Action{}
}

// The server is away and the cache full of changes: writers wait, however long, can be interrupted, and go on when it is
// back, with no error and no help. Meanwhile all that needs no room goes on at once: reads, names, fsync, and what makes room.
func TestCacheIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVolume(t, config{cache: cache.Options{Capacity: 1 << 20}, settle: time.Second, patience: time.Hour})
		v.put("r", strings.Repeat("r", 300_000))
		v.stat("r")
		v.faulty(noPut)
		written, err := v.fillCache(5 * time.Second)
		if !errors.Is(err, context.DeadlineExceeded) || len(written) == 0 {
			t.Fatalf("%d writes, the last one: %v", len(written), err)
		}
		var waiting sync.WaitGroup
		var done atomic.Int32
		late := map[string]string{}
		for i := range 8 {
			late[fmt.Sprintf("late%d", i)] = strings.Repeat(string(rune('0'+i)), 100<<10)
		}
		start := time.Now()
		for name, content := range late {
			waiting.Go(func() {
				if err := v.tryWrite(name, content); err != nil {
					t.Errorf("%s, which waited: %v", name, err)
				}
				done.Add(1)
			})
		}
		time.Sleep(20 * time.Minute)
		if n := done.Load(); n != 0 {
			t.Errorf("%d files were written while there was no room", n)
		}
		begin := time.Now()
		v.wantFile("r", strings.Repeat("r", 300_000))
		for name, content := range written {
			v.wantFile(name, content)
		}
		v.stat("late0")
		v.ok(v.Fsync(ctx, root, v.ino("w1"), 0, false))
		v.mkdir("dir")
		v.ok(v.rename("w1", "dir/w1", 0))
		v.ok(v.truncate("r", 1))
		if took := time.Since(begin); took > time.Second {
			t.Errorf("what needs no room took %v", took)
		}

		brief, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := v.writeWith(brief, "interrupted", strings.Repeat("i", 300<<10)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an interrupted writer: %v", err)
		}
		v.ok(v.unlink("dir/w1"))
		delete(written, "w1")
		time.Sleep(time.Minute)
		if n := done.Load(); n == 0 || int(n) == len(late) {
			t.Errorf("%d of %d files were written when one of %d KiB was removed", n, len(late), 250)
		}
		time.Sleep(2*time.Hour - time.Since(start))
		v.faulty(nil)
		waiting.Wait()
		v.flush()
		maps.Copy(written, late)
		written["r"] = "r"
		objects := v.objects()
		for name, content := range written {
			if objects[name] != content {
				t.Errorf("%s: the bucket has %d bytes, want %d", name, len(objects[name]), len(content))
			}
		}
	})
}

// The same with an I/O timeout: a writer gets ENOSPC when it is over, and nothing that was written is lost.
func TestCacheIsFullForLong(t *testing.T) {
	v := newVolume(t, config{cache: cache.Options{Capacity: 1 << 20}, settle: 1, policy: vfs.Policy{IOTimeout: 50 * time.Millisecond}})
	v.faulty(noPut)
	written, err := v.fillCache(time.Minute)
	v.errno(err, syscall.ENOSPC)
	if !errors.Is(err, cache.ErrNoSpace) {
		t.Errorf("%v", err)
	}
	for name, content := range written {
		v.wantFile(name, content)
	}
	v.faulty(nil)
	v.flush()
	v.write("more", "x")
}

// Somebody else fills the cache's disk to the last byte. Every change is refused with ENOSPC and does nothing; reads and
// uploads go on, and so does everything once there is room, with no restart.
func TestFullDisk(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill=%v", kill), func(t *testing.T) {
			d := diskmem.New()
			v := openVolume(t, s3mem.New("bucket"), d, config{cache: cache.Options{Capacity: 1 << 30}})
			t.Cleanup(func() { v.close() })
			v.mkdir("dir")
			for i := range 50 {
				v.write(fmt.Sprintf("dir/f%d", i), strings.Repeat("x", 5000+i))
			}
			fill := func() {
				total, free, err := d.Space()
				v.ok(err)
				d.SetCapacity(total - free)
			}
			fill()
			refused := 0
			for i := range 3000 {
				err := v.tryWrite(fmt.Sprintf("dir/new%d", i), "more")
				if err == nil {
					continue
				}
				v.errno(err, syscall.ENOSPC)
				refused++
			}
			if refused < 1000 {
				t.Fatalf("only %d writes were refused: the disk is not full", refused)
			}
			for what, change := range map[string]func() error{
				"mkdir":    func() error { return v.tryMkdir("d") },
				"rename":   func() error { return v.rename("dir/f1", "dir/g1", 0) },
				"unlink":   func() error { return v.unlink("dir/f2") },
				"truncate": func() error { return v.truncate("dir/f3", 1) },
				"symlink":  func() error { return v.symlink("l", "target") },
				"link":     func() error { return v.link("dir/f4", "h") },
			} {
				if err := change(); err != nil && !errors.Is(err, cache.ErrNoSpace) {
					t.Errorf("%s: %v", what, err)
				}
			}
			v.wantFile("dir/f5", strings.Repeat("x", 5005))
			if kill {
				v.kill()
				d = v.disk
				fill()
			}
			v.flush()
			v.wantFile("dir/f5", strings.Repeat("x", 5005))
			v.disk.SetCapacity(1 << 40)
			v.write("after", "there is room again")
			v.ok(v.rename("dir/f6", "dir/g6", 0))
			v.flush()
			objects := v.objects()
			if objects["after"] != "there is room again" || objects["dir/g6"] == "" || objects["dir/f5"] != strings.Repeat("x", 5005) {
				t.Errorf("the bucket has %d objects, not what was written", len(objects))
			}
		})
	}
}
