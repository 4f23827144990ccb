package extent

import (
	"encoding/binary"
	"errors"
	"slices"
	"sort"
)

// Range is the bytes from Off up to, and without, End.
type Range struct{ Off, End int64 }

// Len is the number of bytes.
func (r Range) Len() int64 { return max(0, r.End-r.Off) }

// Empty says that the range holds no byte.
func (r Range) Empty() bool { return r.End <= r.Off }

// Set is a set of bytes. The zero value is empty. It is not safe for concurrent use.
type Set struct {
	r   []Range
	len int64
}

// ErrMalformed: Parse was given bytes that AppendTo did not make.
var ErrMalformed = errors.New("malformed extent set")

// search is the index of the first range that ends after off.
func (s *Set) search(off int64) int {
	if n := len(s.r); n > 0 && s.r[n-1].End <= off {
		return n // appending is the common case
	}
	return sort.Search(len(s.r), func(i int) bool { return s.r[i].End > off })
}

// Add puts [off, end) into the set.
func (s *Set) Add(off, end int64) {
	if end <= off {
		return
	}
	// i is the first range that touches or follows off, j the first that starts beyond end.
	i := sort.Search(len(s.r), func(i int) bool { return s.r[i].End >= off })
	j := i
	for j < len(s.r) && s.r[j].Off <= end {
		off, end = min(off, s.r[j].Off), max(end, s.r[j].End)
		s.len -= s.r[j].Len()
		j++
	}
	s.len += end - off
	if j == i+1 {
		s.r[i] = Range{off, end}
		return
	}
	s.r = slices.Replace(s.r, i, j, Range{off, end})
}

// Remove takes [off, end) out of the set.
func (s *Set) Remove(off, end int64) {
	if end <= off {
		return
	}
	i := s.search(off)
	j := i
	var keep [2]Range
	n := 0
	for j < len(s.r) && s.r[j].Off < end {
		r := s.r[j]
		s.len -= r.Len()
		if r.Off < off {
			keep[n] = Range{r.Off, off}
			s.len += keep[n].Len()
			n++
		}
		if r.End > end {
			keep[n] = Range{end, r.End}
			s.len += keep[n].Len()
			n++
		}
		j++
	}
	if i == j {
		return
	}
	s.r = slices.Replace(s.r, i, j, keep[:n]...)
}

// Contains says that all of [off, end) is in the set. An empty range always is.
func (s *Set) Contains(off, end int64) bool {
	if end <= off {
		return true
	}
	i := s.search(off)
	return i < len(s.r) && s.r[i].Off <= off && s.r[i].End >= end
}

// Overlaps says that some byte of [off, end) is in the set.
func (s *Set) Overlaps(off, end int64) bool {
	i := s.search(off)
	return end > off && i < len(s.r) && s.r[i].Off < end
}

// Gaps returns the parts of [off, end) that are not in the set, ascending.
func (s *Set) Gaps(off, end int64) []Range {
	var gaps []Range
	for i := s.search(off); off < end && i < len(s.r) && s.r[i].Off < end; i++ {
		if s.r[i].Off > off {
			gaps = append(gaps, Range{off, s.r[i].Off})
		}
		off = s.r[i].End
	}
	if off < end {
		gaps = append(gaps, Range{off, end})
	}
	return gaps
}

// Intersect returns the parts of [off, end) that are in the set, ascending.
func (s *Set) Intersect(off, end int64) []Range {
	var in []Range
	for i := s.search(off); i < len(s.r) && s.r[i].Off < end; i++ {
		in = append(in, Range{max(off, s.r[i].Off), min(end, s.r[i].End)})
	}
	if end <= off {
		return nil
	}
	return in
}

// Ranges returns a copy of all ranges, ascending.
func (s *Set) Ranges() []Range { return slices.Clone(s.r) }

// Last is the last range, empty when there is none.
func (s *Set) Last() Range {
	if len(s.r) == 0 {
		return Range{}
	}
	return s.r[len(s.r)-1]
}

// Len is the number of bytes in the set.
func (s *Set) Len() int64 { return s.len }

// Count is the number of separate ranges.
func (s *Set) Count() int { return len(s.r) }

// Clone returns an independent copy.
func (s *Set) Clone() Set { return Set{slices.Clone(s.r), s.len} }

// AddSet puts all of o into s, RemoveSet takes it out.
func (s *Set) AddSet(o Set) {
	for _, r := range o.r {
		s.Add(r.Off, r.End)
	}
}

// RemoveSet takes all of o out of s.
func (s *Set) RemoveSet(o Set) {
	for _, r := range o.r {
		s.Remove(r.Off, r.End)
	}
}

// Truncate takes out all bytes at and beyond size.
func (s *Set) Truncate(size int64) {
	if n := len(s.r); n > 0 {
		s.Remove(size, s.r[n-1].End)
	}
}

// Clear makes the set empty.
func (s *Set) Clear() { s.r, s.len = nil, 0 }

// Equal says that both sets hold the same bytes.
func (s *Set) Equal(o Set) bool { return slices.Equal(s.r, o.r) }

// Next is the first byte at or after off that is in the set; ok is false when there is none.
func (s *Set) Next(off int64) (next int64, ok bool) {
	i := s.search(off)
	if i == len(s.r) {
		return 0, false
	}
	return max(off, s.r[i].Off), true
}

// NextGap is the first byte at or after off that is not in the set.
func (s *Set) NextGap(off int64) int64 {
	if i := s.search(off); i < len(s.r) && s.r[i].Off <= off {
		return s.r[i].End
	}
	return off
}

// AppendTo appends the set's binary form: the count, then for each range the distance from the end of the one before
// and the length, all unsigned varints.
func (s *Set) AppendTo(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(s.r)))
	var at int64
	for _, r := range s.r {
		b = binary.AppendUvarint(b, uint64(r.Off-at))
		b = binary.AppendUvarint(b, uint64(r.End-r.Off))
		at = r.End
	}
	return b
}

// ParseSet reads what AppendTo wrote at the start of b and returns the rest. ErrMalformed on anything else.
func ParseSet(b []byte) (s Set, rest []byte, err error) {
	count, n := binary.Uvarint(b)
	if n <= 0 || count > uint64(len(b)) {
		return Set{}, nil, ErrMalformed
	}
	b = b[n:]
	var at int64
	for i := range count {
		gap, n := binary.Uvarint(b)
		if n <= 0 {
			return Set{}, nil, ErrMalformed
		}
		length, m := binary.Uvarint(b[n:])
		const limit = 1 << 62
		if m <= 0 || gap > limit || length > limit || length == 0 || gap == 0 && i > 0 || uint64(at)+gap+length > limit {
			return Set{}, nil, ErrMalformed
		}
		b = b[n+m:]
		s.r = append(s.r, Range{at + int64(gap), at + int64(gap) + int64(length)})
		s.len += int64(length)
		at += int64(gap) + int64(length)
	}
	return s, b, nil
}
