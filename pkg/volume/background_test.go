package volume

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

// lines is a log that can be read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), part)
}

// eventually asks again and again, for longer than a tick of tend.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	for end := time.Now().Add(4 * tendEvery); !ask(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// What nobody synced survives a power cut after some seconds.
func TestTendSyncs(t *testing.T) {
	t.Parallel()
	d := diskmem.New()
	c := running(t, d, "first", spec(s3mem.New("bucket")))
	defer abandoned(c)
	if _, err := c.fs.Mkdir(t.Context(), who, inode.Root, "d", 0o755); err != nil {
		t.Fatal(err)
	}
	kept := func(seed uint64) bool {
		b := s3mem.New("bucket")
		recovered(t, d.CrashClone(rand.New(rand.NewPCG(seed, 1))), "second", b)
		_, err := b.Head(t.Context(), "d/")
		return err == nil
	}
	eventually(t, "the directory is still lost in a power cut", func() bool {
		for seed := range uint64(8) {
			if !kept(seed) {
				return false
			}
		}
		return true
	})
}

// A journal that cannot be written is told at once to who changes something, and to the log even if nobody does.
func TestTendReports(t *testing.T) {
	t.Parallel()
	var log lines
	s := spec(s3mem.New("bucket"))
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	var mu sync.Mutex
	bad := false
	d := diskmem.New()
	c := running(t, diskfault.New(d, func(op diskfault.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if bad && op.Name == "Sync" && strings.HasPrefix(op.Path, journalDir) {
			return errInjected
		}
		return nil
	}), "first", s)
	defer abandoned(c)
	if err := write(c, "f", "content"); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	bad = true
	mu.Unlock()
	eventually(t, "the log does not have it", func() bool { return log.has("the volume takes no more changes") && log.has("injected") })
	if err := write(c, "g", "content"); !errors.Is(err, errInjected) {
		t.Errorf("a change after it: %v", err)
	}
	// What had been acknowledged is not lost to a kill.
	if found := recovered(t, d.Clone(), "first", s3mem.New("bucket")); found["f"] != "content" {
		t.Errorf("the bucket has %q", found)
	}
}

// A journal that grew is shortened, and says the same.
func TestTendShortens(t *testing.T) {
	t.Parallel()
	d := diskmem.New()
	c := running(t, d, "first", spec(s3mem.New("bucket")))
	defer abandoned(c)
	if err := write(c, "f", "content"); err != nil {
		t.Fatal(err)
	}
	e, err := c.fs.Lookup(t.Context(), who, inode.Root, "f")
	if err != nil {
		t.Fatal(err)
	}
	value := bytes.Repeat([]byte("v"), 500)
	for n := 0; !c.journal.NeedsCheckpoint(); n++ {
		if err := c.fs.SetXattr(t.Context(), who, e.Attr.Ino, "user.n", fmt.Append(value, n), 0); err != nil {
			t.Fatal(err)
		}
	}
	long := c.journal.Size()
	eventually(t, "the journal is as long as before", func() bool { return c.journal.Size() < long/100 })
	b := s3mem.New("bucket")
	if found := recovered(t, d.Clone(), "first", b); found["f"] != "content" {
		t.Errorf("the bucket has %q", found)
	}
}

// Somebody else's object under a name that was written here stays; ours is kept beside it, and the log says so.
func TestConflictIsTold(t *testing.T) {
	t.Parallel()
	var log lines
	b := s3mem.New("bucket")
	s := spec(b)
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	c := running(t, diskmem.New(), "first", s)
	defer closed(t, c)
	if err := write(c, "f", "ours"); err != nil {
		t.Fatal(err)
	}
	upload(t, b, "f", "theirs", s3.Attributes{})
	drained(t, c)
	found := contents(t, b)
	ours := ""
	for name, content := range found {
		if strings.HasPrefix(name, "f.conflict-") {
			ours = content
		}
	}
	if len(found) != 2 || found["f"] != "theirs" || ours != "ours" {
		t.Errorf("the bucket has %q", found)
	}
	if !log.has("another client changed an object") || !log.has("f.conflict-") {
		t.Error("the log does not say so")
	}
}

// The bytes of a file that is removed before its upload leave the cache with it.
func TestRemovedLeavesNothing(t *testing.T) {
	t.Parallel()
	b := s3mem.New("bucket")
	d := diskmem.New()
	c := running(t, d, "first", spec(b))
	if err := write(c, "f", strings.Repeat("x", 100_000)); err != nil {
		t.Fatal(err)
	}
	unlink(t, c, "f")
	eventually(t, "the bytes are still there", func() bool {
		u := c.store.Usage()
		return u.Dirty == 0 && u.Clean == 0 && c.executor.Status().Queue == 0
	})
	eventually(t, "the data file is still there", func() bool { return len(tree(t, d.Clone(), "data")) == 0 })
	drained(t, c)
	closed(t, c)
	if found := contents(t, b); len(found) > 0 {
		t.Errorf("the bucket has %q", found)
	}
}
