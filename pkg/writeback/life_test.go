package writeback_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// A process that is killed at any request goes on where it was.
func TestKilled(t *testing.T) {
	for _, method := range []string{"Put", "CreateUpload", "UploadPart", "CompleteUpload", "Copy", "Delete", "CopyPart"} {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprint(method, applied), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, small)
				old := noise(160 << 10)
				r.put("patched", old)
				r.put("renamed", []byte("renamed"))
				patched := r.learn("patched")
				r.learn("renamed")
				tiny, large := noise(1000), noise(100<<10)
				r.write(r.create("tiny"), 0, tiny)
				r.write(r.create("large"), 0, large)
				r.write(patched, 3, []byte("xyz"))
				copy(old[3:], "xyz")
				r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "renamed", inode.Root, "new name", 0))
				met := make(chan struct{})
				var once sync.Once
				dead := atomic.Bool{}
				r.faulty(func(op s3fault.Op) s3fault.Action {
					if dead.Load() {
						return s3fault.FailBefore(nil)
					}
					if op.Name == method {
						dead.Store(true)
						once.Do(func() { close(met) })
						if applied {
							return s3fault.FailAfter(nil)
						}
						return s3fault.FailBefore(nil)
					}
					return s3fault.Action{}
				})
				r.tree.Urge()
				select {
				case <-met:
				case <-time.After(10 * time.Second):
					t.Fatalf("no %s", method)
				}
				time.Sleep(5 * time.Millisecond) // for the answer to be lost on somebody
				r.kill()
				r.faulty(nil)
				r.flush()
				r.holds("tiny", tiny)
				r.holds("large", large)
				r.holds("patched", old)
				r.holds("new name", []byte("renamed"))
				r.wantKeys("large", "new name", "patched", "tiny")
				r.settled()
			})
		}
	}
}

// Stop breaks requests off when its context ends, keeps everything, and the next Executor goes on.
func TestStop(t *testing.T) {
	r := newRig(t, small)
	tiny, large := noise(1000), noise(200<<10)
	r.write(r.create("tiny"), 0, tiny)
	r.write(r.create("large"), 0, large)
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "UploadPart" || op.Name == "Put" {
			return s3fault.Delay(time.Hour)
		}
		return s3fault.Action{}
	})
	r.tree.Urge()
	for r.exec.Status().Running < 2 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := r.exec.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stop: %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("stop took %v", took)
	}
	if err := r.exec.Flush(t.Context(), 0, nil); !errors.Is(err, writeback.ErrStopped) {
		t.Errorf("flush of a stopped one: %v", err)
	}
	r.kill()
	r.faulty(nil)
	r.flush()
	r.holds("tiny", tiny)
	r.holds("large", large)
}

// A halted Executor sends nothing more, breaks off what it sends, says why at once, and leaves all to the next start.
func TestHalt(t *testing.T) {
	r := newRig(t, small)
	why := errors.New("because")
	tiny, large := noise(100), noise(300<<10)
	done := r.create("done")
	r.write(done, 0, tiny)
	r.flush()
	r.write(r.create("tiny"), 0, tiny)
	r.write(r.create("large"), 0, large)
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Put" || op.Name == "UploadPart" {
			return s3fault.Delay(time.Hour)
		}
		return s3fault.Action{}
	})
	waiting := make(chan error, 1)
	go func() { waiting <- r.exec.Flush(t.Context(), 0, nil) }()
	for r.exec.Status().Running < 2 {
		time.Sleep(time.Millisecond)
	}
	r.exec.Halt(why)
	r.exec.Halt(errors.New("another"))
	halted := func(err error) bool { return errors.Is(err, writeback.ErrHalted) && errors.Is(err, why) }
	if err := <-waiting; !halted(err) {
		t.Errorf("a flush that waited: %v", err)
	}
	r.ok(r.exec.Stop(t.Context())) // returns when the requests are broken off
	var late atomic.Int32
	r.faulty(func(s3fault.Op) s3fault.Action { late.Add(1); return s3fault.Action{} })
	if err := r.exec.Flush(t.Context(), 0, nil); !halted(err) || !strings.Contains(err.Error(), "307300 bytes") {
		t.Errorf("a flush after it: %v", err)
	}
	if err := r.exec.Flush(t.Context(), done, nil); err != nil {
		t.Errorf("a flush of what the bucket has: %v", err)
	}
	if s := r.exec.Status(); !halted(s.LastError) || !halted(r.exec.Halted()) || s.Queue != 2 {
		t.Errorf("%+v", s)
	}
	if n := late.Load(); n > 0 {
		t.Errorf("%d requests after it", n)
	}
	r.kill()
	r.faulty(nil)
	r.flush()
	r.holds("tiny", tiny)
	r.holds("large", large)
}

// A file that is gone before its upload costs no request at all.
func TestShortLife(t *testing.T) {
	r := newRig(t, small)
	r.write(r.create("a"), 0, noise(100))
	r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "a"))
	ino := r.create("b")
	r.write(ino, 0, []byte("b"))
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "b", inode.Root, "c", 0))
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "c", inode.Root, "d", 0))
	r.flush()
	r.wantKeys("d")
	if n := r.faults.Count("Put") + r.faults.Count("Copy") + r.faults.Count("Delete"); n != 1 {
		t.Errorf("%d requests, want one PUT", n)
	}
}
