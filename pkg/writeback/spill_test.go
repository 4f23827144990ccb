package writeback_test

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// meter counts the bytes that go to a bucket.
type meter struct {
	s3.Bucket
	sent atomic.Int64
}

func (m *meter) Put(ctx context.Context, key s3.Key, body s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	m.sent.Add(body.Size)
	return m.Bucket.Put(ctx, key, body, attr, cond)
}

func (m *meter) UploadPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, body s3.Body) (s3.Part, error) {
	m.sent.Add(body.Size)
	return m.Bucket.UploadPart(ctx, key, id, n, body)
}

// narrow is a rig whose cache has room for 512 KiB.
func narrow(t *testing.T) *rig {
	r := newRig(t, small)
	r.cache.Capacity = 512 << 10
	r.kill()
	return r
}

// stream writes body[from:to] as a program does that has the file open.
func (r *rig) stream(ino inode.Ino, body []byte, from, to int) {
	r.t.Helper()
	const step = 32 << 10
	for off := from; off < to; off += step {
		r.ok(r.writeWhenRoom(r.t.Context(), ino, int64(off), body[off:min(off+step, to)]))
	}
}

// spills are the objects that hold parts of files.
func (r *rig) spills() int {
	r.t.Helper()
	page, err := r.bucket.List(r.t.Context(), s3.ListInput{Prefix: ".csi-s3/spill/"})
	r.ok(err)
	return len(page.Objects)
}

// readBack reads a file as a program does, what was spilled included.
func (r *rig) readBack(ino inode.Ino) []byte {
	r.t.Helper()
	f := r.file(ino)
	p := make([]byte, f.Size())
	for off := int64(0); off < int64(len(p)); {
		n, missing, err := f.ReadAt(p[off:], off)
		r.ok(err)
		if off += int64(n); !missing.Empty() {
			m := missing.Len()
			locate := r.locate(ino)
			r.ok(r.fetcher.Direct(r.t.Context(), f, locate, p[off:off+m], off))
			off += m
		}
	}
	return p
}

// A file that is larger than the cache goes to the bucket in parts while it is written, each byte once, and becomes one
// object when it is closed.
func TestSpill(t *testing.T) {
	r := newRig(t, small)
	wire := &meter{}
	r.server = func(b s3.Bucket) s3.Bucket { wire.Bucket = b; return wire }
	r.cache.Capacity = 512 << 10
	r.kill()
	ino := r.create("stream")
	r.ok(r.tree.Opened(ino))
	body := noise(4 << 20)
	r.stream(ino, body, 0, len(body))
	if r.spills() == 0 {
		t.Error("nothing was spilled")
	}
	r.wantKeys() // the file is not in the bucket before it is closed
	if !bytes.Equal(r.readBack(ino), body) {
		t.Error("the file reads other than it was written")
	}
	r.tree.Released(ino)
	r.flush()
	r.holds("stream", body)
	r.settled()
	r.noUploads()
	if n := r.spills(); n != 0 {
		t.Errorf("%d spills are left", n)
	}
	if n := wire.sent.Load(); n > int64(len(body))*11/10 {
		t.Errorf("%d bytes were sent for a file of %d", n, len(body))
	}
}

// What was spilled may be overwritten, cut off and written anew; the object is as the file was.
func TestSpillChanges(t *testing.T) {
	r := narrow(t)
	r.put("base", noise(300<<10))
	ino := r.learn("base")
	body := r.get("base")
	r.ok(r.tree.Opened(ino))
	more := noise(2 << 20)
	r.stream(ino, append(body, more...), len(body), len(body)+len(more))
	body = append(body, more...)
	over := noise(500 << 10)
	copy(body[200<<10:], over)
	r.stream(ino, body, 200<<10, 700<<10)
	size := int64(1 << 20)
	r.change(ino, func(f *cache.File, now time.Time) error { return f.Truncate(size, now) })
	body = append(body[:size:size], make([]byte, 100<<10)...)
	r.change(ino, func(f *cache.File, now time.Time) error { return f.Truncate(int64(len(body)), now) })
	again := noise(1 << 20)
	body = append(body, again...)
	r.stream(ino, body, len(body)-len(again), len(body))
	if !bytes.Equal(r.readBack(ino), body) {
		t.Error("the file reads other than it was written")
	}
	r.tree.Released(ino)
	r.flush()
	r.holds("base", body)
	r.settled()
	if n := r.spills(); n != 0 {
		t.Errorf("%d spills are left", n)
	}
}

// A kill at any moment of a spill loses nothing and leaves nothing, with answers lost on the way.
func TestSpillKilled(t *testing.T) {
	for i, method := range []string{"Put", "CreateUpload", "UploadPart", "CompleteUpload", "CopyPart", "Delete"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			r := narrow(t)
			ino := r.create("stream")
			r.ok(r.tree.Opened(ino))
			body := noise(2 << 20)
			reached := r.nth(method, int32(2+i%2), s3fault.FailAfter(nil))
			for off := 0; off < len(body); off += 512 << 10 {
				r.stream(ino, body, off, off+512<<10)
				script := r.script.Load()
				r.kill()
				r.script.Store(script)
				if off < 1<<20 {
					r.ok(r.tree.Opened(ino))
				}
				if !bytes.Equal(r.readBack(ino), body[:off+512<<10]) {
					t.Fatalf("after a kill at %d the file reads other than it was written", off)
				}
			}
			r.flush()
			r.holds("stream", body)
			r.settled()
			if n := r.spills(); n != 0 {
				t.Errorf("%d spills are left", n)
			}
			if reached.Load() == 0 && method != "Put" {
				t.Errorf("there was no %s", method)
			}
		})
	}
}

// A file that is removed while it has spills takes them along.
func TestSpillRemoved(t *testing.T) {
	r := narrow(t)
	ino := r.create("stream")
	r.ok(r.tree.Opened(ino))
	body := noise(1 << 20)
	r.stream(ino, body, 0, len(body))
	r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "stream"))
	if !bytes.Equal(r.readBack(ino), body) {
		t.Error("the removed file reads other than it was written")
	}
	r.stream(ino, body, 0, len(body)) // it can still be written
	r.tree.Released(ino)
	r.flush()
	r.wantKeys()
	if n := r.spills(); n != 0 {
		t.Errorf("%d spills are left", n)
	}
}

// A file that has no whole part to send, but dirt all over it, is sent as a whole when the cache is full.
func TestSpillScattered(t *testing.T) {
	r := narrow(t)
	body := noise(3 << 20)
	r.put("base", body)
	ino := r.learn("base")
	r.ok(r.tree.Opened(ino))
	for round := range 3 {
		for off := 0; off < len(body); off += 20 << 10 {
			p := noise(9<<10 + round)
			n := copy(body[off:], p)
			r.ok(r.writeWhenRoom(t.Context(), ino, int64(off), p[:n]))
		}
	}
	r.tree.Released(ino)
	r.flush()
	r.holds("base", body)
	if n := r.spills(); n != 0 {
		t.Errorf("%d spills are left", n)
	}
}

// The server refuses a spill for a while: the writer waits, and goes on without being told anything.
func TestSpillRefused(t *testing.T) {
	r := narrow(t)
	ino := r.create("stream")
	r.ok(r.tree.Opened(ino))
	r.faulty(func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(nil) })
	body := noise(1 << 20)
	written := 0
	for ; written < len(body); written += 32 << 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // longer than what is held up below the limit
		err := r.writeWhenRoom(ctx, ino, int64(written), body[written:written+32<<10])
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		r.ok(err)
	}
	if written == len(body) {
		t.Fatal("the cache took more than it has room for")
	}
	time.AfterFunc(100*time.Millisecond, func() { r.faulty(nil) })
	r.stream(ino, body, written, len(body))
	r.tree.Released(ino)
	r.flush()
	r.holds("stream", body)
	r.wantKeys("stream")
	if n := r.spills(); n != 0 {
		t.Errorf("%d spills are left", n)
	}
}
