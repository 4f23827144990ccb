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
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

// fill puts n objects below a prefix, with a directory's marker and some keys that have no name.
func (r *rig) fill(prefix string, n int) (rest []string) {
	r.t.Helper()
	for i := range n {
		rest = append(rest, fmt.Sprintf("sub-%d/file-%04d", i%3, i))
	}
	rest = append(rest, "empty/", "odd//name", "odd/./dot")
	for _, k := range rest {
		r.put(prefix+k, []byte(k))
	}
	slices.Sort(rest)
	return rest
}

func (r *rig) wantBelow(prefix string, rest []string) {
	r.t.Helper()
	var got []string
	for _, k := range r.keys() {
		if below, ok := strings.CutPrefix(k, prefix); ok && below != "" {
			got = append(got, below)
		}
	}
	if !slices.Equal(got, rest) {
		r.t.Fatalf("below %q: %d keys, want %d (%q ...)", prefix, len(got), len(rest), got[:min(5, len(got))])
	}
	for _, k := range rest {
		r.holds(prefix+k, []byte(k))
	}
}

// A directory goes with all that is below it, also what the mount does not show, however many pages that are.
func TestMoveDirectory(t *testing.T) {
	r := newRig(t, small)
	rest := r.fill("old/", 2500)
	r.put("older/stays", []byte("x")) // a name that only begins like it
	r.learnDir("old")
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
	r.flush()
	r.wantBelow("new/", rest)
	r.wantBelow("old/", nil)
	r.holds("older/stays", []byte("x"))
	r.settled()
	// And once more, under the name of the first.
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "new", inode.Root, "old", 0))
	r.flush()
	r.wantBelow("old/", rest)
	r.wantBelow("new/", nil)
	r.settled()
}

// No object is removed before its copy is there, whatever fails on the way; a kill half-way goes on.
func TestMoveInterrupted(t *testing.T) {
	for _, method := range []string{"Copy", "DeleteMany", "List"} {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprint(method, applied), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, small)
				rest := r.fill("old/", 60)
				r.learnDir("old")
				var calls atomic.Int32
				var bad atomic.Value
				r.faulty(func(op s3fault.Op) s3fault.Action {
					r.complete(rest, &bad)
					if op.Name == method && calls.Add(1)%2 == 0 && calls.Load() < 20 {
						if applied {
							return s3fault.FailAfter(nil)
						}
						return s3fault.FailBefore(nil)
					}
					return s3fault.Action{}
				})
				r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
				r.tree.Urge()
				time.Sleep(20 * time.Millisecond)
				r.kill()
				r.flush()
				if b := bad.Load(); b != nil {
					t.Fatal(b)
				}
				r.faulty(nil)
				r.wantBelow("new/", rest)
				r.wantBelow("old/", nil)
				r.settled()
			})
		}
	}
}

// complete notes a key that is under neither name.
func (r *rig) complete(rest []string, bad *atomic.Value) {
	for _, k := range rest {
		if _, err := r.bucket.Head(r.t.Context(), s3.Key("old/"+k)); err == nil {
			continue
		}
		if _, err := r.bucket.Head(r.t.Context(), s3.Key("new/"+k)); err != nil {
			bad.Store(fmt.Sprintf("%q is nowhere: %v", k, err))
		}
	}
}

// What others write below a directory while it moves is neither lost nor overwritten.
func TestMoveUnderOthers(t *testing.T) {
	r := newRig(t, small)
	rest := r.fill("old/", 40)
	r.put("new/sub-1/file-0001", []byte("somebody else's, and longer")) // seen by nobody here
	r.learnDir("old")
	var once sync.Once
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Copy" {
			once.Do(func() { r.put("old/late", []byte("late")) })
		}
		return s3fault.Action{}
	})
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
	r.flush()
	for _, k := range append(rest, "late") {
		r.holds("new/"+k, []byte(k))
	}
	r.wantBelow("old/", nil)
	found := false
	for _, k := range r.keys() {
		if strings.HasPrefix(k, "new/sub-1/file-0001.conflict-") {
			found = true
			r.holds(k, []byte("somebody else's, and longer"))
		}
	}
	if !found {
		t.Error("the other's object was overwritten")
	}
}

// Who listens hears of an object that was put aside when it is there, and not again because a copy had to be repeated.
func TestMoveTellsOfWhatItPutsAside(t *testing.T) {
	var mu sync.Mutex
	var told []string
	opt := small
	var r *rig
	opt.Aside = func(key, kept s3.Key) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, string(key))
		if _, err := r.bucket.Head(t.Context(), kept); err != nil {
			t.Errorf("%q was told of too early: %v", kept, err)
		}
	}
	r = newRig(t, opt)
	r.fill("old/", 10)
	r.put("new/sub-1/file-0001", []byte("theirs"))
	r.learnDir("old")
	var fails atomic.Int32
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Copy" && strings.Contains(string(op.Key), ".conflict-") && fails.Add(1) <= 2 {
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	})
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
	r.flush()
	if !slices.Equal(told, []string{"new/sub-1/file-0001"}) {
		t.Errorf("told was of %q", told)
	}
}

// Another's object of the very size of ours, where a directory moves to, is kept too.
func TestMoveOntoSameSize(t *testing.T) {
	r := newRig(t, small)
	rest := r.fill("old/", 40)
	theirs := strings.Repeat("T", len("sub-1/file-0001"))
	r.put("new/sub-1/file-0001", []byte(theirs))
	r.learnDir("old")
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
	r.flush()
	for _, k := range rest {
		r.holds("new/"+k, []byte(k))
	}
	r.wantBelow("old/", nil)
	r.wantSomewhere(theirs)
}

// wantSomewhere looks for an object with these bytes, whatever its key.
func (r *rig) wantSomewhere(want string) {
	r.t.Helper()
	if !slices.ContainsFunc(r.keys(), func(k string) bool { return string(r.get(k)) == want }) {
		r.t.Errorf("the other's object %q is nowhere", want)
	}
}

// Files that were changed in a moved directory go with it, each by its own upload.
func TestMoveWithChanges(t *testing.T) {
	r := newRig(t, small)
	rest := r.fill("old/", 20)
	dir := r.learnDir("old")
	tiny, large := noise(500), noise(100<<10)
	a := r.make(dir, "new file", inode.ModeRegular|0o644)
	b := r.make(dir, "large file", inode.ModeRegular|0o644)
	r.write(a, 0, tiny)
	r.flush()
	r.write(b, 0, large)
	r.write(a, 100, []byte("changed"))
	copy(tiny[100:], "changed")
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
	r.write(a, 200, []byte("again"))
	copy(tiny[200:], "again")
	r.flush()
	r.holds("new/new file", tiny)
	r.holds("new/large file", large)
	for _, k := range rest {
		r.holds("new/"+k, []byte(k))
	}
	r.wantBelow("old/", nil)
	r.settled()
}

// Objects that one request cannot copy are moved in parts.
func TestMoveLargeObject(t *testing.T) {
	r := newRig(t, small)
	large := noise(300 << 10)
	r.put("dir/large", large)
	r.put("alone", large)
	r.learnDir("dir")
	r.learn("alone")
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "dir", inode.Root, "there", 0))
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "alone", inode.Root, "renamed", 0))
	r.flush()
	r.holds("there/large", large)
	r.holds("renamed", large)
	keys := slices.DeleteFunc(r.keys(), func(k string) bool { return strings.HasSuffix(k, "/") })
	if !slices.Equal(keys, []string{"renamed", "there/large"}) {
		t.Errorf("%q", keys)
	}
	r.noUploads()
}

// putParts stores an object as another client does that sends it in parts.
func (r *rig) putParts(key string, body []byte) {
	r.t.Helper()
	ctx := r.t.Context()
	id, err := r.bucket.CreateUpload(ctx, s3.Key(key), s3.Attributes{})
	r.ok(err)
	var parts []s3.Part
	for p := range slices.Chunk(body, 32<<10) {
		part, err := r.bucket.UploadPart(ctx, s3.Key(key), id, len(parts)+1, s3.Body{R: bytes.NewReader(p), Size: int64(len(p))})
		r.ok(err)
		parts = append(parts, part)
	}
	_, err = r.bucket.CompleteUpload(ctx, s3.Key(key), id, parts, s3.Condition{})
	r.ok(err)
}

// learnIn enters a file that the bucket has in a directory.
func (r *rig) learnIn(dir inode.Ino, name string) inode.Ino {
	r.t.Helper()
	res, err := r.tree.Resolve(dir, name)
	r.ok(err)
	info, err := r.bucket.Head(r.t.Context(), res.Key)
	r.ok(err)
	n, err := r.tree.Learn(dir, name, res.Version, namespace.Remote{Info: info, Known: true})
	r.ok(err)
	return n.Attr.Ino
}

// A file that leaves a directory, or changes in it, while the directory moves knows the copy that the move has made of it,
// whatever that copy's ETag is: it has no conflict with itself, and leaves nothing behind.
func TestMoveKnowsItsCopies(t *testing.T) {
	for _, parts := range []bool{false, true} { // of the source; the copy of a large one is always made of parts
		for _, large := range []bool{false, true} {
			for i := range 4 {
				leaves, own := i&1 != 0, i&2 != 0
				t.Run(fmt.Sprint(parts, large, leaves, own), func(t *testing.T) {
					t.Parallel()
					r := newRig(t, small)
					r.bucket.OwnTags = own
					body := noise(100 << 10)
					if large {
						body = noise(300 << 10)
					}
					if parts {
						r.putParts("dir/file", body)
					} else {
						r.put("dir/file", body)
					}
					r.put("dir/other", []byte("x"))
					dir := r.learnDir("dir")
					file := r.learnIn(dir, "file")
					made := make(chan struct{})
					var once sync.Once
					r.faulty(func(op s3fault.Op) s3fault.Action {
						if op.Name == "List" && op.Key == "there/" && len(r.keys()) >= 4 {
							once.Do(func() { close(made) })
							return s3fault.FailBefore(nil) // so nobody hears that the copies are there
						}
						return s3fault.Action{}
					})
					r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "dir", inode.Root, "there", 0))
					r.tree.Urge()
					<-made
					if leaves {
						r.ok(r.tree.Rename(namespace.Op{}, dir, "file", inode.Root, "away", 0))
					} else {
						r.write(file, 7, []byte("changed"))
						copy(body[7:], "changed")
					}
					r.kill()
					r.faulty(nil)
					r.flush()
					if leaves {
						r.wantKeys("away", "there/", "there/other")
						r.holds("away", body)
					} else {
						r.wantKeys("there/file", "there/other")
						r.holds("there/file", body)
					}
				})
			}
		}
	}
}

// An object that others replace or remove while its parts are copied is moved as it is then; the directory stays.
func TestMoveLargeObjectUnderOthers(t *testing.T) {
	for _, removed := range []bool{false, true} {
		r := newRig(t, small)
		rest := r.fill("dir/", 5)
		large := noise(300 << 10)
		r.put("dir/large", noise(400<<10))
		r.learnDir("dir")
		var once sync.Once
		r.faulty(func(op s3fault.Op) s3fault.Action {
			if op.Name == "CopyPart" {
				once.Do(func() {
					if removed {
						r.ok(r.bucket.Delete(t.Context(), "dir/large"))
					} else {
						r.put("dir/large", large)
					}
				})
			}
			return s3fault.Action{}
		})
		r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "dir", inode.Root, "there", 0))
		r.flush()
		for _, k := range rest {
			r.holds("there/"+k, []byte(k))
		}
		if !removed {
			r.holds("there/large", large)
		}
		r.wantBelow("dir/", nil)
		if res, err := r.tree.Resolve(inode.Root, "there"); err != nil || !res.Found {
			t.Errorf("removed %v: the directory is gone: %+v, %v", removed, res, err)
		}
		r.noUploads()
	}
}

// A removed directory takes its marker and the keys that have no name with it, and no other.
func TestRemoveDirectory(t *testing.T) {
	r := newRig(t, small)
	r.put("dir/", nil)
	r.put("dir//double", []byte("x"))
	r.put("dir/../up", []byte("x"))
	r.put("dir2/file", []byte("x"))
	r.learnDir("dir")
	r.ok(r.tree.Rmdir(namespace.Op{}, inode.Root, "dir"))
	r.flush()
	r.wantKeys("dir2/file")
	r.settled()

	// What somebody puts there meanwhile is his.
	r.put("gone//odd", []byte("x"))
	r.put("gone/theirs", []byte("x"))
	r.learnDir("gone")
	r.ok(r.tree.Rmdir(namespace.Op{}, inode.Root, "gone"))
	r.flush()
	r.wantKeys("dir2/file", "gone/theirs")
}

// A directory that is made anew under the name of a removed one, with the same files.
func TestRemoveAndMakeAgain(t *testing.T) {
	r := newRig(t, small)
	for round := range 3 {
		dir := r.make(inode.Root, "dir", inode.ModeDir|0o755)
		for i := range 5 {
			r.write(r.make(dir, fmt.Sprint("file-", i), inode.ModeRegular|0o644), 0, fmt.Append(nil, round, " ", i))
		}
		if round%2 == 0 {
			r.flush()
		}
		if round == 2 {
			break
		}
		for i := range 5 {
			r.ok(r.tree.Unlink(namespace.Op{}, dir, fmt.Sprint("file-", i)))
		}
		r.ok(r.tree.Rmdir(namespace.Op{}, inode.Root, "dir"))
	}
	r.flush()
	r.wantKeys("dir/", "dir/file-0", "dir/file-1", "dir/file-2", "dir/file-3", "dir/file-4")
	for i := range 5 {
		r.holds(fmt.Sprint("dir/file-", i), fmt.Append(nil, 2, " ", i))
	}
	r.settled()
}

// Servers without a condition on copies: what stands there is looked at instead.
func TestServerWithoutCopyConditions(t *testing.T) {
	r := newRig(t, small)
	r.quirks(s3mem.NoCopyConditions())
	body := noise(1000)
	r.put("a", body)
	r.learn("a")
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "a", inode.Root, "b", 0))
	r.put("b", []byte("theirs"))
	r.flush()
	r.holds("b", []byte("theirs"))
	keys := r.keys()
	if len(keys) != 2 || !strings.HasPrefix(keys[1], "b.conflict-") {
		t.Fatalf("%q", keys)
	}
	r.holds(keys[1], body)
	// Without another's object in the way it is a plain rename.
	r.put("c", body)
	r.learn("c")
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "c", inode.Root, "d", 0))
	r.flush()
	r.holds("d", body)
}
