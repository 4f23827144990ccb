package vfs_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

func TestErrorsOfData(t *testing.T) {
	v := newVolume(t, config{})
	v.write("f", "abc")
	v.mkdir("d")
	v.ok(v.symlink("s", "f"))
	f, d, s := v.ino("f"), v.ino("d"), v.ino("s")
	read := func(ino inode.Ino, off int64) error { return second(v.Read(ctx, root, ino, 0, make([]byte, 1), off)) }
	write := func(ino inode.Ino, off int64) error { return second(v.Write(ctx, root, ino, 0, []byte("x"), off)) }
	lseek := func(ino inode.Ino, off int64, whence int) error { return second(v.Lseek(ctx, root, ino, off, whence)) }
	alloc := func(ino inode.Ino, off, length int64, mode uint32) error {
		return v.Fallocate(ctx, root, ino, 0, off, length, mode)
	}
	for name, test := range map[string]struct {
		err  error
		want syscall.Errno
	}{
		"write to a directory":          {write(d, 0), syscall.EISDIR},
		"write to a link":               {write(s, 0), syscall.EINVAL},
		"write before the start":        {write(f, -1), syscall.EINVAL},
		"write beyond the largest file": {write(f, vfs.MaxFileSize), syscall.EFBIG},
		"write to what nobody knows":    {write(4711, 0), syscall.ESTALE},
		"read before the start":         {read(f, -1), syscall.EINVAL},
		"read of what nobody knows":     {read(4711, 0), syscall.ESTALE},
		"truncate a directory":          {v.truncate("d", 0), syscall.EISDIR},
		"truncate a link":               {v.truncate("s", 0), syscall.EINVAL},
		"truncate below nothing":        {v.truncate("f", -1), syscall.EINVAL},
		"truncate beyond the largest":   {v.truncate("f", vfs.MaxFileSize+1), syscall.EFBIG},
		"seek in a directory":           {lseek(d, 0, 3), syscall.EINVAL},
		"seek in no known way":          {lseek(f, 0, 2), syscall.EINVAL},
		"seek behind the end":           {lseek(f, 3, 3), syscall.ENXIO},
		"fallocate of a directory":      {alloc(d, 0, 1, 0), syscall.EINVAL},
		"fallocate of nothing":          {alloc(f, 0, 0, 0), syscall.EINVAL},
		"fallocate beyond the largest":  {alloc(f, vfs.MaxFileSize, 1, 0), syscall.EFBIG},
		"fallocate that collapses":      {alloc(f, 0, 1, 0x08), syscall.ENOTSUP},
		"punch a hole that grows":       {alloc(f, 0, 1, 0x02), syscall.ENOTSUP},
	} {
		if got := vfs.Errno(test.err); got != test.want {
			t.Errorf("%s: %v (%v), want %v", name, got, test.err, test.want)
		}
	}
	v.wantFile("f", "abc")
}

// TestBytes compares random writes, truncations and holes in a remote file with a plain buffer, through kills.
func TestBytes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	v := newVolume(t, config{settle: 1})
	want := make([]byte, 300_000)
	for i := range want {
		want[i] = byte(i * 7)
	}
	v.put("f", string(want))
	ino, h := v.open("f", syscall.O_RDWR)
	for i := range 150 {
		off := rnd.IntN(len(want) + 1000)
		n := rnd.IntN(40_000)
		switch rnd.IntN(6) {
		case 0, 1:
			p := bytes.Repeat([]byte{byte(i + 1)}, n)
			v.writeAt(ino, h, string(p), int64(off))
			want = append(want, make([]byte, max(0, off+n-len(want)))...)
			copy(want[off:], p)
		case 2:
			v.ok(v.truncate("f", int64(off)))
			want = []byte(resized(string(want), off))
		case 3:
			if n > 0 {
				v.ok(v.Fallocate(ctx, root, ino, h, int64(off), int64(n), 0x03))
				clear(want[min(off, len(want)):min(off+n, len(want))])
			}
		case 4:
			p := make([]byte, n)
			got, err := v.Read(ctx, root, ino, h, p, int64(off))
			v.ok(err)
			if expect := want[min(off, len(want)):min(off+n, len(want))]; !bytes.Equal(p[:got], expect) {
				t.Fatalf("step %d: %d bytes at %d are not what was written", i, got, off)
			}
		case 5:
			if rnd.IntN(8) == 0 {
				v.kill() // the handle is unknown from here on, and ino is what counts
				ino, h = v.open("f", syscall.O_RDWR)
			}
		}
	}
	v.wantFile("f", string(want))
	v.Release(ino, h)
	v.flush()
	v.wantObjects("f", string(want))
}

func TestHolesAndData(t *testing.T) {
	v := newVolume(t, config{})
	v.put("f", strings.Repeat("r", 20_000))
	ino, h := v.open("f", syscall.O_RDWR)
	defer v.Release(ino, h)
	v.writeAt(ino, h, "x", 100_000)
	seek := func(off int64, whence int, want int64) {
		t.Helper()
		if got, err := v.Lseek(ctx, root, ino, off, whence); err != nil || got != want {
			t.Errorf("lseek(%d, %d) is %d, %v; want %d", off, whence, got, err, want)
		}
	}
	const data, hole = 3, 4
	seek(0, data, 0)
	seek(0, hole, 20_000)
	seek(30_000, data, 100_000)
	seek(30_000, hole, 30_000)
	seek(100_000, hole, 100_001)
	a := v.stat("f")
	v.ok(v.Fallocate(ctx, root, ino, h, 0, 500, 0)) // within the file: nothing to do
	v.ok(v.Fallocate(ctx, root, ino, h, 0, 1_000_000, 0x01))
	if b := v.stat("f"); b.Size != a.Size || !b.Mtime.Equal(a.Mtime) {
		t.Errorf("%+v became %+v", a, b)
	}
	v.ok(v.Fallocate(ctx, root, ino, h, 150_000, 50_000, 0))
	v.ok(v.Fallocate(ctx, root, ino, h, 10, 10, 0x11))       // zero, keep the size
	v.ok(v.Fallocate(ctx, root, ino, h, 199_990, 110, 0x10)) // zero, and grow
	want := strings.Repeat("r", 10) + strings.Repeat("\x00", 10) + strings.Repeat("r", 19_980) + strings.Repeat("\x00", 80_000) + "x" + strings.Repeat("\x00", 100_099)
	v.wantFile("f", want)
	v.flush()
	v.wantObjects("f", want)
}

// TestOpenFileLivesOn: an open file has its bytes after its name is gone, also those that are not here yet.
func TestOpenFileLivesOn(t *testing.T) {
	for name, take := range map[string]func(v *volume) error{
		"unlinked":     func(v *volume) error { return v.unlink("f") },
		"renamed over": func(v *volume) error { return v.rename("g", "f", 0) },
		"truncated and unlinked": func(v *volume) error {
			if err := v.truncate("f", 3); err != nil {
				return err
			}
			return v.unlink("f")
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, config{})
			v.put("f", "remote bytes")
			v.put("g", "g")
			e, err := v.Lookup(ctx, root, inode.Root, "f")
			v.ok(err)
			ino, h := v.open("f", syscall.O_RDWR)
			v.ok(take(v))
			v.flush()
			want := "remote bytes"
			if strings.HasPrefix(name, "trunc") {
				want = "rem"
			}
			got, err := v.readIno(ino, h)
			if err != nil || got != want {
				t.Fatalf("%q, %v", got, err)
			}
			v.writeAt(ino, h, "W", 1)
			got, err = v.readIno(ino, h)
			if want = want[:1] + "W" + want[2:]; err != nil || got != want {
				t.Fatalf("%q, %v", got, err)
			}
			if a, _, err := v.GetAttr(ctx, root, ino); err != nil || a.Nlink != 0 || a.Ino != e.Attr.Ino {
				t.Errorf("%+v, %v", a, err)
			}
			_, err = v.Link(ctx, root, ino, inode.Root, "again")
			v.errno(err, syscall.ENOENT)
			v.Release(ino, h)
			v.Forget(ino, 1)
			v.flush()
			_, err = v.Read(ctx, root, ino, h, make([]byte, 1), 0)
			v.errno(err, syscall.ESTALE)
			v.wantClean()
			left := v.objects()
			delete(left, "g")
			delete(left, "f")
			if len(left) > 0 || len(v.keys()) > 1 {
				t.Errorf("the bucket keeps %q", v.keys())
			}
		})
	}
}

// TestReplacedObject: an object that somebody else replaces is never mixed with what is cached of the old one.
func TestReplacedObject(t *testing.T) {
	const size = 4 << 20
	one, two := strings.Repeat("1", size), strings.Repeat("2", size)
	for name, replace := range map[string]func(v *volume){
		"replaced": func(v *volume) { v.put("f", two) },
		"removed":  func(v *volume) { v.delete("f") },
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, config{policy: vfs.Policy{IOTimeout: 2 * time.Second}})
			v.put("f", one)
			ino, h := v.open("f", syscall.O_RDONLY)
			p := make([]byte, 1000)
			_, err := v.Read(ctx, root, ino, h, p, 0)
			v.ok(err)
			replace(v)
			all := make([]byte, size)
			n, err := v.Read(ctx, root, ino, h, all, 0)
			v.errno(err, syscall.ESTALE)
			if bytes.ContainsRune(all[:n], '2') {
				t.Error("old and new bytes are mixed")
			}
			if _, err := v.Read(ctx, root, ino, h, p, 0); err != nil || p[0] != '1' {
				t.Errorf("what was cached is gone: %v", err)
			}
			v.Release(ino, h)
			// Who looks now finds what is there, without waiting for anything to expire.
			if name == "removed" {
				_, err := v.walk("f")
				v.errno(err, syscall.ENOENT)
				return
			}
			v.wantFile("f", two)
			if v.ino("f") == ino {
				t.Error("another file has the same inode number")
			}
		})
	}
}

// TestCloseToOpen: with ReadWriteMany close waits for the bucket, and open sees what others closed.
func TestCloseToOpen(t *testing.T) {
	rwx := vfs.Policy{Access: vfs.ReadWriteMany}
	v := newVolume(t, config{policy: rwx})
	other := openVolume(t, v.bucket, diskmem.New(), config{policy: rwx, writer: "another-node"})
	t.Cleanup(func() { other.close() })
	v.write("f", "one")
	v.wantObjects("f", "one")
	other.pass(2 * time.Second)
	other.wantFile("f", "one")
	held, hh := v.open("f", syscall.O_RDONLY)
	if got, err := v.readIno(held, hh); err != nil || got != "one" {
		t.Errorf("%q, %v", got, err)
	}
	v.Release(held, hh)
	other.write("f", "two, longer")
	_, _, err := v.Open(ctx, root, held, syscall.O_RDONLY)
	v.errno(err, syscall.ESTALE) // the kernel looks the name up again
	v.wantFile("f", "two, longer")
	v.write("f", "three")
	other.pass(2 * time.Second)
	other.wantFile("f", "three")
}

// TestReadsRecover: broken answers are repeated, not shown.
func TestReadsRecover(t *testing.T) {
	v := newVolume(t, config{})
	want := strings.Repeat("0123456789", 100_000)
	v.put("f", want)
	v.faulty(func(op s3fault.Op) s3fault.Action {
		switch {
		case op.Name != "Get" || op.N > 3:
			return s3fault.Action{}
		case op.N%3 == 0:
			return s3fault.CorruptBody()
		case op.N%3 == 1:
			return s3fault.ShortBody(1000)
		}
		return s3fault.FailBefore(nil)
	})
	v.wantFile("f", want)
	if n := v.BytesRead(); n != int64(len(want)) {
		t.Errorf("%d bytes are counted", n)
	}
}

// TestInterruptedRead ends when its caller does, with EINTR and not with a wrong end of file.
func TestInterruptedRead(t *testing.T) {
	v := newVolume(t, config{})
	v.put("f", "x")
	ino, h := v.open("f", syscall.O_RDONLY)
	v.down()
	brief, cancel := context.WithCancel(ctx)
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err := v.Read(brief, root, ino, h, make([]byte, 1), 0)
	v.errno(err, syscall.EINTR)
	v.faulty(nil)
	if got, err := v.readIno(ino, h); err != nil || got != "x" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCapacity(t *testing.T) {
	v := newVolume(t, config{policy: vfs.Policy{Capacity: 1000}})
	ino := v.write("f", strings.Repeat("x", 900))
	h, _, err := v.Open(ctx, root, ino, syscall.O_RDWR)
	v.ok(err)
	v.flush()
	used := func(want int64) {
		t.Helper()
		if st, err := v.Statfs(ctx); err != nil || st.Total != 1000 || st.Free != 1000-want {
			t.Fatalf("%+v, %v; want %d used", st, err, want)
		}
	}
	used(900)
	full := []error{
		second(v.Write(ctx, root, ino, h, bytes.Repeat([]byte("y"), 200), 850)),
		v.truncate("f", 1001),
		v.Fallocate(ctx, root, ino, h, 0, 1001, 0),
	}
	for i, err := range full {
		if vfs.Errno(err) != syscall.ENOSPC {
			t.Errorf("%d: %v", i, err)
		}
	}
	used(900)
	v.wantFile("f", strings.Repeat("x", 900))
	if n, err := v.tree.Get(ino); err != nil || n.Dirty {
		t.Errorf("a refused change marks the file for upload: %+v, %v", n, err)
	}
	v.writeAt(ino, h, strings.Repeat("y", 200), 700) // overwriting takes nothing
	used(900)
	v.ok(v.truncate("f", 100))
	used(100)
	v.ok(v.link("f", "l"))
	v.ok(v.unlink("f"))
	used(100)
	v.ok(v.unlink("l"))
	used(0)
	// What has no name is no part of the volume: a temporary file neither takes room nor leaves some behind.
	v.writeAt(ino, h, strings.Repeat("t", 5000), 0)
	used(0)
	v.Release(ino, h)
	used(0)
	v.write("a", strings.Repeat("x", 600))
	v.write("b", "1")
	v.ok(v.rename("a", "b", 0))
	used(600)
	if st, err := newVolume(t, config{}).Statfs(ctx); err != nil || st.Free < 1<<40 || st.NameMax != 255 || st.Ffree == 0 {
		t.Errorf("without a limit: %+v, %v", st, err)
	}
}

// A large file is on its way to the bucket before it is closed; under its name nobody sees it before.
func TestLargeFileStreams(t *testing.T) {
	sent := make(chan s3.Key, 1)
	v := newVolume(t, config{part: 16 << 10})
	v.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Put" {
			select {
			case sent <- op.Key:
			default:
			}
		}
		return s3fault.Action{}
	})
	v.write("large", "")
	v.flush()
	<-sent
	ino, h := v.open("large", syscall.O_WRONLY)
	content := strings.Repeat("0123456789abcdef", 200<<10/16)
	const step = 10 << 10
	for off := 0; off < len(content); off += step {
		v.writeAt(ino, h, content[off:off+step], int64(off))
	}
	select {
	case key := <-sent:
		if key == "large" {
			t.Error("the file itself was sent while it is written")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is sent before the file is closed")
	}
	v.Release(ino, h)
	v.flush()
	v.wantObjects("large", content)
}
