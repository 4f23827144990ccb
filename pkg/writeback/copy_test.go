package writeback_test

import (
	"bytes"
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// An object that others replace while it is copied in parts: the copy has parts of one state only, or is not made.
func TestSourceReplacedBetweenParts(t *testing.T) {
	r := newRig(t, small)
	ours, theirs := noise(300<<10), noise(300<<10)
	r.put("large", ours)
	r.learn("large")
	var calls atomic.Int32
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "CopyPart" && calls.Add(1) == 2 {
			r.put("large", theirs)
		}
		return s3fault.Action{}
	})
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "large", inode.Root, "renamed", 0))
	_ = r.tryFlush(time.Second) // what became of it is looked at
	if calls.Load() < 2 {
		t.Fatal("no copy in parts")
	}
	for _, key := range r.keys() {
		if body := r.get(key); !bytes.Equal(body, ours) && !bytes.Equal(body, theirs) {
			t.Errorf("%q is a mix", key)
		}
	}
}

// forgetful is a server that reports copies as made that it did not make.
type forgetful struct {
	s3.Bucket
	left atomic.Int32
}

func (f *forgetful) Copy(ctx context.Context, src s3.Key, match s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	if f.left.Add(-1) >= 0 {
		info, err := f.Head(ctx, src)
		info.Key, info.Size = dst, -1
		return info, err
	}
	return f.Bucket.Copy(ctx, src, match, dst, attr, cond)
}

// Nothing is removed on a server's word alone: each copy is looked at first.
func TestCopiesThatAreNotThere(t *testing.T) {
	r := newRig(t, small)
	f := &forgetful{}
	r.server = func(b s3.Bucket) s3.Bucket {
		f.Bucket = b
		return f
	}
	r.kill()
	rest := r.fill("old/", 30)
	r.put("file", []byte("file"))
	r.learnDir("old")
	r.learn("file")
	f.left.Store(7)
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
	var bad atomic.Value
	r.faulty(func(op s3fault.Op) s3fault.Action {
		r.complete(rest, &bad)
		return s3fault.Action{}
	})
	r.flush()
	r.wantBelow("new/", rest)
	r.wantBelow("old/", nil)
	if b := bad.Load(); b != nil {
		t.Error(b)
	}
	f.left.Store(2)
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "file", inode.Root, "renamed", 0))
	r.flush()
	r.holds("renamed", []byte("file"))
	r.settled()
}

// What others write to the destination between the look and the copy is not overwritten.
func TestMoveMeetsOthersLate(t *testing.T) {
	r := newRig(t, small)
	rest := r.fill("old/", 20)
	r.learnDir("old")
	theirs := []byte("somebody else's, written at the last moment")
	var once atomic.Bool
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Copy" && strings.Contains(string(op.Key), "sub-1/file-0001") && once.CompareAndSwap(false, true) {
			r.put("new/sub-1/file-0001", theirs)
		}
		return s3fault.Action{}
	})
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "old", inode.Root, "new", 0))
	r.flush()
	found := false
	for _, key := range r.keys() {
		found = found || bytes.Equal(r.get(key), theirs)
	}
	if !found {
		t.Error("the other's object was overwritten")
	}
	for _, k := range rest {
		r.holds("new/"+k, []byte(k))
	}
	r.wantBelow("old/", nil)
	r.settled()
}
