package writeback_test

import (
	"context"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// What a look at an object says is no proof that answers name its ETag.
func TestWrongETagsAfterALook(t *testing.T) {
	r := newRig(t, small)
	r.server = func(b s3.Bucket) s3.Bucket { return &liar{b, "d41d8cd98f00b204e9800998ecf8427e"} }
	r.kill()
	a, b, c := r.create("a"), r.create("b"), r.create("c")
	for _, ino := range []inode.Ino{a, b, c} {
		r.write(ino, 0, noise(3000))
	}
	r.flush()
	mode := uint32(0o600)
	for range 3 {
		mode ^= 0o44
		_, err := r.tree.SetAttr(namespace.Op{}, a, namespace.Patch{Mode: &mode})
		r.ok(err)
		r.flush()
	}
	want := noise(3000)
	r.write(b, 0, want)
	r.flush()
	r.holds("b", want)
	r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, "c"))
	r.flush()
	r.wantKeys("a", "b")
	r.settled()
}

// halfLiar answers only completions of uploads with an ETag that the object does not have.
type halfLiar struct{ liar }

func (l *halfLiar) Put(ctx context.Context, key s3.Key, body s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	return l.Bucket.Put(ctx, key, body, attr, cond)
}

// That a server names the ETags of small objects says nothing of large ones.
func TestWrongETagsOfUploads(t *testing.T) {
	r := newRig(t, small)
	r.server = func(b s3.Bucket) s3.Bucket { return &halfLiar{liar{b, "d41d8cd98f00b204e9800998ecf8427e"}} }
	r.kill()
	a, b := r.create("tiny"), r.create("large")
	large := noise(200 << 10)
	r.write(a, 0, noise(3000))
	r.write(b, 0, large)
	r.flush()
	r.write(a, 0, noise(3000))
	r.flush()
	r.store.Evict(1 << 30)
	r.write(b, 5, []byte("changed"))
	copy(large[5:], "changed")
	r.flush()
	r.holds("large", large)
	r.wantKeys("large", "tiny")
}
