package writeback

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// takenError: the task's condition does not hold, because of found (nil: there is no object).
type takenError struct {
	found *s3.Info
	ours  bool // an earlier attempt of ours made it
	cause error
}

func (t *takenError) Error() string {
	switch {
	case t.found == nil:
		return fmt.Sprintf("the object is gone: %v", t.cause)
	case t.ours:
		return fmt.Sprintf("an earlier attempt of ours was applied: %v", t.cause)
	}
	return fmt.Sprintf("the object is somebody else's, ETag %s: %v", t.found.ETag, t.cause)
}

func (t *takenError) Unwrap() error { return t.cause }

// settle finds out what became of a request on k.Key that ended with cause. A nil error means that it was applied and
// made an object of size bytes.
func (e *Executor) settle(ctx context.Context, k *namespace.Task, size int64, cause error) (s3.Info, error) {
	// AWS answers 404 to an If-Match on a key that does not exist.
	refused := errors.Is(cause, s3.ErrPrecondition) || errors.Is(cause, s3.ErrNotExist)
	if !refused && !errors.Is(cause, s3.ErrUnavailable) && !errors.Is(cause, s3.ErrNoUpload) {
		return s3.Info{}, cause
	}
	info, err := e.bucket.Head(ctx, k.Key)
	if err != nil && !errors.Is(err, s3.ErrNotExist) {
		return s3.Info{}, errors.Join(cause, err)
	}
	if err == nil && k.Same(info) {
		if info.Size != size {
			return s3.Info{}, fmt.Errorf("object has %d bytes, %d were sent: %w", info.Size, size, s3.ErrCorrupt)
		}
		return info, nil
	}
	if !refused {
		return s3.Info{}, cause
	}
	found := &info
	if err != nil {
		found = nil
	}
	if terr := e.taken(k, found, cause); terr != nil {
		return s3.Info{}, terr
	}
	return s3.Info{}, cause // it holds now: the next attempt may pass
}

// taken compares what is at k.Key (nil: nothing) with k's condition and returns a takenError when it does not hold.
func (e *Executor) taken(k *namespace.Task, found *s3.Info, cause error) error {
	switch {
	case found == nil && k.Cond.IfMatch == "":
		return nil
	case found != nil && k.Cond.IfMatch == found.ETag:
		return nil
	case found != nil && k.Cond == (s3.Condition{}):
		return nil
	}
	return &takenError{found: found, ours: found != nil && e.tree.Ours(k, *found), cause: cause}
}
