package writeback_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// stuckAt makes the bucket answer all requests up to the nth of a method, that one included, and none of that method
// after it. It returns a channel that is closed when the first one stays without an answer.
func (r *rig) stuckAt(method string, n int) <-chan struct{} {
	var mu sync.Mutex
	calls, stuck := 0, make(chan struct{})
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name != method {
			return s3fault.Action{}
		}
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls <= n {
			return s3fault.Action{}
		}
		if calls == n+1 {
			close(stuck)
		}
		return s3fault.Delay(time.Hour)
	})
	return stuck
}

// largeKilled has a file of 20 parts that is on its way when 8 of them were taken; then the process is killed.
func largeKilled(t *testing.T) (r *rig, ino inode.Ino, body []byte) {
	t.Helper()
	opt := small
	opt.Parts = 1
	r = newRig(t, opt)
	ino, body = r.create("large"), noise(320<<10)
	r.write(ino, 0, body)
	stuck := r.stuckAt("UploadPart", 8)
	r.tree.Urge()
	<-stuck
	r.kill()
	r.faulty(nil)
	return r, ino, body
}

// After a restart an upload goes on where it was.
func TestUploadGoesOn(t *testing.T) {
	r, _, body := largeKilled(t)
	r.flush()
	r.holds("large", body)
	r.noUploads()
	if n := r.faults.Count("UploadPart"); n != 12 {
		t.Errorf("%d of 20 parts were sent after the restart, 8 had been sent before", n)
	}
	if n := r.faults.Count("CreateUpload"); n != 0 {
		t.Errorf("%d uploads were begun anew", n)
	}
}

// What changed since its part was sent is sent again, and nothing of an older content is completed.
func TestUploadOfOlderContent(t *testing.T) {
	r, ino, body := largeKilled(t)
	copy(body[20<<10:], noise(10<<10))
	r.write(ino, 20<<10, body[20<<10:30<<10])
	r.flush()
	r.holds("large", body)
	r.noUploads()
}

// An upload of a file that was removed is aborted, and so is one of a file that became small.
func TestUploadNotNeeded(t *testing.T) {
	for _, what := range []string{"removed", "cut", "renamed"} {
		t.Run(what, func(t *testing.T) {
			r, ino, body := largeKilled(t)
			switch what {
			case "removed":
				r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "large"))
			case "cut":
				r.change(ino, func(f *cache.File, now time.Time) error { return f.Truncate(100, now) })
			case "renamed":
				r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "large", inode.Root, "other", 0))
			}
			r.flush()
			switch what {
			case "cut":
				r.holds("large", body[:100])
			case "renamed":
				r.holds("other", body)
			}
			r.noUploads()
		})
	}
}

// An upload whose creation was not answered is found and aborted; those of others on the same key stay.
func TestUploadWithoutAnswer(t *testing.T) {
	for _, kill := range []bool{false, true} {
		r := newRig(t, small)
		foreign, err := r.bucket.CreateUpload(t.Context(), "large", s3.Attributes{})
		r.ok(err)
		ino, body := r.create("large"), noise(320<<10)
		r.write(ino, 0, body)
		calls := r.nth("CreateUpload", 1, s3fault.FailAfter(nil))
		r.tree.Urge()
		for calls.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		if kill {
			r.kill()
		}
		r.faulty(nil)
		r.flush()
		r.holds("large", body)
		open, _, err := r.bucket.ListUploads(t.Context(), "")
		if err != nil || len(open) != 1 || open[0].ID != foreign {
			t.Errorf("killed %v: open uploads %v, %v; want that of others alone", kill, open, err)
		}
		r.ok(r.bucket.AbortUpload(t.Context(), "large", foreign))
	}
}

// Where others write too, an upload that may be theirs is left alone.
func TestUploadWithoutAnswerShared(t *testing.T) {
	opt := small
	opt.Shared = true
	r := newRig(t, opt)
	ino, body := r.create("large"), noise(320<<10)
	r.write(ino, 0, body)
	r.nth("CreateUpload", 1, s3fault.FailAfter(nil))
	r.flush()
	r.holds("large", body)
	if open, _, err := r.bucket.ListUploads(t.Context(), ""); err != nil || len(open) != 1 {
		t.Errorf("open uploads %v, %v; the one without an answer stays", open, err)
	}
}

// The server forgot the upload meanwhile.
func TestUploadExpired(t *testing.T) {
	r, _, body := largeKilled(t)
	open, _, err := r.bucket.ListUploads(t.Context(), "")
	r.ok(err)
	for _, u := range open {
		r.ok(r.bucket.AbortUpload(t.Context(), u.Key, u.ID))
	}
	r.flush()
	r.holds("large", body)
	r.noUploads()
}

// A checkpoint keeps what is known of uploads.
func TestUploadCheckpoint(t *testing.T) {
	opt := small
	opt.Parts = 1
	r := newRig(t, opt)
	ino, body := r.create("large"), noise(320<<10)
	r.write(ino, 0, body)
	stuck := r.stuckAt("UploadPart", 8)
	r.tree.Urge()
	<-stuck
	r.ok(r.journal.Checkpoint(func(emit func(...journal.Record) error) error {
		return errors.Join(r.tree.Dump(emit), r.store.Dump(emit), r.exec.Dump(emit))
	}))
	r.kill()
	r.faulty(nil)
	r.flush()
	r.holds("large", body)
	r.noUploads()
	if n := r.faults.Count("UploadPart"); n != 12 {
		t.Errorf("%d parts were sent after the restart", n)
	}
}

// FuzzReplay feeds records that this package did not write: they are refused, or say something harmless.
func FuzzReplay(f *testing.F) {
	f.Add(byte(1), []byte{1, 2, 1, 'k', 0, 1, 1, 'a', 1, 'b', 1, 1, 2, 'i', 'd'})
	f.Add(byte(2), []byte{1, 2, 'i', 'd'})
	f.Add(byte(3), []byte{1, 1, 0, 16, 1, 'e', 1, 'c', 0, 0})
	f.Add(byte(4), []byte{1})
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		r := newRig(t, small)
		begun := []byte{1, 2, 1, 'k', 0, 0, 1, 0}
		if err := r.exec.Replay(journal.Record{Kind: journal.OwnerWriteback | 1, Data: begun}); err != nil {
			t.Fatal(err)
		}
		err := r.exec.Replay(journal.Record{Kind: journal.OwnerWriteback | journal.Kind(kind&15), Data: data})
		if err != nil && !errors.Is(err, journal.ErrCorrupt) {
			t.Fatal(err)
		}
		if err := r.exec.Dump(func(recs ...journal.Record) error { return nil }); err != nil {
			t.Fatal(err)
		}
	})
}

// A server that refuses all for a while does not make an upload be forgotten: who could list uploads waits until it can again.
func TestRefusedForAWhile(t *testing.T) {
	r := newRig(t, small)
	r.write(r.create("first"), 0, noise(100<<10))
	r.flush()
	var lists, creates atomic.Int32
	r.faulty(func(op s3fault.Op) s3fault.Action {
		switch {
		case op.Name == "ListUploads" && lists.Add(1) <= 2:
			return s3fault.FailBefore(s3.ErrAuth)
		case op.Name == "CreateUpload" && creates.Add(1) == 1:
			return s3fault.FailAfter(nil)
		}
		return s3fault.Action{}
	})
	body := noise(100 << 10)
	r.write(r.create("second"), 0, body)
	r.flush()
	r.holds("second", body)
	r.settled()
	r.noUploads()
}
