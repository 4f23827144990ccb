package cache_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/extent"
)

const block = 32 << 10

// rotten is a store on a disk whose bytes a test changes.
type rotten struct {
	t *testing.T
	*box
	fs   *diskmem.FS
	now  time.Time
	told []string
	body []byte // of the remote object
	f    *cache.File
}

// rot opens a store with a file of 4 blocks and a bit more, all of it fetched.
func rot(t *testing.T) *rotten {
	t.Helper()
	r := &rotten{t: t, fs: diskmem.New(), now: time.Unix(1_700_000_000, 0)}
	x, err := openBox(r.fs, cache.Options{
		Now: func() time.Time { return r.now },
		Damaged: func(id cache.ID, off, end int64, dirty bool) {
			r.told = append(r.told, fmt.Sprint(id, extent.Range{Off: off, End: end}, dirty))
		},
	}, false)
	r.ok(err)
	r.box = x
	r.body = pattern(1, 0, 4*block+1000)
	r.f = x.File(1, int64(len(r.body)))
	r.ok(r.f.Fill(r.body, 0, 0))
	return r
}

func (r *rotten) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// flip changes a bit of the data file.
func (r *rotten) flip(off int64) {
	r.t.Helper()
	h, err := r.fs.OpenFile("data/01/1", false)
	r.ok(err)
	p := make([]byte, 1)
	if _, err := h.ReadAt(p, off); err != nil {
		r.t.Fatal(err)
	}
	p[0] ^= 4
	_, err = h.WriteAt(p, off)
	r.ok(errors.Join(err, h.Close()))
}

// read reads as package vfs does: what is missing is fetched.
func (r *rotten) read(off, end int64) []byte {
	r.t.Helper()
	p := make([]byte, end-off)
	for range 10 {
		n, missing, err := r.f.ReadAt(p, off)
		r.ok(err)
		if missing.Empty() {
			return p[:n]
		}
		r.ok(r.f.Fill(r.body[missing.Off:missing.End], missing.Off, r.f.Generation()))
	}
	r.t.Fatal("it stays missing")
	return nil
}

func (r *rotten) wants(off, end int64, body []byte) {
	r.t.Helper()
	if !bytes.Equal(r.read(off, end), body[off:end]) {
		r.t.Errorf("[%d, %d) reads other than it was stored", off, end)
	}
}

func (r *rotten) wantTold(want ...string) {
	r.t.Helper()
	if !slices.Equal(r.told, want) {
		r.t.Errorf("told of %q, want %q", r.told, want)
	}
}

// Clean bytes that the disk has changed are fetched again, whichever piece of them is read.
func TestDamagedClean(t *testing.T) {
	for _, c := range []struct{ flip, off, end int64 }{
		{0, 0, 4096}, {block - 1, 0, 4096}, {block + 5, 0, 4 * block}, {3*block + 100, 3*block + 50, 4*block + 70},
		{4*block + 999, 4*block + 10, 4*block + 20}, {4*block + 500, 0, 4*block + 1000}, {2 * block, 2 * block, 2*block + 1},
	} {
		r := rot(t)
		r.flip(c.flip)
		r.wants(c.off, c.end, r.body)
		b := c.flip / block * block
		r.wantTold(fmt.Sprint(1, extent.Range{Off: b, End: min(b+block, int64(len(r.body)))}, false))
		r.wants(0, int64(len(r.body)), r.body)
		r.ok(r.Reap())
		r.wants(0, int64(len(r.body)), r.body)
		if u := r.Usage(); u.Clean != int64(len(r.body)) || u.Dirty != 0 {
			t.Errorf("usage %+v", u)
		}
	}
}

// A block of which pieces are read is checked once a minute; one that is read as a whole, each time.
func TestDamagedLater(t *testing.T) {
	r := rot(t)
	r.wants(100, 200, r.body)
	r.flip(7)
	r.wants(100, 200, r.body)
	r.wantTold()
	r.now = r.now.Add(time.Minute)
	r.wants(100, 200, r.body)
	if len(r.told) != 1 {
		t.Errorf("told of %q, want block 0", r.told)
	}
	r.flip(block)
	r.wants(block, 2*block, r.body)
	r.flip(block)
	r.wants(block, 2*block, r.body)
	if len(r.told) != 3 {
		t.Errorf("told of %q, want block 1 twice, too", r.told)
	}
}

// Dirty bytes that the disk has changed are an error, and are never uploaded: nobody else has them.
func TestDamagedDirty(t *testing.T) {
	for name, write := range map[string]func(r *rotten, p []byte, off int64) error{
		"at once": func(r *rotten, p []byte, off int64) error { return r.f.WriteAt(p, off, stamp(1)) },
		"in pieces": func(r *rotten, p []byte, off int64) error {
			var errs []error
			for i := 0; i < len(p); i += 4000 {
				errs = append(errs, r.f.WriteAt(p[i:min(i+4000, len(p))], off+int64(i), stamp(1)))
			}
			return errors.Join(errs...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := rot(t)
			fresh := pattern(2, 0, block)
			r.ok(write(r, fresh, block))
			r.wants(block, 2*block, append(make([]byte, block), fresh...))
			snap, err := r.f.Snapshot()
			r.ok(err)
			r.now = r.now.Add(time.Minute)
			r.flip(block + 17)
			if _, _, err := r.f.ReadAt(make([]byte, 10), block+100); !errors.Is(err, cache.ErrDamaged) {
				t.Errorf("read: %v", err)
			}
			if _, err := snap.ReadAt(make([]byte, 10), block+100); !errors.Is(err, cache.ErrDamaged) {
				t.Errorf("read of the snapshot: %v", err)
			}
			if err := snap.Commit(); !errors.Is(err, cache.ErrPoisoned) {
				t.Errorf("commit: %v", err)
			}
			snap.Release()
			if _, err := r.f.Snapshot(); !errors.Is(err, cache.ErrPoisoned) || !errors.Is(err, cache.ErrDamaged) {
				t.Errorf("snapshot: %v", err)
			}
			r.wantTold(fmt.Sprint(1, extent.Range{Off: block, End: 2 * block}, true))
			r.flip(3 * block)
			r.wants(2*block, 4*block, r.body) // the rest of the file
		})
	}
}

// What an upload reads is right, too: changed clean bytes are missing in its snapshot.
func TestDamagedInSnapshot(t *testing.T) {
	r := rot(t)
	r.ok(r.f.WriteAt(pattern(2, 0, 10), 10, stamp(1)))
	snap, err := r.f.Snapshot()
	r.ok(err)
	r.flip(2*block + 1)
	p := make([]byte, 100)
	if _, err := snap.ReadAt(p, 2*block+50); !errors.Is(err, cache.ErrMissing) {
		t.Errorf("read of changed bytes: %v", err)
	}
	r.ok(r.f.Fill(r.body[2*block:3*block], 2*block, r.f.Generation()))
	if _, err := snap.ReadAt(p, 2*block+50); err != nil || !bytes.Equal(p, r.body[2*block+50:2*block+150]) {
		t.Errorf("after the fetch: %v", err)
	}
	// What a write puts aside for the snapshot is checked before.
	r.flip(3*block + 1)
	r.ok(r.f.WriteAt(pattern(3, 0, 10), 3*block+100, stamp(2)))
	if missing := snap.Missing(3*block, 3*block+200); len(missing) != 1 {
		t.Errorf("missing: %v", missing)
	}
	r.ok(r.f.Fill(r.body[3*block:4*block], 3*block, r.f.Generation()))
	if _, err := snap.ReadAt(p, 3*block+50); err != nil || !bytes.Equal(p, r.body[3*block+50:3*block+150]) {
		t.Errorf("what was put aside: %v", err)
	}
	if _, err := snap.ReadAt(make([]byte, 2000), 4*block); err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	snap.Release()
	if len(r.told) != 2 {
		t.Errorf("told of %q", r.told)
	}
}

// A write over dirty bytes that a snapshot needs and the disk has changed does nothing.
func TestDamagedUnderWrite(t *testing.T) {
	r := rot(t)
	r.ok(r.f.WriteAt(pattern(2, 0, block), 0, stamp(1)))
	snap, err := r.f.Snapshot()
	r.ok(err)
	defer snap.Release()
	r.flip(5)
	if err := r.f.WriteAt([]byte("new"), 100, stamp(2)); !errors.Is(err, cache.ErrDamaged) {
		t.Errorf("write: %v", err)
	}
	if err := r.f.WriteAt([]byte("new"), 2*block, stamp(2)); !errors.Is(err, cache.ErrPoisoned) {
		t.Errorf("write elsewhere: %v", err)
	}
}

// What was damaged when it was read, and was overwritten since, is neither dropped nor told.
func TestDamagedNoMore(t *testing.T) {
	r := rot(t)
	r.flip(10)
	r.ok(r.f.WriteAt(pattern(2, 0, block), 0, stamp(1)))
	if !r.f.Mend(0, block) || !r.f.Mend(block, 2*block) {
		t.Error("it is not worth another attempt")
	}
	r.wantTold()
	r.wants(0, block, pattern(2, 0, block))
	if missing := r.f.Missing(0, r.f.Size()); len(missing) > 0 {
		t.Errorf("missing: %v", missing)
	}
}
