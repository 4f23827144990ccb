package writeback_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// A file that is written all the time gets to the bucket under all its names, and a flush ends.
func TestFlushOfHotFileWithTwoNames(t *testing.T) {
	for _, attributes := range []bool{false, true} {
		t.Run(fmt.Sprintf("attributes %v", attributes), func(t *testing.T) {
			r := newRig(t, small)
			ino := r.create("f")
			r.write(ino, 0, []byte("old"))
			r.link(ino, "g")
			r.flush()
			var n atomic.Int32
			change := func() {
				if attributes {
					mode := uint32(0o600 | n.Add(1)&0o77)
					_, err := r.tree.SetAttr(namespace.Op{}, ino, namespace.Patch{Mode: &mode})
					r.ok(err)
					return
				}
				r.write(ino, 0, fmt.Appendf(nil, "new %d", n.Add(1)))
			}
			r.faulty(func(op s3fault.Op) s3fault.Action {
				if op.Name == "Put" || op.Name == "Copy" {
					change()
				}
				return s3fault.Action{}
			})
			change()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			r.ok(r.exec.Flush(ctx, ino, nil))
			r.faulty(nil)
			if g := string(r.get("g")); g == "old" && !attributes {
				t.Errorf("f has %q, g has %q", r.get("f"), g)
			}
			r.flush()
			r.settled()
		})
	}
}

// The root's attributes change all the time.
func TestFlushOfHotRoot(t *testing.T) {
	r := newRig(t, small)
	var n atomic.Uint32
	change := func() {
		mode := inode.ModeDir | 0o700 | n.Add(1)&0o77
		_, err := r.tree.SetAttr(namespace.Op{}, inode.Root, namespace.Patch{Mode: &mode})
		r.ok(err)
	}
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Put" || op.Name == "Copy" {
			change()
		}
		return s3fault.Action{}
	})
	change()
	r.ok(r.tryFlush(5 * time.Second))
}

// Where old names cannot be removed, new bytes are sent all the same.
func TestOldNameThatCannotGo(t *testing.T) {
	r := newRig(t, small)
	ino := r.create("f")
	r.write(ino, 0, []byte("old"))
	r.flush()
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Delete" || op.Name == "DeleteIf" {
			return s3fault.FailBefore(s3.ErrAuth)
		}
		return s3fault.Action{}
	})
	r.ok(r.tree.Rename(namespace.Op{}, inode.Root, "f", inode.Root, "g", 0))
	_ = r.tryFlush(time.Second) // it cannot end
	r.holds("g", []byte("old"))
	r.write(ino, 0, []byte("new"))
	_ = r.tryFlush(3 * time.Second)
	r.holds("g", []byte("new"))
	r.faulty(nil)
	r.flush()
	r.wantKeys("g")
}

// A flush goes on at once also where the tasks of other files end all the time.
func TestFlushAmongManyTasks(t *testing.T) {
	r := newRig(t, small)
	ino := r.create("f")
	other := r.create("other")
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			r.write(other, 0, []byte("x"))
			r.tree.UrgeInode(other)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	r.write(ino, 0, []byte("first"))
	began, goOn := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	r.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name == "Put" && op.Key == "f" && once.CompareAndSwap(false, true) {
			close(began)
			<-goOn
		}
		return s3fault.Action{}
	})
	r.tree.UrgeInode(ino)
	<-began
	r.write(ino, 0, []byte("other"))
	time.AfterFunc(100*time.Millisecond, func() { close(goOn) })
	err := r.exec.Flush(ctx, ino, nil)
	cancel()
	<-done
	r.ok(err)
	r.holds("f", []byte("other"))
}

// A file that is written all the time and has two names is sent as often as one with one name.
func TestHotFileWithTwoNamesIsPaced(t *testing.T) {
	r := newRig(t, small)
	r.names.Settle, r.names.MaxAge = 200*time.Millisecond, 200*time.Millisecond
	r.kill()
	ino := r.create("f")
	r.write(ino, 0, []byte("old"))
	r.link(ino, "g")
	r.flush()
	r.faulty(func(s3fault.Op) s3fault.Action { return s3fault.Delay(5 * time.Millisecond) })
	before := r.faults.Count("Put") + r.faults.Count("Copy")
	end := time.Now().Add(2 * time.Second)
	for i := 0; time.Now().Before(end); i++ {
		r.write(ino, 0, fmt.Appendf(nil, "new %d", i))
		time.Sleep(time.Millisecond)
	}
	if n := r.faults.Count("Put") + r.faults.Count("Copy") - before; n > 30 {
		t.Errorf("%d requests", n)
	}
	if string(r.get("g")) == "old" {
		t.Error("the second name has what it had")
	}
}
