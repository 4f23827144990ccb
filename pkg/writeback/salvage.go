package writeback

import (
	"context"
	"errors"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// recheck finds out why a task did not find its source. It was by our own doing when a request whose answer was lost has
// changed or removed it: then the next attempt has another source. gone says that it was not, and that the object is there
// no more; found is what is in its place. What goes wrong meanwhile is added to cause.
func (e *Executor) recheck(k *namespace.Task, cause *error) (gone bool, found *s3.Info) {
	var lost *sourceError
	var taken *takenError
	switch {
	case errors.As(*cause, &lost) && k.Source.Key == "":
		return true, nil
	case errors.As(*cause, &lost):
	case k.Verb != namespace.Copy || errors.As(*cause, &taken) || !errors.Is(*cause, s3.ErrNotExist) && !errors.Is(*cause, s3.ErrPrecondition):
		return false, nil
	}
	info, err := e.bucket.Head(e.ctx, k.Source.Key)
	switch {
	case err == nil:
		found = &info
	case !errors.Is(err, s3.ErrNotExist):
		*cause = errors.Join(*cause, err)
		return false, nil
	}
	again, err := e.tree.Recheck(k.Ino, k.Source, found)
	if err != nil || again {
		*cause = errors.Join(*cause, err)
		return false, nil
	}
	return found == nil || found.ETag != k.Source.ETag, found
}

// salvage ends a task whose source others removed or replaced: what the cache has of the file is kept, whatever it is.
func (e *Executor) salvage(k *namespace.Task, found *s3.Info, cause error) error {
	rest := namespace.RestNothing
	if f := e.store.Lookup(cache.ID(k.Ino)); f != nil {
		lost, left, err := f.Orphan()
		switch {
		case err != nil:
			e.tree.Fail(k, errors.Join(cause, err), e.opt.Now().Add(maxPause))
			return err
		case len(lost) == 0:
			rest = namespace.RestAll
		case left > 0:
			rest = namespace.RestPart
		}
	}
	e.log.Warn("the object that had a file's bytes was removed or replaced by others", "ino", k.Ino, "key", string(k.Source.Key),
		"kept", [...]string{"nothing, since nothing was here", "what was here, under another name", "all"}[rest], "err", cause)
	_, err := e.told(k, func() (string, error) { return e.tree.Salvage(k, rest, found) })
	return err
}

// setAside keeps somebody else's object, which stands where a directory moves to, under another key, and tells of it.
func (e *Executor) setAside(ctx context.Context, o s3.Info, kept s3.Key) error {
	_, err := e.duplicate(ctx, o, kept, s3.Condition{})
	switch {
	case errors.Is(err, s3.ErrNotExist):
		return nil // it went: so does the condition on it
	case err != nil:
		return err
	}
	if e.opt.Aside != nil {
		e.opt.Aside(o.Key, kept)
	}
	return nil
}
