package cache_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/extent"
)

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
	if !errors.Is(err, cache.ErrFull) || !errors.Is(err, cache.ErrNoSpace) || !errors.Is(err, disk.ErrNoSpace) {
		t.Fatalf("a full cache: %v", err)
	}
	if err := g.Fits(end, end+4096); !errors.Is(err, cache.ErrFull) {
		t.Errorf("4096 bytes fit into a full cache: %v", err)
	}
	must(t, g.Fits(0, end)) // it is there already
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
	must(t, f.Fits(0, 20<<10))
	if total, reserved := b.Accounted(); reserved != 0 || total > capacity-20<<10 {
		t.Errorf("after the question for room %d bytes are accounted, %d reserved", total, reserved)
	}
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
	if err := f.WriteAt([]byte("abcdefghijklmnop"), 7, stamp(2)); !errors.Is(err, cache.ErrNoSpace) || errors.Is(err, cache.ErrFull) {
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
