package fuse

import (
	"bytes"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
)

// What changed in the bucket must be asked for again, whatever lifetime it was given.
func TestInvalidate(t *testing.T) {
	core := newMemory()
	core.ttl, core.negative = time.Hour, time.Hour
	f := core.add(inode.Root, "f", unix.S_IFREG|0o644, 4)
	m := serveCore(t, core)
	ops := []string{"lookup", "getattr", "read"}
	c := start(t, "watch", m.dir)
	// again lets the child look, and says what it saw and what it had to ask for.
	again := func(what, saw string, asked ...string) {
		t.Helper()
		got := c.line()
		calls := slices.DeleteFunc(core.take(ops...), func(c string) bool { return c == "getattr 1" }) // of the way there
		if got != saw || !slices.Equal(calls, asked) {
			t.Errorf("%s: the child saw %q and asked %q, want %q and %q", what, got, calls, saw, asked)
		}
	}
	look := func(change func()) {
		core.mu.Lock()
		change()
		core.mu.Unlock()
	}
	again("first", "4 0 no such file or directory", "lookup 1 f", "lookup 1 absent", "read 2 4096 0")
	c.tell("")
	again("after the read", "4 0 no such file or directory", "getattr 2") // of the time of access
	c.tell("")
	again("cached", "4 0 no such file or directory")

	look(func() { core.nodes[f].attr.Size = 5 })
	m.InvalidateInode(f, -1, 0)
	c.tell("")
	again("attributes", "5 0 no such file or directory", "getattr 2")

	look(func() { core.nodes[f].data = []byte("xyzzy") })
	m.InvalidateInode(f, 0, 0)
	c.tell("")
	again("contents", "5 x no such file or directory", "getattr 2", "read 2 4096 0")

	core.add(inode.Root, "absent", unix.S_IFREG|0o644, 0)
	m.InvalidateEntry(inode.Root, "absent")
	c.tell("")
	again("a new name", "5 x <nil>", "getattr 2", "lookup 1 absent")

	look(func() { delete(core.nodes[inode.Root].children, "absent") })
	m.InvalidateEntry(inode.Root, "absent")
	c.tell("")
	again("a name that is gone", "5 x no such file or directory", "lookup 1 absent")
	c.tell("end")
	c.end()

	// What the kernel never heard of needs no complaint.
	m.InvalidateInode(12345, 0, 0)
	m.InvalidateEntry(12345, "name")
	m.InvalidateEntry(inode.Root, "never seen")
	m.InvalidateEntry(f, "in a file")
	if err := m.Unmount(true); err != nil {
		t.Fatal(err)
	}
	m.InvalidateInode(f, 0, 0)
	m.Wait()
	m.InvalidateEntry(inode.Root, "f")
}

// A notification that comes when the mount ends must not get into the kernel, where it might wait for ever.
func TestInvalidateAtTheEnd(t *testing.T) {
	s := deaf(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if s.raw, err = w.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	s.InvalidateEntry(inode.Root, "before")
	s.cancel()
	s.InvalidateEntry(inode.Root, "after")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.HasSuffix(got, []byte("before\x00")) || len(got) != outHeader+16+len("before\x00") {
		t.Errorf("the kernel got %q, %v", got, err)
	}
}

func notifyChildren() map[string]func(*actor) {
	return map[string]func(*actor){
		"watch": func(a *actor) {
			fd := a.open("f", unix.O_RDONLY, 0)
			for {
				var st unix.Stat_t
				a.ok(unix.Stat(a.path("f"), &st))
				absent := unix.Stat(a.path("absent"), new(unix.Stat_t))
				p := make([]byte, 1)
				_, err := unix.Pread(fd, p, 0)
				a.ok(err)
				if p[0] == 0 {
					p[0] = '0'
				}
				a.say(st.Size, string(p), absent)
				if s, err := a.in.ReadString('\n'); err != nil || s == "end\n" {
					a.ok(err)
					return
				}
			}
		},
	}
}
