package fuse

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
)

// pattern is n bytes that differ from block to block.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return p
}

func fileSteps() []step {
	return []step{
		{"write 1 MiB", func(a *actor) {
			fd := a.open("f", unix.O_CREAT|unix.O_WRONLY, 0o644)
			n, err := unix.Write(fd, pattern(maxIO))
			a.ok(err)
			a.check(n == maxIO, "written", n)
			a.close(fd)
		}, "write", []string{fmt.Sprint("write {f} ", maxIO, " 0")}},
		{"read 1 MiB directly", func(a *actor) {
			fd := a.open("f", unix.O_RDONLY|unix.O_DIRECT, 0)
			p := a.aligned(maxIO)
			n, err := unix.Read(fd, p)
			a.ok(err)
			a.check(n == maxIO && bytes.Equal(p, pattern(maxIO)), "read", n)
			a.close(fd)
		}, "read", []string{fmt.Sprint("read {f} ", maxIO, " 0")}},
		{"write 1 MiB directly", func(a *actor) {
			fd := a.open("f", unix.O_WRONLY|unix.O_DIRECT, 0)
			n, err := unix.Pwrite(fd, a.aligned(maxIO), maxIO)
			a.ok(err)
			a.check(n == maxIO, "written", n)
			a.close(fd)
		}, "write", []string{fmt.Sprint("write {f} ", maxIO, " ", maxIO)}},
		{"append", func(a *actor) {
			fd := a.open("f", unix.O_WRONLY|unix.O_APPEND, 0)
			n, err := unix.Write(fd, []byte("end"))
			a.ok(err)
			a.check(n == 3, "written", n)
			a.close(fd)
		}, "open write", []string{"open {f} flags,wronly,append", fmt.Sprint("write {f} 3 ", 2*maxIO)}},
		{"read past the end", func(a *actor) {
			fd := a.open("f", unix.O_RDONLY|unix.O_DIRECT, 0)
			p := a.aligned(maxIO)
			n, err := unix.Pread(fd, p, 2*maxIO)
			a.ok(err)
			a.check(string(p[:n]) == "end", "read", n, string(p[:n]))
			n, err = unix.Pread(fd, p, 4*maxIO)
			a.ok(err)
			a.check(n == 0, "read", n)
			a.close(fd)
		}, "read", []string{fmt.Sprint("read {f} ", maxIO, " ", 2*maxIO)}},
		{"fallocate", func(a *actor) {
			fd := a.open("f", unix.O_RDWR, 0)
			a.ok(unix.Fallocate(fd, 0, 4096, 3*maxIO))
			a.ok(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192))
			a.close(fd)
		}, "fallocate", []string{fmt.Sprint("fallocate {f} 4096 ", 3*maxIO, " 0"), "fallocate {f} 4096 8192 3"}},
		{"lseek", func(a *actor) {
			fd := a.open("f", unix.O_RDONLY, 0)
			at, err := unix.Seek(fd, 7, unix.SEEK_DATA)
			a.ok(err)
			a.check(at == 107, "data at", at)
			_, err = unix.Seek(fd, 8, unix.SEEK_HOLE)
			a.want(err, unix.ENXIO)
			a.close(fd)
		}, "lseek", []string{"lseek {f} 7 3", "lseek {f} 8 4"}},
		{"fsync", func(a *actor) {
			fd := a.open("f", unix.O_RDWR, 0)
			a.ok(unix.Fsync(fd))
			a.ok(unix.Fdatasync(fd))
			a.close(fd)
			dir := a.open("", unix.O_DIRECTORY, 0)
			a.ok(unix.Fsync(dir))
			a.close(dir)
		}, "fsync fsyncdir", []string{"fsync {f} false", "fsync {f} true", "fsyncdir 1"}},
		{"flush", func(a *actor) {
			fd := a.open("f", unix.O_RDWR, 0)
			other, err := unix.Dup(fd)
			a.ok(err)
			a.close(fd)
			a.close(other)
		}, "flush", []string{"flush {f}", "flush {f}"}},
		{"copy", func(a *actor) {
			// The core has no copy: the kernel does it with reads and writes.
			from, to := a.open("f", unix.O_RDONLY, 0), a.open("g", unix.O_CREAT|unix.O_RDWR, 0o600)
			n, err := unix.CopyFileRange(from, nil, to, nil, 4096, 0)
			a.ok(err)
			p := make([]byte, 4096)
			_, err = unix.Pread(to, p, 0)
			a.ok(err)
			a.check(n == 4096 && bytes.Equal(p, pattern(4096)), "copied", n)
			a.close(from)
			a.close(to)
		}, "write", []string{"write {g} 4096 0"}},
		{"locks", func(a *actor) {
			// They are the kernel's own.
			fd, other := a.open("f", unix.O_RDWR, 0), a.open("f", unix.O_RDWR, 0)
			a.ok(unix.Flock(fd, unix.LOCK_EX))
			a.want(unix.Flock(other, unix.LOCK_EX|unix.LOCK_NB), unix.EAGAIN)
			a.ok(unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Len: 1}))
			a.close(fd)
			a.ok(unix.Flock(other, unix.LOCK_EX|unix.LOCK_NB))
			a.close(other)
		}, "getlk setlk", nil},
		{"ioctls of others", func(a *actor) {
			fd := a.open("f", unix.O_RDONLY, 0)
			_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
			a.want(err, unix.ENOTTY)
			// Ours are for directories.
			for _, number := range []uint32{IoctlFlush, IoctlStatus} {
				_, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(number), uintptr(unsafe.Pointer(&make([]byte, statusSize)[0])))
				a.want(err, unix.ENOTTY)
			}
			a.close(fd)
			dir := a.open("", unix.O_DIRECTORY, 0)
			_, err = unix.IoctlGetTermios(dir, unix.TCGETS)
			a.want(err, unix.ENOTTY)
			a.close(dir)
		}, "flushtree", nil},
	}
}

// Each operation on open files must reach the core with what the program said, and large ones in one piece.
func TestFiles(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	walk(t, serveCore(t, core), "files", fileSteps())
}

func attributeSteps() []step {
	at := []unix.Timespec{{Sec: 1700000000, Nsec: 123456789}, {Sec: 1600000000, Nsec: 987654321}}
	stat := func(a *actor) unix.Stat_t {
		var st unix.Stat_t
		a.ok(unix.Stat(a.path("f"), &st))
		return st
	}
	return []step{
		{"chmod", func(a *actor) {
			a.ok(unix.Chmod(a.path("f"), 0o4751))
			a.check(stat(a).Mode == unix.S_IFREG|0o4751, "mode", stat(a).Mode)
		}, "setattr", []string{"setattr {f} mode=4751"}},
		{"chown", func(a *actor) {
			a.ok(unix.Chmod(a.path("f"), 0o600))
			a.ok(unix.Chown(a.path("f"), 77, -1))
			a.ok(unix.Chown(a.path("f"), -1, 88))
			a.check(stat(a).Uid == 77 && stat(a).Gid == 88, "owner", stat(a).Uid, stat(a).Gid)
		}, "setattr", []string{"setattr {f} mode=600", "setattr {f} uid=77", "setattr {f} gid=88"}},
		{"times", func(a *actor) {
			a.ok(unix.UtimesNanoAt(unix.AT_FDCWD, a.path("f"), at, 0))
			a.check(stat(a).Atim == at[0] && stat(a).Mtim == at[1], "times", stat(a).Atim, stat(a).Mtim)
		}, "setattr", []string{"setattr {f} atime=1700000000123456789 mtime=1600000000987654321"}},
		{"one time", func(a *actor) {
			one := []unix.Timespec{{Sec: 5}, {Nsec: unix.UTIME_OMIT}}
			a.ok(unix.UtimesNanoAt(unix.AT_FDCWD, a.path("f"), one, 0))
			a.check(stat(a).Atim.Sec == 5 && stat(a).Mtim == at[1], "times", stat(a).Atim, stat(a).Mtim)
		}, "setattr", []string{"setattr {f} atime=5000000000"}},
		{"before the epoch", func(a *actor) {
			old := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: -86400, Nsec: 5}}
			a.ok(unix.UtimesNanoAt(unix.AT_FDCWD, a.path("f"), old, 0))
			a.check(stat(a).Mtim == old[1], "mtime", stat(a).Mtim)
		}, "setattr", []string{"setattr {f} mtime=-86399999999995"}},
		{"now", func(a *actor) {
			now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
			a.ok(unix.UtimesNanoAt(unix.AT_FDCWD, a.path("f"), now, 0))
			mtime := stat(a).Mtim
			off := time.Since(time.Unix(mtime.Unix()))
			a.check(off > -time.Minute && off < time.Minute, "mtime", off)
		}, "getattr", nil},
		{"truncate an open file", func(a *actor) {
			fd := a.open("f", unix.O_RDWR, 0)
			a.ok(unix.Ftruncate(fd, 5))
			a.close(fd)
			a.check(stat(a).Size == 5, "size", stat(a).Size)
			a.check(stat(a).Blocks == 1 && stat(a).Blksize == blockSize, "blocks", stat(a).Blocks, stat(a).Blksize)
		}, "setattr", []string{"setattr {f} size=5 handle"}},
		{"statfs", func(a *actor) {
			var st unix.Statfs_t
			a.ok(unix.Statfs(a.path("f"), &st))
			a.check(st.Blocks == 1<<28 && st.Bfree == 1<<27 && st.Bavail == 1<<27, "blocks", st.Blocks, st.Bfree, st.Bavail)
			a.check(st.Files == 1000 && st.Ffree == 900, "files", st.Files, st.Ffree)
			a.check(st.Bsize == 4096 && st.Frsize == 4096 && st.Namelen == 255, "sizes", st.Bsize, st.Frsize, st.Namelen)
		}, "statfs", []string{"statfs 1"}},
	}
}

// Each attribute that a program sets reaches the core alone, and comes back.
func TestAttributes(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	core.add(inode.Root, "f", unix.S_IFREG|0o644, 100)
	walk(t, serveCore(t, core), "attributes", attributeSteps())
}

// The kernel's readahead must come in whole MiBs: each request may be one of S3's.
func TestReadahead(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	f := core.add(inode.Root, "big", unix.S_IFREG|0o644, 8<<20)
	copy(core.nodes[f].data, pattern(8<<20))
	m := serveCore(t, core)
	run(t, "readall", m.dir)
	got := core.take("read")
	slices.Sort(got)
	if len(got) > 12 {
		t.Errorf("8 MiB in %d reads: %q", len(got), got)
	}
}

// A handle is released once, after its last close.
func TestRelease(t *testing.T) {
	core := newMemory()
	f := core.add(inode.Root, "f", unix.S_IFREG|0o644, 100)
	m := serveCore(t, core)
	c := start(t, "hold", m.dir)
	c.line()
	if got := core.take("release"); len(got) != 0 {
		t.Errorf("%q of a file that is open", got)
	}
	c.tell("")
	c.end()
	eventually(t, "the release", func() bool { return slices.Equal(core.take("release"), []string{fmt.Sprint("release ", f)}) })
}

// A file that is open when the last name goes stays.
func TestUnlinkedFile(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	run(t, "unlinked", serveCore(t, core).dir)
}

// What one process maps another one sees, and msync brings it to the core.
func TestMmap(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	f := core.add(inode.Root, "f", unix.S_IFREG|0o644, 1<<20)
	run(t, "mmap", serveCore(t, core).dir)
	core.mu.Lock()
	defer core.mu.Unlock()
	if got := core.nodes[f].data[12345]; got != 'x' {
		t.Errorf("the core has %q", got)
	}
}

func fileChildren() map[string]func(*actor) {
	return map[string]func(*actor){
		"readall": func(a *actor) {
			fd := a.open("big", unix.O_RDONLY, 0)
			var all []byte
			p := make([]byte, 128<<10)
			for {
				n, err := unix.Read(fd, p)
				a.ok(err)
				if n == 0 {
					break
				}
				all = append(all, p[:n]...)
			}
			a.check(bytes.Equal(all, pattern(8<<20)), "contents")
			a.close(fd)
		},
		"hold": func(a *actor) {
			fd := a.open("f", unix.O_RDWR, 0)
			other, err := unix.Dup(fd)
			a.ok(err)
			a.close(fd)
			a.pause("open")
			a.close(other)
		},
		"unlinked": func(a *actor) {
			fd := a.open("f", unix.O_CREAT|unix.O_RDWR, 0o600)
			a.ok(unix.Unlink(a.path("f")))
			_, err := unix.Pwrite(fd, []byte("text"), 0)
			a.ok(err)
			var st unix.Stat_t
			a.ok(unix.Fstat(fd, &st))
			a.check(st.Size == 4, "size", st.Size)
			a.close(fd)
		},
		"mmap": func(a *actor) {
			fd := a.open("f", unix.O_RDWR, 0)
			p, err := unix.Mmap(fd, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			a.ok(err)
			p[12345] = 'x'
			a.ok(unix.Msync(p, unix.MS_SYNC))
			q := make([]byte, 1)
			_, err = unix.Pread(fd, q, 12345)
			a.ok(err)
			a.check(q[0] == 'x', "read", q)
			a.ok(unix.Munmap(p))
			a.close(fd)
		},
	}
}
