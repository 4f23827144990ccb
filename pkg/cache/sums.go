package cache

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/extent"
)

// ErrDamaged: the local disk gives back other bytes than it was given.
var ErrDamaged = errors.New("the cache's disk has changed bytes")

// block is the unit of checksums, in bytes.
const block = 32 << 10

// sumsPage is how many blocks' sums are allocated together.
const sumsPage = 16

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sums are the checksums of what the data file holds, as far as it was stored block by block: of each block the CRC-32C of
// its first bytes, how many these are, and the minute of the last check. They cost a quarter of a thousandth of the bytes
// in memory and are not kept over a restart.
//
// The pages are guarded by File.mu; with it read-locked a sum may change as to its minute alone.
type sums map[int64]*[sumsPage]atomic.Uint64

// sum is the checksum of a block: from the top 32 bits of CRC, 16 of length, 16 of the minute. No length: there is none.
type sum uint64

func newSum(crc uint32, n int64) sum { return sum(uint64(crc)<<32 | uint64(n)<<16) }

func (s sum) crc() uint32            { return uint32(s >> 32) }
func (s sum) len() int64             { return int64(s >> 16 & 0xffff) }
func (s sum) minute() uint16         { return uint16(s) }
func (s sum) checked(min uint16) sum { return s&^0xffff | sum(min) }

// at is the place of a block's sum, nil when no block near it has one.
func (s sums) at(b int64) *atomic.Uint64 {
	if p := s[b/sumsPage]; p != nil {
		return &p[b%sumsPage]
	}
	return nil
}

// note takes the sums of p, which is now at off. What is stored neither from the start of a block on nor right behind what
// has a sum has none.
func (s sums) note(p []byte, off int64) {
	end, to := off+int64(len(p)), int64(0)
	for pos := off; pos < end; pos = to {
		b := pos / block
		to = min(end, (b+1)*block)
		page, start := s[b/sumsPage], pos-b*block
		if page == nil {
			if start > 0 {
				continue
			}
			page = new([sumsPage]atomic.Uint64)
			s[b/sumsPage] = page
		}
		at, q := &page[b%sumsPage], p[pos-off:to-off]
		old := sum(at.Load())
		switch {
		case start == 0:
			at.Store(uint64(newSum(crc32.Checksum(q, castagnoli), to-pos)))
		case old.len() == start:
			at.Store(uint64(newSum(crc32.Update(old.crc(), castagnoli, q), start+to-pos)))
		case old.len() > start:
			at.Store(0)
		}
	}
}

// forget drops all sums that cover a byte of [off, end).
func (s sums) forget(off, end int64) {
	if len(s) == 0 || off >= end {
		return
	}
	first, last := off/block, (end-1)/block
	drop := func(n int64, page *[sumsPage]atomic.Uint64) {
		lo, hi := n*sumsPage, (n+1)*sumsPage-1
		if off <= lo*block && hi <= last {
			delete(s, n)
			return
		}
		for b := max(lo, first); b <= min(hi, last); b++ {
			if at := &page[b%sumsPage]; b*block+sum(at.Load()).len() > off {
				at.Store(0)
			}
		}
	}
	from, to := first/sumsPage, last/sumsPage
	if to-from < int64(len(s)) {
		for n := from; n <= to; n++ {
			if page := s[n]; page != nil {
				drop(n, page)
			}
		}
		return
	}
	for n, page := range s {
		if from <= n && n <= to {
			drop(n, page)
		}
	}
}

// damage is an ErrDamaged of a range that has a sum.
type damage struct {
	id ID
	extent.Range
}

func (d *damage) Error() string {
	return fmt.Sprintf("cache file %x at [%d, %d): %v", uint64(d.id), d.Off, d.End, ErrDamaged)
}

func (d *damage) Unwrap() error { return ErrDamaged }

// minute is the time for sum.minute, never 0: that stands for never.
func (s *Store) minute() uint16 {
	return uint16(s.opt.Now().Unix()/int64(time.Minute/time.Second)%0xffff) + 1
}

// check compares p, which was read at off, with the sums. A block that p has as a whole is always compared. Of one that it
// has a piece of, all must be read again for that: this is done when p must be right (strict), and else once a minute,
// since the page cache will hardly have read the disk again meanwhile. The caller holds mu.
func (f *File) check(h disk.File, p []byte, off int64, strict bool) error {
	end := off + int64(len(p))
	for b := off / block; b*block < end; b++ {
		at := f.sums.at(b)
		if at == nil {
			continue
		}
		s := sum(at.Load())
		r := extent.Range{Off: b * block, End: b*block + s.len()}
		if r.Empty() || r.End <= off {
			continue
		}
		if r.Off >= off && r.End <= end {
			if crc32.Checksum(p[r.Off-off:r.End-off], castagnoli) != s.crc() {
				return &damage{f.id, r}
			}
			continue
		}
		now := f.store.minute()
		if !strict && s.minute() == now {
			continue
		}
		if err := f.reread(h, p, off, r, s); err != nil {
			return err
		}
		at.CompareAndSwap(uint64(s), uint64(s.checked(now)))
	}
	return nil
}

// reread reads a whole block for a piece of it and checks it. p gets the bytes that were checked.
func (f *File) reread(h disk.File, p []byte, off int64, r extent.Range, s sum) error {
	buf := f.store.blocks.Get().(*[block]byte)
	defer f.store.blocks.Put(buf)
	whole := buf[:r.Len()]
	if n, err := h.ReadAt(whole, r.Off); n < len(whole) {
		if errors.Is(err, io.EOF) {
			return &damage{f.id, r}
		}
		return fmt.Errorf("cache file %x at %d: %w", uint64(f.id), r.Off, err)
	}
	if crc32.Checksum(whole, castagnoli) != s.crc() {
		return &damage{f.id, r}
	}
	from := max(off, r.Off)
	copy(p[from-off:], whole[from-r.Off:])
	return nil
}

// mend handles the error of a read, and says whether it is worth another attempt: clean bytes that the disk has changed are
// missing from now on. Others are lost: the file is poisoned, so that they are never uploaded. The caller holds no lock.
func (f *File) mend(err error) (again bool) {
	var d *damage
	if !errors.As(err, &d) {
		return false
	}
	f.mu.Lock()
	is := f.damaged(d)
	dirty := is && (f.dirty.Overlaps(d.Off, d.End) || f.snap != nil && !f.snap.committed && f.snap.dirty.Overlaps(d.Off, d.End))
	known := f.poisoned() != nil
	switch {
	case dirty:
		f.poison(d)
	case is:
		f.drop(d)
	}
	f.mu.Unlock()
	if tell := f.store.opt.Damaged; tell != nil && is && !(dirty && known) {
		tell(f.id, d.Off, d.End, dirty)
	}
	return !dirty
}

// drop makes damaged bytes missing, which are clean. The caller holds mu.
func (f *File) drop(d *damage) {
	f.sums.forget(d.Off, d.End)
	for _, r := range f.clean.Intersect(d.Off, d.End) {
		f.trash.Add(r.Off, r.End)
	}
	f.clean.Remove(d.Off, d.End)
	if f.snap != nil {
		f.snap.local.Remove(d.Off, d.End)
	}
	f.account()
	f.store.mu.Lock()
	f.store.ragged[f] = struct{}{}
	f.store.mu.Unlock()
}

// damaged says that the damage is still there: what was found with the lock shared may have been overwritten meanwhile.
func (f *File) damaged(d *damage) bool {
	at := f.sums.at(d.Off / block)
	if at == nil || sum(at.Load()).len() != d.Len() || f.removed {
		return false
	}
	h, err := f.store.handles.get(f, false)
	if err != nil {
		return false // the next attempt says so
	}
	defer f.store.handles.put(h)
	return errors.Is(f.reread(h, nil, d.Off, d.Range, sum(at.Load())), ErrDamaged)
}
