package writeback_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// Writers go on while there is room, are slowed down above the high watermark, and refused at the limit when nothing
// moves any more. Nothing that was written is lost.
func TestThrottle(t *testing.T) {
	opt := small
	opt.Patience = 200 * time.Millisecond
	r := newRig(t, opt)
	r.cache.Capacity = 1 << 20
	r.kill()
	r.faulty(func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(nil) })
	throttle := func() (time.Duration, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		start := time.Now()
		err := r.exec.Throttle(ctx)
		return time.Since(start), err
	}
	bodies := map[string][]byte{}
	for i := range 16 {
		took, err := throttle()
		if err != nil || i < 12 && took > time.Second {
			t.Fatalf("after %d KiB: %v, %v", i*64, took, err)
		}
		name := fmt.Sprint("file-", i)
		bodies[name] = noise(64 << 10)
		r.write(r.create(name), 0, bodies[name])
	}
	took, err := throttle()
	if !errors.Is(err, cache.ErrNoSpace) || took < opt.Patience {
		t.Fatalf("at the limit: %v, %v", took, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.exec.Throttle(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an interrupted writer: %v", err)
	}
	r.faulty(nil)
	r.flush()
	for name, body := range bodies {
		r.holds(name, body)
	}
	if took, err := throttle(); err != nil || took > time.Second {
		t.Errorf("with room again: %v, %v", took, err)
	}
}

// A stream of writes that is larger than the cache passes through it.
func TestLargerThanTheCache(t *testing.T) {
	r := newRig(t, small)
	r.cache.Capacity = 512 << 10
	r.kill()
	ino := r.create("stream")
	body := noise(2 << 20)
	for off := 0; off < len(body); off += 32 << 10 {
		r.ok(r.exec.Throttle(t.Context()))
		r.write(ino, int64(off), body[off:off+32<<10])
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
