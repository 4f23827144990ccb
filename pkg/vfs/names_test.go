package vfs_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// What each operation on names answers, on a tree that is half in the bucket and half not yet.
func TestErrnos(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(v *volume) error
		want syscall.Errno
	}{
		"lookup of nothing":             {func(v *volume) error { _, err := v.walk("no"); return err }, syscall.ENOENT},
		"below nothing":                 {func(v *volume) error { _, err := v.walk("no/x"); return err }, syscall.ENOENT},
		"below a file":                  {func(v *volume) error { _, err := v.Lookup(ctx, root, v.ino("far"), "x"); return err }, syscall.ENOTDIR},
		"mkdir where a file is":         {func(v *volume) error { return v.tryMkdir("near") }, syscall.EEXIST},
		"mkdir where an object is":      {func(v *volume) error { return v.tryMkdir("far") }, syscall.EEXIST},
		"mkdir where a prefix is":       {func(v *volume) error { return v.tryMkdir("implied") }, syscall.EEXIST},
		"rmdir of a file":               {func(v *volume) error { return v.rmdir("near") }, syscall.ENOTDIR},
		"rmdir of nothing":              {func(v *volume) error { return v.rmdir("no") }, syscall.ENOENT},
		"rmdir with a new file":         {func(v *volume) error { return v.rmdir("dir") }, syscall.ENOTEMPTY},
		"rmdir with an object":          {func(v *volume) error { return v.rmdir("implied") }, syscall.ENOTEMPTY},
		"unlink of a directory":         {func(v *volume) error { return v.unlink("dir") }, syscall.EISDIR},
		"unlink of a prefix":            {func(v *volume) error { return v.unlink("implied") }, syscall.EISDIR},
		"unlink of nothing":             {func(v *volume) error { return v.unlink("no") }, syscall.ENOENT},
		"rename of nothing":             {func(v *volume) error { return v.rename("no", "x", 0) }, syscall.ENOENT},
		"rename file over directory":    {func(v *volume) error { return v.rename("near", "empty", 0) }, syscall.EISDIR},
		"rename directory over file":    {func(v *volume) error { return v.rename("dir", "far", 0) }, syscall.ENOTDIR},
		"rename over a full directory":  {func(v *volume) error { return v.rename("empty", "implied", 0) }, syscall.ENOTEMPTY},
		"rename into itself":            {func(v *volume) error { return v.rename("dir", "dir/sub", 0) }, syscall.EINVAL},
		"rename NOREPLACE":              {func(v *volume) error { return v.rename("near", "far", vfs.RenameNoReplace) }, syscall.EEXIST},
		"rename EXCHANGE with nothing":  {func(v *volume) error { return v.rename("near", "no", vfs.RenameExchange) }, syscall.ENOENT},
		"rename with an unknown flag":   {func(v *volume) error { return v.rename("near", "x", 8) }, syscall.EINVAL},
		"rename onto itself":            {func(v *volume) error { return v.rename("near", "near", 0) }, 0},
		"link over a file":              {func(v *volume) error { return v.link("near", "far") }, syscall.EEXIST},
		"link of a directory":           {func(v *volume) error { return v.link("dir", "x") }, syscall.EPERM},
		"symlink over a file":           {func(v *volume) error { return v.symlink("near", "x") }, syscall.EEXIST},
		"symlink to nowhere":            {func(v *volume) error { return v.symlink("x", "") }, syscall.ENOENT},
		"symlink too long":              {func(v *volume) error { return v.symlink("x", strings.Repeat("t", 4096)) }, syscall.ENAMETOOLONG},
		"symlink too long for metadata": {func(v *volume) error { return v.symlink("x", strings.Repeat("t", 3000)) }, syscall.ENAMETOOLONG},
		"a long name":                   {func(v *volume) error { return v.tryWrite(strings.Repeat("n", 256), "") }, syscall.ENAMETOOLONG},
		"lookup of a long name":         {func(v *volume) error { _, err := v.Lookup(ctx, root, 1, strings.Repeat("n", 256)); return err }, syscall.ENAMETOOLONG},
		"the longest name":              {func(v *volume) error { return v.tryWrite(strings.Repeat("n", 255), "") }, 0},
		"a name that is no UTF-8":       {func(v *volume) error { return v.tryWrite("\xff\xfe", "") }, syscall.EILSEQ},
		"a name with a line break":      {func(v *volume) error { return v.tryWrite("a\nb", "x") }, 0},
		"a name that is ours":           {func(v *volume) error { return v.tryMkdir(".csi-s3") }, syscall.EPERM},
		"rename to a name that is ours": {func(v *volume) error { return v.rename("near", ".csi-s3", 0) }, syscall.EPERM},
		"lookup of a name that is ours": {func(v *volume) error { _, err := v.walk(".csi-s3"); return err }, syscall.ENOENT},
		"our name elsewhere":            {func(v *volume) error { return v.tryMkdir("dir/.csi-s3") }, 0},
		"readlink of a file":            {func(v *volume) error { _, err := v.Readlink(ctx, root, v.ino("near")); return err }, syscall.EINVAL},
		"open of a directory":           {func(v *volume) error { _, _, err := v.Open(ctx, root, v.ino("dir"), 0); return err }, syscall.EISDIR},
		"opendir of a file":             {func(v *volume) error { _, err := v.OpenDir(ctx, root, v.ino("far")); return err }, syscall.ENOTDIR},
		"truncate of a directory":       {func(v *volume) error { return v.truncate("dir", 0) }, syscall.EISDIR},
		"truncate to less than nothing": {func(v *volume) error { return v.truncate("near", -1) }, syscall.EINVAL},
		"truncate beyond an object":     {func(v *volume) error { return v.truncate("near", vfs.MaxFileSize+1) }, syscall.EFBIG},
		"an unknown inode":              {func(v *volume) error { _, _, err := v.GetAttr(ctx, root, 4711); return err }, syscall.ESTALE},
		"create EXCL where an object is": {func(v *volume) error {
			_, _, err := v.Create(ctx, root, inode.Root, "far", 0o644, syscall.O_EXCL)
			return err
		}, syscall.EEXIST},
		"create where a directory is": {func(v *volume) error {
			_, _, err := v.Create(ctx, root, inode.Root, "implied", 0o644, 0)
			return err
		}, syscall.EISDIR},
		"write at the end of the world": {func(v *volume) error {
			_, err := v.Write(ctx, root, v.ino("near"), 0, []byte("xx"), vfs.MaxFileSize-1)
			return err
		}, syscall.EFBIG},
		"a key of more than 1024 bytes": {func(v *volume) error {
			p := "dir"
			for range 4 {
				p += "/" + strings.Repeat("d", 250)
				if err := v.tryMkdir(p); err != nil {
					return err
				}
			}
			return v.tryMkdir(p + "/" + strings.Repeat("d", 30))
		}, syscall.ENAMETOOLONG},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVolume(t, config{})
			v.put("far", "object")
			v.put("implied/file", "object")
			v.write("near", "new")
			v.mkdir("dir")
			v.mkdir("empty")
			v.write("dir/file", "new")
			v.errno(c.do(v), c.want)
			// Whatever was refused, the rest is as it was.
			if c.want != 0 {
				v.wantFile("far", "object")
				v.wantFile("near", "new")
				v.wantFile("dir/file", "new")
				v.wantFile("implied/file", "object")
				v.wantNames("", "dir", "empty", "far", "implied", "near")
			}
		})
	}
}

// Attributes travel with the object and come back from it.
func TestAttributes(t *testing.T) {
	v := newVolume(t, config{})
	v.write("f", "x")
	v.mkdir("d")
	v.ok(v.symlink("l", "some/where"))
	stamp := time.Unix(1234567890, 123456789)
	set := func(p string, mode, uid, gid uint32) {
		t.Helper()
		_, _, err := v.SetAttr(ctx, root, v.ino(p), 0, vfs.SetAttr{Mode: &mode, Uid: &uid, Gid: &gid, Mtime: &stamp})
		v.ok(err)
	}
	set("f", 0o4751, 1234, 4321)
	set("d", 0o1777, 1, 2)
	v.ok(v.SetXattr(ctx, root, v.ino("f"), "user.colour", []byte{0, 1, 255}, 0))
	check := func(when string) {
		t.Helper()
		f, d, l := v.stat("f"), v.stat("d"), v.stat("l")
		if f.Mode != inode.ModeRegular|0o4751 || f.Uid != 1234 || f.Gid != 4321 || !f.Mtime.Equal(stamp) || f.Size != 1 || f.Nlink != 1 {
			t.Errorf("%s: file %+v", when, f)
		}
		if d.Mode != inode.ModeDir|0o1777 || d.Uid != 1 || d.Gid != 2 || !d.Mtime.Equal(stamp) || d.Nlink != 2 {
			t.Errorf("%s: directory %+v", when, d)
		}
		target, err := v.Readlink(ctx, root, l.Ino)
		if l.Mode != inode.ModeSymlink|0o777 || target != "some/where" || l.Size != int64(len(target)) || err != nil {
			t.Errorf("%s: link %+v %q %v", when, l, target, err)
		}
		x, err := v.GetXattr(ctx, root, f.Ino, "user.colour")
		if err != nil || string(x) != "\x00\x01\xff" {
			t.Errorf("%s: xattr %q %v", when, x, err)
		}
	}
	check("at once")
	v.kill()
	check("after a kill")
	v.flush()
	check("flushed")
	v = newVolumeOn(t, v)
	check("out of the bucket alone")
}

// newVolumeOn mounts the bucket of another volume with a cache of its own.
func newVolumeOn(t *testing.T, v *volume) *volume {
	t.Helper()
	n := newVolume(t, config{writer: "fedcba9876543210", policy: v.cfg.policy, prefix: v.cfg.prefix})
	n.stop()
	n.ok(n.journal.Close())
	n.ok(n.store.Close())
	n.bucket = v.bucket
	n.start()
	return n
}

// Objects of others: what is understood of their metadata, and what they get when they have none.
func TestForeignAttributes(t *testing.T) {
	v := newVolume(t, config{})
	v.put("plain", "x")
	v.putMeta("geesefs", "x", map[string]string{"mode": "33256", "uid": "5", "gid": "6", "mtime": "1600000000"})
	v.putMeta("link", "", map[string]string{"--symlink-target": "a/b"})
	v.putMeta("broken", "x", map[string]string{"mode": "rwx", "uid": "-1", "mtime": "yesterday", "other": "kept"})
	a := v.stat("plain")
	if a.Mode != inode.ModeRegular|0o644 || a.Uid != 1000 || a.Gid != 1000 {
		t.Errorf("plain: %+v", a)
	}
	a = v.stat("geesefs")
	if a.Mode != inode.ModeRegular|0o750 || a.Uid != 5 || a.Gid != 6 || a.Mtime.Unix() != 1600000000 {
		t.Errorf("geesefs: %+v", a)
	}
	a = v.stat("link")
	if target, err := v.Readlink(ctx, root, a.Ino); !a.IsSymlink() || target != "a/b" || err != nil {
		t.Errorf("link: %+v %q %v", a, target, err)
	}
	if a = v.stat("broken"); !a.IsRegular() {
		t.Errorf("broken: %+v", a)
	}
	// Somebody else's metadata is not lost by a change of ours.
	v.ok(v.SetXattr(ctx, root, v.ino("broken"), "user.a", []byte("b"), 0))
	v.flush()
	info, err := v.bucket.Head(ctx, "broken")
	if err != nil || info.Meta["other"] != "kept" {
		t.Errorf("%v, %v", info.Meta, err)
	}
}

func TestXattrs(t *testing.T) {
	v := newVolume(t, config{})
	v.put("far", "x")
	ino := v.ino("far")
	get := func(name string) (string, error) {
		b, err := v.GetXattr(ctx, root, ino, name)
		return string(b), err
	}
	_, err := get("user.a")
	v.errno(err, syscall.ENODATA)
	v.errno(v.SetXattr(ctx, root, ino, "user.a", []byte("1"), 2), syscall.ENODATA) // XATTR_REPLACE
	v.ok(v.SetXattr(ctx, root, ino, "user.a", []byte("1"), 1))
	v.errno(v.SetXattr(ctx, root, ino, "user.a", []byte("2"), 1), syscall.EEXIST) // XATTR_CREATE
	v.ok(v.SetXattr(ctx, root, ino, "user.a", []byte("2"), 2))
	v.ok(v.SetXattr(ctx, root, ino, "user.empty", nil, 0))
	for _, name := range []string{"trusted.a", "security.selinux", "system.posix_acl_access", "user.", "a"} {
		v.errno(v.SetXattr(ctx, root, ino, name, []byte("1"), 0), syscall.EOPNOTSUPP)
	}
	v.errno(v.SetXattr(ctx, root, ino, "user.big", make([]byte, 4096), 0), syscall.ENOSPC)
	v.errno(v.SetXattr(ctx, root, ino, "user.b", nil, 8), syscall.EINVAL)
	v.flush()
	v.kill()
	ino = v.ino("far")
	names, err := v.ListXattr(ctx, root, ino)
	if err != nil || !slices.Equal(names, []string{"user.a", "user.empty"}) {
		t.Errorf("%q, %v", names, err)
	}
	if a, err := get("user.a"); a != "2" || err != nil {
		t.Errorf("%q, %v", a, err)
	}
	if e, err := get("user.empty"); e != "" || err != nil {
		t.Errorf("%q, %v", e, err)
	}
	v.ok(v.RemoveXattr(ctx, root, ino, "user.a"))
	v.errno(v.RemoveXattr(ctx, root, ino, "user.a"), syscall.ENODATA)
	v.wantFile("far", "x")
}

// Two names are one file here, and two whole objects in the bucket.
func TestHardLinks(t *testing.T) {
	v := newVolume(t, config{})
	v.write("a", "first")
	v.ok(v.link("a", "b"))
	if a, b := v.stat("a"), v.stat("b"); a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("%+v %+v", a, b)
	}
	ino, h := v.open("b", syscall.O_RDWR)
	v.writeAt(ino, h, "FIRST", 0)
	v.Release(ino, h)
	v.wantFile("a", "FIRST")
	v.flush()
	v.wantObjects("a", "FIRST", "b", "FIRST")
	v.ok(v.unlink("a"))
	v.wantFile("b", "FIRST")
	v.flush()
	v.wantObjects("b", "FIRST")
	if n := v.stat("b").Nlink; n != 1 {
		t.Errorf("%d links", n)
	}
}

// The file that is renamed away or replaced stays what it was for who has it open.
func TestOpenFilesLiveOn(t *testing.T) {
	v := newVolume(t, config{})
	v.put("far", "an object's content")
	v.write("near", "a new content")
	for _, name := range []string{"far", "near"} {
		want, err := v.tryRead(name)
		v.ok(err)
		ino, h := v.open(name, syscall.O_RDWR)
		_, err = v.Lookup(ctx, root, inode.Root, name) // as the kernel has
		v.ok(err)
		v.ok(v.unlink(name))
		v.flush()
		_, err = v.walk(name)
		v.errno(err, syscall.ENOENT)
		got, err := v.readIno(ino, h)
		if err != nil || got != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		v.writeAt(ino, h, "X", 0)
		if a, _, err := v.GetAttr(ctx, root, ino); err != nil || a.Nlink != 0 || a.Size != int64(len(want)) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		v.Release(ino, h)
		v.Forget(ino, 1)
		v.flush()
		v.wantObjects(v.survivors(name)...)
	}
}

// survivors are the objects that must be left when name is gone.
func (v *volume) survivors(name string) []string {
	if name == "far" {
		return []string{"near", "a new content"}
	}
	return nil
}

// A file that replaces another one is never seen half.
func TestRenameOver(t *testing.T) {
	v := newVolume(t, config{})
	v.put("target", "old")
	v.write("source", "new content")
	v.ok(v.rename("source", "target", 0))
	v.wantFile("target", "new content")
	v.wantNames("", "target")
	seen := map[string]bool{}
	v.faulty(func(s3fault.Op) s3fault.Action {
		seen[v.object("target")] = true
		return s3fault.Action{}
	})
	v.flush()
	v.faulty(nil)
	for content := range seen {
		if content != "old" && content != "new content" {
			t.Errorf("the bucket showed %q", content)
		}
	}
	v.wantObjects("target", "new content")
}

// Special files are objects that keep their kind.
func TestSpecialFiles(t *testing.T) {
	v := newVolume(t, config{})
	for i, mode := range []uint32{inode.ModeFIFO, inode.ModeSocket, inode.ModeChar, inode.ModeBlock, inode.ModeRegular} {
		_, err := v.Mknod(ctx, root, inode.Root, fmt.Sprint("n", i), mode|0o640, 0x0103)
		v.ok(err)
	}
	_, err := v.Mknod(ctx, root, inode.Root, "bad", inode.ModeDir|0o640, 0)
	v.errno(err, syscall.EINVAL)
	v.flush()
	v = newVolumeOn(t, v)
	for i, mode := range []uint32{inode.ModeFIFO, inode.ModeSocket, inode.ModeChar, inode.ModeBlock, inode.ModeRegular} {
		a := v.stat(fmt.Sprint("n", i))
		wantDev := uint32(0)
		if mode == inode.ModeChar || mode == inode.ModeBlock {
			wantDev = 0x0103
		}
		if a.Mode != mode|0o640 || a.Rdev != wantDev {
			t.Errorf("%o: %+v", mode, a)
		}
	}
}

// A set-group-ID directory hands its group down.
func TestSetGroupID(t *testing.T) {
	v := newVolume(t, config{})
	v.mkdir("d")
	mode, gid := uint32(0o2775), uint32(77)
	_, _, err := v.SetAttr(ctx, root, v.ino("d"), 0, vfs.SetAttr{Mode: &mode, Gid: &gid})
	v.ok(err)
	v.write("d/f", "")
	v.mkdir("d/e")
	if f := v.stat("d/f"); f.Gid != 77 || f.Mode&0o2000 != 0 {
		t.Errorf("%+v", f)
	}
	if e := v.stat("d/e"); e.Gid != 77 || e.Mode&0o2000 == 0 {
		t.Errorf("%+v", e)
	}
}

// Keys that POSIX cannot name are hidden, hide nothing else, and are counted.
func TestKeysWithoutAName(t *testing.T) {
	v := newVolume(t, config{})
	odd := []string{"d//x", "d/./x", "d/../x", "d/" + strings.Repeat("n", 256), "d/a\x00b", "d/both", "d/both/below", "d/content/"}
	for _, k := range odd {
		v.put(k, "odd")
	}
	v.put("d/plain", "x")
	v.put("d/ünicode", "x")
	v.wantNames("d", "plain", "ünicode", "both", "content")
	if !v.stat("d/both").IsDir() {
		t.Error("the directory does not win")
	}
	v.wantFile("d/both/below", "odd")
	if n := v.HiddenKeys(); n < 5 {
		t.Errorf("%d hidden keys", n)
	}
	// They go with their directory.
	v.ok(v.rename("d", "e", 0))
	v.flush()
	for _, k := range append(odd, "d/plain") {
		if got := v.object("e" + k[1:]); got == "" {
			t.Errorf("%q did not move", k)
		}
	}
	for _, k := range v.keys() {
		if strings.HasPrefix(k, "d/") {
			t.Errorf("%q is left", k)
		}
	}
}

// A directory with more names than a page is listed whole, in an order that does not change under the reader.
func TestLargeDirectory(t *testing.T) {
	v := newVolume(t, config{})
	var want []string
	for i := range 2500 {
		name := fmt.Sprintf("file-%04d", i)
		want = append(want, name)
		v.put("d/"+name, "x")
	}
	v.write("d/new", "y")
	v.ok(v.unlink("d/file-0007"))
	want = slices.DeleteFunc(append(want, "new"), func(s string) bool { return s == "file-0007" })
	v.wantNames("d", want...)
	// Single names of it are asked for without a listing.
	w := newVolumeOn(t, v)
	before := w.faults.Count("List")
	for i := range 20 {
		w.wantFile(fmt.Sprintf("d/file-%04d", 100+i), "x")
		_, err := w.walk(fmt.Sprintf("d/none-%04d", i))
		w.errno(err, syscall.ENOENT)
	}
	if n := w.faults.Count("List") - before; n > 50 {
		t.Errorf("%d listings for 40 names", n)
	}

	// A reader that removes what it reads sees each name once.
	ino := v.ino("d")
	h, err := v.OpenDir(ctx, root, ino)
	v.ok(err)
	seen := map[string]int{}
	for offset := uint64(0); ; {
		var batch []vfs.DirEntry
		v.ok(v.ReadDir(ctx, root, ino, h, offset, false, func(d vfs.DirEntry, _ vfs.Entry) bool {
			batch = append(batch, d)
			return len(batch) < 100
		}))
		if len(batch) == 0 {
			break
		}
		for _, d := range batch {
			seen[d.Name]++
			offset = d.Offset
			if d.Name != "." && d.Name != ".." {
				v.ok(v.Unlink(ctx, root, ino, d.Name))
			}
		}
	}
	v.ReleaseDir(h)
	for _, name := range want {
		if seen[name] != 1 {
			t.Fatalf("%q was seen %d times", name, seen[name])
		}
	}
	v.wantNames("d")
	v.flush()
	v.wantObjects("d/", "")
}

// Cookies hold in a handle whose list is lost, as after a restart.
func TestCookiesOutliveTheHandle(t *testing.T) {
	v := newVolume(t, config{})
	for i := range 50 {
		v.write(fmt.Sprint("f", i), "")
	}
	h, err := v.OpenDir(ctx, root, inode.Root)
	v.ok(err)
	var first []string
	var last uint64
	v.ok(v.ReadDir(ctx, root, inode.Root, h, 0, false, func(d vfs.DirEntry, _ vfs.Entry) bool {
		first, last = append(first, d.Name), d.Offset
		return len(first) < 20
	}))
	v.kill()
	v.ok(v.ReadDir(ctx, root, inode.Root, h, last, false, func(d vfs.DirEntry, _ vfs.Entry) bool {
		first = append(first, d.Name)
		return true
	}))
	slices.Sort(first)
	if len(first) != 52 || len(slices.Compact(first)) != 52 {
		t.Errorf("%d names, want 52 different ones", len(first))
	}
}

// ReaddirPlus counts a lookup for each entry that has attributes.
func TestReadDirPlus(t *testing.T) {
	v := newVolume(t, config{})
	v.put("far", "x")
	v.write("f", "abc")
	h, err := v.OpenDir(ctx, root, inode.Root)
	v.ok(err)
	got := map[string]vfs.Entry{}
	v.ok(v.ReadDir(ctx, root, inode.Root, h, 0, true, func(d vfs.DirEntry, e vfs.Entry) bool {
		got[d.Name] = e
		return true
	}))
	v.ReleaseDir(h)
	if e := got["f"]; e.Attr.Size != 3 || e.EntryTimeout == 0 {
		t.Errorf("%+v", e)
	}
	if e := got["."]; e.Attr.Ino != 0 {
		t.Errorf("%+v", e)
	}
	v.Forget(got["f"].Attr.Ino, 1)
	if _, ok := got["far"]; !ok {
		t.Error("far is not listed")
	}
}

// A volume below a prefix knows nothing of its neighbours.
func TestPrefix(t *testing.T) {
	v := newVolume(t, config{prefix: "vol-1/"})
	v.put("vol-1/mine", "x")
	v.put("vol-10/other", "y")
	v.put("vol-1", "z")
	v.wantNames("", "mine")
	v.write("new", "n")
	v.mkdir("d")
	v.ok(v.unlink("mine"))
	v.flush()
	v.wantObjects("vol-1", "z", "vol-1/d/", "", "vol-1/new", "n", "vol-10/other", "y")
}

// A root's own attributes are kept on an object of ours.
func TestRootAttributes(t *testing.T) {
	v := newVolume(t, config{})
	mode, uid := uint32(0o700), uint32(42)
	_, _, err := v.SetAttr(ctx, root, inode.Root, 0, vfs.SetAttr{Mode: &mode, Uid: &uid})
	v.ok(err)
	v.flush()
	if _, err := v.bucket.Head(ctx, s3.Key(".csi-s3/root")); err != nil {
		t.Error(err)
	}
	v = newVolumeOn(t, v)
	if a := v.stat(""); a.Mode != inode.ModeDir|0o700 || a.Uid != 42 {
		t.Errorf("%+v", a)
	}
	v.wantNames("")
}

// TestNoRoomForAttributes: what an object's metadata cannot hold is refused when it is asked for. Later there is nobody to
// tell, and the file would never get into the bucket.
func TestNoRoomForAttributes(t *testing.T) {
	v := newVolume(t, config{})
	v.putMeta("full", "foreign", map[string]string{"junk": strings.Repeat("j", 1900)})
	ino := v.ino("full")
	mode, uid := uint32(0o600), uint32(math.MaxUint32-1)
	_, err := v.Write(ctx, root, ino, 0, []byte("x"), 0)
	v.errno(err, syscall.ENOSPC)
	v.errno(v.truncate("full", 3), syscall.ENOSPC)
	_, _, err = v.SetAttr(ctx, root, ino, 0, vfs.SetAttr{Mode: &mode})
	v.errno(err, syscall.ENOSPC)
	v.errno(v.rename("full", "other", 0), syscall.ENOSPC)
	v.errno(v.link("full", "other"), syscall.ENOSPC)
	v.flush()
	v.wantFile("full", "foreign")
	v.ok(v.unlink("full"))

	// The longest target that is taken, and then a change that makes the rest longer.
	target := strings.Repeat("t", 2000)
	for err = syscall.ENAMETOOLONG; err != nil; target = target[1:] {
		err = v.symlink("link", target)
	}
	v.write("file", "content")
	value := make([]byte, 2000)
	for err = syscall.ENOSPC; err != nil; value = value[1:] {
		err = v.SetXattr(ctx, root, v.ino("file"), "user.a", value, 0)
	}
	for _, name := range []string{"link", "file"} {
		_, _, err = v.SetAttr(ctx, root, v.ino(name), 0, vfs.SetAttr{Uid: &uid, Gid: &uid})
		v.errno(err, syscall.ENOSPC)
	}
	v.flush()
	for _, name := range []string{"link", "file"} {
		info, err := v.bucket.Head(ctx, s3.Key(name))
		v.ok(err)
		size := 0
		for k, val := range info.Meta {
			size += len("x-amz-meta-") + len(k) + len(val) // as MinIO counts
		}
		if size > 2048 {
			t.Errorf("%q has %d bytes of metadata", name, size)
		}
	}
}

// TestTooManyLinks: the names of an inode that would not fit into one record of the journal.
func TestTooManyLinks(t *testing.T) {
	v := newVolume(t, config{})
	v.write("f", "content")
	n := 0
	for err := error(nil); err == nil && n < 10_000; n++ {
		if err = v.link("f", fmt.Sprintf("%0200d", n)); err != nil {
			v.errno(err, syscall.EMLINK)
		}
	}
	if n < 300 || n == 10_000 {
		t.Errorf("%d links", n)
	}
	v.ok(v.checkpoint())
	v.write("g", "more")
	v.kill()
	v.wantFile("g", "more")
}
