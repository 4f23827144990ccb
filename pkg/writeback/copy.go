package writeback

import (
	"context"
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
	if size > e.opt.MaxCopy {
		info, err := e.multipart(ctx, k, nil, size, ranges(k.Source, min(copyStep, e.opt.MaxCopy)))
		return result{info: info}, err
	}
	_, err := e.bucket.Copy(ctx, k.Source.Key, k.Source.ETag, k.Key, &k.Attr, k.Cond)
	if err == nil {
		// The source goes away when this task is committed: look at the copy before.
		err = errUnverified
	}
	info, err := e.settle(ctx, k, size, err)
	return result{info: info}, err
}
