package cache_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

func must(t failer, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

// newBox is an empty store on a new disk.
func newBox(t *testing.T, opt cache.Options) (*box, *diskmem.FS) {
	t.Helper()
	mem := diskmem.New()
	b, err := openBox(mem, opt, false)
	must(t, err)
	return b, mem
}

// wantRead reads n bytes at off and compares what came and what is missing.
func wantRead(t *testing.T, f *cache.File, off, n int64, want string, missing extent.Range) {
	t.Helper()
	p := make([]byte, n)
	got, m, err := f.ReadAt(p, off)
	if err != nil || string(p[:got]) != want || m != missing {
		t.Errorf("read [%d,%d): %q, missing %v, %v; want %q, missing %v", off, off+n, p[:got], m, err, want, missing)
	}
}

func TestReadAt(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 10)
	none := extent.Range{}
	wantRead(t, f, 0, 4, "", extent.Range{Off: 0, End: 4})
	wantRead(t, f, 0, 100, "", extent.Range{Off: 0, End: 10})
	wantRead(t, f, 10, 5, "", none)
	wantRead(t, f, 99, 5, "", none)
	wantRead(t, f, 5, 0, "", none)
	must(t, f.Fill([]byte("cdef"), 2, f.Generation()))
	wantRead(t, f, 2, 100, "cdef", extent.Range{Off: 6, End: 10})
	wantRead(t, f, 0, 10, "", extent.Range{Off: 0, End: 2})
	must(t, f.WriteAt([]byte("XY"), 5, stamp(1)))
	wantRead(t, f, 3, 3, "deX", none)
	wantRead(t, f, 3, 6, "deXY", extent.Range{Off: 7, End: 9})
	must(t, f.WriteAt([]byte("!"), 12, stamp(2)))
	wantRead(t, f, 9, 9, "", extent.Range{Off: 9, End: 10})
	wantRead(t, f, 10, 9, "\x00\x00!", none)
	if m := f.Missing(0, 99); !slices.Equal(m, []extent.Range{{Off: 0, End: 2}, {Off: 7, End: 10}}) {
		t.Errorf("missing: %v", m)
	}
	if m := f.Missing(1, 8); !slices.Equal(m, []extent.Range{{Off: 1, End: 2}, {Off: 7, End: 8}}) {
		t.Errorf("missing: %v", m)
	}
	if f.Size() != 13 {
		t.Errorf("size %d", f.Size())
	}
	if n := f.Allocated(); n != 11 {
		t.Errorf("%d bytes allocated, want 10 that the object has and 1 behind the hole", n)
	}
}

func TestWriteAtNothing(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 10)
	must(t, f.WriteAt(nil, 50, stamp(1)))
	must(t, f.PunchHole(10, 50, stamp(1)))
	must(t, f.PunchHole(7, 7, stamp(1)))
	if f.Size() != 10 || !f.Dirty().Since.IsZero() {
		t.Errorf("size %d, %+v", f.Size(), f.Dirty())
	}
}

func TestTruncate(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 10)
	must(t, f.Fill([]byte("abcdefghij"), 0, f.Generation()))
	must(t, f.WriteAt([]byte("WXYZ"), 4, stamp(1)))
	must(t, f.Truncate(6, stamp(2)))
	wantRead(t, f, 0, 99, "abcdWX", extent.Range{})
	must(t, f.Truncate(12, stamp(3)))
	wantRead(t, f, 0, 99, "abcdWX\x00\x00\x00\x00\x00\x00", extent.Range{})
	if m := f.Missing(0, 99); len(m) > 0 {
		t.Errorf("what was cut off is missing: %v", m)
	}
	// A fetch that began before the truncation must not bring the old bytes back.
	must(t, f.Fill([]byte("ghij"), 6, f.Generation()))
	wantRead(t, f, 6, 2, "\x00\x00", extent.Range{})
	d := f.Dirty()
	if d.Bytes != 2 || d.Size != 12 || !d.Mtime.Equal(stamp(3)) {
		t.Errorf("%+v", d)
	}
	must(t, f.WriteAt([]byte("!"), 9, stamp(4)))
	wantRead(t, f, 7, 4, "\x00\x00!\x00", extent.Range{})
}

func TestPunchHole(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 8)
	must(t, f.PunchHole(2, 4, stamp(1)))
	wantRead(t, f, 2, 6, "\x00\x00", extent.Range{Off: 4, End: 8})
	must(t, f.Fill([]byte("abcdefgh"), 0, f.Generation()))
	wantRead(t, f, 0, 8, "ab\x00\x00efgh", extent.Range{})
	must(t, f.PunchHole(6, 99, stamp(2)))
	wantRead(t, f, 0, 99, "ab\x00\x00ef\x00\x00", extent.Range{})
	if d := f.Dirty(); d.Bytes != 4 || d.Size != 8 {
		t.Errorf("%+v: the zeros must be uploaded", d)
	}
	s, err := f.Snapshot()
	must(t, err)
	defer s.Release()
	if d := s.Dirty(); !slices.Equal(d.Ranges(), []extent.Range{{Off: 2, End: 4}, {Off: 6, End: 8}}) {
		t.Errorf("dirty: %v", d.Ranges())
	}
}

func TestSeekData(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 4)
	must(t, f.WriteAt([]byte("xx"), 10, stamp(1)))
	must(t, f.WriteAt([]byte("yy"), 12, stamp(1)))
	must(t, f.Truncate(20, stamp(1)))
	for _, c := range []struct {
		off  int64
		hole bool
		want int64
	}{
		{0, false, 0}, {3, false, 3}, {4, false, 10}, {9, false, 10}, {13, false, 13}, {14, false, -1}, {20, false, -1},
		{0, true, 4}, {4, true, 4}, {7, true, 7}, {10, true, 14}, {13, true, 14}, {19, true, 19}, {20, true, -1}, {99, true, -1},
	} {
		pos, ok := f.SeekData(c.off, c.hole)
		if ok != (c.want >= 0) || ok && pos != c.want {
			t.Errorf("SeekData(%d, %v): %d %v, want %d", c.off, c.hole, pos, ok, c.want)
		}
	}
	if pos, ok := b.File(2, 4).SeekData(1, true); !ok || pos != 4 {
		t.Errorf("the end of a file is no hole: %d %v", pos, ok)
	}
}

func TestFill(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 6)
	old := f.Generation()
	must(t, f.WriteAt([]byte("X"), 2, stamp(1)))
	must(t, f.Fill([]byte("abcdefTRAILING"), 0, old))
	wantRead(t, f, 0, 99, "abXdef", extent.Range{})
	if f.Size() != 6 {
		t.Errorf("Fill changed the size to %d", f.Size())
	}
	s, err := f.Snapshot()
	must(t, err)
	must(t, s.Commit())
	s.Release()
	if f.Generation() == old {
		t.Fatal("Commit left the generation as it was")
	}
	b.Evict(1 << 40)
	must(t, f.Fill([]byte("abcdef"), 0, old))
	if m := f.Missing(0, 6); !slices.Equal(m, []extent.Range{{Off: 0, End: 6}}) {
		t.Fatalf("bytes of an object that is no more were taken: missing only %v", m)
	}
	must(t, f.Fill([]byte("abXdef"), 0, f.Generation()))
	wantRead(t, f, 0, 6, "abXdef", extent.Range{})
	if u := b.Usage(); u.Clean != 6 || u.Dirty != 0 {
		t.Errorf("%+v", u)
	}
}

func TestDirty(t *testing.T) {
	now := time.Unix(1_800_000_000, 5)
	opt := cache.Options{Now: func() time.Time { return now }}
	b, mem := newBox(t, opt)
	f, g := b.File(1, 10), b.File(2, 10)
	first := now
	must(t, f.WriteAt([]byte("abc"), 0, stamp(1)))
	now = now.Add(time.Minute)
	must(t, f.WriteAt([]byte("de"), 20, stamp(2)))
	must(t, f.WriteAt([]byte("AB"), 0, stamp(3)))
	want := cache.Dirty{ID: 1, Size: 22, Mtime: stamp(3), Bytes: 5, Since: first}
	if d := f.Dirty(); d != want {
		t.Errorf("%+v, want %+v", d, want)
	}
	if d := g.Dirty(); d != (cache.Dirty{ID: 2, Size: 10}) {
		t.Errorf("a clean file: %+v", d)
	}
	if l := b.DirtyFiles(); len(l) != 1 || l[0] != want {
		t.Errorf("dirty files: %+v", l)
	}
	if u := b.Usage(); u.Dirty != 5 || u.DirtyFiles != 1 || u.Files != 2 || u.Clean != 0 {
		t.Errorf("%+v", u)
	}
	// The time of the first change and the mtime of the last journaled one come back.
	again, err := openBox(mem.Clone(), opt, false)
	must(t, err)
	d := again.DirtyFiles()
	if len(d) != 1 || !d[0].Since.Equal(first) || !d[0].Mtime.Equal(stamp(2)) || d[0].Bytes != 5 || d[0].Size != 22 {
		t.Errorf("after a restart: %+v", d)
	}
	if u := again.Usage(); u.Dirty != 5 || u.DirtyFiles != 1 || u.Files != 1 {
		t.Errorf("after a restart: %+v", u)
	}
}

// A change of the size alone is dirt, too.
func TestSizeIsDirt(t *testing.T) {
	b, mem := newBox(t, cache.Options{})
	must(t, b.File(1, 10).Truncate(4, stamp(1)))
	must(t, b.File(2, 0).Truncate(0, stamp(2)))
	b = mustOpen(t, mem.Clone(), false)
	if len(b.rec.Dirty) != 2 || b.rec.Dirty[0].Size != 4 || b.Lookup(1).Size() != 4 {
		t.Fatalf("%+v", b.rec)
	}
	if m := b.Lookup(1).Missing(0, 99); !slices.Equal(m, []extent.Range{{Off: 0, End: 4}}) {
		t.Errorf("missing: %v", m)
	}
}

func TestRemove(t *testing.T) {
	b, mem := newBox(t, cache.Options{})
	must(t, b.Remove(99))
	f := b.File(1, 0)
	must(t, f.WriteAt([]byte("hello"), 0, stamp(1)))
	must(t, f.Sync())
	s, err := f.Snapshot()
	must(t, err)
	must(t, b.Remove(1))
	must(t, b.Remove(1))
	if b.Lookup(1) != nil || len(b.DirtyFiles()) > 0 || b.Usage().Dirty != 0 || b.Usage().Files != 0 {
		t.Errorf("%+v", b.Usage())
	}
	for name, err := range map[string]error{
		"WriteAt": f.WriteAt([]byte("x"), 0, stamp(2)), "Truncate": f.Truncate(1, stamp(2)), "Sync": f.Sync(),
		"PunchHole": f.PunchHole(0, 3, stamp(2)), "ReadAt": func() error { _, _, err := f.ReadAt(make([]byte, 1), 0); return err }(),
	} {
		if !errors.Is(err, cache.ErrRemoved) && name != "PunchHole" {
			t.Errorf("%s of a removed file: %v", name, err)
		}
	}
	// The snapshot still has its bytes, whatever is reaped.
	must(t, b.Reap())
	if got, err := readSnap(f, s, nil, false); err != nil || string(got) != "hello" {
		t.Errorf("snapshot of a removed file: %q, %v", got, err)
	}
	must(t, s.Commit(journal.Record{Kind: foreignKind, Data: []byte("with")}))
	s.Release()
	must(t, b.Reap())
	if _, err := mem.ReadFile("data/01/1"); err == nil {
		t.Error("the data file is still there")
	}
	if total, _ := b.Accounted(); total != 0 {
		t.Errorf("%d bytes are accounted to nothing", total)
	}
	if _, err := f.Snapshot(); !errors.Is(err, cache.ErrRemoved) {
		t.Errorf("snapshot of a removed file: %v", err)
	}
	must(t, b.j.Sync())
	again := mustOpen(t, mem.CrashClone(rand.New(rand.NewPCG(1, 1))), true)
	if len(again.rec.Dirty)+len(again.rec.Lost) > 0 || !slices.Equal(again.foreign, []string{"with"}) {
		t.Errorf("%+v %v", again.rec, again.foreign)
	}
}

// A Snapshot waiting for the first one ends when the file is removed.
func TestRemoveWakesSnapshot(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 0)
	s, err := f.Snapshot()
	must(t, err)
	done := make(chan error)
	go func() {
		_, err := f.Snapshot()
		done <- err
	}()
	must(t, b.Remove(1))
	s.Release()
	if err := <-done; !errors.Is(err, cache.ErrRemoved) {
		t.Fatal(err)
	}
}

// After a failed fdatasync the kernel forgets what it could not write: no later success may count.
func TestPoisoned(t *testing.T) {
	fail := true
	mem := diskmem.New()
	fs := diskfault.New(mem, func(op diskfault.Op) error {
		if fail && op.Name == "Sync" && strings.HasPrefix(op.Path, "data/") {
			fail = false
			return disk.ErrIO
		}
		return nil
	})
	b := mustOpen(t, fs, false)
	f, other := b.File(1, 0), b.File(2, 0)
	must(t, f.WriteAt([]byte("hello"), 0, stamp(1)))
	before, err := f.Snapshot()
	must(t, err)
	_, err = before.ReadAt(make([]byte, 5), 0)
	must(t, err)
	for name, op := range map[string]func() error{
		"Sync": f.Sync, "WriteAt": func() error { return f.WriteAt([]byte("x"), 0, stamp(2)) },
		"Truncate":  func() error { return f.Truncate(1, stamp(2)) },
		"PunchHole": func() error { return f.PunchHole(0, 1, stamp(2)) },
		"Commit":    func() error { return before.Commit() },
	} {
		if fail {
			if err := f.Sync(); !errors.Is(err, cache.ErrPoisoned) || !errors.Is(err, disk.ErrIO) {
				t.Fatalf("the failing Sync: %v", err)
			}
		}
		if err := op(); !errors.Is(err, cache.ErrPoisoned) || !errors.Is(err, disk.ErrIO) {
			t.Errorf("%s of a poisoned file: %v", name, err)
		}
	}
	before.Release()
	if _, err := f.Snapshot(); !errors.Is(err, cache.ErrPoisoned) {
		t.Errorf("Snapshot of a poisoned file: %v", err)
	}
	wantRead(t, f, 0, 9, "hello", extent.Range{})
	if len(b.DirtyFiles()) != 1 {
		t.Error("the poisoned file counts as clean")
	}
	must(t, other.WriteAt([]byte("fine"), 0, stamp(3)))
	must(t, other.Sync())
	again := mustOpen(t, mem.CrashClone(rand.New(rand.NewPCG(1, 1))), true)
	if len(again.rec.Dirty) != 1 || again.rec.Dirty[0].ID != 2 {
		t.Errorf("after a power cut: %+v", again.rec)
	}
}

var errClosed = errors.New("the file is closed")

// A write that fails half-way over clean bytes leaves bytes that no object has: they are dirty, so that they neither
// change by an eviction nor are missing in an upload.
func TestFailedOverwriteOfClean(t *testing.T) {
	fail := false
	mem := diskmem.New()
	fs := diskfault.New(mem, func(op diskfault.Op) error {
		if fail && op.Name == "WriteAt" && strings.HasPrefix(op.Path, "data/") {
			return &diskfault.Partial{N: 2, Err: disk.ErrIO}
		}
		return nil
	})
	b := mustOpen(t, fs, false)
	object := []byte("abcdefgh")
	f := b.File(1, 8)
	must(t, f.Fill(object[:5], 0, f.Generation()))
	fail = true
	if err := f.WriteAt([]byte("WXYZQRS"), 1, stamp(1)); !errors.Is(err, disk.ErrIO) {
		t.Fatal(err)
	}
	fail = false
	before, err := readAll(f, object)
	must(t, err)
	b.Evict(1 << 40)
	after, err := readAll(f, object)
	if err != nil || string(before) != string(after) {
		t.Errorf("%q became %q by an eviction, %v", before, after, err)
	}
	killed := mustOpen(t, mem.Clone(), false)
	if got, err := readAll(killed.File(1, 8), object); err != nil || string(got) != string(before) {
		t.Errorf("%q became %q by a kill, %v", before, got, err)
	}
}

// What is written while a Sync runs may be behind it, and must not count as synced.
func TestWriteDuringSync(t *testing.T) {
	for seed := range uint64(10) {
		mem := diskmem.New()
		fs := &afterFS{FS: mem}
		b := mustOpen(t, fs, false)
		f := b.File(1, 20000)
		must(t, f.WriteAt([]byte("first"), 0, stamp(1)))
		once := true
		fs.after = func(dir string) {
			if once && dir == "data/01" { // the data was synced, the barrier not yet written
				once = false
				must(t, f.WriteAt(pattern(2, 0, 4096), 8192, stamp(2)))
			}
		}
		must(t, f.Sync())
		if once {
			t.Fatal("the test tests nothing")
		}
		object := pattern(3, 0, 20000)
		b = mustOpen(t, mem.CrashClone(rand.New(rand.NewPCG(seed, 1))), true)
		got, err := readAll(b.Lookup(1), object)
		must(t, err)
		want := append([]byte("first"), object[5:]...)
		if i := difference(got, want); i >= 0 {
			t.Fatalf("seed %d: byte %d is %#x, want the synced or the object's", seed, i, got[i])
		}
	}
}

// Ranges that were durably dirty cost neither a record nor a sync of the journal.
func TestCostOfRewrite(t *testing.T) {
	syncs := map[string]int{}
	fs := diskfault.New(diskmem.New(), func(op diskfault.Op) error {
		syncs[op.Name+" "+strings.Split(op.Path, "/")[0]]++
		return nil
	})
	b := mustOpen(t, fs, false)
	f := b.File(1, 0)
	must(t, f.WriteAt(make([]byte, 9000), 0, stamp(1)))
	must(t, f.Sync())
	size := b.j.Size()
	clear(syncs)
	must(t, f.WriteAt([]byte("again"), 100, stamp(2)))
	must(t, f.Sync())
	if b.j.Size() != size || syncs["Sync journal"] != 0 || syncs["SyncDir data"] != 0 || syncs["Sync data"] != 1 {
		t.Errorf("journal grew by %d bytes, calls %v", b.j.Size()-size, syncs)
	}
	clear(syncs)
	must(t, f.Sync())
	if len(syncs) > 0 {
		t.Errorf("a Sync of nothing: %v", syncs)
	}
}

// The real disk in place of the model.
func TestRealDisk(t *testing.T) {
	fs, err := disk.OpenOS(t.TempDir())
	must(t, err)
	t.Cleanup(func() { must(t, fs.Close()) })
	rnd := rand.New(rand.NewPCG(1, 5))
	r := &rig{t: t, box: mustOpen(t, fs, false)}
	r.add(maxFile)
	for range 3 {
		for range 60 {
			r.random(rnd)
			r.live()
		}
		must(t, r.box.Close())
		must(t, r.box.j.Close())
		r.step("reopen")
		b := mustOpen(t, fs, false)
		r.recovered(b, false)
		r.adopt(b)
	}
	must(t, r.box.Close())
	must(t, r.box.j.Close())
}

var _ io.ReaderAt = (*cache.Snapshot)(nil)
