package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

// flip changes a bit of a file in the cache, as a disk does that rots.
func flip(t *testing.T, d *diskmem.FS, ino inode.Ino, off int64) {
	t.Helper()
	h, err := d.OpenFile(fmt.Sprintf("data/%02x/%x", byte(ino), uint64(ino)), false)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1)
	_, rerr := h.ReadAt(p, off)
	p[0] ^= 1
	_, werr := h.WriteAt(p, off)
	if err := errors.Join(rerr, werr, h.Close()); err != nil {
		t.Fatal(err)
	}
}

// A disk that changes bytes under the cache: what the bucket has is read from there again, and what it has not is never
// uploaded. Both are counted, the second is told.
func TestRottenDisk(t *testing.T) {
	t.Parallel()
	var h heard
	b := s3mem.New("bucket")
	body := strings.Repeat("clean bytes ", 20_000)
	upload(t, b, "clean", body, s3.Attributes{})
	s := spec(b)
	s.Incident = h.incident
	d := diskmem.New()
	c := running(t, d, "first", s)
	defer abandoned(c)
	e, err := c.fs.Lookup(t.Context(), who, inode.Root, "clean")
	if err != nil {
		t.Fatal(err)
	}
	fh, _, err := c.fs.Open(t.Context(), who, e.Attr.Ino, syscall.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	read := func() {
		t.Helper()
		p := make([]byte, len(body))
		if n, err := c.fs.Read(t.Context(), who, e.Attr.Ino, fh, p, 0); err != nil || string(p[:n]) != body {
			t.Fatalf("read %d bytes, equal: %v, %v", n, string(p[:n]) == body, err)
		}
	}
	read()
	flip(t, d, e.Attr.Ino, 100_000)
	read()
	if st := (&Volume{core: c}).Status(); st.Damaged != 1 || len(h.all) > 0 {
		t.Errorf("damaged: %d, told is %q", st.Damaged, h.all)
	}

	if err := write(c, "dirty", strings.Repeat("dirty bytes ", 10_000)); err != nil {
		t.Fatal(err)
	}
	w, err := c.fs.Lookup(t.Context(), who, inode.Root, "dirty")
	if err != nil {
		t.Fatal(err)
	}
	flip(t, d, w.Attr.Ino, 50_000)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.drain(ctx); !errors.Is(err, cache.ErrDamaged) {
		t.Errorf("drain: %v", err)
	}
	if st := (&Volume{core: c}).Status(); st.Damaged != 2 || !h.has(string(ReasonCacheFailed), "not uploaded") {
		t.Errorf("damaged: %d, told is %q", st.Damaged, h.all)
	}
	if _, err := b.Head(t.Context(), "dirty"); !errors.Is(err, s3.ErrNotExist) {
		t.Errorf("damaged bytes are in the bucket: %v", err)
	}
}
