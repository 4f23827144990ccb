package writeback_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// An object that somebody else wrote is never replaced: ours goes beside it, and a flush of the file says so.
func TestConflict(t *testing.T) {
	for _, size := range []int{1000, 100 << 10} {
		var told atomic.Value
		opt := small
		opt.Conflict = func(_ inode.Ino, kept string) { told.Store(kept) }
		r := newRig(t, opt)
		body := noise(size)
		ino := r.create("file")
		r.write(ino, 0, body)
		r.put("file", []byte("theirs"))
		err := r.exec.Flush(t.Context(), ino, nil)
		if !errors.Is(err, writeback.ErrConflict) {
			t.Fatalf("flush of the file: %v", err)
		}
		r.flush()
		kept, _ := told.Load().(string)
		if !strings.HasPrefix(kept, "file.conflict-01234567-") {
			t.Fatalf("kept as %q", kept)
		}
		r.holds("file", []byte("theirs"))
		r.holds(kept, body)
		r.wantKeys("file", kept)
		r.noUploads()
		r.settled()
	}
}

// A Flush, of the file or of all, is over when the conflict has been told: who asks after it hears of it.
func TestFlushWaitsUntilConflictIsTold(t *testing.T) {
	for _, salvaged := range []bool{false, true} {
		for _, all := range []bool{false, true} {
			t.Run(fmt.Sprintf("salvaged %v, all %v", salvaged, all), func(t *testing.T) {
				t.Parallel()
				telling, told := make(chan struct{}), make(chan struct{})
				opt := small
				opt.Conflict = func(inode.Ino, string) {
					close(telling)
					<-told
				}
				r := newRig(t, opt)
				r.put("file", noise(200<<10))
				ino := r.learn("file")
				if salvaged {
					r.write(ino, 0, []byte("ours"))
					r.ok(r.bucket.Delete(t.Context(), "file"))
				} else {
					r.change(ino, func(f *cache.File, now time.Time) error { return f.Truncate(0, now) })
					r.put("file", []byte("theirs"))
				}
				flushed := make(chan error, 1)
				go func() {
					if all {
						flushed <- r.exec.Flush(t.Context(), 0, nil)
					} else {
						flushed <- r.exec.Flush(t.Context(), ino, nil)
					}
				}()
				<-telling
				for n := 1; n > 0; time.Sleep(time.Millisecond) {
					n, _ = r.tree.Pending(0, math.MaxUint64)
				}
				select {
				case err := <-flushed:
					t.Errorf("the flush was over before the conflict was told: %v", err)
					flushed <- err
				case <-time.After(200 * time.Millisecond):
				}
				close(told)
				if err := <-flushed; errors.Is(err, writeback.ErrConflict) == all || all && err != nil {
					t.Errorf("the flush: %v", err)
				}
			})
		}
	}
}

// The same for a file that was there before: changed by both, removed by them.
func TestConflictOfAChange(t *testing.T) {
	r := newRig(t, small)
	old := noise(3000)
	r.put("changed", old)
	r.put("removed", old)
	changed, removed := r.learn("changed"), r.learn("removed")
	r.ok(r.fetcher.Ensure(t.Context(), r.file(changed), r.locate(changed), 0, 3000))
	r.ok(r.fetcher.Ensure(t.Context(), r.file(removed), r.locate(removed), 0, 3000))
	r.write(changed, 0, []byte("ours"))
	r.write(removed, 0, []byte("ours"))
	r.put("changed", []byte("theirs"))
	r.ok(r.bucket.Delete(t.Context(), "removed"))
	r.flush()
	copy(old, "ours")
	r.holds("changed", []byte("theirs"))
	r.holds("removed", old) // what they removed, we have written anew
	keys := r.keys()
	if len(keys) != 3 || !strings.HasPrefix(keys[1], "changed.conflict-") {
		t.Fatalf("%q", keys)
	}
	r.holds(keys[1], old)
}

// TestDeleteLeavesWhatOthersWrote: a file is removed here while it is open, so its object goes later; by then others have
// put theirs in its place.
func TestDeleteLeavesWhatOthersWrote(t *testing.T) {
	for _, ours := range []bool{false, true} {
		r := newRig(t, small)
		r.put("file", noise(1000))
		ino := r.learn("file")
		if ours {
			r.write(ino, 0, noise(100))
			r.flush()
		}
		r.ok(r.tree.Opened(ino))
		r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "file"))
		r.put("file", []byte("theirs"))
		r.tree.Released(ino)
		r.flush()
		r.holds("file", []byte("theirs"))
		r.settled()
		if res, err := r.tree.Resolve(inode.Root, "file"); err != nil || res.Absent {
			t.Errorf("their file is hidden: %+v, %v", res, err)
		}
	}
}

// With Overwrite the last one wins.
func TestConflictOverwrite(t *testing.T) {
	r := newRig(t, small)
	r.names.Overwrite = true
	r.kill()
	body := noise(1000)
	r.write(r.create("file"), 0, body)
	r.put("file", []byte("theirs"))
	r.flush()
	r.holds("file", body)
	r.wantKeys("file")
}
