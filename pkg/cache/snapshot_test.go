package cache_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

func wantSnap(t *testing.T, s *cache.Snapshot, want string) {
	t.Helper()
	p := make([]byte, len(want))
	if n, err := s.ReadAt(p, 0); err != nil || string(p) != want {
		t.Errorf("snapshot: %q, %d bytes, %v; want %q", p[:n], n, err, want)
	}
	if n, err := s.ReadAt(make([]byte, len(want)+1), 0); n != len(want) || !errors.Is(err, io.EOF) {
		t.Errorf("snapshot past the end: %d, %v", n, err)
	}
}

func TestSnapshotIsFrozen(t *testing.T) {
	for name, change := range map[string]func(*cache.File) error{
		"overwrite": func(f *cache.File) error { return f.WriteAt([]byte("XYZ"), 2, stamp(2)) },
		"punch":     func(f *cache.File) error { return f.PunchHole(1, 5, stamp(2)) },
		"truncate":  func(f *cache.File) error { return f.Truncate(1, stamp(2)) },
		"truncate, grow, write": func(f *cache.File) error {
			return errors.Join(f.Truncate(1, stamp(2)), f.Truncate(8, stamp(3)), f.WriteAt([]byte("Q"), 4, stamp(4)))
		},
		"twice": func(f *cache.File) error {
			return errors.Join(f.WriteAt([]byte("XYZ"), 2, stamp(2)), f.WriteAt([]byte("xyzuvw"), 1, stamp(3)))
		},
		"append": func(f *cache.File) error { return f.WriteAt([]byte("more"), 8, stamp(2)) },
	} {
		t.Run(name, func(t *testing.T) {
			b, mem := newBox(t, cache.Options{})
			f := b.File(1, 6)
			// [0,2) clean, [2,4) dirty, [4,6) missing, [6,8) hole.
			must(t, f.Fill([]byte("ab"), 0, f.Generation()))
			must(t, f.WriteAt([]byte("CD"), 2, stamp(1)))
			must(t, f.Truncate(8, stamp(1)))
			s, err := f.Snapshot()
			must(t, err)
			must(t, change(f))
			must(t, b.Reap())
			b.Evict(1 << 40)
			if m := s.Missing(0, 99); !slices.Equal(m, []extent.Range{{Off: 4, End: 6}}) {
				t.Errorf("missing: %v", m)
			}
			if n, err := s.ReadAt(make([]byte, 8), 0); n != 4 || !errors.Is(err, cache.ErrMissing) {
				t.Errorf("read into a missing range: %d, %v", n, err)
			}
			// What a writer has overwritten since can be fetched for the snapshot, and does not show in the file.
			now, err := readAll(f, []byte("ab..ef"))
			must(t, err)
			must(t, f.Fill([]byte("ab??ef"), 0, f.Generation()))
			wantSnap(t, s, "abCDef\x00\x00")
			if after, err := readAll(f, []byte("ab..ef")); err != nil || string(after) != string(now) {
				t.Errorf("Fill changed the file from %q to %q, %v", now, after, err)
			}
			if s.Size() != 8 || !s.Mtime().Equal(stamp(1)) {
				t.Errorf("size %d, mtime %v", s.Size(), s.Mtime())
			}
			if d := s.Dirty(); !slices.Equal(d.Ranges(), []extent.Range{{Off: 2, End: 4}, {Off: 6, End: 8}}) {
				t.Errorf("dirty: %v", d.Ranges())
			}
			s.Release()
			s.Release()
			if _, err := mem.ReadFile("snap/1"); err == nil {
				t.Error("the side file is still there")
			}
			if _, err := s.ReadAt(make([]byte, 1), 0); err == nil {
				t.Error("read after Release")
			}
			if total, _ := b.Accounted(); total > 50 {
				t.Errorf("%d bytes are accounted after the release", total)
			}
		})
	}
}

// A hole that became a part of the object, and lies where bytes were cut off before, takes its place once.
func TestFillOfTrash(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 0)
	must(t, errors.Join(f.WriteAt([]byte("abcdef"), 0, stamp(1)), f.Truncate(0, stamp(2)), f.Truncate(6, stamp(3))))
	if total, _ := b.Accounted(); total != 6 {
		t.Errorf("%d bytes accounted, want those that were cut off and not freed yet", total)
	}
	s, err := f.Snapshot()
	must(t, err)
	must(t, s.Commit())
	s.Release()
	must(t, f.Fill(make([]byte, 6), 0, f.Generation()))
	for range 2 {
		if total, _ := b.Accounted(); total != 6 || b.Usage().Clean != 6 {
			t.Errorf("%d bytes accounted, %+v", total, b.Usage())
		}
		must(t, b.Reap())
	}
}

// What is fetched for the file and for the snapshot is stored once.
func TestFillOnce(t *testing.T) {
	b, mem := newBox(t, cache.Options{})
	f := b.File(1, 6)
	s, err := f.Snapshot()
	must(t, err)
	defer s.Release()
	must(t, f.Fill([]byte("abcdef"), 0, f.Generation()))
	wantSnap(t, s, "abcdef")
	if _, err := mem.ReadFile("snap/1"); err == nil {
		t.Error("there is a side file")
	}
	if total, _ := b.Accounted(); total != 6 {
		t.Errorf("%d bytes accounted", total)
	}
}

func TestCommit(t *testing.T) {
	b, mem := newBox(t, cache.Options{})
	f := b.File(1, 4)
	must(t, f.WriteAt([]byte("ABCDEFGH"), 2, stamp(1)))
	s, err := f.Snapshot()
	must(t, err)
	must(t, f.Fill([]byte("ab??"), 0, f.Generation()))
	must(t, s.Commit(journal.Record{Kind: foreignKind, Data: []byte("one")}, journal.Record{Kind: foreignKind, Data: []byte("two")}))
	if err := s.Commit(); err == nil {
		t.Error("a second Commit succeeds")
	}
	s.Release()
	if err := s.Commit(); err == nil {
		t.Error("a Commit after Release succeeds")
	}
	if d := f.Dirty(); d != (cache.Dirty{ID: 1, Size: 10}) {
		t.Errorf("%+v", d)
	}
	if u := b.Usage(); u.Clean != 10 || u.Dirty != 0 || u.DirtyFiles != 0 {
		t.Errorf("%+v", u)
	}
	wantRead(t, f, 0, 99, "abABCDEFGH", extent.Range{})
	b = mustOpen(t, mem.Clone(), false)
	if len(b.rec.Dirty) > 0 || !slices.Equal(b.foreign, []string{"one", "two"}) {
		t.Errorf("%+v, %v", b.rec, b.foreign)
	}
	if b.File(1, 10).Missing(0, 10) == nil {
		t.Error("clean bytes are believed after a restart")
	}
}

// The records of Commit and those of its caller are one frame: at no disk call are there some of them.
func TestCommitIsOneFrame(t *testing.T) {
	mem := diskmem.New()
	watch := false
	with, without := 0, 0
	fs := diskfault.New(mem, func(diskfault.Op) error {
		if watch {
			b := mustOpen(t, mem.Clone(), false)
			switch {
			case len(b.foreign) == 2 && len(b.rec.Dirty) == 0:
				with++
			case len(b.foreign) == 0 && len(b.rec.Dirty) == 1:
				without++
			default:
				t.Errorf("%v with %+v", b.foreign, b.rec)
			}
		}
		return nil
	})
	b := mustOpen(t, fs, false)
	f := b.File(1, 0)
	must(t, f.WriteAt([]byte("x"), 0, stamp(1)))
	s, err := f.Snapshot()
	must(t, err)
	watch = true
	must(t, s.Commit(journal.Record{Kind: foreignKind}, journal.Record{Kind: foreignKind}))
	must(t, b.j.Sync())
	if with == 0 || without == 0 {
		t.Errorf("seen %d before and %d after", without, with)
	}
}

func TestCommitWithChangesSince(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*cache.File) error
		want   string // over the object "abCDEF\0\0"
		dirty  []extent.Range
		size   int64
	}{
		{"overwrite", func(f *cache.File) error { return f.WriteAt([]byte("yz"), 3, stamp(2)) }, "abCyzF\x00\x00", []extent.Range{{Off: 3, End: 5}}, 8},
		{"punch", func(f *cache.File) error { return f.PunchHole(0, 3, stamp(2)) }, "\x00\x00\x00DEF\x00\x00", []extent.Range{{Off: 0, End: 3}}, 8},
		{"cut", func(f *cache.File) error { return f.Truncate(4, stamp(2)) }, "abCD", nil, 4},
		{"cut and grow", func(f *cache.File) error {
			return errors.Join(f.Truncate(3, stamp(2)), f.Truncate(7, stamp(3)))
		}, "abC\x00\x00\x00\x00", []extent.Range{{Off: 3, End: 7}}, 7},
		{"cut and write", func(f *cache.File) error {
			return errors.Join(f.Truncate(1, stamp(2)), f.WriteAt([]byte("q"), 4, stamp(3)))
		}, "a\x00\x00\x00q", []extent.Range{{Off: 1, End: 5}}, 5},
		{"grow", func(f *cache.File) error { return f.Truncate(10, stamp(2)) }, "abCDEF\x00\x00\x00\x00", []extent.Range{{Off: 8, End: 10}}, 10},
		{"append", func(f *cache.File) error { return f.WriteAt([]byte("!"), 8, stamp(2)) }, "abCDEF\x00\x00!", []extent.Range{{Off: 8, End: 9}}, 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Unix(1_800_000_000, 0)
			b, mem := newBox(t, cache.Options{Now: func() time.Time { return now }})
			f := b.File(1, 4)
			must(t, f.WriteAt([]byte("CDEF"), 2, stamp(1)))
			must(t, f.Truncate(8, stamp(1)))
			s, err := f.Snapshot()
			must(t, err)
			now = now.Add(time.Hour)
			must(t, c.change(f))
			must(t, s.Commit())
			s.Release()
			object := []byte("abCDEF\x00\x00")
			check := func(b *box, when string) {
				t.Helper()
				f := b.Lookup(1)
				if f == nil {
					t.Fatalf("%s: the change is forgotten", when)
				}
				if got, err := readAll(f, object); err != nil || string(got) != c.want {
					t.Errorf("%s: %q, %v; want %q", when, got, err, c.want)
				}
				if d := f.Dirty(); d.Size != c.size || !d.Since.Equal(now) {
					t.Errorf("%s: %+v", when, d)
				}
				s, err := f.Snapshot()
				must(t, err)
				defer s.Release()
				if d := s.Dirty(); !slices.Equal(d.Ranges(), c.dirty) {
					t.Errorf("%s: dirty %v, want %v", when, d.Ranges(), c.dirty)
				}
			}
			check(b, "at once")
			b.Evict(1 << 40)
			check(b, "evicted")
			check(mustOpen(t, mem.Clone(), false), "after a kill")
			must(t, b.checkpoint())
			check(mustOpen(t, mem.Clone(), false), "after a checkpoint and a kill")
			must(t, b.Lookup(1).Sync())
			check(mustOpen(t, mem.CrashClone(rand.New(rand.NewPCG(1, 1))), true), "after a power cut")
		})
	}
}

// A Sync while the snapshot lives covers what Commit leaves dirty, even if that costs no record of its own.
func TestSyncBetweenSnapshotAndCommit(t *testing.T) {
	b, mem := newBox(t, cache.Options{})
	f := b.File(1, 0)
	must(t, f.WriteAt([]byte("aaaa"), 0, stamp(1)))
	must(t, f.Sync())
	s, err := f.Snapshot()
	must(t, err)
	must(t, f.WriteAt([]byte("bb"), 1, stamp(2)))
	must(t, f.Sync())
	must(t, s.Commit())
	s.Release()
	must(t, b.j.Sync())
	for seed := range uint64(20) {
		b := mustOpen(t, mem.CrashClone(rand.New(rand.NewPCG(seed, 1))), true)
		if got, err := readAll(b.File(1, 4), []byte("aaaa")); err != nil || string(got) != "abba" {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

func TestReleaseWithoutCommit(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 0)
	must(t, f.WriteAt([]byte("abc"), 0, stamp(1)))
	s, err := f.Snapshot()
	must(t, err)
	must(t, f.WriteAt([]byte("X"), 1, stamp(2)))
	s.Release()
	if d := f.Dirty(); d.Bytes != 3 || !d.Mtime.Equal(stamp(2)) {
		t.Errorf("%+v", d)
	}
	s, err = f.Snapshot()
	must(t, err)
	defer s.Release()
	wantSnap(t, s, "aXc")
}

// A second snapshot waits for the first one's end, and then shows the newer content.
func TestOneSnapshot(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 0)
	must(t, f.WriteAt([]byte("one"), 0, stamp(1)))
	first, err := f.Snapshot()
	must(t, err)
	second := make(chan *cache.Snapshot)
	go func() {
		s, err := f.Snapshot()
		if err != nil {
			t.Error(err)
		}
		second <- s
	}()
	must(t, f.WriteAt([]byte("two"), 0, stamp(2)))
	select {
	case <-second:
		t.Fatal("two snapshots at once")
	case <-time.After(50 * time.Millisecond):
	}
	wantSnap(t, first, "one")
	first.Release()
	s := <-second
	defer s.Release()
	wantSnap(t, s, "two")
}

// After Commit, and until Release, a reader sees the frozen content or an error, and nothing else.
func TestReadAfterCommit(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 0)
	must(t, f.WriteAt([]byte("frozen"), 0, stamp(1)))
	s, err := f.Snapshot()
	must(t, err)
	must(t, s.Commit())
	must(t, f.WriteAt([]byte("LIQUID"), 0, stamp(2)))
	p := make([]byte, 6)
	if n, err := s.ReadAt(p, 0); err == nil && string(p) != "frozen" || string(p[:n]) != "frozen"[:n] {
		t.Errorf("%q, %v", p, err)
	}
	s.Release()
	if d := f.Dirty(); d.Bytes != 6 {
		t.Errorf("%+v", d)
	}
}

// After a Commit that failed nothing has changed, on the disk neither.
func TestCommitFails(t *testing.T) {
	b, mem := newBox(t, cache.Options{})
	f := b.File(1, 0)
	must(t, f.WriteAt([]byte("dirty"), 0, stamp(1)))
	before := f.Dirty()
	generation := f.Generation()
	s, err := f.Snapshot()
	must(t, err)
	if err := s.Commit(journal.Record{Kind: foreignKind, Data: make([]byte, journal.MaxRecord+1)}); !errors.Is(err, journal.ErrTooLarge) {
		t.Fatal(err)
	}
	if f.Dirty() != before || f.Generation() != generation {
		t.Errorf("%+v, want %+v", f.Dirty(), before)
	}
	must(t, b.checkpoint())
	again := mustOpen(t, mem.Clone(), false)
	if len(again.rec.Dirty) != 1 || again.rec.Dirty[0].Bytes != 5 {
		t.Fatalf("after a checkpoint: %+v", again.rec)
	}
	must(t, s.Commit())
	s.Release()
	if !f.Dirty().Since.IsZero() {
		t.Errorf("%+v", f.Dirty())
	}
}

// A write that fails half-way after the snapshot leaves other bytes than the snapshot has: Commit must not call them
// clean, nor the file.
func TestCommitAfterFailedOverwrite(t *testing.T) {
	fail := false
	mem := diskmem.New()
	fs := diskfault.New(mem, func(op diskfault.Op) error {
		if fail && op.Name == "WriteAt" && op.Path == "data/01/1" {
			return &diskfault.Partial{N: 2, Err: disk.ErrIO}
		}
		return nil
	})
	b := mustOpen(t, fs, false)
	f := b.File(1, 0)
	must(t, f.WriteAt([]byte("abcdef"), 0, stamp(1)))
	s, err := f.Snapshot()
	must(t, err)
	fail = true
	if err := f.WriteAt([]byte("WXYZ"), 1, stamp(2)); !errors.Is(err, disk.ErrIO) {
		t.Fatal(err)
	}
	fail = false
	wantSnap(t, s, "abcdef")
	must(t, s.Commit())
	s.Release()
	wantRead(t, f, 0, 6, "aWXdef", extent.Range{})
	if d := f.Dirty(); d.Since.IsZero() || d.Bytes < 2 || len(b.DirtyFiles()) != 1 {
		t.Errorf("%+v", d)
	}
	b = mustOpen(t, mem.Clone(), false)
	if f = b.Lookup(1); f == nil {
		t.Fatal("forgotten after a kill")
	}
	if got, err := readAll(f, []byte("abcdef")); err != nil || string(got) != "aWXdef" {
		t.Errorf("after a kill: %q, %v", got, err)
	}
}

// A write that failed and changed nothing leaves the file clean.
func TestCommitAfterFailedWrite(t *testing.T) {
	fail := false
	fs := diskfault.New(diskmem.New(), func(op diskfault.Op) error {
		if fail && op.Name == "WriteAt" && op.Path == "data/01/1" {
			return &diskfault.Partial{N: 2, Err: disk.ErrIO}
		}
		return nil
	})
	b := mustOpen(t, fs, false)
	f := b.File(1, 10)
	s, err := f.Snapshot()
	must(t, err)
	fail = true
	if err := f.WriteAt([]byte("WXYZ"), 1, stamp(2)); !errors.Is(err, disk.ErrIO) {
		t.Fatal(err)
	}
	fail = false
	must(t, s.Commit())
	s.Release()
	if d := f.Dirty(); d != (cache.Dirty{ID: 1, Size: 10}) {
		t.Errorf("%+v", d)
	}
}

// afterFS calls after each SyncDir.
type afterFS struct {
	disk.FS
	after func(dir string)
}

func (a *afterFS) SyncDir(name string) error {
	err := a.FS.SyncDir(name)
	if a.after != nil {
		a.after(name)
	}
	return err
}

// A data file that was evicted and made anew while Sync made the old one's name durable has no durable name.
func TestEvictedDuringSync(t *testing.T) {
	mem := diskmem.New()
	fs := &afterFS{FS: mem}
	b := mustOpen(t, fs, false)
	f := b.File(1, 0)
	must(t, f.WriteAt([]byte("first"), 0, stamp(1)))
	once := true
	fs.after = func(dir string) {
		if dir != "data/01" || !once {
			return
		}
		once = false
		s, err := f.Snapshot()
		must(t, err)
		must(t, s.Commit())
		s.Release()
		if b.Evict(1<<40) != 5 {
			t.Error("not evicted")
		}
		must(t, f.WriteAt([]byte("again"), 0, stamp(2)))
	}
	must(t, f.Sync())
	if once {
		t.Fatal("the test tests nothing")
	}
	must(t, f.Sync())
	for seed := range uint64(20) {
		b := mustOpen(t, mem.CrashClone(rand.New(rand.NewPCG(seed, 1))), true)
		if len(b.rec.Lost) > 0 || len(b.rec.Dirty) != 1 {
			t.Fatalf("seed %d: %+v", seed, b.rec)
		}
		if got, err := readAll(b.Lookup(1), nil); err != nil || string(got) != "again" {
			t.Fatalf("seed %d: %q, %v", seed, got, err)
		}
	}
}

// A file whose bytes went to the bucket and off the disk between the mark of a Sync and its fdatasync is synced.
func TestCommittedDuringSync(t *testing.T) {
	mem := diskmem.New()
	var during func()
	fs := diskfault.New(&openFiles{FS: mem}, func(op diskfault.Op) error {
		// The first call that a Sync makes without a lock: the fdatasync of the data file.
		if op.Name == "Sync" && op.Path == "data/01/1" && during != nil {
			do := during
			during = nil
			do()
		}
		return nil
	})
	b := mustOpen(t, fs, false)
	f := b.File(1, 0)
	must(t, f.WriteAt([]byte("first"), 0, stamp(1)))
	during = func() {
		s, err := f.Snapshot()
		must(t, err)
		must(t, s.Commit())
		s.Release()
		b.Evict(1 << 40)
	}
	must(t, f.Sync())
	if during != nil {
		t.Fatal("the test tests nothing")
	}
	if !f.Dirty().Since.IsZero() {
		t.Errorf("%+v", f.Dirty())
	}
}
