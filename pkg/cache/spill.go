package cache

import (
	"encoding/binary"
	"io/fs"
	"slices"

	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// spills are ranges of a file whose bytes are in remote objects of their own, by the number of each.
type spills struct {
	all  extent.Set
	each []spill // no two overlap, none is empty
}

type spill struct {
	number uint64
	set    extent.Set
}

func (s *spills) clone() spills {
	c := spills{all: s.all.Clone(), each: slices.Clone(s.each)}
	for i := range c.each {
		c.each[i].set = c.each[i].set.Clone()
	}
	return c
}

// change applies do to every set, and forgets those that are empty then.
func (s *spills) change(do func(*extent.Set)) {
	do(&s.all)
	for i := range s.each {
		do(&s.each[i].set)
	}
	s.each = slices.DeleteFunc(s.each, func(x spill) bool { return x.set.Len() == 0 })
}

func (s *spills) remove(set extent.Set) {
	if s.all.Len() > 0 {
		s.change(func(x *extent.Set) { x.RemoveSet(set) })
	}
}

func (s *spills) cut(size int64) {
	if s.all.Len() > 0 {
		s.change(func(x *extent.Set) { x.Truncate(size) })
	}
}

func (s *spills) add(number uint64, set extent.Set) {
	if set.Len() == 0 {
		return
	}
	s.remove(set)
	s.all.AddSet(set)
	for i := range s.each {
		if s.each[i].number == number {
			s.each[i].set.AddSet(set)
			return
		}
	}
	s.each = append(s.each, spill{number, set.Clone()})
}

// at says in which object the byte at pos is, 0 for none, and up to where, at most end, all bytes are so.
func (s *spills) at(pos, end int64) (number uint64, to int64) {
	for i := range s.each {
		if to := s.each[i].set.NextGap(pos); to > pos {
			return s.each[i].number, min(to, end)
		}
	}
	if next, ok := s.all.Next(pos); ok {
		end = min(end, next)
	}
	return 0, end
}

// missing returns the ranges of [off, end) that a remote object has, one that is behind the first base bytes or one of
// the spills, and that are in none of the sets here.
func missing(off, end, base int64, s *spills, here ...*extent.Set) []extent.Range {
	remote := make([]extent.Range, 0, 4)
	if off < min(end, base) {
		remote = append(remote, extent.Range{Off: off, End: min(end, base)})
	}
	remote = append(remote, s.all.Intersect(max(off, base), end)...)
	for _, set := range here {
		var left []extent.Range
		for _, r := range remote {
			left = append(left, set.Gaps(r.Off, r.End)...)
		}
		remote = left
	}
	return remote
}

// Spilled says in which spill the missing byte at off is, and up to where all missing bytes are in the same one: 0 stands
// for the object that is behind the file as a whole.
func (f *File) Spilled(off int64) (number uint64, end int64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.spilled.at(off, max(f.size, off))
}

// Spilled is File.Spilled for what the snapshot misses.
func (s *Snapshot) Spilled(off int64) (number uint64, end int64) {
	s.f.mu.RLock()
	defer s.f.mu.RUnlock()
	return s.spilled.at(off, max(s.size, off))
}

// Whole says that one remote object has all of [off, end) of the snapshot: the spill of that number, or with 0 the object
// behind the file as a whole.
func (s *Snapshot) Whole(off, end int64) (number uint64, ok bool) {
	if s.dirty.Overlaps(off, end) {
		return 0, false
	}
	number, to := s.spilled.at(off, end)
	return number, to >= end && (number != 0 || end <= s.base)
}

// Tail is the range at the end of the file that is dirty from end to end.
func (f *File) Tail() extent.Range {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return tail(&f.dirty, f.size)
}

// Tail is File.Tail of the snapshot.
func (s *Snapshot) Tail() extent.Range { return tail(&s.dirty, s.size) }

func tail(dirty *extent.Set, size int64) extent.Range {
	if r := dirty.Last(); r.End == size {
		return r
	}
	return extent.Range{}
}

// Longest is the longest range of the snapshot that is dirty from end to end.
func (s *Snapshot) Longest() extent.Range {
	var best extent.Range
	for _, r := range s.dirty.Ranges() {
		if r.Len() > best.Len() {
			best = r
		}
	}
	return best
}

// Spill records that a remote object of its own, called number, now holds [off, end) of the snapshot, dirty in it: what
// was not changed since becomes clean and may be evicted, although the file as a whole stays dirty. with is appended in
// the same journal frame. After an error nothing changed. A file that was removed meanwhile only appends with.
func (s *Snapshot) Spill(number uint64, off, end int64, with ...journal.Record) error {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.released || s.committed {
		return fs.ErrClosed
	}
	if f.removed {
		return f.store.j.Append(with...)
	}
	if err := f.poisoned(); err != nil {
		return err
	}
	var set extent.Set
	set.Add(off, end)
	set.Truncate(s.smallest)
	set.RemoveSet(s.over)
	if set.Len() == 0 {
		return f.store.j.Append(with...)
	}
	f.imageMu.Lock()
	old := f.image
	f.image = old.clone()
	f.image.spill(number, set)
	f.imageMu.Unlock()
	if err := f.store.j.Append(append(slices.Clone(with), spillRecord(f.id, number, set))...); err != nil {
		f.imageMu.Lock()
		f.image = old
		f.imageMu.Unlock()
		return err
	}
	f.generation++
	f.dropped = f.store.drops.Add(1)
	f.dirty.RemoveSet(set)
	f.clean.AddSet(set)
	f.spilled.add(number, set)
	f.account()
	return nil
}

// spill applies a spill record. A point that a barrier saw may show newer bytes where it was dirty.
func (m *image) spill(number uint64, set extent.Set) {
	for _, p := range []*point{&m.point, m.durable, m.marked} {
		if p != nil {
			part := intersect(p.dirty, set)
			p.dirty.RemoveSet(part)
			p.spilled.add(number, part)
		}
	}
}

func (m *image) clone() *image {
	c := &image{point: *m.point.clone(), mark: m.mark}
	if m.durable != nil {
		c.durable = m.durable.clone()
	}
	if m.marked != nil {
		c.marked = m.marked.clone()
	}
	return c
}

func spillRecord(id ID, number uint64, set extent.Set) journal.Record {
	b := binary.AppendUvarint(binary.AppendUvarint(nil, uint64(id)), number)
	return journal.Record{Kind: kindSpill, Data: set.AppendTo(b)}
}
