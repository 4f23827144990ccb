package vfs_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// readSome lists a directory in pieces of n entries, as the kernel does, and calls between after each piece.
func readSome(v *volume, ino inode.Ino, h vfs.HandleID, offset uint64, n int, between func(next uint64)) (all []vfs.DirEntry) {
	v.t.Helper()
	for {
		var piece []vfs.DirEntry
		v.ok(v.ReadDir(ctx, root, ino, h, offset, false, func(d vfs.DirEntry, _ vfs.Entry) bool {
			if len(piece) == n {
				return false
			}
			piece = append(piece, d)
			return true
		}))
		if len(piece) == 0 {
			return all
		}
		all = append(all, piece...)
		offset = piece[len(piece)-1].Offset
		if between != nil {
			between(offset)
		}
	}
}

func namesOf(entries []vfs.DirEntry) []string {
	var names []string
	for _, d := range entries {
		names = append(names, d.Name)
	}
	slices.Sort(names)
	return names
}

// TestListingOfManyPages: a directory larger than a page of LIST is shown whole, each name once, however it is read.
func TestListingOfManyPages(t *testing.T) {
	v := newVolume(t, config{})
	want := []string{".", ".."}
	for i := range 3000 {
		name := fmt.Sprintf("%04d", i)
		v.put("d/"+name, "x")
		want = append(want, name)
	}
	v.write("d/new", "not in the bucket")
	v.ok(v.unlink("d/0500"))
	want = slices.DeleteFunc(append(want, "new"), func(s string) bool { return s == "0500" })
	slices.Sort(want)
	ino := v.ino("d")
	h, err := v.OpenDir(ctx, root, ino)
	v.ok(err)
	lists := v.faults.Count("List")
	for _, piece := range []int{1, 7, 100, 5000} {
		got := readSome(v, ino, h, 0, piece, nil)
		if got[0].Name != "." || got[1].Name != ".." || got[0].Ino != ino {
			t.Errorf("it begins with %+v, %+v", got[0], got[1])
		}
		if names := namesOf(got); !slices.Equal(names, want) {
			t.Fatalf("pieces of %d: %d names, want %d", piece, len(names), len(want))
		}
		for i := 1; i < len(got); i++ {
			if got[i].Offset <= got[i-1].Offset || got[i].Offset >= 1<<63 {
				t.Fatalf("cookie %d of %q comes after %d", got[i].Offset, got[i].Name, got[i-1].Offset)
			}
		}
	}
	if n := v.faults.Count("List") - lists; n > 3 {
		t.Errorf("%d LISTs for what three pages hold", n)
	}
	v.ReleaseDir(h)
	v.ReleaseDir(h) // again, after a restart
}

// TestRemovalWhileListing is rm -r: what was read is removed before one goes on, with the handle or without it.
func TestRemovalWhileListing(t *testing.T) {
	for _, lost := range []bool{false, true} {
		v := newVolume(t, config{settle: 1})
		var want []string
		for i := range 300 {
			name := fmt.Sprintf("f%d", i)
			want = append(want, name)
			if i%2 == 0 {
				v.put("d/"+name, "x")
			}
		}
		for i := 1; i < 300; i += 2 {
			v.write(fmt.Sprintf("d/f%d", i), "y")
		}
		slices.Sort(want)
		ino := v.ino("d")
		h, err := v.OpenDir(ctx, root, ino)
		v.ok(err)
		removed := map[string]bool{}
		var seen []string
		got := readSome(v, ino, h, 0, 20, func(next uint64) {
			v.ok(v.ReadDir(ctx, root, ino, h, 0, false, func(d vfs.DirEntry, _ vfs.Entry) bool {
				if d.Offset <= next && d.Offset > 2 && !removed[d.Name] {
					seen = append(seen, d.Name)
				}
				return d.Offset < next
			}))
			for _, name := range seen {
				if !removed[name] {
					removed[name] = true
					v.ok(v.unlink("d/" + name))
				}
			}
			if lost {
				v.ReleaseDir(h) // as in a new process, which does not know the handle
			}
		})
		names := slices.DeleteFunc(namesOf(got), func(s string) bool { return s == "." || s == ".." })
		if !slices.Equal(names, want) {
			t.Fatalf("handle lost %v: %d names, want %d", lost, len(names), len(want))
		}
		v.wantNames("d")
		v.ok(v.rmdir("d"))
		v.flush()
		v.wantObjects()
	}
}

// TestChangeWhileListing: what is made and removed before a listing begins is in it, or is not, also when the bucket gets
// it while the answer is on its way.
func TestChangeWhileListing(t *testing.T) {
	v := newVolume(t, config{})
	v.put("d/old", "x")
	v.put("d/sub/x", "x")
	v.stat("d/old")
	v.pass(time.Hour)
	v.write("d/new", "x")
	v.ok(v.unlink("d/old"))
	v.ok(v.rename("d/sub", "d/moved", 0))
	flush := v.flush
	v.listed.Store(&flush)
	v.wantNames("d", "moved", "new")
	v.wantNames("d", "moved", "new")
	v.wantNames("d/moved", "x")
	v.flush()
	v.pass(time.Hour)
	v.wantNames("d", "moved", "new")
}

// TestTypesInAListing: what a LIST cannot tell is unknown; what is known is told.
func TestTypesInAListing(t *testing.T) {
	v := newVolume(t, config{})
	v.put("dir/x", "x")
	v.put("file", "x")
	v.put("empty", "")
	v.putMeta("link", "", map[string]string{"--symlink-target": "x"})
	v.mkdir("newdir")
	v.ok(v.symlink("newlink", "x"))
	list := func() map[string]vfs.DirEntry {
		h, err := v.OpenDir(ctx, root, inode.Root)
		v.ok(err)
		defer v.ReleaseDir(h)
		got := map[string]vfs.DirEntry{}
		v.ok(v.ReadDir(ctx, root, inode.Root, h, 0, false, func(d vfs.DirEntry, _ vfs.Entry) bool {
			got[d.Name] = d
			return true
		}))
		return got
	}
	got := list()
	for name, want := range map[string]uint32{
		".": inode.ModeDir, "..": inode.ModeDir, "dir": inode.ModeDir, "file": inode.ModeRegular, "empty": 0, "link": 0,
		"newdir": inode.ModeDir, "newlink": inode.ModeSymlink,
	} {
		if d, ok := got[name]; !ok || d.Type != want || d.Ino == 0 {
			t.Errorf("%q: %+v, want type %#o", name, d, want)
		}
	}
	link := v.stat("link")
	if d := list()["link"]; d.Type != inode.ModeSymlink || d.Ino != link.Ino {
		t.Errorf("after a look-up: %+v", d)
	}
	if n := v.faults.Count("Head"); n > 3 {
		t.Errorf("%d HEADs for a listing", n)
	}
}

// TestHandleShowsWhatThereWas: one handle shows one state, until it is rewound.
func TestHandleShowsWhatThereWas(t *testing.T) {
	v := newVolume(t, config{})
	v.write("a", "")
	h, err := v.OpenDir(ctx, root, inode.Root)
	v.ok(err)
	defer v.ReleaseDir(h)
	first := readSome(v, inode.Root, h, 0, 10, nil)
	v.write("b", "")
	if got := readSome(v, inode.Root, h, first[0].Offset, 10, nil); len(got) != len(first)-1 {
		t.Errorf("%q were read on", namesOf(got))
	}
	if got := namesOf(readSome(v, inode.Root, h, 0, 10, nil)); !slices.Equal(got, []string{".", "..", "a", "b"}) {
		t.Errorf("rewound: %q", got)
	}
}

// TestLookupInALargeDirectory: a directory larger than a page is not listed for one name.
func TestLookupInALargeDirectory(t *testing.T) {
	v := newVolume(t, config{})
	for i := range 1500 {
		v.put(fmt.Sprintf("d/%04d", i), "x")
	}
	v.put("d/sub/x", "x")
	v.wantFile("d/1400", "x")
	lists := v.faults.Count("List")
	if a := v.stat("d/sub"); !a.IsDir() {
		t.Errorf("%+v", a)
	}
	for range 3 {
		if _, err := v.walk("d/absent"); vfs.Errno(err) == 0 {
			t.Error("it exists")
		}
		v.stat("d/0700")
	}
	if n := v.faults.Count("List") - lists; n > 4 {
		t.Errorf("%d LISTs for three names", n)
	}
	// A name that somebody else makes is seen when what was learned has expired, our own at once.
	v.put("d/absent", "y")
	v.pass(time.Hour)
	v.wantFile("d/absent", "y")
	v.write("d/mine", "z")
	v.flush()
	v.wantFile("d/mine", "z")
	v.ok(v.unlink("d/mine"))
	v.flush()
	if _, err := v.walk("d/mine"); vfs.Errno(err) == 0 {
		t.Error("it is there still")
	}
}
