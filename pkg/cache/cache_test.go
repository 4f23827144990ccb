package cache_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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

func TestEvict(t *testing.T) {
	b, mem := newBox(t, cache.Options{})
	p := pattern(1, 0, 8192)
	var files []*cache.File
	for id := range cache.ID(4) {
		f := b.File(id+1, 8192)
		must(t, f.Fill(p, 0, f.Generation()))
		files = append(files, f)
	}
	must(t, files[1].WriteAt([]byte("dirty"), 100, stamp(1)))
	s, err := files[2].Snapshot()
	must(t, err)
	files[0].ReadAt(make([]byte, 1), 0) // now the most recently used one
	if n := b.Evict(1); n == 0 {
		t.Fatal("nothing was freed")
	}
	if len(files[3].Missing(0, 8192))+len(files[1].Missing(0, 8192)) == 0 || len(files[0].Missing(0, 8192)) > 0 {
		t.Error("not the least recently used file went first")
	}
	clean := b.Usage().Clean
	if n := b.Evict(1 << 40); n != clean-8192 {
		t.Errorf("%d bytes freed, want all clean %d without the 8192 of the snapshot", n, clean)
	}
	if u := b.Usage(); u.Clean != 8192 || u.Dirty != 5 {
		t.Errorf("%+v", u)
	}
	wantRead(t, files[1], 100, 5, "dirty", extent.Range{})
	if m := files[1].Missing(0, 8192); !slices.Equal(m, []extent.Range{{Off: 0, End: 100}, {Off: 105, End: 8192}}) {
		t.Errorf("missing: %v", m)
	}
	if _, err := mem.ReadFile("data/01/1"); err == nil {
		t.Error("the data file of a file that has nothing here is still there")
	}
	s.Release()
	if n := b.Evict(1 << 40); n != 8192 {
		t.Errorf("%d bytes freed after the release", n)
	}
	if n := b.Evict(1 << 40); n != 0 {
		t.Errorf("%d bytes freed of nothing", n)
	}
	must(t, files[0].Fill(p, 0, files[0].Generation()))
	if got, err := readAll(files[0], p); err != nil || difference(got, p) >= 0 {
		t.Errorf("filled again: %v", err)
	}
}

func TestCapacity(t *testing.T) {
	const capacity = 64 << 10
	b, _ := newBox(t, cache.Options{Capacity: capacity})
	f := b.File(1, capacity)
	must(t, f.Fill(pattern(1, 0, 30<<10), 0, f.Generation()))
	// What is clean makes room.
	g := b.File(2, 0)
	var end int64
	for end = 0; end < 48<<10; end += 4096 {
		must(t, g.WriteAt(pattern(2, end, 4096), end, stamp(1)))
	}
	if u := b.Usage(); u.Capacity != capacity || u.Dirty != 48<<10 || u.Dirty+u.Clean > capacity {
		t.Errorf("%+v", u)
	}
	// What is dirty does not.
	var err error
	for err == nil && end < 2*capacity {
		if err = g.WriteAt(pattern(2, end, 4096), end, stamp(1)); err == nil {
			end += 4096
		}
	}
	if !errors.Is(err, cache.ErrNoSpace) || !errors.Is(err, disk.ErrNoSpace) {
		t.Fatalf("a full cache: %v", err)
	}
	if g.Size() != end || g.Dirty().Bytes != end || end > capacity {
		t.Errorf("size %d, %+v, want %d", g.Size(), g.Dirty(), end)
	}
	if err := f.Fill(pattern(1, 0, 30<<10), 0, f.Generation()); !errors.Is(err, cache.ErrNoSpace) {
		t.Errorf("Fill into a full cache: %v", err)
	}
	if got, err := readAll(g, nil); err != nil || difference(got, pattern(2, 0, end)) >= 0 {
		t.Errorf("content after ErrNoSpace: %v", err)
	}
	if total, reserved := b.Accounted(); reserved != 0 || total != end {
		t.Errorf("%d bytes accounted, %d reserved", total, reserved)
	}
	// What is here already can be overwritten, also while a snapshot does not need it.
	must(t, g.WriteAt(pattern(2, 0, 4096), 0, stamp(1)))
	must(t, g.PunchHole(0, 4096, stamp(1)))
	// After an upload there is room again.
	s, err := g.Snapshot()
	must(t, err)
	must(t, s.Commit())
	s.Release()
	must(t, f.WriteAt(pattern(3, 0, 20<<10), 0, stamp(2)))
	// And what was cut off or removed gives its room back.
	must(t, f.Truncate(0, stamp(3)))
	must(t, b.Remove(2))
	must(t, g2(b).WriteAt(pattern(4, 0, 31<<10), 0, stamp(4)))
}

func g2(b *box) *cache.File { return b.File(3, 0) }

// Without a capacity the limit is what the file system has, less a reserve.
func TestFileSystemLimit(t *testing.T) {
	mem := diskmem.New()
	mem.SetCapacity(1 << 20)
	now := time.Unix(1_800_000_000, 0)
	b, err := openBox(mem, cache.Options{Now: func() time.Time { now = now.Add(2 * time.Second); return now }}, false)
	must(t, err)
	f := b.File(1, 0)
	var end int64
	for ; err == nil && end < 2<<20; end += 4096 {
		err = f.WriteAt(make([]byte, 4096), end, stamp(1))
	}
	if !errors.Is(err, cache.ErrNoSpace) {
		t.Fatal(err)
	}
	if _, free, _ := mem.Space(); free < 1<<20/20-4096 || free > 1<<20/5 {
		t.Errorf("%d bytes of the file system are left, want about 5%%", free)
	}
	// Others filled the disk: the cache's limit goes down with it, and clean bytes go.
	other, err := mem.OpenFile("other", true)
	must(t, err)
	if u := b.Usage(); u.Free > 64<<10 {
		t.Errorf("%+v", u)
	}
	_, err = other.WriteAt(make([]byte, 30<<10), 0)
	must(t, err)
	if u := b.Usage(); u.Free > 0 {
		t.Errorf("%+v, but the disk is full", u)
	}
}

// A disk that is full before the cache's limit: bytes that could not be written are not there.
func TestDiskFull(t *testing.T) {
	full := false
	mem := diskmem.New()
	fs := diskfault.New(mem, func(op diskfault.Op) error {
		if full && op.Name == "WriteAt" && strings.HasPrefix(op.Path, "data/") {
			return &diskfault.Partial{N: 5, Err: disk.ErrNoSpace}
		}
		return nil
	})
	b := mustOpen(t, fs, false)
	f := b.File(1, 20)
	must(t, f.WriteAt([]byte("0123456789"), 0, stamp(1)))
	full = true
	if err := f.WriteAt([]byte("abcdefghijklmnop"), 7, stamp(2)); !errors.Is(err, cache.ErrNoSpace) {
		t.Fatal(err)
	}
	full = false
	// [7,10) was dirty and holds the new bytes, [10,12) was missing and is so still.
	wantRead(t, f, 0, 99, "0123456abc", extent.Range{Off: 10, End: 20})
	if d := f.Dirty(); d.Bytes != 10 || d.Size != 20 {
		t.Errorf("%+v", d)
	}
	if err := f.WriteAt([]byte("Z"), 30, stamp(3)); err != nil {
		t.Errorf("write after the disk has room again: %v", err)
	}
	if s, err := f.Snapshot(); err != nil {
		t.Errorf("a full disk must not poison: %v", err)
	} else {
		s.Release()
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

// openFiles counts open data files, and refuses those that were closed.
type openFiles struct {
	disk.FS
	mu        sync.Mutex
	open, max int
}

type countedFile struct {
	disk.File
	of     *openFiles
	closed atomic.Bool
}

var errClosed = errors.New("the file is closed")

func (o *openFiles) OpenFile(name string, create bool) (disk.File, error) {
	f, err := o.FS.OpenFile(name, create)
	if err != nil || !strings.HasPrefix(name, "data/") {
		return f, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open++
	o.max = max(o.max, o.open)
	return &countedFile{File: f, of: o}, nil
}

func (c *countedFile) ReadAt(p []byte, off int64) (int, error) {
	runtime.Gosched() // whoever closes too early gets the chance to
	if c.closed.Load() {
		return 0, errClosed
	}
	return c.File.ReadAt(p, off)
}

func (c *countedFile) WriteAt(p []byte, off int64) (int, error) {
	if c.closed.Load() {
		return 0, errClosed
	}
	return c.File.WriteAt(p, off)
}

func (c *countedFile) Sync() error {
	time.Sleep(100 * time.Microsecond)
	if c.closed.Load() {
		return errClosed
	}
	return c.File.Sync()
}

func (c *countedFile) Close() error {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.of.open--
	if c.closed.Swap(true) {
		return errClosed
	}
	return c.File.Close()
}

func TestManyFiles(t *testing.T) {
	const files = 2000
	mem := diskmem.New()
	fs := &openFiles{FS: mem}
	b := mustOpen(t, fs, false)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for id := g; id < files; id += 4 {
				f := b.File(cache.ID(id+1), 0)
				if err := f.WriteAt(fmt.Appendf(nil, "file %d", id), 0, stamp(id)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for id := range files {
		wantRead(t, b.Lookup(cache.ID(id+1)), 0, 99, fmt.Sprintf("file %d", id), extent.Range{})
	}
	if fs.max > 600 {
		t.Errorf("%d data files were open at once", fs.max)
	}
	if u := b.Usage(); u.Files != files || u.DirtyFiles != files {
		t.Errorf("%+v", u)
	}
	must(t, b.checkpoint())
	must(t, b.Close())
	if fs.open != 0 {
		t.Errorf("%d data files are open after Close", fs.open)
	}
	again := &openFiles{FS: mem.Clone()}
	b = mustOpen(t, again, false)
	if len(b.rec.Dirty) != files || again.max > 600 {
		t.Errorf("%d files after a restart, %d open at once", len(b.rec.Dirty), again.max)
	}
	wantRead(t, b.Lookup(77), 0, 99, "file 76", extent.Range{})
}

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
