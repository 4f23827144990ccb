package writeback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
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
		return nil, fmt.Errorf("inode %d has %d bytes, its object %d: %w", k.Ino, n.Attr.Size, k.Source.Size, cache.ErrMissing)
	}
	return e.store.File(cache.ID(k.Ino), k.Source.Size), nil
}

func (e *Executor) putContent(ctx context.Context, k *namespace.Task, c *content) (s3.Info, error) {
	size := c.snap.Size()
	var info s3.Info
	var err error
	if size > e.opt.SinglePut {
		parts, perr := e.plan(size, c.whole)
		if perr != nil {
			return s3.Info{}, perr
		}
		info, err = e.multipart(ctx, k, c, size, parts)
	} else if err = c.prepare(ctx, 0, size); err == nil {
		info, err = e.putBody(ctx, k, s3.Body{R: c.section(ctx, 0, size), Size: size})
	}
	var lost *sourceError
	if errors.As(err, &lost) && k.Source.Key == k.Key {
		// The object that we change is the one that somebody else replaced.
		return e.settle(ctx, k, size, lost.error)
	}
	return info, err
}

// putBody stores the object by one PUT.
func (e *Executor) putBody(ctx context.Context, k *namespace.Task, body s3.Body) (s3.Info, error) {
	info, err := e.bucket.Put(ctx, k.Key, body, k.Attr, k.Cond)
	if err != nil {
		return e.settle(ctx, k, body.Size, err)
	}
	info.Size = body.Size
	return info, nil
}

// multipart makes the object of parts. c may be nil when all are copied.
func (e *Executor) multipart(ctx context.Context, k *namespace.Task, c *content, size int64, parts []part) (s3.Info, error) {
	id, err := e.bucket.CreateUpload(ctx, k.Key, k.Attr)
	if err != nil {
		return s3.Info{}, err
	}
	sent, err := e.sendParts(ctx, k, c, id, parts)
	if err == nil {
		var info s3.Info
		if info, err = e.complete(ctx, k, id, sent, size); err == nil {
			return info, nil
		}
	}
	e.abort(ctx, k.Key, id)
	return s3.Info{}, err
}

// sendParts uploads or copies all parts, Options.Parts at once over all uploads.
func (e *Executor) sendParts(ctx context.Context, k *namespace.Task, c *content, id s3.UploadID, parts []part) ([]s3.Part, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sent := make([]s3.Part, len(parts))
	var wg sync.WaitGroup
	for i, p := range parts {
		if e.parts.acquire(ctx) != nil {
			break
		}
		wg.Add(1)
		// Ends with its request, or soon after ctx does; this call waits for it.
		go func() {
			defer wg.Done()
			defer e.parts.release()
			s, err := persist(ctx, func() (s3.Part, error) { return e.sendPart(ctx, k, c, id, p) })
			if err != nil {
				cancel(fmt.Errorf("part %d of %q: %w", p.number, string(k.Key), err))
				return
			}
			sent[i] = s
		}()
	}
	wg.Wait()
	return sent, context.Cause(ctx)
}

func (e *Executor) sendPart(ctx context.Context, k *namespace.Task, c *content, id s3.UploadID, p part) (s3.Part, error) {
	var s s3.Part
	var err error
	if p.copied() {
		r := s3.Range{Off: p.off - p.from.Off, End: p.end - p.from.Off}
		s, err = e.bucket.CopyPart(ctx, k.Key, id, p.number, p.from.Key, p.from.ETag, r)
		if errors.Is(err, s3.ErrNotExist) || errors.Is(err, s3.ErrPrecondition) {
			err = &sourceError{err}
		}
	} else if err = c.prepare(ctx, p.off, p.end); err == nil {
		s, err = e.bucket.UploadPart(ctx, k.Key, id, p.number, s3.Body{R: c.section(ctx, p.off, p.end), Size: p.end - p.off})
	}
	if err != nil {
		e.failing.Store(true)
		return s3.Part{}, err
	}
	e.stepped()
	s.Number, s.Size = p.number, p.end-p.off
	return s, nil
}

// complete makes the object of an upload's parts. A completion may be repeated: some servers then say that it is done,
// others that they do not know the upload any more.
func (e *Executor) complete(ctx context.Context, k *namespace.Task, id s3.UploadID, parts []s3.Part, size int64) (s3.Info, error) {
	info, err := persist(ctx, func() (s3.Info, error) {
		info, err := e.bucket.CompleteUpload(ctx, k.Key, id, parts, k.Cond)
		if err != nil {
			return e.settle(ctx, k, size, err)
		}
		return info, nil
	})
	info.Size = size
	return info, err
}

// abort drops an upload of ours, also when the task itself was broken off.
func (e *Executor) abort(ctx context.Context, key s3.Key, id s3.UploadID) {
	stopped := ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortWait)
	defer cancel()
	defer context.AfterFunc(stopped, func() { time.AfterFunc(lastAbortWait, cancel) })()
	if err := e.bucket.AbortUpload(ctx, key, id); err != nil {
		e.log.Warn("upload was not aborted and stays on the server", "key", string(key), "upload", string(id), "err", err)
	}
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
