package writeback_test

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// grow writes body[from:to] at the end of an open file, as the core does.
func (r *rig) grow(ino inode.Ino, body []byte, from, to int) {
	r.t.Helper()
	const step = 8 << 10
	for off := from; off < to; off += step {
		end := min(off+step, to)
		before := r.file(ino).Size()
		r.write(ino, int64(off), body[off:end])
		if after := r.file(ino).Size(); after > before {
			r.exec.Grew(ino, before, after)
		}
	}
}

// eventually waits until what is asked for is so.
func (r *rig) eventually(what string, so func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("never: %s", what)
		}
	}
}

// streamed writes body as a file that stays open, and waits until parts of it are in the bucket.
func (r *rig) streamed(name string, body []byte) inode.Ino {
	r.t.Helper()
	ino := r.create(name)
	r.ok(r.tree.Opened(ino))
	r.grow(ino, body, 0, len(body))
	r.eventually("a part of the file is sent before it is closed", func() bool {
		return r.spills() > 0 && r.exec.Status().Running == 0
	})
	return ino
}

func (r *rig) noSpills() {
	r.t.Helper()
	if n := r.spills(); n != 0 {
		r.t.Errorf("%d spills are left", n)
	}
}

// A large file goes to the bucket while it is written, each byte once; nobody sees it before it is whole.
func TestStream(t *testing.T) {
	r := newRig(t, small)
	wire := &meter{}
	r.server = func(b s3.Bucket) s3.Bucket { wire.Bucket = b; return wire }
	r.kill()
	body := noise(1<<20 + 1000)
	ino := r.streamed("large", body)
	if n := wire.sent.Load(); n < 128<<10 {
		t.Errorf("%d bytes were sent before the file was closed", n)
	}
	r.wantKeys()
	if !bytes.Equal(r.readBack(ino), body) {
		t.Error("the file reads other than it was written")
	}
	r.tree.Released(ino)
	r.flush()
	r.holds("large", body)
	r.settled()
	r.noUploads()
	r.noSpills()
	if n := wire.sent.Load(); n != int64(len(body)) {
		t.Errorf("%d bytes were sent for a file of %d", n, len(body))
	}
}

// A file that is not large, or that is written to and fro, is sent when it is due and not before.
func TestStreamNot(t *testing.T) {
	r := newRig(t, small)
	ino := r.create("small")
	r.ok(r.tree.Opened(ino))
	r.grow(ino, noise(120<<10), 0, 120<<10)
	fro := r.create("fro")
	r.ok(r.tree.Opened(fro))
	for end := 512 << 10; end >= 0; end -= 100 << 10 {
		r.grow(fro, make([]byte, end+90<<10), end, end+90<<10)
	}
	// What is due now goes first come, first served: a spill would have been before it.
	other := r.create("other")
	r.ok(r.exec.Flush(t.Context(), other, nil))
	r.noSpills()
	r.wantKeys("other")
	r.noUploads()
}

// What was sent and is overwritten is sent again, and what is not, is not.
func TestStreamOverwritten(t *testing.T) {
	r := newRig(t, small)
	wire := &meter{}
	r.server = func(b s3.Bucket) s3.Bucket { wire.Bucket = b; return wire }
	r.kill()
	body := noise(512 << 10)
	ino := r.streamed("large", body)
	const part = 16 << 10
	copy(body[part+100:], noise(1000))
	r.write(ino, part+100, body[part+100:part+1100])
	if !bytes.Equal(r.readBack(ino), body) {
		t.Error("the file reads other than it was written")
	}
	r.tree.Released(ino)
	r.flush()
	r.holds("large", body)
	r.noSpills()
	r.noUploads()
	if n := wire.sent.Load(); n != int64(len(body)+part) {
		t.Errorf("%d bytes were sent, want all and one part again: %d", n, len(body)+part)
	}
}

// gate holds up calls of a method until it is opened, and tells of the first.
type gate struct {
	reached, open chan struct{}
	once          sync.Once
}

func (r *rig) gate(method string) *gate {
	g := &gate{reached: make(chan struct{}), open: make(chan struct{})}
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == method {
			g.once.Do(func() { close(g.reached) })
			<-g.open
		}
		return s3fault.Action{}
	})
	return g
}

// A file that is cut off or removed while a part of it is under way leaves nothing behind, and a removed one sends no more.
func TestStreamCutOff(t *testing.T) {
	for _, remove := range []bool{false, true} {
		t.Run(fmt.Sprintf("removed=%v", remove), func(t *testing.T) {
			opt := small
			opt.Parts = 1
			r := newRig(t, opt)
			wire := &meter{}
			r.server = func(b s3.Bucket) s3.Bucket { wire.Bucket = b; return wire }
			r.kill()
			ino := r.create("large")
			r.ok(r.tree.Opened(ino))
			g := r.gate("UploadPart")
			body := noise(200 << 10)
			r.grow(ino, body, 0, len(body))
			<-g.reached
			if remove {
				r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "large"))
				r.tree.Released(ino)
				close(g.open)
				r.flush()
				r.wantKeys()
				if n := wire.sent.Load(); n > 32<<10 {
					t.Errorf("%d bytes were sent of a file that was removed at the first", n)
				}
			} else {
				body = body[:20<<10]
				r.change(ino, func(f *cache.File, now time.Time) error { return f.Truncate(int64(len(body)), now) })
				r.tree.Released(ino)
				close(g.open)
				r.flush()
				r.holds("large", body)
			}
			r.settled()
			r.noSpills()
			r.eventually("no upload is left", func() bool {
				u, _, err := r.bucket.ListUploads(t.Context(), "")
				return err == nil && len(u) == 0
			})
		})
	}
}

// After a kill in the middle of a part of a file all that the bucket has is used.
func TestStreamKilled(t *testing.T) {
	opt := small
	opt.Parts = 1
	r := newRig(t, opt)
	wire := &meter{}
	r.server = func(b s3.Bucket) s3.Bucket { wire.Bucket = b; return wire }
	r.kill()
	body := noise(600 << 10)
	ino := r.streamed("large", body[:300<<10])
	before := wire.sent.Load()
	r.grow(ino, body, 300<<10, 600<<10)
	r.eventually("half of the next part is sent", func() bool { return wire.sent.Load() > before+48<<10 })
	r.kill()
	if !bytes.Equal(r.readBack(ino), body) {
		t.Error("after the kill the file reads other than it was written")
	}
	r.flush()
	r.holds("large", body)
	r.settled()
	r.noSpills()
	r.noUploads()
	// Of what was under way at the kill one part may have been sent without a note of it.
	if n := wire.sent.Load(); n > int64(len(body))+2*16<<10 {
		t.Errorf("%d bytes were sent for a file of %d", n, len(body))
	}
}

// A bucket that takes no spills takes files none the less.
func TestStreamRefused(t *testing.T) {
	r := newRig(t, small)
	r.names.MaxAge = 50 * time.Millisecond
	r.kill()
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "CreateUpload" && strings.HasPrefix(string(op.Key), ".csi-s3/spill/") {
			return s3fault.FailBefore(s3.ErrAuth)
		}
		return s3fault.Action{}
	})
	ino := r.create("large")
	r.ok(r.tree.Opened(ino))
	body := noise(300 << 10)
	r.grow(ino, body, 0, len(body))
	r.eventually("the open file is in the bucket when it is due", func() bool { return len(r.keys()) == 1 })
	r.tree.Released(ino)
	r.flush()
	r.holds("large", body)
	r.settled()
}

// A spill whose answer was lost, and of whose range nothing is left when it is tried again, does not stay in the bucket.
func TestStreamUnanswered(t *testing.T) {
	r := newRig(t, small)
	r.faulty(func(op s3fault.Op) s3fault.Action {
		switch op.Name {
		case "CompleteUpload":
			return s3fault.FailAfter(nil)
		case "Head":
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	})
	ino := r.create("large")
	r.ok(r.tree.Opened(ino))
	r.grow(ino, noise(200<<10), 0, 200<<10)
	r.eventually("the spill is in the bucket", func() bool { return r.spills() == 1 })
	r.kill()
	r.faulty(nil)
	r.change(ino, func(f *cache.File, now time.Time) error { return f.Truncate(1000, now) })
	r.flush()
	r.settled()
	r.noSpills()
}
