package writeback

import (
	"errors"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// What servers allow: 10,000 parts of 5 MiB to 5 GiB, the last one may be smaller, an object of 5 TiB.
func TestLayout(t *testing.T) {
	const base, mib = 8 << 20, int64(1 << 20)
	most := base * int64(1000+2000*8+4000*64+3000*128)
	if most < 5<<40 {
		t.Fatalf("the largest object has %d bytes, servers allow 5 TiB", most)
	}
	for _, size := range []int64{1, base, base + 1, 1000 * base, 1000*base + 1, 10 << 40 >> 3, 5 << 40, most} {
		parts, err := layout(size, base)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if len(parts) > 10_000 {
			t.Fatalf("%d bytes: %d parts", size, len(parts))
		}
		var off int64
		for i, p := range parts {
			if p.number != i+1 || p.off != off || p.end <= p.off || p.copied() {
				t.Fatalf("%d bytes: part %d is %+v, want it at %d", size, i+1, p, off)
			}
			if n := p.end - p.off; n > 5<<30 || n < 5*mib && i+1 < len(parts) {
				t.Fatalf("%d bytes: part %d has %d", size, i+1, n)
			}
			off = p.end
		}
		if off != size {
			t.Fatalf("%d bytes: the parts have %d", size, off)
		}
	}
	if _, err := layout(most+1, base); !errors.Is(err, s3.ErrInvalid) {
		t.Errorf("too large: %v", err)
	}
}

// The parts of a file that grew are those that it had, and more.
func TestLayoutIsStable(t *testing.T) {
	small, err := layout(3000<<20, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	large, err := layout(9000<<20, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range small[:len(small)-1] {
		if large[i] != p {
			t.Fatalf("part %d was %+v and is %+v", i+1, p, large[i])
		}
	}
}

// Only a whole part that is in the source and not dirty is copied.
func TestPlan(t *testing.T) {
	const part = 8 << 20
	e := &Executor{opt: Options{Part: part}}
	copied := func(size int64, src namespace.Source, dirty ...extent.Range) (which []int) {
		t.Helper()
		var set extent.Set
		for _, r := range dirty {
			set.Add(r.Off, r.End)
		}
		parts, err := e.plan(size, func(off, end int64) fetch.Source {
			if end > src.Size || set.Overlaps(off, end) {
				return fetch.Source{}
			}
			return fetch.Source{Key: src.Key, Size: src.Size}
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			if p.copied() {
				which = append(which, p.number)
			}
		}
		return which
	}
	whole := namespace.Source{Key: "key", Size: 4 * part}
	for _, c := range []struct {
		name  string
		size  int64
		src   namespace.Source
		dirty []extent.Range
		want  []int
	}{
		{"clean", 4 * part, whole, nil, []int{1, 2, 3, 4}},
		{"no source", 4 * part, namespace.Source{}, nil, nil},
		{"last byte of a part", 4 * part, whole, []extent.Range{{Off: 2*part - 1, End: 2 * part}}, []int{1, 3, 4}},
		{"first byte of a part", 4 * part, whole, []extent.Range{{Off: part, End: part + 1}}, []int{1, 3, 4}},
		{"over a boundary", 4 * part, whole, []extent.Range{{Off: part - 1, End: part + 1}}, []int{3, 4}},
		{"grown", 6 * part, whole, []extent.Range{{Off: 4 * part, End: 6 * part}}, []int{1, 2, 3, 4}},
		{"source ends in a part", 4 * part, namespace.Source{Key: "key", Size: 3*part + 1}, []extent.Range{{Off: 3*part + 1, End: 4 * part}}, []int{1, 2, 3}},
		{"small rest", 3*part + 100, namespace.Source{Key: "key", Size: 4 * part}, nil, []int{1, 2, 3}}, // servers refuse to copy it
		{"cut", 3 * part, whole, nil, []int{1, 2, 3}},
	} {
		got := copied(c.size, c.src, c.dirty...)
		if len(got) != len(c.want) {
			t.Errorf("%s: copied %v, want %v", c.name, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: copied %v, want %v", c.name, got, c.want)
				break
			}
		}
	}
}

// A file that one PUT may have is sent in parts where that is less than the whole, requests included.
func TestWorthParts(t *testing.T) {
	const mib, kib = int64(1 << 20), int64(1 << 10)
	e := &Executor{opt: Options{Part: 8 * mib, SinglePut: 16 * mib}}
	for _, c := range []struct {
		name  string
		size  int64
		src   int64          // size of the object that is changed, 0: there is none
		dirty extent.Range   // what is new
		gone  []extent.Range // what of it is not in the cache
		sent  int64          // in parts; 0: the whole by one PUT
	}{
		{"a new file", 16 * mib, 0, extent.Range{End: 16 * mib}, nil, 0},
		{"a new file beyond one PUT", 16*mib + 1, 0, extent.Range{End: 16*mib + 1}, nil, 16*mib + 1},
		{"a small file, changed a little", 100 * kib, 100 * kib, extent.Range{End: 1}, nil, 0},
		{"below the least part", 5 * mib, 5 * mib, extent.Range{Off: 5*mib - 1, End: 5 * mib}, nil, 0},
		{"changed at its end", 16 * mib, 16 * mib, extent.Range{Off: 16*mib - 4*kib, End: 16 * mib}, nil, 4 * mib},
		{"changed in the middle", 16 * mib, 16 * mib, extent.Range{Off: 8 * mib, End: 8*mib + 1}, nil, 10 * mib}, // the rest is too small to be copied
		{"changed at its start", 16 * mib, 16 * mib, extent.Range{Off: 0, End: 1}, nil, 10 * mib},
		{"appended to", 13 * mib, 12*mib + 1, extent.Range{Off: 12*mib + 1, End: 13 * mib}, nil, 1 * mib},
		{"all but a part is new", 12 * mib, 12 * mib, extent.Range{Off: 2 * mib, End: 12 * mib}, nil, 0},
		{"a small gain", 10 * mib, 10 * mib, extent.Range{Off: 0, End: 1}, nil, 0}, // 10 MiB and a request, or 10 and 5
		{"a gain of what must be fetched", 7 * mib, 7 * mib, extent.Range{Off: 6 * mib, End: 7 * mib}, []extent.Range{{Off: 0, End: 6 * mib}}, 1 * mib},
		{"no gain of what must be fetched", 7 * mib, 7 * mib, extent.Range{Off: 0, End: mib}, []extent.Range{{Off: mib, End: 7 * mib}}, 0},
		{"cut", 12 * mib, 16 * mib, extent.Range{}, nil, 0 * mib},
	} {
		var dirty, gone extent.Set
		dirty.Add(c.dirty.Off, c.dirty.End)
		for _, r := range c.gone {
			gone.Add(r.Off, r.End)
		}
		parts, err := e.plan(c.size, func(off, end int64) fetch.Source {
			if end > c.src || dirty.Overlaps(off, end) {
				return fetch.Source{}
			}
			return fetch.Source{Key: "key", Size: c.src}
		}, func(off, end int64) (n int64) {
			for _, r := range gone.Intersect(off, end) {
				n += r.Len()
			}
			return n
		})
		if err != nil {
			t.Fatal(err)
		}
		var sent int64
		for _, p := range parts {
			if !p.copied() {
				sent += p.end - p.off
			}
		}
		if sent != c.sent || len(parts) == 0 && c.name == "cut" {
			t.Errorf("%s: %d bytes are sent in %d parts, want %d", c.name, sent, len(parts), c.sent)
		}
	}
}

// The part at a position is as large as the one that a layout puts there.
func TestPartAt(t *testing.T) {
	parts, err := layout(5<<40, 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range parts[:len(parts)-1] {
		for _, pos := range []int64{p.off, p.end - 1} {
			if n := partAt(pos, 8<<20); n != p.end-p.off {
				t.Fatalf("part %d has %d bytes, at %d it is %d", i+1, p.end-p.off, pos, n)
			}
		}
	}
}

func TestRanges(t *testing.T) {
	for _, c := range []struct{ size, step, parts int64 }{{10, 10, 1}, {11, 10, 2}, {100, 10, 10}, {1, 10, 1}} {
		parts := ranges(namespace.Source{Key: "key", Size: c.size}, c.step)
		if int64(len(parts)) != c.parts || parts[len(parts)-1].end != c.size || !parts[0].copied() {
			t.Errorf("%d by %d: %+v", c.size, c.step, parts)
		}
	}
}

// Keys that no name in a directory can reach are those that only a removal of the whole takes.
func TestReachable(t *testing.T) {
	for rest, want := range map[string]bool{
		"": true, "a": true, "a/": true, "a/b/c": true, "...": true,
		"/": false, "//a": false, "a//b": false, ".": false, "a/../b": false, "../a": false, "a/./": false,
	} {
		if reachable(rest) != want {
			t.Errorf("%q: %v", rest, !want)
		}
	}
}

// Pauses grow, are never the same for all, and never longer than they may be.
func TestBackoff(t *testing.T) {
	seen := map[bool]bool{}
	for n := range 100 {
		d := backoff(n)
		if d < minPause || d > minPause+maxPause || n == 0 && d > 2*minPause {
			t.Errorf("after %d failures: %v", n, d)
		}
		seen[d > maxPause/4] = true
	}
	if len(seen) != 2 {
		t.Error("they do not grow")
	}
}
