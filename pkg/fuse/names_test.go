package fuse

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

func nameSteps() []step {
	return []step{
		{"create exclusively", func(a *actor) {
			a.close(a.open("a", unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o640))
		}, "lookup create mknod open", []string{"lookup 1 a", "create 1 a 100640 flags,rdwr,excl"}},
		{"create what exists", func(a *actor) {
			_, err := unix.Open(a.path("a"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o640)
			a.want(err, unix.EEXIST)
		}, "create open", nil},
		{"truncate what exists", func(a *actor) {
			a.close(a.open("a", unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY, 0o600))
		}, "create open setattr", []string{"open {a} flags,wronly,trunc"}},
		{"create truncated", func(a *actor) {
			a.close(a.open("b", unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY, 0o600))
		}, "create open setattr", []string{"create 1 b 100600 flags,wronly,trunc"}},
		{"mkdir", func(a *actor) { a.ok(unix.Mkdir(a.path("d"), 0o751)) }, "mkdir", []string{"mkdir 1 d 40751"}},
		{"mknod", func(a *actor) {
			a.ok(unix.Mknod(a.path("d/p"), unix.S_IFIFO|0o644, 0))
			a.ok(unix.Mknod(a.path("d/c"), unix.S_IFCHR|0o600, int(unix.Mkdev(5, 1))))
			a.ok(unix.Mknod(a.path("d/r"), unix.S_IFREG|0o600, 0))
			var st unix.Stat_t
			a.ok(unix.Stat(a.path("d/c"), &st))
			a.check(st.Rdev == unix.Mkdev(5, 1) && st.Mode == unix.S_IFCHR|0o600, "device", st.Rdev, st.Mode)
		}, "mknod create", []string{"mknod {d} p 10644 0", "mknod {d} c 20600 1281", "mknod {d} r 100600 0"}},
		{"symlink", func(a *actor) {
			a.ok(unix.Symlink("target/of it", a.path("s")))
			for range 2 { // the kernel remembers
				p := make([]byte, 100)
				n, err := unix.Readlink(a.path("s"), p)
				a.ok(err)
				a.check(string(p[:n]) == "target/of it", "target", string(p[:n]))
			}
		}, "symlink readlink", []string{"symlink 1 s 120777 target/of it", "readlink {s}"}},
		{"link", func(a *actor) {
			a.ok(unix.Link(a.path("a"), a.path("d/l")))
			var st unix.Stat_t
			a.ok(unix.Stat(a.path("a"), &st))
			a.check(st.Nlink == 2, "links", st.Nlink)
		}, "link", []string{"link {a} {d} l"}},
		{"rename", func(a *actor) { a.ok(unix.Rename(a.path("b"), a.path("d/b"))) }, "rename", []string{"rename 1 b {d} b 0"}},
		{"rename to a free name", func(a *actor) {
			a.ok(unix.Renameat2(unix.AT_FDCWD, a.path("d/b"), unix.AT_FDCWD, a.path("c"), unix.RENAME_NOREPLACE))
			err := unix.Renameat2(unix.AT_FDCWD, a.path("a"), unix.AT_FDCWD, a.path("c"), unix.RENAME_NOREPLACE)
			a.want(err, unix.EEXIST)
		}, "rename", []string{"rename {d} b 1 c 1"}},
		{"exchange", func(a *actor) {
			a.ok(unix.Renameat2(unix.AT_FDCWD, a.path("a"), unix.AT_FDCWD, a.path("c"), unix.RENAME_EXCHANGE))
		}, "rename", []string{"rename 1 a 1 c 2"}},
		{"rename over", func(a *actor) { a.ok(unix.Rename(a.path("c"), a.path("a"))) }, "rename unlink", []string{"rename 1 c 1 a 0"}},
		{"unlink", func(a *actor) {
			a.ok(unix.Unlink(a.path("a")))
			a.want(unix.Unlink(a.path("absent")), unix.ENOENT)
		}, "unlink", []string{"unlink 1 a"}},
		{"rmdir", func(a *actor) {
			a.want(unix.Rmdir(a.path("d")), unix.ENOTEMPTY)
			a.ok(unix.Mkdir(a.path("e"), 0o700))
			a.ok(unix.Rmdir(a.path("e")))
		}, "rmdir", []string{"rmdir 1 d", "rmdir 1 e"}},
		{"tmpfile", func(a *actor) {
			fd := a.open("", unix.O_TMPFILE|unix.O_RDWR, 0o600)
			n, err := unix.Write(fd, []byte("text"))
			a.ok(err)
			a.check(n == 4, "written", n)
			a.ok(unix.Linkat(fd, "", unix.AT_FDCWD, a.path("t"), unix.AT_EMPTY_PATH))
			a.close(fd)
		}, "tmpfile write link create", []string{"tmpfile 1  100600 flags,rdwr", "write {t} 4 0", "link {t} 1 t"}},
		{"odd names", func(a *actor) {
			long := strings.Repeat("ü", 127) + "x" // 255 bytes
			a.ok(unix.Mkdir(a.path(long), 0o700))
			a.ok(unix.Mkdir(a.path(" new\nline"), 0o700))
		}, "mkdir", []string{"mkdir 1 " + strings.Repeat("ü", 127) + "x 40700", "mkdir 1  new\nline 40700"}},
	}
}

// Each operation on names must reach the core with what the program said.
func TestNames(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	walk(t, serveCore(t, core), "names", nameSteps())
}

func cacheSteps() []step {
	absent := func(a *actor) {
		var st unix.Stat_t
		for range 3 {
			a.want(unix.Stat(a.path("absent"), &st), unix.ENOENT)
		}
	}
	there := func(a *actor) {
		var st unix.Stat_t
		for range 3 {
			a.ok(unix.Stat(a.path("there"), &st))
		}
	}
	return []step{
		{"absent names", absent, "lookup", []string{"lookup 1 absent"}},
		{"names and attributes", there, "lookup getattr", []string{"lookup 1 there"}},
		{"a name that is created", func(a *actor) {
			a.close(a.open("absent", unix.O_CREAT|unix.O_WRONLY, 0o600))
			var st unix.Stat_t
			a.ok(unix.Stat(a.path("absent"), &st))
		}, "lookup create", []string{"create 1 absent 100600 flags,wronly"}},
	}
}

// The kernel remembers for as long as the core says: names, attributes and what does not exist.
func TestCaches(t *testing.T) {
	core := newMemory()
	core.ttl, core.negative = time.Hour, time.Hour
	core.add(inode.Root, "there", unix.S_IFREG|0o600, 0)
	walk(t, serveCore(t, core), "caches", cacheSteps())
}

// Without lifetimes each question is asked.
func TestNoCaches(t *testing.T) {
	core := newMemory()
	core.add(inode.Root, "there", unix.S_IFREG|0o600, 0)
	m := serveCore(t, core)
	run(t, "stats", m.dir)
	if got := core.take("lookup"); len(got) < 6 {
		t.Errorf("6 questions for names reached the core as %q", got)
	}
}

// An inode that is gone is forgotten as often as it was looked up.
func TestForget(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	m := serveCore(t, core)
	run(t, "forget", m.dir)
	var got []string
	eventually(t, "two forgets", func() bool {
		got = append(got, core.take("forget")...)
		return len(got) >= 2
	})
	slices.Sort(got)
	if want := []string{"forget 2 1", "forget 3 1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Who asks is passed on, and the kernel keeps what the modes forbid from the core.
func TestCredentials(t *testing.T) {
	core := newMemory()
	core.add(inode.Root, "private", unix.S_IFDIR|0o755, 0)
	m := serveCore(t, core)
	run(t, "credentials", m.dir)
	core.mu.Lock()
	r := core.reqs["mkdir"]
	core.mu.Unlock()
	if r.Uid != 1234 || r.Gid != 2345 || r.Pid == 0 || r.Unique == 0 || r.Resent {
		t.Errorf("%+v", r)
	}
	m.expect(t, []string{"mkdir"}, "mkdir 1 mine 40700")
}

// A read-only mount asks the core for no change.
func TestReadOnly(t *testing.T) {
	core := newMemory()
	core.add(inode.Root, "there", unix.S_IFREG|0o644, 10)
	m := serveCore(t, core, func(o *Options) { o.ReadOnly = true })
	run(t, "readonly", m.dir)
	m.expect(t, []string{"create", "mkdir", "unlink", "setattr", "write", "open"}, "open 2 flags")
}

// The core's errors become its table's errnos; what is not there is EIO.
func TestErrors(t *testing.T) {
	core := newMemory()
	m := serveCore(t, core)
	for err, want := range map[error]unix.Errno{
		vfs.ErrReadOnly: unix.EROFS, vfs.ErrCapacity: unix.ENOSPC, errUnknown: unix.EIO, context.Canceled: unix.EINTR,
	} {
		core.setHook(func(_ context.Context, op string, _ inode.Ino) error {
			if op == "mkdir" || op == "statfs" || op == "opendir" {
				return err
			}
			return nil
		})
		if got := run(t, "errors", m.dir); !slices.Equal(got, []string{want.Error(), want.Error(), want.Error()}) {
			t.Errorf("%v: the child got %q, want %q", err, got, want.Error())
		}
	}
}

func directoryChildren() map[string]func(*actor) {
	return map[string]func(*actor){
		"stats": func(a *actor) {
			var st unix.Stat_t
			for range 3 {
				a.ok(unix.Stat(a.path("there"), &st))
				a.want(unix.Stat(a.path("absent"), &st), unix.ENOENT)
			}
		},
		"forget": func(a *actor) {
			a.close(a.open("f", unix.O_CREAT|unix.O_WRONLY, 0o600))
			a.ok(unix.Mkdir(a.path("d"), 0o700))
			a.ok(unix.Unlink(a.path("f")))
			a.ok(unix.Rmdir(a.path("d")))
		},
		"credentials": func(a *actor) {
			syscall.Umask(0)
			dir := a.open("", unix.O_DIRECTORY, 0) // the way here is closed to others
			a.ok(syscall.Setregid(2345, 2345))
			a.ok(syscall.Setreuid(1234, 1234))
			a.ok(unix.Mkdirat(dir, "mine", 0o700))
			a.want(unix.Mkdirat(dir, "private/not mine", 0o700), unix.EACCES)
		},
		"readonly": func(a *actor) {
			var st unix.Stat_t
			a.ok(unix.Stat(a.path("there"), &st))
			a.want(unix.Mkdir(a.path("d"), 0o700), unix.EROFS)
			a.want(unix.Unlink(a.path("there")), unix.EROFS)
			a.want(unix.Truncate(a.path("there"), 0), unix.EROFS)
			_, err := unix.Open(a.path("new"), unix.O_CREAT|unix.O_WRONLY, 0o600)
			a.want(err, unix.EROFS)
			a.close(a.open("there", unix.O_RDONLY, 0))
		},
		"errors": func(a *actor) {
			var st unix.Statfs_t
			_, err := unix.Open(a.path(""), unix.O_DIRECTORY, 0)
			a.say(unix.Mkdir(a.path("d"), 0o700))
			a.say(unix.Statfs(a.path(""), &st))
			a.say(err)
		},
		"list":  actList,
		"seek":  actSeek,
		"empty": func(a *actor) { a.check(len(a.list("", nil)) == 0, "entries") },
	}
}
