package fetch

import (
	"context"
	"errors"

	"github.com/csi-s3/csi-s3/pkg/cache"
)

const (
	round       = 128 << 10       // random reads fetch multiples of this, in bytes
	firstWindow = 1<<20 + 128<<10 // readahead of a new stream, in bytes
	maxWindow   = 32 << 20        // and of an old one
	maxStreams  = 4               // sequential readers of one file that are told apart
	reorder     = 1 << 20         // how far, in bytes, reads of a stream may come out of order
	maxPatterns = 4 << 10         // files whose access pattern is kept
)

// Read is Ensure for a read by an application, with readahead: call it before every read of the file, also of ranges
// that are in the cache, so that it sees the pattern. Sequential reads make it fetch ahead, from 1 MiB + 128 KiB doubling
// to 32 MiB; other reads fetch what they ask for, rounded to 128 KiB. What is fetched ahead is not waited for.
func (x *Fetcher) Read(ctx context.Context, id cache.ID, f *cache.File, locate Locate, off, end int64) error {
	if off >= end {
		return nil
	}
	t := target{f, f.Missing, locate}
	s, from, to := x.observe(id, off, end)
	err := errStale
	for errors.Is(err, errStale) {
		var fls []*flight
		if len(f.Missing(off, end)) > 0 {
			fls, err = x.depart(t, off-off%round, end+(round-end%round)%round)
			if err != nil {
				return err
			}
		}
		if from < to {
			x.cameTo(id, s, to, x.departAhead(t, from, to))
			from = to // once
		}
		err = x.await(ctx, t, fls)
	}
	return err
}

// departAhead starts flights for what is missing of [from, to), as far as the budget goes, and returns how far it came.
func (x *Fetcher) departAhead(t target, from, to int64) int64 {
	if len(t.missing(from, to)) == 0 {
		return to
	}
	generation := t.file.Generation()
	q, err := x.queue(t.file)
	if err != nil {
		return from
	}
	defer x.release(q)
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range t.missing(from, to) {
		for pos := r.Off; pos < r.End; {
			fl, stop := q.at(pos, min(r.End, x.cut(pos)))
			if fl == nil {
				src, last, err := t.locate(pos)
				if err != nil {
					return pos // readers will hear it when they ask for these bytes
				}
				stop = min(stop, last)
				cost := bufferSize(stop - pos)
				if !x.budget.try(cost) {
					return pos
				}
				if fl, err = x.start(q, pos, stop, src, generation, true); err != nil {
					x.budget.release(cost)
					return pos
				}
			}
			pos = fl.end
		}
	}
	return to
}

// pattern is how a file is read.
type pattern struct {
	streams [maxStreams]stream
	clock   uint64
}

// stream is one sequential reader.
type stream struct {
	next   int64  // where it will read
	ahead  int64  // up to where bytes were requested for it
	window int64  // how far ahead to be; 0: one read only so far
	used   uint64 // pattern.clock of its last read, 0: free
}

// observe notes a read and returns its stream and the range to fetch ahead for it, empty when there is none.
func (x *Fetcher) observe(id cache.ID, off, end int64) (s int, from, to int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.patterns[id]
	if p == nil {
		if len(x.patterns) >= maxPatterns {
			for old := range x.patterns { // any: a pattern is learned anew within two reads
				delete(x.patterns, old)
				break
			}
		}
		p = &pattern{}
		x.patterns[id] = p
	}
	p.clock++
	s = p.find(off)
	st := &p.streams[s]
	switch {
	case st.used == 0:
		*st = stream{next: end, ahead: end}
		if off == 0 {
			st.window = firstWindow
		}
	case st.window == 0:
		st.window = firstWindow
	}
	st.used = p.clock
	st.next = max(st.next, end)
	st.ahead = max(st.ahead, st.next)
	if st.window == 0 || st.ahead-st.next >= st.window/2 {
		return s, 0, 0
	}
	from, to = st.ahead, st.next+st.window
	st.ahead = to // others need not try the same; see cameTo
	st.window = min(2*st.window, maxWindow)
	return s, from, to
}

// find returns the index of the stream that a read at off continues, or of the oldest one, reset.
func (p *pattern) find(off int64) int {
	oldest := 0
	for i := range p.streams {
		st := &p.streams[i]
		slack := int64(reorder)
		if st.window == 0 {
			slack = round
		}
		if st.used != 0 && off >= st.next-slack && off <= st.next+slack {
			return i
		}
		if st.used < p.streams[oldest].used {
			oldest = i
		}
	}
	p.streams[oldest] = stream{}
	return oldest
}

// cameTo corrects how far bytes were requested for a stream when less than planned could be.
func (x *Fetcher) cameTo(id cache.ID, s int, planned, pos int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := x.patterns[id]; p != nil && p.streams[s].ahead == planned {
		p.streams[s].ahead = max(pos, p.streams[s].next)
	}
}

// Forget drops what is known of the way a file is read.
func (x *Fetcher) Forget(id cache.ID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.patterns, id)
}
