package s3fault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Bucket passes every call to another bucket, unless Fault says otherwise.
type Bucket struct {
	// Fault decides about each operation, nil lets all through. It is called from many goroutines, with no lock
	// held. Set it before the first call.
	Fault func(op Op) Action

	inner s3.Bucket

	mu    sync.Mutex
	calls map[string]int // guarded by mu: calls so far, by name
}

var _ s3.Bucket = (*Bucket)(nil)

// New returns b with no faults.
func New(b s3.Bucket) *Bucket { return &Bucket{inner: b, calls: map[string]int{}} }

// Count returns how many calls of the method name there were, refused ones included.
func (b *Bucket) Count(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[name]
}

// Name is the inner bucket's name; it is not an operation.
func (b *Bucket) Name() string { return b.inner.Name() }

func (b *Bucket) decide(name string, key s3.Key) (Op, Action) {
	b.mu.Lock()
	b.calls[name]++
	op := Op{Name: name, Key: key, N: b.calls[name]}
	b.mu.Unlock()
	if b.Fault == nil {
		return op, Action{}
	}
	return op, b.Fault(op)
}

func (b *Bucket) fail(op Op, err error) error {
	return fmt.Errorf("s3fault: %s %s/%q, call %d: %w", op.Name, b.Name(), string(op.Key), op.N, err)
}

// run lets call through as the script says. Actions on a Get's body are its own business.
func (b *Bucket) run(ctx context.Context, name string, key s3.Key, call func() error) error {
	op, a := b.decide(name, key)
	switch a.kind {
	case none:
		return call()
	case delay:
		if err := b.wait(ctx, op, a.wait); err != nil {
			return err
		}
		return call()
	case failAfter:
		// The outcome is what the test wants hidden: an answer that never arrives tells neither success nor failure.
		_ = call()
	}
	return b.fail(op, a.err)
}

func (b *Bucket) wait(ctx context.Context, op Op, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return b.fail(op, errors.Join(s3.ErrUnavailable, ctx.Err()))
	}
}

// Get is scripted like the rest; ShortBody and CorruptBody act on the body that it returns.
func (b *Bucket) Get(ctx context.Context, key s3.Key, r *s3.Range, ifMatch s3.ETag) (io.ReadCloser, s3.Info, error) {
	op, a := b.decide("Get", key)
	if a.kind == failBefore {
		return nil, s3.Info{}, b.fail(op, a.err)
	}
	if a.kind == delay {
		if err := b.wait(ctx, op, a.wait); err != nil {
			return nil, s3.Info{}, err
		}
	}
	rc, info, err := b.inner.Get(ctx, key, r, ifMatch)
	switch {
	case a.kind == failAfter:
		if err == nil {
			_ = rc.Close() // the answer is lost, and with it what closing it says
		}
		return nil, s3.Info{}, b.fail(op, a.err)
	case err != nil:
		return nil, s3.Info{}, err
	case a.kind == shortBody:
		return &shortReader{ReadCloser: rc, left: a.n, err: b.fail(op, a.err)}, info, nil
	case a.kind == corruptBody:
		left := info.Size
		if r != nil {
			left = min(r.End, info.Size) - r.Off
		}
		return &corruptReader{ReadCloser: rc, left: left, err: b.fail(op, a.err)}, info, nil
	}
	return rc, info, nil
}

type shortReader struct {
	io.ReadCloser
	left int64
	err  error
}

func (r *shortReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, r.err
	}
	n, err := r.ReadCloser.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	return n, err
}

type corruptReader struct {
	io.ReadCloser
	left    int64
	flipped bool
	err     error
}

func (r *corruptReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, r.err
	}
	n, err := r.ReadCloser.Read(p)
	if r.left -= int64(n); r.left <= 0 || err != nil {
		// The last bytes are held back: a caller that reads exactly the length would see no error.
		r.left = 0
		return 0, r.err
	}
	if n > 0 && !r.flipped {
		p[n-1] ^= 1
		r.flipped = true
	}
	return n, nil
}
