package writeback

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// copyStep is the size, in bytes, of the parts of an object that is too large for one copy.
const copyStep = 1 << 30

// errUnverified: a copy that was reported as done is not there.
var errUnverified = fmt.Errorf("the copy is not what was ordered: %w", s3.ErrUnavailable)

// copy makes the task's object from its source, on the server.
func (e *Executor) copy(ctx context.Context, k *namespace.Task) (result, error) {
	if err := e.tree.Prepare(k); err != nil {
		return result{}, err
	}
	size := k.Source.Size
	// The source's ETag guards an object that is copied onto itself; another destination is looked at first, because
	// most servers ignore the condition.
	if k.Key != k.Source.Key && k.Cond != (s3.Condition{}) {
		info, err := e.bucket.Head(ctx, k.Key)
		found := &info
		if errors.Is(err, s3.ErrNotExist) {
			found = nil
		} else if err != nil {
			return result{}, err
		}
		if err := e.taken(k, found, s3.ErrPrecondition); err != nil {
			return result{}, err
		}
	}
	if size > e.opt.MaxCopy {
		info, err := e.multipart(ctx, k, nil, size, ranges(k.Source, min(copyStep, e.opt.MaxCopy)))
		return result{info: info}, err
	}
	_, err := e.copyObject(ctx, k.Source.Key, k.Source.ETag, k.Key, &k.Attr, k.Cond)
	if err == nil {
		// The source goes away when this task is committed: look at the copy before.
		err = errUnverified
	}
	info, err := e.settle(ctx, k, size, err)
	return result{info: info}, err
}

// copyObject is Bucket.Copy with the condition only where the server knows it.
func (e *Executor) copyObject(ctx context.Context, src s3.Key, match s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	info, err := e.bucket.Copy(ctx, src, match, dst, attr, cond)
	if cond != (s3.Condition{}) && errors.Is(err, s3.ErrNotSupported) {
		return e.bucket.Copy(ctx, src, match, dst, attr, s3.Condition{})
	}
	return info, err
}
