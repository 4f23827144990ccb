package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
)

// gone waits for the end of the mount.
func (m *served) gone(t *testing.T) {
	t.Helper()
	m.within(t, "the end of the mount", func() {
		<-m.Done()
		m.Wait()
	})
}

// number is the device number of the mount, as bdi writes it.
func (m *served) number(t *testing.T) string {
	t.Helper()
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, m.opt.Dir, unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)
}

// abort ends the connection as an administrator does.
func (m *served) abort(t *testing.T) {
	t.Helper()
	_, minor, _ := strings.Cut(m.number(t), ":")
	ctl := t.TempDir()
	if err := unix.Mount("fusectl", ctl, "fusectl", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(ctl, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(filepath.Join(ctl, minor, "abort"), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
}

// A mount shows what it is.
func TestMountInfo(t *testing.T) {
	m := serveCore(t, newMemory(), func(o *Options) {
		o.Dir = filepath.Join(o.Dir, "a b\t\\\"ü")
		if err := os.Mkdir(o.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
	})
	got := mountsOf(m.dir)
	if len(got) != 1 {
		t.Fatalf("%d mounts", len(got))
	}
	for _, want := range []string{"nosuid", "nodev", " - fuse.csi-s3 memory ", "default_permissions", "allow_other", "max_read=1048576"} {
		if !strings.Contains(got[0], want) {
			t.Errorf("%q has no %q", got[0], want)
		}
	}
	text, err := os.ReadFile(filepath.Join("/sys/class/bdi", m.number(t), "read_ahead_kb"))
	if err != nil || strings.TrimSpace(string(text)) != fmt.Sprint(readahead) {
		t.Errorf("readahead %q, %v", text, err)
	}
}

func TestMountErrors(t *testing.T) {
	needFUSE(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := devices()
	for dir, want := range map[string]error{
		"": unix.ENOENT, filepath.Join(t.TempDir(), "absent"): unix.ENOENT, file: unix.ENOTDIR,
	} {
		if s, err := Mount(newMemory(), Options{Dir: dir}); !errors.Is(err, want) || s != nil {
			t.Errorf("mount on %q: %v, want %v", dir, err, want)
		}
	}
	if after := devices(); after != before {
		t.Errorf("%d devices are open, %d were", after, before)
	}
}

// A mount in use is not taken from who uses it, unless it must be.
func TestUnmountInUse(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	m := serveCore(t, core)
	c := start(t, "user", m.dir)
	c.line()
	if err := m.Unmount(false); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmount in use: %v", err)
	}
	select {
	case <-m.Done():
		t.Error("the mount ended")
	default:
	}
	c.tell("write")
	if got := c.line(); got != "<nil>" {
		t.Errorf("write after the refusal: %s", got)
	}
	m.within(t, "lazy unmount", func() {
		begin := time.Now()
		if err := m.Unmount(true); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took < lazyWait {
			t.Errorf("the user had %v", took)
		}
	})
	m.gone(t)
	if got := mountsOf(m.dir); len(got) != 0 {
		t.Errorf("mounts: %q", got)
	}
	// The device is closed after Wait.
	eventually(t, "no descriptor", func() bool { return devices() == 0 })
	c.tell("write")
	if got := c.line(); got != unix.ENOTCONN.Error() && got != unix.ECONNABORTED.Error() {
		t.Errorf("write after the end: %s", got)
	}
	c.tell("end")
	c.end()
	if err := m.Unmount(false); err != nil {
		t.Errorf("unmount of what is gone: %v", err)
	}
}

// Without users a mount ends at once, in either way, and the mount point can be used again.
func TestUnmount(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		t.Run(fmt.Sprint("lazy=", lazy), func(t *testing.T) {
			m := serveCore(t, newMemory())
			run(t, "use", m.dir)
			m.within(t, "unmount", func() {
				begin := time.Now()
				if err := m.Unmount(lazy); err != nil {
					t.Error(err)
				}
				if took := time.Since(begin); took > lazyWait {
					t.Errorf("it took %v", took)
				}
			})
			m.gone(t)
			again, err := Mount(newMemory(), Options{Dir: m.dir})
			if err != nil {
				t.Fatal(err)
			}
			run(t, "use", m.dir)
			if err := again.Unmount(false); err != nil {
				t.Error(err)
			}
			again.Wait()
		})
	}
}

// Unmount ends what waits for the bucket, and a second Unmount at the same time does no harm.
func TestUnmountWhileBlocked(t *testing.T) {
	core := newMemory()
	core.add(inode.Root, "f", unix.S_IFREG|0o644, 1<<20)
	m := serveCore(t, core)
	b := block(core, "read")
	c := start(t, "read?", m.dir)
	c.line()
	eventually(t, "the read", func() bool { return b.waiting.Load() == 1 })
	m.within(t, "unmount", func() {
		other := make(chan error)
		go func() { other <- m.Unmount(true) }()
		if err := errors.Join(m.Unmount(true), <-other); err != nil {
			t.Error(err)
		}
		m.Wait()
	})
	if b.waiting.Load() != 0 || b.ended.Load() != 1 {
		t.Errorf("%d reads wait, %d were cancelled", b.waiting.Load(), b.ended.Load())
	}
	c.end()
}

// A notification waits in the kernel for the pages that a read fills, and holds the device: Unmount must answer the
// read before it hangs up.
func TestUnmountWhileNotifying(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	f := core.add(inode.Root, "f", unix.S_IFREG|0o644, 1<<20)
	m := serveCore(t, core)
	b := block(core, "read")
	c := start(t, "read cached?", m.dir)
	c.line()
	eventually(t, "the read", func() bool { return b.waiting.Load() > 0 })
	notified := make(chan struct{})
	go func() {
		defer close(notified)
		m.InvalidateInode(f, 0, 0)
	}()
	select {
	case <-notified:
		t.Error("the notification does not wait: the test tests nothing")
	case <-time.After(100 * time.Millisecond):
	}
	m.within(t, "unmount", func() {
		if err := m.Unmount(true); err != nil {
			t.Error(err)
		}
		m.Wait()
		<-notified
	})
	c.end()
}

// A core that does not hear of the end must not hold Unmount for ever; when it answers, all ends.
func TestUnmountDeaf(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	f := core.add(inode.Root, "f", unix.S_IFREG|0o644, 1<<20)
	m := serveCore(t, core)
	answer := make(chan struct{})
	var reads atomic.Int64
	core.setHook(func(_ context.Context, op string, _ inode.Ino) error {
		if op == "read" {
			reads.Add(1)
			<-answer
			return context.Canceled
		}
		return nil
	})
	c := start(t, "read cached?", m.dir)
	c.line()
	eventually(t, "the read", func() bool { return reads.Load() > 0 })
	notified := make(chan struct{})
	go func() {
		defer close(notified)
		m.InvalidateInode(f, 0, 0)
	}()
	time.Sleep(100 * time.Millisecond) // it gets into the kernel
	m.within(t, "unmount", func() {
		if err := m.Unmount(true); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("unmount: %v", err)
		}
	})
	if left := mountsOf(m.dir); len(left) != 0 {
		t.Errorf("mounts: %q", left)
	}
	close(answer)
	m.gone(t)
	m.within(t, "the notification", func() { <-notified })
	c.end()
}

// However a mount is taken away from us, it ends in order.
func TestTakenAway(t *testing.T) {
	ways := map[string]func(t *testing.T, m *served){
		"umount": func(t *testing.T, m *served) {
			if err := unix.Unmount(m.dir, 0); err != nil {
				t.Fatal(err)
			}
		},
		"umount -l": func(t *testing.T, m *served) {
			if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		},
		"abort": func(t *testing.T, m *served) { m.abort(t) },
		"closed device": func(t *testing.T, m *served) {
			if err := m.dev.Close(); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, away := range ways {
		t.Run(strings.ReplaceAll(name, " ", ""), func(t *testing.T) {
			m := serveCore(t, newMemory())
			run(t, "use", m.dir)
			away(t, m)
			m.gone(t)
			if err := m.Unmount(false); err != nil {
				t.Error(err)
			}
			if left := mountsOf(m.dir); len(left) != 0 {
				t.Errorf("mounts: %q", left)
			}
		})
		if name == "umount" {
			continue // it is busy
		}
		t.Run(strings.ReplaceAll(name, " ", "")+"InUse", func(t *testing.T) {
			for range 5 {
				core := newMemory()
				m := serveCore(t, core)
				c := start(t, "flood", m.dir)
				eventually(t, "traffic", func() bool { return len(core.take("getattr", "lookup", "mkdir")) > 10 })
				away(t, m)
				if name == "umount -l" {
					// The child is inside and may go on.
					eventually(t, "traffic goes on", func() bool { return len(core.take()) > 0 })
					if err := c.cmd.Process.Kill(); err != nil {
						t.Fatal(err)
					}
					m.gone(t)
					continue
				}
				m.gone(t)
				c.end()
			}
		})
	}
}

// What was aborted is unmounted even where programs stay, and the mount point is free.
func TestUnmountAborted(t *testing.T) {
	m := serveCore(t, newMemory())
	c := start(t, "user", m.dir)
	c.line()
	m.abort(t)
	m.gone(t)
	if err := m.Unmount(false); err != nil {
		t.Error(err)
	}
	if left := mountsOf(m.dir); len(left) != 0 {
		t.Errorf("mounts: %q", left)
	}
	c.tell("write")
	if got := c.line(); got != unix.ENOTCONN.Error() {
		t.Errorf("write after the end: %s", got)
	}
	c.tell("end")
	c.end()
}

// A mount that took another one's place is not its to end.
func TestUnmountOfAnother(t *testing.T) {
	m := serveCore(t, newMemory())
	if err := unix.Unmount(m.dir, 0); err != nil {
		t.Fatal(err)
	}
	m.gone(t)
	again, err := Mount(newMemory(), Options{Dir: m.dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(true); err != nil {
		t.Error(err)
	}
	run(t, "use", m.dir)
	if left := mountsOf(m.dir); len(left) != 1 {
		t.Errorf("mounts: %q", left)
	}
	if err := again.Unmount(false); err != nil {
		t.Error(err)
	}
	again.Wait()
}

// Several mounts live in one process, apart from each other.
func TestTwoMounts(t *testing.T) {
	core := newMemory()
	core.add(inode.Root, "f", unix.S_IFREG|0o644, 1)
	m, other := serveCore(t, core), serveCore(t, newMemory())
	run(t, "two", m.dir, other.dir)
	if err := m.Unmount(false); err != nil {
		t.Fatal(err)
	}
	m.gone(t)
	run(t, "use", other.dir)
}

func mountChildren() map[string]func(*actor) {
	// ended accepts what a call returns whose mount ends.
	ended := func(a *actor, err error) {
		errno, ok := err.(unix.Errno) //nolint:errorlint // raw system calls return it as it is
		if !ok || !slices.Contains([]unix.Errno{unix.ENOTCONN, unix.ECONNABORTED, unix.EINTR, unix.EIO}, errno) {
			a.fail("call on a mount that ended: %v", err)
		}
	}
	return map[string]func(*actor){
		"user": func(a *actor) {
			fd := a.open("f", unix.O_CREAT|unix.O_RDWR, 0o600)
			a.say("open")
			for {
				s, err := a.in.ReadString('\n')
				a.ok(err)
				if s != "write\n" {
					return
				}
				_, err = unix.Write(fd, []byte("text"))
				a.say(err)
			}
		},
		"read?": func(a *actor) {
			fd := a.open("f", unix.O_RDONLY|unix.O_DIRECT, 0)
			a.say("reading")
			_, err := unix.Read(fd, a.aligned(4096))
			ended(a, err)
		},
		"read cached?": func(a *actor) {
			fd := a.open("f", unix.O_RDONLY, 0)
			a.say("reading")
			_, err := unix.Read(fd, make([]byte, 4096))
			ended(a, err)
		},
		"flood": func(a *actor) {
			dir := a.open("", unix.O_DIRECTORY, 0)
			for i := 0; ; i++ {
				var st unix.Stat_t
				err := unix.Fstat(dir, &st)
				if err == nil {
					err = unix.Mkdirat(dir, fmt.Sprint(i), 0o700)
				}
				if err != nil && !errors.Is(err, unix.EINTR) {
					ended(a, err)
					return
				}
			}
		},
		"two": func(a *actor) {
			a.want(unix.Rename(a.path("f"), filepath.Join(a.args[1], "f")), unix.EXDEV)
			a.want(unix.Link(a.path("f"), filepath.Join(a.args[1], "f")), unix.EXDEV)
			var st unix.Stat_t
			a.ok(unix.Stat(a.path("f"), &st))
			a.want(unix.Stat(filepath.Join(a.args[1], "f"), &st), unix.ENOENT)
			actUse(a)
		},
	}
}
