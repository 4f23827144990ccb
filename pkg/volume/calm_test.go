package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

// synced makes or changes a file and waits for its fsync.
func (m *member) synced(name, content string) {
	m.t.Helper()
	m.wrote(name, content)
	if err := m.fsync(name); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) fsync(name string) error {
	m.t.Helper()
	e, err := m.fs.Lookup(m.t.Context(), who, inode.Root, name)
	if err != nil {
		m.t.Fatal(err)
	}
	return m.fs.Fsync(m.t.Context(), who, e.Attr.Ino, 0, false)
}

// records is a script that counts the writes of the lease, and does with each what act says; nil lets all pass.
func (m *member) records(act func(n int) s3fault.Action) *atomic.Int32 {
	var n atomic.Int32
	m.faulty(func(op s3fault.Op) s3fault.Action {
		if op.Name != "Put" || op.Key != volmeta.LeaseKey("") {
			return s3fault.Action{}
		}
		i := n.Add(1)
		if act == nil {
			return s3fault.Action{}
		}
		return act(int(i))
	})
	return &n
}

// As soon as the bucket has all, and nothing was changed for leaseCalm, the lease says clean. A file a minute costs two
// records, one that says dirty and one that says clean.
func TestLeaseTurnsClean(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		n := a.records(func(int) s3fault.Action { return s3fault.Delay(10 * time.Millisecond) })
		for i := range 5 {
			a.wrote("f", fmt.Sprint("content ", i))
			synctest.Wait() // its record is under way
			if err := a.fsync("f"); err != nil {
				t.Fatal(err)
			}
			want(t, b, "a", 1, volmeta.LeaseDirty)
			if err := a.executor.Flush(t.Context(), 0, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(leaseCalm - 10*time.Millisecond)
			want(t, b, "a", 1, volmeta.LeaseDirty)
			time.Sleep(30 * time.Millisecond)
			want(t, b, "a", 1, volmeta.LeaseClean)
			time.Sleep(time.Minute)
		}
		if n := n.Load(); n != 10 {
			t.Errorf("%d records for 5 files", n)
		}
		a.end()
	})
}

// A database that syncs all the time pays for the renewals alone, though the bucket has all between two syncs.
func TestBusyLeaseStaysDirty(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a")
		a.spec.Options.Settle, a.spec.Options.Fsync = time.Microsecond, "bucket"
		a.mounted()
		n := a.records(nil)
		begun := time.Now()
		clean := 0
		for i := 0; time.Since(begun) < 2*leaseRenew; i++ {
			a.synced("f", fmt.Sprint("content ", i))
			if a.executor.Status().Queue == 0 {
				clean++
			}
			time.Sleep(10 * time.Millisecond)
		}
		if n := n.Load(); n > 4 || clean < 1000 {
			t.Errorf("%d records in %v; the bucket had all %d times", n, 2*leaseRenew, clean)
		}
		a.end()
	})
}

// A drain that ends with nothing left has the lease say so, once: it waits a little for the record, and what becomes of that is not
// its error.
func TestDrainSaysClean(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		drain := func() time.Duration {
			t.Helper()
			begun := time.Now()
			if err := a.fs.FlushTree(t.Context(), inode.Root, nil); err != nil {
				t.Error(err)
			}
			return time.Since(begun)
		}
		a.synced("f", "hello")
		drain()
		want(t, b, "a", 1, volmeta.LeaseClean)
		n := a.records(func(int) s3fault.Action { return s3fault.Delay(time.Second) })
		if took := drain(); took > 0 || n.Load() > 0 {
			t.Errorf("of a clean volume: %v, %d records", took, n.Load())
		}
		a.synced("f", "slow")
		if took := drain(); took != time.Second {
			t.Errorf("took %v", took)
		}
		want(t, b, "a", 1, volmeta.LeaseClean)

		a.script.Store(nil)
		a.synced("f", "silent")
		a.records(func(int) s3fault.Action { return s3fault.Delay(time.Hour) })
		if took := drain(); took != admitWait {
			t.Errorf("took %v of a server that is silent", took)
		}
		time.Sleep(leaseTry)
		if took := drain(); took > 0 {
			t.Errorf("took %v of a server that is known to be silent", took)
		}
		a.script.Store(nil)
		time.Sleep(leaseTry + 2*maxPause)
		want(t, b, "a", 1, volmeta.LeaseClean)

		a.synced("f", "refused")
		a.records(func(int) s3fault.Action { return s3fault.FailBefore(s3.ErrAuth) })
		if took := drain(); took > 0 {
			t.Errorf("took %v of a server that refuses it", took)
		}
		want(t, b, "a", 1, volmeta.LeaseDirty)
		a.script.Store(nil)
		time.Sleep(2 * maxPause)
		want(t, b, "a", 1, volmeta.LeaseClean)
		a.end()
	})
}

// A change that is made while the lease is about to say clean: its fsync returns when it says dirty again.
func TestChangeWhileTheLeaseTurnsClean(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		a.synced("f", "hello")
		a.records(func(n int) s3fault.Action {
			if n == 1 {
				return s3fault.Delay(2 * time.Second)
			}
			return s3fault.Action{}
		})
		if err := a.executor.Flush(t.Context(), 0, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(leaseCalm + time.Second)
		want(t, b, "a", 1, volmeta.LeaseDirty) // the clean one is under way
		begun := time.Now()
		a.synced("f", "again")
		want(t, b, "a", 1, volmeta.LeaseDirty)
		if took := time.Since(begun); took != time.Second {
			t.Errorf("an fsync took %v", took)
		}
		a.end()
	})
}

// A change that is made and synced after an attempt has looked, and after a drain that is slow has looked, is in the record.
func TestChangeBetweenLookAndRecord(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		var changed, armed atomic.Bool
		var looks atomic.Int32
		slow := make(chan struct{})
		a.lease.dirty = func() (int, int64) { // the change is in the journal or not
			n := 0
			if changed.Load() {
				n = 1
			}
			if !armed.Load() {
				return n, 0
			}
			switch looks.Add(1) {
			case 1: // the drain's
				<-slow
			case 3: // the attempt's, after one that found the volume calm
				changed.Store(true)
				if err := a.lease.announce(t.Context()); err != nil {
					t.Error(err)
				}
				close(slow)
				time.Sleep(time.Millisecond)
			}
			return n, 0
		}
		if err := a.lease.admit(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		want(t, b, "a", 1, volmeta.LeaseDirty)
		armed.Store(true)
		var drain sync.WaitGroup
		drain.Go(func() { a.lease.drained(t.Context()) })
		time.Sleep(leaseCalm + time.Second)
		if !changed.Load() {
			t.Fatal("the test tested nothing")
		}
		want(t, b, "a", 1, volmeta.LeaseDirty)
		drain.Wait()
		armed.Store(false)
		changed.Store(false)
		a.end()
	})
}

// tardy is a server that applies a PUT of the lease long after it was given up.
type tardy struct {
	*s3mem.Bucket

	mu     sync.Mutex
	armed  bool   // guarded by mu: it is the next one
	late   func() // guarded by mu: applies it
	before bool   // guarded by mu: it is applied right before the next one
}

func (b *tardy) Put(ctx context.Context, key s3.Key, body s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	if key != volmeta.LeaseKey("") {
		return b.Bucket.Put(ctx, key, body, attr, cond)
	}
	b.mu.Lock()
	armed, before := b.armed, b.before
	b.armed, b.before = false, false
	if armed {
		b.late = func() { _, _ = b.Bucket.Put(context.WithoutCancel(ctx), key, body, attr, cond) } // nobody hears of it
	}
	late := b.late
	b.mu.Unlock()
	if armed {
		return s3.Info{}, s3.ErrUnavailable
	}
	if before {
		late()
	}
	return b.Bucket.Put(ctx, key, body, attr, cond)
}

// A clean record whose answer was lost, and that the server applies only when changes were made and synced since, does not
// replace the dirty one; nor does one that gets in its way make an fsync believe that it said dirty.
func TestLateCleanRecord(t *testing.T) {
	for name, before := range map[string]bool{"after the dirty one": false, "before it": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, mem *s3mem.Bucket) {
				b := &tardy{Bucket: mem}
				a := newMember(t, b, "a").mounted()
				a.synced("f", "hello")
				b.armed = true
				drained(t, a.core)
				if b.late == nil || b.armed {
					t.Fatal("the test tested nothing")
				}
				b.before = before
				begun := time.Now()
				a.synced("f", "again")
				if took := time.Since(begun); took > 2*minPause {
					t.Errorf("an fsync took %v, more than one attempt", took)
				}
				want(t, b, "a", 1, volmeta.LeaseDirty)
				b.late()
				want(t, b, "a", 1, volmeta.LeaseDirty)
				if a.told() != "" {
					t.Error(a.told())
				}
				drained(t, a.core)
				a.end()
				want(t, b, "a", 1, volmeta.LeaseReleased)
			})
		})
	}
}

// An fsync whose record finds the lease in other hands fails: it is not acknowledged before that is known.
func TestFsyncOfALostLease(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		l, tag, err := volmeta.ReadLease(t.Context(), b, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := volmeta.BreakLease(t.Context(), b, "", l, tag, time.Now()); err != nil {
			t.Fatal(err)
		}
		a.records(func(int) s3fault.Action { return s3fault.Delay(time.Second) })
		a.wrote("f", "hello")
		if err := a.fsync("f"); vfs.Errno(err) != syscall.EIO {
			t.Errorf("an fsync: %v", err)
		}
		a.end()
	})
}

// A mount that ends while the server is away, with changes that were all made since the lease said clean, leaves a lease that
// says so: a person hears of it, once.
func TestCleanLeaseOfAMountThatEndsWithoutTheServer(t *testing.T) {
	for name, wait := range map[string]time.Duration{"soon": time.Second, "late": 2 * leaseTTL} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *s3mem.Bucket) {
				a := newMember(t, b, "a").mounted()
				a.wrote("f", "hello")
				drained(t, a.core)
				a.faulty(func(op s3fault.Op) s3fault.Action {
					if op.Name == "Put" || op.Key == volmeta.LeaseKey("") {
						return s3fault.FailBefore(nil)
					}
					return s3fault.Action{}
				})
				time.Sleep(wait)
				a.wrote("f", "again")
				time.Sleep(time.Second)
				a.end()
				want(t, b, "a", 1, volmeta.LeaseClean)
				if n := strings.Count(a.told(), string(ReasonUnguarded)); n != 1 || !strings.Contains(a.told(), "/cache/of/a") {
					t.Errorf("told %d times: %s", n, a.told())
				}
				a.script.Store(nil)
				a.mounted()
				want(t, b, "a", 2, volmeta.LeaseDirty)
				drained(t, a.core)
				a.end()
			})
		})
	}
}

// Of two nodes that take the lease one learns of the other, whatever the server makes of conditions: of all that is there when
// it looks, right before its own record.
func TestTwoNodesOnAnyServer(t *testing.T) {
	for name, c := range map[string]struct {
		quirk s3mem.Quirk
		last  string
	}{"honoured": {s3mem.Honours, "Put"}, "ignored": {s3mem.Ignores, "Head"}, "refused": {s3mem.Refuses, "Head"}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *s3mem.Bucket) {
				b.Quirks = s3mem.Quirks{s3.PutIfMatch: c.quirk, s3.PutIfNoneMatch: c.quirk}
				a, other := newMember(t, b, "a"), newMember(t, b, "b")
				var once sync.Once
				a.faulty(func(op s3fault.Op) s3fault.Action {
					if op.Name == c.last && op.Key == volmeta.LeaseKey("") {
						once.Do(func() { other.mounted() })
					}
					return s3fault.Action{}
				})
				if err := a.mount(); !errors.Is(err, ErrLeased) || !strings.Contains(err.Error(), "node b") {
					t.Errorf("the slower one: %v", err)
				}
				want(t, b, "b", 1, volmeta.LeaseClean)
				other.synced("f", "hello")
				drained(t, other.core)
				other.end()
				a.mounted()
				want(t, b, "a", 2, volmeta.LeaseClean)
				a.end()
			})
		})
	}
}

// What the server supports is asked behind the fence, too: nothing is written for it later than TTL less the margin after the lease
// was last had, or when the machine slept. A mount without changes does not ask for the lease for its sake, and goes on
// with it when it has changes; it never makes the lease say dirty.
func TestProbeIsFenced(t *testing.T) {
	for name, x := range map[string]struct{ sleeps, ends bool }{"slow": {}, "slept": {sleeps: true}, "ends": {ends: true}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *s3mem.Bucket) {
				a := newMember(t, b, "a")
				a.spec.Server = "http://server"
				var records atomic.Int32
				a.faulty(func(op s3fault.Op) s3fault.Action {
					if strings.HasPrefix(string(op.Key), ".csi-s3/probe/") {
						return s3fault.Delay(3 * time.Second)
					}
					if op.Name == "Put" && op.Key == volmeta.LeaseKey("") {
						records.Add(1)
					}
					return s3fault.Action{}
				})
				a.mounted()
				if x.sleeps {
					time.Sleep(time.Second)
					a.skew.Add(int64(leaseTTL)) // no timer has fired
				}
				time.Sleep(time.Hour)
				sent := a.requests()
				switch last := sent[len(sent)-1]; {
				case x.sleeps && last > time.Second, last > leaseTTL-leaseMargin:
					t.Errorf("a request began after %v", last)
				case !x.sleeps && len(sent) < 8:
					t.Errorf("%d requests: the test tested nothing", len(sent))
				}
				if n := records.Load(); n != 1 {
					t.Errorf("%d records of the lease of a mount that changes nothing", n)
				}
				a.script.Store(nil)
				if x.ends {
					begun := time.Now()
					a.end()
					if took := time.Since(begun); took > time.Second {
						t.Errorf("the end waits %v for a probe that waits for the lease", took)
					}
					return
				}
				a.wrote("f", "hello")
				time.Sleep(3 * time.Minute) // what was broken off is tried again
				want(t, b, "a", 1, volmeta.LeaseDirty)
				if _, err := b.Head(t.Context(), ".csi-s3/probe.json"); err != nil {
					t.Error(err)
				}
				drained(t, a.core)
				a.end()
			})
		})
	}
}
