package fuse

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
)

func addressOf(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

// Reads that wait for a bucket that is away, and writes that wait for room in the cache, keep no other file of the mount
// from being read, no name from being looked at, and take little memory.
func TestRequestsThatWait(t *testing.T) {
	for _, test := range []struct {
		op string
		dd func(file string) []string
	}{
		// Each may have a second one, ahead.
		{"read", func(file string) []string { return []string{"of=/dev/null", "if=" + file} }},
		{"write", func(file string) []string { return []string{"conv=notrunc", "if=/dev/zero", "of=" + file} }},
	} {
		t.Run(test.op, func(t *testing.T) {
			const waiting = 48 // twice as many as there are slots
			core := newMemory()
			core.discard = true
			for i := range waiting {
				core.add(inode.Root, fmt.Sprint("remote", i), unix.S_IFREG|0o666, 4<<20)
			}
			here := core.add(inode.Root, "here", unix.S_IFREG|0o666, 4<<20)
			var n atomic.Int64
			core.setHook(func(ctx context.Context, op string, ino inode.Ino) error {
				if op != test.op || ino == here {
					return nil
				}
				n.Add(1)
				<-ctx.Done()
				return ctx.Err()
			})
			m := serveCore(t, core)
			other := serveCore(t, newMemory())
			heap := func() uint64 {
				var s runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&s)
				return s.HeapInuse
			}
			before := heap()

			var programs []*exec.Cmd
			for i := range waiting {
				c := exec.Command("dd", append(test.dd(filepath.Join(m.dir, fmt.Sprint("remote", i))), "bs=1M", "count=1")...)
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				programs = append(programs, c)
			}
			defer func() {
				for _, c := range programs {
					_ = c.Process.Kill()
				}
				m.within(t, "killing the programs", func() {
					for _, c := range programs {
						_ = c.Wait()
					}
				})
			}()
			eventually(t, "all programs wait", func() bool { return n.Load() >= waiting })

			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			start := time.Now()
			if err := exec.CommandContext(ctx, "cmp", "-n", fmt.Sprint(4<<20), filepath.Join(m.dir, "here"), "/dev/zero").Run(); err != nil {
				t.Errorf("a read of a file that is here: %v after %v", err, time.Since(start))
			}
			for _, dir := range []string{m.dir, other.dir} {
				if err := exec.CommandContext(ctx, "stat", "--file-system", "--", dir).Run(); err != nil {
					t.Errorf("statfs: %v after %v", err, time.Since(start))
				}
			}
			if more := int64(heap()) - int64(before); more > waiting*maxIO/4 {
				t.Errorf("%d requests that wait hold %d MiB of the heap", waiting, more>>20)
			}
		})
	}
}

// What the kernel says at the end of a mount is no complaint in the log.
func TestOrderly(t *testing.T) {
	for err, want := range map[error]bool{
		unix.ENODEV: true, unix.ECONNABORTED: true, os.ErrClosed: true, os.ErrDeadlineExceeded: true, unix.EIO: false, unix.EINVAL: false,
	} {
		if orderly(fmt.Errorf("read: %w", err)) != want {
			t.Errorf("%v: orderly %v", err, !want)
		}
	}
}
