package vfs_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

func TestErrorsOfNames(t *testing.T) {
	v := newVolume(t, config{})
	v.put("d/f", "x")
	v.put("f", "x")
	v.mkdir("empty")
	v.ok(v.symlink("s", "f"))
	long := strings.Repeat("n", 256)
	_, _, createExcl := v.Create(ctx, root, inode.Root, "f", 0o644, syscall.O_EXCL)
	_, _, createDir := v.Create(ctx, root, inode.Root, "d", 0o644, 0)
	_, _, createSystem := v.Create(ctx, root, inode.Root, ".csi-s3", 0o644, 0)
	_, mknodDir := v.Mknod(ctx, root, inode.Root, "m", inode.ModeDir|0o755, 0)
	_, lookupLong := v.Lookup(ctx, root, inode.Root, long)
	_, lookupStale := v.Lookup(ctx, root, 4711, "x")
	_, openDir := v.OpenDir(ctx, root, v.ino("f"))
	_, _, openOfDir := v.Open(ctx, root, v.ino("d"), 0)
	_, readlink := v.Readlink(ctx, root, v.ino("f"))
	for name, test := range map[string]struct {
		err  error
		want syscall.Errno
	}{
		"create exclusively what is there":    {createExcl, syscall.EEXIST},
		"create a directory's name":           {createDir, syscall.EISDIR},
		"create the volume's own":             {createSystem, syscall.EPERM},
		"create below a file":                 {v.tryWrite("f/x", ""), syscall.ENOTDIR},
		"create in nothing":                   {v.tryWrite("no/x", ""), syscall.ENOENT},
		"create what is no UTF-8":             {v.tryWrite("\xff", ""), syscall.EILSEQ},
		"create what is too long":             {v.tryWrite(long, ""), syscall.ENAMETOOLONG},
		"create over a link":                  {v.tryWrite("s", ""), syscall.EEXIST},
		"look up what is too long":            {lookupLong, syscall.ENAMETOOLONG},
		"look up in what nobody knows":        {lookupStale, syscall.ESTALE},
		"look up what is no UTF-8":            {second(v.walk("\xff")), syscall.ENOENT},
		"look up the volume's own":            {second(v.walk(".csi-s3")), syscall.ENOENT},
		"mkdir of a file":                     {v.tryMkdir("f"), syscall.EEXIST},
		"mkdir of the volume's own":           {v.tryMkdir(".csi-s3"), syscall.EPERM},
		"mknod of a directory":                {mknodDir, syscall.EINVAL},
		"symlink to nothing":                  {v.symlink("t", ""), syscall.ENOENT},
		"symlink to too long a target":        {v.symlink("t", strings.Repeat("x", 4096)), syscall.ENAMETOOLONG},
		"symlink to what metadata can't hold": {v.symlink("t", strings.Repeat("x", 3000)), syscall.ENAMETOOLONG},
		"symlink over a file":                 {v.symlink("f", "x"), syscall.EEXIST},
		"unlink of a directory":               {v.unlink("d"), syscall.EISDIR},
		"unlink of nothing":                   {v.unlink("no"), syscall.ENOENT},
		"rmdir of a file":                     {v.rmdir("f"), syscall.ENOTDIR},
		"rmdir of what has names":             {v.rmdir("d"), syscall.ENOTEMPTY},
		"link of a directory":                 {v.link("d", "l"), syscall.EPERM},
		"link over a file":                    {v.link("f", "s"), syscall.EEXIST},
		"rename of nothing":                   {v.rename("no", "x", 0), syscall.ENOENT},
		"rename over a directory":             {v.rename("f", "d", 0), syscall.EISDIR},
		"rename of a directory over a file":   {v.rename("d", "f", 0), syscall.ENOTDIR},
		"rename over what has names":          {v.rename("empty", "d", 0), syscall.ENOTEMPTY},
		"rename into itself":                  {v.rename("d", "d/d", 0), syscall.EINVAL},
		"rename over, forbidden":              {v.rename("f", "s", vfs.RenameNoReplace), syscall.EEXIST},
		"exchange with nothing":               {v.rename("f", "no", vfs.RenameExchange), syscall.ENOENT},
		"rename with unknown flags":           {v.rename("f", "x", 4), syscall.EINVAL},
		"rename to the volume's own":          {v.rename("f", ".csi-s3", 0), syscall.EPERM},
		"rename of the volume's own":          {v.rename(".csi-s3", "x", 0), syscall.ENOENT},
		"opendir of a file":                   {openDir, syscall.ENOTDIR},
		"open of a directory":                 {openOfDir, syscall.EISDIR},
		"readlink of a file":                  {readlink, syscall.EINVAL},
	} {
		if got := vfs.Errno(test.err); got != test.want {
			t.Errorf("%s: %v (%v), want %v", name, got, test.err, test.want)
		}
	}
	v.flush()
	v.wantObjects("d/f", "x", "f", "x", "empty/", "", "s", "") // nothing of all that left a trace
}

func second[A any](_ A, err error) error { return err }

// TestKeysThatPOSIXCannotName: they are not shown, not merged with others, not lost, and go with their directory.
func TestKeysThatPOSIXCannotName(t *testing.T) {
	v := newVolume(t, config{})
	hidden := []string{"d//x", "d/./x", "d/../x", "d/a\x00b", "d/" + strings.Repeat("n", 256), "d//"}
	for _, key := range hidden {
		v.put(key, "hidden")
	}
	v.put("d/", "a marker with content")
	v.put("d/a", "the file is hidden")
	v.put("d/a/b", "x")
	v.put("d/line\nfeed", "shown")
	v.put(".csi-s3/volume.json", "{}")
	v.wantNames("", "d")
	v.wantNames("d", "a", "line\nfeed")
	v.wantNames("d/a", "b")
	v.wantFile("d/a/b", "x")
	v.wantFile("d/line\nfeed", "shown")
	// Two keys are below "d//" and count once, as a listing shows them; the marker's content and the file a are the others.
	if n := v.HiddenKeys(); n != int64(len(hidden)-1+2) {
		t.Errorf("%d keys are counted as hidden", n)
	}
	v.errno(v.rmdir("d"), syscall.ENOTEMPTY)
	v.ok(v.unlink("d/a/b"))
	v.ok(v.rmdir("d/a"))
	v.ok(v.unlink("d/line\nfeed"))
	v.flush()
	// With the directory gone the file of its name is there.
	v.pass(time.Hour)
	v.wantFile("d/a", "the file is hidden")
	v.ok(v.unlink("d/a"))
	v.ok(v.rmdir("d"))
	v.flush()
	v.wantObjects()
	if keys := v.keys(); len(keys) != 1 {
		t.Errorf("the volume's own is gone, or more than it is left: %q", keys)
	}
}

func TestHiddenKeysGoWithARename(t *testing.T) {
	v := newVolume(t, config{})
	v.put("d//x", "hidden")
	v.put("d/f", "shown")
	v.ok(v.rename("d", "e", 0))
	v.flush()
	v.wantObjects("e//x", "hidden", "e/f", "shown")
}

// TestKeyTooLong: a name whose key no bucket takes is refused when it is made, not when it is uploaded.
func TestKeyTooLong(t *testing.T) {
	v := newVolume(t, config{prefix: "volume/"})
	at := ""
	for range 4 {
		at += strings.Repeat("d", 240)
		v.mkdir(at)
		at += "/"
	}
	room := 1024 - len("volume/") - len(at)
	v.write(at+strings.Repeat("f", room), "fits")
	v.errno(v.tryWrite(at+strings.Repeat("f", room+1), ""), syscall.ENAMETOOLONG)
	v.mkdir(at + strings.Repeat("g", room-1))
	v.errno(v.tryMkdir(at+strings.Repeat("h", room)), syscall.ENAMETOOLONG) // its marker has a slash more
	v.errno(second(v.walk(at+strings.Repeat("x", room+1))), syscall.ENOENT)
	v.write("short", "")
	v.errno(v.rename("short", at+strings.Repeat("f", room+1), 0), syscall.ENAMETOOLONG)
	v.errno(v.link("short", at+strings.Repeat("f", room+1)), syscall.ENAMETOOLONG)
	v.flush()
}

// TestUnknownIsNotAbsent: a failing server never makes a name not exist, whatever is asked and in which order.
func TestUnknownIsNotAbsent(t *testing.T) {
	for _, broken := range []string{"List", "Head", "both"} {
		v := newVolume(t, config{policy: vfs.Policy{IOTimeout: 20 * time.Millisecond}})
		v.put("f", "x")
		v.put("d/f", "x")
		v.faulty(func(op s3fault.Op) s3fault.Action {
			if broken == "both" || op.Name == broken {
				return s3fault.FailBefore(nil)
			}
			return s3fault.Action{}
		})
		for name, err := range map[string]error{
			"stat": second(v.walk("f")), "stat below": second(v.walk("d/f")), "open": second(v.tryRead("f")),
			"unlink": v.unlink("f"), "rename": v.rename("f", "g", 0), "rmdir": v.rmdir("d"), "mkdir": v.tryMkdir("d"),
			"create": v.tryWrite("f", ""), "link": v.link("f", "l"), "list": second(v.tryList("d")),
			"rename over": v.rename("d", "f", 0),
		} {
			if broken == "List" && name == "stat" || err == nil && broken != "both" {
				continue // a HEAD alone may tell
			}
			if got := vfs.Errno(err); got != syscall.EIO && !(name == "mkdir" && got == syscall.EEXIST) {
				t.Errorf("%s fails: %s says %v (%v)", broken, name, got, err)
			}
		}
		v.faulty(nil)
		v.wantFile("f", "x")
		v.wantFile("d/f", "x")
		v.flush()
		v.wantObjects("f", "x", "d/f", "x")
	}
}

// TestLookupCounts: an inode that the kernel refers to keeps its number, one that it forgot may get another.
func TestLookupCounts(t *testing.T) {
	v := newVolume(t, config{})
	v.put("f", "1")
	e, err := v.Lookup(ctx, root, inode.Root, "f")
	v.ok(err)
	if e.AttrTimeout != time.Minute || e.EntryTimeout != time.Minute {
		t.Errorf("believed for %v and %v", e.AttrTimeout, e.EntryTimeout)
	}
	v.delete("f")
	v.pass(time.Hour)
	n, err := v.Lookup(ctx, root, inode.Root, "f")
	if !errors.Is(err, namespace.ErrNotExist) || n.EntryTimeout != time.Minute || n.Attr.Ino != 0 {
		t.Errorf("a name that is gone: %+v, %v", n, err)
	}
	if _, _, err := v.GetAttr(ctx, root, e.Attr.Ino); err != nil {
		t.Errorf("the kernel refers to it still: %v", err)
	}
	v.Forget(e.Attr.Ino, 1)
	_, _, err = v.GetAttr(ctx, root, e.Attr.Ino)
	v.errno(err, syscall.ESTALE)
	v.put("f", "2")
	v.pass(time.Hour)
	if a := v.stat("f"); a.Ino == e.Attr.Ino {
		t.Error("an inode number was used again")
	}
}

func TestReadOnly(t *testing.T) {
	for _, cfg := range []config{
		{policy: vfs.Policy{ReadOnly: true}}, {policy: vfs.Policy{Access: vfs.ReadOnlyMany}},
		{admit: func(context.Context) error { return fmt.Errorf("for a reason: %w", vfs.ErrReadOnly) }},
	} {
		v := newVolume(t, cfg)
		v.put("f", "x")
		v.put("d/g", "y")
		v.wantFile("f", "x")
		ino := v.ino("f")
		size := int64(0)
		_, _, setattr := v.SetAttr(ctx, root, ino, 0, vfs.SetAttr{Size: &size})
		_, write := v.Write(ctx, root, ino, 0, []byte("z"), 0)
		_, _, open := v.Open(ctx, root, ino, syscall.O_RDWR)
		_, _, trunc := v.Open(ctx, root, ino, syscall.O_TRUNC)
		for i, err := range []error{
			v.tryWrite("n", ""), v.tryMkdir("n"), v.symlink("n", "x"), v.link("f", "n"), v.unlink("f"), v.rmdir("d"),
			v.rename("f", "n", 0), setattr, write, open, trunc, v.SetXattr(ctx, root, ino, "user.a", nil, 0),
			v.RemoveXattr(ctx, root, ino, "user.a"), v.Fallocate(ctx, root, ino, 0, 0, 1, 0),
		} {
			if vfs.Errno(err) != syscall.EROFS {
				t.Errorf("%d: %v", i, err)
			}
		}
		if st := v.executor.Status(); st.Queue != 0 {
			t.Errorf("%d changes are queued", st.Queue)
		}
	}
}

// TestManyAtOnce: requests of all kinds at the same names neither race nor block each other.
func TestManyAtOnce(t *testing.T) {
	v := newVolume(t, config{settle: 1})
	for i := range 20 {
		v.put(fmt.Sprintf("d/%d", i), "x")
	}
	done := make(chan error)
	for w := range 6 {
		go func() {
			for i := range 60 {
				name := fmt.Sprintf("d/%d", (i*7+w)%20)
				var err error
				switch (i + w) % 6 {
				case 0:
					err = v.tryWrite(name, name)
				case 1:
					err = v.unlink(name)
				case 2:
					err = v.rename(name, fmt.Sprintf("d/%d", i%20), 0)
				case 3:
					_, err = v.tryList("d")
				case 4:
					_, err = v.tryRead(name)
				case 5:
					v.pass(time.Minute)
				}
				// What another one has removed is not there, or was not when it came to the next step.
				if e := vfs.Errno(err); e != 0 && e != syscall.ENOENT && e != syscall.ESTALE {
					done <- fmt.Errorf("%s: %w", name, err)
					return
				}
			}
			done <- nil
		}()
	}
	for range 6 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	v.flush()
	names, err := v.tryList("d")
	v.ok(err)
	var keys []string
	for key := range v.objects() {
		if key != "d/" {
			keys = append(keys, strings.TrimPrefix(key, "d/"))
		}
	}
	slices.Sort(keys)
	if !slices.Equal(names, keys) {
		t.Errorf("%q are shown, the bucket has %q", names, keys)
	}
}
