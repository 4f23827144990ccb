package cache_test

import (
	"slices"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/extent"
)

// A file whose object is gone keeps what is here of it, also over a kill and, once synced, a power cut.
func TestOrphan(t *testing.T) {
	b, d := newBox(t, cache.Options{})
	f := b.File(1, 12)
	must(t, f.WriteAt([]byte("AB"), 0, stamp(1)))
	must(t, f.Fill([]byte("cd"), 4, f.Generation()))
	must(t, f.WriteAt([]byte("spilled!"), 12, stamp(2)))
	spillAll(t, f, 3)
	b.Evict(0)
	lost, left, err := f.Orphan()
	must(t, err)
	if want := []extent.Range{{Off: 2, End: 4}, {Off: 6, End: 12}}; !slices.Equal(lost, want) || left != 12 {
		t.Errorf("lost %v, left %d", lost, left)
	}
	check := func(f *cache.File) {
		t.Helper()
		got, err := readAll(f, nil, spilled{3: []byte("............spilled!")})
		if err != nil || string(got) != "AB\x00\x00cd\x00\x00\x00\x00\x00\x00spilled!" {
			t.Errorf("%q, %v", got, err)
		}
	}
	check(f)
	check(mustOpen(t, d.Clone(), false).Lookup(1))
	must(t, f.Sync())
	check(mustOpen(t, d.CrashClone(nil), true).Lookup(1))
}
