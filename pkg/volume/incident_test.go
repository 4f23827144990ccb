package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

// heard is what a core told.
type heard struct {
	mu  sync.Mutex
	all []string // guarded by mu: reason and message
}

func (h *heard) incident(reason Reason, message string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, string(reason)+": "+message)
}

func (h *heard) has(parts ...string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.all, func(line string) bool {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				return false
			}
		}
		return true
	})
}

// A trouble is told when it has lasted a minute, a broken disk at once, and both again only after a while.
func TestAlarm(t *testing.T) {
	away := fmt.Errorf("put: %w", s3.ErrUnavailable)
	broken := fmt.Errorf("%w: %w", cache.ErrPoisoned, disk.ErrIO)
	for _, c := range []struct {
		name string
		err  func(second int) error
		want map[int]Reason // by second
	}{
		{"none", func(int) error { return nil }, map[int]Reason{}},
		{"short", func(s int) error {
			if s%50 == 49 {
				return nil
			}
			return away
		}, map[int]Reason{}},
		{"long", func(int) error { return away }, map[int]Reason{60: ReasonUnavailable, 660: ReasonUnavailable}},
		{"changing", func(s int) error {
			if s < 60 {
				return s3.ErrAuth
			}
			return away
		}, map[int]Reason{60: ReasonUnavailable, 660: ReasonUnavailable}},
		{"refused", func(int) error { return s3.ErrAuth }, map[int]Reason{60: ReasonUndelivered, 660: ReasonUndelivered}},
		{"disk", func(int) error { return broken }, map[int]Reason{0: ReasonCacheFailed, 600: ReasonCacheFailed, 1200: ReasonCacheFailed}},
		{"twice", func(s int) error {
			if s == 100 {
				return nil
			}
			return away
		}, map[int]Reason{60: ReasonUnavailable, 161: ReasonUnavailable, 761: ReasonUnavailable}},
	} {
		var a alarm
		for second := range 1210 {
			reason := a.look(time.Unix(int64(second), 0), c.err(second))
			if reason != c.want[second] {
				t.Errorf("%s: after %d seconds %q, want %q", c.name, second, reason, c.want[second])
			}
		}
	}
}

// A server is silent while it is asked and does not answer: from the first question on, until any answer, unless it takes
// what it is sent.
func TestHealth(t *testing.T) {
	now := time.Unix(1000, 0)
	h := &health{now: func() time.Time { return now }}
	after := func(d time.Duration) { now = now.Add(d) }
	ctx, cancel := context.WithCancel(t.Context())
	silent := func(want time.Duration, is error) {
		t.Helper()
		if got, err := h.silence(); got != want || !errors.Is(err, is) {
			t.Errorf("silent for %v (%v), want %v (%v)", got, err, want, is)
		}
	}
	silent(0, nil)
	after(time.Hour)
	one := h.begin()
	silent(0, nil)
	after(time.Minute)
	silent(time.Minute, nil)
	h.begin()
	after(time.Second)
	one(ctx, s3.ErrNotExist) // an answer
	silent(0, nil)
	after(20 * time.Second)
	silent(20*time.Second, nil)
	h.move()
	silent(0, nil)
	after(moving)
	silent(30*time.Second, nil)
	h.end(ctx, s3.ErrUnavailable)
	silent(30*time.Second, s3.ErrUnavailable) // although nothing is asked now
	after(time.Second)
	h.begin()
	after(time.Second)
	silent(32*time.Second, s3.ErrUnavailable)
	cancel()
	h.end(ctx, context.Canceled) // says nothing
	silent(32*time.Second, s3.ErrUnavailable)
	h.begin()
	h.end(context.Background(), nil)
	silent(0, nil)
}

// What happens to data without any call that could say so is told, and counted.
func TestIncidents(t *testing.T) {
	t.Parallel()
	var h heard
	b := s3mem.New("bucket")
	s := spec(b)
	s.Incident = h.incident
	d := diskmem.New()
	c := running(t, d, "first", s)
	if err := errors.Join(write(c, "f", "ours"), write(c, "lost", "never synced")); err != nil {
		t.Fatal(err)
	}
	killed := d.Clone()
	upload(t, b, "f", "theirs", s3.Attributes{})
	drained(t, c)
	if st := (&Volume{core: c}).Status(); st.Conflicts != 1 || !h.has("WriteConflict", "f.conflict-") {
		t.Errorf("conflicts: %d, told is %q", st.Conflicts, h.all)
	}
	closed(t, c)

	h = heard{}
	c = running(t, killed, "after a power cut", s)
	defer closed(t, c)
	if st := (&Volume{core: c}).Status(); st.Quarantined != 2 || !h.has("ChangesLost", "lost", "quarantine") {
		t.Errorf("quarantined: %d, told is %q", st.Quarantined, h.all)
	}
}

// An object of others that stands where a directory was moved to is kept under another name, which is told, and counted.
func TestPutAsideIsTold(t *testing.T) {
	t.Parallel()
	var h heard
	b := s3mem.New("bucket")
	s := spec(b)
	s.Prefix, s.Incident = "p/", h.incident
	upload(t, b, "p/d/f", "ours", s3.Attributes{})
	c := running(t, diskmem.New(), "first", s)
	defer closed(t, c)
	if err := c.fs.Rename(t.Context(), who, inode.Root, "d", inode.Root, "e", 0); err != nil {
		t.Fatal(err)
	}
	upload(t, b, "p/e/f", "theirs", s3.Attributes{})
	drained(t, c)
	found := contents(t, b)
	delete(found, "p/.csi-s3/lease")
	kept := ""
	for name, content := range found {
		if content == "theirs" {
			kept, _ = strings.CutPrefix(name, "p/")
		}
	}
	if len(found) != 2 || found["p/e/f"] != "ours" || !strings.HasPrefix(kept, "e/f.conflict-") {
		t.Fatalf("the bucket has %q", found)
	}
	if st := (&Volume{core: c}).Status(); st.Conflicts != 1 || !h.has("WriteConflict", fmt.Sprintf("%q", kept)) {
		t.Errorf("conflicts: %d, told is %q", st.Conflicts, h.all)
	}
}

// A drain that ends before all is in the bucket says how many bytes are left and why, at once and as often as it is
// asked, and so does the status, with the age of the oldest: with a server that is dead, silent, full, or refuses, and
// with a cache that is full.
func TestUndelivered(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault func(op s3fault.Op) s3fault.Action
		class string
		is    error
		wait  time.Duration // until it is known
	}{
		{"dead", func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(nil) }, "unavailable", s3.ErrUnavailable, 0},
		{"silent", func(s3fault.Op) s3fault.Action { return s3fault.Delay(time.Hour) }, "unavailable", s3.ErrUnavailable, quiet + time.Second},
		{"refusing", func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(s3.ErrAuth) }, "denied", s3.ErrAuth, 0},
		{"full", func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(s3.ErrFull) }, "server-full", s3.ErrFull, 0},
		{"bucket gone", func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(s3.ErrNoBucket) }, "no-bucket", s3.ErrNoBucket, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			good := s3mem.New("bucket")
			b := s3fault.New(good)
			var mu sync.Mutex
			bad := true
			b.Fault = func(op s3fault.Op) s3fault.Action {
				mu.Lock()
				defer mu.Unlock()
				if bad && op.Name != "List" && op.Name != "Head" {
					return test.fault(op)
				}
				return s3fault.Action{}
			}
			c := running(t, diskmem.New(), "first", spec(b))
			v := &Volume{core: c}
			for name, size := range map[string]int{"small": 10, "large": 17 << 20} { // one PUT, and a multipart upload
				if err := write(c, name, strings.Repeat("x", size)); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				ctx, cancel := context.WithTimeout(t.Context(), max(2*time.Second, test.wait))
				err := c.drain(ctx)
				cancel()
				if !errors.Is(err, test.is) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprint(10+17<<20)+" bytes") {
					t.Errorf("drain: %v", err)
				}
				st := v.Status()
				if st.ErrorClass != test.class || st.LastError == "" || !st.Failing || st.OldestAge <= 0 || st.Dirty != 10+17<<20 || st.Queue < 2 {
					t.Errorf("status: %+v", st)
				}
			}
			mu.Lock()
			bad = false
			mu.Unlock()
			if test.name == "silent" { // its requests never end
				abandoned(c)
				return
			}
			drained(t, c)
			if st := v.Status(); st.Failing || st.Dirty != 0 {
				t.Errorf("status after the drain: %+v", st)
			}
			closed(t, c)
			if found := contents(t, good); len(found["large"]) != 17<<20 || len(found["small"]) != 10 {
				t.Errorf("the bucket has %d and %d bytes", len(found["large"]), len(found["small"]))
			}
		})
	}
	t.Run("cache full", func(t *testing.T) {
		t.Parallel()
		b := s3fault.New(s3mem.New("bucket"))
		b.Fault = func(op s3fault.Op) s3fault.Action {
			if op.Name == "List" || op.Name == "Head" {
				return s3fault.Action{}
			}
			return s3fault.FailBefore(nil)
		}
		s := spec(b)
		s.Options.IOTimeout = time.Second
		c := running(t, small{diskmem.New(), 8 << 20}, "first", s)
		defer abandoned(c)
		var err error
		for i := 0; err == nil && i < 100; i++ {
			err = write(c, fmt.Sprint("f", i), strings.Repeat("x", 1<<20))
		}
		if !errors.Is(err, cache.ErrNoSpace) {
			t.Fatalf("a write to a full cache: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := c.drain(ctx); !errors.Is(err, s3.ErrUnavailable) || !strings.Contains(err.Error(), " bytes are not in the bucket") {
			t.Errorf("drain: %v", err)
		}
		if st := (&Volume{core: c}).Status(); !st.Failing || st.ErrorClass != "unavailable" || st.OldestAge <= 0 || st.CacheUsed < st.CacheLimit*8/10 {
			t.Errorf("status: %+v", st)
		}
	})
	t.Run("conflict", func(t *testing.T) {
		t.Parallel()
		b := s3fault.New(s3mem.New("bucket"))
		b.Fault = func(op s3fault.Op) s3fault.Action {
			if strings.Contains(string(op.Key), ".conflict-") {
				return s3fault.FailBefore(nil)
			}
			return s3fault.Action{}
		}
		c := running(t, diskmem.New(), "first", spec(b))
		defer abandoned(c)
		if err := write(c, "f", "ours"); err != nil {
			t.Fatal(err)
		}
		upload(t, b, "f", "theirs", s3.Attributes{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.drain(ctx); !errors.Is(err, s3.ErrUnavailable) || !strings.Contains(err.Error(), "4 bytes") {
			t.Errorf("drain: %v", err)
		}
		if st := (&Volume{core: c}).Status(); !st.Failing || st.Conflicts != 1 || st.LastError == "" || st.OldestAge <= 0 || st.Dirty != 4 {
			t.Errorf("status: %+v", st)
		}
	})
}

// small is a disk with little room.
type small struct {
	*diskmem.FS
	room int64
}

func (s small) Space() (total, free int64, err error) {
	all, left, err := s.FS.Space()
	return s.room, max(0, s.room-(all-left)), err
}

// A journal that cannot be written is in the status, and told at once.
func TestSickCache(t *testing.T) {
	t.Parallel()
	var h heard
	s := spec(s3mem.New("bucket"))
	s.Incident = h.incident
	c := running(t, diskmem.New(), "first", s)
	defer abandoned(c)
	if _, err := c.fs.Mkdir(t.Context(), who, inode.Root, "d", 0o755); err != nil {
		t.Fatal(err)
	}
	err := fmt.Errorf("%w: %w", errJournal, disk.ErrNoSpace)
	c.sick.Store(&err)
	eventually(t, "nothing is told", func() bool { return h.has(string(ReasonCacheFailed), "journal") })
	if st := (&Volume{core: c}).Status(); st.ErrorClass != "cache-disk" || st.LastError == "" {
		t.Errorf("status: %+v", st)
	}
}
