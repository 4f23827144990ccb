package writeback

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// maxPasses bounds how often a prefix is listed again while others keep adding to it.
const maxPasses = 100

// purge removes what is left below the task's source prefix, in passes, until one finds nothing more to remove.
func (e *Executor) purge(ctx context.Context, k *namespace.Task) error {
	if k.DstPrefix != "" && overlap(k.SrcPrefix, k.DstPrefix) {
		return fmt.Errorf("purge %q, moved to %q: %w", string(k.SrcPrefix), string(k.DstPrefix), errOverlap)
	}
	for range maxPasses {
		removed := 0
		err := e.pages(ctx, k.SrcPrefix, func(objs []s3.Info) error {
			keys, err := e.removable(ctx, k, e.unowned(k, objs))
			if err != nil || len(keys) == 0 {
				return err
			}
			removed += len(keys)
			return e.deleteMany(ctx, keys)
		})
		if err != nil || removed == 0 {
			return err
		}
	}
	return fmt.Errorf("%q is filled as fast as it is emptied: %w", string(k.SrcPrefix), s3.ErrUnavailable)
}

// removable are the keys of objects that may go now: after a Move, those whose copies are there.
func (e *Executor) removable(ctx context.Context, k *namespace.Task, objs []s3.Info) ([]s3.Key, error) {
	var keys []s3.Key
	if k.DstPrefix == "" {
		for _, o := range objs {
			if !reachable(string(o.Key[len(k.SrcPrefix):])) {
				keys = append(keys, o.Key)
			}
		}
		return keys, nil
	}
	there, err := e.present(ctx, k, objs)
	if err != nil {
		return nil, err
	}
	copies, err := each(ctx, objs, func(ctx context.Context, o s3.Info) (s3.Info, error) {
		return e.leave(ctx, k, o, there[destination(k, o.Key)])
	})
	return slices.Sorted(maps.Keys(copies)), err
}

// leave finds the copy for which an object may go (there: what is at its destination, nil: nothing), or makes it of one that
// came late. Under a name that was written anew in the mount another's object is not brought: it stays where it is.
func (e *Executor) leave(ctx context.Context, k *namespace.Task, o s3.Info, there *s3.Info) (s3.Info, error) {
	dst := destination(k, o.Key)
	made, err := e.madeOf(ctx, o, there)
	switch {
	case err != nil:
		return s3.Info{}, err
	case made:
		return *there, nil
	case e.tree.Skip(k, dst):
		return s3.Info{}, errStays
	}
	copied, err := e.place(ctx, k, o, there)
	if err != nil {
		return s3.Info{}, err
	}
	found, err := persist(ctx, func() (s3.Info, error) { return e.bucket.Head(ctx, dst) })
	if errors.Is(err, s3.ErrNotExist) || err == nil && (found.Size != o.Size || found.ETag != copied.ETag) {
		err = fmt.Errorf("%q: %w", string(dst), errUnverified)
	}
	return found, err
}

// reachable says that POSIX can name a key: rest is its part below a directory, with a slash at the end of a marker.
func reachable(rest string) bool {
	if rest == "" {
		return true
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(rest, "/"), "/") {
		if !namespace.ValidName(name) {
			return false
		}
	}
	return true
}

// deleteMany removes the keys of one page. What failed is an error; the next pass finds it again.
func (e *Executor) deleteMany(ctx context.Context, keys []s3.Key) error {
	failed, err := persist(ctx, func() (map[s3.Key]error, error) { return e.bucket.DeleteMany(ctx, keys) })
	for key, ferr := range failed {
		err = errors.Join(err, fmt.Errorf("delete %q: %w", string(key), ferr))
	}
	return err
}
