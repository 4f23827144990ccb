package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Pauses between attempts grow from the first to the last of these.
const (
	minPause = 100 * time.Millisecond
	maxPause = 10 * time.Second
)

// transient says that the same request may succeed later.
func transient(err error) bool {
	return errors.Is(err, s3.ErrUnavailable) || errors.Is(err, s3.ErrCorrupt) || errors.Is(err, s3.ErrKeys)
}

// carry brings a flight's bytes into its file.
func (x *Fetcher) carry(fl *flight) error {
	size := fl.end - fl.off
	cost := bufferSize(size)
	reserved := fl.ahead
	for attempt := 0; ; attempt++ {
		if !reserved {
			if err := x.budget.acquire(fl.ctx, cost); err != nil {
				return err
			}
		}
		reserved = false
		err := x.once(fl, size)
		x.budget.release(cost)
		if err == nil || !transient(err) || !fl.wanted(err) {
			return err
		}
		if perr := pause(fl.ctx, attempt); perr != nil {
			return errors.Join(perr, err)
		}
	}
}

// once is one attempt.
func (x *Fetcher) once(fl *flight, size int64) error {
	if fl.ctx.Err() != nil {
		return fl.ctx.Err()
	}
	buf := x.bufs.get(size)
	defer x.bufs.put(buf)
	p := (*buf)[:size]
	if err := x.get(fl.ctx, fl.src, p, fl.off); err != nil {
		return err
	}
	if fl.ahead {
		x.ahead.Add(size)
	}
	if err := fl.q.file.Fill(p, fl.off, fl.generation); err != nil {
		return fmt.Errorf("fill [%d, %d) from %q: %w", fl.off, fl.end, string(fl.src.Key), err)
	}
	if fl.q.file.Generation() != fl.generation {
		return errStale
	}
	return nil
}

// wanted says that somebody waits for the flight, which failed with err for now.
func (fl *flight) wanted(err error) bool {
	fl.q.mu.Lock()
	defer fl.q.mu.Unlock()
	fl.last = err
	return fl.waiters > 0
}

// get fills p with the bytes of the file at off from the object that src names. Nothing but the whole range, of that
// very object, is success.
func (x *Fetcher) get(ctx context.Context, src Source, p []byte, off int64) (err error) {
	off -= src.Off
	end := off + int64(len(p))
	defer func() {
		if err != nil {
			err = fmt.Errorf("get %q [%d, %d): %w", string(src.Key), off, end, err)
		}
	}()
	// The whole object is asked for without a range: only then the server tells the checksum that is stored with it.
	r := &s3.Range{Off: off, End: end}
	if off == 0 && end == src.Size {
		r = nil
	}
	x.requests.Add(1)
	body, info, err := x.bucket.Get(ctx, src.Key, r, src.ETag)
	if errors.Is(err, s3.ErrRange) {
		return fmt.Errorf("object is shorter than it was: %w", s3.ErrPrecondition)
	}
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // it was only read
	if src.ETag != "" && info.ETag != "" && info.ETag != src.ETag || info.Size < end || r == nil && info.Size != end {
		return fmt.Errorf("object of %d bytes with ETag %s, not %s: %w", info.Size, info.ETag, src.ETag, s3.ErrPrecondition)
	}
	n, err := io.ReadFull(body, p)
	x.bytes.Add(int64(n))
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("body ended after %d bytes: %w", n, s3.ErrCorrupt)
	}
	if err != nil {
		return err
	}
	// A checksum is only judged at the end of the body: wait for it.
	var more [1]byte
	switch n, err := io.ReadFull(body, more[:]); {
	case n != 0:
		return fmt.Errorf("body is longer than the range: %w", s3.ErrCorrupt)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// Direct reads bytes of the object behind f's missing ranges into p without the cache: the way out when Ensure said
// cache.ErrNoSpace. The range must be missing in f, or in a snapshot of it. Errors are those of Ensure.
func (x *Fetcher) Direct(ctx context.Context, f *cache.File, locate Locate, p []byte, off int64) error {
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		return ErrClosed
	}
	x.wg.Add(1)
	x.mu.Unlock()
	defer x.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(x.ctx, cancel)() //nolint:contextcheck // it only ends the call
	err := x.direct(ctx, f, locate, p, off)
	if err != nil && x.ctx.Err() != nil {
		return ErrClosed
	}
	return err
}

func (x *Fetcher) direct(ctx context.Context, f *cache.File, locate Locate, p []byte, off int64) error {
	for attempt := 0; ; attempt++ {
		generation := f.Generation()
		src, end, err := locate(off)
		if err != nil {
			return err
		}
		if err := x.budget.acquire(ctx, 0); err != nil {
			return err
		}
		part := p[:min(int64(len(p)), end-off)]
		err = x.get(ctx, src, part, off)
		x.budget.release(0)
		if f.Generation() != generation {
			continue
		}
		if err == nil {
			if p, off = p[len(part):], off+int64(len(part)); len(p) == 0 {
				return nil
			}
			continue
		}
		now, _, lerr := locate(off)
		if lerr != nil {
			return lerr
		}
		if now != src {
			continue
		}
		if !transient(err) {
			return err
		}
		if perr := pause(ctx, attempt); perr != nil {
			return errors.Join(perr, err)
		}
	}
}

// pause waits before the next attempt: a random time of up to twice as much as the last one.
func pause(ctx context.Context, attempt int) error {
	limit := min(maxPause, minPause<<min(attempt, 10))
	timer := time.NewTimer(minPause/2 + rand.N(limit))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
