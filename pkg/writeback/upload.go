package writeback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// abortWait bounds how long the abort of an upload may take, lastAbortWait that of one that was broken off by Stop. What
// they leave is the server's to clean up.
const (
	abortWait     = 30 * time.Second
	lastAbortWait = 2 * time.Second
)

// put stores a task's object.
func (e *Executor) put(ctx context.Context, k *namespace.Task) (result, error) {
	// Before the snapshot: a write that falls between the two is in the object and makes the inode dirty again. The
	// other way round it would count as uploaded without being in the snapshot.
	if err := e.tree.Prepare(k); err != nil {
		return result{}, err
	}
	if !k.Content {
		info, err := e.putBody(ctx, k, s3.Body{R: bytesAt(k.Body), Size: int64(len(k.Body))})
		return result{info: info}, err
	}
	f, err := e.file(k)
	if err != nil {
		return result{}, err
	}
	snap, err := f.Snapshot()
	if err != nil {
		return result{}, fmt.Errorf("snapshot of inode %d: %w", k.Ino, err)
	}
	var info s3.Info
	// What others can see must not be newer than what this node still has after a loss of power: else it would take
	// its older state for the newer one and put it back.
	if err = f.Sync(); err == nil {
		info, err = e.putContent(ctx, k, &content{exec: e, file: f, snap: snap, source: k.Source, ino: k.Ino})
	}
	if err != nil {
		snap.Release()
		return result{}, err
	}
	return result{info: info, snap: snap}, nil
}

// file is the task's file in the cache. A file that the cache does not know has the bytes of its source and no others.
func (e *Executor) file(k *namespace.Task) (*cache.File, error) {
	if f := e.store.Lookup(cache.ID(k.Ino)); f != nil {
		return f, nil
	}
	n, err := e.tree.Get(k.Ino)
	if err != nil {
		return nil, err
	}
	if n.Attr.Size != k.Source.Size {
		err := fmt.Errorf("inode %d has %d bytes, its object %d: %w", k.Ino, n.Attr.Size, k.Source.Size, cache.ErrMissing)
		if k.Source.Key == "" {
			err = &sourceError{err} // others removed the object, and a loss of power what was here
		}
		return nil, err
	}
	return e.store.File(cache.ID(k.Ino), k.Source.Size), nil
}

func (e *Executor) putContent(ctx context.Context, k *namespace.Task, c *content) (s3.Info, error) {
	size := c.snap.Size()
	var info s3.Info
	parts, err := e.plan(size, c.whole, c.lacks)
	if err != nil {
		return s3.Info{}, err
	}
	if len(parts) > 0 {
		info, err = e.multipart(ctx, k, c, size, parts)
	} else if err = c.prepare(ctx, 0, size); err == nil {
		info, err = e.putBody(ctx, k, s3.Body{R: c.section(ctx, 0, size), Size: size})
	}
	var lost *sourceError
	if errors.As(err, &lost) && k.Source.Key == k.Key {
		// The object that we change is the one that somebody else replaced.
		return e.settle(ctx, k, size, lost)
	}
	return info, err
}

// putBody stores the object by one PUT.
func (e *Executor) putBody(ctx context.Context, k *namespace.Task, body s3.Body) (s3.Info, error) {
	info, err := e.bucket.Put(ctx, k.Key, body, k.Attr, k.Cond)
	if err != nil {
		return e.settle(ctx, k, body.Size, err)
	}
	info.Size, k.Told = body.Size, namespace.ToPut
	return info, nil
}

// bytesAt is a short body in memory.
type bytesAt []byte

func (b bytesAt) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
