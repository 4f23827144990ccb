package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// errStale: the object behind the file's missing ranges changed during the request; its bytes were dropped.
var errStale = errors.New("the file's source changed")

// batch is how many chunks of one call are in the queue at once.
const batch = 32

// target is what a call wants filled: a file, or a snapshot of it.
type target struct {
	file    *cache.File
	missing func(off, end int64) []extent.Range
	locate  Locate
}

// Ensure brings what is missing of [off, end) of f into the cache. On return all of it was there at some moment; the
// cache may have evicted it since. s3.ErrNotExist and s3.ErrPrecondition mean that the object was removed or changed by
// somebody else: locate still names it. cache.ErrNoSpace means that the cache cannot take the bytes; see Direct.
// s3.ErrUnavailable, s3.ErrCorrupt and s3.ErrKeys are not seen: the request is repeated until ctx ends, then the error wraps
// ctx's and the last one.
func (x *Fetcher) Ensure(ctx context.Context, f *cache.File, locate Locate, off, end int64) error {
	return x.ensure(ctx, target{f, f.Missing, locate}, off, end)
}

// EnsureSnapshot is Ensure for what a snapshot of f misses: ranges that f itself may have overwritten since.
func (x *Fetcher) EnsureSnapshot(ctx context.Context, f *cache.File, snap *cache.Snapshot, locate Locate, off, end int64) error {
	return x.ensure(ctx, target{f, snap.Missing, locate}, off, end)
}

func (x *Fetcher) ensure(ctx context.Context, t target, off, end int64) error {
	for ; off < end; off += batch * x.chunk {
		part := min(end, off+batch*x.chunk)
		err := errStale
		for errors.Is(err, errStale) {
			var fls []*flight
			if fls, err = x.depart(t, off, part); err == nil {
				err = x.await(ctx, t, fls)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// queue is the flights of one file.
type queue struct {
	file *cache.File
	refs int // guarded by Fetcher.mu: flights and callers

	mu      sync.Mutex
	flights []*flight // guarded by mu
}

// flight is one GET on its way.
type flight struct {
	q          *queue
	off, end   int64
	src        Source
	generation uint64
	ctx        context.Context
	cancel     context.CancelFunc
	ahead      bool // started by readahead; its share of the budget is taken already

	waiters   int   // guarded by queue.mu
	abandoned bool  // guarded by queue.mu: the last waiter left; nobody may join
	last      error // guarded by queue.mu: of the last attempt

	done chan struct{}
	err  error // valid once done is closed
}

func (x *Fetcher) queue(f *cache.File) (*queue, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return nil, ErrClosed
	}
	q := x.queues[f]
	if q == nil {
		q = &queue{file: f}
		x.queues[f] = q
	}
	q.refs++
	return q, nil
}

func (x *Fetcher) release(q *queue) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if q.refs--; q.refs == 0 {
		delete(x.queues, q.file)
	}
}

// depart makes sure that every missing range of [off, end) is on its way, and returns the flights to wait for, each
// joined.
func (x *Fetcher) depart(t target, off, end int64) ([]*flight, error) {
	if len(t.missing(off, end)) == 0 {
		return nil, nil
	}
	generation := t.file.Generation()
	q, err := x.queue(t.file)
	if err != nil {
		return nil, err
	}
	defer x.release(q)
	q.mu.Lock()
	defer q.mu.Unlock()
	var fls []*flight
	// A flight leaves the queue after its Fill: what is missing under the lock and not in the queue is not on its way.
	for _, r := range t.missing(off, end) {
		for pos := r.Off; pos < r.End; {
			fl, stop := q.at(pos, min(r.End, x.cut(pos)))
			if fl == nil {
				var src Source
				var last int64
				if src, last, err = t.locate(pos); err == nil {
					fl, err = x.start(q, pos, min(stop, last), src, generation, false)
				}
				if err != nil {
					q.leaveLocked(fls)
					return nil, err
				}
			}
			fl.waiters++
			fls = append(fls, fl)
			pos = fl.end
		}
	}
	return fls, nil
}

// cut is the end of the chunk that pos lies in.
func (x *Fetcher) cut(pos int64) int64 { return pos - pos%x.chunk + x.chunk }

// at returns the flight over pos, or nil and where a new flight from pos must end.
func (q *queue) at(pos, end int64) (*flight, int64) {
	for _, fl := range q.flights {
		if fl.abandoned {
			continue
		}
		if fl.off <= pos && pos < fl.end {
			return fl, 0
		}
		if fl.off > pos {
			end = min(end, fl.off)
		}
	}
	return nil, end
}

// start sends a flight off. The caller holds q.mu.
func (x *Fetcher) start(q *queue, off, end int64, src Source, generation uint64, ahead bool) (*flight, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return nil, ErrClosed
	}
	fl := &flight{q: q, off: off, end: end, src: src, generation: generation, ahead: ahead, done: make(chan struct{})}
	fl.ctx, fl.cancel = context.WithCancel(x.ctx)
	q.flights = append(q.flights, fl)
	q.refs++
	x.wg.Add(1)
	// Ends with its request, or soon after its context does; Close waits for it.
	go x.fly(fl)
	return fl, nil
}

func (x *Fetcher) fly(fl *flight) {
	defer x.wg.Done()
	defer fl.cancel()
	err := x.carry(fl)
	q := fl.q
	q.mu.Lock()
	q.flights = slices.DeleteFunc(q.flights, func(o *flight) bool { return o == fl })
	fl.err = err
	close(fl.done)
	q.mu.Unlock()
	x.release(q)
}

// leaveLocked takes the caller off the flights.
func (q *queue) leaveLocked(fls []*flight) {
	for _, fl := range fls {
		if fl.waiters--; fl.waiters == 0 {
			fl.abandoned = true
			fl.cancel()
		}
	}
}

// await waits for the flights and leaves them. errStale asks for another round.
func (x *Fetcher) await(ctx context.Context, t target, fls []*flight) error {
	if len(fls) == 0 {
		return nil
	}
	q := fls[0].q
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.leaveLocked(fls)
	}()
	for _, fl := range fls {
		select {
		case <-fl.done:
		case <-ctx.Done():
			q.mu.Lock()
			last := fl.last
			q.mu.Unlock()
			return fmt.Errorf("fetch %q [%d, %d): %w", string(fl.src.Key), fl.off, fl.end, errors.Join(ctx.Err(), last))
		case <-x.ctx.Done():
			return ErrClosed
		}
		switch err := fl.err; {
		case err == nil:
		case x.ctx.Err() != nil:
			return ErrClosed
		case transient(err):
			return errStale // it was given up before we joined it
		case errors.Is(err, s3.ErrNotExist) || errors.Is(err, s3.ErrPrecondition):
			generation := t.file.Generation()
			src, _, lerr := t.locate(fl.off)
			if lerr != nil {
				return lerr
			}
			if src != fl.src || generation != fl.generation {
				return errStale
			}
			return err
		default:
			return err
		}
	}
	return nil
}
