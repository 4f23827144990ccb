package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// Kinds of records. Each begins with the file's ID as an unsigned varint; integers are varints.
//
//	change   a point whose dirty ranges are added to the file's
//	mark     number
//	barrier  number of the mark
//	forget   nothing: the file is clean or gone
//	state    which, number, a point: replaces that point of the file; current comes first and replaces all
//	ranges   which, an extent set: added to that point
//	spill    number, an extent set: a remote object of its own has these ranges, and they are dirty no more
//	spilled  which, number, an extent set: the same of one point, as part of its state
const (
	kindChange  = journal.OwnerCache | 1
	kindMark    = journal.OwnerCache | 2
	kindBarrier = journal.OwnerCache | 3
	kindForget  = journal.OwnerCache | 4
	kindState   = journal.OwnerCache | 5
	kindRanges  = journal.OwnerCache | 6
	kindSpill   = journal.OwnerCache | 7
	kindSpilled = journal.OwnerCache | 8
)

// Which point of an image a state record holds.
const (
	pointCurrent = iota
	pointDurable
	pointMarked
)

// maxRanges is how many ranges go into one record: 20 bytes each at most, well below journal.MaxRecord.
const maxRanges = 32 << 10

// errRecord: a record is not one that this package wrote.
var errRecord = fmt.Errorf("cache record: %w", journal.ErrCorrupt)

// point is the journaled state of a file at one moment. Since is zero for a clean file, which is not journaled at all.
type point struct {
	base, size   int64
	mtime, since time.Time
	dirty        extent.Set
	spilled      spills
}

func (p *point) clone() *point {
	c := *p
	c.dirty = p.dirty.Clone()
	c.spilled = p.spilled.clone()
	return &c
}

// cut applies a truncation.
func (p *point) cut(size int64) {
	p.size = min(p.size, size)
	p.base = min(p.base, size)
	p.dirty.Truncate(size)
	p.spilled.cut(size)
}

// image is what a replay of the journal would find of a file: the same code keeps it up to date while the file is in
// use and rebuilds it at the start.
type image struct {
	point
	durable *point // as of the last barrier; nil: none since the file was clean
	marked  *point // as of the mark whose barrier is outstanding
	mark    uint64
}

// change applies a change record: the file's new shape and the ranges that became dirty.
func (m *image) change(to point) {
	if to.size < m.size {
		m.cut(to.size)
		for _, p := range []*point{m.durable, m.marked} {
			if p != nil {
				p.cut(to.size)
			}
		}
	}
	m.dirty.AddSet(to.dirty)
	m.spilled.remove(to.dirty)
	to.dirty, to.spilled = m.dirty, m.spilled
	m.point = to
}

func (m *image) setMark(n uint64) { m.marked, m.mark = m.point.clone(), n }

func (m *image) barrier(n uint64) {
	if m.marked != nil && m.mark == n {
		m.durable, m.marked = m.marked, nil
	}
}

// records rebuild the image.
func (m *image) records(id ID) []journal.Record {
	recs := stateRecords(nil, id, pointCurrent, 0, &m.point)
	if m.durable != nil {
		recs = stateRecords(recs, id, pointDurable, 0, m.durable)
	}
	if m.marked != nil {
		recs = stateRecords(recs, id, pointMarked, m.mark, m.marked)
	}
	return recs
}

func stateRecords(recs []journal.Record, id ID, which, number uint64, p *point) []journal.Record {
	chunks := chunked(p.dirty)
	first := *p
	first.dirty = extent.Set{}
	if len(chunks) > 0 {
		first.dirty, chunks = setOf(chunks[0]), chunks[1:]
	}
	b := binary.AppendUvarint(nil, uint64(id))
	b = binary.AppendUvarint(b, which)
	b = binary.AppendUvarint(b, number)
	recs = append(recs, journal.Record{Kind: kindState, Data: first.appendTo(b)})
	for _, c := range chunks {
		set := setOf(c)
		b := binary.AppendUvarint(nil, uint64(id))
		b = binary.AppendUvarint(b, which)
		recs = append(recs, journal.Record{Kind: kindRanges, Data: set.AppendTo(b)})
	}
	for _, s := range p.spilled.each {
		for _, c := range chunked(s.set) {
			set := setOf(c)
			b := binary.AppendUvarint(nil, uint64(id))
			b = binary.AppendUvarint(b, which)
			b = binary.AppendUvarint(b, s.number)
			recs = append(recs, journal.Record{Kind: kindSpilled, Data: set.AppendTo(b)})
		}
	}
	return recs
}

// chunked cuts a set into pieces that fit into one record each.
func chunked(s extent.Set) [][]extent.Range {
	return slices.Collect(slices.Chunk(s.Ranges(), maxRanges))
}

func setOf(ranges []extent.Range) extent.Set {
	var s extent.Set
	for _, r := range ranges {
		s.Add(r.Off, r.End)
	}
	return s
}

// appendTo writes a point: base, size, mtime and since as nanoseconds of Unix time (0 for none), the dirty ranges.
func (p *point) appendTo(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(p.base))
	b = binary.AppendUvarint(b, uint64(p.size))
	b = binary.AppendVarint(b, nanos(p.mtime))
	b = binary.AppendVarint(b, nanos(p.since))
	return p.dirty.AppendTo(b)
}

func changeRecord(id ID, to point) journal.Record {
	return journal.Record{Kind: kindChange, Data: to.appendTo(binary.AppendUvarint(nil, uint64(id)))}
}

func numberRecord(kind journal.Kind, id ID, n uint64) journal.Record {
	return journal.Record{Kind: kind, Data: binary.AppendUvarint(binary.AppendUvarint(nil, uint64(id)), n)}
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// images is the state that a replay builds.
type images map[ID]*image

// replay applies one record.
func (m images) replay(rec journal.Record) error {
	r := reader{b: rec.Data}
	id := ID(r.uint())
	switch rec.Kind {
	case kindChange:
		p := r.point()
		if r.end() {
			if m[id] == nil {
				m[id] = &image{point: point{base: p.base, size: p.size}}
			}
			m[id].change(p)
		}
	case kindMark:
		n := r.uint()
		if f := m[id]; r.end() && f != nil {
			f.setMark(n)
		}
	case kindBarrier:
		n := r.uint()
		if f := m[id]; r.end() && f != nil {
			f.barrier(n)
		}
	case kindForget:
		if r.end() {
			delete(m, id)
		}
	case kindState:
		which, n := r.uint(), r.uint()
		p := r.point()
		if r.end() {
			return m.state(id, which, n, p)
		}
	case kindRanges:
		which, set := r.uint(), r.set()
		if r.end() {
			return m.ranges(id, which, func(p *point) { p.dirty.AddSet(set) })
		}
	case kindSpill:
		n, set := r.uint(), r.set()
		if f := m[id]; r.end() && f != nil {
			f.spill(n, set)
		}
	case kindSpilled:
		which, n, set := r.uint(), r.uint(), r.set()
		if r.end() {
			return m.ranges(id, which, func(p *point) { p.spilled.add(n, set) })
		}
	default:
		return fmt.Errorf("kind %#x: %w", rec.Kind, errRecord)
	}
	if r.err != nil {
		return fmt.Errorf("kind %#x: %w", rec.Kind, r.err)
	}
	return nil
}

func (m images) state(id ID, which, n uint64, p point) error {
	f := m[id]
	if which == pointCurrent {
		m[id] = &image{point: p}
		return nil
	}
	if f == nil {
		return fmt.Errorf("state %d of an unknown file: %w", which, errRecord)
	}
	switch which {
	case pointDurable:
		f.durable = &p
	case pointMarked:
		f.marked, f.mark = &p, n
	default:
		return fmt.Errorf("state %d: %w", which, errRecord)
	}
	return nil
}

// ranges lets add change a point.
func (m images) ranges(id ID, which uint64, add func(*point)) error {
	var p *point
	if f := m[id]; f != nil {
		switch which {
		case pointCurrent:
			p = &f.point
		case pointDurable:
			p = f.durable
		case pointMarked:
			p = f.marked
		}
	}
	if p == nil {
		return fmt.Errorf("ranges of an unknown state %d: %w", which, errRecord)
	}
	add(p)
	return nil
}

// reader takes a record apart. After an error all that it returns is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.err, r.b = errRecord, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.err, r.b = errRecord, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) set() extent.Set {
	s, rest, err := extent.ParseSet(r.b)
	if err != nil {
		r.err, r.b = errors.Join(errRecord, err), nil
		return extent.Set{}
	}
	r.b = rest
	return s
}

func (r *reader) point() point {
	p := point{base: int64(r.uint()), size: int64(r.uint()), mtime: fromNanos(r.int()), since: fromNanos(r.int()), dirty: r.set()}
	if p.base < 0 || p.size < 0 || p.base > p.size {
		r.err = errRecord
	}
	return p
}

// end says that the record was right and is used up.
func (r *reader) end() bool {
	if r.err == nil && len(r.b) > 0 {
		r.err = errRecord
	}
	return r.err == nil
}
