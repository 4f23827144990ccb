package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

// A mount that ends before its lease says dirty says so at the end: no other node takes over what was acknowledged.
func TestLeaseOfAMountThatEndsEarly(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a, other := newMember(t, b, "a").mounted(), newMember(t, b, "b")
		other.spec.LeaseWait = 2 * leaseTTL
		var asked atomic.Int32
		a.faulty(func(op s3fault.Op) s3fault.Action {
			if op.Name == "Put" && op.Key == volmeta.LeaseKey("") && asked.Add(1) == 1 {
				return s3fault.Delay(time.Hour) // until the end cuts it off
			}
			return s3fault.Action{}
		})
		a.wrote("f", "hello")
		synctest.Wait()
		want(t, b, "a", 1, volmeta.LeaseClean)
		a.end()
		want(t, b, "a", 1, volmeta.LeaseDirty)
		if err := other.mount(); !errors.Is(err, ErrHeld) {
			t.Errorf("another node: %v", err)
		}
		a.mounted()
		drained(t, a.core)
		a.end()
		want(t, b, "a", 2, volmeta.LeaseReleased)
	})
}

// An fsync is acknowledged when the lease says dirty; while the server does not answer it waits a few seconds once, and is
// interruptible. One of a file that the bucket has asks for nothing.
func TestFsyncWaitsForTheLease(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a")
		a.spec.Options.Settle = time.Hour
		a.mounted()
		slow := func(d time.Duration) {
			a.faulty(func(op s3fault.Op) s3fault.Action {
				if op.Name == "Put" && op.Key == volmeta.LeaseKey("") {
					return s3fault.Delay(d)
				}
				return s3fault.Action{}
			})
		}
		fsync := func(ctx context.Context) (took time.Duration, err error) {
			e, err := a.fs.Lookup(t.Context(), who, inode.Root, "f")
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			err = a.fs.Fsync(ctx, who, e.Attr.Ino, 0, false)
			return time.Since(begun), err
		}
		slow(2 * time.Second)
		a.wrote("f", "hello")
		if took, err := fsync(t.Context()); err != nil || took != 2*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		want(t, b, "a", 1, volmeta.LeaseDirty)
		drained(t, a.core)
		time.Sleep(3 * leaseRenew)
		want(t, b, "a", 1, volmeta.LeaseClean)
		before := record(t, b).Serial
		if took, err := fsync(t.Context()); err != nil || took != 0 {
			t.Errorf("nothing to save: %v after %v", err, took)
		}
		time.Sleep(3 * leaseRenew)
		if record(t, b).Serial != before {
			t.Error("an fsync of what the bucket has wrote the lease")
		}

		time.Sleep(leaseTTL)
		a.wrote("f", "other")
		drained(t, a.core)
		time.Sleep(3 * leaseRenew)
		slow(time.Hour)
		a.wrote("f", "again")
		ended, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if took, err := fsync(ended); !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
			t.Errorf("interrupted: %v after %v", err, took)
		}
		if took, err := fsync(t.Context()); err != nil || took > admitWait {
			t.Errorf("without the server: %v after %v", err, took)
		}
		time.Sleep(2 * leaseTry)
		if took, err := fsync(t.Context()); err != nil || took != 0 {
			t.Errorf("the server is known to be away: %v after %v", err, took)
		}
		a.script.Store(nil)
		drained(t, a.core)
		a.end()
	})
}

// A change that is made long after it was admitted is in the lease all the same, and no attempt that looked before it was
// made says clean after its fsync.
func TestLateChangeIsInTheLease(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a")
		a.spec.Options.Settle = time.Hour // nothing is sent by itself
		a.mounted()
		var late atomic.Int32
		var looking atomic.Pointer[func()]
		a.lease.dirty = func() (int, int64) { // the bytes are nobody's; the changes are in the journal or not
			n := int(late.Load())
			if f := looking.Swap(nil); f != nil {
				(*f)()
			}
			return n, 0
		}
		if err := a.lease.admit(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3*leaseRenew + time.Second)
		want(t, b, "a", 1, volmeta.LeaseClean)
		late.Store(1)
		time.Sleep(3 * leaseRenew)
		want(t, b, "a", 1, volmeta.LeaseDirty)
		late.Store(0)
		time.Sleep(3 * leaseRenew)
		want(t, b, "a", 1, volmeta.LeaseClean)

		if err := a.lease.admit(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		want(t, b, "a", 1, volmeta.LeaseDirty)
		change := func() {
			late.Store(1)
			if err := a.lease.announce(t.Context()); err != nil {
				t.Error(err)
			}
		}
		looking.Store(&change) // for the renewal
		time.Sleep(leaseRenew)
		if late.Load() != 1 {
			t.Fatal("the test tested nothing")
		}
		want(t, b, "a", 1, volmeta.LeaseDirty)
		late.Store(0)
		a.end()
	})
}

// Changes of a mount whose lease lapsed are taken while the server is away; a person hears once for each such time that
// another node may overtake them. Nobody hears of a mount that had unsaved changes before: its lease says so.
func TestIdleMountWithoutTheServer(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		away := func(op s3fault.Op) s3fault.Action { // but for what looks a name up, which would wait
			if op.Name == "Put" || op.Key == volmeta.LeaseKey("") {
				return s3fault.FailBefore(nil)
			}
			return s3fault.Action{}
		}
		times := func(want int) {
			t.Helper()
			if n := strings.Count(a.told(), string(ReasonUnguarded)); n != want {
				t.Errorf("told %d times, want %d: %s", n, want, a.told())
			}
		}
		a.wrote("f", "hello")
		time.Sleep(time.Second)
		want(t, b, "a", 1, volmeta.LeaseDirty)
		a.faulty(away)
		time.Sleep(2 * leaseTTL)
		a.wrote("f", "HELLO")
		times(0)
		a.script.Store(nil)
		drained(t, a.core)
		for n := range 2 {
			time.Sleep(3 * leaseTTL)
			want(t, b, "a", 1, volmeta.LeaseClean)
			times(n)
			a.faulty(away)
			for i := range 3 {
				a.wrote("f", fmt.Sprint("again", i))
				time.Sleep(time.Second)
			}
			times(n + 1)
			a.script.Store(nil)
			drained(t, a.core)
		}
		if !strings.Contains(a.told(), "/cache/of/a") {
			t.Errorf("told: %s", a.told())
		}
		a.end()
	})
}
