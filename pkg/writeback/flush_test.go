package writeback_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// A flush waits for what was changed before it also when an upload fails during which more was written.
func TestFlushAfterFailedUpload(t *testing.T) {
	r := newRig(t, small)
	ino := r.create("f")
	r.write(ino, 0, []byte("first"))
	var once sync.Once
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Put" {
			once.Do(func() { r.write(ino, 5, []byte("second")) })
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	err := r.exec.Flush(ctx, ino, nil)
	_, herr := r.bucket.Head(t.Context(), "f")
	if err == nil && herr != nil {
		t.Fatalf("Flush succeeded, the bucket has nothing: %v", herr)
	}
}

// A flush waits for all names of a file, also when more is written while the first of them gets the bytes.
func TestFlushWaitsForAllNames(t *testing.T) {
	r := newRig(t, small)
	ino := r.create("f")
	r.write(ino, 0, []byte("old"))
	r.link(ino, "g")
	r.flush()
	r.holds("g", []byte("old"))
	r.write(ino, 0, []byte("new"))
	var once sync.Once
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Put" {
			once.Do(func() { r.write(ino, 3, []byte(", newer")) })
		}
		return s3fault.Action{}
	})
	r.ok(r.exec.Flush(t.Context(), ino, nil))
	if g := string(r.get("g")); g == "old" {
		t.Errorf("f has %q, g has %q", r.get("f"), g)
	}
}

// What a program changes while its file gets a new name is no reason to say that the old name is gone.
func TestFlushWaitsForOldName(t *testing.T) {
	r := newRig(t, small)
	ino := r.create("f")
	r.write(ino, 0, []byte("old"))
	r.flush()
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "f", inode.Root, "g", 0))
	var once sync.Once
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Copy" || op.Name == "Put" {
			once.Do(func() { r.write(ino, 3, []byte(", newer")) })
		}
		return s3fault.Action{}
	})
	r.ok(r.exec.Flush(t.Context(), 0, nil))
	t.Log(r.keys())
	if len(r.keys()) != 1 {
		t.Errorf("%q", r.keys())
	}
}
