package volume

import (
	"bytes"
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

	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// member is a node that may mount the volume of a bucket.
type member struct {
	*core
	t      *testing.T
	spec   Spec
	disk   *diskmem.FS
	wire   *s3fault.Bucket
	script atomic.Pointer[func(s3fault.Op) s3fault.Action]
	skew   atomic.Int64 // of its clock, in nanoseconds
	fit    func(*lease) // changes the lease of a mount before it is kept

	mu        sync.Mutex
	incidents []string        // guarded by mu
	sent      []time.Duration // guarded by mu: when requests that change the bucket began, after born
	born      time.Time
}

// newMember makes a node, with an empty cache.
func newMember(t *testing.T, b s3.Bucket, node string) *member {
	m := &member{t: t, disk: diskmem.New(), wire: s3fault.New(b), born: time.Now()}
	m.wire.Fault = func(op s3fault.Op) s3fault.Action {
		if op.Key != volmeta.LeaseKey("") && strings.Contains(" Put Copy Delete DeleteMany CreateUpload UploadPart CopyPart CompleteUpload AbortUpload ", " "+op.Name+" ") {
			m.mu.Lock()
			m.sent = append(m.sent, time.Since(m.born))
			m.mu.Unlock()
		}
		if f := m.script.Load(); f != nil {
			return (*f)(op)
		}
		return s3fault.Action{}
	}
	t.Cleanup(func() { // a bubble must be empty in the end
		if m.core != nil {
			abandoned(m.core)
		}
	})
	m.spec = spec(m.wire)
	m.spec.Node, m.spec.CacheDir = node, "/cache/of/"+node
	m.spec.sightings = &sightings{}
	now := clock()
	m.spec.tuning.clock = func() time.Duration { return now() + time.Duration(m.skew.Load()) }
	m.spec.Incident = func(reason Reason, message string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.incidents = append(m.incidents, fmt.Sprintf("%s: %s", reason, message))
	}
	return m
}

// mount is what Mount does, without the kernel.
func (m *member) mount() error {
	m.t.Helper()
	c, err := openOn(m.disk, "first", m.spec)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := c.acquire(m.t.Context(), m.spec.LeaseWait); err != nil {
		return errors.Join(err, c.close(m.t.Context()))
	}
	if m.fit != nil {
		m.fit(c.lease)
	}
	c.start(context.Background())
	m.core = c
	return nil
}

func (m *member) mounted() *member {
	m.t.Helper()
	if err := m.mount(); err != nil {
		m.t.Fatal(err)
	}
	return m
}

// end closes the volume.
func (m *member) end() {
	m.t.Helper()
	c := m.core
	m.core = nil
	closed(m.t, c)
}

// die is a kill: what the process left is on the disk, and nothing is sent any more.
func (m *member) die() {
	left := m.disk.Clone()
	m.faulty(func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(nil) })
	abandoned(m.core)
	m.disk, m.core = left, nil
	m.script.Store(nil)
}

func (m *member) faulty(f func(s3fault.Op) s3fault.Action) { m.script.Store(&f) }

// write makes or changes a file.
func (m *member) write(name, content string) error {
	e, err := m.fs.Lookup(m.t.Context(), who, inode.Root, name)
	if err != nil {
		if e, _, err = m.fs.Create(m.t.Context(), who, inode.Root, name, 0o644, 0); err != nil {
			return err
		}
	}
	_, err = m.fs.Write(m.t.Context(), who, e.Attr.Ino, 0, []byte(content), 0)
	return err
}

func (m *member) wrote(name, content string) {
	m.t.Helper()
	if err := m.write(name, content); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) told() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.incidents, "\n")
}

// requests are those that changed the bucket, the lease's left out.
func (m *member) requests() []time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]time.Duration(nil), m.sent...)
}

func record(t *testing.T, b s3.Bucket) volmeta.Lease {
	t.Helper()
	l, _, err := volmeta.ReadLease(context.Background(), b, "")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func want(t *testing.T, b s3.Bucket, holder string, epoch uint64, state volmeta.LeaseState) {
	t.Helper()
	if l := record(t, b); l.Holder != holder || l.Epoch != epoch || l.State != state {
		t.Fatalf("the lease is %+v; want %s, epoch %d, %s", l, holder, epoch, state)
	}
}

// bubble runs a test in virtual time.
func bubble(t *testing.T, test func(t *testing.T, b *s3mem.Bucket)) {
	t.Helper()
	views() // its goroutines live as long as the process, in no bubble
	synctest.Test(t, func(t *testing.T) { test(t, s3mem.New("bucket")) })
}

// The lease says dirty as soon as something is, how much that is, and is renewed meanwhile; then it says clean, is left alone,
// and is given back in the end.
func TestLeaseOfALife(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		want(t, b, "a", 1, volmeta.LeaseClean)
		a.wrote("f", "hello")
		time.Sleep(time.Second)
		want(t, b, "a", 1, volmeta.LeaseDirty)
		time.Sleep(leaseRenew)
		if l := record(t, b); l.DirtyBytes != 5 || l.TTLSeconds != 60 {
			t.Errorf("%+v", l)
		}
		before := record(t, b).Serial
		time.Sleep(10 * leaseRenew)
		if n := record(t, b).Serial - before; n < 9 || n > 11 {
			t.Errorf("%d renewals", n)
		}
		drained(t, a.core)
		time.Sleep(3 * leaseRenew)
		want(t, b, "a", 1, volmeta.LeaseClean)
		before = record(t, b).Serial
		time.Sleep(24 * time.Hour)
		if record(t, b).Serial != before {
			t.Error("a lease of a clean volume was renewed")
		}
		a.wrote("f", "again") // long after it lapsed
		want(t, b, "a", 1, volmeta.LeaseDirty)
		drained(t, a.core)
		a.end()
		want(t, b, "a", 1, volmeta.LeaseReleased)
		if got := contents(t, b)["f"]; got != "again" {
			t.Errorf("%q", got)
		}
	})
}

// A node that has unsaved changes keeps the volume, alive or dead, however long that takes; the refusal says all that a
// person needs.
func TestDirtyLeaseNeverExpires(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a, other := newMember(t, b, "a").mounted(), newMember(t, b, "b")
		a.wrote("f", "hello")
		time.Sleep(2 * leaseRenew)
		refused := func(when string) {
			t.Helper()
			err := other.mount()
			if !errors.Is(err, ErrHeld) {
				t.Fatalf("%s: %v", when, err)
			}
			for _, say := range []string{"node a", "5 bytes", "csi-s3 lease s3://bucket --break"} {
				if !strings.Contains(err.Error(), say) {
					t.Errorf("%s: the refusal does not say %q: %v", when, say, err)
				}
			}
		}
		refused("alive")
		a.die()
		for range 3 {
			time.Sleep(24 * time.Hour)
			refused("dead")
		}
		a.mounted() // the same cache: at once
		want(t, b, "a", 2, volmeta.LeaseDirty)
		drained(t, a.core)
		a.end()
		other.mounted()
		want(t, b, "b", 3, volmeta.LeaseClean)
		if contents(t, b)["f"] != "hello" {
			t.Error("the change is lost")
		}
		other.end()
	})
}

// takeover=after-ttl takes a dirty lease over, once it did not change for its TTL.
func TestTakeoverAfterTTL(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a, other := newMember(t, b, "a").mounted(), newMember(t, b, "b")
		other.spec.Options.Takeover, other.spec.LeaseWait = "after-ttl", 2*leaseTTL
		a.wrote("f", "hello")
		time.Sleep(time.Second)
		if err := other.mount(); !errors.Is(err, ErrLeased) {
			t.Fatalf("taken from a living node: %v", err)
		}
		a.die()
		died := time.Now()
		other.mounted()
		if took := time.Since(died); took < leaseTTL-leaseRenew-leasePoll || took > leaseTTL+2*leasePoll {
			t.Errorf("taken over after %v", took)
		}
		if err := a.mount(); !errors.Is(err, ErrGivenUp) {
			t.Errorf("the old holder: %v", err)
		}
		other.end()
	})
}

// A clean lease is taken over when this node, by its own clock, has seen it unchanged for its TTL: in one mount that waits
// so long or in several that do not; what the record says of time counts for nothing.
func TestCleanLeaseLapses(t *testing.T) {
	for name, renewed := range map[string]time.Time{"long ago": time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), "in the future": time.Date(2990, 1, 1, 0, 0, 0, 0, time.UTC)} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *s3mem.Bucket) {
				dead := volmeta.Lease{Epoch: 4, Holder: "a", Cache: "x", Serial: 9, State: volmeta.LeaseClean, TTLSeconds: 60, Renewed: renewed}
				if _, err := volmeta.WriteLease(t.Context(), b, "", dead, ""); err != nil {
					t.Fatal(err)
				}
				m := newMember(t, b, "b")
				begun := time.Now()
				tries := 1
				err := m.mount()
				for ; err != nil; tries++ {
					if !errors.Is(err, ErrLeased) || !strings.Contains(err.Error(), "node a") {
						t.Fatal(err)
					}
					time.Sleep(15 * time.Second)
					before := time.Now()
					err = m.mount()
					if took := time.Since(before); took > leaseWait+2*leasePoll {
						t.Errorf("a mount took %v", took)
					}
				}
				if took := time.Since(begun); took < leaseTTL || took > leaseTTL+30*time.Second || tries < 3 {
					t.Errorf("taken over after %v, %d tries", took, tries)
				}
				want(t, b, "b", 5, volmeta.LeaseClean)
				m.end()
			})
		})
	}
	t.Run("in one mount", func(t *testing.T) {
		bubble(t, func(t *testing.T, b *s3mem.Bucket) {
			a := newMember(t, b, "a").mounted()
			a.die()
			m := newMember(t, b, "b")
			m.spec.LeaseWait = 90 * time.Second
			begun := time.Now()
			m.mounted()
			if took := time.Since(begun); took < leaseTTL || took > leaseTTL+2*leasePoll {
				t.Errorf("took %v", took)
			}
			m.end()
		})
	})
}

// A broken lease stops a living holder: it sends nothing more, keeps its journal, refuses changes, and says who, what and
// what to do. The next node waits until that is sure.
func TestBrokenLease(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		a.wrote("saved", "old")
		drained(t, a.core)
		a.wrote("f", "hello")
		time.Sleep(time.Second)
		l, tag, err := volmeta.ReadLease(t.Context(), b, "")
		if err != nil {
			t.Fatal(err)
		}
		sent := len(a.requests())
		if err := volmeta.BreakLease(t.Context(), b, "", l, tag, time.Now()); err != nil {
			t.Fatal(err)
		}
		other := newMember(t, b, "b")
		other.spec.LeaseWait = 2 * leaseTTL
		broken := time.Now()
		other.mounted()
		if took := time.Since(broken); took < leaseTTL {
			t.Errorf("mounted after %v: the holder may still have sent something", took)
		}
		want(t, b, "b", 3, volmeta.LeaseClean)
		if err := a.executor.Flush(t.Context(), 0, nil); !errors.Is(err, writeback.ErrHalted) || !strings.Contains(err.Error(), "5 bytes") || !strings.Contains(err.Error(), "--break") {
			t.Errorf("a flush: %v", err)
		}
		if err := a.write("g", "x"); vfs.Errno(err) != syscall.EROFS {
			t.Errorf("a change: %v", err)
		}
		e, err := a.fs.Lookup(t.Context(), who, inode.Root, "f")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.fs.Fsync(t.Context(), who, e.Attr.Ino, 0, false); vfs.Errno(err) != syscall.EIO {
			t.Errorf("an fsync: %v", err)
		}
		if got, err := a.readAll(t.Context(), e.Attr.Ino); err != nil || string(got) != "hello" {
			t.Errorf("a read: %q, %v", got, err)
		}
		for _, say := range []string{string(ReasonLeaseLost), "5 bytes", "csi-s3 recover /cache/of/a", "csi-s3 lease --break"} {
			if !strings.Contains(a.told(), say) {
				t.Errorf("the event does not say %q: %s", say, a.told())
			}
		}
		if err := a.trouble(a.executor.Status()); class(err) != classLost {
			t.Errorf("the trouble: %v", err)
		}
		time.Sleep(time.Hour)
		if n := len(a.requests()); n != sent {
			t.Errorf("%d requests after the lease was broken", n-sent)
		}
		a.end()
		want(t, b, "b", 3, volmeta.LeaseClean) // it gave nothing back that is not its own
		other.end()
		if err := a.mount(); !errors.Is(err, ErrGivenUp) || !strings.Contains(err.Error(), "csi-s3 recover /cache/of/a") || !strings.Contains(err.Error(), "node b") {
			t.Errorf("mounted again: %v", err)
		}
		// All is there for csi-s3 recover.
		c, err := openOn(a.disk, "first", a.spec)
		if err != nil {
			t.Fatal(err)
		}
		if s := c.executor.Status(); s.DirtyBytes != 5 || s.Queue == 0 {
			t.Errorf("the journal was not kept: %+v", s)
		}
		closed(t, c)
	})
}

// An idle mount whose lease lapsed asks before it takes a change: one that another node followed takes none, so nothing
// acknowledged is stuck in it.
func TestIdleMountOvertaken(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		a.wrote("f", "hello")
		drained(t, a.core)
		time.Sleep(3 * leaseRenew)
		other := newMember(t, b, "b")
		other.spec.LeaseWait = 3 * leaseTTL
		other.mounted()
		sent := len(a.requests())
		if err := a.write("f", "HELLO"); vfs.Errno(err) != syscall.EROFS {
			t.Errorf("a write: %v", err)
		}
		if s := a.executor.Status(); s.Queue != 0 || s.DirtyBytes != 0 || len(a.requests()) != sent {
			t.Errorf("%+v", s)
		}
		if !strings.Contains(a.told(), "node b took the volume over (epoch 2)") {
			t.Errorf("told: %s", a.told())
		}
		drained(t, a.core) // there is nothing: an unstage succeeds
		a.end()
		other.end()
		a.mounted() // and nothing was given up
		a.end()
	})
}

// When the lease cannot be renewed, nothing begins after TTL less the margin, what runs is broken off by then, and all goes on
// when the server is back.
func TestFenceClosesInTime(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a")
		a.spec.Options.Settle = time.Millisecond
		a.mounted()
		a.wrote("f", "hello")
		time.Sleep(time.Second)
		drained(t, a.core)
		a.wrote("g", "slow")
		synctest.Wait()
		want(t, b, "a", 1, volmeta.LeaseDirty)
		last := time.Since(a.born) // at or after the last write of the lease
		// The server takes no lease any more, and no object comes to an end.
		a.faulty(func(op s3fault.Op) s3fault.Action {
			switch {
			case op.Key == volmeta.LeaseKey(""):
				return s3fault.FailBefore(nil)
			case op.Name == "Put":
				return s3fault.Delay(time.Hour)
			}
			return s3fault.Action{}
		})
		for i := range 100 {
			time.Sleep(time.Second)
			a.wrote(fmt.Sprint("h", i), "x") // nor does a program hear of it
			if s := a.executor.Status(); time.Since(a.born) > last+leaseTTL && len(a.lease.running) > 0 {
				t.Fatalf("%+v", s)
			}
		}
		if open, end := a.requests(), last+leaseTTL-leaseMargin; open[len(open)-1] > end {
			t.Errorf("a request began %v after the lease was last renewed", open[len(open)-1]-last)
		}
		if len(a.requests()) < 5 {
			t.Error("the test tested nothing")
		}
		if err := a.trouble(a.executor.Status()); !errors.Is(err, errUnleased) || !errors.Is(err, s3.ErrUnavailable) || errors.Is(err, context.Canceled) {
			t.Errorf("the trouble: %v", err)
		}
		a.script.Store(nil)
		drained(t, a.core)
		a.end()
		if got := contents(t, b); got["g"] != "slow" || len(got) != 102 {
			t.Errorf("%d objects", len(got))
		}
	})
}

// A machine that slept does not know that its timers are late: its clock says that the lease lapsed.
func TestSleptTooLong(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		a.wrote("f", "hello")
		time.Sleep(time.Second)
		want(t, b, "a", 1, volmeta.LeaseDirty)
		a.skew.Add(int64(leaseTTL)) // no timer has fired
		l, tag, err := volmeta.ReadLease(t.Context(), b, "")
		if err != nil {
			t.Fatal(err)
		}
		l.Holder, l.Cache, l.Epoch = "b", "other", 2
		if _, err := volmeta.WriteLease(t.Context(), b, "", l, tag); err != nil {
			t.Fatal(err)
		}
		if err := a.executor.Flush(t.Context(), 0, nil); !errors.Is(err, writeback.ErrHalted) || len(a.requests()) > 0 {
			t.Errorf("%v, %d requests", err, len(a.requests()))
		}
		a.end()
	})
}

// Of many nodes that want the lease at once exactly one gets it, whether its answer is lost or not.
func TestRaceForTheLease(t *testing.T) {
	for name, fault := range map[string]s3fault.Action{"answered": {}, "answers lost": s3fault.FailAfter(nil)} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				bubble(t, func(t *testing.T, b *s3mem.Bucket) {
					var won atomic.Int32
					var wg sync.WaitGroup
					members := make([]*member, 5)
					for i := range members {
						m := newMember(t, b, fmt.Sprint("n", i))
						m.faulty(func(op s3fault.Op) s3fault.Action {
							if op.Name == "Put" && op.Key == volmeta.LeaseKey("") {
								return fault
							}
							return s3fault.Action{}
						})
						members[i] = m
						wg.Go(func() {
							switch err := m.mount(); {
							case err == nil:
								won.Add(1)
							case !errors.Is(err, ErrLeased):
								t.Error(err)
							}
						})
					}
					wg.Wait()
					if won.Load() != 1 {
						t.Errorf("%d nodes have the lease", won.Load())
					}
					for _, m := range members {
						if m.core != nil {
							want(t, b, m.spec.Node, 1, volmeta.LeaseClean)
							m.end()
						}
					}
				})
			}
		})
	}
}

// While the server is away a cache that has held the lease is mounted, and sends nothing until it has it again; another
// cache is not mounted.
func TestMountWhileTheServerIsAway(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a")
		away := func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(nil) }
		a.faulty(away)
		if err := a.mount(); !errors.Is(err, s3.ErrUnavailable) {
			t.Fatalf("a new cache: %v", err)
		}
		a.script.Store(nil)
		a.mounted().wrote("f", "hello")
		a.die()
		a.faulty(away)
		a.mounted()
		if _, state := a.lease.state(); state != "waiting" {
			t.Errorf("the lease is %s", state)
		}
		a.wrote("f", "HELLO") // does not wait for the server
		time.Sleep(10 * time.Minute)
		a.script.Store(nil)
		drained(t, a.core)
		if contents(t, b)["f"] != "HELLO" {
			t.Error("the change is lost")
		}
		a.end()

		// The same, but another node was there meanwhile.
		a.mounted()
		a.end()
		other := newMember(t, b, "b").mounted()
		a.faulty(away)
		a.mounted()
		time.Sleep(time.Minute)
		a.script.Store(nil)
		time.Sleep(time.Minute)
		if err := a.write("f", "late"); vfs.Errno(err) != syscall.EROFS || !strings.Contains(a.told(), "node b") {
			t.Errorf("%v; told: %s", err, a.told())
		}
		a.end()
		other.end()
	})
}

// A mount whose disk cannot note that the cache has held the lease fails with the disk's error, and gives the lease back.
func TestLeaseThatCannotBeNoted(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a")
		var full atomic.Bool
		c, err := openOn(diskfault.New(a.disk, func(op diskfault.Op) error {
			if full.Load() && op.Name == "Rename" {
				return syscall.ENOSPC
			}
			return nil
		}), "first", a.spec)
		if err != nil {
			t.Fatal(err)
		}
		full.Store(true)
		if err := c.acquire(t.Context(), 0); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("mounted: %v", err)
		}
		full.Store(false)
		closed(t, c)
		want(t, b, "a", 1, volmeta.LeaseReleased)
		a.mounted().end()
	})
}

// Mounts that do not write, or do not write alone, need no lease.
func TestNoLease(t *testing.T) {
	for name, change := range map[string]func(s *Spec){
		"rwx": func(s *Spec) { s.Options.Access = "rwx" },
		"rox": func(s *Spec) { s.Options.Access, s.Options.ReadOnly = "rox", true },
		"ro":  func(s *Spec) { s.Options.ReadOnly = true },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *s3mem.Bucket) {
				a := newMember(t, b, "a")
				change(&a.spec)
				a.mounted()
				if name == "rwx" {
					a.wrote("f", "hello")
				}
				drained(t, a.core)
				a.end()
				if _, _, err := volmeta.ReadLease(t.Context(), b, ""); !errors.Is(err, s3.ErrNotExist) {
					t.Error(err)
				}
			})
		})
	}
}

// A record that is no lease, and one that may not be read, refuse the mount.
func TestUnknownLeaseIsNotAbsent(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		upload(t, b, string(volmeta.LeaseKey("")), "{}", s3.Attributes{})
		a := newMember(t, b, "a")
		if err := a.mount(); !errors.Is(err, volmeta.ErrFormat) {
			t.Error(err)
		}
		a.faulty(func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(s3.ErrAuth) })
		if err := a.mount(); !errors.Is(err, s3.ErrAuth) {
			t.Error(err)
		}
		body, _, err := b.Get(t.Context(), volmeta.LeaseKey(""), nil, "")
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		var text bytes.Buffer
		if _, err := text.ReadFrom(body); err != nil || text.String() != "{}" {
			t.Errorf("it was overwritten: %q, %v", &text, err)
		}
	})
}

// A lease that somebody removed is made again; the volume's end does not make it again.
func TestLeaseRemoved(t *testing.T) {
	bubble(t, func(t *testing.T, b *s3mem.Bucket) {
		a := newMember(t, b, "a").mounted()
		a.wrote("f", "hello")
		time.Sleep(time.Second)
		remove := func() {
			if err := b.Delete(t.Context(), volmeta.LeaseKey("")); err != nil {
				t.Fatal(err)
			}
		}
		remove()
		time.Sleep(leaseRenew + time.Second)
		want(t, b, "a", 2, volmeta.LeaseDirty)
		drained(t, a.core)
		time.Sleep(2 * leaseTTL)
		remove()
		a.end()
		if _, _, err := volmeta.ReadLease(t.Context(), b, ""); !errors.Is(err, s3.ErrNotExist) {
			t.Error(err)
		}
	})
}
