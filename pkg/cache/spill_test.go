package cache_test

import (
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/extent"
)

// spillAll takes a snapshot of a file and spills what is dirty in it.
func spillAll(t *testing.T, f *cache.File, number uint64) {
	t.Helper()
	s, err := f.Snapshot()
	must(t, err)
	defer s.Release()
	r := s.Longest()
	must(t, s.Spill(number, r.Off, r.End))
}

// A spilled range can be evicted and is fetched from its own object; the file stays dirty.
func TestSpill(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 0)
	must(t, f.WriteAt([]byte("0123456789"), 0, stamp(1)))
	spillAll(t, f, 7)
	if d := f.Dirty(); d.Bytes != 0 || d.Since.IsZero() {
		t.Errorf("after the spill: %+v", d)
	}
	b.Evict(1 << 40)
	wantRead(t, f, 0, 10, "", extent.Range{Off: 0, End: 10})
	if n, end := f.Spilled(3); n != 7 || end != 10 {
		t.Errorf("byte 3 is in %d up to %d", n, end)
	}
	must(t, f.WriteAt([]byte("ab"), 4, stamp(2)))
	for _, c := range []struct {
		off, end int64
		number   uint64
		ok       bool
	}{{0, 4, 7, true}, {0, 5, 0, false}, {4, 6, 0, false}, {6, 10, 7, true}} {
		s, err := f.Snapshot()
		must(t, err)
		if n, ok := s.Whole(c.off, c.end); n != c.number && ok || ok != c.ok {
			t.Errorf("[%d, %d) is in %d, %v", c.off, c.end, n, ok)
		}
		s.Release()
	}
	// What was cut away does not come back when the file grows.
	must(t, f.Truncate(2, stamp(3)))
	must(t, f.Truncate(10, stamp(4)))
	if m := f.Missing(0, 10); len(m) != 1 || m[0] != (extent.Range{Off: 0, End: 2}) {
		t.Errorf("missing %v", m)
	}
	wantRead(t, f, 2, 8, strings.Repeat("\x00", 8), extent.Range{})
}

// A request for older bytes that is on its way does not fill a range that was spilled anew since.
func TestSpillEndsOldFetch(t *testing.T) {
	b, _ := newBox(t, cache.Options{})
	f := b.File(1, 4)
	generation := f.Generation()
	must(t, f.WriteAt([]byte("new!"), 0, stamp(1)))
	spillAll(t, f, 1)
	b.Evict(1 << 40)
	must(t, f.Fill([]byte("old!"), 0, generation))
	wantRead(t, f, 0, 4, "", extent.Range{Off: 0, End: 4})
}
