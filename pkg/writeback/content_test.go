package writeback_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// Files whose missing bytes the cache cannot take are uploaded all the same: only an upload makes room.
func TestBodiesPastTheCache(t *testing.T) {
	r := newRig(t, small)
	r.cache.Capacity = 256 << 10
	r.kill()
	tiny, large := noise(60<<10), noise(500<<10)
	r.put("tiny", tiny)
	r.put("large", large)
	a, b := r.learn("tiny"), r.learn("large")
	patch := func(ino inode.Ino, body []byte, off int) {
		p := noise(700)
		r.write(ino, int64(off), p)
		copy(body[off:], p)
	}
	for off := 0; off < len(tiny)-700; off += 9000 {
		patch(a, tiny, off)
	}
	for off := 5000; off < len(large)-700; off += 100_000 {
		patch(b, large, off)
	}
	// The rest of the cache is dirty bytes of a file that cannot be uploaded.
	full := noise(int(r.store.Usage().Free))
	r.write(r.create("full"), 0, full)
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Key == "full" {
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r.ok(r.exec.Flush(ctx, a, nil))
	r.ok(r.exec.Flush(ctx, b, nil))
	r.holds("tiny", tiny)
	r.holds("large", large)
	if n := r.faults.Count("Get"); n == 0 {
		t.Error("nothing was read from the bucket: this tests nothing")
	}
	r.faulty(nil)
	r.flush()
	r.holds("full", full)
	r.settled()
	r.noUploads()
}

// The same with a server that breaks answers off, and an object that others replace at the wrong moment: what arrives
// is a state of one object, never a mix.
func TestBodiesPastTheCacheWithFaults(t *testing.T) {
	r := newRig(t, small)
	r.cache.Capacity = 64 << 10
	r.kill()
	body := noise(60 << 10)
	r.put("file", body)
	ino := r.learn("file")
	r.write(ino, 30<<10, []byte("ours"))
	copy(body[30<<10:], "ours")
	r.write(r.create("full"), 0, noise(int(r.store.Usage().Free)))
	var gets atomic.Int32
	r.faulty(func(op s3fault.Op) s3fault.Action {
		switch {
		case op.Key == "full":
			return s3fault.FailBefore(nil)
		case op.Name == "Get":
			switch gets.Add(1) {
			case 1:
				return s3fault.ShortBody(100)
			case 2:
				return s3fault.CorruptBody()
			case 3:
				return s3fault.FailBefore(nil)
			}
		}
		return s3fault.Action{}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r.ok(r.exec.Flush(ctx, ino, nil))
	r.holds("file", body)
}

// liar answers mutations with an ETag that the object does not have.
type liar struct {
	s3.Bucket
	etag s3.ETag
}

func (l *liar) Put(ctx context.Context, key s3.Key, body s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	info, err := l.Bucket.Put(ctx, key, body, attr, cond)
	info.ETag = l.etag
	return info, err
}

func (l *liar) Copy(ctx context.Context, src s3.Key, match s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	info, err := l.Bucket.Copy(ctx, src, match, dst, attr, cond)
	info.ETag = l.etag
	return info, err
}

func (l *liar) CompleteUpload(ctx context.Context, key s3.Key, id s3.UploadID, parts []s3.Part, cond s3.Condition) (s3.Info, error) {
	info, err := l.Bucket.CompleteUpload(ctx, key, id, parts, cond)
	info.ETag = l.etag
	return info, err
}

// A server whose answers name another ETag than the object then has costs requests, and nothing else: what we wrote
// ourselves is never taken for somebody else's.
func TestWrongETags(t *testing.T) {
	for _, etag := range []s3.ETag{"", "d41d8cd98f00b204e9800998ecf8427e"} {
		t.Run(fmt.Sprintf("%q", string(etag)), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, small)
			r.server = func(b s3.Bucket) s3.Bucket { return &liar{b, etag} }
			r.kill()
			tiny, large := noise(3000), noise(200<<10)
			a, b := r.create("tiny"), r.create("large")
			r.write(a, 0, tiny)
			r.write(b, 0, large)
			r.flush()
			r.store.Evict(1 << 30)
			for i := range 2 {
				p := noise(10)
				r.write(a, int64(100*i+1), p)
				copy(tiny[100*i+1:], p)
				r.write(b, int64(40_000*i+5), p)
				copy(large[40_000*i+5:], p)
				r.flush()
				r.holds("tiny", tiny)
				r.holds("large", large)
			}
			mode := uint32(0o600)
			for _, ino := range []inode.Ino{a, b} {
				_, err := r.tree.SetAttr(namespace.Op{}, ino, namespace.Patch{Mode: &mode})
				r.ok(err)
			}
			r.flush()
			r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "tiny", inode.Root, "other", 0))
			r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "large", inode.Root, "another", 0))
			r.flush()
			r.holds("other", tiny)
			r.holds("another", large)
			r.wantKeys("another", "other")
			r.settled()
			r.noUploads()
		})
	}
}

// A name that another inode takes, before the bytes that its old inode has there are elsewhere.
func TestRotation(t *testing.T) {
	r := newRig(t, small)
	var want [][]byte
	for i := range 4 {
		for n := len(want); n > 0; n-- {
			r.ok(r.tree.Rename(namespace.Op{}, inode.Root, name(n-1), inode.Root, name(n), 0))
		}
		body := noise(1000 + i*40_000)
		want = append([][]byte{body}, want...)
		r.write(r.create(name(0)), 0, body)
		if len(want) > 1 {
			ino := r.at(name(1))
			r.write(ino, 0, []byte("rotated"))
			copy(want[1], "rotated")
		}
		r.flush()
		for n, body := range want {
			r.holds(name(n), body)
		}
	}
	r.settled()
}

func name(n int) string { return fmt.Sprintf("log.%d", n) }

func (r *rig) at(name string) inode.Ino {
	r.t.Helper()
	res, err := r.tree.Resolve(inode.Root, name)
	r.ok(err)
	if !res.Found {
		return r.learn(name)
	}
	return res.Node.Attr.Ino
}

// At the hard limit a writer waits as long as an upload goes on, however long that takes as a whole.
func TestThrottleWaitsForASlowUpload(t *testing.T) {
	opt := small
	opt.Patience, opt.Parts = 150*time.Millisecond, 1
	r := newRig(t, opt)
	r.cache.Capacity = 512 << 10
	r.kill()
	body := noise(int(r.store.Usage().Free))
	r.write(r.create("large"), 0, body)
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "UploadPart" {
			return s3fault.Delay(40 * time.Millisecond) // times 32
		}
		return s3fault.Action{}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	start := time.Now()
	if err := r.writeWhenRoom(ctx, r.create("next"), 0, noise(1<<10)); err != nil {
		t.Fatalf("after %v: %v", time.Since(start), err)
	}
	if took := time.Since(start); took < 5*opt.Patience {
		t.Errorf("there was room after %v: this tests nothing", took)
	}
	r.flush()
	r.holds("large", body)
	// A server that answers nothing any more is no progress.
	r.write(r.create("more"), 0, noise(int(r.store.Usage().Free)))
	r.store.Evict(1 << 30)
	r.write(r.at("more"), 0, noise(int(r.store.Usage().Free)+int(r.store.Usage().Dirty)))
	r.faulty(func(s3fault.Op) s3fault.Action { return s3fault.Delay(time.Hour) })
	if err := r.writeWhenRoom(ctx, r.at("next"), 1<<10, noise(64<<10)); !errors.Is(err, cache.ErrNoSpace) {
		t.Errorf("server away: %v", err)
	}
}

// A server that answers nothing, not even the abort of an upload, does not hold Stop up.
func TestStopWithoutAnswers(t *testing.T) {
	r := newRig(t, small)
	r.write(r.create("large"), 0, noise(200<<10))
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "UploadPart" || op.Name == "AbortUpload" {
			return s3fault.Delay(time.Hour)
		}
		return s3fault.Action{}
	})
	r.tree.Urge()
	for r.faults.Count("UploadPart") == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := r.exec.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stop: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("stop took %v", took)
	}
}
