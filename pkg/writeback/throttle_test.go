package writeback_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// crowd writes files of 64 KiB until one waits at the limit of a cache of 1 MiB, and returns their contents. The server is
// away.
func (r *rig) crowd() map[string][]byte {
	r.t.Helper()
	bodies := map[string][]byte{}
	for i := range 16 {
		name, start := fmt.Sprint("file-", i), time.Now()
		bodies[name] = noise(64 << 10)
		err := r.writeWhenRoom(r.t.Context(), r.create(name), 0, bodies[name])
		if took := time.Since(start); err != nil || i < 12 && took > time.Second {
			r.t.Fatalf("after %d KiB: %v, %v", i*64, took, err)
		}
	}
	return bodies
}

// Writers go on while there is room, are slowed down above the high watermark, and wait at the limit as long as the server
// is away: for ever, or as long as Patience says. Nothing that was written is lost, and what waited is written.
func TestThrottle(t *testing.T) {
	for _, patience := range []time.Duration{0, 200 * time.Millisecond} {
		t.Run(patience.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				opt := small
				opt.Patience = patience
				r := newRig(t, opt)
				r.cache.Capacity = 1 << 20
				r.kill()
				r.faulty(func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(nil) })
				bodies := r.crowd()
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				extra := r.create("extra")
				bodies["extra"] = noise(1 << 10)
				if err := r.writeWhenRoom(ctx, extra, 0, bodies["extra"]); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("an interrupted writer: %v", err)
				}
				start := time.Now()
				if patience > 0 {
					if err := r.writeWhenRoom(t.Context(), extra, 0, bodies["extra"]); !errors.Is(err, cache.ErrNoSpace) || time.Since(start) < patience {
						t.Errorf("at the limit: %v after %v", err, time.Since(start))
					}
					r.faulty(nil)
					r.flush()
				} else {
					const away = 12 * time.Hour
					time.AfterFunc(away, func() { r.faulty(nil) })
				}
				r.ok(r.writeWhenRoom(t.Context(), extra, 0, bodies["extra"]))
				t.Logf("the writer went on after %v", time.Since(start))
				r.ok(r.tryFlush(2 * time.Minute)) // what failed that often rests for long
				for name, body := range bodies {
					r.holds(name, body)
				}
			})
		})
	}
}

// Nothing can make room: the cache is full of what never goes to the bucket, or of nothing that is ours. A writer hears
// that at once, whether the server is there or not.
func TestThrottleWithoutHope(t *testing.T) {
	r := newRig(t, small)
	r.cache.Capacity = 1 << 20
	r.kill()
	refused := func(what string) {
		t.Helper()
		start := time.Now()
		err := r.writeWhenRoom(t.Context(), r.create(what), 0, noise(1<<10))
		if !errors.Is(err, cache.ErrNoSpace) || time.Since(start) > 5*time.Second {
			t.Errorf("%s: %v after %v", what, err, time.Since(start))
		}
	}
	// Larger than the cache.
	if err := r.writeWhenRoom(t.Context(), r.create("huge"), 0, noise(2<<20)); !errors.Is(err, cache.ErrNoSpace) {
		t.Errorf("one write larger than the cache: %v", err)
	}
	// Files without a name, too small for a spill.
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Put" {
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	})
	var hidden []inode.Ino
	for i := range 16 {
		ino := r.create(fmt.Sprint("hidden-", i))
		r.ok(r.tree.Opened(ino))
		r.write(ino, 0, noise(64<<10))
		r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, fmt.Sprint("hidden-", i)))
		hidden = append(hidden, ino)
	}
	r.faulty(nil)
	r.flush()
	refused("hidden")
	for _, ino := range hidden {
		r.tree.Released(ino)
	}
	r.flush()
	r.ok(r.writeWhenRoom(t.Context(), r.create("after"), 0, noise(64<<10)))
	r.flush()
}

// A stream of writes that is larger than the cache passes through it.
func TestLargerThanTheCache(t *testing.T) {
	r := newRig(t, small)
	r.cache.Capacity = 512 << 10
	r.kill()
	ino := r.create("stream")
	body := noise(2 << 20)
	for off := 0; off < len(body); off += 32 << 10 {
		r.ok(r.writeWhenRoom(t.Context(), ino, int64(off), body[off:off+32<<10]))
	}
	r.flush()
	r.holds("stream", body)
	r.noUploads()
	if u := r.store.Usage(); u.Dirty+u.Clean > u.Capacity {
		t.Errorf("%+v", u)
	}
}

// Parts of all uploads together are bounded.
func TestPartsInFlight(t *testing.T) {
	opt := small
	opt.Parts, opt.Uploads = 3, 4
	r := newRig(t, opt)
	var now, most atomic.Int32
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "UploadPart" {
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(time.Millisecond)
			now.Add(-1)
		}
		return s3fault.Action{}
	})
	for i := range 6 {
		r.write(r.create(fmt.Sprint(i)), 0, noise(160<<10))
	}
	r.flush()
	if m := most.Load(); m > 3 || m < 2 {
		t.Errorf("%d parts at once, the limit is 3", m)
	}
}

// Short requests do not wait for large uploads.
func TestSmallFilesPassLargeOnes(t *testing.T) {
	r := newRig(t, small)
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "UploadPart" {
			return s3fault.Delay(time.Hour)
		}
		return s3fault.Action{}
	})
	for i := range 10 {
		r.write(r.create(fmt.Sprint("large-", i)), 0, noise(100<<10))
	}
	r.tree.Urge()
	time.Sleep(10 * time.Millisecond)
	ino := r.create("tiny")
	r.write(ino, 0, []byte("tiny"))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	r.ok(r.exec.Flush(ctx, ino, nil))
	r.holds("tiny", []byte("tiny"))
}
