package volume

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

// An attempt that has looked before a change says dirty, however long it takes from the look to the decision.
func TestLeaseLooksBeforeChange(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a")
		var armed atomic.Bool
		var looks atomic.Int64
		synced := make(chan struct{})
		a.fit = func(l *lease) {
			real := l.dirty
			l.dirty = func() (int, int64) {
				n, m := real()
				// The first is of look, the second one of the attempt.
				if n == 0 && armed.Load() && looks.Add(1) == 2 {
					armed.Store(false)
					a.synced("f", "again")
					close(synced)
					time.Sleep(leaseCalm + time.Millisecond) // the process is stopped
				}
				return n, m
			}
		}
		a.mounted().synced("f", "hello")
		if err := a.executor.Flush(t.Context(), 0, nil); err != nil {
			t.Fatal(err)
		}
		armed.Store(true)
		<-synced
		time.Sleep(leaseCalm + 500*time.Millisecond)
		synctest.Wait()
		l, _, err := volmeta.ReadLease(t.Context(), b, "")
		n, _ := a.lease.dirty()
		if err != nil || l.State != volmeta.LeaseDirty && n > 0 {
			t.Errorf("%s, %d changes that an fsync has covered, %v", l.State, n, err)
		}
	})
}

// An fsync is not acknowledged between the loss of the lease and the end of write-back.
func TestFsyncWhileTheLeaseIsLost(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a")
		acked := make(chan error, 1)
		a.fit = func(l *lease) {
			real := l.forfeit
			l.forfeit = func(err error) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				e, lerr := a.fs.Lookup(ctx, who, inode.Root, "f")
				if lerr != nil {
					t.Error(lerr)
				}
				acked <- a.fs.Fsync(ctx, who, e.Attr.Ino, 0, false)
				real(err)
			}
		}
		a.mounted().synced("f", "hello")
		if err := a.fs.FlushTree(t.Context(), inode.Root, nil); err != nil {
			t.Fatal(err)
		}
		want(t, b, "a", 1, volmeta.LeaseClean)
		l, tag, err := volmeta.ReadLease(t.Context(), b, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := volmeta.BreakLease(t.Context(), b, "", l, tag, time.Now()); err != nil {
			t.Fatal(err)
		}
		a.wrote("f", "lost")
		if <-acked == nil {
			t.Error("the fsync was acknowledged: the lease never said dirty, and is lost")
		}
	})
}

// An unlinked file that a program has open keeps no other node from the volume when the mount has ended.
func TestUnlinkedFileIsNotUnsaved(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		e, _, err := a.fs.Create(t.Context(), who, inode.Root, "tmp", 0o644, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.fs.Write(t.Context(), who, e.Attr.Ino, 0, []byte("temporary"), 0); err != nil {
			t.Fatal(err)
		}
		if err := a.fs.Unlink(t.Context(), who, inode.Root, "tmp"); err != nil {
			t.Fatal(err)
		}
		if err := a.fs.FlushTree(t.Context(), inode.Root, nil); err != nil {
			t.Fatal(err)
		}
		a.end()
		l, _, err := volmeta.ReadLease(t.Context(), b, "")
		t.Log(l.State, l.DirtyBytes, err)
		if l.State != volmeta.LeaseReleased {
			t.Errorf("lease: %s", l.State)
		}
	})
}

// What the server says of the lease's record is not taken for what it says of a request that was not sent.
func TestLeaseRecordIsGone(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		if err := b.Delete(t.Context(), volmeta.LeaseKey("")); err != nil {
			t.Fatal(err)
		}
		_, err := fenced{a.core.bucket, a.lease, false}.Put(t.Context(), "x", s3.Body{}, s3.Attributes{}, s3.Condition{})
		t.Log(err)
		if errors.Is(err, s3.ErrNotExist) || errors.Is(err, s3.ErrPrecondition) {
			t.Errorf("the request was not sent: %v", err)
		}
	})
}

// A disk that fails one file while it is sent fails that file, and not the volume.
func TestFileFailsWhileItIsSent(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a")
		var bad atomic.Bool
		c, err := openOn(diskfault.New(a.disk, func(op diskfault.Op) error {
			if bad.Load() && op.Name == "Sync" && strings.HasPrefix(op.Path, "data/") {
				bad.Store(false)
				return syscall.EIO
			}
			return nil
		}), "first", a.spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		c.start(context.Background())
		a.core = c
		a.synced("f", "hello")
		var once sync.Once
		a.faulty(func(op s3fault.Op) s3fault.Action {
			if op.Name == "Put" && op.Key == "f" {
				once.Do(func() {
					a.wrote("f", "more, and longer")
					bad.Store(true)
					t.Log("fsync of f:", a.fsync("f"))
				})
			}
			return s3fault.Action{}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		t.Log(a.executor.Flush(ctx, 0, nil))
		if err := a.write("g", "another file"); err != nil {
			t.Fatalf("write of another file: %v", err)
		}
		if err := a.fsync("g"); err != nil {
			t.Fatalf("fsync of another file: %v", err)
		}
	})
}
