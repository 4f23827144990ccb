package chaos_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
)

// part is a range of a file that one write made. Its bytes follow from the write's generation and their offset in the
// file; generation 0 is zeros. Where old and new bytes stand side by side, they are kept as they were read.
type part struct {
	off, end int64
	gen      uint64
	read     []byte
}

// word is 8 bytes of a generation; at counts them from the beginning of the file.
func word(gen uint64, at int64) uint64 {
	x := gen*0x9e3779b97f4a7c15 + uint64(at)*0xbf58476d1ce4e5b9
	x ^= x >> 31
	x *= 0x94d049bb133111eb
	return x ^ x>>29
}

// fill sets p to the part's bytes at off.
func (x part) fill(p []byte, off int64) {
	switch {
	case x.read != nil:
		copy(p, x.read[off-x.off:])
		return
	case x.gen == 0:
		clear(p)
		return
	}
	var b [8]byte
	for n := 0; n < len(p); {
		at := off + int64(n)
		w := word(x.gen, at/8)
		if at%8 == 0 && len(p)-n >= 8 {
			binary.LittleEndian.PutUint64(p[n:], w)
			n += 8
			continue
		}
		binary.LittleEndian.PutUint64(b[:], w)
		n += copy(p[n:], b[at%8:])
	}
}

func (x part) cut(off, end int64) part {
	y := part{off: max(x.off, off), end: min(x.end, end), gen: x.gen}
	if x.read != nil && y.off < y.end {
		y.read = x.read[y.off-x.off : y.end-x.off]
	}
	return y
}

// content is a file's bytes: parts in order, without gaps, from 0 to its size. It is never changed.
type content []part

func (c content) size() int64 {
	if len(c) == 0 {
		return 0
	}
	return c[len(c)-1].end
}

// add appends a part, joined to the last one where they are of one write.
func (c content) add(x part) content {
	if x.off >= x.end {
		return c
	}
	if n := len(c) - 1; n >= 0 && c[n].read == nil && x.read == nil && c[n].gen == x.gen {
		c[n].end = x.end
		return c
	}
	return append(c, x)
}

// slice is what of c lies in [off, end).
func (c content) slice(off, end int64) content {
	var out content
	for _, x := range c {
		out = out.add(x.cut(off, end))
	}
	return out
}

// resize cuts c, or adds zeros.
func (c content) resize(size int64) content {
	return c.slice(0, size).add(part{off: c.size(), end: size})
}

// overlay is c after a write.
func (c content) overlay(x part) content {
	out := c.resize(min(c.size(), x.off)).resize(x.off).add(x)
	for _, y := range c.slice(x.end, c.size()) {
		out = out.add(y)
	}
	return out
}

// same says that both are the same bytes by the same writes.
func (c content) same(d content) bool {
	return slices.EqualFunc(c, d, func(x, y part) bool {
		return x.off == y.off && x.end == y.end && x.gen == y.gen && bytes.Equal(x.read, y.read)
	})
}

func (c content) mixed() bool {
	return slices.ContainsFunc(c, func(x part) bool { return x.read != nil })
}

// errContent: a file holds what nobody wrote there, or what should have been replaced.
var errContent = errors.New("content is not what was acknowledged")

// lookStep is how much of a file is read at once, in bytes.
const lookStep = 1 << 20

// explain says what r, of size bytes, holds: each byte must be what one of the versions from floor on has there, and the
// size one of theirs, or one on the way of a write from one to the next.
func (f *file) explain(r io.ReaderAt, size int64, floor int) (content, error) {
	versions := f.versions[floor:]
	known := false
	var sizes []int64
	for i, v := range versions {
		known = known || v.size() == size || i > 0 && v.write && size > versions[i-1].size() && size < v.size()
		sizes = append(sizes, v.size())
	}
	if !known {
		return nil, fmt.Errorf("%w: %d bytes, should be one of %v", errContent, size, sizes)
	}
	ends := []int64{size}
	for _, v := range versions {
		for _, x := range v.content {
			if x.end < size {
				ends = append(ends, x.end)
			}
		}
	}
	for at := int64(lookStep); at < size; at += lookStep {
		ends = append(ends, at)
	}
	slices.Sort(ends)
	var out content
	got, want := make([]byte, lookStep), make([]byte, lookStep)
	off := int64(0)
	for _, end := range slices.Compact(ends) {
		n := end - off
		if n == 0 {
			continue
		}
		if _, err := r.ReadAt(got[:n], off); err != nil {
			return nil, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
		}
		x, err := explainRange(got[:n], want[:n], off, versions)
		if err != nil {
			return nil, err
		}
		out = out.add(x)
		off = end
	}
	return out, nil
}

// explainRange explains got, at off. No version has a boundary within it. want is a buffer of the same length.
func explainRange(got, want []byte, off int64, versions []version) (part, error) {
	end := off + int64(len(got))
	var may []part
	for _, v := range slices.Backward(versions) {
		i, ok := slices.BinarySearchFunc(v.content, off, func(x part, off int64) int {
			switch {
			case x.end <= off:
				return -1
			case x.off > off:
				return 1
			}
			return 0
		})
		if !ok {
			continue
		}
		x := v.content[i].cut(off, end)
		if slices.ContainsFunc(may, func(y part) bool {
			return x.gen == y.gen && (x.read == nil) == (y.read == nil) && bytes.Equal(x.read, y.read)
		}) {
			continue
		}
		x.fill(want, off)
		if bytes.Equal(got, want) {
			return x, nil
		}
		may = append(may, x)
	}
	open := make([]bool, len(got))
	for i := range open {
		open[i] = true
	}
	for _, x := range may {
		x.fill(want, off)
		for i := range got {
			if got[i] == want[i] {
				open[i] = false
			}
		}
	}
	if i := slices.Index(open, true); i >= 0 {
		return part{}, fmt.Errorf("%w: byte %d (of %d to %d) is of write %s; writes %v may be there", errContent, off+int64(i), off, end, origin(got[i:], off+int64(i)), generations(may))
	}
	return part{off: off, end: end, read: bytes.Clone(got)}, nil
}

// origin names the write that foreign bytes look like.
func origin(got []byte, off int64) string {
	got = got[:min(len(got), 16)]
	want := make([]byte, len(got))
	for gen := range uint64(1 << 16) {
		if (part{gen: gen}).fill(want, off); bytes.Equal(got, want) {
			return fmt.Sprint(gen)
		}
	}
	return fmt.Sprintf("nobody (%x)", got)
}

func generations(parts []part) (all []uint64) {
	for _, x := range parts {
		all = append(all, x.gen)
	}
	return all
}

// TestExplain: what somebody may have written is explained, and nothing else.
func TestExplain(t *testing.T) {
	write := func(off, end int64, gen uint64) part { return part{off: off, end: end, gen: gen} }
	first := content{}.overlay(write(0, 10_000, 1))
	second := first.overlay(write(3000, 5000, 2))
	third := second.resize(9000)
	fourth := third.overlay(write(9500, 12_000, 3))
	f := &file{versions: []version{{first, true}, {second, true}, {third, false}, {fourth, true}}}
	bytesOf := func(c content) []byte {
		p := make([]byte, c.size())
		for _, x := range c {
			x.fill(p[x.off:x.end], x.off)
		}
		return p
	}
	mix := bytesOf(second)
	copy(mix[3000:3500], bytesOf(first)[3000:3500])
	foreign := bytesOf(second)
	foreign[4000]++
	zeroed := bytesOf(third)
	clear(zeroed[6000:6010])
	for _, x := range []struct {
		name  string
		got   []byte
		floor int
		ok    bool
	}{
		{"first", bytesOf(first), 0, true},
		{"first, replaced", bytesOf(first), 1, false},
		{"second", bytesOf(second), 1, true},
		{"third", bytesOf(third), 2, true},
		{"fourth", bytesOf(fourth), 3, true},
		{"half of the last write", bytesOf(fourth)[:11_000], 2, true},
		{"half of the last write, after it returned", bytesOf(fourth)[:11_000], 3, false},
		{"a size that nobody made", bytesOf(first)[:8000], 0, false},
		{"old and new bytes", mix, 0, true},
		{"old and new bytes, the old ones replaced", mix, 1, false},
		{"a foreign byte", foreign, 0, false},
		{"zeros that nobody wrote", zeroed, 0, false},
	} {
		c, err := f.explain(bytes.NewReader(x.got), int64(len(x.got)), x.floor)
		if (err == nil) != x.ok {
			t.Errorf("%s: %v", x.name, err)
		}
		if err == nil && !bytes.Equal(bytesOf(c), x.got) {
			t.Errorf("%s: the explanation is of other bytes", x.name)
		}
	}
}
