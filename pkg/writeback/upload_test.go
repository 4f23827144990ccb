package writeback_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// Files of all sizes around the limits arrive as they are, by the requests that their size asks for.
func TestSizes(t *testing.T) {
	r := newRig(t, small)
	want := map[string][]byte{}
	for _, size := range []int{0, 1, 4095, 64<<10 - 1, 64 << 10, 64<<10 + 1, 80 << 10, 200<<10 + 7} {
		name := fmt.Sprint("file-", size)
		want[name] = noise(size)
		ino := r.create(name)
		if size > 0 {
			r.write(ino, 0, want[name])
		}
	}
	r.flush()
	for name, body := range want {
		r.holds(name, body)
	}
	r.settled()
	r.noUploads()
	if n := r.faults.Count("CompleteUpload"); n != 3 {
		t.Errorf("%d multipart uploads, want those of the 3 files above %d bytes", n, small.SinglePut)
	}
	if n := r.faults.Count("Put"); n != 5 {
		t.Errorf("%d PUTs, want 5", n)
	}
	if n := r.faults.Count("UploadPart"); n != 5+5+13 {
		t.Errorf("%d parts, want 23", n)
	}
}

// Parts of a large file that nobody changed are copied on the server, not sent and not fetched.
func TestUnchangedPartsAreCopied(t *testing.T) {
	r := newRig(t, small)
	body := noise(160 << 10) // 10 parts
	r.put("large", body)
	ino := r.learn("large")
	change := noise(100)
	r.write(ino, 50<<10, change) // in the fourth part
	copy(body[50<<10:], change)
	r.flush()
	r.holds("large", body)
	if up, cp := r.faults.Count("UploadPart"), r.faults.Count("CopyPart"); up != 1 || cp != 9 {
		t.Errorf("%d parts sent and %d copied, want 1 and 9", up, cp)
	}
	r.noUploads()
	r.settled()
}

// A file that one PUT could have is sent in parts when little of it changed, and then the rest is not fetched.
func TestLittleOfAMediumObject(t *testing.T) {
	r := newRig(t, small)
	wire := &meter{}
	r.server = func(b s3.Bucket) s3.Bucket { wire.Bucket = b; return wire }
	r.kill()
	body := noise(60 << 10)
	r.put("medium", body)
	ino := r.learn("medium")
	more := noise(1 << 10)
	r.write(ino, int64(len(body)), more)
	body = append(body, more...)
	r.flush()
	r.holds("medium", body)
	if n := wire.sent.Load(); n != 13<<10 {
		t.Errorf("%d bytes were sent, want the last part", n)
	}
	r.write(ino, 0, body[:50<<10])
	r.flush()
	r.holds("medium", body)
	if n := wire.sent.Load(); n != 13<<10+61<<10 || r.faults.Count("Put") != 1 {
		t.Errorf("%d bytes were sent, %d by PUT: want one PUT when most is new", n, r.faults.Count("Put"))
	}
	r.settled()
	r.noUploads()
}

// A server that copies no ranges is sent all parts.
func TestServerWithoutCopyPart(t *testing.T) {
	r := newRig(t, small)
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "CopyPart" {
			return s3fault.FailBefore(s3.ErrNotSupported)
		}
		return s3fault.Action{}
	})
	for name, size := range map[string]int{"medium": 60 << 10, "large": 160 << 10} {
		body := noise(size)
		r.put(name, body)
		r.write(r.learn(name), 0, []byte("new"))
		copy(body, "new")
		r.flush()
		r.holds(name, body)
	}
	r.settled()
	r.noUploads()
}

// A change of a small object keeps the bytes around it.
func TestPatchOfASmallObject(t *testing.T) {
	r := newRig(t, small)
	body := noise(10 << 10)
	r.put("small", body)
	ino := r.learn("small")
	r.write(ino, 5000, []byte("patched"))
	copy(body[5000:], "patched")
	r.write(ino, 12<<10, []byte("beyond a hole"))
	body = append(body, make([]byte, 2<<10)...)
	body = append(body, "beyond a hole"...)
	r.flush()
	r.holds("small", body)
	// Cut shorter, and again something new behind it: the old bytes do not come back.
	r.change(ino, func(f *cache.File, now time.Time) error { return f.Truncate(1000, now) })
	r.change(ino, func(f *cache.File, now time.Time) error { return f.Truncate(3000, now) })
	r.flush()
	r.holds("small", append(body[:1000:1000], make([]byte, 2000)...))
	r.settled()
}

// What is written during an upload is not in its object, and goes up afterwards.
func TestWriteDuringUpload(t *testing.T) {
	for _, size := range []int{20 << 10, 200 << 10} {
		r := newRig(t, small)
		first := noise(size)
		ino := r.create("file")
		r.write(ino, 0, first)
		second := bytes.Clone(first)
		copy(second[100:], "changed in the front")
		copy(second[size-100:], "changed at the end")
		var once sync.Once
		var seen []byte
		r.faulty(func(op s3fault.Op) s3fault.Action {
			if op.Name == "Put" || op.Name == "UploadPart" {
				once.Do(func() {
					r.write(ino, 100, second[100:120])
					r.write(ino, int64(size-100), second[size-100:])
				})
			}
			if op.Name == "Head" || op.Name == "CreateUpload" || op.Name == "Put" {
				// What the first attempt left, before the second one.
				if body, _, err := r.bucket.Get(t.Context(), "file", nil, ""); err == nil {
					if err := body.Close(); err != nil {
						t.Error(err)
					}
					if seen == nil {
						seen = r.get("file")
					}
				}
			}
			return s3fault.Action{}
		})
		r.flush()
		r.flush()
		r.faulty(nil)
		r.holds("file", second)
		if !bytes.Equal(seen, first) {
			t.Errorf("size %d: the first object was no state that the file ever had", size)
		}
		r.settled()
		r.noUploads()
	}
}

// A request whose answer is lost may have been applied. Whatever happens, the file is there once and right.
func TestLostAnswers(t *testing.T) {
	for _, method := range []string{"Put", "CreateUpload", "UploadPart", "CompleteUpload", "CopyPart", "Copy", "Delete", "Head", "List", "DeleteMany"} {
		for n := int32(1); n <= 2; n++ {
			for _, c := range []struct {
				name   string
				action s3fault.Action
			}{
				{"before", s3fault.FailBefore(nil)},
				{"after", s3fault.FailAfter(nil)},
				{"200", s3fault.Error200()},
			} {
				t.Run(fmt.Sprint(method, " ", n, " ", c.name), func(t *testing.T) {
					t.Parallel()
					r := newRig(t, small)
					old := noise(160 << 10)
					r.put("patched", old)
					r.put("renamed", noise(100))
					r.put("gone", noise(100))
					r.put("dir/a", []byte("a"))
					r.put("dir/b", []byte("b"))
					patched, moved := r.learn("patched"), r.get("renamed")
					r.learn("renamed")
					r.learn("gone")
					r.learnDir("dir")
					tiny, large := noise(1000), noise(100<<10)
					r.nth(method, n, c.action)
					r.write(r.create("tiny"), 0, tiny)
					r.write(r.create("large"), 0, large)
					r.write(patched, 3, []byte("xyz"))
					copy(old[3:], "xyz")
					r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "renamed", inode.Root, "new name", 0))
					r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "gone"))
					r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "dir", inode.Root, "moved", 0))
					r.flush()
					r.holds("tiny", tiny)
					r.holds("large", large)
					r.holds("patched", old)
					r.holds("new name", moved)
					r.holds("moved/a", []byte("a"))
					r.wantKeys("large", "moved/a", "moved/b", "new name", "patched", "tiny")
					r.settled()
				})
			}
		}
	}
}

// learnDir enters a directory that the bucket has.
func (r *rig) learnDir(name string) inode.Ino {
	r.t.Helper()
	res, err := r.tree.Resolve(inode.Root, name)
	r.ok(err)
	marker, err := r.bucket.Head(r.t.Context(), s3.Key(name+"/"))
	if !errors.Is(err, s3.ErrNotExist) {
		r.ok(err)
	}
	n, err := r.tree.Learn(inode.Root, name, res.Version, namespace.Remote{IsDir: true, Info: marker, Known: true})
	r.ok(err)
	return n.Attr.Ino
}

// Errors that no attempt of ours ends lose nothing: it is tried until somebody mends the cause.
func TestErrorsThatStay(t *testing.T) {
	for _, cause := range []error{s3.ErrUnavailable, s3.ErrAuth, s3.ErrFull, s3.ErrCorrupt, s3.ErrNoBucket, s3.ErrInvalid} {
		t.Run(cause.Error(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, small)
			body := noise(5000)
			r.write(r.create("file"), 0, body)
			r.faulty(func(op s3fault.Op) s3fault.Action { return s3fault.FailBefore(cause) })
			err := r.tryFlush(700 * time.Millisecond)
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, cause) {
				t.Fatalf("flush says %v", err)
			}
			if s := r.exec.Status(); !errors.Is(s.LastError, cause) || s.DirtyBytes != 5000 || s.Queue != 1 {
				t.Errorf("%+v", s)
			}
			r.wantKeys()
			r.faulty(nil)
			r.flush()
			r.holds("file", body)
			r.settled()
			// The bucket has it a moment before the task is over.
			for deadline := time.Now().Add(10 * time.Second); r.exec.Status().LastError != nil; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("the error is still told: %v", r.exec.Status().LastError)
				}
			}
		})
	}
}

// A body that is broken on its way is never an object.
func TestBrokenBodies(t *testing.T) {
	for _, action := range []s3fault.Action{s3fault.ShortBody(10), s3fault.CorruptBody()} {
		r := newRig(t, small)
		tiny, large := noise(1000), noise(100<<10)
		var broken atomic.Int32
		r.faulty(func(op s3fault.Op) s3fault.Action {
			if (op.Name == "Put" || op.Name == "UploadPart") && broken.Add(1)%2 == 1 && broken.Load() < 8 {
				return action
			}
			return s3fault.Action{}
		})
		r.write(r.create("tiny"), 0, tiny)
		r.write(r.create("large"), 0, large)
		r.flush()
		r.holds("tiny", tiny)
		r.holds("large", large)
		r.noUploads()
	}
}

// Flush of one inode does not wait for others, and tells how much is left.
func TestFlushOne(t *testing.T) {
	r := newRig(t, small)
	a, b := r.create("a"), r.create("b")
	r.write(a, 0, noise(100))
	r.write(b, 0, noise(100))
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Key == "b" {
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r.ok(r.exec.Flush(ctx, a, nil))
	r.wantKeys("a")
	var least atomic.Int64
	least.Store(1 << 40)
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := r.exec.Flush(short, 0, func(p writeback.Progress) { least.Store(min(least.Load(), p.Bytes)) })
	if !errors.Is(err, context.DeadlineExceeded) || least.Load() != 100 {
		t.Errorf("%v, at the least %d bytes left", err, least.Load())
	}
	r.faulty(nil)
	r.flush()
	r.wantKeys("a", "b")
}

func (r *rig) locate(ino inode.Ino) fetch.Locate {
	return func(off int64) (fetch.Source, int64, error) {
		if n, end := r.file(ino).Spilled(off); n != 0 {
			src, at, err := r.tree.Spilled(ino, n)
			return fetch.Source{Key: src.Key, ETag: src.ETag, Size: src.Size, Off: at}, end, err
		}
		src, _, err := r.tree.Source(ino)
		return fetch.Source{Key: src.Key, ETag: src.ETag, Size: src.Size}, math.MaxInt64, err
	}
}

// A file that ends while nobody knows that it took the key of another leaves nothing behind.
func TestUnlinkAfterALostAnswer(t *testing.T) {
	r := newRig(t, small)
	body := noise(1000)
	first := r.create("a")
	r.write(first, 0, body)
	r.flush()
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "a", inode.Root, "b", 0))
	second := r.create("a")
	r.write(second, 0, noise(2000))
	lost := make(chan struct{})
	var once sync.Once
	r.faulty(func(op s3fault.Op) s3fault.Action {
		switch {
		case op.Name == "Put" && op.Key == "a":
			return s3fault.FailAfter(nil)
		case op.Name == "Head" && op.Key == "a":
			once.Do(func() { close(lost) })
			return s3fault.FailBefore(nil)
		case op.Name == "Copy" && op.Key == "c", op.Name == "Delete":
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	})
	r.tree.Urge()
	<-lost
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "b", inode.Root, "c", 0))
	r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "a"))
	r.faulty(nil)
	r.flush()
	r.wantKeys("c")
	r.holds("c", body)
	r.settled()
}

// A file that comes back to a name whose object was removed, although nobody heard of it, is made there again before its
// other object goes; so is the marker of a directory.
func TestBackToARemovedName(t *testing.T) {
	for _, killed := range []bool{false, true} {
		r := newRig(t, small)
		body := noise(1000)
		r.put("a", body)
		r.put("dir/", nil)
		r.learn("a")
		r.learnDir("dir")
		lost := make(chan struct{}, 100)
		r.faulty(func(op s3fault.Op) s3fault.Action {
			if op.Name == "Delete" && (op.Key == "a" || op.Key == "dir/") {
				lost <- struct{}{}
				return s3fault.FailAfter(nil)
			}
			return s3fault.Action{}
		})
		r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "a", inode.Root, "b", 0))
		r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "dir", inode.Root, "there", 0))
		r.tree.Urge()
		<-lost
		<-lost
		if killed {
			r.kill()
		}
		r.faulty(nil)
		r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "b", inode.Root, "a", 0))
		r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "there", inode.Root, "dir", 0))
		r.flush()
		r.wantKeys("a", "dir/")
		r.holds("a", body)
		r.settled()
	}
}
