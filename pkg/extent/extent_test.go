package extent_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/extent"
)

const span = 64

// model is the reference: one bool per byte.
type model [span]bool

func (m *model) set(off, end int64, v bool) {
	for i := max(0, off); i < min(end, span); i++ {
		m[i] = v
	}
}

func (m *model) ranges(off, end int64, v bool) []extent.Range {
	var out []extent.Range
	for i := off; i < end; i++ {
		if m[i] != v {
			continue
		}
		if n := len(out); n > 0 && out[n-1].End == i {
			out[n-1].End++
		} else {
			out = append(out, extent.Range{Off: i, End: i + 1})
		}
	}
	return out
}

func TestSetAgainstBitmap(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var s extent.Set
		var m model
		for step := range 200 {
			a := rnd.Int64N(span)
			b := a + rnd.Int64N(span-a+1)
			switch rnd.IntN(4) {
			case 0, 1:
				s.Add(a, b)
				m.set(a, b, true)
			case 2:
				s.Remove(a, b)
				m.set(a, b, false)
			case 3:
				if rnd.IntN(4) == 0 {
					s.Truncate(a)
					m.set(a, span, false)
				}
			}
			check(t, seed, step, &s, &m, a, b)
		}
	}
}

func check(t *testing.T, seed uint64, step int, s *extent.Set, m *model, a, b int64) {
	t.Helper()
	all := m.ranges(0, span, true)
	if !slices.Equal(s.Ranges(), all) || s.Count() != len(all) {
		t.Fatalf("seed %d step %d: ranges %v, want %v", seed, step, s.Ranges(), all)
	}
	var n int64
	for _, r := range all {
		n += r.Len()
	}
	if s.Len() != n {
		t.Fatalf("seed %d step %d: len %d, want %d", seed, step, s.Len(), n)
	}
	if got, want := s.Gaps(a, b), m.ranges(a, b, false); !slices.Equal(got, want) {
		t.Fatalf("seed %d step %d: gaps(%d,%d) %v, want %v", seed, step, a, b, got, want)
	}
	in := m.ranges(a, b, true)
	if got := s.Intersect(a, b); !slices.Equal(got, in) {
		t.Fatalf("seed %d step %d: intersect(%d,%d) %v, want %v", seed, step, a, b, got, in)
	}
	if s.Overlaps(a, b) != (len(in) > 0) || s.Contains(a, b) != (len(m.ranges(a, b, false)) == 0) {
		t.Fatalf("seed %d step %d: overlaps or contains (%d,%d)", seed, step, a, b)
	}
	next, ok := s.Next(a)
	rest := m.ranges(a, span, true)
	if ok != (len(rest) > 0) || ok && next != rest[0].Off {
		t.Fatalf("seed %d step %d: next(%d) = %d %v", seed, step, a, next, ok)
	}
	gap := a
	for gap < span && m[gap] {
		gap++
	}
	var last extent.Range
	if all := s.Ranges(); len(all) > 0 {
		last = all[len(all)-1]
	}
	if s.Last() != last {
		t.Fatalf("seed %d step %d: last %v, want %v", seed, step, s.Last(), last)
	}
	if s.NextGap(a) != gap {
		t.Fatalf("seed %d step %d: nextgap(%d) = %d, want %d", seed, step, a, s.NextGap(a), gap)
	}
	back, tail, err := extent.ParseSet(append(s.AppendTo(nil), 7))
	if err != nil || !back.Equal(*s) || back.Len() != s.Len() || !slices.Equal(tail, []byte{7}) {
		t.Fatalf("seed %d step %d: round trip: %v", seed, step, err)
	}
	c := s.Clone()
	c.Add(0, span)
	if !slices.Equal(s.Ranges(), all) {
		t.Fatalf("seed %d step %d: a clone shares memory", seed, step)
	}
}

func FuzzParseSet(f *testing.F) {
	var s extent.Set
	s.Add(3, 9)
	s.Add(20, 21)
	f.Add(s.AppendTo(nil))
	f.Add([]byte{1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, rest, err := extent.ParseSet(b)
		if err != nil {
			return
		}
		at := int64(-1)
		for _, r := range s.Ranges() {
			if r.Off <= at && at >= 0 || r.Empty() {
				t.Fatalf("ranges out of order: %v", s.Ranges())
			}
			at = r.End
		}
		again, _, err := extent.ParseSet(append(s.AppendTo(nil), rest...))
		if err != nil || !again.Equal(s) {
			t.Fatalf("not stable: %v", err)
		}
	})
}
