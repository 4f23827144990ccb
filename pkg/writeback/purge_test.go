package writeback_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// once does something at the first request of a kind below a prefix that comes when the bucket has a key.
func (r *rig) once(method, prefix, when string, do func()) {
	var done sync.Once
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name != method || string(op.Key) != prefix {
			return s3fault.Action{}
		}
		if _, err := r.bucket.Head(r.t.Context(), s3.Key(when)); err == nil {
			done.Do(do)
		}
		return s3fault.Action{}
	})
}

// What others put in the place of an object that was copied already goes to the new name, of whatever size it is, and what
// was copied is kept beside it.
func TestMoveOfReplacedSource(t *testing.T) {
	for _, own := range []bool{false, true} {
		for _, listed := range []string{"new/", "old/"} { // by the end of the Move, by the Purge
			for _, more := range []string{"", "longer"} {
				t.Run(fmt.Sprint(own, listed, more), func(t *testing.T) {
					r := newRig(t, small)
					r.bucket.OwnTags = own
					const file = "sub-1/file-0001"
					rest := r.fill("old/", 20)
					r.learnDir("old")
					theirs := strings.Repeat("T", len(file)) + more
					r.once("List", listed, "new/"+file, func() { r.put("old/"+file, []byte(theirs)) })
					r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
					r.flush()
					for _, k := range rest {
						if k != file {
							r.holds("new/"+k, []byte(k))
						}
					}
					r.holds("new/"+file, []byte(theirs))
					r.wantSomewhere(file)
					r.wantBelow("old/", nil)
					if n := len(r.keys()); n != len(rest)+1 {
						t.Errorf("%d keys, want %d: %q", n, len(rest)+1, r.keys())
					}
				})
			}
		}
	}
}

// Where the file was written anew in the mount meanwhile, what others put in the place of its old object stays there.
func TestMoveOfReplacedSourceOfChangedFile(t *testing.T) {
	for _, own := range []bool{false, true} {
		r := newRig(t, small)
		r.bucket.OwnTags = own
		r.put("old/file", []byte("file"))
		r.put("old/other", []byte("other"))
		file := r.learnIn(r.learnDir("old"), "file")
		r.once("List", "old/", "new/file", func() {
			r.write(file, 0, []byte("ours"))
			r.put("old/file", []byte("hers"))
		})
		r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
		r.flush()
		r.flush() // what was written during the first
		r.wantKeys("new/file", "new/other", "old/file")
		r.holds("new/file", []byte("ours"))
		r.holds("old/file", []byte("hers"))
	}
}

// What came late is removed only when its own copy is there, not when others have replaced that with an object of its size.
func TestMoveOfLateObject(t *testing.T) {
	r := newRig(t, small)
	r.put("old/file", []byte("file"))
	r.learnDir("old")
	var late, hers sync.Once
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if _, err := r.bucket.Head(t.Context(), "new/file"); err != nil {
			return s3fault.Action{}
		}
		if op.Name == "List" && op.Key == "old/" {
			late.Do(func() { r.put("old/late", []byte("late")) })
		}
		if op.Name == "Head" && op.Key == "new/late" {
			hers.Do(func() { r.put("new/late", []byte("hers")) })
		}
		return s3fault.Action{}
	})
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
	r.flush()
	r.wantBelow("old/", nil)
	r.wantSomewhere("late")
	r.wantSomewhere("hers")
}

// assorted puts a directory's objects of all kinds below old/: of others in one piece, in parts, without bytes, and of this
// cache directory.
func (r *rig) assorted() (bodies map[string][]byte, dir inode.Ino) {
	r.t.Helper()
	bodies = map[string][]byte{
		"one": noise(100), "two": noise(5000), "empty": nil, "parts": noise(100 << 10), "large": noise(150 << 10), "ours": noise(300),
	}
	for name, body := range bodies {
		switch name {
		case "ours":
		case "parts":
			r.putParts("old/"+name, body)
		default:
			r.put("old/"+name, body)
		}
	}
	dir = r.learnDir("old")
	r.write(r.make(dir, "ours", inode.ModeRegular|0o644), 0, bodies["ours"])
	r.flush()
	return bodies, dir
}

// wantExactly says what the bucket has below a prefix, and that it has nothing else but markers.
func (r *rig) wantExactly(prefix string, bodies map[string][]byte) {
	r.t.Helper()
	var want []string
	for name, body := range bodies {
		want = append(want, prefix+name)
		r.holds(prefix+name, body)
	}
	slices.Sort(want)
	got := slices.DeleteFunc(r.keys(), func(k string) bool { return strings.HasSuffix(k, "/") })
	if !slices.Equal(got, want) {
		r.t.Fatalf("the bucket has %q, want %q", got, want)
	}
}

// A directory moves, on a server that gives each copy an ETag of its own, with a kill at any request; then it goes on, or
// back. No copy is taken for another's: each object is there once.
func TestMoveOfCopiesWithOtherETags(t *testing.T) {
	for _, own := range []bool{true, false} {
		for _, back := range []bool{false, true} {
			for _, applied := range []bool{false, true} {
				t.Run(fmt.Sprint(own, back, applied), func(t *testing.T) {
					t.Parallel()
					killed := true
					for n := int32(1); killed; n++ {
						killed = moveKilled(t, own, back, applied, n)
						if n == 500 {
							t.Fatal("it does not come to an end")
						}
					}
				})
			}
		}
	}
}

// moveKilled says whether the move has made n requests.
func moveKilled(t *testing.T, own, back, applied bool, n int32) bool {
	r := newRig(t, small)
	r.bucket.OwnTags = own
	bodies, _ := r.assorted()
	var calls atomic.Int32
	reached := make(chan struct{})
	r.faulty(func(s3fault.Op) s3fault.Action {
		c := calls.Add(1)
		if c == n {
			close(reached)
		}
		switch {
		case c == n && applied:
			return s3fault.FailAfter(nil)
		case c >= n:
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	})
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
	flushed := make(chan error, 1)
	go func() { flushed <- r.tryFlush(20 * time.Second) }()
	select {
	case <-reached:
	case err := <-flushed:
		r.ok(err)
		r.wantExactly("new/", bodies)
		r.settled()
		return false
	}
	r.kill()
	<-flushed
	r.faulty(nil)
	where := "new/"
	if back {
		where = "old/"
		r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "new", inode.Root, "old", 0))
	}
	r.flush()
	r.wantExactly(where, bodies)
	r.noUploads()
	r.settled()
	return true
}

// A server that keeps ETags is asked about few objects, and one that stops to do so, since its objects are encrypted in
// different ways, leaves no copy that is not known.
func TestServerStopsToKeepETags(t *testing.T) {
	r := newRig(t, small)
	rest := r.fill("old/", 200)
	r.learnDir("old")
	var heads atomic.Int32
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Head" {
			heads.Add(1)
		}
		return s3fault.Action{}
	})
	rename := func(from, to string) {
		r.ok(r.tree.Rename(namespace.Op{}, inode.Root, from, inode.Root, to, 0))
		r.flush()
		r.wantBelow(to+"/", rest)
		r.wantBelow(from+"/", nil)
	}
	rename("old", "new")
	if n := heads.Load(); n > 40 {
		t.Errorf("%d objects were looked at", n)
	}
	r.bucket.OwnTags = true
	r.put("new/sub-0/file-0000", []byte("sub-0/file-0000"))
	rename("new", "old")
	rename("old", "new")
	// With answers that are lost no bytes are.
	r.nth("Copy", 1, s3fault.FailAfter(nil))
	rename("new", "old")
	if slices.ContainsFunc(r.keys(), func(k string) bool { return bytes.Contains([]byte(k), []byte(".conflict-")) }) {
		t.Errorf("%q", r.keys())
	}
}
