package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// fenced is a bucket that is changed only while the lease is held. Requests that may change it wait for the lease, fail with
// errUnleased or the reason of its loss, and are broken off when it lapses.
type fenced struct {
	s3.Bucket
	lease *lease
	aside bool // what is sent is no change of the volume: see enter
}

// enter lets a request begin; ctx ends when the lease does. The caller calls leave. A request aside from the volume's changes
// needs a lease that is ours, whatever it says, and waits for it to be so for their sake: a mount without changes asks for
// nothing.
func (l *lease) enter(ctx context.Context, aside bool) (_ context.Context, leave func(), err error) {
	for waited := false; ; waited = true {
		l.mu.Lock()
		open := l.openLocked() || aside && l.held && l.now() < l.until
		switch {
		case l.lost != nil:
			err = l.lost
		case l.closed:
			err = fmt.Errorf("%w: the mount ends: %w", errUnleased, s3.ErrUnavailable)
		case open:
			l.request++
			n := l.request
			ctx, cancel := context.WithCancelCause(ctx)
			l.running[n] = cancel
			if !aside {
				l.sending++
			}
			l.mu.Unlock()
			return ctx, func() { l.leave(n, aside) }, nil
		case waited && l.err != nil && !aside:
			err = fmt.Errorf("%w: %w", errUnleased, l.err)
			if errors.Is(l.err, s3.ErrPrecondition) || errors.Is(l.err, s3.ErrNotExist) {
				// That is said of the record, and not of what was not sent.
				err = fmt.Errorf("%w: %w (%v)", errUnleased, s3.ErrUnavailable, l.err) //nolint:errorlint // see above
			}
		}
		l.wanted = l.wanted || !aside
		tried := l.tried
		l.mu.Unlock()
		if err != nil {
			return nil, nil, err
		}
		var ending <-chan struct{}
		if aside {
			ending = l.ending
		} else {
			l.kick()
		}
		select {
		case <-tried:
		case <-ending:
			return nil, nil, fmt.Errorf("%w: the mount ends: %w", errUnleased, s3.ErrUnavailable)
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("%w: %w: %w", errUnleased, s3.ErrUnavailable, ctx.Err())
		}
	}
}

func (l *lease) leave(n uint64, aside bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running[n](nil)
	delete(l.running, n)
	if !aside {
		l.sending--
		l.stirred = l.now()
	}
}

// lapsed breaks off what runs when the lease is not surely held any more.
func (l *lease) lapsed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if left := l.until - l.now(); left > 0 {
		l.lapse.Reset(left)
		return
	}
	l.breakLocked()
}

func (l *lease) breakLocked() {
	for _, cancel := range l.running {
		cancel(errUnleased)
	}
}

// within runs one request inside the fence.
func within[T any](ctx context.Context, f fenced, op string, key s3.Key, request func(ctx context.Context) (T, error)) (T, error) {
	var none T
	ctx, leave, err := f.lease.enter(ctx, f.aside)
	if err != nil {
		return none, fmt.Errorf("%s %q was not sent: %w", op, string(key), err)
	}
	defer leave()
	v, err := request(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errUnleased) {
		// Not the end of the caller's patience, which the error of the context would say.
		return v, fmt.Errorf("%s %q was broken off: %w: %w (%v)", op, string(key), errUnleased, s3.ErrUnavailable, err) //nolint:errorlint // see above
	}
	return v, err
}

// The methods are those of s3.Bucket that change it.

func (f fenced) Put(ctx context.Context, key s3.Key, b s3.Body, attr s3.Attributes, cond s3.Condition) (s3.Info, error) {
	return within(ctx, f, "PUT", key, func(ctx context.Context) (s3.Info, error) { return f.Bucket.Put(ctx, key, b, attr, cond) })
}

func (f fenced) Copy(ctx context.Context, src s3.Key, srcMatch s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	return within(ctx, f, "copy to", dst, func(ctx context.Context) (s3.Info, error) {
		return f.Bucket.Copy(ctx, src, srcMatch, dst, attr, cond)
	})
}

func (f fenced) Delete(ctx context.Context, key s3.Key) error {
	_, err := within(ctx, f, "DELETE", key, func(ctx context.Context) (struct{}, error) { return struct{}{}, f.Bucket.Delete(ctx, key) })
	return err
}

func (f fenced) DeleteIf(ctx context.Context, key s3.Key, match s3.ETag) error {
	_, err := within(ctx, f, "DELETE", key, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, f.Bucket.DeleteIf(ctx, key, match)
	})
	return err
}

func (f fenced) DeleteMany(ctx context.Context, keys []s3.Key) (map[s3.Key]error, error) {
	var first s3.Key
	if len(keys) > 0 {
		first = keys[0]
	}
	return within(ctx, f, "delete many from", first, func(ctx context.Context) (map[s3.Key]error, error) { return f.Bucket.DeleteMany(ctx, keys) })
}

func (f fenced) CreateUpload(ctx context.Context, key s3.Key, attr s3.Attributes) (s3.UploadID, error) {
	return within(ctx, f, "upload to", key, func(ctx context.Context) (s3.UploadID, error) { return f.Bucket.CreateUpload(ctx, key, attr) })
}

func (f fenced) UploadPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, b s3.Body) (s3.Part, error) {
	return within(ctx, f, "part of", key, func(ctx context.Context) (s3.Part, error) { return f.Bucket.UploadPart(ctx, key, id, n, b) })
}

func (f fenced) CopyPart(ctx context.Context, key s3.Key, id s3.UploadID, n int, src s3.Key, srcMatch s3.ETag, r s3.Range) (s3.Part, error) {
	return within(ctx, f, "copied part of", key, func(ctx context.Context) (s3.Part, error) {
		return f.Bucket.CopyPart(ctx, key, id, n, src, srcMatch, r)
	})
}

func (f fenced) CompleteUpload(ctx context.Context, key s3.Key, id s3.UploadID, parts []s3.Part, cond s3.Condition) (s3.Info, error) {
	return within(ctx, f, "completion of", key, func(ctx context.Context) (s3.Info, error) {
		return f.Bucket.CompleteUpload(ctx, key, id, parts, cond)
	})
}

func (f fenced) AbortUpload(ctx context.Context, key s3.Key, id s3.UploadID) error {
	_, err := within(ctx, f, "abortion of", key, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, f.Bucket.AbortUpload(ctx, key, id)
	})
	return err
}

// admit is asked before each change of the volume. Where the lease lapsed, others may have it: the change waits until that
// is known, but not for a server that does not answer.
func (l *lease) admit(ctx context.Context) error {
	l.mu.Lock()
	l.stirLocked()
	refused, open := l.lost, l.openLocked()
	l.wanted = l.wanted || !open
	wait := !l.held || l.now() >= l.until
	wait = wait && l.failed == 0
	tried := l.tried
	l.mu.Unlock()
	if refused == nil && !open {
		l.kick()
	}
	if refused == nil && wait {
		timer := time.NewTimer(admitWait)
		defer timer.Stop()
		select {
		case <-tried:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		l.mu.Lock()
		refused = l.lost
		l.mu.Unlock()
	}
	if refused != nil {
		return fmt.Errorf("%w: %w", vfs.ErrReadOnly, refused)
	}
	l.mu.Lock()
	tell := !l.marked && (!l.held || l.now() >= l.until) && !l.warned
	l.warned = l.warned || tell
	why := l.err
	l.mu.Unlock()
	if tell {
		l.unguarded(why)
	}
	return nil
}

// announce is asked when changes are durable on this node, before that is acknowledged. It returns when the lease says
// dirty, so that no other node takes the volume over without them; but it does not wait for a server that does not answer.
func (l *lease) announce(ctx context.Context) error {
	if n, _ := l.dirty(); n == 0 {
		return nil
	}
	timer := time.NewTimer(admitWait)
	defer timer.Stop()
	for {
		l.mu.Lock()
		l.stirLocked() // an attempt that has not seen the changes may be about to say clean
		l.wanted = l.wanted || !l.marked
		over := l.marked || l.vain || l.closed
		if l.lost != nil {
			over = l.gone // only then an fsync knows that it may not be acknowledged
		}
		tried := l.tried
		l.mu.Unlock()
		if over {
			return nil
		}
		l.kick()
		select {
		case <-tried:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
