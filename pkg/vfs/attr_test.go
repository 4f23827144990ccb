package vfs_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// TestAttributesSurvive: what chmod, chown and utimensat set is there after a kill and on another node, to the
// nanosecond, also of directories and of the root.
func TestAttributesSurvive(t *testing.T) {
	v := newVolume(t, config{})
	v.put("f", "x")
	v.put("d/f", "x")
	mode, uid, gid := uint32(0o4711), uint32(5), uint32(6)
	mtime := time.Unix(1_600_000_000, 123_456_789)
	for _, p := range []string{"f", "d", ""} {
		a, _, err := v.SetAttr(ctx, root, v.ino(p), 0, vfs.SetAttr{Mode: &mode, Uid: &uid, Gid: &gid, Mtime: &mtime})
		v.ok(err)
		if a.Mode&inode.ModePerm != mode || a.Uid != uid || a.Gid != gid || !a.Mtime.Equal(mtime) {
			t.Errorf("%q: %+v", p, a)
		}
	}
	before := map[string]inode.Attr{"f": v.stat("f"), "d": v.stat("d"), "": v.stat("")}
	check := func(when string) {
		t.Helper()
		for p, b := range before {
			a := v.stat(p)
			if a.Mode != b.Mode || a.Uid != uid || a.Gid != gid || !a.Mtime.Equal(mtime) || !a.Ctime.Equal(b.Ctime) || a.Size != b.Size {
				t.Errorf("%s: %q was %+v and is %+v", when, p, b, a)
			}
		}
	}
	v.kill()
	check("after a kill")
	v.flush()
	v.wantObjects("f", "x", "d/", "", "d/f", "x")
	v.elsewhere()
	check("elsewhere")
}

func TestTimes(t *testing.T) {
	v := newVolume(t, config{})
	ino := v.write("f", "abc")
	at := func() inode.Attr {
		v.pass(time.Second)
		a, _, err := v.GetAttr(ctx, root, ino)
		v.ok(err)
		return a
	}
	a := at()
	v.wantFile("f", "abc")
	if b := at(); !b.Atime.Equal(a.Atime) || !b.Mtime.Equal(a.Mtime) {
		t.Errorf("reading changed times: %+v, %+v", a, b)
	}
	mode := uint32(0o600)
	_, _, err := v.SetAttr(ctx, root, ino, 0, vfs.SetAttr{Mode: &mode})
	v.ok(err)
	b := at()
	if !b.Mtime.Equal(a.Mtime) || !b.Ctime.After(a.Ctime) {
		t.Errorf("chmod: %+v, %+v", a, b)
	}
	_, err = v.Write(ctx, root, ino, 0, []byte("x"), 0)
	v.ok(err)
	c := at()
	if !c.Mtime.After(b.Mtime) || !c.Ctime.After(b.Ctime) {
		t.Errorf("write: %+v, %+v", b, c)
	}
	h, _, err := v.Open(ctx, root, ino, syscall.O_RDWR|syscall.O_TRUNC)
	v.ok(err)
	v.Release(ino, h)
	d := at()
	if d.Size != 0 || !d.Mtime.After(c.Mtime) {
		t.Errorf("open with O_TRUNC: %+v", d)
	}
	dir := v.stat("")
	v.pass(time.Second)
	v.write("g", "")
	if after := v.stat(""); !after.Mtime.After(dir.Mtime) {
		t.Errorf("a new name: the directory was changed at %v, then at %v", dir.Mtime, after.Mtime)
	}
	atime := time.Unix(1, 2)
	e, _, err := v.SetAttr(ctx, root, ino, 0, vfs.SetAttr{Atime: &atime})
	if err != nil || !e.Atime.Equal(atime) {
		t.Errorf("utimensat: %+v, %v", e, err)
	}
}

// TestForms: attributes as geesefs, s3fs and rclone write them.
func TestForms(t *testing.T) {
	v := newVolume(t, config{})
	v.putMeta("geesefs", "x", map[string]string{"mode": "33216", "uid": "5", "gid": "6", "mtime": "1600000000"})
	v.putMeta("broken", "x", map[string]string{"mode": "hello", "uid": "-1", "mtime": "yesterday", "other": "kept"})
	a := v.stat("geesefs")
	if a.Mode != inode.ModeRegular|0o700 || a.Uid != 5 || a.Gid != 6 || a.Mtime.Unix() != 1_600_000_000 {
		t.Errorf("%+v", a)
	}
	b := v.stat("broken")
	if b.Mode != inode.ModeRegular|0o644 || b.Uid != 1000 {
		t.Errorf("%+v", b)
	}
	// A write keeps what we do not understand.
	v.write("broken", "y")
	v.flush()
	info, err := v.bucket.Head(ctx, "broken")
	if err != nil || info.Meta["other"] != "kept" {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestXattrsAtOnce: of many that create the same attribute one succeeds.
func TestXattrsAtOnce(t *testing.T) {
	v := newVolume(t, config{})
	ino := v.write("f", "x")
	results := make(chan error)
	for i := range 8 {
		go func() { results <- v.SetXattr(ctx, root, ino, "user.a", fmt.Append(nil, i), 1) }()
	}
	won := 0
	for range 8 {
		switch err := <-results; vfs.Errno(err) {
		case 0:
			won++
		case syscall.EEXIST:
		default:
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d created it", won)
	}
}
