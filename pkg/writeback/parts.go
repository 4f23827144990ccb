package writeback

import (
	"fmt"

	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// minCopyPart is the least size, in bytes, of a part that is copied: servers refuse ranges of smaller objects. mediumPart
// is that of the parts of an object that one PUT could make.
const (
	minCopyPart = 5 << 20
	mediumPart  = 6 << 20
)

// part is a part of an object to be made: [off, end) of a file, uploaded, or copied from an object that has it.
type part struct {
	number   int
	off, end int64
	from     fetch.Source // Key "": uploaded
}

func (p part) copied() bool { return p.from.Key != "" }

// schedule is the one table of part sizes, in multiples of Options.Part: with 8 MiB, an object of 10,000 parts has
// 5 TiB. The boundaries depend on nothing but the offset, so a part of the old object is a part of the new one.
var schedule = [...]struct {
	parts int
	scale int64
}{{1000, 1}, {2000, 8}, {4000, 64}, {3000, 128}}

// layout cuts size bytes into parts.
func layout(size, base int64) ([]part, error) {
	var parts []part
	var off int64
	for _, s := range schedule {
		for range s.parts {
			if off >= size {
				return parts, nil
			}
			end := min(size, off+base*s.scale)
			parts = append(parts, part{number: len(parts) + 1, off: off, end: end})
			off = end
		}
	}
	if off < size {
		return nil, fmt.Errorf("file of %d bytes, the most is %d: %w", size, off, s3.ErrInvalid)
	}
	return parts, nil
}

// partAt is the size of the part that has the byte at pos.
func partAt(pos, base int64) int64 {
	for _, s := range schedule {
		if pos -= int64(s.parts) * base * s.scale; pos < 0 {
			return base * s.scale
		}
	}
	return base * schedule[len(schedule)-1].scale
}

// plan says in which parts a file is sent, and which of them the server can copy: those that source knows an object for.
// Without parts it is sent by one PUT, which is what is cheaper for most files that one may have; missing is how many
// bytes of a range would have to be fetched before they could be sent.
func (e *Executor) plan(size int64, source func(off, end int64) fetch.Source, missing func(off, end int64) int64) ([]part, error) {
	base := e.opt.Part
	if size <= e.opt.SinglePut {
		base = min(base, mediumPart)
	}
	parts, err := layout(size, base)
	if err != nil {
		return nil, err
	}
	for i := range parts {
		if p := &parts[i]; p.end-p.off >= min(minCopyPart, e.opt.Part) {
			p.from = source(p.off, p.end)
		}
	}
	if size <= e.opt.SinglePut && !worthParts(size, parts, missing, e.opt.Part/requestShare) {
		return nil, nil
	}
	return parts, nil
}

// requestShare says what a request costs beside the bytes that it sends: as much as this share of a part, 1 MiB with
// parts of 8 MiB, which is about what a line sends while a server copies a range.
const requestShare = 8

// worthParts says that an object is made sooner of these parts than by one PUT: by what is sent, what has to be fetched
// in order to be sent, and the requests, each of which costs as much as so many bytes.
func worthParts(size int64, parts []part, missing func(off, end int64) int64, request int64) bool {
	whole := size + missing(0, size) + request
	apart := int64(len(parts)+3) * request // beside the parts: the look at what is open, the creation, the completion
	for _, p := range parts {
		if !p.copied() {
			apart += p.end - p.off + missing(p.off, p.end)
		}
	}
	return apart < whole
}

// ranges cuts an object into parts of at most step bytes that are copied.
func ranges(src namespace.Source, step int64) []part {
	var parts []part
	for off := int64(0); off < src.Size; off += step {
		parts = append(parts, part{
			number: len(parts) + 1, off: off, end: min(src.Size, off+step),
			from: fetch.Source{Key: src.Key, ETag: src.ETag, Size: src.Size},
		})
	}
	return parts
}
